"""Where artefacts lie, in what form, and how a new one takes the place of an old one.

    models/<role_id>/<roi_id>/            recipe `default`; others under models/recipes/<recipe_id>/…
        memory.npz                        the memory bank: the one truth; replacing it is the switch to a new fit
        index.faiss                       its FAISS index, for other tools; derived, never read here
        calib.json                        the calibration(s); each names the memory that it belongs to
        images/, embeddings/              see backend/image_store.py
        heatmaps/                         the newest heat maps that were asked for as files
        keys/<model_key>/                 the first three again, for a model key that is not the roi_id

A fit that brings its own calibration writes ``calib.json`` first, holding both the old memory's calibration and the
new one's; then it replaces ``memory.npz``. A reader takes the calibration that names the memory it has read. So one
rename switches both, and a crash between the two leaves the old pair in force.
"""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, Unavailable
from backend.files import stamp, sync_folder, write_atomic
from backend.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, folder_name
from backend.nearest import faiss_bytes
from backend.patchcore import MemoryBank
from backend.placement import Placement
from backend.utils import canonical_json, sha256_hex
from backend.whitening import Whitening

FORMAT_VERSION = 1
LOCK_TIMEOUT_S = 600.0
KEPT_HEATMAPS = 200

_WHITENING = "whitening_"
_KEPT_CALIBRATIONS = 2

