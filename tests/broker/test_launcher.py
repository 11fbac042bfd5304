from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from broker.config import BrokerConfig
from broker.launcher import Broker, _free_port, find_mosquitto
from shared.bus import BrokerUrl, MqttControlBus
from shared.errors import BrokerError
from tests.broker.conftest import until


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def retained(broker: Broker, topic: str) -> bytes:
    url = BrokerUrl.parse(broker.url)
    async with MqttControlBus(url, client_id="reader", first_connect_timeout_s=10) as bus:
        await bus.subscribe("#")
        await bus.publish("marker", b"")
        async with asyncio.timeout(10):
            async for message in bus.messages():
                if message.topic == topic:
                    return bytes(message.payload)
                if message.topic == "marker":
                    break
    raise AssertionError(f"nothing retained on {topic}")


async def retain(broker: Broker, topic: str, payload: bytes) -> None:
    url = BrokerUrl.parse(broker.url)
    async with MqttControlBus(url, client_id="writer", first_connect_timeout_s=10) as bus:
        await bus.publish(topic, payload, retain=True)


async def test_starts_answers_and_stops(tmp_path: Path) -> None:
    async with Broker(directory=tmp_path) as broker:
        assert alive(broker.pid)
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
        await retain(broker, "a", b"x")
        assert await retained(broker, "a") == b"x"
        pid = broker.pid
    assert not broker.running
    assert not alive(pid)
    await broker.stop()


async def test_two_at_once_on_free_ports(tmp_path: Path) -> None:
    async with (
        Broker(directory=tmp_path / "1") as first,
        Broker(directory=tmp_path / "2") as second,
    ):
        assert first.port != second.port


async def test_a_restart_keeps_the_port_and_what_is_retained(tmp_path: Path) -> None:
    async with Broker(directory=tmp_path) as broker:
        await retain(broker, "a", b"x")
        port, pid = broker.port, broker.pid
        await broker.restart()
        assert broker.port == port
        assert broker.pid != pid
        assert await retained(broker, "a") == b"x"


async def test_killed_and_started_again(tmp_path: Path) -> None:
    async with Broker(directory=tmp_path) as broker:
        port = broker.port
        await broker.kill()
        assert not broker.running
        assert await broker.wait() == -signal.SIGKILL
        await broker.start()
        assert broker.port == port
        with pytest.raises(BrokerError, match="runs already"):
            await broker.start()


async def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is in use"):
            await Broker(directory=tmp_path, port=port).start()


async def test_a_free_port_that_is_taken_in_between_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        real, answers = _free_port, [port]
        monkeypatch.setattr(
            "broker.launcher._free_port", lambda bind: answers.pop() if answers else real(bind)
        )
        async with Broker(directory=tmp_path) as broker:
            assert broker.port != port


async def test_an_end_before_it_answers_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: the reason' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("AMP4EC_MOSQUITTO", str(program))
    with pytest.raises(BrokerError, match=r"status 3\n.*the reason"):
        await Broker(directory=tmp_path).start()


async def test_one_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mosquitto"
    program.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    program.chmod(0o755)
    monkeypatch.setenv("AMP4EC_MOSQUITTO", str(program))
    broker = Broker(directory=tmp_path, start_timeout_s=0.3)
    with pytest.raises(BrokerError, match=r"did not answer within 0.3 s"):
        await broker.start()
    assert not broker.running


async def test_no_mosquitto_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMP4EC_MOSQUITTO", "/nonexistent/mosquitto")
    with pytest.raises(BrokerError, match="AMP4EC_MOSQUITTO names no program"):
        find_mosquitto()
    monkeypatch.delenv("AMP4EC_MOSQUITTO")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_mosquitto().name == "mosquitto"  # found beside the PATH
    monkeypatch.setattr("broker.launcher._ELSEWHERE", ())
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        find_mosquitto()


async def test_websockets_where_this_mosquitto_has_them(
    tmp_path: Path, unused_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = BrokerConfig(websocket_port=unused_port)
    async with Broker(directory=tmp_path, config=config) as broker:
        await retain(broker, "a", b"x")
        if broker.websocket_port is None:
            assert "no WebSockets" in caplog.text
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.websocket_port)
            writer.write(
                b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b"101" in await reader.readline()
            writer.close()
            await writer.wait_closed()


STARTS_AND_WAITS = """
import asyncio, sys
from broker.launcher import Broker

async def main():
    async with Broker(directory=sys.argv[1]) as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

IN_THE_FOREGROUND = """
import sys
from broker.config import BrokerConfig
from broker.launcher import run_foreground

config = BrokerConfig(port=int(sys.argv[2]), persistence_dir=sys.argv[1])
sys.exit(run_foreground(config, on_ready=lambda broker: print(broker.pid, flush=True)))
"""


async def start_python(text: str, *arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        text,
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


async def printed_pid(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return int(await process.stdout.readline())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    process = await start_python(STARTS_AND_WAITS, tmp_path)
    pid = await printed_pid(process)
    assert alive(pid)
    process.kill()
    await process.communicate()
    await until(lambda: not alive(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_in_the_foreground_until_a_signal(
    tmp_path: Path, unused_port: int, number: signal.Signals
) -> None:
    process = await start_python(IN_THE_FOREGROUND, tmp_path, unused_port)
    pid = await printed_pid(process)
    process.send_signal(number)
    _, log = await process.communicate()
    assert process.returncode == 0
    assert b"Error" not in log
    assert (tmp_path / "mosquitto.db").exists(), "a clean stop saves"
    assert not alive(pid)


async def test_in_the_foreground_its_own_end_is_passed_on(tmp_path: Path, unused_port: int) -> None:
    process = await start_python(IN_THE_FOREGROUND, tmp_path, unused_port)
    os.kill(await printed_pid(process), signal.SIGKILL)
    await process.communicate()
    assert process.returncode not in (0, None)
