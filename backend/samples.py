"""Canonical ROI images of machined grey parts, good and defective, rendered from a seed.

One turned cast-iron flange, seen from above by a line camera: a face with concentric turning marks and six bolt holes,
a relief groove, a hub with a keyed bore, on a dark belt. Two good parts differ as two real ones do: a pixel or so of
shift, half a degree of rotation, other turning marks, another grain, a little more or less light. A defect has a size
in millimetres and a mask that says where it is.

The part fills the ROI whatever the scale: its radii are fractions of the half edge of the image, while a defect's size
is absolute. ``render_defective(seed, kind)`` is the very part of ``render_good(seed)``, plus the defect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.roi_mask import Annulus

DefectKind = Literal["scratch", "pit", "dent", "rust", "missing_hole", "chipped_edge"]
DEFECT_KINDS: tuple[DefectKind, ...] = get_args(DefectKind)

_Image = NDArray[np.floating]
_Mask = NDArray[np.bool_]

# Radii of the part, as fractions of half the image's edge.
_EDGE, _FACE_INNER, _HUB, _BORE = 0.90, 0.52, 0.47, 0.24
_BOLT_CIRCLE, _HOLE, _CHAMFER = 0.71, 0.075, 0.018
_N_HOLES = 6
_MARGIN = 0.035  # How far the annulus reaches beyond the face: more than a part is ever displaced, and the rim with it.

_SIZE_MM: dict[DefectKind, tuple[float, float]] = {
    "scratch": (7.0, 14.0),
    "pit": (1.4, 2.6),
    "dent": (3.5, 6.0),
    "rust": (4.0, 8.0),
    "chipped_edge": (4.0, 7.5),
}
_SCRATCH_WIDTH_MM = 0.7
_RUST_BGR = np.array([0.03, 0.065, 0.14], np.float32)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rendered ROI image and what is wrong with the part.

    Attributes:
        image_bgr: [H, W, 3] uint8.
        defect_mask: [H, W] bool; True where the defect is, nowhere on a good part.
        defect_kind: One of ``DEFECT_KINDS``, or None on a good part.
        defect_size_mm: Length of a scratch, width of a chip along the rim, else diameter of the disc of equal area.
        seed: What it was rendered from.
        mm_per_px: Millimetres per pixel.
    """

    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    defect_mask: _Mask = field(compare=False, repr=False)
    defect_kind: DefectKind | None
    defect_size_mm: float | None
    seed: int
    mm_per_px: float

    @property
    def defect_area_mm2(self) -> float:
        """Area of the defect on the part, mm²; 0 on a good part."""
        return float(np.count_nonzero(self.defect_mask)) * self.mm_per_px**2


def machined_ring(size_px: int = 384) -> Annulus:
    """Return the annulus that covers the machined face, rim and bolt holes included, wherever the part lies."""
    half = size_px / 2
    centre = (size_px - 1) / 2
    return Annulus(cx=centre, cy=centre, r=(_EDGE + _MARGIN) * half, r_inner=(_FACE_INNER - _MARGIN) * half)


def render_good(seed: int, *, size_px: int = 384, mm_per_px: float = 0.2) -> Sample:
    """Return a good part.

    Args:
        seed: The same seed gives the same bytes.
        size_px: Edge of the square image, px; at least 64.
        mm_per_px: Millimetres per pixel; positive.

    Raises:
        ValueError: If an argument is out of range.
    """
    part = _Part(seed, size_px, mm_per_px)
    return Sample(
        image_bgr=part.expose(part.shade()),
        defect_mask=np.zeros((size_px, size_px), np.bool_),
        defect_kind=None,
        defect_size_mm=None,
        seed=seed,
        mm_per_px=mm_per_px,
    )


