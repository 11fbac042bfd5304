"""A tensor with several items along its batch axis, as that many items: a batch like one of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.inputs import Input, Parsed
from shared.errors import ErrorCode, JobError
from shared.messages.job import MAX_BATCH
from shared.tensor import DTYPES, Shape, WireTensor


def split_batch(parsed: Parsed, shapes: Mapping[str, Shape]) -> Parsed:
    """The items of a request whose tensors are the inputs (`shapes`) but for axis 0, which counts items.

    What is no such batch stays as it is: the first stage says what is wrong with it.

    Raises:
        JobError: `bad_input`, more items than a batch may have.
    """
    if parsed.batch or len(parsed.items) != 1 or parsed.items[0].tensors is None:
        return parsed
    (item,) = parsed.items
    tensors = parsed.items[0].tensors
    given = _named(tensors, shapes)
    counts = {tensor.shape[0] if tensor.shape else 0 for tensor in tensors.values()}
    if given is None or len(counts) != 1:
        return parsed
    (count,) = counts
    alike = all(
        shape[:1] == (1,) and given[name].shape[1:] == shape[1:] for name, shape in shapes.items()
    )
    if count < 2 or not alike:
        return parsed
    if count > MAX_BATCH:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "a batch of this size is not taken",
            expected=f"1 to {MAX_BATCH} items along axis 0",
            got=str(count),
        )
    return Parsed(tuple(_item(item, tensors, at) for at in range(count)), batch=True)


def _named(
    tensors: Mapping[str, WireTensor], shapes: Mapping[str, Shape]
) -> Mapping[str, WireTensor] | None:
    """The tensors by the model's names; one for one input needs none."""
    if len(tensors) == 1 == len(shapes):
        return dict(zip(shapes, tensors.values(), strict=True))
    return tensors if tensors.keys() == shapes.keys() else None


def _item(whole: Input, tensors: Mapping[str, WireTensor], at: int) -> Input:
    """Item `at`: views of the request's bytes."""
    parts: dict[str, WireTensor] = {}
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape[1:]) * DTYPES[tensor.dtype].itemsize
        data = tensor.data[at * size : (at + 1) * size]
        parts[name] = replace(tensor, shape=(1, *tensor.shape[1:]), data=data)
    size_bytes = sum(part.data.nbytes for part in parts.values())
    return replace(whole, tensors=parts, size_bytes=size_bytes)
