"""`python -m tests.cluster.soak [--minutes 15]`: exit status 1 when something grows or goes unanswered.

The memory of broker and orchestrators is judged from the eleventh minute on, when what they remember for ten
minutes is full; a shorter soak says nothing about it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.machine import Machine, this_machine
from shared.codec import encode_json
from shared.errors import Amp4ecError
from tests.benchmarks.report import say
from tests.cluster.chaos.flags import positive
from tests.cluster.soak.run import Soak, run
from tests.cluster.soak.trend import Trend

_HALF_LOAD_PER_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakReport:
    """A soak as a value. `ended` are processes that ended by themselves, with the end of their logs."""

    command: str
    machine: Machine
    seconds: float
    jobs: int
    unanswered: int
    guests: int
    ended: dict[str, str]
    trends: list[Trend]

    @property
    def held(self) -> bool:
        """Whether everything was answered and nothing grows."""
        flat = bool(self.trends) and all(trend.flat for trend in self.trends)
        return flat and not self.unanswered and not self.ended


def main() -> int:
    """Run the command; its exit status."""
    asked = _parse()
    directory = Path(tempfile.mkdtemp(prefix="amp4ec-soak-"))
    # Connections that break are the point, and no news for who watches.
    logging.basicConfig(filename=directory / "soak.log", format="%(asctime)s %(name)s: %(message)s")
    try:
        soak = asyncio.run(run(directory, asked.minutes, asked.seed, asked.rate, asked.runtime))
    except Amp4ecError as error:
        say(f"error: {error}\nlogs: {directory}")
        return 1
    report = _report(soak, asked)
    if asked.report is not None:
        asked.report.write_bytes(encode_json(report) + b"\n")
    if asked.draw is not None:
        from tests.cluster.soak.drawing import draw_soak

        draw_soak(soak, asked.draw)
    _print(report)
    if report.held:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    print(f"logs of every process: {directory}\nagain: {report.command}")
    return 1


def _report(soak: Soak, asked: argparse.Namespace) -> SoakReport:
    return SoakReport(
        command=f"python -m tests.cluster.soak --minutes {asked.minutes:g} --seed {asked.seed}"
        f" --rate {asked.rate:g} --runtime {asked.runtime}",
        machine=this_machine(),
        seconds=round(soak.ended_at - soak.began_at, 1),
        jobs=len(soak.ledger.jobs),
        unanswered=soak.unanswered,
        guests=soak.guests,
        ended=soak.ended,
        trends=soak.trends(),
    )


def _print(report: SoakReport) -> None:
    print(f"{report.command}\ncommit {report.machine.commit}, {report.seconds:g} s")
    print(f"{report.jobs} jobs, {report.unanswered} not answered rightly; {report.guests} guests")
    print("growth over the second half (Theil-Sen):")
    for trend in report.trends:
        print(
            f"{'flat ' if trend.flat else 'GROWS'} {trend.name:<22} {trend.start:>8.1f} -> {trend.stop:<8.1f}"
            f" {trend.growth:>+8.2f} {trend.unit}, allowed {trend.allowed:.2f} ({trend.points} points)"
        )
    for name, tail in report.ended.items():
        print(f"BROKEN {name} ended by itself:\n{tail}")
    if not report.trends:
        print("BROKEN it was too short to see a trend")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.soak",
        description="A cluster at half load, nodes coming and going; exit status 1 when something grows.",
    )
    parser.add_argument("--minutes", type=positive, default=15.0)
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--rate", type=positive, default=_HALF_LOAD_PER_S, help="jobs per second")
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "torch"))
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--draw", type=Path, metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
