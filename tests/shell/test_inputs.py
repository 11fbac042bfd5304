"""What clients send is told apart by its type or its first bytes, and refused in words."""

from __future__ import annotations

import base64
import io
import json

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from orchestrator.inputs import MAX_JSON_BYTES, NPY, Parsed, parse_input, sniff
from shared.errors import ErrorCode, JobError
from shared.tensor import from_wire


def picture(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(buffer, format_)
    return buffer.getvalue()


def tensor(array: np.ndarray) -> dict[str, object]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}


def parse(
    payload: bytes, content_type: str | None = None, names: tuple[str, ...] = ("x",)
) -> Parsed:
    return parse_input(payload, content_type, names)


def refusal(
    payload: bytes, content_type: str | None = None, names: tuple[str, ...] = ("x",)
) -> JobError:
    with pytest.raises(JobError) as caught:
        parse(payload, content_type, names)
    assert caught.value.code is ErrorCode.BAD_INPUT
    assert caught.value.expected
    assert caught.value.got
    return caught.value


@pytest.mark.parametrize(
    ("format_", "kind"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")]
)
def test_an_image_is_known_by_its_first_bytes(format_: str, kind: str) -> None:
    payload = picture(format_)
    [item] = parse(payload).items
    assert item.content_type == kind
    assert bytes(item.body or b"") == payload
    assert item.size_bytes == len(payload)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("prefix", [b"", b"data:image/x;base64,"])
def test_an_image_may_come_as_text(format_: str, prefix: bytes) -> None:
    [item] = parse(prefix + base64.b64encode(picture(format_)) + b"\n").items
    assert bytes(item.body or b"") == picture(format_)
    assert item.content_type == f"image/{format_.lower()}"


def test_the_content_type_decides_over_the_bytes() -> None:
    [item] = parse(b"no image at all", "image/png; q=1").items
    assert item.content_type == "image/png"


def test_npy_travels_as_it_came() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((1, 3), np.float32))
    [item] = parse(buffer.getvalue()).items
    assert item.content_type == NPY


def test_a_msgpack_tensor_gets_the_models_only_input_name() -> None:
    array = np.arange(6, dtype=np.float32).reshape(1, 6)
    [item] = parse(msgpack.packb(tensor(array))).items
    assert item.tensors is not None
    np.testing.assert_array_equal(from_wire(item.tensors["x"]), array)


def test_named_tensors_keep_their_names() -> None:
    array = np.ones(2, np.int64)
    payload = msgpack.packb({"tensors": {"ids": tensor(array), "mask": tensor(array)}})
    [item] = parse(payload, names=("ids", "mask")).items
    assert item.tensors is not None
    assert sorted(item.tensors) == ["ids", "mask"]


def test_a_batch_becomes_items_in_order() -> None:
    images = [picture("JPEG"), picture("PNG")]
    parsed = parse(msgpack.packb({"images": images}))
    assert parsed.batch
    assert [item.content_type for item in parsed.items] == ["image/jpeg", "image/png"]
    assert [bytes(item.body or b"") for item in parsed.items] == images


def test_a_json_tensor() -> None:
    payload = json.dumps({"dtype": "float32", "shape": [2, 1], "data": [[1.5], [2]]}).encode()
    [item] = parse(payload).items
    assert item.tensors is not None
    assert from_wire(item.tensors["x"]).tolist() == [[1.5], [2.0]]


@pytest.mark.parametrize(
    ("payload", "content_type", "words"),
    [
        (b"", None, "empty"),
        (b"hello, this is text", None, "none of the forms"),
        (b"hello", "text/plain", "none of the forms"),
        (b"/9j/abcde", None, "base64"),
        (b"\x81\xa1", None, "msgpack cannot be read"),
        (msgpack.packb({"what": 1}), None, "none of the fields"),
        (msgpack.packb({"images": []}), None, "batch"),
        (msgpack.packb({"dtype": "float32", "shape": [3], "data": b"1234"}), None, "fit its shape"),
        (msgpack.packb({"dtype": "complex64", "shape": [1], "data": b"12345678"}), None, "dtype"),
        (b'{"dtype": "float32"', None, "JSON cannot be read"),
        (b'{"dtype": "float32", "shape": [2], "data": [1]}', None, "another shape"),
        (b'{"dtype": "float32", "shape": [2], "data": [[1],[2,3]]}', None, "another shape"),
        (b'{"dtype": "float32", "shape": [2, 1], "data": [[1],[2,3]]}', None, "no array"),
        (b'{"dtype": "float32", "shape": [1], "data": ' + b"[" * 100_000, None, "cannot be read"),
        (b'{"dtype": "float32", "shape": [1], "data": [' + b"[]," * 9 + b"[]]}", None, "another shape"),
        (b'{"dtype": "int8", "shape": [1], "data": [300]}', None, "no array"),
        (b'{"dtype": "float32", "shape": [1], "data": ["x"]}', None, "got `str`"),
        (b'{"dtype": "object", "shape": [1], "data": [1]}', None, "dtype"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_words(
    payload: bytes, content_type: str | None, words: str
) -> None:
    assert words in str(refusal(payload, content_type))


def test_an_empty_payload_is_told_how_else_to_send() -> None:
    assert "mosquitto_rr" in str(refusal(b""))
    assert "base64 -w0" in str(refusal(b""))


def test_a_tensor_in_json_has_a_limit_of_its_own() -> None:
    payload = b'{"dtype": "float32", "shape": [1], "data": [' + b" " * MAX_JSON_BYTES + b"1]}"
    with pytest.raises(JobError) as caught:
        parse(payload)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_one_tensor_for_a_model_with_two_inputs_is_refused() -> None:
    error = refusal(msgpack.packb(tensor(np.ones(1, np.int64))), names=("ids", "mask"))
    assert "ids, mask" in str(error)


@given(payload=st.binary(min_size=1, max_size=100), content_type=st.none() | st.text(max_size=20))
def test_no_bytes_do_worse_than_a_refusal(payload: bytes, content_type: str | None) -> None:
    sniff(payload)
    try:
        parsed = parse(payload, content_type)
    except JobError as error:
        assert error.code is ErrorCode.BAD_INPUT  # noqa: PT017 - parsing may succeed too
    else:
        assert parsed.items
