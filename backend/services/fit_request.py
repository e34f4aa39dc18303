"""What a fit is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from backend.roi_mask import Shape
from backend.scoring.leave_one_out import ScoreRule

Mode = Literal["add", "replace"]


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One uploaded image: its name, its bytes, and the physical part that it shows, if the client said."""

    name: str
    data: bytes = field(repr=False)
    part_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to learn.

    Attributes:
        uploads: Images; at least one, unless ``use_dataset``.
        mm_per_px: Millimetres per pixel of the images.
        shape: What counts, in pixels of the first upload; None keeps what the ROI has learned with.
        mode: ``add`` to what was learned, or ``replace`` it.
        use_dataset: Learn exactly the ``ok`` images of the data set, and the uploads.
        coreset_rate: In (0, 1].
        k: Neighbours that a distance is the mean of.
        seed: Draws the coreset's first centre.
        rule: How maps become scores, for a ROI that was never calibrated.
        area_mm2_thr: The smallest region that matters, mm², for a ROI that was never calibrated.
    """

    uploads: Sequence[Upload]
    mm_per_px: float
    shape: Shape | None
    mode: Mode
    use_dataset: bool
    coreset_rate: float
    k: int
    seed: int
    rule: ScoreRule
    area_mm2_thr: float
