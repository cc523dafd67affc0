"""Rates of each kind of pairs, from reports written by hand, and their bounds against other implementations."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from toolkit import RandomSelector, SemanticSelector
from toolkit.boundary import BoundaryReport, PathPairs, summarise
from toolkit.boundary.strata import METRICS, redundancy_limit, table_of, wilson_interval


def report(paths, margins):
    """A report of paths given as ((class, ...), (position, ...))."""
    count = len(paths)
    return BoundaryReport(
        tuple(classes for classes, _ in paths),
        tuple(positions for _, positions in paths),
        tuple((False,) * len(positions) for _, positions in paths),
        np.array(margins, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        1e-3,
        2,
        2 * count,
        np.zeros((count, 2), np.int32),
        np.zeros((count, 2), np.float32),
    )


def pairs(codes, strata):
    count = len(codes)
    return PathPairs(np.arange(count), np.arange(count) + 1, np.array(codes), strata)


PATHS = [((1,), ()), ((1, 2), (0.25,)), ((1, 2, 1), (0.5, 0.75)), ((3,), ()), ((0, 3, 1), (0.125, 0.5))]


def test_rates_and_means_of_each_kind():
    rows = summarise(report(PATHS, [1, 2, 3, 4, 0.5]), pairs([0, 0, 0, 2, 0], ("near", "unseen", "random")))
    assert [row["stratum"] for row in rows] == ["near", "random"]
    near, random = rows
    assert (near["n"], near["crossing_rate"], near["crossings_mean"], near["reentry_rate"]) == (4, 0.75, 1.25, 0.25)
    assert near["first_crossing_mean"] == pytest.approx((0.25 + 0.5 + 0.125) / 3)
    assert near["margin_min_mean"] == pytest.approx(6.5 / 4)
    assert (near["crossing_rate_low"], near["crossing_rate_high"]) == wilson_interval(3, 4)
    assert (random["n"], random["crossing_rate"], random["crossings_mean"]) == (1, 0, 0)
    assert math.isnan(random["first_crossing_mean"])
    assert set(METRICS) < set(near)
    assert all(type(value) in (int, float, str) for row in rows for value in row.values()), "a checkpoint takes them"


def test_classes_alone_have_no_margins():
    [row] = summarise(report(PATHS, [np.nan] * 5), pairs([0] * 5, ("random",)))
    assert math.isnan(row["margin_min_mean"])
    assert table_of([row]).splitlines()[1].endswith("0.292"), "the last column is empty"


def test_a_table_leaves_out_what_is_not_known():
    text = table_of(summarise(report(PATHS[:1], [2.0]), pairs([0], ("random",))))
    head, row = text.splitlines()
    assert head.split()[:2] == ["pairs", "paths"]
    assert row.split() == ["random", "1", "0.0", "%", "(0.0", "to", "79.3)", "0.00", "0.0", "%", "2.00"]


def test_distances_of_feature_maps_are_told_beside():
    distances = np.array([0.1, 0.3, np.nan, 0.7, 0.2])
    kinds = pairs([0, 0, 0, 1, 1], ("redundant", "random"))
    redundant, random = summarise(report(PATHS, [1] * 5), kinds, distances=distances, limit=0.1)
    assert redundant["feature_distance_mean"] == pytest.approx(0.2)
    assert redundant["still_redundant"] == pytest.approx(1 / 3)
    assert random["feature_distance_mean"] == pytest.approx(0.45)
    assert "still_redundant" not in random
    assert "still_redundant" not in summarise(report(PATHS, [1] * 5), kinds, distances=distances)[0]
    nothing = summarise(report(PATHS, [1] * 5), kinds, distances=np.full(5, np.nan))
    assert math.isnan(nothing[0]["feature_distance_mean"])


def test_the_limit_of_redundancy_is_that_of_the_selection():
    vectors = np.random.default_rng(0).normal(size=(30, 3))
    by_budget = SemanticSelector(vectors, 0.7, scope="dataset", progress=False).select()
    assert redundancy_limit(by_budget) == by_budget.distance[by_budget.removed].max()
    by_threshold = SemanticSelector(vectors, threshold=0.125, scope="dataset", progress=False).select()
    assert redundancy_limit(by_threshold) == 0.125
    assert redundancy_limit(SemanticSelector(vectors, 1.0, scope="dataset", progress=False).select()) is None
    assert redundancy_limit(RandomSelector(0.5).select(vectors)) is None
    assert redundancy_limit(None) is None


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 51), (3, 51), (25, 51), (51, 51), (17, 100_000)])
def test_bounds_are_those_of_scipy(successes, count):
    expected = binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson_interval(0, count)[0] == 0.0
    assert wilson_interval(count, count)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: wilson_interval(3, 2), "`successes` must be from 0 to the 2 cases, got 3"),
        (lambda: summarise(report(PATHS, [1] * 5), pairs([0], ("random",))), "`pairs` must be those of the report's 5"),
        (
            lambda: summarise(report(PATHS, [1] * 5), pairs([0] * 5, ("random",)), distances=np.zeros(3)),
            "`distances` must be one for each of the 5 pairs, got '3'",
        ),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
