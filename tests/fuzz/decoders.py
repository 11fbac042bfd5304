"""`python -m tests.fuzz decoders`: every target, one after the other, each in a process of its own.

The exit status is 1 when a target raised what it does not declare, ended its process, or kept memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.codec import decode_json, encode_json
from tests.fuzz.registry import MODULES, SLOW_MODULES, targets
from tests.fuzz.target import Target
from tests.fuzz.worker import HAVE_ATHERIS, Finding, Outcome, fuzz

CORPUS = Path(__file__).with_name("findings")
"""What was found and mended, a folder per target; every run begins with it, and the tests replay it."""
DEFAULT_INPUTS = 1_000_000
MOST_GROWTH_BYTES = 64 << 20
_LEAST_INPUTS = 200
_COVERAGE = re.compile(rb"cov: (\d+)")


@dataclass(slots=True, kw_only=True)
class Row:
    """One target's outcome, with the edges that coverage began and ended with."""

    outcome: Outcome
    first_edges: int = 0
    last_edges: int = 0
    exit_status: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        outcome = self.outcome
        return not (
            outcome.findings or self.exit_status or outcome.memory_growth_bytes > MOST_GROWTH_BYTES
        )


@dataclass(slots=True, kw_only=True)
class FuzzReport:
    """A whole run."""

    seed: int
    guided: bool
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """Of all targets."""
        return sum(row.outcome.inputs for row in self.rows)


def run(
    inputs: int, seed: int, names: Sequence[str], modules: Sequence[str] = MODULES
) -> FuzzReport:
    """Fuzz the targets named (all of `modules` when none is), sharing out `inputs`.

    Raises:
        KeyError: there is no target of that name.
    """
    report, began = FuzzReport(seed=seed, guided=HAVE_ATHERIS), time.perf_counter()
    quick = _instrumented(tuple(module for module in modules if module not in SLOW_MODULES))
    slow = tuple(module for module in modules if module in SLOW_MODULES)
    chosen = {name: quick[name] for name in names if name in quick} if names else quick
    shares = sum(target.share for target in (quick if not names else chosen).values()) or 1.0
    for target in chosen.values():
        report.rows.append(
            fork(target, max(_LEAST_INPUTS, int(inputs * target.share / shares)), seed)
        )
    if slow and (not names or set(names) - set(chosen)):
        # Last, for the others' processes are to be small.
        late = targets(slow)
        for name in names or late:
            if name not in chosen:
                target = late[name]
                share = max(_LEAST_INPUTS, int(inputs * target.share / shares))
                report.rows.append(fork(target, share, seed))
    report.seconds = time.perf_counter() - began
    return report


def _instrumented(modules: tuple[str, ...]) -> dict[str, Target]:
    if not HAVE_ATHERIS:
        return targets(modules)
    import atheris  # type: ignore[import-untyped,unused-ignore]

    # It names each module that it instruments.
    with (
        contextlib.redirect_stderr(io.StringIO()),
        atheris.instrument_imports(
            include=["shared", "orchestrator", "edge_agent", "deploy", "PIL"]
        ),
    ):
        return targets(modules)


def fork(target: Target, inputs: int, seed: int) -> Row:
    """Fuzz one target in a process of its own, and print its row."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "outcome", Path(folder) / "log"
        if sys.stdout.isatty():
            print(f"{target.name:20} {inputs:>9,} inputs ...", end="\r")
        sys.stdout.flush()  # or the child would write it again
        pid = os.fork()
        if pid == 0:
            try:
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                fuzz(target, inputs, seed, CORPUS / target.name, out)
            finally:
                os._exit(3)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = log.read_bytes()
        if out.exists():
            outcome = decode_json(out.read_bytes(), Outcome)
        else:
            last = text[-2000:].decode(errors="replace")
            ended = Finding(error=f"the process ended with status {status}", where=last, data="")
            outcome = Outcome(target=target.name, guided=False, findings=[ended])
        edges = [int(found) for found in _COVERAGE.findall(text)] or [0]
        row = Row(outcome=outcome, first_edges=edges[0], last_edges=edges[-1], exit_status=status)
    print(line(row), flush=True)
    return row


HEAD = (
    f"{'target':20} {'inputs':>9} {'per s':>8} {'edges':>13} {'slowest':>9} {'memory':>9}  findings"
)


def line(row: Row) -> str:
    """A row of the table."""
    outcome = row.outcome
    rate = outcome.inputs / outcome.seconds if outcome.seconds else 0.0
    edges = f"{row.first_edges} -> {row.last_edges}" if outcome.guided else "not guided"
    return (
        f"{outcome.target:20} {outcome.inputs:>9,} {rate:>8,.0f} {edges:>13} "
        f"{outcome.slowest_s * 1e3:>6.1f} ms {outcome.memory_growth_bytes / 1e6:>6.1f} MB  "
        f"{len(outcome.findings) or 'none'}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz decoders", description=__doc__)
    parser.add_argument("targets", nargs="*", help="names of targets; all when none is given")
    parser.add_argument(
        "--inputs", type=int, default=DEFAULT_INPUTS, help="of all targets together"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--draw", type=Path, help="draw rates and coverage here (PNG or SVG)")
    options = parser.parse_args(arguments)
    if not HAVE_ATHERIS:
        print(
            "atheris is not installed (pip install '.[dev]'): mutations only, no coverage guides them"
        )
    print(HEAD)
    report = run(options.inputs, options.seed, options.targets)
    rate = report.inputs / report.seconds
    print(
        f"\n{report.inputs:,} inputs in {report.seconds:.0f} s, {rate:,.0f} per s, seed {report.seed}"
    )
    for row in report.rows:
        for finding in row.outcome.findings:
            print(
                f"\n{row.outcome.target}: {finding.error}\n  at {finding.where}\n  input {finding.data}"
            )
    if options.json is not None:
        options.json.write_bytes(encode_json(report))
    if options.draw is not None:
        from tests.fuzz.drawing import draw_decoders

        draw_decoders(report, options.draw)
    return 0 if all(row.good for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
