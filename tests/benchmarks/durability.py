"""What keeps accepted jobs over a kill, and what each piece of it costs a job: latency at p50, and CPU.

A dispatcher per setting, each a process of its own, with its own root topic: nothing kept; acknowledged only
after the answer; the broker saves; the job store as it ships (what is answered within 0.2 s is not written),
with every job written at once, and written to the disk itself. This process is client and stage in one: it
sends a job, takes the activation, sends the result, takes the answer, so that what is left is the dispatcher
and the broker. The settings take turns, job by job.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import numpy as np

from broker.config import BrokerConfig
from broker.launcher import Broker
from deploy.peer import Peer
from shared.bus import BrokerUrl, MqttDataBus, Properties
from shared.codec import decode_msgpack, encode_json, encode_msgpack
from shared.errors import BrokerUnreachableError
from shared.messages.job import Activation, StageResult, StageTime
from shared.tensor import to_wire
from shared.topics import Topics
from tests.benchmarks.context import Context
from tests.benchmarks.durable_dispatcher import GENERATION, MODEL, PIPELINE, Setting
from tests.benchmarks.payloads import jpeg_input, tensor_input
from tests.benchmarks.processes import cpu_s
from tests.benchmarks.report import Bar, Row

_METHOD = (
    "a job at a time, from publication to answer, less this process's time as a stage; in turns"
)
_CPU = "dispatcher's process CPU over all jobs of the run / their number"
_BAR_MS = 1.0
_JOB_S = 30.0
_LOOK_S = 1.0
_PARTS = 10
_NOTHING = "nothing is kept"
_SHIPPED = "as shipped: and the job store, after 0.2 s"


async def run(context: Context) -> list[Row]:
    """See the module."""
    jobs = context.choose(60, 300)
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        forgets, saves = [
            await stack.enter_async_context(
                Broker(directory=context.directory / name, config=config)
            )
            for name, config in (
                ("forgets", BrokerConfig(persistence_dir=None)),
                ("saves", BrokerConfig(autosave_interval_s=1)),
            )
        ]
        lanes = {}
        for number, (name, setting) in enumerate(_settings(forgets.url, saves.url).items()):
            store = str(context.directory / f"jobs-{number}.sqlite3") if setting.store else ""
            own = replace(setting, root=f"bench-{number}", store=store)
            peer = await Peer.start(
                "tests.benchmarks.durable_dispatcher", encode_json(own).decode()
            )
            await stack.enter_async_context(peer)
            lanes[name] = _Lane(own, peer.pid)
            stack.callback(lanes[name].close)
        for kind, payload in {
            "JPEG of 47 KB": jpeg_input(),
            "tensor of 602 KB": tensor_input(),
        }.items():
            context.say(f"durability: {jobs} jobs by each of {len(lanes)} settings, {kind}")
            rows += _rows(kind, *await asyncio.to_thread(_measure, lanes, payload, jobs))
    return rows


def _settings(forgets: str, saves: str) -> dict[str, Setting]:
    """Each adds to the one before."""
    nothing = Setting(broker=forgets, root="", manual_ack=False)
    acknowledged = replace(nothing, manual_ack=True)
    saved = replace(acknowledged, broker=saves)
    shipped = replace(saved, store="yes")
    at_once = replace(shipped, after_s=0.001)
    return {
        _NOTHING: nothing,
        "acknowledged with the answer": acknowledged,
        "and the broker saves, each second": saved,
        _SHIPPED: shipped,
        "and every job at once": at_once,
        "and each to the disk itself (synchronous=FULL)": replace(at_once, synchronous="FULL"),
    }


class _Lane:
    """Client and stage of one dispatcher."""

    def __init__(self, setting: Setting, pid: int) -> None:
        self.pid = pid
        self._topics = Topics(setting.root)
        url = BrokerUrl.parse(setting.broker)
        self._client = MqttDataBus(url, f"client-{setting.root}")
        self._stage = MqttDataBus(url, f"stage-{setting.root}")
        for bus, topic in (
            (self._client, self._topics.pattern("result", client="c")),
            (self._stage, self._stage_topic),
        ):
            bus.subscribe(topic)
            if not bus.connect(10.0):
                raise BrokerUnreachableError(f"no connection to {url}")
            bus.publish(f"{setting.root}/settled", b"")
            bus.flush(10.0)
        self._result = {"y": to_wire(np.zeros((1, 1000), np.float32))}
        self._jobs = 0

    @property
    def _stage_topic(self) -> str:
        return self._topics.topic("activation", pipeline=PIPELINE, generation=GENERATION, stage=0)

    def job_ms(self, payload: bytes) -> float:
        """One job; what this process's stage took is not counted."""
        self._jobs += 1
        job = str(self._jobs)
        properties = Properties(
            response_topic=self._topics.topic("result", client="c", job=job),
            correlation_data=job.encode(),
        )
        began = time.perf_counter()
        self._client.publish(
            self._topics.topic("infer", model=MODEL), payload, properties=properties
        )
        deadline = time.monotonic() + _JOB_S
        own_s = 0.0
        while not self._answered():
            self._stage.poll(_LOOK_S if not own_s else 0.0)
            while (message := self._stage.receive()) is not None:
                taken = time.perf_counter()
                result = self._computed(message.payload)
                own_s += time.perf_counter() - taken
                self._stage.publish(self._result_topic, result)
            if own_s:
                # On a machine that stands still the dispatcher may send it once more: then look again.
                self._client.poll(_LOOK_S)
            if time.monotonic() > deadline:
                raise BrokerUnreachableError(f"no answer within {_JOB_S:g} s")
        return (time.perf_counter() - began - own_s) * 1e3

    def _answered(self) -> bool:
        return self._client.receive() is not None

    def _computed(self, payload: bytes | bytearray) -> bytes | bytearray:
        activation = decode_msgpack(payload, Activation)
        return encode_msgpack(
            StageResult(
                job=activation.job,
                item=activation.item,
                attempt=activation.attempt,
                tensors=self._result,
                trace=[StageTime(stage=0, node="n", queue_s=0.0, compute_s=0.0, cpu_s=0.0)],
            )
        )

    @property
    def _result_topic(self) -> str:
        return self._topics.topic("stage_result", pipeline=PIPELINE, generation=GENERATION)

    def close(self) -> None:
        """Disconnect both."""
        self._client.close()
        self._stage.close()


