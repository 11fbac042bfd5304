"""Weights out of safetensors blobs, shared between the stages that are loaded at the same time.

A new generation is loaded while the old one still runs, often with the same blocks. Tensors are therefore
kept in a weak cache by blob digest, key and form (as stored, channels-last, packed for one convolution):
the second stage gets the first one's, and the last one to let go frees them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from weakref import WeakValueDictionary

import safetensors
import safetensors.torch
import torch

from edge_agent.runtimes import Blobs
from shared.errors import StageError
from shared.graph import StageGraph

_cache: WeakValueDictionary[tuple[str, str, Hashable], torch.Tensor] = WeakValueDictionary()


class StageWeights:
    """The weights of one stage while it is being loaded."""

    def __init__(self, graph: StageGraph, blobs: Blobs) -> None:
        self._graph = graph
        self._blobs = blobs
        self._open: dict[str, Callable[[str], torch.Tensor]] = {}

    def get(
        self,
        name: str,
        form: Hashable = "stored",
        make: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The weight `name`, in the form that `make` gives it; equal `form` means equal result.

        Raises:
            StageError: its blob is missing or damaged, or it is not of the declared dtype and shape.
        """
        weight = self._graph.weights[name]
        key = (weight.blob, weight.key, form)
        tensor = _cache.get(key)
        if tensor is None:
            tensor = self._read(name) if make is None else make(self._read(name))
            _cache[key] = tensor
        elif form == "stored":
            self._check(name, tensor)
        return tensor

    def _read(self, name: str) -> torch.Tensor:
        weight = self._graph.weights[name]
        if weight.blob not in self._open:
            self._open[weight.blob] = self._open_blob(weight.blob)
        try:
            tensor = self._open[weight.blob](weight.key)
        except (safetensors.SafetensorError, KeyError) as error:
            raise StageError(
                f"blob {weight.blob[:12]} of stage {self._graph.name}",
                expected=f"a weight {weight.key!r}",
                got=str(error)[:200],
            ) from error
        self._check(name, tensor)
        return tensor

    def _open_blob(self, digest: str) -> Callable[[str], torch.Tensor]:
        blob = self._blobs.get(digest)
        if blob is None:
            raise StageError(
                f"weights of stage {self._graph.name}",
                expected=f"blob {digest[:12]}",
                got=f"{len(self._blobs)} other blobs",
            )
        try:
            if isinstance(blob, Path):
                # Memory-mapped: pages are read as they are used and belong to the page cache.
                reader: Callable[[str], torch.Tensor]
                reader = safetensors.safe_open(blob, framework="pt").get_tensor
                return reader
            return safetensors.torch.load(bytes(blob)).__getitem__
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise StageError(
                f"blob {digest[:12]} of stage {self._graph.name}",
                expected="safetensors",
                got=str(error)[:200],
            ) from error

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        spec = self._graph.weights[name].spec
        got = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        if got != str(spec):
            raise StageError(
                f"weight {name!r} of stage {self._graph.name}", expected=str(spec), got=got
            )
