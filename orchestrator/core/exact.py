"""The best plan by one objective, exactly, over all sets of nodes.

- Throughput is the sum over pipelines: the best pipeline for each set of nodes, then the best sets together.
- Latency is that of the slowest pipeline, energy the mean over pipelines in proportion to their throughput,
cost
  a ratio of sums (price by throughput). By the mediant inequality no plan is better in one of these than the
  best of its pipelines, so the least figure is that of one pipeline, and the plans that have it are those of
  which every pipeline has it. Among them the one with the greatest throughput is taken: two equal devices
  get a copy each.
- Exposure is a matter of which stages may be where: the least that some pipeline has becomes a mask, then
  throughput decides.

Ties are decided by throughput, then by fewer nodes, then by the lower latency.
"""

from __future__ import annotations

import dataclasses
from typing import assert_never

import numpy as np

from orchestrator.core.figures import Objective
from orchestrator.core.mixture import Pattern, allowed_states, mix
from orchestrator.core.partition import TIE, Lattice, Search, Tight, lattice, search
from orchestrator.core.tables import FloatArray, IntArray, StageTables


def best_plan(
    objective: Objective, tables: StageTables, states: Lattice, *, stages: range
) -> list[Pattern]:
    """The pipelines of the best plan; empty where none can run. `stages` holds for each pipeline."""
    match objective:
        case Objective.THROUGHPUT:
            return _fastest(tables, states, stages)
        case Objective.LATENCY:
            return _least_sum(tables, tables.latency_s, states, stages)
        case Objective.ENERGY:
            return _least_sum(tables, tables.energy_j, states, stages)
        case Objective.COST:
            return _cheapest(tables, states, stages)
        case Objective.EXPOSURE:
            return _least_exposed(tables, states, stages)
        case _:
            assert_never(objective)


def best_pipelines(
    objective: Objective, tables: StageTables, states: Lattice, *, stages: range
) -> dict[int, Pattern]:
    """The best single pipeline by an objective for each number of stages; none where none can run."""
    search_by = {
        Objective.THROUGHPUT: (tables.period_s, _MAXIMUM),
        Objective.COST: (tables.period_s, _MAXIMUM),
        Objective.LATENCY: (tables.latency_s, _SUM),
        Objective.ENERGY: (tables.energy_j, _SUM),
        Objective.EXPOSURE: (tables.exposure_ratio, _MAXIMUM),
    }
    costs, combine = search_by[objective]
    found = search(costs, states, combine, max_stages=stages.stop - 1)
    factor = prices(tables, states) if objective is Objective.COST else np.ones(states.size)
    best: dict[int, Pattern] = {}
    for length in stages:
        runs = allowed_states(found, length, length)
        if not len(runs):
            continue
        figures = found.totals[runs] * factor[runs]
        if objective is Objective.EXPOSURE:
            # Many pipelines expose as little: the fastest of them
            masked = at_most_exposed(tables, float(figures.min()))
            only = range(length, length + 1)
            best |= best_pipelines(Objective.THROUGHPUT, masked, states, stages=only)
        else:
            best[length] = found.path(int(runs[figures.argmin()]))
    return best


def prices(tables: StageTables, states: Lattice) -> FloatArray:
    """Price per hour of all nodes of each state, shape (states,)."""
    total: FloatArray = states.digits @ tables.price_per_hour
    return total


def pipeline_burdens(tables: StageTables, pattern: Pattern) -> dict[Objective, float]:
    """The figures of a plan of one pipeline, with less being better."""
    period = max(float(tables.period_s[stage]) for stage in pattern)
    per_hour = sum(float(tables.price_per_hour[kind]) for kind, _, _ in pattern)
    return {
        Objective.THROUGHPUT: period,
        Objective.LATENCY: sum(float(tables.latency_s[stage]) for stage in pattern),
        Objective.ENERGY: sum(float(tables.energy_j[stage]) for stage in pattern),
        Objective.COST: 1000.0 * per_hour / 3600.0 * period,
        Objective.EXPOSURE: max(float(tables.exposure_ratio[stage]) for stage in pattern),
    }


