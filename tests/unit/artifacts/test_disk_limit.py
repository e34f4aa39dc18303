"""How much the models folder may hold, and what a call is answered that would pass it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.artifacts.disk_limit import DiskLimit
from backend.artifacts.model_key import ModelKey
from backend.errors import StorageFailed, StorageFull
from backend.storage import ArtefactStore
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, plates

ROI = {"role_id": "Inspection", "roi_id": "inspection-1"}
KB = 1e-6


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "models", max_disk_gb=10 * KB)


def path_of(store: ArtefactStore, name: str = "a") -> Path:
    return store.roi_folder(ModelKey(role_id="r", roi_id="i")) / name


def test_a_write_up_to_the_limit_passes_and_one_more_byte_does_not(store: ArtefactStore) -> None:
    store.write(path_of(store), b"x" * 9_999)
    store.write(path_of(store, "b"), b"x")
    with pytest.raises(StorageFull) as refused:
        store.write(path_of(store, "c"), b"x")
    assert refused.value.details == {"used_bytes": 10_000, "max_bytes": 10_000, "needed_bytes": 1}
    assert "BDI_MAX_DISK_GB" in refused.value.sentence
    assert not path_of(store, "c").exists()


def test_what_a_write_replaces_is_counted_off(store: ArtefactStore) -> None:
    for size in (9_000, 9_500, 1_000, 10_000, 10_000):
        store.write(path_of(store), b"x" * size)
        assert store.disk.used_bytes == size
    with pytest.raises(StorageFull):
        store.write(path_of(store), b"x" * 10_001)
    assert path_of(store).stat().st_size == 10_000


def test_a_full_folder_can_be_emptied(store: ArtefactStore) -> None:
    store.write(path_of(store), b"x" * 10_000)
    store.write(path_of(store), b"x" * 10)  # smaller than what it replaces
    store.write(path_of(store, "b"), b"x" * 9_990)
    store.remove(path_of(store, "b"))
    store.write(path_of(store, "b"), b"x" * 9_990)


def test_what_lies_there_already_counts(store: ArtefactStore) -> None:
    (store.models_dir / "r" / "i").mkdir(parents=True)
    (store.models_dir / "r" / "i" / "old").write_bytes(b"x" * 9_000)
    with pytest.raises(StorageFull):
        store.write(path_of(store), b"x" * 1_001)
    store.write(path_of(store), b"x" * 1_000)


def test_a_write_that_fails_is_not_counted(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _data: bytes) -> None:
        raise StorageFailed("The disk is broken.")

    monkeypatch.setattr("backend.artifacts.roi_files.write_atomic", refuse)
    for _ in range(5):
        with pytest.raises(StorageFailed):
            store.write(path_of(store), b"x" * 9_000)
    assert store.disk.used_bytes == 0


def test_without_a_limit_nothing_is_walked_and_nothing_refused(tmp_path: Path) -> None:
    disk = DiskLimit(tmp_path)
    disk.check(10**15)
    disk.count(10**15)
    assert disk.used_bytes is None


# -- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A fitted ROI in a folder that has room for a heat map or a calibration, but for no further image."""
    with running_app(tmp_path / "models", loader=ready(FakeExtractor())) as api:
        answer_of(api.fit(plates([0, 1, 2])))
    limit = (used(tmp_path / "models") + 8_000) / 1e9
    with running_app(tmp_path / "models", loader=ready(FakeExtractor()), max_disk_gb=limit) as api:
        yield api


def test_a_fit_and_an_upload_over_the_limit_are_503_and_leave_nothing(api: Api) -> None:
    before = sorted(path for path in api.models.rglob("*") if path.is_file())
    score = answer_of(api.infer(plates([9])[0]))["score"]
    for _ in range(2):
        error_of(api.fit(plates([3, 4, 5])), 503, "storage_full")
        files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(plates([6, 7, 8]))]
        error_of(api.client.post("/datasets/ng/upload", data=ROI, files=files), 503, "storage_full")
    assert sorted(path for path in api.models.rglob("*") if path.is_file()) == before
    assert answer_of(api.infer(plates([9])[0]))["score"] == score


def test_after_a_deletion_there_is_room_again(api: Api) -> None:
    error_of(api.fit(plates([3])), 503, "storage_full")
    answer_of(api.client.delete("/datasets/clear", params={**ROI, "label": "ok"}))
    assert answer_of(api.fit(plates([3]), mode="replace"))["n_ok_total"] == 1
