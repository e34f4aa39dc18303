"""ROIs in an archive file: they come back as they were, on another machine too; and no archive does harm."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
import stat
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.artifacts import formats, store
from backend.artifacts.formats import bank_bytes, bank_from_bytes, calibration_bytes, calibrations_from_bytes
from backend.artifacts.model_key import ModelKey
from backend.cli import main
from backend.errors import ArtefactOutdated, StorageFull
from backend.extractors.loader import ExtractorLoader
from backend.maintenance import restoring, verifying
from backend.maintenance.backup import MANIFEST, ArchiveError, back_up
from backend.maintenance.restoring import restore
from backend.maintenance.verifying import verify_folder
from backend.memory_bank.bank import MemoryBank
from backend.services.datasets import DatasetUpload
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.utils import sealed_json, sha256_hex, unsealed_json
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
    assert restore(archive, tmp_path / "there") == {key: [] for key in KEYS}
    assert files(tmp_path / "there") == files(models)
    assert verify_folder(tmp_path / "there") == []
    for key in (*KEYS, OTHER_MODEL):
        assert seen(tmp_path / "there", key) == seen(models, key)


def test_an_archive_has_names_that_every_system_knows_and_a_digest_of_each_file(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        manifest = json.loads(opened.read(MANIFEST))
        for name, line in manifest["files"].items():
            data = opened.read(name)
            assert line == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert set(manifest["files"]) == set(names) - {MANIFEST}
    assert all(name.isascii() and not set(name) & set('<>:"|?*\\') for name in names)
    assert any(name.startswith("rois/0/keys/%43%4F%4E/") for name in names)
    assert not any("heatmaps" in name or "index" in name for name in names)


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
    assert [*restore(tmp_path / "a.zip", tmp_path / "there")] == expected


def test_an_archive_takes_the_place_of_none_and_of_no_roi_there_is_none(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"the last good one")
    with pytest.raises(ArchiveError, match="exists"):
        back_up(models, tmp_path / "a.zip")
    with pytest.raises(ArchiveError, match="no such ROI"):
        back_up(models, tmp_path / "b.zip", roi_id="nobody")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_damaged_roi_is_left_out_and_named(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    (copy / "Inspection" / "inspection-1" / "memory.npz").write_bytes(b"damaged")
    assert main(["backup", str(tmp_path / "a.zip"), "--models", str(copy)]) == 1
    printed = capsys.readouterr().out
    assert (
        "left out Inspection/inspection-1, which is damaged:\n  Inspection/inspection-1/memory.npz: damaged" in printed
    )
    assert "2 ROIs" in printed
    assert [*restore(tmp_path / "a.zip", tmp_path / "there")] == KEYS[1:]
    with pytest.raises(ArchiveError, match="damaged"):
        back_up(copy, tmp_path / "b.zip", role_id="Inspection", recipe_id="default")
    assert not (tmp_path / "b.zip").exists()


def test_what_a_crash_left_in_a_roi_is_not_carried(models: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(models, tmp_path / "models")
    (copy / "Inspection" / "inspection-1" / "images" / "ok" / f"{'a' * 64}.png").write_bytes(b"without facts")
    (copy / "Inspection" / "inspection-1" / "notes.txt").write_bytes(b"of nobody")
    assert not any(back_up(copy, tmp_path / "a.zip").values())
    restore(tmp_path / "a.zip", tmp_path / "there")
    assert files(tmp_path / "there") == files(models)


@pytest.mark.parametrize("name", ["memory.npz", "calib.json"])
def test_a_file_of_an_older_version_is_carried_as_it_is_and_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    old = (models / "Inspection" / "inspection-1" / name).read_bytes()
    reader = {"memory.npz": "bank_from_bytes", "calib.json": "calibrations_from_bytes"}[name]
    parse = getattr(formats, reader)

    def parse_newer(data: bytes) -> Any:
        if data == old:
            raise formats.OutdatedFormat("format version 0")
        return parse(data)

    for module in (store, verifying):
        monkeypatch.setattr(module, reader, parse_newer)
    assert main(["verify", "--models", str(models)]) == 1
    assert f"Inspection/inspection-1/{name}: outdated: of an older format" in capsys.readouterr().out
    assert not any(back_up(models, tmp_path / "a.zip").values())
    assert main(["restore", str(tmp_path / "a.zip"), "--models", str(tmp_path / "there")]) == 0
    assert "outdated: of an older format" in capsys.readouterr().out
    restored, expected = files(tmp_path / "there"), files(models)
    if name == "memory.npz":  # whose index is written when it is learned again
        expected.pop("Inspection/inspection-1/index.faiss")
    assert restored == expected
    with pytest.raises(ArtefactOutdated):
        seen(tmp_path / "there", KEYS[0])


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


def test_with_replace_the_archives_roi_takes_its_place_and_nothing_else_is_touched(
    used: Path, models: Path, archive: Path
) -> None:
    roi = used / "Inspection" / "inspection-1"
    facts = sorted((roi / "images" / "ok").glob("*.json"))[0]
    facts.rename(facts.with_name(f"{facts.name}.corrupt-20261122T185500Z"))  # an image that the archive does not have
    (roi / "notes.txt").write_bytes(b"of an operator")
    others = {name: data for name, data in files(used).items() if "bystander" in name or "notes" in name}
    restore(archive, used, replace=True)
    assert files(used) == {**files(models), **others}
    assert [(problem.path, problem.fault) for problem in verify_folder(used)] == [
        ("Inspection/inspection-1/notes.txt", "unknown")
    ]


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


DIGEST = "a" * 64
HOSTILE_NAMES = [
    *("../evil.npz", "rois/0/../../evil.npz", "rois/0/images/ok/../../../evil.json", "/etc/evil", "memory.npz"),
    *("C:/evil.npz", "C:evil.npz", "rois\\0\\memory.npz", "rois/0/..\\..\\evil.npz", "\\\\server\\share\\evil"),
    *("rois/0/CON", "rois/0/keys/CON/memory.npz", "rois/0/keys/NUL.txt/memory.npz", "rois/0/keys/a/memory.npz"),
    *("rois/0/keys/%61/../memory.npz", "rois/0/keys/%2e%2e/memory.npz", "rois/0/keys/%2E%2E/memory.npz"),
    *("rois/0/keys/%00/memory.npz", "rois/0/.lock", "rois/0/.tmp-0123456789abcdef", "rois/0/.tmp-0/memory.npz"),
    *("rois/0/memory.npz.corrupt-20261122T185500Z", "rois/0/index.faiss", f"rois/0/heatmaps/{DIGEST}.png"),
    *("rois/0/README.md", "rois/0/memory.npz/", "rois/0//calib.json", "rois/0/./calib.json", "rois/00/memory.npz"),
    *("rois/9/memory.npz", "rois/-1/memory.npz", "ROIS/0/memory.npz", "rois/0/ memory.npz", "rois/0/memory.npz "),
    *(f"rois/0/images/ok/{DIGEST}.exe", f"rois/0/images/ok/{DIGEST.upper()}.png", f"rois/0/images/ok/{DIGEST[1:]}.png"),
    *(f"rois/0/images/maybe/{DIGEST}.png", f"rois/0/images/ok/{DIGEST}.png:stream", "rois/0/images/ok/..\\evil.png"),
    *(f"rois/0/embeddings/x/{DIGEST}.npy", f"rois/0/keys/%61/images/ok/{DIGEST}.png", "rois/0/Übung", "__MACOSX/x"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_no_backup_writes_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    refused(rebuilt(archive, tmp_path / "bad.zip", lambda contents, _: contents.update({name: b"x"})), tmp_path)


def test_a_name_with_a_nul_in_it_is_refused(archive: Path, tmp_path: Path) -> None:
    """zipfile itself cuts the name there, and would take it for a good one."""
    name = f"rois/0/images/ok/{DIGEST}.png"
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


def with_kind(kind: int) -> Callable[[zipfile.ZipInfo], None]:
    return lambda info: setattr(info, "external_attr", (kind | 0o777) << 16)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *((with_kind(kind), "no file") for kind in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR)),
        *(
            (lambda info, m=m: setattr(info, "compress_type", m), "packed")
            for m in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
    ],
)
def test_a_member_that_is_no_plain_file_is_refused(
    archive: Path, tmp_path: Path, change: Callable[[zipfile.ZipInfo], None], match: str
) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for info, data in members(archive):
            if info.filename == "rois/0/calib.json":
                change(info)
            made.writestr(info, data)
    refused(tmp_path / "bad.zip", tmp_path, match)


# -- bombs and lies -----------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_is_unpacked(archive: Path, tmp_path: Path) -> None:
    name = f"rois/0/images/ok/{DIGEST}.png"
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        for info, data in members(archive):
            made.writestr(info, data)
        made.writestr(name, b"\0" * 50_000_000, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bad.zip").stat().st_size < 1_000_000
    refused(tmp_path / "bad.zip", tmp_path, "200 times")


def test_too_large_a_manifest_is_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(archive, tmp_path / "bad.zip")
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


def patched(data: bytearray, at: int, value: bytes) -> None:
    data[at : at + len(value)] = value


def lie_about_the_size(by: int) -> Callable[[bytearray, Path], None]:
    def change(data: bytearray, archive: Path) -> None:
        local, central = header_of(archive, "rois/0/memory.npz")
        for at in (local + 22, central + 24):  # the size when unpacked
            (size,) = struct.unpack_from("<I", data, at)
            patched(data, at, struct.pack("<I", (size + by) % 2**32))

    return change


def disagree_on_a_name(data: bytearray, archive: Path) -> None:
    patched(data, header_of(archive, "rois/0/memory.npz")[0] + 30, b"rois/1/memory.npz")


def share_the_bytes(data: bytearray, archive: Path) -> None:
    first, second = (header_of(archive, f"rois/{n}/memory.npz")[1] + 42 for n in (0, 1))  # where the member begins
    patched(data, second, bytes(data[first : first + 4]))


def begin_nowhere(data: bytearray, archive: Path) -> None:
    patched(data, data.rindex(b"PK\x05\x06") + 16, struct.pack("<I", 2**31))  # where the directory begins


def encrypt(data: bytearray, archive: Path) -> None:
    data[header_of(archive, "rois/0/memory.npz")[1] + 8] |= 1


def spoil_what_is_compressed(data: bytearray, archive: Path) -> None:
    at = header_of(archive, "rois/0/calib.json")[0] + 30 + len("rois/0/calib.json")
    patched(data, at, b"\xff" * 8)


@pytest.mark.parametrize(
    "change",
    [
        *(lie_about_the_size(by) for by in (-1, 1, 1000, 2**31)),
        *(disagree_on_a_name, share_the_bytes, begin_nowhere, encrypt, spoil_what_is_compressed),
    ],
)
def test_headers_that_lie_are_refused(archive: Path, tmp_path: Path, change: Callable[[bytearray, Path], None]) -> None:
    data = bytearray(archive.read_bytes())
    change(data, archive)
    (tmp_path / "bad.zip").write_bytes(data)
    refused(tmp_path / "bad.zip", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"not a zip at all", b"\x1f\x8b" * 50])
def test_what_is_no_archive_and_one_that_is_not_there_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        restore(tmp_path / "bad.zip", tmp_path / "there")
    (tmp_path / "bad.zip").write_bytes(content)
    refused(tmp_path / "bad.zip", tmp_path)


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
    refused(rebuilt(archive, tmp_path / "bad.zip", lambda _, manifest: change(manifest)), tmp_path)


@pytest.mark.parametrize("suffix", ["memory.npz", "calib.json", ".png", ".json", ".npy"])
def test_a_file_that_is_not_sound_in_itself_is_refused_though_the_archive_is(
    archive: Path, tmp_path: Path, suffix: str
) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        name = next(name for name in contents if name.endswith(suffix) and (suffix != ".json" or "images" in name))
        contents[name] = contents[name][:-40] + b"?" + contents[name][-39:]

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


def edited(bank: MemoryBank, name: str, value: Any) -> MemoryBank:
    """Return a memory with another value, past all checks of it."""
    made = copy.copy(bank)
    made.__dict__.pop("checksum", None)
    object.__setattr__(made, name, value)
    return made


def with_nan(array: NDArray[Any]) -> NDArray[Any]:
    spoilt = array.copy()
    spoilt.flat[3] = np.nan
    return spoilt


NONSENSE: dict[str, Callable[[MemoryBank], MemoryBank]] = {
    "NaN vectors": lambda bank: edited(bank, "vectors", with_nan(bank.vectors)),
    "infinite vectors": lambda bank: edited(bank, "vectors", bank.vectors * np.float32(np.inf)),
    "no unit rows": lambda bank: edited(bank, "vectors", bank.vectors * np.float32(2)),
    "wide numbers": lambda bank: edited(bank, "vectors", bank.vectors.astype(np.float64)),
    "k = 0": lambda bank: edited(bank, "options", replace(bank.options, k=0)),
    "k = 1.5": lambda bank: edited(bank, "options", replace(bank.options, k=1.5)),
    "no mode": lambda bank: edited(bank, "options", replace(bank.options, rule=replace(bank.options.rule, mode="x"))),
    "a blur below 0": lambda bank: edited(
        bank, "options", replace(bank.options, rule=replace(bank.options.rule, blur_sigma=-1.0))
    ),
    "a scale of 0": lambda bank: edited(bank, "mm_per_px", 0.0),
    "no cell": lambda bank: edited(bank, "mask_cells", np.zeros_like(bank.mask_cells)),
    "distances below 0": lambda bank: edited(bank, "loo_distances", bank.loo_distances - np.float32(3)),
    "NaN position maps": lambda bank: edited(bank, "position_maps", with_nan(bank.position_maps)),
    "other position maps": lambda bank: edited(bank, "position_maps", bank.position_maps[:, :5]),
    "a grid of nothing": lambda bank: edited(bank, "placement", replace(bank.placement, input_hw=(0, 0))),
    "an image of nothing": lambda bank: edited(bank, "placement", replace(bank.placement, image_hw=(-1, 64))),
    "no shape": lambda bank: edited(bank, "shape", {"kind": "rect"}),
    "parts without names": lambda bank: edited(bank, "part_ids", (7,) * len(bank.part_ids)),
    "fewer rows than vectors": lambda bank: edited(bank, "n_embeddings", 1),
    "alignment": lambda bank: edited(bank, "alignment", "much"),
    "another width": lambda bank: edited(bank, "extractor_id", "filter-bank/v1:of another width"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_sealed_memory_of_nonsense_is_refused(archive: Path, tmp_path: Path, what: str) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        name = next(name for name in contents if name.endswith("memory.npz"))
        contents[name] = bank_bytes(NONSENSE[what](bank_from_bytes(contents[name])))

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


@pytest.mark.parametrize(
    "fields",
    [
        *({"threshold": -1.0}, {"mm_per_px": 0.0}, {"blur_sigma": -2.0}, {"n_ok": 1.5}, {"score_percentile": 0.0}),
        *({"method": "guess"}, {"ok_scores_from": "nobody"}, {"shape": {"kind": "star"}}, {"ok_percentile": 101.0}),
        *({"memory_checksum": 7}, {"margin": "wide"}, {"ng_images": (1,)}, {"area_mm2_thr": True}),
    ],
)
def test_a_sealed_calibration_of_nonsense_is_refused(archive: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        name = next(name for name in contents if name.endswith("calib.json"))
        (first, *others) = calibrations_from_bytes(contents[name])
        contents[name] = calibration_bytes([replace(first, **fields), *others])

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


@pytest.mark.parametrize(
    "fields",
    [
        *({"suffix": "/../../memory.npz"}, {"suffix": ".exe"}, {"name": "../x"}, {"name": 7}, {"part_id": ""}),
        *({"mm_per_px": 0}, {"mm_per_px": "0.2"}, {"image_hw": [0, 4]}, {"meta": []}, {"is_of_dataset": "no"}),
    ],
)
def test_sealed_facts_of_nonsense_are_refused(archive: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        name = next(name for name in contents if "/images/" in name and name.endswith(".json"))
        contents[name] = sealed_json({**unsealed_json(contents[name]), **fields})

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


@pytest.mark.parametrize("rows", [np.zeros((3, 2)), np.full((3, 2), np.nan, np.float32), np.zeros(4, np.float32)])
def test_sealed_embeddings_of_nonsense_are_refused(archive: Path, tmp_path: Path, rows: NDArray[Any]) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        name = next(name for name in contents if name.endswith(".npy"))
        buffer = io.BytesIO()
        np.save(buffer, rows)
        contents[name] = buffer.getvalue() + bytes.fromhex(sha256_hex(buffer.getvalue()))

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


def test_an_archive_without_a_manifest_is_refused(archive: Path, tmp_path: Path) -> None:
    rebuilt(archive, tmp_path / "bad.zip", lambda _, manifest: None)
    data = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(data.replace(MANIFEST.encode(), b"rois/0/a.json"))
    refused(tmp_path / "bad.zip", tmp_path, "no backup")


def test_the_images_of_one_part_cannot_be_passed_off_as_those_of_another(archive: Path, tmp_path: Path) -> None:
    def change(contents: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        one, other = [name for name in contents if name.startswith("rois/0/images/ok") and name.endswith(".png")][:2]
        contents[one], contents[other] = contents[other], contents[one]

    refused(rebuilt(archive, tmp_path / "bad.zip", change), tmp_path, "not sound")


# -- the command line ---------------------------------------------------------------------------------------------


def test_the_commands_print_what_they_did(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_file_of_another_account_is_a_sentence_and_no_traceback(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_arguments: object) -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile.ZipFile, "open", denied)
    assert main(["restore", str(archive), "--models", str(tmp_path / "there")]) == 1
    assert "models folder" in capsys.readouterr().out
