"""How a model is read and timed on this machine, as somebody asked for it on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.levels import MIN_AGREEMENT
from orchestrator.models.source import DEFAULT, InputShape, ModelSource, parse_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelling:
    """The flags that `profile` and `plan` share; `preprocess` None is the model's own transform."""

    weights: str = DEFAULT
    input_shapes: tuple[InputShape, ...] = ()
    level: str = "O1"
    calibrate: tuple[Path, ...] = ()
    min_agreement: float = MIN_AGREEMENT
    preprocess: str | None = None
    runtime: str = "auto"

    def source(self, model: str) -> ModelSource:
        """Where `model` comes from.

        Raises:
            ConfigurationError: see `parse_source`.
        """
        return parse_source(model, weights=self.weights, inputs=self.input_shapes)
