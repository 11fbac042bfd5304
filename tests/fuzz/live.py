"""`python -m tests.fuzz live`: a cluster of real processes under attack, with good jobs flowing through it.

Checked: no process ended, every good job was answered, and rightly; resident memory and file descriptors of
each process grew within bounds; afterwards `status` shows what was there before, and a new model is served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import psutil

from deploy.local import LocalCluster
from deploy.photo import PHOTO
from shared.bus import Message, MqttControlBus
from shared.client import Client
from shared.codec import decode_json, encode_json
from shared.errors import Amp4ecError, ErrorCode, JobError
from shared.messages.node import NodeState
from shared.tensor import Array
from shared.topics import Topics
from tests.benchmarks.tiny_model import NAME, serve_tiny, tiny_outputs
from tests.fakes.hostile import HostileClient, publish_packet
from tests.fuzz.attack import Attack, Shot
from tests.fuzz.raw_packets import attack_broker, leave_wills

MOST_GROWTH_BYTES = 64 << 20
"""Of a process beyond the most that it held in the first half of the attack: that is what allocators keep of
what was large once, Mosquitto's 140 MB after messages of 5 MB."""
MOST_GROWTH_IN_ALL_BYTES = 400 << 20
MOST_NEW_FILES = 8
TOLERANCE = 1e-5
_AGENTS = 2
_GOOD_CLIENTS = 2
_INPUTS = 5
_TIMEOUT_S = 90.0
_WARM_UP_S = 3.0
_SETTLE_S = 60.0
_RECORDED_PER_ROW = 40
_SHOTS_PER_BREATH = 20


@dataclass(slots=True, kw_only=True)
class ProcessRow:
    """A process: bytes resident and open files before and after, and resident over time."""

    name: str
    before_bytes: int
    after_bytes: int = 0
    before_files: int = 0
    after_files: int = 0
    alive: bool = True
    resident_bytes: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class LiveReport:
    """A whole run; `verdicts` are empty where a promise was kept, and say how it was broken."""

    seed: int
    messages: int = 0
    seconds: float = 0.0
    shots: dict[str, int] = field(default_factory=dict)
    hung_up: int = 0
    """How often the broker ended the attacker's connection."""
    broken_connections: int = 0
    jobs: int = 0
    repeats: int = 0
    """Good jobs that were told `overloaded` and asked again."""
    slowest_job_s: float = 0.0
    processes: list[ProcessRow] = field(default_factory=list)
    verdicts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.verdicts.values())


