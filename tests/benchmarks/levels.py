"""Optimisation levels and runtimes: CPU time of an image, resident memory, bytes of weights, agreement.

Each is a process of its own with an agent's code, one runtime and the whole model; all of a model take turns,
so that what else the machine does falls on all alike. Eager is the graph as traced with torch's own
operators, one by one. Weights are random (there are no others without a download) and the samples are random
patterns, so agreement says how far int8 rounds, and not what it does to a trained classifier.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from deploy.peer import Peer
from deploy.quantising import quantise_model
from deploy.samples import Samples
from orchestrator.models.importer import ImportedModel, import_torchvision
from orchestrator.models.reference import smooth_images
from orchestrator.models.slice import slice_stage
from shared.codec import encode_json
from shared.graph import Kernels, Value
from shared.manifest import Manifest
from tests.benchmarks.context import Context
from tests.benchmarks.levels_stage import Ask, Ran
from tests.benchmarks.report import Bar, Row

_MODELS = ("mobilenet_v2", "resnet50", "efficientnet_b0", "vit_b_16")
_ROUND_S = 0.4
"""About so long each process runs in its turn."""
_ONNX_BAR, _INT8_BAR = 2.4, 1.4
_RESIDENT_BAR_MB = 120.0
_METHOD = "CPU time of a run of the whole model, one thread: median of a round; levels in turns"
_RATIO = "ratio of medians within a round, one value a round"
_MEMORY = (
    "resident: an agent's code, the runtime and the whole model in one process, after the runs"
)
_BYTES = "bytes of the blobs that travel"
_AGREEMENT = (
    "held-out samples with the same class first at O2 as at O1; random weights and patterns"
)


@dataclass(slots=True)
class _Kind:
    """A level with a runtime, and what was measured of it."""

    runtime: str
    level: str
    manifest: Manifest
    blobs: Mapping[str, bytes]
    rounds: list[list[float]] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.level}"


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    for name in context.choose(_MODELS[:1], _MODELS):
        rows += await _model(context, name)
    return rows


async def _model(context: Context, name: str) -> list[Row]:
    context.say(f"levels: importing and quantising {name}")
    kinds = await asyncio.to_thread(_kinds, context, name)
    async with AsyncExitStack() as stack:
        peers = []
        for kind in kinds:
            folder = context.directory / "levels" / f"{name}-{kind.runtime}-{kind.level}"
            await asyncio.to_thread(_write, folder, kind)
            peer = await Peer.start("tests.benchmarks.levels_stage", kind.runtime, str(folder))
            peers.append(await stack.enter_async_context(peer))
        context.say(f"levels: running {name}")
        counts = []
        for peer in peers:  # warm, and how many make a round
            once = min((await peer.ask(Ask(4), Ran)).ms)
            counts.append(max(3, round(_ROUND_S * 1e3 / once)))
        for _ in range(context.choose(3, 20)):
            for kind, peer, count in zip(kinds, peers, counts, strict=True):
                ran = await peer.ask(Ask(count), Ran)
                kind.rounds.append(ran.ms)
                kind.resident_bytes.append(ran.resident_bytes)
    return _rows(name, kinds)


def _kinds(context: Context, name: str) -> list[_Kind]:
    fast, plain = (import_torchvision(name, "none"), _eager(name))
    unfolded = import_torchvision(name, "none", "O0")
    samples = _samples(fast.manifest.graph.inputs[0], context.choose(12, 36))
    eight = quantise_model(fast.manifest, fast.blobs, samples, context.say)
    return [
        _Kind("torch", "eager", plain.manifest, plain.blobs),
        _Kind("torch", "O1", fast.manifest, fast.blobs),
        _Kind("onnxruntime", "O0", unfolded.manifest, unfolded.blobs),
        _Kind("onnxruntime", "O1", fast.manifest, fast.blobs),
        _Kind("onnxruntime", "O2", eight.manifest, eight.blobs),
    ]


def _eager(name: str) -> ImportedModel:
    return import_torchvision(name, "none", kernels=Kernels.PLAIN)


def _samples(value: Value, count: int) -> Samples:
    generator = torch.Generator().manual_seed(5)
    found = []
    for index in range(count):
        noise = index / count
        image = (1 - noise) * smooth_images(value.spec.shape, generator)
        image += noise * torch.randn(value.spec.shape, generator=generator)
        found.append({value.name: image.numpy()})
    return Samples(tuple(found[::2]), tuple(found[1::2]))


def _write(folder: Path, kind: _Kind) -> None:
    folder.mkdir(parents=True)
    for digest, data in kind.blobs.items():
        (folder / digest).write_bytes(data)
    whole = slice_stage(kind.manifest, 0, len(kind.manifest.blocks))
    (folder / "graph.json").write_bytes(encode_json(whole))


def _rows(name: str, kinds: list[_Kind]) -> list[Row]:
    rows: list[Row] = []
    by_name = {kind.name: kind for kind in kinds}
    for kind in kinds:
        rounds = [_median(each) for each in kind.rounds]
        rows.append(Row.of("levels", f"{name}, {kind.name}", "ms", rounds, method=_METHOD))
    for figure, faster, slower, limit in (
        ("onnxruntime O1 against torch eager", "onnxruntime O1", "torch eager", _ONNX_BAR),
        ("onnxruntime O1 against torch O1", "onnxruntime O1", "torch O1", None),
        ("onnxruntime O2 against O1", "onnxruntime O2", "onnxruntime O1", _INT8_BAR),
    ):
        pairs = zip(by_name[slower].rounds, by_name[faster].rounds, strict=True)
        rows.append(
            Row.of(
                "levels",
                f"{name}, {figure}",
                "x",
                [_median(slow) / _median(fast) for slow, fast in pairs],
                method=_RATIO,
                bar=None if limit is None else Bar(limit, sense="at least"),
            )
        )
    for kind in kinds:
        bar = name == "mobilenet_v2" and kind.runtime == "onnxruntime"
        rows.append(
            Row.of(
                "levels", f"{name}, {kind.name}, resident", "MB",
                [kind.resident_bytes[-1] / 1e6], method=_MEMORY,
                bar=Bar(_RESIDENT_BAR_MB) if bar else None,
            )
        )  # fmt: skip
    for label in ("onnxruntime O1", "onnxruntime O2"):
        size = sum(map(len, by_name[label].blobs.values())) / 1e6
        rows.append(Row.of("levels", f"{name}, {label}, weights", "MB", [size], method=_BYTES))
    found = by_name["onnxruntime O2"].manifest.quantisation
    assert found is not None
    worst = f"outputs off by up to {found.max_relative_error:.1%}, {found.method} ranges"
    rows.append(
        Row.of(
            "levels", f"{name}, O2 agreement", "%", [100 * found.agreement_ratio],
            method=_AGREEMENT, against=worst,
        )
    )  # fmt: skip
    return rows


def _median(values: list[float]) -> float:
    return statistics.median(values)
