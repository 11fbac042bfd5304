"""Files that others read while they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    Args:
        path: in a folder that exists.
        data: all of it.
        mode: who may read it; never more, not for a moment.
        durable: on the disk when this returns, as a machine that loses power needs it. A process that is
            killed does not, and the disk may take 100 ms.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
