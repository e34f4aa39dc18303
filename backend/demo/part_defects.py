"""What can be wrong with a machined part, drawn on the light that it sends to the camera."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from backend.demo.machined_part import EDGE, Image, MachinedPart, Mask, cover_of, unit_noise

DefectKind = Literal["scratch", "pit", "dent", "rust", "missing_hole", "chipped_edge"]
DEFECT_KINDS: tuple[DefectKind, ...] = get_args(DefectKind)

_SCRATCH_WIDTH_MM = 0.7
_RUST_BGR = np.array([0.03, 0.065, 0.14], np.float32)


def _scratch(part: MachinedPart, scene: Image, size_px: float, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A groove with a burr along one side, as long as ``size_px``, a little bent, fading towards its ends."""
    x0, y0 = part.spot(rng, 0.7 * size_px)
    heading = math.atan2(y0, x0) + math.radians(float(rng.uniform(25.0, 65.0))) * rng.choice([-1.0, 1.0])
    along = (part.x - x0) * math.cos(heading) + (part.y - y0) * math.sin(heading)
    across = -(part.x - x0) * math.sin(heading) + (part.y - y0) * math.cos(heading)
    half_width = max(_SCRATCH_WIDTH_MM / part.mm_per_px / 2, 0.8)
    bend = float(rng.uniform(-0.12, 0.12))
    across = across - bend * (along**2 / size_px - size_px / 12)
    beyond = np.maximum(np.abs(along) - (size_px / 2 - half_width), 0.0)
    distance = np.hypot(across, beyond)
    mask = distance <= half_width
    depth = cover_of(distance - half_width) * (0.8 + 0.2 * np.cos(math.pi * along / size_px))
    skips = 1.0 - 0.35 * np.clip(part.mottle - 0.3, 0.0, 1.0)
    burr = np.clip(0.15 + 1.1 * across / half_width, 0.0, 1.0)
    target = 0.03 * (1.0 - burr) + np.minimum(0.35 + 1.2 * scene.mean(axis=2), 1.0) * burr
    return _blend(scene, depth * skips, target[..., None], mask), mask


