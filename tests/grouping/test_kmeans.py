"""k-means against scikit-learn and a slow twin with the same order of ties."""

from __future__ import annotations

import importlib
import pickle

import numpy as np
import pytest
from sklearn.cluster import KMeans as Peer

from toolkit.grouping import STARTS, kmeans, merge_tree, nearest_to_centre

module = importlib.import_module("toolkit.grouping.kmeans")
ward_module = importlib.import_module("toolkit.grouping.ward")


def vectors(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(5, d))
    which = rng.integers(5, size=n)
    return centres[which] + rng.normal(size=(n, d)) * (0.2 + which[:, None] / 4)


def canonical(labels):
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def squares(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(axis=2)


def twin(x, labels, n_groups, max_iter=100):
    """Lloyd's iterations with all distances, from groups: (groups, objective, iterations, moves)."""
    labels = labels.copy()
    rows = np.arange(len(x))

    def fill(labels, distance):
        """Empty groups get the most distant vectors of groups that keep others."""
        sizes = np.bincount(labels, minlength=n_groups)
        order = iter(np.argsort(-distance, kind="stable"))
        filled = 0
        for group in np.flatnonzero(sizes == 0):
            image = next(i for i in order if sizes[labels[i]] > 1)
            sizes[labels[image]] -= 1
            labels[image] = group
            filled += 1
        return filled

    def means(labels):
        return np.stack([x[labels == g].mean(axis=0) if (labels == g).any() else np.full(x.shape[1], np.inf)
                         for g in range(n_groups)])  # fmt: skip

    if len(np.unique(labels)) < n_groups:
        fill(labels, ((x - means(labels)[labels]) ** 2).sum(axis=1))
    n_iter = n_moved = 0
    while n_iter < max_iter:
        n_iter += 1
        between = squares(x, means(labels))
        own = between[rows, labels]
        best = between.argmin(axis=1)
        new = np.where(between[rows, best] < own, best, labels)
        moves = (new != labels).sum() + fill(new, between[rows, new])
        n_moved += moves
        labels = new
        if moves == 0:
            break
    return canonical(labels), ((x - means(labels)[labels]) ** 2).sum(), n_iter, n_moved


@pytest.fixture(params=["few", "near pairs", "small blocks"])
def way(request, monkeypatch):
    """Vectors that stand alone are compared through products or through near pairs; chunks of any size."""
    if request.param == "near pairs":
        monkeypatch.setattr(module, "_FEW_PRODUCTS", 0)
    if request.param == "small blocks":
        monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
        monkeypatch.setattr(module, "_BLOCK_COLUMNS", 65)
        monkeypatch.setattr(ward_module, "_CHUNK_ELEMENTS", 300)
    return request.param


SIZES = [(1, 2, 1), (2, 1, 1), (2, 3, 2), (60, 3, 1), (300, 5, 10), (500, 8, 250), (400, 20, 380), (900, 3, 850)]


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize(("n", "d", "n_groups"), SIZES)
def test_equals_scikit_learn_from_the_same_start(n, d, n_groups, init, way):
    x = vectors(n, d, seed=n)
    start = kmeans(x, n_groups, init=init, max_iter=0)
    assert (start.n_iter, start.n_moved) == (0, 0)
    found = kmeans(x, n_groups, init=init)
    assert found.converged
    peer = Peer(n_groups, init=start.centres, n_init=1, tol=0.0, max_iter=100).fit(x)
    np.testing.assert_array_equal(found.groups, canonical(peer.labels_))
    np.testing.assert_allclose(found.objective, peer.inertia_, rtol=1e-9, atol=1e-12)
    order = [peer.labels_[np.flatnonzero(found.groups == g)[0]] for g in range(n_groups)]
    np.testing.assert_allclose(found.centres, peer.cluster_centers_[order], rtol=1e-9, atol=1e-12)
    assert found.objective <= start.objective


@pytest.mark.parametrize("n_groups", [3, 40, 150, 190])
@pytest.mark.parametrize("max_iter", [0, 1, 2, 100])
def test_equals_the_twin_from_random_groups(n_groups, max_iter, way):
    x = vectors(200, 4, seed=1)
    labels = np.random.default_rng(2).integers(n_groups, size=200)
    found = kmeans(x, n_groups, init=labels, max_iter=max_iter)
    groups, objective, n_iter, n_moved = twin(x, labels, n_groups, max_iter)
    np.testing.assert_array_equal(found.groups, groups)
    np.testing.assert_allclose(found.objective, objective)
    assert (found.n_iter, found.n_moved) == (n_iter, n_moved)
    assert len(np.unique(found.groups)) == n_groups


@pytest.mark.parametrize("seed", range(6))
def test_ties_of_whole_numbers(seed, way):
    # Distances of whole numbers and means of pairs are exact: ties stay, or go to the lowest group.
    rng = np.random.default_rng(seed)
    x = np.unique(rng.integers(0, 9, size=(120, 2)), axis=0).astype(float)
    n_groups = len(x) - 8
    labels = np.concatenate([np.arange(n_groups), np.arange(8)])
    found = kmeans(x, n_groups, init=labels, max_iter=1)
    np.testing.assert_array_equal(found.groups, twin(x, labels, n_groups, 1)[0])


def test_given_centres():
    x = vectors(300, 6, seed=3)
    centres = x[:7] + 0.1
    found = kmeans(x, 7, init=centres, max_iter=0)
    np.testing.assert_array_equal(found.groups, canonical(squares(x, centres).argmin(axis=1)))
    peer = Peer(7, init=centres, n_init=1, tol=0.0).fit(x)
    np.testing.assert_allclose(kmeans(x, 7, init=centres).objective, peer.inertia_)
    # Centres that nothing is nearest to are given a vector.
    far = np.concatenate([centres, centres[:3] + 1e3])
    assert len(np.unique(kmeans(x, 10, init=far, max_iter=0).groups)) == 10
    # Equal centres: the lowest.
    assert kmeans([[0.0], [1.0], [9.0]], 2, init=[[0.5], [0.5]], max_iter=0).groups.tolist() == [0, 0, 1]


def test_a_tree_as_the_start():
    x = vectors(200, 5, seed=5)
    tree = merge_tree(x, 100, linkage="ward", metric="euclidean")
    for n_groups in (100, 180):
        ours, given = kmeans(x, n_groups), kmeans(x, n_groups, tree=tree)
        np.testing.assert_array_equal(ours.groups, given.groups)
    other = merge_tree(x, linkage="single", metric="euclidean")
    start = kmeans(x, 150, tree=other, max_iter=0)
    np.testing.assert_array_equal(start.groups, other.cut(n_groups=150))


def test_wards_start_is_the_best_where_groups_are_many():
    x = vectors(1000, 30, seed=6)
    objectives = [kmeans(x, 940, init=init).objective for init in STARTS]
    assert objectives == sorted(objectives)


def test_many_groups_with_moves_between_them_and_single_vectors(way):
    # Random groups of pairs, far from any optimum: single vectors win members and groups dissolve.
    x = vectors(600, 3, seed=7)
    labels = np.concatenate([np.arange(450), np.random.default_rng(8).permutation(450)[:150]])
    groups, objective, n_iter, n_moved = twin(x, labels, 450)
    found = kmeans(x, 450, init=labels)
    np.testing.assert_array_equal(found.groups, groups)
    np.testing.assert_allclose(found.objective, objective)
    assert (found.n_iter, found.n_moved) == (n_iter, n_moved)
    assert n_moved > 150


@pytest.mark.parametrize("init", STARTS)
def test_identical_vectors(init):
    x = np.full((30, 4), 0.1)
    for n_groups in (1, 7, 30):
        found = kmeans(x, n_groups, init=init)
        assert len(np.unique(found.groups)) == n_groups
        assert found.objective == 0.0
        assert found.converged
        np.testing.assert_array_equal(found.centres, x[:n_groups])


def test_as_many_groups_as_vectors():
    x = vectors(50, 3)
    for init in STARTS:
        found = kmeans(x, 50, init=init)
        np.testing.assert_array_equal(found.groups, np.arange(50))
        np.testing.assert_array_equal(found.centres, x)
        assert found.objective == 0.0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float32, bool])
