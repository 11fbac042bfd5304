"""What `amp4ec infer` prints and draws for each answer, and what it says at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli.output import answer_document, note, print_json, print_line
from shared.client import Result
from shared.errors import Amp4ecError, JobError

if TYPE_CHECKING:
    from PIL.Image import Image

    from deploy.live.annotate import Album

Outcome = Result | Amp4ecError
_LATENCIES = 10_000
"""As many of the latest as percentiles are taken of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of the cluster for each input."""

    model: str
    timeout_s: float
    deadline_s: float | None


class Tally:
    """Counts what became of a run's inputs."""

    def __init__(self, what: str) -> None:
        """Begin to count; `what` they are: files, frames."""
        self._what = what
        self._begin = time.monotonic()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self.answered = 0
        self.failed: Counter[str] = Counter()

    def take(self, outcome: Outcome) -> None:
        """One more."""
        if isinstance(outcome, Result):
            self.answered += 1
            self._latencies.append(outcome.latency_s)
        else:
            self.failed[code_of(outcome)] += 1

    def summary(self, dropped: int = 0, *more: str) -> str:
        """All of it in a line."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        failed = self.failed.total()
        parts = [f"{self.answered + failed + dropped} {self._what} in {seconds:.1f} s"]
        answered = f"{self.answered} answered"
        if self._latencies:
            ordered = sorted(self._latencies)
            p50, p95 = (ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.95))
            answered += f" ({self.answered / seconds:.1f}/s, p50 {p50 * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms)"
        parts.append(answered)
        if dropped:
            parts.append(f"{dropped} dropped for newer ones")
        if failed:
            codes = ", ".join(f"{code} {count}" for code, count in self.failed.most_common())
            parts.append(f"{failed} failed ({codes})")
        return ", ".join([*parts, *more])


class Output:
    """Where each answer goes, as it comes: lines for people or JSON on standard output, and pictures."""

    def __init__(
        self,
        *,
        top: int,
        lines: bool,
        text: Callable[[str, Result, int], str] | None,
        album: Album | None,
    ) -> None:
        """Prepare.

        Args:
            top: labels shown.
            lines: a line of JSON for each.
            text: what is printed for people otherwise; None: nothing.
            album: gets the pictures.
        """
        self._top = top
        self._lines = lines
        self._text = text
        self._album = album
        self._latest_error = ""
        self._unwritten = 0

    async def take(
        self,
        title: str,
        where: Mapping[str, object],
        outcome: Outcome,
        image: Callable[[], Image] | None,
        *,
        picture: str = "",
        often: bool = False,
    ) -> None:
        """One answer.

        Args:
            title: names its input for people.
            where: the fields that name it in JSON.
            outcome: what became of it.
            image: draws its input, in a thread; None: it is no picture.
            picture: the name of the annotated picture, without an ending; the title where it is empty.
            often: such inputs come all the time: an error is said once, until another one comes.
        """
        written: dict[str, object] = {}
        if self._album is not None and image is not None:
            written = await asyncio.to_thread(
                self._write, self._album, picture or title, outcome, image
            )
        if isinstance(outcome, Amp4ecError):
            if not often or str(outcome) != self._latest_error:
                note(f"{title}: error: {outcome}")
            self._latest_error = str(outcome)
        elif self._text is not None:
            print_line(self._text(title, outcome, self._top))
        if self._lines:
            print_json({**where, **written, **document_of(outcome, self._top)})

    def _write(
        self, album: Album, name: str, outcome: Outcome, image: Callable[[], Image]
    ) -> dict[str, object]:
        try:
            return {"picture": str(album.add(name, image(), outcome))}
        except OSError as error:  # no picture in the file, or the disk is full: the answers go on
            self._unwritten += 1
            if self._unwritten.bit_count() == 1:
                note(f"{name}: not drawn: {error} ({self._unwritten} so far)")
            return {}


def code_of(error: Amp4ecError) -> str:
    """What an error is counted as."""
    return error.code if isinstance(error, JobError) else type(error).__name__


def document_of(outcome: Outcome, top: int) -> dict[str, Any]:
    """An answer or an error as JSON has it."""
    if isinstance(outcome, Result):
        answer = dataclasses.replace(outcome.answer, top=list(outcome.top[:top]))
        return answer_document(answer)
    error = {
        "code": outcome.code if isinstance(outcome, JobError) else None,
        "message": outcome.message,
        "expected": outcome.expected,
        "got": outcome.got,
    }
    if isinstance(outcome, JobError) and outcome.retry_after_s is not None:
        error["retry_after_s"] = str(outcome.retry_after_s)
    return {"status": "error", "error": error}


def describe(name: str, result: Result, top: int) -> str:
    """A result for people: labels, then where the time went."""
    lines = [name]
    lines += [f"  {label.probability:7.2%}  {label.label}" for label in result.top[:top]]
    if not result.top:
        lines.append("  no labels: the model is no classifier")
    if result.random_weights:
        lines.append("  the model's weights are random: these labels mean nothing")
    if not result.exact:
        lines.append("  not exact: a lossy level or codec was asked for")
    lines.append(
        f"  {result.latency_s * 1e3:.1f} ms, {result.model} in {len(result.trace)} "
        f"{'stage' if len(result.trace) == 1 else 'stages'}, generation {result.generation}"
        + (", from the cache" if result.cached else "")
    )
    width = max((len(entry.node) for entry in result.trace), default=0)
    lines += [
        f"    stage {entry.stage}  {entry.node:<{width}}  queue {entry.queue_s * 1e3:6.1f}"
        f"  compute {entry.compute_s * 1e3:6.1f}  transit {entry.transit_s * 1e3:6.1f} ms"
        for entry in result.trace
    ]
    return "\n".join(lines)


def describe_shortly(name: str, result: Result, top: int) -> str:
    """A result for people in a line."""
    best = ", ".join(f"{label.label} {label.probability:.1%}" for label in result.top[:top])
    notes = "".join(
        f", {mark}"
        for mark, holds in (
            ("from the cache", result.cached),
            ("not exact", not result.exact),
            ("random weights", result.random_weights),
        )
        if holds
    )
    return f"{name}: {best or 'no labels'} ({result.latency_s * 1e3:.0f} ms{notes})"


def picture_in(path: Path) -> tuple[str, Callable[[], Image]] | None:
    """A file's picture; None for an array."""
    if path.suffix.lower() == ".npy":
        return None

    def opened() -> Image:
        from PIL import Image as Pillow

        with Pillow.open(path) as image:
            return image.convert("RGB")

    return path.stem, opened
