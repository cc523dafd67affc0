"""The page's curves, as SVG inside the page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from toolkit.comparison.plan import FULL, RANDOM
from toolkit.comparison.published import Published
from toolkit.comparison.statistics import Estimate
from toolkit.comparison.table import Grid, readable, ticks

#: Width and height of one method's curve, and the room for numbers at its left and below it.
_WIDTH, _HEIGHT, _LEFT, _BELOW, _ABOVE, _RIGHT = 264.0, 186.0, 40.0, 30.0, 8.0, 10.0
_MARKS = ("circle", "square", "triangle", "diamond")
#: Classes of colour that the style sheet has.
_COLORS = 7


class _Axes:
    """Where numbers are in a drawing."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], width: float = _WIDTH, height: float = _HEIGHT
    ) -> None:
        self.x_limits, self.y_limits = x, y
        self.left, self.right = _LEFT, width - _RIGHT
        self.top, self.bottom = _ABOVE, height - _BELOW
        self.width, self.height = width, height

    def x(self, value: float) -> float:
        low, high = self.x_limits
        return self.left + (self.right - self.left) * (value - low) / (high - low or 1)

    def y(self, value: float) -> float:
        low, high = self.y_limits
        return self.bottom - (self.bottom - self.top) * (min(max(value, low), high) - low) / (high - low or 1)

    def frame(self, grid: Grid, x_ticks: Sequence[tuple[float, str]], x_title: str) -> list[str]:
        """Lines and numbers of both axes."""
        parts = []
        for value in ticks(*self.y_limits):
            place, label = self.y(value), f"{100 * value:g}" if grid.is_share else f"{value:g}"
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{place:.1f}" y2="{place:.1f}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{place + 4:.1f}" text-anchor="end">{label}</text>')
        for value, label in x_ticks:
            parts.append(
                f'<text x="{self.x(value):.1f}" y="{self.bottom + 15:.1f}" text-anchor="middle">{label}</text>'
            )
        middle = (self.left + self.right) / 2
        parts.append(f'<text x="{middle}" y="{self.height - 3}" text-anchor="middle">{html.escape(x_title)}</text>')
        return parts

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="{kind}" points="{places}"/>'


def score_chart(grid: Grid, method: str, network: str, published: Published | None = None) -> str:
    """A method's score against the fraction kept, over that of random subsets and what a paper prints.

    Args:
        grid: The results of one budget.
        method: Whose.
        network: `last` or `best`.
        published: A paper's figures, shown where it has the method.
    """
    own = grid.curve(method, network)
    random = grid.curve(RANDOM, network)
    kept = [x for x, _ in [*own, *random]]
    if not kept:
        return ""
    axes = _Axes((min(kept) - 0.02, 1.02), grid.limits(network))
    known = sorted({fraction for fraction in grid.fractions if fraction is not None} | {1.0})
    parts = axes.frame(grid, _spaced([(value, f"{100 * value:g}") for value in known], axes), "% of the images kept")
    full = None if grid.full is None else grid.full.scored(network)[0]
    if full is not None:
        place = axes.y(full.mean)
        parts.append(f'<line class="full" x1="{axes.left}" x2="{axes.right}" y1="{place:.1f}" y2="{place:.1f}"/>')
    if method != RANDOM:
        parts += _band(axes, random)
        parts.append(axes.path([(x, score.mean) for x, score in random], "curve random"))
    paper = _paper_points(published, method, min(kept))
    if paper:
        shown = [(x, y) for x, y in paper if axes.y_limits[0] <= y <= axes.y_limits[1]]
        parts.append(axes.path(shown, "curve paper"))
        parts += [
            f'<circle class="mark paper" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3"><title>printed: '
            f"{grid.text(y)} at {100 * x:g} %</title></circle>"
            for x, y in shown
        ]
    parts.append(axes.path([(x, score.mean) for x, score in own], "curve own"))
    for x, score in own:
        parts += _point(axes, grid, x, score)
    label = f"{readable(method)}: score against the share of the images kept"
    return _svg(axes, parts, label)


