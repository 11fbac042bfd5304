"""`amp4ec bench`, as somebody would type it: it measures, keeps what it measured, and goes on with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.bench.raw import RAW, Line
from deploy.cgroup import limit_cpu
from deploy.supervisor import child_environment, command
from shared.codec import decode_json
from shared.errors import ConfigurationError


def may_limit() -> bool:
    try:
        limit_cpu("test-bench", 1.0).remove()
    except ConfigurationError:
        return False
    return True


async def bench(folder: Path, *arguments: str) -> tuple[list[Line], str]:
    line = command("bench", "--json", "--output", str(folder), *arguments)
    process = await asyncio.create_subprocess_exec(
        *line,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return decode_json(out, list[Line]), err.decode()


@pytest.mark.skipif(not may_limit(), reason="CPU may not be limited here")
@pytest.mark.timeout(400)
async def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    short = ("--seconds=0.3", "--rounds=1", "--kinds=onnxruntime:O1", "--models=mobilenet_v2")
    lines, _ = await bench(tmp_path, *short, "--nodes=2")
    assert [(line.cell.nodes, line.cell.plan, line.failed) for line in lines] == [
        (2, "stages", ""),
        (2, "free", ""),
    ]
    stages, free = (line.measured for line in lines)
    assert stages is not None
    assert free is not None
    for measured in (stages, free):
        (turn,) = measured.rounds
        assert turn.per_s > 0
        assert turn.whole_per_s > 0
        # A photograph of 47 KB goes to the orchestrator and from there to the first stage.
        assert measured.job_bytes > 90_000
    assert len(stages.resident_bytes) == 2
    # Two stages are the model, and were fetched when they were served: a re-plan ships what is missing.
    assert stages.delivered.fetched_bytes > 0.8 * stages.weight_bytes
    missing_bytes = free.weight_bytes - stages.weight_bytes
    assert free.delivered.fetched_bytes < missing_bytes + 1_000_000
    raw = (tmp_path / RAW).read_bytes()
    assert (tmp_path / "README.md").exists()

    again, said = await bench(tmp_path, *short, "--nodes=2")
    assert "0 of 2 cells to measure" in said
    assert again == lines
    assert (tmp_path / RAW).read_bytes() == raw
