"""One experiment in seconds, on real processes: what it records is what happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cgroup import limit_cpu
from deploy.experiments.baseline import HOME, STRICT
from deploy.experiments.case import Experiment, Settings
from deploy.experiments.change import CHANGE
from deploy.experiments.results import write_results
from deploy.experiments.run import record_file, run
from shared.errors import ConfigurationError

SETTINGS = Settings(minutes=0.1, repeat=1, scale=1.0)


def cpu_can_be_limited() -> bool:
    try:
        limit_cpu("probe", 0.5).remove()
    except ConfigurationError:
        return False
    return True


@pytest.mark.timeout(400)  # a model is imported, and three agents measure themselves first
@pytest.mark.skipif(not cpu_can_be_limited(), reason="this process may not limit CPU by cgroup")
async def test_a_device_lost_beside_one_process(tmp_path: Path) -> None:
    name = "device lost, chosen freely"
    experiment = Experiment(
        name="short", title="A short one", text="A loss, and a baseline.",
        cases=lambda settings: [
            replace(case, paper=None) for case in CHANGE.cases(settings) if case.name == name
        ],
        figures=CHANGE.figures, over_time=CHANGE.over_time,
    )  # fmt: skip
    said: list[str] = []
    failed = await run([experiment], SETTINGS, tmp_path, said.append)
    assert failed == {}
    (baseline,) = record_file(tmp_path, HOME).read()
    (lost,) = record_file(tmp_path, "short").read()
    assert baseline.case.endswith(STRICT["onnxruntime"].name)
    assert (baseline.figures["throughput_per_s"] or 0) > 0
    assert (baseline.figures["memory_mb"] or 0) > 50
    assert lost.figures["lost"] == 0, "every image has its answer, whatever was lost"
    assert sum(lost.series["images_per_s"]) > 0
    assert "agent-2" not in lost.notes["plan"]
    text = write_results(tmp_path, [experiment]).read_text()
    assert "A short one" in text
    assert "drawings/short.svg" in text
