"""The cost model: one small function per equation of ALGORITHMS.md, section 3.

Symbols there and names here: `t_i` block seconds, `w_i` weight bytes, `a_j` bytes crossing boundary j,
`h_n` a node's seconds per message. `tables.py` computes the same equations for every stage at once; a test
holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.plan import StagePlan
from shared.profile import UNCOMPRESSED, ModelProfile, NodeProfile

MESSAGES_PER_STAGE = 2
"""One message in and one out: the job's input and the result are messages like each cut's activation."""

HEADROOM = (9, 10)
"""Of a node's memory, as a ratio of whole numbers: the other tenth stays free."""


def scaled_seconds(seconds: float, node: NodeProfile) -> float:
    """`t_i(n) = seconds_i / (cpu_n * speed_n)`: seconds at 1.0 CPU of the profiled machine, on this node."""
    return seconds / (node.cpu * node.speed)


def stage_work(profile: ModelProfile, node: NodeProfile, blocks: tuple[int, int]) -> float:
    """`sum(seconds_i * factor_i)` over the blocks `[start, stop)`, preprocessing included where it is first.

    Seconds at 1.0 CPU of the profiled machine. Beyond ALGORITHMS.md, a block has a factor on each node: what
    it does may suit the node better or worse than the model's mix; and where tensors travel compressed, it is
    the stage that unpacks what it receives and packs what it sends.
    """
    start, stop = blocks
    factors = node.factors(len(profile.blocks))[start:stop]
    inside = zip(profile.blocks[start:stop], factors, strict=True)
    work_s = sum(block.seconds * factor for block, factor in inside)
    work_s += profile.cuts[start - 1].unpack_s if start > 0 else 0.0
    work_s += profile.cuts[stop - 1].pack_s if stop < len(profile.blocks) else 0.0
    return work_s + profile.input_seconds * node.input_factor if start == 0 else work_s


def stage_compute(work_s: float, node: NodeProfile, moved_bytes: float) -> float:
    """`compute = sum(t) + h_n * (received + sent)`, in seconds per job.

    Beyond ALGORITHMS.md, each of the `moved_bytes` received and sent adds `byte_s`: copying 300 KB costs a
    stage several times what a message does, and without it cuts with large tensors look free.

    `work_s` is that of `stage_work`. `h_n` is wall time already, so it is not divided by the CPU share.
    """
    messages_s = node.message_s * MESSAGES_PER_STAGE + node.byte_s * moved_bytes
    return scaled_seconds(work_s, node) + messages_s


def stage_receive(received_bytes: float, node: NodeProfile) -> float:
    """`receive = a_i / down_n`, in seconds per job."""
    return received_bytes / node.down_bytes_per_s


def stage_send(sent_bytes: float, node: NodeProfile) -> float:
    """`send = a_j / up_n`, in seconds per job."""
    return sent_bytes / node.up_bytes_per_s


def stage_period(compute_s: float, receive_s: float, send_s: float) -> float:
    """`period = max(compute, receive, send)`: the three overlap, so the slowest sets the pace."""
    return max(compute_s, receive_s, send_s)


def stage_memory(weight_bytes: int, peak_bytes: int, runtime_bytes: int, buffer_bytes: int) -> int:
    """Weights + peak of the live tensors + the runtime's base + the in-flight window's buffers."""
    return weight_bytes + peak_bytes + runtime_bytes + buffer_bytes


def window_buffers(received_bytes: int, sent_bytes: int, in_flight: int) -> int:
    """Bytes that a stage may have to hold for jobs which it is not computing.

    A pipeline has at most `in_flight` jobs inside (the dispatcher's credits). Each of them waits, at a given
    stage, before it or after it, so the worst case is all of them on the heavier side.
    """
    return in_flight * max(received_bytes, sent_bytes)


def usable_bytes(node: NodeProfile) -> int:
    """What a stage may take of the node's memory: 10 % headroom is kept."""
    part, whole = HEADROOM
    return node.memory_bytes * part // whole


