"""One store for what is uploaded and what is learned, also when a part of it is damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.artifacts.model_key import id_of_folder
from tests.testkit.client import Client, png
from tests.testkit.fakes import defective_image, encoded


def _folder(client: Client, label: str = "ok") -> Path:
    return client.models_dir / client.role_id / client.roi_id / "images" / label


def test_an_image_uploaded_as_ok_and_then_fitted_is_stored_once(client: Client) -> None:
    data = [png(1), png(2)]
    saved = client.upload("ok", data).ok()["saved"]
    assert client.fit(use_dataset=True).ok()["n_ok_total"] == 2
    again = client.fit(data).ok()
    assert (again["n_ok_total"], again["n_new"], again["n_duplicates"]) == (2, 0, 2)
    assert client.files("ok") == sorted(saved)
    assert len(list(_folder(client).glob("*.png"))) == 2


def test_an_image_learned_by_fit_ok_is_in_the_data_set(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    assert len(client.files("ok")) == 2
    for name in client.files("ok"):
        answer = client.about("/datasets/meta", label="ok", filename=name).ok()
        assert answer["mm_per_px"] == 0.2
        assert client.about("/datasets/file", label="ok", filename=name).body in (png(1), png(2))


def test_deleting_an_image_takes_it_out_of_the_next_fit(fitted: Client) -> None:
    victim = fitted.files("ok")[0]
    assert fitted.delete("/datasets/file", label="ok", filename=victim).ok()["deleted"] is True
    assert fitted.delete("/datasets/file", label="ok", filename=victim).ok()["deleted"] is False
    assert fitted.about("/manifest").ok()["fit"]["n_ok_total"] == 5  # the memory keeps it until the next fit
    assert fitted.fit(use_dataset=True).ok()["n_ok_total"] == 4


def test_deleting_an_image_takes_it_out_of_a_fit_that_adds_images_too(fitted: Client) -> None:
    fitted.delete("/datasets/file", label="ok", filename=fitted.files("ok")[0]).ok()
    answer = fitted.fit([png(40)]).ok()
    assert answer["n_ok_total"] == 5
    assert any("1 learned image" in warning for warning in answer["warnings"])
    assert fitted.fit([png(30), png(31)], use_dataset=True).ok()["n_ok_total"] == 7, "both"
    assert len(fitted.files("ok")) == 7


def test_after_all_images_are_gone_the_next_fit_begins_anew(fitted: Client) -> None:
    assert fitted.delete("/datasets/clear", label="ok").ok()["cleared"] == 5
    assert fitted.files("ok") == []
    assert len(fitted.files("ng")) == 1
    assert "ok images" in fitted.fit(use_dataset=True).ok(422)["error"]
    assert fitted.about("/state").ok()["memory_fitted"] is True
    answer = fitted.fit([png(60), png(61)]).ok()
    assert answer["n_ok_total"] == 2
    assert any("5 learned images were deleted" in warning for warning in answer["warnings"])
    assert len(fitted.files("ok")) == 2


def test_bad_images_are_never_learned(fitted: Client) -> None:
    fitted.upload("ng", [encoded(defective_image(seed)) for seed in range(3)]).ok()
    assert fitted.fit(use_dataset=True).ok()["n_ok_total"] == 5


@pytest.mark.parametrize(("first", "second"), [("ok", "ng"), ("ng", "ok")])
def test_one_image_cannot_be_good_and_bad(client: Client, first: str, second: str) -> None:
    (name,) = client.upload(first, [png(1)]).ok()["saved"]
    body = client.upload(second, [png(2), png(1)], names=["other.png", "same.png"]).ok(409)
    assert "same.png" in body["error"]
    assert client.files(second) == []
    client.delete("/datasets/file", label=first, filename=name).ok()
    client.upload(second, [png(1)]).ok()
    assert len(client.files(second)) == 1


def test_an_image_kept_as_bad_is_not_learned_as_good(client: Client) -> None:
    bad = encoded(defective_image(1))
    client.upload("ng", [bad]).ok()
    body = client.fit([png(1), bad]).ok(409)
    assert "ng" in body["error"]
    assert client.about("/state").ok()["memory_fitted"] is False
    assert client.files("ok") == []


def test_of_two_uploads_at_once_that_call_one_image_good_and_bad_one_wins(client: Client) -> None:
    for seed in range(12):
        barrier = threading.Barrier(2)

        def upload(label: str, seed: int = seed, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return client.upload(label, [png(seed)]).status

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(upload, ["ok", "ng"])) == [200, 409]
    assert len(client.files("ok")) + len(client.files("ng")) == 12


def test_roles_that_differ_by_case_alone_have_data_sets_of_their_own(client: Client) -> None:
    upper, lower = client.at(role_id=f"Twin{client.roi_id}"), client.at(role_id=f"twin{client.roi_id}")
    upper.upload("ok", [png(1), png(2)]).ok()
    lower.upload("ok", [png(3)]).ok()
    assert (len(upper.files("ok")), len(lower.files("ok"))) == (2, 1)
    ids = {entry.name: id_of_folder(entry.name) for entry in client.models_dir.iterdir() if entry.name[0] != "."}
    folders = [name for name, role_id in ids.items() if role_id in (upper.role_id, lower.role_id)]
    assert len({name.casefold() for name in folders}) == len(folders) == 2


@pytest.mark.parametrize("roi_id", ["größe", "漢字", "CON", "recipes", "a.b", "ñ_-1"])
def test_ids_of_any_language_have_data_sets(client: Client, roi_id: str) -> None:
    other = client.at(f"{roi_id}", role_id=client.roi_id)
    (name,) = other.upload("ok", [png(1)]).ok()["saved"]
    assert other.about("/datasets/file", label="ok", filename=name).body == png(1)


def test_the_models_of_a_roi_share_its_data_set_and_nothing_else(fitted: Client) -> None:
    other = {"model_key": "second"}
    assert fitted.about("/state", **other).ok()["memory_fitted"] is False
    assert fitted.fit(use_dataset=True, **other).ok()["model_key"] == "second"
    fitted.delete("/datasets/file", label="ok", filename=fitted.files("ok")[0]).ok()
    fitted.fit(use_dataset=True, **other).ok()
    assert fitted.about("/manifest", **other).ok()["fit"]["n_ok_total"] == 4
    assert fitted.about("/manifest").ok()["fit"]["n_ok_total"] == 5


# --- damage -----------------------------------------------------------------------------------------------------------


def _lose_the_file(facts: Path) -> None:
    facts.with_suffix(".png").unlink()


def _damage_the_file(facts: Path) -> None:
    facts.with_suffix(".png").write_bytes(b"not what was uploaded")


def _damage_the_facts(facts: Path) -> None:
    facts.write_bytes(b'{"digest": "ha')


def _empty_the_facts(facts: Path) -> None:
    facts.write_bytes(b"")


_DAMAGES = [_lose_the_file, _damage_the_file, _damage_the_facts, _empty_the_facts]
_damaged = pytest.mark.parametrize("damage", _DAMAGES, ids=[damage.__name__.strip("_") for damage in _DAMAGES])


@_damaged
def test_a_damaged_image_is_an_error_of_its_own_line_until_it_is_uploaded_again(
    fitted: Client, damage: Callable[[Path], None]
) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["n_total"], answer["n_errors"]) == (6, 1)
    (bad,) = [item for item in answer["items"] if item["error"] is not None]
    assert (bad["score"], bad["label"]) == (None, "ok")
    assert "pload" in bad["error"]  # it says what to do
    assert all(item["score"] is not None for item in answer["items"] if item is not bad)
    assert bad["filename"] in fitted.files("ok")
    assert fitted.about("/manifest").ok()["datasets"]["ok"]["count"] == len(fitted.files("ok")) == 5
    assert fitted.about("/state").ok()["memory_fitted"] is True
    assert fitted.infer(png(70)).status == 200

    fitted.upload("ok", [png(seed) for seed in range(5)], [{"mm_per_px": 0.2}] * 5).ok()
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["n_total"], answer["n_errors"]) == (6, 0)
    bodies = {fitted.about("/datasets/file", label="ok", filename=name).body for name in fitted.files("ok")}
    assert bodies == {png(seed) for seed in range(5)}


@_damaged
def test_a_damaged_image_can_be_deleted_alone_or_with_its_class(fitted: Client, damage: Callable[[Path], None]) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    (bad,) = [item["filename"] for item in fitted.dataset("/infer_dataset").ok()["items"] if item["error"]]
    assert fitted.delete("/datasets/file", label="ok", filename=bad).ok()["deleted"] is True
    assert len(fitted.files("ok")) == 4
    assert fitted.dataset("/infer_dataset").ok()["n_errors"] == 0
    assert fitted.fit(use_dataset=True).ok()["n_ok_total"] == 4
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    assert fitted.delete("/datasets/clear", label="ok").ok()["cleared"] == 4
    assert list(_folder(fitted).iterdir()) == []


@pytest.mark.parametrize("use_dataset", [True, False])
def test_a_fit_that_needs_a_damaged_image_names_it_and_leaves_the_old_memory(fitted: Client, use_dataset: bool) -> None:
    facts = sorted(_folder(fitted).glob("*.json"))[2]
    _damage_the_facts(facts)
    checksum = fitted.about("/manifest").ok()["fit"]["checksum"]
    body = fitted.fit([png(71)], use_dataset=use_dataset).ok(500)
    assert (body["code"], facts.stem[:12] in body["error"]) == ("artefact_corrupt", True)
    assert fitted.about("/manifest").ok()["fit"]["checksum"] == checksum
    assert fitted.infer(png(70)).status == 200


def test_a_stored_file_that_is_no_file_is_one_error(fitted: Client) -> None:
    facts = sorted(_folder(fitted).glob("*.json"))[0]
    facts.with_suffix(".png").unlink()
    facts.with_suffix(".png").mkdir()
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["n_total"], answer["n_errors"]) == (6, 1)


def test_an_image_that_goes_while_it_is_being_listed_is_not_listed(fitted: Client) -> None:
    # A dangling link is what a listing finds that saw the name just before the file went.
    (_folder(fitted) / f"{'0' * 64}.json").symlink_to("gone")
    assert len(fitted.files("ok")) == 5
    assert fitted.dataset("/infer_dataset").ok()["n_total"] == 6
    assert fitted.fit(use_dataset=True).ok()["n_ok_total"] == 5
    assert fitted.about("/datasets/file", label="ok", filename=f"x-{'0' * 12}.png").status == 404


def test_listing_while_images_come_and_go_never_fails(client: Client) -> None:
    client.fit([png(0)]).ok()
    stop = threading.Event()
    failures: list[object] = []

    def watch() -> None:
        while not stop.is_set():
            for reply in (client.about("/datasets/list"), client.dataset("/infer_dataset")):
                if reply.status != 200:
                    failures.append((reply.status, reply.body))

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for n in range(3):
            client.upload("ng", [png(seed) for seed in range(100 + n, 108 + n)]).ok()
            client.delete("/datasets/clear", label="ng").ok()
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()
    assert failures == []


def test_uploads_and_fits_at_once_lose_nothing(client: Client) -> None:
    client.upload("ok", [png(0)]).ok()

    def upload(seed: int) -> int:
        return client.upload("ok", [png(seed)]).status

    def fit(_: int) -> int:
        return client.fit(use_dataset=True).status

    with ThreadPoolExecutor(6) as pool:
        statuses = [*pool.map(upload, range(1, 13)), *pool.map(fit, range(4))]
    assert set(statuses) == {200}
    assert client.fit(use_dataset=True).ok()["n_ok_total"] == len(client.files("ok")) == 13
