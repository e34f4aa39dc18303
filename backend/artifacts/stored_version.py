"""A version that was in force, with its memory and its calibrations, as they are read from their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backend.artifacts.formats import OutdatedFormat, bank_from_bytes, calibrations_from_bytes
from backend.artifacts.stored_model import StoredModel
from backend.artifacts.versions import Version
from backend.errors import ArtefactCorrupt, ArtefactOutdated, NotFound
from backend.memory_bank.bank import MemoryBank


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """What a version holds.

    Attributes:
        version: Which one.
        data: The bytes of its memory's file.
        bank: Its memory.
        model: Both as a model that is stored.
    """

    version: Version
    data: bytes = field(repr=False)
    bank: MemoryBank
    model: StoredModel


def stored_version(
    version: Version, data: bytes, *, found_damaged: Callable[[Callable[[bytes], Any]], None]
) -> StoredVersion:
    """Return a version whose memory's file has these bytes.

    Args:
        version: Its record.
        data: The bytes.
        found_damaged: Called with what raises ValueError for them, if they are damaged.

    Raises:
        ArtefactCorrupt: If they are damaged.
        ArtefactOutdated: If an older version of this service wrote them.
    """
    try:
        bank = bank_from_bytes(data)
        calibrations = [] if version.calib is None else calibrations_from_bytes(version.calib.encode())
    except OutdatedFormat as error:
        raise ArtefactOutdated(
            f"Version {version.number} was written by an older version of this service, which alone can use it. Fit "
            "the ROI again with /fit_ok from the images that it had learned, or activate a newer version.",
            details={"version": version.number},
        ) from error
    except ValueError as error:
        found_damaged(bank_from_bytes)
        raise ArtefactCorrupt(
            f"Version {version.number} is damaged and cannot be used. What is in force is not affected. Activate "
            "another version, or fit the ROI again with /fit_ok.",
            details={"version": version.number},
        ) from error
    model = StoredModel(bank=bank, calibrations=tuple(calibrations), stamps=(None, None))
    return StoredVersion(version=version, data=data, bank=bank, model=model)


def version_gone(version: Version) -> NotFound:
    """Return the error that says that a version's memory is not stored any more."""
    return NotFound(
        f"The memory of version {version.number} is gone: it was deleted, or made room for something new. Choose "
        "another version; GET /versions lists them.",
        details={"version": version.number},
    )
