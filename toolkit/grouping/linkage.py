"""Agglomerative grouping of feature vectors, exact and without an N x N matrix.

Merges are found in rounds. A round picks a bound t, finds every pair of groups whose dissimilarity is at most t as a
sparse graph, and runs the nearest-neighbour chain algorithm on that graph: as the three linkages are reducible, this
gives exactly the merges of the full dendrogram up to t. The groups are then contracted and the next round starts with
a larger t. Memory is bounded by the pairs a round may hold, not by N squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from toolkit.processors import n_processors
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = ["LINKAGES", "METRICS", "MergeTree", "agglomerate", "merge_tree"]

#: Linkages offered: how the dissimilarity of two groups follows from that of their members.
LINKAGES = ("complete", "average", "single", "ward")
#: Dissimilarities offered.
METRICS = ("cosine", "euclidean")

#: Pairs of groups that a round may hold; about 45 bytes each at the peak, so 1 GiB.
_MAX_PAIRS = 24_000_000
#: Pairs a round aims for, per group: more cost sorting, fewer cost rounds.
_MAX_DEGREE = 256.0
#: With at most this many pairs of groups left, all of them are taken in one last round.
_ALL_PAIRS = 1 << 20
#: Vectors that average linkage under the Euclidean distance may have: it needs two copies of all N (N - 1) / 2
#: distances (1 GiB each at the limit), as means of vectors do not give means of distances.
_MAX_DENSE = 16_384
#: Block of the matrix of similarities that a thread holds at a time (2 MiB, which stays in the cache).
_BLOCK_ROWS = 256
_BLOCK_COLUMNS = 2048
#: Blocks after which the threads wait for each other, and the search stops if it has found too much.
_BATCH = 32
#: Numbers of the feature matrix converted at a time.
_CHUNK_ELEMENTS = 1 << 22
#: Rows of the sample from which the bound of a round is chosen.
_SAMPLE_ROWS = 256

_Floats = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]
_Shorts = npt.NDArray[np.int32]
_F = TypeVar("_F", bound=Callable[..., Any])


def _kernel(function: _F) -> _F:
    """Compile `function`; sums may be reordered (which vectorises them), NaN and infinities keep their meaning."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}}
    try:
        return cast("_F", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # No folder to keep compiled code in can be written to: it is compiled anew in every process.
        return cast("_F", numba.njit(**options)(function))


@dataclass(frozen=True)
class MergeTree:
    """The merges of an agglomerative clustering, in the order of their heights.

    Args:
        n_leaves: Number of vectors N.
        children: int64 of shape (M, 2): the nodes that merge k joins. Leaves are nodes 0 to N - 1 and merge k makes
            node N + k; in a row, the child with the smaller lowest member comes first.
        heights: float64 of shape (M,), not decreasing: the dissimilarity at which each merge happens.
        linkage: The linkage, one of `LINKAGES`.
        metric: The dissimilarity, one of `METRICS`.
        reach: The largest threshold at which the merges are known to be all there; infinite for a complete tree.

    Example:
        >>> tree = merge_tree([[0.0], [1.0], [5.0], [7.0]], metric="euclidean")
        >>> tree.heights.tolist()
        [1.0, 2.0, 7.0]
        >>> tree.children.tolist()
        [[0, 1], [2, 3], [4, 5]]
        >>> tree.cut(n_groups=3).tolist()
        [0, 0, 1, 2]
    """

    n_leaves: int
    children: _Ints
    heights: _Floats
    linkage: str
    metric: str
    reach: float = math.inf

    @property
    def n_merges(self) -> int:
        """Number of merges M."""
        return len(self.children)

    @property
    def min_groups(self) -> int:
        """The smallest number of groups that a cut can give, N - M."""
        return self.n_leaves - self.n_merges

    def cut(self, n_groups: int | None = None, threshold: float | None = None) -> _Ints:
        """The groups after the first merges of the tree.

        Args:
            n_groups: Number of groups, from `min_groups` to N. Exactly one of `n_groups` and `threshold` is needed.
            threshold: Do all merges whose height is at most this.

        Returns:
            int64 of shape (N,): the group of each vector, numbered by first occurrence.

        Raises:
            ValueError: If both or neither are given, if `n_groups` is below what the tree reaches or above N, or if
                the tree was stopped before `threshold`.
            TypeError: If `n_groups` is not an integer or `threshold` not a number.

        Example:
            >>> tree = merge_tree([[0.0], [1.0], [5.0], [7.0]], metric="euclidean")
            >>> tree.cut(threshold=2.0).tolist()
            [0, 0, 1, 1]
        """
        n_merges = self.n_leaves - self._groups(n_groups, threshold)
        return cast("_Ints", _labels_after(self.n_leaves, self.children, n_merges))

    def _groups(self, n_groups: int | None, threshold: float | None) -> int:
        """The number of groups that either argument of `cut` stands for."""
        n_groups, threshold = _check_stop(n_groups, threshold, self.n_leaves)
        if threshold is None:
            n_groups = cast("int", n_groups)
            if n_groups < self.min_groups:
                raise invalid("n_groups", f"at least {self.min_groups}, where the tree was stopped", n_groups)
            return n_groups
        if threshold > self.reach and self.min_groups > 1:
            raise invalid("threshold", f"at most {self.reach:.6g}, where the tree was stopped", threshold)
        return self.n_leaves - int(np.searchsorted(self.heights, threshold, side="right"))


def agglomerate(
    features: npt.ArrayLike,
    n_groups: int | None = None,
    threshold: float | None = None,
    linkage: str = "complete",
    metric: str = "cosine",
) -> _Ints:
    """Group vectors by agglomerative clustering, down to a number of groups or up to a dissimilarity.

    Args:
        features: Vectors of shape (N, D).
        n_groups: Number of groups, 1 to N. Exactly one of `n_groups` and `threshold` is needed.
        threshold: Merge groups up to and including this dissimilarity.
        linkage: One of `LINKAGES`, see `merge_tree`.
        metric: One of `METRICS`, see `merge_tree`.

    Returns:
        int64 of shape (N,): the group of each vector, numbered by first occurrence.

    Raises:
        ValueError: As `merge_tree`, and if both or neither of `n_groups` and `threshold` are given.
        TypeError: As `merge_tree`.

    Example:
        >>> agglomerate([[1.0, 0.0], [0.0, 1.0], [3.0, 0.1], [0.1, 2.0]], n_groups=2).tolist()
        [0, 1, 0, 1]
        >>> agglomerate([[1.0, 0.0], [0.0, 1.0], [3.0, 0.1], [0.1, 2.0]], threshold=0.001).tolist()
        [0, 1, 0, 2]
    """
    if (n_groups is None) == (threshold is None):
        raise _both_or_neither(n_groups, threshold)
    tree = merge_tree(features, n_groups=n_groups, threshold=threshold, linkage=linkage, metric=metric)
    return tree.cut(n_groups=n_groups, threshold=threshold)


def merge_tree(
    features: npt.ArrayLike,
    n_groups: int | None = 1,
    threshold: float | None = None,
    linkage: str = "complete",
    metric: str = "cosine",
    progress: Callable[[float], None] | None = None,
) -> MergeTree:
    """The tree of merges of agglomerative clustering, as far as it is asked for.

    The dissimilarity of two vectors is the cosine dissimilarity 1 - <u, v> / (|u| |v|) or the Euclidean distance; that
    of two groups is the largest ("complete"), the mean ("average") or the smallest ("single") of their members'. The
    two nearest groups are merged again and again. Cosine dissimilarities are computed as half the squared distance of
    the unit vectors in float64, so that duplicates are at 0 exactly.

    "ward" merges the two groups A and B whose merge adds least to the sum of squared distances to the groups' means,
    which is g = |A| |B| / (|A| + |B|) * |mean(A) - mean(B)|^2. Under the Euclidean distance its height is sqrt(2 g),
    the distance for two single vectors, as in scipy and scikit-learn. Under the cosine it is Ward's linkage of the unit
    vectors and its height is g itself, which is the cosine dissimilarity for two single vectors; scipy and
    scikit-learn have no such linkage.

    Ties: complete and single linkage order pairs of vectors by (dissimilarity, lower index, higher index), which leaves
    no tie and makes the result a function of the data; average and Ward's linkage take the lower group number.

    Memory is some copies of the vectors in float64 plus at most about 1 GiB of pairs. Average linkage under
    the Euclidean distance needs all N (N - 1) / 2 distances twice and is limited to 16,384 vectors. Ward's linkage
    copies only the vectors that have a near neighbour, so that few merges of many long vectors need little more than
    the vectors themselves; those may be integers.

    Args:
        features: Vectors of shape (N, D); read in chunks, so a memory map is not loaded whole in its own dtype.
        n_groups: Stop at this many groups, 1 to N. Not looked at where `threshold` is given.
        threshold: Do all merges up to and including this dissimilarity instead.
        linkage: One of `LINKAGES`.
        metric: One of `METRICS`.
        progress: Called after each round with the fraction of the merges done (with a threshold, of N - 1).

    Returns:
        The tree, with N - `n_groups` merges or those up to `threshold`.

    Raises:
        ValueError: If the features are not a finite matrix or have zero rows under the cosine, if `n_groups` is not in
            1 to N or `threshold` is negative or NaN, if `linkage` or `metric` are unknown, or if there are more vectors
            than average linkage under the Euclidean distance allows.
        TypeError: If the features are not numbers, `n_groups` is not an integer or `threshold` not a number.

    References:
        Müllner, "Modern hierarchical, agglomerative clustering algorithms", arXiv 1109.2378 (nearest-neighbour chain;
        here on the sparse graph of near pairs). Ward, "Hierarchical grouping to optimize an objective function",
        Journal of the American Statistical Association 58 (1963). Birodkar, Mobahi and Bengio, "Semantic redundancies
        in image-classification datasets: the 10% you don't need", arXiv 1901.11409 (cosine, linkage not stated).

    Example:
        >>> tree = merge_tree([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]], n_groups=2)
        >>> tree.children.tolist(), tree.heights.round(6).tolist()
        ([[0, 2], [1, 3]], [0.0, 0.292893])
    """
    check_choice("linkage", linkage, LINKAGES)
    check_choice("metric", metric, METRICS)
    matrix: npt.NDArray[Any] = np.asanyarray(features)
    if not (linkage == "ward" and metric == "euclidean" and _small_integers(matrix)):
        matrix = check_vectors(matrix, nonzero=metric == "cosine")
    n_leaves = len(matrix)
    if threshold is None and n_groups is None:
        raise _both_or_neither(n_groups, threshold)
    n_groups, threshold = _check_stop(None if threshold is not None else n_groups, threshold, n_leaves)
    report = progress if progress is not None else _ignore
    wanted = n_leaves - (n_groups if n_groups is not None else 1)
    if linkage == "ward":
        # It needs what is defined here, and `toolkit.neighbors`.
        from toolkit.grouping.ward import ward_merges

        merges = ward_merges(matrix, metric, wanted, threshold, report)
    elif linkage == "average" and metric == "euclidean":
        merges = _dense_average(matrix)
    else:
        merges = _sparse(matrix, linkage, metric, wanted, threshold, report)
    report(1.0)
    return _finish(merges, n_leaves, linkage, metric, wanted, threshold)


# ------------------------------------------------------------------------------------------------ arguments


def _ignore(_: float) -> None:
    """What reports progress to nobody."""


def _small_integers(matrix: npt.NDArray[Any]) -> bool:
    """Whether it is a matrix of integers that float32 holds exactly: finite, and no larger copy is needed."""
    return matrix.dtype.kind in "iu" and matrix.dtype.itemsize <= 2 and matrix.ndim == 2 and 0 not in matrix.shape


def _both_or_neither(n_groups: object, threshold: object) -> ValueError:
    return ValueError(f"Exactly one of `n_groups` and `threshold` must be given, got {n_groups!r} and {threshold!r}.")


def _check_stop(n_groups: int | None, threshold: float | None, n_leaves: int) -> tuple[int | None, float | None]:
    """Exactly one of the two, as plain numbers."""
    if (n_groups is None) == (threshold is None):
        raise _both_or_neither(n_groups, threshold)
    if n_groups is not None:
        if isinstance(n_groups, bool) or not isinstance(n_groups, (int, np.integer)):
            raise TypeError(f"`n_groups` must be an integer, got {n_groups!r}.")
        if not 1 <= n_groups <= n_leaves:
            raise invalid("n_groups", f"in 1 to {n_leaves}, the number of vectors", int(n_groups))
        return int(n_groups), None
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.integer, np.floating)):
        raise TypeError(f"`threshold` must be a number, got {threshold!r}.")
    if not threshold >= 0:
        raise invalid("threshold", "a dissimilarity of at least 0", float(threshold))
    return None, float(threshold)


