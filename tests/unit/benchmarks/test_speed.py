import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from backend.demo.samples import render_good
from backend.extractors.dinov2 import DinoV2Features, to_input
from backend.extractors.embedder import PatchEmbedder
from backend.extractors.engines import TorchEngine
from backend.extractors.weights import WeightsFile, load_backbone
from backend.memory_bank.coreset import kcenter_greedy
from benchmarks import load, speed, workbench
from benchmarks.load_clients import Measured
from benchmarks.machine import markdown, network_facts, update_block
from benchmarks.references import LAYERS, FaissFlat, PlainNearest, TorchEagerExtractor
from benchmarks.seeded_weights import MODEL_NAME, Weights, weights_for_benchmarks
from benchmarks.servers import inspect, learn
from benchmarks.speed_rows import NO_CUDA, picks_the_farthest
from benchmarks.workbench import Plan, Row, duel

_SIZE_PX = 70


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    # Named, so that no test asks the hub.
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("benchmarks.seeded_weights.find_weights", _no_weights)
        return weights_for_benchmarks(folder)


def _no_weights(*_: object, **__: object) -> None:
    from backend.errors import WeightsUnavailable

    raise WeightsUnavailable("not on this machine")


def _console() -> Console:
    return Console(file=io.StringIO(), width=250)


# --- the command lines


def test_the_small_rows_are_measured_checked_written_and_put_into_a_document(weights, tmp_path, monkeypatch):
    console, out, page = _console(), tmp_path / "deep" / "speed.json", tmp_path / "page.md"
    page.write_text("Before.\n<!-- speed -->\nold\n<!-- /speed -->\nAfter.\n", encoding="utf-8")
    monkeypatch.setattr(workbench, "DinoV2Features", partial(DinoV2Features, engine="torch"))  # no conversion
    sizes = {"usual_memory_sizes": (5, 10), "memory_size": 20}
    plan = Plan(size_px=_SIZE_PX, n_images=2, coreset_rate=0.2, rounds=1, calls=1, long_rounds=1, **sizes)
    rows = ("extract", "nearest", "coreset", "cuda")
    speed.main(
        ["--rows", *rows, "--weights", str(weights.path), "--json", str(out), "--update", str(page)],
        console=console,
        plan=plan,
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["work"].split(",")[0] for row in found["rows"][:5]] == [
        "extract one 70 px ROI",
        "nearest of 5×768 for 25 queries",
        "nearest of 10×768 for 25 queries",
        "nearest of 20×768 for 25 queries",
        "coreset 50×768 → 10",
    ]
    assert all(row["same_result"] and row["ratio"] > 0 for row in found["rows"][:5])
    assert found["machine"]["cores"] >= 1
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before.\n<!-- speed -->\n| work |")
    assert "same picks" in text
    assert "old" not in text
    if found["machine"]["cuda"] is None:
        assert NO_CUDA in text


def test_a_real_server_is_put_under_load(weights, tmp_path):
    out = tmp_path / "load.json"
    options = "--seconds 0.5 --clients 2 --fits none extracting --extractor filter-bank --size 96 --images 12"
    status = load.main([*options.split(), "--weights", str(weights.path), "--json", str(out)], console=_console())
    assert status == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(row["clients"], row["fit"]) for row in rows] == [(2, "none"), (2, "extracting")]
    for row in rows:
        assert row["n_inspections"] >= 1
        assert row["n_refused"] == 0
        assert row["latency_ms"] == sorted(row["latency_ms"])
        assert row["health_p99_ms"] > 0


def test_the_fallback_weights_are_said_to_be_seeded(weights):
    assert "seeded" in network_facts(weights)["weights"]
    assert "named" in weights_for_benchmarks(weights.path.parent, named=weights.path).title


# --- the references come to the service's results


def test_the_reference_extraction_is_that_of_the_service_in_float32(weights):
    image = render_good(1, size_px=_SIZE_PX).image_bgr
    rows = TorchEagerExtractor(weights.path, input_size=_SIZE_PX).extract(image)
    embedder = PatchEmbedder(load_backbone(MODEL_NAME, WeightsFile(path=weights.path, origin="file")), LAYERS)
    np.testing.assert_allclose(rows, TorchEngine(embedder).embed(to_input(image, (70, 70))[None])[0], atol=1e-4)


