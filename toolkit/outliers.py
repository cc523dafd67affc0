"""Outliers by score: exactly as many as asked for, and a warning where they are a group of their own.

Labels such as the noise of HDBSCAN say of each vector whether it is an outlier; how many are is whatever comes out, and
a part of the data that lies apart from the rest is noise as a whole. Scores order all vectors, so that a budget is met
exactly, and groups among those chosen are found and named.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from toolkit.distributed import world
from toolkit.neighbors import METRICS, Neighbors, nearest_neighbors
from toolkit.outlier_trees import _kernel, glosh_scores, leaving_distances, spanning_tree
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = [
    "SCORES",
    "OutlierChoice",
    "OutlierModeWarning",
    "choose_outliers",
    "outlier_groups",
    "outlier_scores",
    "outliers",
]

#: Scores offered.
SCORES = ("knn", "hdbscan", "glosh")

#: Neighbours that are looked at by default, and the least members of a cluster and of a mode.
_NEIGHBORS = 16
_CLUSTER_SIZE = 16
_MODE_SIZE = 10
#: Neighbours in the lists from which most edges of the spanning tree are found.
_LISTED = 32
#: Share of a vector's neighbours chosen with it, from which next to nothing near it would be left.
_MODE_SHARE = 0.75
#: What is known of a vector while places are filled; in this order they are chosen.
_CHOSEN, _WAITING, _KEPT_BACK = 1, 2, 3

_Any = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class OutlierModeWarning(UserWarning):
    """Vectors that were chosen as outliers form groups of their own."""


class OutlierChoice(NamedTuple):
    """The vectors chosen as outliers, and the groups found among them.

    Args:
        indices: int64 of shape (n,): the chosen vectors, the most outlying first.
        scores: float64 of shape (N,): the scores of all vectors, larger means more outlying.
        groups: Modes, the largest first: int64 arrays of ascending indices. Those among the chosen, or, with
            `protect_modes`, those that were kept back.
        order: int64 of shape (M,): all candidates, first the chosen ones, then those that would follow.
    """

    indices: _Ints
    scores: _Floats
    groups: list[_Ints]
    order: _Ints


def outlier_scores(
    vectors: npt.ArrayLike,
    method: str = "knn",
    *,
    k: int | None = None,
    min_cluster_size: int = _CLUSTER_SIZE,
    metric: str = "euclidean",
    progress: bool = False,
) -> _Floats:
    """How far out of the data each vector lies; larger is more outlying. All scores are exact.

    - `knn`: the mean dissimilarity to the k nearest neighbours.
    - `hdbscan`: the length at which the vector leaves the body of the data, as the edges of the minimum spanning tree
      of mutual reachability are cut from the longest down. The mutual reachability of i and j is `max(core(i), core(j),
      d(i, j))`, core being the dissimilarity to the k-th nearest neighbour; the body is the largest component, and of
      what it falls into again the largest. A group that leaves as a whole has one score, so whole modes come first
      where they lie apart.
    - `glosh`: `1 - e_min / e`, in [0, 1]: `e` is the length at which the vector falls out of the last cluster
      (component of at least `min_cluster_size`) that it belongs to, `e_min` the shortest length at which that cluster
      or one inside of it exists. It compares a vector with the densest part of its own cluster, so it finds outliers of
      dense clusters beside sparse ones. Where a cluster has a knot of equal vectors, `e_min` is 0 and all its others
      have the score 1.

    Neighbours do not count the vector itself; scikit-learn's `min_samples` does, and equals k + 1. Edges of the same
    length are cut at once, so the scores do not depend on the order of the vectors (but where two components are
    equally large, the body is the one with the lowest index).

    Args:
        vectors: Shape (N, D).
        method: One of `SCORES`.
        k: Neighbours, 1 to N - 1; 16 by default, or N - 1 where that is less.
        min_cluster_size: For `glosh`: vectors of a cluster, at least 2.
        metric: `euclidean` or `cosine` (1 - <u, v> / (|u| |v|)).
        progress: Whether to show progress bars.

    Returns:
        float64 of shape (N,); 0 for a single vector.

    Raises:
        ValueError: If the vectors are not a finite matrix or have zero rows under the cosine, if `k` or
            `min_cluster_size` are out of range, or if `method` or `metric` are unknown.
        TypeError: If the vectors are not real numbers or `k` or `min_cluster_size` not integers.

    References:
        Ramaswamy, Rastogi, Shim, "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000, and
        Angiulli and Pizzuti, "Fast outlier detection in high dimensional spaces", PKDD 2002 (distances to the k nearest
        neighbours). Campello, Moulavi, Zimek, Sander, "Hierarchical density estimates for data clustering,
        visualization, and outlier detection", ACM TKDD 10 (2015) (GLOSH). Raud, "Dataset filtering for image
        classification and object detection models", TalTech 2023, sorts vertices "decreasingly by distances to their
        neighbors" in the spanning tree; its code lets HDBSCAN find a single cluster of the size to be kept, whose noise
        are the vectors that leave the body first: the order of `hdbscan` here, which meets any budget exactly.

    Example:
        >>> outlier_scores([[0.0], [1.0], [2.0], [9.0]], k=1).tolist()
        [1.0, 1.0, 1.0, 7.0]
        >>> outlier_scores([[0.0], [1.0], [3.0], [9.0]], "hdbscan", k=1).tolist()
        [1.0, 1.0, 2.0, 6.0]
    """
    matrix, k = _checked(vectors, method, k, min_cluster_size, metric)
    if k == 0:
        return np.zeros(len(matrix))
    found = _lists(matrix, method, k, metric, progress)
    return _scores(matrix, method, k, min_cluster_size, metric, found, progress)


def outliers(scores: npt.ArrayLike, n: int) -> _Ints:
    """The n largest scores, equal ones by their index.

    Args:
        scores: Shape (N,), no NaN.
        n: How many, 0 to N.

    Returns:
        int64 of shape (n,): indices, the largest score first.

    Raises:
        ValueError: If the scores are not one-dimensional or have NaN, or if `n` is out of range.
        TypeError: If `n` is not an integer.

    Example:
        >>> outliers([0.1, 0.9, 0.5, 0.9], 3).tolist()
        [1, 3, 2]
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise invalid("scores", "of shape (N,) without NaN", f"shape {values.shape}, {np.isnan(values).sum()} NaN")
    _check_count("n", n, 0)
    if n > len(values):
        raise invalid("n", f"at most {len(values)}, the number of scores", int(n))
    return np.argsort(-values, kind="stable")[:n]


