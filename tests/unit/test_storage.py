"""The ordered name: a ROI's artefacts from a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import storage
from backend.artifacts.model_key import ModelKey
from backend.errors import InvalidId
from tests.testkit.fakes import bank_on_a_line

BANK = bank_on_a_line({"a" * 64: (0.0, 1.0), "b" * 64: (0.5, 3.0)})


def test_what_is_saved_is_loaded_from_the_folder_of_the_settings_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDI_MODELS_DIR", str(tmp_path / "models"))
    assert storage.load("Inspection", "inspection-1").bank is None
    storage.save("Inspection", "inspection-1", BANK)
    assert storage.load("Inspection", "inspection-1").bank == BANK
    assert storage.load("Inspection", "inspection-1", models_dir=tmp_path / "elsewhere").bank is None
    key = ModelKey(role_id="Inspection", roi_id="inspection-1")
    assert storage.ArtefactStore(tmp_path / "models").load(key).bank == BANK


def test_an_id_that_cannot_name_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidId):
        storage.load("..", "inspection-1", models_dir=tmp_path)
