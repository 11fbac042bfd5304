"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import settings
from deploy.flags import ServeFlags
from shared.errors import ConfigurationError

COMMON = ("broker_url", "root")
COMMANDS = {"broker": {"port"}, "serve": {"timeout", "min_stages"}, "agent": {"name", "preload"}}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("250ms", 0.25), ("2h", 7200), (".5 s", 0.5)],
)
def test_duration(text: str, seconds: float) -> None:
    assert settings.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"), [("off", 0), ("ON", 64 * 1024**2), ("8Mi", 8 * 1024**2), ("5000", 5000)]
)
def test_a_cache_is_off_on_or_of_a_size(text: str, size: int) -> None:
    assert settings.cache_bytes(text) == size


@pytest.mark.parametrize("text", ["", "yes", "0", "-1"])
def test_what_is_no_size_of_a_cache_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="off, on, or"):
        settings.cache_bytes(text)


@pytest.mark.parametrize("text", ["", "0", "-3", "3 days", "s", "1e3", "nan", "1..2", "9" * 400])
def test_no_duration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="duration"):
        settings.duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("17", 17),
        ("2k", 2000),
        ("500M", 500_000_000),
        ("2GiB", 2**31),
        ("0.5Ki", 512),
        ("1 g", 10**9),
    ],
)
def test_size(text: str, size: int) -> None:
    assert settings.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "1T", "i", "9" * 400])
def test_no_size(text: str) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        settings.size_bytes(text)


def test_cpu_shares() -> None:
    assert settings.cpu_shares("0.5,0.3,0.2", 3, cores=2) == [0.5, 0.3, 0.2]
    assert settings.cpu_shares("0.5", 3, cores=2) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("0.5,0.3", "--agents"),
        ("half", "--agents"),
        ("", "--agents"),
        ("0.5,0.3,9", "out of range"),
        ("0.5,0.3,0", "out of range"),
        ("0.5,0.3,nan", "out of range"),
        ("0.5,0.3,-1", "out of range"),
    ],
)
def test_no_cpu_shares(text: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        settings.cpu_shares(text, 3, cores=2)


def test_first_file_that_exists_is_found(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    environment = {"HOME": str(home)}
    general = home / ".config" / "amp4ec" / "config.toml"
    general.parent.mkdir(parents=True)
    general.write_text("")
    assert settings.find(environment, here) == general
    (here / "amp4ec.toml").write_text("")
    assert settings.find(environment, here) == here / "amp4ec.toml"
    elsewhere = {**environment, "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert settings.candidates(elsewhere, here)[1] == tmp_path / "xdg" / "amp4ec" / "config.toml"


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "amp4ec.toml"
    path.write_text('broker = "host"\n[serve]\ntimeout = "5m"\n')
    assert settings.load(path) == {"broker": "host", "serve": {"timeout": "5m"}}


@pytest.mark.parametrize("content", [b"broker = ", b"\xff"])
def test_load_of_what_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "amp4ec.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="TOML"):
        settings.load(path)


def test_load_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        settings.load(tmp_path / "nothing")


def test_check_makes_values_as_the_command_line_has_them() -> None:
    document = {
        "broker": "host",
        "serve": {"min-stages": 3, "timeout": 1.5},
        "agent": {"preload": True},
    }
    assert settings.check(document, COMMON, COMMANDS) == {
        "broker_url": "host",
        "serve": {"min_stages": "3", "timeout": "1.5"},
        "agent": {"preload": True},
    }


def test_broker_is_an_address_or_a_command() -> None:
    assert settings.check({"broker": {"port": 1}}, COMMON, COMMANDS) == {"broker": {"port": "1"}}
    both = {"broker_url": "host", "broker": {"port": 1}}
    assert settings.check(both, COMMON, COMMANDS) == {"broker_url": "host", "broker": {"port": "1"}}


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"roott": "host"}, "unknown key roott; expected root"),
        ({"serve": {"tiemout": 3}}, r"unknown key \[serve\] tiemout; expected timeout"),
        ({"serve": 3}, r"expected a table, \[serve\]"),
        ({"broker": {"host": "x"}}, r"unknown key \[broker\] host"),
        ({"root": {"a": "x"}}, "expected a value"),
        ({"agent": {"name": {"first": "x"}}}, "expected a value"),
    ],
)
def test_check_refuses(document: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        settings.check(document, COMMON, COMMANDS)


def test_serve_flags_survive_a_command_line() -> None:
    flags = ServeFlags(min_stages=3, max_stages=3, weights="none", labels=Path("a b.txt"))
    arguments = flags.arguments()
    assert "--min-stages=3" in arguments
    assert "--labels=a b.txt" in arguments
    assert "--timeout=120s" in arguments
    assert not any(argument.startswith(("--name", "--preprocess")) for argument in arguments)
