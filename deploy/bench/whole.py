"""The process that a cluster is compared with: an agent's code with all blocks in one stage, and no bus.

It does what the stages do together: reads the job's input (decodes the photograph), runs the model with the
same runtime at the same level, encodes the result. Run as `python -m deploy.bench.whole FILE`, with a `Whole`
in the file, inside a cgroup of 1.0 CPU.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

import edge_agent.service  # noqa: F401 - what an agent has in memory anyway is in that of this process
from deploy.library import Prepared
from deploy.peer import serve_peer
from edge_agent.runtimes import open_runtime
from edge_agent.stage import Item, Stage, process
from edge_agent.stage_input import StageInputs
from orchestrator.inputs import parse_input
from orchestrator.models.slice import slice_stage
from shared.codec import decode_json, encode_json, encode_msgpack
from shared.errors import StageError
from shared.graph import StageGraph
from shared.messages.job import Activation
from shared.transform import Transform

_WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What to run: a model as one stage, its weights' files by digest, and the file of a job's payload."""

    runtime: str
    graph: StageGraph
    blobs: dict[str, str]
    transform: Transform | None
    payload: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Run for so long, and so many items at least."""

    seconds: float
    items: int


@dataclass(frozen=True, slots=True)
class Ran:
    """Each item's wall time, the CPU time of them all, and what the process then has in memory."""

    latency_ms: list[float]
    seconds: float
    cpu_s: float
    resident_bytes: int

    @property
    def per_s(self) -> float:
        """Items per second."""
        return len(self.latency_ms) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per item."""
        return 1e3 * self.cpu_s / len(self.latency_ms)


def write_whole(prepared: Prepared, runtime: str, payload: bytes, folder: Path) -> Path:
    """The file that the process is started with, below `folder`."""
    manifest = prepared.package.manifest
    paths = {blob.digest: prepared.store.path(blob.digest) for blob in prepared.package.weights}
    (item,) = parse_input(payload, None, tuple(v.name for v in manifest.graph.inputs)).items
    activation = Activation(
        job="0123456789abcdef0123456789abcdef",
        item=0,
        attempt=0,
        tensors=item.tensors or {},
        body=item.body,
        content_type=item.content_type,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "payload").write_bytes(encode_msgpack(activation))
    whole = Whole(
        runtime=runtime,
        graph=slice_stage(manifest, 0, len(manifest.blocks)),
        blobs={digest: str(path) for digest, path in paths.items() if path is not None},
        transform=manifest.preprocess,
        payload=str(folder / "payload"),
    )
    target = folder / "whole.json"
    target.write_bytes(encode_json(whole))
    return target


class _Process:
    """The model, loaded."""

    def __init__(self, whole: Whole) -> None:
        blobs = {digest: Path(path) for digest, path in whole.blobs.items()}
        self._payload = Path(whole.payload).read_bytes()
        self._stage = Stage(
            life=1,
            node="whole",
            model=whole.graph.name,
            pipeline="whole",
            generation=1,
            index=0,
            num_stages=1,
            topic="",
            next_topic="",
            result_topic="result",
            runner=open_runtime(whole.runtime).load(whole.graph, blobs, threads=1),
            inputs=StageInputs(whole.graph.inputs, whole.transform, first=True),
        )
        self._self = psutil.Process()
        for _ in range(_WARM_UP):
            self._once()

    def answer(self, ask: Ask) -> Ran:
        """What an `Ask` asks for."""
        latency_ms: list[float] = []
        began, cpu_began = time.monotonic(), time.process_time()
        now = began
        while now < began + ask.seconds or len(latency_ms) < ask.items:
            self._once()
            then, now = now, time.monotonic()
            latency_ms.append((now - then) * 1e3)
        used_s = time.process_time() - cpu_began
        return Ran(latency_ms, now - began, used_s, self._self.memory_info().rss)

    def _once(self) -> None:
        outcome = process(self._stage, Item(self._payload, time.monotonic()), _nobody)
        if outcome.problem:
            raise StageError(f"the whole model failed: {outcome.problem}")
        self._stage.sent(outcome)


def _nobody(topic: str, payload: bytes | bytearray) -> None:
    """Whom a stage tells where a watched item is; there are none here."""
    raise AssertionError((topic, payload))


def main() -> None:
    """Answers `Ask` by `Ran`."""
    whole = decode_json(Path(sys.argv[1]).read_bytes(), Whole)
    serve_peer(Ask, _Process(whole).answer)


if __name__ == "__main__":
    main()
