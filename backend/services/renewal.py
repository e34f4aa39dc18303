"""What a fit or a refit makes of a ROI's calibration, and what it says of the images that it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.calib import Calibration
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import rule_in_force
from backend.scoring.leave_one_out import LeaveOneOutScores, leave_one_out_scores
from backend.services.calibration import renewed, warnings_of_renewal
from backend.services.fit_request import fit_warnings
from backend.services.image_checking import strange_images
from backend.services.learned_images import LearnedImages, examine, renewal_warnings
from backend.services.stored_scores import StoredScores

Outcome = Literal["none", "kept", "renewed", "stale"]


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The calibrations of a new memory.

    Attributes:
        previous: The newest calibration before.
        own: The one that is the memory's already, because it has not changed.
        new: What ``previous`` was renewed to.
        scores: Leave-one-out scores of the memory's images, in the mode in force.
        learned: What is doubtful about the images.
        warnings: What whoever fitted should know.
    """

    previous: Calibration | None
    own: Calibration | None
    new: Calibration | None
    scores: LeaveOneOutScores
    learned: LearnedImages
    warnings: tuple[str, ...]

    @property
    def in_force(self) -> Calibration | None:
        """The calibration of the memory; None until somebody calibrates."""
        return self.new or self.own

    @property
    def outcome(self) -> Outcome:
        """``none`` was there, it is ``kept``, ``renewed``, or ``stale``."""
        return "none" if self.previous is None else "renewed" if self.new else "kept" if self.own else "stale"


def renewal(
    bank: MemoryBank,
    calibrations: Sequence[Calibration],
    before: MemoryBank | LearnedFacts | None,
    scorer: StoredScores,
    images: ImageStore,
    *,
    can_renew: bool = True,
) -> Renewal:
    """Return what becomes of a ROI's calibrations with a new memory; nothing is stored.

    Args:
        bank: The new memory.
        calibrations: Those before, newest first.
        before: The memory before, or what is certain of it.
        scorer: Scores stored images.
        images: Says the names.
        can_renew: Whether the newest of them can be measured again.
    """
    previous = next(iter(calibrations), None)
    own = next((each for each in calibrations if each.memory_checksum == bank.checksum), None)
    rule = rule_in_force(bank, previous)
    scores = leave_one_out_scores(bank, rule)
    learned = examine(bank, scores, rule, previous, images)
    new = None
    if previous is not None and previous is not own and can_renew:
        same = before is not None and before.extractor_id == bank.extractor_id
        new = renewed(previous, bank, scores, scorer, same_extractor=same)
    changes = tuple(renewal_warnings(previous, new, before, bank, scores, learned, images))
    return Renewal(
        previous=previous,
        own=own,
        new=None if new is None else replace(new, warnings=(*new.warnings, *changes)),
        scores=scores,
        learned=learned,
        warnings=(
            *changes,
            *learned.warnings,
            *strange_images(bank, images),
            *fit_warnings(bank, scores, rule.area_mm2_thr),
            *warnings_of_renewal(previous, new),
        ),
    )
