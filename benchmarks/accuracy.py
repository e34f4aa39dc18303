"""How well the service tells good parts from defective ones, on any folder in the layout of the public benchmarks.

    python -m benchmarks.accuracy --data DIR [--extractor dinov2 --weights FILE] [--page page.html]
    python -m benchmarks.accuracy --update docs/accuracy.md --root DIR

What runs is the service itself: ``InspectionService.fit_ok``, ``.calibrate`` and ``.infer``, the functions behind the
HTTP routes. Only the extractor is wrapped, to remember its answer to an image: it does not depend on the shots.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from backend.artifacts.model_key import ModelKey
from backend.calib import SCORE_MODES, Calibration, ScoreMode, set_threshold
from backend.errors import InspectionError
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import decode_image, pixel_digest
from backend.imaging.placement import Placement
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.image_score import image_scores
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.wiring import build_service, make_extractor
from benchmarks.accuracy_page import Case, markdown_table, rich_table, write_page
from benchmarks.datasets import Dataset, DatasetError, read_dataset
from benchmarks.metrics import Measurement, ModeScores, PixelScores, Run, best_of

_MM_PER_PX = 0.2  # Enters areas only, and no figure here is an area.
_MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
_CASES_A_GROUP = 6
_BLOCK = re.compile(r"<!-- accuracy: (?P<options>.+?) -->\n.*?<!-- /accuracy -->", re.DOTALL)

Tick = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        settings: The service's; ``models_dir`` and ``seed`` are replaced.
        shots: Good images to learn from.
        seeds: Number of draws.
        modes: Score modes to report; each gets a threshold of its own by the same rule.
        pooled: See ``Dataset.draw``.
    """

    settings: Settings
    shots: int
    seeds: int
    modes: tuple[ScoreMode, ...] = _MODES
    pooled: bool = False


class RememberingExtractor:
    """An extractor that keeps its answers in a folder, by the digest of the pixels.

    An image's embeddings depend on nothing but the image, so five draws of the shots need them once.
    """

    def __init__(self, wrapped: FeatureExtractor, folder: Path) -> None:
        self._wrapped = wrapped
        self._folder = folder
        self.name = wrapped.name
        self.extractor_id = wrapped.extractor_id
        self.device = wrapped.device
        self.whitens = wrapped.whitens
        self.batch_size = wrapped.batch_size
        self.precision = wrapped.precision
        folder.mkdir(parents=True, exist_ok=True)

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return the wrapped extractor's placement."""
        return self._wrapped.placement(image_hw)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the wrapped extractor's answer."""
        return self.extract_batch([image_bgr])[0], self.placement((image_bgr.shape[0], image_bgr.shape[1])).grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the wrapped extractor's answers; it is asked for the images that are new, in one batch."""
        paths = [self._folder / f"{pixel_digest(image)}.npy" for image in images_bgr]
        new = [(path, image) for path, image in zip(paths, images_bgr, strict=True) if not path.exists()]
        if new:
            found = self._wrapped.extract_batch([image for _, image in new])
            for (path, _), rows in zip(new, found, strict=True):
                np.save(path, rows, allow_pickle=False)
        return [np.load(path, allow_pickle=False) for path in paths]


