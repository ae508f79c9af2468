from __future__ import annotations

import numpy as np
import pytest

from deployments.extension import execute
from fenix.demo import data
from fenix.demo.scans import LocateDigit


def _located(sheets: np.ndarray) -> np.ndarray:
    return execute(LocateDigit(), {"scan": sheets})["image"].values.astype(int)


def test_what_is_located_on_a_scan_is_the_digit_that_was_scanned() -> None:
    images, sheets = data.digits().train.x.astype(int), data.scans().train.x
    located = _located(sheets)
    assert np.abs(located - images).mean() < 1.5  # of 16
    one, another = images[:-1].reshape(-1, 64), images[1:].reshape(-1, 64)
    found = located[:-1].reshape(-1, 64)
    nearer = np.abs(found - one).sum(axis=1) < np.abs(found - another).sum(axis=1)
    assert nearer.mean() > 0.95  # the other may be the same digit


def test_place_and_size_on_the_sheet_hardly_matter() -> None:
    digit = data.digits().train.x[:1]
    several = _located(data.scanned(np.repeat(digit, 50, axis=0), np.random.default_rng(3)))
    assert several.std(axis=0).mean() < 1.5


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_empty_sheet_gives_an_empty_image(grey: int) -> None:
    assert not _located(np.full((2, 32, 32), grey, dtype=np.uint8)).any()


def test_specks_are_no_ink() -> None:
    sheet = np.full((1, 32, 32), 230, dtype=np.uint8)
    sheet[0, 10:22, 14:18] = 60
    clean = _located(sheet)
    sheet[0, 2, 2] = sheet[0, 28, 5] = 40
    assert np.array_equal(_located(sheet), clean)
