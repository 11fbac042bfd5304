"""What the planner decides, by hand: one node, copies, pipelines, mixtures; what it says when it cannot."""

from __future__ import annotations

import pytest

from orchestrator.core.infeasible import feasible_stage_counts
from orchestrator.core.plan import Objective, Plan, PlanRequest, Strategy
from orchestrator.core.planner import plan
from shared.errors import ConfigurationError, PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import model, node

MB = 1_000_000


def shape(found: Plan) -> list[list[tuple[str, tuple[int, int]]]]:
    return [[(stage.node, stage.blocks) for stage in pipe.stages] for pipe in found.pipelines]


def ask(profile: ModelProfile, nodes: list[NodeProfile], **other: object) -> PlanRequest:
    return PlanRequest(profile, tuple(nodes), **({"in_flight": 1} | other))  # type: ignore[arg-type]


TEN = model([0.1] * 10, weights=[10 * MB] * 10)


def test_copies_win_where_the_model_fits_everywhere() -> None:
    found = plan(ask(TEN, [node("a"), node("b", 0.5)]))
    assert shape(found) == [[("a", (0, 10))], [("b", (0, 10))]]
    assert found.predicted.throughput_per_s == pytest.approx(1.5)
    assert found.lower_bound == pytest.approx(1 / 1.5)
    assert found.gap_ratio == pytest.approx(0.0)


def test_a_pipeline_wins_where_no_node_holds_the_model() -> None:
    nodes = [node("a", 1.0, memory_bytes=80 * MB), node("b", 0.5, memory_bytes=80 * MB)]
    found = plan(ask(TEN, nodes))
    # The faster node takes two thirds; order is free, so the first in the search's order stands
    assert sorted((stage[0], stage[1][1] - stage[1][0]) for stage in shape(found)[0]) == [
        ("a", 7),
        ("b", 3),
    ]
    assert found.predicted.throughput_per_s == pytest.approx(1 / 0.7)


def test_a_mixture_wins_where_one_node_is_large_and_two_are_small() -> None:
    nodes = [
        node("large", memory_bytes=200 * MB),
        node("small-1", memory_bytes=60 * MB),
        node("small-2", memory_bytes=60 * MB),
    ]
    found = plan(ask(TEN, nodes))
    assert shape(found) == [
        [("large", (0, 10))],
        [("small-1", (0, 5)), ("small-2", (5, 10))],
    ]
    assert found.predicted.throughput_per_s == pytest.approx(1.0 + 2.0)
    assert found.predicted.latency_s == pytest.approx(1.0)
    assert {other.kind: other.reason for other in found.alternatives} == {
        "single": "66.7% worse: 1 jobs/s against 3",
        "pipeline of 2": "33.3% worse: 2 jobs/s against 3",
        "pipeline of 3": "16.7% worse: 2.5 jobs/s against 3",
    }


def test_the_order_of_nodes_follows_their_links() -> None:
    # A heavy input and a light cut: who has the fast downlink goes first, whatever its name.
    profile = model([0.1, 0.1], [1_000], input_bytes=1_000_000, weights=[40 * MB, 40 * MB])
    nodes = [
        node("a", memory_bytes=60 * MB, down_bytes_per_s=1e5),
        node("b", memory_bytes=60 * MB, down_bytes_per_s=1e8),
    ]
    assert shape(plan(ask(profile, nodes))) == [[("b", (0, 1)), ("a", (1, 2))]]


def test_latency_prefers_copies_unless_memory_forces_a_cut() -> None:
    links = {"up_bytes_per_s": 1e6, "down_bytes_per_s": 1e6}
    profile = model([0.1, 0.1], [100_000], weights=[40 * MB, 40 * MB])
    found = plan(
        ask(profile, [node("a", **links), node("b", **links)], objective=Objective.LATENCY)
    )
    # The second copy costs no latency, and doubles the throughput
    assert shape(found) == [[("a", (0, 2))], [("b", (0, 2))]]
    assert found.predicted.latency_s == pytest.approx(0.2)
    assert found.lower_bound == pytest.approx(0.2)
    small = [node(name, memory_bytes=50 * MB, **links) for name in "ab"]
    found = plan(ask(profile, small, objective=Objective.LATENCY))
    assert shape(found) == [[("a", (0, 1)), ("b", (1, 2))]]
    assert found.predicted.latency_s == pytest.approx(0.4)


