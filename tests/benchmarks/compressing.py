"""What each way to send tensors makes of six models' activations, and what that is worth on a thin link.

The table: at the cuts that the planner chooses for three agents at 0.5, 0.3 and 0.2 CPU behind 10 Mbit/s,
bytes (of what they are as they are), CPU of packing and unpacking, and the change in the model's output.
Weights are random, inputs a photograph.

The rest is real: three such agents with ONNX Runtime, each in a network of its own whose rate the kernel
limits, and MobileNetV2 in three stages. `as planned before` was planned when links were fast; for the others
the planner knows them, and moves the cuts to suit. Photographs are small, or the way in would be what limits
all of them; plans go by their size once some have come.
"""

from __future__ import annotations

import asyncio
import io
from contextlib import closing
from dataclasses import replace

from PIL import Image

from deploy.flags import ServeFlags
from deploy.library import ModelLibrary
from deploy.link import network_missing
from deploy.photo import PHOTO
from orchestrator.core.dispatch_settings import default_window
from orchestrator.core.limits import Limits
from orchestrator.core.plan import PlanRequest, StagePlan
from orchestrator.core.planner import plan
from orchestrator.models.source import parse_source
from shared.errors import ConfigurationError
from shared.messages.model import ModelState
from shared.profile import ModelProfile, NodeProfile
from tests.benchmarks.clusters import MODEL, SHARES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Saturation
from tests.benchmarks.report import Bar, Row

_MODELS = ("mobilenet_v2", "resnet18", "resnet50", "efficientnet_b0", "vit_b_16", "densenet121")
_BYTES_PER_S = 10e6 / 8
_MAX_ERROR = 0.1
"""Generous, so that every way may be taken: what each does to the output is in the table."""
_METHOD = (
    "at the planner's cuts; bytes of what they are as they are, CPU of one photograph's tensors"
)
_LIVE = f"three stages at 10 Mbit/s, {default_window(3)} photographs of 12 KB under way"
_SERVED = ServeFlags(
    weights="none", min_stages=3, max_stages=3, runtime="onnxruntime", timeout_s=300.0
)


async def run(context: Context) -> list[Row]:
    """See the module.

    Raises:
        ConfigurationError: networks cannot be made here.
    """
    missing = network_missing()
    if missing:
        raise ConfigurationError("no thin links can be made here", got=missing)
    rows: list[Row] = []
    for name in context.choose(_MODELS[:1], _MODELS):
        context.say(f"compressing: profiling {name}")
        rows += await asyncio.to_thread(_table, name)
    return rows + await _live(context)


def _table(name: str) -> list[Row]:
    with closing(ModelLibrary()) as library:
        package = library.prepare(
            parse_source(name, weights="none"), lambda _: None, runtime="onnxruntime"
        ).package
    profile = package.profile("onnxruntime")
    stops = [stage.blocks[1] for stage in _planned(profile)[:-1]]
    rows = []
    for way in sorted({way.compression for stop in stops for way in profile.cuts[stop - 1].packed}):
        found = [profile.cuts[stop - 1].way(way) for stop in stops]
        sizes = [profile.cuts[stop - 1].bytes for stop in stops]
        rows.append(
            Row.of(
                "compressing", f"{name}: {way}", "x",
                [each.bytes / size for each, size in zip(found, sizes, strict=True)],
                method=_METHOD,
                against=f"{' and '.join(f'{size / 1e3:.0f} kB' for size in sizes)}; "
                f"packed in {1e3 * max(each.pack_s for each in found):.2f} ms, "
                f"unpacked in {1e3 * max(each.unpack_s for each in found):.2f} ms, "
                f"output off by {max(each.error for each in found):.1e}",
            )
        )  # fmt: skip
    return rows


def _planned(profile: ModelProfile) -> tuple[StagePlan, ...]:
    nodes = tuple(
        NodeProfile(
            name=f"agent-{index}", cpu=share, speed=1.0, memory_bytes=2**30,
            up_bytes_per_s=_BYTES_PER_S, down_bytes_per_s=_BYTES_PER_S, message_s=0.0005,
        )
        for index, share in enumerate(SHARES, start=1)
    )  # fmt: skip
    request = PlanRequest(profile, nodes, min_stages=3, max_stages=3, max_error=_MAX_ERROR)
    return plan(request).pipelines[0].stages


async def _live(context: Context) -> list[Row]:
    photo, seconds = _small_photo(), context.choose(8.0, 20.0)
    measured: dict[str, list[float]] = {}
    plans: dict[str, str] = {}
    async with calibrated(context, "compressing", isolated=True) as cluster:
        kinds = {
            "as planned before": replace(_SERVED, compression="none"),
            # Another wish, though nothing will break it, so that it is planned anew: links are known by now.
            "none": replace(_SERVED, compression="none", limits=Limits(max_latency_s=3600.0)),
            "lossless": _SERVED,
            "rounded": replace(_SERVED, max_error=_MAX_ERROR),
        }
        for name, flags in kinds.items():
            context.say(f"compressing: {name}")
            await serve(context, cluster, flags)
            if name == "as planned before":
                for node in cluster.agents:
                    cluster.network.rate(node, _BYTES_PER_S)
            plans[name] = _shown(await cluster.wait_for_model(MODEL))
            async with (
                cluster.client() as client,
                Saturation(client, MODEL, photo, default_window(3)) as load,
            ):
                await load.measure(context.choose(8.0, 25.0))  # links are measured, and cuts moved
                plans[name] = _shown(await cluster.wait_for_model(MODEL))
                measured[name] = [
                    (await load.measure(seconds)).per_s for _ in range(context.choose(2, 4))
                ]
    plain = measured["as planned before"]
    rows = []
    for name, values in measured.items():
        ratio = sum(values) / len(values) / (sum(plain) / len(plain))
        bar = Bar(2.0 * sum(plain) / len(plain), sense="at least") if name == "rounded" else None
        rows.append(
            Row.of(
                "compressing", f"10 Mbit/s: {name}", "images/s", values, method=_LIVE, bar=bar,
                against=f"{ratio:.2f} x as planned before; {plans[name]}",
            )
        )  # fmt: skip
    return rows


def _shown(state: ModelState) -> str:
    return " > ".join(
        f"{stage.node} {stage.blocks[0]}:{stage.blocks[1]}"
        + ("" if stage.stage == 2 else f" ({stage.output_bytes / 1e3:.0f} kB {stage.compression})")
        for pipeline in state.pipelines
        for stage in pipeline.stages
    )


def _small_photo() -> bytes:
    with Image.open(PHOTO) as image:
        small = io.BytesIO()
        image.resize((256, 256)).save(small, "JPEG", quality=80)
    return small.getvalue()
