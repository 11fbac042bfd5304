"""Whether another agent lives under our name: looked at before the birth, on a connection of its own.

That connection has no last will and its own client id: whoever only looks must not disturb who is there.
Agents of one name that look at the same moment both find it free; then the later birth counts, and the
other ends (`presence.Presence.outlived`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass

from edge_agent.options import AgentOptions
from shared.bus import ControlBus, Message, MqttControlBus
from shared.codec import decode_json, encode_json
from shared.errors import BrokerUnreachableError, ConfigurationError, ProtocolError
from shared.logs import get_log
from shared.messages.node import NodeState, Ping
from shared.messages.stage import Report
from shared.sentences import worded
from shared.topics import Topics, largest_packet

log = get_log(__name__)

_ROWS = ("node_state", "report", "ping")
ANSWER_S = 4.0
"""How long a life that the broker takes for alive has to answer: at 0.2 CPU an import silences an agent for
seconds. It is waited for only where the last one ended without the broker noticing."""
ASK_EVERY_S = 1.0


@dataclass(slots=True)
class _Look:
    """What was seen so far."""

    state: NodeState | None = None
    answered: bool = False
    complete: bool = False
    """Our own question has come back, and so all that was retained has."""

    def decided(self) -> bool:
        dead = self.complete and (self.state is None or self.state.state != "online")
        return dead or self.answered


async def name_is_free(options: AgentOptions, stop: asyncio.Event) -> int | None:
    """`look` for an agent that may be told to stop meanwhile: then None.

    Raises:
        ConfigurationError: another agent has the name.
        BrokerError: the broker does not let this agent look.
    """
    control = MqttControlBus(
        options.broker,
        client_id=f"amp4ec-agent-{options.node}-{secrets.token_hex(8)}",
        maximum_packet_bytes=largest_packet(_ROWS),
    )
    looking = asyncio.create_task(look(control, Topics(options.root), options.node))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((looking, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await looking if looking.done() else None
    finally:
        for task in (looking, stopping):
            task.cancel()
        await asyncio.gather(looking, stopping, return_exceptions=True)


async def look(
    control: ControlBus,
    topics: Topics,
    node: str,
    *,
    answer_s: float = ANSWER_S,
    ask_every_s: float = ASK_EVERY_S,
) -> int:
    """Wait until it is clear that nobody lives under the name `node`.

    Args:
        control: entered here; without a last will. Without a broker: waits for one.
        topics: the table.
        node: the name.
        answer_s: how long a life that is retained as `online` has to answer.
        ask_every_s: how often it is asked in that time.

    Returns:
        The incarnation of the last life under that name, 0 where nothing is known of one.

    Raises:
        ConfigurationError: another agent answers, or is being born; the message names it.
        BrokerError: the broker refused a subscription, or the question: this login is another's.
    """
    seen, asked = _Look(), Ping(node=node)
    ping = topics.topic("ping", node=node)
    async with control:
        for name in _ROWS:
            await control.subscribe(topics.topic(name, node=node))
        reader = asyncio.create_task(_read(control, topics, node, seen), name="name: look")
        try:
            remaining_s = answer_s
            while not reader.done() and remaining_s > 0.0:
                # No broker yet: asked again. At QoS 1, so that one that refuses says so.
                with contextlib.suppress(BrokerUnreachableError):
                    await control.publish(ping, encode_json(worded(asked)), 1)
                await asyncio.wait((reader,), timeout=min(ask_every_s, remaining_s))
                if seen.complete:
                    remaining_s -= ask_every_s
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
    state = seen.state
    if state is None:
        return 0
    if seen.answered:
        raise ConfigurationError(
            f"another agent has the name {node!r} (process {state.pid} on {state.host})",
            expected="each agent with a name of its own (--name), or a token of its own",
            got=f"its incarnation {state.incarnation} answers",
        )
    if state.state == "online":
        log.warning(
            "taking the place of an agent that does not answer and was never reported lost",
            node=node,
            pid=state.pid,
            host=state.host,
        )
    return state.incarnation


async def _read(control: ControlBus, topics: Topics, node: str, seen: _Look) -> None:
    """Take what comes until it is decided."""
    async for message in control.messages():
        try:
            _take(topics, node, message, seen)
        except ProtocolError as error:
            log.warning("dropped a message", topic=message.topic, error=error)
        if seen.decided():
            return


def _take(topics: Topics, node: str, message: Message, seen: _Look) -> None:
    name, _ = topics.parse(message.topic)
    match name:
        case "node_state" if message.payload:
            seen.state = decode_json(message.payload, NodeState)
            # One that comes live is of somebody who lives.
            seen.answered = seen.state.state == "online" and not message.retain
        case "node_state":
            seen.state = None
        case "report":
            report, state = decode_json(message.payload, Report), seen.state
            if report.node == node and state is not None and state.state == "online":
                seen.answered = seen.answered or report.incarnation == state.incarnation
        case "ping":
            seen.complete = True
        case _:
            raise ProtocolError("not what was subscribed to", got=message.topic)
