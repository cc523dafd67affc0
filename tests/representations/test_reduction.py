"""Principal components against scikit-learn and closed forms, and UMAP through the extra."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from toolkit.representations import Embeddings, Reduced, Representation, pca, reduce_vectors, reduction, umap


def vectors(n, d, seed=0, dtype=np.float64):
    """Vectors of falling spread away from zero."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rng.normal(size=(n, d)) * 0.8 ** np.arange(d) @ turned + 3.0).astype(dtype)


@pytest.fixture(params=[1 << 24, 64])
def _blocks(request, monkeypatch):
    """One block, and many."""
    monkeypatch.setattr(reduction, "_BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(2, 2), (60, 7), (7, 60), (30, 30), (200, 2), (3, 500)])
@pytest.mark.parametrize("n_dim", [None, 1, 5, 1000])
def test_components_are_those_of_scikit_learn_up_to_sign(shape, n_dim, dtype):
    x = vectors(*shape, dtype=dtype)
    found = pca(x, n_dim)
    wanted = min(*shape, n_dim or 1000)
    library = PCA(wanted, svd_solver="full").fit(x.astype(np.float64))
    theirs = library.transform(x.astype(np.float64))
    assert found.vectors.shape == theirs.shape
    assert found.vectors.dtype == dtype
    # The sign of what is only rounding is anyone's.
    real = library.explained_variance_ > 1e-12 * library.explained_variance_[0]
    signs = np.sign((theirs * found.vectors).sum(axis=0))
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(found.vectors[:, real], (theirs * signs)[:, real], atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.vectors[:, ~real], 0.0, atol=1e-5)
    np.testing.assert_allclose(found.explained_variance, library.explained_variance_, atol=1e-9)
    np.testing.assert_allclose(found.explained_variance_ratio, library.explained_variance_ratio_, atol=1e-9)
    assert found.explained_variance.dtype == found.explained_variance_ratio.dtype == np.float64


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", [(80, 12), (12, 80)])
def test_all_dimensions_keep_all_distances_and_nothing_is_whitened(shape):
    x = vectors(*shape, seed=1)
    found = pca(x)
    np.testing.assert_allclose(pdist(found.vectors), pdist(x), rtol=1e-9)
    np.testing.assert_allclose(found.vectors.var(axis=0, ddof=1), found.explained_variance, atol=1e-9)
    assert (np.diff(found.explained_variance) <= 0).all()
    assert found.explained_variance_ratio.sum() == pytest.approx(1.0)
    few = pca(x, 3)
    np.testing.assert_allclose(few.vectors, found.vectors[:, :3], atol=1e-9)
    np.testing.assert_allclose(few.explained_variance_ratio, found.explained_variance_ratio[:3])


@pytest.mark.parametrize("shape", [(50, 6), (6, 50)])
def test_signs_do_not_depend_on_how_it_is_computed(shape, monkeypatch):
    x = vectors(*shape, seed=2)
    one = pca(x, 4).vectors
    assert (np.take_along_axis(one, np.abs(one).argmax(axis=0)[None], axis=0) > 0).all()
    monkeypatch.setattr(reduction, "_BLOCK_ELEMENTS", 32)
    np.testing.assert_allclose(pca(x, 4).vectors, one, atol=1e-9)
    np.testing.assert_allclose(pca(-x, 4).vectors * np.sign((pca(-x, 4).vectors * one).sum(axis=0)), one, atol=1e-9)
    # Where two coordinates are equally far out, the first of them is positive.
    line = np.outer([-3.0, 3.0, 1.0, -1.0], [1.0, 2.0, 2.0])
    np.testing.assert_allclose(pca(line, 1).vectors[:, 0], [9.0, -9.0, -3.0, 3.0])


def test_permuting_permutes():
    x = vectors(70, 9, seed=3)
    order = np.random.default_rng(0).permutation(70)
    np.testing.assert_allclose(pca(x[order]).vectors, pca(x).vectors[order], atol=1e-9)


@pytest.mark.parametrize("scale", [2.0**600, 2.0**-600, 2.0**-1020])
@pytest.mark.parametrize("shape", [(20, 4), (4, 20)])
def test_any_scale(shape, scale):
    x = vectors(*shape, seed=4)
    wanted, found = pca(x, 3), pca(x * scale, 3)
    np.testing.assert_allclose(found.vectors / scale, wanted.vectors, atol=1e-2 if scale < 2.0**-1000 else 1e-9)
    np.testing.assert_allclose(found.explained_variance_ratio, wanted.explained_variance_ratio, rtol=1e-2)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_any_array_will_do_and_none_is_changed(shape, tmp_path):
    x = np.round(16 * vectors(*shape, seed=5)) + 100.0
    wanted, copy = pca(x).vectors, x.copy()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given in (mapped, np.asfortranarray(x), x.tolist(), torch.from_numpy(x), x.astype(np.longdouble)):
        np.testing.assert_allclose(pca(given).vectors, wanted, atol=1e-9)
    for dtype in (np.float16, np.uint8, np.int16, np.int64):
        found = pca(x.astype(dtype)).vectors
        assert found.dtype == (np.float64 if dtype == np.int64 else np.float32)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_array_equal(x, copy)


def test_degenerate_vectors():
    one = pca([[3.0, 4.0]])
    assert one.vectors.tolist() == [[0.0]]
    assert one.explained_variance.tolist() == one.explained_variance_ratio.tolist() == [0.0]
    equal = pca(np.full((5, 3), 7.0))
    assert not equal.vectors.any()
    assert not equal.explained_variance_ratio.any()
    x = vectors(30, 3, seed=6)
    with_constant = pca(np.insert(x, 1, 5.0, axis=1))
    np.testing.assert_allclose(with_constant.vectors[:, :3], pca(x).vectors, atol=1e-9)
    np.testing.assert_allclose(with_constant.vectors[:, 3], 0.0, atol=1e-6)


def test_progress_is_shown(capsys):
    pca(vectors(9, 3), progress=True)
    assert "PCA" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ UMAP


@pytest.mark.usefixtures("rng_unchanged")
@pytest.mark.slow  # numba compiles for about 20 s
def test_umap_keeps_groups_apart_and_repeats():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 40)
    x = rng.normal(size=(80, 12)) + 30.0 * label[:, None]
    copy, before = x.copy(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = umap(x, 2, n_neighbors=8, seed=3)
    assert found.shape == (80, 2)
    assert found.dtype == np.float32
    centres = np.array([found[label == i].mean(axis=0) for i in (0, 1)])
    nearest = np.linalg.norm(found[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, label)
    np.testing.assert_array_equal(umap(x, 2, n_neighbors=8, seed=3), found)
    np.testing.assert_array_equal(reduce_vectors(x, "umap", 2, 3), umap(x, 2, seed=3))
    assert (umap(x, 2, n_neighbors=8, seed=4) != found).any()
    np.testing.assert_array_equal(x, copy)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("shape", "n_dim", "wanted"), [((3, 2), 2, 2), ((5, 40), 9, 4), ((12, 1), 3, 1), ((9, 3), 2, 2)]
)
def test_umap_of_few_vectors(shape, n_dim, wanted):
    pytest.importorskip("umap")
    found = umap(vectors(*shape), n_dim, min_dist=2.0)
    assert found.shape == (shape[0], wanted)
    assert np.isfinite(found).all()


def test_umap_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"dataset-pruning-toolkit\[umap\]\"") as caught:
        umap(vectors(9, 3))
    assert caught.value.name == "umap"


