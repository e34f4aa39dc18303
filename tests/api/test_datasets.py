"""The data set endpoints, over real sockets, as the published client calls them."""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backend.artifacts.model_key import id_of_folder
from backend.imaging.image_codec import decode_image
from backend.settings import Settings
from tests.testkit.client import Client, Part, dotnet_form, fields, image, meta, png
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image
from tests.testkit.server import running

_UNUSED_ROI = (f"roi-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = Settings(models_dir=tmp_path_factory.mktemp("datasets") / "models", max_images=40)
    with running(settings, FakeExtractor()) as client:
        yield client


@pytest.fixture
def client(server: Client) -> Client:
    """A client of a ROI that no other test uses."""
    return server.at(next(_UNUSED_ROI))


@pytest.fixture
def fitted(client: Client) -> Client:
    """A client of a ROI with five learned good images and one bad one."""
    client.upload("ok", [png(seed) for seed in range(5)], [{"mm_per_px": 0.2}] * 5).ok()
    client.upload("ng", [encoded(defective_image(99))], [{"mm_per_px": 0.2}]).ok()
    client.fit(use_dataset=True).ok()
    return client


def _folder(client: Client, label: str = "ok") -> Path:
    return client.models_dir / client.role_id / client.roi_id / "images" / label


# --- upload ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["ok", "ng"])
def test_an_upload_answers_the_names_in_the_order_of_the_upload(client: Client, label: str) -> None:
    answer = client.upload(label, [png(3), png(1), png(2)], names=["c.png", "a.png", "b.png"]).ok()
    assert answer["status"] == "ok"
    assert [name.split("-")[0] for name in answer["saved"]] == ["c", "a", "b"]
    assert client.files(label) == sorted(answer["saved"])


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(meta({"mm_per_px": 0.25, "note": "ñ"}), id="StringContent of type application/json, no file name"),
        pytest.param(Part("metas", '{"mm_per_px":0.25,"note":"ñ"}'.encode()), id="text/plain"),
        pytest.param(Part("metas", '{"mm_per_px":0.25,"note":"ñ"}'.encode(), None, None), id="no Content-Type"),
        pytest.param(
            Part("metas", '{"mm_per_px":0.25,"note":"ñ"}'.encode(), "meta.json", "application/json"), id="a file"
        ),
    ],
)
def test_metas_arrive_whether_they_are_fields_or_files(client: Client, part: Part) -> None:
    (name,) = client.form("/datasets/ok/upload", [*fields(client.roi), image(png(1)), part]).ok()["saved"]
    answer = client.about("/datasets/meta", label="ok", filename=name).ok()
    assert answer["mm_per_px"] == 0.25
    assert answer["meta"] == {"mm_per_px": 0.25, "note": "ñ"}


def test_metas_belong_to_the_images_in_order_wherever_they_stand_in_the_form(client: Client) -> None:
    parts = [meta({"part_id": "one"}), image(png(1), "1.png"), meta({"part_id": "two"}), image(png(2), "2.png")]
    saved = client.form("/datasets/ok/upload", [*parts, *fields(client.roi)]).ok()["saved"]
    parts_of = [client.about("/datasets/meta", label="ok", filename=name).ok()["part_id"] for name in saved]
    assert parts_of == ["one", "two"]


def test_the_metadata_of_the_published_client_come_back_where_it_reads_them(client: Client) -> None:
    sent = {
        "role_id": client.role_id,
        "roi_id": client.roi_id,
        "label": "ok",
        "filename": "SAMPLE_1.png",
        "mm_per_px": 0.2,
        "shape_json": {"kind": "circle", "cx": 32, "cy": 32, "r": 20},
        "created_at_utc": "2025-01-01T12:00:00Z",
        "source_path": "C:\\images\\größe.png",
    }
    (name,) = client.upload("ok", [png(1)], [sent]).ok()["saved"]
    answer = client.about("/datasets/meta", label="ok", filename=name).ok()
    for field in ("role_id", "roi_id", "label", "mm_per_px", "shape_json", "created_at_utc", "source_path"):
        assert answer[field] == sent[field], field
    assert answer["filename"] == name  # its name in the store, not the one on the client's disk
    assert answer["meta"] == sent


