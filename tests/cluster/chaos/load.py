"""Clients that ask at a steady rate whatever happens, and write down what they get."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from deploy.local import LocalCluster
from shared.client import Client
from shared.client.results import read_answer
from shared.errors import Amp4ecError, JobError
from tests.cluster.chaos.ledger import Job, Kind, Ledger, Outcome
from tests.cluster.chaos.samples import Sample

_JOB_S = 150.0
"""Longer than any fault: who waits so long and gets nothing has lost a job."""
_MAX_OPEN = 12
"""Of one client. Beyond it waits: a queue would hide how soon a new job is answered after a fault."""
_SESSION_S = 3600
_CONNECT_S = 10.0


@dataclass(slots=True)
class Load:
    """Several clients of each kind against one model. Use `running`."""

    cluster: LocalCluster
    model: str
    samples: Sequence[Sample]
    per_s: float
    """Of all clients together."""
    clients: int = 3
    """Ours; one of each stock kind comes on top."""
    ledger: Ledger = field(default_factory=Ledger)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _jobs: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Ledger]:
        """Ask until left; then nothing new is asked, but answers are still taken until `drain` returns."""
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            ours = [
                await stack.enter_async_context(self.cluster.client()) for _ in range(self.clients)
            ]
            stock = [
                stack.enter_context(contextlib.closing(StockClient(self, kind, loop)))
                for kind in (Kind.MQTT5, Kind.MQTT311)
            ]
            stack.enter_context(
                contextlib.closing(Tap(self, [client.name for client in ours], loop))
            )
            each_s = (len(ours) + len(stock)) / self.per_s
            pumps = [
                asyncio.create_task(self._ask(client, each_s), name=client.name) for client in ours
            ]
            pumps += [
                asyncio.create_task(self._publish(client, each_s), name=client.name)
                for client in stock
            ]
            try:
                yield self.ledger
            finally:
                self._ended.set()
                await asyncio.gather(*pumps)
                for job in list(self._jobs):
                    job.cancel()
                await asyncio.gather(*self._jobs, return_exceptions=True)

    async def drain(self, timeout_s: float, stock_s: float = 20.0) -> None:
        """Ask no more, and wait until everything is answered.

        Args:
            timeout_s: how long the jobs of our clients may take.
            stock_s: how much longer those of stock clients may, which a killed broker loses.
        """
        self._ended.set()
        for wait_s, kinds in ((timeout_s, (Kind.CLIENT,)), (stock_s, tuple(Kind))):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.ledger.all_answered(*kinds)

    async def _paced(self, period_s: float) -> AsyncIterator[int]:
        """Numbers of samples, one per period; a client that was held up does not make up for it."""
        due, index = time.monotonic(), uuid.uuid4().int
        while not self._ended.is_set():
            index += 1
            yield index % len(self.samples)
            now = time.monotonic()
            due = max(due + period_s, now - period_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), max(0.0, due - now))

    async def _ask(self, client: Client, period_s: float) -> None:
        room = asyncio.Semaphore(_MAX_OPEN)
        async for sample in self._paced(period_s):
            await room.acquire()
            entry = self.ledger.sent(Kind.CLIENT, "", sample)
            task = asyncio.create_task(self._one(client, entry))
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)
            task.add_done_callback(lambda _: room.release())

    async def _one(self, client: Client, entry: Job) -> None:
        sample = self.samples[entry.sample]
        try:
            result = await client.infer(self.model, sample.image, tensors=True, timeout_s=_JOB_S)
        except Amp4ecError as error:
            self.ledger.answered(entry, time.monotonic(), Outcome.ERROR, _reason(error))
            return
        entry.job = result.answer.job
        (tensor,) = (result.tensors or {}).values()
        right = sample.right_tensor(tensor)
        detail = "" if right else f"off by {sample.error_of(tensor):.1e} on {result.nodes}"
        outcome = Outcome.RIGHT if right else Outcome.WRONG
        self.ledger.answered(entry, time.monotonic(), outcome, detail)

    async def _publish(self, client: StockClient, period_s: float) -> None:
        async for sample in self._paced(period_s):
            if client.open < _MAX_OPEN:
                client.send(sample)


def _reason(error: Amp4ecError) -> str:
    code = f"{error.code.value}: " if isinstance(error, JobError) else ""
    return f"{code}{error}"


def _connected(client: paho.Client, host: str, port: int, **how: object) -> None:
    """Connect, and go on in a thread of paho's own, which reconnects by itself.

    Raises:
        TimeoutError: its subscription was not granted in time.
    """
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.reconnect_delay_set(1, 2)
    client.connect(host, port, keepalive=10, **how)  # type: ignore[arg-type]
    client.loop_start()
    if not subscribed.wait(_CONNECT_S):
        client.loop_stop()
        raise TimeoutError("the broker did not answer a stock client")


class StockClient:
    """paho as somebody would use it who never heard of us: QoS 1, a session that outlives connections.

    Publishes each job once; what it does after a reconnection is paho's way of keeping QoS 1.
    """

    def __init__(self, load: Load, kind: Kind, loop: asyncio.AbstractEventLoop) -> None:
        self.name = f"{kind.value}-{uuid.uuid4().hex[:8]}"
        self.open = 0
        self._load = load
        self._kind = kind
        self._loop = loop
        self._entries: dict[str, Job] = {}
        root = load.cluster.root
        self._answers = f"{root}/result/{self.name}"
        self._infer = f"{root}/model/{load.model}/infer"
        v5 = kind is Kind.MQTT5
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.name,
            protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
            clean_session=None if v5 else False,
        )
        self._client.max_queued_messages_set(0)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self._answers}/#", qos=1)
        self._client.on_message = self._take
        url = load.cluster.url
        if v5:
            session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            session.SessionExpiryInterval = _SESSION_S
            _connected(self._client, url.host, url.port, clean_start=False, properties=session)
        else:
            _connected(self._client, url.host, url.port)

    def send(self, sample: int) -> None:
        """Publish one job."""
        job = uuid.uuid4().hex
        entry = self._load.ledger.sent(self._kind, job, sample)
        self._entries[job] = entry
        self.open += 1
        payload = self._load.samples[sample].payload
        if self._kind is Kind.MQTT311:
            self._client.publish(f"{self._infer}/{self.name}/{job}", payload, qos=1)
            return
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = f"{self._answers}/{job}"
        properties.CorrelationData = job.encode()
        properties.UserProperty = [("job", job), ("accept", "application/msgpack")]
        self._client.publish(self._infer, payload, qos=1, properties=properties)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        """In paho's thread."""
        at, digest = time.monotonic(), hashlib.sha256(message.payload).digest()
        job = message.topic.rsplit("/", 1)[1]
        entry = self._entries.get(job)
        if entry is None:
            return
        outcome, detail = self._judge(entry, message.payload)
        self._loop.call_soon_threadsafe(self._note, entry, at, digest, outcome, detail)

    def _judge(self, entry: Job, payload: bytes | bytearray) -> tuple[Outcome, str]:
        sample = self._load.samples[entry.sample]
        try:
            answer = read_answer(payload)
        except Amp4ecError as error:
            return Outcome.WRONG, f"unreadable: {error}"
        if isinstance(answer, JobError):
            return Outcome.ERROR, _reason(answer)
        if isinstance(answer, list):
            return Outcome.WRONG, "a batch's answer to one input"
        if answer.tensors:
            right = all(sample.right_tensor(tensor) for tensor in answer.tensors.values())
        else:
            right = bool(answer.top) and all(
                sample.right_label(label.index, label.probability) for label in answer.top
            )
        return (Outcome.RIGHT, "") if right else (Outcome.WRONG, f"by {answer.nodes}")

    def _note(self, entry: Job, at: float, digest: bytes, outcome: Outcome, detail: str) -> None:
        if entry.outcome is Outcome.OPEN:
            self.open -= 1
        self._load.ledger.delivered(entry.job, at, digest)
        self._load.ledger.answered(entry, at, outcome, detail)


class Tap:
    """Looks at the answers that go to our own clients, which would not show a second one."""

    def __init__(self, load: Load, names: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        self._ledger = load.ledger
        self._loop = loop
        root, url = load.cluster.root, load.cluster.url
        topics = [(f"{root}/result/{name}/+", 1) for name in names]
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"tap-{uuid.uuid4().hex[:8]}",
            clean_session=False,
        )
        self._client.on_connect = lambda client, *_: client.subscribe(topics)
        self._client.on_message = self._take
        _connected(self._client, url.host, url.port)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        if not message.payload:  # a client's word to itself
            return
        self._loop.call_soon_threadsafe(
            self._ledger.delivered,
            message.topic.rsplit("/", 1)[1],
            time.monotonic(),
            hashlib.sha256(message.payload).digest(),
        )
