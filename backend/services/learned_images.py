"""What is doubtful about the images that a memory has learned: bad ones among them, and one part many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.stored_image import StoredImage
from backend.calib import Calibration, ScoreRule, set_threshold
from backend.errors import InspectionError
from backend.imaging.position_map import position_map, position_placement
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.near_identical import MIN_PARTS_LEFT_OUT_TOGETHER, distinct_parts, near_identical_groups
from backend.scoring.leave_one_out import LeaveOneOutScores, learned_mask
from backend.scoring.suspects import Suspect, find_suspects

NOTEWORTHY_CHANGE: Final = 0.1
"""Relative change of a threshold from which on its renewal is said."""

_NAMED: Final = 3
"""Images that a sentence names; the fields of the answer name all."""


@dataclass(frozen=True, kw_only=True)
class LearnedImages:
    """What is doubtful about the images of a memory.

    Attributes:
        suspects: Images that stand out, the farthest first; see ``scoring.suspects``.
        threshold_without_suspects: The threshold of the other parts' scores; None without suspects, or with fewer than
            two other parts. Of good images alone, and with the suspects still in the memory: a fit without them may end
            a little higher.
        near_identical: Groups of images that count as one part each, by digest.
        names: What clients know an image by, its stored file name, by digest; of all that are named here.
        warnings: All of that in sentences.
    """

    suspects: tuple[Suspect, ...]
    threshold_without_suspects: float | None
    near_identical: tuple[tuple[str, ...], ...]
    names: dict[str, str]
    warnings: tuple[str, ...]


def examine(
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    rule: ScoreRule,
    previous: Calibration | None,
    images: ImageStore,
    suspects: tuple[Suspect, ...] | None = None,
) -> LearnedImages:
    """Return what is doubtful about the images of a memory.

    Args:
        bank: The memory.
        scores: Its leave-one-out scores, under ``rule``.
        rule: How maps become scores.
        previous: The calibration whose percentile and margin hold; None for those of a first one.
        images: Says the names.
        suspects: Those of the memory, where they are known.
    """
    suspects = find_suspects(bank, scores, rule) if suspects is None else suspects
    named = {suspect.digest for suspect in suspects} | {each for group in bank.near_identical for each in group}
    names = {}
    for digest in sorted(named):
        stored = images.get(digest, "ok")
        names[digest] = digest if stored is None else stored.file_name
    without = _threshold_without(bank, scores, {suspect.digest for suspect in suspects}, previous)
    name_of = names.__getitem__
    return LearnedImages(
        suspects=suspects,
        threshold_without_suspects=without,
        near_identical=bank.near_identical,
        names=names,
        warnings=(*_of_suspects(suspects, without, name_of), *_of_near_identical(bank, name_of)),
    )


def suspect_warnings(
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    rule: ScoreRule,
    images: ImageStore,
    suspects: tuple[Suspect, ...] | None = None,
) -> Iterable[str]:
    """Yield which images of a memory stand out, if any; arguments as of ``examine``."""
    learned = examine(bank, scores, rule, None, images, suspects)
    yield from _of_suspects(learned.suspects, learned.threshold_without_suspects, learned.names.__getitem__)


def parts_with(
    bank: MemoryBank, part_ids: Mapping[str, str], position_maps: Mapping[str, NDArray[np.float16]]
) -> dict[str, str]:
    """Return the part that each learned image shows, and each of others, by the client's word and what can be seen.

    Args:
        bank: The memory.
        part_ids: Of images that it has not learned, by digest; the digest itself where nobody said.
        position_maps: Of these.
    """
    if not part_ids:
        return bank.distinct_parts
    image_hw = bank.placement.image_hw
    placement = position_placement(image_hw)
    cells = placement.cell_coverage(learned_mask(bank, image_hw)).reshape(-1) > 0
    known = dict(zip(bank.image_digests, bank.position_maps, strict=True))
    said = {**part_ids, **bank.distinct_parts}
    return distinct_parts(said, near_identical_groups({**position_maps, **known}, said, cells, placement))


def parts_of_images(
    bank: MemoryBank, images: Iterable[StoredImage], pixels_of: Callable[[StoredImage], NDArray[np.uint8]]
) -> dict[str, str]:
    """Return the part that each learned image shows, and each of stored good images; see ``parts_with``.

    Args:
        bank: The memory.
        images: The stored images.
        pixels_of: Reads one.
    """
    new: dict[str, str] = {}
    position_maps: dict[str, NDArray[np.float16]] = {}
    for image in images:
        if image.label == "ok" and bank.part_of(image.digest) is None:
            with suppress(InspectionError):  # deleted meanwhile: a part of its own
                position_maps[image.digest] = position_map(pixels_of(image))
                new[image.digest] = image.part_id
    return parts_with(bank, new, position_maps)


def renewal_warnings(
    previous: Calibration | None,
    new: Calibration | None,
    before: MemoryBank | LearnedFacts | None,
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    learned: LearnedImages,
    images: ImageStore,
) -> Iterable[str]:
    """Yield that a renewal has changed the threshold by more than a tenth, if it has, and why.

    Args:
        previous: The calibration before.
        new: Its renewal, if there is one.
        before: The memory before, or what is certain of it.
        bank: The memory that it is renewed for.
        scores: Its leave-one-out scores, as ``new`` uses them.
        learned: What is doubtful about its images.
        images: Says the names.
    """
    if previous is None or new is None:
        return
    change = abs(new.threshold - previous.threshold)
    if change <= NOTEWORTHY_CHANGE * previous.threshold:
        return
    by = f" ({100 * (new.threshold / previous.threshold - 1):+.0f} %)" if previous.threshold > 0 else ""
    yield (
        f"The threshold was renewed with the new memory and has changed from {previous.threshold:.4g} to "
        f"{new.threshold:.4g}{by}: {_cause(previous, new, before, bank, scores, learned, images)}. Inspect some known "
        "good and bad parts before you rely on it."
    )


def _cause(
    previous: Calibration,
    new: Calibration,
    before: MemoryBank | LearnedFacts | None,
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    learned: LearnedImages,
    images: ImageStore,
) -> str:
    """Return why a threshold has changed, as far as that can be said."""
    without = learned.threshold_without_suspects
    is_higher = new.threshold > previous.threshold
    if is_higher and without is not None and without < new.threshold - 0.5 * (new.threshold - previous.threshold):
        names = _list([suspect.digest for suspect in learned.suspects], learned.names.__getitem__)
        return f"because of images that stand out from the others, {names}; without them it would be {without:.4g}"
    if before is not None and before.extractor_id != bank.extractor_id:
        return f"the extractor was {before.extractor_id} and its scores have another scale"
    if isinstance(before, MemoryBank) and before.is_local != bank.is_local:
        now = "are now" if bank.is_local else "are no longer"
        return f"patches {now} compared by position, which puts scores on another scale"
    known = set() if before is None else set(before.image_digests)
    n_new, n_gone = len(set(bank.image_digests) - known), len(known - set(bank.image_digests))
    parts = f"it rests on {new.n_ok} good parts now, before on {previous.n_ok}"
    largest = max(scores.by_image, key=lambda digest: (scores.by_image[digest], digest), default=None)
    if is_higher and largest is not None and known and largest not in known:
        stored = images.get(largest, "ok")
        return f"the largest score is that of a new image, {largest if stored is None else stored.file_name}; {parts}"
    return f"{n_new} images were learned that the memory before did not know, {n_gone} are no longer in it; {parts}"


def _threshold_without(
    bank: MemoryBank, scores: LeaveOneOutScores, suspects: set[str], previous: Calibration | None
) -> float | None:
    left_out = {part for digest, part in zip(bank.image_digests, bank.part_ids, strict=True) if digest in suspects}
    by_part: dict[str, float] = {}
    for digest, part in zip(bank.image_digests, bank.part_ids, strict=True):
        if part not in left_out and digest in scores.by_image:
            by_part[part] = max(scores.by_image[digest], by_part.get(part, 0.0))
    if not suspects or len(by_part) < 2:
        return None
    if previous is None:
        return set_threshold(list(by_part.values())).threshold
    return set_threshold(list(by_part.values()), percentile=previous.ok_percentile, margin=previous.margin).threshold


def _of_suspects(suspects: Sequence[Suspect], without: float | None, name_of: Callable[[str], str]) -> Iterable[str]:
    if not suspects:
        return
    names = _list([suspect.digest for suspect in suspects], name_of)
    what = "1 good image stands" if len(suspects) == 1 else f"{len(suspects)} good images stand"
    remedy = "" if without is None else f" The threshold of the other images alone would be {without:.4g}."
    yield (
        f"{what} out from the others and may show a bad part: {names} (up to {suspects[0].times_median:.1f} times the "
        f"median of the other parts).{remedy} Look at what is named: a defect that is learned as good is never found "
        "again. Delete a bad image (DELETE /datasets/file) and fit again with use_dataset=true."
    )


def _of_near_identical(bank: MemoryBank, name_of: Callable[[str], str]) -> Iterable[str]:
    groups = sorted(bank.near_identical, key=lambda group: (-len(group), group))
    if not groups:
        return
    n_images = sum(len(group) for group in groups)
    shown = "; ".join(_list(group, name_of) for group in groups[:_NAMED])
    more = f"; and {len(groups) - _NAMED} more groups" if len(groups) > _NAMED else ""
    parts = "one part" if len(groups) == 1 else f"{len(groups)} parts"
    how = (
        "each group is left out together"
        if not bank.scored_beside_own_part
        else f"with fewer than {MIN_PARTS_LEFT_OUT_TOGETHER} different parts they are scored one by one, too low"
    )
    yield (
        f"{n_images} of {len(bank.image_digests)} images are near-identical and count as {parts} ({shown}{more}): "
        f"the memory shows {bank.n_parts} different part{'' if bank.n_parts == 1 else 's'}, and {how}. Where they are "
        "different parts all the same, give each image its own part_id."
    )


def _list(digests: Sequence[str], name_of: Callable[[str], str]) -> str:
    """Return the names of images, the first of many."""
    more = f" and {len(digests) - _NAMED} more" if len(digests) > _NAMED else ""
    return ", ".join(name_of(digest) for digest in digests[:_NAMED]) + more
