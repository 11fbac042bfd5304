"""The dispatcher's own consistency, checked from inside after every step of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.board import Board
from orchestrator.core.dispatch_lineup import Model, Pipeline
from orchestrator.core.dispatch_state import Item, ItemState, Request
from shared.job_options import PRIORITIES

if TYPE_CHECKING:
    from orchestrator.core.dispatch import Dispatcher
    from orchestrator.core.dispatch_settings import DispatchSettings


def check(dispatcher: Dispatcher) -> None:
    """Items are where their state says and nowhere else; counts and indices agree."""
    settings = dispatcher._settings
    book = dispatcher._requests
    queued: set[Item] = set()
    in_flight: set[Item] = set()
    for name, model in dispatcher._models.items():
        assert model.name == name
        waiting = model.queue.items()
        again = model.queue._again
        assert model.queue._present == [p for p in PRIORITIES if model.queue._levels[p].turns]
        for priority, level in enumerate(model.queue._levels):
            for client, line in level._lines.items():
                assert line, "a client with nothing waiting leaves nothing behind"
                assert level.size_bytes(client) == sum(item.size_bytes for item in line)
                assert all((i.client, i.priority) == (client, priority) for i in line)
                assert list(line) == sorted(line, key=lambda i: i.sequence), "first come first"
            assert sorted(level.turns) == sorted(level._lines) == sorted(level._bytes)
            assert set(level._ahead) <= set(level._lines)
            assert all(count > 0 for count in level._ahead.values())
        assert len(waiting) == len(model.queue)
        assert model.queue.size_bytes == sum(item.size_bytes for item in waiting)
        assert len(waiting) - len(again) <= settings.max_queued_items
        assert all(not item.flights for item in waiting[len(again) :])
        assert all(item.flights or item.key for item in again), "run before, or held for one"
        assert queued.isdisjoint(waiting)
        queued.update(waiting)
        frames = {(i.request.client, i.request.request_id) for i in waiting if i.request.latest}
        assert len({client for client, _ in frames}) == len(frames), "only the newest frame waits"
        for client, request in model.frames.items():
            assert book.get(request.request_id) is request, "no frame outlives its answer"
            assert (request.client, request.latest) == (client, True)
        assert model.num_draining == sum(p.draining for p in model.pipelines.values())
        for pipeline in model.pipelines.values():
            groups = [item.flights[-1].group for item in pipeline.in_flight]
            assert pipeline.outstanding == len({id(group) for group in groups}) <= pipeline.window
            assert all(groups.count(group) == group.under_way <= group.size for group in groups)
            assert pipeline.in_flight or not pipeline.draining, "an empty one should be drained"
            assert in_flight.isdisjoint(pipeline.in_flight)
            for item in pipeline.given_up:
                assert item.state is not ItemState.ENDED
                assert any(flight.pipeline is pipeline for flight in item.flights)
            in_flight.update(pipeline.in_flight)
            if pipeline.in_flight:
                due = dispatcher._items.timers._live[pipeline][0]
                assert due <= min(item.retry_at for item in pipeline.in_flight)
        _check_equals(model, settings)
        active = [pipeline for pipeline in model.pipelines.values() if not pipeline.draining]
        if waiting:
            assert all(pipeline.outstanding == pipeline.window for pipeline in active), (
                "a free credit and something to do"
            )
        _check_board(model, active)
        if waiting and not model.has_active:
            assert model in dispatcher._items.timers._live
            assert model.served
        live = [request for request in book._by_id.values() if request.model is model]
        assert model.live_requests == len(live)
        assert model.served or model.pipelines or live
    items = [item for request in book._by_id.values() for item in request.items]
    assert queued == {item for item in items if item.state is ItemState.QUEUED}
    assert in_flight == {item for item in items if item.state is ItemState.IN_FLIGHT}
    held = {
        i for m in dispatcher._models.values() for g in m.equals._groups.values() for i in g.held
    }
    assert held == {item for item in items if item.state is ItemState.HELD}
    for item in in_flight:
        assert item in item.flights[-1].pipeline.in_flight
    for request in book._by_id.values():
        assert request.open_items == sum(i.state is not ItemState.ENDED for i in request.items) > 0
        assert (request.deadline is not None) == (request in dispatcher._items.timers._live)
        for item in request.items:
            assert (item.payload is None) == (item.state is ItemState.ENDED)
            assert (item.ended is not None) == (item.state is ItemState.ENDED)
    for key in dispatcher._items.timers._live:
        if isinstance(key, Request):
            assert book.get(key.request_id) is key
        elif isinstance(key, Pipeline):
            assert key.model.pipelines[key.pipeline, key.generation] is key
    assert {id(r) for r in book._by_key.values()} == {id(r) for r in book._by_id.values() if r.key}
    assert all(request.request_id in book._by_id for request in book._by_delivery.values())
    assert book.recent.size_bytes <= settings.max_remembered_bytes
    assert len(book.recent) <= settings.max_remembered_answers
    counters = dispatcher._counters
    ended = counters.answered + sum(counters.failed.values())
    assert counters.accepted == ended + len(book)


def _check_equals(model: Model, settings: DispatchSettings) -> None:
    """Every open item with a key is in its group, at the place that its state says."""
    held: list[Item] = []
    for key, group in model.equals._groups.items():
        assert group.waiting or group.flying
        assert group.flying or not group.held, "held for one in flight, and there is none"
        held += group.held
        for items, state in (
            (group.waiting, ItemState.QUEUED),
            (group.flying, ItemState.IN_FLIGHT),
            (group.held, ItemState.HELD),
        ):
            assert all((item.key, item.state) == (key, state) for item in items)
    assert len(held) == model.equals.num_held <= settings.max_queued_items
    assert sum(item.size_bytes for item in held) == model.equals.held_bytes
    assert model.equals.held_bytes <= settings.max_queued_bytes
    cache = model.cache
    if cache is not None:
        assert len(cache) <= cache.settings.max_entries
        assert cache.size_bytes <= cache.settings.max_bytes
        assert cache.size_bytes == sum(entry.size_bytes for entry in cache._entries.values())


def _check_board(model: Model, active: list[Pipeline]) -> None:
    """What was posted piece by piece is what a new board would show."""
    lineup = model.lineup()
    assert sorted(active, key=lambda each: (each.pipeline, each.generation)) == lineup
    if model.board is None:
        return
    new = Board(lineup)
    assert model.board.keys == new.keys
    for name in Board.__slots__:
        if name != "keys":
            np.testing.assert_array_equal(getattr(model.board, name), getattr(new, name), name)


def check_nothing_left(dispatcher: Dispatcher) -> None:
    """No job has left anything behind but what the recent answers hold."""
    book = dispatcher._requests
    assert not book._by_id
    assert not book._by_key
    assert not book._by_delivery
    for model in dispatcher._models.values():
        assert not model.queue.items()
        assert not model.frames
        assert not len(model.equals)
        assert all(not pipeline.in_flight for pipeline in model.pipelines.values())
    timers = dispatcher._items.timers
    assert all(isinstance(key, Pipeline | Model) for key in timers._live)
    assert len(timers._heap) <= 2 * len(timers._live) + 64
