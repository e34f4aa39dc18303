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

from backend.errors import InspectionError, Unavailable, status_of
from backend.middleware import REQUEST_ID_HEADER
from backend.model_key import DEFAULT_RECIPE
from backend.schemas import ErrorBody

_log = logging.getLogger(__name__)

_MEANINGS = {
    HTTPStatus.BAD_REQUEST: "The request cannot be understood, or the ROI was never fitted.",
    HTTPStatus.NOT_FOUND: "No such stored thing.",
    HTTPStatus.CONFLICT: "The call contradicts what the ROI was fitted with.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Body, image or pixel count over the limit.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field is missing or out of range.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The service failed; its log has the reason under the request id.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The queue is full, the weights are not available, or the service is stopping.",
}

ERROR_RESPONSES: dict[int, dict[str, Any]] = {
    int(status): {"model": ErrorBody, "description": meaning} for status, meaning in _MEANINGS.items()
}


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of an application come out as the one error body."""
    app.add_exception_handler(InspectionError, _on_inspection_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)


def _answer(
    request: Request,
    status: int,
    sentence: str,
    code: str,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    request.app.state.metrics.count_error(code)
    request_id = getattr(request.state, "request_id", "")
    body: dict[str, Any] = {
        "error": sentence,
        "code": code,
        "request_id": request_id,
        "recipe_id": getattr(request.state, "recipe_id", DEFAULT_RECIPE),
    }
    if details:
        body["details"] = dict(details)
    # An unexpected error is answered outside of the middleware that sets this header.
    return JSONResponse(body, status, {REQUEST_ID_HEADER: request_id, **(headers or {})})


async def _on_inspection_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InspectionError)
    status = status_of(type(error))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("%s: %s", error.code, error.sentence, exc_info=error)
    headers = {}
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return _answer(request, status, error.sentence, error.code, error.details, headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return _answer(request, HTTPStatus.BAD_REQUEST, "The body is not valid JSON.", "bad_request")
    sentences = [f"{_field(problem['loc'])}: {_said(problem)}" for problem in problems]
    details = {"field": _field(problems[0]["loc"]), "fields": [_field(problem["loc"]) for problem in problems]}
    sentence = "; ".join(dict.fromkeys(sentences[:5])) + "."
    return _answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, sentence, "invalid_input", details)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "bad_request")
    sentence = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        sentence = "There is no such address. See /docs for those that there are."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        sentence = f"{request.method} is not possible here. See /docs."
    return _answer(request, error.status_code, sentence, code, headers=error.headers)


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request %s failed", getattr(request.state, "request_id", "?"), exc_info=error)
    return _answer(
        request,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The service failed on this request. Its log has the reason under the request id.",
        "internal_error",
    )


def _field(location: Sequence[int | str]) -> str:
    names = [str(part) for part in location if part not in ("body", "query", "header", "path")]
    return ".".join(names) or "body"


def _said(problem: Mapping[str, Any]) -> str:
    """Return pydantic's message with what was sent, where that is short: it names the allowed range."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    sent = problem.get("input")
    shown = isinstance(sent, str | int | float) and problem["type"] != "missing" and len(str(sent)) <= 40
    return f"{message}, got {sent!r}" if shown else message
