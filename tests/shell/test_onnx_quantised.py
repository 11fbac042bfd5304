"""The operators of int8 graphs in ONNX Runtime, against the arithmetic that the graph promises, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from edge_agent.runtimes import int8_runtimes, open_runtime
from edge_agent.runtimes.onnx_quantised import TABLE
from shared.errors import StageError
from shared.graph import Graph, GraphBuilder
from shared.operators import QUANTISED
from shared.tensor import Array

X, Y, OUT = (0.05073, 120), (0.03119, 7), (0.04137, 99)
"""Scales and zero points; no ratio of two is a simple fraction, which would put values between steps."""
IMAGE = (1, 8, 9, 7)
CONV = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


def of(prefix: str, form: tuple[float, int]) -> dict[str, Any]:
    start = f"{prefix}_" if prefix else ""
    return {f"{start}scale": form[0], f"{start}zero": form[1]}


def real(array: Array, form: tuple[float, int]) -> Array:
    return (array.astype(np.float64) - form[1]) * form[0]


def eight(array: Array, form: tuple[float, int]) -> Array:
    return np.clip(np.rint(array / form[0]) + form[1], 0, 255).astype(np.uint8)


@dataclass
class Case:
    """A graph of one operator, inputs for it, and what should come out in real numbers."""

    graph: Graph
    inputs: dict[str, Array]
    blobs: dict[str, bytes]
    expected: Array


class Layer:
    """Random inputs and weights for a graph of one operator."""

    def __init__(self, op: str) -> None:
        self.random = np.random.default_rng(1)
        self.builder = GraphBuilder(op)
        self.inputs: dict[str, Array] = {}
        self.weights: dict[str, Array] = {}
        self.op = op

    def uint8(self, name: str, shape: tuple[int, ...]) -> Array:
        self.inputs[self.builder.input(name, shape, "uint8")] = self.random.integers(
            0, 256, shape, np.uint8
        )
        return self.inputs[name]

    def weight(self, name: str, array: Array) -> Array:
        self.weights[self.builder.weight(name, array.shape, str(array.dtype), "0" * 64)] = array
        return array

    def layer(self, *shape: int) -> tuple[Array, Array, Array]:
        whole = self.weight("w", self.random.integers(-64, 65, shape).astype(np.int8))
        scales = self.weight("s", self.random.uniform(0.001, 0.01, shape[0]).astype(np.float32))
        bias = self.weight("b", self.random.integers(-2000, 2000, shape[0]).astype(np.int32))
        return whole, scales.astype(np.float64), bias

    def case(self, *args: Any, expected: Array, dtype: str = "uint8", **kwargs: Any) -> Case:
        self.builder.node(
            self.op, *args, shape=expected.shape, dtype=dtype, name="result", **kwargs
        )
        blobs = {"0" * 64: safetensors.numpy.save(self.weights)}
        return Case(self.builder.build("result"), self.inputs, blobs, expected)


def quantize() -> Case:
    made = Layer("quantize")
    x = made.random.normal(0, 4, IMAGE).astype(np.float32)
    made.inputs[made.builder.input("x", IMAGE)] = x
    return made.case("x", expected=x, **of("", OUT))


def dequantize() -> Case:
    made = Layer("dequantize")
    x = made.uint8("x", IMAGE)
    return made.case("x", expected=real(x, X), dtype="float32", **of("x", X))


def q_conv2d(groups: int = 1) -> Case:
    made = Layer("q_conv2d")
    x = made.uint8("x", IMAGE)
    weight, scales, bias = made.layer(8, 8 // groups, 3, 3)
    # In whole numbers, which float64 holds; the padding is the zero point, which stands for 0.
    sums = torch.conv2d(
        torch.from_numpy(x.astype(np.float64) - X[1]),
        torch.from_numpy(weight.astype(np.float64)),
        torch.from_numpy(bias.astype(np.float64)),
        padding=1,
        groups=groups,
    ).numpy()
    expected = sums * (X[0] * scales).reshape(1, -1, 1, 1)
    kwargs = {**CONV, "groups": groups, **of("x", X), **of("", (0.4, 99))}
    return made.case("x", "w", "s", "b", expected=expected, **kwargs)


def q_linear(shape: tuple[int, ...] = (3, 16), *, exact: bool = False) -> Case:
    made = Layer("q_linear")
    x = made.uint8("x", shape)
    weight, scales, bias = made.layer(12, shape[-1])
    sums = (x.astype(np.int64) - X[1]) @ weight.T.astype(np.int64) + bias
    expected = sums * (X[0] * scales)
    result = {"scale": None, "zero": None} if exact else of("", OUT)
    dtype = "float32" if exact else "uint8"
    return made.case("x", "w", "s", "b", expected=expected, dtype=dtype, **of("x", X), **result)


def binary(op: str, shape: tuple[int, ...] = IMAGE) -> Case:
    made = Layer(op)
    x, y = real(made.uint8("x", IMAGE), X), real(made.uint8("y", shape), Y)
    expected = x + y if op == "q_add" else x * y
    return made.case("x", "y", expected=expected, **of("x", X), **of("y", Y), **of("", (0.1, 99)))


def q_sigmoid() -> Case:
    made = Layer("q_sigmoid")
    x = real(made.uint8("x", IMAGE), X)
    return made.case("x", expected=1 / (1 + np.exp(-x)), **of("x", X), **of("", (1 / 255, 0)))


def q_global_avg_pool2d() -> Case:
    made = Layer("q_global_avg_pool2d")
    x = real(made.uint8("x", IMAGE), X)
    expected = x.mean((2, 3), keepdims=True)
    return made.case("x", expected=expected, **of("x", X), **of("", (0.01, 99)))


def q_concat() -> Case:
    made = Layer("q_concat")
    x, y = real(made.uint8("x", IMAGE), X), real(made.uint8("y", (1, 3, 9, 7)), Y)
    kwargs = {"dim": 1, "xs_scale": (X[0], Y[0]), "xs_zero": (X[1], Y[1]), **of("", OUT)}
    return made.case(("x", "y"), expected=np.concatenate([x, y], 1), **kwargs)


CASES: list[tuple[str, Callable[[], Case]]] = [
    ("quantize", quantize),
    ("dequantize", dequantize),
    ("q_conv2d", q_conv2d),
    ("q_conv2d", lambda: q_conv2d(groups=8)),
    ("q_conv2d", lambda: q_conv2d(groups=2)),
    ("q_linear", q_linear),
    ("q_linear", lambda: q_linear(exact=True)),
    ("q_linear", lambda: q_linear((2, 3, 16))),
    ("q_linear", lambda: q_linear((1, 2, 3, 16), exact=True)),
    ("q_add", lambda: binary("q_add")),
    ("q_mul", lambda: binary("q_mul")),
    ("q_mul", lambda: binary("q_mul", (1, 8, 1, 1))),
    ("q_sigmoid", q_sigmoid),
    ("q_global_avg_pool2d", q_global_avg_pool2d),
    ("q_concat", q_concat),
]


@pytest.mark.parametrize(
    ("op", "make"), CASES, ids=lambda each: each if isinstance(each, str) else ""
)
def test_an_operator_computes_what_the_graph_says(op: str, make: Callable[[], Case]) -> None:
    case = make()
    (node,) = case.graph.nodes
    assert node.op == op
    result = open_runtime("onnxruntime").load(case.graph, case.blobs).run(case.inputs)["result"]
    assert (str(result.dtype), result.shape) == (node.spec.dtype, case.expected.shape)
    if node.spec.dtype == "float32":
        assert np.abs(result.astype(np.float64) - case.expected).max() < 1e-5
        return
    form = (node.kwargs["scale"], node.kwargs["zero"])
    wanted = eight(case.expected, form)  # type: ignore[arg-type]
    assert len(np.unique(wanted)) > 5
    # Float32 against float64 just where a value lies between two steps; nowhere else, and never by more.
    apart = np.abs(result.astype(int) - wanted.astype(int))
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= 0.02 * apart.size


def test_every_int8_operator_is_converted_and_tested() -> None:
    assert TABLE.keys() == QUANTISED
    assert {op for op, _ in CASES} == QUANTISED
    assert int8_runtimes() == ("onnxruntime",)


def test_the_torch_runtime_says_what_to_do() -> None:
    case = q_linear()
    with pytest.raises(StageError, match=r"--runtime onnxruntime, or at level O1") as caught:
        open_runtime("torch").load(case.graph, case.blobs)
    assert caught.value.got == "q_linear"


def test_half_a_result_is_refused() -> None:
    made = Layer("q_linear")
    made.uint8("x", (1, 4))
    made.layer(2, 4)
    case = made.case(
        "x", "w", "s", "b", expected=np.zeros((1, 2)), **of("x", X), scale=0.1, zero=None
    )
    with pytest.raises(StageError, match=r"result \(q_linear\): scale and zero"):
        open_runtime("onnxruntime").load(case.graph, case.blobs)
