"""How a model is to be served, as somebody asked for it on a command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from deploy.levels import MIN_AGREEMENT
from orchestrator.core.limits import NO_LIMITS, Limits
from orchestrator.core.result_cache import DEFAULT_KEEP_S
from orchestrator.models.source import DEFAULT, InputShape, ModelSource, parse_source
from shared.messages.model import ServeOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """The flags of `amp4ec serve`; `up` takes the same after `--serve`."""

    name: str | None = None
    weights: str = DEFAULT
    input_shapes: tuple[InputShape, ...] = ()
    level: str = "O1"
    calibrate: tuple[Path, ...] = ()
    min_agreement: float = MIN_AGREEMENT
    min_stages: int | None = None
    max_stages: int | None = None
    strategy: str = "optimal"
    objective: str = "throughput"
    limits: Limits = NO_LIMITS
    keep_input_in: str | None = None
    rate_per_s: float | None = None
    compression: str = "auto"
    max_error: float = 0.0
    cache_bytes: int = 0
    cache_for_s: float = DEFAULT_KEEP_S
    micro_batch: int | None = None
    runtime: str = "auto"
    preprocess: str | None = None
    labels: Path | None = None
    timeout_s: float = 120.0

    def source(self, model: str) -> ModelSource:
        """Where `model` comes from, with these weights and shapes, under this name.

        Raises:
            ConfigurationError: see `parse_source`.
        """
        return parse_source(model, weights=self.weights, inputs=self.input_shapes, name=self.name)

    def options(self) -> ServeOptions:
        """What travels to the orchestrator."""
        return ServeOptions(
            strategy=self.strategy,
            objective=self.objective,
            min_stages=self.min_stages,
            max_stages=self.max_stages,
            runtime=self.runtime,
            rate_per_s=self.rate_per_s,
            **dataclasses.asdict(self.limits),
            keep_input_in=self.keep_input_in,
            compression=self.compression,
            max_error=self.max_error,
            cache_bytes=self.cache_bytes,
            cache_for_s=self.cache_for_s,
            micro_batch=self.micro_batch,
        )

    def arguments(self) -> list[str]:
        """The same flags as a command line, for a child process."""
        latency_s = self.limits.max_latency_s
        values = {
            "--name": self.name,
            "--weights": self.weights,
            "--level": self.level,
            "--min-agreement": _exactly(self.min_agreement) if self.calibrate else None,
            "--min-stages": self.min_stages,
            "--max-stages": self.max_stages,
            "--strategy": self.strategy,
            "--objective": self.objective,
            "--max-latency": None if latency_s is None else f"{latency_s:.12f}s",
            "--min-throughput": _exactly(self.limits.min_throughput_per_s),
            "--max-energy": _exactly(self.limits.max_energy_j),
            "--max-cost": _exactly(self.limits.max_cost_per_1000),
            "--max-exposure": _exactly(self.limits.max_exposure_ratio),
            "--keep-input-in": self.keep_input_in,
            "--rate": _exactly(self.rate_per_s),
            "--compression": self.compression,
            "--max-error": _exactly(self.max_error),
            "--cache": str(self.cache_bytes) if self.cache_bytes else "off",
            "--cache-for": f"{self.cache_for_s:.12g}s" if self.cache_bytes else None,
            "--micro-batch": self.micro_batch,
            "--runtime": self.runtime,
            "--preprocess": self.preprocess,
            "--labels": self.labels,
            "--timeout": f"{self.timeout_s:g}s",
        }
        shapes = [f"--input-shape={shape}" for shape in self.input_shapes]
        samples = [f"--calibrate={path}" for path in self.calibrate]
        return (
            shapes
            + samples
            + [f"{flag}={value}" for flag, value in values.items() if value is not None]
        )


def _exactly(value: float | None) -> str | None:
    """A number as text that reads as the same number; None stays None."""
    return None if value is None else repr(value)
