"""Vectors as points in space, for the cloud of a report."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.representations.reduction import METHODS, pca, umap
from toolkit.validation import check_choice

#: The largest coordinate: whole numbers of 16 bits.
_REACH = 32_000


class Points(NamedTuple):
    """Points in space on a grid.

    Attributes:
        grid: Shape (n, 3), int16: the same scale along all axes, the middle of the points at 0.
        explained: The share of the vectors' variance along each of the three axes; None where that has no meaning.
    """

    grid: npt.NDArray[np.int16]
    explained: list[float] | None


def points_of(
    vectors: npt.NDArray[Any], shown: npt.NDArray[np.int64], projection: str, seed: int, *, progress: bool = False
) -> Points:
    """Where images are in space.

    Args:
        vectors: Shape (N, D), finite.
        shown: Indices of the images to show.
        projection: `pca`: the three axes of largest variance of all vectors; `umap`: UMAP of the shown ones to three
            coordinates.
        seed: Of UMAP.
        progress: Whether to show progress bars.

    Returns:
        A point for each of `shown`.

    Example:
        >>> vectors = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
        >>> points = points_of(vectors, np.arange(4), "pca", 0)
        >>> points.grid.tolist(), [round(share, 2) for share in points.explained]
        ([[32000, 0, 0], [-32000, 0, 0], [0, 16000, 0], [0, -16000, 0]], [0.8, 0.2, 0.0])
    """
    check_choice("projection", projection, METHODS)
    if projection == "umap":
        return Points(_on_grid(umap(vectors[shown], 3, seed=seed, progress=progress)), None)
    found = pca(vectors, 3, progress=progress)
    explained = found.explained_variance_ratio.tolist()
    return Points(_on_grid(found.vectors[shown]), explained + [0.0] * (3 - len(explained)))


def _on_grid(coordinates: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Up to three coordinates centred, scaled alike along all axes and rounded to whole numbers."""
    placed = np.zeros((len(coordinates), 3))
    placed[:, : coordinates.shape[1]] = coordinates
    placed -= (placed.min(axis=0) + placed.max(axis=0)) / 2
    return np.rint(placed * (_REACH / (np.abs(placed).max() or 1.0))).astype(np.int16)
