"""Whether a request may come in, and what gives way to it: the bounds of a job and of a model's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.dispatch_events import Failure
from shared.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from orchestrator.core.dispatch_events import RequestArrived
    from orchestrator.core.dispatch_lineup import Model
    from orchestrator.core.dispatch_settings import DispatchSettings
    from orchestrator.core.dispatch_state import Item

_SHORTEST_RETRY_S = 0.1


def admit(
    event: RequestArrived,
    models: Mapping[str, Model],
    settings: DispatchSettings,
    known: Collection[int] = (),
) -> list[Item] | Failure:
    """The waiting items that give way to the request, mostly none; or why it is not accepted.

    A batch comes in whole or not at all. One that could never fit is `too_large`, not `overloaded`:
    coming back later would not help. Of its items those at `known` have their answers, and do not wait.
    """
    model = models.get(event.model)
    if model is None or not model.served:
        return _unknown_model(event, models)
    if not event.items:
        return Failure(
            code=ErrorCode.BAD_INPUT,
            message="the request holds no input",
            expected="at least one",
            got="none",
        )
    num_items = len(event.items)
    size_bytes = sum(item.size_bytes for item in event.items)
    largest_bytes = max(item.size_bytes for item in event.items)
    if largest_bytes > settings.max_item_bytes:
        return _too_large("an input", settings.max_item_bytes, largest_bytes, "bytes")
    if num_items > settings.max_queued_items:
        return _too_large("the batch", settings.max_queued_items, num_items, "inputs")
    if size_bytes > settings.max_queued_bytes:
        return _too_large("the batch", settings.max_queued_bytes, size_bytes, "bytes")
    if event.deadline is not None and event.deadline <= event.now:
        return Failure(
            code=ErrorCode.DEADLINE,
            message="the deadline had passed when the request arrived",
            expected="a deadline to come",
            got=f"{event.now - event.deadline:.3f} s ago",
        )
    if known:
        waiting = [item for index, item in enumerate(event.items) if index not in known]
        num_items = len(waiting)
        size_bytes = sum(item.size_bytes for item in waiting)
        if not num_items:
            return []
    queue = model.queue
    if (
        len(queue) + num_items <= settings.max_queued_items
        and queue.size_bytes + size_bytes <= settings.max_queued_bytes
    ):
        return []
    displaced = queue.make_room(
        event.client,
        event.priority,
        num_items,
        size_bytes,
        max_items=settings.max_queued_items,
        max_bytes=settings.max_queued_bytes,
        instead_of=model.superseded_by(event),
    )
    if displaced is None:
        return Failure(
            code=ErrorCode.OVERLOADED,
            message=f"the queue of model {model.name!r} is full",
            expected=f"at most {settings.max_queued_items} inputs and "
            f"{settings.max_queued_bytes} bytes waiting",
            got=f"{len(queue)} inputs and {queue.size_bytes} bytes waiting, "
            f"{num_items} and {size_bytes} more",
            retry_after_s=retry_after_s(model, settings),
        )
    return displaced


def retry_after_s(model: Model, settings: DispatchSettings) -> float:
    """Seconds until what waits now has been served: by then there is room for all who were refused."""
    rate_per_s = model.rate_per_s()
    if rate_per_s <= 0.0:
        return settings.unserved_limit_s
    drained_s = len(model.queue) / rate_per_s
    return min(max(drained_s, _SHORTEST_RETRY_S), settings.unserved_limit_s)


def _unknown_model(event: RequestArrived, models: Mapping[str, Model]) -> Failure:
    served = sorted(model.name for model in models.values() if model.served)
    return Failure(
        code=ErrorCode.UNKNOWN_MODEL,
        message=f"no model named {event.model!r} is served",
        expected=" or ".join(repr(name) for name in served) or "a model that is served; none is",
        got=repr(event.model),
    )


def _too_large(what: str, limit: int, got: int, unit: str) -> Failure:
    return Failure(
        code=ErrorCode.TOO_LARGE,
        message=f"{what} is larger than a job may be",
        expected=f"at most {limit} {unit}",
        got=f"{got} {unit}",
    )
