"""Other models than the paper's one: six in all, against both baselines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from deploy.experiments.ablations import STRATEGIES
from deploy.experiments.baseline import compared
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import MODEL, SERVE_S, flags, measure, site

NAMES = (
    "squeezenet1_1",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "vit_b_16",
)
_LARGE_S = 20.0
"""Import, time and load the larger ones, and finish a batch that was begun."""


def _cases(settings: Settings) -> Sequence[Case]:
    return [
        STRATEGIES.lent(settings, "optimal", f"{MODEL}: AMP4EC"),
        *(
            compared(
                Case(
                    name=f"{name}: AMP4EC",
                    seconds=SERVE_S
                    + _LARGE_S
                    + 1.1 * settings.warm_up_s
                    + settings.seconds
                    + settings.alone_s,
                    measure=partial(_cluster, name),
                    parameters={"model": name},
                ),
                settings,
                model=name,
                start_s=_LARGE_S,
            )
            for name in NAMES
        ),
    ]


async def _cluster(name: str, lab: Lab) -> Measured:
    async with site(lab) as here:
        await here.serve(name, flags(runtime="onnxruntime"))
        return await measure(here, name)


MODELS = Experiment(
    name="models",
    title="Six models",
    text="Single images, onnxruntime, the planner's free choice; beside one process with the same runtime "
    "and the paper's baseline (eager PyTorch, batches of 32), each with the CPU of all devices together.",
    cases=_cases,
    figures={
        "throughput_per_s": "Images per second, saturated.",
        "latency_ms": "Milliseconds per request, one under way; median. Of eager PyTorch: per batch of 32.",
        "memory_mb": "Largest resident memory of the devices' processes, added up.",
    },
    draw="throughput_per_s",
)
