"""The models that are served: their packages and weights on disk, and the stages cut out of them.

Everything here is content-addressed, so cutting the same stage twice gives the same digests, and an agent
that has them is sent nothing. No torch: a stage is cut out of the manifest's JSON.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.core.cluster_events import ModelEntry, StageRef
from orchestrator.models.slice import slice_stage
from shared.artifact_store import ArtifactStore
from shared.batching import Batching, find_batching, open_batch
from shared.codec import encode_json
from shared.errors import ArtifactError, ConfigurationError
from shared.messages.model import ServeOptions
from shared.messages.stage import Blob, StageAssignment
from shared.package import ModelPackage, read_package

AUTO = "auto"
MOST_STAGES = 128
"""Cut out of one package and kept from eviction, each by an open file. A plan that follows the nodes' speeds
cuts somewhere else every time; what was not asked for lately is cut again when it is."""


@dataclass(slots=True)
class _Open:
    """A package in use: what is kept for it, and what was cut out of it so far, by blocks."""

    package: ModelPackage
    manifest_bytes: int
    pinned: list[str]
    stages: dict[tuple[int, int], tuple[Blob, list[Blob]]] = field(default_factory=dict)
    transform: Blob | None = None
    batching: Batching | None = None


class Library:
    """Packages by the digest of their JSON, over one store. Safe for several threads."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def open(self, digest: str) -> ModelPackage:
        """The package, read and checked, its weights all here and kept from eviction.

        The first call reads every byte of the weights; later ones are free.

        Raises:
            ArtifactError: it or one of its weights is not in the store.
            ProtocolError, GraphError, ConfigurationError: it makes no sense.
        """
        return self._opened(digest).package

    def _opened(self, digest: str) -> _Open:
        known = self._open.get(digest)
        if known is not None:
            return known
        pinned: list[str] = []
        try:
            path = self._pin(digest, pinned)
            manifest = path.read_bytes()
            package = read_package(manifest)
            for blob in package.weights:
                self._pin(blob.digest, pinned)
        except BaseException:
            self._unpin(pinned)
            raise
        mine = _Open(package, len(manifest), pinned)
        with self._lock:
            first = self._open.setdefault(digest, mine)
        if first is not mine:  # another thread was faster
            self._unpin(pinned)
        return first

    def read(self, digest: str) -> ModelPackage:
        """The package alone, read and checked: to be planned with, not served.

        Raises:
            ArtifactError: it is not in the store.
            ProtocolError, GraphError, ConfigurationError: it makes no sense.
        """
        pinned: list[str] = []
        try:
            return read_package(self._pin(digest, pinned).read_bytes())
        finally:
            self._unpin(pinned)

    def manifest_bytes(self, digest: str) -> int:
        """The size of an open package's JSON; 0 where it is not open."""
        known = self._open.get(digest)
        return 0 if known is None else known.manifest_bytes

    def keep_only(self, digests: Collection[str]) -> None:
        """Packages that are not named are not needed any more: their blobs may be evicted."""
        with self._lock:
            closed = [self._open.pop(digest) for digest in set(self._open) - set(digests)]
        for package in closed:
            self._unpin(package.pinned)

    def missing(self, blobs: list[Blob]) -> list[Blob]:
        """Those of `blobs` that the store does not have."""
        return [blob for blob in blobs if not self.store.has(blob.digest)]

    def assignment(self, ref: StageRef) -> StageAssignment:
        """What a node needs to know to run a stage; makes the stage's artifacts if need be."""
        entry = ref.entry
        opened = self._opened(entry.manifest)
        package = opened.package
        with self._lock:
            graph, weights = self._stage(opened, ref.blocks)
        transform = package.manifest.preprocess
        if transform is not None and opened.transform is None:
            opened.transform = self._put(encode_json(transform), opened)
        return StageAssignment(
            model=entry.name,
            pipeline=ref.pipeline,
            generation=ref.generation,
            stage=ref.stage,
            num_stages=ref.num_stages,
            runtime=entry.runtime,
            graph=graph,
            weights=weights,
            preprocess=opened.transform if ref.stage == 0 else None,
            compression=ref.compression,
        )

    def prefetch(self, entry: ModelEntry) -> list[Blob]:
        """Every weight of a model: what a node may need after the next re-plan."""
        return list(self.open(entry.manifest).weights)

    def _stage(self, opened: _Open, blocks: tuple[int, int]) -> tuple[Blob, list[Blob]]:
        """The graph and the weights of a stage; the one not asked for longest makes room for it."""
        known = opened.stages.pop(blocks, None)
        if known is None:
            manifest, (start, stop) = opened.package.manifest, blocks
            wanted = {block.blob for block in manifest.blocks[start:stop]}
            weights = [blob for blob in opened.package.weights if blob.digest in wanted]
            stage = slice_stage(manifest, start, stop)
            if opened.batching is None:
                opened.batching = find_batching(manifest.graph)
            ends = [value.name for value in stage.inputs] + list(stage.outputs)
            if opened.batching.apart(ends, stage.specs()):
                stage = open_batch(stage, opened.batching)
            known = self._put(encode_json(stage), opened), weights
        opened.stages[blocks] = known
        if len(opened.stages) > MOST_STAGES:
            graph, _ = opened.stages.pop(next(iter(opened.stages)))
            opened.pinned.remove(graph.digest)
            self.store.unpin(graph.digest)
        return known

    def _put(self, data: bytes, opened: _Open) -> Blob:
        digest = self.store.put(data)
        self._pin(digest, opened.pinned)
        return Blob(digest=digest, size=len(data))

    def _pin(self, digest: str, pinned: list[str]) -> Path:
        path = self.store.pin(digest)
        if path is None:
            raise ArtifactError(
                "an artifact is not in the orchestrator's store; serve the model again",
                expected=digest,
                got="nothing",
            )
        pinned.append(digest)
        return path

    def _unpin(self, pinned: list[str]) -> None:
        for digest in pinned:
            self.store.unpin(digest)


