"""Figures in a few characters, for tables and drawings."""

from __future__ import annotations

import math


def size(size_bytes: float) -> str:
    """Bytes with a decimal unit: `812 B`, `49.4 kB`, `3.1 MB`."""
    return _scaled(size_bytes, (" B", " kB", " MB", " GB", " TB"))


def amount(number: float) -> str:
    """A count with an SI prefix: `864`, `10.8M`, `1.3G`."""
    return _scaled(number, ("", "k", "M", "G", "T"))


def milliseconds(seconds: float) -> str:
    """Milliseconds with three significant digits: `0.46 ms`, `12.3 ms`, `1,250 ms`."""
    value = seconds * 1e3
    if value >= 1000:
        return f"{value:,.0f} ms"
    return f"{value:.{_decimals(value)}f} ms"


def per_second(rate: float) -> str:
    """Jobs per second with three significant digits."""
    return f"{rate:,.{_decimals(rate)}f}/s"


def percent(ratio: float) -> str:
    """A ratio of 0 to 1 in whole percent, one decimal below ten."""
    return f"{ratio:.1%}" if 0 < ratio < 0.1 else f"{ratio:.0%}"


def significant(value: float) -> str:
    """Three significant digits, without an exponent where that is short."""
    return (
        "0" if value == 0 else f"{value:,.{_decimals(value)}f}" if value < 1e9 else f"{value:.3g}"
    )


def _decimals(value: float) -> int:
    if value <= 0 or not math.isfinite(value):
        return 0
    return min(max(2 - math.floor(math.log10(value)), 0), 9)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value /= 1000
        step += 1
    digits = f"{value:.0f}" if step == 0 or value >= 99.95 else f"{value:.1f}"
    return f"{digits}{units[step]}"
