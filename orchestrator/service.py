"""An orchestrator that leads: its control connection brings events, what the cores decide is published.

Which of several leads, and until when, is `candidate.py`'s matter; here is one time of leading.

Two loops: this one (asyncio: births, reports, requests, planning) and the dispatcher's thread (jobs). Where
a model's state is retained on the broker, a restarted orchestrator finds it there and goes on; pipelines
that run do not notice.

What goes wrong with one message, by our own fault, stays with it: it is logged and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, assert_never

from orchestrator.announcer import Announcer
from orchestrator.cluster_actions import ClusterActions
from orchestrator.core import cluster_events as events
from orchestrator.core import dispatch_events as dispatch
from orchestrator.core.cluster import Cluster
from orchestrator.core.cluster_settings import SettingsChanged
from orchestrator.core.dispatch_settings import SettingsChanged as DispatchSettingsChanged
from orchestrator.deployer import Deployer
from orchestrator.deployment_log import DeploymentLog
from orchestrator.dispatch_notes import Report, RoundingMeasured
from orchestrator.dispatcher import DispatchThread
from orchestrator.doubts import LIVE_S, Doubts
from orchestrator.home_assistant import HomeAssistant
from orchestrator.identity import own_state
from orchestrator.intake import SUBSCRIPTIONS, Intake
from orchestrator.job_store import JobStore, Recovered
from orchestrator.lease import Tenure
from orchestrator.library import Library
from orchestrator.live_settings import LiveSettings
from orchestrator.model_states import ModelStates
from orchestrator.note_box import NoteBox
from orchestrator.operators import Operators
from orchestrator.options import OrchestratorOptions
from orchestrator.outbox import Outbox
from orchestrator.reporting import Reporting
from orchestrator.request_gate import RequestGate
from orchestrator.restore import Restore
from orchestrator.served_file import ServedFile
from orchestrator.vouching import Vouching, keys_of
from shared.artifact_store import ArtifactStore
from shared.bus import (
    NO_PROPERTIES,
    ControlBus,
    DataBus,
    MqttControlBus,
    MqttDataBus,
    Publication,
)
from shared.codec import encode_json
from shared.errors import BrokerError
from shared.ids import ORCHESTRATOR
from shared.logs import get_log
from shared.messages.model import ModelState
from shared.messages.operation import OrchestratorState
from shared.signing import Admission
from shared.topics import Topics, largest_packet
from shared.transfer import Transfers

__all__ = ["Orchestrator", "OrchestratorOptions"]

log = get_log(__name__)

SESSION_EXPIRY_S = 24 * 3600
RECEIVE_MAXIMUM = 65535
"""Of the dispatcher: requests are acknowledged with their answers, and must not keep the results out that
they wait for. How many may wait is the queue's bound, which says `overloaded`."""
LAST_WORDS_S = 2.0


