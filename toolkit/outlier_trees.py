"""The minimum spanning tree of mutual reachability, and what HDBSCAN's hierarchy says of each vector.

The core distance of a vector is that to its k-th nearest neighbour, itself not counted; the mutual reachability of two
vectors is the largest of their core distances and their distance. Borůvka's algorithm joins components by their
shortest edges: as long as the exact lists of nearest neighbours prove an edge to be the shortest one, from these, and
then by comparing the rows that could still have a shorter one with all rows of other components, block by block. Rows
are compared by products in float32 first; what these cannot exclude is decided in float64, as in `toolkit.neighbors`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.neighbors import Neighbors, _distance, _Rows
from toolkit.processors import n_processors

__all__ = ["SpanningTree", "glosh_scores", "leaving_distances", "spanning_tree"]

#: Rows and columns of a block of products that a thread holds (2 MiB).
_BLOCK_ROWS = 256
_BLOCK_COLUMNS = 2048
#: Products looked at together before each of them is.
_STRIDE = 64
#: Numbers converted at a time.
_CHUNK_ELEMENTS = 1 << 22
#: Rounding error of float32.
_UNIT = 2.0**-24
#: Added to the bounds where float32 may have underflowed (the vectors are scaled to norms up to 1).
_TINY = 1e-30
#: Added to the norms in the bounds, for what float64 loses of vectors far from zero before they are centred.
_OFFSET = 2.0**-26

_Any = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., Any])


def _kernel(function: _F) -> _F:
    """Compile `function`; sums may be reordered, but products not fused with them, so that equal rows are at 0."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc"}}
    try:
        return cast("_F", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # No folder to keep compiled code in can be written to: it is compiled anew in every process.
        return cast("_F", numba.njit(**options)(function))


@dataclass(frozen=True)
class SpanningTree:
    """A minimum spanning tree of mutual reachability, the shortest edges first.

    Args:
        edges: int64 of shape (N - 1, 2): the vectors that an edge joins, the lower index first.
        weights: float64 of shape (N - 1,), not decreasing: their mutual reachability.
    """

    edges: _Ints
    weights: _Floats


def spanning_tree(
    vectors: npt.ArrayLike, k: int, neighbors: Neighbors, *, metric: str = "euclidean", progress: bool = False
) -> SpanningTree:
    """An exact minimum spanning tree of mutual reachability, `max(core(i), core(j), d(i, j))`.

    Where edges are equally long, the tree is one of several; the components below any length are the same in all.
    Memory beside the vectors is one copy of them in float32 and some numbers a row; time is at worst that of a few
    comparisons of all pairs.

    Args:
        vectors: Shape (N, D), finite (under the cosine without rows of zeros).
        k: Which neighbour's distance is the core distance, 1 to the length of the lists.
        neighbors: The exact nearest neighbours of all vectors, at least k each; with more, less is compared.
        metric: `euclidean` or `cosine`.
        progress: Whether to show a progress bar of the vectors joined.

    Returns:
        The tree, with N - 1 edges.

    References:
        Campello, Moulavi, Sander, "Density-based clustering based on hierarchical density estimates", PAKDD 2013.
        McInnes and Healy, "Accelerated hierarchical density based clustering", ICDMW 2017, search the edges in trees of
        the space.

    Example:
        >>> from toolkit.neighbors import nearest_neighbors
        >>> vectors = [[0.0], [1.0], [3.0], [10.0]]
        >>> tree = spanning_tree(vectors, 1, nearest_neighbors(vectors, 2, device="cpu"))
        >>> tree.edges.tolist(), tree.weights.tolist()
        ([[0, 1], [1, 2], [2, 3]], [1.0, 2.0, 7.0])
    """
    work = _Boruvka(np.asarray(vectors), k, neighbors, metric)
    with tqdm(total=work.n_rows - 1, desc="joining", unit="vector", disable=not progress or world()[0] != 0) as bar:
        while work.n_edges < work.n_rows - 1:
            bar.update(work.advance())
    order = np.lexsort((work.second, work.first, work.weights))
    return SpanningTree(np.stack([work.first, work.second], axis=1)[order], work.weights[order])


class _Boruvka:
    """The forest so far, and what is known of the edges that leave its components."""

    def __init__(self, matrix: _Any, k: int, neighbors: Neighbors, metric: str) -> None:
        self.matrix, self.scales = _readable(matrix, metric == "cosine")
        self.cosine = metric == "cosine"
        self.n_rows = len(matrix)
        self.indices, self.distances = neighbors.indices, neighbors.distances
        self.core = np.ascontiguousarray(self.distances[:, k - 1])
        self.parent = np.arange(self.n_rows)
        self.component = np.arange(self.n_rows)
        self.n_edges = 0
        self.first = np.empty(self.n_rows - 1, np.int64)
        self.second = np.empty(self.n_rows - 1, np.int64)
        self.weights = np.empty(self.n_rows - 1)
        # Of each row: how many neighbours of its list are known to be in its component, the shortest edge found that
        # leaves its component, and a length that no such edge is below.
        self.begin = np.zeros(self.n_rows, np.int64)
        self.reach = np.full(self.n_rows, np.inf)
        self.target = np.full(self.n_rows, -1)
        self.least = self.core.copy()
        self.points: _Points | None = None

    def advance(self) -> int:
        """Join components by their shortest edges; returns how many edges that made."""
        best, row, open_rows = self._from_lists()
        settled = np.ones(len(best), bool)
        settled[self.component[open_rows]] = False
        if not settled.any():
            # All but the largest component look for their shortest edge among all rows.
            sizes = np.bincount(self.component, minlength=len(best))
            largest = int(sizes.argmax())
            self._compare(open_rows[self.component[open_rows] != largest], best)
            settled[:] = True
            settled[largest] = False
            best, row = _best_rows(self.component, self.reach, len(best))
        rows = row[settled]
        before = self.n_edges
        rows = rows[np.lexsort((rows, self.reach[rows]))]
        self.n_edges = _join(
            rows, self.target, self.reach, self.parent, self.first, self.second, self.weights, before
        )  # fmt: skip
        _number(self.parent, self.component)
        return self.n_edges - before

    def _from_lists(self) -> tuple[_Floats, _Ints, _Ints]:
        """The shortest edge known of each component, its row, and the rows that may have a shorter one."""
        _scan_lists(
            self.indices, self.distances, self.core, self.component, self.begin, self.reach, self.target, self.least
        )  # fmt: skip
        best, row = _best_rows(self.component, self.reach, int(self.component.max()) + 1)
        return best, row, np.flatnonzero(self.least < best[self.component])

    def _compare(self, rows: _Ints, best: _Floats) -> None:
        """Find the shortest edges of some rows that may be shorter than the best one of their component."""
        if self.points is None:
            self.points = _Points.of(self.matrix, self.scales)
        points = self.points
        limits = best.copy()
        # One row of each component without any edge gives a limit to the others.
        strays = rows[~np.isfinite(limits[self.component[rows]])]
        if len(strays):
            order = np.lexsort((self.least[strays], self.component[strays]))
            pilots = strays[order][np.unique(self.component[strays][order], return_index=True)[1]]
            self._sweep(points, np.sort(pilots), limits)
            rows = rows[self.least[rows] < limits[self.component[rows]]]
        self._sweep(points, rows, limits)

    def _sweep(self, points: _Points, rows: _Ints, limits: _Floats) -> None:
        """Compare rows with all rows of other components, in threads; `limits` falls to the shortest edges found."""
        rows = rows[np.lexsort((points.norms[rows], self.component[rows]))]
        columns = np.lexsort((points.norms, self.component))
        todo = iter(range(0, len(rows), _BLOCK_ROWS))
        lock = Lock()

        def loop() -> None:
            block = np.empty((_BLOCK_ROWS, _BLOCK_COLUMNS), np.float32)
            while True:
                with lock:
                    start = next(todo, None)
                if start is None:
                    return
                mine = rows[start : start + _BLOCK_ROWS]
                left = points.left(mine)
                only = self.component[mine[0]] if self.component[mine[0]] == self.component[mine[-1]] else -1
                for other in range(0, self.n_rows, _BLOCK_COLUMNS):
                    theirs = columns[other : other + _BLOCK_COLUMNS]
                    if only == self.component[theirs[0]] == self.component[theirs[-1]]:
                        continue
                    products = block[: len(mine), : len(theirs)]
                    np.matmul(left, points.right(theirs).T, out=products)
                    _scan_block(
                        products, mine, theirs, points.norms, float(points.norms[theirs].max()), points.factor,
                        points.share, self.component, self.core, self.matrix, self.scales, self.cosine, limits,
                        self.reach, self.target, self.least,
                    )  # fmt: skip

        workers = min(_threads(), 1 + len(rows) // _BLOCK_ROWS)
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(loop) for _ in range(workers)]:
                done.result()
        _note_least(rows, self.component, limits, self.reach, self.target, self.least)


@dataclass(frozen=True)
class _Points:
    """The vectors as the products need them: scaled by a power of two, about their mean, in float32."""

    values: _Singles  # (N, D + 1): the coordinates, and minus half their squared norm
    norms: _Floats  # (N,)
    factor: float
    share: float  # the error of a squared distance, as a share of the squared sum of both norms

    @classmethod
    def of(cls, matrix: _Any, scales: _Floats) -> _Points:
        """Convert the vectors, some at a time."""
        n_rows, width = matrix.shape
        rows = max(1, _CHUNK_ELEMENTS // width)
        largest = max(
            float((np.abs(matrix[i : i + rows].astype(np.float64)) * scales[i : i + rows, None]).max())
            for i in range(0, n_rows, rows)
        )
        # To norms below 1; 2 to the power of 1000 is finite, too.
        exponent = min(1000, -int(np.frexp(largest)[1]) - int(np.ceil(np.log2(2.0 * np.sqrt(width)))))
        centre = np.zeros(width)

        def chunk(start: int) -> _Floats:
            block = matrix[start : start + rows].astype(np.float64) * scales[start : start + rows, None]
            return np.ldexp(block, exponent) - centre

        centre = np.sum([chunk(i).sum(axis=0) / n_rows for i in range(0, n_rows, rows)], axis=0)
        values, norms = np.empty((n_rows, width + 1), np.float32), np.empty(n_rows)
        for i in range(0, n_rows, rows):
            block = chunk(i)
            squares = np.einsum("ij,ij->i", block, block)
            values[i : i + rows, :-1], values[i : i + rows, -1] = block, -0.5 * squares
            norms[i : i + rows] = np.sqrt(squares)
        return cls(values, norms, float(np.ldexp(1.0, exponent)), (width + 16) * _UNIT)

    def left(self, rows: _Ints) -> _Singles:
        """Rows to multiply from the left, with a one for the norm of the other side."""
        block = self.values[rows]
        block[:, -1] = 1.0
        return block

    def right(self, rows: _Ints) -> _Singles:
        """Rows to multiply from the right."""
        return self.values[rows]


def _readable(matrix: _Any, cosine: bool) -> tuple[_Any, _Floats]:
    """The vectors as `toolkit.neighbors` reads them, and the factors of their rows, so that distances are the same."""
    rows = _Rows.of(matrix, "vectors", "cosine" if cosine else "euclidean")
    return rows.matrix, rows.scales


def _threads() -> int:
    """Threads for the kernels, which leave the interpreter's lock."""
    return min(16, n_processors())


@_kernel
def _scan_lists(
    indices: Any, distances: Any, core: Any, component: Any, begin: Any, reach: Any, target: Any, least: Any
) -> None:
    """Find the shortest edge of each row that leaves its component, as far as its list of neighbours tells."""
    length = indices.shape[1]
    for i in range(len(core)):
        own = component[i]
        if target[i] >= 0 and component[target[i]] != own:
            continue  # What was found before still leaves the component.
        target[i] = -1
        reach[i] = np.inf
        while begin[i] < length and component[indices[i, begin[i]]] == own:
            begin[i] += 1
        for at in range(begin[i], length):
            if distances[i, at] >= reach[i]:
                break
            j = indices[i, at]
            if component[j] == own:
                continue
            weight = max(core[i], core[j], distances[i, at])
            if weight < reach[i]:
                reach[i] = weight
                target[i] = j
        # Whoever is not in the list is at least as far away as its last.
        least[i] = max(least[i], min(reach[i], max(core[i], distances[i, length - 1])))


@_kernel
def _best_rows(component: Any, reach: Any, count: int) -> Any:
    """The shortest edge of each component, and the first row that has it."""
    best = np.full(count, np.inf)
    row = np.full(count, -1)
    for i in range(len(component)):
        own = component[i]
        if reach[i] < best[own]:
            best[own] = reach[i]
            row[own] = i
    return best, row


@_kernel
def _root(parent: Any, i: int) -> int:
    """The root of a row, halving the path to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@_kernel
def _join(
    rows: Any, target: Any, reach: Any, parent: Any, first: Any, second: Any, weights: Any, count: int
) -> int:  # fmt: skip
    """Add the edges of some rows, except where those before them have joined both ends."""
    # Components that choose equally long edges may choose a cycle of them, of which the last is left out.
    for i in rows:
        j = target[i]
        a, b = _root(parent, i), _root(parent, j)
        if a != b:
            parent[max(a, b)] = min(a, b)
            first[count] = min(i, j)
            second[count] = max(i, j)
            weights[count] = reach[i]
            count += 1
    return count


@_kernel
def _number(parent: Any, component: Any) -> None:
    """Number the components by their first rows."""
    count = 0
    for i in range(len(parent)):
        root = _root(parent, i)
        if root == i:
            component[i] = count
            count += 1
        else:
            component[i] = component[root]


@_kernel
def _scan_block(
    products: Any, rows: Any, columns: Any, norms: Any, farthest: float, factor: float, share: float, component: Any,
    core: Any, matrix: Any, scales: Any, cosine: bool, limits: Any, reach: Any, target: Any, least: Any,
) -> None:  # fmt: skip
    """Take the edges of a block of products that are shorter than what is known of their row and component."""
    for r in range(len(rows)):
        i = rows[r]
        own = component[i]
        error = share * (norms[i] + farthest + _OFFSET) ** 2 + _TINY
        limit = np.inf
        bar = np.float32(-np.inf)
        for start in range(0, len(columns), _STRIDE):
            stop = min(start + _STRIDE, len(columns))
            if limits[own] < least[i] or reach[i] <= least[i]:
                break  # It has no edge that counts, or none shorter.
            now = min(limits[own], reach[i])
            if now < limit:
                limit = now
                square = 2.0 * limit * factor * factor if cosine else (limit * factor) ** 2
                bar = np.float32(0.5 * (norms[i] * norms[i] - square - error))
                bar -= np.float32(2.0**-22) * abs(bar)
            hits = 0
            for m in range(start, stop):
                hits += products[r, m] >= bar
            if hits == 0:
                continue
            for m in range(start, stop):
                if products[r, m] < bar:
                    continue
                j = columns[m]
                if component[j] == own or core[j] > limit:
                    continue
                weight = max(core[i], core[j], _distance(matrix, i, scales[i], matrix, j, scales[j], cosine))
                if weight < reach[i] or (weight == reach[i] and j < target[i]):
                    reach[i] = weight
                    target[i] = j
                    limits[own] = min(limits[own], weight)


@_kernel
def _note_least(rows: Any, component: Any, limits: Any, reach: Any, target: Any, least: Any) -> None:
    """Whatever leaves a compared row is at least as long as the shortest edge of its component."""
    for i in rows:
        limit = limits[component[i]]
        least[i] = max(least[i], limit)
        if reach[i] > limit:
            # Which longer ones were found depends on which thread was faster.
            reach[i] = np.inf
            target[i] = -1


# ------------------------------------------------------------------------------------------------ the hierarchy


@_kernel
def _merge_nodes(edges: Any, weights: Any) -> Any:
    """The nodes of single linkage: two children each, their heights, how many rows lie below, and the first of them."""
    n_rows = len(edges) + 1
    parent = np.arange(n_rows)
    node = np.arange(n_rows)
    children = np.empty((n_rows - 1, 2), np.int64)
    sizes = np.ones(2 * n_rows - 1, np.int64)
    heights = np.full(2 * n_rows - 1, -1.0)
    firsts = np.arange(2 * n_rows - 1)
    for m in range(n_rows - 1):
        a, b = _root(parent, edges[m, 0]), _root(parent, edges[m, 1])
        if a > b:
            a, b = b, a
        children[m, 0] = node[a]
        children[m, 1] = node[b]
        parent[b] = a
        node[a] = n_rows + m
        sizes[n_rows + m] = sizes[children[m, 0]] + sizes[children[m, 1]]
        heights[n_rows + m] = weights[m]
        firsts[n_rows + m] = a
    return children, heights, sizes, firsts


@_kernel
def _parts(node: int, n_rows: int, children: Any, heights: Any, stack: Any, parts: Any) -> int:
    """What a node falls into just below its height, which may be more than two parts where edges are equally long."""
    count = 0
    depth = 1
    stack[0] = node
    height = heights[node]
    while depth > 0:
        depth -= 1
        at = stack[depth]
        if at < n_rows or heights[at] < height:
            parts[count] = at
            count += 1
        else:
            stack[depth] = children[at - n_rows, 1]
            stack[depth + 1] = children[at - n_rows, 0]
            depth += 2
    return count


@_kernel
def _set_below(node: int, n_rows: int, children: Any, stack: Any, values: Any, value: float) -> None:
    """Set a value for all rows below a node."""
    depth = 1
    stack[0] = node
    while depth > 0:
        depth -= 1
        at = stack[depth]
        if at < n_rows:
            values[at] = value
        else:
            stack[depth] = children[at - n_rows, 0]
            stack[depth + 1] = children[at - n_rows, 1]
            depth += 2


@_kernel
def _leaving(children: Any, heights: Any, sizes: Any, firsts: Any) -> Any:
    """Where each row leaves the largest component."""
    n_rows = len(children) + 1
    out = np.zeros(n_rows)
    stack, parts = np.empty(n_rows + 1, np.int64), np.empty(n_rows, np.int64)
    body = 2 * n_rows - 2
    while body >= n_rows:
        count = _parts(body, n_rows, children, heights, stack, parts)
        largest = 0
        for p in range(1, count):
            gain = sizes[parts[p]] - sizes[parts[largest]]
            if gain > 0 or (gain == 0 and firsts[parts[p]] < firsts[parts[largest]]):
                largest = p
        for p in range(count):
            if p != largest or parts[p] < n_rows:
                _set_below(parts[p], n_rows, children, stack, out, heights[body])
        body = parts[largest]
    return out


@_kernel
def _condense(children: Any, heights: Any, sizes: Any, least_size: int) -> Any:
    """The cluster that each row falls out of, the height where it does, and the lowest such height of each cluster."""
    n_rows = len(children) + 1
    fall, cluster = np.zeros(n_rows), np.zeros(n_rows)
    lowest, above = np.empty(n_rows), np.full(n_rows, -1)
    stack, parts = np.empty(n_rows + 1, np.int64), np.empty(n_rows, np.int64)
    heads, of = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    heads[0] = 2 * n_rows - 2
    of[0] = 0
    waiting = 1 if n_rows > 1 else 0
    n_clusters = 1
    lowest[0] = np.inf if n_rows > 1 else 0.0
    while waiting > 0:
        waiting -= 1
        head, own = heads[waiting], of[waiting]
        height = heights[head]
        count = _parts(head, n_rows, children, heights, stack, parts)
        large = 0
        for p in range(count):
            large += sizes[parts[p]] >= least_size
        lowest[own] = min(lowest[own], height)
        for p in range(count):
            if sizes[parts[p]] < least_size:
                _set_below(parts[p], n_rows, children, stack, fall, height)
                _set_below(parts[p], n_rows, children, stack, cluster, own)
                continue
            heads[waiting] = parts[p]
            if large == 1:
                of[waiting] = own
            else:
                of[waiting] = n_clusters
                above[n_clusters] = own
                lowest[n_clusters] = np.inf
                n_clusters += 1
            waiting += 1
    for own in range(n_clusters - 1, 0, -1):
        lowest[above[own]] = min(lowest[above[own]], lowest[own])
    return fall, cluster, lowest


def leaving_distances(tree: SpanningTree) -> _Floats:
    """The distance at which each vector leaves the body of the data, as ever shorter edges of the tree are cut.

    All edges longer than a length are cut, and the length falls. The body is the largest component, and of what it
    falls into again the largest (of equally large ones the one with the lowest index). What parts from it, one vector
    or many, leaves at the length of the edge that held it.

    Args:
        tree: A minimum spanning tree.

    Returns:
        float64 of shape (N,); vectors that stay together to the end have the length of the last edges. 0 for a single
        vector.
    """
    return cast("_Floats", _leaving(*_merge_nodes(tree.edges, tree.weights)))


def glosh_scores(tree: SpanningTree, min_cluster_size: int) -> _Floats:
    """GLOSH, `1 - e_min / e` of each vector.

    `e` is the length at which the vector falls out of the last cluster (a component of at least `min_cluster_size`)
    that it belongs to, and `e_min` the shortest length at which that cluster or one inside of it still exists. Where
    edges are equally long, they are cut at once.

    Args:
        tree: A minimum spanning tree of mutual reachability.
        min_cluster_size: Vectors of a cluster, at least 2.

    Returns:
        float64 of shape (N,) in [0, 1]: 0 for those in the densest part of their cluster.
    """
    children, heights, sizes, _ = _merge_nodes(tree.edges, tree.weights)
    fall, cluster, lowest = _condense(children, heights, sizes, min_cluster_size)
    inside = lowest[cluster.astype(np.int64)]
    return cast("_Floats", 1.0 - np.divide(inside, fall, out=np.ones(len(fall)), where=fall > 0))
