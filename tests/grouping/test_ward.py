"""Ward's merge tree against scipy, where the tests of all linkages do not reach: rounds of either kind, odd data."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage

from toolkit.grouping import agglomerate, merge_tree
from toolkit.grouping import ward as module


def vectors(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(5, d))
    which = rng.integers(5, size=n)
    return centres[which] + rng.normal(size=(n, d)) * (0.2 + which[:, None] / 4)


def canonical(labels):
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def ward(x, *arguments, **options):
    return merge_tree(x, *arguments, linkage="ward", metric="euclidean", **options)


def assert_equals_scipy(x, tree, rtol=1e-9):
    expected = scipy_linkage(np.asarray(x, np.float64), "ward")[: tree.n_merges]
    np.testing.assert_allclose(tree.heights, expected[:, 2], rtol=rtol)
    for n_groups in {tree.min_groups, (tree.min_groups + len(x)) // 2}:
        reference = np.concatenate([expected, np.zeros((0, 4))])
        labels = cut_of(reference, len(x), n_groups)
        np.testing.assert_array_equal(tree.cut(n_groups=n_groups), labels)


def cut_of(tree, n, n_groups):
    """Groups after the first merges of scipy's tree."""
    members = {i: [i] for i in range(n)}
    for k in range(n - n_groups):
        members[n + k] = members.pop(int(tree[k, 0])) + members.pop(int(tree[k, 1]))
    labels = np.empty(n, int)
    for label, group in enumerate(members.values()):
        labels[group] = label
    return canonical(labels)


WAYS = {"sparse": math.inf, "dense": -1.0, "mixed": 1.0}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Rounds that search pairs with bounds, by products, or by either; many rounds, and small chunks."""
    monkeypatch.setattr(module, "_SPARSE_DEGREE", WAYS[request.param])
    monkeypatch.setattr(module, "_ALL_PAIRS", 100)
    monkeypatch.setattr(module, "_MAX_DEGREE", 4.0)
    monkeypatch.setattr(module, "_MAX_PAIRS", 3_000)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 900)
    return request.param


@pytest.mark.parametrize("n_groups", [1, 300, 580])
@pytest.mark.parametrize(("d", "offset", "spread"), [(6, 0.0, 1.0), (40, 10.0, 1.0), (3, 100.0, 1e-3)])
def test_every_way_of_finding_pairs(d, offset, spread, n_groups, way):
    x = vectors(600, d, seed=d) * spread + offset
    assert_equals_scipy(x, ward(x, n_groups))


def test_float32_cannot_tell(way):
    # Beside a vector so far away, float32 does not tell the others from each other.
    x = vectors(400, 4, seed=1)
    x[17] += 1e7
    tree = ward(x)
    assert_equals_scipy(x, tree, rtol=1e-6)
    assert tree.cut(n_groups=2).sum() == 1


def test_groups_of_duplicates_weigh_what_they_hold(way):
    x = np.repeat(vectors(150, 4, seed=2), np.random.default_rng(0).integers(1, 6, size=150), axis=0)
    x = x[np.random.default_rng(1).permutation(len(x))]
    tree = ward(x)
    np.testing.assert_allclose(tree.heights, scipy_linkage(x, "ward")[:, 2], atol=1e-9)
    assert tree.cut(threshold=0.0).max() == 149


def test_thresholds():
    x = vectors(500, 8, seed=3)
    expected = scipy_linkage(x, "ward")
    for k in (0, 100, 490):
        threshold = (expected[k, 2] + expected[k + 1, 2]) / 2
        tree = ward(x, threshold=threshold)
        assert tree.n_merges == k + 1
        np.testing.assert_array_equal(tree.cut(threshold=threshold), canonical(fcluster(expected, 499 - k, "maxclust")))
    # The threshold is included, and that of single vectors is their distance.
    assert ward([[0.0], [3.0], [10.0]], threshold=3.0).heights.tolist() == [3.0]


def test_heights():
    # sqrt(2 * 2 * 1 / 3) times the distance of the mean to the third.
    tree = ward([[0.0], [2.0], [5.0]])
    np.testing.assert_allclose(tree.heights, [2.0, math.sqrt(4 / 3) * 4.0])
    # Under the cosine, the growth of the sum of squares of the unit vectors.
    x = vectors(200, 5, seed=4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    tree = merge_tree(x, linkage="ward")
    np.testing.assert_allclose(tree.heights, 0.5 * scipy_linkage(unit, "ward")[:, 2] ** 2, rtol=1e-9)
    total = ((unit - unit.mean(axis=0)) ** 2).sum()
    np.testing.assert_allclose(tree.heights.sum(), total)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32])
def test_dtypes(dtype, way):
    x = np.random.default_rng(5).integers(0, 255, size=(300, 9)).astype(dtype)
    before = x.copy()
    tree = ward(x)
    np.testing.assert_allclose(tree.heights, scipy_linkage(x.astype(np.float64), "ward")[:, 2], rtol=1e-9)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_float32_of_any_size(factor, way):
    x = vectors(200, 5, seed=6)
    small = (x * factor).astype(np.float32)
    np.testing.assert_allclose(ward(small).heights / factor, scipy_linkage(x, "ward")[:, 2], rtol=1e-4)


def test_integers_and_memory_maps(tmp_path):
    x = np.random.default_rng(7).integers(0, 255, size=(400, 12), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(ward(mapped).children, ward(x.astype(np.float64)).children)


def test_threads_do_not_matter(way, monkeypatch):
    x = vectors(500, 6, seed=8)
    trees = []
    for count in (1, 3):
        monkeypatch.setattr(module, "_threads", lambda count=count: count)
        trees.append(ward(x))
    np.testing.assert_array_equal(trees[0].children, trees[1].children)
    np.testing.assert_array_equal(trees[0].heights, trees[1].heights)


def test_equidistant_and_identical_vectors(way):
    tree = ward(np.eye(90))
    np.testing.assert_allclose(tree.heights, math.sqrt(2.0), rtol=1e-12)
    assert ward(np.full((2000, 3), 0.1)).heights.max() == 0.0
    assert ward(np.zeros((3, 1))).heights.tolist() == [0.0, 0.0]
    assert ward([[1.0, 2.0]]).n_merges == 0


def test_the_sum_of_squares_grows_by_half_the_squared_heights():
    x = vectors(300, 4, seed=9)
    tree = ward(x)
    for n_groups in (250, 100, 2):
        labels = tree.cut(n_groups=n_groups)
        total = sum(((x[labels == g] - x[labels == g].mean(axis=0)) ** 2).sum() for g in range(n_groups))
        np.testing.assert_allclose(0.5 * (tree.heights[: 300 - n_groups] ** 2).sum(), total)
        np.testing.assert_array_equal(agglomerate(x, n_groups, linkage="ward", metric="euclidean"), labels)


def test_progress(way):
    told = []
    ward(vectors(400, 5), 100, progress=told.append)
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 1.0
    assert len(told) > 2


@pytest.mark.data
def test_images_of_cifar10(cifar_root):
    batch = pickle.loads((cifar_root / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    x = batch["data"][:2000].reshape(-1, 3, 8, 4, 8, 4).mean((3, 5)).reshape(2000, -1)
    assert_equals_scipy(x, ward(x))
    assert_equals_scipy(x, ward(x, 1880))
