"""`amp4ec top` in a terminal of 80 x 24 without true colour, on a real broker that goes and comes back."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pyte
import pytest

from broker.launcher import Broker
from deploy.supervisor import child_environment, command
from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import decode_json, encode_json, to_builtins
from shared.messages.operation import Happening, Response
from shared.topics import Topics
from tests.broker.conftest import until
from tests.fakes.status import cluster, model, node

TOPICS = Topics()
TRUE_COLOUR = re.compile(rb"\x1b\[[0-9;]*[34]8;[25];")
"""Of 256 colours or more."""
NOW = cluster(
    [node("pi-1", stages=[("m", 0)]), node("pi-2", stages=[("m", 1)])], [model("m", "pi-1", "pi-2")]
)

EARLIER = Happening(event="e", text="it began", at="2026-11-21T22:38:00.123+00:00")


class Terminal:
    """A program in a terminal that we look at."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int) -> None:
        self.process = process
        self.written = b""
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self._ours = ours

    def read(self) -> None:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self._ours)
            return
        self.written += data
        self._stream.feed(data)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    async def until(self, *texts: str) -> None:
        """Wait until a line has all of the texts in it."""
        try:
            await until(
                lambda: any(all(t in line for t in texts) for line in self.screen.display), 30
            )
        except TimeoutError:
            raise AssertionError(
                f"{texts} never came:\n" + "\n".join(self.screen.display)
            ) from None


@asynccontextmanager
async def terminal(*arguments: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = child_environment({"TERM": "xterm", "COLORTERM": ""})
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = Terminal(process, ours)
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, shown.read)
    try:
        yield shown
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


async def publish_all(bus: MqttControlBus) -> None:
    """What is retained of `NOW`."""
    topic = TOPICS.topic("orchestrator_state")
    await bus.publish(topic, encode_json(NOW.orchestrator), retain=True)
    for each in NOW.nodes:
        name = TOPICS.topic("node_state", node=each.state.node)
        await bus.publish(name, encode_json(each.state), retain=True)
    for served in NOW.models:
        name = TOPICS.topic("model_state", model=served.model)
        await bus.publish(name, encode_json(served), retain=True)


async def tell(bus: MqttControlBus) -> None:
    """What comes each second."""
    for each in NOW.nodes:
        name = TOPICS.topic("telemetry", node=each.state.node)
        await bus.publish(name, encode_json(each.telemetry), qos=0)
    await bus.publish(TOPICS.topic("metrics"), encode_json(NOW.metrics), qos=0)


async def answer(bus: MqttControlBus, asked: list[str]) -> None:
    """Stand in for the orchestrator: everything that is asked for is done."""
    async for message in bus.messages():
        _, levels = TOPICS.parse(message.topic)
        request = decode_json(message.payload, dict)
        asked.append(levels["verb"])
        data = {"events": [to_builtins(EARLIER)]} if levels["verb"] == "events" else {}
        response = Response(transaction=request["transaction"], status="ok", data=data)
        await bus.publish(TOPICS.topic("response", verb=levels["verb"]), encode_json(response))


@pytest.mark.timeout(180)
async def test_a_session(broker: Broker, url: BrokerUrl) -> None:
    asked: list[str] = []
    async with (
        MqttControlBus(url, client_id="stand") as bus,
        terminal("top", "--broker", str(url)) as top,
    ):
        await bus.subscribe(TOPICS.pattern("request"))
        stand = asyncio.create_task(answer(bus, asked))
        await top.until("NODES by name: none yet")
        await publish_all(bus)
        await top.until("pi-1", "no telemetry yet")
        await tell(bus)
        await top.until("pi-1", "online", "50%", "m[0]")
        await top.until("m", "serving", "87.5/s")
        event = Happening(event="e", text="something happened", at="2026-11-21T22:38:01.123+00:00")
        await bus.publish(TOPICS.topic("event"), encode_json(event))
        await top.until("something happened")
        await top.until("it began")
        top.press("d")
        await top.until("Drain pi-1?")
        top.press("y")
        await top.until("pi-1 holds nothing any more")
        top.press("r")
        await top.until("m was planned anew")
        assert [verb for verb in asked if verb != "events"] == ["drain", "replan"]
        await bus.publish(TOPICS.topic("node_state", node="pi-2"), b"", retain=True)
        await top.until("  1 node ")
        top.resize(100, 30)
        await top.until("? help")
        await broker.stop()
        await top.until("no connection to")
        await broker.start()
        await top.until("orchestrator on kitchen")
        await top.until("pi-1")
        top.press("q")
        assert await asyncio.wait_for(top.process.wait(), 30) == 0
        stand.cancel()
        await asyncio.gather(stand, return_exceptions=True)
    assert not TRUE_COLOUR.search(top.written)


async def test_without_a_terminal_it_names_what_prints(url: BrokerUrl) -> None:
    process = await asyncio.create_subprocess_exec(
        *command("top", "--broker", str(url)),
        env=child_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"amp4ec status" in err
    assert err.count(b"\n") == 1
