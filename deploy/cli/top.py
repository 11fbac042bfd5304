"""`amp4ec top`: the cluster as it does now, live in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import Iterator

import click

from deploy.cli.options import Common, common_options
from deploy.operator import Request, connect, new_transaction
from deploy.top.feed import MOST_EVENTS, Feed, listen
from shared import logs
from shared.codec import convert
from shared.errors import Amp4ecError, ConfigurationError
from shared.logs import get_log
from shared.messages.cordon import DrainRequest, UncordonRequest
from shared.messages.operation import EventsRequest, KeptEvents, ReplanRequest

log = get_log(__name__)

_DRAIN_S = 120.0
_GRACE_S = 5.0
_REPLAN_S = 60.0
_ANSWER_S = 10.0


@click.command("top")
@common_options
def top_command(*, common: Common) -> int:
    """Watch nodes, models, stages and events live; drain nodes and re-plan models by key.

    Works in any terminal from 80 x 24 on, over SSH, without a mouse; ? shows the keys. `amp4ec status` prints
    the same once.

    \b
    Example:
        amp4ec top --broker mqtt://192.168.1.5
    """  # noqa: D301
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError(
            "top is for a terminal; for a file or a pipe there is `amp4ec status` (--json for programs), and "
            "`amp4ec events --follow`",
            expected="a terminal",
            got="standard input or output that is none",
        )
    return asyncio.run(_top(common))


class _Operations:
    """Asks the orchestrator, each time on a connection of its own."""

    def __init__(self, common: Common) -> None:
        self._common = common

    async def drain(self, node: str) -> str:
        request = DrainRequest(
            transaction=new_transaction(), node=node, reason="by amp4ec top", timeout_s=_DRAIN_S
        )
        await self._ask(request, _DRAIN_S + _GRACE_S)
        return f"{node} holds nothing any more, and may be switched off"

    async def uncordon(self, node: str) -> str:
        await self._ask(UncordonRequest(transaction=new_transaction(), node=node), _ANSWER_S)
        return f"{node} may be used again"

    async def replan(self, model: str) -> str:
        await self._ask(ReplanRequest(transaction=new_transaction(), model=model), _REPLAN_S)
        return f"{model} was planned anew"

    async def _ask(self, request: Request, timeout_s: float) -> None:
        async with connect(self._common.broker, self._common.root) as operator:
            await operator.ask(request, timeout_s, lambda _: None)


async def _top(common: Common) -> int:
    from deploy.top.app import Top

    async with listen(common.broker, common.root) as feed:
        app = Top(feed, _Operations(common))
        earlier = asyncio.create_task(_remember(common, feed), name="top: what happened before")
        with _log_held(common):
            await app.run_async(mouse=False)
        earlier.cancel()
        await asyncio.gather(earlier, return_exceptions=True)
        return app.return_code or 0


async def _remember(common: Common, feed: Feed) -> None:
    """What the orchestrator remembers, where it answers."""
    request = EventsRequest(transaction=new_transaction(), most=MOST_EVENTS)
    try:
        async with connect(common.broker, common.root) as operator:
            response = await operator.ask(request, _ANSWER_S, lambda _: None)
        feed.remember(convert(response.data, KeptEvents).events)
    except Amp4ecError as error:
        log.info("what happened before is not known", error=error)


@contextlib.contextmanager
def _log_held(common: Common) -> Iterator[None]:
    """What is logged meanwhile comes afterwards: it would be written across the screen."""
    held = io.StringIO()
    logs.set_up("json" if logs.writes_json() else "text", common.log_level, held)
    try:
        yield
    finally:
        logs.set_up(common.log_format, common.log_level)
        sys.stderr.write(held.getvalue())
