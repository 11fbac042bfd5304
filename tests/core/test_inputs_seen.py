"""Plans go by the size of the jobs that come, not by that of the photograph a model was timed with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.cluster_events import InputsCounted, NodeHeard
from orchestrator.core.inputs_seen import MANY, InputsSeen
from tests.core.cluster_world import World, entry, telemetry

LARGE, SMALL = 50_000, 10_000


def counted(*totals: tuple[int, int]) -> int | None:
    seen = InputsSeen()
    for items, size_bytes in totals:
        seen.counted(items, size_bytes, LARGE)
    return seen.planned_bytes


@pytest.mark.parametrize(
    ("totals", "planned"),
    [
        ([], None),
        ([(MANY - 1, (MANY - 1) * SMALL)], None),
        ([(MANY, MANY * SMALL)], SMALL),
        ([(MANY, MANY * int(LARGE * 0.85))], None),
        ([(MANY, MANY * SMALL), (2 * MANY - 1, 10**9)], SMALL),
        # Half of the way to what came last, each time.
        ([(MANY, MANY * SMALL), (2 * MANY, MANY * SMALL + MANY * 3 * SMALL)], 2 * SMALL),
        # Another dispatcher counts from nothing again.
        ([(10 * MANY, 10 * MANY * SMALL), (MANY, MANY * SMALL)], SMALL),
        ([(MANY, 0)], 1),
    ],
)
def test_what_is_believed(totals: list[tuple[int, int]], planned: int | None) -> None:
    assert counted(*totals) == planned


def test_the_same_profile_stays_the_same_object() -> None:
    """Plans are looked for anew every few seconds: what they are found from is made once."""
    seen, profile = InputsSeen(), entry().profile
    assert seen.profile(profile) is profile
    seen.counted(MANY, MANY * SMALL, LARGE)
    changed = seen.profile(profile)
    assert changed == replace(profile, input_bytes=SMALL)
    assert seen.profile(profile) is changed


def test_a_thin_link_no_longer_hides_which_cut_is_better() -> None:
    """With the profile's input the way in limits every plan; what really comes leaves that to the cut."""
    photograph = replace(entry().profile, input_bytes=LARGE)
    model = replace(entry(min_stages=2, max_stages=2), profile=photograph)
    world = World()
    world.join("a", "b")
    for name in ("a", "b"):
        thin = telemetry(name, down_bytes_per_s=1e6, up_bytes_per_s=1e6)
        world.send(NodeHeard(world.now, thin))
    world.serve(model)
    world.settle()
    before = world.state().predicted.throughput_per_s
    assert before == pytest.approx(1e6 / LARGE, rel=0.05)
    world.send(InputsCounted(world.now, "m", MANY, MANY * SMALL))
    world.wait(60)
    after = world.state().predicted.throughput_per_s
    assert before is not None
    assert after is not None
    assert after > 1.5 * before
    # The same name for another model: nothing is known of its jobs.
    world.serve(replace(model, manifest="b" * 64))
    world.settle()
    assert world.state().predicted.throughput_per_s == pytest.approx(before, rel=0.05)


def test_a_size_that_nothing_fits_with_does_not_keep_a_model_unserved() -> None:
    """No job would ever be sent, and so none would show that smaller ones come."""
    world = World()
    world.join("a", memory=60_000_000)
    world.serve(entry())
    world.wait(3)
    assert world.state().state == "serving"
    world.send(InputsCounted(world.now, "m", MANY, MANY * 10_000_000))
    world.wait(30)
    assert world.state().state == "serving", "what runs goes on"
    world.kill("a", "offline")
    world.wait(3)
    assert world.state().state == "unserved"
    world.join("a", memory=60_000_000)
    world.wait(3)
    assert world.state().state == "serving"
