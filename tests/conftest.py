"""What every layer shares: its marker from its folder, and a plain reason where a layer cannot run."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.launcher import find_mosquitto
from shared.errors import BrokerError
from shared.logs import OURS

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


def pytest_configure() -> None:
    """Ctrl-C is tested, and a shell hands down to what it runs in the background that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """What a command does to its process's log ends with its test: levels, handlers, uncaught errors."""
    root, hook = logging.getLogger(), threading.excepthook
    levels = [(each, each.level) for each in (root, *map(logging.getLogger, OURS))]
    handlers = list(root.handlers)
    yield
    for log, level in levels:
        log.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    logging.captureWarnings(capture=False)
    threading.excepthook = hook
