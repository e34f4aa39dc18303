"""The exception tree, and the one table from exception to HTTP status.

InspectionError
├── InvalidInput                 a field is missing or out of range
│   ├── InvalidId                a role, ROI or model id that cannot name a folder
│   ├── InvalidScores            scores for a calibration that are empty or not finite
│   ├── ShapeOutsideImage        a shape that covers no pixel of the image
│   └── ShapeTooSmall            a shape that covers less than one patch cell
├── BadRequest                   the request cannot be understood
│   ├── ReservedRecipe           the recipe id ``last``
│   ├── BadImage                 bytes that are no image, or half of one
│   ├── BadShape                 shape JSON that is broken or of unknown kind
│   ├── ArchiveRefused           an archive that cannot be restored, or a ROI that cannot be backed up
│   ├── MemoryNotFound           the ROI was never fitted
│   └── CalibrationMissing       the ROI was never calibrated
├── Unauthorized                 no API key, or one that nobody knows
├── Forbidden                    the API key does not have the role that the call needs
├── TooManyGuesses               too many API keys of one address were wrong
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
│   ├── HistoryUnavailable       the history of decisions cannot be read now
│   ├── ShuttingDown
│   ├── Busy                     another call holds what this one needs
│   ├── OutOfResources           no memory, open files or threads are left
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
    """Base of every error that a caller may see. Each subclass has a ``code`` that clients know and that never changes.

    Args:
        sentence: What went wrong and what to do about it, for a line engineer.
        details: Machine-readable facts, JSON types only.
    """

    code: ClassVar[str] = "internal_error"

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        if code is not None:
            cls.code = code

    def __init__(self, sentence: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.details: dict[str, Any] = dict(details or {})


class InvalidInput(InspectionError, code="invalid_input"):
    """A field is missing or out of range; names the field and the allowed range."""


class InvalidId(InvalidInput, code="invalid_id"):
    """An id that cannot name a folder."""


class InvalidScores(InvalidInput, code="invalid_scores"):
    """Scores for a calibration that are empty or not finite."""


class ShapeOutsideImage(InvalidInput, code="shape_outside_image"):
    """A shape that covers no pixel of the image, or none of the area that was learned."""


class ShapeTooSmall(InvalidInput, code="shape_too_small"):
    """A shape that covers less than one patch cell: as a rule its numbers are no pixels."""


class BadRequest(InspectionError, code="bad_request"):
    """The request cannot be understood."""


class ReservedRecipe(BadRequest, code="reserved_recipe_id"):
    """A recipe id that is malformed or reserved."""


class BadImage(BadRequest, code="undecodable_image"):
    """Bytes that are no image, or half of one."""


class BadShape(BadRequest, code="bad_shape"):
    """Shape JSON that is broken or of unknown kind."""


class ArchiveRefused(BadRequest, code="archive_refused"):
    """An archive that is not sound, or would take the place of a ROI; or a ROI too damaged to be backed up."""


class MemoryNotFound(BadRequest, code="memory_not_found"):
    """The ROI was never fitted. The published client looks for these words in the sentence."""


class CalibrationMissing(BadRequest, code="calibration_missing"):
    """The ROI was never calibrated. The published client looks for these words in the sentence."""


class Unauthorized(InspectionError, code="unauthorized"):
    """No API key, or one that nobody knows."""


class Forbidden(InspectionError, code="forbidden"):
    """The API key does not have the role that the call needs."""


class TooManyGuesses(InspectionError, code="too_many_guesses"):
    """Too many API keys of one address were wrong; this one was not even compared."""

    retry_after_s: ClassVar[int] = 5


class NotFound(InspectionError, code="not_found"):
    """No such stored thing."""


class AuditOff(NotFound, code="audit_off"):
    """No decisions are kept here."""


class JobCancelled(InspectionError, code="job_cancelled"):
    """The job was cancelled by its owner."""


class TooLarge(InspectionError, code="too_large"):
    """Body, image or pixel count over the limit."""


class Conflict(InspectionError, code="conflict"):
    """The call contradicts what the ROI was fitted with."""


class MmPerPxMismatch(Conflict, code="mm_per_px_mismatch"):
    """mm_per_px, and the physical size, differ by more than 2 % from those of the first fit."""


class AspectRatioMismatch(Conflict, code="aspect_ratio_mismatch"):
    """The image has another aspect ratio than the images that were learned."""


class ExtractorMismatch(Conflict, code="extractor_mismatch"):
    """The memory was made by another extractor, whose distances mean something else."""


class Unavailable(InspectionError, code="unavailable"):
    """The service cannot do it now; the same call may work later."""

    retry_after_s: ClassVar[int | None] = None


class WeightsUnavailable(Unavailable, code="weights_unavailable"):
    """The network's weights cannot be had."""


class QueueFull(Unavailable, code="queue_full"):
    """More inspections wait than the queue holds."""

    retry_after_s = 1


class RequestTimeout(Unavailable, code="request_timeout"):
    """The call took longer than ``request_timeout_s``."""


class HistoryUnavailable(Unavailable, code="history_unavailable"):
    """The history of decisions cannot be read now."""


class AuditUnavailable(Unavailable, code="audit_unavailable"):
    """The decision could not be written down; a decision that nobody can look up later is not given."""

    retry_after_s = 5


class ShuttingDown(Unavailable, code="shutting_down"):
    """The service is stopping and takes no new work."""

    retry_after_s = 5


class Busy(Unavailable, code="busy"):
    """Another call holds what this one needs, and does not end soon."""

    retry_after_s = 5


class OutOfResources(Unavailable, code="out_of_resources"):
    """No memory, open files or threads are left for the call."""

    retry_after_s = 5


class StorageFull(Unavailable, code="storage_full"):
    """The disk, or the limit set for the models folder, is full; what was stored before is untouched."""


class StorageFailed(Unavailable, code="storage_failed"):
    """The disk refuses to read or to write; says nothing about whether what is stored is damaged."""


class ArtefactCorrupt(InspectionError, code="artefact_corrupt"):
    """A stored file does not match its digest, or cannot be read."""


class ArtefactOutdated(ArtefactCorrupt, code="artefact_outdated"):
    """A stored file is intact, but of an older format version than this service reads."""


STATUS_BY_ERROR: dict[type[InspectionError], HTTPStatus] = {
    InspectionError: HTTPStatus.INTERNAL_SERVER_ERROR,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    BadRequest: HTTPStatus.BAD_REQUEST,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    TooManyGuesses: HTTPStatus.TOO_MANY_REQUESTS,
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
    return next(STATUS_BY_ERROR[ancestor] for ancestor in error.__mro__ if ancestor in STATUS_BY_ERROR)
