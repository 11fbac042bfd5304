"""The models that are served: their packages and weights on disk, and the stages cut out of them.

Everything here is content-addressed, so cutting the same stage twice gives the same digests, and an agent
that has them is sent nothing. No torch: a stage is cut out of the manifest's JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.core.cluster_events import ModelEntry, StageRef
from orchestrator.models.slice import slice_stage
from shared.artifact_store import ArtifactStore
from shared.codec import encode_json
from shared.errors import ArtifactError, ConfigurationError
from shared.messages.model import ServeOptions
from shared.messages.stage import Blob, StageAssignment
from shared.package import ModelPackage, read_package

AUTO = "auto"


class Library:
    """Packages by the digest of their JSON, over one store. Not safe for several threads at once."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._packages: dict[str, ModelPackage] = {}
        self._stages: dict[tuple[str, tuple[int, int]], tuple[Blob, list[Blob]]] = {}
        self._pinned: dict[str, list[str]] = {}

    def open(self, digest: str) -> ModelPackage:
        """The package, read and checked, its weights all here and kept from eviction.

        Raises:
            ArtifactError: it or one of its weights is not in the store.
            ProtocolError, GraphError, ConfigurationError: it makes no sense.
        """
        known = self._packages.get(digest)
        if known is not None:
            return known
        path = self._pin(digest)
        pinned = [digest]
        try:
            package = read_package(path.read_bytes())
            for blob in package.weights:
                self._pin(blob.digest)
                pinned.append(blob.digest)
        except BaseException:
            for name in pinned:
                self._store.unpin(name)
            raise
        self._pinned[digest] = pinned
        self._packages[digest] = package
        return package

    def close(self, digest: str) -> None:
        """The model is not served any more: its blobs may be evicted."""
        if self._packages.pop(digest, None) is None:
            return
        for name in self._pinned.pop(digest):
            self._store.unpin(name)
        for key in [key for key in self._stages if key[0] == digest]:
            self._store.unpin(self._stages.pop(key)[0].digest)

    def missing(self, blobs: list[Blob]) -> list[Blob]:
        """Those of `blobs` that the store does not have."""
        return [blob for blob in blobs if not self._store.has(blob.digest)]

    def assignment(self, ref: StageRef) -> StageAssignment:
        """What a node needs to know to run a stage; makes the stage's artifacts if need be."""
        entry = ref.entry
        package = self.open(entry.manifest)
        key = (entry.manifest, ref.blocks)
        if key not in self._stages:
            graph = self._put(encode_json(slice_stage(package.manifest, *ref.blocks)))
            start, stop = ref.blocks
            wanted = {block.blob for block in package.manifest.blocks[start:stop]}
            weights = [blob for blob in package.weights if blob.digest in wanted]
            self._stages[key] = (graph, weights)
        graph, weights = self._stages[key]
        transform = package.manifest.preprocess
        first = ref.stage == 0 and transform is not None
        return StageAssignment(
            model=entry.name,
            pipeline=ref.pipeline,
            generation=ref.generation,
            stage=ref.stage,
            num_stages=ref.num_stages,
            runtime=entry.runtime,
            graph=graph,
            weights=weights,
            preprocess=self._put(encode_json(transform)) if first else None,
        )

    def prefetch(self, entry: ModelEntry) -> list[Blob]:
        """Every weight of a model: what a node may need after the next re-plan."""
        return list(self.open(entry.manifest).weights)

    def _put(self, data: bytes) -> Blob:
        digest = self._store.put(data)
        self._pin(digest)
        return Blob(digest=digest, size=len(data))

    def _pin(self, digest: str) -> Path:
        path = self._store.pin(digest)
        if path is None:
            raise ArtifactError(
                "an artifact is not in the orchestrator's store; serve the model again",
                expected=digest,
                got="nothing",
            )
        return path


def choose_runtime(package: ModelPackage, wanted: str, offered: Callable[[], set[str]]) -> str:
    """The one runtime for all stages of a model.

    Args:
        package: what was measured, and so can be planned for.
        wanted: a runtime's name, or `auto`.
        offered: the runtimes that the nodes of now have.

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
    """The cluster core's view of a package."""
    measured = package.measured
    return ModelEntry(
        name=package.manifest.model,
        manifest=digest,
        profile=package.profile(runtime),
        options=options,
        runtime=runtime,
        weights=package.manifest.weights.value,
        reference={name: dict(m.reference) for name, m in measured.items()},
        class_shares=dict(measured[runtime].class_shares),
    )
