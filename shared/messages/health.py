"""Whether anything is wrong, in one message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.messages import Count, Name, Version
from shared.messages.operation import Transaction

Grade = Literal["ok", "degraded", "failing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be: about which part, of which name, and why in words."""

    grade: Literal["degraded", "failing"]
    about: Literal["model", "node", "queue", "store", "orchestrator"]
    name: str = ""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRequest:
    """Answer with the `Health` of now."""

    transaction: Transaction
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the cluster is: the worst of what was found, which stands in `findings`, the worst first.

    `failing`: jobs of some model get no answer. `degraded`: they do, but something is missing. What an
    operator asked for (a node that is drained, or that left by itself) is not wrong. On the topic it is as of
    `at` (wall time, ISO 8601), and published when it changes; when `orchestrator/state` is not `online`
    nobody looks.
    """

    text: str
    health: Grade
    findings: list[Finding] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    """The state of each, by name."""
    nodes_online: Count = 0
    standbys: list[Name] = field(default_factory=list)
    """Processes that would take over."""
    at: str = ""
    v: Version = 1
