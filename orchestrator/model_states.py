"""The retained state of each model: at once when something is decided, seldom for mere measurements."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.cluster import Cluster
from orchestrator.core.micro_batch import MicroBatchLoad
from orchestrator.core.rounding import RoundingError
from orchestrator.decisions import micro_batch_row
from orchestrator.dispatch_notes import Report, RoundingMeasured
from orchestrator.figures import Measured
from orchestrator.library import Library
from orchestrator.outbox import Outbox
from shared.messages.model import ModelState, PipelineRow, Rounding

REFRESH_S = 5.0
"""Who watches `model/+/state` wants to read it like a log."""


class ModelStates:
    """Publishes what `Cluster.model_state` says, with what was measured, and what a standby has to fetch."""

    def __init__(self, cluster: Cluster, library: Library, outbox: Outbox) -> None:
        self._cluster = cluster
        self._library = library
        self._outbox = outbox
        self._measured = Measured()
        self._published: dict[str, tuple[float, ModelState]] = {}
        self._rounding: dict[str, tuple[int, RoundingError]] = {}
        self._loads: dict[tuple[str, int], MicroBatchLoad] = {}

    def rounding_measured(self, note: RoundingMeasured) -> None:
        """What rounding does to answers; published with the next state."""
        self._rounding[note.model] = (note.generation, note.error)

    def state(self, model: str, now: float) -> ModelState | None:
        """A model's state now; None when it is not served."""
        state = self._cluster.model_state(model, self._measured.figures(model, now))
        if state is None or state.manifest is None:
            return state
        manifest_bytes = self._library.manifest_bytes(state.manifest)
        number, error = self._rounding.get(model, (-1, None))
        if error is not None and number == state.generation:
            rounding = Rounding(
                error_ratio=error.error_ratio,
                agreement_ratio=error.agreement_ratio,
                samples=error.samples,
            )
            state = replace(state, rounding=rounding)
        pipelines = [self._with_micro_batch(row, state.generation) for row in state.pipelines]
        return replace(state, manifest_bytes=manifest_bytes, pipelines=pipelines)

    def _with_micro_batch(self, row: PipelineRow, generation: int) -> PipelineRow:
        load = self._loads.get((row.pipeline, generation))
        return row if load is None else replace(row, micro_batch=micro_batch_row(load))

    def publish(self, model: str, now: float) -> ModelState | None:
        """Something was decided: publish the state, or clear it when the model is not served any more.

        Returns the state, None in the latter case.
        """
        state = self.state(model, now)
        if state is None:
            self._published.pop(model, None)
            self._measured.forget(model)
            self._rounding.pop(model, None)
            self._outbox.publish("model_state", None, retain=True, model=model)
            return None
        known = self._published.get(model)
        if known is None or known[1] != state:
            self._published[model] = (now, state)
            self._outbox.publish("model_state", state, retain=True, model=model)
        return state

    def measured(self, report: Report, now: float) -> None:
        """Take a second's measurements, and publish those states that are `REFRESH_S` old."""
        self._measured.add(now, report)
        self._loads = {
            (pipeline.pipeline, pipeline.generation): pipeline.micro_batch
            for model in report.snapshot.models
            for pipeline in model.pipelines
        }
        for model, (at, _) in list(self._published.items()):
            if now - at >= REFRESH_S:
                self.publish(model, now)
