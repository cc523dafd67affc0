"""What the paths of each kind of pairs have in common: rates with their bounds, means, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.boundary.pairs import PathPairs
from toolkit.validation import invalid

if TYPE_CHECKING:
    from toolkit.boundary.report import BoundaryReport
    from toolkit.selection import Selection

__all__ = ["METRICS", "redundancy_limit", "summarise", "table_of", "wilson_interval"]

#: What is told of each kind of pairs.
METRICS = ("crossing_rate", "crossings_mean", "reentry_rate", "first_crossing_mean", "margin_min_mean")

#: Selectors whose distances are cosine dissimilarities of feature maps.
_COSINE_SELECTORS = ("SemanticSelector", "FeatureMapSelector")

#: The quantile of the normal distribution that leaves 2.5 % above it.
_Z = 1.959963984540054


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a rate: the rates p with |p - k/n| <= z sqrt(p (1 - p) / n), z = 1.96.

    Unlike the normal approximation it stays within [0, 1] and is right for rates near 0 and small samples.

    Args:
        successes: k, from 0 to n.
        count: n.

    Returns:
        The lower and the upper bound; (0, 1) where n is 0.

    Raises:
        ValueError: If k is not in 0 to n.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Example:
        >>> [round(bound, 4) for bound in wilson_interval(5, 50)]
        [0.0435, 0.2136]
    """
    if not 0 <= successes <= count:
        raise invalid("successes", f"from 0 to the {count} cases", successes)
    if count == 0:
        return 0.0, 1.0
    rate, square = successes / count, _Z**2 / count
    centre = (rate + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(rate * (1 - rate) / count + square / (4 * count))
    # At 0 and at n the bound is that exactly; rounding would leave a trace.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == count else centre + half)


def redundancy_limit(selection: Selection | None) -> float | None:
    """The cosine dissimilarity of feature maps up to which a selection took images for redundant.

    That is its `threshold`, or else the largest distance of a removed image to the one kept for it.

    Args:
        selection: A selection, or None.

    Returns:
        None where there is nothing removed, or where the selector's distances are none of feature maps.
    """
    if selection is None or selection.config.get("selector") not in _COSINE_SELECTORS:
        return None
    threshold = selection.config.get("threshold")
    if threshold is not None:
        return float(threshold)
    known = selection.distance[selection.removed]
    known = known[~np.isnan(known)]
    return float(known.max()) if len(known) else None


def summarise(
    report: BoundaryReport,
    pairs: PathPairs,
    *,
    distances: npt.NDArray[np.float64] | None = None,
    limit: float | None = None,
) -> list[dict[str, Any]]:
    """Rates and means of the paths of each kind of pairs.

    | key | of the kind's n paths |
    |---|---|
    | `stratum`, `n` | the kind's name, how many paths |
    | `crossing_rate` | share with a crossing at all |
    | `crossing_rate_low`, `crossing_rate_high` | its 95 % bounds, see `wilson_interval` |
    | `crossings_mean` | crossings a path |
    | `reentry_rate` | share that comes back to a class it has left |
    | `first_crossing_mean` | where the first crossing is, in [0, 1], of those with one; NaN if there are none |
    | `margin_min_mean` | smallest margin on a path; NaN where the model gives classes only |
    | `feature_distance_mean` | dissimilarity of both ends' feature maps, where `distances` are given |
    | `still_redundant` | of `redundant` pairs, the share with a distance within `limit`, where both are given |

    Args:
        report: What `probe_paths` found on P paths.
        pairs: Their pairs, in the same order.
        distances: float64 of shape (P,), dissimilarities of the feature maps of both ends; NaN where not known.
        limit: Up to which of them images count as redundant, see `redundancy_limit`.

    Returns:
        One dictionary a kind, in the order of `pairs.strata`; kinds without a path are left out.

    Raises:
        ValueError: If there are not as many pairs, or distances, as paths.

    Example:
        >>> import torch
        >>> from toolkit.boundary.paths import probe_paths
        >>> images = torch.tensor([[-1.0], [-2.0], [3.0]])
        >>> pairs = PathPairs(np.array([0, 0]), np.array([1, 2]), np.array([0, 0]), ("random",))
        >>> report = probe_paths(lambda x: torch.cat([-x, x], 1), images[pairs.first], images[pairs.second])
        >>> [row] = summarise(report, pairs)
        >>> row["stratum"], row["crossing_rate"], round(row["first_crossing_mean"], 3)
        ('random', 0.5, 0.25)
    """
    if distances is not None and len(distances) != len(pairs):
        raise invalid("distances", f"one for each of the {len(pairs)} pairs", f"{len(distances)}")
    if len(report) != len(pairs):
        raise invalid("pairs", f"those of the report's {len(report)} paths", f"{len(pairs)} pairs")
    rows: list[dict[str, Any]] = []
    crossings, first, margins = report.num_crossings, report.first_crossing, np.asarray(report.margin_min, np.float64)
    for code, name in enumerate(pairs.strata):
        own = pairs.stratum == code
        n = int(own.sum())
        if n == 0:
            continue
        crossed = int((crossings[own] > 0).sum())
        low, high = wilson_interval(crossed, n)
        rows.append(
            {
                "stratum": name,
                "n": n,
                "crossing_rate": crossed / n,
                "crossing_rate_low": low,
                "crossing_rate_high": high,
                "crossings_mean": float(crossings[own].mean()),
                "reentry_rate": float(report.reenters[own].mean()),
                "first_crossing_mean": _mean_of_known(first[own]),
                "margin_min_mean": float(margins[own].mean()),
            }
        )
        if distances is not None:
            rows[-1]["feature_distance_mean"] = _mean_of_known(distances[own])
            if name == "redundant" and limit is not None:
                rows[-1]["still_redundant"] = float((distances[own] <= limit).mean())
    return rows


def table_of(summary: Sequence[dict[str, Any]]) -> str:
    """The rates of `summarise` as a table of text.

    Example:
        >>> known = {"crossings_mean": 1.5, "reentry_rate": 0.25, "first_crossing_mean": 0.5, "margin_min_mean": 0.75}
        >>> row = {"stratum": "random", "n": 4, "crossing_rate": 0.5, "crossing_rate_low": 0.15,
        ...        "crossing_rate_high": 0.85, **known}
        >>> print(table_of([row]))
        pairs   paths  with a crossing        crossings  come back  first crossing  least margin
        random      4  50.0 % (15.0 to 85.0)       1.50     25.0 %           0.500          0.75
    """
    rows = [("pairs", "paths", "with a crossing", "crossings", "come back", "first crossing", "least margin")]
    rows += [
        (
            row["stratum"],
            f"{row['n']:,}",
            f"{100 * row['crossing_rate']:.1f} % ({100 * row['crossing_rate_low']:.1f} to "
            f"{100 * row['crossing_rate_high']:.1f})",
            f"{row['crossings_mean']:.2f}",
            f"{100 * row['reentry_rate']:.1f} %",
            "" if math.isnan(row["first_crossing_mean"]) else f"{row['first_crossing_mean']:.3f}",
            "" if math.isnan(row["margin_min_mean"]) else f"{row['margin_min_mean']:.2f}",
        )
        for row in summary
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    to_the_left = (0, 2)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in to_the_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _mean_of_known(values: npt.NDArray[np.float64]) -> float:
    """The mean of those that are not NaN, or NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
