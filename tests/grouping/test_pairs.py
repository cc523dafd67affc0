"""Trees from lists of pairs against scipy and against a slow twin, and their representatives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from toolkit.grouping import find_representatives, merge_tree
from toolkit.grouping.pairs import (
    PAIR_LINKAGES,
    PAIR_RULES,
    merge_tree_of_pairs,
    representatives_by_similarity,
    similar_pairs,
    similarity_graph,
    threshold_groups,
)


def all_pairs(n):
    return np.stack(np.triu_indices(n, 1), axis=1)


def vectors(n, seed=0, d=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, d))[rng.integers(5, size=n)] * 2 + rng.normal(size=(n, d)) * 0.5


def near(x, limit):
    """The pairs up to a limit in another order, some of them turned round."""
    pairs, apart = all_pairs(len(x)), pdist(x)
    pairs, apart = pairs[apart <= limit], apart[apart <= limit]
    order = np.random.default_rng(0).permutation(len(pairs))
    pairs, apart = pairs[order].copy(), apart[order]
    pairs[::2] = pairs[::2, ::-1]
    return pairs, apart


def by_first(groups):
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def twin(n, pairs, apart, which):
    """Merges of pairs ordered by (dissimilarity, lower, higher index), by looking at all groups again and again."""
    pairs = np.sort(pairs, axis=1)
    order = sorted(range(len(pairs)), key=lambda e: (apart[e], *pairs[e]))
    rank = {tuple(pairs[e].tolist()): k for k, e in enumerate(order)}
    groups = {i: [i] for i in range(n)}
    heights, result = [], []
    while True:
        best = None
        for a, b in itertools.combinations(sorted(groups), 2):
            ranks = [rank.get((min(i, j), max(i, j)), math.inf) for i in groups[a] for j in groups[b]]
            key = max(ranks) if which == "complete" else min(ranks)
            if key < math.inf and (best is None or key < best[0]):
                best = key, a, b
        if best is None:
            return result, heights
        _, a, b = best
        groups[a] += groups.pop(b)
        heights.append(float(apart[order[best[0]]]))
        labels = np.empty(n, int)
        for number, members in groups.items():
            labels[members] = number
        result.append(by_first(labels).tolist())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", PAIR_LINKAGES)
def test_equals_scipy_up_to_the_limit(which, seed):
    x = vectors(120, seed)
    limit = float(np.quantile(pdist(x), 0.05 * (seed + 1)))
    tree = merge_tree_of_pairs(120, *near(x, limit), which)
    peer = linkage(x, which)
    below = peer[:, 2] <= limit
    np.testing.assert_allclose(tree.heights, np.sort(peer[below, 2]), rtol=1e-12)
    for threshold in (limit, 0.5 * limit, 0.2 * limit):
        expected = by_first(fcluster(peer, threshold, "distance"))
        if threshold <= tree.reach:
            np.testing.assert_array_equal(tree.cut(threshold=threshold), expected)
    assert tree.metric == "precomputed"
    assert tree.linkage == which


@pytest.mark.parametrize("which", PAIR_LINKAGES)
def test_all_pairs_give_the_tree_of_the_vectors(which):
    x = np.repeat(vectors(60, seed=5), 2, axis=0)
    tree = merge_tree_of_pairs(120, all_pairs(120), pdist(x), which)
    expected = merge_tree(x, linkage=which, metric="euclidean")
    np.testing.assert_array_equal(tree.children, expected.children)
    np.testing.assert_allclose(tree.heights, expected.heights, atol=1e-12)
    assert tree.reach == math.inf


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("which", PAIR_LINKAGES)
def test_ties_and_missing_pairs_equal_the_twin(which, seed):
    rng = np.random.default_rng(seed)
    pairs = all_pairs(11)
    pairs = rng.permutation(pairs)[: 10 + 5 * seed]
    apart = rng.integers(0, 3, size=len(pairs)) / 4.0
    tree = merge_tree_of_pairs(11, pairs, apart, which)
    cuts, heights = twin(11, pairs, apart, which)
    assert tree.heights.tolist() == heights
    for k, expected in enumerate(cuts):
        assert tree.cut(n_groups=10 - k).tolist() == expected


def test_the_order_of_the_list_does_not_matter():
    x = vectors(80, seed=6).round(1)
    pairs, apart = all_pairs(80), pdist(x, "cityblock")
    tree = merge_tree_of_pairs(80, pairs, apart)
    order = np.random.default_rng(7).permutation(len(pairs))
    other = merge_tree_of_pairs(80, pairs[order][:, ::-1], apart[order])
    np.testing.assert_array_equal(tree.children, other.children)
    np.testing.assert_array_equal(tree.heights, other.heights)


def test_trees_with_few_merges():
    none = merge_tree_of_pairs(3, np.empty((0, 2), int), [])
    assert none.n_merges == 0
    assert none.cut(n_groups=3).tolist() == [0, 1, 2]
    assert merge_tree_of_pairs(1, [], []).reach == math.inf
    assert merge_tree_of_pairs(3, [], [], limit=0.5).cut(threshold=0.5).tolist() == [0, 1, 2]
    tree = merge_tree_of_pairs(3, [[0, 1]], [0.2], limit=0.5)
    assert tree.reach == 0.5
    with pytest.raises(ValueError, match="`threshold` must be at most 0.5"):
        tree.cut(threshold=0.6)
    assert merge_tree_of_pairs(3, [[0, 1]], [0.2], limit=math.inf).reach == math.inf


def test_all_images_identical():
    tree = merge_tree_of_pairs(60, all_pairs(60), np.zeros(60 * 59 // 2))
    assert tree.n_merges == 59
    assert (tree.heights == 0).all()
    found = representatives_by_similarity(tree, all_pairs(60), np.zeros(60 * 59 // 2))
    assert found.at(tree, 59)[0].tolist() == [0] * 60


# ------------------------------------------------------------------------------------------------ thresholds


@pytest.mark.parametrize("seed", range(3))
def test_threshold_groups_equal_scipy(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(150, 3)) + 1.0
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = np.clip(x @ x.T, -1, 1)
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    peer = linkage(squareform(1 - similarity, checks=False), "complete")
    for least in (0.999, 0.98, 0.9, 0.5, -1.0):
        pairs, values = similar_pairs(similarity, least)
        groups = threshold_groups(150, pairs, values, least)
        np.testing.assert_array_equal(groups, by_first(fcluster(peer, 1 - least + 1e-12, "distance")))
        same = groups[:, None] == groups
        assert similarity[same].min() >= least
        # Pairs below the threshold in the list change nothing.
        np.testing.assert_array_equal(threshold_groups(150, *similar_pairs(similarity, -1.0), least), groups)


def test_a_chain_does_not_become_one_group():
    n = 100
    pairs = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    groups = threshold_groups(n, pairs, np.full(n - 1, 0.95), 0.9)
    assert np.bincount(groups).max() == 2
    assert threshold_groups(3, [[0, 1], [1, 2]], np.array([1.0000001, 0.9], np.float32), 0.9).tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["dense", "sparse", "memory map", "single"])
def test_similar_pairs_equal_brute_force(kind, tmp_path):
    rng = np.random.default_rng(8)
    similarity = rng.uniform(-1, 1, size=(1100, 1100))
    similarity = (similarity + similarity.T) / 2
    expected = [(i, j) for i, j in zip(*np.nonzero(similarity >= 0.9), strict=True) if i < j]
    given = similarity
    if kind == "sparse":
        given = scipy.sparse.coo_array(np.where(similarity > 0.5, similarity, 0.0))
    elif kind == "memory map":
        np.save(tmp_path / "s.npy", similarity)
        given = np.load(tmp_path / "s.npy", mmap_mode="r")
    elif kind == "single":
        given = similarity.astype(np.float32)
        expected = [(i, j) for i, j in zip(*np.nonzero(given >= 0.9), strict=True) if i < j]
    pairs, values = similar_pairs(given, 0.9)
    assert pairs.dtype == np.int64
    assert values.dtype == np.float64
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_allclose(values, similarity[tuple(np.array(expected).T)], rtol=1e-6)
    assert len(similar_pairs(given, 2.0)[0]) == 0


def test_the_graph_of_pairs():
    rng = np.random.default_rng(9)
    dense = np.clip(rng.uniform(-1, 1, size=(30, 30)), 0.2, 1)
    dense = (dense + dense.T) / 2
    np.fill_diagonal(dense, 1.0)
    graph = similarity_graph(30, *similar_pairs(dense, 0.5))
    np.testing.assert_array_equal(graph.toarray(), np.where((dense >= 0.5) | np.eye(30, dtype=bool), dense, 0.0))


# ------------------------------------------------------------------------------------------------ representatives


def slow_representatives(tree, between, n_merges, rule, preferred, seed):
    labels = tree.cut(n_groups=tree.n_leaves - n_merges)
    n = tree.n_leaves
    priority = np.random.default_rng(seed).permutation(n) if rule == "random" else np.arange(n)
    representative = np.empty(n, int)
    for group in range(labels.max() + 1):
        members = np.flatnonzero(labels == group)
        some = members if preferred is None or not preferred[members].any() else members[preferred[members]]
        if rule == "medoid":
            costs = between[np.ix_(some, members)].sum(axis=1)
            representative[members] = some[costs <= costs.min() + 1e-12 * len(members)].min()
        else:
            representative[members] = some[priority[some].argmin()]
    return representative, between[np.arange(n), representative]


@pytest.mark.parametrize("some_preferred", [False, True])
@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("decimals", [1, 12])
def test_representatives_equal_the_twin(decimals, rule, some_preferred):
    x = vectors(150, seed=10)
    between = squareform(pdist(x).round(decimals))
    pairs = all_pairs(150)
    near_ones = between[tuple(pairs.T)] <= 2.0
    pairs = pairs[near_ones]
    apart = between[tuple(pairs.T)]
    tree = merge_tree_of_pairs(150, pairs, apart)
    assert 20 < tree.n_merges < 149
    preferred = np.random.default_rng(2).random(150) < 0.2 if some_preferred else None
    found = representatives_by_similarity(tree, pairs, apart, rule, preferred, seed=3)
    for n_merges in (0, 1, 20, tree.n_merges // 2, tree.n_merges):
        representative, distance = found.at(tree, n_merges)
        expected, expected_distance = slow_representatives(tree, between, n_merges, rule, preferred, 3)
        np.testing.assert_array_equal(representative, expected)
        np.testing.assert_allclose(distance, expected_distance, rtol=1e-6)
    assert (np.diff(found.event_node) >= 0).all()


def test_representatives_equal_those_of_the_vectors():
    x = vectors(200, seed=11)
    tree = merge_tree(x, metric="euclidean")
    expected = find_representatives(x, tree)
    found = representatives_by_similarity(tree, all_pairs(200), pdist(x))
    np.testing.assert_array_equal(found.nodes, expected.nodes)
    np.testing.assert_array_equal(found.event_leaf, expected.event_leaf)
    np.testing.assert_array_equal(found.event_node, expected.event_node)
    np.testing.assert_allclose(found.event_distance, expected.event_distance, rtol=1e-6)


def test_missing_pairs_are_refused():
    pairs, apart = [[0, 1], [1, 2]], [0.1, 0.2]
    chain = merge_tree_of_pairs(3, pairs, apart, "single")
    for rule in PAIR_RULES:
        with pytest.raises(ValueError, match="every pair within a group of the tree, got none for some members of"):
            representatives_by_similarity(chain, pairs, apart, rule)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, [], []), ValueError, "`n_leaves` must be at least 1, got 0"),
        ((2.0, [], []), TypeError, "`n_leaves` must be an integer, got 2.0"),
        ((3, [0, 1], [0.1]), ValueError, r"`pairs` must be of shape \(P, 2\)"),
        ((3, [[0, 1, 2]], [0.1]), ValueError, r"`pairs` must be of shape \(P, 2\)"),
        ((3, [[0.0, 1.0]], [0.1]), TypeError, "`pairs` must hold integers, got dtype float64"),
        ((3, [[0, 3]], [0.1]), ValueError, r"two different indices in 0 to 2, got \[0, 3\]"),
        ((3, [[0, 1], [-1, 2]], [0.1, 0.1]), ValueError, r"two different indices in 0 to 2, got \[-1, 2\]"),
        ((3, [[1, 1]], [0.1]), ValueError, r"two different indices in 0 to 2, got \[1, 1\]"),
        ((3, [[0, 1], [1, 0]], [0.1, 0.2]), ValueError, r"different from each other, got '\[0, 1\] more than once'"),
        ((3, [[0, 1]], [0.1, 0.2]), ValueError, r"`dissimilarities` must be of shape \(1,\)"),
        ((3, [[0, 1]], [np.nan]), ValueError, "`dissimilarities` must be finite, got 1 NaN or infinite values"),
        ((3, [[0, 1]], [-0.1]), ValueError, "`dissimilarities` must be at least 0, got 1 that are not, the first -0.1"),
        ((3, [[0, 1]], ["x"]), TypeError, "`dissimilarities` must hold real numbers"),
        ((3, [[0, 1]], [0.1], "average"), ValueError, "`linkage` must be one of 'complete', 'single'"),
    ],
)
def test_bad_pairs(arguments, error, message):
    with pytest.raises(error, match=message):
        merge_tree_of_pairs(*arguments)


def test_other_bad_arguments():
    tree = merge_tree_of_pairs(3, [[0, 1]], [0.1])
    with pytest.raises(ValueError, match="`limit` must be at least 0.1, the largest dissimilarity, got 0.05"):
        merge_tree_of_pairs(3, [[0, 1]], [0.1], limit=0.05)
    with pytest.raises(TypeError, match="`min_similarity` must be a number"):
        threshold_groups(3, [[0, 1]], [0.9], "0.9")
    with pytest.raises(ValueError, match="`min_similarity` must be finite"):
        threshold_groups(3, [[0, 1]], [0.9], math.nan)
    with pytest.raises(ValueError, match="`similarities` must be finite"):
        threshold_groups(3, [[0, 1]], [math.inf], 0.5)
    with pytest.raises(ValueError, match="`similarity` must be symmetric"):
        similar_pairs([[1.0, 0.9], [0.1, 1.0]], 0.5)
    with pytest.raises(ValueError, match="`similarities` must be of shape"):
        similarity_graph(3, [[0, 1]], 0.5)
    with pytest.raises(ValueError, match="`rule` must be one of"):
        representatives_by_similarity(tree, [[0, 1]], [0.1], "mean")
    with pytest.raises(TypeError, match="`preferred` must be boolean"):
        representatives_by_similarity(tree, [[0, 1]], [0.1], preferred=[0, 1, 0])
    with pytest.raises(ValueError, match=r"`preferred` must be of shape \(3,\)"):
        representatives_by_similarity(tree, [[0, 1]], [0.1], preferred=[True])
