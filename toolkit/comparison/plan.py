"""Which runs a comparison consists of, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from toolkit.validation import check_choice, check_fraction, invalid

#: How long a run on fewer images is trained: as many epochs, or as many steps, as the run on all of them.
BUDGETS = ("epochs", "steps")
#: The run on all images; what every selection has to beat; and that with the classes' shares kept.
FULL, RANDOM, BALANCED = "full", "random", "balanced"
#: What a comparison always has, whatever else is named.
ALWAYS = (FULL, RANDOM, BALANCED)


@dataclass(frozen=True)
class Run:
    """One training run of a comparison.

    Attributes:
        method: `full`, `random`, `balanced`, or the name of a selector or dynamic baseline.
        fraction: Of the training images, the share that it may use; None where the method decides that itself.
        seed: Of the weights, the order of images, the augmentation and the choice.
        budget: `epochs` or `steps`; the full set's run has no other than its own and is `epochs`.
        like: Of a random subset as large as what a method kept that decides itself, that method; else None.

    Example:
        >>> Run("semantic", 0.9, seed=1, budget="steps").title
        'semantic, 90 % kept, as many steps, seed 1'
    """

    method: str
    fraction: float | None
    seed: int
    budget: str = "epochs"
    like: str | None = None

    @property
    def title(self) -> str:
        """The run in words."""
        if self.method == FULL:
            return f"full set, seed {self.seed}"
        size = f", as many as {self.like}" if self.like else ""
        if self.fraction is not None:
            size = f", {100 * self.fraction:g} % kept"
        return f"{self.method}{size}, as many {self.budget}, seed {self.seed}"

    @property
    def choice(self) -> Run:
        """The run without its budget: runs that differ in nothing else train on the same images."""
        return replace(self, budget="epochs")


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison: every method at every fraction, seed and budget.

    The full set, random subsets and class-balanced random subsets are always among the methods. Runs come seed by seed,
    so that a comparison that is stopped has every method at a few seeds rather than a few methods at every seed; within
    a seed the full set comes first, whose network the others may choose by.

    Args:
        selectors: Names of the methods that choose images before training.
        dynamic: Names of the methods that choose them while they train.
        fractions: Of the training images, the shares that are kept, each in (0, 1).
        seeds: One run for each.
        budgets: `epochs`, `steps` or both.
        own_fraction: Names among the methods that decide themselves how many images they use; they run once a seed and
            budget. Each selector among them gets a random subset of the same size to be compared with.

    Raises:
        ValueError: If a list is empty or has an item twice, a name is that of a built-in method, or a value is out of
            its range.

    Example:
        >>> plan = Plan(["semantic"], [], fractions=[0.9, 0.5], seeds=[1, 2], budgets=["epochs"])
        >>> [run.title for run in plan.runs()][:3]
        ['full set, seed 1', 'random, 90 % kept, as many epochs, seed 1', 'balanced, 90 % kept, as many epochs, seed 1']
        >>> len(list(plan.runs()))
        14
    """

    selectors: Sequence[str]
    dynamic: Sequence[str]
    fractions: Sequence[float]
    seeds: Sequence[int]
    budgets: Sequence[str] = BUDGETS
    own_fraction: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        methods = [*self.selectors, *self.dynamic]
        for name in methods:
            if name in ALWAYS:
                raise invalid("selectors", f"named otherwise than {', '.join(ALWAYS)}, which are always there", name)
        lists: Mapping[str, Sequence[Any]] = {
            "selectors": methods,
            "fractions": self.fractions,
            "seeds": self.seeds,
            "budgets": self.budgets,
        }
        for name, values in lists.items():
            if not values and name != "selectors":
                raise invalid(name, "a list with at least one item", [])
            if len(set(values)) < len(values):
                raise invalid(name, "without an item that is there twice", list(values))
        for fraction in self.fractions:
            if check_fraction("fractions", fraction) == 1.0:
                raise invalid("fractions", "below 1, as the full set is always there", fraction)
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise TypeError(f"`seeds` must be whole numbers, got {seed!r}.")
        for budget in self.budgets:
            check_choice("budgets", budget, BUDGETS)

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed, the full set's first."""
        for seed in self.seeds:
            yield Run(FULL, 1.0, seed)
            for fraction in sorted(self.fractions, reverse=True):
                for method in (RANDOM, BALANCED, *self.selectors, *self.dynamic):
                    if method not in self.own_fraction:
                        yield from (Run(method, fraction, seed, budget) for budget in self.budgets)
            for method in (*self.selectors, *self.dynamic):
                if method in self.own_fraction:
                    for budget in self.budgets:
                        yield Run(method, None, seed, budget)
                        if method in self.selectors:
                            yield Run(RANDOM, None, seed, budget, like=method)

    def methods(self) -> list[str]:
        """All methods, in the order in which tables show them."""
        return [*ALWAYS, *self.selectors, *self.dynamic]
