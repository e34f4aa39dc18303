"""What a fit learns with: the service's settings where a ROI begins anew, else what it was fitted with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.older_formats import fit_options
from backend.memory_bank.bank import FitOptions, MemoryBank
from backend.services.fit_request import FitRequest


def options_in_force(request: FitRequest, known: MemoryBank | LearnedFacts | None) -> FitOptions:
    """Return the options of a fit.

    Scores before and after have one scale only with one blur, k and rule. A setting of the service that was changed
    meanwhile would let defects pass that were found before, so it is for ROIs that begin anew.

    Args:
        request: What the fit is asked; its options are the service's.
        known: The memory that the fit adds to, or what is certain of it.
    """
    if known is None:
        return replace(request.options, coreset_rate=request.coreset_rate or request.options.coreset_rate)
    before = known.options if isinstance(known, MemoryBank) else fit_options(known.settings, request.options)
    # Every embedding was kept because that call asked for it; another call asks anew.
    kept = before.coreset_rate if before.coreset_rate < 1 else request.options.coreset_rate
    return replace(before, coreset_rate=request.coreset_rate or kept)


def settings_not_taken(request: FitRequest, bank: MemoryBank) -> Iterable[str]:
    """Yield a warning where the service is set otherwise than a ROI was fitted, for what shapes a score."""
    own, of_service = _scoring(bank.options), _scoring(request.options)
    differ = [f"{name}={own[name]} (the service: {of_service[name]})" for name in own if own[name] != of_service[name]]
    if differ:
        yield (
            f"The ROI stays as it was fitted, {', '.join(differ)}, so that its scores keep their scale. To take the "
            "service's settings, fit with mode=replace."
        )


def _scoring(options: FitOptions) -> dict[str, str]:
    rule = options.rule
    numbers = {"k": options.k, "blur_sigma": rule.blur_sigma, "score_percentile": rule.percentile}
    numbers |= {"area_mm2_thr": rule.area_mm2_thr}
    return {"score_mode": rule.mode, **{name: f"{value:g}" for name, value in numbers.items()}}
