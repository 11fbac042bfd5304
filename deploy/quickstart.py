"""The quickstart's story, told by a real cluster: three agents, one model in three stages, a loss.

`deploy/quickstart.sh` installs what this needs and runs it. Answers are printed as JSON lines among the
words.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.cli.output import answer_document, print_json, print_line
from deploy.cli.status import describe_model
from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.photo import PHOTO
from deploy.serve import serve
from deploy.supervisor import follow_parent
from deploy.watch import watch
from shared.client import Result
from shared.errors import Amp4ecError, ConfigurationError, ModelError
from shared.messages.model import AlternativeRow, ModelState
from shared.messages.operation import Happening

MODEL = "mobilenet_v2"
CPUS = (0.5, 0.3, 0.2)
_ANSWER_S = 120.0
_REPLAN_S = 60.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    weights: str
    cpus: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the story; 0 when every part of it happened."""
    parser = argparse.ArgumentParser(
        prog="deploy/quickstart.sh", description="A cluster on this machine, a photograph, a loss."
    )
    parser.add_argument(
        "--weights",
        default="default",
        metavar="default|none|FILE",
        help="pretrained (falls back to random ones when they cannot be had), random, or a file",
    )
    options = parser.parse_args(arguments)
    follow_parent()
    try:
        return asyncio.run(_until_told(_story(_Wanted(options.weights, CPUS))))
    except Amp4ecError as error:
        print_line(f"error: {error}")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print_line("interrupted; everything is stopped")
        return 1


async def _until_told(story: Coroutine[Any, Any, int]) -> int:
    """The story, cut short by SIGTERM as by Ctrl-C: what it started is stopped either way."""
    work = asyncio.ensure_future(story)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    return await work


async def _story(wanted: _Wanted) -> int:
    with tempfile.TemporaryDirectory(prefix="amp4ec-quickstart-") as directory:
        cluster = await _start(Path(directory), wanted.cpus)
        try:
            await _tell(cluster, wanted)
        finally:
            # Whoever read our words may be gone; the children must end all the same.
            with contextlib.suppress(OSError):
                print_line("")
                print_line("stopping")
            await cluster.stop()
    print_line("done: every child has ended. To keep a cluster like this one:")
    print_line(
        f"  .venv/bin/amp4ec up --agents 3 --cpus 0.5,0.3,0.2 --serve {MODEL} --weights none"
    )
    return 0


async def _start(directory: Path, cpus: tuple[float, ...]) -> LocalCluster:
    print_line("1. A broker, an orchestrator and three unequal agents, all on this machine")
    cluster = LocalCluster(directory, agents=len(cpus), cpus=cpus)
    try:
        await cluster.start()
    except ConfigurationError as error:
        await cluster.stop()
        print_line(f"   {error}")
        print_line("   so the agents are equal here: no CPU limits")
        cluster = LocalCluster(directory, agents=len(cpus))
        await cluster.start()
    try:
        await cluster.wait_for_nodes()
    except BaseException:
        await cluster.stop()
        raise
    print_line(
        f"   broker {cluster.broker.url}, open to everybody on this machine and to nobody else"
    )
    for agent in cluster.agents.values():
        share = f"{agent.limit.cpus:g} CPU" if agent.limit else "no CPU limit"
        print_line(f"   {agent.name}: {share}, pid {agent.pid}")
    return cluster


async def _tell(cluster: LocalCluster, wanted: _Wanted) -> None:
    print_line("")
    print_line(f"2. Serve {MODEL} in three stages (10 to 60 s)")
    state = await _serve(cluster, wanted.weights)
    print_line(_indent(describe_model(state)))
    print_line(f"   three stages were asked for; {_free(state.free_choice)}")

    print_line("")
    print_line("3. A photograph: Chelsea the cat, by Stefan van der Walt (CC0)")
    async with (
        cluster.client() as client,
        watch(
            cluster.url, cluster.root, lambda event: print_line(f"   event: {_text(event)}")
        ) as events,
    ):
        result = await client.infer(MODEL, PHOTO, timeout_s=_ANSWER_S)
        _show(result)

        victim = state.pipelines[0].stages[-1].node
        print_line("")
        print_line(f"4. Kill {victim} (kill -9 {cluster.agents[victim].pid})")
        since = len(events.seen)
        print_line("   and send the same photograph in the same moment")
        _, result = await asyncio.gather(
            cluster.kill_agent(victim), client.infer(MODEL, PHOTO, timeout_s=_ANSWER_S)
        )
        await events.wait_for(
            lambda event: event.event == "pipeline_active", _REPLAN_S, since=since
        )
        _show(result)
        if victim in result.nodes:
            # It had gone through before the loss; one more shows the new plan.
            result = await client.infer(MODEL, PHOTO, timeout_s=_ANSWER_S)
            _show(result)
        print_line(f"   answered by {' and '.join(result.nodes)}, generation {result.generation}")


async def _serve(cluster: LocalCluster, weights: str) -> ModelState:
    flags = ServeFlags(weights=weights, min_stages=3, max_stages=3)

    def step(text: str) -> None:
        print_line(f"   {text}")

    try:
        return await serve(cluster.url, cluster.root, MODEL, flags, step)
    except ModelError as error:
        if weights != "default":
            raise
        print_line(f"   {error}")
        print_line("   so the weights are random here: the labels below mean nothing")
        random = replace(flags, weights="none")
        return await serve(cluster.url, cluster.root, MODEL, random, step)


def _free(choice: AlternativeRow | None) -> str:
    if choice is None:
        return "the planner would have chosen the same"
    rate = choice.figures.throughput_per_s
    predicted = "" if rate is None else f", {rate:.0f} images/s predicted"
    return f"left free, the planner would have chosen {choice.text}{predicted}"


def _show(result: Result) -> None:
    print_json(answer_document(result.answer))
    print_line(f"   {result}")


def _text(event: Happening) -> str:
    return event.text or event.event


def _indent(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