class Live:
    """An attack on a running cluster that serves the tiny model (see `serving`)."""

    def __init__(self, cluster: LocalCluster, seed: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._topics = Topics(cluster.root)
        self._say = say
        self._over = asyncio.Event()
        self._wrong: list[str] = []
        self._report = LiveReport(seed=seed)
        self._inputs = [
            np.random.default_rng(seed + index).random((1, 3, 224, 224), np.float32)
            for index in range(_INPUTS)
        ]
        self._expected = [tiny_outputs(array) for array in self._inputs]

    async def run(self, messages: int) -> LiveReport:
        """Attack with so many messages, and look what became of the cluster."""
        report, began = self._report, time.monotonic()
        before = await self._cluster.wait_for_model(NAME)
        births = await self._births()
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(self._cluster.client())
                for _ in range(_GOOD_CLIENTS)
            ]
            recorded = await self._record(clients[0])
            self._say(
                f"recorded {sum(map(len, recorded.values()))} messages on {len(recorded)} rows"
            )
            report.processes = [_look(name, pid) for name, pid in self._pids().items()]
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(self._good_jobs(client))
                watching = group.create_task(self._watch())
                try:
                    await self._attack(recorded, messages)
                    await self._settle()
                finally:
                    self._over.set()
                    watching.cancel()
        report.verdicts = {
            "a wrong answer, or none": self._wrong,
            "a process ended": [row.name for row in report.processes if not row.alive],
            "memory grew": [_growth(row) for row in report.processes if _grew(row)],
            "files stayed open": [_files(row) for row in report.processes if _leaks(row)],
            "the status is not what it was": await self._changes(births, before.pipelines != []),
            "no new model could be served": await self._serve_another(),
        }
        report.seconds = time.monotonic() - began
        return report

    # --- good jobs

    async def _good_jobs(self, client: Client) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            which = number % _INPUTS
            await self._good_job(client, which)

    async def _good_job(self, client: Client, which: int) -> None:
        began = time.monotonic()
        try:
            result = await self._ask(client, self._inputs[which], began + _TIMEOUT_S)
        except Amp4ecError as error:
            self._wrong.append(f"job {self._report.jobs}: {error}")
            return
        self._report.jobs += 1
        self._report.slowest_job_s = max(self._report.slowest_job_s, time.monotonic() - began)
        expected = self._expected[which]
        off_ratio = float(np.abs(result - expected).max() / np.abs(expected).max())
        if not off_ratio <= TOLERANCE:
            self._wrong.append(
                f"job {self._report.jobs}: off by {off_ratio:.1e} of the largest output"
            )

    async def _ask(self, client: Client, array: Array, deadline: float) -> Array:
        while True:
            try:
                left = deadline - time.monotonic()
                result = await client.infer(NAME, array, tensors=True, timeout_s=max(left, 0.1))
            except JobError as error:
                # Refused in time is an answer, too: it says when to ask again.
                if error.code is not ErrorCode.OVERLOADED or time.monotonic() > deadline:
                    raise
                self._report.repeats += 1
                await asyncio.sleep(min(error.retry_after_s or 0.1, 1.0))
                continue
            assert result.tensors is not None
            (output,) = result.tensors.values()
            return output

    # --- the attack

    async def _record(self, client: Client) -> dict[str, list[Message]]:
        """Everything that is said while a few jobs run."""
        recorded: dict[str, list[Message]] = defaultdict(list)
        bus = MqttControlBus(self._cluster.url, client_id="recorder", first_connect_timeout_s=10)
        async with bus:
            await bus.subscribe(f"{self._cluster.root}/#")

            async def listen() -> None:
                async for message in bus.messages():
                    name, _ = self._topics.parse(message.topic)
                    if len(recorded[name]) < _RECORDED_PER_ROW:
                        recorded[name].append(message)

            listening = asyncio.create_task(listen(), name="record")
            until = time.monotonic() + _WARM_UP_S
            while time.monotonic() < until:
                for which in range(_INPUTS):
                    await self._good_job(client, which)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return dict(recorded)

    async def _attack(self, recorded: dict[str, list[Message]], messages: int) -> None:
        attack = Attack(self._topics, recorded, [PHOTO.read_bytes()], self._report.seed)
        shots: Counter[str] = Counter()
        gun = _Gun(self._cluster.broker.port)
        port, seed = self._cluster.broker.port, self._report.seed
        try:
            for number, shot in enumerate(islice(attack.shots(), messages)):
                await asyncio.to_thread(
                    gun.fire, shot
                ) if number % _SHOTS_PER_BREATH == 0 else gun.fire(shot)
                shots[shot.kind] += 1
                if number % _SHOTS_PER_BREATH == 0:
                    await asyncio.sleep(0.005)
                if number % 1000 == 999:
                    broken = await asyncio.to_thread(attack_broker, port, 20, seed + number)
                    self._report.broken_connections += broken
                    await asyncio.to_thread(leave_wills, port, self._wills(recorded))
                    self._say(f"{number + 1:,} messages, {self._report.jobs} good jobs")
            for topic in sorted(attack.retained):
                gun.fire(Shot("clear", topic, b"", qos=1, retain=True))
        finally:
            gun.close()
        self._report.messages, self._report.shots = messages, dict(sorted(shots.items()))
        self._report.hung_up = gun.hung_up

    def _wills(self, recorded: dict[str, list[Message]]) -> list[tuple[str, bytes]]:
        """Wills of earlier lives of real nodes, of an invented one, and of nothing sensible."""
        born = [m for m in recorded.get("node_state", []) if m.payload]
        wills = [(self._topics.topic("node_state", node="evil-9"), b"\xff" * 100)]
        for message in born[:_AGENTS]:
            state = decode_json(message.payload, NodeState)
            late = {
                "state": "lost",
                "node": state.node,
                "incarnation": max(0, state.incarnation - 1),
                "v": 1,
            }
            wills.append((message.topic, encode_json(late)))
        return wills

    # --- what became of it

    def _pids(self) -> dict[str, int]:
        cluster = self._cluster
        assert cluster.orchestrator is not None
        assert cluster.broker.pid is not None
        agents = {name: agent.pid for name, agent in cluster.agents.items()}
        return {"broker": cluster.broker.pid, "orchestrator": cluster.orchestrator.pid, **agents}

    async def _watch(self) -> None:
        pids = self._pids()
        while True:
            for row in self._report.processes:
                with contextlib.suppress(psutil.Error):
                    row.resident_bytes.append(psutil.Process(pids[row.name]).memory_info().rss)
            await asyncio.sleep(1.0)

    async def _settle(self) -> None:
        """Until what is queued has been worked off, and processes gave back what they will."""
        pids, deadline = self._pids(), time.monotonic() + _SETTLE_S
        while True:
            await asyncio.sleep(1.0)
            for row in self._report.processes:
                try:
                    now = _look(row.name, pids[row.name])
                except psutil.Error:
                    row.alive = False
                    continue
                row.alive = now.alive
                row.after_bytes, row.after_files = now.before_bytes, now.before_files
            if time.monotonic() > deadline or not any(
                _grew(row) or _leaks(row) for row in self._report.processes
            ):
                return

    async def _births(self) -> dict[str, int]:
        async with self._cluster.client() as client:
            status = await client.status(wait_s=0.0)
        return {view.state.node: view.state.incarnation for view in status.online}

    async def _changes(self, births: dict[str, int], served: bool) -> list[str]:
        changes: list[str] = []
        async with self._cluster.client() as client:
            status = await client.status()
            now = {view.state.node: view.state.incarnation for view in status.online}
            for node, incarnation in births.items():
                if now.get(node) != incarnation:
                    changes.append(
                        f"{node}: incarnation {incarnation} before, {now.get(node)} after"
                    )
            state = status.model(NAME)
            if served and (state is None or state.state != "serving"):
                changes.append(f"{NAME} is {None if state is None else state.state}")
            if status.orchestrator is None or status.orchestrator.state != "online":
                changes.append("no orchestrator is online")
            try:
                for which in range(_INPUTS):
                    await self._good_job(client, which)
            except Amp4ecError as error:
                changes.append(str(error))
        return changes

    async def _serve_another(self) -> list[str]:
        try:
            await serve_tiny(self._say, self._cluster, 1, name="after", runtime="onnxruntime")
            async with self._cluster.client() as client:
                await client.infer("after", self._inputs[0])
        except Amp4ecError as error:
            return [str(error)]
        return []


