"""`.pt2` archives: read exactly, and nothing in them is ever run."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy.exactness import compare
from orchestrator.models.exported_archive import read_archive
from orchestrator.models.importer import ImportedModel, import_module
from orchestrator.models.resolve import open_source
from orchestrator.models.source import parse_source
from shared.errors import ModelError
from shared.graph import Kernels
from shared.manifest import WeightsMark, validate_manifest
from tests.fakes import nets

IMAGE = torch.zeros(1, 3, 16, 16)
Members = dict[str, bytes]


def save(path: Path, net: nn.Module, *inputs: torch.Tensor, **more: Any) -> Path:
    with warnings.catch_warnings():
        # About weights that are views of others.
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(torch.export.export(net.eval(), inputs, **more), path)
    return path


def imported(path: Path) -> ImportedModel:
    return open_source(parse_source(str(path)))(Kernels.FAST)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("pt2") / "net.pt2", nets.convolutional(), IMAGE)


def test_it_gives_the_module_s_own_graph(tmp_path: Path) -> None:
    net = nets.convolutional()
    model = imported(save(tmp_path / "my net.pt2", net, IMAGE))
    direct = import_module(net, IMAGE, "my-net")
    assert model.manifest.graph.nodes == direct.manifest.graph.nodes
    assert model.blobs == direct.blobs
    assert model.manifest.model == "my-net"
    assert model.manifest.weights is WeightsMark.FILE
    assert model.manifest.leaves == ()
    validate_manifest(model.manifest)
    for runtime in ("torch", "onnxruntime"):
        assert compare(model, runtime).error < 2e-6


def test_an_encoder_by_keyword(tmp_path: Path) -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        ids = torch.zeros(1, 12, dtype=torch.int64)
        kwargs = {"mask": ids + 1, "ids": ids}
        path = save(tmp_path / "encoder.pt2", nets.encoder(), kwargs=kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    model = imported(path)
    assert [v.name for v in model.manifest.graph.inputs] == ["mask", "ids"]
    for runtime in ("torch", "onnxruntime"):
        assert compare(model, runtime).error < 2e-6


class Odd(nn.Module):
    """A transposed weight, pieces, infinities, a buffer that is not saved, and Python's own words."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(4, 6)
        self.turned = nn.Parameter(whole.T)
        self.register_buffer("never", torch.tensor(float("-inf")), persistent=False)

    def forward(self, input: torch.Tensor) -> list[torch.Tensor]:  # noqa: A002
        first, second = torch.split(input @ self.turned, [1, 3], -1)
        second = torch.maximum(second, self.never) + first.clamp(max=float("inf"))
        return [second[:, :2], second.chunk(3, -1)[2], torch.full((2,), 2.0) * first]


def test_strides_views_pieces_and_infinities(tmp_path: Path) -> None:
    model = imported(save(tmp_path / "odd.pt2", Odd(), torch.zeros(3, 6)))
    assert len(model.manifest.graph.outputs) == 3
    assert model.manifest.graph.inputs[0].name == "input"
    for runtime in ("torch", "onnxruntime"):
        assert compare(model, runtime).error < 2e-6


def changed(source: Path, target: Path, change: Callable[[Members], None]) -> Path:
    """A copy of an archive with its members changed."""
    with zipfile.ZipFile(source) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return target


def named(members: Members, end: str) -> str:
    (name,) = (name for name in members if name.endswith(end))
    return name


def edit(members: Members, end: str, change: Callable[[Any], None]) -> None:
    name = named(members, end)
    document = json.loads(members[name])
    change(document)
    members[name] = json.dumps(document).encode()


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["torch", "plain"])
@pytest.mark.parametrize("where", ["weight", "all weights", "constants", "samples"])
def test_a_pickle_in_an_archive_is_never_run(
    archive: Path, tmp_path: Path, where: str, form: str
) -> None:
    mark = tmp_path / "the code was run"
    trap = pickled({"a": Trap(mark)}) if form == "torch" else pickle.dumps({"a": Trap(mark)})

    def weight(config: Any) -> None:
        config["config"]["head.weight"]["use_pickle"] = True

    def change(members: Members) -> None:
        config = named(members, "model_weights_config.json")
        folder = config.rpartition("/")[0]
        match where:
            case "weight":
                edit(members, "model_weights_config.json", weight)
                path = json.loads(members[config])["config"]["head.weight"]["path_name"]
                members[f"{folder}/{path}"] = trap
            case "all weights":
                del members[config]
                members[f"{folder}/model.pt"] = trap
            case "constants":
                constants = named(members, "model_constants_config.json")
                del members[constants]
                members[constants.rpartition("/")[0] + "/model.pt"] = trap
            case _:
                members[named(members, "data/sample_inputs/model.pt")] = trap

    path = changed(archive, tmp_path / "net.pt2", change)
    if where == "samples":
        assert imported(path).manifest.model == "net"
    else:
        with pytest.raises(ModelError, match=r"not unpickled.*torch\.export\.save"):
            imported(path)
    assert not mark.exists()


