"""`python -m tests.benchmarks [NAME ...] [--json FILE] [--quick]`: measure, and print a table.

Without a NAME all benchmarks of the catalogue run, about 16 minutes on a quiet machine; `exactness`, which
takes an hour, runs only when it is named, and takes flags of its own behind its name. The exit status says
whether every benchmark could be run, never whether a bar was reached.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from deploy.machine import this_machine
from shared.codec import encode_json
from tests.benchmarks.context import Benchmark, Context
from tests.benchmarks.report import Report, Row, print_report, say

_EXACTNESS = "exactness"


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark: the module with its `run`, and about how long it takes (quick, full), in seconds."""

    module: str
    text: str
    takes_s: tuple[int, int]


CATALOGUE = {
    "bus": Entry("bus", "hop time of an activation against bare aiomqtt; allocations", (5, 15)),
    "messaging": Entry("messaging", "CPU of messaging per stage and item", (5, 25)),
    "orchestrator": Entry("orchestrator_cpu", "CPU of the orchestrator per job", (30, 80)),
    "idle": Entry("idle", "an agent's CPU and memory with no runtime loaded", (20, 40)),
    "monitoring": Entry("monitoring", "what watching costs agents and orchestrator", (90, 330)),
    "join": Entry("churn", "birth to first answer; runs together with kill", (45, 160)),
    "kill": Entry("churn", "SIGKILL to first answer; runs together with join", (45, 160)),
    "cut": Entry("cuts", "network cut without a reset to first answer; the way back", (45, 260)),
    "outage": Entry("outages", "what a broker's restart costs beyond the outage", (50, 200)),
    "takeover": Entry("takeover", "a leader gone to the standby's first answer", (60, 240)),
    "prediction": Entry("prediction", "predicted stage times against measured ones", (60, 360)),
    "scheduling": Entry("scheduling", "which pipeline takes a job: cost, rules; plans", (70, 480)),
    "forecast": Entry("forecast", "load 10 to 30 s ahead, from recorded traces", (2, 2)),
    "recut": Entry(
        "recut", "a cut that moves: decision to ready, its phases, its bytes", (90, 400)
    ),
    "delivering": Entry("delivering", "a live model while another is delivered", (120, 420)),
    "throughput": Entry("throughput", "three agents against the whole model", (90, 320)),
    "microbatch": Entry(
        "microbatch", "a batch of 32 in micro-batches of each size, and as measured", (180, 900)
    ),
    "overload": Entry("overload", "three times the capacity for a minute", (75, 220)),
    "tls": Entry("tls", "what TLS and an ACL cost, in messages and in answers", (75, 180)),
    "durability": Entry("durability", "what each piece of durability costs a job", (10, 60)),
    "levels": Entry("levels", "O0, O1 and int8 with both runtimes: time, memory, bytes", (45, 420)),
    "compressing": Entry("compressing", "tensors in fewer bytes, and over thin links", (120, 420)),
    "page": Entry("page", "the page with 100 nodes and 50 events/s, in Chromium", (25, 80)),
    "strategies": Entry("strategies", "each way of planning, predicted and measured", (120, 420)),
}


def main() -> int:
    """Run the command; its exit status."""
    if sys.argv[1:2] == [_EXACTNESS]:
        line = [sys.executable, "-m", f"tests.benchmarks.{_EXACTNESS}", *sys.argv[2:]]
        return subprocess.run(line, check=False).returncode
    options = _parse()
    names = options.names or list(CATALOGUE)
    # Two names may be one benchmark: what kills agents also sees them join.
    modules = {CATALOGUE[name].module: CATALOGUE[name] for name in names}
    total_s = sum(entry.takes_s[0 if options.quick else 1] for entry in modules.values())
    say(f"{', '.join(names)}: about {total_s / 60:.1f} minutes on a quiet machine")
    command = "python -m tests.benchmarks " + " ".join(sys.argv[1:])
    report = Report(machine=this_machine(), command=command.rstrip(), quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="amp4ec-bench-") as scratch:
        context = Context(options.quick, Path(scratch), options.draw, options.seconds)
        for module, entry in modules.items():
            _run(module, entry, context, report)
    print_report(report)
    if options.json is not None:
        options.json.write_bytes(encode_json(report) + b"\n")
    return 1 if report.failed else 0


def _run(module: str, entry: Entry, context: Context, report: Report) -> None:
    """One benchmark; one that cannot be run does not take the others' figures along."""
    say(f"{module}: {entry.text}, about {entry.takes_s[0 if context.quick else 1]} s")
    began = time.monotonic()
    try:
        run: Benchmark = import_module(f"tests.benchmarks.{module}").run
        report.rows.extend(asyncio.run(_awaited(run, context)))
    except Exception as error:  # noqa: BLE001 - reported below, and in the exit status
        report.failed[module] = f"{type(error).__name__}: {error}"
        say(f"{module} FAILED: {report.failed[module]}")
    report.seconds[module] = round(time.monotonic() - began, 1)


async def _awaited(run: Benchmark, context: Context) -> list[Row]:
    return await run(context)


def _parse() -> argparse.Namespace:
    names = "\n".join(f"  {name:<13} {entry.text}" for name, entry in CATALOGUE.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(__doc__ or "") + f"\nbenchmarks:\n{names}\n"
        f"  {_EXACTNESS:<13} output of every legal cut against the whole model (named only)\n",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all when none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="scheduling, overload: draw what was measured"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="overload: how long; 60 unless given"
    )
    parser.add_argument("--quick", action="store_true", help="small samples: shows that it works")
    options = parser.parse_args()
    for name in options.names:
        if name not in CATALOGUE:
            parser.error(
                f"unknown benchmark {name!r}; one of: {', '.join(CATALOGUE)}, {_EXACTNESS}"
            )
    return options


if __name__ == "__main__":
    sys.exit(main())
