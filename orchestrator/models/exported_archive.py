"""A `.pt2` archive as its parts: the graph's JSON, and the tensors, which lie there as raw bytes.

PyTorch's own reader is not used: where an archive's members are pickles, it falls back to running them, and
it looks the graph's operators up by whatever name stands there. Here nothing of the archive is run. A member
that is a pickle all the same (older releases wrote weights so) goes through the restricted unpickler or is
refused. Sample inputs, which are always pickled, are not looked at.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.codec import decode_json
from shared.errors import ModelError, ProtocolError
from shared.graph import MAX_WEIGHT_BYTES

AGAIN = "export it again with torch 2.9 or later: torch.export.save(torch.export.export(model, inputs), FILE)"
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
}
"""ScalarType of torch/_export/serde/schema.py; those that our graphs have."""


_BROKEN = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, KeyError, TypeError,
    zlib.error, struct.error,
)  # fmt: skip
"""What the library raises for archives that are damaged (RuntimeError: a member that is encrypted), and we
for members that are not what they should be."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The program's JSON, and its weights and lifted constants by their path in the model."""

    path: Path
    program: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def read_archive(path: Path) -> Archive:
    """Read what `torch.export.save` wrote.

    Raises:
        ModelError: no such archive, one of a layout that is not known, or members that are pickles of more
            than tensors.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _read(path, file)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}",
            expected="a .pt2 file",
            got=str(path),
        ) from error
    except _BROKEN as error:
        raise ModelError(
            f"{path} is no archive of torch.export: {error}",
            expected="what torch.export.save writes",
        ) from error


def _read(path: Path, file: zipfile.ZipFile) -> Archive:
    names = file.namelist()
    total = sum(entry.file_size for entry in file.infolist())
    if total > MAX_WEIGHT_BYTES:
        raise ModelError(f"{path}: bytes", expected=f"at most {MAX_WEIGHT_BYTES}", got=str(total))
    programs = [name for name in names if name.endswith("/models/model.json")]
    if len(programs) != 1:
        raise ModelError(
            f"{path} is of a layout that is not known; {AGAIN}",
            expected="one model in models/model.json",
            got=", ".join(sorted(names))[:200] or "an empty archive",
        )
    root = programs[0].removesuffix("models/model.json")
    tensors: dict[str, torch.Tensor] = {}
    for kind in ("weights", "constants"):
        folder, listed = f"{root}data/{kind}/", f"model_{kind}_config.json"
        if folder + listed in names:
            for key, entry in _json(path, file, folder + listed)["config"].items():
                tensors[key] = _tensor(path, file, folder, key, entry)
        elif f"{folder}model.pt" in names:
            tensors.update(_unpickled(path, file.read(f"{folder}model.pt"), kind))
    return Archive(path, _json(path, file, programs[0]), tensors)


def _json(path: Path, file: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        return decode_json(file.read(name), dict[str, Any])
    except ProtocolError as error:
        raise ModelError(f"{path}: {name} cannot be read: {error}", expected="JSON") from error


def _tensor(
    path: Path, file: zipfile.ZipFile, folder: str, key: str, entry: Mapping[str, Any]
) -> torch.Tensor:
    """One tensor: raw bytes with its form beside them, or a pickle of a tensor and nothing else."""
    where = f"{path}: {key!r}"
    try:
        member, meta = file.read(folder + entry["path_name"]), entry["tensor_meta"]
        if entry["use_pickle"]:
            value = _load(where, member)
            if not isinstance(value, torch.Tensor):
                raise ModelError(where, expected="a tensor", got=type(value).__name__)
            return value.detach()
        if meta is None:
            raise ModelError(f"{where} is no tensor", expected="tensors only", got="an object")
        dtype = DTYPES.get(meta["dtype"])
        if dtype is None:
            known = " | ".join(str(known).removeprefix("torch.") for known in DTYPES.values())
            raise ModelError(f"{where}: dtype", expected=known, got=f"ScalarType {meta['dtype']}")
        sizes, strides = ([int(n["as_int"]) for n in meta[what]] for what in ("sizes", "strides"))
        offset = int(meta["storage_offset"]["as_int"])
        storage = (
            torch.frombuffer(bytearray(member), dtype=dtype)
            if member
            else torch.empty(0, dtype=dtype)
        )
        return torch.as_strided(storage, sizes, strides, offset).contiguous()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        text = str(error).strip().partition("\n")[0][:200]
        raise ModelError(
            f"{where} is damaged: {type(error).__name__}: {text}",
            expected="raw bytes and their form, as torch.export.save writes them",
        ) from error


def _unpickled(path: Path, member: bytes, kind: str) -> dict[str, torch.Tensor]:
    state = _load(f"{path}: its {kind}", member)
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ModelError(
            f"{path}: its {kind} are not tensors only; {AGAIN}", expected="names to tensors"
        )
    return {str(key): tensor.detach() for key, tensor in state.items()}


def _load(where: str, member: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(member), map_location="cpu", weights_only=True)
    except Exception as error:
        # The restricted unpickler meets arbitrary bytes here and fails in as many ways.
        first_line = str(error).strip().partition("\n")[0][:200]
        raise ModelError(
            f"{where}: a pickle of more than tensors is not unpickled, since that could run code; {AGAIN}",
            expected="raw bytes, or a pickle of tensors",
            got=first_line,
        ) from error
