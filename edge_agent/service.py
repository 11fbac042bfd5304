"""The agent's shell: connects, tells what it is and how it does, and does what its core decides.

One event loop with the control connection; one thread that runs stages on the data connection; one that
loads them. The parts: `presence` (birth, death, incarnation), `stage_keeper` (holds the stages that are
wanted), `telemetry` (how the node does), `link_probe` (its bandwidth).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from edge_agent.blob_pace import BlobPace
from edge_agent.blobs import Blobs
from edge_agent.calibration import (
    CalibrationCache,
    calibrate_in_child,
    default_calibration_dir,
)
from edge_agent.core import desired
from edge_agent.drops import Drops
from edge_agent.incarnation import next_incarnation
from edge_agent.link_probe import LinkProbe
from edge_agent.loader import Loader
from edge_agent.name_check import name_is_free
from edge_agent.options import AgentOptions
from edge_agent.presence import Presence
from edge_agent.probe import Probe
from edge_agent.runtimes import available_runtimes, threads_for
from edge_agent.stage_keeper import StageKeeper
from edge_agent.stage_thread import MAX_BYTES, MAX_ITEMS
from edge_agent.telemetry import Reporter
from edge_agent.terms import TermFile
from shared.artifact_store import ArtifactStore
from shared.bus import ControlBus, DataBus, Message, MqttControlBus, MqttDataBus, Publication
from shared.codec import decode_json
from shared.errors import (
    Amp4ecError,
    BrokerError,
    ForgedError,
    ProtocolError,
    StageError,
)
from shared.logs import bind, get_log
from shared.messages.node import NodeState
from shared.messages.operation import OrchestratorState
from shared.messages.stage import Assignment, VouchedTopic
from shared.signing import Admission
from shared.topics import Topics, largest_packet
from shared.transfer import Transfers

__all__ = ["Agent", "AgentOptions", "run_agent"]

log = get_log(__name__)

_LAST_WORDS_S = 3.0
_ROWS = ("assignment", "node_state", "ping", "orchestrator_state")
_SESSION_EXPIRY_S = 60
"""How long the broker keeps activations for a data connection that was cut."""


async def run_agent(options: AgentOptions) -> int:
    """Run an agent until SIGTERM or SIGINT; 0 after a clean end.

    Raises:
        ConfigurationError: the cache directory cannot be used, or another agent runs under this name.
        BrokerError: the broker does not let this agent look who has its name.
        StageError: the stage thread failed.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        log.info("asked to stop")
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)  # asked twice: end at once

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    seen = await name_is_free(options, stop)
    if seen is None:
        return 0
    while True:
        incarnation = next_incarnation(options.directory, int(time.time() * 1000), above=seen)
        bind(node=options.node, incarnation=incarnation)
        agent = Agent(
            options,
            incarnation=incarnation,
            control=partial(_control_bus, options),
            data=partial(
                MqttDataBus,
                options.broker,
                f"amp4ec-data-{options.node}",
                clean_start=True,
                session_expiry_s=_SESSION_EXPIRY_S,
                manual_ack=True,
                receive_maximum=MAX_ITEMS,
                inbox_limit=MAX_ITEMS,
                inbox_bytes=MAX_BYTES,
            ),
        )
        newer = await agent.run(stop)
        if newer is None:
            return 0
        seen = newer


def _control_bus(options: AgentOptions, will: Publication) -> ControlBus:
    return MqttControlBus(
        options.broker,
        client_id=f"amp4ec-agent-{options.node}",
        will=will,
        maximum_packet_bytes=largest_packet((*_ROWS, "artifact_piece", "artifact_probe")),
    )


