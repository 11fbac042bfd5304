"""`amp4ec plan` without a cluster: what it prints, draws and refuses; two files are all it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.cli.app import cli, main
from deploy.drawing_plan import draw_plan
from deploy.plan_tables import print_answer
from deploy.plan_view import view
from deploy.planning import Wish, answer, dry_run, kind_of, parse_axes
from deploy.supervisor import child_environment
from orchestrator.core.figures import Objective
from orchestrator.core.plan import PipelinePlan, Plan, StagePlan
from shared.codec import encode_json
from shared.errors import ConfigurationError
from shared.profile import BlockProfile, CutProfile, LeafProfile, ModelProfile, NodeProfile

ROOT = Path(__file__).parents[2]
MB = 10**6


def profile(blocks: int = 6, weight_bytes: int = MB) -> ModelProfile:
    """Blocks of 10 ms with weights of 1 MB each, and cuts that get smaller."""
    return ModelProfile(
        model="hand",
        blocks=tuple(
            BlockProfile(i, f"b{i}", 1000, weight_bytes, 0.010, 2 * MB) for i in range(blocks)
        ),
        cuts=tuple(CutProfile(i, 100_000 // i, 1) for i in range(1, blocks)),
        input_bytes=50_000,
        output_bytes=4000,
        runtime_bytes=100 * MB,
        leaves=tuple(LeafProfile(f"l{i}", "Linear", 10, i) for i in range(blocks)),
    )


def node(name: str, cpu: float = 1.0, **changes: Any) -> NodeProfile:
    plain = NodeProfile(name, cpu, 1.0, 10**9, 12.5e6, 12.5e6, 0.001)
    return replace(plain, **changes)


NODES = (node("pi-a"), node("pi-b", 0.5), node("pi-c", 0.5))

CLUSTER = """
[[node]]
name = "pi"
count = 3
cpu = 1.0
speed = 1.0
memory_bytes = 1e9
up_bytes_per_s = 12.5e6
down_bytes_per_s = 12.5e6
message_s = 0.001
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "p.json").write_bytes(encode_json(profile()))
    (tmp_path / "c.toml").write_text(CLUSTER)
    return ["--profile", str(tmp_path / "p.json"), "--cluster", str(tmp_path / "c.toml")]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)], catch_exceptions=False)


def test_json_is_a_plan_that_can_be_checked_by_hand(files: list[str]) -> None:
    document = json.loads(invoke(*files, "--strategy", "single", "--json").stdout)
    assert (document["model"], document["strategy"], document["objective"]) == (
        "hand", "single", "throughput",
    )  # fmt: skip
    (stage,) = document["pipelines"][0]["stages"]
    assert stage["blocks"] == [0, 6]
    assert stage["compute_s"] == pytest.approx(6 * 0.010 + 2 * 0.001)
    assert stage["receive_s"] == pytest.approx(50_000 / 12.5e6)
    assert stage["send_s"] == pytest.approx(4000 / 12.5e6)
    # Weights, the largest live tensors, the runtime, and eight inputs that wait
    assert stage["memory_bytes"] == 6 * MB + 2 * MB + 100 * MB + 8 * 50_000
    assert document["predicted"]["throughput_per_s"] == pytest.approx(1 / 0.062)
    assert document["predicted"]["latency_s"] == pytest.approx(0.062 + 0.004 + 0.00032)
    assert document["lower_bound"] == pytest.approx(0.060 / 3)
    assert "dry_run" not in document
    assert "front" not in document


def test_the_papers_rules_tell_their_leaves(files: list[str]) -> None:
    document = json.loads(invoke(*files, "--strategy", "equal", "--json").stdout)
    assert document["leaf_counts"] == [2, 2, 2]
    assert "[2, 2, 2]" in invoke(*files, "--strategy", "equal").stdout