def test_uploaded_metadata_cannot_pose_as_what_the_service_says(client: Client) -> None:
    forged = {"request_id": "x", "recipe_id": "x", "image_digest": "x", "width": -1, "meta": "x", "model_dump": 1}
    (name,) = client.upload("ok", [png(1)], [forged]).ok()["saved"]
    answer = client.about("/datasets/meta", label="ok", filename=name, headers={"X-Request-Id": "mine"}).ok()
    assert (answer["request_id"], answer["recipe_id"], answer["width"]) == ("mine", "default", 64)
    assert answer["image_digest"] != "x"
    assert answer["meta"] == forged


@pytest.mark.parametrize(
    ("metas", "status"),
    [
        pytest.param(["{"], 400, id="half an object"),
        pytest.param([""], 400, id="nothing"),
        pytest.param(["[]"], 400, id="a list"),
        pytest.param(["0.2"], 400, id="a number"),
        pytest.param(['{"mm_per_px":NaN}'], 400, id="NaN"),
        pytest.param(['{"x":1e400}'], 400, id="a number beyond every double"),
        pytest.param(['{"x":"\\ud800"}'], 400, id="half a surrogate pair"),
        pytest.param(['{"\\udfff":1}'], 400, id="half a surrogate pair as a name"),
        pytest.param(['{"x":' + "[" * 300 + "]" * 300 + "}"], 400, id="300 lists in each other"),
        pytest.param(['{"x":' + "[" * 100_000 + "]" * 100_000 + "}"], 400, id="100000 lists in each other"),
        pytest.param(['{"mm_per_px":0}'], 422, id="mm_per_px 0"),
        pytest.param(['{"mm_per_px":-0.2}'], 422, id="mm_per_px negative"),
        pytest.param(['{"mm_per_px":100.1}'], 422, id="mm_per_px too large"),
        pytest.param(['{"mm_per_px":"0.2"}'], 422, id="mm_per_px as text"),
        pytest.param(['{"mm_per_px":true}'], 422, id="mm_per_px as bool"),
        pytest.param(['{"mm_per_px":1' + "0" * 400 + "}"], 422, id="mm_per_px with 400 zeros"),
        pytest.param(['{"mm_per_px":0.2}', '{"mm_per_px":0.2}'], 422, id="two for one image"),
    ],
)
def test_metas_that_cannot_be_kept_are_refused_and_nothing_is_stored(
    client: Client, metas: list[str], status: int
) -> None:
    reply = client.upload("ok", [png(1)], metas)
    assert reply.status == status, reply.body
    assert "meta" in reply.json["error"]
    assert client.files("ok") == []


def test_a_scale_that_differs_from_the_fitted_one_is_a_conflict_that_names_both(fitted: Client) -> None:
    body = fitted.upload("ok", [png(50)], [{"mm_per_px": 0.21}]).ok(409)
    assert body["code"] == "mm_per_px_mismatch"
    assert "mm_per_px is 0.21" in body["error"]
    assert "fitted with 0.2." in body["error"]
    assert fitted.upload("ok", [png(50)], [{"mm_per_px": 0.2015}]).status == 200  # within 1 %


def test_one_bad_image_keeps_the_whole_upload_out(client: Client) -> None:
    body = client.upload("ok", [png(1), png(2)[:100]], names=["good.png", "half.png"]).ok(400)
    assert "half.png" in body["error"]
    assert client.files("ok") == []


@pytest.mark.parametrize("label", ["ok", "ng"])
def test_an_upload_without_an_image_names_the_field(client: Client, label: str) -> None:
    body = client.form(f"/datasets/{label}/upload", fields(client.roi)).ok(422)
    assert "images" in body["error"]


