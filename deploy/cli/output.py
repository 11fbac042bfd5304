"""What the command prints: results on standard output, everything else on standard error.

On a terminal long work shows a spinner with the present step (rich, when it is installed); elsewhere each
step is a whole line, at most one a second for steps that only count.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

import click

from shared.codec import encode_json, to_builtins
from shared.messages.job import Answer

_EVERY_S = 1.0
_TASK: Any = 0
"""Of rich's progress: it shows only one."""


def print_json(value: object) -> None:
    """`value` as the one JSON document of standard output, or one of its lines."""
    print_line(encode_json(to_builtins(value)).decode())


def answer_document(answer: Answer) -> dict[str, Any]:
    """An answer as it stood on the wire in JSON: raw tensors have no place there."""
    document: dict[str, Any] = to_builtins(answer)
    document.pop("tensors", None)
    return document


def print_line(text: str) -> None:
    """A line for people, on standard output, at once.

    Raises:
        click.exceptions.Exit: nobody reads it any more, as after `| head`.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not be tried again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


def note(text: str) -> None:
    """A line for people beside the result, on standard error, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Progress:
    """The steps of one long work, or the number of its items that are done. Use with `with`."""

    def __init__(self, title: str, total: int | None = None) -> None:
        """Prepare; nothing is shown before entering. With `total`, a terminal shows a bar."""
        self._title = title
        self._total = total
        self._shown: Any = None
        self._last = ""
        self._last_s = 0.0

    def __enter__(self) -> Self:
        """Begin: a spinner on a terminal, a line elsewhere."""
        if sys.stderr.isatty():
            try:
                from rich import progress as bars
                from rich.console import Console
            except ImportError:  # an extra; lines serve as well
                note(self._title)
            else:
                counted = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
                self._shown = bars.Progress(
                    bars.SpinnerColumn(),
                    bars.TextColumn("{task.description}", markup=False),
                    *(() if self._total is None else counted),
                    console=Console(stderr=True),
                    transient=True,
                    # Results that go into a file or a pipe are not for the terminal.
                    redirect_stdout=sys.stdout.isatty(),
                )
                self._shown.start()
                self._shown.add_task(self._title, total=self._total)
        else:
            note(self._title)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End; what the terminal shows goes."""
        if self._shown is not None:
            self._shown.stop()

    @property
    def on_terminal(self) -> bool:
        """Whether it is shown in place, so that it may change often."""
        return self._shown is not None

    def step(self, text: str) -> None:
        """A new step."""
        if text == self._last:
            return
        self._last = text
        if self._shown is not None:
            self._shown.update(_TASK, description=text)
        else:
            note(text)

    def count(self, text: str) -> None:
        """A step that comes often, such as a percentage."""
        now = time.monotonic()
        if self.on_terminal or now - self._last_s >= _EVERY_S:
            self._last_s = now
            self.step(text)

    def done(self, number: int) -> None:
        """So many of the total are done."""
        if self._shown is not None:
            self._shown.update(_TASK, completed=number)
        else:
            self.count(f"{number} of {self._total} done")
