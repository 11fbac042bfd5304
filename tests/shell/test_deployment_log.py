"""Records of deployments on disk: kept over a restart, bounded, and never in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploy.cli.deployments import describe_deployments
from orchestrator.core.cluster_events import DeploymentEnded, StageLoad
from orchestrator.deployment_log import DeploymentLog
from shared.codec import convert
from shared.messages.operation import Deployments, DeploymentsRequest
from shared.messages.stage import StageReport
from tests.fakes.cluster import Model
from tests.shell.orchestrator_world import world_in

ASKED = DeploymentsRequest(transaction="t")
SAID = StageReport(
    model="m", pipeline="m-0", generation=1, stage=0, state="ready",
    load_s=0.25, fetch_s=1.5, fetched_bytes=2_500_000,
)  # fmt: skip


def ended(number: int, model: str = "m", *, active: bool = True) -> DeploymentEnded:
    return DeploymentEnded(
        model=model,
        manifest="a" * 64,
        runtime="onnxruntime",
        level="O1",
        generation=number,
        cause="it was asked for",
        took_s=2.0,
        loaded_s=1.75,
        active=active,
        fate="" if active else "node b was lost",
        stages=(
            StageLoad("m-0", 0, "a", (0, 10), SAID),
            StageLoad("m-0", 1, "b", (10, 20), None),
        ),
    )


def test_they_are_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deployments.json"
    log = DeploymentLog(path, "root")
    log.add(ended(1), 0.004)
    log.add(ended(2, active=False), 0.0)
    again = DeploymentLog(path, "root").latest(ASKED)
    assert [each.generation for each in again] == [2, 1], "the latest first"
    assert again == log.latest(ASKED)
    assert again[1].outcome == "active"
    assert again[1].fetched_bytes == 2_500_000
    assert (again[1].waited_s, again[1].slice_s) == (0.25, 0.004)
    assert [stage.state for stage in again[1].stages] == ["ready", "silent"]
    assert (again[0].outcome, again[0].detail) == ("failed", "node b was lost")
    assert DeploymentLog(path, "another root").latest(ASKED) == []
    assert list(tmp_path.iterdir()) == [path]


def test_they_are_bounded_and_chosen_by_model(tmp_path: Path) -> None:
    log = DeploymentLog(tmp_path / "deployments.json", "root", most=10)
    for number in range(30):
        log.add(ended(number, "m" if number % 2 else "n"), 0.0)
    assert [each.generation for each in log.latest(replace(ASKED, most=3))] == [29, 28, 27]
    assert [each.generation for each in log.latest(replace(ASKED, model="n"))] == [
        28,
        26,
        24,
        22,
        20,
    ]
    assert len(DeploymentLog(tmp_path / "deployments.json", "root").latest(ASKED)) == 10


def test_a_damaged_file_and_a_disk_that_fails_stop_nobody(tmp_path: Path) -> None:
    path = tmp_path / "deployments.json"
    path.write_text('{"root": "root", "deployments": [{"at"')
    log = DeploymentLog(path, "root")
    assert log.latest(ASKED) == []
    log.add(ended(1), 0.0)
    assert len(DeploymentLog(path, "root").latest(ASKED)) == 1
    lost = DeploymentLog(tmp_path / "gone" / "deployments.json", "root")
    lost.add(ended(1), 0.0)
    assert len(lost.latest(ASKED)) == 1


def test_for_people(tmp_path: Path) -> None:
    log = DeploymentLog(tmp_path / "deployments.json", "root")
    assert describe_deployments(log.latest(ASKED)) == "nothing was deployed yet"
    log.add(ended(1), 0.0)
    log.add(ended(2, active=False), 0.0)
    text = describe_deployments(log.latest(ASKED))
    assert "given up: node b was lost" in text
    assert "a[0:10] ready (2.5 MB in 1.5 s, loaded in 250 ms)" in text
    assert "why: it was asked for" in text
    assert "aaaaaaaaaaaa O1 onnxruntime" in text


async def test_operators_ask_for_them_also_after_a_restart(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world, world.agents("a"):
        async with world.orchestrator():
            assert (await world.operator.serve(Model())).status == "ok"
        async with world.orchestrator():
            asked = DeploymentsRequest(transaction="1", model="m")
            response = await world.operator.ask("deployments", asked)
            (told,) = convert(response.data, Deployments).deployments
            assert (told.model, told.outcome, told.manifest) == (
                "m",
                "active",
                Model().manifest.digest,
            )
            assert [stage.node for stage in told.stages] == ["a"]
            assert told.slice_s > 0.0
            nothing = DeploymentsRequest(transaction="2", model="n")
            response = await world.operator.ask("deployments", nothing)
            assert response.data == {"deployments": []}
