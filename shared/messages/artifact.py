"""Artifacts: content-addressed blobs, moved piece by piece at the asker's pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from shared.messages import Count, Digest, Name, Version

PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Asks for `[offset, offset + length)` of a blob, to be sent to `reply`."""

    digest: Digest
    offset: Count
    length: Annotated[int, Meta(ge=1, le=4 * 1024 * 1024)]
    reply: Name
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of a blob of `size` bytes; `sha256` is of `data`. `error` instead: there is none."""

    digest: Digest
    offset: Count
    size: Count
    data: memoryview
    sha256: memoryview
    error: str = ""
    v: Version = 1
