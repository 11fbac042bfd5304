"""One model that is served, or is to be: its generations, and who waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.generation import Generation
from orchestrator.core.inputs_seen import InputsSeen
from orchestrator.core.plan import Plan, Predicted

RATE_GRAIN = 0.01
"""A rate missed by no more than this share of it counts as reached: predictions are no better than that."""


@dataclass(slots=True)
class Waiting:
    """Somebody who asked for the model and waits until `deadline`; `told` is what they heard last."""

    transaction: str
    verb: str
    deadline: float
    told: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """To be considered once what loads is ready, at this least gain."""

    cause: str
    threshold: float


@dataclass(slots=True)
class Served:
    """A model's record.

    `entry` is what was asked for last; while that loads, `active` may be of the entry before. At most
    one generation is active and one `pending` (loading) or `held`: that one waits until older ones have
    made room. `known` is the entry that the dispatcher has.
    """

    entry: ModelEntry
    asked: float
    known: ModelEntry | None = None
    before: ModelEntry | None = None
    """What ran when `entry` was asked for in its place; comes back if `entry` cannot be had."""
    reason: str = ""
    active: Generation | None = None
    pending: Generation | None = None
    held: Generation | None = None
    again: Again | None = None
    tried: bool = False
    """Whether `entry` was planned; before, it waits a little for the nodes that it wants."""
    ran: bool = False
    failed: bool = False
    """The last load failed and nobody is left to try; see `blocked`."""
    drifts: int = 0
    """Switches for drift alone since the nodes or the wish last changed."""
    looks: int = 0
    """At so many in a row a switch would have paid; see `ClusterSettings.drift_looks`."""
    switched: float = float("-inf")
    considered: float = float("-inf")
    usable: int = 0
    """Nodes that the last plan could choose from, of those that were `present`."""
    present: int = 0
    blocked: dict[str, float] = field(default_factory=dict)
    """Nodes that failed to load it, and until when they are left out."""
    waiting: list[Waiting] = field(default_factory=list)
    chosen: Plan | None = None
    """The planner's latest answer, for its alternatives; the plan in force is the active one's."""
    free_choice: Plan | None = None
    stuck: str = ""
    """Why it stays on nodes that it should leave; empty when it need not leave any, or can."""
    inputs: InputsSeen = field(default_factory=InputsSeen)
    published: object = None
    """What the model's state was made from when it was published last."""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def state(self) -> Literal["serving", "loading", "unserved", "failed"]:
        """What a client may expect now."""
        if self.active is not None:
            return "serving"
        if self.loads:
            return "loading"
        return "failed" if self.failed else "unserved"

    @property
    def shown(self) -> Generation | None:
        """The generation that the model's state shows."""
        return self.active or self.pending or self.held

    @property
    def newest(self) -> Generation | None:
        """The generation that runs, or will when it is loaded."""
        return self.held or self.pending or self.active

    @property
    def stays(self) -> Generation | None:
        """Of those that nodes hold now, the one that does not make way for another that loads."""
        return self.pending or self.active

    @property
    def loads(self) -> bool:
        """Whether a generation is on its way."""
        return self.pending is not None or self.held is not None

    @property
    def replaces(self) -> bool:
        """Whether what is asked for has yet to take over from what runs."""
        return self.active is not None and self.active.entry is not self.entry

    def as_sent(self, entry: ModelEntry) -> ModelEntry:
        """The model with one of its runtimes, as plans are to see it: with jobs of the size that comes."""
        profile = self.inputs.profile(entry.profile)
        return entry if profile is entry.profile else replace(entry, profile=profile)

    def generations(self) -> Iterator[Generation]:
        """Those whose stages nodes shall hold now; one that is held back is not."""
        if self.active is not None:
            yield self.active
        if self.pending is not None:
            yield self.pending

    def all_generations(self) -> Iterator[Generation]:
        """Those, and the one that is held back: all that is to be kept free for this model."""
        yield from self.generations()
        if self.held is not None:
            yield self.held

    def satisfied(self) -> bool:
        """Whether what was asked for runs, with the stages and at the rate that were asked for."""
        active = self.active
        return (
            active is not None
            and active.entry is self.entry
            and not misses_stages(active)
            and not misses_rate(active.entry, active.plan.predicted)
        )

    def shortage(self) -> str:
        """What there is of the stages and the rate asked for, when it is less; else empty."""
        shown = self.shown
        if shown is None or shown.entry is not self.entry:
            return ""
        parts = []
        options = self.entry.options
        fewest, wanted = min(shown.num_stages()), options.min_stages or 1
        if fewest < wanted:
            parts.append(f"{fewest} of the {wanted} stages asked for: {self._why_short(wanted)}")
        if misses_rate(self.entry, shown.plan.predicted):
            reached = shown.plan.predicted.throughput_per_s
            parts.append(
                f"{reached:.3g} of the {options.rate_per_s:g} jobs/s asked for: {self._why_slow()}"
            )
        return "; ".join(parts)

    def _why_short(self, wanted: int) -> str:
        if self.entry.profile.whole:
            return "it is served whole"
        if self.active is not None and self.loads:
            return "another plan loads"
        if self.usable < self.present:
            return f"{self.usable} of {self.present} nodes can load it"
        if self.usable < wanted:
            return f"{self.usable} node{' is' if self.usable == 1 else 's are'} here"
        return f"no plan of more fits the {self.usable} nodes"

    def _why_slow(self) -> str:
        if self.active is not None and self.loads:
            return "another plan loads"
        return f"the most that {self.usable} node{' has' if self.usable == 1 else 's have'} left"


def misses_stages(generation: Generation) -> bool:
    """Whether a pipeline has fewer or more stages than were asked for."""
    options = generation.entry.options
    low, high = options.min_stages or 1, options.max_stages
    return any(n < low or (high is not None and n > high) for n in generation.num_stages())


def misses_rate(entry: ModelEntry, predicted: Predicted) -> bool:
    """Whether a plan is predicted to stay below the rate that was asked for."""
    rate = entry.options.rate_per_s
    return rate is not None and predicted.throughput_per_s < rate * (1.0 - RATE_GRAIN)
