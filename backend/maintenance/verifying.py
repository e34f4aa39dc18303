"""Whether a models folder is sound: every file is read, and compared with its digest and with what it belongs to.

Converted networks are not read: whoever loads one compares its digests, and makes it again.

A service may write meanwhile. A ROI in which something seems wrong is looked at again under its lock, so that a fit
that was caught half-way is not taken for damage. Nothing is changed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backend.artifacts.files import is_leftover
from backend.artifacts.formats import OutdatedFormat, bank_from_bytes, calib_texts, calibrations_from_bytes
from backend.artifacts.image_store import embeddings_from_bytes
from backend.artifacts.job_files import job_from_bytes
from backend.artifacts.layout import ArtifactPath, Entry, Kind, orphans, unreplaced, walk
from backend.artifacts.memory_checks import check_memory_usable
from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import StoredImage, facts_from_bytes
from backend.artifacts.versions import version_from_bytes
from backend.errors import InspectionError
from backend.history.database import FILE_NAME, fault_of
from backend.imaging.image_codec import decode_image, pixel_digest
from backend.maintenance.verifying_versions import problems_of_versions
from backend.memory_bank.coreset import Progress
from backend.memory_bank.index import faiss_bytes
from backend.storage import ArtefactStore

Fault = Literal["damaged", "missing", "mismatch", "outdated", "set_aside", "leftover", "unknown", "unreadable"]
Finding = tuple[Fault, str]

_LOCK_PATIENCE_S = 60.0
_ANY_PIXELS = 2**31
_REMEDIES: dict[Kind, str] = {
    "memory": "fit the ROI again with /fit_ok",
    "calibration": "calibrate the ROI again",
    "image": "upload it again, or delete it",
    "facts": "upload the image again, or delete it",
    "embeddings": "a fit makes them again by itself; delete them",
    "heatmap": "delete it",
    "version": "delete it: that version cannot be brought back, and what is in force is not affected",
    "kept_memory": "delete it: its versions cannot be brought back, and what is in force is not affected",
    "job": "nobody can ask for this job any more, delete it",
}


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        path: Below the models folder, with forward slashes.
        fault: ``damaged`` (its digest does not match), ``missing``, ``mismatch`` (sound, but not what belongs there),
            ``outdated`` (sound, but of an older format), ``set_aside`` (found damaged earlier; what it held is missing
            until it is made again), ``leftover`` (of a crash; a service sweeps it when it starts), ``unknown`` (nothing
            of ours) or ``unreadable``.
        message: What it is and what to do.
    """

    path: str
    fault: Fault
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}: {self.message}"


def verify_folder(models_dir: Path, *, progress: Progress | None = None) -> list[Problem]:
    """Return what is wrong below a models folder, by path: nothing when all is well, or there is no such folder.

    Args:
        models_dir: The models folder.
        progress: Called with (files done, files in all), ROI by ROI.

    Raises:
        OSError: If a folder cannot be listed.
    """
    store = ArtefactStore(models_dir)
    by_roi: dict[ModelKey | None, list[Entry]] = defaultdict(list)
    for entry in walk(models_dir):
        by_roi[None if entry.artifact.key is None else entry.artifact.key.roi].append(entry)
    problems: list[Problem] = []
    n_done, n_files = 0, sum(map(len, by_roi.values()))
    for key, entries in by_roi.items():
        found = verify_entries(entries)
        problems += _look_again(store, key, found) if found and key is not None else found
        n_done += len(entries)
        if progress is not None:
            progress(n_done, n_files)
    return sorted(problems)


def _look_again(store: ArtefactStore, key: ModelKey, before: list[Problem]) -> list[Problem]:
    folder = store.roi_folder(key)
    try:
        with store.lock(key, timeout_s=_LOCK_PATIENCE_S):
            return verify_entries([*walk(store.models_dir, folder)])
    except InspectionError:
        # Somebody fits for long, or we may not write here. Two looks that agree are the best there is.
        return [problem for problem in verify_entries([*walk(store.models_dir, folder)]) if problem in before]


