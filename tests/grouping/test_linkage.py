"""Merge trees against scipy, scikit-learn and a slow twin with the same order of ties."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering

from toolkit.grouping import LINKAGES, METRICS, MergeTree, agglomerate, merge_tree
from toolkit.grouping import linkage as module
from toolkit.grouping import ward as ward_module


def vectors(n, d, seed=0, dtype=np.float64):
    """A few clouds of unequal density, without ties."""
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(5, d))
    which = rng.integers(5, size=n)
    return (centres[which] + rng.normal(size=(n, d)) * (0.2 + which[:, None] / 4)).astype(dtype)


def canonical(labels):
    """Labels numbered by first occurrence."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def assert_valid(tree):
    """What every tree must be, whatever the data."""
    n = tree.n_leaves
    assert (np.diff(tree.heights) >= 0).all()
    used = tree.children.ravel()
    assert len(np.unique(used)) == len(used)
    lowest = np.concatenate([np.arange(n), np.zeros(tree.n_merges, int)])
    for k, (a, b) in enumerate(tree.children):
        assert max(a, b) < n + k
        assert lowest[a] < lowest[b]
        lowest[n + k] = lowest[a]


def by_scipy(x, linkage, metric):
    """scipy's tree; that of Ward's linkage under the cosine is of the unit vectors, with half the squared heights."""
    if linkage == "ward" and metric == "cosine":
        tree = scipy_linkage(x / np.linalg.norm(x, axis=1, keepdims=True), "ward")
        tree[:, 2] = 0.5 * tree[:, 2] ** 2
        return tree
    return scipy_linkage(pdist(x, metric), linkage)


def twin(features, linkage, metric="euclidean"):
    """Complete or single linkage step by step, pairs ordered by (dissimilarity, lower index, higher index)."""
    x = np.asarray(features, float)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    worst = max if linkage == "complete" else min
    between = {(i, j): (((x[i] - x[j]) ** 2).sum(), i, j) for i in range(n) for j in range(i + 1, n)}
    node = {i: i for i in range(n)}
    children, heights = [], []
    for k in range(n - 1):
        (a, b), height = min(between.items(), key=lambda item: item[1])
        children.append((node[a], node[b]))
        heights.append(math.sqrt(height[0]))
        node[a] = n + k
        del node[b], between[a, b]
        for c in node:
            if c != a:
                other = between.pop((min(b, c), max(b, c)))
                between[min(a, c), max(a, c)] = worst(between[min(a, c), max(a, c)], other)
    return np.array(children).reshape(-1, 2), np.array(heights)


@pytest.fixture
def many_rounds(monkeypatch):
    """So little room that every call needs several rounds, and some of them several attempts."""
    monkeypatch.setattr(module, "_MAX_PAIRS", 2_000)
    monkeypatch.setattr(module, "_ALL_PAIRS", 50)
    monkeypatch.setattr(module, "_MAX_DEGREE", 8.0)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 32)
    monkeypatch.setattr(module, "_BLOCK_COLUMNS", 100)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 700)
    monkeypatch.setattr(ward_module, "_MAX_PAIRS", 2_000)
    monkeypatch.setattr(ward_module, "_ALL_PAIRS", 50)
    monkeypatch.setattr(ward_module, "_MAX_DEGREE", 8.0)
    monkeypatch.setattr(ward_module, "_CHUNK_ELEMENTS", 700)


