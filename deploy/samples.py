"""The samples that a model is quantised with: the operator's own images, or tensors, off this machine's disk.

An image goes through the model's own transform, as a job's would. An `.npz` file holds one array for each of
the model's inputs, by name; an `.npy` file the only input's. An array may have many samples along its first
axis.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.preprocess import check_tensor, decode_npy, preprocess
from shared.errors import ConfigurationError, JobError
from shared.graph import Value
from shared.tensor import Array
from shared.transform import Transform

FEWEST, SCARCE, MOST = 2, 16, 96
"""Without two there is nothing to compare; below 16 ranges are guesses; more than 96 tell nothing new."""
HELD_OUT = 3
"""One sample in three is kept for the comparison, and no range is taken from it."""
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_ARRAYS = (".npz", ".npy")
_KINDS = "images (JPEG, PNG, WebP) or arrays (.npz, .npy)"

Inputs = dict[str, Array]
"""One sample: the model's inputs by name."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples to take ranges from, and others to compare on."""

    watched: tuple[Inputs, ...]
    held_out: tuple[Inputs, ...]

    def __len__(self) -> int:
        return len(self.watched) + len(self.held_out)


def sample_files(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The files that `--calibrate` names: files as they are, and those of a known kind in a folder.

    Raises:
        ConfigurationError: nothing is there, or nothing of a known kind.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in (*_IMAGES, *_ARRAYS) and file.is_file()
        )
        if not inside:
            raise ConfigurationError(
                f"--calibrate {path}: nothing in this folder can be used",
                expected=_KINDS,
                got="none",
            )
        found += inside
    return tuple(dict.fromkeys(found))


def samples_digest(files: Sequence[Path]) -> str:
    """A digest of the files' contents, in their order.

    Raises:
        ConfigurationError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(_read(file)).digest())
    return digest.hexdigest()


def read_samples(
    files: Sequence[Path], inputs: Sequence[Value], transform: Transform | None
) -> Samples:
    """The samples in `files`, at most `MOST` of them, from all over the files.

    Args:
        files: as from `sample_files`.
        inputs: the model's.
        transform: how an image becomes the only input; None: the model takes no images.

    Raises:
        ConfigurationError: a file that is no image or array, or does not fit the model, by its name; or fewer
            samples than `FEWEST`.
    """
    files = _spread(files, MOST)
    found = _spread([sample for file in files for sample in _of(file, inputs, transform)], MOST)
    if len(found) < FEWEST:
        raise ConfigurationError(
            "--calibrate: too few samples; take some dozens like those that the model will see",
            expected=f"at least {FEWEST}, better {SCARCE} or more",
            got=str(len(found)),
        )
    # By lot, the same every time: files often are in the order of their classes
    order = np.random.default_rng(0).permutation(len(found))
    held = set(order[: max(len(found) // HELD_OUT, 1)].tolist())
    return Samples(
        tuple(sample for at, sample in enumerate(found) if at not in held),
        tuple(sample for at, sample in enumerate(found) if at in held),
    )


def _of(file: Path, inputs: Sequence[Value], transform: Transform | None) -> list[Inputs]:
    data = _read(file)
    try:
        match file.suffix.lower():
            case ".npz":
                return _npz(data, file, inputs)
            case ".npy" if len(inputs) == 1:
                return _batched({inputs[0].name: decode_npy(data)}, inputs)
            case ".npy":
                raise _bad(file, f"an .npz file with {_names(inputs)}", "one array without a name")
            case _ if transform is None or len(inputs) != 1:
                hint = " (or --preprocess imagenet|FILE, if it takes images)" * (len(inputs) == 1)
                raise _bad(file, f"an .npz file with {_names(inputs)}{hint}", "an image")
            case _:
                (value,) = inputs
                return [
                    {value.name: check_tensor(preprocess(data, transform), value.spec, value.name)}
                ]
    except JobError as error:
        raise ConfigurationError(
            f"--calibrate {file}: {error.message}", expected=error.expected, got=error.got
        ) from error


def _npz(data: bytes, file: Path, inputs: Sequence[Value]) -> list[Inputs]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    except Exception as error:
        # zipfile, zlib and NumPy's reader of headers fail in many ways on what is damaged.
        raise _bad(file, "an .npz file of numbers", str(error)[:200]) from error
    if missing := [value.name for value in inputs if value.name not in arrays]:
        raise _bad(
            file, f"arrays {_names(inputs)}", f"{', '.join(arrays) or 'none'}: no {missing[0]}"
        )
    return _batched({value.name: arrays[value.name] for value in inputs}, inputs)


def _batched(arrays: Inputs, inputs: Sequence[Value]) -> list[Inputs]:
    """One sample, or as many as all arrays have along their first axis."""
    counts = set()
    for value in inputs:
        shape, wanted = arrays[value.name].shape, value.spec.shape
        if shape != wanted and len(shape) == len(wanted) and shape[1:] == wanted[1:]:
            counts.add(shape[0] // wanted[0] if shape[0] % wanted[0] == 0 else 0)
        else:
            counts.add(1)
    count = counts.pop() if len(counts) == 1 else 0
    parts = {
        value.name: np.split(arrays[value.name], count) if count > 1 else [arrays[value.name]]
        for value in inputs
    }
    return [
        {
            value.name: check_tensor(parts[value.name][at], value.spec, value.name)
            for value in inputs
        }
        for at in range(max(count, 1))
    ]


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly from first to last."""
    if len(items) <= most:
        return list(items)
    return [items[at * len(items) // most] for at in range(most)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"--calibrate {file} cannot be read: {error.strerror}", expected=_KINDS, got=str(file)
        ) from error


def _bad(file: Path, expected: str, got: str) -> ConfigurationError:
    return ConfigurationError(
        f"--calibrate {file} does not fit the model", expected=expected, got=got
    )


def _names(inputs: Sequence[Value]) -> str:
    return ", ".join(f"{value.name} ({value.spec})" for value in inputs)
