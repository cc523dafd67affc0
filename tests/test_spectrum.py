"""The Laplacian and its spectrum against scipy, closed forms and all eigenvalues; the figures of the wavelet paper."""

from __future__ import annotations

import re
import runpy

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import laplacian as scipy_laplacian
from scipy.sparse.linalg import aslinearoperator

import toolkit.spectrum as module
from toolkit.spectrum import (
    NEGATIVE,
    check_similarity,
    groups_by_eigengap,
    laplacian,
    laplacian_eigenvalues,
    spectral_density,
)


def similarities(n, seed=0, rank=6):
    """A correlation matrix: ones on the diagonal, values of both signs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) + 0.8 * rng.normal(size=rank)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    out = x @ x.T
    np.fill_diagonal(out, 1.0)
    return (out + out.T) / 2


def weights_of(matrix, negative):
    out = {"clip": np.clip(matrix, 0, None), "keep": matrix, "abs": np.abs(matrix)}[negative].copy()
    np.fill_diagonal(out, 0.0)
    return out


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("negative", ["clip", "abs"])
def test_laplacian_equals_scipy(negative, normalized, sparse):
    matrix = similarities(60, seed=1)
    matrix[7] = matrix[:, 7] = 0.0  # an image without edges
    expected = scipy_laplacian(weights_of(matrix, negative), normed=normalized)
    given = scipy.sparse.coo_array(matrix) if sparse else matrix
    before = matrix.copy()
    ours = laplacian(given, normalized=normalized, negative=negative)
    assert scipy.sparse.issparse(ours) == sparse
    dense = ours.toarray() if sparse else ours
    np.testing.assert_allclose(dense, expected, atol=1e-13)
    np.testing.assert_array_equal(dense, dense.T)
    assert dense.dtype == np.float64
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("sparse", [False, True])
def test_self_loops_count_in_the_degrees(sparse):
    matrix = np.clip(similarities(30, seed=2), 0, None)
    scale = 1 / np.sqrt(matrix.sum(axis=1))
    expected = np.eye(30) - scale[:, None] * matrix * scale
    given = scipy.sparse.csr_array(matrix) if sparse else matrix
    ours = laplacian(given, normalized=True, self_loops=True)
    np.testing.assert_allclose(ours.toarray() if sparse else ours, expected, atol=1e-14)
    plain, looped = laplacian(given), laplacian(given, self_loops=True)
    assert abs(plain - looped).max() == 0.0


def test_laplacian_takes_tiles_and_other_dtypes(monkeypatch):
    matrix = similarities(50, seed=3)
    whole = laplacian(matrix)
    monkeypatch.setattr(module, "_TILE", 7)
    np.testing.assert_allclose(laplacian(matrix), whole, atol=1e-14)
    # One half rounded otherwise is still symmetric enough, and comes out exactly symmetric.
    uneven = matrix.astype(np.float32)
    uneven[np.tril_indices(50, -1)] += np.float32(2e-7)
    ours = laplacian(uneven)
    np.testing.assert_array_equal(ours, ours.T)
    np.testing.assert_array_equal(laplacian(np.ones((3, 3), int)), 3 * np.eye(3) - 1)


@pytest.mark.parametrize("negative", NEGATIVE)
def test_eigenvalues_equal_numpy(negative):
    matrix = similarities(80, seed=4)
    weights = weights_of(matrix, negative)
    expected = np.linalg.eigvalsh(np.diag(weights.sum(axis=1)) - weights)
    ours = laplacian_eigenvalues(matrix, negative=negative)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    assert (np.diff(ours) >= 0).all()
    assert (ours.min() >= 0) == (negative != "keep")
    np.testing.assert_allclose(
        laplacian_eigenvalues(scipy.sparse.csr_matrix(matrix), negative=negative), ours, atol=1e-12
    )


def test_eigenvalues_in_closed_form():
    # A ring: 2 - 2 cos(2 pi k / n); a complete graph: 0 and n times n - 1.
    ring = np.roll(np.eye(12), 1, axis=1)
    ring += ring.T
    expected = np.sort(2 - 2 * np.cos(2 * np.pi * np.arange(12) / 12))
    np.testing.assert_allclose(laplacian_eigenvalues(ring), expected, atol=1e-13)
    np.testing.assert_allclose(laplacian_eigenvalues(np.ones((9, 9))), [0.0] + [9.0] * 8, atol=1e-13)
    np.testing.assert_array_equal(laplacian_eigenvalues([[1.0]]), [0.0])
    np.testing.assert_array_equal(laplacian_eigenvalues([[1.0]], normalized=True), [0.0])


def test_too_many_images_for_all_eigenvalues(monkeypatch):
    monkeypatch.setattr(module, "_MAX_EXACT", 10)
    with pytest.raises(ValueError, match=r"at most 10 images \(`spectral_density` estimates the spectrum\), got 11"):
        laplacian_eigenvalues(np.eye(11))
    with pytest.raises(ValueError, match="at most 10 images"):
        laplacian_eigenvalues(scipy.sparse.eye_array(11))


@pytest.mark.parametrize("seed", range(5))
def test_groups_by_eigengap_counts(seed):
    values = np.random.default_rng(seed).exponential(size=40)
    gap = 0.05 * (seed + 1)
    count = sum(b - a > gap for a, b in zip(sorted(values)[:-1], sorted(values)[1:], strict=True))
    assert groups_by_eigengap(values, gap) == 40 - count
    assert groups_by_eigengap(values, gap, "gaps") == max(1, count)


def test_groups_by_eigengap_at_the_ends():
    assert groups_by_eigengap([3.0], 0.1) == groups_by_eigengap([3.0], 0.1, "gaps") == 1
    assert groups_by_eigengap([1.0, 1.0, 1.0], 0.1) == 3
    assert groups_by_eigengap([0.0, 5.0, 10.0], 4.0) == 1
    # Larger than, not equal.
    assert groups_by_eigengap([0.0, 1.0], 1.0) == 2


# ------------------------------------------------------------------------------------------------ density


def as_given(matrix, kind, folder):
    if kind == "sparse":
        return scipy.sparse.csr_array(matrix)
    if kind == "memory map":
        np.save(folder / "matrix.npy", matrix)
        return np.load(folder / "matrix.npy", mmap_mode="r")
    return matrix


@pytest.mark.parametrize("kind", ["dense", "sparse", "memory map"])
@pytest.mark.parametrize(
    ("normalized", "self_loops", "negative"),
    [(False, False, "clip"), (False, False, "keep"), (True, False, "clip"), (True, True, "abs")],
)
def test_all_steps_give_all_eigenvalues(normalized, self_loops, negative, kind, tmp_path):
    matrix = similarities(40, seed=5)
    options = {"normalized": normalized, "self_loops": self_loops, "negative": negative}
    expected = laplacian_eigenvalues(matrix, **options)
    found = spectral_density(as_given(matrix, kind, tmp_path), n_vectors=3, n_steps=1000, **options)
    assert found.values.shape == (3, 40)
    for row in found.values:
        # As sets: of equal eigenvalues one is found.
        apart = np.abs(row[:, None] - expected)
        assert apart.min(axis=0).max() < 1e-8
        assert apart.min(axis=1).max() < 1e-8
    np.testing.assert_allclose(found.masses.sum(axis=1), 40.0)


def test_blocks_and_threads_do_not_matter(monkeypatch):
    matrix = similarities(130, seed=6)
    whole = spectral_density(matrix, n_steps=20)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 130 * 7)
    blocks = spectral_density(matrix, n_steps=20)
    np.testing.assert_allclose(blocks.values, whole.values, atol=1e-9)
    monkeypatch.setattr(module, "_WORKERS", 1)
    alone = spectral_density(matrix, n_steps=20)
    np.testing.assert_array_equal(alone.values, blocks.values)
    np.testing.assert_array_equal(alone.masses, blocks.masses)


def test_an_operator_equals_its_matrix():
    matrix = similarities(90, seed=7)
    ours = spectral_density(aslinearoperator(matrix), negative="keep", n_steps=25)
    expected = spectral_density(matrix, negative="keep", n_steps=25)
    np.testing.assert_allclose(ours.values, expected.values, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_counts_and_density_are_near_the_truth(seed):
    matrix = similarities(600, seed=8, rank=30)
    values = laplacian_eigenvalues(matrix)
    found = spectral_density(matrix, n_steps=60, seed=seed)
    at = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]) + 1e-9
    truth = np.searchsorted(values, at, side="right")
    errors = found.standard_error(at)
    assert (errors > 0).all()
    assert (errors < 4).all()
    np.testing.assert_array_less(np.abs(found.cumulative(at) - truth), 4 * errors + 600 / 60 / 2)
    assert found.cumulative(values[-1] + 1.0) == pytest.approx(600)
    assert found.cumulative(-1.0) == 0.0
    # The largest eigenvalues, one by one.
    np.testing.assert_allclose(found.values[:, -3:], np.tile(values[-3:], (10, 1)), rtol=1e-6)
    area = ((found.density[1:] + found.density[:-1]) * np.diff(found.grid)).sum() / 2
    assert area == pytest.approx(600, rel=0.01)
    smooth = np.exp(-0.5 * ((found.grid[:, None] - values) / found.sigma) ** 2).sum(axis=1)
    smooth /= found.sigma * np.sqrt(2 * np.pi)
    assert np.abs(found.density - smooth).mean() < 0.1 * smooth.mean()


def test_the_estimate_brackets_the_number_of_groups():
    matrix = similarities(600, seed=9, rank=30)
    values = laplacian_eigenvalues(matrix)
    found = spectral_density(matrix, n_steps=100)
    for gap in (0.1, 0.2, 0.4):
        truth = groups_by_eigengap(values, gap)
        estimate = found.estimate_groups(gap)
        slack = 0.1 * (600 - truth) + 3
        assert estimate.lowest <= estimate.n_groups <= estimate.highest
        assert estimate.lowest - slack <= truth <= estimate.highest + slack
        gaps = found.estimate_groups(gap, "gaps")
        assert gaps.n_groups == 600 - estimate.n_groups
        assert gaps.lowest <= gaps.highest


def test_the_estimate_is_exact_where_all_is_resolved():
    matrix = similarities(50, seed=10)
    values = laplacian_eigenvalues(matrix)
    found = spectral_density(matrix, n_steps=50)
    for gap in (0.05, 0.2, 1.0):
        estimate = found.estimate_groups(gap)
        assert estimate.n_groups == estimate.lowest == estimate.highest == groups_by_eigengap(values, gap)
        assert estimate.n_resolved == 50


def test_one_image_and_equal_images():
    one = spectral_density([[1.0]])
    assert one.values.tolist() == [[0.0]] * 10
    assert one.cumulative(0.0) == 1.0
    assert one.estimate_groups(0.5).n_groups == 1
    # Few distinct eigenvalues: the iterations end early.
    same = spectral_density(np.ones((20, 20)))
    assert set(np.unique(same.values.round(9)).tolist()) <= {0.0, 20.0}
    assert same.cumulative(20.0) == pytest.approx(20.0)
    assert np.isnan(spectral_density(np.eye(3), n_vectors=1).standard_error(0.0))
    none = spectral_density(np.eye(6))
    assert none.cumulative([-1e-3, 0.0]).tolist() == [0.0, 6.0]


def test_the_seed_decides():
    matrix = similarities(100, seed=11)
    one, same, other = (spectral_density(matrix, n_steps=10, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.density, same.density)
    assert (one.density != other.density).any()


# ------------------------------------------------------------------------------------------------ bad input


def changed(value, *places, n=5):
    matrix = np.eye(n)
    for place in places:
        matrix[place] = value
    return matrix


@pytest.mark.parametrize("call", [check_similarity, laplacian, laplacian_eigenvalues, spectral_density])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.ones((3, 4)), ValueError, "`similarity` must be a square matrix of shape (N, N), got"),
        (np.ones((0, 0)), ValueError, "`similarity` must be a square matrix"),
        (changed(np.nan, (2, 3), (3, 2)), ValueError, "must be finite, got 2 NaN or infinite values, the first at (2"),
        (changed(np.inf, (4, 4)), ValueError, "must be finite, got 1 NaN or infinite values, the first at (4, 4)"),
        (changed(0.5, (1, 3)), ValueError, "`similarity` must be symmetric, got 0.5 at (1, 3) and 0 at (3, 1)."),
        (changed(2e-6, (1, 3)), ValueError, "must be symmetric, got 2e-06 at (1, 3)"),
        (np.eye(3) * 1j, TypeError, "`similarity` must hold real numbers, got dtype complex128"),
    ],
)  # fmt: skip
def test_bad_similarities(call, matrix, error, message, sparse):
    given = scipy.sparse.csr_array(matrix) if sparse else matrix
    with pytest.raises(error, match=re.escape(message)):
        call(given)


def test_a_little_asymmetry_passes():
    assert check_similarity(changed(5e-7, (1, 3))) is not None
    assert check_similarity(1e6 * np.eye(3) + 0.5 * np.triu(np.ones((3, 3)), 1)) is not None
    with pytest.raises(ValueError, match="square matrix"):
        check_similarity(np.ones(4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: laplacian(np.eye(2), negative="drop"), ValueError, "`negative` must be one of 'clip'"),
        (lambda: laplacian([[1, -1], [-1, 1]], normalized=True, negative="keep"), ValueError, "no negative degrees"),
        (lambda: groups_by_eigengap([0.0, 1.0], 0.0), ValueError, "`eigengap` must be a number above 0, got 0.0"),
        (lambda: groups_by_eigengap([0.0, 1.0], -1), ValueError, "`eigengap` must be a number above 0"),
        (lambda: groups_by_eigengap([0.0, 1.0], float("nan")), ValueError, "`eigengap` must be a number above 0"),
        (lambda: groups_by_eigengap([0.0, 1.0], "0.4"), TypeError, "`eigengap` must be a number, got '0.4'"),
        (lambda: groups_by_eigengap([0.0, np.nan], 1.0), ValueError, "`eigenvalues` must be finite"),
        (lambda: groups_by_eigengap([], 1.0), ValueError, "`eigenvalues` must be a vector of shape"),
        (lambda: groups_by_eigengap([[1.0]], 1.0), ValueError, "`eigenvalues` must be a vector of shape"),
        (lambda: groups_by_eigengap([1.0], 1.0, "paper"), ValueError, "`reading` must be one of"),
        (lambda: spectral_density(np.eye(2), n_vectors=0), ValueError, "`n_vectors` must be at least 1"),
        (lambda: spectral_density(np.eye(2), n_steps=1.5), TypeError, "`n_steps` must be an integer"),
        (lambda: spectral_density(np.eye(2), n_points=1), ValueError, "`n_points` must be at least 2"),
        (lambda: spectral_density(np.eye(2), sigma=0.0), ValueError, "`sigma` must be a number above 0"),
        (lambda: spectral_density(np.eye(2)).estimate_groups(0.0), ValueError, "`eigengap` must be a number above 0"),
        (lambda: spectral_density(np.eye(2)).estimate_groups(1.0, "x"), ValueError, "`reading` must be one of"),
        (
            lambda: spectral_density(aslinearoperator(np.eye(2))),
            ValueError,
            "`negative` must be 'keep' for an operator",
        ),
        (
            lambda: spectral_density(aslinearoperator(np.eye(2)), negative="keep", normalized=True),
            ValueError,
            "`normalized` must be False for an operator",
        ),
        (
            lambda: spectral_density(aslinearoperator(np.ones((2, 3))), negative="keep"),
            ValueError,
            "square operator of shape",
        ),
        (
            lambda: spectral_density(aslinearoperator(np.full((2, 2), np.nan)), negative="keep"),
            ValueError,
            "`similarity` must be finite",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ------------------------------------------------------------------------------------------------ the paper


@pytest.mark.data
def test_the_number_of_groups_that_the_paper_prints(data_folder):
    from toolkit.similarity import pairwise_ssim

    images = runpy.run_path(str(data_folder / "unpack_cifar.py"))["tiles"](
        data_folder / "cifar100" / "aquarium_fish_train.webp"
    )
    fish_similarity = pairwise_ssim(images.transpose(0, 3, 1, 2), variant="volume")
    values = laplacian_eigenvalues(fish_similarity)
    assert groups_by_eigengap(values, 0.4) == 454
    assert groups_by_eigengap(values, 0.4, "gaps") == 46
    estimate = spectral_density(fish_similarity).estimate_groups(0.4)
    assert estimate.lowest < 454 < estimate.highest
