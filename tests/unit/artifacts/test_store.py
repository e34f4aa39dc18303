from __future__ import annotations

import dataclasses
import io
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
from backend.artifacts.formats import FORMAT_VERSION, bank_bytes, bank_from_bytes, calibrations_from_bytes, with_digest
from backend.artifacts.heatmaps import save_heatmap
from backend.artifacts.layout import child_folder
from backend.artifacts.model_key import ModelKey, id_of_folder
from backend.calib import Calibration, false_alarm_bounds
from backend.errors import ArtefactCorrupt, StorageFull, Unavailable
from backend.memory_bank.whitening import fit_whitening
from backend.patchcore import MemoryBank, PatchGrid, learn
from backend.storage import ArtefactStore
from backend.utils import sealed_json
from tests.testkit.fakes import bank_on_a_line, grid_placement


def bank(seed: int = 0, *, whitens: bool = True) -> MemoryBank:
    """A small memory with everything in it that a memory can have."""
    rng = np.random.default_rng(seed)
    placement = grid_placement(4, 5, cell_px=10)
    grids = {
        f"{seed}{image}".ljust(64, "0"): PatchGrid(
            embeddings=rng.standard_normal((20, 6)).astype(np.float32), placement=placement, extractor_id="äxtractor"
        )
        for image in range(3)
    }
    mask_cells = np.ones(20, bool)
    mask_cells[:5] = False
    rows = np.concatenate([grid.embeddings[mask_cells] for grid in grids.values()])
    return learn(
        grids,
        part_ids=dict.fromkeys(list(grids)[:2], "Teil 1"),
        mask_cells=mask_cells,
        shape={"kind": "rect", "x": 0.0, "y": 10.0, "w": 50.0, "h": 30.0},
        whitening=fit_whitening(rows) if whitens else None,
        coreset_rate=0.2,
        seed=7,
        k=2,
        mm_per_px=0.2,
    )


def calibration(memory: MemoryBank | str, threshold: float = 0.5) -> Calibration:
    return Calibration(
        threshold=threshold,
        p99_ok=0.4,
        p5_ng=None,
        ok_percentile=99.0,
        score_mode="percentile",
        score_percentile=99.0,
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


# -- the memory file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whitens", [False, True])
def test_a_memory_reads_back_as_it_was(whitens):
    stored = bank(whitens=whitens)
    read = bank_from_bytes(bank_bytes(stored))
    assert read == stored
    assert read.checksum == stored.checksum
    for name, array in stored.arrays().items():
        assert read.arrays()[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays()[name], array)
    query = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    if not whitens:
        query /= np.linalg.norm(query, axis=1, keepdims=True)
    np.testing.assert_array_equal(read.distances(query), stored.distances(query))
    assert (read.whitening is None) == (not whitens)


def test_the_same_memory_gives_the_same_bytes_at_any_time(monkeypatch):
    first = bank_bytes(bank())
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert bank_bytes(bank()) == first


def test_the_memory_file_is_an_npz_that_numpy_reads_without_pickle():
    with np.load(io.BytesIO(bank_bytes(bank())), allow_pickle=False) as archive:
        assert {"facts", "vectors", "source", "mask_cells", "loo_distances", "whitening_mean"} <= set(archive.files)
        facts = json.loads(archive["facts"].tobytes())
    assert facts["format_version"] == FORMAT_VERSION
    assert facts["extractor_id"] == "äxtractor"


def test_damage_to_any_byte_of_a_memory_is_found():
    whole = bank_bytes(bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0)}))
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            broken = bytearray(whole)
            broken[at] ^= flip
            with pytest.raises(ValueError, match=r"\w"):
                bank_from_bytes(bytes(broken))


