"""The data set endpoints, over real sockets, as the published client calls them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testkit.client import Client, Part, Reply, dotnet_form, fields, image, meta, png
from tests.testkit.fakes import encoded, good_image


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
        pytest.param(['{"x":' + "[" * 30_000 + "]" * 30_000 + "}"], 400, id="30000 lists in each other"),
        pytest.param(['{"x":' + "[" * 100_000 + "]" * 100_000 + "}"], 413, id="100000 lists in each other"),
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


def test_one_bad_image_keeps_the_whole_upload_out(client: Client) -> None:
    body = client.upload("ok", [png(1), png(2)[:100]], names=["good.png", "half.png"]).ok(400)
    assert "half.png" in body["error"]
    assert client.files("ok") == []


def test_an_upload_without_an_image_or_with_too_many_is_refused(client: Client) -> None:
    for label in ("ok", "ng"):
        assert "images" in client.form(f"/datasets/{label}/upload", fields(client.roi)).ok(422)["error"]
    assert client.upload("ok", [png(0)] * 41).ok(413)["details"] == {"n_images": 41, "max_images": 40}


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


def test_a_file_name_that_is_not_there_is_404_and_leads_nowhere(fitted: Client) -> None:
    climbing = ["../../x", "..\\..\\x", "/etc/passwd", "../memory.npz"]
    patterns = ["x-000000000000.png", "x-0000.png", "x-************.png", "x-????????????.png"]
    for filename in (*climbing, *patterns, "a\0b-000000000000.png", "-.png", "x"):
        for path in ("/datasets/file", "/datasets/meta"):
            assert fitted.about(path, label="ok", filename=filename).ok(404)["code"] == "not_found"
        assert fitted.delete("/datasets/file", label="ok", filename=filename).ok()["deleted"] is False
    assert len(fitted.files("ok")) == 5


def test_a_name_of_the_other_class_or_with_another_suffix_is_404(fitted: Client) -> None:
    (name,) = fitted.files("ng")
    assert fitted.about("/datasets/file", label="ok", filename=name).status == 404
    assert fitted.about("/datasets/file", label="ng", filename=name.replace(".png", ".jpg")).status == 404
    assert fitted.about("/datasets/file", label="ng", filename="other" + name).status == 404
    assert "filename" in fitted.about("/datasets/file", label="ok", filename="a" * 5000).ok(422)["error"]


def test_a_label_other_than_ok_and_ng_is_422(client: Client) -> None:
    asks: list[Callable[..., Reply]] = [client.about, client.delete]
    for label in ("OK", "Ok", "", "all", "../ok"):
        query = {"label": label, "filename": "x-000000000000.png"}
        replies = [ask("/datasets/file", **query) for ask in asks]
        replies += [client.about("/datasets/meta", **query), client.delete("/datasets/clear", label=label)]
        assert [reply.ok(422)["details"]["field"] for reply in replies] == ["label"] * 4


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


def test_the_same_answer_comes_for_a_form_with_the_parts_in_any_order(client: Client) -> None:
    parts = [image(png(1), "a.png"), *fields({"recipe_id": "default", **client.roi})]
    for order in itertools.permutations(range(len(parts)), len(parts)):
        body, content_type = dotnet_form(parts[n] for n in order)
        reply = client.send("POST", "/datasets/ok/upload", body, {"Content-Type": content_type})
        assert reply.ok()["saved"] == client.files("ok")