def test_latency_ties_go_to_the_greater_throughput() -> None:
    # Free links: cutting costs no latency, and the even cut doubles the rate.
    profile = model([0.1, 0.1, 0.2], weights=[40 * MB] * 3)
    nodes = [node(name, memory_bytes=100 * MB) for name in "ab"]
    found = plan(ask(profile, nodes, objective=Objective.LATENCY))
    assert shape(found) == [[("a", (0, 2)), ("b", (2, 3))]]


def test_fewer_nodes_where_more_bring_nothing() -> None:
    # The result leaves by a common bottleneck, a third stage brings nothing.
    profile = model([1.0, 3.0, 1.0], weights=[MB] * 3)
    nodes = [node(name, memory_bytes=int(2.5 * MB)) for name in "abc"]
    found = plan(ask(profile, nodes))
    assert len(found.pipelines[0].stages) == 3
    nodes = [node(name, memory_bytes=int(3.5 * MB)) for name in "ab"]
    nodes.append(node("tiny", 0.01, memory_bytes=1))
    found = plan(ask(profile, nodes))
    assert {stage.node for pipe in found.pipelines for stage in pipe.stages} == {"a", "b"}


def test_the_cost_of_messages_is_charged_to_the_stage() -> None:
    profile = model([0.010, 0.010])
    small = [node(name, message_s=0.002) for name in "ab"]
    found = plan(ask(profile, small, min_stages=2))
    assert [stage.compute_s for stage in found.pipelines[0].stages] == pytest.approx([0.014, 0.014])


def test_a_number_of_stages_asked_for() -> None:
    nodes = [node("a"), node("b", 0.5), node("c", 0.25)]
    found = plan(ask(TEN, nodes, min_stages=3, max_stages=3))
    assert [len(pipeline) for pipeline in shape(found)] == [3]
    assert {stage for stage, _ in shape(found)[0]} == {"a", "b", "c"}
    reasons = {other.kind: other.reason for other in found.alternatives}
    assert reasons["single"] == "at least 3 stages were asked for (1 jobs/s against 1.667)"
    assert plan(ask(TEN, nodes, max_stages=1)) is not None
    assert max(len(p) for p in shape(plan(ask(TEN, nodes, max_stages=2)))) <= 2


def test_single_and_replicate() -> None:
    nodes = [node("a", 0.5), node("b"), node("c", memory_bytes=50 * MB), node("d")]
    found = plan(ask(TEN, nodes, strategy=Strategy.SINGLE))
    assert shape(found) == [[("b", (0, 10))]]
    assert found.strategy is Strategy.SINGLE
    reasons = {other.kind: other.reason for other in found.alternatives}
    assert reasons["replicate"].startswith("strategy single was asked for")
    found = plan(ask(TEN, nodes, strategy=Strategy.REPLICATE))
    assert shape(found) == [[("a", (0, 10))], [("b", (0, 10))], [("d", (0, 10))]]


def test_single_by_latency_looks_at_links() -> None:
    profile = model([0.1], input_bytes=1_000_000)
    nodes = [node("far", 2.0, down_bytes_per_s=1e6), node("near", down_bytes_per_s=1e8)]
    request = ask(profile, nodes, strategy=Strategy.SINGLE, objective=Objective.LATENCY)
    assert shape(plan(request)) == [[("near", (0, 1))]]


def test_excluded_nodes_are_not_used() -> None:
    nodes = [node("a"), node("b", 0.5)]
    assert shape(plan(ask(TEN, nodes, exclude={"a"}))) == [[("b", (0, 10))]]
    with pytest.raises(PlanError, match="no node to plan for; excluded: a, b"):
        plan(ask(TEN, nodes, exclude={"a", "b"}))


HEAVY = model([0.1] * 6, weights=[102 * MB] * 6)


@pytest.mark.parametrize("strategy", [Strategy.SINGLE, Strategy.REPLICATE])
def test_too_little_memory_names_the_nearest_possible(strategy: Strategy) -> None:
    nodes = [node("a", memory_bytes=540 * MB), node("b", memory_bytes=400 * MB)]
    with pytest.raises(PlanError) as error:
        plan(ask(HEAVY, nodes, strategy=strategy))
    assert error.value.message == (
        "toy needs 612.0 MB on one node, the largest free is 486.0 MB; with 2 stages it fits"
    )
    with pytest.raises(PlanError) as error:
        plan(ask(HEAVY, nodes, max_stages=1))
    assert (error.value.expected, error.value.got) == ("at least 2 stages", "at most 1")
    assert feasible_stage_counts(ask(HEAVY, nodes, max_stages=1)) == (2,)


