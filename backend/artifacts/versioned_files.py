"""The files of models with the versions that were in force before, which are given up where the disk is full."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from backend.artifacts.files import names_in, read_file
from backend.artifacts.folders import roi_folders
from backend.artifacts.formats import calib_in_force, switching_bytes
from backend.artifacts.layout import classify_path
from backend.artifacts.model_key import ModelKey
from backend.artifacts.quarantine import set_aside_copies
from backend.artifacts.roi_files import RoiFiles
from backend.artifacts.stored_version import StoredVersion, stored_version, version_gone
from backend.artifacts.version_store import VersionStore
from backend.artifacts.versions import VERSIONS_FOLDER, Version
from backend.errors import InspectionError

DEFAULT_KEPT = 10

_log = logging.getLogger(__name__)


class VersionedFiles(RoiFiles):
    """Keeps the versions of models.

    Args:
        models_dir: The models folder.
        max_disk_gb: Most that it may hold, 10⁹ bytes; 0 sets no limit.
        keep_versions: Most versions of a model that are kept beside the one in force.
    """

    def __init__(self, models_dir: Path, *, max_disk_gb: float = 0.0, keep_versions: int = DEFAULT_KEPT) -> None:
        super().__init__(models_dir, max_disk_gb=max_disk_gb)
        self.keep_versions = keep_versions

    def versions(self, key: ModelKey) -> VersionStore:
        """Return the versions of a model."""
        return VersionStore(
            self.model_folder(key),
            keep=self.keep_versions,
            write=self.write,
            remove=self.remove,
            keep_file=self.keep_file,
            found_damaged=partial(self.found_damaged, key),
        )

    def load_version(self, key: ModelKey, version: Version) -> StoredVersion:
        """Return the memory and the calibrations of a version.

        Raises:
            NotFound: If they have been deleted since.
            ArtefactCorrupt: If they are damaged; what is in force is another file.
            ArtefactOutdated: If an older version of this service wrote them.
            StorageFailed: If a file cannot be read.
        """
        path, in_force = self.versions(key).memory_path(version), self.model_folder(key) / "memory.npz"
        for each in (path, in_force, path):  # A switch may move it meanwhile.
            data = read_file(each)
            if data is not None and (each == path or data[-64:] == version.memory.digest.encode()):
                return stored_version(version, data, found_damaged=partial(self.found_damaged, key, each))
        raise version_gone(version)

    def give_up(self, n_bytes: int) -> Iterator[object]:
        """Delete versions that are not in force, of whatever model, the oldest first; see ``RoiFiles.give_up``."""
        with suppress(InspectionError):
            found = [(*each, store) for store in self._all_versions() for each in store.droppable()]
            if sum(size for _, size, _, _ in found) < n_bytes:
                return
            given_up = 0
            for _, size, version, store in sorted(found, key=lambda each: each[0]):
                _log.warning("the disk is full: version %d of %s makes room", version.number, store)
                store.give_up(version)
                given_up += size
                if given_up >= n_bytes:
                    yield version

    def _all_versions(self) -> Iterator[VersionStore]:
        for folder, _ in roi_folders(self.models_dir):
            for model in (folder, *(folder / "keys" / name for name in names_in(folder / "keys"))):
                key = classify_path((model / "memory.npz").relative_to(self.models_dir).as_posix()).key
                if key is not None and names_in(model / VERSIONS_FOLDER):
                    yield self.versions(key)

    def calib_data(self, key: ModelKey) -> bytes | None:
        """Return the text of the calibrations in force, of any format, or None where there is none.

        Raises:
            ValueError: If it is damaged in a way that nothing can be read.
            StorageFailed: If it cannot be read.
        """
        folder = self.model_folder(key)
        data = read_file(folder / "calib.json")
        return None if data is None else calib_in_force(data, folder / "memory.npz")

    def _settled_calib(self, key: ModelKey) -> bytes | None:
        """Return ``calib_data``, and write it as it is where a crash has left what a switch begins with."""
        path = self.model_folder(key) / "calib.json"
        data = read_file(path)
        if data is None:
            return None
        try:
            text = calib_in_force(data, path.with_name("memory.npz"))
        except ValueError:
            return None  # damaged: its reader finds that
        if text != data:
            self._put_calib(path, text)
        return text

    def _put_calib(self, path: Path, text: bytes | None) -> None:
        if text is not None:
            self.write(path, text)
        elif set_aside_copies(path):  # without a file it would count as damaged
            self.write(path, switching_bytes(None, "", None))
        else:
            self.remove(path)