def test_more_images_than_allowed_are_too_many(client: Client) -> None:
    body = client.upload("ok", [png(0)] * 41).ok(413)
    assert body["details"] == {"n_images": 41, "max_images": 40}


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        "../../../etc/passwd",
        "..",
        ".",
        "C:\\Users\\op\\bild 1.png",
        "größe ñ 漢字.png",
        "a" * 250 + ".png",
        "漢" * 200 + ".png",
        "CON.png",
        "a%2Fb.png",
        "a'b;c=d.png",
        ".htaccess",
        "tab\tname.png",
        "no-suffix",
        "image.png.exe",
    ],
)
def test_file_names_are_safe_and_lead_back_to_the_image(client: Client, sent: str) -> None:
    (name,) = client.upload("ok", [png(7)], names=[sent]).ok()["saved"]
    assert re.fullmatch(r"[\w-]{1,60}-[0-9a-f]{12}\.png", name), name
    assert len(name.encode()) <= 255
    assert client.files("ok") == [name]
    assert client.about("/datasets/file", label="ok", filename=name).body == png(7)
    assert client.about("/datasets/meta", label="ok", filename=name).ok()["filename"] == name
    assert client.delete("/datasets/file", label="ok", filename=name).ok()["deleted"] is True
    assert client.files("ok") == []


def test_an_image_keeps_its_first_name_and_is_stored_once(client: Client) -> None:
    first = client.upload("ok", [png(1)], names=["first.png"]).ok()["saved"]
    again = client.upload("ok", [png(1), png(1)], names=["second.png", "third.png"]).ok()["saved"]
    assert again == first * 2
    assert client.files("ok") == first
    assert len(list(_folder(client).glob("*.png"))) == 1


def test_the_same_pixels_in_another_file_format_are_the_same_image(client: Client) -> None:
    first = client.upload("ok", [png(1)]).ok()["saved"]
    bmp = encoded(good_image(1), "BMP")
    assert client.upload("ok", [bmp], names=["roi.bmp"]).ok()["saved"] == first
    assert client.about("/datasets/file", label="ok", filename=first[0]).body == png(1)


@pytest.mark.parametrize(
    "filename",
    [
        "../../x",
        "..\\..\\x",
        "/etc/passwd",
        "../memory.npz",
        "x-000000000000.png",
        "x-0000.png",
        "x-************.png",
        "x-????????????.png",
        "a\0b-000000000000.png",
        "-.png",
        "x",
    ],
)
def test_a_file_name_that_is_not_there_is_404_and_leads_nowhere(fitted: Client, filename: str) -> None:
    for path in ("/datasets/file", "/datasets/meta"):
        assert fitted.about(path, label="ok", filename=filename).ok(404)["code"] == "not_found"
    assert fitted.delete("/datasets/file", label="ok", filename=filename).ok()["deleted"] is False
    assert len(fitted.files("ok")) == 5


def test_a_name_of_the_other_class_or_with_another_suffix_is_404(fitted: Client) -> None:
    (name,) = fitted.files("ng")
    assert fitted.about("/datasets/file", label="ok", filename=name).status == 404
    assert fitted.about("/datasets/file", label="ng", filename=name.replace(".png", ".jpg")).status == 404
    assert fitted.about("/datasets/file", label="ng", filename="other" + name).status == 404


def test_an_endless_file_name_is_refused(fitted: Client) -> None:
    body = fitted.about("/datasets/file", label="ok", filename="a" * 5000).ok(422)
    assert "filename" in body["error"]


@pytest.mark.parametrize("label", ["OK", "Ok", "", "all", "../ok"])
@pytest.mark.parametrize("call", ["get file", "get meta", "delete file", "delete clear"])
def test_a_label_other_than_ok_and_ng_is_422(client: Client, call: str, label: str) -> None:
    method, what = call.split()
    ask: Callable[..., object] = client.about if method == "get" else client.delete
    query = {"label": label} if what == "clear" else {"label": label, "filename": "x-000000000000.png"}
    reply = ask(f"/datasets/{what}", **query)
    assert reply.ok(422)["details"]["field"] == "label"


