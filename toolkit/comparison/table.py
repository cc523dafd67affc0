"""The results in the papers' layout, fractions by methods, which page and pictures are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.comparison.plan import BALANCED, FULL, RANDOM
from toolkit.comparison.statistics import Estimate, Summary

#: The least part of the range between random subsets and the full set that a picture shows below the former.
_BELOW = 0.6


@dataclass(frozen=True)
class Grid:
    """The summaries of one budget, by method and fraction kept.

    Attributes:
        full: That of the full set, if there is one.
        methods: The methods but the full set, in the order of the table's columns.
        fractions: The fractions, the largest first; None at the end where a method decides itself.
        cells: The summaries by method and fraction.
        is_share: Whether scores are shares, shown in percent.
    """

    full: Summary | None
    methods: list[str]
    fractions: list[float | None]
    cells: dict[tuple[str, float | None], Summary]
    is_share: bool

    @classmethod
    def of(cls, summaries: Sequence[Summary], budget: str) -> Grid:
        """The grid of one budget; random subsets that are as large as another method's are left out.

        Example:
            >>> Grid.of([], "epochs").methods
            []
        """
        full = next((summary for summary in summaries if summary.method == FULL), None)
        mine = [s for s in summaries if s.budget == budget and s.method != FULL and s.like is None]
        known = dict.fromkeys(summary.method for summary in mine)
        methods = [name for name in (RANDOM, BALANCED) if name in known]
        methods += [name for name in known if name not in methods]
        fractions: list[float | None] = [*sorted({s.fraction for s in mine if s.fraction is not None}, reverse=True)]
        if any(summary.fraction is None for summary in mine):
            fractions.append(None)
        scores = [s.score.mean for s in summaries if s.score is not None]
        return cls(
            full,
            methods,
            fractions,
            {(summary.method, summary.fraction): summary for summary in mine},
            all(0 <= score <= 1 for score in scores),
        )

    def curve(self, method: str, network: str) -> list[tuple[float, Estimate]]:
        """A method's score by fraction kept, the smallest first, the full set at the end."""
        points = []
        for fraction in reversed(self.fractions):
            summary = self.cells.get((method, fraction))
            score = None if summary is None else summary.scored(network)[0]
            kept = fraction if fraction is not None or summary is None else summary.kept_fraction
            if score is not None and kept is not None:
                points.append((kept, score))
        points.sort(key=lambda point: point[0])
        if self.full is not None and all(fraction is not None for _, fraction in self._of(method)):
            score = self.full.scored(network)[0]
            if score is not None:
                points.append((1.0, score))
        return points

    def limits(self, network: str) -> tuple[float, float]:
        """The range of scores that a picture shows: what is far below random subsets is left out."""
        scores = [score for method in self.methods for _, score in self.curve(method, network)]
        if not scores:
            return 0.0, 1.0
        top = max(
            score.mean if score.high is None else min(score.high, score.mean + (score.std or 0)) for score in scores
        )
        bottom = min(score.mean for score in scores)
        rivals = [score.mean for method in (RANDOM, BALANCED) for _, score in self.curve(method, network)]
        if rivals:
            bottom = max(bottom, min(rivals) - _BELOW * (top - min(rivals)))
        room = 0.06 * (top - bottom) or 0.01
        return bottom - room, top + room

    def text(self, value: float, *, signed: bool = False) -> str:
        """A score, or a difference of two, as it is shown."""
        number = f"{100 * value:.2f}" if self.is_share else f"{value:.4g}"
        return typeset(f"{'+' if signed and value >= 0 else ''}{number}")

    def _of(self, method: str) -> list[tuple[str, float | None]]:
        return [cell for cell in self.cells if cell[0] == method]


def markdown_table(grid: Grid, network: str = "last") -> str:
    """The results as a table in Markdown, a row a method, for a README.

    Cells hold mean and standard deviation, and the difference to a random subset of the same size, in bold where its
    95 % interval leaves out 0.

    Args:
        grid: The results of one budget.
        network: `last` or `best`.

    Example:
        >>> print(markdown_table(Grid.of([], "epochs")))
        | method |
        |---|
    """
    heads = ["its own choice" if fraction is None else f"{100 * fraction:g} % kept" for fraction in grid.fractions]
    lines = ["| " + " | ".join(["method", *heads]) + " |", "|" + "---|" * (len(heads) + 1)]
    full = None if grid.full is None else grid.full.scored(network)[0]
    if full is not None:
        lines.append(f"| full set: {_spread(grid, full)} |" + " |" * len(heads))
    for method in grid.methods:
        cells = []
        for fraction in grid.fractions:
            summary = grid.cells.get((method, fraction))
            score, over = (None, None) if summary is None else summary.scored(network)
            if score is None:
                cells.append("" if summary is None else "failed")
                continue
            kept = ""
            if fraction is None and summary is not None and summary.kept_fraction is not None:
                kept = f", {100 * summary.kept_fraction:.3g} % kept"
            gap = "" if over is None else f" ({grid.text(over.mean, signed=True)})"
            cells.append(
                _spread(grid, score) + (f" **{gap.strip()}**" if over is not None and over.sign else gap) + kept
            )
        lines.append("| " + " | ".join([readable(method), *cells]) + " |")
    return "\n".join(lines)


def _spread(grid: Grid, score: Estimate) -> str:
    return grid.text(score.mean) + ("" if score.std is None else f" ± {grid.text(score.std)}")


def typeset(number: str) -> str:
    """A number with a minus sign for its hyphen.

    Example:
        >>> typeset("-1.5") == "\N{MINUS SIGN}1.5"
        True
    """
    return number.replace("-", "\N{MINUS SIGN}")


def readable(name: str) -> str:
    """A method's name as it is shown.

    Example:
        >>> readable("half_and_half")
        'half and half'
    """
    return name.replace("_", " ")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range, for an axis.

    Example:
        >>> ticks(0.912, 0.958)
        [0.92, 0.93, 0.94, 0.95]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