def measure(
    data: Dataset, plan: Plan, *, with_cases: bool = False, tick: Tick = lambda *_: None
) -> tuple[Measurement, tuple[Case, ...]]:
    """Return what was measured and, if asked for, the worst cases of the first run under the best score mode.

    Args:
        data: The images.
        plan: What to measure.
        with_cases: Also inspect the worst images again and keep their maps.
        tick: Told what is being done and how many more images it was done to.

    Raises:
        DatasetError: If the data do not fit the plan.
        InspectionError: If the service refuses.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="accuracy-", ignore_cleanup_errors=True) as folder:
        settings = plan.settings.model_copy(update={"models_dir": Path(folder) / "models"})
        extractor = RememberingExtractor(make_extractor(settings)[0], Path(folder) / "embeddings")
        runs = []
        for seed in range(plan.seeds):
            with _service(settings, extractor, seed) as service:
                runs.append(_run(service, extractor, data, plan, seed, tick))
        measurement = Measurement(
            dataset=data.name,
            settings=plan.settings.model_dump(mode="json", exclude={"models_dir", "weights", "seed"}),
            extractor_id=extractor.extractor_id,
            grid_hw=extractor.placement(data.image_hw).grid_hw,
            image_hw=data.image_hw,
            n_resized=data.n_resized,
            n_masks=data.n_masks,
            pooled=plan.pooled,
            runs=tuple(runs),
            elapsed_s=time.perf_counter() - started,
        )
        cases: tuple[Case, ...] = ()
        if with_cases:
            with _service(settings, extractor, 0) as service:
                cases = _worst(service, data, plan, measurement)
    return measurement, cases


@contextmanager
def _service(settings: Settings, extractor: FeatureExtractor, seed: int) -> Iterator[InspectionService]:
    loader = ExtractorLoader(lambda: (extractor, None))
    service = build_service(settings.model_copy(update={"seed": seed}), extractor=loader)
    try:
        yield service
    finally:
        service.close()


def _run(
    service: InspectionService, extractor: FeatureExtractor, data: Dataset, plan: Plan, seed: int, tick: Tick
) -> Run:
    key = _key(seed)
    split = data.draw(plan.shots, seed, pooled=plan.pooled)
    learned = 0

    def learning(done: int, _: int) -> None:
        nonlocal learned
        tick(f"seed {seed}: learning", done - learned)
        learned = done

    uploads = [Upload(name=image.name, data=data.data(image)) for image in split.fit]
    service.fit_ok(key, uploads, mm_per_px=_MM_PER_PX, progress=learning)
    calibrations = {mode: _calibrated(service, key, mode, plan) for mode in plan.modes}
    fit_images = _scores_with_own_vectors(service, key, extractor, [upload.data for upload in uploads], plan)
    names: dict[bool, list[str]] = {False: [], True: []}
    scores: dict[tuple[ScoreMode, bool], list[float]] = {(m, d): [] for m in plan.modes for d in (False, True)}
    pixels = PixelScores()
    in_force = plan.modes[-1]
    for image in split.test:
        inspection = service.infer(key, data.data(image), mm_per_px=_MM_PER_PX, name=image.name)
        tick(f"seed {seed}: inspecting", 1)
        if inspection.params["scoring"] != "new":
            continue  # The same pixels are among the shots: this image is not unseen.
        names[image.is_defective].append(image.name)
        for mode in plan.modes:
            scores[mode, image.is_defective].append(inspection.params["scores"][mode])
        # One pass serves all modes; that the decision is no more than this comparison is checked where it can be.
        assert (inspection.decision == "ng") == (
            inspection.params["scores"][in_force] > calibrations[in_force].threshold
        )
        mask = data.defect_mask(image) if data.n_masks else None
        if mask is not None:
            pixels.add(inspection.map, mask)
    if not names[False] or not names[True]:
        raise DatasetError("No test image is left: all of them are also among the images to learn from.")
    return Run(
        seed=seed,
        fit=tuple(image.name for image in split.fit),
        good=tuple(names[False]),
        defective=tuple(names[True]),
        n_seen=len(split.test) - len(names[False]) - len(names[True]),
        by_mode={
            mode: ModeScores(
                good=tuple(scores[mode, False]),
                defective=tuple(scores[mode, True]),
                threshold=calibrations[mode].threshold,
                fit_image_threshold=set_threshold(fit_images[mode]).threshold,
            )
            for mode in plan.modes
        },
        pixel_auroc=pixels.auroc(),
        aupro=pixels.aupro(),
        bounds=calibrations[in_force].bounds,
    )


def _key(seed: int) -> ModelKey:
    return ModelKey(role_id="benchmark", roi_id=f"seed-{seed}")


def _calibrated(service: InspectionService, key: ModelKey, mode: ScoreMode, plan: Plan) -> Calibration:
    return service.calibrate(key, score_mode=mode, score_percentile=plan.settings.score_percentile)


def _scores_with_own_vectors(
    service: InspectionService, key: ModelKey, extractor: FeatureExtractor, images: Sequence[bytes], plan: Plan
) -> dict[ScoreMode, list[float]]:
    """Return what the learned images score against the whole memory, their own vectors included.

    The service never gives this number, on purpose; so the steps of ``infer`` are taken here with its own functions.
    """
    bank = service.describe(key).bank
    assert bank is not None
    scores: dict[ScoreMode, list[float]] = {mode: [] for mode in plan.modes}
    for data in images:
        image = decode_image(data, max_pixels=plan.settings.max_pixels)
        distances, placement = bank.distances(extractor.extract(image)[0]), extractor.placement(image.shape[:2])
        whole = np.ones(image.shape[:2], dtype=np.bool_)
        image_map = anomaly_map(distances, placement, whole, blur_sigma=plan.settings.blur_sigma)
        by_mode = image_scores(image_map, whole, percentile=plan.settings.score_percentile)
        for mode in plan.modes:
            scores[mode].append(by_mode[mode])
    return scores


def _worst(service: InspectionService, data: Dataset, plan: Plan, measurement: Measurement) -> tuple[Case, ...]:
    """Return the good images that score highest and the defective ones that score lowest in the first run."""
    run, mode = measurement.runs[0], measurement.best_mode
    scores = run.by_mode[mode]
    good = sorted(zip(scores.good, run.good, strict=True), reverse=True)[:_CASES_A_GROUP]
    defective = sorted(zip(scores.defective, run.defective, strict=True))[:_CASES_A_GROUP]
    by_name = {image.name: image for image in data.draw(plan.shots, run.seed, pooled=plan.pooled).test}
    _calibrated(service, _key(run.seed), mode, plan)
    cases = []
    for _, name in (*good, *defective):
        image = by_name[name]
        bytes_ = data.data(image)
        cases.append(
            Case(
                image=image,
                image_bgr=decode_image(bytes_, max_pixels=plan.settings.max_pixels, name=name),
                inspection=service.infer(_key(run.seed), bytes_, mm_per_px=_MM_PER_PX, name=name),
                defect_mask=data.defect_mask(image) if image.is_defective else None,
            )
        )
    return tuple(cases)


def main(argv: Sequence[str] | None = None, *, console: Console | None = None) -> int:
    """Run the command line; return the exit status: 0, or 1 with a sentence about what is wrong."""
    console = console or Console()
    arguments = _parser().parse_args(argv)
    try:
        if arguments.update is not None:
            _update(arguments.update, arguments.root, console)
        else:
            _report(arguments, console)
    except ValidationError as error:
        for problem in error.errors():
            _say(console, f"{problem['loc'][0]}: {problem['msg']}")
        return 1
    except (DatasetError, InspectionError, OSError) as error:
        _say(console, str(error))
        return 1
    return 0


def _report(arguments: argparse.Namespace, console: Console) -> None:
    measurements, cases = _measure_all(arguments, Path(), console)
    console.print(*map(rich_table, measurements))
    if arguments.markdown:
        _say(console, markdown_table(measurements))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(found) for found in measurements], indent=1), encoding="utf-8")
        _say(console, f"Every score: {arguments.json}")
    if arguments.page is not None:
        write_page(measurements, cases, arguments.page)
        _say(console, f"Page: {arguments.page.resolve()}")


def _measure_all(
    arguments: argparse.Namespace, root: Path, console: Console
) -> tuple[list[Measurement], tuple[Case, ...]]:
    """Return one measurement per input size, and the cases of the one with the best image AUROC."""
    if arguments.data is None:
        raise DatasetError("--data is missing: name a folder with train/good, test/good and test/<defect>.")
    data = read_dataset(root / arguments.data)
    plans = [
        Plan(
            settings=Settings(
                extractor=arguments.extractor,
                weights=arguments.weights,
                input_size=input_size,
                resize=arguments.resize,
                score_percentile=arguments.score_percentile,
            ),
            shots=arguments.shots,
            seeds=arguments.seeds,
            modes=_MODES if arguments.score_mode is None else (arguments.score_mode,),
            pooled=arguments.pooled,
        )
        for input_size in arguments.input_size
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    an_image_each = arguments.shots + len(data.draw(arguments.shots, 0, pooled=arguments.pooled).test)
    found = []
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plans) * arguments.seeds * an_image_each)
        for plan in plans:
            prefix = f"{data.name}, {plan.settings.input_size} px"

            def tick(what: str, n: int, prefix: str = prefix) -> None:
                progress.update(task, advance=n, description=f"{prefix}, {what}")

            found.append(measure(data, plan, with_cases=arguments.page is not None, tick=tick))
    measurements = [measurement for measurement, _ in found]
    return measurements, found[measurements.index(best_of(measurements))][1]


def _update(document: Path, root: Path, console: Console) -> None:
    """Measure again what the blocks of a document name, and put each table in its place as soon as it is there."""
    for options in dict.fromkeys(block["options"] for block in _BLOCK.finditer(_read(document))):
        measurements, _ = _measure_all(_parser().parse_args(shlex.split(options)), root, console)
        console.print(*map(rich_table, measurements))
        command = f"```sh\npython -m benchmarks.accuracy {options}\n```"
        table = f"<!-- accuracy: {options} -->\n{command}\n\n{markdown_table(measurements)}\n<!-- /accuracy -->"

        def renewed(block: re.Match[str], options: str = options, table: str = table) -> str:
            return table if block["options"] == options else block[0]

        # Read again: this takes minutes, and somebody may have worked on the words meanwhile.
        document.write_text(_BLOCK.sub(renewed, _read(document)), encoding="utf-8", newline="\n")


def _read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/good, test/good, test/<defect> and, if known, ground_truth")
    add("--extractor", choices=("filter-bank", "dinov2"), default="filter-bank", help="(%(default)s)")
    add("--weights", type=Path, help="weights of DINOv2; by default as the service finds them")
    add("--shots", type=int, default=50, help="good images to learn from (%(default)s)")
    add("--seeds", type=_positive, default=5, help="draws of the shots (%(default)s)")
    add("--pooled", action="store_true", help="draw from train/good and test/good together, test on what is left")
    add("--input-size", type=int, nargs="+", default=[384], help="network input, px; several are compared (384)")
    add("--resize", choices=("aspect", "square"), default="aspect", help="(%(default)s)")
    add("--score-mode", choices=SCORE_MODES, help="statistic of the map that is the score; all three by default")
    add("--score-percentile", type=float, default=99.0, help="(%(default)g)")
    add("--markdown", action="store_true", help="print the table as Markdown, too")
    add("--json", type=Path, metavar="OUT", help="write every score to this file")
    add("--page", type=Path, metavar="OUT.html", help="write a page with plots and the worst cases")
    add("--update", type=Path, metavar="FILE.md", help="measure again all tables of a document, in place")
    add("--root", type=Path, default=Path(), help="folder that the --data of a document is relative to")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
