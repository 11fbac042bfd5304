"""A source to an imported model, whatever its kind. On the operator's machine only.

The orchestrator is given graphs and weights by digest; it opens no file and imports no factory. What reads a
kind of source is imported when one comes: none needs the others' libraries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, assert_never

from orchestrator.models.source import ModelSource, SourceKind
from shared.errors import ModelError
from shared.graph import Kernels

if TYPE_CHECKING:  # it imports torch
    from orchestrator.models.importer import ImportedModel

Import = Callable[[Kernels], "ImportedModel"]
"""The model for the kernels that it may be computed with; a second call for the same costs nothing."""


class _Opened(Protocol):
    """A source that was read, or called, and can be imported."""

    def imported(self, level: str, kernels: Kernels) -> ImportedModel: ...


def open_source(source: ModelSource, level: str = "O1") -> Import:
    """What imports `source` at an optimisation level. A file is read and a factory called here, once.

    Raises:
        ModelError: it cannot be found, read, made, or called; the function that is returned raises it for
            what cannot be traced, and for weights that cannot be had or do not fit.
    """
    opened = _open(source)
    return functools.cache(lambda kernels: opened.imported(level, kernels))


def files_beside(source: ModelSource) -> tuple[Path, ...]:
    """The files that a model's own file refers to, sorted: weights that ONNX keeps outside.

    Raises:
        ModelError: the model's file cannot be read, or what it names is missing or lies elsewhere.
    """
    if source.kind is not SourceKind.ONNX:
        return ()
    _need_onnx(source)
    from orchestrator.models.onnx_file import external_files

    return tuple(external_files(Path(source.reference)))


def _open(source: ModelSource) -> _Opened:
    match source.kind:
        case SourceKind.TORCHVISION:
            return _Zoo(source)
        case SourceKind.FACTORY:
            from orchestrator.models.factory import FactoryModel

            return FactoryModel.make(source)
        case SourceKind.ONNX:
            _need_onnx(source)
            from orchestrator.models.onnx_import import OnnxModel

            return OnnxModel.open(source)
        case SourceKind.EXPORTED:
            from orchestrator.models.exported import ExportedModel

            return ExportedModel.open(source)
        case _ as other:
            assert_never(other)


class _Zoo:
    """One of torchvision's models."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def imported(self, level: str, kernels: Kernels) -> ImportedModel:
        """See `import_torchvision`."""
        from orchestrator.models.importer import import_torchvision

        return import_torchvision(
            self._source.reference, self._source.weights, level, kernels=kernels
        )


def _need_onnx(source: ModelSource) -> None:
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"to read {source.reference}, pip install 'amp4ec[orchestrator,onnx]'",
            expected="onnx and onnxruntime",
            got=f"no {' and no '.join(missing)}",
        )
