"""Near pairs and nearest neighbours against comparing everything."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from toolkit import neighbors
from toolkit.neighbors import METRICS, near_pairs, nearest_neighbors


def blobs(n, d, seed=0, rank=6):
    """Vectors near a few dimensions, as those of images are."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) + 0.1 * rng.normal(size=(n, d)) + 2.0


def everything(x, y=None, metric="euclidean"):
    """All dissimilarities, infinite for a row and itself."""
    x = np.asarray(x, dtype=np.float64)
    y_given = x if y is None else np.asarray(y, dtype=np.float64)
    if metric == "cosine":
        x, y_given = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y_given))
        between = 0.5 * cdist(x, y_given, "sqeuclidean")
    else:
        between = cdist(x, y_given)
    if y is None:
        np.fill_diagonal(between, np.inf)
    return between


def between_values(between, share):
    """A radius halfway between two dissimilarities that occur, so that rounding cannot matter."""
    values = np.unique(between[np.isfinite(between)])
    at = int(share * (len(values) - 2))
    at += int(np.argmax(np.diff(values[at : at + 50])))
    return float(0.5 * (values[at] + values[at + 1]))


def check_pairs(x, radius, y=None, metric="euclidean"):
    between = everything(x, y, metric)
    wanted = between <= radius
    if y is None:
        wanted = np.triu(wanted, 1)
    found = near_pairs(x, radius, y, metric=metric)
    assert found.pairs.dtype == np.int64
    assert found.distances.dtype == np.float64
    np.testing.assert_array_equal(found.pairs, np.argwhere(wanted).reshape(-1, 2))
    np.testing.assert_allclose(found.distances, between[wanted], rtol=1e-9, atol=1e-14)
    return found


