"""What the parts of the cluster core work on together: nodes, models, and the actions of this step."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.assignments import Assignments
from orchestrator.core.cluster_events import Action, DrainPipeline, Finish, LosePipeline, Tell
from orchestrator.core.cluster_settings import ClusterSettings
from orchestrator.core.generation import Generation
from orchestrator.core.members import Members
from orchestrator.core.served import Served, Waiting
from shared.errors import ErrorCode
from shared.messages.cordon import Cordon


@dataclass(slots=True)
class Drain:
    """Somebody waits until `deadline` for a node to hold nothing; `told` is what they heard last."""

    transaction: str
    node: str
    deadline: float
    told: str = ""


@dataclass(slots=True)
class Context:
    """The cluster's state.

    `restoring`: what an earlier orchestrator had retained is not all known yet, so nothing is planned.
    `draining` are generations of any model, stopped ones too: their stages stay until the last job is
    out of them. `numbers` has each model's latest generation number, and outlives the model. `moved` are the
    models that have taken or left room since the others were looked at, with what there is to say of it.
    """

    settings: ClusterSettings
    members: Members
    assignments: Assignments
    restoring: bool = False
    models: dict[str, Served] = field(default_factory=dict)
    draining: list[Generation] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    deploying: dict[tuple[str, int], Generation] = field(default_factory=dict)
    """The generations that loaded at the end of the last step."""
    cordons: dict[str, Cordon] = field(default_factory=dict)
    """Nodes that are out of plans, by name."""
    drains: list[Drain] = field(default_factory=list)
    """Who waits for a node to hold nothing."""
    actions: list[Action] = field(default_factory=list)
    finished: list[Finish] = field(default_factory=list)
    """Said last in a step, when the state that they speak of is published."""

    def in_order(self) -> list[Served]:
        """The models in the order in which they are planned: rates that were asked for first, then age."""
        return sorted(
            self.models.values(),
            key=lambda m: (m.entry.options.rate_per_s is None, m.asked, m.name),
        )

    def next_number(self, model: str) -> int:
        """A new generation's number."""
        self.numbers[model] = self.numbers.get(model, 0) + 1
        return self.numbers[model]

    def number_seen(self, model: str, number: int) -> None:
        """A number that an earlier orchestrator gave out is not given out again."""
        self.numbers[model] = max(self.numbers.get(model, 0), number)

    def tell(
        self,
        event: str,
        text: str,
        *,
        node: str | None = None,
        model: str | None = None,
        generation: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Put a line on `event`."""
        self.actions.append(Tell(event, text, node, model, generation, reason))

    def finish(
        self,
        model: str,
        waiting: Waiting,
        error: str | None = None,
        code: ErrorCode = ErrorCode.UNAVAILABLE,
    ) -> None:
        """End one transaction."""
        self.finished.append(Finish(waiting.transaction, waiting.verb, model, error, code))

    def finish_all(self, served: Served, error: str | None = None) -> None:
        """End every transaction that waits for a model."""
        for waiting in served.waiting:
            self.finish(served.name, waiting, error)
        served.waiting.clear()

    def drain(self, generation: Generation) -> None:
        """No new jobs for an active generation; its stages stay until the last is out."""
        self.draining.append(generation)
        for index, _ in generation.running():
            name = generation.names[index]
            self.actions.append(DrainPipeline(generation.entry.name, name, generation.number))

    def lose(self, generation: Generation, index: int, crashed: str | None = None) -> None:
        """A pipeline cannot run any more; the dispatcher is told where it had been given jobs."""
        generation.lost.add(index)
        if generation.activated:
            name, number = generation.names[index], generation.number
            self.actions.append(LosePipeline(generation.entry.name, name, number, crashed))
