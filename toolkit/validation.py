"""Checks of what callers pass in, with errors that name the argument, what it must be and what it was."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: Rows looked at in one go, so that checking a memory-mapped file never loads it whole.
_CHUNK_ELEMENTS = 1 << 24


def invalid(name: str, must: str, got: object) -> ValueError:
    """The error for a value that is not allowed.

    Args:
        name: The argument's name.
        must: What the argument must be, to complete "must be ...".
        got: The value that was passed.

    Example:
        >>> raise invalid("keep_fraction", "in (0, 1]", 1.5)
        Traceback (most recent call last):
        ValueError: `keep_fraction` must be in (0, 1], got 1.5.
    """
    return ValueError(f"`{name}` must be {must}, got {got!r}.")


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """`value` if it is one of `choices`, an error that lists them otherwise."""
    if value not in choices:
        raise invalid(name, "one of " + ", ".join(repr(choice) for choice in choices), value)
    return value


def check_fraction(name: str, value: float) -> float:
    """`value` as a float if it lies in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number in (0, 1], got {value!r}.")
    if not 0.0 < float(value) <= 1.0:
        raise invalid(name, "in (0, 1]", value)
    return float(value)


def fraction_of(fraction: float, count: int) -> int:
    """`floor(fraction * count)`, the product first rounded to 9 decimals so that 0.29 of 100 is 29.

    Example:
        >>> fraction_of(0.29, 100)
        29
    """
    return math.floor(round(fraction * count, 9))


def check_vectors(vectors: Any, name: str = "features", *, nonzero: bool = False) -> npt.NDArray[Any]:
    """`vectors` as a finite, non-empty floating-point matrix of shape (N, D), without a copy where it is one already.

    Args:
        vectors: An array, tensor or memory map of shape (N, D).
        name: What to call it in an error.
        nonzero: Also refuse rows of zeros, which have no direction under the cosine.

    Raises:
        ValueError: If the shape is not (N, D) with N and D at least 1, if a value is NaN or infinite (the error gives
            the number of such rows and the first), or if a row is zero and `nonzero` is set.
        TypeError: If the values are not real numbers.
    """
    matrix: npt.NDArray[Any] = np.asanyarray(vectors)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise invalid(name, "a non-empty matrix of shape (N, D)", f"an array of shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got dtype {matrix.dtype}.")
    if matrix.dtype.kind != "f":
        matrix = matrix.astype(np.float64)
    rows = max(1, _CHUNK_ELEMENTS // matrix.shape[1])
    bad: list[int] = []
    zero: list[int] = []
    count_bad = count_zero = 0
    for start in range(0, len(matrix), rows):
        block = matrix[start : start + rows]
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            found = np.flatnonzero(~finite)
            count_bad += len(found)
            bad.append(start + int(found[0]))
        if nonzero:
            empty = ~block.any(axis=1)
            if empty.any():
                found = np.flatnonzero(empty)
                count_zero += len(found)
                zero.append(start + int(found[0]))
    if bad:
        raise ValueError(
            f"`{name}` must be finite, got NaN or infinite values in {count_bad} of {len(matrix)} rows, "
            f"the first at index {bad[0]}."
        )
    if zero:
        raise ValueError(
            f"`{name}` must have no zero rows under the cosine (they have no direction), got {count_zero} of "
            f"{len(matrix)}, the first at index {zero[0]}."
        )
    return matrix


def shorten(items: Sequence[object], most: int = 5) -> str:
    """The first items of a list in words, with the number of those left out.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
