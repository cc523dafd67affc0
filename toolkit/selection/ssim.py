"""Redundancy by structural similarity: groups of images from all pairs, without vectors and without a trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from toolkit.distributed import on_rank_zero, world
from toolkit.grouping import (
    MergeTree,
    Representatives,
    merge_tree_of_pairs,
    representatives_by_similarity,
    spectral_groups,
)
from toolkit.grouping.pairs import similar_pairs
from toolkit.representations import Pixels
from toolkit.selection.base import Candidates, fingerprint_of
from toolkit.selection.budget import SCOPES, BudgetedSelector, check_keep_influential, optional_codes
from toolkit.selection.keep_rule import keep_rule, restored
from toolkit.selection.quota import allocate
from toolkit.selection.recut import Cut, MergeForest
from toolkit.selection.result import Selection
from toolkit.similarity import VARIANTS, pairwise_similarity, pairwise_ssim, ssim_pairs_above
from toolkit.spectrum import READINGS, groups_by_eigengap, laplacian_eigenvalues
from toolkit.validation import check_choice, invalid

log = logging.getLogger(__name__)

Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_BUDGETS = ("keep_fraction", "eigengap", "n_groups", "min_similarity")
#: Images within which all pairs are held as a matrix and its eigenvalues computed: 256 MiB in single precision.
_MAX_IMAGES = 8_192
#: Images are identical where their similarity is within this of 1.
_IDENTICAL = 1e-6
#: Numbers of groups tried where groups of several labels keep more images than asked for.
_TRIES = 8


class SSIMSelector(BudgetedSelector):
    """Keep one image of each group of images that are alike in structure, before any training.

    Algorithm 2 of Yousefzadeh: the structural similarity of all pairs; the number of groups from the gaps between the
    eigenvalues of its graph Laplacian; spectral clustering; of a group whose images share one label the image most
    similar to the others is kept, a group of several labels is kept whole and its images are `influential`.

    With `min_similarity` instead, groups are formed of images of which every two are at least that similar (complete
    linkage, so that groups do not chain unlike images together); no matrix of all pairs is held, and the merge tree
    allows other budgets later.

    Give exactly one of `keep_fraction`, `eigengap`, `n_groups` and `min_similarity`.

    Args:
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        eigengap: Gaps between consecutive eigenvalues of the Laplacian larger than this separate groups.
        n_groups: The number of groups.
        min_similarity: Group images of which every two are at least this similar.
        variant: `volume` takes a colour image for a volume whose third axis is colour (what the paper's figures are
            made with), `2d` compares the channels one by one.
        similarity: Another similarity than SSIM: a function of two batches of images, float32 tensors of shape
            (B, C, H, W) with values in [0, 1], that gives the B similarities, 1 for identical images.
        reading: How gaps are counted, see `toolkit.spectrum.groups_by_eigengap`.
        resize: Height and width that all images are brought to; needed where they differ in size.
        max_size: Larger images are first downscaled so that their longer side is this.
        grayscale: Whether to look at the images without colour.
        scope: `dataset` groups all images, which finds influential ones; `class` the images of each class apart.
            Each class then keeps its share of `keep_fraction` or `n_groups`. Except with `min_similarity`, at most
            8,192 images can be grouped at a time.
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
        seed: Of the spectral clustering.
        progress: Whether to show progress bars.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, Algorithm 2.

    Example:
        >>> images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> images[3] = images[1]
        >>> selection = SSIMSelector(min_similarity=0.9, progress=False).select(images)
        >>> selection.reasons, int(selection.representative[3])
        (['kept', 'kept', 'kept', 'redundant'], 1)
    """

    later_settings: ClassVar[Mapping[str, Any]] = {**BudgetedSelector.later_settings, "keep_influential": True}
    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "eigengap",
        "n_groups",
        "min_similarity",
        "variant",
        "similarity",
        "reading",
        "resize",
        "max_size",
        "grayscale",
        "scope",
        "always_keep",
        "always_remove",
        "seed",
    )

    def __init__(
        self,
        keep_fraction: float | None = None,
        *,
        eigengap: float | None = None,
        n_groups: int | None = None,
        min_similarity: float | None = None,
        variant: str = "volume",
        similarity: Similarity | None = None,
        reading: str = "separated",
        resize: Sequence[int] | None = None,
        max_size: int | None = None,
        grayscale: bool = False,
        scope: str = "dataset",
        keep_influential: bool = True,
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.keep_fraction = keep_fraction
        self.eigengap = eigengap
        self.n_groups = n_groups
        self.min_similarity = min_similarity
        self.variant = variant
        self.similarity = similarity
        self.reading = reading
        self.resize = resize
        self.max_size = max_size
        self.grayscale = grayscale
        self.scope = scope
        self.keep_influential = keep_influential
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.seed = seed
        self.progress = progress

    def representation(self) -> Pixels:
        """The pixels that are compared."""
        return Pixels(resize=self.resize, max_size=self.max_size, grayscale=self.grayscale, progress=self.progress)

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        self._check_budget(_BUDGETS)
        if self.eigengap is not None and not self.eigengap > 0:
            raise invalid("eigengap", "above 0", self.eigengap)
        if self.min_similarity is not None and not 0 < self.min_similarity <= 1:
            raise invalid("min_similarity", "in (0, 1]", self.min_similarity)
        check_choice("variant", self.variant, VARIANTS)
        check_choice("reading", self.reading, READINGS)
        check_choice("scope", self.scope, SCOPES)
        check_keep_influential(self.keep_influential)
        if self.similarity is not None and not callable(self.similarity):
            raise TypeError(f"`similarity` must be a function of two batches of images, got {self.similarity!r}.")
        self.representation()

    def config(self) -> dict[str, Any]:
        """The selector's class and settings as plain values."""
        function = self.similarity
        name = None if function is None else f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        return {**super().config(), "similarity": name}

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay.

        Args:
            dataset: The images, N of them, or an `EvaluationView`, or a tensor or array of shape (N, C, H, W). In a
                distributed run every rank calls this alike.
            labels: The images' labels, shape (N,); the data set's own if None.
            ids: Names of the images; their files if None, where they have any.
        """
        self.check()
        if dataset is None:
            raise invalid("dataset", "a data set of images", None)
        needs = self.scope == "class"
        candidates = self._candidates(dataset, labels, ids, needs_labels=needs)
        classes = self._classes(candidates)
        n_kept = self._n_kept(candidates, classes)
        images = self.representation().images(dataset)
        cut, forest = on_rank_zero(lambda: self._choose(images, candidates, classes, n_kept))
        return Selection.from_cut(
            cut,
            excluded=candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config(),
            fingerprint=fingerprint_of(dataset),
            recut=forest,
        )

    def _choose(
        self,
        images: npt.NDArray[Any],
        candidates: Candidates,
        classes: npt.NDArray[np.int64],
        n_kept: int | None,
    ) -> tuple[Cut, MergeForest | None]:
        """Who stays, and the merge trees that tell it at other budgets, where there are any."""
        codes = optional_codes(candidates, self.scope, self.keep_influential)
        parts = [np.flatnonzero((classes == c) & ~candidates.excluded) for c in range(int(classes.max()) + 1)]
        if self.min_similarity is not None:
            forest = self._forest(images, parts, candidates, np.bincount(classes), codes)
            return forest.cut_at(np.inf), forest  # the trees end at the similarity that was asked for
        largest = max(map(len, parts))
        if largest > _MAX_IMAGES:
            raise invalid(
                "dataset",
                f"of at most {_MAX_IMAGES} images a {'class' if self.scope == 'class' else 'data set'} for spectral "
                "clustering (set scope='class', or give `min_similarity` instead)",
                f"{largest} images",
            )
        bar = tqdm(total=len(images), desc="grouping", unit="img", disable=not self.progress or world()[0] != 0)
        with bar:
            matrices = []
            for part in parts:
                matrices.append(self._matrix(images[part]))
                bar.update(len(part))
            return self._spectral(parts, matrices, candidates, n_kept, codes), None

    def _matrix(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The similarity of all pairs of some images."""
        if not len(images):
            return np.empty((0, 0), np.float32)
        if self.similarity is not None:
            return pairwise_similarity(images, self.similarity)
        return pairwise_ssim(images, variant=self.variant)

    def _forest(
        self,
        images: npt.NDArray[Any],
        parts: list[npt.NDArray[np.int64]],
        candidates: Candidates,
        sizes: npt.NDArray[np.int64],
        codes: npt.NDArray[np.int64] | None,
    ) -> MergeForest:
        """The complete-linkage trees of the pairs that are similar enough."""
        assert self.min_similarity is not None
        trees, representatives = [], []
        for part in tqdm(parts, desc="comparing", unit="class", disable=not self.progress or world()[0] != 0):
            pairs, similarities = self._pairs_above(images[part])
            apart = 1.0 - similarities.astype(np.float64)
            if not len(part):
                trees.append(MergeTree(0, np.empty((0, 2), np.int64), np.empty(0), "complete", "precomputed"))
                representatives.append(Representatives.of_none())
                continue
            limit = max(1.0 - self.min_similarity, float(apart.max(initial=0.0)))
            tree = merge_tree_of_pairs(len(part), pairs, apart, limit=limit)
            trees.append(tree)
            representatives.append(
                representatives_by_similarity(tree, pairs, apart, preferred=candidates.preferred[part])
            )
        held = candidates.preferred
        sizes = sizes.astype(np.int64)
        forest = MergeForest(candidates.n_images, parts, trees, representatives, sizes, held, "global", 0, codes)
        return replace(forest, floor=forest.fewest())

    def _pairs_above(self, images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """All pairs at least `min_similarity` alike, and how alike they are."""
        assert self.min_similarity is not None
        if len(images) < 2:
            return np.empty((0, 2), np.int64), np.empty(0)
        if self.similarity is None:
            return ssim_pairs_above(images, self.min_similarity, variant=self.variant)
        matrix = self._matrix(images)
        return similar_pairs(matrix, self.min_similarity)

    def _spectral(
        self,
        parts: list[npt.NDArray[np.int64]],
        matrices: list[npt.NDArray[np.float32]],
        candidates: Candidates,
        n_kept: int | None,
        codes: npt.NDArray[np.int64] | None,
    ) -> Cut:
        """Spectral clusters under the keep rule; with a fraction, fewer of them until no more than that stay."""
        available = np.array([len(part) for part in parts], np.int64)
        if n_kept is None:
            return self._grouped(parts, matrices, [self._n_by_gaps(m) for m in matrices], candidates, codes)
        sizes = np.bincount(self._classes(candidates), minlength=len(parts)).astype(np.int64)
        aim = n_kept
        for _ in range(_TRIES):
            shares = allocate(aim, sizes, np.minimum(1, available), available)
            cut = self._grouped(parts, matrices, shares.tolist(), candidates, codes)
            surplus = int(cut.kept.sum()) - n_kept
            if self.n_groups is not None:
                return cut
            if surplus <= 0:
                return restored(cut, n_kept)
            aim = max(aim - surplus, int(np.minimum(1, available).sum()))
        if codes is None:
            # Beside one image of each group only those that stay in any case do, for which one group a class has room.
            return restored(
                self._grouped(parts, matrices, np.minimum(1, available).tolist(), candidates, codes), n_kept
            )
        raise invalid(
            "keep_fraction",
            "one that can be met: here groups of several labels, which are kept whole, have too many images. Set "
            "keep_influential=False or scope='class', or give `n_groups`",
            self.keep_fraction,
        )

    def similarities(self, dataset: Any) -> npt.NDArray[np.float32]:
        """The similarity of all pairs of a data set's images, shape (N, N), for at most 8,192 of them."""
        if len(dataset) > _MAX_IMAGES:
            raise invalid("dataset", f"of at most {_MAX_IMAGES} images", f"{len(dataset)} images")
        return self._matrix(self.representation().images(dataset))

    def eigenvalues(self, similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The eigenvalues that the number of groups is read off, ascending, shape (N,)."""
        return laplacian_eigenvalues(similarity)

    def _n_by_gaps(self, matrix: npt.NDArray[np.float32]) -> int:
        """The number of groups that the gaps of the eigenvalues tell; at most one for each distinct image."""
        if len(matrix) < 2:
            return len(matrix)
        assert self.eigengap is not None
        n_groups = groups_by_eigengap(self.eigenvalues(matrix), self.eigengap, self.reading)
        log.info("%d groups of %d images by eigen-gaps above %g", n_groups, len(matrix), self.eigengap)
        repeated = np.tril(matrix > 1 - _IDENTICAL, k=-1).any(axis=1)
        return min(max(1, n_groups), int((~repeated).sum()))

    def _grouped(
        self,
        parts: list[npt.NDArray[np.int64]],
        matrices: list[npt.NDArray[np.float32]],
        n_groups: list[int],
        candidates: Candidates,
        codes: npt.NDArray[np.int64] | None,
    ) -> Cut:
        """The keep rule on spectral clusters of each part."""
        group = np.full(candidates.n_images, -1, np.int64)
        representative = np.full(candidates.n_images, -1, np.int64)
        distance = np.full(candidates.n_images, np.nan, np.float32)
        first = 0
        for part, matrix, count in zip(parts, matrices, n_groups, strict=True):
            if not len(part):
                continue
            local = spectral_groups(matrix, count, seed=self.seed)
            stands = most_similar_members(matrix, local, candidates.preferred[part])
            group[part] = first + local
            representative[part] = part[stands[local]]
            distance[part] = 1 - matrix[np.arange(len(part)), stands[local]]
            first += count
        return keep_rule(group, representative, distance, candidates.preferred, codes)


def most_similar_members(
    similarity: npt.NDArray[np.floating], groups: npt.NDArray[np.int64], preferred: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """The member of each group that is most similar to the group's members in sum, shape (G,).

    In a group with preferred members only they are candidates. Ties (within 1e-6 a member) go to the lowest index.
    """
    result = np.empty(int(groups.max()) + 1, np.int64)
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        total = similarity[np.ix_(members, members)].sum(axis=1, dtype=np.float64)
        allowed = preferred[members] if preferred[members].any() else np.ones(len(members), dtype=bool)
        total[~allowed] = -np.inf
        result[groups[members[0]]] = members[np.flatnonzero(total >= total.max() - 1e-6 * len(members))[0]]
    return result
