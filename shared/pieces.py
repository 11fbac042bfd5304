"""What is given away of blobs: pieces, read from the disk once for all who ask at about the same time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from shared.errors import ArtifactError
from shared.messages.artifact import PIECE_BYTES, Piece, Want
from shared.packing import pack

SHELF_BYTES = 16 * 1024 * 1024
"""Nodes that load the same model at the same time ask for the same pieces within a moment; one that is so
far behind the others reads again, most likely from the kernel's page cache."""


class BlobSource(Protocol):
    """Where the blobs that are served come from; `ArtifactStore` is one."""

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """The blob's size and up to `length` bytes from `offset`; ArtifactError without it."""


class MemoryBlobs:
    """Blobs in memory by digest: what a command uploads."""

    def __init__(self, blobs: Mapping[str, bytes]) -> None:
        self._blobs = blobs

    def read(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """See `BlobSource`."""
        blob = self._blobs.get(digest)
        if blob is None:
            raise ArtifactError(f"no blob {digest}", expected="a blob that is here", got=digest)
        return len(blob), blob[offset : offset + length]


class PieceShelf:
    """Pieces out of blocks of `PIECE_BYTES`, of which the last `most_bytes` stay in memory.

    Who asks for a block that is being read waits for it. Used in one event loop; files are read, and pieces
    hashed and packed, in threads.
    """

    def __init__(self, source: BlobSource, most_bytes: int = SHELF_BYTES) -> None:
        self.reads = 0
        """Blocks read from the source so far."""
        self._source = source
        self._most_blocks = max(1, most_bytes // PIECE_BYTES)
        self._blocks: OrderedDict[tuple[str, int], asyncio.Task[tuple[int, bytes]]] = OrderedDict()

    def clear(self) -> None:
        """Read everything anew."""
        self._blocks.clear()

    async def piece(self, want: Want) -> Piece:
        """The piece that is wanted, packed where that is worth it.

        Raises:
            ArtifactError: there is no such blob, or the blob has no such offset.
            OSError: it cannot be read.
        """
        first = want.offset - want.offset % PIECE_BYTES
        size, parts = 0, []
        for start in range(first, max(first + 1, want.offset + want.length), PIECE_BYTES):
            size, block = await self._block(want.digest, start)
            begin = max(0, want.offset - start)
            parts.append(memoryview(block)[begin : want.offset + want.length - start])
            if start + PIECE_BYTES >= size:
                break
        return await asyncio.to_thread(_made, want, size, parts)

    async def _block(self, digest: str, start: int) -> tuple[int, bytes]:
        key = (digest, start)
        reading = self._blocks.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read(digest, start), name=f"read {digest[:12]}")
            reading.add_done_callback(partial(self._ended, key))
            self._blocks[key] = reading
            if len(self._blocks) > self._most_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return await asyncio.shield(reading)  # one of several who wait may be called off

    def _ended(self, key: tuple[str, int], reading: asyncio.Task[tuple[int, bytes]]) -> None:
        """What could not be read is read anew for whoever asks next."""
        failed = reading.cancelled() or reading.exception() is not None
        if failed and self._blocks.get(key) is reading:
            del self._blocks[key]

    async def _read(self, digest: str, start: int) -> tuple[int, bytes]:
        self.reads += 1
        return await asyncio.to_thread(self._source.read, digest, start, PIECE_BYTES)


def _made(want: Want, size: int, parts: list[memoryview]) -> Piece:
    data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    packed = pack(data, want.most_ratio)
    return Piece(
        digest=want.digest,
        offset=want.offset,
        size=size,
        data=data if packed is None else memoryview(packed.data),
        sha256=memoryview(hashlib.sha256(data).digest()),
        width=0 if packed is None else packed.width,
    )