def lowest_latency_at(tables: StageTables, found: Search, state: int) -> tuple[float, Pattern]:
    """Among the pipelines on exactly this state's nodes with the best period, the one of lowest latency.

    `found` is the search by period. Returns its latency in seconds, and the pipeline.
    """
    kinds = np.flatnonzero(found.lattice.digits[state])
    counts = [int(count) for count in found.lattice.digits[state, kinds]]
    as_fast = tables.period_s[kinds] <= found.totals[state] * (1 + TIE)
    costs = np.where(as_fast, tables.latency_s[kinds], np.inf)
    second = search(costs, lattice(counts), np.add, max_stages=sum(counts))
    last = second.lattice.size - 1
    path = tuple((int(kinds[kind]), start, stop) for kind, start, stop in second.path(last))
    return float(second.totals[last]), path


def _fastest(tables: StageTables, states: Lattice, stages: range) -> list[Pattern]:
    found = search(tables.period_s, states, np.maximum, max_stages=stages.stop - 1)
    runs = allowed_states(found, stages.start, stages.stop - 1)
    return _mixed(tables, found, runs)


def _cheapest(tables: StageTables, states: Lattice, stages: range) -> list[Pattern]:
    found = search(tables.period_s, states, np.maximum, max_stages=stages.stop - 1)
    runs = allowed_states(found, stages.start, stages.stop - 1)
    # Of one job, in price seconds per hour: its pipeline's nodes for as long as the period
    return _mixed(tables, found, _least(runs, found.totals[runs] * prices(tables, states)[runs]))


def _least_exposed(tables: StageTables, states: Lattice, stages: range) -> list[Pattern]:
    found = search(tables.exposure_ratio, states, np.maximum, max_stages=stages.stop - 1)
    runs = allowed_states(found, stages.start, stages.stop - 1)
    if not len(runs):
        return []
    return _fastest(at_most_exposed(tables, float(found.totals[runs].min())), states, stages)


def at_most_exposed(tables: StageTables, exposure_ratio: float) -> StageTables:
    """The tables without the stages that expose more."""
    too_much = tables.exposure_ratio > exposure_ratio
    return dataclasses.replace(
        tables,
        **{
            name: np.where(too_much, np.inf, getattr(tables, name))
            for name in ("period_s", "latency_s", "energy_j", "exposure_ratio")
        },
    )


def _least_sum(
    tables: StageTables, costs: FloatArray, states: Lattice, stages: range
) -> list[Pattern]:
    """By a cost that adds up along a pipeline; among the pipelines that have the least, by throughput."""
    found = search(costs, states, np.add, max_stages=stages.stop - 1)
    runs = allowed_states(found, stages.start, stages.stop - 1)
    runs = _least(runs, found.totals[runs])
    if not len(runs):
        return []
    longest = int(states.totals[runs].max())
    tight = Tight(found.costs, found.table)
    second = search(tables.period_s, states, np.maximum, max_stages=longest, tight=tight)

    def pipeline_of(state: int) -> tuple[float, Pattern]:
        path = second.path(state)
        return sum(float(tables.latency_s[stage]) for stage in path), path

    return mix(1.0 / second.totals, runs, states, pipeline_of)


def _mixed(tables: StageTables, found: Search, runs: IntArray) -> list[Pattern]:
    if not len(runs):
        return []

    def pipeline_of(state: int) -> tuple[float, Pattern]:
        return lowest_latency_at(tables, found, state)

    return mix(1.0 / found.totals, runs, found.lattice, pipeline_of)


def _least(runs: IntArray, figures: FloatArray) -> IntArray:
    return runs[figures <= figures.min() * (1 + TIE)] if len(runs) else runs


_MAXIMUM: np.ufunc = np.maximum
_SUM: np.ufunc = np.add
