"""The failures that the dispatcher itself gives: code, message, what was expected and what came."""

from __future__ import annotations

from orchestrator.core.dispatch_events import Failure
from shared.errors import ErrorCode


def deadline_passed(*, allowed_s: float, waited_s: float, in_flight: bool) -> Failure:
    return Failure(
        code=ErrorCode.DEADLINE,
        message="no result before the job's deadline",
        expected=f"within {allowed_s:.3f} s",
        got=f"{'in flight' if in_flight else 'waiting'} after {waited_s:.3f} s",
    )


def pushed_out(model: str, *, retry_after_s: float) -> Failure:
    return Failure(
        code=ErrorCode.OVERLOADED,
        message=f"the queue of model {model!r} is full, and this input made room",
        expected="less waiting than other clients have, or a higher priority",
        got="the newest input of the lowest priority of who had most waiting",
        retry_after_s=retry_after_s,
    )


def frame_superseded(model: str) -> Failure:
    return Failure(
        code=ErrorCode.SUPERSEDED,
        message=f"a newer input of this client for model {model!r} came before this one had its turn",
        expected="no newer one; or the policy lossless, where every input counts",
    )


def overdue(pipeline: str, *, allowed_s: float) -> Failure:
    return Failure(
        code=ErrorCode.UNAVAILABLE,
        message=f"no result from pipeline {pipeline!r}",
        expected=f"one within {allowed_s:.3f} s",
        got="none",
    )


def pipelines_lost(num_lost: int) -> Failure:
    return Failure(
        code=ErrorCode.UNAVAILABLE,
        message="each pipeline that had the input was lost",
        expected="one that stays",
        got=f"{num_lost} lost",
    )


def poisonous(nodes: tuple[str, ...]) -> Failure:
    return Failure(
        code=ErrorCode.POISON,
        message="the nodes that computed this input died of it; it is set aside and not tried again",
        expected="an input that a stage survives",
        got=f"the ends of {' and '.join(nodes)}, the last while it computed nothing else",
    )


def unserved(model: str, *, limit_s: float) -> Failure:
    return Failure(
        code=ErrorCode.UNAVAILABLE,
        message=f"no nodes that can run model {model!r} came in time",
        expected=f"an active pipeline within {limit_s:g} s",
        got="none",
    )


def model_stopped(model: str) -> Failure:
    return Failure(
        code=ErrorCode.UNAVAILABLE,
        message=f"model {model!r} was stopped before a result came",
    )
