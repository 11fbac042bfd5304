"""What the cluster's core decided about stages and pipelines, told to nodes and to the dispatcher."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace

from orchestrator.answers import Shown
from orchestrator.core import cluster_events as events
from orchestrator.core import dispatch_events as dispatch
from orchestrator.core.result_cache import CacheSettings
from orchestrator.dispatch_notes import Command, ModelSpec, PipelineSpec
from orchestrator.dispatcher import DispatchThread
from orchestrator.library import Library
from orchestrator.outbox import Outbox
from shared.compression import Compression
from shared.manifest import Level
from shared.messages.stage import Assignment, StageAssignment
from shared.pipeline_mac import PipelineKeys

PipelineAction = (
    events.ModelKnown
    | events.ModelForgotten
    | events.ActivatePipeline
    | events.DrainPipeline
    | events.LosePipeline
)


_MOST_TIMED = 1000
"""Generations: those of earlier orchestrators are assigned again, and never end as ours do."""


class Deployer:
    """Turns stages into digests, and plans into what the dispatcher goes by.

    `keys` are those of the pipelines, on a closed cluster.
    """

    def __init__(
        self,
        library: Library,
        outbox: Outbox,
        dispatcher: DispatchThread,
        *,
        term: int,
        prefetch: bool,
        keys: PipelineKeys | None = None,
    ) -> None:
        self._library = library
        self._outbox = outbox
        self._dispatcher = dispatcher
        self._term = term
        self.prefetch = prefetch
        """Whether nodes are sent what a later plan may need; from the next assignment on."""
        self._keys = keys
        self._assigned: dict[str, set[str]] = {}
        self._slice_s: dict[tuple[str, int], float] = {}

    @property
    def in_use(self) -> Collection[str]:
        """Digests of the packages that nodes hold stages of."""
        return set().union(*self._assigned.values())

    def assign(self, action: events.PushAssignment) -> None:
        """Publish what a node shall hold.

        Raises:
            Amp4ecError: a stage of it cannot be made.
        """
        self._assigned[action.node] = {ref.entry.manifest for ref in action.stages}
        stages = [self._stage(ref) for ref in action.stages]
        needed = {blob.digest for stage in stages for blob in stage.weights}
        prefetch = {
            blob.digest: blob
            for ref in action.stages
            if self.prefetch
            for blob in self._library.prefetch(ref.entry)
            if blob.digest not in needed
        }
        assignment = Assignment(
            node=action.node,
            revision=action.revision,
            term=self._term,
            stages=stages,
            prefetch=list(prefetch.values()),
        )
        self._outbox.publish("assignment", assignment, retain=True, node=action.node)

    def take_slice_s(self, model: str, generation: int) -> float:
        """Seconds spent so far on making a generation's stages, which is over now."""
        return self._slice_s.pop((model, generation), 0.0)

    def _stage(self, ref: events.StageRef) -> StageAssignment:
        began = time.perf_counter()
        try:
            return self._keyed(self._library.assignment(ref))
        finally:
            key = (ref.entry.name, ref.generation)
            if key in self._slice_s or len(self._slice_s) < _MOST_TIMED:
                spent_s = time.perf_counter() - began
                self._slice_s[key] = self._slice_s.get(key, 0.0) + spent_s

    def _keyed(self, stage: StageAssignment) -> StageAssignment:
        if self._keys is None:
            return stage
        return replace(stage, key=self._keys.key(stage.pipeline, stage.generation).hex())

    def clear(self, action: events.ClearAssignment) -> None:
        """Nothing has to be retained for a node any more."""
        self._outbox.clear("assignment", node=action.node)

    def forget(self, action: events.ForgetNode) -> None:
        """Nothing shall remind of a node."""
        self._assigned.pop(action.node, None)
        self._outbox.clear("node_state", node=action.node)
        self._outbox.clear("assignment", node=action.node)
        # It may have died while it measured its link.
        self._outbox.clear("artifact_probe", peer=action.node)

    def tell(self, action: PipelineAction) -> None:
        """Tell the dispatcher.

        Raises:
            Amp4ecError: the model's package cannot be read.
        """
        self._dispatcher.tell(self._command(action))

    def _command(self, action: PipelineAction) -> Command:
        now = time.monotonic()
        match action:
            case events.ModelKnown():
                manifest = self._library.open(action.entry.manifest).manifest
                names = tuple(value.name for value in manifest.graph.inputs)
                shown, cache = self._shown(action.entry), cache_of(action.entry)
                shapes = {value.name: value.spec.shape for value in manifest.graph.inputs}
                return ModelSpec(action.entry.name, names, shown, cache, shapes)
            case events.ModelForgotten():
                return dispatch.ModelStopped(now, action.model)
            case events.ActivatePipeline():
                return self._pipeline(action)
            case events.DrainPipeline(model, pipeline, generation):
                return dispatch.PipelineDraining(now, model, pipeline, generation)
            case events.LosePipeline(model, pipeline, generation, crashed):
                return dispatch.PipelineLost(now, model, pipeline, generation, crashed)

    def _shown(
        self, entry: events.ModelEntry, hops_s: tuple[float, ...] = (), *, rounded: bool = False
    ) -> Shown:
        manifest = self._library.open(entry.manifest).manifest
        exact = manifest.level is not Level.O2 and not rounded
        return Shown(manifest.labels, entry.weights, hops_s, exact=exact)

    def _pipeline(self, action: events.ActivatePipeline) -> PipelineSpec:
        stages = action.plan.stages
        hops_s = (*(stage.receive_s for stage in stages), stages[-1].send_s)
        latency_s, rate = usable_figures(action.latency_s, action.throughput_per_s)
        rounded = not all(Compression.parse(stage.compression).exact for stage in stages)
        return PipelineSpec(
            model=action.entry.name,
            pipeline=action.pipeline,
            generation=action.generation,
            num_stages=len(stages),
            throughput_per_s=rate,
            latency_s=latency_s,
            shown=self._shown(action.entry, hops_s, rounded=rounded),
            max_error=action.entry.options.max_error if rounded else None,
            identity=_identity(action.entry),
            micro_batch=action.micro_batch,
        )


def cache_of(entry: events.ModelEntry) -> CacheSettings | None:
    """How the model's answers are kept; None where that was not asked for."""
    options = entry.options
    if not options.cache_bytes:
        return None
    return CacheSettings(
        identity=_identity(entry), max_bytes=options.cache_bytes, keep_s=options.cache_for_s
    )


def _identity(entry: events.ModelEntry) -> str:
    """Of all that an answer depends on but its input: the package has weights, level, transform, labels."""
    options = entry.options
    return f"{entry.manifest} {entry.runtime} {options.compression} {options.max_error!r}"


def usable_figures(latency_s: float, throughput_per_s: float) -> tuple[float, float]:
    """A prediction that the dispatcher can divide by, whatever came out of a plan (or a retained state).

    It is only where the dispatcher starts from: it goes by what it measures.
    """
    if not (math.isfinite(latency_s) and latency_s >= 0.0):
        latency_s = 1.0
    if not (math.isfinite(throughput_per_s) and throughput_per_s > 0.0):
        throughput_per_s = 1.0 / max(latency_s, 1e-3)
    return latency_s, throughput_per_s
