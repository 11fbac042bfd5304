"""A model that takes what MobileNetV2 takes and computes next to nothing, in as many stages as asked for.

With it the orchestrator, the broker and the client are what limits the rate, not the stages.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from deploy.local import LocalCluster
from deploy.operator import connect, new_transaction
from orchestrator.models.importer import ImportedModel, import_module
from shared.manifest import WeightsMark
from shared.messages.model import ServeOptions
from shared.messages.operation import ServeRequest
from shared.messages.stage import Blob
from shared.package import Measured, ModelPackage
from shared.tensor import Array
from shared.transfer import MemoryBlobs
from shared.transform import IMAGENET

NAME = "tiny"
_BLOCK_S = 1e-4
_TIMEOUT_S = 180.0


class Tiny(nn.Module):
    """Patches of 32 x 32 pixels, three small convolutions, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 32, stride=32)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [1, 10] for an image [1, 3, 224, 224]."""
        x = torch.relu(self.patches(x))
        x = torch.relu(self.middle(x))
        x = torch.relu(self.last(x))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


def _model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def _imported() -> ImportedModel:
    return import_module(
        _model(), torch.zeros(1, 3, 224, 224), NAME, weights=WeightsMark.NONE, preprocess=IMAGENET
    )


def tiny_outputs(array: Array) -> Array:
    """What the whole model makes of an input [1, 3, 224, 224]."""
    with torch.no_grad():
        scores: Array = _model().eval()(torch.from_numpy(array)).numpy()
    return scores


async def serve_tiny(
    say: Callable[[str], None],
    cluster: LocalCluster,
    stages: int,
    *,
    name: str = NAME,
    runtime: str = "torch",
    micro_batch: int | None = None,
) -> None:
    """Have the model served under `name` in `stages` stages; `say` gets lines of progress.

    Raises:
        JobError: the orchestrator could not do it; says why.
    """
    model = await asyncio.to_thread(_imported)
    blobs = dict(model.blobs)
    package = ModelPackage(
        manifest=replace(model.manifest, model=name),
        # Invented, and alike: where this model is cut does not matter.
        measured={runtime: Measured(block_seconds=(_BLOCK_S,) * len(model.manifest.blocks))},
        weights=tuple(Blob(digest=digest, size=len(data)) for digest, data in blobs.items()),
    )
    data = package.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    async with connect(cluster.url, cluster.root, MemoryBlobs(blobs)) as operator:
        request = ServeRequest(
            transaction=new_transaction(),
            model=name,
            manifest=Blob(digest=digest, size=len(data)),
            blobs=list(package.weights),
            provider=operator.peer,
            options=ServeOptions(min_stages=stages, max_stages=stages, micro_batch=micro_batch),
            timeout_s=_TIMEOUT_S,
        )
        await operator.ask(request, _TIMEOUT_S, lambda line: say(f"  {line}"))
