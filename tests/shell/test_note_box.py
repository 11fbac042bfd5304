"""Notes from the dispatcher's thread: in order, from another thread, and no more than a loop can hold."""

from __future__ import annotations

import asyncio
import threading

from orchestrator.core.dispatch_events import Decided, PipelineDrained
from orchestrator.core.selection import Decision
from orchestrator.note_box import NoteBox


def decided(number: int) -> Decided:
    return Decided(f"r{number}", 0, "m", Decision(0.0, "shortest-completion", False, ()))


def drained(generation: int) -> PipelineDrained:
    return PipelineDrained("m", "m-0", generation)


async def test_notes_come_in_order_from_another_thread() -> None:
    box = NoteBox()
    box.open(asyncio.get_running_loop())

    def report() -> None:
        for number in range(100):
            box.put(drained(number))

    thread = threading.Thread(target=report)
    thread.start()
    assert [await box.take() for _ in range(100)] == [drained(number) for number in range(100)]
    thread.join()


async def test_a_loop_that_stands_still_keeps_what_matters_and_some_decisions() -> None:
    """Nothing is awaited here, so nothing is taken: as over a plan that takes a second."""
    box = NoteBox(most_waiting=10)
    box.open(asyncio.get_running_loop())
    for number in range(50):
        box.put(decided(number))
    box.put(drained(1))
    assert box.dropped == 40
    assert [await box.take() for _ in range(11)] == [*(decided(n) for n in range(10)), drained(1)]
    box.put(decided(99))
    assert await box.take() == decided(99), "and goes on"
