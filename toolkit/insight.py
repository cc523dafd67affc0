"""What the images of a data set tell of each other: near-duplicates, loners, doubtful labels, leaks into the test set.

Pure functions on arrays. Where images are vectors they are compared by their distance; where only a matrix of pairwise
similarities is known (SSIM, say), the distance of two images is 1 - similarity throughout.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.neighbors import near_pairs, nearest_neighbors
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = [
    "Isolated",
    "Leaks",
    "Pairs",
    "find_leaks",
    "find_leaks_by_similarity",
    "influential_pairs",
    "least_similar_pairs",
    "most_isolated",
    "near_duplicates",
]

_METRICS = ("euclidean", "cosine")
#: Numbers held of a block of rows, so that a memory-mapped matrix is never loaded whole.
_CHUNK_ELEMENTS = 1 << 22
#: Rows asked for their neighbours to bound the distance of the closest pairs.
_SAMPLE = 1024
#: Two entries of a similarity matrix that mirror each other may differ by this.
_ASYMMETRY = 1e-6

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
_Block = tuple[_Ints, _Ints, _Floats]


class Pairs(NamedTuple):
    """Pairs of images, the closest first, ties by index.

    Args:
        pairs: int64 of shape (P, 2), in each row the lower index first.
        distances: float64 of shape (P,): in the metric of the vectors, or 1 - similarity.
        similarities: float64 of shape (P,), or None where the images were vectors.
    """

    pairs: _Ints
    distances: _Floats
    similarities: _Floats | None = None


class Isolated(NamedTuple):
    """Images far from all others, the farthest first, ties by index.

    Args:
        indices: int64 of shape (n,): the images.
        nearest: int64 of shape (n,): the other image that is closest to each.
        distances: float64 of shape (n,): the distance to it, or 1 - similarity.
        similarities: float64 of shape (n,), or None where the images were vectors.
    """

    indices: _Ints
    nearest: _Ints
    distances: _Floats
    similarities: _Floats | None = None


@dataclass(frozen=True)
class Leaks:
    """For each of M test images the most similar training image, and whether it is a twin.

    Args:
        nearest: int64 of shape (M,): the training image.
        distance: float32 of shape (M,): the distance to it, or 1 - similarity where there are no vectors.
        similarity: float32 of shape (M,), or None if none was asked for.
        mirrored: bool of shape (M,): it is the mirrored test image that is this close.
        twin: bool of shape (M,): close enough to count as the same picture.
        by_distance: Whether distances, not similarities, tell how alike two images are where both are known.

    Example:
        >>> leaks = find_leaks([[0.0], [5.0]], [[5.1], [9.0], [0.0]], radius=0.5)
        >>> leaks.nearest.tolist(), leaks.twin.tolist()
        ([1, 1, 0], [True, False, True])
        >>> leaks.twins.tolist(), leaks.isolated(1).tolist()
        ([2, 0], [1])
    """

    nearest: _Ints
    distance: _Singles
    similarity: _Singles | None
    mirrored: npt.NDArray[np.bool_]
    twin: npt.NDArray[np.bool_]
    by_distance: bool = False

    def __len__(self) -> int:
        """Number of test images."""
        return len(self.nearest)

    @property
    def twins(self) -> _Ints:
        """Indices of the test images that have a twin, the most alike first, ties by index."""
        order = self._by_likeness()
        return order[self.twin[order]]

    def pairs(self, test: npt.ArrayLike) -> _Ints:
        """The given test images with their training images, int64 of shape (n, 2)."""
        chosen = np.asarray(test, np.int64)
        return np.stack([chosen, self.nearest[chosen]], axis=1)

    def isolated(self, n: int) -> _Ints:
        """Indices of the n test images whose distance to the training set is largest, the farthest first.

        Args:
            n: How many, at least 1; all of them where there are fewer.

        Raises:
            ValueError: If `n` is below 1.
            TypeError: If `n` is not an integer.
        """
        return np.argsort(-self.distance, kind="stable")[: _check_count("n", n)]

    def table(
        self,
        test_ids: Sequence[str] | None = None,
        train_ids: Sequence[str] | None = None,
        test_labels: Sequence[Any] | None = None,
        train_labels: Sequence[Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A row for each test image, the most alike first, to write as a CSV file.

        Args:
            test_ids: A name for each test image; column `test_id`.
            train_ids: A name for each training image; column `train_id`.
            test_labels: The label of each test image; column `test_label`.
            train_labels: The label of each training image; column `train_label`.

        Returns:
            Rows with the keys `test`, `train` (indices), `distance`, `similarity` (if known), `mirrored`, `twin`, and
            those of what was given.

        Raises:
            ValueError: If names or labels are fewer or more than the images. The number of training images is not
                known here: theirs must reach the largest index.

        Example:
            >>> find_leaks([[0.0], [5.0]], [[5.25]], radius=0.5).table(train_ids=["a.png", "b.png"])
            [{'test': 0, 'train': 1, 'distance': 0.25, 'mirrored': False, 'twin': True, 'train_id': 'b.png'}]
        """
        for name, values in (("test_ids", test_ids), ("test_labels", test_labels)):
            if values is not None and len(values) != len(self):
                raise invalid(name, f"of length {len(self)}, the number of test images", len(values))
        for name, values in (("train_ids", train_ids), ("train_labels", train_labels)):
            if values is not None and len(self) and len(values) <= self.nearest.max():
                raise invalid(name, f"longer than the index {self.nearest.max()} of a training image", len(values))
        rows = []
        for test in self._by_likeness().tolist():
            train = int(self.nearest[test])
            row: dict[str, Any] = {"test": test, "train": train, "distance": float(self.distance[test])}
            if self.similarity is not None:
                row["similarity"] = float(self.similarity[test])
            row |= {"mirrored": bool(self.mirrored[test]), "twin": bool(self.twin[test])}
            for name, values, index in (
                ("test_id", test_ids, test),
                ("train_id", train_ids, train),
                ("test_label", test_labels, test),
                ("train_label", train_labels, train),
            ):
                if values is not None:
                    row[name] = values[index]
            rows.append(row)
        return rows

    def _by_likeness(self) -> _Ints:
        """Test images, the highest similarity first where it is known and decides, else the smallest distance."""
        key = self.distance if self.similarity is None or self.by_distance else -self.similarity
        return np.argsort(key, kind="stable")


