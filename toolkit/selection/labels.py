"""Labels of a data set's images: none, one or several an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.validation import invalid

Label = int | str
LabelSet = tuple[Label, ...]


class Labels:
    """The labels of N images; images with the same set of labels form a class.

    Args:
        codes: The class of each image, shape (N,), as an index into `sets`.
        sets: The label set of each class.

    Example:
        >>> labels = Labels.of([3, 1, 3], 3)
        >>> labels.codes.tolist(), labels.sets
        ([1, 0, 1], ((1,), (3,)))
    """

    def __init__(self, codes: npt.NDArray[np.int64], sets: tuple[LabelSet, ...]) -> None:
        self.codes = codes
        self.sets = sets

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
        sets = [_label_set(value, index) for index, value in enumerate(values)]
        distinct = sorted(set(sets), key=lambda s: tuple((isinstance(label, str), label) for label in s))
        code_of = {label_set: code for code, label_set in enumerate(distinct)}
        return cls(np.fromiter((code_of[s] for s in sets), np.int64, len(sets)), tuple(distinct))

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


def indicated(rows: Any) -> list[list[int]]:
    """The labels of rows of zeros and ones (one-hot or several labels an image): where the ones are.

    Raises:
        ValueError: If the rows hold anything else.
    """
    matrix = np.asarray(rows)
    if not np.isin(matrix, (0, 1)).all():
        raise ValueError("`labels` of shape (N, classes) must be zeros and ones, got other values.")
    return [np.flatnonzero(row).tolist() for row in matrix]


def _label_set(value: Any, index: int) -> LabelSet:
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
    return tuple(result) if len(result) == 1 else tuple(sorted(set(result), key=lambda x: (isinstance(x, str), x)))
