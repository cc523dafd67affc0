"""Ward's linkage, exact and without an N x N matrix.

The dissimilarity of two groups A and B is the growth of the sum of squared distances to the group's mean when they are
merged, key(A, B) = |A| |B| / (|A| + |B|) * |mean(A) - mean(B)|^2. It follows from means and sizes, and Ward's linkage
is reducible, so merges are found in rounds on sparse graphs of near pairs as in `toolkit.grouping.linkage`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from toolkit.grouping.linkage import (
    _hash_rows,
    _kernel,
    _labels_after,
    _lists,
    _Merges,
    _nearest_edge,
    _number_nodes,
    _sweep,
    _threads,
)
from toolkit.neighbors import TooManyPairsError, near_pairs

#: Pairs of groups that a round may hold; about 100 bytes each at the peak.
_MAX_PAIRS = 8_000_000
#: Pairs a round aims for, per group.
_MAX_DEGREE = 48.0
#: With at most this many pairs of groups left, all of them are taken in one last round.
_ALL_PAIRS = 1 << 20
#: Where fewer pairs than this are expected per group and 64 features, they are searched for with bounds, otherwise by
#: products, whose time grows with the features.
_SPARSE_DEGREE = 1.0
#: Rows of the sample from which the bound of a round is chosen.
_SAMPLE_ROWS = 256
#: Numbers of the matrix converted at a time.
_CHUNK_ELEMENTS = 1 << 22
#: Vectors are scaled where their norms are beyond these powers of two, as squares could leave the range of float32.
_SAFE_EXPONENT = 40

_Matrix = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]


def ward_merges(
    matrix: _Matrix, metric: str, wanted: int, threshold: float | None, report: Callable[[float], None]
) -> _Merges:
    """All merges of Ward's linkage up to the threshold, or at least as many as wanted, in order.

    Args:
        matrix: Finite vectors of shape (N, D), floating-point or integers.
        metric: "euclidean", or "cosine" for the unit vectors and keys instead of distances as heights.
        wanted: Number of merges to reach where there is no threshold.
        threshold: Height up to which merges are wanted.
        report: Called before each round with the fraction of the merges done.
    """
    cosine = metric == "cosine"
    vectors, exponent = _scaled(matrix, cosine=cosine)
    scale = math.ldexp(1.0, -exponent)
    leaf, weight, twin_first, twin_second = _distinct(vectors)
    limit = math.inf
    if threshold is not None and math.isfinite(threshold):
        # A little more than asked for: rounding must not lose a merge at the threshold, the height decides later.
        limit = (threshold if cosine else 0.5 * (threshold / scale) * (threshold / scale)) * (1 + 2.0**-48)
    rounds = _Rounds(vectors, leaf, weight, limit, wanted - len(twin_first))
    while rounds.unfinished():
        report((len(twin_first) + rounds.done) / wanted)
        rounds.advance()
    # Means are sums of rounded numbers, which may lower a key by a rounding error.
    heights = np.maximum.accumulate(np.concatenate([np.zeros(len(twin_first)), *rounds.keys]))
    reach = rounds.bound
    if not cosine:
        heights = np.sqrt(2.0 * heights) * scale
        reach = math.sqrt(2.0 * reach) * scale if reach > 0 else reach
    return _Merges(
        np.concatenate([twin_first, *rounds.first]),
        np.concatenate([twin_second, *rounds.second]),
        heights,
        reach if threshold is None else threshold,
    )


# ------------------------------------------------------------------------------------------------ vectors


def _chunks(count: int, n_features: int) -> list[slice]:
    """Slices of rows of a bounded number of elements."""
    rows = max(1, _CHUNK_ELEMENTS // n_features)
    return [slice(start, start + rows) for start in range(0, count, rows)]


def _scaled(matrix: _Matrix, *, cosine: bool) -> tuple[_Matrix, int]:
    """Vectors whose squares fit into float32 (times 2 to the power that is returned), of unit length for the cosine."""
    count, n_features = matrix.shape
    chunks = _chunks(count, n_features)
    if cosine:
        unit = np.empty(matrix.shape)
        for chunk in chunks:
            block = np.asarray(matrix[chunk], dtype=np.float64)
            block = np.ldexp(block, -np.frexp(np.abs(block).max(axis=1, keepdims=True))[1])
            unit[chunk] = block / np.sqrt(np.einsum("ij,ij->i", block, block))[:, None]
        return unit, 0
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize < 4:
        return matrix, 0
    largest = max(float(np.abs(matrix[chunk]).max()) for chunk in chunks) * math.sqrt(n_features)
    exponent = -math.frexp(largest)[1] if largest > 0 else 0
    if abs(exponent) < _SAFE_EXPONENT:
        return matrix, 0
    return np.ldexp(np.asarray(matrix, dtype=np.float64), exponent), exponent


def _distinct(vectors: _Matrix) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """First row and number of rows of each distinct vector, and the merges that join equal rows."""
    count, n_features = vectors.shape
    hashes = np.empty(count, np.uint64)
    for chunk in _chunks(count, n_features):
        # Adding 0 makes 0 of -0, so that equal rows have equal bits.
        hashes[chunk] = _hash_rows((np.ascontiguousarray(vectors[chunk], np.float64) + 0.0).view(np.uint64))
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    previous = np.full(count, -1, np.int64)
    for chunk in _chunks(len(again), n_features):
        # Where another vector with the same hash lies between two twins, these stay distinct points at distance 0.
        i, j = order[again[chunk]], order[again[chunk] + 1]
        same = (vectors[i] == vectors[j]).all(axis=1)
        previous[j[same]] = i[same]
    twins = np.flatnonzero(previous >= 0)
    first = np.arange(count)
    for row in twins.tolist():
        first[row] = first[previous[row]]
    leaf = np.flatnonzero(previous < 0)
    sequence = np.lexsort((twins, first[twins]))
    return leaf, np.bincount(first, minlength=count)[leaf], first[twins][sequence], twins[sequence]


# ------------------------------------------------------------------------------------------------ rounds


@dataclass(frozen=True)
class _Pairs:
    """Pairs of groups up to a bound: both groups and the keys."""

    first: _Ints
    second: _Ints
    keys: _Floats


class _Rounds:
    """The rounds of one clustering: the groups so far, and up to which bound nothing is left to merge."""

    def __init__(self, vectors: _Matrix, leaf: _Ints, weight: _Ints, limit: float, wanted: int) -> None:
        self.vectors = vectors
        self.limit = limit
        self.wanted = wanted
        self.done = 0
        self.bound = -math.inf
        self.boost = 1.0
        # The groups, in the order of their lowest leaves: that leaf, the number of leaves, and where the mean is: a row
        # of `vectors`, or ~row of `means` for groups that were made.
        self.leaf = leaf
        self.weight = weight
        self.source = leaf
        self.means = np.empty((0, vectors.shape[1]))
        self.first: list[_Ints] = []
        self.second: list[_Ints] = []
        self.keys: list[_Floats] = []

    def unfinished(self) -> bool:
        """Whether merges are missing that are wanted and can be found."""
        return self.done < self.wanted and len(self.leaf) > 1 and self.bound < self.limit

    def advance(self) -> None:
        """One round."""
        before = len(self.leaf)
        pairs, bound = self._find()
        active = np.unique(np.concatenate([pairs.first, pairs.second]))
        centres = self._centres(active)
        weight = self.weight[active].astype(np.float64)
        first = np.searchsorted(active, pairs.first).astype(np.int32)
        second = np.searchsorted(active, pairs.second).astype(np.int32)
        low, high, keys = _chain_ward(pairs.keys, first, second, bound, centres, weight)
        # Stable: a merge at the height of one of its children was made after it.
        sequence = np.argsort(keys, kind="stable")
        self._contract(active, centres, low[sequence], high[sequence], keys[sequence])
        if 4 * (before - len(self.leaf)) < before:
            self.boost *= 2.0
        self.bound = bound

    def _contract(self, active: _Ints, centres: _Floats, low: _Ints, high: _Ints, keys: _Floats) -> None:
        """Note merges, in order, and make the groups that they leave; `centres` has the means of the new ones."""
        self.first.append(self.leaf[active[low]])
        self.second.append(self.leaf[active[high]])
        self.keys.append(keys)
        self.done += len(low)
        count = len(self.leaf)
        labels = _labels_after(count, _number_nodes(count, active[low], active[high]), len(low))
        gone = np.zeros(count, bool)
        gone[active[high]] = True
        made = np.unique(low[~gone[active[low]]])  # places in `active` of the new groups that are left
        kept = np.flatnonzero(~gone)
        source = self.source.copy()
        source[active[made]] = 0
        old = np.flatnonzero(source[kept] < 0)  # groups of earlier rounds
        means = np.concatenate([self.means[~source[kept[old]]], centres[made]])
        source[kept[old]] = ~np.arange(len(old))
        source[active[made]] = ~np.arange(len(old), len(means))
        self.means = means
        self.source = source[kept]
        self.leaf = self.leaf[kept]
        self.weight = np.bincount(labels, weights=self.weight, minlength=len(kept)).astype(np.int64)

    def _centres(self, groups: _Ints | slice) -> _Floats:
        """Means of groups in float64."""
        source = self.source[groups]
        out = np.empty((len(source), self.vectors.shape[1]))
        for chunk in _chunks(*out.shape):
            part = source[chunk]
            single = part >= 0
            if single.all():
                out[chunk] = self.vectors[part]
            else:
                out[chunk][single] = self.vectors[part[single]]
                out[chunk][~single] = self.means[~part[~single]]
        return out

    # -------------------------------------------------------------------------------------------- pairs of a round

    def _find(self) -> tuple[_Pairs, float]:
        """The pairs of groups up to a bound beyond that of the last round, and that bound."""
        count = len(self.leaf)
        if count * (count - 1) // 2 <= _ALL_PAIRS:
            first, second = (part.astype(np.int64) for part in np.triu_indices(count, 1))
            return self._within(first, second, self.limit), self.limit
        degree = _MAX_DEGREE * self.boost
        most = _MAX_PAIRS
        while True:
            bound, expected, rough = self._next_bound(degree)
            # Products in float32 are of no use where their rounding hides the distances that matter.
            if not rough or expected <= _SPARSE_DEGREE * count * max(4.0, self.vectors.shape[1] / 64):
                pairs = self._find_sparse(bound, most)
                if pairs is not None:
                    return pairs, bound
            if rough:
                return self._find_dense(bound)
            degree, most = degree / 4, most if degree > 1.0 else 2 * most

    def _next_bound(self, degree: float) -> tuple[float, float, bool]:
        """A bound that is likely to give the merges still wanted, the pairs expected up to it, and if float32 can tell.

        From a sample of rows; `degree` is the number of pairs to allow for each group.
        """
        count = len(self.leaf)
        size = max(16, min(_SAMPLE_ROWS, (1 << 24) // count, count // 32))
        rows = np.unique(np.linspace(0, count - 1, size).astype(np.int64))
        keys, error = self._sample(rows, np.float32)
        bound = self._choose(keys, degree)
        rough = error <= 0.05 * bound
        if not rough:
            keys, _ = self._sample(rows, np.float64)
            bound = self._choose(keys, degree)
        return bound, float((keys <= bound).sum()) * count / (2.0 * len(rows)), rough

    def _sample(self, rows: _Ints, dtype: Any) -> tuple[_Matrix, float]:
        """Keys between all groups and some, from products of some precision, and a bound of their error."""
        count = len(self.leaf)
        inverse = 1.0 / self.weight
        sample = self._centres(rows)
        centre = sample.mean(axis=0)
        sample -= centre
        ours, square = sample.astype(dtype).T.copy(), np.einsum("ij,ij->i", sample, sample)
        keys = np.empty((count, len(rows)), dtype)
        largest = 0.0
        for chunk in _chunks(count, len(centre)):
            block = self._centres(chunk) - centre
            norms = np.einsum("ij,ij->i", block, block)[:, None]
            largest = max(largest, float(norms.max()))
            keys[chunk] = (norms + square - 2.0 * (block.astype(dtype) @ ours)) / (inverse[chunk, None] + inverse[rows])
        keys[rows, np.arange(len(rows))] = np.inf
        # The usual size of rounding errors, not a bound of theirs: nothing but the choice of a way depends on it.
        return keys, 4.0 * float(np.finfo(dtype).eps) * largest / float(inverse.max())

    def _choose(self, keys: _Matrix, degree: float) -> float:
        """The bound of a round from sampled keys."""
        count, n_rows = keys.shape
        # Up to a bound that a share f of the groups have a neighbour within, f / 3 to f / 2 of them are merged. A
        # further round costs more than some pairs too many.
        missing = (self.wanted - self.done) / count
        share = max(1.7 * missing, min(2.6 * missing, 0.3)) + 0.5 / n_rows
        known = keys.ravel()
        place = min(int(n_rows * min(degree, 1.5 * _MAX_PAIRS / count)), (count - 1) * n_rows - 1)
        bound = float(np.partition(known, place)[place])
        nearest = keys.min(axis=0)
        if share < 0.9:
            likely = float(np.quantile(nearest, share, method="higher"))
            bound = min(bound, max(float(nearest.min()), self._extrapolated() or likely))
        if bound <= max(self.bound, 0.0):
            above = known[known > max(self.bound, 0.0)]
            bound = float(above.min()) if np.isfinite(above).any() else 2.0 * abs(self.bound) + 2.0**-1000
        return min(bound, self.limit)

    def _extrapolated(self) -> float | None:
        """The bound at which the merges wanted are likely to be reached, from how many came with the bounds so far."""
        if self.done < 64:
            return None
        keys = np.concatenate(self.keys)
        middle = float(keys[len(keys) // 2])
        if not 0.0 < middle < 0.99 * self.bound:
            return None
        # The number of merges as a power of the bound.
        growth = math.log(self.bound / middle) / math.log(2.0)
        return float(self.bound * (1.1 * self.wanted / self.done) ** growth)

    def _find_sparse(self, bound: float, most: int) -> _Pairs | None:
        """All pairs up to a bound through the bounds of `near_pairs`, or None where there are too many."""
        lightest = np.partition(self.weight, 1)[:2]
        radius = math.sqrt(bound * float((1.0 / lightest).sum())) * (1.0 + 1e-9)
        if (self.source >= 0).all():
            whole = len(self.source) == len(self.vectors)
            matrix: _Matrix = self.vectors if whole else self.vectors[self.source]
        else:
            matrix, error, _ = self._rough()
            if error > 0.01 * radius:
                matrix, error = self._centres(slice(None)), 0.0
            radius += 2.0 * error
        try:
            found = near_pairs(matrix, radius, max_pairs=most)
        except TooManyPairsError:
            return None
        return self._within(found.pairs[:, 0], found.pairs[:, 1], bound)

    def _find_dense(self, bound: float) -> tuple[_Pairs, float]:
        """All pairs up to a bound through products of all pairs; up to a lower one where there are too many."""
        n_features = self.vectors.shape[1]
        rough, error, offset = self._rough()
        norm = 2.0 * float(offset.max())
        most = _MAX_PAIRS
        while True:
            shift = 0.5 * bound / self.weight
            # Rounding of the inputs, of D products and sums in float32, and of the offsets.
            margin = (n_features + 8) * 2.0**-24 * (norm + bound) + 4.0 * error * (math.sqrt(norm) + error) + 2.0**-120
            column, least = (offset - shift).astype(np.float32), (offset - shift - margin).astype(np.float32)
            parts: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], _Singles]] = []

            def scan(_: int, block: _Singles, row: int, start: int, *, to: Any = parts, c: Any = column, r: Any = least,
                     shift: Any = shift, bound: float = bound) -> None:  # fmt: skip
                capacity = 1 << 14
                while True:
                    first, second = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
                    found = _scan_ward(block, row, start, c, r, first, second)
                    if found <= capacity:
                        break
                    capacity = found
                if found:
                    first, second = first[:found].copy(), second[:found].copy()
                    near = offset[first] + offset[second] - block[first - row, second - start]
                    keys = bound * near / np.maximum(shift[first] + shift[second], 2.0**-1000)
                    to.append((first, second, keys.astype(np.float32)))

            share, seen, total = 0.0, 0, 0
            with threadpool_limits(1, user_api="blas"):
                for share in _sweep(rough, scan):  # noqa: B007 (the last one counts)
                    total += sum(len(part[0]) for part in parts[seen:])
                    seen = len(parts)
                    if total > most:
                        break
            if total <= most or share == 1.0:
                break
            keys = np.sort(np.concatenate([part[2] for part in parts]))
            lower = float(keys[int(most * share / 2)])
            if not max(self.bound, 0.0) < lower < 0.999 * bound:
                # A level of nearly equal keys that cannot be split.
                most *= 2
            else:
                bound = lower
        del rough
        first = np.concatenate([part[0] for part in parts] or [np.empty(0, np.int32)]).astype(np.int64)
        second = np.concatenate([part[1] for part in parts] or [np.empty(0, np.int32)]).astype(np.int64)
        parts.clear()
        # Threads finish in any order.
        sequence = np.lexsort((second, first))
        return self._within(first[sequence], second[sequence], bound), bound

    def _rough(self) -> tuple[_Singles, float, _Floats]:
        """All means about their centre in float32, the largest error of one, and half the squared norms."""
        count, n_features = len(self.leaf), self.vectors.shape[1]
        chunks = _chunks(count, n_features)
        centre = sum((self._centres(chunk).sum(axis=0) for chunk in chunks), np.zeros(n_features)) / count
        rough = np.empty((count, n_features), np.float32)
        offset = np.empty(count)
        largest = 0.0
        for chunk in chunks:
            block = self._centres(chunk)
            largest = max(largest, float(np.abs(block).max()))
            block -= centre
            rough[chunk] = block
            offset[chunk] = 0.5 * np.einsum("ij,ij->i", block, block)
        error = 2.0**-24 * math.sqrt(2.0 * float(offset.max())) * 1.001 + 2.0**-52 * largest * math.sqrt(n_features)
        return rough, error + 2.0**-140 * math.sqrt(n_features), offset

    def _within(self, first: _Ints, second: _Ints, bound: float) -> _Pairs:
        """Those of some pairs whose key, in float64, is at most the bound."""
        active = np.unique(np.concatenate([first, second]))
        centres, weight = self._centres(active), self.weight[active].astype(np.float64)
        a, b = np.searchsorted(active, first), np.searchsorted(active, second)
        keys = np.empty(len(a))
        step = max(1, -(-len(a) // (4 * _threads())))
        with ThreadPoolExecutor(_threads()) as pool:
            parts = [slice(start, start + step) for start in range(0, len(a), step)]
            list(pool.map(lambda part: _ward_keys(centres, weight, a[part], b[part], keys[part]), parts))
        inside = keys <= bound
        return _Pairs(first[inside], second[inside], keys[inside])


# ------------------------------------------------------------------------------------------------ kernels


@_kernel
def _ward_key(centres: Any, weight: Any, a: int, b: int) -> float:
    """Growth of the sum of squares when two groups merge."""
    total = 0.0
    for k in range(centres.shape[1]):
        difference = centres[a, k] - centres[b, k]
        total += difference * difference
    return float(total * (weight[a] * weight[b] / (weight[a] + weight[b])))


@_kernel
def _ward_keys(centres: Any, weight: Any, first: Any, second: Any, keys: Any) -> None:
    """Keys of pairs of groups."""
    for p in range(len(first)):
        keys[p] = _ward_key(centres, weight, first[p], second[p])


@_kernel
def _scan_ward(block: Any, row: int, column: int, offset: Any, least: Any, first: Any, second: Any) -> int:
    """Pairs of a block that can be within the bound; returns their number, of which those that fit are written."""
    width = block.shape[1]
    count = 0
    for r in range(len(block)):
        a = row + r
        c = max(0, a + 1 - column)
        while c < width:
            stop = min(c + 64, width)
            hits = 0
            # Free of branches, so that it runs on whole vector registers: nearly all chunks end here.
            for k in range(c, stop):
                hits += block[r, k] - offset[column + k] >= least[a]
            if hits > 0:
                for k in range(c, stop):
                    if block[r, k] - offset[column + k] >= least[a]:
                        if count < len(first):
                            first[count] = a
                            second[count] = column + k
                        count += 1
            c = stop
    return count


@_kernel
def _chain_ward(keys: Any, first: Any, second: Any, limit: float, centres: Any, weight: Any) -> Any:
    """Ward's linkage on the graph of pairs within the limit: (lower group, higher group, key) of every merge.

    A merged group is never nearer to a third one than the nearer of its parts was: its neighbours are among those of
    the parts, and the means decide which. `centres` and `weight` are changed to those of the groups in the place of the
    lower one.
    """
    count = len(centres)
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
        rest = weight[b] / (weight[a] + weight[b])
        for k in range(centres.shape[1]):
            centres[a, k] += rest * (centres[b, k] - centres[a, k])
        weight[a] += weight[b]
        part = b
        while part >= 0:
            for p in range(starts[part], starts[part] + sizes[part]):
                e = edges[p]
                if value[e] >= 0:
                    c = either[e] ^ b
                    if mark[c] >= 0:
                        # Both parts are neighbours: the edge of the other part stays.
                        value[e] = -1.0
                    else:
                        joint = max(height, _ward_key(centres, weight, a, c))
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
                    joint = max(height, _ward_key(centres, weight, a, c))
                    value[e] = -1.0 if joint > limit else joint
                    mark[c] = -1
            part = following[part]
        following[last[a]] = b
        last[a] = last[b]
        waiting[n_waiting] = a
        n_waiting += 1
    return low[:merges].copy(), high[:merges].copy(), heights[:merges].copy()
