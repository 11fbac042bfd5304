"""A directory of blobs, each named by the SHA-256 of its bytes; bounded, and shared by processes.

::

    ab/ab12...      a blob: written elsewhere, verified while written, then renamed into place
    part/ab12....part    what an interrupted transfer has so far, to resume
    part/*.tmp      a write in progress; left behind only by a crash

A blob appears by `rename`, so no reader ever sees half of one. There is no fsync: after a power cut a file
may be damaged or empty, but what is damaged is found by its digest at the first use in each process, and
fetched again; waiting for the disk on every blob would cost a device with an SD card seconds for nothing.
The same holds for a file that somebody writes to: its time of modification says that it has to be read again
(when it was used last is its time of access).

What is on its way in counts as if it were all there: against `max_bytes` and against what the disk has left.
Where either is short the least recently used blobs go first, and then what transfers left behind.

Two processes may share one directory: a blob in use holds a shared `flock`, which whoever evicts respects and
which the kernel drops when its holder dies; a `.part` file belongs to whoever holds its exclusive `flock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from shared.artifact_part import SPARE_BYTES, Part, disk_full, storage_error
from shared.errors import ArtifactError, StorageFullError
from shared.ids import DIGEST

_STALE_PART_S = 7 * 86400.0
_COUNTED_S = 30.0
"""For so long a count of the files is believed: another process may add some."""
_AMPLE = 0.9
"""Of the bound: below it the count need not be exact."""
_STALE_WRITE_S = 3600.0
"""After a crash: nobody goes on with what `put` was writing."""


@dataclass(slots=True)
class _Counted:
    """What was in the directory `at` the last look, and what was added since; no less than there is."""

    bytes: int = 0
    at: float = float("-inf")


class ArtifactStore:
    """Blobs below `directory`, at most `max_bytes` of them; the least recently used go first.

    All methods may be called from any thread; they read and write files, so not in an event loop.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Make the directory. Raises ArtifactError when that cannot be done."""
        self.directory = directory
        self.max_bytes = max_bytes
        self._parts = directory / "part"
        self._lock = threading.RLock()
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._pins: dict[str, tuple[int, int]] = {}  # digest -> (file descriptor, count)
        self._open: set[Part] = set()
        self._counted = _Counted()
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._remove_stale_parts()
        except OSError as error:
            raise ArtifactError(f"cache directory {directory} cannot be used: {error}") from error

    def has(self, digest: str) -> bool:
        """Whether a blob of that name is here. Cheap: its bytes are checked by `path`."""
        return self._file(digest).is_file()

    def path(self, digest: str) -> Path | None:
        """The blob's file, or None when it is not here.

        The first call in this process, and the first after the file was written to, reads and checks the
        bytes; a damaged file is removed and counts as not here. Marks the blob as used now.
        """
        path = self._file(digest)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        mark = _mark(status)
        if self._verified.get(digest) != mark:
            try:
                good = _digest_of(path) == digest
            except FileNotFoundError:
                return None
            if not good:
                path.unlink(missing_ok=True)
                return None
            self._verified[digest] = mark
        with contextlib.suppress(OSError):  # evicted by another process just now, or read-only
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return path

    def put(self, data: bytes) -> str:
        """Store `data`, and return its digest.

        Raises:
            StorageFullError: it does not fit beside what is in use, or the disk is full.
            ArtifactError: it cannot be stored for another reason.
        """
        digest = hashlib.sha256(data).hexdigest()
        if self.path(digest) is not None:
            return digest
        with self._lock:
            self._make_room(len(data))
            name = ""
            try:
                with tempfile.NamedTemporaryFile(
                    dir=self._parts, suffix=".tmp", delete=False
                ) as file:
                    name = file.name
                    file.write(data)
                self.admit(Path(name), digest)
            except OSError as error:
                if name:
                    Path(name).unlink(missing_ok=True)
                raise storage_error(self._file(digest), len(data), error) from error
        return digest

    def expect(self, blobs: Mapping[str, int]) -> None:
        """Make room for all of `blobs` (sizes by digest) that are not here, before the first of them comes.

        Those that are here count as used now, so that they are not what makes room.

        Raises:
            StorageFullError: they do not fit together beside what is in use, or the disk is full.
        """
        missing = [digest for digest in blobs if self.path(digest) is None]
        to_come = 0
        for digest in missing:
            begun = self._parts / f"{digest}.part"
            begun_bytes = begun.stat().st_size if begun.is_file() else 0
            to_come += max(0, blobs[digest] - begun_bytes)
        with self._lock:
            self._make_room(to_come)

    def open_part(self, digest: str, size: int) -> Part:
        """Begin or resume a blob of `size` bytes.

        Raises:
            StorageFullError: it does not fit beside what is in use, or the disk is full.
            ArtifactError: the disk refuses.
        """
        self._file(digest)
        path = self._parts / f"{digest}.part"
        try:
            part = Part(self, digest, size, self._open_part_file(path))
        except OSError as error:
            raise storage_error(path, size, error) from error
        with self._lock:
            self._open.add(part)
            try:
                self._make_room(0)
            except ArtifactError:
                part.keep() if part.offset else part.discard()
                raise
        return part

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """The blob's size and up to `length` of its bytes from `offset`.

        Raises:
            ArtifactError: it is not here, or `offset` lies beyond its end.
        """
        path = self.path(digest)
        if path is None:
            raise ArtifactError(f"no blob {digest}", expected="a blob that is here", got=digest)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if offset > size:
                raise ArtifactError(
                    f"blob {digest[:12]} has no such offset", expected=f"<= {size}", got=str(offset)
                )
            file.seek(offset)
            return size, file.read(length)

    def pin(self, digest: str) -> Path | None:
        """Like `path`, and keep the blob from eviction, by any process, until `unpin`. Counted."""
        with self._lock:
            path = self.path(digest)
            if path is None:
                return None
            descriptor, count = self._pins.get(digest, (-1, 0))
            if count == 0:
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    return None
                # Blocks only while another process holds it exclusively, which it does to unlink it.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if not path.exists():
                    os.close(descriptor)
                    return None
            self._pins[digest] = (descriptor, count + 1)
            return path

    def unpin(self, digest: str) -> None:
        """Take back one `pin`."""
        with self._lock:
            descriptor, count = self._pins[digest]
            if count > 1:
                self._pins[digest] = (descriptor, count - 1)
            else:
                del self._pins[digest]
                os.close(descriptor)

    @contextlib.contextmanager
    def pinned(self, digest: str) -> Iterator[Path | None]:
        """`pin` for the length of a `with`."""
        path = self.pin(digest)
        try:
            yield path
        finally:
            if path is not None:
                self.unpin(digest)

    def remove(self, digest: str) -> None:
        """Remove a blob, pinned or not. What has its file open keeps it."""
        self._file(digest).unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """Bytes of all blobs that are here."""
        return sum(size for _, size, _ in self._blobs())

    def disk_free_bytes(self) -> int | None:
        """What the disk has left for this process; None where it does not say."""
        try:
            return shutil.disk_usage(self.directory).free
        except OSError:
            return None

    def admit(self, source: Path, digest: str) -> Path:
        """Put a verified file in a blob's place; parts do.

        Raises:
            OSError: the disk refuses.
        """
        target = self._file(digest)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        status = target.stat()
        self._verified[digest] = _mark(status)
        self._counted.bytes += status.st_size
        return target

    def ended(self, part: Part) -> None:
        """A part comes no further; it says so itself."""
        with self._lock:
            if part in self._open:
                self._open.remove(part)
                self._counted.bytes += part.offset

    def close(self) -> None:
        """Let go of all pins."""
        with self._lock:
            for descriptor, _ in self._pins.values():
                os.close(descriptor)
            self._pins.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self, digest: str) -> Path:
        # The digest becomes a path: nothing but hexadecimal digits may reach the file system.
        if not DIGEST.fullmatch(digest):
            raise ArtifactError(
                "not the name of a blob", expected="64 hexadecimal digits", got=digest[:80]
            )
        return self.directory / digest[:2] / digest

    def _open_part_file(self, path: Path) -> IO[bytes]:
        while True:
            # 'a+' would ignore seek and 'r+' does not create: hence an opener of our own.
            file = open(path, "r+b", opener=_create)  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Somebody else fetches the same blob: each into its own file, and both renames do no harm.
                file.close()
                return cast(
                    IO[bytes],
                    tempfile.NamedTemporaryFile(
                        "w+b", dir=self._parts, suffix=".tmp", delete=False
                    ),
                )
            # Between our open and our lock its former owner may have renamed it into place.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
            file.close()

    def _blobs(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, size, path) of every blob."""
        for folder in os.scandir(self.directory):
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            yield from _files(folder.path)

    def _make_room(self, size: int) -> None:
        """Have room for `size` bytes beside the rest of what is on its way in; the lock is held.

        A transfer that stopped half way is worth more than a blob that nobody uses: it is still wanted.
        """
        for wanted in (size, *(part.size for part in self._open)):
            if wanted > self.max_bytes:
                raise StorageFullError(
                    "what has to be stored is larger than the whole cache",
                    expected=f"at most {self.max_bytes} bytes",
                    got=f"{wanted} bytes",
                )
        coming = size + sum(part.size for part in self._open)
        to_come = size + sum(part.left_bytes for part in self._open)
        # To look at every file for each of a hundred small blobs would take longer than to fetch them.
        is_known = time.monotonic() - self._counted.at < _COUNTED_S
        is_ample = self._counted.bytes + coming <= _AMPLE * self.max_bytes
        if is_known and is_ample and self._fits_on_disk(to_come):
            return
        open_parts = {part.path for part in self._open}
        left_behind = [
            entry
            for entry in _files(self._parts)
            if entry[2].suffix == ".part" and entry[2] not in open_parts
        ]
        evictable = [*sorted(self._blobs()), *sorted(left_behind)]
        total = sum(file_size for _, file_size, _ in evictable)
        self._counted = _Counted(total, time.monotonic())
        total += coming
        for _, file_size, path in evictable:
            if total <= self.max_bytes and self._fits_on_disk(to_come):
                return
            if self._evict(path):
                total -= file_size
                self._counted.bytes -= file_size
        if total > self.max_bytes:
            raise StorageFullError(
                "the cache is full of blobs in use",
                expected=f"{to_come} bytes free of {self.max_bytes}",
                got=f"{max(0, self.max_bytes - total + to_come)} bytes",
            )
        if not self._fits_on_disk(to_come):
            raise disk_full(self.directory, to_come)

    def _fits_on_disk(self, to_come: int) -> bool:
        free_bytes = self.disk_free_bytes()
        return free_bytes is None or free_bytes >= to_come + SPARE_BYTES

    def _evict(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        self._verified.pop(path.name, None)
        return True

    def _remove_stale_parts(self) -> None:
        now = time.time()
        for entry in os.scandir(self._parts):
            limit_s = _STALE_WRITE_S if entry.name.endswith(".tmp") else _STALE_PART_S
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < now - limit_s:
                    Path(entry.path).unlink(missing_ok=True)


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _files(folder: Path | str) -> Iterator[tuple[float, int, Path]]:
    """(last use, size, path) of the files in `folder`."""
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # evicted by another process meanwhile
            status = entry.stat()
            yield status.st_atime, status.st_size, Path(entry.path)
