"""How a ROI's maps become scores from a calibration on, and which settings of the call that rules out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from backend.calib import Calibration, ScoreMode, ScoreRule
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import rule_in_force


@dataclass(frozen=True, kw_only=True)
class RuleChoice:
    """How maps become scores after a calibration.

    Attributes:
        rule: The rule.
        warnings: Each setting of the call that it does not follow, and why.
    """

    rule: ScoreRule
    warnings: tuple[str, ...] = ()


def choose_rule(
    bank: MemoryBank,
    last: Calibration | None,
    *,
    brings_scores: bool,
    score_mode: ScoreMode | None = None,
    score_percentile: float | None = None,
    area_mm2_thr: float | None = None,
) -> RuleChoice:
    """Return the rule of a calibration that asks for these settings; None keeps what is in force.

    Scores that a caller sends were measured under the rule in force, so it is kept: a threshold that is made of them
    would mean nothing for scores of another rule. Only an area that no more than drops regions may change with them.

    Args:
        bank: The memory.
        last: The calibration in force, or the newest of another memory; None before the first.
        brings_scores: Whether the caller sends scores.
        score_mode: The statistic of the map.
        score_percentile: The percentile of the map.
        area_mm2_thr: The area that counts, mm².
    """
    in_force = rule_in_force(bank, last)
    asked = ScoreRule(
        mode=score_mode or _unnamed_mode(bank, last, names_percentile=score_percentile is not None),
        percentile=score_percentile or in_force.percentile,
        blur_sigma=in_force.blur_sigma,
        area_mm2_thr=in_force.area_mm2_thr if area_mm2_thr is None else area_mm2_thr,
    )
    if not brings_scores:
        if score_percentile is not None and not _has_percentile(asked.mode):
            asked = replace(asked, percentile=in_force.percentile)
            return RuleChoice(rule=asked, warnings=(_no_effect(score_percentile, asked.mode),))
        return RuleChoice(rule=asked)
    rule = in_force if in_force.mode == "area" else replace(in_force, area_mm2_thr=asked.area_mm2_thr)
    wanted = {"score_mode": score_mode, "score_percentile": score_percentile, "area_mm2_thr": area_mm2_thr}
    return RuleChoice(rule=rule, warnings=tuple(_not_applied(wanted, rule)))


def description(rule: ScoreRule) -> str:
    """Return what people call the score that a rule makes."""
    names: dict[ScoreMode, str] = {
        "percentile": f"the {rule.percentile:g}th percentile of the map",
        "top_mean": f"the mean of the top {100 - rule.percentile:g} % of the map",
        "max": "the maximum of the map",
        "area": f"the highest level of a connected {rule.area_mm2_thr:g} mm² of the map",
    }
    return names[rule.mode]


def _unnamed_mode(bank: MemoryBank, last: Calibration | None, *, names_percentile: bool) -> ScoreMode:
    """Return the mode of a calibration that names none and brings no scores."""
    if last is not None:
        return last.score_mode
    # Who says a percentile means the score that was ordered with it, and gets it unless the setting is another mode.
    return bank.options.rule.mode if names_percentile else bank.options.first_mode


def _not_applied(wanted: dict[str, ScoreMode | float | None], rule: ScoreRule) -> Iterable[str]:
    """Yield each setting that sent scores rule out."""
    applied = {"score_mode": rule.mode, "score_percentile": rule.percentile, "area_mm2_thr": rule.area_mm2_thr}
    percentile = wanted["score_percentile"]
    if percentile is not None and not _has_percentile(rule.mode):
        yield _no_effect(percentile, rule.mode)
        applied["score_percentile"] = percentile
    for name, value in wanted.items():
        if value is not None and value != applied[name]:
            yield (
                f"{name}={value if isinstance(value, str) else format(value, 'g')} is not applied: the scores sent "
                f"were measured as {description(rule)}, and the threshold is for such scores. To change it, calibrate "
                "without scores, inspect those images again and calibrate with the new scores."
            )


def _has_percentile(mode: ScoreMode) -> bool:
    return mode in ("percentile", "top_mean")


def _no_effect(percentile: object, mode: ScoreMode) -> str:
    return (
        f"score_percentile={percentile:g} has no effect: the score of this ROI is {mode!r}. For the ordered percentile "
        'calibrate without scores and with "score_mode":"percentile".'
    )