def pipeline_throughput(periods: Sequence[float]) -> float:
    """`1 / max(period)`, in jobs per second: the slowest stage sets the pace."""
    return 1.0 / max(periods)


def pipeline_latency(stages: Sequence[StagePlan]) -> float:
    """`sum(compute + receive + send)` along the pipeline, in seconds: nothing overlaps for one job."""
    return sum(stage.compute_s + stage.receive_s + stage.send_s for stage in stages)


def plan_throughput(throughputs: Sequence[float]) -> float:
    """The sum over the plan's pipelines, in jobs per second."""
    return sum(throughputs)


def plan_latency(latencies: Sequence[float]) -> float:
    """That of the slowest pipeline, in seconds."""
    return max(latencies)


def pipeline_energy(stages: Sequence[StagePlan], nodes: Sequence[NodeProfile]) -> float:
    """`energy_j = sum(power_w * compute)` of one job through this pipeline, in joules."""
    return sum(node.power_w * stage.compute_s for stage, node in zip(stages, nodes, strict=True))


def plan_energy(energies: Sequence[float], throughputs: Sequence[float]) -> float:
    """Joules of the mean job: pipelines take jobs in proportion to their throughput."""
    weighted = sum(e * t for e, t in zip(energies, throughputs, strict=True))
    return weighted / sum(throughputs)


def plan_cost_per_1000(prices_per_hour: Sequence[float], throughput_per_s: float) -> float:
    """`1000 * sum(price_per_hour / 3600) / throughput` over the nodes used, in the price's currency."""
    return 1000.0 * sum(price / 3600.0 for price in prices_per_hour) / throughput_per_s


def pipeline_exposure(
    profile: ModelProfile,
    stages: Sequence[StagePlan],
    nodes: Sequence[NodeProfile],
    input_zone: str,
) -> float:
    """1 minus the share of multiply-adds done when a tensor first leaves the input's zone; 0 if none does.

    1 means that the input itself leaves. Only nodes are looked at here; the zone of broker and orchestrator
    is a limit of its own (ALGORITHMS.md, section 3).
    """
    for stage, node in zip(stages, nodes, strict=True):
        if node.zone != input_zone:
            return exposures(profile)[stage.blocks[0]]
    return 0.0


def exposures(profile: ModelProfile) -> list[float]:
    """The exposure ratio where the first stage outside starts at boundary 0..L; never rising.

    1 at every block of a model whose multiply-adds were not counted.
    """
    total = sum(block.macs for block in profile.blocks)
    done, ratios = 0, []
    for block in profile.blocks:
        ratios.append(1.0 - done / total if total else 1.0)
        done += block.macs
    return [*ratios, 0.0]


def plan_exposure(exposures: Sequence[float]) -> float:
    """That of the most exposed pipeline: any job may take it."""
    return max(exposures)


def price_stage(
    profile: ModelProfile,
    node: NodeProfile,
    blocks: tuple[int, int],
    in_flight: int,
    compression: str = UNCOMPRESSED,
) -> StagePlan:
    """All figures of the stage `[start, stop)` on a node; whether it fits is not asked here.

    The tensors at its ends travel as `profile` says; `compression` is only noted.
    """
    start, stop = blocks
    boundary = profile.boundary_bytes()
    inside = profile.blocks[start:stop]
    work_s = stage_work(profile, node, blocks)
    return StagePlan(
        node=node.name,
        blocks=blocks,
        compute_s=stage_compute(work_s, node, boundary[start] + boundary[stop]),
        receive_s=stage_receive(boundary[start], node),
        send_s=stage_send(boundary[stop], node),
        memory_bytes=stage_memory(
            sum(block.weight_bytes for block in inside),
            max(block.peak_bytes for block in inside),
            profile.runtime_bytes,
            window_buffers(boundary[start], boundary[stop], in_flight),
        ),
        compression=compression,
    )