def find_leaks(
    train_vectors: npt.ArrayLike,
    test_vectors: npt.ArrayLike,
    *,
    radius: float | None = None,
    metric: str = "euclidean",
    mirrored_test_vectors: npt.ArrayLike | None = None,
    similarity: Callable[[_Ints, _Ints, npt.NDArray[np.bool_]], npt.ArrayLike] | None = None,
    min_similarity: float | None = None,
    k: int = 10,
    index: str = "exact",
    progress: bool = False,
) -> Leaks:
    """Find the training image that is most like each test image, and the test images that have a twin there.

    Without `similarity` the training image is the nearest one. With it, the `k` nearest (and as many of the mirrored
    image) are candidates, and the most similar candidate is taken.

    Args:
        train_vectors: Vectors of shape (N, D).
        test_vectors: Vectors of shape (M, D).
        radius: A twin's distance is at most this. None is 0 (the same vector) or, with `min_similarity`, no limit.
        metric: "euclidean", or "cosine" for 1 - cos.
        mirrored_test_vectors: Vectors of the test images flipped left to right, shape (M, D): the nearer of the two is
            taken, the image as it is where they tie.
        similarity: A function of three arrays of shape (P,), the indices of test images, those of training images and
            whether the test image is to be mirrored, that gives the P similarities.
        min_similarity: A twin's similarity is at least this; needs `similarity`.
        k: Candidates for `similarity`, at most N are used.
        index: How `toolkit.neighbors.nearest_neighbors` searches.
        progress: Show progress bars.

    Returns:
        The training image of each test image, the distance and so on.

    Raises:
        ValueError: If vectors are not finite matrices of one width, `radius` is negative, `k` is below 1,
            `min_similarity` comes without `similarity`, or `similarity` gives no P finite numbers.
        TypeError: If vectors are not numbers or `k` is not an integer.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, section 5.2.2,
        compares test with training images by SSIM; candidates by distance and mirrored images are this project's.

    Example:
        >>> leaks = find_leaks([[0.0, 0.0], [3.0, 4.0]], [[3.0, 5.0], [0.0, 0.0]], radius=1.0)
        >>> leaks.nearest.tolist(), leaks.distance.tolist(), leaks.twin.tolist()
        ([1, 0], [1.0, 0.0], [True, True])
    """
    check_choice("metric", metric, _METRICS)
    train = check_vectors(train_vectors, "train_vectors", nonzero=metric == "cosine")
    test = _check_width("test_vectors", test_vectors, train.shape[1], nonzero=metric == "cosine")
    _check_count("k", k)
    if radius is not None and not radius >= 0:
        raise invalid("radius", "0 or more", radius)
    if min_similarity is not None and similarity is None:
        raise invalid("min_similarity", "left out where there is no `similarity`", min_similarity)
    k = min(k, len(train)) if similarity is not None else 1
    views = [test]
    if mirrored_test_vectors is not None:
        mirror = _check_width("mirrored_test_vectors", mirrored_test_vectors, train.shape[1], metric == "cosine")
        if len(mirror) != len(test):
            raise invalid("mirrored_test_vectors", f"{len(test)} vectors, one for each test image", len(mirror))
        views.append(mirror)
    found = [nearest_neighbors(view, k, train, metric=metric, index=index, progress=progress) for view in views]
    nearest = np.concatenate([part.indices for part in found], axis=1)
    distance = np.concatenate([part.distances for part in found], axis=1)
    mirrored = np.arange(k * len(views)) >= k
    rows = np.arange(len(test))
    if similarity is None:
        best, likeness = distance.argmin(axis=1), None
    else:
        asked = np.repeat(rows, nearest.shape[1]), nearest.ravel(), np.tile(mirrored, len(test))
        values = np.asarray(similarity(*asked), np.float64)
        if values.shape != asked[0].shape or not np.isfinite(values).all():
            was = f"an array of shape {values.shape}" if values.shape != asked[0].shape else "NaN or infinite values"
            raise invalid("similarity", f"a function that gives {len(asked[0])} finite numbers for as many pairs", was)
        values = values.reshape(nearest.shape)
        best = values.argmax(axis=1)
        likeness = values[rows, best]
    chosen = distance[rows, best]
    limit = radius if radius is not None else (0.0 if min_similarity is None else np.inf)
    twin = chosen <= limit
    if min_similarity is not None and likeness is not None:
        twin &= likeness >= min_similarity
    return Leaks(
        nearest[rows, best].astype(np.int64),
        chosen.astype(np.float32),
        None if likeness is None else likeness.astype(np.float32),
        mirrored[best],
        twin,
    )


