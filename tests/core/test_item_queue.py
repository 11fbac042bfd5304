"""The queue alone, against a plain list of what waits and in whose turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.item_queue import TURNS_FOR_LOWER, ItemQueue

PRIORITIES = st.sampled_from([5, 5, 5, 0, 9])
CLIENTS = st.sampled_from("aaab") | st.sampled_from("abcd")


@dataclass(frozen=True)
class Thing:
    sequence: int
    client: str = "a"
    size_bytes: int = 10
    priority: int = 5


def line(thing: Thing) -> tuple[int, str]:
    return thing.priority, thing.client


@given(
    st.lists(st.sampled_from(["push", "push", "take", "again", "discard"]), max_size=80), st.data()
)
def test_priorities_then_turns_and_what_runs_again_goes_ahead(
    steps: list[str], data: st.DataObject
) -> None:
    queue: ItemQueue[Thing] = ItemQueue()
    fresh: list[Thing] = []
    again: list[Thing] = []
    taken: list[Thing] = []
    passed: dict[tuple[int, str], Counter[str]] = {}
    """By priority and client with something waiting: who else had how many turns since its own."""
    high_turns = 0
    for number, step in enumerate(steps):
        if step == "push":
            thing = Thing(number, data.draw(CLIENTS), number, data.draw(PRIORITIES))
            queue.push(thing)
            fresh.append(thing)
            passed.setdefault(line(thing), Counter())
        elif step == "take" and (fresh or again):
            head = queue.head()
            assert queue.take() is head
            assert head is not None
            taken.append(head)
            if again:
                assert head is again.pop(0)
            else:
                highest = max(thing.priority for thing in fresh)
                lower = [thing for thing in fresh if thing.priority < highest]
                if lower and high_turns == TURNS_FOR_LOWER - 1:
                    assert head.priority == lower[0].priority, "where an item has waited longest"
                else:
                    assert head.priority == highest
                high_turns = high_turns + 1 if lower and head.priority == highest else 0
                own = [thing for thing in fresh if line(thing) == line(head)]
                assert head is own[0], "first come, first served"
                fresh.remove(head)
                passed.pop(line(head))
                for (priority, _), turns in passed.items():
                    if priority == head.priority:
                        turns[head.client] += 1
                        assert turns[head.client] == 1, "two turns while another waited"
                if len(own) > 1:
                    passed[line(head)] = Counter()
        elif step == "again" and taken:
            thing = data.draw(st.sampled_from(taken))
            taken.remove(thing)
            queue.push_again(thing)
            again = sorted([*again, thing], key=lambda thing: thing.sequence)
        elif step == "discard" and (fresh or again):
            thing = data.draw(st.sampled_from(fresh + again))
            (fresh if thing in fresh else again).remove(thing)
            queue.discard(thing)
            if line(thing) not in map(line, fresh):
                passed.pop(line(thing), None)
        waiting = [*again, *fresh]
        assert queue.items()[: len(again)] == again
        assert sorted(queue.items(), key=lambda thing: thing.sequence) == sorted(
            waiting, key=lambda thing: thing.sequence
        )
        assert len(queue) == len(waiting)
        assert queue.size_bytes == sum(thing.size_bytes for thing in waiting)
        assert queue.oldest() is min(waiting, key=lambda thing: thing.sequence, default=None)
        assert (queue.head() is None) == (not waiting)


@given(
    waiting=st.lists(
        st.builds(Thing, st.just(0), CLIENTS, st.integers(0, 30), PRIORITIES), max_size=12
    ),
    client=CLIENTS,
    priority=PRIORITIES,
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    max_items=st.integers(4, 12),
    max_bytes=st.integers(120, 300),
)
def test_the_newest_of_who_has_most_gives_way(
    *,
    waiting: list[Thing],
    client: str,
    priority: int,
    sizes: list[int],
    max_items: int,
    max_bytes: int,
) -> None:
    queue: ItemQueue[Thing] = ItemQueue()
    things = [replace(thing, sequence=number) for number, thing in enumerate(waiting)]
    for thing in things:
        queue.push(thing)
    leaving = queue.make_room(
        client, priority, len(sizes), sum(sizes), max_items=max_items, max_bytes=max_bytes
    )
    assert len(queue) == len(things), "nothing is taken out yet"
    too_many = len(things) + len(sizes) > max_items
    too_large = queue.size_bytes + sum(sizes) > max_bytes

    def held(name: str, of: list[Thing]) -> int:
        own = [thing for thing in of if thing.client == name]
        return sum(thing.size_bytes for thing in own) if too_large else len(own)

    wanted = held(client, things) + (sum(sizes) if too_large else len(sizes))
    if not (too_many or too_large):
        assert leaving == []
    elif leaving is None:
        others = [held(name, things) for name in "abcd" if name != client]
        if not too_large:
            surplus = sum(max(0, amount - wanted) for amount in others)
            surplus += sum(thing.client == client and thing.priority < priority for thing in things)
            assert surplus < len(things) + len(sizes) - max_items
        elif not too_many:
            # An item takes up to 30 bytes more than are needed.
            lacking = queue.size_bytes + sum(sizes) - max_bytes
            assert max(others) < wanted + lacking + 30
    else:
        left = [thing for thing in things if thing not in leaving]
        assert len(left) + len(sizes) <= max_items
        assert sum(thing.size_bytes for thing in left) + sum(sizes) <= max_bytes
        for name in "abcd":
            own = [thing for thing in things if thing.client == name]
            own.sort(key=lambda thing: (thing.priority, -thing.sequence))
            gone = [thing for thing in leaving if thing.client == name]
            assert gone == own[: len(gone)], "the least important first, of those the newest"
            if name == client:
                assert all(thing.priority < priority for thing in gone)
            elif gone:
                assert held(name, left) >= wanted, "it keeps no less than the newcomer has"


def test_equal_shares_are_what_floods_come_to() -> None:
    """Whoever comes first takes all; then each client that floods, too, gets as much as the others."""
    queue: ItemQueue[Thing] = ItemQueue()
    number = 0
    for clients in ("a", "ab", "abc", "abcd"):
        for _ in range(40):
            for client in clients:
                leaving = queue.make_room(client, 5, 1, 10, max_items=12, max_bytes=10_000)
                if leaving is not None:
                    for thing in leaving:
                        queue.discard(thing)
                    number += 1
                    queue.push(Thing(number, client))
        counts = Counter(thing.client for thing in queue.items())
        assert counts == dict.fromkeys(clients, 12 // len(clients))


def test_discarding_what_is_not_there() -> None:
    queue: ItemQueue[Thing] = ItemQueue()
    queue.push_again(Thing(2))
    with pytest.raises(KeyError):
        queue.discard(Thing(1))
    with pytest.raises(KeyError):
        queue.discard(Thing(3))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), min_size=30, max_size=90))
def test_who_takes_several_at_once_gets_no_more_than_others(
    messages: list[tuple[str, int]],
) -> None:
    """Clients that never run out: whatever each takes at a time, none is ahead by more than a message."""
    queue: ItemQueue[Thing] = ItemQueue()
    waiting = 60 * 9
    for number in range(3 * waiting):
        queue.push(Thing(number, "abc"[number % 3]))
    sizes = dict(messages)
    taken = Counter(dict.fromkeys("abc", 0))
    for _ in range(60):
        head = queue.take()
        more = queue.following(head, sizes.get(head.client, 1) - 1)
        assert queue.take_following(head, len(more)) == more
        assert {thing.client for thing in more} <= {head.client}
        taken[head.client] += 1 + len(more)
        assert max(taken.values()) - min(taken.values()) <= 2 * max(sizes.values())
    assert len(queue) == 3 * waiting - sum(taken.values())
    assert queue.size_bytes == 10 * len(queue)


def test_who_took_several_and_is_alone_then_waits_for_nobody() -> None:
    queue: ItemQueue[Thing] = ItemQueue()
    for number in range(6):
        queue.push(Thing(number))
    head = queue.take()
    queue.take_following(head, 3)
    assert queue.take().sequence == 4
    queue.push(Thing(9, "b"))
    assert [queue.take().sequence, queue.take().sequence] in ([5, 9], [9, 5])
    assert queue.head() is None
