"""What happens to every inference job: `Dispatcher.step(event) -> actions`.

Here: requests as they come, models and pipelines as they come and go. `item_flow` moves the items (their life
stands there as a table), `request_book` knows the messages that came before, `selection` and its rules say
which pipeline takes an item.

Only accepted requests are remembered: who was rejected may come back with the same job.
"""

from __future__ import annotations

import math
from typing import assert_never

from orchestrator.core.admission import admit
from orchestrator.core.dispatch_events import (
    BusReconnected,
    Event,
    Failure,
    ItemProgressed,
    ModelServed,
    ModelStopped,
    PipelineActivated,
    PipelineDrained,
    PipelineDraining,
    PipelineFigures,
    PipelineLost,
    Reject,
    RequestArrived,
    ResultArrived,
    Tick,
)
from orchestrator.core.dispatch_lineup import Model, Pipeline
from orchestrator.core.dispatch_settings import (
    DispatchSettings,
    SettingsChanged,
    default_window,
)
from orchestrator.core.dispatch_state import Item, Request
from orchestrator.core.dispatch_stats import Counters, Snapshot
from orchestrator.core.item_flow import Actions, ItemFlow, count
from orchestrator.core.job_failures import frame_superseded, model_stopped
from orchestrator.core.micro_batch import MicroBatch
from orchestrator.core.nsa import standing
from orchestrator.core.request_book import RequestBook
from orchestrator.core.result_cache import Cached, ResultCache


