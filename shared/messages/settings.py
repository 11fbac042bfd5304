"""Settings that an operator may change while the cluster runs, and what an orchestrator says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from shared.messages import Count, Term, Version
from shared.messages.operation import Transaction

DAY_S = 86_400.0
MIB = 1 << 20
_UP_TO_A_DAY = Meta(ge=0, le=DAY_S)


def _told(description: str, unit: str = "") -> Meta:
    """What the schema says of a setting beside its bounds."""
    return Meta(description=description, extra_json_schema={"unit": unit} if unit else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may be changed at run time. Each value keeps to its bounds; the unit is in the name.

    The defaults are those of an orchestrator that was started without flags.
    """

    gain_threshold_ratio: Annotated[
        float,
        Meta(ge=0, le=100),
        _told("The least predicted gain that is worth a switch.", "ratio"),
    ] = 0.15
    cool_down_s: Annotated[
        float, _UP_TO_A_DAY, _told("Between a switch and the next one that only pays.", "s")
    ] = 30.0
    load_timeout_s: Annotated[
        float, Meta(ge=1, le=DAY_S), _told("A plan that takes longer to load is given up.", "s")
    ] = 120.0
    blocked_s: Annotated[
        float, _UP_TO_A_DAY, _told("A node that failed to load a model is left out for it.", "s")
    ] = 60.0
    forget_after_s: Annotated[
        float, Meta(ge=1, le=365 * DAY_S), _told("A node lost for so long is forgotten.", "s")
    ] = 3600.0
    prefetch: Annotated[
        bool, _told("Whether nodes are sent the weights that a later plan may need.")
    ] = True
    scheduler: Annotated[
        Literal["shortest-completion", "least-outstanding", "nsa"],
        _told("Which pipeline takes a job."),
    ] = "shortest-completion"
    nsa_form: Annotated[Literal["normalised", "literal"], _told("How `nsa` adds up its terms.")] = (
        "normalised"
    )
    nsa_weights: Annotated[
        tuple[float, float, float, float],
        _told("Of `nsa`: resources, load, performance, balance; none below 0, not all 0."),
    ] = (0.2, 0.2, 0.1, 0.5)
    nsa_max_load_ratio: Annotated[
        float, Meta(gt=0, le=1), _told("`nsa` passes over a node whose CPU is busier.", "ratio")
    ] = 0.8
    nsa_max_latency_s: Annotated[
        float, Meta(gt=0, le=60), _told("`nsa` passes over a node with a longer round trip.", "s")
    ] = 0.2
    log_decisions: Annotated[
        bool, _told("Whether each decision of the scheduler is put on `event`.")
    ] = False
    max_item_bytes: Annotated[
        int, Meta(ge=1, le=120 * MIB), _told("Of one input; more is `too_large`.", "bytes")
    ] = 32 * MIB
    max_queued_items: Annotated[
        int, Meta(ge=1, le=10**6), _told("That wait, per model; more is `overloaded`.", "inputs")
    ] = 1_000
    max_queued_bytes: Annotated[
        int, Meta(ge=1, le=1 << 40), _told("That wait, per model; more is `overloaded`.", "bytes")
    ] = 64 * MIB
    unserved_limit_s: Annotated[
        float,
        Meta(ge=0.1, le=DAY_S),
        _told(
            "A job waits so long while its model has no pipeline; then it is `unavailable`.", "s"
        ),
    ] = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRequest:
    """Change settings: name to value; null goes back to what the orchestrator was started with.

    All or none: of a value that is refused the error says what was expected. They outlive the orchestrator.
    The response has the `OrchestratorInfo`.
    """

    transaction: Transaction
    settings: dict[str, Any] = field(default_factory=dict)
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoRequest:
    """Answer with the `OrchestratorInfo`."""

    transaction: Transaction
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorInfo:
    """Which version leads, what can be asked of it, and its settings.

    `version` is the package's, `protocol` that of the messages, `verbs` stand below `request/`. `settings`
    are in force; those in `changed` were set at run time, `revision` counts how often. `schema` is the JSON
    Schema of `settings`, with `unit`, bounds and, as `default`, the value that this orchestrator was started
    with.
    """

    text: str = ""
    version: str
    protocol: Literal[1] = 1
    settings: Settings
    changed: dict[str, Any] = field(default_factory=dict)
    revision: Count = 0
    term: Term = 0
    verbs: list[str]
    schema: dict[str, Any]
    v: Version = 1
