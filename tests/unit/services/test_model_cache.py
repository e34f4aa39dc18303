from __future__ import annotations

import pytest

from backend.artifacts.model_key import ModelKey
from backend.calib import Calibration, ScoreRule
from backend.errors import ArtefactCorrupt
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.calibration import calibrated
from backend.services.model_cache import ModelCache
from backend.storage import ArtefactStore
from tests.testkit.fakes import bank_on_a_line

MAX = ScoreRule(mode="max", percentile=99.0, blur_sigma=0.0, area_mm2_thr=1.0)


def bank(seed: int = 0) -> MemoryBank:
    return bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0 + seed), "c": (10.0, 1.25)})


def calibration_of(bank: MemoryBank, **scores) -> Calibration:
    return calibrated(bank, leave_one_out_scores(bank, MAX), rule=MAX, **scores)


def keys(n: int) -> list[ModelKey]:
    return [ModelKey(role_id="r", roi_id=f"roi-{i}") for i in range(n)]


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The ROIs that were read from disk, in order."""
    read = []
    load = ArtefactStore.load

    def noted(self, key):
        read.append(key.roi_id)
        return load(self, key)

    monkeypatch.setattr(ArtefactStore, "load", noted)
    return read


def test_a_model_is_read_once(store, loads):
    (key,) = keys(1)
    store.save_bank(key, bank())
    cache = ModelCache(store, 10)
    first = cache.get(key)
    assert cache.get(key) is first
    assert first.bank.checksum == bank().checksum
    assert loads == ["roi-0"]


def test_the_least_recently_used_model_makes_room(store, loads):
    a, b, c = keys(3)
    for key in (a, b, c):
        store.save_bank(key, bank())
    cache = ModelCache(store, 2)
    for key in (a, b, a, c):  # b is the one that was not used for longest
        cache.get(key)
    assert loads == ["roi-0", "roi-1", "roi-2"]
    cache.get(a)
    cache.get(c)
    assert len(loads) == 3
    cache.get(b)
    assert loads[3:] == ["roi-1"]


@pytest.mark.parametrize("replaced", ["memory", "calibration", "same bytes"])
def test_files_that_another_process_replaced_are_noticed(store, loads, tmp_path, replaced):
    (key,) = keys(1)
    store.save_bank(key, bank())
    cache = ModelCache(store, 10)
    before = cache.get(key)
    other_process = ArtefactStore(tmp_path / "models")
    if replaced == "memory":
        other_process.save_bank(key, bank(1))
    elif replaced == "calibration":
        other_process.save_calibration(key, calibration_of(bank()))
    else:
        other_process.save_bank(key, bank())
    after = cache.get(key)
    assert after is not before
    assert len(loads) == 2
    assert (after.bank.checksum == bank().checksum) == (replaced != "memory")
    assert (after.calibration is not None) == (replaced == "calibration")
    assert cache.get(key) is after


def test_a_model_that_was_deleted_is_gone(store):
    (key,) = keys(1)
    store.save_bank(key, bank())
    cache = ModelCache(store, 10)
    assert cache.get(key).bank is not None
    (store.model_folder(key) / "memory.npz").unlink()
    assert cache.get(key).bank is None


def test_rois_that_do_not_exist_take_no_place(store, loads):
    a, *absent = keys(20)
    store.save_bank(a, bank())
    cache = ModelCache(store, 2)
    cache.get(a)
    for key in absent:
        assert cache.get(key).bank is None
    cache.get(a)
    assert loads.count("roi-0") == 1


def test_a_roi_that_is_fitted_later_is_found(store):
    (key,) = keys(1)
    cache = ModelCache(store, 2)
    assert cache.get(key).bank is None
    store.save_bank(key, bank())
    assert cache.get(key).bank.checksum == bank().checksum


def test_damage_is_told_every_time_and_nothing_damaged_is_kept(store):
    (key,) = keys(1)
    store.save_bank(key, bank())
    cache = ModelCache(store, 2)
    good = (store.model_folder(key) / "memory.npz").read_bytes()
    (store.model_folder(key) / "memory.npz").write_bytes(good[:-100])
    for _ in range(2):
        with pytest.raises(ArtefactCorrupt):
            cache.get(key)
    (store.model_folder(key) / "memory.npz").write_bytes(good)
    assert cache.get(key).bank.checksum == bank().checksum


def test_the_heat_map_ends_at_twice_the_threshold_or_twice_p99_of_the_own_scores(store):
    (key,) = keys(1)
    cache = ModelCache(store, 2)
    assert cache.get(key).heatmap_full_scale == 2.0  # nothing is known: the whole range of distances
    store.save_bank(key, bank_on_a_line({"a": (0.0, 1.0)}))
    assert cache.get(key).heatmap_full_scale == 2.0  # one image alone has no score
    store.save_bank(key, bank())
    # The scores by p99 of the map: 0.4975, 1.7375, 6.9325 (see test_scoring); numpy's p99 of those.
    expected = 2 * (1.7375 + 0.98 * (6.9325 - 1.7375))
    assert ModelCache(store, 2).get(key).heatmap_full_scale == pytest.approx(expected, rel=0.02)
    store.save_calibration(key, calibration_of(bank(), ok_scores=[0.3]))
    assert cache.get(key).heatmap_full_scale == 0.6


def test_a_roi_whose_own_scores_are_zero_shows_the_whole_range(store):
    (key,) = keys(1)
    store.save_bank(key, bank_on_a_line({"a": (1.0, 1.0), "b": (1.0, 1.0)}))
    assert ModelCache(store, 2).get(key).heatmap_full_scale == 2.0