def time_chart(grid: Grid, network: str) -> str:
    """Scores of all methods against the seconds that choosing and training take together.

    Args:
        grid: The results of one budget.
        network: `last` or `best`.
    """
    curves: dict[str, list[tuple[float, Estimate, float | None]]] = {}
    for method in grid.methods:
        found = []
        for fraction in grid.fractions:
            summary = grid.cells.get((method, fraction))
            score = None if summary is None else summary.scored(network)[0]
            if summary is not None and score is not None and summary.seconds is not None:
                found.append((summary.seconds, score, summary.kept_fraction))
        if found:
            curves[method] = found
    whole = None if grid.full is None else grid.full.scored(network)[0]
    seconds = [point[0] for points in curves.values() for point in points]
    if grid.full is not None and whole is not None and grid.full.seconds is not None:
        seconds.append(grid.full.seconds)
    if not seconds:
        return ""
    axes = _Axes((0.0, 1.05 * max(seconds)), grid.limits(network), width=880.0, height=380.0)
    marks = [(value, f"{value:g}") for value in ticks(0.0, 1.05 * max(seconds), 8)]
    parts = axes.frame(grid, marks, "seconds of choosing and training, with the network that is chosen by")
    legend = []
    for number, (method, points) in enumerate(curves.items()):
        color, mark = f"c{number % _COLORS}", _MARKS[(number // _COLORS) % len(_MARKS)]
        inside = [(x, score.mean) for x, score, _ in points]
        content = [axes.path(inside, "curve")]
        for x, score, kept in points:
            share = "" if kept is None else f" at {100 * kept:.4g} %"
            title = f"{readable(method)}{share}: {grid.text(score.mean)} in {x:.3g} s"
            content.append(_mark(mark, axes.x(x), axes.y(score.mean), title))
        name = html.escape(method, quote=True)
        parts.append(f'<g class="series {color}" data-method="{name}">{"".join(content)}</g>')
        icon = f'<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">{_mark(mark, 6, 6, "")}</svg>'
        legend.append(
            f'<button type="button" class="series {color}" data-method="{name}">{icon}'
            f"{html.escape(readable(method))}</button>"
        )
    if grid.full is not None and whole is not None and grid.full.seconds is not None:
        x, y = axes.x(grid.full.seconds), axes.y(whole.mean)
        parts.append(f'<line class="full" x1="{axes.left}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_mark("circle", x, y, f"{readable(FULL)} set: {grid.text(whole.mean)}", "mark whole"))
        parts.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">full set</text>')
    drawing = _svg(axes, parts, "score of every method against seconds")
    return f'<div class="legend">{"".join(legend)}</div>{drawing}'


def _svg(axes: _Axes, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {axes.width:g} {axes.height:g}" role="img" '
        f'aria-label="{html.escape(label, quote=True)}">{"".join(parts)}</svg>'
    )


def _spaced(marks: Sequence[tuple[float, str]], axes: _Axes) -> list[tuple[float, str]]:
    """Those of some numbers on an axis that have room, from the right."""
    shown: list[tuple[float, str]] = []
    for value, label in reversed(marks):
        if not shown or axes.x(shown[-1][0]) - axes.x(value) >= 24:
            shown.append((value, label))
    return shown


def _band(axes: _Axes, curve: Sequence[tuple[float, Estimate]]) -> list[str]:
    """The 95 % interval of a curve as an area."""
    known = [(x, score.low, score.high) for x, score in curve if score.low is not None and score.high is not None]
    if len(known) < 2:
        return []
    outline = [(x, low) for x, low, _ in known] + [(x, high) for x, _, high in reversed(known)]
    places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in outline)
    return [f'<polygon class="band" points="{places}"/>']


def _point(axes: _Axes, grid: Grid, x: float, score: Estimate) -> list[str]:
    """A mean with its interval; one below the drawing as an arrow with its number."""
    place = axes.x(x)
    spread = "" if score.std is None else f" ± {grid.text(score.std)}"
    title = f"{grid.text(score.mean)}{spread} at {100 * x:.4g} %, {score.n} seeds"
    if score.mean < axes.y_limits[0]:
        base = axes.bottom - 3
        return [
            f'<path class="mark own" d="M{place - 4:.1f},{base - 7} h8 l-4,7 z"><title>{title}</title></path>',
            f'<text class="away" x="{place + 7:.1f}" y="{base:.1f}">{grid.text(score.mean)}</text>',
        ]
    parts = []
    if score.low is not None and score.high is not None:
        low, high = axes.y(score.low), axes.y(score.high)
        parts.append(f'<line class="bar own" x1="{place:.1f}" x2="{place:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    middle = axes.y(score.mean)
    return [
        *parts,
        f'<circle class="mark own" cx="{place:.1f}" cy="{middle:.1f}" r="3.4"><title>{title}</title></circle>',
    ]


def _paper_points(published: Published | None, method: str, lowest: float) -> list[tuple[float, float]]:
    if published is None or method not in published.methods:
        return []
    points = [(x, y) for x, y in published.methods[method].items() if x >= lowest - 0.02]
    return sorted([*points, (1.0, published.full)])


def _mark(kind: str, x: float, y: float, title: str, style: str = "mark") -> str:
    inner = f"<title>{html.escape(title)}</title>" if title else ""
    shapes = {
        "circle": f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4">{inner}</circle>',
        "square": f'<rect class="{style}" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2">{inner}</rect>',
        "triangle": f'<path class="{style}" d="M{x:.1f},{y - 4.6:.1f} l4.6,8 h-9.2 z">{inner}</path>',
        "diamond": f'<path class="{style}" d="M{x:.1f},{y - 5:.1f} l5,5 l-5,5 l-5,-5 z">{inner}</path>',
    }
    return shapes[kind]
