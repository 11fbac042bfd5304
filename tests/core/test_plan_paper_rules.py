"""The paper's two rules reproduce the cuts that its reference implementation publishes."""

from __future__ import annotations

import pytest

from orchestrator.core.limits import KeepInput
from orchestrator.core.paper_rules import capabilities, imbalance, leaf_counts, move_cuts, shares
from orchestrator.core.plan import PlanRequest, Strategy
from orchestrator.core.planner import plan
from shared.errors import PlanError
from shared.profile import BlockProfile, CutProfile, LeafProfile, ModelProfile
from tests.core.plan_cases import model, node


def mobilenet_v2_leaves() -> list[LeafProfile]:
    """MobileNetV2's leaf modules in call order with the paper's cost, from its published table of layers."""
    leaves: list[LeafProfile] = []

    def add(block: int, kind: str, cost: int) -> None:
        leaves.append(LeafProfile(f"leaf{len(leaves)}", kind, cost, block))

    def conv(block: int, size: int, before: int, after: int, *, act: bool) -> None:
        # A depthwise convolution is charged as a dense one: groups are not in the paper's formula
        add(block, "Conv2d", size * size * before * after)
        add(block, "BatchNorm2d", 2 * after)
        if act:
            add(block, "ReLU6", 0)

    conv(0, 3, 3, 32, act=True)
    channels, block = 32, 1
    for expand, after, repeat in (
        (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1),
    ):  # fmt: skip
        for _ in range(repeat):
            hidden = channels * expand
            if expand != 1:
                conv(block, 1, channels, hidden, act=True)
            conv(block, 3, hidden, hidden, act=True)
            conv(block, 1, hidden, after, act=False)
            channels, block = after, block + 1
    conv(block, 1, channels, 1280, act=True)
    add(block + 1, "Dropout", 0)
    add(block + 1, "Linear", 1280 * 1000)
    return leaves


def mobilenet_v2() -> ModelProfile:
    leaves = mobilenet_v2_leaves()
    count = leaves[-1].block + 1
    return ModelProfile(
        "mobilenet_v2",
        tuple(BlockProfile(i, f"features{i}", 1, 0, 0.001) for i in range(count)),
        tuple(CutProfile(j, 1_000 * j, 1) for j in range(1, count)),
        input_bytes=0,
        output_bytes=0,
        leaves=tuple(leaves),
    )


@pytest.mark.parametrize(
    ("parts", "counts"), [(1, [141]), (2, [116, 25]), (3, [108, 16, 17]), (4, [100, 16, 16, 9])]
)
def test_equal_reproduces_the_published_cuts(parts: int, counts: list[int]) -> None:
    costs = [leaf.cost for leaf in mobilenet_v2_leaves()]
    assert leaf_counts(costs, [1 / parts] * parts) == counts
    nodes = tuple(node(f"n{i}") for i in range(parts))
    for strategy in (Strategy.EQUAL, Strategy.RALOS):
        # Equal nodes have equal shares
        found = plan(PlanRequest(mobilenet_v2(), nodes, strategy=strategy))
        assert found.leaf_counts == tuple(counts)
        assert len(found.pipelines[0].stages) == parts


def test_capability_shares_by_hand() -> None:
    nodes = [
        node("a", 1.0, memory_bytes=1_000),
        node("b", 0.6, memory_bytes=1_000),
        node("c", 0.4, memory_bytes=500),
    ]
    assert capabilities(nodes) == pytest.approx([1.0, 0.76, 0.44])
    assert shares(capabilities(nodes)) == pytest.approx([1 / 2.2, 0.76 / 2.2, 0.44 / 2.2])
    assert imbalance([5.0, 3.0, 1.0]) == pytest.approx(4 / 3)


def test_ralos_gives_the_most_capable_node_the_most_of_the_papers_cost() -> None:
    nodes = (node("a", 0.4), node("b", 1.0), node("c", 0.6))
    found = plan(PlanRequest(mobilenet_v2(), nodes, strategy=Strategy.RALOS))
    assert [stage.node for stage in found.pipelines[0].stages] == ["b", "c", "a"]
    costs = [leaf.cost for leaf in mobilenet_v2_leaves()]
    first, second, _ = found.leaf_counts
    target = shares(capabilities([nodes[1], nodes[2], nodes[0]]))
    # Each partition is closed by the leaf with which it reaches its target, not before
    assert sum(costs[:first]) >= target[0] * sum(costs) > sum(costs[: first - 1])
    part = costs[first : first + second]
    assert sum(part) >= target[1] * sum(costs) > sum(part[:-1])


