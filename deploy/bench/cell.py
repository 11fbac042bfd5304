"""One cell, measured: a plan in force on a running cluster, in turn with the whole model's process."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import psutil

from deploy.bench.cells import Cell
from deploy.bench.load import Load, Stretch
from deploy.bench.raw import Delivered, Measured, Round
from deploy.bench.whole import Ask, Ran
from deploy.bench.wire import Fetches, job_bytes
from deploy.library import Prepared
from deploy.local import LocalCluster
from deploy.operator import Operator
from deploy.peer import Peer
from deploy.serve import hand_over
from orchestrator.core.dispatch_settings import default_window
from shared.client import Client
from shared.messages.model import ModelState, ServeOptions

_SERVE_S = 300.0
_LEAST_ITEMS = 6
"""Of a stretch, however slow the model: a rate over fewer says little."""
_FEW_ITEMS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A running cluster with everything that is needed to measure on it."""

    cluster: LocalCluster
    client: Client
    operator: Operator
    fetches: Fetches


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long to look: seconds of a stretch of load, and turns."""

    seconds: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one model's cells with one runtime and level have in common."""

    prepared: Prepared
    whole: Peer
    payload: bytes


async def serve(site: Site, trial: Trial, cell: Cell, before: str) -> Delivered:
    """Have a cell's model served by its plan; `before` is the plan that ran until then, if any.

    Raises:
        JobError: the orchestrator refuses, or cannot; says why.
        NotAnsweredError: it did not answer in time.
    """
    stages = cell.nodes if cell.plan == "stages" else None
    options = ServeOptions(runtime=cell.runtime, min_stages=stages, max_stages=stages)
    began = time.monotonic()
    state = await hand_over(site.operator, trial.prepared, options, _SERVE_S, _by_the_way)
    seconds = round(time.monotonic() - began, 3)
    return Delivered(fetched_bytes=await site.fetches.of(state), seconds=seconds, before=before)


async def measure(
    site: Site, trial: Trial, cell: Cell, delivered: Delivered, lengths: Lengths
) -> Measured:
    """Turns of whole model, cluster under load, cluster with one job at a time; whole model again at the end.

    Before them the cluster is under load for a stretch that does not count: what it measures of its stages
    may have it cut anew.

    Raises:
        JobError: a job failed.
        PeerEndedError: the whole model's process ended.
    """
    load = Load(site.client, cell.model, trial.payload)
    agents = {name: psutil.Process(child.pid) for name, child in site.cluster.agents.items()}

    def cpu_s() -> float:
        return sum(
            times.user + times.system for times in (each.cpu_times() for each in agents.values())
        )

    async def stretch() -> Stretch:
        window = _window(await site.cluster.wait_for_model(cell.model))
        found = await load.saturate(window, lengths.seconds, _LEAST_ITEMS, cpu_s)
        await load.drained()
        return found

    await stretch()
    ask = Ask(lengths.seconds / 2, _FEW_ITEMS)
    wholes = [await trial.whole.ask(ask, Ran)]
    turns: list[tuple[Stretch, list[float]]] = []
    for _ in range(lengths.rounds):
        under_load = await stretch()
        turns.append((under_load, await load.one_at_a_time(lengths.seconds / 4, _FEW_ITEMS)))
        wholes.append(await trial.whole.ask(ask, Ran))
    on_wire = await job_bytes(
        site.cluster.url, site.cluster.root, lambda: site.client.infer(cell.model, trial.payload)
    )
    state = await site.cluster.wait_for_model(cell.model)
    return Measured(
        plan=describe(state),
        rounds=[
            _round(turn, alone_ms, before, after)
            for (turn, alone_ms), before, after in zip(turns, wholes, wholes[1:], strict=False)
        ],
        delivered=delivered,
        job_bytes=on_wire,
        weight_bytes=sum(stage.weight_bytes for each in state.pipelines for stage in each.stages),
        resident_bytes={name: each.memory_info().rss for name, each in agents.items()},
        whole_resident_bytes=wholes[-1].resident_bytes,
    )


def describe(state: ModelState) -> str:
    """A plan's cuts in a line."""
    return " + ".join(
        " > ".join(f"{stage.node}[{stage.blocks[0]}:{stage.blocks[1]}]" for stage in each.stages)
        for each in state.pipelines
    )


def _window(state: ModelState) -> int:
    """As many jobs as the dispatcher lets into the pipelines."""
    return sum(default_window(len(pipeline.stages)) for pipeline in state.pipelines)


def _round(turn: Stretch, alone_ms: list[float], *wholes: Ran) -> Round:
    times_ms = [each for ran in wholes for each in ran.latency_ms]
    seconds = sum(ran.seconds for ran in wholes)
    return Round(
        per_s=round(turn.per_s, 3),
        cpu_ms=round(turn.cpu_s * 1e3, 3),
        latency_ms=[round(each, 3) for each in alone_ms],
        whole_per_s=round(len(times_ms) / seconds, 3),
        whole_cpu_ms=round(1e3 * sum(ran.cpu_s for ran in wholes) / len(times_ms), 3),
        whole_ms=round(statistics.median(times_ms), 3),
    )


def _by_the_way(text: str) -> None:
    """Serving takes a second or two, and its steps say nothing that the cell's own line does not."""
