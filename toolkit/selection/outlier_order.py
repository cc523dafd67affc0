"""Outliers of a set of images, class by class: who goes first, and who would follow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.outliers import choose_outliers
from toolkit.representations import Vectors

#: Lists of an approximate index (of those that have any) that are searched for a vector's neighbours.
PROBES = 16

_Ints = npt.NDArray[np.int64]


class OutlierOrder(NamedTuple):
    """The chosen outliers and those that would follow.

    Args:
        chosen: int64 of shape (n,): the chosen ones.
        order: int64 of shape (M,): all candidates; in each class the chosen ones first, the most outlying first.
        scores: float64 of shape (N,): the scores of all.
    """

    chosen: _Ints
    order: _Ints
    scores: npt.NDArray[np.float64]


def outlier_order(
    vectors: Vectors,
    counts: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.bool_],
    *,
    method: str = "knn",
    protect_modes: bool = False,
    index: str = "exact",
    progress: bool = False,
) -> OutlierOrder:
    """Choose some outliers of each class by score, as `toolkit.outliers.choose_outliers` does for one class.

    Scores and modes are those of all vectors together. A warning says where the chosen ones form modes; with
    `protect_modes` these are kept back, and only where nobody else is left some of them are chosen after all.

    Args:
        vectors: Shape (N, D).
        counts: Shape (C,), outliers wanted of each class, at most its candidates.
        codes: Shape (N,), the class of each vector.
        candidates: Shape (N,), those that may be chosen.
        method: The score.
        protect_modes: Whether to keep modes back.
        index: `exact`, or a faiss index to find neighbours with.
        progress: Whether to show progress bars.

    Example:
        >>> vectors = np.array([[0.0], [1.0], [2.0], [9.0], [3.0], [-5.0]])
        >>> found = outlier_order(vectors, np.array([1, 1]), np.array([0, 0, 0, 0, 1, 1]), np.ones(6, dtype=bool))
        >>> found.chosen.tolist()
        [3, 5]
    """
    choice = choose_outliers(
        vectors,
        counts,
        method,
        protect_modes=protect_modes,
        candidates=candidates,
        classes=codes,
        index=index,
        nprobe=None if index == "exact" else PROBES,
        progress=progress,
    )
    return OutlierOrder(choice.indices, choice.order, choice.scores)


def first_of_each(order: _Ints, codes: _Ints, counts: _Ints) -> _Ints:
    """The first of each class in an order, as many as wanted, in that order.

    Args:
        order: Shape (M,), indices, each once.
        codes: Shape (N,), the class of each index.
        counts: Shape (C,), how many of each class; all it has where there are fewer.

    Example:
        >>> first_of_each(np.array([3, 1, 0, 2]), np.array([0, 0, 1, 1]), np.array([1, 2])).tolist()
        [3, 1, 2]
    """
    of_class = codes[order]
    by_class = np.argsort(of_class, kind="stable")
    sizes = np.bincount(of_class, minlength=len(counts))
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < counts[of_class]]
