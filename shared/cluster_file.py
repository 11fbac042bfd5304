"""A cluster written down by hand: TOML with one `[[node]]` table per kind of node.

::

    [[node]]
    name = "pi"               # with count 3: pi-1, pi-2, pi-3
    count = 3                 # optional, 1
    cpu = 4.0                 # share of cores that the node may use
    speed = 0.25              # one core's, relative to the profiled machine's
    memory_bytes = 1_000_000_000
    up_bytes_per_s = 12_500_000
    down_bytes_per_s = 12_500_000
    message_s = 0.002
    price_per_hour = 0.0      # optional, 0
    power_w = 5.0             # optional, 0
    zone = "home"             # optional, "default"
    byte_s = 1e-9             # optional, 0
    block_factors = [1, 2.5]  # optional, of one model: each block's seconds times this
    input_factor = 1.0        # optional, the same for reading and preprocessing the input
"""

from __future__ import annotations

import dataclasses
import tomllib
from typing import Any

from shared.errors import ConfigurationError
from shared.profile import NodeProfile

_FIELDS = tuple(field.name for field in dataclasses.fields(NodeProfile))
_REQUIRED = tuple(
    field.name for field in dataclasses.fields(NodeProfile) if field.default is dataclasses.MISSING
)
_MOST_NODES = 100_000
"""A typing slip in `count` must not fill the memory."""


def load_cluster(toml: bytes) -> list[NodeProfile]:
    """Read a cluster file; nodes in the file's order, `count` expanded to `name-1`, `name-2`, ...

    A table with `count = 1` written out keeps its name as it is. Raises ConfigurationError for what is not
    TOML, an unknown or missing field, a value out of range, or a name given twice.
    """
    try:
        document = tomllib.loads(toml.decode())
    except (ValueError, RecursionError) as error:
        # Not UTF-8, not TOML, a number of thousands of digits, or tables nested without end.
        raise ConfigurationError(
            "cluster file", expected="TOML in UTF-8", got=str(error)
        ) from error
    unknown = sorted(document.keys() - {"node"})
    if unknown:
        raise ConfigurationError(
            "cluster file", expected="[[node]] tables only", got=", ".join(unknown)
        )
    tables = document.get("node")
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise ConfigurationError("cluster file", expected="at least one [[node]]", got="none")
    nodes: list[NodeProfile] = []
    for position, table in enumerate(tables, start=1):
        nodes += _expand(table, position, room=_MOST_NODES - len(nodes))
    names: set[str] = set()
    for node in nodes:
        if node.name in names:
            raise ConfigurationError(
                "cluster file: name", expected="each name once", got=f"{node.name!r} twice"
            )
        names.add(node.name)
    return nodes


def _expand(table: dict[str, Any], position: int, *, room: int) -> list[NodeProfile]:
    where = f"cluster file: [[node]] number {position}"
    unknown = sorted(table.keys() - {*_FIELDS, "count"})
    if unknown:
        raise ConfigurationError(
            where, expected=f"fields of {', '.join((*_FIELDS, 'count'))}", got=", ".join(unknown)
        )
    missing = [field for field in _REQUIRED if field not in table]
    if missing:
        raise ConfigurationError(where, expected=f"the fields {', '.join(missing)}", got="none")
    values = dict(table)
    count = values.pop("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= room:
        raise ConfigurationError(
            f"{where}: count", expected=f"a whole number, 1 to {room}", got=repr(count)
        )
    memory = values["memory_bytes"]
    # 1e9 is a float to TOML and a whole number to whoever wrote it
    if isinstance(memory, float) and memory.is_integer():
        values["memory_bytes"] = int(memory)
    first = NodeProfile(**values)
    if count == 1:
        return [first]
    return [dataclasses.replace(first, name=f"{first.name}-{i}") for i in range(1, count + 1)]
