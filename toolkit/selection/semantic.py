"""Semantic redundancy: one representative for each group of images that a trained network sees alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

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

    Give exactly one of `keep_fraction`, `n_groups` and `threshold`. Where `features` is a `FeatureExtractor`, its model
    can say how many images may go, without any training run: with `keep_fraction="auto"` as many are removed as go to a
    representative about as safely as the safest 2 %, where safe means that the model does not change its mind on the
    straight path to it (see `toolkit.selection.automatic.crossing_curve`). What was found is in the selection's
    `config["auto"]` and in words in `crossing_curve_text()`; where the paths tell nothing, a warning says why and all
    images stay. With `verify`, whatever the budget, each removed image's own path is walked, and those whose path
    crosses a boundary stay as `boundary`: more images stay than the budget says.

    Args:
        features: A representation such as `FeatureExtractor`, or vectors (N, D) that exist: array, tensor, memory map
            or the path of a `.npy` file.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay. Or `auto`.
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
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        tree_floor: How far down `Selection.with_keep_fraction` can later cut anew, as a fraction of the images; also
            the smallest fraction that `auto` looks at.
        tolerance: For `auto`, in (0, 1): how far the share of paths that cross may rise from that of the safest images
            (0) towards that of random pairs of one class (1).
        num_pairs: For `auto`: how many paths are walked, at least 500; a quarter of the images and at least 2,000 if
            None. More make the fraction depend less on the seed.
        num_points: For `auto` and `verify`: crossings are looked for down to the distance of so many evenly spread
            points of a path, at least 3.
        verify: Whether images stay whose path to their representative crosses a boundary.
        seed: For `representative="random"`, and the paths that `auto` walks.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set, where features are
            not finite or zero, and where a model is to be asked but `features` has none.

    References:
        Birodkar, Mobahi, Bengio, "Semantic Redundancies in Image-Classification Datasets: The 10% You Don't Need",
        arXiv 1901.11409. The linkage and the spread over classes are not told there; here they are options. How many
        images can go is found there by training at many fractions; `auto` and `verify` are this project's.

    Example:
        >>> import numpy as np
        >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 1.0]])
        >>> selection = SemanticSelector(vectors, keep_fraction=0.5).select(labels=[0, 0, 1, 1])
        >>> selection.kept
        array([0, 2])
    """

    can_choose_fraction: ClassVar[bool] = True

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
        "tolerance",
        "num_pairs",
        "num_points",
        "verify",
        "seed",
    )

    def __init__(
        self,
        features: Representation | Any,
        keep_fraction: float | Literal["auto"] | None = None,
        *,
        n_groups: int | None = None,
        threshold: float | None = None,
        linkage: str = "complete",
        representative: str = "medoid",
        quota: str = "proportional",
        scope: str = "class",
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        tree_floor: float = 0.5,
        tolerance: float = 0.1,
        num_pairs: int | None = None,
        num_points: int = 17,
        verify: bool = False,
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
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.tree_floor = tree_floor
        self.tolerance = tolerance
        self.num_pairs = num_pairs
        self.num_points = num_points
        self.verify = verify
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
