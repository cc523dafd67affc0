"""What the papers print, to be shown beside what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from toolkit.validation import check_choice


@dataclass(frozen=True)
class Published:
    """A paper's table: test scores by method and fraction kept.

    Attributes:
        source: Where it is printed, and how it was made.
        full: The score of the full set.
        methods: For each method, by the names that the shipped configs give it, the scores by fraction kept.

    Example:
        >>> paper = Published.of("cifar10")
        >>> paper.full, paper.score("similar", 0.9), paper.score("semantic", 0.9)
        (0.9312, 0.932, None)
    """

    source: str
    full: float
    methods: Mapping[str, Mapping[float, float]]

    @classmethod
    def of(cls, name: str) -> Published:
        """The table that is printed for a data set.

        Args:
            name: `cifar10` or `cifar100`.
        """
        tables = _tables()
        table = tables[check_choice("published", name, tuple(tables))]
        methods = {
            method: {float(fraction): score for fraction, score in scores.items()}
            for method, scores in table["methods"].items()
        }
        return cls(table["source"], table["full"], methods)

    def score(self, method: str, fraction: float | None) -> float | None:
        """A method's score where a fraction is kept, or None if it is not printed."""
        return self.full if fraction == 1.0 else self.methods.get(method, {}).get(fraction or 0.0)


def _tables() -> dict[str, Any]:
    text = resources.files("toolkit.comparison").joinpath("published.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables
