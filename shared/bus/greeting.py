"""One CONNECT, and what the broker says to it: for whoever wants to know a broker and not to use it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from shared.bus.limits import MAX_PACKET_BYTES
from shared.bus.mqtt5 import (
    CONNACK,
    Connack,
    Connect,
    decode_control,
    encode_connect,
    encode_disconnect,
)
from shared.bus.mqtt5_values import BadPacketError
from shared.bus.url import BrokerUrl
from shared.errors import BrokerUnreachableError

_LONGEST_BYTES = 65_536
"""Of a CONNACK: its strings have as many at most together."""


async def greet(url: BrokerUrl, *, timeout_s: float = 5.0) -> Connack:
    """Connect under a name that nobody has, hear the answer, and leave.

    Returns:
        The broker's answer, also where it refuses (`reason`).

    Raises:
        BrokerUnreachableError: nobody answers there, or not in MQTT 5.
        ConfigurationError: the URL names a CA file that cannot be used.
    """
    context = url.tls_context()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
            try:
                return await _exchange(url, reader, writer)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError, BadPacketError, TimeoutError) as failed:
        raise BrokerUnreachableError(
            f"no MQTT 5 broker answers at {url.address}",
            expected="a CONNACK",
            got=_what(failed, timeout_s),
        ) from None


async def _exchange(
    url: BrokerUrl, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Connack:
    writer.write(
        encode_connect(
            Connect(
                client_id=f"amp4ec-greeting-{secrets.token_hex(8)}",
                clean_start=True,
                session_expiry_s=0,
                receive_maximum=1,
                maximum_packet_bytes=MAX_PACKET_BYTES,
                keepalive_s=10,
                username=url.username,
                password=url.password,
            )
        )
    )
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
        if shift > 21:
            raise BadPacketError("a length without end")
    if first != CONNACK or length > _LONGEST_BYTES:
        raise BadPacketError("not a CONNACK", expected="0x20", got=f"{first:#04x}")
    answer = decode_control(first, await reader.readexactly(length))
    assert isinstance(answer, Connack)
    writer.write(encode_disconnect())
    return answer


def _what(failed: BaseException, timeout_s: float) -> str:
    match failed:
        case TimeoutError():
            return f"nothing for {timeout_s:g} s"
        case asyncio.IncompleteReadError():
            return "the connection was closed: TLS and plain MQTT mixed up, or no MQTT 5?"
        case _:
            return str(failed) or type(failed).__name__
