"""Whether the versions of a ROI have all that belongs to them, and nothing else, by the names of its files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from backend.artifacts.layout import Entry
from backend.artifacts.model_key import ModelKey
from backend.artifacts.versions import RECORD_NAME, memory_digest
from backend.errors import InspectionError


def problems_of_versions(
    entries: Sequence[Entry],
) -> Iterator[tuple[Path, tuple[Literal["leftover", "missing"], str]]]:
    """Yield the files of versions that lack something, or that nothing needs, and what that is.

    Args:
        entries: The files of a ROI, or of none.
    """
    by_model: dict[ModelKey, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.artifact.key is not None and entry.artifact.kind in ("version", "kept_memory"):
            by_model[entry.artifact.key].append(entry)
    for of_model in by_model.values():
        yield from _of_model(of_model)


def _of_model(entries: Sequence[Entry]) -> Iterator[tuple[Path, tuple[Literal["leftover", "missing"], str]]]:
    in_force = _name_in_force(entries[0].path.parent.parent)
    records = [
        (entry, match)
        for entry in entries
        if not entry.artifact.set_aside and (match := RECORD_NAME.fullmatch(entry.path.name))
    ]
    memories = {entry.path.name.partition(".")[0]: entry for entry in entries if entry.artifact.kind == "kept_memory"}
    used = {match["memory"] for _, match in records} - {in_force}
    for name, entry in memories.items():
        if name not in used and not entry.artifact.set_aside:
            yield entry.path, ("leftover", "a memory that no version needs; a service sweeps it")
    numbers = {int(match["number"]): match["memory"] for _, match in records if match["number"] != "next"}
    newest = numbers[max(numbers)] if numbers else ""  # in force as a rule: whatever is wrong with it has another name
    for entry, match in records:
        if match["number"] == "next":
            yield entry.path, ("leftover", "of a switch that a crash cut off; a service sweeps it")
        elif match["memory"] not in {*memories, in_force, newest}:
            yield entry.path, ("missing", "the memory of this version is gone: it cannot be brought back; delete it")


def _name_in_force(model_folder: Path) -> str:
    try:
        return (memory_digest(model_folder / "memory.npz") or "")[:16]
    except InspectionError:  # not to be read: reported under its own name
        return ""
