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
import errno
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

from shared.errors import ArtifactError, StorageFullError
from shared.ids import DIGEST

READ_BYTES = 1024 * 1024
SPARE_BYTES = 256 * 1024
"""Of the disk, left to whoever else writes a word to it: our own small files lie there as well."""
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


class Part:
    """A blob on its way in: bytes are appended in order and hashed as they come.

    `offset` is how many bytes are there. Owned by one caller; not safe for several threads at once.
    """

    def __init__(self, store: ArtifactStore, digest: str, size: int, file: IO[bytes]) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self._store = store
        self._file = file
        self.path = Path(file.name)
        self._hash = hashlib.sha256()
        while block := file.read(READ_BYTES):
            self._hash.update(block)
            self.offset += len(block)
        if self.offset > size:
            self.restart()

    @property
    def left_bytes(self) -> int:
        """What is still to come."""
        return self.size - self.offset

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`.

        Raises:
            ArtifactError: more than `size` bytes.
            StorageFullError: the disk is full; then the part is removed.
        """
        if self.offset + len(data) > self.size:
            raise ArtifactError(
                f"blob {self.digest[:12]} is longer than it should be",
                expected=f"{self.size} bytes",
                got=f"{self.offset + len(data)} bytes",
            )
        try:
            self._file.write(data)
        except OSError as error:
            self.discard()
            raise _storage_error(self.path, self.size, error) from error
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Throw away what is there and begin at offset 0."""
        self.truncate(0)

    def truncate(self, offset: int) -> None:
        """Keep the first `offset` bytes only."""
        self._file.seek(0)
        self._hash = hashlib.sha256(self._file.read(offset))
        self.offset = self._file.truncate(offset)

    @property
    def complete(self) -> bool:
        """Whether all bytes are there and hash to the digest."""
        return self.offset == self.size and self._hash.hexdigest() == self.digest

    def commit(self) -> Path:
        """Put the finished blob in its place.

        Raises:
            ArtifactError: the bytes are not those of the digest, or the disk is full.
        """
        if not self.complete:
            raise ArtifactError(
                "a blob that was received is damaged",
                expected=f"{self.size} bytes with SHA-256 {self.digest}",
                got=f"{self.offset} bytes with {self._hash.hexdigest()}",
            )
        try:
            # The flush may meet the full disk that a buffered write did not.
            self._file.flush()
            target = self._store._admit(self.path, self.digest)  # noqa: SLF001
        except OSError as error:
            self.discard()
            raise _storage_error(self.path, self.size, error) from error
        self._store._ended(self)  # noqa: SLF001
        self._file.close()
        return target

    def keep(self) -> None:
        """Stop here; a later `open_part` goes on from `offset`."""
        self._store._ended(self)  # noqa: SLF001
        if self.path.suffix == ".tmp":
            self.path.unlink(missing_ok=True)  # no later one would find it
        with contextlib.suppress(
            OSError
        ):  # a full disk loses the tail: the next one resumes earlier
            self._file.close()

    def discard(self) -> None:
        """Stop and remove what is there."""
        self.path.unlink(missing_ok=True)
        self.keep()


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
                self._admit(Path(name), digest)
            except OSError as error:
                if name:
                    Path(name).unlink(missing_ok=True)
                raise _storage_error(self._file(digest), len(data), error) from error
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
            raise _storage_error(path, size, error) from error
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

    def _admit(self, source: Path, digest: str) -> Path:
        target = self._file(digest)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        status = target.stat()
        self._verified[digest] = _mark(status)
        self._counted.bytes += status.st_size
        return target

    def _ended(self, part: Part) -> None:
        with self._lock:
            if part in self._open:
                self._open.remove(part)
                self._counted.bytes += part.offset

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
            raise _disk_full(self.directory, to_come)

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


def _storage_error(path: Path, size: int, error: OSError) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((p for p in path.parents if p.is_dir()), Path("/"))
        return _disk_full(folder, size)
    return ArtifactError(f"cannot store a blob at {path}: {error}")


def _disk_full(folder: Path, needed_bytes: int) -> StorageFullError:
    return StorageFullError(
        f"the disk is full at {folder}",
        expected=f"{needed_bytes + SPARE_BYTES} bytes free",
        got=f"{shutil.disk_usage(folder).free} bytes",
        on_disk=True,
    )
