"""The exception tree, and the one table from exception to HTTP status.

InspectionError
├── InvalidInput                 a field is missing or out of range
│   ├── InvalidId                a role, ROI or model id that cannot name a folder
│   ├── InvalidScores            scores for a calibration that are empty or not finite
│   └── ShapeOutsideImage        a shape that covers no pixel of the image
├── BadRequest                   the request cannot be understood
│   ├── ReservedRecipe           the recipe id ``last``
│   ├── BadImage                 bytes that are no image, or half of one
│   ├── BadShape                 shape JSON that is broken or of unknown kind
│   ├── MemoryNotFound           the ROI was never fitted
│   └── CalibrationMissing       the ROI was never calibrated
├── Unauthorized                 no API key, or one that nobody knows
├── Forbidden                    the API key does not have the role that the call needs
├── NotFound                     no such stored thing
│   └── AuditOff                 no decisions are kept
├── JobCancelled                 the job was cancelled by its owner
├── TooLarge                     body, image or pixel count over the limit
├── Conflict                     the call contradicts what the ROI was fitted with
│   ├── MmPerPxMismatch
│   ├── AspectRatioMismatch
│   └── ExtractorMismatch
├── Unavailable                  the service cannot do it now
│   ├── WeightsUnavailable
│   ├── QueueFull
│   ├── RequestTimeout           it took longer than a request may
│   ├── AuditUnavailable         the decision could not be written down, so it is not given
│   ├── ShuttingDown
│   ├── StorageFull              the disk, or the limit set for the models folder, is full
│   └── StorageFailed            the disk refuses to read or to write
└── ArtefactCorrupt              a stored file does not match its digest
    └── ArtefactOutdated         a stored file of an older version of this service

Each error carries one sentence that a line engineer can act on. It never holds a path or a stack trace: it is shown to
whoever called.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar


class InspectionError(Exception):
    """Base of every error that a caller may see.

    Args:
        sentence: What went wrong and what to do about it, for a line engineer.
        details: Machine-readable facts, JSON types only.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, sentence: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.details: dict[str, Any] = dict(details or {})


class InvalidInput(InspectionError):
    """A field is missing or out of range; names the field and the allowed range."""

    code = "invalid_input"


class InvalidId(InvalidInput):
    """An id that cannot name a folder."""

    code = "invalid_id"


class InvalidScores(InvalidInput):
    """Scores for a calibration that are empty or not finite."""

    code = "invalid_scores"


class ShapeOutsideImage(InvalidInput):
    """A shape that covers no pixel of the image, or none of the area that was learned."""

    code = "shape_outside_image"


class BadRequest(InspectionError):
    """The request cannot be understood."""

    code = "bad_request"


class ReservedRecipe(BadRequest):
    """A recipe id that is malformed or reserved."""

    code = "reserved_recipe_id"


class BadImage(BadRequest):
    """Bytes that are no image, or half of one."""

    code = "undecodable_image"


class BadShape(BadRequest):
    """Shape JSON that is broken or of unknown kind."""

    code = "bad_shape"


class MemoryNotFound(BadRequest):
    """The ROI was never fitted. The published client looks for these words in the sentence."""

    code = "memory_not_found"


class CalibrationMissing(BadRequest):
    """The ROI was never calibrated. The published client looks for these words in the sentence."""

    code = "calibration_missing"


class Unauthorized(InspectionError):
    """No API key, or one that nobody knows."""

    code = "unauthorized"


class Forbidden(InspectionError):
    """The API key does not have the role that the call needs."""

    code = "forbidden"


class NotFound(InspectionError):
    """No such stored thing."""

    code = "not_found"


class AuditOff(NotFound):
    """No decisions are kept here."""

    code = "audit_off"


class JobCancelled(InspectionError):
    """The job was cancelled by its owner."""

    code = "job_cancelled"


class TooLarge(InspectionError):
    """Body, image or pixel count over the limit."""

    code = "too_large"


class Conflict(InspectionError):
    """The call contradicts what the ROI was fitted with."""

    code = "conflict"


class MmPerPxMismatch(Conflict):
    """mm_per_px differs by more than 1 % from that of the first fit."""

    code = "mm_per_px_mismatch"


class AspectRatioMismatch(Conflict):
    """The image has another aspect ratio than the images that were learned."""

    code = "aspect_ratio_mismatch"


class ExtractorMismatch(Conflict):
    """The memory was made by another extractor, whose distances mean something else."""

    code = "extractor_mismatch"


class Unavailable(InspectionError):
    """The service cannot do it now; the same call may work later."""

    code = "unavailable"
    retry_after_s: ClassVar[int | None] = None


class WeightsUnavailable(Unavailable):
    """The network's weights cannot be had."""

    code = "weights_unavailable"


class QueueFull(Unavailable):
    """More inspections wait than the queue holds."""

    code = "queue_full"
    retry_after_s = 1


class RequestTimeout(Unavailable):
    """The call took longer than ``request_timeout_s``."""

    code = "request_timeout"


class AuditUnavailable(Unavailable):
    """The decision could not be written down; a decision that nobody can look up later is not given."""

    code = "audit_unavailable"
    retry_after_s = 5


class ShuttingDown(Unavailable):
    """The service is stopping and takes no new work."""

    code = "shutting_down"
    retry_after_s = 5


class StorageFull(Unavailable):
    """The disk, or the limit set for the models folder, is full; what was stored before is untouched."""

    code = "storage_full"


class StorageFailed(Unavailable):
    """The disk refuses to read or to write; says nothing about whether what is stored is damaged."""

    code = "storage_failed"


class ArtefactCorrupt(InspectionError):
    """A stored file does not match its digest, or cannot be read."""

    code = "artefact_corrupt"


class ArtefactOutdated(ArtefactCorrupt):
    """A stored file is intact, but of an older format version than this service reads."""

    code = "artefact_outdated"


STATUS_BY_ERROR: dict[type[InspectionError], HTTPStatus] = {
    InspectionError: HTTPStatus.INTERNAL_SERVER_ERROR,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    BadRequest: HTTPStatus.BAD_REQUEST,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    JobCancelled: HTTPStatus.CONFLICT,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Conflict: HTTPStatus.CONFLICT,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    ArtefactCorrupt: HTTPStatus.INTERNAL_SERVER_ERROR,
    ArtefactOutdated: HTTPStatus.CONFLICT,  # nothing is broken: the ROI was fitted for another version
}
"""One row per branch of the tree; a leaf has the status of its nearest ancestor here."""


def status_of(error: type[InspectionError]) -> HTTPStatus:
    """Return the HTTP status of an error class: its own row in the table, or its nearest ancestor's."""
    for ancestor in error.__mro__:
        if ancestor in STATUS_BY_ERROR:
            return STATUS_BY_ERROR[ancestor]
    raise KeyError(error)
