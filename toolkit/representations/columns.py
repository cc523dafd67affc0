"""The most independent columns of a matrix of vectors, by rank-revealing QR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from scipy.linalg import blas, lapack
from scipy.sparse.linalg import LinearOperator, eigsh
from tqdm.auto import tqdm

from toolkit.reproducibility import full_precision
from toolkit.validation import invalid

__all__ = ["ColumnChoice", "independent_columns"]

#: Condition numbers up to which the Gram matrix, whose own is the square, decides: 1e12 leaves float64 four digits, and
#: the condition number that is reported is refined with the matrix itself.
_GRAM_LIMIT = 1e6
#: Matrices with at most this many values are factorised as a whole.
_SMALL = 1 << 20
#: Numbers converted to float64 at a time.
_CHUNK_ELEMENTS = 1 << 23
#: Triangular factors with at most this many columns have all their singular values computed.
_DENSE = 256

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ColumnChoice:
    """Columns of a matrix that are independent enough, and what else was found of its columns.

    Args:
        columns: int64 of shape (m,): the chosen columns, the most independent first.
        condition: Condition number of these columns, in the 2-norm.
        pivots: int64 of shape (r,): all columns in the order in which pivoted QR takes them, as far as they are
            numerically independent; `columns` are its first m.
        zero: int64: columns of zeros, which were left out.
        duplicate: int64: columns equal to one before them, which were left out.

    Example:
        >>> choice = independent_columns([[1.0, 0.0, 1.0, 0.1], [1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 3.0]])
        >>> choice.columns.tolist(), choice.zero.tolist(), choice.duplicate.tolist(), round(choice.condition, 3)
        ([3, 0], [1], [2], 2.882)
    """

    columns: _Ints
    condition: float
    pivots: _Ints
    zero: _Ints
    duplicate: _Ints


def independent_columns(matrix: npt.ArrayLike, max_condition: float = 1e5, *, progress: bool = False) -> ColumnChoice:
    """Choose the most independent columns of a matrix: as many as keep their condition number below a bound.

    QR with column pivoting orders the columns: next is always the one with most left after those before it are
    projected out (ties go to the lowest index). Of that order the first m columns are chosen, where m is the largest
    number with `cond(matrix[:, pivots[:m]]) < max_condition`. Zero columns and repetitions are left out before.

    Nothing is sampled, and the matrix is read in blocks of rows: memory is that of a few matrices of shape (D, D). Up
    to bounds of 1e6 (3e7 / sqrt(D) for more than 1,000 columns), and above where all columns stay below that, the
    pivots and the triangular factor come from a pivoted Cholesky factorisation of the Gram matrix, and the condition
    number is refined with the matrix itself. For larger bounds the triangular factor is computed block by block with
    Householder's reflections, which takes longer.
    Columns whose remainders are equal but for rounding may be ordered differently by different routines.

    uint8 values, and float32 values that are uint8 values divided by 255, are taken as the integers that they are,
    whose Gram matrix is exact; the common divisor changes neither pivots nor condition numbers.

    Args:
        matrix: Shape (N, D), real numbers; an array, a tensor or a memory map.
        max_condition: The bound, above 1.
        progress: Whether to show a progress bar.

    Returns:
        The choice; it has at least one column.

    Raises:
        ValueError: If the matrix is not (N, D), has NaN or infinite values or only zeros, or if `max_condition` is not
            above 1.
        TypeError: If the values are not real numbers.

    References:
        Chan, "Rank revealing QR factorizations", 1987. Yousefzadeh, "Using wavelets to analyze similarities in image
        datasets", arXiv 2002.10257, Algorithm 1. Higham, "Analysis of the Cholesky decomposition of a semi-definite
        matrix", 1990, on the pivoted Cholesky factor.

    Example:
        >>> import numpy as np
        >>> x = np.array([[3.0, 1.0, 3.001], [0.0, 1.0, 0.0], [0.0, 0.0, 0.001]])
        >>> independent_columns(x, max_condition=100).columns.tolist()
        [2, 1]
        >>> independent_columns(x, max_condition=1e5).columns.tolist()
        [2, 1, 0]
    """
    if isinstance(max_condition, bool) or not isinstance(max_condition, (int, float, np.number)):
        raise TypeError(f"`max_condition` must be a number above 1, got {max_condition!r}.")
    if not max_condition > 1:
        raise invalid("max_condition", "above 1", max_condition)
    source = _Source(_as_matrix(matrix), progress=progress)
    if len(source.active) == 0:
        raise invalid("matrix", "not all zeros", f"{source.values.shape[1]} columns of zeros")
    bound = float(max_condition)
    factor: _Floats | None = None
    if source.is_tall:
        factor, pivots = source.by_gram()
        # It ends where remainders are as small as rounding, which says nothing of larger bounds than this.
        limit = min(_GRAM_LIMIT, 0.5 / float(np.sqrt(len(source.active) * np.finfo(float).eps)))
        complete = len(pivots) == len(source.active)
        if bound > limit and not (complete and _condition(factor, len(pivots))[0] < limit):
            factor = None
    if exact := factor is None:
        factor, pivots = source.by_reflections()
    m, condition = _largest(factor, bound, None if exact else lambda m, vector: source.length(pivots[:m], vector))
    return ColumnChoice(source.active[pivots[:m]], condition, source.active[pivots], source.zero, source.duplicate)


def _as_matrix(matrix: npt.ArrayLike) -> npt.NDArray[Any]:
    """The matrix as an array, without a copy where it is one."""
    if isinstance(matrix, torch.Tensor):
        matrix = matrix.detach().cpu().numpy()
    values: npt.NDArray[Any] = np.asanyarray(matrix)
    if values.ndim != 2 or 0 in values.shape:
        raise invalid("matrix", "a non-empty matrix of shape (N, D)", f"an array of shape {values.shape}")
    if values.dtype.kind not in "fiub":
        raise TypeError(f"`matrix` must hold real numbers, got dtype {values.dtype}.")
    return values


class _Source:
    """A matrix that is read in blocks of rows, without its columns of zeros and repetitions.

    Attributes:
        active: The other columns.
        zero: Columns of zeros.
        duplicate: Columns equal to one before them.
    """

    def __init__(self, values: npt.NDArray[Any], *, progress: bool) -> None:
        self.values = values
        self.progress = progress
        n_rows, n_columns = values.shape
        self.rows = max(1, min(n_rows, _CHUNK_ELEMENTS // n_columns))
        hashes = np.zeros(n_columns, np.uint64)
        largest = np.zeros(n_columns)
        self.is_integer = values.dtype in (np.uint8, np.float32)
        for block in self._read("columns: examining"):
            extent = np.maximum(block.max(axis=0), -block.min(axis=0).astype(np.float64))
            if not np.isfinite(extent).all():
                self._refuse_infinite()
            np.maximum(largest, extent, out=largest)
            self.is_integer = self.is_integer and _are_pixels(block)
            # Zero is added as negative zeros are equal to others but for their bits.
            bits = np.ascontiguousarray(block + block.dtype.type(0)).view(f"u{block.dtype.itemsize}")
            _hash_columns(bits, hashes)
        # A power of two, so that squares stay in range and nothing is rounded.
        self.scale = 1.0 if self.is_integer else float(np.ldexp(1.0, -int(np.frexp(largest.max())[1])))
        self.zero: _Ints = np.flatnonzero(largest == 0)
        self.duplicate = self._repetitions(hashes, largest)
        self.active: _Ints = np.setdiff1d(np.arange(n_columns), np.concatenate([self.zero, self.duplicate]))

    @property
    def is_tall(self) -> bool:
        """Whether the matrix has more rows than columns, and is large enough for that to matter."""
        return self.values.shape[0] > len(self.active) and self.values.size > _SMALL

    def by_gram(self) -> tuple[_Floats, _Ints]:
        """The triangular factor of the matrix with its columns pivoted, and the pivots, by way of the Gram matrix.

        Returns:
            The upper triangular factor, shape (r, r), and the pivots, shape (r,), where rounding ends it at rank r.
        """
        gram = self._integer_gram() if self.is_integer else self._gram()
        # Fails silently for matrices of low rank, which end early.
        factor, pivots, rank, _ = lapack.dpstrf(gram, lower=0, overwrite_a=1)
        return _leading(factor, int(rank)), pivots[:rank].astype(np.int64) - 1

    def by_reflections(self) -> tuple[_Floats, _Ints]:
        """The same by Householder's reflections, which keep all digits: of block after block under the last factor."""
        n_rows, n_columns = self.values.shape[0], len(self.active)
        factor: npt.NDArray[Any]
        if self.is_tall:
            factor = np.empty((0, n_columns))
            self.rows = max(self.rows, 2 * n_columns)
            for block in self._converted("columns: factorising"):
                stack = np.asfortranarray(np.concatenate([factor, block]))
                factor = scipy.linalg.qr(stack, mode="r", overwrite_a=True, check_finite=False)[0][:n_columns]
        else:
            factor = np.concatenate(list(self._converted("columns: factorising")))
        factor, pivots = scipy.linalg.qr(factor, mode="r", pivoting=True, overwrite_a=True, check_finite=False)
        diagonal = np.abs(np.diagonal(factor))
        # Not increasing but for rounding.
        small = np.flatnonzero(diagonal <= max(n_rows, n_columns) * np.finfo(float).eps * diagonal[0])
        rank = int(small[0]) if len(small) else len(diagonal)
        return _leading(factor, rank), pivots[:rank].astype(np.int64)

    def length(self, pivots: _Ints, vector: _Floats) -> float:
        """Length of the product of some columns and a vector."""
        whole = np.zeros(len(self.active))
        whole[pivots] = vector
        total = 0.0
        for block in self._converted(None):
            product = block @ whole
            total += float(product @ product)
        return float(np.sqrt(total))

    def _read(self, what: str | None) -> Iterator[npt.NDArray[Any]]:
        """Blocks of rows of all columns, as uint8, float32 or float64."""
        kept = self.values.dtype in (np.uint8, np.float32)
        n_rows = len(self.values)
        with tqdm(total=n_rows, unit="row", desc=what, disable=not self.progress or what is None) as bar:
            for start in range(0, n_rows, self.rows):
                block = self.values[start : start + self.rows]
                yield block if kept else block.astype(np.float64, copy=False)
                bar.update(len(block))

    def _converted(self, what: str | None) -> Iterator[_Floats]:
        """The active columns in float64: integers where they are such, otherwise scaled to be at most 1."""
        every = len(self.active) == self.values.shape[1]
        for block in self._read(what):
            chosen = block if every else block[:, self.active]
            if not self.is_integer:
                yield np.multiply(chosen, self.scale, dtype=np.float64)
            else:
                whole = chosen if chosen.dtype == np.uint8 else np.rint(chosen * np.float32(255))
                yield whole.astype(np.float64)

    def _gram(self) -> _Floats:
        """The upper triangle of the Gram matrix."""
        size = len(self.active)
        gram = np.zeros((size, size), order="F")
        for block in self._converted("columns: Gram matrix"):
            gram = blas.dsyrk(1.0, block.T, beta=1.0, c=gram, overwrite_c=1)
        return gram

    def _integer_gram(self) -> _Floats:
        """The upper triangle of the Gram matrix of integers in 0 to 255, exactly, in half the time.

        Less 128, and in blocks of few enough rows, sums of products stay below 2^24, where float32 is exact.
        """
        size = len(self.active)
        gram = np.zeros((size, size))
        sums = np.zeros(size)
        edges = np.linspace(0, size, max(1, min(6, size // 256)) + 1).astype(int)
        product = torch.empty(size * int(np.diff(edges).max()))
        for block in self._converted("columns: Gram matrix"):
            sums += block.sum(axis=0)
            block -= 128
            whole = block.astype(np.float32)
            # All products of two columns are at most the largest sum of squares.
            rows = len(whole) if np.einsum("ij,ij->j", block, block).max() <= 1 << 24 else 1024
            for start in range(0, len(whole), rows):
                part = torch.from_numpy(whole[start : start + rows])
                for low, high in pairwise(edges):
                    view = product[: (high - low) * (size - low)].view(high - low, size - low)
                    with full_precision():
                        torch.mm(part[:, low:high].T, part[:, low:], out=view)
                    gram[low:high, low:] += view.numpy()
        gram += 128 * (sums[:, None] + sums - 128.0 * len(self.values))
        return np.asfortranarray(gram)

    def _repetitions(self, hashes: npt.NDArray[np.uint64], largest: _Floats) -> _Ints:
        """Columns equal to one before them."""
        _, firsts, group = np.unique(hashes, return_index=True, return_inverse=True)
        columns = np.flatnonzero((firsts[group] != np.arange(len(hashes))) & (largest > 0))
        same = np.ones(len(columns), np.bool_)
        if len(columns):
            # Equal bits have equal hashes, but not only they.
            for block in self._read(None):
                same &= (block[:, columns] == block[:, firsts[group[columns]]]).all(axis=0)
        return columns[same]

    def _refuse_infinite(self) -> None:
        count = 0
        first = -1
        for start in range(0, len(self.values), self.rows):
            bad = np.flatnonzero(~np.isfinite(self.values[start : start + self.rows]).all(axis=1))
            count += len(bad)
            first = start + int(bad[0]) if len(bad) and first < 0 else first
        raise ValueError(
            f"`matrix` must be finite, got NaN or infinite values in {count} of {len(self.values)} rows, the first at "
            f"index {first}."
        )


def _are_pixels(block: npt.NDArray[Any]) -> bool:
    """Whether all values are integers in 0 to 255, or such divided by 255, as float32."""
    if block.dtype == np.uint8:
        return True
    for part in (block[:1], block):
        nearest = np.rint(part * np.float32(255))
        if nearest.min() < 0 or nearest.max() > 255 or not np.array_equal(nearest / np.float32(255), part):
            return False
    return True


def _kernel(function: _F) -> _F:
    """Compile `function` for one thread."""
    try:
        return cast("_F", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        # No folder to keep compiled code in can be written to: it is compiled anew in every process.
        return cast("_F", numba.njit(nogil=True)(function))


@_kernel
def _hash_columns(bits: Any, hashes: Any) -> None:
    """Go on with the hash of each column."""
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            hashes[j] = (hashes[j] ^ np.uint64(bits[i, j])) * np.uint64(0x9E3779B97F4A7C15)
            hashes[j] ^= hashes[j] >> np.uint64(29)


def _leading(factor: _Floats, m: int) -> _Floats:
    """A copy of the leading block, in the layout that LAPACK takes without another copy."""
    return np.asfortranarray(np.triu(factor[:m, :m]))


def _condition(factor: _Floats, m: int) -> tuple[float, float, _Floats]:
    """The condition number of the leading block of a triangular factor.

    Returns:
        The condition number, the largest singular value, and the right singular vector of the smallest, shape (m,).
    """
    block = factor[:m, :m]
    if m <= _DENSE:
        _, values, right = np.linalg.svd(block)
        return float(values[0] / values[-1]) if values[-1] > 0 else np.inf, float(values[0]), right[-1]
    block = np.asfortranarray(block)
    # Any fixed start that is hardly orthogonal to what is looked for; the result does not depend on it.
    start = np.random.default_rng(0).standard_normal(m)

    def square(vector: _Floats) -> _Floats:
        return blas.dtrmv(block, blas.dtrmv(block, vector.ravel()), trans=1)

    def inverse(vector: _Floats) -> _Floats:
        return blas.dtrsv(block, blas.dtrsv(block, vector.ravel(), trans=1))

    extremes = []
    for product in (square, inverse):
        operator = LinearOperator((m, m), matvec=product, dtype=np.float64)
        extremes.append(eigsh(operator, k=1, which="LA", v0=start, tol=1e-9))
    largest = float(np.sqrt(extremes[0][0][0]))
    return largest * float(np.sqrt(extremes[1][0][0])), largest, extremes[1][1][:, 0]


def _largest(factor: _Floats, bound: float, length: Callable[[int, _Floats], float] | None) -> tuple[int, float]:
    """The largest m whose leading block has a condition number below the bound, and that condition number.

    Args:
        factor: Upper triangular, shape (r, r).
        bound: Above 1.
        length: Gives the length of the product of the first m pivoted columns of the matrix and a vector, where the
            factor is less exact than the matrix; None where it is not.
    """

    def refined(m: int) -> float:
        estimate, largest, vector = _condition(factor, m)
        # The vector is that of an approximate factor, but in the length of its image that counts only squared.
        return estimate if length is None else largest / (length(m, vector) / float(np.linalg.norm(vector)))

    n = len(factor)
    # Condition numbers grow with m, about as the first pivot over the last.
    growth = np.log(np.abs(factor[0, 0] / np.minimum.accumulate(np.abs(np.diagonal(factor)))))
    known = {1: 0.0, n: float(np.log(_condition(factor, n)[0]))}
    low, high = (n, n + 1) if known[n] < np.log(bound) else (1, n)
    while high - low > 1:
        before, after = known[low] - growth[low - 1], known[high] - growth[high - 1]
        between = np.arange(low + 1, high)
        guesses = growth[low : high - 1] + before + (after - before) * (between - low) / (high - low)
        # Now at the guess, now one above it, so that the interval closes around it from both sides.
        m = int(np.clip(low + np.searchsorted(guesses, np.log(bound)) + len(known) % 2, low + 1, high - 1))
        if len(known) > 8:
            m = (low + high) // 2
        known[m] = float(np.log(_condition(factor, m)[0]))
        low, high = (m, high) if known[m] < np.log(bound) else (low, m)
    condition = refined(low) if low > 1 else 1.0
    while condition >= bound:
        low -= 1
        condition = refined(low) if low > 1 else 1.0
    while low < n and length is not None and abs(known.get(low + 1, 0.0) - np.log(bound)) < 1e-2:
        following = refined(low + 1)
        if following >= bound:
            break
        low, condition = low + 1, following
    return low, condition
