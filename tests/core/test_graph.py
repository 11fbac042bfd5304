"""The graph's own rules, without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.codec import decode_json, encode_json
from shared.errors import GraphError, ProtocolError
from shared.graph import (
    MAX_NODES,
    CostClass,
    Graph,
    GraphBuilder,
    Node,
    TensorSpec,
    Value,
    Weight,
    cost_class,
    validate,
)

CONV: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def small() -> Graph:
    b = GraphBuilder("small")
    x = b.input("x", (1, 3, 4, 4))
    w = b.weight("w", (8, 3, 1, 1))
    y = b.node("conv2d", x, w, None, shape=(1, 8, 4, 4), **CONV)
    z = b.node("relu", y, shape=(1, 8, 4, 4))
    return b.build(b.node("concat", (y, z), shape=(1, 16, 4, 4), dim=1))


def with_node(**changes: Any) -> Graph:
    graph = small()
    return replace(graph, nodes=(replace(graph.nodes[0], **changes), *graph.nodes[1:]))


def test_json_round_trip() -> None:
    graph = small()
    assert decode_json(encode_json(graph), Graph) == graph


def test_specs_and_blobs() -> None:
    graph = small()
    assert graph.specs()["w"].nbytes == 96
    assert [str(value.spec) for value in graph.output_values()] == ["float32[1, 16, 4, 4]"]
    assert graph.blobs() == ("",)


def test_cost_classes() -> None:
    b = GraphBuilder("classes")
    x = b.input("x", (1, 8, 4, 4))
    deep = b.weight("deep", (8, 1, 3, 3))
    dense = b.weight("dense", (8, 8, 1, 1))
    shape = (1, 8, 4, 4)
    d = b.node("conv2d", x, deep, None, shape=shape, **{**CONV, "padding": (1, 1), "groups": 8})
    c = b.node("conv2d", d, dense, None, shape=shape, **CONV)
    m = b.node("matmul", c, c, shape=shape)
    graph = b.build(b.node("relu", m, shape=shape))
    assert [cost_class(node, graph.specs()) for node in graph.nodes] == [
        CostClass.CONV_DEPTHWISE,
        CostClass.CONV_DENSE,
        CostClass.MATMUL,
        CostClass.MEMORY,
    ]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_node(op="system"), "one of the closed list; got 'system'"),
        (with_node(args=("x", "w")), r"operands; expected 3; got 2"),
        (with_node(args=("x", "nothing", None)), "earlier node; got 'nothing'"),
        (with_node(args=("relu_1", "w", None)), "earlier node; got 'relu_1'"),
        (with_node(args=(("x",), "w", None)), "a name; got"),
        (with_node(args=(None, "w", None)), "a name; got None"),
        (with_node(kwargs={}), "attributes"),
        (with_node(kwargs={**CONV, "extra": 1}), "attributes"),
        (with_node(kwargs={**CONV, "groups": True}), "attribute 'groups'; expected int"),
        (with_node(kwargs={**CONV, "stride": (1, 1, 1)}), "attribute 'stride'; expected int2"),
        (with_node(kwargs={**CONV, "groups": 2**40}), "attribute 'groups'"),
        (with_node(name="x"), "used once"),
        (with_node(name="w"), "used once"),
        (with_node(name=""), "characters"),
        (with_node(spec=TensorSpec("complex64", (1,))), "dtype"),
        (with_node(spec=TensorSpec("float32", (1,) * 9)), "rank"),
        (with_node(spec=TensorSpec("float32", (0,))), "dimension"),
        (with_node(spec=TensorSpec("float32", (-1,))), "dimension"),
        (with_node(spec=TensorSpec("float32", (2**20, 2**20))), "bytes of node"),
        (replace(small(), outputs=()), "outputs"),
        (replace(small(), outputs=("relu_1", "relu_1")), "outputs"),
        (replace(small(), outputs=("w",)), "an input or a node; got 'w'"),
        (replace(small(), outputs=("gone",)), "got 'gone'"),
        (replace(small(), weights={}), "a declared weight"),
        (replace(small(), nodes=()), "number of nodes"),
        (replace(small(), nodes=small().nodes * MAX_NODES), "number of nodes"),
        (
            replace(
                small(),
                weights={f"w{i}": Weight(TensorSpec("float32", (2**20, 2**10))) for i in range(20)},
            ),
            "bytes of all weights",
        ),
    ],
)
def test_what_is_malformed_is_refused_by_name(graph: Graph, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        validate(graph)


def test_null_is_refused_where_a_number_must_be() -> None:
    b = GraphBuilder("nulls")
    x = b.input("x", (1, 2))
    b.node("clamp", x, shape=(1, 2), name="ok", min=None, max=6.0)
    b.node("mul_scalar", "ok", shape=(1, 2), name="bad", value=None)
    with pytest.raises(GraphError, match="attribute 'value'; expected float; got None"):
        b.build("bad")


def test_a_graph_of_the_wrong_types_does_not_decode() -> None:
    with pytest.raises(ProtocolError):
        decode_json(b'{"name": "x", "inputs": [], "nodes": [{"name": 3}], "outputs": []}', Graph)


def test_a_node_reads_lists_and_leaves_out_nulls() -> None:
    node = Node("n", "concat", (("a", "b"), None, "c"), {}, TensorSpec("float32", (1,)))
    assert node.refs() == ("a", "b", "c")


def test_an_input_may_be_an_output() -> None:
    graph = small()
    validate(replace(graph, outputs=("x", *graph.outputs)))


def test_values_are_hashable() -> None:
    assert (
        len({Value("x", TensorSpec("float32", (1,))), Value("x", TensorSpec("float32", (1,)))}) == 1
    )


def int8(**changes: Any) -> Graph:
    b = GraphBuilder("int8")
    x, y = b.input("x", (1, 4), "uint8"), b.input("y", (1, 4), "uint8")
    kwargs: dict[str, Any] = {"dim": 1, "xs_scale": (0.5, 2.0), "xs_zero": (0, 255)}
    kwargs |= {"scale": 0.25, "zero": 128} | changes
    return b.build(b.node("q_concat", (x, y), shape=(1, 8), dtype="uint8", **kwargs))


def test_scales_survive_the_wire() -> None:
    graph = int8(scale=1.0)
    assert decode_json(encode_json(graph), Graph) == graph


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.0},
        {"scale": -0.1},
        {"scale": float("nan")},
        {"scale": 1e39},
        {"scale": None},
        {"scale": True},
        {"zero": 256},
        {"zero": -1},
        {"zero": 0.5},
        {"xs_scale": (0.5,)},
        {"xs_scale": 0.5},
        {"xs_scale": (0.5, 0.0)},
        {"xs_zero": (0, 256)},
        {"xs_zero": (0, 1, 2)},
    ],
)
def test_scales_and_zero_points_that_mean_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=f"attribute '{next(iter(changes))}'"):
        int8(**changes)


def test_int8_operators_are_of_their_operator_s_class() -> None:
    b = GraphBuilder("classes")
    x = b.input("x", (1, 8, 4, 4), "uint8")
    form = {"x_scale": 0.1, "x_zero": 0, "scale": 0.1, "zero": 0}
    names = [b.weight(name, (8, per, 3, 3), "int8") for name, per in (("deep", 1), ("dense", 8))]
    scales = b.weight("s", (8,))
    for name, groups in zip(names, (8, 1), strict=True):
        kwargs = {**CONV, "padding": (1, 1), "groups": groups, **form}
        x = b.node("q_conv2d", x, name, scales, None, shape=(1, 8, 4, 4), dtype="uint8", **kwargs)
    graph = b.build(x)
    assert [cost_class(node, graph.specs()) for node in graph.nodes] == [
        CostClass.CONV_DEPTHWISE,
        CostClass.CONV_DENSE,
    ]