def test_weights_that_an_older_release_pickled_are_read_if_they_are_tensors(
    archive: Path, tmp_path: Path
) -> None:
    tensors = read_archive(archive).tensors

    def change(members: Members) -> None:
        config = named(members, "model_weights_config.json")
        del members[config]
        members[config.rpartition("/")[0] + "/model.pt"] = pickled(tensors)

    path = changed(archive, tmp_path / "net.pt2", change)
    assert imported(path).blobs == imported(archive).blobs


def first_node(change: Callable[[Any], None]) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        edit(
            members,
            "models/model.json",
            lambda program: change(program["graph_module"]["graph"]["nodes"][0]),
        )

    return apply


def target(name: str) -> Callable[[Members], None]:
    return first_node(lambda node: node.update(target=name))


def renamed(members: Members) -> None:
    """A name that would be code, were Python made of the graph."""
    name = named(members, "models/model.json")
    evil = "x = 1\\n    raise SystemExit('the code was run')\\n    y"
    members[name] = members[name].replace(b'"image"', b'"' + evil.encode() + b'"')


def from_file(node: Any) -> None:
    node.update(
        target="torch.ops.aten.from_file.default",
        inputs=[
            {"name": "filename", "arg": {"as_string": "/tmp/made"}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 8}, "kind": 1},
        ],
    )


def weights(change: Callable[[Any], None]) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        edit(members, "model_weights_config.json", lambda d: change(d["config"]["head.weight"]))

    return apply


def program(change: Callable[[Any], None]) -> Callable[[Members], None]:
    return lambda members: edit(members, "models/model.json", change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (target("torch.os.system"), r"operator; expected ATen's.*got torch\.os\.system"),
        (target("os.system"), "operator; expected ATen's"),
        (target("torch.ops.aten.__class__.mro"), "operator; expected ATen's"),
        (target("torch.ops.mylib.conv.default"), "operator; expected ATen's"),
        (target("_operator.attrgetter"), "operator; expected ATen's"),
        (first_node(from_file), "one that takes no text"),
        (renamed, "Python identifiers"),
        (
            target("torch.ops.aten.conv3d.default"),
            "operator aten.conv3d.default is not on the list",
        ),
        (first_node(lambda node: node.update(inputs=[])), r"failed in aten\.conv2d"),
        (first_node(lambda node: node.pop("outputs")), "cannot be read: KeyError"),
        (weights(lambda entry: entry["tensor_meta"].update(dtype=9)), "dtype"),
        (weights(lambda entry: entry["tensor_meta"]["sizes"][0].update(as_int=500)), "damaged"),
        (
            weights(lambda entry: entry["tensor_meta"]["storage_offset"].update(as_int=-4)),
            "damaged",
        ),
        (weights(lambda entry: entry.update(path_name="../../etc/passwd")), "damaged: KeyError"),
        (
            lambda members: edit(
                members, "model_weights_config.json", lambda d: d["config"].pop("head.weight")
            ),
            "its tensor in the archive",
        ),
        (program(lambda p: p.pop("graph_module")), "cannot be read: KeyError"),
        (
            program(lambda p: p["graph_module"]["graph"].update(sym_int_values={"s0": {}})),
            "open shapes",
        ),
        (lambda members: members.update({named(members, "models/model.json"): b"{"}), "JSON"),
        (lambda members: members.pop(named(members, "models/model.json")) and None, "layout"),
    ],
)
def test_what_is_wrong_in_an_archive_is_named(
    archive: Path, tmp_path: Path, change: Callable[[Members], None], match: str
) -> None:
    path = changed(archive, tmp_path / "net.pt2", change)
    with pytest.raises(ModelError, match=match):
        imported(path)


def test_open_shapes_are_refused(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    path = save(
        tmp_path / "open.pt2", nn.Linear(3, 2), torch.zeros(2, 3), dynamic_shapes=({0: batch},)
    )
    with pytest.raises(ModelError, match="open shapes"):
        imported(path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 or so", bytes(1000)])
def test_what_is_no_archive(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.pt2"):
        imported(path)
