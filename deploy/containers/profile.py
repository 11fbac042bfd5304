"""Profiles: which nodes a cluster in containers has, and what each may use.

A profile is a TOML file; some come with us (`deploy/profiles`), named without path and suffix::

    description = "Two small nodes"

    [[node]]
    name = "kitchen"
    cpus = 0.6
    memory = "512MiB"
    zone = "home"          # "default" when left out

"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from deploy.settings import load, size_bytes
from shared.errors import ConfigurationError
from shared.ids import check_name
from shared.profile import DEFAULT_ZONE

PROFILES: Final = Path(__file__).parents[1] / "profiles"
MIN_CPUS: Final = 0.01
"""The smallest quota that the kernel takes: 1 ms of a period of 100 ms."""
MIN_MEMORY_BYTES: Final = 6 * 1024 * 1024
"""The smallest limit that the engine takes."""
_MOST_CPUS: Final = 10_000
_RESERVED: Final = ("broker", "network", "orchestrator")
_KEYS: Final = ("name", "cpus", "memory", "zone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An agent's container: its name, CPUs, bytes of memory (None: no limit), and trust zone.

    Raises:
        ConfigurationError: a name that cannot stand in a topic or is one of ours, or a limit out of range.
    """

    name: str
    cpus: float
    memory_bytes: int | None = None
    zone: str = DEFAULT_ZONE

    def __post_init__(self) -> None:
        """Refuse what the engine or the bus would."""
        check_name("node", self.name)
        if self.name in _RESERVED:
            raise ConfigurationError(
                f"no node may be called {self.name}", expected="another name", got=self.name
            )
        if not MIN_CPUS <= self.cpus < math.inf:
            raise ConfigurationError(
                f"node {self.name}: cpus", expected=f"{MIN_CPUS} or more", got=f"{self.cpus:g}"
            )
        if self.memory_bytes is not None and self.memory_bytes < MIN_MEMORY_BYTES:
            raise ConfigurationError(
                f"node {self.name}: memory",
                expected="6MiB or more",
                got=f"{self.memory_bytes} bytes",
            )


@dataclass(frozen=True, slots=True)
class Profile:
    """A cluster's nodes, under a name.

    Raises:
        ConfigurationError: no node, or two of one name.
    """

    name: str
    description: str
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        """Refuse what makes no cluster."""
        names = [node.name for node in self.nodes]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(
                f"profile {self.name}",
                expected="one node or more, each of another name",
                got=", ".join(names) or "none",
            )

    def scaled(self, ratio: float) -> Profile:
        """The same nodes with `ratio` times the CPUs each. Memory stays: a model's weights do not shrink.

        Raises:
            ConfigurationError: a share becomes too small for the kernel.
        """
        return replace(
            self, nodes=tuple(replace(node, cpus=node.cpus * ratio) for node in self.nodes)
        )


def find_profile(name: str) -> Profile:
    """A profile of ours by its name, or a `.toml` file by its path.

    Raises:
        ConfigurationError: there is none, or it does not say what a profile says.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = PROFILES / f"{name}.toml"
        ours = sorted(file.stem for file in PROFILES.glob("*.toml"))
        if name not in ours:
            raise ConfigurationError(
                f"there is no profile {name}",
                expected=f"one of {', '.join(ours)}, or the path of a .toml file",
                got=name,
            )
    return read_profile(path)


def read_profile(path: Path) -> Profile:
    """The profile in a file, called like the file.

    Raises:
        ConfigurationError: it cannot be read, or does not say what a profile says.
    """
    name, document = path.stem, load(path)
    _known(f"profile {name}", document, ("description", "node"))
    nodes = document.get("node")
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise ConfigurationError(
            f"profile {name}", expected="a table [[node]] for each node", got=repr(nodes)
        )
    return Profile(
        name,
        str(document.get("description", "")),
        tuple(_node(f"profile {name}, node {at}", node) for at, node in enumerate(nodes, 1)),
    )


def _node(where: str, table: dict[str, Any]) -> Node:
    _known(where, table, _KEYS)
    cpus, memory = table.get("cpus"), table.get("memory")
    if not isinstance(cpus, int | float) or isinstance(cpus, bool) or cpus > _MOST_CPUS:
        raise ConfigurationError(f"{where}: cpus", expected="a number such as 0.6", got=repr(cpus))
    if memory is not None and not isinstance(memory, str):
        raise ConfigurationError(
            f"{where}: memory", expected='a text such as "512MiB"', got=repr(memory)
        )
    name, zone = table.get("name"), table.get("zone", DEFAULT_ZONE)
    if not isinstance(name, str) or not isinstance(zone, str):
        raise ConfigurationError(
            f"{where}: name and zone", expected="texts", got=f"{name!r}, {zone!r}"
        )
    return Node(
        name=name,
        cpus=float(cpus),
        memory_bytes=None if memory is None else size_bytes(memory),
        zone=zone,
    )


def _known(where: str, table: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in table:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, 1)
            raise ConfigurationError(
                f"{where}: unknown key {key}",
                expected=close[0] if close else "one of " + ", ".join(keys),
                got=key,
            )
