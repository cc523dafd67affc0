"""How a budget of images is spread over classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

QUOTAS = ("proportional", "global")


def allocate(
    total: int,
    sizes: npt.NDArray[np.int64],
    low: npt.NDArray[np.int64] | None = None,
    high: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Seats for classes in proportion to their sizes, by largest remainder, within bounds.

    The whole parts of `total * size / sum(sizes)` are given first, then one more each to the largest remainders, ties
    to the lower index. A class that its bounds hold above or below its share is settled first, and the rest is spread
    anew.

    Args:
        total: Seats in all.
        sizes: Shape (C,), what a share is proportional to.
        low: Fewest seats a class may have; 0 if None.
        high: Most seats a class may have; `sizes` if None.

    Returns:
        Seats, shape (C,), adding up to `total`.

    Raises:
        ValueError: If the bounds allow no such spread.

    Example:
        >>> allocate(7, np.array([5, 3, 2])).tolist()
        [4, 2, 1]
    """
    low = np.zeros_like(sizes) if low is None else low
    high = sizes if high is None else high
    if not int(low.sum()) <= total <= int(high.sum()):
        raise ValueError(f"`total` must be between {int(low.sum())} and {int(high.sum())}, got {total}.")
    seats = np.zeros_like(sizes)
    free = np.ones(len(sizes), dtype=bool)
    while free.any():
        rest = total - int(seats[~free].sum())
        shares = _largest_remainder(rest, sizes[free])
        below, above = shares < low[free], shares > high[free]
        if not (below.any() or above.any()):
            seats[free] = shares
            break
        # Settle only the side that is further out, or the seats it frees could push the other out of its bounds again.
        missing, spare = int((low[free] - shares)[below].sum()), int((shares - high[free])[above].sum())
        side, bound = (below, low) if missing >= spare else (above, high)
        settled = np.flatnonzero(free)[side]
        seats[settled] = bound[settled]
        free[settled] = False
    return seats


def _largest_remainder(total: int, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    whole = int(sizes.sum())
    if whole == 0:
        sizes, whole = np.ones_like(sizes), len(sizes)
    seats, remainders = total * sizes // whole, total * sizes % whole
    order = np.argsort(-remainders, kind="stable")
    seats[order[: total - int(seats.sum())]] += 1
    return seats
