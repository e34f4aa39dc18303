"""Recipes over real sockets: sets of artefacts that never mix."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
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


def test_the_default_recipe_lies_below_the_models_folder_and_another_below_its_own(client: Client, recipe: str) -> None:
    default = client.models_dir / client.role_id / client.roi_id
    other = client.models_dir / "recipes" / recipe / client.role_id / client.roi_id
    for each, folder, elsewhere in ((client.at(recipe=recipe), other, default), (client, default, None)):
        _fill(each)
        assert {"memory.npz", "index.faiss", "calib.json"} <= {path.name for path in folder.iterdir()}
        assert json.loads((folder / "calib.json").read_text())["threshold"] > 0
        assert elsewhere is None or not elsewhere.exists()


# --- one recipe never reads another's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("filled", ["default", "another"])
def test_a_recipe_borrows_nothing_from_another_one(client: Client, recipe: str, filled: str) -> None:
    one, other = client.at(recipe=recipe), client
    if filled == "default":
        one, other = other, one
    _fill(one)
    state = other.about("/state").ok()
    assert (state["memory_fitted"], state["calib_present"]) == (False, False)
    assert other.about("/manifest").ok()["datasets"] == {"ok": {"count": 0}, "ng": {"count": 0}}
    assert other.files("ok") == other.files("ng") == []
    name = one.files("ok")[0]
    assert other.about("/datasets/file", label="ok", filename=name).status == 404
    assert other.about("/datasets/meta", label="ok", filename=name).status == 404
    assert other.delete("/datasets/file", label="ok", filename=name).ok()["deleted"] is False
    assert other.delete("/datasets/clear", label="ok").ok()["cleared"] == 0
    datasets = [other.dataset(f"/{call}_dataset") for call in ("infer", "calibrate")]
    for reply in (other.infer(png(1)), other.calibrate(), *datasets):
        assert "memory not found" in reply.ok(400)["error"]
    assert other.fit(use_dataset=True).status == 422
    assert len(one.files("ok")) == 4


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


def test_an_empty_header_and_any_spelling_of_default_mean_the_default(client: Client) -> None:
    for header in ("", "default", "Default", " DEFAULT "):
        assert client.at(recipe=header).about("/state").ok()["recipe_id"] == "default"


def test_recipe_ids_are_lower_cased(client: Client, recipe: str) -> None:
    _fill(client.at(recipe=recipe.upper()))
    for spelling in (recipe, recipe.upper(), recipe.title()):
        state = client.at(recipe=spelling).about("/state").ok()
        assert (state["recipe_id"], state["memory_fitted"]) == (recipe, True)
    assert recipe in _listed(client)
    assert recipe.upper() not in _listed(client)


def test_a_reserved_or_malformed_recipe_is_400_in_a_field_and_in_the_header(client: Client) -> None:
    for bad in ("last", "LAST", " Last ", "-a", "_a", "a b", "a.b", "a/b", "../x", "ñ", "a" * 65, "recipes/x"):
        named = {"recipe_id": bad}
        for reply in (client.about("/state", **named), client.calibrate(**named), client.infer(png(1), **named)):
            assert reply.status == 422 if len(bad) > 64 else reply.ok(400)["code"] == "reserved_recipe_id"
        if bad.isascii():
            wrong = client.at(recipe=bad)
            for reply in (wrong.about("/state"), wrong.calibrate(), wrong.infer(png(1)), wrong.fit([png(1)])):
                body = reply.ok(400)
                assert body["code"] == "reserved_recipe_id"
                assert "'last' is reserved" in body["error"]
    assert not list(client.models_dir.rglob(client.roi_id))


def test_an_explicit_field_also_goes_before_a_bad_header(client: Client) -> None:
    assert client.at(recipe="last").about("/state", recipe_id="default").ok()["recipe_id"] == "default"


def test_every_error_names_the_recipe_of_its_call(client: Client, recipe: str) -> None:
    named = client.at(recipe=recipe.title())
    for reply in (
        named.infer(png(1)),
        named.infer(b"no image"),
        named.post("/calibrate_ng", {}),
        named.get("/state"),
        named.form("/fit_ok", []),
        named.about("/datasets/file", label="ok", filename="x"),
        named.send("POST", "/calibrate_ng", b"{", {"Content-Type": "application/json"}),
        named.get("/nowhere"),
    ):
        assert reply.status in (400, 404, 422)
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
    answer = client.post("/recipes/copy", {"from": "Default", "to": f"{recipe}-COPY"}).ok(201)
    assert answer["recipe_id"] == f"{recipe}-copy", "as it is stored"
    listed = _listed(client)
    assert listed[f"{recipe}-copy"] == listed["default"]
    assert not (client.models_dir / "recipes" / f"{recipe}-copy" / "recipes").exists()


def test_a_copy_that_cannot_be_made_says_why_and_leaves_nothing(client: Client, recipe: str) -> None:
    _fill(client)
    _fill(client.at(recipe=recipe))
    before = _listed(client)
    for source, target, status, code in (
        ("nobody-has-this", "new-one", 404, "not_found"),
        ("default", "default", 409, "conflict"),
        ("default", recipe, 409, "conflict"),
        (recipe, recipe, 409, "conflict"),
        ("default", "last", 400, "reserved_recipe_id"),
        ("last", "new-one", 400, "reserved_recipe_id"),
        ("default", "../up", 400, "reserved_recipe_id"),
        ("default", "", 422, "invalid_input"),
        ("", "new-one", 422, "invalid_input"),
    ):
        assert client.post("/recipes/copy", {"from": source, "to": target}).ok(status)["code"] == code
    for body in ({}, {"from": "default"}, {"to": "x"}, {"from": 1, "to": "x"}, []):
        assert client.post("/recipes/copy", body).status == 422
    assert _listed(client) == before


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
        copies = [f"{recipe}-{n}" for n in range(3)]
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

    def copy(_: int) -> int:
        barrier.wait()
        return client.post("/recipes/copy", {"from": "default", "to": recipe}).status

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(copy, range(2))) == [201, 409]
    assert _listed(client)[recipe] == _listed(client)["default"]
    assert not [entry for entry in (client.models_dir / "recipes").iterdir() if entry.name.startswith(".")]


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


# --- emptied ----------------------------------------------------------------------------------------------------------


def test_an_emptied_recipe_is_listed_and_can_be_removed_and_copied_to(client: Client, recipe: str) -> None:
    _fill(client)
    emptied = client.at(recipe=recipe)
    emptied.upload("ok", [png(1)]).ok()
    assert client.send("DELETE", f"/recipes?recipe_id={recipe}").ok(409)["code"] == "conflict"
    assert client.post("/recipes/copy", {"from": "default", "to": recipe}).ok(409)["code"] == "conflict"
    assert len(emptied.files("ok")) == 1, "what holds anything stays as it is"
    emptied.delete("/datasets/clear", label="ok").ok()
    assert _listed(client)[recipe] == []
    assert client.send("DELETE", f"/recipes?recipe_id={recipe.upper()}").ok()["recipe_id"] == recipe
    assert recipe not in _listed(client)
    assert client.send("DELETE", f"/recipes?recipe_id={recipe}").ok(404)["code"] == "not_found"
    emptied.upload("ok", [png(1)]).ok()
    emptied.delete("/datasets/clear", label="ok").ok()
    client.post("/recipes/copy", {"from": "default", "to": recipe}).ok(201)
    assert _listed(client)[recipe] == _listed(client)["default"]
    assert not [entry for entry in (client.models_dir / "recipes").iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize(
    ("recipe_id", "status", "code"),
    [("default", 409, "conflict"), ("last", 400, "reserved_recipe_id"), ("..", 400, "reserved_recipe_id")],
)
def test_no_other_recipe_is_removed(client: Client, recipe_id: str, status: int, code: str) -> None:
    _fill(client)
    assert client.send("DELETE", f"/recipes?recipe_id={recipe_id}").ok(status)["code"] == code
    assert client.files("ok")


def test_a_recipe_that_was_fitted_or_in_which_somebody_works_is_not_removed(client: Client, recipe: str) -> None:
    other = client.at(recipe=recipe)
    other.fit([png(0), png(1)]).ok()
    other.delete("/datasets/clear", label="ok").ok()
    assert client.send("DELETE", f"/recipes?recipe_id={recipe}").ok(409)["code"] == "conflict"
    assert other.about("/state").ok()["memory_fitted"]