def verify_entries(entries: Sequence[Entry]) -> list[Problem]:
    """Return what is wrong with the files of a ROI, or of none. Hold its lock, or be the only one who knows of it."""
    problems = []
    missing = unreplaced(entry.artifact for entry in entries)
    of_versions = dict(problems_of_versions(entries))
    undescribed = {entry.path for entry in orphans(entries) if entry.artifact.kind == "image"}
    for entry in entries:
        if entry.artifact.set_aside:
            message = _REMEDIES.get(entry.artifact.kind, "delete it")
            finding: Finding | None = ("set_aside", message) if entry.artifact.in_use in missing else None
        elif entry.path in of_versions:
            finding = of_versions[entry.path]
        elif entry.path in undescribed:
            finding = "leftover", "an image without its facts, which counts as not stored; a service sweeps it"
        else:
            finding = _finding(entry.path, entry.artifact)
        if finding is not None:
            problems.append(Problem(path=entry.name, fault=finding[0], message=finding[1]))
    return problems


def _finding(path: Path, artifact: ArtifactPath) -> Finding | None:
    """Return what is wrong with a file that is in use."""
    try:
        match artifact.kind:
            case "unknown":
                return "unknown", "not of this service; move it elsewhere"
            case "unreadable":
                return "unreadable", "this account may not read it, so nobody has looked at what it holds"
            case "temporary" if is_leftover(path):
                return "leftover", "of a crash; a service sweeps it when it starts"
            case "memory":
                check_memory_usable(bank_from_bytes(path.read_bytes()), of_any=True)
            case "calibration":
                for text in calib_texts(path.read_bytes()):
                    calibrations_from_bytes(text)
            case "version":
                if version_from_bytes(path.read_bytes()).record_name != path.name:
                    return "mismatch", "the record of another version; delete it"
            case "kept_memory":
                return _kept_memory(path)
            case "index":
                return _index(path)
            case "facts":
                return _image(path, facts_from_bytes(path.read_bytes(), artifact.digest, artifact.label or "ok"))
            case "embeddings":
                embeddings_from_bytes(path.read_bytes())
            case "heatmap":
                decode_image(path.read_bytes(), max_pixels=_ANY_PIXELS)
            case "history" if path.name == FILE_NAME and (fault := fault_of(path)) is not None:
                return "damaged", f"{fault}; a service sets it aside and begins a new one; no inspection needs it"
            case "job":
                if job_from_bytes(path.read_bytes()).job_id != path.stem:
                    return "mismatch", "the file of another job; delete it"
    except OutdatedFormat:
        return "outdated", "of an older format; `roi-inspector refit` makes it anew"
    except (ValueError, InspectionError) as error:
        return "damaged", f"{error}; {_REMEDIES[artifact.kind]}"
    except FileNotFoundError:  # deleted since it was listed
        return None
    except OSError as error:
        return "unreadable", os.strerror(error.errno or 0)
    return None


def _kept_memory(path: Path) -> Finding | None:
    data = path.read_bytes()
    with suppress(OutdatedFormat):  # Nothing makes it anew, and nobody needs to.
        check_memory_usable(bank_from_bytes(data), of_any=True)
    is_own = data[-64:].startswith(path.stem.encode())
    return None if is_own else ("mismatch", f"the memory of another version; {_REMEDIES['kept_memory']}")


def _index(path: Path) -> Finding | None:
    data = path.read_bytes()
    try:
        expected = faiss_bytes(bank_from_bytes(path.with_name("memory.npz").read_bytes()).vectors)
    except FileNotFoundError:
        return "mismatch", "an index without a memory; delete it"
    except ValueError:
        return None  # reported under the memory's own name
    if expected is None or expected == data:
        return None
    return "mismatch", "not the index of the memory beside it; delete it, a service writes it at its start"


def _image(facts: Path, image: StoredImage) -> Finding | None:
    try:
        data = image.checked(facts.with_suffix(image.suffix).read_bytes())
    except FileNotFoundError:
        return "missing", f"the image that it describes, {image.file_name}, is gone; {_REMEDIES['image']}"
    except ValueError:
        return "damaged", f"the image that it describes, {image.file_name}, has changed; {_REMEDIES['image']}"
    if pixel_digest(decode_image(data, max_pixels=_ANY_PIXELS)) != image.digest:
        return "mismatch", f"the pixels of {image.file_name} are not those of its name; {_REMEDIES['image']}"
    return None
