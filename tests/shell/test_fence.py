"""The import fence stands, and a hole in it is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGES = ("broker", "deploy", "edge_agent", "orchestrator", "shared")
HOLES = {
    "apart": ("edge_agent/probe.py", "import orchestrator.service"),
    "layers": ("shared/ids.py", "import deploy.flags"),
    "pure-core": ("orchestrator/core/plan.py", "import time"),
    "bus": ("broker/config.py", "import aiomqtt"),
    "codec": ("deploy/flags.py", "import msgspec"),
    "http": ("deploy/text.py", "import aiohttp"),
    "camera": ("deploy/cli/infer.py", "import av"),
    "terminal": ("deploy/cli/top.py", "from textual.app import App"),
    "torch": ("deploy/local.py", "import torch"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code that may be damaged."""
    copy = tmp_path_factory.mktemp("fence")
    for package in PACKAGES:
        shutil.copytree(TOP / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "amp4ec.py"):
        shutil.copy(TOP / file, copy)
    return copy


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_fence_stands(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout + result.stderr


def test_planted_violations_are_seen(tree: Path) -> None:
    """One hole in each contract; last, since it damages the copy."""
    names = [line.split('"')[1] for line in contracts() if line.startswith("name")]
    ids = [line.split('"')[1] for line in contracts() if line.startswith("id")]
    assert sorted(ids) == sorted(HOLES)
    for file, hole in HOLES.values():
        path = tree / file
        path.write_text(f"{path.read_text()}\n{hole}\n")
    result = lint(tree)
    assert result.returncode == 1
    for name in names:
        assert f"{name} BROKEN" in result.stdout, result.stdout


def contracts() -> list[str]:
    text = (TOP / "pyproject.toml").read_text()
    return text[text.index("[[tool.importlinter.contracts]]") :].splitlines()
