"""What the history keeps of one decision, and of one change of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backend.artifacts.model_key import ModelKey
from backend.history.sketch import SERIES
from backend.scoring.inspection import Inspection

MarkKind = Literal["fit", "calibration", "activation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A change of a model: a fit, a calibration, or an older version that was made the one in force again.

    Attributes:
        at: When, s since 1970.
        memory_checksum: The memory in force from then on.
        facts: What else is known of it, JSON types.
    """

    key: ModelKey
    at: float
    kind: MarkKind
    memory_checksum: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision, without its images.

    Attributes:
        at: When, s since 1970.
        row: A value for each column of ``DECISION_COLUMNS`` between ``at`` and the last.
        values: What is counted of it, each with the number of its series; empty for a learned image.
    """

    key: ModelKey
    at: float
    row: tuple[Any, ...]
    values: tuple[tuple[int, float], ...]
    decision: str | None
    ratio: float | None
    is_foreign: bool
    is_learned: bool
    memory: str

    @classmethod
    def of(
        cls,
        key: ModelKey,
        inspection: Inspection,
        *,
        at: float,
        filename: str,
        serial: str | None = None,
        audit_entry_id: int | None = None,
    ) -> Decision:
        """Return what is kept of an inspection.

        A score that was raised because the image is none of the ROI says nothing of parts: it is not counted among the
        scores, and nothing of a learned image is counted at all.
        """
        params, check, threshold = inspection.params, inspection.image_check, inspection.threshold
        score, is_foreign = inspection.score, inspection.is_foreign
        learned = params["scoring"] != "new"
        values: list[tuple[int, float]] = []
        name = distance = None
        if check is not None:
            name = max(check.statistics, key=lambda each: abs(check.statistics[each].distance))
            distance = check.statistics[name].distance
            values = [(SERIES[each], found.value) for each, found in check.statistics.items() if each in SERIES]
        ratio = score / threshold if threshold else None
        if not is_foreign:
            values.append((SERIES["score"], score))
            if ratio is not None:
                values.append((SERIES["ratio"], ratio))
        worst = max(inspection.regions, key=lambda region: region.peak_score, default=None)
        box = (None,) * 6 if worst is None else (*worst.bbox_xywh_px, worst.area_mm2, worst.peak_score)
        decision, checksum = inspection.decision, params["memory_checksum"]
        row = (
            decision, score, threshold, params["score_mode"], inspection.reject_reason,
            None if check is None else check.verdict, name, distance,
            len(inspection.regions), *box, _text(serial), _text(filename), checksum, learned, audit_entry_id,
        )  # fmt: skip
        return cls(
            key=key,
            at=at,
            row=row,
            values=() if learned else tuple(values),
            decision=decision,
            ratio=None if is_foreign else ratio,
            is_foreign=is_foreign,
            is_learned=learned,
            memory=f"{checksum[:16]} {params['score_mode']}",
        )


def _text(text: str | None) -> str | None:
    # A file name may hold half of a surrogate pair, which SQLite does not take.
    return text and text.encode("utf-8", "replace").decode()
