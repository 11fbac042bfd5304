"""How a model is to be served, as somebody asked for it on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.models.source import DEFAULT, InputShape, ModelSource, parse_source
from shared.messages.model import ServeOptions

Objective = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """The flags of `amp4ec serve`; `up` takes the same after `--serve`."""

    name: str | None = None
    weights: str = DEFAULT
    input_shapes: tuple[InputShape, ...] = ()
    level: str = "O1"
    min_stages: int | None = None
    max_stages: int | None = None
    strategy: str = "optimal"
    objective: Objective = "throughput"
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
        )

    def arguments(self) -> list[str]:
        """The same flags as a command line, for a child process."""
        values = {
            "--name": self.name,
            "--weights": self.weights,
            "--level": self.level,
            "--min-stages": self.min_stages,
            "--max-stages": self.max_stages,
            "--strategy": self.strategy,
            "--objective": self.objective,
            "--runtime": self.runtime,
            "--preprocess": self.preprocess,
            "--labels": self.labels,
            "--timeout": f"{self.timeout_s:g}s",
        }
        shapes = [f"--input-shape={shape}" for shape in self.input_shapes]
        return shapes + [f"{flag}={value}" for flag, value in values.items() if value is not None]
