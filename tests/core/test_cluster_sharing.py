"""Several models on one cluster: memory is exclusive, CPU is reserved for a rate, and nobody is robbed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.footprint import footprints
from orchestrator.core.generation import Generation
from shared.errors import ErrorCode
from tests.core.cluster_world import MB, World, entry


def other(name: str = "n", **options: Any) -> ModelEntry:
    return entry(name, manifest=options.pop("manifest", "c"), **options)


def active(world: World, name: str) -> Generation:
    generation = world.served(name).active
    assert generation is not None
    return generation


def rate_of(world: World, name: str) -> float:
    rate = world.state(name).predicted.throughput_per_s
    assert rate is not None
    return rate


# --- memory


def test_what_one_model_holds_is_not_offered_to_the_next() -> None:
    """Each has 105 MB with its runtime: two nodes of 120 MB hold one each, and the third model nothing."""
    world = World()
    world.join("a", "b", memory=120 * MB)
    world.serve(entry(weight=15 * MB, strategy="single"))
    world.settle()
    world.serve(other(weight=15 * MB, strategy="single"))
    world.settle()
    assert world.stages("m") == [["a"]]
    assert world.stages("n") == [["b"]]
    world.serve(other("o", manifest="d", weight=15 * MB, strategy="single"), timeout_s=5)
    world.settle()
    world.wait(6)
    (end,) = [f for f in world.finished() if f.model == "o"]
    assert end.code is ErrorCode.UNAVAILABLE
    assert end.error == (
        "not served in time: block 0 (block0) of toy needs 25.0 MB on one node, the largest free is 18.0 MB; "
        "no number of stages helps; expected a node with 25008000 bytes free; got 18000000 bytes "
        "(m holds 100.0 MB of a, n holds 100.0 MB of b)"
    )
    assert world.stages("m") == [["a"]]
    assert world.state("m").generation == world.state("n").generation == 1, "nobody was disturbed"


def test_what_loads_or_is_held_back_counts_and_what_is_stopped_when_it_is_out() -> None:
    world = World()
    world.join("a", memory=120 * MB)
    world.serve(entry(weight=15 * MB))
    world.serve(other(weight=15 * MB))
    assert world.state("n").state == "unserved", "m loads"
    world.settle()
    world.stop("m")
    assert world.state("n").state == "unserved", "m drains"
    world.drains()
    assert world.state("n").state == "loading"
    assert world.state("n").reason == "m made room; its first plan"


def test_a_runtime_is_there_once() -> None:
    """Two models of 60 MB and their one runtime of 10 MB fit the 135 MB that may be taken of 150."""
    world = World()
    world.join("a", memory=150 * MB)
    for name, manifest in (("m", "a"), ("n", "c")):
        world.serve(entry(name, manifest=manifest, weight=10 * MB))
        world.settle()
    assert footprints([active(world, "m"), active(world, "n")])["a"].bytes == 130 * MB


def test_weights_are_there_once_also_for_two_models() -> None:
    blobs = tuple(f"{index:064d}" for index in range(6))
    world = World()
    world.join("a")
    for name in "mn":
        world.serve(dataclasses.replace(entry(name, weight=10 * MB), blobs=blobs))
        world.settle()
    assert footprints([active(world, "m"), active(world, "n")])["a"].bytes == 70 * MB


# --- CPU


def test_models_without_a_rate_are_predicted_to_share_evenly() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    world.settle()
    alone = rate_of(world, "m")
    world.serve(other())
    world.settle()
    world.wait(40)
    assert rate_of(world, "n") == pytest.approx(alone / 2, rel=0.01)
    assert rate_of(world, "m") == pytest.approx(alone / 2, rel=0.01)
    world.stop("n")
    world.settle()
    world.wait(40)
    assert rate_of(world, "m") == pytest.approx(alone, rel=0.01)


def test_a_rate_is_reserved_and_the_others_get_the_rest() -> None:
    world = World()
    world.join("a")
    world.serve(entry(rate_per_s=5.0))
    world.settle()
    world.serve(other())
    world.settle()
    (share,) = world.state("m").cpu_reserved.values()
    # 60 ms of blocks and a millisecond for two messages, five times a second
    assert share == pytest.approx(5 * 0.061, rel=0.01)
    assert rate_of(world, "n") == pytest.approx((1 - share) / 0.061, rel=0.01)
    assert rate_of(world, "m") == pytest.approx(1 / 0.061, rel=0.01), "what it may have at most"
    assert world.state("n").cpu_reserved == {}


def test_a_rate_is_kept_from_the_next_that_asks_for_one() -> None:
    world = World()
    world.join("a", "b")
    for name, manifest in (("m", "a"), ("n", "c")):
        world.serve(entry(name, manifest=manifest, rate_per_s=14.0), timeout_s=5)
        world.settle()
    assert [f.error for f in world.finished()] == [None, None]
    world.serve(other("o", manifest="d", rate_per_s=14.0), timeout_s=5)
    world.settle()
    world.wait(6)
    end = world.finished()[-1]
    assert end.error is not None
    assert end.error.startswith("served, but with 5 of")
    assert "of the 14 jobs/s asked for" in end.error
    world.join("c")
    world.settle()
    world.wait(40)
    assert rate_of(world, "o") >= 14.0
    for name in "mn":
        assert rate_of(world, name) >= 14.0


def test_there_is_no_cpu_left() -> None:
    world = World()
    world.join("a", cpu=0.5)
    world.serve(entry(rate_per_s=100.0), timeout_s=3)
    world.settle()
    world.wait(4)
    assert world.finished()[0].error == (
        "served, but with 8.25 of the 100 jobs/s asked for: the most that 1 node has left"
    )
    world.serve(other(), timeout_s=3)
    world.wait(4)
    assert world.finished()[-1].error == (
        "not served in time: no node has CPU left to offer (m has 100% of the CPU of a)"
    )
    assert world.stages("m") == [["a"]]


def test_who_has_no_rate_makes_way_for_who_asks_for_one() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(strategy="single"))
    world.settle()
    assert world.stages("m") == [["a"]]
    world.serve(other(strategy="single", rate_per_s=16.0, max_stages=1))
    world.settle()
    assert world.stages("n") == [["a"]], "both are free to it, and a comes first"
    world.wait(60)
    assert world.stages("m") == [["b"]]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    world = World()
    world.serve(entry(rate_per_s=rate))
    (end,) = world.finished()
    assert end.code is ErrorCode.BAD_INPUT
    assert end.error is not None
    assert "rate_per_s" in end.error


# --- one moves, the others may


def test_a_neighbour_that_stops_is_no_reason_to_load_the_same_again() -> None:
    world = World()
    world.join("a", "b", cpu=1.0)
    for name, manifest in (("m", "a"), ("n", "c")):
        world.serve(entry(name, manifest=manifest))
        world.settle()
    world.wait(40)
    before = {name: world.state(name).generation for name in "mn"}
    assert world.stages("m") == world.stages("n") == [["a"], ["b"]]
    world.stop("n")
    world.settle()
    world.wait(40)
    assert world.state("m").generation == before["m"], "the same stages, only faster"


def test_one_does_not_gain_what_another_loses() -> None:
    """On `b` m would have half of 2.4: a fifth more than on `a`, at the price of half of what n has."""
    world = World()
    world.join("a", "b")
    world.serve(entry(strategy="single"))
    world.settle()
    world.serve(other(strategy="single"))
    world.settle()
    assert (world.stages("m"), world.stages("n")) == ([["a"]], [["b"]])
    world.calibrate("b", 2.6)
    world.settle()
    world.wait(60)
    assert (world.stages("m"), world.stages("n")) == ([["a"]], [["b"]])
    world.stop("n")
    world.settle()
    world.wait(40)
    assert world.stages("m") == [["b"]]
    assert "n made room; predicted gain" in world.state("m").reason


# --- what was asked for is kept


def test_a_restarted_orchestrator_keeps_rates_and_plans_nothing_onto_what_others_hold() -> None:
    """`m` lost its node meanwhile: planned before `n` is known, it would take what `n` holds."""
    world = World()
    world.join("a", "b", memory=120 * MB)
    entries = {}
    for name, manifest, rate in (("m", "a", None), ("n", "c", 5.0)):
        made = entry(name, manifest=manifest, weight=15 * MB, strategy="single", rate_per_s=rate)
        entries[made.manifest] = made
        world.serve(made)
        world.settle()
    reserved = world.state("n").cpu_reserved
    assert (world.stages("m"), world.stages("n")) == ([["a"]], [["b"]])
    world.agents["a"].up = False
    world.restart(entries)
    world.settle()
    assert world.state("m").state == "unserved"
    assert "n holds 100.0 MB of b" in world.state("m").reason
    assert world.stages("n") == [["b"]]
    assert world.state("n").generation == 1
    assert world.state("n").cpu_reserved == pytest.approx(reserved)
    assert world.state("n").options.rate_per_s == 5.0


def test_models_that_are_taken_over_are_no_reason_to_move_each_other() -> None:
    world = World()
    world.join("a", "b", "c")
    entries = {}
    for name, manifest in (("m", "a"), ("n", "c")):
        made = entry(name, manifest=manifest, strategy="single")
        entries[made.manifest] = made
        world.serve(made)
        world.settle()
    world.calibrate("c", 2.0)
    assert (world.stages("m"), world.stages("n")) == ([["a"]], [["b"]]), "they cool down"
    world.restart(entries)
    world.settle()
    assert (world.stages("m"), world.stages("n")) == ([["a"]], [["b"]])
    assert world.state("m").generation == world.state("n").generation == 1


def test_rates_are_planned_first_then_age() -> None:
    world = World()
    world.join("a")
    for name, manifest, rate in (("x", "a", None), ("y", "c", 1.0), ("z", "d", 2.0)):
        world.now += 1.0
        world.serve(entry(name, manifest=manifest, rate_per_s=rate))
    order = [served.name for served in world.cluster._context.in_order()]
    assert order == ["y", "z", "x"]


def test_after_a_loss_a_rate_comes_before_what_was_served_longer() -> None:
    """Both lose their node; on the one that is left there is CPU for the rate and a rest."""
    world = World()
    world.join("a", cpu=4.0)
    world.join("b")
    world.serve(entry("m", strategy="single"))
    world.settle()
    world.now += 1.0
    world.serve(entry("n", manifest="c", strategy="single", rate_per_s=16.0))
    world.settle()
    assert (world.stages("m"), world.stages("n")) == ([["a"]], [["a"]])
    world.kill("a")
    world.settle()
    world.wait(3)
    assert world.stages("n") == [["b"]]
    assert rate_of(world, "n") >= 16.0
    assert world.state("m").predicted.throughput_per_s == pytest.approx(1 / 0.0606 - 16.0, rel=0.05)
