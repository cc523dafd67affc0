"""Labels of a data set's images: none, one or several an image, and how often each occurs in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.validation import invalid

Label = int | str
LabelSet = tuple[Label, ...]


@dataclass(frozen=True)
class Occurrences:
    """Which labels occur in which images, and how often: one entry for each image and each of its labels.

    Attributes:
        labels: The labels that there are, ascending.
        image: Shape (P,), the image of each entry, not decreasing.
        label: Shape (P,), its label, as an index into `labels`.
        count: Shape (P,), how often the label occurs in the image.
    """

    labels: tuple[Label, ...]
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]

    def totals(self, images: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
        """How many images hold each label, and how often it occurs in them, shape (2, labels).

        Args:
            images: Shape (N,), the images to count; all if None.
        """
        counted = np.ones(len(self.image), dtype=bool) if images is None else images[self.image]
        totals = np.zeros((2, len(self.labels)), np.int64)
        np.add.at(totals[0], self.label[counted], 1)
        np.add.at(totals[1], self.label[counted], self.count[counted])
        return totals


class Labels:
    """The labels of N images; images with the same set of labels form a class.

    Args:
        codes: The class of each image, shape (N,), as an index into `sets`.
        sets: The label set of each class.
        repeats: How often each label occurs in its image, in the order of the images and of the labels in their sets;
            None where none occurs more than once. The labels of an image's boxes repeat.

    Example:
        >>> labels = Labels.of([3, 1, 3], 3)
        >>> labels.codes.tolist(), labels.sets
        ([1, 0, 1], ((1,), (3,)))
        >>> boxes = Labels.of([[7, 7, 2], [], [7]], 3)
        >>> boxes.sets, boxes.repeats
        (((), (2, 7), (7,)), array([1, 2, 1]))
    """

    def __init__(
        self,
        codes: npt.NDArray[np.int64],
        sets: tuple[LabelSet, ...],
        repeats: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.codes = codes
        self.sets = sets
        self.repeats = repeats

    @classmethod
    def understood(cls, labels: Any, n_images: int) -> Labels | None:
        """The same of what a data set calls its labels; None where that is none, or nothing to choose by, as masks.

        Example:
            >>> Labels.understood([0.5, 0.7], 2) is None
            True
        """
        try:
            return None if labels is None else cls.of(labels, n_images)
        except (TypeError, ValueError):
            return None

    @classmethod
    def of(cls, labels: Any, n_images: int) -> Labels:
        """Labels from an array, a tensor, or a sequence of numbers, texts, or sequences of them.

        Raises:
            ValueError: If their number is not that of the images.
            TypeError: If a label is neither a whole number nor a text, nor a sequence of such.
        """
        if isinstance(labels, Labels):
            return labels
        if getattr(labels, "ndim", 1) == 2:
            labels = indicated(labels)
        values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        if len(values) != n_images:
            raise invalid("labels", f"one for each of the data set's {n_images} images", f"{len(values)} labels")
        items = [_items(value, index) for index, value in enumerate(values)]
        sets = [each if len(each) == 1 else tuple(sorted(set(each), key=_order)) for each in items]
        distinct = sorted(set(sets), key=lambda s: tuple(map(_order, s)))
        code_of = {label_set: code for code, label_set in enumerate(distinct)}
        codes = np.fromiter((code_of[s] for s in sets), np.int64, len(sets))
        if all(len(each) == len(of_image) for each, of_image in zip(items, sets, strict=True)):
            return cls(codes, tuple(distinct))
        counts: list[int] = []
        for each, of_image in zip(items, sets, strict=True):
            times = Counter(each)
            counts.extend(times[label] for label in of_image)
        return cls(codes, tuple(distinct), np.array(counts, np.int64))

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[LabelSet]:
        return (self.sets[code] for code in self.codes)

    def names(self) -> list[str]:
        """A text for each class."""
        return [";".join(map(str, label_set)) for label_set in self.sets]

    @property
    def are_texts(self) -> bool:
        """Whether labels are texts, not numbers."""
        return any(isinstance(label, str) for label_set in self.sets for label in label_set)

    @property
    def are_single(self) -> bool:
        """Whether every image has exactly one label, once."""
        return self.repeats is None and all(len(label_set) == 1 for label_set in self.sets)

    def occurrences(self) -> Occurrences:
        """Which labels occur in which images, and how often.

        Example:
            >>> found = Labels.of([[7, 7, 2], [], [7]], 3).occurrences()
            >>> found.labels, found.image.tolist(), found.label.tolist(), found.count.tolist()
            ((2, 7), [0, 0, 2], [0, 1, 1], [1, 2, 1])
        """
        labels = tuple(sorted({label for label_set in self.sets for label in label_set}, key=_order))
        number = {label: index for index, label in enumerate(labels)}
        flat = np.array([number[label] for label_set in self.sets for label in label_set], np.int64)
        sizes = np.array([len(label_set) for label_set in self.sets], np.int64)
        starts = np.cumsum(sizes) - sizes
        image = np.repeat(np.arange(len(self)), sizes[self.codes])
        first = np.cumsum(sizes[self.codes]) - sizes[self.codes]
        within = np.arange(len(image)) - first[image]
        label = flat[starts[self.codes][image] + within]
        return Occurrences(labels, image, label, np.ones_like(image) if self.repeats is None else self.repeats)


def indicated(rows: Any) -> list[list[int]]:
    """The labels of rows of zeros and ones (one-hot or several labels an image): where the ones are.

    Raises:
        ValueError: If the rows hold anything else.
    """
    matrix = np.asarray(rows)
    if not np.isin(matrix, (0, 1)).all():
        raise ValueError("`labels` of shape (N, classes) must be zeros and ones, got other values.")
    return [np.flatnonzero(row).tolist() for row in matrix]


def _order(label: Label) -> tuple[bool, Label]:
    """What labels are sorted by: numbers before texts."""
    return isinstance(label, str), label


def _items(value: Any, index: int) -> LabelSet:
    """An image's labels as plain values, as often as they occur."""
    if getattr(value, "ndim", 0) == 1:  # the classes of its boxes
        value = value.tolist()
    items: Iterable[Any] = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    result = []
    for item in items:
        plain = item.item() if isinstance(item, np.generic) else item
        if isinstance(plain, bool) or (isinstance(plain, float) and plain.is_integer()):
            plain = int(plain)
        if not isinstance(plain, (int, str)):
            raise TypeError(f"`labels` must be whole numbers or texts, got {item!r} at index {index}.")
        if isinstance(plain, str) and (";" in plain or not plain):
            raise ValueError(
                f"`labels` must be texts that are not empty and have no ';' in them, got {plain!r} at index {index}."
            )
        result.append(plain)
    return tuple(result)