def outlier_groups(
    vectors: npt.ArrayLike,
    chosen: npt.ArrayLike,
    *,
    min_size: int = _MODE_SIZE,
    metric: str = "euclidean",
    progress: bool = False,
) -> list[_Ints]:
    """Groups among chosen vectors that would vanish with them: modes of the data rather than single outliers.

    Next to nothing near a chosen vector would be left where at least three quarters of its `min_size - 1` nearest
    neighbours are chosen as well. A mode is a group of at least `min_size` such vectors that hang together as
    neighbours of one another. Single outliers have most of their neighbours in the body of the data, which stays. An
    `OutlierModeWarning` says how many modes there are.

    Args:
        vectors: Shape (N, D): all vectors.
        chosen: Indices of the chosen vectors, each once.
        min_size: Members of a mode, at least 2.
        metric: `euclidean` or `cosine`.
        progress: Whether to show a progress bar.

    Returns:
        The modes, the largest first (equally large ones by their lowest index), each as ascending indices in int64.

    Raises:
        ValueError: If the vectors are not a finite matrix or have zero rows under the cosine, if `chosen` has indices
            that are out of range or occur twice, if `min_size` is out of range, or if `metric` is unknown.
        TypeError: If the vectors are not real numbers, or `chosen` or `min_size` not integers.

    Example:
        >>> import warnings
        >>> body, mode = [[0.1 * i, 0.0] for i in range(20)], [[50.0 + 0.1 * i, 0.0] for i in range(3)]
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     groups = outlier_groups(body + mode + [[20.0, 9.0]], [20, 21, 22, 23], min_size=3)
        >>> [group.tolist() for group in groups], len(caught)
        ([[20, 21, 22]], 1)
    """
    matrix, _ = _checked(vectors, "knn", None, _CLUSTER_SIZE, metric)
    _check_count("min_size", min_size, 2)
    indices = np.asarray(chosen)
    if indices.size == 0:
        return []  # which NumPy takes for real numbers
    if indices.dtype.kind not in "iu":
        raise TypeError(f"`chosen` must hold integers, got dtype {indices.dtype}.")
    if indices.ndim != 1 or indices.min() < 0 or indices.max() >= len(matrix) or len(np.unique(indices)) < indices.size:
        raise invalid("chosen", f"different indices in 0 to {len(matrix) - 1}", chosen)
    if indices.size < min_size:
        return []
    found = _lists(matrix, "knn", min_size - 1, metric, progress)
    groups = _modes(found.indices, indices.astype(np.int64), min_size)
    _warn(groups, len(indices))
    return groups


