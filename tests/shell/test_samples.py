"""What somebody gives `--calibrate`: images and arrays that fit, and everything that does not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.samples import MOST, read_samples, sample_files, samples_digest
from edge_agent.preprocess import preprocess
from shared.errors import ConfigurationError
from shared.graph import TensorSpec, Value
from shared.transform import Transform
from tests.fakes import shapes

TRANSFORM = Transform(**shapes.TRANSFORM)
IMAGE = (Value("image", TensorSpec("float32", (1, 3, shapes.EDGE, shapes.EDGE))),)
TOKENS = tuple(Value(name, TensorSpec("int64", (1, 12))) for name in ("ids", "mask"))


def npz(folder: Path, name: str = "a.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def test_images_go_through_the_model_s_transform(tmp_path: Path) -> None:
    files = sample_files([shapes.write_samples(tmp_path, 9)])
    samples = read_samples(files, IMAGE, TRANSFORM)
    assert (len(samples.watched), len(samples.held_out)) == (6, 3)
    wanted = [preprocess(file.read_bytes(), TRANSFORM).tobytes() for file in files]
    every = [inputs["image"].tobytes() for inputs in (*samples.watched, *samples.held_out)]
    assert sorted(every) == sorted(wanted)


def test_any_size_and_kind_of_image_will_do(tmp_path: Path) -> None:
    for index, (mode, size) in enumerate(
        [("L", (7, 90)), ("RGBA", (300, 20)), ("P", (64, 64)), ("1", (1, 1)), ("RGB", (33, 31))]
    ):
        Image.new(mode, size).save(tmp_path / f"{index}.PNG")
    assert len(read_samples(sample_files([tmp_path]), IMAGE, TRANSFORM)) == 5


def test_folders_files_and_repeats(tmp_path: Path) -> None:
    shapes.write_samples(tmp_path / "deep" / "er", 3)
    (tmp_path / "README.txt").write_text("not a sample")
    files = sample_files([tmp_path, tmp_path / "deep" / "er" / "001.png"])
    assert [file.name for file in files] == ["000.png", "001.png", "002.png"]
    assert samples_digest(files) != samples_digest(files[:2])


def test_many_are_taken_from_all_over(tmp_path: Path) -> None:
    array = np.arange(4 * MOST, dtype=np.int64)[:, None] * np.ones((1, 12), np.int64)
    path = npz(tmp_path, ids=array, mask=np.ones_like(array))
    samples = read_samples([path], TOKENS, None)
    assert len(samples) == MOST
    firsts = [int(inputs["ids"][0, 0]) for inputs in (*samples.watched, *samples.held_out)]
    assert sorted(firsts) == list(range(0, 4 * MOST, 4))


def test_arrays_of_one_and_of_many(tmp_path: Path) -> None:
    rows = np.arange(36, dtype=np.int64).reshape(3, 12)
    samples = read_samples([npz(tmp_path, ids=rows, mask=rows)], TOKENS, None)
    assert len(samples) == 3
    every = [inputs["ids"] for inputs in (*samples.watched, *samples.held_out)]
    np.testing.assert_array_equal(np.sort(np.concatenate(every), axis=0), rows)
    np.save(tmp_path / "x.npy", np.zeros((4, 3, shapes.EDGE, shapes.EDGE), np.float32))
    assert len(read_samples([tmp_path / "x.npy"], IMAGE, None)) == 4


def damaged(folder: Path) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50)).save(buffer, "JPEG")
    (folder / "half.jpg").write_bytes(buffer.getvalue()[:300])
    return folder / "half.jpg"


def text(folder: Path) -> Path:
    (folder / "notes.jpg").write_text("shopping list")
    return folder / "notes.jpg"


@pytest.mark.parametrize("make", [damaged, text])
def test_what_is_no_image_is_named(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    with pytest.raises(ConfigurationError, match=path.name) as caught:
        read_samples([path, path], IMAGE, TRANSFORM)
    assert "JPEG, PNG or WebP" in str(caught.value)


def test_an_image_for_a_model_that_takes_none(tmp_path: Path) -> None:
    files = sample_files([shapes.write_samples(tmp_path, 2)])
    with pytest.raises(ConfigurationError, match=r"\.npz file with ids \(int64\[1, 12\]\), mask"):
        read_samples(files, TOKENS, None)
    with pytest.raises(ConfigurationError, match=r"--preprocess imagenet\|FILE"):
        read_samples(files, IMAGE, None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.ones((1, 12), np.int64)}, "ids: no mask"),
        ({"ids": np.ones((1, 12), np.int64), "mask": np.ones((1, 12))}, "'mask'.*int64.*float64"),
        (
            {"ids": np.ones((1, 13), np.int64), "mask": np.ones((1, 12), np.int64)},
            r"'ids'.*\[1, 13",
        ),
        ({"ids": np.ones((3, 12), np.int64), "mask": np.ones((2, 12), np.int64)}, r"\[3, 12\]"),
        ({"ids": np.ones((0, 12), np.int64), "mask": np.ones((0, 12), np.int64)}, r"\[0, 12\]"),
        ({"ids": np.array(["a"]), "mask": np.ones((1, 12), np.int64)}, "'ids'"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_samples([npz(tmp_path, **arrays)], TOKENS, None)
    assert "a.npz" in str(caught.value)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = npz(tmp_path, ids=np.array([{}], dtype=object), mask=np.ones((1, 12), np.int64))
    with pytest.raises(ConfigurationError, match=r"a\.npz .*an \.npz file of numbers"):
        read_samples([path], TOKENS, None)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ConfigurationError, match=r"b\.npz"):
        read_samples([tmp_path / "b.npz"], TOKENS, None)


def test_one_array_for_two_inputs_and_nan(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 12), np.int64))
    with pytest.raises(ConfigurationError, match="one array without a name"):
        read_samples([tmp_path / "x.npy"], TOKENS, None)
    np.save(tmp_path / "y.npy", np.full(IMAGE[0].spec.shape, np.nan, np.float32))
    with pytest.raises(ConfigurationError, match=r"y\.npy.*NaN"):
        read_samples([tmp_path / "y.npy"], IMAGE, None)


def test_too_few_and_none(tmp_path: Path) -> None:
    files = sample_files([shapes.write_samples(tmp_path / "one", 1)])
    with pytest.raises(ConfigurationError, match="at least 2, better 16 or more; got 1"):
        read_samples(files, IMAGE, TRANSFORM)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="nothing in this folder"):
        sample_files([tmp_path / "empty"])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_samples([tmp_path / "gone.png"], IMAGE, TRANSFORM)