def test_for_people(files: list[str]) -> None:
    shown = invoke(*files, "--min-stages", 3).stdout
    assert "hand: pipeline of 3, 3 of 3 nodes, best for throughput" in shown
    assert "input 50.0 kB" in shown
    assert "result 4.0 kB" in shown
    assert "[0, 2)" in shown
    assert shown.count("pi-") >= 3
    assert "◀ bottleneck" in shown


def test_equal_pipelines_are_shown_once(files: list[str]) -> None:
    shown = invoke(*files).stdout
    assert "hand: 3 copies, 3 of 3 nodes" in shown
    assert "3 of these: pi-1, pi-2, pi-3" in " ".join(shown.split())
    assert shown.count("■") == 1


def test_explained(files: list[str]) -> None:
    shown = invoke(*files, "--explain").stdout
    assert "dry run: " in shown
    for kind in ("chosen", "single", "pipeline of 2", "pipeline of 3"):
        assert kind in shown
    assert "worse" in shown
    document = json.loads(invoke(*files, "--explain", "--json").stdout)
    run, predicted = document["dry_run"], document["predicted"]
    assert run["saturated"]["throughput_per_s"] == pytest.approx(
        predicted["throughput_per_s"], rel=0.05
    )
    assert run["alone"]["latency_s"] == pytest.approx(predicted["latency_s"], rel=0.05)
    kinds = {other["kind"] for other in document["alternatives"]}
    assert kinds >= {"single", "pipeline of 2", "pipeline of 3"}


def test_model_in_the_place_of_a_file(
    files: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "small.py").write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["small:net", "--input-shape", "1x8", "--runtime", "torch", *files[2:], "--json"]
    document = json.loads(invoke(*arguments).stdout)
    assert document["model"] == "net"
    assert document["pipelines"][0]["stages"][-1]["blocks"][1] == 2


