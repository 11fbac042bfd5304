"""The orchestrator: what the control connection brings becomes events, what the cores decide is published.

Two loops: this one (asyncio: births, reports, requests, planning) and the dispatcher's thread (jobs). Where
a model's state is retained on the broker, a restarted orchestrator finds it there and goes on; pipelines
that run do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, assert_never

from orchestrator.answers import Shown
from orchestrator.core import cluster_events as events
from orchestrator.core import dispatch_events as dispatch
from orchestrator.core.cluster import Cluster, ClusterSettings
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.dispatcher import DispatchThread, ModelSpec, Note, PipelineSpec, Report
from orchestrator.library import Library, choose_runtime, entry_of
from shared.artifact_store import ArtifactStore
from shared.bus import BrokerUrl, Message, MqttControlBus, MqttDataBus, Publication, Qos
from shared.codec import decode_json, encode_json, to_builtins
from shared.errors import (
    Amp4ecError,
    BrokerError,
    BrokerUnreachableError,
    ErrorCode,
    ProtocolError,
)
from shared.ids import ORCHESTRATOR
from shared.messages.job import ErrorBody
from shared.messages.model import Figures, ModelState
from shared.messages.node import NodeState, Telemetry
from shared.messages.operation import (
    Happening,
    Limits,
    Metrics,
    ModelMetrics,
    OrchestratorState,
    ReplanRequest,
    Response,
    ServeRequest,
    StopRequest,
)
from shared.messages.stage import Assignment
from shared.messages.stage import Report as StageReports
from shared.topics import DEFAULT_ROOT, Topics
from shared.transfer import Transfers

log = logging.getLogger(__name__)

SESSION_EXPIRY_S = 24 * 3600
RESTORE_TIMEOUT_S = 5.0
TICK_S = 0.25
LAST_WORDS_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorOptions:
    """How to run an orchestrator; `store_bytes` bounds the models kept on disk."""

    broker: BrokerUrl
    root: str = DEFAULT_ROOT
    state_dir: Path
    store_bytes: int = 16 * 1024**3
    prefetch: bool = True
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)


async def run_orchestrator(options: OrchestratorOptions) -> int:
    """Run until SIGTERM or SIGINT; 0 after a clean end."""
    return await Orchestrator(options).run()


class Orchestrator:
    """One life of an orchestrator."""

    def __init__(self, options: OrchestratorOptions) -> None:
        self._options = options
        self._topics = Topics(options.root)
        # Wall time, so that it grows over restarts; revisions of assignments start there too.
        self._incarnation = int(time.time() * 1000)
        self._cluster = Cluster(first_revision=self._incarnation, settings=options.cluster)
        self._store = ArtifactStore(options.state_dir / "artifacts", options.store_bytes)
        self._library = Library(self._store)
        name = options.root.replace("/", "-")
        self._bus = MqttControlBus(
            options.broker,
            client_id=f"amp4ec-orchestrator-{name}",
            will=Publication(
                topic=self._topics.topic("orchestrator_state"),
                payload=encode_json(self._state("lost")),
                retain=True,
            ),
        )
        self._transfers = Transfers(self._bus, self._topics, ORCHESTRATOR, store=self._store)
        self._notes: asyncio.Queue[Note] = asyncio.Queue()
        self._outbox: asyncio.Queue[Publication] = asyncio.Queue()
        self._dispatcher = DispatchThread(
            MqttDataBus(
                options.broker,
                f"amp4ec-dispatcher-{name}",
                clean_start=False,
                session_expiry_s=SESSION_EXPIRY_S,
                manual_ack=True,
            ),
            self._topics,
            self._note,
            options.dispatch,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._restored = asyncio.Event()
        self._retained: dict[str, ModelState] = {}
        self._latencies: dict[str, deque[tuple[float, float]]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._published: dict[str, bytes] = {}
        self._failed: BaseException | None = None

    async def run(self) -> int:
        """See `run_orchestrator`."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._bus.on_connect(self._announce)
        async with self._bus, self._transfers:
            for name in (
                "node_state",
                "telemetry",
                "report",
                "model_state",
                "assignment",
                "request",
            ):
                await self._bus.subscribe(self._topics.pattern(name))
            await self._bus.subscribe(self._topics.topic("orchestrator_state"))
            log.info("orchestrator %s runs on %s", self._incarnation, self._options.broker)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._send(), name="send"),
                    group.create_task(self._receive(), name="receive"),
                    group.create_task(self._tick(), name="tick"),
                    group.create_task(self._read_notes(), name="notes"),
                    group.create_task(self._restore(), name="restore"),
                ]
                await self._stop.wait()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._outbox.join(), LAST_WORDS_S)
                for task in tasks:
                    task.cancel()
                for serving in list(self._serving):
                    serving.cancel()
            # Our own publishes are done; the broker keeps what comes from now on for our successor.
            await asyncio.to_thread(self._dispatcher.stop)
            with contextlib.suppress(BrokerError):
                topic = self._topics.topic("orchestrator_state")
                payload = encode_json(self._state("offline"))
                await self._bus.publish(topic, payload, retain=True, timeout_s=LAST_WORDS_S)
        return 0 if self._failed is None else 1

    def _state(self, state: Literal["online", "offline", "lost"]) -> OrchestratorState:
        settings = self._options.dispatch
        return OrchestratorState(
            state=state,
            incarnation=self._incarnation,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
            limits=Limits(
                max_item_bytes=settings.max_item_bytes,
                max_queue_items=settings.max_queued_items,
                max_queue_bytes=settings.max_queued_bytes,
            ),
        )

    async def _announce(self) -> None:
        """After each connection: our birth, which also undoes a last will that went out meanwhile."""
        self._publish("orchestrator_state", self._state("online"), retain=True)

    # --- starting again

    async def _restore(self) -> None:
        """Take over what an earlier orchestrator left retained, then let jobs in."""
        with contextlib.suppress(TimeoutError):
            # Our own birth comes back after everything that was retained before it.
            await asyncio.wait_for(self._restored.wait(), RESTORE_TIMEOUT_S)
        for name, state in sorted(self._retained.items()):
            if state.manifest is None:
                continue
            try:
                package = self._library.open(state.manifest)
                entry = entry_of(package, state.manifest, state.options, state.runtime)
            except Amp4ecError as error:
                log.error("%s was served, but cannot be taken over: %s", name, error)
                text = f"{name} was served before the restart and cannot be taken over: {error}"
                self._happened(events.Tell("model_lost", text, model=name))
                self._publish("model_state", None, retain=True, model=name)
                continue
            self._step(events.ModelRestored(time.monotonic(), entry, state))
        self._retained.clear()
        self._dispatcher.start()

    # --- what comes in

    async def _receive(self) -> None:
        async for message in self._bus.messages():
            try:
                name, levels = self._topics.parse(message.topic)
                self._message(name, levels, message)
            except ProtocolError as error:
                log.warning("dropped a message on %s: %s", message.topic, error)

    def _message(self, name: str, levels: dict[str, str], message: Message) -> None:
        now, payload = time.monotonic(), message.payload
        match name:
            case "node_state":
                if payload:
                    state = _same_node(levels, decode_json(payload, NodeState))
                    online = state.state == "online"
                    self._step(
                        events.NodeBorn(now, state) if online else events.NodeDied(now, state)
                    )
            case "telemetry":
                telemetry = decode_json(payload, Telemetry)
                if telemetry.node == levels["node"]:
                    self._step(events.NodeHeard(now, telemetry))
            case "report":
                report = decode_json(payload, StageReports)
                if report.node == levels["node"]:
                    self._step(events.NodeReported(now, report))
            case "assignment":
                if message.retain and payload:
                    assignment = decode_json(payload, Assignment)
                    if assignment.revision < self._cluster.first_revision:
                        self._step(events.AssignmentSeen(now, levels["node"], assignment.revision))
            case "model_state":
                if message.retain and payload and not self._restored.is_set():
                    self._retained[levels["model"]] = decode_json(payload, ModelState)
            case "orchestrator_state":
                if payload:
                    state_seen = decode_json(payload, OrchestratorState)
                    if state_seen.incarnation == self._incarnation:
                        self._restored.set()
            case "request":
                self._request(levels["verb"], payload)
            case _:
                self._transfers.handle(name, levels, message)

    # --- requests of operators

    def _request(self, verb: str, payload: bytes) -> None:
        now = time.monotonic()
        try:
            match verb:
                case "serve":
                    request = decode_json(payload, ServeRequest)
                    task = asyncio.create_task(self._serve(request), name=f"serve {request.model}")
                    self._serving.add(task)
                    task.add_done_callback(self._serving.discard)
                case "stop":
                    stop = decode_json(payload, StopRequest)
                    self._step(events.StopAsked(now, stop.transaction, stop.model))
                case "replan":
                    again = decode_json(payload, ReplanRequest)
                    self._step(events.ReplanAsked(now, again.transaction, again.model))
                case _:
                    raise ProtocolError("unknown verb", expected="serve, stop or replan", got=verb)
        except ProtocolError as error:
            log.warning("request/%s refused: %s", verb, error)
            transaction = _transaction(payload)
            if transaction is not None:
                self._respond(verb, transaction, error=_body(error))

    async def _serve(self, request: ServeRequest) -> None:
        """Fetch what the request names, check it, and hand the model to the cluster."""
        transaction, began = request.transaction, time.monotonic()
        try:
            await self._restored.wait()
            wanted = self._library.missing([request.manifest, *request.blobs])
            total = sum(blob.size for blob in wanted)
            if wanted:
                text = f"fetching {len(wanted)} artifacts, {total / 1e6:.1f} MB"
                self._respond("serve", transaction, progress=text)
            await asyncio.gather(
                *(self._transfers.fetch(blob, request.provider) for blob in wanted)
            )
            package = await asyncio.to_thread(self._library.open, request.manifest.digest)
            if package.manifest.model != request.model:
                raise ProtocolError(
                    "the package is of another model",
                    expected=request.model,
                    got=package.manifest.model,
                )
            runtime = choose_runtime(package, request.options.runtime, self._runtimes)
            entry = entry_of(package, request.manifest.digest, request.options, runtime)
        except Amp4ecError as error:
            self._respond("serve", transaction, error=_body(error))
            return
        except Exception as error:
            # Ours, not the sender's: they are told, the traceback is for us.
            log.exception("serving %s failed", request.model)
            body = ErrorBody(code=ErrorCode.INTERNAL, message=f"the orchestrator failed: {error!r}")
            self._respond("serve", transaction, error=body)
            return
        now = time.monotonic()
        deadline = began + request.timeout_s
        self._step(events.ServeAsked(now, transaction, entry, deadline))

    def _runtimes(self) -> set[str]:
        return {name for node in self._cluster.alive() for name in node.state.runtimes}

    # --- what is decided

    def _step(self, event: events.Event) -> None:
        for action in self._cluster.step(event):
            self._perform(action)

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.PushAssignment():
                self._assign(action)
            case events.ModelKnown():
                self._dispatcher.tell(self._spec(action.entry))
            case events.ModelForgotten():
                self._dispatcher.tell(dispatch.ModelStopped(time.monotonic(), action.model))
            case events.ActivatePipeline():
                stages = action.plan.stages
                hops = [s.receive_s for s in stages] + [stages[-1].send_s]
                self._dispatcher.tell(
                    PipelineSpec(
                        self._spec(action.entry),
                        action.pipeline,
                        action.generation,
                        len(stages),
                        action.throughput_per_s,
                        action.latency_s,
                        hops,
                    )
                )
            case events.DrainPipeline(model, pipeline, generation):
                self._dispatcher.tell(
                    dispatch.PipelineDraining(time.monotonic(), model, pipeline, generation)
                )
            case events.LosePipeline(model, pipeline, generation):
                self._dispatcher.tell(
                    dispatch.PipelineLost(time.monotonic(), model, pipeline, generation)
                )
            case events.PublishModel(model):
                self._publish_model(model)
            case events.Tell():
                self._happened(action)
            case events.Progress(transaction, verb, text):
                self._respond(verb, transaction, progress=text)
            case events.Finish():
                self._finish(action)
            case _:
                assert_never(action)

    def _assign(self, action: events.PushAssignment) -> None:
        stages = [self._library.assignment(ref) for ref in action.stages]
        needed = {blob.digest for stage in stages for blob in stage.weights}
        prefetch = {
            blob.digest: blob
            for ref in action.stages
            if self._options.prefetch
            for blob in self._library.prefetch(ref.entry)
            if blob.digest not in needed
        }
        assignment = Assignment(
            node=action.node,
            revision=action.revision,
            stages=stages,
            prefetch=list(prefetch.values()),
        )
        self._publish("assignment", assignment, retain=True, node=action.node)

    def _spec(self, entry: events.ModelEntry) -> ModelSpec:
        manifest = self._library.open(entry.manifest).manifest
        return ModelSpec(
            entry.name,
            tuple(value.name for value in manifest.graph.inputs),
            Shown(manifest.labels, entry.weights),
        )

    def _finish(self, action: events.Finish) -> None:
        if action.error is not None:
            error = ErrorBody(code=action.code, message=action.error)
            self._respond(action.verb, action.transaction, error=error)
            return
        state = self._cluster.model_state(action.model, self._figures(action.model))
        data = {"model": action.model} if state is None else to_builtins(state)
        self._respond(action.verb, action.transaction, data=data)

    # --- what goes out

    def _publish(
        self, name: str, value: object, *, retain: bool = False, qos: Qos = 1, **levels: str
    ) -> None:
        """Queue `value` (None: empty, which clears a retained topic) behind what is to be sent."""
        payload = b"" if value is None else encode_json(value)
        topic = self._topics.topic(name, **levels)
        self._outbox.put_nowait(Publication(topic=topic, payload=payload, qos=qos, retain=retain))

    async def _send(self) -> None:
        """Send what was queued, in order, however often the broker has to come back for it."""
        while True:
            item = await self._outbox.get()
            while True:
                try:
                    await self._bus.publish(item.topic, item.payload, item.qos, retain=item.retain)
                except BrokerUnreachableError as error:
                    log.warning("%s waits for the broker: %s", item.topic, error)
                    continue
                except BrokerError as error:
                    log.error("the broker refused %s: %s", item.topic, error)
                break
            self._outbox.task_done()

    def _publish_model(self, model: str) -> None:
        """Publish a model's state when it differs from what was published last."""
        state = self._cluster.model_state(model, self._figures(model))
        if state is None:
            self._published.pop(model, None)
            self._latencies.pop(model, None)
            self._publish("model_state", None, retain=True, model=model)
            return
        payload = encode_json(state)
        if self._published.get(model) != payload:
            self._published[model] = payload
            topic = self._topics.topic("model_state", model=model)
            self._outbox.put_nowait(Publication(topic=topic, payload=payload, retain=True))

    def _happened(self, tell: events.Tell) -> None:
        log.info("%s: %s", tell.event, tell.text)
        happening = Happening(
            event=tell.event,
            text=tell.text,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            node=tell.node,
            model=tell.model,
            generation=tell.generation,
            reason=tell.reason,
        )
        self._publish("event", happening)

    def _respond(
        self,
        verb: str,
        transaction: str,
        *,
        progress: str | None = None,
        data: dict[str, object] | None = None,
        error: ErrorBody | None = None,
    ) -> None:
        response = (
            Response(transaction=transaction, status="progress", data={"text": progress})
            if progress is not None
            else Response(transaction=transaction, status="error", error=error)
            if error is not None
            else Response(transaction=transaction, status="ok", data=data or {})
        )
        self._publish("response", response, verb=verb)

    # --- the dispatcher's side

    def _note(self, note: Note) -> None:
        """Called in the dispatcher's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._notes.put_nowait, note)

    async def _read_notes(self) -> None:
        while True:
            match note := await self._notes.get():
                case dispatch.PipelineDrained(model, pipeline, generation):
                    now = time.monotonic()
                    self._step(events.PipelineDrained(now, model, pipeline, generation))
                case Report():
                    self._reported(note)
                case _:
                    assert_never(note)

    def _reported(self, report: Report) -> None:
        now = time.monotonic()
        for (model, pipeline, generation, stage, node), total in report.stages.items():
            self._step(
                events.StageMeasured(
                    now,
                    model,
                    pipeline,
                    generation,
                    stage,
                    node,
                    total.items,
                    total.cpu_s / total.items,
                    total.compute_s / total.items,
                )
            )
        for model, latencies in report.latencies_s.items():
            known = self._latencies.setdefault(model, deque(maxlen=8192))
            known.extend((now, latency) for latency in latencies)
        if report.latencies_s:
            for model in report.latencies_s:
                self._publish_model(model)
        if self._bus.connected:
            self._publish("metrics", self._metrics(report), qos=0)

    def _figures(self, model: str, window_s: float = 10.0) -> Figures:
        """Measured over the last seconds; a rate over less than all of them would flatter."""
        now = time.monotonic()
        recent = [latency for at, latency in self._latencies.get(model, ()) if now - at <= window_s]
        if not recent:
            return Figures()
        return Figures(
            throughput_per_s=round(len(recent) / window_s, 2),
            latency_s=round(statistics.median(recent), 6),
        )

    def _metrics(self, report: Report) -> Metrics:
        counters = report.snapshot.counters
        totals = {
            name: value for name, value in to_builtins(counters).items() if isinstance(value, int)
        }
        for kind, by_code in (("failed", counters.failed), ("rejected", counters.rejected)):
            totals |= {f"{kind}_{code}": count for code, count in by_code.items()}
        totals |= {f"dropped_{why}": count for why, count in report.dropped.items()}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Metrics(
            counters=totals,
            models={
                load.model: ModelMetrics(
                    queued=load.queued_items,
                    in_flight=sum(p.in_flight for p in load.pipelines),
                    answered_per_s=round(
                        len(report.latencies_s.get(load.model, ())) / report.interval_s, 2
                    ),
                    latency_p50_s=_quantile(report.latencies_s.get(load.model), 0.5),
                    latency_p95_s=_quantile(report.latencies_s.get(load.model), 0.95),
                )
                for load in report.snapshot.models
            },
            nodes_online=len(self._cluster.alive()),
            cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
            memory_bytes=usage.ru_maxrss * 1024,
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._dispatcher.error is not None:
                self._failed = self._dispatcher.error
                log.critical("stopping: the dispatcher died: %r", self._failed)
                self._stop.set()
            self._step(events.Tick(time.monotonic()))


def _same_node(levels: dict[str, str], state: NodeState) -> NodeState:
    if state.node != levels["node"]:
        raise ProtocolError(
            "a node's state on another's topic", expected=levels["node"], got=state.node
        )
    return state


def _transaction(payload: bytes) -> str | None:
    """The transaction of a request that is otherwise unreadable, so that its sender gets told."""
    try:
        given = decode_json(payload, dict)
    except ProtocolError:
        return None
    transaction = given.get("transaction")
    return transaction if isinstance(transaction, str) and len(transaction) <= 128 else None


def _body(error: Amp4ecError) -> ErrorBody:
    return ErrorBody(
        code=ErrorCode.BAD_INPUT, message=error.message, expected=error.expected, got=error.got
    )


def _quantile(values: list[float] | None, share: float) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 6)


def _version() -> str:
    try:
        return version("amp4ec")
    except PackageNotFoundError:
        return "unknown"
