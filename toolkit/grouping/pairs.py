"""Groups from a list of similar pairs, for similarities that come without vectors.

A pair that is not in the list is too unlike to be in one group, so groups do not chain unlike images together, and
nothing of size N x N is held.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from toolkit.grouping.linkage import MergeTree, _chain_complete, _forest, _kernel, _number_nodes
from toolkit.grouping.representatives import Representatives, _count_events, _leaf_order, _lowest
from toolkit.spectrum import check_similarity, is_sparse
from toolkit.validation import check_choice, invalid

__all__ = [
    "PAIR_LINKAGES",
    "PAIR_RULES",
    "merge_tree_of_pairs",
    "representatives_by_similarity",
    "similar_pairs",
    "similarity_graph",
    "threshold_groups",
]

#: Linkages that a list of near pairs decides: the largest or the smallest dissimilarity of two groups' members.
PAIR_LINKAGES = ("complete", "single")
#: How the representative of a group is chosen.
PAIR_RULES = ("medoid", "first", "random")

#: Costs that differ by less than this, per member, tie.
_TOLERANCE = 1e-12
#: Dissimilarities down to minus this count as 0: similarities in single precision may exceed 1 by rounding.
_ROUNDING = 1e-6
#: Rows of a matrix that are looked at in one go.
_ROWS = 512

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


def similar_pairs(similarity: Any, min_similarity: float) -> tuple[_Ints, _Floats]:
    """All pairs of a similarity matrix that are at least so similar.

    Args:
        similarity: Array, memory map (read in blocks) or scipy sparse matrix of shape (N, N), symmetric. In a sparse
            matrix only stored pairs count.
        min_similarity: The similarity from which on a pair counts.

    Returns:
        The pairs i < j, int64 of shape (P, 2), in order, and their similarities, float64 of shape (P,).

    Raises:
        ValueError: If `similarity` is not square, finite and symmetric, or `min_similarity` is not finite.
        TypeError: If `similarity` does not hold real numbers or `min_similarity` is not a number.

    Example:
        >>> pairs, similarities = similar_pairs([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]], 0.5)
        >>> pairs.tolist(), similarities.tolist()
        ([[0, 1], [1, 2]], [0.9, 0.5])
    """
    least = _check_similarity_bound(min_similarity)
    matrix = check_similarity(similarity)
    if is_sparse(matrix):
        # The upper half as it is stored; rows and columns of a CSR matrix are in order once sorted.
        stored = matrix.sorted_indices()
        rows = np.repeat(np.arange(stored.shape[0]), np.diff(stored.indptr))
        kept = (stored.indices > rows) & (stored.data >= least)
        pairs = np.stack([rows[kept], stored.indices[kept].astype(np.int64)], axis=1)
        return pairs, stored.data[kept].astype(np.float64)
    found, values = [], []
    for start in range(0, len(matrix), _ROWS):
        block = matrix[start : start + _ROWS]
        first, second = np.nonzero(block >= least)
        upper = second > first + start
        first, second = first[upper], second[upper]
        found.append(np.stack([first + start, second], axis=1).astype(np.int64))
        values.append(block[first, second].astype(np.float64))
    return np.concatenate(found), np.concatenate(values)


def similarity_graph(n_leaves: int, pairs: npt.ArrayLike, similarities: npt.ArrayLike) -> Any:
    """The symmetric sparse matrix of a list of pairs, each image having similarity 1 to itself.

    Args:
        n_leaves: Number of images N.
        pairs: Integers of shape (P, 2), each pair once.
        similarities: float of shape (P,).

    Returns:
        A scipy sparse array of shape (N, N), float64 in CSR format, as `spectral_groups` takes it.

    Raises:
        ValueError: As `merge_tree_of_pairs`, for similarities of any sign.
        TypeError: As `merge_tree_of_pairs`.

    Example:
        >>> similarity_graph(3, [[0, 2]], [0.5]).toarray().tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]
    """
    import scipy.sparse

    n_leaves, first, second, values = _check_pairs(n_leaves, pairs, similarities, "similarities")
    own = np.arange(n_leaves)
    rows, columns = np.concatenate([first, second, own]), np.concatenate([second, first, own])
    entries = np.concatenate([values, values, np.ones(n_leaves)])
    return scipy.sparse.csr_array((entries, (rows, columns)), shape=(n_leaves, n_leaves))


def threshold_groups(n_leaves: int, pairs: npt.ArrayLike, similarities: npt.ArrayLike, min_similarity: float) -> _Ints:
    """Groups within which all images are at least so similar to each other.

    Complete linkage: the two most similar groups are merged again and again, as long as every pair across them has
    `min_similarity`. The time grows with the number of pairs, whatever N is.

    Args:
        n_leaves: Number of images N.
        pairs: Integers of shape (P, 2), each pair once: all those with at least `min_similarity`; others do not count.
        similarities: float of shape (P,), at most 1 (what lies above counts as 1).
        min_similarity: The least similarity of two images in a group.

    Returns:
        int64 of shape (N,): the group of each image, numbered by first occurrence.

    Raises:
        ValueError: As `merge_tree_of_pairs`, or if `min_similarity` is not finite.
        TypeError: As `merge_tree_of_pairs`, or if `min_similarity` is not a number.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, names this
        as the low-cost alternative to Algorithm 2: keep one of the images above a threshold. It leaves open which of a
        chain of images are one group.

    Example:
        >>> threshold_groups(4, [[0, 1], [1, 2], [2, 3]], [0.95, 0.93, 0.97], min_similarity=0.9).tolist()
        [0, 0, 1, 1]
    """
    least = _check_similarity_bound(min_similarity)
    n_leaves, first, second, values = _check_pairs(n_leaves, pairs, similarities, "similarities")
    kept = values >= least
    apart = np.maximum(1.0 - values[kept], 0.0)
    tree = merge_tree_of_pairs(n_leaves, np.stack([first[kept], second[kept]], axis=1), apart)
    return tree.cut(n_groups=tree.min_groups)


def merge_tree_of_pairs(
    n_leaves: int,
    pairs: npt.ArrayLike,
    dissimilarities: npt.ArrayLike,
    linkage: str = "complete",
    *,
    limit: float | None = None,
) -> MergeTree:
    """The merge tree of agglomerative clustering from the pairs up to some dissimilarity.

    Pairs that are not in the list never merge: where the list holds all pairs up to a dissimilarity, the merges are
    exactly those of all pairs up to there. Pairs are ordered by (dissimilarity, lower index, higher index), which
    leaves no tie.

    Args:
        n_leaves: Number of images N.
        pairs: Integers of shape (P, 2), each pair of two different images once, in any order.
        dissimilarities: float of shape (P,), at least 0 (what rounding leaves down to -1e-6 counts as 0).
        linkage: One of `PAIR_LINKAGES`.
        limit: Up to which dissimilarity the list is complete; by default the largest in the list.

    Returns:
        The tree, with the metric "precomputed". It reaches to `limit`, or has all merges.

    Raises:
        ValueError: If `pairs` are not of shape (P, 2), name an image that is not there, an image and itself, or a pair
            twice, if `dissimilarities` are not P finite numbers of at least 0, if `n_leaves` is below 1, `linkage`
            unknown or `limit` below the largest dissimilarity.
        TypeError: If `pairs` or `n_leaves` are not integers, or the others not numbers.

    References:
        Müllner, "Modern hierarchical, agglomerative clustering algorithms", arXiv 1109.2378 (nearest-neighbour chain;
        here on the graph of the pairs).

    Example:
        >>> tree = merge_tree_of_pairs(4, [[0, 1], [1, 2], [0, 2], [2, 3]], [0.1, 0.2, 0.4, 0.3])
        >>> tree.children.tolist(), tree.heights.tolist()
        ([[0, 1], [2, 3]], [0.1, 0.3])
    """
    check_choice("linkage", linkage, PAIR_LINKAGES)
    n_leaves, first, second, values = _check_pairs(n_leaves, pairs, dissimilarities, "dissimilarities")
    values = _not_negative(values)
    largest = float(values.max()) if len(values) else 0.0
    reach = largest if limit is None else _check_limit(limit, largest)
    # First by the pair, then stably by the dissimilarity.
    order = np.argsort(first * n_leaves + second, kind="stable")
    order = order[np.argsort(values[order], kind="stable")]
    low, high = first[order].astype(np.int32), second[order].astype(np.int32)
    if linkage == "complete":
        one, two, rank = _chain_complete(n_leaves, low, high)
        sequence = np.argsort(rank)
        one, two, rank = one[sequence], two[sequence], rank[sequence]
    else:
        rank = _forest(n_leaves, low, high)
        one, two = low[rank].astype(np.int64), high[rank].astype(np.int64)
    children = _number_nodes(n_leaves, one, two)
    if len(children) == n_leaves - 1:
        reach = math.inf
    return MergeTree(n_leaves, children, values[order][rank], linkage, "precomputed", reach)


def representatives_by_similarity(
    tree: MergeTree,
    pairs: npt.ArrayLike,
    dissimilarities: npt.ArrayLike,
    rule: str = "medoid",
    preferred: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Representatives:
    """Choose the representative of every group of a tree from the dissimilarities of pairs.

    The rules are those of `find_representatives`: "medoid" takes the member with the smallest sum of dissimilarities to
    the group's members (ties within 1e-12 per member go to the lowest index), "first" the lowest index, "random" the
    member with the lowest of the priorities that `seed` deals out.

    Args:
        tree: A tree of complete linkage, from `merge_tree_of_pairs`.
        pairs: Integers of shape (P, 2), those the tree was made from; every pair within a group is among them.
        dissimilarities: float of shape (P,), at least 0.
        rule: One of `PAIR_RULES`.
        preferred: bool of shape (N,): in a group with such members only they are candidates.
        seed: Of the priorities of the rule "random".

    Returns:
        The representatives of all nodes, and the events that give dissimilarities to them.

    Raises:
        ValueError: As `merge_tree_of_pairs`, if a pair within a group of the tree is missing, if `rule` is unknown or
            `preferred` has another shape.
        TypeError: As `merge_tree_of_pairs`, or if `preferred` is not boolean.

    Example:
        >>> pairs, apart = [[0, 1], [0, 2], [1, 2], [2, 3]], [0.3, 0.1, 0.2, 0.4]
        >>> tree = merge_tree_of_pairs(4, pairs, apart)
        >>> representatives_by_similarity(tree, pairs, apart).at(tree, 2)
        (array([2, 2, 2, 3]), array([0.1, 0.2, 0. , 0. ], dtype=float32))
    """
    check_choice("rule", rule, PAIR_RULES)
    n_leaves, first, second, values = _check_pairs(tree.n_leaves, pairs, dissimilarities, "dissimilarities")
    values = _not_negative(values)
    allowed = np.ones(n_leaves, np.bool_)
    if preferred is not None:
        allowed = np.asarray(preferred)
        if allowed.dtype != np.bool_:
            raise TypeError(f"`preferred` must be boolean, got dtype {allowed.dtype}.")
        if allowed.shape != (n_leaves,):
            raise invalid("preferred", f"of shape ({n_leaves},)", allowed.shape)
    order, starts, sizes = _leaf_order(n_leaves, tree.children)
    position = np.empty(n_leaves, np.int64)
    position[order] = np.arange(n_leaves)
    begins, others, apart = _neighbours(n_leaves, position[first], position[second], values)
    nodes, missing = _medoids(n_leaves, tree.children, order, starts, sizes, begins, others, apart, allowed[order])
    if missing >= 0:
        raise ValueError(
            f"`pairs` must hold every pair within a group of the tree, got none for some members of group {missing}."
        )
    if rule != "medoid":
        priority = np.random.default_rng(seed).permutation(n_leaves) if rule == "random" else np.arange(n_leaves)
        nodes = _lowest(n_leaves, tree.children, np.where(allowed, priority, priority + n_leaves))
    n_events = _count_events(n_leaves, tree.children, nodes, sizes)
    event_leaf = np.empty(n_events, np.int32)
    event_node = np.empty(n_events, np.int32)
    event_distance = np.empty(n_events, np.float32)
    _fill_events(
        n_leaves, tree.children, nodes, order, position, starts, sizes, begins, others, apart,
        event_leaf, event_node, event_distance,
    )  # fmt: skip
    return Representatives(nodes, event_leaf, event_node, event_distance)


# ------------------------------------------------------------------------------------------------ arguments


def _check_number(name: str, value: object) -> float:
    """`value` as a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise invalid(name, "finite", float(value))
    return float(value)


