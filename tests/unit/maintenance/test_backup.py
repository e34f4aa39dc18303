"""ROIs in an archive file: they come back as they were, on another machine too; and no archive does harm."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.model_key import ModelKey
from backend.cli import main
from backend.errors import StorageFull
from backend.extractors.loader import ExtractorLoader
from backend.maintenance import restoring
from backend.maintenance.backup import MANIFEST, ArchiveError, back_up
from backend.maintenance.restoring import restore
from backend.maintenance.verifying import verify_folder
from backend.services.datasets import DatasetUpload
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.storage import ArtefactStore
from backend.wiring import build_datasets, build_service
from tests.testkit.fakes import FakeExtractor, encoded, good_image

KEYS = [
    ModelKey(role_id="Inspection", roi_id="inspection-1"),
    ModelKey(role_id="Prüfung 检查", roi_id="деталь:1?"),
    ModelKey(role_id="Inspection", roi_id="inspection-1", recipe_id="line2"),
]
OTHER_MODEL = ModelKey(role_id="Inspection", roi_id="inspection-1", model_key="CON")


def service_on(models: Path) -> InspectionService:
    return build_service(Settings(models_dir=models), extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))


def fit(service: InspectionService, key: ModelKey, *seeds: int, **options: Any) -> None:
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in seeds]
    service.fit_ok(key, uploads, mm_per_px=0.2, **options)


def seen(models: Path, key: ModelKey) -> tuple[Any, ...]:
    service = service_on(models)
    try:
        inspection = service.infer(key, good_image(99), mm_per_px=0.2)
        listed = build_datasets(Settings(models_dir=models)).list(key)
        return inspection.score, inspection.threshold, inspection.params["memory_checksum"], listed
    finally:
        service.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three ROIs, one of them with a second model and bad images."""
    folder = tmp_path_factory.mktemp("backup") / "models"
    service = service_on(folder)
    for n, key in enumerate(KEYS):
        fit(service, key, n, n + 1, n + 2)
        service.calibrate(key)
    fit(service, OTHER_MODEL, 10, 11)
    upload = DatasetUpload(name="bad.png", data=encoded(good_image(50)), meta={"who": "Zoë"})
    build_datasets(Settings(models_dir=folder)).add(KEYS[0], "ng", [upload])
    service.close()
    return folder


@pytest.fixture(scope="module")
def archive(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "rois.zip"
    back_up(models, out)
    return out


def files(models: Path) -> dict[str, bytes]:
    return {
        path.relative_to(models).as_posix(): path.read_bytes()
        for path in models.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# -- there and back -----------------------------------------------------------------------------------------------


def test_everything_comes_back_on_another_machine_as_it_was(models: Path, archive: Path, tmp_path: Path) -> None:
    assert restore(archive, tmp_path / "there") == KEYS
    assert files(tmp_path / "there") == files(models)
    assert verify_folder(tmp_path / "there") == []
    for key in (*KEYS, OTHER_MODEL):
        assert seen(tmp_path / "there", key) == seen(models, key)


def test_the_names_in_an_archive_are_ascii_and_known_to_every_system(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert opened.testzip() is None
    assert all(name.isascii() and not set(name) & set('<>:"|?*\\') for name in names)
    assert any(name.startswith("rois/0/keys/%43%4F%4E/") for name in names)
    assert not any("heatmaps" in name or "index" in name for name in names)


def test_the_manifest_has_the_digest_of_every_member(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        manifest = json.loads(opened.read(MANIFEST))
        assert set(manifest["files"]) == set(opened.namelist()) - {MANIFEST}
        for name, line in manifest["files"].items():
            data = opened.read(name)
            assert line == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"recipe_id": "line2"}, [KEYS[2]]),
        ({"role_id": "Inspection"}, [KEYS[0], KEYS[2]]),
        ({"roi_id": "деталь:1?"}, [KEYS[1]]),
        ({"recipe_id": "default", "role_id": "Inspection", "roi_id": "inspection-1"}, [KEYS[0]]),
    ],
)
def test_only_the_chosen_rois_are_saved(models: Path, tmp_path: Path, chosen: Any, expected: list[ModelKey]) -> None:
    assert [*back_up(models, tmp_path / "a.zip", **chosen)] == expected
    assert restore(tmp_path / "a.zip", tmp_path / "there") == expected


