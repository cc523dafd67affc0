"""SemDeDup: of images that are nearly the same within a cell of k-means, one stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.grouping import kmeans
from toolkit.representations import Representation, Vectors
from toolkit.selection.base import Candidates
from toolkit.selection.k_center import unit_rows
from toolkit.selection.protection import check_protection
from toolkit.selection.ranked import RankedSelector
from toolkit.selection.recut import Cut, Ranking, Recut
from toolkit.selection.tree import rows_of
from toolkit.validation import check_choice, fraction_of, invalid

_KEEPS = ("far", "near", "random")
#: Iterations of k-means; the cells only spare comparisons, they need not settle.
_MAX_ITER = 20
#: Products of rows held at a time (32 MiB).
_BLOCK_ELEMENTS = 1 << 22


class SemDeDupSelector(RankedSelector):
    """Drop images that are nearly the same as another one that comes before them in their cell of k-means.

    The vectors, scaled to length 1, are put into cells by k-means. In a cell the images are ordered by their cosine to
    the cell's mean; an image goes if its dissimilarity `1 - <u, v> / (|u| |v|)` to one before it is below a threshold
    (the paper's epsilon). With `keep_fraction` the threshold is the one at which the budget is met, exactly: images go
    in the order of their dissimilarity to the nearest one before them, ties the higher index first. Smaller budgets
    give subsets of larger ones.

    Give exactly one of `keep_fraction` and `threshold`.

    Args:
        features: A representation such as `FeatureExtractor`, or vectors (N, D) that exist: array, tensor, memory map
            or the path of a `.npy` file.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        threshold: Drop images whose dissimilarity to one before them is below this, in [0, 2], instead of meeting a
            budget.
        n_cells: Cells of k-means; the square root of N if None.
        keep: Which images come first in a cell: those `far` from its mean (the paper's choice), those `near` it, or
            `random` ones.
        always_keep: Ids (or indices, where images have no file) of images that stay; they come first in their cells.
        always_remove: Ids of images that go.
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        seed: Of k-means' start and of `keep="random"`.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set, and where features
            are not finite or zero.

    References:
        Abbas, Tirumala, Simig, Ganguli, Morcos, "SemDeDup: Data-efficient learning at web-scale through semantic
        deduplication", arXiv 2303.09540. There an image that is dropped itself still drops those after it, and so it
        does here; the budget is met by trying thresholds, here by ordering the images. Its k-means has 50,000 cells.

    Example:
        >>> vectors = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.6, 0.6]]
        >>> SemDeDupSelector(vectors, keep_fraction=0.6, n_cells=1, progress=False).select().kept
        array([0, 2, 4])
    """

    nonzero: ClassVar[bool] = True
    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "threshold",
        "n_cells",
        "keep",
        "always_keep",
        "always_remove",
        "seed",
    )

    def __init__(
        self,
        features: Representation | Any,
        keep_fraction: float | None = None,
        *,
        threshold: float | None = None,
        n_cells: int | None = None,
        keep: str = "far",
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.features = features
        self.keep_fraction = keep_fraction
        self.threshold = threshold
        self.n_cells = n_cells
        self.keep = keep
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.seed = seed
        self.progress = progress

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        check_protection(self.protect_rare, self.temporal_gap)
        if (self.keep_fraction is None) == (self.threshold is None):
            got = {"keep_fraction": self.keep_fraction, "threshold": self.threshold}
            raise ValueError(f"`keep_fraction` or `threshold` must be given, exactly one, got {got}.")
        if self.threshold is None:
            super().check()
        elif isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float, np.number)):
            raise TypeError(f"`threshold` must be a number, got {self.threshold!r}.")
        elif not 0 <= self.threshold <= 2:
            raise invalid("threshold", "a dissimilarity in [0, 2]", self.threshold)
        if self.n_cells is not None and (isinstance(self.n_cells, bool) or not isinstance(self.n_cells, int)):
            raise TypeError(f"`n_cells` must be a whole number, got {self.n_cells!r}.")
        if self.n_cells is not None and self.n_cells < 1:
            raise invalid("n_cells", "at least 1", self.n_cells)
        check_choice("keep", self.keep, _KEEPS)

    def _choose(self, vectors: Vectors, candidates: Candidates) -> tuple[Cut, Recut | None]:
        inside = np.flatnonzero(~candidates.excluded)
        preferred = candidates.preferred[inside]
        apart = self._apart(rows_of(vectors, inside), preferred)
        ranking: Ranking = self._ranking(inside[np.lexsort((np.arange(len(inside)), -apart))], candidates)
        if self.threshold is not None:
            n_kept = int((preferred | (apart >= self.threshold)).sum())
        else:
            n_kept = fraction_of(cast("float", self.keep_fraction), candidates.n_images)
        return ranking.cut(n_kept), ranking

    def _apart(self, vectors: Vectors, preferred: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Each row's dissimilarity to the nearest one before it in its cell; infinite for the first."""
        rows = unit_rows(vectors)
        n_cells = min(len(rows), math.isqrt(len(rows)) if self.n_cells is None else self.n_cells)
        found = kmeans(rows, n_cells, init="k-means++", max_iter=_MAX_ITER, seed=self.seed, progress=self.progress)
        random = np.random.default_rng(self.seed).permutation(len(rows))
        apart = np.empty(len(rows))
        members = np.split(np.argsort(found.groups, kind="stable"), np.cumsum(np.bincount(found.groups))[:-1])
        bar = tqdm(total=len(rows), desc="comparing", unit="img", disable=not self.progress or world()[0] != 0)
        with bar:
            for cell in members:
                inside = rows[cell]
                # The longer the mean's projection, the nearer: its own length changes no order.
                near = np.einsum("ij,j->i", inside, inside.mean(axis=0))
                key = {"far": near, "near": -near, "random": random[cell]}[self.keep]
                cell = cell[np.lexsort((cell, key, ~preferred[cell]))]
                apart[cell] = _nearest_before(rows[cell])
                bar.update(len(cell))
        return apart


def _nearest_before(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cosine dissimilarity of each unit row to the nearest row before it; infinite for the first."""
    n_rows = len(rows)
    found = np.full(n_rows, np.inf)
    step = max(1, _BLOCK_ELEMENTS // n_rows)
    for start in range(1, n_rows, step):
        block = rows[start : start + step]
        products = block @ rows[: start + len(block) - 1].T
        products[np.arange(products.shape[1]) >= np.arange(start, start + len(block))[:, None]] = -np.inf
        nearest = products.argmax(axis=1)
        # From the difference, so that duplicates are at 0 exactly.
        difference = block - rows[nearest]
        found[start : start + len(block)] = 0.5 * np.einsum("ij,ij->i", difference, difference)
    return found