def find_leaks_by_similarity(
    similarity: npt.ArrayLike, *, min_similarity: float = 0.9, mirrored_similarity: npt.ArrayLike | None = None
) -> Leaks:
    """Find the training image most similar to each test image from a matrix of similarities.

    Args:
        similarity: Shape (M, N), of each test image (row) with each training image; read in blocks of rows.
        min_similarity: A twin is at least this similar.
        mirrored_similarity: The same for the mirrored test images; the more similar of the two is taken, the image as
            it is where they tie.

    Returns:
        The training image of each test image; ties go to the lowest index, distances are 1 - similarity.

    Raises:
        ValueError: If a matrix is empty, not finite or of another shape.
        TypeError: If the similarities are not numbers.

    References:
        Yousefzadeh, arXiv 2002.10257, section 5.2.2: of CIFAR-100's aquarium fish, 11 of 100 test images have a nearly
        identical training image; their SSIM is above 0.9.

    Example:
        >>> leaks = find_leaks_by_similarity([[0.1, 0.95, 0.2], [0.3, 0.2, 0.1]])
        >>> leaks.nearest.tolist(), leaks.twin.tolist(), leaks.isolated(1).tolist()
        ([1, 0], [True, False], [1])
    """
    matrix = _check_matrix("similarity", similarity)
    nearest, best = _most_similar(matrix, "similarity")
    mirrored = np.zeros(len(matrix), np.bool_)
    if mirrored_similarity is not None:
        other = _check_matrix("mirrored_similarity", mirrored_similarity)
        if other.shape != matrix.shape:
            raise invalid("mirrored_similarity", f"of the shape {matrix.shape} of `similarity`", other.shape)
        nearest_mirrored, best_mirrored = _most_similar(other, "mirrored_similarity")
        mirrored = best_mirrored > best
        nearest, best = np.where(mirrored, nearest_mirrored, nearest), np.maximum(best, best_mirrored)
    return Leaks(nearest, (1 - best).astype(np.float32), best.astype(np.float32), mirrored, best >= min_similarity)