@pytest.mark.parametrize("filler", [b"\0", b"\xff", None], ids=["zeros", "ones", "noise"])
def test_damage_to_any_region_of_a_memory_is_found(filler):
    rng = np.random.default_rng(0)
    whole = bank_bytes(bank())
    for start in range(0, len(whole), 97):
        broken = bytearray(whole)
        width = min(64, len(whole) - start)
        broken[start : start + width] = rng.bytes(width) if filler is None else filler * width
        if broken != whole:
            with pytest.raises(ValueError, match=r"\w"):
                bank_from_bytes(bytes(broken))


def test_half_a_memory_is_refused():
    whole = bank_bytes(bank())
    for cut in [*range(0, len(whole), 53), len(whole) - 1]:
        with pytest.raises(ValueError, match=r"\w"):
            bank_from_bytes(whole[:cut])


def test_every_number_of_a_memory_is_under_its_checksum():
    # A file whose own digest is right: somebody stored other numbers under the old name.
    stored = bank()
    facts = {**stored.facts(), "format_version": 1, "checksum": stored.checksum}
    for name in stored.arrays():
        arrays = {key: array.copy() for key, array in stored.arrays().items()}
        flat = arrays[name].reshape(-1)
        at = int(np.flatnonzero(np.isfinite(flat))[-1])
        flat[at] = not flat[at] if flat.dtype == bool else (flat[at] + 1) % 3
        with pytest.raises(ValueError, match=r"\w"):
            bank_from_bytes(_npz(facts, arrays))
    assert bank_from_bytes(_npz(facts, stored.arrays())) == stored


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"checksum": "0" * 64},
        {"k": 3},
        {"mm_per_px": 0.3},
        {"grid_hw": [5, 4, 1]},
        {"seed": None},
    ],
)
def test_facts_of_another_format_or_that_were_changed_are_refused(change):
    stored = bank()
    facts = {**stored.facts(), "format_version": 1, "checksum": stored.checksum, **change}
    with pytest.raises(ValueError, match=r"\w"):
        bank_from_bytes(_npz(facts, stored.arrays()))


def _npz(facts, arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(sealed_json(facts), np.uint8), **arrays)
    return with_digest(buffer.getvalue())


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
    assert document["threshold"] == 0.5
    assert document["warnings"] == ["größer"]
    import faiss

    index = faiss.deserialize_index(np.frombuffer((roi / "index.faiss").read_bytes(), np.uint8))
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), memory.vectors)


def test_recipes_and_model_keys_have_folders_of_their_own(store, tmp_path):
    keys = [
        ModelKey(role_id="r", roi_id="i"),
        ModelKey(role_id="r", roi_id="i", model_key="j"),
        ModelKey(role_id="r", roi_id="i", recipe_id="line2"),
        ModelKey(role_id="recipes", roi_id="i"),
        ModelKey(role_id="r", roi_id="keys"),
    ]
    banks = [bank(seed) for seed in range(len(keys))]
    for a_key, memory in zip(keys, banks, strict=True):
        store.save_bank(a_key, memory)
    assert [store.load(a_key).bank for a_key in keys] == banks
    folders = [store.model_folder(a_key).relative_to(tmp_path / "models").as_posix() for a_key in keys]
    assert folders == ["r/i", "r/i/keys/j", "recipes/line2/r/i", "%72ecipes/i", "r/keys"]


def test_ids_of_any_language_are_stored(store):
    a_key = ModelKey(role_id="检查 Prüfung", roi_id="деталь:1?", model_key="CON")
    store.save_bank(a_key, bank())
    assert store.load(a_key).bank == bank()


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


def test_a_calibration_belongs_to_the_memory_that_it_names(store, key):
    old, new = bank(0), bank(1)
    store.save_bank(key, old)
    assert (store.load(key).calibration, store.load(key).stale) == (None, False)
    store.save_calibration(key, calibration(old))
    assert (store.load(key).calibration, store.load(key).stale) == (calibration(old), False)
    store.save_bank(key, new)
    assert (store.load(key).calibration, store.load(key).stale) == (None, True)
    store.save_calibration(key, calibration(new, 0.7))
    assert (store.load(key).calibration, store.load(key).stale) == (calibration(new, 0.7), False)


