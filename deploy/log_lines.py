"""Lines of our own logs, read again: as people would have seen them, and with their facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shared.codec import decode_json
from shared.errors import ProtocolError
from shared.logs import describe

_NOT_SHOWN = ("process", "incarnation", "traceback")


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a JSON line of a log says; `facts` are those of the event and of the process."""

    time: str
    level: str
    logger: str
    event: str
    facts: dict[str, Any]

    @property
    def text(self) -> str:
        """Event and facts as people read them, without what is the same in every line."""
        shown = {name: fact for name, fact in self.facts.items() if name not in _NOT_SHOWN}
        return describe(self.event, shown)


def parse_line(line: str) -> LogLine | None:
    """A line of a log of ours; None for anything else, such as what a library wrote by itself."""
    if not line.startswith("{"):
        return None
    try:
        facts: dict[str, Any] = decode_json(line.encode("utf-8", "replace"), dict)
    except ProtocolError:
        return None
    match [facts.pop(name, None) for name in ("time", "level", "logger", "event")]:
        case [str(time), str(level), str(logger), str(event)]:
            return LogLine(time, level, logger, event, facts)
        case _:
            return None


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a text that comes in pieces, each when it is whole."""
    begun = b""
    for chunk in chunks:
        *whole, begun = (begun + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if begun:
        yield begun.decode(errors="replace")


def readable(line: str) -> str:
    """A line of a log as people read it; what is not ours stays as it is."""
    parsed = parse_line(line)
    if parsed is None:
        return line
    text = f"{parsed.time} {parsed.level:<7} {parsed.logger}: {parsed.text}"
    traceback = parsed.facts.get("traceback")
    return f"{text}\n{traceback}" if traceback else text
