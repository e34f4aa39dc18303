"""Bringing the ROIs of an archive back, on this machine or another.

An archive may come from anywhere, so nothing in it is believed: names are compared with those that a backup writes,
sizes with what is really unpacked, every file with its digest, and what was unpacked is verified as a whole before any
of it becomes visible.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from backend.artifacts.files import make_folder, replace, scratch_folder, sync_folder, sync_tree, writing
from backend.artifacts.layout import CORRUPT_MARK, Entry, classify_path, walk
from backend.artifacts.model_key import ModelKey, folder_name
from backend.errors import ArtefactOutdated, InspectionError, StorageFull
from backend.maintenance.backup import ARCHIVE_FORMAT, MANIFEST, ArchiveError, in_model_folder, is_carried, member_name
from backend.maintenance.verifying import Problem, verify_entries
from backend.storage import ArtefactStore

MAX_MANIFEST_BYTES: Final = 512 * 2**20
MAX_RATIO: Final = 200
"""Unpacked ÷ packed; facts and manifests come to 10."""

_MEMBER: Final = re.compile(r"rois/(0|[1-9]\d{0,5})/([ -~]+)")
_UNSOUND_ZIP: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OverflowError
)  # fmt: skip


def restore(archive: Path, models_dir: Path, *, replace: bool = False) -> dict[ModelKey, list[Problem]]:
    """Bring the ROIs of an archive back.

    A memory and its calibration change in one switch: a reader sees the old ones, or the new ones.

    Args:
        archive: What ``back_up`` wrote.
        models_dir: The models folder; made where there is none. A service may run on it.
        replace: Let a ROI take the place of one that is there.

    Returns:
        For each of the ROIs what of it is of an older format and has to be made again; mostly nothing.

    Raises:
        ArchiveError: If the archive is not sound in every point, or a ROI is there already; nothing was changed then.
        StorageFull, StorageFailed: If it cannot be unpacked.
        Unavailable: If a ROI is locked for long.
    """
    store = ArtefactStore(models_dir)
    with writing(), scratch_folder(models_dir) as scratch:
        unpacked = ArtefactStore(scratch)
        keys = _unpack(archive, unpacked)
        there = ", ".join(sorted(str(key) for key in keys if not replace and _is_there(store, key)))
        _require(not there, f"there already are {there}. Use --replace to put the archive's in their place")
        entries = {key: [*walk(scratch, unpacked.roi_folder(key))] for key in keys}
        problems = {key: verify_entries(entries[key]) for key in keys}
        for key, found in problems.items():
            for problem in found:
                _require(problem.fault == "outdated", f"what it holds of {key} is not sound: {problem}")
        sync_tree(scratch)
        for key in keys:
            with store.lock(key):
                if not replace and _is_there(store, key):
                    raise ArchiveError(f"{key} is new since. Use --replace to put the archive's in its place.")
                _put(entries[key], unpacked, store, key)
    return problems


def _refusal(why: str) -> ArchiveError:
    return ArchiveError(f"The archive is refused, and nothing was changed: {why}.")


def _require(condition: bool, why_not: str) -> None:
    if not condition:
        raise _refusal(why_not)


def _is_there(store: ArtefactStore, key: ModelKey) -> bool:
    return any(is_carried(entry.artifact) for entry in walk(store.models_dir, store.roi_folder(key)))


def _unpack(archive: Path, into: ArtefactStore) -> list[ModelKey]:
    """Unpack what can be believed, file by file, and return the ROIs."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive.stat().st_size)
            keys, files = _manifest(opened, members.pop(MANIFEST, None))
            sizes = {name: info.file_size for name, info in members.items()}
            _require({name: size for name, (size, _) in files.items()} == sizes, "its manifest names other files")
            paths = {name: _path(name, keys, into) for name in members}
            n_bytes = sum(sizes.values())
            if n_bytes > shutil.disk_usage(into.models_dir).free:
                raise StorageFull(f"The archive unpacks to {n_bytes / 1e9:.3g} GB; the disk has not that much space.")
            for name, path in paths.items():
                data = opened.read(members[name])  # no more than the header announced
                _require(sha256(data).hexdigest() == files[name][1], f"{name} does not match its digest")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except FileNotFoundError as error:
        raise ArchiveError(f"There is no archive {archive}.") from error
    except ArchiveError:
        raise
    except _UNSOUND_ZIP as error:
        raise _refusal(f"it is no sound zip file ({error})") from error
    return keys


