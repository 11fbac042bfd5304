"""One process that has the whole model: what the cluster is compared with.

It reads the same photographs with the same code and answers nobody, so it does less than the cluster, never
more. `eager` is PyTorch as it comes, given a whole batch at once, as in the paper; `torch` and `onnxruntime`
are an agent's own runtimes with all blocks in one stage, image by image, as the agents run them.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy.peer import serve_peer
from edge_agent.preprocess import preprocess
from edge_agent.runtimes import open_runtime
from shared.codec import decode_json, encode_json
from shared.graph import StageGraph
from shared.tensor import Array
from shared.transform import Transform

EAGER = "eager"
TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""Of glibc's allocator: buffers are kept from one operator to the next (FACTS.md, "PyTorch")."""
GRAPH, TRANSFORM, BLOBS = "graph.json", "transform.json", "blobs"
Runner = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is run: `runtime` is `eager` or a runtime's name, `batch` images at a time from `photos`."""

    model: str
    runtime: str
    batch: int
    threads: int
    tuned: bool
    photos: str
    """A folder of JPEG files."""
    package: str = ""
    """What `export` wrote; nothing for `eager`."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Run for so long, and whole batches only."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ran:
    """Images run in `seconds` wall and `cpu_s` CPU; the wall time of each batch."""

    images: int
    seconds: float
    cpu_s: float
    latency_ms: list[float] = field(default_factory=list)


def main() -> None:
    """`python -m deploy.experiments.whole SETUP`: answers `Ask` by `Ran`."""
    setup = decode_json(sys.argv[1].encode(), Setup)
    if setup.tuned and TUNED.items() - os.environ.items():
        # The allocator reads its settings when a process begins.
        line = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, line, {**os.environ, **TUNED})  # noqa: S606 - this very program
    run, transform = _eager(setup) if setup.runtime == EAGER else _stage(setup)
    files = [path.read_bytes() for path in sorted(Path(setup.photos).glob("*.jpg"))]

    def answer(ask: Ask) -> Ran:
        latency_ms: list[float] = []
        began, cpu_began = time.monotonic(), time.process_time()
        while (now := time.monotonic()) < began + ask.seconds or not latency_ms:
            first = len(latency_ms) * setup.batch
            batch = [files[(first + index) % len(files)] for index in range(setup.batch)]
            run(np.concatenate([preprocess(data, transform) for data in batch]))
            latency_ms.append((time.monotonic() - now) * 1e3)
        return Ran(
            len(latency_ms) * setup.batch,
            time.monotonic() - began,
            time.process_time() - cpu_began,
            latency_ms,
        )

    serve_peer(Ask, answer)


def _eager(setup: Setup) -> tuple[Runner, Transform]:
    from orchestrator.models.eager import EagerModel

    model = EagerModel(setup.model, "none", threads=setup.threads)
    return model.run, model.transform


def _stage(setup: Setup) -> tuple[Runner, Transform]:
    folder = Path(setup.package)
    graph = decode_json((folder / GRAPH).read_bytes(), StageGraph)
    transform = decode_json((folder / TRANSFORM).read_bytes(), Transform)
    blobs = {path.name: path for path in (folder / BLOBS).iterdir()}
    stage = open_runtime(setup.runtime).load(graph, blobs, threads=setup.threads)
    name = graph.inputs[0].name

    def run(images: Array) -> Array:
        outputs = [next(iter(stage.run({name: image[None]}).values())) for image in images]
        return np.concatenate(outputs)

    return run, transform


def export(folder: Path, model: str, level: str, samples: Path | None) -> Path:
    """Write what a runtime needs to `folder`, so that the measured process need not import the model."""
    # Of the orchestrator's extra: who measures has it, the measured process does not need it.
    from deploy.library import ModelLibrary
    from orchestrator.models.slice import slice_stage
    from orchestrator.models.source import parse_source

    (folder / BLOBS).mkdir(parents=True)
    library = ModelLibrary()
    try:
        source = parse_source(model, weights="none", inputs=(), name=None)
        prepared = library.prepare(
            source,
            lambda _: None,
            level=level,
            samples=() if samples is None else (samples,),
            min_agreement=0.0,
        )
        manifest = prepared.package.manifest
        (folder / GRAPH).write_bytes(encode_json(slice_stage(manifest, 0, len(manifest.blocks))))
        (folder / TRANSFORM).write_bytes(encode_json(manifest.preprocess))
        for blob in prepared.package.weights:
            path = prepared.store.path(blob.digest)
            assert path is not None
            shutil.copyfile(path, folder / BLOBS / blob.digest)
    finally:
        library.close()
    return folder


if __name__ == "__main__":
    main()