class _Gun:
    """One connection that fires, and is made again whenever the broker hangs up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client: HostileClient | None = None
        self.hung_up = 0

    def fire(self, shot: Shot) -> None:
        """Send; the broker's acknowledgements are read and forgotten."""
        if self._client is None:
            self._client = HostileClient(self._port, b"evil-gun")
        try:
            self._client.send(
                publish_packet(
                    shot.topic,
                    shot.payload,
                    properties=shot.properties,
                    qos=shot.qos,
                    retain=shot.retain,
                )
            )
            self._client.drain()
        except OSError:
            self.hung_up += 1
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.socket.close()
            self._client = None


def _look(name: str, pid: int) -> ProcessRow:
    process = psutil.Process(pid)
    return ProcessRow(
        name=name,
        before_bytes=process.memory_info().rss,
        before_files=process.num_fds(),
        alive=process.status() != psutil.STATUS_ZOMBIE,
    )


def _grew(row: ProcessRow) -> bool:
    first_half = row.resident_bytes[: len(row.resident_bytes) // 2]
    level = max((row.before_bytes, *first_half))
    return (
        row.after_bytes - level > MOST_GROWTH_BYTES
        or row.after_bytes - row.before_bytes > MOST_GROWTH_IN_ALL_BYTES
    )


def _leaks(row: ProcessRow) -> bool:
    return row.after_files - row.before_files > MOST_NEW_FILES


def _growth(row: ProcessRow) -> str:
    return f"{row.name}: {row.before_bytes / 1e6:.0f} -> {row.after_bytes / 1e6:.0f} MB"


def _files(row: ProcessRow) -> str:
    return f"{row.name}: {row.before_files} -> {row.after_files}"


@contextlib.asynccontextmanager
async def serving(directory: Path, say: Callable[[str], None]) -> AsyncIterator[LocalCluster]:
    """A cluster of ONNX Runtime agents that serves the tiny model in two stages."""
    cluster = LocalCluster(
        directory,
        agents=_AGENTS,
        agent_arguments=("--runtime", "onnxruntime", "--preload"),
        log_level="warning",
    )
    async with cluster:
        await cluster.wait_for_nodes()
        await serve_tiny(say, cluster, 2, runtime="onnxruntime")
        yield cluster


async def _run(messages: int, seed: int, directory: Path | None) -> LiveReport:
    def say(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        async with serving(directory or Path(folder), say) as cluster:
            return await Live(cluster, seed, say).run(messages)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz live", description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="keep the processes' logs here")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--draw", type=Path, help="draw memory over time here (PNG or SVG)")
    options = parser.parse_args(arguments)
    report = asyncio.run(_run(options.messages, options.seed, options.directory))
    print(
        f"\n{report.messages:,} hostile messages, {report.jobs:,} good jobs in {report.seconds:.0f} s"
    )
    print(f"slowest good job {report.slowest_job_s:.1f} s, asked again {report.repeats} times")
    for row in report.processes:
        print(f"  {_growth(row)}; files {row.before_files} -> {row.after_files}")
    for promise, broken in report.verdicts.items():
        print(
            f"{'broken' if broken else 'kept':>7}: not {promise}"
            + "".join(f"\n  {t}" for t in broken[:10])
        )
    if options.json is not None:
        options.json.write_bytes(encode_json(report))
    if options.draw is not None:
        from tests.fuzz.drawing import draw_live

        draw_live(report, options.draw)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
