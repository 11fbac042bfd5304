"""The agent on the fake wire: assigned, fetching, loading, running, failing, leaving."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import edge_agent.loader
import edge_agent.service
from edge_agent.options import AgentOptions
from edge_agent.service import Agent
from edge_agent.stage_thread import StageThread
from shared.bus import BrokerUrl
from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack
from shared.errors import ConfigurationError, ErrorCode, StageError
from shared.graph import Graph, GraphBuilder
from shared.messages.job import Activation, StageResult
from shared.messages.node import NodeState, Ping, Telemetry
from shared.messages.operation import OrchestratorState
from shared.messages.stage import Assignment, Blob, Report, StageAssignment
from shared.tensor import Array, from_wire, to_wire
from shared.topics import Topics
from shared.transfer import MemoryBlobs, Transfers
from shared.transform import IMAGENET
from tests.fakes.wire import FakeBroker, Mischief

TOPICS = Topics("test")
NODE = "n1"
T = TypeVar("T")


class FakeStage:
    """Doubles its input; raises what the test wants."""

    def __init__(self, graph: Graph, runtime: FakeRuntime) -> None:
        self.graph = graph
        self._runtime = runtime

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._runtime.failure is not None:
            raise self._runtime.failure
        (name,) = self.graph.outputs
        return {name: np.asarray(inputs["x"], np.float32) * 2}

    def unload(self) -> None:
        self._runtime.unloaded.append(self.graph.name)


@dataclass
class FakeRuntime:
    name: str = "torch"
    version: str = "1.0"
    failure: Exception | None = None
    load_failure: Exception | None = None
    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)

    def load(self, graph: Graph, blobs: Mapping[str, Any], *, threads: int = 1) -> FakeStage:
        if self.load_failure is not None:
            raise self.load_failure
        assert set(blobs) == set(graph.blobs())
        self.loaded.append(graph.name)
        return FakeStage(graph, self)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(edge_agent.loader, "open_runtime", lambda _: fake)
    monkeypatch.setattr(edge_agent.service, "available_runtimes", lambda: {"torch": "1.0"})
    return fake


def graph_of(name: str, shape: tuple[int, ...] = (1, 8)) -> Graph:
    builder = GraphBuilder(name)
    x = builder.input("x", shape)
    return builder.build(builder.node("relu", x, shape=shape, name="y"))


class World:
    """A broker in memory, an orchestrator that serves blobs and listens, and the agent's options."""

    def __init__(self, directory: Path, broker: FakeBroker) -> None:
        self.broker = broker
        self.blobs: dict[str, bytes] = {}
        self.reports: list[Report] = []
        self.births: list[NodeState] = []
        self.telemetry: list[Telemetry] = []
        self.results: list[StageResult] = []
        self.next_stage: list[Activation] = []
        self.revision = 0
        self.options = AgentOptions(
            broker=BrokerUrl.parse("mqtt://nowhere"),
            node=NODE,
            root="test",
            cache_dir=directory / "agent",
            telemetry_interval_s=0.05,
            calibrate=False,
            drain_s=2.0,
        )

    def blob(self, data: bytes) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return Blob(digest=digest, size=len(data))

    def stage(
        self, generation: int = 1, index: int = 0, num_stages: int = 1, **more: Any
    ) -> StageAssignment:
        name = more.pop("name", f"g{generation}s{index}")
        graph = more.pop("graph", None) or graph_of(name)
        return StageAssignment(
            model="m", pipeline="m-0", generation=generation, stage=index, num_stages=num_stages,
            runtime=more.pop("runtime", "torch"), graph=self.blob(encode_json(graph)), weights=[],
            **more,
        )  # fmt: skip

    def assign(
        self, *stages: StageAssignment, revision: int | None = None, node: str = NODE
    ) -> None:
        self.revision = self.revision + 1 if revision is None else revision
        value = Assignment(node=node, revision=self.revision, stages=list(stages))
        self.publish(TOPICS.topic("assignment", node=NODE), encode_json(value), retain=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.broker.publish(topic, payload, 1, retain=retain)

    def send(self, job: str, values: Array, generation: int = 1, stage: int = 0) -> None:
        self.activate(
            Activation(job=job, item=0, attempt=1, tensors={"x": to_wire(values)}),
            generation,
            stage,
        )

    def activate(self, activation: Activation, generation: int = 1, stage: int = 0) -> None:
        topic = TOPICS.topic("activation", pipeline="m-0", generation=generation, stage=stage)
        self.publish(topic, bytes(encode_msgpack(activation)))

    def states(self) -> list[tuple[int, int, str]]:
        """(generation, stage, state) of the last report on the present revision."""
        reports = [r for r in self.reports if r.revision == self.revision]
        return [(s.generation, s.stage, s.state) for s in reports[-1].stages] if reports else []

    async def ready(self, *places: tuple[int, int]) -> None:
        wanted = [(generation, stage, "ready") for generation, stage in places]
        await until(lambda: sorted(self.states()) == sorted(wanted))

    @contextlib.asynccontextmanager
    async def orchestrator(self) -> AsyncIterator[None]:
        bus = self.broker.control("orchestrator")
        transfers = Transfers(
            bus, TOPICS, "orchestrator", source=MemoryBlobs(self.blobs), timeout_s=0.1
        )
        self.transfers = transfers
        async with bus, transfers:
            for name in ("node_state", "telemetry", "report", "stage_result"):
                await bus.subscribe(TOPICS.pattern(name))
            await bus.subscribe(TOPICS.topic("activation", pipeline="m-0", generation=1, stage=1))

            async def read() -> None:
                async for message in bus.messages():
                    name, levels = TOPICS.parse(message.topic)
                    match name:
                        case "node_state" if message.payload:
                            self.births.append(decode_json(message.payload, NodeState))
                        case "telemetry":
                            self.telemetry.append(decode_json(message.payload, Telemetry))
                        case "report":
                            self.reports.append(decode_json(message.payload, Report))
                        case "stage_result":
                            self.results.append(decode_msgpack(message.payload, StageResult))
                        case "activation":
                            if message.payload:
                                self.next_stage.append(decode_msgpack(message.payload, Activation))
                        case "node_state":
                            pass  # cleared
                        case _:
                            assert transfers.handle(name, levels, message)

            reader = asyncio.create_task(read())
            try:
                yield
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    def make_agent(self, incarnation: int = 5) -> Agent:
        return Agent(
            self.options,
            incarnation=incarnation,
            control=lambda will: self.broker.control("agent", will=will),
            data=lambda: self.broker.data("data", session_expiry_s=60),
        )

    @contextlib.asynccontextmanager
    async def agent(self, incarnation: int = 5) -> AsyncIterator[Agent]:
        agent = self.make_agent(incarnation)
        stop = asyncio.Event()
        running = asyncio.create_task(agent.run(stop))
        try:
            await until(
                lambda: any(birth.state == "online" for birth in self.births) or running.done()
            )
            yield agent
        finally:
            stop.set()
            assert await running is None


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 (what is watched has no event)
            await asyncio.sleep(0.002)


@pytest.fixture
async def world(tmp_path: Path, runtime: FakeRuntime) -> AsyncIterator[World]:
    world = World(tmp_path, FakeBroker())
    async with world.orchestrator():
        yield world


ONES = np.ones((1, 8), np.float32)


async def test_birth_telemetry_and_clean_leave(world: World) -> None:
    async with world.agent():
        birth = world.births[0]
        assert (birth.state, birth.node, birth.incarnation) == ("online", NODE, 5)
        assert birth.hardware is not None
        assert birth.hardware.cpu > 0
        assert birth.runtimes == {"torch": "1.0"}
        await until(lambda: len(world.telemetry) >= 2)
        assert world.telemetry[-1].incarnation == 5
        assert world.telemetry[-1].round_trip_s is not None
        assert 0 <= world.telemetry[-1].stability <= 1
        assert world.telemetry[-1].text.startswith(f"{world.telemetry[-1].node}: CPU ")
    await until(lambda: world.births[-1].state == "offline")
    assert world.births[-1].incarnation == 5
    kept = world.broker.retained[TOPICS.topic("node_state", node=NODE)]
    assert decode_json(kept.payload, NodeState).state == "offline"


async def test_a_declared_share_is_what_the_birth_says(world: World) -> None:
    world.options = replace(world.options, cpus=0.05)
    async with world.agent():
        hardware = world.births[0].hardware
        assert hardware is not None
        assert hardware.cpu == 0.05


async def test_assignment_is_fetched_loaded_reported_and_run(
    world: World, runtime: FakeRuntime
) -> None:
    async with world.agent():
        world.assign(world.stage())
        await world.ready((1, 0))
        seen = [r.stages[0].state for r in world.reports if r.stages]
        assert seen[-1] == "ready"
        assert world.reports[-1].stages[0].fetched_bytes > 0
        for number in range(5):
            world.send(f"j{number}", ONES * number)
        await until(lambda: len(world.results) == 5)
        for number, result in enumerate(world.results):
            assert result.job == f"j{number}"
            assert result.failure is None
            np.testing.assert_array_equal(from_wire(result.tensors["y"]), ONES * number * 2)
            (entry,) = result.trace
            assert (entry.stage, entry.node) == (0, NODE)
            assert entry.compute_s > 0
        await until(lambda: sum(row.items for t in world.telemetry for row in t.stages) == 5)
        world.assign()
        await until(lambda: runtime.unloaded == ["g1s0"])
        assert world.states() == []


async def test_inner_stage_sends_on_with_its_time_in_the_trace(world: World) -> None:
    async with world.agent():
        world.assign(world.stage(num_stages=2))
        await world.ready((1, 0))
        world.send("j", ONES)
        await until(lambda: world.next_stage)
        (activation,) = world.next_stage
        assert (activation.job, activation.item, activation.attempt) == ("j", 0, 1)
        assert len(activation.trace) == 1
        np.testing.assert_array_equal(from_wire(activation.tensors["y"]), ONES * 2)


async def test_make_before_break(world: World, runtime: FakeRuntime) -> None:
    async with world.agent():
        old, new = world.stage(1), world.stage(2)
        world.assign(old)
        await world.ready((1, 0))
        world.assign(old, new)
        await world.ready((1, 0), (2, 0))
        world.send("a", ONES, generation=1)
        world.send("b", ONES, generation=2)
        await until(lambda: {r.job for r in world.results} == {"a", "b"})
        world.assign(new)
        await until(lambda: runtime.unloaded == ["g1s0"])
        world.send("c", ONES, generation=1)  # nobody there any more
        world.send("d", ONES, generation=2)
        await until(lambda: any(r.job == "d" for r in world.results))
        assert not any(r.job == "c" for r in world.results)


async def test_unknown_artifact_is_reported_with_the_reason(world: World) -> None:
    async with world.agent():
        stage = replace(world.stage(), graph=Blob(digest="f" * 64, size=10))
        world.assign(stage, world.stage(2))
        await until(lambda: sorted(world.states()) == [(1, 0, "failed"), (2, 0, "ready")])
        failed = next(s for s in world.reports[-1].stages if s.state == "failed")
        assert "f" * 64 in failed.reason
        # And the next assignment finds a working agent.
        world.assign(world.stage(3))
        await world.ready((3, 0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runtime": "onnx"}, "has no runtime 'onnx'"),
        ({"bad_graph": True}, "Graph"),
    ],
)
async def test_stage_that_cannot_be_loaded(
    world: World, change: dict[str, Any], words: str
) -> None:
    async with world.agent():
        stage = world.stage()
        if change.pop("bad_graph", False):
            change["graph"] = world.blob(b'{"name": 1}')
        world.assign(replace(stage, **change))
        await until(lambda: world.states() == [(1, 0, "failed")])
        assert words in world.reports[-1].stages[0].reason


async def test_load_failure_is_not_retried_until_named_again(
    world: World, runtime: FakeRuntime
) -> None:
    runtime.load_failure = StageError("weights do not fit", expected="[8]", got="[4]")
    async with world.agent():
        world.assign(world.stage())
        await until(lambda: world.states() == [(1, 0, "failed")])
        assert world.reports[-1].stages[0].reason == "weights do not fit; expected [8]; got [4]"
        runtime.load_failure = None
        world.assign(world.stage())
        await world.ready((1, 0))


async def test_older_revision_is_ignored(world: World, runtime: FakeRuntime) -> None:
    async with world.agent():
        world.assign(world.stage(), revision=10)
        await world.ready((1, 0))
        world.assign(revision=9)
        world.assign(world.stage(), world.stage(2), revision=11)
        await world.ready((1, 0), (2, 0))
        assert runtime.unloaded == []


async def test_rubbish_on_the_control_topics_is_dropped(world: World) -> None:
    async with world.agent() as agent:
        topic = TOPICS.topic("assignment", node=NODE)
        for payload in (b"", b"{", b'{"node": "n1"}', b'{"node":"n1","revision":-1}'):
            world.publish(topic, payload)
        world.publish(TOPICS.topic("orchestrator_state"), b"nonsense")
        world.assign(world.stage(), node="another")
        await until(lambda: agent.drops.counts["malformed"] == 4)
        world.assign(world.stage())
        await world.ready((1, 0))


async def test_failures_become_answers(world: World, runtime: FakeRuntime) -> None:
    async with world.agent():
        world.assign(world.stage(num_stages=3), world.stage(index=1, num_stages=3))
        await world.ready((1, 0), (1, 1))

        async def answer_to(send: Callable[[], None]) -> StageResult:
            count = len(world.results)
            send()
            await until(lambda: len(world.results) > count)
            return world.results[-1]

        blank = Activation(job="a", item=3, attempt=2)
        bad_inputs: list[tuple[Activation, str]] = [
            (replace(blank, tensors={"x": to_wire(ONES[:, :7].copy())}), "[1, 8]"),
            (replace(blank, tensors={"x": to_wire(ONES.astype(np.float64))}), "float32"),
            (replace(blank, tensors={"x": to_wire(ONES * np.nan)}), "finite"),
            (blank, "x: "),
            (replace(blank, body=memoryview(b"hello"), content_type="text/plain"), "image/*"),
            (replace(blank, body=memoryview(b"hello"), content_type="application/x-npy"), "npy"),
            (replace(blank, body=memoryview(b"\xff\xd8"), content_type="image/jpeg"), "x: "),
        ]
        for activation, expected in bad_inputs:
            result = await answer_to(partial(world.activate, activation))
            assert result.failure is not None
            assert (result.job, result.item, result.attempt) == ("a", 3, 2)
            assert result.failure.code is ErrorCode.BAD_INPUT
            assert not result.failure.retryable
            assert expected in (result.failure.expected or "")

        runtime.failure = StageError("out of memory", expected="1 GB", got="0")
        result = await answer_to(lambda: world.send("b", ONES, stage=1))
        assert result.failure is not None
        assert result.failure.code is ErrorCode.INTERNAL
        assert result.failure.retryable
        assert "stage 1 of m on node n1 failed: StageError: out of memory" in result.failure.message
        assert result.failure.expected == "1 GB"
        runtime.failure = None

        topic = TOPICS.topic("activation", pipeline="m-0", generation=1, stage=0)
        named = bytes(encode_msgpack({"job": "c", "item": 1, "attempt": 1, "tensors": 5}))
        result = await answer_to(lambda: world.publish(topic, named))
        assert (result.job, result.item) == ("c", 1)
        assert result.failure is not None
        assert result.failure.retryable

        # Nobody can be answered here; the next one is.
        world.publish(topic, b"\xc1\xc1")
        world.send("d", ONES)
        await until(lambda: "d" in [activation.job for activation in world.next_stage])


async def test_image_and_npy_bodies(world: World) -> None:
    import io

    from PIL import Image

    async with world.agent():
        image_stage = replace(
            world.stage(graph=graph_of("image", (1, 3, 224, 224))),
            preprocess=world.blob(encode_json(IMAGENET)),
        )
        world.assign(image_stage)
        await world.ready((1, 0))
        file = io.BytesIO()
        Image.new("RGB", (300, 260), (255, 0, 0)).save(file, "JPEG")
        array = np.ones((1, 3, 224, 224), np.float32)
        saved = io.BytesIO()
        np.save(saved, array)
        for body, kind in (
            (file.getvalue(), "image/jpeg"),
            (saved.getvalue(), "application/x-npy"),
        ):
            world.activate(
                Activation(job=kind, item=0, attempt=1, body=memoryview(body), content_type=kind)
            )
        await until(lambda: len(world.results) == 2)
        image, npy = world.results
        assert image.failure is None
        assert npy.failure is None
        assert from_wire(image.tensors["y"]).shape == (1, 3, 224, 224)
        np.testing.assert_array_equal(from_wire(npy.tensors["y"]), array * 2)


async def test_new_orchestrator_hears_a_report(world: World) -> None:
    async with world.agent():
        world.assign(world.stage())
        await world.ready((1, 0))
        count = len(world.reports)
        state = OrchestratorState(state="online", incarnation=77)
        world.publish(TOPICS.topic("orchestrator_state"), encode_json(state), retain=True)
        await until(lambda: len(world.reports) > count)
        assert world.reports[-1].stages[0].state == "ready"


async def test_born_again_after_a_cut_with_stages_kept(world: World, runtime: FakeRuntime) -> None:
    async with world.agent():
        world.assign(world.stage())
        await world.ready((1, 0))
        births = len(world.births)
        world.broker.cut("agent")
        world.broker.cut("data")
        await until(lambda: world.births[-1].state == "lost")
        world.broker.mend("agent")
        world.broker.mend("data")
        await until(lambda: len(world.births) >= births + 2 and world.births[-1].state == "online")
        assert {birth.incarnation for birth in world.births} == {5}
        world.send("j", ONES)
        await until(lambda: world.results)
        assert runtime.loaded == ["g1s0"]


async def test_another_agent_of_this_name_ends_the_older(world: World) -> None:
    running = asyncio.create_task(world.make_agent(5).run(asyncio.Event()))
    await until(lambda: world.births)
    newer = replace(world.births[0], incarnation=6, host="elsewhere", pid=42)
    world.publish(TOPICS.topic("node_state", node=NODE), encode_json(newer), retain=True)
    with pytest.raises(
        ConfigurationError, match=r"taken the name 'n1' \(process 42 on elsewhere\)"
    ):
        await running
    # It left without a word: the name is the other's.
    kept = world.broker.retained[TOPICS.topic("node_state", node=NODE)]
    assert decode_json(kept.payload, NodeState).incarnation == 6


async def test_of_two_born_in_the_same_millisecond_one_stays(world: World) -> None:
    running = asyncio.create_task(world.make_agent(5).run(asyncio.Event()))
    await until(lambda: world.births)
    topic = TOPICS.topic("node_state", node=NODE)
    world.publish(topic, encode_json(replace(world.births[0], host="")), retain=True)
    world.publish(topic, encode_json(replace(world.births[0], host="\uffff", pid=42)), retain=True)
    with pytest.raises(ConfigurationError, match="taken the name"):
        await running


@pytest.mark.parametrize("late", [NodeState(state="lost", node=NODE, incarnation=4), None])
async def test_what_is_said_of_it_wrongly_it_puts_right(
    world: World, late: NodeState | None
) -> None:
    """The will of an earlier life, come late; or somebody who cleared the topic."""
    async with world.agent(5):
        topic = TOPICS.topic("node_state", node=NODE)
        world.publish(topic, b"" if late is None else encode_json(late), retain=True)
        await until(
            lambda: (
                (kept := world.broker.retained.get(topic)) is not None
                and decode_json(kept.payload, NodeState).incarnation == 5
            )
        )
        assert world.births[-1].state == "online"


async def test_it_answers_who_asks_whether_it_is_there(world: World) -> None:
    async with world.agent(5):
        world.publish(TOPICS.topic("ping", node=NODE), encode_json(Ping(node=NODE)))
        await until(lambda: world.reports)
        assert (world.reports[0].incarnation, world.reports[0].stages) == (5, [])


async def test_clock_that_went_back(world: World) -> None:
    """An earlier life had a larger number: this one says which, so that the next exceeds it."""
    earlier = NodeState(state="lost", node=NODE, incarnation=99)
    world.publish(TOPICS.topic("node_state", node=NODE), encode_json(earlier), retain=True)
    assert await world.make_agent(5).run(asyncio.Event()) == 99


async def test_lossy_reordering_repeating_wire(tmp_path: Path, runtime: FakeRuntime) -> None:
    broker = FakeBroker(
        seed=11,
        mischief=(
            Mischief(pattern="test/artifact/#", lose_ratio=0.1, repeat_ratio=0.2, reorder=True),
            Mischief(pattern="test/node/#", repeat_ratio=0.5),
            Mischief(pattern="test/pipeline/#", repeat_ratio=0.5, reorder=True),
        ),
    )
    world = World(tmp_path, broker)
    async with world.orchestrator(), world.agent():
        for revision in range(1, 6):
            world.assign(*(world.stage(generation) for generation in range(revision, revision + 2)))
        await world.ready((5, 0), (6, 0))
        for number in range(20):
            world.send(f"j{number}", ONES * number, generation=6)
        wanted = {f"j{number}" for number in range(20)}
        await until(lambda: {result.job for result in world.results} == wanted)
        assert all(result.failure is None for result in world.results)
        assert set(runtime.unloaded) <= {f"g{generation}s0" for generation in range(1, 5)}


async def test_stage_thread_that_dies_ends_the_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = world.make_agent()
    running = asyncio.create_task(agent.run(asyncio.Event()))
    await until(lambda: world.births)
    world.assign(world.stage())
    await world.ready((1, 0))

    def broken(*args: float) -> float:
        raise RuntimeError("broken")

    monkeypatch.setattr(StageThread, "_run_next", broken)
    world.send("j", ONES)
    with pytest.raises(StageError, match="broken"):
        await running


async def test_a_preloading_agent_is_born_when_its_runtime_is_there(
    world: World, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open = threading.Event()

    def slowly(_: str) -> FakeRuntime:
        assert may_open.wait(10)
        # In the loader's thread, before the agent ever connects.
        assert not world.births
        return runtime

    monkeypatch.setattr(edge_agent.loader, "open_runtime", slowly)
    world.options = replace(world.options, preload=True)
    asyncio.get_running_loop().call_later(0.05, may_open.set)
    async with world.agent():
        assert may_open.is_set()
        world.assign(world.stage())
        await world.ready((1, 0))
