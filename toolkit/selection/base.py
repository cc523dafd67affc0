"""What all selectors share: reading a data set's labels and names, and a person's decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from toolkit.datasets import ids_of, labels_of
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.representations import Embeddings, EvaluationView, Representation, WrittenFeatures
from toolkit.selection.labels import Labels
from toolkit.selection.result import Selection
from toolkit.validation import invalid, shorten


@runtime_checkable
class Selector(Protocol):
    """Anything that chooses images: called the same with and without Lightning."""

    def select(self, dataset: Any = None, labels: Any = None, ids: Sequence[str] | None = None) -> Selection:
        """Choose the images of a data set that stay."""
        ...


@dataclass(frozen=True)
class Candidates:
    """The images that a selector chooses among.

    Attributes:
        n_images: N.
        labels: Their labels, or None.
        ids: Their names, or None: indices.
        preferred: Shape (N,), those that a person wants kept.
        excluded: Shape (N,), those that a person wants removed.
    """

    n_images: int
    labels: Labels | None
    ids: tuple[str, ...] | None
    preferred: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        dataset: Any,
        labels: Any,
        ids: Sequence[str] | None,
        always_keep: Sequence[str | int],
        always_remove: Sequence[str | int],
        *,
        needs_labels: bool = True,
    ) -> Candidates:
        """Labels and names as given, else as the data set tells; decisions as masks.

        Args:
            dataset: The data set, or vectors, N of them.
            labels: Overrides the data set's.
            ids: Overrides the data set's.
            always_keep: Names or indices of images to keep.
            always_remove: Names or indices of images to remove.
            needs_labels: Whether labels decide anything; if not, a data set's own labels of a kind that cannot be used
                (masks, for instance) are passed over.

        Raises:
            ValueError: If the data set is empty, a name is unknown, or an image is in both lists.
        """
        n_images = len(dataset)
        if n_images == 0:
            raise invalid("dataset", "a data set with at least one image", "an empty one")
        is_images = not hasattr(dataset, "ndim")
        found = labels_of(dataset) if labels is None and is_images else labels
        names = ids_of(dataset) if ids is None and is_images else ids
        if ids is None and names is not None and len(set(names)) < len(names):
            names = None  # An image that is in the data set twice has no name of its own.
        try:
            parsed = None if found is None else Labels.of(found, n_images)
        except (TypeError, ValueError):
            if needs_labels or labels is not None:
                raise
            parsed = None
        result = cls(
            n_images,
            parsed,
            None if names is None else tuple(map(str, names)),
            np.zeros(n_images, dtype=bool),
            np.zeros(n_images, dtype=bool),
        )
        result.preferred[result._indices("always_keep", always_keep)] = True
        result.excluded[result._indices("always_remove", always_remove)] = True
        both = np.flatnonzero(result.preferred & result.excluded)
        if len(both):
            raise invalid("always_remove", "without ids that are in `always_keep` too", int(both[0]))
        return result

    def _indices(self, name: str, chosen: Sequence[str | int]) -> list[int]:
        if isinstance(chosen, str) or not isinstance(chosen, Iterable):
            raise TypeError(f"`{name}` must be a list of ids, got {chosen!r}.")
        index_of = (
            {str(i): i for i in range(self.n_images)} if self.ids is None else {n: i for i, n in enumerate(self.ids)}
        )
        unknown = [item for item in chosen if str(item) not in index_of]
        if unknown:
            what = f"indices from 0 to {self.n_images - 1}" if self.ids is None else "ids of the data set's images"
            raise invalid(name, what, shorten(unknown))
        return [index_of[str(item)] for item in chosen]

    def check_budget(self, n_kept: int) -> None:
        """Refuse a budget that a person's decisions, or having at least one image, do not allow."""
        if n_kept < 1:
            raise invalid("keep_fraction", f"large enough to keep one of {self.n_images} images", n_kept)
        if int(self.preferred.sum()) > n_kept:
            raise invalid(
                "always_keep", f"at most the {n_kept} images that are kept", f"{int(self.preferred.sum())} ids"
            )
        left = self.n_images - int(self.excluded.sum())
        if left < n_kept:
            raise invalid(
                "always_remove", f"at most the {self.n_images - n_kept} images that go", f"{self.n_images - left} ids"
            )


class BaseSelector:
    """Settings as plain values, and a fingerprint of them, for every selector of the toolkit."""

    #: Constructor arguments that decide what is chosen.
    settings: ClassVar[tuple[str, ...]] = ()

    def config(self) -> dict[str, Any]:
        """The selector's class and settings as plain values."""
        values = {name: getattr(self, name) for name in self.settings}
        return {"selector": type(self).__name__} | {
            name: [item.item() if isinstance(item, np.generic) else item for item in value]
            if isinstance(value, Iterable) and not isinstance(value, str)
            else value
            for name, value in values.items()
        }

    def fingerprint(self) -> str:
        """A text that differs when the settings or the representation would choose otherwise."""
        features = self.representation()
        return settings_hash({**self.config(), "representation": None if features is None else features.fingerprint()})

    def representation(self) -> Representation | None:
        """What turns images into vectors for this selector, or None if it needs none."""
        return None


def as_representation(features: Any) -> Representation:
    """A representation as it is; a folder is read as features written in training, anything else as vectors."""
    if isinstance(features, Representation):
        return features
    if isinstance(features, (str, Path)) and Path(features).expanduser().is_dir():
        return WrittenFeatures(features)
    return Embeddings(features)


def source_of(dataset: Any, representation: Representation | None) -> Any:
    """What to choose among when no data set is given: the vectors themselves."""
    if dataset is not None:
        return dataset
    if isinstance(representation, (Embeddings, WrittenFeatures)):
        return representation.vectors(None)
    raise invalid("dataset", "a data set, where the selector was not given vectors", None)


def fingerprint_of(dataset: Any) -> str | None:
    """The fingerprint of a data set of images; None for bare vectors."""
    return None if hasattr(dataset, "ndim") else dataset_fingerprint(EvaluationView.of(dataset).dataset)
