import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from backend.demo.samples import render_defective, render_good
from backend.scoring.leave_one_out import ScoreRule, leave_one_out_scores
from backend.settings import Settings
from backend.wiring import make_extractor
from benchmarks import accuracy_runs
from benchmarks.accuracy import main
from benchmarks.accuracy_page import Case, caption, markdown_table, render_page
from benchmarks.accuracy_runs import Plan, RememberingExtractor, measure
from benchmarks.datasets import Dataset, DatasetError, read_dataset
from benchmarks.metrics import Measurement

_SIZE_PX = 112
_REAL_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good parts to learn from, four to test on, four defective ones, two of them with a mask."""
    root = tmp_path_factory.mktemp("sets") / "flanges"
    for seed in range(11):
        part = "train" if seed < 7 else "test"
        _write(root / part / "good" / f"{seed:03d}.png", render_good(seed, size_px=_SIZE_PX, mm_per_px=0.7).image_bgr)
    for index, kind in enumerate(("chipped_edge", "missing_hole", "rust", "missing_hole")):
        sample = render_defective(100 + index, kind, size_px=_SIZE_PX, mm_per_px=0.7)
        _write(root / "test" / kind / f"{index:03d}.png", sample.image_bgr)
        if kind == "missing_hole":
            _write(root / "ground_truth" / kind / f"{index:03d}_mask.png", sample.defect_mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return read_dataset(folder)


@pytest.fixture(scope="module")
def measured(data: Dataset) -> tuple[Measurement, tuple[Case, ...]]:
    return measure(data, _plan(), with_cases=True)


def _plan(**changes: object) -> Plan:
    settings = Settings(extractor="filter-bank", input_size=_SIZE_PX, coreset_rate=0.1)
    return Plan(**{"settings": settings, "shots": 5, "seeds": 2, **changes})


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, pixels)[1]
    path.write_bytes(encoded.tobytes())


def _run(*argv: str) -> tuple[int, str]:
    text = io.StringIO()
    status = main([str(word) for word in argv], console=Console(file=text, width=100))
    return status, text.getvalue()


def _arguments(folder: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--shots", "5", "--seeds", "1", "--input-size", str(_SIZE_PX), *more]


# --- the folder


def test_the_layout_is_read_and_a_missing_mask_is_no_error(data):
    assert (data.name, len(data.train), len(data.good), len(data.defective)) == ("flanges", 7, 4, 4)
    assert (data.image_hw, data.n_resized, data.n_masks) == ((_SIZE_PX, _SIZE_PX), 0, 2)
    masks = {image.name: data.defect_mask(image) for image in (*data.good, *data.defective)}
    assert masks["rust/002.png"] is None
    assert masks["missing_hole/001.png"].any()
    assert not masks["good/007.png"].any()


def test_shots_are_drawn_without_repetition_and_the_seed_decides(data):
    first, again, other = data.draw(5, 0), data.draw(5, 0), data.draw(5, 1)
    assert len(set(first.fit)) == 5
    assert set(first.fit) <= set(data.train)
    assert first == again
    assert first.fit != other.fit
    assert first.test == data.good + data.defective


def test_a_pooled_draw_tests_on_the_good_parts_that_are_left(data):
    split = data.draw(6, 3, pooled=True)
    good = {image for image in split.test if not image.is_defective}
    assert len(split.fit) == 6
    assert good == {*data.train, *data.good} - set(split.fit)


@pytest.mark.parametrize(("shots", "pooled"), [(1, False), (8, False), (11, True)])
def test_more_shots_than_there_are_images_are_refused(data, shots, pooled):
    with pytest.raises(DatasetError, match=f"--shots is {shots}, but .*train/good.* has {11 if pooled else 7} images"):
        data.draw(shots, 0, pooled=pooled)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"There is no folder .*nowhere; expected are train/good"):
        read_dataset(tmp_path / "nowhere")


def test_the_folder_above_the_data_is_answered_with_a_hint(folder):
    with pytest.raises(DatasetError, match=r"no images in .*train.good; expected are .* Did you mean .*flanges\?"):
        read_dataset(folder.parent)


@pytest.mark.parametrize("missing", ["train/good", "test/good", "test/<defect>"])
def test_each_missing_part_of_the_layout_is_named(tmp_path, missing):
    for place in ("train/good", "test/good", "test/hole"):
        if place != missing.replace("<defect>", "hole"):
            _write(tmp_path / place / "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DatasetError, match=missing.replace("/", ".")):
        read_dataset(tmp_path)


def _tiny(root: Path, **sizes: tuple[int, int]) -> None:
    for place in ("train/good", "test/good", "test/hole"):
        _write(root / place / "1.png", np.zeros((*sizes.get(place.replace("/", "_"), (20, 10)), 3), np.uint8))


def test_images_of_nearly_one_size_are_brought_to_one_and_their_masks_with_them(tmp_path):
    _tiny(tmp_path, test_hole=(21, 10))
    mask = np.zeros((21, 10), np.uint8)
    mask[-2:] = 1  # Any value but 0 marks the defect.
    _write(tmp_path / "ground_truth" / "hole" / "1_mask.png", mask)
    data = read_dataset(tmp_path)
    assert (data.image_hw, data.n_resized) == ((20, 10), 1)
    pixels = cv2.imdecode(np.frombuffer(data.data(data.defective[0]), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (20, 10, 3)
    resized = data.defect_mask(data.defective[0])
    assert resized.shape == (20, 10)
    assert resized[-1].all()
    assert not resized[:17].any()
    assert data.data(data.good[0]) == data.good[0].path.read_bytes()


def test_images_of_quite_different_sizes_are_refused(tmp_path):
    _tiny(tmp_path, test_hole=(40, 10))
    with pytest.raises(DatasetError, match="differ in size by more than 10 %"):
        read_dataset(tmp_path)


def test_masks_under_other_names_are_noticed(tmp_path):
    _tiny(tmp_path)
    _write(tmp_path / "ground_truth" / "hole" / "1.png", np.zeros((20, 10), np.uint8))
    with pytest.raises(DatasetError, match=r"must be called 1_mask\.png"):
        read_dataset(tmp_path)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    _tiny(tmp_path)
    _write(tmp_path / "ground_truth" / "hole" / "1_mask.png", np.zeros((10, 20), np.uint8))
    data = read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="differ in size"):
        data.defect_mask(data.defective[0])


def test_a_file_that_is_no_image_is_named(tmp_path):
    _tiny(tmp_path)
    (tmp_path / "test" / "good" / "2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"2\.png is not an image"):
        read_dataset(tmp_path)


# --- the measurement


def test_every_draw_and_every_mode_is_measured(measured, data):
    measurement, cases = measured
    assert measurement.modes == ("percentile", "top_mean", "max")
    assert [run.seed for run in measurement.runs] == [0, 1]
    for run in measurement.runs:
        assert (len(run.fit), len(run.good), len(run.defective), run.n_seen) == (5, 4, 4, 0)
        assert run.bounds.expected_false_alarm_rate == pytest.approx(1 / 6)
        assert 0.5 < run.pixel_auroc <= 1
        assert 0 < run.aupro <= 1
    assert len(cases) == 8
    assert {case.image.name for case in cases} == {image.name for image in (*data.good, *data.defective)}


def test_leaving_nothing_out_gives_a_lower_threshold_and_more_false_alarms(measured):
    for run in measured[0].runs:
        for scores in run.by_mode.values():
            assert scores.fit_image_threshold < scores.threshold
            figures = scores.figures()
            assert figures["fit_image_false_alarms"] >= figures["false_alarms"]


def test_the_threshold_is_the_default_rule_on_the_service_s_own_leave_one_out_scores(data, tmp_path):
    plan = _plan(seeds=1)
    settings = plan.settings.model_copy(update={"models_dir": tmp_path})
    extractor = RememberingExtractor(make_extractor(settings)[0], tmp_path / "embeddings")
    with accuracy_runs._service(settings, extractor, 0) as service:
        run = accuracy_runs._run(service, extractor, data, plan, 0, lambda *_: None)
        bank = service.describe(accuracy_runs._key(0)).bank
    for mode, scores in run.by_mode.items():
        honest = leave_one_out_scores(bank, ScoreRule(mode=mode, percentile=99, blur_sigma=settings.blur_sigma))
        assert scores.threshold == pytest.approx(max(honest.by_part))


def test_the_shown_cases_carry_the_score_of_the_measurement(measured):
    measurement, cases = measured
    run = measurement.runs[0]
    scores = run.by_mode[measurement.best_mode]
    by_name = dict(zip((*run.good, *run.defective), (*scores.good, *scores.defective), strict=True))
    for case in cases:
        assert case.inspection.score == by_name[case.image.name]
        assert case.inspection.threshold == scores.threshold


def test_measuring_one_mode_gives_what_measuring_all_gives(measured, data):
    alone, _ = measure(data, _plan(modes=("max",)))
    assert [run.by_mode["max"] for run in alone.runs] == [run.by_mode["max"] for run in measured[0].runs]


def test_the_remembered_embeddings_are_those_of_the_extractor(data, tmp_path):
    plain = make_extractor(_plan().settings)[0]
    remembering = RememberingExtractor(plain, tmp_path)
    image = render_good(1, size_px=_SIZE_PX).image_bgr
    for _ in range(2):
        rows, grid_hw = remembering.extract(image)
        expected, expected_grid_hw = plain.extract(image)
        np.testing.assert_array_equal(rows, expected)
        assert grid_hw == expected_grid_hw
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(remembering.extract_batch([image])[0], expected)


def test_a_test_image_that_was_learned_is_left_out_and_said(folder, tmp_path):
    copy = tmp_path / "copy"
    for path in folder.rglob("*.png"):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (copy / "test" / "good" / "again.png").write_bytes((copy / "train" / "good" / "000.png").read_bytes())
    measurement, _ = measure(read_dataset(copy), _plan(shots=7, seeds=1))
    assert measurement.runs[0].n_seen == 1
    assert "good/again.png" not in measurement.runs[0].good
    assert "Up to 1 test images" in caption(measurement)


# --- what people see


def test_the_table_of_a_document_has_a_row_per_mode_and_says_what_the_dagger_means(measured):
    text = markdown_table([measured[0]])
    lines = text.splitlines()
    assert lines[0].startswith("| input | score | image AUROC | F1-max | false alarms | recall | false alarms † |")
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["p99", "mean of top 1 %", "max"]
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "2 draws" in lines[-1]
    assert "†: had the threshold" in lines[-1]


def test_the_page_is_one_file_with_plots_and_both_kinds_of_cases(measured):
    html = render_page([measured[0]], measured[1])
    assert html.count("<article") == 8
    assert "Good parts that score highest" in html
    assert "Defective parts that score lowest" in html
    assert not re.search(r"<script|https?://(?!www\.w3\.org|matplotlib\.org|purl\.org|creativecommons\.org)", html)


def test_the_command_line_prints_a_table_that_fits_and_writes_json_and_page(folder, tmp_path):
    out, page = tmp_path / "scores.json", tmp_path / "deep" / "page.html"
    status, text = _run(*_arguments(folder, "--json", str(out), "--page", str(page), "--markdown"))
    assert status == 0, text
    assert "image AUROC" in text
    assert "…" not in text
    (found,) = json.loads(out.read_text(encoding="utf-8"))
    assert found["settings"]["input_size"] == _SIZE_PX
    assert len(found["runs"][0]["by_mode"]["max"]["defective"]) == 4
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_several_input_sizes_and_one_mode_give_a_row_each(folder):
    status, text = _run(*_arguments(folder, "112", "70", "--score-mode", "max", "--markdown"))
    assert status == 0, text
    assert [
        line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| 1") or line.startswith("| 7")
    ] == [
        ["| 112", "max"],
        ["| 112", "max"],
        ["| 70", "max"],
    ]


def test_a_document_is_measured_again_in_place_and_nothing_else_is_touched(folder, tmp_path):
    options = "--data flanges --shots 5 --seeds 1 --input-size 112 --score-mode max"
    document = tmp_path / "accuracy.md"
    document.write_text(
        f"Before.\n\n<!-- accuracy: {options} -->\nlast year's\n<!-- /accuracy -->\n\nAfter.\n", encoding="utf-8"
    )
    status, text = _run("--update", str(document), "--root", str(folder.parent))
    assert status == 0, text
    once = document.read_text(encoding="utf-8")
    assert once.startswith("Before.\n\n<!-- accuracy:")
    assert once.endswith("<!-- /accuracy -->\n\nAfter.\n")
    assert f"python -m benchmarks.accuracy {options}\n" in once
    assert "| 112 | max |" in once
    assert "last year" not in once
    _run("--update", str(document), "--root", str(folder.parent))
    assert document.read_text(encoding="utf-8") == once


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--data", "nowhere"], "There is no folder nowhere"),
        ([], "--data is missing"),
        (["--data", "{folder}", "--shots", "99"], "--shots is 99, but train/good of flanges has 7 images"),
        (["--data", "{folder}", "--shots", "5", "--input-size", "5"], "input_size: "),
        (["--data", "{folder}", "--shots", "5", "--score-percentile", "0"], "score_percentile: "),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(folder, argv, sentence):
    status, text = _run(*(word.format(folder=folder) for word in argv))
    assert status == 1
    assert sentence in text
    assert "Traceback" not in text


# --- real parts, where they are at hand


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least_auroc"), [("casting", 0.9), ("kolektorsdd", 0.65)])
def test_on_real_parts_the_figures_do_not_fall_below_a_floor(name, least_auroc, tmp_path):
    source = _REAL_DATA / name
    if not source.is_dir():
        pytest.skip(f"the public data set {name} is not at hand")
    for place, most in (("train/good", 20), ("test/good", 16), ("test/defect", 16)):
        (tmp_path / place).mkdir(parents=True)
        for path in sorted((source / place).iterdir())[:most]:
            (tmp_path / place / path.name).write_bytes(path.read_bytes())
    settings = Settings(extractor="filter-bank", input_size=280)
    measurement, _ = measure(read_dataset(tmp_path), Plan(settings=settings, shots=20, seeds=1))
    spreads = measurement.spreads(measurement.best_mode)
    assert spreads["auroc"].mean >= least_auroc
    assert spreads["false_alarms"].mean <= 0.25
    assert spreads["fit_image_false_alarms"].mean > spreads["false_alarms"].mean + 0.1