def pictures(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes()[:4] for path in sorted(tmp_path.glob("drawn*"))]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_drawn(files: list[str], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"drawn{suffix}"
    result = invoke(*files, "--min-stages", 2, "--draw", path)
    assert pictures(tmp_path) == [b"\x89PNG" if suffix == ".png" else b"<?xm"]
    assert str(path) in result.stderr
    if suffix == ".svg":
        text = path.read_text()
        assert "bottleneck" in text
        assert "pi-1" in text
        assert "50.0 kB" in text


def test_front_is_printed_and_drawn(files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "drawn.svg"
    document = json.loads(invoke(*files, "--pareto", path, "--json").stdout)
    front = document["front"]
    assert front["objectives"] == ["latency", "throughput"]
    told = [
        (p["predicted"]["latency_s"], -p["predicted"]["throughput_per_s"]) for p in front["points"]
    ]
    for one in told:
        beaten = (
            other
            for other in told
            if other != one and all(a <= b for a, b in zip(other, one, strict=True))
        )
        assert not any(beaten)
    assert "latency, ms" in path.read_text()
    shown = invoke(*files, "--axes", "cost,throughput,latency").stdout
    assert "the front over cost, throughput, latency" in shown


@pytest.mark.parametrize("width", [50, 60, 80, 100, 140])
def test_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_answer(answer(Wish(min_stages=2).request(profile(), NODES)))
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines
    assert max(len(line) for line in lines) <= width


def test_a_slow_link_is_the_bottleneck(capsys: pytest.CaptureFixture[str]) -> None:
    slow = (node("a", up_bytes_per_s=1e6), node("b", down_bytes_per_s=1e5))
    given = answer(Wish(min_stages=2, exclude=frozenset()).request(profile(), slow))
    (shown,) = view(given.request.profile, given.plan.pipelines)
    # Whoever comes second: its node sends the result, the other the activation
    worst = max(range(3), key=lambda index: shown.links[index].seconds)
    assert shown.links[worst].bottleneck
    assert shown.links[worst].busy_ratio == 1.0
    assert not any(stage.bottleneck for stage in shown.stages)
    print_answer(given)
    marked = [line for line in capsys.readouterr().out.splitlines() if "bottleneck" in line]
    assert len(marked) == 1
    assert "kB" in marked[0]


def pipelines(*lengths: int) -> list[PipelinePlan]:
    return [
        PipelinePlan(
            tuple(StagePlan(f"n{i}{j}", (j, j + 1), 0.1, 0.0, 0.0, 1) for j in range(length))
        )
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ((1,), "one node"),
        ((1, 1, 1), "3 copies"),
        ((3,), "pipeline of 3"),
        ((2, 2), "2 pipelines of 2"),
        ((1, 3, 2, 2), "pipeline of 3 and 2 pipelines of 2 and 1 copy"),
    ],
)
def test_kind_in_words(lengths: tuple[int, ...], text: str) -> None:
    assert kind_of(pipelines(*lengths)) == text


def test_views_lose_no_pipeline() -> None:
    plans = pipelines(1, 2, 2, 1)
    shown = view(profile(2), plans)
    assert [each.copies for each in shown] == [2, 2]
    assert shown[1].others == ("n20 > n21",)


def test_many_pipelines_are_dry_run_whole() -> None:
    run = dry_run(pipelines(*[1] * 100))
    assert sum(run.saturated.jobs_per_pipeline) == 4000
    assert min(run.saturated.jobs_per_pipeline) >= 39


def test_gap_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    plan: Plan = answer(Wish(objective=Objective.LATENCY).request(profile(), NODES)).plan
    assert plan.gap_ratio > 0
    print_answer(answer(Wish(objective=Objective.LATENCY).request(profile(), NODES), explain=True))
    assert "above the least possible latency" in capsys.readouterr().out


REFUSED = [
    (["--strategy", "best"], "--strategy 'best'"),
    (["--max-cost", "abc"], "--max-cost 'abc'"),
    (["--min-stages", "two"], "--min-stages 'two'"),
    (["--live"], "two places"),
    (["--objective", "speed"], "--objective 'speed'"),
    (["--objective", "latency=0.7,cost"], "--objective"),
    (["--max-latency", "soon"], "--max-latency"),
    (["--max-cost", "nan"], "--max-cost"),
    (["--max-exposure", "2"], "--max-exposure"),
    (["--min-throughput", "0"], "--min-throughput"),
    (["--min-stages", "0"], "--min-stages"),
    (["--min-stages", "3", "--max-stages", "2"], "--max-stages"),
    (["--in-flight", "0"], "--in-flight"),
    (["--exclude", "nobody"], "--exclude nobody"),
    (["--axes", "latency"], "--axes"),
    (["--axes", "latency,latency"], "--axes"),
    (["--draw", "plan.txt"], "--draw"),
    (["--pareto", "/no/such/folder/p.png"], "--pareto"),
    (["extra-model"], "two models"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_usage_is_one_line(
    files: list[str], arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([*files, *arguments], 2, says, capsys)


def refused(arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`amp4ec plan` ends with a line that says what was expected and what came."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == code
    captured = capsys.readouterr()
    error = captured.err.strip()
    assert error.startswith("error: ")
    assert says in error
    assert "expected" in error
    assert "\n" not in error
    assert captured.out == ""


@pytest.mark.parametrize(
    ("slip", "says"),
    [
        (("cpu = 1.0", "cpu = -1.0"), "cpu"),
        (("cpu = 1.0", "cpu = 0"), "cpu"),
        (("cpu = 1.0", "cpu = nan"), "cpu"),
        (("cpu = 1.0", 'cpu = "fast"'), "cpu"),
        (("speed = 1.0", ""), "speed"),
        (("count = 3", "count = 0"), "count"),
        (("[[node]]", "[[nodes]]"), "cluster file"),
        (("[[node]]", "[[node"), "cluster file"),
        (("message_s", "mesage_s"), "mesage_s"),
    ],
    ids=str,
)
def test_bad_cluster_is_one_line(
    files: list[str], slip: tuple[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(files[3])
    path.write_text(CLUSTER.replace(*slip))
    refused(files, 2, says, capsys)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "profile file"),
        (b"\xff\xfe", "profile file"),
        (b"{}", "profile file"),
        (b"[1, 2]", "profile file"),
        (encode_json(profile()).replace(b'"seconds":0.01', b'"seconds":-1'), "seconds"),
        (encode_json(profile()).replace(b'"seconds":0.01', b'"seconds":null'), "seconds"),
        (encode_json(profile()).replace(b'"index":3', b'"index":7'), "indices"),
    ],
)
def test_bad_profile_is_one_line(
    files: list[str], content: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[1]).write_bytes(content)
    refused(files, 2, says, capsys)


def test_missing_files_are_named(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused([*files[:3], "/no/such.toml"], 2, "--cluster /no/such.toml", capsys)
    refused(["--profile", "/no/such.json", *files[2:]], 2, "--profile /no/such.json", capsys)
    refused(["--profile", "/", *files[2:]], 2, "--profile /", capsys)


def test_nothing_to_plan_for(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(files[2:], 2, "nothing to plan for", capsys)
    refused(files[:2], 2, "no nodes to plan for", capsys)
    refused([*files[:2], "--live"], 2, "MODEL in the place of --profile", capsys)


def test_a_profile_may_stand_where_the_model_does(files: list[str]) -> None:
    assert invoke(files[1], *files[2:]).stdout == invoke(*files).stdout


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "[red]x[/] $a$"
    given = answer(Wish().request(profile(), [node(name)]))
    draw_plan(given, tmp_path / "drawn.svg")
    assert "[red]x[/] $a$" in (tmp_path / "drawn.svg").read_text()


NO_PLAN = [
    (["--max-latency", "1ms"], "1 ms"),
    (["--max-latency", "100ms", "--min-throughput", "1000"], "1000"),
    (["--min-stages", "4"], "3 is the most"),
    (["--strategy", "single", "--min-stages", "2"], "one stage"),
    (["--keep-input-in", "home"], "home"),
    (["--exclude", "pi-1", "--exclude", "pi-2", "--exclude", "pi-3"], "no node"),
]


@pytest.mark.parametrize(("arguments", "says"), NO_PLAN, ids=lambda value: str(value)[:40])
def test_no_plan_says_what_is_nearest(
    files: list[str], arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([*files, *arguments], 1, says, capsys)


def test_a_model_that_fits_nowhere(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(files[1]).write_bytes(encode_json(profile(weight_bytes=2 * 10**9)))
    refused(files, 1, "needs", capsys)


def test_no_plan_as_json(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *files, "--min-stages", "4", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "error"
    assert document["error"]["got"] == "4"


def test_files_need_neither_torch_nor_a_bus(files: list[str]) -> None:
    """What planning from two files must not wait for is refused here, as if it were not installed."""
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'onnxruntime', 'aiomqtt', 'paho', 'psutil', 'PIL',\n"
        "             'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from deploy.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "plan", *files, "--explain"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "hand: 3 copies" in result.stdout


def test_an_input_from_nowhere_is_told(files: list[str]) -> None:
    Path(files[3]).write_text(f'{CLUSTER}zone = "home"\n')
    said = " ".join(invoke(*files).stdout.split())
    assert "100% exposed" in said
    assert "no node is in the input's zone, 'default'" in said
    assert "zones are home" in said
    said = invoke(*files, "--input-zone", "home").stdout
    assert "exposed" not in said
    assert "note" not in said


def test_the_guide_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two files are in the repository, so what it prints is known; when it changes, the guide must."""
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's own processes are told a width
    example = ROOT / "deploy" / "example"
    given = ["--profile", example / "mobilenet_v2.json", "--cluster", example / "three-pis.toml"]
    shown = invoke(*given, "--input-zone", "home", "--explain").stdout
    assert shown in (ROOT / "deploy" / "PLANNING.md").read_text(encoding="utf-8")


def test_axes_are_objectives() -> None:
    assert parse_axes(" cost, throughput ,exposure") == (
        Objective.COST, Objective.THROUGHPUT, Objective.EXPOSURE,
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="--axes"):
        parse_axes("latency,speed")
