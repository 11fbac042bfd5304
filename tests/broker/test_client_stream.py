"""Streams and the synchronous twin over a real broker, which is killed now and then."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import numpy as np
import pytest
from PIL import Image as Pillow

from amp4ec import (
    BrokerTimeoutError,
    BrokerUnreachableError,
    Client,
    ConfigurationError,
    ErrorCode,
    JobError,
    JobTimeoutError,
    Result,
    SyncClient,
)
from broker.launcher import Broker
from shared.bus import Message
from shared.codec import encode_json
from tests.broker.conftest import until
from tests.broker.stand import JPEG, Stand, answer, error


def numbered(number: int) -> bytes:
    return JPEG[:3] + str(number).encode()


def by_number(message: Message) -> list[bytes]:
    return [encode_json(answer(message, pipeline=message.payload[3:].decode()))]


async def test_a_stream_over_a_broker_that_is_killed(
    client: Client, stand: Stand, broker: Broker
) -> None:
    """Each is answered once and in order, those that were under way, too."""

    silent = True

    def script(message: Message) -> list[bytes]:
        # Before the first kill, half of what comes is not answered at all.
        odd = int(message.payload[3:]) % 2
        return [] if odd and silent else by_number(message)

    def asked(payload: bytes) -> bool:
        return any(message.payload == payload for message in stand.requests)

    stand.script = script
    pipelines = []
    async for item in client.stream("m", map(numbered, range(40)), window=4, timeout_s=60):
        pipelines.append(item.result.pipeline)
        if item.index in (0, 12):
            await until(partial(asked, numbered(item.index + 1)))
            await broker.kill()
            silent = False
            await broker.start()
    assert pipelines == [str(number) for number in range(40)]
    assert client.connected


async def test_errors_of_a_stream_are_in_their_place(client: Client, stand: Stand) -> None:
    def script(message: Message) -> list[bytes]:
        if message.payload == numbered(1):
            return [error(message, ErrorCode.BAD_INPUT)]
        return by_number(message)

    stand.script = script
    source = [numbered(0), numbered(1), "/no/such/file.jpg", numbered(3)]
    items = [item async for item in client.stream("m", source)]
    assert [type(item.outcome) for item in items] == [Result, JobError, ConfigurationError, Result]
    assert [item.input for item in items] == source
    with pytest.raises(JobError, match="bad_input"):
        async for _ in client.stream("m", source, raise_errors=True):
            pass


async def test_what_the_source_gives_may_be_made_an_image(client: Client, stand: Stand) -> None:
    stand.script = by_number
    source = [("one", 1), ("two", 2)]
    items = [
        item async for item in client.stream("m", source, image=lambda pair: numbered(pair[1]))
    ]
    assert [(item.input[0], item.result.pipeline) for item in items] == [("one", "1"), ("two", "2")]


async def test_frames_say_so(client: Client, stand: Stand) -> None:
    stand.script = lambda message: [encode_json(answer(message))]
    async for _ in client.stream("m", [JPEG], latest=True, priority=8, deadline_s=5):
        pass
    properties = stand.requests[0].properties
    assert properties.user_value("policy") == "latest"
    assert properties.user_value("priority") == "8"


@pytest.mark.parametrize(
    "one", ["cat.jpg", b"bytes", {"ids": np.zeros(3)}, Pillow.new("L", (1, 1))]
)
async def test_one_input_is_no_source(client: Client, one: object) -> None:
    with pytest.raises(ConfigurationError, match="where several are taken"):
        client.stream("m", one)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="where several are taken"):
        await client.infer_batch("m", one)  # type: ignore[arg-type]


async def test_options_that_make_no_sense(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="window"):
        client.stream("m", [], window=0)
    with pytest.raises(ConfigurationError, match="model"):
        client.stream("a/b", [])
    with pytest.raises(ConfigurationError, match="timeout_s"):
        client.stream("m", [], timeout_s=0)
    with pytest.raises(ConfigurationError, match="timeout_s"):
        await client.infer("m", JPEG, timeout_s=float("nan"))
    with pytest.raises(ConfigurationError, match="deadline_s"):
        await client.infer("m", JPEG, deadline_s=-1)


async def test_what_did_not_come_in_time_is_named(
    client: Client, stand: Stand, broker: Broker
) -> None:
    stand.script = lambda _: []
    with pytest.raises(TimeoutError) as late:
        await client.infer("m", JPEG, timeout_s=0.1)
    assert isinstance(late.value, JobTimeoutError)
    assert (late.value.waited_for, late.value.timeout_s) == ("answer", 0.1)
    await broker.kill()
    await until(lambda: not client.connected)
    with pytest.raises(TimeoutError, match="connection to the broker") as gone:
        await client.infer("m", JPEG, timeout_s=0.1)
    assert isinstance(gone.value, BrokerTimeoutError)
    assert gone.value.waited_for == "broker"


async def test_a_client_outside_of_its_context(stand: Stand, client: Client) -> None:
    other = Client(client.url)
    with pytest.raises(ConfigurationError, match=r"not connected yet.*async with"):
        await other.infer("m", JPEG)
    async with other:
        stream = other.stream("m", [JPEG])
    with pytest.raises(ConfigurationError, match="closed"):
        await other.status()
    with pytest.raises(ConfigurationError, match="connects once"):
        await other.__aenter__()
    assert isinstance((await anext(stream)).error, ConfigurationError)


# The twin: its calls block, so they are made from other threads than the stand-in's.


def test_the_twin_has_the_same_methods() -> None:
    for name in ("infer", "infer_batch", "stream", "status"):
        ours, theirs = getattr(SyncClient, name), getattr(Client, name)
        assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
        assert "Args" in (inspect.getdoc(ours) or "") or name == "infer_batch"


async def test_twin(client: Client, stand: Stand) -> None:
    stand.script = by_number
    seen: list[str] = []

    def program() -> None:
        with SyncClient(client.url) as twin:
            assert twin.connected
            assert twin.infer("m", numbered(7)).pipeline == "7"
            status = twin.status(wait_s=0)
            assert status.orchestrator is not None
            for item in twin.stream("m", map(numbered, range(20)), window=3):
                seen.append(item.result.pipeline)  # noqa: PERF401 (as they come)
        with pytest.raises(ConfigurationError, match="not connected"):
            twin.infer("m", JPEG)
        with pytest.raises(ConfigurationError, match="connects once"):
            twin.open()

    await asyncio.to_thread(program)
    assert seen == [str(number) for number in range(20)]
    assert client.name not in {thread.name for thread in threading.enumerate()}


async def test_the_twin_is_for_several_threads(client: Client, stand: Stand) -> None:
    stand.script = by_number
    with SyncClient(client.url) as twin:
        results = await asyncio.gather(
            *(asyncio.to_thread(twin.infer, "m", numbered(n)) for n in range(20))
        )
        await asyncio.to_thread(twin.close)
    assert [result.pipeline for result in results] == [str(n) for n in range(20)]


async def test_closing_the_twin_ends_what_waits(client: Client, stand: Stand) -> None:
    stand.script = lambda _: []
    closed = threading.Event()

    def frames() -> Iterator[bytes]:
        try:
            while True:
                yield JPEG
        finally:
            closed.set()

    twin = await asyncio.to_thread(SyncClient(client.url).open)
    job = asyncio.create_task(asyncio.to_thread(twin.infer, "m", JPEG))
    stream = asyncio.create_task(asyncio.to_thread(list, twin.stream("m", frames())))
    await until(lambda: len(stand.requests) == 9)
    await asyncio.to_thread(twin.close)
    for waiting in (job, stream):
        with pytest.raises(JobError, match="closed before the answer came"):
            await waiting
    assert await asyncio.to_thread(closed.wait, 10)


async def test_leaving_the_twins_loop_ends_the_stream(client: Client, stand: Stand) -> None:
    stand.script = lambda message: by_number(message) if message.payload == numbered(0) else []
    ended = asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        try:
            for number in range(100):
                yield numbered(number)
        finally:
            loop.call_soon_threadsafe(ended.set)

    loop = asyncio.get_running_loop()

    def program(twin: SyncClient) -> None:
        for item in twin.stream("m", frames()):
            assert item.index == 0
            break

    with await asyncio.to_thread(SyncClient(client.url).open) as twin:
        await asyncio.to_thread(program, twin)
        async with asyncio.timeout(10):
            await ended.wait()
        assert await asyncio.to_thread(lambda: twin._client._conversation.pending) == {}
        await asyncio.to_thread(twin.close)


@pytest.mark.parametrize("ends", ["", "raise SystemExit(3)"])
async def test_a_program_may_end_in_the_middle_of_a_stream(
    client: Client, stand: Stand, ends: str
) -> None:
    """Without closing anything, and without waiting for what nobody waits for."""
    program = (
        "from amp4ec import SyncClient\n"
        f"client = SyncClient({str(client.url)!r}).open()\n"
        "items = client.stream('m', iter(lambda: b'image', b''))\n"
        f"print(next(items).result.best.label)\n{ends}\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", program),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out, err, process.returncode) == (b"tabby\n", b"", 3 if "Exit" in ends else 0)


async def test_ctrl_c_ends_a_wait(client: Client, stand: Stand) -> None:
    """And what it waited for, so that the client can go on."""
    silent = b"no answer"
    stand.script = lambda message: [] if message.payload == silent else by_number(message)
    program = (
        "from amp4ec import SyncClient\n"
        f"with SyncClient({str(client.url)!r}) as client:\n"
        f"    try: client.infer('m', {silent!r})\n"
        "    except KeyboardInterrupt: print(client.infer('m', b'image').best.label)\n"
        "    print(client._client._conversation.pending)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await until(lambda: len(stand.requests) == 1, 60)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out, err, process.returncode) == (b"tabby\n{}\n", b"", 0)


def test_the_twin_where_there_is_no_broker(unused_port: int) -> None:
    before = threading.active_count()
    with pytest.raises(BrokerUnreachableError, match=str(unused_port)):
        SyncClient(f"127.0.0.1:{unused_port}", connect_timeout_s=0.3).open()
    assert threading.active_count() == before
