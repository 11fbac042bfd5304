"""The thread that owns the data connection and runs every loaded stage of this node.

One thread for both: an activation is read, run and sent on without a hop between threads, at half the CPU of
any other way (FACTS.md, "Bus"). The rest of the agent talks to it through a mailbox and `wake`; it answers
through `notify`, which is called in this thread.

A stage counts as attached when a message that the thread sent to the stage's own topic has come back: only
then has the broker made the subscription, and nothing sent to the stage from now on can be missed. (This
connection and the one that carries reports are two, and the broker does not keep their order.) The probe is
an empty message.

An activation is acknowledged with its output, in the same write, and no more are taken than `MAX_ITEMS`: the
others wait at the broker, and a slow stage does not hoard. The receive maximum says so, but Mosquitto 2.0.11
keeps it only until the first acknowledgement and then sends whatever waits; so the connection's inbox is as
small, and beyond it nothing is read. What a cut connection leaves unacknowledged is delivered
again on the next one, so it is forgotten here, and what was done meanwhile is known again by its packet
identifier. An item whose acknowledgement was lost on its way runs twice; the dispatcher takes one result.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias, assert_never

from edge_agent.core.stage_queue import StageQueue
from edge_agent.drops import Drops
from edge_agent.stage import Item, Stage, process
from shared.batch_costs import SIZES
from shared.bus.faces import DataBus
from shared.bus.message import Message, Properties
from shared.errors import BrokerUnreachableError
from shared.job_options import DEFAULT_PRIORITY, parse_priority
from shared.link_rates import Rates
from shared.logs import get_log
from shared.messages.node import StageTelemetry

log = get_log(__name__)

MAX_ITEMS = 64
"""Activations that wait here, of all stages of the node; the data connection's receive maximum, and the bound
of its inbox."""
MAX_BYTES = 64 * 1024 * 1024
"""Of their payloads; one is always taken. The inbox has the same bound."""
_PROBE_AGAIN_S = 1.0
_IDLE_S = 10.0
"""Whatever is to be done then comes by the connection or the mailbox, and wakes the thread."""
_LAST_WORD_S = 1.0
"""How long what must be known first is waited for."""


@dataclass(frozen=True, slots=True)
class Attached:
    """The stage takes activations."""

    life: int


@dataclass(frozen=True, slots=True)
class Detached:
    """The stage has finished what it had, and is unloaded."""

    life: int


@dataclass(frozen=True, slots=True)
class ThreadEnded:
    """The thread has ended; `error` is None when it was told to."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Forged:
    """So many activations more were dropped, since they do not come from their pipeline."""

    count: int


Notice: TypeAlias = Attached | Detached | Forged | ThreadEnded


@dataclass(frozen=True, slots=True)
class _Attach:
    stage: Stage


@dataclass(frozen=True, slots=True)
class _Detach:
    life: int


@dataclass(frozen=True, slots=True)
class _Stop:
    within_s: float


class _Connect(Protocol):
    def __call__(self) -> DataBus: ...


@dataclass(slots=True)
class _Held:
    stage: Stage
    attached: bool = False
    leaving: bool = False
    queued: int = 0
    probe_at: float = 0.0
    items: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class _Waiting:
    held: _Held
    message: Message
    read_at: float
    sending: Properties | None
    """What its output is sent with: its priority, where it has one of its own."""


@dataclass(slots=True)
class Traffic:
    """What the thread has done so far; read from other threads."""

    queue: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    items: int = 0
    connected: bool = False
    rates: Rates = field(default_factory=Rates)


