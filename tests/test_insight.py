"""Insight functions against brute force."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from toolkit import insight
from toolkit.insight import (
    find_leaks,
    find_leaks_by_similarity,
    influential_pairs,
    least_similar_pairs,
    most_isolated,
    near_duplicates,
)


def vectors(n, d, seed=0):
    """Vectors with near-duplicates and a few exact copies."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x[n // 2 :] = x[: n - n // 2] + rng.normal(size=(n - n // 2, d)) * rng.uniform(0, 0.5, size=(n - n // 2, 1))
    x[-3:] = x[:3]
    return x


def between(x, metric, y=None):
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = None if y is None else y / np.linalg.norm(y, axis=1, keepdims=True)
        return 0.5 * cdist(x, x if y is None else y, "sqeuclidean")
    return cdist(x, x if y is None else y)


def similarities(n, seed=0):
    """A symmetric matrix of few different values, so that many tie."""
    s = np.random.default_rng(seed).integers(-20, 21, size=(n, n)) / 21
    s = np.triu(s, 1)
    return s + s.T + np.eye(n)


def sorted_pairs(n, value, wanted=lambda i, j: True):
    """All pairs by value, ties by index."""
    return sorted((value[i, j], i, j) for i, j in itertools.combinations(range(n), 2) if wanted(i, j))


@pytest.fixture
def small_blocks(monkeypatch):
    """Matrices are read in blocks of a few rows."""
    monkeypatch.setattr(insight, "_CHUNK_ELEMENTS", 300)


