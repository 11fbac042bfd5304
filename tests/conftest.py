"""What every layer shares: its marker from its folder, and a plain reason where a layer cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.launcher import find_mosquitto
from shared.errors import BrokerError

LAYERS = ("core", "wire", "shell", "broker", "cluster", "containers")
NEED_MOSQUITTO = ("broker", "cluster")
TESTS = Path(__file__).parent

collect_ignore = ["benchmarks"]


def layer_of(path: Path) -> str | None:
    """The layer a test file belongs to: the first folder below `tests`."""
    if not path.is_relative_to(TESTS):
        return None
    first = path.relative_to(TESTS).parts[0]
    return first if first in LAYERS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _why_no_mosquitto()
    for item in items:
        layer = layer_of(item.path)
        if layer is None:
            continue
        item.add_marker(layer)
        if layer in NEED_MOSQUITTO and missing:
            item.add_marker(pytest.mark.skip(reason=missing))


def _why_no_mosquitto() -> str:
    try:
        find_mosquitto()
    except BrokerError as error:
        return str(error)
    return ""
