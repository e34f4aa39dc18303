"""What lies in a models folder and is not ours, or may not be read, keeps nothing from working, and is named once."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.artifacts.model_key import ModelKey
from backend.maintenance.backup import back_up
from backend.maintenance.sweeping import sweep
from backend.maintenance.verifying import verify_folder
from backend.services.refit_runs import fitted_models
from backend.storage import ArtefactStore
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, plates
from tests.testkit.faults import unreadable

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
ROI = "Inspection/inspection-1"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models", loader=ready(FakeExtractor()), max_disk_gb=1) as api:
        answer_of(api.fit(plates([0, 1, 2])))
        yield api


def test_a_folder_that_may_not_be_read_and_files_of_systems_keep_nothing_from_working(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost, volume = api.models / "lost+found", api.models / "System Volume Information"
    for folder in (lost, volume, api.models / "Role that may not be read"):
        folder.mkdir()
    litter = [api.models / "Thumbs.db", api.models / ROI / "desktop.ini", api.models / ROI / "images" / "ok" / "._x"]
    for path in litter:
        path.write_bytes(b"x" * 1000)
    store = ArtefactStore(api.models, max_disk_gb=1)
    with unreadable(lost, volume, api.models / "Role that may not be read"), caplog.at_level(logging.WARNING):
        for _ in range(2):
            models = {each["recipe_id"]: each["models"] for each in answer_of(api.client.get("/recipes"))["recipes"]}
            assert [model["roi_id"] for model in models["default"]] == ["inspection-1"]
            assert fitted_models(store) == [KEY]
            assert {problem.fault for problem in verify_folder(api.models)} <= {"unreadable"}
            assert not sweep(store)
        store.disk.used_bytes = None
        store.disk.check(1)
        answer_of(api.fit(plates([3])))
        assert back_up(api.models, tmp_path / "a.zip") == {KEY: []}
        copied = answer_of(api.client.post("/recipes/copy", json={"from": "default", "to": "line2"}), 201)
        assert [model["roi_id"] for model in copied["models"]] == ["inspection-1"]
    for name in ("lost+found", "System Volume Information", "Role that may not be read", "Thumbs.db"):
        assert sum(name in record.message for record in caplog.records if "passed over" in record.message) == 1, name
    assert verify_folder(api.models) == []
    assert all(path.exists() for path in (lost, volume, *litter))
    assert not list((api.models / "recipes" / "line2").rglob("desktop.ini"))


def test_what_may_not_be_read_of_a_roi_is_named_and_keeps_it_out_of_a_backup(api: Api, tmp_path: Path) -> None:
    answer_of(api.fit(plates([3, 4]), roi_id="other"))
    images = api.models / ROI / "images" / "ok"
    with unreadable(images):
        assert [(problem.path, problem.fault) for problem in verify_folder(api.models)] == [
            (f"{ROI}/images/ok", "unreadable")
        ]
        assert not sweep(ArtefactStore(api.models)), "what was made of its images is not without an owner"
        error_of(api.client.post("/recipes/copy", json={"from": "default", "to": "line2"}), 503, "storage_failed")
        found = back_up(api.models, tmp_path / "a.zip")
    assert [bool(problems) for _, problems in sorted(found.items(), key=lambda each: each[0].roi_id)] == [True, False]


def test_a_folder_whose_name_came_back_in_another_unicode_form_is_the_same_roi(api: Api) -> None:
    composed, decomposed = "Prüfung-é", unicodedata.normalize("NFD", "Prüfung-é")
    checksum = answer_of(api.fit(plates([5, 6]), role_id=composed, roi_id=composed))["checksum"]
    (api.models / composed / composed).rename(api.models / composed / decomposed)
    (api.models / composed).rename(api.models / decomposed)
    for role_id in (composed, decomposed):
        answer = answer_of(api.infer(plates([9])[0], role_id=role_id, roi_id=role_id))
        assert answer["params"]["memory_checksum"] == checksum
        assert (answer["role_id"], answer["roi_id"]) == (composed, composed)
    answer_of(api.fit(plates([7]), role_id=composed, roi_id=decomposed))
    assert not (api.models / composed).exists(), "no second folder beside the one that is there"
    listed = answer_of(api.client.get("/recipes"))["recipes"][0]["models"]
    assert [model["role_id"] for model in listed].count(composed) == len(listed) - 1 == 1
    assert verify_folder(api.models) == []


def test_names_and_parts_that_come_in_another_unicode_form_are_the_same(api: Api) -> None:
    roi = {"role_id": "Inspection", "roi_id": "parts"}
    for seed, form in ((0, "NFC"), (1, "NFD")):
        part = unicodedata.normalize(form, "Prüfling é")
        files = [
            ("images", (f"{part}.png", plates([seed])[0], "image/png")),
            ("metas", (None, json.dumps({"part_id": part}), "application/json")),
        ]
        (saved,) = answer_of(api.client.post("/datasets/ok/upload", data=roi, files=files))["saved"]
        decomposed = unicodedata.normalize("NFD", saved)
        meta = api.client.get("/datasets/meta", params={**roi, "label": "ok", "filename": decomposed})
        answer_of(meta)
    answer_of(api.fit([], use_dataset="true", roi_id="parts"))
    bank = ArtefactStore(api.models).load(ModelKey(**roi)).bank
    assert bank is not None
    assert bank.n_parts == 1