def test_dtypes(dtype, tmp_path):
    x = np.random.default_rng(9).integers(0, 255, size=(200, 10)).astype(dtype)
    before = x.copy()
    found = kmeans(x, 170)
    expected = kmeans(x.astype(np.float64), 170)
    np.testing.assert_array_equal(found.groups, expected.groups)
    np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-12)
    np.testing.assert_allclose(found.centres, expected.centres, rtol=1e-6)
    assert found.centres.dtype == (np.float64 if dtype in (np.int64, bool) else np.float32)
    np.testing.assert_array_equal(x, before)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(kmeans(mapped, 170).groups, found.groups)


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e30, 1e120])
def test_the_scale_of_the_vectors_does_not_matter(factor):
    x = vectors(150, 4, seed=10)
    expected = kmeans(x, 100, init="random")
    found = kmeans(x * factor, 100, init="random")
    np.testing.assert_array_equal(found.groups, expected.groups)
    np.testing.assert_allclose(found.objective, expected.objective * factor * factor, rtol=1e-9)
    np.testing.assert_allclose(found.centres / factor, expected.centres, rtol=1e-12)
    given = kmeans(x * factor, 4, init=x[:4] * factor)
    np.testing.assert_array_equal(given.groups, kmeans(x, 4, init=x[:4]).groups)