class StageThread:
    """Start with `start`; `attach` and `detach` stages from any thread; end with `stop`.

    Args:
        connect: makes the data connection, with manual acknowledgement; called in the thread.
        notify: told what happened, in the thread: hand it on and return.
        name: of the thread.
    """

    def __init__(self, connect: _Connect, notify: Callable[[Notice], None], *, name: str) -> None:
        self.traffic = Traffic()
        self.drops = Drops()
        self.failures = Drops("an item failed")
        self._connect = connect
        self._notify = notify
        self._mailbox: deque[_Attach | _Detach | _Stop] = deque()
        self._bus: DataBus | None = None
        self._lives: dict[int, _Held] = {}
        self._topics: dict[str, _Held] = {}
        self._queue: StageQueue[_Waiting] = StageQueue()
        self._queue_bytes = 0
        self._sessions = 0
        self._read_session = 0
        # Done while there was no connection to say so on: packet identifier -> topic and size.
        self._done_late: dict[int, tuple[str, int]] = {}
        self._stop_at: float | None = None
        self._lock = threading.Lock()
        # A daemon, so that a runtime stuck in native code cannot keep a process from ending.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    # -- from any thread

    def start(self) -> None:
        """Begin; the connection is made, and made again, in the thread."""
        self._thread.start()

    def attach(self, stage: Stage) -> None:
        """Take a loaded stage; answered by `Attached`."""
        self._post(_Attach(stage))

    def detach(self, life: int) -> None:
        """Unsubscribe, finish what is queued, unload; answered by `Detached`."""
        self._post(_Detach(life))

    def stop(self, within_s: float) -> None:
        """Unsubscribe from all, finish what is queued within that time, disconnect, and end."""
        self._post(_Stop(within_s))

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False when it has not come in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def take_telemetry(self) -> list[StageTelemetry]:
        """What each stage did since the call before; times are means per item."""
        with self._lock:
            rows = []
            for held in self._lives.values():
                count = max(1, held.items)
                stage = held.stage
                rows.append(
                    StageTelemetry(
                        model=stage.model,
                        pipeline=stage.pipeline,
                        generation=stage.generation,
                        stage=stage.index,
                        items=held.items,
                        queue=held.queued,
                        compute_s=round(held.compute_s / count, 6),
                        cpu_s=round(held.cpu_s / count, 6),
                        queue_s=round(held.queue_s / count, 6),
                        at_once=stage.costs.best(SIZES),
                    )
                )
                held.items, held.queue_s, held.compute_s, held.cpu_s = 0, 0.0, 0.0, 0.0
            return rows

    def _post(self, letter: _Attach | _Detach | _Stop) -> None:
        self._mailbox.append(letter)
        bus = self._bus
        if bus is not None:
            bus.wake()

    # -- in the thread

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            bus = self._bus = self._connect()
            try:
                bus.connect()
                self._loop(bus)
                bus.flush(2.0)
            finally:
                self._unload_all()
                bus.close()
        except BaseException as caught:
            log.exception("the stage thread failed")
            error = caught
        self._notify(ThreadEnded(error))

    def _loop(self, bus: DataBus) -> None:
        while not self._finished():
            patience_s = self._patience()
            cpu_at = time.thread_time()
            bus.poll(patience_s)
            self._read(bus)
            receive_cpu_s = time.thread_time() - cpu_at
            while self._mailbox:
                self._open(bus, self._mailbox.popleft())
            if self._queue:
                self._run_next(bus, receive_cpu_s)
            self._look_after(bus)

    def _patience(self) -> float:
        """How long `poll` may wait for something to happen.

        There is no pacing below a CPU quota. Pausing after each item keeps the kernel from stopping the
        stage in the middle of one, but it makes every item start with cold caches; three stages at
        0.5/0.3/0.2 CPU and 8 in flight gave 66 images/s with pauses and 72 without, at the same p95.
        """
        if self._mailbox or self._queue or self._stop_at is not None:
            return 0.0
        proven = all(held.attached or held.leaving for held in self._lives.values())
        return _IDLE_S if proven else _PROBE_AGAIN_S / 10

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        if self._queue and time.monotonic() < self._stop_at:
            return False
        if self._queue:
            self.drops.drop("unfinished", f"{len(self._queue)} items were left at the end")
        return True

    def _read(self, bus: DataBus) -> None:
        """Take what came, within bounds: the time it waits from here on is queue time."""
        if bus.sessions != self._read_session:
            self._read_session = bus.sessions
            if bus.session_present:
                self._forget_waiting()
            else:
                self._done_late.clear()  # packet identifiers begin anew
        now = time.monotonic()
        while (
            len(self._queue) < MAX_ITEMS
            and self._queue_bytes < MAX_BYTES
            and (message := bus.receive()) is not None
        ):
            held = self._topics.get(message.topic)
            if held is None:
                self.drops.drop("unknown_stage", "no stage of ours (any more)", topic=message.topic)
                bus.acknowledge(message)
                continue
            if not message.payload:
                self._attached(held)
                bus.acknowledge(message)
                continue
            mac = held.stage.mac
            if mac is not None and not mac.holds(message):
                self._forged(message.topic)
                bus.acknowledge(message)
                continue
            if message.duplicate and self._done_before(message):
                bus.acknowledge(message)
                continue
            priority = _priority(message.properties)
            sending = None if priority is None else message.properties
            self._queue.push(
                held.stage.model,
                DEFAULT_PRIORITY if priority is None else priority,
                _Waiting(held, message, now, sending),
            )
            self._queue_bytes += len(message.payload)
            held.queued += 1
        self._count(bus)

    def _forged(self, topic: str) -> None:
        self.drops.drop("forged", "it does not come from its pipeline", topic=topic)
        count = self.drops.counts["forged"]
        if count.bit_count() == 1:  # a flood must not become one of notices
            self._notify(Forged(count - count // 2))

    def _forget_waiting(self) -> None:
        """The broker still has this session, and delivers again what was not acknowledged."""
        for waiting in self._queue.clear():
            waiting.held.queued -= 1
        self._queue_bytes = 0

    def _count(self, bus: DataBus) -> None:
        traffic = self.traffic
        traffic.queue = len(self._queue)
        traffic.bytes_received = bus.bytes_received
        traffic.bytes_sent = bus.bytes_sent
        traffic.connected = bus.connected
        traffic.rates = bus.rates

    def _open(self, bus: DataBus, letter: _Attach | _Detach | _Stop) -> None:
        match letter:
            case _Attach(stage):
                held = _Held(stage)
                with self._lock:
                    self._lives[stage.life] = held
                self._topics[stage.topic] = held
                bus.subscribe(stage.topic)
            case _Detach(life):
                leaving = self._lives.get(life)
                if leaving is not None:
                    self._leave(bus, leaving)
            case _Stop(within_s):
                self._stop_at = time.monotonic() + within_s
                for held in self._lives.values():
                    self._leave(bus, held)
            case _:
                assert_never(letter)

    def _leave(self, bus: DataBus, held: _Held) -> None:
        held.leaving = True
        # The same topic may already belong to a later life.
        if self._topics.get(held.stage.topic) is held:
            del self._topics[held.stage.topic]
            bus.unsubscribe(held.stage.topic)

    def _look_after(self, bus: DataBus) -> None:
        """Probe subscriptions that are not proven yet; let go of stages that have finished."""
        again = bus.sessions != self._sessions
        self._sessions = bus.sessions
        done = None
        for held in self._lives.values():
            if held.leaving:
                if held.queued == 0:
                    done = held
            elif not held.attached:
                now = time.monotonic()
                if bus.connected and (again or now >= held.probe_at):
                    held.probe_at = now + _PROBE_AGAIN_S
                    with contextlib.suppress(BrokerUnreachableError):  # too much waits: later then
                        bus.publish(held.stage.topic, b"")
        if done is not None:
            with self._lock:
                del self._lives[done.stage.life]
            done.stage.runner.unload()
            self._notify(Detached(done.stage.life))

    def _attached(self, held: _Held) -> None:
        if not held.attached:
            held.attached = True
            self._notify(Attached(held.stage.life))

    def _run_next(self, bus: DataBus, receive_cpu_s: float) -> None:
        waiting = self._queue.take()
        held, message = waiting.held, waiting.message
        self._queue_bytes -= len(message.payload)
        item = Item(message.payload, waiting.read_at, receive_cpu_s)
        outcome = process(held.stage, item, partial(self._say, held.stage))
        self._done(bus, message)
        if not outcome.publish:
            self.drops.drop("malformed", outcome.problem, topic=message.topic)
        elif outcome.problem:
            self.failures.drop(
                "stage_failed", outcome.problem, topic=message.topic, request=outcome.request
            )
        for topic, payload in outcome.publish:
            self._send(bus, held.stage, topic, payload, waiting.sending)
        if outcome.handed_on is not None:
            self._send(bus, held.stage, held.stage.result_topic, outcome.handed_on)
        held.stage.sent(outcome)
        if log.is_debug:
            log.debug(
                "item computed",
                request=outcome.request,
                model=held.stage.model,
                pipeline=held.stage.pipeline,
                generation=held.stage.generation,
                stage=held.stage.index,
                queue_s=outcome.queue_s,
                compute_s=outcome.compute_s,
            )
        self._queue.charge(held.stage.model, outcome.compute_s)
        with self._lock:
            held.queued -= 1
            held.items += outcome.items
            held.queue_s += outcome.queue_s * outcome.items
            held.compute_s += outcome.compute_s
            held.cpu_s += outcome.cpu_s
        self.traffic.items += outcome.items

    def _done(self, bus: DataBus, message: Message) -> None:
        """Acknowledge, before the output is sent: both leave together, and that is kept until it arrived."""
        handle = message.handle
        if handle is None or (bus.connected and handle.session == bus.sessions):
            bus.acknowledge(message)
        else:
            self._done_late[handle.packet_id] = (message.topic, len(message.payload))

    def _done_before(self, message: Message) -> bool:
        """Whether this is delivered again only because there was no way to acknowledge it."""
        handle = message.handle
        if handle is None:
            return False
        done = self._done_late.pop(handle.packet_id, None)
        return done == (message.topic, len(message.payload))

    def _send(
        self,
        bus: DataBus,
        stage: Stage,
        topic: str,
        payload: bytes | bytearray,
        properties: Properties | None = None,
    ) -> None:
        if stage.mac is not None:
            properties = stage.mac.seal(topic, payload, properties)
        try:
            bus.publish(topic, payload, properties=properties)
        except BrokerUnreachableError as error:
            # The dispatcher runs the item again when no result comes.
            self.drops.drop("unsent", str(error), topic=topic)

    def _say(self, stage: Stage, topic: str, payload: bytes | bytearray) -> None:
        """What must have arrived before the item is computed: nothing may come after it."""
        assert self._bus is not None
        self._send(self._bus, stage, topic, payload)
        self._bus.flush(_LAST_WORD_S)

    def _unload_all(self) -> None:
        with self._lock:
            held, self._lives = list(self._lives.values()), {}
        for each in held:
            each.stage.runner.unload()


def _priority(properties: Properties) -> int | None:
    """What the dispatcher says of the job; None where it is as important as most."""
    given = properties.user_value("priority") if properties.user else None
    return None if given is None else parse_priority(given)
