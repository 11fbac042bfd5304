"""Profiles of containers: ours, users' own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cluster_shape import ClusterShape
from deploy.containers.profile import Node, find_profile, read_profile
from shared.errors import ConfigurationError

GIB, MIB = 2**30, 2**20
HIGH = Node(name="high", cpus=1.0, memory_bytes=GIB)
MEDIUM = Node(name="medium", cpus=0.6, memory_bytes=512 * MIB)
LOW = Node(name="low", cpus=0.4, memory_bytes=512 * MIB)


def test_the_papers_test_bed() -> None:
    assert find_profile("paper").nodes == (HIGH, MEDIUM, LOW)


@pytest.mark.parametrize(("name", "count"), [("scale-down", 2), ("standard", 3), ("scale-up", 4)])
def test_the_papers_scales(name: str, count: int) -> None:
    profile = find_profile(name)
    assert len(profile.nodes) == count
    assert profile.description


def test_scaling_leaves_memory_alone() -> None:
    profile = find_profile("paper").scaled(0.5)
    assert [node.cpus for node in profile.nodes] == [0.5, 0.3, 0.2]
    assert [node.memory_bytes for node in profile.nodes] == [GIB, 512 * MIB, 512 * MIB]


def test_scaling_below_what_the_kernel_takes() -> None:
    with pytest.raises(ConfigurationError, match="low: cpus"):
        find_profile("paper").scaled(0.02)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "home.toml"
    path.write_text(
        '[[node]]\nname = "kitchen"\ncpus = 1\nzone = "home"\n'
        '[[node]]\nname = "attic"\ncpus = 0.25\nmemory = "64Mi"\n'
    )
    profile = find_profile(str(path))
    assert profile.name == "home"
    assert profile.nodes == (
        Node(name="kitchen", cpus=1.0, zone="home"),
        Node(name="attic", cpus=0.25, memory_bytes=64 * MIB),
    )


NODE = '[[node]]\nname = "a"\ncpus = 1\n'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"\[\[node\]\]"),
        ("node = []", "one node or more"),
        ("node = 3", r"\[\[node\]\]"),
        (NODE + NODE, "each of another name"),
        (NODE + 'memry = "1G"', "unknown key memry; expected memory"),
        ("title = 3\n" + NODE, "unknown key title"),
        (NODE + "memory = 512", "512MiB"),
        (NODE + 'memory = "1Mi"', "6MiB or more"),
        ('[[node]]\nname = "a"\ncpus = "1"', "a number such as"),
        ('[[node]]\nname = "a"\ncpus = true', "a number such as"),
        ('[[node]]\nname = "a"\ncpus = nan', "cpus"),
        ('[[node]]\nname = "a"\ncpus = 0', "0.01 or more"),
        ('[[node]]\nname = "a"\ncpus = 1' + 400 * "0", "cpus"),
        ('[[node]]\nname = "broker"\ncpus = 1', "another name"),
        ('[[node]]\nname = "a/b"\ncpus = 1', "cannot be used in a topic"),
        ('[[node]]\nname = "network"\ncpus = 1', "another name"),
        ("[[node", "TOML"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=match):
        read_profile(path)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"paper, scale-down, scale-up, standard"):
        find_profile("papre")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        find_profile(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ({"profile": "paper"}, "--docker"),
        ({"docker": True, "profile": "paper", "agents": 3}, "--agents"),
        ({"docker": True, "profile": "paper", "cpus": "1", "zones": "a"}, "--cpus and --zones"),
        ({"docker": True, "scale": 0.5}, "--scale is of a profile"),
    ],
)
def test_shapes_that_do_not_go_together(shape: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        ClusterShape(**shape)  # type: ignore[arg-type]
