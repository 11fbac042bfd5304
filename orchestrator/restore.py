"""Starting again: what an earlier orchestrator left retained on the broker is taken over.

Where the broker has lost a model's state, or has an older one, that counts which we saw as a standby, or that
of our own file.

Our own birth is the mark: a broker delivers in order, so when it comes back to us all that was retained
before has come. Until then nothing is decided, and no job is let in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from orchestrator.announcer import Announcer
from orchestrator.core import cluster_events as events
from orchestrator.library import Library, entry_of
from orchestrator.outbox import Outbox
from orchestrator.served_file import ServedFile
from shared.bus import ControlBus
from shared.errors import Amp4ecError, ProtocolError
from shared.logs import get_log
from shared.messages.model import ModelState

log = get_log(__name__)

ECHO_TIMEOUT_S = 5.0
"""Connected for so long without our own birth: this broker does not let us read it."""
_POLL_S = 0.1
MOST_FOUND = 1000
"""Models that are taken over at most; whoever may write retained states can leave more."""
_MOST_TOLD = 20
"""Of those that cannot be taken over, each on a line of `event` of its own."""


class Restore:
    """Used once, at the start."""

    def __init__(
        self,
        library: Library,
        outbox: Outbox,
        announcer: Announcer,
        served: ServedFile,
        known: Mapping[str, ModelState],
    ) -> None:
        self._library = library
        self._served = served
        self._known = known
        self._outbox = outbox
        self._announcer = announcer
        self._marked = asyncio.Event()
        self._found: dict[str, ModelState] = {}
        self._waited = False
        self._num_refused = 0
        self.over = False
        """Whether all was taken over."""

    @property
    def marked(self) -> bool:
        """Whether our own birth has come back."""
        return self._marked.is_set()

    def mark(self) -> None:
        """Our own birth has come back."""
        self._marked.set()

    def found(self, model: str, state: ModelState) -> None:
        """A model's state was retained; what is beyond the bound stays where it is."""
        if not self._waited and (model in self._found or len(self._found) < MOST_FOUND):
            self._found[model] = state

    async def run(self, bus: ControlBus, step: Callable[[events.Event], None]) -> None:
        """Wait for the mark, then take over each model. Without a broker: wait for one."""
        await self._wait(bus)
        self._waited = True
        remembered = {**await asyncio.to_thread(self._served.read), **self._known}
        for name, state in remembered.items():
            retained = self._found.get(name)
            if retained is None or retained.generation < state.generation:
                log.warning("the broker had lost that a model is served", model=name)
                self._found[name] = state
        for name, state in sorted(self._found.items()):
            if state.manifest is None:
                continue  # one that never got so far
            try:
                package = await asyncio.to_thread(self._library.open, state.manifest)
                if package.manifest.model != name:
                    raise ProtocolError(
                        "the package is of another model", expected=name, got=package.manifest.model
                    )
                entry = entry_of(package, state.manifest, state.options, state.runtime)
                step(events.ModelRestored(time.monotonic(), entry, state))
            except Exception as error:
                if not isinstance(error, Amp4ecError):
                    log.exception("taking over a model failed", model=name)
                self._refuse(name, error)
        if self._num_refused > _MOST_TOLD:
            text = f"{self._num_refused} models in all cannot be taken over: somebody invents them"
            self._announcer.happened(events.Tell("model_lost", text))
        self._found.clear()
        self._served.settle()
        step(events.RestoreEnded(time.monotonic()))
        self.over = True

    def _refuse(self, model: str, error: Exception) -> None:
        """It is served no more, if it ever was: the broker, our file and whoever watches learn it."""
        self._num_refused += 1
        if self._num_refused <= _MOST_TOLD:
            text = f"{model} was served before the restart and cannot be taken over: {error}"
            self._announcer.happened(events.Tell("model_lost", text, model=model))
        self._outbox.publish("model_state", None, retain=True, model=model)
        self._served.write(model, None)

    async def _wait(self, bus: ControlBus) -> None:
        since: float | None = None
        while not self._marked.is_set():
            try:
                await asyncio.wait_for(self._marked.wait(), _POLL_S)
            except TimeoutError:
                now = time.monotonic()
                since = (since or now) if bus.connected else None
                if since is not None and now - since >= ECHO_TIMEOUT_S:
                    log.warning("our own birth does not come back: going on without it")
                    return
