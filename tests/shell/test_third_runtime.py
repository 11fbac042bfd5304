"""A third runtime is one new file: found, offered, opened, and held against the original's answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import edge_agent.runtimes as package
from deploy.exactness import exact_model
from edge_agent.runtimes import available_runtimes, int8_runtimes, open_runtime
from orchestrator.models.importer import import_module
from shared.errors import StageError

RUNTIME = '''
"""Runs what has linear layers and ReLU, with NumPy."""

from pathlib import Path

import numpy as np

from edge_agent.runtimes.onnx_weights import StageWeights
from shared.errors import StageError
from shared.graph import validate

NAME = "numbers"
NEEDS = ("numpy",)
EXTRA = "amp4ec[numbers]"
INT8 = False


class Stage:
    def __init__(self, graph, weights):
        self.graph, self._weights = graph, weights

    def run(self, inputs):
        values = {**inputs, **self._weights}
        for node in self.graph.nodes:
            args = [values[arg] for arg in node.args if arg is not None]
            if node.op == "relu":
                values[node.name] = np.maximum(args[0], np.float32(0))
            else:
                values[node.name] = args[0] @ args[1].T + args[2]
        return {name: values[name] for name in self.graph.outputs}

    def unload(self):
        self._weights = {}


class Runtime:
    name, version = NAME, "1"

    def load(self, graph, blobs, *, threads=1):
        validate(graph)
        for node in graph.nodes:
            if node.op not in ("relu", "linear"):
                raise StageError(f"no {node.op} here")
        weights = StageWeights(graph, blobs)
        return Stage(graph, {name: weights.get(name) for name in graph.weights})


def open_runtime():
    return Runtime()
'''


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file lies where runtimes are looked for."""
    (tmp_path / "numbers_runtime.py").write_text(RUNTIME)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("edge_agent.runtimes.numbers_runtime", None)


@pytest.mark.usefixtures("third")
def test_a_file_is_enough() -> None:
    assert available_runtimes()["numbers"] == np.__version__
    assert "numbers" not in int8_runtimes()
    assert open_runtime("numbers").name == "numbers"
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model = import_module(net, torch.zeros(1, 8), "net")
    exact = exact_model(lambda _: model, available_runtimes(), pytest.fail)
    assert set(exact.runtimes) == {"numbers", "onnxruntime", "torch"}


@pytest.mark.usefixtures("third")
def test_what_it_cannot_run_is_left_to_the_others() -> None:
    steps: list[str] = []
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    model = import_module(net, torch.zeros(1, 8), "net")
    exact = exact_model(lambda _: model, available_runtimes(), steps.append)
    assert set(exact.runtimes) == {"onnxruntime", "torch"}
    assert "no tanh here" in steps[0]


def test_without_the_file_it_is_not_there() -> None:
    assert "numbers" not in available_runtimes()
    with pytest.raises(StageError, match="not installed"):
        open_runtime("numbers")