def test_too_few_stages_for_the_memory() -> None:
    nodes = [node(name, memory_bytes=300 * MB) for name in "abc"]
    with pytest.raises(PlanError) as error:
        plan(ask(HEAVY, nodes, max_stages=2))
    assert error.value.message == (
        "2 stages cannot hold toy: it needs 612.0 MB on one node, the largest free is 270.0 MB; "
        "with 3 stages it fits"
    )


def test_more_stages_than_there_can_be() -> None:
    nodes = [node("a"), node("b")]
    with pytest.raises(PlanError) as error:
        plan(ask(TEN, nodes, min_stages=3))
    assert error.value.message == (
        "3 stages cannot be had: with 2 nodes and 10 blocks 2 is the most that fits"
    )
    assert (error.value.expected, error.value.got) == ("min_stages at most 2", "3")
    with pytest.raises(PlanError, match="with 2 nodes and 1 block 1 is the most"):
        plan(ask(model([1.0]), nodes, min_stages=2))
    with pytest.raises(PlanError, match="strategy single gives one stage, 2 were asked for"):
        plan(ask(TEN, nodes, min_stages=2, strategy=Strategy.SINGLE))


def test_a_model_that_fits_nowhere() -> None:
    with pytest.raises(PlanError) as error:
        plan(ask(HEAVY, [node("a", memory_bytes=100 * MB), node("b", memory_bytes=50 * MB)]))
    assert error.value.message == (
        "block 0 (block0) of toy needs 102.0 MB on one node, the largest free is 90.0 MB; "
        "no number of stages helps"
    )
    with pytest.raises(PlanError) as error:
        plan(ask(HEAVY, [node("a", memory_bytes=250 * MB), node("b", memory_bytes=400 * MB)]))
    assert error.value.message == (
        "toy needs 612.0 MB on one node, the largest free is 360.0 MB, and however it is cut it "
        "does not fit the 585.0 MB of 2 nodes together"
    )
    with pytest.raises(PlanError, match="no node to plan for"):
        plan(ask(HEAVY, []))


def test_requests_that_contradict_themselves() -> None:
    with pytest.raises(ConfigurationError, match="'a' twice"):
        ask(TEN, [node("a"), node("a")])
    with pytest.raises(ConfigurationError, match=r"min_stages; expected 1 or more; got 0"):
        ask(TEN, [node("a")], min_stages=0)
    with pytest.raises(ConfigurationError, match=r"max_stages; expected .* 3 or more; got 2"):
        ask(TEN, [node("a")], min_stages=3, max_stages=2)
    with pytest.raises(ConfigurationError, match="in_flight"):
        ask(TEN, [node("a")], in_flight=0)


def test_a_window_too_large_for_memory_is_a_plan_that_does_not_fit() -> None:
    profile = model([0.1], input_bytes=MB, weights=[MB])
    nodes = [node("a", memory_bytes=10 * MB)]
    assert plan(ask(profile, nodes, in_flight=8))
    with pytest.raises(PlanError, match=r"needs 10.0 MB on one node, the largest free is 9.0 MB"):
        plan(ask(profile, nodes, in_flight=9))


def test_a_number_of_stages_between_two_that_would_fit() -> None:
    # Heavy cuts: one node holds the whole, three a block each, but none two blocks and a cut's buffer.
    profile = model([0.1] * 3, [45 * MB] * 2, weights=[40 * MB, 20 * MB, 40 * MB])
    nodes = [node("a", memory_bytes=112 * MB), *(node(n, memory_bytes=100 * MB) for n in "bc")]
    assert feasible_stage_counts(ask(profile, nodes)) == (1, 3)
    with pytest.raises(PlanError) as error:
        plan(ask(profile, nodes, min_stages=2, max_stages=2))
    assert error.value.message == "no pipeline of 2 to 2 stages fits the nodes' memory"
    assert error.value.expected == "a number of stages among 1, 3"


def test_memory_may_allow_fewer_stages_than_there_are_nodes() -> None:
    tight = model([0.1] * 3, [50 * MB, 1], weights=[1, 1, 1])
    nodes = [node("a", memory_bytes=60 * MB), *(node(n, memory_bytes=10) for n in "bc")]
    assert feasible_stage_counts(ask(tight, nodes)) == (1, 2)
    with pytest.raises(PlanError) as error:
        plan(ask(tight, nodes, min_stages=3, max_stages=3))
    assert error.value.expected == "min_stages at most 2"
