"""The table of the peers: medians over the rounds with their range, and ratios within each round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import click

from deploy.experiments.peers.run import EXPERIMENT
from deploy.experiments.peers.systems import SYSTEMS
from deploy.experiments.records import Record
from deploy.tables import Column, console, show, table
from deploy.text import significant, size


@dataclass(frozen=True, slots=True)
class Aim:
    """`ours` is to reach `factor` times the throughput of `peer` (issue "Peers in the same run")."""

    ours: str
    factor: float
    peer: str


AIMS = (
    Aim("amp4ec-torch", 1.1, "gloo"),
    Aim("amp4ec-torch", 1.3, "ray-actors"),
    Aim("amp4ec-torch", 2.8, "ray-serve"),
    Aim("amp4ec-onnxruntime", 2.0, "gloo"),
)
# "per CPU s" is what the stages do with a second of CPU: on a machine that other work keeps from giving them
# their quotas it is what can still be compared.
_WIDTH = 170
_COLUMNS = (
    Column("system"),
    Column("items/s", right=True),
    Column("per CPU s", right=True),
    Column("p50 ms", right=True),
    Column("p95 ms", right=True),
    Column("memory", right=True),
    Column("other CPU", right=True),
    Column("back after", right=True),
    Column("sent/ok/wrong/refused/lost", right=True),
)


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """The records of this experiment, one list for each set of parameters: only equals are compared."""
    found: list[list[Record]] = []
    for record in records:
        if record.experiment != EXPERIMENT:
            continue
        for group in found:
            if group[0].parameters == record.parameters:
                group.append(record)
                break
        else:
            found.append([record])
    return found


def ratios(group: Sequence[Record], ours: str, peer: str) -> list[float]:
    """Throughput of one system over another's, round by round, where both were measured."""
    by_round: dict[tuple[str, int], float] = {
        (record.case, record.round): record.figures["throughput_per_s"] or 0.0 for record in group
    }
    return [
        value / by_round[peer, round_]
        for (case, round_), value in sorted(by_round.items())
        if case == ours and by_round.get((peer, round_))
    ]


def print_table(records: Iterable[Record]) -> None:
    """To standard output."""
    out = console()
    out.width = max(out.width, _WIDTH)
    for group in groups(records):
        given = ", ".join(f"{name} {value}" for name, value in group[0].parameters.items())
        click.echo(f"{group[0].machine.cpu_model}, {group[0].machine.at[:10]}; {given}")
        rows = [
            _row(system.name, [record for record in group if record.case == system.name])
            for system in SYSTEMS
            if any(record.case == system.name for record in group)
        ]
        show(out, table(_COLUMNS, rows, out.width))
        for line in _aims(group):
            click.echo(line)
        click.echo()


def _row(name: str, records: Sequence[Record]) -> list[str]:
    back = _values(records, "recovery_s")
    never = len(records) - len(back)
    came = f"{_spread(back)} s" if back else ""
    fate = [
        f"{sum(_values(records, f'kill_{each}')):.0f}"
        for each in ("sent", "answered", "wrong", "refused", "lost")
    ]
    return [
        name,
        _spread(_values(records, "throughput_per_s")),
        _spread(_values(records, "items_per_stage_cpu_s")),
        _spread(_values(records, "latency_p50_ms")),
        _spread(_values(records, "latency_p95_ms")),
        size(median(_values(records, "memory_pss_bytes"))),
        f"{median(_values(records, 'cpu_others')):.2f}",
        came if not never else f"{came}{', ' if came else ''}never ({never} of {len(records)})",
        "/".join(fate),
    ]


def _aims(group: Sequence[Record]) -> list[str]:
    lines = []
    for aim in AIMS:
        found = ratios(group, aim.ours, aim.peer)
        if found:
            verdict = "reached" if median(found) >= aim.factor else "NOT reached"
            lines.append(
                f"{aim.ours} / {aim.peer}: {_spread(found)} (aim {aim.factor:g}: {verdict})"
            )
    return lines


def _values(records: Sequence[Record], figure: str) -> list[float]:
    return [value for record in records if (value := record.figures.get(figure)) is not None]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    middle = significant(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({significant(min(values))}..{significant(max(values))})"
