"""The versions of a ROI: what was in force and since when, and the way back to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backend.artifacts.formats import OutdatedFormat, calibrations_from_bytes
from backend.artifacts.model_key import ModelKey
from backend.artifacts.older_formats import older_calibrations
from backend.artifacts.stored_version import StoredVersion
from backend.artifacts.versions import Made, Version
from backend.calib import Calibration
from backend.errors import NotFound
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.services.consistency import PrecisionCheck, check_extractor
from backend.storage import ArtefactStore


@dataclass(frozen=True, kw_only=True)
class ListedVersion:
    """A version, and what stands against bringing it back.

    Attributes:
        version: Its record.
        in_force: Whether inspections are judged by it.
        calibration: That of its memory, of any format.
        note: Why it cannot be activated, as far as that is known without reading its memory; None where nothing is.
    """

    version: Version
    in_force: bool
    calibration: Calibration | None
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Activation:
    """What came of bringing a version back.

    Attributes:
        in_force: The version in force now.
        changed: False where it was in force already.
        stored: What was brought back.
        warnings: What whoever did it should know.
    """

    in_force: Version
    changed: bool
    stored: StoredVersion
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Lists versions and brings them back."""

    store: ArtefactStore
    extractor: ExtractorLoader
    precision: PrecisionCheck

    def listed(self, key: ModelKey) -> list[ListedVersion]:
        """Return the versions of a model, newest first; none where it was never fitted.

        Raises:
            StorageFailed: If a file cannot be read.
        """
        store = self.store.versions(key)
        versions, in_force = store.listed()
        running = self.extractor.state.extractor
        return [
            ListedVersion(
                version=version,
                in_force=version.number == in_force,
                calibration=_calibration(version),
                note=None
                if version.number == in_force
                else _note(version, running, has_memory=store.has_memory(version)),
            )
            for version in versions
        ]

    def stored(self, key: ModelKey, number: int | None) -> StoredVersion:
        """Return a version with its memory and calibrations; None stands for the one in force.

        Raises:
            NotFound: If there is no such version.
            ArtefactCorrupt, ArtefactOutdated: If it cannot be used.
            ExtractorMismatch, WeightsUnavailable: If the extractor of now cannot use it.
            StorageFailed: If a file cannot be read.
        """
        versions, in_force = self.store.versions(key).listed()
        wanted = in_force if number is None else number
        version = next((each for each in versions if each.number == wanted), None)
        if version is None:
            what = "nothing in force" if number is None else f"no version {number}"
            raise NotFound(f"There is {what} of {key}. GET /versions lists what is kept.", details={"version": number})
        stored = self.store.load_version(key, version)
        extractor = self.extractor.get()
        check_extractor(stored.bank, extractor)
        self.precision.check(key, stored.bank, extractor)
        return stored

    def activate(self, key: ModelKey, number: int, *, reason: str | None = None) -> Activation:
        """Bring a version back; the one in force becomes one that can be brought back in its turn.

        The version that comes into force is a new one with what the old one held: its memory and its calibrations, so
        that it answers as the old one did. A version that is in force stays as it is.

        Raises:
            NotFound, ArtefactCorrupt, ArtefactOutdated, ExtractorMismatch, WeightsUnavailable: As ``stored``; what is
                in force serves on.
            Busy: If somebody else writes for long.
            StorageFull, StorageFailed: If it cannot be written; what is in force serves on.
        """
        stored = self.stored(key, number)  # before the lock, so that nobody waits for it
        with self.store.lock(key):
            versions, in_force = self.store.versions(key).listed()
            before = next((each for each in versions if each.number == in_force), None)
            changed = before is None or not self.store.is_in_force(key, stored)
            warnings: tuple[str, ...] = ()
            if changed:
                made = Made(kind="activation", reason=reason, activates=number)
                warnings = self.store.bring_back(key, stored, made)
                versions, in_force = self.store.versions(key).listed()
            now = next((each for each in versions if each.number == in_force), stored.version)
        return Activation(
            in_force=now,
            changed=changed,
            stored=stored,
            warnings=(*warnings, *self._warnings(key, stored, changed=changed)),
        )

    def _warnings(self, key: ModelKey, stored: StoredVersion, *, changed: bool) -> Iterator[str]:
        if not changed:
            yield f"Version {stored.version.number} is in force already: nothing was changed."
        if stored.model.calibration is None:
            yield (
                "This version was not calibrated while it was in force: inspections have a score and no decision until "
                "you calibrate with /calibrate_ng."
            )
        images = self.store.images(key)
        learned = stored.bank.image_digests
        n_gone = sum(images.get(digest, "ok") is None for digest in learned)
        if n_gone:
            yield (
                f"{n_gone} of the {len(learned)} images that this version has learned are no longer stored. It knows "
                "them all the same, but the next fit does not learn them again."
            )


def _calibration(version: Version) -> Calibration | None:
    if version.calib is None:
        return None
    try:
        found = calibrations_from_bytes(version.calib.encode())
    except OutdatedFormat:
        found = older_calibrations(version.calib.encode())
    return next((each for each in found if each.memory_checksum == version.memory.checksum), None)


def _note(version: Version, running: FeatureExtractor | None, *, has_memory: bool) -> str | None:
    """Return why a version cannot be activated, or None."""
    memory = version.memory
    if not has_memory:
        return "Its memory is gone or damaged: it cannot be activated."
    if version.is_outdated:
        return "An older version of this service wrote it: it cannot be activated. Fit the ROI again instead."
    if running is not None and memory.extractor_id != running.extractor_id:
        return (
            f"It was made with the extractor {memory.extractor_id}, and the service runs {running.extractor_id}: it "
            "cannot be activated until the old setting is restored."
        )
    return None
