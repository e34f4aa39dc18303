"""From settings to a service: the one place that knows every part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EISDIR, ENOTDIR, EPERM, EROFS
from functools import cache
from tempfile import TemporaryFile

from backend.calib import ScoreRule
from backend.errors import InspectionError, WeightsUnavailable
from backend.extractors.base import FeatureExtractor
from backend.extractors.device_queue import DeviceQueue
from backend.extractors.dinov2 import DinoV2Features
from backend.extractors.filter_bank import FilterBankFeatures
from backend.extractors.loader import ExtractorLoader, check_cuda_device, require_cuda
from backend.history.database import FILE_NAME
from backend.history.recorder import History
from backend.imaging.pixel_budget import pixels_for, usable_memory_bytes
from backend.memory_bank.bank import FitOptions
from backend.memory_bank.threads import limit_threads, usable_cpus
from backend.services.audit import Audit
from backend.services.datasets import Datasets
from backend.services.inspection import Defaults, InspectionService
from backend.services.jobs import Jobs
from backend.services.recipes import Recipes
from backend.serving.api_keys import ApiKeys
from backend.serving.limits import BodyBudget
from backend.settings import Settings
from backend.storage import ArtefactStore
from backend.utils import reason_of


def build_service(settings: Settings, *, extractor: ExtractorLoader | None = None) -> InspectionService:
    """Return the service that the settings describe, with another extractor if one is given; it is not loaded yet."""
    rule = ScoreRule(
        mode="percentile" if settings.score_mode == "auto" else settings.score_mode,
        percentile=settings.score_percentile,
        blur_sigma=settings.blur_sigma,
        area_mm2_thr=settings.area_mm2_thr,
    )
    defaults = Defaults(
        options=FitOptions(
            coreset_rate=settings.coreset_rate,
            seed=settings.seed,
            k=settings.k,
            rule=rule,
            first_mode="area" if settings.score_mode == "auto" else settings.score_mode,
            aligned=settings.aligned,
        ),
        max_pixels=settings.max_pixels,
        min_ok_samples=max(settings.min_ok_samples, 2),  # one part says nothing of how parts differ
        image_check=settings.image_check,
    )
    return InspectionService(
        store=build_store(settings),
        extractor=extractor or ExtractorLoader(lambda: make_extractor(settings)),
        device=DeviceQueue(settings.queue_length),
        defaults=defaults,
        cache_max_entries=settings.cache_max_entries,
        batch_wait_ms=settings.batch_wait_ms,
    )


def build_store(settings: Settings) -> ArtefactStore:
    """Return the artefacts below the models folder."""
    return ArtefactStore(settings.models_dir, max_disk_gb=settings.max_disk_gb, keep_versions=settings.keep_versions)


def build_datasets(settings: Settings, store: ArtefactStore | None = None) -> Datasets:
    """Return the data sets below the models folder; one ``store`` for all knows of what each finds damaged."""
    return Datasets(store or build_store(settings), max_pixels=settings.max_pixels)


def build_recipes(settings: Settings, store: ArtefactStore | None = None) -> Recipes:
    """Return the recipes below the models folder."""
    return Recipes(store or build_store(settings))


def pixels_in_flight(settings: Settings) -> int:
    """Return how many decoded pixels all calls may hold together, px."""
    return settings.max_held_mpx * 1_000_000 or pixels_for(usable_memory_bytes())


def build_body_budget(settings: Settings) -> BodyBudget:
    """Return the room for uploads; one of the largest size that is allowed always fits."""
    max_bytes = max(settings.max_held_mb, settings.max_body_mb) * 1_000_000
    return BodyBudget(max_bytes, reserve_bytes=max_bytes // 10)


def build_jobs(settings: Settings, store: ArtefactStore) -> Jobs:
    """Return the runner of background calls."""
    return Jobs(settings.models_dir / ".jobs", concurrent=settings.concurrent_jobs, models=store.folder)


def build_api_keys(settings: Settings) -> ApiKeys:
    """Return the keys that may call.

    Raises:
        ValueError: If the setting is malformed.
    """
    return ApiKeys() if settings.api_keys is None else ApiKeys.parse(settings.api_keys.get_secret_value())


def build_audit(settings: Settings, store: ArtefactStore) -> Audit:
    """Return where decisions are kept; no file is made yet."""
    path = settings.audit_file or settings.models_dir / "audit.sqlite3"
    return Audit(path, keeps=settings.audit, images_mb=settings.audit_images_mb, models=store.folder)


def build_history(settings: Settings, store: ArtefactStore) -> History:
    """Return where the last decisions are kept; no file is made yet."""
    return History(settings.models_dir / FILE_NAME, kept=settings.history, models=store.folder)


def check_requirements(settings: Settings) -> None:
    """Raise RuntimeError if the machine lacks what the settings insist on."""
    if settings.require_cuda:
        require_cuda()


def make_extractor(settings: Settings) -> tuple[FeatureExtractor, str | None]:
    """Return the extractor that the settings choose and, when it is not the one hoped for, why.

    Raises:
        WeightsUnavailable: If DINOv2 is asked for and its weights cannot be had, or PyTorch is not installed.
    """
    limit_threads(settings.threads or usable_cpus())
    reason = None
    if settings.extractor != "filter-bank":
        try:
            features = _dinov2(settings)
            return features, features.engine_fallback
        except WeightsUnavailable as error:
            if settings.extractor == "dinov2":
                raise
            reason = f"The filter bank runs in place of DINOv2. {error.sentence}"
    return FilterBankFeatures(input_size=settings.input_size, resize=settings.resize), reason


def settings_faults(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each setting that a service cannot start with, though its value alone is well formed."""
    try:
        build_api_keys(settings)
    except ValueError as error:
        yield str(error)
    yield from extractor_faults(settings)
    yield from folder_faults(settings)
    if settings.log_file is not None:
        try:
            settings.log_file.parent.mkdir(parents=True, exist_ok=True)
            settings.log_file.open("ab").close()
        except OSError as error:
            yield _unusable("log_file", settings.log_file, error)
    if settings.audit and settings.audit_file is not None and settings.audit_file.is_dir():
        yield _unusable("audit_file", settings.audit_file, IsADirectoryError(EISDIR, "is a directory"))


