"""Moving blobs over the bus: serves what others want, fetches what this process needs.

One `Transfers` per process and peer name. It has no message loop of its own: the process's loop hands it
what came on `artifact/{peer}/want` and `artifact/{peer}/piece`. The same code serves on the orchestrator, on
an agent and in an operator's command, and each of them may fetch. `shared/fetch.py` decides; here are the
tasks, the files and the network. What goes out is made in `shared/pieces.py`; how fast anything may come in
while there is something better to do says `shared/pacing.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

from shared.artifact_part import Part
from shared.artifact_store import ArtifactStore
from shared.bus.faces import ControlBus
from shared.bus.message import Message
from shared.codec import decode_msgpack, encode_msgpack
from shared.errors import ArtifactError, BrokerError, ProtocolError
from shared.fetch import (
    Action,
    Ask,
    Begin,
    Check,
    Checked,
    Event,
    Fetch,
    Finish,
    GiveUp,
    PieceArrived,
    Reject,
    StartOver,
    Tick,
    Write,
)  # fmt: skip
from shared.logs import get_log
from shared.messages.artifact import LARGEST_PIECE_BYTES, Piece, Want
from shared.messages.stage import Blob
from shared.pacing import LEAST_PIECE_BYTES, Pacer
from shared.packing import UNPACK_S_PER_BYTE, break_even_ratio, can_pack, unpack
from shared.pieces import BlobSource, MemoryBlobs, PieceShelf
from shared.topics import Topics

__all__ = ["BlobSource", "Counters", "Fetched", "MemoryBlobs", "Progress", "Transfers"]

log = get_log(__name__)

Progress = Callable[[int, int], None]
"""Called in the event loop with the bytes that are here and the bytes of the whole blob."""

_SERVERS = 4
"""Pieces sent at once: enough to hide one disk read behind another's acknowledgement."""
_MOST_WANTS = 1024
_MOST_WANTS_OF_ONE = 128
"""A fetch keeps a few under way, and a peer six fetches: who asks for more must not fill the queue."""
_FULL_WINDOW = 4
_THIN_BYTES_PER_S = 20e6
"""On a link below this one piece of each fetch under way keeps it busy; more would only wait in line."""
_LONGEST_LINE_S = 30.0
"""A piece that did not come may still be on its way, for so long, while others come."""
_TELLING_BYTES = 64 * 1024
"""Of a smaller piece the time to unpack it is mostly that of the call."""
_REMEMBERED = 0.2
"""The weight of the latest piece in what unpacking is thought to cost."""


@dataclass(slots=True)
class Counters:
    """What happened so far.

    `bytes_sent` and `bytes_received` are as they travelled: of pieces that were packed, what was left.
    """

    pieces_sent: int = 0
    pieces_packed: int = 0
    wants_refused: int = 0
    wants_dropped: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bad_pieces: int = 0
    bad_messages: int = 0
    stray_pieces: int = 0


@dataclass(slots=True)
class _Running:
    """A fetch under way, and everybody who waits for it."""

    task: asyncio.Task[Path]
    progress: list[Progress]
    pieces: asyncio.Queue[Piece]
    waiters: int = 0
    leaving: bool = False
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A blob's file, and the bytes that came over the bus for it; of several who waited one has them all."""

    path: Path
    received_bytes: int


