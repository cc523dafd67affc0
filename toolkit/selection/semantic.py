"""Semantic redundancy: one representative for each group of images that a trained network sees alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from toolkit.representations import Representation
from toolkit.selection.base import as_representation
from toolkit.selection.tree import TreeSelector
from toolkit.validation import check_choice

_LINKAGES = ("complete", "average", "single")
_REPRESENTATIVES = ("medoid", "first", "random")


class SemanticSelector(TreeSelector):
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
        scope: `class` groups images of one class only and needs labels; `dataset` ignores labels.
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
        super().check()
        check_choice("linkage", self.linkage, _LINKAGES)
        check_choice("representative", self.representative, _REPRESENTATIVES)