def test_the_reference_service_learns_and_inspects(weights, monkeypatch):
    from fastapi.testclient import TestClient

    from backend.imaging.image_codec import encode_png
    from benchmarks.references import reference_app

    monkeypatch.setenv("BDI_WEIGHTS", str(weights.path))
    monkeypatch.setenv("BDI_INPUT_SIZE", str(_SIZE_PX))
    pngs = [encode_png(render_good(seed, size_px=_SIZE_PX).image_bgr) for seed in range(3)]
    with TestClient(reference_app()) as client:
        answers = []
        for request in (learn("roi", pngs[:2], coreset_rate=0.5), inspect("roi", pngs[2])):
            headers = {"Content-Type": request.content_type}
            answers.append(client.post(request.path, content=request.body, headers=headers).json())
    assert answers[0]["n_embeddings"] == 50
    assert answers[1]["score"] > 0
    assert answers[1]["heatmap_png_base64"]


@pytest.mark.parametrize("reference", [FaissFlat, PlainNearest])
def test_the_reference_searches_return_distances_that_are_not_squared(reference):
    distances, indices = reference(np.eye(3, dtype=np.float32)).search(np.zeros((1, 3), np.float32))
    assert (distances.tolist(), indices.tolist()) == ([1.0], [0])


def test_the_check_of_picks_knows_the_greedy_from_another_order():
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    picks = kcenter_greedy(rows, 12)
    assert picks_the_farthest(rows, picks)
    assert not picks_the_farthest(rows, picks[[0, 2, 1, *range(3, 12)]])


# --- figures


def test_contenders_take_turns_and_the_one_that_begins_changes():
    seen = []
    figures = duel(lambda: seen.append("a"), lambda: seen.append("b"), rounds=2, calls=2)
    assert "".join(seen) == "ab" + "aabb" + "bbaa"
    assert figures["n_rounds"] == 2
    assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]


@pytest.mark.parametrize(
    ("row", "is_met"),
    [
        (Row(work="", service=4.0, reference=10.0, ratio=0.4, limit=0.4), True),
        (Row(work="", service=4.0, reference=10.0, ratio=0.41, limit=0.4), False),
        (Row(work="", service=4.0, reference=10.0, ratio=0.1, limit=0.4, same_result=False), False),
        (Row(work="", service=9.0, limit=10.0), True),
        (Row(work="", service=11.0, limit=10.0), False),
        (Row(work="", limit=10.0), False),
    ],
)
def test_a_limit_is_met_by_the_ratio_or_the_figure_with_the_same_result(row, is_met):
    assert row.is_met is is_met


@pytest.mark.parametrize(
    ("clients", "fit", "has_limit"), [(16, "picking", True), (16, "none", False), (4, "picking", False)]
)
def test_health_has_a_limit_under_a_crowd_and_a_fit(clients, fit, has_limit):
    row = Measured(
        device="CPU",
        clients=clients,
        fit=fit,
        images_per_s=1,
        latency_ms=(1, 2, 3),
        n_inspections=9,
        health_p99_ms=51,
        n_fits=0,
        n_refused=0,
    )
    assert row.has_limit is has_limit
    assert ("MISSED" in load.cells([row])[0][-1]) is has_limit


def test_a_markdown_table_has_as_many_bars_in_every_line():
    lines = markdown(("a", "b", "c"), [("1", "2", "3"), ("", "", "")]).splitlines()
    assert lines[1] == "| --- | ---: | --- |"
    assert {line.count("|") for line in lines} == {4}


@pytest.mark.parametrize("text", ["", "<!-- load -->", "<!-- load -->\n<!-- /load -->\n<!-- load -->"])
def test_a_document_without_its_markers_is_refused(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must hold"):
        update_block(page, "load", "x")
    assert page.read_text() == text


def test_the_page_in_the_docs_has_both_markers():
    page = (Path(__file__).parents[3] / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ("speed", "load"):
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- /{name} -->") == 1
