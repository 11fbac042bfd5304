"""A runtime that nobody asked for: decided again when nodes come, go or change, and not to and fro."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.core.cluster_events import ModelEntry
from tests.core.cluster_world import MB, World, entry
from tests.core.plan_cases import model

BOTH = {"torch": "2", "onnx": "1"}


def dual(onnx_s: float = 0.005, **options: Any) -> ModelEntry:
    """Six blocks of 10 ms with torch, of `onnx_s` with the other runtime."""
    torch = entry(**options)
    profile = model([onnx_s] * 6, [1000] * 5, weights=[MB] * 6, runtime_bytes=10 * MB)
    other = replace(torch, runtime="onnx", profile=profile, reference={"onnx": {"conv_dense": 0.1}})
    return replace(torch, others=(other,))


def by_runtime(known: ModelEntry, runtime: str) -> ModelEntry:
    return next(each for each in known.variants() if each.runtime == runtime)


def test_a_variant_of_a_variant_is_the_model_itself() -> None:
    known = dual()
    assert [each.runtime for each in known.variants()] == ["torch", "onnx"]
    assert known.variants()[1].variants()[1] == known
    assert all(
        o.options.rate_per_s == 3
        for o in known.with_options(replace(known.options, rate_per_s=3)).others
    )


def test_the_better_one_is_taken_at_first() -> None:
    world = World()
    world.join("a", "b", runtimes=BOTH)
    world.serve(dual())
    world.settle()
    assert world.state().runtime == "onnx"
    assert world.finished()[0].error is None


def test_the_last_node_with_it_leaves_and_another_runtime_takes_over() -> None:
    world = World()
    world.join("a", runtimes=BOTH)
    world.join("b", runtimes={"torch": "2"})
    world.serve(dual(onnx_s=0.002))
    world.settle()
    assert (world.state().runtime, world.stages()) == ("onnx", [["a"]])
    world.kill("a")
    world.settle()
    assert (world.state().state, world.state().runtime, world.stages()) == (
        "serving",
        "torch",
        [["b"]],
    )


def test_nodes_that_join_bring_a_better_one_which_is_loaded_beside() -> None:
    world = World()
    world.join("a", runtimes={"torch": "2"})
    world.serve(dual())
    world.settle()
    assert world.state().runtime == "torch"
    world.join("b", runtimes=BOTH)
    world.join("c", runtimes=BOTH)
    # What runs goes on until the other is ready.
    assert world.state().state == "serving"
    world.settle()
    assert world.state().runtime == "onnx"
    assert world.stages() == [["b"], ["c"]]
    assert "onnx in the place of torch" in world.told("replanned")[-1].text
    world.wait(120, step_s=5)
    assert world.state().runtime == "onnx"


def test_a_gain_below_the_threshold_moves_nothing() -> None:
    world = World()
    world.join("a", runtimes={"torch": "2"})
    world.serve(dual(onnx_s=0.0095))
    world.settle()
    before = world.state().generation
    world.join("b", runtimes={"onnx": "1"})
    world.settle()
    world.wait(120, step_s=5)
    assert (world.state().runtime, world.state().generation) == ("torch", before)


def test_a_runtime_that_cannot_be_loaded_leaves_what_runs_alone() -> None:
    world = World()
    world.join("a", runtimes={"torch": "2"})
    world.serve(dual())
    world.settle()
    before = world.state().generation
    world.join("b", runtimes={"onnx": "1"})
    world.agents["b"].broken.add("m")
    world.settle()
    assert len(world.told("load_failed")) == 1
    assert (world.state().runtime, world.state().generation) == ("torch", before)
    assert world.served().entry.runtime == "torch"
    # It is not tried again and again: what drifts is no reason.
    world.wait(300, step_s=5)
    assert len(world.told("load_failed")) == 1
    # But a node that comes is.
    world.join("c", runtimes={"onnx": "1"})
    world.settle()
    assert (world.state().runtime, world.stages()) == ("onnx", [["c"]])


def test_the_same_asked_for_once_more_changes_nothing() -> None:
    world = World()
    world.join("a", runtimes={"torch": "2"})
    world.serve(dual())
    world.settle()
    world.join("b", runtimes={"onnx": "1"})
    world.settle()
    generation = world.state().generation
    assert world.state().runtime == "onnx"
    world.serve(dual())
    world.settle()
    assert (world.state().runtime, world.state().generation) == ("onnx", generation)
    assert [finish.error for finish in world.finished()] == [None, None]


def test_a_runtime_that_was_asked_for_is_kept() -> None:
    world = World()
    world.join("a", runtimes=BOTH)
    world.serve(replace(entry(runtime="torch"), others=()))
    world.settle()
    world.join("b", runtimes={"onnx": "1"})
    world.settle()
    assert world.state().runtime == "torch"


def test_nobody_has_any_and_both_are_named() -> None:
    world = World()
    world.join("a", runtimes={"other": "1"})
    world.serve(dual())
    assert "'torch' or 'onnx'" in world.state().reason


def test_another_orchestrator_goes_on_with_the_runtime_that_runs() -> None:
    world = World()
    world.join("a", runtimes={"torch": "2"})
    known = dual()
    world.serve(known)
    world.settle()
    world.join("b", runtimes={"onnx": "1"})
    world.settle()
    generation = world.state().generation
    world.restart({known.manifest: by_runtime(known, "onnx")})
    world.settle()
    assert (world.state().runtime, world.state().generation) == ("onnx", generation)
    world.kill("b")
    world.settle()
    assert (world.state().runtime, world.stages()) == ("torch", [["a"]])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from([{"torch": "2"}, {"onnx": "1"}, BOTH]),
            st.sampled_from([0.3, 0.6, 1.0]),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0.006, 0.009, 0.012]),
)
def test_whatever_comes_and_goes_it_is_served_and_comes_to_rest(
    history: list[tuple[str, dict[str, str], float, bool]], onnx_s: float
) -> None:
    world = World()
    world.serve(dual(onnx_s))
    for name, runtimes, cpu, broken in history:
        agent = world.agents.get(name)
        if agent is not None and agent.up:
            world.kill(name)
        else:
            world.join(name, runtimes=runtimes, cpu=cpu)
            if broken:
                world.agents[name].broken.add("m")
        world.settle()
        world.tick(1.0)
        world.settle()
        good = [a for a in world.agents.values() if a.up and not a.broken]
        if good:
            assert world.state().state == "serving"
    for agent in world.agents.values():
        agent.broken.clear()
    # Those that failed are taken again after a minute, if that pays at five looks.
    world.wait(240, step_s=5)
    generation = world.state().generation
    world.wait(240, step_s=5)
    assert world.state().generation == generation
    if any(agent.up for agent in world.agents.values()):
        assert world.state().state == "serving"
        assert world.served().entry.runtime == world.state().runtime
