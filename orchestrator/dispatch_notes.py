"""What the control plane and the dispatcher's thread tell each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.answers import ItemResult, Shown
from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch_settings import SettingsChanged
from orchestrator.core.dispatch_stats import Snapshot
from orchestrator.core.micro_batch import ALONE, MicroBatchLimits
from orchestrator.core.result_cache import CacheSettings
from orchestrator.core.rounding import RoundingError
from shared.errors import ErrorCode
from shared.messages.job import Label, StageResult
from shared.tensor import Shape

MOST_LATENCIES = 4096
"""Kept of one model and report: enough for its quantiles."""
TELL_AGAIN_S = 5.0
"""Of one kind of dropped message, a line on `event` at most this often."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What requests of a model are read by, and answers written by that no pipeline had a part in.

    `cache`: how its answers are kept; None where they are not. `input_shapes` are those of one item, by name.
    """

    model: str
    input_names: tuple[str, ...]
    shown: Shown
    cache: CacheSettings | None = None
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline that becomes active. `shown` is of the weights that it runs.

    `max_error` is what was allowed where it rounds tensors between stages, None where it does not.
    `identity` is that of the cached answers which it would give as well.
    `micro_batch` says how many items may travel in one message.
    """

    model: str
    pipeline: str
    generation: int
    num_stages: int
    throughput_per_s: float
    latency_s: float
    shown: Shown
    max_error: float | None = None
    identity: str = ""
    micro_batch: MicroBatchLimits = ALONE


Command = (
    ModelSpec
    | PipelineSpec
    | core.ModelStopped
    | core.PipelineDraining
    | core.PipelineLost
    | core.PipelineFigures
    | SettingsChanged
)


@dataclass(slots=True)
class StageSum:
    """Sums over the items of one stage since the last report."""

    items: int = 0
    cpu_s: float = 0.0
    compute_s: float = 0.0


Outcomes = Mapping[tuple[str, str], int]
"""Jobs by model (empty: none that is served) and `ok` or the error's code."""
StageKey = tuple[str, str, int, int, str]
"""Model, pipeline, generation, stage, node."""


@dataclass(slots=True)
class Answered:
    """The requests of one model that were answered well since the last report, and their items."""

    requests: int = 0
    items: int = 0
    """Those that were run: what is measured of a plan, which the cache's are not."""
    latencies_s: list[float] = field(default_factory=list)
    """Of those, from the request's arrival; at most `MOST_LATENCIES`."""
    cached_latencies_s: list[float] = field(default_factory=list)
    """Of the others; at most as many."""
    last: Label | None = None
    """What the latest item's classifier puts first; None where its output is no classes."""


@dataclass(frozen=True, slots=True)
class Report:
    """Once a second: what happened since the last one, and how things stand."""

    stages: dict[StageKey, StageSum]
    answered: dict[str, Answered]
    dropped: dict[str, int]
    """Messages that came to nothing, by reason, since the start."""
    refused: dict[ErrorCode, int]
    """Requests refused before the core saw them, by code, since the start."""
    outcomes: Outcomes
    """Since the start."""
    news: list[str]
    """Lines for `event` about those that nobody could be told of."""
    snapshot: Snapshot
    interval_s: float
    cpu_s: float
    """CPU seconds of this thread since it started."""


@dataclass(frozen=True, slots=True)
class RoundingMeasured:
    """What the samples of a model's generation say; `hurts`: more than was allowed."""

    model: str
    generation: int
    error: RoundingError
    max_error: float
    hurts: bool


Note = Report | core.PipelineDrained | core.Decided | core.Poisoned | RoundingMeasured


class Tally:
    """Collects what the next `Report` says."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[ErrorCode] = Counter()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._stages: dict[StageKey, StageSum] = {}
        self._answered: dict[str, Answered] = {}
        self._untold: dict[str, tuple[int, str]] = {}
        self._told: dict[str, float] = {}

    def measure(self, model: str, pipeline: str, generation: int, result: StageResult) -> None:
        """Take each stage's own times of one item; what travelled together says nothing of an item alone."""
        for stage in () if result.companions else result.trace:
            key = (model, pipeline, generation, stage.stage, stage.node)
            total = self._stages.get(key)
            if total is None:
                total = self._stages[key] = StageSum()
            total.items += 1
            total.cpu_s += stage.cpu_s
            total.compute_s += stage.compute_s

    def answer(self, answer: core.Answer) -> None:
        """Take an answer that went out for the first time."""
        failure = answer.failure
        self._outcomes[answer.model, "ok" if failure is None else failure.code] += 1
        if failure is not None:
            return
        known = self._answered.get(answer.model)
        if known is None:
            known = self._answered[answer.model] = Answered()
        known.requests += 1
        for item in answer.items:
            latencies_s = known.cached_latencies_s if item.cached else known.latencies_s
            known.items += not item.cached
            if len(latencies_s) < MOST_LATENCIES:
                latencies_s.append(item.latency_s)
            outcome = item.outcome
            if isinstance(outcome, core.Output) and isinstance(outcome.value, ItemResult):
                known.last = outcome.value.top[0] if outcome.value.top else None

    def refuse(self, model: str, code: ErrorCode) -> None:
        """Take a job that was refused; `model` is empty where none of that name is served."""
        self._outcomes[model, code] += 1

    def drop(self, why: str, text: str) -> bool:
        """Count a message that nobody can be told about; whether it is worth a line in the log.

        A flood must not flood the log, so those are the 1st, 2nd, 4th, 8th, ... of its kind.
        """
        self.dropped[why] += 1
        self._untold[why] = (self._untold.get(why, (0, ""))[0] + 1, text)
        return self.dropped[why].bit_count() == 1

    def report(self, now: float, interval_s: float, snapshot: Snapshot, cpu_s: float) -> Report:
        """All since the last one; the collection begins anew."""
        stages, self._stages = self._stages, {}
        answered, self._answered = self._answered, {}
        news = []
        for why, (count, text) in list(self._untold.items()):
            if now - self._told.get(why, -TELL_AGAIN_S) >= TELL_AGAIN_S:
                self._told[why] = now
                del self._untold[why]
                what = "a message was" if count == 1 else f"{count} messages were"
                reason = why.replace("_", " ")
                news.append(f"{what} dropped ({reason}), the last: {text[:200]}")
        return Report(
            stages,
            answered,
            dict(self.dropped),
            dict(self.refused),
            dict(self._outcomes),
            news,
            snapshot,
            interval_s,
            cpu_s,
        )
