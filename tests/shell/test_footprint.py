"""What an agent without torch takes: on disk for what it installs, and in memory with a model loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestrator.models.importer import import_torchvision
from orchestrator.models.slice import slice_stage
from shared.codec import encode_json

DISK_BYTES = 250e6
RESIDENT_BYTES = 120e6

LOADED = """
import sys
from pathlib import Path
import numpy as np
import psutil
import edge_agent.service, edge_agent.preprocess
from edge_agent.runtimes import open_runtime
from shared.codec import decode_json
from shared.graph import StageGraph

folder = Path(sys.argv[1])
graph = decode_json((folder / "graph.json").read_bytes(), StageGraph)
blobs = {path.name: path for path in folder.iterdir() if path.name != "graph.json"}
stage = open_runtime("onnxruntime").load(graph, blobs, threads=1)
for _ in range(3):
    stage.run({value.name: np.zeros(value.spec.shape, value.spec.dtype) for value in graph.inputs})
assert not {"torch", "onnx", "torchvision"} & sys.modules.keys()
process = psutil.Process()
print(process.memory_info().rss, process.num_threads())
"""


def needed(texts: Iterable[str], extras: Iterable[str], found: dict[str, Distribution]) -> None:
    """What is required, all the way down."""
    for requirement in map(Requirement, texts):
        marker = requirement.marker
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        wanted = marker is None or any(marker.evaluate({"extra": e}) for e in (*extras, ""))
        if wanted and key not in found:
            found[key] = distribution(requirement.name)
            needed(found[key].requires or (), requirement.extras, found)


def test_the_agent_s_packages_fit_on_a_small_card() -> None:
    """Ours, with each file that theirs list, compiled ones included."""
    ours = Path(__file__).parents[2]
    project = tomllib.loads((ours / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found: dict[str, Distribution] = {}
    needed([*project["dependencies"], *extras["agent"], *extras["onnx"]], (), found)
    assert {"onnxruntime", "numpy", "zstandard", "psutil"} <= found.keys()
    assert not {"torch", "onnx", "torchvision"} & found.keys()
    paths = {Path(str(one.locate_file(f))) for one in found.values() for f in one.files or ()}
    total = sum(path.stat().st_size for path in paths if path.is_file())
    for package in ("broker", "deploy", "edge_agent", "orchestrator", "shared"):
        total += sum(path.stat().st_size for path in (ours / package).rglob("*") if path.is_file())
    assert 100e6 < total < DISK_BYTES, f"{total / 1e6:.0f} MB"


@pytest.mark.timeout(120)
def test_mobilenet_fits_in_the_memory_of_a_small_device(tmp_path: Path) -> None:
    model = import_torchvision("mobilenet_v2", "none")
    for digest, data in model.blobs.items():
        (tmp_path / digest).write_bytes(data)
    whole = slice_stage(model.manifest, 0, len(model.manifest.blocks))
    (tmp_path / "graph.json").write_bytes(encode_json(whole))
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # NumPy's own pool: nothing here uses it
        capture_output=True,
        text=True,
        check=True,
    )
    resident, threads = map(int, done.stdout.split())
    assert 50e6 < resident < RESIDENT_BYTES, f"{resident / 1e6:.0f} MB"
    # One thread was asked for: no pool beside it, and nothing that could spin.
    assert threads == 1
