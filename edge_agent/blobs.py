"""Brings what a stage needs into the cache and keeps it there while the stage is held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.artifact_store import ArtifactStore
from shared.errors import ArtifactError
from shared.ids import ORCHESTRATOR
from shared.logs import get_log
from shared.messages.stage import Blob, StageAssignment
from shared.transfer import Fetched, Progress, Transfers

log = get_log(__name__)

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Brought:
    """The files of a stage's blobs by digest, and how many bytes came over the bus for them, as they came."""

    paths: dict[str, Path]
    fetched_bytes: int


class Blobs:
    """The blobs of the stages that this node holds, pinned by the number of the stage's life."""

    def __init__(self, store: ArtifactStore, transfers: Transfers) -> None:
        self._store = store
        self._transfers = transfers
        self._pinned: dict[int, list[str]] = {}

    async def bring(
        self, life: int, stage: StageAssignment, progress: Callable[[int], None]
    ) -> Brought:
        """Fetch what is missing and pin everything; on failure or cancellation nothing stays pinned.

        Args:
            life: of the stage.
            stage: what it needs.
            progress: called in the event loop with the bytes that are here, of all that it needs.

        Raises:
            ArtifactError: a blob cannot be had or stored; the first such reason.
        """
        pins = self._pinned[life] = []
        wanted = {blob.digest: blob for blob in _blobs_of(stage)}
        try:
            # Known before the first byte comes: over a thin link it would be told minutes later.
            sizes = {digest: blob.size for digest, blob in wanted.items()}
            await asyncio.to_thread(self._store.expect, sizes)
            here = dict.fromkeys(wanted, 0)

            def arrived(digest: str, here_bytes: int, _: int) -> None:
                here[digest] = here_bytes
                progress(sum(here.values()))

            results = await asyncio.gather(
                *(
                    self._bring(blob, pins, partial(arrived, blob.digest))
                    for blob in wanted.values()
                ),
                return_exceptions=True,
            )
            paths: dict[str, Path] = {}
            fetched_bytes = 0
            for blob, result in zip(wanted.values(), results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                paths[blob.digest] = result.path
                fetched_bytes += result.received_bytes
        except BaseException:
            self.release(life)
            raise
        return Brought(paths, fetched_bytes)

    def missing_bytes(self, stage: StageAssignment) -> int:
        """What of a stage is not here."""
        return sum(blob.size for blob in _blobs_of(stage) if not self._store.has(blob.digest))

    def release(self, life: int) -> None:
        """Let go of what `bring` pinned."""
        for digest in self._pinned.pop(life, []):
            self._store.unpin(digest)

    async def prefetch(self, blobs: tuple[Blob, ...]) -> None:
        """Fetch one after the other; ends at the first that cannot be had. Nothing is pinned."""
        for blob in blobs:
            try:
                await self._transfers.fetch(blob, ORCHESTRATOR)
            except ArtifactError as error:
                log.info("prefetch ended early", error=error)
                return

    async def _bring(self, blob: Blob, pins: list[str], progress: Progress) -> Fetched:
        received_bytes = 0
        for _ in range(_TRIES):
            fetched = await self._transfers.bring(blob, ORCHESTRATOR, progress)
            received_bytes += fetched.received_bytes
            # Verified by the fetch, so this opens and locks a file and reads nothing: fit for the loop.
            path = self._store.pin(blob.digest)
            if path is not None:
                pins.append(blob.digest)
                return Fetched(path, received_bytes)
        raise ArtifactError(
            f"blob {blob.digest} is evicted as soon as it comes: the cache is too small",
            expected="room for everything that is in use",
            got=f"{self._store.max_bytes} bytes",
        )


def _blobs_of(stage: StageAssignment) -> list[Blob]:
    blobs = [stage.graph, *stage.weights]
    return blobs if stage.preprocess is None else [*blobs, stage.preprocess]
