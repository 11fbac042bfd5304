"""The pictures of both commands' reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from tests.fuzz.decoders import FuzzReport
from tests.fuzz.live import LiveReport


def _figure(rows: int, height: float) -> tuple[Any, Any]:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(1, rows, figsize=(12, height), layout="constrained")


def draw_decoders(report: FuzzReport, path: Path) -> None:
    """Inputs per second, and the edges that coverage began and ended with, per target."""
    figure, (rates, edges) = _figure(2, 1 + 0.28 * len(report.rows))
    names = [row.outcome.target for row in report.rows][::-1]
    speed = [row.outcome.inputs / max(row.outcome.seconds, 1e-9) for row in report.rows][::-1]
    rates.barh(names, speed, color="tab:blue")
    rates.set_xscale("log")
    rates.set_xlabel(f"inputs per second ({report.inputs:,} in {report.seconds:.0f} s)")
    edges.barh(
        names, [row.last_edges for row in report.rows][::-1], color="tab:green", label="found"
    )
    edges.barh(
        names, [row.first_edges for row in report.rows][::-1], color="tab:gray", label="seeds"
    )
    edges.set_yticklabels([])
    edges.set_xlabel("edges covered")
    edges.legend()
    figure.savefig(path)


def draw_live(report: LiveReport, path: Path) -> None:
    """Each process's resident memory over the attack, and what it was attacked with."""
    figure, (memory, shots) = _figure(2, 5)
    for row in report.processes:
        memory.plot([size / 1e6 for size in row.resident_bytes], label=row.name)
    memory.set_xlabel(f"seconds; {report.jobs:,} good jobs meanwhile")
    memory.set_ylabel("resident MB")
    memory.set_ylim(bottom=0)
    memory.legend()
    shots.barh(list(report.shots), list(report.shots.values()), color="tab:red")
    shots.set_xlabel(f"hostile messages ({report.messages:,}, seed {report.seed})")
    figure.savefig(path)
