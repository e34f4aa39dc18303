"""The fields of requests and answers, with meaning, range and an example, and those that several models share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, UploadFile
from pydantic import BaseModel, Field, PlainSerializer, WithJsonSchema

from backend.artifacts.model_key import MAX_ID_CHARS
from backend.calib import MARGIN_RANGE, ScoreMode
from backend.memory_bank.bank import MemoryBank
from backend.utils import MAX_MM_PER_PX, MIN_MM_PER_PX

# What requests hold; a form or a query says `Annotated[RoleId, Form()]`.
_Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
_OptionalId = Annotated[str | None, Field(max_length=MAX_ID_CHARS)]
RoleId = Annotated[
    _Id,
    Field(description="Role of the camera view; letters of any language, digits, '-', '_'.", examples=["Inspection"]),
]
RoiId = Annotated[
    _Id, Field(description="Region of interest; letters of any language, digits, '-', '_'.", examples=["inspection-1"])
]
ModelKeyId = Annotated[
    _OptionalId,
    Field(description="Which model of the ROI; the roi_id unless said otherwise.", examples=["inspection-1"]),
]
RecipeId = Annotated[
    _OptionalId,
    Field(
        description="Recipe, a-z 0-9 _ -; goes before the header X-Recipe-Id; `default` without either.",
        examples=["default"],
    ),
]
LARGEST_THRESHOLD = 2.0
"""The largest distance, and so the largest score."""
MM_PER_PX_TEXT = (
    "Millimetres per pixel of the image. A ROI's is fixed at its first fit (2 % tolerance); an image of the same "
    "physical size may have another, as with binning."
)
MmPerPx = Annotated[
    float, Field(ge=MIN_MM_PER_PX, le=MAX_MM_PER_PX, allow_inf_nan=False, description=MM_PER_PX_TEXT, examples=[0.2])
]
_Score = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Scores = Annotated[list[_Score], Field(max_length=100_000, fail_fast=True)]
PartId = Annotated[str, Field(max_length=200)]
MAX_SERIAL_CHARS = 200
Serial = Annotated[
    str | None,
    Field(
        max_length=MAX_SERIAL_CHARS,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*$",
        description="Whatever identifies the part, on one line; kept with the decision where BDI_AUDIT=1.",
        examples=["SN-2026-000417"],
    ),
]
OverlayPx = Annotated[
    int | None,
    Field(ge=16, le=8192, description="Longer edge of the overlay at most, px; left out: the image's.", examples=[400]),
]
Trial = Annotated[
    bool,
    Field(
        description="To see what the service says of an image that is no part of the line: no statistics count it. An "
        "audit that is kept names the decision a `trial` and has no image of it.",
        examples=[False],
    ),
]
TriedVersion = Annotated[
    int | None,
    Field(
        ge=1,
        le=999_999_999,
        description="With trial=true: the version to judge by, of those that GET /versions lists; left out: the one in "
        "force.",
        examples=[None],
    ),
]
Reason = Annotated[
    str | None,
    Field(
        max_length=1000,
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$",
        description="Why, in your own words; kept with this version of the ROI and shown by GET /versions.",
        examples=["New lamp since Monday"],
    ),
]
ShapeText = Annotated[
    str | None,
    Field(
        max_length=4096,
        description="JSON text, in pixels of the image: a rect (x, y, w, h or cx, cy, w, h), a circle (cx, cy, r) or "
        "an annulus (cx, cy, r, r_inner). Missing or empty: the whole image.",
        examples=[
            '{"kind":"annulus","cx":192,"cy":192,"r":180,"r_inner":60}',
            '{"kind":"rect","x":10,"y":20,"w":300,"h":200}',
        ],
    ),
]

# Plain arrays and both names for binary data: generators of clients know prefixItems and contentMediaType badly.
_FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".webp": "image/webp",
}
PNG_FILE = {"type": "string", "format": "binary", "contentMediaType": "image/png"}
EdgePx = Annotated[int, Query(ge=16, le=4096, description="Longer edge of the picture at most, px.", examples=[256])]
ImageFile = Annotated[UploadFile, WithJsonSchema(_FILE)]
JsonPart = Annotated[UploadFile | str, WithJsonSchema({"type": "string", "maxLength": 1_000_000})]
_INTEGERS = {"type": "array", "items": {"type": "integer", "format": "int32", "minimum": 0}}
Pair = Annotated[tuple[int, int], WithJsonSchema({**_INTEGERS, "minItems": 2, "maxItems": 2})]
Box = Annotated[tuple[int, int, int, int], WithJsonSchema({**_INTEGERS, "minItems": 4, "maxItems": 4})]

# What answers hold. The ranges are stated, not enforced: an answer is what was measured.
Count = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": 2**31 - 1, "format": "int32"})]
Score = Annotated[float, Field(json_schema_extra={"minimum": 0})]
Share = Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})]
Size = Annotated[float, Field(json_schema_extra={"exclusiveMinimum": 0})]
Amount = Annotated[float, Field(json_schema_extra={"minimum": 0})]
# Written as 99, not 99.0: there are clients that read it as an integer.
Percent = Annotated[
    float,
    PlainSerializer(lambda value: int(value) if value.is_integer() else value),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 100}),
]
Ok = Annotated[Literal["ok"], Field(description="Always `ok`; an error has another body.", examples=["ok"])]
WARNINGS_TEXT = "What the engineer should know; also each field of the request that has no effect."
Stale = Annotated[bool, Field(description="There is a calibration, but of an older memory.", examples=[False])]


class Reply(BaseModel):
    """What every answer carries."""

    request_id: str = Field(description="The header X-Request-Id, or a new id.", examples=["8f0c6d0e6d2e4f0a"])
    warnings: list[str] = Field([], description=WARNINGS_TEXT, examples=[[]])


class ModelReply(Reply):
    """What every answer about a model carries."""

    role_id: str = Field(description="As sent.", examples=["Inspection"])
    roi_id: str = Field(description="As sent.", examples=["inspection-1"])
    model_key: str = Field(description="As sent, or the roi_id.", examples=["inspection-1"])
    recipe_id: str = Field(description="The recipe that was used.", examples=["default"])


class Answer(ModelReply):
    """What every answer about a model carries, but that to an inspection."""

    status: Ok = "ok"


class MemoryFacts(BaseModel):
    """What a memory is."""

    n_ok_total: Count = Field(description="Different images in the memory.", examples=[30])
    n_parts: Count = Field(
        description="Different parts among the images: by `part_id`, and near-identical images count once.",
        examples=[30],
    )
    n_embeddings: Count = Field(description="Patch embeddings of all images.", examples=[21870])
    coreset_size: Count = Field(description="Embeddings that were kept.", examples=[438])
    token_shape: Pair = Field(description="Rows and columns of the patch grid.", examples=[[27, 27]])
    cell_mm: Size = Field(description="Edge of one patch cell, mm.", examples=[2.84])
    mm_per_px: Size = Field(description="The ROI's scale.", examples=[0.2])
    aligned: bool = Field(
        description="Patches are compared by position: the ROI is taken for aligned, and has 8 parts at least.",
        examples=[True],
    )
    alignment: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        description="How well the good parts agree by position: 1 the same everywhere, about 0 not at all. From 0.33 "
        "on `aligned=auto` takes a new ROI for aligned. null for fewer than 8 parts.",
        examples=[0.96],
    )
    n_local_rows: Count = Field(
        description="Patches that are kept with their position, beside the coreset; 0 where the ROI is not aligned.",
        examples=[21870],
    )
    checksum: str = Field(description="SHA-256 of the memory.", examples=["9287c49a9e0d8c57…"])

    @staticmethod
    def fields_of(bank: MemoryBank) -> dict[str, Any]:
        """Return these facts of a memory."""
        return {
            "n_ok_total": len(bank.image_digests),
            "n_parts": bank.n_parts,
            "n_embeddings": bank.n_embeddings,
            "coreset_size": len(bank.vectors),
            "token_shape": bank.placement.grid_hw,
            "cell_mm": bank.placement.cell_mm(bank.mm_per_px),
            "mm_per_px": bank.mm_per_px,
            "aligned": bank.is_local,
            "alignment": bank.alignment,
            "n_local_rows": bank.n_local_rows,
            "checksum": bank.checksum,
        }


class ModelBody(BaseModel):
    """The model that a request is about."""

    role_id: RoleId
    roi_id: RoiId
    model_key: ModelKeyId = None
    recipe_id: RecipeId = None


class ThresholdSettings(BaseModel):
    """What a threshold is made with, in any score mode."""

    area_mm2_thr: float | None = Field(
        None,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="Area that counts, mm²: smaller regions are dropped, and with `area` it makes the score; left out: "
        "as before.",
        examples=[1.0],
    )
    score_percentile: float | None = Field(
        None,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="Percentile of the map that is the score, in the modes `percentile` and `top_mean`; left out: as "
        "before.",
        examples=[99],
    )
    ok_percentile: float | None = Field(
        None,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="Percentile of the OK scores that is the threshold; left out: 99.",
        examples=[99],
    )
    margin: float | None = Field(
        None,
        ge=MARGIN_RANGE[0],
        le=MARGIN_RANGE[1],
        allow_inf_nan=False,
        description="Factor on what the OK scores call for, with NG scores and without; left out: 1. A larger one "
        "never lowers the threshold.",
        examples=[1.0],
    )


class ScoringBody(ThresholdSettings, ModelBody):
    """A model, and how its maps are to become scores and regions."""

    score_mode: ScoreMode | None = Field(
        None,
        description="Statistic of the map that is the score. Left out: as before; a ROI's first calibration without "
        "scores and without `score_percentile` takes `area`, unless a setting says otherwise. Scores that are sent "
        "were measured in the mode in force, and keep it.",
        examples=["area"],
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=LARGEST_THRESHOLD,
        allow_inf_nan=False,
        description="Set by hand, and kept as method `manual`; the scores then only say what it means.",
        examples=[None],
    )
    dry_run: bool = Field(False, description="Say what these settings would do, and store nothing.", examples=[False])
    reason: Reason = None
