"""`python -m tests.cluster.chaos [--minutes 10] [--seed N] ...`: exit status 1 when a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

from shared.codec import encode_json
from shared.errors import Amp4ecError
from tests.benchmarks.report import say
from tests.cluster.chaos.faults import missing
from tests.cluster.chaos.flags import positive
from tests.cluster.chaos.report import make_report, print_report
from tests.cluster.chaos.run import Options, run
from tests.cluster.chaos.schedule import FaultKind


def main() -> int:
    """Run the command; its exit status."""
    asked = _parse()
    options = Options(
        seed=asked.seed,
        minutes=asked.minutes,
        kinds=tuple(kind for kind in asked.faults if not _left_out(kind)),
        runtime=asked.runtime,
        per_s=asked.rate,
        quick=asked.quick,
    )
    if not options.kinds:
        say("none of these faults can be made here")
        return 1
    directory = Path(tempfile.mkdtemp(prefix="amp4ec-chaos-"))
    # Connections that break are the point, and no news for who watches.
    logging.basicConfig(
        filename=directory / "chaos.log", format="%(asctime)s %(name)s: %(message)s"
    )
    try:
        outcomes = asyncio.run(run(directory, options))
    except Amp4ecError as error:
        say(f"error: {error}\nlogs: {directory}")
        return 1
    report = make_report(outcomes, options)
    if asked.report is not None:
        asked.report.write_bytes(encode_json(report) + b"\n")
    if asked.draw is not None:
        from tests.cluster.chaos.drawing import draw_run

        draw_run(outcomes, asked.draw)
    print_report(report)
    if report.held:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    print(f"logs of every process: {directory}\nagain: {report.command}")
    return 1


def _left_out(kind: FaultKind) -> str:
    reason = missing(kind)
    if reason:
        say(f"{kind} is left out: {reason}")
    return reason


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.chaos",
        description="A real cluster under load while things break; exit status 1 when a promise is broken.",
        epilog=f"faults: {', '.join(FaultKind)}",
    )
    parser.add_argument("--minutes", type=positive, default=10.0, help="how long things break")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(10_000),
        help="of the faults; drawn when left out",
    )
    parser.add_argument(
        "--faults", type=_kinds, default=tuple(FaultKind), metavar="A,B,...", help="only these"
    )
    parser.add_argument("--rate", type=positive, default=40.0, help="jobs per second, all clients")
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "torch"))
    parser.add_argument("--quick", action="store_true", help="each fault once, about a minute")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--draw", type=Path, metavar="FILE.png")
    return parser.parse_args()


def _kinds(text: str) -> tuple[FaultKind, ...]:
    with contextlib.suppress(ValueError):
        return tuple(FaultKind(name) for name in text.split(","))
    raise argparse.ArgumentTypeError(f"expected some of {', '.join(FaultKind)}; got {text!r}")


if __name__ == "__main__":
    sys.exit(main())
