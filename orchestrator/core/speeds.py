"""How fast a node is at a model, by what the model's blocks do: calibrated, and corrected by measured stages.

A stage's CPU seconds have components: one for each class of operator (`CostClass`), one for reading and
preprocessing the job's input, one for its two messages. The profiled machine's seconds of each, times the
node's slowdown at it (its calibration over that machine's), times what measured stages say about it
(`corrections.py`), are the seconds on this node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.cost import MESSAGES_PER_STAGE
from shared.graph import CostClass
from shared.messages.node import NodeState

FloatArray: TypeAlias = npt.NDArray[np.float64]

COMPONENTS = (*(name.value for name in CostClass), "input", "messages")
_CLASSES = len(CostClass)
_INPUT, _MESSAGES = _CLASSES, _CLASSES + 1
_MEMORY = COMPONENTS.index(CostClass.MEMORY)

MESSAGE_CPU_S, BYTE_CPU_S = 0.0003, 1.0e-9
"""CPU seconds to receive or send one activation at QoS 1, and more for each byte of it, at speed 1.0.

Measured on one x86 core, codec included, for both ways of 50 and 31 KB: 0.17 ms where messages come back to
back (`python -m tests.benchmarks messaging`), and 0.7 ms beside a runtime, whose work leaves nothing of
Python in the caches (`throughput`: what a stage takes beyond its blocks). The last is what a stage pays."""
SLOWDOWN_BOUNDS = (1e-3, 1e3)
"""A calibration that says more or less than this is broken."""


@dataclass(frozen=True, slots=True)
class Speed:
    """A node's speed at one model, as the fields of the same names of `NodeProfile`.

    `message_cpu_s` and `byte_cpu_s` are CPU seconds, at whatever share the node has.
    """

    speed: float
    block_factors: tuple[float, ...]
    input_factor: float
    message_cpu_s: float
    byte_cpu_s: float


def node_speed(state: NodeState, entry: ModelEntry, multipliers: FloatArray) -> Speed:
    """What the planner is to take a node for.

    Args:
        state: the node's birth, with its calibration.
        entry: the model.
        multipliers: by component, on top of the calibration; ones where nothing was measured.
    """
    slower = component_slowdowns(state, entry) * multipliers
    work = block_work(entry)
    here = work @ slower[:_CLASSES]
    there = work.sum(axis=1)
    speed = float(there.sum() / here.sum())
    # A block that takes no time has no factor of its own.
    factors = np.divide(here, there, out=np.full(len(there), 1.0 / speed), where=there > 0) * speed
    return Speed(
        speed=speed,
        # All alike: nodes of one kind stay that for the planner, whatever the last digit.
        block_factors=() if np.allclose(factors, 1.0, rtol=1e-6) else tuple(factors.tolist()),
        input_factor=float(slower[_INPUT]) * speed,
        message_cpu_s=MESSAGE_CPU_S * float(slower[_MESSAGES]),
        byte_cpu_s=BYTE_CPU_S * float(slower[_MESSAGES]),
    )


def stage_components(
    state: NodeState,
    entry: ModelEntry,
    blocks: tuple[int, int],
    compressions: Mapping[int, str] = MappingProxyType({}),
) -> FloatArray:
    """CPU seconds of one job in the stage `[start, stop)` on a node, by component, by calibration alone.

    `compressions` are how its pipeline sends the tensors of its cuts, by the cut's index.
    """
    start, stop = blocks
    profile = entry.profile.sent(compressions)
    boundary = profile.boundary_bytes()
    seconds = np.zeros(len(COMPONENTS))
    seconds[:_CLASSES] = block_work(entry)[start:stop].sum(axis=0)
    # Copying, rounding and sorting bytes: what a runtime's operators of that class do.
    seconds[_MEMORY] += profile.cuts[start - 1].unpack_s if start > 0 else 0.0
    seconds[_MEMORY] += profile.cuts[stop - 1].pack_s if stop < len(profile.blocks) else 0.0
    seconds[_INPUT] = profile.input_seconds if start == 0 else 0.0
    seconds[_MESSAGES] = MESSAGES_PER_STAGE * MESSAGE_CPU_S
    seconds[_MESSAGES] += BYTE_CPU_S * (boundary[start] + boundary[stop])
    components: FloatArray = seconds * component_slowdowns(state, entry)
    return components


def block_work(entry: ModelEntry) -> FloatArray:
    """Seconds of each block by class on the profiled machine, shape (L, classes)."""
    seconds = np.array([block.seconds for block in entry.profile.blocks])
    if not entry.block_shares:
        return np.repeat(seconds[:, None] / _CLASSES, _CLASSES, axis=1)
    work: FloatArray = seconds[:, None] * np.array(entry.block_shares)
    return work


def component_slowdowns(state: NodeState, entry: ModelEntry) -> FloatArray:
    """By component, seconds on the node over seconds on the profiled machine; shape (components,).

    A class that either did not measure is taken to be like the mean of the others; without any all are 1.
    Reading the input and messages are work of many small steps, like operators' overhead.
    """
    reference = entry.reference.get(entry.runtime, {})
    measured = state.calibration.get(entry.runtime)
    seconds = {} if measured is None else measured.seconds
    ratios = np.array(
        [
            seconds[name] / reference[name]
            if seconds.get(name, 0.0) > 0 and reference.get(name, 0.0) > 0
            else np.nan
            for name in CostClass
        ]
    )
    known = ratios[~np.isnan(ratios)]
    ratios = np.clip(
        np.where(np.isnan(ratios), known.mean() if known.size else 1.0, ratios), *SLOWDOWN_BOUNDS
    )
    small_steps = ratios[list(CostClass).index(CostClass.OVERHEAD)]
    slower: FloatArray = np.concatenate((ratios, [small_steps, small_steps]))
    return slower
