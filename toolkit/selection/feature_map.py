"""Outliers and alike images of the whole set, by the feature maps of a network, without labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from toolkit.distributed import on_rank_zero, world
from toolkit.grouping import MergeTree, Representatives, find_representatives, merge_tree_of_pairs
from toolkit.neighbors import nearest_neighbors
from toolkit.outliers import SCORES
from toolkit.representations import FeatureExtractor, Representation, Vectors
from toolkit.representations.reduction import METHODS, reduce_vectors
from toolkit.selection.base import Candidates, as_representation, fingerprint_of, source_of
from toolkit.selection.budget import of_each
from toolkit.selection.k_center import unit_rows
from toolkit.selection.outlier_forest import OutlierForest, Shares
from toolkit.selection.outlier_order import PROBES, OutlierOrder, outlier_order
from toolkit.selection.protection import check_protection
from toolkit.selection.quota import allocate
from toolkit.selection.recut import Cut, MergeForest
from toolkit.selection.result import REDUNDANT, Selection
from toolkit.selection.tree import TreeSelector, rows_of
from toolkit.validation import check_choice, check_fraction, check_vectors, fraction_of, invalid, shorten

_LINKAGES = ("complete", "average", "single")
_REPRESENTATIVES = ("medoid", "first", "random")
_BALANCES = ("label", "predicted")

#: Merges beyond those a budget needs: rounding can ask a class for one or two more at a larger one.
_SLACK = 2
#: Nearest neighbours that images may be grouped with where these are found approximately.
_NEIGHBORS = 16
#: Products held at a time while diameters are measured (32 MiB).
_BLOCK_ELEMENTS = 1 << 22

_Ints = npt.NDArray[np.int64]


class VanishingClassWarning(UserWarning):
    """A class loses all its images, or would have."""


class FeatureMapSelector(TreeSelector):
    """Drop outliers, and all but one image of each group of alike ones, over the whole set and without labels.

    Of the images that go, `floor(outlier_share * gone)` are `outlier`: those with the largest score. The others are
    `redundant`: the rest of the set is merged by agglomerative clustering with the cosine dissimilarity
    `1 - <u, v> / (|u| |v|)`, from the most alike upwards, until exactly `floor(keep_fraction * N)` groups are left, of
    which the representatives stay. A class whose images are unlike all others can lose them all, so there are quotas
    (`balance`), for sets without labels too, and warnings with counts where chosen outliers form groups of their own
    or a class loses all its images.

    A later cut with `Selection.with_keep_fraction` takes as many outliers and alike images as the new budget says, in
    the same order and from the same trees: see `OutlierForest`.

    Args:
        features: A representation such as `FeatureExtractor`, or vectors (N, D) that exist: array, tensor, memory map
            or the path of a `.npy` file.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        outlier_share: In [0, 1]: of the images that go, the share that goes as outliers.
        reduce: How vectors are reduced to `n_dim` numbers before anything else: `pca` (centred, not whitened) or `umap`
            (an extra).
        n_dim: Numbers that vectors are reduced to, at most N and D. None leaves them as they are.
        outlier_score: `knn`, `hdbscan` or `glosh`, see `toolkit.outliers.outlier_scores`; under the Euclidean distance.
        linkage: The dissimilarity of two groups: `complete` (of their two most unlike images: bounds the diameter of a
            group), `average` or `single` (of their two most alike; chains unlike images together).
        balance: Classes that keep their shares of the images, with groups within a class only: those of the `label`s,
            or those that the model of a `FeatureExtractor` says (`predicted`), which needs no labels. Each class gives
            outliers and alike images in proportion to what it loses.
        min_per_class: With `balance`, the fewest images that a class keeps, or all it has.
        protect_modes: Keep groups among the chosen outliers and take the next by score in their places.
        representative: Which image of a group stays: the `medoid` (least dissimilar to the others in sum, which is the
            nearest to the mean of the unit vectors), the `first`, or a `random` one.
        always_keep: Ids (or indices, where images have no file) of images that stay whatever they are.
        always_remove: Ids of images that go.
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        tree_floor: How far down `Selection.with_keep_fraction` can later cut anew, as a fraction of the images.
        index: How neighbours are found: `exact`, or what faiss calls a factory string (such as `IVF1024,Flat`) for sets
            of a million images: then images are merged only with their nearest neighbours, by complete linkage, and
            outliers scored by `knn`. The log says which share of the neighbours was found.
        seed: For `representative="random"` and UMAP.
        progress: Whether to show progress bars.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set, and where features
            are not finite or zero.

    References:
        Raud, "Dataset filtering for image classification and object detection models", TalTech 2023. There the linkage
        is single and PCA gives whitened coordinates; outliers are the noise of HDBSCAN, which past 10 % is whole modes,
        and class ratios drift. The member nearest the centre stays there as here.

    Example:
        >>> vectors = [[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.1, 0.99], [5.0, -5.0], [0.7, 0.7]]
        >>> selection = FeatureMapSelector(vectors, keep_fraction=0.67, progress=False).select()
        >>> selection.reasons
        ['kept', 'redundant', 'kept', 'kept', 'outlier', 'kept']
    """

    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "outlier_share",
        "reduce",
        "n_dim",
        "outlier_score",
        "linkage",
        "balance",
        "min_per_class",
        "protect_modes",
        "representative",
        "always_keep",
        "always_remove",
        "tree_floor",
        "index",
        "seed",
    )

    # What other selectors by merge trees offer beside a fraction: here outliers make up a share of it.
    n_groups = None
    threshold = None
    quota = "proportional"
    scope = "dataset"

    def __init__(
        self,
        features: Representation | Any,
        keep_fraction: float = 0.9,
        *,
        outlier_share: float = 0.5,
        reduce: str | None = "pca",
        n_dim: int | None = None,
        outlier_score: str = "knn",
        linkage: str = "complete",
        balance: str | None = None,
        min_per_class: int = 1,
        protect_modes: bool = False,
        representative: str = "medoid",
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        tree_floor: float | None = 0.5,
        index: str = "exact",
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.features = features
        self.keep_fraction = keep_fraction
        self.outlier_share = outlier_share
        self.reduce = reduce
        self.n_dim = n_dim
        self.outlier_score = outlier_score
        self.linkage = linkage
        self.balance = balance
        self.min_per_class = min_per_class
        self.protect_modes = protect_modes
        self.representative = representative
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.tree_floor = tree_floor
        self.index = index
        self.seed = seed
        self.progress = progress

    def representation(self) -> Representation:
        """The features, as a representation."""
        return as_representation(self.features)

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        check_protection(self.protect_rare, self.temporal_gap)
        check_fraction("keep_fraction", cast("float", self.keep_fraction))
        share = self.outlier_share
        if isinstance(share, bool) or not isinstance(share, (int, float, np.number)):
            raise TypeError(f"`outlier_share` must be a number in [0, 1], got {share!r}.")
        if not 0 <= share <= 1:
            raise invalid("outlier_share", "in [0, 1]", share)
        if self.reduce is not None:
            check_choice("reduce", self.reduce, METHODS)
        for name, least in (("n_dim", 1), ("min_per_class", 0)):
            value = getattr(self, name)
            if value is None and name == "n_dim":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
            if value < least:
                raise invalid(name, f"at least {least}", value)
        if (self.reduce is None) and self.n_dim is not None:
            raise invalid("reduce", "'pca' or 'umap' where `n_dim` is given", None)
        if self.reduce == "umap" and self.n_dim is None:
            raise invalid("n_dim", "given where reduce='umap'", None)
        check_choice("outlier_score", self.outlier_score, SCORES)
        check_choice("linkage", self.linkage, _LINKAGES)
        check_choice("representative", self.representative, _REPRESENTATIVES)
        if self.index != "exact" and (self.linkage != "complete" or self.outlier_score != "knn"):
            raise invalid("index", "'exact' unless linkage='complete' and outlier_score='knn'", self.index)
        if self.balance is not None:
            check_choice("balance", self.balance, _BALANCES)
        if self.balance == "predicted" and not isinstance(self.representation(), FeatureExtractor):
            got = type(self.features).__name__
            raise invalid("features", "a FeatureExtractor, whose model predicts, where balance='predicted'", got)
        if self.tree_floor is not None:
            check_fraction("tree_floor", self.tree_floor)

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay.

        Args:
            dataset: The images, N of them, or an `EvaluationView`; may be None where the selector was given vectors.
                In a distributed run every rank calls this alike.
            labels: The images' labels, shape (N,), which decide nothing but with balance='label'; the data set's own
                if None.
            ids: Names of the images; their files if None, where they have any.
        """
        self.check()
        representation = self.representation()
        dataset = source_of(dataset, representation)
        needs = self.balance == "label"
        candidates = self._candidates(dataset, labels, ids, needs_labels=needs)
        n_kept = fraction_of(cast("float", self.keep_fraction), candidates.n_images)
        candidates.check_budget(n_kept)
        codes, names = self._balanced(dataset, candidates)
        low = self._fewest(candidates, codes, n_kept)
        vectors = check_vectors(representation.vectors(dataset), "features", nonzero=self.n_dim is None)
        # The vectors are the same on every rank; grouping them is one rank's work, the others wait for its result.
        cut, recut = on_rank_zero(lambda: self._chosen(vectors, candidates, codes, low, n_kept))
        selection = Selection.from_cut(
            cut,
            REDUNDANT,
            candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config(),
            fingerprint=fingerprint_of(dataset),
            recut=recut,
        )
        self._warn_of_classes(selection, candidates, recut, names)
        return selection

    @staticmethod
    def group_diameters(selection: Selection, vectors: Any) -> npt.NDArray[np.float64]:
        """The largest cosine dissimilarity within each group of a selection: how unlike what was merged is.

        Complete linkage keeps it at or below the height of the last merge; the other linkages do not bound it.

        Args:
            selection: The selection.
            vectors: Shape (N, D), those that were grouped.

        Returns:
            float64 of shape (G,), by the groups' numbers; 0 for an image on its own.

        Raises:
            ValueError: If the vectors are not N finite rows without zero rows.

        Example:
            >>> vectors = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 2.0]]
            >>> selector = FeatureMapSelector(vectors, keep_fraction=0.5, outlier_share=0, progress=False)
            >>> FeatureMapSelector.group_diameters(selector.select(), vectors).round(6)
            array([0.292893, 0.      ])
        """
        matrix = check_vectors(vectors, "vectors", nonzero=True)
        if len(matrix) != len(selection):
            raise invalid("vectors", f"one row for each of the selection's {len(selection)} images", f"{len(matrix)}")
        return _diameters(matrix, selection.group)

    def _balanced(self, dataset: Any, candidates: Candidates) -> tuple[_Ints, list[str]]:
        """The class of each image that quotas go by, and the classes' names; one class where there are none."""
        if self.balance is None:
            return np.zeros(candidates.n_images, np.int64), ["all"]
        if self.balance == "predicted":
            classes = predicted_classes(cast("FeatureExtractor", self.representation()), dataset)
            found, codes = np.unique(classes, return_inverse=True)
            return codes.astype(np.int64), [str(c) for c in found]
        if candidates.labels is None:
            raise ValueError(
                "`labels` must be given where balance='label', got None and a data set that has none. Pass `labels`, "
                "give the data set an attribute `targets`, or set balance='predicted' or leave it out."
            )
        return candidates.labels.codes, candidates.labels.names()

    def _fewest(self, candidates: Candidates, codes: _Ints, n_kept: int) -> _Ints:
        """The fewest images that each class keeps, shape (C,)."""
        available = np.bincount(codes[~candidates.excluded], minlength=int(codes.max()) + 1)
        least = 1 if self.balance is None else self.min_per_class
        low = np.maximum(
            np.minimum(least, available), np.bincount(codes[candidates.preferred], minlength=len(available))
        )
        if low.sum() > n_kept:
            each = of_each(candidates.labels if self.balance == "label" else None)
            raise invalid(
                "keep_fraction",
                f"enough for `min_per_class` images of each {each} and those always kept ({int(low.sum())} images)"
                + (
                    " where `balance` is set (min_per_class=0 or balance=None need none of each)"
                    if self.balance
                    else ""
                ),
                f"{self.keep_fraction}, which is {n_kept}",
            )
        return low

    def _chosen(
        self, vectors: Vectors, candidates: Candidates, codes: _Ints, low: _Ints, n_kept: int
    ) -> tuple[Cut, OutlierForest]:
        """Who stays, and what tells it at other budgets."""
        if self.n_dim is not None:
            vectors = reduce_vectors(vectors, cast("str", self.reduce), self.n_dim, self.seed)
            vectors = check_vectors(vectors, "features (reduced)", nonzero=True)
        n_classes = len(low)
        sizes = np.bincount(codes, minlength=n_classes)
        available = np.bincount(codes[~candidates.excluded], minlength=n_classes)
        reach = candidates.n_images if self.tree_floor is None else fraction_of(self.tree_floor, candidates.n_images)
        floor = max(min(reach, n_kept), int(low.sum()), 1)
        here, deepest = (Shares.of(n, self.outlier_share, sizes, low, available) for n in (n_kept, floor))
        found = self._outliers(vectors, candidates, codes, here.outliers, any_later=bool(deepest.outliers.any()))
        out = candidates.excluded.copy()
        out[found.chosen] = True
        images = [np.flatnonzero((codes == c) & ~out) for c in range(n_classes)]
        held = np.array([int(candidates.preferred[i].sum()) for i in images], np.int64)
        in_trees = np.array([len(i) for i in images], np.int64)
        # Merges between two images that both stay save nothing, so there may have to be more of them.
        merges = np.maximum(here.redundant, deepest.redundant) + _SLACK + np.maximum(held - 1, 0)
        while True:
            trees = self._trees(vectors, images, np.maximum(in_trees - merges, np.minimum(1, in_trees)))
            forest = MergeForest(candidates.n_images, images, trees, [], sizes, candidates.preferred, self.quota, floor)
            recut = OutlierForest(
                forest, found.order, found.scores, float(self.outlier_share), codes, low, candidates.excluded, floor
            )
            # Where nearly all images are grouped, too few are left on their own to go as outliers.
            short = recut.shortfall(floor)
            can_grow = np.array([tree.n_merges < len(i) - 1 for i, tree in zip(images, trees, strict=True)])
            if self.index != "exact" or not (short[can_grow] > 0).any():
                break
            merges = np.where(short > 0, np.maximum(merges + short, merges + merges // 2), merges)
        forest.representatives.extend(
            find_representatives(rows_of(vectors, i), tree, self.representative, candidates.preferred[i], self.seed)
            if len(i)
            else Representatives.of_none()
            for i, tree in zip(images, trees, strict=True)
        )
        return recut.cut(n_kept), recut

    def _outliers(
        self, vectors: Vectors, candidates: Candidates, codes: _Ints, counts: _Ints, *, any_later: bool
    ) -> OutlierOrder:
        """The outliers of each class, and the order in which others would follow."""
        n_images = candidates.n_images
        if not (counts.any() or any_later):
            none = np.empty(0, np.int64)
            return OutlierOrder(none, none, np.full(n_images, np.nan))
        inside = np.flatnonzero(~candidates.excluded)
        found = outlier_order(
            rows_of(vectors, inside),
            counts,
            codes[inside],
            ~candidates.preferred[inside],
            method=self.outlier_score,
            protect_modes=self.protect_modes,
            index=self.index,
            progress=self.progress and world()[0] == 0,
        )
        scores = np.full(n_images, np.nan)
        scores[inside] = found.scores
        return OutlierOrder(inside[found.chosen], inside[found.order], scores)

    def _tree(self, vectors: Vectors, n_groups: int | None = None, threshold: float | None = None) -> MergeTree:
        """The merge tree, from all near pairs or from those that an approximate index finds."""
        n_leaves = len(vectors)
        if self.index == "exact" or n_leaves < 2 or n_groups is None:
            return super()._tree(vectors, n_groups, threshold)
        k = min(_NEIGHBORS, n_leaves - 1)
        found = nearest_neighbors(vectors, k, metric="cosine", index=self.index, nprobe=PROBES)
        ends = np.sort(np.stack([np.repeat(np.arange(n_leaves), k), found.indices.ravel()], axis=1), axis=1)
        _, first = np.unique(ends[:, 0] * n_leaves + ends[:, 1], return_index=True)
        tree = merge_tree_of_pairs(n_leaves, ends[first], found.distances.ravel()[first], self.linkage)
        wanted = n_leaves - n_groups
        if tree.n_merges < wanted:
            raise ValueError(
                f"`index` must find the neighbours of enough images, got {self.index!r} and {tree.n_merges} merges "
                f"among {k} neighbours each of the {wanted} that `keep_fraction` and `tree_floor` need. Raise these, "
                "or set index='exact'."
            )
        return MergeTree(n_leaves, tree.children[:wanted], tree.heights[:wanted], self.linkage, self.metric)

    def _warn_of_classes(
        self, selection: Selection, candidates: Candidates, recut: OutlierForest, names: list[str]
    ) -> None:
        """Say which classes keep more than their share, or lose all their images."""
        if self.balance is not None:
            sizes = recut.forest.sizes
            available = np.bincount(recut.codes[~recut.excluded], minlength=len(sizes))
            plain = allocate(len(selection.kept), sizes, np.zeros_like(sizes), available)
            lifted = [f"{names[c]}: {recut.low[c]} instead of {plain[c]}" for c in np.flatnonzero(plain < recut.low)]
            if lifted:
                warnings.warn(
                    f"{len(lifted)} of {len(names)} classes keep more images than their share, as `min_per_class` is "
                    f"{self.min_per_class} or as images of theirs stay in any case ({shorten(lifted)}).",
                    VanishingClassWarning,
                    stacklevel=3,
                )
        if candidates.labels is None:
            return
        # Where images have several labels, of each label, not of each set of them.
        found = candidates.labels.occurrences()
        stays = np.zeros(len(selection), dtype=bool)
        stays[selection.kept] = True
        (before, _), (after, _) = found.totals(~candidates.excluded), found.totals(stays)
        emptied = [f"{found.labels[c]}: {before[c]}" for c in np.flatnonzero((before > 0) & (after == 0))]
        if emptied:
            warnings.warn(
                f"{len(emptied)} of {len(found.labels)} classes lose all their images ({shorten(emptied)}). Set "
                "balance='label' and `min_per_class` of at least 1 to keep some of each.",
                VanishingClassWarning,
                stacklevel=3,
            )


def predicted_classes(features: FeatureExtractor, dataset: Any) -> _Ints:
    """The class that a network says of each image: the one of its largest output.

    The outputs are taken as features are: from a copy in evaluation mode, without augmentation, kept in the cache.

    Args:
        features: The extractor whose network is asked; its layer does not matter.
        dataset: The images, N of them, or an `EvaluationView`.

    Returns:
        int64 of shape (N,).

    Raises:
        ValueError: If the network does not give several numbers an image.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))
        >>> _ = network[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        >>> images = torch.utils.data.TensorDataset(torch.tensor([[[[0.9, 0.1]]], [[[0.2, 0.7]]], [[[-1.0, 0.0]]]]))
        >>> predicted_classes(FeatureExtractor(network, cache=False, progress=False), images)
        array([0, 1, 2])
    """
    scores = _Outputs.of(features).vectors(dataset)
    if scores.shape[1] < 2:
        raise invalid("features", "of a network that gives a number for each of several classes", scores.shape[1])
    return np.asarray(scores.argmax(axis=1), np.int64)


class _Outputs(FeatureExtractor):
    """What a network itself gives, taken as the feature map of the only layer of a network around it."""

    @classmethod
    def of(cls, features: FeatureExtractor) -> _Outputs:
        return cls(
            features.model,
            "network",
            features.checkpoint,
            batch_size=features.batch_size,
            num_workers=features.num_workers,
            device=features.device,
            input_key=features.input_key,
            cache=features.cache,
            cache_dir=features.cache_dir,
            progress=features.progress,
        )

    def network(self) -> tuple[nn.Module, Callable[[Any], Any] | None]:
        network, transform = super().network()
        return _Whole(network), transform


class _Whole(nn.Module):
    """A network as a layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> Any:
        return self.network(images)


def _diameters(matrix: Vectors, group: _Ints) -> npt.NDArray[np.float64]:
    """The largest dissimilarity within each group."""
    sizes = np.bincount(group[group >= 0])
    order = np.argsort(group, kind="stable")[len(group) - int(sizes.sum()) :]
    starts = np.cumsum(sizes) - sizes
    found = np.zeros(len(sizes))
    for g in np.flatnonzero(sizes > 1).tolist():
        rows = unit_rows(matrix[order[starts[g] : starts[g] + sizes[g]]])
        step = max(1, _BLOCK_ELEMENTS // len(rows))
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            products = block @ rows[start:].T
            # From the differences, so that duplicates are at 0 exactly.
            first, second = np.divmod(int(products.argmin()), products.shape[1])
            difference = block[first] - rows[start + second]
            found[g] = max(found[g], 0.5 * float(difference @ difference))
    return found
