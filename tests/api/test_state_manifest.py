"""GET /state and GET /manifest over real sockets: what a client asks before it does anything."""

from __future__ import annotations

import pytest

from tests.testkit.client import Client, png


def _state(client: Client, **query: object) -> tuple[bool, bool]:
    answer = client.about("/state", **query).ok()
    return answer["memory_fitted"], answer["calib_present"]


def test_the_state_follows_fit_and_calibration(client: Client) -> None:
    assert _state(client) == (False, False)
    client.fit([png(1), png(2), png(3)]).ok()
    assert _state(client) == (True, False)
    client.calibrate().ok()
    assert _state(client) == (True, True)


def test_the_state_names_what_it_is_about(client: Client) -> None:
    headers = {"X-Request-Id": "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11", "X-Recipe-Id": "Summer"}
    assert client.about("/state", model_key="other", headers=headers).ok() == {
        "status": "ok",
        "memory_fitted": False,
        "calib_present": False,
        "calibration_stale": False,
        "request_id": "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11",
        "recipe_id": "summer",
        "role_id": client.role_id,
        "roi_id": client.roi_id,
        "model_key": "other",
        "warnings": [],
    }


def test_the_model_key_is_the_roi_id_unless_said_otherwise(client: Client) -> None:
    for query in ({}, {"model_key": ""}):
        assert client.about("/state", **query).ok()["model_key"] == client.roi_id
        assert client.about("/manifest", **query).ok()["model_key"] == client.roi_id


def test_a_calibration_that_rests_on_bad_images_is_stale_after_another_fit(client: Client) -> None:
    client.fit([png(1), png(2), png(3)]).ok()
    client.calibrate(ng_scores=[1.5]).ok()
    client.fit([png(4)]).ok()
    state = client.about("/state").ok()
    assert (state["memory_fitted"], state["calib_present"], state["calibration_stale"]) == (True, False, True)
    manifest = client.about("/manifest").ok()
    assert (manifest["calib"], manifest["calibration_stale"]) == (None, True)


def test_the_manifest_of_an_unknown_roi_is_empty_and_leaves_no_trace(client: Client) -> None:
    answer = client.about("/manifest").ok()
    assert (answer["memory"], answer["calib"], answer["fit"]) == (False, None, None)
    assert answer["datasets"] == {"ok": {"count": 0}, "ng": {"count": 0}}
    assert not (client.models_dir / client.role_id / client.roi_id).exists()


def test_the_manifest_tells_the_facts_of_the_fit_and_the_calibration(client: Client) -> None:
    client.upload("ng", [png(9)]).ok()
    fit = client.fit([png(1), png(2), png(3)], memory_fit=True).ok()
    calib = client.calibrate(area_mm2_thr=2.5, score_percentile=98).ok()
    answer = client.about("/manifest").ok()
    assert answer["memory"] is True
    for field in (
        "n_ok_total",
        "n_embeddings",
        "coreset_size",
        "token_shape",
        "checksum",
        "mm_per_px",
        "cell_mm",
        "aligned",
    ):
        assert answer["fit"][field] == fit[field], field
    assert answer["fit"]["coreset_size"] == answer["fit"]["n_embeddings"] == 3 * 64
    assert (answer["fit"]["image_width"], answer["fit"]["image_height"]) == (64, 64)
    assert answer["calib"] == {field: calib[field] for field in answer["calib"]}
    assert answer["datasets"] == {"ok": {"count": 3}, "ng": {"count": 1}}


def test_a_missing_id_is_422_and_named(server: Client) -> None:
    for path in ("/state", "/manifest", "/datasets/list"):
        for query, missing in (({"role_id": "x"}, "roi_id"), ({"roi_id": "x"}, "role_id")):
            body = server.get(path, **query).ok(422)
            assert body["details"]["field"] == missing
            assert missing in body["error"]


def test_an_id_that_cannot_name_a_folder_is_422(client: Client) -> None:
    for field in ("role_id", "roi_id"):
        for an_id in ("", " ", "..", "a/b", "a\\b", "a\nb", "a\0b", "x" * 65):
            assert client.about("/state", **{field: an_id}).ok(422)["details"]["field"] == field


@pytest.mark.parametrize(
    ("role_id", "roi_id"),
    [
        ("Inspection", "inspection-4"),
        ("Master1", "Pattern"),
        ("Master2", "Search"),
        ("DefaultRole", "größe_ñ-漢字"),
        ("DefaultRole", "con"),
    ],
)
def test_the_ids_in_use_work(server: Client, role_id: str, roi_id: str) -> None:
    client = server.at(roi_id, role_id=role_id)
    client.fit([png(1), png(2)]).ok()
    assert _state(client) == (True, False)


def test_a_memory_damaged_on_disk_is_an_error_that_says_how_to_mend_it(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    path = client.models_dir / client.role_id / client.roi_id / "memory.npz"
    path.write_bytes(path.read_bytes()[:-100])
    for reply in (client.about("/state"), client.about("/manifest"), client.infer(png(1))):
        body = reply.ok(500)
        assert body["code"] == "artefact_corrupt"
        assert "mode=replace" in body["error"]
    client.fit([png(1), png(2)], mode="replace").ok()
    assert _state(client) == (True, False)


def test_asking_a_thousand_names_fills_no_disk_and_no_cache(server: Client) -> None:
    before = sorted(server.models_dir.rglob("*"))
    for n in range(60):
        server.at(f"nobody-{n}", role_id="Nobody").about("/state").ok()
    assert sorted(server.models_dir.rglob("*")) == before
