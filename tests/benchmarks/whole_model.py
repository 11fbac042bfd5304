"""The whole model in one process: the code of an agent's stage, all blocks in one, no bus.

Its input comes as the dispatcher would send it, its result is encoded as the last stage would: what the
pipeline is compared with does the same work, without the ways between.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from deploy.library import ModelLibrary, Prepared
from deploy.peer import serve_peer
from edge_agent.runtimes import LoadedStage, open_runtime
from edge_agent.stage import Item, Stage, process
from edge_agent.stage_input import StageInputs
from orchestrator.inputs import parse_input
from orchestrator.models.slice import slice_stage
from shared.codec import decode_msgpack, encode_msgpack
from shared.messages.job import Activation
from shared.tensor import Array
from tests.benchmarks.clusters import MODEL, THREE_STAGES
from tests.benchmarks.payloads import jpeg_input, tensor_input

Kind = Literal["tensor", "jpeg"]
INPUTS = {
    "tensor": (tensor_input, "application/msgpack"),
    "jpeg": (jpeg_input, "image/jpeg"),
}
_RUNTIME = "torch"
_WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Ask:
    """Run for `seconds`: the whole model from its input, or with `blocks` the runtime alone on those."""

    kind: Kind
    seconds: float
    blocks: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """Items run in `seconds` wall and `cpu_s` CPU; each item's wall time."""

    items: int
    seconds: float
    cpu_s: float
    latency_ms: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Items per second."""
        return self.items / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per item."""
        return 1e3 * self.cpu_s / self.items


class Whole:
    """The model, loaded."""

    def __init__(self, prepared: Prepared) -> None:
        self._manifest = prepared.package.manifest
        paths = {blob.digest: prepared.store.path(blob.digest) for blob in prepared.package.weights}
        self._blobs = {digest: path for digest, path in paths.items() if path is not None}
        self._runtime = open_runtime(_RUNTIME)
        graph = self._manifest.graph
        self._input = StageInputs(graph.inputs, self._manifest.preprocess, first=True)
        self._names = tuple(value.name for value in graph.inputs)
        self._loaded: dict[tuple[int, int], LoadedStage] = {}
        self._stage = Stage(
            life=1,
            node="whole",
            model=MODEL,
            pipeline="whole",
            generation=1,
            index=0,
            num_stages=1,
            topic="",
            next_topic="",
            result_topic="result",
            runner=self._load(0, len(self._manifest.blocks)),
            inputs=self._input,
        )

    def answer(self, ask: Ask) -> Ran:
        """What an `Ask` asks for."""
        payload = self._activation(ask.kind)
        if ask.blocks is not None:
            return self._run_blocks(payload, ask)
        for _ in range(_WARM_UP):
            outcome = process(self._stage, Item(payload, time.monotonic()), _nobody)
            assert not outcome.problem, outcome.problem
        latency_ms: list[float] = []
        began, cpu_began = time.monotonic(), time.process_time()
        while (now := time.monotonic()) < began + ask.seconds:
            self._stage.sent(process(self._stage, Item(payload, now), _nobody))
            latency_ms.append((time.monotonic() - now) * 1e3)
        used_s = time.process_time() - cpu_began
        return Ran(len(latency_ms), time.monotonic() - began, used_s, latency_ms)

    def _run_blocks(self, payload: bytes, ask: Ask) -> Ran:
        """The runtime's part of one stage, on what the stages before it make of the input."""
        assert ask.blocks is not None
        start, stop = ask.blocks
        arrays: dict[str, Array] = self._input.read(decode_msgpack(payload, Activation))
        if start > 0:
            arrays = dict(self._load(0, start).run(arrays))
        stage = self._load(start, stop)
        for _ in range(_WARM_UP):
            stage.run(arrays)
        items = 0
        began, cpu_began = time.monotonic(), time.process_time()
        while time.monotonic() < began + ask.seconds:
            stage.run(arrays)
            items += 1
        return Ran(items, time.monotonic() - began, time.process_time() - cpu_began)

    def _load(self, start: int, stop: int) -> LoadedStage:
        loaded = self._loaded.get((start, stop))
        if loaded is None:
            graph = slice_stage(self._manifest, start, stop)
            loaded = self._loaded[start, stop] = self._runtime.load(graph, self._blobs, threads=1)
        return loaded

    def _activation(self, kind: Kind) -> bytes:
        make, content_type = INPUTS[kind]
        (item,) = parse_input(make(), content_type, self._names).items
        activation = Activation(
            job="0123456789abcdef0123456789abcdef",
            item=0,
            attempt=0,
            tensors=item.tensors or {},
            body=item.body,
            content_type=item.content_type,
        )
        return bytes(encode_msgpack(activation))


def _nobody(topic: str, payload: bytes | bytearray) -> None:
    """Whom a stage tells where a watched item is; there are none here."""
    raise AssertionError((topic, payload))


def main() -> None:
    """`python -m tests.benchmarks.whole_model`: answers `Ask` by `Ran`."""
    library = ModelLibrary()
    try:
        source = THREE_STAGES.source(MODEL)
        whole = Whole(library.prepare(source, lambda _: None, runtime=THREE_STAGES.runtime))
        serve_peer(Ask, whole.answer)
    finally:
        library.close()


if __name__ == "__main__":
    main()
