"""A process that is told to stop while a runtime works in a thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUSY = """
import sys, threading
import onnxruntime
from onnx import TensorProto, helper
from edge_agent.leaving import leave

names = ["x", *(f"y{i}" for i in range(300))]
nodes = [helper.make_node("Relu", [a], [b]) for a, b in zip(names, names[1:])]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in (names[0], names[-1])]
graph = helper.make_graph(nodes, "long", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
loading = threading.Event()

def load():
    while True:
        loading.set()
        onnxruntime.InferenceSession(model.SerializeToString())

threading.Thread(target=load, daemon=True).start()
loading.wait()
print("said", end="")
"""


def end_of(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("code", [0, 2])
def test_a_load_that_nobody_waits_for_does_not_spoil_the_end(code: int) -> None:
    ended = end_of(f"{BUSY}\nleave({code})\nsys.exit(99)")
    assert (ended.returncode, ended.stdout) == (code, "said"), ended.stderr


def test_without_such_a_thread_the_interpreter_ends_itself() -> None:
    """What is registered for its end is not left out."""
    ended = end_of(
        "import atexit\nfrom edge_agent.leaving import leave\natexit.register(print, 'bye')\nleave(0)"
    )
    assert (ended.returncode, ended.stdout) == (0, "bye\n"), ended.stderr
