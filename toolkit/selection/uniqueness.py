"""FiftyOne's uniqueness: images far from their nearest neighbours stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from toolkit.distributed import world
from toolkit.grouping.linkage import _kernel
from toolkit.neighbors import near_pairs, nearest_neighbors
from toolkit.representations import Representation, Vectors
from toolkit.selection.base import Candidates
from toolkit.selection.ranked import OrderedSelector
from toolkit.selection.recut import Cut, Recut, by_first
from toolkit.selection.tree import rows_of
from toolkit.validation import fraction_of

#: What the distances to the three nearest neighbours count.
_WEIGHTS = (0.6, 0.3, 0.1)
#: By how much the radius grows until enough images lie within it of others.
_GROWTH = 1.5


class UniquenessSelector(OrderedSelector):
    """Keep the images that are farthest from their three nearest neighbours, as FiftyOne's uniqueness orders them.

    With d1 <= d2 <= d3 the distances of an image to its nearest neighbours, its uniqueness is
    `(0.6 d1 + 0.3 d2 + 0.1 d3) / 3`, divided by the largest of the set. The least unique images go. As both of two
    duplicates are least unique, both go: set `greedy` to keep one of them.

    Args:
        features: A representation such as `FeatureExtractor`, or vectors (N, D) that exist: array, tensor, memory map
            or the path of a `.npy` file.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        greedy: Choose as FiftyOne's `find_unique` does instead: go through the images by index and drop those within a
            radius of one that stays, with the radius at which the budget is met. Images that go then have the nearest
            one that stays as their representative; a later cut needs a new choice.
        metric: `cosine` (FiftyOne's default) or `euclidean`.
        always_keep: Ids (or indices, where images have no file) of images that stay.
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
            are not finite, or zero under the cosine; as `toolkit.neighbors.TooManyPairsError` where `greedy` has to
            look at more pairs than memory holds, because so few images are to stay.

    References:
        Voxel51, FiftyOne Brain, `compute_uniqueness` and `find_unique`. There, where no radius gives the budget, the
        greedy choice keeps more or fewer; here the radius is the largest that keeps enough, and of those kept the ones
        nearest to another go until the budget is met.

    Example:
        >>> vectors = [[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
        >>> UniquenessSelector(vectors, keep_fraction=0.8, progress=False).select().kept
        array([0, 2, 3, 4])
        >>> uniqueness([[0.0], [1.0], [3.0], [6.0]], metric="euclidean").round(3)
        array([0.538, 0.436, 0.615, 1.   ])
    """

    settings: ClassVar[tuple[str, ...]] = ("keep_fraction", "greedy", "metric", "always_keep", "always_remove")

    def __init__(
        self,
        features: Representation | Any,
        keep_fraction: float | None = None,
        *,
        greedy: bool = False,
        metric: str = "cosine",
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        progress: bool = True,
    ) -> None:
        self.features = features
        self.keep_fraction = keep_fraction
        self.greedy = greedy
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
        scores = uniqueness(vectors, metric=self.metric, progress=self.progress)
        return np.argsort(-scores, kind="stable")

    def _choose(self, vectors: Vectors, candidates: Candidates) -> tuple[Cut, Recut | None]:
        if not self.greedy:
            return super()._choose(vectors, candidates)
        inside = np.flatnonzero(~candidates.excluded)
        n_kept = fraction_of(cast("float", self.keep_fraction), candidates.n_images)
        rows, preferred = rows_of(vectors, inside), candidates.preferred[inside]
        kept = find_unique(rows, n_kept, metric=self.metric, preferred=preferred, progress=self.progress)
        n_images = candidates.n_images
        representative = np.full(n_images, -1, np.int64)
        distance = np.full(n_images, np.nan, np.float32)
        stays = np.zeros(n_images, dtype=bool)
        stays[inside[kept]] = True
        representative[stays], distance[stays] = np.flatnonzero(stays), 0.0
        gone = np.flatnonzero(~kept)
        if len(gone):
            found = nearest_neighbors(rows[gone], 1, y=rows[kept], metric=self.metric)
            representative[inside[gone]] = inside[kept][found.indices[:, 0]]
            distance[inside[gone]] = found.distances[:, 0]
        return Cut(stays, by_first(representative), representative, distance), None


def uniqueness(vectors: Any, *, metric: str = "cosine", progress: bool = False) -> npt.NDArray[np.float64]:
    """How far each vector is from its three nearest neighbours, as a share of the largest.

    Args:
        vectors: Shape (N, D).
        metric: `cosine` or `euclidean`.
        progress: Whether to show a progress bar.

    Returns:
        float64 of shape (N,), in [0, 1]; 1 for all where there are at most three vectors, 0 for all where they are all
        the same.

    Example:
        >>> uniqueness([[1.0, 0.0], [0.0, 1.0]])
        array([1., 1.])
    """
    n_vectors = len(vectors)
    if n_vectors <= len(_WEIGHTS):
        return np.ones(n_vectors)
    shown = progress and world()[0] == 0
    found = nearest_neighbors(vectors, len(_WEIGHTS), metric=metric, progress=shown)
    scores = (found.distances * np.array(_WEIGHTS)).mean(axis=1)
    return np.asarray(scores / max(float(scores.max()), np.finfo(np.float64).tiny))


def find_unique(
    vectors: Any,
    n_kept: int,
    *,
    metric: str = "cosine",
    preferred: npt.NDArray[np.bool_] | None = None,
    progress: bool = False,
) -> npt.NDArray[np.bool_]:
    """Which vectors stay where those within a radius of one that stays go, with the radius that leaves `n_kept`.

    Vectors are gone through by index, those `preferred` first, which stay in any case.

    Args:
        vectors: Shape (N, D).
        n_kept: How many stay, from 1 to N and at least as many as are preferred.
        metric: `cosine` or `euclidean`.
        preferred: Shape (N,).
        progress: Whether to show a progress bar.

    Returns:
        Shape (N,), with exactly `n_kept` that are True.

    Example:
        >>> find_unique([[0.0], [0.1], [0.25], [3.0], [3.3]], 3, metric="euclidean").tolist()
        [True, False, False, True, True]
    """
    n_vectors = len(vectors)
    held = np.zeros(n_vectors, dtype=bool) if preferred is None else preferred
    if n_kept == n_vectors:
        return np.ones(n_vectors, dtype=bool)
    sequence = np.argsort(~held, kind="stable")
    rows, held = np.asarray(vectors)[sequence], held[sequence]
    shown = progress and world()[0] == 0
    nearest = nearest_neighbors(rows, 1, metric=metric, progress=shown).distances[:, 0]
    # At most as many go as have a neighbour within the radius, so that no smaller radius can do.
    radius = float(np.partition(nearest, n_vectors - n_kept - 1)[n_vectors - n_kept - 1])
    while True:
        pairs, apart = near_pairs(rows, radius, metric=metric, progress=shown)
        stays = _stay(pairs, held, apart, radius)
        if int(stays.sum()) <= n_kept:
            break
        radius = _larger(radius, rows[stays], held[stays], metric)
    steps = np.unique(apart)
    low, high = -1, len(steps) - 1  # the radius steps[low] leaves too many (or, at -1, all), steps[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        again = _stay(pairs, held, apart, float(steps[middle]))
        if int(again.sum()) <= n_kept:
            high, stays = middle, again
        else:
            low = middle
    if int(stays.sum()) < n_kept:
        # No radius leaves exactly as many: of those that the next smaller one leaves, the nearest to others go.
        stays = _stay(pairs, held, apart, float(steps[low])) if low >= 0 else np.ones(n_vectors, dtype=bool)
        while int(stays.sum()) > n_kept:
            _thin(pairs, held, apart, stays, n_kept)
            if int(stays.sum()) > n_kept:
                radius = _larger(radius, rows[stays], held[stays], metric)
                pairs, apart = near_pairs(rows, radius, metric=metric, progress=shown)
    chosen = np.empty(n_vectors, dtype=bool)
    chosen[sequence] = stays
    return chosen


def _larger(radius: float, rows: npt.NDArray[Any], held: npt.NDArray[np.bool_], metric: str) -> float:
    """A larger radius, within which one of these rows lies that need not stay; all of those are farther apart."""
    nearest = nearest_neighbors(rows, 1, metric=metric).distances[:, 0]
    return max(_GROWTH * radius, float(nearest[~held].min()))


def _thin(
    pairs: npt.NDArray[np.int64],
    held: npt.NDArray[np.bool_],
    apart: npt.NDArray[np.float64],
    stays: npt.NDArray[np.bool_],
    n_kept: int,
) -> None:
    """Take out the second of pairs of which both stay, from the nearest pair on, until `n_kept` stay."""
    surplus = int(stays.sum()) - n_kept
    both = np.flatnonzero(stays[pairs[:, 0]] & stays[pairs[:, 1]] & ~held[pairs[:, 1]])
    for first, second in pairs[both[np.argsort(apart[both], kind="stable")]].tolist():
        if surplus and stays[first] and stays[second]:
            stays[second] = False
            surplus -= 1


@_kernel
def _stay(pairs: Any, held: Any, apart: Any, radius: float) -> Any:
    """Who stays: a pair's second goes if its first stays and they are within the radius."""
    stays = np.ones(len(held), np.bool_)
    for e in range(len(pairs)):
        if apart[e] <= radius and stays[pairs[e, 0]] and not held[pairs[e, 1]]:
            stays[pairs[e, 1]] = False
    return stays