# ------------------------------------------------------------------------------------------------ the parts of a tree


@dataclass(frozen=True)
class _Merges:
    """Merges in order, each by one leaf of either group, and the height up to which there are no others."""

    first: _Ints
    second: _Ints
    heights: _Floats
    reach: float


def _finish(
    merges: _Merges, n_leaves: int, linkage: str, metric: str, wanted: int, threshold: float | None
) -> MergeTree:
    """Cut the surplus merges off and number the nodes."""
    heights = merges.heights
    reach = math.inf if len(heights) == n_leaves - 1 else merges.reach
    keep = wanted if threshold is None else int(np.searchsorted(heights, threshold, side="right"))
    if keep < len(heights):
        # What was cut off begins at heights[keep], so the tree has all merges strictly below it.
        reach = threshold if threshold is not None else float(np.nextafter(heights[keep], -math.inf))
        if keep > 0 and threshold is None and heights[keep] > heights[keep - 1]:
            reach = float(heights[keep - 1])
    children = _number_nodes(n_leaves, merges.first[:keep], merges.second[:keep])
    return MergeTree(n_leaves, children, heights[:keep].copy(), linkage, metric, reach)


@_kernel
def _root(parent: Any, leaf: int) -> int:
    """The root of `leaf`, halving the path to it."""
    while parent[leaf] != leaf:
        parent[leaf] = parent[parent[leaf]]
        leaf = parent[leaf]
    return leaf


