"""Spectral groups against scikit-learn, known groups and the identical images of the wavelet paper's example."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
import scipy.sparse
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

import toolkit.grouping.spectral as module
from toolkit.grouping.pairs import similarity_graph
from toolkit.grouping.spectral import METHODS, spectral_groups
from toolkit.spectrum import NEGATIVE


def blobs(sizes, seed=0, spread=0.25, d=3):
    """Similarities of points around centres, and the centre of each."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = 2.0 * np.eye(len(sizes), max(d, len(sizes)))[which]
    x += spread * rng.normal(size=x.shape)
    squares = ((x[:, None] - x) ** 2).sum(axis=-1)
    return np.exp(-squares), which


def numbered(groups):
    """Whether groups are 0, 1, ... in the order of their first members."""
    return np.array_equal(np.unique(groups), np.arange(groups.max() + 1)) and bool(
        (np.diff(np.unique(groups, return_index=True)[1]) > 0).all()
    )


def random_similarity(n, seed, d=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 0.7
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [(20, 30), (10, 15, 40), (12, 12, 12, 12)])
@pytest.mark.parametrize("normalized", [False, True])
def test_clear_groups_are_found_as_by_the_peer(sizes, seed, normalized):
    similarity, which = blobs(sizes, seed)
    groups = spectral_groups(similarity, len(sizes), normalized=normalized)
    assert numbered(groups)
    assert groups.dtype == np.int64
    assert adjusted_rand_score(groups, which) == 1.0
    peer = SpectralClustering(len(sizes), affinity="precomputed", random_state=0).fit(similarity).labels_
    assert adjusted_rand_score(groups, peer) == 1.0


@pytest.mark.parametrize("n_groups", [2, 3, 7, 20, 45, 58, 59])
@pytest.mark.parametrize("negative", ["clip", "abs"])
@pytest.mark.parametrize("normalized", [False, True])
def test_exactly_as_many_groups_as_asked_for(n_groups, negative, normalized):
    similarity = random_similarity(60, seed=n_groups)
    before = similarity.copy()
    groups = spectral_groups(similarity, n_groups, negative=negative, normalized=normalized)
    assert groups.max() + 1 == n_groups
    assert numbered(groups)
    np.testing.assert_array_equal(similarity, before)


@pytest.mark.parametrize("n_groups", [100, 160, 190])
def test_the_objective_is_no_worse_than_the_peers(n_groups):
    similarity = random_similarity(200, seed=3)
    weights = np.clip(similarity, 0, None)
    scale = 1 / np.sqrt(weights.sum(axis=1))
    values, vectors = np.linalg.eigh(scale[:, None] * weights * scale)
    points = vectors[:, -n_groups:] * np.sqrt(np.clip(values[-n_groups:], 0, None))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    groups = spectral_groups(similarity, n_groups)
    ours = sum(((points[groups == g] - points[groups == g].mean(axis=0)) ** 2).sum() for g in range(n_groups))
    peer = KMeans(n_groups, n_init=10, random_state=0).fit(points).inertia_
    assert ours <= peer * (1 + 1e-9)


def test_few_groups_of_many_try_other_starts():
    similarity = random_similarity(200, seed=4, d=4)
    weights = np.clip(similarity, 0, None)
    scale = 1 / np.sqrt(weights.sum(axis=1))
    values, vectors = np.linalg.eigh(scale[:, None] * weights * scale)
    points = vectors[:, -6:] * np.sqrt(values[-6:])
    points /= np.linalg.norm(points, axis=1, keepdims=True)

    def objective(groups):
        return sum(((points[groups == g] - points[groups == g].mean(axis=0)) ** 2).sum() for g in range(6))

    ward = module.kmeans(points, 6, init="ward").objective
    peer = KMeans(6, n_init=10, random_state=0).fit(points).inertia_
    ours = objective(spectral_groups(similarity, 6))
    assert ours <= ward * (1 + 1e-9)
    assert ours <= peer * 1.01


