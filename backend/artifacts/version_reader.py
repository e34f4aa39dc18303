"""Which versions of a model there are, and which of them is in force, as its files say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.artifacts.files import names_in, read_file, stamp
from backend.artifacts.formats import calib_in_force, calib_text
from backend.artifacts.quarantine import set_aside_copies
from backend.artifacts.versions import (
    NEXT,
    RECORD_NAME,
    VERSIONS_FOLDER,
    MemorySummary,
    Version,
    VersionKind,
    memory_digest,
    time_text,
    version_from_bytes,
)


class VersionReader:
    """Reads the versions below one model's folder; needs no lock.

    Args:
        model_folder: The folder.
        found_damaged: Called with a damaged file, and what raises ValueError for its bytes.
    """

    def __init__(self, model_folder: Path, *, found_damaged: Callable[[Path, Callable[[bytes], Any]], None]) -> None:
        self._folder = model_folder / VERSIONS_FOLDER
        self._memory, self._calib = model_folder / "memory.npz", model_folder / "calib.json"
        self._found_damaged = found_damaged

    def __str__(self) -> str:
        return str(self._folder.parent)

    def listed(self) -> tuple[list[Version], int | None]:
        """Return all versions, newest first, and the number of the one in force; None where nothing is.

        One in force that no record describes, as an older version of this service or a copy by hand leaves it, gets the
        next number.

        Raises:
            StorageFailed: If a file cannot be read.
        """
        numbered, pending = self._records()
        current = self._in_force(numbered, pending)
        versions = {version.number: version for version in numbered}
        if current is None:
            current = self._described(numbered)
        if current is not None:
            versions[current.number] = current
        newest_first = sorted(versions.values(), key=lambda version: -version.number)
        return newest_first, None if current is None else current.number

    def memory_path(self, version: Version) -> Path:
        """Return where a version's memory lies once it is no longer in force."""
        return self._folder / version.memory_name

    def has_memory(self, version: Version) -> bool:
        """Return whether a version's memory is stored; raises StorageFailed."""
        return stamp(self.memory_path(version)) is not None or memory_digest(self._memory) == version.memory.digest

    def _records(self) -> tuple[list[Version], Version | None]:
        """Return the versions that have a number, oldest first, and the one that is next."""
        found: list[Version] = []
        pending = None
        for name in sorted(names_in(self._folder)):
            match = RECORD_NAME.fullmatch(name)
            data = None if match is None else read_file(self._folder / name)
            if match is None or data is None:
                continue
            try:
                version = version_from_bytes(data)
            except ValueError:
                self._found_damaged(self._folder / name, version_from_bytes)
                continue
            if match["number"] == NEXT:
                pending = version
            elif name == version.record_name:
                found.append(version)
        return sorted(found, key=lambda version: version.number), pending

    def _in_force(self, numbered: list[Version], pending: Version | None) -> Version | None:
        """Return which of these is in force, if one is."""
        digest = self._digest_in_force()
        if digest is None:
            return None
        newest_first = [*([] if pending is None else [pending]), *reversed(numbered)]
        of_memory = [version for version in newest_first if version.memory.digest == digest]
        calib, is_damaged = self._calib_text()
        if is_damaged:
            return next(iter(of_memory), None)
        return next((version for version in of_memory if version.is_of(digest, calib)), None)

    def _digest_in_force(self) -> str | None:
        """Return the digest of the memory in force, also of one that was set aside as damaged."""
        if stamp(self._memory) is not None:
            return memory_digest(self._memory)
        return next(map(memory_digest, reversed(set_aside_copies(self._memory))), None)

    def _calib_text(self) -> tuple[str | None, bool]:
        """Return the text of the calibrations in force, and whether it is damaged."""
        data = read_file(self._calib)
        if data is None:
            return None, bool(set_aside_copies(self._calib))
        try:
            in_force = calib_in_force(data, self._memory)
        except ValueError:
            return None, True
        text = calib_text(in_force)
        return text, (text is None) != (in_force is None)

    def _described(self, numbered: list[Version]) -> Version | None:
        """Return what is in force without a record, as its files and their times describe it; None without a memory."""
        data = read_file(self._memory)
        summary = None if data is None else MemorySummary.of_file(data)
        if summary is None:
            return None
        kinds: dict[Path, VersionKind] = {self._memory: "fit", self._calib: "calibration"}
        times: list[tuple[int, VersionKind]] = [
            (written[0], kind) for path, kind in kinds.items() if (written := stamp(path)) is not None
        ]
        when_ns, kind = max(times, default=(0, "fit"))
        return Version(
            number=max((version.number for version in numbered), default=0) + 1,
            kind=kind,
            at=time_text(datetime.fromtimestamp(when_ns / 1e9, UTC)),
            reason=None,
            activates=None,
            memory=summary,
            calib=self._calib_text()[0],
        )
