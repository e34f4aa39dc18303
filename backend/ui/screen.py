"""A screen: handlers by method and address, each given a ``Page``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.responses import Response

from backend.ui.page import Page

Handler = Callable[[Page], Awaitable[Response]]


@dataclass
class Screen:
    """The handlers of one screen at ``/ui/{name}`` and ``/ui/{name}/{part}``; the overview's own address is ``/ui``."""

    name: str
    handlers: dict[tuple[str, str], Handler] = field(default_factory=dict)

    def get(self, part: str = "") -> Callable[[Handler], Handler]:
        """Register what answers a GET."""
        return self._register("GET", part)

    def post(self, part: str) -> Callable[[Handler], Handler]:
        """Register what answers a POST; its token has been checked before it is called."""
        return self._register("POST", part)

    def path(self, part: str) -> str:
        """Return the path of a part."""
        if part:
            return f"/ui/{self.name}/{part}"
        return "/ui" if self.name == "overview" else f"/ui/{self.name}"

    def _register(self, method: str, part: str) -> Callable[[Handler], Handler]:
        def keep(handler: Handler) -> Handler:
            self.handlers[method, part] = handler
            return handler

        return keep