def check_nearest(x, k, y=None, metric="euclidean"):
    between = everything(x, y, metric)
    found = nearest_neighbors(x, k, y, metric=metric, device="cpu")
    assert found.indices.shape == found.distances.shape == (len(between), k)
    assert found.recall == 1.0
    np.testing.assert_allclose(found.distances, np.sort(between, axis=1)[:, :k], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(
        np.take_along_axis(between, found.indices, 1), found.distances, rtol=1e-9, atol=1e-14
    )  # fmt: skip
    assert all(len(set(row)) == k for row in found.indices.tolist())
    return found


@pytest.fixture(params=["as chosen", "16", "64", "all"])
def path(request, monkeypatch):
    """Each way through the search: few comparisons, axes with several widths, all dimensions."""
    if request.param != "as chosen":
        monkeypatch.setattr(neighbors, "_FEW", 0)
        width = 0 if request.param == "all" else int(request.param)
        monkeypatch.setattr(neighbors, "_choose_width", lambda space, *_: min(width, space.axes.shape[1]))
    return request.param


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_path_finds_what_brute_force_finds(path, dtype, metric):
    x = blobs(1050, 100, seed=1).astype(dtype)
    between = everything(x, metric=metric)
    for share in (1e-5, 0.1):
        check_pairs(x, between_values(between, share), metric=metric)
    for k in (1, 7):
        check_nearest(x, k, metric=metric)


@pytest.mark.parametrize("metric", METRICS)
def test_every_path_for_two_sets(path, metric):
    x, y = blobs(700, 150, seed=2), blobs(2500, 150, seed=3)[:, ::-1] + 0.5
    y[:600] = x[:600] + np.linspace(1e-3, 1e-2, 600)[:, None]
    between = everything(x, y, metric)
    for share in (1e-4, 0.01):
        check_pairs(x, between_values(between, share), y, metric)
        check_pairs(y, between_values(between, share), x, metric)
    check_nearest(x, 3, y, metric)
    check_nearest(y, 3, x, metric)


@pytest.mark.parametrize("n", [2, 3, 129, 300])
@pytest.mark.parametrize("d", [1, 2, 31, 33, 140])
def test_shapes(n, d):
    for seed in range(2):
        x = blobs(n, d, seed)
        between = everything(x)
        check_pairs(x, 0.0)
        if n > 2:
            check_pairs(x, between_values(between, 0.1 * seed))
        check_pairs(x, math.inf)
        check_nearest(x, min(n - 1, 1 + 40 * seed))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_integers_are_decided_exactly(dtype):
    rng = np.random.default_rng(4)
    low, high = (0, 2) if dtype == np.bool_ else (0, 5)
    x = rng.integers(low, high, size=(1200, 6)).astype(dtype)
    exact = x.astype(np.int64)
    squares = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    for square in (0, 1, 2, 3, 5):
        found = near_pairs(x, math.sqrt(square))
        np.testing.assert_array_equal(found.pairs, np.argwhere(np.triu(squares <= square, 1)))
        np.testing.assert_array_equal(found.distances, np.sqrt(squares[*found.pairs.T]))
        below = near_pairs(x, np.nextafter(math.sqrt(square), 0)) if square else found
        assert len(below.pairs) == (np.triu(squares < square, 1).sum() if square else len(found.pairs))
    np.fill_diagonal(squares, 1 << 40)
    nearest = nearest_neighbors(x, 9, device="cpu")
    np.testing.assert_array_equal(nearest.indices, np.argsort(squares, axis=1, kind="stable")[:, :9])


def test_bytes_at_exactly_the_radius_on_every_path(path):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, size=(1200, 200)).astype(np.uint8)
    x[:, 100:] = x[:, :100] // 2
    # Two changes of 3 and 4 are 5 apart.
    x[600:, :] = x[:600, :]
    x[600:, 7] ^= 4
    x[900:, 150] ^= 8
    exact = x.astype(np.int64)
    products = exact @ exact.T
    squares = products.diagonal()[:, None] + products.diagonal() - 2 * products
    for radius in (4.0, math.sqrt(80), 400.0):
        found = near_pairs(x, radius)
        np.testing.assert_array_equal(found.pairs, np.argwhere(np.triu(np.sqrt(squares) <= radius, 1)))
        np.testing.assert_array_equal(found.distances, np.sqrt(squares[*found.pairs.T]))
    assert len(near_pairs(x, 4.0).pairs) == 300
    assert len(near_pairs(x, np.nextafter(4.0, 0)).pairs) == 0
    np.fill_diagonal(squares, 1 << 40)
    nearest = nearest_neighbors(x, 3, device="cpu")
    np.testing.assert_array_equal(nearest.indices, np.argsort(squares, axis=1, kind="stable")[:, :3])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_distance_that_was_returned_is_a_radius_that_includes_its_pair(path, dtype, metric):
    x = blobs(1040, 80, seed=6).astype(dtype)
    nearest = nearest_neighbors(x, 1, metric=metric, device="cpu")
    for row in nearest.distances[:, 0].argsort()[[0, 5, 500]]:
        radius = nearest.distances[row, 0]
        found = near_pairs(x, radius, metric=metric)
        pair = sorted((int(row), int(nearest.indices[row, 0])))
        assert pair in found.pairs.tolist()
        assert found.distances.max() == radius
        below = near_pairs(x, np.nextafter(radius, 0), metric=metric)
        assert pair not in below.pairs.tolist()


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-20, 1e20, 1e200, 1e306])
@pytest.mark.parametrize("metric", METRICS)
def test_scales(scale, metric):
    x = blobs(300, 40, seed=7)
    between = everything(x, metric=metric)
    radius = between_values(between, 0.01)
    plain = near_pairs(x, radius, metric=metric)
    found = near_pairs(x * scale, radius if metric == "cosine" else radius * scale, metric=metric)
    np.testing.assert_array_equal(found.pairs, plain.pairs)
    rough = 1e-3 if scale < 1e-307 else 1e-9
    distances = found.distances if metric == "cosine" else found.distances / scale
    np.testing.assert_allclose(distances, plain.distances, rtol=rough, atol=1e-14)
    # The denormal numbers of the smallest scale have few digits.
    if scale > 1e-307:
        nearest = nearest_neighbors(x * scale, 2, metric=metric, device="cpu")
        np.testing.assert_array_equal(
            nearest.indices, nearest_neighbors(x, 2, metric=metric, device="cpu").indices
        )  # fmt: skip


def test_tiny_distances_between_large_values(path):
    rng = np.random.default_rng(8)
    x = 1e6 + 1e-3 * blobs(1100, 140, seed=8)
    x[5] = x[3]
    x[0] = 1e9 * rng.normal(size=140)
    between = everything(x)
    for share in (1e-5, 0.01):
        check_pairs(x, between_values(between, share))
    check_nearest(x, 2)


def test_differences_whose_squares_underflow():
    x = np.array([[0.0, 1.0], [1e-200, 1.0], [0.0, 1e300], [3e-200, 1.0]])
    found = near_pairs(x, 2.5e-200)
    assert found.pairs.tolist() == [[0, 1], [1, 3]]
    np.testing.assert_allclose(found.distances, [1e-200, 2e-200], rtol=1e-12)
    largest = np.finfo(np.float64).max
    far = near_pairs([[-largest / 4, 0.0], [largest / 4, 0.0]], math.inf)
    assert far.distances.tolist() == [largest / 2]
    assert near_pairs([[-largest], [largest]], math.inf).distances.tolist() == [math.inf]
    assert near_pairs([[-largest], [largest]], largest).distances.tolist() == []


