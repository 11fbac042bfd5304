"""Weights out of safetensors blobs as NumPy views, without a copy and without the safetensors package.

A file is memory-mapped: pages are read as they are used, belong to the page cache, and are shared by all
stages that are loaded from the same file. The format is a length, a JSON header and the tensors' bytes
(https://huggingface.co/docs/safetensors); everything the header says is checked before it is believed.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.runtimes import Array, Blobs
from shared.codec import decode_json
from shared.errors import ProtocolError, StageError
from shared.graph import StageGraph, TensorSpec

_LENGTH_BYTES = 8
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The format's names of our dtypes; others cannot be declared by a graph."""


class StageWeights:
    """The weights of one stage while it is being loaded."""

    def __init__(self, graph: StageGraph, blobs: Blobs) -> None:
        self._graph = graph
        self._blobs = blobs
        self._open: dict[str, tuple[dict[str, Any], memoryview]] = {}
        self._maps: list[mmap.mmap] = []

    def get(self, name: str) -> Array:
        """The weight `name`: a read-only view that keeps its blob alive.

        Raises:
            StageError: its blob is missing or damaged, or it is not of the declared dtype and shape.
        """
        weight = self._graph.weights[name]
        if weight.blob not in self._open:
            self._open[weight.blob] = self._read(weight.blob)
        header, data = self._open[weight.blob]
        entry = header.get(weight.key)
        if not isinstance(entry, dict):
            raise StageError(
                f"blob {weight.blob[:12]} of stage {self._graph.name}",
                expected=f"a weight {weight.key!r}",
                got=", ".join(sorted(header))[:200] or "none",
            )
        try:
            spec, start, stop = _entry(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(weight.blob, f"{weight.key!r}: {entry}") from error
        if spec != weight.spec:
            raise StageError(
                f"weight {name!r} of stage {self._graph.name}",
                expected=str(weight.spec),
                got=str(spec),
            )
        if not 0 <= start <= stop <= len(data) or stop - start != spec.nbytes:
            raise self._damaged(weight.blob, f"{weight.key!r} at [{start}, {stop})")
        array: Array = np.frombuffer(data[start:stop], np.dtype(spec.dtype)).reshape(spec.shape)
        # The writers align tensors; the format alone does not promise it.
        return array if array.flags.aligned else array.copy()

    def let_go(self) -> None:
        """Drop the pages of mapped blobs from this process; what is read again comes from the page cache.

        For when most weights were copied into another form, and the stored one is hardly looked at.
        """
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def _read(self, digest: str) -> tuple[dict[str, Any], memoryview]:
        """A blob's header, and the bytes behind it."""
        blob = self._blobs.get(digest)
        if blob is None:
            raise StageError(
                f"weights of stage {self._graph.name}",
                expected=f"blob {digest[:12]}",
                got=f"{len(self._blobs)} other blobs",
            )
        try:
            data = memoryview(self._mapped(blob) if isinstance(blob, Path) else bytes(blob))
            size = int.from_bytes(data[:_LENGTH_BYTES], "little")
            end = _LENGTH_BYTES + size
            if not 0 < size <= len(data) - _LENGTH_BYTES:
                raise self._damaged(digest, f"a header of {size} bytes in {len(data)}")
            header = decode_json(bytes(data[_LENGTH_BYTES:end]), dict[str, Any])
        except (OSError, ValueError, ProtocolError) as error:
            raise self._damaged(digest, str(error)) from error
        return header, data[end:]

    def _mapped(self, path: Path) -> mmap.mmap:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return mapped

    def _damaged(self, digest: str, got: str) -> StageError:
        return StageError(
            f"blob {digest[:12]} of stage {self._graph.name}",
            expected="safetensors",
            got=got[:200],
        )


def _entry(entry: dict[str, Any]) -> tuple[TensorSpec, int, int]:
    """Form and place of one tensor."""
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int for number in (start, stop, *shape)) or math.prod(shape) < 0:
        raise TypeError
    return TensorSpec(_DTYPES.get(entry["dtype"], str(entry["dtype"])), shape), start, stop
