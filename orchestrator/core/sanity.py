"""What a node says of itself that cannot be true: named, refused, and complained about once.

Types and lower bounds are the decoder's; here is what a number can still be: infinite, or out of proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.messages.node import NodeState, Telemetry

MOST_NODES = 1000
"""Of which complaints are remembered: a flood of invented names must not fill our memory."""
MOST_CPUS = 100_000.0
STRANGE_AFTER = 3
"""Messages of a life that nobody knows of are strange from here on: a few may be overtaken by their birth."""


def telemetry_problem(telemetry: Telemetry) -> str | None:
    """What of a sample cannot be true, or None."""
    if telemetry.memory_limit_bytes == 0:
        return "memory_limit_bytes is 0, expected at least 1"
    if telemetry.stability > 1.0:
        return f"stability is {telemetry.stability}, expected 0 to 1"
    numbers: list[tuple[str, float | None]] = [
        ("uptime_s", telemetry.uptime_s),
        ("cpu_percent", telemetry.cpu_percent),
        ("round_trip_s", telemetry.round_trip_s),
        ("up_bytes_per_s", telemetry.up_bytes_per_s),
        ("down_bytes_per_s", telemetry.down_bytes_per_s),
        ("cpu_others_ratio", telemetry.cpu_others_ratio),
    ]
    for stage in telemetry.stages:
        numbers += [
            (f"compute_s of {stage.pipeline}/{stage.stage}", stage.compute_s),
            (f"cpu_s of {stage.pipeline}/{stage.stage}", stage.cpu_s),
            (f"queue_s of {stage.pipeline}/{stage.stage}", stage.queue_s),
        ]
    return _infinite(numbers)


def birth_problem(state: NodeState) -> str | None:
    """What of a birth cannot be true, or None. Such a node is not planned for."""
    hardware = state.hardware
    if hardware is None:
        return None
    if hardware.memory_bytes == 0:
        return "memory_bytes is 0, expected at least 1"
    if not hardware.cpu <= MOST_CPUS:
        return f"cpu is {hardware.cpu:g}, expected a finite number of CPUs"
    numbers: list[tuple[str, float | None]] = [
        ("price_per_hour", state.price_per_hour),
        ("power_w", state.power_w),
        ("telemetry_interval_s", state.telemetry_interval_s),
    ]
    for runtime, calibration in sorted(state.calibration.items()):
        numbers += [(f"{runtime}.{name}", value) for name, value in calibration.seconds.items()]
    return _infinite(numbers)


def _infinite(numbers: Iterable[tuple[str, float | None]]) -> str | None:
    for name, value in numbers:
        if value is not None and not math.isfinite(value):
            return f"{name} is {value}, expected a finite number"
    return None


@dataclass(slots=True)
class Complaints:
    """Which were made already: each once per node, life and kind of message."""

    _made: dict[str, tuple[int, set[str]]] = field(default_factory=dict)
    _strange: dict[str, int] = field(default_factory=dict)

    def is_new(self, node: str, incarnation: int, what: str) -> bool:
        """Whether this one has not been made yet; then it has from now on."""
        known, made = self._made.get(node, (incarnation, set()))
        if known != incarnation:
            made = set()
        if what in made or (node not in self._made and len(self._made) >= MOST_NODES):
            return False
        made.add(what)
        self._made[node] = (incarnation, made)
        return True

    def is_strange(self, node: str) -> bool:
        """Count a message of a life that nobody knows of; whether there were too many for chance."""
        if node not in self._strange and len(self._strange) >= MOST_NODES:
            return False
        self._strange[node] = self._strange.get(node, 0) + 1
        return self._strange[node] >= STRANGE_AFTER

    def forget(self, node: str) -> None:
        """The node is forgotten."""
        self._made.pop(node, None)
        self._strange.pop(node, None)

    def born(self, node: str) -> None:
        """A birth: what was overtaken by it was not strange."""
        self._strange.pop(node, None)
