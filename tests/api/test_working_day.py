"""One working day of two recipes, in a real process: what was said before a restart is said after it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.client import Client
from tests.testkit.fakes import defective_image, encoded, good_image
from tests.testkit.server import Process

_EDGE_PX = 96
_CLIENTS = 4
_RECIPES = {"default": 0.2, "disc-b": 0.1}  # each with the scale of its camera
_VOLATILE = {"request_id", "timings_ms"}


def _good(recipe: str, seed: int) -> bytes:
    offset = 1000 * list(_RECIPES).index(recipe)
    return encoded(good_image(offset + seed, image_hw=(_EDGE_PX, _EDGE_PX)))


def _bad(recipe: str, seed: int) -> bytes:
    offset = 1000 * list(_RECIPES).index(recipe)
    return encoded(defective_image(offset + seed, image_hw=(_EDGE_PX, _EDGE_PX)))


def _upload_one(client: Client, label: str, data: bytes, seed: int) -> str:
    """Upload one sample as the published client does: one image and one metas part a call."""
    recipe = client.recipe or "default"
    sample = {
        **client.roi,
        "label": label,
        "filename": f"SAMPLE_{seed}.png",
        "mm_per_px": _RECIPES[recipe],
        "shape_json": {"kind": "circle", "cx": 48, "cy": 48, "r": 44},
        "created_at_utc": "2026-05-04T06:00:00Z",
    }
    answer = client.upload(label, [data], [sample], names=[f"SAMPLE_{seed}.png"]).ok()
    assert answer["recipe_id"] == recipe
    return str(answer["saved"][0])


def _inspect(client: Client, images: list[bytes]) -> list[dict[str, Any]]:
    """Inspect images by four clients at once; return the answers in the images' order, without what must differ."""
    mm_per_px = _RECIPES[client.recipe or "default"]
    shape = json.dumps({"kind": "circle", "cx": 48, "cy": 48, "r": 44})

    def infer(data: bytes) -> dict[str, Any]:
        answer = client.infer(data, mm_per_px=mm_per_px, shape=shape, model_key=client.roi_id).ok()
        return {name: value for name, value in answer.items() if name not in _VOLATILE}

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return list(pool.map(infer, images))


def _fit(client: Client) -> dict[str, Any]:
    mm_per_px = _RECIPES[client.recipe or "default"]
    answer: dict[str, Any] = client.fit(
        mm_per_px=mm_per_px, memory_fit="false", model_key=client.roi_id, use_dataset="true"
    ).ok()
    return answer


@pytest.mark.slow
def test_a_working_day_ends_and_the_next_begins_where_it_ended(tmp_path: Path) -> None:
    with Process(tmp_path / "models") as process:
        clients = _of_both_recipes(process.start())
        for client in clients:
            _day(client)
        evening = [_say(client) for client in clients]

        process.stop()
        assert [_say(client) for client in _of_both_recipes(process.start())] == evening


def _of_both_recipes(client: Client) -> list[Client]:
    return [client.at(recipe=None if recipe == "default" else recipe) for recipe in _RECIPES]


def _day(client: Client) -> None:
    """Work one day with one recipe."""
    recipe = client.recipe or "default"
    assert client.about("/state").ok()["memory_fitted"] is False
    with ThreadPoolExecutor(_CLIENTS) as pool:
        ok = list(pool.map(lambda seed: _upload_one(client, "ok", _good(recipe, seed), seed), range(30)))
        ng = list(pool.map(lambda seed: _upload_one(client, "ng", _bad(recipe, seed), seed), range(900, 903)))
    assert client.files("ok") == sorted(ok)
    assert client.files("ng") == sorted(ng)

    fit = _fit(client)
    assert (fit["n_ok_total"], fit["mm_per_px"], fit["recipe_id"]) == (30, _RECIPES[recipe], recipe)
    state = client.about("/state", model_key=client.roi_id).ok()
    assert (state["memory_fitted"], state["calib_present"]) == (True, False)
    calibration = client.dataset("/calibrate_dataset").ok()
    assert (calibration["n_ok"], calibration["n_ng"], calibration["failed"]) == (30, 3, [])
    assert calibration["p99_ok"] < calibration["threshold"] < calibration["p5_ng"]
    assert client.about("/state").ok()["calib_present"] is True

    morning = _inspect(client, _parts(recipe))
    assert [answer["decision"] for answer in morning[10:]] == ["ng"] * 10
    assert [answer["decision"] for answer in morning[:10]].count("ok") >= 8
    assert {answer["threshold"] for answer in morning} == {calibration["threshold"]}
    assert all(answer["regions"] for answer in morning[10:])

    for name in ok[:2]:
        assert client.delete("/datasets/file", label="ok", filename=name).ok()["deleted"] is True
    again = _fit(client)
    assert again["n_ok_total"] == 28
    assert again["checksum"] != fit["checksum"]
    assert again["calibration"] == "renewed"  # from the stored images, good and bad
    assert _inspect(client, _parts(recipe)[-1:])[0]["decision"] == "ng"
    anew = client.dataset("/calibrate_dataset").ok()
    assert (anew["n_ok"], anew["threshold"]) == (28, pytest.approx(again["threshold"], rel=1e-5))


def _parts(recipe: str) -> list[bytes]:
    return [_good(recipe, seed) for seed in range(500, 510)] + [_bad(recipe, seed) for seed in range(600, 610)]


def _say(client: Client) -> dict[str, Any]:
    """Return everything that the service says of a recipe's ROI."""
    recipe = client.recipe or "default"
    said = {
        "inspections": _inspect(client, _parts(recipe)),
        "state": client.about("/state").ok(),
        "manifest": client.about("/manifest").ok(),
        "list": client.about("/datasets/list").ok(),
        "data set": client.dataset("/infer_dataset", include_heatmap=False).ok(),
        "recipes": client.get("/recipes").ok(),
    }
    for answer in said.values():
        if isinstance(answer, dict):
            del answer["request_id"]
    assert (said["state"]["memory_fitted"], said["state"]["calib_present"]) == (True, True)
    assert (said["data set"]["n_total"], said["data set"]["n_errors"]) == (31, 0)
    return said
