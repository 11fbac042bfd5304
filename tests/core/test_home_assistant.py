"""What is announced to Home Assistant fits its schema, and its templates read what we really send."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import voluptuous as vol
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.home_assistant import Discovery
from orchestrator.core.nodes import Node
from shared.codec import encode_json
from shared.errors import ConfigurationError
from shared.ids import NAME, check_prefix
from shared.messages.model import Figures, ModelState
from shared.messages.node import Hardware, NodeState, StageTelemetry, Telemetry
from shared.messages.operation import LastLabel, Metrics, ModelMetrics, OrchestratorState
from shared.topics import Topics
from tests.fakes.home_assistant import DEVICE, OBJECT_ID, HomeAssistant, topics_of

TOPICS = Topics()
BORN = NodeState(
    state="online",
    node="pi-1",
    incarnation=1,
    version="1.2",
    hardware=Hardware(
        cpu=0.5, cores=4, memory_bytes=512_000_000, architecture="aarch64", cpu_model="Pi 4"
    ),
)
SAMPLE = Telemetry(
    node="pi-1",
    incarnation=1,
    uptime_s=1,
    cpu_percent=41.5,
    memory_used_bytes=123_456_789,
    memory_limit_bytes=512_000_000,
    network_received_bytes=0,
    network_sent_bytes=0,
    round_trip_s=None,
    queue=0,
    stability=1,
)
NAMES = st.from_regex(NAME, fullmatch=True)


def discovery(prefix: str = "homeassistant", root: str = TOPICS.root) -> Discovery:
    return Discovery(prefix, Topics(root), "1.2")


def node(state: NodeState = BORN, telemetry: Telemetry | None = SAMPLE) -> Node:
    return Node(state, heard=0.0, telemetry=telemetry)


def shown(*nodes: Node, models: tuple[str, ...] = ()) -> HomeAssistant:
    home = HomeAssistant()
    for topic, document in discovery().documents(nodes, models).items():
        if document is not None:
            home.take(topic, encode_json(document))
    return home


@pytest.fixture(autouse=True)
def nothing_undefined(caplog: pytest.LogCaptureFixture) -> Any:
    """A template that prints what is not there makes Home Assistant complain in its log."""
    with caplog.at_level(logging.WARNING, "tests.fakes.home_assistant"):
        yield
    assert [record.getMessage() for record in caplog.records] == []


def test_a_node_as_home_assistant_shows_it() -> None:
    home = shown(node())
    (document,) = home.devices.values()
    assert document["dev"] == {
        "ids": ["amp4ec_node_pi-1"],
        "name": "pi-1",
        "mf": "AMP4EC",
        "mdl": "Pi 4",
        "hw": "0.5 CPUs, 512 MB, aarch64",
        "sw": "1.2",
    }
    assert [*home.devices] == ["amp4ec_node_pi-1"]
    entities = home.by_name
    assert {name for _, name in entities} == {"Availability", "CPU", "Memory", "Stage"}
    assert not entities["pi-1", "CPU"].available, "nothing was heard of it yet"
    assert entities["pi-1", "Availability"].available, "it says so itself"
    home.take(TOPICS.topic("node_state", node="pi-1"), encode_json(BORN))
    home.take(TOPICS.topic("telemetry", node="pi-1"), encode_json(SAMPLE))
    assert {name: each.state for (_, name), each in entities.items()} == {
        "Availability": "online",
        "CPU": "41.5",
        "Memory": "123.5",
        "Stage": "idle",
    }
    assert all(each.available for each in entities.values())
    home.take(TOPICS.topic("node_state", node="pi-1"), encode_json(replace(BORN, state="lost")))
    assert entities["pi-1", "Availability"].state == "offline"
    assert [name for (_, name), each in entities.items() if each.available] == ["Availability"]


def test_what_a_node_runs_in_as_many_characters_as_may_be() -> None:
    stage = StageTelemetry(
        model="mobilenet_v2", pipeline="p", generation=1, stage=1, items=0, queue=0,
        compute_s=0, cpu_s=0, queue_s=0,
    )  # fmt: skip
    home = shown(node())
    entity = home.by_name["pi-1", "Stage"]
    topic = TOPICS.topic("telemetry", node="pi-1")
    two = [stage, replace(stage, model="resnet18", stage=0)]
    home.take(topic, encode_json(replace(SAMPLE, stages=two)))
    assert entity.state == "mobilenet_v2 stage 1, resnet18 stage 0"
    home.take(topic, encode_json(replace(SAMPLE, stages=two * 20)))
    assert entity.state is not None
    assert len(entity.state) == 255


def test_a_temperature_only_where_there_is_one() -> None:
    warm = replace(SAMPLE, temperature_c=48.7)
    home = shown(node(telemetry=warm))
    home.take(TOPICS.topic("telemetry", node="pi-1"), encode_json(warm))
    assert home.by_name["pi-1", "Temperature"].state == "48.7"
    home.take(TOPICS.topic("telemetry", node="pi-1"), encode_json(SAMPLE))
    assert home.by_name["pi-1", "Temperature"].state is None, "unknown, not the word None"


def test_values_expire_after_some_intervals() -> None:
    for interval_s, expire_s in ((1.0, 15), (2.5, 15), (10.5, 53)):
        state = replace(BORN, telemetry_interval_s=interval_s)
        (document,) = discovery().documents([node(state)], ()).values()
        assert document is not None
        assert document["cmps"]["cpu"]["expire_after"] == expire_s
        assert "expire_after" not in document["cmps"]["availability"], "its last will speaks"


def test_a_node_that_is_away_is_left_as_it_is() -> None:
    gone = NodeState(state="lost", node="pi-1", incarnation=1)
    topic = "homeassistant/device/amp4ec_node_pi-1/config"
    assert discovery().documents([node(gone)], ()) == {topic: None}
    assert discovery().documents([node(telemetry=None)], ()) == {topic: None}


def test_a_model_as_home_assistant_shows_it() -> None:
    home = shown(models=("mobilenet_v2",))
    entities = {name: each for (_, name), each in home.by_name.items()}
    leader = OrchestratorState(state="online", incarnation=1)
    home.take(TOPICS.topic("orchestrator_state"), encode_json(leader))
    state = ModelState(
        state="serving",
        model="mobilenet_v2",
        generation=3,
        measured=Figures(throughput_per_s=12.5, latency_s=0.0871),
    )
    topic = TOPICS.topic("model_state", model="mobilenet_v2")
    home.take(topic, encode_json(state))
    load = ModelMetrics(queued=0, in_flight=0, answered_per_s=1, latency_p50_s=1, latency_p95_s=1)
    last = LastLabel(label="tabby, 'the' cat", probability=0.61, at="2026-11-21T22:00:00+00:00")
    said = Metrics(
        counters={},
        models={"mobilenet_v2": replace(load, last=last), "resnet18": load},
        nodes_online=1,
        cpu_s=0,
        memory_bytes=0,
    )
    home.take(TOPICS.topic("metrics"), encode_json(said))
    assert {name: each.state for name, each in entities.items()} == {
        "State": "serving",
        "Throughput": "12.5",
        "Latency": "87.1",
        "Last label": "tabby, 'the' cat",
    }
    attributes = {"label": last.label, "probability": 0.61, "at": last.at}
    assert entities["Last label"].attributes == attributes
    # Nobody asks any more, then nobody serves any more.
    home.take(topic, encode_json(replace(state, measured=Figures())))
    home.take(TOPICS.topic("metrics"), encode_json(replace(said, models={"mobilenet_v2": load})))
    idle = {name: entities[name].state for name in ("Throughput", "Latency", "Last label")}
    assert idle == {"Throughput": "0", "Latency": None, "Last label": None}
    home.take(TOPICS.topic("metrics"), encode_json(replace(said, models={})))
    home.take(topic, b"")
    assert entities["State"].state == "unserved"
    assert all(each.available for each in entities.values())
    home.take(TOPICS.topic("orchestrator_state"), encode_json(replace(leader, state="lost")))
    assert not any(each.available for each in entities.values())


def test_the_same_cluster_is_announced_byte_for_byte_by_a_successor() -> None:
    busy = replace(SAMPLE, cpu_percent=99.0, memory_used_bytes=1)
    first = discovery().documents([node()], ["m"])
    assert encode_json(first) == encode_json(discovery().documents([node(telemetry=busy)], ["m"]))


def test_everything_read_is_a_topic_of_the_table() -> None:
    for document in shown(node(), models=("m",)).devices.values():
        for topic in topics_of(document):
            assert TOPICS.parse(topic)


@settings(deadline=None, max_examples=30)
@given(st.sets(NAMES, min_size=2, max_size=8), st.sampled_from(["amp4ec/v1", "site/a", "site-a"]))
def test_any_name_can_be_announced_and_no_two_as_one(names: set[str], root: str) -> None:
    place = discovery(root=root)
    nodes = [node(replace(BORN, node=name)) for name in names]
    documents = place.documents(nodes, names)
    assert len(documents) == 2 * len(names)
    for topic, document in documents.items():
        assert DEVICE(document)
        assert place.is_ours(topic)
        assert OBJECT_ID.fullmatch(topic.split("/")[-2])
    ids = [
        part["unique_id"] for each in documents.values() if each for part in each["cmps"].values()
    ]
    assert len(set(ids)) == len(ids)


def test_two_clusters_on_one_broker_do_not_take_each_others_devices() -> None:
    ours, theirs = discovery(), discovery(root="site/a")
    (topic,) = theirs.documents([node()], ())
    assert not ours.is_ours(topic)
    assert theirs.is_ours(topic)
    assert not ours.is_ours("homeassistant/device/zigbee_lamp/config")


def test_the_schema_refuses_what_home_assistant_would() -> None:
    (document,) = shown(node()).devices.values()
    parts = document["cmps"]
    for broken in (
        {**parts["cpu"], "expire_after": 0},
        {**parts["cpu"], "value_template": "{{ value_json."},
        {**parts["cpu"], "state_topic": "amp4ec/v1/node/+/telemetry"},
        {**parts["memory"], "unit_of_measurement": "%"},
        {**parts["memory"], "stat_cls": "measurement"},
        {key: value for key, value in parts["cpu"].items() if key != "unique_id"},
    ):
        with pytest.raises(vol.Invalid):
            DEVICE({**document, "cmps": {"cpu": broken}})


def test_a_prefix_has_no_wildcard_and_no_line_break() -> None:
    assert check_prefix("house/discovery") == "house/discovery"
    for prefix in ("", "/", "a//b", "+", "a/#", "a b", "a\ntopic readwrite #"):
        with pytest.raises(ConfigurationError, match="homeassistant"):
            check_prefix(prefix)
