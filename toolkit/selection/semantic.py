"""Semantic redundancy: one representative for each group of images that a trained network sees alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from toolkit.distributed import on_rank_zero, world
from toolkit.grouping import MergeTree, find_representatives, merge_tree
from toolkit.representations import Representation, Vectors
from toolkit.selection.base import BaseSelector, Candidates, as_representation, fingerprint_of, source_of
from toolkit.selection.quota import QUOTAS, allocate
from toolkit.selection.recut import MergeForest
from toolkit.selection.result import Selection
from toolkit.validation import check_choice, check_fraction, check_vectors, fraction_of, invalid

_LINKAGES = ("complete", "average", "single")
_REPRESENTATIVES = ("medoid", "first", "random")
_SCOPES = ("class", "all")


class SemanticSelector(BaseSelector):
    """Keep one image of each group found by agglomerative clustering of feature vectors within each class.

    The dissimilarity of two images is one minus the cosine of their vectors, `1 - <u, v> / (|u| |v|)`. Groups are
    merged from the closest upwards until the budget is met; of each group the representative is kept and the others are
    `redundant`. Equal dissimilarities are ordered by index, so the same vectors give the same selection.

    Give exactly one of `keep_fraction`, `n_groups` and `threshold`.

    Args:
        features: A representation such as `FeatureExtractor`, or vectors (N, D) that exist: array, tensor, memory map
            or the path of a `.npy` file.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        n_groups: How many images stay, instead of a fraction.
        threshold: Merge all groups whose dissimilarity is at most this, in [0, 2], instead of meeting a budget.
        linkage: The dissimilarity of two groups: `complete` (of their two most unlike images: bounds the diameter of a
            group), `average` or `single` (of their two most alike; chains unlike images together).
        representative: Which image of a group stays: the `medoid` (least dissimilar to the others in sum), the
            `first`, or a `random` one.
        quota: How the budget is spread over classes: `proportional` (each class keeps its share, largest remainder) or
            `global` (one threshold for all classes).
        scope: `class` groups images of one class only and needs labels; `all` ignores labels.
        always_keep: Ids (or indices, where images have no file) of images that stay whatever they resemble.
        always_remove: Ids of images that go.
        tree_floor: How far down `Selection.with_keep_fraction` can later cut anew, as a fraction of the images.
        seed: For `representative="random"`.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set, and where features
            are not finite or zero.

    References:
        Birodkar, Mobahi, Bengio, "Semantic Redundancies in Image-Classification Datasets: The 10% You Don't Need",
        arXiv 1901.11409. The linkage and the spread over classes are not told there; here they are options.

    Example:
        >>> import numpy as np
        >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 1.0]])
        >>> selection = SemanticSelector(vectors, keep_fraction=0.5).select(labels=[0, 0, 1, 1])
        >>> selection.kept
        array([0, 2])
    """

    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "n_groups",
        "threshold",
        "linkage",
        "representative",
        "quota",
        "scope",
        "always_keep",
        "always_remove",
        "tree_floor",
        "seed",
    )

    def __init__(
        self,
        features: Representation | Any,
        keep_fraction: float | None = None,
        *,
        n_groups: int | None = None,
        threshold: float | None = None,
        linkage: str = "complete",
        representative: str = "medoid",
        quota: str = "proportional",
        scope: str = "class",
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        tree_floor: float = 0.5,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.features = features
        self.keep_fraction = keep_fraction
        self.n_groups = n_groups
        self.threshold = threshold
        self.linkage = linkage
        self.representative = representative
        self.quota = quota
        self.scope = scope
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.tree_floor = tree_floor
        self.seed = seed
        self.progress = progress

    def representation(self) -> Representation:
        """The features, as a representation."""
        return as_representation(self.features)

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        given = {
            name: getattr(self, name)
            for name in ("keep_fraction", "n_groups", "threshold")
            if getattr(self, name) is not None
        }
        if len(given) != 1:
            raise ValueError(
                f"`keep_fraction` or `n_groups` or `threshold` must be given, exactly one, got {given or None}."
            )
        for name, kinds in (("keep_fraction", (int, float)), ("threshold", (int, float)), ("n_groups", (int,))):
            if isinstance(given.get(name, 1), bool) or not isinstance(given.get(name, 1), (*kinds, np.number)):
                raise TypeError(f"`{name}` must be a {'whole ' * (name == 'n_groups')}number, got {given[name]!r}.")
        if self.keep_fraction is not None:
            check_fraction("keep_fraction", self.keep_fraction)
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise invalid("threshold", "a dissimilarity in [0, 2]", self.threshold)
        check_choice("linkage", self.linkage, _LINKAGES)
        check_choice("representative", self.representative, _REPRESENTATIVES)
        check_choice("quota", self.quota, QUOTAS)
        check_choice("scope", self.scope, _SCOPES)
        check_fraction("tree_floor", self.tree_floor)

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
        needs = self.scope == "class"
        candidates = Candidates.of(dataset, labels, ids, self.always_keep, self.always_remove, needs_labels=needs)
        classes = self._classes(candidates)
        n_kept = self._budget(candidates, classes)
        vectors = check_vectors(representation.vectors(dataset), "features", nonzero=True)
        # The vectors are the same on every rank; grouping them is one rank's work, the others wait for its result.
        forest = on_rank_zero(lambda: self._forest(vectors, candidates, classes, n_kept))
        cut = (
            forest.cut_at(self.threshold) if n_kept is None and self.threshold is not None else forest.cut(n_kept or 0)
        )
        return Selection.from_cut(
            cut,
            excluded=candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config(),
            fingerprint=fingerprint_of(dataset),
            recut=forest,
        )

    def _classes(self, candidates: Candidates) -> npt.NDArray[np.int64]:
        """The class of each image, shape (N,)."""
        if self.scope == "all":
            return np.zeros(candidates.n_images, np.int64)
        if candidates.labels is None:
            raise ValueError(
                "`labels` must be given where scope='class', got None and a data set that has none. Pass `labels`, "
                "give the data set an attribute `targets`, or set scope='all' to choose without labels."
            )
        return candidates.labels.codes

    def _budget(self, candidates: Candidates, classes: npt.NDArray[np.int64]) -> int | None:
        """How many images stay, or None if a threshold decides."""
        if self.threshold is not None:
            return None
        if self.n_groups is not None:
            if not 1 <= self.n_groups <= candidates.n_images:
                raise invalid("n_groups", f"from 1 to the {candidates.n_images} images", self.n_groups)
            n_kept, name = self.n_groups, "n_groups"
        else:
            assert self.keep_fraction is not None
            n_kept, name = fraction_of(self.keep_fraction, candidates.n_images), "keep_fraction"
        candidates.check_budget(n_kept)
        least = _least(classes, candidates)
        if n_kept < least:
            raise invalid(
                name,
                f"enough for one image of each class and those always kept ({least} images)",
                f"{getattr(self, name)}, which is {n_kept}",
            )
        return n_kept

    def _forest(
        self, vectors: Vectors, candidates: Candidates, classes: npt.NDArray[np.int64], n_kept: int | None
    ) -> MergeForest:
        """The merge trees of all classes, as deep as this budget, the threshold and `tree_floor` need."""
        n_classes = int(classes.max()) + 1
        images = [np.flatnonzero((classes == c) & ~candidates.excluded) for c in range(n_classes)]
        sizes = np.bincount(classes, minlength=n_classes).astype(np.int64)
        available = np.array([len(i) for i in images], np.int64)
        preferred = np.array([int(candidates.preferred[i].sum()) for i in images], np.int64)
        low = np.maximum(np.minimum(1, available), preferred)
        floor = fraction_of(self.tree_floor, candidates.n_images)
        if n_kept is not None:
            floor = min(floor, n_kept)
        floor = int(np.clip(floor, low.sum(), available.sum()))
        # One group fewer than the share at the floor: by largest remainder, a class can have one seat fewer in a larger
        # house. And merges between two images that both stay save nothing, so there may have to be more of them.
        depth = np.maximum(
            allocate(floor, sizes, low, available) - 1 - np.maximum(preferred - 1, 0), np.minimum(1, available)
        )
        trees = self._trees(vectors, images, depth)
        heights = [tree.heights[-1] if len(tree.heights) else 0.0 for tree in trees]
        if self.quota == "global" and trees:
            # Every class has done its share of merges at the greatest of these heights, so all of them together have
            # done enough below it: that is where one threshold for all can be found.
            trees = self._extended(vectors, images, trees, max(heights))
        if self.threshold is not None:
            trees = self._extended(vectors, images, trees, self.threshold)
        rule, held = self.representative, candidates.preferred
        representatives = [
            find_representatives(vectors[i], tree, rule=rule, preferred=held[i], seed=self.seed)
            for i, tree in zip(images, trees, strict=True)
        ]
        return MergeForest(
            candidates.n_images, images, trees, representatives, sizes, candidates.preferred, self.quota, floor
        )

    def _trees(
        self, vectors: Vectors, images: list[npt.NDArray[np.int64]], depth: npt.NDArray[np.int64]
    ) -> list[MergeTree]:
        with tqdm(
            total=sum(len(i) for i in images), desc="grouping", unit="img", disable=not self.progress or world()[0] != 0
        ) as bar:
            trees = []
            for i, groups in zip(images, depth.tolist(), strict=True):
                trees.append(self._tree(vectors[i], n_groups=groups))
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
            else self._tree(vectors[i], threshold=height)
            for i, tree in zip(images, trees, strict=True)
        ]

    def _tree(self, vectors: Vectors, n_groups: int | None = None, threshold: float | None = None) -> MergeTree:
        if len(vectors) == 0:
            return MergeTree(0, np.empty((0, 2), np.int64), np.empty(0), self.linkage, "cosine")
        if threshold is not None:
            return merge_tree(vectors, threshold=threshold, linkage=self.linkage, metric="cosine")
        return merge_tree(vectors, n_groups=n_groups or 1, linkage=self.linkage, metric="cosine")


def _least(classes: npt.NDArray[np.int64], candidates: Candidates) -> int:
    """The fewest images that can stay: one of each class that has any left, or those that a person wants."""
    n_classes = int(classes.max()) + 1
    left = np.bincount(classes[~candidates.excluded], minlength=n_classes)
    return int(np.maximum(np.minimum(1, left), np.bincount(classes[candidates.preferred], minlength=n_classes)).sum())
