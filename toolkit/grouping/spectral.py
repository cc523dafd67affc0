"""Spectral clustering of images from their pairwise similarities, for few groups and for nearly as many as images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import scipy.cluster.hierarchy
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from scipy.spatial.distance import squareform
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from toolkit.grouping.kmeans import kmeans
from toolkit.spectrum import NEGATIVE, check_similarity, is_sparse, weights
from toolkit.validation import check_choice, invalid

__all__ = ["METHODS", "spectral_groups"]

#: How eigenvectors are found: all of them, by Lanczos iterations, or the quicker of the two.
METHODS = ("auto", "dense", "sparse")

#: Images of a connected graph up to which all eigenvectors are computed: some minutes on two cores.
_MAX_DENSE = 8192
#: Below this number of images all eigenvectors are computed, however few are needed.
_SMALL = 2048
#: Lanczos iterations are quicker where no more than one of so many eigenvectors is needed.
_FEW = 16
#: Numbers in the eigenvectors that the Lanczos iterations may be asked for (1 GiB, and twice that in their basis).
_MAX_VECTORS = 1 << 27
#: Eigenvalues that differ by less tie.
_TOLERANCE = 1e-10
#: With at most one group to so many images, starts by k-means++ are tried beside Ward's.
_MANY_IMAGES = 16
#: Number of these.
_STARTS = 10

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


def spectral_groups(
    similarity: Any,
    n_groups: int,
    *,
    negative: str = "clip",
    normalized: bool = True,
    seed: int = 0,
    method: str = "auto",
) -> _Ints:
    """Group images by spectral clustering of their pairwise similarities.

    With weights W (the similarities, that of an image to itself included) and degrees D, the eigenvectors u_j of
    D^(-1/2) W D^(-1/2) with the largest eigenvalues m_j are those of the normalized Laplacian with the smallest,
    1 - m_j. Image i is put at the vector of sqrt(m_j) u_ij, scaled to length 1, and these are grouped by k-means from
    the groups of Ward's linkage; where there is at most one group to 16 images, ten starts by k-means++ are tried as
    well and the smallest objective wins.

    Three things differ from the usual recipe (scikit-learn's), which fails where there are nearly as many groups as
    images. It leaves out the similarity of an image to itself. Then the difference of two identical images is an
    eigenvector like any other: with 454 groups of the 500 images of arXiv 2002.10257, three of the five identical pairs
    are torn apart. With it, the m_j of that eigenvector is 0, so that it is left out first: identical images share a
    group unless there are more groups than distinct images. Secondly, without the weights sqrt(m_j) hundreds of
    directions of noise count as much as the first; with them, scalar products approach the similarities themselves as
    `n_groups` grows. Where there are few clear groups all m_j are near 1 and the weights change little. Thirdly,
    k-means++ merges arbitrary images: the best of ten such starts has a 6 % higher objective in that example.

    A connected part of the graph gets as many groups as it has eigenvalues among the `n_groups` largest, and is
    grouped by itself. With fewer groups than connected parts, whole parts are joined, by average linkage of their
    similarities before those below 0 are clipped.

    Args:
        similarity: Array, memory map or scipy sparse matrix of shape (N, N), symmetric, with the similarity of each
            image to itself on the diagonal; pairs not stored in a sparse matrix have similarity 0.
        n_groups: Number of groups, 1 to N.
        negative: What becomes of negative similarities, one of `toolkit.spectrum.NEGATIVE`.
        normalized: Use the normalized Laplacian as above; otherwise the eigenvectors of D - W as they are. That
            Laplacian does not see the similarity of an image to itself, so identical images may be torn apart.
        seed: Of the starts by k-means++ and of the Lanczos iterations.
        method: One of `METHODS`. "dense" computes all eigenvectors of each connected part, of at most 8,192 images;
            "sparse" only those needed, by Lanczos iterations; "auto" the quicker of the two.

    Returns:
        int64 of shape (N,): the group of each image, numbered by first occurrence; exactly `n_groups` of them.

    Raises:
        ValueError: If `similarity` is not square, finite and symmetric, or has a value on its diagonal or (with
            `negative="keep"`) a degree that is not above 0 while `normalized` is set, if `n_groups` is not in 1 to N,
            `negative` or `method` are unknown, or if a connected part is too large for the number of groups.
        TypeError: If `similarity` does not hold real numbers or `n_groups` is not an integer.
        RuntimeError: If the Lanczos iterations do not converge.

    References:
        Ng, Jordan and Weiss, "On spectral clustering: analysis and an algorithm", NIPS 2001 (rows of length 1).
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, Algorithm 2, line 10,
        names spectral clustering without details.

    Example:
        >>> similarity = [[1.0, 0.1, 0.9, 0.2], [0.1, 1.0, 0.2, 0.8], [0.9, 0.2, 1.0, 0.1], [0.2, 0.8, 0.1, 1.0]]
        >>> spectral_groups(similarity, 2).tolist()
        [0, 1, 0, 1]
        >>> spectral_groups(similarity, 3).tolist()
        [0, 1, 0, 2]
    """
    check_choice("negative", negative, NEGATIVE)
    check_choice("method", method, METHODS)
    matrix = check_similarity(similarity)
    n_images = matrix.shape[0]
    if isinstance(n_groups, bool) or not isinstance(n_groups, (int, np.integer)):
        raise TypeError(f"`n_groups` must be an integer, got {n_groups!r}.")
    if not 1 <= n_groups <= n_images:
        raise invalid("n_groups", f"in 1 to {n_images}, the number of images", int(n_groups))
    if normalized:
        _check_diagonal(matrix)
    if n_groups in (1, n_images):
        return np.zeros(n_images, np.int64) if n_groups == 1 else np.arange(n_images)
    graph = weights(matrix, negative)
    part = _connected(graph)
    n_parts = int(part.max()) + 1
    if n_parts >= n_groups:
        joined = part if n_parts == n_groups else _join_parts(matrix, part, n_parts, int(n_groups))[part]
        return _by_first(joined)
    members = np.split(np.argsort(part, kind="stable"), np.cumsum(np.bincount(part))[:-1])
    # One thread: with more, sums may be split in other ways, and the groups must not depend on the machine.
    with threadpool_limits(1, user_api="blas"):
        found = _spectra(graph, members, int(n_groups), normalized, method, seed)
    groups = np.empty(n_images, np.int64)
    first = 0
    for rows, spectrum, count in zip(members, found, _shares(found, int(n_groups)), strict=True):
        groups[rows] = first + _cluster(spectrum, count, len(rows), normalized, seed)
        first += count
    return _by_first(groups)


def _check_diagonal(matrix: Any) -> None:
    """That every image is similar to itself."""
    diagonal = np.asarray(matrix.diagonal())
    bad = np.flatnonzero(~(diagonal > 0.0))
    if len(bad):
        raise ValueError(
            "`similarity` must have the similarity of each image to itself, above 0, on its diagonal, got "
            f"{len(bad)} that are not, the first {float(diagonal[bad[0]]):.6g} at index {bad[0]}."
        )


def _by_first(groups: _Ints) -> _Ints:
    """Groups numbered by first occurrence."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()]


# ------------------------------------------------------------------------------------------------ connected parts


def _connected(graph: Any) -> _Ints:
    """The connected part of each image, numbered by first occurrence."""
    if is_sparse(graph):
        edges = graph.copy()
        edges.eliminate_zeros()
        _, labels = scipy.sparse.csgraph.connected_components(edges, directed=False)
        return _by_first(labels.astype(np.int64))
    # Row by row, as a sparse copy would take more memory than the matrix.
    parts: _Ints = np.full(len(graph), -1, np.int64)
    count = 0
    for seed in range(len(graph)):
        if parts[seed] >= 0:
            continue
        parts[seed] = count
        reached = np.array([seed])
        while len(reached):
            near = np.zeros(len(graph), np.bool_)
            for row in reached.tolist():
                near |= graph[row] != 0.0
            reached = np.flatnonzero(near & (parts < 0))
            parts[reached] = count
        count += 1
    return parts


def _join_parts(matrix: Any, part: _Ints, n_parts: int, n_groups: int) -> _Ints:
    """The group of each connected part, where there are more of these than groups."""
    if n_parts > _MAX_DENSE:
        raise invalid(
            "n_groups",
            f"at least {n_parts}, the number of connected parts of the graph, where there are more than {_MAX_DENSE}",
            n_groups,
        )
    member = scipy.sparse.csr_array((np.ones(len(part)), (part, np.arange(len(part)))), shape=(n_parts, len(part)))
    sums = member @ (member @ matrix).T
    sums = sums.toarray() if is_sparse(sums) else np.asarray(sums)
    sizes = np.bincount(part)
    apart = -(0.5 * (sums + sums.T)) / (sizes[:, None] * sizes)
    np.fill_diagonal(apart, 0.0)
    condensed = squareform(apart, checks=False)
    tree = scipy.cluster.hierarchy.average(condensed - condensed.min())
    return cast("_Ints", scipy.cluster.hierarchy.cut_tree(tree, n_clusters=[n_groups]).ravel().astype(np.int64))


# ------------------------------------------------------------------------------------------------ eigenvectors


@dataclass(frozen=True)
class _Spectrum:
    """Smallest eigenvalues of the Laplacian of a connected part, ascending, and their eigenvectors in columns."""

    values: _Floats
    vectors: _Floats


def _spectra(
    graph: Any, members: list[_Ints], n_groups: int, normalized: bool, method: str, seed: int
) -> list[_Spectrum]:
    """What each connected part may need: at least one eigenvector is left to each of the others."""
    most = n_groups - len(members) + 1
    found = []
    for rows in members:
        size = len(rows)
        if size == 1:
            found.append(_Spectrum(np.zeros(1), np.ones((1, 1))))
            continue
        if size == graph.shape[0]:
            some = graph
        else:
            some = graph[rows][:, rows] if is_sparse(graph) else graph[np.ix_(rows, rows)]
        found.append(_spectrum(some, min(size, most), normalized, method, seed))
    return found


def _spectrum(graph: Any, count: int, normalized: bool, method: str, seed: int) -> _Spectrum:
    """The `count` smallest eigenvalues of a connected graph, and their eigenvectors."""
    size = graph.shape[0]
    degrees = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    scale = np.ones(size)
    if normalized:
        bad = np.flatnonzero(~(degrees > 0.0))
        if len(bad):
            raise ValueError(
                "`similarity` must have degrees above 0 for the normalized Laplacian (use `negative='clip'`), got "
                f"{degrees[bad[0]]:.6g}."
            )
        scale = 1.0 / np.sqrt(degrees)
    few = size > _SMALL and _FEW * count <= size
    iterate = count < size - 1 and (method == "sparse" or (method == "auto" and (few or size > _MAX_DENSE)))
    if not iterate:
        if size > _MAX_DENSE:
            raise invalid(
                "similarity",
                f"a graph whose connected parts have at most {_MAX_DENSE} images for the dense method and for all "
                "eigenvectors",
                size,
            )
        dense = graph.toarray() if is_sparse(graph) else graph
        if normalized:
            operator = dense * (scale[:, None] * scale)
        else:
            operator = -dense
            operator[np.diag_indices(size)] += degrees
        values, vectors = scipy.linalg.eigh(operator, overwrite_a=True, check_finite=False)
        if normalized:
            values, vectors = 1.0 - values[::-1], vectors[:, ::-1]
        return _Spectrum(values[:count].copy(), vectors[:, :count].copy())
    if count * size > _MAX_VECTORS:
        raise invalid(
            "n_groups",
            f"such that at most {_MAX_VECTORS // size} eigenvectors of a connected part of {size} images may be "
            "needed (`threshold_groups` has no such limit)",
            f"one that may need {count}",
        )
    if is_sparse(graph):
        scaling = scipy.sparse.diags_array(scale)
        operator = scaling @ graph @ scaling if normalized else graph - scipy.sparse.diags_array(degrees)
    else:
        operator = graph * (scale[:, None] * scale) if normalized else graph - np.diag(degrees)
    values, vectors = _largest(operator, count, 1.0 if normalized else 0.0, seed)
    return _Spectrum((1.0 if normalized else 0.0) - values, vectors)


def _largest(operator: Any, count: int, top: float, seed: int) -> tuple[_Floats, _Floats]:
    """The `count` largest eigenvalues, descending, none above `top` but for rounding, and their eigenvectors."""
    start = np.random.default_rng(seed).standard_normal(operator.shape[0])
    try:
        values, vectors = eigsh(operator, count, which="LA", v0=start)
    except ArpackNoConvergence as error:
        if not is_sparse(operator):
            raise RuntimeError(f"The Lanczos iterations did not converge: {error}") from error
        # The inverse, shifted to just above the spectrum, pulls its crowded end apart.
        shift = top + 1e-3 * abs(operator).sum(axis=1).max()
        try:
            values, vectors = eigsh(operator.tocsc(), count, sigma=shift, which="LM", v0=start)
        except ArpackNoConvergence as again:
            raise RuntimeError(f"The Lanczos iterations did not converge: {again}") from again
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def _shares(found: list[_Spectrum], n_groups: int) -> list[int]:
    """The number of groups of each connected part: at least one, the rest by the smallest eigenvalues."""
    if len(found) == 1:
        return [n_groups]
    sizes = np.array([len(spectrum.values) for spectrum in found])
    part = np.repeat(np.arange(len(found)), sizes)
    rank = np.arange(len(part)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    values = np.concatenate([spectrum.values for spectrum in found])
    scale = max(1.0, float(np.abs(values).max()))
    # Parts of the same shape have the same eigenvalues but for rounding: the first part wins.
    values = np.where(rank == 0, -np.inf, np.round(values / (_TOLERANCE * scale)))
    chosen = np.lexsort((rank, part, values))[:n_groups]
    return cast("list[int]", np.bincount(part[chosen], minlength=len(found)).tolist())


# ------------------------------------------------------------------------------------------------ groups


def _embedding(spectrum: _Spectrum, count: int, normalized: bool) -> _Floats:
    """Where the images of a connected part lie for k-means, from its `count` smallest eigenvalues."""
    vectors = spectrum.vectors[:, :count]
    if not normalized:
        return vectors
    share = 1.0 - spectrum.values[:count]
    kept = share > _TOLERANCE
    points = vectors[:, kept] * np.sqrt(share[kept])
    norms = np.sqrt(np.einsum("ij,ij->i", points, points))[:, None]
    return points / np.where(norms > 0.0, norms, 1.0)


def _cluster(spectrum: _Spectrum, count: int, size: int, normalized: bool, seed: int) -> _Ints:
    """The groups of a connected part."""
    if count == 1:
        return np.zeros(size, np.int64)
    if count == size:
        return np.arange(size)
    points = _embedding(spectrum, count, normalized)
    best = kmeans(points, count, init="ward")
    if _MANY_IMAGES * count <= size:
        for k in range(_STARTS):
            other = kmeans(points, count, init="k-means++", seed=seed + k)
            # Equal but for rounding is no better: the order of the starts decides.
            if other.objective < best.objective * (1.0 - 1e-9):
                best = other
    return best.groups
