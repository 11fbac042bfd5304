"""The paper's Table II: one device of each profile, by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from deploy.experiments.baseline import START_S as WHOLE_S
from deploy.experiments.baseline import STRICT, Whole, run_wholes
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import MODEL, SERVE_S, START_S, flags, measure, site

DEVICES = {"High": 1.0, "Medium": 0.6, "Low": 0.4}
_LATENCY, _LATENCY_P95, _THROUGHPUT = "latency_ms", "latency_p95_ms", "throughput_per_s"
_EAGER = Whole(name="eager PyTorch", batch=1)


def _cases(settings: Settings) -> Sequence[Case]:
    paper, strict = (
        Case(
            name=whole.name,
            seconds=2 * WHOLE_S + settings.warm_up_s + settings.seconds,
            measure=partial(_whole, whole),
            parameters={"model": MODEL},
        )
        for whole in (_EAGER, STRICT["onnxruntime"])
    )
    ours = Case(
        name="AMP4EC",
        seconds=START_S + SERVE_S + 1.1 * settings.warm_up_s + settings.seconds + settings.alone_s,
        measure=_ours,
        parameters={"model": MODEL},
        paper=paper,
        strict=strict,
    )
    return [ours]


async def _whole(whole: Whole, lab: Lab) -> Measured:
    shares = list(DEVICES.values())
    found = await run_wholes([whole] * len(shares), MODEL, shares, lab)
    return _together(found)


async def _ours(lab: Lab) -> Measured:
    await lab.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_device(name, share, lab), name=name)
            for name, share in DEVICES.items()
        ]
    return _together([task.result() for task in tasks])


async def _device(name: str, share: float, lab: Lab) -> Measured:
    """A cluster of one node."""
    own = replace(lab, directory=lab.directory / name, bench=None)
    own.directory.mkdir()
    async with site(own, (share,), fresh=True) as here:
        await here.serve(MODEL, flags(runtime="onnxruntime"))
        return await measure(here, MODEL)


def _together(devices: Sequence[Measured]) -> Measured:
    """The figures of all three in one record."""
    figures: dict[str, float | None] = {}
    for name, measured in zip(DEVICES, devices, strict=True):
        for figure in (_LATENCY, _LATENCY_P95, _THROUGHPUT):
            figures[f"{name.lower()}_{figure}"] = measured.figures[figure]
    for figure in (_THROUGHPUT, "memory_mb", "cpu_percent"):
        values = [measured.figures[figure] or 0.0 for measured in devices]
        figures[figure] = sum(values) / (len(values) if figure == "cpu_percent" else 1)
    return Measured(figures=figures)


PROFILES = Experiment(
    name="table-2-profiles",
    title="Table II: one device of each profile",
    text="The High, the Medium and the Low device (1.0, 0.6 and 0.4 CPU, scaled), each by itself with the "
    "whole model, all three at the same time, one image at a time. Memory limits are set by containers only.",
    cases=_cases,
    figures={
        _THROUGHPUT: "Images per second of the three devices together, saturated.",
        **{
            f"{name.lower()}_{figure}": what.format(name=name)
            for figure, what in (
                (_LATENCY, "Milliseconds from sending an image to its answer on {name}; median."),
                (_LATENCY_P95, "The same on {name}, 95th percentile."),
                (_THROUGHPUT, "Images per second on {name}, saturated."),
            )
            for name in DEVICES
        },
        "memory_mb": "Largest resident memory of the three devices' processes, added up.",
    },
    draw="low_latency_ms",
)
