"""A folder's new files, each as soon as it is fully written.

The kernel says when a file has been closed after writing or was moved in (inotify, by watchdog). It does not
say so for what another machine writes on a network file system, nor for what comes when its queue is full: so
the whole folder is looked at now and then, and what has not changed between two looks is regarded as written,
unless the kernel has told that somebody here still writes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from pathlib import Path

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyObserver

from shared.errors import ConfigurationError

LOOK_S = 2.0
"""Between two looks at the whole folder, at least."""
_RARELY = 20
"""So many times as long as a look takes is between two: a folder may have a hundred thousand files."""

_Mark = tuple[int, int, int]
"""A file's content, without reading it: inode, time of change in ns, bytes."""


async def new_files(
    directory: Path,
    *,
    suffixes: Collection[str],
    existing: bool = False,
    look_s: float = LOOK_S,
    tell: Callable[[str], None],
) -> AsyncGenerator[Path]:
    """Files that come into `directory`, each content once; never ends.

    Files whose name begins with a dot are left out (programs write them before they rename them), and so are
    empty ones and folders.

    Args:
        directory: looked into, not below.
        suffixes: the endings of the names that count, in small letters, with their dots.
        existing: whether the files that are there already come, too, in the order of their names.
        look_s: how often the whole folder is looked at.
        tell: gets a line for people, where the kernel tells nothing or the folder cannot be read.

    Raises:
        ConfigurationError: there is no such folder, or it may not be read.
    """
    arrivals = _Arrivals(directory, suffixes)
    try:
        # Before the kernel tells: what comes in between is found by the next looks.
        arrivals.look(arrivals.scan(), all_written=existing, known=not existing)
    except OSError as error:
        raise ConfigurationError(
            f"{directory} cannot be watched: {error.strerror or error}",
            expected="a folder that you may read",
            got=str(directory),
        ) from error
    with arrivals.told_by_kernel(tell):
        looking = asyncio.create_task(_look(arrivals, look_s, tell), name=f"look at {directory}")
        try:
            while True:
                for path in arrivals.take():
                    yield path
                await arrivals.came.wait()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


class _Arrivals(FileSystemEventHandler):
    """What is in the folder, as far as it is known here."""

    def __init__(self, directory: Path, suffixes: Collection[str]) -> None:
        self._directory = directory
        self._suffixes = suffixes
        self._loop = asyncio.get_running_loop()
        self._written: dict[Path, None] = {}
        """To be given out, in this order."""
        self._given: dict[Path, _Mark] = {}
        self._looked: dict[Path, _Mark] = {}
        """As they were at the latest look."""
        self._writing: set[Path] = set()
        self.came = asyncio.Event()

    def take(self) -> Iterator[Path]:
        """Files that are written and were not given out with this content."""
        self.came.clear()
        while self._written:
            path = next(iter(self._written))
            del self._written[path]
            mark = _mark(path)
            if mark is not None and mark != self._given.get(path):
                self._given[path] = mark
                yield path

    def scan(self) -> dict[Path, _Mark]:
        """The whole folder as it is now, in the order of the names; it may take long.

        Raises:
            OSError: it cannot be read.
        """
        return {
            path: mark
            for path in sorted(self._directory.iterdir())
            if self._counts(path) and (mark := _mark(path)) is not None
        }

    def look(
        self, now: dict[Path, _Mark], *, all_written: bool = False, known: bool = False
    ) -> None:
        """Compare the whole folder with the latest look.

        Args:
            now: from `scan`.
            all_written: what is there is whole.
            known: it need not be given out.
        """
        if known:
            self._given = dict(now)
        for path, mark in now.items():
            still = mark == self._looked.get(path) and path not in self._writing
            if mark != self._given.get(path) and (all_written or still):
                self._written[path] = None
        for path in self._looked.keys() - now.keys():
            if _mark(path) is None:  # it may have come again since the scan
                self._given.pop(path, None)
                self._writing.discard(path)
        self._looked = now
        if self._written:
            self.came.set()

    @contextlib.contextmanager
    def told_by_kernel(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Hear of files from inotify meanwhile, where there is room for one more watch."""
        # What is moved in from elsewhere is told as a move with the full events only.
        observer = InotifyObserver(generate_full_events=True)
        try:
            observer.schedule(self, str(self._directory))
            observer.start()
        except OSError as error:  # watches are limited per user
            tell(f"{self._directory}: {error.strerror or error}; it is looked at instead")
            yield
            return
        try:
            yield
        finally:
            observer.stop()
            observer.join()

    def dispatch(self, event: FileSystemEvent) -> None:
        """The kernel's word, in the observer's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hear, event)

    def _hear(self, event: FileSystemEvent) -> None:
        path, to = Path(os.fsdecode(event.src_path)), Path(os.fsdecode(event.dest_path))
        match event:
            case FileClosedEvent():
                self._whole(path)
            case FileMovedEvent():
                self._writing.discard(path)
                self._whole(to)
            case FileCreatedEvent() if _is_link(path):
                self._whole(path)
            case FileCreatedEvent() | FileModifiedEvent():
                self._writing.add(path)
            case FileDeletedEvent():
                self._writing.discard(path)

    def _whole(self, path: Path) -> None:
        self._writing.discard(path)
        if path.parent == self._directory and self._counts(path):
            self._written[path] = None
            self.came.set()

    def _counts(self, path: Path) -> bool:
        return path.suffix.lower() in self._suffixes and not path.name.startswith(".")


async def _look(arrivals: _Arrivals, look_s: float, tell: Callable[[str], None]) -> None:
    """Look again and again. A folder that is gone may come back: a disk, a share."""
    lost, took_s = False, 0.0
    while True:
        await asyncio.sleep(max(look_s, _RARELY * took_s))
        begin = time.monotonic()
        try:
            arrivals.look(await asyncio.to_thread(arrivals.scan))
            lost = False
        except OSError as error:
            if not lost:
                tell(f"the folder cannot be read now: {error}")
            lost = True
        took_s = time.monotonic() - begin


def _mark(path: Path) -> _Mark | None:
    """None where there is nothing to read."""
    try:
        status = path.stat()
    except OSError:  # gone again, or a link that leads nowhere
        return None
    if not path.is_file() or not status.st_size:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_link(path: Path) -> bool:
    """Made whole, of a file that was there before: nobody closes it."""
    try:
        return path.is_symlink() or path.stat().st_nlink > 1
    except OSError:
        return False
