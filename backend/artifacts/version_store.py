"""The versions of one model: what was in force before, kept so that a crash at any moment loses and mixes nothing.

A switch to another memory or calibration leaves what it replaces behind, in this order: the memory in force gets a
second name among the versions; the record of what comes is written as ``next-…``; the switch itself; the record gets
its number. A record that is next is that of the version in force if the switch was made, and of nothing if it was not.
So no version is half there: its calibrations are in its record, and its memory is there before it is replaced.

What is kept is never more important than what is to be stored: a version that cannot be kept is lost, with a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.artifacts.files import names_in, stamp, sync_folder, writing
from backend.artifacts.files import replace as rename
from backend.artifacts.version_reader import VersionReader
from backend.artifacts.versions import (
    NAME_DIGITS,
    NEXT,
    RECORD_NAME,
    Made,
    MemorySummary,
    Version,
    memory_digest,
    now_text,
    version_bytes,
)
from backend.errors import Unavailable

_log = logging.getLogger(__name__)


class VersionStore(VersionReader):
    """The versions below one model's folder. What changes them is called under the ROI's lock.

    Args:
        model_folder: The folder.
        found_damaged: As of ``VersionReader``.
        keep: Most versions that are kept beside the one in force.
        write: Writes a file durably.
        remove: Deletes files durably.
        keep_file: Keeps a file under a second name, linked or copied.
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
        super().__init__(model_folder, found_damaged=found_damaged)
        self._keep = keep
        self._write, self._remove, self._keep_file = write, remove, keep_file

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
            self.tidy()
            raise
        self.tidy()

    def tidy(self) -> None:
        """Number the version that came into force, and delete what is too much, or cannot be brought back."""
        try:
            self.settle()
            self._prune()
        except Unavailable:  # What was to be stored is stored; the next switch or sweep tidies.
            _log.exception("the versions could not be tidied")

    def sweep(self) -> int:
        """Tidy what a crash or a lower limit has left; return how many files that were."""
        before = len(names_in(self._folder))
        self.tidy()
        return before - len(names_in(self._folder))

    def is_untidy(self) -> bool:
        """Return whether a crash or a lower limit has left something to tidy; raises StorageFailed."""
        names = names_in(self._folder)
        records = [match for name in names if (match := RECORD_NAME.fullmatch(name))]
        memories = {name.removesuffix(".npz") for name in names if name.endswith(".npz")}
        in_force = (memory_digest(self._memory) or "")[:NAME_DIGITS]
        used = {match["memory"] for match in records} - {in_force}
        has_next = any(match["number"] == NEXT for match in records)
        return has_next or len(records) > self._keep + 1 or (memories != used and bool(in_force))

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

    def droppable(self) -> list[tuple[int, int, Version]]:
        """Return what can be given up, oldest first: versions with the time of each, ns, and the bytes that it takes.

        The bytes of a memory that several share are those of the last of them. What is in force is there while it is
        being left, with the second name of its memory.
        """
        numbered, pending = self._records()
        current = self._in_force(numbered, pending)
        others = [version for version in numbered if version is not current]
        last = {version.memory.name: version.number for version in others}
        if current is not None:
            last.pop(current.memory.name, None)
        found = []
        for version in others:
            record, memory = stamp(self._folder / version.record_name), stamp(self.memory_path(version))
            if record is not None:
                is_last = memory is not None and last.get(version.memory.name) == version.number
                found.append((record[0], record[1] + (memory[1] if memory and is_last else 0), version))
        if current is not None and (memory := stamp(self.memory_path(current))) is not None:
            found.append((time.time_ns(), memory[1], current))
        return found

    def give_up(self, version: Version) -> None:
        """Delete what ``droppable`` says of a version; needs no lock.

        Raises:
            StorageFailed: If a file cannot be deleted.
        """
        if version == self._in_force(*self._records()):
            self._remove(self.memory_path(version))
        else:
            self.drop(version)

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
            if self._keep and current.memory.digest != memory.digest and stamp(self._memory) is not None:
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

    def _prune(self) -> None:
        numbered, pending = self._records()
        current = self._in_force(numbered, pending)
        others = [version for version in numbered if version is not current]
        if current is not None:  # else nobody knows whose memory it is that is not there
            self.drop(*(version for version in others if not self.has_memory(version)))
            others = [version for version in others if self.has_memory(version)]
        self.drop(*others[: max(0, len(others) - self._keep)])
        own = None if current is None or stamp(self._memory) is None else self.memory_path(current)
        if own is not None and stamp(own) is not None:
            self._remove(own)  # it lies elsewhere

    def _unused_memories(self) -> list[Path]:
        """Return the memories that no version has."""
        names = names_in(self._folder)
        used = {match["memory"] for name in names if (match := RECORD_NAME.fullmatch(name))}
        return [
            self._folder / name for name in names if name.endswith(".npz") and name.removesuffix(".npz") not in used
        ]
