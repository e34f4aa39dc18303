import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from backend.demo.samples import render_good
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.wiring import make_extractor
from benchmarks import accuracy, accuracy_runs
from benchmarks.accuracy import main
from benchmarks.accuracy_page import Case, render_page
from benchmarks.accuracy_runs import MODES, Plan, measure
from benchmarks.accuracy_tables import aligned_text, caption, markdown_table, mode_name, rich_table
from benchmarks.datasets import Dataset, read_dataset
from benchmarks.metrics import Measurement
from benchmarks.remembering_extractor import RememberingExtractor
from tests.testkit import fakes
from tests.testkit.fakes import FakeExtractor

_SIZE_PX = 112
_ROOT = Path(__file__).resolve().parents[3]
_REAL_DATA = _ROOT.parent / "shared" / "data"
_DOCUMENT = (_ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured(data: Dataset) -> tuple[Measurement, tuple[Case, ...]]:
    return measure(data, _plan(), with_cases=True)


def _plan(**changes: object) -> Plan:
    settings = Settings(extractor="filter-bank", input_size=_SIZE_PX, coreset_rate=0.1)
    return Plan(**{"settings": settings, "shots": 5, "seeds": 2, **changes})


def _run(*argv: str) -> tuple[int, str]:
    text = io.StringIO()
    status = main([str(word) for word in argv], console=Console(file=text, width=100))
    return status, text.getvalue()


def _arguments(folder: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--shots", "5", "--seeds", "1", "--input-size", str(_SIZE_PX), *more]


# --- the measurement


def test_every_draw_and_every_mode_is_measured(measured, data):
    measurement, cases = measured
    assert measurement.modes == MODES
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
        honest = leave_one_out_scores(bank, replace(bank.options.rule, mode=mode))
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
    assert "Up to 1 test images" in caption([measurement])


# --- what people see


def test_the_table_of_a_document_has_a_row_per_mode_and_says_what_the_dagger_means(measured):
    text = markdown_table([measured[0]])
    lines = text.splitlines()
    assert lines[0].startswith(
        "| shots | input | coreset | aligned | score | image AUROC | F1-max | false alarms | recall | "
    )
    table, explained = lines[: 2 + len(MODES)], lines[3 + len(MODES)]
    aligned = aligned_text(measured[0])
    assert [line.split(" | ")[:5] for line in table[2:]] == [
        [
            "| 5",
            "112",
            "10 %",
            aligned,
            mode_name(mode, measured[0]) + (" *" if mode == measured[0].default_mode else ""),
        ]
        for mode in MODES
    ]
    assert explained.endswith("*: the score that the service chooses by itself for the first calibration of a ROI.")
    assert "0.2 mm each; extractor filter-bank/" in explained
    assert len({line.count("|") for line in table}) == 1
    assert "2 draws" in explained
    assert "†: had the threshold" in explained


def test_the_recall_of_every_kind_of_defect_is_in_the_document_the_terminal_and_the_page(measured):
    recall = measured[0].recall_by_kind(measured[0].default_mode)
    assert list(recall) == ["chipped_edge", "missing_hole", "rust"]
    lines = markdown_table([measured[0]]).splitlines()
    assert lines[-3].endswith("| score | chipped edge (1) | missing hole (2) | rust (1) |")
    assert [cell.split(" ")[0] for cell in lines[-1].strip("| ").split(" | ")[5:]] == [
        f"{100 * found.mean:.1f}" for found in recall.values()
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(rich_table(measured[0]))
    assert "recall, missing hole (2)" in console.file.getvalue()
    assert "Recall by kind of defect" in render_page([measured[0]], measured[1])


@pytest.mark.parametrize(
    ("asked", "found", "text"),
    [
        (None, [True, True], "yes"),
        (None, [False, False], "no"),
        ("no", [False, False], "no"),
        ("auto", [True, True], "yes (auto)"),
        ("auto", [True, False], "1 of 2 (auto)"),
    ],
)
def test_a_row_says_whether_the_fits_took_the_roi_for_aligned(measured, asked, found, text):
    runs = tuple(replace(run, aligned=aligned) for run, aligned in zip(measured[0].runs, found, strict=True))
    assert aligned_text(replace(measured[0], runs=runs, settings={**measured[0].settings, "aligned": asked})) == text


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
    assert set(found["recall_by_kind"]["max"]) == {"chipped_edge", "missing_hole", "rust"}
    assert (found["settings"]["extractor"], found["settings"]["mm_per_px"]) == ("filter-bank", 0.2)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def _rows(text: str) -> list[list[str]]:
    """Return shots, input, coreset and score of the rows of the first Markdown table."""
    lines = text[text.index("| shots |") :].split("\n\n")[0].splitlines()[2:]
    return [
        [cell.removesuffix(" *") for i, cell in enumerate(line.strip("| ").split(" | ")) if i in (0, 1, 2, 4)]
        for line in lines
    ]


def test_several_input_sizes_and_one_mode_give_a_row_each(folder):
    status, text = _run(*_arguments(folder, "70", "--score-mode", "max", "--markdown"))
    assert status == 0, text
    assert _rows(text) == [["5", "112", "2 %", "max"], ["5", "70", "2 %", "max"]]


def test_several_numbers_of_shots_give_a_row_each_and_the_caption_says_what_each_promises(folder):
    arguments = _arguments(folder, "--score-mode", "max", "--pooled", "--markdown", "--shots", "4", "9")
    status, text = _run(*arguments)
    assert status == 0, text
    assert _rows(text) == [["4", "112", "2 %", "max"], ["9", "112", "2 %", "max"]]
    assert "4 or 9 good images drawn from train/good and test/good together, 7 or 2 unseen good and 4 def" in text
    assert "promises for its threshold 20.0 or 10.0 % false alarms on average" in text


def test_several_coreset_rates_and_modes_give_a_row_each_and_no_image_is_extracted_twice(folder, monkeypatch):
    made: list[FakeExtractor] = []

    class Colours(FakeExtractor):
        def __init__(self, *, input_size: int = 64) -> None:
            super().__init__(input_size=input_size)
            made.append(self)

    monkeypatch.setattr(fakes, "Colours", Colours, raising=False)
    status, text = _run(
        *_arguments(folder, "--extractor", "tests.testkit.fakes:Colours", "--markdown"),
        *("--coreset-rate", "0.1", "0.5", "--score-mode", "max", "top_mean", "--seeds", "2"),
    )
    assert status == 0, text
    modes = ("max", "mean of top 1 %")
    assert _rows(text) == [["5", "112", rate, mode] for rate in ("10 %", "50 %") for mode in modes]
    calls = [digest for extractor in made for digest in extractor.calls]
    assert len(calls) == len(set(calls)) <= 15
    assert "extractor fake-a|112/8" in text


def test_the_fit_is_asked_for_alignment_only_where_the_command_line_says_so(data, monkeypatch):
    asked = []
    fit_ok = InspectionService.fit_ok

    def recorded(service, *arguments, aligned=None, **named):
        asked.append(aligned)
        return fit_ok(service, *arguments, **named)

    monkeypatch.setattr(InspectionService, "fit_ok", recorded)
    for aligned in (None, "no"):
        measurement, _ = measure(data, _plan(seeds=1, modes=("max",), aligned=aligned))
        assert measurement.settings.get("aligned") in (aligned, "auto")
    assert asked == [None, "no"]


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
    assert _rows(once) == [["5", "112", "2 %", "max"]]
    assert "last year" not in once
    _run("--update", str(document), "--root", str(folder.parent))
    assert document.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("options", [block["options"] for block in accuracy._BLOCK.finditer(_DOCUMENT)])
def test_every_table_of_the_document_names_what_can_be_measured_under_its_command(options):
    arguments = accuracy._parser().parse_args(shlex.split(options))
    assert arguments.data is not None
    assert accuracy._plans(arguments)
    assert f"<!-- accuracy: {options} -->\n```sh\npython -m benchmarks.accuracy {options}\n```\n" in _DOCUMENT


def test_every_table_of_the_document_is_found():
    assert len(list(accuracy._BLOCK.finditer(_DOCUMENT))) == _DOCUMENT.count("<!-- accuracy:") > 0


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--data", "nowhere"], "There is no folder nowhere"),
        ([], "--data is missing"),
        (["--data", "{folder}", "--shots", "99"], "--shots is 99, but train/good of flanges has 7 images"),
        (["--data", "{folder}", "--shots", "5", "--input-size", "5"], "input_size: "),
        (["--data", "{folder}", "--shots", "5", "--coreset-rate", "2"], "coreset_rate: "),
        (["--data", "{folder}", "--shots", "5", "--extractor", "nowhere.at_all:It"], "cannot be imported"),
        (["--data", "{folder}", "--shots", "5", "--extractor", "dino"], "as package.module:Class"),
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
