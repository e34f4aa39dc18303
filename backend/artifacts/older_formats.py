"""What files of older formats still say of how a ROI was fitted and calibrated, so that its successor can be alike.

| version | memory | calibration |
|---|---|---|
| 1 | ``k``, ``coreset_rate``, ``seed`` among its facts; how maps become scores was a setting of the service | no blur |
| 2 | ``options``: all of that, the rule of the scores, ``area_mm2_thr`` beside it | with ``blur_sigma`` |
| 3 | the area that counts is part of the rule; near-identical images are parts | ``n_ok`` counts them as parts |

Fields are found by their names, wherever a version keeps them; what a version did not know is taken from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from backend.artifacts.memory_checks import check_calibration_usable, check_options_usable
from backend.calib import SCORE_MODES, Calibration
from backend.memory_bank.bank import FitOptions
from backend.utils import canonical_json, sha256_hex

_ADDED_TO_CALIBRATIONS: Final[Mapping[str, Any]] = {
    "blur_sigma": 0.0,
    "ok_rejected": 0,
    "ok_images": (),
    "ng_images": (),
    "shape": None,
}
"""Fields that not every version has, and what stands for them. The blur that holds is the memory's in any case."""

_FORMER_DEFAULT_MODE: Final = "percentile"
"""The score mode of the versions before 3 where nobody had chosen one."""


def fit_options(facts: Mapping[str, Any], otherwise: FitOptions) -> FitOptions:
    """Return the options that a memory was fitted with, as far as its facts name them.

    Args:
        facts: Those of a memory of any format.
        otherwise: What holds where they say nothing.
    """
    options = facts.get("options", {})
    known = {**facts, **options, **options.get("rule", {})}
    rule = {name: known[name] for name in vars(otherwise.rule) if name in known}
    mode = known.get("mode")
    if mode not in SCORE_MODES:
        rule = {}  # its percentile belongs to a statistic that we do not know
    elif mode != _FORMER_DEFAULT_MODE:
        known = {"first_mode": mode, **known}  # somebody had chosen it, and it held for calibrations as well
    own = {name: known[name] for name in vars(otherwise) if name in known and name != "rule"}
    found = replace(otherwise, **own, rule=replace(otherwise.rule, **rule))
    try:
        check_options_usable(found)
    except (ValueError, TypeError):
        return otherwise  # made by hand: no version has written these
    return found


def older_calibrations(data: bytes) -> list[Calibration]:
    """Return the calibrations of a ``calib.json`` of an older format, newest first; none where they cannot be read.

    They belong to memories of that format, so none of them is ever in force again: they say what to calibrate with.
    """
    try:
        document = json.loads(data)
        if document.pop("sha256") != sha256_hex(canonical_json(document)):
            return []
        del document["format_version"]
        others = document.pop("other_memories")
        calibrations = [_calibration(fields) for fields in [document, *others]]
        for calibration in calibrations:
            check_calibration_usable(calibration)
        return calibrations
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _calibration(fields: Mapping[str, Any]) -> Calibration:
    # No version before 4 kept which images NG scores are of: nobody can measure them again, as if they had been sent.
    ng_scores_from = "request" if fields["n_ng"] else None
    return Calibration.from_fields({**_ADDED_TO_CALIBRATIONS, "ng_scores_from": ng_scores_from, **fields})
