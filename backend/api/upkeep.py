"""Looking after what is stored: how much it is, whether it is sound, and ROIs as archives."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.background import BackgroundTask

from backend.api.dependencies import KeyOfQuery, NowOrLater, ServiceOf, SettingsOf
from backend.api.fields import Amount, Count, Reply
from backend.api.own_threads import on_readers_threads, on_writers_threads
from backend.api.routing import Route
from backend.api.store_schemas import JobStarted
from backend.artifacts.disk_limit import disk_space
from backend.artifacts.files import TEMP_PREFIX, make_folder, scratch_folder, writing
from backend.artifacts.layout import walk
from backend.errors import ArchiveRefused, NotFound, StorageFailed
from backend.maintenance.backup import ArchiveError, back_up
from backend.maintenance.restoring import restore
from backend.maintenance.verifying import Fault, verify_folder
from backend.memory_bank.coreset import Progress
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["upkeep"], route_class=Route)

_ZIP: dict[str, Any] = {"type": "string", "format": "binary", "contentMediaType": "application/zip"}
_COPY_BYTES = 1 << 20
_GB = 1e9


class StorageAnswer(Reply):
    """How much is stored, and how much there is room for; GB are 10⁹ bytes."""

    used_gb: Amount = Field(description="What the models folder holds.", examples=[0.734])
    free_gb: Amount = Field(description="Free on its disk.", examples=[256.1])
    disk_gb: Amount = Field(description="Size of its disk.", examples=[512.2])
    max_gb: Amount | None = Field(
        description="Most that it may hold, BDI_MAX_DISK_GB; null: no limit.", examples=[None]
    )


@router.get("/storage", summary="How much is stored", **INSPECT)
@on_readers_threads
def storage(request: Request, service: ServiceOf, settings: SettingsOf) -> StorageAnswer:
    """Tell how much the models folder holds, as of the last look over it, and how much its disk has room for."""
    service.store.folder.check()
    used_bytes = service.store.disk.used_bytes
    if used_bytes is None:
        used_bytes = sum(entry.n_bytes for entry in walk(settings.models_dir))
    disk = disk_space(settings.models_dir.absolute())
    return StorageAnswer(
        used_gb=used_bytes / _GB,
        free_gb=disk.free / _GB,
        disk_gb=disk.total / _GB,
        max_gb=settings.max_disk_gb or None,
        request_id=request.state.request_id,
    )


class ProblemAnswer(BaseModel):
    """Something wrong with one file."""

    path: str = Field(description="Below the models folder.", examples=["Inspection/inspection-1/calib.json"])
    fault: Fault = Field(description="What is wrong.", examples=["damaged"])
    message: str = Field(description="What it is, and what to do.", examples=["calibrate the ROI again"])


class VerifyAnswer(Reply):
    """What is wrong with what is stored."""

    n_files: Count = Field(description="Files that were read.", examples=[412])
    problems: list[ProblemAnswer] = Field(description="By path; empty when all is well.", examples=[[]])


@router.post(
    "/verify",
    summary="Whether what is stored is sound",
    response_model=VerifyAnswer,
    responses={202: {"model": JobStarted}},
    **ADMIN,
)
@on_writers_threads
def verify(
    request: Request, service: ServiceOf, settings: SettingsOf, now_or_later: NowOrLater
) -> VerifyAnswer | JSONResponse:
    """Read every file and compare it with its digest and with what it belongs to. Changes nothing."""
    request_id = request.state.request_id

    def run(progress: Progress) -> VerifyAnswer:
        n_files = 0

        def noted(done: int, total: int) -> None:
            nonlocal n_files
            n_files = total
            progress(done, total)

        service.store.folder.check()
        try:
            problems = verify_folder(settings.models_dir, progress=noted)
        except OSError as error:
            raise StorageFailed("The models folder cannot be read. The log has the reason.") from error
        found = [ProblemAnswer(path=each.path, fault=each.fault, message=each.message) for each in problems]
        return VerifyAnswer(n_files=n_files, problems=found, request_id=request_id)

    return now_or_later("verify", run)


@router.get(
    "/backup",
    summary="A ROI as an archive",
    response_class=Response,
    responses={200: {"description": "A zip file.", "content": {"application/zip": {"schema": _ZIP}}}},
    **ADMIN,
)
@on_writers_threads
def backup(service: ServiceOf, settings: SettingsOf, key: KeyOfQuery) -> FileResponse:
    """Return a ROI's images, memories and calibrations, of one moment, as `roi-inspector backup` writes them."""
    if not any(walk(settings.models_dir, service.store.roi_folder(key))):
        raise NotFound(f"There is nothing stored of {key.roi}.")
    with writing():
        make_folder(settings.models_dir)
        scratch = TemporaryDirectory(prefix=TEMP_PREFIX, dir=settings.models_dir, ignore_cleanup_errors=True)
    try:
        out = Path(scratch.name) / "roi.zip"
        back_up(settings.models_dir, out, recipe_id=key.recipe_id, role_id=key.role_id, roi_id=key.roi_id)
    except ArchiveError as error:
        scratch.cleanup()
        raise ArchiveRefused(f"Something stored of {key.roi} is damaged. Verify says what and what to do.") from error
    except BaseException:
        scratch.cleanup()
        raise
    name = f"{key.recipe_id}-{key.role_id}-{key.roi_id}-{datetime.now(UTC):%Y%m%d-%H%M}.zip"
    return FileResponse(out, filename=name, media_type="application/zip", background=BackgroundTask(scratch.cleanup))


class RestoredRoi(BaseModel):
    """A ROI that an archive brought."""

    recipe_id: str = Field(description="Its recipe.", examples=["default"])
    role_id: str = Field(description="Its role.", examples=["Inspection"])
    roi_id: str = Field(description="Its id.", examples=["inspection-1"])
    to_do: list[str] = Field(description="What of it has to be made again; mostly nothing.", examples=[[]])


class RestoreAnswer(Reply):
    """What an archive brought."""

    rois: list[RestoredRoi] = Field(description="Its ROIs, now in force.")


@router.post(
    "/restore",
    summary="Bring an archive's ROIs back",
    **ADMIN,
)
@on_writers_threads
def restore_archive(
    request: Request,
    service: ServiceOf,
    settings: SettingsOf,
    archive: Annotated[
        UploadFile, WithJsonSchema(_ZIP), File(description="What GET /backup or `roi-inspector backup` wrote.")
    ],
    replace: Annotated[
        bool, Form(description="Let a ROI take the place of one that is there.", examples=[False])
    ] = False,
) -> RestoreAnswer:
    """Check an archive in every point, then bring its ROIs back; one that is not sound changes nothing."""
    service.store.folder.ensure()
    service.store.disk.check(archive.size or 0)
    with writing(), scratch_folder(settings.models_dir) as scratch:
        path = scratch / "archive.zip"
        with path.open("wb") as copy:
            shutil.copyfileobj(archive.file, copy, _COPY_BYTES)
        try:
            restored = restore(path, settings.models_dir, replace=replace)
        except ArchiveError as error:
            raise ArchiveRefused(str(error).replace("Use --replace", "Send replace=true")) from error
    rois = [
        RestoredRoi(
            recipe_id=key.recipe_id,
            role_id=key.role_id,
            roi_id=key.roi_id,
            to_do=[str(problem) for problem in problems],
        )
        for key, problems in restored.items()
    ]
    return RestoreAnswer(rois=rois, request_id=request.state.request_id)
