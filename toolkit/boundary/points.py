"""What evaluated points tell of paths: where classes change, and which gaps between points may hide a change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolkit.boundary.evaluation import margins_of

__all__ = ["Points"]

_Ints = npt.NDArray[np.int64]
_Doubles = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

#: How much faster than seen nearby a difference of scores may change inside a gap.
_FASTER = 2.0
#: Values of scores that are compared at a time.
_BLOCK = 1 << 20


class Points:
    """Evaluated points of some paths, ordered by path and position. Gap i lies between points i and i + 1.

    A gap whose two ends have one class may still hide an even number of crossings. Let d(a) be how far the class at the
    ends is ahead of another class, w the width of the gap, and L the fastest change of d seen on the gap or on the two
    next to it, times 2. If d nowhere changes faster than L, then inside the gap

        d(a) >= (d(left) + d(right) - L w) / 2,

    so where that is above 0 for every other class, the gap hides nothing.

    Args:
        pairs: int64 (n,), the path of each point, ascending.
        at: float64 (n,), its position in [0, 1], ascending on each path.
        scores: Floating-point scores (n, C), or integer classes (n,).
        may_exclude: Whether to exclude gaps by the bound above; without it, and with classes alone, every gap between
            two points of one class may hide crossings.

    Example:
        >>> scores = np.array([[2.0, 0.0], [1.5, 0.0], [0.8, 0.0], [-1.0, 0.0]])
        >>> points = Points(np.zeros(4, np.int64), np.arange(4) / 3, scores, may_exclude=True)
        >>> points.classes, points.crossed, points.hiding
        (array([0, 0, 0, 1]), array([2]), array([1]))
    """

    def __init__(self, pairs: _Ints, at: _Doubles, scores: npt.NDArray[np.generic], *, may_exclude: bool) -> None:
        self.pairs = pairs
        self.at = at
        self.scores = scores
        self.classes = _classes(scores)
        self.may_exclude = may_exclude and scores.ndim == 2
        # Of the gap behind each point; of the last point of a path there is none.
        self._hides = np.zeros(len(pairs), np.bool_)
        self._look(np.arange(len(pairs) - 1))

    @property
    def crossed(self) -> _Ints:
        """The gaps whose ends differ in their class."""
        return np.flatnonzero((self.pairs[:-1] == self.pairs[1:]) & (self.classes[:-1] != self.classes[1:]))

    @property
    def hiding(self) -> _Ints:
        """The gaps whose ends have one class, and that may hide crossings."""
        return np.flatnonzero(self._hides)

    def widths(self, gaps: _Ints) -> _Doubles:
        """How wide some gaps are."""
        return self.at[gaps + 1] - self.at[gaps]

    def margins(self) -> npt.NDArray[np.float32]:
        """The margin of each point, NaN where only classes are known."""
        if self.scores.ndim == 1:
            return np.full(len(self.at), np.nan, np.float32)
        return margins_of(self.scores)

    def insert(self, gaps: _Ints, at: _Doubles, scores: npt.NDArray[np.generic]) -> None:
        """Put a new point into each of some gaps.

        Args:
            gaps: int64 (m,), ascending.
            at: float64 (m,), positions inside the gaps.
            scores: (m, C) or (m,), as of the others.
        """
        self.pairs = np.insert(self.pairs, gaps + 1, self.pairs[gaps])
        self.at = np.insert(self.at, gaps + 1, at)
        self.classes = np.insert(self.classes, gaps + 1, _classes(scores))
        self.scores = np.insert(self.scores, gaps + 1, scores, axis=0)
        self._hides = np.insert(self._hides, gaps + 1, False)
        # A new point makes two gaps and is a neighbour of one more on each side.
        new = gaps + 1 + np.arange(len(gaps))
        near = np.unique(new[:, None] + np.arange(-2, 2))
        self._look(near[(near >= 0) & (near < len(self.pairs) - 1)])

    def crossings(self) -> tuple[_Doubles, _Bools]:
        """Where the two classes of each crossed gap are equal, and whether a third class is above them there.

        Scores between the ends of a gap are taken to be linear; of classes alone the middle is taken.
        """
        gaps = self.crossed
        begin, width = self.at[gaps], self.widths(gaps)
        if self.scores.ndim == 1:
            return begin + width / 2, np.zeros(len(gaps), np.bool_)
        s0, s1 = self.scores[gaps].astype(np.float64), self.scores[gaps + 1].astype(np.float64)
        rows, one, other = np.arange(len(gaps)), self.classes[gaps], self.classes[gaps + 1]
        d0, d1 = s0[rows, one] - s0[rows, other], s1[rows, other] - s1[rows, one]
        share = np.divide(d0, d0 + d1, out=np.full(len(gaps), 0.5), where=d0 + d1 > 0)
        between = s0 + share[:, None] * (s1 - s0)
        level = between[rows, one].copy()
        between[rows, one] = between[rows, other] = -np.inf
        return begin + share * width, (between > level[:, None]).any(axis=1)

    def _look(self, gaps: _Ints) -> None:
        """See anew which of some gaps may hide crossings."""
        one_class = (self.pairs[gaps] == self.pairs[gaps + 1]) & (self.classes[gaps] == self.classes[gaps + 1])
        self._hides[gaps] = one_class
        if self.may_exclude:
            gaps = gaps[one_class]
            step = max(1, _BLOCK // self.scores.shape[1])
            for first in range(0, len(gaps), step):
                block = gaps[first : first + step]
                self._hides[block] = (self._lowest(block) <= 0).any(axis=1)

    def _lowest(self, gaps: _Ints) -> _Doubles:
        """How far the class at both ends of some gaps stays ahead of each class inside, at least: (n, C)."""
        classes = self.classes[gaps][:, None]

        def ahead(points: _Ints) -> _Doubles:
            scores = self.scores[points].astype(np.float64)
            lead: _Doubles = np.take_along_axis(scores, classes, axis=1) - scores
            return lead

        d0, d1, width = ahead(gaps), ahead(gaps + 1), self.widths(gaps)[:, None]
        change = np.abs(d1 - d0)  # over the gap's own width, for now
        alone = np.ones(len(gaps), np.bool_)
        for beyond, end, lead in ((gaps - 1, gaps, d0), (gaps + 2, gaps + 1, d1)):
            beyond = np.clip(beyond, 0, len(self.at) - 1)
            there = (self.pairs[beyond] == self.pairs[gaps]) & (beyond != end)
            apart = np.where(there, np.abs(self.at[beyond] - self.at[end]), 1.0)[:, None]
            change = np.maximum(change, np.where(there[:, None], np.abs(ahead(beyond) - lead) / apart * width, 0.0))
            alone &= ~there
        lowest = (d0 + d1 - _FASTER * change) / 2
        lowest[alone] = 0.0  # nothing is seen nearby
        np.put_along_axis(lowest, classes, 1.0, axis=1)  # the class itself
        return lowest


def _classes(scores: npt.NDArray[np.generic]) -> _Ints:
    classes: _Ints = scores.astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
    return classes
