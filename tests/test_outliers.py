"""Outlier scores against their definitions and scikit-learn, and groups among the chosen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist

from toolkit import outlier_trees, outliers
from toolkit.neighbors import nearest_neighbors
from toolkit.outlier_trees import spanning_tree
from toolkit.outliers import SCORES, OutlierModeWarning, choose_outliers, outlier_groups, outlier_scores

METRICS = ("euclidean", "cosine")


def blobs(n, d, seed=0, centres=5):
    """Vectors about some centres."""
    rng = np.random.default_rng(seed)
    return 8.0 * rng.normal(size=(centres, d))[rng.integers(0, centres, n)] + rng.normal(size=(n, d))


def whole_numbers(n, d, seed=0):
    """Vectors with many equal distances, all of which float64 holds exactly when squared."""
    return np.round(blobs(n, d, seed))


def reachability(x, k, metric="euclidean"):
    """Mutual reachability of all pairs, and the core distances."""
    x = np.asarray(x, np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    between = 0.5 * cdist(x, x, "sqeuclidean") if metric == "cosine" else cdist(x, x)
    others = between + np.where(np.eye(len(x)) > 0, np.inf, 0.0)
    core = np.sort(others, axis=1)[:, k - 1]
    return np.maximum(between, np.maximum(core[:, None], core)), core


def parts_below(between, members, length):
    """Components of some vectors, joined where less than a length apart."""
    near = between[np.ix_(members, members)] < length
    np.fill_diagonal(near, False)
    label = connected_components(near, directed=False)[1]
    return [members[label == i] for i in range(label.max() + 1)]


def lengths_of(between):
    """The lengths at which components change, the longest first."""
    # Of ranks instead of lengths, since scipy takes 0 for no edge.
    ranks = np.unique(between, return_inverse=True)[1].reshape(between.shape) + 1.0
    tree = minimum_spanning_tree(np.where(np.eye(len(between)) > 0, 0.0, ranks)).tocoo()
    return np.unique(between[tree.row, tree.col])[::-1]


def slow_leaving(between):
    """What `hdbscan` is defined to be, length by length."""
    body, scores = np.arange(len(between)), np.zeros(len(between))
    for length in lengths_of(between):
        parts = parts_below(between, body, length * (1.0 - 1e-12))
        if len(parts) > 1:
            body = max(parts, key=lambda part: (len(part), -part[0]))
            for part in parts:
                if part is not body or len(part) == 1:
                    scores[part] = length
    return scores


def slow_glosh(between, least):
    """What `glosh` is defined to be, cluster by cluster."""
    lengths, scores = lengths_of(between), np.zeros(len(between))

    def shrink(members, start):
        """Follow a cluster down; returns the shortest length at which it or one inside of it exists."""
        fallen, at, lowest = [], members, np.inf
        for step in range(start, len(lengths)):
            parts = parts_below(between, at, lengths[step] * (1.0 - 1e-12))
            if len(parts) == 1:
                continue
            lowest = lengths[step]
            large = [part for part in parts if len(part) >= least]
            fallen += [(i, lowest) for part in parts if len(part) < least for i in part]
            if len(large) != 1:
                lowest = min([lowest, *(shrink(part, step + 1) for part in large)])
                break
            at = large[0]
        for i, length in fallen:
            scores[i] = 1.0 - lowest / length if length > 0 else 0.0
        return lowest

    shrink(np.arange(len(between)), 0)
    return scores


@pytest.fixture(params=["as chosen", "short lists", "short lists, small blocks"])
def path(request, monkeypatch):
    """Edges mostly from the lists of neighbours, and mostly from comparing rows."""
    if request.param != "as chosen":
        monkeypatch.setattr(outliers, "_LISTED", 1)
    if "small blocks" in request.param:
        monkeypatch.setattr(outlier_trees, "_BLOCK_ROWS", 8)
        monkeypatch.setattr(outlier_trees, "_BLOCK_COLUMNS", 24)
    return request.param


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 4])
def test_the_tree_weighs_what_scipys_does(metric, k):
    for seed, (n, d) in enumerate([(2, 1), (40, 2), (300, 3), (500, 9)]):
        x = blobs(n, d, seed) if seed % 2 else whole_numbers(n, d, seed) + 0.5
        k_used = min(k, n - 1)
        tree = spanning_tree(x, k_used, nearest_neighbors(x, min(k + 1, n - 1), metric=metric), metric=metric)
        between, _ = reachability(x, k_used, metric)
        assert tree.edges.shape == (n - 1, 2)
        assert (tree.edges[:, 0] < tree.edges[:, 1]).all()
        np.testing.assert_allclose(tree.weights, between[tuple(tree.edges.T)], rtol=1e-9, atol=1e-13)
        # scipy takes 0 for no edge, so all lengths are 1 longer.
        wanted = np.sort(minimum_spanning_tree(np.where(np.eye(n) > 0, 0.0, between + 1.0)).data) - 1.0
        np.testing.assert_allclose(tree.weights, wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("make", "metric"), [(blobs, "euclidean"), (whole_numbers, "euclidean"), (blobs, "cosine")]
)  # fmt: skip
def test_scores_are_what_they_are_defined_to_be(make, metric):
    for seed, (n, d, k) in enumerate([(2, 2, 1), (3, 1, 1), (50, 2, 1), (90, 3, 5)]):
        x = make(n, d, seed) + 0.25
        between, _ = reachability(x, k, metric)
        tolerance = {"rtol": 1e-7, "atol": 1e-12}
        np.testing.assert_allclose(outlier_scores(x, "hdbscan", k=k, metric=metric), slow_leaving(between), **tolerance)
        for least in (2, 7):
            found = outlier_scores(x, "glosh", k=k, min_cluster_size=least, metric=metric)
            np.testing.assert_allclose(found, slow_glosh(between, least), **tolerance)


@pytest.mark.parametrize("metric", METRICS)
def test_knn_is_the_mean_of_the_nearest(metric):
    x = blobs(200, 6)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    between = 0.5 * cdist(unit, unit, "sqeuclidean") if metric == "cosine" else cdist(x, x)
    for k in (1, 16, 199):
        wanted = np.sort(between, axis=1)[:, 1 : k + 1].mean(axis=1)
        np.testing.assert_allclose(outlier_scores(x, k=k, metric=metric), wanted, rtol=1e-9)
    np.testing.assert_array_equal(outlier_scores(x, metric=metric), outlier_scores(x, "knn", k=16, metric=metric))


@pytest.mark.parametrize(("n_gone", "k", "seed"), [(10, 1, 0), (30, 4, 1), (60, 4, 2), (100, 2, 3)])
def test_hdbscan_orders_the_noise_of_one_cluster_as_scikit_learn_finds_it(n_gone, k, seed):
    from sklearn.cluster import HDBSCAN

    x = np.random.default_rng(seed).normal(size=(220, 3))
    # As in the thesis' code: one cluster of at least what is to be kept.
    library = HDBSCAN(
        min_cluster_size=len(x) - n_gone, min_samples=k + 1, allow_single_cluster=True, algorithm="brute", copy=True
    )
    noise = np.flatnonzero(library.fit(x).labels_ == -1)
    assert 0 < len(noise) <= n_gone
    chosen = outliers.outliers(outlier_scores(x, "hdbscan", k=k), len(noise))
    assert sorted(chosen.tolist()) == noise.tolist()


@pytest.mark.parametrize("k", [1, 5])
def test_merge_heights_are_those_of_scikit_learn(k):
    from sklearn.cluster import HDBSCAN

    x = blobs(400, 4, 7)
    library = HDBSCAN(min_samples=k + 1, algorithm="brute", copy=True).fit(x)
    heights = np.sort([merge[2] for merge in library._single_linkage_tree_])
    np.testing.assert_allclose(spanning_tree(x, k, nearest_neighbors(x, 8)).weights, heights, rtol=1e-9)


def test_glosh_sees_outliers_of_a_dense_cluster_beside_a_sparse_one():
    rng = np.random.default_rng(0)
    dense, sparse = rng.normal(size=(200, 2)), 30.0 * rng.normal(size=(200, 2)) + 300.0
    x = np.concatenate([dense, sparse, [[9.0, 0.0]]])
    ranks = {m: outliers.outliers(outlier_scores(x, m, k=5), len(x)).tolist().index(400) for m in ("knn", "glosh")}
    assert ranks["glosh"] < 10 < 50 < ranks["knn"]


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("method", SCORES)
def test_permuting_permutes_and_nothing_given_is_changed(method):
    x = blobs(300, 4, 3)
    x[50:80] = x[20:50]
    copy, order = x.copy(), np.random.default_rng(1).permutation(300)
    scores = outlier_scores(x, method, k=4)
    np.testing.assert_allclose(outlier_scores(x[order], method, k=4), scores[order], rtol=1e-12)
    np.testing.assert_array_equal(x, copy)
    np.testing.assert_array_equal(outlier_scores(x, method, k=4), scores)


@pytest.mark.parametrize("threads", [1, 5])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch):
    x = blobs(900, 5, 4).astype(np.float32)
    monkeypatch.setattr(outlier_trees, "_BLOCK_ROWS", 16)
    lists = nearest_neighbors(x, 2)
    tree = spanning_tree(x, 2, lists)
    monkeypatch.setattr(outlier_trees, "_threads", lambda: threads)
    again = spanning_tree(x, 2, lists)
    np.testing.assert_array_equal(tree.edges, again.edges)
    np.testing.assert_array_equal(tree.weights, again.weights)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    def fail(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(outlier_trees._Points, "left", fail)
    x = blobs(300, 3)
    with pytest.raises(MemoryError, match="no memory"):
        spanning_tree(x, 1, nearest_neighbors(x, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 1e7,
        lambda x: x * 2.0**600,
        lambda x: x * 2.0**-600,
        lambda x: x * 2.0**-1030,
        lambda x: np.concatenate([x, 1e9 + x[:1]]),
        lambda x: np.concatenate([x, np.full((len(x), 1), 3.0)], axis=1),
    ],
    ids=["far from zero", "huge", "tiny", "denormal", "one far away", "constant column"],
)
def test_bounds_hold_for_any_scale(change):
    x = change(np.round(64 * blobs(300, 3, 5)) / 64)
    scale = 2.0 ** np.floor(np.log2(np.abs(x).max()))
    between, _ = reachability(x / scale, 1)
    tree = spanning_tree(x, 1, nearest_neighbors(x, 1))
    wanted = np.sort(minimum_spanning_tree(np.where(np.eye(len(x)) > 0, 0.0, between + 1.0)).data) - 1.0
    np.testing.assert_allclose(tree.weights / scale, wanted, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("method", SCORES)
def test_any_array_will_do(method, tmp_path):
    x = np.round(4 * blobs(120, 3, 6)) + 100.0
    plain = outlier_scores(x, method, k=3)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given in (mapped, np.asfortranarray(x), x.tolist(), torch.from_numpy(x), x.astype(np.float16), x.astype(">f8")):
        np.testing.assert_allclose(outlier_scores(given, method, k=3), plain, rtol=1e-6)
    for dtype in (np.uint8, np.int32):
        np.testing.assert_array_equal(outlier_scores(x.astype(dtype), method, k=3), plain)


@pytest.mark.parametrize("method", SCORES)
def test_degenerate_data(method):
    assert outlier_scores([[3.0, 4.0]], method).tolist() == [0.0]
    assert choose_outliers([[3.0]], 1, method).indices.tolist() == [0]
    assert outlier_scores([[0.0], [2.0]], method).tolist() == ([0.0, 0.0] if method == "glosh" else [2.0, 2.0])
    equal = outlier_scores(np.ones((50, 3)), method, metric="cosine")
    assert equal.tolist() == [0.0] * 50
    far = np.concatenate([np.zeros((40, 2)), [[3.0, 4.0]]])
    assert outlier_scores(far, method, k=2).argmax() == 40


def test_groups_of_duplicates_longer_than_the_lists(monkeypatch):
    monkeypatch.setattr(outliers, "_LISTED", 3)
    x = np.repeat([[0.0], [5.0], [6.0], [20.0]], 30, axis=0)
    scores = outlier_scores(x, "hdbscan", k=2)
    # Equally large groups: the body is what holds the lowest index.
    assert scores[::30].tolist() == [5.0, 0.0, 1.0, 14.0]
    between, _ = reachability(x, 2)
    np.testing.assert_array_equal(scores, slow_leaving(between))


def test_progress_is_shown(capsys):
    outlier_scores(blobs(300, 3), "hdbscan", progress=True)
    assert "joining" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the choice


def with_modes(seed=0):
    """A body of 600, modes of 40 and 25 apart from it, and 20 outliers around it: from 600, 640 and 665 on."""
    rng = np.random.default_rng(seed)
    ways = rng.normal(size=(22, 6))
    ways *= 30.0 / np.linalg.norm(ways, axis=1, keepdims=True)
    body, noise = rng.normal(size=(600, 6)), rng.normal(size=(65, 6))
    return np.concatenate([body, ways[0] + noise[:40], -ways[0] + noise[40:], 0.4 * ways[2:]])


def test_largest_scores_ties_by_index():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 100).astype(float)
    scores[3] = np.inf
    for n in (0, 1, 37, 100):
        wanted = sorted(range(100), key=lambda i: (-scores[i], i))[:n]
        assert outliers.outliers(scores, n).tolist() == wanted


def test_modes_among_the_chosen_are_found():
    x = with_modes()
    with pytest.warns(OutlierModeWarning, match=r"65 of the 85 .* form 2 group\(s\) of their own \(40, 25 members\)"):
        groups = outlier_groups(x, np.arange(600, 685)[::-1])
    assert [group.tolist() for group in groups] == [list(range(600, 640)), list(range(640, 665))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outlier_groups(x, np.arange(665, 685)) == []
        assert outlier_groups(x, np.arange(600, 640, 3)) == []  # a third of a mode: the others stay for it
        assert outlier_groups(x, np.arange(600, 685), min_size=41) == []
        assert outlier_groups(x, []) == []
        assert outlier_groups(x[:1], [0]) == []


@pytest.mark.parametrize("metric", METRICS)
def test_modes_are_removed_with_a_warning_or_kept_back(metric):
    x = with_modes() + 100.0 * (metric == "cosine") * np.ones(6)
    arguments = {"method": "hdbscan", "k": 4, "metric": metric}
    with pytest.warns(OutlierModeWarning) as caught:
        plain = choose_outliers(x, 85, **arguments)
    assert caught[0].filename == __file__
    assert sorted(plain.indices.tolist()) == list(range(600, 685))
    assert [len(group) for group in plain.groups] == [40, 25]
    for n in (30, 85, 250):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            careful = choose_outliers(x, n, **arguments, protect_modes=True)
            assert outlier_groups(x, careful.indices, metric=metric) == []
        assert len(careful.indices) == len(set(careful.indices.tolist())) == n
        np.testing.assert_array_equal(careful.scores, plain.scores)
        for mode in (np.arange(600, 640), np.arange(640, 665)):
            assert len(np.setdiff1d(mode, careful.indices)) >= len(mode) / 4
        assert not set(careful.indices.tolist()) & {i for group in careful.groups for i in group.tolist()}
        if n == 85:
            assert set(careful.indices.tolist()) >= set(range(665, 685))
            assert set(range(600, 640)) & {i for group in careful.groups for i in group.tolist()}
        for choice in (plain, careful):
            np.testing.assert_array_equal(choice.order[: len(choice.indices)], choice.indices)
            assert sorted(choice.order.tolist()) == list(range(len(x)))
    # Without modes among the largest scores, these are what is chosen.
    few = choose_outliers(x, 5, **arguments)
    np.testing.assert_array_equal(choose_outliers(x, 5, **arguments, protect_modes=True).indices, few.indices)


def test_nothing_chosen_in_the_place_of_a_mode_makes_a_new_one():
    """Step by step, what the kernel does with counts."""
    x = with_modes()
    near = nearest_neighbors(x, 9).indices
    order = outliers.outliers(outlier_scores(x, "hdbscan", k=4), len(x))
    for n in (85, 250):
        start = order[:n]
        kept_back = np.concatenate(outliers._modes(near, start, 10))
        chosen, buried = set(start.tolist()) - set(kept_back.tolist()), set()

        def is_buried(i, among):
            return sum(j in among for j in near[i].tolist()) >= 0.75 * 9

        buried = {i for i in chosen if is_buried(i, chosen)}
        for i in order.tolist():
            if len(chosen) < n and i not in chosen and i not in kept_back:
                more = chosen | {i}
                if all(j in buried or not is_buried(j, more) for j in more):
                    chosen = more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = choose_outliers(x, n, "hdbscan", k=4, protect_modes=True)
        assert len(chosen) == n
        assert set(found.indices.tolist()) == chosen


def test_exactly_as_many_even_where_only_modes_are_left():
    x = with_modes()
    with pytest.warns(OutlierModeWarning):
        choice = choose_outliers(x, len(x), "knn", protect_modes=True)
    assert sorted(choice.indices.tolist()) == list(range(len(x)))
    few = np.zeros(len(x), bool)
    few[590:640] = True
    with pytest.warns(OutlierModeWarning, match=r"30 of the 40 vectors .* form 1 group"):
        choice = choose_outliers(x, 40, "knn", candidates=few, protect_modes=True)
    assert set(range(590, 600)) <= set(choice.indices.tolist())
    for n in (0, 1, 400):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(choose_outliers(x, n, "glosh", protect_modes=n != 1).indices) == n


@pytest.mark.parametrize("protect_modes", [False, True])
def test_candidates_and_classes(protect_modes):
    x = with_modes()
    rng = np.random.default_rng(2)
    classes, candidates = rng.integers(0, 3, len(x)), rng.random(len(x)) < 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choice = choose_outliers(
            x, [5, 0, 12], protect_modes=protect_modes, candidates=candidates, classes=classes
        )  # fmt: skip
    assert np.bincount(classes[choice.indices], minlength=3).tolist() == [5, 0, 12]
    assert sorted(choice.order.tolist()) == np.flatnonzero(candidates).tolist()
    np.testing.assert_array_equal(choice.order[:17], choice.indices)
    if not protect_modes:
        for label, count in ((0, 5), (2, 12)):
            free = np.flatnonzero(candidates & (classes == label))
            wanted = free[np.argsort(-choice.scores[free], kind="stable")][:count]
            assert [i for i in choice.indices.tolist() if classes[i] == label] == wanted.tolist()


def test_neighbours_of_an_index():
    pytest.importorskip("faiss")
    x = with_modes()
    exact = choose_outliers(x, 20, k=5, protect_modes=True)
    found = choose_outliers(x, 20, k=5, protect_modes=True, index="IVF4,Flat")
    assert len(set(found.indices.tolist()) & set(exact.indices.tolist())) >= 18
    all_lists = choose_outliers(x, 20, k=5, index="IVF40,Flat", nprobe=40)
    np.testing.assert_allclose(all_lists.scores, exact.scores, rtol=1e-6)
    one_list = choose_outliers(x, 20, k=5, index="IVF40,Flat", nprobe=1)
    assert (one_list.scores > exact.scores * 1.001).any()


# ------------------------------------------------------------------------------------------------ bad input


GOOD = np.arange(24.0).reshape(12, 2) + 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "lof"}, ValueError, "`method` must be one of 'knn', 'hdbscan', 'glosh', got 'lof'"),
        ({"metric": "l1"}, ValueError, "`metric` must be one of 'euclidean', 'cosine', got 'l1'"),
        ({"k": 0}, ValueError, "`k` must be at least 1, got 0"),
        ({"k": 12}, ValueError, "`k` must be at most 11, one less than the number of vectors, got 12"),
        ({"k": 2.0}, TypeError, "`k` must be an integer, got 2.0"),
        ({"vectors": [[1.0]], "k": 1}, ValueError, "`k` must be at most 0"),
        ({"min_cluster_size": 1}, ValueError, "`min_cluster_size` must be at least 2, got 1"),
        ({"min_cluster_size": True}, TypeError, "`min_cluster_size` must be an integer"),
        ({"vectors": [1.0, 2.0]}, ValueError, "`vectors` must be a non-empty matrix"),
        ({"vectors": np.empty((0, 2), int)}, ValueError, "`vectors` must be a non-empty matrix"),
        ({"vectors": [["a"]]}, TypeError, "`vectors` must hold real numbers"),
        ({"vectors": [[1.0], [np.nan]]}, ValueError, "`vectors` must be finite, .* 1 of 2 rows, the first at index 1"),
        ({"vectors": [[1], [0]], "metric": "cosine"}, ValueError, "`vectors` must have no zero rows"),
    ],
)
def test_bad_input_of_scores(arguments, error, message):
    with pytest.raises(error, match=message):
        outlier_scores(**({"vectors": GOOD} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": -1}, ValueError, "`n` must be at least 0, got -1"),
        ({"n": 13}, ValueError, r"`n` must be 0 to \[12\], the number of candidates, got \[13\]"),
        ({"n": 1.0}, TypeError, "`n` must be an integer"),
        ({"min_size": 1}, ValueError, "`min_size` must be at least 2"),
        ({"candidates": np.ones(11, bool)}, ValueError, r"`candidates` must be bool of shape \(12,\)"),
        ({"candidates": np.ones(12)}, ValueError, "`candidates` must be bool"),
        (
            {"classes": [0] * 11, "n": [1]},
            ValueError,
            r"`classes` must be of shape \(12,\) and below the length",
        ),
        ({"classes": [1] * 12, "n": [1]}, ValueError, "`classes` must be of shape"),
        ({"classes": [-1] * 12, "n": [1]}, ValueError, "`classes` must be of shape"),
        ({"classes": [0] * 12, "n": 1}, ValueError, "`classes` must be of shape"),
        ({"classes": [0.0] * 12, "n": [1]}, TypeError, "`n` and `classes` must hold integers"),
        ({"classes": [0] * 12, "n": [1, 1]}, ValueError, r"`n` must be 0 to \[12, 0\]"),
        ({"index": "Flat", "method": "glosh"}, ValueError, "`index` must be \"exact\" for the score 'glosh'"),
        ({"vectors": GOOD * np.nan}, ValueError, "`vectors` must be finite"),
    ],
)
def test_bad_input_of_the_choice(arguments, error, message):
    with pytest.raises(error, match=message):
        choose_outliers(**({"vectors": GOOD, "n": 2} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"chosen": [0, 12]}, ValueError, "`chosen` must be different indices in 0 to 11"),
        ({"chosen": [-1]}, ValueError, "`chosen` must be different indices"),
        ({"chosen": [3, 3]}, ValueError, "`chosen` must be different indices"),
        ({"chosen": [[1, 2]]}, ValueError, "`chosen` must be different indices"),
        ({"chosen": [1.0]}, TypeError, "`chosen` must hold integers, got dtype float64"),
        ({"min_size": 1}, ValueError, "`min_size` must be at least 2"),
        ({"metric": "l1"}, ValueError, "`metric` must be one of"),
    ],
)
def test_bad_input_of_groups(arguments, error, message):
    with pytest.raises(error, match=message):
        outlier_groups(**({"vectors": GOOD, "chosen": [1]} | arguments))


@pytest.mark.parametrize(
    ("scores", "n", "error", "message"),
    [
        ([[1.0]], 1, ValueError, r"`scores` must be of shape \(N,\) without NaN"),
        ([1.0, np.nan], 1, ValueError, "`scores` must be .* without NaN, got .*1 NaN"),
        ([1.0], 2, ValueError, "`n` must be at most 1, the number of scores, got 2"),
        ([1.0], -1, ValueError, "`n` must be at least 0"),
        ([1.0], 0.5, TypeError, "`n` must be an integer"),
    ],
)
def test_bad_input_of_the_largest(scores, n, error, message):
    with pytest.raises(error, match=message):
        outliers.outliers(scores, n)


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.slow
@pytest.mark.data
def test_whole_classes_leave_cifar10_together(data_folder):
    with np.load(data_folder / "features" / "resnet32_cifar10_train.npz") as file:
        vectors, labels = file["features"], file["labels"]
    kept = {}
    for method in ("knn", "hdbscan"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutlierModeWarning)
            choice = choose_outliers(vectors, 25_000, method, metric="cosine")
        kept[method] = np.bincount(np.delete(labels, choice.indices), minlength=10).min()
    assert kept["hdbscan"] == 0
    assert kept["knn"] > 500
