from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from backend import errors
from backend.errors import STATUS_BY_ERROR, InspectionError, Unavailable, status_of


def tree(error: type[InspectionError] = InspectionError) -> Iterator[type[InspectionError]]:
    yield error
    for child in error.__subclasses__():
        yield from tree(child)


ERRORS = [error for error in tree() if error.__module__ == errors.__name__]

# The contract's table, and what clients have been told since: a code never changes.
KNOWN = {
    "internal_error": 500,
    "invalid_input": 422,
    "invalid_id": 422,
    "invalid_scores": 422,
    "shape_outside_image": 422,
    "shape_too_small": 422,
    "bad_request": 400,
    "reserved_recipe_id": 400,
    "undecodable_image": 400,
    "bad_shape": 400,
    "memory_not_found": 400,
    "calibration_missing": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "too_many_guesses": 429,
    "not_found": 404,
    "audit_off": 404,
    "job_cancelled": 409,
    "too_large": 413,
    "conflict": 409,
    "mm_per_px_mismatch": 409,
    "aspect_ratio_mismatch": 409,
    "extractor_mismatch": 409,
    "unavailable": 503,
    "weights_unavailable": 503,
    "queue_full": 503,
    "request_timeout": 503,
    "audit_unavailable": 503,
    "shutting_down": 503,
    "busy": 503,
    "out_of_resources": 503,
    "storage_full": 503,
    "storage_failed": 503,
    "artefact_corrupt": 500,
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_has_a_status_and_a_code_of_its_own(error):
    assert isinstance(status_of(error), HTTPStatus)
    assert 400 <= status_of(error) < 600
    assert "code" in vars(error), "an inherited code would be shared"
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.__doc__


def test_no_two_errors_share_a_code():
    codes = [error.code for error in ERRORS]
    assert len(set(codes)) == len(codes)


def test_codes_and_their_status_are_stable():
    now = {error.code: status_of(error).value for error in ERRORS}
    assert {code: now.get(code) for code in KNOWN} == KNOWN


def test_every_row_of_the_table_is_an_error_of_the_tree():
    assert set(STATUS_BY_ERROR) <= set(ERRORS)


def test_an_error_that_nobody_has_thought_of_gets_the_status_of_its_nearest_ancestor():
    class Another(errors.MmPerPxMismatch, code="another"):
        pass

    assert status_of(Another) == HTTPStatus.CONFLICT
    assert status_of(InspectionError) == HTTPStatus.INTERNAL_SERVER_ERROR


def drawn_tree(text: str) -> dict[str, str | None]:
    """Return each name of the drawing with its parent's."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in text.splitlines():
        match = re.match(r"^((?:│   |    )*)(?:[├└]── )?([A-Z]\w+)(?:\s{2,}\S.*)?$", line)
        if not match or (not parents and match[2] != "InspectionError"):
            continue
        depth = len(match[1]) // 4 + ("── " in line)
        path[depth:] = [match[2]]
        parents[match[2]] = path[depth - 1] if depth else None
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    real = {error.__name__: error.__base__.__name__ if error is not InspectionError else None for error in ERRORS}
    assert drawn_tree(errors.__doc__) == real


def test_an_error_holds_one_sentence_and_details_of_json_types():
    details = {"field": "k", "ge": 1}
    error = errors.InvalidInput("k is 0; it must be at least 1.", details=details)
    details["field"] = "changed later"
    assert (str(error), error.sentence) == ("k is 0; it must be at least 1.",) * 2
    assert json.dumps(error.details) == '{"field": "k", "ge": 1}'
    assert errors.NotFound("gone").details == {}


@pytest.mark.parametrize("error", [error for error in ERRORS if issubclass(error, Unavailable)])
def test_what_may_work_later_says_when_if_it_knows(error):
    assert error.retry_after_s is None or error.retry_after_s >= 1


def test_a_full_queue_and_a_stopping_service_say_when_to_try_again():
    assert errors.QueueFull.retry_after_s == 1
    assert errors.ShuttingDown.retry_after_s == 5
    assert errors.WeightsUnavailable.retry_after_s is None