# --- reading back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_format", "media_type", "suffix"),
    [("PNG", "image/png", ".png"), ("JPEG", "image/jpeg", ".jpg"), ("BMP", "image/bmp", ".bmp")],
)
def test_a_file_comes_back_byte_for_byte_with_its_media_type(
    client: Client, file_format: str, media_type: str, suffix: str
) -> None:
    data = encoded(good_image(4), file_format)
    (name,) = client.upload("ng", [data], names=["named otherwise.png"]).ok()["saved"]
    reply = client.about("/datasets/file", label="ng", filename=name, headers={"X-Request-Id": "me"})
    assert (reply.status, reply.body) == (200, data)
    assert reply.headers.get_content_type() == media_type
    assert reply.headers["X-Request-Id"] == "me"
    assert name.endswith(suffix)


def test_an_empty_data_set_is_listed_as_empty_and_asking_leaves_no_trace(client: Client) -> None:
    answer = client.about("/datasets/list").ok()
    assert answer["classes"]["ok"]["count"] == answer["classes"]["ng"]["count"] == 0
    assert answer["classes"]["ok"]["files"] == answer["classes"]["ng"]["files"] == []
    assert client.delete("/datasets/file", label="ok", filename="x-000000000000.png").ok()["deleted"] is False
    assert client.delete("/datasets/clear", label="ng").ok()["cleared"] == 0
    assert client.calibrate().status == 400
    assert not (client.models_dir / client.role_id / client.roi_id).exists()


def test_the_list_says_which_images_came_with_metadata(client: Client) -> None:
    (plain,) = client.upload("ok", [png(1)]).ok()["saved"]
    (described,) = client.upload("ok", [png(2)], [{"mm_per_px": 0.2}]).ok()["saved"]
    classes = client.about("/datasets/list").ok()["classes"]
    assert classes["ok"]["meta"] == {plain: False, described: True}
    assert classes["ng"]["meta"] == {}


# --- one store --------------------------------------------------------------------------------------------------------


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


def test_a_fit_from_the_data_set_also_learns_the_images_it_brings(fitted: Client) -> None:
    answer = fitted.fit([png(30), png(31)], use_dataset=True).ok()
    assert answer["n_ok_total"] == 7
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
def test_a_damaged_image_has_an_error_in_its_own_line_and_spoils_no_other(
    fitted: Client, damage: Callable[[Path], None]
) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["n_total"], answer["n_errors"]) == (6, 1)
    (bad,) = [item for item in answer["items"] if item["error"] is not None]
    assert bad["score"] is None
    assert bad["label"] == "ok"
    assert "pload" in bad["error"]  # it says what to do
    assert all(item["score"] is not None for item in answer["items"] if item is not bad)
    assert bad["filename"] in fitted.files("ok")


@_damaged
def test_a_damaged_image_can_be_deleted_by_the_name_it_is_listed_under(
    fitted: Client, damage: Callable[[Path], None]
) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    (bad,) = [item["filename"] for item in fitted.dataset("/infer_dataset").ok()["items"] if item["error"]]
    assert fitted.delete("/datasets/file", label="ok", filename=bad).ok()["deleted"] is True
    assert len(fitted.files("ok")) == 4
    assert fitted.dataset("/infer_dataset").ok()["n_errors"] == 0
    assert fitted.fit(use_dataset=True).ok()["n_ok_total"] == 4


@_damaged
def test_uploading_a_damaged_image_again_mends_it(fitted: Client, damage: Callable[[Path], None]) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    fitted.upload("ok", [png(seed) for seed in range(5)], [{"mm_per_px": 0.2}] * 5).ok()
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["n_total"], answer["n_errors"]) == (6, 0)
    bodies = {fitted.about("/datasets/file", label="ok", filename=name).body for name in fitted.files("ok")}
    assert bodies == {png(seed) for seed in range(5)}


