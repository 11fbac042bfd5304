"""What waits for one browser: nothing is lost but telemetry, and nothing grows without bound."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.web.history import MOST_POINTS, History
from orchestrator.web.mailbox import FRAME_BYTES, Item, Mailbox
from shared.messages.operation import Metrics, ModelMetrics

TOPICS = st.sampled_from(["node/a/telemetry", "node/b/telemetry", "metrics"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(1, FRAME_BYTES)),
        st.tuples(st.just("replace"), TOPICS),
        st.just(("take", 0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_states_and_events_come_all_and_in_order_telemetry_the_latest(
    steps: list[tuple[str, int | str]],
) -> None:
    mailbox = Mailbox(most_bytes=100 * FRAME_BYTES)
    kept: list[bytes] = []
    latest: dict[str, bytes] = {}
    got: list[bytes] = []
    shown: dict[str, bytes] = {}

    def take() -> None:
        frame = mailbox.take()
        got.extend(item.payload for item in frame if item.topic == "event")
        shown.update((item.topic, item.payload) for item in frame if item.topic != "event")
        assert sum(len(item.payload) for item in frame[:-1]) < FRAME_BYTES

    for number, (what, how) in enumerate(steps):
        payload = json.dumps(number).encode()
        match what:
            case "keep":
                kept.append(payload.rjust(int(how)))
                assert mailbox.keep(Item("event", kept[-1]))
            case "replace":
                latest[str(how)] = payload
                mailbox.replace(Item(str(how), payload))
            case _:
                take()
    while mailbox:
        take()
    assert got == kept
    assert shown == latest


def test_a_browser_that_is_behind_for_good_is_told_so() -> None:
    mailbox = Mailbox(most_items=3)
    assert all(mailbox.keep(Item("event", b"1")) for _ in range(3))
    mailbox.replace(Item("metrics", b"2"))
    assert not mailbox.keep(Item("event", b"1"))
    assert not mailbox
    by_bytes = Mailbox(most_bytes=10)
    assert by_bytes.keep(Item("event", b"0" * 10))
    assert not by_bytes.keep(Item("event", b"0"))


def test_what_was_taken_makes_room() -> None:
    mailbox = Mailbox(most_items=2, most_bytes=2)
    for _ in range(100):
        assert mailbox.keep(Item("event", b"11"))
        assert len(mailbox.take()) == 1


def test_the_past_of_the_charts_is_bounded() -> None:
    history = History()
    for second in range(MOST_POINTS + 5):
        one = ModelMetrics(
            queued=0, in_flight=0, answered_per_s=second, latency_p50_s=None, latency_p95_s=None
        )
        history.take(
            Metrics(counters={}, models={"m": one}, nodes_online=0, cpu_s=0, memory_bytes=0),
            second * 1000,
        )
    assert len(history.moments) == MOST_POINTS
    assert history.moments[-1].models["m"].answered_per_s == MOST_POINTS + 4
