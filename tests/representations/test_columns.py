"""Tests of the rank-revealing column choice: against scipy's pivoted QR and all singular values."""

import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

from toolkit.representations import columns, independent_columns


def graded(rng, n_rows, n_columns, condition):
    """A matrix with singular values spaced evenly on a logarithmic scale."""
    left, _ = np.linalg.qr(rng.normal(size=(n_rows, n_columns)))
    right, _ = np.linalg.qr(rng.normal(size=(n_columns, n_columns)))
    return left * np.logspace(0, -np.log10(condition), n_columns) @ right


def reference(matrix, bound):
    """Pivots of scipy and the number of columns by singular values, without any of the tested code."""
    factor, pivots = scipy.linalg.qr(matrix.astype(np.float64), mode="r", pivoting=True)
    m = 1
    for k in range(2, min(matrix.shape) + 1):
        values = np.linalg.svd(factor[:k, :k], compute_uv=False)
        if not values[0] < bound * values[-1]:
            break
        m = k
    return pivots, m


def condition(matrix, chosen):
    values = np.linalg.svd(matrix[:, chosen].astype(np.float64), compute_uv=False)
    return values[0] / values[-1]


@pytest.fixture
def every_route(monkeypatch):
    """Small matrices take the ways of large ones too, in several blocks of rows."""
    monkeypatch.setattr(columns, "_SMALL", 0)
    monkeypatch.setattr(columns, "_CHUNK_ELEMENTS", 2_000)
    monkeypatch.setattr(columns, "_DENSE", 8)


@pytest.mark.parametrize("bound", [1.5, 30.0, 1e3, 1e5, 1e6, 1e7, 1e9, 1e14])
@pytest.mark.usefixtures("every_route")
def test_same_as_scipy_and_singular_values(bound):
    matrix = graded(np.random.default_rng(1), 150, 40, 1e11)
    pivots, m = reference(matrix, bound)
    choice = independent_columns(matrix, bound)
    assert choice.columns.tolist() == pivots[:m].tolist()
    assert choice.pivots.tolist()[:m] == pivots[:m].tolist()
    assert choice.condition < bound
    tolerance = 1e-6 if bound < 1e8 else 1e-3
    assert choice.condition == pytest.approx(condition(matrix, choice.columns), rel=tolerance)


@pytest.mark.parametrize("bound", [4.0, 12.0, 1e5])
@pytest.mark.parametrize("kind", ["uint8", "pixels", "float32", "float64", "int16", "float16"])
@pytest.mark.usefixtures("every_route")
def test_every_type_of_values(kind, bound):
    values = np.random.default_rng(2).integers(0, 256, size=(300, 60)).astype(np.uint8)
    matrix = {
        "uint8": values,
        "pixels": values.astype(np.float32) / np.float32(255),
        "float32": values.astype(np.float32) * np.float32(0.7) - 3,
        "float64": values / 3e200,
        "int16": values.astype(np.int16) - 100,
        "float16": values.astype(np.float16),
    }[kind]
    pivots, m = reference(matrix if kind != "float64" else values, bound)
    choice = independent_columns(matrix, bound)
    assert choice.columns.tolist() == pivots[:m].tolist()
    assert choice.condition == pytest.approx(
        condition(values if kind == "float64" else matrix, choice.columns), rel=1e-5
    )


def test_the_direct_way_agrees_with_blocks(monkeypatch):
    matrix = graded(np.random.default_rng(3), 400, 30, 1e4)
    whole = [independent_columns(matrix, bound) for bound in (50.0, 1e3, 1e9)]
    monkeypatch.setattr(columns, "_SMALL", 0)
    monkeypatch.setattr(columns, "_CHUNK_ELEMENTS", 900)
    for one, bound in zip(whole, (50.0, 1e3, 1e9), strict=True):
        other = independent_columns(matrix, bound)
        assert other.pivots.tolist() == one.pivots.tolist()
        assert other.columns.tolist() == one.columns.tolist()
        assert other.condition == pytest.approx(one.condition, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.usefixtures("every_route")
def test_zero_and_repeated_columns_go_first(dtype):
    rng = np.random.default_rng(4)
    base = rng.integers(1, 200, size=(80, 6)).astype(dtype)
    matrix = np.concatenate([base[:, :2], np.zeros((80, 1), dtype), base[:, 1:], base[:, 5:], base[:, :1]], axis=1)
    choice = independent_columns(matrix, 1e5)
    assert choice.zero.tolist() == [2]
    assert choice.duplicate.tolist() == [3, 8, 9]
    assert sorted(choice.columns.tolist()) == [0, 1, 4, 5, 6, 7]
    assert choice.condition == pytest.approx(condition(matrix, choice.columns))


def test_negative_zeros_equal_zeros():
    matrix = np.array([[0.0, -0.0, 1.0], [1.0, 1.0, -0.0], [2.0, 2.0, 0.5]])
    choice = independent_columns(matrix)
    assert choice.duplicate.tolist() == [1]


@pytest.mark.usefixtures("every_route")
@pytest.mark.parametrize("bound", [1e3, 1e9])
def test_low_rank(bound):
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 30))
    choice = independent_columns(matrix, bound)
    assert len(choice.columns) == 5
    assert choice.columns.tolist() == scipy.linalg.qr(matrix, mode="r", pivoting=True)[1][:5].tolist()
    assert choice.condition == pytest.approx(condition(matrix, choice.columns), rel=1e-6)


