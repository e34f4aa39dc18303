"""The data sets that the service keeps."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from pydantic import JsonValue, TypeAdapter

from backend.api.dependencies import (
    DatasetsOf,
    KeyOfForm,
    KeyOfQuery,
    SettingsOf,
    check_uploads,
    identity,
    model_key_of,
)
from backend.api.field_names import close_name
from backend.api.fields import MEDIA_TYPES, PNG_FILE, EdgePx, ImageFile, JsonPart
from backend.api.own_threads import on_readers_threads, on_writers_threads
from backend.api.routing import Route, refuse_repeated
from backend.api.store_schemas import (
    ClassFiles,
    ClearAnswer,
    DeleteAnswer,
    ExcludeAnswer,
    ExcludeBody,
    ListAnswer,
    MetaAnswer,
    UploadAnswer,
)
from backend.artifacts.stored_image import Label
from backend.errors import BadRequest, TooLarge
from backend.imaging.image_codec import encode_png
from backend.imaging.preview import shrunk
from backend.services.datasets import READ_OF_META, DatasetUpload
from backend.serving.access import ADMIN, INSPECT
from backend.serving.multipart import MAX_PART_BYTES
from backend.utils import canonical_json, json_noting_repeats

router = APIRouter(tags=["datasets"], route_class=Route)

_LOOKED_AT = 200  # entries of metadata whose names are compared
_META = TypeAdapter(dict[str, JsonValue])
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BINARY_TYPES = [*MEDIA_TYPES.values(), "application/octet-stream"]  # the last for generators of clients

LabelOf = Annotated[Label, Query(description="Class of the images.", examples=["ok"])]
FileName = Annotated[
    str, Query(min_length=1, max_length=255, description="As listed.", examples=["a-1f3c5e7a9b2d.png"])
]


async def _keep_images(
    request: Request,
    datasets: DatasetsOf,
    settings: SettingsOf,
    key: KeyOfForm,
    images: Annotated[list[ImageFile], File(min_length=1, description="PNG or JPEG; one or many.")],
    metas: Annotated[
        list[JsonPart],
        File(
            description="JSON objects, one per image, or none at all. mm_per_px is checked; shape and part_id are "
            "used.",
            examples=[['{"mm_per_px":0.2}']],
        ),
    ] = [],  # noqa: B006
) -> Callable[[Label], UploadAnswer]:
    def keep(label: Label) -> UploadAnswer:
        check_uploads(len(images), "metas", len(metas), settings)
        parsed = [_meta(meta) for meta in metas] or [{} for _ in images]
        request.state.ignored += dict.fromkeys(sentence for meta in parsed for sentence in _unread(meta))
        uploads = [
            DatasetUpload(name=image.filename or f"image {n + 1}", data=image.file.read(), meta=meta)
            for n, (image, meta) in enumerate(zip(images, parsed, strict=True))
        ]
        saved = datasets.add(key, label, uploads)
        return UploadAnswer(**identity(request, key), saved=[image.file_name for image in saved])

    return keep


KeepImages = Annotated[Callable[[Label], UploadAnswer], Depends(_keep_images)]


@router.post("/datasets/ok/upload", summary="Keep good images", **ADMIN)
@on_writers_threads
def upload_ok(keep: KeepImages) -> UploadAnswer:
    """Store good images. They are learned by the next `/fit_ok` with `use_dataset=true`."""
    return keep("ok")


@router.post("/datasets/ng/upload", summary="Keep bad images", **ADMIN)
@on_writers_threads
def upload_ng(keep: KeepImages) -> UploadAnswer:
    """Store bad images. They are used by the next `/calibrate_dataset`, and by `/calibrate_ng` without scores."""
    return keep("ng")


@router.get("/datasets/list", summary="The stored images", **INSPECT)
@on_readers_threads
def list_files(request: Request, datasets: DatasetsOf, key: KeyOfQuery) -> ListAnswer:
    """List the files of each class by name."""
    classes = {
        label: ClassFiles(
            count=len(images),
            files=[image.file_name for image in images],
            meta={image.file_name: bool(image.meta) for image in images},
            excluded=[image.file_name for image in images if image.is_excluded],
        )
        for label, images in datasets.list(key).items()
    }
    return ListAnswer(**identity(request, key), classes=classes)


@router.get(
    "/datasets/file",
    summary="One stored image",
    response_class=Response,
    responses={200: {"description": "The bytes as uploaded.", "content": dict.fromkeys(_BINARY_TYPES, _BINARY)}},
    **INSPECT,
)
@on_readers_threads
def get_file(datasets: DatasetsOf, key: KeyOfQuery, label: LabelOf, filename: FileName) -> Response:
    """Return the original bytes."""
    image = datasets.get(key, label, filename)
    return Response(datasets.read(key, image), media_type=MEDIA_TYPES[image.suffix])


@router.get("/datasets/meta", summary="The metadata of one stored image", **INSPECT)
@on_readers_threads
def get_meta(request: Request, datasets: DatasetsOf, key: KeyOfQuery, label: LabelOf, filename: FileName) -> MetaAnswer:
    """Return what was uploaded with the image, and what the service knows of it."""
    image = datasets.get(key, label, filename)
    known = {
        **identity(request, key),
        "label": label,
        "filename": image.file_name,
        "mm_per_px": image.mm_per_px,
        "part_id": image.part_id,
        "width": image.image_hw[1],
        "height": image.image_hw[0],
        "image_digest": image.digest,
        "status": "ok",
        "meta": dict(image.meta),
    }
    return MetaAnswer.model_validate({**image.meta, **known})


@router.get(
    "/datasets/preview",
    summary="One stored image, made smaller",
    response_class=Response,
    responses={200: {"description": "A PNG that every browser shows.", "content": {"image/png": {"schema": PNG_FILE}}}},
    **INSPECT,
)
@on_readers_threads
def get_preview(
    datasets: DatasetsOf, key: KeyOfQuery, label: LabelOf, filename: FileName, edge_px: EdgePx = 256
) -> Response:
    """Return a stored image as PNG, whatever it was sent as, for lists and pages."""
    pixels = datasets.pixels(key, datasets.get(key, label, filename))
    return Response(encode_png(shrunk(pixels, edge_px)), media_type="image/png")


@router.post("/datasets/exclude", summary="Keep a good image out of the fits", **ADMIN)
@on_writers_threads
def exclude(request: Request, datasets: DatasetsOf, body: ExcludeBody) -> ExcludeAnswer:
    """Keep an image that is stored, and neither learn it with `use_dataset=true` nor calibrate with it, or again do.

    A memory that has learned it keeps it until the next such fit. A fit that brings the image itself learns it.
    """
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    image = datasets.exclude(key, body.filename, is_excluded=body.excluded)
    return ExcludeAnswer(**identity(request, key), filename=image.file_name, excluded=image.is_excluded)


@router.delete("/datasets/file", summary="Delete one stored image", **ADMIN)
@on_writers_threads
def delete_file(
    request: Request, datasets: DatasetsOf, key: KeyOfQuery, label: LabelOf, filename: FileName
) -> DeleteAnswer:
    """Delete an image. A memory that has learned it keeps it until the next fit."""
    return DeleteAnswer(**identity(request, key), deleted=datasets.delete(key, label, filename))


@router.delete("/datasets/clear", summary="Delete all stored images of a class", **ADMIN)
@on_writers_threads
def clear(request: Request, datasets: DatasetsOf, key: KeyOfQuery, label: LabelOf) -> ClearAnswer:
    """Delete a class. A memory that has learned its images keeps them until the next fit."""
    return ClearAnswer(**identity(request, key), cleared=datasets.clear(key, label))


def _unread(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each entry that was meant for the service, as its name says, and that it does not read.

    Whatever else a client keeps with an image is its own affair.
    """
    for name in islice(meta, _LOOKED_AT):
        if name not in READ_OF_META and (close := close_name(name, READ_OF_META, contained=True)):
            yield (
                f"The entry {name[:64]!r} of metas (did you mean {close}?) has no effect: it is kept with the image, "
                "and not read."
            )


def _meta(part: UploadFile | str) -> dict[str, Any]:
    data = part if isinstance(part, str) else part.file.read(MAX_PART_BYTES + 1).removeprefix(BOM_UTF8)
    if len(data) > MAX_PART_BYTES:
        raise TooLarge(
            f"A metas part is larger than {MAX_PART_BYTES} bytes. Keep with an image what belongs to it, and no more.",
            details={"field": "metas", "max_bytes": MAX_PART_BYTES},
        )
    try:
        meta = _META.validate_json(data)
        canonical_json(meta)  # refuses a number like 1e999
        refuse_repeated(json_noting_repeats(data)[1])
    except ValueError as error:
        raise BadRequest(
            "A metas part is no JSON object, is nested deeper than 200 levels, or holds a number or a character that "
            "JSON cannot carry. Send one JSON object per image."
        ) from error
    return meta
