import numpy as np
import pytest

from toolkit import Selector, SemDeDupSelector
from toolkit.grouping import kmeans


def vectors(n=200, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def selector(features, keep_fraction=None, **options):
    return SemDeDupSelector(features, keep_fraction, progress=False, **options)


def apart_by_hand(x, n_cells, keep, seed=0, first=()):
    """Each image's dissimilarity to the nearest before it in its cell, as the paper's code goes about it."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    groups = kmeans(unit, n_cells, init="k-means++", max_iter=20, seed=seed).groups
    random = np.random.default_rng(seed).permutation(len(x))
    apart = np.full(len(x), np.inf)
    for cell in range(n_cells):
        members = np.flatnonzero(groups == cell)
        mean = unit[members].mean(0)
        near = unit[members] @ mean / np.linalg.norm(mean)
        key = {"far": near, "near": -near, "random": random[members]}[keep]
        ordered = members[np.argsort(key)]
        ordered = [i for i in ordered if i in first] + [i for i in ordered if i not in first]
        for at, i in enumerate(ordered[1:], 1):
            apart[i] = 1 - (unit[ordered[:at]] @ unit[i]).max()
    return apart


@pytest.mark.parametrize("keep", ["far", "near", "random"])
@pytest.mark.parametrize("n_cells", [1, 7, 200])
def test_the_threshold_drops_what_the_slow_twin_drops(keep, n_cells, monkeypatch):
    monkeypatch.setattr("toolkit.selection.semdedup._BLOCK_ELEMENTS", 500)
    x = vectors()
    apart = apart_by_hand(x, n_cells, keep)
    for threshold in (0.0, 0.001, 0.01, 0.3, 2.0):
        selection = selector(x, threshold=threshold, n_cells=n_cells, keep=keep).select()
        np.testing.assert_array_equal(selection.kept, np.flatnonzero(~(apart < threshold)))
    assert set(selection.reasons) <= {"kept", "redundant"}


def test_a_budget_is_the_threshold_that_meets_it_exactly():
    x = vectors()
    apart = apart_by_hand(x, 14, "far")
    selection = selector(x, 0.9).select()
    for count in (200, 180, 150, 100, 14, 3):
        again = selection.with_keep_fraction(count / 200)
        assert set(again.kept) == set(np.argsort(-apart, kind="stable")[:count])
    with_threshold = selector(x, threshold=float(np.sort(apart)[20])).select()
    np.testing.assert_array_equal(selection.kept, with_threshold.kept)
    assert isinstance(selector(x, 0.5), Selector)


def test_of_duplicates_one_stays_by_index():
    x = np.repeat(vectors(20), 3, axis=0)
    selection = selector(x, threshold=1e-12, n_cells=4).select()
    np.testing.assert_array_equal(selection.kept, np.arange(0, 60, 3))
    np.testing.assert_array_equal(selector(x, 1 / 3, n_cells=4).select().kept, np.arange(0, 60, 3))


def test_images_always_kept_come_first_in_their_cells():
    x = vectors()
    selection = selector(x, threshold=0.05, n_cells=5, always_keep=[3, 50], always_remove=[7]).select()
    rest = np.delete(np.arange(200), 7)
    apart = apart_by_hand(x[rest], 5, "far", first=(3, 49))
    kept = rest[~(apart < 0.05) | np.isin(rest, (3, 50))]
    np.testing.assert_array_equal(selection.kept, kept)
    assert selection.reasons[7] == "excluded"


def test_seeds_and_inputs():
    x = vectors()
    before = x.copy()
    x.flags.writeable = False
    one, two, again = (selector(x, 0.6, keep="random", seed=s).select().kept for s in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "`keep_fraction` or `threshold` must be given, exactly one, got"),
        ({"keep_fraction": 0.5, "threshold": 0.1}, "exactly one, got .*0.5.*0.1"),
        ({"keep_fraction": 0.0}, r"`keep_fraction` must be in \(0, 1\], got 0.0"),
        ({"threshold": 2.5}, r"`threshold` must be a dissimilarity in \[0, 2\], got 2.5"),
        ({"threshold": float("nan")}, "`threshold` must be a dissimilarity"),
        ({"threshold": 0.1, "n_cells": 0}, "`n_cells` must be at least 1, got 0"),
        ({"threshold": 0.1, "keep": "best"}, "`keep` must be one of 'far', 'near', 'random', got 'best'"),
        ({"threshold": 0.1}, "`features` must have no zero rows under the cosine"),
    ],
)
def test_errors(options, match):
    x = vectors(20)
    x[4] = 0
    with pytest.raises(ValueError, match=match):
        selector(x, **options).select()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": "a"}, "`threshold` must be a number, got 'a'"),
        ({"threshold": 0.1, "n_cells": 2.5}, "`n_cells` must be a whole number, got 2.5"),
        ({"threshold": 0.1, "n_cells": True}, "`n_cells` must be a whole number, got True"),
    ],
)
def test_wrong_kinds(options, match):
    with pytest.raises(TypeError, match=match):
        selector(vectors(20), **options).select()
