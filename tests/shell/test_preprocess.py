"""The transform as data against torchvision's own, and what is refused."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

# isort: off
import orchestrator.models.torchvision_shim  # noqa: F401  # its side effect must come before torchvision
from torchvision import models

# isort: on
from edge_agent import preprocess as module
from edge_agent.preprocess import check_tensor, decode_npy, preprocess
from orchestrator.models.zoo import _transform
from shared.errors import ErrorCode, JobError
from shared.graph import TensorSpec
from shared.transform import IMAGENET, Interpolation, Transform

MODELS = (
    "mobilenet_v2",
    "efficientnet_b0",
    "efficientnet_b1",
    "vit_b_16",
    "swin_t",
    "inception_v3",
)


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(
        pixels if bands > 1 else pixels[:, :, 0], mode="P" if mode == "P" else None
    )


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def torchvision_says(data: bytes, preset: Any) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return preset(image)[None].numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(640, 480), (333, 517), (224, 224), (97, 61), (256, 300), (1, 7)])
def test_equals_torchvision_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    preset = models.get_model_weights(name).DEFAULT.transforms()
    data = encoded(picture(size))
    result = preprocess(data, _transform(preset))
    expected = torchvision_says(data, preset)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def with_palette() -> bytes:
    return encoded(picture((300, 200)).convert("P"))


def with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees; torchvision does not look at it
    return encoded(picture((300, 200)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture((300, 200), "L")),
        encoded(picture((300, 200), "RGBA")),
        encoded(picture((300, 200), "LA")),
        with_palette(),
        with_exif(),
        encoded(picture((300, 200)).convert("CMYK"), "JPEG"),
        encoded(picture((300, 200)).convert("1")),
        encoded(picture((301, 203)), "JPEG", quality=80),
        encoded(picture((301, 203)), "WEBP"),
        encoded(picture((301, 203)), "JPEG", progressive=True),
    ],
    ids=[
        "grey",
        "rgba",
        "grey-alpha",
        "palette",
        "exif",
        "cmyk",
        "bits",
        "jpeg",
        "webp",
        "progressive",
    ],
)
def test_equals_torchvision_in_every_mode(data: bytes) -> None:
    preset = models.get_model_weights("mobilenet_v2").DEFAULT.transforms()
    np.testing.assert_array_equal(
        preprocess(data, _transform(preset)), torchvision_says(data, preset)
    )


@settings(deadline=None, max_examples=25)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    resize=st.none() | st.integers(8, 300),
    crop=st.integers(8, 300),
    bicubic=st.booleans(),
)
def test_any_size_equals_torchvision(
    width: int, height: int, resize: int | None, crop: int, bicubic: bool
) -> None:
    from torchvision.transforms import functional

    interpolation = Interpolation.BICUBIC if bicubic else Interpolation.BILINEAR
    transform = Transform(resize, crop, IMAGENET.mean, IMAGENET.std, interpolation)
    image = picture((width, height))
    expected: Any = image
    if resize is not None:
        mode = functional.InterpolationMode(interpolation.value)
        expected = functional.resize(image, [resize], interpolation=mode)
    expected = functional.pil_to_tensor(functional.center_crop(expected, [crop, crop]))
    expected = functional.convert_image_dtype(expected, torch.float32)
    expected = functional.normalize(expected, list(transform.mean), list(transform.std))
    np.testing.assert_array_equal(preprocess(encoded(image), transform)[0], expected.numpy())


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"this is a text file, not a picture", "not an image"),
        (encoded(picture((300, 200)), "JPEG")[:2000], "damaged"),
        (encoded(picture((300, 200)))[:2000], "damaged"),
        (encoded(picture((300, 200)), "WEBP")[:2000], "damaged|not an image"),
        (encoded(picture((30, 20)), "GIF"), "not an image"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(JobError, match=what) as caught:
        preprocess(data, IMAGENET)
    assert caught.value.code is ErrorCode.BAD_INPUT
    assert caught.value.expected is not None
    assert caught.value.got is not None


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 10_000)
    with pytest.raises(JobError, match="too large"):
        preprocess(encoded(picture((101, 100))), IMAGENET)
    monkeypatch.undo()
    huge = encoded(Image.new("1", (30_000, 30_000)))
    assert len(huge) < 300_000
    with pytest.raises(JobError, match="too large"):  # pytest makes an error of Pillow's warning
        preprocess(huge, IMAGENET)


def test_a_needle_is_refused_rather_than_scaled_to_gigabytes() -> None:
    with pytest.raises(JobError, match="narrow"):
        preprocess(encoded(Image.new("RGB", (40_000, 1))), IMAGENET)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_anywhere_gives_an_image_or_a_job_error(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    good = bytearray(encoded(picture((40, 30)), form))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings(), contextlib.suppress(JobError):
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata
        assert preprocess(bytes(good), IMAGENET).shape == (1, 3, 224, 224)


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_npy_round_trip() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(decode_npy(npy(array)), array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"not an array at all",
        npy(np.zeros((4, 4)))[:-8],
        npy(np.array([{"code": 1}], dtype=object), allow_pickle=True),
    ],
)
def test_bad_npy_is_refused(data: bytes) -> None:
    with pytest.raises(JobError) as caught:
        decode_npy(data)
    assert caught.value.code is ErrorCode.BAD_INPUT


SPEC = TensorSpec("float32", (1, 3, 4, 4))


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((1, 3, 4, 5), np.float32), r"float32\[1, 3, 4, 5\]"),
        (np.zeros((1, 3, 4, 4), np.float64), "float64"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), "48 NaN"),
        (np.full((1, 3, 4, 4), np.inf, np.float32), "48 NaN or infinite"),
    ],
)
def test_a_tensor_is_checked(array: np.ndarray[Any, Any], got: str) -> None:
    with pytest.raises(JobError, match=got):
        check_tensor(array, SPEC)


def test_a_good_tensor_is_given_back_as_it_is() -> None:
    array = np.zeros((1, 3, 4, 4), np.float32)
    assert check_tensor(array, SPEC) is array


def _npy_with(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        _npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
        _npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}"),
        _npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}", bytes(16)),
        _npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1000000000000)}", b"x"),
        _npy_with("{'descr': '|V1000000000', 'fortran_order': False, 'shape': ()}"),
        _npy_with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", bytes(4)),
        _npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000),
        _npy_with("-" * 9000 + "1"),
        _npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4), b"\x09\x00"),
        b"PK\x03\x04" + bytes(100),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
)
def test_an_npy_header_is_believed_in_nothing(data: bytes) -> None:
    with pytest.raises(JobError) as caught:
        decode_npy(data)
    assert caught.value.code is ErrorCode.BAD_INPUT


@given(
    st.sampled_from(["float32", ">f4", "float64", "int64", "bool", "uint8", ">i2"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.booleans(),
)
def test_npy_is_read_as_numpy_reads_it(dtype: str, shape: list[int], column_major: bool) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.int64).astype(dtype).reshape(shape)
    data = npy(np.asfortranarray(array) if column_major else array)
    read = decode_npy(memoryview(data))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    """Each scan of a progressive file goes over the whole picture: 32 MB of them are an hour's work."""
    plain = encoded(picture((4096, 4096)), "JPEG", progressive=True)
    begin = plain.rindex(b"\xff\xda")
    scan = plain[begin : plain.index(b"\xff\xd9", begin)]
    with pytest.raises(JobError, match="takes too long to decode"):
        preprocess(plain[:-2] + scan[:14] * 200 + b"\xff\xd9", IMAGENET)
    assert preprocess(plain, IMAGENET).shape == (1, 3, 224, 224)
