"""A turned cast-iron flange under a line camera: its pose, its surface, the light on it, and what the camera makes."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]
Mask = NDArray[np.bool_]

# Radii of the part, as fractions of half the image's edge.
EDGE, FACE_INNER, _HUB, _BORE = 0.90, 0.52, 0.47, 0.24
_BOLT_CIRCLE, HOLE, CHAMFER = 0.71, 0.075, 0.018
N_HOLES = 6
MARGIN = 0.035  # How far the annulus reaches beyond the face: more than a part is ever displaced, and the rim with it.


class MachinedPart:
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
        self.grain = unit_noise(rng, size_px, 0.8)
        self.mottle = unit_noise(rng, size_px, size_px / 14)
        self.rubber = unit_noise(rng, size_px, 1.1) + 0.8 * unit_noise(rng, size_px, 5.0)
        flecks = np.clip(unit_noise(rng, size_px, 0.9) - 2.6, 0.0, 1.2)
        self.flecks = flecks * (unit_noise(rng, size_px, size_px / 20) > -0.4)

    def shade(self, *, without_hole: int | None = None) -> Image:
        """Return the light that reaches the sensor, [H, W, 3], before optics and noise."""
        half, light = self.half, self.light
        lit = np.cos(self.angle - light)  # +1 where the outward direction points to the lamp.
        edge = self._inside(EDGE)
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
            (edge, rim), (self._inside(EDGE - CHAMFER), face),
            (self._inside(FACE_INNER), groove), (self._inside(_HUB), rim), (self._inside(_HUB - 0.012), hub),
            (self._inside(_BORE + 0.016), 0.36 - 0.26 * lit), (self._keyway(), 0.024), (self._inside(_BORE), bore),
        ):  # fmt: skip
            grey = grey + cover * (inner - grey)
        for index in range(N_HOLES):
            if index != without_hole:
                grey = self._drill(grey, index)
        tint = np.array([1.015, 1.0, 0.985], np.float32)  # White LEDs on iron: a shade cool.
        return (np.maximum(grey, 0.004)[..., None] * tint).astype(np.float32)

    def expose(self, scene: Image) -> NDArray[np.uint8]:
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

    def hole_mask(self, index: int) -> Mask:
        """Return where bolt hole ``index`` is, its chamfer included."""
        x, y = self._hole_frame(index)
        return np.hypot(x, y) <= HOLE * self.half

    def spot(self, rng: np.random.Generator, size_px: float) -> tuple[float, float]:
        """Return a place on the face, in part coordinates (px), where something of this size misses rim and holes."""
        between = math.radians(60.0 * int(rng.integers(N_HOLES)) + 30.0 + float(rng.uniform(-5.0, 5.0))) + self.turn
        room = max(0.0, (EDGE - CHAMFER - FACE_INNER) * self.half / 2 - 0.62 * size_px)
        radius = (EDGE - CHAMFER + FACE_INNER) * self.half / 2 + float(rng.uniform(-room, room))
        return radius * math.cos(between), radius * math.sin(between)

    def _turned(self, brightness: float) -> Image:
        """Return a turned surface: its grooves mirror a lamp as two opposite fans of light (Kajiya and Kay 1989)."""
        fans = np.zeros_like(self.angle)
        for offset, width, strength in ((0.0, 0.34, 0.30), (1.15, 0.15, 0.17), (-0.75, 0.5, 0.12)):
            across = np.sin(self.angle - self.light - offset + 0.035 * self.bands + 0.02 * self.lay)
            fans = fans + strength * np.exp(-((across / width) ** 2))
        fans = fans * (1.0 + 0.08 * self.streaks)
        marks = 0.045 * self.lay + 0.025 * self.bands + 0.03 * self.grain + 0.03 * self.mottle - 0.10 * self.flecks
        surface: Image = brightness * (0.22 + fans) * (1.0 + marks)
        return surface

    def _drill(self, grey: Image, index: int) -> Image:
        x, y = self._hole_frame(index)
        radius = np.hypot(x, y)
        lit = (x * math.cos(self.light) + y * math.sin(self.light)) / np.maximum(radius, 1.0)
        hole = HOLE * self.half
        bevel = 0.30 - 0.26 * lit + 0.02 * self.grain
        grey = grey + cover_of(radius - hole) * (bevel - grey)
        wall = 0.018 + 0.10 * np.clip(-lit, 0.0, 1.0) * np.clip(radius / hole, 0.0, 1.0) ** 4
        return grey + cover_of(radius - 0.80 * hole) * (wall - grey)

    def _hole_frame(self, index: int) -> tuple[Image, Image]:
        at = math.radians(60.0 * index) + self.turn
        ring = _BOLT_CIRCLE * self.half
        return self.x - np.float32(ring * math.cos(at)), self.y - np.float32(ring * math.sin(at))

    def _keyway(self) -> Image:
        along = self.x * math.cos(self.turn) + self.y * math.sin(self.turn)
        across = -self.x * math.sin(self.turn) + self.y * math.cos(self.turn)
        return cover_of(np.abs(across) - 0.05 * self.half) * cover_of(along - 0.30 * self.half) * cover_of(-along)

    def _inside(self, fraction: float) -> Image:
        return cover_of(self.radius - np.float32(fraction * self.half))

    def _polar_noise(self, rng: np.random.Generator, *, along: float, across: float) -> Image:
        """Return unit noise drawn out along the circles: ``along`` radians of arc, ``across`` px of radius."""
        columns, rows = 256, self.size
        blur_px = along * columns / (2 * math.pi)
        ring = cv2.GaussianBlur(rng.standard_normal((rows, 1), np.float32), (0, 0), across)
        if along < 2 * math.pi:
            sheet = rng.standard_normal((rows, columns), np.float32)
            wrapped = np.pad(sheet, ((0, 0), (columns // 2, columns // 2)), mode="wrap")
            ring = cv2.GaussianBlur(wrapped, (0, 0), sigmaX=blur_px, sigmaY=across)[:, columns // 2 : -columns // 2]
        ring = np.broadcast_to(ring, (rows, columns)) / ring.std()
        column = np.mod((self.angle - self.turn) / (2 * math.pi), 1.0).astype(np.float32) * columns
        ring = np.ascontiguousarray(ring, np.float32)
        noise = cv2.remap(ring, column, self.radius, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return noise.astype(np.float32, copy=False)


def cover_of(distance: Image) -> Image:
    """Return how much of a pixel lies inside an outline that is ``distance`` px inwards (negative) or outwards."""
    cover: Image = np.clip(0.5 - distance, 0.0, 1.0)
    return cover


def unit_noise(rng: np.random.Generator, size: int, sigma: float) -> Image:
    """Return [size, size] float32 noise of mean 0 and standard deviation 1, correlated over ``sigma`` px."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), sigma)
    unit: Image = (noise - noise.mean()) / noise.std()
    return unit
