"""Whether the versions of a ROI have all that belongs to them, and nothing else, by the names of its files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
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
    memories = {
        entry.path.stem: entry
        for entry in entries
        if entry.artifact.kind == "kept_memory" and not entry.artifact.set_aside
    }
    used = {match["memory"] for _, match in records} - {in_force}
    for name, entry in memories.items():
        if name not in used:
            yield entry.path, ("leftover", "a memory that no version needs; a service sweeps it")
    numbers = {int(match["number"]): match["memory"] for _, match in records if match["number"] != "next"}
    newest = numbers[max(numbers)] if numbers else ""  # in force as a rule: whatever is wrong with it has another name
    for entry, match in records:
        if match["number"] == "next":
            yield entry.path, ("leftover", "of a switch that a crash cut off; a service sweeps it")
        elif match["memory"] not in {*memories, in_force, newest}:
            yield entry.path, ("missing", "the memory of this version is gone: it cannot be brought back; delete it")


def without_versions(entries: Sequence[Entry], names: Collection[str]) -> list[Entry]:
    """Return the files of a ROI without some files of its versions, and without the records of lost memories.

    Args:
        entries: The files.
        names: Those that are left out.
    """
    memories = {
        (entry.artifact.key, entry.path.stem)
        for entry in entries
        if entry.artifact.kind == "kept_memory" and entry.name not in names and not entry.artifact.set_aside
    }
    memories |= {
        (entry.artifact.key, _name_in_force(entry.path.parent)) for entry in entries if entry.artifact.kind == "memory"
    }
    return [
        entry
        for entry in entries
        if entry.artifact.kind != "version"
        or ((match := RECORD_NAME.fullmatch(entry.path.name)) and (entry.artifact.key, match["memory"]) in memories)
        if entry.artifact.kind not in ("version", "kept_memory") or entry.name not in names
    ]


def _name_in_force(model_folder: Path) -> str:
    try:
        return (memory_digest(model_folder / "memory.npz") or "")[:16]
    except InspectionError:  # not to be read: reported under its own name
        return ""
