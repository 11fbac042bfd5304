"""Structured logs: what happened in words and the facts beside it, one line per event.

    log = get_log(__name__)
    log.info("stage ready", model="mobilenet_v2", generation=3, load_s=0.41)

On a terminal a line reads `2026-11-21T22:38:01.123Z info    edge_agent.stage_keeper: stage ready
model=mobilenet_v2 generation=3 load_s=0.41`; elsewhere it is one JSON object with `time` (UTC, ISO 8601),
`level`, `logger`, `event`, what was bound to the process (`process`, `node`, `incarnation`) and the facts.

What caused a line is among its facts, always by these names: `job` (a client's name of it), `request`
(ours), `transaction`, `node`, `model`, `pipeline`, `generation`, `incarnation`, `term`. `amp4ec story` finds
it by them.

Below is Python's own `logging`: a program that uses our client sets levels and handlers as for any other
library, and gets the line for people. Other libraries are heard from warnings on, whatever the level.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from datetime import UTC, datetime
from typing import Literal, TextIO

from shared.codec import encode_json_line
from shared.errors import ProtocolError

Format = Literal["auto", "text", "json"]
FORMATS: tuple[Format, ...] = ("auto", "text", "json")
LEVELS = ("debug", "info", "warning", "error")
OURS = ("broker", "deploy", "edge_agent", "orchestrator", "shared")
"""The packages that the level is set for."""

_LONGEST = 2000
"""Characters of a fact: what others send must not fill the log."""
_bound: dict[str, object] = {}
_handler: logging.Handler | None = None


class Log:
    """Writes lines of one logger; facts are named, and anything that `str` takes. Made by `get_log`."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def is_debug(self) -> bool:
        """Whether debug lines are written: asked where even naming the facts costs too much."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, /, **facts: object) -> None:
        """What only somebody wants to know who looks for a fault, such as what comes with every job."""
        self._write(logging.DEBUG, event, facts)

    def info(self, event: str, /, **facts: object) -> None:
        """What happens now and then in a cluster that is well."""
        self._write(logging.INFO, event, facts)

    def warning(self, event: str, /, **facts: object) -> None:
        """Something is not as it should be, and was dealt with."""
        self._write(logging.WARNING, event, facts)

    def error(self, event: str, /, **facts: object) -> None:
        """Something cannot be done."""
        self._write(logging.ERROR, event, facts)

    def exception(self, event: str, /, **facts: object) -> None:
        """A fault of ours: an error with the traceback of the exception that is being handled."""
        self._write(logging.ERROR, event, facts, True)

    def traceback(self, event: str, error: BaseException) -> None:
        """A debug line with the traceback of an error that was told to people without it."""
        self._write(logging.DEBUG, event, {}, error)

    def _write(
        self,
        level: int,
        event: str,
        facts: dict[str, object],
        error: BaseException | bool = False,
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, Line(event, facts), exc_info=error)


class Line:
    """A record's message: `str` of it is what people read."""

    __slots__ = ("event", "facts")

    def __init__(self, event: str, facts: dict[str, object]) -> None:
        self.event = event
        self.facts = {name: _plain(value) for name, value in facts.items()}

    def __str__(self) -> str:
        return describe(self.event, self.facts)


def get_log(name: str) -> Log:
    """The log of a module: `get_log(__name__)`."""
    return Log(name)


def describe(event: str, facts: dict[str, object]) -> str:
    """An event and its facts as people read them, in one line whatever they hold."""
    return "  ".join(
        filter(None, [one_line(event), " ".join(f"{k}={_word(v)}" for k, v in facts.items())])
    )


def bind(**facts: object) -> None:
    """Say this in each JSON line of this process from now on; None takes a fact away."""
    for name, value in facts.items():
        if value is None:
            _bound.pop(name, None)
        else:
            _bound[name] = _plain(value)


def set_up(form: Format = "auto", level: str = "warning", stream: TextIO | None = None) -> None:
    """Write this process's log; called again, in another way from now on.

    Args:
        form: `text` for people, `json` for programs; `auto` is text where `stream` is a terminal.
        level: one of `LEVELS`, for what is ours.
        stream: where to; standard error when None.
    """
    global _handler  # noqa: PLW0603 - a process has one log
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    as_json = form == "json" or (form == "auto" and not stream.isatty())
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
    root.addHandler(handler)
    _handler = handler
    set_level(level)
    logging.captureWarnings(capture=True)
    threading.excepthook = _thread_failed


def set_level(level: str) -> None:
    """Write what is ours from `level` on, and of others what is at least a warning."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(max(number, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(number)


def is_bound(name: str) -> bool:
    """Whether `bind` has said this of the process."""
    return name in _bound


def writes_json() -> bool:
    """Whether this process's log is JSON lines."""
    return _handler is not None and isinstance(_handler.formatter, _JsonFormatter)


def utc(seconds: float, timespec: str = "microseconds") -> str:
    """A wall time in seconds since 1970 as ISO 8601 in UTC, as log lines have it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec)[:-6] + "Z"


class _TextFormatter(logging.Formatter):
    """For people: one line, but for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(record.getMessage())
        at, level = utc(record.created, "milliseconds"), record.levelname.lower()
        line = f"{at} {level:<7} {record.name}: {text}"
        if record.exc_info:
            line += "\n    " + self.formatException(record.exc_info).replace("\n", "\n    ")
        return line


class _JsonFormatter(logging.Formatter):
    """For programs: one object, always on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = record.msg
        facts = line.facts if isinstance(line, Line) else {}
        document = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": line.event if isinstance(line, Line) else record.getMessage(),
            **_bound,
            **facts,
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        try:
            return encode_json_line(document).decode()
        except ProtocolError:  # half a character, from a file name or from over the wire
            safe = {name: ascii(value) for name, value in document.items()}
            return encode_json_line(safe).decode()


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is SystemExit:
        return
    name = failed.thread.name if failed.thread else "?"
    error = failed.exc_value or failed.exc_type()
    logging.getLogger(__name__).error(
        Line("a thread ended by an error", {"thread": name}),
        exc_info=(failed.exc_type, error, failed.exc_traceback),
    )


def _plain(value: object) -> object:
    """A fact as JSON has it. An error says what is wrong with it; what we do not know is its text."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else str(value)
        case list() | tuple() | set() | frozenset():
            return [_plain(each) for each in value]
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case BaseException():
            text = str(value) or type(value).__name__
        case _:
            text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _word(value: object) -> str:
    """A fact in a line for people: bare where nothing else could be meant."""
    if isinstance(value, list):
        return ",".join(map(_word, value)) or "none"
    text = str(value)
    bare = text.isprintable() and text and not set(text) & set(" \"'=,")
    return text if bare else repr(text)


def one_line(text: str) -> str:
    """`text` without line breaks and control characters: nobody's words move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