def extractor_faults(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each setting of the extractor that names what is not on this machine."""
    try:
        check_requirements(settings)
        if settings.extractor != "filter-bank" and settings.device.startswith("cuda"):
            check_cuda_device(settings.device)
    except RuntimeError as error:
        yield str(error)
    if settings.extractor == "dinov2" and settings.weights is not None and not settings.weights.is_file():
        yield (
            f"BDI_WEIGHTS is {str(settings.weights)!r}, which cannot be used: there is no such file. Correct it, or "
            "unset it and let this machine reach the Hugging Face hub once."
        )


def folder_faults(settings: Settings) -> Iterator[str]:
    """Yield a sentence if the models folder is none, or may not be written; nothing is made."""
    folder = settings.models_dir.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError(ENOTDIR, f"{there} is a file")
        if there != folder and not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, f"nothing may be made in {there}")
        if there == folder:
            with TemporaryFile(dir=folder):
                pass
    except OSError as error:
        if error.errno in (EACCES, EPERM, EROFS, ENOTDIR):  # a full disk is no reason not to inspect
            yield _unusable("models_dir", settings.models_dir, error)


def _unusable(field: str, value: object, error: OSError) -> str:
    reason = (error.strerror or str(error)).rstrip(".")
    return f"BDI_{field.upper()} is {str(value)!r}, which cannot be used: {reason_of(reason)}."


@cache
def script_service() -> InspectionService:
    """Return a service of the environment's settings, for scripts; made on the first call and kept."""
    return build_service(Settings())


def _dinov2(settings: Settings) -> DinoV2Features:
    threads = settings.threads or usable_cpus()
    features = DinoV2Features(
        device=settings.device,
        input_size=settings.input_size,
        scales=settings.scales,
        resize=settings.resize,
        weights=settings.weights,
        engine=settings.engine,
        precision=settings.precision,
        cache_dir=settings.models_dir / ".engines",
        threads=threads,
    )
    limit_threads(threads)  # again: torch has only now been loaded
    # An engine compiles for each input size. Better now than under the first part of the day.
    sizes = {features.placement(hw).input_hw: hw for hw in _image_sizes_in_use(settings)}
    for image_hw in sizes.values():
        features.warm_up(image_hw)
    return features


def _image_sizes_in_use(settings: Settings) -> set[tuple[int, int]]:
    """Return the sizes of images that fitted ROIs were fitted with, and the square one that a new ROI likely has."""
    sizes = {(settings.input_size, settings.input_size)}
    store = build_store(settings)
    for keys in build_recipes(settings).contents().values():
        for key in keys:
            try:
                bank = store.load(key).bank
            except InspectionError:
                continue  # every call on that ROI names the damage
            if bank is not None:
                sizes.add(bank.placement.image_hw)
    return sizes