def render_defective(
    seed: int, kind: str, *, size_px: int = 384, mm_per_px: float = 0.2, size_mm: float | None = None
) -> Sample:
    """Return the part of ``render_good(seed)`` with one defect.

    Args:
        seed: The same seed and kind give the same bytes.
        kind: One of ``DEFECT_KINDS``.
        size_px: Edge of the square image, px; at least 64.
        mm_per_px: Millimetres per pixel; positive.
        size_mm: Size of the defect (see ``Sample.defect_size_mm``); drawn from what is usual for its kind when None.

    Raises:
        ValueError: If an argument is out of range, or a size is asked of a missing hole, which has that of the hole.
    """
    named = next((known for known in DEFECT_KINDS if known == kind), None)
    if named is None:
        raise ValueError(f"kind must be one of {', '.join(DEFECT_KINDS)}, got {kind!r}")
    part = _Part(seed, size_px, mm_per_px)
    rng = np.random.default_rng([seed, 2 + DEFECT_KINDS.index(named)])
    if named == "missing_hole":
        if size_mm is not None:
            raise ValueError("size_mm must be left out for missing_hole: the bolt holes have one size")
        hole = int(rng.integers(_N_HOLES))
        scene, mask = part.shade(without_hole=hole), part.hole_mask(hole)
        size_mm = 2 * _HOLE * part.half * mm_per_px
    else:
        size_mm = float(rng.uniform(*_SIZE_MM[named])) if size_mm is None else size_mm
        size_in_px = size_mm / mm_per_px
        widest = (_EDGE - _FACE_INNER) * part.half
        if not 2 <= size_in_px <= widest:
            limits = f"{2 * mm_per_px:g} and {widest * mm_per_px:.4g}"
            raise ValueError(f"size_mm must be between {limits} in this image, got {size_mm:g}")
        draw = {"scratch": _scratch, "pit": _pit, "dent": _dent, "rust": _rust, "chipped_edge": _chip}[named]
        scene, mask = draw(part, part.shade(), size_in_px, rng)
    return Sample(
        image_bgr=part.expose(scene),
        defect_mask=mask,
        defect_kind=named,
        defect_size_mm=size_mm,
        seed=seed,
        mm_per_px=mm_per_px,
    )


