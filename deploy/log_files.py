"""Logs of ours on this machine: found by the processes that write them, or named, and searched."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from deploy.log_lines import LogLine, parse_line
from shared.client import ClusterStatus
from shared.errors import ConfigurationError

_NAMES = ("*.log", "*/*.log")


def logs_of(status: ClusterStatus) -> list[Path]:
    """Files that this cluster's processes on this machine log to, and logs of ours beside them.

    So `amp4ec up` is found, and whoever sends standard error to a file; also the logs of those that have
    ended there. Other users' processes are passed over.
    """
    processes = [(node.state.host, node.state.pid) for node in status.nodes]
    if status.orchestrator is not None:
        processes.append((status.orchestrator.host, status.orchestrator.pid))
    here = socket.gethostname()
    written = {log for host, pid in processes if host == here and (log := _standard_error(pid))}
    beside = {log for path in written for log in path.parent.glob(_NAMES[0])}
    return sorted(path for path in written | beside if _is_ours(path))


def logs_in(named: Iterable[Path]) -> list[Path]:
    """The files that are named, and those called `*.log` in folders that are, and in their folders.

    Raises:
        ConfigurationError: a folder has none.
    """
    found: set[Path] = set()
    for path in named:
        if path.is_dir():
            within = {log for name in _NAMES for log in path.glob(name)}
            if not within:
                raise ConfigurationError(
                    "no logs there", expected="files called *.log", got=str(path)
                )
            found |= within
        else:
            found.add(path)
    return sorted(found)


def search(logs: Iterable[Path], words: Collection[str]) -> Iterator[LogLine]:
    """Lines of ours that have one of `words` in them somewhere."""
    for path in logs:
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                if any(word in text for word in words) and (line := parse_line(text)) is not None:
                    yield line


def _standard_error(pid: int) -> Path | None:
    try:
        path = Path(f"/proc/{pid}/fd/2").readlink()
        return path if path.is_file() else None
    except OSError:  # it has ended, is another's, or this is no Linux
        return None


def _is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return parse_line(file.readline()) is not None
    except OSError:
        return False
