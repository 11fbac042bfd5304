"""The two cases that the paper is motivated by: a device added under load, and a device lost under load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from deploy.experiments.baseline import compared
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.load import Stretch
from deploy.experiments.site import MODEL, PROFILE, SERVE_S, START_S, Site, flags, notes, site
from shared.client import ClusterStatus
from shared.messages.model import ModelState

_PLAN_S = 60.0
_AT = 1.0 / 3.0
"""When it happens, as a part of the time."""


def _cases(settings: Settings) -> Sequence[Case]:
    seconds = START_S + SERVE_S + settings.warm_up_s + settings.seconds
    return [
        compared(
            Case(
                name=name,
                seconds=seconds,
                measure=partial(_change, stages, shares, happens),
                parameters={"model": MODEL, "stages": stages},
            ),
            settings,
        )
        for name, stages, shares, happens in (
            ("device added, chosen freely", None, PROFILE[:2], _added),
            ("device lost, chosen freely", None, PROFILE, _lost),
            ("device lost, three stages", 3, PROFILE, _lost),
        )
    ]


async def _added(here: Site) -> None:
    share = PROFILE[2]
    await here.cluster.add_agent("agent-3", cpu=here.lab.settings.cpus([share])[0])


async def _lost(here: Site) -> None:
    """SIGKILL to the middle device."""
    await here.cluster.kill_agent("agent-2")


async def _change(
    stages: int | None,
    shares: Sequence[float],
    happens: Callable[[Site], Awaitable[None]],
    lab: Lab,
) -> Measured:
    seconds = lab.settings.seconds
    async with site(lab, shares, fresh=True) as here:
        before = await here.serve(
            MODEL, flags(runtime="onnxruntime", min_stages=stages, max_stages=stages)
        )
        async with here.load(MODEL, 2 * here.window(before)) as load:
            await load.stretch(lab.settings.warm_up_s)
            event = asyncio.create_task(_later(here, seconds * _AT, happens), name="event")
            took = await load.stretch(seconds)
            await event
        state = await _settled(here)
    return Measured(
        figures=figures(took, seconds * _AT, len(load.failed)),
        notes={**notes(state), "plan before": notes(before)["plan"]},
        series={"images_per_s": took.per_second(), "event_s": [seconds * _AT]},
    )


async def _settled(here: Site) -> ModelState:
    """The plan in force when it has no node that is gone."""
    there = {name for name, agent in here.cluster.agents.items() if agent.alive}

    def holds(status: ClusterStatus) -> bool:
        state = status.model(MODEL)
        return (
            state is not None
            and state.state == "serving"
            and {row.node for each in state.pipelines for row in each.stages} <= there
        )

    status = await here.cluster.wait_for(f"a plan of {', '.join(sorted(there))}", holds, _PLAN_S)
    state = status.model(MODEL)
    assert state is not None
    return state


async def _later(here: Site, seconds: float, happens: Callable[[Site], Awaitable[None]]) -> None:
    await asyncio.sleep(seconds)
    await happens(here)


def figures(took: Stretch, event_s: float, failed: int) -> dict[str, float | None]:
    """Throughput before and (in the last third) after, and the longest silence from the event on."""
    ends = sorted(done.at - took.began for done in took.done)
    settled = took.seconds - (took.seconds - event_s) / 2.0
    after = [at for at in ends if at >= event_s]
    gaps = [b - a for a, b in zip([event_s, *after], [*after, took.seconds], strict=False)]
    return {
        "throughput_per_s": took.per_s,
        "before_per_s": sum(at < event_s for at in ends) / event_s,
        "after_per_s": sum(at >= settled for at in ends) / (took.seconds - settled),
        "silence_s": max(gaps),
        "lost": float(failed),
    }


CHANGE = Experiment(
    name="change",
    title="A device added, a device lost, under load",
    text="Single images, as many under way as saturate. At a third of the time the Low device joins a "
    "cluster of the other two, or the Medium one of three is killed (SIGKILL). One process has the CPU of "
    "all three all the time, and nothing happens to it.",
    cases=_cases,
    figures={
        "throughput_per_s": "Images per second over the whole time.",
        "before_per_s": "Images per second before.",
        "after_per_s": "Images per second in the last third.",
        "silence_s": "The longest time without an answer from the event on.",
        "lost": "Images without an answer, or with an error.",
    },
    over_time="images_per_s",
)
