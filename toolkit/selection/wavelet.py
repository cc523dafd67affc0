"""Redundancy without a trained model: groups of images that are alike in their wavelet coefficients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from toolkit.grouping import KMeans, kmeans, nearest_to_centre
from toolkit.representations import Representation, Vectors, WaveletCoefficients
from toolkit.representations.columns import independent_columns
from toolkit.selection.base import Candidates, as_representation
from toolkit.selection.budget import BudgetedSelector, check_keep_influential, optional_codes
from toolkit.selection.keep_rule import keep_rule, restored
from toolkit.selection.quota import allocate
from toolkit.selection.recut import Cut, MergeForest, by_first
from toolkit.selection.tree import TreeSelector, rows_of
from toolkit.validation import check_choice, invalid

log = logging.getLogger(__name__)

_CLUSTERINGS = ("kmeans", "ward")
_INITS = ("ward", "k-means++", "random")

#: Numbers of groups tried where k-means does not end with as many images as asked for.
_TRIES = 8


class WaveletSelector(TreeSelector):
    """Keep one image of each group of images that are alike in their wavelet coefficients, before any training.

    Algorithm 1 of Yousefzadeh: wavelet coefficients of the images; the most independent of them by rank-revealing QR;
    k-means clusters of all images, whatever their labels; of a cluster whose images share one label the image nearest
    the centre is kept, the others are `redundant`; a cluster of several labels is kept whole, its images are
    `influential`: they lie where classes meet, or carry a wrong label.

    Give exactly one of `keep_fraction`, `n_groups` and `threshold`.

    Args:
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay, influential ones included.
        n_groups: The number of clusters; more images than that stay where clusters have several labels.
        threshold: Merge all groups whose Ward distance is at most this.
        features: Another representation than wavelet coefficients, or vectors (N, D) that exist; the arguments from
            `wavelet` to `grayscale` are not looked at then.
        wavelet: Name of the wavelet.
        levels: Levels of the transform; None for as many as the images' size allows.
        mode: How images are continued past their edges.
        bands: Which bands of coefficients to use; None for all.
        band_weights: A factor for the coefficients of some bands.
        invariance: What differences between images to overlook, see `WaveletCoefficients`.
        resize: Height and width that all images are brought to; needed where they differ in size.
        max_size: Larger images are first downscaled so that their longer side is this.
        grayscale: Whether to look at the images without colour.
        max_condition: Of the coefficients, the most independent ones are used: as many as keep the condition number of
            their columns below this, where there are more images than coefficients. None for all coefficients.
        clustering: `kmeans` (Lloyd's iterations from `init` until no image moves) or `ward` (the cut of Ward's merge
            tree itself, which also counts where so many images stay in any case that k-means cannot meet the budget).
        init: Where k-means begins: `ward`, `k-means++` or `random`.
        max_iter: The most iterations of k-means.
        quota: With scope `class`, how the budget is spread over classes: `proportional` or `global`.
        scope: `dataset` clusters all images, which finds influential ones; `class` the images of each class apart.
        keep_influential: Whether groups of several labels are kept whole. Where images have several labels each, as
            those of their boxes, these are groups of images with different sets of them, which may be nearly all groups
            and stand in the way of small budgets. With False, labels decide only with scope `class`.
        always_keep: Ids (or indices, where images have no file) of images that stay whatever they resemble.
        always_remove: Ids of images that go.
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        tree_floor: How far down `Selection.with_keep_fraction` can later cut anew, as a fraction of the images; None
            for no further than this selection. Later cuts are those of Ward's tree, without Lloyd's iterations.
        seed: For `init="k-means++"` and `"random"`.
        progress: Whether to show progress bars.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257. The start from Ward's
        tree is this project's: where there are nearly as many groups as images, k-means++ leaves a far worse objective.

    Example:
        >>> import numpy as np
        >>> vectors = np.array([[0.0, 0.0], [0.1, 0.0], [3.0, 0.0], [9.0, 9.0], [9.0, 9.1]])
        >>> selection = WaveletSelector(n_groups=3, features=vectors).select(labels=[0, 0, 0, 1, 2])
        >>> selection.reasons
        ['kept', 'redundant', 'kept', 'influential', 'influential']
    """

    metric: ClassVar[str] = "euclidean"
    max_threshold: ClassVar[float] = np.inf
    linkage = "ward"
    representative = "nearest"

    later_settings: ClassVar[Mapping[str, Any]] = {**BudgetedSelector.later_settings, "keep_influential": True}
    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "n_groups",
        "threshold",
        "max_condition",
        "clustering",
        "init",
        "max_iter",
        "quota",
        "scope",
        "always_keep",
        "always_remove",
        "tree_floor",
        "seed",
    )

    def __init__(
        self,
        keep_fraction: float | None = None,
        *,
        n_groups: int | None = None,
        threshold: float | None = None,
        features: Representation | Any = None,
        wavelet: str = "db1",
        levels: int | None = None,
        mode: str = "periodization",
        bands: int | Sequence[str] | None = None,
        band_weights: Mapping[str, float] | None = None,
        invariance: Sequence[str] = (),
        resize: Sequence[int] | None = None,
        max_size: int | None = None,
        grayscale: bool = False,
        max_condition: float | None = 1e5,
        clustering: str = "kmeans",
        init: str = "ward",
        max_iter: int = 100,
        quota: str = "proportional",
        scope: str = "dataset",
        keep_influential: bool = True,
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        tree_floor: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.keep_fraction = keep_fraction
        self.n_groups = n_groups
        self.threshold = threshold
        self.features = features
        self.wavelet = wavelet
        self.levels = levels
        self.mode = mode
        self.bands = bands
        self.band_weights = band_weights
        self.invariance = invariance
        self.resize = resize
        self.max_size = max_size
        self.grayscale = grayscale
        self.max_condition = max_condition
        self.clustering = clustering
        self.init = init
        self.max_iter = max_iter
        self.quota = quota
        self.scope = scope
        self.keep_influential = keep_influential
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.tree_floor = tree_floor
        self.seed = seed
        self.progress = progress

    def representation(self) -> Representation:
        """The wavelet coefficients, or the features that were given instead."""
        if self.features is not None:
            return as_representation(self.features)
        return WaveletCoefficients(
            wavelet=self.wavelet,
            levels=self.levels,
            mode=self.mode,
            bands=self.bands,
            band_weights=self.band_weights,
            invariance=self.invariance,
            resize=self.resize,
            max_size=self.max_size,
            grayscale=self.grayscale,
            progress=self.progress,
        )

    def config(self) -> dict[str, Any]:
        """The selector's class and settings as plain values, those of the representation among them."""
        if self.features is not None:
            return {**super().config(), "features": type(self.features).__name__}
        names = ("wavelet", "levels", "mode", "bands", "band_weights", "invariance", "resize", "max_size", "grayscale")
        plain = {name: getattr(self, name) for name in names}
        for name, value in plain.items():
            if isinstance(value, Mapping):
                plain[name] = dict(value)
            elif isinstance(value, (tuple, list)):
                plain[name] = list(value)
        return {**super().config(), **plain}

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        check_choice("clustering", self.clustering, _CLUSTERINGS)
        check_choice("init", self.init, _INITS)
        check_keep_influential(self.keep_influential)
        if self.max_condition is not None and not self.max_condition > 1:
            raise invalid("max_condition", "a condition number above 1, or None", self.max_condition)
        if self.threshold is not None and self.init != "ward":
            raise invalid("init", "'ward' where a `threshold` decides", self.init)
        if isinstance(self.max_iter, bool) or not isinstance(self.max_iter, int) or self.max_iter < 1:
            raise invalid("max_iter", "a whole number of at least 1", self.max_iter)
        self.representation()

    def _choose(
        self, vectors: Vectors, candidates: Candidates, classes: npt.NDArray[np.int64], n_kept: int | None
    ) -> tuple[Cut, MergeForest | None]:
        """Who stays, and the merge trees that tell it at other budgets, where there are any."""
        vectors = self._independent(vectors)
        codes = optional_codes(candidates, self.scope, self.keep_influential)
        if self.init != "ward" and self.clustering == "kmeans":
            return self._from_seeds(vectors, candidates, classes, codes, cast("int", n_kept)), None
        reach = n_kept
        if self.keep_fraction is not None and n_kept is not None and codes is None and self.clustering == "kmeans":
            # K-means may bring images together that both stay, which takes fewer groups than the tree's cut has.
            reach = max(1, n_kept - int(candidates.preferred.sum()))
        forest = self._forest(vectors, candidates, classes, reach, codes)
        cut = self._cut(forest, n_kept)
        if self.clustering == "ward":
            return cut, forest
        return self._settled(vectors, candidates, forest, cut, n_kept), forest

    def _independent(self, vectors: Vectors) -> Vectors:
        """The most independent columns, where there are more images than columns."""
        n_images, n_columns = vectors.shape
        if self.max_condition is None or n_images <= n_columns:
            return vectors
        choice = independent_columns(vectors, self.max_condition)
        log.info(
            "%d of %d columns are independent: condition number %.6g, bound %.6g",
            len(choice.columns), n_columns, choice.condition, self.max_condition,
        )  # fmt: skip
        if len(choice.columns) == n_columns:
            return vectors
        return vectors[:, np.sort(choice.columns)]

    def _settled(
        self, vectors: Vectors, candidates: Candidates, forest: MergeForest, cut: Cut, n_kept: int | None
    ) -> Cut:
        """The cut after Lloyd's iterations; the same where no image moves."""
        wanted = n_kept if self.keep_fraction is not None else None
        aim = wanted
        for _ in range(_TRIES):
            moved = self._lloyd(vectors, candidates, forest.images, cut.group, forest.codes)
            if moved is None:
                return cut if wanted is None else restored(cut, wanted)
            surplus = 0 if wanted is None else int(moved.kept.sum()) - wanted
            if surplus <= 0:
                return moved if wanted is None else restored(moved, wanted)
            # Images moved into groups of other labels, which are kept whole, or images that both stay into one group:
            # merge that many more.
            aim = max(cast("int", aim) - surplus, forest.min_kept())
            cut = forest.cut(aim)
        if not candidates.preferred.any():
            raise self._not_met()
        log.info("k-means leaves too few images beside those that stay in any case: groups are those of Ward's tree")
        return forest.cut(cast("int", wanted))

    def _from_seeds(
        self,
        vectors: Vectors,
        candidates: Candidates,
        classes: npt.NDArray[np.int64],
        codes: npt.NDArray[np.int64] | None,
        n_kept: int,
    ) -> Cut:
        """K-means from random or k-means++ seeds, with fewer groups until no more than `n_kept` images stay."""
        images = [np.flatnonzero((classes == c) & ~candidates.excluded) for c in range(int(classes.max()) + 1)]
        sizes = np.bincount(classes, minlength=len(images)).astype(np.int64)
        available = np.array([len(members) for members in images], np.int64)
        aim = n_kept
        for _ in range(_TRIES):
            shares = allocate(aim, sizes, np.minimum(1, available), available)
            group = np.full(candidates.n_images, -1, np.int64)
            first = 0
            for members, share in zip(images, shares.tolist(), strict=True):
                if len(members):
                    group[members] = first + self._kmeans(vectors, members, share, self.init).groups
                    first += share
            cut = self._kept_of(vectors, candidates, group, codes)
            surplus = int(cut.kept.sum()) - n_kept
            if self.n_groups is not None:
                return cut
            if surplus <= 0:
                return restored(cut, n_kept)
            aim = max(aim - surplus, int(np.minimum(1, available).sum()))
        if codes is None:
            # Beside one image of each group only those that stay in any case do, for which one group a class has room.
            cut = self._kept_of(vectors, candidates, np.where(candidates.excluded, -1, classes), codes)
            return restored(cut, n_kept)
        raise self._not_met()

    def _lloyd(
        self,
        vectors: Vectors,
        candidates: Candidates,
        images: list[npt.NDArray[np.int64]],
        start: npt.NDArray[np.int64],
        codes: npt.NDArray[np.int64] | None,
    ) -> Cut | None:
        """The keep rule after Lloyd's iterations from some groups; None if no image moved."""
        group = np.full(candidates.n_images, -1, np.int64)
        first = n_moved = 0
        for members in images:
            if not len(members):
                continue
            labels = by_first(start[members])
            n_groups = int(labels.max()) + 1
            found = self._kmeans(vectors, members, n_groups, labels)
            group[members] = first + found.groups
            first += n_groups
            n_moved += found.n_moved
        log.info("k-means moved %d images after the start from Ward's tree", n_moved)
        return self._kept_of(vectors, candidates, group, codes) if n_moved else None

    def _kmeans(self, vectors: Vectors, members: npt.NDArray[np.int64], n_groups: int, init: Any) -> KMeans:
        return kmeans(
            rows_of(vectors, members),
            n_groups,
            init=init,
            max_iter=self.max_iter,
            seed=self.seed,
            progress=self.progress,
        )

    def _kept_of(
        self,
        vectors: Vectors,
        candidates: Candidates,
        group: npt.NDArray[np.int64],
        codes: npt.NDArray[np.int64] | None,
    ) -> Cut:
        """The keep rule on groups as they are."""
        inside = np.flatnonzero(group >= 0)
        nearest, found = nearest_to_centre(rows_of(vectors, inside), group[inside], candidates.preferred[inside])
        representative = np.full(len(group), -1, np.int64)
        representative[inside] = inside[nearest[group[inside]]]
        distance = np.full(len(group), np.nan, np.float32)
        distance[inside] = found
        return keep_rule(group, representative, distance, candidates.preferred, codes)

    def _not_met(self) -> ValueError:
        return invalid(
            "keep_fraction",
            "one that k-means can meet: here images keep moving into groups of several labels, which are kept whole. "
            "Set clustering='ward', keep_influential=False or scope='class', or give `n_groups`",
            self.keep_fraction,
        )
