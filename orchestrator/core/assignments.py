"""What each node was told to hold, and the revision of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.cluster_events import PushAssignment, StageRef

LARGEST = 2**53
"""Readers of JSON may not hold larger numbers exactly; a revision like that is nonsense."""


@dataclass(slots=True)
class Assignments:
    """The retained assignments on the broker. Revisions start at `first` and only grow."""

    first: int
    _revision: int = 0
    _out: dict[str, tuple[StageRef, ...] | None] = field(default_factory=dict)
    """What is out there per node; None where it is unknown, so that it has to be replaced."""
    _told: dict[str, int] = field(default_factory=dict)
    """The revision that is retained for each node, as far as it was pushed by us."""

    def seen(self, node: str, revision: int) -> None:
        """A node was told `revision`: by an earlier orchestrator, or it is ours that comes again.

        A node drops what is older than that, so one ahead of ours has to be overtaken.
        """
        if revision >= LARGEST:
            return
        if node not in self._out or revision > self._revision:
            self._out[node] = None
        self._revision = max(self._revision, revision)

    def expected_by(self, node: str) -> None:
        """A node began to live: it is told even if there is nothing for it to hold."""
        self._out[node] = None

    def to_clear(self, node: str, revision: int) -> bool:
        """Whether a node that reports `revision` has been told last that it shall hold nothing.

        True once: what is retained for it is cleared then.
        """
        told = self._told.get(node)
        if told is None or revision < told or self._out.get(node) != ():
            return False
        del self._told[node]
        return True

    def forget(self, node: str) -> None:
        """The node is gone for good."""
        self._out.pop(node, None)
        self._told.pop(node, None)

    def changed(self, desired: Mapping[str, tuple[StageRef, ...]]) -> list[PushAssignment]:
        """What to publish, so that each node's assignment says what is desired of it, by node.

        Called with each event, and there may be thousands of nodes: those with no change cost a look-up.
        """
        pushes = []
        for node in sorted(node for node, out in self._out.items() if out != desired.get(node, ())):
            stages = self._out[node] = desired.get(node, ())
            self._revision = max(self._revision + 1, self.first)
            self._told[node] = self._revision
            pushes.append(PushAssignment(node, self._revision, stages))
        return pushes