def choose_outliers(
    vectors: npt.ArrayLike,
    n: int | Sequence[int] | _Ints,
    method: str = "knn",
    *,
    k: int | None = None,
    min_cluster_size: int = _CLUSTER_SIZE,
    metric: str = "euclidean",
    protect_modes: bool = False,
    min_size: int = _MODE_SIZE,
    candidates: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
    index: str = "exact",
    nprobe: int | None = None,
    progress: bool = False,
) -> OutlierChoice:
    """Exactly n outliers by score, and the modes among them, which can be kept back.

    Without `protect_modes` the n largest scores are chosen, and an `OutlierModeWarning` says where these form modes
    (see `outlier_groups`). With it, these are kept back and the next by score take their places, except where one more
    would leave next to nothing near itself or near a vector chosen before, so that no new mode comes about. Only where
    too few vectors are left are others chosen after all, by score and those kept back last, with a warning.

    Scores and modes are always those of all vectors together, whoever may be chosen and whatever their classes.

    Args:
        vectors: Shape (N, D).
        n: How many, 0 to the number of candidates; with `classes`, shape (C,): how many of each class.
        method: One of `SCORES`, see `outlier_scores`.
        k: Neighbours, 1 to N - 1; 16 by default, or N - 1 where that is less.
        min_cluster_size: For `glosh`: vectors of a cluster, at least 2.
        metric: `euclidean` or `cosine`.
        protect_modes: Whether to keep modes back.
        min_size: Members of a mode, at least 2.
        candidates: bool of shape (N,): those that may be chosen; all if None.
        classes: Integers of shape (N,), 0 to C - 1: the class of each vector, where `n` counts by class.
        index: How neighbours are found for `knn`, see `toolkit.neighbors.nearest_neighbors`; the others need "exact".
        nprobe: Lists of such an index that are searched.
        progress: Whether to show progress bars.

    Returns:
        The chosen, the scores of all, the modes (among the chosen, or kept back), and the order of the candidates.

    Raises:
        ValueError: As `outlier_scores` and `outlier_groups`, if `n` is out of range, if `candidates` or `classes` have
            another shape or classes are out of range, and for another index than "exact" with the spanning tree.
        TypeError: As `outlier_scores` and `outlier_groups`, and if `n` or `classes` are not integers.

    Example:
        >>> body, mode = [[0.1 * i, 0.0] for i in range(20)], [[50.0 + 0.1 * i, 0.0] for i in range(3)]
        >>> vectors = body + mode + [[20.0, 9.0]]
        >>> choice = choose_outliers(vectors, 4, "hdbscan", k=2, min_size=3, protect_modes=True)
        >>> choice.indices.tolist(), [group.tolist() for group in choice.groups]
        ([23, 0, 19, 5], [[20, 21, 22]])
    """
    matrix, k = _checked(vectors, method, k, min_cluster_size, metric)
    _check_count("min_size", min_size, 2)
    allowed, codes, counts = _wanted(len(matrix), n, candidates, classes)
    if index != "exact" and method != "knn":
        raise invalid("index", f'"exact" for the score {method!r}', index)
    n_chosen = int(counts.sum())
    if k == 0:
        scores, near = np.zeros(1), np.empty((1, 0), np.int64)
    else:
        found = _lists(matrix, method, k, metric, progress, min_size - 1, index, nprobe)
        scores = _scores(matrix, method, k, min_cluster_size, metric, found, progress)
        near = found.indices[:, : min_size - 1]
    order = outliers(scores, len(scores))
    order = order[allowed[order]]
    chosen = _first_of_each(order, codes, counts)
    groups = _modes(near, chosen, min_size)
    if protect_modes and groups:
        kept_back = np.concatenate(groups)
        order = _around(near, order, codes, counts, chosen, kept_back)
        chosen = _first_of_each(order, codes, counts)
        groups = [group for group in (np.setdiff1d(group, chosen) for group in groups) if len(group)]
        lost = np.concatenate([np.intersect1d(chosen, kept_back), *_modes(near, chosen, min_size)])
        _warn(_components(near, np.unique(lost)), n_chosen)
    else:
        _warn(groups, n_chosen)
    first = np.zeros(len(scores), bool)
    first[chosen] = True
    return OutlierChoice(chosen, scores, groups, order[np.argsort(~first[order], kind="stable")])


