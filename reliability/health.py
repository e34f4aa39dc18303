"""Whether ``/health`` tells the truth: what it said, beside what was done to the service and what it answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backend.demo.client import CallCutOff, CallFailed, Client

TRUE_WITHIN_S = 2.0
_POLL_S = 0.25
_AUDIT = "audit"
STORAGE_CODES = frozenset({"storage_failed", "storage_full", "audit_unavailable"})


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer of ``/health``; times in monotonic seconds.

    Attributes:
        at_s: When it was asked for.
        took_s: How long it took.
        status: Its HTTP status; 0 when there was no answer.
        word: Its ``status``.
        reason: Its ``reason``.
    """

    at_s: float
    took_s: float
    status: int
    word: str = ""
    reason: str = ""

    @property
    def is_well(self) -> bool:
        """Whether it says that all is well."""
        return self.status == 200 and self.word == "ok"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One inspection: when it was asked for, and the code of its refusal, empty for an answer."""

    at_s: float
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """What was done, and from when to when."""

    kind: str
    begin_s: float
    end_s: float


def watch(client_of: Callable[[float], Client], said: list[Said], stop: threading.Event) -> None:
    """Ask for the health over and over, each time by a new connection, as a monitoring system does."""
    while not stop.is_set():
        at_s = time.monotonic()
        try:
            with client_of(4 * TRUE_WITHIN_S) as client:
                answer = client.get("/health")
            body = answer.json
            told = Said(
                at_s=at_s,
                took_s=time.monotonic() - at_s,
                status=answer.status,
                word=str(body.get("status", "")),
                reason=str(body.get("reason") or body.get("error") or ""),
            )
        except (CallCutOff, CallFailed, ValueError):
            told = Said(at_s=at_s, took_s=time.monotonic() - at_s, status=0)
        said.append(told)
        stop.wait(_POLL_S)


def lies(said: Sequence[Said], answered: Sequence[Answered], disturbed: Sequence[Disturbed]) -> list[str]:
    """Return what one process said that was not so, or too late.

    Late is an answer after more than ``TRUE_WITHIN_S``; whoever is stopped is not asked. Untrue is

    - that all is well, while the models folder is gone, or all inspections of the moment are refused for the disk;
    - that something is wrong, when nothing has been for ``TRUE_WITHIN_S``; that the audit was moved may be said longer.
    """
    found = []
    for one in said:
        near = [
            each
            for each in disturbed
            if each.begin_s - 0.5 <= one.at_s + one.took_s and one.at_s <= each.end_s + TRUE_WITHIN_S
        ]
        kinds = {each.kind for each in near}
        if "stop" in kinds:
            continue
        if one.status == 0 or one.took_s > TRUE_WITHIN_S:
            found.append(f"no answer within {TRUE_WITHIN_S:g} s ({one.took_s:.1f} s) {_during(kinds)}")
            continue
        settled = [each for each in disturbed if each.begin_s + TRUE_WITHIN_S < one.at_s < each.end_s - 0.1]
        if one.is_well and any(each.kind == "unmount" for each in settled):
            found.append("that all is well, while the models folder is gone")
        elif one.is_well and settled and _are_all_refused(one, answered):
            found.append(f"that all is well, while every inspection is refused for the disk {_during(kinds)}")
        elif not near and not one.is_well:
            was_moved = any(each.kind == "audit" and each.begin_s < one.at_s for each in disturbed)
            if not (was_moved and one.status == 200 and _AUDIT in one.reason.lower()):
                found.append(f"{one.status} {one.word} {one.reason!r} while nothing is wrong")
    return found


def _are_all_refused(one: Said, answered: Sequence[Answered]) -> bool:
    around = [each.code for each in answered if abs(each.at_s - one.at_s) < 1.0]
    return len(around) >= 3 and all(code in STORAGE_CODES for code in around)


def _during(kinds: set[str]) -> str:
    return f"(during: {', '.join(sorted(kinds))})" if kinds else "(while nothing is wrong)"