def test_constant_columns_and_duplicates(path):
    x = np.repeat(blobs(300, 150, seed=9), 4, axis=0)
    x[:, ::3] = 7.0
    found = check_pairs(x, 0.0)
    assert len(found.pairs) == 300 * 6
    between = everything(x)
    check_pairs(x, between_values(between, 0.001))
    nearest = check_nearest(x, 3)
    rows = np.arange(len(x))[:, None] // 4 * 4 + np.arange(4)
    others = rows[rows != np.arange(len(x))[:, None]].reshape(-1, 3)
    np.testing.assert_array_equal(nearest.indices, others)


def test_rows_in_the_same_direction_are_at_0_under_the_cosine():
    x = np.array([[1.0, 2.0, 3.0], [4.0, 8.0, 12.0], [-1.0, -2.0, -3.0], [0.25, 0.5, 0.75]])
    found = near_pairs(x, 0.0, metric="cosine")
    assert found.pairs.tolist() == [[0, 1], [0, 3], [1, 3]]
    np.testing.assert_allclose(near_pairs(x, 2.1, metric="cosine").distances.max(), 2.0)


@pytest.mark.parametrize("d", [2, 200])
def test_all_rows_identical(d):
    x = np.full((3000, d), 17, np.uint8)
    with pytest.raises(ValueError, match=r"`max_pairs` must be at least .* got 1000000 .* smaller `radius`"):
        near_pairs(x, 0.0, max_pairs=1_000_000)
    found = near_pairs(x[:500], 0.0)
    np.testing.assert_array_equal(found.pairs, np.argwhere(np.triu(np.ones((500, 500)), 1)))
    assert not found.distances.any()
    nearest = nearest_neighbors(x[:500], 2, device="cpu")
    assert nearest.indices[:4].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_max_pairs_is_the_number_allowed():
    x = np.arange(200.0)[:, None]
    assert len(near_pairs(x, 1.0, max_pairs=199).pairs) == 199
    with pytest.raises(ValueError, match="max_pairs"):
        near_pairs(x, 1.0, max_pairs=198)
    assert len(near_pairs(x, 0.5, max_pairs=0).pairs) == 0


def test_more_pairs_than_a_thread_holds(monkeypatch):
    monkeypatch.setattr(neighbors, "_CAPACITY", 1)
    check_pairs(blobs(700, 3, seed=10), 3.0)


def test_one_row_and_no_pairs():
    found = near_pairs([[1.0, 2.0]], 10.0)
    assert found.pairs.shape == (0, 2)
    assert found.distances.shape == (0,)
    assert found.pairs.dtype == np.int64
    assert near_pairs([[1.0]], 1.0, [[2.0]]).pairs.tolist() == [[0, 0]]


