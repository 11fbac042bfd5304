"""Every layer of the tests has tests, and every test belongs to a layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LAYERS, TESTS, layer_of


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_has_tests(layer: str) -> None:
    assert list((TESTS / layer).rglob("test_*.py"))


def test_every_test_file_belongs_to_a_layer() -> None:
    stray = [path for path in TESTS.rglob("test_*.py") if layer_of(path) is None]
    assert stray == []


def test_layer_of_something_else() -> None:
    assert layer_of(Path("/etc/test_x.py")) is None
    assert layer_of(TESTS / "benchmarks" / "test_x.py") is None
