"""The baselines: one process with the whole model and as much CPU as all devices of a cluster together.

Each is measured once in a round, whichever experiments read it: they all refer to the same records.
"""

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

HOME = "baselines"
"""The experiment that has the records of all of them."""
MEMORY_BYTES = 2048 * MIB
"""The paper's: what its stability score is relative to."""
START_S = 4.0
"""It starts and loads the model, and finishes a batch that was begun."""
SAMPLES = 24
"""Photographs that int8 is calibrated with."""
_PHOTOS = 64


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
TUNED = Whole(name="monolithic, eager, batch 32, tuned allocator", tuned=True)
SINGLE = Whole(name="monolithic, eager, batch 1", batch=1)
STRICT = {
    "torch": Whole(name="one process, torch", runtime="torch", batch=1),
    "onnxruntime": Whole(name="one process, onnxruntime", runtime="onnxruntime", batch=1),
}
"""The same runtime and the same optimisation as the cluster's."""
STRICT_INT8 = Whole(
    name="one process, onnxruntime, int8", runtime="onnxruntime", batch=1, level="O2"
)


def baseline(
    whole: Whole,
    settings: Settings,
    *,
    model: str = MODEL,
    shares: Sequence[float] = PROFILE,
    shown: str = "",
    start_s: float = START_S,
) -> Case:
    """A baseline beside a cluster of these devices.

    Args:
        whole: which.
        settings: how long a round of it takes.
        model: its name.
        shares: the devices' CPUs as in the paper; it gets their sum, scaled.
        shown: what the tables call it; None for `whole`'s own name.
        start_s: how long a round of it takes beyond its measurement.
    """
    cpus = round(sum(shares), 4)
    return Case(
        name=f"{model}, {cpus:g} CPU x scale: {whole.name}",
        seconds=start_s + settings.warm_up_s + settings.seconds,
        measure=partial(_measure, whole, model, cpus),
        parameters={"model": model, "batch": whole.batch, "cpus": cpus},
        home=HOME,
        shown=shown or whole.name,
    )


def compared(
    case: Case,
    settings: Settings,
    runtime: str = "onnxruntime",
    *,
    model: str = MODEL,
    start_s: float = START_S,
) -> Case:
    """The case with both baselines, which have the CPU of the paper's three devices."""
    mark = "" if model == MODEL else f"{model}: "
    paper, strict = (
        baseline(whole, settings, model=model, shown=f"{mark}{whole.name}", start_s=start_s)
        for whole in (PAPER, STRICT[runtime])
    )
    return replace(case, paper=paper, strict=strict)


async def _measure(whole: Whole, model: str, cpus: float, lab: Lab) -> Measured:
    (ran,) = await run_wholes([whole], model, [cpus], lab)
    return ran


async def run_wholes(
    wholes: Sequence[Whole], model: str, shares: Sequence[float], lab: Lab
) -> list[Measured]:
    """One process for each of `wholes`, at the same time; each in a cgroup with its share, scaled.

    A cluster that stands beside them has nothing to do, and no node of it uses 1 % of a core.
    """
    settings = lab.settings
    folder = await asyncio.to_thread(write_photos, lab.kept / "photos", _PHOTOS, settings.seed)
    setups = [
        (await _setup(whole, model, share * settings.scale, folder, lab), share * settings.scale)
        for whole, share in zip(wholes, shares, strict=True)
    ]
    return list(await asyncio.gather(*(_run(setup, cpus, lab) for setup, cpus in setups)))


async def _setup(whole: Whole, model: str, cpus: float, photographs: Path, lab: Lab) -> Setup:
    """What the process is told; a package is written once in a run."""
    place = lab.kept / f"{model}-{whole.level}"
    if whole.runtime != EAGER and not place.is_dir():
        samples = await asyncio.to_thread(calibration, lab) if whole.level == "O2" else None
        made = await asyncio.to_thread(
            export, lab.directory / place.name, model, whole.level, samples
        )
        made.rename(place)
    return Setup(
        model=model,
        runtime=whole.runtime,
        batch=whole.batch,
        threads=threads_for(cpus),
        tuned=whole.tuned,
        photos=str(photographs),
        package="" if whole.runtime == EAGER else str(place),
    )


async def _run(setup: Setup, cpus: float, lab: Lab) -> Measured:
    """One process in a cgroup, threads by its quota."""
    settings = lab.settings
    limit = await asyncio.to_thread(limit_cpu, f"whole-{cpus:g}", cpus)
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
            "cpu_percent": 100.0 * ran.cpu_s / ran.seconds / min(cpus, setup.threads),
            "memory_mb": watch.memory_mb("whole"),
            "stability": watch.stability("whole"),
            "scheduling_ms": 0.0,
            "network_kb_per_image": 0.0,
        },
        notes={"threads": str(setup.threads), "batch": str(setup.batch)},
    )


def write_photos(folder: Path, count: int, seed: int) -> Path:
    """A folder with so many photographs; nothing is done when it is there."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for index, data in enumerate(photos(count, seed)):
            (folder / f"{index:04}.jpg").write_bytes(data)
    return folder


def calibration(lab: Lab) -> Path:
    """A folder of photographs for int8, other ones than are asked."""
    return write_photos(lab.kept / "calibration", SAMPLES, lab.settings.seed + 1)
