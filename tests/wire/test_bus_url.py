from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import BrokerUrl, topic_matches
from shared.bus.token import Credentials
from shared.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://host", BrokerUrl(host="host")),
        ("mqtt://host/", BrokerUrl(host="host")),
        ("host", BrokerUrl(host="host")),
        (" host:2000\n", BrokerUrl(host="host", port=2000)),
        ("192.168.1.7:1884", BrokerUrl(host="192.168.1.7", port=1884)),
        ("[::1]:1884", BrokerUrl(host="::1", port=1884)),
        ("mqtt://[fe80::1]", BrokerUrl(host="fe80::1")),
        ("MQTT://Host", BrokerUrl(host="host")),
        (
            "mqtt://anna:p%40ss%2Fw%3Ard@host:1883",
            BrokerUrl(host="host", username="anna", password="p@ss/w:rd"),
        ),
        ("mqtt://anna@host", BrokerUrl(host="host", username="anna")),
        ("anna:secret@host", BrokerUrl(host="host", username="anna", password="secret")),
        ("mqtts://host", BrokerUrl(host="host", port=8883, tls=True)),
        (
            "mqtts://host:1?ca=/etc/my%20ca.pem&insecure=1",
            BrokerUrl(host="host", port=1, tls=True, ca_file="/etc/my ca.pem", insecure=True),
        ),
    ],
)
def test_parses(text: str, expected: BrokerUrl) -> None:
    assert BrokerUrl.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://host",
        "mqtt://",
        "mqtt://host:port",
        "mqtt://host:0",
        "mqtt://host:70000",
        "mqtt://host/topic",
        "mqtt://host#x",
        "mqtt://:secret@host",
        "mqtt://host?insecure=1",
        "mqtts://host?insecure=yes",
        "mqtts://host?ca=",
        "mqtts://host?cert=x",
        "mqtt://[::1",
        "mqtt://a..b",
        "mqtt://two words",
        "mqtt://" + "x" * 70,
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerUrl.parse(text)
    assert caught.value.expected is not None
    assert caught.value.got is not None


@pytest.mark.parametrize(
    "text", ["mqtt://anna:secret@host", "mqtts://anna:secret@host:1?ca=/x", "anna:secret@host"]
)
def test_no_text_form_shows_the_password(text: str) -> None:
    url = BrokerUrl.parse(text)
    assert "secret" not in f"{url} {url!r} {url.address}"
    assert "anna:***@host" in str(url)


@pytest.mark.parametrize(
    "text", ["mqtt://anna:secret@host:port", "http://anna:secret@host", "mqtt://anna:secret@[x"]
)
def test_no_error_shows_the_password(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerUrl.parse(text)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(
    username=st.text(min_size=1).filter(lambda text: text.isprintable()),
    port=st.integers(1, 65535),
    tls=st.booleans(),
)
def test_what_is_printed_can_be_read_again(username: str, port: int, tls: bool) -> None:
    url = BrokerUrl(host="host", port=port, username=username, tls=tls)
    assert BrokerUrl.parse(str(url)) == url


def test_tls_context(tmp_path: Path) -> None:
    assert BrokerUrl.parse("mqtt://host").tls_context() is None
    checked = BrokerUrl.parse("mqtts://host").tls_context()
    assert checked is not None
    assert checked.check_hostname
    assert checked.verify_mode is ssl.CERT_REQUIRED
    insecure = BrokerUrl.parse("mqtts://host?insecure=1").tls_context()
    assert insecure is not None
    assert not insecure.check_hostname
    assert insecure.verify_mode is ssl.CERT_NONE
    damaged = tmp_path / "ca.pem"
    damaged.write_text("not a certificate")
    for path in (damaged, tmp_path / "missing.pem"):
        with pytest.raises(ConfigurationError, match=path.name):
            BrokerUrl.parse(f"mqtts://host?ca={path}").tls_context()


def test_a_login_of_its_own_has_client_ids_that_nobody_else_can_tell() -> None:
    mine = BrokerUrl(host="host", username="one", password="secret", tls=True, ca_pem="PEM")
    ids = {
        url.client_id(name)
        for url in (mine, replace(mine, username="other", password="other secret"))
        for name in ("dispatcher", "orchestrator")
    }
    assert len(ids) == 4
    assert all(name.startswith(("dispatcher-", "orchestrator-")) for name in ids)
    assert {len(name.rpartition("-")[2]) for name in ids} == {24}
    elsewhere = replace(mine, host="10.0.0.7", port=1)
    assert elsewhere.client_id("dispatcher") == mine.client_id("dispatcher"), "the next life's, too"
    secret = Credentials(authority="00", secret="11")
    leader, standby = (
        replace(mine, username=name, password=name, credentials=secret) for name in ("a", "b")
    )
    assert leader.client_id("dispatcher") == standby.client_id("dispatcher") not in ids
    for shared in (BrokerUrl.parse("mqtt://host"), BrokerUrl.parse("mqtts://me:secret@host")):
        assert shared.client_id("dispatcher") == "dispatcher"


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b", "a", False),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/x/c", False),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("+", "a", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False),
        ("$SYS/#", "$SYS/a", True),
        ("a//c", "a//c", True),
        ("a/+/c", "a//c", True),
        ("A", "a", False),
    ],
)
def test_topic_matches(pattern: str, topic: str, matches: bool) -> None:
    assert topic_matches(pattern, topic) is matches
