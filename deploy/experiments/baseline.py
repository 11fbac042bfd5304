"""The baselines: one process with the whole model and as much CPU as all devices of a cluster together."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from deploy.cgroup import limit_cpu
from deploy.experiments.case import Case, Lab, Measured, Settings
from deploy.experiments.photos import photos
from deploy.experiments.site import BATCH, MIB, MODEL, PROFILE
from deploy.experiments.watch import Part, watching
from deploy.experiments.whole import EAGER, Ask, Ran, Setup, export
from deploy.peer import Peer
from edge_agent.runtimes import threads_for
from shared.codec import encode_json

MEMORY_BYTES = 2048 * MIB
"""The paper's: what its stability score is relative to."""
START_S = 10.0
SAMPLES = 24
"""Photographs that int8 is calibrated with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Which baseline; see `whole`."""

    name: str
    runtime: str = EAGER
    batch: int = BATCH
    level: str = "O1"
    tuned: bool = False


PAPER = Whole(name="monolithic, eager, batch 32")
"""What the paper compares with."""
STRICT = {
    "torch": Whole(name="one process, torch", runtime="torch", batch=1),
    "onnxruntime": Whole(name="one process, onnxruntime", runtime="onnxruntime", batch=1),
}
"""The same runtime and the same optimisation as the cluster's."""
ALL = (
    PAPER,
    Whole(name="monolithic, eager, batch 32, tuned allocator", tuned=True),
    Whole(name="monolithic, eager, batch 1", batch=1),
    *STRICT.values(),
)


def case(whole: Whole, model: str = MODEL, shares: Sequence[float] = PROFILE) -> Case:
    """A baseline beside a cluster of these devices; `timed` says how long it takes."""
    return Case(
        name=whole.name,
        seconds=0.0,
        measure=partial(measure, whole, model, tuple(shares)),
        parameters={"model": model, "batch": whole.batch},
    )


def timed(made: Case, settings: Settings, *, start_s: float = START_S) -> Case:
    """A case with how long a round of it takes."""
    return replace(made, seconds=start_s + settings.warm_up_s + settings.seconds)


async def measure(whole: Whole, model: str, shares: Sequence[float], lab: Lab) -> Measured:
    """One process in a cgroup with the CPUs of all `shares`, threads by its quota."""
    await lab.clear()  # alone on the machine
    settings = lab.settings
    cpus = sum(shares) * settings.scale
    folder = await asyncio.to_thread(write_photos, lab.directory / "photos", 64, settings.seed)
    package = ""
    if whole.runtime != EAGER:
        samples = await asyncio.to_thread(calibration, lab) if whole.level == "O2" else None
        place = lab.directory / "package"
        package = str(await asyncio.to_thread(export, place, model, whole.level, samples))
    setup = Setup(
        model=model,
        runtime=whole.runtime,
        batch=whole.batch,
        threads=threads_for(cpus),
        tuned=whole.tuned,
        photos=str(folder),
        package=package,
    )
    limit = await asyncio.to_thread(limit_cpu, "whole", cpus)
    module = "deploy.experiments.whole"
    async with await Peer.start(module, encode_json(setup).decode(), limit=limit) as peer:
        await peer.ask(Ask(settings.warm_up_s), Ran)
        async with watching({"whole": Part(peer.pid, cpus, MEMORY_BYTES)}) as watch:
            ran = await peer.ask(Ask(settings.seconds), Ran)
    return Measured(
        figures={
            "throughput_per_s": ran.images / ran.seconds,
            "latency_ms": statistics.median(ran.latency_ms),
            "latency_p95_ms": float(np.percentile(ran.latency_ms, 95)),
            "communication_ms": 0.0,
            "cpu_percent": 100.0 * ran.cpu_s / ran.seconds / cpus,
            "memory_mb": watch.memory_mb("whole"),
            "stability": watch.stability("whole"),
            "scheduling_ms": 0.0,
            "network_kb_per_image": 0.0,
        },
        notes={"threads": str(setup.threads), "runtime": whole.runtime, "level": whole.level},
    )


def write_photos(folder: Path, count: int, seed: int) -> Path:
    """A folder with so many photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(photos(count, seed)):
        (folder / f"{index:04}.jpg").write_bytes(data)
    return folder


def calibration(lab: Lab) -> Path:
    """A folder of photographs for int8, other ones than are asked."""
    return write_photos(lab.directory / "calibration", SAMPLES, lab.settings.seed + 1)
