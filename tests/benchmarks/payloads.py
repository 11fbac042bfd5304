"""What the benchmarks send: MobileNetV2's activations, and the inputs of clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import deploy
from shared.client.inputs import encode_input
from shared.codec import encode_msgpack
from shared.messages.job import Activation, StageTime
from shared.tensor import Array, to_wire

PHOTO = Path(deploy.__file__).parent / "photo" / "cat.jpg"

CUTS: Mapping[str, tuple[int, int, int, int]] = {
    "31 KB": (1, 160, 7, 7),
    "50 KB": (1, 64, 14, 14),
    "300 KB": (1, 24, 56, 56),
}
"""Activations at three of MobileNetV2's cuts: late, middle, early."""
NAME = "x"


def activation_array(cut: str) -> Array:
    """Float32 [N, C, H, W] in channels-last memory, as the torch runtime hands it over."""
    n, c, h, w = CUTS[cut]
    values = np.random.default_rng(0).standard_normal((n, h, w, c), np.float32)
    return values.transpose(0, 3, 1, 2)


def encode_activation(array: Array) -> bytes | bytearray:
    """`array` as a stage sends it to the next, with the trace that it has by then."""
    wire = to_wire(array)
    return encode_msgpack(
        Activation(
            job="0123456789abcdef0123456789abcdef",
            item=0,
            attempt=0,
            tensors={NAME: wire},
            trace=[StageTime(stage=0, node="agent-1", queue_s=1e-3, compute_s=0.01, cpu_s=0.005)],
        ),
        # As edge_agent/stage.py sizes its buffer, which the codec then never has to grow.
        1024 + 128 + wire.data.nbytes + 128,
    )


def tensor_input(shape: tuple[int, ...] = (1, 3, 224, 224)) -> bytes:
    """A job's payload: a float32 tensor in msgpack, encoded once."""
    return encode_input(np.random.default_rng(0).standard_normal(shape, np.float32)).data


def jpeg_input() -> bytes:
    """A job's payload: a photograph of 47 KB."""
    return PHOTO.read_bytes()