def test_until_the_memory_switches_the_old_pair_is_in_force(store, key):
    old, new = bank(0), bank(1)
    store.save_bank(key, old, calibration(old))
    store.save_calibration(key, calibration(new, 0.7))  # as a fit does just before it replaces the memory
    stored = store.load(key)
    assert (stored.bank, stored.calibration, stored.stale) == (old, calibration(old), False)
    store.save_bank(key, new)
    stored = store.load(key)
    assert (stored.bank, stored.calibration, stored.stale) == (new, calibration(new, 0.7), False)


def test_a_fit_whose_memory_cannot_be_written_leaves_the_old_pair_in_force(store, key, monkeypatch):
    old = bank(0)
    store.save_bank(key, old, calibration(old))
    before = (store.roi_folder(key) / "memory.npz").read_bytes()
    _fail_to_write(monkeypatch, "memory.npz")
    for seed in (1, 2, 3):  # a disk that is nearly full: the small file fits, the large one never does
        with pytest.raises(StorageFull):
            store.save_bank(key, bank(seed), calibration(bank(seed), seed / 10))
        stored = store.load(key)
        assert (stored.bank, stored.calibration, stored.stale) == (old, calibration(old), False)
    assert (store.roi_folder(key) / "memory.npz").read_bytes() == before
    monkeypatch.undo()
    store.save_bank(key, bank(4), calibration(bank(4), 0.9))
    assert store.load(key).calibration == calibration(bank(4), 0.9)


def _fail_to_write(monkeypatch, name: str) -> None:
    rename = Path.replace

    def rename_or_fail(self, target):
        if target.name == name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", rename_or_fail)


def test_a_calibration_that_cannot_be_written_leaves_the_old_one_in_force(store, key, monkeypatch):
    memory = bank(0)
    store.save_bank(key, memory, calibration(memory))

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageFull):
        store.save_calibration(key, calibration(memory, 0.9))
    with pytest.raises(StorageFull):
        store.save_bank(key, bank(1), calibration(bank(1)))
    monkeypatch.undo()
    assert store.load(key).calibration == calibration(memory)
    assert files(store.roi_folder(key)) == ["calib.json", "index.faiss", "memory.npz"]


def test_a_fit_whose_calibration_cannot_be_written_does_not_switch_to_its_memory(store, key, monkeypatch):
    old, new = bank(0), bank(1)
    store.save_bank(key, old, calibration(old))
    _fail_to_write(monkeypatch, "calib.json")
    with pytest.raises(StorageFull):
        store.save_bank(key, new, calibration(new))
    stored = store.load(key)
    assert (stored.bank, stored.calibration, stored.stale) == (old, calibration(old), False)


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
    banks = [bank(0), bank(1)]
    pairs = [(memory, calibration(memory, i + 0.25)) for i, memory in enumerate(banks)]
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


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory.npz", "calib.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"17", b"\xff\xfe\x00", b"PK\x03\x04", b'{"format_version": 1}']
)
def test_a_damaged_artefact_is_named_and_no_path_is_told(store, key, name, content):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    (store.roi_folder(key) / name).write_bytes(content)
    with pytest.raises(ArtefactCorrupt) as refused:
        _ = store.load(key).calibration
    assert refused.value.details == {"artefact": name}
    assert str(store.roi_folder(key)) not in refused.value.sentence


def test_damage_to_any_byte_of_a_calibration_is_found(store, key):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    store.save_calibration(key, calibration("another memory"))
    path = store.roi_folder(key) / "calib.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[at] = broken[at] + 1 if chr(broken[at]) in "12345678" else broken[at] ^ 0x01
        with pytest.raises(ValueError, match=r"\w"):
            calibrations_from_bytes(bytes(broken))
    with pytest.raises(ValueError, match="byte form"):
        calibrations_from_bytes(whole + b" ")


