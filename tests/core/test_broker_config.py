from __future__ import annotations

from pathlib import Path

import pytest

import broker.config
from broker.config import BrokerConfig
from shared.bus.limits import MAX_PAYLOAD_BYTES
from shared.errors import ConfigurationError


def options(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" ")
            found.setdefault(name, []).append(value)
    return found


def test_the_copy_for_other_brokers_is_fresh() -> None:
    copy = Path(broker.config.__file__).with_name("mosquitto.conf")
    assert copy.read_text() == BrokerConfig().render(), (
        "write it again: python -c 'from broker.config import BrokerConfig; "
        'print(BrokerConfig().render(), end="")\' > broker/mosquitto.conf'
    )


def test_says_what_the_bus_relies_on() -> None:
    found = options(BrokerConfig().render())
    assert found["set_tcp_nodelay"] == ["true"]
    assert found["max_inflight_messages"] == ["0"]
    assert found["listener"] == ["1883 127.0.0.1"]
    assert found["persistence"] == ["true"]
    assert found["log_dest"] == ["stderr"]
    assert int(found["max_packet_size"][0]) > MAX_PAYLOAD_BYTES > 60_000_000
    assert int(found["max_queued_messages"][0]) > 1000
    assert int(found["max_queued_bytes"][0]) > 64 << 20


def test_every_option_is_explained() -> None:
    lines = BrokerConfig(websocket_port=9001, user="root").render().splitlines()
    paragraphs = "\n".join(lines).split("\n\n")
    assert all(paragraph.startswith("#") for paragraph in paragraphs)
    assert max(map(len, lines)) <= 100


def test_what_may_be_chosen_is_rendered() -> None:
    config = BrokerConfig(
        bind="::", port=1, websocket_port=2, persistence_dir="/data/broker", user="root"
    )
    found = options(config.render())
    assert found["listener"] == ["1 ::", "2 ::"]
    assert found["protocol"] == ["mqtt", "websockets"]
    assert found["persistence_location"] == ["/data/broker/"]
    assert found["user"] == ["root"]
    assert options(BrokerConfig(persistence_dir=None).render())["persistence"] == ["false"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 0},
        {"port": 65_536},
        {"websocket_port": 1883},
        {"bind": ""},
        {"bind": "127.0.0.1\nallow_anonymous true"},
        {"persistence_dir": "/x\nuser root"},
        {"user": "root\nlog_dest none"},
        {"max_queued_bytes": 0},
        {"autosave_interval_s": -1},
        {"persistent_client_expiration": "soon"},
        {"log_types": ("all\nuser root",)},
    ],
)
def test_refuses_what_mosquitto_would_misread(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        BrokerConfig(**wrong)  # type: ignore[arg-type]