def test_an_archive_takes_the_place_of_none_and_of_no_roi_there_is_none(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"the last good one")
    with pytest.raises(ArchiveError, match="exists"):
        back_up(models, tmp_path / "a.zip")
    with pytest.raises(ArchiveError, match="no such ROI"):
        back_up(models, tmp_path / "b.zip", roi_id="nobody")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_damaged_roi_is_left_out_and_told_of(models: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    (copy / "Inspection" / "inspection-1" / "memory.npz").write_bytes(b"damaged")
    report = back_up(copy, tmp_path / "a.zip")
    assert {key: [problem.fault for problem in problems] for key, problems in report.items()} == {
        KEYS[0]: ["damaged"],
        KEYS[1]: [],
        KEYS[2]: [],
    }
    assert restore(tmp_path / "a.zip", tmp_path / "there") == KEYS[1:]
    with pytest.raises(ArchiveError, match="damaged"):
        back_up(copy, tmp_path / "b.zip", role_id="Inspection", recipe_id="default")
    assert not (tmp_path / "b.zip").exists()


def test_a_roi_is_saved_in_one_generation_while_it_is_fitted(models: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    service, stop = service_on(copy), threading.Event()

    def fits() -> None:
        seed = 100
        while not stop.is_set():
            seed += 1
            fit(service, KEYS[0], seed, seed + 1, mode="replace" if seed % 2 else "add")

    writer = threading.Thread(target=fits)
    writer.start()
    try:
        for number in range(5):
            assert not any(back_up(copy, tmp_path / f"{number}.zip").values())
    finally:
        stop.set()
        writer.join()
        service.close()
    for number in range(5):
        restore(tmp_path / f"{number}.zip", tmp_path / f"{number}")
        assert verify_folder(tmp_path / f"{number}") == []


# -- into a folder that is in use ---------------------------------------------------------------------------------


@pytest.fixture
def used(models: Path, tmp_path: Path) -> Path:
    """A folder in which the ROI has learned something else, with images and a model that the archive does not have."""
    there = tmp_path / "used"
    service = service_on(there)
    fit(service, KEYS[0], 30, 31, 32)
    service.calibrate(KEYS[0], margin=1.3)
    fit(service, ModelKey(role_id="Inspection", roi_id="inspection-1", model_key="another"), 33, 34)
    fit(service, ModelKey(role_id="Inspection", roi_id="bystander"), 1, 2)
    service.close()
    return there


def test_a_roi_that_is_there_is_refused_before_anything_is_changed(used: Path, archive: Path) -> None:
    before = files(used)
    with pytest.raises(ArchiveError, match="--replace") as refused:
        restore(archive, used)
    assert "Inspection/inspection-1" in str(refused.value)
    assert files(used) == before


def test_with_replace_the_archives_roi_takes_its_place_and_no_other_is_touched(
    used: Path, models: Path, archive: Path
) -> None:
    bystander = {name: data for name, data in files(used).items() if "bystander" in name}
    restore(archive, used, replace=True)
    assert {name: data for name, data in files(used).items() if "bystander" not in name} == files(models)
    assert {name: data for name, data in files(used).items() if "bystander" in name} == bystander
    assert verify_folder(used) == []


def test_a_service_sees_the_old_pair_or_the_new_one_while_a_roi_is_replaced(
    used: Path, models: Path, archive: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.zip"
    back_up(used, own, roi_id="inspection-1")
    expected = {seen(used, KEYS[0])[:3], seen(models, KEYS[0])[:3]}
    service, stop = service_on(used), threading.Event()
    found: set[tuple[Any, ...]] = set()

    def inspect() -> None:
        while not stop.is_set():
            inspection = service.infer(KEYS[0], good_image(99), mm_per_px=0.2)
            found.add((inspection.score, inspection.threshold, inspection.params["memory_checksum"]))

    reader = threading.Thread(target=inspect)
    reader.start()
    try:
        for _ in range(3):
            restore(archive, used, replace=True)
            restore(own, used, replace=True)
    finally:
        stop.set()
        reader.join()
        service.close()
    assert found == expected


def test_a_restored_memory_mends_a_damaged_one(models: Path, archive: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    memory = copy / "Inspection" / "inspection-1" / "memory.npz"
    memory.write_bytes(b"damaged")
    restore(archive, copy, replace=True)
    assert seen(copy, KEYS[0]) == seen(models, KEYS[0])


# -- archives that mean harm --------------------------------------------------------------------------------------


def members(archive: Path) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        return [(info, opened.read(info)) for info in opened.infolist()]


def rebuilt(archive: Path, out: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """Write an archive again after a change to its members, under a manifest that agrees with them."""
    contents = {info.filename: data for info, data in members(archive)}
    manifest = json.loads(contents.pop(MANIFEST))
    change(contents, manifest)
    lines = manifest["files"]
    for name, data in contents.items() if lines else ():
        if isinstance(lines.get(name, {}), dict):
            lines[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with zipfile.ZipFile(out, "w") as made:
        for name, data in contents.items():
            made.writestr(zipfile.ZipInfo(name), data)
        made.writestr(MANIFEST, json.dumps(manifest))
    return out


def refused(archive: Path, tmp_path: Path, match: str = "nothing was changed") -> None:
    there = tmp_path / "there"
    with pytest.raises(ArchiveError, match=match):
        restore(archive, there)
    assert files(there) == {}
    assert [path.name for path in there.iterdir()] == [] if there.exists() else True
    assert sorted(path.name for path in tmp_path.iterdir()) in (["bad.zip", "there"], ["bad.zip"])


HOSTILE_NAMES = [
    "../evil.npz",
    "rois/0/../../evil.npz",
    "rois/0/images/ok/../../../evil.json",
    "/etc/evil",
    "C:/evil.npz",
    "C:evil.npz",
    "rois\\0\\memory.npz",
    "rois/0/..\\..\\evil.npz",
    "rois/0/images/ok/..\\evil.png",
    "\\\\server\\share\\evil",
    "rois/0/CON",
    "rois/0/keys/CON/memory.npz",
    "rois/0/keys/NUL.txt/memory.npz",
    "rois/0/keys/a/memory.npz",
    "rois/0/keys/%61/../memory.npz",
    "rois/0/keys/%2e%2e/memory.npz",
    "rois/0/keys/%2E%2E/memory.npz",
    "rois/0/keys/%00/memory.npz",
    "rois/0/.lock",
    "rois/0/.tmp-0123456789abcdef",
    "rois/0/memory.npz.corrupt-20261122T185500Z",
    "rois/0/index.faiss",
    "rois/0/heatmaps/" + "a" * 64 + ".png",
    "rois/0/README.md",
    "rois/0/memory.npz/",
    "rois/0//calib.json",
    "rois/0/./calib.json",
    "rois/00/memory.npz",
    "rois/9/memory.npz",
    "rois/-1/memory.npz",
    "rois/0/images/ok/" + "a" * 64 + ".exe",
    "rois/0/images/ok/" + "A" * 64 + ".png",
    "rois/0/images/ok/" + "a" * 63 + ".png",
    "rois/0/images/maybe/" + "a" * 64 + ".png",
    "rois/0/images/ok/" + "a" * 64 + ".png:stream",
    "rois/0/embeddings/x/" + "a" * 64 + ".npy",
    "models/Inspection/inspection-1/memory.npz",
    "memory.npz",
    "rois/0/Übung",
    "rois/0/ memory.npz",
    "rois/0/memory.npz ",
    "ROIS/0/memory.npz",
    "__MACOSX/x",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_no_backup_writes_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    refused(rebuilt(archive, tmp_path / "bad.zip", lambda contents, _: contents.update({name: b"x"})), tmp_path)


def test_a_name_with_a_nul_in_it_is_refused(archive: Path, tmp_path: Path) -> None:
    """zipfile itself cuts the name there, and would take it for a good one."""
    name = "rois/0/images/ok/" + "a" * 64 + ".png"
    rebuilt(archive, tmp_path / "bad.zip", lambda contents, _: contents.update({name + "#.exe": b"x"}))
    data = (tmp_path / "bad.zip").read_bytes()
    assert data.count(name.encode() + b"#.exe") == 3
    (tmp_path / "bad.zip").write_bytes(data.replace(name.encode() + b"#.exe", name.encode() + b"\0.exe"))
    refused(tmp_path / "bad.zip", tmp_path)


@pytest.mark.parametrize("again", ["rois/0/memory.npz", MANIFEST, "rois/0/MEMORY.npz"])
def test_a_name_that_stands_twice_is_refused(archive: Path, tmp_path: Path, again: str) -> None:
    shutil.copy(archive, tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "a") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what is done here on purpose
        opened.writestr(again, b"another")
    refused(tmp_path / "bad.zip", tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_another_thing_that_is_no_file_is_refused(archive: Path, tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for info, data in members(archive):
            if info.filename == "rois/0/calib.json":
                info.external_attr = (kind | 0o777) << 16
            made.writestr(info, data)
    refused(tmp_path / "bad.zip", tmp_path, "no file")


def test_an_encrypted_member_is_refused(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[header_of(archive, "rois/0/memory.npz")[1] + 8] |= 1
    (tmp_path / "bad.zip").write_bytes(data)
    refused(tmp_path / "bad.zip", tmp_path, "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused(archive: Path, tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for info, data in members(archive):
            made.writestr(info.filename, data, method)
    refused(tmp_path / "bad.zip", tmp_path)


# -- bombs and lies -----------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_is_unpacked(archive: Path, tmp_path: Path) -> None:
    name = "rois/0/images/ok/" + "a" * 64 + ".png"
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for info, data in members(archive):
            made.writestr(info, data)
        made.writestr(name, b"\0" * 50_000_000, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bad.zip").stat().st_size < 1_000_000
    refused(tmp_path / "bad.zip", tmp_path, "200 times")


def test_too_many_members_and_too_large_a_manifest_are_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(archive, tmp_path / "bad.zip")
    monkeypatch.setattr(restoring, "MAX_MEMBERS", 10)
    refused(tmp_path / "bad.zip", tmp_path, "at most 10")
    monkeypatch.setattr(restoring, "MAX_MEMBERS", 1000)
    monkeypatch.setattr(restoring, "MAX_MANIFEST_BYTES", 100)
    refused(tmp_path / "bad.zip", tmp_path, "too large")


def test_what_the_disk_has_no_room_for_is_not_begun(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(StorageFull):
        restore(archive, tmp_path / "there")
    assert files(tmp_path / "there") == {}


def header_of(archive: Path, name: str) -> tuple[int, int]:
    """Return where the local and the central header of a member begin."""
    with zipfile.ZipFile(archive) as opened:
        local, directory = opened.getinfo(name).header_offset, opened.start_dir
    central = archive.read_bytes().index(name.encode(), directory) - 46
    return local, central


@pytest.mark.parametrize("by", [-1, 1, 1000, 2**31])
def test_a_header_that_lies_about_a_size_is_refused(archive: Path, tmp_path: Path, by: int) -> None:
    data = bytearray(archive.read_bytes())
    local, central = header_of(archive, "rois/0/memory.npz")
    for at in (local + 22, central + 24):  # the size when unpacked
        (size,) = struct.unpack_from("<I", data, at)
        struct.pack_into("<I", data, at, (size + by) % 2**32)
    (tmp_path / "bad.zip").write_bytes(data)
    refused(tmp_path / "bad.zip", tmp_path)


def test_headers_that_disagree_on_a_name_are_refused(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    local, _ = header_of(archive, "rois/0/memory.npz")
    data[local + 30 : local + 30 + 17] = b"rois/1/memory.npz"
    (tmp_path / "bad.zip").write_bytes(data)
    refused(tmp_path / "bad.zip", tmp_path)


def test_members_that_share_their_bytes_are_refused(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    first, second = (header_of(archive, f"rois/{n}/memory.npz") for n in (0, 1))
    data[second[1] + 42 : second[1] + 46] = data[first[1] + 42 : first[1] + 46]  # where the member begins
    (tmp_path / "bad.zip").write_bytes(data)
    refused(tmp_path / "bad.zip", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"not a zip at all", b"\x1f\x8b" * 50])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.zip").write_bytes(content)
    refused(tmp_path / "bad.zip", tmp_path)


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        restore(tmp_path / "nowhere.zip", tmp_path / "there")


def test_every_cut_and_changed_byte_is_refused_or_carries_nothing(archive: Path, models: Path, tmp_path: Path) -> None:
    whole, expected = archive.read_bytes(), files(models)
    n_refused = 0
    step = len(whole) // 60
    damaged = [whole[:cut] for cut in range(0, len(whole), step)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :] for at in range(0, len(whole), step)]
    for data in damaged:
        (tmp_path / "bad.zip").write_bytes(data)
        there = tmp_path / "there"
        try:
            restore(tmp_path / "bad.zip", there)
            assert files(there) == expected
        except ArchiveError:
            n_refused += 1
            assert files(there) == {}
        shutil.rmtree(there, ignore_errors=True)
    assert n_refused > 0.9 * len(damaged)


# -- manifests that lie -------------------------------------------------------------------------------------------


def change_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    return lambda _contents, manifest: change(manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format=2),
        lambda manifest: manifest.pop("format"),
        lambda manifest: manifest.update(rois=[]),
        lambda manifest: manifest.update(rois=manifest["rois"][:1]),
        lambda manifest: manifest.update(rois=[*manifest["rois"], manifest["rois"][0]]),
        lambda manifest: manifest["rois"][0].update(role_id=".."),
        lambda manifest: manifest["rois"][0].update(role_id="a/b"),
        lambda manifest: manifest["rois"][0].update(recipe_id="last"),
        lambda manifest: manifest["rois"][0].update(recipe_id="../x"),
        lambda manifest: manifest["rois"][0].update(roi_id=7),
        lambda manifest: manifest["rois"][0].pop("roi_id"),
        lambda manifest: manifest.update(rois={"a": 1}),
        lambda manifest: manifest["files"].update({"rois/0/calib.json.gone": {"size": 1, "sha256": "0" * 64}}),
        lambda manifest: manifest["files"].update({"rois/0/calib.json": "none"}),
        lambda manifest: manifest.update(files={}, more=manifest.pop("files")),
    ],
)
def test_a_manifest_that_does_not_agree_is_refused(
    archive: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    refused(rebuilt(archive, tmp_path / "bad.zip", change_manifest(change)), tmp_path)


def test_an_archive_without_a_manifest_is_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for info, data in members(archive):
            if info.filename != MANIFEST:
                made.writestr(info, data)
    refused(tmp_path / "bad.zip", tmp_path, "no backup")


@pytest.mark.parametrize("suffix", ["memory.npz", "calib.json", ".png", ".json", ".npy"])
def test_a_file_that_is_not_sound_in_itself_is_refused_though_the_archive_is(
    archive: Path, tmp_path: Path, suffix: str
) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        name = next(name for name in contents if name.endswith(suffix) and (suffix != ".json" or "images" in name))
        contents[name] = contents[name][:-40] + b"?" + contents[name][-39:]

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


def test_the_images_of_one_part_cannot_be_passed_off_as_those_of_another(archive: Path, tmp_path: Path) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        one, other = [name for name in contents if name.startswith("rois/0/images/ok") and name.endswith(".png")][:2]
        contents[one], contents[other] = contents[other], contents[one]

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


# -- the command line ---------------------------------------------------------------------------------------------


def test_the_commands_say_what_they_did(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, there = str(tmp_path / "a.zip"), str(tmp_path / "there")
    assert main(["backup", out, "--models", str(models), "--recipe", "line2"]) == 0
    assert "saved Inspection/inspection-1 (recipe line2)" in capsys.readouterr().out
    assert main(["backup", out, "--models", str(models)]) == 1
    assert "exists" in capsys.readouterr().out
    assert main(["restore", out, "--models", there]) == 0
    assert "restored Inspection/inspection-1 (recipe line2)" in capsys.readouterr().out
    assert main(["restore", out, "--models", there]) == 1
    assert "--replace" in capsys.readouterr().out
    assert main(["restore", out, "--models", there, "--replace"]) == 0
    assert main(["verify", "--models", there]) == 0
    assert "no problems" in capsys.readouterr().out


def test_a_backup_that_left_something_out_exits_with_1(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    (copy / "Inspection" / "inspection-1" / "calib.json").write_bytes(b"damaged")
    assert main(["backup", str(tmp_path / "a.zip"), "--models", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "left out Inspection/inspection-1" in said
    assert "2 ROIs" in said


def test_a_file_of_another_account_is_a_sentence_and_no_traceback(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_arguments: object) -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile.ZipFile, "open", denied)
    assert main(["restore", str(archive), "--models", str(tmp_path / "there")]) == 1
    assert "models folder" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    yield
    assert threading.active_count() < 20


def test_a_store_of_a_restored_folder_needs_no_service(archive: Path, tmp_path: Path) -> None:
    restore(archive, tmp_path / "there")
    assert ArtefactStore(tmp_path / "there").load(KEYS[1]).calibration is not None
