"""What ``roi-inspector refit`` does and prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from backend.artifacts.model_key import DEFAULT_RECIPE, ModelKey
from backend.errors import InspectionError
from backend.maintenance.terminal import say, show
from backend.services.inspection import InspectionService
from backend.services.refit_runs import RefitItem, fitted_models, refit_models

_USAGE = "Name ROIs as ROLE/ROI, RECIPE/ROLE/ROI or RECIPE/ROLE/ROI/MODEL_KEY, or say --all."


def run_refit(service: InspectionService, rois: Sequence[str], *, of_all: bool = False, force: bool = False) -> int:
    """Make memories anew, and print a line for each and a summary; a service may run on the same folder.

    Args:
        service: What learns, and where.
        rois: Names of models.
        of_all: All that were ever fitted, in place of names.
        force: Also those that are up to date.

    Returns:
        0 when none failed, 1 when one did or nothing could begin, 2 when the names are not understood.
    """
    if of_all == bool(rois):
        say(_USAGE)
        return 2
    if not service.store.models_dir.is_dir():
        say(f"There is no folder {service.store.models_dir}.")
        return 1
    counts: Counter[str] = Counter()
    try:
        keys = fitted_models(service.store) if of_all else [*dict.fromkeys(_model(name) for name in rois)]
        show("loading the extractor")
        for item in refit_models(service.refitter, keys, force=force, progress=_progress):
            counts[item.status] += 1
            say("\n  ".join(_lines(item)))
    except ValueError as error:
        say(str(error))
        return 2
    except InspectionError as error:
        say(error.sentence)
        return 1
    say(f"{counts['done']} made anew, {counts['skipped']} up to date, {counts['failed']} failed.")
    return 1 if counts["failed"] else 0


def _model(name: str) -> ModelKey:
    """Return the model of a name.

    Raises:
        ValueError: If it has too few or too many parts.
        InvalidId, ReservedRecipe: If one of them is no id.
    """
    parts = name.split("/")
    if not 2 <= len(parts) <= 4:
        raise ValueError(f"{name!r} names no ROI. {_USAGE}")
    recipe_id, role_id, roi_id, model_key, *_ = [*([DEFAULT_RECIPE] if len(parts) == 2 else []), *parts, ""]
    return ModelKey(recipe_id=recipe_id, role_id=role_id, roi_id=roi_id, model_key=model_key)


def _progress(done: int, total: int) -> None:
    show(f"learning: {done} of {total} images" if total else "looking at the memories")


def _lines(item: RefitItem) -> list[str]:
    if item.error is not None:
        return [f"failed {item.key}: {item.error.sentence}"]
    report = item.report
    if report is None or report.bank is None:
        return [f"skipped {item.key}: up to date"]
    threshold = "none" if report.threshold is None else f"{report.threshold:.4g}"
    facts = f"{len(report.bank.image_digests)} images; calibration {report.calibration}, threshold {threshold}"
    return [f"done {item.key}: {facts}", *report.warnings]
