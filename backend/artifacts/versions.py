"""What was in force at a model, one version for each fit, calibration and activation, and the bytes of its record.

    versions/<number>-<memory>.json     a record: when and by what it came into force, and its calibrations
    versions/next-<memory>.json         the record of a version that is about to come into force
    versions/<memory>.npz               a memory that was in force; several versions may share one

``<memory>`` are the first 16 digits of the digest that ends a memory's file. The memory in force is not among them: it
is ``memory.npz``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, get_args

from backend.artifacts.files import read_end
from backend.artifacts.formats import FORMAT_VERSION, calib_text, facts_of_damaged
from backend.memory_bank.bank import MemoryBank
from backend.utils import sealed_json, unsealed_json

VersionKind = Literal["fit", "refit", "calibration", "activation"]

VERSIONS_FOLDER: Final = "versions"
_RECORD_FORMAT: Final = 1
NAME_DIGITS: Final = 16
NEXT: Final = "next"
"""In the name of a record, in place of the number."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
RECORD_NAME: Final = re.compile(rf"(?P<number>{NEXT}|[1-9]\d{{0,8}})-(?P<memory>[0-9a-f]{{16}})\.json")


@dataclass(frozen=True, kw_only=True)
class Made:
    """What makes a version.

    Attributes:
        kind: The call.
        reason: What whoever made it wrote.
        activates: The number of the version that is brought back.
    """

    kind: VersionKind
    reason: str | None = None
    activates: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemorySummary:
    """What a list of versions says of a memory; None for what older formats do not say.

    Attributes:
        digest: The digest that ends its file.
        checksum: Of the memory.
        format_version: Of its file.
        extractor_id: What made it.
        n_images: Images that it has learned.
        n_parts: Different parts among them.
    """

    digest: str
    checksum: str
    format_version: int
    extractor_id: str
    n_images: int
    n_parts: int | None = None

    @classmethod
    def of(cls, bank: MemoryBank, data: bytes) -> MemorySummary:
        """Return what is said of a memory whose file has these bytes."""
        return cls(
            digest=data[-64:].decode("ascii"),
            checksum=bank.checksum,
            format_version=FORMAT_VERSION,
            extractor_id=bank.extractor_id,
            n_images=len(bank.image_digests),
            n_parts=bank.n_parts,
        )

    @classmethod
    def of_file(cls, data: bytes) -> MemorySummary | None:
        """Return what the file of a memory of any format says of itself; None where that is not known for certain."""
        facts = facts_of_damaged(data)
        digest = data[-64:].decode("ascii", errors="replace")
        if facts is None or not _DIGEST.fullmatch(digest):
            return None
        return cls(
            digest=digest,
            checksum=str(facts.settings["checksum"]),
            format_version=int(facts.settings["format_version"]),
            extractor_id=facts.extractor_id,
            n_images=len(facts.image_digests),
        )

    @property
    def name(self) -> str:
        """The name of its file among the versions, without its ending."""
        return self.digest[:NAME_DIGITS]


@dataclass(frozen=True, kw_only=True)
class Version:
    """A memory with its calibrations that is in force, or was.

    Attributes:
        number: From 1 on, in the order of coming into force.
        kind: The call that made it.
        at: When, ISO 8601 in UTC.
        reason: What whoever made it wrote.
        activates: Of an activation, the number of the version that it brought back.
        memory: Its memory.
        calib: The text of its ``calib.json``; None where there was none.
    """

    number: int
    kind: VersionKind
    at: str
    reason: str | None
    activates: int | None
    memory: MemorySummary
    calib: str | None

    @cached_property
    def own_calibration(self) -> Mapping[str, Any] | None:
        """The fields of the calibration of its memory, of any format, or None."""
        return own_calibration(self.calib, self.memory.checksum)

    @cached_property
    def is_outdated(self) -> bool:
        """Whether its memory or its calibrations are of another format than this program reads."""
        formats = [self.memory.format_version]
        if self.calib is not None:
            formats.append(json.loads(self.calib).get("format_version"))
        return any(each != FORMAT_VERSION for each in formats)

    def is_of(self, memory_digest: str, calib: str | None) -> bool:
        """Return whether this is what a memory and the text of a ``calib.json`` make."""
        is_same = memory_digest == self.memory.digest
        return is_same and own_calibration(calib, self.memory.checksum) == self.own_calibration

    @property
    def record_name(self) -> str:
        """The name of its record."""
        return f"{self.number}-{self.memory.name}.json"

    @property
    def pending_name(self) -> str:
        """The name of its record until it is in force."""
        return f"next-{self.memory.name}.json"

    @property
    def memory_name(self) -> str:
        """The name of its memory's file among the versions."""
        return f"{self.memory.name}.npz"


def now_text() -> str:
    """Return the time as ISO 8601 in UTC with microseconds."""
    return time_text(datetime.now(UTC))


def time_text(time: datetime) -> str:
    """Return a time as ISO 8601 in UTC with microseconds."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def version_bytes(version: Version) -> bytes:
    """Return a record: a sealed JSON object."""
    fields = {name: value for name, value in vars(version).items() if name in Version.__dataclass_fields__}
    return sealed_json({**fields, "memory": asdict(version.memory), "record_format": _RECORD_FORMAT})


def version_from_bytes(data: bytes) -> Version:
    """Return the version of a record.

    Raises:
        ValueError: If it is no record, or a single byte of it is not as it was written.
    """
    fields = unsealed_json(data)
    try:
        if fields.pop("record_format") != _RECORD_FORMAT:
            raise ValueError("a record of another format")
        version = Version(**{**fields, "memory": MemorySummary(**fields["memory"])})
        memory, numbers = version.memory, (version.number, version.activates or 1)
        texts = (version.at, memory.checksum, memory.extractor_id, version.calib or "", version.reason or "")
        counts = (memory.format_version, memory.n_images, memory.n_parts or 0)
        is_sound = (
            all(isinstance(each, str) for each in texts)
            and all(type(each) is int and 1 <= each < 10**9 for each in numbers)
            and all(type(each) is int and each >= 0 for each in counts)
            and version.kind in get_args(VersionKind)
            and _DIGEST.fullmatch(memory.digest) is not None
            and datetime.fromisoformat(version.at).tzinfo is not None
            and (version.calib is None or calib_text(version.calib.encode()) is not None)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not the record of a version") from error
    if not is_sound:
        raise ValueError("not the record of a version")
    return version


def own_calibration(calib: str | None, memory_checksum: str) -> Mapping[str, Any] | None:
    """Return the fields of a memory's calibration in the text of a ``calib.json`` of any format; None without one."""
    if calib is None:
        return None
    try:
        document = json.loads(calib)
        others = document.pop("other_memories")
        for name in ("sha256", "format_version"):
            document.pop(name)
        found: list[Mapping[str, Any]] = [document, *others]
        return next((each for each in found if each["memory_checksum"] == memory_checksum), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def memory_digest(path: Path) -> str | None:
    """Return the digest that ends the file of a memory; None where there is no file, or it ends otherwise.

    Raises:
        StorageFailed: If it cannot be read.
    """
    found = (read_end(path, 64) or b"").decode("ascii", errors="replace")
    return found if _DIGEST.fullmatch(found) else None
