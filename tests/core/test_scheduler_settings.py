"""The scheduler's settings: the paper's by default, and refused in words where they make no sense."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.core.scheduler_settings import SchedulerSettings, weights_of
from shared.errors import ConfigurationError


def test_the_defaults_are_the_papers() -> None:
    settings = SchedulerSettings()
    assert settings.weights == (0.2, 0.2, 0.1, 0.5)
    assert settings.max_load_ratio == 0.8
    assert weights_of("0.2,0.2,0.1,0.5") == settings.weights
    assert weights_of(" 1, 0,0 ,2.5") == (1.0, 0.0, 0.0, 2.5)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,1,1,-1", "0,0,0,0", "nan,1,1,1", "inf,1,1,1"],
)
def test_weights_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigurationError, match="weights") as caught:
        weights_of(text)
    assert "0.2,0.2,0.1,0.5" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_load_ratio", [0.0, -1.0, 1.1, math.nan, math.inf]),
        ("max_latency_s", [0.0, -1.0, math.nan, math.inf]),
    ],
)
def test_thresholds_that_make_no_sense(field: str, values: list[float]) -> None:
    for value in values:
        given: dict[str, Any] = {field: value}
        with pytest.raises(ConfigurationError, match="threshold"):
            SchedulerSettings(**given)
