"""What the client makes of inputs and answers; the conversation itself is in tests/broker."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from shared.bus import Message
from shared.client.inputs import MSGPACK, NPY, encode_input, write_png
from shared.client.results import read_answer
from shared.client.status import Overview
from shared.codec import decode_msgpack, encode_json
from shared.errors import ConfigurationError, JobError, ProtocolError
from shared.messages.job import TensorInput, TensorsInput
from shared.messages.operation import OrchestratorState
from shared.tensor import Array

SOURCE = np.random.default_rng(1)


def photograph(*shape: int) -> Array:
    return SOURCE.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((5, 7), "L"), ((5, 7, 1), "L"), ((5, 7, 3), "RGB"), ((1, 1, 3), "RGB"), ((6, 4, 4), "RGBA")],
)
def test_png_is_lossless(shape: tuple[int, ...], mode: str) -> None:
    array = photograph(*shape)
    with Pillow.open(io.BytesIO(write_png(array))) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), array.reshape(np.asarray(image).shape))


def test_png_of_a_strided_view() -> None:
    array = photograph(8, 6, 3)[::2, ::-1]
    with Pillow.open(io.BytesIO(write_png(array))) as image:
        np.testing.assert_array_equal(np.asarray(image), array)


def test_photograph_becomes_a_png() -> None:
    payload = encode_input(photograph(4, 4, 3))
    assert payload.content_type == "image/png"
    assert payload.is_file


@pytest.mark.parametrize(
    "array",
    [
        np.ones((1, 3, 2, 2), np.float32),
        photograph(2, 3, 4, 4),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(4, dtype=">f4"),
        np.full((), 3.0, np.float32),
    ],
)
def test_other_arrays_become_tensors(array: Array) -> None:
    payload = encode_input(array)
    assert payload.content_type == MSGPACK
    assert not payload.is_file
    sent = decode_msgpack(payload.data, TensorInput)
    assert sent.shape == array.shape
    back = np.frombuffer(sent.data, np.dtype(sent.dtype).newbyteorder("<")).reshape(sent.shape)
    np.testing.assert_array_equal(back, array)


def test_named_tensors() -> None:
    payload = encode_input({"ids": np.arange(3), "mask": np.ones(3, np.bool_)})
    sent = decode_msgpack(payload.data, TensorsInput)
    assert {name: tensor.dtype for name, tensor in sent.tensors.items()} == {
        "ids": "int64",
        "mask": "bool",
    }


def test_array_of_objects_is_refused() -> None:
    with pytest.raises(JobError, match="cannot be sent") as raised:
        encode_input(np.array([object()]))
    assert raised.value.got == "object"


def test_anything_else_is_refused() -> None:
    with pytest.raises(JobError, match="cannot be sent as an image"):
        encode_input(3.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_pillow_images(mode: str) -> None:
    payload = encode_input(Pillow.new(mode, (6, 4)))
    assert payload.content_type == "image/png"
    with Pillow.open(io.BytesIO(payload.data)) as image:
        assert image.size == (6, 4)


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_files_go_as_they_are(form: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    Pillow.new("RGB", (6, 4)).save(path, form)
    for given in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        payload = encode_input(given)
        assert payload.data == path.read_bytes()
        assert payload.content_type == f"image/{kind}"


def test_npy_and_unknown_files() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    assert encode_input(buffer.getvalue()).content_type == NPY
    # Not ours to judge: the orchestrator says what it takes.
    assert encode_input(b"plain text").content_type == ""


def test_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        encode_input(tmp_path / "nothing.jpg")
    with pytest.raises(ConfigurationError, match="directory"):
        encode_input(tmp_path)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"\xc1",
        encode_json({"status": "ok"}),
        encode_json({"status": "ok", "job": "j", "model": "m", "latency_ms": 1, "results": [3]}),
        encode_json({"status": "error", "error": {"code": "nonsense", "message": "x"}}),
    ],
)
def test_bytes_that_are_no_answer(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_answer(payload)


def test_an_empty_message_does_not_make_the_orchestrator_disappear() -> None:
    """Anybody may publish one on an open broker; the orchestrator itself never does."""
    overview = Overview()
    state = OrchestratorState(state="online", incarnation=1)
    overview.take("orchestrator_state", {}, Message("t", encode_json(state)))
    overview.take("orchestrator_state", {}, Message("t", b""))
    assert overview.orchestrator == state
