"""The types of single fields of requests and answers, with meaning, range and an example."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Form, UploadFile
from pydantic import Field, PlainSerializer, WithJsonSchema

from backend.artifacts.model_key import MAX_ID_CHARS
from backend.utils import MAX_MM_PER_PX, MIN_MM_PER_PX

ROLE_TEXT = "Role of the camera view; letters of any language, digits, '-', '_'."
ROI_TEXT = "Region of interest; letters of any language, digits, '-', '_'."
KEY_TEXT = "Which model of the ROI; the roi_id unless said otherwise."
RECIPE_TEXT = "Recipe, a-z 0-9 _ -; goes before the header X-Recipe-Id; `default` without either."
MM_PER_PX_TEXT = "Millimetres per pixel of the image; fixed at the first fit of a ROI (1 % tolerance)."
_SHAPE = (
    "JSON text, in pixels of the image: a rect (x, y, w, h or cx, cy, w, h), a circle (cx, cy, r) or an annulus "
    "(cx, cy, r, r_inner). Missing or empty: the whole image."
)
SHAPE_EXAMPLES = [
    '{"kind":"annulus","cx":192,"cy":192,"r":180,"r_inner":60}',
    '{"kind":"rect","x":10,"y":20,"w":300,"h":200}',
]
MAX_SCORE = 1e6

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
RoleId = Annotated[Id, Field(description=ROLE_TEXT, examples=["Inspection"])]
RoiId = Annotated[Id, Field(description=ROI_TEXT, examples=["inspection-1"])]
ModelKeyId = Annotated[str | None, Field(max_length=MAX_ID_CHARS, description=KEY_TEXT, examples=["inspection-1"])]
RecipeId = Annotated[str | None, Field(max_length=MAX_ID_CHARS, description=RECIPE_TEXT, examples=["default"])]
MmPerPx = Annotated[
    float, Field(ge=MIN_MM_PER_PX, le=MAX_MM_PER_PX, allow_inf_nan=False, description=MM_PER_PX_TEXT, examples=[0.2])
]
AreaMm2 = Annotated[
    float,
    Field(ge=0, le=1e6, allow_inf_nan=False, description="Smaller regions are dropped, mm².", examples=[1.0]),
]
Percentile = Annotated[
    float,
    Field(gt=0, le=100, allow_inf_nan=False, description="Percentile of the map that is the score.", examples=[99]),
]
Scores = Annotated[list[Annotated[float, Field(ge=0, le=MAX_SCORE, allow_inf_nan=False)]], Field(max_length=100_000)]

RoleIdForm = Annotated[str, Form(min_length=1, max_length=MAX_ID_CHARS, description=ROLE_TEXT, examples=["Inspection"])]
RoiIdForm = Annotated[str, Form(min_length=1, max_length=MAX_ID_CHARS, description=ROI_TEXT, examples=["inspection-1"])]
ModelKeyForm = Annotated[str | None, Form(max_length=MAX_ID_CHARS, description=KEY_TEXT, examples=["inspection-1"])]
RecipeIdForm = Annotated[str | None, Form(max_length=MAX_ID_CHARS, description=RECIPE_TEXT, examples=["default"])]
MmPerPxForm = Annotated[
    float, Form(ge=MIN_MM_PER_PX, le=MAX_MM_PER_PX, allow_inf_nan=False, description=MM_PER_PX_TEXT, examples=[0.2])
]
PartId = Annotated[str, Field(max_length=200)]
ShapeForm = Annotated[str | None, Form(max_length=4096, description=_SHAPE, examples=SHAPE_EXAMPLES)]

# Plain arrays and both names for binary data: generators of clients know prefixItems and contentMediaType badly.
_FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
ImageFile = Annotated[UploadFile, WithJsonSchema(_FILE)]
JsonPart = Annotated[UploadFile | str, WithJsonSchema({"type": "string", "maxLength": 1_000_000})]
_INTEGERS = {"type": "array", "items": {"type": "integer", "format": "int32", "minimum": 0}}
Pair = Annotated[tuple[int, int], WithJsonSchema({**_INTEGERS, "minItems": 2, "maxItems": 2})]
Box = Annotated[tuple[int, int, int, int], WithJsonSchema({**_INTEGERS, "minItems": 4, "maxItems": 4})]

# What answers hold. The ranges are told, not enforced: an answer is what was measured.
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
