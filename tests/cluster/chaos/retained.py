"""What the broker keeps: every retained topic, to be held against who is there."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from shared.bus import BrokerUrl
from shared.topics import Topics

_TIMEOUT_S = 10.0


def retained_topics(url: BrokerUrl, root: str) -> frozenset[str]:
    """The topics below `root` of which the broker keeps a message.

    Raises:
        TimeoutError: the broker does not answer.
    """
    found: set[str] = set()
    done = threading.Event()
    # Delivered in order: our own word comes after everything retained.
    word = f"{root}/result/retained-{uuid.uuid4().hex[:8]}/end"
    client = paho.Client(CallbackAPIVersion.VERSION2)

    def take(_: object, __: object, message: paho.MQTTMessage) -> None:
        if message.topic == word:
            done.set()
        elif message.retain:
            found.add(message.topic)

    client.on_message = take
    client.on_connect = lambda client, *_: client.subscribe(f"{root}/#", qos=1)
    client.on_subscribe = lambda client, *_: client.publish(word, b"", qos=1)
    client.connect(url.host, url.port)
    client.loop_start()
    try:
        if not done.wait(_TIMEOUT_S):
            raise TimeoutError(f"the broker at {url} does not answer")
    finally:
        client.disconnect()
        client.loop_stop()
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Expected:
    """What has to be retained while certain nodes live and models are served, and what may be."""

    always: frozenset[str]
    sometimes: frozenset[str]

    def missing(self, found: frozenset[str]) -> list[str]:
        """What should be there and is not."""
        return sorted(self.always - found)

    def ghosts(self, found: frozenset[str]) -> list[str]:
        """What is there of somebody who is not."""
        return sorted(found - self.always - self.sometimes)

    def fits(self, found: frozenset[str]) -> bool:
        """Whether neither is the case."""
        return not self.missing(found) and not self.ghosts(found)


def expected_topics(root: str, nodes: Iterable[str], models: Iterable[str]) -> Expected:
    """For these nodes and models. A node that holds nothing has no assignment."""
    topics, living = Topics(root), tuple(nodes)
    return Expected(
        always=frozenset(
            {
                topics.topic("orchestrator_state"),
                topics.topic("orchestrator_beat"),
                topics.topic("orchestrator_info"),
                *(topics.topic("model_state", model=model) for model in models),
                *(topics.topic("node_state", node=node) for node in living),
            }
        ),
        # What is well from the beginning says nothing of its health.
        sometimes=frozenset(
            {topics.topic("health"), *(topics.topic("assignment", node=node) for node in living)}
        ),
    )
