"""A process that is an agent's code, one runtime, and one model at one level; see `levels`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import edge_agent.service  # noqa: F401  # what an agent holds anyway is in its memory
from deploy.peer import serve_peer
from edge_agent.runtimes import open_runtime
from shared.codec import decode_json
from shared.graph import StageGraph


@dataclass(frozen=True, slots=True)
class Ask:
    """Run the model so many times."""

    items: int


@dataclass(frozen=True, slots=True)
class Ran:
    """CPU milliseconds of each run, and what the process holds after them."""

    ms: list[float]
    resident_bytes: int


def main() -> None:
    """`python -m tests.benchmarks.levels_stage RUNTIME FOLDER`: `graph.json`, and weights by digest."""
    runtime, folder = sys.argv[1], Path(sys.argv[2])
    graph = decode_json((folder / "graph.json").read_bytes(), StageGraph)
    blobs = {path.name: path for path in folder.iterdir() if path.name != "graph.json"}
    stage = open_runtime(runtime).load(graph, blobs, threads=1)
    random = np.random.default_rng(0)
    inputs = {
        value.name: random.standard_normal(value.spec.shape).astype(value.spec.dtype)
        for value in graph.inputs
    }
    process = psutil.Process()

    def answer(ask: Ask) -> Ran:
        ms = []
        for _ in range(ask.items):
            began = time.thread_time()
            stage.run(inputs)
            ms.append((time.thread_time() - began) * 1e3)
        return Ran(ms, process.memory_info().rss)

    serve_peer(Ask, answer)


if __name__ == "__main__":
    main()
