"""What crosses between a branch and its main broker, as text."""

from __future__ import annotations

import pytest

from broker.bridge import COVERED, CROSSINGS, STAYS, Bridge
from broker.config import BrokerConfig
from shared.bus.message import topic_matches
from shared.bus.url import BrokerUrl
from shared.errors import ConfigurationError
from shared.topics import SPECS, Topics

TOPICS = Topics("site/a")
MAIN = BrokerUrl.parse("mqtt://main")


def crossing_lines(bridge: Bridge) -> dict[str, tuple[str, str]]:
    """Pattern -> direction and QoS."""
    fields = (line.split() for line in bridge.render().splitlines() if line.startswith("topic "))
    return {pattern: (direction, qos) for _, pattern, direction, qos in fields}


def test_it_was_decided_for_each_topic_whether_it_crosses() -> None:
    crossing = {each.topic for each in CROSSINGS}
    assert crossing | COVERED | STAYS == set(SPECS)
    assert len(crossing) + len(COVERED) + len(STAYS) == len(SPECS)


def test_no_topic_crosses_that_should_stay_and_none_twice() -> None:
    lines = crossing_lines(Bridge(remote=MAIN, root=TOPICS.root, name="barn"))
    for name, spec in SPECS.items():
        levels = dict.fromkeys(
            ("node", "model", "client", "job", "peer", "verb", "standby", "asker"), "x"
        )
        if name == "artifact_want":
            levels["peer"] = "orchestrator"
        topic = TOPICS.topic(name, pipeline="p", generation=1, stage=0, **levels)
        matching = [lines[pattern] for pattern in lines if topic_matches(pattern, topic)]
        if name in STAYS:
            assert matching == [], topic
        else:
            ((_, qos),) = matching
            assert int(qos) == spec.qos, topic


def test_what_is_retained_has_one_side_that_writes_it() -> None:
    """Mosquitto sends retained messages again with each connection, in both directions of a `both`."""
    for crossing in CROSSINGS:
        assert not (SPECS[crossing.topic].retained and crossing.direction == "both")


def test_with_names_only_what_is_for_those_nodes_comes_over() -> None:
    lines = crossing_lines(Bridge(remote=MAIN, root=TOPICS.root, name="barn", nodes=("a", "b")))
    heard = {pattern for pattern, (direction, _) in lines.items() if direction == "in"}
    assert {"site/a/node/a/assignment", "site/a/artifact/b/piece"} <= heard
    assert not any("node/+" in pattern or "artifact/+" in pattern for pattern in heard)


def test_an_address_cannot_smuggle_in_a_line() -> None:
    for address in ("mqtt://u%0Atopic:p@main", "mqtt://u:p%0Ax@main", "mqtt://u:%20p@main"):
        with pytest.raises(ConfigurationError, match="cannot stand"):
            Bridge(remote=BrokerUrl.parse(address), root="r", name="barn")
    for name in ("a b", "", "a\nb"):
        with pytest.raises(ConfigurationError):
            Bridge(remote=MAIN, root="r", name=name)
        with pytest.raises(ConfigurationError):
            Bridge(remote=MAIN, root="r", name="barn", nodes=(name,))


def test_tls_is_asked_for_where_the_address_asks_for_it() -> None:
    def tls(address: str) -> list[str]:
        text = Bridge(remote=BrokerUrl.parse(address), root="r", name="barn").render()
        names = ("bridge_cafile", "bridge_capath", "bridge_insecure")
        return [line.split()[0] for line in text.splitlines() if line.startswith(names)]

    assert tls("mqtt://main") == []
    assert tls("mqtts://main") == ["bridge_capath"]
    assert tls("mqtts://main?ca=/x.pem") == ["bridge_cafile"]
    assert tls("mqtts://main?insecure=1") == ["bridge_capath", "bridge_insecure"]


def test_a_branch_names_a_number_of_messages_that_mosquitto_can_say() -> None:
    branch = BrokerConfig(bridge=Bridge(remote=MAIN, root="r", name="barn")).render()
    assert "\nmax_inflight_messages 65534\n" in branch
    assert "\nmax_inflight_messages 0\n" in BrokerConfig().render()
