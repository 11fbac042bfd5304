"""All experiments, in the order in which they are read."""

from __future__ import annotations

from deploy.experiments.ablations import CACHE, COMPRESSION, RUNTIMES, SCHEDULERS, STRATEGIES
from deploy.experiments.case import Experiment
from deploy.experiments.change import CHANGE
from deploy.experiments.models import MODELS
from deploy.experiments.peers.experiment import PEERS
from deploy.experiments.table_one import TABLE_ONE
from deploy.experiments.table_two import ADAPTABILITY, MONITORING, OVERHEAD, PARTITIONS, PROFILES

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        TABLE_ONE,
        PROFILES,
        ADAPTABILITY,
        PARTITIONS,
        OVERHEAD,
        MONITORING,
        CHANGE,
        STRATEGIES,
        SCHEDULERS,
        CACHE,
        COMPRESSION,
        RUNTIMES,
        MODELS,
        PEERS,
    )
}
