"""Whether a models folder is sound: each fault is found and named, and a folder in use is not accused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.artifacts.files import write_atomic
from backend.artifacts.heatmaps import save_heatmap
from backend.artifacts.model_key import ModelKey
from backend.cli import main
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import encode_png
from backend.maintenance import verifying
from backend.maintenance.verifying import verify_folder
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.services.jobs import Jobs
from backend.settings import Settings
from backend.storage import ArtefactStore
from backend.utils import sealed_json, unsealed_json
from backend.wiring import build_recipes, build_service
from tests.testkit.fakes import FakeExtractor, encoded, good_image

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
OTHER = ModelKey(role_id="Inspection", roi_id="inspection-1", model_key="other")
ROI = "Inspection/inspection-1"


def fit(service: InspectionService, key: ModelKey, *seeds: int) -> None:
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in seeds]
    service.fit_ok(key, uploads, mm_per_px=0.2)


def service_on(models: Path) -> InspectionService:
    return build_service(Settings(models_dir=models), extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    """A folder with one of everything that the service writes."""
    folder = tmp_path / "models"
    service = service_on(folder)
    fit(service, KEY, 0, 1, 2)
    fit(service, OTHER, 3, 4)
    service.calibrate(KEY)
    save_heatmap(service.store, KEY, "9" * 64, encode_png(good_image(9)))
    jobs = Jobs(folder / ".jobs")
    jobs.start("fit_ok", lambda _: {})
    jobs.close()
    build_recipes(Settings(models_dir=folder)).copy("default", "line2")
    (folder / "README.md").write_text("Artefacts")
    engine = folder / ".engines" / "openvino-0123456789abcdef"
    engine.mkdir(parents=True)
    for name in ("model.xml", "model.bin"):
        (engine / name).write_bytes(name.encode())
    yield folder
    service.close()


def faults(models: Path) -> list[tuple[str, str]]:
    return [(problem.path, problem.fault) for problem in verify_folder(models)]


def test_a_folder_with_one_of_everything_is_sound(models: Path, tmp_path: Path) -> None:
    assert verify_folder(models) == []
    assert verify_folder(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


# What is found where a byte of a file has changed, and where the file is gone: (end of the path named, fault).
CHANGES = {
    f"{ROI}/memory.npz": (("memory.npz", "damaged"), ("index.faiss", "mismatch")),
    f"{ROI}/calib.json": (("calib.json", "damaged"), None),
    f"{ROI}/index.faiss": (("index.faiss", "mismatch"), None),
    f"{ROI}/images/ok/*.png": ((".json", "damaged"), (".json", "missing")),
    f"{ROI}/images/ok/*.json": ((".json", "damaged"), (".png", "leftover")),
    f"{ROI}/embeddings/*/*.npy": ((".npy", "damaged"), None),
    f"{ROI}/keys/other/memory.npz": (("other/memory.npz", "damaged"), ("other/index.faiss", "mismatch")),
    "recipes/line2/*/*/memory.npz": (("inspection-1/memory.npz", "damaged"), ("index.faiss", "mismatch")),
    ".jobs/*.json": ((".json", "damaged"), None),
}


def test_a_changed_byte_and_a_file_that_is_gone_are_found_and_named(models: Path) -> None:
    for pattern, (changed, gone) in CHANGES.items():
        path = sorted(models.glob(pattern))[0]
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x40]) + whole[middle + 1 :])
        ((name, fault),) = faults(models)
        assert (name.endswith(changed[0]), fault) == (True, changed[1]), pattern
        path.unlink()
        found = faults(models)
        assert len(found) == (gone is not None), pattern
        assert all((name.endswith(gone[0]), fault) == (True, gone[1]) for name, fault in found if gone), pattern
        path.write_bytes(whole)
    assert faults(models) == []


def test_a_sound_file_in_the_wrong_place_is_found(models: Path) -> None:
    (models / ROI / "index.faiss").write_bytes((models / ROI / "keys" / "other" / "index.faiss").read_bytes())
    assert faults(models) == [(f"{ROI}/index.faiss", "mismatch")]
    (models / ROI / "index.faiss").unlink()
    one, other = sorted((models / ROI / "images" / "ok").glob("*.png"))[:2]
    one.write_bytes(other.read_bytes())
    assert [fault for _, fault in faults(models)] == ["damaged"]
    facts, others = one.with_suffix(".json"), other.with_suffix(".json")
    facts.write_bytes(others.read_bytes())
    assert [fault for _, fault in faults(models)] == ["damaged"]


def test_another_image_under_facts_that_were_made_to_fit_is_found(models: Path) -> None:
    one, other = sorted((models / ROI / "images" / "ok").glob("*.png"))[:2]
    one.write_bytes(other.read_bytes())
    facts = unsealed_json(one.with_suffix(".json").read_bytes())
    facts["bytes_sha256"] = unsealed_json(other.with_suffix(".json").read_bytes())["bytes_sha256"]
    one.with_suffix(".json").write_bytes(sealed_json(facts))
    assert faults(models) == [(one.with_suffix(".json").relative_to(models).as_posix(), "mismatch")]


@pytest.mark.parametrize("name", ["notes.txt", f"{ROI}/memory.npz.bak", ".jobs/x.json"])
def test_what_the_service_did_not_write_is_unknown_and_a_link_is_not_followed(models: Path, name: str) -> None:
    path = models / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    (models / "loop").symlink_to(models, target_is_directory=True)
    assert sorted(faults(models)) == sorted([(name, "unknown"), ("loop", "unknown")])


def test_what_was_set_aside_is_a_problem_until_it_is_replaced(models: Path) -> None:
    memory = models / ROI / "memory.npz"
    aside = memory.with_name("memory.npz.corrupt-20261122T185500Z")
    memory.rename(aside)
    assert (f"{ROI}/{aside.name}", "set_aside") in faults(models)
    memory.write_bytes(b"")
    assert [fault for _, fault in faults(models)] == ["damaged"]
    aside.unlink()
    assert [fault for _, fault in faults(models)] == ["damaged"]


def test_a_file_that_cannot_be_read_is_unreadable_and_the_others_are_checked(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "calib.json":
            raise OSError(5, "Input/output error")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (models / ROI / "index.faiss").write_bytes(b"x")
    assert (f"{ROI}/calib.json", "unreadable") in faults(models)
    assert (f"{ROI}/index.faiss", "mismatch") in faults(models)


def test_verifying_changes_nothing(models: Path) -> None:
    def everything() -> dict[str, tuple[bytes, float]]:
        paths = (path for path in models.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in paths}

    (models / ROI / "memory.npz").write_bytes(b"damaged")
    (models / ROI / "images" / "ok" / f"{'a' * 64}.png").write_bytes(b"orphan")
    before = everything()
    assert len(verify_folder(models)) == 2
    assert everything() == before


def test_a_folder_that_a_service_writes_to_is_not_accused(models: Path) -> None:
    service, stop = service_on(models), threading.Event()

    def work() -> None:
        seed = 100
        while not stop.is_set():
            seed += 1
            fit(service, KEY, seed)
            service.calibrate(KEY)
            store = service.store
            with store.lock(KEY):
                images = store.images(KEY)
                images.delete([images.labelled("ok")[0].digest], "ok")

    writer = threading.Thread(target=work)
    writer.start()
    try:
        found = [problem for _ in range(5) for problem in verify_folder(models)]
    finally:
        stop.set()
        writer.join()
        service.close()
    assert found == []


def test_damage_is_found_while_the_roi_is_locked_for_long(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_LOCK_PATIENCE_S", 0.05)
    (models / ROI / "memory.npz").write_bytes(b"damaged")
    with ArtefactStore(models).lock(KEY):
        assert faults(models) == [(f"{ROI}/memory.npz", "damaged")]


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        status = main(["verify", *arguments])
        return status, capsys.readouterr().out

    return run


def test_the_command_exits_with_0_when_all_is_well_and_with_1_when_not(
    models: Path, say: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDI_MODELS_DIR", str(models))
    status, said = say()
    assert (status, said.splitlines()[-1].split(" files")[1]) == (0, ", no problems.")
    write_atomic(models / ROI / "calib.json", b"{}")
    write_atomic(models / "notes.txt", b"x")
    status, said = say("--models", str(models))
    assert status == 1
    first, second, summary = said.splitlines()
    assert first.startswith(f"{ROI}/calib.json: damaged: ")
    assert "calibrate" in first
    assert second.startswith("notes.txt: unknown: ")
    assert summary.endswith("2 problems.")


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path, say: Callable[..., tuple[int, str]]) -> None:
    status, said = say("--models", str(tmp_path / "nowhere"))
    assert status == 1
    assert "no folder" in said
