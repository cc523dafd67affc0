import numpy as np
import pytest
from sklearn.decomposition import PCA

from toolkit.report.projection import points_of


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [3, 20, 300])
def test_points_lie_as_principal_components_do(dtype, width):
    rng = np.random.default_rng(width)
    vectors = (rng.normal(size=(120, width)) * np.linspace(3, 0.1, width)).astype(dtype)
    shown = rng.permutation(120)[:70]
    before = vectors.copy()
    points = points_of(vectors, shown, "pca", 0)
    reference = PCA(3).fit(vectors.astype(np.float64))
    wanted = reference.transform(vectors[shown].astype(np.float64))
    grid = points.grid.astype(np.float64)
    apart = np.linalg.norm(grid[:, None] - grid[None], axis=2)
    wanted_apart = np.linalg.norm(wanted[:, None] - wanted[None], axis=2)
    # One scale for all axes.
    assert np.allclose(apart / apart.max(), wanted_apart / wanted_apart.max(), atol=1e-3)
    assert points.explained == pytest.approx(reference.explained_variance_ratio_.tolist(), abs=1e-3)
    assert np.abs(points.grid).max() == 32_000
    assert np.array_equal(vectors, before)


@pytest.mark.parametrize(("count", "width"), [(1, 5), (4, 1), (2, 2), (5, 4)])
def test_fewer_than_three_axes_are_filled_up(count, width):
    vectors = np.random.default_rng(0).normal(size=(count, width))
    points = points_of(vectors, np.arange(count), "pca", 0)
    assert points.grid.shape == (count, 3)
    assert len(points.explained) == 3
    assert not points.grid[:, min(width, count) :].any()


def test_equal_vectors_are_one_point():
    points = points_of(np.ones((6, 4)), np.arange(6), "pca", 0)
    assert not points.grid.any()
    assert points.explained == [0, 0, 0]


@pytest.mark.slow
def test_umap_keeps_who_is_near_whom():
    pytest.importorskip("umap", reason="needs the extra umap")
    rng = np.random.default_rng(0)
    of = np.repeat([0, 1], 30)
    vectors = rng.normal(size=(60, 8)) + 20 * of[:, None]
    first = points_of(vectors, np.arange(60), "umap", 3)
    assert first.explained is None
    centres = [first.grid[of == side].astype(float).mean(axis=0) for side in (0, 1)]
    own = np.linalg.norm(first.grid - np.array(centres)[of], axis=1)
    other = np.linalg.norm(first.grid - np.array(centres)[1 - of], axis=1)
    assert (own < other).all()
    assert np.array_equal(points_of(vectors, np.arange(60), "umap", 3).grid, first.grid)


def test_another_projection_is_refused():
    with pytest.raises(ValueError, match="`projection` must be one of 'pca', 'umap', got 'tsne'"):
        points_of(np.ones((2, 2)), np.arange(2), "tsne", 0)
