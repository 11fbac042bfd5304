"""The dispatcher's decisions, for people and programs."""

from __future__ import annotations

from orchestrator.core.cluster_events import Tell
from orchestrator.core.dispatch_events import Decided
from orchestrator.core.dispatch_stats import Snapshot
from orchestrator.core.micro_batch import MicroBatchLoad
from orchestrator.core.selection import Decision
from shared.errors import ErrorCode, JobError
from shared.messages.model import MicroBatchRow
from shared.messages.operation import CandidateRow, DecisionRow, Decisions, ModelDecision


def decision_row(decision: Decision) -> DecisionRow:
    """A decision as it travels."""
    return DecisionRow(
        scheduler=decision.scheduler,
        probe=decision.probe,
        candidates=[
            CandidateRow(
                pipeline=each.pipeline,
                generation=each.generation,
                chosen=each.chosen,
                terms={name: round(value, 6) for name, value in each.terms.items()},
                passed_over=each.passed_over,
            )
            for each in decision.candidates
        ],
    )


def describe(decided: Decided) -> str:
    """A decision in a line."""
    decision = decided.decision
    chosen = next(each for each in decision.candidates if each.chosen)
    terms = ", ".join(f"{name} {value:.3g}" for name, value in chosen.terms.items())
    how = "as a probe" if decision.probe else f"by {decision.scheduler}"
    where = f"{chosen.pipeline} generation {chosen.generation}"
    return f"item {decided.item_index} to {where} {how}, of {len(decision.candidates)}: {terms}"


def micro_batch_row(load: MicroBatchLoad) -> MicroBatchRow:
    """What is decided on a pipeline's micro-batches, as it travels."""
    item_s = {str(size): round(seconds, 6) for size, seconds in load.item_s.items()}
    return MicroBatchRow(size=load.size, most=load.most, reason=load.reason, item_s=item_s)


class MicroBatchNews:
    """Tells when the size of a pipeline's micro-batches becomes another."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str, int], int] = {}

    def tell(self, snapshot: Snapshot) -> list[Tell]:
        """What to say of a second; of a pipeline that is new only what is not one item a message."""
        said, self._said = self._said, {}
        news = []
        for model in snapshot.models:
            for pipeline in model.pipelines:
                key = (model.model, pipeline.pipeline, pipeline.generation)
                load = pipeline.micro_batch
                before = said.get(key, 1)
                self._said[key] = load.size
                if load.size != before:
                    how = "item a message" if load.size == 1 else "items a message"
                    text = (
                        f"{pipeline.pipeline}: long batches go {load.size} {how}, before {before}"
                    )
                    news.append(
                        Tell(
                            "micro_batch",
                            f"{text}: {load.reason}",
                            model=model.model,
                            generation=pipeline.generation,
                            reason=load.reason,
                        )
                    )
        return news


def decisions(snapshot: Snapshot | None, model: str | None, now: float) -> Decisions:
    """Each model's latest decision (of `model` only, when one is named); none before the first snapshot.

    Raises:
        JobError: no model of that name takes jobs.
    """
    loads = () if snapshot is None else snapshot.models
    if model is not None and model not in {load.model for load in loads}:
        known = ", ".join(sorted(load.model for load in loads)) or "no model"
        raise JobError(
            ErrorCode.UNKNOWN_MODEL, "no such model takes jobs", expected=known, got=model
        )
    return Decisions(
        models=[
            ModelDecision(
                model=load.model,
                age_s=None if load.decision is None else round(max(now - load.decision.at, 0.0), 3),
                decision=None if load.decision is None else decision_row(load.decision),
            )
            for load in loads
            if model is None or load.model == model
        ]
    )
