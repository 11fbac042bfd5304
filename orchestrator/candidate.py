"""`amp4ec orchestrator`: a process that leads, or stands by for one that does.

It begins to lead with all that it has at hand, as a restarted orchestrator does: what is retained on the
broker, and the jobs that wait there. When its time of leading ends, because it was frozen or cut off and
another leads, that life is thrown away, and the process stands by.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import assert_never

from orchestrator import leader_watch
from orchestrator.core.leadership import Title
from orchestrator.identity import process_name
from orchestrator.leader_watch import (
    BeatKept,
    Died,
    Followed,
    LeaderWatch,
    Led,
    Notice,
    Overwritten,
    Resigned,
    StoodBy,
)
from orchestrator.lease import Tenure
from orchestrator.options import OrchestratorOptions
from orchestrator.replica import Replica
from orchestrator.service import Orchestrator, open_library
from shared.bus import ControlBus, DataBus, MqttControlBus, MqttDataBus
from shared.logs import get_log
from shared.messages.model import ModelState
from shared.signing import Admission
from shared.topics import Topics, largest_packet

log = get_log(__name__)


async def run_orchestrator(options: OrchestratorOptions) -> int:
    """Run until SIGTERM or SIGINT; 0 after a clean end, 1 when it could not go on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    candidate = Candidate(options)
    async with _http(options, candidate):
        return await candidate.run(stop)


def _http(options: OrchestratorOptions, candidate: Candidate) -> AbstractAsyncContextManager[None]:
    if options.http is None:
        return contextlib.nullcontext()
    from orchestrator.web.groups import http_server  # aiohttp is for those who ask for a page

    return http_server(options, candidate.name, lambda: candidate.life)


class Candidate:
    """One process that leads or stands by; see the module.

    Args:
        options: how to run.
        name: of this process alone; made up when None.
        watch: makes the connection to watch who leads by; called with a client id.
        replica: makes the connection to fetch packages by.
        lead: makes a life as leader.
    """

    def __init__(
        self,
        options: OrchestratorOptions,
        *,
        name: str | None = None,
        watch: Callable[[str], DataBus] | None = None,
        replica: Callable[[str], ControlBus] | None = None,
        lead: Callable[..., Orchestrator] = Orchestrator,
    ) -> None:
        self.name = name or process_name()
        self._options = options
        self._topics = Topics(options.root)
        self._make_replica = replica or self._mqtt_replica
        self._make_life = lead
        self._library = open_library(options)
        self._watch = LeaderWatch(
            (watch or self._mqtt_watch)(self._client_id("watch")), options, self.name, self._note
        )
        self._notes: asyncio.Queue[Notice | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replica: tuple[Replica, asyncio.Task[None]] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.life: Orchestrator | None = None
        """What leads, while we do."""
        self._living: asyncio.Task[int] | None = None
        self._status = 0

    def _client_id(self, use: str) -> str:
        return f"amp4ec-{use}-{self._options.root.replace('/', '-')}-{self.name}"

    def _mqtt_watch(self, client_id: str) -> DataBus:
        return MqttDataBus(
            self._options.broker, client_id, maximum_packet_bytes=largest_packet(leader_watch.ROWS)
        )

    def _mqtt_replica(self, client_id: str) -> ControlBus:
        return MqttControlBus(
            self._options.broker,
            client_id=client_id,
            maximum_packet_bytes=largest_packet(("model_state", "artifact_piece")),
        )

    async def run(self, stop: asyncio.Event) -> int:
        """Run until `stop` is set; 0 after a clean end, 1 when it could not go on."""
        self._loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(self._await_stop(stop), name="stop")
        self._watch.start()
        try:
            while (note := await self._notes.get()) is not None:
                await self._noted(note)
        finally:
            stopping.cancel()
            try:
                await self._end_life(resigned=False)
            finally:
                await self._stand_down()
                await asyncio.to_thread(self._watch.stop)
                self._library.store.close()
        return self._status

    async def _await_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._notes.put_nowait(None)

    def _note(self, notice: Notice) -> None:
        """Called in the watch's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._notes.put_nowait, notice)

    async def _noted(self, notice: Notice) -> None:
        match notice:
            case Led(tenure):
                self._begin_life(tenure)
            case Resigned(why):
                log.warning("not leading any more", leader=self.name, reason=why)
                await self._end_life(resigned=True)
            case Followed(title):
                self._follow(title)
            case StoodBy(names):
                if self.life is not None:
                    self.life.stood_by(names)
            case BeatKept(count):
                if self.life is not None:
                    self.life.beat_kept(count)
            case Overwritten():
                if self.life is not None:
                    self.life.say_again()
            case Died(error):
                log.error("stopping: the leader's watch died", error=repr(error))
                self._status = 1
                self._notes.put_nowait(None)
            case _:
                assert_never(notice)

    # --- to stand by

    def _follow(self, title: Title) -> None:
        log.info("standing by", name=self.name, leader=title.name or "another", term=title.term)
        if self._replica is not None:
            self._replica[0].tell()
        else:
            bus = self._make_replica(self._client_id("standby"))
            replica = Replica(
                bus,
                self._topics,
                self.name,
                admission=Admission(self._options.broker.credentials),
                library=self._library,
                ready=self._watch.ready,
            )
            task = asyncio.create_task(replica.run(), name="replica")
            self._replica = replica, task

    def _let_go(self) -> Mapping[str, ModelState]:
        """Stand by no longer, without waiting for it; what was served."""
        if self._replica is None:
            return {}
        (replica, task), self._replica = self._replica, None
        task.cancel()
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return replica.states

    async def _stand_down(self) -> None:
        self._let_go()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    # --- to lead

    def _begin_life(self, tenure: Tenure) -> None:
        assert self.life is None, "a life begins when the one before has ended"
        known = self._let_go()
        self._watch.ready(True)
        log.info("leading", leader=self.name, term=tenure.title.term, pid=os.getpid())
        self.life = self._make_life(
            self._options,
            tenure=tenure,
            library=self._library,
            known=known,
            obeys=self._watch.node_obeys,
            counted=self._watch.count_known,
        )
        self._living = asyncio.create_task(self.life.run(), name=f"term {tenure.title.term}")
        self._living.add_done_callback(self._life_ended)

    def _life_ended(self, living: asyncio.Task[int]) -> None:
        """By itself, since it could not go on: then this process cannot, either."""
        if living is self._living:
            self._notes.put_nowait(None)

    async def _end_life(self, *, resigned: bool) -> None:
        if self.life is None or self._living is None:
            return
        life, living = self.life, self._living
        self.life = self._living = None
        if resigned:
            life.resign()
        else:
            life.stop()
        self._status = max(self._status, await living)
