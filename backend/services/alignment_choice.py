"""Whether a ROI is taken for aligned: by somebody's word, by what was decided before, or by its images."""

from __future__ import annotations

from dataclasses import dataclass

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.older_formats import fit_options
from backend.memory_bank.alignment import ALIGNED_FROM, Aligned
from backend.memory_bank.bank import MemoryBank
from backend.services.fit_request import FitRequest


@dataclass(frozen=True, kw_only=True)
class AlignmentChoice:
    """Whether a ROI is taken for aligned.

    Attributes:
        asked: What the memory is fitted with.
        aligned: The decision; None while nobody has made one and there are too few parts to make one.
    """

    asked: Aligned
    aligned: bool | None


def choose_alignment(
    request: FitRequest, known: MemoryBank | LearnedFacts | None, alignment: float | None
) -> AlignmentChoice:
    """Return whether a ROI is taken for aligned.

    What its images have decided once is kept when more are learned: scores before and after would have another scale.

    Args:
        request: What the fit is asked; where it does not say it, what the ROI was fitted with goes on.
        known: The memory that the fit adds to; None for a ROI that begins anew.
        alignment: Of the images to learn; None while there are too few parts.
    """
    before = None if known is None else _asked_before(known, request)
    asked = request.aligned or before or request.options.aligned
    if asked != "auto":
        return AlignmentChoice(asked=asked, aligned=asked == "yes")
    # A decision that was somebody's word is none of its images: whoever then asks for auto wants them looked at.
    decided = known.aligned if known is not None and before == "auto" else None
    if decided is None and alignment is not None:
        decided = alignment >= ALIGNED_FROM
    return AlignmentChoice(asked=asked, aligned=decided)


def _asked_before(known: MemoryBank | LearnedFacts, request: FitRequest) -> Aligned:
    """Return what a memory was fitted with; one of an older format does not say it."""
    options = known.options if isinstance(known, MemoryBank) else fit_options(known.settings, request.options)
    return options.aligned
