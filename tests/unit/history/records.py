"""Decisions as the history keeps them, without an inspection."""

from __future__ import annotations

from backend.artifacts.model_key import ModelKey
from backend.history.record import Decision
from backend.history.sketch import SERIES


def recorded(
    key: ModelKey, at: float, ratio: float, *, threshold: float = 0.5, memory: str = "a" * 64, level: float = 100.0
) -> Decision:
    """Return a decision at a time, s since 1970."""
    decision, score = "ng" if ratio > 1 else "ok", ratio * threshold
    values = ((SERIES["score"], score), (SERIES["ratio"], ratio), (SERIES["level"], level))
    return Decision(
        key=key,
        at=at,
        row=(
            decision, score, threshold, "area", "defect" if ratio > 1 else None, "ok", "level", 0.0,
            0, None, None, None, None, None, None, None, "part.png", memory, False, None,
        ),
        values=values,
        decision=decision,
        ratio=ratio,
        is_foreign=False,
        is_learned=False,
        memory=f"{memory[:16]} area",
    )  # fmt: skip
