"""The scheduler from outside: its flags, and its decisions as `explain`, `event` and `status` show them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli.app import cli
from deploy.cli.scheduling import scheduler_arguments
from deploy.cli.status import describe_decision
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings
from orchestrator.options import OrchestratorOptions
from shared.codec import convert
from shared.errors import ErrorCode
from shared.messages.operation import (
    CandidateRow,
    DecisionRow,
    Decisions,
    ExplainRequest,
    ModelDecision,
)
from tests.fakes.cluster import Model, until
from tests.shell.orchestrator_world import world_in

NSA = SchedulerSettings(
    scheduler=Scheduler.NSA,
    form=Form.LITERAL,
    weights=(0.1, 0.2, 0.3, 1 / 3),
    max_load_ratio=0.7,
    max_latency_s=0.0125,
    log_decisions=True,
)


class Started:
    """What an orchestrator would have been started with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: OrchestratorOptions | None = None

        async def capture(options: OrchestratorOptions) -> int:
            self.options = options
            return 0

        monkeypatch.setattr("orchestrator.candidate.run_orchestrator", capture)

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, env=env)

    def scheduling(self, *arguments: str, env: dict[str, str] | None = None) -> SchedulerSettings:
        result = self.run(*arguments, env=env)
        assert result.exit_code == 0, result.output
        assert self.options is not None
        return self.options.dispatch.scheduling


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


def test_without_flags_it_is_the_default(started: Started) -> None:
    assert started.scheduling("orchestrator") == SchedulerSettings()


@pytest.mark.parametrize("scheduling", [SchedulerSettings(), NSA], ids=["default", "all"])
def test_what_up_passes_on_is_what_was_asked_for(
    started: Started, scheduling: SchedulerSettings
) -> None:
    assert started.scheduling("orchestrator", *scheduler_arguments(scheduling)) == scheduling


def test_flags_then_environment_then_file(started: Started, tmp_path: Path) -> None:
    file = tmp_path / "amp4ec.toml"
    file.write_text(
        '[orchestrator]\nscheduler = "nsa"\nscheduler-form = "literal"\n'
        'scheduler_weights = "1,2,3,4"\nscheduler_max_latency = "50ms"\n'
    )
    config = ("--config", str(file), "orchestrator")
    of_file = SchedulerSettings(
        scheduler=Scheduler.NSA, form=Form.LITERAL, weights=(1, 2, 3, 4), max_latency_s=0.05
    )
    assert started.scheduling(*config) == of_file
    env = {"AMP4EC_ORCHESTRATOR_SCHEDULER_FORM": "normalised"}
    assert started.scheduling(*config, env=env) == replace(of_file, form=Form.NORMALISED)
    flag = ("--scheduler", "least-outstanding")
    assert started.scheduling(*config, *flag).scheduler is Scheduler.LEAST_OUTSTANDING


@pytest.mark.parametrize("name", ["orchestrator", "up"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheduler", "random"], "shortest-completion"),
        (["--scheduler-form", "loud"], "normalised"),
        (["--scheduler-weights", "1,2,3"], "four numbers"),
        (["--scheduler-weights", "0,0,0,0"], "not all 0"),
        (["--scheduler-max-load", "0"], "max-load"),
        (["--scheduler-max-load", "nan"], "load"),
        (["--scheduler-max-latency", "-1s"], "duration"),
        (["--event-level", "loud"], "debug"),
    ],
)
def test_wrong_usage(started: Started, name: str, arguments: list[str], words: str) -> None:
    result = started.run(name, *arguments)
    assert result.exit_code != 0
    assert words in f"{result.output} {result.exception}"
    assert started.options is None


# --- decisions ------------------------------------------------------------------------------------


async def test_explain_shows_the_latest_decision(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world, world.orchestrator() as orchestrator:
        nothing = await world.operator.ask("explain", ExplainRequest(transaction="0"))
        assert convert(nothing.data, Decisions).models == []
        async with world.agents("a", "b"):
            await world.operator.serve(Model())
            await world.answer()

            def told() -> bool:
                known = orchestrator.reporting.dispatched
                return known is not None and any(model.decision for model in known.models)

            await until(told)
            response = await world.operator.ask("explain", ExplainRequest(transaction="1"))
            (model,) = convert(response.data, Decisions).models
            assert model.model == "m"
            assert model.age_s is not None
            assert model.decision is not None
            assert model.decision.scheduler == "shortest-completion"
            assert len(model.decision.candidates) == 2
            (chosen,) = [each for each in model.decision.candidates if each.chosen]
            assert set(chosen.terms) == {"expected_s", "outstanding", "slowness", "overdue_s"}
            assert "m: the job of" in describe_decision(model)
            unknown = ExplainRequest(transaction="2", model="other")
            refused = await world.operator.ask("explain", unknown)
            assert refused.error is not None
            assert refused.error.code is ErrorCode.UNKNOWN_MODEL
            assert (refused.error.expected, refused.error.got) == ("m", "other")
    assert not [event for event in world.operator.events if event.level == "debug"]


async def test_each_decision_is_an_event_at_debug_level(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        world.options = replace(world.options, dispatch=DispatchSettings(scheduling=NSA))
        async with world.orchestrator() as orchestrator, world.agents("a", "b"):
            await world.operator.serve(Model())
            for job in "123":
                await world.answer(job)

            def debug() -> list[dict[str, object]]:
                return [event.data for event in world.operator.events if event.level == "debug"]

            await until(lambda: len(debug()) == 3)
            for data in debug():
                decision = convert(data["decision"], DecisionRow)
                assert decision.scheduler == "nsa"
                (chosen,) = [each for each in decision.candidates if each.chosen]
                assert set(chosen.terms) == {
                    "resources", "load", "performance", "balance", "total",
                }  # fmt: skip
            assert orchestrator._counters["internal_errors"] == 0


async def test_telemetry_reaches_the_rule_that_goes_by_it(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        world.options = replace(world.options, dispatch=DispatchSettings(scheduling=NSA))
        async with world.orchestrator() as orchestrator, world.agents("a") as (agent,):
            await world.operator.serve(Model())

            await agent.tell(cpu_percent=95.0)
            (pipeline,) = orchestrator._dispatcher._core._models["m"].pipelines.values()
            await until(lambda: pipeline.standing.load_ratio == 0.95)
            await world.answer()

            def passed_over() -> str:
                known = orchestrator.reporting.dispatched
                decisions = [] if known is None else [model.decision for model in known.models]
                return ", ".join(d.candidates[0].passed_over for d in decisions if d is not None)

            await until(passed_over)
            assert passed_over() == "load above threshold, CPU does not suffice"


def test_a_decision_for_people() -> None:
    rows = [
        CandidateRow(pipeline="m-0", generation=3, chosen=True, terms={"total": 0.75}),
        CandidateRow(
            pipeline="m-1", generation=3, chosen=False, terms={}, passed_over="no free credit"
        ),
    ]
    decision = DecisionRow(scheduler="nsa", probe=True, candidates=rows)
    text = describe_decision(ModelDecision(model="m", age_s=0.25, decision=decision))
    assert text.splitlines() == [
        "m: the job of 0.2 s ago was sent by nsa, as a probe",
        "    pipeline  generation  total",
        "=>  m-0                3   0.75",
        "    m-1                3      -  no free credit",
    ]
    none = describe_decision(ModelDecision(model="m", age_s=None, decision=None))
    assert none == "m: no job was dispatched yet"
