"""Exact near pairs and nearest neighbours of vectors, at a fraction of the cost of comparing all of them.

A distance is bounded from below by the distance along a few orthonormal axes, with the norm of what these leave over as
one more coordinate: |x - y|^2 >= |P(x - y)|^2 + (|x - Px| - |y - Py|)^2. The axes are the principal axes of a sample,
which hold most of the spread of images and feature maps. The search goes through three filters, each cheaper for a pair
and weaker than the next:

1. rows lie in leaves of a k-d order, and two leaves whose boxes are too far apart are left out;
2. the bounds of all pairs of two leaves come from one matrix product in float32 on the first axes;
3. what is left is bounded along all axes, pair by pair.

What passes is decided in float64 from the differences of the given values. Every bound is widened by the largest error
that its arithmetic can have made, so that no pair is lost. Where a trial on a few rows says that the bounds hold back
too little, the matrix products run over all dimensions instead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from toolkit.processors import n_processors
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = ["METRICS", "NearPairs", "Neighbors", "TooManyPairsError", "near_pairs", "nearest_neighbors"]

#: Dissimilarities offered.
METRICS = ("euclidean", "cosine")

#: Rows of the sample that the axes come from, and numbers it may hold.
_SAMPLE_ROWS = 2048
_SAMPLE_ELEMENTS = 1 << 24
#: Axes of the last filter; with at most `_NO_AXES` dimensions, these are taken as they are.
_AXES = 128
_NO_AXES = 32
#: Axes that the matrix products may run over, of which the trial chooses.
_WIDTHS = (16, 32, 64, 128)
#: Rows that the trial compares with all others, and numbers it may hold.
_PILOTS = 64
_PILOT_ELEMENTS = 1 << 24
#: With fewer pairs than this times the dimensions, no axes are sought: comparing everything is as fast.
_FEW = 1 << 31
#: Rows of a leaf, and leaves compared with one leaf in one product; with all dimensions, rows have to be converted for
#: each product, so leaves are larger.
_LEAF = 128
_WIDE_LEAF = 512
_LEAVES = 16
_WIDE_LEAVES = 4
#: Dimensions summed in one go while projecting, which bounds the rounding error.
_SLAB = 256
#: Numbers converted at a time.
_CHUNK_ELEMENTS = 1 << 21
#: Pairs that a thread holds before it hands them over.
_CAPACITY = 1 << 15
#: Numbers of a block of rows or of distances on a GPU (1 GiB).
_GPU_ELEMENTS = 1 << 28
#: Rounding error of float32.
_UNIT = 2.0**-24
#: Added to the bounds where float32 may have underflowed (the vectors are scaled to norms up to 1).
_TINY = 2.0**-60

_Any = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., Any])

log = logging.getLogger(__name__)


def _kernel(function: _F) -> _F:
    """Compile `function`; sums may be reordered, but products not fused with them, so that equal rows are at 0."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc"}}
    try:
        return cast("_F", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # No folder to keep compiled code in can be written to: it is compiled anew in every process.
        return cast("_F", numba.njit(**options)(function))


class TooManyPairsError(ValueError):
    """More pairs lie within a radius than may be held."""


class NearPairs(NamedTuple):
    """Pairs of rows and how far apart they are, sorted by the rows.

    Args:
        pairs: int64 of shape (P, 2). Within one set, the first row of a pair is the lower one.
        distances: float64 of shape (P,).
    """

    pairs: _Ints
    distances: _Floats


class Neighbors(NamedTuple):
    """The nearest neighbours of each row, nearest first, equally near ones by their index.

    Args:
        indices: int64 of shape (N, k).
        distances: float64 of shape (N, k).
        recall: Share of the true neighbours found, on a sample of rows; 1.0 for the exact search, without a sample.
    """

    indices: _Ints
    distances: _Floats
    recall: float


def near_pairs(
    x: npt.ArrayLike,
    radius: float,
    y: npt.ArrayLike | None = None,
    *,
    metric: str = "euclidean",
    max_pairs: int = 50_000_000,
    progress: bool = False,
) -> NearPairs:
    """All pairs of rows at most `radius` apart: those that comparing all of them finds, and no others.

    Distances are computed in float64 from the differences of the given values (integers below 2^53, and the sums of
    their squares below that, without any rounding); a pair at exactly `radius` is in. Cosine dissimilarities
    1 - <u, v> / (|u| |v|) are half the squared distance of the unit vectors, so that duplicates are at 0.

    Memory beside the vectors is up to about 2 KiB a row, and at the peak 40 bytes a pair. Arrays of uint8, float32
    and float64, memory maps too, are read in place; other types are converted first.

    Args:
        x: Vectors of shape (N, D).
        radius: Largest distance (or cosine dissimilarity) of a pair, at least 0.
        y: Vectors of shape (M, D) to compare those of x with; None for the pairs within x.
        metric: One of `METRICS`.
        max_pairs: Refuse to hold more pairs than this.
        progress: Show a progress bar.

    Returns:
        The pairs, each as (row of x, row of x) with the lower row first, or (row of x, row of y) where y is given.

    Raises:
        ValueError: If the vectors are not finite matrices of the same width or have zero rows under the cosine, if
            `radius` is negative or NaN, if `metric` is unknown, or (as `TooManyPairsError`) if there are more than
            `max_pairs` pairs.
        TypeError: If the vectors are not real numbers, `radius` is not a number or `max_pairs` not an integer.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, compares all
        pairs. The bound with the norm of the rest as a coordinate follows from the triangle inequality in the
        orthogonal complement of the axes.

    Example:
        >>> found = near_pairs([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], radius=5.0)
        >>> found.pairs.tolist(), found.distances.round(3).tolist()
        ([[0, 1], [0, 2], [1, 2]], [5.0, 1.0, 4.243])
        >>> near_pairs([[0, 0], [9, 9]], 1.5, y=[[1, 1]]).pairs.tolist()
        [[0, 0]]
    """
    check_choice("metric", metric, METRICS)
    radius = _check_number("radius", radius)
    max_pairs = _check_count("max_pairs", max_pairs, 0)
    ours = _Rows.of(x, "x", metric)
    theirs = ours if y is None else _Rows.of(y, "y", metric)
    ours, theirs = _matched(ours, theirs)
    too_many = TooManyPairsError(
        f"`max_pairs` must be at least the number of pairs, got {max_pairs} and more pairs than that within {radius:g}."
        " Choose a smaller `radius`, or a larger `max_pairs` where memory allows 40 bytes a pair."
    )
    with threadpool_limits(1, user_api="blas"):
        search = _Search.of(ours, theirs, metric, radius=radius)
        if y is None and _least_twins(search.ours) > max_pairs:
            raise too_many
        parts = _sweep_pairs(search, radius, max_pairs, progress)
    if parts is None:
        raise too_many
    pairs, distances = _sort_pairs(parts, len(ours.matrix))
    return NearPairs(pairs, distances)


def nearest_neighbors(
    x: npt.ArrayLike,
    k: int,
    y: npt.ArrayLike | None = None,
    *,
    metric: str = "euclidean",
    index: str = "exact",
    device: str | None = None,
    nprobe: int | None = None,
    ef_search: int | None = None,
    recall_sample: int = 256,
    progress: bool = False,
) -> Neighbors:
    """The k nearest rows of y to each row of x, or of x to each of its own rows, which are then left out themselves.

    `index="exact"` gives what sorting all distances gives, with the distances of `near_pairs`: by the same bounds on a
    CPU, and by matrix products over all dimensions, decided in float64 afterwards, on a GPU that PyTorch sees. Any
    other index is built by faiss, on the GPUs that faiss sees or the CPU: "Flat" (exact up to float32; also on a GPU
    that only PyTorch sees, where it is the exact search), "IVF256,Flat", "HNSW32", "IVF256,PQ16" and so on. What such
    an index finds comes with its distances in float64, and `recall` says how much of what it should have found it did:
    the share of the k nearest of `recall_sample` rows, equally near ones counting as found.

    Args:
        x: Vectors of shape (N, D).
        k: Number of neighbours, 1 to the number of rows to choose from.
        y: Vectors of shape (M, D) to choose from; None for those of x.
        metric: One of `METRICS`.
        index: "exact", or what faiss calls a factory string.
        device: "cpu", "cuda" (or "cuda:1" and so on), or None for a GPU where there is one.
        nprobe: Lists of an IVF index that are searched; an eighth of them by default, at least 8.
        ef_search: Candidates that an HNSW index holds while it searches; 4 (k + 1) by default, at least 64.
        recall_sample: Rows on which recall is measured; 0 not to measure it, which makes it NaN.
        progress: Show a progress bar.

    Returns:
        Indices and distances of shape (N, k), nearest first, equally near ones by their index; and the recall.

    Raises:
        ValueError: If the vectors are not finite matrices of the same width or have zero rows under the cosine, if `k`
            is out of range, if `metric` or `index` are unknown, if `device` is not there, or if an index still finds
            fewer than k neighbours of a row when it searches all of its lists.
        TypeError: If the vectors are not real numbers or `k`, `nprobe`, `ef_search` or `recall_sample` not integers.
        ModuleNotFoundError: If faiss is needed and not installed.

    References:
        Douze et al., "The Faiss library", arXiv 2401.08281.

    Example:
        >>> found = nearest_neighbors([[0.0], [1.0], [3.0], [1.5]], k=1, device="cpu")
        >>> found.indices.tolist(), found.distances.tolist(), found.recall
        ([[1], [3], [3], [1]], [[1.0], [0.5], [1.5], [0.5]], 1.0)
    """
    check_choice("metric", metric, METRICS)
    k = _check_count("k", k, 1)
    nprobe = None if nprobe is None else _check_count("nprobe", nprobe, 1)
    ef_search = None if ef_search is None else _check_count("ef_search", ef_search, 1)
    recall_sample = _check_count("recall_sample", recall_sample, 0)
    ours = _Rows.of(x, "x", metric)
    theirs = ours if y is None else _Rows.of(y, "y", metric)
    ours, theirs = _matched(ours, theirs)
    most = len(theirs.matrix) - (y is None)
    if k > most:
        raise invalid("k", f"at most {most}, the number of vectors to choose from", k)
    gpu = _cuda(device)
    if index == "exact" or (index == "Flat" and gpu is not None and not _faiss_gpus()):
        if gpu is not None:
            return Neighbors(*_torch_neighbors(ours, theirs, k, metric, gpu, progress), 1.0)
        return Neighbors(*_exact_neighbors(ours, theirs, k, metric, progress), 1.0)
    options = _IndexOptions(index, nprobe, ef_search, device)
    indices, distances = _index_neighbors(ours, theirs, k, metric, options, progress)
    recall = _recall(ours, theirs, distances, metric, recall_sample)
    log.info("index %s: recall of the %d nearest %.4f, on %d rows", index, k, recall, min(recall_sample, len(indices)))
    return Neighbors(indices, distances, recall)


# ------------------------------------------------------------------------------------------------ arguments


def _check_number(name: str, value: float) -> float:
    """`value` as a float of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not float(value) >= 0:
        raise invalid(name, "at least 0", value)
    return float(value)


def _check_count(name: str, value: int, least: int) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise invalid(name, f"at least {least}", int(value))
    return int(value)


# ------------------------------------------------------------------------------------------------ vectors as given


@dataclass(frozen=True)
class _Rows:
    """Vectors as they were given, in a type that the kernels read, and the factor that each row is multiplied by."""

    matrix: _Any  # (N, D): uint8, float32 or float64
    scales: _Floats  # (N,): 1, or under the cosine 1 / norm
    largest: float  # largest absolute value of the rows times their factors

    @classmethod
    def of(cls, vectors: Any, name: str, metric: str) -> _Rows:
        """Check the vectors and find their factors."""
        given: _Any = np.asarray(vectors)
        if given.ndim != 2 or 0 in given.shape or given.dtype.kind not in "fiub":
            check_vectors(given, name)  # which says what is wrong
        matrix = np.ascontiguousarray(given, dtype=_readable(given.dtype))
        cosine = metric == "cosine"
        scales = np.ones(len(matrix))
        if matrix.dtype == np.uint8 and not cosine:
            return cls(matrix, scales, 255.0)
        largest = _largest(matrix)
        if not np.isfinite(largest).all() or (cosine and not largest.all()):
            check_vectors(given, name, nonzero=cosine)
        if not cosine:
            return cls(matrix, scales, float(largest.max()))
        exponents = np.frexp(largest)[1]
        if np.abs(exponents).max() > 900:
            # A factor that takes such a row to norm 1 may be out of range, so the rows are scaled themselves.
            matrix = np.ldexp(matrix.astype(np.float64), -exponents[:, None])
            exponents[:] = 0
        _each_chunk(matrix, lambda start, stop, _: _inverse_norms(matrix, exponents, start, stop, scales))
        return cls(matrix, scales, 1.0)

    def astype(self, dtype: Any) -> _Rows:
        """The same rows in another type."""
        return self if self.matrix.dtype == dtype else _Rows(self.matrix.astype(dtype), self.scales, self.largest)


def _readable(dtype: np.dtype[Any]) -> type[np.generic]:
    """The narrowest type of those that the kernels are compiled for that holds all values of a type."""
    if dtype.kind in "bu" and dtype.itemsize == 1:
        return np.uint8
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


def _matched(ours: _Rows, theirs: _Rows) -> tuple[_Rows, _Rows]:
    """Both in one type, after a check that they can be compared."""
    if ours.matrix.shape[1] != theirs.matrix.shape[1]:
        raise invalid("y", f"as wide as x, {ours.matrix.shape[1]}", theirs.matrix.shape[1])
    if ours is theirs:
        return ours, theirs
    dtype = np.promote_types(ours.matrix.dtype, theirs.matrix.dtype)
    return ours.astype(dtype), theirs.astype(dtype)


def _threads() -> int:
    """Threads for the kernels, which leave the interpreter's lock."""
    return min(16, n_processors())


def _each(items: Sequence[Any], work: Callable[[Any, int], None], progress: bool = False) -> None:
    """Call `work(item, worker)` for all items, in threads; the first error stops them all."""
    workers = min(_threads(), len(items))
    if workers <= 1 and not progress:
        for item in items:
            work(item, 0)
        return
    lock = Lock()
    todo = iter(items)
    failed = False

    def loop(worker: int) -> None:
        nonlocal failed
        while not failed:
            with lock:
                item = next(todo, None)
            if item is None:
                return
            try:
                work(item, worker)
            except BaseException:
                failed = True
                raise
            with lock:
                bar.update()

    shown = tqdm(total=len(items), desc="comparing", unit="block", disable=not progress)
    with shown as bar, ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(loop, worker) for worker in range(workers)]:
            done.result()


