"""A large cluster as a page sees it: what nodes and orchestrator would publish, and nothing behind it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

from shared.bus import BrokerUrl, ControlBus, MqttControlBus
from shared.codec import encode_json
from shared.messages.model import (
    AlternativeRow,
    Figures,
    ModelState,
    PipelineRow,
    StageRow,
)
from shared.messages.node import Hardware, NodeState, StageTelemetry, Telemetry
from shared.messages.operation import Happening, Metrics, ModelMetrics, OrchestratorState
from shared.topics import Topics

MODEL = "mobilenet_v2"
SIZE_BYTES = (301_056, 75_264, 31_360)


def name(number: int) -> str:
    return f"pi-{number}"


@dataclass
class ManyNodes:
    """Publishes; `cuts` are the pipelines of the model, each a list of numbers of nodes."""

    bus: ControlBus
    topics: Topics
    nodes: int
    cuts: Sequence[Sequence[int]]
    generation: int = 1
    model: str = MODEL
    _received: dict[int, int] = field(default_factory=dict)
    _serial: count[int] = field(default_factory=lambda: count(1))

    @classmethod
    def on(
        cls, url: BrokerUrl, topics: Topics, nodes: int, cuts: Sequence[Sequence[int]]
    ) -> ManyNodes:
        bus = MqttControlBus(url, client_id="many-nodes", publish_timeout_s=20.0)
        return cls(bus, topics, nodes, cuts)

    async def born(self) -> None:
        """Retained: the orchestrator, all nodes, the model."""
        state = OrchestratorState(
            state="online", incarnation=1, term=1, leader="here", host="here", version="0.1.0"
        )
        await self._say("orchestrator_state", state, retain=True)
        await asyncio.gather(*(self.join(number) for number in range(self.nodes)))
        if self.cuts:
            await self.plan(self.cuts, "a better plan was found")

    async def join(self, number: int) -> None:
        state = NodeState(
            state="online",
            node=name(number),
            incarnation=1,
            pid=100 + number,
            host=name(number),
            version="0.1.0",
            hardware=Hardware(
                cpu=0.5 + number % 3 / 2,
                cores=4,
                memory_bytes=2**30,
                architecture="aarch64",
                cpu_model="Cortex-A72",
                system="Linux",
            ),
            runtimes={"onnxruntime": "1.20.1"},
            zone="home",
        )
        await self._say("node_state", state, retain=True, node=name(number))

    async def leave(self, number: int, state: str = "lost") -> None:
        gone = NodeState(
            state="lost" if state == "lost" else "offline", node=name(number), incarnation=1
        )
        await self._say("node_state", gone, retain=True, node=name(number))

    async def plan(self, cuts: Sequence[Sequence[int]], reason: str) -> None:
        self.cuts = cuts
        pipelines = [
            PipelineRow(
                pipeline=f"{self.model}-{self.generation}-{index}",
                stages=[self._stage(number, stage, len(cut)) for stage, number in enumerate(cut)],
            )
            for index, cut in enumerate(cuts)
        ]
        rate = 40.0 * len(cuts)
        state = ModelState(
            state="serving",
            model=self.model,
            generation=self.generation,
            pipelines=pipelines,
            predicted=Figures(throughput_per_s=rate, latency_s=0.06, exposure_ratio=0.4),
            measured=Figures(throughput_per_s=rate * 0.93, latency_s=0.066),
            reason=reason,
            weights="none",
            runtime="onnxruntime",
            level="O1",
            alternatives=[
                AlternativeRow(
                    text="one node: pi-0",
                    figures=Figures(throughput_per_s=rate / 3, latency_s=0.031, exposure_ratio=0.0),
                    reason="a third of the throughput",
                ),
                AlternativeRow(
                    text="copies on all nodes",
                    figures=Figures(
                        throughput_per_s=rate * 0.8, latency_s=0.12, exposure_ratio=1.0
                    ),
                    reason="the slowest node has no room for all weights",
                ),
            ],
        )
        await self._say("model_state", state, retain=True, model=self.model)
        self.generation += 1

    def _stage(self, number: int, stage: int, stages: int) -> StageRow:
        blocks = 20 // stages
        return StageRow(
            stage=stage,
            node=name(number),
            blocks=(stage * blocks, 20 if stage + 1 == stages else (stage + 1) * blocks),
            weight_bytes=4_000_000,
            output_bytes=SIZE_BYTES[stage % len(SIZE_BYTES)],
            predicted_s=0.02 + 0.004 * (number % 5),
            measured_s=0.021 + 0.004 * (number % 5),
        )

    async def second(self, at_s: float) -> None:
        """One second of telemetry of all nodes, and of metrics."""
        stages: dict[int, list[StageTelemetry]] = {}
        for index, cut in enumerate(self.cuts):
            for stage, number in enumerate(cut):
                stages.setdefault(number, []).append(
                    StageTelemetry(
                        model=self.model,
                        pipeline=f"{self.model}-{self.generation - 1}-{index}",
                        generation=self.generation - 1,
                        stage=stage,
                        items=38 + int(4 * math.sin(at_s / 5 + number)),
                        queue=number % 3,
                        compute_s=0.021 + 0.004 * (number % 5),
                        cpu_s=0.02,
                        queue_s=0.001,
                    )
                )
        for number in range(self.nodes):
            self._received[number] = self._received.get(number, 0) + 1_000_000 + 7_000 * number
            telemetry = Telemetry(
                node=name(number),
                incarnation=1,
                uptime_s=at_s,
                cpu_percent=50 + 45 * math.sin(at_s / 7 + number),
                memory_used_bytes=200_000_000 + 1_000_000 * number,
                memory_limit_bytes=2**30,
                network_received_bytes=self._received[number],
                network_sent_bytes=self._received[number] // 2,
                round_trip_s=0.002,
                queue=number % 3,
                stability=0.9,
                stages=stages.get(number, []),
            )
            await self._say("telemetry", telemetry, node=name(number))
        rate = (40 + 6 * math.sin(at_s / 9)) * len(self.cuts)
        metrics = Metrics(
            counters={"accepted": int(at_s * rate)},
            models={
                self.model: ModelMetrics(
                    queued=3,
                    in_flight=8,
                    answered_per_s=round(rate, 1),
                    latency_p50_s=0.06 + 0.01 * math.sin(at_s / 4),
                    latency_p95_s=0.09 + 0.02 * math.sin(at_s / 3),
                )
            }
            if self.cuts
            else {},
            nodes_online=self.nodes,
            cpu_s=at_s / 20,
            memory_bytes=400_000_000,
            sent_at_ms=time.time_ns() // 1_000_000,
        )
        await self._say("metrics", metrics)

    async def event(
        self, kind: str = "item_retried", text: str = "", node: str | None = None
    ) -> None:
        number = next(self._serial)
        happening = Happening(
            event=kind,
            text=text or f"event number {number}: an item was sent again",
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            node=node,
            model=self.model,
        )
        await self._say("event", happening)

    async def _say(
        self, topic: str, message: object, *, retain: bool = False, **levels: str
    ) -> None:
        qos = 0 if topic in ("telemetry", "metrics") else 1
        await self.bus.publish(
            self.topics.topic(topic, **levels),
            encode_json(message),
            1 if qos else 0,
            retain=retain,
        )
