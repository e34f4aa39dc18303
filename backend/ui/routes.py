"""The addresses of the page: its screens, its static files, signing in and out, and the choice of a language.

Each route answers everybody, and sends whoever is not signed in to the sign-in. What a screen shows it asks the public
interface for, which refuses what a key does not allow.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backend.errors import Forbidden, InspectionError, NotFound, status_of
from backend.serving.access import OPEN, role_of_key
from backend.serving.sessions import TOKEN_HEADER, Session, Sessions, cookie_name, is_token_of
from backend.ui.client import CallFailed
from backend.ui.page import LANGUAGE_COOKIE, Page
from backend.ui.screen import Handler, Screen
from backend.ui.screens import jobs, learn, overview, system, threshold, trend, trying, versions, why
from backend.ui.static_files import by_address
from backend.ui.texts import LANGUAGES

SCREENS: tuple[Screen, ...] = (
    overview.screen,
    learn.screen,
    threshold.screen,
    why.screen,
    trying.screen,
    trend.screen,
    versions.screen,
    system.screen,
)
"""In the order of the navigation."""
PARTS: tuple[Screen, ...] = (jobs.screen,)
"""Fragments that several screens show."""

_NEXT = re.compile(r"/ui(/[a-z-]+)*(\?[\w=&%.+:,~-]*)?", re.ASCII)
_METHODS = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"]  # those it lacks: 405, with a list
_GET_ONLY = {"Allow": "GET, HEAD, OPTIONS"}
_YEAR_S = 365 * 24 * 3600


class PageRoute(Route):
    """A route of the page: open, for it is the page that sends strangers to the sign-in."""

    openapi_extra = OPEN["openapi_extra"]

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        super().__init__(path, endpoint, methods=_METHODS, include_in_schema=False)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["route"] = self  # for the log
        await super().handle(scope, receive, send)


def routes() -> Iterator[PageRoute]:
    """Yield all routes of the page."""
    yield PageRoute("/ui/static/{address:path}", _answering_static)
    yield PageRoute("/ui/sign-in", _answering("session", {"GET": _ask_for_key, "POST": _sign_in}, is_open=True))
    yield PageRoute("/ui/sign-out", _answering("session", {"POST": _sign_out}, is_open=True))
    yield PageRoute("/ui/language", _answering("session", {"POST": _choose_language}, is_open=True))
    for screen in (*SCREENS, *PARTS):
        handlers: dict[str, dict[str, Handler]] = defaultdict(dict)
        for (method, part), handler in screen.handlers.items():
            handlers[screen.path(part)][method] = handler
        for path, by_method in handlers.items():
            yield PageRoute(path, _answering(screen.name, by_method))


def _answering(
    screen: str, handlers: dict[str, Handler], *, is_open: bool = False
) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers an address with the handler of the request's method."""

    async def answer(request: Request) -> Response:
        sessions: Sessions = request.app.state.sessions
        known: Session | None = request.state.session
        page = Page(request, screen, known or sessions.visit(), [each.name for each in SCREENS])
        allowed = sorted({*handlers, "OPTIONS", *({"HEAD"} if "GET" in handlers else ())})
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join(allowed)})
        if request.method not in handlers:
            raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
        if page.role is None and not is_open:
            response = page.go_to(page.address("/ui/sign-in", next=_asked_for(page)))
        else:
            try:
                if request.method != "GET":
                    await _check_token(page, known)
                response = await handlers[request.method](page)
            except CallFailed as error:
                response = await page.refused(error)
            except InspectionError as error:
                body = {"error": error.sentence, "code": error.code}
                response = await page.refused(CallFailed(status_of(type(error)), body))
        if known is None and not page.is_fragment:
            keep_session(request, response, page.session)
        return response

    return answer


def keep_session(request: Request, response: Response, session: Session) -> None:
    """Have the browser send a session's id with all that it asks of this service; no script or other site sees it."""
    response.set_cookie(
        cookie_name(dict(request.scope["headers"])),
        session.session_id,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


async def _check_token(page: Page, known: Session | None) -> None:
    sent = page.request.headers.get(TOKEN_HEADER)
    if sent is None:
        sent = (await page.form()).get("csrf_token")
    if not is_token_of(known, sent):
        raise Forbidden("The form is not of a page that this browser has open here now. Load the page again.")


async def _answering_static(request: Request) -> Response:
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=_GET_ONLY)
    if request.method not in ("GET", "HEAD"):
        raise HTTPException(405, headers=_GET_ONLY)
    file = by_address().get(request.path_params["address"])
    if file is None:
        raise NotFound("There is no such file of the page. Load the page again.")
    headers = {"Cache-Control": f"public, max-age={_YEAR_S}, immutable"}  # another content has another address
    return Response(file.content, media_type=file.media_type, headers=headers)


async def _ask_for_key(page: Page) -> Response:
    if page.role is not None:
        return page.go_to(_next_of(page, page.request.query_params.get("next", "")))
    return await page.render("sign_in.html", next=page.request.query_params.get("next", ""), is_refused=False)


async def _sign_in(page: Page) -> Response:
    form, state = await page.form(), page.request.app.state
    role = await role_of_key(form.get("key", "").strip().encode(), page.request.scope, may_wait=True)
    if state.api_keys and role is None:
        state.metrics.count_error("unauthorized")
        return await page.render("sign_in.html", status=401, next=form.get("next", ""), is_refused=True)
    response = page.go_to(_next_of(page, form.get("next", "")))
    if role is not None:
        state.sessions.sign_out(page.session.session_id)
        keep_session(page.request, response, state.sessions.sign_in(role))
    return response


async def _sign_out(page: Page) -> Response:
    state = page.request.app.state
    state.sessions.sign_out(page.session.session_id)
    response = page.go_to(page.address("/ui/sign-in"))
    keep_session(page.request, response, state.sessions.visit())
    return response


async def _choose_language(page: Page) -> Response:
    form = await page.form()
    response = page.go_to(_next_of(page, form.get("next", "")))
    if form.get("language") in LANGUAGES:
        response.set_cookie(LANGUAGE_COOKIE, form["language"], max_age=_YEAR_S, path="/", samesite="strict")
    return response


def _asked_for(page: Page) -> str | None:
    """Return the address that somebody wanted, to come back to; none but a whole page's can be loaded again."""
    return None if page.request.method != "GET" or page.is_fragment else page.own_address


def _next_of(page: Page, asked: str) -> str:
    """Return where to go on: an address of the page, whatever a form names."""
    return page.address("") + (asked if _NEXT.fullmatch(asked) else "/ui")


ROUTES: tuple[PageRoute, ...] = tuple(routes())
