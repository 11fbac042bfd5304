"""The agent as a real process on a real Mosquitto, with an orchestrator that only serves blobs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.launcher import Broker
from edge_agent.calibration import CalibrationCache, calibrate
from edge_agent.incarnation import next_incarnation
from edge_agent.probe import Probe
from edge_agent.runtimes import available_runtimes
from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack
from shared.errors import ConfigurationError
from shared.graph import Graph, GraphBuilder
from shared.messages.job import Activation, StageResult
from shared.messages.node import NodeState, Telemetry
from shared.messages.operation import OrchestratorState
from shared.messages.stage import Assignment, Blob, Report, StageAssignment
from shared.tensor import from_wire, to_wire
from shared.topics import Topics
from shared.transfer import MemoryBlobs, Transfers
from tests.broker.conftest import until

TOPICS = Topics("test/agent")
NODE = "n1"
AGENT = """
import asyncio, logging, sys
from pathlib import Path
from edge_agent.options import AgentOptions
from edge_agent.service import run_agent
from shared.bus import BrokerUrl
from shared.errors import Amp4ecError
logging.basicConfig(level="INFO", format="%(name)s %(message)s")
url, directory, calibrate = sys.argv[1:]
options = AgentOptions(
    broker=BrokerUrl.parse(url), node="n1", root="test/agent", cache_dir=Path(directory),
    telemetry_interval_s=0.1, calibrate=calibrate == "yes",
)
try:
    sys.exit(asyncio.run(run_agent(options)))
except Amp4ecError as error:
    sys.exit(f"refused: {error}")
