"""`amp4ec events`: what happened in the cluster, and what happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

import click

from deploy.cli.options import NAME, Common, common_options, json_option
from deploy.cli.output import note, print_json, print_line
from deploy.operator import NotAnsweredError, connect, new_transaction
from deploy.watch import watch
from shared.codec import convert
from shared.errors import NotPermittedError
from shared.messages.operation import EventsRequest, Happening, KeptEvents

ANSWER_S = 10.0

Show = Callable[[Happening], None]


@click.command("events")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "--last",
    type=click.IntRange(0, 1000),
    default=20,
    show_default=True,
    help="So many of the latest that the orchestrator remembers first.",
)
@click.option("--node", type=NAME, help="Of this node only.")
@click.option("--model", type=NAME, help="Of this model only.")
@json_option
@common_options
def events_command(
    *,
    common: Common,
    follow: bool,
    last: int,
    node: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Show what happened and why: nodes that came and went, plans, deployments, refusals.

    The orchestrator remembers the latest 1,000 since it began to lead. With --json one document, with
    --follow --json a line of JSON for each.

    \b
    Example:
        amp4ec events --last 50
        amp4ec events --follow --node pi-3
    """  # noqa: D301
    request = EventsRequest(transaction=new_transaction(), node=node, model=model, most=last)
    if not follow:
        kept = asyncio.run(_kept(common, request)) if last else []
        if as_json:
            print_json({"events": kept})
        for event in () if as_json else kept:
            print_line(describe_event(event))
        return

    def show(event: Happening) -> None:
        if as_json:
            print_json(event)
        else:
            print_line(describe_event(event))

    with contextlib.suppress(KeyboardInterrupt):  # the end that --help speaks of
        asyncio.run(_follow(common, request, show))


def describe_event(event: Happening) -> str:
    """An event in a line, at the time of day here."""
    try:
        at = datetime.fromisoformat(event.at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:  # another's word
        at = event.at[:12]
    return f"{at}  {event.event:<18}  {event.text}"


async def _kept(common: Common, request: EventsRequest) -> list[Happening]:
    async with connect(common.broker, common.root) as operator:
        response = await operator.ask(request, ANSWER_S, note)
    return convert(response.data, KeptEvents).events


async def _follow(common: Common, request: EventsRequest, show: Show) -> None:
    """What is remembered, then what comes; watched first, so that nothing falls between the two."""
    coming: asyncio.Queue[Happening] = asyncio.Queue()

    def take(event: Happening) -> None:
        if request.node in (None, event.node) and request.model in (None, event.model):
            coming.put_nowait(event)

    async with watch(common.broker, common.root, take, collect=False):
        kept: list[Happening] = []
        if request.most:
            try:
                kept = await _kept(common, request)
            except (NotAnsweredError, NotPermittedError) as error:
                note(f"what happened before is not known: {error}")
        for event in kept:
            show(event)
        while True:
            event = await coming.get()
            if event not in kept:  # it may have come both ways
                show(event)
