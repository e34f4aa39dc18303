"""Damaged files: set aside, told of, never taken for "never there", and mended by what takes their place."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts import store as store_module
from backend.artifacts.formats import OutdatedFormat
from backend.artifacts.model_key import ModelKey
from backend.artifacts.quarantine import Quarantine, set_aside_copies
from backend.errors import ArtefactCorrupt
from backend.maintenance.verifying import verify_folder
from backend.storage import ArtefactStore
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, plates

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
ROI = {"role_id": "Inspection", "roi_id": "inspection-1"}
ASIDE = re.compile(r"\.corrupt-\d{8}T\d{6}Z$")
DEADLINE_S = 20.0


def start(models: Path) -> Any:
    return running_app(models, loader=ready(FakeExtractor()))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A fitted and calibrated ROI."""
    with start(tmp_path / "models") as api:
        answer_of(api.fit(plates([0, 1, 2])))
        answer_of(api.calibrate())
        yield api


def damage(path: Path, at: int = -200) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def aside(folder: Path, name: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(name) and ASIDE.search(path.name))


def health(api: Api) -> dict[str, Any]:
    return answer_of(api.client.get("/health"))


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


# -- the memory ---------------------------------------------------------------------------------------------------


def refused_everywhere(api: Api) -> None:
    """Every call on the ROI that needs its memory says so."""
    for answer in (
        api.infer(plates([9])[0]),
        api.calibrate(),
        api.client.get("/state", params=ROI),
        api.client.get("/manifest", params=ROI),
        api.client.post("/infer_dataset", json=ROI),
        api.client.post("/calibrate_dataset", json=ROI),
    ):
        assert "/fit_ok" in error_of(answer, 500, "artefact_corrupt")["error"]


def test_a_damaged_memory_is_set_aside_and_reported_until_a_fit_learns_its_images_again(
    api: Api, tmp_path: Path
) -> None:
    damage(api.roi_folder() / "memory.npz")
    refused_everywhere(api)
    assert not (api.roi_folder() / "memory.npz").exists()
    assert len(aside(api.roi_folder(), "memory.npz")) == 1
    told = health(api)
    assert told["status"] == "degraded"
    assert "Inspection/inspection-1" in told["reason"]
    assert "/fit_ok" in told["reason"]
    assert str(tmp_path) not in told["reason"]
    refused_everywhere(api)

    fitted = answer_of(api.fit(plates([3])))
    assert fitted["n_ok_total"] == 4
    assert any("learned again" in warning and "3 images" in warning for warning in fitted["warnings"])
    with start(tmp_path / "undamaged") as other:
        answer_of(other.fit(plates([0, 1, 2])))
        assert answer_of(other.fit(plates([3])))["checksum"] == fitted["checksum"]
    assert health(api)["status"] == "ok"
    assert answer_of(api.infer(plates([9])[0]))["threshold"] > 0
    assert len(aside(api.roi_folder(), "memory.npz")) == 1, "it stays for a post-mortem"
    assert verify_folder(api.models) == []


def test_a_restart_and_another_process_know_of_it(api: Api, tmp_path: Path) -> None:
    shutil.copytree(api.models, tmp_path / "copy")
    damage(tmp_path / "copy" / "Inspection" / "inspection-1" / "memory.npz")
    with pytest.raises(ArtefactCorrupt):
        ArtefactStore(tmp_path / "copy").load(KEY)
    with pytest.raises(ArtefactCorrupt):
        ArtefactStore(tmp_path / "copy").load(KEY)
    with start(tmp_path / "copy") as restarted:
        wait(lambda: health(restarted)["status"] == "degraded")  # nobody has asked for the ROI yet
        assert "inspection-1" in health(restarted)["reason"]
        refused_everywhere(restarted)
        answer_of(restarted.fit(plates([0, 1, 2]), mode="replace"))
        assert health(restarted)["status"] == "ok"
    with start(tmp_path / "copy") as restarted:
        answer_of(restarted.infer(plates([9])[0]))
        assert health(restarted)["status"] == "ok"


@pytest.mark.parametrize("damaged", ["beginning", "all"])
def test_where_nobody_knows_what_a_memory_had_learned_the_fit_must_say_what_to_learn(api: Api, damaged: str) -> None:
    path = api.roi_folder() / "memory.npz"
    if damaged == "all":
        path.write_bytes(b"\0" * 1000)
    else:
        damage(path, path.read_bytes().index(b'"image_digests"') + 30)
    error = error_of(api.fit(plates([3])), 500, "artefact_corrupt")["error"]
    assert "use_dataset=true" in error
    assert "mode=replace" in error
    classes = answer_of(api.client.get("/datasets/list", params=ROI))["classes"]
    assert classes["ok"]["count"] == 3, "the fit that was refused has stored nothing"
    files = [("images", ("a.png", plates([7])[0], "image/png"))]
    answer_of(api.client.post("/datasets/ok/upload", data=ROI, files=files))
    fitted = answer_of(api.fit([], use_dataset="true"))
    assert fitted["n_ok_total"] == 4
    assert any("all good ones that are stored" in warning for warning in fitted["warnings"])
    answer_of(api.infer(plates([9])[0]))