def _check_similarity_bound(min_similarity: object) -> float:
    return _check_number("min_similarity", min_similarity)


def _check_limit(limit: object, largest: float) -> float:
    """`limit`, at least the largest dissimilarity of the list; infinity means that no pair is left out."""
    value = math.inf if limit == math.inf else _check_number("limit", limit)
    if value < largest:
        raise invalid("limit", f"at least {largest:.6g}, the largest dissimilarity", value)
    return value


def _not_negative(values: _Floats) -> _Floats:
    """`values`, none of them below 0 by more than rounding, at least 0."""
    bad = np.flatnonzero(values < -_ROUNDING)
    if len(bad):
        raise ValueError(
            f"`dissimilarities` must be at least 0, got {len(bad)} that are not, the first {values[bad[0]]:.6g} at "
            f"index {bad[0]}."
        )
    return np.maximum(values, 0.0)


def _check_pairs(
    n_leaves: object, pairs: npt.ArrayLike, values: npt.ArrayLike, name: str
) -> tuple[int, _Ints, _Ints, _Floats]:
    """N, the lower and the higher index of each pair, and the numbers that go with them."""
    if isinstance(n_leaves, bool) or not isinstance(n_leaves, (int, np.integer)):
        raise TypeError(f"`n_leaves` must be an integer, got {n_leaves!r}.")
    if n_leaves < 1:
        raise invalid("n_leaves", "at least 1", int(n_leaves))
    count = int(n_leaves)
    table: npt.NDArray[Any] = np.asarray(pairs)
    if table.size == 0:
        # An empty list has no dtype of its own.
        table = table.reshape(-1, 2).astype(np.int64) if table.ndim < 2 else table.astype(np.int64)
    if table.ndim != 2 or table.shape[1] != 2:
        raise invalid("pairs", "of shape (P, 2)", f"an array of shape {table.shape}")
    if table.dtype.kind not in "iu":
        raise TypeError(f"`pairs` must hold integers, got dtype {table.dtype}.")
    numbers: npt.NDArray[Any] = np.asarray(values)
    if numbers.shape != (len(table),):
        raise invalid(name, f"of shape ({len(table)},), one for each pair", f"an array of shape {numbers.shape}")
    if numbers.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got dtype {numbers.dtype}.")
    numbers = numbers.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"`{name}` must be finite, got {len(bad)} NaN or infinite values, the first at index {bad[0]}."
        )
    wrong = np.flatnonzero(((table < 0) | (table >= count)).any(axis=1) | (table[:, 0] == table[:, 1]))
    if len(wrong):
        raise invalid("pairs", f"pairs of two different indices in 0 to {count - 1}", table[wrong[0]].tolist())
    table = table.astype(np.int64)
    first, second = table.min(axis=1, initial=count), table.max(axis=1, initial=-1)
    codes = np.sort(first * count + second)
    twice = np.flatnonzero(codes[1:] == codes[:-1])
    if len(twice):
        code = int(codes[twice[0]])
        raise invalid("pairs", "different from each other", f"{[code // count, code % count]} more than once")
    return count, first, second, numbers