def influential_pairs(
    vectors: npt.ArrayLike | None = None,
    groups: npt.ArrayLike = (),
    labels: Sequence[Any] | npt.NDArray[Any] = (),
    n: int = 100,
    *,
    metric: str = "euclidean",
    similarity: npt.ArrayLike | None = None,
) -> Pairs:
    """Find the closest pairs of images of one group that have different labels.

    Images that look alike and are called differently lie where classes meet, or one of them has a wrong label: the
    closest pairs are the first to look at.

    Args:
        vectors: Vectors of shape (N, D); None with `similarity`.
        groups: int of shape (N,): the group of each image, -1 for none.
        labels: The label of each image, shape (N,): numbers or texts.
        n: Pairs to return at most.
        metric: "euclidean", or "cosine" for 1 - cos.
        similarity: A symmetric matrix of shape (N, N) instead of vectors.

    Returns:
        At most n pairs within groups and across labels.

    Raises:
        ValueError: If there are both or neither of vectors and similarity, if they are not finite, or if groups or
            labels are not N.
        TypeError: If `groups` does not hold integers or `n` is none.

    References:
        Yousefzadeh, arXiv 2002.10257, keeps a cluster of several classes whole and calls its images influential.

    Example:
        >>> x = [[0.0], [0.5], [0.6], [9.0]]
        >>> found = influential_pairs(x, groups=[0, 0, 0, 1], labels=["cat", "cat", "dog", "dog"])
        >>> found.pairs.tolist(), found.distances.round(3).tolist()
        ([[1, 2], [0, 2]], [0.1, 0.6])
    """
    check_choice("metric", metric, _METRICS)
    matrix = _vectors_or_similarity(vectors, similarity, metric)
    n = _check_count("n", n)
    group = np.asarray(groups)
    if group.shape != (len(matrix),):
        raise invalid("groups", f"of shape ({len(matrix)},), one for each image", group.shape)
    if group.dtype.kind not in "iu":
        raise TypeError(f"`groups` must hold integers, got dtype {group.dtype}.")
    if len(labels) != len(matrix):
        raise invalid("labels", f"of length {len(matrix)}, one for each image", len(labels))
    # Labels may be of any kind that can be told apart.
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(label, len(numbers)) for label in np.asarray(labels).tolist()], np.int64)
    pairs, values = _lowest(_across_labels(matrix, group, codes, n, metric, similarity is not None), n)
    return Pairs(pairs, values) if similarity is None else Pairs(pairs, 1 + values, -values)


