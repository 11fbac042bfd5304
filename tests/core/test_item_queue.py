"""The queue alone, against a plain list of what waits and in whose turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.item_queue import ItemQueue

CLIENTS = st.sampled_from("aaab") | st.sampled_from("abcd")


@dataclass(frozen=True)
class Thing:
    sequence: int
    client: str = "a"
    size_bytes: int = 10


@given(
    st.lists(st.sampled_from(["push", "push", "take", "again", "discard"]), max_size=80), st.data()
)
def test_clients_take_turns_and_what_runs_again_goes_ahead(
    steps: list[str], data: st.DataObject
) -> None:
    queue: ItemQueue[Thing] = ItemQueue()
    fresh: list[Thing] = []
    again: list[Thing] = []
    taken: list[Thing] = []
    passed: dict[str, Counter[str]] = {}
    """By client with something waiting: who else had how many turns since its own."""
    for number, step in enumerate(steps):
        if step == "push":
            thing = Thing(number, data.draw(CLIENTS), number)
            queue.push(thing)
            fresh.append(thing)
            passed.setdefault(thing.client, Counter())
        elif step == "take" and (fresh or again):
            head = queue.head()
            assert queue.take() is head
            assert head is not None
            taken.append(head)
            if again:
                assert head is again.pop(0)
            else:
                own = [thing for thing in fresh if thing.client == head.client]
                assert head is own[0], "first come, first served"
                fresh.remove(head)
                passed.pop(head.client)
                for turns in passed.values():
                    turns[head.client] += 1
                    assert turns[head.client] == 1, "two turns while another waited"
                if len(own) > 1:
                    passed[head.client] = Counter()
        elif step == "again" and taken:
            thing = data.draw(st.sampled_from(taken))
            taken.remove(thing)
            queue.push_again(thing)
            again = sorted([*again, thing], key=lambda thing: thing.sequence)
        elif step == "discard" and (fresh or again):
            thing = data.draw(st.sampled_from(fresh + again))
            (fresh if thing in fresh else again).remove(thing)
            queue.discard(thing)
            if thing.client not in {each.client for each in fresh}:
                passed.pop(thing.client, None)
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
    waiting=st.lists(st.builds(Thing, st.just(0), CLIENTS, st.integers(0, 30)), max_size=12),
    client=CLIENTS,
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    max_items=st.integers(4, 12),
    max_bytes=st.integers(120, 300),
)
def test_the_newest_of_who_has_most_gives_way(
    waiting: list[Thing], client: str, sizes: list[int], max_items: int, max_bytes: int
) -> None:
    queue: ItemQueue[Thing] = ItemQueue()
    things = [Thing(i, each.client, each.size_bytes) for i, each in enumerate(waiting)]
    for thing in things:
        queue.push(thing)
    leaving = queue.make_room(
        client, len(sizes), sum(sizes), max_items=max_items, max_bytes=max_bytes
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
            gone = [thing for thing in leaving if thing.client == name]
            assert gone == own[::-1][: len(gone)], "newest first"
            if gone:
                assert name != client
                assert held(name, left) >= wanted, "it keeps no less than the newcomer has"


def test_equal_shares_are_what_floods_come_to() -> None:
    """Whoever comes first takes all; then each client that floods, too, gets as much as the others."""
    queue: ItemQueue[Thing] = ItemQueue()
    number = 0
    for clients in ("a", "ab", "abc", "abcd"):
        for _ in range(40):
            for client in clients:
                leaving = queue.make_room(client, 1, 10, max_items=12, max_bytes=10_000)
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
