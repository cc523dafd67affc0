"""Representatives of the groups of a merge tree, for every cut of the tree at once, and of groups without a tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from toolkit.grouping.kmeans import as_vectors, fill_means
from toolkit.grouping.linkage import MergeTree, _small_integers
from toolkit.grouping.ward import _chunks, _scaled
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = ["RULES", "Representatives", "find_representatives", "nearest_to_centre"]

#: How the representative of a group is chosen.
RULES = ("medoid", "first", "random", "nearest")

#: Costs that differ by less than this, per member, tie.
_TOLERANCE = 1e-12
#: Distances to a mean tie where they differ by less than this share of the mean's norm: it has rounding errors.
_MEAN_TOLERANCE = 1e-14
#: Groups below this size have every member's cost computed; above, most members are ruled out by a bound.
_SMALL = 512
#: Members kept as candidates for the medoid of a larger group.
_CANDIDATES = 128
#: Numbers of the feature matrix converted at a time.
_CHUNK_ELEMENTS = 1 << 22

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_F = TypeVar("_F", bound=Callable[..., Any])


def _kernel(function: _F) -> _F:
    """Compile `function`; sums may be reordered (which vectorises them), NaN and infinities keep their meaning."""
    compiled = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})(function)
    return cast("_F", compiled)


@dataclass(frozen=True)
class Representatives:
    """The representative of every node of a tree, and each leaf's distance to that of the group it is in.

    A leaf on its own represents itself. The distances are kept as events: a leaf's distance is noted at a merge only
    where its representative changes there, so that every cut can be had without the vectors.

    Args:
        nodes: int64 of shape (M,): the leaf that represents the group made by each merge.
        event_leaf: int32 of shape (E,): the leaf that gets another representative,
        event_node: int32 of shape (E,), not decreasing: at which merge (0 to M - 1),
        event_distance: float32 of shape (E,): and how far it is from it, in the tree's metric.

    Example:
        >>> from toolkit.grouping import find_representatives, merge_tree
        >>> vectors = [[0.0], [1.0], [1.5], [9.0]]
        >>> tree = merge_tree(vectors, metric="euclidean")
        >>> found = find_representatives(vectors, tree)
        >>> representative, distance = found.at(tree, n_merges=2)
        >>> representative.tolist(), distance.tolist()
        ([1, 1, 1, 3], [1.0, 0.0, 0.5, 0.0])
    """

    nodes: _Ints
    event_leaf: npt.NDArray[np.int32]
    event_node: npt.NDArray[np.int32]
    event_distance: npt.NDArray[np.float32]

    @classmethod
    def of_none(cls) -> Representatives:
        """The representatives of a tree without leaves."""
        shorts = np.empty(0, np.int32)
        return cls(np.empty(0, np.int64), shorts, shorts, np.empty(0, np.float32))

    def at(self, tree: MergeTree, n_merges: int) -> tuple[_Ints, npt.NDArray[np.float32]]:
        """Representatives and distances after the first merges.

        Args:
            tree: The tree that the representatives were found for.
            n_merges: Number of merges done, 0 to M.

        Returns:
            The representative of each leaf, int64 of shape (N,), and its distance to it, float32 of shape (N,).

        Raises:
            ValueError: If the tree has another number of merges or `n_merges` is not in 0 to M.
            TypeError: If `n_merges` is not an integer.
        """
        if tree.n_merges != len(self.nodes):
            raise invalid("tree", f"the tree with {len(self.nodes)} merges they were found for", tree.n_merges)
        if isinstance(n_merges, bool) or not isinstance(n_merges, (int, np.integer)):
            raise TypeError(f"`n_merges` must be an integer, got {n_merges!r}.")
        if not 0 <= n_merges <= tree.n_merges:
            raise invalid("n_merges", f"in 0 to {tree.n_merges}", int(n_merges))
        representative = _tops(tree.n_leaves, tree.children, self.nodes, int(n_merges))
        count = int(np.searchsorted(self.event_node, n_merges))
        distance = np.zeros(tree.n_leaves, np.float32)
        # Events are in the order of the merges, and of equal indices the last assignment stays.
        distance[self.event_leaf[:count]] = self.event_distance[:count]
        return cast("_Ints", representative), distance


def find_representatives(
    features: npt.ArrayLike,
    tree: MergeTree,
    rule: str = "medoid",
    preferred: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Representatives:
    """Choose the representative of every group that the tree makes.

    The rules: "medoid" takes the member with the smallest sum of dissimilarities to the group's members (ties within
    1e-12 per member go to the lowest index, so that a pair is always represented by its first); "first" the lowest
    index; "random" the member with the lowest of the priorities that `seed` deals out once, so that a representative
    stays one until its group meets a member of lower priority; "nearest" the member nearest to the group's mean (ties
    within 1e-12 of the distance and 1e-14 of the mean's norm go to the lowest index). Under the cosine the mean is that
    of the unit vectors and "nearest" is the same as "medoid".

    Under the cosine, sums of dissimilarities follow from the sum of the unit vectors, and a group that grows by little
    only has those members looked at whose cost can still be the smallest. Under the Euclidean distance, every pair of
    leaves that ends in one group is computed once, so the time grows with the sum of squared sizes of the final groups
    (1.25e9 distances for one group of 50,000). The distances of the members to the mean are computed at every merge, so
    the time of "nearest" grows with the sum of the sizes of all nodes. Only the vectors that are in a merge are copied.

    Args:
        features: Vectors of shape (N, D), those the tree was made from.
        tree: The tree.
        rule: One of `RULES`.
        preferred: bool of shape (N,): in a group with such members only they are candidates.
        seed: Of the priorities of the rule "random".

    Returns:
        The representatives of all nodes, and the events that give distances. Distances are cosine dissimilarities or
        Euclidean distances, whichever the tree has; 0 for the representative itself and for its duplicates.

    Raises:
        ValueError: If the features are not N finite vectors or have zero rows under the cosine, if `rule` is unknown,
            or if `preferred` has another shape.
        TypeError: If the features are not numbers or `preferred` is not boolean.

    References:
        Birodkar, Mobahi and Bengio, "Semantic redundancies in image-classification datasets: the 10% you don't need",
        arXiv 1901.11409, keep one image of each group; the medoid is this project's choice. Yousefzadeh, "Using
        wavelets to analyze similarities in image datasets", arXiv 2002.10257, keeps the nearest to the mean.

    Example:
        >>> from toolkit.grouping import merge_tree
        >>> vectors = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]]
        >>> tree = merge_tree(vectors, n_groups=2)
        >>> find_representatives(vectors, tree).nodes.tolist()
        [0, 1]
        >>> find_representatives(vectors, tree, preferred=[False, False, True, False]).nodes.tolist()
        [0, 2]
    """
    check_choice("rule", rule, RULES)
    cosine = tree.metric == "cosine"
    matrix: npt.NDArray[Any] = np.asanyarray(features)
    if cosine or not _small_integers(matrix):
        matrix = check_vectors(matrix, nonzero=cosine)
    n_leaves = tree.n_leaves
    if len(matrix) != n_leaves:
        raise invalid("features", f"{n_leaves} vectors, as many as the tree has leaves", len(matrix))
    allowed = np.ones(n_leaves, np.bool_)
    if preferred is not None:
        allowed = np.asarray(preferred)
        if allowed.dtype != np.bool_:
            raise TypeError(f"`preferred` must be boolean, got dtype {allowed.dtype}.")
        if allowed.shape != (n_leaves,):
            raise invalid("preferred", f"of shape ({n_leaves},)", allowed.shape)
    order, starts, sizes = _leaf_order(n_leaves, tree.children)
    n_merged = int((tree.children < n_leaves).sum())
    vectors = _ordered(matrix, order[:n_merged], cosine=cosine)
    if rule in ("medoid", "nearest"):
        euclidean = _euclidean_medoids if rule == "medoid" else _euclidean_nearest
        choose = _cosine_medoids if cosine else euclidean
        nodes = choose(n_leaves, tree.children, tree.heights, order, starts, sizes, vectors, allowed[order])
    else:
        # Members that are not preferred come after all that are.
        priority = np.random.default_rng(seed).permutation(n_leaves) if rule == "random" else np.arange(n_leaves)
        nodes = _lowest(n_leaves, tree.children, np.where(allowed, priority, priority + n_leaves))
    n_events = _count_events(n_leaves, tree.children, nodes, sizes)
    event_leaf = np.empty(n_events, np.int32)
    event_node = np.empty(n_events, np.int32)
    event_distance = np.empty(n_events, np.float32)
    _fill_events(
        n_leaves, tree.children, nodes, order, starts, sizes, vectors, cosine, event_leaf, event_node, event_distance
    )
    return Representatives(nodes, event_leaf, event_node, event_distance)


def nearest_to_centre(
    x: npt.ArrayLike, groups: npt.ArrayLike, preferred: npt.ArrayLike | None = None
) -> tuple[_Ints, npt.NDArray[np.float32]]:
    """Choose the member of every group that is nearest to the group's mean.

    Distances are Euclidean, in float64. Ties within 1e-12 of the distance and 1e-14 of the mean's norm go to the lowest
    index, so that a pair is always represented by its first.

    Args:
        x: Vectors of shape (N, D), any real dtype.
        groups: Integers of shape (N,): the group of each vector, 0 to G - 1, none of them empty.
        preferred: bool of shape (N,): in a group with such members only they are candidates.

    Returns:
        The representative of each group, int64 of shape (G,), and the distance of each vector to the representative of
        its group, float32 of shape (N,), infinite beyond the range of that.

    Raises:
        ValueError: If `x` is not a finite matrix, if `groups` or `preferred` have another shape, or if `groups` has
            negative numbers or leaves one out.
        TypeError: If `x` does not hold numbers, `groups` does not hold integers or `preferred` is not boolean.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, keeps these images.

    Example:
        >>> representative, distance = nearest_to_centre([[0.0], [1.0], [3.0], [9.0]], [0, 0, 0, 1])
        >>> representative.tolist(), distance.tolist()
        ([1, 3], [1.0, 0.0, 2.0, 0.0])
    """
    matrix = as_vectors(x)
    count = len(matrix)
    labels = np.asarray(groups)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"`groups` must hold integers, got dtype {labels.dtype}.")
    if labels.shape != (count,):
        raise invalid("groups", f"of shape ({count},)", labels.shape)
    if labels.min() < 0 or labels.max() >= count:
        raise invalid("groups", "numbers from 0 with none left out", f"{labels.min()} to {labels.max()}")
    labels = labels.astype(np.int64)
    sizes = np.bincount(labels)
    if (sizes == 0).any():
        raise invalid("groups", "numbers from 0 with none left out", f"no {int(np.argmin(sizes))}")
    allowed = np.ones(count, np.bool_)
    if preferred is not None:
        allowed = np.asarray(preferred)
        if allowed.dtype != np.bool_:
            raise TypeError(f"`preferred` must be boolean, got dtype {allowed.dtype}.")
        if allowed.shape != (count,):
            raise invalid("preferred", f"of shape ({count},)", allowed.shape)
    scaled, exponent = _scaled(matrix, cosine=False)
    several = np.flatnonzero(sizes >= 2)
    slot = np.full(len(sizes), -1, np.int64)
    slot[several] = np.arange(len(several))
    images = np.flatnonzero(slot[labels] >= 0)
    places = slot[labels[images]]
    means = np.empty((len(several), matrix.shape[1]))
    squares = fill_means(scaled, images, places, means)
    slack = _MEAN_TOLERANCE * np.sqrt(np.einsum("ij,ij->i", means, means))
    representative = np.empty(len(sizes), np.int64)
    representative[labels] = np.arange(count)
    representative[several] = _nearest_members(images, places, np.sqrt(squares), slack, allowed)
    distance = np.zeros(count, np.float32)
    for chunk in _chunks(len(images), matrix.shape[1]):
        ours = scaled[images[chunk]].astype(np.float64)
        ours -= scaled[representative[labels[images[chunk]]]]
        with np.errstate(over="ignore"):
            distance[images[chunk]] = np.ldexp(np.sqrt(np.einsum("ij,ij->i", ours, ours)), -exponent)
    return representative, distance


def _ordered(matrix: npt.NDArray[Any], order: _Ints, *, cosine: bool) -> _Floats:
    """The vectors in float64 and in the order of the leaves, of unit length for the cosine."""
    vectors = np.empty((len(order), matrix.shape[1]))
    rows = max(1, _CHUNK_ELEMENTS // matrix.shape[1])
    for start in range(0, len(order), rows):
        block = np.asarray(matrix[order[start : start + rows]], dtype=np.float64)
        if cosine:
            # Scaled first, as squares of very small or large numbers leave the range of float64.
            block = np.ldexp(block, -np.frexp(np.abs(block).max(axis=1, keepdims=True))[1])
            block /= np.sqrt(np.einsum("ij,ij->i", block, block))[:, None]
        vectors[start : start + rows] = block
    return vectors


@_kernel
def _leaf_order(n_leaves: int, children: Any) -> Any:
    """An order of the leaves in which every node is a range: (leaves, start of each node, size of each node).

    Leaves that are in no merge come last.
    """
    total = n_leaves + len(children)
    sizes = np.ones(total, np.int64)
    inner = np.zeros(total, np.bool_)
    for k in range(len(children)):
        sizes[n_leaves + k] = sizes[children[k, 0]] + sizes[children[k, 1]]
        inner[children[k, 0]] = True
        inner[children[k, 1]] = True
    starts = np.empty(total, np.int64)
    position = 0
    for place in range(total):
        # The nodes of merges, then the leaves.
        node = (place + n_leaves) % total
        if not inner[node]:
            starts[node] = position
            position += sizes[node]
    for k in range(len(children) - 1, -1, -1):
        starts[children[k, 0]] = starts[n_leaves + k]
        starts[children[k, 1]] = starts[n_leaves + k] + sizes[children[k, 0]]
    order = np.empty(n_leaves, np.int64)
    for leaf in range(n_leaves):
        order[starts[leaf]] = leaf
    return order, starts, sizes


@_kernel
def _tops(n_leaves: int, children: Any, nodes: Any, n_merges: int) -> Any:
    """Representative of the group of each leaf after the first merges."""
    top = np.empty(n_leaves + n_merges, np.int64)
    top[:n_leaves] = np.arange(n_leaves)
    top[n_leaves:] = nodes[:n_merges]
    for k in range(n_merges - 1, -1, -1):
        top[children[k, 0]] = top[n_leaves + k]
        top[children[k, 1]] = top[n_leaves + k]
    return top[:n_leaves].copy()


@_kernel
def _lowest(n_leaves: int, children: Any, priority: Any) -> Any:
    """The member with the lowest priority, for every merge."""
    nodes = np.empty(len(children), np.int64)
    for k in range(len(children)):
        a = children[k, 0] if children[k, 0] < n_leaves else nodes[children[k, 0] - n_leaves]
        b = children[k, 1] if children[k, 1] < n_leaves else nodes[children[k, 1] - n_leaves]
        nodes[k] = a if priority[a] < priority[b] else b
    return nodes


@_kernel
def _dot(vectors: Any, i: int, other: Any) -> float:
    """Scalar product of a row and a vector."""
    total = 0.0
    for k in range(len(other)):
        total += vectors[i, k] * other[k]
    return total


@_kernel
def _square(vectors: Any, i: int, j: int) -> float:
    """Squared distance of two rows."""
    total = 0.0
    for k in range(vectors.shape[1]):
        difference = vectors[i, k] - vectors[j, k]
        total += difference * difference
    return total


@_kernel
def _first_allowed(order: Any, allowed: Any, begin: int, end: int) -> int:
    """The lowest leaf of a range that is allowed, or the lowest where none is."""
    lowest = order[begin]
    winner = -1
    for p in range(begin, end):
        lowest = min(lowest, order[p])
        if allowed[p] and (winner < 0 or order[p] < winner):
            winner = order[p]
    return winner if winner >= 0 else lowest


@_kernel
def _cosine_medoids(
    n_leaves: int, children: Any, heights: Any, order: Any, starts: Any, sizes: Any, vectors: Any, allowed: Any
) -> Any:
    """The medoid of every merge under the cosine.

    The cost of u is size - u . S with S the sum of the unit vectors: the medoid has the largest product. When S moves
    by d, a product moves by at most |d|. So a large group remembers, from when all its products were last computed,
    S, its best candidates and the largest product of the others; while the group has grown so little that none of the
    others can win, only the candidates and the new members are looked at.
    """
    n_features = vectors.shape[1]
    sums = vectors.copy()  # of a group: at the position where its range starts
    nodes = np.empty(len(children), np.int64)
    size_of = sizes
    # Candidates of a group lie in the slots from `slot`; `others` bounds the products of the rest with `reference`.
    total = n_leaves + len(children)
    slot = np.full(total, -1, np.int64)
    length = np.zeros(total, np.int64)
    candidates = np.empty(n_leaves, np.int64)
    others = np.zeros(total)
    row_of = np.full(total, -1, np.int64)
    references = np.empty((n_leaves // _SMALL + 2, n_features))
    free = np.arange(len(references))
    n_free = len(free)
    products = np.empty(n_leaves)
    for k in range(len(children)):
        node = n_leaves + k
        begin = starts[node]
        end = begin + size_of[node]
        one = children[k, 0]
        two = children[k, 1]
        middle = starts[two]
        for c in range(n_features):
            sums[begin, c] += sums[middle, c]
        if heights[k] == 0.0:
            # Only duplicates: nothing to compute, however many there are.
            nodes[k] = _first_allowed(order, allowed, begin, end)
            continue
        total_sum = sums[begin]
        tolerance = _TOLERANCE * (end - begin)
        any_allowed = False
        large = one if size_of[one] >= size_of[two] else two
        small = two if large == one else one
        known = (
            row_of[large] >= 0
            and row_of[small] < 0
            and length[large] + size_of[small] <= min(size_of[large], 4 * _CANDIDATES)
        )
        if known:
            first = slot[large]
            count = length[large]
            for p in range(starts[small], starts[small] + size_of[small]):
                if allowed[p]:
                    candidates[first + count] = p
                    count += 1
            moved = 0.0
            for c in range(n_features):
                step = total_sum[c] - references[row_of[large], c]
                moved += step * step
            best = -np.inf
            for q in range(first, first + count):
                products[q] = _dot(vectors, candidates[q], total_sum)
                best = max(best, products[q])
            if others[large] + np.sqrt(moved) * (1.0 + 1e-9) < best - 2.0 * tolerance:
                winner = n_leaves
                for q in range(first, first + count):
                    if products[q] >= best - tolerance:
                        winner = min(winner, order[candidates[q]])
                nodes[k] = winner
                slot[node] = first
                length[node] = count
                others[node] = others[large]
                row_of[node] = row_of[large]
                continue
        for child in (one, two):
            if row_of[child] >= 0:
                free[n_free] = row_of[child]
                n_free += 1
        for p in range(begin, end):
            any_allowed = any_allowed or allowed[p]
        best = -np.inf
        for p in range(begin, end):
            products[p] = _dot(vectors, p, total_sum) if allowed[p] or not any_allowed else -np.inf
            best = max(best, products[p])
        winner = n_leaves
        for p in range(begin, end):
            if products[p] >= best - tolerance:
                winner = min(winner, order[p])
        nodes[k] = winner
        # Without preferred members all are candidates, but the first preferred one to come rules them out: such groups
        # remember nothing.
        if end - begin >= _SMALL and any_allowed:
            ranked = np.sort(products[begin:end])
            bar = ranked[end - begin - _CANDIDATES]
            count = 0
            rest = -np.inf
            for p in range(begin, end):
                if products[p] > bar:
                    candidates[begin + count] = p
                    count += 1
                else:
                    rest = max(rest, products[p])
            n_free -= 1
            row_of[node] = free[n_free]
            references[row_of[node]] = total_sum
            slot[node] = begin
            length[node] = count
            others[node] = rest
    return nodes


@_kernel
def _euclidean_medoids(
    n_leaves: int, children: Any, heights: Any, order: Any, starts: Any, sizes: Any, vectors: Any, allowed: Any
) -> Any:
    """The medoid of every merge under the Euclidean distance; each merge adds the distances across it to the costs."""
    costs = np.zeros(n_leaves)
    nodes = np.empty(len(children), np.int64)
    for k in range(len(children)):
        node = n_leaves + k
        begin = starts[node]
        end = begin + sizes[node]
        if heights[k] == 0.0:
            # Only duplicates: nothing to add to the costs.
            nodes[k] = _first_allowed(order, allowed, begin, end)
            continue
        middle = starts[children[k, 1]]
        any_allowed = False
        for p in range(begin, middle):
            for q in range(middle, end):
                distance = np.sqrt(_square(vectors, p, q))
                costs[p] += distance
                costs[q] += distance
        for p in range(begin, end):
            any_allowed = any_allowed or allowed[p]
        best = np.inf
        for p in range(begin, end):
            if allowed[p] or not any_allowed:
                best = min(best, costs[p])
        winner = n_leaves
        for p in range(begin, end):
            if (allowed[p] or not any_allowed) and costs[p] <= best + _TOLERANCE * (end - begin):
                winner = min(winner, order[p])
        nodes[k] = winner
    return nodes


@_kernel
def _euclidean_nearest(
    n_leaves: int, children: Any, heights: Any, order: Any, starts: Any, sizes: Any, vectors: Any, allowed: Any
) -> Any:
    """The member nearest to the mean of every merge under the Euclidean distance."""
    means = vectors.copy()  # of a group: at the position where its range starts
    nodes = np.empty(len(children), np.int64)
    distances = np.empty(len(vectors))
    for k in range(len(children)):
        begin = starts[n_leaves + k]
        end = begin + sizes[n_leaves + k]
        middle = starts[children[k, 1]]
        share = (end - middle) / (end - begin)
        norm = 0.0
        for c in range(means.shape[1]):
            means[begin, c] += share * (means[middle, c] - means[begin, c])
            norm += means[begin, c] * means[begin, c]
        if heights[k] == 0.0:
            # Only duplicates: nothing to compute, however many there are.
            nodes[k] = _first_allowed(order, allowed, begin, end)
            continue
        any_allowed = False
        for p in range(begin, end):
            any_allowed = any_allowed or allowed[p]
        best = np.inf
        for p in range(begin, end):
            if allowed[p] or not any_allowed:
                total = 0.0
                for c in range(means.shape[1]):
                    difference = vectors[p, c] - means[begin, c]
                    total += difference * difference
                distances[p] = np.sqrt(total)
                best = min(best, distances[p])
        limit = best * (1.0 + _TOLERANCE) + _MEAN_TOLERANCE * np.sqrt(norm)
        winner = n_leaves
        for p in range(begin, end):
            if (allowed[p] or not any_allowed) and distances[p] <= limit:
                winner = min(winner, order[p])
        nodes[k] = winner
    return nodes


@_kernel
def _nearest_members(images: Any, places: Any, distances: Any, slack: Any, allowed: Any) -> Any:
    """The first member of each group that is as near to its mean as any, of those that are allowed if there are any."""
    count = len(slack)
    any_allowed = np.zeros(count, np.bool_)
    for s in range(len(images)):
        any_allowed[places[s]] = any_allowed[places[s]] or allowed[images[s]]
    best = np.full(count, np.inf)
    for s in range(len(images)):
        if allowed[images[s]] or not any_allowed[places[s]]:
            best[places[s]] = min(best[places[s]], distances[s])
    winners = np.full(count, -1, np.int64)
    for s in range(len(images)):
        m = places[s]
        candidate = winners[m] < 0 and (allowed[images[s]] or not any_allowed[m])
        if candidate and distances[s] <= best[m] * (1.0 + _TOLERANCE) + slack[m]:
            winners[m] = images[s]
    return winners


@_kernel
def _count_events(n_leaves: int, children: Any, nodes: Any, sizes: Any) -> int:
    """Number of times that a leaf gets another representative."""
    count = 0
    for k in range(len(children)):
        for side in range(2):
            child = children[k, side]
            before = child if child < n_leaves else nodes[child - n_leaves]
            if before != nodes[k]:
                count += sizes[child]
    return count


@_kernel
def _fill_events(
    n_leaves: int, children: Any, nodes: Any, order: Any, starts: Any, sizes: Any, vectors: Any, cosine: bool,
    event_leaf: Any, event_node: Any, event_distance: Any,
) -> None:  # fmt: skip
    """The events, merge by merge."""
    at = 0
    for k in range(len(children)):
        winner = starts[nodes[k]]
        for side in range(2):
            child = children[k, side]
            before = child if child < n_leaves else nodes[child - n_leaves]
            if before == nodes[k]:
                continue
            for p in range(starts[child], starts[child] + sizes[child]):
                square = _square(vectors, p, winner)
                event_leaf[at] = order[p]
                event_node[at] = k
                event_distance[at] = 0.5 * square if cosine else np.sqrt(square)
                at += 1
