"""Once a second: what the dispatcher reports, handed on to the core, and made into what people read.

`metrics` every second, `orchestrator/health` when it changes, models' states when they are due. What a
scraper of `/metrics` wants is kept here between its visits.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime

from orchestrator.announcer import Announcer
from orchestrator.core import cluster_events as events
from orchestrator.core.cluster import Cluster
from orchestrator.core.dispatch_stats import Snapshot
from orchestrator.core.health import RECENT_S, Seen, judge
from orchestrator.decisions import MicroBatchNews
from orchestrator.dispatch_notes import Outcomes, Report
from orchestrator.dispatcher import DispatchThread
from orchestrator.figures import metrics
from orchestrator.home_assistant import HomeAssistant
from orchestrator.job_store import JobStore
from orchestrator.latency_histogram import LatencyHistogram
from orchestrator.live_settings import LiveSettings
from orchestrator.measurements import measurements
from orchestrator.model_states import ModelStates
from orchestrator.note_box import NoteBox
from orchestrator.outbox import Outbox
from shared.errors import ErrorCode
from shared.messages.health import Grade, Health
from shared.messages.operation import Metrics

STEADY_S = 2.0
"""What is over sooner is not told as the health of the cluster."""


class Reporting:
    """One per time of leading, in its event loop.

    Args:
        cluster: its core.
        step: gives it an event.
        dispatcher: gets what telemetry says, where its rule goes by that.
        announcer: puts lines on `event`.
        outbox: publishes.
        states: those of models.
        home: tells Home Assistant, once what was served before is `restored`.
        restored: whether that is over.
        jobs: says how many were set aside, and whether it can be written.
        settings: in force.
        counters: the control plane's own.
        notes: of the dispatcher; says how many were dropped.
        connected: whether the broker is there.
        standbys: who would take over.
        say_again: publishes the orchestrator's state.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        step: Callable[[events.Event], None],
        dispatcher: DispatchThread,
        announcer: Announcer,
        outbox: Outbox,
        states: ModelStates,
        home: HomeAssistant,
        restored: Callable[[], bool],
        jobs: JobStore,
        settings: LiveSettings,
        counters: Counter[str],
        notes: NoteBox,
        connected: Callable[[], bool],
        standbys: Callable[[], tuple[str, ...]],
        say_again: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._step = step
        self._dispatcher = dispatcher
        self._announcer = announcer
        self._outbox = outbox
        self._states = states
        self._home = home
        self._restored = restored
        self._jobs = jobs
        self._settings = settings
        self._counters = counters
        self._notes = notes
        self._connected = connected
        self._standbys = standbys
        self._say_again = say_again
        self._micro_batch_news = MicroBatchNews()
        self._num_set_aside = 0
        self._past: deque[tuple[float, int, int]] = deque()
        """When, and by then: jobs refused as overloaded, failures of our own."""
        self._grade: Grade = "ok"
        self._published: object = None
        self._differs_since: float | None = None
        self.dispatched: Snapshot | None = None
        """The dispatcher, at its last report."""
        self.metrics: Metrics | None = None
        """The last on `metrics`."""
        self.outcomes: Outcomes = {}
        """Jobs, since we began to lead."""
        self.latencies: dict[str, LatencyHistogram] = {}
        """Of answers, by model."""

    def take(self, report: Report) -> None:
        """A second is over."""
        now = time.monotonic()
        self.dispatched = report.snapshot
        self._tell_core(report, now)
        for tell in self._micro_batch_news.tell(report.snapshot):
            self._announcer.happened(tell)
        for line in report.news:
            self._announcer.happened(events.Tell("message_dropped", line))
        if self._jobs.num_set_aside != self._num_set_aside:
            self._num_set_aside = self._jobs.num_set_aside
            self._say_again()
        self._states.measured(report, now)
        self._home.answered(report)
        if self._restored():
            self._home.refresh(self._cluster.nodes.values(), self._cluster.models)
        self._count(report, now)
        if self._connected():
            self.metrics = metrics(
                report,
                len(self._cluster.alive()),
                self._cluster.standings(now),
                self._counters
                | Counter(dropped_outbox=self._outbox.dropped, dropped_notes=self._notes.dropped),
                self._cluster.prediction_errors(),
                sent_at_ms=time.time_ns() // 1_000_000,
                labels=self._home.labels,
            )
            self._outbox.publish("metrics", self.metrics, qos=0)
            self._publish_health(now)

    def _tell_core(self, report: Report, now: float) -> None:
        for event in measurements(report, now):
            self._step(event)
        if self._settings.options.dispatch.scheduling.goes_by_telemetry:
            for figures in self._cluster.figures(now):
                self._dispatcher.tell(figures)

    def _count(self, report: Report, now: float) -> None:
        self.outcomes = report.outcomes
        for model, answered in report.answered.items():
            latency = self.latencies.setdefault(model, LatencyHistogram())
            latency.add(answered.latencies_s)
            latency.add(answered.cached_latencies_s)
        refused = report.snapshot.counters.rejected.get(ErrorCode.OVERLOADED, 0)
        errors = self._counters["internal_errors"] + report.dropped.get("internal_error", 0)
        self._past.append((now, refused, errors))
        while len(self._past) > 1 and now - self._past[1][0] >= RECENT_S:
            self._past.popleft()

    def health(self) -> Health:
        """How the cluster is now."""
        now = time.monotonic()
        first, last = (self._past[0], self._past[-1]) if self._past else ((0.0, 0, 0),) * 2
        seen = Seen(
            models=self._cluster.models,
            nodes_online=len(self._cluster.alive()),
            standings=self._cluster.standings(now),
            loads=() if self.dispatched is None else self.dispatched.models,
            settings=self._settings.options.dispatch,
            refused=last[1] - first[1],
            errors=last[2] - first[2],
            store_trouble=self._jobs.failure,
            standbys=self._standbys(),
        )
        return judge(seen, datetime.now(UTC).isoformat(timespec="seconds"))

    def leave(self) -> None:
        """Nobody leads who could say how the cluster is."""
        self._outbox.clear("health")

    def _publish_health(self, now: float) -> None:
        """Where something else is wrong than was said, for a while: figures within the words change always.

        A model that loads, or a node that is late, is on `event`, and need not be on this.
        """
        health = self.health()
        kinds = [(found.grade, found.about, found.name) for found in health.findings]
        essence = (health.health, kinds, health.models, health.nodes_online, health.standbys)
        if essence == self._published:
            self._differs_since = None
            return
        if self._differs_since is None:
            self._differs_since = now
        if now - self._differs_since < STEADY_S:
            return
        self._published, self._differs_since = essence, None
        self._outbox.publish("health", health, retain=True)
        if health.health != self._grade:
            self._grade = health.health
            self._announcer.happened(events.Tell("health_changed", health.text))
