"""How a cluster is: asked of the orchestrator, and where nobody leads who could say it, told by its presence.

What is retained on `orchestrator/health` is the last word of whoever led. It holds while `orchestrator/state`
is `online`; after a crash it is history.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from deploy.operator import CONNECT_S, NotAnsweredError, Step, connect, new_transaction
from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import convert, decode_json
from shared.errors import NotPermittedError, ProtocolError
from shared.messages.health import Finding, Health, HealthRequest
from shared.messages.operation import OrchestratorState
from shared.topics import Topics

ANSWER_S = 5.0
"""A standby has taken over by then."""
_RETAINED_S = 1.0


async def health_of(broker: BrokerUrl, root: str, progress: Step) -> Health:
    """How the cluster is now.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
        JobError: the orchestrator failed at saying it.
        NotPermittedError: this login may neither ask nor read.
    """
    try:
        async with connect(broker, root) as operator:
            request = HealthRequest(transaction=new_transaction())
            return convert((await operator.ask(request, ANSWER_S, progress)).data, Health)
    except NotAnsweredError:
        state, last = await _retained(broker, root)
        return unanswered(state, last)
    except NotPermittedError:
        # A monitor reads what it may not ask for.
        state, last = await _retained(broker, root)
        if state is None or state.state != "online":
            return unanswered(state, last)
        if last is None:
            raise
        return last


def unanswered(state: OrchestratorState | None, last: Health | None) -> Health:
    """What is true where the orchestrator says nothing; `last` is what was said before."""
    if state is None:
        text = "there is no orchestrator; start one with `amp4ec orchestrator`"
    elif state.state == "online":
        text = (
            f"the orchestrator on {state.host} (pid {state.pid}) is online and does not answer: "
            "look whether it is stopped, or out of CPU"
        )
    else:
        where = f", last on {state.host} (pid {state.pid})" if state.host else ""
        text = f"the orchestrator is {state.state}{where}: jobs wait until one leads"
    if last is not None:
        text += f". The last word, of {last.at or 'an unknown time'}: {last.text}"
    return Health(
        text=f"failing: {text}",
        health="failing",
        findings=[Finding(grade="failing", about="orchestrator", text=text)],
    )


async def _retained(broker: BrokerUrl, root: str) -> tuple[OrchestratorState | None, Health | None]:
    topics = Topics(root)
    bus = MqttControlBus(
        broker,
        client_id=f"amp4ec-health-{uuid.uuid4().hex[:12]}",
        first_connect_timeout_s=CONNECT_S,
    )
    state: OrchestratorState | None = None
    health: Health | None = None
    async with bus:
        for name in ("orchestrator_state", "health"):
            await bus.subscribe(topics.topic(name))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETAINED_S):
                async for message in bus.messages():
                    with contextlib.suppress(ProtocolError):
                        name, _ = topics.accept(message.topic, len(message.payload))
                        if name == "orchestrator_state" and message.payload:
                            state = decode_json(message.payload, OrchestratorState)
                        elif name == "health" and message.payload:
                            health = decode_json(message.payload, Health)
                    if state is not None and health is not None:
                        break
    return state, health
