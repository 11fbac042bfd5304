"""What the dispatcher's thread has to say, on its way into the event loop.

The loop may stand still for a second over a plan while the dispatcher goes on. What must be known (a pipeline
is drained, a job set aside, the report of each second) comes as often as such things happen; decisions come
with every job where somebody asked for them, so those are dropped beyond a bound, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from orchestrator.core.dispatch_events import Decided
from orchestrator.dispatch_notes import Note

MOST_WAITING = 1000


class NoteBox:
    """`put` from the dispatcher's thread, `take` in the event loop that it was made for with `open`."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self.dropped = 0
        self._most_waiting = most_waiting
        self._notes: deque[Note] = deque()
        self._came = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` is woken for each note."""
        self._loop = loop

    def put(self, note: Note) -> None:
        """Add a note; a decision is dropped where too much waits already."""
        assert self._loop is not None
        if isinstance(note, Decided) and len(self._notes) >= self._most_waiting:
            self.dropped += 1
            return
        self._notes.append(note)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._came.set)

    async def take(self) -> Note:
        """The oldest note; waits for one."""
        while not self._notes:
            self._came.clear()
            if not self._notes:
                await self._came.wait()
        return self._notes.popleft()