@pytest.mark.parametrize("threads", [1, 5])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch, path):
    x = blobs(1050, 80, seed=11).astype(np.float32)
    radius = between_values(everything(x), 0.01)
    pairs, nearest = near_pairs(x, radius), nearest_neighbors(x, 3, device="cpu")
    monkeypatch.setattr(neighbors, "_threads", lambda: threads)
    again, nearest_again = near_pairs(x, radius), nearest_neighbors(x, 3, device="cpu")
    for one, other in zip((*pairs, *nearest), (*again, *nearest_again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    def fail(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(neighbors._Search, "columns", fail)
    with pytest.raises(MemoryError, match="no memory"):
        near_pairs(blobs(1000, 3), 1.0)


def test_what_is_given_is_not_changed_and_may_be_any_array(tmp_path):
    x = blobs(600, 40, seed=12)
    radius = between_values(everything(x), 0.01)
    plain, nearest = near_pairs(x, radius), nearest_neighbors(x, 2, device="cpu")
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given in (mapped, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.tolist(), torch.from_numpy(x)):
        np.testing.assert_array_equal(near_pairs(given, radius).pairs, plain.pairs)
        np.testing.assert_array_equal(near_pairs(given, radius).distances, plain.distances)
        np.testing.assert_array_equal(nearest_neighbors(given, 2, device="cpu").indices, nearest.indices)
    copy = x.copy()
    near_pairs(x, radius, metric="cosine")
    np.testing.assert_array_equal(x, copy)
    swapped = x.astype(">f8")
    np.testing.assert_array_equal(near_pairs(swapped, radius).pairs, plain.pairs)


def test_two_types():
    rng = np.random.default_rng(13)
    x, y = rng.integers(0, 4, (200, 3)).astype(np.uint8), rng.integers(0, 4, (300, 3)) + 0.5
    check_pairs(x, 1.1, y)
    check_pairs(x, 1.1, y.astype(np.float16))
    check_nearest(y, 2, x)


def test_permuting_permutes():
    x = blobs(800, 60, seed=14)
    radius = between_values(everything(x), 0.01)
    order = np.random.default_rng(15).permutation(len(x))
    plain, permuted = near_pairs(x, radius), near_pairs(x[order], radius)
    mapped = np.sort(order[permuted.pairs], axis=1)
    sequence = np.lexsort(mapped.T[::-1])
    np.testing.assert_array_equal(mapped[sequence], plain.pairs)
    np.testing.assert_array_equal(permuted.distances[sequence], plain.distances)


def test_progress_is_shown(capsys):
    near_pairs(blobs(300, 3), 0.1, progress=True)
    nearest_neighbors(blobs(300, 3), 1, progress=True, device="cpu")
    assert "100%" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the trial


def test_the_trial_takes_axes_for_images_and_all_dimensions_for_noise(monkeypatch):
    monkeypatch.setattr(neighbors, "_FEW", 0)

    def search(x, **wanted):
        rows = neighbors._Rows.of(x, "x", "euclidean")
        return neighbors._Search.of(rows, rows, "euclidean", **wanted)

    rng = np.random.default_rng(16)
    near_axes = blobs(1200, 300, seed=16)
    noise = rng.normal(size=(1200, 300))
    assert not search(near_axes, radius=2.0).full
    assert not search(near_axes, k=3).full
    assert search(noise, radius=20.0).full
    assert search(noise, k=3).full
    check_pairs(noise, between_values(everything(noise), 0.001))
    check_nearest(noise, 3)


def test_bounds_hold_for_the_computed_coordinates(monkeypatch):
    monkeypatch.setattr(neighbors, "_FEW", 0)
    x = (1e3 + blobs(1200, 400, seed=17)).astype(np.float32)
    rows = neighbors._Rows.of(x, "x", "euclidean")
    search = neighbors._Search.of(rows, rows, "euclidean", radius=1.0)
    side = search.ours
    between = cdist(x[side.order].astype(np.float64), x[side.order].astype(np.float64)) * search.space.factor
    leaf = np.repeat(np.arange(len(side.low)), np.diff(side.starts))
    for v, error in ((side.tile[:, :-2], side.box_error), (side.fine, side.fine_error)):
        lower = cdist(v.astype(np.float64), v.astype(np.float64)) - error[leaf][:, None] - error[leaf]
        assert (lower <= between * (1 + 1e-12)).all()
        # The bounds are worth something.
        assert np.median(lower[between > 0] / between[between > 0]) > 0.7


# ------------------------------------------------------------------------------------------------ other indexes


def overlap(found, true):
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("index", ["Flat", "IVF16,Flat", "HNSW16", "PQ4x4", "PCA8,IVF8,Flat", "PQ4x4,RFlat"])
def test_recall_is_the_share_of_the_true_neighbours(index, metric):
    pytest.importorskip("faiss")
    x, y = blobs(900, 16, seed=18, rank=16), blobs(100, 16, seed=19, rank=16)
    for queries, base in ((x, None), (y, x)):
        true = nearest_neighbors(queries, 5, base, metric=metric, device="cpu")
        found = nearest_neighbors(
            queries, 5, base, metric=metric, index=index, nprobe=2, recall_sample=1000, device="cpu"
        )  # fmt: skip
        assert found.recall == pytest.approx(overlap(found.indices, true.indices), abs=1e-12)
        assert found.recall == 1.0 if index == "Flat" else 0.02 < found.recall <= 1.0
        between = everything(queries, base, metric)
        np.testing.assert_allclose(
            found.distances, np.take_along_axis(between, found.indices, 1), rtol=1e-9, atol=1e-14
        )  # fmt: skip
        assert (np.diff(found.distances, axis=1) >= 0).all()
        if index == "Flat":
            np.testing.assert_array_equal(found.indices, true.indices)


def test_wider_search_finds_more(caplog):
    pytest.importorskip("faiss")
    x = blobs(1500, 24, seed=20, rank=24)
    recalls = [
        nearest_neighbors(x, 5, index="IVF32,Flat", nprobe=n, device="cpu", recall_sample=2000).recall
        for n in (1, 4, 32)
    ]
    assert recalls[0] < recalls[1] < recalls[2] == 1.0
    with caplog.at_level("INFO", logger="toolkit.neighbors"):
        sampled = nearest_neighbors(x, 5, index="HNSW8", ef_search=16, recall_sample=100, device="cpu").recall
    assert f"{sampled:.4f}, on 100 rows" in caplog.text
    assert math.isnan(nearest_neighbors(x, 5, index="Flat", recall_sample=0, device="cpu").recall)


def test_rows_with_too_few_neighbours_are_searched_more_widely():
    pytest.importorskip("faiss")
    x = blobs(400, 8, seed=21, rank=8)
    found = nearest_neighbors(x, 60, index="IVF10,Flat", nprobe=1, device="cpu")
    assert (found.indices >= 0).all()
    assert all(len(set(row)) == 60 for row in found.indices.tolist())
    assert not (found.indices == np.arange(400)[:, None]).any()
    everyone = nearest_neighbors(x, 399, index="IVF10,Flat", nprobe=1, device="cpu")
    assert everyone.recall == 1.0


def test_duplicates_hide_a_row_from_itself_in_an_index():
    pytest.importorskip("faiss")
    x = np.repeat(blobs(20, 8, seed=22), 12, axis=0)
    found = nearest_neighbors(x, 3, index="Flat", device="cpu")
    assert not (found.indices == np.arange(len(x))[:, None]).any()
    np.testing.assert_array_equal(found.indices // 12, np.arange(len(x))[:, None] // 12 * np.ones((1, 3), int))
    assert found.recall == 1.0


def test_faiss_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert nearest_neighbors([[0.0], [1.0]], 1, device="cpu").indices.tolist() == [[1], [0]]
    with pytest.raises(ModuleNotFoundError, match="faiss"):
        nearest_neighbors([[0.0], [1.0]], 1, index="Flat", device="cpu")


@pytest.fixture
def _one_torch_thread():
    """On a busy machine, threads that wait for each other take most of the time of many small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_torch_thread")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("elements", [1 << 28, 1 << 12])
def test_the_search_for_gpus_runs_on_any_device(elements, metric, monkeypatch):
    monkeypatch.setattr(neighbors, "_GPU_ELEMENTS", elements)
    # More equals than the search holds beside the k nearest make it look again.
    x, y = np.repeat(blobs(30, 20, seed=23), 30, axis=0), blobs(70, 20, seed=24)
    x[::7] += 1e-7
    for k in (1, 5, 40):
        for queries, base in ((x, None), (y, x), (y, None)):
            exact = nearest_neighbors(queries, k, base, metric=metric, device="cpu")
            ours = neighbors._Rows.of(queries, "x", metric)
            theirs = ours if base is None else neighbors._Rows.of(base, "y", metric)
            indices, distances = neighbors._torch_neighbors(ours, theirs, k, metric, "cpu", False)
            np.testing.assert_array_equal(indices, exact.indices)
            np.testing.assert_array_equal(distances, exact.distances)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_on_a_gpu(metric):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = blobs(3000, 150, seed=25).astype(np.float32)
    exact = nearest_neighbors(x, 5, metric=metric, device="cpu")
    for index in ("exact", "Flat"):
        found = nearest_neighbors(x, 5, metric=metric, index=index, device="cuda", recall_sample=3000)
        assert found.recall > 0.999
        if index == "exact":
            np.testing.assert_array_equal(found.indices, exact.indices)
            np.testing.assert_array_equal(found.distances, exact.distances)


# ------------------------------------------------------------------------------------------------ bad input


GOOD = np.arange(12.0).reshape(6, 2) + 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"radius": -1.0}, ValueError, "`radius` must be at least 0, got -1.0"),
        ({"radius": math.nan}, ValueError, "`radius` must be at least 0, got nan"),
        ({"radius": "1"}, TypeError, "`radius` must be a number, got '1'"),
        ({"radius": True}, TypeError, "`radius` must be a number"),
        ({"metric": "manhattan"}, ValueError, "`metric` must be one of 'euclidean', 'cosine', got 'manhattan'"),
        ({"max_pairs": 1.5}, TypeError, "`max_pairs` must be an integer"),
        ({"max_pairs": -1}, ValueError, "`max_pairs` must be at least 0"),
        ({"x": [1.0, 2.0]}, ValueError, "`x` must be a non-empty matrix"),
        ({"x": np.empty((0, 3))}, ValueError, "`x` must be a non-empty matrix"),
        ({"x": [["a", "b"]]}, TypeError, "`x` must hold real numbers"),
        ({"x": [[1j, 2.0]]}, TypeError, "`x` must hold real numbers"),
        ({"x": [[1.0, np.nan], [1.0, 2.0]]}, ValueError, "`x` must be finite, .* 1 of 2 rows, the first at index 0"),
        ({"y": [[1.0, 2.0], [np.inf, 2.0]]}, ValueError, "`y` must be finite, .* the first at index 1"),
        ({"x": [[1.0, 1.0], [0.0, 0.0]], "metric": "cosine"}, ValueError, "`x` must have no zero rows .* index 1"),
        ({"y": np.zeros((2, 2), np.uint8), "metric": "cosine"}, ValueError, "`y` must have no zero rows"),
        ({"y": [[1.0, 2.0, 3.0]]}, ValueError, "`y` must be as wide as x, 2, got 3"),
    ],
)
def test_bad_input_of_near_pairs(arguments, error, message):
    with pytest.raises(error, match=message):
        near_pairs(**({"x": GOOD, "radius": 1.0} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "`k` must be at least 1, got 0"),
        ({"k": 6}, ValueError, "`k` must be at most 5, .* got 6"),
        ({"k": 7, "y": GOOD}, ValueError, "`k` must be at most 6"),
        ({"k": 1.0}, TypeError, "`k` must be an integer"),
        ({"x": GOOD[:1]}, ValueError, "`k` must be at most 0"),
        ({"metric": "l1"}, ValueError, "`metric` must be one of"),
        ({"x": GOOD * np.nan}, ValueError, "`x` must be finite"),
        ({"y": GOOD[:, :1]}, ValueError, "`y` must be as wide as x"),
        ({"device": "nowhere"}, ValueError, "`device` must be 'cpu', 'cuda' or None, got 'nowhere'"),
        ({"device": "meta"}, ValueError, "`device` must be 'cpu', 'cuda' or None"),
        ({"nprobe": 0}, ValueError, "`nprobe` must be at least 1"),
        ({"ef_search": 1.5}, TypeError, "`ef_search` must be an integer"),
        ({"recall_sample": -1}, ValueError, "`recall_sample` must be at least 0"),
    ],
)
def test_bad_input_of_nearest_neighbors(arguments, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbors(**({"x": GOOD, "k": 1, "device": "cpu"} | arguments))


@pytest.mark.parametrize("index", ["nonsense", "IVF5000,Flat", "IVF2,PQ7"])
def test_an_index_that_faiss_does_not_build(index):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r'`index` must be "exact" or an index of faiss .* 6 vectors of 2 .* got'):
        nearest_neighbors(GOOD, 1, index=index, device="cpu")


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="`device` must be one that PyTorch sees here, got 'cuda'"):
        nearest_neighbors(GOOD, 1, device="cuda")


# ------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def cifar(cifar_root):
    """The 50,000 training images of CIFAR-10 as bytes."""
    folder = next(cifar_root.rglob("data_batch_1")).parent
    return np.concatenate(
        [pickle.loads((folder / f"data_batch_{i}").read_bytes(), encoding="latin1")["data"] for i in range(1, 6)]
    )


@pytest.mark.slow
@pytest.mark.data
def test_near_pairs_of_cifar10(cifar):
    found = near_pairs(cifar, 5.712 * 255)
    assert found.pairs.shape == (12_051, 2)
    exact = cifar.astype(np.int32)
    squares = np.array([int(((exact[a] - exact[b]) ** 2).sum()) for a, b in found.pairs[::20]])
    np.testing.assert_array_equal(found.distances[::20], np.sqrt(squares))
    # A slice of rows with all others, from the integers alone.
    some = np.arange(0, 50_000, 2_500)
    products = exact[some].astype(np.float64) @ exact.astype(np.float64).T
    norms = np.einsum("ij,ij->i", exact.astype(np.int64), exact.astype(np.int64))
    near = np.sqrt(norms[some][:, None] + norms - 2 * products) <= 5.712 * 255
    near[np.arange(len(some)), some] = False
    for at, row in enumerate(some):
        of_row = found.pairs[(found.pairs == row).any(axis=1)]
        assert sorted(set(of_row.ravel().tolist()) - {int(row)}) == np.flatnonzero(near[at]).tolist()
