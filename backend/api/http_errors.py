"""From exceptions to the one error body."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.routing import URL_ENCODED, media_type
from backend.api.schemas import ErrorBody
from backend.artifacts.model_key import DEFAULT_RECIPE
from backend.errors import InspectionError, ShuttingDown, TooManyGuesses, Unauthorized, Unavailable, status_of
from backend.machine_errors import of_machine_or_cause
from backend.utils import reason_of

_MAX_PROBLEMS = 20
_MAX_NAME_CHARS = 200

_log = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "too_large", 503: "queue_full"}
_MEANINGS = {
    HTTPStatus.BAD_REQUEST: "The request cannot be understood, or the ROI was never fitted.",
    HTTPStatus.UNAUTHORIZED: "No API key, or one that is not known; only where BDI_API_KEYS is set.",
    HTTPStatus.FORBIDDEN: "The API key does not have the role, or the host name or the page may not call.",
    HTTPStatus.NOT_FOUND: "No such stored thing.",
    HTTPStatus.REQUEST_TIMEOUT: "The upload paused for too long.",
    HTTPStatus.CONFLICT: "The call contradicts what the ROI was fitted with.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Body, image or pixel count over the limit.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field is missing or out of range.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many API keys of this address were wrong.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The service failed; its log has the reason under the request id.",
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "The queue is full, another call holds the ROI, it took too long, the weights are not available, the decision "
        "cannot be kept, disk, memory, files or threads have run out, or the service is stopping."
    ),
}

ERROR_RESPONSES: dict[int, dict[str, Any]] = {
    int(status): {"model": ErrorBody, "description": meaning} for status, meaning in _MEANINGS.items()
}


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of an application come out as the one error body."""
    for error_class in (InspectionError, RequestValidationError, HTTPException):
        app.add_exception_handler(error_class, _answer_to)


class ErrorAnswers:
    """Answers what middleware refuses; an error that nobody foresaw with a 500 that says nothing internal.

    Starlette's own handler for these raises on after its answer, and the server then cuts the connection, under the
    next request of a client that keeps it open.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception as error:
            if scope["type"] != "http" or begun:
                raise  # nothing can be mended in an answer that has begun
            answer = await _answer_to(Request(scope), error)
            await answer(scope, receive, send)


async def _answer_to(request: Request, error: Exception) -> JSONResponse:
    refusal = of_machine_or_cause(error) if not isinstance(error, InspectionError) else None
    if refusal is not None:
        refusal.__cause__ = error  # for the log
        error = refusal
    status: int
    details: Mapping[str, Any] = {}
    headers: Mapping[str, str] | None = None
    if isinstance(error, InspectionError):
        status, message, code, details = status_of(type(error)), error.sentence, error.code, error.details
        headers = _headers_of(error, request)
        if isinstance(error, Unavailable):  # a full queue is no fault of the program; what caused it may be
            _log.warning("%s: %s", code, message, exc_info=error.__cause__)
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("%s: %s", code, message, exc_info=error)
    elif isinstance(error, RequestValidationError):
        status, message, code, details = _of_validation(error, request)
    elif isinstance(error, HTTPException):
        status, message = _of_framework(error, request)
        code, headers = _CODES.get(status, "bad_request"), error.headers
    else:
        _log.error("request %s failed", getattr(request.state, "request_id", "?"), exc_info=error)
        status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error"
        message = "The service failed on this request. Its log has the reason under the request id."
    message += _file_hint(details, request)
    request.app.state.metrics.count_error(code)
    request.state.error_code = code  # for the log
    body: dict[str, Any] = {
        "error": message,
        "code": code,
        "request_id": getattr(request.state, "request_id", ""),
        "recipe_id": getattr(request.state, "recipe_id", DEFAULT_RECIPE),
    }
    if details:
        body["details"] = details
    return JSONResponse(body, status, headers)


def _headers_of(error: InspectionError, request: Request) -> dict[str, str]:
    headers = {}
    if isinstance(error, Unavailable | TooManyGuesses) and error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, ShuttingDown):
        headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = request.state.challenge
    return headers


def _of_validation(error: RequestValidationError, request: Request) -> tuple[int, str, str, dict[str, Any]]:
    """Return status, message, code and details."""
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return HTTPStatus.BAD_REQUEST, "The body is not valid JSON.", "bad_request", {}
    problems = problems[:_MAX_PROBLEMS]
    names = [_field(problem["loc"])[:_MAX_NAME_CHARS] for problem in problems]
    reasons = [f"{name}: {_reason(problem)}" for name, problem in zip(names, problems, strict=True)]
    message = " ".join(["; ".join(dict.fromkeys(reasons[:5])) + ".", *request.state.ignored[:3]])
    return HTTPStatus.UNPROCESSABLE_ENTITY, message, "invalid_input", {"field": names[0], "fields": names}


def _file_hint(details: Mapping[str, Any], request: Request) -> str:
    """Return what to do where a file is missing in a form that cannot hold any."""
    files: frozenset[str] = getattr(request.state, "file_fields", frozenset())
    fields = {str(name).partition(".")[0] for name in [*details.get("fields", []), details.get("field")]}
    if not files & fields or media_type(request) != URL_ENCODED:
        return ""
    return f" Files need a form of the type multipart/form-data; {URL_ENCODED} was sent."


def _of_framework(error: HTTPException, request: Request) -> tuple[int, str]:
    """Return status and message."""
    status, message = error.status_code, str(error.detail)
    if status == HTTPStatus.BAD_REQUEST:  # Only the readers of bodies raise it.
        if "aximum" in message:  # Too many parts, or too large a one, for the reader of forms.
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        reason = message.rstrip(".")
        message = f"The body cannot be read: {reason[:1].lower()}{reason[1:]}. Send what its Content-Type announces."
    elif status == HTTPStatus.NOT_FOUND:
        message = "There is no such address. See /docs for those that there are."
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.method} is not possible here. See /docs."
    return status, message


def _field(location: Sequence[int | str]) -> str:
    names = [str(part) for part in location if part not in ("body", "query", "header", "path")]
    return ".".join(names) or "body"


def _reason(problem: Mapping[str, Any]) -> str:
    """Return pydantic's message with what was sent, where that is short: it names the allowed range."""
    message = reason_of(str(problem["msg"]))
    if message.startswith("expected UploadFile"):
        return "must be a file: give its part a filename"
    sent = problem.get("input")
    shown = isinstance(sent, str | int | float) and problem["type"] != "missing" and len(str(sent)) <= 40
    return f"{message}, got {sent!r}" if shown else message