def test_half_a_calibration_is_refused(store, key):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    path = store.roi_folder(key) / "calib.json"
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 11), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        stored = store.load(key)
        assert stored.bank == memory
        with pytest.raises(ArtefactCorrupt):
            _ = stored.calibration


def test_a_damaged_calibration_can_be_calibrated_over_and_a_damaged_memory_fitted_over(store, key):
    memory = bank()
    store.save_bank(key, memory, calibration(memory))
    (store.roi_folder(key) / "calib.json").write_bytes(b"{")
    store.save_calibration(key, calibration(memory, 0.9))
    assert store.load(key).calibration == calibration(memory, 0.9)
    (store.roi_folder(key) / "memory.npz").write_bytes(b"{")
    store.save_bank(key, bank(1), calibration(bank(1)))
    assert store.load(key).calibration == calibration(bank(1))


def test_a_damaged_index_file_matters_to_nobody(store, key):
    store.save_bank(key, bank())
    (store.roi_folder(key) / "index.faiss").write_bytes(b"rubbish")
    assert store.load(key).bank == bank()


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


def test_a_lock_that_is_held_too_long_is_an_answer_and_not_a_hang(store, key):
    with store.lock(key), pytest.raises(Unavailable, match="inspection-1"), store.lock(key, timeout_s=0.05):
        pass
    with store.lock(key, timeout_s=0.05):  # it was released
        pass


def test_models_of_one_roi_share_a_lock_and_other_rois_do_not(store, key):
    other_model = dataclasses.replace(key, model_key="other")
    other_roi, other_recipe = ModelKey(role_id="Inspection", roi_id="b"), dataclasses.replace(key, recipe_id="line2")
    with store.lock(key):
        with pytest.raises(Unavailable), store.lock(other_model, timeout_s=0.05):
            pass
        with store.lock(other_roi, timeout_s=0.05), store.lock(other_recipe, timeout_s=0.05):
            pass


def test_a_lock_is_released_when_the_work_under_it_fails(store, key):
    with pytest.raises(KeyError), store.lock(key):
        raise KeyError("x")
    with store.lock(key, timeout_s=0.05):
        pass


def test_a_lock_keeps_other_processes_out_and_dies_with_its_process(store, key, tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from backend.artifacts.model_key import ModelKey
from backend.storage import ArtefactStore
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


def test_a_heat_map_is_stored_beside_its_model_and_told_with_forward_slashes(store, key, tmp_path):
    told = save_heatmap(store, key, "ab" * 32, b"png")
    assert told == f"Inspection/inspection-1/heatmaps/{'ab' * 32}.png"
    assert (tmp_path / "models" / told).read_bytes() == b"png"


def test_only_the_newest_heat_maps_are_kept(store, key, monkeypatch):
    monkeypatch.setattr(heatmaps, "KEPT_HEATMAPS", 3)
    for number in range(6):
        path = save_heatmap(store, key, f"{number}", b"png")
        os.utime(store.roi_folder(key).parents[1] / path, ns=(number, number))
    assert files(store.roi_folder(key)) == ["heatmaps/3.png", "heatmaps/4.png", "heatmaps/5.png"]


def test_a_heat_map_that_another_call_has_just_deleted_does_no_harm(store, key):
    save_heatmap(store, key, "a", b"png")
    gone = store.roi_folder(key) / "heatmaps" / "b.png"
    gone.symlink_to("nowhere")  # listed, and not there any more
    save_heatmap(store, key, "c", b"png")


def test_the_images_that_other_models_of_a_roi_have_learned_are_known(store, key):
    others = [dataclasses.replace(key, model_key=name) for name in ("x", "y")]
    for seed, a_key in enumerate([key, *others]):
        store.save_bank(a_key, bank(seed))
    assert store.learned_by_other_models(key) == {*bank(1).image_digests, *bank(2).image_digests}
    assert store.learned_by_other_models(others[0]) == {*bank(0).image_digests, *bank(2).image_digests}
    assert ArtefactStore(store.roi_folder(key) / "elsewhere").learned_by_other_models(key) == set()
