"""A memory and its calibration, as they are stored at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, ArtefactOutdated
from backend.memory_bank.bank import MemoryBank

Stamps = tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What the folder of a model holds at one moment.

    Attributes:
        bank: The memory, or None when the ROI was never fitted.
        calibrations: All stored calibrations, newest first.
        calibration_fault: What is wrong with what is stored of a calibration, if anything.
        stamps: Change whenever one of the files is replaced.
    """

    bank: MemoryBank | None
    calibrations: tuple[Calibration, ...] = ()
    calibration_fault: type[ArtefactCorrupt] | None = None
    stamps: Stamps

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that belongs to this memory, or None.

        Raises:
            ArtefactCorrupt: If what is stored of it cannot be used: that is not the same as never calibrated.
        """
        if self.calibration_fault is not None:
            raise unusable(self.calibration_fault, "calib.json")
        checksum = None if self.bank is None else self.bank.checksum
        return next((each for each in self.calibrations if each.memory_checksum == checksum), None)

    @property
    def stale(self) -> bool:
        """True when there is a calibration, but only of another memory; raises as ``calibration``."""
        return self.calibration is None and self.bank is not None and bool(self.calibrations)


def unusable(fault: type[ArtefactCorrupt], file_name: str) -> ArtefactCorrupt:
    """Return the error that says how to mend a ``memory.npz`` or ``calib.json`` that is damaged or outdated."""
    return fault(_MESSAGES[fault, file_name], details={"artefact": file_name})


_MESSAGES: dict[tuple[type[ArtefactCorrupt], str], str] = {
    (ArtefactCorrupt, "memory.npz"): (
        "The stored memory of this ROI is damaged. Fit it again with /fit_ok: that also learns again what it had "
        "learned, or with mode=replace begins anew."
    ),
    (ArtefactCorrupt, "calib.json"): (
        "The stored calibration of this ROI is damaged. Calibrate it again with /calibrate_ng."
    ),
    (ArtefactOutdated, "memory.npz"): (
        "This ROI's memory was written by an older version of this service. Make it anew from its stored images with "
        "POST /refit or `roi-inspector refit`; /fit_ok learns the stored good images again, too."
    ),
    (ArtefactOutdated, "calib.json"): (
        "This ROI's calibration was written by an older version of this service. POST /refit or `roi-inspector refit` "
        "renews it with its own settings; or calibrate the ROI again with /calibrate_ng."
    ),
}
