"""An agent looks who has its name before it is born: the dead, those that answer, and those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from edge_agent.name_check import look
from shared.codec import encode_json
from shared.errors import ConfigurationError
from shared.messages.node import NodeState
from shared.messages.stage import Report
from shared.topics import Topics
from tests.fakes.wire import FakeBroker

TOPICS = Topics("test")
STATE = TOPICS.topic("node_state", node="n")
REPORT = TOPICS.topic("report", node="n")
PING = TOPICS.topic("ping", node="n")
ALIVE = NodeState(state="online", node="n", incarnation=7, host="elsewhere", pid=42)


def looks(broker: FakeBroker, answer_s: float = 5.0) -> asyncio.Task[int]:
    control = broker.control("looks")
    return asyncio.create_task(look(control, TOPICS, "n", answer_s=answer_s, ask_every_s=0.01))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is watched has no event)
            await asyncio.sleep(0.002)


def says(broker: FakeBroker, state: NodeState, *, retain: bool = True) -> None:
    broker.publish(STATE, encode_json(state), 1, retain=retain)


async def test_a_name_that_nobody_had() -> None:
    assert await looks(FakeBroker()) == 0


@pytest.mark.parametrize("state", ["lost", "offline"])
async def test_the_dead_do_not_keep_their_names(state: str) -> None:
    broker = FakeBroker()
    says(broker, NodeState(state=state, node="n", incarnation=7))  # type: ignore[arg-type]
    assert await looks(broker) == 7


async def test_who_answers_keeps_its_name_and_is_named() -> None:
    broker = FakeBroker()
    says(broker, ALIVE)
    async with broker.control("other") as other:
        await other.subscribe(PING)
        looking = looks(broker)
        async for _ in other.messages():
            for incarnation in (6, 7):  # the first was under way from an earlier life
                report = Report(node="n", incarnation=incarnation, revision=0)
                broker.publish(REPORT, encode_json(report), 1)
            break
        with pytest.raises(ConfigurationError, match=r"'n' \(process 42 on elsewhere\)"):
            await looking


async def test_who_does_not_answer_is_asked_several_times_and_then_gone() -> None:
    broker = FakeBroker()
    says(broker, ALIVE)
    async with broker.control("other") as other:
        await other.subscribe(PING)
        assert await looks(broker, answer_s=0.05) == 7
        messages = other.messages()
        for _ in range(3):
            await anext(messages)


async def test_a_will_that_comes_while_it_looks_frees_the_name() -> None:
    broker = FakeBroker()
    says(broker, ALIVE)
    looking = looks(broker)
    await until(lambda: "looks" in broker.sessions)
    says(broker, NodeState(state="lost", node="n", incarnation=7))
    assert await looking == 7


async def test_another_that_is_born_while_it_looks_has_the_name() -> None:
    broker = FakeBroker()
    says(broker, ALIVE)
    async with broker.control("other") as other:
        await other.subscribe(PING)
        looking = looks(broker)
        await anext(other.messages())
        says(broker, NodeState(state="online", node="n", incarnation=8, host="late", pid=3))
        with pytest.raises(ConfigurationError, match="process 3 on late"):
            await looking


async def test_rubbish_is_no_answer() -> None:
    broker = FakeBroker()
    says(broker, ALIVE)
    async with broker.control("other") as other:
        await other.subscribe(PING)
        looking = looks(broker, answer_s=0.05)
        await anext(other.messages())
        broker.publish(REPORT, b"\xff", 1)
        broker.publish(STATE, b"{", 1)
        assert await looking == 7