def test_a_broken_umap_says_what_it_lacks(monkeypatch):
    def fail(_):
        raise ModuleNotFoundError("No module named 'pynndescent'", name="pynndescent")

    monkeypatch.setattr(reduction.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="pynndescent"):
        umap(vectors(9, 3))


# ------------------------------------------------------------------------------------------------ the representation


def test_reduced_is_a_representation():
    x = vectors(30, 8)
    reduced = Reduced(Embeddings(x), n_dim=3, progress=False)
    assert isinstance(reduced, Representation)
    np.testing.assert_array_equal(reduced.vectors(range(30)), pca(x, 3).vectors)
    np.testing.assert_array_equal(reduced.vectors(None), reduce_vectors(x, n_dim=3))
    with pytest.raises(ValueError, match="one row for each"):
        reduced.vectors(range(29))


def test_fingerprints_differ_with_what_changes_the_vectors():
    x = vectors(10, 4)
    base = Reduced(Embeddings(x), n_dim=3).fingerprint()
    others = [
        Reduced(Embeddings(x + 1), n_dim=3),
        Reduced(Embeddings(x), n_dim=2),
        Reduced(Embeddings(x), n_dim=None),
        Reduced(Embeddings(x), "umap", 3),
        Reduced(Embeddings(x), "umap", 3, seed=1),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 6
    # Nothing is random in PCA, and the bar changes nothing.
    assert Reduced(Embeddings(x), n_dim=3, seed=9, progress=False).fingerprint() == base


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: pca(x, 0), ValueError, "`n_dim` must be at least 1, got 0"),
        (lambda x: pca(x, 2.0), TypeError, "`n_dim` must be an integer, got 2.0"),
        (lambda x: pca(x, True), TypeError, "`n_dim` must be an integer"),
        (lambda x: pca(x[0]), ValueError, "`vectors` must be a non-empty matrix"),
        (lambda x: pca(x[:0]), ValueError, "`vectors` must be a non-empty matrix"),
        (lambda _: pca(np.empty((0, 2), int)), ValueError, "`vectors` must be a non-empty matrix"),
        (lambda _: pca([["a"]]), TypeError, "`vectors` must hold real numbers"),
        (lambda x: pca(np.where(x > 3.0, np.nan, x)), ValueError, "`vectors` must be finite, got NaN"),
        (lambda x: reduce_vectors(x, "tsne"), ValueError, "`method` must be one of 'pca', 'umap', got 'tsne'"),
        (
            lambda x: reduce_vectors(x, "umap"),
            ValueError,
            "`n_dim` must be an integer of at least 1 for UMAP, got None",
        ),
        (lambda x: Reduced(Embeddings(x), "lda").vectors(None), ValueError, "`method` must be one of"),
        (lambda x: umap(x, 0), ValueError, "`n_dim` must be at least 1"),
        (lambda x: umap(x, n_neighbors=1), ValueError, "`n_neighbors` must be at least 2, got 1"),
        (lambda x: umap(x, n_neighbors=2.5), TypeError, "`n_neighbors` must be an integer"),
        (lambda x: umap(x, min_dist=-0.1), ValueError, "`min_dist` must be at least 0, got -0.1"),
        (lambda x: umap(x, min_dist=float("nan")), ValueError, "`min_dist` must be at least 0"),
        (lambda x: umap(x[:2]), ValueError, "`vectors` must be at least 3 rows for UMAP, got '2'"),
        (lambda x: umap(x * np.inf), ValueError, "`vectors` must be finite"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(vectors(9, 4))


def test_more_than_eigenvectors_can_be_had_of(monkeypatch):
    monkeypatch.setattr(reduction, "_MAX_SIDE", 8)
    assert pca(vectors(8, 20)).vectors.shape == (8, 8)
    with pytest.raises(ValueError, match=r"`vectors` must be at most 8 many or at most 8 long for PCA, got \(9, 20\)"):
        pca(vectors(9, 20))
