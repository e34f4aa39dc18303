"""The decisions that were given: keeping them, and looking them up."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime

from backend import __version__
from backend.api.audit_schemas import AuditAnswer, AuditEntry
from backend.artifacts.model_key import MAX_ID_CHARS, ModelKey
from backend.scoring.inspection import Decision, Inspection
from backend.services import audit
from backend.services.audit import Audit, Source, entry_of
from backend.serving.access import INSPECT

router = APIRouter(tags=["audit"])

_TIME = "ISO 8601 with a time zone."


class Bookkeeper:
    """Keeps the decisions of one request."""

    def __init__(self, request: Request) -> None:
        self._audit = cast("Audit", request.app.state.audit)
        self._request_id: str = request.state.request_id
        self._caller: str | None = request.state.caller

    @property
    def keeps(self) -> bool:
        """Whether decisions are kept."""
        return self._audit.keeps

    def keep(self, key: ModelKey, inspection: Inspection, *, source: Source, image_name: str) -> None:
        """Write a decision down, where decisions are kept.

        Raises:
            AuditUnavailable: If it cannot be written; the decision must not be given then.
        """
        if not self.keeps:
            return
        self._audit.keep(
            entry_of(
                key,
                inspection,
                source=source,
                image_name=image_name,
                request_id=self._request_id,
                caller=self._caller,
                service_version=__version__,
            )
        )


async def _bookkeeper(request: Request) -> Bookkeeper:
    return Bookkeeper(request)


async def _audit(request: Request) -> Audit:
    return cast("Audit", request.app.state.audit)


BookkeeperOf = Annotated[Bookkeeper, Depends(_bookkeeper)]
AuditOf = Annotated[Audit, Depends(_audit)]
_Id = Annotated[str | None, Query(max_length=MAX_ID_CHARS, description="Only these.", examples=["inspection-1"])]
_Text = Annotated[str | None, Query(max_length=128, description="Only this one.", examples=["8f0c6d0e6d2e4f0a"])]


@router.get("/audit", summary="Decisions that were given", **INSPECT)
def find_decisions(
    request: Request,
    kept: AuditOf,
    role_id: _Id = None,
    roi_id: _Id = None,
    recipe_id: _Id = None,
    since: Annotated[
        AwareDatetime | None, Query(alias="from", description=f"Not before. {_TIME}", examples=["2026-03-01T00:00:00Z"])
    ] = None,
    until: Annotated[
        AwareDatetime | None, Query(alias="to", description=f"Before. {_TIME}", examples=["2026-04-01T00:00:00+02:00"])
    ] = None,
    decision: Annotated[Decision | None, Query(description="Only these decisions.", examples=["ng"])] = None,
    image_digest: _Text = None,
    request_id: _Text = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most decisions in one answer.", examples=[100])] = 100,
    before_id: Annotated[
        int | None, Query(ge=1, le=2**63 - 1, description="Only older ones than this; `next_before_id`.", examples=[42])
    ] = None,
) -> AuditAnswer:
    """Tell why a part was rejected in March: score, threshold, memory and calibration as they were then."""
    wanted = audit.Query(
        recipe_id=recipe_id and recipe_id.lower(),
        role_id=role_id,
        roi_id=roi_id,
        image_digest=image_digest,
        request_id=request_id,
        decision=decision,
        since=since,
        until=until,
        before_id=before_id,
    )
    found = kept.find(wanted, limit)
    return AuditAnswer(
        entries=[_answer(number, entry) for number, entry in found],
        next_before_id=found[-1][0] if len(found) == limit else None,
        request_id=request.state.request_id,
    )


def _answer(number: int, entry: audit.Entry) -> AuditEntry:
    return AuditEntry(id=number, **{**asdict(entry), "time_utc": datetime.fromisoformat(entry.time_utc)})