def most_isolated(
    vectors: npt.ArrayLike | None = None,
    n: int = 20,
    *,
    metric: str = "euclidean",
    similarity: npt.ArrayLike | None = None,
    index: str = "exact",
    progress: bool = False,
) -> Isolated:
    """Find the images whose nearest other image is farthest away.

    Args:
        vectors: Vectors of shape (N, D), N at least 2; None with `similarity`.
        n: Images to return at most.
        metric: "euclidean", or "cosine" for 1 - cos.
        similarity: A symmetric matrix of shape (N, N) instead of vectors: those whose largest similarity to another
            image is smallest.
        index: How `toolkit.neighbors.nearest_neighbors` searches.
        progress: Show progress bars.

    Returns:
        The images, the farthest first, with the nearest image of each.

    Raises:
        ValueError: If there are both or neither of vectors and similarity, if they are not finite, if the similarity
            is not symmetric, or if there is only one image.
        TypeError: If `n` is not an integer.

    References:
        Yousefzadeh, arXiv 2002.10257, section 5.4, shows the most isolated image of a class by its similarities.

    Example:
        >>> found = most_isolated([[0.0], [1.0], [1.5], [9.0]], n=2)
        >>> found.indices.tolist(), found.nearest.tolist(), found.distances.tolist()
        ([3, 0], [2, 1], [7.5, 1.0])
    """
    check_choice("metric", metric, _METRICS)
    matrix = _vectors_or_similarity(vectors, similarity, metric)
    n = _check_count("n", n)
    if len(matrix) < 2:
        raise invalid("vectors" if similarity is None else "similarity", "of two images or more", len(matrix))
    if similarity is None:
        found = nearest_neighbors(matrix, 1, metric=metric, index=index, progress=progress)
        nearest, distance = found.indices[:, 0].astype(np.int64), found.distances[:, 0].astype(np.float64)
        chosen = np.argsort(-distance, kind="stable")[:n]
        return Isolated(chosen, nearest[chosen], distance[chosen])
    nearest, best = _most_similar(matrix, "similarity", skip_diagonal=True)
    chosen = np.argsort(best, kind="stable")[:n]
    return Isolated(chosen, nearest[chosen], 1 - best[chosen], best[chosen])


def near_duplicates(
    vectors: npt.ArrayLike | None = None,
    n: int | None = None,
    *,
    radius: float | None = None,
    metric: str = "euclidean",
    similarity: npt.ArrayLike | None = None,
    min_similarity: float | None = None,
    progress: bool = False,
) -> Pairs:
    """Find the closest pairs of images: the n closest, all up to a distance, or the n closest of these.

    Args:
        vectors: Vectors of shape (N, D); None with `similarity`.
        n: Pairs to return at most; None for all within `radius` or `min_similarity`.
        radius: Largest distance of a pair; only with vectors.
        metric: "euclidean", or "cosine" for 1 - cos.
        similarity: A symmetric matrix of shape (N, N) instead of vectors.
        min_similarity: Smallest similarity of a pair; only with `similarity`.
        progress: Show progress bars.

    Returns:
        The pairs, the closest first, ties by index.

    Raises:
        ValueError: If there are both or neither of vectors and similarity, if they are not finite, if the similarity
            is not symmetric, if neither a number nor a limit is given or a limit of the other kind, or if more pairs
            lie within the radius than `toolkit.neighbors.near_pairs` returns.
        TypeError: If `n` is not an integer.

    Example:
        >>> found = near_duplicates([[0.0], [1.0], [1.5], [9.0]], n=2)
        >>> found.pairs.tolist(), found.distances.tolist()
        ([[1, 2], [0, 1]], [0.5, 1.0])
        >>> near_duplicates(similarity=[[1.0, 0.8], [0.8, 1.0]], min_similarity=0.5).pairs.tolist()
        [[0, 1]]
    """
    check_choice("metric", metric, _METRICS)
    matrix = _vectors_or_similarity(vectors, similarity, metric)
    limit_name, limit, other_name, other = "radius", radius, "min_similarity", min_similarity
    if similarity is not None:
        limit_name, limit, other_name, other = other_name, other, limit_name, limit
    if other is not None:
        given = "vectors" if similarity is None else "`similarity`"
        raise invalid(other_name, f"left out with {given}, where `{limit_name}` is the limit", other)
    if n is None and limit is None:
        raise invalid("n", f"given where there is no `{limit_name}`", n)
    if n is not None:
        _check_count("n", n)
    if limit is not None and (np.isnan(limit) or (similarity is None and limit < 0)):
        raise invalid(limit_name, "0 or more" if similarity is None else "a number", limit)
    if similarity is not None:
        pairs, values = _lowest(_upper_triangle(matrix, n, -np.inf if limit is None else limit), n)
        return Pairs(pairs, 1 + values, -values)
    if n is not None:
        same = _identical_pairs(matrix, n, metric)
        if len(same) == n:
            # So many copies of an image may be there that all pairs of them could not be held.
            return Pairs(same, np.zeros(n))
        bound = _radius_of_closest(matrix, n, metric, progress)
        limit = bound if limit is None else min(limit, bound)
    found = near_pairs(matrix, np.inf if limit is None else limit, metric=metric, progress=progress)
    order = np.argsort(found.distances, kind="stable")[:n]
    return Pairs(found.pairs[order].astype(np.int64), found.distances[order].astype(np.float64))


