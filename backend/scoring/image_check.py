"""Whether an inspected image can be one of its ROI at all, and what an operator should look at where it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from backend.memory_bank.image_ranges import Statistic

REJECT_FROM: Final = 2.0
"""Distance from which an image is none of the ROI; unseen good parts of eight sets reached 1.4."""

WARN_FROM: Final = 1.2

_UNIFORM_BELOW: Final = 3.0
"""Standard deviation of grey below which nothing is to be seen: no more than a sensor's noise."""

ImageVerdict = Literal["ok", "unusual", "foreign"]


@dataclass(frozen=True, kw_only=True)
class ImageCheck:
    """What the statistics of an image say.

    Attributes:
        verdict: ``ok``, ``unusual`` (worth a warning), or ``foreign``: no image of the ROI, whatever its score is.
        distance: The largest of the statistics' distances, see ``Statistic``; ≥ 0.
        sentence: What is unlike the good parts, and what to look at; empty for ``ok``.
    """

    verdict: ImageVerdict
    distance: float
    sentence: str
    statistics: Mapping[str, Statistic] = field(compare=False)


def image_check(statistics: Mapping[str, Statistic]) -> ImageCheck:
    """Return what the statistics of an image say; see ``LearnedRanges.compare``."""
    worst = max(statistics, key=lambda name: abs(statistics[name].distance))
    distance = abs(statistics[worst].distance)
    verdict: ImageVerdict = "foreign" if distance > REJECT_FROM else "unusual" if distance > WARN_FROM else "ok"
    if verdict == "ok":
        return ImageCheck(verdict=verdict, distance=distance, sentence="", statistics=statistics)
    sentence = f"The image {_difference(statistics, worst, 'far' if verdict == 'foreign' else 'somewhat')}"
    return ImageCheck(verdict=verdict, distance=distance, sentence=sentence, statistics=statistics)


def _difference(statistics: Mapping[str, Statistic], worst: str, far: str) -> str:
    """Return how an image differs from the good parts, as the rest of a sentence that begins with "The image"."""
    level, contrast, found = statistics["level"], statistics["contrast"], statistics[worst]
    more = found.distance > 0
    of_level = f"grey level {level.value:.0f}, learned {level.low:.0f}–{level.high:.0f}"
    if contrast.value < _UNIFORM_BELOW < contrast.low / 2:
        return f"shows nothing of a part: it is uniform ({of_level}). Lamp, lens cap, or no part?"
    if worst in ("level", "dark_areas", "median", "bright_areas"):
        where = {"dark_areas": "in its dark areas ", "bright_areas": "in its bright areas "}.get(worst, "")
        how = "brighter" if more else "darker"
        return f"is {far} {how} {where}than any good part ({of_level}): lamp or exposure, or another part?"
    if worst in ("black", "white"):
        share = f"{100 * found.value:.0f} %, learned up to {100 * found.high:.0f} %"
        return f"is {worst} over a {far} larger area than any good part ({share}): lamp, exposure or reflection?"
    if worst == "plain":
        share = f"{100 * found.value:.0f} %, learned up to {100 * found.high:.0f} %"
        return f"is without any detail over a {far} larger area than any good part ({share}): is it complete?"
    if worst == "contrast":
        how = "more" if more else "less"
        of_contrast = f"{contrast.value:.0f} grey levels, learned {contrast.low:.0f}–{contrast.high:.0f}"
        return f"has {far} {how} contrast than any good part ({of_contrast}): light, lens, or another part?"
    if worst in ("blue", "red"):
        return f"is of {far} another colour than any good part: light, white balance, or another part?"
    if worst.startswith("layout"):
        other = "something else" if far == "far" else "it somewhat differently"
        return f"does not show what good parts show where they show it, but {other}: another part, moved or cut off?"
    if more:
        return f"has {far} more fine structure than any good part: camera noise, gain, or another part?"
    return f"is {far} less sharp than any good part: focus, vibration, or dirt on the lens?"
