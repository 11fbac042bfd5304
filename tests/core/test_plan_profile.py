"""Profiles refuse what makes no sense, and a cluster file says what it holds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.cluster_file import load_cluster
from shared.errors import ConfigurationError
from shared.profile import BlockProfile, CutProfile, LeafProfile, ModelProfile, NodeProfile
from tests.core.plan_cases import model, node

POSITIVE = "a finite number above 0"
NOT_NEGATIVE = "a finite number, 0 or more"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "", "some text"),
        ("cpu", 0, POSITIVE),
        ("cpu", -0.5, POSITIVE),
        ("cpu", math.nan, POSITIVE),
        ("cpu", True, POSITIVE),
        ("speed", math.inf, POSITIVE),
        ("memory_bytes", 0, "a whole number, 1 or more"),
        ("memory_bytes", 1.5, "a whole number, 1 or more"),
        ("up_bytes_per_s", 0.0, POSITIVE),
        ("down_bytes_per_s", "fast", POSITIVE),
        ("message_s", -1e-9, NOT_NEGATIVE),
        ("price_per_hour", math.nan, NOT_NEGATIVE),
        ("power_w", -1, NOT_NEGATIVE),
        ("zone", "", "some text"),
    ],
)
def test_a_node_that_makes_no_sense(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        node(**({"name": "n"} | {field: value}))
    assert field in error.value.message
    assert (error.value.expected, error.value.got) == (expected, repr(value))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockProfile(0, "b", -1, 0, 0.1), "block 0: macs"),
        (lambda: BlockProfile(0, "b", 0, 0.5, 0.1), "block 0: weight_bytes"),  # type: ignore[arg-type]
        (lambda: BlockProfile(3, "b", 0, 0, math.nan), "block 3: seconds"),
        (lambda: BlockProfile(-1, "b", 0, 0, 0.1), "block -1: index"),
        (lambda: CutProfile(0, 1, 1), "cut 0: index"),
        (lambda: CutProfile(1, -1, 1), "cut 1: bytes"),
        (lambda: CutProfile(1, 1, 0), "cut 1: tensors"),
        (lambda: LeafProfile("l", "Conv2d", -1, 0), "leaf l: cost"),
        (lambda: ModelProfile("m", (), (), 0, 0), "blocks; expected at least one"),
        (lambda: model([0.1, 0.1], [1, 2]), "cuts; expected 1, one between each two blocks; got 2"),
        (lambda: model([0.0, 0.0]), "seconds of all blocks"),
        (lambda: model([0.1], input_bytes=-1), "input_bytes"),
        (lambda: model([0.1], input_seconds=math.inf), "input_seconds"),
        (lambda: model([0.1], leaves=(LeafProfile("l", "Conv2d", 1, 1),)), "leaf 'l'; expected 0..0"),
        (
            lambda: ModelProfile("m", (BlockProfile(1, "b", 0, 0, 0.1),), (), 0, 0),
            "indices of blocks; expected 0, 1, ... in order; got 1 at position 0",
        ),
    ],
)  # fmt: skip
def test_a_model_that_makes_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        make()
    assert message in str(error.value)


def test_a_model_says_what_it_asks_for() -> None:
    profile = model([0.1, 0.2], [30], input_bytes=20, output_bytes=10, input_seconds=0.05)
    assert profile.work_s == pytest.approx(0.35)
    assert profile.boundary_bytes() == (20, 30, 10)


CLUSTER = b"""
[[node]]
name = "pi"
count = 2
cpu = 4.0
speed = 0.25
memory_bytes = 1e9
up_bytes_per_s = 12_500_000
down_bytes_per_s = 12_500_000
message_s = 0.002
power_w = 5

[[node]]
name = "server"
cpu = 8
speed = 1.0
memory_bytes = 8_000_000_000
up_bytes_per_s = 1.25e8
down_bytes_per_s = 1.25e8
message_s = 0.0002
price_per_hour = 0.4
zone = "cloud"
"""


def test_a_cluster_file() -> None:
    pi = NodeProfile("pi-1", 4.0, 0.25, 10**9, 12_500_000, 12_500_000, 0.002, power_w=5)
    assert load_cluster(CLUSTER) == [
        pi,
        NodeProfile("pi-2", 4.0, 0.25, 10**9, 12_500_000, 12_500_000, 0.002, power_w=5),
        NodeProfile(
            "server", 8, 1.0, 8 * 10**9, 1.25e8, 1.25e8, 0.0002, price_per_hour=0.4, zone="cloud"
        ),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"[[node]]", b"[[nodes]]", "expected [[node]] tables only; got nodes"),
        (b"count = 2", b"count = 0", "count; expected a whole number, 1 to"),
        (b"count = 2", b"count = 10_000_000", "count; expected a whole number, 1 to"),
        (b"cpu = 4.0", b"cpu = -4.0", "node 'pi': cpu; expected a finite number above 0; got -4.0"),
        (b"cpu = 4.0", b"cpu = nan", "node 'pi': cpu"),
        (b"cpu = 4.0", b"cpus = 4.0", "got cpus"),
        (b"cpu = 4.0", b"", "number 1; expected the fields cpu; got none"),
        (b'name = "server"', b'name = "pi-2"', "expected each name once; got 'pi-2' twice"),
        (b"cpu = 8", b"cpu =", "expected TOML in UTF-8"),
        (b"cloud", b"\xff", "expected TOML in UTF-8"),
        (CLUSTER, b"", "at least one [[node]]"),
        (CLUSTER, b"node = 3", "at least one [[node]]"),
    ],
)
def test_a_cluster_file_that_makes_no_sense(old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_cluster(CLUSTER.replace(old, new))
    assert message in str(error.value)
