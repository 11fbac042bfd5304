"""A job's input to the tensor a model takes: Pillow and NumPy only.

An image goes through the model's own transform and comes out equal, bit for bit, to what torchvision's
preset makes of the same file opened as RGB. Two consequences are kept on purpose: EXIF orientation is not
applied, and transparency is dropped, not blended. A tensor is taken as it is and only checked.

Bad input is the sender's to mend: every failure is a `JobError` with `BAD_INPUT`, what was expected, and
what came.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from shared.errors import ErrorCode, JobError
from shared.graph import TensorSpec
from shared.tensor import DTYPES, is_possible
from shared.transform import Interpolation, Transform

Array: TypeAlias = npt.NDArray[np.generic]

MAX_PIXELS = 64_000_000
"""Largest image that is decoded: 8000 x 8000, 192 MB as RGB."""
_MOST_SCANNED = 12 * MAX_PIXELS
"""Pixels times scans of a JPEG: each scan of a progressive one goes over the whole image, at 20 ns a pixel,
and a file may have thousands. Usual ones have up to a dozen."""
FORMATS = ("JPEG", "PNG", "WEBP")
_NPY = ".npy bytes of numbers"
_NPY_HEAD_BYTES = 10_000
"""As many as NumPy takes; an array of numbers has 118."""
_NPY_FIELD = re.compile(
    r"""\s*['"](\w{1,16})['"]\s*:\s*(['"][<>=|]?[a-z]\d{1,2}['"]|True|False|\([\d\s,]{0,200}\))\s*(?:,|$)"""
)
_NPY_TYPES = frozenset(np.dtype(name) for name in DTYPES)
_IMAGE = "a JPEG, PNG or WebP image"
_FILTERS = {
    Interpolation.NEAREST: Image.Resampling.NEAREST,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
    Interpolation.LANCZOS: Image.Resampling.LANCZOS,
}


def preprocess(data: bytes | memoryview, transform: Transform) -> npt.NDArray[np.float32]:
    """An image file's bytes as float32 [1, 3, crop, crop], C order.

    Raises:
        JobError: `BAD_INPUT`: not an image of a known format, damaged, or of too many pixels.
    """
    pixels = np.asarray(_crop(_resize(_decode(data), transform), transform.crop))
    table = _table(transform.mean, transform.std)
    result = np.empty((1, 3, transform.crop, transform.crop), np.float32)
    for channel in range(3):
        # One look-up replaces the divide, subtract and divide of each pixel, with the same rounding.
        # "clip" spares NumPy its check and a copy; a uint8 cannot leave a table of 256.
        np.take(table[channel], pixels[:, :, channel], out=result[0, channel], mode="clip")
    return result