def _members(opened: zipfile.ZipFile, archive_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by name, after a look at all their headers."""
    infos = opened.infolist()
    _require(sum(info.compress_size for info in infos) <= archive_bytes, "its members overlap")
    _require(min((info.header_offset for info in infos), default=0) >= 0, "a member begins before the archive")
    _require(len({info.filename.casefold() for info in infos}) == len(infos), "a name stands twice in it")
    for info in infos:
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        _require(name == info.filename, f"it holds the name {name[:200]!r}, which no backup writes")
        _require(kind in (0, stat.S_IFREG), f"{name} is a link or another thing that is no file")
        is_usual = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        _require(is_usual, f"{name} is packed in a way that no backup uses")
        is_small = info.file_size <= MAX_RATIO * max(info.compress_size, 1024)
        _require(is_small, f"{name} would unpack to more than {MAX_RATIO} times its size")
    return {info.filename: info for info in infos}


def _manifest(
    opened: zipfile.ZipFile, info: zipfile.ZipInfo | None
) -> tuple[list[ModelKey], Mapping[str, tuple[int, str]]]:
    """Return the ROIs, and the size and digest of each file."""
    if info is None:
        raise _refusal(f"it is no backup, it has no {MANIFEST}")
    _require(info.file_size <= MAX_MANIFEST_BYTES, "its manifest is too large")
    try:
        manifest: dict[str, Any] = json.loads(opened.read(info))
        version = manifest["format"]
        _require(version == ARCHIVE_FORMAT, f"it is of format {version!r}; this version reads {ARCHIVE_FORMAT}")
        keys = [
            ModelKey(**{name: roi[name] for name in ("recipe_id", "role_id", "roi_id")}) for roi in manifest["rois"]
        ]
        files = {name: (int(line["size"]), str(line["sha256"])) for name, line in manifest["files"].items()}
    except ArchiveError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InspectionError) as error:
        raise _refusal("its manifest cannot be read") from error
    _require(len({*keys}) == len(keys) > 0, "its manifest names no ROI, or one of them twice")
    return keys, files


def _path(member: str, keys: list[ModelKey], into: ArtefactStore) -> Path:
    """Return where a member is unpacked to, if its name is one that a backup of these ROIs writes."""
    match = _MEMBER.fullmatch(member)
    number, inner = (0, "") if match is None else (int(match[1]), match[2])
    _require(number < len(keys), f"{member[:200]!r} is of no ROI of its manifest")
    roi = keys[number]
    folders = (folder_name(an_id, escape_all=True) for an_id in (roi.role_id, roi.roi_id))
    artifact = classify_path("/".join([*folders, inner]))
    is_known = is_carried(artifact) and inner == member_name(inner, artifact)
    _require(is_known, f"it holds the name {member[:200]!r}, which no backup writes")
    if artifact.key is None or artifact.key.is_default_model:
        return into.roi_folder(roi) / inner
    return into.model_folder(changed(roi, model_key=artifact.key.model_key)) / in_model_folder(inner)


def _put(entries: list[Entry], unpacked: ArtefactStore, store: ArtefactStore, key: ModelKey) -> None:
    """Bring an unpacked ROI into its folder: images, then each memory with its calibration, then the old ones go.

    Its earlier versions come last: they take the place of those of what was there.
    """
    target = store.roi_folder(key)
    new: set[Path] = set()
    for kinds in ({"image", "embeddings"}, {"facts"}):  # an image counts from the moment that its facts are there
        new |= _move([entry for entry in entries if entry.artifact.kind in kinds], unpacked, store, key)
    models = [entry.artifact.key for entry in entries if entry.artifact.kind in ("memory", "calibration")]
    for model in dict.fromkeys(model for model in models if model is not None):
        new |= _put_model(unpacked, store, model)
    old = [entry for entry in walk(store.models_dir, target) if entry.artifact.key and entry.artifact.kind != "lock"]
    # What was set aside stays for whoever wants to know why, where something has taken its place.
    gone = [entry for entry in old if entry.path.with_name(entry.path.name.partition(CORRUPT_MARK)[0]) not in new]
    store.remove(*(entry.path for entry in gone if entry.artifact.kind == "facts"))
    store.remove(*(entry.path for entry in gone if entry.artifact.kind != "facts"))
    for kind in ("kept_memory", "version"):
        _move([entry for entry in entries if entry.artifact.kind == kind], unpacked, store, key)


def _move(entries: Sequence[Entry], unpacked: ArtefactStore, store: ArtefactStore, key: ModelKey) -> set[Path]:
    """Move unpacked files into a ROI's folder, and return where they are."""
    moved: set[Path] = set()
    for entry in entries:
        of_model = entry.artifact.key or key
        source, target = (each.model_folder(of_model) for each in (unpacked, store))
        if entry.artifact.kind not in ("kept_memory", "version"):
            source, target = unpacked.roi_folder(key), store.roi_folder(key)
        final = target / entry.path.relative_to(source)
        make_folder(final.parent)
        replace(entry.path, final)
        moved.add(final)
    for folder in {final.parent for final in moved}:
        sync_folder(folder)
    return moved


def _put_model(unpacked: ArtefactStore, store: ArtefactStore, model: ModelKey) -> set[Path]:
    """Make an unpacked memory and calibration a model's own; return the files that it has then."""
    source, folder = unpacked.model_folder(model), store.model_folder(model)
    names = {name for name in ("memory.npz", "calib.json") if (source / name).exists()}
    written = {folder / name for name in names}
    try:
        stored = unpacked.load(model)
    except ArtefactOutdated:
        stored = None
    if stored is not None and stored.bank is not None:
        store.save_bank(model, stored.bank, None if stored.calibration_fault else stored.calibration)
        names.discard("memory.npz")
        written.add(folder / "index.faiss")
    for name in sorted(names, reverse=True):
        store.write(folder / name, (source / name).read_bytes())
    return written
