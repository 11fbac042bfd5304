"""What a standby holds ready: the packages of all models that are served, as the leader tells them.

So a take-over needs no upload, and the weights are read and checked by then. Jobs are not replicated: they
are in the broker's queue, which whoever leads inherits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from orchestrator.library import Library
from shared.bus import ControlBus, Message
from shared.codec import decode_json
from shared.errors import Amp4ecError, BrokerError, ProtocolError
from shared.ids import ORCHESTRATOR
from shared.logs import get_log
from shared.messages.model import ModelState
from shared.messages.stage import Blob
from shared.signing import Admission
from shared.topics import Topics, check_payload
from shared.transfer import Transfers

log = get_log(__name__)

_TRY_AGAIN_S = 5.0


class Replica:
    """Runs while this process stands by; `states` is what was served when it ended.

    Args:
        bus: a connection under a name of this process's own.
        topics: the table.
        name: this process's, under which pieces come.
        admission: believes the leader only.
        library: where packages go. It may be the leader's own, where both share a directory.
        ready: called when all is here, or something new is not.
    """

    def __init__(
        self,
        bus: ControlBus,
        topics: Topics,
        name: str,
        *,
        admission: Admission,
        library: Library,
        ready: Callable[[bool], None],
    ) -> None:
        self._bus = bus
        self._admission = admission
        self._topics = topics
        self._library = library
        # It fetches, and serves nothing: the leader does that.
        self._transfers = Transfers(bus, topics, name, store=library.store)
        self.states: dict[str, ModelState] = {}
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = ready
        self._listed = False
        self._over = False

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with self._bus, self._transfers:
                await self._bus.subscribe(self._topics.pattern("model_state"))
                listing = asyncio.create_task(self._list(), name="list what is served")
                self._tasks.add(listing)
                async for message in self._bus.messages():
                    try:
                        self._take(message)
                    except ProtocolError as error:
                        log.warning("dropped a message", topic=message.topic, error=error)
        finally:
            self._over = True
            self._tasks |= {*self._bringing.values()}
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _list(self) -> None:
        """Until what is retained has come: the broker sends it before it answers a later question."""
        while not self._listed:
            with contextlib.suppress(BrokerError):
                await self._bus.round_trip()
                self._listed = True
        self.tell()

    def tell(self) -> None:
        """Say again whether all is here: another leads, and who listens has begun to doubt it."""
        if self._over:
            return
        self._ready(self._listed and all(task.done() for task in self._bringing.values()))

    def _take(self, message: Message) -> None:
        name, levels = self._topics.parse(message.topic)
        if self._transfers.handle(name, levels, message) or name != "model_state":
            return
        check_payload(name, len(message.payload))
        self._admission.check(name, message)
        model = levels["model"]
        if not message.payload:
            self._end(model)
            self.states.pop(model, None)
            self._forget()
            self.tell()
            return
        state = decode_json(message.payload, ModelState)
        before, self.states[model] = self.states.get(model), state
        if state.manifest is None or not state.manifest_bytes:
            return
        if before is None or before.manifest != state.manifest:
            self._end(model)
            manifest = Blob(digest=state.manifest, size=state.manifest_bytes)
            task = asyncio.create_task(self._bring(model, manifest), name=f"replicate {model}")
            task.add_done_callback(lambda _: self.tell())
            self._bringing[model] = task
            self.tell()

    def _end(self, model: str) -> None:
        task = self._bringing.pop(model, None)
        if task is not None:
            task.cancel()

    async def _bring(self, model: str, manifest: Blob) -> None:
        """The package and what it names, however long the leader takes."""
        while True:
            try:
                await self._transfers.fetch(manifest, ORCHESTRATOR)
                package = await asyncio.to_thread(self._library.read, manifest.digest)
                await asyncio.gather(
                    *(self._transfers.fetch(blob, ORCHESTRATOR) for blob in package.weights)
                )
                await asyncio.to_thread(self._library.open, manifest.digest)
            except (Amp4ecError, OSError) as error:
                log.warning("a model cannot be held ready yet", model=model, error=error)
                await asyncio.sleep(_TRY_AGAIN_S)
                continue
            log.info("model held ready", model=model, weights=len(package.weights))
            self._forget()
            return

    def _forget(self) -> None:
        """Let go of what is not served any more, so that others have room on disk."""
        self._library.keep_only({s.manifest for s in self.states.values() if s.manifest})
