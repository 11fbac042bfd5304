"""Profiles, plans and fronts as JSON: what is written is what ALGORITHMS.md says, and comes back equal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from orchestrator.core.front import front
from orchestrator.core.plan import Objective, PlanRequest, Strategy
from orchestrator.core.plan_document import front_document, plan_document
from orchestrator.core.planner import plan
from shared.codec import encode_json
from shared.errors import ConfigurationError
from shared.profile import LeafProfile, ModelProfile
from shared.profile_file import load_profile
from tests.core.plan_cases import model, models, node, several


@several
@given(models())
def test_a_profile_comes_back(profile: ModelProfile) -> None:
    assert load_profile(encode_json(profile)) == profile


def test_what_may_be_left_out_and_what_is_not_known() -> None:
    text = b"""{"model": "m", "from": "the future", "input_bytes": 10, "output_bytes": 4,
        "blocks": [{"index": 0, "name": "a", "macs": 5, "weight_bytes": 7, "seconds": 1}], "cuts": []}"""
    profile = load_profile(text)
    assert (profile.input_seconds, profile.runtime_bytes, profile.leaves) == (0.0, 0, ())
    assert profile.blocks[0].peak_bytes == 0
    assert profile.blocks[0].seconds == 1.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"seconds":', b'"second":', "missing required field `seconds`"),
        (b'"macs":100', b'"macs":-1', "block 0: macs; expected a whole number, 0 or more; got -1"),
        (b'"macs":100', b'"macs":"many"', "at `$.blocks[0].macs`"),
        (b"{", b"", "profile file"),
        (b'"index":0', b'"index":3', "indices of blocks"),
    ],
)
def test_a_profile_that_makes_no_sense(old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_profile(encode_json(model([1.0])).replace(old, new, 1))
    assert message in str(error.value)


def test_the_fields_of_a_plan() -> None:
    found = plan(PlanRequest(model([0.1, 0.1], [10]), (node("a"), node("b", 0.5))))
    document = json.loads(encode_json(plan_document(found)))
    assert set(document) == {
        "model", "strategy", "objective", "pipelines", "predicted", "alternatives", "lower_bound",
    }  # fmt: skip
    assert set(document["pipelines"][0]["stages"][0]) == {
        "node", "blocks", "compute_s", "receive_s", "send_s", "memory_bytes",
    }  # fmt: skip
    assert set(document["predicted"]) == {
        "throughput_per_s", "latency_s", "energy_j", "cost_per_1000", "exposure_ratio",
    }  # fmt: skip
    assert document["pipelines"][0]["stages"][0]["blocks"] == [0, 2]
    assert {one["kind"] for one in document["alternatives"]} >= {"single"}


def test_leaf_counts_and_notes_where_there_are_some() -> None:
    leaves = tuple(LeafProfile(f"l{i}", "Linear", 1, i) for i in range(2))
    profile = model([0.1, 0.1], leaves=leaves)
    document = plan_document(
        plan(PlanRequest(profile, (node("a"), node("b")), strategy=Strategy.EQUAL))
    )
    assert document["leaf_counts"] == [1, 1]
    assert document["notes"][-1].startswith("imbalance of the paper's cost")


def test_the_fields_of_a_front() -> None:
    request = PlanRequest(model([0.1, 0.1], [10]), (node("a", power_w=3.0), node("b", 0.5)))
    document = front_document(front(request, (Objective.LATENCY, Objective.ENERGY)))
    assert document["objectives"] == ["latency", "energy"]
    assert set(document["points"][0]) == {"pipelines", "predicted"}
