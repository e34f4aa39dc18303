"""The files of a model: where they lie, how they are replaced together, and who may write them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from backend.artifacts import heatmaps
from backend.artifacts import store as store_module
from backend.artifacts.folders import child_folder
from backend.artifacts.formats import OutdatedFormat, calibrations_from_bytes
from backend.artifacts.heatmaps import save_heatmap
from backend.artifacts.model_key import ModelKey, id_of_folder
from backend.artifacts.store import ArtefactStore
from backend.calib import Calibration, false_alarm_bounds
from backend.errors import ArtefactCorrupt, ArtefactOutdated, Busy, StorageFull, Unavailable
from backend.memory_bank.bank import MemoryBank
from tests.testkit.fakes import bank_on_a_line


def bank(seed: int = 0) -> MemoryBank:
    return bank_on_a_line({f"{seed}{image}".ljust(64, "0"): (seed, image, 5.0) for image in range(3)})


def calibration(memory: MemoryBank | str, threshold: float = 0.5) -> Calibration:
    return Calibration(
        threshold=threshold,
        p99_ok=0.4,
        p5_ng=None,
        ok_percentile=99.0,
        score_mode="percentile",
        score_percentile=99.0,
        blur_sigma=1.0,
        area_mm2_thr=1.0,
        mm_per_px=0.2,
        n_ok=20,
        n_ng=0,
        ng_caught=0,
        margin=1.0,
        method="ok_percentile",
        ok_scores_from="stored",
        bounds=false_alarm_bounds(20, 20),
        ok_mean=0.3,
        ng_mean=0.0,
        memory_checksum=memory if isinstance(memory, str) else memory.checksum,
        warnings=("größer",),
    )


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- a model's folder ---------------------------------------------------------------------------------------------


def test_a_roi_that_was_never_fitted_is_empty_and_asking_makes_no_folder(store, key, tmp_path):
    stored = store.load(key)
    assert (stored.bank, stored.calibration, stored.stale, stored.stamps) == (None, None, False, (None, None))
    assert store.calibrations(key) == []
    assert not (tmp_path / "models").exists()


def test_the_artefacts_of_the_default_recipe_lie_where_the_order_wants_them(store, key, tmp_path):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    roi = tmp_path / "models" / "Inspection" / "inspection-1"
    assert files(roi) == ["calib.json", "index.faiss", "memory.npz"]
    document = json.loads((roi / "calib.json").read_text("utf-8"))
    assert (document["threshold"], document["warnings"]) == (0.5, ["größer"])
    import faiss

    index = faiss.deserialize_index(np.frombuffer((roi / "index.faiss").read_bytes(), np.uint8))
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), memory.vectors)


def test_recipes_and_model_keys_have_folders_of_their_own_in_any_language(store, tmp_path):
    folders = {
        ModelKey(role_id="r", roi_id="i"): "r/i",
        ModelKey(role_id="r", roi_id="i", model_key="j"): "r/i/keys/j",
        ModelKey(role_id="r", roi_id="i", recipe_id="line2"): "recipes/line2/r/i",
        ModelKey(role_id="recipes", roi_id="i"): "%72ecipes/i",
        ModelKey(role_id="r", roi_id="keys"): "r/keys",
        ModelKey(role_id="检查 Prüfung", roi_id="деталь:1?", model_key="CON"): "检查 Prüfung/деталь%3A1%3F/keys/%43ON",
    }
    for seed, a_key in enumerate(folders):
        store.save_bank(a_key, bank(seed))
    assert [store.load(a_key).bank for a_key in folders] == [bank(seed) for seed in range(len(folders))]
    for a_key, folder in folders.items():
        assert store.model_folder(a_key) == tmp_path / "models" / folder


@pytest.mark.parametrize(
    "ids",
    [
        ("abc", "ABC", "Abc"),
        ("ABC", "abc", "aBC"),
        ("Maß", "MASS", "mass"),
        ("(a", "(A"),
        ("(A", "(a"),
        ("con", "CON", "Con"),
        ("CON", "con"),
        ("Ä", "ä"),
        ("ä", "Ä"),
        ("Recipes", "recipes"),
    ],
)
def test_ids_that_differ_by_case_alone_get_folders_that_differ_by_more(tmp_path, ids):
    made = []
    for an_id in ids:
        folder = child_folder(tmp_path, an_id)
        assert id_of_folder(folder.name) == an_id
        folder.mkdir()
        made.append(folder)
    assert len({folder.name.casefold() for folder in made}) == len(ids)
    assert [child_folder(tmp_path, an_id) for an_id in ids] == made


# -- the switch ---------------------------------------------------------------------------------------------------


def in_force(store: ArtefactStore, key: ModelKey) -> tuple[MemoryBank | None, Calibration | None, bool]:
    stored = store.load(key)
    return stored.bank, stored.calibration, stored.stale


def test_a_calibration_belongs_to_the_memory_that_it_names(store, key):
    old, new = bank(0), bank(1)
    store.save_bank(key, old)
    assert in_force(store, key) == (old, None, False)
    store.save_calibration(key, calibration(old))
    assert in_force(store, key) == (old, calibration(old), False)
    store.save_bank(key, new)
    assert in_force(store, key) == (new, None, True)
    store.save_calibration(key, calibration(new, 0.7))
    assert in_force(store, key) == (new, calibration(new, 0.7), False)


def test_until_the_memory_switches_the_old_pair_is_in_force(store, key):
    old, new = bank(0), bank(1)
    store.save_bank(key, old, calibration(old))
    store.save_calibration(key, calibration(new, 0.7))  # as a fit does just before it replaces the memory
    assert in_force(store, key) == (old, calibration(old), False)
    store.save_bank(key, new)
    assert in_force(store, key) == (new, calibration(new, 0.7), False)


@pytest.mark.parametrize("name", ["memory.npz", "calib.json"])
def test_a_fit_of_which_one_file_cannot_be_written_leaves_the_old_pair_in_force(store, key, monkeypatch, name):
    old, rename = bank(0), Path.replace

    def rename_or_fail(self, target):
        if target.name == name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    store.save_bank(key, old, calibration(old))
    before = (store.roi_folder(key) / "memory.npz").read_bytes()
    monkeypatch.setattr(Path, "replace", rename_or_fail)
    for seed in (1, 2, 3):  # a disk that is nearly full: the small file fits, the large one never does
        with pytest.raises(StorageFull):
            store.save_bank(key, bank(seed), calibration(bank(seed), seed / 10))
        assert in_force(store, key) == (old, calibration(old), False)
    assert (store.roi_folder(key) / "memory.npz").read_bytes() == before
    assert set(files(store.roi_folder(key))) <= {"calib.json", "index.faiss", "memory.npz"}
    monkeypatch.undo()
    store.save_bank(key, bank(4), calibration(bank(4), 0.9))
    assert store.load(key).calibration == calibration(bank(4), 0.9)


def test_a_calibration_replaces_the_one_of_the_same_memory_and_keeps_one_other(store, key):
    memories = [bank(seed) for seed in range(3)]
    for memory in memories:
        store.save_bank(key, memory)
        store.save_calibration(key, calibration(memory, 0.1))
        store.save_calibration(key, calibration(memory, 0.2))
    assert store.calibrations(key) == [calibration(memories[2], 0.2), calibration(memories[1], 0.2)]


def test_without_faiss_an_index_of_another_memory_does_not_stay(store, key, monkeypatch):
    store.save_bank(key, bank(0))
    monkeypatch.setattr(store_module, "faiss_bytes", lambda _vectors: None)
    store.save_bank(key, bank(1))
    assert files(store.roi_folder(key)) == ["memory.npz"]


def test_a_reader_sees_pairs_that_belong_together_while_fits_replace_them(store, key):
    pairs = [(memory, calibration(memory, i + 0.25)) for i, memory in enumerate([bank(0), bank(1)])]
    store.save_bank(key, *pairs[0])
    stop = threading.Event()

    def fit() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            with store.lock(key):
                store.save_bank(key, *pairs[turn % 2])

    writer = threading.Thread(target=fit)
    writer.start()
    try:
        seen = [store.load(key) for _ in range(100)]
    finally:
        stop.set()
        writer.join()
    assert {(stored.bank, stored.calibration) in pairs for stored in seen} == {True}


# -- damage, and what an older version wrote ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory.npz", "calib.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"17", b"\xff\xfe\x00", b"PK\x03\x04", b'{"format_version": 1}']
)
def test_a_damaged_artefact_is_named_without_its_path_and_can_be_written_over(store, key, name, content):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    (store.roi_folder(key) / name).write_bytes(content)
    with pytest.raises(ArtefactCorrupt) as refused:
        _ = store.load(key).calibration
    assert refused.value.details == {"artefact": name}
    assert str(store.roi_folder(key)) not in refused.value.sentence
    if name == "memory.npz":
        store.save_bank(key, memory, calibration(memory, 0.9))
    else:
        store.save_calibration(key, calibration(memory, 0.9))
    assert in_force(store, key) == (memory, calibration(memory, 0.9), False)


def test_damage_to_any_byte_of_a_calibration_and_half_of_one_are_found(store, key):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    store.save_calibration(key, calibration("another memory"))
    whole = (store.roi_folder(key) / "calib.json").read_bytes()
    for at in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[at] = broken[at] + 1 if chr(broken[at]) in "12345678" else broken[at] ^ 0x01
        for data in (bytes(broken), whole[:at]):
            with pytest.raises(ValueError, match=r"\w"):
                calibrations_from_bytes(data)
    with pytest.raises(ValueError, match="byte form"):
        calibrations_from_bytes(whole + b" ")


def test_a_damaged_index_file_matters_to_nobody(store, key):
    store.save_bank(key, bank())
    (store.roi_folder(key) / "index.faiss").write_bytes(b"rubbish")
    assert store.load(key).bank == bank()


@pytest.mark.parametrize(
    ("name", "reader", "remedy"),
    [("memory.npz", "bank_from_bytes", "/fit_ok"), ("calib.json", "calibrations_from_bytes", "/calibrate_ng")],
)
def test_a_file_of_an_older_version_is_no_damage_and_says_how_to_make_it_again(
    store, key, monkeypatch, name, reader, remedy
):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    before = files(store.roi_folder(key))

    def refuse(_data):
        raise OutdatedFormat("format version 0")

    monkeypatch.setattr(store_module, reader, refuse)
    with pytest.raises(ArtefactOutdated, match="older version") as refused:
        _ = store.load(key).calibration
    assert remedy in refused.value.sentence
    assert refused.value.details == {"artefact": name}
    assert files(store.roi_folder(key)) == before, "nothing is set aside"
    assert store.quarantine.reason is None
    assert store.learned_facts(key).image_digests == memory.image_digests
    monkeypatch.undo()
    assert in_force(store, key) == (memory, calibration(memory), False)


# -- locks --------------------------------------------------------------------------------------------------------


def test_a_lock_keeps_other_threads_out_until_it_is_released(store, key):
    inside, most_inside, count = 0, 0, 0

    def work() -> None:
        nonlocal inside, most_inside, count
        for _ in range(5):
            with store.lock(key):
                inside += 1
                most_inside = max(most_inside, inside)
                time.sleep(0.002)
                inside -= 1
                count += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most_inside, count) == (1, 20)


def test_a_lock_that_is_held_too_long_is_an_answer_and_one_whose_work_fails_is_released(store, key):
    other = ArtefactStore(store.models_dir)
    with store.lock(key), pytest.raises(Busy, match="holds this ROI"), other.lock(key, timeout_s=0.05):
        pass
    with store.lock(key), store.lock(key, timeout_s=0):  # its own thread may take it again
        pass
    with other.lock(key, timeout_s=0.05):
        pass
    with pytest.raises(KeyError), store.lock(key, timeout_s=0.05):
        raise KeyError("x")
    with store.lock(key, timeout_s=0.05):
        pass


def test_models_of_one_roi_share_a_lock_and_other_rois_do_not(store, key):
    other_model = dataclasses.replace(key, model_key="other")
    other_roi, other_recipe = ModelKey(role_id="Inspection", roi_id="b"), dataclasses.replace(key, recipe_id="line2")
    with store.lock(key):
        with pytest.raises(Unavailable), ArtefactStore(store.models_dir).lock(other_model, timeout_s=0.05):
            pass
        with store.lock(other_roi, timeout_s=0.05), store.lock(other_recipe, timeout_s=0.05):
            pass


def test_a_lock_keeps_other_processes_out_and_dies_with_its_process(store, key, tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from backend.artifacts.model_key import ModelKey
from backend.artifacts.store import ArtefactStore
with ArtefactStore(Path({str(tmp_path / "models")!r})).lock(ModelKey(role_id="Inspection", roi_id="inspection-1")):
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(Unavailable), store.lock(key, timeout_s=0.05):
            pass
        holder.kill()
        holder.wait()
    with store.lock(key, timeout_s=5):
        pass


# -- heat maps and other models -----------------------------------------------------------------------------------


def test_a_heat_map_is_stored_beside_its_model_and_named_with_forward_slashes(store, key, tmp_path):
    named = save_heatmap(store, key, "ab" * 32, b"png")
    assert named == f"Inspection/inspection-1/heatmaps/{'ab' * 32}.png"
    assert (tmp_path / "models" / named).read_bytes() == b"png"


def test_only_the_newest_heat_maps_are_kept_and_one_that_has_just_gone_does_no_harm(store, key, monkeypatch):
    monkeypatch.setattr(heatmaps, "KEPT_HEATMAPS", 3)
    folder = store.roi_folder(key) / "heatmaps"
    for number in range(6):
        save_heatmap(store, key, f"{number}", b"png")
        os.utime(folder / f"{number}.png", ns=(number, number))
    assert files(folder) == ["3.png", "4.png", "5.png"]
    (folder / "gone.png").symlink_to("nowhere")  # listed, and not there any more
    save_heatmap(store, key, "6", b"png")


def test_the_images_that_other_models_of_a_roi_have_learned_are_known(store, key):
    others = [dataclasses.replace(key, model_key=name) for name in ("x", "y")]
    for seed, a_key in enumerate([key, *others]):
        store.save_bank(a_key, bank(seed))
    assert store.learned_by_other_models(key) == {*bank(1).image_digests, *bank(2).image_digests}
    assert store.learned_by_other_models(others[0]) == {*bank(0).image_digests, *bank(2).image_digests}
    assert ArtefactStore(store.roi_folder(key) / "elsewhere").learned_by_other_models(key) == set()
