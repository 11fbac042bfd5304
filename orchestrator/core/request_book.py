"""The live requests, and how a message that came before is recognised.

A message is one that came before when it is
- a redelivery: the broker's delivery is that of a message in work; its handle replaces the old one;
- a repeat in work: same (response topic, job); it is acknowledged with the one answer;
- a repeat of an answered job: it gets the first answer again (DESIGN.md section 2), unless that told the
  client to come back later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core.dispatch_events import Acknowledge, Action, Answer, AnswerAgain, Output
from orchestrator.core.recent_answers import RecentAnswers

if TYPE_CHECKING:
    from collections.abc import Hashable

    from orchestrator.core.dispatch_events import RequestArrived
    from orchestrator.core.dispatch_settings import DispatchSettings
    from orchestrator.core.dispatch_state import Request
    from orchestrator.core.dispatch_stats import Counters


class RequestBook:
    """Live requests by id, job and delivery, and the recent answers."""

    __slots__ = ("_by_delivery", "_by_id", "_by_key", "_counters", "_max_held_repeats", "recent")

    def __init__(self, settings: DispatchSettings, counters: Counters) -> None:
        self._counters = counters
        self._max_held_repeats = settings.max_held_repeats
        self._by_id: dict[str, Request] = {}
        self._by_key: dict[Hashable, Request] = {}
        self._by_delivery: dict[Hashable, Request] = {}
        self.recent: RecentAnswers[Answer] = RecentAnswers(
            keep_s=settings.repeat_window_s,
            max_entries=settings.max_remembered_answers,
            max_bytes=settings.max_remembered_bytes,
        )

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, request_id: str) -> Request | None:
        """The live request of that id."""
        return self._by_id.get(request_id)

    def came_before(self, event: RequestArrived, actions: list[Action]) -> bool:
        """Deal with a message that came before, if it is one; otherwise nothing happens."""
        if event.delivery is not None and event.delivery in self._by_delivery:
            self._by_delivery[event.delivery].handles[event.delivery] = event.handle
            self._counters.redelivered += 1
            return True
        if event.job is None:
            return False
        key = (event.reply_to, event.job)
        request = self._by_key.get(key)
        if request is not None:
            self._counters.repeats += 1
            if len(request.handles) <= self._max_held_repeats:
                self._hold(request, event)
            else:
                # safe: the first message is not acknowledged and brings the job back if we die
                actions.append(Acknowledge(event.handle))
            return True
        first = self.recent.get(key, event.now)
        if first is not None:
            self._counters.answered_again += 1
            actions.append(AnswerAgain(first=first, context=event.context, handle=event.handle))
            return True
        return False

    def open(self, request: Request, event: RequestArrived) -> None:
        """Enter a request. Raises `ValueError` when its id is in use."""
        if request.request_id in self._by_id:
            raise ValueError(f"request_id: expected a new one, got {request.request_id!r} again")
        self._by_id[request.request_id] = request
        if request.key is not None:
            self._by_key[request.key] = request
        self._hold(request, event)

    def close(self, request: Request, answer: Answer, now: float) -> None:
        """Forget all of an answered request but what a repeat needs."""
        del self._by_id[request.request_id]
        for delivery in request.handles:
            self._by_delivery.pop(delivery, None)
        if request.key is not None:
            del self._by_key[request.key]
            if not answer.is_final:
                return
            size_bytes = sum(
                item.outcome.size_bytes for item in answer.items if isinstance(item.outcome, Output)
            )
            stripped = replace(answer, context=None, handles=())
            self.recent.remember(request.key, stripped, size_bytes, now)

    def _hold(self, request: Request, event: RequestArrived) -> None:
        """Keep the message's handle until the answer."""
        if event.delivery is None:
            request.handles[object()] = event.handle
        else:
            request.handles[event.delivery] = event.handle
            self._by_delivery[event.delivery] = request
