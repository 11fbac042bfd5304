"""The topic table: what is built is parsed back, and the generated document is fresh."""

from __future__ import annotations

import re

import pytest

from shared import protocol
from shared.bus import topic_matches
from shared.errors import ConfigurationError, ProtocolError
from shared.ids import check_name, name_from
from shared.topics import TABLE, Topics, TopicSpec

VALUES = {
    "node": "pi-1", "model": "mobilenet_v2", "client": "cam", "job": "j-7", "pipeline": "m-0",
    "generation": "12", "stage": "2", "peer": "pi-1", "verb": "serve",
    "standby": "host-1-2f", "asker": "me",
}  # fmt: skip


def levels_of(spec: TopicSpec) -> dict[str, str]:
    return {name: VALUES[name] for name in re.findall(r"\{(\w+)\}", spec.pattern)}


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_every_topic_parses_back(spec: TopicSpec) -> None:
    topics = Topics("home/amp4ec")
    levels = levels_of(spec)
    topic = topics.topic(spec.name, **levels)
    assert topics.parse(topic) == (spec.name, levels)
    assert topic_matches(topics.pattern(spec.name), topic)


def test_the_result_of_a_pipeline_is_not_a_stage() -> None:
    assert Topics().parse("amp4ec/v1/pipeline/m-0/3/result")[0] == "stage_result"
    assert Topics().parse("amp4ec/v1/pipeline/m-0/3/0")[0] == "activation"


@pytest.mark.parametrize("topic", ["", "other/v1/event", "amp4ec/v1/", "amp4ec/v1/node/a/b/c/d"])
def test_a_topic_off_the_table_is_refused(topic: str) -> None:
    with pytest.raises(ProtocolError):
        Topics().parse(topic)


@pytest.mark.parametrize("root", ["", "a//b", "/a", "a/+", "a/#", "a/"])
def test_a_root_that_is_no_topic_is_refused(root: str) -> None:
    with pytest.raises(ConfigurationError):
        Topics(root)


@pytest.mark.parametrize(
    ("topic", "allowed"),
    [
        ("amp4ec/v1/result/me/1", True),
        ("amp4ec/v1/result/x", True),
        ("amp4ec/v1/result/", False),
        ("amp4ec/v1/result", False),
        ("amp4ec/v1/result/a//b", False),
        ("amp4ec/v1/result/+", False),
        ("amp4ec/v1/result/a/#", False),
        ("amp4ec/v1/node/pi/assignment", False),
        ("elsewhere/result/me", False),
        ("amp4ec/v1/result/" + "x" * 513, False),
    ],
)
def test_where_answers_may_go(topic: str, allowed: bool) -> None:
    assert Topics().may_answer_to(topic) is allowed


def test_the_protocol_document_is_fresh() -> None:
    assert protocol.PATH.read_text() == protocol.render(), "run: python -m shared.protocol --write"


def test_names() -> None:
    assert check_name("node", "pi-1.lan_2") == "pi-1.lan_2"
    with pytest.raises(ConfigurationError, match="node"):
        check_name("node", "pi/1")
    assert name_from("My Photo (1)", "x") == "My-Photo-1"
    assert name_from("///", "fallback") == "fallback"


@pytest.mark.parametrize("rest", ["camera", "camera/7", "camera/a/b"])
def test_who_an_answer_is_for(rest: str) -> None:
    assert Topics("a/b").client_of(f"a/b/result/{rest}") == "camera"


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_a_payload_larger_than_its_row_allows_is_refused(spec: TopicSpec) -> None:
    topics = Topics()
    topic = topics.topic(spec.name, **levels_of(spec))
    assert topics.accept(topic, spec.max_bytes) == topics.parse(topic)
    with pytest.raises(ProtocolError, match=f"at most {spec.max_bytes} bytes"):
        topics.accept(topic, spec.max_bytes + 1)


def test_a_level_of_any_length_is_none_of_the_table() -> None:
    topics = Topics()
    assert topics.parse(f"amp4ec/v1/node/{'x' * 1024}/state")[0] == "node_state"
    with pytest.raises(ProtocolError):
        topics.parse(f"amp4ec/v1/node/{'x' * 1025}/state")
