"""Draws of the shots, each learned, calibrated and inspected by the service itself, without its HTTP.

``InspectionService.fit_ok``, ``.calibrate`` and ``.infer`` are the functions behind the routes. Only the extractor is
wrapped, to remember its answer to an image: it does not depend on the shots.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from backend.artifacts.model_key import ModelKey
from backend.calib import Calibration, ScoreMode, set_threshold
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import decode_image
from backend.memory_bank.threads import limit_threads, usable_cpus
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.image_score import image_scores
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.wiring import build_service, make_extractor
from benchmarks.accuracy_page import Case
from benchmarks.datasets import Dataset, DatasetError
from benchmarks.extractor_choice import load_extractor
from benchmarks.metrics import Measurement, ModeScores, PixelScores, Run
from benchmarks.remembering_extractor import RememberingExtractor

MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
_CASES_A_GROUP = 6

Aligned = Literal["auto", "yes", "no"]
Tick = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        settings: The service's; ``models_dir`` and ``seed`` are replaced.
        extractor: ``package.module:Class`` in place of the settings' extractor; None for theirs.
        aligned: What the fit is asked; None leaves it to the service.
        mm_per_px: What a pixel is on the parts; enters the area score.
        shots: Good images to learn from.
        seeds: Number of draws.
        modes: Score modes to report; each gets a threshold of its own by the same rule.
        pooled: See ``Dataset.draw``.
    """

    settings: Settings
    shots: int
    seeds: int
    modes: tuple[ScoreMode, ...] = MODES
    pooled: bool = False
    extractor: str | None = None
    aligned: Aligned | None = None
    mm_per_px: float = 0.2


def measure(
    data: Dataset,
    plan: Plan,
    *,
    with_cases: bool = False,
    tick: Tick = lambda *_: None,
    embeddings: Path | None = None,
) -> tuple[Measurement, tuple[Case, ...]]:
    """Return what was measured and, if asked for, the worst cases of the first run under the best score mode.

    Args:
        data: The images.
        plan: What to measure.
        with_cases: Also inspect the worst images again and keep their maps.
        tick: Called with what is being done and how many more images it was done to.
        embeddings: Folder that keeps the embeddings for other plans; None keeps them for this one only.

    Raises:
        ExtractorError: If the plan's extractor cannot be used.
        DatasetError: If the data do not fit the plan.
        InspectionError: If the service refuses.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="accuracy-", ignore_cleanup_errors=True) as folder:
        settings = plan.settings.model_copy(update={"models_dir": Path(folder) / "models"})
        extractor = _remembering(plan, settings, embeddings or Path(folder) / "embeddings")
        runs = []
        for seed in range(plan.seeds):
            with _service(settings, extractor, seed) as service:
                runs.append(_run(service, extractor, data, plan, seed, tick))
        measurement = Measurement(
            dataset=data.name,
            settings=_described(plan),
            extractor_id=extractor.extractor_id,
            precision=extractor.precision,
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


def _remembering(plan: Plan, settings: Settings, folder: Path) -> RememberingExtractor:
    if plan.extractor is None:
        extractor = make_extractor(settings)[0]
    else:
        limit_threads(settings.threads or usable_cpus())
        extractor = load_extractor(plan.extractor, input_size=settings.input_size, resize=settings.resize)
    return RememberingExtractor(extractor, folder / hashlib.sha256(embeddings_key(extractor).encode()).hexdigest()[:16])


def _described(plan: Plan) -> dict[str, Any]:
    """Return what a measurement ran with, JSON types."""
    settings = plan.settings.model_dump(mode="json", exclude={"models_dir", "weights", "seed"})
    settings["mm_per_px"] = plan.mm_per_px
    if plan.extractor is not None:
        settings["extractor"] = plan.extractor
    if plan.aligned is not None:
        settings["aligned"] = plan.aligned
    return settings


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
    report = service.fit_ok(key, uploads, mm_per_px=plan.mm_per_px, aligned=plan.aligned, progress=learning)
    default_mode = service.calibrate(key).score_mode
    calibrations = {mode: _calibrated(service, key, mode, plan) for mode in plan.modes}
    fit_images = _scores_with_own_vectors(service, key, extractor, [upload.data for upload in uploads], plan)
    names: dict[bool, list[str]] = {False: [], True: []}
    scores: dict[tuple[ScoreMode, bool], list[float]] = {(m, d): [] for m in plan.modes for d in (False, True)}
    pixels = PixelScores()
    in_force = plan.modes[-1]
    for image in split.test:
        inspection = service.infer(key, data.data(image), mm_per_px=plan.mm_per_px, name=image.name)
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
        default_mode=default_mode,
        aligned=report.bank.is_local,
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
        cells, placement = bank.cell_scores(extractor.extract(image)[0]), extractor.placement(image.shape[:2])
        whole = np.ones(image.shape[:2], dtype=np.bool_)
        image_map = anomaly_map(cells, placement, whole, blur_sigma=plan.settings.blur_sigma)
        by_mode = image_scores(image_map, whole, bank.options.rule, mm_per_px=bank.mm_per_px)
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
                inspection=service.infer(_key(run.seed), bytes_, mm_per_px=plan.mm_per_px, name=name),
                defect_mask=data.defect_mask(image) if image.is_defective else None,
            )
        )
    return tuple(cases)
