"""Annotated pictures: the picture as it was, and its answer below it, whatever their sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.live.annotate import NARROWEST, Album, annotated
from shared.client.results import Result, read_answer
from shared.codec import encode_json
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.messages.job import Answer, Label


def result(*labels: str, **changes: object) -> Result:
    fields: dict[str, object] = {
        "job": "j", "model": "m", "pipeline": "m-0", "generation": 1, "nodes": ["a", "b"],
        "latency_ms": 12.0, "trace": [], "weights": "default",
        "top": [Label(index=n, label=text, probability=0.9 / (n + 1)) for n, text in enumerate(labels)],
    }  # fmt: skip
    read = read_answer(encode_json(Answer(**{**fields, **changes})))  # type: ignore[arg-type]
    assert isinstance(read, Result)
    return read


CAT = result("tabby", "tiger cat", "Egyptian cat", "lynx")
LONG = result("a label of a model that somebody trained on sentences " * 10)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "size", [(640, 480), (1920, 1080), (32, 32), (1, 1), (2000, 10), (10, 2000)]
)
@pytest.mark.parametrize(
    "outcome", [CAT, LONG, result(), JobError(ErrorCode.DEADLINE, "late\n" * 99)]
)
def test_the_picture_is_as_it_was_and_the_answer_below(
    size: tuple[int, int], outcome: Result | JobError
) -> None:
    image = picture(*size)
    sheet = annotated(image, outcome)
    left = (sheet.width - image.width) // 2
    shown = sheet.crop((left, 0, left + image.width, image.height))
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))
    assert sheet.width == max(image.width, NARROWEST)
    panel = np.asarray(sheet.crop((0, image.height, *sheet.size)))
    ground = panel[0, 0]
    drawn = (panel != ground).any(axis=2)
    assert drawn.any(), "there is text"
    assert not drawn[:, :2].any() and not drawn[:, -2:].any(), "and it ends before the edge"  # noqa: PT018


def test_text_grows_with_the_picture() -> None:
    small, large = annotated(picture(320, 10), CAT), annotated(picture(1920, 10), CAT)
    assert large.height - 10 > 2 * (small.height - 10)


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        (CAT, result("tabby", "tiger cat", "Egyptian cat", weights="none")),
        (CAT, result("tabby", "tiger cat", "Egyptian cat", cached=True)),
        (CAT, result("tabby", "tiger cat", "Egyptian cat", exact=False)),
        (CAT, result("tabby", "tiger cat", "Egyptian cat", latency_ms=900.0)),
    ],
)
def test_what_the_answer_says_is_drawn(plain: Result, marked: Result) -> None:
    image = picture(640, 20)
    assert annotated(image, plain).tobytes() != annotated(image, marked).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_other_modes(mode: str) -> None:
    assert annotated(Image.new(mode, (400, 300)), CAT).mode == "RGB"


def test_an_album_keeps_the_latest_under_names_of_their_own(tmp_path: Path) -> None:
    album = Album(tmp_path / "new" / "folder", keep=2)
    for name in ("cat", "cat", "../../cat dog", ""):
        album.add(name, picture(8, 8), CAT)
    assert sorted(path.name for path in album.directory.iterdir()) == [
        "_.._cat_dog.jpg",
        "picture.jpg",
    ]
    with Image.open(album.directory / "picture.jpg") as image:
        assert image.format == "JPEG"


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    album = Album(tmp_path)
    names = [album.add("cat", picture(8, 8), CAT).name for _ in range(3)]
    assert names == ["cat.jpg", "cat-2.jpg", "cat-3.jpg"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--annotate"):
        Album(tmp_path / "file")
