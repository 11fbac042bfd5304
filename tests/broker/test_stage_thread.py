"""The thread that runs stages, on a real broker: what it holds, what is next, what a cut costs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from edge_agent.stage import Stage
from edge_agent.stage_thread import MAX_ITEMS, Attached, Notice, StageThread
from shared.bus import BrokerUrl, MqttDataBus, Properties
from shared.codec import decode_msgpack, encode_msgpack
from shared.messages.job import Activation, StageResult
from shared.tensor import Array
from tests.broker.conftest import receive, until


@dataclass
class Gate:
    """A runtime that works on an item when it is let."""

    began: list[str] = field(default_factory=list)
    _let: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def let(self, items: int) -> None:
        self._let.release(items)

    def run(self, name: str) -> None:
        self.began.append(name)
        assert self._let.acquire(timeout=20.0), "the test never let it"


@dataclass
class Runs:
    """One model's loaded stage, and its input: nothing but the job's name."""

    gate: Gate
    job: str = ""

    def read(self, activation: Activation) -> dict[str, Array]:
        self.job = activation.job
        return {}

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        assert not inputs
        self.gate.run(self.job)
        return {"y": np.zeros(1, np.float32)}

    def unload(self) -> None:
        """Nothing is held."""


@dataclass
class Node:
    """A stage thread with the models `a` and `b`, and the dispatcher's side."""

    url: BrokerUrl
    gate: Gate = field(default_factory=Gate)
    buses: list[MqttDataBus] = field(default_factory=list)
    attached: Counter[int] = field(default_factory=Counter)

    def start(self) -> None:
        self.thread = StageThread(self._connect, self._notify, name="stages")
        self.thread.start()
        for life, model in enumerate("ab"):
            runs = Runs(self.gate)
            self.thread.attach(
                Stage(
                    life=life, node="n", model=model, pipeline=model, generation=1, index=0,
                    num_stages=1, topic=f"t/{model}", next_topic="", result_topic="t/result",
                    runner=runs, inputs=runs,
                )
            )  # fmt: skip
        self.dispatcher = MqttDataBus(self.url, "dispatcher", receive_maximum=1000)
        self.dispatcher.subscribe("t/result", 1)
        assert self.dispatcher.connect(10.0)

    def _connect(self) -> MqttDataBus:
        bus = MqttDataBus(
            self.url,
            "stage",
            session_expiry_s=60,
            manual_ack=True,
            receive_maximum=MAX_ITEMS,
            inbox_limit=MAX_ITEMS,
        )
        self.buses.append(bus)
        return bus

    def _notify(self, notice: Notice) -> None:
        if isinstance(notice, Attached):
            self.attached[notice.life] += 1

    def send(self, model: str, *jobs: str, priority: int | None = None) -> None:
        """Returns when the broker has them."""
        properties = None if priority is None else Properties(user=(("priority", f"{priority}"),))
        for job in jobs:
            activation = bytes(encode_msgpack(Activation(job=job, item=0, attempt=1)))
            self.dispatcher.publish(f"t/{model}", activation, properties=properties)
        assert self.dispatcher.flush(10.0)

    def has_done(self, items: int) -> bool:
        return self.thread.traffic.items >= items

    def results(self, count: int) -> list[str]:
        """The jobs of the next so many results."""
        return [decode_msgpack(m.payload, StageResult).job for m in receive(self.dispatcher, count)]

    def stop(self) -> None:
        self.gate.let(10_000)
        self.thread.stop(0.0)
        assert self.thread.join(10.0)
        self.dispatcher.close()


@pytest.fixture
async def node(url: BrokerUrl) -> AsyncIterator[Node]:
    node = Node(url)
    node.start()
    await until(lambda: len(node.attached) == 2)
    yield node
    await asyncio.to_thread(node.stop)


def names(model: str, count: int) -> list[str]:
    return [f"{model}{number}" for number in range(count)]


async def test_a_flooded_model_does_not_keep_another_waiting(node: Node) -> None:
    """By count and not by time: the other's item is one of the next, whatever waits of the flood."""
    node.send("a", *names("a", 50))
    await until(lambda: node.gate.began)
    node.send("b", "b0")
    node.gate.let(51)
    order = await asyncio.to_thread(node.results, 51)
    assert sorted(order) == sorted([*names("a", 50), "b0"])
    assert order.index("b0") <= 5
    assert [job for job in order if job != "b0"] == names("a", 50), "each model's in order"


async def test_of_one_model_the_important_goes_first(node: Node) -> None:
    node.send("a", *names("a", 20))
    await until(lambda: node.gate.began)
    node.send("a", "urgent", priority=9)
    node.gate.let(21)
    assert (await asyncio.to_thread(node.results, 21)).index("urgent") <= 5


async def test_a_node_holds_no_more_than_its_bound(node: Node) -> None:
    """The rest waits at the broker, whatever that thinks of receive maxima, and comes as the stage works."""
    jobs = names("a", 5 * MAX_ITEMS)
    node.send("a", *jobs)
    await until(lambda: node.gate.began)
    for done in range(1, len(jobs) + 1):
        node.gate.let(1)
        await until(partial(node.has_done, done))
        assert node.thread.traffic.queue <= MAX_ITEMS
        most = done + 2 * MAX_ITEMS + 1  # waiting, in the inbox, and at work
        assert node.thread.traffic.bytes_received <= most * SIZE
    assert await asyncio.to_thread(node.results, len(jobs)) == jobs
    assert not node.thread.drops.counts


async def test_a_cut_connection_loses_nothing_and_repeats_no_more_than_it_must(node: Node) -> None:
    jobs = names("a", 40)
    node.send("a", *jobs)
    await until(lambda: node.gate.began)
    node.gate.let(10)
    await until(lambda: len(node.gate.began) == 11)
    (bus,) = node.buses
    assert bus._link is not None
    bus._link.socket.shutdown(2)
    node.gate.let(1_000)
    seen: Counter[str] = Counter()
    while len(seen) < len(jobs):
        seen.update(await asyncio.to_thread(node.results, 1))
    assert node.thread.traffic.connected
    repeated = [job for job, count in Counter(node.gate.began).items() if count > 1]
    assert len(repeated) <= 2, "the one that ran, and the one whose word was under way"


SIZE = len(encode_msgpack(Activation(job="a100", item=0, attempt=1)))
