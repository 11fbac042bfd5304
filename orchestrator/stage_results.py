"""What a pipeline's last stage sent, item by item."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.answers import ItemResult
from orchestrator.core import dispatch_events as core
from shared.errors import ErrorCode, ProtocolError
from shared.messages.job import StageResult
from shared.tensor import Array, from_wire, to_wire


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """Of one attempt at one item."""

    item: int
    attempt: int
    outcome: core.Outcome


def read_result(result: StageResult) -> list[ItemOutcome]:
    """The outcome of each item of a message, in the message's order."""
    numbers = [(result.item, result.attempt)]
    numbers += [(other.item, other.attempt) for other in result.companions]
    outcomes = _outcomes(result, len(numbers))
    return [
        ItemOutcome(*number, outcome) for number, outcome in zip(numbers, outcomes, strict=True)
    ]


def _outcomes(result: StageResult, count: int) -> list[core.Outcome]:
    failure = result.failure
    if failure is not None:
        failed = core.Failure(
            code=failure.code,
            message=failure.message,
            retryable=failure.retryable,
            expected=failure.expected,
            got=failure.got,
        )
        return [failed] * count
    try:
        arrays = {name: from_wire(tensor) for name, tensor in result.tensors.items()}
        parts = _parts(arrays, count) if count > 1 else []
    except ProtocolError as error:
        impossible = core.Failure(
            code=ErrorCode.INTERNAL,
            message=f"the last stage sent an output that cannot be: {error.message}",
            retryable=True,
            expected=error.expected,
            got=error.got,
        )
        return [impossible] * count
    trace = tuple(result.trace)
    tensors = [{name: to_wire(a) for name, a in part.items()} for part in parts] or [result.tensors]
    return [
        core.Output(ItemResult(each, trace), sum(tensor.data.nbytes for tensor in each.values()))
        for each in tensors
    ]


def _parts(arrays: dict[str, Array], count: int) -> list[dict[str, Array]]:
    """Each item's part of the outputs, copied: what is kept of one must not keep those of all.

    Raises:
        ProtocolError: an output is not one part per item.
    """
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise ProtocolError(
                f"output {name!r} of several items",
                expected=f"{count} along axis 0",
                got=str(list(array.shape)),
            )
    return [
        {name: array[at : at + 1].copy() for name, array in arrays.items()} for at in range(count)
    ]
