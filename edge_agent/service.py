"""The agent's shell: connects, tells what it is and how it does, and does what its core decides.

One event loop with the control connection; one thread that runs stages on the data connection
(`edge_agent/stage_thread.py`); one that loads them (`edge_agent/loader.py`). What to hold and what to let go
is decided in `edge_agent/core/desired.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, assert_never

from edge_agent.blobs import Blobs
from edge_agent.calibration import (
    CalibrationCache,
    calibrate_in_child,
    default_calibration_dir,
)
from edge_agent.core import desired
from edge_agent.drops import Drops
from edge_agent.incarnation import next_incarnation
from edge_agent.loader import Loader, LoaderThread
from edge_agent.options import AgentOptions
from edge_agent.probe import Probe
from edge_agent.runtimes import available_runtimes, threads_for
from edge_agent.stage_thread import Attached, Detached, Notice, StageThread, ThreadEnded
from shared.artifact_store import ArtifactStore
from shared.bus import ControlBus, DataBus, Message, MqttControlBus, MqttDataBus, Publication
from shared.codec import decode_json, encode_json
from shared.errors import (
    Amp4ecError,
    ArtifactError,
    BrokerError,
    ConfigurationError,
    ProtocolError,
    StageError,
)
from shared.messages.node import Calibration, NodeState, Telemetry
from shared.messages.operation import OrchestratorState
from shared.messages.stage import Assignment, Report, StageAssignment
from shared.topics import Topics
from shared.transfer import Transfers

__all__ = ["Agent", "AgentOptions", "run_agent"]

log = logging.getLogger(__name__)

_LAST_WORDS_S = 3.0
_SESSION_EXPIRY_S = 60
"""How long the broker keeps activations for a data connection that was cut."""


async def run_agent(options: AgentOptions) -> int:
    """Run an agent until SIGTERM or SIGINT; 0 after a clean end.

    Raises:
        ConfigurationError: the cache directory cannot be used, or another agent runs under this name.
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
    seen = 0
    while True:
        incarnation = next_incarnation(options.directory, int(time.time() * 1000), above=seen)
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
            ),
        )
        newer = await agent.run(stop)
        if newer is None:
            return 0
        seen = newer


