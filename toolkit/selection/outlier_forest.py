"""What a selection of outliers and alike images keeps for later cuts: an order of the outliers, and merge trees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.selection.outlier_order import first_of_each
from toolkit.selection.quota import allocate
from toolkit.selection.recut import Arrays, Cut, MergeForest, by_first

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shares:
    """How many images of each class stay and go at one budget.

    Attributes:
        kept: Shape (C,), those that stay.
        outliers: Shape (C,), those that go because they are unlike all others.
        redundant: Shape (C,), those that go because others are like them.
    """

    kept: _Ints
    outliers: _Ints
    redundant: _Ints

    @classmethod
    def of(cls, n_kept: int, outlier_share: float, sizes: _Ints, low: _Ints, available: _Ints) -> Shares:
        """The shares of a budget: images that stay in proportion to `sizes`, outliers to the images that go.

        Of the images that go (beside those that a person excluded), `floor(outlier_share * gone)` are outliers.

        Args:
            n_kept: Images that stay.
            outlier_share: In [0, 1].
            sizes: Shape (C,), all images of each class.
            low: Shape (C,), the fewest that a class keeps.
            available: Shape (C,), images of each class that are not excluded.

        Example:
            >>> sizes = np.array([60, 40])
            >>> shares = Shares.of(80, 0.5, sizes, np.array([1, 1]), sizes)
            >>> shares.kept.tolist(), shares.outliers.tolist(), shares.redundant.tolist()
            ([48, 32], [6, 4], [6, 4])
        """
        kept = allocate(n_kept, sizes, low, available)
        gone = available - kept
        outliers = allocate(math.floor(round(outlier_share * int(gone.sum()), 9)), gone)
        return cls(kept, outliers, gone - outliers)


@dataclass(frozen=True)
class OutlierForest:
    """The order in which images go as outliers, and the merge trees of those that did not at the first budget.

    At another budget the numbers of outliers and of alike images change with it. The trees are cut where they lose as
    many alike images as are wanted; the outliers are the first in the order that nobody is grouped with. So an image
    that stands for others never goes as an outlier. Where there are too few images that stand alone, more alike ones
    go.

    Attributes:
        forest: The merge trees of each class's images without the outliers of the first budget.
        order: Shape (M,), the images that may go as outliers, those that go first first.
        scores: Shape (N,), how outlying each image is; NaN for those that were excluded.
        outlier_share: Of the images that go, the share that goes as outliers.
        codes: Shape (N,), the class of each image, where each class keeps its share; else all zero.
        low: Shape (C,), the fewest images that a class keeps.
        excluded: Shape (N,), images that a person wants removed.
        floor: The fewest images that can be asked for.
    """

    forest: MergeForest
    order: _Ints
    scores: npt.NDArray[np.float64]
    outlier_share: float
    codes: _Ints
    low: _Ints
    excluded: npt.NDArray[np.bool_]
    floor: int

    @property
    def preferred(self) -> npt.NDArray[np.bool_]:
        """Shape (N,), images that stay at any budget."""
        return self.forest.preferred

    def min_kept(self) -> int:
        """The fewest images that the trees reach."""
        return self.floor

    def cut(self, n_kept: int) -> Cut:
        """Keep exactly this many."""
        shares = self.shares(n_kept)
        apart, may_go = self._candidates()
        split = [self._split(c, shares, int(apart[c]), may_go) for c in range(len(self.low))]
        whole = self.forest._assemble([merges for merges, _ in split])
        alone = np.bincount(whole.group[whole.group >= 0], minlength=1) == 1
        stands_alone = (whole.group < 0) | alone[whole.group]
        counts = np.array([count for _, count in split], np.int64)
        outlier = np.zeros(len(self.codes), dtype=bool)
        outlier[first_of_each(self.order[stands_alone[self.order]], self.codes, counts)] = True
        return _with_outliers(whole, outlier, self.excluded)

    def shares(self, n_kept: int) -> Shares:
        """How many images of each class stay and go."""
        available = np.bincount(self.codes[~self.excluded], minlength=len(self.low))
        return Shares.of(n_kept, self.outlier_share, self.forest.sizes, self.low, available)

    def shortfall(self, n_kept: int) -> _Ints:
        """How many more images each class's tree would have to lose for a budget, shape (C,)."""
        shares = self.shares(n_kept)
        apart, may_go = self._candidates()
        wanted = shares.outliers + shares.redundant
        reached = [
            int(self._reached(c, int(shares.outliers[c]), int(apart[c]), may_go).max()) for c in range(len(self.low))
        ]
        return np.asarray(np.maximum(wanted - reached, 0))

    def _candidates(self) -> tuple[_Ints, npt.NDArray[np.bool_]]:
        """How many images of each class may go as outliers and are in no tree, and which may go, shape (N,)."""
        may_go = np.zeros(len(self.codes), dtype=bool)
        may_go[self.order] = True
        return np.bincount(self.codes[may_go & self.forest.excluded], minlength=len(self.low)), may_go

    def _split(self, c: int, shares: Shares, apart: int, may_go: npt.NDArray[np.bool_]) -> tuple[int, int]:
        """How many merges class c does, and how many of its images go as outliers."""
        wanted, outliers = int(shares.outliers[c] + shares.redundant[c]), int(shares.outliers[c])
        while True:
            reached = self._reached(c, outliers, apart, may_go)
            enough = np.flatnonzero(reached >= wanted)
            if len(enough):
                # A merge loses at most one image more, so that the number is first reached exactly.
                return int(enough[0]), wanted - int(self.forest._lost(c)[enough[0]])
            # The tree is done: rounding gave the class fewer outliers here than at the budget it was made for.
            outliers += 1

    def _reached(self, c: int, outliers: int, apart: int, may_go: npt.NDArray[np.bool_]) -> _Ints:
        """How many images class c loses with up to so many outliers, after its first m merges, for m = 0, 1, ..."""
        images, tree = self.forest.images[c], self.forest.trees[c]
        leaves = np.concatenate([may_go[images], np.zeros(tree.n_merges, dtype=bool)])
        grouped = np.concatenate([[0], np.cumsum(leaves[tree.children].sum(axis=1))])
        singles = apart + int(may_go[images].sum()) - grouped
        return np.asarray(self.forest._lost(c) + np.minimum(outliers, singles), np.int64)

    def arrays(self) -> Arrays:
        """The order and the forest as arrays for a file."""
        return {
            **self.forest.arrays(),
            "kind": np.array("outlier_forest"),
            "outlier_order": self.order,
            "outlier_scores": self.scores,
            "outlier_share": np.array(self.outlier_share),
            "balance_codes": self.codes,
            "balance_low": self.low,
            "excluded": np.flatnonzero(self.excluded),
            "outlier_floor": np.array(self.floor),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> OutlierForest:
        """What `arrays` came from."""
        excluded = np.zeros(int(arrays["n_images"]), dtype=bool)
        excluded[arrays["excluded"]] = True
        return cls(
            MergeForest.from_arrays(arrays),
            arrays["outlier_order"],
            arrays["outlier_scores"],
            float(arrays["outlier_share"]),
            arrays["balance_codes"],
            arrays["balance_low"],
            excluded,
            int(arrays["outlier_floor"]),
        )


def _with_outliers(cut: Cut, outlier: npt.NDArray[np.bool_], excluded: npt.NDArray[np.bool_]) -> Cut:
    """A cut of the trees with the images beside them: outliers go, the others stay on their own."""
    own = np.arange(len(outlier))
    aside = (cut.group < 0) & ~excluded & ~outlier
    group = np.where(aside, cut.group.max(initial=-1) + 1 + own, cut.group)
    representative = np.where(aside, own, cut.representative)
    distance = np.where(aside, np.float32(0), cut.distance)
    group[outlier], representative[outlier], distance[outlier] = -1, -1, np.nan
    return Cut(
        (cut.kept | aside) & ~outlier, by_first(group), representative, distance.astype(np.float32), outlier=outlier
    )
