"""Makes happen what the core decides about stages: fetch, load, attach, report, unload.

What to hold and what to let go is decided in `edge_agent/core/desired.py`; here are its tasks, the blobs, and
the two threads that load stages (`edge_agent/loader.py`) and run them (`edge_agent/stage_thread.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, assert_never

from edge_agent.blobs import Blobs
from edge_agent.core import desired
from edge_agent.loader import Loader, LoaderThread
from edge_agent.stage_thread import Attached, Detached, Forged, Notice, StageThread, ThreadEnded
from edge_agent.terms import TermFile
from shared.artifact_part import SPARE_BYTES
from shared.bus import ControlBus, DataBus
from shared.codec import encode_json
from shared.errors import Amp4ecError, ArtifactError, BrokerError, StorageFullError
from shared.logs import get_log
from shared.messages.stage import Report, StageAssignment
from shared.sentences import worded
from shared.topics import Topics

log = get_log(__name__)

_PROGRESS_S = 5.0
"""So often a report says how much has come, so that nobody takes a thin link for a standstill."""


class Spawn(Protocol):
    """Starts a task that ends with the agent."""

    def __call__(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]: ...


class StageKeeper:
    """Holds the stages of one life of an agent.

    Args:
        core: decides.
        terms: keeps the greatest term that the core has heard of.
        control: reports go out on it.
        topics: the table.
        blobs: where graphs and weights come from.
        loader: turns them into stages, in a thread of its own.
        data: makes the data connection; called in the stage thread.
        spawn: starts the tasks.
        ended: called in the loop when the stage thread has ended, with its error.
    """

    def __init__(
        self,
        node: str,
        core: desired.Desired,
        *,
        terms: TermFile,
        control: ControlBus,
        topics: Topics,
        blobs: Blobs,
        loader: Loader,
        data: Callable[[], DataBus],
        spawn: Spawn,
        ended: Callable[[BaseException | None], None],
    ) -> None:
        self._core = core
        self._terms = terms
        self._control = control
        self._report_topic = topics.topic("report", node=node)
        self._blobs = blobs
        self._loader = loader
        self._loader_thread = LoaderThread(f"loader {node}")
        self._spawn = spawn
        self._ended = ended
        self.stage_thread = StageThread(data, self._notify, name=f"stages {node}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False
        self._brought: dict[int, dict[str, Path]] = {}
        self._fetching: dict[int, asyncio.Task[None]] = {}
        self._prefetching: asyncio.Task[None] | None = None
        self._loading: dict[int, tuple[StageAssignment, float]] = {}
        """What is being loaded, and since when, by life."""
        self._report: Report | None = None
        self._report_due = asyncio.Event()

    def start(self) -> None:
        """Begin to run stages; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.stage_thread.start()

    def leave(self, drain_s: float) -> None:
        """Take nothing new; finish what is queued within that time."""
        self._leaving = True
        self.stage_thread.stop(drain_s)

    async def close(self, within_s: float) -> bool:
        """Wait for the stage thread's end; False when it has not come in time."""
        self._loader_thread.stop()
        return await asyncio.to_thread(self.stage_thread.join, within_s)

    async def preload(self, runtimes: Sequence[str]) -> None:
        """Import runtimes before the first stage needs them."""
        for name in runtimes:
            try:
                await self._loader_thread.run(partial(self._loader.open, name))
            except (Amp4ecError, ImportError, OSError) as error:
                log.error("runtime cannot be opened", runtime=name, error=error)

    def step(self, event: desired.Event) -> None:
        """Take an event to the core, and do what it says."""
        if self._leaving:
            return
        actions = self._core.step(event)
        self._terms.keep(self._core.term)
        for action in actions:
            match action:
                case desired.FetchBlobs(life, stage):
                    log.info("stage fetching", **_facts(stage))
                    self._fetching[life] = self._spawn(self._fetch(action), f"fetch {life}")
                case desired.CancelFetch(life):
                    task = self._fetching.pop(life, None)
                    if task is not None:
                        task.cancel()
                    self._forget(life)
                case desired.Load(life, stage):
                    log.info("stage loading", **_facts(stage))
                    self._spawn(self._load(action), f"load {life}")
                case desired.Unload(life, stage):
                    log.info("stage unloading", **_facts(stage))
                    self.stage_thread.detach(life)
                case desired.Prefetch(revision, blobs):
                    if self._prefetching is not None:
                        self._prefetching.cancel()
                    self._prefetching = (
                        self._spawn(self._prefetch(action), f"prefetch {revision}")
                        if blobs
                        else None
                    )
                case desired.PublishReport(report):
                    self._report = report
                    self._report_due.set()
                case _:
                    assert_never(action)

    async def publish_reports(self) -> None:
        """Send each report that is due, the latest only; for ever."""
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            if self._report is None:
                continue
            try:
                await self._control.publish(self._report_topic, encode_json(worded(self._report)))
            except BrokerError as error:
                # The next connection begins with a report.
                log.info("report not sent", error=error)

    async def _fetch(self, action: desired.FetchBlobs) -> None:
        began = said = time.monotonic()

        def progress(here_bytes: int) -> None:
            nonlocal said
            if time.monotonic() - said >= _PROGRESS_S:
                said = time.monotonic()
                self.step(desired.BlobsArriving(action.life, here_bytes))

        try:
            brought = await self._blobs.bring(action.life, action.stage, progress)
        except (ArtifactError, OSError) as error:
            log.error("stage cannot be fetched", error=error, **_facts(action.stage))
            full = isinstance(error, StorageFullError) and error.on_disk
            needs = self._blobs.missing_bytes(action.stage) + SPARE_BYTES if full else 0
            self.step(desired.BlobsFailed(action.life, str(error), needs))
            return
        finally:
            self._fetching.pop(action.life, None)
        self._brought[action.life] = dict(brought.paths)
        took_s = time.monotonic() - began
        self.step(desired.BlobsReady(action.life, brought.fetched_bytes, took_s))

    async def _load(self, action: desired.Load) -> None:
        life = action.life
        self._loading[life] = action.stage, time.monotonic()
        try:
            stage = await self._loader_thread.run(
                partial(self._loader.load, life, action.stage, self._brought[life])
            )
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is the reason that is reported
            self._forget(life)
            reason = (
                str(error) if isinstance(error, Amp4ecError) else f"{type(error).__name__}: {error}"
            )
            log.error("stage cannot be loaded", error=reason, **_facts(action.stage))
            self.step(desired.StageLoadFailed(life, reason[:2000]))
            return
        self.stage_thread.attach(stage)

    async def _prefetch(self, action: desired.Prefetch) -> None:
        await self._blobs.prefetch(action.blobs)
        self.step(desired.PrefetchEnded(action.revision))

    def _forget(self, life: int) -> None:
        self._brought.pop(life, None)
        self._loading.pop(life, None)
        self._blobs.release(life)

    def _notify(self, notice: Notice) -> None:
        """From the stage thread into the loop."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._noticed, notice)

    def _noticed(self, notice: Notice) -> None:
        match notice:
            case Attached(life):
                stage, began = self._loading.pop(life)
                load_s = time.monotonic() - began
                log.info("stage ready", load_s=load_s, **_facts(stage))
                self.step(desired.StageLoaded(life, load_s))
            case Detached(life):
                self._forget(life)
                self.step(desired.StageUnloaded(life))
            case Forged(count):
                self.step(desired.MessageForged("activation", "bad_mac", count))
            case ThreadEnded(error):
                if not self._leaving:
                    self._ended(error)
            case _:
                assert_never(notice)


def _facts(stage: StageAssignment) -> dict[str, object]:
    return {
        "model": stage.model,
        "pipeline": stage.pipeline,
        "generation": stage.generation,
        "stage": stage.stage,
    }
