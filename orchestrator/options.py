"""How to run an orchestrator."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.cluster_settings import ClusterSettings
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.web.address import HttpAddress
from shared.bus import BrokerUrl
from shared.topics import DEFAULT_ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorOptions:
    """How to run an orchestrator; `store_bytes` bounds the models kept on disk."""

    broker: BrokerUrl
    root: str = DEFAULT_ROOT
    state_dir: Path
    store_bytes: int = 16 * 1024**3
    prefetch: bool = True
    store_after_s: float = 0.2
    """An accepted job that has no answer by then is written to disk."""
    http: HttpAddress | None = None
    """Where the page and the monitors' routes are; None serves none."""
    http_names: tuple[str, ...] = ()
    """Further host names by which browsers may come to it."""
    home_assistant: str | None = None
    """The discovery prefix below which nodes and models are announced; None: they are not."""
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)
