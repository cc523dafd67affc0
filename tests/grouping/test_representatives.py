"""Representatives against a slow twin that starts from scratch at every cut."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from toolkit.grouping import (
    LINKAGES,
    METRICS,
    RULES,
    MergeTree,
    find_representatives,
    merge_tree,
    nearest_to_centre,
)


def vectors(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(5, d))
    which = rng.integers(5, size=n)
    return centres[which] + rng.normal(size=(n, d)) * (0.2 + which[:, None] / 4)


def all_dissimilarities(x, metric):
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return 0.5 * cdist(x, x, "sqeuclidean")
    return cdist(x, x)


def twin(x, tree, n_merges, rule, preferred, seed=0):
    """Representative and distance of every leaf after some merges."""
    between = all_dissimilarities(x, tree.metric)
    labels = tree.cut(n_groups=tree.n_leaves - n_merges)
    priority = np.random.default_rng(seed).permutation(len(x)) if rule == "random" else np.arange(len(x))
    representative = np.empty(len(x), int)
    for group in range(labels.max() + 1):
        members = np.flatnonzero(labels == group)
        candidates = members if preferred is None or not preferred[members].any() else members[preferred[members]]
        if rule == "medoid":
            costs = between[np.ix_(candidates, members)].sum(axis=1)
            representative[members] = candidates[costs <= costs.min() + 1e-12 * len(members)].min()
        elif rule == "nearest":
            y = x / np.linalg.norm(x, axis=1, keepdims=True) if tree.metric == "cosine" else x
            costs = np.linalg.norm(y[candidates] - y[members].mean(axis=0), axis=1)
            representative[members] = candidates[costs <= costs.min() * (1 + 1e-9)].min()
        else:
            representative[members] = candidates[priority[candidates].argmin()]
    return representative, between[np.arange(len(x)), representative]


def check(x, tree, cuts, **arguments):
    found = find_representatives(x, tree, **arguments)
    for n_merges in cuts:
        representative, distance = found.at(tree, n_merges)
        expected, expected_distance = twin(
            x, tree, n_merges, arguments.get("rule", "medoid"), arguments.get("preferred"), arguments.get("seed", 0)
        )
        np.testing.assert_array_equal(representative, expected)
        np.testing.assert_allclose(distance, expected_distance, rtol=1e-6, atol=1e-12)
    return found


@pytest.mark.parametrize("some_preferred", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linkage", LINKAGES)
def test_equals_the_twin(linkage, metric, rule, some_preferred):
    x = vectors(250, 5, seed=1)
    tree = merge_tree(x, linkage=linkage, metric=metric)
    preferred = np.random.default_rng(2).random(len(x)) < 0.2 if some_preferred else None
    check(x, tree, [0, 1, 30, 100, 125, 200, 240, 249], rule=rule, preferred=preferred, seed=5)


@pytest.mark.parametrize("share", [None, 0.01, 0.5])
@pytest.mark.parametrize("linkage", LINKAGES)
def test_groups_large_enough_for_bounds(linkage, share):
    x = vectors(3000, 6, seed=3)
    tree = merge_tree(x, linkage=linkage)
    preferred = None if share is None else np.random.default_rng(4).random(len(x)) < share
    check(x, tree, [1500, 2500, 2800, 2900, 2950, 2980, 2990, 2999], preferred=preferred)


def test_a_chain_that_grows_one_by_one():
    rng = np.random.default_rng(6)
    n = 2500
    x = rng.normal(size=(n, 8)) + 1.5
    nodes = np.concatenate([[0], n + np.arange(n - 2)])
    children = np.stack([nodes, np.arange(1, n)], axis=1)
    tree = MergeTree(n, children, np.arange(1.0, n), "single", "cosine")
    found = check(x, tree, range(500, n, 100))
    assert len(found.event_leaf) < 100 * n


def test_duplicates_and_pairs_keep_the_lowest():
    x = np.repeat(vectors(300, 4, seed=7), 5, axis=0)
    tree = merge_tree(x)
    found = find_representatives(x, tree)
    representative, distance = found.at(tree, 1200)
    np.testing.assert_array_equal(representative, np.repeat(np.arange(0, 1500, 5), 5))
    assert (distance == 0.0).all()
    for metric in METRICS:
        y = vectors(200, 4, seed=8)
        pairs = merge_tree(y, metric=metric)
        nodes = find_representatives(y, pairs).nodes
        both_leaves = (pairs.children < 200).all(axis=1)
        np.testing.assert_array_equal(nodes[both_leaves], pairs.children[both_leaves, 0])


def test_preferred_among_duplicates():
    x = np.full((600, 3), 2.0)
    preferred = np.zeros(600, bool)
    preferred[[77, 400]] = True
    for metric in METRICS:
        tree = merge_tree(x, metric=metric)
        assert find_representatives(x, tree, preferred=preferred).nodes[-1] == 77
        assert find_representatives(x, tree).nodes[-1] == 0


def test_a_cut_of_the_whole_tree_equals_a_stopped_tree():
    x = vectors(400, 5, seed=9)
    whole, half = merge_tree(x), merge_tree(x, n_groups=200)
    for rule in RULES:
        ours = find_representatives(x, whole, rule=rule).at(whole, 200)
        stopped = find_representatives(x, half, rule=rule).at(half, 200)
        for a, b in zip(ours, stopped, strict=True):
            np.testing.assert_array_equal(a, b)


def test_random_depends_on_the_seed_only():
    x = vectors(200, 4, seed=10)
    tree = merge_tree(x)
    one, same, other = (find_representatives(x, tree, rule="random", seed=seed).nodes for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_events_are_few_and_in_order():
    x = vectors(2000, 16, seed=11)
    tree = merge_tree(x, n_groups=1000)
    found = find_representatives(x, tree)
    assert (np.diff(found.event_node) >= 0).all()
    assert len(found.event_leaf) < 2 * len(x)
    assert len(find_representatives(x, tree, rule="first").event_leaf) <= len(found.event_leaf)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtypes(dtype):
    x = vectors(150, 6, seed=12).astype(dtype)
    before = x.copy()
    tree = merge_tree(x)
    check(x.astype(np.float64), tree, [75, 149])
    np.testing.assert_array_equal(
        find_representatives(x, tree).nodes, find_representatives(x.astype(np.float64), tree).nodes
    )
    np.testing.assert_array_equal(x, before)


def test_a_tree_without_merges():
    x = vectors(5, 2)
    tree = merge_tree(x, n_groups=5)
    representative, distance = find_representatives(x, tree).at(tree, 0)
    assert representative.tolist() == [0, 1, 2, 3, 4]
    assert distance.tolist() == [0.0] * 5


@pytest.mark.parametrize("share", [None, 0.2])
def test_nearest_of_flat_groups_equals_that_of_the_tree(share):
    x = vectors(400, 5, seed=13)
    preferred = None if share is None else np.random.default_rng(14).random(len(x)) < share
    tree = merge_tree(x, linkage="ward", metric="euclidean")
    found = find_representatives(x, tree, rule="nearest", preferred=preferred)
    for n_merges in (0, 40, 200, 399):
        groups = tree.cut(n_groups=400 - n_merges)
        representative, distance = nearest_to_centre(x, groups, preferred)
        expected, expected_distance = found.at(tree, n_merges)
        np.testing.assert_array_equal(representative[groups], expected)
        np.testing.assert_allclose(distance, expected_distance, rtol=1e-6)


def test_nearest_of_pairs_and_duplicates_is_the_first():
    x = vectors(300, 20, seed=15) + 7.0
    groups = np.concatenate([np.arange(150), np.random.default_rng(16).permutation(150)])
    assert nearest_to_centre(x, groups)[0].tolist() == list(range(150))
    tree = merge_tree(x, linkage="ward", metric="euclidean")
    nodes = find_representatives(x, tree, rule="nearest").nodes
    both_leaves = (tree.children < 300).all(axis=1)
    np.testing.assert_array_equal(nodes[both_leaves], tree.children[both_leaves, 0])
    representative, distance = nearest_to_centre(np.full((50, 3), 0.1), np.arange(50) % 3)
    assert representative.tolist() == [0, 1, 2]
    assert (distance == 0.0).all()
    preferred = np.arange(50) == 40
    assert nearest_to_centre(np.full((50, 3), 0.1), np.arange(50) % 3, preferred)[0].tolist() == [0, 40, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32])
def test_nearest_of_any_dtype(dtype):
    x = np.random.default_rng(17).integers(0, 255, size=(90, 6)).astype(dtype)
    groups = np.random.default_rng(18).permutation(90) // 4
    for ours, theirs in zip(nearest_to_centre(x, groups), nearest_to_centre(x.astype(float), groups), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    tree = merge_tree(x, linkage="ward", metric="euclidean")
    np.testing.assert_array_equal(
        find_representatives(x, tree, "nearest").nodes, find_representatives(x.astype(float), tree, "nearest").nodes
    )
    large, distance = nearest_to_centre(x.astype(float) * 1e200, groups)
    np.testing.assert_array_equal(large, nearest_to_centre(x, groups)[0])
    assert np.isin(distance, [0.0, np.inf]).all()


X = vectors(20, 3)
TREE = merge_tree(X)
NAN = np.where(np.arange(60).reshape(20, 3) == 7, np.nan, X)
ERRORS = [
    (lambda: find_representatives(X, TREE, rule="mean"), ValueError, "`rule` must be one of 'medoid', 'first'"),
    (lambda: find_representatives(X[:9], TREE), ValueError, "`features` must be 20 vectors, as many as the tree has"),
    (lambda: find_representatives(NAN, TREE), ValueError, "in 1 of 20 rows, the first at index 2"),
    (lambda: find_representatives(X * 0, TREE), ValueError, "`features` must have no zero rows under the cosine"),
    (lambda: find_representatives(X, TREE, preferred=[True]), ValueError, r"`preferred` must be of shape \(20,\)"),
    (lambda: find_representatives(X, TREE, preferred=[1] * 20), TypeError, "`preferred` must be boolean"),
    (lambda: find_representatives(X, TREE).at(TREE, 20), ValueError, "`n_merges` must be in 0 to 19, got 20"),
    (lambda: find_representatives(X, TREE).at(TREE, 1.0), TypeError, "`n_merges` must be an integer, got 1.0"),
    (lambda: find_representatives(X, TREE).at(merge_tree(X, 8), 1), ValueError, "`tree` must be the tree with 19"),
    (lambda: nearest_to_centre(NAN, [0] * 20), ValueError, "`x` must be finite, .* the first at index 2"),
    (lambda: nearest_to_centre(X, [0] * 19), ValueError, r"`groups` must be of shape \(20,\)"),
    (lambda: nearest_to_centre(X, [0.0] * 20), TypeError, "`groups` must hold integers"),
    (lambda: nearest_to_centre(X, [-1] * 20), ValueError, "`groups` must be numbers from 0 with none left out"),
    (lambda: nearest_to_centre(X, [2] * 20), ValueError, "`groups` must be numbers from 0 with none left out, got 'no"),
    (lambda: nearest_to_centre(X, [0] * 20, [True]), ValueError, r"`preferred` must be of shape \(20,\)"),
    (lambda: nearest_to_centre(X, [0] * 20, [1] * 20), TypeError, "`preferred` must be boolean"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
