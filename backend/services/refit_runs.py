"""Refitting many models: which there are, one after the other, and what came of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from backend.artifacts.layout import walk
from backend.artifacts.model_key import ModelKey
from backend.errors import InspectionError, JobCancelled, RequestTimeout, StorageFailed
from backend.memory_bank.coreset import Progress
from backend.services.refitting import RefitReport, Refitter
from backend.storage import ArtefactStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RefitItem:
    """One model, and what came of its refit: a report, or why there is none."""

    key: ModelKey
    report: RefitReport | None = None
    error: InspectionError | None = None

    @property
    def status(self) -> Literal["done", "skipped", "failed"]:
        """``skipped``: the memory is up to date."""
        if self.report is None:
            return "failed"
        return "skipped" if self.report.bank is None else "done"


def fitted_models(store: ArtefactStore, recipe_id: str | None = None) -> list[ModelKey]:
    """Return all models that were ever fitted, also those whose memory cannot be read, in order of their ids.

    Args:
        store: Where to look.
        recipe_id: Look only at this recipe.

    Raises:
        StorageFailed: If a folder cannot be read.
    """
    store.folder.check()
    try:
        found = {entry.artifact.key for entry in walk(store.models_dir) if entry.artifact.kind == "memory"}
    except OSError as error:
        raise StorageFailed(
            "The models folder cannot be read. See that the disk works and that the service's account may read it."
        ) from error
    keys = [key for key in found if key is not None and recipe_id in (None, key.recipe_id)]
    return sorted(keys, key=lambda key: (key.recipe_id, key.role_id, key.roi_id, key.model_key))


def refit_models(
    refitter: Refitter, keys: Sequence[ModelKey], *, force: bool = False, progress: Progress | None = None
) -> Iterator[RefitItem]:
    """Yield what came of each model, in order. One that fails does not keep the others from their turn.

    Args:
        refitter: What makes them anew.
        keys: The models.
        force: Make also those anew that are up to date.
        progress: Called with (images done, images in all).

    Raises:
        WeightsUnavailable: If there is no extractor.
        RequestTimeout, JobCancelled: If ``progress`` ends it; the models that are done stay so.
    """
    refitter.fitter.extractor.get()  # without one every model would fail
    report_progress = progress or (lambda _done, _total: None)
    planned: dict[ModelKey, int | InspectionError] = {}
    for key in keys:
        report_progress(0, 0)
        try:
            planned[key] = refitter.n_images_to_learn(key, force=force)
        except InspectionError as error:
            planned[key] = error
    n_all = sum(plan for plan in planned.values() if isinstance(plan, int))
    n_before = n_refitted = 0
    for key, plan in planned.items():
        if isinstance(plan, InspectionError):
            yield RefitItem(key=key, error=plan)
            continue
        try:
            item = _refitted(refitter, key, plan, force, report_progress, n_before, n_all)
        except RequestTimeout as error:
            if not n_refitted:
                raise
            raise RequestTimeout(
                f"This call takes longer than a request may, and was ended after {n_refitted} ROIs were made anew; "
                "those stay so. Send it again for the others, with the header `Prefer: respond-async`."
            ) from error
        n_before += plan
        n_refitted += item.status == "done"
        yield item


def _refitted(
    refitter: Refitter, key: ModelKey, n_images: int, force: bool, progress: Progress, n_before: int, n_all: int
) -> RefitItem:
    """Return what came of one model; ``n_before`` images of ``n_all`` are done before it."""
    if not n_images:
        return RefitItem(key=key, report=RefitReport())
    try:
        report = refitter.refit(
            key,
            force=force,
            progress=lambda done, total: progress(n_before + n_images * done // total, n_all),
        )
    except (JobCancelled, RequestTimeout):
        raise
    except InspectionError as error:
        return RefitItem(key=key, error=error)
    except Exception:
        _log.exception("%s could not be refitted", key)
        return RefitItem(key=key, error=InspectionError("The service failed on this ROI. Its log has the reason."))
    return RefitItem(key=key, report=report)
