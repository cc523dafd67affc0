"""Random subsets: what every other selection has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from toolkit.selection.base import BaseSelector, fingerprint_of
from toolkit.selection.ranked import checked_ranking
from toolkit.selection.result import RANDOM, Selection
from toolkit.validation import check_choice, check_fraction, fraction_of, invalid


class RandomSelector(BaseSelector):
    """Keep a random subset of the images.

    One random order is drawn, and the first images in it stay: smaller budgets give subsets of larger ones.

    Give exactly one of `keep_fraction` and `n_images`.

    Args:
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        n_images: How many images stay, instead of a fraction.
        balance: `label` keeps each class its share (largest remainder) and needs labels; None ignores labels.
        always_keep: Ids (or indices, where images have no file) of images that stay.
        always_remove: Ids of images that go.
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        seed: Of the random order.

    Example:
        >>> selection = RandomSelector(0.5, balance="label").select(range(8), labels=[0, 0, 0, 0, 1, 1, 1, 1])
        >>> selection.counts()["0"]["kept"], selection.counts()["1"]["kept"]
        (2, 2)
    """

    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "n_images",
        "balance",
        "always_keep",
        "always_remove",
        "seed",
    )

    def __init__(
        self,
        keep_fraction: float | None = None,
        *,
        n_images: int | None = None,
        balance: str | None = None,
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        seed: int = 0,
    ) -> None:
        self.keep_fraction = keep_fraction
        self.n_images = n_images
        self.balance = balance
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.seed = seed

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        if (self.keep_fraction is None) == (self.n_images is None):
            got = {"keep_fraction": self.keep_fraction, "n_images": self.n_images}
            raise ValueError(f"`keep_fraction` or `n_images` must be given, exactly one, got {got}.")
        if self.keep_fraction is not None:
            check_fraction("keep_fraction", self.keep_fraction)
        if self.n_images is not None and (
            isinstance(self.n_images, bool) or not isinstance(self.n_images, (int, np.integer))
        ):
            raise TypeError(f"`n_images` must be a whole number, got {self.n_images!r}.")
        if self.balance is not None:
            check_choice("balance", self.balance, ("label",))

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay.

        Args:
            dataset: The images, N of them; anything with a length.
            labels: The images' labels, shape (N,); the data set's own if None.
            ids: Names of the images; their files if None, where they have any.
        """
        self.check()
        if dataset is None:
            raise invalid("dataset", "a data set", None)
        candidates = self._candidates(dataset, labels, ids, needs_labels=self.balance is not None)
        n_kept = (
            self.n_images if self.n_images is not None else fraction_of(self.keep_fraction or 0, candidates.n_images)
        )
        if not n_kept <= candidates.n_images:
            raise invalid("n_images", f"from 1 to the {candidates.n_images} images", n_kept)
        order = np.random.default_rng(self.seed).permutation(candidates.n_images)
        ranking = checked_ranking(order, candidates, n_kept, self.balance)
        return Selection.from_cut(
            ranking.cut(n_kept),
            RANDOM,
            candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config(),
            fingerprint=fingerprint_of(dataset),
            recut=ranking,
        )
