"""What selectors share that put all images of the set into one order, of which the first stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from toolkit.distributed import on_rank_zero
from toolkit.representations import Representation, Vectors
from toolkit.selection.base import BaseSelector, Candidates, as_representation, fingerprint_of, source_of
from toolkit.selection.budget import of_each
from toolkit.selection.recut import Cut, Ranking, Recut
from toolkit.selection.result import REDUNDANT, Selection
from toolkit.selection.tree import rows_of
from toolkit.validation import check_choice, check_fraction, check_vectors, fraction_of, invalid

_METRICS = ("cosine", "euclidean")


class RankedSelector(BaseSelector, ABC):
    """Orders all images by their vectors and keeps the first: labels decide nothing.

    A subclass says which (`_choose`); its documentation tells the arguments.
    """

    #: Whether vectors need a direction, so that none may be zero.
    nonzero: ClassVar[bool] = False

    features: Representation | Any
    keep_fraction: float | None
    always_keep: Sequence[str | int]
    always_remove: Sequence[str | int]

    def representation(self) -> Representation:
        """The features, as a representation."""
        return as_representation(self.features)

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        super().check()
        check_fraction("keep_fraction", cast("float", self.keep_fraction))

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay.

        Args:
            dataset: The images, N of them, or an `EvaluationView`; may be None where the selector was given vectors.
                In a distributed run every rank calls this alike.
            labels: The images' labels, shape (N,), which are only noted in the selection; the data set's own if None.
            ids: Names of the images; their files if None, where they have any.
        """
        self.check()
        representation = self.representation()
        dataset = source_of(dataset, representation)
        candidates = self._candidates(dataset, labels, ids, needs_labels=False)
        if self.keep_fraction is not None:
            candidates.check_budget(fraction_of(self.keep_fraction, candidates.n_images))
        nonzero = self.nonzero or getattr(self, "metric", None) == "cosine"
        vectors = check_vectors(representation.vectors(dataset), "features", nonzero=nonzero)
        # The vectors are the same on every rank; ordering them is one rank's work, the others wait for its result.
        cut, recut = on_rank_zero(lambda: self._choose(vectors, candidates))
        return Selection.from_cut(
            cut,
            REDUNDANT,
            candidates.excluded,
            ids=candidates.ids,
            labels=candidates.labels,
            config=self.config(),
            fingerprint=fingerprint_of(dataset),
            recut=recut,
        )

    @abstractmethod
    def _choose(self, vectors: Vectors, candidates: Candidates) -> tuple[Cut, Recut | None]:
        """Who stays, and the order that tells it at other budgets."""

    def _ranking(self, order: npt.NDArray[np.int64], candidates: Candidates) -> Ranking:
        """A ranking of all images; those that a person excluded come last."""
        n_images = candidates.n_images
        return Ranking(
            np.concatenate([order, np.flatnonzero(candidates.excluded)]),
            np.zeros(n_images, np.int64),
            np.array([n_images]),
            candidates.preferred,
            candidates.excluded,
        )

    def _check_metric(self, metric: str) -> None:
        check_choice("metric", metric, _METRICS)


class OrderedSelector(RankedSelector):
    """A selector whose order does not depend on how many images stay; a subclass gives it (`_order`)."""

    def _choose(self, vectors: Vectors, candidates: Candidates) -> tuple[Cut, Recut | None]:
        """Who stays, and the order that tells it at other budgets."""
        inside = np.flatnonzero(~candidates.excluded)
        order = inside[self._order(rows_of(vectors, inside), candidates.preferred[inside])]
        ranking = self._ranking(order, candidates)
        assert self.keep_fraction is not None
        return ranking.cut(fraction_of(self.keep_fraction, candidates.n_images)), ranking

    @abstractmethod
    def _order(self, vectors: Vectors, preferred: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The rows in the order in which they stay."""


def checked_ranking(order: npt.NDArray[np.int64], candidates: Candidates, n_kept: int, balance: str | None) -> Ranking:
    """All images in an order, of which the first `n_kept` stay: of all, or of each class with its share.

    Args:
        order: Indices of all images.
        candidates: The images.
        n_kept: How many stay.
        balance: `label` keeps each class its share; None ignores labels.

    Raises:
        ValueError: If so few may not stay, or there are no labels to balance.
    """
    candidates.check_budget(n_kept)
    codes, labels = np.zeros(candidates.n_images, np.int64), candidates.labels
    if balance == "label":
        if labels is None:
            raise ValueError(
                "`labels` must be given where balance='label', got None and a data set that has none. Pass `labels`, "
                "give the data set an attribute `targets`, or leave `balance` out."
            )
        codes = labels.codes
    ranking = Ranking(order, codes, np.bincount(codes), candidates.preferred, candidates.excluded)
    if n_kept < ranking.min_kept():
        each, least = of_each(labels), ranking.min_kept()
        must = f"enough for one image of each {each} and those always kept ({least} images) where balance='label' "
        raise invalid("keep_fraction", must + "(balance=None needs none of each)", n_kept)
    return ranking
