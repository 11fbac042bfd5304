"""Artifacts: content-addressed blobs, moved piece by piece at the asker's pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from shared.messages import Count, Digest, Name, Ratio, Version

PIECE_BYTES = 256 * 1024
LARGEST_PIECE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Asks for `[offset, offset + length)` of a blob, to be sent to `reply`.

    It may come packed where that makes it at most `most_ratio` of its bytes; 0: as it is.
    """

    digest: Digest
    offset: Count
    length: Annotated[int, Meta(ge=1, le=LARGEST_PIECE_BYTES)]
    reply: Name
    most_ratio: Ratio = 0.0
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of a blob of `size` bytes; `sha256` is of those bytes. `error` instead: there is none.

    `width` 0: `data` are the bytes themselves; else they are zstd of them, after the bytes of each element
    of `width` bytes were put apart: all first ones, all second ones, and so on.
    """

    digest: Digest
    offset: Count
    size: Count
    data: memoryview
    sha256: memoryview
    width: Count = 0
    error: str = ""
    v: Version = 1
