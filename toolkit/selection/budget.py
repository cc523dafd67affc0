"""What selectors that group images share: one budget out of several, and among which images groups are formed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from toolkit.selection.base import BaseSelector, Candidates
from toolkit.selection.labels import Labels
from toolkit.validation import check_fraction, fraction_of, invalid

#: Among which images groups are formed: those of each class apart, or all of the data set.
SCOPES = ("class", "dataset")


class BudgetedSelector(BaseSelector):
    """A selector whose budget is a fraction, a number of groups, or something else that decides how many stay."""

    #: Whether this selector can find out itself how many images may go (`keep_fraction="auto"`).
    can_choose_fraction: ClassVar[bool] = False

    keep_fraction: float | Literal["auto"] | None
    n_groups: int | None
    scope: str
    always_keep: Sequence[str | int]
    always_remove: Sequence[str | int]

    def _check_budget(self, names: Sequence[str]) -> None:
        """Exactly one of the named settings must be given, as a number."""
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if len(given) != 1:
            alternatives = " or ".join(f"`{name}`" for name in names)
            raise ValueError(f"{alternatives} must be given, exactly one, got {given or None}.")
        ((name, value),) = given.items()
        if self._is_automatic():
            return
        kinds = (int, np.integer) if name == "n_groups" else (int, float, np.number)
        if isinstance(value, bool) or not isinstance(value, kinds):
            more = " or 'auto'" if name == "keep_fraction" and self.can_choose_fraction else ""
            raise TypeError(f"`{name}` must be a {'whole ' * (name == 'n_groups')}number{more}, got {value!r}.")
        if name == "keep_fraction":
            check_fraction("keep_fraction", float(value))

    def _is_automatic(self) -> bool:
        """Whether the model is to say how many images go."""
        return self.can_choose_fraction and self.keep_fraction == "auto"

    def _classes(self, candidates: Candidates) -> npt.NDArray[np.int64]:
        """The class of each image within which it may be grouped, shape (N,)."""
        if self.scope == "dataset":
            return np.zeros(candidates.n_images, np.int64)
        if candidates.labels is None:
            raise ValueError(
                "`labels` must be given where scope='class', got None and a data set that has none. Pass `labels`, "
                "give the data set an attribute `targets`, or set scope='dataset' to choose without labels."
            )
        return candidates.labels.codes

    def _n_kept(self, candidates: Candidates, classes: npt.NDArray[np.int64]) -> int | None:
        """How many images stay (or groups there are), or None if a threshold or the model decides."""
        if self.n_groups is not None:
            if not 1 <= self.n_groups <= candidates.n_images:
                raise invalid("n_groups", f"from 1 to the {candidates.n_images} images", self.n_groups)
            n_kept, name = self.n_groups, "n_groups"
        elif self.keep_fraction is not None and not isinstance(self.keep_fraction, str):
            n_kept, name = fraction_of(self.keep_fraction, candidates.n_images), "keep_fraction"
        else:
            return None
        candidates.check_budget(n_kept)
        least = _least(classes, candidates)
        if n_kept < least:
            raise invalid(
                name,
                f"enough for one image of each {of_each(candidates.labels)} and those always kept ({least} images)"
                + (" where scope='class' (scope='dataset' needs none of each)" if self.scope == "class" else ""),
                f"{getattr(self, name)}, which is {n_kept}",
            )
        return n_kept


def _least(classes: npt.NDArray[np.int64], candidates: Candidates) -> int:
    """The fewest images that can stay: one of each class that has any left, or those that a person wants."""
    n_classes = int(classes.max()) + 1
    left = np.bincount(classes[~candidates.excluded], minlength=n_classes)
    return int(np.maximum(np.minimum(1, left), np.bincount(classes[candidates.preferred], minlength=n_classes)).sum())


def of_each(labels: Labels | None) -> str:
    """What to call the classes that have to keep an image each."""
    return "class" if labels is None or labels.are_single else "class (a set of labels that images have)"


def optional_codes(candidates: Candidates, scope: str, keep_influential: bool) -> Any:
    """The labels that make a group one to keep whole: none within a class, or where there are no labels."""
    if candidates.labels is None or scope == "class" or not keep_influential:
        return None
    return candidates.labels.codes


def check_keep_influential(value: bool) -> None:
    """Refuse anything but a truth value."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`keep_influential` must be True or False, got {value!r}.")
