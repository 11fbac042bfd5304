"""The commands of the README and of the pages it leads to, run as they stand there.

Every block of commands says above it, in a comment, how it is run here, which other test runs it, or why none
does. Only ports, hosts and the home directory are others.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.supervisor import command
from shared.topics import TABLE

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "deploy/SERVING.md", "deploy/PLANNING.md", "tests/benchmarks/README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("sh", "bash", "python", "dockerfile")
_FENCED = re.compile(
    r"(?:<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_CLUSTER = re.compile(r"run: with the cluster(?:, for (?P<seconds>\d+) seconds)?")
_CLOSED = re.compile(r"run: as a closed cluster.*")
_TESTED = re.compile(r"tested: (?P<file>tests/[\w/]+\.py)::(?P<name>\w+)")
_NOT_RUN = re.compile(r"not run: .{10,}")


@dataclass(frozen=True)
class Block:
    page: str
    mark: str
    kind: str
    text: str

    @property
    def seconds(self) -> int | None:
        match = _CLUSTER.fullmatch(self.mark)
        return int(match["seconds"]) if match and match["seconds"] else None


BLOCKS = [
    Block(page, match["mark"] or "", match["kind"], match["text"])
    for page in PAGES
    for match in _FENCED.finditer((ROOT / page).read_text(encoding="utf-8"))
    if match["kind"] in COMMANDS
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.text.splitlines()[0][:40])
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    tested = _TESTED.fullmatch(block.mark)
    if tested is None:
        assert any(form.fullmatch(block.mark) for form in (_CLUSTER, _CLOSED, _NOT_RUN)), block
        return
    tree = ast.parse((ROOT / tested["file"]).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert tested["name"] in {node.name for node in tree.body if isinstance(node, functions)}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path, agents=2) as cluster:
        await cluster.serve("mobilenet_v2", ServeFlags(weights="none"))
        yield cluster


def on_this_port(text: str, port: int) -> str:
    text = text.replace("127.0.0.1:1883", f"127.0.0.1:{port}")
    return re.sub(r"^(mosquitto_\w+)", rf"\1 -p {port}", text, flags=re.MULTILINE)


async def run(block: Block, cluster: LocalCluster) -> str:
    port = cluster.broker.port
    text = on_this_port(block.text, port)
    limit = f"timeout {block.seconds} " if block.seconds else ""
    if block.kind == "python":
        line = [sys.executable, "-c", text]
    else:
        script = re.sub(r"^(mosquitto_sub)", rf"{limit}\1", text, flags=re.MULTILINE)
        line = ["bash", "-ec", script]
    process = await asyncio.create_subprocess_exec(
        *line,
        cwd=ROOT,
        env=os.environ
        | {
            "AMP4EC_BROKER": f"mqtt://127.0.0.1:{port}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 100)
    except TimeoutError:
        process.kill()
        raise
    told = output.decode()
    # `timeout` ends what would watch for ever with 124.
    assert process.returncode == (124 if block.seconds else 0), told
    return told


@pytest.mark.timeout(400)
async def test_every_command_does_what_the_readme_says(cluster: LocalCluster) -> None:
    blocks = [block for block in BLOCKS if _CLUSTER.fullmatch(block.mark)]
    assert len(blocks) >= 10
    told = [await run(block, cluster) for block in blocks]
    by_text = {block.text: output for block, output in zip(blocks, told, strict=True)}

    def output_of(words: str) -> str:
        return next(output for text, output in by_text.items() if words in text)

    assert '"status":"ok"' in output_of("mosquitto_rr")
    assert "stage 0" in output_of("amp4ec infer")
    assert "ms" in output_of("from amp4ec import Client")
    assert '"status":"ok"' in output_of("infer/door/")
    assert '"status":"ok"' in output_of("response-topic")
    assert '"state":"online"' in output_of("node/+/state")
    assert "mobilenet_v2: serving" in output_of("amp4ec status")
    assert "resnet18" in output_of("amp4ec stop")


@pytest.mark.timeout(180)
async def test_three_devices_with_a_broker_that_is_closed(tmp_path: Path) -> None:
    """The lines for the middle and for the device, in one shell: what is to be installed is."""
    lines = "\n".join(block.text for block in BLOCKS if _CLOSED.fullmatch(block.mark))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    run_here = " ".join(command())
    script = re.sub(
        r"(?m)^(sudo apt-get|git clone|python3 -m venv|pip|~/amp4ec-venv/bin/pip) .*\n", "", lines
    )
    script = script.replace('--host "$(hostname)"', f"--host localhost --port {port}")
    script = script.replace("broker --directory", "broker --bind 127.0.0.1 --directory")
    script = re.sub(r"(?m)^(~/amp4ec-venv/bin/amp4ec agent .*)$", r"\1 &", script)
    script = re.sub(r"(?m)^(~/amp4ec-venv/bin/)?amp4ec ", f"{run_here} ", script)
    script += f"""
        for each in $(seq 60); do
            {run_here} status --broker @$HOME/amp4ec/tokens/operator | grep "pi-1 *online" && exit 0
            sleep 1
        done
        exit 1
    """
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"trap 'kill $(jobs -p); wait' EXIT\n{script}"),
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 150)
    told = output.decode()
    assert process.returncode == 0, told
    assert "password " in told, "what Home Assistant asks for"


def test_the_topic_table_names_only_topics_that_there_are() -> None:
    section = README.split("## Topics")[1].split("\n## ")[0]
    patterns = {spec.pattern for spec in TABLE}
    named = {
        name
        for row in section.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    for name in named - {"result/...", "artifact/{peer}/..."}:
        assert name in patterns


def test_the_flow_for_node_red_uses_our_topics() -> None:
    flow = json.loads((ROOT / "deploy/example/node-red.json").read_text())
    texts = [node.get("topic", "") + node.get("func", "") for node in flow]
    assert any("amp4ec/v1/model/mobilenet_v2/infer/" in text for text in texts)
    ids = {node["id"] for node in flow}
    wired = {each for node in flow for wires in node.get("wires", []) for each in wires}
    assert wired <= ids


LINKS = sorted(
    {
        (page, path)
        for page in PAGES
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize(("page", "path"), LINKS)
def test_every_link_leads_somewhere(page: str, path: str) -> None:
    assert ((ROOT / page).parent / path).exists()
