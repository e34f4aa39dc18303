"""Recipes over real sockets: sets of artefacts that never mix."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testkit.client import Client, fields, image, png

_UNUSED = itertools.count()


@pytest.fixture
def recipe() -> str:
    """A recipe that no other test uses."""
    return f"recipe-{next(_UNUSED)}"


def _listed(client: Client) -> dict[str, list[tuple[str, str, str]]]:
    return {
        entry["recipe_id"]: [(model["role_id"], model["roi_id"], model["model_key"]) for model in entry["models"]]
        for entry in client.get("/recipes").ok()["recipes"]
    }


def _fill(client: Client) -> None:
    client.upload("ng", [png(90)], [{"mm_per_px": 0.2}]).ok()
    client.fit([png(seed) for seed in range(4)]).ok()
    client.calibrate().ok()


# --- where things lie -------------------------------------------------------------------------------------------------


def test_the_default_recipe_lies_directly_below_the_models_folder(client: Client) -> None:
    _fill(client)
    folder = client.models_dir / client.role_id / client.roi_id
    for name in ("memory.npz", "index.faiss", "calib.json"):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "calib.json").read_text())["threshold"] > 0


def test_another_recipe_lies_below_its_own_folder(client: Client, recipe: str) -> None:
    _fill(client.at(recipe=recipe))
    folder = client.models_dir / "recipes" / recipe / client.role_id / client.roi_id
    for name in ("memory.npz", "index.faiss", "calib.json"):
        assert (folder / name).is_file(), name
    assert not (client.models_dir / client.role_id / client.roi_id).exists()


# --- one recipe never reads another's ---------------------------------------------------------------------------------


def test_a_recipe_borrows_nothing_from_the_default(client: Client, recipe: str) -> None:
    _fill(client)
    other = client.at(recipe=recipe)
    state = other.about("/state").ok()
    assert (state["memory_fitted"], state["calib_present"]) == (False, False)
    assert other.about("/manifest").ok()["datasets"] == {"ok": {"count": 0}, "ng": {"count": 0}}
    assert other.files("ok") == other.files("ng") == []
    name = client.files("ok")[0]
    assert other.about("/datasets/file", label="ok", filename=name).status == 404
    assert other.about("/datasets/meta", label="ok", filename=name).status == 404
    assert other.delete("/datasets/file", label="ok", filename=name).ok()["deleted"] is False
    assert other.delete("/datasets/clear", label="ok").ok()["cleared"] == 0
    for reply in (
        other.infer(png(1)),
        other.calibrate(),
        other.dataset("/infer_dataset"),
        other.dataset("/calibrate_dataset"),
    ):
        assert "memory not found" in reply.ok(400)["error"]
    assert other.fit(use_dataset=True).status == 422
    assert len(client.files("ok")) == 4


def test_the_default_borrows_nothing_from_a_recipe(client: Client, recipe: str) -> None:
    _fill(client.at(recipe=recipe))
    assert client.about("/state").ok()["memory_fitted"] is False
    assert client.infer(png(1)).status == 400


def test_each_recipe_has_its_own_scale_threshold_and_images(client: Client, recipe: str) -> None:
    other = client.at(recipe=recipe)
    client.fit([png(1), png(2)], mm_per_px=0.2).ok()
    other.fit([png(1), png(2), png(3)], mm_per_px=0.5).ok()
    client.calibrate(ok_scores=[0.3]).ok()
    other.calibrate(ok_scores=[0.7], mm_per_px=0.5).ok()
    assert client.infer(png(9), mm_per_px=0.2).ok()["threshold"] == 0.3
    assert other.infer(png(9), mm_per_px=0.5).ok()["threshold"] == 0.7
    assert client.infer(png(9), mm_per_px=0.5).status == 409
    assert (len(client.files("ok")), len(other.files("ok"))) == (2, 3)


# --- who says which recipe --------------------------------------------------------------------------------------------


def _call_all(client: Client, recipe_id: str | None) -> dict[str, object]:
    """Return the recipe that every call about a ROI says it has used."""
    said = {} if recipe_id is None else {"recipe_id": recipe_id}
    name = client.files("ok")[0]
    replies = {
        "fit_ok": client.fit([png(1)], **said),
        "infer": client.infer(png(1), **said),
        "calibrate_ng": client.calibrate(ok_scores=[0.3], **said),
        "state": client.about("/state", **said),
        "manifest": client.about("/manifest", **said),
        "list": client.about("/datasets/list", **said),
        "upload": client.form(
            "/datasets/ng/upload", [*fields({**client.roi, **said}), image(png(next(_UNUSED) + 1000))]
        ),
        "meta": client.about("/datasets/meta", label="ok", filename=name, **said),
        "infer_dataset": client.dataset("/infer_dataset", **said),
        "calibrate_dataset": client.dataset("/calibrate_dataset", **said),
        "delete": client.delete("/datasets/file", label="ok", filename="x-000000000000.png", **said),
        "clear": client.delete("/datasets/clear", label="ng", **said),
    }
    return {call: reply.ok()["recipe_id"] for call, reply in replies.items()}


def test_an_explicit_field_goes_before_the_header_and_the_header_before_the_default(
    client: Client, recipe: str
) -> None:
    for each in (client, client.at(recipe=recipe), client.at(recipe=f"{recipe}-b")):
        each.fit([png(1), png(2), png(3)]).ok()
    with_header = client.at(recipe=recipe)
    assert set(_call_all(client, None).values()) == {"default"}
    assert set(_call_all(with_header, None).values()) == {recipe}
    assert set(_call_all(with_header, f"{recipe}-b").values()) == {f"{recipe}-b"}
    assert set(_call_all(with_header, "default").values()) == {"default"}


@pytest.mark.parametrize("header", ["", "default", "Default", " DEFAULT "])
def test_an_empty_header_and_any_spelling_of_default_mean_the_default(client: Client, header: str) -> None:
    assert client.at(recipe=header).about("/state").ok()["recipe_id"] == "default"


def test_recipe_ids_are_lower_cased(client: Client, recipe: str) -> None:
    _fill(client.at(recipe=recipe.upper()))
    for spelling in (recipe, recipe.upper(), recipe.title()):
        state = client.at(recipe=spelling).about("/state").ok()
        assert (state["recipe_id"], state["memory_fitted"]) == (recipe, True)
    assert recipe in _listed(client)
    assert recipe.upper() not in _listed(client)


_BAD_IDS = ["last", "LAST", " Last ", "-a", "_a", "a b", "a.b", "a/b", "../x", "ñ", "a" * 65, "recipes/x"]


@pytest.mark.parametrize("bad", _BAD_IDS)
def test_a_reserved_or_malformed_recipe_is_400_in_a_field(client: Client, bad: str) -> None:
    for reply in (
        client.about("/state", recipe_id=bad),
        client.calibrate(recipe_id=bad),
        client.infer(png(1), recipe_id=bad),
    ):
        if len(bad) > 64:
            assert reply.status in (400, 422)
        else:
            assert reply.ok(400)["code"] == "reserved_recipe_id"


@pytest.mark.parametrize("bad", [bad for bad in _BAD_IDS if bad.isascii()])
def test_a_reserved_or_malformed_recipe_is_400_in_the_header(client: Client, bad: str) -> None:
    wrong = client.at(recipe=bad)
    for reply in (wrong.about("/state"), wrong.calibrate(), wrong.infer(png(1)), wrong.fit([png(1)])):
        body = reply.ok(400)
        assert body["code"] == "reserved_recipe_id"
        assert "'last' is reserved" in body["error"]
    assert not list(client.models_dir.rglob(client.roi_id))


def test_an_explicit_field_also_goes_before_a_bad_header(client: Client) -> None:
    assert client.at(recipe="last").about("/state", recipe_id="default").ok()["recipe_id"] == "default"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda c: c.infer(png(1)), id="400 unfitted"),
        pytest.param(lambda c: c.infer(b"no image"), id="400 before the image is read"),
        pytest.param(lambda c: c.post("/calibrate_ng", {}), id="422 body"),
        pytest.param(lambda c: c.get("/state"), id="422 query"),
        pytest.param(lambda c: c.form("/fit_ok", []), id="422 form"),
        pytest.param(lambda c: c.about("/datasets/file", label="ok", filename="x"), id="404"),
        pytest.param(lambda c: c.send("POST", "/calibrate_ng", b"{", {"Content-Type": "application/json"}), id="400"),
    ],
)
def test_every_error_names_the_recipe_of_its_call(
    client: Client, recipe: str, call: Callable[[Client], object]
) -> None:
    reply = call(client.at(recipe=recipe.title()))
    assert reply.status >= 400
    assert reply.json["recipe_id"] == recipe


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_begins_with_default_and_names_the_models_of_each_recipe(client: Client, recipe: str) -> None:
    client.fit([png(1)]).ok()
    other = client.at(recipe=recipe)
    other.fit([png(1)]).ok()
    other.fit(use_dataset=True, model_key="second").ok()
    other.at("Größe ñ").upload("ok", [png(2)]).ok()
    listed = _listed(client)
    assert next(iter(listed)) == "default"
    assert (client.role_id, client.roi_id, client.roi_id) in listed["default"]
    assert sorted(listed[recipe]) == sorted(
        [
            (client.role_id, client.roi_id, client.roi_id),
            (client.role_id, client.roi_id, "second"),
            (client.role_id, "Größe ñ", "Größe ñ"),
        ]
    )


def test_a_mistyped_recipe_makes_no_recipe(client: Client, recipe: str) -> None:
    mistyped = client.at(recipe=recipe)
    mistyped.calibrate()
    mistyped.infer(png(1))
    mistyped.about("/state").ok()
    mistyped.delete("/datasets/clear", label="ok").ok()
    mistyped.delete("/datasets/file", label="ok", filename="x-000000000000.png").ok()
    mistyped.dataset("/infer_dataset")
    assert recipe not in _listed(client)
    assert not (client.models_dir / "recipes" / recipe).exists()


def test_a_recipe_that_was_emptied_is_not_listed(client: Client, recipe: str) -> None:
    other = client.at(recipe=recipe)
    other.upload("ok", [png(1)]).ok()
    assert recipe in _listed(client)
    other.delete("/datasets/clear", label="ok").ok()
    assert recipe not in _listed(client)


def test_folders_that_an_operator_put_there_do_no_harm(client: Client, recipe: str) -> None:
    _fill(client)
    _fill(client.at(recipe=recipe))
    recipes = client.models_dir / "recipes"
    strays = [
        recipes / "Backup of last week" / "Inspection" / "roi" / "memory.npz",
        recipes / "last" / "Inspection" / "roi" / "memory.npz",
        recipes / "default" / "Inspection" / "roi" / "memory.npz",
        recipes / recipe / "Inspection" / "roi (1)" / "memory.npz",
        client.models_dir / "100%zz" / "50%FF" / "memory.npz",
        client.models_dir / "Inspection" / ("x" * 100) / "memory.npz",
    ]
    for stray in strays:
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"")
    listed = _listed(client)
    assert set(listed) & {"Backup of last week", "last"} == set()
    assert listed[recipe] == [(client.role_id, client.roi_id, client.roi_id)]
    assert list(listed).count("default") == 1
    client.post("/recipes/copy", {"from": recipe, "to": f"{recipe}-copy"}).ok(201)


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_has_all_that_its_source_has_and_goes_its_own_way(client: Client, recipe: str) -> None:
    source, target = client.at(recipe=recipe), client.at(recipe=f"{recipe}-copy")
    _fill(source)
    source.fit(use_dataset=True, model_key="heatmaps").ok()  # a model may have any name
    answer = client.post("/recipes/copy", {"from": recipe, "to": f"{recipe}-copy"}).ok(201)
    assert (answer["status"], answer["recipe_id"]) == ("ok", f"{recipe}-copy")
    assert [model["model_key"] for model in answer["models"]] == [client.roi_id, "heatmaps"]
    for query in ({}, {"model_key": "heatmaps"}):
        one, two = (each.about("/manifest", **query).ok() for each in (source, target))
        for field in ("memory", "calib", "fit", "datasets"):
            assert one[field] == two[field], field
    assert source.files("ok") == target.files("ok")
    for name in source.files("ok"):
        read = [each.about("/datasets/file", label="ok", filename=name).body for each in (source, target)]
        assert read[0] == read[1]
    for field in ("score", "threshold", "decision", "heatmap_png_base64"):
        assert source.infer(png(50)).ok()[field] == target.infer(png(50)).ok()[field], field

    target.delete("/datasets/clear", label="ok").ok()
    target.fit([png(77), png(78)]).ok()
    assert source.about("/manifest", model_key="heatmaps").ok()["fit"] == one["fit"]
    assert (len(source.files("ok")), len(source.files("ng"))) == (4, 1)
    assert (len(target.files("ok")), len(target.files("ng"))) == (2, 1)


def test_the_default_recipe_can_be_copied_without_the_other_recipes(client: Client, recipe: str) -> None:
    _fill(client)
    _fill(client.at("only-there", recipe=recipe))
    client.post("/recipes/copy", {"from": "Default", "to": f"{recipe}-copy"}).ok(201)
    listed = _listed(client)
    assert listed[f"{recipe}-copy"] == listed["default"]
    assert not (client.models_dir / "recipes" / f"{recipe}-copy" / "recipes").exists()


def test_the_answer_names_the_new_recipe_as_it_is_stored(client: Client, recipe: str) -> None:
    _fill(client)
    answer = client.post("/recipes/copy", {"from": "default", "to": recipe.upper()}).ok(201)
    assert answer["recipe_id"] == recipe


@pytest.mark.parametrize(
    ("source", "target", "status", "code"),
    [
        ("nobody-has-this", "new-one", 404, "not_found"),
        ("default", "default", 409, "conflict"),
        ("default", "{recipe}", 409, "conflict"),
        ("{recipe}", "{recipe}", 409, "conflict"),
        ("default", "last", 400, "reserved_recipe_id"),
        ("last", "new-one", 400, "reserved_recipe_id"),
        ("default", "../up", 400, "reserved_recipe_id"),
        ("default", "", 422, "invalid_input"),
        ("", "new-one", 422, "invalid_input"),
    ],
)
def test_a_copy_that_cannot_be_made_says_why_and_leaves_nothing(
    client: Client, recipe: str, source: str, target: str, status: int, code: str
) -> None:
    _fill(client)
    _fill(client.at(recipe=recipe))
    before = _listed(client)
    body = {"from": source.format(recipe=recipe), "to": target.format(recipe=recipe)}
    assert client.post("/recipes/copy", body).ok(status)["code"] == code
    assert _listed(client) == before


@pytest.mark.parametrize("body", [{}, {"from": "default"}, {"to": "x"}, {"from": 1, "to": "x"}, []])
def test_a_copy_without_both_names_is_422(client: Client, body: object) -> None:
    assert client.post("/recipes/copy", body).status == 422


def test_a_copy_made_while_fits_run_is_one_of_their_states_and_never_a_mixture(client: Client, recipe: str) -> None:
    client.fit([png(0), png(1)]).ok()
    stop = threading.Event()
    failures: list[object] = []

    def keep_fitting() -> None:
        for seed in itertools.count(2):
            if stop.is_set():
                return
            reply = client.fit([png(seed)])
            if reply.status != 200:
                failures.append(reply.body)

    fitter = threading.Thread(target=keep_fitting)
    fitter.start()
    try:
        copies = [f"{recipe}-{n}" for n in range(5)]
        for name in copies:
            client.post("/recipes/copy", {"from": "default", "to": name}).ok(201)
    finally:
        stop.set()
        fitter.join()
    assert failures == []
    for name in copies:
        copied = client.at(recipe=name)
        manifest = copied.about("/manifest").ok()
        assert manifest["memory"] is True
        assert manifest["fit"]["n_ok_total"] == manifest["datasets"]["ok"]["count"] == len(copied.files("ok"))
        assert copied.fit(use_dataset=True).ok()["n_ok_total"] == manifest["fit"]["n_ok_total"]


def test_of_two_copies_to_one_name_at_once_one_wins(client: Client, recipe: str) -> None:
    _fill(client)
    barrier = threading.Barrier(2)
    statuses: list[int] = []

    def copy() -> None:
        barrier.wait()
        statuses.append(client.post("/recipes/copy", {"from": "default", "to": recipe}).status)

    threads = [threading.Thread(target=copy) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 409]
    assert _listed(client)[recipe] == _listed(client)["default"]
    leftovers = [entry for entry in (client.models_dir / "recipes").iterdir() if entry.name.startswith(".")]
    assert leftovers == []


def test_lock_files_and_heat_maps_are_not_copied(client: Client, recipe: str) -> None:
    _fill(client)
    path = client.infer(png(1), heatmap="path").ok()["heatmap_path"]
    assert (client.models_dir / path).is_file()
    client.post("/recipes/copy", {"from": "default", "to": recipe}).ok(201)
    copied = client.models_dir / "recipes" / recipe
    names = {entry.name for entry in Path(copied).rglob("*")}
    assert "memory.npz" in names
    assert not {name for name in names if name.startswith(".")}
    assert not (copied / client.role_id / client.roi_id / "heatmaps").exists()