@pytest.mark.parametrize("n", [1, 7, 60, 5000])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_closest_pairs_are_those_of_brute_force(metric, n):
    x = vectors(90, 6)
    found = near_duplicates(x, n, metric=metric)
    expected = sorted_pairs(90, between(x, metric))[:n]
    np.testing.assert_allclose(found.distances, [value for value, _, _ in expected], rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(found.pairs[:3], [(i, j) for _, i, j in expected][:3])
    assert {*map(tuple, found.pairs.tolist())} == {(i, j) for _, i, j in expected}
    assert found.pairs.dtype == np.int64
    assert found.similarities is None


@pytest.mark.parametrize("n", [None, 4])
def test_pairs_within_a_radius(n):
    x = vectors(60, 4, seed=1)
    distance = between(x, "euclidean")
    radius = float(np.sort(distance[np.triu_indices(60, 1)])[25])
    found = near_duplicates(x, n, radius=radius)
    expected = [(i, j) for value, i, j in sorted_pairs(60, distance) if value <= radius]
    assert {*map(tuple, found.pairs.tolist())} == {*expected[:n]}
    assert np.all(np.diff(found.distances) >= 0)
    assert not len(near_duplicates(x[:20] * 9, radius=0.0).pairs)


def test_a_sample_bounds_the_closest_pairs_of_many(monkeypatch):
    monkeypatch.setattr(insight, "_SAMPLE", 16)
    x = vectors(400, 5, seed=2)
    expected = sorted_pairs(400, between(x, "euclidean"))
    for n in (1, 30, 500):
        found = near_duplicates(x, n)
        np.testing.assert_allclose(found.distances, [value for value, _, _ in expected[:n]], atol=1e-15)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_copies_beyond_number_are_not_all_paired(metric, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("12.5 million pairs would be made")

    monkeypatch.setattr(insight, "near_pairs", refuse)
    x = np.ones((5000, 2))
    x[0] = [1.0, 0.0]
    found = near_duplicates(x, 3, metric=metric)
    assert found.pairs.tolist() == [[1, 2], [1, 3], [1, 4]]
    assert found.distances.tolist() == [0, 0, 0]
    signs = np.array([[0.0, 1.0], [5.0, 5.0], [-0.0, 1.0]])
    assert near_duplicates(signs, 1, metric=metric).pairs.tolist() == [[0, 2]]


@pytest.mark.parametrize("limit", [{"n": 15}, {"min_similarity": 0.5}, {"n": 15, "min_similarity": 0.9}, {"n": 9999}])
@pytest.mark.usefixtures("small_blocks")
def test_the_most_similar_pairs_of_a_matrix(limit):
    s = similarities(40)
    found = near_duplicates(similarity=s, **limit)
    least = limit.get("min_similarity", -np.inf)
    expected = [(i, j) for value, i, j in sorted_pairs(40, -s) if -value >= least][: limit.get("n")]
    np.testing.assert_array_equal(found.pairs, expected)
    np.testing.assert_array_equal(found.similarities, [s[i, j] for i, j in expected])
    np.testing.assert_array_equal(found.distances, 1 - found.similarities)


@pytest.mark.usefixtures("small_blocks")
def test_the_least_similar_pairs_of_a_matrix():
    s = similarities(40, seed=3)
    found = least_similar_pairs(s, 25)
    expected = sorted_pairs(40, s)[:25]
    np.testing.assert_array_equal(found.pairs, [(i, j) for _, i, j in expected])
    np.testing.assert_array_equal(found.similarities, [value for value, _, _ in expected])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_isolated_images(metric):
    x = vectors(80, 5, seed=4)
    distance = between(x, metric) + np.diag(np.full(80, np.inf))
    found = most_isolated(x, 10, metric=metric)
    order = np.argsort(-distance.min(axis=1), kind="stable")[:10]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.nearest, distance[order].argmin(axis=1))
    np.testing.assert_allclose(found.distances, distance.min(axis=1)[order])
    assert len(most_isolated(x, 500).indices) == 80


@pytest.mark.usefixtures("small_blocks")
def test_isolated_images_by_similarity(tmp_path):
    s = similarities(50, seed=5)
    best = (s - 9 * np.eye(50)).max(axis=1)
    order = np.argsort(best, kind="stable")[:12]
    np.save(tmp_path / "s.npy", s)
    for matrix in (s, np.load(tmp_path / "s.npy", mmap_mode="r")):
        found = most_isolated(n=12, similarity=matrix)
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_array_equal(found.similarities, best[order])
        np.testing.assert_array_equal(found.nearest, (s - 9 * np.eye(50))[order].argmax(axis=1))
        assert isinstance(found.indices, np.ndarray)


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.usefixtures("small_blocks")
def test_influential_pairs(metric, names):
    x = vectors(80, 5, seed=6)
    rng = np.random.default_rng(7)
    groups, codes = rng.integers(-1, 4, size=80), rng.integers(3, size=80)
    labels = [["ant", "bee", "cat"][code] for code in codes] if names else codes
    expected = sorted_pairs(80, between(x, metric), lambda i, j: groups[i] == groups[j] >= 0 and codes[i] != codes[j])
    for n in (1, 20, 10_000):
        found = influential_pairs(x, groups, labels, n, metric=metric)
        np.testing.assert_allclose(found.distances, [value for value, _, _ in expected[:n]], atol=1e-15)
        assert {*map(tuple, found.pairs.tolist())} == {(i, j) for _, i, j in expected[:n]}
    s = similarities(80, seed=8)
    expected = sorted_pairs(80, -s, lambda i, j: groups[i] == groups[j] >= 0 and codes[i] != codes[j])[:20]
    found = influential_pairs(None, groups, labels, 20, similarity=s)
    np.testing.assert_array_equal(found.pairs, [(i, j) for _, i, j in expected])
    np.testing.assert_array_equal(found.similarities, [-value for value, _, _ in expected])


def test_ties_of_influential_pairs_go_to_the_lowest_indices():
    x = np.full((60, 3), 0.1)
    found = influential_pairs(x, np.zeros(60, int), np.arange(60) % 2, 4)
    assert found.pairs.tolist() == [[0, 1], [0, 3], [0, 5], [0, 7]]
    assert found.distances.tolist() == [0, 0, 0, 0]


def test_no_influential_pairs_where_each_group_has_one_label():
    found = influential_pairs(vectors(6, 2), [0, 0, 1, 1, -1, -1], [0, 0, 1, 1, 0, 1])
    assert found.pairs.shape == (0, 2)
    assert found.distances.shape == (0,)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_leaks_are_the_nearest_training_images(metric):
    train, test = vectors(120, 4, seed=9), vectors(30, 4, seed=10)
    test[:5] = train[40:45]
    distance = between(test, metric, train)
    radius = float(np.sort(distance.min(axis=1))[12])
    leaks = find_leaks(train, test, radius=radius * (1 + 1e-9), metric=metric)
    np.testing.assert_array_equal(leaks.nearest, distance.argmin(axis=1))
    np.testing.assert_allclose(leaks.distance, distance.min(axis=1), rtol=1e-6, atol=1e-15)
    assert leaks.twin.sum() == 13
    assert leaks.similarity is None
    assert not leaks.mirrored.any()
    twins = leaks.twins
    assert [*twins[:5]] == [0, 1, 2, 3, 4]
    assert np.all(np.diff(leaks.distance[twins]) >= 0)
    np.testing.assert_array_equal(leaks.pairs(twins), np.stack([twins, distance.argmin(axis=1)[twins]], axis=1))
    np.testing.assert_array_equal(leaks.isolated(4), np.argsort(-distance.min(axis=1))[:4])
    assert find_leaks(train, test).twin.sum() == 5


def test_mirrored_test_images_count_where_they_are_nearer():
    train = np.eye(4) * 5
    test, mirror = train[[0, 1, 2]].copy(), train[[3, 1, 0]].copy()
    test[0] += 0.5
    leaks = find_leaks(train, test, radius=0.1, mirrored_test_vectors=mirror)
    assert leaks.nearest.tolist() == [3, 1, 2]
    assert leaks.mirrored.tolist() == [True, False, False]
    assert leaks.twin.all()


def test_the_most_similar_candidate_is_taken():
    train, test = vectors(50, 3, seed=11), vectors(12, 3, seed=12)
    mirror = vectors(12, 3, seed=13)
    s = np.random.default_rng(14).uniform(-1, 1, size=(2, 12, 50))
    asked = []

    def similarity(of_test, of_train, mirrored):
        asked.append((of_test, of_train, mirrored))
        return s[mirrored.astype(int), of_test, of_train]

    leaks = find_leaks(train, test, mirrored_test_vectors=mirror, similarity=similarity, min_similarity=0.8, k=4)
    distance = np.stack([between(test, "euclidean", train), between(mirror, "euclidean", train)])
    ((of_test, _, mirrored),) = asked
    assert len(of_test) == 12 * 8
    assert mirrored.sum() == 12 * 4
    for row in range(12):
        near = [(s[m, row, j], m, j) for m in (0, 1) for j in np.argsort(distance[m, row])[:4]]
        value, m, j = max(near)
        assert (leaks.nearest[row], leaks.mirrored[row]) == (j, bool(m))
        assert leaks.similarity[row] == np.float32(value)
        assert leaks.distance[row] == pytest.approx(distance[m, row, j], rel=1e-6)
        assert leaks.twin[row] == (value >= 0.8)
    assert 0 < leaks.twin.sum() < 12
    assert np.all(np.diff(leaks.similarity[leaks.twins]) <= 0)
    both = find_leaks(train, test, similarity=similarity, min_similarity=-2, radius=float(leaks.distance.min()), k=99)
    np.testing.assert_array_equal(both.twin, both.distance <= leaks.distance.min())


@pytest.mark.usefixtures("small_blocks")
def test_leaks_by_similarity():
    rng = np.random.default_rng(15)
    s, mirrored = rng.uniform(-1, 1, size=(20, 40)), rng.uniform(-1, 1, size=(20, 40))
    leaks = find_leaks_by_similarity(s, min_similarity=0.97)
    np.testing.assert_array_equal(leaks.nearest, s.argmax(axis=1))
    np.testing.assert_array_equal(leaks.twin, s.max(axis=1) >= 0.97)
    np.testing.assert_array_equal(leaks.isolated(3), np.argsort(s.max(axis=1))[:3])
    both = find_leaks_by_similarity(s, mirrored_similarity=mirrored)
    np.testing.assert_array_equal(both.mirrored, mirrored.max(axis=1) > s.max(axis=1))
    np.testing.assert_array_equal(both.similarity, np.maximum(s, mirrored).max(axis=1).astype(np.float32))
    np.testing.assert_array_equal(both.nearest, np.where(both.mirrored, mirrored.argmax(axis=1), s.argmax(axis=1)))
    assert not find_leaks_by_similarity(s, mirrored_similarity=s).mirrored.any()


def test_the_table_of_leaks_is_a_file(tmp_path):
    leaks = find_leaks_by_similarity([[0.5, 0.25], [0.125, 1.0], [0.25, 0.125]])
    rows = leaks.table(["a", "b", "c"], ["t", "u"], test_labels=[3, 4, 5], train_labels=["x", "y"])
    with (tmp_path / "leaks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert (tmp_path / "leaks.csv").read_text().splitlines() == [
        "test,train,distance,similarity,mirrored,twin,test_id,train_id,test_label,train_label",
        "1,1,0.0,1.0,False,True,b,u,4,y",
        "0,0,0.5,0.5,False,False,a,t,3,x",
        "2,0,0.75,0.25,False,False,c,t,5,x",
    ]
    with pytest.raises(ValueError, match="`test_labels` must be of length 3, the number of test images, got 1"):
        leaks.table(test_labels=[0])
    with pytest.raises(ValueError, match="`train_ids` must be longer than the index 1 of a training image, got 1"):
        leaks.table(train_ids=["t"])


def test_inputs_are_not_changed():
    x, s = vectors(20, 3), similarities(20)
    x.setflags(write=False)
    s.setflags(write=False)
    near_duplicates(x, 3, metric="cosine")
    near_duplicates(similarity=s, n=3)
    most_isolated(x, 3)
    most_isolated(n=3, similarity=s)
    influential_pairs(x, np.zeros(20, int), np.arange(20), 3, metric="cosine")


BROKEN = similarities(4)
BROKEN[2, 1] = np.nan
CROOKED = similarities(4)
CROOKED[2, 1] += 0.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: near_duplicates(n=1), "`vectors` or `similarity` must be given, got neither"),
        (lambda: near_duplicates([[1.0]], 1, similarity=[[1.0]]), "must be given, got both"),
        (lambda: near_duplicates([[1.0]]), "`n` must be given where there is no `radius`, got None"),
        (lambda: near_duplicates(similarity=[[1.0]]), "`n` must be given where there is no `min_similarity`"),
        (lambda: near_duplicates([[1.0]], 0), "`n` must be 1 or more, got 0"),
        (lambda: near_duplicates([[1.0]], radius=-1.0), "`radius` must be 0 or more, got -1.0"),
        (lambda: near_duplicates([[1.0]], radius=np.nan), "`radius` must be 0 or more, got nan"),
        (lambda: near_duplicates([[1.0]], min_similarity=0.5), "`min_similarity` must be left out with vectors"),
        (lambda: near_duplicates(similarity=[[1.0]], radius=0.5), "`radius` must be left out with `similarity`"),
        (lambda: near_duplicates([[1.0]], 1, metric="city"), "`metric` must be one of 'euclidean', 'cosine'"),
        (lambda: near_duplicates([[np.nan]], 1), "`vectors` must be finite"),
        (lambda: near_duplicates([[0.0], [1.0]], 1, metric="cosine"), "`vectors` must have no zero rows"),
        (lambda: near_duplicates(similarity=BROKEN, n=1), "`similarity` must be finite, got 'NaN or infinite.*row 2"),
        (
            lambda: near_duplicates(similarity=CROOKED, n=1),
            r"`similarity` must be symmetric, got '.* at \[[12], [12]\]",
        ),
        (lambda: near_duplicates(similarity=np.ones((2, 3)), n=1), "`similarity` must be a square matrix"),
        (lambda: near_duplicates(similarity=np.ones(3), n=1), "`similarity` must be a non-empty matrix"),
        (lambda: most_isolated([[1.0]], 1), "`vectors` must be of two images or more, got 1"),
        (lambda: most_isolated(n=1, similarity=[[1.0]]), "`similarity` must be of two images or more, got 1"),
        (lambda: influential_pairs([[1.0]], [0, 0], [0]), r"`groups` must be of shape \(1,\)"),
        (lambda: influential_pairs([[1.0]], [0], []), "`labels` must be of length 1"),
        (lambda: find_leaks([[1.0]], [[1.0, 2.0]]), r"`test_vectors` must be of shape \(M, 1\)"),
        (lambda: find_leaks([[1.0]], [[1.0]], mirrored_test_vectors=[[1.0]] * 2), "must be 1 vectors, one for each"),
        (lambda: find_leaks([[1.0]], [[1.0]], radius=-0.5), "`radius` must be 0 or more"),
        (lambda: find_leaks([[1.0]], [[1.0]], k=0), "`k` must be 1 or more"),
        (lambda: find_leaks([[1.0]], [[1.0]], min_similarity=0.9), "`min_similarity` must be left out where there is"),
        (lambda: find_leaks([[1.0]], [[1.0]], similarity=lambda *_: [1, 2]), "gives 1 finite numbers for as many"),
        (lambda: find_leaks([[1.0]], [[1.0]], similarity=lambda *_: [np.nan]), "got 'NaN or infinite values'"),
        (lambda: find_leaks_by_similarity([[np.inf]]), "`similarity` must be finite"),
        (lambda: find_leaks_by_similarity([[1.0]], mirrored_similarity=[[1.0, 0.5]]), "`mirrored_similarity` must be"),
        (lambda: find_leaks([[0.0]], [[1.0]]).isolated(0), "`n` must be 1 or more"),
        (lambda: least_similar_pairs(CROOKED), "`similarity` must be symmetric"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: near_duplicates([[1.0]], 1.5), "`n` must be an integer, got 1.5"),
        (lambda: near_duplicates([["a"]], 1), "`vectors` must hold real numbers"),
        (lambda: near_duplicates(similarity=[["a"]], n=1), "`similarity` must hold real numbers"),
        (lambda: influential_pairs([[1.0]], [0.5], [0]), "`groups` must hold integers"),
        (lambda: find_leaks([[1.0]], [[1.0]], k=True), "`k` must be an integer"),
    ],
)
def test_errors_of_type(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.data
def test_identical_images_of_a_real_class(data_folder):
    images = np.asarray(_fish(data_folder), np.float32).reshape(500, -1) / 255
    found = near_duplicates(images, 8)
    assert (found.distances == 0).sum() == 5
    assert (images[found.pairs[:5, 0]] == images[found.pairs[:5, 1]]).all()
    assert found.distances[5] > 0


def _fish(folder):
    from PIL import Image

    sheet = np.asarray(Image.open(folder / "cifar100" / "aquarium_fish_train.webp").convert("RGB"))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    tiles = sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
    return tiles.reshape(-1, 32, 32, 3)[:500]
