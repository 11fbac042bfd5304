"""What measured stages say about a node's speed, by component of their time.

A stage gives one number: its seconds over those predicted. That cannot tell one component from another, but
stages differ in their mix, and some components are known worse than others to begin with. So they are
estimated together, by a Kalman filter whose state is a multiplier for each component, and an offset for
each model (its profile may be off, everywhere alike)::

    ratio = sum over components (share of the predicted seconds * multiplier) + the model's offset + noise

A measurement moves what the stage consists of, in proportion to its share and to how little is known of
it; what components have in common (a slow node is slow at all of them) moves the others along. The gain is
below 1, so a stage measured again and again is approached from one side, and never overshot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orchestrator.core.speeds import COMPONENTS, FloatArray

RATIO_BOUNDS = (0.1, 10.0)
"""A stage so much faster or slower than predicted is taken for this much."""
MULTIPLIER_BOUNDS = (0.05, 20.0)
MOST_MODELS = 16
"""Of so many models that were measured last an offset is kept."""
_COMMON_VARIANCE = 0.3**2
"""Of what all components of a node have in common, before anything is measured."""
_OWN_VARIANCE = {
    "overhead": 0.3**2,
    # A client may send tensors where the profile reads photographs, or larger ones.
    "input": 0.7**2,
    # It depends on what else runs between two messages.
    "messages": 0.5**2,
}
_CLASS_VARIANCE = 0.2**2
_MODEL_VARIANCE = 0.15**2
_NOISE_VARIANCE = 0.1**2
"""Of one window's ratio."""
_FORGETTING = 0.01
"""By so much each measurement lets the knowledge fade, so that changes are followed."""


@dataclass(slots=True)
class Corrections:
    """The filter of one node and runtime."""

    _rows: dict[str, int] = field(default_factory=dict)
    """Where a model's offset is, behind the components; those measured last come last."""
    _mean: FloatArray = field(default_factory=lambda: np.ones(len(COMPONENTS)))
    _covariance: FloatArray = field(default_factory=lambda: _prior(0))

    @property
    def models(self) -> tuple[str, ...]:
        """The models of which an offset is known, those measured last at the end."""
        return tuple(self._rows)

    def multipliers(self, model: str) -> FloatArray:
        """By component, what a model's calibrated seconds are to be multiplied with."""
        row = self._rows.get(model)
        offset = 0.0 if row is None else self._mean[row]
        found: FloatArray = np.clip(self._mean[: len(COMPONENTS)] + offset, *MULTIPLIER_BOUNDS)
        return found

    def take(self, model: str, components: FloatArray, measured_cpu_s: float) -> None:
        """Take a stage's measured CPU seconds into account; `components` are those predicted uncorrected.

        Both count all CPUs of the node as busy while the stage computes.
        """
        total = float(components.sum())
        if not (total > 0 and measured_cpu_s > 0):  # not a number is neither
            return
        row = self._rows.pop(model) if model in self._rows else self._add(model)
        self._rows[model] = row  # the last to be forgotten
        mix = np.zeros(len(self._mean))
        mix[: len(COMPONENTS)] = components / total
        mix[row] = 1.0
        ratio = min(max(measured_cpu_s / total, RATIO_BOUNDS[0]), RATIO_BOUNDS[1])
        spread = self._covariance @ mix
        gain = spread / (mix @ spread + _NOISE_VARIANCE)
        self._mean += gain * (ratio - mix @ self._mean)
        covariance = self._covariance - np.outer(gain, spread)
        self._covariance = (1 - _FORGETTING) * covariance + _FORGETTING * _prior(len(self._rows))
        inside = self._mean[: len(COMPONENTS)]
        np.clip(inside, *MULTIPLIER_BOUNDS, out=inside)

    def _add(self, model: str) -> int:
        if len(self._rows) == MOST_MODELS:
            self._forget(next(iter(self._rows)))
        row = self._rows[model] = len(self._mean)
        self._mean = np.append(self._mean, 0.0)
        self._covariance = np.pad(self._covariance, ((0, 1), (0, 1)))
        self._covariance[row, row] = _MODEL_VARIANCE
        return row

    def _forget(self, model: str) -> None:
        """Let go of a model's offset; what it taught about the node stays."""
        row = self._rows.pop(model)
        self._mean = np.delete(self._mean, row)
        self._covariance = np.delete(np.delete(self._covariance, row, axis=0), row, axis=1)
        self._rows = {name: at - (at > row) for name, at in self._rows.items()}


def _prior(models: int) -> FloatArray:
    own = [_OWN_VARIANCE.get(name, _CLASS_VARIANCE) for name in COMPONENTS]
    covariance = np.diag([*own, *[_MODEL_VARIANCE] * models])
    covariance[: len(COMPONENTS), : len(COMPONENTS)] += _COMMON_VARIANCE
    return covariance
