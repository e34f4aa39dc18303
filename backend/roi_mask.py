"""The area of a ROI that counts: Rect, Circle or Annulus in image pixels, and its mask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadShape, InvalidInput, ShapeOutsideImage, ShapeTooSmall
from backend.utils import json_noting_repeats


@dataclass(frozen=True, kw_only=True)
class Rect:
    """An upright rectangle; (x, y) is its top-left corner, px."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, kw_only=True)
class Circle:
    """A disc around (cx, cy), px."""

    cx: float
    cy: float
    r: float


@dataclass(frozen=True, kw_only=True)
class Annulus(Circle):
    """A ring around (cx, cy) between ``r_inner`` and ``r``, px."""

    r_inner: float


Shape = Rect | Circle

_EXAMPLE = '{"kind":"circle","cx":192,"cy":192,"r":180}'


def parse_shape(text: str | None) -> Shape | None:
    """Return the shape that a JSON text describes, or None for the whole image.

    Args:
        text: ``{"kind":"rect","x":..,"y":..,"w":..,"h":..}``, the same with ``cx``, ``cy`` for the centre,
            ``{"kind":"circle","cx":..,"cy":..,"r":..}`` or ``{"kind":"annulus","cx":..,"cy":..,"r":..,"r_inner":..}``;
            None, an empty text or ``null`` means the whole image.

    Raises:
        BadShape: If the text is no JSON object, of unknown kind, or a number is missing or not finite.
        InvalidInput: If a size is not positive or the ring is inside out.
    """
    if text is None or not text.strip():
        return None
    try:
        fields, repeated = json_noting_repeats(text)
    except (ValueError, RecursionError) as error:
        raise BadShape(f"The field shape is not valid JSON. Send for example {_EXAMPLE}.") from error
    if repeated:
        raise InvalidInput(
            f"shape.{repeated[0][:64]} comes more than once. Send it once.",
            details={"field": f"shape.{repeated[0][:64]}"},
        )
    return None if fields is None else shape_from_fields(fields)


def unread_entries(text: str | None) -> list[str]:
    """Return the names in the JSON text of a shape that ``parse_shape`` takes and does not look at."""
    fields = json.loads(text.removeprefix("\ufeff")) if text and text.strip() else None
    if fields is None:
        return []
    read = set(shape_fields(shape_from_fields(fields)))
    if fields["kind"] == "rect" and ("cx" in fields or "cy" in fields):
        read = read - {"x", "y"} | {"cx", "cy"}
    return sorted(set(fields) - read)


def shape_from_fields(fields: object) -> Shape:
    """Return the shape that a decoded JSON object describes; see ``parse_shape``."""
    if not isinstance(fields, Mapping):
        raise BadShape(f"The field shape must be a JSON object, for example {_EXAMPLE}.")
    kind = fields.get("kind")
    if kind == "rect":
        w, h = _positive(fields, "w"), _positive(fields, "h")
        if "cx" in fields or "cy" in fields:
            return Rect(x=_number(fields, "cx") - w / 2, y=_number(fields, "cy") - h / 2, w=w, h=h)
        return Rect(x=_number(fields, "x"), y=_number(fields, "y"), w=w, h=h)
    if kind not in ("circle", "annulus"):
        raise BadShape(f"shape.kind must be rect, circle or annulus, got {str(kind)[:40]!r}.")
    cx, cy, r = _number(fields, "cx"), _number(fields, "cy"), _positive(fields, "r")
    if kind == "circle":
        return Circle(cx=cx, cy=cy, r=r)
    r_inner = _number(fields, "r_inner")
    if not 0 <= r_inner < r:
        raise InvalidInput(
            f"shape.r_inner is {r_inner:g}; it must be at least 0 and smaller than r = {r:g}.",
            details={"field": "shape.r_inner", "ge": 0, "lt": r},
        )
    return Annulus(cx=cx, cy=cy, r=r, r_inner=r_inner)


def shape_fields(shape: Shape) -> dict[str, Any]:
    """Return the JSON object of a shape; ``shape_from_fields`` reads it back."""
    return {"kind": type(shape).__name__.lower(), **asdict(shape)}


def scale_shape(shape: Shape, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Shape:
    """Return a shape given in pixels of one image size in pixels of another of the same aspect ratio."""
    sy, sx = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    scaled = {name: value * (sy if name in ("y", "cy", "h") else sx) for name, value in asdict(shape).items()}
    return replace(shape, **scaled)


def shape_mask(shape: Shape | None, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centre lies in a shape. Pixel (x, y) has its centre at (x, y): annulus cx=2 is column 2.

    A rectangle covers the pixels x ≤ column < x + w, as a crop of w columns would.

    Args:
        shape: The shape, or None for the whole image.
        image_hw: Height and width of the image, px.

    Returns:
        [H, W] bool with at least one True.

    Raises:
        ShapeOutsideImage: If no pixel of the image lies in the shape.
    """
    if shape is None:
        return np.ones(image_hw, dtype=np.bool_)
    height, width = image_hw
    ys, xs = np.arange(height)[:, None], np.arange(width)[None, :]
    if isinstance(shape, Rect):
        inside = (xs >= shape.x) & (xs < shape.x + shape.w) & (ys >= shape.y) & (ys < shape.y + shape.h)
    else:
        squared_distance = (xs - shape.cx) ** 2 + (ys - shape.cy) ** 2
        inside = squared_distance <= shape.r**2
        if isinstance(shape, Annulus):
            inside &= squared_distance >= shape.r_inner**2
    if not inside.any():
        raise ShapeOutsideImage(
            f"The shape covers no pixel of the {width}×{height} px image. Give it in pixels of the uploaded image, not "
            "in shares of its width and height.",
            details={"field": "shape", "shape": shape_fields(shape), "image_width": width, "image_height": height},
        )
    return inside


def check_covers_cell(shape: Shape, mask: NDArray[np.bool_], grid_hw: tuple[int, int]) -> None:
    """Raise ShapeTooSmall if a shape covers less than one patch cell, or lies in 0 … 1, as no shape in pixels does.

    Args:
        shape: In pixels of the image.
        mask: [H, W] bool, the pixels of the image that it covers.
        grid_hw: Rows and columns of the patch grid.
    """
    (height, width), (rows, columns) = mask.shape, grid_hw
    n_pixels, cell_px = int(np.count_nonzero(mask)), height * width / (rows * columns)
    if n_pixels >= cell_px and not all(0 <= value <= 1 for value in asdict(shape).values()):
        return
    raise ShapeTooSmall(
        f"The shape covers {n_pixels} px of the {width}×{height} px image, less than one patch cell ({cell_px:.4g}). "
        "Its coordinates are pixels of the uploaded image, not shares of its width and height in 0 … 1: send a larger "
        "shape, or none for the whole image.",
        details={"field": "shape", "shape": shape_fields(shape), "covered_px": n_pixels, "cell_px": cell_px},
    )


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 <= value <= 1e6:
        raise BadShape(f"shape.{name} must be a number of pixels, for example {_EXAMPLE}.")
    return float(value)


def _positive(fields: Mapping[str, Any], name: str) -> float:
    value = _number(fields, name)
    if value <= 0:
        raise InvalidInput(f"shape.{name} is {value:g}; it must be greater than 0.", details={"field": f"shape.{name}"})
    return value
