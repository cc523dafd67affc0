"""Images that stay whatever they resemble: those of rare classes, and frames without which a video would have gaps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from toolkit.selection.labels import Labels
from toolkit.validation import invalid, shorten

_Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

#: The number that a file's name ends in, before its ending.
_FRAME = re.compile(r"[0-9]+$")


def check_protection(protect_rare: int, temporal_gap: int | None) -> None:
    """Refuse settings that are out of range.

    Raises:
        TypeError: If one is not a whole number.
        ValueError: If one is too small.
    """
    for name, value, least in (("protect_rare", protect_rare, 0), ("temporal_gap", temporal_gap, 1)):
        if value is None and name == "temporal_gap":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
        if value < least:
            raise invalid(name, f"at least {least}", value)


def hold_rare(labels: Labels, most: int) -> _Bools:
    """Which images hold a rare class: one that occurs at most so often in all images together, shape (N,).

    Args:
        labels: The images' labels. Each of an image's boxes is an occurrence of its class.
        most: How often a class may occur to be rare.

    Example:
        >>> hold_rare(Labels.of([[0, 0, 1], [0], [1, 2], [0]], 4), 2).tolist()
        [True, False, True, False]
    """
    found = labels.occurrences()
    rare = found.totals()[1] <= most
    held = np.zeros(len(labels), dtype=bool)
    held[found.image[rare[found.label]]] = True
    return held


def sequences_of(ids: Sequence[str] | None, n_images: int) -> list[_Ints]:
    """The sequences of frames in a data set, each as the indices of its images in order.

    A sequence is the images of one folder whose names differ only in the number that they end in, ordered by it; the
    number need not be padded, and numbers may be missing. The images of a folder whose names end in no number are one
    sequence in the data set's order, and so are all images where they have no names.

    Args:
        ids: The images' names, or None.
        n_images: How many there are.

    Example:
        >>> [s.tolist() for s in sequences_of(["a/v1_10.jpg", "a/v1_9.jpg", "a/v2_1.jpg", "b/x.jpg", "b/w.jpg"], 5)]
        [[1, 0], [2], [3, 4]]
    """
    if ids is None:
        return [np.arange(n_images)]
    members: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for index, name in enumerate(ids):
        path = PurePosixPath(name)
        number = _FRAME.search(path.stem)
        if number is None:
            key, place = (str(path.parent), "", ""), index
        else:
            key, place = (str(path.parent), path.stem[: number.start()] + "#", path.suffix), int(number[0])
        members.setdefault(key, []).append((place, index))
    return [np.array([index for _, index in sorted(frames)], np.int64) for frames in members.values()]


def anchors_of(sequences: Sequence[_Ints], gap: int, stays: _Bools, excluded: _Bools) -> _Bools:
    """The fewest more images that leave no `gap` consecutive frames without one that stays, shape (N,).

    Each sequence is gone through in order; where `gap` frames in a row would all go, the last of them that may stay
    does. No choice of fewer does the same. Of frames that are all excluded none can stay.

    Args:
        sequences: The frames of each sequence, in order.
        gap: How many consecutive frames have one that stays.
        stays: Shape (N,), images that stay anyway.
        excluded: Shape (N,), images that cannot stay.

    Example:
        >>> nobody = np.zeros(9, dtype=bool)
        >>> np.flatnonzero(anchors_of([np.arange(9)], 4, nobody, nobody))
        array([3, 7])
    """
    anchors = np.zeros(len(stays), dtype=bool)
    for frames in sequences:
        stopped = -1  # the last frame that stays
        usable = -1  # the last frame that may stay
        for place, (held, barred) in enumerate(zip(stays[frames].tolist(), excluded[frames].tolist(), strict=True)):
            if held:
                stopped = place
            elif not barred:
                usable = place
            if place - stopped >= gap > place - usable:
                stopped = usable
                anchors[frames[usable]] = True
    return anchors


@dataclass(frozen=True)
class Protection:
    """Which images stay in any case, and why.

    Attributes:
        wanted: Shape (N,), those that a person wants.
        rare: Shape (N,), those that hold a rare class.
        anchors: Shape (N,), the frames that `temporal_gap` needs beside these.
        excluded: Shape (N,), those that a person wants removed, which wins over all but `wanted`.
        labels: The labels that tell rare classes, or None.
        sequences: The frames of each sequence, where `temporal_gap` is given.
        protect_rare: How often a class may occur to be rare.
        temporal_gap: How many consecutive frames have one that stays, or None.
    """

    wanted: _Bools
    rare: _Bools
    anchors: _Bools
    excluded: _Bools
    labels: Labels | None
    sequences: list[_Ints]
    protect_rare: int
    temporal_gap: int | None

    @classmethod
    def of(
        cls,
        wanted: _Bools,
        excluded: _Bools,
        labels: Labels | None,
        ids: Sequence[str] | None,
        protect_rare: int = 0,
        temporal_gap: int | None = None,
    ) -> Protection:
        """Find the images that settings and a person protect.

        Raises:
            ValueError: If rare classes are to be kept where there are no labels.
        """
        rare, anchors, sequences = np.zeros_like(wanted), np.zeros_like(wanted), []
        if protect_rare:
            if labels is None:
                raise ValueError(
                    f"`labels` must be given where protect_rare={protect_rare}, got None and a data set that has none. "
                    "Pass `labels`, give the data set an attribute `targets`, or set protect_rare=0."
                )
            rare = hold_rare(labels, protect_rare) & ~excluded
        if temporal_gap is not None:
            sequences = sequences_of(ids, len(wanted))
            longest = max(map(len, sequences))
            if longest < temporal_gap:
                warnings.warn(
                    f"temporal_gap={temporal_gap} keeps nothing: of {len(sequences)} sequences, the longest has "
                    f"{longest} frames. A sequence is the images of one folder whose names differ only in the number "
                    "that they end in.",
                    stacklevel=5,
                )
            anchors = anchors_of(sequences, temporal_gap, wanted | rare, excluded)
        return cls(wanted, rare, anchors, excluded, labels, sequences, protect_rare, temporal_gap)

    @property
    def preferred(self) -> _Bools:
        """Shape (N,), all images that stay in any case."""
        return self.wanted | self.rare | self.anchors

    def check_budget(self, n_kept: int) -> None:
        """Refuse a budget in which the protected images have no room.

        Raises:
            ValueError: The message says how many are protected by what, and which setting would fit.
        """
        if int(self.wanted.sum()) > n_kept:
            raise invalid("always_keep", f"at most the {n_kept} images that are kept", f"{int(self.wanted.sum())} ids")
        if int((self.wanted | self.rare).sum()) > n_kept:
            raise self._too_rare(n_kept)
        if int(self.preferred.sum()) > n_kept:
            raise self._too_dense(n_kept)

    def _too_rare(self, n_kept: int) -> ValueError:
        assert self.labels is not None
        found = self.labels.occurrences()
        images, boxes = found.totals()
        order = np.argsort(boxes, kind="stable")
        fits, held = 0, self.wanted.copy()
        # Each class from the rarest on: how often the first one occurs that leaves no room is one too many.
        for times in np.unique(boxes):
            held[found.image[(boxes == times)[found.label]]] = True
            if int((held & ~self.excluded).sum()) > n_kept:
                fits = int(times) - 1
                break
        rare = [
            f"class {found.labels[c]!r} occurs {boxes[c]} times in {images[c]}"
            for c in order.tolist()
            if boxes[c] <= self.protect_rare
        ]
        more = " or are in `always_keep`" if self.wanted.any() else ""
        return invalid(
            "protect_rare",
            f"at most {fits} where {n_kept} of {len(self.wanted)} images stay ({int((self.wanted | self.rare).sum())} "
            f"hold a rare class{more}: {shorten(rare)})",
            self.protect_rare,
        )

    def _too_dense(self, n_kept: int) -> ValueError:
        assert self.temporal_gap is not None
        others = self.wanted | self.rare
        low, high = self.temporal_gap, max(map(len, self.sequences)) + 1
        while high - low > 1:  # `low` leaves no room, `high` does: beyond all frames none is needed
            middle = (low + high) // 2
            needed = anchors_of(self.sequences, middle, others, self.excluded)
            low, high = (low, middle) if int((others | needed).sum()) <= n_kept else (middle, high)
        beside = f" beside {int(others.sum())} images of rare classes or in `always_keep`" if others.any() else ""
        return invalid(
            "temporal_gap",
            f"at least {high} where {n_kept} of {len(self.wanted)} images stay ({int(self.anchors.sum())} frames are "
            f"needed{beside})",
            self.temporal_gap,
        )