# ------------------------------------------------------------------------------------------------ arguments


def _check_count(name: str, value: int, least: int) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise invalid(name, f"at least {least}", int(value))
    return int(value)


def _checked(vectors: npt.ArrayLike, method: str, k: int | None, size: int, metric: str) -> tuple[_Any, int]:
    """The vectors as a matrix, and how many neighbours to look at."""
    check_choice("method", method, SCORES)
    check_choice("metric", metric, METRICS)
    _check_count("min_cluster_size", size, 2)
    given: _Any = np.asanyarray(vectors)
    if given.dtype.kind not in "iub" or given.ndim != 2 or 0 in given.shape or metric == "cosine":
        given = check_vectors(given, "vectors", nonzero=metric == "cosine")
    if k is None:
        return given, min(_NEIGHBORS, len(given) - 1)
    if _check_count("k", k, 1) >= len(given):
        raise invalid("k", f"at most {len(given) - 1}, one less than the number of vectors", int(k))
    return given, int(k)


def _wanted(count: int, n: Any, candidates: Any, classes: Any) -> tuple[npt.NDArray[np.bool_], _Ints, _Ints]:
    """Who may be chosen, the class of each vector, and how many are wanted of each class."""
    allowed = np.ones(count, bool) if candidates is None else np.asarray(candidates)
    if allowed.dtype != bool or allowed.shape != (count,):
        raise invalid("candidates", f"bool of shape ({count},)", f"{allowed.dtype} of shape {allowed.shape}")
    codes = np.zeros(count, np.int64) if classes is None else np.asarray(classes)
    counts = np.array([_check_count("n", n, 0)]) if classes is None else np.asarray(n)
    if codes.dtype.kind not in "iu" or counts.dtype.kind not in "iu":
        raise TypeError(f"`n` and `classes` must hold integers, got dtypes {counts.dtype} and {codes.dtype}.")
    if counts.ndim != 1 or codes.shape != (count,) or codes.min() < 0 or codes.max() >= len(counts):
        shapes = f"shapes {codes.shape} and {counts.shape}"
        raise invalid("classes", f"of shape ({count},) and below the length of `n`", shapes)
    most = np.bincount(codes[allowed], minlength=len(counts))
    if (counts < 0).any() or (counts > most).any():
        raise invalid("n", f"0 to {most.tolist()}, the number of candidates", counts.tolist())
    return allowed, codes.astype(np.int64), counts.astype(np.int64)


def _first_of_each(order: _Ints, codes: _Ints, counts: _Ints) -> _Ints:
    """The first of each class in an order, as many as wanted, in that order."""
    of_class = codes[order]
    by_class = np.argsort(of_class, kind="stable")
    sizes = np.bincount(of_class, minlength=len(counts))
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < counts[of_class]]


# ------------------------------------------------------------------------------------------------ scores


def _lists(
    matrix: _Any,
    method: str,
    k: int,
    metric: str,
    progress: bool,
    least: int = 0,
    index: str = "exact",
    nprobe: int | None = None,
) -> Neighbors:
    """The nearest neighbours, more than k for what needs the spanning tree; all others where these are fewer."""
    length = min(max(k, least, 0 if method == "knn" else _LISTED), len(matrix) - 1)
    shown = progress and world()[0] == 0
    return nearest_neighbors(matrix, length, metric=metric, index=index, nprobe=nprobe, progress=shown)


