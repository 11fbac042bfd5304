"""MODEL on a command line: what it means is decided by its spelling."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.flags import ServeFlags
from orchestrator.models.source import InputShape, SourceKind, parse_source
from shared.errors import ConfigurationError

IMAGE = InputShape((1, 3, 32, 32))


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [
        ("mobilenet_v2", SourceKind.TORCHVISION, "mobilenet_v2"),
        ("/models/my net.pt2", SourceKind.EXPORTED, "my-net"),
        ("nets/birds.v2.ONNX", SourceKind.ONNX, "birds.v2"),
        ("_private.onnx", SourceKind.ONNX, "private"),
        ("mynets:Encoder", SourceKind.FACTORY, "Encoder"),
        ("a.b.c:Zoo.tiny", SourceKind.FACTORY, "tiny"),
    ],
)
def test_kinds_and_names(model: str, kind: SourceKind, name: str) -> None:
    inputs = (IMAGE,) if kind is SourceKind.FACTORY else ()
    source = parse_source(model, inputs=inputs)
    assert (source.kind, source.reference, source.name) == (kind, model, name)
    assert parse_source(model, inputs=inputs, name="cats").name == "cats"


@pytest.mark.parametrize(
    ("model", "flags", "match"),
    [
        ("", {}, "no model that could be read"),
        ("///", {}, "no model that could be read"),
        ("some/folder", {}, "no model that could be read"),
        ("mobilenet_v2 ", {}, "no model that could be read"),
        ("my-module:make", {"inputs": [IMAGE]}, "no model that could be read"),
        ("module:", {"inputs": [IMAGE]}, "no model that could be read"),
        ("net.pth", {}, "--weights FILE"),
        ("net.safetensors", {}, "--weights FILE"),
        ("net.tflite", {}, "tf2onnx"),
        ("nets.py", {}, "MODULE:FACTORY"),
        ("resnet18", {"name": "a/b"}, "cannot be used in a topic"),
        ("resnet18", {"inputs": [IMAGE]}, "leave out --input-shape"),
        ("net.pt2", {"inputs": [IMAGE]}, "leave out --input-shape"),
        ("net.onnx", {"weights": "none"}, "leave out --weights"),
        ("net.pt2", {"weights": "w.pth"}, "leave out --weights"),
        ("nets:Net", {}, "--input-shape"),
        ("nets:Net", {"inputs": [IMAGE], "weights": "none"}, "leave out --weights"),
        ("n.onnx", {"inputs": [InputShape((1,), None, "a")] * 2}, "names"),
    ],
)
def test_what_is_refused(model: str, flags: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        parse_source(model, **flags)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1x3x224x224", InputShape((1, 3, 224, 224))),
        ("128", InputShape((128,))),
        ("ids:1x128", InputShape((1, 128), None, "ids")),
        ("1x128:int64", InputShape((1, 128), "int64")),
        ("ids:1x128:int64", InputShape((1, 128), "int64", "ids")),
        ("input:0:1x3", InputShape((1, 3), None, "input:0")),
        ("model/in put.1:4", InputShape((4,), None, "model/in put.1")),
    ],
)
def test_shapes(text: str, shape: InputShape) -> None:
    assert InputShape.parse(text) == shape
    assert str(shape) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1x", "ids", "ids:", "1,3,4", "-1x3", "0x3", "1x0", "1X3", ":1x3", "1x3:"),
        *(
            "1x3:float99",
            "1x3:str",
            "9" * 400,
            "65536x65536x65536",
            "1x1x1x1x1x1x1x1x1",
            "\uff11x\uff12",
        ),
    ],
)
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--input-shape"):
        InputShape.parse(text)


def test_the_flags_of_serve_make_a_source_and_survive_a_command_line() -> None:
    flags = ServeFlags(weights="w.pth", input_shapes=(IMAGE,), name="n")
    source = flags.source("nets:Net")
    assert (source.name, source.weights, source.inputs) == ("n", "w.pth", (IMAGE,))
    assert "--input-shape=1x3x32x32" in flags.arguments()
