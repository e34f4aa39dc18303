"""``roi-inspector refit``: its lines, its exit status, and what it takes for the name of a ROI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.artifacts.model_key import ModelKey
from backend.cli import main
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import encoded, plate

NAMES = {
    "Inspection/a": ModelKey(role_id="Inspection", roi_id="a"),
    "default/Inspection/a/other": ModelKey(role_id="Inspection", roi_id="a", model_key="other"),
    "summer/Inspection/a": ModelKey(role_id="Inspection", roi_id="a", recipe_id="summer"),
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three models of the filter bank at another input size than that of the environment."""
    folder = tmp_path / "models"
    service = build_service(Settings(models_dir=folder, extractor="filter-bank", input_size=64))
    for key in NAMES.values():
        uploads = [Upload(name=f"{seed}.png", data=encoded(plate(seed))) for seed in range(3)]
        service.fit_ok(key, uploads, mm_per_px=0.2)
    service.calibrate(NAMES["Inspection/a"])
    service.close()
    monkeypatch.setenv("BDI_EXTRACTOR", "filter-bank")
    monkeypatch.setenv("BDI_INPUT_SIZE", "80")
    return folder


@pytest.fixture
def service(models: Path) -> Iterator[InspectionService]:
    """A service of the environment's settings on that folder, such as would run beside the command."""
    service = build_service(Settings(models_dir=models))
    yield service
    service.close()


def test_all_models_are_made_anew_beside_a_service_that_runs(
    models: Path, service: InspectionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["refit", "--all", "--models", str(models)]) == 0
    out = capsys.readouterr().out.splitlines()
    done = [line.partition(":")[0] for line in out if line.startswith("done ")]
    assert done == ["done Inspection/a", "done Inspection/a [other]", "done Inspection/a (recipe summer)"]
    assert "3 images; calibration renewed, threshold 0." in out[0]
    assert out[-1] == "3 made anew, 0 up to date, 0 failed."
    for key in NAMES.values():
        assert service.infer(key, plate(9), mm_per_px=0.2).grid_hw == (10, 10)
    assert main(["refit", "--all", "--models", str(models)]) == 0
    assert "0 made anew, 3 up to date, 0 failed." in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_named_model_alone_is_made_anew_in_the_folder_of_the_environment(
    models: Path,
    service: InspectionService,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setenv("BDI_MODELS_DIR", str(models))
    assert main(["refit", name]) == 0
    assert f"done {NAMES[name]}: 3 images" in capsys.readouterr().out
    assert [service.refitter.n_images_to_learn(key) for key in NAMES.values()] == [
        0 if key == NAMES[name] else 3 for key in NAMES.values()
    ]
    assert main(["refit", name]) == 0
    assert f"skipped {NAMES[name]}: up to date" in capsys.readouterr().out
    assert main(["refit", name, name, "--force"]) == 0
    assert "1 made anew, 0 up to date, 0 failed." in capsys.readouterr().out


def test_one_that_fails_gives_status_1_and_the_others_are_done(
    models: Path, service: InspectionService, capsys: pytest.CaptureFixture[str]
) -> None:
    summer = NAMES["summer/Inspection/a"]
    service.store.images(summer).delete(service.describe(summer).fitted_bank(summer).image_digests, "ok")
    assert main(["refit", "--all", "--models", str(models)]) == 1
    out = capsys.readouterr().out
    assert "failed Inspection/a (recipe summer): None of the 3 images" in out
    assert "2 made anew, 0 up to date, 1 failed." in out
    assert main(["refit", "Inspection/nobody", "--models", str(models)]) == 1
    assert "failed Inspection/nobody: memory not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "or say --all"),
        (["--all", "Inspection/a"], 2, "or say --all"),
        (["Inspection"], 2, "'Inspection' names no ROI"),
        (["a/b/c/d/e"], 2, "'a/b/c/d/e' names no ROI"),
        (["last/Inspection/a"], 1, "'last' is reserved"),
        (["Inspection/"], 1, "roi_id is empty"),
    ],
)
def test_what_names_no_roi_is_refused_with_a_sentence(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert main(["refit", *arguments, "--models", str(models)]) == status
    assert said in capsys.readouterr().out


def test_without_an_extractor_it_says_why(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDI_EXTRACTOR", "dinov2")
    monkeypatch.setenv("BDI_WEIGHTS", str(models / "nothing.safetensors"))
    assert main(["refit", "--all", "--models", str(models)]) == 2
    assert "BDI_WEIGHTS" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refit", "--all", "--models", str(tmp_path / "nothing")]) == 1
    assert "There is no folder" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()