def test_a_cut_inside_a_block_is_moved_and_the_plan_says_so() -> None:
    found = plan(
        PlanRequest(mobilenet_v2(), (node("a"), node("b"), node("c")), strategy=Strategy.EQUAL)
    )
    assert found.notes == (
        "the paper's cut after leaf 108 is moved to the cut before block 14, after leaf 104",
        "the paper's cut after leaf 124 is moved to the cut before block 16, after leaf 120",
        "imbalance of the paper's cost: mean(|L_i - L_avg|) is 18.5% of an even share",
    )
    assert found.leaf_counts == (108, 16, 17)


LEAVES = tuple(
    LeafProfile(f"l{i}", "Linear", 1, block) for i, block in enumerate([0, 0, 1, 1, 2, 2, 3, 3])
)


@pytest.mark.parametrize(
    ("tensors", "sizes", "counts", "cuts"),
    [
        ([1, 1, 1], [10, 10, 10], [4, 4], [2]),
        # After leaf 3, cuts 1 and 2 are equally near: the one with fewer bytes, else the earlier
        ([1, 1, 1], [10, 5, 10], [3, 5], [2]),
        ([1, 1, 1], [10, 10, 10], [3, 5], [1]),
        # Two tensors cross the nearest
        ([1, 2, 1], [10, 10, 10], [4, 4], [1]),
        # Two cuts of the paper near the same place
        ([1, 1, 1], [10, 10, 10], [4, 1, 3], [2, 3]),
        ([2, 1, 2], [10, 10, 10], [4, 1, 3], [2]),
    ],
)
def test_where_a_cut_is_moved(
    tensors: list[int], sizes: list[int], counts: list[int], cuts: list[int]
) -> None:
    base = model([0.1] * 4, sizes, leaves=LEAVES)
    profile = ModelProfile(
        "toy",
        base.blocks,
        tuple(CutProfile(j, sizes[j - 1], tensors[j - 1]) for j in (1, 2, 3)),
        0,
        0,
        leaves=LEAVES,
    )
    moved, notes = move_cuts(profile, counts)
    assert moved == cuts
    assert len([note for note in notes if "dropped" in note]) == len(counts) - 1 - len(cuts)


def test_fewer_partitions_where_the_leaves_end_first() -> None:
    assert leaf_counts([1, 1, 10], [1 / 3] * 3) == [3]
    assert leaf_counts([10, 1, 1], [1 / 3] * 3) == [1, 2]
    assert leaf_counts([1, 1, 0], [0.5, 0.5]) == [1, 2]


@pytest.mark.parametrize("strategy", [Strategy.EQUAL, Strategy.RALOS])
def test_what_the_papers_rules_cannot_do(strategy: Strategy) -> None:
    with pytest.raises(PlanError, match="the profile of toy has none"):
        plan(PlanRequest(model([0.1]), (node("a"),), strategy=strategy))
    with pytest.raises(PlanError, match="no node to plan for"):
        plan(PlanRequest(mobilenet_v2(), (), strategy=strategy))
    away = PlanRequest(
        mobilenet_v2(),
        (node("a", zone="cloud"), node("b", 0.5)),
        strategy=strategy,
        keep_input=KeepInput("default"),
    )
    with pytest.raises(PlanError, match="nothing before block 1 may leave zone 'default'"):
        plan(away)
    profile = model([0.1] * 4, weights=[100] * 4, leaves=LEAVES)
    with pytest.raises(PlanError, match="where they do not fit"):
        plan(PlanRequest(profile, (node("a", memory_bytes=50),), strategy=strategy))
    with pytest.raises(PlanError) as error:
        plan(PlanRequest(profile, (node("a"),), strategy=strategy, min_stages=2))
    assert error.value.expected == "min_stages at most 1"