@_damaged
def test_clearing_a_class_also_clears_what_is_damaged(fitted: Client, damage: Callable[[Path], None]) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    assert fitted.delete("/datasets/clear", label="ok").ok()["cleared"] == 5
    assert list(_folder(fitted).iterdir()) == []


@_damaged
def test_a_damaged_image_leaves_list_manifest_state_and_inspection_alone(
    fitted: Client, damage: Callable[[Path], None]
) -> None:
    damage(sorted(_folder(fitted).glob("*.json"))[2])
    assert fitted.about("/datasets/list").ok()["classes"]["ok"]["count"] == 5
    assert fitted.about("/manifest").ok()["datasets"]["ok"]["count"] == 5
    assert fitted.about("/state").ok()["memory_fitted"] is True
    assert fitted.infer(png(70)).status == 200


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


# --- /infer_dataset ---------------------------------------------------------------------------------------------------


def test_a_data_set_is_inspected_image_by_image_as_infer_would(fitted: Client) -> None:
    fitted.calibrate().ok()
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["status"], answer["n_total"], answer["n_errors"]) == ("ok", 6, 0)
    assert [(item["label"], item["filename"]) for item in answer["items"]] == [
        *(("ok", name) for name in fitted.files("ok")),
        *(("ng", name) for name in fitted.files("ng")),
    ]
    for item in answer["items"]:
        data = fitted.about("/datasets/file", label=item["label"], filename=item["filename"]).body
        alone = fitted.infer(data).ok()
        for field in ("score", "threshold", "decision", "regions"):
            assert item[field] == alone[field], field
        assert item["mm_per_px"] == 0.2
        assert item["n_regions"] == len(item["regions"])
        assert item["error"] is None


def test_learned_images_are_scored_without_themselves(fitted: Client) -> None:
    fitted.upload("ok", [png(80)]).ok()  # good, but not learned
    items = fitted.dataset("/infer_dataset").ok()["items"]
    scoring = {item["filename"]: item["scoring"] for item in items}
    unlearned = [name for name, how in scoring.items() if how == "new"]
    assert sorted(scoring.values()) == ["leave_one_out"] * 5 + ["new"] * 2
    assert set(unlearned) >= set(fitted.files("ng"))
    assert all(item["score"] > 0 for item in items)


def test_a_bad_image_scores_above_every_good_one(fitted: Client) -> None:
    items = fitted.dataset("/infer_dataset").ok()["items"]
    (bad,) = [item["score"] for item in items if item["label"] == "ng"]
    assert bad > max(item["score"] for item in items if item["label"] == "ok")


def test_an_uncalibrated_data_set_has_scores_and_no_decisions(fitted: Client) -> None:
    for item in fitted.dataset("/infer_dataset").ok()["items"]:
        assert item["score"] is not None
        assert (item["threshold"], item["decision"], item["regions"], item["error"]) == (None, None, [], None)


@pytest.mark.parametrize("path", ["/infer_dataset", "/calibrate_dataset"])
def test_an_unfitted_roi_is_400_with_the_words_that_the_client_looks_for(client: Client, path: str) -> None:
    client.upload("ok", [png(1)]).ok()
    body = client.dataset(path).ok(400)
    assert "memory not found" in body["error"]
    assert "run /fit_ok first" in body["error"]
    assert body["code"] == "memory_not_found"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, {"ok": 5, "ng": 1}),
        (["ok", "ng"], {"ok": 5, "ng": 1}),
        (["ng"], {"ng": 1}),
        (["ok"], {"ok": 5}),
        (["ok", "ok"], {"ok": 5}),
    ],
)
def test_labels_choose_the_classes_and_no_image_is_inspected_twice(
    fitted: Client, labels: list[str] | None, expected: dict[str, int]
) -> None:
    answer = fitted.dataset("/infer_dataset", labels=labels).ok()
    counted = [item["label"] for item in answer["items"]]
    assert {label: counted.count(label) for label in set(counted)} == expected
    assert answer["n_total"] == sum(expected.values())


