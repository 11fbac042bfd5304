"""What keeps items of a batch from travelling together, by table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.evaluate import price
from orchestrator.core.micro_batch import MAX_MICRO_BATCH, MOST_BYTES, MicroBatchLimits
from orchestrator.core.micro_batch_limits import LONGEST_S, limits_for
from orchestrator.core.plan import PipelinePlan
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import model, node

MIB = 1 << 20


def limits(
    profile: ModelProfile, *nodes: NodeProfile, compression: str = "none", **asked: Any
) -> MicroBatchLimits:
    """Of a pipeline of two stages, one block each."""
    placed = [[(nodes[0].name, (0, 1)), (nodes[1].name, (1, 2))]]
    (plan,) = price(profile, nodes, placed, in_flight=8, input_zone="default").pipelines
    first, last = plan.stages
    plan = PipelinePlan((replace(first, compression=compression), last))
    return limits_for(profile, {each.name: each for each in nodes}, plan, **asked)


FREE = model([0.01, 0.01])
A, B = node("a"), node("b")


def test_nothing_speaks_against_the_largest() -> None:
    given = limits(FREE, A, B)
    assert (given.most, given.wanted) == (MAX_MICRO_BATCH, None)
    assert given.stage_s == pytest.approx((0.01, 0.01))


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (replace(FREE, fixed_batch="softmax works across items"), "softmax"),
        (replace(FREE, cuts=(replace(FREE.cuts[0], items_apart=False),)), "cut 1"),
    ],
)
def test_a_model_or_cut_that_takes_one_item_keeps_one(profile: ModelProfile, why: str) -> None:
    given = limits(profile, A, B, wanted=4)
    assert given.most == 1
    assert why in given.reason
    assert "4 asked for" in given.reason


def test_rounding_keeps_one() -> None:
    assert limits(FREE, A, B, compression="fp16").most == 1
    assert limits(FREE, A, B).most > 1


def test_memory_is_kept_for_every_item_that_may_wait() -> None:
    """8 messages of m items wait, and m are computed: 10 MiB and 8 x 1 MiB for each more item."""
    profile = model([0.01, 0.01], [MIB], peaks=[10 * MIB, MIB])
    room = (10 + 8) * MIB + 3 * 18 * MIB
    small = node("b", memory_bytes=room * 10 // 9 + 10)
    given = limits(profile, small, A)
    assert given.most == 4
    assert given.reason == "8 items do not fit the memory of b"
    exactly = limits(profile, small, A, wanted=5)
    assert (exactly.most, exactly.reason) == (
        4,
        "5 asked for, but 5 items do not fit the memory of b",
    )


def test_a_message_is_no_larger_than_it_may_be() -> None:
    wide = model([0.01, 0.01], [MOST_BYTES // 3])
    assert limits(wide, A, B).most == 2
    assert limits(wide, A, B, wanted=3).most == 3
    assert "MiB in one message" in limits(wide, A, B).reason


def test_a_stage_listens_now_and_then() -> None:
    slow = model([LONGEST_S / 5, 0.01])
    given = limits(slow, A, B)
    assert given.most == 4
    assert "a from listening" in given.reason


def test_a_latency_limit_holds_for_all_items_of_a_message() -> None:
    given = limits(FREE, A, B, max_latency_s=0.1)
    assert given.most == 4
    assert "100 ms" in given.reason


def test_what_was_asked_for_is_given_where_it_can_be() -> None:
    given = limits(FREE, A, B, wanted=6)
    assert (given.wanted, given.reason) == (6, "6 asked for")
