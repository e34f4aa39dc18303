"""Two versions of a ROI on the same stored images: what each scores and decides, and who changes sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import Label, StoredImage
from backend.artifacts.stored_version import StoredVersion
from backend.calib import OWN_SHAPES, ScoreRule
from backend.errors import InspectionError, InvalidInput, StorageFailed, Unavailable
from backend.extractors.base import FeatureExtractor
from backend.extractors.extraction import Extraction
from backend.memory_bank.coreset import Progress
from backend.roi_mask import Shape, shape_from_fields
from backend.scoring.inspection import rule_in_force
from backend.services.stored_scores import ImageDistances, StoredScores, own_shape
from backend.services.versions import Versions

LABELS: tuple[Label, ...] = ("ok", "ng")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a version makes of an image.

    Attributes:
        score: The image score.
        threshold: None where the version was not calibrated.
        learned: Whether the version has learned the image; it is scored without its own part then.
    """

    score: float
    threshold: float | None
    learned: bool

    @property
    def decision(self) -> Literal["ok", "ng"] | None:
        """What an inspection decides by the score; None without a threshold."""
        return None if self.threshold is None else "ng" if self.score > self.threshold else "ok"


@dataclass(frozen=True, kw_only=True)
class ComparedImage:
    """A stored image under two versions; without one of them there is an error.

    Attributes:
        image: The image.
        a: Under the first version.
        b: Under the second.
        error: Why it cannot be scored under one of them.
    """

    image: StoredImage
    a: Judged | None = None
    b: Judged | None = None
    error: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the versions decide differently; False where one of them does not decide."""
        decisions = {None if judged is None else judged.decision for judged in (self.a, self.b)}
        return None not in decisions and len(decisions) == 2


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two versions on the stored images of a ROI, good ones first."""

    a: StoredVersion
    b: StoredVersion
    images: tuple[ComparedImage, ...]


@dataclass(frozen=True, kw_only=True)
class Comparer:
    """Compares versions; nothing of a ROI is changed."""

    versions: Versions
    extraction: Extraction
    max_pixels: int

    def compare(self, key: ModelKey, a: int, b: int | None = None, *, progress: Progress | None = None) -> Comparison:
        """Score the stored images of a ROI under two versions.

        Each version scores as it did while it was in force: its rule, and what its threshold was set for, all that it
        has learned or the shapes of the data set. What is no image of the ROI counts by its score alone.

        Args:
            key: The model.
            a: A version.
            b: Another one; None for the one in force.
            progress: Called with (images done, images in all).

        Raises:
            NotFound, ArtefactCorrupt, ArtefactOutdated, ExtractorMismatch, WeightsUnavailable: As ``Versions.stored``.
            InvalidInput: If the ROI has no stored images.
            Unavailable: If images cannot be scored now.
        """
        first, second = (self.versions.stored(key, number) for number in (a, b))
        images = self.versions.store.images(key)
        stored = [image for label in LABELS for image in images.labelled(label)]
        if not stored:
            raise InvalidInput(
                "The ROI has no stored images to compare versions on. Upload some with /datasets/ok/upload and "
                "/datasets/ng/upload."
            )
        extractor = self.versions.extractor.get()
        compared = []
        for done, image in enumerate(stored):
            if progress is not None:
                progress(done, len(stored))
            compared.append(self._compared(key, image, (first, second), extractor))
        if progress is not None:
            progress(len(stored), len(stored))
        return Comparison(a=first, b=second, images=tuple(compared))

    def _compared(
        self, key: ModelKey, image: StoredImage, versions: Sequence[StoredVersion], extractor: FeatureExtractor
    ) -> ComparedImage:
        # One for each image: what it makes of embeddings that are missing is not kept longer, and not stored.
        images = self.versions.store.images(key)
        scorer = StoredScores(images, extractor, self.extraction, max_pixels=self.max_pixels, keeps=False)
        try:
            if any(image.digest not in version.bank.image_digests for version in versions):
                scorer.prepare([image], versions[0].bank.placement)
            a, b = (_judged(image, version, scorer.distances(image, version.bank)) for version in versions)
        except InspectionError as error:
            if isinstance(error, Unavailable) and not isinstance(error, StorageFailed):
                raise
            return ComparedImage(image=image, error=error.sentence)
        if a is None or b is None:
            return ComparedImage(image=image, a=a, b=b, error=_ALONE)
        return ComparedImage(image=image, a=a, b=b)


_ALONE = "One of the versions has learned this part alone: nothing is left to compare it with."


def rule_of(version: StoredVersion) -> ScoreRule:
    """Return how a version's maps become scores."""
    newest = next(iter(version.model.calibrations), None)
    return rule_in_force(version.bank, version.model.calibration or newest)


def _judged(image: StoredImage, version: StoredVersion, distances: ImageDistances | None) -> Judged | None:
    if distances is None:
        return None
    calibration, bank = version.model.calibration, version.bank
    shape: Shape | None = None
    shape_hw = bank.placement.image_hw
    if calibration is not None and calibration.shape == OWN_SHAPES:
        shape, shape_hw = own_shape(image), image.image_hw
    elif calibration is not None and calibration.shape is not None:
        shape = shape_from_fields(calibration.shape)
    return Judged(
        score=distances.score(bank, rule_of(version), shape, shape_hw),
        threshold=None if calibration is None else calibration.threshold,
        learned=image.digest in bank.image_digests,
    )
