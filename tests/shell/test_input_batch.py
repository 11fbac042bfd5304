"""Tensors of several items told from those of one, and from those that are wrong."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from orchestrator.input_batch import split_batch
from orchestrator.inputs import Parsed, parse_input
from shared.client.inputs import encode_batch
from shared.errors import JobError
from shared.messages.job import MAX_BATCH
from shared.tensor import Array, from_wire
from tests.shell.dispatcher_world import JPEG

SHAPES = {"ids": (1, 4), "mask": (1, 4, 2)}


def parsed(**arrays: Array) -> Parsed:
    tensors = {
        name: {"dtype": array.dtype.name, "shape": array.shape, "data": array.tobytes()}
        for name, array in arrays.items()
    }
    return parse_input(msgpack.packb({"tensors": tensors}), None, tuple(arrays))


def test_each_item_has_its_part_of_every_tensor() -> None:
    ids = np.arange(12).reshape(3, 4)
    mask = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    given = split_batch(parsed(ids=ids, mask=mask), SHAPES)
    assert given.batch
    assert len(given.items) == 3
    for at, item in enumerate(given.items):
        assert item.tensors is not None
        assert item.size_bytes == 4 * 8 + 8 * 4
        np.testing.assert_array_equal(from_wire(item.tensors["ids"]), ids[at : at + 1])
        np.testing.assert_array_equal(from_wire(item.tensors["mask"]), mask[at : at + 1])


@pytest.mark.parametrize(
    ("ids", "mask"),
    [((1, 4), (1, 4, 2)), ((3, 4), (2, 4, 2)), ((3, 5), (3, 4, 2)), ((3, 4), (4, 2)), ((), ())],
)
def test_what_is_no_batch_stays_as_it_is(ids: tuple[int, ...], mask: tuple[int, ...]) -> None:
    one = parsed(ids=np.ones(ids), mask=np.ones(mask))
    assert split_batch(one, SHAPES) is one


def test_a_model_without_a_batch_axis_takes_no_batch() -> None:
    one = parsed(x=np.ones((3, 4)))
    assert split_batch(one, {"x": (2, 4)}) is one
    assert split_batch(one, {"y": (1, 4)}).batch, "one tensor for one input needs no name"
    images = parse_input(msgpack.packb({"images": [JPEG] * 2}), None, ("x",))
    assert split_batch(images, {"x": (1, 4)}) is images


def test_a_batch_of_too_many_is_refused() -> None:
    with pytest.raises(JobError, match="batch of this size"):
        split_batch(parsed(x=np.ones((MAX_BATCH + 1, 1), np.uint8)), {"x": (1, 1)})


def test_the_clients_batch_of_tensors_is_read_as_one() -> None:
    items = [{"ids": np.full((1, 4), at), "mask": np.ones((1, 4, 2))} for at in range(5)]
    payload = encode_batch(items)
    given = split_batch(parse_input(payload.data, payload.content_type, ("ids", "mask")), SHAPES)
    firsts = [from_wire(item.tensors["ids"])[0, 0] for item in given.items if item.tensors]
    assert firsts == [0, 1, 2, 3, 4]


def test_the_client_takes_no_mixture() -> None:
    tensor = np.ones((1, 3), np.float32)
    mixtures: list[list[bytes | Array]] = [
        [JPEG, tensor],
        [tensor, np.ones((2, 3), np.float32)],
        [np.ones((2, 3))],
    ]
    for mixed in mixtures:
        with pytest.raises(JobError):
            encode_batch(mixed)