def test_permuting_the_vectors_permutes_the_groups():
    x = vectors(300, 8, seed=11)
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_array_equal(kmeans(x[order], 200).groups, canonical(kmeans(x, 200).groups[order]))


def test_threads_and_seeds(monkeypatch):
    x = vectors(400, 6, seed=12)
    runs = []
    for count in (1, 3):
        monkeypatch.setattr(module, "_threads", lambda count=count: count)
        runs.append(kmeans(x, 300, init="random", seed=4))
    np.testing.assert_array_equal(runs[0].groups, runs[1].groups)
    np.testing.assert_array_equal(runs[0].centres, runs[1].centres)
    assert runs[0].objective == runs[1].objective
    assert runs[0].objective != kmeans(x, 300, init="random", seed=5).objective


def test_representatives_of_the_groups():
    x = vectors(300, 5, seed=13)
    found = kmeans(x, 200)
    representative, distance = nearest_to_centre(x, found.groups)
    np.testing.assert_array_equal(found.groups[representative], np.arange(200))
    np.testing.assert_allclose(distance, np.linalg.norm(x - x[representative[found.groups]], axis=1), rtol=1e-6)


@pytest.mark.data
def test_images_of_cifar10(cifar_root):
    x = pickle.loads((cifar_root / "cifar-10-batches-py" / "data_batch_1").read_bytes())["data"][:5000]
    found = kmeans(x, 4700)
    assert round(found.objective / 255**2) == 7213
    assert (found.n_iter, found.n_moved, found.converged) == (1, 0, True)


X = vectors(20, 3)
NAN = np.where(np.arange(60).reshape(20, 3) == 7, np.nan, X)
ERRORS = [
    (lambda: kmeans(NAN, 3), ValueError, "`x` must be finite, .* in 1 of 20 rows, the first at index 2"),
    (lambda: kmeans(X[0], 1), ValueError, r"`x` must be a non-empty matrix of shape \(N, D\)"),
    (lambda: kmeans(np.empty((0, 3), np.uint8), 1), ValueError, "`x` must be a non-empty matrix"),
    (lambda: kmeans(np.array([["a"]]), 1), TypeError, "`x` must hold real numbers"),
    (lambda: kmeans(X, 0), ValueError, "`n_groups` must be in 1 to 20, the number of vectors, got 0"),
    (lambda: kmeans(X, 21), ValueError, "`n_groups` must be in 1 to 20, the number of vectors, got 21"),
    (lambda: kmeans(X, 2.5), TypeError, "`n_groups` must be an integer, got 2.5"),
    (lambda: kmeans(X, True), TypeError, "`n_groups` must be an integer, got True"),
    (lambda: kmeans(X, 3, max_iter=-1), ValueError, "`max_iter` must be at least 0, got -1"),
    (lambda: kmeans(X, 3, max_iter=1.0), TypeError, "`max_iter` must be an integer, got 1.0"),
    (lambda: kmeans(X, 3, init="best"), ValueError, "`init` must be one of 'ward', 'k-means"),
    (lambda: kmeans(X, 3, init=X[:4]), ValueError, r"`init` must be centres of shape \(3, 3\), got .*\(4, 3\)"),
    (lambda: kmeans(X, 3, init=NAN[:3]), ValueError, "`init` must be finite"),
    (lambda: kmeans(X, 3, init=np.arange(20)), ValueError, "`init` must be a group in 0 to 2 for each of 20 vectors"),
    (lambda: kmeans(X, 3, init=np.zeros(9, int)), ValueError, "`init` must be a group in 0 to 2 for each of 20"),
    (lambda: kmeans(X, 3, init=np.empty(0, int)), ValueError, "`init` must be a group in 0 to 2 for each of 20"),
    (lambda: kmeans(X, 3, init=np.zeros(20)), TypeError, "`init` must hold integers where it gives groups"),
    (lambda: kmeans(X, 3, init="random", tree=merge_tree(X)), ValueError, "`tree` must be None unless `init` is"),
    (lambda: kmeans(X, 3, tree=merge_tree(X[:9])), ValueError, "`tree` must be a tree of 20 vectors, got 9"),
    (lambda: kmeans(X, 3, tree=merge_tree(X, 5)), ValueError, "`n_groups` must be at least 5, where the tree was"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
