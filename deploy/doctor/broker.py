"""The broker, measured: what it says of itself, what it does to messages, who may in.

Everything here goes through one topic of the doctor's own (`artifact/{peer}/probe`), which no other part of a
cluster reads, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from broker.config import BrokerConfig
from deploy.doctor.finding import Finding, error, note, ok, warning
from shared.bus import BrokerUrl, Message, MqttControlBus
from shared.bus.greeting import greet
from shared.bus.mqtt5 import SUCCESS, Connack, reason_text
from shared.bus.url import is_loopback
from shared.codec import decode_json
from shared.errors import BrokerError, ProtocolError
from shared.messages.signature import Certificate
from shared.topics import SPECS, Topics

CONNECT_S: Final = 5.0
NAGLE_S: Final = 0.030
"""Linux acknowledges late after 40 ms: an answer that much later than it need be waits for that."""
SAMPLES: Final = 30
"""A fresh connection acknowledges at once for its first dozen packets."""
MANY: Final = 1500
"""Messages that are left unread: with `UNDER_WAY` more than what brokers keep unless told to (1,000)."""
UNDER_WAY: Final = 200
"""How many of them we let the broker have under way; brokers' own limits are often 16 to 32."""
QUIET_S: Final = 2.0
"""What did not come for so long does not come."""
LARGEST_BYTES: Final = max(spec.max_bytes for spec in SPECS.values())
USUAL_PACKET_BYTES: Final = 4 << 20
"""Assignments, states, pieces of weights, a batch of photographs."""
_OURS: Final = BrokerConfig()
CONFIGURATION: Final = "broker/mosquitto.conf of AMP4EC, or `amp4ec broker --print-config`"


@dataclass(frozen=True, slots=True)
class Queue:
    """Of `MANY` messages: those under way to a client that acknowledged none, and those that came in all."""

    under_way: int
    came: int


class Probe:
    """A connection that talks to itself. Made by `probing`."""

    def __init__(self, bus: MqttControlBus, topic: str) -> None:
        self.bus = bus
        self.topic = topic
        self.held: list[Message] = []
        self._came = 0
        self._letting_go = False

    async def run(self) -> None:
        """Take what comes until cancelled; acknowledges only when told."""
        async for message in self.bus.messages():
            if message.topic != self.topic:
                continue
            self._came += 1
            if self._letting_go:
                self.bus.acknowledge(message)
            else:
                self.held.append(message)

    def let_go(self) -> None:
        """Acknowledge everything, also what comes from now on."""
        self._letting_go = True
        for message in self.held:
            self.bus.acknowledge(message)
        self.held.clear()

    async def settled(self, expected: int) -> int:
        """How many messages have come, when they are `expected` or no more come."""
        last, since = -1, time.monotonic()
        while self._came < expected and time.monotonic() - since < QUIET_S:
            if self._came != last:
                last, since = self._came, time.monotonic()
            await asyncio.sleep(0.02)
        return self._came

    async def late_answers_s(self) -> tuple[float, float]:
        """Seconds (median) of a round trip, and of a publication whose message comes back before its answer.

        The broker writes both to this connection, the message first. With Nagle's algorithm on, the answer
        waits until the message's bytes were acknowledged, which the kernel does late.
        """
        trips, answers = [], []
        for number in range(SAMPLES):
            trips.append(await self.bus.round_trip())
            begin = time.perf_counter()
            await self.bus.publish(self.topic, b"%d" % number)
            answers.append(time.perf_counter() - begin)
            await self.settled(number + 1)
            for message in self.held:
                self.bus.acknowledge(message)
            self.held.clear()
        half = SAMPLES // 2
        return statistics.median(trips[half:]), statistics.median(answers[half:])

    async def queue(self) -> Queue:
        """Leave many messages unread, then read them."""
        before = self._came
        for begin in range(0, MANY, 100):
            sending = (self.bus.publish(self.topic, b"%d" % n) for n in range(begin, begin + 100))
            await asyncio.gather(*sending)
        under_way = await self.settled(before + UNDER_WAY) - before
        self.let_go()
        return Queue(under_way, await self.settled(before + MANY) - before)


@asynccontextmanager
async def probing(url: BrokerUrl, topics: Topics) -> AsyncIterator[Probe]:
    """A probe that is connected and subscribed.

    Raises:
        BrokerUnreachableError: nobody answers at the address.
    """
    peer = url.username if url.own_login and url.username else f"doctor-{secrets.token_hex(6)}"
    bus = MqttControlBus(
        url,
        client_id=f"amp4ec-doctor-{secrets.token_hex(6)}",
        manual_ack=True,
        receive_maximum=UNDER_WAY,
        first_connect_timeout_s=CONNECT_S,
    )
    probe = Probe(bus, topics.topic("artifact_probe", peer=peer))
    async with bus:
        reader = asyncio.create_task(probe.run(), name="doctor: read")
        try:
            await bus.subscribe(probe.topic)
            yield probe
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader


async def examine(url: BrokerUrl, topics: Topics) -> list[Finding]:
    """Everything about the broker; empty of findings about what a refused login cannot see.

    Raises:
        BrokerUnreachableError: nobody answers at the address.
    """
    greeting = await greet(url, timeout_s=CONNECT_S)
    if greeting.reason != SUCCESS:
        return [
            error(
                "broker.login",
                f"the broker at {url.address} refused the login: "
                + reason_text(greeting.reason, greeting.why),
                "give a login that it knows: mqtt://user:password@host, or a token of `amp4ec join-token`",
            )
        ]
    findings = [ok("broker.reachable", f"{url} answers"), *limits(greeting)]
    if greeting.maximum_qos < 1:
        return findings  # nothing of ours can be measured with it
    findings += await _openness(url)
    async with probing(url, topics) as probe:
        try:
            await probe.bus.publish(probe.topic, b"")
        except BrokerError:
            return [
                *findings,
                note(
                    "broker.measured",
                    "this login may not write to itself: delays and queues were not measured",
                    "ask with an operator's or an agent's token",
                ),
            ]
        if await probe.settled(1) == 0:
            findings.append(
                error(
                    "broker.acl",
                    f"what is written to {probe.topic} does not come back, and the broker does not say why",
                    "let the login read and write it: `amp4ec broker init` writes an ACL that does",
                )
            )
            return findings
        findings += await _rights(url, topics, probe)
    async with probing(url, topics) as probe:
        findings.append(delay(*await probe.late_answers_s()))
        findings += queues(await probe.queue())
    return findings


