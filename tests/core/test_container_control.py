"""Rates as people write them, and limits for people and for the engine."""

from __future__ import annotations

import pytest

from deploy.containers.container import Limits
from deploy.containers.control import rate_bytes_per_s
from shared.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("10Mbit", 1_250_000),
        ("10 mbit/s", 1_250_000),
        ("0.5Gbit", 62_500_000),
        ("8000bit", 1000),
        ("1.25M", 1_250_000),
        ("1250000", 1_250_000),
        ("500KB/s", 500_000),
    ],
)
def test_rates(text: str, bytes_per_s: float) -> None:
    assert rate_bytes_per_s(text) == bytes_per_s


@pytest.mark.parametrize(
    "text", ["", "0", "0Mbit", "-1Mbit", "fast", "10Mb it", "off", "9" * 400, "9" * 400 + "bit"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigurationError, match="rate"):
        rate_bytes_per_s(text)


def test_limits() -> None:
    both = Limits(0.3, 512 * 2**20)
    assert str(both) == "0.3 CPU, 512 MiB"
    assert both.options() == {
        "cpu_period": 100_000,
        "cpu_quota": 30_000,
        "mem_limit": 2**29,
        "memswap_limit": 2**29,
    }
    assert str(Limits()) == ""
    assert Limits().options() == {}
