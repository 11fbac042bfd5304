"""A stock MQTT 5 client that says what the broker answered: paho, in a thread of its own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from shared.bus import BrokerUrl

TIMEOUT_S = 10.0
_WITH_WILL = "Disconnect with will message"


class RefusedError(Exception):
    """The broker did not let it in; the text is its reason."""


class Peer:
    """One connection. Use with `with`; entering connects.

    Raises:
        RefusedError: on entering.
    """

    def __init__(
        self,
        url: BrokerUrl,
        *,
        client_id: str = "",
        will: tuple[str, bytes] | None = None,
        clean_start: bool = True,
    ) -> None:
        self.received: list[tuple[str, bytes, bool]] = []
        """Topic, payload, and whether it came as retained."""
        self.session_present = False
        self.ended = threading.Event()
        self._url = url
        self._clean_start = clean_start
        self._answered = threading.Condition()
        self._greeting: ReasonCode | None = None
        self._answers: dict[int, list[ReasonCode]] = {}
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"peer-{uuid.uuid4().hex}",
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        context = url.tls_context()
        if context is not None:
            self._client.tls_set_context(context)
        if url.username is not None:
            self._client.username_pw_set(url.username, url.password)
        if will is not None:
            self._client.will_set(*will, qos=1)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self.ended.set()
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_answer
        self._client.on_unsubscribe = self._on_answer

    def __enter__(self) -> Self:
        self._client.connect(self._url.host, self._url.port, clean_start=self._clean_start)
        self._client.loop_start()
        with self._answered:
            self._answered.wait_for(lambda: self._greeting is not None, TIMEOUT_S)
        if self._greeting is None or self._greeting.is_failure:
            self._client.loop_stop()
            raise RefusedError(str(self._greeting))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> int | None:
        """Send; what `refused` is asked with, None for a QoS that the broker does not answer."""
        info = self._client.publish(topic, payload, qos, retain)
        assert info.rc == paho.MQTT_ERR_SUCCESS, topic
        return info.mid if qos else None

    def subscribe(self, patterns: Sequence[str]) -> list[bool]:
        """For each pattern whether the broker said yes."""
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        _, mid = self._client.subscribe([(pattern, options) for pattern in patterns])
        assert mid is not None
        return [not reason.is_failure for reason in self._answer(mid)]

    def refused(self, mid: int) -> bool:
        """Whether the broker answered a message with an error; waits for its answer."""
        return any(reason.is_failure for reason in self._answer(mid))

    def settle(self) -> None:
        """Wait until all is here that the broker had sent us so far: its answers come behind it."""
        _, mid = self._client.unsubscribe("nothing/of/ours")
        assert mid is not None
        self._answer(mid)

    def die(self) -> None:
        """Leave in the way that has the broker publish the last will, and wait until it did."""
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, _WITH_WILL))
        assert self.ended.wait(TIMEOUT_S)

    def _answer(self, mid: int) -> list[ReasonCode]:
        with self._answered:
            assert self._answered.wait_for(lambda: mid in self._answers, TIMEOUT_S), "no answer"
            return self._answers.pop(mid)

    def _on_connect(
        self, client: object, userdata: object, flags: Any, reason: ReasonCode, properties: object
    ) -> None:
        del client, userdata, properties
        with self._answered:
            self._greeting = reason
            self.session_present = flags.session_present
            self._answered.notify_all()

    def _on_message(self, client: object, userdata: object, message: paho.MQTTMessage) -> None:
        del client, userdata
        self.received.append((message.topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, client: object, userdata: object, mid: int, reason: ReasonCode, properties: object
    ) -> None:
        self._on_answer(client, userdata, mid, [reason], properties)

    def _on_answer(
        self,
        client: object,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: object,
    ) -> None:
        del client, userdata, properties
        with self._answered:
            self._answers[mid] = reasons
            self._answered.notify_all()
