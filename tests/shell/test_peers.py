"""The list of systems, their environments, and the table of what was measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.experiments.case import Engine, Lab, Settings
from deploy.experiments.peers.environments import Environment, EnvironmentMissingError
from deploy.experiments.peers.experiment import PEERS, Stages
from deploy.experiments.peers.systems import SYSTEMS, Bench
from deploy.experiments.records import Record
from deploy.experiments.results import write_results
from deploy.experiments.run import record_file
from deploy.experiments.verdicts import PEERS as AIMS
from shared.errors import ConfigurationError
from tests.shell.test_records import FIRST

BENCH = Bench(directory=Path("/nowhere"), shares=(0.5, 0.3, 0.2), window=8)


def test_all_systems_get_the_same_cpu_together() -> None:
    for system in SYSTEMS:
        shares = system.shares(BENCH) or tuple(system.options(BENCH)["shares"])
        assert sum(shares) == pytest.approx(1.0)


def test_a_peers_stages_get_the_cpu_that_they_were_cut_for() -> None:
    # The first stage suits the second device.
    plan = Stages.of({"cuts": [15, 42], "shares": [0.3, 0.5, 0.2]})
    for system in SYSTEMS:
        bench = plan.given_to(system, BENCH)
        match system.limits:
            case "stages":
                assert system.shares(bench) == (0.3, 0.5, 0.2)
            case "sum":
                assert list(system.shares(bench)) == [pytest.approx(1.0)]
            case "own":
                assert system.options(bench)["shares"] == (0.5, 0.3, 0.2)
    assert plan.notes() == {"cuts": "15, 42", "CPUs of the stages": "0.3, 0.5, 0.2"}


def test_another_pin_is_another_environment(tmp_path: Path) -> None:
    one = Environment("peer", ("a==1",))
    assert one.directory(tmp_path) == Environment("peer", ("a==1",)).directory(tmp_path)
    assert one.directory(tmp_path) != Environment("peer", ("a==2",)).directory(tmp_path)
    assert Environment("ours").python(tmp_path, print) == Path(sys.executable)


def test_an_environment_that_pip_cannot_fill_is_no_environment(tmp_path: Path) -> None:
    missing = Environment("peer", (str(tmp_path / "nothing-1-py3-none-any.whl"),))
    with pytest.raises(EnvironmentMissingError, match="leave this peer out with --case"):
        missing.python(tmp_path, lambda _: None)
    assert not (missing.directory(tmp_path) / "complete").exists()


def measured(
    case: str, round_: int, per_s: float, recovery_s: float | None, cpu_percent: float = 99.0
) -> Record:
    figures = {
        "throughput_per_s": per_s,
        "bottleneck_cpu_percent": cpu_percent,
        "came_back": float(recovery_s is not None),
        "recovery_s": recovery_s,
    }
    return replace(FIRST, experiment=PEERS.name, case=case, round=round_, figures=figures)


def test_cases_are_named_after_systems_and_chosen_by_a_part_of_the_name() -> None:
    settings = Settings()
    assert [case.name for case in PEERS.cases(settings)] == [each.name for each in SYSTEMS]
    assert [case.name for case in PEERS.only(["ray-s", "alone"]).cases(settings)] == [
        "ray-serve",
        "alone",
    ]
    with pytest.raises(ConfigurationError, match=r"no such case.*gloo.*got glue"):
        PEERS.only(["glue"]).cases(settings)


async def test_containers_are_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings(engine=Engine.DOCKER)
    lab = Lab(settings, tmp_path, tmp_path, lambda _: None)
    with pytest.raises(ConfigurationError, match="--engine local"):
        await PEERS.cases(settings)[0].measure(lab)


def test_aims_are_about_systems_that_are_measured() -> None:
    names = {system.name for system in SYSTEMS}
    assert {name for ours, peer, _ in AIMS for name in (ours, peer)} <= names


def test_results_say_what_was_missed_and_who_is_better(tmp_path: Path) -> None:
    file = record_file(tmp_path, PEERS.name)
    for round_ in (1, 2):
        file.append(measured("amp4ec-torch", round_, 50.0 + round_, 0.3))
        file.append(measured("gloo", round_, 50.0, None))
        file.append(measured("ray-serve", round_, 10.0, 12.0))
        file.append(measured("alone", round_, 90.0, None))
        # Others had the cores while it ran, which proves nothing.
        file.append(measured("ray-actors", round_, 5.0, 9.0, cpu_percent=40.0))
    text = write_results(tmp_path).read_text()
    head, aims = text.split("## Figures to reach")[0], text.split("## Figures to reach")[1]
    assert "amp4ec-torch: 51.5 images/s; better: alone 90 (peers)." in head
    assert (
        "amp4ec-torch against gloo | at least 1.1 | 1.03 (1.02..1.04) | **not reached** |" in aims
    )
    assert "amp4ec-torch against ray-serve | at least 2.8 | 5.15 (5.1..5.2) | reached |" in aims
    assert "amp4ec-torch against ray-actors | at least 1.3 | - | not measured" in aims
    row = next(line for line in text.splitlines() if line.startswith("| gloo"))
    assert "| 0 (0..0) | - |" in row  # it never came back
    assert (tmp_path / "drawings" / "peers.svg").is_file()