def _measure(
    lanes: dict[str, _Lane], payload: bytes, jobs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each job, and of CPU per job, by setting."""
    took_ms: dict[str, list[float]] = {name: [] for name in lanes}
    before: dict[str, float] = {}
    for index in range(-max(3, jobs // 20), jobs):
        for name, lane in lanes.items():
            if index == 0:  # before that: warming up
                before[name] = cpu_s(lane.pid)
            job_ms = lane.job_ms(payload)
            if index >= 0:
                took_ms[name].append(job_ms)
    return took_ms, {
        name: (cpu_s(lane.pid) - before[name]) / jobs * 1e3 for name, lane in lanes.items()
    }


def _rows(kind: str, took_ms: dict[str, list[float]], cpu_ms: dict[str, float]) -> list[Row]:
    rows = [
        Row.of("durability", f"a job, {kind}: {name}", "ms", values, method=_METHOD)
        for name, values in took_ms.items()
    ]
    base = took_ms[_NOTHING]
    for name, values in took_ms.items():
        if name == _NOTHING:
            continue
        rows.append(
            Row.of(
                "durability", f"added at p50, {kind}: {name}", "ms",
                _added(values, base),
                method=f"difference of the medians of each of {_PARTS} parts of the run",
                against=f"{_NOTHING}: {statistics.median(base):.2f} ms", bar=Bar(_BAR_MS),
            )
        )  # fmt: skip
    return rows + [
        Row.of("durability", f"CPU per job, {kind}: {name}", "ms", [value], method=_CPU)
        for name, value in cpu_ms.items()
    ]


def _added(ours: list[float], theirs: list[float]) -> list[float]:
    """Of each part of the run, the difference of the two medians."""
    part = max(1, len(ours) // _PARTS)
    return [
        statistics.median(ours[at : at + part]) - statistics.median(theirs[at : at + part])
        for at in range(0, len(ours), part)
    ]
