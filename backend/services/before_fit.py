"""What a ROI has before a fit, and what the fit changes that its caller may not expect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.artifacts.formats import LearnedFacts
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, ArtefactOutdated
from backend.memory_bank.bank import MemoryBank


@dataclass(frozen=True, kw_only=True)
class BeforeFit:
    """What a ROI has before a fit.

    Attributes:
        known: The memory that the fit adds to; of a damaged one only the facts that are certain, if any. None where
            the fit begins anew.
        memory: The memory in force, whether the fit adds to it or not.
        memory_fault: Why the memory that the fit adds to cannot be read, if it cannot.
        calibrations: Newest first.
        calibration_fault: Why what is stored of a calibration cannot be read, if it cannot.
    """

    known: MemoryBank | LearnedFacts | None
    memory: MemoryBank | None = None
    memory_fault: type[ArtefactCorrupt] | None = None
    calibrations: Sequence[Calibration]
    calibration_fault: type[ArtefactCorrupt] | None = None

    @property
    def extractor_id(self) -> str | None:
        """Of the memory in force; None where nobody knows it."""
        memory = self.memory or self.known
        return None if memory is None else memory.extractor_id

    @property
    def known_digests(self) -> set[str]:
        """Digests of the images that the fit adds to."""
        return set() if self.known is None else set(self.known.image_digests)


def warnings_of_fit(before: BeforeFit, bank: MemoryBank, *, is_stale: bool) -> Iterable[str]:
    """Yield what a fit has changed that its caller may not expect."""
    if before.calibration_fault is not None:
        yield (
            f"The stored calibration is {_words(before.calibration_fault)}; until you calibrate again, inspections are "
            "refused."
        )
    if n_gone := len(before.known_digests - set(bank.image_digests)):
        yield f"{n_gone} learned images were deleted from the store and are no longer part of the memory."
    if is_stale:
        yield (
            "The calibration belongs to the memory before this fit and is set aside; until you calibrate again, "
            "inspections have no decision."
        )
    if before.memory_fault is not None and before.known is None:
        yield (
            f"The memory before this fit was {_words(before.memory_fault)}, and so was its list of the images that it "
            f"had learned: {len(bank.image_digests)} images, all good ones that are stored, were learned in their "
            "place."
        )
    elif before.memory_fault is not None:
        n_again = len(before.known_digests & set(bank.image_digests))
        yield (
            f"The memory before this fit was {_words(before.memory_fault)}; {n_again} images that it had learned were "
            "learned again."
        )


def _words(fault: type[ArtefactCorrupt]) -> str:
    return "of an older format" if issubclass(fault, ArtefactOutdated) else "damaged"
