"""When the cluster acts."""

from __future__ import annotations

from dataclasses import dataclass

from shared.profile import DEFAULT_ZONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Zones:
    """The trust zones of orchestrator and broker: every tensor crosses both."""

    orchestrator: str = DEFAULT_ZONE
    broker: str = DEFAULT_ZONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """When to act, in seconds, the least gain that is worth a switch, and where we are."""

    gain_threshold: float = 0.15
    cool_down_s: float = 30.0
    """Between a switch and the next one that only pays; doubles with each that drift alone caused."""
    drift_interval_s: float = 10.0
    drift_looks: int = 5
    """Of that interval, at each of which a switch has to pay: what passes within seconds moves nothing."""
    settle_s: float = 2.0
    """How long a new model waits for the number of nodes that was asked for."""
    retry_s: float = 1.0
    """How often a model that has no plan is planned again."""
    load_timeout_s: float = 120.0
    """Importing torch takes 10 s at 0.2 CPU, and weights have to travel first."""
    blocked_s: float = 60.0
    """How long a node on which a model failed to load is left out for that model."""
    forget_after_s: float = 3600.0
    """A node that was lost for so long is forgotten, and what is retained of it cleared; one that left by
    itself after a sixth of that (`ghosts.LEFT_RATIO`)."""
    zones: Zones = Zones()


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """An event of the cluster: from now on it goes by these. Zones stay as they were."""

    now: float
    settings: ClusterSettings