def limits(greeting: Connack) -> list[Finding]:
    """What the broker says that it does not do."""
    found = []
    largest = greeting.maximum_packet_bytes
    if largest is not None and largest < USUAL_PACKET_BYTES:
        found.append(
            error(
                "broker.packet",
                f"the broker takes packets of at most {largest:,} bytes: orders, weights and activations "
                "will be refused",
                f"max_packet_size {_OURS.max_packet_size} in its configuration ({CONFIGURATION})",
            )
        )
    elif largest is not None and largest < LARGEST_BYTES:
        found.append(
            note(
                "broker.packet",
                f"the broker takes packets of at most {largest / 2**20:.0f} MiB: larger jobs and batches are "
                "refused",
                f"max_packet_size {_OURS.max_packet_size}, where such jobs are sent",
            )
        )
    if not greeting.retain_available:
        found.append(
            error(
                "broker.retain",
                "the broker keeps no retained messages: they are the cluster's memory",
                "retain_available true in its configuration",
            )
        )
    if greeting.maximum_qos < 1:
        found.append(
            error(
                "broker.qos",
                "the broker takes QoS 0 only: what it loses is lost",
                "max_qos 2 in its configuration",
            )
        )
    if not greeting.wildcards_available:
        found.append(
            error("broker.wildcards", "the broker has no wildcard subscriptions", "use another")
        )
    return found or [ok("broker.limits", "packet size, QoS, retained messages as they have to be")]


def delay(round_trip_s: float, answer_s: float) -> Finding:
    """Whether small messages wait for late acknowledgements."""
    if answer_s - round_trip_s > NAGLE_S:
        return warning(
            "broker.nodelay",
            f"a small message is answered after {answer_s * 1e3:.0f} ms, where the way there and back takes "
            f"{round_trip_s * 1e3:.1f} ms: Nagle's algorithm is on at the broker",
            f"set_tcp_nodelay true in its configuration ({CONFIGURATION})",
        )
    return ok(
        "broker.nodelay",
        f"there and back in {round_trip_s * 1e3:.1f} ms, small messages answered in {answer_s * 1e3:.1f} ms",
    )


def queues(seen: Queue) -> list[Finding]:
    """What the broker does for a client that is slow."""
    found = []
    if seen.under_way < UNDER_WAY:
        found.append(
            warning(
                "broker.inflight",
                f"the broker stops at {seen.under_way} messages that a client has not acknowledged: jobs are "
                "acknowledged with their answers, so the orchestrator stops there, too",
                "let clients say themselves, with their receive maximum: max_inflight_messages 0 of "
                "Mosquitto, max_inflight of EMQX",
            )
        )
    if seen.came < MANY:
        kept = seen.came - seen.under_way
        found.append(
            warning(
                "broker.queue",
                f"of {MANY} messages for a slow client {MANY - seen.came} were dropped without a word: the "
                f"broker keeps {kept}",
                f"max_queued_messages {_OURS.max_queued_messages} and max_queued_bytes "
                f"{_OURS.max_queued_bytes} in its configuration ({CONFIGURATION})",
            )
        )
    return found or [ok("broker.queue", f"{MANY} messages for a slow client wait, and all come")]


async def _openness(url: BrokerUrl) -> list[Finding]:
    """Whether strangers may in, where others than this machine reach the broker."""
    if is_loopback(url.host):
        return []
    anonymous = replace(url, username=None, password=None)
    answer = await greet(anonymous, timeout_s=CONNECT_S)
    if answer.reason == SUCCESS:
        return [
            warning(
                "broker.open",
                f"{url.address} lets anybody in: whoever reaches it can command every device",
                "`amp4ec broker init DIR` makes a closed broker, `amp4ec join-token NAME` the way in",
            )
        ]
    if not url.tls:
        return [
            warning(
                "broker.plain",
                f"{url.address} speaks without TLS: the password passes in the clear",
                "`amp4ec broker init DIR` makes a broker with TLS",
            )
        ]
    return [ok("broker.closed", "TLS, and nobody without a login")]


async def _rights(url: BrokerUrl, topics: Topics, probe: Probe) -> list[Finding]:
    """Whether a login that should not may command: tried on a node that nobody has."""
    if url.username is None or _orchestrates(url):
        return []
    topic = topics.topic("assignment", node=f"doctor-{secrets.token_hex(6)}")
    with contextlib.suppress(BrokerError):
        await probe.bus.publish(topic, b"")
        return [
            warning(
                "broker.acl",
                f"user {url.username} may give orders to nodes: the broker has no ACL, or a wide one",
                "`amp4ec broker init` writes an ACL that holds each login to its own topics",
            )
        ]
    return [ok("broker.acl", f"user {url.username} may not command")]


def _orchestrates(url: BrokerUrl) -> bool:
    certificate = None if url.credentials is None else url.credentials.certificate
    if certificate is None:
        return False
    try:
        return decode_json(certificate.encode(), Certificate).role == "orchestrator"
    except ProtocolError:
        return False
