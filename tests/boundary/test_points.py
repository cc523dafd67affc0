"""Gaps that may hide crossings, and where scores are equal, against numbers worked out by hand and all done anew."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.boundary import points as module
from toolkit.boundary.points import Points


def path(scores, at=None, pairs=None, *, may_exclude=True):
    scores = np.array(scores)
    at = np.linspace(0, 1, len(scores)) if at is None else np.array(at)
    pairs = np.zeros(len(scores), np.int64) if pairs is None else np.array(pairs)
    return Points(pairs, at, scores, may_exclude=may_exclude)


@pytest.mark.parametrize(
    ("leads", "at", "hiding"),
    [
        ([4, 4, 4, 4], None, []),  # nothing moves
        ([4, 3, 2, 2.5], None, []),
        ([4, 2, 1, 2], None, [1]),  # 2 + 1 <= 2 * 2, the change before it; 4 + 2 > 2 * 2; 1 + 2 > 2 * 1
        ([9, 2, 6, 12], None, [0, 1]),  # 9 + 2 <= 2 * 7; 2 + 6 <= 2 * 7; 6 + 12 > 2 * 6
        ([1, -1, -4, -4], None, [1]),  # a crossing first; 1 + 4 <= 2 * 3; 4 + 4 > 2 * 3
        ([3, 1, 0.3], [0, 0.5, 0.6], [0, 1]),  # 3 + 1 <= 2 * 7 * 0.5; 1 + 0.3 <= 2 * 7 * 0.1
        ([3, 1, 0.9], [0, 0.5, 0.6], [0]),  # 3 + 1 <= 2 * 4 * 0.5; 1 + 0.9 > 2 * 4 * 0.1
        ([1, 1], None, [0]),  # nothing is known beside the only gap
        ([5, -5], None, []),
    ],
)
def test_gaps_between_points_of_one_class(leads, at, hiding):
    points = path([[lead, 0.0] for lead in leads], at)
    assert points.hiding.tolist() == hiding
    assert points.crossed.tolist() == [i for i in range(len(leads) - 1) if leads[i] * leads[i + 1] < 0]
    mirrored = path([[0.0, lead] for lead in leads[::-1]], None if at is None else [1 - a for a in at[::-1]])
    assert [len(leads) - 2 - gap for gap in mirrored.hiding.tolist()][::-1] == hiding
    lines = path([[lead, 0.0] for lead in leads], at, may_exclude=False)
    assert lines.hiding.tolist() == [i for i in range(len(leads) - 1) if leads[i] * leads[i + 1] > 0]


def test_a_path_does_not_look_at_the_next_one():
    alone = path([[5.0, 0], [4.0, 0], [4.0, 0]])
    both = path([[5.0, 0], [4.0, 0], [4.0, 0], [90.0, 0], [-9.0, 0], [-90, 0]], [0, 0.5, 1] * 2, [3, 3, 3, 7, 7, 7])
    assert alone.hiding.tolist() == []
    assert both.hiding.tolist() == [4]  # a gap of the second path: 9 + 90 <= 2 * 99
    assert both.crossed.tolist() == [3]
    assert both.widths(both.crossed).tolist() == [0.5]


@pytest.mark.parametrize("rival", [1, 2])
def test_any_other_class_may_be_the_one_that_catches_up(rival):
    scores = np.zeros((4, 3))
    scores[:, 0], scores[:, 3 - rival] = 10, -5
    scores[:, rival] = 10 - np.array([4, 2, 1, 2])
    assert path(scores).hiding.tolist() == [1]


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_inserting_points_is_the_same_as_all_points_from_the_start(seed, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(seed)
    count = 400
    pairs, at = np.sort(rng.integers(20, size=count)), rng.random(count)
    order = np.lexsort((at, pairs))
    pairs, at = pairs[order], at[order]
    scores = (np.cumsum(rng.normal(size=(count, 4)), axis=0) / 3).astype(np.float32)
    for may_exclude in (True, False):
        everything = Points(pairs, at, scores, may_exclude=may_exclude)
        shown = np.sort(rng.choice(count, 100, replace=False))
        points = Points(pairs[shown], at[shown], scores[shown], may_exclude=may_exclude)
        while len(shown) < count:
            # Of all points that lie in a gap between shown points of their path, one a gap.
            gap = np.searchsorted(shown, np.arange(count)) - 1
            new = np.setdiff1d(np.arange(count), shown)
            inside = [
                i for i in new if 0 <= gap[i] < len(shown) - 1
                and pairs[shown[gap[i]]] == pairs[i] == pairs[shown[gap[i] + 1]]
            ]  # fmt: skip
            if not inside:
                break
            _, first = np.unique(gap[inside], return_index=True)
            chosen = np.array(inside)[first][: rng.integers(1, 30)]
            points.insert(gap[chosen], at[chosen], scores[chosen])
            shown = np.sort(np.concatenate([shown, chosen]))
            fresh = Points(pairs[shown], at[shown], scores[shown], may_exclude=may_exclude)
            for name in ("pairs", "at", "scores", "classes", "crossed", "hiding"):
                np.testing.assert_array_equal(getattr(points, name), getattr(fresh, name), name)
        assert 0 < len(points.hiding) <= len(everything.pairs)
        np.testing.assert_array_equal(points.margins(), fresh.margins())


def test_where_two_classes_are_equal_and_whether_a_third_is_above():
    scores = [[3.0, 0, 0], [-1, 0, 0.5], [-2, 2, -1], [2, 2, -1], [1, 1, 1]]
    points = path(scores, [0.0, 0.4, 0.5, 0.6, 0.8])
    assert points.classes.tolist() == [0, 2, 1, 0, 0]
    positions, third = points.crossings()
    # 3 - 4 s = s / 2 at s = 2/3, at the level 1/3 above class 1; 0.5 - 1.5 s = 2 s; class 0 reaches class 1 at the end.
    np.testing.assert_allclose(positions, [0.4 * 2 / 3, 0.4 + 0.1 / 7, 0.6])
    assert third.tolist() == [False, False, False]
    above = path([[3.0, 0, 1.5], [-1, 0.5, 0]], [0.0, 0.3])
    assert above.crossings()[1].tolist() == [True]
    assert above.crossings()[0] == pytest.approx(0.3 * 3 / 4.5)


def test_classes_alone():
    points = path(np.array([3, 3, 8, 8, 3]), may_exclude=True)
    assert not points.may_exclude
    assert points.crossed.tolist() == [1, 3]
    assert points.hiding.tolist() == [0, 2]
    assert np.isnan(points.margins()).all()
    positions, third = points.crossings()
    assert positions.tolist() == [0.375, 0.875]
    assert not third.any()


def test_equal_scores_belong_to_the_first_class():
    points = path([[1.0, 1.0], [1.0, 2.0]])
    assert points.classes.tolist() == [0, 1]
    assert points.crossings()[0].tolist() == [0.0]
    assert points.margins().tolist() == [0.0, 1.0]
