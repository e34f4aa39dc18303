"""The end of a service, as a client meets it that waits to be asked for its body."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from backend.errors import ShuttingDown
from backend.serving.draining import Draining, Gate


@pytest.mark.parametrize(("expect", "reads"), [(b"100-continue", 0), (b"100-Continue ", 0), (b"", 1)])
def test_a_body_that_would_be_refused_is_not_asked_for(expect: bytes, reads: int) -> None:
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    async def unused(*_: Any) -> None:
        raise AssertionError

    scope: Any = {
        "type": "http",
        "method": "POST",
        "headers": [(b"expect", expect)],
        "app": SimpleNamespace(state=SimpleNamespace(gate=Gate(stopping=True))),
    }
    with pytest.raises(ShuttingDown):
        asyncio.run(Draining(unused)(scope, receive, unused))
    assert asked == reads