# ------------------------------------------------------------------------------------------------ medoids


def _neighbours(
    count: int, first: _Ints, second: _Ints, values: _Floats
) -> tuple[_Ints, npt.NDArray[np.int32], _Floats]:
    """Of each position: where its list begins, and the other positions and dissimilarities in the lists."""
    ends = np.concatenate([first, second])
    order = np.argsort(ends, kind="stable")
    begins = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(ends, minlength=count), out=begins[1:])
    others = np.concatenate([second, first])[order].astype(np.int32)
    return begins, others, cast("_Floats", np.concatenate([values, values])[order])


@_kernel
def _medoids(
    n_leaves: int, children: Any, order: Any, starts: Any, sizes: Any, begins: Any, others: Any, apart: Any,
    allowed: Any,
) -> tuple[Any, int]:  # fmt: skip
    """The medoid of every merge, and the first merge that a pair is missing for, or -1.

    A merge adds the dissimilarities across it to the costs, from the lists of the members of its smaller side, so that
    a list is gone through at most log N times.
    """
    costs = np.zeros(n_leaves)
    nodes = np.empty(len(children), np.int64)
    for k in range(len(children)):
        node = n_leaves + k
        begin = starts[node]
        end = begin + sizes[node]
        one = children[k, 0]
        two = children[k, 1]
        small = one if sizes[one] < sizes[two] else two
        large = two if small == one else one
        low = starts[large]
        high = low + sizes[large]
        across = 0
        for p in range(starts[small], starts[small] + sizes[small]):
            for e in range(begins[p], begins[p + 1]):
                q = others[e]
                if low <= q < high:
                    costs[p] += apart[e]
                    costs[q] += apart[e]
                    across += 1
        if across != sizes[one] * sizes[two]:
            return nodes, k
        any_allowed = False
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
    return nodes, -1


@_kernel
def _fill_events(
    n_leaves: int, children: Any, nodes: Any, order: Any, position: Any, starts: Any, sizes: Any, begins: Any,
    others: Any, apart: Any, event_leaf: Any, event_node: Any, event_distance: Any,
) -> None:  # fmt: skip
    """The events, merge by merge."""
    distance = np.zeros(n_leaves)
    at = 0
    for k in range(len(children)):
        winner = position[nodes[k]]
        filled = False
        for side in range(2):
            child = children[k, side]
            before = child if child < n_leaves else nodes[child - n_leaves]
            if before == nodes[k]:
                continue
            if not filled:
                for e in range(begins[winner], begins[winner + 1]):
                    distance[others[e]] = apart[e]
                distance[winner] = 0.0
                filled = True
            for p in range(starts[child], starts[child] + sizes[child]):
                event_leaf[at] = order[p]
                event_node[at] = k
                event_distance[at] = distance[p]
                at += 1
