"""One node as the orchestrator sees it: alive or not, how strong, and corrected by what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.condition import Condition
from orchestrator.core.contention import Contention
from orchestrator.core.corrections import Corrections
from orchestrator.core.sanity import birth_problem
from orchestrator.core.speeds import node_speed
from orchestrator.core.visits import Visits
from shared.errors import ConfigurationError
from shared.messages.node import NodeState, Telemetry
from shared.messages.stage import Report
from shared.profile import NodeProfile

ASK_INTERVALS = 1.25
"""Of telemetry: a node that is silent for so long is asked whether it is there."""
ANSWER_S = 0.75
"""How long its answer may take: several CFS periods of a throttled node, and then some."""
ANSWER_LOOKS = 2
"""At so many looks after the question came through there has to be no answer: what came while we ourselves
stood still is read between two of them."""
LEASE_INTERVALS = 3
LEASE_GRACE_S = 0.5
"""Added to the lease: telemetry of a throttled node comes up to a CFS period late, and queues here."""
LINK_BYTES_PER_S = 100e6
"""Until a link is measured it is not taken to be a bottleneck below a gigabit's worth."""
LOADING_GRACE_S = 30.0


@dataclass(slots=True)
class Question:
    """A silent node was asked whether it is there.

    `reached` is when the question came back to us from the broker: until then its silence may be the
    broker's, or our own connection's. `looks` counts how often there was no answer since.
    """

    asked: float
    reached: float | None = None
    looks: int = 0


@dataclass(slots=True)
class Node:
    """A node's record; `alive` is what planning goes by, `state` what the node last said."""

    state: NodeState
    heard: float
    alive: bool = True
    telemetry: Telemetry | None = None
    report: Report | None = None
    """The latest of this life; kept, because one may come before the model that it speaks of."""
    told: int = -1
    """The revision of the assignment that was pushed to it last."""
    question: Question | None = None
    """Open since it became silent."""
    gone_since: float = 0.0
    """Since it was last alive."""
    visits: Visits = field(default_factory=Visits)
    left_out: bool = False
    """Alive, and planned for only where nothing fits without it."""
    needs_disk_bytes: dict[str, int] = field(default_factory=dict)
    """Free, before it can hold a stage of a model again that its disk was too full for, by model."""
    disk_full_since: float = 0.0
    corrections: dict[str, Corrections] = field(default_factory=dict)
    """By runtime."""
    condition: Condition = field(default_factory=Condition)
    contention: Contention = field(default_factory=Contention)

    @property
    def name(self) -> str:
        return self.state.node

    def asks_at(self) -> float:
        """When silence becomes a reason to ask."""
        return self.heard + ASK_INTERVALS * self.state.telemetry_interval_s

    def may_be_lost(self, now: float) -> bool:
        """Whether silence, with a question unanswered, is a loss.

        A node whose event loop may be starved has its whole lease, and one that said it was loading
        longer: importing a runtime holds Python's lock, and at 0.2 CPU that silences an agent for
        seconds. One that dies then is still noticed by its last will.
        """
        question = self.question
        if question is None or question.reached is None or question.looks < ANSWER_LOOKS:
            return False
        lease_s = 0.0
        if self.may_starve():
            lease_s = LEASE_INTERVALS * self.state.telemetry_interval_s + LEASE_GRACE_S
        if self.is_loading():
            lease_s += LOADING_GRACE_S
        return now - question.reached >= ANSWER_S and now - self.heard > lease_s

    def may_starve(self) -> bool:
        """Whether it is, or may be about to be, busy with importing, loading or calibrating."""
        untold = self.report is None or self.report.revision < self.told
        return (
            untold or self.is_loading() or bool(self.state.runtimes.keys() - self.state.calibration)
        )

    def is_loading(self) -> bool:
        """Whether it said that it was fetching or loading a stage."""
        stages = self.report.stages if self.report is not None else []
        return any(stage.state in ("fetching", "loading") for stage in stages)

    def corrections_of(self, runtime: str) -> Corrections:
        """What stages of a runtime said about the node's speed with it."""
        return self.corrections.setdefault(runtime, Corrections())

    @property
    def cpu(self) -> float:
        """CPUs that it really gets: what it may use, less what neighbours take of that."""
        return (
            0.0
            if self.state.hardware is None
            else (self.state.hardware.cpu * self.contention.left_ratio)
        )

    @property
    def memory_bytes(self) -> int:
        """What the agent may take in all: what telemetry says, else the limit of its birth."""
        if self.condition.memory_bytes is not None:
            return self.condition.memory_bytes
        return 0 if self.state.hardware is None else self.state.hardware.memory_bytes

    def profile(self, entry: ModelEntry) -> NodeProfile | None:
        """The planner's view, or None when it cannot run the model's runtime or says nonsense of itself."""
        if self.state.hardware is None or entry.runtime not in self.state.runtimes:
            return None
        if birth_problem(self.state) is not None:
            return None
        corrections = self.corrections_of(entry.runtime)
        speed = node_speed(self.state, entry, corrections.multipliers(entry.name))
        try:
            return NodeProfile(
                name=self.name,
                cpu=self.cpu,
                speed=speed.speed,
                memory_bytes=max(self.memory_bytes, 1),
                up_bytes_per_s=self.condition.up_bytes_per_s or LINK_BYTES_PER_S,
                down_bytes_per_s=self.condition.down_bytes_per_s or LINK_BYTES_PER_S,
                message_s=speed.message_cpu_s / self.cpu,
                byte_s=speed.byte_cpu_s / self.cpu,
                price_per_hour=self.state.price_per_hour,
                power_w=self.state.power_w,
                zone=self.state.zone,
                block_factors=speed.block_factors,
                input_factor=speed.input_factor,
            )
        except ConfigurationError:
            # Not to be planned for, and no reason for the others to suffer.
            return None
