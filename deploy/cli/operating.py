"""`amp4ec options` and `health`: how the orchestrator is set, and whether anything is wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from deploy.cli.options import Common, common_options, json_option
from deploy.cli.output import note, print_json, print_line
from deploy.health import health_of
from deploy.operator import Request, connect, new_transaction
from shared.codec import convert, decode_json, encode_json, to_builtins
from shared.errors import ConfigurationError, ProtocolError
from shared.messages.settings import InfoRequest, OrchestratorInfo, SetRequest

_ANSWER_S = 10.0
_BAD = 1


@click.command("options")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--reset",
    multiple=True,
    metavar="NAME",
    help="Back to what the orchestrator was started with; repeatable.",
)
@json_option
@common_options
def options_command(
    *, common: Common, changes: tuple[str, ...], reset: tuple[str, ...], as_json: bool
) -> None:
    """Show the settings of the orchestrator that runs, or change some: all that are named, or none.

    What was changed is kept when the orchestrator is started again, and by a standby that takes over.

    \b
    Example:
        amp4ec options
        amp4ec options cool_down_s=60 scheduler=nsa
        amp4ec options --reset cool_down_s
    """  # noqa: D301
    settings: dict[str, Any] = dict(_parsed(change) for change in changes)
    both = sorted(set(settings) & set(reset))
    if both:
        raise click.UsageError(f"{both[0]} is both set and reset")
    settings |= dict.fromkeys(reset)
    transaction = new_transaction()
    request: Request = (
        SetRequest(transaction=transaction, settings=settings)
        if settings
        else InfoRequest(transaction=transaction)
    )
    info = convert(asyncio.run(_ask(common, request)), OrchestratorInfo)
    if as_json:
        print_json(info)
    else:
        _show(info)


@click.command("health")
@json_option
@common_options
def health_command(*, common: Common, as_json: bool) -> int:
    """Say whether anything is wrong, and what: models without an answer, nodes lost, queues, the disk.

    Exits with 1 when jobs of some model get no answer or nobody leads (`failing`). A monitor's token will do.

    \b
    Example:
        amp4ec health
    """  # noqa: D301
    health = asyncio.run(health_of(common.broker, common.root, note))
    if as_json:
        print_json(health)
    elif health.findings:
        print_line(health.health)
        for found in health.findings:
            print_line(f"  {found.grade:<8}  {found.text}")
    else:
        print_line(health.text)
    return _BAD if health.health == "failing" else 0


async def _ask(common: Common, request: Request) -> dict[str, Any]:
    async with connect(common.broker, common.root) as operator:
        return (await operator.ask(request, _ANSWER_S, note)).data


def _parsed(change: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON where it is some, else as text; commas make a list."""
    name, equals, text = change.partition("=")
    if not (name and equals and text):
        raise ConfigurationError(
            "not a change of a setting", expected="NAME=VALUE, as in cool_down_s=60", got=change
        )
    if "," in text and not text.startswith("["):
        text = f"[{text}]"
    try:
        return name, decode_json(text, object)
    except ProtocolError:
        return name, text


def _show(info: OrchestratorInfo) -> None:
    from deploy.tables import Column, console, show, table

    values = to_builtins(info.settings)
    rows = []
    for name, schema in info.schema["properties"].items():
        default = _text(schema["default"])
        changed = name in info.changed
        what = schema.get("description", "")
        rows.append((name, _text(values[name]), f"was {default}" if changed else "", what))
    columns = (
        Column("setting"),
        Column("value", right=True),
        Column("changed", cut=True, drop=1),
        Column("what", wrap=True, drop=2, least=24),
    )
    out = console()
    show(out, table(columns, rows, out.width))


def _text(value: object) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()
