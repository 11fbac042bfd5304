"""What is wrong, and how bad: from what the cluster and the dispatcher know."""

from __future__ import annotations

from typing import Any, cast

import pytest

from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.dispatch_stats import ModelLoad
from orchestrator.core.health import Seen, judge
from shared.messages.health import Health
from shared.messages.operation import NodeStanding
from tests.core.cluster_world import World, entry
from tests.core.test_cluster_requests import serving


def health(world: World | None = None, **more: Any) -> Health:
    values: dict[str, Any] = {"models": {}, "nodes_online": 2, "standings": {}}
    if world is not None:
        values["models"] = world.cluster.models
        values["nodes_online"] = len(world.cluster.alive())
        values["standings"] = world.cluster.standings(world.now)
    return judge(Seen(**(values | more)), "now")


def load(**more: Any) -> ModelLoad:
    values: dict[str, Any] = {
        "model": "m", "served": True, "live_requests": 0, "queued_items": 0, "queued_bytes": 0,
        "sent_items": 0, "sent_bytes": 0, "pipelines": (), "decision": None,
    }  # fmt: skip
    return ModelLoad(**(values | more))


def test_what_serves_all_that_was_asked_for_is_well() -> None:
    found = health(serving("a", "b"))
    assert (found.health, found.findings, found.nodes_online) == ("ok", [], 2)
    assert found.models == {"m": "serving"}
    assert found.text == "ok: 2 nodes online, serving m"
    assert health(nodes_online=1).text == "ok: 1 node online, nothing is to be served"


def test_a_model_that_no_node_runs_is_failing_and_comes_first() -> None:
    world = serving("a")
    world.kill("a")
    found = health(world)
    assert found.health == "failing"
    assert [(each.grade, each.about, each.name) for each in found.findings] == [
        ("failing", "model", "m"),
        ("degraded", "node", ""),
        ("degraded", "node", "a"),
    ]
    assert found.text.startswith("failing: m is not served: ")
    assert found.text.endswith("(and 2 more)")
    world.join("a")
    assert health(world).health == "degraded", "it loads"
    world.settle()
    assert health(world).health == "ok"


def test_a_model_that_failed_to_load_everywhere_is_failing() -> None:
    world = World()
    world.join("a")
    world.agents["a"].broken.add("m")
    world.serve(entry())
    world.settle()
    assert health(world).findings[0].text.startswith("m is not served: ")


def test_fewer_stages_than_asked_for_is_degraded() -> None:
    world = serving("a", "b", min_stages=2, max_stages=2)
    world.kill("b", "offline")
    world.settle()
    (found,) = health(world).findings
    assert (found.grade, found.about, found.name) == ("degraded", "model", "m")
    assert "1 of the 2 stages asked for" in found.text


def test_a_node_that_an_operator_drained_or_that_left_by_itself_is_not_wrong() -> None:
    world = serving("a", "b", "c")
    world.drain("b")
    world.settle()
    world.kill("c", "offline")
    world.settle()
    assert health(world).health == "ok"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("silent", "node a does not answer, for 7 s"),
        ("lost", "node a was lost without a goodbye"),
        ("left_out", "node a came and went too often and is left out"),
        ("disk_full", "node a: no room for m"),
    ],
)
def test_nodes_that_are_not_simply_there(state: str, words: str) -> None:
    standing = NodeStanding(
        state=cast(Any, state), for_s=7.2, until_s=100.0, reason="no room for m"
    )
    found = health(standings={"a": standing})
    assert found.health == "degraded"
    assert [each.text for each in found.findings] == [words]


def test_a_queue_is_told_of_before_it_refuses() -> None:
    settings = DispatchSettings(max_queued_items=100, max_queued_bytes=1000)
    for queued, size, wrong in ((79, 0, False), (80, 0, True), (1, 799, False), (1, 800, True)):
        found = health(loads=[load(queued_items=queued, queued_bytes=size)], settings=settings)
        assert (found.health == "degraded") is wrong
    assert found.findings[0].text == "m: the queue is 80% full, 1 inputs wait"


def test_our_own_troubles() -> None:
    found = health(refused=3, errors=2, store_trouble="the disk is full")
    assert [(each.about, each.text) for each in found.findings] == [
        ("orchestrator", "2 failures of the orchestrator's own in the last 30 s; see its log"),
        ("queue", "3 jobs were refused as overloaded in the last 30 s"),
        ("store", "accepted jobs would not outlive the orchestrator: the disk is full"),
    ]