def test_what_was_learned_with_a_shape_is_learned_with_it_again(api: Api) -> None:
    shape = {"kind": "rect", "x": 0.0, "y": 0.0, "w": 48.0, "h": 96.0}
    answer_of(api.fit(plates([0, 1, 2]), mode="replace", shape=shape))
    before = answer_of(api.client.get("/manifest", params=ROI))["fit"]
    damage(api.roi_folder() / "memory.npz", -100)
    error_of(api.fit(plates([3]), mm_per_px="0.4"), 409, "mm_per_px_mismatch")
    answer_of(api.fit(plates([0])))
    assert answer_of(api.client.get("/manifest", params=ROI))["fit"] == before


def test_what_an_older_version_wrote_is_no_damage_and_a_fit_learns_its_images_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = api.roi_folder() / "memory.npz"
    old, parse = path.read_bytes(), store_module.bank_from_bytes

    def parse_newer(data: bytes) -> Any:
        if data == old:
            raise OutdatedFormat("format version 0")
        return parse(data)

    monkeypatch.setattr(store_module, "bank_from_bytes", parse_newer)
    path.write_bytes(old)  # with another time, so that it is read again
    for answer in (api.infer(plates([9])[0]), api.client.get("/state", params=ROI)):
        error = error_of(answer, 409, "artefact_outdated")["error"]
        assert "/fit_ok learns the stored good images again" in error
    assert (path.read_bytes(), aside(api.roi_folder(), "memory.npz")) == (old, [])
    assert health(api)["status"] == "ok"
    assert answer_of(api.fit([], use_dataset="true"))["n_ok_total"] == 3
    monkeypatch.undo()
    answer_of(api.infer(plates([9])[0]))


# -- the calibration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remedy", ["/calibrate_ng", "/calibrate_dataset"])
def test_a_damaged_calibration_is_never_taken_for_none_and_a_new_one_mends_it(
    api: Api, tmp_path: Path, remedy: str
) -> None:
    path = api.roi_folder() / "calib.json"
    damage(path)
    for _ in range(2):
        for answer in (
            api.infer(plates([9])[0]),
            api.client.get("/state", params=ROI),
            api.client.get("/manifest", params=ROI),
            api.client.post("/infer_dataset", json=ROI),
        ):
            assert "calibrate" in error_of(answer, 500, "artefact_corrupt")["error"].lower()
        assert len(aside(api.roi_folder(), "calib.json")) == 1
        assert not path.exists()
    assert "calibrat" in health(api)["reason"]
    with pytest.raises(ArtefactCorrupt):
        _ = ArtefactStore(api.models).load(KEY).calibration
    fitted = answer_of(api.fit(plates([3])))
    assert any("calibration is damaged" in warning for warning in fitted["warnings"])
    error_of(api.infer(plates([9])[0]), 500, "artefact_corrupt")
    calibrated = answer_of(api.client.post(remedy, json={**ROI, "mm_per_px": 0.2} if "ng" in remedy else ROI))
    assert any("defaults" in warning for warning in calibrated["warnings"])
    assert answer_of(api.infer(plates([9])[0]))["decision"] in ("ok", "ng")
    assert health(api)["status"] == "ok"


# -- images -------------------------------------------------------------------------------------------------------


def name_of(api: Api, path: Path) -> str:
    """What clients call a stored image."""
    listed = answer_of(api.client.get("/datasets/list", params=ROI))["classes"]["ok"]["files"]
    return next(str(name) for name in listed if path.name[:12] in name)