class _Part:
    """One part under the camera: its pose, its surface, the light on it; images are [H, W(, 3)] float32, linear."""

    def __init__(self, seed: int, size_px: int, mm_per_px: float) -> None:
        if size_px < 64:
            raise ValueError(f"size_px must be at least 64, got {size_px}")
        if not (math.isfinite(mm_per_px) and mm_per_px > 0):
            raise ValueError(f"mm_per_px must be positive, got {mm_per_px}")
        self.seed, self.size, self.half, self.mm_per_px = seed, size_px, size_px / 2, mm_per_px
        rng = np.random.default_rng([seed, 0])
        shift = np.clip(rng.normal(0.0, 0.005, 2), -0.012, 0.012) * self.half
        self.turn = math.radians(float(np.clip(rng.normal(0.0, 0.4), -1.0, 1.0)))
        self.gain = float(np.clip(rng.normal(1.0, 0.03), 0.92, 1.08))
        self.light = math.radians(-125.0 + float(rng.normal(0.0, 1.5)))
        centre = (size_px - 1) / 2
        rows, columns = np.mgrid[:size_px, :size_px].astype(np.float32)
        self.x, self.y = columns - np.float32(centre + shift[0]), rows - np.float32(centre + shift[1])
        self.radius = np.hypot(self.x, self.y)
        self.angle = np.arctan2(self.y, self.x)
        self.lay = self._polar_noise(rng, along=0.35, across=0.5) + 0.7 * self._polar_noise(rng, along=9.0, across=0.6)
        self.streaks = self._polar_noise(rng, along=0.12, across=1.4)
        self.bands = self._polar_noise(rng, along=9.0, across=7.0)
        self.grain = _noise(rng, size_px, 0.8)
        self.mottle = _noise(rng, size_px, size_px / 14)
        self.rubber = _noise(rng, size_px, 1.1) + 0.8 * _noise(rng, size_px, 5.0)
        flecks = np.clip(_noise(rng, size_px, 0.9) - 2.6, 0.0, 1.2)
        self.flecks = flecks * (_noise(rng, size_px, size_px / 20) > -0.4)

    def shade(self, *, without_hole: int | None = None) -> _Image:
        """Return the light that reaches the sensor, [H, W, 3], before optics and noise."""
        half, light = self.half, self.light
        lit = np.cos(self.angle - light)  # +1 where the outward direction points to the lamp.
        edge = self._inside(_EDGE)
        away = np.float32(0.035 * half) * np.array([-math.cos(light), -math.sin(light)])
        shadow = cv2.warpAffine(
            edge, np.array([[1, 0, away[0]], [0, 1, away[1]]]), (self.size, self.size), flags=cv2.INTER_LINEAR
        )
        shadow = cv2.GaussianBlur(shadow, (0, 0), 0.04 * half)
        grey = (0.085 + 0.010 * self.rubber) * (1.0 - 0.75 * shadow)

        face = self._turned(1.0)
        rim = 0.30 + 0.28 * np.clip(lit, -1.0, 1.0) + 0.03 * self.streaks
        hub = self._turned(0.86) + 0.02
        groove = 0.045 - 0.03 * lit + 0.012 * self.streaks
        bore = 0.02 - 0.014 * lit * np.clip(self.radius / (_BORE * half), 0.0, 1.0) ** 3
        for cover, inner in (
            (edge, rim), (self._inside(_EDGE - _CHAMFER), face),
            (self._inside(_FACE_INNER), groove), (self._inside(_HUB), rim), (self._inside(_HUB - 0.012), hub),
            (self._inside(_BORE + 0.016), 0.36 - 0.26 * lit), (self._keyway(), 0.024), (self._inside(_BORE), bore),
        ):  # fmt: skip
            grey = grey + cover * (inner - grey)
        for index in range(_N_HOLES):
            if index != without_hole:
                grey = self._drill(grey, index)
        tint = np.array([1.015, 1.0, 0.985], np.float32)  # White LEDs on iron: a shade cool.
        return (np.maximum(grey, 0.004)[..., None] * tint).astype(np.float32)

    def expose(self, scene: _Image) -> NDArray[np.uint8]:
        """Return what the camera makes of the light: uneven lamp, lens blur, shot noise, line noise, gamma."""
        rng = np.random.default_rng([self.seed, 1])
        along = np.linspace(-1.0, 1.0, self.size, dtype=np.float32)
        lamp = 1.0 + 0.05 * along[None, :] - 0.04 * along[:, None] - 0.10 * along[None, :] ** 2
        columns = 1.0 + 0.004 * rng.standard_normal((1, self.size), np.float32)
        lines = 1.0 + 0.004 * rng.standard_normal((self.size, 1), np.float32)
        light = cv2.GaussianBlur(scene, (0, 0), 0.6) * (lamp * columns * lines * np.float32(self.gain))[..., None]
        noise = rng.standard_normal((self.size, self.size, 1), np.float32) * np.sqrt(0.00012 * light + 0.000004)
        noise = noise + 0.002 * rng.standard_normal(scene.shape, np.float32)
        encoded = np.clip(light + noise, 0.0, 1.0) ** (1 / 2.2)
        image_bgr: NDArray[np.uint8] = np.rint(255 * encoded).astype(np.uint8)
        return image_bgr

    def hole_mask(self, index: int) -> _Mask:
        """Return where bolt hole ``index`` is, its chamfer included."""
        x, y = self._hole_frame(index)
        return np.hypot(x, y) <= _HOLE * self.half

    def spot(self, rng: np.random.Generator, size_px: float) -> tuple[float, float]:
        """Return a place on the face, in part coordinates (px), where something of this size misses rim and holes."""
        between = math.radians(60.0 * int(rng.integers(_N_HOLES)) + 30.0 + float(rng.uniform(-5.0, 5.0))) + self.turn
        room = max(0.0, (_EDGE - _CHAMFER - _FACE_INNER) * self.half / 2 - 0.62 * size_px)
        radius = (_EDGE - _CHAMFER + _FACE_INNER) * self.half / 2 + float(rng.uniform(-room, room))
        return radius * math.cos(between), radius * math.sin(between)

    def _turned(self, brightness: float) -> _Image:
        """Return a turned surface: its grooves mirror a lamp as two opposite fans of light (Kajiya and Kay 1989)."""
        fans = np.zeros_like(self.angle)
        for offset, width, strength in ((0.0, 0.34, 0.30), (1.15, 0.15, 0.17), (-0.75, 0.5, 0.12)):
            across = np.sin(self.angle - self.light - offset + 0.035 * self.bands + 0.02 * self.lay)
            fans = fans + strength * np.exp(-((across / width) ** 2))
        fans = fans * (1.0 + 0.08 * self.streaks)
        marks = 0.045 * self.lay + 0.025 * self.bands + 0.03 * self.grain + 0.03 * self.mottle - 0.10 * self.flecks
        surface: _Image = brightness * (0.22 + fans) * (1.0 + marks)
        return surface

    def _drill(self, grey: _Image, index: int) -> _Image:
        x, y = self._hole_frame(index)
        radius = np.hypot(x, y)
        lit = (x * math.cos(self.light) + y * math.sin(self.light)) / np.maximum(radius, 1.0)
        hole = _HOLE * self.half
        bevel = 0.30 - 0.26 * lit + 0.02 * self.grain
        grey = grey + _cover(radius - hole) * (bevel - grey)
        wall = 0.018 + 0.10 * np.clip(-lit, 0.0, 1.0) * np.clip(radius / hole, 0.0, 1.0) ** 4
        return grey + _cover(radius - 0.80 * hole) * (wall - grey)

    def _hole_frame(self, index: int) -> tuple[_Image, _Image]:
        at = math.radians(60.0 * index) + self.turn
        ring = _BOLT_CIRCLE * self.half
        return self.x - np.float32(ring * math.cos(at)), self.y - np.float32(ring * math.sin(at))

    def _keyway(self) -> _Image:
        along = self.x * math.cos(self.turn) + self.y * math.sin(self.turn)
        across = -self.x * math.sin(self.turn) + self.y * math.cos(self.turn)
        return _cover(np.abs(across) - 0.05 * self.half) * _cover(along - 0.30 * self.half) * _cover(-along)

    def _inside(self, fraction: float) -> _Image:
        return _cover(self.radius - np.float32(fraction * self.half))

    def _polar_noise(self, rng: np.random.Generator, *, along: float, across: float) -> _Image:
        """Return unit noise drawn out along the circles: ``along`` radians of arc, ``across`` px of radius."""
        columns, rows = 256, self.size
        spread = along * columns / (2 * math.pi)
        ring = cv2.GaussianBlur(rng.standard_normal((rows, 1), np.float32), (0, 0), across)
        if along < 2 * math.pi:
            sheet = rng.standard_normal((rows, columns), np.float32)
            wrapped = np.pad(sheet, ((0, 0), (columns // 2, columns // 2)), mode="wrap")
            ring = cv2.GaussianBlur(wrapped, (0, 0), sigmaX=spread, sigmaY=across)[:, columns // 2 : -columns // 2]
        ring = np.broadcast_to(ring, (rows, columns)) / ring.std()
        column = np.mod((self.angle - self.turn) / (2 * math.pi), 1.0).astype(np.float32) * columns
        ring = np.ascontiguousarray(ring, np.float32)
        noise = cv2.remap(ring, column, self.radius, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return noise.astype(np.float32, copy=False)


def _scratch(part: _Part, scene: _Image, size_px: float, rng: np.random.Generator) -> tuple[_Image, _Mask]:
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
    depth = _cover(distance - half_width) * (0.8 + 0.2 * np.cos(math.pi * along / size_px))
    skips = 1.0 - 0.35 * np.clip(part.mottle - 0.3, 0.0, 1.0)
    burr = np.clip(0.15 + 1.1 * across / half_width, 0.0, 1.0)
    target = 0.03 * (1.0 - burr) + np.minimum(0.35 + 1.2 * scene.mean(axis=2), 1.0) * burr
    return _blend(scene, depth * skips, target[..., None], mask), mask


def _pit(part: _Part, scene: _Image, size_px: float, rng: np.random.Generator) -> tuple[_Image, _Mask]:
    """A blow-hole: dark, with a ragged edge whose far wall catches the light."""
    x, y, reach = _blob(part, part.spot(rng, size_px), rng, raggedness=0.22)
    mask = _largest(reach, size_px)
    inside = 1.0 - reach / reach[mask].max()
    lit = (x * math.cos(part.light) + y * math.sin(part.light)) / np.maximum(np.hypot(x, y), 0.5)
    wall = 0.03 + 0.30 * np.clip(-lit, 0.0, 1.0) * np.clip(1.0 - 2.2 * inside, 0.0, 1.0) + 0.012 * part.grain
    return _blend(scene, np.clip(4.0 * inside + 0.35, 0.0, 1.0), wall[..., None], mask), mask


def _dent(part: _Part, scene: _Image, size_px: float, rng: np.random.Generator) -> tuple[_Image, _Mask]:
    """A shallow round hollow: the side away from the lamp shines, the near side is dark, the marks run through it."""
    x0, y0 = part.spot(rng, size_px)
    x, y = (part.x - x0) / (size_px / 2), (part.y - y0) / (size_px / 2)
    squared = x**2 + y**2
    mask = squared <= 1.0
    slope = np.where(mask, 1.0 - squared, 0.0) ** 0.8 * (x * math.cos(part.light) + y * math.sin(part.light))
    shading = np.clip(1.0 - 2.0 * slope - 0.25 * np.where(mask, 1.0 - squared, 0.0), 0.12, 2.2)
    return (scene * shading[..., None]).astype(np.float32), mask


def _rust(part: _Part, scene: _Image, size_px: float, rng: np.random.Generator) -> tuple[_Image, _Mask]:
    """A brown, blotchy stain with a darker heart, through which the turning marks still show."""
    _, _, reach = _blob(part, part.spot(rng, size_px), rng, raggedness=0.30)
    reach = reach * np.exp(0.16 * _noise(rng, part.size, max(size_px / 12, 1.0)) + 0.10 * _noise(rng, part.size, 1.2))
    mask = _largest(reach, size_px)
    inside = 1.0 - reach / reach[mask].max()
    blotches = _noise(rng, part.size, max(size_px / 12, 1.0))
    opacity = np.clip(0.55 + 1.2 * inside + 0.25 * blotches, 0.25, 0.95)
    relief = scene.mean(axis=2, keepdims=True) / 0.35
    depth_of_colour = 1.0 + 0.30 * blotches + 0.14 * part.grain - 0.40 * inside.clip(0.0, 1.0)
    return _blend(scene, opacity, _RUST_BGR * (0.75 + 0.25 * relief) * depth_of_colour[..., None], mask), mask


def _chip(part: _Part, scene: _Image, size_px: float, rng: np.random.Generator) -> tuple[_Image, _Mask]:
    """A bite out of the rim, ``size_px`` wide along the edge: a dark, coarse fracture that falls away outwards."""
    edge = _EDGE * part.half
    at = float(rng.uniform(-math.pi, math.pi))
    half_width, depth = size_px / 2, 0.42 * size_px
    turned = np.mod(part.angle - at + math.pi, 2 * math.pi) - math.pi
    along, inward = edge * turned, edge - part.radius
    taper = np.clip(1.0 - np.abs(along) / half_width, 0.0, 1.0)
    ragged = 0.07 * size_px * _noise(rng, part.size, max(size_px / 10, 1.0)) * taper
    floor = depth * np.sqrt(np.clip(1.0 - (along / half_width) ** 2, 0.0, 1.0)) + ragged - inward
    mask = (floor >= 0) & (inward >= 0) & (np.abs(along) <= half_width)
    facets = _noise(rng, part.size, max(size_px / 16, 0.8))
    fall = np.clip(inward / depth, 0.0, 1.0)
    fracture = 0.03 + 0.08 * fall + (0.035 + 0.05 * fall) * facets + 0.02 * part.grain
    fracture = fracture + np.where(
        floor < 1.3, 0.09 * (1.0 - math.cos(at - part.light)), 0.0
    )  # The broken edge glints.
    return _blend(scene, np.clip(0.6 + floor, 0.0, 1.0), fracture[..., None], mask), mask


def _blob(
    part: _Part, centre: tuple[float, float], rng: np.random.Generator, *, raggedness: float
) -> tuple[_Image, _Image, _Image]:
    """Return x, y from a centre, and a field that grows outwards and whose level lines are ragged closed curves."""
    x, y = part.x - np.float32(centre[0]), part.y - np.float32(centre[1])
    angle = np.arctan2(y, x)
    swell = sum(
        float(rng.normal(0.0, raggedness / k**0.8)) * np.cos(k * angle + float(rng.uniform(0, 2 * math.pi)))
        for k in range(2, 7)
    )
    return x, y, np.hypot(x, y) * np.exp(-swell)


def _largest(reach: _Image, size_px: float) -> _Mask:
    """Return the pixels of lowest ``reach``, as many as a disc of diameter ``size_px`` has."""
    n_pixels = max(1, round(math.pi / 4 * size_px**2))
    mask: _Mask = reach <= np.partition(reach, n_pixels - 1, axis=None)[n_pixels - 1]
    return mask


def _blend(scene: _Image, opacity: NDArray[np.floating], colour: NDArray[np.floating], mask: _Mask) -> _Image:
    weight = np.where(mask, opacity, 0.0)[..., None]
    blended: _Image = scene + weight * (np.maximum(colour, 0.01) - scene)
    return blended.astype(np.float32)


def _cover(distance: _Image) -> _Image:
    """Return how much of a pixel lies inside an outline that is ``distance`` px inwards (negative) or outwards."""
    cover: _Image = np.clip(0.5 - distance, 0.0, 1.0)
    return cover


def _noise(rng: np.random.Generator, size: int, sigma: float) -> _Image:
    """Return [size, size] float32 noise of mean 0 and standard deviation 1, correlated over ``sigma`` px."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), sigma)
    unit: _Image = (noise - noise.mean()) / noise.std()
    return unit
