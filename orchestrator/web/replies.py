"""Errors as the routes tell them: the documented error body, under the HTTP status that fits its code."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from orchestrator.announcer import error_body
from shared.codec import encode_json
from shared.errors import BrokerUnreachableError, ErrorCode, PlanError
from shared.messages.job import ErrorBody

_STATUS: Final[dict[ErrorCode, HTTPStatus]] = {
    ErrorCode.BAD_INPUT: HTTPStatus.BAD_REQUEST,
    ErrorCode.UNKNOWN_MODEL: HTTPStatus.NOT_FOUND,
    ErrorCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.SUPERSEDED: HTTPStatus.CONFLICT,
    ErrorCode.DEADLINE: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.POISON: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def json_reply(document: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """A JSON document that nobody keeps."""
    return web.Response(
        body=encode_json(document),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def error_reply(error: Exception) -> web.Response:
    """`{"status": "error", "error": {...}}`, as an answer over MQTT has it."""
    body = error_body(error)
    if isinstance(error, BrokerUnreachableError | PlanError):
        body = ErrorBody(
            code=ErrorCode.UNAVAILABLE,
            message=error.message,
            expected=error.expected,
            got=error.got,
        )
    return json_reply({"status": "error", "error": body}, _STATUS[body.code])
