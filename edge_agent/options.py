"""What an agent is told when it is started."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shared.bus.url import BrokerUrl
from shared.errors import ConfigurationError
from shared.ids import check_name
from shared.topics import DEFAULT_ROOT

DEFAULT_CACHE_BYTES = 2 * 1024**3


def default_cache_dir(node: str) -> Path:
    """`amp4ec/agent-{node}` below the user's cache directory (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "amp4ec" / f"agent-{node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """One agent's options.

    Raises:
        ConfigurationError: a name that cannot stand in a topic, or a number out of range.
    """

    broker: BrokerUrl
    node: str
    root: str = DEFAULT_ROOT
    cache_dir: Path | None = None
    """Blobs and the last incarnation; `default_cache_dir(node)` when None."""
    cache_bytes: int = DEFAULT_CACHE_BYTES
    zone: str = "default"
    price_per_hour: float = 0.0
    power_w: float = 0.0
    cpus: float | None = None
    """The CPUs to count on where that is less than what may be used; nothing enforces it."""
    telemetry_interval_s: float = 1.0
    preload: bool = False
    """Import the runtimes before the birth instead of with the first assignment: memory for readiness."""
    runtimes: tuple[str, ...] | None = None
    """The runtimes to offer, of those that are installed; all of them when None."""
    calibrate: bool = True
    drain_s: float = 10.0
    """How long a leaving agent may take to finish what it holds."""
    version: str = field(default="")

    def __post_init__(self) -> None:
        check_name("node", self.node)
        for name, value, least in (
            ("price_per_hour", self.price_per_hour, 0.0),
            ("power_w", self.power_w, 0.0),
            ("drain_s", self.drain_s, 0.0),
            ("telemetry_interval_s", self.telemetry_interval_s, 0.05),
            ("cache_bytes", self.cache_bytes, 1),
        ):
            # Written so that NaN fails, too.
            if not least <= value < float("inf"):
                raise ConfigurationError(
                    f"option {name}", expected=f"a finite number >= {least}", got=str(value)
                )
        if self.cpus is not None and not 0 < self.cpus < float("inf"):
            raise ConfigurationError(
                "option cpus", expected="a finite number > 0", got=str(self.cpus)
            )

    @property
    def directory(self) -> Path:
        """The cache directory in force."""
        return self.cache_dir if self.cache_dir is not None else default_cache_dir(self.node)
