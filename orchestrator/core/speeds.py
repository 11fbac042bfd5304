"""How fast a node is at a model: from its calibration, and corrected by what its stages took."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.cluster_events import ModelEntry
from shared.messages.node import NodeState

MESSAGE_CPU_S, BYTE_CPU_S = 0.0005, 1.0e-9
"""CPU seconds to receive or send one activation at QoS 1, and more for each byte of it, at speed 1.0.

Measured on one x86 core, codec included, for both ways: 0.25 ms where messages come back to back, 0.5 ms
where 15 ms pass between them, and 1 ms beside a runtime, whose work leaves nothing of Python in the caches.
The last is what a stage pays. `python -m tests.benchmarks messaging` measures them."""
CORRECTION_WEIGHT = 0.3
CORRECTION_BOUNDS = (0.2, 5.0)
SPEED_BOUNDS = (1e-3, 1e3)
"""A calibration that says more or less than this is broken."""
CORRECTION_ITEMS = 5
"""A mean over fewer items says more about chance than about the node."""


@dataclass(slots=True)
class Corrections:
    """Per model: measured CPU seconds over predicted, smoothed; above 1 is slower than thought."""

    by_model: dict[str, float] = field(default_factory=dict)

    def ratio(self, model: str) -> float:
        """By how much a model's predicted seconds are to be multiplied; 1 without a measurement."""
        return self.by_model.get(model, 1.0)

    def take(self, model: str, measured_cpu_s: float, predicted_cpu_s: float, items: int) -> None:
        """Take a stage's measured mean into account; `predicted_cpu_s` is the uncorrected one."""
        if items < CORRECTION_ITEMS or predicted_cpu_s <= 0 or measured_cpu_s <= 0:
            return
        low, high = CORRECTION_BOUNDS
        ratio = min(max(measured_cpu_s / predicted_cpu_s, low), high)
        known = self.by_model.get(model)
        self.by_model[model] = (
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