@_kernel
def _number_nodes(n_leaves: int, first: Any, second: Any) -> Any:
    """Children of every merge, from one leaf of either side."""
    parent = np.arange(n_leaves)
    node = np.arange(n_leaves)
    children = np.empty((len(first), 2), np.int64)
    for k in range(len(first)):
        a = _root(parent, first[k])
        b = _root(parent, second[k])
        # The root of a group is its lowest member.
        low = min(a, b)
        high = max(a, b)
        children[k, 0] = node[low]
        children[k, 1] = node[high]
        parent[high] = low
        node[low] = n_leaves + k
    return children


@_kernel
def _labels_after(n_leaves: int, children: Any, n_merges: int) -> Any:
    """Groups after the first merges, numbered by first occurrence."""
    top = np.arange(n_leaves + n_merges)
    for k in range(n_merges - 1, -1, -1):
        top[children[k, 0]] = top[n_leaves + k]
        top[children[k, 1]] = top[n_leaves + k]
    number = np.full(n_leaves + n_merges, -1, np.int64)
    labels = np.empty(n_leaves, np.int64)
    count = 0
    for leaf in range(n_leaves):
        if number[top[leaf]] < 0:
            number[top[leaf]] = count
            count += 1
        labels[leaf] = number[top[leaf]]
    return labels


def _dense_average(matrix: npt.NDArray[Any]) -> _Merges:
    """Average linkage of Euclidean distances, from all of them."""
    from scipy.cluster.hierarchy import linkage

    n_leaves = len(matrix)
    if n_leaves > _MAX_DENSE:
        raise invalid(
            "features",
            f"at most {_MAX_DENSE} vectors for average linkage under the Euclidean distance (use the cosine, or "
            "another linkage)",
            n_leaves,
        )
    if n_leaves == 1:
        empty = np.empty(0, np.int64)
        return _Merges(empty, empty, np.empty(0), math.inf)
    joined = linkage(matrix.astype(np.float64), method="average", metric="euclidean")
    lowest = np.empty(2 * n_leaves - 1, np.int64)
    lowest[:n_leaves] = np.arange(n_leaves)
    pairs = joined[:, :2].astype(np.int64)
    for k, (a, b) in enumerate(pairs.tolist()):
        lowest[n_leaves + k] = min(lowest[a], lowest[b])
    return _Merges(lowest[pairs[:, 0]], lowest[pairs[:, 1]], np.maximum.accumulate(joined[:, 2]), math.inf)


# ------------------------------------------------------------------------------------------------ points


@dataclass(frozen=True)
class _Points:
    """The distinct vectors in the form that dissimilarities are computed from.

    The key of a pair is half the squared distance (plus both spreads): it is the cosine dissimilarity itself for unit
    vectors, and grows with the Euclidean distance.
    """

    exact: _Floats  # (P, D): unit vectors, or vectors scaled to a norm of about 1
    rough: _Singles  # (P, D): the same, about their mean for the Euclidean distance
    offset: _Floats  # (P,): half the squared norm of `rough`, plus the spread
    spread: _Floats  # (P,): half the mean dissimilarity of a group's members from themselves (average linkage), else 0
    margin: float  # bound of |key from `rough` - key from `exact`|
    weight: _Ints  # (P,): number of leaves
    leaf: _Ints  # (P,): lowest leaf with this vector
    tie: _Ints  # (P,): leaf that stands for the vector where dissimilarities tie


