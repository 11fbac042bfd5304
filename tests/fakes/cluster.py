"""What an orchestrator talks to, over any bus: agents that load nothing, an operator, a model by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orchestrator.models.cuts import find_blocks
from shared.bus import ControlBus, Message, Publication
from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack
from shared.errors import ProtocolError
from shared.graph import Graph, GraphBuilder
from shared.manifest import Level, Manifest, WeightsMark
from shared.messages.job import Activation, StageResult, StageTime
from shared.messages.model import ModelState, ServeOptions
from shared.messages.node import Hardware, NodeState, Telemetry
from shared.messages.operation import Happening, Metrics, OrchestratorState, Response, ServeRequest
from shared.messages.stage import Assignment, Blob, Forgery, Report, StageReport, StageState
from shared.package import Measured, ModelPackage
from shared.pipeline_mac import PipelineMac
from shared.sentences import worded
from shared.signing import Signer
from shared.tensor import to_wire
from shared.topics import Topics
from shared.transfer import MemoryBlobs, Transfers

CONV: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
SHAPE = (1, 4, 2, 2)
LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)
Control = Callable[[str, Publication | None], ControlBus]
"""Makes a control connection with a client id and a last will."""


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 (what is watched has no event)
            await asyncio.sleep(0.002)


def blob_of(data: bytes) -> Blob:
    return Blob(digest=hashlib.sha256(data).hexdigest(), size=len(data))


def chain(name: str, blocks: int) -> Graph:
    builder = GraphBuilder(name)
    value = builder.input("x", SHAPE)
    for index in range(blocks):
        weight = builder.weight(f"w{index}", (4, 4, 1, 1))
        value = builder.node("conv2d", value, weight, None, shape=SHAPE, name=f"c{index}", **CONV)
    return builder.build(value)


@dataclass
class Model:
    """A package and the blobs of it; `salt` makes another of the same name."""

    name: str = "m"
    blocks: int = 4
    salt: bytes = b""
    labels: tuple[str, ...] = ("cat", "dog", "bird")
    input_bytes: int = 64
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = chain(self.name, self.blocks)
        mine = self.name.encode() + self.salt
        weights = [self.put(b"weights %d " % index + mine) for index in range(self.blocks)]
        blocks, cuts = find_blocks(graph)
        manifest = Manifest(
            model=self.name,
            level=Level.O1,
            weights=WeightsMark.NONE,
            graph=graph,
            blocks=tuple(
                replace(block, blob=blob.digest)
                for block, blob in zip(blocks, weights, strict=True)
            ),
            cuts=cuts,
            input_bytes=self.input_bytes,
            output_bytes=64,
            labels=self.labels,
        )
        measured = {"torch": Measured(block_seconds=(0.01,) * self.blocks)}
        self.package = ModelPackage(manifest=manifest, measured=measured, weights=tuple(weights))
        self.manifest = self.put(self.package.to_bytes())

    def put(self, data: bytes) -> Blob:
        blob = blob_of(data)
        self.blobs[blob.digest] = data
        return blob

    def request(self, transaction: str, provider: str, **more: Any) -> ServeRequest:
        timeout_s = more.pop("timeout_s", 20.0)
        values: dict[str, Any] = {
            "transaction": transaction,
            "model": self.name,
            "manifest": self.manifest,
            "blobs": list(self.package.weights),
            "provider": provider,
            "timeout_s": timeout_s,
        }
        fixed = {key: more.pop(key) for key in list(more) if key in values}
        return ServeRequest(**(values | fixed), options=ServeOptions(**more))


class FakeAgent:
    """Says that it holds whatever it was assigned, and passes activations on."""

    def __init__(self, topics: Topics, control: Control, node: str, incarnation: int = 1) -> None:
        self.node = node
        self.topics = topics
        self.assignments: list[Assignment] = []
        self.reports_as: StageState = "ready"
        self.reason = ""
        self.holds_back = False
        """Whether activations are kept instead of answered."""
        self.deaf = False
        """Whether it answers nobody who asks whether it is there."""
        self.held: list[Message] = []
        self.ran = 0
        self.state = NodeState(
            state="online",
            node=node,
            incarnation=incarnation,
            hardware=Hardware(cpu=1.0, cores=1, memory_bytes=10**9, architecture="x"),
            runtimes={"torch": "2"},
            telemetry_interval_s=20.0,
        )
        lost = NodeState(state="lost", node=node, incarnation=incarnation)
        self._birth = topics.topic("node_state", node=node)
        will = Publication(topic=self._birth, payload=encode_json(lost), retain=True)
        self.bus = control(f"agent-{node}", will)
        self.births = 0

    @property
    def revision(self) -> int:
        return self.assignments[-1].revision if self.assignments else -1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeAgent]:
        self.bus.on_connect(self._announce)
        async with self.bus:
            await self.bus.subscribe(self.topics.topic("assignment", node=self.node))
            await self.bus.subscribe(self.topics.topic("ping", node=self.node))
            await self.bus.subscribe(self.topics.pattern("activation"))
            await self.bus.subscribe(self.topics.topic("orchestrator_state"))
            reader = asyncio.create_task(self._read())
            try:
                yield self
            finally:
                reader.cancel()
                results = await asyncio.gather(reader, return_exceptions=True)
                if isinstance(results[0], Exception):
                    raise results[0]

    async def _announce(self) -> None:
        self.births += 1
        await self.bus.publish(self._birth, encode_json(worded(self.state)), retain=True)

    async def _read(self) -> None:
        async for message in self.bus.messages():
            with contextlib.suppress(ProtocolError):
                await self._take(message)

    async def _take(self, message: Message) -> None:
        name, levels = self.topics.parse(message.topic)
        match name:
            case "assignment" if message.payload:
                assignment = decode_json(message.payload, Assignment)
                if assignment.revision > self.revision:
                    self.assignments.append(assignment)
                    await self.report()
            case "ping" if not self.deaf and self.assignments:
                await self.report()
            case "orchestrator_state":
                state = decode_json(message.payload, OrchestratorState)
                if state.state == "online" and self.assignments:
                    await self.report()
            case "activation":
                await self._activation(message, levels)
            case _:
                pass

    async def report(self, *forged: Forgery) -> None:
        stages = [
            StageReport(
                model=s.model, pipeline=s.pipeline, generation=s.generation, stage=s.stage,
                state=self.reports_as, reason=self.reason,
            )
            for s in self.assignments[-1].stages
        ]  # fmt: skip
        report = Report(
            node=self.node,
            incarnation=self.state.incarnation,
            revision=self.revision,
            stages=stages,
            forged=list(forged),
        )
        await self.bus.publish(
            self.topics.topic("report", node=self.node), encode_json(worded(report))
        )

    async def tell(self, *, cpu_percent: float) -> None:
        """Telemetry: so busy, and else nothing of note."""
        telemetry = Telemetry(
            node=self.node,
            incarnation=self.state.incarnation,
            uptime_s=1.0,
            cpu_percent=cpu_percent,
            memory_used_bytes=10**8,
            memory_limit_bytes=10**9,
            network_received_bytes=0,
            network_sent_bytes=0,
            round_trip_s=0.001,
            queue=0,
            stability=1.0,
        )
        topic = self.topics.topic("telemetry", node=self.node)
        await self.bus.publish(topic, encode_json(worded(telemetry)), qos=0)

    async def _activation(self, message: Message, levels: dict[str, str]) -> None:
        mine = [
            stage
            for stage in (self.assignments[-1].stages if self.assignments else [])
            if (stage.pipeline, str(stage.generation), str(stage.stage))
            == (levels["pipeline"], levels["generation"], levels["stage"])
        ]
        if not mine:
            return
        if self.holds_back:
            self.held.append(message)
            return
        self.ran += 1
        stage = mine[0]
        mac = None if stage.key is None else PipelineMac(bytes.fromhex(stage.key))
        assert mac is None or mac.holds(message)
        given = decode_msgpack(message.payload, Activation)
        place: dict[str, Any] = {"pipeline": stage.pipeline, "generation": stage.generation}
        spent = StageTime(
            stage=stage.stage, node=self.node, queue_s=0.0, compute_s=1e-3, cpu_s=1e-3
        )
        made: Activation | StageResult
        if stage.stage == stage.num_stages - 1:
            topic = self.topics.topic("stage_result", **place)
            made = StageResult(
                job=given.job, item=given.item, attempt=given.attempt,
                tensors={"y": to_wire(LOGITS)}, trace=[*given.trace, spent],
            )  # fmt: skip
        else:
            topic = self.topics.topic("activation", **place, stage=stage.stage + 1)
            made = replace(given, trace=[*given.trace, spent])
        payload = bytes(encode_msgpack(made))
        properties = None if mac is None else mac.seal(topic, payload)
        await self.bus.publish(topic, payload, properties=properties)

    async def release(self) -> None:
        """Answer what was held back, and hold nothing back any more."""
        self.holds_back = False
        held, self.held = self.held, []
        for message in held:
            await self._activation(message, self.topics.parse(message.topic)[1])


class FakeOperator:
    """Asks, serves the blobs of what it asks for, and hears all that the orchestrator says."""

    def __init__(self, topics: Topics, control: Control, peer: str = "operator-1") -> None:
        self.topics = topics
        self.peer = peer
        self.signer: Signer | None = None
        self._signed_ms = 0
        self.blobs: dict[str, bytes] = {}
        self.responses: list[Response] = []
        self.events: list[Happening] = []
        self.states: dict[str, list[ModelState | None]] = {}
        self.orchestrators: list[OrchestratorState] = []
        self.metrics: list[Metrics] = []
        self.bus = control(peer, None)
        self._transfers = Transfers(
            self.bus, topics, peer, source=MemoryBlobs(self.blobs), timeout_s=0.2
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeOperator]:
        async with self.bus, self._transfers:
            for name in ("response", "event", "model_state", "orchestrator_state", "metrics"):
                await self.bus.subscribe(self.topics.pattern(name))
            reader = asyncio.create_task(self._read())
            try:
                yield self
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self.bus.messages():
            with contextlib.suppress(ProtocolError):
                self._take(message)

    def _take(self, message: Message) -> None:
        name, levels = self.topics.parse(message.topic)
        payload = message.payload
        match name:
            case "response":
                self.responses.append(decode_json(payload, Response))
            case "event":
                self.events.append(decode_json(payload, Happening))
            case "model_state":
                state = decode_json(payload, ModelState) if payload else None
                self.states.setdefault(levels["model"], []).append(state)
            case "orchestrator_state":
                self.orchestrators.append(decode_json(payload, OrchestratorState))
            case "metrics":
                self.metrics.append(decode_json(payload, Metrics))
            case _:
                self._transfers.handle(name, levels, message)

    async def send(self, verb: str, request: object) -> None:
        payload = request if isinstance(request, bytes) else encode_json(request)
        topic = self.topics.topic("request", verb=verb)
        properties = None
        if self.signer is not None:
            self._signed_ms = max(self._signed_ms + 1, time.time_ns() // 1_000_000)
            properties = self.signer.sign(topic, payload, self._signed_ms)
        await self.bus.publish(topic, payload, properties=properties)

    async def ended(self, transaction: str) -> Response:
        """The response that ends a transaction."""

        def found() -> list[Response]:
            return [
                response
                for response in self.responses
                if response.transaction == transaction and response.status != "progress"
            ]

        await until(found)
        return found()[0]

    async def ask(self, verb: str, request: Any) -> Response:
        await self.send(verb, request)
        return await self.ended(request.transaction)

    async def serve(self, model: Model, transaction: str = "t", **more: Any) -> Response:
        self.blobs.update(model.blobs)
        return await self.ask("serve", model.request(transaction, self.peer, **more))

    def state(self, model: str = "m") -> ModelState | None:
        states = self.states.get(model)
        return states[-1] if states else None

    def told(self, event: str) -> list[Happening]:
        return [happening for happening in self.events if happening.event == event]
