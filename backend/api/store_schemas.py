"""The requests and answers about what the service keeps: data sets, manifests, recipes, jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.api.fields import (
    Amount,
    Answer,
    Count,
    MemoryFacts,
    MmPerPx,
    ModelBody,
    Ok,
    Reply,
    Score,
    ScoringBody,
    Share,
    Size,
    Stale,
)
from backend.api.infer_schemas import RegionAnswer
from backend.api.schemas import CalibrateAnswer, CalibrationFacts
from backend.artifacts.job_files import State
from backend.artifacts.stored_image import Label


class StateAnswer(Answer):
    """What a ROI has, in short."""

    memory_fitted: bool = Field(description="There is a memory.", examples=[True])
    calib_present: bool = Field(description="There is a calibration of this memory.", examples=[True])
    calibration_stale: Stale


class ClassSummary(BaseModel):
    """How many images a class has."""

    count: Count = Field(description="Stored images.", examples=[30])


class ClassFiles(ClassSummary):
    """The images of a class."""

    files: list[str] = Field(description="File names, sorted.", examples=[["roi-1f3c5e7a9b2d.png"]])
    meta: dict[str, bool] = Field(
        description="By file name: whether metadata came with the image.", examples=[{"roi-1f3c5e7a9b2d.png": True}]
    )
    excluded: list[str] = Field(
        [], description="File names of those that are kept and not learned; of class ok.", examples=[[]]
    )


class FitFacts(MemoryFacts):
    """What a memory was made from, and how."""

    coreset_rate: Share = Field(description="Share asked for.", examples=[0.02])
    image_width: Count = Field(description="px.", examples=[384])
    image_height: Count = Field(description="px.", examples=[384])
    extractor_id: str = Field(
        description="The extractor that the memory belongs to.", examples=["filter-bank|3|384|aspect"]
    )
    k: Count = Field(description="Neighbours that a distance is the mean of.", examples=[1])
    seed: Count = Field(description="Drew the coreset's first centre.", examples=[0])
    shape: dict[str, Any] | None = Field(
        description="The shape that was learned; null: the whole image.", examples=[None]
    )


class ManifestAnswer(Answer):
    """Everything that is known of a ROI."""

    memory: bool = Field(description="There is a memory.", examples=[True])
    calib: CalibrationFacts | None = Field(description="The calibration of this memory.")
    calibration_stale: Stale
    fit: FitFacts | None = Field(description="The facts of the fit.")
    datasets: dict[Label, ClassSummary] = Field(description="The data sets.")


class RecipeModel(BaseModel):
    """One model of a recipe."""

    model_config = ConfigDict(from_attributes=True)

    role_id: str = Field(description="Role.", examples=["Inspection"])
    roi_id: str = Field(description="ROI.", examples=["inspection-1"])
    model_key: str = Field(description="Which model of the ROI.", examples=["inspection-1"])


class RecipeAnswer(BaseModel):
    """One recipe."""

    recipe_id: str = Field(description="Its id.", examples=["default"])
    models: list[RecipeModel] = Field(description="ROIs with a memory or images.")


class RecipesAnswer(Reply):
    """All recipes."""

    status: Ok = "ok"
    recipes: list[RecipeAnswer] = Field(description="`default` first.")


class RecipeCopyBody(BaseModel):
    """Which recipe to copy."""

    model_config = ConfigDict(
        populate_by_name=True, json_schema_extra={"examples": [{"from": "default", "to": "summer"}]}
    )

    source: str = Field(alias="from", min_length=1, max_length=64, description="The old one.", examples=["default"])
    target: str = Field(alias="to", min_length=1, max_length=64, description="The new one.", examples=["summer"])


class RecipeCopyAnswer(Reply, RecipeAnswer):
    """The new recipe."""

    status: Ok = "ok"


class RecipeDeleteAnswer(Reply):
    """The recipe that is gone."""

    status: Ok = "ok"
    recipe_id: str = Field(description="The recipe.", examples=["summer"])
    deleted: Literal[True] = Field(
        True, description="Always true: what cannot be removed is an error.", examples=[True]
    )


class UploadAnswer(Answer):
    """What was stored."""

    saved: list[str] = Field(description="File names, in the order of the upload.", examples=[["roi-1f3c5e7a9b2d.png"]])


class ListAnswer(Answer):
    """The stored images of a ROI."""

    classes: dict[Label, ClassFiles] = Field(description="By class.")


class MetaAnswer(Answer):
    """What is known of one stored image.

    The fields that its uploader sent stand in ``meta`` and, where the name is free, beside it.
    """

    model_config = ConfigDict(extra="allow")

    label: Label = Field(description="Class.", examples=["ok"])
    filename: str = Field(description="As listed.", examples=["roi-1f3c5e7a9b2d.png"])
    mm_per_px: Size | None = Field(description="Its scale, where it was sent.", examples=[0.2])
    part_id: str = Field(description="The part it shows; its digest where none was sent.", examples=["part-17"])
    width: Count = Field(description="px.", examples=[384])
    height: Count = Field(description="px.", examples=[384])
    image_digest: str = Field(description="SHA-256 of the decoded pixels.", examples=["1f3c5e7a9b2d4f61…"])
    meta: dict[str, Any] = Field(description="As uploaded.", examples=[{"mm_per_px": 0.2}])


class ExcludeBody(ModelBody):
    """Which good image to keep out of the fits of the data set."""

    filename: str = Field(min_length=1, max_length=255, description="As listed.", examples=["roi-1f3c5e7a9b2d.png"])
    excluded: bool = Field(True, description="false lets it in again.", examples=[True])


class ExcludeAnswer(Answer):
    """What holds of the image now."""

    filename: str = Field(description="As sent.", examples=["roi-1f3c5e7a9b2d.png"])
    excluded: bool = Field(description="Whether it is kept out.", examples=[True])


class DeleteAnswer(Answer):
    """Whether an image was deleted."""

    deleted: bool = Field(description="False: there was none of that name.", examples=[True])


class ClearAnswer(Answer):
    """How many images were deleted."""

    cleared: Count = Field(description="Images deleted.", examples=[3])


class DatasetBody(ModelBody):
    """The model whose data set is meant."""

    default_mm_per_px: MmPerPx | None = Field(
        None, description="For images whose metadata name none; else the ROI's own.", examples=[0.2]
    )


class CalibrateDatasetBody(DatasetBody, ScoringBody):
    """How to calibrate from a data set."""

    require_ng: bool = Field(False, description="Refuse to calibrate without an ng image.", examples=[False])


class FailedItem(BaseModel):
    """A stored image that could not be inspected."""

    label: Label = Field(description="Class.", examples=["ok"])
    filename: str = Field(description="As listed.", examples=["roi-1f3c5e7a9b2d.png"])
    error: str = Field(description="Why.", examples=["The stored image 'a-1f3c5e7a9b2d.png' is gone. Upload it again."])


class CalibrateDatasetAnswer(CalibrateAnswer):
    """A ROI's threshold from its data set."""

    failed: list[FailedItem] = Field(description="Images that took no part.", examples=[[]])


