"""The other side of the bus benchmark: sends back what comes, as `data` or `bare`.

`data` decodes each activation and encodes it anew, so that a round trip is two whole hops.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading

import aiomqtt

from deploy.peer import be_ready, wait_for_end
from shared.bus import BrokerUrl, MqttDataBus
from shared.codec import decode_msgpack
from shared.messages.job import Activation
from shared.tensor import from_wire
from tests.benchmarks.payloads import NAME, encode_activation

PING, PONG = "bench/{}/ping", "bench/{}/pong"


def bare_client(url: BrokerUrl, name: str) -> aiomqtt.Client:
    """An aiomqtt client with nothing around it, on a socket that sends at once."""
    return aiomqtt.Client(
        url.host,
        url.port,
        identifier=name,
        protocol=aiomqtt.ProtocolVersion.V5,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )


async def _echo_bare(url: BrokerUrl) -> None:
    async with bare_client(url, "echo-bare") as client:
        await client.subscribe(PING.format("bare"), qos=1)
        be_ready()
        end = asyncio.create_task(asyncio.to_thread(wait_for_end), name="echo: end")
        echo = asyncio.create_task(_send_back(client), name="echo: send back")
        await asyncio.wait((end, echo), return_when=asyncio.FIRST_COMPLETED)
        echo.cancel()
        await asyncio.gather(echo, return_exceptions=True)


async def _send_back(client: aiomqtt.Client) -> None:
    async for message in client.messages:
        assert isinstance(message.payload, bytes)
        await client.publish(PONG.format("bare"), message.payload, qos=1)


def _echo_data(url: BrokerUrl) -> None:
    bus = MqttDataBus(url, "echo-data")
    assert bus.connect(10.0), "no broker"
    bus.subscribe(PING.format("data"))
    # What the broker has answered was asked before: the subscription stands when this is acknowledged.
    bus.publish("bench/settled", b"")
    bus.flush(10.0)
    be_ready()
    ended = threading.Event()

    def wait() -> None:
        wait_for_end()
        ended.set()
        bus.wake()

    threading.Thread(target=wait, daemon=True).start()
    while not ended.is_set():
        bus.poll(1.0)
        while (message := bus.receive()) is not None:
            array = from_wire(decode_msgpack(message.payload, Activation).tensors[NAME])
            bus.publish(PONG.format("data"), encode_activation(array))
    bus.close()


def main() -> None:
    """`python -m tests.benchmarks.bus_echo data|bare BROKER-URL`."""
    kind, url = sys.argv[1], BrokerUrl.parse(sys.argv[2])
    if kind == "bare":
        asyncio.run(_echo_bare(url))
    else:
        _echo_data(url)


if __name__ == "__main__":
    main()
