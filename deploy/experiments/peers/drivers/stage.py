"""A stage of the model for the peers that run PyTorch, as its documentation says to run one on a CPU.

BatchNorm folded into the convolutions, channels-last, `inference_mode`, one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deploy.experiments.peers.drivers.lines import Array, Setup

_NHWC, _NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class ChannelsLast(torch.nn.Module):
    """A stage whose images arrive and leave as [N, H, W, C], except the model's own input.

    That is the memory of a channels-last tensor as it lies: nothing is copied to send one, and nothing
    that sends tensors must know of strides.
    """

    def __init__(self, module: torch.nn.Module, *, first: bool) -> None:
        super().__init__()
        self.module = module
        self.first = first

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Outputs as contiguous tensors."""
        if self.first:
            inputs = tuple(one.contiguous(memory_format=torch.channels_last) for one in inputs)
        else:
            inputs = tuple(one.permute(_NCHW) if one.dim() == 4 else one for one in inputs)
        outputs = self.module(*inputs)
        if isinstance(outputs, tuple):
            return tuple(_plain(one) for one in outputs)
        return _plain(outputs)


def _plain(output: torch.Tensor) -> torch.Tensor:
    return output.permute(_NHWC).contiguous() if output.dim() == 4 else output


def load_stage(setup: Setup, index: int) -> ChannelsLast:
    """Load a stage. Its file is one that `export` wrote on this machine, so it may be unpickled."""
    torch.set_num_threads(1)
    module = torch.load(setup.stage_file(index), weights_only=False)
    stage = ChannelsLast(module, first=index == 0)
    stage.eval()
    return stage


class ArrayStage:
    """The same with NumPy arrays on both sides, for peers that carry objects of any kind."""

    def __init__(self, setup: Setup, index: int) -> None:
        self._module = load_stage(setup, index)

    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """The outputs that the next stage takes."""
        with torch.inference_mode():
            # Some peers hand out read-only memory, which torch warns of; a stage does not write to it.
            outputs: Any = self._module(*(torch.from_numpy(_writable(one)) for one in arrays))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(one.numpy() for one in outputs)


def _writable(array: Array) -> Array:
    return array if array.flags.writeable else np.array(array)