def _prepare(matrix: npt.NDArray[Any], linkage: str, metric: str) -> tuple[_Points, _Ints, _Ints, float]:
    """The distinct vectors, the merges of duplicates (as pairs of leaves, in order) and the scale of the vectors."""
    n_leaves, n_features = matrix.shape
    rows = max(1, _CHUNK_ELEMENTS // n_features)
    chunks = [slice(start, start + rows) for start in range(0, n_leaves, rows)]
    exact = np.empty((n_leaves, n_features))
    exponent = 0
    if metric == "euclidean":
        largest = max(float(np.abs(matrix[chunk]).max()) for chunk in chunks) * math.sqrt(n_features)
        exponent = -math.frexp(largest)[1] if largest > 0 else 0
    for chunk in chunks:
        block = np.asarray(matrix[chunk], dtype=np.float64)
        if metric == "cosine":
            # Scaled first, as squares of very small or large numbers leave the range of float64.
            block = np.ldexp(block, -np.frexp(np.abs(block).max(axis=1, keepdims=True))[1])
            block /= np.sqrt(np.einsum("ij,ij->i", block, block))[:, None]
        else:
            block = np.ldexp(block, exponent)
        exact[chunk] = block
        exact[chunk] += 0.0  # -0 to 0, so that equal rows have equal bits

    leaf, last, weight, twin_first, twin_second = _distinct(exact, linkage)
    if len(leaf) < n_leaves:
        exact = exact[leaf]
    tie = last if linkage == "complete" else leaf
    points = _points(exact, np.zeros(len(exact)), weight, leaf, tie, centred=metric == "euclidean")
    return points, twin_first, twin_second, math.ldexp(1.0, -exponent)


def _points(exact: _Floats, spread: _Floats, weight: _Ints, leaf: _Ints, tie: _Ints, *, centred: bool) -> _Points:
    """The vectors with their rough form and the bound of its error."""
    count, n_features = exact.shape
    rough = np.empty(exact.shape, np.float32)
    offset = np.empty(count)
    centre = exact.mean(axis=0) if centred else np.zeros(n_features)
    rows = max(1, _CHUNK_ELEMENTS // n_features)
    largest = 0.0
    for start in range(0, count, rows):
        block = exact[start : start + rows] - centre
        rough[start : start + rows] = block
        offset[start : start + rows] = 0.5 * np.einsum("ij,ij->i", block, block)
        largest = max(largest, float(np.abs(exact[start : start + rows]).max()))
    norm = 2.0 * float(offset.max())
    # Keys below have an error in float32 from rounding the inputs (2 units), from D products and sums, and from the
    # offsets and their differences (6); and in float64 from the centring, as a share of the uncentred values.
    centring = 2.0**-52 * largest * math.sqrt(n_features)
    margin = (n_features + 8) * 2.0**-24 * (norm + float(spread.max())) + 8 * centring * (math.sqrt(norm) + centring)
    return _Points(exact, rough, offset + spread, spread, margin + 2.0**-120, weight, leaf, tie)


def _distinct(exact: _Floats, linkage: str) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints]:
    """First row, last row and number of rows of each distinct vector, and the merges that join equal rows."""
    identity = np.arange(len(exact))
    hashes = _hash_rows(exact.view(np.uint64))
    previous = _previous_twin(exact, hashes, np.argsort(hashes, kind="stable"))
    twins = np.flatnonzero(previous >= 0)
    if len(twins) == 0:
        return identity, identity, np.ones_like(identity), twins, twins
    first = identity.copy()
    last = identity.copy()
    for row in twins.tolist():
        first[row] = first[previous[row]]
        last[first[row]] = row
    # All at 0: in the order of the pairs of leaves that decide each linkage.
    partner = first[twins] if linkage == "single" else previous[twins]
    sequence = np.lexsort((twins, partner))
    leaf = np.flatnonzero(previous < 0)
    return leaf, last[leaf], np.bincount(first)[leaf], partner[sequence], twins[sequence]


@_kernel
def _hash_rows(bits: Any) -> Any:
    """A 64-bit hash of every row."""
    out = np.empty(len(bits), np.uint64)
    for i in range(len(bits)):
        value = np.uint64(14695981039346656037)
        for k in range(bits.shape[1]):
            value = (value ^ bits[i, k]) * np.uint64(1099511628211)
            value ^= value >> np.uint64(29)
        out[i] = value
    return out


@_kernel
def _previous_twin(exact: Any, hashes: Any, order: Any) -> Any:
    """The closest earlier row that equals each row, or -1; `order` sorts the hashes and is stable."""
    previous = np.full(len(order), -1, np.int64)
    for k in range(1, len(order)):
        # A row of another vector with the same hash may lie between two twins: these then stay distinct points at
        # dissimilarity 0, which is correct too.
        i = order[k - 1]
        j = order[k]
        if hashes[i] == hashes[j]:
            same = True
            for c in range(exact.shape[1]):
                if exact[i, c] != exact[j, c]:
                    same = False
                    break
            if same:
                previous[j] = i
    return previous


@_kernel
def _key(exact: Any, i: int, j: int) -> float:
    """Half the squared distance of two rows."""
    total = 0.0
    for k in range(exact.shape[1]):
        difference = exact[i, k] - exact[j, k]
        total += difference * difference
    return 0.5 * total


# ------------------------------------------------------------------------------------------------ pairs of groups


@dataclass(frozen=True)
class _Groups:
    """Groups of points, in the order of their lowest members."""

    members: _Ints  # (P,): points, group by group; the first of each group stands for it in the rough search
    starts: _Ints  # (G + 1,)

    @property
    def count(self) -> int:
        """Number of groups G."""
        return len(self.starts) - 1


def _grouped(labels: _Ints, count: int) -> _Groups:
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(labels, minlength=count), out=starts[1:])
    return _Groups(np.argsort(labels, kind="stable"), starts)


@dataclass(frozen=True)
class _Bound:
    """Pairs up to (key, lower tie index); the second part splits a level of equal keys that is too large at once."""

    key: float
    tie: int


@dataclass(frozen=True)
class _Found:
    """Pairs of points that decide the dissimilarity of pairs of groups, and the share of all pairs looked at."""

    keys: _Floats
    first: _Shorts
    second: _Shorts
    share: float


def _threads() -> int:
    """Threads for the kernels, which leave the interpreter's lock."""
    return min(8, n_processors())


