"""The README's commands, run as they stand there; only the broker's port is another."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from shared.topics import TABLE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"<!-- run: with the cluster(?:, for (?P<seconds>\d+) seconds)? -->\n```(?P<kind>\w+)\n(?P<text>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    seconds: int | None


BLOCKS = [
    Block(match["kind"], match["text"], int(match["seconds"]) if match["seconds"] else None)
    for match in BLOCK.finditer(README)
]


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
    assert len(BLOCKS) >= 6
    told = [await run(block, cluster) for block in BLOCKS]
    by_text = {block.text: output for block, output in zip(BLOCKS, told, strict=True)}

    def output_of(words: str) -> str:
        return next(output for text, output in by_text.items() if words in text)

    assert '"status":"ok"' in output_of("mosquitto_rr")
    assert "stage 0" in output_of("amp4ec infer")
    assert "ms" in output_of("from amp4ec import Client")
    assert '"state":"online"' in output_of("mosquitto_sub")
    assert "mobilenet_v2: serving" in output_of("amp4ec status")
    assert "resnet18" in output_of("amp4ec stop")


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


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
