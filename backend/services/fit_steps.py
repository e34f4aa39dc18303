"""The progress of a fit: what its stages tell of themselves, as one count that only grows."""

from __future__ import annotations

from backend.memory_bank.coreset import Progress

_PICKING_SHARE = 4
"""Picking the coreset counts as one image for every so many: about the time it takes with DINOv2 on a processor."""


class FitSteps:
    """Counts one step for each image, and some for the coreset.

    Args:
        progress: Told (steps done, steps in all); None tells nobody.
        n_images: Images of the fit, uploaded or stored.
    """

    def __init__(self, progress: Progress | None, n_images: int) -> None:
        self._progress = progress
        self._n_images = n_images
        self._begun = 0
        self._picking = -(-n_images // _PICKING_SHARE)

    def extracting(self, n_images: int) -> Progress:
        """Return what the next stage of so many images tells its progress."""
        before = self._begun
        self._begun += n_images
        return lambda done, _: self._tell(before + done)

    def picks(self, done: int, n_picks: int) -> None:
        """Hear of the coreset's picks."""
        self._tell(self._n_images + self._picking * done // n_picks)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._n_images + self._picking)
