"""`amp4ec bench`: what is measured, what is kept of it, and what is made of that."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from deploy.bench.cells import EAGER, KINDS, SHARES, Cell, Kind, cells_of
from deploy.bench.drawings import DRAWINGS, draw_all
from deploy.bench.figures import Table
from deploy.bench.load import Load
from deploy.bench.page import page
from deploy.bench.raw import Delivered, Line, Measured, RawFile, Round
from deploy.bench.subjects import SUBJECTS, subject_of
from deploy.bench.wire import Fetches
from deploy.machine import Machine
from shared.client import Client
from shared.codec import decode_msgpack
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.messages.job import TensorsInput
from shared.messages.model import ModelState, PipelineRow, StageRow
from shared.messages.stage import Report, StageReport, StageState

MACHINE = Machine(
    at="2026-01-02T03:04:05+00:00",
    cpu_model="Z80",
    cores=2,
    memory_bytes=65_536,
    system="CP/M",
    load_average=0.0,
    commit="abc",
    versions={"python": "3.11"},
)
THREE = Cell("mobilenet_v2", "onnxruntime", "O1", 3, "stages")


def turn(per_s: float, whole_per_s: float, alone_ms: float = 10.0) -> Round:
    return Round(
        per_s=per_s,
        cpu_ms=12.0,
        latency_ms=[alone_ms - 1, alone_ms, 100.0],
        whole_per_s=whole_per_s,
        whole_cpu_ms=10.0,
        whole_ms=8.0,
    )


def line(cell: Cell, *rounds: Round, machine: Machine = MACHINE) -> Line:
    measured = Measured(
        plan="agent-1[0:2] > agent-2[2:3]",
        rounds=list(rounds) or [turn(80.0, 100.0)],
        delivered=Delivered(fetched_bytes=14_000_000, seconds=1.2),
        job_bytes=180_000,
        weight_bytes=14_000_000,
        resident_bytes={"agent-1": 100_000_000, "agent-2": 120_000_000},
        whole_resident_bytes=110_000_000,
    )
    return Line(machine=machine, cell=cell, measured=measured, took_s=3.0)


def test_shares_are_one_cpu_in_all() -> None:
    for count, shares in SHARES.items():
        assert len(shares) == count
        assert sum(shares) == pytest.approx(1.0)


def test_every_model_is_measured_with_all_kinds_and_numbers_of_nodes() -> None:
    cells = list(cells_of(["a", "b"], KINDS, [1, 2, 3, 4]))
    assert len(set(cells)) == len(cells)
    for model in ("a", "b"):
        for kind in KINDS:
            mine = [cell for cell in cells if (cell.model, cell.kind) == (model, kind)]
            wanted = {1, 2, 3, 4} if kind.level == "O1" else {3}
            assert {cell.nodes for cell in mine} == wanted
            assert (Cell(model, kind.runtime, kind.level, 3, "free") in mine) == (
                kind.level == "O1"
            )
    # A runtime's cells lie together: its nodes are started once.
    runtimes = [cell.runtime for cell in cells]
    assert sum(a != b for a, b in pairwise(runtimes)) == 1


def test_other_levels_are_measured_where_there_are_no_three_nodes() -> None:
    assert {cell.nodes for cell in cells_of(["a"], [EAGER], [1, 2])} == {2}
    with pytest.raises(ConfigurationError, match="number of nodes"):
        list(cells_of(["a"], [EAGER], [5]))


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    free = dataclasses.replace(THREE, plan="free")
    raw = RawFile.open(file)
    raw.append(line(THREE))
    raw.append(line(free))
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])  # in the middle of the last line

    raw = RawFile.open(file)
    assert set(raw.done(MACHINE)) == {THREE}
    raw.append(line(free))
    assert set(RawFile.open(file).done(MACHINE)) == {THREE, free}
    assert file.read_bytes() == whole


def test_other_code_or_another_machine_is_measured_anew(tmp_path: Path) -> None:
    raw = RawFile.open(tmp_path / "raw.jsonl")
    raw.append(line(THREE, turn(50.0, 100.0)))
    later = dataclasses.replace(MACHINE, at="2026-02-02T03:04:05+00:00", load_average=3.0)
    assert set(raw.done(later)) == {THREE}
    # Figures that are kept in the repository change it while they are measured.
    assert set(raw.done(dataclasses.replace(MACHINE, commit="abc-dirty"))) == {THREE}
    changed = dataclasses.replace(MACHINE, commit="def")
    assert not raw.done(changed)
    raw.append(line(THREE, turn(90.0, 100.0), machine=changed))
    (latest,) = raw.latest([THREE])
    assert latest.machine == changed


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    raw = RawFile.open(tmp_path / "raw.jsonl")
    raw.append(Line(machine=MACHINE, cell=THREE, failed="the lights went out"))
    assert not raw.done(MACHINE)
    assert raw.cells() == [THREE]
    assert "the lights went out" in page(raw.lines, ())


def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    file.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ConfigurationError, match="line 1 is none of ours"):
        RawFile.open(file)
    assert file.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_ratios_are_those_of_turns() -> None:
    # The machine halved its speed between the turns: rates say nothing, ratios are as they were.
    rounds = turn(80.0, 100.0), turn(40.0, 50.0), turn(45.0, 50.0)
    (found,) = Table([line(THREE, *rounds)]).all
    assert (found.per_s.low, found.per_s.median, found.per_s.high) == (40.0, 45.0, 80.0)
    assert (found.ratio.low, found.ratio.median, found.ratio.high) == (0.8, 0.8, 0.9)
    assert found.latency_ms.median == 10.0
    assert found.latency_ratio.median == 1.25
    assert found.cpu_ratio.median == 1.2
    assert found.resident_most_bytes == 120_000_000


def test_aims() -> None:
    free = dataclasses.replace(THREE, plan="free")
    eager = Cell("mobilenet_v2", "torch", "O0", 3, "stages")
    lines = [
        line(THREE, turn(84.0, 100.0, alone_ms=12.0)),
        line(free, turn(93.0, 100.0)),
        line(eager, turn(30.0, 33.0)),
    ]
    aims = {aim.text: aim for aim in Table(lines).aims()}
    assert {text: aim.reached for text, aim in aims.items()} == {
        "onnxruntime O1: three stages, of the whole's rate": False,
        "onnxruntime O1: a job alone, of the whole's time": False,
        "onnxruntime O1: best plan, of the whole's rate": True,
        "onnxruntime O1: three stages, of eager's rate": True,
    }
    assert aims["onnxruntime O1: three stages, of eager's rate"].value.median == 2.8


def test_the_page_names_every_cell_and_drawing() -> None:
    cells = list(cells_of(list(SUBJECTS), KINDS, list(SHARES)))
    text = page([line(cell) for cell in cells], list(DRAWINGS)[1:])
    # What was not drawn is not shown.
    assert [f"({name})" in text for name in DRAWINGS] == [False, True, True, True]
    for subject in SUBJECTS.values():
        assert text.count(f"| {subject.title} |") >= 7 * 2 + 2
    for kind in KINDS:
        assert f"## {kind}" in text
    assert "0.80 x (0.80 to 0.80)" in text
    assert "**not reached**" in text
    assert "Z80" in text


@pytest.mark.parametrize("kinds", [KINDS, (Kind("onnxruntime", "O1"),)])
def test_drawings_are_pictures(kinds: tuple[Kind, ...], tmp_path: Path) -> None:
    lines = [line(cell) for cell in cells_of(["mobilenet_v2", "resnet50"], kinds, [1, 3])]
    paths = draw_all(Table(lines), tmp_path)
    # One kind has nothing to be compared with.
    assert len(paths) == len(DRAWINGS) - (len(kinds) == 1)
    for path in paths:
        assert ET.parse(path).getroot().tag.endswith("svg")
        assert path.name in DRAWINGS


def test_subjects_ask_what_their_models_take(tmp_path: Path) -> None:
    encoder = SUBJECTS["encoder"]
    asked = decode_msgpack(encoder.payload(), TensorsInput).tensors
    shapes = {shape.name: (shape.shape, shape.dtype) for shape in encoder.source().inputs}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in asked.items()} == shapes
    with np.load(encoder.samples(tmp_path) / "texts.npz") as texts:
        assert texts["ids"].shape[1:] == shapes["ids"][0][1:]
        assert set(np.unique(texts["mask"])) == {0, 1}
    assert SUBJECTS["resnet50"].payload()[:2] == b"\xff\xd8"
    pictures = SUBJECTS["resnet50"].samples(tmp_path)
    assert len(list(pictures.glob("*.jpg"))) == 36


class Answers:
    """In the place of a client: answers each job after `takes_s`, the first `good` of them."""

    def __init__(self, takes_s: float, good: float = float("inf")) -> None:
        self.takes_s, self.good, self.asked, self.most, self.under_way = takes_s, good, 0, 0, 0

    async def infer(self, model: str, payload: bytes, *, timeout_s: float) -> None:
        self.asked += 1
        if self.asked > self.good:
            raise JobError(ErrorCode.OVERLOADED, "no more")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.under_way -= 1


async def test_a_stretch_keeps_a_window_under_way() -> None:
    client = Answers(0.01)
    spent = iter([1.0, 3.0])
    load = Load(cast("Client", client), "m", b"")
    found = await load.saturate(3, 0.1, 5, lambda: next(spent))
    assert (client.most, client.under_way) == (3, 0)
    # Answers take 10 ms and more, so three lanes give 300 per second and fewer.
    assert 0 < found.per_s <= 300
    assert found.cpu_s == pytest.approx(2.0 / round(2.0 / found.cpu_s))
    assert len(await load.one_at_a_time(0.0, 4)) == 4
    assert client.most == 3


async def test_a_job_that_fails_ends_the_stretch_with_its_error() -> None:
    load = Load(cast("Client", Answers(0.001, good=8)), "m", b"")
    with pytest.raises(JobError, match="no more"):
        await load.saturate(4, 30.0, 5, lambda: 0.0)


def test_any_torchvision_model_may_be_asked_for() -> None:
    assert subject_of("resnet18").source().weights == "none"
    with pytest.raises(ConfigurationError, match="--models"):
        subject_of("../secret")


async def test_what_was_fetched_is_told_when_every_stage_has_said_so() -> None:
    """That a model is served may be heard before the last report, which comes by another connection."""

    def row(stage: int, node: str) -> StageRow:
        return StageRow(
            stage=stage, node=node, blocks=(stage, stage + 1), weight_bytes=1, output_bytes=1,
            predicted_s=0.1,
        )  # fmt: skip

    def report(stage: int, node: str, state: StageState, fetched_bytes: int) -> Report:
        told = StageReport(
            model="m", pipeline="p", generation=2, stage=stage, state=state,
            fetched_bytes=fetched_bytes,
        )  # fmt: skip
        return Report(node=node, incarnation=1, revision=1, stages=[told])

    pipeline = PipelineRow(pipeline="p", stages=[row(0, "a"), row(1, "b")])
    state = ModelState(state="serving", model="m", generation=2, pipelines=[pipeline])
    fetches = Fetches()
    fetches.take(report(0, "a", "ready", 100))
    fetches.take(report(1, "b", "fetching", 7))
    waiting = asyncio.create_task(fetches.of(state))
    await asyncio.sleep(0)
    assert not waiting.done()
    fetches.take(report(1, "b", "ready", 30))
    assert await waiting == 130
