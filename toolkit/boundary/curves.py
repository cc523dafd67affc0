"""Curves of how often paths cross a boundary: while a model trains, and the more images are removed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.boundary.strata import wilson_interval
from toolkit.drawing import BLUE, DARK, MUTED, ORANGE, fit, new_figure
from toolkit.validation import invalid, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_boundary_curves", "plot_crossing_curve"]

#: What the panels show, in this order; anything else in a history comes after them under its own name.
_METRICS = {
    "crossing_rate": "paths with a crossing",
    "reentry_rate": "paths that come back to a class",
    "crossings_mean": "crossings a path, mean",
    "first_crossing_mean": "position of the first crossing, mean",
    "margin_min_mean": "smallest margin on a path, mean",
    "feature_distance_mean": "distance of the ends' features, mean",
    "still_redundant": "redundant pairs that still are",
}
#: Those that are shares of `n` pairs.
_RATES = ("crossing_rate", "reentry_rate", "still_redundant")
#: Colours of Okabe and Ito, and shapes, so that lines are told apart without colour.
_LINES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
    ("#333333", "X"),
)
#: Behind what is no epoch.
_SHADE = "#ececec"
_Floats = npt.NDArray[np.float64]


def plot_boundary_curves(
    history: Sequence[Mapping[str, Any]],
    metric: str | Sequence[str] | None = None,
    *,
    before: int = -1,
    title: str = "Decision boundaries between images while the model trains",
) -> Figure:
    """How the crossings of each stratum change from epoch to epoch, one panel a metric, one line a stratum.

    Shares (`crossing_rate`, `reentry_rate`, `still_redundant`) of n pairs come with a band, their 95 % interval, see
    `toolkit.boundary.strata.wilson_interval`.

    Args:
        history: One dictionary for each epoch and stratum: `epoch`, `stratum`, `n` (pairs; only shares need it) and
            values by the name of their metric: `crossing_rate`, `reentry_rate`, `crossings_mean`,
            `first_crossing_mean`, `margin_min_mean`, or any other. A value that is absent, None or NaN leaves a gap.
        metric: The metric or metrics to show; None for those of the list above that have values, then any other number
            in the history, save bounds (names that end in `_low` or `_high`).
        before: The number of the epoch that stands for the model before training, if it occurs; it is marked.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If the history is empty, a row lacks its epoch or stratum, an epoch has two rows of one stratum, a
            metric has no values, or a share lies outside [0, 1] or has no n of at least 1.
    """
    from matplotlib.patches import Patch

    series = _series(history)
    metrics = _chosen_metrics(history, metric)
    columns = min(len(metrics), 3 if len(metrics) != 4 else 2)
    rows = -(-len(metrics) // columns)
    figure = new_figure(0.5 + (4.0 if columns > 1 else 6.0) * columns, 1.1 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    epochs = sorted({int(row["epoch"]) for row in history})
    handles: dict[str, Any] = {}
    for axes, name in zip(grid, metrics, strict=False):
        _draw_panel(axes, name, series, epochs, before, handles)
    for axes in grid[len(metrics) :]:
        axes.axis("off")
    if before in epochs:
        handles["before training"] = Patch(color=_SHADE)
    figure.suptitle(title, fontsize=12, color=DARK, parse_math=False)
    legend = figure.legend(
        handles=list(handles.values()),
        labels=[fit(name, 2.2, 9) for name in handles],
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(float(figure.get_figwidth()) / 1.9))),
        frameon=False,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_panel(
    axes: Any,
    name: str,
    series: dict[str, list[Mapping[str, Any]]],
    epochs: list[int],
    before: int,
    handles: dict[str, Any],
) -> None:
    """One metric of all strata; lines that are new go to `handles`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lowest, highest = np.inf, 0.0
    for number, (stratum, rows) in enumerate(series.items()):
        color, shape = _LINES[number % len(_LINES)]
        x = np.array([row["epoch"] for row in rows], np.float64)
        y = np.array([_value(row, name) for row in rows])
        # The strata of a single epoch stand side by side.
        shift = 0.1 * (number - (len(series) - 1) / 2) if len(epochs) == 1 else 0.0
        low = high = y
        if name in _RATES:
            low, high = _bounds(y, np.array([_pairs_of(row, name) for row in rows]))
        if not np.isfinite(y).any():
            continue
        lowest, highest = min(lowest, float(np.nanmin(low))), max(highest, float(np.nanmax(high)))
        look: dict[str, Any] = {"color": color, "linewidth": 1.6, "marker": shape, "zorder": 3}
        look |= {"markersize": 4.5 if len(epochs) <= 40 else 2, "markeredgecolor": "white", "markeredgewidth": 0.4}
        for part in (x == before, x != before):  # training is no line from before to after its first epoch
            if not part.any():
                continue
            handles[stratum] = axes.plot(x[part] + shift, y[part], **look)[0]
            if name in _RATES and part.sum() == 1:
                axes.vlines(x[part] + shift, low[part], high[part], color=color, alpha=0.4, linewidth=2.5)
            elif name in _RATES:
                axes.fill_between(x[part], low[part], high[part], color=color, alpha=0.11, linewidth=0)
    axes.set_title(_METRICS.get(name, name), fontsize=9.5, color=DARK, parse_math=False)
    if name in _RATES:
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        highest = min(highest, 0.99)
    if name == "first_crossing_mean":
        axes.set_ylim(0, 1)
    elif lowest >= 0:
        axes.set_ylim(-0.025 * (highest or 1.0), 1.04 * (highest or 1.0))
    if before in epochs:
        axes.axvspan(before - 0.5, before + 0.5, color=_SHADE, linewidth=0, zorder=0)
    ticks = MaxNLocator(nbins=8, integer=True, min_n_ticks=1).tick_values(
        0 if before in epochs else epochs[0], epochs[-1]
    )
    axes.set_xticks([tick for tick in ticks if epochs[0] <= tick <= epochs[-1]])
    room = 0.5 if before in epochs or len(epochs) == 1 else 0.03 * (epochs[-1] - epochs[0])
    axes.set_xlim(epochs[0] - room, epochs[-1] + room)
    axes.set_xlabel("epoch", fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _percent(value: float, _place: int | None = None) -> str:
    """A tick's share as text."""
    return f"{100 * value:g} %"


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each stratum by epoch, strata in the order of their first row."""
    if not len(history):
        raise invalid("history", "at least one row", "none")
    series: dict[str, dict[int, Mapping[str, Any]]] = {}
    for place, row in enumerate(history):
        missing = [key for key in ("epoch", "stratum") if key not in row]
        if missing:
            raise invalid("history", "rows with `epoch` and `stratum`", f"row {place} without {missing[0]}")
        of_stratum = series.setdefault(str(row["stratum"]), {})
        if int(row["epoch"]) in of_stratum:
            raise invalid("history", "one row an epoch and stratum", f"two of epoch {row['epoch']}, {row['stratum']}")
        of_stratum[int(row["epoch"])] = row
    return {stratum: [rows[epoch] for epoch in sorted(rows)] for stratum, rows in series.items()}


def _chosen_metrics(history: Sequence[Mapping[str, Any]], metric: str | Sequence[str] | None) -> list[str]:
    """The metrics to show, each with a value somewhere."""
    present = {name: None for row in history for name in row if math.isfinite(_value(row, name))}
    values = [name for name in present if name not in {"epoch", "n"} and not name.endswith(("_low", "_high"))]
    if metric is None:
        chosen = [name for name in _METRICS if name in values] + [name for name in values if name not in _METRICS]
        if not chosen:
            raise invalid("history", "rows with values", "none")
        return chosen
    chosen = [metric] if isinstance(metric, str) else list(metric)
    absent = [name for name in chosen if name not in values]
    if absent or not chosen:
        raise invalid("metric", f"among those of the history, {shorten(values, 10)}", absent[0] if absent else chosen)
    return chosen


def _value(row: Mapping[str, Any], name: str) -> float:
    """A value of a row as a number, NaN where there is none."""
    value = row.get(name)
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    return math.nan


def _pairs_of(row: Mapping[str, Any], name: str) -> float:
    """The number of pairs that a share is of; NaN where there is no share."""
    share, count = _value(row, name), _value(row, "n")
    if math.isnan(share):
        return math.nan
    if not 0 <= share <= 1:
        raise invalid("history", f"shares in [0, 1] as `{name}`", share)
    if not count >= 1:
        raise invalid("history", f"rows with their number of pairs `n` beside `{name}`", row.get("n"))
    return count


def _bounds(share: _Floats, count: _Floats) -> tuple[_Floats, _Floats]:
    """Bounds of the 95 % Wilson interval of shares of so many; NaN where there is no share."""
    found = np.full((2, len(share)), np.nan)
    for place in np.flatnonzero(np.isfinite(share)):
        found[:, place] = wilson_interval(round(share[place] * count[place]), int(count[place]))
    return found[0], found[1]


def plot_crossing_curve(
    curve: Mapping[str, Any], *, title: str = "How often the model changes its mind on the way to the representative"
) -> Figure:
    """The crossing rate of removed images against the share removed, with the limit that decides how many go.

    Args:
        curve: `removed_fraction`, `rate`, `low`, `high`: lists of the same length with the share of images removed,
            ascending in [0, 1], and the share of their paths to their representatives that cross, with its 95 %
            interval; `base_rate` (of the safest images), `random_rate` (of random pairs of one class) and `limit`
            between them; `chosen`: the share that was chosen, or None where nothing could be removed, and
            `chosen_low` and `chosen_high`, its interval, which may be None or absent.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If a key is missing, lists are empty or differ in length, shares leave [0, 1], the removed shares
            do not ascend, or an interval does not hold its value.
    """
    from matplotlib.ticker import FuncFormatter

    x, rate, low, high = _check_curve(curve)
    chosen = curve["chosen"]
    interval = [curve.get(name) for name in ("chosen_low", "chosen_high")]
    figure = new_figure(8.0, 4.8)
    axes = figure.subplots()
    axes.fill_between(x, low, high, color=BLUE, alpha=0.16, linewidth=0, label="95 % interval")
    dots = "o" if len(x) <= 40 else ""
    axes.plot(x, rate, color=BLUE, linewidth=2, marker=dots, markersize=3.5, label="of the images removed")
    levels = {
        "random pairs\nof one class": (float(curve["random_rate"]), MUTED, (0, (1, 2))),
        "limit": (float(curve["limit"]), ORANGE, (0, (5, 3))),
        "safest images": (float(curve["base_rate"]), MUTED, (0, (1, 2))),
    }
    top = 1.12 * max(float(high.max()), *(level for level, _, _ in levels.values()), 0.01)
    axes.set_ylim(0, top)
    axes.set_xlim(0, min(1.0, 1.04 * float(x[-1])) or 1.0)
    for level, color, dashes in levels.values():
        axes.axhline(level, color=color, linestyle=dashes, linewidth=1.3)
    places = _apart([level for level, _, _ in levels.values()], 0.085 * axes.get_ylim()[1])
    for (name, (level, color, _)), place in zip(levels.items(), places, strict=True):
        axes.annotate(
            f"{name}  {100 * level:.1f} %",
            (1.0, place),
            (6, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
            annotation_clip=False,
        )
    back = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    if chosen is not None:
        within = None not in interval
        if within:
            axes.axvspan(*(float(bound or 0) for bound in interval), color=ORANGE, alpha=0.14, linewidth=0)
        axes.axvline(chosen, color=ORANGE, linewidth=1.6)
        text = f"{100 * chosen:.1f} % removed"
        if within:
            text += "\n({:.1f} to {:.1f} %)".format(*(100 * float(bound or 0) for bound in interval))
        left = chosen < 0.6 * axes.get_xlim()[1]
        edge = max(chosen, float(interval[1] or 0)) if left else min(chosen, float(interval[0] or chosen))
        axes.annotate(
            text,
            (edge, 0.74),
            (6 if left else -6, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="left" if left else "right",
            va="center",
            fontsize=10,
            fontweight="bold",
            color=ORANGE,
            bbox=back,
        )
    else:
        axes.text(
            0.5, 0.84, "nothing is removed", transform=axes.transAxes, ha="center", fontweight="bold", color=ORANGE
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel("images removed")
    axes.set_ylabel("paths that cross a boundary")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _check_curve(curve: Mapping[str, Any]) -> list[_Floats]:
    """The four lists of a curve as arrays."""
    lists, numbers = ("removed_fraction", "rate", "low", "high"), ("base_rate", "random_rate", "limit")
    for name in (*lists, *numbers, "chosen"):
        if name not in curve:
            raise invalid("curve", f"one with {shorten([*lists, *numbers, 'chosen'], 8)}", f"one without {name}")
    arrays = [np.asarray(curve[name], np.float64) for name in lists]
    if arrays[0].ndim != 1 or not len(arrays[0]) or any(array.shape != arrays[0].shape for array in arrays):
        raise invalid("curve", "lists of one length, at least 1", [array.shape for array in arrays])
    singles = {name: curve.get(name) for name in (*numbers, "chosen", "chosen_low", "chosen_high")}
    known = {name: float(np.float64(value)) for name, value in singles.items() if value is not None or name in numbers}
    for name, values in [*zip(lists, arrays, strict=True), *known.items()]:
        shares = np.asarray(values)
        if not ((shares >= 0) & (shares <= 1)).all():
            raise invalid("curve", f"one with `{name}` in [0, 1]", shares.tolist())
    if (np.diff(arrays[0]) <= 0).any():
        raise invalid("curve", "one with an ascending `removed_fraction`", arrays[0].tolist())
    if (arrays[2] > arrays[1]).any() or (arrays[1] > arrays[3]).any():
        raise invalid("curve", "one with `low` <= `rate` <= `high`", "bounds that do not hold the rate")
    if "chosen" in known:
        bounds = [known.get(name, known["chosen"]) for name in ("chosen_low", "chosen", "chosen_high")]
        if bounds != sorted(bounds):
            raise invalid("curve", "one with `chosen_low` <= `chosen` <= `chosen_high`", bounds)
    return arrays


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Places near some values, in the same order from below, at least so far apart and not below half of that."""
    order = np.argsort(values, kind="stable")
    places = np.array(values, np.float64)
    below = -least / 2
    for place in order:
        places[place] = max(places[place], below + least)
        below = places[place]
    return [float(place) for place in places]
