"""Random histories of the cluster core, what it promises checked after every step.

`AMP4EC_TEST_EXAMPLES=2000` tries more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orchestrator.core import cluster_sharing, replan
from orchestrator.core.cluster import ClusterSettings
from orchestrator.core.cluster_events import (
    InputsCounted,
    ModelEntry,
    NodeBorn,
    NodeDied,
    NodeHeard,
    NodeReported,
    PipelineDrained,
    StageMeasured,
    Tell,
)
from shared.errors import PlanError
from shared.messages.stage import Report
from tests.core.cluster_world import MB, Death, World, birth, death, entry, telemetry

SETTINGS = ClusterSettings(
    load_timeout_s=20.0, blocked_s=10.0, cool_down_s=5.0, drift_interval_s=5.0
)
NAMES = st.sampled_from(["a", "b", "c", "d"])
MODELS = st.sampled_from(["m", "m", "n", "o"])
ENTRIES: dict[str, ModelEntry] = {
    made.manifest: made
    for made in (
        entry("m", manifest="a"),
        entry("m", manifest="b", weight=15 * MB),
        entry("n", manifest="c"),
        entry("n", manifest="d", weight=15 * MB),
        entry("o", manifest="e", weight=5 * MB),
    )
}

MOST_SWITCHES = 4
"""Of one model in the minutes after the last thing that happened, when the others may move as well."""

KINDS = st.sampled_from(sorted(ENTRIES))
LEAST = st.sampled_from([None, None, 2, 3])
RATES = st.sampled_from([None, None, 2.0, 20.0, 500.0])
MEMORY = st.sampled_from([20 * MB, 60 * MB, 120 * MB, 120 * MB, 1000 * MB])


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(SETTINGS)
        self.old_reports: list[Report] = []

    @initialize(
        some=st.sets(NAMES, min_size=1),
        memory=MEMORY,
        kind=KINDS,
        least=LEAST,
        rate=RATES,
        settled=st.booleans(),
    )
    def begins(
        self,
        some: set[str],
        memory: int,
        kind: str,
        least: int | None,
        *,
        rate: float | None,
        settled: bool,
    ) -> None:
        self.world.join(*sorted(some), memory=memory)
        self.is_asked_for(kind, least, "throughput", rate, timeout_s=60.0, twice=False)
        if settled:
            self.world.wait(3)

    # --- nodes

    @rule(
        name=NAMES,
        cpu=st.sampled_from([0.2, 0.5, 1.0, 2.0]),
        memory=MEMORY,
        speed=st.sampled_from([None, 0.5, 1.0]),
    )
    def joins(self, name: str, cpu: float, memory: int, speed: float | None) -> None:
        self.world.join(name, cpu=cpu, memory=memory, speed=speed)

    @rule(name=NAMES, state=st.sampled_from(["offline", "lost"]))
    def dies(self, name: str, state: Death) -> None:
        if name in self.world.agents:
            self.world.kill(name, state)

    @rule(name=NAMES, silent=st.booleans())
    def falls_silent_or_speaks(self, name: str, silent: bool) -> None:
        if name in self.world.agents:
            self.world.agents[name].mute = silent

    @rule(name=NAMES)
    def is_cut_off_and_comes_back(self, name: str) -> None:
        agent = self.world.agents.get(name)
        if agent is not None and agent.up:
            self.world.send(NodeDied(self.world.now, death(name, agent.state.incarnation)))
            self.world.send(NodeBorn(self.world.now, agent.state))

    @rule(name=NAMES, back=st.integers(1, 2))
    def words_of_an_earlier_life(self, name: str, back: int) -> None:
        agent = self.world.agents.get(name)
        if agent is not None and agent.state.incarnation > back:
            old, now = agent.state.incarnation - back, self.world.now
            alive = self.world.cluster.nodes[name].alive
            for event in (
                NodeDied(now, death(name, old)),
                NodeBorn(now, birth(name, old)),
                NodeHeard(now, telemetry(name, old)),
                NodeReported(now, Report(node=name, incarnation=old, revision=10**9)),
            ):
                assert self.world.send(event) == []
            assert self.world.cluster.nodes[name].alive == alive

    @rule(name=NAMES, speed=st.sampled_from([0.1, 0.5, 1.0, 4.0]))
    def measures_its_speed(self, name: str, speed: float) -> None:
        if name in self.world.agents and self.world.agents[name].up:
            self.world.calibrate(name, speed)

    # --- stages

    @rule(name=NAMES, model=MODELS, broken=st.booleans())
    def breaks_or_heals(self, name: str, model: str, broken: bool) -> None:
        agent = self.world.agents.get(name)
        if agent is not None:
            (agent.broken.add if broken else agent.broken.discard)(model)

    @rule(name=NAMES, state=st.sampled_from(["fetching", "loading", "ready", "ready"]))
    def reports(self, name: str, state: str) -> None:
        agent = self.world.agents.get(name)
        if agent is not None and agent.up:
            report = agent.report("ready" if state == "ready" else "loading")
            self.old_reports.append(report)
            self.world.send(NodeReported(self.world.now, report))

    @rule(name=NAMES, data=st.data())
    def reports_without_a_stage(self, name: str, data: st.DataObject) -> None:
        agent = self.world.agents.get(name)
        if agent is not None and agent.up and agent.stages:
            report = agent.report()
            kept = data.draw(st.sets(st.sampled_from(range(len(report.stages)))))
            stages = [stage for index, stage in enumerate(report.stages) if index in kept]
            self.world.send(NodeReported(self.world.now, replace(report, stages=stages)))

    @precondition(lambda self: self.old_reports)
    @rule(data=st.data())
    def a_report_comes_again(self, data: st.DataObject) -> None:
        report = data.draw(st.sampled_from(self.old_reports[-8:]))
        self.world.send(NodeReported(self.world.now, report))

    @rule()
    def everybody_answers(self) -> None:
        self.world.settle()

    @precondition(lambda self: self.world.checks.draining)
    @rule(data=st.data())
    def a_pipeline_is_empty(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.world.checks.draining)))
        self.world.checks.draining.remove(key)
        self.world.send(PipelineDrained(self.world.now, *key))

    @rule(name=NAMES, model=MODELS, generation=st.integers(0, 3), index=st.integers(0, 2))
    def nonsense_about_stages(self, name: str, model: str, generation: int, index: int) -> None:
        now, pipeline = self.world.now, f"{model}-{index}"
        key = (model, pipeline, generation)
        if key not in self.world.checks.draining:
            self.world.send(PipelineDrained(now, *key))
        self.world.send(StageMeasured(now, *key, index, name, 10, 0.01, 0.01))

    @precondition(lambda self: self.world.checks.active)
    @rule(data=st.data(), factor=st.sampled_from([0.3, 1.0, 1.0, 3.0]))
    def stages_are_measured(self, data: st.DataObject, factor: float) -> None:
        model, pipeline, number = data.draw(st.sampled_from(sorted(self.world.checks.active)))
        active = self.world.served(model).active
        assert active is not None
        index = active.index_of(pipeline)
        assert index is not None
        for stage, place in enumerate(active.plan.pipelines[index].stages):
            seconds = factor * 0.01 * (place.blocks[1] - place.blocks[0])
            self.world.send(
                StageMeasured(
                    self.world.now, model, pipeline, number, stage, place.node, 10, seconds, seconds
                )
            )

    @rule(
        model=MODELS,
        items=st.sampled_from([0, 49, 50, 5000]),
        size=st.sampled_from([1, 1000, 10**7]),
    )
    def jobs_are_of_some_size(self, model: str, items: int, size: int) -> None:
        self.world.send(InputsCounted(self.world.now, model, items, items * size))

    # --- requests

    @rule(
        kind=KINDS,
        least=LEAST,
        objective=st.sampled_from(["throughput", "latency"]),
        rate=RATES,
        timeout_s=st.sampled_from([0.0, 5.0, 60.0]),
        twice=st.booleans(),
    )
    def is_asked_for(
        self,
        kind: str,
        least: int | None,
        objective: str,
        rate: float | None,
        *,
        timeout_s: float,
        twice: bool,
    ) -> None:
        options = replace(ENTRIES[kind].options, min_stages=least, rate_per_s=rate)
        if objective == "latency":
            options = replace(options, objective="latency")
        made = replace(ENTRIES[kind], options=options)
        self.world.serve(made, timeout_s)
        if twice:
            waiting = self.world.served(made.name).waiting
            if waiting:
                transaction = waiting[-1].transaction
                self.world.serve(made, timeout_s, transaction=transaction)
                self.world.checks.asked["serve", transaction] -= 1

    @rule(name=MODELS)
    def is_stopped(self, name: str) -> None:
        self.world.stop(name)

    @rule(name=MODELS)
    def is_to_be_planned_again(self, name: str) -> None:
        self.world.replan(name)

    @rule(name=NAMES, drain=st.booleans(), timeout_s=st.sampled_from([0.0, 5.0, 60.0]))
    def is_taken_out_of_plans(self, name: str, *, drain: bool, timeout_s: float) -> None:
        if drain:
            self.world.drain(name, timeout_s)
        else:
            self.world.cordon(name)

    @rule(name=NAMES)
    def may_be_used_again(self, name: str) -> None:
        self.world.uncordon(name)

    @rule(reports_first=st.booleans())
    def the_orchestrator_starts_anew(self, reports_first: bool) -> None:
        for served in self.world.cluster.models.values():
            for waiting in served.waiting:  # nobody answers those
                self.world.checks.asked[waiting.verb, waiting.transaction] -= 1
        for drain in self.world.cluster._context.drains:
            self.world.checks.asked["drain", drain.transaction] -= 1
        self.world.restart(ENTRIES, reports_first=reports_first)

    # --- time

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds, settle=False)

    @rule(seconds=st.sampled_from([0.0, 1.0, 1.9, 60.0]))
    def only_the_clock_moves(self, seconds: float) -> None:
        self.world.tick(seconds)

    def drained_nodes_hold_what_fits_nowhere_else(self) -> None:
        world = self.world
        context = world.cluster._context
        out = {name for name, cordon in world.checks.cordons.items() if cordon.drain}
        for served in world.cluster.models.values():
            if served.active is None or not out & served.active.nodes():
                continue
            offered = cluster_sharing.offered(context, served).profiles
            nodes = [node for node in offered if node.name not in world.checks.cordons]
            with pytest.raises(PlanError):
                replan.choose(served.entry, nodes, context.settings.zones)

    def teardown(self) -> None:
        """Whatever happened: with agents that do their work, what can be served is served."""
        world = self.world
        for agent in world.agents.values():
            agent.mute = False
            agent.broken.clear()
        world.settle()
        world.wait(12)
        self.drained_nodes_hold_what_fits_nowhere_else()
        for name in list(world.checks.cordons):
            world.uncordon(name)
        world.wait(12)
        for name, served in world.cluster.models.items():
            context = world.cluster._context
            nodes = cluster_sharing.offered(context, served).profiles
            try:
                replan.choose(served.entry, nodes, context.settings.zones)
            except PlanError:
                continue
            assert world.state(name).state == "serving"
        mark = len(world.log)
        world.wait(170, step_s=1.5)  # the longest cool-down is over
        switches = Counter(
            a.model for a in world.log[mark:] if isinstance(a, Tell) and a.event == "replanned"
        )
        assert all(count <= MOST_SWITCHES for count in switches.values()), "no to and fro"
        assert not world.cluster._context.draining
        quiet = world.wait(30, step_s=1.5)
        assert quiet == [], "a quiet cluster does nothing"
        for name in list(world.cluster.models):
            world.stop(name)
        world.settle()
        assert all(not stages for stages in world.checks.assigned.values())
        unanswered = {
            key: count
            for key, count in world.checks.asked.items()
            if len(world.checks.finished.get(key, [])) != count
        }
        assert not unanswered


TestHistories = pytest.mark.timeout(300)(Histories.TestCase)
TestHistories.settings = settings(
    max_examples=int(os.environ.get("AMP4EC_TEST_EXAMPLES", "40")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
