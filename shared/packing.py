"""Pieces of blobs in fewer bytes on the wire, where that is worth their asker's while.

Lossless: the bytes of each element are put apart (`shared.compression`), and zstd takes them. Float32
weights come to 0.88 to 0.9 of their bytes so, a stage's graph, which is JSON, to a tenth. The asker knows its
link and what unpacking costs it, and says at which ratio it breaks even; whoever has the blob knows the
bytes: it tries a sample, and packs where that ratio is met.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from functools import cache

import numpy as np

from shared.compression import planes, together
from shared.errors import ProtocolError

WIDTHS = (1, 4)
"""Bytes of an element, as far as it is tried: text and int8 weights; float32 weights."""
UNPACK_S_PER_BYTE = 1.5e-9
"""Until it is measured; on one x86 server core it is 1 to 2."""
UNKNOWN_LINK_BYTES_PER_S = 100e6
"""A link that nobody has measured is not taken to be thin."""
_LEVEL = 1
_SAMPLE_BYTES = 16 * 1024
_MARGIN = 3.0
"""Packing takes its time as well, somewhere else; and what costs as much as it saves is not worth doing."""
_LEAST_RATIO = 0.25
"""What comes to so little is cheaper to handle at any speed of the link: graphs, not weights."""
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes in zstd; `width` is of the elements whose bytes were put apart."""

    data: bytes
    width: int


@cache
def can_pack() -> bool:
    """Whether zstandard is installed here; without it everything travels as it is.

    Asked before the first piece, it imports it: no piece waits for that.
    """
    try:
        importlib.import_module("zstandard")
    except ModuleNotFoundError:
        return False
    return True


def break_even_ratio(bytes_per_s: float | None, unpack_s_per_byte: float) -> float:
    """The largest share of its bytes at which a packed piece is worth having.

    Args:
        bytes_per_s: of the link to here; None: not known.
        unpack_s_per_byte: what unpacking a byte takes here.
    """
    link = UNKNOWN_LINK_BYTES_PER_S if bytes_per_s is None else bytes_per_s
    return max(_LEAST_RATIO, 1.0 - _MARGIN * unpack_s_per_byte * link)


def pack(data: bytes | memoryview, most_ratio: float) -> Packed | None:
    """`data` packed, where a sample of it and then all of it come to `most_ratio` at most; else None."""
    if not data or most_ratio <= 0.0 or not can_pack():
        return None
    middle = len(data) // 2 // max(WIDTHS) * max(WIDTHS)
    sample = data if len(data) <= _SAMPLE_BYTES else data[middle : middle + _SAMPLE_BYTES]
    tried = {width: len(_squeeze(sample, width)) for width in WIDTHS if len(sample) % width == 0}
    width = min(tried, key=tried.__getitem__)
    if len(data) % width or tried[width] > most_ratio * len(sample):
        return None
    packed = _squeeze(data, width)
    return Packed(packed, width) if len(packed) <= most_ratio * len(data) else None


def unpack(data: bytes | memoryview, width: int, most_bytes: int) -> memoryview:
    """What was packed.

    Args:
        data: as it came.
        width: as it came.
        most_bytes: what it may come to: that is looked at before anything is made.

    Raises:
        ProtocolError: it is damaged, claims to be larger than it may be, or cannot be unpacked here.
    """
    if not can_pack():
        raise ProtocolError("a packed piece came unasked", expected="one as it is")
    if width not in WIDTHS:
        raise ProtocolError(
            "a packed piece of unknown form", expected=f"width {WIDTHS}", got=str(width)
        )
    import zstandard

    try:
        claimed = zstandard.frame_content_size(data)
        if not 0 <= claimed <= most_bytes or claimed % width:
            raise ProtocolError(
                "a packed piece claims another size than it may have",
                expected=f"at most {most_bytes} bytes",
                got=f"{claimed} bytes",
            )
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=claimed)
    except zstandard.ZstdError as error:
        raise ProtocolError("a packed piece is damaged", expected="zstd", got=str(error)) from error
    return memoryview(_joined(raw, width))


def _joined(raw: bytes, width: int) -> bytes:
    if width == 1:
        return raw
    joined: bytes = together(np.frombuffer(raw, np.uint8), np.dtype(f"<u{width}")).tobytes()
    return joined


def _squeeze(data: bytes | memoryview, width: int) -> bytes:
    import zstandard

    compressor = getattr(_local, "compressor", None)
    if compressor is None:  # its state takes longer to make than a piece takes to pack
        compressor = _local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    if width == 1:
        whole: bytes = compressor.compress(data)
        return whole
    writer = compressor.compressobj(size=len(data))
    parts = []
    # A block for each: exponents among mantissas would hardly be seen in a piece that is small.
    for plane in planes(np.frombuffer(data, f"<u{width}")).reshape(width, -1):
        parts += [writer.compress(plane.data), writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join((*parts, writer.flush()))
