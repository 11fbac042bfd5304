"""A package to what the cluster serves: with the runtime that was asked for, or the better one."""

from __future__ import annotations

import asyncio

from orchestrator.core.cluster import Cluster
from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.runtimes import Candidate, best_runtime
from orchestrator.library import AUTO, choose_runtime, entry_of
from shared.messages.model import ServeOptions
from shared.package import ModelPackage


async def choose_entry(
    cluster: Cluster, package: ModelPackage, digest: str, options: ServeOptions
) -> ModelEntry:
    """How a package is to be served on the nodes of now.

    Args:
        cluster: whose nodes.
        package: the model, measured with one or more runtimes.
        digest: the package's.
        options: what was asked for.

    Raises:
        ConfigurationError: a runtime that it was not measured with, or options that make no sense.
    """
    runtime = choose_runtime(package, options.runtime, lambda: common_runtimes(cluster))
    likely = entry_of(package, digest, options, runtime)
    if options.runtime != AUTO or len(package.measured) == 1:
        return likely
    candidates = [Candidate(entry, cluster.offered(entry)) for entry in likely.variants()]
    # Up to a second each, where there are limits to keep.
    return await asyncio.to_thread(best_runtime, candidates, cluster.settings.zones) or likely


def common_runtimes(cluster: Cluster) -> set[str]:
    """What every node has; where there is no such runtime, what any has."""
    offers = [set(node.state.runtimes) for node in cluster.alive() if node.state.runtimes]
    if not offers:
        return set()
    return set.intersection(*offers) or set.union(*offers)
