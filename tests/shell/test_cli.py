"""The command without a cluster: help, settings, exit codes, and what it does not import."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from deploy.cli.app import cli
from deploy.cli.infer import expand
from deploy.cli.openness import warn_of_plain_text
from deploy.cli.options import serve_options
from deploy.cli.status import describe, describe_model
from deploy.flags import ServeFlags
from deploy.supervisor import child_environment, command
from shared.bus import BrokerUrl
from shared.client import ClusterStatus, NodeView
from shared.errors import ConfigurationError
from shared.messages.model import Figures, ModelState, PredictionError, ServeOptions
from shared.messages.operation import CacheMetrics, ModelMetrics, NodeStanding
from tests.core.cluster_world import birth, death, telemetry

COMMANDS = sorted(cli.list_commands(click.Context(cli)))
HEAVY = ("torch", "torchvision", "safetensors", "PIL", "rich", "matplotlib")


def run(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=child_environment(environment),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("mqtt://192.168.1.5", True),
        ("broker.local:1884", True),
        ("mqtts://192.168.1.5", False),
        ("mqtt://127.0.0.1", False),
        ("mqtt://[::1]:1885", False),
        ("localhost", False),
    ],
)
def test_plain_text_to_another_machine_is_warned_of(
    address: str, *, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_plain_text(BrokerUrl.parse(address))
    assert ("amp4ec broker init" in caplog.text) == warned
    assert len(caplog.messages) == int(warned)


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "::", "broker.local"])
def test_an_open_broker_for_others_is_asked_for_by_name(bind: str) -> None:
    ended = run("broker", "--bind", bind)
    assert ended.returncode == 2
    assert "--insecure" in ended.stderr
    assert "amp4ec broker init" in ended.stderr


def test_the_commands() -> None:
    assert COMMANDS == [
        "agent",
        "bench",
        "broker",
        "cordon",
        "docker",
        "doctor",
        "drain",
        "events",
        "experiment",
        "health",
        "infer",
        "join-token",
        "options",
        "orchestrator",
        "plan",
        "profile",
        "serve",
        "status",
        "stop",
        "story",
        "top",
        "uncordon",
        "up",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"    amp4ec {name}" in result.output
    # These ask no broker: models are measured here, a token made from its files, containers are an engine's.
    asks_none = ("join-token", "profile", "bench", "docker", "experiment")
    assert "--broker" in result.output or name in asks_none


def test_help_names_the_three_places_of_settings() -> None:
    output = " ".join(CliRunner().invoke(cli, ["--help"]).output.split())
    assert "flags, then from AMP4EC_* environment variables" in output
    assert "~/.config/amp4ec/config.toml" in output


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_print_for_people_print_json_too(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    # They print nothing, or only below, or a screen.
    services = ("broker", "orchestrator", "agent", "docker", "top")
    assert ("as_json" in {param.name for param in command.params}) == (name not in services)


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer"],
        ["nonsense"],
        ["infer", "m", "/does/not/exist.jpg"],
        ["status", "--broker", "http://x"],
        ["status", "--root", "a/#"],
        ["serve", "m", "--min-stages", "3", "--max-stages", "2"],
        ["serve", "m", "--timeout", "soon"],
        ["serve", "m", "--objective", "speed"],
        ["serve", "m", "--objective", "latency=0.7,cost=-1"],
        ["serve", "m", "--max-latency", "soon"],
        ["serve", "m", "--max-exposure", "2"],
        ["serve", "m", "--max-energy", "nan"],
        ["serve", "m", "--rate", "0"],
        ["serve", "m", "--rate", "inf"],
        ["serve", "m", "--keep-input-in", "home:zero"],
        ["up", "--zones", "home,cloud"],
        ["up", "--cpus", "0.5,0.5"],
        ["up", "--serve", "a", "--serve", "b", "--name", "c"],
        ["up", "--port", "70000"],
        ["agent", "--name", "a/b"],
        ["orchestrator", "--home-assistant", "a/#"],
        ["agent", "--cache-size", "0"],
        ["--config", "/does/not/exist.toml", "status"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["status"], ["infer", "m", __file__], ["stop", "m"]])
def test_unreachable_broker_exits_3(arguments: list[str]) -> None:
    port = closed_port()
    result = run(*arguments, "--broker", f"127.0.0.1:{port}")
    assert result.returncode == 3
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(port) in last
    assert "amp4ec broker" in last
    assert "Traceback" not in result.stderr


def test_failure_with_json_is_one_document() -> None:
    result = run("status", "--json", "--broker", f"127.0.0.1:{closed_port()}")
    assert result.returncode == 3
    document = json.loads(result.stdout)
    assert document["status"] == "error"
    assert document["error"]["message"]


def resolved(tmp_path: Path, *arguments: str, **environment: str) -> str:
    """The broker that a command would use."""
    program = textwrap.dedent("""
        import sys
        import deploy.cli.status as status
        async def show(common, *, explain, deployments):
            print(common.broker, common.root, common.log_level)
            sys.exit(0)
        status._status = show
        from deploy.cli.app import main
        main(sys.argv[1:])
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=child_environment({"HOME": str(tmp_path), **environment}),
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_order_of_settings(tmp_path: Path) -> None:
    default = "mqtt://127.0.0.1:1883 amp4ec/v1 warning"
    assert resolved(tmp_path, "status") == default
    file = tmp_path / "amp4ec.toml"
    file.write_text('broker = "top"\nlog-level = "error"\n[status]\nroot = "r/1"\n')
    assert resolved(tmp_path, "status") == "mqtt://top:1883 r/1 error"
    file.write_text('broker = "top"\n[status]\nbroker = "table"\n')
    assert resolved(tmp_path, "status") == "mqtt://table:1883 amp4ec/v1 warning"
    variable = {"AMP4EC_BROKER": "variable"}
    assert resolved(tmp_path, "status", **variable).startswith("mqtt://variable:1883")
    before = resolved(tmp_path, "--broker", "before", "status", **variable)
    assert before.startswith("mqtt://before:1883")
    after = resolved(tmp_path, "--broker", "before", "status", "--broker", "after", **variable)
    assert after.startswith("mqtt://after:1883")


