"""Figures in a few characters: what they say is what was meant, to the digits they show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.text import amount, milliseconds, per_second, percent, significant, size

_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def read(text: str) -> float:
    return float(text.rstrip("kMGT")) * _UNITS[text.lstrip("0123456789.")]


@given(st.integers(0, 10**14))
def test_an_amount_is_what_it_says(number: int) -> None:
    text = amount(number)
    assert len(text) <= 6
    assert read(text) == pytest.approx(number, rel=0.05)
    assert size(number).replace(" ", "").removesuffix("B") == text


@given(st.floats(1e-7, 1e7))
def test_three_digits_are_kept(value: float) -> None:
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.005)
    assert float(per_second(value).replace(",", "")[:-2]) == pytest.approx(value, rel=0.005)
    assert float(milliseconds(value).replace(",", "")[:-3]) == pytest.approx(value * 1e3, rel=0.005)


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0, "0%"), (0.004, "0.4%"), (0.0999, "10.0%"), (0.1, "10%"), (0.999, "100%"), (1.0, "100%")],
)
def test_percent(ratio: float, text: str) -> None:
    assert percent(ratio) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (3e12, "3.0 TB"),
    ],
)
def test_size(size_bytes: float, text: str) -> None:
    assert size(size_bytes) == text
