"""The kind of all routes: nothing that a request brings is left out of account in silence.

What a route knows is what its parameters and models declare, so that a field is known as soon as it is declared.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from fastapi import Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from backend.api.field_names import MAX_NAMED, fields_of, is_list, model_of, shown, unknown_field, unknown_keys
from backend.errors import InvalidInput
from backend.serving.multipart import FormRequest

Body = Literal["none", "form", "json"]

URL_ENCODED = "application/x-www-form-urlencoded"
"""Forms without files may come so."""

WARNINGS_HEADER = "X-Warnings"
"""Where warnings stand beside an answer that is no JSON object: a JSON array of sentences, in ASCII."""


@dataclass(frozen=True)
class Known:
    """The names that one place of a request may hold.

    Attributes:
        single: Names that hold one value.
        several: Names that may come more than once.
        models: The model of a body, None where the names are all there is.
    """

    single: set[str] = field(default_factory=set)
    several: set[str] = field(default_factory=set)
    model: type[BaseModel] | None = None

    @property
    def names(self) -> set[str]:
        """All names."""
        return self.single | self.several


class Route(APIRoute):
    """A route that names what it does not know, in ``warnings``, and refuses what contradicts itself.

    A field that holds one value and comes twice is 422, and so is a name that comes twice in a JSON object. A field
    that is not known is named in the answer: it is not refused, for clients may send more than this service reads.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()
        query, body = Known(), Known()
        for each in _all_of(self.dependant):
            _add(query, each.query_params)
            _add(body, each.body_params)
        kind: Body = "none" if self.body_field is None else "json"
        if isinstance(getattr(self.body_field, "field_info", None), params.Form):
            kind = "form"
        elif kind == "json":
            body = Known(model=model_of(self.body_field.field_info.annotation) if self.body_field else None)

        file_fields = frozenset(
            each.alias
            for part in _all_of(self.dependant)
            for each in part.body_params
            if isinstance(each.field_info, params.File)
        )

        async def answer(request: Request) -> Response:
            request = FormRequest(request.scope, request.receive)
            ignored: list[str] = []
            request.state.ignored, request.state.file_fields = ignored, file_fields
            _check_query(request, query, body, kind, ignored)
            if kind == "form":
                await _check_form(request, query, body, ignored)
            elif kind == "json":
                await _check_json(request, body, ignored)
            elif request.headers.get("Transfer-Encoding") or request.headers.get("Content-Length", "0") != "0":
                ignored.append("The body has no effect: this call reads nothing but its address.")
            return with_warnings(await handle(request), ignored)

        return answer


def has_no_effect(request: Request, sentence: str) -> None:
    """Have the answer to a request name a field of it that has no effect with the others."""
    request.state.ignored.append(sentence)


def with_warnings(response: Response, sentences: Iterable[str]) -> Response:
    """Return an answer with more ``warnings``; where it is no JSON object, in the header ``X-Warnings``."""
    sentences = list(dict.fromkeys(sentences))
    if not sentences or not 200 <= response.status_code < 300:
        return response
    if response.headers.get("Content-Type", "").startswith("application/json"):
        content = json.loads(bytes(response.body))
        if isinstance(content, dict):
            content["warnings"] = [*content.get("warnings", []), *sentences]
            response.body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            response.headers["Content-Length"] = str(len(response.body))
            return response
    response.headers[WARNINGS_HEADER] = json.dumps(sentences)
    return response


def media_type(request: Request) -> str:
    """Return what a body was sent as, in lower case; empty where nobody said."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def refuse_repeated(names: Iterable[str]) -> None:
    """Raise InvalidInput if there are any names that come twice."""
    fields = list(dict.fromkeys(shown(name).strip("'") for name in names))
    if fields:
        raise InvalidInput(
            f"The field {', '.join(fields[:5])} comes more than once and holds one value. Send it once.",
            details={"field": fields[0], "fields": fields[:MAX_NAMED]},
        )


def _check_query(request: Request, query: Known, body: Known, kind: Body, ignored: list[str]) -> None:
    sent = Counter(name for name, _ in request.query_params.multi_items())
    refuse_repeated(name for name, n in sent.items() if n > 1 and name in query.single)
    in_body = body.names or {name for name, _ in fields_of(body.model)}
    where = "a field of the form" if kind == "form" else "a field of the JSON body"
    ignored += _first_ones(
        f"{shown(name)} has no effect in the address: this call reads it as {where}."
        if name in in_body
        else unknown_field(name, query.names | in_body, of="parameter")
        for name in sent
        if name not in query.names
    )


async def _check_form(request: FormRequest, query: Known, body: Known, ignored: list[str]) -> None:
    sent_as = media_type(request)
    if sent_as not in ("multipart/form-data", URL_ENCODED):
        await request.drop_body()
        raise InvalidInput(
            f"This call takes a form with files, and {shown(sent_as) if sent_as else 'no Content-Type'} was sent. "
            "Send it as multipart/form-data.",
            details={"field": "Content-Type"},
        )
    try:
        form = await request.form()
    except ClientDisconnect:
        return  # the route meets it again, and has an answer for it
    sent = Counter(name for name, _ in form.multi_items())
    repeated = [name for name, n in sent.items() if n > 1 and name in body.single]
    if repeated:
        await form.close()
        refuse_repeated(repeated)
    ignored += _first_ones(
        f"{shown(name)} has no effect in the form: this call reads it in the address."
        if name in query.names
        else unknown_field(name, body.names)
        for name in sent
        if name not in body.names
    )


async def _check_json(request: FormRequest, body: Known, ignored: list[str]) -> None:
    sent_as = media_type(request)
    if not re.fullmatch(r"application/(json|.+\+json)", sent_as):
        await request.drop_body()
        raise InvalidInput(
            f"This call takes JSON, and {shown(sent_as) if sent_as else 'no Content-Type'} was sent. Send a JSON "
            "object with Content-Type: application/json.",
            details={"field": "Content-Type"},
        )
    try:
        value = await request.json()
    except (ValueError, RecursionError, ClientDisconnect):
        return  # as above
    refuse_repeated(request.repeated_names)
    ignored += _first_ones(unknown_keys(value, body.model))


def _first_ones(sentences: Iterator[str]) -> list[str]:
    """Return as many sentences as an answer has room for. The others are not even made: each one costs a search."""
    first = list(islice(sentences, MAX_NAMED))
    return [*first, "Further fields have no effect either."] if next(sentences, None) else first


def _all_of(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _all_of(each)


def _add(known: Known, fields: Iterable[Any]) -> None:
    for each in fields:
        info = each.field_info
        if model := model_of(info.annotation):
            for name, of in fields_of(model):
                (known.several if is_list(of) else known.single).add(name)
        else:
            (known.several if is_list(info.annotation) else known.single).add(each.alias)