def test_configuration_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('broker = "named"\n')
    assert resolved(tmp_path, "--config", str(file), "status").startswith("mqtt://named:")
    environment = {"AMP4EC_CONFIG": str(file)}
    assert resolved(tmp_path, "status", **environment).startswith("mqtt://named:")


def test_configuration_file_with_a_slip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "amp4ec.toml").write_text('[serve]\ntiemout = "5m"\n')
    result = run("status", cwd=tmp_path, HOME=str(tmp_path))
    assert result.returncode == 2
    assert "tiemout" in result.stderr
    assert "timeout" in result.stderr


def test_what_needs_no_torch_imports_none() -> None:
    asking = ("infer", "status", "serving")
    working = ("profile", "plan", "bench")
    modules = [f"deploy.cli.{name}" for name in ("app", "services", "up", *asking, *working)]
    program = (
        "import sys, importlib\n"
        f"for name in {modules!r} + ['amp4ec', 'deploy.serve', 'deploy.local', 'orchestrator.service',"
        " 'edge_agent.service']:\n"
        "    importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_bare_install_can_use_the_client() -> None:
    """What an extra brings is refused here, as if it were not installed."""
    program = textwrap.dedent(f"""
        import sys
        for name in {(*HEAVY, "psutil")!r}:
            sys.modules[name] = None
        import amp4ec
        from deploy.cli.app import cli
        from click.testing import CliRunner
        for name in ("infer", "status", "stop", "broker"):
            assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0, name
    """)
    subprocess.run([sys.executable, "-c", program], env=child_environment(), check=True)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("psutil", ["agent"], "amp4ec[agent]"),
        ("psutil", ["serve", "m"], "amp4ec[agent]"),
        ("av", ["infer", "m", "--camera", "movie.mp4"], "amp4ec[camera]"),
        ("watchdog", ["infer", "m", "--watch", "."], "amp4ec[camera]"),
        ("aiohttp", ["orchestrator", "--http", "0"], "amp4ec[web]"),
    ],
)
def test_missing_extra_is_named(
    missing: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    program = textwrap.dedent(f"""
        import sys
        sys.modules[{missing!r}] = None
        from deploy.cli.app import main
        main(sys.argv[1:])
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=child_environment({"XDG_STATE_HOME": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert f"pip install '{extra}'" in result.stderr
    assert "Traceback" not in result.stderr


def taken(*arguments: str) -> ServeFlags:
    """What `amp4ec serve` makes of its arguments."""
    seen: list[ServeFlags] = []

    @click.command()
    @serve_options
    def served(flags: ServeFlags) -> None:
        seen.append(flags)

    served.main([*arguments], standalone_mode=False)
    return seen[0]


def test_what_a_model_is_asked_to_be_travels_whole() -> None:
    flags = taken(
        *("--objective", "latency=0.7,cost=0.3", "--max-latency", "0.231ms"),
        *("--min-throughput", "0.1", "--max-energy", "1e-07", "--max-cost", "0.02"),
        *("--max-exposure", "0.25", "--keep-input-in", "home:25%", "--rate", "20.5"),
        *("--cache", "2Mi", "--cache-for", "1.5m"),
    )
    assert flags.options() == ServeOptions(
        objective="latency=0.7,cost=0.3",
        rate_per_s=20.5,
        max_latency_s=0.231 * 0.001,
        min_throughput_per_s=0.1,
        max_energy_j=1e-07,
        max_cost_per_1000=0.02,
        max_exposure_ratio=0.25,
        keep_input_in="home:25%",
        cache_bytes=2 * 1024 * 1024,
        cache_for_s=90.0,
    )
    assert taken(*flags.arguments()) == flags, "a child of `up` understands the same"
    assert taken().options() == ServeOptions()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cache", "maybe"), "off, on, or bytes"),
        (("--cache", "1K"), "keeps nothing"),
        (("--cache", "on", "--max-error", "0.01"), "--max-error 0"),
    ],
)
def test_a_cache_that_makes_no_sense_is_refused(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises((ConfigurationError, click.UsageError), match=words):
        taken(*arguments)


def test_status_shows_what_is_not_zero() -> None:
    figures = Figures(throughput_per_s=12.0, latency_s=0.1, energy_j=0.5, cost_per_1000=0.0)
    state = ModelState(
        state="serving",
        model="m",
        generation=1,
        predicted=figures,
        prediction_error=PredictionError(
            first_sight_ratio=0.123, now_ratio=0.045, stages=3, items=50
        ),
        options=ServeOptions(rate_per_s=5.0),
        cpu_reserved={"pi-1": 0.305},
    )
    text = describe_model(state)
    assert "predicted 12.0/s, 100.0 ms, 0.5 J per job" in text
    assert "per 1,000" not in text
    assert "stage times are off by 12% at first sight, by 4% now" in text
    assert "3 measured, 50 items or more each" in text
    assert "CPU kept for 5 jobs/s: 30% of pi-1" in text


def test_folders_are_expanded(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.npy"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "inner.jpg").mkdir()
    file = tmp_path / "notes.txt"
    assert [path.name for path in expand([tmp_path, file])] == [
        "a.jpg", "b.PNG", "c.npy", "notes.txt",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="no images"):
        expand([tmp_path / "inner.jpg"])


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("amp4ec")


def test_strange_folders_are_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("raise SystemExit('not ours')")
    result = run("--version", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_status_says_who_is_gone_and_since_when() -> None:
    nodes = (
        NodeView(
            state=death("a", state="offline"),
            standing=NodeStanding(state="offline", for_s=61.0, until_s=540.0),
        ),
        NodeView(
            state=birth("b"), standing=NodeStanding(state="silent", for_s=5.0, until_s=3600.0)
        ),
        NodeView(
            state=birth("c"),
            telemetry=telemetry("c"),
            standing=NodeStanding(state="left_out", for_s=0.0, until_s=20.0),
        ),
        NodeView(state=death("d")),
    )
    text = describe(ClusterStatus(orchestrator=None, nodes=nodes, models=()))
    rows = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line}
    assert rows["a"] == "a offline for 1 min, forgotten in 9 min"
    assert rows["b"] == "b silent 1 does not answer, for 5 s, forgotten in 1 h"
    assert rows["c"].startswith("c left out 1 50% ")
    assert rows["c"].endswith(" idle; came and went, for 20 s more")
    assert rows["d"] == "d lost"


def test_status_shows_each_nodes_link_where_it_is_known() -> None:
    told = telemetry("a", round_trip_s=0.0123, up_bytes_per_s=5.04e6, down_bytes_per_s=48e6)
    nodes = (
        NodeView(state=birth("a"), telemetry=told),
        NodeView(state=birth("b"), telemetry=telemetry("b", down_bytes_per_s=1e6)),
        NodeView(state=birth("c"), telemetry=telemetry("c")),
    )
    text = describe(ClusterStatus(orchestrator=None, nodes=nodes, models=()))
    rows = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line}
    assert "up/down trip" in rows["node"]
    assert "5.0/48 MB/s 12.3 ms" in rows["a"]
    assert "-/1.0 MB/s - " in rows["b"]
    assert rows["c"].endswith("MB - - idle")


def test_status_says_how_often_a_cache_helped() -> None:
    options = ServeOptions(cache_bytes=64_000_000, cache_for_s=600.0)
    model = ModelState(state="serving", model="m", generation=1, options=options)
    assert "answers are kept for 10 min in 64 MB" in describe_model(model)
    cache = CacheMetrics(hits=30, joined=2, misses=8, hit_ratio=0.8, entries=8, size_bytes=9000)
    told = ModelMetrics(
        queued=0,
        in_flight=0,
        answered_per_s=1.0,
        latency_p50_s=None,
        latency_p95_s=None,
        cache=cache,
    )
    assert "30 inputs answered so, 2 by an equal one under way, 8 run (80% spared)" in (
        describe_model(model, told)
    )
    assert "answers" not in describe_model(replace(model, options=ServeOptions()))


def test_status_shows_a_models_last_second() -> None:
    model = ModelState(state="serving", model="m", generation=1)
    told = ModelMetrics(
        queued=2, in_flight=8, answered_per_s=87.46, latency_p50_s=0.092, latency_p95_s=0.1311
    )
    assert "  now       87.5/s, p50 92.0 ms, p95 131.1 ms, 2 queued, 8 sent" in (
        describe_model(model, told).splitlines()
    )
    idle = replace(told, queued=0, in_flight=0, answered_per_s=0.0, latency_p50_s=None)
    assert "  now       0.0/s, 0 queued, 0 sent" in describe_model(model, idle).splitlines()


def test_keys_of_a_closed_broker_as_its_owner_meets_them(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    made = run("broker", "init", str(closed), "--host", "localhost")
    assert made.returncode == 0, made.stderr
    assert "authority.key" in made.stdout
    token = tmp_path / "token"
    arguments = ("join-token", "pi-1", "--directory", str(closed), "--output", str(token))
    issued = run(*arguments)
    assert (issued.returncode, issued.stderr) == (0, "")
    refused = run("orchestrator", "--broker", f"@{token}", "--state-dir", str(tmp_path / "state"))
    assert refused.returncode == 2
    assert "tokens/orchestrator" in refused.stderr
    (closed / "authority.key").unlink()
    elsewhere = run("join-token", "ann", "--role", "operator", "--directory", str(closed))
    assert elsewhere.returncode == 2
    assert "put it back" in elsewhere.stderr
    document = json.loads((closed / "closed.json").read_text())
    del document["authority"]
    (closed / "closed.json").write_text(json.dumps(document))
    old = run("join-token", "pi-2", "--directory", str(closed))
    assert old.returncode == 0
    assert "older than signatures" in old.stderr