@pytest.mark.parametrize("labels", [["other"], "ok", [1], ["ok", "ng", "ok"]])
def test_unknown_labels_are_422(fitted: Client, labels: object) -> None:
    assert "labels" in fitted.dataset("/infer_dataset", labels=labels).ok(422)["error"]


def test_heat_maps_come_only_where_asked_for(fitted: Client) -> None:
    without = fitted.dataset("/infer_dataset", include_heatmap=False).ok()["items"]
    assert [item["heatmap_png_base64"] for item in without] == [None] * 6
    for item in fitted.dataset("/infer_dataset", include_heatmap=True).ok()["items"]:
        decoded = decode_image(base64.b64decode(item["heatmap_png_base64"]), max_pixels=10_000)
        assert decoded.shape[:2] == (64, 64)


def test_the_scale_is_the_image_s_own_else_the_default_else_the_roi_s(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    client.upload("ng", [png(3)], [{"mm_per_px": 0.2}]).ok()
    client.upload("ng", [png(4)]).ok()
    errors = [item["error"] for item in client.dataset("/infer_dataset", default_mm_per_px=0.5).ok()["items"]]
    assert sum(error is not None for error in errors) == 1
    assert "0.5" in next(error for error in errors if error)
    assert client.dataset("/infer_dataset", default_mm_per_px=None).ok()["n_errors"] == 0
    assert client.dataset("/infer_dataset", default_mm_per_px=0.2).ok()["n_errors"] == 0
    assert "default_mm_per_px" in client.dataset("/infer_dataset", default_mm_per_px=0).ok(422)["error"]


@pytest.mark.parametrize(
    "shape",
    [5, [1, 2], "{", {"kind": "hexagon"}, {"kind": "circle", "cx": "a"}, {"kind": "circle", "cx": 0, "cy": 0, "r": -1}],
)
@pytest.mark.parametrize("field", ["shape", "shape_json"])
def test_a_shape_that_makes_no_sense_is_an_error_of_its_image_alone(fitted: Client, field: str, shape: object) -> None:
    (name,) = fitted.upload("ng", [png(90)], [{field: shape}]).ok()["saved"]
    answer = fitted.dataset("/infer_dataset").ok()
    assert [item["filename"] for item in answer["items"] if item["error"]] == [name]


@pytest.mark.parametrize("field", ["shape", "shape_json"])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_shape_in_an_image_s_metadata_is_what_counts(fitted: Client, field: str, as_text: bool) -> None:
    corner = {"kind": "rect", "x": 0, "y": 0, "w": 16, "h": 16}  # the defect lies in the middle
    data = encoded(defective_image(98))
    sent = json.dumps(corner) if as_text else corner
    (name,) = fitted.upload("ng", [data], [{"shape": None, "shape_json": None, field: sent}]).ok()["saved"]
    scores = {item["filename"]: item["score"] for item in fitted.dataset("/infer_dataset").ok()["items"]}
    assert scores[name] == pytest.approx(fitted.infer(data, shape=json.dumps(corner)).ok()["score"])
    assert scores[name] < fitted.infer(data).ok()["score"]


def test_an_image_of_another_aspect_ratio_is_an_error_of_its_own(fitted: Client) -> None:
    wide = encoded(good_image(1, image_hw=(64, 128)))
    (name,) = fitted.upload("ng", [wide]).ok()["saved"]
    answer = fitted.dataset("/infer_dataset").ok()
    assert [item["filename"] for item in answer["items"] if item["error"]] == [name]


# --- /calibrate_dataset -----------------------------------------------------------------------------------------------


def test_calibrating_from_a_data_set_sets_the_threshold_that_its_scores_call_for(fitted: Client) -> None:
    items = fitted.dataset("/infer_dataset").ok()["items"]
    scores = {label: [item["score"] for item in items if item["label"] == label] for label in ("ok", "ng")}
    answer = fitted.dataset("/calibrate_dataset").ok()
    by_hand = fitted.calibrate(ok_scores=scores["ok"], ng_scores=scores["ng"]).ok()
    assert answer["status"] == "ok"
    assert (answer["n_ok"], answer["n_ng"]) == (5, 1)
    for field in ("threshold", "p99_ok", "p5_ng", "ok_mean", "ng_mean", "score_percentile", "area_mm2_thr"):
        assert answer[field] == pytest.approx(by_hand[field]), field
    assert answer["ok_scores_from"] == "dataset"
    assert answer["failed"] == []


def test_the_calibration_is_in_force_at_once(fitted: Client) -> None:
    threshold = fitted.dataset("/calibrate_dataset", area_mm2_thr=2.5, score_percentile=97).ok()["threshold"]
    calib = fitted.about("/manifest").ok()["calib"]
    assert (calib["threshold"], calib["area_mm2_thr"], calib["score_percentile"]) == (threshold, 2.5, 97)
    inspected = fitted.dataset("/infer_dataset").ok()["items"]
    assert {item["threshold"] for item in inspected} == {threshold}
    assert [item["decision"] for item in inspected] == ["ok"] * 5 + ["ng"]


def test_ng_images_can_be_required(client: Client) -> None:
    client.fit([png(1), png(2), png(3)]).ok()
    assert "ng" in client.dataset("/calibrate_dataset", require_ng=True).ok(422)["error"]
    assert client.about("/state").ok()["calib_present"] is False
    answer = client.dataset("/calibrate_dataset", require_ng=False).ok()
    assert (answer["n_ng"], answer["p5_ng"], answer["ng_mean"]) == (0, None, 0.0)


def test_images_that_could_not_take_part_in_a_calibration_are_named(fitted: Client) -> None:
    victim = sorted(_folder(fitted).glob("*.json"))[1]
    victim.with_suffix(".png").unlink()
    answer = fitted.dataset("/calibrate_dataset").ok()
    assert answer["n_ok"] == 4
    (failed,) = answer["failed"]
    assert failed["label"] == "ok"
    assert victim.stem[:12] in failed["filename"]
    assert failed["error"]


def test_a_calibration_that_fails_for_every_image_says_why(fitted: Client) -> None:
    fitted.upload("ok", [png(1)], [{"mm_per_px": 0.2}]).ok()
    fitted.delete("/datasets/clear", label="ok").ok()
    fitted.upload("ok", [png(seed) for seed in range(5)]).ok()
    body = fitted.dataset("/calibrate_dataset", default_mm_per_px=0.7).ok(422)
    assert "0.7" in body["error"]


def test_images_of_one_part_count_once(client: Client) -> None:
    data = [encoded(np.roll(good_image(1), n, axis=1)) for n in range(3)]
    client.upload("ok", data, [{"part_id": "one"}] * 3).ok()
    client.upload("ok", [png(7), png(8)]).ok()
    client.fit(use_dataset=True).ok()
    assert client.dataset("/calibrate_dataset").ok()["n_ok"] == 3


def test_a_data_set_without_good_images_cannot_calibrate(fitted: Client) -> None:
    fitted.delete("/datasets/clear", label="ok").ok()
    body = fitted.dataset("/calibrate_dataset").ok(422)
    assert body["details"]["ok_parts"] == 0


def test_the_same_answer_comes_for_a_form_with_the_parts_in_any_order(client: Client) -> None:
    parts = [image(png(1), "a.png"), *fields({"recipe_id": "default", **client.roi})]
    for order in itertools.permutations(range(len(parts)), len(parts)):
        body, content_type = dotnet_form(parts[n] for n in order)
        reply = client.send("POST", "/datasets/ok/upload", body, {"Content-Type": content_type})
        assert reply.ok()["saved"] == client.files("ok")
