"""Both faces over TLS, on a broker with a certificate made for the test."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.launcher import find_mosquitto
from shared.bus import BrokerUrl, MqttControlBus, MqttDataBus
from shared.errors import BrokerUnreachableError
from tests.broker.conftest import receive

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
async def tls_url(
    tmp_path: Path, certificate: tuple[Path, Path], unused_port: int
) -> AsyncIterator[BrokerUrl]:
    file, key = certificate
    config = tmp_path / "tls.conf"
    config.write_text(
        f"listener {unused_port} 127.0.0.1\ncertfile {file}\nkeyfile {key}\n"
        "allow_anonymous true\nset_tcp_nodelay true\nuser root\n"
    )
    process = await asyncio.create_subprocess_exec(
        find_mosquitto(), "-c", config, stderr=asyncio.subprocess.DEVNULL
    )
    yield BrokerUrl.parse(f"mqtts://localhost:{unused_port}?ca={file}")
    process.terminate()
    await process.wait()


async def test_both_faces_over_tls(tls_url: BrokerUrl) -> None:
    payload = bytes(range(256)) * 20_000
    control = MqttControlBus(tls_url, client_id="control", first_connect_timeout_s=10)
    await control.subscribe("to/control")
    async with control:
        messages = control.messages()

        def stage() -> None:
            bus = MqttDataBus(tls_url, "data")
            bus.subscribe("to/data")
            assert bus.connect(10)
            bus.publish("to/control", b"ready")
            assert bus.flush(10)
            # Many small ones come in one piece, of which poll sees nothing once TLS has it.
            assert [m.payload for m in receive(bus, 50)] == [b"%d" % n for n in range(50)]
            (message,) = receive(bus, 1)
            bus.publish("to/control", message.payload)
            assert bus.flush(10)
            bus.close()

        running = asyncio.create_task(asyncio.to_thread(stage))
        assert (await anext(messages)).payload == b"ready"
        for number in range(50):
            await control.publish("to/data", b"%d" % number)
        await control.publish("to/data", payload)
        assert (await anext(messages)).payload == payload
        await running


async def test_large_payloads_over_tls(tls_url: BrokerUrl) -> None:
    def scenario() -> None:
        payload = bytes(range(256)) * (5_000_000 // 256)
        bus = MqttDataBus(tls_url, "data")
        bus.subscribe("big")
        assert bus.connect(10)
        for _ in range(3):  # more than the socket takes at once
            bus.publish("big", payload)
        assert [m.payload == payload for m in receive(bus, 3, 30)] == [True] * 3
        assert bus.flush(10)
        assert bus.sessions == 1
        bus.close()

    await asyncio.to_thread(scenario)


async def test_the_data_face_trusts_no_stranger(tls_url: BrokerUrl) -> None:
    stranger = MqttDataBus(BrokerUrl(host="localhost", port=tls_url.port, tls=True), "data")
    assert not await asyncio.to_thread(stranger.connect, 1)
    assert "CERTIFICATE_VERIFY_FAILED" in (stranger.failure or "")
    stranger.close()


async def test_a_certificate_that_is_not_trusted(tls_url: BrokerUrl) -> None:
    stranger = BrokerUrl(host="localhost", port=tls_url.port, tls=True)
    with pytest.raises(BrokerUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        async with MqttControlBus(stranger, client_id="one", first_connect_timeout_s=1):
            pytest.fail("trusted a stranger")
    insecure = BrokerUrl(host="localhost", port=tls_url.port, tls=True, insecure=True)
    async with MqttControlBus(insecure, client_id="one", first_connect_timeout_s=10) as bus:
        assert await bus.round_trip() > 0
    gc.collect()
