"""A model that takes what MobileNetV2 takes and computes next to nothing, in as many stages as asked for.

With it the orchestrator, the broker and the client are what limits the rate, not the stages.
"""

from __future__ import annotations

import asyncio
import hashlib
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
from shared.transfer import MemoryBlobs
from shared.transform import IMAGENET
from tests.benchmarks.context import Context

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


def _imported() -> ImportedModel:
    torch.manual_seed(0)
    return import_module(
        Tiny(), torch.zeros(1, 3, 224, 224), NAME, weights=WeightsMark.NONE, preprocess=IMAGENET
    )


async def serve_tiny(context: Context, cluster: LocalCluster, stages: int) -> None:
    """Have the model served in `stages` stages.

    Raises:
        JobError: the orchestrator could not do it; says why.
    """
    model = await asyncio.to_thread(_imported)
    blobs = dict(model.blobs)
    package = ModelPackage(
        manifest=replace(model.manifest, model=NAME),
        # Invented, and alike: where this model is cut does not matter.
        measured={"torch": Measured(block_seconds=(_BLOCK_S,) * len(model.manifest.blocks))},
        weights=tuple(Blob(digest=digest, size=len(data)) for digest, data in blobs.items()),
    )
    data = package.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    async with connect(cluster.url, cluster.root, MemoryBlobs(blobs)) as operator:
        request = ServeRequest(
            transaction=new_transaction(),
            model=NAME,
            manifest=Blob(digest=digest, size=len(data)),
            blobs=list(package.weights),
            provider=operator.peer,
            options=ServeOptions(min_stages=stages, max_stages=stages),
            timeout_s=_TIMEOUT_S,
        )
        await operator.ask(request, _TIMEOUT_S, lambda line: context.say(f"  {line}"))
