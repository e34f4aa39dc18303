"""The progress of a fit: one count, whatever stages it has."""

from backend.services.fit_steps import FitSteps


def test_one_count_grows_over_all_stages_and_ends_at_the_total():
    told = []
    steps = FitSteps(lambda *counts: told.append(counts), 5)
    uploads, stored = steps.extracting(2), steps.extracting(3)
    for done in (0, 1, 2, 2):  # a stage may say twice that it has ended
        uploads(done, 2)
    for done in (1, 3):
        stored(done, 3)
    for done in (1, 50, 100):
        steps.picks(done, 100)
    assert told == [(0, 7), (1, 7), (2, 7), (2, 7), (3, 7), (5, 7), (5, 7), (6, 7), (7, 7)]


def test_nobody_needs_to_listen():
    steps = FitSteps(None, 1)
    steps.extracting(1)(1, 1)
    steps.picks(1, 1)
