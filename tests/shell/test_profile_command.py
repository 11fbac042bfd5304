"""`amp4ec profile`: its layers against the original model, its file, its table and its pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from deploy.cli.app import cli, main
from deploy.drawing_profile import draw_profile
from deploy.profile_layers import Layer, heads, kernel_text, layers_of, time_layers
from deploy.profile_report import Made, ProfileReport, read_report
from deploy.profile_tables import print_profile
from deploy.tables import Column, table
from orchestrator.models.importer import ImportedModel, import_module
from shared.codec import encode_json
from shared.errors import ConfigurationError
from shared.profile_file import load_profile


class Net(torch.nn.Module):
    """A residual, a BatchNorm that folds, a depthwise convolution, a dropout, and a function of no module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.act = torch.nn.ReLU()
        self.depth = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = torch.nn.Conv2d(8, 8, 1)
        self.drop = torch.nn.Dropout()
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = x + self.mix(self.act(self.depth(x)))
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture(scope="module")
def imported() -> ImportedModel:
    torch.manual_seed(0)
    return import_module(Net(), torch.zeros(1, 3, 32, 32), "tiny")


@pytest.fixture(scope="module")
def layers(imported: ImportedModel) -> list[Layer]:
    return layers_of(imported.manifest)


@pytest.fixture(scope="module")
def report(imported: ImportedModel, layers: list[Layer]) -> ProfileReport:
    count = len(imported.manifest.blocks)
    profile = imported.manifest.with_seconds([0.001 * (i + 1) for i in range(count)]).profile(
        input_seconds=0.002, runtime_bytes=10**8
    )
    return ProfileReport(profile, Made(runtime="torch 2", machine="here", layers=tuple(layers)))


def test_layers_sum_to_the_model(imported: ImportedModel, layers: list[Layer]) -> None:
    manifest = imported.manifest
    # By hand, from the shapes: output elements times what each reads
    assert [layer.macs for layer in layers if layer.macs] == [
        8 * 16 * 16 * 3 * 9, 8 * 16 * 16 * 9, 8 * 16 * 16 * 8, 8 * 4,
    ]  # fmt: skip
    assert sum(layer.macs for layer in layers) == sum(block.macs for block in manifest.blocks)
    parameters = sum(p.numel() for name, p in Net().named_parameters() if "norm" not in name)
    # Folding the BatchNorm gives the convolution a bias
    assert sum(layer.parameters for layer in layers) == parameters + 8
    assert sum(layer.weight_bytes for layer in layers) == 4 * (parameters + 8)


def test_every_leaf_keeps_its_paper_cost(imported: ImportedModel, layers: list[Layer]) -> None:
    told = [
        (layer.name, layer.type, layer.paper_cost)
        for layer in layers
        if layer.paper_cost is not None
    ]
    # The activation runs twice and is a leaf each time
    assert sorted(told) == sorted(
        (leaf.name, leaf.type, leaf.cost) for leaf in imported.manifest.leaves
    )
    costs = {name: cost for name, _, cost in told}
    assert costs["stem"] == 3 * 3 * 3 * 8
    assert costs["norm"] == 2 * 8
    assert costs["depth"] == 3 * 3 * 8 * 8  # groups are not in the paper's formula
    assert costs["head"] == 8 * 4
    folded = next(layer for layer in layers if layer.name == "norm")
    assert (folded.op, folded.macs, folded.parameters) == ("", 0, 0)
    names = [layer.name for layer in layers]
    assert names.index("stem") < names.index("norm") < names.index("depth")


def test_live_bytes_are_what_crosses_the_cuts(imported: ImportedModel, layers: list[Layer]) -> None:
    last: dict[int, Layer] = {layer.block: layer for layer in layers if layer.op}
    for cut in imported.manifest.cuts:
        assert last[cut.index - 1].live_bytes == cut.bytes
    assert last[len(last) - 1].live_bytes == 4 * 4


