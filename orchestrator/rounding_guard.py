"""Runs a job in a while a second time with nothing rounded between stages, and compares; see `core.rounding`.

The second run is a job like any other, of the least priority and nobody's: it waits behind all that clients
want, and where the queue is full it is left out. Used in the dispatcher's thread only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from secrets import token_hex

import numpy as np

from orchestrator.answers import ItemResult
from orchestrator.core import dispatch_events as core
from orchestrator.core.rounding import RoundingWatch
from orchestrator.dispatch_notes import PipelineSpec, RoundingMeasured
from orchestrator.inputs import Input
from shared.job_options import PRIORITIES
from shared.tensor import WireTensor, from_wire

DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The context of a second run: what the first one, with rounding, gave."""

    generation: int
    rounded: dict[str, WireTensor]


class RoundingGuard:
    """One sample of a model is under way at a time."""

    def __init__(self) -> None:
        self._watched: dict[str, tuple[int, RoundingWatch]] = {}
        self._chosen: dict[str, tuple[str, int, Input]] = {}
        """By model: request, item and its input."""

    def sent(self, now: float, dispatch: core.Dispatch, item: Input, spec: PipelineSpec) -> None:
        """An item goes to a pipeline that rounds; it may be the next sample."""
        assert spec.max_error is not None
        known = self._watched.get(spec.model)
        if known is None or known[0] != spec.generation:
            known = self._watched[spec.model] = (spec.generation, RoundingWatch(spec.max_error))
            self._chosen.pop(spec.model, None)
        if not item.exact and known[1].due(now):
            self._chosen[spec.model] = (dispatch.request_id, dispatch.item_index, item)

    def answered(self, now: float, answer: core.Answer) -> core.RequestArrived | None:
        """The second run of an answered request, if it is the sample."""
        chosen = self._chosen.get(answer.model)
        if chosen is None or chosen[0] != answer.request_id:
            return None
        del self._chosen[answer.model]
        _, index, item = chosen
        ended = answer.items[index] if index < len(answer.items) else None
        if ended is None or not isinstance(ended.outcome, core.Output):
            return None
        result = ended.outcome.value
        assert isinstance(result, ItemResult)
        number, _ = self._watched[answer.model]
        if ended.generation != number or result.tensors is None:
            return None
        return core.RequestArrived(
            now=now,
            request_id=token_hex(8),
            model=answer.model,
            reply_to="",
            items=(core.InputItem(replace(item, exact=True), item.size_bytes),),
            handle=None,
            deadline=now + DEADLINE_S,
            priority=min(PRIORITIES),
            context=Sample(number, result.tensors),
        )

    def compared(self, answer: core.Answer, sample: Sample) -> RoundingMeasured | None:
        """The second run was answered; None where that says nothing."""
        number, watch = self._watched.get(answer.model, (-1, None))
        outcome = answer.items[0].outcome
        if watch is None or number != sample.generation or not isinstance(outcome, core.Output):
            return None
        result = outcome.value
        assert isinstance(result, ItemResult)
        assert result.tensors is not None
        error_ratio, agrees = difference(sample.rounded, result.tensors)
        watch.take(error_ratio, agrees=agrees)
        assert watch.error is not None
        return RoundingMeasured(
            answer.model, number, watch.error, watch.max_error, hurts=watch.hurts
        )

    def forget(self, model: str) -> None:
        """A model is not served any more."""
        self._watched.pop(model, None)
        self._chosen.pop(model, None)


def difference(rounded: dict[str, WireTensor], exact: dict[str, WireTensor]) -> tuple[float, bool]:
    """The largest difference relative to the largest exact output, and if both have that in one place."""
    worst, agrees = 0.0, True
    for name, tensor in exact.items():
        there = rounded.get(name)
        wanted = from_wire(tensor)
        if there is None or wanted.dtype.kind != "f" or wanted.size == 0:
            continue
        got = from_wire(there)
        if got.shape != wanted.shape:
            return float("inf"), False
        largest = float(np.abs(wanted).max())
        off = float(np.abs(got.astype(np.float64) - wanted).max())
        error = off / largest if largest > 0.0 else float(off > 0.0)
        worst = max(worst, error if np.isfinite(error) else float("inf"))
        agrees = agrees and int(got.argmax()) == int(wanted.argmax())
    return worst, agrees
