"""The paper's stability score, in one line: 1 minus the mean absolute change of CPU and memory use."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field

SAMPLES = 30


@dataclass(slots=True)
class Stability:
    """The last `SAMPLES` samples of CPU and memory use, each a ratio of what the node may use."""

    _samples: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def add(self, cpu_ratio: float, memory_ratio: float) -> float:
        """Take a sample; returns the score in [0, 1] (shared/messages/node.py, `Telemetry`).

        A node with one sample has not changed: 1.
        """
        self._samples.append((cpu_ratio, memory_ratio))
        changes = [
            abs(after - before)
            for first, second in itertools.pairwise(self._samples)
            for before, after in zip(first, second, strict=True)
        ]
        if not changes:
            return 1.0
        return min(1.0, max(0.0, 1.0 - math.fsum(changes) / len(changes)))