@pytest.mark.parametrize("suffix", [".png", ".json"])
def test_a_damaged_image_is_set_aside_stays_listed_and_an_upload_or_a_deletion_mends_it(
    api: Api, suffix: str, tmp_path: Path
) -> None:
    folder = api.roi_folder() / "images" / "ok"
    path = sorted(folder.glob(f"*{suffix}"))[0]
    damage(path, -20)
    query = {**ROI, "label": "ok", "filename": name_of(api, path)}
    for _ in range(2):
        error_of(api.client.get("/datasets/file", params=query), 500, "artefact_corrupt")
        assert not path.exists()
        assert len(aside(folder, path.name)) == 1
        assert answer_of(api.client.get("/datasets/list", params=ROI))["classes"]["ok"]["count"] == 3
    assert "upload it again" in health(api)["reason"]
    assert {problem.fault for problem in verify_folder(api.models)} == {"set_aside", "missing"} - (
        {"missing"} if suffix == ".json" else set()
    )
    files = [("images", ("good.png", data, "image/png")) for data in plates([0, 1, 2])]
    answer_of(api.client.post("/datasets/ok/upload", data=ROI, files=files))
    assert health(api)["status"] == "ok"
    assert verify_folder(api.models) == []
    damage(path, -20)
    query["filename"] = name_of(api, path)
    error_of(api.client.get("/datasets/file", params=query), 500, "artefact_corrupt")
    assert answer_of(api.client.delete("/datasets/file", params=query))["deleted"]
    assert health(api)["status"] == "ok"
    assert not [entry for entry in folder.iterdir() if path.stem in entry.name]


# -- what is not damage, and who may not move it ------------------------------------------------------------------


@pytest.mark.parametrize("number", [5, 13], ids=["EIO", "EACCES"])
@pytest.mark.parametrize("name", ["memory.npz", "calib.json"])
def test_a_file_that_the_system_does_not_hand_out_is_503_and_stays_where_it_is(
    api: Api, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    (api.roi_folder() / name).touch()  # so that it is read again
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == name:
            raise OSError(number, "secret")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    error = error_of(api.infer(plates([9])[0]), 503, "storage_failed")["error"]
    assert "secret" not in error
    error_of(api.client.get("/state", params=ROI), 503, "storage_failed")
    monkeypatch.undo()
    assert aside(api.roi_folder(), name) == []
    answer_of(api.infer(plates([9])[0]))
    assert health(api)["status"] == "ok"


def test_while_somebody_else_writes_a_damaged_file_is_reported_and_set_aside_by_a_later_reader(api: Api) -> None:
    damage(api.roi_folder() / "memory.npz")
    with ArtefactStore(api.models).lock(KEY):
        begun = time.monotonic()
        error_of(api.infer(plates([9])[0]), 500, "artefact_corrupt")
        assert time.monotonic() - begun < 5
        assert aside(api.roi_folder(), "memory.npz") == []
        assert health(api)["status"] == "degraded"
    error_of(api.infer(plates([9])[0]), 500, "artefact_corrupt")
    assert len(aside(api.roi_folder(), "memory.npz")) == 1


def test_many_readers_at_once_all_hear_of_it_and_it_is_set_aside_once(api: Api) -> None:
    damage(api.roi_folder() / "memory.npz")
    store = ArtefactStore(api.models)
    heard = []

    def read() -> None:
        try:
            store.load(KEY)
        except ArtefactCorrupt as error:
            heard.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 8
    assert len(aside(api.roi_folder(), "memory.npz")) == 1
    store.found_damaged(KEY, api.roi_folder() / "calib.json", lambda _data: False)  # sound at the second look
    assert (api.roi_folder() / "calib.json").exists()


def test_an_older_file_that_was_set_aside_is_not_overwritten(api: Api) -> None:
    path = api.roi_folder() / "memory.npz"
    quarantine = Quarantine(api.models)
    for number in range(3):  # within one second
        path.write_bytes(b"%d" % number)
        quarantine.set_aside(path)
    assert [copy.read_bytes() for copy in set_aside_copies(path)] == [b"0", b"1", b"2"]


def test_the_reason_names_a_few_and_counts_the_rest_and_asks_nothing_of_the_disk(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "nowhere")
    assert quarantine.reason is None
    for number in range(10):
        quarantine.remember(tmp_path / "nowhere" / "r" / f"roi-{number}" / "memory.npz")
    assert quarantine.reason is not None
    assert quarantine.reason.count("/fit_ok") == 3
    assert "7 more" in quarantine.reason
    quarantine.forget(tmp_path / "nowhere" / "r" / "roi-0" / "memory.npz")
    assert "6 more" in quarantine.reason


def test_each_model_of_a_roi_is_damaged_for_itself(api: Api) -> None:
    answer_of(api.fit(plates([0, 1]), model_key="other"))
    damage(api.roi_folder() / "keys" / "other" / "memory.npz")
    error_of(api.infer(plates([9])[0], model_key="other"), 500, "artefact_corrupt")
    answer_of(api.infer(plates([9])[0]))
    assert str(dataclasses.replace(KEY, model_key="other")) in health(api)["reason"]
    answer_of(api.fit(plates([0, 1, 2]), mode="replace"))  # knows not what the other needs, and deletes nothing
    answer_of(api.fit(plates([1]), model_key="other"))
    answer_of(api.infer(plates([9])[0], model_key="other"))
