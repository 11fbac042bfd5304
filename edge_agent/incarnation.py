"""The number of this life of the agent: it grows with every start, also where the clock does not.

It tells a late will from the present life. A device without a battery clock starts in the past, so the last
number is kept on disk beside the time.
"""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigurationError
from shared.logs import get_log

log = get_log(__name__)

_FILE = "incarnation"


def next_incarnation(directory: Path, now_ms: int, above: int = 0) -> int:
    """The next number: the time in milliseconds, or more where an earlier one was as large.

    Args:
        directory: where the last number is kept; made when it is not there.
        now_ms: the wall clock, milliseconds since 1970.
        above: a number seen elsewhere that this one must exceed.

    Raises:
        ConfigurationError: the directory cannot be made or written.
    """
    path = directory / _FILE
    try:
        incarnation = max(now_ms, _last(path) + 1, above + 1)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(str(incarnation))
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"the agent's directory {directory} cannot be used: {error}",
            expected="a directory that can be written",
        ) from error
    return incarnation


def _last(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError:
        log.warning("the last incarnation cannot be read: starting from the clock", path=path)
        return 0