"""


def tiny(index: int) -> Graph:
    """y = relu(x + x), twice: [1, 8] to [1, 8]; inputs and outputs named as at a cut."""
    builder = GraphBuilder(f"tiny{index}")
    x = builder.input(f"t{index}", (1, 8))
    doubled = builder.node("add", x, x, shape=(1, 8), alpha=1.0)
    return builder.build(builder.node("relu", doubled, shape=(1, 8), name=f"t{index + 1}"))


class Orchestrator:
    """Listens, and serves blobs."""

    def __init__(self, bus: MqttControlBus, blobs: dict[str, bytes]) -> None:
        self.bus = bus
        self.blobs = blobs
        self.states: list[NodeState] = []
        self.telemetry: list[Telemetry] = []
        self.reports: list[Report] = []
        self.results: list[StageResult] = []

    def blob(self, data: bytes) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return Blob(digest=digest, size=len(data))

    def online(self) -> list[NodeState]:
        return [state for state in self.states if state.state == "online"]

    async def assign(self, revision: int, *stages: StageAssignment) -> None:
        value = Assignment(node=NODE, revision=revision, stages=list(stages))
        await self.bus.publish(
            TOPICS.topic("assignment", node=NODE), encode_json(value), retain=True
        )

    def stage(self, index: int) -> StageAssignment:
        return StageAssignment(
            model="tiny", pipeline="tiny-0", generation=1, stage=index, num_stages=2,
            runtime="torch", graph=self.blob(encode_json(tiny(index))), weights=[],
        )  # fmt: skip

    async def send(self, job: str, value: float) -> None:
        tensors = {"t0": to_wire(np.full((1, 8), value, np.float32))}
        activation = Activation(job=job, item=0, attempt=1, tensors=tensors)
        await self.bus.publish(
            TOPICS.topic("activation", pipeline="tiny-0", generation=1, stage=0),
            bytes(encode_msgpack(activation)),
        )


@pytest.fixture
async def orchestrator(url: BrokerUrl) -> AsyncIterator[Orchestrator]:
    blobs: dict[str, bytes] = {}
    bus = MqttControlBus(url, client_id="orchestrator")
    transfers = Transfers(bus, TOPICS, "orchestrator", source=MemoryBlobs(blobs))

    async def announce() -> None:
        state = OrchestratorState(state="online", incarnation=1)
        topic = TOPICS.topic("orchestrator_state")
        await bus.publish(topic, encode_json(state), retain=True)

    bus.on_connect(announce)
    async with bus, transfers:
        heard = Orchestrator(bus, blobs)
        for name in ("node_state", "telemetry", "report", "stage_result"):
            await bus.subscribe(TOPICS.pattern(name))

        async def read() -> None:
            async for message in bus.messages():
                name, levels = TOPICS.parse(message.topic)
                match name:
                    case "node_state":
                        heard.states.append(decode_json(message.payload, NodeState))
                    case "telemetry":
                        heard.telemetry.append(decode_json(message.payload, Telemetry))
                    case "report":
                        heard.reports.append(decode_json(message.payload, Report))
                    case "stage_result":
                        heard.results.append(decode_msgpack(message.payload, StageResult))
                    case _:
                        transfers.handle(name, levels, message)

        reader = asyncio.create_task(read())
        await until(lambda: bus.connected)
        yield heard
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


@contextlib.asynccontextmanager
async def process(
    url: str, directory: Path, *, calibrate: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent's process; killed at the end if it has not ended by then."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, url, str(directory), "yes" if calibrate else "no",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def until_born(orchestrator: Orchestrator, count: int = 1) -> NodeState:
    await until(lambda: len(orchestrator.online()) >= count, 30)
    return orchestrator.online()[-1]


async def test_birth_telemetry_clean_leave(
    broker: Broker, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    async with process(broker.url, tmp_path / "a") as child:
        birth = await until_born(orchestrator)
        assert birth.pid == child.pid
        assert birth.runtimes == available_runtimes()
        await until(lambda: len(orchestrator.telemetry) >= 3)
        sample = orchestrator.telemetry[-1]
        assert sample.incarnation == birth.incarnation
        assert sample.round_trip_s is not None
        assert sample.round_trip_s < 0.5
        child.terminate()
        assert await asyncio.wait_for(child.wait(), 10) == 0
    await until(lambda: orchestrator.states[-1].state == "offline")
    assert orchestrator.states[-1].incarnation == birth.incarnation
    assert not any(state.state == "lost" for state in orchestrator.states)


async def test_idle_agent_is_light(
    broker: Broker, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    """Under 60 MB before a runtime is loaded. (CPU is a benchmark's business: this machine is shared.)"""
    async with process(broker.url, tmp_path / "a"):
        await until_born(orchestrator)
        await until(lambda: len(orchestrator.telemetry) >= 3)
        if not _memory_is_limited():
            assert orchestrator.telemetry[-1].memory_used_bytes < 60e6


def _memory_is_limited() -> bool:
    # Then the telemetry's memory is the cgroup's, this test's own included.
    import psutil

    return Probe().memory()[1] < int(psutil.virtual_memory().total)


async def test_sigkill_publishes_the_will_and_the_next_life_is_later(
    broker: Broker, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    async with process(broker.url, tmp_path / "a") as child:
        first = await until_born(orchestrator)
        child.kill()
        await until(lambda: orchestrator.states[-1].state == "lost")
        assert orchestrator.states[-1].incarnation == first.incarnation
    async with process(broker.url, tmp_path / "a"):
        second = await until_born(orchestrator, 2)
        assert second.incarnation > first.incarnation
        # The late will of the first life changes nothing for the second: it is told by its number.
        late = replace(first, state="lost")
        await orchestrator.bus.publish(
            TOPICS.topic("node_state", node=NODE), encode_json(late), retain=True
        )
        count = len(orchestrator.telemetry)
        await until(lambda: len(orchestrator.telemetry) >= count + 3)
        assert orchestrator.telemetry[-1].incarnation == second.incarnation


async def test_stages_are_served_end_to_end_and_survive_a_broker_restart(
    broker: Broker, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    async with process(broker.url, tmp_path / "a") as child:
        await until_born(orchestrator)
        await orchestrator.assign(1, orchestrator.stage(0), orchestrator.stage(1))

        def ready() -> bool:
            rows = orchestrator.reports[-1].stages if orchestrator.reports else []
            assert not any(row.state == "failed" for row in rows), rows
            return [row.state for row in rows] == ["ready", "ready"]

        await until(ready, 60)
        for number in range(10):
            await orchestrator.send(f"j{number}", number)
        await until(lambda: len(orchestrator.results) == 10)
        for number, result in enumerate(orchestrator.results):
            assert result.failure is None
            np.testing.assert_array_equal(
                from_wire(result.tensors["t2"]), np.full((1, 8), 4 * number, np.float32)
            )
            assert [entry.stage for entry in result.trace] == [0, 1]

        births = len(orchestrator.online())
        reports = len(orchestrator.reports)
        await broker.kill()
        await broker.start()
        await until_born(orchestrator, births + 1)
        assert len({state.incarnation for state in orchestrator.states}) == 1
        await until(lambda: len(orchestrator.reports) > reports)
        assert ready()

        # Its data connection comes back by itself, too; a job that was sent too early is sent again.
        async def answered() -> None:
            while not any(result.job == "after" for result in orchestrator.results):
                await orchestrator.send("after", 1.0)
                with contextlib.suppress(TimeoutError):
                    await until(lambda: len(orchestrator.results) > 10, 0.5)

        await asyncio.wait_for(answered(), 20)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 15) == 0


async def test_the_name_of_a_frozen_agent_is_taken_and_it_says_so_when_it_wakes(
    broker: Broker, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    async with process(broker.url, tmp_path / "a") as first:
        old = await until_born(orchestrator)
        first.send_signal(signal.SIGSTOP)
        async with process(broker.url, tmp_path / "b") as second:
            await until(lambda: orchestrator.online()[-1].incarnation > old.incarnation, 30)
            first.send_signal(signal.SIGCONT)
            _, err = await asyncio.wait_for(first.communicate(), 30)
            assert first.returncode == 1
            assert b"refused: another agent has taken the name 'n1'" in err
            assert second.returncode is None
            await until(
                lambda: (
                    orchestrator.states[-1].state == "online"
                    and orchestrator.states[-1].incarnation > old.incarnation
                )
            )


async def test_calibration_follows_the_birth_and_is_cached(
    broker: Broker, orchestrator: Orchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    async with process(broker.url, tmp_path / "a", calibrate=True) as child:
        first = await until_born(orchestrator)
        assert first.calibration == {}
        second = await asyncio.wait_for(_birth_with_calibration(orchestrator), 90)
        assert second.incarnation == first.incarnation
        assert second.calibration["torch"].runtime_bytes > 50e6
        child.terminate()
        await asyncio.wait_for(child.wait(), 10)
    births = len(orchestrator.online())
    # Another agent of the same user on the same device goes by the same figures.
    async with process(broker.url, tmp_path / "b", calibrate=True):
        third = await until_born(orchestrator, births + 1)
        assert third.calibration["torch"].cached
        assert third.calibration["torch"].seconds == second.calibration["torch"].seconds


async def _birth_with_calibration(orchestrator: Orchestrator) -> NodeState:
    """The first that has torch's; each runtime is said as soon as it is measured."""
    await until(lambda: any("torch" in state.calibration for state in orchestrator.online()), 90)
    return next(state for state in orchestrator.online() if "torch" in state.calibration)


def test_calibration_in_this_process(tmp_path: Path) -> None:
    result = calibrate("torch")
    assert set(result.seconds) == {"conv_dense", "conv_depthwise", "matmul", "memory", "overhead"}
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.measured_in_s < 10
    cache = CalibrationCache(tmp_path)
    hardware = Probe().hardware()
    assert cache.get("torch", "1", hardware) is None
    cache.put("torch", "1", hardware, result)
    kept = cache.get("torch", "1", hardware)
    assert kept is not None
    assert kept.cached
    assert kept.seconds == result.seconds
    # CPU seconds do not depend on the share, but on the device.
    assert cache.get("torch", "1", replace(hardware, cpu=0.1)) == kept
    changed: Any = (("torch", "2", hardware), ("torch", "1", replace(hardware, cpu_model="other")))
    assert [cache.get(*other) for other in changed] == [None, None]
    next(tmp_path.glob("*.json")).write_text("rubbish")
    assert cache.get("torch", "1", hardware) is None


def test_incarnation_grows_whatever_the_clock_does(tmp_path: Path) -> None:
    grown: list[int] = []
    step: Callable[[int], None] = lambda now: grown.append(next_incarnation(tmp_path, now))  # noqa: E731
    for now in (1000, 1000, 10, 5000):
        step(now)
    assert grown == [1000, 1001, 1002, 5000]
    assert next_incarnation(tmp_path, 6000, above=9000) == 9001
    (tmp_path / "incarnation").write_text("rubbish")
    assert next_incarnation(tmp_path, 7000) == 7000
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        next_incarnation(blocked / "directory", 1)
