"""A dispatcher's thread on the fake wire, with a client and a stage that tests drive by hand."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.answers import Shown
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.dispatch_notes import ModelSpec, Note, PipelineSpec, Report
from orchestrator.dispatcher import DispatchThread
from orchestrator.job_store import JobStore
from shared.bus import Message, Properties
from shared.codec import decode_msgpack, encode_msgpack
from shared.messages.job import Activation, Failure, Progress, StageResult, StageTime
from shared.tensor import to_wire
from shared.topics import Topics
from tests.fakes.faces import FakeDataBus
from tests.fakes.wire import FakeBroker

TOPICS = Topics("test")
JPEG = b"\xff\xd8\xff and the rest of a photograph"
LABELS = ("cat", "dog", "bird")
LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)


def spec(model: str = "m", labels: Sequence[str] = LABELS) -> ModelSpec:
    return ModelSpec(model, ("x",), Shown(tuple(labels), "none"))


def pipeline(
    generation: int = 1, labels: Sequence[str] = LABELS, model: str = "m", **more: Any
) -> PipelineSpec:
    figures = {"throughput_per_s": 100.0, "latency_s": 0.01} | more
    return PipelineSpec(
        model=model,
        pipeline=f"{model}-0",
        generation=generation,
        num_stages=1,
        shown=Shown(tuple(labels), "none", (0.001, 0.001)),
        **figures,
    )


def wait_until(condition: Callable[[], object], deadline_s: float = 5.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.001)


@dataclass
class World:
    broker: FakeBroker
    settings: DispatchSettings | None = None
    store: Path | None = None
    """Of accepted jobs; none is kept when None."""
    notes: list[Note] = field(default_factory=list)
    answers: list[Message] = field(default_factory=list)
    activations: list[tuple[int, Activation]] = field(default_factory=list)
    """(generation, activation)"""
    order: list[tuple[str, str]] = field(default_factory=list)
    """What the dispatcher did to its bus: ("publish" or "acknowledge", topic)."""

    def __post_init__(self) -> None:
        self._new_thread()
        self.client = self.broker.data("client", receive_maximum=60_000)
        self.client.subscribe("test/result/#")
        self.client.connect()
        self.stage = self.broker.data("stage", receive_maximum=60_000)
        self.stage.subscribe("test/pipeline/+/+/0")
        self.stage.connect()

    def _new_thread(self, *, broker_lost: bool = False) -> None:
        self.bus = self.make_bus()
        store = None if self.store is None else JobStore(self.store)
        self.thread = DispatchThread(self.bus, TOPICS, self.notes.append, self.settings, store)
        if store is not None:
            self.recovered = store.open()
            self.thread.take_over(self.recovered, broker_lost=broker_lost)

    def make_bus(self) -> FakeDataBus:
        bus = self.broker.data(
            "dispatcher",
            clean_start=False,
            session_expiry_s=3600,
            manual_ack=True,
            receive_maximum=60_000,
        )
        publish, acknowledge = bus.publish, bus.acknowledge

        def record_publish(topic: str, *args: Any, **more: Any) -> None:
            publish(topic, *args, **more)
            self.order.append(("publish", topic))

        def record_acknowledge(message: Message) -> None:
            self.order.append(("acknowledge", message.topic))
            acknowledge(message)

        bus.publish = record_publish  # type: ignore[method-assign]
        bus.acknowledge = record_acknowledge  # type: ignore[method-assign]
        return bus

    def restart(self, *, broker_lost: bool = False) -> None:
        """Another dispatcher takes over the session, and the store."""
        self.thread.stop()
        self._new_thread(broker_lost=broker_lost)

    def serve_again(self) -> None:
        """Start the thread that `restart` made, with the model served."""
        self.thread.tell(spec())
        self.thread.tell(pipeline())
        self.thread.start()

    @property
    def unacknowledged(self) -> int:
        session = self.broker.sessions["dispatcher"]
        return len(session.unacknowledged) + len(session.waiting)

    def reports(self) -> list[Report]:
        return [note for note in self.notes if isinstance(note, Report)]

    def dropped(self, why: str) -> int:
        return self.thread._tally.dropped[why]

    # --- what the client and the stage do

    def ask(
        self,
        payload: bytes = JPEG,
        job: str | None = "1",
        reply: str = "test/result/c",
        **more: Any,
    ) -> None:
        user = tuple(more.pop("user", ()))
        properties = Properties(
            response_topic=reply,
            correlation_data=None if job is None else job.encode(),
            user=user,
            **more,
        )
        self.client.publish("test/model/m/infer", payload, properties=properties)

    def pump(self) -> None:
        """Take what came for the client and for the stage."""
        while (message := self.client.receive()) is not None:
            self.answers.append(message)
        while (message := self.stage.receive()) is not None:
            generation = int(message.topic.split("/")[-2])
            self.activations.append((generation, decode_msgpack(message.payload, Activation)))

    def until(self, condition: Callable[[], object], deadline_s: float = 5.0) -> None:
        def pumped() -> object:
            self.pump()
            return condition()

        wait_until(pumped, deadline_s)

    def next_activation(self) -> tuple[int, Activation]:
        self.until(lambda: self.activations)
        return self.activations.pop(0)

    def next_answer(self) -> dict[str, Any]:
        self.until(lambda: self.answers)
        said = json.loads(self.answers.pop(0).payload)
        assert isinstance(said, dict)
        return said

    def next_error(self) -> tuple[str, dict[str, Any]]:
        said = self.next_answer()
        assert said["status"] == "error", said
        return said["error"]["code"], said["error"]

    def result(
        self,
        generation: int,
        activation: Activation,
        *,
        failure: Failure | None = None,
        tensors: Any = None,
    ) -> None:
        made = StageResult(
            job=activation.job,
            item=activation.item,
            attempt=activation.attempt,
            tensors={} if failure else (tensors or {"y": to_wire(LOGITS)}),
            failure=failure,
            trace=[StageTime(stage=0, node="n", queue_s=0.0, compute_s=1e-4, cpu_s=1e-4)],
        )
        self.publish_result(generation, bytes(encode_msgpack(made)))

    def computes(self, generation: int, activation: Activation, node: str) -> None:
        """The stage says that it begins with a watched item."""
        said = StageResult(
            job=activation.job,
            item=activation.item,
            attempt=activation.attempt,
            progress=Progress(node=node, begun=True),
        )
        self.publish_result(generation, bytes(encode_msgpack(said)))

    def publish_result(self, generation: int, payload: bytes) -> None:
        topic = TOPICS.topic("stage_result", pipeline="m-0", generation=generation)
        self.stage.publish(topic, payload)

    def serve_all(self) -> None:
        """Answer whatever waits at the stage."""
        self.pump()
        while self.activations:
            self.result(*self.activations.pop(0))


@contextlib.contextmanager
def running(
    broker: FakeBroker | None = None,
    settings: DispatchSettings | None = None,
    *,
    serve: bool = True,
    store: Path | None = None,
) -> Iterator[World]:
    world = World(broker or FakeBroker(), settings, store)
    if serve:
        world.thread.tell(spec())
        world.thread.tell(pipeline())
    world.thread.start()
    try:
        yield world
    finally:
        world.thread.stop()
        assert not world.thread.is_alive()
        assert world.thread.error is None
