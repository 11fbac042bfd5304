"""What is published: in order, the newest only where it is retained, bounded while there is no broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from orchestrator.outbox import Outbox
from shared.topics import Topics
from tests.fakes.cluster import until
from tests.fakes.faces import FakeControlBus
from tests.fakes.wire import FakeBroker

TOPICS = Topics("test")


@contextlib.asynccontextmanager
async def running(
    broker: FakeBroker, most: int = 5
) -> AsyncIterator[tuple[Outbox, FakeControlBus]]:
    bus = broker.control("o", publish_timeout_s=1.0)
    async with bus:
        outbox = Outbox(bus, TOPICS, most)
        task = asyncio.create_task(outbox.run())
        try:
            yield outbox, bus
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def published(broker: FakeBroker) -> list[tuple[str, bytes | bytearray]]:
    return [(message.topic.removeprefix("test/"), message.payload) for message in broker.published]


async def test_in_order() -> None:
    broker = FakeBroker()
    async with running(broker) as (outbox, _):
        outbox.publish("model_state", 1, retain=True, model="m")
        outbox.publish("event", 2)
        outbox.publish("model_state", None, retain=True, model="x")
        assert await outbox.flushed(1.0)
        assert published(broker) == [
            ("model/m/state", b"1"),
            ("event", b"2"),
            ("model/x/state", b""),
        ]


async def test_a_broker_that_is_away_for_long() -> None:
    broker = FakeBroker()
    async with running(broker) as (outbox, bus):
        await until(lambda: bus.connected)
        broker.stop()
        outbox.publish("event", -1)
        await until(lambda: not len(outbox))  # on its way, and waiting for the broker
        for number in range(100):
            outbox.publish("event", number)
            outbox.publish("model_state", number, retain=True, model="m")
        assert len(outbox) == 6
        assert outbox.dropped == 95
        assert not await outbox.flushed(0.01)
        broker.advance(1.5)  # the first attempt ends, and is made again
        broker.start()
        assert await outbox.flushed(2.0)
        assert published(broker) == [
            ("event", b"-1"), ("event", b"95"), ("event", b"96"), ("event", b"97"),
            ("event", b"98"), ("event", b"99"), ("model/m/state", b"99"),
        ]  # fmt: skip


async def test_only_what_the_broker_lost_is_published_again() -> None:
    broker = FakeBroker()
    async with running(broker) as (outbox, _):
        for model in ("kept", "lost", "old"):
            outbox.publish("model_state", 1, retain=True, model=model)
        outbox.publish("model_state", None, retain=True, model="cleared")
        await outbox.flushed(1.0)
        count = len(broker.published)
        outbox.connected()
        outbox.kept("test/model/kept/state", b"1")
        outbox.kept("test/model/old/state", b"0")
        outbox.kept("test/model/cleared/state", b"1")
        outbox.repeat_lost()
        await outbox.flushed(1.0)
        again = published(broker)[count:]
        assert again == [("model/lost/state", b"1"), ("model/old/state", b"1"),
                         ("model/cleared/state", b"")]  # fmt: skip
