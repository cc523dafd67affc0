"""The curves as a picture, for documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.comparison.plan import BUDGETS, FULL, RANDOM
from toolkit.comparison.published import Published
from toolkit.comparison.statistics import Summary
from toolkit.comparison.table import Grid, readable
from toolkit.drawing import BLUE, DARK, MUTED, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 5


def plot_comparison(
    summaries: Sequence[Summary],
    *,
    budget: str | None = None,
    network: str = "last",
    published: Published | None = None,
    title: str | None = None,
) -> Figure:
    """Draw each method's score against the fraction kept, over that of random subsets.

    Bars and the grey band are 95 % intervals over seeds, the dotted line is the full set; arrows at the lower edge are
    scores below it.

    Args:
        summaries: What the seeds of each method, fraction and budget say together.
        budget: `epochs` or `steps`; `steps` if None and there are any.
        network: `last` or `best`.
        published: A paper's figures, drawn as hollow marks.
        title: Above the picture.

    Example:
        >>> from toolkit.comparison import summarise_runs
        >>> rows = [{"method": "random", "fraction": kept, "seed": seed, "budget": "epochs", "status": "done",
        ...     "test_last": 0.9 * kept + 0.01 * seed, "test_best": 0.9} for kept in (0.5, 0.9) for seed in (1, 2)]
        >>> len(plot_comparison(summarise_runs(rows)).axes)
        1
    """
    if budget is None:
        budgets = [name for name in reversed(BUDGETS) if any(s.budget == name and s.method != FULL for s in summaries)]
        budget = budgets[0] if budgets else BUDGETS[0]
    grid = Grid.of(summaries, budget)
    methods = [method for method in grid.methods if grid.curve(method, network)] or [RANDOM]
    columns = min(_COLUMNS, len(methods))
    n_rows = math.ceil(len(methods) / columns)
    figure = new_figure(2.5 * columns + 0.6, 2.05 * n_rows + (0.5 if title else 0.2))
    if title:
        figure.suptitle(f"{title}\nAs many {budget} as on all images", fontsize=11, color=DARK)
    low, high = grid.limits(network)
    scale = 100 if grid.is_share else 1
    random = grid.curve(RANDOM, network)
    full = None if grid.full is None else grid.full.scored(network)[0]
    for number, method in enumerate(methods):
        axes = figure.add_subplot(n_rows, columns, number + 1)
        curve = grid.curve(method, network)
        if full is not None:
            axes.axhline(scale * full.mean, color=DARK, linewidth=0.9, linestyle=(0, (1, 2)))
        band = [(x, s.low, s.high) for x, s in random if s.low is not None and s.high is not None]
        if method != RANDOM and random:
            axes.plot([100 * x for x, _ in random], [scale * s.mean for _, s in random], color=MUTED, linewidth=1.2)
            if band:
                xs, lows, highs = zip(*band, strict=True)
                axes.fill_between(
                    [100 * x for x in xs],
                    [scale * value for value in lows],
                    [scale * value for value in highs],
                    color=MUTED,
                    alpha=0.22,
                    linewidth=0,
                )
        printed = {} if published is None else published.methods.get(method, {})
        if printed:
            shown = sorted([*printed.items(), (1.0, published.full if published is not None else 0.0)])
            axes.plot(
                [100 * x for x, _ in shown],
                [scale * y for _, y in shown],
                color=ORANGE,
                linestyle="--",
                linewidth=1,
                marker="o",
                markersize=4,
                markerfacecolor="white",
            )
        half = [scale * (s.mean - s.low) if s.low is not None else 0.0 for _, s in curve]
        axes.errorbar(
            [100 * x for x, _ in curve],
            [scale * s.mean for _, s in curve],
            yerr=half,
            color=BLUE,
            marker="o",
            markersize=3.5,
            linewidth=1.5,
            elinewidth=1,
        )
        for x, score in curve:
            if score.mean < low:
                text = f"{scale * score.mean:.1f}"
                axes.plot([100 * x], [scale * low], marker="v", color=BLUE, clip_on=False, markersize=5)
                axes.annotate(text, (100 * x, scale * low), (5, 3), textcoords="offset points", fontsize=7, color=BLUE)
        axes.set_title(readable(method), fontsize=9, color=DARK)
        axes.set_ylim(scale * low, scale * high)
        axes.tick_params(labelsize=7, colors=MUTED)
        axes.grid(alpha=0.3, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if number % columns:
            axes.set_yticklabels([])
        if number >= len(methods) - columns:
            axes.set_xlabel("% kept", fontsize=8, color=MUTED)
    return figure