def _each_chunk(matrix: _Any, work: Callable[[int, int, int], None]) -> None:
    """Call `work(start, stop, worker)` for chunks of rows, in threads."""
    rows = max(1, _CHUNK_ELEMENTS // matrix.shape[1])
    count = len(matrix)
    _each(range(0, count, rows), lambda start, worker: work(start, min(start + rows, count), worker))


def _largest(matrix: _Any) -> _Floats:
    """Largest absolute value of each row; infinite where a value is not finite."""
    largest = np.empty(len(matrix))
    _each_chunk(matrix, lambda start, stop, _: _row_largest(matrix, start, stop, largest))
    return largest


@_kernel
def _row_largest(matrix: Any, start: int, stop: int, largest: Any) -> None:
    """Largest absolute value of some rows."""
    for i in range(start, stop):
        top = 0.0
        strange = 0
        for k in range(matrix.shape[1]):
            size = abs(np.float64(matrix[i, k]))
            strange += not size < np.inf
            top = size if size > top else top
        largest[i] = np.inf if strange else top


@_kernel
def _inverse_norms(matrix: Any, exponents: Any, start: int, stop: int, scales: Any) -> None:
    """1 / norm of some rows, whose largest values are near 2^exponent."""
    for i in range(start, stop):
        factor = 2.0 ** -float(exponents[i])
        total = 0.0
        for k in range(matrix.shape[1]):
            value = matrix[i, k] * factor
            total += value * value
        scales[i] = factor / np.sqrt(total)


@_kernel
def _distance(a: Any, i: int, scale_i: float, b: Any, j: int, scale_j: float, cosine: bool) -> float:
    """The distance of two rows, or half its square under the cosine."""
    total = 0.0
    for k in range(a.shape[1]):
        difference = a[i, k] * scale_i - b[j, k] * scale_j
        total += difference * difference
    if cosine:
        return 0.5 * total
    if 1e-280 < total < 1e290:
        return float(np.sqrt(total))
    # Squares may have left the range of float64.
    largest = 0.0
    for k in range(a.shape[1]):
        largest = max(largest, abs(np.float64(a[i, k]) - np.float64(b[j, k])))
    if largest == 0.0:
        return 0.0
    half = 1.0 if largest < np.inf else 0.5
    if half < 1.0:
        largest = 0.0
        for k in range(a.shape[1]):
            largest = max(largest, abs(a[i, k] * half - b[j, k] * half))
    total = 0.0
    for k in range(a.shape[1]):
        difference = (a[i, k] * half - b[j, k] * half) / largest
        total += difference * difference
    return float(np.sqrt(total) * largest / half)


# ------------------------------------------------------------------------------------------------ axes


@dataclass(frozen=True)
class _Space:
    """Where vectors are compared roughly: scaled by a power of two, about a centre, along orthonormal axes.

    With `c` the scaled and centred vector in exact arithmetic and Q an exactly orthonormal matrix beside `axes`, the
    computed coordinates are within `error` |c| of Q'c.
    """

    factor: float
    centre: _Floats  # (D,)
    axes: _Singles | None  # (D, q)
    error: float

    @classmethod
    def of(cls, ours: _Rows, theirs: _Rows, *, seek: bool) -> _Space:
        """The principal axes of a sample of both sets, where `seek` is set."""
        n_features = ours.matrix.shape[1]
        largest = max(ours.largest, theirs.largest) * math.sqrt(n_features)
        exponent = -math.frexp(largest)[1] if 0 < largest < math.inf else 0
        if largest == math.inf:
            exponent = -1070
        factor = math.ldexp(1.0, max(-1070, min(1000, exponent)))
        sides = (ours,) if ours is theirs else (ours, theirs)
        most = max(2, min(_SAMPLE_ROWS, _SAMPLE_ELEMENTS // n_features) // len(sides))
        rng = np.random.default_rng(0)
        blocks = []
        for side in sides:
            count = len(side.matrix)
            chosen = np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))
            blocks.append(side.matrix[chosen] * (side.scales[chosen] * factor)[:, None])
        sample = np.concatenate(blocks)
        centre = sample.mean(axis=0)
        wanted = min(_AXES, n_features // 2, len(sample) // 2)
        if not seek or wanted < _WIDTHS[0]:
            return cls(factor, centre, None, _UNIT * 1.01)
        axes = _principal_axes((sample - centre).astype(np.float32), wanted, rng)
        double = axes.astype(np.float64)
        skew = float(np.linalg.norm(double.T @ double - np.eye(axes.shape[1])))
        # Rounding: of the centred vector, of sums over a slab and of the slabs, and the axes' not being orthonormal.
        summed = (min(n_features, _SLAB) + n_features / _SLAB + 8) * _UNIT * math.sqrt(axes.shape[1])
        return cls(factor, centre, axes, 1.01 * (_UNIT + summed + skew))

    def norms(self, rows: _Rows) -> _Floats:
        """The norms of the centred vectors."""
        norms = np.empty(len(rows.matrix))

        def work(start: int, stop: int, _: int) -> None:
            block = np.empty((stop - start, rows.matrix.shape[1]), np.float32)
            _centred(rows.matrix, rows.scales, start, stop, self.factor, self.centre, block, norms)

        _each_chunk(rows.matrix, work)
        return norms

    def project(self, rows: _Rows) -> tuple[_Singles, _Floats]:
        """Coordinates along the axes, or the centred vectors where there are none, and the norms of the latter."""
        count, n_features = rows.matrix.shape
        norms = np.empty(count)
        width = n_features if self.axes is None else self.axes.shape[1]
        out = np.empty((count, width), np.float32)
        size = max(1, _CHUNK_ELEMENTS // n_features)
        spaces = [np.empty((size, n_features), np.float32) for _ in range(_threads() if self.axes is not None else 0)]

        def work(start: int, stop: int, worker: int) -> None:
            if self.axes is None:
                _centred(rows.matrix, rows.scales, start, stop, self.factor, self.centre, out[start:stop], norms)
                return
            block = spaces[worker][: stop - start]
            _centred(rows.matrix, rows.scales, start, stop, self.factor, self.centre, block, norms)
            piece = out[start:stop]
            piece[:] = 0.0
            for slab in range(0, n_features, _SLAB):
                piece += block[:, slab : slab + _SLAB] @ self.axes[slab : slab + _SLAB]

        _each_chunk(rows.matrix, work)
        return out, norms


def _principal_axes(sample: _Singles, wanted: int, rng: np.random.Generator) -> _Singles:
    """The leading principal axes of a centred sample, by a randomised search that need not be accurate."""
    n_features = sample.shape[1]
    if n_features <= 512:
        values, vectors = np.linalg.eigh(sample.T @ sample)
        basis = vectors[:, np.argsort(-values, kind="stable")[:wanted]]
    else:
        basis = rng.standard_normal((n_features, min(n_features, wanted + 16))).astype(np.float32)
        for _ in range(2):
            basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
        inside = sample @ basis
        values, vectors = np.linalg.eigh(inside.T @ inside)
        basis = basis @ vectors[:, np.argsort(-values, kind="stable")[:wanted]]
    # Once more in float64, as what is not orthonormal widens the bounds.
    return np.linalg.qr(basis.astype(np.float64))[0].astype(np.float32)


@_kernel
def _centred(
    matrix: Any, scales: Any, start: int, stop: int, factor: float, centre: Any, out: Any, norms: Any
) -> None:  # fmt: skip
    """Scaled and centred rows in float32, and their norms."""
    for i in range(start, stop):
        scale = scales[i]
        total = 0.0
        for k in range(matrix.shape[1]):
            value = np.float32(matrix[i, k] * scale * factor - centre[k])
            out[i - start, k] = value
            total += np.float64(value) * np.float64(value)
        norms[i] = np.sqrt(total)


def _least_twins(side: _Side) -> int:
    """A number of pairs of equal rows that there are at least, without looking for all of them."""
    norms, counts = np.unique(side.norms, return_counts=True)
    most = counts.argmax()
    if counts[most] < 1000:
        return 0
    members = side.order[np.flatnonzero(side.norms == norms[most])]
    first = side.rows.matrix[members[0]]
    scale = side.rows.scales[members[0]]
    equal = 0
    for start in range(0, len(members), 1024):
        some = members[start : start + 1024]
        same = (side.rows.matrix[some] == first).all(axis=1) & (side.rows.scales[some] == scale)
        equal += int(same.sum())
    return equal * (equal - 1) // 2


# ------------------------------------------------------------------------------------------------ leaves


@dataclass(frozen=True)
class _Side:
    """One of the two sets, in the order of its leaves.

    The rows of `tile` are [v, -1, -|v|^2 / 2] with v what is compared first, so that the product of one row with
    [v', |v'|^2 / 2, 1] of another is minus half the squared distance of v and v'.
    """

    rows: _Rows
    order: _Ints  # (N,): row at each position
    norms: _Floats  # (N,): of the centred vectors
    fine: _Singles  # (N, q + 1) coordinates along all axes and the norm of the rest; of width 0 where not used
    tile: _Singles  # (N, w + 2); of width 0 where it is made from the rows when needed
    starts: _Ints  # (L + 1,)
    low: _Singles  # (L, c) boxes of the leaves
    high: _Singles
    box_error: _Floats  # (L,) largest error of the coordinates of a leaf, for the boxes and the tile
    fine_error: _Floats  # (L,) the same for `fine`
    reach: _Floats  # (L,) largest |v| of a leaf


def _arrange(
    rows: _Rows, space: _Space, coordinates: _Singles, norms: _Floats, width: int, *, full: bool
) -> _Side:  # fmt: skip
    """Sort a set into leaves; `width` axes are compared first, or all dimensions where `full` is set."""
    count = len(norms)
    if space.axes is None:
        v, error = coordinates, _UNIT * 1.01 * norms + _TINY
    else:
        v, error = _with_rest(coordinates, norms, width, space.error)
    order, starts = _leaves(v, _WIDE_LEAF if full else _LEAF)
    v, error, norms = v[order], error[order], norms[order]
    first = starts[:-1]
    fine = np.empty((count, 0), np.float32)
    fine_error = np.zeros(len(first))
    if space.axes is not None and not full:
        fine, each = _with_rest(coordinates, norms[np.argsort(order)], coordinates.shape[1], space.error)
        fine = fine[order]
        fine_error = np.maximum.reduceat(each[order], first)
    tile = np.empty((count, 0 if full else v.shape[1] + 2), np.float32)
    if full:
        reach = np.maximum.reduceat(norms, first)
    else:
        squares = np.einsum("ij,ij->i", v, v, dtype=np.float64)
        tile[:, :-2] = v
        tile[:, -2] = -1.0
        tile[:, -1] = -0.5 * squares
        reach = np.sqrt(np.maximum.reduceat(squares, first))
    return _Side(
        rows, order, norms, fine, tile, starts, np.minimum.reduceat(v, first), np.maximum.reduceat(v, first),
        np.maximum.reduceat(error, first), fine_error, reach,
    )  # fmt: skip


def _with_rest(coordinates: _Singles, norms: _Floats, width: int, error: float) -> tuple[_Singles, _Floats]:
    """The first coordinates with the norm of the rest, and a bound of the distance from their exact values."""
    out = np.empty((len(norms), width + 1), np.float32)
    out[:, :-1] = coordinates[:, :width]
    held = np.einsum("ij,ij->i", out[:, :-1], out[:, :-1], dtype=np.float64)
    rest = np.sqrt(np.maximum(norms * norms - held, 0.0))
    out[:, -1] = rest
    # The squared norm of the rest is off by at most `squared` |c|^2, its root by that over the root.
    squared = 2.1 * (error + _UNIT) + error * error
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.minimum(np.nan_to_num(squared * norms / rest, nan=0.0), math.sqrt(squared))
    return out, 1.01 * norms * np.sqrt(error * error + off * off) + _UNIT * rest + _TINY


def _leaves(v: _Singles, size: int) -> tuple[_Ints, _Ints]:
    """An order of the rows in leaves of at most `size`, split at medians along the coordinate of largest variance."""
    order = []
    starts = [0]
    waiting = [np.arange(len(v))]
    while waiting:
        members = waiting.pop()
        if len(members) <= size:
            order.append(members)
            starts.append(starts[-1] + len(members))
            continue
        sample = v[members[:: max(1, len(members) // 1024)]]
        values = v[members, int(sample.var(axis=0).argmax())]
        # Whole leaves to the left, so that most of them are full.
        half = size * ((len(members) + size) // (2 * size))
        sorting = np.argpartition(values, half)
        waiting.append(members[np.sort(sorting[half:])])
        waiting.append(members[np.sort(sorting[:half])])
    return np.concatenate(order), np.array(starts)


@_kernel
def _leaf_gaps(low: Any, high: Any, a: int, other_low: Any, other_high: Any, first: int, limit: Any, gaps: Any) -> None:
    """Squared distances of the box of a leaf from those of others; -1 where it is past the limit."""
    for b in range(first, len(other_low)):
        total = 0.0
        for k in range(low.shape[1]):
            gap = np.float64(max(low[a, k] - other_high[b, k], other_low[b, k] - high[a, k]))
            if gap > 0.0:
                total += gap * gap
                if total > limit[b]:
                    break
        gaps[b] = total if total <= limit[b] else -1.0


@_kernel
def _gather(tile: Any, starts: Any, leaves: Any, out: Any) -> int:
    """Copy the rows of some leaves."""
    at = 0
    for leaf in leaves:
        for i in range(starts[leaf], starts[leaf + 1]):
            for k in range(tile.shape[1]):
                out[at, k] = tile[i, k]
            at += 1
    return at


@_kernel
def _gather_full(
    matrix: Any, scales: Any, order: Any, starts: Any, leaves: Any, factor: float, centre: Any, out: Any
) -> int:  # fmt: skip
    """Convert the rows of some leaves, over all dimensions."""
    at = 0
    width = matrix.shape[1]
    for leaf in leaves:
        for p in range(starts[leaf], starts[leaf + 1]):
            i = order[p]
            scale = scales[i]
            total = 0.0
            for k in range(width):
                value = np.float32(matrix[i, k] * scale * factor - centre[k])
                out[at, k] = value
                total += np.float64(value) * np.float64(value)
            out[at, width] = -1.0
            out[at, width + 1] = -0.5 * total
            at += 1
    return at


# ------------------------------------------------------------------------------------------------ search


@dataclass(frozen=True)
class _Search:
    """Both sets, ready to be compared."""

    space: _Space
    ours: _Side
    theirs: _Side
    cosine: bool
    full: bool  # whether products run over all dimensions of the rows

    @classmethod
    def of(cls, ours: _Rows, theirs: _Rows, metric: str, radius: float | None = None, k: int = 0) -> _Search:
        """Find axes, project both sets and choose how many axes to compare first, for a radius or for k neighbours."""
        cosine = metric == "cosine"
        n_features = ours.matrix.shape[1]
        pairs, count = len(ours.matrix) * len(theirs.matrix), len(ours.matrix) + len(theirs.matrix)
        # Projecting costs about as much as comparing each row with as many others as there are axes.
        few = pairs * n_features < _FEW or pairs < 4 * _AXES * count
        space = _Space.of(ours, theirs, seek=not few and n_features > _NO_AXES)
        full = space.axes is None and n_features > 4 * _NO_AXES
        if full:
            # Nothing to sort by: one coordinate of zeros, and leaves in the order of the rows.
            sides = [
                _arrange(rows, space, np.zeros((len(rows.matrix), 1), np.float32), space.norms(rows), 0, full=True)
                for rows in _both(ours, theirs)
            ]
            return cls(space, sides[0], sides[-1], cosine, full)
        projected = [space.project(rows) for rows in _both(ours, theirs)]
        width = n_features
        if space.axes is not None:
            width = _choose_width(space, ours, theirs, projected[0], projected[-1], cosine, radius, k)
            full = width == 0
            width = width or min(_NO_AXES, space.axes.shape[1])
        sides = [
            _arrange(rows, space, *found, width, full=full)
            for rows, found in zip(_both(ours, theirs), projected, strict=True)
        ]
        return cls(space, sides[0], sides[-1], cosine, full)

    @property
    def within(self) -> bool:
        """Whether the pairs are those within one set."""
        return self.ours is self.theirs

    @property
    def tile_width(self) -> int:
        """Columns of the rows that are multiplied."""
        return len(self.space.centre) + 2 if self.full else int(self.ours.tile.shape[1])

    @property
    def slack(self) -> float:
        """What a distance in float64 may be off by, relatively."""
        return 1.0 + (len(self.space.centre) + 16) * 2.0**-52

    def scaled(self, distance: float) -> float:
        """The distance of scaled vectors that stands for a dissimilarity, not less."""
        plain = math.sqrt(2.0 * distance) if self.cosine else distance
        return plain * self.space.factor * self.slack

    def columns(self, side: _Side, leaves: _Ints, out: _Singles) -> _Singles:
        """The rows of some leaves as they are multiplied."""
        if self.full:
            rows = side.rows
            count = _gather_full(
                rows.matrix, rows.scales, side.order, side.starts, leaves, self.space.factor, self.space.centre, out
            )
        else:
            count = _gather(side.tile, side.starts, leaves, out)
        return out[:count]

    def product_error(self, leaf: int, leaves: _Ints) -> _Floats:
        """Bounds of the error of products of rows of a leaf with those of others, from D products and sums."""
        norm = self.ours.reach[leaf] + self.theirs.reach[leaves]
        error: _Floats = (self.tile_width + 16) * _UNIT * 0.51 * norm * norm + _TINY * _TINY
        return error


def _both(ours: _Rows, theirs: _Rows) -> tuple[_Rows, ...]:
    """The sets that differ."""
    return (ours,) if ours is theirs else (ours, theirs)


def _choose_width(
    space: _Space, ours: _Rows, theirs: _Rows, mine: tuple[_Singles, _Floats], others: tuple[_Singles, _Floats],
    cosine: bool, radius: float | None, k: int,
) -> int:  # fmt: skip
    """The number of axes to compare first that a trial finds cheapest; 0 for all dimensions."""
    n_features, most = cast("_Singles", space.axes).shape
    count = len(theirs.matrix)
    rng = np.random.default_rng(0)
    most_pilots = min(len(ours.matrix), _PILOTS, max(4, _PILOT_ELEMENTS // count))
    pilots = rng.choice(len(ours.matrix), most_pilots, replace=False)
    pilots.sort()
    widths = sorted({min(width, most) for width in _WIDTHS})
    bounds = []
    for width in widths:
        some, _ = _with_rest(mine[0][pilots], mine[1][pilots], width, space.error)
        other, _ = _with_rest(others[0], others[1], width, space.error)
        squares = np.einsum("ij,ij->i", other, other)
        keys = np.einsum("ij,ij->i", some, some)[:, None] + squares - 2.0 * (some @ other.T)
        bounds.append(keys)
    if ours is theirs:
        for keys in bounds:
            keys[np.arange(len(pilots)), pilots] = np.inf
    finest = bounds[-1]

    def exact(row: int, columns: _Ints) -> _Floats:
        found = np.empty(len(columns))
        _distances_from(
            ours.matrix, ours.scales, pilots[row], theirs.matrix, theirs.scales, columns, cosine, found
        )  # fmt: skip
        return found

    limits = np.empty(len(pilots))
    taken = tested = 0
    for row in range(len(pilots)):
        if radius is None:
            nearest = np.argpartition(finest[row], min(k + 8, count - 1))[: k + 8]
            nearest = nearest[np.isfinite(finest[row, nearest])]
            limit = float(np.sort(exact(row, nearest))[k - 1])
        else:
            limit = radius
        limits[row] = (math.sqrt(2.0 * limit) if cosine else limit) * space.factor
        close = np.flatnonzero(finest[row] <= limits[row] ** 2)[:16]
        taken += int((exact(row, close) <= limit).sum())
        tested += len(close)
    pairs = finest.size
    rates = [float((keys <= np.square(limits)[:, None]).sum()) / pairs for keys in bounds]
    each = 60.0 + 0.25 * n_features
    # Nanoseconds for a pair: a product, a look at it, the last bound of those left, the distance of those still left.
    costs = [
        0.02 * (width + 3) + 0.1 + rate * (20.0 + 0.15 * most) + rates[-1] * each
        for width, rate in zip(widths, rates, strict=True)
    ]
    true_rate = rates[-1] * taken / tested if tested else 0.0
    costs.append(0.025 * (n_features + 3) + 0.1 + true_rate * each)
    best = int(np.argmin(costs))
    log.debug("cost of a pair in ns by axes %s and all: %s; left %s", widths, np.round(costs, 3), rates)
    return widths[best] if best < len(widths) else 0


@_kernel
def _distances_from(
    a: Any, a_scales: Any, i: int, b: Any, b_scales: Any, columns: Any, cosine: bool, out: Any
) -> None:  # fmt: skip
    """Distances of one row from some others."""
    for p in range(len(columns)):
        j = columns[p]
        out[p] = _distance(a, i, a_scales[i], b, j, b_scales[j], cosine)


# ------------------------------------------------------------------------------------------------ near pairs


class _Part(NamedTuple):
    """Some of the pairs found."""

    first: Any
    second: Any
    distances: _Floats


def _sweep_pairs(search: _Search, radius: float, max_pairs: int, progress: bool) -> list[_Part] | None:
    """All pairs within the radius, or None if there are more than `max_pairs`."""
    ours, theirs = search.ours, search.theirs
    workers = _threads()
    per = _WIDE_LEAVES if search.full else _LEAVES
    size = _WIDE_LEAF if search.full else _LEAF
    spaces: list[Any] = [None] * workers
    scaled = search.scaled(radius)
    small = max(len(ours.order), len(theirs.order)) < 2**31
    index_type = np.int32 if small else np.int64
    capacity = max(_CAPACITY, size)
    parts: list[_Part] = []
    lock = Lock()
    found = 0

    def work(leaf: int, worker: int) -> None:
        nonlocal found
        if found > max_pairs:
            return
        if spaces[worker] is None:
            spaces[worker] = (
                np.empty((size, search.tile_width), np.float32),
                np.empty((per * size, search.tile_width), np.float32),
                np.empty(size * per * size, np.float32),
                np.empty(capacity, index_type), np.empty(capacity, index_type), np.empty(capacity),
            )  # fmt: skip
        left, right, products, first, second, distances = spaces[worker]
        begin = leaf if search.within else 0
        reach = scaled + ours.box_error[leaf] + theirs.box_error
        gaps = np.full(len(theirs.low), -1.0)
        _leaf_gaps(ours.low, ours.high, leaf, theirs.low, theirs.high, begin, reach * reach, gaps)
        close = np.flatnonzero(gaps >= 0.0)
        mine = search.columns(ours, np.array([leaf]), left)
        mine[:, -2] = -mine[:, -1]
        mine[:, -1] = 1.0
        for start in range(0, len(close), per):
            leaves = close[start : start + per]
            other = search.columns(theirs, leaves, right)
            block = products[: len(mine) * len(other)].reshape(len(mine), len(other))
            np.matmul(mine, other.T, out=block)
            limit = 0.5 * np.square(reach[leaves]) + search.product_error(leaf, leaves)
            fine = np.square(scaled + ours.fine_error[leaf] + theirs.fine_error[leaves])
            fine *= 1.0 + (theirs.fine.shape[1] + 16) * _UNIT
            segment = row = 0
            while segment < len(leaves):
                count, segment, row = _scan_pairs(
                    block, -_rounded_up(limit), fine, segment, row, leaf, leaves, ours.starts, theirs.starts,
                    search.within, ours.fine, theirs.fine, ours.order, theirs.order, ours.rows.matrix,
                    ours.rows.scales, theirs.rows.matrix, theirs.rows.scales, search.cosine, radius, first, second,
                    distances,
                )  # fmt: skip
                if count:
                    with lock:
                        parts.append(_Part(first[:count].copy(), second[:count].copy(), distances[:count].copy()))
                        found += count
                if found > max_pairs:
                    return

    _each(range(len(ours.low)), work, progress)
    return None if found > max_pairs else parts


def _rounded_up(values: _Floats) -> _Singles:
    """In float32, not smaller."""
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(np.inf))


@_kernel
def _scan_pairs(
    block: Any, least: Any, fine_limit: Any, segment: int, row: int, leaf: int, leaves: Any, starts: Any,
    other_starts: Any, within: bool, fine: Any, other_fine: Any, order: Any, other_order: Any, matrix: Any,
    scales: Any, other_matrix: Any, other_scales: Any, cosine: bool, radius: float, first: Any, second: Any,
    distances: Any,
) -> Any:  # fmt: skip
    """The pairs of a block of products from a segment and row on, until there may be no room for the next row."""
    count = 0
    column = 0
    for s in range(segment):
        column += other_starts[leaves[s] + 1] - other_starts[leaves[s]]
    base = starts[leaf]
    width = fine.shape[1]
    for s in range(segment, len(leaves)):
        other_base = other_starts[leaves[s]]
        length = other_starts[leaves[s] + 1] - other_base
        bar = least[s]
        for i in range(row, len(block)):
            if count + length > len(first):
                return count, s, i
            hits = 0
            for j in range(column, column + length):
                hits += block[i, j] >= bar
            if hits == 0:
                continue
            p = base + i
            for j in range(length):
                if not block[i, column + j] >= bar:
                    continue
                q = other_base + j
                if within and q <= p:
                    continue
                if width > 0:
                    square = np.float32(0.0)
                    for k in range(width):
                        difference = fine[p, k] - other_fine[q, k]
                        square += difference * difference
                    if square > fine_limit[s]:
                        continue
                a = order[p]
                b = other_order[q]
                distance = _distance(matrix, a, scales[a], other_matrix, b, other_scales[b], cosine)
                if distance <= radius:
                    first[count] = min(a, b) if within else a
                    second[count] = max(a, b) if within else b
                    distances[count] = distance
                    count += 1
        row = 0
        column += length
    return count, len(leaves), 0


def _sort_pairs(parts: list[_Part], n_rows: int) -> tuple[_Ints, _Floats]:
    """The pairs by first and second row; takes the parts."""
    counts = np.zeros(n_rows + 1, np.int64)
    for part in parts:
        counts[1:] += np.bincount(part.first, minlength=n_rows)
    place = np.cumsum(counts)
    starts = place.copy()
    pairs = np.empty((place[-1], 2), np.int64)
    distances = np.empty(place[-1])
    while parts:
        part = parts.pop()
        _place_pairs(part.first, part.second, part.distances, place, pairs, distances)
    _sort_within(starts, pairs, distances)
    return pairs, distances


@_kernel
def _place_pairs(first: Any, second: Any, found: Any, place: Any, pairs: Any, distances: Any) -> None:
    """Write pairs where those of their first row go."""
    for p in range(len(first)):
        at = place[first[p]]
        place[first[p]] += 1
        pairs[at, 0] = first[p]
        pairs[at, 1] = second[p]
        distances[at] = found[p]


@_kernel
def _sort_within(starts: Any, pairs: Any, distances: Any) -> None:
    """Sort the pairs of each first row by the second."""
    for i in range(len(starts) - 1):
        begin = starts[i]
        end = starts[i + 1]
        if end - begin < 2:
            continue
        sequence = np.argsort(pairs[begin:end, 1])
        pairs[begin:end, 1] = pairs[begin:end, 1][sequence]
        distances[begin:end] = distances[begin:end][sequence]


# ------------------------------------------------------------------------------------------------ nearest neighbours


def _exact_neighbors(ours: _Rows, theirs: _Rows, k: int, metric: str, progress: bool) -> tuple[_Ints, _Floats]:
    """The k nearest rows of `theirs` to each of `ours`, themselves left out where the sets are one."""
    with threadpool_limits(1, user_api="blas"):
        search = _Search.of(ours, theirs, metric, k=k)
        return _sweep_neighbors(search, k, progress)


def _sweep_neighbors(search: _Search, k: int, progress: bool) -> tuple[_Ints, _Floats]:
    """The k nearest neighbours of every row, leaf by leaf, the nearest leaves first."""
    ours, theirs = search.ours, search.theirs
    per = _WIDE_LEAVES if search.full else _LEAVES
    size = _WIDE_LEAF if search.full else _LEAF
    # The first product must hold k neighbours of every row.
    widest = max(per, -(-2 * (k + 1) // size) + 1)
    lengths = np.diff(theirs.starts)
    spaces: list[Any] = [None] * _threads()
    indices = np.empty((len(ours.order), k), np.int64)
    distances = np.empty((len(ours.order), k))

    def work(leaf: int, worker: int) -> None:
        if spaces[worker] is None:
            spaces[worker] = (
                np.empty((size, search.tile_width), np.float32),
                np.empty((widest * size, search.tile_width), np.float32),
                np.empty(size * widest * size, np.float32),
                np.empty((size, k)), np.empty((size, k), np.int64),
            )  # fmt: skip
        left, right, products, near, near_index = spaces[worker]
        gaps = np.empty(len(theirs.low))
        _leaf_gaps(ours.low, ours.high, leaf, theirs.low, theirs.high, 0, np.full(len(gaps), np.inf), gaps)
        sequence = np.argsort(gaps, kind="stable")
        mine = search.columns(ours, np.array([leaf]), left)
        mine[:, -2] = -mine[:, -1]
        mine[:, -1] = 1.0
        rows = slice(ours.starts[leaf], ours.starts[leaf + 1])
        taken = max(2, int(np.searchsorted(np.cumsum(lengths[sequence]), k + 1)) + 1)
        farthest = np.inf
        while len(sequence):
            if farthest < np.inf:
                reach = search.scaled(farthest) + ours.box_error[leaf] + theirs.box_error[sequence]
                sequence = sequence[gaps[sequence] <= reach * reach]
                taken = per
            leaves, sequence = sequence[:taken], sequence[taken:]
            if len(leaves) == 0:
                break
            other = search.columns(theirs, leaves, right)
            block = products[: len(mine) * len(other)].reshape(len(mine), len(other))
            np.matmul(mine, other.T, out=block)
            farthest = _scan_neighbors(
                block, farthest == np.inf, search.product_error(leaf, leaves),
                ours.box_error[leaf] + theirs.box_error[leaves], ours.fine_error[leaf] + theirs.fine_error[leaves],
                search.space.factor * search.slack, leaf, leaves, ours.starts, theirs.starts, search.within, ours.fine,
                theirs.fine, ours.order, theirs.order, ours.rows.matrix, ours.rows.scales, theirs.rows.matrix,
                theirs.rows.scales, search.cosine, near, near_index,
            )  # fmt: skip
        _sort_heaps(near, near_index, rows.stop - rows.start)
        indices[ours.order[rows]] = near_index[: rows.stop - rows.start]
        distances[ours.order[rows]] = near[: rows.stop - rows.start]

    _each(range(len(ours.low)), work, progress)
    return indices, distances


@_kernel
def _sink(near: Any, index: Any, row: int, at: int, size: int) -> None:
    """Restore the heap of a row, whose top is the farthest (of the highest index), below a position."""
    distance = near[row, at]
    own = index[row, at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            near[row, other] > near[row, child]
            or (near[row, other] == near[row, child] and index[row, other] > index[row, child])
        ):
            child = other
        if near[row, child] < distance or (near[row, child] == distance and index[row, child] < own):
            break
        near[row, at] = near[row, child]
        index[row, at] = index[row, child]
        at = child
    near[row, at] = distance
    index[row, at] = own


@_kernel
def _sort_heaps(near: Any, index: Any, rows: int) -> None:
    """Sort the heaps, the nearest first."""
    for row in range(rows):
        for size in range(near.shape[1] - 1, 0, -1):
            near[row, 0], near[row, size] = near[row, size], near[row, 0]
            index[row, 0], index[row, size] = index[row, size], index[row, 0]
            _sink(near, index, row, 0, size)


@_kernel
def _scan_neighbors(
    block: Any, fresh: bool, product_error: Any, error: Any, fine_error: Any, factor: float, leaf: int, leaves: Any,
    starts: Any, other_starts: Any, within: bool, fine: Any, other_fine: Any, order: Any, other_order: Any,
    matrix: Any, scales: Any, other_matrix: Any, other_scales: Any, cosine: bool, near: Any, index: Any,
) -> float:  # fmt: skip
    """Take what is nearer from a block of products into the heaps; returns the farthest neighbour of all rows."""
    k = near.shape[1]
    base = starts[leaf]
    width = fine.shape[1]
    farthest = 0.0
    growth = 1.0 + (width + 16) * 2.0**-24
    for i in range(len(block)):
        p = base + i
        a = order[p]
        first_bar = np.float32(np.inf)
        if fresh:
            for m in range(k):
                near[i, m] = np.inf
                index[i, m] = np.iinfo(np.int64).max
            # What has the largest products first, which gives a limit for the others.
            rank = block.shape[1] - k - (1 if within else 0)
            first_bar = np.partition(block[i], max(rank, 0))[max(rank, 0)]
        for turn in range(0 if fresh else 1, 2):
            column = 0
            for s in range(len(leaves)):
                other_base = other_starts[leaves[s]]
                length = other_starts[leaves[s] + 1] - other_base
                fine_limit = 0.0
                bar = np.float32(0.0)
                stale = True
                hits = 0
                if turn == 0:
                    bar = first_bar
                    hits = 1
                for j in range(length):
                    if stale and turn == 1:
                        top = (np.sqrt(2.0 * near[i, 0]) if cosine else near[i, 0]) * factor
                        reach = top + error[s]
                        bar = np.float32(-(0.5 * reach * reach + product_error[s]) * (1.0 + 2.0**-22))
                        reach = top + fine_error[s]
                        fine_limit = reach * reach * growth
                        stale = False
                        if hits == 0:
                            for m in range(column, column + length):
                                hits += block[i, m] >= bar
                            if hits == 0:
                                break
                    product = block[i, column + j]
                    if not product >= bar:
                        continue
                    if turn == 1 and product >= first_bar:
                        continue
                    q = other_base + j
                    if within and q == p:
                        continue
                    if turn == 1 and width > 0:
                        square = np.float32(0.0)
                        for m in range(width):
                            difference = fine[p, m] - other_fine[q, m]
                            square += difference * difference
                        if square > fine_limit:
                            continue
                    b = other_order[q]
                    distance = _distance(matrix, a, scales[a], other_matrix, b, other_scales[b], cosine)
                    if distance < near[i, 0] or (distance == near[i, 0] and b < index[i, 0]):
                        near[i, 0] = distance
                        index[i, 0] = b
                        _sink(near, index, i, 0, k)
                        stale = True
                column += length
        farthest = max(farthest, near[i, 0])
    return farthest


# ------------------------------------------------------------------------------------------------ PyTorch on a GPU


def _cuda(device: str | None) -> str | None:
    """The CUDA device to use, or None for the CPU."""
    if device == "cpu":
        return None
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else None
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise invalid("device", "'cpu', 'cuda' or None", device) from None
    if wanted.type != "cuda":
        raise invalid("device", "'cpu', 'cuda' or None", device)
    if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
        raise invalid("device", "one that PyTorch sees here", device)
    return device


def _torch_neighbors(
    ours: _Rows, theirs: _Rows, k: int, metric: str, device: str, progress: bool
) -> tuple[_Ints, _Floats]:  # fmt: skip
    """The k nearest neighbours by products over all dimensions on a device, decided in float64 on the CPU."""
    import torch

    from toolkit.reproducibility import full_precision

    cosine = metric == "cosine"
    within = ours is theirs
    count, n_features = theirs.matrix.shape
    space = _Space.of(ours, theirs, seek=False)
    # Some more than k, so that what float32 confuses is nearly always among them.
    most = min(k + 16, count - within)
    height = max(1, min(2048, _GPU_ELEMENTS // max(n_features, most)))
    length = max(most + 1, _GPU_ELEMENTS // max(n_features, height))
    indices = np.empty((len(ours.matrix), k), np.int64)
    distances = np.empty((len(ours.matrix), k))
    slack = 1.0 + (n_features + 16) * 2.0**-52

    def load(rows: _Rows, start: int, stop: int) -> tuple[Any, Any, _Floats]:
        block = np.empty((stop - start, n_features), np.float32)
        norms = np.empty(len(rows.matrix))
        _centred(rows.matrix, rows.scales, start, stop, space.factor, space.centre, block, norms)
        norms = norms[start:stop]
        return (
            torch.from_numpy(block).to(device),
            torch.from_numpy((0.5 * norms * norms).astype(np.float32)).to(device),
            norms,
        )

    ends = [(start, min(start + length, count)) for start in range(0, count, length)]
    held = load(theirs, 0, count) if len(ends) == 1 else None

    def keys(block: Any, halves: Any, first: int, begin: int, end: int) -> tuple[Any, float]:
        """Half the squared distances from rows `begin` to `end`, infinite for a row itself, and the largest norm."""
        other, other_halves, norms = held if held is not None else load(theirs, begin, end)
        found = torch.addmm(other_halves, block, other.T, alpha=-1.0).add_(halves[:, None])
        if within:
            low, high = max(first, begin), min(first + len(block), end)
            rows = torch.arange(low, max(low, high), device=device)
            found[rows - first, rows - begin] = torch.inf
        return found, float(norms.max())

    def finish(row: int, columns: _Ints) -> None:
        exact = np.empty(len(columns))
        _distances_from(ours.matrix, ours.scales, row, theirs.matrix, theirs.scales, columns, cosine, exact)
        best = np.lexsort((columns, exact))[:k]
        indices[row], distances[row] = columns[best], exact[best]

    shown = tqdm(total=len(indices), desc="searching", unit="row", disable=not progress)
    with full_precision(), torch.inference_mode(), shown as bar:
        for first in range(0, len(ours.matrix), height):
            last = min(first + height, len(ours.matrix))
            block, halves, norms = load(ours, first, last)
            top = torch.empty((last - first, 0), device=device)
            columns = torch.empty((last - first, 0), dtype=torch.int64, device=device)
            largest = 0.0
            for begin, end in ends:
                found, norm = keys(block, halves, first, begin, end)
                largest = max(largest, norm)
                some, where = found.topk(min(most, end - begin), largest=False)
                top, columns = torch.cat([top, some], 1), torch.cat([columns, where + begin], 1)
                if top.shape[1] > most:
                    top, where = top.topk(most, largest=False)
                    columns = columns.gather(1, where)
            chosen = columns.cpu().numpy()
            for row in range(first, last):
                finish(row, chosen[row - first])
            # What was not among the chosen is farther than the kth of these unless rounding can have hidden it.
            scaled = distances[first:last, -1] * slack
            scaled = (np.sqrt(2.0 * scaled) if cosine else scaled) * space.factor
            scaled += 1.01 * _UNIT * (norms + largest) + 2.0 * _TINY
            limit = 0.5 * scaled * scaled + (n_features + 16) * _UNIT * 0.51 * np.square(norms + largest) + _TINY**2
            left_out = most < count - within
            open_rows = np.flatnonzero(left_out & (top.amax(1).cpu().numpy() <= limit))
            for start in range(0, len(open_rows), 64):
                some_rows = open_rows[start : start + 64]
                picked = torch.from_numpy(some_rows).to(device)
                bound = torch.from_numpy(_rounded_up(limit[some_rows])).to(device)
                close: list[list[_Ints]] = [[] for _ in some_rows]
                for begin, end in ends:
                    # The rows' own places in the block are gone, so they are left out below.
                    other, other_halves, _ = held if held is not None else load(theirs, begin, end)
                    found = torch.addmm(other_halves, block[picked], other.T, alpha=-1.0).add_(halves[picked][:, None])
                    for at, mask in enumerate((found <= bound[:, None]).cpu().numpy()):
                        close[at].append(np.flatnonzero(mask) + begin)
                for row, pieces in zip(some_rows.tolist(), close, strict=True):
                    all_close = np.concatenate(pieces)
                    finish(first + row, all_close[all_close != first + row] if within else all_close)
            bar.update(last - first)
    return indices, distances


# ------------------------------------------------------------------------------------------------ faiss


@dataclass(frozen=True)
class _IndexOptions:
    """Which faiss index, and how it is searched."""

    factory: str
    nprobe: int | None
    ef_search: int | None
    device: str | None


def _faiss_gpus() -> int:
    """GPUs that faiss sees."""
    try:
        import faiss
    except ModuleNotFoundError:
        return 0
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def _index_neighbors(
    ours: _Rows, theirs: _Rows, k: int, metric: str, options: _IndexOptions, progress: bool
) -> tuple[_Ints, _Floats]:  # fmt: skip
    """What a faiss index finds, with distances in float64; rows of few neighbours are searched more widely."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('An index other than "exact" needs faiss: pip install faiss-cpu.') from error
    within = ours is theirs
    count, n_features = theirs.matrix.shape
    # About their mean the squares of float32 are most accurate, under the cosine too as distances stay the same.
    space = _Space.of(ours, theirs, seek=False)
    base, _ = space.project(theirs)
    queries = base if within else space.project(ours)[0]
    try:
        index = faiss.index_factory(n_features, options.factory, faiss.METRIC_L2)
        index.train(base)
        index.add(base)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f'`index` must be "exact" or an index of faiss that {count} vectors of {n_features} dimensions can be put '
            f"in, got {options.factory!r}: {reason}"
        ) from error
    if options.device != "cpu" and _faiss_gpus():
        try:
            index = faiss.index_cpu_to_all_gpus(index)
        except RuntimeError:
            log.info("index %s does not run on a GPU, so it runs on the CPU", options.factory)
    found = _search_index(faiss, index, queries, k + within, options, within, progress)
    wanted = np.arange(len(queries))
    if within:
        # Where a row was not found itself, the farthest of its neighbours is one too many.
        own = found == wanted[:, None]
        own[:, -1] |= ~own.any(axis=1)
        found = found[~own].reshape(len(found), k)
    distances = np.empty(found.shape)

    def measure(start: int, stop: int, _: int) -> None:
        for row in range(start, stop):
            _distances_from(
                ours.matrix, ours.scales, row, theirs.matrix, theirs.scales, found[row], metric == "cosine",
                distances[row],
            )  # fmt: skip
            best = np.lexsort((found[row], distances[row]))
            found[row], distances[row] = found[row, best], distances[row, best]

    _each_chunk(found, measure)
    return found, distances


def _search_index(
    faiss: Any, index: Any, queries: _Singles, k: int, options: _IndexOptions, within: bool, progress: bool
) -> _Ints:  # fmt: skip
    """Indices of shape (N, k), none of them missing, unless it is one that would be left out."""
    lists, graph = _parts_of(faiss, index)
    nprobe = options.nprobe or max(8, lists // 8)
    ef_search = options.ef_search or max(64, 4 * k)
    total = index.ntotal
    found = np.empty((len(queries), k), np.int64)
    todo = np.arange(len(queries))
    with tqdm(total=len(queries), desc="searching", unit="row", disable=not progress) as bar:
        while True:
            if lists:
                _set(faiss, index, "nprobe", min(nprobe, lists))
            if graph:
                _set(faiss, index, "efSearch", min(ef_search, total))
            short = []
            for start in range(0, len(todo), 8192):
                some = todo[start : start + 8192]
                rows = index.search(np.ascontiguousarray(queries[some]), k)[1]
                found[some] = rows
                missing = rows < 0
                if within:
                    # One may be missing at the end where the row itself was not found.
                    missing[:, -1] &= (rows == some[:, None]).any(axis=1)
                short.append(some[missing.any(axis=1)])
                bar.update(len(some) - len(short[-1]))
            todo = np.concatenate(short)
            if len(todo) == 0:
                return found
            if (nprobe >= lists or not lists) and (ef_search >= total or not graph):
                raise ValueError(
                    f"`index` must find {k - within} neighbours of every row, got fewer for {len(todo)} rows from "
                    f'{options.factory!r} with all of it searched. Choose a smaller `k` or index="exact".'
                )
            nprobe, ef_search = 2 * nprobe, 2 * ef_search


def _parts_of(faiss: Any, index: Any) -> tuple[int, bool]:
    """The number of inverted lists of an index, 0 if it has none, and whether it searches a graph."""
    inner = index
    while True:
        inner = faiss.downcast_index(inner)
        if hasattr(inner, "nlist"):
            # The quantizer may be a graph, whose width matters far less than the lists.
            return int(inner.nlist), False
        if hasattr(inner, "hnsw"):
            return 0, True
        if hasattr(inner, "base_index"):
            inner = inner.base_index
        elif isinstance(inner, faiss.IndexPreTransform):
            inner = inner.index
        else:
            return 0, False


def _set(faiss: Any, index: Any, name: str, value: int) -> None:
    """Set a parameter of the search."""
    on_gpu = _faiss_gpus() and type(index).__name__.startswith(("Gpu", "IndexReplicas", "IndexShards"))
    space = faiss.GpuParameterSpace() if on_gpu else faiss.ParameterSpace()
    space.set_index_parameter(index, name, value)


def _recall(ours: _Rows, theirs: _Rows, distances: _Floats, metric: str, sample: int) -> float:
    """Share of the true neighbours of some rows that are among those found, by their distances."""
    if sample == 0:
        return math.nan
    count, k = distances.shape
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:sample])
    some = _Rows(ours.matrix[chosen], ours.scales[chosen], ours.largest)
    within = ours is theirs
    indices, exact = _exact_neighbors(some, theirs, k + within, metric, False)
    if within:
        own = indices == chosen[:, None]
        own[:, -1] |= ~own.any(axis=1)
        exact = exact[~own].reshape(len(chosen), k)
    # Equally near ones count, whichever of them were found.
    return float((distances[chosen] <= exact[:, -1:] * (1.0 + 1e-12)).mean())