class Transfers:
    """Serves blobs and fetches them. Enter with `async with`, in the same loop as the bus.

    Args:
        bus: the process's control connection.
        topics: the topic table below the process's root.
        peer: the name under which others reach this process.
        store: where fetched blobs go; without one `fetch` fails.
        source: what is served; the store when None.
        parallel: fetches at once; the others wait.
        timeout_s: how long a piece may take before it is asked for again, at first.
        link_bytes_per_s: what is known of the link to here: pieces come packed where that pays.
        allowed_bytes_per_s: what blobs may have of link and CPU now; None: all.
        cpus: that this process may use: with less than one, unpacking takes longer.
    """

    def __init__(
        self,
        bus: ControlBus,
        topics: Topics,
        peer: str,
        *,
        store: ArtifactStore | None = None,
        source: BlobSource | None = None,
        parallel: int = 6,
        timeout_s: float = 2.0,
        link_bytes_per_s: Callable[[], float | None] = lambda: None,
        allowed_bytes_per_s: Callable[[], float | None] = lambda: None,
        cpus: float = 1.0,
    ) -> None:
        self.peer = peer
        self.counters = Counters()
        self._bus = bus
        self._topics = topics
        self._store = store
        self._timeout_s = timeout_s
        given = source if source is not None else store
        self.shelf = None if given is None else PieceShelf(given)
        self._link_bytes_per_s = link_bytes_per_s
        self._allowed_bytes_per_s = allowed_bytes_per_s
        self._pacer = Pacer()
        self._arrived = float("-inf")
        self._cpus = min(cpus, 1.0)
        self._unpack_s_per_byte = UNPACK_S_PER_BYTE / self._cpus
        self._slots = asyncio.Semaphore(parallel)
        self._running: dict[str, _Running] = {}
        self._wants: deque[Want] = deque()
        self._queued: set[Want] = set()
        self._waiting: Counter[str] = Counter()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Subscribe, and begin to serve."""
        await self._bus.subscribe(self._topics.topic("artifact_piece", peer=self.peer))
        if self.shelf is not None:
            await self._bus.subscribe(self._topics.topic("artifact_want", peer=self.peer))
            self._tasks = [
                asyncio.create_task(self._serve(), name=f"artifact server {index}")
                for index in range(_SERVERS)
            ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what is under way; what was fetched so far stays for the next time."""
        tasks = [*self._tasks, *(running.task for running in self._running.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def handle(self, name: str, levels: Mapping[str, str], message: Message) -> bool:
        """Take a message of the topic table's row `name`; False when it is none of ours."""
        if levels.get("peer") != self.peer:
            return False
        try:
            match name:
                case "artifact_want":
                    self._take_want(decode_msgpack(message.payload, Want))
                case "artifact_piece":
                    self._take_piece(decode_msgpack(message.payload, Piece))
                case _:
                    return False
        except ProtocolError as error:
            self.counters.bad_messages += 1
            if self.counters.bad_messages.bit_count() == 1:  # a flood must not flood the log
                log.warning("dropped a message", topic=message.topic, error=error)
        return True

    async def fetch(self, blob: Blob, provider: str, progress: Progress | None = None) -> Path:
        """As `bring`, where nobody asks how much came."""
        return (await self.bring(blob, provider, progress)).path

    async def bring(self, blob: Blob, provider: str, progress: Progress | None = None) -> Fetched:
        """The file with `blob`, from the cache or from `provider`.

        Several calls for one blob share one transfer. Cancelling the last of them ends it; what came so
        far is kept, and a later call goes on from there.

        Raises:
            ArtifactError: the provider has no such blob, sends something else, or does not answer; or
                the blob cannot be stored.
        """
        if self._store is None:
            raise ArtifactError("this process fetches nothing", expected="a store", got="none")
        here = await asyncio.to_thread(self._store.path, blob.digest)
        if here is not None:
            return Fetched(here, 0)
        while (running := self._running.get(blob.digest)) is not None and running.leaving:
            # Its last waiter left just now: wait for its part, then go on from there.
            await asyncio.wait([running.task])
            self._ended(blob.digest, running.task)
        if running is None:
            pieces: asyncio.Queue[Piece] = asyncio.Queue()
            callbacks: list[Progress] = []
            task = asyncio.create_task(
                self._fetch(blob, provider, self._store, pieces, callbacks),
                name=f"fetch {blob.digest[:12]}",
            )
            running = self._running[blob.digest] = _Running(task, callbacks, pieces)
            task.add_done_callback(lambda _: self._ended(blob.digest, task))
        if progress is not None:
            running.progress.append(progress)
        running.waiters += 1
        try:
            path = await asyncio.shield(running.task)
            received, running.received_bytes = running.received_bytes, 0
            return Fetched(path, received)
        finally:
            running.waiters -= 1
            if running.waiters == 0 and not running.task.done():
                running.leaving = True
                running.task.cancel()
                # Its part must be let go before somebody opens it again.
                with contextlib.suppress(asyncio.CancelledError, ArtifactError):
                    await running.task

    def _ended(self, digest: str, task: asyncio.Task[Path]) -> None:
        if (running := self._running.get(digest)) is not None and running.task is task:
            del self._running[digest]

    # -- serving

    def _take_want(self, want: Want) -> None:
        if want in self._queued:
            return  # asked again before its turn came
        if len(self._wants) >= _MOST_WANTS or self._waiting[want.reply] >= _MOST_WANTS_OF_ONE:
            self.counters.wants_dropped += 1  # asked again when the time is up
            return
        self._queued.add(want)
        self._waiting[want.reply] += 1
        self._wants.append(want)
        self._wanted.set()

    async def _serve(self) -> None:
        while True:
            while not self._wants:
                self._wanted.clear()
                await self._wanted.wait()
            want = self._wants.popleft()
            self._queued.discard(want)
            self._waiting[want.reply] -= 1
            if not self._waiting[want.reply]:
                del self._waiting[want.reply]
            piece = await self._piece(want)
            payload = bytes(encode_msgpack(piece, len(piece.data) + 256))
            try:
                await self._bus.publish(
                    self._topics.topic("artifact_piece", peer=want.reply), payload
                )
            except BrokerError as error:
                log.info("piece not sent", digest=want.digest[:12], peer=want.reply, error=error)
                continue
            self.counters.pieces_sent += 1
            self.counters.pieces_packed += piece.width > 0
            self.counters.bytes_sent += len(payload)

    async def _piece(self, want: Want) -> Piece:
        assert self.shelf is not None
        try:
            return await self.shelf.piece(want)
        except (ArtifactError, OSError) as error:
            self.counters.wants_refused += 1
            if self.counters.wants_refused.bit_count() == 1:  # a flood must not flood the log
                log.warning(
                    "a blob that is not here was asked for", digest=want.digest, peer=want.reply
                )
            return _refusal(want, str(error))

    # -- fetching

    def _take_piece(self, piece: Piece) -> None:
        running = self._running.get(piece.digest)
        # A fetch asks for a few pieces at a time: a longer queue is somebody else's doing.
        if running is None or running.pieces.qsize() > 64:
            self.counters.stray_pieces += 1
            return
        self.counters.bytes_received += len(piece.data)
        running.received_bytes += len(piece.data)
        self._arrived = time.monotonic()
        running.pieces.put_nowait(piece)

    async def _fetch(
        self,
        blob: Blob,
        provider: str,
        store: ArtifactStore,
        pieces: asyncio.Queue[Piece],
        progress: list[Progress],
    ) -> Path:
        async with self._slots:
            opening = asyncio.ensure_future(
                asyncio.to_thread(store.open_part, blob.digest, blob.size)
            )
            try:
                part = await asyncio.shield(opening)
            except asyncio.CancelledError:
                # A thread cannot be cancelled: what it opens, and locks, has to be let go, and before
                # the loop may end, which would forget the callback.
                opening.add_done_callback(_let_go)
                await asyncio.wait([opening])
                raise
            allowed = self._allowed_bytes_per_s()
            job = _Job(
                part=part,
                machine=Fetch(
                    blob.digest,
                    blob.size,
                    written=part.offset
                    if part.offset == blob.size
                    else part.offset - part.offset % LEAST_PIECE_BYTES,
                    window=self._window(allowed),
                    piece_bytes=self._pacer.piece_bytes(allowed),
                    timeout_s=self._timeout_s,
                ),
                provider=provider,
            )
            try:
                if job.machine.written < part.offset:
                    await asyncio.to_thread(part.truncate, job.machine.written)
                return await self._drive(job, pieces, progress)
            finally:
                self.counters.bad_pieces += job.machine.bad_pieces
                # Also after a commit, which may have failed, or been called off before a thread took it up.
                part.keep()

    async def _drive(
        self, job: _Job, pieces: asyncio.Queue[Piece], progress: list[Progress]
    ) -> Path:
        event: Event | None = Begin(time.monotonic())
        while True:
            event = await self._perform(job, job.machine.step(event)) if event else None
            for callback in progress:
                callback(job.machine.written, job.machine.size)
            if job.path is not None:
                return job.path
            if event is None:
                event = await self._next_event(job.machine, pieces)

    async def _perform(self, job: _Job, actions: list[Action]) -> Event | None:
        """Do what the machine wants; returns the event that it answers with at once, if any."""
        answer: Event | None = None
        asks: list[Ask] = []
        for action in actions:
            match action:
                case Ask():
                    asks.append(action)
                case Write(data):
                    await asyncio.to_thread(job.part.write, data)
                case Reject(offset, reason, expected, got):
                    log.warning(
                        "a piece of a blob was not right, and is asked for again",
                        reason=reason,
                        digest=job.part.digest,
                        peer=job.provider,
                        offset=offset,
                        expected=expected,
                        got=got,
                    )
                case Check():
                    answer = Checked(time.monotonic(), good=job.part.complete)
                case StartOver():
                    log.warning("a blob came out wrong: starting over", digest=job.part.digest[:12])
                    await asyncio.to_thread(job.part.restart)
                case Finish():
                    job.path = await asyncio.to_thread(job.part.commit)
                case GiveUp(reason, expected, got):
                    raise ArtifactError(
                        f"blob {job.part.digest} cannot be had from {job.provider}: {reason}",
                        expected=expected,
                        got=got,
                    )
                case _:
                    assert_never(action)
        await asyncio.gather(*(self._ask(job, ask) for ask in asks))
        return answer

    async def _ask(self, job: _Job, ask: Ask) -> None:
        ratio = break_even_ratio(self._link_bytes_per_s(), self._unpack_s_per_byte)
        want = Want(
            digest=job.part.digest,
            offset=ask.offset,
            length=ask.length,
            reply=self.peer,
            most_ratio=round(ratio, 2) if can_pack() else 0.0,
        )
        try:
            await self._bus.publish(
                self._topics.topic("artifact_want", peer=job.provider), bytes(encode_msgpack(want))
            )
        except BrokerError as error:
            # Not lost: the machine asks again when its time is up.
            log.info("want not sent", digest=want.digest[:12], error=error)

    async def _next_event(self, machine: Fetch, pieces: asyncio.Queue[Piece]) -> Event:
        while True:
            deadline = machine.next_deadline()
            # Without a connection nobody can answer: time does not count against the provider then.
            wait_s = 0.5
            if deadline is not None and self._bus.connected:
                # While pieces come the provider lives, and what is late stands in line behind them.
                in_line = min(self._arrived + self._timeout_s, deadline + _LONGEST_LINE_S)
                wait_s = max(deadline, in_line) - time.monotonic()
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, wait_s)):
                    piece = await pieces.get()
            except TimeoutError:
                is_silent = time.monotonic() - self._arrived >= self._timeout_s
                if (
                    self._bus.connected
                    and deadline is not None
                    and (is_silent or time.monotonic() >= deadline + _LONGEST_LINE_S)
                ):
                    return Tick(time.monotonic())
                continue
            await self._keep_pace(machine, len(piece.data))
            return PieceArrived(time.monotonic(), self._unpacked(piece))

    async def _keep_pace(self, machine: Fetch, moved_bytes: int) -> None:
        """Let what came before have its time, before the machine asks for more."""
        allowed = self._allowed_bytes_per_s()
        machine.window = self._window(allowed)
        machine.piece_bytes = self._pacer.piece_bytes(allowed)
        pause_s = self._pacer.pause_s(time.monotonic(), moved_bytes, allowed)
        if pause_s > 0.0:
            await asyncio.sleep(pause_s)

    def _window(self, allowed: float | None) -> int:
        link = self._link_bytes_per_s()
        is_thin = link is not None and link < _THIN_BYTES_PER_S
        return 1 if is_thin or allowed is not None else _FULL_WINDOW

    def _unpacked(self, piece: Piece) -> Piece:
        """The piece with its bytes as they are in the blob; what cannot be unpacked has none."""
        if not piece.width:
            return piece
        # Of CPU: what others take of it meanwhile would make the estimate worse for good.
        began = time.thread_time()
        try:
            data = unpack(piece.data, piece.width, LARGEST_PIECE_BYTES)
        except ProtocolError as error:
            log.warning("a piece is of no use", digest=piece.digest, error=error)
            return replace(piece, data=memoryview(b""), width=0)
        if len(data) >= _TELLING_BYTES:
            took_s = (time.thread_time() - began) / self._cpus / len(data)
            self._unpack_s_per_byte += _REMEMBERED * (took_s - self._unpack_s_per_byte)
        return replace(piece, data=data, width=0)


@dataclass(slots=True)
class _Job:
    part: Part
    machine: Fetch
    provider: str
    path: Path | None = field(default=None)


def _let_go(opening: asyncio.Future[Part]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().keep()


def _refusal(want: Want, reason: str) -> Piece:
    nothing = memoryview(b"")
    return Piece(
        digest=want.digest, offset=want.offset, size=0, data=nothing, sha256=nothing, error=reason
    )