@pytest.mark.parametrize("shape", [(7, 30), (1, 5), (5, 1), (1, 1)])
def test_fewer_rows_than_columns(shape):
    matrix = np.random.default_rng(6).normal(size=shape)
    choice = independent_columns(matrix, 1e12)
    assert len(choice.columns) == min(shape)
    assert choice.columns.tolist() == scipy.linalg.qr(matrix, mode="r", pivoting=True)[1][: min(shape)].tolist()


def test_ties_go_to_the_lowest_index():
    assert independent_columns(np.eye(6)).pivots.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("every_route")
def test_ties_go_to_the_lowest_index_in_blocks():
    matrix = np.concatenate([np.eye(6)] * 3)
    assert independent_columns(matrix).pivots.tolist() == [0, 1, 2, 3, 4, 5]


def test_one_column_always_stays():
    choice = independent_columns([[1.0, 1.0], [0.0, 1e-9], [0.0, 0.0]], 1 + 1e-9)
    assert (choice.columns.tolist(), choice.condition) == ([0], 1.0)


@pytest.mark.usefixtures("every_route")
def test_memory_map_tensor_and_input_unchanged(tmp_path):
    matrix = np.random.default_rng(7).normal(size=(100, 20)).astype(np.float32)
    before = matrix.copy()
    np.save(tmp_path / "matrix.npy", matrix)
    results = [
        independent_columns(given, 5.0, progress=True)
        for given in (matrix, torch.from_numpy(matrix), np.load(tmp_path / "matrix.npy", mmap_mode="r"))
    ]
    assert len({(tuple(r.columns.tolist()), r.condition) for r in results}) == 1
    assert np.array_equal(matrix, before)


def test_condition_numbers_of_leading_blocks():
    factor = np.triu(np.random.default_rng(8).normal(size=(400, 400))) + 20 * np.eye(400)
    for m in (1, 2, 200, 300, 400):
        values = np.linalg.svd(factor[:m, :m], compute_uv=False)
        found, largest, vector = columns._condition(factor, m)
        assert found == pytest.approx(values[0] / values[-1], rel=1e-8)
        assert largest == pytest.approx(values[0], rel=1e-8)
        assert np.linalg.norm(factor[:m, :m] @ vector) == pytest.approx(values[-1], rel=1e-8)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("bound", "count"), [(1e3, 1_072), (3e3, 1_757), (1e4, 2_403), (1e5, 3_072)])
def test_cifar10(cifar_root, bound, count):
    files = [cifar_root / "cifar-10-batches-py" / f"data_batch_{i}" for i in range(1, 6)]
    pixels = np.concatenate([pickle.loads(path.read_bytes(), encoding="latin1")["data"] for path in files])
    choice = independent_columns(pixels, bound)
    assert len(choice.columns) == count
    if bound == 1e5:
        assert choice.condition == pytest.approx(21_602.3637, abs=1e-3)


X = np.random.default_rng(9).normal(size=(10, 3))
ERRORS = [
    (lambda: independent_columns(X, 1), ValueError, "`max_condition` must be above 1, got 1"),
    (lambda: independent_columns(X, float("nan")), ValueError, "`max_condition` must be above 1"),
    (lambda: independent_columns(X, "5"), TypeError, "`max_condition` must be a number above 1"),
    (lambda: independent_columns(X[0]), ValueError, "`matrix` must be a non-empty matrix"),
    (lambda: independent_columns(X[:0]), ValueError, "`matrix` must be a non-empty matrix"),
    (lambda: independent_columns(X.astype(complex)), TypeError, "`matrix` must hold real numbers"),
    (lambda: independent_columns(np.zeros((4, 2))), ValueError, "`matrix` must be not all zeros, got '2 columns"),
    (
        lambda: independent_columns(np.where(X[4, 1] == X, np.nan, X)),
        ValueError,
        "in 1 of 10 rows, the first at index 4",
    ),
    (
        lambda: independent_columns(np.where(X[7, 0] == X, np.inf, X)),
        ValueError,
        "in 1 of 10 rows, the first at index 7",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
