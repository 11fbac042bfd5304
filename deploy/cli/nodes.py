"""`amp4ec cordon`, `drain` and `uncordon`: take a node out of plans for a while, and back."""

from __future__ import annotations

import asyncio

import click

from deploy.cli.options import DURATION, NAME, Common, common_options, json_option
from deploy.cli.output import Progress, note, print_json, print_line
from deploy.operator import Request, Step, connect, new_transaction
from shared.messages.cordon import CordonRequest, DrainRequest, UncordonRequest

_ANSWER_S = 10.0
_GRACE_S = 5.0
"""The orchestrator keeps the time and knows what is left; this long it may take to say so."""


@click.command("cordon")
@click.argument("node", type=NAME)
@click.option("--reason", default="", help="Why, for people.")
@json_option
@common_options
def cordon_command(*, common: Common, node: str, reason: str, as_json: bool) -> None:
    """Give NODE no model that does not run there already, until it is uncordoned.

    \b
    Example:
        amp4ec cordon pi-3 --reason "new power supply on Monday"
    """  # noqa: D301
    request = CordonRequest(transaction=new_transaction(), node=node, reason=reason)
    asyncio.run(_ask(common, request, _ANSWER_S, note))
    _said(node, "cordoned", "is given no further model", as_json=as_json)


@click.command("drain")
@click.argument("node", type=NAME)
@click.option("--reason", default="", help="Why, for people.")
@click.option(
    "--timeout", type=DURATION, default="120s", show_default=True, help="How long to wait."
)
@json_option
@common_options
def drain_command(*, common: Common, node: str, reason: str, timeout: float, as_json: bool) -> None:
    """Move what runs on NODE elsewhere, and give it nothing, until it is uncordoned.

    No answer is lost. A model that fits nowhere else stays where it is rather than not being served: then
    this says which and why, and exits with 1 after --timeout.

    \b
    Example, before a Pi is switched off:
        amp4ec drain pi-3
    """  # noqa: D301
    request = DrainRequest(
        transaction=new_transaction(), node=node, reason=reason, timeout_s=timeout
    )
    with Progress(f"draining {node}") as progress:
        asyncio.run(_ask(common, request, timeout + _GRACE_S, progress.step))
    _said(node, "drained", "holds nothing any more, and may be switched off", as_json=as_json)


@click.command("uncordon")
@click.argument("node", type=NAME)
@json_option
@common_options
def uncordon_command(*, common: Common, node: str, as_json: bool) -> None:
    """Plan with NODE again, after `amp4ec cordon` or `amp4ec drain`.

    \b
    Example:
        amp4ec uncordon pi-3
    """  # noqa: D301
    request = UncordonRequest(transaction=new_transaction(), node=node)
    asyncio.run(_ask(common, request, _ANSWER_S, note))
    _said(node, "uncordoned", "may be used again", as_json=as_json)


async def _ask(common: Common, request: Request, timeout_s: float, step: Step) -> None:
    async with connect(common.broker, common.root) as operator:
        await operator.ask(request, timeout_s, step)


def _said(node: str, state: str, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"node": node, "state": state})
    else:
        print_line(f"{node} {text}")
