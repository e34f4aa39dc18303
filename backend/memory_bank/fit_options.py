"""Everything beside the images that shapes a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from backend.calib import ScoreMode, ScoreRule
from backend.memory_bank.alignment import Aligned


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Everything beside the images that shapes a memory; made once for a fit, and kept in the memory.

    Attributes:
        coreset_rate: Share of the patch embeddings that is kept, in (0, 1].
        seed: Draws the coreset's first centre.
        k: Neighbours that a distance is the mean of, ≥ 1.
        rule: How maps become scores until the ROI is calibrated; its blur holds for calibrations as well.
        first_mode: The score mode of the first calibration, where that one does not say.
        aligned: What was asked for: ``auto`` to find out from the images whether the ROI is aligned, or the answer.
    """

    coreset_rate: float
    seed: int
    k: int
    rule: ScoreRule
    first_mode: ScoreMode
    aligned: Aligned

    def to_fields(self) -> dict[str, Any]:
        """Return the options as a JSON object; ``from_fields`` reads it back."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> FitOptions:
        """Return the options of a JSON object that ``to_fields`` made.

        Raises:
            KeyError, TypeError: If a field is missing or unknown.
        """
        return cls(**{**fields, "rule": ScoreRule(**fields["rule"])})
