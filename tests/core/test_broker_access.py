"""The ACL of a closed broker as text; what Mosquitto makes of it is in tests/broker/test_closed.py."""

from __future__ import annotations

import base64
import hashlib

import pytest

from broker.access import Role, User, lines, render
from broker.passwords import new_password, password_line
from shared.errors import ConfigurationError
from shared.topics import Topics

TOPICS = Topics("site/a")


def test_an_agent_speaks_for_itself_only() -> None:
    assert lines(User(name="pi-1", role=Role.AGENT), TOPICS) == [
        "user pi-1",
        "topic readwrite site/a/node/pi-1/state",
        "topic readwrite site/a/node/pi-1/ping",
        "topic readwrite site/a/node/pi-1/report",
        "topic write site/a/node/pi-1/telemetry",
        "topic read site/a/node/pi-1/assignment",
        "topic read site/a/orchestrator/state",
        "topic write site/a/artifact/orchestrator/want",
        "topic read site/a/artifact/pi-1/piece",
        "topic readwrite site/a/artifact/pi-1/probe",
        "topic readwrite site/a/pipeline/+/+/+",
        "topic write site/a/pipeline/+/+/result",
    ]


def test_a_client_sends_in_its_own_name_and_reads_its_own_answers() -> None:
    section = lines(User(name="camera", role=Role.CLIENT), TOPICS)
    assert section[:3] == [
        "user camera",
        "topic write site/a/model/+/infer/camera/+",
        "topic read site/a/result/camera/+",
    ]
    assert not any("write" in line for line in section[2:])


def test_a_monitor_writes_nothing() -> None:
    assert all(
        line.startswith("topic read ")
        for line in lines(User(name="wall", role=Role.MONITOR), TOPICS)[1:]
    )


def test_a_name_cannot_smuggle_in_a_line_or_a_wildcard() -> None:
    for name in ("a\ntopic readwrite #", "+", "#", "a/b", "", "a b"):
        with pytest.raises(ConfigurationError):
            User(name=name, role=Role.AGENT)


def test_one_name_has_one_role() -> None:
    with pytest.raises(ConfigurationError, match="two roles"):
        render([User(name="x", role=Role.AGENT), User(name="x", role=Role.CLIENT)], TOPICS)


def test_users_stand_in_order_with_their_roles() -> None:
    text = render([User(name="b", role=Role.MONITOR), User(name="a", role=Role.CLIENT)], TOPICS)
    assert [line for line in text.splitlines() if line.startswith("user")] == ["user a", "user b"]


def test_a_password_line_is_salted_pbkdf2() -> None:
    line = password_line("pi-1", "secret", salt=b"twelve bytes")
    user, _, rest = line.partition(":")
    _, kind, iterations, salt, digest = rest.split("$")
    assert (user, kind, base64.b64decode(salt)) == ("pi-1", "7", b"twelve bytes")
    assert base64.b64decode(digest) == hashlib.pbkdf2_hmac(
        "sha512", b"secret", b"twelve bytes", int(iterations)
    )
    assert "secret" not in line
    assert password_line("pi-1", "secret") != password_line("pi-1", "secret")
    assert len({new_password() for _ in range(20)}) == 20
