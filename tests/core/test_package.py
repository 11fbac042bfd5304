"""What the planner is told about a model that is ready to be served."""

from __future__ import annotations

import pytest

from shared.errors import ConfigurationError
from shared.graph import GraphBuilder
from shared.manifest import Block, Level, Manifest, WeightsMark
from shared.package import Measured, ModelPackage, read_package


def package(measured: Measured) -> ModelPackage:
    b = GraphBuilder("tiny")
    x = b.input("x", (1, 8))
    graph = b.build(b.node("relu", x, shape=(1, 8)))
    manifest = Manifest(
        model="tiny",
        level=Level.O1,
        weights=WeightsMark.NONE,
        graph=graph,
        blocks=(Block(0, "relu", (0, 1), 0, 0, 64),),
        cuts=(),
        input_bytes=32,
        output_bytes=32,
    )
    return ModelPackage(manifest=manifest, measured={"torch": measured}, weights=())


def test_an_image_travels_to_stage_0_as_a_file_and_a_tensor_as_it_is() -> None:
    image = package(Measured(block_seconds=(0.01,), input_seconds=0.002, input_bytes=47_000))
    profile = image.profile("torch")
    assert (profile.input_bytes, profile.input_seconds) == (47_000, 0.002)
    assert package(Measured(block_seconds=(0.01,))).profile("torch").input_bytes == 32


def test_a_package_comes_back_as_it_was() -> None:
    sent = package(Measured(block_seconds=(0.01,), input_bytes=47_000))
    assert read_package(sent.to_bytes()) == sent


def test_what_was_measured_is_checked_when_it_is_read() -> None:
    with pytest.raises(ConfigurationError, match="input_bytes"):
        read_package(package(Measured(block_seconds=(0.01,), input_bytes=-1)).to_bytes())


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (((0.2,) * 5, (0.2,) * 5), "1 rows, one for each block"),
        (((0.25,) * 4,), "shares of conv_dense, conv_depthwise, matmul, memory, overhead"),
        (((0.5,) * 5,), "that sum to 1"),
        (((-1.0, 2.0, 0.0, 0.0, 0.0),), "that sum to 1"),
    ],
)
def test_shares_that_make_no_sense(shares: tuple[tuple[float, ...], ...], expected: str) -> None:
    sent = package(Measured(block_seconds=(0.01,), block_shares=shares)).to_bytes()
    with pytest.raises(ConfigurationError, match="block_shares") as error:
        read_package(sent)
    assert expected in str(error.value.expected)


def test_a_runtime_that_was_not_measured_is_named() -> None:
    with pytest.raises(ConfigurationError, match="expected one of torch; got onnx"):
        package(Measured(block_seconds=(0.01,))).profile("onnx")
