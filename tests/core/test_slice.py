"""Cuts, blocks, slices and multiply-adds on graphs made by hand and at random: no torch."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.cuts import cut_positions, find_blocks, liveness
from orchestrator.models.macs import macs
from orchestrator.models.slice import slice_stage
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, GraphError
from shared.graph import Graph, GraphBuilder, Node, TensorSpec, validate
from shared.manifest import Level, Manifest, WeightsMark, validate_manifest
from shared.operators import OPS

CONV: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
SHAPE = (1, 4, 2, 2)


def manifest_of(graph: Graph) -> Manifest:
    blocks, cuts = find_blocks(graph)
    blocks = tuple(replace(block, blob=f"{block.index:064x}") for block in blocks)
    return Manifest(
        model=graph.name,
        level=Level.O1,
        weights=WeightsMark.NONE,
        graph=graph,
        blocks=blocks,
        cuts=cuts,
        input_bytes=sum(value.spec.nbytes for value in graph.inputs),
        output_bytes=sum(value.spec.nbytes for value in graph.output_values()),
    )


def residual() -> Graph:
    """conv a -> relu -> conv b -> add(relu) -> relu -> conv c -> mean; `shared` is read twice."""
    b = GraphBuilder("residual")
    x = b.input("x", SHAPE)
    shared = b.weight("shared", (4, 4, 1, 1))
    a = b.node("conv2d", x, shared, None, shape=SHAPE, name="a", module="body.0", **CONV)
    r = b.node("relu", a, shape=SHAPE, name="r")
    c = b.node("conv2d", r, shared, None, shape=SHAPE, name="b", module="body.1", **CONV)
    s = b.node("add", c, r, shape=SHAPE, name="s", alpha=1.0)
    t = b.node("relu", s, shape=SHAPE, name="t")
    d = b.node("conv2d", t, b.weight("w", (4, 4, 1, 1)), None, shape=SHAPE, name="c", **CONV)
    return b.build(b.node("mean", d, shape=(1, 4), name="y", dims=(2, 3), keepdim=False))


def test_elementwise_operators_stay_with_their_producer() -> None:
    blocks, cuts = find_blocks(residual())
    assert [block.nodes for block in blocks] == [(0, 2), (2, 5), (5, 7)]
    assert [(cut.index, cut.bytes, cut.tensors) for cut in cuts] == [(1, 64, 1), (2, 64, 1)]
    assert [block.name for block in blocks] == ["body.0", "body.1", "c"]
    assert [block.macs for block in blocks] == [64, 64, 64]
    assert [block.weight_bytes for block in blocks] == [64, 64, 64]
    # While the residual's convolution and its add run, `r`, `b` and the sum are live.
    assert blocks[1].peak_bytes == 3 * 64


def test_a_cut_inside_a_residual_carries_both_tensors() -> None:
    live = liveness(residual())
    assert live.at(3) == ("r", "b")
    assert live.bytes_at(3) == 128


def test_an_input_that_is_needed_later_crosses_the_cuts_between() -> None:
    b = GraphBuilder("skip")
    x = b.input("x", SHAPE)
    w = b.weight("w", (4, 4, 1, 1))
    a = b.node("conv2d", x, w, None, shape=SHAPE, name="a", **CONV)
    c = b.node("conv2d", a, w, None, shape=SHAPE, name="c", **CONV)
    d = b.node("conv2d", c, w, None, shape=SHAPE, name="d", **CONV)
    manifest = manifest_of(b.build(b.node("add", d, x, shape=SHAPE, name="y", alpha=1.0)))
    assert [cut.tensors for cut in manifest.cuts] == [2, 2]
    middle = slice_stage(manifest, 1, 2)
    assert [value.name for value in middle.inputs] == ["x", "a"]
    assert middle.outputs == ("x", "c")


def test_a_shared_weight_comes_from_the_stage_s_own_blob() -> None:
    manifest = manifest_of(residual())
    assert slice_stage(manifest, 0, 1).weights["shared"].blob == manifest.blocks[0].blob
    assert slice_stage(manifest, 1, 2).weights["shared"].blob == manifest.blocks[1].blob
    assert slice_stage(manifest, 0, 3).weights["shared"].blob == manifest.blocks[0].blob
    assert list(slice_stage(manifest, 1, 2).weights) == ["shared"]


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 0), (2, 1), (0, 4), (3, 4)])
def test_a_stage_outside_the_model_is_refused(start: int, stop: int) -> None:
    with pytest.raises(GraphError, match="0 <= start < stop <= 3"):
        slice_stage(manifest_of(residual()), start, stop)


def test_a_graph_without_computing_nodes_is_one_block() -> None:
    b = GraphBuilder("plain")
    x = b.input("x", SHAPE)
    manifest = manifest_of(b.build(b.node("relu", x, shape=SHAPE)))
    assert len(manifest.blocks) == 1
    assert manifest.cuts == ()


def spec(*shape: int) -> TensorSpec:
    return TensorSpec("float32", shape)


@pytest.mark.parametrize(
    ("node", "specs", "expected"),
    [
        # A 3x3 depthwise convolution of 8 channels on 4x4: 9 per output element.
        (
            Node("y", "conv2d", ("x", "w", None), {**CONV, "groups": 8}, spec(1, 8, 4, 4)),
            {"x": spec(1, 8, 6, 6), "w": spec(8, 1, 3, 3)},
            8 * 16 * 9,
        ),
        (
            Node("y", "linear", ("x", "w", "b"), {}, spec(1, 10)),
            {"x": spec(1, 20), "w": spec(10, 20), "b": spec(10)},
            200,
        ),
        (
            Node("y", "matmul", ("x", "w"), {}, spec(2, 3, 5)),
            {"x": spec(2, 3, 4), "w": spec(2, 4, 5)},
            120,
        ),
        (
            Node("y", "scaled_dot_product_attention", ("q", "k", "v", None), {}, spec(1, 2, 3, 4)),
            {"q": spec(1, 2, 3, 4), "k": spec(1, 2, 3, 4), "v": spec(1, 2, 3, 4)},
            2 * (2 * 3 * 3 * 4),
        ),
        (
            Node("y", "einsum", (("x", "w"),), {"equation": "bij,bjk->bik"}, spec(2, 3, 5)),
            {"x": spec(2, 3, 4), "w": spec(2, 4, 5)},
            120,
        ),
        (Node("y", "relu", ("x",), {}, spec(1, 8)), {"x": spec(1, 8)}, 0),
    ],
)
def test_multiply_adds(node: Node, specs: dict[str, TensorSpec], expected: int) -> None:
    assert macs(node, specs) == expected


def random_graph(seed: int) -> Graph:
    """Convolutions, adds, relus and concatenations over any earlier values; some are never read."""
    rng = random.Random(seed)
    b = GraphBuilder(f"random-{seed}")
    values = [b.input("x", SHAPE)]
    w = b.weight("w", (4, 4, 1, 1))
    for _ in range(rng.randint(1, 25)):
        match rng.choice(("conv2d", "conv2d", "add", "relu")):
            case "conv2d":
                values.append(b.node("conv2d", rng.choice(values), w, None, shape=SHAPE, **CONV))
            case "add":
                pair = rng.choice(values), rng.choice(values)
                values.append(b.node("add", *pair, shape=SHAPE, alpha=1.0))
            case other:
                values.append(b.node(other, rng.choice(values), shape=SHAPE))
    outputs = rng.sample(values[1:], k=min(len(values) - 1, rng.randint(1, 2)))
    return b.build(*outputs)


@given(st.integers(0, 10_000))
def test_stages_of_any_plan_fit_together(seed: int) -> None:
    manifest = manifest_of(random_graph(seed))
    validate_manifest(manifest)
    count = len(manifest.blocks)
    rng = random.Random(seed)
    bounds = sorted({0, count, *(rng.randint(0, count) for _ in range(3))})
    have = {value.name: value.spec for value in manifest.graph.inputs}
    nodes: list[Node] = []
    for start, stop in pairwise(bounds):
        stage = slice_stage(manifest, start, stop)
        validate(stage)
        assert {value.name: value.spec for value in stage.inputs} == have
        if stop < count:
            cut = manifest.cuts[stop - 1]
            values = stage.output_values()
            assert (cut.bytes, cut.tensors) == (
                sum(value.spec.nbytes for value in values),
                len(values),
            )
        have = {value.name: value.spec for value in stage.output_values()}
        nodes.extend(stage.nodes)
    assert tuple(nodes) == manifest.graph.nodes
    assert tuple(have) == manifest.graph.outputs


@given(st.integers(0, 10_000))
def test_each_kept_position_is_the_cheapest_between_its_computing_nodes(seed: int) -> None:
    graph = random_graph(seed)
    live = liveness(graph)
    computing = [index for index, node in enumerate(graph.nodes) if OPS[node.op].computes]
    positions = cut_positions(graph, live)
    assert len(positions) == max(0, len(computing) - 1)
    for position, before, after in zip(positions, computing, computing[1:], strict=False):
        assert before < position <= after
        for other in range(before + 1, after + 1):
            # The oracle: what is made before and read after, straight from the definition.
            made = {value.name for value in graph.inputs} | {n.name for n in graph.nodes[:other]}
            read = {ref for n in graph.nodes[other:] for ref in n.refs()} | set(graph.outputs)
            assert set(live.at(other)) == made & read
            assert live.bytes_at(position) <= live.bytes_at(other)


def test_manifest_json_round_trip_and_profile() -> None:
    manifest = manifest_of(residual())
    assert decode_json(encode_json(manifest), Manifest) == manifest
    with pytest.raises(ConfigurationError):
        manifest.profile()
    profile = manifest.with_seconds([0.1, 0.2, 0.3]).profile(input_seconds=0.01)
    assert [block.seconds for block in profile.blocks] == [0.1, 0.2, 0.3]
    assert profile.cuts == manifest.cuts
    with pytest.raises(GraphError, match="one per block"):
        manifest.with_seconds([0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"blocks": m.blocks[:-1], "cuts": m.cuts[:-1]}, "all 7 nodes"),
        (lambda m: {"blocks": m.blocks[1:]}, "block 0"),
        (lambda m: {"cuts": m.cuts[1:]}, "cuts"),
        (
            lambda m: {"blocks": (replace(m.blocks[0], nodes=(0, 0)), *m.blocks[1:])},
            "at least one",
        ),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(change: Any, message: str) -> None:
    manifest = manifest_of(residual())
    with pytest.raises(GraphError, match=message):
        validate_manifest(replace(manifest, **change(manifest)))


def test_slicing_imports_no_torch() -> None:
    import subprocess

    code = "import orchestrator.models.slice, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
