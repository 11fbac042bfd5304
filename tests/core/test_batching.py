"""Where the items of a batch are in a graph: by table, a few operators at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.batching import _RULES, FIRST, Batching, Place, cuts_apart, find_batching, open_batch
from shared.codec import decode_json, encode_json
from shared.graph import Graph, Kernels, Node, TensorSpec, Value, Weight, validate
from shared.operators import OPS, WHOLE

Step = tuple[str, str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]
"""Name, operator, operands, attributes, the result's shape."""
CONV: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def graph(
    inputs: dict[str, tuple[int, ...]],
    steps: list[Step],
    weights: dict[str, tuple[int, ...]] | None = None,
) -> Graph:
    """The last step's value is the output."""
    made = Graph(
        "g",
        tuple(Value(name, TensorSpec("float32", shape)) for name, shape in inputs.items()),
        tuple(
            Node(name, op, args, attributes, TensorSpec("float32", shape))
            for name, op, args, attributes, shape in steps
        ),
        (steps[-1][0],),
        {n: Weight(TensorSpec("float32", s), key=n) for n, s in (weights or {}).items()},
    )
    validate(made)
    return made


def reshape(name: str, x: str, *shape: int) -> Step:
    return name, "reshape", (x,), {"shape": shape}, shape


def permute(name: str, x: str, dims: tuple[int, ...], *shape: int) -> Step:
    return name, "permute", (x,), {"dims": dims}, shape


ATTENTION = graph(
    {"x": (1, 7, 8)},
    [
        permute("turned", "x", (1, 0, 2), 7, 1, 8),
        reshape("heads", "turned", 7, 2, 4),
        permute("by_head", "heads", (1, 0, 2), 2, 7, 4),
        reshape("query", "by_head", 1, 2, 7, 4),
        (
            "seen", "scaled_dot_product_attention", ("query", "query", "query", None),
            {"is_causal": False, "scale": None}, (1, 2, 7, 4),
        ),
        permute("back", "seen", (2, 0, 1, 3), 7, 1, 2, 4),
        reshape("rows", "back", 7, 8),
        ("out", "linear", ("rows", "w", None), {}, (7, 8)),
        reshape("apart", "out", 7, 1, 8),
        permute("y", "apart", (1, 0, 2), 1, 7, 8),
    ],
    {"w": (8, 8)},
)  # fmt: skip
"""torch's multi-head attention: a reshape is read one way before it and the other way after it."""


def test_every_operator_of_graphs_that_can_be_taken_apart_has_a_rule() -> None:
    assert _RULES.keys() == OPS.keys() - {"repeat", WHOLE}


def test_items_are_followed_through_attention() -> None:
    found = find_batching(ATTENTION)
    assert found.fixed == ""
    assert found.places["heads"] == Place(1), "in front of the heads"
    assert found.places["by_head"] == Place(0)
    assert found.places["rows"] == Place(0, before=7), "behind the positions"
    assert found.places["y"] == FIRST
    opened = open_batch(ATTENTION, found)
    shapes = {node.name: node.kwargs["shape"] for node in opened.nodes if node.op == "reshape"}
    assert shapes == {
        "heads": (7, -1, 4),
        "query": (-1, 2, 7, 4),
        "rows": (-1, 8),
        "apart": (7, -1, 8),
    }
    validate(opened)
    assert decode_json(encode_json(opened), Graph) == opened


def test_items_cross_a_cut_together_where_they_are_in_front() -> None:
    found = find_batching(ATTENTION)
    together = cuts_apart(ATTENTION, found, range(1, len(ATTENTION.nodes)))
    # Before each node but the first; `query` and `seen` have the items in front.
    assert together == (False, False, False, True, True, False, False, False, False)


def test_what_is_the_same_for_every_item_is_repeated_to_be_joined() -> None:
    joined = graph(
        {"x": (1, 4, 8)},
        [("y", "concat", (("token", "x"),), {"dim": 1}, (1, 5, 8))],
        {"token": (1, 1, 8)},
    )
    opened = open_batch(joined, find_batching(joined))
    repeat, concat = opened.nodes
    assert (repeat.op, repeat.args, repeat.kwargs) == ("repeat", ("token", "x"), {"dim": 0})
    assert concat.args == ((repeat.name, "x"),)
    validate(opened)


X: dict[str, tuple[int, ...]] = {"x": (1, 3, 4)}
MIXES: list[tuple[str, Graph]] = [
    ("softmax over items", graph(X, [("y", "softmax", ("x",), {"dim": 0}, (1, 3, 4))])),
    (
        "mean over all",
        graph(X, [("y", "mean", ("x",), {"dims": (), "keepdim": True}, (1, 1, 1))]),
    ),
    ("a flat output", graph(X, [reshape("y", "x", 12)])),
    (
        "the batch taken apart",
        graph(X, [("y", "select", ("x",), {"dim": 0, "index": 0}, (3, 4))]),
    ),
    (
        "joined behind each other",
        graph(X, [("y", "concat", (("x", "x"),), {"dim": 0}, (2, 3, 4))]),
    ),
    (
        "positions laid over items",
        graph({"x": (1, 4), "z": (1, 1, 4)}, [("y", "add", ("x", "z"), {"alpha": 1.0}, (1, 1, 4))]),
    ),
    (
        "repeated along the batch",
        graph(X, [("y", "expand", ("x",), {"shape": (5, 3, 4)}, (5, 3, 4))]),
    ),
    (
        "each item's positions shifted into the next",
        graph(X, [("y", "roll", ("x",), {"shifts": (1,), "dims": ()}, (1, 3, 4))]),
    ),
    (
        "items multiplied with each other",
        graph(
            {"x": (1, 3)},
            [
                permute("t", "x", (1, 0), 3, 1),
                ("y", "matmul", ("x", "t"), {}, (1, 1)),
            ],
        ),
    ),
    (
        "an image without a batch",
        graph(
            {"x": (1, 3, 4, 4)},
            [
                permute("t", "x", (1, 0, 2, 3), 3, 1, 4, 4),
                ("c", "conv2d", ("t", "w", None), CONV, (3, 2, 4, 4)),
                permute("y", "c", (1, 0, 2, 3), 2, 3, 4, 4),
            ],
            {"w": (2, 1, 1, 1)},
        ),
    ),
    ("a batch of two", graph({"x": (2, 3)}, [("y", "relu", ("x",), {}, (2, 3))])),
    ("only weights", graph(X, [("y", "relu", ("w",), {}, (1, 2))], {"w": (1, 2)})),
]


@pytest.mark.parametrize(("why", "mixing"), MIXES, ids=[why for why, _ in MIXES])
def test_what_does_not_treat_items_apart_keeps_one(why: str, mixing: Graph) -> None:
    found = find_batching(mixing)
    assert found.fixed, why
    assert not found.apart(mixing.outputs, mixing.specs())
    assert cuts_apart(mixing, found, [1] * 2) == (False, False)


def test_the_reason_names_the_operator() -> None:
    assert find_batching(MIXES[0][1]).fixed == "operator 'y' (softmax) works across items"


def test_plain_kernels_are_those_of_one_item() -> None:
    plain = replace(ATTENTION, kernels=Kernels.PLAIN)
    assert "kernels" in find_batching(plain).fixed
    assert find_batching(plain).places == Batching({}).places