Stamps = tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What the folder of a model holds at one moment.

    Attributes:
        bank: The memory, or None when the ROI was never fitted.
        calibration: The calibration that belongs to this memory, or None.
        stale: True when there is a calibration, but only of another memory.
        stamps: Change whenever one of the files is replaced.
    """

    bank: MemoryBank | None
    calibration: Calibration | None
    stale: bool
    stamps: Stamps


class ArtefactStore:
    """The artefacts below one models folder."""

    def __init__(self, models_dir: Path) -> None:
        """Use ``models_dir``; nothing is made before the first write."""
        self._models_dir = models_dir

    def roi_folder(self, key: ModelKey) -> Path:
        """Return the folder of a ROI, whether it exists or not."""
        root = self._models_dir
        if key.recipe_id != DEFAULT_RECIPE:
            root = root / RECIPES_FOLDER / folder_name(key.recipe_id)
        return child_folder(child_folder(root, key.role_id), key.roi_id)

    def model_folder(self, key: ModelKey) -> Path:
        """Return the folder of a model: the ROI's own, or one below it for another model key."""
        folder = self.roi_folder(key)
        return folder if key.is_default_model else child_folder(folder / "keys", key.model_key)

    def stamps(self, key: ModelKey) -> Stamps:
        """Return what changes whenever the memory or the calibration of a model is replaced."""
        folder = self.model_folder(key)
        return stamp(folder / "memory.npz"), stamp(folder / "calib.json")

    def load(self, key: ModelKey) -> StoredModel:
        """Return the model as stored.

        Raises:
            ArtefactCorrupt: If a file cannot be read or does not match its digest.
        """
        folder = self.model_folder(key)
        for _ in range(5):  # A fit may replace both files while we read them; then read again.
            before = self.stamps(key)
            bank = _read_bank(folder / "memory.npz")
            calibrations = _read_calibrations(folder / "calib.json")
            if self.stamps(key) == before:
                break
        checksum = None if bank is None else bank.checksum
        calibration = next((c for c in calibrations if c.memory_checksum == checksum), None)
        stale = bank is not None and calibration is None and bool(calibrations)
        return StoredModel(bank=bank, calibration=calibration, stale=stale, stamps=before)

    def save_bank(self, key: ModelKey, bank: MemoryBank, calibration: Calibration | None = None) -> None:
        """Make a memory, and its calibration where it brings one, the model's own. Call it under ``lock``.

        Raises:
            OSError: If it cannot be written; the old model serves on.
        """
        folder = self.model_folder(key)
        if calibration is not None:
            self.save_calibration(key, calibration)
        write_atomic(folder / "memory.npz", bank_bytes(bank))
        index = faiss_bytes(bank.vectors)
        if index is None:
            (folder / "index.faiss").unlink(missing_ok=True)  # an index of another memory would be worse than none
        else:
            write_atomic(folder / "index.faiss", index)

    def save_calibration(self, key: ModelKey, calibration: Calibration) -> None:
        """Store a calibration; the one of another memory is kept beside it until the next. Call it under ``lock``.

        Raises:
            OSError: If it cannot be written; the old one serves on.
        """
        path = self.model_folder(key) / "calib.json"
        try:
            others = [c for c in _read_calibrations(path) if c.memory_checksum != calibration.memory_checksum]
        except ArtefactCorrupt:
            others = []
        if len(others) >= _KEPT_CALIBRATIONS:  # A fit whose memory could not be written left its calibration behind.
            in_force = self._checksum_in_force(key)
            others.sort(key=lambda other: other.memory_checksum != in_force)
        write_atomic(path, calibration_bytes([calibration, *others][:_KEPT_CALIBRATIONS]))

    def save_heatmap(self, key: ModelKey, image_digest: str, png: bytes) -> str:
        """Write a heat map beside its model; return its path below the models folder, with forward slashes."""
        folder = self.model_folder(key) / "heatmaps"
        path = folder / f"{image_digest}.png"
        write_atomic(path, png)
        # Another inspection may delete one of them meanwhile: it has no stamp then.
        for old in sorted(folder.glob("*.png"), key=lambda entry: stamp(entry) or (0, 0, 0))[:-KEPT_HEATMAPS]:
            old.unlink(missing_ok=True)
        return path.relative_to(self._models_dir).as_posix()

    def calibrations(self, key: ModelKey) -> list[Calibration]:
        """Return the stored calibrations, newest first, whatever memory they belong to."""
        return _read_calibrations(self.model_folder(key) / "calib.json")

    def learned_by_other_models(self, key: ModelKey) -> set[str]:
        """Return the digests that the ROI's models under other keys have learned."""
        roi = self.roi_folder(key)
        memories = [roi / "memory.npz", *sorted((roi / "keys").glob("*/memory.npz"))]
        own = self.model_folder(key) / "memory.npz"
        banks = (_read_bank(path) for path in memories if path != own)
        return {digest for bank in banks if bank is not None for digest in bank.image_digests}

    def _checksum_in_force(self, key: ModelKey) -> str | None:
        try:
            bank = _read_bank(self.model_folder(key) / "memory.npz")
        except ArtefactCorrupt:
            return None
        return None if bank is None else bank.checksum

    @contextmanager
    def lock(self, key: ModelKey, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the ROI against other writers, in this process and in others on the same folder.

        Raises:
            Unavailable: If another writer holds it for longer than ``timeout_s``.
        """
        folder = self.roi_folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        try:
            with FileLock(folder / ".lock", timeout=timeout_s, thread_local=False):
                yield
        except Timeout as error:
            raise Unavailable(f"Another fit of {key} has been running for a long time. Try again later.") from error


def child_folder(parent: Path, an_id: str) -> Path:
    """Return the folder of an id below a parent.

    The plain name, unless it is taken by an id that differs from this one only by case: a case-insensitive file system
    would mix the two up, so the second gets the fully escaped name.
    """
    escaped = folder_name(an_id, escape_all=True)
    try:
        present = {unicodedata.normalize("NFC", entry.name) for entry in parent.iterdir()}
    except FileNotFoundError:
        present = set()
    if escaped in present:
        return parent / escaped
    plain = folder_name(an_id)
    if plain in present or plain.casefold() not in {entry.casefold() for entry in present}:
        return parent / plain
    return parent / escaped


def bank_bytes(bank: MemoryBank) -> bytes:
    """Return a memory as an npz file: its arrays, and ``facts``, a JSON object in UTF-8 bytes.

    The same memory gives the same bytes: numpy writes the arrays uncompressed, in order, under a fixed date.
    """
    facts = {**bank.facts(), "format_version": FORMAT_VERSION, "checksum": bank.checksum}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, facts=np.frombuffer(canonical_json(facts), np.uint8), **bank.arrays())
    return buffer.getvalue()


def bank_from_bytes(data: bytes) -> MemoryBank:
    """Return the memory of an npz file that ``bank_bytes`` made.

    Raises:
        ValueError: If it is no such file, of another format version, or does not match its checksum.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        if facts["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {facts['format_version']}")
        whitening = {
            name.removeprefix(_WHITENING): arrays.pop(name) for name in [*arrays] if name.startswith(_WHITENING)
        }
        bank = MemoryBank(
            **arrays,
            image_digests=tuple(facts["image_digests"]),
            part_ids=tuple(facts["part_ids"]),
            placement=Placement(
                image_hw=_pair(facts["image_hw"]), input_hw=_pair(facts["input_hw"]), grid_hw=_pair(facts["grid_hw"])
            ),
            shape=facts["shape"],
            whitening=Whitening.from_arrays(whitening) if whitening else None,
            extractor_id=facts["extractor_id"],
            precision=facts["precision"],
            k=facts["k"],
            coreset_rate=facts["coreset_rate"],
            seed=facts["seed"],
            n_embeddings=facts["n_embeddings"],
            mm_per_px=facts["mm_per_px"],
        )
    except (OSError, KeyError, TypeError, IndexError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        # RuntimeError: a flag or a version in the zip's headers that says "encrypted" or "of the future".
        raise ValueError("not a memory file") from error
    if bank.checksum != facts["checksum"]:
        raise ValueError("checksum mismatch")
    return bank


def calibration_bytes(calibrations: list[Calibration]) -> bytes:
    """Return calibrations, newest first, as the text of ``calib.json``: the newest's fields, the others, a digest."""
    newest, *others = (calibration.to_fields() for calibration in calibrations)
    document = {"format_version": FORMAT_VERSION, **newest, "other_memories": others}
    document["sha256"] = sha256_hex(canonical_json(document))
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _read_bank(path: Path) -> MemoryBank | None:
    try:
        return bank_from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtefactCorrupt(
            "The stored memory of this ROI is damaged. Fit it again with /fit_ok and mode=replace.",
            details={"artefact": "memory.npz"},
        ) from error


def _read_calibrations(path: Path) -> list[Calibration]:
    try:
        document = json.loads(path.read_bytes())
        if document.pop("sha256") != sha256_hex(canonical_json(document)):
            raise ValueError("digest mismatch")
        if document.pop("format_version") != FORMAT_VERSION:
            raise ValueError("format version")
        others = document.pop("other_memories")
        return [Calibration.from_fields(fields) for fields in [document, *others]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactCorrupt(
            "The stored calibration of this ROI is damaged. Calibrate it again with /calibrate_ng.",
            details={"artefact": "calib.json"},
        ) from error


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