class Dispatcher:
    """The dispatch state machine. One owner; `step` is its only way in.

    `step` raises `ValueError` on what the shell or the service got wrong (a request id used twice, a
    pipeline's figures that make no sense), never on what came over the wire.
    """

    def __init__(self, settings: DispatchSettings | None = None) -> None:
        self._settings = settings or DispatchSettings()
        self._models: dict[str, Model] = {}
        self._counters = Counters()
        self._requests = RequestBook(self._settings, self._counters)
        self._items = ItemFlow(self._settings, self._models, self._counters, self._requests)
        self._sequence = 0

    def step(self, event: Event) -> Actions:
        """Take one event; return what is to be done, in this order."""
        actions: Actions = []
        match event:
            case RequestArrived():
                self._request_arrived(event, actions)
            case ResultArrived():
                self._items.result(event, actions)
            case ItemProgressed():
                self._items.progressed(event)
            case Tick():
                self._items.tick(event.now, actions)
            case ModelServed():
                self._model_served(event)
            case ModelStopped():
                self._model_stopped(event, actions)
            case PipelineActivated():
                self._pipeline_activated(event, actions)
            case PipelineDraining():
                self._pipeline_draining(event, actions)
            case PipelineLost():
                self._pipeline_lost(event, actions)
            case PipelineFigures():
                self._pipeline_figures(event)
            case SettingsChanged(_, settings):
                self._settings = settings
                self._items.adopt(settings)
            case BusReconnected():
                self._items.bus_reconnected(event.now)
            case _:
                assert_never(event)
        return actions

    def next_wakeup(self) -> float | None:
        """When the next `Tick` is due, in the seconds of `now`; None: not before another event."""
        return self._items.timers.next_at()

    def holds(self, request_id: str) -> bool:
        """Whether that request was accepted and has no answer yet."""
        return self._requests.get(request_id) is not None

    def snapshot(self) -> Snapshot:
        """The counters and the load at this moment."""
        return Snapshot(
            counters=self._counters.copy(),
            models=tuple(model.load() for model in self._models.values()),
            live_requests=len(self._requests),
            remembered_answers=len(self._requests.recent),
            remembered_bytes=self._requests.recent.size_bytes,
        )

    # --- requests -----------------------------------------------------------------------------

    def _request_arrived(self, event: RequestArrived, actions: Actions) -> None:
        if self._requests.came_before(event, actions):
            return
        known = self._known_answers(event)
        displaced = admit(event, self._models, self._settings, known)
        if isinstance(displaced, Failure):
            count(self._counters.rejected, displaced.code)
            actions.append(
                Reject(
                    request_id=event.request_id,
                    model=event.model,
                    reply_to=event.reply_to,
                    job=event.job,
                    context=event.context,
                    failure=displaced,
                    handle=event.handle,
                )
            )
            return
        model = self._models[event.model]
        if displaced:
            self._items.displace(model, displaced, event.now, actions)
        request = Request(event, model)
        self._requests.open(request, event)
        superseded = model.superseded_by(event) if event.latest else ()
        for index, given in enumerate(event.items):
            self._sequence += 1
            item = Item(
                request,
                index,
                self._sequence,
                given.payload,
                given.size_bytes,
                event.client,
                event.priority,
                event.now,
                model.key_of(given),
            )
            request.items.append(item)
            if index not in known:
                self._items.line_up(item)
        if request.latest:
            # After the push: a client whose line is never empty keeps its turn, however fast its frames come.
            model.frames[request.client] = request
            for old in superseded:
                self._items.end_alone(old, frame_superseded(model.name), event.now, actions)
        if request.deadline is not None:
            self._items.timers.schedule(request, request.deadline)
        model.live_requests += 1
        self._counters.accepted += 1
        for index, equal in known.items():
            self._items.end_known(request.items[index], equal, event.now, actions)
        self._items.settle(model, event.now, actions)

    def _known_answers(self, event: RequestArrived) -> dict[int, Cached]:
        """The cached outputs of a request's items, by their index."""
        model = self._models.get(event.model)
        if model is None or model.cache is None:
            return {}
        known = {}
        for index, given in enumerate(event.items):
            key = model.key_of(given)
            cached = None if key is None else model.cache.get(key, event.now)
            if cached is not None:
                known[index] = cached
        return known

    # --- models and pipelines -----------------------------------------------------------------

    def _model_served(self, event: ModelServed) -> None:
        model = self._models.get(event.model)
        if model is None:
            model = self._models[event.model] = Model(event.model, unserved_since=event.now)
        elif not model.served:
            model.served = True
            model.unserved_since = event.now
        if event.cache is None:
            model.cache = None
        elif model.cache is None or model.cache.settings != event.cache:
            model.cache = ResultCache(event.cache)

    def _model_stopped(self, event: ModelStopped, actions: Actions) -> None:
        model = self._models.get(event.model)
        if model is None or not model.served:
            return
        model.served = False
        for item in model.queue.items():
            self._items.end_alone(item, model_stopped(model.name), event.now, actions)
        for pipeline in model.pipelines.values():
            pipeline.draining = True
        model.num_draining = len(model.pipelines)
        model.lineup_changed()
        self._items.settle(model, event.now, actions)

    def _pipeline_activated(self, event: PipelineActivated, actions: Actions) -> None:
        window = default_window(event.num_stages) if event.window is None else event.window
        if not (
            window >= 1
            and 0.0 < event.throughput_per_s < math.inf
            and 0.0 <= event.latency_s < math.inf
        ):
            raise ValueError(
                "pipeline: expected window >= 1, finite throughput > 0 and latency >= 0, got "
                f"{window}, {event.throughput_per_s!r}, {event.latency_s!r}"
            )
        model = self._models.get(event.model)
        if model is None or not model.served:
            self._counters.stray_events += 1
            return
        key = (event.pipeline, event.generation)
        pipeline = model.pipelines.get(key)
        if pipeline is None:
            pipeline = Pipeline(
                model=model,
                pipeline=event.pipeline,
                generation=event.generation,
                window=window,
                throughput_per_s=event.throughput_per_s,
                latency_s=event.latency_s,
                chosen_turn=model.turns,
                identity=event.identity,
                micro_batch=MicroBatch(event.micro_batch),
            )
            model.pipelines[key] = pipeline
        else:
            model.num_draining -= pipeline.draining
            pipeline.update(event, window)
        model.lineup_changed()
        self._items.timers.cancel(model)
        self._items.settle(model, event.now, actions)

    def _pipeline_draining(self, event: PipelineDraining, actions: Actions) -> None:
        pipeline = self._pipeline(event)
        if pipeline is None:
            actions.append(PipelineDrained(event.model, event.pipeline, event.generation))
            return
        model = pipeline.model
        if not pipeline.draining:
            pipeline.draining = True
            model.num_draining += 1
            model.lineup_changed()
            if not model.has_active:
                model.unserved_since = event.now
        self._items.settle(model, event.now, actions)

    def _pipeline_lost(self, event: PipelineLost, actions: Actions) -> None:
        pipeline = self._pipeline(event)
        if pipeline is None:
            return
        model = pipeline.model
        self._items.lost(pipeline, event.crashed, event.now, actions)
        was_active = not pipeline.draining
        self._items.forget(pipeline)
        if was_active and not model.has_active:
            model.unserved_since = event.now
        self._items.settle(model, event.now, actions)

    def _pipeline_figures(self, event: PipelineFigures) -> None:
        pipeline = self._pipeline(event)
        if pipeline is not None and event.nodes:
            pipeline.stand(standing(event.nodes))

    def _pipeline(
        self, event: PipelineDraining | PipelineLost | PipelineFigures
    ) -> Pipeline | None:
        model = self._models.get(event.model)
        return None if model is None else model.pipelines.get((event.pipeline, event.generation))
