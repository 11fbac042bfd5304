"""CPU of every part of a cluster over a stretch of time, and what the quotas did meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from deploy.local import LocalCluster
from tests.benchmarks.processes import Throttling, cpu_s, throttling


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by process, throttling by agent: since the start, or between two readings."""

    at: float
    seconds: float
    agents: dict[str, float]
    quotas: dict[str, Throttling]
    broker: float
    orchestrator: float
    client: float

    def since(self, before: Usage) -> Usage:
        """What was used after `before`."""
        return Usage(
            at=self.at,
            seconds=self.at - before.at,
            agents={name: used - before.agents[name] for name, used in self.agents.items()},
            quotas={
                name: record.since(before.quotas[name]) for name, record in self.quotas.items()
            },
            broker=self.broker - before.broker,
            orchestrator=self.orchestrator - before.orchestrator,
            client=self.client - before.client,
        )


def read_usage(cluster: LocalCluster) -> Usage:
    """All counters of a running cluster now. `client` is this very process."""
    assert cluster.orchestrator is not None
    return Usage(
        at=time.monotonic(),
        seconds=0.0,
        agents={name: cpu_s(agent.pid) for name, agent in cluster.agents.items()},
        quotas={
            name: throttling(agent.limit.directory)
            for name, agent in cluster.agents.items()
            if agent.limit is not None
        },
        broker=cpu_s(cluster.broker.pid),
        orchestrator=cpu_s(cluster.orchestrator.pid),
        client=cpu_s(os.getpid()),
    )
