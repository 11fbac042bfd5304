"""Stock clients that ask at a fixed rate, whatever becomes of it: each job's fate, and when it was known."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.bus import BrokerUrl, MqttDataBus, Properties
from shared.topics import Topics

_GREETING_S = 10.0
_POLL_S = 0.05


@dataclass(slots=True)
class Fate:
    """One job: when it was sent, and what the first answer was (monotonic seconds; None: none came)."""

    sent_at: float
    answered_at: float | None = None
    code: str = ""
    """Empty for a result, else the error's."""
    retry_after_s: float | None = None
    answers: int = 0

    @property
    def latency_s(self) -> float:
        """From sending to the answer."""
        assert self.answered_at is not None
        return self.answered_at - self.sent_at


@dataclass(slots=True)
class Flood:
    """One client with a thread and a connection of its own: `burst` jobs at once, then so many per second.

    It repeats nothing, and after `seconds` waits for the answers that are missing, `patience_s` at most.
    """

    url: BrokerUrl
    topics: Topics
    model: str
    payload: bytes
    burst: int
    rate_per_s: float
    seconds: float
    patience_s: float
    name: str = field(default_factory=lambda: f"flood-{uuid.uuid4().hex[:8]}")
    fates: dict[str, Fate] = field(default_factory=dict)
    error: Exception | None = None
    began: threading.Event = field(default_factory=threading.Event)
    """Set when the burst is with the broker, or will never be."""
    _missing: int = 0
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until all are answered, or patience is out. Raises what ended the thread."""
        assert self._thread is not None
        self._thread.join()
        if self.error is not None:
            raise self.error

    def answered(self) -> Iterator[Fate]:
        """The jobs with a result."""
        return (fate for fate in self.fates.values() if fate.answers and not fate.code)

    def _main(self) -> None:
        bus = MqttDataBus(self.url, self.name, queue_messages=10_000, queue_bytes=1 << 30)
        try:
            bus.subscribe(f"{self.topics.root}/result/{self.name}/#", 1)
            if not bus.connect(_GREETING_S):
                raise TimeoutError(f"no connection to {self.url.address}: {bus.failure}")
            bus.flush(_GREETING_S)
            self._run(bus)
        except Exception as error:  # noqa: BLE001 - raised again where somebody waits
            self.error = error
        finally:
            self.began.set()
            bus.close()

    def _run(self, bus: MqttDataBus) -> None:
        for _ in range(self.burst):
            self._send(bus)
        bus.flush(_GREETING_S)
        self.began.set()
        began = due = time.monotonic()
        ends = began + self.seconds
        while (now := time.monotonic()) < ends or (self._missing and now < ends + self.patience_s):
            if due <= now < ends:
                self._send(bus)
                due += 1.0 / self.rate_per_s
                continue
            bus.poll(min(due - now, _POLL_S) if due > now else _POLL_S)
            while (message := bus.receive()) is not None:
                self._take(message.topic, message.payload)

    def _send(self, bus: MqttDataBus) -> None:
        job = f"{len(self.fates)}"
        properties = Properties(
            response_topic=f"{self.topics.root}/result/{self.name}/{job}", user=(("job", job),)
        )
        self.fates[job] = Fate(time.monotonic())
        self._missing += 1
        topic = self.topics.topic("infer", model=self.model)
        bus.publish(topic, self.payload, 1, properties=properties)

    def _take(self, topic: str, payload: bytes | bytearray) -> None:
        fate, said = self.fates[topic.rpartition("/")[2]], json.loads(payload)
        fate.answers += 1
        if fate.answers > 1:
            return
        self._missing -= 1
        fate.answered_at = time.monotonic()
        if said["status"] != "ok":
            fate.code = said["error"]["code"]
            fate.retry_after_s = said["error"].get("retry_after_s")
