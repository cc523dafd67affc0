"""What all selectors share: reading a data set's labels and names, and a person's decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from toolkit.datasets import ids_of, labels_of
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.representations import Embeddings, EvaluationView, Representation, WrittenFeatures
from toolkit.selection.labels import Labels
from toolkit.selection.protection import Protection, check_protection
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
        preferred: Shape (N,), those that stay in any case: that a person wants kept, or a setting protects.
        excluded: Shape (N,), those that a person wants removed.
        protection: Why those that stay in any case do.
    """

    n_images: int
    labels: Labels | None
    ids: tuple[str, ...] | None
    preferred: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.bool_]
    protection: Protection

    @classmethod
    def of(
        cls,
        dataset: Any,
        labels: Any,
        ids: Sequence[str] | None,
        always_keep: Sequence[str | int],
        always_remove: Sequence[str | int],
        *,
        protect_rare: int = 0,
        temporal_gap: int | None = None,
        needs_labels: bool = True,
    ) -> Candidates:
        """Labels and names as given, else as the data set tells; decisions as masks.

        Args:
            dataset: The data set, or vectors, N of them.
            labels: Overrides the data set's.
            ids: Overrides the data set's.
            always_keep: Names or indices of images to keep.
            always_remove: Names or indices of images to remove.
            protect_rare: Images stay that hold a class with at most so many occurrences; 0 for none.
            temporal_gap: Of so many consecutive frames one stays; None for no such bound.
            needs_labels: Whether labels decide anything; if not, a data set's own labels of a kind that cannot be used
                (masks, for instance) are passed over.

        Raises:
            ValueError: If the data set is empty, a name is unknown, an image is in both lists, or rare classes are to
                be kept where there are no labels.
        """
        n_images = len(dataset)
        if n_images == 0:
            raise invalid("dataset", "a data set with at least one image", "an empty one")
        is_images = not hasattr(dataset, "ndim")
        found = labels_of(dataset) if labels is None and is_images else labels
        names = ids_of(dataset) if ids is None and is_images else ids
        if ids is None and names is not None and len(set(names)) < len(names):
            names = None  # An image that is in the data set twice has no name of its own.
        if found is not None and (needs_labels or protect_rare or labels is not None):
            parsed: Labels | None = Labels.of(found, n_images)
        else:
            parsed = Labels.understood(found, n_images)
        called = None if names is None else tuple(map(str, names))
        wanted, excluded = np.zeros(n_images, dtype=bool), np.zeros(n_images, dtype=bool)
        wanted[_indices("always_keep", always_keep, called, n_images)] = True
        excluded[_indices("always_remove", always_remove, called, n_images)] = True
        both = np.flatnonzero(wanted & excluded)
        if len(both):
            raise invalid("always_remove", "without ids that are in `always_keep` too", int(both[0]))
        protection = Protection.of(wanted, excluded, parsed, called, protect_rare, temporal_gap)
        return cls(n_images, parsed, called, protection.preferred, excluded, protection)

    def check_budget(self, n_kept: int) -> None:
        """Refuse a budget that a person's decisions, what is protected, or having one image at all do not allow."""
        if n_kept < 1:
            raise invalid("keep_fraction", f"large enough to keep one of {self.n_images} images", n_kept)
        self.protection.check_budget(n_kept)
        left = self.n_images - int(self.excluded.sum())
        if left < n_kept:
            raise invalid(
                "always_remove", f"at most the {self.n_images - n_kept} images that go", f"{self.n_images - left} ids"
            )


def _indices(name: str, chosen: Sequence[str | int], ids: tuple[str, ...] | None, n_images: int) -> list[int]:
    """The images that a person named."""
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        raise TypeError(f"`{name}` must be a list of ids, got {chosen!r}.")
    index_of = {str(i): i for i in range(n_images)} if ids is None else {n: i for i, n in enumerate(ids)}
    unknown = [item for item in chosen if str(item) not in index_of]
    if unknown:
        what = f"indices from 0 to {n_images - 1}" if ids is None else "ids of the data set's images"
        raise invalid(name, what, shorten(unknown))
    return [index_of[str(item)] for item in chosen]


class BaseSelector:
    """Settings as plain values, a fingerprint of them, and what they keep in any case, for the toolkit's selectors."""

    #: Constructor arguments that decide what is chosen.
    settings: ClassVar[tuple[str, ...]] = ()
    #: More of them, with the values that change nothing. With these they are left out of the configuration, so that
    #: what was chosen before there were such settings is found again.
    later_settings: ClassVar[Mapping[str, Any]] = {"protect_rare": 0, "temporal_gap": None}

    always_keep: Sequence[str | int] = ()
    always_remove: Sequence[str | int] = ()
    protect_rare: int = 0
    temporal_gap: int | None = None

    def check(self) -> None:
        """Refuse settings that are out of range, before any work."""
        check_protection(self.protect_rare, self.temporal_gap)

    def _candidates(
        self, dataset: Any, labels: Any, ids: Sequence[str] | None, *, needs_labels: bool = True
    ) -> Candidates:
        """The images to choose among, with those that the settings say stay or go in any case."""
        return Candidates.of(
            dataset,
            labels,
            ids,
            self.always_keep,
            self.always_remove,
            protect_rare=self.protect_rare,
            temporal_gap=self.temporal_gap,
            needs_labels=needs_labels,
        )

    def config(self) -> dict[str, Any]:
        """The selector's class and settings as plain values."""
        changed = [name for name, plain in self.later_settings.items() if getattr(self, name) != plain]
        values = {name: getattr(self, name) for name in (*self.settings, *changed)}
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