def _scores(
    matrix: _Any, method: str, k: int, min_cluster_size: int, metric: str, found: Neighbors, progress: bool
) -> _Floats:
    """The scores, from the lists of neighbours."""
    if method == "knn":
        # Divided before they are summed, so that the largest distances do not leave the range of float64.
        return cast("_Floats", (found.distances[:, :k] / k).sum(axis=1))
    tree = spanning_tree(matrix, k, found, metric=metric, progress=progress)
    return leaving_distances(tree) if method == "hdbscan" else glosh_scores(tree, min_cluster_size)


# ------------------------------------------------------------------------------------------------ modes


def _components(near: _Ints, chosen: _Ints) -> list[_Ints]:
    """Groups of the chosen that hang together as neighbours, the largest first."""
    if len(chosen) == 0:
        return []
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    place = np.full(len(near), -1)
    place[chosen] = np.arange(len(chosen))
    rows, columns = np.repeat(np.arange(len(chosen)), near.shape[1]), place[near[chosen]].ravel()
    inside = columns >= 0
    ones = np.ones(int(inside.sum()), np.int8)
    links = csr_array((ones, (rows[inside], columns[inside])), shape=(len(chosen), len(chosen)))
    _, label = connected_components(links, directed=False)
    ends = np.cumsum(np.bincount(label))[:-1]
    groups = [np.sort(group) for group in np.split(chosen[np.argsort(label, kind="stable")], ends)]
    return sorted(groups, key=lambda group: (-len(group), int(group[0])))


def _modes(near: _Ints, chosen: _Ints, min_size: int) -> list[_Ints]:
    """Groups of at least `min_size` chosen vectors that have most of their neighbours among the chosen."""
    among = np.zeros(len(near), bool)
    among[chosen] = True
    buried = chosen[among[near[chosen]].sum(axis=1) >= max(1.0, _MODE_SHARE * near.shape[1])]
    return [group for group in _components(near, buried) if len(group) >= min_size]


def _around(near: _Ints, order: _Ints, codes: _Ints, counts: _Ints, chosen: _Ints, kept_back: _Ints) -> _Ints:
    """The order with those kept back last, and those that would bury themselves or a chosen one just before."""
    state = np.zeros(len(near), np.int8)
    state[chosen] = _CHOSEN
    state[kept_back] = _KEPT_BACK
    needed = counts - np.bincount(codes[state == _CHOSEN], minlength=len(counts))
    back = np.argsort(near.ravel(), kind="stable") // near.shape[1]
    starts = np.concatenate([[0], np.cumsum(np.bincount(near.ravel(), minlength=len(near)))])
    most = _MODE_SHARE * near.shape[1]
    _take_places(order, codes, needed, near, back, starts, most, state)
    return order[np.argsort(state[order], kind="stable")]


@_kernel
def _take_places(
    order: Any, codes: Any, needed: Any, near: Any, back: Any, starts: Any, most: float, state: Any
) -> None:  # fmt: skip
    """Choose more of an order, where neither these nor those chosen before get `most` chosen neighbours."""
    count = np.zeros(len(near), np.int64)
    for i in range(len(near)):
        for j in near[i]:
            count[i] += state[j] == _CHOSEN
    for i in order:
        if state[i] != 0:
            continue
        state[i] = _WAITING
        if needed[codes[i]] == 0 or count[i] >= most:
            continue
        fits = True
        for at in range(starts[i], starts[i + 1]):
            j = back[at]
            if state[j] == _CHOSEN and count[j] < most and count[j] + 1 >= most:
                fits = False
                break
        if fits:
            state[i] = _CHOSEN
            needed[codes[i]] -= 1
            for at in range(starts[i], starts[i + 1]):
                count[back[at]] += 1


def _warn(groups: list[_Ints], n: int) -> None:
    """Say how many groups there are among the chosen."""
    if groups:
        sizes = ", ".join(str(len(group)) for group in groups[:5]) + ("" if len(groups) <= 5 else ", ...")
        warnings.warn(
            f"{sum(map(len, groups))} of the {n} vectors chosen as outliers form {len(groups)} group(s) of their own "
            f"({sizes} members): modes of the data that would be removed with them. `protect_modes` keeps them.",
            OutlierModeWarning,
            stacklevel=3,
        )
