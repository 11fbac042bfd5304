"""`amp4ec story`: everything that happened to one job, node or model, in order, across processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import click

from deploy.cli.options import CONNECT_S, Common, common_options, json_option
from deploy.cli.output import note, print_json, print_line
from deploy.clocks import clocks_ahead_s
from deploy.log_files import logs_in, logs_of, search
from deploy.operator import NotAnsweredError, connect, new_transaction
from deploy.story import Entry, Memory, story_of_job, story_of_model, story_of_node
from shared.client import Client, ClusterStatus
from shared.codec import convert
from shared.errors import Amp4ecError, BrokerUnreachableError, JobError, NotPermittedError
from shared.logs import one_line, utc
from shared.messages.life import JobLives, JobRequest
from shared.messages.operation import (
    Deployments,
    DeploymentsRequest,
    EventsRequest,
    KeptEvents,
)

_ANSWER_S = 10.0
_MOST = 1000
_WORTH_SAYING_S = 0.05
"""Of a clock's difference: below it nobody sees a thing out of order."""
_ANOTHER_CLOCK_S = 0.5
"""Of a node that seems to be on the orchestrator's machine: what is less is a message's way."""


class NothingKnownError(Amp4ecError):
    """Nobody remembers anything of it."""


@click.command("story")
@click.argument("kind", type=click.Choice(["job", "node", "model"]))
@click.argument("name")
@click.option(
    "--logs",
    "named",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    metavar="FILE|DIR",
    help="Logs in JSON lines to read as well, from other machines for instance; repeatable.  "
    "[default: those of the cluster's processes on this machine]",
)
@click.option("--last", type=click.IntRange(min=1), help="So many of the latest lines only.")
@json_option
@common_options
def story_command(
    *,
    common: Common,
    kind: str,
    name: str,
    named: tuple[Path, ...],
    last: int | None,
    as_json: bool,
) -> None:
    """Tell what happened to one job, node or model, in order, from all that remember something.

    KIND is job, node or model. The orchestrator remembers events, jobs and deployments since it began to
    lead; logs go back further. Times are by the orchestrator's clock; those of other machines' logs are put
    right by what their agents' clocks show now.

    \b
    Examples:
        amp4ec story job 7b0f3a
        amp4ec story node pi-3 --logs /var/log/amp4ec
    """  # noqa: D301
    told = asyncio.run(_tell(common, kind, name, named))
    entries = told.entries if last is None else told.entries[-last:]
    if as_json:
        print_json(
            {
                kind: name,
                "entries": [_document(entry) for entry in entries],
                "clocks_s": told.clocks_s,
                "logs": [str(path) for path in told.logs],
            }
        )
        return
    for text in told.notes:
        note(text)
    for line in describe(entries):
        print_line(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    entries: list[Entry]
    clocks_s: dict[str, float]
    logs: list[Path]
    notes: list[str]


async def _tell(common: Common, kind: str, name: str, named: tuple[Path, ...]) -> _Told:
    """Everything that is known.

    Raises:
        BrokerUnreachableError: nobody answers there, and no logs were named.
        NothingKnownError: it is never spoken of.
    """
    notes: list[str] = []
    memory, status = Memory(), None
    try:
        async with Client(common.broker, root=common.root, connect_timeout_s=CONNECT_S) as client:
            status = await client.status(wait_s=0.0)
        memory = await _remembered(common, kind, name, notes)
    except BrokerUnreachableError as error:
        if not named:
            raise
        notes.append(f"from the logs alone: {error}")
    logs = logs_in(named) or ([] if status is None else logs_of(status))
    words = {name, *(life.request for life in memory.lives)}
    memory = replace(memory, lines=list(search(logs, words)))
    clocks_s: dict[str, float] = {}
    if status is not None:
        clocks_s = await _clocks(common, status, memory, notes)
        memory = replace(memory, clocks_s=clocks_s)
    match kind:
        case "job":
            entries = story_of_job(name, memory)
        case "node":
            entries = story_of_node(name, memory)
        case _:
            entries = story_of_model(name, memory)
    if not entries:
        raise NothingKnownError(
            f"nothing is known of {kind} {name}: the orchestrator remembers since it began to lead, jobs "
            "that went straight through until some thousands more came; --logs names logs to look in",
            expected=f"a {kind} that is or was here",
            got=f"{len(logs)} logs without it",
        )
    return _Told(entries=entries, clocks_s=clocks_s, logs=logs, notes=notes)


async def _remembered(common: Common, kind: str, name: str, notes: list[str]) -> Memory:
    """What the orchestrator remembers; nothing, and a note, where none answers."""
    try:
        async with connect(common.broker, common.root) as operator:
            wish = EventsRequest(transaction=new_transaction(), most=_MOST)
            events = convert((await operator.ask(wish, _ANSWER_S, note)).data, KeptEvents).events
            listing = DeploymentsRequest(transaction=new_transaction(), most=_MOST)
            data = (await operator.ask(listing, _ANSWER_S, note)).data
            deployments = convert(data, Deployments).deployments
            lives = []
            if kind == "job":
                sought = JobRequest(transaction=new_transaction(), job=name)
                lives = convert((await operator.ask(sought, _ANSWER_S, note)).data, JobLives).jobs
    except (NotAnsweredError, NotPermittedError, JobError) as error:
        notes.append(f"from the logs alone: {error}")
        return Memory()
    return Memory(events=events, deployments=deployments[::-1], lives=lives)


async def _clocks(
    common: Common, status: ClusterStatus, memory: Memory, notes: list[str]
) -> dict[str, float]:
    """How far the clocks are ahead of the orchestrator's of those whose logs we have, from other machines."""
    leader = "" if status.orchestrator is None else status.orchestrator.host
    hosts = {node.state.node: node.state.host for node in status.nodes}
    agents = _agents(memory)
    elsewhere = {node for node in agents if hosts.get(node) != leader}
    # Devices as they come have one name: the clock tells which of them are other machines.
    if alike := {node.state.node for node in status.online} & (agents - elsewhere):
        rough_s = await clocks_ahead_s(common.broker, common.root, alike, roughly=True)
        elsewhere |= {node for node, s in rough_s.items() if abs(s) >= _ANOTHER_CLOCK_S}
    if not elsewhere:
        return {}
    clocks_s = await clocks_ahead_s(common.broker, common.root, elsewhere)
    for node in sorted(elsewhere):
        ahead_s = clocks_s.get(node)
        if ahead_s is None:
            notes.append(f"{node} is not there: its log's lines stand by its own clock")
        elif abs(ahead_s) >= _WORTH_SAYING_S:
            side = "ahead of" if ahead_s > 0 else "behind"
            notes.append(
                f"the clock of {node} is {abs(ahead_s):.2f} s {side} the orchestrator's: put right"
            )
    return clocks_s


def _agents(memory: Memory) -> set[str]:
    lines = (line.facts for line in memory.lines if line.facts.get("process") == "agent")
    return {str(facts["node"]) for facts in lines if "node" in facts}


def describe(entries: Iterable[Entry]) -> list[str]:
    """A story for people: a line each, at the time of day here, with the day where it changes."""
    entries = list(entries)
    width = max((len(entry.source) for entry in entries), default=0)
    lines: list[str] = []
    day = ""
    for entry in entries:
        at = datetime.fromtimestamp(entry.at).astimezone()
        if (today := at.strftime("%Y-%m-%d")) != day:
            day = today
            lines.append(day)
        mark = "!" if entry.level in ("warning", "error") else " "
        lines.append(
            f"{at.strftime('%H:%M:%S.%f')[:-3]} {mark} {entry.source:<{width}}  {entry.text}"
        )
        lines += [f"{'':<{width + 18}}{detail}" for detail in entry.details]
    return [one_line(line) for line in lines]  # a job's name is its client's choice


def _document(entry: Entry) -> dict[str, object]:
    return {
        "at": utc(entry.at),
        "source": entry.source,
        "via": entry.via,
        "level": entry.level,
        "text": entry.text,
        "details": list(entry.details),
    }
