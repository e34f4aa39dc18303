"""Bringing the ROIs of an archive back, on this machine or another.

An archive may come from anywhere, so nothing in it is believed: names are compared with those that a backup writes,
sizes with what is really unpacked, every file with its digest, and what was unpacked is verified as a whole before any
of it becomes visible.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from backend.artifacts.files import make_folder, scratch_folder, sync_folder, sync_tree, writing
from backend.artifacts.formats import bank_from_bytes, calibrations_from_bytes
from backend.artifacts.layout import Place, files_below, place_of
from backend.artifacts.model_key import ModelKey, folder_name
from backend.errors import InspectionError, StorageFull
from backend.maintenance.backup import ARCHIVE_FORMAT, CARRIED, MANIFEST, ArchiveError, carried_files, rois
from backend.maintenance.verifying import verify_roi
from backend.storage import ArtefactStore

MAX_MEMBERS: Final = 1_000_000
MAX_MANIFEST_BYTES: Final = 512 * 2**20
MAX_RATIO: Final = 200
"""Unpacked ÷ packed; facts and manifests come to 10."""

_MEMBER: Final = re.compile(r"rois/(0|[1-9]\d{0,5})/([!-~]+)")
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_CHUNK: Final = 2**20
_REFUSED: Final = "The archive is refused, and nothing was changed: "


@dataclass(frozen=True, kw_only=True)
class _Member:
    info: zipfile.ZipInfo
    key: ModelKey
    place: Place
    inner: PurePosixPath
    sha256: str


def restore(archive: Path, models_dir: Path, *, replace: bool = False) -> list[ModelKey]:
    """Bring the ROIs of an archive back and return them.

    Each ROI changes in one switch: a reader sees its old memory and calibration, or the new ones.

    Args:
        archive: What ``back_up`` wrote.
        models_dir: The models folder; made where there is none. A service may run on it.
        replace: Let a ROI take the place of one that is there.

    Raises:
        ArchiveError: If the archive is not sound in every point, or a ROI is there already; nothing was changed then.
        StorageFull, StorageFailed: If it cannot be unpacked.
    """
    store = ArtefactStore(models_dir)
    with writing(), scratch_folder(models_dir) as scratch:
        unpacked = ArtefactStore(scratch)
        keys = _unpack(archive, unpacked)
        there = {*rois(store)} & {*keys}
        if there and not replace:
            names = ", ".join(sorted(map(str, there)))
            raise ArchiveError(
                f"{_REFUSED}there already are {names}. Use --replace to put the archive's in their place."
            )
        for key in keys:
            if problems := verify_roi(scratch, key):
                raise ArchiveError(f"{_REFUSED}what it holds of {key} is not sound: {problems[0]}")
        for key in keys:
            for _, place in carried_files(unpacked, key):
                if place.kind == "memory" and place.key is not None:
                    unpacked.renew_index(place.key)
        sync_tree(scratch)
        for key in keys:
            _put(unpacked, store, key, replace=replace)
    return keys


def _unpack(archive: Path, into: ArtefactStore) -> list[ModelKey]:
    """Unpack what can be believed, file by file, and return the ROIs."""
    try:
        with zipfile.ZipFile(archive) as opened:
            keys, members = _members(opened, archive.stat().st_size)
            n_bytes = sum(member.info.file_size for member in members)
            if n_bytes > shutil.disk_usage(into.models_dir).free:
                raise StorageFull(f"The archive unpacks to {n_bytes / 1e9:.3g} GB; the disk has not as much room.")
            for member in members:
                _extract(opened, member, into)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise ArchiveError(f"{_REFUSED}it is no sound zip file ({error}).") from error
    except FileNotFoundError as error:
        raise ArchiveError(f"There is no archive {archive}.") from error
    return keys


def _members(opened: zipfile.ZipFile, archive_bytes: int) -> tuple[list[ModelKey], list[_Member]]:
    """Return the ROIs and members of an archive, after comparing all names and headers with its manifest."""
    infos = opened.infolist()
    if len(infos) > MAX_MEMBERS:
        raise ArchiveError(f"{_REFUSED}it has {len(infos)} members; at most {MAX_MEMBERS} are allowed.")
    if sum(info.compress_size for info in infos) > archive_bytes:
        raise ArchiveError(f"{_REFUSED}its members overlap.")
    for info in infos:
        _check_header(info)
    by_name = {info.filename.casefold(): info for info in infos}
    if len(by_name) != len(infos):
        raise ArchiveError(f"{_REFUSED}a name stands twice in it.")
    keys, files = _manifest(opened, by_name.get(MANIFEST))
    members = [_member(info, keys, files.get(info.filename)) for info in infos if info.filename != MANIFEST]
    if len(members) != len(files):
        raise ArchiveError(f"{_REFUSED}its manifest names files that it does not hold.")
    return keys, members


def _check_header(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name != info.filename or (name != MANIFEST and not _MEMBER.fullmatch(name)):
        raise ArchiveError(f"{_REFUSED}it holds the name {name[:200]!r}, which no backup writes.")
    if kind not in (0, stat.S_IFREG):
        raise ArchiveError(f"{_REFUSED}{name} is a link or another thing that is no file.")
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{_REFUSED}{name} is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{_REFUSED}{name} is packed in a way that no backup uses.")
    if info.file_size > MAX_RATIO * max(info.compress_size, 1024):
        raise ArchiveError(f"{_REFUSED}{name} would unpack to more than {MAX_RATIO} times its size.")


def _manifest(
    opened: zipfile.ZipFile, info: zipfile.ZipInfo | None
) -> tuple[list[ModelKey], dict[str, tuple[int, str]]]:
    """Return the ROIs, and the size and digest of each file."""
    if info is None:
        raise ArchiveError(f"{_REFUSED}it has no {MANIFEST}; it is no backup of this service.")
    if info.file_size > MAX_MANIFEST_BYTES:
        raise ArchiveError(f"{_REFUSED}its manifest is too large.")
    try:
        manifest: dict[str, Any] = json.loads(opened.read(info))
        if manifest["format"] != ARCHIVE_FORMAT:
            raise ArchiveError(
                f"{_REFUSED}it is of format {manifest['format']!r}; this version reads {ARCHIVE_FORMAT}."
            )
        keys = [
            ModelKey(**{name: roi[name] for name in ("recipe_id", "role_id", "roi_id")}) for roi in manifest["rois"]
        ]
        files = {name: (int(line["size"]), str(line["sha256"])) for name, line in manifest["files"].items()}
    except ArchiveError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InspectionError) as error:
        raise ArchiveError(f"{_REFUSED}its manifest cannot be read.") from error
    if not keys or len({*keys}) != len(keys):
        raise ArchiveError(f"{_REFUSED}its manifest names no ROI, or one of them twice.")
    return keys, files


def _member(info: zipfile.ZipInfo, keys: list[ModelKey], line: tuple[int, str] | None) -> _Member:
    match = _MEMBER.fullmatch(info.filename)
    if match is None or line is None or int(match[1]) >= len(keys):
        raise ArchiveError(f"{_REFUSED}{info.filename[:200]!r} is not in its manifest.")
    key, inner = keys[int(match[1])], PurePosixPath(match[2])
    role, roi = folder_name(key.role_id, escape_all=True), folder_name(key.roi_id, escape_all=True)
    place = place_of(PurePosixPath(role, roi, inner)) if inner.as_posix() == match[2] else None
    if place is None or place.kind not in CARRIED or place.set_aside:
        raise ArchiveError(f"{_REFUSED}it holds the name {info.filename[:200]!r}, which no backup writes.")
    if line[0] != info.file_size:
        raise ArchiveError(f"{_REFUSED}the size of {info.filename} is not that of the manifest.")
    model_key = "" if place.key is None else place.key.model_key
    if inner.parts[0] == "keys" and inner.parts[1] != folder_name(model_key, escape_all=True):
        raise ArchiveError(f"{_REFUSED}it holds the name {info.filename[:200]!r}, which no backup writes.")
    own = ModelKey(recipe_id=key.recipe_id, role_id=key.role_id, roi_id=key.roi_id, model_key=model_key)
    return _Member(info=info, key=own, place=place, inner=inner, sha256=line[1])


def _extract(opened: zipfile.ZipFile, member: _Member, into: ArtefactStore) -> None:
    """Unpack one file; no more of it than its header announced."""
    path = into.roi_folder(member.key).joinpath(*member.inner.parts)
    if member.inner.parts[0] == "keys":
        path = into.model_folder(member.key) / member.inner.name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), member.info.file_size
    with opened.open(member.info) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            target.write(chunk)
    if left != 0 or digest.hexdigest() != member.sha256:
        raise ArchiveError(f"{_REFUSED}{member.info.filename} does not match its digest.")


def _put(unpacked: ArtefactStore, store: ArtefactStore, key: ModelKey, *, replace: bool) -> None:
    """Make an unpacked ROI visible."""
    source, target = unpacked.roi_folder(key), store.roi_folder(key)
    n_bytes = sum(status.st_size for _, status in files_below(source))
    if not target.exists():
        make_folder(target.parent)
        try:
            with store.disk.room_for(target, n_bytes):
                source.rename(target)
        except OSError:
            if not target.exists():
                raise
        else:
            sync_folder(target.parent)
            return
    with store.lock(key):
        if not replace and any(True for _ in carried_files(store, key)):
            raise ArchiveError(f"{key} has come into being meanwhile. Use --replace to put the archive's in its place.")
        _put_over(unpacked, store, key)


def _put_over(unpacked: ArtefactStore, store: ArtefactStore, key: ModelKey) -> None:
    """Bring a ROI into a folder that is in use: images, then each memory with its calibration, then the old goes."""
    source, target = unpacked.roi_folder(key), store.roi_folder(key)
    new: set[Path] = set()
    models: list[tuple[ModelKey, Path]] = []
    for path, place in sorted(carried_files(unpacked, key), key=lambda found: found[1].kind == "facts"):
        if place.kind == "memory" and place.key is not None:
            models.append((place.key, path))
        elif place.kind != "calibration":
            aim = target / path.relative_to(source)
            store.write(aim, path.read_bytes())
            new.add(aim)
    for model, path in models:
        bank = bank_from_bytes(path.read_bytes())
        kept = path.with_name("calib.json")
        calibrations = calibrations_from_bytes(kept.read_bytes()) if kept.exists() else []
        own = next((each for each in calibrations if each.memory_checksum == bank.checksum), None)
        store.save_bank(model, bank, own)
        folder = store.model_folder(model)
        new |= {folder / "memory.npz", folder / "index.faiss"}
        if calibrations:
            store.write(folder / "calib.json", kept.read_bytes())
            new.add(folder / "calib.json")
    old = {path for path, _ in files_below(target) if path.name != ".lock" and path not in new}
    for label in ("ok", "ng"):
        images = store.images(key)
        gone = [image.digest for image in images.labelled(label) if _facts(target, label, image.digest) in old]
        images.delete_all(gone, label)
    store.remove(*(path for path in old if path.exists() and ".corrupt-" not in path.name))


def _facts(target: Path, label: str, digest: str) -> Path:
    return target / "images" / label / f"{digest}.json"
