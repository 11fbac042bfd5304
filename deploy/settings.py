"""Where the settings of the `amp4ec` command come from: flags, then `AMP4EC_*`, then one TOML file.

The file's top level holds what every command takes (`broker`, `root`, `log_level`), a table per command what
that command takes::

    broker = "mqtt://192.168.1.5"

    [agent]
    name = "kitchen"
    zone = "home"

    [serve]
    timeout = "5m"

An option's key is its long flag with `_` for `-`; a key that no command has is refused, since a slip that
silently does nothing costs an evening. `broker` is an address where it is text and the command of that name
where it is a table; a file that needs both calls the address `broker_url`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.core.result_cache import DEFAULT_BYTES
from shared.errors import ConfigurationError

_ADDRESS = ("broker", "broker_url")
"""The address's key as people write it, and as the command group knows it."""
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMG]i?)?B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def candidates(environment: Mapping[str, str], directory: Path) -> list[Path]:
    """The files that are looked for when `--config` names none; the first that exists is the one read."""
    home = Path(environment.get("HOME", "~")).expanduser()
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return [directory / "amp4ec.toml", config / "amp4ec" / "config.toml", Path("/etc/amp4ec.toml")]


def find(environment: Mapping[str, str], directory: Path) -> Path | None:
    """The first of `candidates` that exists."""
    return next((path for path in candidates(environment, directory) if path.is_file()), None)


def load(path: Path) -> dict[str, Any]:
    """The file's document.

    Raises:
        ConfigurationError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"configuration file {path} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        # Not UTF-8, not TOML, a number of thousands of digits, or tables nested without end.
        raise ConfigurationError(
            f"configuration file {path}", expected="TOML in UTF-8", got=str(error)
        ) from error


def check(
    document: Mapping[str, Any], common: Iterable[str], commands: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """`document` with its keys as parameter names, when each is one of ours.

    Args:
        document: the file's content.
        common: keys of the top level.
        commands: each command's keys.

    Raises:
        ConfigurationError: an unknown key, or a table where a value belongs (and the reverse).
    """
    checked: dict[str, Any] = {}
    common = sorted(common)
    for written, value in document.items():
        key = written
        if key == _ADDRESS[0] and not isinstance(value, dict):
            key = _ADDRESS[1]
        name = key.replace("-", "_")
        if name in commands:
            if not isinstance(value, dict):
                raise ConfigurationError(
                    f"configuration: {key}", expected=f"a table, [{key}]", got=repr(value)
                )
            allowed = sorted(commands[name])
            checked[name] = {
                _known(option, allowed, f"[{key}] "): _plain(f"[{key}] {option}", setting)
                for option, setting in value.items()
            }
        else:
            checked[_known(key, [*common, *commands], "")] = _plain(key, value)
    return checked


def duration_s(text: str) -> float:
    """Seconds of `90`, `90s`, `1.5m`, `250ms`, `1h`.

    Raises:
        ConfigurationError: none of these, not above 0, or beyond all bounds.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < seconds < math.inf:
        raise ConfigurationError(
            "not a duration", expected="a number above 0 with s, m, h or ms, as in 120s", got=text
        )
    return seconds


def size_bytes(text: str) -> int:
    """Bytes of `500000`, `500M`, `2GiB` (K, M, G are 1000s; Ki, Mi, Gi are 1024s).

    Raises:
        ConfigurationError: none of these, not above 0, or beyond all bounds.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0.0
    if match:
        unit = (match[2] or "").lower()
        size = float(match[1]) * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit[:1]]
    if not 1 <= size < math.inf:
        raise ConfigurationError(
            "not a size", expected="bytes above 0, or a number with K, M, G, Ki, Mi, Gi", got=text
        )
    return int(size)


def cache_bytes(text: str) -> int:
    """Bytes of a result cache: 0 of `off`, the usual of `on`, else a size.

    Raises:
        ConfigurationError: none of these.
    """
    match text.strip().lower():
        case "off":
            return 0
        case "on":
            return DEFAULT_BYTES
    try:
        return size_bytes(text)
    except ConfigurationError as error:
        raise ConfigurationError(
            error.message, expected=f"off, on, or {error.expected}", got=error.got
        ) from error


def cpu_shares(text: str, agents: int, *, cores: int | None = None) -> list[float]:
    """One CPU share per agent from `0.5,0.3,0.2`, or from one number for all.

    Args:
        text: what stood after `--cpus`.
        agents: how many agents there are.
        cores: CPUs of this machine; a share above it cannot be had.

    Raises:
        ConfigurationError: not numbers, not as many as agents, or out of range.
    """
    most = cores if cores is not None else os.cpu_count() or 1
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) == 1:
        shares *= agents
    if len(shares) != agents:
        raise ConfigurationError(
            "--cpus does not fit --agents",
            expected=f"{agents} numbers with commas between, or one for all",
            got=text,
        )
    # 0.01 is the smallest quota that the kernel takes: 1 ms of a period of 100 ms.
    if not all(0.01 <= share <= most for share in shares):
        raise ConfigurationError(
            "a CPU share is out of range", expected=f"0.01 to {most} CPUs", got=text
        )
    return shares


def zones_of(text: str, agents: int) -> list[str]:
    """One zone per agent from `home,home,cloud`, or from one for all.

    Raises:
        ConfigurationError: not as many as agents, or one without a name.
    """
    zones = [part.strip() for part in text.split(",")]
    if len(zones) == 1:
        zones *= agents
    if len(zones) != agents or not all(zones):
        raise ConfigurationError(
            "--zones does not fit --agents",
            expected=f"{agents} names with commas between, or one for all",
            got=text,
        )
    return zones


def _known(key: str, allowed: list[str], where: str) -> str:
    name = key.replace("-", "_")
    if name in allowed:
        return name
    close = difflib.get_close_matches(name, allowed, 1)
    raise ConfigurationError(
        f"configuration: unknown key {where}{key}",
        expected=close[0] if close else "one of " + ", ".join(allowed),
        got=key,
    )


def _plain(where: str, value: object) -> object:
    """A TOML value as the command line would have it; options parse text."""
    if isinstance(value, dict):
        raise ConfigurationError(f"configuration: {where}", expected="a value", got="a table")
    if isinstance(value, list):
        return [_plain(where, item) for item in value]
    return value if isinstance(value, bool) else str(value)
