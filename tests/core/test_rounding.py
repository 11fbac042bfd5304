"""When rounding between stages is given up, and what the cluster does then."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.core.cluster_events import RoundingHurt, Tell
from orchestrator.core.rounding import KEPT, LEAST, SAMPLE_S, RoundingWatch
from shared.profile import CutProfile, PackedCut
from tests.core.cluster_world import World, entry


def test_one_input_like_no_other_is_no_reason() -> None:
    watch = RoundingWatch(0.01)
    assert watch.error is None
    for _ in range(LEAST - 1):
        watch.take(1.0, agrees=False)
        assert not watch.hurts
    watch.take(float("inf"), agrees=False)
    assert watch.hurts


def test_old_samples_are_forgotten() -> None:
    watch = RoundingWatch(0.01)
    for _ in range(LEAST):
        watch.take(0.5, agrees=False)
    for _ in range(KEPT):
        watch.take(0.002, agrees=True)
    assert not watch.hurts
    assert watch.error is not None
    assert watch.error.error_ratio == pytest.approx(0.002)
    assert (watch.error.agreement_ratio, watch.error.samples) == (1.0, KEPT)


def test_a_sample_once_in_a_while() -> None:
    watch = RoundingWatch(0.01)
    times = [now / 10 for now in range(100, 400) if watch.due(now / 10)]
    assert times == pytest.approx([10.0 + SAMPLE_S * n for n in range(len(times))])
    assert len(times) == 6


@pytest.fixture
def world() -> World:
    """A model in two stages whose links are so slow that rounding pays."""
    world = World()
    world.join("a", "b")
    for agent in world.agents.values():
        agent.figures = {"up_bytes_per_s": 1e5, "down_bytes_per_s": 1e5}
    world.wait(5.0)
    asked = entry(min_stages=2, max_error=0.01)
    rounded = (PackedCut("uint8", 2_500, 1e-6, 1e-6, 0.004),)
    cuts = tuple(CutProfile(cut.index, 10_000, 1, rounded) for cut in asked.profile.cuts)
    world.serve(dataclasses.replace(asked, profile=dataclasses.replace(asked.profile, cuts=cuts)))
    world.settle()
    return world


def sent(world: World) -> list[str]:
    return [row.compression for row in world.state().pipelines[0].stages]


def told(world: World, event: str) -> list[Tell]:
    return [action for action in world.log if isinstance(action, Tell) and action.event == event]


def test_what_hurts_is_given_up_and_stays_so(world: World) -> None:
    assert sent(world) == ["uint8", "none"]
    generation = world.state().generation
    world.send(RoundingHurt(world.now, "m", generation, 0.2))
    world.settle()
    assert sent(world) == ["none", "none"]
    assert world.state().generation > generation, "make before break, as for any other wish"
    assert world.state().options.max_error == 0.0
    (said,) = told(world, "rounding_stopped")
    assert "0.2" in said.text
    assert "0.01 was allowed" in said.text
    world.wait(120.0)
    assert sent(world) == ["none", "none"]


def test_late_news_of_an_earlier_generation_change_nothing(world: World) -> None:
    state = world.state()
    world.send(RoundingHurt(world.now, "m", state.generation - 1, 0.2))
    world.send(RoundingHurt(world.now, "other", state.generation, 0.2))
    world.settle()
    assert sent(world) == ["uint8", "none"]
    assert not told(world, "rounding_stopped")


def test_asked_for_anew_it_rounds_again(world: World) -> None:
    asked = world.served().entry
    world.send(RoundingHurt(world.now, "m", world.state().generation, 0.2))
    world.settle()
    world.serve(asked)
    world.settle()
    assert sent(world) == ["uint8", "none"]


def test_how_it_sends_outlives_the_orchestrator(world: World) -> None:
    before = world.state()
    assert before.manifest is not None
    world.restart({before.manifest: world.served().entry})
    world.settle()
    assert (sent(world), world.state().generation) == (["uint8", "none"], before.generation)
