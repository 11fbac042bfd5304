"""How far the nodes' clocks are from the orchestrator's, as their messages of each second show it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Collection

from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import decode_json
from shared.errors import ProtocolError
from shared.messages.node import Telemetry
from shared.messages.operation import Metrics
from shared.topics import Topics

_LISTEN_S = 2.5
"""Telemetry and metrics come once a second: of two or three the quickest tells most."""
_CONNECT_S = 5.0


async def clocks_ahead_s(
    broker: BrokerUrl, root: str, nodes: Collection[str], *, roughly: bool = False
) -> dict[str, float]:
    """Seconds that the clock of each of `nodes` is ahead of the orchestrator's; those missing are not known.

    Good to the difference of two messages' ways through the broker: milliseconds in a quiet network.
    `roughly` is content with one message of each, which is about a second quicker.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
    """
    topics = Topics(root)
    bus = MqttControlBus(
        broker,
        client_id=f"amp4ec-clocks-{uuid.uuid4().hex[:12]}",
        first_connect_timeout_s=_CONNECT_S,
    )
    behind_s: dict[str, float] = {}
    """By how much each is behind us: the least, since a message may be late but never early."""

    def heard(whose: str, sent_at_ms: int) -> None:
        if sent_at_ms:
            now_behind_s = time.time() - sent_at_ms / 1e3
            behind_s[whose] = min(now_behind_s, behind_s.get(whose, now_behind_s))

    async def listen() -> None:
        async for message in bus.messages():
            with contextlib.suppress(ProtocolError):
                name, levels = topics.accept(message.topic, len(message.payload))
                if name == "metrics":
                    heard("", decode_json(message.payload, Metrics).sent_at_ms)
                elif levels["node"] in nodes:
                    heard(levels["node"], decode_json(message.payload, Telemetry).sent_at_ms)
            if roughly and behind_s.keys() >= {"", *nodes}:
                return

    async with bus:
        await bus.subscribe(topics.topic("metrics"), 0)
        await bus.subscribe(topics.pattern("telemetry"), 0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LISTEN_S):
                await listen()
    ours = behind_s.pop("", None)
    return {} if ours is None else {node: ours - each for node, each in behind_s.items()}
