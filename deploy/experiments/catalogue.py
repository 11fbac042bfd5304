"""All experiments, the most telling first: so they are measured in each round, and so they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploy.experiments import baseline
from deploy.experiments.ablations import CACHE, COMPRESSION, RUNTIMES, SCHEDULERS, STRATEGIES
from deploy.experiments.case import Case, Experiment, Settings
from deploy.experiments.change import CHANGE
from deploy.experiments.models import MODELS
from deploy.experiments.overhead import MONITORING, OVERHEAD
from deploy.experiments.peers.experiment import PEERS
from deploy.experiments.profiles import PROFILES
from deploy.experiments.table_one import FIGURES, SYSTEMS, TABLE_ONE
from deploy.experiments.table_two import ADAPTABILITY, PARTITIONS

_OURS = (
    TABLE_ONE,
    OVERHEAD,
    MONITORING,
    PARTITIONS,
    SYSTEMS,
    CHANGE,
    PEERS,
    STRATEGIES,
    PROFILES,
    ADAPTABILITY,
    COMPRESSION,
    CACHE,
    SCHEDULERS,
    RUNTIMES,
    MODELS,
)


def _baselines(settings: Settings) -> Sequence[Case]:
    """All that any experiment compares with."""
    found = {
        case.name: case
        for experiment in _OURS
        for case in experiment.every(settings)
        if case.home == baseline.HOME
    }
    return [replace(case, shown="") for case in found.values()]


BASELINES = Experiment(
    name=baseline.HOME,
    title="One process with the whole model",
    text="What the other pages compare with, each measured once in a round: PyTorch as it comes, and an "
    "agent's own runtimes. It reads the same photographs with the same code and answers nobody. Threads by "
    "its quota.",
    cases=_baselines,
    figures={
        **{
            name: FIGURES[name]
            for name in (
                "throughput_per_s",
                "latency_ms",
                "latency_p95_ms",
                "cpu_percent",
                "memory_mb",
            )
        },
        "latency_ms": "Milliseconds for a batch (of one image where the name does not say 32); median.",
    },
    draw="throughput_per_s",
)
EXPERIMENTS: dict[str, Experiment] = {each.name: each for each in (*_OURS, BASELINES)}
