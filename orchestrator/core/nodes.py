"""One node as the orchestrator sees it: alive or not, how strong, and corrected by what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.cluster_events import ModelEntry
from shared.errors import ConfigurationError
from shared.messages.node import NodeState, Telemetry
from shared.messages.stage import Report
from shared.profile import NodeProfile

LEASE_INTERVALS = 3
LEASE_GRACE_S = 0.5
"""Added to the lease: telemetry of a throttled node comes up to a CFS period late, and queues here."""
MESSAGE_CPU_S, BYTE_CPU_S = 0.0005, 1.0e-9
"""CPU seconds to receive or send one activation at QoS 1, and more for each byte of it, at speed 1.0.

Measured on one x86 core, codec included, for both ways: 0.25 ms where messages come back to back, 0.5 ms
where 15 ms pass between them, and 1 ms beside a runtime, whose work leaves nothing of Python in the caches.
The last is what a stage pays."""
LINK_BYTES_PER_S = 100e6
"""Until links are measured, none is taken to be a bottleneck below a gigabit's worth."""
LOADING_GRACE_S = 30.0
CORRECTION_WEIGHT = 0.3
CORRECTION_BOUNDS = (0.2, 5.0)
SPEED_BOUNDS = (1e-3, 1e3)
"""A calibration that says more or less than this is broken."""
CORRECTION_ITEMS = 5
"""A mean over fewer items says more about chance than about the node."""


@dataclass(slots=True)
class Node:
    """A node's record; `alive` is what planning goes by, `state` what the node last said."""

    state: NodeState
    heard: float
    alive: bool = True
    telemetry: Telemetry | None = None
    report: Report | None = None
    """The latest of this life; kept, because one may come before the model that it speaks of."""
    corrections: dict[str, float] = field(default_factory=dict)
    """Per model: measured CPU seconds over predicted, smoothed; above 1 is slower than thought."""

    @property
    def name(self) -> str:
        return self.state.node

    def lease_ends(self) -> float:
        """When silence becomes a loss.

        A node that said it was loading gets longer: importing a runtime holds Python's lock, and at 0.2
        CPU that silences an agent for seconds. One that dies then is still noticed by its last will.
        """
        lease_s = LEASE_INTERVALS * self.state.telemetry_interval_s + LEASE_GRACE_S
        return self.heard + lease_s + (LOADING_GRACE_S if self.is_loading() else 0.0)

    def is_loading(self) -> bool:
        """Whether it said that it was fetching or loading a stage."""
        stages = self.report.stages if self.report is not None else []
        return any(stage.state in ("fetching", "loading") for stage in stages)

    def speed(self, entry: ModelEntry) -> float:
        """The node's speed at this model relative to the machine that profiled it; 1.0 if unknown."""
        return calibrated_speed(self.state, entry) / self.corrections.get(entry.name, 1.0)

    def profile(self, entry: ModelEntry) -> NodeProfile | None:
        """The planner's view, or None when it cannot run the model's runtime or says nonsense of itself."""
        hardware = self.state.hardware
        if hardware is None or entry.runtime not in self.state.runtimes:
            return None
        speed = self.speed(entry)
        try:
            return NodeProfile(
                name=self.name,
                cpu=hardware.cpu,
                speed=speed,
                memory_bytes=max(hardware.memory_bytes, 1),
                up_bytes_per_s=LINK_BYTES_PER_S,
                down_bytes_per_s=LINK_BYTES_PER_S,
                message_s=MESSAGE_CPU_S / (hardware.cpu * speed),
                byte_s=BYTE_CPU_S / (hardware.cpu * speed),
                price_per_hour=self.state.price_per_hour,
                power_w=self.state.power_w,
                zone=self.state.zone,
            )
        except ConfigurationError:
            # Not to be planned for, and no reason for the others to suffer.
            return None

    def correct(
        self, model: str, measured_cpu_s: float, predicted_cpu_s: float, items: int
    ) -> None:
        """Take a stage's measured mean into account; `predicted_cpu_s` is the uncorrected one."""
        if items < CORRECTION_ITEMS or predicted_cpu_s <= 0 or measured_cpu_s <= 0:
            return
        low, high = CORRECTION_BOUNDS
        ratio = min(max(measured_cpu_s / predicted_cpu_s, low), high)
        known = self.corrections.get(model)
        self.corrections[model] = (
            ratio if known is None else known + CORRECTION_WEIGHT * (ratio - known)
        )


def calibrated_speed(state: NodeState, entry: ModelEntry) -> float:
    """Seconds that the profiled machine takes over seconds that this node takes, on the model's mix."""
    reference = entry.reference.get(entry.runtime)
    calibration = state.calibration.get(entry.runtime)
    if reference is None or calibration is None:
        return 1.0
    classes = sorted(
        name for name in set(reference) & set(calibration.seconds) if reference[name] > 0
    )
    if not classes:
        return 1.0
    # Each class's slowdown, weighted by the time that the model spends in it.
    weight = {name: entry.class_shares.get(name, 0.0) for name in classes}
    if not any(weight.values()):
        weight = dict.fromkeys(classes, 1.0)
    slowdown = sum(
        weight[name] * calibration.seconds[name] / reference[name] for name in classes
    ) / sum(weight.values())
    low, high = SPEED_BOUNDS
    return min(max(1.0 / slowdown, low), high)
