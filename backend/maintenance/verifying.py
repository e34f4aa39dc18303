"""Whether a models folder is sound: every file is read, and compared with its digest and with what it belongs to.

A service may write meanwhile. A ROI in which something seems wrong is looked at again under its lock, so that a fit
that was caught half-way is not taken for damage. Nothing is changed.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np

from backend.artifacts.files import is_ownerless
from backend.artifacts.formats import bank_from_bytes, calibrations_from_bytes
from backend.artifacts.image_store import StoredImage, facts_from_bytes, rows_from_bytes
from backend.artifacts.layout import Place, files_below, leftover_of, place_of
from backend.artifacts.model_key import ModelKey
from backend.errors import InspectionError
from backend.imaging.image_codec import decode_image, pixel_digest
from backend.memory_bank.index import faiss_bytes
from backend.services.jobs import job_from_bytes
from backend.storage import ArtefactStore
from backend.utils import sha256_hex

Fault = Literal["damaged", "missing", "mismatch", "set_aside", "leftover", "unknown", "unreadable"]
Progress = Callable[[int, int], None]
"""Told (files looked at, files in all)."""

_LOCK_PATIENCE_S = 60.0
_ANY_PIXELS = 2**31


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        path: Below the models folder, with forward slashes.
        fault: ``damaged`` (its digest does not match), ``missing``, ``mismatch`` (sound, but not what belongs there),
            ``set_aside`` (found damaged earlier; what it held is missing until it is made again), ``leftover`` (of a
            crash; a service sweeps it when it starts), ``unknown`` (nothing of ours) or ``unreadable``.
        sentence: What it is and what to do.
    """

    path: str
    fault: Fault
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}: {self.sentence}"


def verify_folder(models_dir: Path, *, progress: Progress | None = None) -> list[Problem]:
    """Return what is wrong below a models folder, by path; an empty list when all is well.

    Args:
        models_dir: The folder; one that does not exist has nothing wrong with it.
        progress: Told after each file.

    Raises:
        OSError: If a folder cannot be listed.
    """
    store = ArtefactStore(models_dir)
    rois: dict[ModelKey | None, list[PurePosixPath]] = defaultdict(list)
    for path in _paths(models_dir):
        place = place_of(path)
        rois[None if place is None or place.key is None else _roi(place.key)].append(path)
    total, done = sum(map(len, rois.values())), 0
    problems: list[Problem] = []
    for key, paths in rois.items():

        def advance() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(min(done, total), total)

        found = [*_look(models_dir, paths, advance)]
        if found and key is not None:
            found = _look_again(store, key)
        problems += found
    return sorted(problems)


def verify_roi(models_dir: Path, key: ModelKey) -> list[Problem]:
    """Return what is wrong with one ROI, by path. Hold its lock, or be the only one who knows of it."""
    folder = ArtefactStore(models_dir).roi_folder(key)
    return sorted(_look(models_dir, _paths(models_dir, folder), lambda: None))


def _look_again(store: ArtefactStore, key: ModelKey) -> list[Problem]:
    try:
        with store.lock(key, timeout_s=_LOCK_PATIENCE_S):
            return verify_roi(store.models_dir, key)
    except InspectionError:
        # Somebody fits for long, or we may not write here. Two looks that agree are the best there is.
        first = verify_roi(store.models_dir, key)
        time.sleep(1.0)
        second = {*verify_roi(store.models_dir, key)}
        return [problem for problem in first if problem in second]


def _paths(models_dir: Path, below: Path | None = None) -> list[PurePosixPath]:
    found = files_below(below or models_dir)
    return [PurePosixPath(path.relative_to(models_dir).as_posix()) for path, _ in found]


def _look(models_dir: Path, paths: Iterable[PurePosixPath], advance: Callable[[], None]) -> Iterator[Problem]:
    """Yield what is wrong with files, and with what should lie beside them."""
    places: dict[PurePosixPath, Place] = {}
    for path in paths:
        place = place_of(path)
        if place is None:
            yield Problem(path=str(path), fault="unknown", sentence="no file of this service; move it elsewhere")
            advance()
        else:
            places[path] = place
    live = {_identity(place) for place in places.values() if not place.set_aside}
    described = {(place.key, place.label, place.digest) for place in places.values() if place.kind == "facts"}
    for path, place in places.items():
        if place.set_aside:
            if _identity(place) not in live:
                yield Problem(path=str(path), fault="set_aside", sentence=_REMEDIES[place.kind])
        elif (leftover := leftover_of(path)) is not None:
            if is_ownerless(models_dir / leftover, time.time()):
                yield Problem(
                    path=str(path), fault="leftover", sentence="of a crash; a service sweeps it when it starts"
                )
        else:
            yield from _checked(models_dir, path, place)
            if place.kind == "image" and (place.key, place.label, place.digest) not in described:
                sentence = "an image without its facts, which counts as not stored; a service sweeps it when it starts"
                yield Problem(path=str(path), fault="leftover", sentence=sentence)
        advance()


