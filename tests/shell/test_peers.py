"""The list of systems, their environments, and the table of what was measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.experiments.peers.environments import Environment, EnvironmentMissingError
from deploy.experiments.peers.report import groups, print_table, ratios
from deploy.experiments.peers.systems import SYSTEMS, Bench, choose
from deploy.experiments.records import Record
from shared.errors import ConfigurationError
from tests.shell.test_records import FIRST

BENCH = Bench(directory=Path("/nowhere"), shares=(0.5, 0.3, 0.2), window=8)


def test_systems_are_chosen_by_name_in_one_order() -> None:
    assert [system.name for system in choose(["alone", "gloo"])] == ["gloo", "alone"]
    assert choose([]) == SYSTEMS
    with pytest.raises(ConfigurationError, match=r"gloo.*got 'glue'"):
        choose(["glue"])


def test_all_systems_get_the_same_cpu_together() -> None:
    for system in SYSTEMS:
        shares = system.shares(BENCH) or tuple(system.options(BENCH)["shares"])
        assert sum(shares) == pytest.approx(1.0)


def test_another_pin_is_another_environment(tmp_path: Path) -> None:
    one = Environment("peer", ("a==1",))
    assert one.directory(tmp_path) == Environment("peer", ("a==1",)).directory(tmp_path)
    assert one.directory(tmp_path) != Environment("peer", ("a==2",)).directory(tmp_path)
    assert Environment("ours").python(tmp_path, print) == Path(sys.executable)


def test_an_environment_that_pip_cannot_fill_is_no_environment(tmp_path: Path) -> None:
    missing = Environment("peer", (str(tmp_path / "nothing-1-py3-none-any.whl"),))
    with pytest.raises(EnvironmentMissingError, match="leave this peer out with --only"):
        missing.python(tmp_path, lambda _: None)
    assert not (missing.directory(tmp_path) / "complete").exists()


def measured(case: str, round_: int, per_s: float, recovery_s: float | None) -> Record:
    figures = {
        "throughput_per_s": per_s,
        "latency_p50_ms": 100.0,
        "latency_p95_ms": 150.0,
        "memory_pss_bytes": 5e8,
        "cpu_others": 0.3,
        "items_per_stage_cpu_s": per_s,
        "recovery_s": recovery_s,
        "kill_sent": 10.0,
        "kill_answered": 10.0 if recovery_s else 4.0,
        "kill_wrong": 0.0,
        "kill_refused": 0.0,
        "kill_lost": 0.0 if recovery_s else 6.0,
    }
    return replace(FIRST, case=case, round=round_, figures=figures)


def test_ratios_are_taken_within_a_round() -> None:
    group = [
        measured("amp4ec-torch", 0, 80.0, 0.3),
        measured("gloo", 0, 40.0, None),
        measured("gloo", 1, 20.0, None),
        measured("amp4ec-torch", 1, 30.0, 0.3),
        measured("amp4ec-torch", 2, 99.0, 0.3),  # the other is still to come
    ]
    assert ratios(group, "amp4ec-torch", "gloo") == [2.0, 1.5]


def test_only_records_of_equal_parameters_are_compared() -> None:
    one = measured("gloo", 0, 40.0, None)
    other = replace(one, parameters={"window": 4})
    foreign = replace(one, experiment="table-1")
    assert groups([one, other, foreign, one]) == [[one, one], [other]]


def test_the_table_says_who_came_back_and_which_aims_were_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(
        [
            measured("amp4ec-torch", 0, 50.0, 0.3),
            measured("amp4ec-torch", 1, 52.0, 0.4),
            measured("gloo", 0, 50.0, None),
            measured("gloo", 1, 50.0, None),
            measured("ray-serve", 0, 10.0, 12.0),
        ]
    )
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("gloo"))
    assert "never (2 of 2)" in row
    assert "20/8/0/0/12" in row
    assert "amp4ec-torch / gloo: 1.02 (1.00..1.04) (aim 1.1: NOT reached)" in out
    assert "amp4ec-torch / ray-serve: 5.00 (aim 2.8: reached)" in out
    assert "ray-actors" not in out