def _pit(part: MachinedPart, scene: Image, size_px: float, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A blow-hole: dark, with a ragged edge whose far wall catches the light."""
    x, y, reach = _blob(part, part.spot(rng, size_px), rng, raggedness=0.22)
    mask = _largest(reach, size_px)
    inside = 1.0 - reach / reach[mask].max()
    lit = (x * math.cos(part.light) + y * math.sin(part.light)) / np.maximum(np.hypot(x, y), 0.5)
    wall = 0.03 + 0.30 * np.clip(-lit, 0.0, 1.0) * np.clip(1.0 - 2.2 * inside, 0.0, 1.0) + 0.012 * part.grain
    return _blend(scene, np.clip(4.0 * inside + 0.35, 0.0, 1.0), wall[..., None], mask), mask


def _dent(part: MachinedPart, scene: Image, size_px: float, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A shallow round hollow: the side away from the lamp shines, the near side is dark, the marks run through it."""
    x0, y0 = part.spot(rng, size_px)
    x, y = (part.x - x0) / (size_px / 2), (part.y - y0) / (size_px / 2)
    squared = x**2 + y**2
    mask = squared <= 1.0
    slope = np.where(mask, 1.0 - squared, 0.0) ** 0.8 * (x * math.cos(part.light) + y * math.sin(part.light))
    shading = np.clip(1.0 - 2.0 * slope - 0.25 * np.where(mask, 1.0 - squared, 0.0), 0.12, 2.2)
    return (scene * shading[..., None]).astype(np.float32), mask


def _rust(part: MachinedPart, scene: Image, size_px: float, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A brown, blotchy stain with a darker heart, through which the turning marks still show."""
    _, _, reach = _blob(part, part.spot(rng, size_px), rng, raggedness=0.30)
    reach = reach * np.exp(
        0.16 * unit_noise(rng, part.size, max(size_px / 12, 1.0)) + 0.10 * unit_noise(rng, part.size, 1.2)
    )
    mask = _largest(reach, size_px)
    inside = 1.0 - reach / reach[mask].max()
    blotches = unit_noise(rng, part.size, max(size_px / 12, 1.0))
    opacity = np.clip(0.55 + 1.2 * inside + 0.25 * blotches, 0.25, 0.95)
    relief = scene.mean(axis=2, keepdims=True) / 0.35
    depth_of_colour = 1.0 + 0.30 * blotches + 0.14 * part.grain - 0.40 * inside.clip(0.0, 1.0)
    return _blend(scene, opacity, _RUST_BGR * (0.75 + 0.25 * relief) * depth_of_colour[..., None], mask), mask


def _chip(part: MachinedPart, scene: Image, size_px: float, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A bite out of the rim, ``size_px`` wide along the edge: a dark, coarse fracture that falls away outwards."""
    edge = EDGE * part.half
    at = float(rng.uniform(-math.pi, math.pi))
    half_width, depth = size_px / 2, 0.42 * size_px
    turned = np.mod(part.angle - at + math.pi, 2 * math.pi) - math.pi
    along, inward = edge * turned, edge - part.radius
    taper = np.clip(1.0 - np.abs(along) / half_width, 0.0, 1.0)
    ragged = 0.07 * size_px * unit_noise(rng, part.size, max(size_px / 10, 1.0)) * taper
    floor = depth * np.sqrt(np.clip(1.0 - (along / half_width) ** 2, 0.0, 1.0)) + ragged - inward
    mask = (floor >= 0) & (inward >= 0) & (np.abs(along) <= half_width)
    facets = unit_noise(rng, part.size, max(size_px / 16, 0.8))
    fall = np.clip(inward / depth, 0.0, 1.0)
    fracture = 0.03 + 0.08 * fall + (0.035 + 0.05 * fall) * facets + 0.02 * part.grain
    fracture = fracture + np.where(
        floor < 1.3, 0.09 * (1.0 - math.cos(at - part.light)), 0.0
    )  # The broken edge glints.
    return _blend(scene, np.clip(0.6 + floor, 0.0, 1.0), fracture[..., None], mask), mask


def _blob(
    part: MachinedPart, centre: tuple[float, float], rng: np.random.Generator, *, raggedness: float
) -> tuple[Image, Image, Image]:
    """Return x, y from a centre, and a field that grows outwards and whose level lines are ragged closed curves."""
    x, y = part.x - np.float32(centre[0]), part.y - np.float32(centre[1])
    angle = np.arctan2(y, x)
    swell = sum(
        float(rng.normal(0.0, raggedness / k**0.8)) * np.cos(k * angle + float(rng.uniform(0, 2 * math.pi)))
        for k in range(2, 7)
    )
    return x, y, np.hypot(x, y) * np.exp(-swell)


def _largest(reach: Image, size_px: float) -> Mask:
    """Return the pixels of lowest ``reach``, as many as a disc of diameter ``size_px`` has."""
    n_pixels = max(1, round(math.pi / 4 * size_px**2))
    mask: Mask = reach <= np.partition(reach, n_pixels - 1, axis=None)[n_pixels - 1]
    return mask


def _blend(scene: Image, opacity: NDArray[np.floating], colour: NDArray[np.floating], mask: Mask) -> Image:
    weight = np.where(mask, opacity, 0.0)[..., None]
    blended: Image = scene + weight * (np.maximum(colour, 0.01) - scene)
    return blended.astype(np.float32)


Draw = Callable[[MachinedPart, Image, float, np.random.Generator], tuple[Image, Mask]]
"""Draws a defect of a size, px, on the light of a part; returns the light with it, and where it is."""

DRAWN_DEFECTS: dict[DefectKind, tuple[Draw, float, float]] = {
    "scratch": (_scratch, 7.0, 14.0),
    "pit": (_pit, 1.4, 2.6),
    "dent": (_dent, 3.5, 6.0),
    "rust": (_rust, 4.0, 8.0),
    "chipped_edge": (_chip, 4.0, 7.5),
}
"""By kind: what draws it, and the smallest and the largest usual size, mm."""
