"""A node: its birth and death, what it is, and how it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from shared.messages import Count, Name, Positive, Ratio, Seconds, Term, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A node's measured speed with one runtime.

    `seconds` are CPU seconds of fixed workloads, by class of operator (`conv_dense`,
    `conv_depthwise`, `matmul`, `memory`, `overhead`): less is faster. Ratios to the machine that
    profiled a model give the node's `speed`. `runtime_bytes` is what the process held with the
    runtime loaded and no model.
    """

    seconds: dict[str, Positive]
    runtime_bytes: Count
    measured_in_s: Seconds = 0.0
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the agent may use, after cgroup limits and CPU affinity.

    `cpu` is in CPUs (0.5: half of one); `memory_bytes` the limit, or the machine's memory.
    """

    cpu: Positive
    cores: Count
    memory_bytes: Count
    architecture: str
    cpu_model: str = ""
    system: str = ""
    python: str = ""
    cpu_limited_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node's birth (`online`) or death: `offline` when it left, `lost` from its last will.

    `incarnation` grows with every start of the agent; a death with an older one is a late will. `term` is
    the greatest that the node has heard of: it obeys no lesser one, so a leader has to exceed it.
    """

    text: str = ""
    state: Literal["online", "offline", "lost"]
    node: Name
    incarnation: Count
    pid: Count = 0
    host: str = ""
    version: str = ""
    hardware: Hardware | None = None
    runtimes: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    zone: str = "default"
    price_per_hour: Ratio = 0.0
    power_w: Ratio = 0.0
    telemetry_interval_s: Positive = 1.0
    term: Term = 0
    reason: str = ""
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """A question whether an agent of that name is there: it answers with its `Report` at once."""

    text: str = ""
    node: Name
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTelemetry:
    """One loaded stage over the last interval; times are means per item.

    `at_once` is how many items of a micro-batch it computes at once, by what it measured.
    """

    model: str
    pipeline: str
    generation: Count
    stage: Count
    items: Count
    queue: Count
    compute_s: Seconds
    cpu_s: Seconds
    queue_s: Seconds
    at_once: Annotated[int, Meta(ge=1)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """How a node does now.

    `cpu_percent` is relative to what the node may use, so a saturated 0.4-CPU container reads 100.
    `up_bytes_per_s` and `down_bytes_per_s` are the measured bandwidth to and from the broker, None until
    known; `memory_available_bytes` is what the agent may take in all: what is free and what it has;
    `disk_free_bytes` is what is left where the agent keeps its blobs;
    `temperature_c` is the CPU's, None where the kernel has no sensor for it;
    `cpu_others_ratio` is the share of the whole machine's CPU time that others used, in [0, 1].
    `stability` is 1 minus the mean absolute change of CPU and memory use (as ratios of what the
    node may use) between the last 30 samples, in [0, 1]: 1 is a node that never changes. `sent_at_ms` is the
    node's wall time, 0 where it does not say: for whoever looks for clocks that are wrong.
    """

    text: str = ""
    node: Name
    incarnation: Count
    uptime_s: Seconds
    cpu_percent: Ratio
    memory_used_bytes: Count
    memory_limit_bytes: Count
    network_received_bytes: Count
    network_sent_bytes: Count
    round_trip_s: Seconds | None
    queue: Count
    stability: Ratio
    stages: list[StageTelemetry] = field(default_factory=list)
    up_bytes_per_s: Positive | None = None
    down_bytes_per_s: Positive | None = None
    memory_available_bytes: Count | None = None
    cpu_others_ratio: Ratio | None = None
    disk_free_bytes: Count | None = None
    temperature_c: float | None = None
    sent_at_ms: Count = 0
    v: Version = 1