class InferDatasetBody(DatasetBody):
    """What to inspect."""

    include_heatmap: bool = Field(False, description="Also send the heat maps.", examples=[False])
    labels: list[Label] | None = Field(
        None, max_length=2, fail_fast=True, description="Which classes; both by default.", examples=[["ok", "ng"]]
    )


class DatasetItemAnswer(BaseModel):
    """One stored image, inspected, or the reason why not."""

    label: Label = Field(description="Class.", examples=["ok"])
    filename: str = Field(description="As listed.", examples=["roi-1f3c5e7a9b2d.png"])
    mm_per_px: Size = Field(description="The scale that it was inspected with.", examples=[0.2])
    score: Score | None = Field(None, description="null with an error.", examples=[0.47])
    threshold: Score | None = Field(None, description="null: not calibrated.", examples=[0.56])
    decision: Literal["ok", "ng"] | None = Field(None, description="null: not calibrated.", examples=["ok"])
    reject_reason: Literal["defect", "image"] | None = Field(None, description="As in /infer.", examples=[None])
    scoring: Literal["new", "leave_one_out", "own_image_only"] | None = Field(
        None, description="As in /infer.", examples=["new"]
    )
    regions: list[RegionAnswer] = Field([], description="As in /infer.")
    n_regions: Count = Field(0, description="Number of regions.", examples=[0])
    warnings: list[str] = Field([], description="As in /infer.", examples=[[]])
    heatmap_png_base64: str | None = Field(
        None, description="As in /infer, where asked for.", examples=["iVBORw0KGgo…"]
    )
    error: str | None = Field(description="Why the image could not be inspected.", examples=[None])


class InferDatasetAnswer(Answer):
    """A data set, inspected."""

    n_total: Count = Field(description="Items.", examples=[33])
    n_errors: Count = Field(description="Items with an error.", examples=[0])
    items: list[DatasetItemAnswer] = Field(description="One per stored image; ok first.")


class JobStarted(Reply):
    """A call that goes on in the background."""

    job_id: str = Field(description="Ask GET /jobs/{job_id} for it.", examples=["0f3c5e7a9b2d4f61a8c7e5d3b1f09a8c"])
    kind: str = Field(description="The call.", examples=["fit_ok"])
    state: str = Field(description="`queued`.", examples=["queued"])
    status_url: str = Field(description="Where its progress is.", examples=["/jobs/0f3c…"])


class JobSummary(BaseModel):
    """A call in the background, without its result."""

    job_id: str = Field(description="Its id.", examples=["0f3c5e7a9b2d4f61a8c7e5d3b1f09a8c"])
    kind: str = Field(description="The call.", examples=["fit_ok"])
    state: State = Field(description="`lost`: its process ended before it did.", examples=["running"])
    progress: Share = Field(description="0 … 1.", examples=[0.4])
    eta_s: Amount | None = Field(description="Seconds left at the pace so far.", examples=[4.2])
    created_at: datetime = Field(description="When it was asked for.", examples=["2026-03-14T09:26:53Z"])
    finished_at: datetime | None = Field(description="When it ended; null before that.", examples=[None])
    error: dict[str, Any] | None = Field(description="As in GET /jobs/{job_id}.", examples=[None])


class JobsAnswer(Reply):
    """Calls in the background."""

    jobs: list[JobSummary] = Field(description="The newest first.")


class JobAnswer(Reply):
    """A call in the background."""

    job_id: str = Field(description="Its id.", examples=["0f3c5e7a9b2d4f61a8c7e5d3b1f09a8c"])
    kind: str = Field(description="The call.", examples=["fit_ok"])
    state: State = Field(description="`lost`: its process ended before it did.", examples=["running"])
    progress: Share = Field(description="0 … 1.", examples=[0.4])
    done: Count = Field(description="Steps done.", examples=[12])
    total: Count = Field(description="Steps in all; 0 while unknown.", examples=[30])
    eta_s: Amount | None = Field(description="Seconds left at the pace so far.", examples=[4.2])
    result: dict[str, Any] | None = Field(description="What the call answers, once `done`.", examples=[None])
    error: dict[str, Any] | None = Field(
        description="`error`, `code`, `details`, once `failed`.",
        examples=[{"error": "mm_per_px must be greater than 0.", "code": "invalid_input"}],
    )
