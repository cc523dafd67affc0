"""What selectors that cut merge trees share: how deep the trees must go, and where they are cut."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from toolkit.distributed import on_rank_zero, world
from toolkit.grouping import MergeTree, Representatives, find_representatives, merge_tree
from toolkit.representations import FeatureExtractor, Representation, Vectors
from toolkit.selection.automatic import crossing_curve
from toolkit.selection.base import Candidates, fingerprint_of, source_of
from toolkit.selection.budget import SCOPES, BudgetedSelector
from toolkit.selection.path_prober import PathProber, keep_crossing
from toolkit.selection.quota import QUOTAS, allocate
from toolkit.selection.recut import Cut, MergeForest
from toolkit.selection.result import Selection
from toolkit.validation import check_choice, check_fraction, check_vectors, fraction_of, invalid

#: Merges for each image that is to go, where groups of several labels are kept whole: enough for most data sets.
_MIXED_MERGES = 1.7
#: How much deeper trees are grown than the last ones suggest, where that was not enough.
_MARGIN = 1.15
#: Fewer pairs than this tell nothing about how often paths cross.
_LEAST_PAIRS = 500


class TreeSelector(BudgetedSelector, ABC):
    """Merges alike images into groups until a budget is met, and keeps one image of each group.

    A subclass says which vectors, metric, linkage and rule for representatives to use; its documentation tells the
    arguments.

    Where the vectors come from a network (a `FeatureExtractor`), it can also be asked which images may go: a selector
    that sets `can_choose_fraction` takes `keep_fraction="auto"` (see `toolkit.selection.automatic.crossing_curve`), and
    any may set `verify`.
    """

    #: The dissimilarity of two vectors, and the largest that a threshold may ask for.
    metric: ClassVar[str] = "cosine"
    max_threshold: ClassVar[float] = 2.0

    threshold: float | None
    linkage: str
    representative: str
    quota: str
    tree_floor: float | None
    seed: int
    progress: bool
    #: How far the crossing rate may rise, and how paths are walked, for selectors that do not let their users say.
    tolerance: float = 0.1
    num_pairs: int | None = None
    num_points: int = 17
    verify: bool = False

    @abstractmethod
    def representation(self) -> Representation:
        """What turns images into vectors for this selector."""

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        self._check_budget(("keep_fraction", "n_groups", "threshold"))
        if self.threshold is not None and not 0 <= self.threshold <= self.max_threshold:
            must = "a dissimilarity in [0, 2]" if self.max_threshold == 2 else "a distance of at least 0"
            raise invalid("threshold", must, self.threshold)
        check_choice("quota", self.quota, QUOTAS)
        check_choice("scope", self.scope, SCOPES)
        if self.tree_floor is not None:
            check_fraction("tree_floor", self.tree_floor)
        self._check_paths()

    def _check_paths(self) -> None:
        """Refuse what the walks between images and their representatives cannot be done with."""
        for name, value, least in (("num_pairs", self.num_pairs, _LEAST_PAIRS), ("num_points", self.num_points, 3)):
            if value is None and name == "num_pairs":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
            if value < least:
                raise invalid(name, f"at least {least}", value)
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, (int, float, np.number)):
            raise TypeError(f"`tolerance` must be a number in (0, 1), got {self.tolerance!r}.")
        if not 0 < self.tolerance < 1:
            raise invalid("tolerance", "in (0, 1)", self.tolerance)
        if not isinstance(self.verify, (bool, np.bool_)):
            raise TypeError(f"`verify` must be True or False, got {self.verify!r}.")
        automatic = self._is_automatic()
        if (automatic or self.verify) and not isinstance(self.representation(), FeatureExtractor):
            asked = "keep_fraction='auto'" if automatic else "verify=True"
            other = ", or `keep_fraction` a number" if automatic else ""
            got = type(self.representation()).__name__
            raise invalid("features", f"a FeatureExtractor, whose model is asked, where {asked}{other}", got)
        if automatic and self.tree_floor is None:
            raise invalid("tree_floor", "a fraction where keep_fraction='auto' looks for a cut above it", None)

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay.

        Args:
            dataset: The images, N of them, or an `EvaluationView`; may be None where the selector was given vectors.
                In a distributed run every rank calls this alike.
            labels: The images' labels, shape (N,); the data set's own if None.
            ids: Names of the images; their files if None, where they have any.
        """
        self.check()
        representation = self.representation()
        dataset = source_of(dataset, representation)
        needs = self.scope == "class" or self._is_automatic()
        candidates = self._candidates(dataset, labels, ids, needs_labels=needs)
        classes = self._classes(candidates)
        n_kept = self._n_kept(candidates, classes)
        if self._is_automatic():
            self._check_candidates(candidates)
        vectors = check_vectors(representation.vectors(dataset), "features", nonzero=self.metric == "cosine")
        # The vectors are the same on every rank; grouping them is one rank's work, the others wait for its result.
        cut, forest, found = on_rank_zero(lambda: self._decide(dataset, vectors, candidates, classes, n_kept))
        return Selection.from_cut(
            cut,
            excluded=candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config() | found,
            fingerprint=fingerprint_of(dataset),
            recut=forest,
        )

    @staticmethod
    def _check_candidates(candidates: Candidates) -> None:
        """Refuse what a budget that is not known yet cannot be found for."""
        candidates.check_budget(max(1, int(candidates.preferred.sum())))
        if candidates.labels is None:
            raise ValueError(
                "`labels` must be given where keep_fraction='auto', got None and a data set that has none: paths to "
                "representatives are compared with those of random pairs of one class. Give labels, or "
                "`keep_fraction` a number."
            )

    def _decide(
        self,
        dataset: Any,
        vectors: Vectors,
        candidates: Candidates,
        classes: npt.NDArray[np.int64],
        n_kept: int | None,
    ) -> tuple[Cut, MergeForest | None, dict[str, Any]]:
        """Who stays, the merge trees, and what was found out on the way, as plain values."""
        if not (self._is_automatic() or self.verify):
            return *self._choose(vectors, candidates, classes, n_kept), {}
        extractor = self.representation()
        assert isinstance(extractor, FeatureExtractor)
        probe = PathProber(extractor, dataset, self.num_points, seed=self.seed, progress=self.progress)
        found: dict[str, Any] = {}
        forest: MergeForest | None
        if self._is_automatic():
            assert candidates.labels is not None
            forest = self._forest(vectors, candidates, classes, None)
            curve = crossing_curve(
                forest,
                candidates.labels.codes,
                probe,
                tolerance=float(self.tolerance),
                num_pairs=self.num_pairs,
                seed=self.seed,
            )
            found["auto"] = replace(curve, n_evaluations=probe.n_evaluations).plain()
            if curve.chosen is None:
                warnings.warn(f"keep_fraction='auto': {curve.message}.", stacklevel=5)
            cut = forest.cut(candidates.n_images - int(candidates.excluded.sum()) - curve.n_removed)
        else:
            cut, forest = self._choose(vectors, candidates, classes, n_kept)
        return keep_crossing(cut, probe) if self.verify else cut, forest, found

    def _choose(
        self, vectors: Vectors, candidates: Candidates, classes: npt.NDArray[np.int64], n_kept: int | None
    ) -> tuple[Cut, MergeForest | None]:
        """Who stays, and the merge trees that tell it at other budgets, where there are any."""
        forest = self._forest(vectors, candidates, classes, n_kept)
        return self._cut(forest, n_kept), forest

    def _forest(
        self,
        vectors: Vectors,
        candidates: Candidates,
        classes: npt.NDArray[np.int64],
        n_kept: int | None,
        codes: npt.NDArray[np.int64] | None = None,
    ) -> MergeForest:
        """The merge trees of all classes, as deep as this budget, the threshold and `tree_floor` need.

        With `codes`, groups of several labels are kept whole; trees then go deeper until the budget can be met.
        """
        n_classes = int(classes.max()) + 1
        images = [np.flatnonzero((classes == c) & ~candidates.excluded) for c in range(n_classes)]
        sizes = np.bincount(classes, minlength=n_classes).astype(np.int64)
        available = np.array([len(i) for i in images], np.int64)
        preferred = np.array([int(candidates.preferred[i].sum()) for i in images], np.int64)
        low = np.maximum(np.minimum(1, available), preferred)
        reach = candidates.n_images if self.tree_floor is None else fraction_of(self.tree_floor, candidates.n_images)
        if n_kept is not None:
            reach = min(reach, n_kept)
        floor = int(np.clip(reach, low.sum(), available.sum()))
        # One group fewer than the share at the floor: by largest remainder, a class can have one seat fewer in a larger
        # house. And merges between two images that both stay save nothing, so there may have to be more of them.
        depth = np.maximum(
            allocate(floor, sizes, low, available) - 1 - np.maximum(preferred - 1, 0), np.minimum(1, available)
        )
        # A number of groups or a threshold says itself how deep to go.
        counts_images = self.keep_fraction is not None or self.tree_floor is not None
        if codes is not None and counts_images:
            # Groups of several labels lose no image, so that more merges are needed than images are to go.
            depth = np.maximum(available - (_MIXED_MERGES * (available - depth)).astype(np.int64), 1)
        trees = self._trees(vectors, images, depth)
        heights = [tree.heights[-1] if len(tree.heights) else 0.0 for tree in trees]
        if self.quota == "global" and trees:
            # Every class has done its share of merges at the greatest of these heights, so all of them together have
            # done enough below it: that is where one threshold for all can be found.
            trees = self._extended(vectors, images, trees, max(heights))
        if self.threshold is not None:
            trees = self._extended(vectors, images, trees, self.threshold)
        if codes is not None:
            to_lose = len(images[0]) - floor if counts_images else 0
            trees, floor = self._deepened(vectors, candidates, images[0], trees[0], codes, to_lose)
        held = candidates.preferred
        representatives = [
            find_representatives(rows_of(vectors, i), tree, rule=self.representative, preferred=held[i], seed=self.seed)
            if len(i)
            else Representatives.of_none()
            for i, tree in zip(images, trees, strict=True)
        ]
        return MergeForest(candidates.n_images, images, trees, representatives, sizes, held, self.quota, floor, codes)

    def _deepened(
        self,
        vectors: Vectors,
        candidates: Candidates,
        images: npt.NDArray[np.int64],
        tree: MergeTree,
        codes: npt.NDArray[np.int64],
        to_lose: int,
    ) -> tuple[list[MergeTree], int]:
        """The tree of all images, deep enough to lose some of them although groups of several labels lose none.

        Returns:
            The tree (the complete one, where no tree goes down that far), and the fewest images that it leaves.
        """
        while True:
            forest = MergeForest(
                len(codes),
                [images],
                [tree],
                [],
                np.array([len(codes)]),
                candidates.preferred,
                "proportional",
                0,
                codes,
            )
            fewest = forest.fewest()
            lost = len(images) - fewest
            if lost >= to_lose or tree.n_merges == len(images) - 1:
                return [tree], fewest
            # As many merges as would do if they went on to save as many images each, but at least half as many again.
            wanted = max(_MARGIN * tree.n_merges * to_lose / max(lost, 1), 1.5 * tree.n_merges + 1)
            tree = self._tree(rows_of(vectors, images), n_groups=max(1, len(images) - int(wanted)))

    def _cut(self, forest: MergeForest, n_kept: int | None) -> Cut:
        """The cut of the forest that the settings ask for."""
        if self.threshold is not None:
            return forest.cut_at(self.threshold)
        assert n_kept is not None
        if self.n_groups is not None and forest.codes is not None:
            return forest.cut_into(n_kept)
        fewest = forest.min_kept()
        if n_kept < fewest:
            raise invalid(
                "keep_fraction",
                f"at least {fewest / forest.n_images:.6g} ({fewest} of {forest.n_images} images): groups with images "
                "of several labels are kept whole. Set keep_influential=False or scope='class', or give `n_groups` or "
                "`threshold`",
                self.keep_fraction,
            )
        return forest.cut(n_kept)

    def _trees(
        self, vectors: Vectors, images: list[npt.NDArray[np.int64]], depth: npt.NDArray[np.int64]
    ) -> list[MergeTree]:
        with tqdm(
            total=sum(len(i) for i in images), desc="grouping", unit="img", disable=not self.progress or world()[0] != 0
        ) as bar:
            trees = []
            for i, groups in zip(images, depth.tolist(), strict=True):
                trees.append(self._tree(rows_of(vectors, i), n_groups=groups))
                bar.update(len(i))
        return trees

    def _extended(
        self, vectors: Vectors, images: list[npt.NDArray[np.int64]], trees: list[MergeTree], height: float
    ) -> list[MergeTree]:
        """The trees with all merges up to a height; one that goes beyond it already stays as it is."""
        return [
            tree
            if tree.n_leaves == 0
            or len(tree.heights) == tree.n_leaves - 1
            or (len(tree.heights) and tree.heights[-1] > height)
            else self._tree(rows_of(vectors, i), threshold=height)
            for i, tree in zip(images, trees, strict=True)
        ]

    def _tree(self, vectors: Vectors, n_groups: int | None = None, threshold: float | None = None) -> MergeTree:
        if len(vectors) == 0:
            return MergeTree(0, np.empty((0, 2), np.int64), np.empty(0), self.linkage, self.metric)
        if threshold is not None:
            return merge_tree(vectors, threshold=threshold, linkage=self.linkage, metric=self.metric)
        return merge_tree(vectors, n_groups=n_groups or 1, linkage=self.linkage, metric=self.metric)


def rows_of(vectors: Vectors, images: npt.NDArray[np.int64]) -> Vectors:
    """The vectors of some images, in their order; without a copy where these are all."""
    return vectors if len(images) == len(vectors) else vectors[images]
