"""The progress of a fit: one count, whatever stages it has."""

from backend.services.fit_request import FitProgress


def test_one_count_grows_over_all_stages_and_ends_at_the_total():
    reported = []
    progress = FitProgress(lambda *counts: reported.append(counts), 5)
    for _ in range(6):  # an image that is counted twice does not count as coreset
        progress.image_done()
    for done in (1, 50, 100):
        progress.picks(done, 100)
    assert reported == [(1, 7), (2, 7), (3, 7), (4, 7), (5, 7), (5, 7), (5, 7), (6, 7), (7, 7)]


def test_nobody_needs_to_listen():
    progress = FitProgress(None, 1)
    progress.image_done()
    progress.picks(1, 1)