def least_similar_pairs(similarity: npt.ArrayLike, n: int = 10) -> Pairs:
    """Find the pairs of images that are least similar, the least first, ties by index.

    Args:
        similarity: A symmetric matrix of shape (N, N).
        n: Pairs to return at most.

    Returns:
        The pairs with their similarities; distances are 1 - similarity.

    Raises:
        ValueError: If the matrix is not square, finite and symmetric.
        TypeError: If `n` is not an integer.

    Example:
        >>> found = least_similar_pairs([[1.0, 0.9, -0.5], [0.9, 1.0, 0.2], [-0.5, 0.2, 1.0]], n=1)
        >>> found.pairs.tolist(), found.similarities.tolist()
        ([[0, 2]], [-0.5])
    """
    n = _check_count("n", n)
    matrix = _vectors_or_similarity(None, similarity, "euclidean")
    pairs, values = _lowest(_upper_triangle(matrix, n, -np.inf, sign=-1), n)
    return Pairs(pairs, 1 - values, values)


def _check_count(name: str, value: Any) -> int:
    """`value` if it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < 1:
        raise invalid(name, "1 or more", int(value))
    return int(value)


def _check_width(name: str, vectors: npt.ArrayLike, width: int, nonzero: bool) -> npt.NDArray[Any]:
    """Vectors that are as wide as others."""
    matrix = check_vectors(vectors, name, nonzero=nonzero)
    if matrix.shape[1] != width:
        raise invalid(name, f"of shape (M, {width}), as wide as `train_vectors`", matrix.shape)
    return matrix


def _check_matrix(name: str, similarity: npt.ArrayLike) -> npt.NDArray[Any]:
    """A non-empty matrix of real numbers; whether they are finite is seen when they are read."""
    matrix: npt.NDArray[Any] = np.asanyarray(similarity)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise invalid(name, "a non-empty matrix", f"an array of shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got dtype {matrix.dtype}.")
    return matrix


def _vectors_or_similarity(
    vectors: npt.ArrayLike | None, similarity: npt.ArrayLike | None, metric: str
) -> npt.NDArray[Any]:
    """The one of the two that is given, checked: finite vectors, or a finite symmetric square matrix."""
    if (vectors is None) == (similarity is None):
        was = "neither" if vectors is None else "both"
        raise ValueError(f"`vectors` or `similarity` must be given, got {was}.")
    if similarity is None:
        return check_vectors(vectors, "vectors", nonzero=metric == "cosine")
    matrix = _check_matrix("similarity", similarity)
    if matrix.shape[0] != matrix.shape[1]:
        raise invalid("similarity", "a square matrix", f"an array of shape {matrix.shape}")
    for rows in _row_blocks(matrix.shape):
        block = _read(matrix, rows, "similarity")
        # Only the triangle up to the block: the mirrored entries of the rest are met later.
        difference = np.abs(block[:, : rows.stop] - np.asarray(matrix[: rows.stop, rows], np.float64).T)
        if difference.max() > _ASYMMETRY:
            i, j = np.unravel_index(int(difference.argmax()), difference.shape)
            at = f"{block[i, j]:.7g} at [{rows.start + i}, {j}]"
            raise invalid("similarity", "symmetric", f"{at} and {float(matrix[j, rows.start + i]):.7g} across")
    return matrix


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Ranges of rows, each of a bounded number of elements."""
    rows = max(1, _CHUNK_ELEMENTS // shape[1])
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _read(matrix: npt.NDArray[Any], rows: slice, name: str) -> _Floats:
    """A copy of some rows in float64; refused where they are not finite."""
    block = np.array(matrix[rows], np.float64)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        first = rows.start + int(np.flatnonzero(~finite)[0])
        raise invalid(name, "finite", f"NaN or infinite values in row {first}")
    return block


def _most_similar(matrix: npt.NDArray[Any], name: str, *, skip_diagonal: bool = False) -> tuple[_Ints, _Floats]:
    """For each row the column with the largest value (the lowest where they tie) and the value."""
    nearest, best = np.empty(len(matrix), np.int64), np.empty(len(matrix))
    for rows in _row_blocks(matrix.shape):
        block = _read(matrix, rows, name)
        if skip_diagonal:
            block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = -np.inf
        nearest[rows] = block.argmax(axis=1)
        best[rows] = block.max(axis=1)
    return nearest, best


def _upper_triangle(matrix: npt.NDArray[Any], n: int | None, least: float, sign: int = 1) -> Iterator[_Block]:
    """Pairs of a similarity matrix with -sign * similarity as value: a superset of the n lowest, block by block.

    Pairs below `least` and those that n others of their block beat are left out.
    """
    for rows in _row_blocks(matrix.shape):
        # From the first row of the block on, everything to the left lies below the diagonal.
        block = sign * np.array(matrix[rows, rows.start :], np.float64)
        block[np.tri(*block.shape, dtype=np.bool_)] = -np.inf
        bound = least
        if n is not None and n < block.size:
            bound = max(bound, float(np.partition(block, block.size - n, axis=None)[block.size - n]))
        i, j = np.nonzero((block >= bound) & (block > -np.inf))
        yield i + rows.start, j + rows.start, -block[i, j]


def _lowest(blocks: Iterable[_Block], n: int | None) -> tuple[_Ints, _Floats]:
    """The n pairs with the lowest values of all blocks, sorted by value, ties by index: (pairs, values)."""
    held: _Block = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    for block in blocks:
        i, j, value = (np.concatenate([old, new]) for old, new in zip(held, block, strict=True))
        order = np.lexsort((j, i, value))[:n]
        held = i[order], j[order], value[order]
    return np.stack(held[:2], axis=1).astype(np.int64), held[2]


def _across_labels(
    matrix: npt.NDArray[Any], group: npt.NDArray[Any], codes: _Ints, n: int, metric: str, is_similarity: bool
) -> Iterator[_Block]:
    """Pairs within a group and across labels with distance or -similarity, among them the n lowest of each block."""
    order = np.argsort(group, kind="stable")
    numbers, starts = np.unique(group[order], return_index=True)
    for number, members in zip(numbers, np.split(order, starts[1:]), strict=True):
        if number < 0 or len(members) < 2 or (codes[members] == codes[members[0]]).all():
            continue
        vectors = matrix if is_similarity else np.asarray(matrix[members], np.float64)
        if metric == "cosine" and not is_similarity:
            vectors = _unit(vectors)
        rows_at_once = max(1, _CHUNK_ELEMENTS // len(members))
        for start in range(0, len(members), rows_at_once):
            rows = np.arange(start, min(start + rows_at_once, len(members)))
            wanted = (codes[members[rows]][:, None] != codes[members][None, :]) & (
                rows[:, None] < np.arange(len(members))
            )
            i, j = np.nonzero(wanted)
            if not len(i):
                continue
            i += start
            if is_similarity:
                value = -np.asarray(matrix[np.ix_(members[rows], members)], np.float64)[i - start, j]
            else:
                i, j, value = _closest_by_difference(vectors, rows, i, j, n)
                value = 0.5 * value**2 if metric == "cosine" else value
            yield members[i], members[j], value


def _closest_by_difference(vectors: _Floats, rows: _Ints, i: _Ints, j: _Ints, n: int) -> _Block:
    """Of the pairs (i, j), i in `rows`, a superset of the n closest with their distances, from the differences.

    A matrix product proposes: its rounding would make equal distances differ, so it only rules pairs out.
    """
    if len(i) > n:
        # Relative to one of the vectors, so that the rounding is small where the group is.
        moved = vectors - vectors[0]
        squares = np.einsum("ij,ij->i", moved, moved)
        products = moved[rows] @ moved.T
        rough = squares[i] + squares[j] - 2 * products[i - rows[0], j]
        margin = 8 * (vectors.shape[1] + 8) * np.finfo(np.float64).eps * squares.max()
        near = rough <= np.partition(rough, n - 1)[n - 1] + margin
        i, j = i[near], j[near]
    distance = np.empty(len(i))
    step = max(1, _CHUNK_ELEMENTS // vectors.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = vectors[i[part]] - vectors[j[part]]
        distance[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return i, j, distance


def _unit(matrix: npt.NDArray[Any]) -> _Floats:
    """The rows in float64 and of unit length."""
    vectors: _Floats = np.array(matrix, np.float64)
    # Scaled first, as squares of very small or large numbers leave the range of float64.
    vectors = np.ldexp(vectors, -np.frexp(np.abs(vectors).max(axis=1, keepdims=True))[1])
    lengths: _Floats = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return vectors / lengths[:, None]


def _identical_pairs(matrix: npt.NDArray[Any], n: int, metric: str) -> _Ints:
    """The first n pairs of equal rows (equal directions under the cosine) by their indices; all if there are fewer."""
    members: dict[bytes, list[int]] = {}
    of_row: list[list[int]] = []
    for rows in _row_blocks(matrix.shape):
        block = _unit(matrix[rows]) if metric == "cosine" else np.asarray(matrix[rows])
        # Zero is added so that -0.0 and 0.0 are the same bytes.
        for row in np.ascontiguousarray(block + 0):
            same = members.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), [])
            same.append(len(of_row))
            of_row.append(same)
    pairs: list[tuple[int, int]] = []
    for i, same in enumerate(of_row):
        if len(same) > 1 and same[-1] > i:
            later = same[bisect.bisect_right(same, i) :]
            pairs += [(i, j) for j in later[: n - len(pairs)]]
            if len(pairs) == n:
                break
    return np.array(pairs, np.int64).reshape(-1, 2)


def _radius_of_closest(matrix: npt.NDArray[Any], n: int, metric: str, progress: bool) -> float:
    """A radius that holds at least n pairs, or all of them: the n-th smallest distance of pairs with sampled rows."""
    n_rows = len(matrix)
    if n_rows < 2:
        return 0.0
    # Each of the m sampled rows gives k pairs, and a pair comes twice at most.
    m = min(n_rows, max(_SAMPLE, -(-2 * n // min(n_rows - 1, 32))))
    k = min(n_rows - 1, -(-2 * n // m))
    sample = np.unique(np.linspace(0, n_rows - 1, m).round().astype(np.int64))
    found = nearest_neighbors(matrix[sample], k + 1, matrix, metric=metric, progress=progress)
    asked = np.repeat(sample, k + 1)
    other, distance = found.indices.ravel(), found.distances.ravel()
    apart = asked != other
    pairs = np.stack([np.minimum(asked, other), np.maximum(asked, other)], axis=1)[apart]
    _, first = np.unique(pairs, axis=0, return_index=True)
    distinct = np.sort(distance[apart][first])
    # Wider by the rounding of the search.
    return float(distinct[min(n, len(distinct)) - 1]) * (1 + 1e-6)
