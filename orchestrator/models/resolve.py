"""A source to an imported model, whatever its kind. On the operator's machine only.

The orchestrator is given graphs and weights by digest; it opens no file and imports no factory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import assert_never

from orchestrator.models.factory import FactoryModel
from orchestrator.models.importer import ImportedModel, import_torchvision
from orchestrator.models.source import ModelSource, SourceKind
from shared.errors import ModelError
from shared.graph import Kernels

Import = Callable[[Kernels], ImportedModel]
"""The model for the kernels that it may be computed with; a second call for the same costs nothing."""


def open_source(source: ModelSource, level: str = "O1") -> Import:
    """What imports `source` at an optimisation level. A factory is called here, once.

    Raises:
        ModelError: it cannot be found, read, made, or called; the function that is returned raises it for
            what cannot be traced, and for weights that cannot be had or do not fit.
    """
    match source.kind:
        case SourceKind.TORCHVISION:
            return functools.cache(
                lambda kernels: import_torchvision(
                    source.reference, source.weights, level, kernels=kernels
                )
            )
        case SourceKind.FACTORY:
            made = FactoryModel.make(source)
            return functools.cache(lambda kernels: made.imported(level, kernels))
        case SourceKind.ONNX | SourceKind.EXPORTED:
            raise ModelError(f"{source.reference}: {source.kind} files are not read yet")
        case _ as other:
            assert_never(other)