def _checked(models_dir: Path, path: PurePosixPath, place: Place) -> Iterator[Problem]:
    try:
        if place.kind in _CHECKS:
            file = _File(Path(models_dir, path).read_bytes(), place, Path(models_dir, path))
            for fault, sentence in _CHECKS[place.kind](file):
                yield Problem(path=str(path), fault=fault, sentence=sentence)
    except FileNotFoundError:
        return  # deleted since it was listed
    except OSError as error:
        yield Problem(path=str(path), fault="unreadable", sentence=os.strerror(error.errno or 0))


@dataclass(frozen=True)
class _File:
    data: bytes
    place: Place
    path: Path


Findings = Iterator[tuple[Fault, str]]


def _memory(file: _File) -> Findings:
    try:
        bank_from_bytes(file.data)
    except ValueError as error:
        yield "damaged", f"{error}; {_REMEDIES['memory']}"


def _index(file: _File) -> Findings:
    try:
        bank = bank_from_bytes(file.path.with_name("memory.npz").read_bytes())
    except FileNotFoundError:
        yield "mismatch", "an index without a memory; delete it"
    except ValueError:
        return  # told of under the memory's own name
    else:
        expected = faiss_bytes(bank.vectors)
        if expected is not None and expected != file.data:
            yield "mismatch", "not the index of the memory beside it; delete it, a service writes it at its start"


def _calibration(file: _File) -> Findings:
    try:
        calibrations_from_bytes(file.data)
    except ValueError as error:
        yield "damaged", f"{error}; {_REMEDIES['calibration']}"


def _facts(file: _File) -> Findings:
    try:
        image = facts_from_bytes(file.data, file.place.digest, "ng" if file.place.label == "ng" else "ok")
    except ValueError as error:
        yield "damaged", f"{error}; {_REMEDIES['facts']}"
        return
    yield from _pixels(image, file.path.with_suffix(image.suffix))


def _pixels(image: StoredImage, path: Path) -> Findings:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        yield "missing", f"the image that it describes, {image.file_name}, is gone; upload it again, or delete it"
        return
    if sha256_hex(data) != image.bytes_sha256:
        yield "damaged", f"the image that it describes, {image.file_name}, has changed; {_REMEDIES['image']}"
        return
    try:
        digest = pixel_digest(decode_image(data, max_pixels=_ANY_PIXELS))
    except InspectionError as error:
        yield "damaged", f"{error}; {_REMEDIES['image']}"
        return
    if digest != image.digest:
        yield "mismatch", f"the pixels of {image.file_name} are not those of its name; {_REMEDIES['image']}"


def _embeddings(file: _File) -> Findings:
    if rows_from_bytes(file.data) is None:
        yield "damaged", "embeddings that a fit makes again by itself; delete them"


def _heatmap(file: _File) -> Findings:
    if not file.data or cv2.imdecode(np.frombuffer(file.data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        yield "damaged", "a heat map that cannot be read; delete it"


def _job(file: _File) -> Findings:
    try:
        job = job_from_bytes(file.data)
    except ValueError as error:
        yield "damaged", f"{error}; nobody can ask for this job any more, delete it"
        return
    if job.job_id != file.path.stem:
        yield "mismatch", "the file of another job; delete it"


def _engine(file: _File) -> Findings:
    if file.path.name != "model.xml":
        return
    try:
        sums = file.path.with_name("SHA256SUMS").read_text("ascii", errors="replace").splitlines()
        names = ("model.xml", "model.bin")
        sound = all(f"{sha256(file.path.with_name(name).read_bytes()).hexdigest()}  {name}" in sums for name in names)
    except FileNotFoundError:
        sound = False
    if not sound:
        yield "damaged", "a converted network that is not used; a service makes it again at its start"


def _identity(place: Place) -> tuple[object, ...]:
    return place.kind, place.key, place.label, place.digest


def _roi(key: ModelKey) -> ModelKey:
    return ModelKey(recipe_id=key.recipe_id, role_id=key.role_id, roi_id=key.roi_id)


_REMEDIES: dict[str, str] = {
    "memory": "fit the ROI again with /fit_ok",
    "calibration": "calibrate the ROI again",
    "image": "upload it again, or delete it",
    "facts": "upload the image again, or delete it",
}
_CHECKS: dict[str, Callable[[_File], Findings]] = {
    "memory": _memory,
    "index": _index,
    "calibration": _calibration,
    "facts": _facts,
    "embeddings": _embeddings,
    "heatmap": _heatmap,
    "job": _job,
    "engine": _engine,
}
