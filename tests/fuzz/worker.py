"""Fuzzes one target, in a process of its own: libFuzzer gives back control to nobody.

Inputs are mutations of the seeds and, with atheris, as many that coverage guides. Findings do not end the
run: each kind (error type and place) is kept once, with its bytes.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from shared.codec import encode_json
from tests.fuzz.mutate import mutations
from tests.fuzz.target import Target

HAVE_ATHERIS = importlib.util.find_spec("atheris") is not None
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LONGEST_INPUT = 16_384


@dataclass(slots=True, kw_only=True)
class Finding:
    """An error that the target does not declare; `data` is the input in hexadecimal."""

    error: str
    where: str
    data: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a run. `slowest_s` is of one input, garbage collection included."""

    target: str
    guided: bool
    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: str = ""
    memory_growth_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


class Run:
    """Takes inputs until there were enough, then writes its outcome and ends the process."""

    def __init__(self, target: Target, inputs: int, out: Path, *, guided: bool) -> None:
        self._target = target
        self._most = inputs
        self._out = out
        self._outcome = Outcome(target=target.name, guided=guided)
        self._began = time.perf_counter()
        self._seen: set[tuple[str, str]] = set()
        self._memory_bytes = 0

    def take(self, data: bytes) -> None:
        """One input."""
        began = time.perf_counter()
        error = self._target.try_one(data)
        took_s = time.perf_counter() - began
        outcome = self._outcome
        outcome.inputs += 1
        if took_s > outcome.slowest_s:
            outcome.slowest_s, outcome.slowest = took_s, data[:4096].hex()
        if error is not None:
            self._note(error, data)
        # What caches and pools take at first, and libFuzzer for itself, is no growth.
        if outcome.inputs == max(1, self._most * 3 // 5):
            self._memory_bytes = _resident_bytes()
        if outcome.inputs >= self._most:
            self.end()

    def end(self) -> NoReturn:
        """Write the outcome, and end: libFuzzer gives back control to nobody."""
        self._outcome.seconds = time.perf_counter() - self._began
        self._outcome.memory_growth_bytes = _resident_bytes() - self._memory_bytes
        self._out.write_bytes(encode_json(self._outcome))
        sys.stderr.flush()
        os._exit(0)

    def _note(self, error: Exception, data: bytes) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = (type(error).__name__, f"{last.filename}:{last.lineno}")
        if kind in self._seen:
            return
        self._seen.add(kind)
        text = "".join(traceback.format_exception_only(error)).strip()[:500]
        self._outcome.findings.append(Finding(error=text, where=kind[1], data=data.hex()))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def fuzz(target: Target, inputs: int, seed: int, corpus: Path | None, out: Path) -> NoReturn:
    """Fuzz `target`, half of the inputs guided by coverage where that is of use, and end the process.

    Args:
        target: what to fuzz.
        inputs: how many.
        seed: the same gives the same mutations; what coverage guides also hangs on time.
        corpus: a folder of further bytes to begin with.
        out: gets the outcome.
    """
    seeds = target.seeds(seed)
    if corpus is not None and corpus.is_dir():
        seeds += [path.read_bytes() for path in sorted(corpus.iterdir())]
    guided = HAVE_ATHERIS and target.guided
    run = Run(target, inputs, out, guided=guided)
    for data in itertools.islice(mutations(seeds, seed), inputs // 2 if guided else inputs):
        run.take(data)
    if guided:
        _guide(run, seeds, seed)
    run.end()


def _guide(run: Run, seeds: list[bytes], seed: int) -> None:
    import atheris  # type: ignore[import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        for index, data in enumerate(seeds):
            (Path(folder) / f"{index:05}").write_bytes(data)
        flags = [
            f"-seed={seed}", "-runs=-1", f"-max_len={_LONGEST_INPUT}", "-rss_limit_mb=0", "-timeout=300",
            "-verbosity=1",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *flags, folder], run.take)
        atheris.Fuzz()
