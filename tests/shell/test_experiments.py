"""Experiments without a cluster: rounds that go on where they stopped, and what is made of their records."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import deploy.experiments
from deploy.cli.experiment import experiment_command
from deploy.experiments.baseline import PAPER, STRICT
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.catalogue import EXPERIMENTS
from deploy.experiments.change import figures
from deploy.experiments.decision import decision
from deploy.experiments.load import Done, Stretch, drawn, zipf
from deploy.experiments.overhead import decide
from deploy.experiments.photos import photos
from deploy.experiments.records import Parameter, Record
from deploy.experiments.results import write_results
from deploy.experiments.run import missing, record_file, run
from deploy.experiments.summary import Figure, Summary, page, summarise
from deploy.experiments.verdicts import disturbed, verdicts, worse
from deploy.machine import Machine, this_machine
from shared.errors import ConfigurationError

MACHINE = Machine(
    at="2026-01-01T00:00:00+00:00", cpu_model="a processor", cores=2, memory_bytes=8 * 10**9,
    system="Linux", load_average=0.1, commit="abc1234", versions={"python": "3.11"},
)  # fmt: skip
SETTINGS = Settings(minutes=0.01, repeat=2)


def experiment(measured: list[str], broken: Callable[[str], bool] = lambda _: False) -> Experiment:
    """Two cases, which note that they were measured, and fail where `broken` says so."""

    async def measure(name: str, lab: Lab) -> Measured:
        assert lab.directory.is_dir()
        measured.append(name)
        if broken(name):
            raise ConfigurationError("out of order")
        return Measured(figures={"throughput_per_s": float(len(measured))})

    def cases(settings: Settings) -> list[Case]:
        return [
            Case(name=name, seconds=settings.seconds, measure=partial(measure, name))
            for name in ("a", "b")
        ]

    return Experiment(
        name="made-up", title="A test", text="Of nothing.", cases=cases,
        figures={"throughput_per_s": "In all."}, draw="throughput_per_s",
    )  # fmt: skip


async def test_every_case_is_measured_once_in_each_round(tmp_path: Path) -> None:
    measured: list[str] = []
    said: list[str] = []
    assert await run([experiment(measured)], SETTINGS, tmp_path, said.append) == {}
    assert measured == ["a", "b", "a", "b"]
    assert said[0].startswith("0 of 4 rounds are recorded; the others take about")
    rounds = [(each.case, each.round) for each in record_file(tmp_path, "made-up").read()]
    assert rounds == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


async def test_what_is_recorded_is_not_measured_again(tmp_path: Path) -> None:
    measured: list[str] = []
    await run([experiment(measured)], SETTINGS, tmp_path, lambda _: None)
    file = record_file(tmp_path, "made-up").path
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # ended in the middle of a line
    measured.clear()
    await run([experiment(measured)], SETTINGS, tmp_path, lambda _: None)
    assert measured == ["a", "b"]
    longer = Settings(minutes=0.02, repeat=1)
    assert len(missing([experiment([])], longer, tmp_path)) == 2, "what is recorded is too short"
    shorter = Settings(minutes=0.005, repeat=3)
    assert len(missing([experiment([])], shorter, tmp_path)) == 2, "a third round of each alone"
    other = Settings(minutes=0.01, repeat=1, scale=1.0)
    assert len(missing([experiment([])], other, tmp_path)) == 2, "another scale is another matter"


def comparing(name: str, measured: list[str]) -> Experiment:
    """A case of its own, and a baseline that it has in common with others."""

    async def measure(what: str, value: float, lab: Lab) -> Measured:
        del lab
        measured.append(what)
        return Measured(figures={"throughput_per_s": value})

    def cases(settings: Settings) -> list[Case]:
        del settings
        whole = Case(
            name="whole", seconds=1.0, measure=partial(measure, "whole", 10.0),
            home="baselines", shown=f"whole, as {name} calls it",
        )  # fmt: skip
        return [Case(name="ours", seconds=2.0, measure=partial(measure, name, 8.0), strict=whole)]

    return Experiment(
        name=name, title=name, text="", cases=cases,
        figures={"throughput_per_s": "In all."}, draw="throughput_per_s",
    )  # fmt: skip


async def test_what_experiments_have_in_common_is_measured_once(tmp_path: Path) -> None:
    measured: list[str] = []
    both = [comparing("one", measured), comparing("two", measured)]
    said: list[str] = []
    await run(both, SETTINGS, tmp_path, said.append)
    # Rounds outside: a run that is ended after the first has something to say of everything.
    assert measured == ["whole", "one", "two", "whole", "one", "two"]
    assert said[0].startswith("0 of 6 rounds are recorded")
    assert missing(both, SETTINGS, tmp_path) == []
    text = write_results(tmp_path, both).read_text()
    for name in ("one", "two"):
        assert f"| whole, as {name} calls it | 10 (10..10) | - |" in text
    assert text.count("| ours | 8 (8..8) | 0.8 (0.8..0.8) |") == 2


def test_a_baseline_is_read_at_its_longest(tmp_path: Path) -> None:
    for minutes, value in ((1.0, 10.0), (5.0, 20.0), (5.0, 30.0)):
        record_file(tmp_path, "baselines").append(
            record("baselines", "whole", {"throughput_per_s": value}, minutes=minutes)
        )
    record_file(tmp_path, "baselines").append(
        record("baselines", "whole", {"throughput_per_s": 99.0}, minutes=9.0, scale=1.0)
    )
    record_file(tmp_path, "one").append(record("one", "ours", {"throughput_per_s": 5.0}))
    found = page(comparing("one", []), lambda name: record_file(tmp_path, name).read())
    assert found is not None
    assert found.cases == ["whole, as one calls it", "ours"]
    assert found.length("whole, as one calls it") == "2 x 5 min"
    assert found.length("ours") == "1 x 1 min"
    assert found.median("whole, as one calls it", "throughput_per_s") == 25.0


async def test_data_of_several_commits_is_kept_and_told_apart(tmp_path: Path) -> None:
    measured: list[str] = []
    await run([experiment(measured)], Settings(minutes=0.01, repeat=1), tmp_path, lambda _: None)
    file = record_file(tmp_path, "made-up")
    old = [
        replace(each, machine=replace(each.machine, commit="old1234", at=MACHINE.at))
        for each in file.read()
    ]
    file.path.unlink()
    for each in old:
        file.append(each)
    await run([experiment(measured)], SETTINGS, tmp_path, lambda _: None)
    assert measured == ["a", "b", "a", "b"], "the first round was there"
    text = write_results(tmp_path, [experiment([])]).read_text()
    now = this_machine().commit
    assert f"at old1234 (2 records), {now} (2 records)" in text
    assert f"Measured from {MACHINE.at} to " in text


async def test_a_round_of_an_experiment_is_of_one_machine(tmp_path: Path) -> None:
    measured: list[str] = []
    one = comparing("one", measured)
    await run([one], SETTINGS, tmp_path, lambda _: None)
    for name in ("one", "baselines"):
        file = record_file(tmp_path, name)
        elsewhere = [replace(each, machine=MACHINE) for each in file.read()]
        file.path.unlink()
        for each in elsewhere:
            file.append(each)
    assert missing([one], SETTINGS, tmp_path) == [], "finished on another machine"
    measured.clear()
    await run([one], replace(SETTINGS, repeat=3), tmp_path, lambda _: None)
    assert measured == ["whole", "one"], "the third, all of it here"
    # Another experiment, whose baseline is known of both machines, but not each round of both.
    measured.clear()
    two = comparing("two", measured)
    await run([two], replace(SETTINGS, repeat=3), tmp_path, lambda _: None)
    assert measured == ["whole", "two", "whole", "two", "two"]
    text = write_results(tmp_path, [one, two]).read_text()
    here = this_machine().processor
    both = f"{MACHINE.processor} (rounds 1, 2); {here} (round 3)"
    assert f"On {both}. With python 3.11; " in text
    assert f"On {here}. With " in text, "all of the other's are from here"
    assert f"{both}; scale 0.5, seed 0" in (tmp_path / "drawings" / "one.svg").read_text()


def test_figures_are_compared_with_those_of_the_same_round_and_machine(tmp_path: Path) -> None:
    slow = replace(MACHINE, cpu_model="a slow processor", at="2026-01-02T00:00:00+00:00")

    def of(
        home: str, case: str, per_s: float, number: int, machine: Machine, *, minutes: float = 1.0
    ) -> None:
        made = record(home, case, {"throughput_per_s": per_s}, number=number, minutes=minutes)
        record_file(tmp_path, home).append(replace(made, machine=machine))

    for number, (mine, theirs) in enumerate(((8.0, 10.0), (9.0, 12.0), (8.5, 11.0)), 1):
        of("one", "ours", mine, number, MACHINE)
        of("baselines", "whole", theirs, number, MACHINE, minutes=5.0)
    of("one", "ours", 4.0, 4, MACHINE)  # ended before its baseline was measured
    of("one", "ours", 2.0, 4, slow)
    of("baselines", "whole", 4.0, 4, slow)
    found = page(comparing("one", []), lambda name: record_file(tmp_path, name).read())
    assert found is not None
    whole = "whole, as one calls it"
    assert [each.figures["throughput_per_s"] for each in found.of("ours")] == [8.0, 9.0, 8.5, 2.0]
    assert (found.length("ours"), found.length(whole)) == ("4 x 1 min", "3 x 5 min, 1 x 1 min")
    assert found.left_out == 1
    ratio = found.ratio("ours", whole, "throughput_per_s")
    assert ratio is not None
    assert (ratio.least, ratio.largest, ratio.rounds) == (0.5, 0.8, 4)
    assert ratio.median == pytest.approx((9 / 12 + 8.5 / 11) / 2)


async def test_a_case_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    measured: list[str] = []
    failed = await run(
        [experiment(measured, lambda name: name == "a")], SETTINGS, tmp_path, lambda _: None
    )
    assert failed == {"made-up: a": "out of order"}
    assert measured == ["a", "b", "a", "b"]
    assert [each.case.name for each in missing([experiment([])], SETTINGS, tmp_path)] == ["a", "a"]


def record(
    experiment: str,
    case: str,
    figures: Mapping[str, float | None],
    *,
    number: int = 1,
    series: Mapping[str, list[float]] | None = None,
    **parameters: Parameter,
) -> Record:
    """A record of one minute at half the scale, unless `parameters` say otherwise."""
    usual: dict[str, Parameter] = {
        "minutes": 1.0,
        "scale": 0.5,
        "seed": 0,
        "engine": "local",
        "batch": 32,
    }
    return Record(
        experiment=experiment, case=case, round=number, parameters={**usual, **parameters},
        figures=dict(figures), series=dict(series or {}), seconds=60.0, machine=MACHINE,
    )  # fmt: skip


def table_one(ours_per_s: float, strict_per_s: float) -> list[Record]:
    return [
        record("table-1", PAPER.name, {"throughput_per_s": 20.0, "latency_ms": 1600.0}),
        record(
            "table-1", STRICT["onnxruntime"].name,
            {"throughput_per_s": strict_per_s, "latency_ms": 7.0, "memory_mb": 110.0},
            batch=1,
        ),
        record(
            "table-1", "AMP4EC",
            {"throughput_per_s": ours_per_s, "latency_ms": 300.0, "memory_mb": 300.0,
             "exact_ratio": 1.0, "scheduling_ms": 0.6},
        ),
    ]  # fmt: skip


def summary_of(records: list[Record]) -> Summary:
    summary = summarise(records)
    assert summary is not None
    return summary


def test_aims_are_told_reached_or_not_by_what_was_measured() -> None:
    systems = [
        record("table-1-systems", name, {"throughput_per_s": value})
        for name, value in ((PAPER.name, 20.0), ("AMP4EC, int8", 170.0))
    ]
    found = {
        "table-1": summary_of(table_one(ours_per_s=125.0, strict_per_s=140.0)),
        "table-1-systems": summary_of(systems),
    }
    told = {each.text: each for each in verdicts(found)}
    paper = next(each for text, each in told.items() if text.startswith("throughput against the p"))
    assert (paper.measured, paper.reached) == (Figure(6.25, 6.25, 6.25, 1), True)
    strict = next(each for text, each in told.items() if "(onnxruntime)" in text)
    assert strict.measured is not None
    assert strict.measured.median == pytest.approx(125 / 140)
    assert strict.reached is True
    int8 = told["the same at int8"]
    assert (int8.measured, int8.reached) == (Figure(8.5, 8.5, 8.5, 1), False)
    monitoring = next(each for text, each in told.items() if text.startswith("monitoring"))
    assert (monitoring.measured, monitoring.reached) == (None, None)
    assert any("the same at int8" in line for line in worse(found))


def test_inexact_answers_reach_nothing() -> None:
    records = table_one(125.0, 140.0)
    exact = {**records[2].figures, "exact_ratio": 0.99}
    records[2] = record("table-1", "AMP4EC", exact)
    assert verdicts({"table-1": summary_of(records)})[0].measured is None


def test_a_baseline_that_was_starved_proves_nothing() -> None:
    records = table_one(125.0, 20.0)
    starved = {**records[1].figures, "cpu_percent": 30.0}
    records[1] = record("table-1", STRICT["onnxruntime"].name, starved, batch=1)
    found = {"table-1": summary_of(records)}
    (sentence,) = disturbed(found)
    assert "had 30 % of its CPU" in sentence
    strict = next(each for each in verdicts(found) if "(onnxruntime)" in each.text)
    assert (strict.measured, strict.reached) == (None, None)
    assert not any("times as many" in line for line in decision(found))


def test_where_something_else_is_better_is_said() -> None:
    said = worse({"table-1": summary_of(table_one(ours_per_s=125.0, strict_per_s=140.0))})
    assert f"AMP4EC: 125 images/s; better: {STRICT['onnxruntime'].name} 140 (table-1)." in said
    assert f"AMP4EC: 300 MB; better: {STRICT['onnxruntime'].name} 110 (table-1)." in said
    assert not any("ms for a batch" in line for line in said), "7 ms are of one image, not of 32"


def test_who_has_to_decide_is_told_what_splitting_costs() -> None:
    said = decision({"table-1": summary_of(table_one(ours_per_s=120.0, strict_per_s=160.0))})
    assert "the cluster answers 6 times as many images, cache off." in said[0]
    assert "The runtime alone, in one process, gives 8 times" in said[0]
    assert "spread over the devices 0.75 of that is left" in said[0]
    assert "Splitting gains nothing here" in said[0]
    lost = record(
        "change", "device lost",
        {"before_per_s": 90.0, "after_per_s": 60.0, "silence_s": 0.3, "lost": 0.0},
    )  # fmt: skip
    peers = [
        record(
            "peers", "amp4ec-torch", {"throughput_per_s": 77.0, "came_back": 1.0, "recovery_s": 0.2}
        ),
        record("peers", "gloo", {"throughput_per_s": 70.0, "came_back": 0.0, "recovery_s": None}),
    ]
    said = decision({"change": summary_of([lost]), "peers": summary_of(peers)})
    assert said == [
        "Device lost: 90 images/s before, 60 after; the longest silence was 0.3 s, 0 images had no answer.",
        "When the middle stage is killed, these answer again by themselves: amp4ec-torch after 0.2 s.",
        "These do not: gloo.",
        "amp4ec-torch answers 1.1 x gloo.",
    ]


def test_results_are_made_of_the_records_alone(tmp_path: Path) -> None:
    for each in table_one(125.0, 140.0):
        record_file(tmp_path, "table-1").append(each)
    series = {"images_per_s": [10.0, 0.0, 12.0], "event_s": [1.0]}
    record_file(tmp_path, "change").append(
        record("change", "device lost", {"lost": 0.0, "silence_s": 1.2}, series=series)
    )
    record_file(tmp_path, "other").append(record("other", "a case", {"throughput_per_s": 7.5}))
    text = write_results(tmp_path).read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "Where we are worse"
    assert headings[1:3] == ["For somebody who has to decide", "Figures to reach"]
    assert {"Table I beside the paper's", "other"} <= set(headings)
    assert headings[-1] == "What the numbers say, and what they do not"
    for stated in ("a processor, 2 cores", "python 3.11", "seed 0", "1 x 1 min", "2026-01-01"):
        assert stated in text
    for drawing in re.findall(r"\((drawings/.*?\.svg)\)", text):
        assert (tmp_path / drawing).read_text().lstrip().startswith("<?xml")
    assert len(list((tmp_path / "drawings").iterdir())) == 3
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_results(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_records_of_shorter_rounds_are_left_out_and_counted() -> None:
    short = record("made-up", "a", {"x": 1.0}, minutes=0.1)
    rounds = [
        record("made-up", "a", {"x": value}, number=n) for n, value in enumerate((5, 7, 6), 1)
    ]
    summary = summarise([short, *rounds])
    assert summary is not None
    assert (summary.left_out, summary.length("a")) == (1, "3 x 1 min")
    found = summary.figure("a", "x")
    assert found is not None
    assert (found.median, found.least, found.largest) == (6, 5, 7)


def test_the_catalogue_hangs_together() -> None:
    for name, each in EXPERIMENTS.items():
        assert each.name == name
        cases = each.cases(SETTINGS)
        every = each.every(SETTINGS)
        assert len({case.name for case in cases}) == len(cases), "a record would hide another"
        assert len({case.label for case in every}) == len(every), "a row would hide another"
        assert all(case.home in {"", *EXPERIMENTS} for case in every), "a page would read nothing"
        assert all(case.seconds > 0 for case in cases)
        assert each.draw is None or each.draw in each.figures
        longer = each.cases(Settings(minutes=5.0))
        assert sum(case.seconds for case in longer) >= sum(case.seconds for case in cases)


def test_a_loss_is_seen_in_the_answers() -> None:
    ends = [0.5, 1.5, 2.5, 2.9, 6.0, 7.5, 8.5]
    stretch = Stretch(100.0, 9.0, tuple(Done(100.0 + at, 0.1, ()) for at in ends), 0)
    found = figures(stretch, event_s=3.0, failed=2)
    assert found["before_per_s"] == pytest.approx(4 / 3)
    assert found["after_per_s"] == pytest.approx(3 / 3)
    assert found["silence_s"] == pytest.approx(3.0)
    assert found["lost"] == 2.0


def test_decisions_are_counted_for_any_number_of_nodes() -> None:
    for nodes in (1, 64):
        measured = decide(nodes, 0.05)
        assert measured.figures["jobs"]
        assert measured.figures["decision_ms"]


def test_photographs_differ_and_come_again() -> None:
    first = photos(20, seed=3)
    assert len(set(first)) == 20
    assert first == photos(20, seed=3)
    assert not set(first) & set(photos(20, seed=4))


def test_chances_follow_the_law() -> None:
    chances = zipf(100, 1.0)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[0] / chances[9] == pytest.approx(10.0)
    choose = drawn([b"first", b"second"], 32, 5.0, seed=1)
    images = choose()
    assert len(images) == 32
    assert images.count(b"first") > images.count(b"second"), "of every 33 that are drawn 32"


@pytest.mark.parametrize("values", [{"minutes": 0.0}, {"scale": float("nan")}, {"repeat": 0}])
def test_settings_that_measure_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="--"):
        Settings(**values)  # type: ignore[arg-type]


def test_the_command_lists_what_there_is(tmp_path: Path) -> None:
    shown = CliRunner().invoke(experiment_command, ["--json", "--output", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert [row["name"] for row in json.loads(shown.output)] == list(EXPERIMENTS)
    unknown = CliRunner().invoke(experiment_command, ["table-9", "--output", str(tmp_path)])
    assert isinstance(unknown.exception, ConfigurationError)


def test_the_command_writes_results_of_nothing(tmp_path: Path) -> None:
    made = CliRunner().invoke(experiment_command, ["--results", "--output", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert "Nothing was measured yet" in (tmp_path / "RESULTS.md").read_text()


def test_the_committed_results_are_what_the_committed_data_give(tmp_path: Path) -> None:
    committed = Path(deploy.experiments.__file__).parent
    shutil.copytree(committed / "data", tmp_path / "data")
    made = write_results(tmp_path)
    assert made.read_text() == (committed / "RESULTS.md").read_text(), (
        "write it again: amp4ec experiment --results --output deploy/experiments"
    )
    drawn = {path.name for path in (tmp_path / "drawings").iterdir()}
    assert drawn == {path.name for path in (committed / "drawings").iterdir()}
