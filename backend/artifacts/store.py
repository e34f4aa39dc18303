"""The files of the models, and how a new one takes the place of an old one.

    models/<role_id>/<roi_id>/            recipe `default`; others under models/recipes/<recipe_id>/…
        memory.npz                        the memory bank: the one truth; replacing it is the switch to a new fit
        index.faiss                       its FAISS index, for other tools; derived, never read here
        calib.json                        the calibration(s); each names the memory that it belongs to
        images/, embeddings/              see backend/artifacts/image_store.py
        heatmaps/                         the newest heat maps that were asked for as files
        keys/<model_key>/                 the first three again, for a model key that is not the roi_id

A fit that brings its own calibration writes ``calib.json`` first, holding both the old memory's calibration and the
new one's; then it replaces ``memory.npz``. A reader takes the calibration that names the memory it has read. So one
rename switches both, and a crash between the two leaves the old pair in force. ``index.faiss`` is deleted before that
rename and written after it: whoever reads it finds the index of the memory beside it, or none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from backend.artifacts.files import read_file, stamp
from backend.artifacts.formats import (
    LearnedFacts,
    bank_bytes,
    bank_from_bytes,
    calib_in_force,
    calib_text,
    calibration_bytes,
    calibrations_from_bytes,
    facts_of_damaged,
    switching_bytes,
)
from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import ModelKey
from backend.artifacts.quarantine import set_aside_copies
from backend.artifacts.stored_model import Stamps, StoredModel
from backend.artifacts.stored_version import StoredVersion
from backend.artifacts.versioned_files import VersionedFiles
from backend.artifacts.versions import Made, MemorySummary
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, Unavailable
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.index import faiss_bytes

_log = logging.getLogger(__name__)

_KEPT_CALIBRATIONS = 2


class ArtefactStore(VersionedFiles):
    """The artifacts below one models folder."""

    def images(self, key: ModelKey) -> ImageStore:
        """Return the images of a ROI."""
        return ImageStore(
            self.roi_folder(key),
            write=self.write,
            remove=self.remove,
            found_damaged=partial(self.found_damaged, key),
        )

    def stamps(self, key: ModelKey) -> Stamps:
        """Return what changes whenever the memory or the calibration is replaced; raises StorageFailed."""
        folder = self.model_folder(key)
        return stamp(folder / "memory.npz"), stamp(folder / "calib.json")

    def load(self, key: ModelKey) -> StoredModel:
        """Return the model as stored; a calibration that cannot be used is an error for whoever asks for it.

        Raises:
            ArtefactCorrupt: If the memory does not match its digest, or did not and was set aside for that.
            ArtefactOutdated: If an older version of this service wrote the memory.
            StorageFailed: If a file cannot be read.
        """
        for _ in range(5):  # A fit may replace both files while we read them; then read again.
            before = self.stamps(key)
            bank = self._bank(key)
            calibrations: list[Calibration] = []
            calibration_fault = None
            try:
                calibrations = self.calibrations(key)
            except ArtefactCorrupt as error:
                calibration_fault = type(error)
            if self.stamps(key) == before:
                break
        return StoredModel(
            bank=bank, calibrations=tuple(calibrations), calibration_fault=calibration_fault, stamps=before
        )

    def save_bank(
        self,
        key: ModelKey,
        bank: MemoryBank,
        calibration: Calibration | None = None,
        *,
        stored: Sequence[Calibration] | None = None,
        made: Made | None = None,
    ) -> tuple[str, ...]:
        """Make a memory, and its calibration where it brings one, the model's own. Call it under ``lock``.

        Args:
            stored: As of ``save_calibration``.
            made: What makes this version of the model; None keeps no version of what was in force.

        Returns:
            Sentences on what could not be kept of the version before.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old model serves on.
        """
        calib_path = self.model_folder(key) / "calib.json"
        calib, warnings = self._settled_calib(key), list[str]()
        data, new_calib = bank_bytes(bank), calib
        if calibration is not None:
            new_calib = self._with_calibration(key, calibration, stored)
        with self.versions(key).leaving(made, MemorySummary.of(bank, data), calib_text(new_calib), warnings):
            if calibration is not None and new_calib is not None:
                self.write(calib_path, new_calib)
            self._switch_memory(key, data, faiss_bytes(bank.vectors))
        return tuple(warnings)

    def _switch_memory(self, key: ModelKey, data: bytes, index_data: bytes | None) -> None:
        path = self.model_folder(key) / "memory.npz"
        index = path.with_name("index.faiss")
        if index.exists():
            self.remove(index)  # the old memory's does not outlive it
        self.write(path, data)
        try:
            if index_data is not None:
                self.write(index, index_data)
        except Unavailable:  # The fit does not fail with it: the memory is in force and on disk already.
            _log.exception("the FAISS index could not be written; a service writes it when it next sweeps the folder")

    def renew_index(self, key: ModelKey) -> bool:
        """Write the FAISS index again where a crash has taken it; return whether it did. Call it under ``lock``."""
        path = self.model_folder(key) / "index.faiss"
        bank = None if path.exists() else self._bank(key)
        index = None if bank is None else faiss_bytes(bank.vectors)
        if index is not None:
            self.write(path, index)
        return index is not None

    def save_calibration(
        self,
        key: ModelKey,
        calibration: Calibration,
        *,
        stored: Sequence[Calibration] | None = None,
        made: Made | None = None,
    ) -> tuple[str, ...]:
        """Store a calibration; the one of another memory is kept beside it until the next. Call it under ``lock``.

        Args:
            stored: Those that are stored, where the caller has read them under the lock; None reads them.
            made: As of ``save_bank``.

        Returns:
            As ``save_bank``.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old one serves on.
        """
        self._settled_calib(key)
        warnings = list[str]()
        data = self._with_calibration(key, calibration, stored)
        with self.versions(key).leaving(made, None, calib_text(data), warnings):
            self.write(self.model_folder(key) / "calib.json", data)
        return tuple(warnings)

    def _with_calibration(self, key: ModelKey, calibration: Calibration, stored: Sequence[Calibration] | None) -> bytes:
        """Return the ``calib.json`` of a calibration beside those that are stored."""
        if stored is None:
            try:
                stored = self.calibrations(key)
            except ArtefactCorrupt:
                stored = ()
        others = [each for each in stored if each.memory_checksum != calibration.memory_checksum]
        if len(others) >= _KEPT_CALIBRATIONS:  # A fit whose memory could not be written left its calibration behind.
            with suppress(ArtefactCorrupt):
                bank = self._bank(key)
                others.sort(key=lambda other: bank is None or other.memory_checksum != bank.checksum)
        return calibration_bytes([calibration, *others][:_KEPT_CALIBRATIONS])

    def bring_back(self, key: ModelKey, found: StoredVersion, made: Made) -> tuple[str, ...]:
        """Make a version that was in force the model's own again, in one switch. Call it under ``lock``.

        Returns:
            As ``save_bank``.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; what is in force serves on.
        """
        path = self.model_folder(key) / "calib.json"
        now, warnings, version = self._settled_calib(key), list[str](), found.version
        then = None if version.calib is None else version.calib.encode()
        changes = then != now or (then is None and bool(set_aside_copies(path)))
        with self.versions(key).leaving(made, version.memory, version.calib, warnings):
            if read_file(path.with_name("memory.npz")) == found.data:
                self._put_calib(path, then)
                return tuple(warnings)
            if changes:  # what is damaged stays so until the switch
                text = None if now is None else now.decode(errors="replace")
                self.write(path, switching_bytes(text, version.memory.digest, version.calib))
            self._switch_memory(key, found.data, faiss_bytes(found.bank.vectors))
            try:
                if changes:
                    self._put_calib(path, then)
            except Unavailable:  # It holds already: the memory that it was written for is in force.
                _log.exception("calib.json could not be written in its plain form; the next fit does it")
        return tuple(warnings)

    def is_in_force(self, key: ModelKey, found: StoredVersion) -> bool:
        """Return whether a model is, byte by byte, what a version holds."""
        calib = None if found.version.calib is None else found.version.calib.encode()
        try:
            is_same = self.calib_data(key) == calib
        except ValueError:
            return False
        folder = self.model_folder(key)
        is_lost = (
            calib is None and not (folder / "calib.json").exists() and bool(set_aside_copies(folder / "calib.json"))
        )
        return is_same and not is_lost and read_file(folder / "memory.npz") == found.data

    def calibrations(self, key: ModelKey) -> list[Calibration]:
        """Return the stored calibrations, newest first, whatever memory they belong to.

        Raises:
            ArtefactCorrupt: If they do not match their digest, or did not and were set aside for that.
            StorageFailed: If they cannot be read.
        """
        path = self.model_folder(key) / "calib.json"

        def parse(data: bytes) -> list[Calibration]:
            text = calib_in_force(data, path.with_name("memory.npz"))
            return [] if text is None else calibrations_from_bytes(text)

        return self._parsed(key, path, parse) or []

    def learned_facts(self, key: ModelKey) -> LearnedFacts | None:
        """Return what is still known for certain of a damaged or outdated memory, or None."""
        path = self.model_folder(key) / "memory.npz"
        newest = next(reversed(set_aside_copies(path)), path)
        data = read_file(path if path.exists() else newest)
        return None if data is None else facts_of_damaged(data)

    def learned_by_other_models(self, key: ModelKey) -> set[str]:
        """Return the digests that the ROI's models under other keys have learned.

        Raises:
            ArtefactCorrupt: If the memory of one is damaged, so that nobody knows.
        """
        roi = self.roi_folder(key)
        folders = [roi, *sorted(entry for entry in (roi / "keys").glob("*") if entry.is_dir())]
        own = self.model_folder(key)
        banks = (self._parsed(key, folder / "memory.npz", bank_from_bytes) for folder in folders if folder != own)
        return {digest for bank in banks if bank is not None for digest in bank.image_digests}

    def _bank(self, key: ModelKey) -> MemoryBank | None:
        return self._parsed(key, self.model_folder(key) / "memory.npz", bank_from_bytes)