class Agent:
    """One life of an agent.

    Args:
        options: what it was told.
        incarnation: the number of this life.
        control: makes the control connection with a last will; entered in `run`.
        data: makes the data connection; called in the stage thread.
        probe: measures the device.
    """

    def __init__(
        self,
        options: AgentOptions,
        *,
        incarnation: int,
        control: Callable[[Publication], ControlBus],
        data: Callable[[], DataBus],
        probe: Probe | None = None,
    ) -> None:
        self.drops = Drops()
        self._options = options
        self._topics = Topics(options.root)
        self._admission = Admission(options.broker.credentials)
        probe = probe if probe is not None else Probe(declared_cpus=options.cpus)
        self._share = probe.share()
        self._hardware = probe.hardware()
        installed = available_runtimes()
        self._runtimes = {
            name: installed[name]
            for name in (options.runtimes if options.runtimes is not None else installed)
            if name in installed
        }
        self._calibration_cache = CalibrationCache(default_calibration_dir())
        cached = {
            name: self._calibration_cache.get(name, number, self._hardware)
            for name, number in self._runtimes.items()
        }
        terms = TermFile(options.directory)
        core = desired.Desired(options.node, incarnation, term=terms.read())
        self._presence = Presence(
            options,
            incarnation,
            hardware=self._hardware,
            runtimes=self._runtimes,
            calibrations={name: known for name, known in cached.items() if known is not None},
            term=lambda: core.term,
            control=control,
        )
        self._control = self._presence.control
        self._store = ArtifactStore(options.directory / "blobs", options.cache_bytes)
        self._pace = BlobPace(
            lambda: self._keeper.stage_thread.traffic, lambda: self._link, self._share.cpus
        )
        self._transfers = Transfers(
            self._control,
            self._topics,
            options.node,
            store=self._store,
            link_bytes_per_s=self._pace.link_bytes_per_s,
            allowed_bytes_per_s=self._pace.allowed_bytes_per_s,
            cpus=self._share.cpus,
        )
        self._keeper = StageKeeper(
            options.node,
            core,
            terms=terms,
            control=self._control,
            topics=self._topics,
            blobs=Blobs(self._store, self._transfers),
            loader=Loader(
                options.node,
                self._topics,
                tuple(self._runtimes),
                # Read at each load: a container's quota may have been changed since.
                lambda: threads_for(probe.share().cpus),
            ),
            data=data,
            spawn=self._spawn,
            ended=lambda error: self._end(StageError(f"the stage thread ended: {error!r}")),
        )
        self._link = LinkProbe(
            options.node,
            control=self._control,
            topics=self._topics,
            moved_bytes=self._moved_bytes,
            shown=lambda: self._keeper.stage_thread.traffic.rates,
        )
        self._reporter = Reporter(
            options.node,
            incarnation,
            options.telemetry_interval_s,
            control=self._control,
            topics=self._topics,
            probe=probe,
            stage_thread=self._keeper.stage_thread,
            transfers=self._transfers,
            link=self._link,
            disk_free_bytes=self._store.disk_free_bytes,
        )
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected_once = asyncio.Event()
        self._leaving = False
        self._ended: asyncio.Future[int | Exception | None] | None = None

    async def run(self, stop: asyncio.Event) -> int | None:
        """Live until `stop`, or until this life cannot go on.

        Returns:
            None after a clean end; else the larger incarnation that an earlier life of this node left
            behind (its clock was ahead), for the next to exceed.

        Raises:
            ConfigurationError: another agent has taken this node's name.
            StageError: the stage thread failed.
        """
        self._ended = asyncio.get_running_loop().create_future()
        node = self._options.node
        self._control.on_connect(self._greet)
        for name in _ROWS:
            await self._control.subscribe(self._topics.pattern(name, node=node))
        if self._options.preload:
            # Before the birth: a plan that counts on this node need not wait for the import.
            await self._keeper.preload(tuple(self._runtimes))
        self._keeper.start()
        try:
            async with self._control, self._transfers, asyncio.TaskGroup() as group:
                self._group = group
                for work, name in (
                    (self._receive(), "messages"),
                    (self._keeper.publish_reports(), "reports"),
                    (self._reporter.run(), "telemetry"),
                    (self._link.run(), "link"),
                    (self._pace.run(), "pace"),
                    (self._calibrate(), "calibration"),
                    (self._wait_for(stop), "stop"),
                ):
                    self._spawn(work, name)
                log.info(
                    "agent started",
                    node=node,
                    incarnation=self._presence.incarnation,
                    pid=os.getpid(),
                    broker=self._options.broker,
                    cpus=self._share.cpus,
                    runtimes=[f"{n} {v}" for n, v in self._runtimes.items()],
                )
                if not self._runtimes:
                    mend = "pip install 'amp4ec[agent,onnx]'"
                    log.warning("no runtime is installed: this node can run nothing", mend=mend)
                try:
                    outcome = await self._ended
                    if outcome is None:
                        await self._leave()
                finally:
                    self._leaving = True
                    self._keeper.leave(0.0)
                    for task in self._tasks:
                        task.cancel()
        finally:
            # Also where the connection itself failed, before anything ran.
            self._leaving = True
            self._keeper.leave(0.0)
            # The data connection's name is free for the next life only when this one's is closed.
            await self._keeper.close(_LAST_WORDS_S)
            self._store.close()
        # Raised here and not in the group, which would wrap it.
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None
        task = self._group.create_task(work, name=f"agent {self._options.node}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait_for(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end(None)

    def _end(self, outcome: int | Exception | None) -> None:
        assert self._ended is not None
        if not self._ended.done():
            self._ended.set_result(outcome)

    async def _leave(self) -> None:
        """Finish what runs, within bounds, then say that we leave."""
        self._leaving = True
        self._keeper.leave(self._options.drain_s)
        if not await self._keeper.close(self._options.drain_s + 5.0):
            log.warning("the stage thread did not end in time")
        try:
            await self._presence.say("offline", "left", timeout_s=_LAST_WORDS_S)
        except BrokerError as error:
            log.warning("left without a word", error=error)
        log.info("agent left", node=self._options.node)

    async def _greet(self) -> None:
        """After every connection: a birth undoes the will that the broker may have published meanwhile."""
        if self._leaving:
            return
        await self._presence.say("online")
        again = self._connected_once.is_set()
        log.info("birth told again after a reconnection" if again else "birth told")
        self._connected_once.set()
        self._keeper.step(desired.BusConnected())

    def _moved_bytes(self) -> int:
        traffic, moved = self._keeper.stage_thread.traffic, self._transfers.counters
        return traffic.bytes_received + traffic.bytes_sent + moved.bytes_received + moved.bytes_sent

    # -- messages

    async def _receive(self) -> None:
        async for message in self._control.messages():
            try:
                self._message(message)
            except ProtocolError as error:
                self.drops.drop("malformed", str(error), topic=message.topic)

    def _message(self, message: Message) -> None:
        name, levels = self._topics.accept(message.topic, len(message.payload))
        match name:
            case "artifact_want" | "artifact_piece":
                self._transfers.handle(name, levels, message)
            case "artifact_probe":
                self._link.take(message)
            case "assignment":
                # Empty: somebody cleared the retained one.
                if message.payload and self._is_obeyed("assignment", message):
                    assignment = decode_json(message.payload, Assignment)
                    self._keeper.step(desired.AssignmentReceived(assignment))
            case "ping":
                self._keeper.step(desired.Asked())
            case "orchestrator_state":
                if message.payload and self._is_obeyed("orchestrator_state", message):
                    state = decode_json(message.payload, OrchestratorState)
                    if state.state == "online":
                        born = desired.OrchestratorBorn(
                            state.incarnation, message.retain, state.term
                        )
                        self._keeper.step(born)
            case "node_state":
                payload = message.payload
                self._own_state(message, decode_json(payload, NodeState) if payload else None)
            case _:
                self.drops.drop("unexpected", "no message for an agent", topic=message.topic)

    def _is_obeyed(self, topic: VouchedTopic, message: Message) -> bool:
        """Whether somebody vouches for an order who may; where not, it is counted and reported."""
        try:
            self._admission.check(topic, message)
        except ForgedError as error:
            self.drops.drop("forged", str(error), topic=message.topic)
            self._keeper.step(desired.MessageForged(topic, error.reason))
            return False
        return True

    def _own_state(self, message: Message, state: NodeState | None) -> None:
        """What somebody says about this node: a will, come late; an earlier life; or another agent."""
        if self._leaving or (state is not None and state.node != self._options.node):
            return
        if self._presence.buried_alive(message, state):
            self._spawn(self._presence.say_again(), "birth")
        if state is None:
            return
        outcome = self._presence.outlived(message, state)
        if outcome is not None:
            self._end(outcome)

    async def _calibrate(self) -> None:
        """Measure what was not measured before, beside everything else, and tell it with another birth."""
        if not self._options.calibrate:
            return
        await self._connected_once.wait()
        for name, number in self._runtimes.items():
            if self._presence.is_calibrated(name):
                continue
            try:
                async with self._calibration_cache.turn():
                    measured = self._calibration_cache.get(name, number, self._hardware)
                    if measured is None:
                        measured = await calibrate_in_child(name)
                        self._calibration_cache.put(name, number, self._hardware, measured)
                        log.info("runtime calibrated", runtime=name, cpu_s=measured.measured_in_s)
            except (Amp4ecError, OSError, TimeoutError) as error:
                log.warning("runtime not calibrated", runtime=name, error=error)
                continue
            await self._presence.calibrated(name, measured)
