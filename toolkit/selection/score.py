"""Selections by a score that each image has already, such as how hard it was to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from toolkit.fingerprint import content_hash, settings_hash
from toolkit.selection.base import BaseSelector, fingerprint_of
from toolkit.selection.ranked import checked_ranking
from toolkit.selection.result import REDUNDANT, Selection
from toolkit.training_scores import SCORE_NAMES, load_scores
from toolkit.validation import check_choice, check_fraction, fraction_of, invalid

_KEEPS = ("hard", "easy")


class ScoreSelector(BaseSelector):
    """Keep the images of the largest score, or of the smallest: the hard ones, or the easy ones.

    Scores are numbers that exist, one an image, or those that `toolkit.callbacks.TrainingScoreWriter` wrote while a
    network was trained: EL2N or forgetting events. Equal scores, of which forgetting has many, are ordered at random.
    Smaller budgets give subsets of larger ones.

    Where few images are to stay, the hardest are often those with wrong labels or without a clear object: `skip` leaves
    some of them out.

    Args:
        scores: Shape (N,), or the folder of a `TrainingScoreWriter`. May be infinite, but not NaN.
        keep_fraction: In (0, 1]: exactly `floor(keep_fraction * N)` of the N images stay.
        score: Which of the folder's scores: `el2n` or `forgetting`.
        keep: Whether `hard` images (large scores) stay or `easy` ones.
        skip: In [0, 1): of all images, the share of the hardest (or easiest) that goes first.
        balance: `label` keeps each class its share (largest remainder) and needs labels; None ignores labels.
        always_keep: Ids (or indices, where images have no file) of images that stay.
        always_remove: Ids of images that go.
        protect_rare: Images stay that hold a class with at most so many occurrences in the data set: boxes, or images
            where each has one label. 0 for none; needs labels. They are part of the budget; `always_remove` wins.
        temporal_gap: Of so many consecutive frames of a video at least one stays, at this and any later budget. For
            that the fewest frames that do are kept in any case, one in `temporal_gap`, as part of the budget. A video
            is the images of one folder whose names differ only in the number they end in, in its order; where they end
            in none, those of the folder in the data set's order; where they have none, all images. None for no bound.
        seed: Of the order of equal scores.

    Raises:
        ValueError: From `select`, for arguments that are out of range or do not fit the data set.

    References:
        Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training", arXiv
        2107.07075: EL2N, the mean over ten networks after 20 of 200 epochs, of images without augmentation; `skip` is
        the offset of their section 4. Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural
        Network Learning", arXiv 1812.05159.

    Example:
        >>> ScoreSelector([0.1, 0.9, 0.5, 0.7], keep_fraction=0.5).select(range(4)).kept
        array([1, 3])
    """

    settings: ClassVar[tuple[str, ...]] = (
        "keep_fraction",
        "score",
        "keep",
        "skip",
        "balance",
        "always_keep",
        "always_remove",
        "seed",
    )

    def __init__(
        self,
        scores: str | Path | Any = None,
        keep_fraction: float | None = None,
        *,
        score: str = "el2n",
        keep: str = "hard",
        skip: float = 0.0,
        balance: str | None = None,
        always_keep: Sequence[str | int] = (),
        always_remove: Sequence[str | int] = (),
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        seed: int = 0,
    ) -> None:
        self.scores = scores
        self.keep_fraction = keep_fraction
        self.score = score
        self.keep = keep
        self.skip = skip
        self.balance = balance
        self.always_keep = always_keep
        self.always_remove = always_remove
        self.protect_rare = protect_rare
        self.temporal_gap = temporal_gap
        self.seed = seed

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        check_fraction("keep_fraction", cast("float", self.keep_fraction))
        check_choice("score", self.score, SCORE_NAMES)
        check_choice("keep", self.keep, _KEEPS)
        if isinstance(self.skip, bool) or not isinstance(self.skip, (int, float, np.number)):
            raise TypeError(f"`skip` must be a number in [0, 1), got {self.skip!r}.")
        if not 0 <= self.skip < 1:
            raise invalid("skip", "in [0, 1)", self.skip)
        if self.skip + cast("float", self.keep_fraction) > 1:
            raise invalid("skip", f"at most 1 less `keep_fraction`, which is {self.keep_fraction}", self.skip)
        if self.balance is not None:
            check_choice("balance", self.balance, ("label",))

    def fingerprint(self) -> str:
        """A text that differs when the settings or the scores would choose otherwise."""
        return settings_hash({**self.config(), "scores": content_hash(self._values()[0])})

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay.

        Args:
            dataset: The images, N of them; anything with a length. As many as there are scores if None.
            labels: The images' labels, shape (N,); the data set's own if None.
            ids: Names of the images; their files if None, where they have any.
        """
        self.check()
        values, images = self._values()
        dataset = range(len(values)) if dataset is None else dataset
        if len(dataset) != len(values):
            raise invalid("scores", f"one for each of the data set's {len(dataset)} images", f"{len(values)} scores")
        if np.isnan(values).any():
            where = np.flatnonzero(np.isnan(values))
            raise invalid("scores", "numbers", f"NaN for {len(where)} images, the first at index {where[0]}")
        fingerprint = None if isinstance(dataset, range) else fingerprint_of(dataset)
        if None not in {images, fingerprint} and images != fingerprint:
            raise ValueError(
                "`scores` must be those of the data set's own images, got a folder of scores of other images (their "
                "fingerprint is another)."
            )
        candidates = self._candidates(dataset, labels, ids, needs_labels=self.balance is not None)
        n_kept = fraction_of(cast("float", self.keep_fraction), candidates.n_images)
        ranking = checked_ranking(self._order(values), candidates, n_kept, self.balance)
        return Selection.from_cut(
            ranking.cut(n_kept),
            REDUNDANT,
            candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config(),
            fingerprint=fingerprint,
            recut=ranking,
        )

    def _values(self) -> tuple[npt.NDArray[Any], str | None]:
        """The scores, and the fingerprint of the images where it is known."""
        if self.scores is None:
            raise invalid("scores", "one number an image, or the folder of a TrainingScoreWriter", None)
        if isinstance(self.scores, (str, Path)):
            return load_scores(self.scores, self.score)
        values = np.asarray(self.scores, np.float64)
        if values.ndim != 1:
            raise invalid("scores", "of shape (N,)", values.shape)
        return values, None

    def _order(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The images in the order in which they stay, those that are skipped last."""
        ties = np.random.default_rng(self.seed).permutation(len(values))
        order = np.lexsort((ties, -values if self.keep == "hard" else values))
        return np.roll(order, -fraction_of(self.skip, len(values)))
