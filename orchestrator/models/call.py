"""How a torch module is called: what it is traced with, and what its own answers are had with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Call:
    """How a module is called: inputs by position, or all of them by keyword."""

    args: tuple[torch.Tensor, ...] = ()
    kwargs: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, example: torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]
    ) -> Call:
        """A call with one tensor, with several, or with several by name."""
        if isinstance(example, Mapping):
            return cls(kwargs=example)
        return cls(example if isinstance(example, tuple) else (example,))

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Call:
        """The same call with other tensors, given by the names of the graph's inputs, in their order."""
        if self.kwargs:
            return Call(kwargs=tensors)
        return Call(tuple(tensors.values()))

    def copied(self) -> Call:
        """With copies: a module may write to its input."""
        return Call(
            tuple(tensor.clone() for tensor in self.args),
            {name: tensor.clone() for name, tensor in self.kwargs.items()},
        )

    def run(self, module: torch.nn.Module) -> Any:
        """What `module` gives for it."""
        return module(*self.args, **self.kwargs)
