"""What the control plane publishes: in order, over broken connections, and without growing for ever.

- Of a retained topic only the newest waits: whoever comes later wants nothing else.
- Of the rest (events, responses) the oldest are dropped beyond a bound, and counted: after an hour without a
  broker nobody waits for them.
- A leader whose lease has run out is silent, until it knows that no other leads.
- A broker that was killed may have forgotten what it had retained. After each connection it shows what
  it has; what is not the newest is published again (`kept`, `repeat_lost`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from shared.bus import NO_PROPERTIES, ControlBus, Properties, Publication, Qos
from shared.codec import encode_json, encode_json_sparse
from shared.errors import BrokerError, BrokerUnreachableError
from shared.logs import get_log
from shared.messages.operation import Happening
from shared.sentences import Worded, worded
from shared.signing import SIGNED_BY, Signer
from shared.topics import Topics

log = get_log(__name__)

MOST_WAITING = 2000
_ASK_AGAIN_S = 0.05


class Outbox:
    """One per process, in its event loop; `run` is to be a task of its own.

    `signer` vouches for what agents obey, on a closed cluster; `leads` says whether to speak.
    """

    def __init__(
        self,
        bus: ControlBus,
        topics: Topics,
        most_waiting: int = MOST_WAITING,
        *,
        signer: Signer | None = None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._bus = bus
        self._leads = leads
        self._topics = topics
        self._signer = signer
        self._most_waiting = most_waiting
        self._waiting: OrderedDict[str | int, Publication] = OrderedDict()
        self._unretained: deque[int] = deque()  # their keys in `_waiting`, in order
        self._serial = 0
        self._newest: dict[str, Publication] = {}
        self._seen: dict[str, bytes | bytearray] = {}
        self._shows = False
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def publish(
        self, name: str, value: object, *, retain: bool = False, qos: Qos = 1, **levels: str
    ) -> None:
        """Queue `value` for the topic `name` of the table; None is empty, which clears a retained one."""
        payload = _written(value)
        topic = self._topics.topic(name, **levels)
        properties = NO_PROPERTIES
        if self._signer is not None and payload and name in SIGNED_BY:
            properties = self._signer.sign(topic, payload)
        item = Publication(
            topic=topic, payload=payload, qos=qos, retain=retain, properties=properties
        )
        if retain:
            self._newest[topic] = item
        self._put(item)

    def may_respond_to(self, topic: str) -> bool:
        """Whether a request may name `topic` for its response."""
        return self._topics.may_respond_to(topic)

    def respond(self, topic: str, value: object, correlation: bytes | None) -> None:
        """Queue `value` for a topic that who asked has named."""
        properties = Properties(correlation_data=correlation)
        self._put(Publication(topic=topic, payload=encode_json(value), properties=properties))

    def clear(self, name: str, **levels: str) -> None:
        """Clear a retained topic, and remember nothing of it."""
        self.announce(self._topics.topic(name, **levels), None)

    def announce(self, topic: str, value: object) -> None:
        """Retain `value` on a topic outside the table, another program's; None clears it there and here."""
        if value is None:
            self._newest.pop(topic, None)
            self._put(Publication(topic=topic, payload=b"", retain=True))
            return
        item = Publication(topic=topic, payload=encode_json(value), retain=True)
        self._newest[topic] = item
        self._put(item)

    def _put(self, item: Publication) -> None:
        if item.retain:
            # At the end: what was queued after the older one may speak of it, what comes later of this.
            self._waiting.pop(item.topic, None)
            self._waiting[item.topic] = item
        else:
            self._serial += 1
            self._waiting[self._serial] = item
            self._unretained.append(self._serial)
            if len(self._unretained) > self._most_waiting:
                self._drop_oldest()
        self._more.set()
        self._idle.clear()

    def _drop_oldest(self) -> None:
        del self._waiting[self._unretained.popleft()]
        self.dropped += 1
        if self.dropped.bit_count() == 1:
            log.warning("messages dropped: the broker takes none", so_far=self.dropped)

    # --- what the broker remembers

    def connected(self) -> None:
        """A connection was made: what is retained at the broker comes again."""
        self._seen.clear()
        self._shows = True

    def kept(self, topic: str, payload: bytes | bytearray) -> None:
        """The broker has this retained."""
        self._seen[topic] = payload

    def repeat_lost(self) -> None:
        """All that is retained was seen: publish what the broker has lost, once per connection."""
        if not self._shows:
            return
        self._shows = False
        for topic, item in self._newest.items():
            if self._seen.get(topic, b"") != item.payload and topic not in self._waiting:
                log.info("published again, since the broker had lost it", topic=topic)
                self._put(item)
        self._seen.clear()

    # --- sending

    async def flushed(self, timeout_s: float) -> bool:
        """Wait until all is sent; False when time ran out."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Send what is queued, in order, however often the broker has to come back for it."""
        while True:
            while not self._waiting:
                self._idle.set()
                self._more.clear()
                await self._more.wait()
            key, item = self._waiting.popitem(last=False)
            if isinstance(key, int):
                self._unretained.popleft()
            await self._send(item)

    async def _send(self, item: Publication) -> None:
        while True:
            # Asked, not told: what a lease goes by changes in another thread, and with time.
            while not self._leads():  # noqa: ASYNC110
                await asyncio.sleep(_ASK_AGAIN_S)
            try:
                await self._bus.publish(
                    item.topic,
                    item.payload,
                    item.qos,
                    retain=item.retain,
                    properties=item.properties,
                )
            except BrokerUnreachableError as error:
                if item.retain and item.topic in self._waiting:
                    return  # a newer one follows
                log.debug("a message waits for the broker", topic=item.topic, error=error)
                continue
            except BrokerError as error:
                log.error("the broker refused a message", topic=item.topic, error=error)
            return


def _written(value: object) -> bytes:
    """Empty where there is nothing: that clears a retained topic."""
    match value:
        case None:
            return b""
        case Happening():
            return encode_json_sparse(value)
        case _ if isinstance(value, Worded):
            return encode_json(worded(value))
        case _:
            return encode_json(value)
