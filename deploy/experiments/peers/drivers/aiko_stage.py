"""A stage as an element of an Aiko Services pipeline; the process is `aiko_pipeline create`.

Tensors travel as text, as everything does between its pipelines: base64 after a space, which has Aiko write
it with its length before it. Without the space its parser would read it character by character.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Any

import aiko_services as aiko
import numpy as np

from deploy.experiments.peers.drivers.lines import Array, Setup

SETUP, INDEX = "PEERS_SETUP", "PEERS_STAGE"
"""Variables that tell the element what it is; a pipeline's definition has strings only."""


def to_text(arrays: Sequence[Array]) -> str:
    """Tensors with their shapes, in one word that begins with a space."""
    parts = [
        f"{'x'.join(map(str, array.shape))},{base64.b64encode(array.tobytes()).decode()}"
        for array in arrays
    ]
    return " " + ";".join(parts)


def from_text(text: str) -> tuple[Array, ...]:
    """What `to_text` wrote."""
    arrays = []
    for part in text.strip().split(";"):
        shape, _, data = part.partition(",")
        flat = np.frombuffer(bytearray(base64.b64decode(data)), dtype=np.float32)
        arrays.append(flat.reshape([int(size) for size in shape.split("x")]))
    return tuple(arrays)


class Stage(aiko.PipelineElement):
    """The element."""

    def __init__(self, context: Any) -> None:
        from deploy.experiments.peers.drivers.stage import ArrayStage

        context.get_implementation("PipelineElement").__init__(self, context)
        self._stage = ArrayStage(Setup.parse(os.environ[SETUP]), int(os.environ[INDEX]))

    def process_frame(self, stream: Any, tensors: str) -> tuple[Any, dict[str, str]]:
        """A frame's tensors through the stage."""
        del stream
        return aiko.StreamEvent.OKAY, {"tensors": to_text(self._stage.run(from_text(tensors)))}
