"""Greedy k-centre: images such that none of the others is far from the nearest of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.grouping.linkage import _kernel
from toolkit.representations import Representation, Vectors
from toolkit.selection.ranked import OrderedSelector

#: Axes along which distances are first bounded, and points that they come from.
_AXES = 15
_SAMPLE = 512
#: Numbers of the points that are projected at a time.
_CHUNK_ELEMENTS = 1 << 22
#: Centres chosen between two steps of the progress bar.
_STEP = 512


class KCenterSelector(OrderedSelector):
    """Keep the images that greedy k-centre picks: each time the one farthest from all picked before.

    The first is the image nearest to the mean of all; then, with m(x) the distance of image x to the nearest picked
    one, the image of largest m(x) is picked, ties to the lower index. The largest distance that is left is at most
    twice the smallest that any choice of as many images can have. Smaller budgets give subsets of larger ones. All N
    images are ordered, exactly, in O(N^2 D) time and O(N D) memory.

    Args:
        features: A representation such as `FeatureExtractor`, or vectors (N, D) that exist: array, tensor, memory map
            or the path of a `.npy` file.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        metric: `euclidean`, or `cosine` for the Euclidean distance of vectors scaled to length 1.
        always_keep: Ids (or indices, where images have no file) of images that stay; they are the first centres.
        always_remove: Ids of images that go.
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set, and where features
            are not finite, or zero under the cosine.

    References:
        Sener, Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", arXiv 1708.00489,
        Algorithm 1; there the first centres are images that have labels already, here those always kept or the middle
        of the set, and the refinement by mixed integer programming is left out. Gonzalez, "Clustering to minimize the
        maximum intercluster distance", Theoretical Computer Science 38 (1985).

    Example:
        >>> vectors = [[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.0, 0.2], [0.5, 0.0]]
        >>> KCenterSelector(vectors, keep_fraction=0.6, progress=False).select().kept
        array([0, 3, 4])
    """

    settings: ClassVar[tuple[str, ...]] = ("keep_fraction", "metric", "always_keep", "always_remove")

    def __init__(
        self,
        features: Representation | Any,
        keep_fraction: float | None = None,
        *,
        metric: str = "euclidean",
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        progress: bool = True,
    ) -> None:
        self.features = features
        self.keep_fraction = keep_fraction
        self.metric = metric
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.progress = progress

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        self._check_metric(self.metric)

    def _order(self, vectors: Vectors, preferred: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        points = unit_rows(vectors) if self.metric == "cosine" else scaled_rows(vectors)
        n_points = len(points)
        coarse, margin = _coarse(points)
        order = np.empty(n_points, np.int64)
        left = np.arange(n_points)
        nearest = np.full(n_points, np.inf)
        first = np.flatnonzero(preferred)
        if not len(first):
            away = points - points.mean(axis=0)
            first = np.array([int(np.argmin(np.einsum("ij,ij->i", away, away)))])
        bar = tqdm(total=n_points, desc="centres", unit="img", disable=not self.progress or world()[0] != 0)
        with bar:
            for done in range(0, n_points, _STEP):
                stop = min(done + _STEP, n_points)
                _pick(points, coarse, margin, first, order, left, nearest, done, stop)
                left, nearest = left[nearest >= 0], nearest[nearest >= 0]
                bar.update(stop - done)
        return order


def _coarse(points: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float32], float]:
    """Coordinates whose distances are not larger than those of the points, but for rounding, and a bound of that.

    They are those along the principal axes of some of the points, and the norm of what these leave over.
    """
    n_points, n_features = points.shape
    rows = max(1, _CHUNK_ELEMENTS // n_features)
    mean = points.mean(axis=0)
    sample = points[:: max(1, n_points // _SAMPLE)][:_SAMPLE] - mean
    axes = np.linalg.svd(sample, full_matrices=False)[2][: min(_AXES, n_features)].T
    coarse = np.empty((n_points, axes.shape[1] + 1), np.float32)
    largest = 0.0
    for start in range(0, n_points, rows):
        block = points[start : start + rows] - mean
        along = block @ axes
        norms = np.einsum("ij,ij->i", block, block)
        coarse[start : start + rows, :-1] = along
        coarse[start : start + rows, -1] = np.sqrt(np.maximum(norms - np.einsum("ij,ij->i", along, along), 0))
        largest = max(largest, float(norms.max()))
    # The norm of the rest is off by the root of its square's rounding, 2^-26 of the largest norm, and all coordinates
    # by 2^-24 of it in float32; distances are up to twice the largest norm.
    return coarse, 2.0**-16 * largest + 2.0**-120


def unit_rows(vectors: Vectors) -> npt.NDArray[np.float64]:
    """The rows in float64, scaled to length 1."""
    rows = np.array(vectors, np.float64)
    # Scaled first, as squares of very small or large numbers leave the range of float64.
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return rows


def scaled_rows(vectors: Vectors) -> npt.NDArray[np.float64]:
    """The rows in float64, all divided by one power of two such that squares stay in range."""
    rows = np.array(vectors, np.float64)
    return cast("npt.NDArray[np.float64]", np.ldexp(rows, -np.frexp(np.abs(rows).max())[1]))


@_kernel
def _pick(
    points: Any, coarse: Any, margin: float, first: Any, order: Any, left: Any, nearest: Any, done: int, stop: int
) -> None:
    """Pick centres number `done` to `stop - 1`.

    `left` holds the points that may be picked, in the order of their indices, and `nearest` their squared distances to
    the nearest centre, -1 once they are picked. Distances are computed only where the coarse ones, which are smaller,
    do not tell already that nothing changes.
    """
    farthest = 0
    for p in range(1, len(left)):
        if nearest[p] > nearest[farthest]:
            farthest = p
    for k in range(done, stop):
        at = farthest
        if k < len(first):
            at = 0
            while left[at] != first[k]:
                at += 1
        centre = left[at]
        order[k] = centre
        nearest[at] = -1.0
        farthest = 0
        for p in range(len(left)):
            if nearest[p] > 0:
                i = left[p]
                bound = np.float32(0)
                for c in range(coarse.shape[1]):
                    step = coarse[i, c] - coarse[centre, c]
                    bound += step * step
                if bound < nearest[p] + margin:
                    total = 0.0
                    for c in range(points.shape[1]):
                        difference = points[i, c] - points[centre, c]
                        total += difference * difference
                    if total < nearest[p]:
                        nearest[p] = total
            if nearest[p] > nearest[farthest]:
                farthest = p