def _control_bus(options: AgentOptions, will: Publication) -> ControlBus:
    return MqttControlBus(options.broker, client_id=f"amp4ec-agent-{options.node}", will=will)


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
        self.incarnation = incarnation
        self.drops = Drops()
        self._options = options
        self._topics = Topics(options.root)
        self._probe = probe if probe is not None else Probe(declared_cpus=options.cpus)
        self._share = self._probe.share()
        self._hardware = self._probe.hardware()
        installed = available_runtimes()
        self._runtimes = {
            name: installed[name]
            for name in (options.runtimes if options.runtimes is not None else installed)
            if name in installed
        }
        self._calibration_cache = CalibrationCache(default_calibration_dir())
        self._calibrations: dict[str, Calibration] = {}
        for name, number in self._runtimes.items():
            cached = self._calibration_cache.get(name, number, self._hardware)
            if cached is not None:
                self._calibrations[name] = cached
        self._desired = desired.Desired(options.node, incarnation)
        self._control = control(
            Publication(
                topic=self._topics.topic("node_state", node=options.node),
                payload=encode_json(self._state("lost", reason="the broker lost the connection")),
                retain=True,
            )
        )
        self._store = ArtifactStore(options.directory / "blobs", options.cache_bytes)
        self._transfers = Transfers(self._control, self._topics, options.node, store=self._store)
        self._blobs = Blobs(self._store, self._transfers)
        self._brought: dict[int, dict[str, Path]] = {}
        self._loader = Loader(
            options.node, self._topics, tuple(self._runtimes), threads_for(self._share.cpus)
        )
        self._loader_thread = LoaderThread(f"loader {options.node}")
        self._stage_thread = StageThread(
            data,
            self._notify,
            name=f"stages {options.node}",
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetching: dict[int, asyncio.Task[None]] = {}
        self._prefetching: asyncio.Task[None] | None = None
        self._load_began: dict[int, float] = {}
        self._began = time.monotonic()
        self._report: Report | None = None
        self._report_due = asyncio.Event()
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
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        node = self._options.node
        self._control.on_connect(self._greet)
        for name in ("assignment", "node_state"):
            await self._control.subscribe(self._topics.topic(name, node=node))
        await self._control.subscribe(self._topics.topic("orchestrator_state"))
        if self._options.preload:
            # Before the birth: a plan that counts on this node need not wait for the import.
            await self._preload()
        self._stage_thread.start()
        try:
            async with self._control, self._transfers, asyncio.TaskGroup() as group:
                self._group = group
                for work, name in (
                    (self._receive(), "messages"),
                    (self._publish_reports(), "reports"),
                    (self._publish_telemetry(), "telemetry"),
                    (self._calibrate(), "calibration"),
                    (self._wait_for(stop), "stop"),
                ):
                    self._spawn(work, name)
                log.info(
                    "agent %s (incarnation %s) on %s: %.2f CPUs, runtimes %s",
                    node, self.incarnation, self._options.broker, self._share.cpus,
                    ", ".join(f"{n} {v}" for n, v in self._runtimes.items()) or "none",
                )  # fmt: skip
                try:
                    outcome = await self._ended
                    if outcome is None:
                        await self._leave()
                finally:
                    self._leaving = True
                    for task in self._tasks:
                        task.cancel()
        finally:
            self._leaving = True
            self._stage_thread.stop(0.0)
            self._loader_thread.stop()
            # The data connection's name is free for the next life only when this one's is closed.
            await asyncio.to_thread(self._stage_thread.join, _LAST_WORDS_S)
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
        self._stage_thread.stop(self._options.drain_s)
        if not await asyncio.to_thread(self._stage_thread.join, self._options.drain_s + 5.0):
            log.warning("the stage thread did not end in time")
        try:
            await self._publish_state("offline", "left", timeout_s=_LAST_WORDS_S)
        except BrokerError as error:
            log.warning("left without a word: %s", error)
        log.info("agent %s left", self._options.node)

    # -- birth and death

    def _state(self, state: Literal["online", "offline", "lost"], reason: str = "") -> NodeState:
        options = self._options
        return NodeState(
            state=state,
            node=options.node,
            incarnation=self.incarnation,
            pid=os.getpid(),
            host=platform.node(),
            version=options.version or _version(),
            hardware=self._hardware,
            runtimes=self._runtimes,
            calibration=self._calibrations,
            zone=options.zone,
            price_per_hour=options.price_per_hour,
            power_w=options.power_w,
            telemetry_interval_s=options.telemetry_interval_s,
            reason=reason,
        )

    async def _publish_state(
        self,
        state: Literal["online", "offline", "lost"],
        reason: str = "",
        timeout_s: float | None = None,
    ) -> None:
        await self._control.publish(
            self._topics.topic("node_state", node=self._options.node),
            encode_json(self._state(state, reason)),
            retain=True,
            timeout_s=timeout_s,
        )

    async def _greet(self) -> None:
        """After every connection: a birth undoes the will that the broker may have published meanwhile."""
        if self._leaving:
            return
        await self._publish_state("online")
        log.info("born" if not self._connected_once.is_set() else "born again after a reconnection")
        self._connected_once.set()
        self._do(desired.BusConnected())

    async def _bear_again(self) -> None:
        """Publish the birth once more, with what has changed; the next connection begins with one anyway."""
        try:
            await self._publish_state("online")
        except BrokerError as error:
            log.info("birth not sent: %s", error)

    def _own_state(self, message: Message, state: NodeState) -> None:
        """What somebody says about this node: our will, come late; an earlier life; or another agent."""
        if self._leaving or state.node != self._options.node:
            return
        if state.incarnation == self.incarnation:
            if state.state == "lost" and not message.retain:
                self._spawn(self._bear_again(), "birth")
        elif state.incarnation > self.incarnation:
            if message.retain and self._control.reconnections == 0:
                log.warning(
                    "an earlier life of node %s had incarnation %s, ours is %s: the clock went back",
                    state.node, state.incarnation, self.incarnation,
                )  # fmt: skip
                self._end(state.incarnation)
            else:
                self._end(
                    ConfigurationError(
                        f"another agent has taken the name {state.node!r} "
                        f"(process {state.pid} on {state.host})",
                        expected="each agent with a name of its own (--name)",
                        got=f"incarnation {state.incarnation} after ours, {self.incarnation}",
                    )
                )

    # -- messages

    async def _receive(self) -> None:
        async for message in self._control.messages():
            try:
                self._message(message)
            except ProtocolError as error:
                self.drops.drop("malformed", f"{message.topic}: {error}")

    def _message(self, message: Message) -> None:
        name, levels = self._topics.parse(message.topic)
        match name:
            case "artifact_want" | "artifact_piece":
                self._transfers.handle(name, levels, message)
            case "assignment":
                if message.payload:  # empty: somebody cleared the retained one
                    self._do(desired.AssignmentReceived(decode_json(message.payload, Assignment)))
            case "orchestrator_state":
                if message.payload:
                    state = decode_json(message.payload, OrchestratorState)
                    if state.state == "online":
                        self._do(desired.OrchestratorBorn(state.incarnation, message.retain))
            case "node_state":
                if message.payload:
                    self._own_state(message, decode_json(message.payload, NodeState))
            case _:
                self.drops.drop("unexpected", message.topic)

    # -- what the core decides

    def _do(self, event: desired.Event) -> None:
        if self._leaving:
            return
        for action in self._desired.step(event):
            match action:
                case desired.FetchBlobs(life, stage):
                    log.info("stage %s: fetching", _text(stage))
                    self._fetching[life] = self._spawn(self._fetch(action), f"fetch {life}")
                case desired.CancelFetch(life):
                    task = self._fetching.pop(life, None)
                    if task is not None:
                        task.cancel()
                    self._forget(life)
                case desired.Load(life, stage):
                    log.info("stage %s: loading", _text(stage))
                    self._spawn(self._load(action), f"load {life}")
                case desired.Unload(life, stage):
                    log.info("stage %s: unloading", _text(stage))
                    self._stage_thread.detach(life)
                case desired.Prefetch(revision, blobs):
                    if self._prefetching is not None:
                        self._prefetching.cancel()
                    self._prefetching = (
                        self._spawn(self._prefetch(action), f"prefetch {revision}")
                        if blobs
                        else None
                    )
                case desired.PublishReport(report):
                    self._report = report
                    self._report_due.set()
                case _:
                    assert_never(action)

    async def _fetch(self, action: desired.FetchBlobs) -> None:
        try:
            brought = await self._blobs.bring(action.life, action.stage)
        except (ArtifactError, OSError) as error:
            log.error("stage %s: %s", _text(action.stage), error)
            self._do(desired.BlobsFailed(action.life, str(error)))
            return
        finally:
            self._fetching.pop(action.life, None)
        self._brought[action.life] = dict(brought.paths)
        self._do(desired.BlobsReady(action.life, brought.fetched_bytes))

    async def _load(self, action: desired.Load) -> None:
        life = action.life
        self._load_began[life] = time.monotonic()
        try:
            stage = await self._loader_thread.run(
                partial(self._loader.load, life, action.stage, self._brought[life])
            )
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is the reason that is reported
            self._forget(life)
            reason = (
                str(error) if isinstance(error, Amp4ecError) else f"{type(error).__name__}: {error}"
            )
            log.error("stage %s: cannot be loaded: %s", _text(action.stage), reason)
            self._do(desired.StageLoadFailed(life, reason[:2000]))
            return
        self._stage_thread.attach(stage)

    async def _prefetch(self, action: desired.Prefetch) -> None:
        await self._blobs.prefetch(action.blobs)
        self._do(desired.PrefetchEnded(action.revision))

    async def _preload(self) -> None:
        for name in self._runtimes:
            try:
                await self._loader_thread.run(partial(self._loader.open, name))
            except (Amp4ecError, ImportError, OSError) as error:
                log.error("runtime %s cannot be opened: %s", name, error)

    def _forget(self, life: int) -> None:
        self._brought.pop(life, None)
        self._load_began.pop(life, None)
        self._blobs.release(life)

    def _notify(self, notice: Notice) -> None:
        """From the stage thread into the loop."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._noticed, notice)

    def _noticed(self, notice: Notice) -> None:
        match notice:
            case Attached(life):
                load_s = time.monotonic() - self._load_began.pop(life)
                log.info("life %s: ready after %.2f s", life, load_s)
                self._do(desired.StageLoaded(life, load_s))
            case Detached(life):
                self._forget(life)
                self._do(desired.StageUnloaded(life))
            case ThreadEnded(error):
                if not self._leaving:
                    self._end(StageError(f"the stage thread ended: {error!r}"))
            case _:
                assert_never(notice)

    # -- what is published

    async def _publish_reports(self) -> None:
        topic = self._topics.topic("report", node=self._options.node)
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            if self._report is None:
                continue
            try:
                await self._control.publish(topic, encode_json(self._report))
            except BrokerError as error:
                # The next connection begins with a report.
                log.info("report not sent: %s", error)

    async def _publish_telemetry(self) -> None:
        topic = self._topics.topic("telemetry", node=self._options.node)
        interval_s = self._options.telemetry_interval_s
        due = time.monotonic()
        while True:
            due = max(due + interval_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if not self._control.connected:
                continue
            payload = encode_json(self._telemetry(await self._round_trip(interval_s)))
            try:
                await self._control.publish(topic, payload, qos=0, timeout_s=interval_s)
            except BrokerError as error:
                log.debug("telemetry not sent: %s", error)

    async def _round_trip(self, within_s: float) -> float | None:
        try:
            async with asyncio.timeout(within_s):
                return await self._control.round_trip()
        except (TimeoutError, BrokerError):
            return None

    def _telemetry(self, round_trip_s: float | None) -> Telemetry:
        usage = self._probe.sample()
        traffic, moved = self._stage_thread.traffic, self._transfers.counters
        return Telemetry(
            node=self._options.node,
            incarnation=self.incarnation,
            uptime_s=round(time.monotonic() - self._began, 1),
            cpu_percent=round(usage.cpu_percent, 1),
            memory_used_bytes=usage.memory_used_bytes,
            memory_limit_bytes=usage.memory_limit_bytes,
            # The agent's own payloads, not the machine's interfaces: several agents may share those.
            network_received_bytes=traffic.bytes_received + moved.bytes_received,
            network_sent_bytes=traffic.bytes_sent + moved.bytes_sent,
            round_trip_s=None if round_trip_s is None else round(round_trip_s, 6),
            queue=traffic.queue,
            stability=round(usage.stability, 4),
            stages=self._stage_thread.take_telemetry(),
        )

    async def _calibrate(self) -> None:
        """Measure what was not measured before, beside everything else, and tell it with another birth."""
        if not self._options.calibrate:
            return
        await self._connected_once.wait()
        for name, number in self._runtimes.items():
            if name in self._calibrations:
                continue
            try:
                async with self._calibration_cache.turn():
                    measured = self._calibration_cache.get(name, number, self._hardware)
                    if measured is None:
                        measured = await calibrate_in_child(name)
                        self._calibration_cache.put(name, number, self._hardware, measured)
                        log.info("%s calibrated in %.1f s of CPU", name, measured.measured_in_s)
            except (Amp4ecError, OSError, TimeoutError) as error:
                log.warning("%s is not calibrated: %s", name, error)
                continue
            self._calibrations[name] = measured
            await self._bear_again()


def _text(stage: StageAssignment) -> str:
    return f"{stage.pipeline}/{stage.generation}/{stage.stage} of {stage.model}"


def _version() -> str:
    try:
        return version("amp4ec")
    except PackageNotFoundError:  # run from a checkout
        return ""
