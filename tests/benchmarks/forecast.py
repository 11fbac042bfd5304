"""Does a forecast of load beat what was seen last? Exponential smoothing with trend on recorded traces.

A plan made now is in force from some 10 s on: it has to load, and to pay at several looks before. So what is
to be known is the mean over the seconds from 10 to 30 ahead: of the CPU that an agent uses, in percent of
its share, and of an item's time in its stage. Every method sees the past only, and its weights are those of a
grid that do best on the *other* traces: nobody can know better before.

The traces are telemetry of real agents (`record_traces`); nothing is run here.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from shared.codec import decode_json
from tests.benchmarks.context import Context
from tests.benchmarks.report import Row

TRACES = Path(__file__).with_name("traces")
NEAR_S, FAR_S = 10, 30
RECENT = 5
WEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.8)
TREND_WEIGHTS = (0.01, 0.05, 0.1, 0.3)
DAMPING = 0.9

Values: TypeAlias = Sequence[float]
Method: TypeAlias = Callable[[Values], Iterator[float]]
"""After each value, the mean over seconds `NEAR_S` to `FAR_S` from then."""


def last_value(values: Values) -> Iterator[float]:
    """What was seen last."""
    yield from values


def recent_mean(values: Values) -> Iterator[float]:
    """The mean of the last few."""
    recent: deque[float] = deque(maxlen=RECENT)
    for value in values:
        recent.append(value)
        yield statistics.fmean(recent)


def recent_median(values: Values) -> Iterator[float]:
    """The median of the last few: what the orchestrator goes by."""
    recent: deque[float] = deque(maxlen=RECENT)
    for value in values:
        recent.append(value)
        yield statistics.median(recent)


def smoothed(values: Values, weight: float) -> Iterator[float]:
    """Exponential smoothing without a trend."""
    level: float | None = None
    for value in values:
        level = value if level is None else level + weight * (value - level)
        yield level


def holt(
    values: Values, weight: float, trend_weight: float, damping: float = 1.0
) -> Iterator[float]:
    """Exponential smoothing with trend (Holt 1957; damped: Gardner and McKenzie 1985).

    `level + (damping + damping^2 + ... + damping^h) * trend` is the forecast of h seconds ahead.
    """
    steps = list(itertools.accumulate(damping**power for power in range(1, FAR_S + 1)))
    mean_steps = statistics.fmean(steps[NEAR_S - 1 :])
    level, trend = values[0], 0.0
    yield level
    for value in values[1:]:
        before = level
        level = weight * value + (1.0 - weight) * (level + damping * trend)
        trend = trend_weight * (level - before) + (1.0 - trend_weight) * damping * trend
        yield level + mean_steps * trend


def methods() -> dict[str, list[Method]]:
    """By name; of several the one that does best on other traces."""
    pairs = list(itertools.product(WEIGHTS, TREND_WEIGHTS))
    return {
        "last value": [last_value],
        f"mean of {RECENT}": [recent_mean],
        f"median of {RECENT}": [recent_median],
        "smoothed": [partial(smoothed, weight=weight) for weight in WEIGHTS],
        "Holt": [partial(holt, weight=a, trend_weight=b) for a, b in pairs],
        "Holt, damped": [
            partial(holt, weight=a, trend_weight=b, damping=DAMPING) for a, b in pairs
        ],
    }


def mean_error(method: Method, values: Values) -> float:
    """Mean absolute error over all moments of a trace that have the whole time ahead still in it."""
    errors = [
        abs(forecast - statistics.fmean(values[at + NEAR_S : at + FAR_S + 1]))
        for at, forecast in enumerate(method(values))
        if at + FAR_S < len(values)
    ]
    return statistics.fmean(errors)


def read_traces(path: Path) -> dict[str, dict[str, Values]]:
    """What is forecast: by signal, by node, a value a second; a time stays what it was while nothing runs."""
    signals: dict[str, dict[str, list[float]]] = {"CPU": {}, "stage time": {}}
    for line in path.read_bytes().splitlines():
        _, node, _, cpu_percent, compute_ms = decode_json(line, list[Any])
        signals["CPU"].setdefault(node, []).append(cpu_percent)
        times = signals["stage time"].setdefault(node, [])
        if compute_ms is not None or times:
            times.append(times[-1] if compute_ms is None else compute_ms)
    return {name: dict(of) for name, of in signals.items()}


def errors(method: Method, nodes: dict[str, Values]) -> list[float]:
    """Mean absolute error at each node."""
    return [mean_error(method, values) for _, values in sorted(nodes.items())]


def trained(candidates: Sequence[Method], others: Sequence[dict[str, Values]]) -> Method:
    """The one with the least error on other traces, each relative to that of the last value."""
    if len(candidates) == 1:
        return candidates[0]

    def score(method: Method) -> float:
        return statistics.fmean(
            statistics.fmean(errors(method, nodes)) / statistics.fmean(errors(last_value, nodes))
            for nodes in others
        )

    return min(candidates, key=score)


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    traces = {path.stem: read_traces(path) for path in sorted(TRACES.glob("*.jsonl"))}
    for trace, signals in traces.items():
        context.say(f"forecast: {trace}")
        for signal, nodes in signals.items():
            others = [traces[other][signal] for other in traces if other != trace]
            against = f"last value: {statistics.median(errors(last_value, nodes)):.3g}"
            rows += [
                Row.of(
                    "forecast",
                    f"{trace}, {signal}: {name}",
                    "% of the share" if signal == "CPU" else "ms",
                    errors(trained(candidates, others), nodes),
                    method="mean absolute error of the mean over 10 to 30 s ahead, one per node",
                    against=against,
                )
                for name, candidates in methods().items()
            ]
    return rows
