"""A blob on its way into an `ArtifactStore`: resumed, hashed while it comes, and put in its place when whole.

Also what a disk that refuses is called, here and there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from pathlib import Path
from typing import IO, Protocol

from shared.errors import ArtifactError, StorageFullError

READ_BYTES = 1024 * 1024
SPARE_BYTES = 256 * 1024
"""Of the disk, left to whoever else writes a word to it: our own small files lie there as well."""


class Home(Protocol):
    """The store that a part is of."""

    def admit(self, source: Path, digest: str) -> Path:
        """Put a verified file in a blob's place."""

    def ended(self, part: Part) -> None:
        """A part comes no further."""


class Part:
    """A blob on its way in: bytes are appended in order and hashed as they come.

    `offset` is how many bytes are there. Owned by one caller; not safe for several threads at once.
    """

    def __init__(self, home: Home, digest: str, size: int, file: IO[bytes]) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self._home = home
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
            raise storage_error(self.path, self.size, error) from error
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
            target = self._home.admit(self.path, self.digest)
        except OSError as error:
            self.discard()
            raise storage_error(self.path, self.size, error) from error
        self._home.ended(self)
        self._file.close()
        return target

    def keep(self) -> None:
        """Stop here; a later `open_part` goes on from `offset`."""
        self._home.ended(self)
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


def storage_error(path: Path, size: int, error: OSError) -> ArtifactError:
    """What to raise where `size` bytes could not be stored at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((p for p in path.parents if p.is_dir()), Path("/"))
        return disk_full(folder, size)
    return ArtifactError(f"cannot store a blob at {path}: {error}")


def disk_full(folder: Path, needed_bytes: int) -> StorageFullError:
    """What to raise where `folder` has less than that left."""
    return StorageFullError(
        f"the disk is full at {folder}",
        expected=f"{needed_bytes + SPARE_BYTES} bytes free",
        got=f"{shutil.disk_usage(folder).free} bytes",
        on_disk=True,
    )