def choose_runtime(package: ModelPackage, wanted: str, offered: Callable[[], set[str]]) -> str:
    """The one runtime for all stages of a model.

    Args:
        package: what was measured, and so can be planned for.
        wanted: a runtime's name, or `auto`.
        offered: the runtimes that the nodes of now have, as many nodes as can be.

    Raises:
        ConfigurationError: the model was not measured with the runtime that is wanted.
    """
    measured = sorted(package.measured)
    if wanted != AUTO:
        if wanted not in measured:
            raise ConfigurationError(
                f"runtime {wanted!r} cannot be used for {package.manifest.model!r}",
                expected=f"one of {', '.join([AUTO, *measured])}",
                got=wanted,
            )
        return wanted
    if not measured:
        raise ConfigurationError(
            f"{package.manifest.model!r} was measured with no runtime", expected="one", got="none"
        )
    here = offered()
    usable = [name for name in measured if name in here] or measured
    # The one that was faster on the machine that measured both.
    return min(usable, key=lambda name: sum(package.measured[name].block_seconds))


def entry_of(package: ModelPackage, digest: str, options: ServeOptions, runtime: str) -> ModelEntry:
    """The cluster core's view of a package; where nobody asked for a runtime, with all that it can have."""
    entry = _entry_with(package, digest, options, runtime)
    if options.runtime != AUTO:
        return entry
    others = (name for name in sorted(package.measured) if name != runtime)
    return replace(
        entry, others=tuple(_entry_with(package, digest, options, name) for name in others)
    )


def _entry_with(
    package: ModelPackage, digest: str, options: ServeOptions, runtime: str
) -> ModelEntry:
    measured = package.measured
    return ModelEntry(
        name=package.manifest.model,
        manifest=digest,
        profile=package.profile(runtime),
        options=options,
        runtime=runtime,
        weights=package.manifest.weights.value,
        reference={name: dict(m.reference) for name, m in measured.items()},
        block_shares=measured[runtime].block_shares,
        blobs=tuple(block.blob or "" for block in package.manifest.blocks),
        level=package.manifest.level.value,
        quantisation=package.manifest.quantisation,
    )
