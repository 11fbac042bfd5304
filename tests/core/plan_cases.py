"""Small models and nodes for the planner's tests, by hand and by hypothesis, and how long to try.

`AMP4EC_EXAMPLES=10000 pytest tests/core/test_plan_oracle.py --timeout 0` runs the property tests on that many
fresh random instances each; without it a moderate number of fixed ones.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shared.profile import BlockProfile, CutProfile, ModelProfile, NodeProfile

_EXAMPLES = os.environ.get("AMP4EC_EXAMPLES")

several = settings(
    max_examples=int(_EXAMPLES or 150),
    derandomize=_EXAMPLES is None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def model(
    seconds: Sequence[float],
    cuts: Sequence[int] = (),
    *,
    weights: Sequence[int] = (),
    peaks: Sequence[int] = (),
    macs: Sequence[int] = (),
    **other: Any,
) -> ModelProfile:
    """A model of so many blocks; what is not given weighs nothing."""
    count = len(seconds)
    return ModelProfile(
        "toy",
        tuple(
            BlockProfile(i, f"block{i}", m, w, s, p)
            for i, (s, w, p, m) in enumerate(
                zip(
                    seconds,
                    weights or [0] * count,
                    peaks or [0] * count,
                    macs or [100] * count,
                    strict=True,
                )
            )
        ),
        tuple(CutProfile(j, a, 1) for j, a in enumerate(cuts or [0] * (count - 1), start=1)),
        **({"input_bytes": 0, "output_bytes": 0} | other),
    )


def node(name: str, cpu: float = 1.0, **other: Any) -> NodeProfile:
    """A node with links so fast and memory so large that they do not matter."""
    values: dict[str, Any] = {
        "name": name,
        "cpu": cpu,
        "speed": 1.0,
        "memory_bytes": 10**9,
        "up_bytes_per_s": 1e15,
        "down_bytes_per_s": 1e15,
        "message_s": 0.0,
    }
    return NodeProfile(**(values | other))


@st.composite
def models(draw: st.DrawFn) -> ModelProfile:
    """Up to five blocks; small whole numbers, so that ties and zeros occur."""
    count = draw(st.integers(1, 5))

    def several_of(most: int, length: int, least: int = 0) -> list[int]:
        return draw(st.lists(st.integers(least, most), min_size=length, max_size=length))

    seconds = several_of(8, count)
    seconds[draw(st.integers(0, count - 1))] += 1
    return model(
        [float(s) for s in seconds],
        several_of(6, count - 1),
        weights=several_of(10, count),
        peaks=several_of(4, count),
        macs=several_of(3, count),
        input_bytes=draw(st.integers(0, 6)),
        output_bytes=draw(st.integers(0, 3)),
        input_seconds=float(draw(st.integers(0, 2))),
        runtime_bytes=draw(st.integers(0, 3)),
    )


@st.composite
def some_nodes(draw: st.DrawFn, most: int = 3) -> list[NodeProfile]:
    """One to three nodes, often equal ones."""
    nodes: list[NodeProfile] = []
    for index in range(draw(st.integers(1, most))):
        twin = draw(st.sampled_from([None, *nodes]))
        if twin is not None:
            nodes.append(dataclasses.replace(twin, name=f"n{index}"))
            continue
        nodes.append(
            node(
                f"n{index}",
                draw(st.sampled_from([0.25, 0.5, 0.7, 1.0, 2.0])),
                speed=draw(st.sampled_from([0.5, 1.0, 1.3])),
                memory_bytes=draw(st.integers(15, 120)),
                up_bytes_per_s=draw(st.sampled_from([0.5, 1.0, 4.0, 1e6])),
                down_bytes_per_s=draw(st.sampled_from([0.5, 1.0, 4.0, 1e6])),
                message_s=draw(st.sampled_from([0.0, 0.1, 1.5])),
                byte_s=draw(st.sampled_from([0.0, 0.05, 0.7])),
            )
        )
    return nodes


@st.composite
def priced_nodes(draw: st.DrawFn, most: int = 3) -> list[NodeProfile]:
    """Nodes that cost, draw power and stand in zones; some for nothing."""
    return [
        dataclasses.replace(
            one,
            price_per_hour=draw(st.sampled_from([0.0, 0.0, 1.0, 3.0])),
            power_w=draw(st.sampled_from([0.0, 1.0, 4.0, 7.0])),
            zone=draw(st.sampled_from(["default", "default", "cloud"])),
        )
        if draw(st.integers(0, 3))
        else dataclasses.replace(one, price_per_hour=2.0, power_w=3.0)
        for one in draw(some_nodes(most))
    ]


@st.composite
def suited(draw: st.DrawFn, most: int = 3) -> tuple[ModelProfile, list[NodeProfile]]:
    """A model, and nodes of which some take some of its blocks better than others."""
    profile = draw(models())
    count = len(profile.blocks)
    factors = st.lists(st.sampled_from([0.5, 1.0, 1.5, 4.0]), min_size=count, max_size=count)
    nodes = [
        dataclasses.replace(
            one,
            block_factors=tuple(draw(st.one_of(st.just([]), factors))),
            input_factor=draw(st.sampled_from([1.0, 0.5, 3.0])),
        )
        for one in draw(some_nodes(most))
    ]
    return profile, nodes
