"""A stage's inputs out of an activation: between stages tensors as they are, at the first a client's input.

A tensor is taken as it is and only checked; an image goes through the model's own transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from shared.compression import unpack
from shared.errors import ErrorCode, JobError, ProtocolError
from shared.graph import Value
from shared.messages.job import Activation
from shared.tensor import Array, from_wire
from shared.transform import Transform

_NPY = "application/x-npy"
_NPY_MAGIC = b"\x93NUMPY"


class StageInputs:
    """Implements `edge_agent.stage.Inputs` for a stage whose graph takes `values`.

    `first`: the stage takes what a client sent; `transform` is then what makes an input of an image, None
    where the model takes none.
    """

    def __init__(
        self, values: Sequence[Value], transform: Transform | None, *, first: bool
    ) -> None:
        self._values = tuple(values)
        self._transform = transform
        self._first = first
        self._most_bytes = max(value.spec.nbytes for value in self._values)
        if first:
            # Here, in the loader's thread, and not with the first job: Pillow takes 0.1 s and more to import.
            import edge_agent.preprocess  # noqa: F401

    def read(self, activation: Activation) -> dict[str, Array]:
        """Arrays by the graph's input names.

        Raises:
            JobError: `bad_input`: a client's input is not what the model takes.
            ProtocolError: an activation between stages has a tensor that contradicts itself.
        """
        if not self._first:
            arrays = {name: from_wire(tensor) for name, tensor in activation.tensors.items()}
            most_bytes = self._most_bytes * (1 + len(activation.companions))
            for name, packed in activation.packed.items():
                arrays[name] = unpack(packed, most_bytes=most_bytes)
            return arrays
        if activation.body is not None:
            return self._from_body(activation.body, activation.content_type)
        return self._from_tensors(activation)

    def _from_body(self, body: memoryview, content_type: str) -> dict[str, Array]:
        from edge_agent.preprocess import check_tensor, decode_npy, preprocess

        if len(self._values) != 1:
            _refuse("the model takes several tensors", self._wanted(), "one file")
        value = self._values[0]
        kind = content_type.split(";", maxsplit=1)[0].strip().lower()
        if kind == _NPY or (not kind and body[:6] == _NPY_MAGIC):
            return {value.name: check_tensor(decode_npy(body), value.spec, value.name)}
        if kind and not kind.startswith("image/"):
            _refuse("the input's content type is not taken", f"image/* or {_NPY}", content_type)
        if self._transform is None:
            how = "serve it with --preprocess and --labels to have it answer to images"
            what = (
                f"the model takes no images; {how}"
                if _is_image(value)
                else "the model takes no images"
            )
            _refuse(what, self._wanted(), content_type or "an image")
        return {value.name: check_tensor(preprocess(body, self._transform), value.spec, value.name)}

    def _from_tensors(self, activation: Activation) -> dict[str, Array]:
        from edge_agent.preprocess import check_tensor

        given = activation.tensors
        names = {value.name for value in self._values}
        if given.keys() != names:
            if len(given) == 1 == len(names):
                # One tensor for one input: there is nothing that its name could confuse.
                given = {self._values[0].name: next(iter(given.values()))}
            else:
                _refuse(
                    "the input's tensors are not those of the model",
                    self._wanted(),
                    ", ".join(sorted(given)) or "no tensor",
                )
        arrays: dict[str, Array] = {}
        for value in self._values:
            try:
                array = from_wire(given[value.name])
            except ProtocolError as error:
                raise JobError(
                    ErrorCode.BAD_INPUT,
                    f"tensor {value.name!r}: {error.message}",
                    expected=error.expected,
                    got=error.got,
                ) from error
            arrays[value.name] = check_tensor(array, value.spec, value.name)
        return arrays

    def _wanted(self) -> str:
        return ", ".join(f"{value.name}: {value.spec}" for value in self._values)


def _is_image(value: Value) -> bool:
    """Whether an image could become the input: float32 [1, 3, height, width]."""
    return value.spec.dtype == "float32" and len(value.spec.shape) == 4 and value.spec.shape[1] == 3


def _refuse(message: str, expected: str, got: str) -> NoReturn:
    raise JobError(ErrorCode.BAD_INPUT, message, expected=expected, got=got)