@pytest.fixture
def one_block_rounds(monkeypatch):
    """Small blocks and chunks, but room for all pairs."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(module, "_BLOCK_COLUMNS", 65)


SIZES = [(1, 3), (2, 1), (3, 2), (40, 2), (65, 1), (300, 7), (1000, 64), (2000, 16)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_equals_scipy(n, d, linkage, metric):
    x = vectors(n, d, seed=n)
    if d == 1 and metric == "cosine":
        pytest.skip("all cosines are 1 or -1 in one dimension")
    tree = merge_tree(x, linkage=linkage, metric=metric)
    assert_valid(tree)
    assert tree.min_groups == 1
    assert tree.reach == math.inf
    if n == 1:
        assert tree.cut(n_groups=1).tolist() == [0]
        return
    expected = by_scipy(x, linkage, metric)
    np.testing.assert_allclose(tree.heights, expected[:, 2], rtol=0, atol=1e-9)
    cuts = {1, n // 2 + 1, n - 1} if n > 1000 else {1, 2, n // 10 + 1, n // 2 + 1, int(0.9 * n), n - 1}
    for n_groups in sorted(cuts & set(range(1, n))):
        reference = canonical(fcluster(expected, n_groups, "maxclust"))
        np.testing.assert_array_equal(tree.cut(n_groups=n_groups), reference)
        np.testing.assert_array_equal(agglomerate(x, n_groups=n_groups, linkage=linkage, metric=metric), reference)
        above = expected[n - n_groups, 2] if n_groups > 1 else expected[-1, 2] + 1
        threshold = (expected[n - n_groups - 1, 2] + above) / 2
        np.testing.assert_array_equal(tree.cut(threshold=threshold), reference)
        stopped = merge_tree(x, threshold=threshold, linkage=linkage, metric=metric)
        assert_valid(stopped)
        np.testing.assert_array_equal(stopped.children, tree.children[: n - n_groups])
        np.testing.assert_array_equal(stopped.cut(threshold=threshold), reference)


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.05])
def test_equals_scikit_learn(kept, linkage):
    x = vectors(700, 20, seed=3)
    n_groups = int(kept * len(x))
    if linkage == "ward":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        reference = AgglomerativeClustering(n_groups, linkage="ward").fit_predict(unit)
    else:
        reference = AgglomerativeClustering(n_groups, metric="cosine", linkage=linkage).fit_predict(x)
    np.testing.assert_array_equal(agglomerate(x, n_groups=n_groups, linkage=linkage), canonical(reference))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("spread", [1.0, 1e-5, 1e5])
def test_many_rounds_give_the_same_tree(spread, linkage, metric, many_rounds, monkeypatch):
    # A spread far below the rounding of float32 makes the rough search pass nearly every pair on.
    x = vectors(400, 5, seed=4) * spread + 3.0
    several = merge_tree(x, linkage=linkage, metric=metric)
    half = merge_tree(x, n_groups=200, linkage=linkage, metric=metric)
    monkeypatch.undo()
    once = merge_tree(x, linkage=linkage, metric=metric)
    np.testing.assert_array_equal(several.children, once.children)
    np.testing.assert_allclose(several.heights, once.heights, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(half.children, once.children[:200])


def test_blocks_of_any_size_give_the_same_tree(one_block_rounds, monkeypatch):
    x = vectors(300, 5, seed=9)
    small = [merge_tree(x, linkage=linkage) for linkage in LINKAGES]
    monkeypatch.undo()
    for linkage, tree in zip(LINKAGES, small, strict=True):
        np.testing.assert_array_equal(tree.children, merge_tree(x, linkage=linkage).children)


GRIDS = {
    "line": np.arange(24.0)[:, None],
    "square": np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), -1).reshape(-1, 2),
    "square twice": np.tile(np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), -1).reshape(-1, 2), (2, 1)),
    "cube corners": np.stack(np.meshgrid(*[[0.0, 1.0]] * 5), -1).reshape(-1, 5),
    "simplex": np.eye(20),
    "identical": np.full((30, 3), 7.0),
    "two points": np.repeat([[0.0, 1.0], [1.0, 0.0]], 12, axis=0),
    "interleaved points": np.tile([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]], (8, 1)),
}


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("linkage", ["complete", "single"])
@pytest.mark.parametrize("name", GRIDS)
def test_ties_follow_the_order_of_the_vectors(name, linkage, tight, monkeypatch):
    if tight:
        monkeypatch.setattr(module, "_MAX_PAIRS", 12)
        monkeypatch.setattr(module, "_ALL_PAIRS", 3)
        monkeypatch.setattr(module, "_BLOCK_ROWS", 4)
    for seed in range(3):
        x = GRIDS[name][np.random.default_rng(seed).permutation(len(GRIDS[name]))]
        children, heights = twin(x, linkage)
        tree = merge_tree(x, linkage=linkage, metric="euclidean")
        np.testing.assert_array_equal(tree.children, children)
        np.testing.assert_allclose(tree.heights, heights, rtol=1e-14)
        for n_groups in (len(x) // 2, len(x) - 3):
            part = merge_tree(x, n_groups=n_groups, linkage=linkage, metric="euclidean")
            np.testing.assert_array_equal(part.children, children[: len(x) - n_groups])


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", GRIDS)
def test_ties_end_in_valid_trees(name, metric, linkage, many_rounds):
    x = GRIDS[name] + 1.0
    tree = merge_tree(x, linkage=linkage, metric=metric)
    assert_valid(tree)
    assert tree.min_groups == 1
    again = merge_tree(x, linkage=linkage, metric=metric)
    np.testing.assert_array_equal(tree.children, again.children)
    if linkage == "single":
        # The heights of single linkage do not depend on how ties are broken.
        np.testing.assert_allclose(tree.heights, scipy_linkage(pdist(x, metric), "single")[:, 2], atol=1e-9)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_a_thousand_identical_vectors(linkage):
    tree = merge_tree(np.full((1000, 4), 0.3), linkage=linkage)
    assert tree.heights.max() == 0.0
    assert tree.cut(threshold=0.0).max() == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linkage", LINKAGES)
def test_duplicates_end_in_one_group(linkage, metric):
    x = vectors(120, 6, seed=5)
    x = np.concatenate([x, x[:40], x[:10]])
    n_distinct = 120
    for n_groups in (n_distinct, 60, 7):
        labels = agglomerate(x, n_groups=n_groups, linkage=linkage, metric=metric)
        np.testing.assert_array_equal(labels[120:160], labels[:40])
        np.testing.assert_array_equal(labels[160:], labels[:10])
    np.testing.assert_array_equal(agglomerate(x, threshold=0.0, linkage=linkage, metric=metric)[:120], np.arange(120))
    # With the weights of the duplicates, too.
    expected = by_scipy(x, linkage, metric)
    np.testing.assert_allclose(merge_tree(x, linkage=linkage, metric=metric).heights, expected[:, 2], atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linkage", LINKAGES)
def test_permuting_the_vectors_permutes_the_groups(linkage, metric):
    x = vectors(300, 8, seed=6)
    order = np.random.default_rng(1).permutation(len(x))
    labels = agglomerate(x, n_groups=90, linkage=linkage, metric=metric)
    permuted = agglomerate(x[order], n_groups=90, linkage=linkage, metric=metric)
    np.testing.assert_array_equal(permuted, canonical(labels[order]))


@pytest.mark.parametrize("linkage", LINKAGES)
def test_keeping_everything_is_the_identity(linkage):
    x = vectors(50, 4)
    np.testing.assert_array_equal(agglomerate(x, n_groups=50, linkage=linkage), np.arange(50))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e30, 1e200])
def test_the_scale_of_the_vectors_does_not_matter(factor, metric):
    x = vectors(80, 4, seed=7)
    tree = merge_tree(x, metric=metric)
    scaled = merge_tree(x * factor, metric=metric)
    np.testing.assert_array_equal(scaled.children, tree.children)
    unit = factor if metric == "euclidean" else 1.0
    np.testing.assert_allclose(scaled.heights / unit, tree.heights, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("linkage", LINKAGES)
def test_dtypes_and_memory_maps(linkage, dtype, tmp_path):
    x = vectors(150, 8, seed=8, dtype=dtype)
    before = x.copy()
    labels = agglomerate(x, n_groups=70, linkage=linkage)
    np.testing.assert_array_equal(x, before)
    reference = by_scipy(x.astype(np.float64), linkage, "cosine")
    np.testing.assert_array_equal(labels, canonical(fcluster(reference, 70, "maxclust")))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(agglomerate(mapped, n_groups=70, linkage=linkage), labels)
    np.testing.assert_array_equal(agglomerate(np.asfortranarray(x), n_groups=70, linkage=linkage), labels)


def test_threshold_is_included():
    x = [[0.0], [1.0], [4.0], [6.0]]
    tree = merge_tree(x, metric="euclidean", threshold=2.0)
    assert tree.heights.tolist() == [1.0, 2.0]
    assert tree.reach == 2.0
    assert tree.cut(threshold=1.9999).tolist() == [0, 0, 1, 2]
    assert agglomerate(x, metric="euclidean", threshold=2.0).tolist() == [0, 0, 1, 1]
    # Square roots that do not square back.
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3), -1).reshape(-1, 3)
    assert agglomerate(corners, metric="euclidean", threshold=math.sqrt(3.0)).max() == 0


def test_a_stopped_tree_knows_how_far_it_goes():
    x = [[0.0], [1.0], [4.0], [6.0], [10.0], [12.0], [30.0]]
    tree = merge_tree(x, n_groups=6, metric="euclidean")
    assert tree.cut(threshold=1.0).tolist() == [0, 0, 1, 2, 3, 4, 5]
    # Of the two merges at 2, one was done.
    tied = merge_tree(x, n_groups=5, metric="euclidean")
    assert tied.reach < 2.0
    assert tied.cut(threshold=1.5).max() == 5
    with pytest.raises(ValueError, match="where the tree was stopped"):
        tied.cut(threshold=2.0)
    for stopped in (merge_tree(x, n_groups=7, metric="euclidean"), tree):
        with pytest.raises(ValueError, match="where the tree was stopped"):
            stopped.cut(threshold=3.0)


def test_progress_rises_to_one(many_rounds):
    told = []
    merge_tree(vectors(400, 5), n_groups=100, progress=told.append)
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 1.0
    assert len(told) > 3


def broken(n_nan):
    x = vectors(20, 3)
    x[4 : 4 + n_nan, 1] = np.nan
    return x


def with_zeros():
    x = vectors(20, 3)
    x[[6, 9]] = 0
    return x


X = vectors(20, 3)
ERRORS = [
    (lambda: agglomerate(broken(2), n_groups=3), ValueError, "values in 2 of 20 rows, the first at index 4"),
    (lambda: agglomerate(with_zeros(), n_groups=3), ValueError, "got 2 of 20, the first at index 6"),
    (lambda: agglomerate(X[0], n_groups=1), ValueError, r"`features` must be a non-empty matrix of shape \(N, D\)"),
    (lambda: agglomerate(np.empty((0, 3)), n_groups=1), ValueError, "`features` must be a non-empty matrix"),
    (lambda: agglomerate(np.array([["a"]]), n_groups=1), TypeError, "`features` must hold real numbers"),
    (lambda: agglomerate(X), ValueError, "Exactly one of `n_groups` and `threshold`"),
    (lambda: agglomerate(X, n_groups=2, threshold=0.1), ValueError, "Exactly one of `n_groups` and `threshold`"),
    (lambda: merge_tree(X, n_groups=None), ValueError, "Exactly one of `n_groups` and `threshold`"),
    (lambda: merge_tree(X).cut(), ValueError, "Exactly one of `n_groups` and `threshold`"),
    (lambda: merge_tree(X).cut(3, 0.1), ValueError, "Exactly one of `n_groups` and `threshold`"),
    (lambda: agglomerate(X, n_groups=0), ValueError, "`n_groups` must be in 1 to 20, the number of vectors, got 0"),
    (lambda: agglomerate(X, n_groups=21), ValueError, "`n_groups` must be in 1 to 20, the number of vectors, got 21"),
    (lambda: agglomerate(X, n_groups=2.5), TypeError, "`n_groups` must be an integer, got 2.5"),
    (lambda: agglomerate(X, n_groups=True), TypeError, "`n_groups` must be an integer, got True"),
    (lambda: agglomerate(X, threshold=-0.1), ValueError, "`threshold` must be a dissimilarity of at least 0"),
    (lambda: agglomerate(X, threshold=math.nan), ValueError, "`threshold` must be a dissimilarity of at least 0"),
    (lambda: agglomerate(X, threshold="a"), TypeError, "`threshold` must be a number"),
    (lambda: agglomerate(X, n_groups=2, linkage="mean"), ValueError, "`linkage` must be one of 'complete', 'average'"),
    (lambda: agglomerate(X, n_groups=2, metric="l1"), ValueError, "`metric` must be one of 'cosine', 'euclidean'"),
    (lambda: merge_tree(X, n_groups=8).cut(7), ValueError, "`n_groups` must be at least 8, where the tree was stopped"),
    (lambda: merge_tree(X, n_groups=8).cut(threshold=1.9), ValueError, "`threshold` must be at most .* was stopped"),
    (lambda: merge_tree(X, n_groups=8).cut(21), ValueError, "`n_groups` must be in 1 to 20"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_average_linkage_of_distances_has_a_limit(monkeypatch):
    monkeypatch.setattr(module, "_MAX_DENSE", 19)
    with pytest.raises(ValueError, match="at most 19 vectors for average linkage under the Euclidean distance"):
        merge_tree(X, linkage="average", metric="euclidean")
    assert merge_tree(X, linkage="average").min_groups == 1


def test_zero_rows_are_fine_under_the_euclidean_distance():
    assert agglomerate(with_zeros(), n_groups=19, metric="euclidean")[9] == 6
    assert isinstance(merge_tree(np.zeros((5, 2)), metric="euclidean"), MergeTree)


@pytest.mark.data
@pytest.mark.parametrize(("kept", "linkage"), [(0.9, "complete"), (0.5, "complete"), (0.5, "average"), (0.5, "single")])
def test_a_class_of_cifar10(kept, linkage):
    path = Path(os.environ.get("TOOLKIT_DATA", "")) / "features" / "resnet32_cifar10_train.npz"
    if not os.environ.get("TOOLKIT_DATA") or not path.exists():
        pytest.skip("TOOLKIT_DATA does not name a folder with features/resnet32_cifar10_train.npz")
    with np.load(path) as file:
        x = file["features"][file["labels"] == 3]
    n_groups = int(kept * len(x))
    unit = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    distances = squareform(np.maximum(1.0 - unit @ unit.T, 0.0), checks=False)
    reference = canonical(fcluster(scipy_linkage(distances, linkage), n_groups, "maxclust"))
    np.testing.assert_array_equal(agglomerate(x, n_groups=n_groups, linkage=linkage), reference)
