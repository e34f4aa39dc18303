"""The versions of one model: what was in force before, kept so that a crash at any moment loses and mixes nothing.

A switch to another memory or calibration leaves what it replaces behind, in this order: the memory in force gets a
second name among the versions; the record of what comes is written as ``next-…``; the switch itself; the record gets
its number. A record that is next is that of the version in force if the switch was made, and of nothing if it was not.
So no version is half there: its calibrations are in its record, and its memory is there before it is replaced.

What is kept is never more important than what is to be stored: a version that cannot be kept is lost, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.artifacts.files import names_in, read_file, stamp, sync_folder, writing
from backend.artifacts.files import replace as rename
from backend.artifacts.formats import OutdatedFormat, calib_in_force, calibrations_from_bytes
from backend.artifacts.quarantine import set_aside_copies
from backend.artifacts.versions import (
    RECORD_NAME,
    VERSIONS_FOLDER,
    Made,
    MemorySummary,
    Version,
    VersionKind,
    memory_digest,
    now_text,
    time_text,
    version_bytes,
    version_from_bytes,
)
from backend.errors import Unavailable

_log = logging.getLogger(__name__)

_NEXT = "next"


class VersionStore:
    """The versions below one model's folder. What changes them is called under the ROI's lock.

    Args:
        model_folder: The folder.
        keep: Most versions that are kept beside the one in force.
        write: Writes a file durably.
        remove: Deletes files durably.
        keep_file: Keeps a file under a second name, linked or copied.
        found_damaged: Called with a damaged file, and what raises ValueError for its bytes.
    """

    def __init__(
        self,
        model_folder: Path,
        *,
        keep: int,
        write: Callable[[Path, bytes], None],
        remove: Callable[..., None],
        keep_file: Callable[[Path, Path], None],
        found_damaged: Callable[[Path, Callable[[bytes], Any]], None],
    ) -> None:
        self._folder = model_folder / VERSIONS_FOLDER
        self._memory, self._calib = model_folder / "memory.npz", model_folder / "calib.json"
        self._keep = keep
        self._write, self._remove, self._keep_file = write, remove, keep_file
        self._found_damaged = found_damaged

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

    @contextmanager
    def leaving(
        self, made: Made | None, memory: MemorySummary | None, calib: str | None, warnings: list[str]
    ) -> Iterator[None]:
        """Keep what is in force while the ``with`` block switches to something else, and record what that is.

        Nothing is left where the block does not change anything, unless somebody gives a reason for that.

        Args:
            made: What makes the version; None leaves the versions alone.
            memory: The memory that comes into force; None for that in force.
            calib: The text of the ``calib.json`` that comes into force.
            warnings: Gets what could not be kept.
        """
        if made is None:
            yield
            return
        try:
            self._prepare(made, memory, calib)
        except Unavailable as error:
            _log.warning("the version in force cannot be kept: %s", error)
            warnings.append(f"The version before this one could not be kept for a way back. {error.sentence}")
        try:
            yield
        except Exception:
            with suppress(Unavailable):
                self.settle()
            raise
        self.tidy()

    def tidy(self) -> int:
        """Number the version that came into force, and delete those that are too many; return how many that were."""
        try:
            self.settle()
            return self._prune()
        except Unavailable:  # What was to be stored is stored; the next switch or sweep tidies.
            _log.exception("the versions could not be tidied")
            return 0

    def sweep(self) -> int:
        """Tidy what a crash or a lower limit has left; return how many files that were."""
        before = len(names_in(self._folder))
        self.tidy()
        return before - len(names_in(self._folder))

    def is_untidy(self) -> bool:
        """Return whether a crash or a lower limit has left something to tidy; raises StorageFailed."""
        names = [match["number"] for name in names_in(self._folder) if (match := RECORD_NAME.fullmatch(name))]
        return _NEXT in names or len(names) > self._keep + 1 or bool(self._unused_memories())

    def settle(self) -> None:
        """Give the record that is next its number if its version is in force, and delete it if not.

        Raises:
            StorageFailed: If a file cannot be read, renamed or deleted.
        """
        numbered, pending = self._records()
        if pending is not None:
            path = self._folder / pending.pending_name
            if self._in_force(numbered, pending) is pending:
                with writing():
                    rename(path, self._folder / pending.record_name)
                    sync_folder(self._folder)
            else:
                self._remove(path)

    def droppable(self) -> list[tuple[int, Version]]:
        """Return the versions that are not in force with the times of their records, ns, oldest first."""
        numbered, pending = self._records()
        current = self._in_force(numbered, pending)
        found = []
        for version in numbered:
            when = stamp(self._folder / version.record_name)
            if version is not current and when is not None:
                found.append((when[0], version))
        return found

    def drop(self, *versions: Version) -> None:
        """Delete versions, and memories that no other version has.

        Raises:
            StorageFailed: If a file cannot be deleted.
        """
        if versions:
            self._remove(*(self._folder / version.record_name for version in versions))
        if unused := self._unused_memories():
            self._remove(*unused)

    def _prepare(self, made: Made, memory: MemorySummary | None, calib: str | None) -> None:
        self.settle()
        numbered, _ = self._records()
        current = self._in_force(numbered, None)
        if current is None and (current := self._described(numbered)) is not None and self._keep:
            self._write(self._folder / current.record_name, version_bytes(current))
        if current is not None:
            memory = memory or current.memory
            is_same = current.memory.digest == memory.digest and self._calib_text() == (calib, False)
            if is_same and made.reason in (None, current.reason):
                return
            if self._keep and current.memory.digest != memory.digest and self._memory.exists():
                self._keep_file(self._memory, self.memory_path(current))
        if memory is not None:
            number = max([*(each.number for each in numbered), 0 if current is None else current.number]) + 1
            coming = Version(
                number=number,
                kind=made.kind,
                at=now_text(),
                reason=made.reason,
                activates=made.activates,
                memory=memory,
                calib=calib,
            )
            self._write(self._folder / coming.pending_name, version_bytes(coming))

    def _prune(self) -> int:
        numbered, pending = self._records()
        current = self._in_force(numbered, pending)
        others = [version for version in numbered if version is not current]
        too_many = others[: max(0, len(others) - self._keep)]
        self.drop(*too_many)
        return len(too_many)

    def _unused_memories(self) -> list[Path]:
        """Return the memories that no version has, and that in force, which lies elsewhere."""
        names = names_in(self._folder)
        used = {match["memory"] for name in names if (match := RECORD_NAME.fullmatch(name))}
        in_force = f"{(memory_digest(self._memory) or '')[:16]}.npz"
        memories = [name for name in names if name.endswith(".npz")]
        return [self._folder / name for name in memories if name.removesuffix(".npz") not in used or name == in_force]

    def _records(self) -> tuple[list[Version], Version | None]:
        """Return the versions that have a number, oldest first, and the one that is next."""
        found: dict[int, Version] = {}
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
            if match["number"] == _NEXT:
                pending = version
            elif name == version.record_name:
                found[version.number] = version
        return [found[number] for number in sorted(found)], pending

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
        text = None
        try:
            text = calib_in_force(data, self._memory)
            if text is not None:
                calibrations_from_bytes(text)
        except OutdatedFormat:
            pass
        except ValueError:
            return None, True
        return None if text is None else text.decode(), False

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