def _sweep(rough: _Singles, visit: Callable[[int, _Singles, int, int], None]) -> Iterator[float]:
    """Call `visit(worker, block, row, column)` for all blocks of rough @ rough.T that reach above the diagonal.

    Each thread multiplies and looks at blocks of its own, with single-threaded products: threads that share one product
    wait for each other at every block, which costs most where other programs use the machine too.

    Yields:
        After every batch of blocks, the share of the pairs in those that were visited.
    """
    count = len(rough)
    rows = max(1, min(_BLOCK_ROWS, count // 16))
    blocks = [(row, column) for row in range(0, count, rows) for column in range(row, count, _BLOCK_COLUMNS)]
    workers = min(_threads(), len(blocks))
    spaces = [np.empty(rows * min(_BLOCK_COLUMNS, count), np.float32) for _ in range(workers)]
    lock = Lock()

    def work(worker: int, todo: Iterator[tuple[int, int]]) -> int:
        pairs = 0
        while True:
            with lock:
                at = next(todo, None)
            if at is None:
                return pairs
            row, column = at
            upper, lower = rough[row : row + rows], rough[column : column + _BLOCK_COLUMNS]
            block = spaces[worker][: len(upper) * len(lower)].reshape(len(upper), len(lower))
            np.matmul(upper, lower.T, out=block)
            visit(worker, block, row, column)
            pairs += block.size
            if column == row:
                pairs -= len(upper) * (len(upper) + 1) // 2

    total = count * (count - 1) / 2
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(blocks), _BATCH):
            todo = iter(blocks[start : start + _BATCH])
            done += sum(pool.map(work, range(workers), [todo] * workers))
            yield min(done / total, 1.0 - 2.0**-30) if start + _BATCH < len(blocks) else 1.0


def _find_pairs(points: _Points, groups: _Groups, bound: _Bound, most: int) -> _Found:
    """All pairs of groups up to a bound, or the first of them (by row) where there are more than `most`."""
    heads = groups.members[groups.starts[:-1]]
    offset = points.offset[heads]
    offset32 = offset.astype(np.float32)
    least = (offset - bound.key - points.margin).astype(np.float32)
    capacity = max(1 << 15, 2 * _BLOCK_COLUMNS)
    spaces = [
        (np.empty(capacity), np.empty(capacity, np.int32), np.empty(capacity, np.int32)) for _ in range(_threads())
    ]
    parts: list[tuple[_Floats, _Shorts, _Shorts]] = []

    def scan(worker: int, block: _Singles, row: int, column: int) -> None:
        keys, first, second = spaces[worker]
        begin = 0
        while begin < len(block):
            count, begin = _scan(
                block, row, column, begin, offset32, least, bound.key, bound.tie, points.exact, points.spread,
                points.tie, groups.members, groups.starts, keys, first, second,
            )  # fmt: skip
            if count:
                parts.append((keys[:count].copy(), first[:count].copy(), second[:count].copy()))

    share = 0.0
    seen = found = 0
    for share in _sweep(points.rough[heads], scan):  # noqa: B007 (the last one counts)
        found += sum(len(part[0]) for part in parts[seen:])
        seen = len(parts)
        if found > most:
            break
    return _joined(parts, share)


def _joined(parts: list[tuple[_Floats, _Shorts, _Shorts]], share: float) -> _Found:
    """One array each; the parts are emptied to keep the peak low."""
    if not parts:
        return _Found(np.empty(0), np.empty(0, np.int32), np.empty(0, np.int32), share)
    keys = np.concatenate([part[0] for part in parts])
    first = np.concatenate([part[1] for part in parts])
    second = np.concatenate([part[2] for part in parts])
    parts.clear()
    return _Found(keys, first, second, share)


@_kernel
def _scan(
    block: Any, row: int, column: int, begin: int, offset: Any, least: Any, limit: float, limit_tie: int,
    exact: Any, spread: Any, tie: Any, members: Any, starts: Any, keys: Any, first: Any, second: Any,
) -> tuple[int, int]:  # fmt: skip
    """Pairs of groups of a block within the limit, by their farthest pair of members; returns (count, next row)."""
    width = block.shape[1]
    count = 0
    for r in range(begin, len(block)):
        a = row + r
        if len(keys) - count < width:
            return count, r
        c = max(0, a + 1 - column)
        while c < width:
            stop = min(c + 64, width)
            hits = 0
            # Free of branches, so that it runs on whole vector registers: nearly all chunks end here.
            for k in range(c, stop):
                hits += block[r, k] - offset[column + k] >= least[a]
            if hits > 0:
                for k in range(c, stop):
                    if not block[r, k] - offset[column + k] >= least[a]:
                        continue
                    b = column + k
                    best = -1.0
                    low = -1
                    high = -1
                    inside = True
                    for p in range(starts[a], starts[a + 1]):
                        i = members[p]
                        for q in range(starts[b], starts[b + 1]):
                            j = members[q]
                            key = _key(exact, i, j) + spread[i] + spread[j]
                            if key > limit:
                                inside = False
                                break
                            if key >= best:
                                x = i
                                y = j
                                if tie[i] > tie[j]:
                                    x = j
                                    y = i
                                if key == limit and tie[x] > limit_tie:
                                    inside = False
                                    break
                                if key > best or tie[x] > tie[low] or (tie[x] == tie[low] and tie[y] > tie[high]):
                                    best = key
                                    low = x
                                    high = y
                        if not inside:
                            break
                    if inside:
                        keys[count] = best
                        first[count] = low
                        second[count] = high
                        count += 1
            c = stop
    return count, len(block)


def _order(found: _Found, tie: _Ints) -> _Ints:
    """What sorts pairs by (key, lower tie index, higher tie index)."""
    order = np.argsort(found.keys)
    keys = found.keys[order]
    same = keys[1:] == keys[:-1]
    if same.any():
        # A full lexicographic sort only of those that tie: it is several times slower.
        tied = np.zeros(len(keys), bool)
        tied[1:] |= same
        tied[:-1] |= same
        where = np.flatnonzero(tied)
        some = order[where]
        order[where] = some[np.lexsort((tie[found.second[some]], tie[found.first[some]], found.keys[some]))]
    return order


# ------------------------------------------------------------------------------------------------ rounds


def _sparse(
    matrix: npt.NDArray[Any], linkage: str, metric: str, wanted: int, threshold: float | None,
    report: Callable[[float], None],
) -> _Merges:  # fmt: skip
    """All merges up to the threshold or at least as many as wanted, in order."""
    points, twin_first, twin_second, scale = _prepare(matrix, linkage, metric)
    limit = math.inf
    if threshold is not None:
        limit = threshold
        if metric == "euclidean":
            # A little more than asked for: rounding must not lose a merge at the threshold, the height decides later.
            limit = 0.5 * (threshold / scale) * (threshold / scale) * (1 + 2.0**-48)
    rounds = _Rounds(points, linkage, limit, wanted - len(twin_first))
    # The threads of `_sweep` each make products of their own; restored on the way out.
    with threadpool_limits(1, user_api="blas"):
        while rounds.unfinished():
            report((len(twin_first) + rounds.done) / wanted)
            rounds.advance()
    heights = np.concatenate([np.zeros(len(twin_first)), *rounds.keys])
    if linkage == "average":
        # Means are computed anew in each round, which may lower them by a rounding error.
        heights = np.maximum.accumulate(heights)
    reach = rounds.bound.key if rounds.bound.tie == rounds.last_tie else math.nextafter(rounds.bound.key, -math.inf)
    if metric == "euclidean":
        heights = np.sqrt(2.0 * heights) * scale
        reach = math.sqrt(2.0 * reach) * scale if reach > 0 else reach
    return _Merges(
        np.concatenate([twin_first, *rounds.first]),
        np.concatenate([twin_second, *rounds.second]),
        heights,
        reach if threshold is None else threshold,
    )


class _Rounds:
    """The rounds of one clustering: what is merged so far, and up to which bound."""

    def __init__(self, points: _Points, linkage: str, limit: float, wanted: int) -> None:
        self.points = points
        self.linkage = linkage
        self.limit = limit
        self.wanted = wanted
        self.done = 0
        self.last_tie = int(points.tie.max())
        self.bound = _Bound(-math.inf, self.last_tie)
        self.boost = 1.0
        self.labels = np.arange(len(points.leaf))
        # The lowest leaf of each group; groups are in this order. For average linkage, `points` has the means of the
        # groups as its vectors, so that there every group has one point.
        self.leaf = points.leaf
        self.first: list[_Ints] = []
        self.second: list[_Ints] = []
        self.keys: list[_Floats] = []

    def unfinished(self) -> bool:
        """Whether merges are missing that are wanted and can be found."""
        at_limit = self.bound.key >= self.limit and self.bound.tie == self.last_tie
        return self.done < self.wanted and len(self.leaf) > 1 and not at_limit

    def advance(self) -> None:
        """One round."""
        if self.linkage == "single" and self.bound.key >= 0:
            self._join_nearest()
            return
        groups = _grouped(self.labels, len(self.leaf))
        found, bound = self._find(groups)
        order = _order(found, self.points.tie)
        keys = found.keys[order]
        first = self.labels[found.first[order]].astype(np.int32)
        second = self.labels[found.second[order]].astype(np.int32)
        del found, order
        if self.linkage == "average":
            self._average(keys, first, second, bound)
        elif self.linkage == "complete":
            low, high, rank = _chain_complete(groups.count, first, second)
            sequence = np.argsort(rank)
            self._contract(low[sequence], high[sequence], keys[rank[sequence]])
        else:
            kept = _forest(groups.count, first, second)
            self._contract(first[kept].astype(np.int64), second[kept].astype(np.int64), keys[kept])
        if 4 * (groups.count - len(self.leaf)) < groups.count:
            self.boost *= 2.0
        self.bound = bound

    def _average(self, keys: _Floats, first: _Shorts, second: _Shorts, bound: _Bound) -> None:
        """The merges of average linkage on the graph of pairs, and the means of the new groups."""
        points = self.points
        exact, spread, weight = points.exact.copy(), points.spread.copy(), points.weight.copy()
        low, high, heights = _chain_average(keys, first, second, bound.key, exact, spread, weight)
        # Stable: a merge at the height of one of its children was made after it.
        sequence = np.argsort(heights, kind="stable")
        self._contract(low[sequence], high[sequence], heights[sequence])
        alive = np.ones(len(exact), bool)
        alive[high] = False
        leaf = points.leaf[alive]
        self.points = _points(exact[alive], spread[alive], weight[alive], leaf, leaf, centred=False)
        self.labels = np.arange(len(leaf))

    def _contract(self, first: _Ints, second: _Ints, keys: _Floats) -> None:
        """Note merges of groups, in order, and make the groups that they leave."""
        self.first.append(self.leaf[first])
        self.second.append(self.leaf[second])
        self.keys.append(keys)
        self.done += len(first)
        count = len(self.leaf)
        new = _labels_after(count, _number_nodes(count, first, second), len(first))
        # Both are numbered by first occurrence, so the first of each new group has its lowest leaf.
        self.leaf = self.leaf[np.unique(new, return_index=True)[1]]
        self.labels = new[self.labels]

    def _find(self, groups: _Groups) -> tuple[_Found, _Bound]:
        """The pairs of groups up to a bound beyond that of the last round, and that bound."""
        bound = self._next_bound(groups)
        most = _MAX_PAIRS
        while True:
            found = _find_pairs(self.points, groups, bound, most)
            if found.share == 1.0:
                return found, bound
            lower = self._lower(found, most)
            if (lower.key, lower.tie) >= (bound.key, bound.tie):
                # A level of equal keys that cannot be split.
                most *= 2
            bound = min(lower, bound, key=lambda item: (item.key, item.tie))

    def _next_bound(self, groups: _Groups) -> _Bound:
        """A bound that is likely to give the merges still wanted, from a sample of rows."""
        count = groups.count
        total = count * (count - 1) / 2
        share = min(self.wanted - self.done, count - 1) / count
        # Fits complete linkage of features of CIFAR-10 (the mean degree at which a share of the groups is merged), with
        # a reserve of two: a further round costs more than some pairs too many.
        degree = min(_MAX_DEGREE, 2.0 + 300.0 * share * share / (1.0 - share)) * self.boost
        if total <= _ALL_PAIRS or degree * count >= total:
            return _Bound(self.limit, self.last_tie)
        rough = self.points.rough[groups.members[groups.starts[:-1]]]
        offset = self.points.offset[groups.members[groups.starts[:-1]]]
        size = max(16, min(_SAMPLE_ROWS, (1 << 24) // count, count // 32))
        rows = np.unique(np.linspace(0, count - 1, size).astype(np.int64))
        sample = offset[rows, None] + (offset - (rough[rows] @ rough.T))
        sample[np.arange(len(rows)), rows] = math.inf
        flat = sample.ravel()
        index = int(min(degree * count, _MAX_PAIRS) * len(rows) / count)
        while index < len(flat) // 2:
            key = float(np.partition(flat, index)[index])
            if key > self.bound.key:
                return _Bound(min(key, self.limit), self.last_tie)
            index = 2 * index + 1
        return _Bound(self.limit, self.last_tie)

    def _lower(self, found: _Found, most: int) -> _Bound:
        """A bound that about half as many pairs as may be held are likely to meet, from part of the pairs."""
        keys = np.sort(found.keys)
        room = most * found.share
        key = float(keys[min(int(room / 2), len(keys) - 1)])
        below, up_to = np.searchsorted(keys, key, side="left"), np.searchsorted(keys, key, side="right")
        if up_to <= 0.9 * room:
            return _Bound(key, self.last_tie)
        if below > room / 5:
            return _Bound(float(keys[below - 1]), self.last_tie)
        if self.linkage == "average":
            return _Bound(key, self.last_tie)
        ties = np.sort(self.points.tie[found.first[found.keys == key]])
        return _Bound(key, int(ties[min(int(room / 4), len(ties) - 1)]))

    def _join_nearest(self) -> None:
        """Join every group to its nearest until none is left (Boruvka), then put the merges in order."""
        first: list[_Ints] = []
        second: list[_Ints] = []
        keys: list[_Floats] = []
        labels, count = self.labels, len(self.leaf)
        while count > 1:
            key, low, high = _find_nearest(self.points, labels, count, self.limit)
            linked = np.flatnonzero(low >= 0)
            if len(linked) == 0:
                break
            linked = linked[np.lexsort((high[linked], low[linked], key[linked]))]
            kept = linked[_forest(count, labels[low[linked]], labels[high[linked]])]
            first.append(low[kept])
            second.append(high[kept])
            keys.append(key[kept])
            new = _labels_after(count, _number_nodes(count, labels[low[kept]], labels[high[kept]]), len(kept))
            labels, count = new[labels], count - len(kept)
        self.bound = _Bound(self.limit, self.last_tie)
        if keys:
            some = np.concatenate(first), np.concatenate(second), np.concatenate(keys)
            order = np.lexsort((some[1], some[0], some[2]))
            self._contract(self.labels[some[0][order]], self.labels[some[1][order]], some[2][order])


# ------------------------------------------------------------------------------------------------ merges on the graph


@_kernel
def _forest(count: int, first: Any, second: Any) -> Any:
    """Which edges, taken in order, join two trees."""
    parent = np.arange(count)
    kept = np.empty(count, np.int64)
    found = 0
    for e in range(len(first)):
        a = _root(parent, first[e])
        b = _root(parent, second[e])
        if a != b:
            parent[max(a, b)] = min(a, b)
            kept[found] = e
            found += 1
    return kept[:found].copy()


@_kernel
def _lists(count: int, first: Any, second: Any) -> Any:
    """The edges at each group: (starts, edges)."""
    starts = np.zeros(count + 1, np.int64)
    for e in range(len(first)):
        starts[first[e] + 1] += 1
        starts[second[e] + 1] += 1
    for a in range(count):
        starts[a + 1] += starts[a]
    fill = starts.copy()
    edges = np.empty(2 * len(first), np.int32)
    for e in range(len(first)):
        edges[fill[first[e]]] = e
        fill[first[e]] += 1
        edges[fill[second[e]]] = e
        fill[second[e]] += 1
    return starts, edges


@_kernel
def _chain_complete(count: int, first: Any, second: Any) -> Any:
    """Complete linkage on a graph whose edges are sorted: (lower group, higher group, edge) of every merge.

    A merged group keeps the neighbours that both had, at the larger weight; pairs that are not edges are beyond the
    bound, and so are they after any merge. Weights are the ranks of the edges, so no two are equal.
    """
    starts, edges = _lists(count, first, second)
    sizes = starts[1:] - starts[:-1]
    weight = np.arange(len(first)).astype(np.int32)  # -1: gone
    either = first ^ second  # gives one end of an edge from the other
    mark = np.full(count, -1, np.int64)
    alive = np.ones(count, np.bool_)
    low = np.empty(count, np.int64)
    high = np.empty(count, np.int64)
    rank = np.empty(count, np.int64)
    merges = 0
    waiting = np.arange(2 * count)  # groups to start a chain from; merged ones are added
    waiting[:count] = waiting[:count][::-1].copy()
    n_waiting = count
    chain = np.empty(count, np.int64)
    length = 0
    while length > 0 or n_waiting > 0:
        if length == 0:
            n_waiting -= 1
            if alive[waiting[n_waiting]]:
                chain[0] = waiting[n_waiting]
                length = 1
            continue
        a = chain[length - 1]
        best = -1
        kept = starts[a]
        for p in range(starts[a], starts[a] + sizes[a]):
            e = edges[p]
            if weight[e] >= 0:
                edges[kept] = e
                kept += 1
                if best < 0 or weight[e] < weight[best]:
                    best = e
        sizes[a] = kept - starts[a]
        if best < 0:
            length -= 1
            continue
        b = either[best] ^ a
        if length < 2 or chain[length - 2] != b:
            chain[length] = b
            length += 1
            continue
        length -= 2
        if b < a:
            a, b = b, a
        low[merges] = a
        high[merges] = b
        rank[merges] = weight[best]
        merges += 1
        alive[b] = False
        weight[best] = -1
        for p in range(starts[a], starts[a] + sizes[a]):
            e = edges[p]
            if weight[e] >= 0:
                mark[either[e] ^ a] = e
        for p in range(starts[b], starts[b] + sizes[b]):
            e = edges[p]
            if weight[e] >= 0:
                c = either[e] ^ b
                if mark[c] >= 0:
                    weight[mark[c]] = max(weight[mark[c]], weight[e])
                    mark[c] = -2
                weight[e] = -1
        kept = starts[a]
        for p in range(starts[a], starts[a] + sizes[a]):
            e = edges[p]
            if weight[e] >= 0:
                c = either[e] ^ a
                if mark[c] == -2:
                    edges[kept] = e
                    kept += 1
                else:
                    weight[e] = -1
                mark[c] = -1
        sizes[a] = kept - starts[a]
        waiting[n_waiting] = a
        n_waiting += 1
    return low[:merges].copy(), high[:merges].copy(), rank[:merges].copy()


@_kernel
def _nearest_edge(
    a: int, before: int, starts: Any, sizes: Any, edges: Any, value: Any, either: Any, following: Any, last: Any
) -> Any:
    """The edge of group `a` with the lowest value, and the group at its other end; -1 where it has none left.

    Ties go to the group `before` in the chain, then to the lower number. Edges that are gone leave the lists.
    """
    best = -1
    nearest = -1
    part = a
    previous = -1
    while part >= 0:
        kept = starts[part]
        for p in range(starts[part], starts[part] + sizes[part]):
            e = edges[p]
            if value[e] >= 0:
                edges[kept] = e
                kept += 1
                c = either[e] ^ a
                # The one before wins a tie, or the chain could go round in circles.
                if (
                    best < 0
                    or value[e] < value[best]
                    or (value[e] == value[best] and nearest != before and (c == before or c < nearest))
                ):
                    best = e
                    nearest = c
        sizes[part] = kept - starts[part]
        after = following[part]
        if sizes[part] == 0 and previous >= 0:
            following[previous] = after
            if after < 0:
                last[a] = previous
        else:
            previous = part
        part = after
    return best, nearest


@_kernel
def _chain_average(keys: Any, first: Any, second: Any, limit: float, exact: Any, spread: Any, weight: Any) -> Any:
    """Average linkage on the graph of pairs within the limit: (lower group, higher group, height) of every merge.

    A merged group is as far from a third one as the weighted mean of its parts, so never nearer than the nearer part:
    its neighbours are among those of the parts. Where only one part is a neighbour the means decide. `exact`, `spread`
    and `weight` are changed to those of the groups in the place of the lower one.
    """
    count = len(exact)
    starts, edges = _lists(count, first, second)
    sizes = starts[1:] - starts[:-1]
    value = keys.copy()  # -1: gone
    either = first ^ second
    # The edges of a merged group are those of its parts, one list after the other.
    following = np.full(count, -1, np.int64)
    last = np.arange(count)
    mark = np.full(count, -1, np.int64)
    alive = np.ones(count, np.bool_)
    low = np.empty(count, np.int64)
    high = np.empty(count, np.int64)
    heights = np.empty(count)
    merges = 0
    waiting = np.arange(2 * count)
    waiting[:count] = waiting[:count][::-1].copy()
    n_waiting = count
    chain = np.empty(count, np.int64)
    length = 0
    while length > 0 or n_waiting > 0:
        if length == 0:
            n_waiting -= 1
            if alive[waiting[n_waiting]]:
                chain[0] = waiting[n_waiting]
                length = 1
            continue
        a = chain[length - 1]
        before = chain[length - 2] if length > 1 else -1
        best, nearest = _nearest_edge(a, before, starts, sizes, edges, value, either, following, last)
        if best < 0:
            length -= 1
            continue
        b = nearest
        if b != before:
            chain[length] = b
            length += 1
            continue
        length -= 2
        if b < a:
            a, b = b, a
        height = value[best]
        low[merges] = a
        high[merges] = b
        heights[merges] = height
        merges += 1
        alive[b] = False
        value[best] = -1.0
        part = a
        while part >= 0:
            for p in range(starts[part], starts[part] + sizes[part]):
                e = edges[p]
                if value[e] >= 0:
                    mark[either[e] ^ a] = e
            part = following[part]
        share = weight[a] / (weight[a] + weight[b])
        rest = 1.0 - share
        for k in range(exact.shape[1]):
            exact[a, k] = share * exact[a, k] + rest * exact[b, k]
        spread[a] = share * share * spread[a] + rest * rest * spread[b] + share * rest * height
        weight[a] += weight[b]
        part = b
        while part >= 0:
            for p in range(starts[part], starts[part] + sizes[part]):
                e = edges[p]
                if value[e] >= 0:
                    c = either[e] ^ b
                    other = mark[c]
                    if other >= 0:
                        lower = min(value[other], value[e])
                        upper = max(value[other], value[e])
                        value[other] = min(upper, max(lower, share * value[other] + rest * value[e]))
                        value[e] = -1.0
                        mark[c] = -1
                    else:
                        joint = max(value[e], _key(exact, a, c) + spread[a] + spread[c])
                        if joint > limit:
                            value[e] = -1.0
                        else:
                            value[e] = joint
                            either[e] ^= a ^ b
            part = following[part]
        part = a
        while part >= 0:
            for p in range(starts[part], starts[part] + sizes[part]):
                e = edges[p]
                if value[e] >= 0:
                    c = either[e] ^ a
                    if mark[c] == e:
                        joint = max(value[e], _key(exact, a, c) + spread[a] + spread[c])
                        value[e] = -1.0 if joint > limit else joint
                        mark[c] = -1
            part = following[part]
        following[last[a]] = b
        last[a] = last[b]
        waiting[n_waiting] = a
        n_waiting += 1
    return low[:merges].copy(), high[:merges].copy(), heights[:merges].copy()


# ------------------------------------------------------------------------------------------------ nearest other group


def _find_nearest(points: _Points, labels: _Ints, count: int, limit: float) -> tuple[_Floats, _Ints, _Ints]:
    """The nearest pair of points from each group to another one: (key, lower, higher point), -1 beyond the limit."""
    workers = _threads()
    offset = points.offset.astype(np.float32)
    best = [np.full(count, limit) for _ in range(workers)]
    low = [np.full(count, -1) for _ in range(workers)]
    high = [np.full(count, -1) for _ in range(workers)]

    def scan(worker: int, block: _Singles, row: int, column: int) -> None:
        reach = best[worker][labels[column : column + block.shape[1]]].astype(np.float32)
        _scan_nearest(
            block, row, column, offset, points.offset, points.margin, reach, points.exact, labels,
            best[worker], low[worker], high[worker],
        )  # fmt: skip

    for _ in _sweep(points.rough, scan):
        pass
    for k in range(1, workers):
        # -1 only where nothing was found; a pair at the limit itself must still win over nothing.
        nearer = (high[k] >= 0) & (
            (low[0] < 0)
            | (best[k] < best[0])
            | ((best[k] == best[0]) & ((low[k] < low[0]) | ((low[k] == low[0]) & (high[k] < high[0]))))
        )
        for ours, theirs in ((best[0], best[k]), (low[0], low[k]), (high[0], high[k])):
            ours[nearer] = theirs[nearer]
    return best[0], low[0], high[0]


@_kernel
def _scan_nearest(
    block: Any, row: int, column: int, offset: Any, offset64: Any, margin: float, reach: Any,
    exact: Any, labels: Any, best: Any, low: Any, high: Any,
) -> None:  # fmt: skip
    """Update the nearest pair of each group from a block of points; `reach` has that of the columns' groups."""
    width = block.shape[1]
    for r in range(len(block)):
        i = row + r
        a = labels[i]
        least = np.float32(offset64[i] - margin)
        c = max(0, i + 1 - column)
        while c < width:
            stop = min(c + 64, width)
            ours = np.float32(best[a])
            hits = 0
            for k in range(c, stop):
                hits += block[r, k] - offset[column + k] + max(ours, reach[k]) >= least
            if hits > 0:
                for k in range(c, stop):
                    j = column + k
                    b = labels[j]
                    if a == b or not block[r, k] - offset[j] + max(ours, reach[k]) >= least:
                        continue
                    key = _key(exact, i, j)
                    for group in (a, b):
                        if key < best[group] or (
                            key == best[group]
                            and (low[group] < 0 or i < low[group] or (i == low[group] and j < high[group]))
                        ):
                            best[group] = key
                            low[group] = i
                            high[group] = j
                    reach[k] = np.float32(best[b])
                    ours = np.float32(best[a])
            c = stop