def decode_npy(data: bytes | memoryview) -> Array:
    """The array in `.npy` bytes: a view of them, where their order is this machine's.

    Raises:
        JobError: `BAD_INPUT`: not `.npy`, truncated, or an array of anything but numbers.
    """
    dtype, shape, column_major, begin = _npy_header(data)
    if dtype.newbyteorder("=") not in _NPY_TYPES or not is_possible(shape):
        got = f"{dtype}{list(shape)}"[:200]
        _refuse("the input cannot be used", f"an array of {', '.join(DTYPES)}", got)
    expected, body = math.prod(shape) * dtype.itemsize, data[begin:]
    if len(body) != expected:
        _refuse(
            "the input is not as large as its header says",
            f"{expected} bytes for {dtype}{list(shape)}",
            f"{len(body)} bytes",
        )
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if column_major else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _npy_header(data: bytes | memoryview) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Dtype, shape, whether in column-major order, and where the numbers begin.

    NumPy's own reader does too much for bytes from anywhere: it opens archives, evaluates the header as
    Python, and makes room for whatever it says.
    """
    head = bytes(data[: 12 + _NPY_HEAD_BYTES])
    if head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\x01\x00", b"\x02\x00"):
        _refuse("the input cannot be read", f"{_NPY}, version 1 or 2", f"bytes {head[:8].hex(' ')}")
    begin = 10 if head[6] == 1 else 12
    stop = begin + int.from_bytes(head[8:begin], "little")
    text = head[begin:stop].decode("latin-1").strip()
    fields = dict(_NPY_FIELD.findall(text[1:-1]))
    if stop > len(head) or fields.keys() != {"descr", "fortran_order", "shape"}:
        _refuse("the input cannot be read", _NPY, f"the header {text[:100]!r}")
    try:
        dtype = np.dtype(fields["descr"].strip("'\""))
        shape = tuple(int(size) for size in fields["shape"].strip("()").split(",") if size.strip())
    except (TypeError, ValueError, SyntaxError) as error:
        _refuse("the input cannot be read", _NPY, str(error)[:200], error)
    return dtype, shape, fields["fortran_order"] == "True", stop


def check_tensor(array: Array, spec: TensorSpec, name: str = "input") -> Array:
    """`array` itself, if it has the dtype and shape of `spec` and only finite values.

    Raises:
        JobError: `BAD_INPUT`: it has not.
    """
    got = f"{array.dtype}{list(array.shape)}"
    if array.dtype != np.dtype(spec.dtype) or array.shape != spec.shape:
        _refuse(f"tensor {name!r}: dtype and shape", str(spec), got)
    if np.issubdtype(array.dtype, np.floating):
        finite = np.isfinite(array)
        if not finite.all():
            bad = int(array.size - np.count_nonzero(finite))
            _refuse(f"tensor {name!r}: values", "finite numbers", f"{bad} NaN or infinite values")
    return array


def _decode(data: bytes | memoryview) -> Image.Image:
    if not len(data):
        _refuse("the input is empty", _IMAGE, "0 bytes")
    try:
        with warnings.catch_warnings():
            # Pillow's own pixel limit only warns at first; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            _refuse("the image is too large", f"at most {MAX_PIXELS} pixels", f"{width} x {height}")
        # Within a scan the two bytes cannot come (ITU-T T.81, B.1.1.2).
        scans = bytes(data).count(b"\xff\xda") if image.format == "JPEG" else 1
        if width * height * scans > _MOST_SCANNED:
            _refuse(
                "the image takes too long to decode",
                f"a JPEG of at most {_MOST_SCANNED // (width * height)} scans at {width} x {height}",
                f"{scans} scans",
            )
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        head = bytes(data[:8]).hex(" ")
        _refuse("not an image", _IMAGE, f"{len(data)} bytes beginning {head}", error)
    except Image.DecompressionBombError as error:
        _refuse("the image is too large", f"at most {MAX_PIXELS} pixels", str(error)[:200], error)
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        # Pillow's decoders raise any of these on a damaged file.
        _refuse("the image is damaged", _IMAGE, f"{len(data)} bytes: {error}"[:200], error)


def _resize(image: Image.Image, transform: Transform) -> Image.Image:
    """The shorter edge to `resize`, the longer in proportion, rounded down as torchvision does."""
    if transform.resize is None:
        return image
    width, height = image.size
    shorter, longer = sorted((width, height))
    if shorter == transform.resize:
        return image
    scaled = int(transform.resize * longer / shorter)
    size = (transform.resize, scaled) if width <= height else (scaled, transform.resize)
    if size[0] * size[1] > MAX_PIXELS:
        _refuse(
            "the image is too narrow", "an aspect ratio that can be scaled", f"{width} x {height}"
        )
    return image.resize(size, _FILTERS[transform.interpolation])


def _crop(image: Image.Image, edge: int) -> Image.Image:
    """The central square of `edge` pixels; what lies outside the image is black."""
    width, height = image.size
    if width < edge or height < edge:
        left, top = max(edge - width, 0) // 2, max(edge - height, 0) // 2
        padded = Image.new("RGB", (max(width, edge), max(height, edge)))
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    left, top = round((width - edge) / 2.0), round((height - edge) / 2.0)
    return image.crop((left, top, left + edge, top + edge))


@lru_cache(maxsize=16)
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """What each of the 256 levels becomes per channel, in torchvision's order of float32 operations."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    means, stds = (np.asarray(values, np.float32)[:, None] for values in (mean, std))
    table: npt.NDArray[np.float32] = (levels - means) / stds
    table.flags.writeable = False
    return table


def _refuse(what: str, expected: str, got: str, cause: Exception | None = None) -> NoReturn:
    raise JobError(ErrorCode.BAD_INPUT, what, expected=expected, got=got) from cause
