"""A file of the kernel's that is read every second: opened once, read from its start each time.

Opening it and asking what kind of file it is take four times as long as reading it, and a node's telemetry
is to take less than 1 % of a device.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class KernelFile:
    """A file that the kernel writes anew for each reading, below `/proc` for one.

    Args:
        path: where it is; it may come to be there later.
        most_bytes: so many are read from its start.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._fd: int | None = None

    def read(self) -> bytes:
        """What it begins with now.

        Raises:
            OSError: it is not there, or not ours to read.
        """
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
        return os.pread(self._fd, self._most_bytes, 0)
