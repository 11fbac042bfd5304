"""The greatest term of a leader that this node has heard of, kept on disk beside its incarnation.

Without it an agent that starts anew would obey what an orchestrator says that was cut off since, and does not
know yet that another leads. It locks nobody out: the birth carries the number, and an orchestrator that finds
itself below it (its broker's memory was wiped, say) claims a term above.
"""

from __future__ import annotations

from pathlib import Path

from shared.files import write_whole
from shared.logs import get_log

log = get_log(__name__)

_FILE = "term"
_LARGEST = 2**53


class TermFile:
    """The number below a directory, which must exist when it is written."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE
        self._kept = 0

    def read(self) -> int:
        """The number; 0 where there is none, or nothing that could be one."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning(
                "the last term cannot be read: any leader is obeyed", path=self._path, error=error
            )
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _LARGEST):
            log.warning("the file holds no term: any leader is obeyed", path=self._path)
            return 0
        self._kept = int(text)
        return self._kept

    def keep(self, term: int) -> None:
        """Remember a greater number. A disk that fails is logged: the process remembers it, too."""
        if term <= self._kept:
            return
        self._kept = term
        try:
            # Against a restart; without power the broker's leader has changed as well, or says it again.
            write_whole(self._path, str(term).encode(), durable=False)
        except OSError as error:
            log.error("the term cannot be written", path=self._path, error=error)