@pytest.mark.parametrize("n_copies", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_identical_images_share_a_group(n_copies, seed):
    rng = np.random.default_rng(seed)
    distinct = random_similarity(40, seed=seed)
    which = rng.permutation(np.concatenate([np.arange(40), np.repeat(np.arange(8), n_copies - 1)]))
    similarity = distinct[np.ix_(which, which)]
    for n_groups in (40, 36, 30):
        groups = spectral_groups(similarity, n_groups)
        for image in range(8):
            assert len(np.unique(groups[which == image])) == 1
    np.testing.assert_array_equal(spectral_groups(similarity, 40), module._by_first(which))


def test_all_images_identical():
    for n_groups in range(1, 8):
        groups = spectral_groups(np.ones((7, 7)), n_groups)
        assert groups.max() + 1 == n_groups
        assert numbered(groups)


def test_one_image_and_the_two_ends():
    assert spectral_groups([[1.0]], 1).tolist() == [0]
    similarity = random_similarity(9, seed=5)
    assert spectral_groups(similarity, 1).tolist() == [0] * 9
    assert spectral_groups(similarity, 9).tolist() == list(range(9))


@pytest.mark.parametrize("n_groups", [3, 10, 40, 70])
def test_permuting_the_images_permutes_the_groups(n_groups):
    similarity = random_similarity(80, seed=6)
    order = np.random.default_rng(7).permutation(80)
    groups = spectral_groups(similarity, n_groups)
    permuted = spectral_groups(similarity[np.ix_(order, order)], n_groups)
    if n_groups > 5:  # with fewer, starts are drawn, and which are drawn depends on the order
        np.testing.assert_array_equal(module._by_first(groups[order]), permuted)
    np.testing.assert_array_equal(spectral_groups(similarity, n_groups), groups)


@pytest.mark.parametrize("n_groups", [4, 60])
def test_the_number_of_threads_does_not_matter(n_groups):
    similarity = random_similarity(120, seed=8)
    groups = spectral_groups(similarity, n_groups)
    with threadpool_limits(1):
        np.testing.assert_array_equal(spectral_groups(similarity, n_groups), groups)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtypes_and_memory_maps(dtype, tmp_path):
    similarity = random_similarity(50, seed=9).astype(dtype)
    similarity = np.triu(similarity) + np.triu(similarity, 1).T
    expected = spectral_groups(similarity.astype(np.float64), 30)
    np.testing.assert_array_equal(spectral_groups(similarity, 30), expected)
    np.save(tmp_path / "s.npy", similarity)
    np.testing.assert_array_equal(spectral_groups(np.load(tmp_path / "s.npy", mmap_mode="r"), 30), expected)


# ------------------------------------------------------------------------------------------------ graphs


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_groups", [5, 8, 30, 60])
def test_sparse_equals_dense(n_groups, method):
    similarity, _ = blobs((20, 30, 25), seed=10, spread=0.5)
    similarity[similarity < 0.2] = 0.0
    graph = scipy.sparse.coo_array(similarity)
    expected = spectral_groups(similarity, n_groups, method="dense")
    np.testing.assert_array_equal(spectral_groups(graph, n_groups, method=method), expected)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_lanczos_equals_all_eigenvectors(sparse, normalized):
    similarity, which = blobs((100, 120, 80), seed=11, spread=0.35)
    similarity[similarity < 1e-4] = 0.0
    given = scipy.sparse.csr_array(similarity) if sparse else similarity
    groups = spectral_groups(given, 3, normalized=normalized, method="sparse")
    assert adjusted_rand_score(groups, which) == 1.0
    some = spectral_groups(given, 12, normalized=normalized, method="sparse")
    all_of_them = spectral_groups(similarity, 12, normalized=normalized, method="dense")
    np.testing.assert_array_equal(some, all_of_them)


@pytest.mark.parametrize("normalized", [False, True])
def test_what_lanczos_does_not_reach_is_found_by_the_inverse(monkeypatch, normalized):
    similarity, which = blobs((60, 70, 50), seed=15, spread=0.35)
    similarity[similarity < 1e-4] = 0.0
    plain = module.eigsh

    def fails_unless_shifted(operator, count, **options):
        if "sigma" not in options:
            raise module.ArpackNoConvergence("none", np.empty(0), np.empty((0, 0)))
        return plain(operator, count, **options)

    monkeypatch.setattr(module, "eigsh", fails_unless_shifted)
    options = {"normalized": normalized, "method": "sparse"}
    groups = spectral_groups(scipy.sparse.csr_array(similarity), 3, **options)
    assert adjusted_rand_score(groups, which) == 1.0
    with pytest.raises(RuntimeError, match="The Lanczos iterations did not converge"):
        spectral_groups(similarity, 3, **options)


def test_connected_parts_get_groups_by_their_eigenvalues():
    # Three pairs and two images alone: the most similar pair is joined first.
    graph = similarity_graph(8, [[0, 5], [1, 6], [2, 7]], [0.7, 0.9, 0.8])
    for given in (graph, graph.toarray()):
        assert spectral_groups(given, 7).tolist() == [0, 1, 2, 3, 4, 5, 1, 6]
        assert spectral_groups(given, 6).tolist() == [0, 1, 2, 3, 4, 5, 1, 2]
        assert spectral_groups(given, 5).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_equal_parts_tie_by_index():
    graph = similarity_graph(6, [[4, 5], [0, 1], [2, 3]], [0.6, 0.6, 0.6])
    # The part with the lowest image keeps its two groups.
    assert spectral_groups(graph, 4).tolist() == [0, 1, 2, 2, 3, 3]
    assert spectral_groups(graph, 5).tolist() == [0, 1, 2, 3, 4, 4]


def test_more_parts_than_groups_joins_parts_by_their_mean_similarity():
    similarity = np.full((6, 6), -0.9)
    for block in ([0, 3], [1, 4], [2, 5]):
        similarity[np.ix_(block, block)] = 0.8
    similarity[np.ix_([0, 3], [2, 5])] = similarity[np.ix_([2, 5], [0, 3])] = -0.1
    np.fill_diagonal(similarity, 1.0)
    assert spectral_groups(similarity, 2).tolist() == [0, 1, 0, 0, 1, 0]
    assert spectral_groups(np.eye(4), 2).max() == 1
    assert spectral_groups(scipy.sparse.eye_array(4), 3).max() == 2


def test_many_small_parts():
    rng = np.random.default_rng(12)
    n = 3000
    pairs = np.arange(2 * 600).reshape(-1, 2)
    values = rng.uniform(0.5, 1.0, size=600)
    graph = similarity_graph(n, pairs, values)
    groups = spectral_groups(graph, n - 250)
    joined = groups[pairs[:, 0]] == groups[pairs[:, 1]]
    assert joined.sum() == 250
    assert values[joined].min() > values[~joined].max()


def test_limits(monkeypatch):
    similarity = random_similarity(60, seed=13) + 1.0
    monkeypatch.setattr(module, "_MAX_DENSE", 50)
    with pytest.raises(ValueError, match="connected parts have at most 50 images for the dense method"):
        spectral_groups(similarity, 30, method="dense")
    assert spectral_groups(similarity, 3).max() == 2
    monkeypatch.setattr(module, "_MAX_VECTORS", 600)
    with pytest.raises(ValueError, match="at most 10 eigenvectors of a connected part of 60 images"):
        spectral_groups(similarity, 11)
    with pytest.raises(ValueError, match="`n_groups` must be at least 60, the number of connected parts"):
        spectral_groups(np.eye(60), 2)


def test_negative_similarities_kept():
    similarity, which = blobs((20, 30), seed=14)
    similarity -= 0.001
    np.fill_diagonal(similarity, 1.0)
    assert adjusted_rand_score(spectral_groups(similarity, 2, negative="keep"), which) == 1.0
    assert NEGATIVE == ("clip", "keep", "abs")


@pytest.mark.parametrize(
    ("similarity", "options", "error", "message"),
    [
        (np.ones((2, 3)), {"n_groups": 1}, ValueError, "`similarity` must be a square matrix"),
        ([[1.0, 0.5], [0.4, 1.0]], {"n_groups": 1}, ValueError, "`similarity` must be symmetric"),
        ([[1.0, np.nan], [np.nan, 1.0]], {"n_groups": 1}, ValueError, "`similarity` must be finite, got 2 NaN"),
        ([["a"]], {"n_groups": 1}, TypeError, "`similarity` must hold real numbers"),
        (np.eye(3), {"n_groups": 4}, ValueError, "`n_groups` must be in 1 to 3, the number of images, got 4"),
        (np.eye(3), {"n_groups": 0}, ValueError, "`n_groups` must be in 1 to 3"),
        (np.eye(3), {"n_groups": 2.0}, TypeError, "`n_groups` must be an integer, got 2.0"),
        (np.eye(3), {"n_groups": True}, TypeError, "`n_groups` must be an integer"),
        (np.eye(3), {"n_groups": 2, "negative": "no"}, ValueError, "`negative` must be one of"),
        (np.eye(3), {"n_groups": 2, "method": "fast"}, ValueError, "`method` must be one of 'auto', 'dense', 'sparse'"),
        (np.diag([1.0, 0.0]), {"n_groups": 2}, ValueError, "to itself, above 0, on its diagonal, got 1 that"),
        (np.ones((3, 3)) - np.eye(3), {"n_groups": 2}, ValueError, "got 3 that are not, the first 0 at index 0"),
        (
            [[1.0, -2.0, 0.1], [-2.0, 1.0, 0.1], [0.1, 0.1, 1.0]],
            {"n_groups": 2, "negative": "keep"},
            ValueError,
            "`similarity` must have degrees above 0",
        ),
    ],
)  # fmt: skip
def test_bad_input(similarity, options, error, message):
    with pytest.raises(error, match=message):
        spectral_groups(similarity, **options)


# ------------------------------------------------------------------------------------------------ the paper


@pytest.mark.data
def test_identical_images_of_the_papers_example_are_grouped(data_folder):
    from toolkit.similarity import pairwise_ssim

    images = runpy.run_path(str(data_folder / "unpack_cifar.py"))["tiles"](
        data_folder / "cifar100" / "aquarium_fish_train.webp"
    )
    similarity = pairwise_ssim(images.transpose(0, 3, 1, 2), variant="volume")
    flat = images.reshape(500, -1)
    twins = [(i, j) for i in range(500) for j in range(i + 1, 500) if (flat[i] == flat[j]).all()]
    assert len(twins) == 5
    for n_groups in (495, 454, 46):
        groups = spectral_groups(similarity, n_groups)
        assert groups.max() + 1 == n_groups
        assert all(groups[i] == groups[j] for i, j in twins)
    # As like each other as the groups of complete linkage, which looks at nothing else: 0.57 at least.
    groups = spectral_groups(similarity, 454)
    within = similarity[np.triu(groups[:, None] == groups, 1)]
    assert within.min() > 0.5
    assert np.median(within) > 0.7
    # scikit-learn tears identical images apart and makes one group of forty.
    peer = SpectralClustering(454, affinity="precomputed", random_state=0, n_init=1).fit(np.clip(similarity, 0, None))
    assert sum(peer.labels_[i] == peer.labels_[j] for i, j in twins) < 5
    assert np.bincount(peer.labels_).max() > 5 * np.bincount(groups).max()