def test_layers_in_words(layers: list[Layer]) -> None:
    words = {layer.name: kernel_text(layer) for layer in layers}
    assert words["stem"] == "conv 3x3/2 3>8"
    assert words["norm"] == "BatchNorm2d (merged)"
    assert words["depth"] == "dwconv 3x3 8"
    assert words["mix"] == "conv 1x1 8>8"
    assert words["drop"] == "Dropout"
    assert words["head"] == "linear 8>4"
    assert [kernel_text(layer).split()[0] for layer in heads(layers).values()] == [
        "conv", "dwconv", "conv", "linear",
    ]  # fmt: skip


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_layers_of_a_block_take_its_time(imported: ImportedModel, runtime: str) -> None:
    manifest = imported.manifest
    whole = tuple(0.001 * (i + 1) for i in range(len(manifest.blocks)))
    seconds = time_layers(manifest, imported.blobs, runtime, whole)
    assert set(seconds) == {node.name for node in manifest.graph.nodes}
    assert min(seconds.values()) > 0
    for block, expected in zip(manifest.blocks, whole, strict=True):
        nodes = manifest.graph.nodes[slice(*block.nodes)]
        assert sum(seconds[node.name] for node in nodes) == pytest.approx(expected)


def test_file_is_the_planners_and_ours(report: ProfileReport) -> None:
    data = encode_json(report.document())
    assert load_profile(data) == report.profile
    assert json.loads(data)["blocks"][0]["type"] == "conv 3x3/2 3>8"
    again = read_report(data)
    assert again.profile == report.profile
    assert again.rows() == report.rows()
    assert encode_json(again.document()) == data


def test_file_without_layers_is_enough(report: ProfileReport) -> None:
    plain = replace(report.profile, leaves=())
    row = read_report(encode_json(plain)).rows()[0]
    assert (row.kind, row.parameters, row.paper_cost) == ("", None, None)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("by_layer", [False, True])
def test_table_fits_the_terminal(
    report: ProfileReport,
    width: int,
    by_layer: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_profile(report, layers=by_layer)
    head, _, body = capsys.readouterr().out.partition("\n\n")
    assert "tiny: 4 blocks" in head
    lines = body.splitlines()
    assert len(lines) > 4
    if width >= 60:
        assert max(len(line) for line in lines) <= width
        assert "macs" in lines[0]
    if width >= 100:
        assert all(title in lines[0] for title in ("params", "weights", "paper", "makes"))


def test_columns_go_in_their_order() -> None:
    columns = (Column("keep"), Column("second", drop=1), Column("first", drop=2), Column("none"))
    rows = [["aaaa", "bbbbbb", "ccccc", ""]]
    titles = {
        width: [column.header for column in table(columns, rows, width).columns]
        for width in (19, 18, 12, 11, 1)
    }
    assert titles == {
        19: ["keep", "second", "first"],
        18: ["keep", "second"],
        12: ["keep", "second"],
        11: ["keep"],
        1: ["keep"],
    }


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_picture(report: ProfileReport, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    draw_profile(report, path)
    data = path.read_bytes()
    assert data[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    if suffix == ".svg":
        text = data.decode()
        assert "the paper's cost" in text.replace("&#x27;", "'")
        draw_profile(report, path)
        assert path.read_text() == text


@pytest.fixture
def saved(report: ProfileReport, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_bytes(encode_json(report.document()))
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["profile", *map(str, arguments)], catch_exceptions=False)


def test_saved_profile_is_shown_again(saved: Path, report: ProfileReport, tmp_path: Path) -> None:
    shown = invoke(saved)
    assert "conv 3x3/2 3>8" in shown.stdout
    as_json = invoke(
        saved, "--json", "--output", tmp_path / "copy.json", "--draw", tmp_path / "p.svg"
    )
    assert as_json.stdout == (tmp_path / "copy.json").read_text()
    assert load_profile(as_json.stdout.encode()) == report.profile
    assert (tmp_path / "p.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (None, [], "cannot be read"),
        ("not json", [], "profile file"),
        ("[]", [], "profile file"),
        ('{"model": "m"}', [], "blocks"),
        (
            '{"model": "m", "blocks": [], "cuts": [], "input_bytes": 1, "output_bytes": 1}',
            [],
            "block",
        ),
        (None, ["--draw", "p.gif"], "known format"),
        (None, ["--draw", "/no/such/folder/p.png"], "no such folder"),
    ],
)
def test_bad_files_are_one_line(
    content: str | None,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["profile", str(path), *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert says in error
    assert "expected" in error
    assert "\n" not in error


def test_layers_that_make_no_sense_are_refused(report: ProfileReport) -> None:
    document = report.document() | {"layers": [{"name": 3}]}
    with pytest.raises(ConfigurationError, match="layers"):
        read_report(encode_json(document))
