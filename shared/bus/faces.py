"""The two faces of the bus, as services see them.

Services are written against these protocols; `MqttControlBus` and `MqttDataBus` implement them on a
broker, the fake wire of the tests in memory. Both faces have the same rules:

- QoS 1 is at-least-once: a message may come twice, `duplicate` says when the broker knows.
- A message is acknowledged once. An acknowledgement that comes after the connection it belongs to
  has gone does nothing, and the broker delivers the message again where the session outlives it.
- Subscriptions are wishes: they are made again on every connection.
- Retained messages come again with every subscription made, so also after every reconnection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

from shared.bus.message import Message, Properties, Qos
from shared.link_rates import Rates

ConnectCallback = Callable[[], Awaitable[None]]


class ControlBus(Protocol):
    """The face for the event loop. Enter it with `async with`."""

    @property
    def connected(self) -> bool:
        """Whether a connection stands and its subscriptions are made."""

    @property
    def reconnections(self) -> int:
        """How many connections were made after the first."""

    @property
    def dropped(self) -> int:
        """Messages received and thrown away because nobody took the earlier ones (QoS 0)."""

    def on_connect(self, callback: ConnectCallback) -> None:
        """Have `callback` awaited after every connection, subscriptions made: births go here.

        Callbacks run in the order of their registration, beside everything else. Register before
        entering. One that fails ends the connection, which is made again after a back-off.
        """

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: Qos = 1,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Send; at QoS 1 return when the broker has acknowledged.

        Waits for a connection where there is none, and sends again where one is lost in between.

        Raises:
            BrokerUnreachableError: not sent within `timeout_s` (the bus's own when None).
            NotPermittedError: our login may not publish there.
            BrokerError: the broker refused the message.
        """

    async def subscribe(self, pattern: str, qos: Qos = 1) -> None:
        """Receive `pattern` on this and every later connection.

        Returns when the broker agreed, or at once while there is no connection.

        Raises:
            BrokerError: the broker refused.
        """

    async def unsubscribe(self, pattern: str) -> None:
        """Stop receiving `pattern`. Messages already on their way may still come."""

    def messages(self) -> AsyncIterator[Message]:
        """Everything received, over all connections; ends when the bus is left. One reader.

        Without `manual_ack` a message counts as done, and is acknowledged, when the reader comes
        back for the next.
        """

    def acknowledge(self, message: Message) -> None:
        """With `manual_ack`: the message is done, do not deliver it again."""

    async def round_trip(self) -> float:
        """Seconds from a question to the broker to its answer, on this connection, now.

        Raises:
            BrokerUnreachableError: no connection, or no answer in time.
        """

    async def __aenter__(self) -> Self:
        """Connect, and stay connected until left."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect cleanly: no last will is published, so publish your own death first."""


class DataBus(Protocol):
    """The face for the one thread that runs a stage; only `wake` may be called from another."""

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""

    @property
    def sessions(self) -> int:
        """Successful connections so far; a change tells the owner of a reconnection."""

    @property
    def session_present(self) -> bool:
        """Whether the broker still had this client's session at the last connection."""

    @property
    def bytes_received(self) -> int:
        """Payload bytes received so far."""

    @property
    def bytes_sent(self) -> int:
        """Payload bytes handed over for sending so far."""

    @property
    def rates(self) -> Rates:
        """The link's bandwidth as this connection's own traffic shows it; may be read from any thread."""

    def connect(self, timeout_s: float = 0.0) -> bool:
        """Begin; True when connected within `timeout_s`. `poll` goes on trying for ever."""

    def subscribe(self, topic: str, qos: Qos = 1) -> None:
        """Receive `topic` on this and every later connection."""

    def unsubscribe(self, topic: str) -> None:
        """Stop receiving `topic`."""

    def poll(self, timeout_s: float) -> bool:
        """Wait for traffic or `wake`, read what there is, reconnect when due.

        Returns at once when a message already waits. True when one does on return.
        """

    def receive(self) -> Message | None:
        """The next message, or None. Does not touch the network."""

    def publish(
        self,
        topic: str,
        payload: bytes | bytearray | memoryview,
        qos: Qos = 1,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Send or, at QoS 1, keep until it can be sent; never waits.

        The payload is kept, not copied: leave a bytearray, or the memory behind a view, alone
        afterwards. QoS 0 without a connection is dropped, as MQTT has it.

        Raises:
            BrokerUnreachableError: too much is waiting for the broker's acknowledgement already.
        """

    def acknowledge(self, message: Message) -> None:
        """With `manual_ack`: the message is done, do not deliver it again."""

    def flush(self, timeout_s: float) -> bool:
        """Poll until everything published is acknowledged; False when time ran out."""

    def wake(self) -> None:
        """From any thread: make a `poll` that waits, or the next one, return."""

    def close(self) -> None:
        """Disconnect cleanly. The session lives on at the broker for its expiry."""