class Orchestrator:
    """One time of leading.

    Args:
        options: how to run it.
        tenure: under which title, and for how long; None where nobody else would lead. Revisions of
            assignments start at its incarnation.
        library: the packages that are here; None for those below the state directory.
        known: what was seen to be served before, for a broker that has forgotten it.
        obeys: called with a term greater than ours, which a node obeys.
        counted: called with the count of beats that the broker once had.
        control: makes the control connection with this last will; MQTT when None.
        data: makes the dispatcher's connection, with manual acknowledgement and a session that lasts.
    """

    def __init__(
        self,
        options: OrchestratorOptions,
        *,
        tenure: Tenure | None = None,
        library: Library | None = None,
        known: Mapping[str, ModelState] | None = None,
        obeys: Callable[[int], None] = lambda _: None,
        counted: Callable[[int], None] = lambda _: None,
        control: Callable[[Publication], ControlBus] | None = None,
        data: Callable[[], DataBus] | None = None,
    ) -> None:
        self._options = options
        self._topics = Topics(options.root)
        self._tenure = tenure or Tenure.alone(int(time.time() * 1000))
        self.incarnation = self._tenure.incarnation
        self._standbys: tuple[str, ...] = ()
        self._counted = counted
        self._counters: Counter[str] = Counter()
        self._cluster = Cluster(self.incarnation, options.cluster, restoring=True)
        self._library = library or open_library(options)
        self._own_library = library is None
        self._keys = keys_of(options.broker, options.root)
        self._jobs = JobStore(
            options.state_dir / "jobs.sqlite3",
            after_s=options.store_after_s,
            keep_s=options.dispatch.repeat_window_s,
            trouble=self._store_trouble,
        )
        will = self._last_words("lost")
        self._bus = (control or self._mqtt_control)(will)
        self._transfers = Transfers(
            self._bus, self._topics, ORCHESTRATOR, store=self._library.store
        )
        self._outbox = Outbox(
            self._bus, self._topics, signer=self._keys.signer, leads=self._tenure.lease.held
        )
        self._announcer = Announcer(self._outbox)
        self._home = HomeAssistant(options, self._topics, self._outbox)
        self._states = ModelStates(self._cluster, self._library, self._outbox)
        self._notes = NoteBox()
        self._dispatcher = DispatchThread(
            (data or self._mqtt_data)(),
            self._topics,
            self._notes.put,
            options.dispatch,
            self._jobs,
            keys=self._keys.pipelines,
            leads=self._tenure.lease.held,
        )
        self._deployer = Deployer(
            self._library,
            self._outbox,
            self._dispatcher,
            term=self._tenure.title.term,
            prefetch=options.prefetch,
            keys=self._keys.pipelines,
        )
        self._deployments = DeploymentLog(options.state_dir / "deployments.json", options.root)
        self._settings = LiveSettings(
            options,
            path=options.state_dir / "settings.json",
            term=self._tenure.title.term,
            before=self._tenure.before,
            outbox=self._outbox,
            announcer=self._announcer,
            apply=self._apply,
        )
        self.reporting = Reporting(
            cluster=self._cluster,
            step=self._step,
            dispatcher=self._dispatcher,
            announcer=self._announcer,
            outbox=self._outbox,
            states=self._states,
            home=self._home,
            restored=lambda: self.restore.over,
            jobs=self._jobs,
            settings=self._settings,
            counters=self._counters,
            notes=self._notes,
            connected=lambda: self._bus.connected,
            standbys=lambda: self._standbys,
            say_again=self.say_again,
        )
        self.operators = Operators(
            library=self._library,
            transfers=self._transfers,
            cluster=self._cluster,
            announcer=self._announcer,
            step=self._step,
            dispatched=lambda: self.reporting.dispatched,
            deployments=self._deployments,
            lives=self._dispatcher.lives.find,
            settings=self._settings,
            health=self.reporting.health,
        )
        self._served = ServedFile(
            options.state_dir / "served.json",
            options.root,
            term=self._tenure.title.term,
            before=self._tenure.before,
        )
        self._actions = ClusterActions(
            outbox=self._outbox,
            announcer=self._announcer,
            deployer=self._deployer,
            states=self._states,
            served=self._served,
            deployments=self._deployments,
            counters=self._counters,
        )
        self.restore = Restore(
            self._library, self._outbox, self._announcer, self._served, known or {}
        )
        self._doubts = Doubts()
        vouching = Vouching(Admission(options.broker.credentials), self._counters, self._announcer)
        self._intake = Intake(
            self._topics,
            incarnation=self.incarnation,
            term=self._tenure.title.term,
            outbox=self._outbox,
            restore=self.restore,
            settings=self._settings,
            requests=RequestGate(
                vouching, self._announcer, self.operators.take, options.state_dir / "requests.json"
            ),
            vouching=vouching,
            transfers=self._transfers,
            counters=self._counters,
            doubts=self._doubts,
            step=self._step,
            tell=self._announcer.happened,
            doubted=self._look_again,
            obeys=obeys,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._failed = False
        self._resigned = False

    def _mqtt_control(self, will: Publication) -> ControlBus:
        name = self._options.root.replace("/", "-")
        return MqttControlBus(
            self._options.broker,
            client_id=f"amp4ec-orchestrator-{name}",
            will=will,
            maximum_packet_bytes=largest_packet((*SUBSCRIPTIONS, "artifact_piece")),
            fence=self._tenure.lease,
        )

    def _mqtt_data(self) -> DataBus:
        name = self._options.root.replace("/", "-")
        return MqttDataBus(
            self._options.broker,
            f"amp4ec-dispatcher-{name}",
            clean_start=False,
            session_expiry_s=SESSION_EXPIRY_S,
            manual_ack=True,
            receive_maximum=RECEIVE_MAXIMUM,
            # An answer, the next item for the first stage and acknowledgements leave together.
            gather_writes=True,
            fence=self._tenure.lease,
        )

    # --- from `candidate.py`, in the event loop

    def stop(self) -> None:
        """End cleanly, with last words."""
        self._stop.set()

    def resign(self) -> None:
        """Another leads: end at once, and say nothing more."""
        self._resigned = True
        self._stop.set()

    def stood_by(self, names: tuple[str, ...]) -> None:
        """These would take over."""
        self._standbys = names
        self.say_again()

    def say_again(self) -> None:
        """Our birth once more: it has changed, or an earlier leader's words replaced it."""
        self._outbox.publish("orchestrator_state", self._state("online"), retain=True)

    def beat_kept(self, count: int) -> None:
        """The broker has this count, so that our successor can tell what it has lost."""
        if self._jobs.is_open:
            self._jobs.beat(count)

    async def run(self, stop: asyncio.Event | None = None) -> int:
        """Run until `stop` is set; 0 after a clean end, 1 when it could not go on."""
        if stop is not None:
            self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._notes.open(self._loop)
        self._bus.on_connect(self._announce)
        try:
            async with self._bus, self._transfers:
                await self._run()
                if not self._resigned:
                    await self._leave()
        finally:
            # Whatever happened: it is a thread, and would go on without us.
            await asyncio.to_thread(self._dispatcher.stop, resigned=self._resigned)
            await asyncio.to_thread(self._jobs.close, resigned=self._resigned)
            if self._own_library:
                self._library.store.close()
        return 1 if self._failed else 0

    async def _run(self) -> None:
        # Our own state at the end: what is retained elsewhere has come when it comes back.
        names = (*SUBSCRIPTIONS, "orchestrator_state")
        for pattern in (*self._home.patterns, *map(self._topics.pattern, names)):
            await self._bus.subscribe(pattern)
        log.info("orchestrator runs", incarnation=self.incarnation, broker=self._options.broker)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._outbox.run(), name="send"),
                group.create_task(self._receive(), name="receive"),
                group.create_task(self._begin(), name="restore"),
                group.create_task(self._tick(), name="tick"),
                group.create_task(self._read_notes(), name="notes"),
            ]
            await self._stop.wait()
            if not self._resigned:
                self.reporting.leave()
                await self._outbox.flushed(LAST_WORDS_S)
            for task in tasks:
                task.cancel()
            await self.operators.close()

    async def _leave(self) -> None:
        """Our last words, once jobs have stopped; the broker keeps what comes now for our successor."""
        await asyncio.to_thread(self._dispatcher.stop)
        with contextlib.suppress(BrokerError):
            last = self._last_words("offline")
            await self._bus.publish(
                last.topic,
                last.payload,
                retain=True,
                properties=last.properties,
                timeout_s=LAST_WORDS_S,
            )

    def _last_words(self, state: Literal["offline", "lost"]) -> Publication:
        topic = self._topics.topic("orchestrator_state")
        payload = encode_json(self._state(state))
        signer = self._keys.signer
        return Publication(
            topic=topic,
            payload=payload,
            retain=True,
            properties=NO_PROPERTIES if signer is None else signer.sign(topic, payload),
        )

    def _state(self, state: Literal["online", "offline", "lost"]) -> OrchestratorState:
        return own_state(
            self._options,
            state,
            title=self._tenure.title,
            incarnation=self.incarnation,
            standbys=self._standbys,
            set_aside=self._jobs.num_set_aside,
        )

    async def _announce(self) -> None:
        """After each connection: our birth, which also undoes a last will that went out meanwhile."""
        self._outbox.connected()
        self._doubts.connected(time.monotonic())
        self.say_again()

    async def _begin(self) -> None:
        """Take over what an earlier orchestrator left, then let operators and jobs in."""
        await self.restore.run(self._bus, self._step)
        self._settings.restore()
        recovered = await asyncio.to_thread(self._jobs.open)
        self._jobs.leads(self._tenure.title.term)
        self._counted(recovered.beat)
        lost = self._tenure.beat < recovered.beat
        if lost:
            log.warning("the broker was killed: it has lost what came since it last saved")
        self._dispatcher.take_over(self._ours(recovered), broker_lost=lost)
        self.operators.open()
        self._dispatcher.start()

    def _ours(self, recovered: Recovered) -> Recovered:
        """What our store holds of jobs, unless others have led since: then those were theirs to answer."""
        if recovered.term >= self._tenure.before:
            return recovered
        return replace(recovered, jobs=())

    # --- what comes in

    async def _receive(self) -> None:
        async for message in self._bus.messages():
            if not self._home.take(message):
                self._intake.take(message)

    def _look_again(self) -> None:
        """A last will is held for a moment."""
        assert self._loop is not None
        self._loop.call_later(LIVE_S, self._bury)

    def _bury(self) -> None:
        """Nodes that are dead beyond doubt."""
        now = time.monotonic()
        for state in self._doubts.believed(now, connected=self._bus.connected):
            self._step(events.NodeDied(now, state))

    # --- what is decided

    def _step(self, event: events.Event) -> None:
        self._actions.perform(self._cluster.step(event))

    def _apply(self, options: OrchestratorOptions) -> None:
        """An operator has changed settings."""
        now = time.monotonic()
        self._options = options
        self._deployer.prefetch = options.prefetch
        self._step(SettingsChanged(now, options.cluster))
        self._dispatcher.tell(DispatchSettingsChanged(now, options.dispatch))
        self.say_again()

    # --- the dispatcher's side, and time

    def _store_trouble(self, text: str) -> None:
        """Called in the job store's thread."""
        assert self._loop is not None
        tell = events.Tell("job_store_failed", text)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._announcer.happened, tell)

    async def _read_notes(self) -> None:
        while True:
            note = await self._notes.take()
            try:
                match note:
                    case dispatch.PipelineDrained(model, pipeline, generation):
                        now = time.monotonic()
                        self._step(events.PipelineDrained(now, model, pipeline, generation))
                    case dispatch.Decided():
                        self._announcer.decided(note)
                    case RoundingMeasured():
                        self._rounding_measured(note)
                    case dispatch.Poisoned():
                        self._announcer.poisoned(note, self._jobs.path)
                    case Report():
                        self.reporting.take(note)
                    case _:
                        assert_never(note)
            except Exception:
                self._counters["internal_errors"] += 1
                log.exception("a note of the dispatcher failed")

    def _rounding_measured(self, note: RoundingMeasured) -> None:
        self._states.rounding_measured(note)
        if note.hurts:
            now, error = time.monotonic(), note.error.error_ratio
            self._step(events.RoundingHurt(now, note.model, note.generation, error))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._cluster.next_tick_s(time.monotonic()))
            self._tenure.lease.turned()
            if self._dispatcher.error is not None:
                log.error("stopping: the dispatcher died", error=repr(self._dispatcher.error))
                self._failed = True
                self._stop.set()
            try:
                self._bury()
                now = time.monotonic()
                # Not while we cannot hear: the core takes a gap for our own, and blames no node.
                if self._doubts.settled(now, connected=self._bus.connected):
                    self._step(events.Tick(now))
                self._forget_packages()
            except Exception:
                self._counters["internal_errors"] += 1
                log.exception("a tick failed")

    def _forget_packages(self) -> None:
        """Let go of the weights of what is not served any more, so that others have room on disk."""
        if not self.restore.over:
            return
        used = {*self._deployer.in_use, *self.operators.in_use}
        for served in self._cluster.models.values():
            entries = [served.entry, served.before]
            generations = (served.active, served.pending, served.held)
            entries += [each.entry for each in generations if each is not None]
            used |= {entry.manifest for entry in entries if entry is not None}
        self._library.keep_only(used)


def open_library(options: OrchestratorOptions) -> Library:
    """The packages below the state directory; its store is the caller's to close."""
    return Library(ArtifactStore(options.state_dir / "artifacts", options.store_bytes))
