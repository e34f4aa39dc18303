"""One request to the page: who asks, in which language, about which ROI, and how it is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from backend.errors import TooLarge
from backend.serving.sessions import Session
from backend.ui.client import CallFailed, PublicCalls
from backend.ui.static_files import static_files
from backend.ui.texts import LANGUAGES, NAMES, Words, language_of

LANGUAGE_COOKIE = "roi_language"
DEFAULT_RECIPE = "default"
_MAX_FORM_BYTES = 256_000


@dataclass(frozen=True)
class Selection:
    """What a page is about; the ids are empty where none is chosen."""

    recipe: str = DEFAULT_RECIPE
    role_id: str = ""
    roi_id: str = ""
    model_key: str = ""

    @property
    def roi(self) -> dict[str, str]:
        """The ROI, as the public calls take it in a query or a body."""
        named = {"role_id": self.role_id, "roi_id": self.roi_id}
        return named | {"model_key": self.model_key} if self.model_key not in ("", self.roi_id) else named

    @property
    def fields(self) -> dict[str, str]:
        """Recipe and ROI, as the public calls take them in a form."""
        return {"recipe_id": self.recipe, **self.roi}

    @property
    def label(self) -> str:
        """The ROI, as a reader knows it."""
        return " / ".join(self.roi.values())

    def of(self, model: Mapping[str, str]) -> Selection:
        """Return the selection of a model of the same recipe."""
        return Selection(self.recipe, model["role_id"], model["roi_id"], model.get("model_key", ""))

    @property
    def query(self) -> str:
        """The same for an address of the page."""
        chosen = {"recipe": self.recipe if self.recipe != DEFAULT_RECIPE else "", **self.roi}
        return urlencode({name: value for name, value in chosen.items() if value})


@cache
def environment() -> Environment:
    """Return what reads the templates; whatever they show is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


class Page:
    """What a handler of a screen is given.

    Attributes:
        request: The request; its query holds what the screen itself adds.
        screen: Name of the screen.
        session: The browser's session.
        screens: Names of all screens, in the order of the navigation.
        root: Path of the service at the proxy before it; empty without one.
        has_keys: Whether the service wants keys.
        role: Role of whoever is signed in; ``admin`` where no keys are set, None for somebody who is not signed in.
        selection: Recipe and ROI of the address.
        calls: The public HTTP interface.
        words: Texts, numbers and times in the caller's language.
        recipes: All recipes and their models, once ``load_recipes`` has asked for them.
    """

    def __init__(self, request: Request, screen: str, session: Session, screens: Sequence[str] = ()) -> None:
        self.request = request
        self.screen = screen
        self.session = session
        self.screens = screens
        self.root: str = request.scope.get("root_path", "")  # where a proxy shows the service
        self.has_keys = bool(request.app.state.api_keys)
        self.role = request.state.caller if self.has_keys else "admin"
        query = request.query_params
        self.selection = Selection(
            query.get("recipe") or DEFAULT_RECIPE,
            *(query.get(name, "") for name in ("role_id", "roi_id", "model_key")),
        )
        self.calls = PublicCalls(request, session, self.selection.recipe)
        self.words = Words(
            language_of(request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", ""))
        )
        self.recipes: list[dict[str, Any]] | None = None
        self._form: dict[str, str] | None = None

    @property
    def is_fragment(self) -> bool:
        """Whether a part of a page is asked for, by htmx."""
        return self.request.headers.get("hx-request") == "true"

    @property
    def models(self) -> list[dict[str, str]]:
        """The models of the recipe that is chosen; empty until ``load_recipes`` has asked for them."""
        found = (each["models"] for each in self.recipes or [] if each["recipe_id"] == self.selection.recipe)
        return next(found, [])

    @property
    def choices(self) -> list[Selection]:
        """The ROIs to choose from, with the one that is chosen, though it may not be there yet."""
        known = [self.selection.of(model) for model in self.models]
        chosen = self.selection
        return known if not chosen.roi_id or any(each.roi == chosen.roi for each in known) else [*known, chosen]

    @property
    def own_address(self) -> str:
        """Where this page is, without the address of the service: what a form sends to come back to."""
        query = f"?{self.request.url.query}" if self.request.url.query else ""
        path: str = self.request.scope["path"]
        return path.removeprefix(self.root) + query

    def address(self, path: str, **query: Any) -> str:
        """Return an address of this service as the browser must ask for it."""
        given = urlencode({name: value for name, value in query.items() if value is not None})
        return self.root + path + (f"?{given}" if given else "")

    def here(self, screen: str, part: str = "", **query: Any) -> str:
        """Return the address of a screen, or a part of one, for the recipe and the ROI that are chosen."""
        path = "/ui" if (screen, part) == ("overview", "") else f"/ui/{screen}" + (f"/{part}" if part else "")
        more = urlencode({name: value for name, value in query.items() if value is not None})
        asked = "&".join(text for text in (self.selection.query, more) if text)
        return self.address(path) + (f"?{asked}" if asked else "")

    def call_address(self, path: str, **query: Any) -> str:
        """Return the address of a public call about the ROI, for an image or a download that the browser asks for."""
        return self.address(path, **self.selection.fields, **query)

    async def form(self) -> Mapping[str, str]:
        """Return the fields of a form; files are sent to the public calls, never through the page.

        Raises:
            TooLarge: If it is larger than any form of the page.
        """
        if self._form is None:
            body = b""
            async for chunk in self.request.stream():
                body += chunk
                if len(body) > _MAX_FORM_BYTES:
                    raise TooLarge("The form is larger than any of this page. Load the page again.")
            self._form = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        return self._form

    async def load_recipes(self) -> None:
        """Ask for the recipes and their models, once."""
        if self.recipes is None:
            self.recipes = (await self.calls.get("/recipes"))["recipes"]

    async def choose_roi(self) -> bool:
        """Choose the recipe's first ROI where the address names none; return False if there is none to choose."""
        if not (self.selection.role_id and self.selection.roi_id):
            await self.load_recipes()
            if not self.models:
                return False
            self.selection = self.selection.of(self.models[0])
        return True

    async def render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a whole page; its template extends ``base.html``."""
        if self.recipes is None and self.role is not None:
            try:
                await self.load_recipes()
            except CallFailed:  # the page says what it can, and what failed
                self.recipes = []
        return self.fragment(template, status=status, **values)

    def fragment(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a template alone, for htmx to swap in."""
        text = (
            environment()
            .get_template(template)
            .render(
                page=self,
                t=self.words,
                static=lambda name: self.address(f"/ui/static/{static_files()[name].address}"),
                languages=[(name, NAMES[name]) for name in LANGUAGES],
                may_change=self.role == "admin",
                **values,
            )
        )
        return HTMLResponse(text, status)

    def notice(self, text: str, *, kind: str = "done", event: str | None = None) -> HTMLResponse:
        """Return a message at the head of the page; ``event`` lets elements that wait for it load anew."""
        answer = self.fragment("notice.html", text=text, kind=kind)
        answer.headers.update({"HX-Retarget": "#notices", "HX-Reswap": "innerHTML"})
        if event:
            answer.headers["HX-Trigger"] = event
        return answer

    async def refused(self, error: CallFailed) -> Response:
        """Return what the service said against a call: beside what is there, or as a page of its own."""
        if self.is_fragment:
            return self.notice(error.sentence, kind="error")
        return await self.render("refused.html", status=error.status, error=error)

    def go_to(self, address: str) -> Response:
        """Send the browser to another address of the page."""
        if self.is_fragment:
            return Response(status_code=204, headers={"HX-Redirect": address})
        return RedirectResponse(address, 303)
