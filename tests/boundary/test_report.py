"""What a report derives from its paths, its rows, and reports put together or cut apart."""

from __future__ import annotations

import csv
import io
import sys

import numpy as np
import pytest
import torch
from boundary_models import ends, same, wavy

from toolkit.boundary import BoundaryReport, probe_paths


def made_up(**changes):
    fields = {
        "classes": ((3,), (1, 2, 1), (0, 5), (4, 4 + 1, 7, 5)),
        "positions": ((), (0.25, 0.75), (0.125,), (0.1, 0.2, 0.9)),
        "third_class": ((), (False, True), (False,), (False, False, False)),
        "margin_min": np.array([2.5, 0.125, 0, 0.5], np.float32),
        "margin_min_position": np.array([0, 0.25, 0.125, 0.5], np.float32),
        "resolution": np.array([0, 0.0625, 0, 0.25], np.float32),
        "tolerance": 0.01,
        "num_points": 3,
        "n_evaluations": 40,
        "grid_classes": np.array([[3, 3, 3], [1, 2, 1], [0, 5, 5], [4, 7, 5]], np.int32),
        "grid_margins": np.arange(12, dtype=np.float32).reshape(4, 3),
    }
    return BoundaryReport(**(fields | changes))


def test_derived_values():
    report = made_up()
    assert len(report) == 4
    assert report.num_crossings.tolist() == [0, 2, 1, 3]
    assert report.num_crossings.dtype == np.int64
    assert report.reenters.tolist() == [False, True, False, True]
    assert report.reenters.dtype == np.bool_
    np.testing.assert_array_equal(report.first_crossing, [np.nan, 0.25, 0.125, 0.1])
    assert report.first_crossing.dtype == np.float64
    assert repr(report) == (
        "BoundaryReport(4 paths, 3 with a crossing, 2 that come back to a class, 40 images evaluated)"
    )


def test_rows_are_plain_values_as_csv_takes_them():
    rows = made_up().rows()
    assert rows[1] == {
        "pair": 1, "num_crossings": 2, "reenters": True, "first_crossing": 0.25, "classes": "1 2 1",
        "positions": "0.25 0.75", "third_class": "0 1", "margin_min": 0.125, "margin_min_position": 0.25,
        "resolution": 0.0625,
    }  # fmt: skip
    assert (rows[0]["first_crossing"], rows[0]["positions"], rows[0]["classes"]) == (None, "", "3")
    assert {type(value) for row in rows for value in row.values()} == {int, bool, float, str, type(None)}
    without_scores = made_up(margin_min=np.full(4, np.nan, np.float32)).rows()
    assert without_scores[1]["margin_min"] is None
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    assert [row["positions"] for row in csv.DictReader(io.StringIO(file.getvalue()))] == [r["positions"] for r in rows]


def test_positions_in_rows_keep_seven_digits():
    report = made_up(positions=((), (0.123456789, 0.75), (1e-9,), (0.1, 0.2, 1 / 3)))
    assert [row["positions"] for row in report.rows()] == ["", "0.1234568 0.75", "1e-09", "0.1 0.2 0.3333333"]


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    frame = made_up().to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(made_up().rows()[0])
    assert frame["num_crossings"].tolist() == [0, 2, 1, 3]
    assert frame["positions"][3] == (0.1, 0.2, 0.9)
    assert frame["first_crossing"].isna().tolist() == [True, False, False, False]
    assert len(made_up().subset([]).to_frame().columns) == len(frame.columns)


def test_pandas_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"BoundaryReport.to_frame needs pandas: pip install pandas. `rows` does not"):
        made_up().to_frame()


@pytest.mark.parametrize(
    ("indices", "chosen"),
    [
        ([2, 0], [2, 0]),
        (np.array([-1]), [3]),
        ([False, True, True, False], [1, 2]),
        (torch.tensor([1, 1]), [1, 1]),
        ([], []),
        ([False] * 4, []),
    ],
)
def test_a_subset(indices, chosen):
    report = made_up()
    part = report.subset(indices)
    assert part.classes == tuple(report.classes[i] for i in chosen)
    assert part.positions == tuple(report.positions[i] for i in chosen)
    assert part.third_class == tuple(report.third_class[i] for i in chosen)
    for name in ("margin_min", "margin_min_position", "resolution", "grid_classes", "grid_margins"):
        np.testing.assert_array_equal(getattr(part, name), getattr(report, name)[np.array(chosen, int)])
        assert getattr(part, name).dtype == getattr(report, name).dtype
    assert (part.tolerance, part.num_points, part.n_evaluations) == (0.01, 3, 40)


def test_concatenating_what_was_cut_gives_the_whole():
    report = made_up()
    parts = [report.subset([0]), report.subset([]), report.subset([1, 2, 3])]
    same(BoundaryReport.concatenate(parts), report)
    model, (start, end) = wavy(), ends(30)
    whole = probe_paths(model, start, end, 9)
    shares = [probe_paths(model, start[cut], end[cut], 9) for cut in (slice(0, 10), slice(10, 30))]
    together = BoundaryReport.concatenate(shares)
    same(together, whole)
    assert together.n_evaluations == whole.n_evaluations


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (
            lambda: made_up().subset([True, False]),
            ValueError,
            "`indices` must be a list .* or a mask of 4, got",
        ),
        (lambda: made_up().subset([0.5]), ValueError, r"`indices` must be .* got 'float64 of shape \(1,\)'"),
        (lambda: made_up().subset([[0]]), ValueError, r"`indices` must be .* of shape \(1, 1\)"),
        (lambda: made_up().subset([4]), IndexError, "4 is out of bounds"),
        (lambda: BoundaryReport.concatenate([]), ValueError, "`reports` must be at least one report, got 'none'"),
        (
            lambda: BoundaryReport.concatenate([made_up(), made_up(tolerance=0.1)]),
            ValueError,
            r"`reports` must be of one tolerance and number of points, got \[\(0.01, 3\), \(0.1, 3\)\]",
        ),
        (lambda: BoundaryReport.concatenate([made_up(), made_up(num_points=5)]), ValueError, r"\(0.01, 5\)\]"),
    ],
)
def test_bad_input(work, error, message):
    with pytest.raises(error, match=message):
        work()
