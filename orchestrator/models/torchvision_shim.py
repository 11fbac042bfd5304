"""Import this before torchvision.

On x86 the torchvision wheel is a CUDA build. Beside a CPU-only torch its operator library cannot be loaded,
and `import torchvision` fails with `operator torchvision::nms does not exist`, because it registers fake
kernels for operators nobody declared. Classification models use none of them, so declaring the schemas is
enough. Where the library does load (CPU wheels, 64-bit Arm), torchvision itself loads it first and the
schemas are there already: nothing is declared twice.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _load_operators() -> None:
    """Load torchvision's own operators as it would, so that only what is really absent is declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            # Built for a CUDA that is not here: the case this module exists for.
            continue


def _declare_missing() -> torch.library.Library | None:
    missing = [
        schema
        for schema in _SCHEMAS
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0])
    ]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        library.define(schema)
    return library


_load_operators()
# Held for the life of the process: the schemas go when the object does.
LIBRARY = _declare_missing()
