"""A stand-in for the orchestrator that follows a script, for tests of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.bus import BrokerUrl, Message, MqttControlBus
from shared.codec import encode_json
from shared.errors import ErrorCode
from shared.messages.job import Answer, ErrorAnswer, ErrorBody, Label, TraceEntry
from shared.messages.operation import Limits, OrchestratorState
from shared.topics import Topics

TOPICS = Topics()
JPEG = b"\xff\xd8\xff\xe0 not much of a photograph"


def answer(message: Message, **changes: object) -> Answer:
    job = message.properties.user_value("job") or ""
    fields: dict[str, object] = {
        "job": job,
        "model": "m",
        "top": [Label(index=281, label="tabby", probability=0.5)],
        "pipeline": "m-1",
        "generation": 7,
        "nodes": ["a", "b"],
        "latency_ms": 12.5,
        "trace": [TraceEntry(stage=0, node="a", queue_s=0.001, compute_s=0.01, transit_s=0.0015)],
        "weights": "default",
    }
    return Answer(**{**fields, **changes})  # type: ignore[arg-type]


def error(message: Message, code: ErrorCode, retry_after_s: float = 1.5) -> bytes:
    job = message.properties.user_value("job") or ""
    body = ErrorBody(code=code, message="no", expected="yes", got="no", retry_after_s=retry_after_s)
    return encode_json(ErrorAnswer(job=job, model="m", error=body))


Script = Callable[[Message], list[bytes]]


@dataclass
class Stand:
    """A stand-in: keeps what came, answers each request with what the script says."""

    bus: MqttControlBus
    script: Script = field(default=lambda message: [encode_json(answer(message))])
    requests: list[Message] = field(default_factory=list)

    async def announce(self, state: OrchestratorState) -> None:
        await self.bus.publish(TOPICS.topic("orchestrator_state"), encode_json(state), retain=True)

    async def run(self) -> None:
        async for message in self.bus.messages():
            self.requests.append(message)
            assert message.properties.response_topic is not None
            for payload in self.script(message):
                await self.bus.publish(message.properties.response_topic, payload)


def online(incarnation: int = 1) -> OrchestratorState:
    limits = Limits(max_item_bytes=1000_000, max_queue_items=10, max_queue_bytes=10_000_000)
    return OrchestratorState(state="online", incarnation=incarnation, limits=limits)


@asynccontextmanager
async def stand_in(url: BrokerUrl) -> AsyncIterator[Stand]:
    async with MqttControlBus(url, client_id="stand-in", first_connect_timeout_s=5) as bus:
        stand = Stand(bus)
        await bus.subscribe(TOPICS.pattern("infer"))
        task = asyncio.create_task(stand.run())
        await stand.announce(online())
        yield stand
        task.cancel()
