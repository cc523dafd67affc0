"""Fewer dimensions: principal components and UMAP of vectors that may be many, or long."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.fingerprint import settings_hash
from toolkit.representations.base import Representation, Vectors
from toolkit.reproducibility import preserved_rng
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = ["METHODS", "PrincipalComponents", "Reduced", "pca", "reduce_vectors", "umap"]

#: Ways to reduce dimensions.
METHODS = ("pca", "umap")

#: Numbers of the vectors that are held in float64 at a time (128 MiB).
_BLOCK_ELEMENTS = 1 << 24
#: Largest side of the square matrix whose eigenvectors are computed (2 GiB, and as much again for the eigenvectors).
_MAX_SIDE = 16_384
#: Coordinates this close to the largest are as good to tell the sign by, so that rounding does not decide it.
_SIGN_SHARE = 1.0 - 1e-6

_Any = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PrincipalComponents:
    """Vectors along their principal axes, and how much of their spread each axis holds.

    Args:
        vectors: Shape (N, d): the centred vectors' coordinates along the first d axes, not whitened; float32 where the
            values given have at most the precision of float32, float64 otherwise.
        explained_variance: float64 of shape (d,), not increasing: the variance of each coordinate, with N - 1 in the
            denominator (0 for a single vector).
        explained_variance_ratio: float64 of shape (d,): these as shares of the variance of all D features (0 where
            that is 0).
    """

    vectors: Vectors
    explained_variance: _Floats
    explained_variance_ratio: _Floats


def pca(vectors: npt.ArrayLike, n_dim: int | None = None, *, progress: bool = False) -> PrincipalComponents:
    """Principal components of vectors, exact and in bounded memory for many vectors as for long ones.

    With X the centred vectors and X = U S V' its singular value decomposition, the coordinates are the first columns of
    U S = X V. They come from the eigenvectors of the smaller one of the Gram matrix X X' (N x N) and of X' X (D x D),
    which is summed up in float64 over blocks of features or of vectors. With as many dimensions as the smaller side,
    the reduction is a rotation: all distances stay as they are. The sign of an axis is such that its coordinate of
    largest absolute value (the first of such) is positive.

    Memory beside the vectors, which are only read, is the result, two matrices with the smaller side squared, and
    128 MiB. Components with less than 1e-8 of the first one's standard deviation are lost in rounding.

    Args:
        vectors: Shape (N, D): an array, a tensor or a memory map, the smaller side at most 16,384.
        n_dim: Dimensions wanted, at least 1; the result has `min(n_dim, N, D)`. None for `min(N, D)`.
        progress: Whether to show a progress bar.

    Returns:
        The coordinates of shape (N, min(n_dim, N, D)), and the variance along each axis.

    Raises:
        ValueError: If the vectors are not a finite, non-empty matrix or both of its sides are above 16,384, or if
            `n_dim` is below 1.
        TypeError: If the vectors are not real numbers or `n_dim` is not an integer.

    References:
        Raud, "Dataset filtering for image classification and object detection models", TalTech 2023, reduces to
        min(N_reduce, N_maps, N_features) dimensions. Its code returns U, where every direction weighs the same; here
        distances keep their meaning.

    Example:
        >>> found = pca([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], n_dim=1)
        >>> found.vectors.round(6).tolist(), found.explained_variance.round(6).tolist()
        ([[5.0], [0.0], [-5.0]], [25.0])
    """
    matrix = _checked(vectors)
    n_rows, n_features = matrix.shape
    side = min(n_rows, n_features)
    wanted = side if n_dim is None else min(_check_count("n_dim", n_dim), side)
    if side > _MAX_SIDE:
        raise invalid("vectors", f"at most {_MAX_SIDE} many or at most {_MAX_SIDE} long for PCA", matrix.shape)
    exponent = _exponent(matrix)
    long = n_features > n_rows
    shown = tqdm(desc="PCA", unit="block", disable=not progress or world()[0] != 0)
    with shown as bar:
        mean = np.zeros(0) if long else _mean(matrix, exponent)
        blocks = _column_blocks(matrix, exponent, bar) if long else _row_blocks(matrix, mean, exponent, bar)
        total = np.zeros((side, side), order="F")
        for block in blocks:
            _add_products(total, block, of_rows=long)
        spread = float(np.trace(total))
        values, axes = _eigenvectors(total, wanted)
        dtype = np.float32 if matrix.dtype.itemsize <= 2 or matrix.dtype == np.float32 else np.float64
        out = np.empty((n_rows, wanted), dtype)
        if long:
            coordinates = axes * np.sqrt(values)
            out[:] = _scaled(coordinates * _signs([coordinates]), exponent)
        else:
            start = 0
            for block in _row_blocks(matrix, mean, exponent, bar):
                out[start : start + len(block)] = _scaled(block @ axes, exponent)
                start += len(block)
            rows = max(1, _BLOCK_ELEMENTS // wanted)
            out *= _signs([out[start : start + rows] for start in range(0, n_rows, rows)]).astype(dtype)
    out += 0.0  # -0 becomes 0
    with np.errstate(over="ignore", under="ignore"):  # infinite where the square of a spread is
        variance = np.ldexp(values, 2 * exponent) / max(n_rows - 1, 1)
    return PrincipalComponents(cast("Vectors", out), variance, values / spread if spread else np.zeros(wanted))


def umap(
    vectors: npt.ArrayLike,
    n_dim: int = 2,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> Vectors:
    """Coordinates in few dimensions that keep who is whose neighbour, by UMAP: to look at, not to measure distances in.

    Needs umap-learn, an extra. With a seed it runs on one thread, and the same vectors give the same coordinates.
    Vectors longer than they are many are first rotated into N dimensions, which keeps all distances.

    Args:
        vectors: Shape (N, D), N at least 3.
        n_dim: Dimensions wanted, at least 1; the result has `min(n_dim, N - 1, D)`.
        n_neighbors: Neighbours whose distances are looked at, at least 2; N - 1 where there are not more.
        min_dist: How close points may lie, at least 0; smaller shows finer groups.
        seed: Of the random start and sampling.
        progress: Whether to show progress.

    Returns:
        float32 of shape (N, min(n_dim, N - 1, D)).

    Raises:
        ModuleNotFoundError: If umap-learn is not installed.
        ValueError: If the vectors are not a finite matrix with at least 3 rows, or if `n_dim`, `n_neighbors` or
            `min_dist` are out of range.
        TypeError: If the vectors are not real numbers or `n_dim` or `n_neighbors` not integers.

    References:
        McInnes, Healy, Melville, "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction", arXiv
        1802.03426.
    """
    matrix = _checked(vectors)
    n_dim, n_neighbors = _check_count("n_dim", n_dim), _check_count("n_neighbors", n_neighbors, 2)
    if not 0 <= min_dist < math.inf:
        raise invalid("min_dist", "at least 0", min_dist)
    if len(matrix) < 3:
        raise invalid("vectors", "at least 3 rows for UMAP", f"{len(matrix)}")
    wanted = min(n_dim, len(matrix) - 1, matrix.shape[1])
    library = _umap_learn()
    if matrix.shape[1] > len(matrix):
        matrix = pca(matrix, progress=progress).vectors
    # The usual start needs eigenvectors of the neighbours' graph, one more than dimensions and fewer than rows.
    start = "spectral" if wanted + 2 < len(matrix) else "random"
    with preserved_rng(), warnings.catch_warnings(), np.errstate(all="ignore"):
        for message in ("n_jobs value", "Spectral initialisation failed", "Graph is not fully connected", ".*spectral"):
            warnings.filterwarnings("ignore", message, UserWarning)
        warnings.filterwarnings("ignore", ".*force_all_finite.*", FutureWarning)
        model = library.UMAP(
            n_components=wanted,
            n_neighbors=min(n_neighbors, len(matrix) - 1),
            min_dist=min_dist,
            spread=max(1.0, min_dist),
            init=start,
            random_state=seed,
            verbose=progress and world()[0] == 0,
        )
        coordinates: Vectors = np.asarray(model.fit_transform(matrix.astype(np.float32)), np.float32)
    return coordinates


def reduce_vectors(
    vectors: npt.ArrayLike, method: str = "pca", n_dim: int | None = None, seed: int = 0, *, progress: bool = False
) -> Vectors:
    """Vectors in fewer dimensions, by one of `METHODS`.

    Args:
        vectors: Shape (N, D).
        method: `pca` (see `pca`; the coordinates alone) or `umap` (see `umap`).
        n_dim: Dimensions wanted, at least 1. With None, PCA keeps `min(N, D)`; UMAP needs a number.
        seed: For UMAP; PCA has nothing random.
        progress: Whether to show a progress bar.

    Returns:
        Shape (N, min(n_dim, N, D)), or (N, min(n_dim, N - 1, D)) for UMAP.

    Raises:
        ValueError: As `pca` and `umap`, for an unknown method, and if UMAP is not told `n_dim`.
        TypeError: As `pca` and `umap`.
        ModuleNotFoundError: As `umap`.

    Example:
        >>> reduce_vectors([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], "pca", 1).round(6).tolist()
        [[5.0], [0.0], [-5.0]]
    """
    check_choice("method", method, METHODS)
    if method == "pca":
        return pca(vectors, n_dim, progress=progress).vectors
    if n_dim is None:
        raise invalid("n_dim", "an integer of at least 1 for UMAP", n_dim)
    return umap(vectors, n_dim, seed=seed, progress=progress)


class Reduced:
    """A representation in fewer dimensions: the vectors of another one, reduced over the whole data set.

    Args:
        representation: What turns the images into vectors (N, D).
        method: `pca` or `umap`, see `reduce_vectors`.
        n_dim: Dimensions wanted. With None, PCA keeps `min(N, D)`; UMAP needs a number.
        seed: For UMAP.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `vectors`, as `reduce_vectors`.

    Example:
        >>> from toolkit.representations import Embeddings
        >>> reduced = Reduced(Embeddings([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]), n_dim=1, progress=False)
        >>> reduced.vectors(["a", "b", "c"]).shape
        (3, 1)
    """

    def __init__(
        self,
        representation: Representation,
        method: str = "pca",
        n_dim: int | None = None,
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.representation = representation
        self.method = method
        self.n_dim = n_dim
        self.seed = seed
        self.progress = progress

    def vectors(self, dataset: Any) -> Vectors:
        """The reduced vectors of a data set's images."""
        check_choice("method", self.method, METHODS)
        found = self.representation.vectors(dataset)
        return reduce_vectors(found, self.method, self.n_dim, self.seed, progress=self.progress)

    def fingerprint(self) -> str:
        """A text that differs with the representation's and with any setting that changes the vectors."""
        settings = {"kind": "Reduced", "of": self.representation.fingerprint(), "method": self.method}
        seed = self.seed if self.method == "umap" else None
        return settings_hash({**settings, "n_dim": self.n_dim, "seed": seed})


def _check_count(name: str, value: int, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise invalid(name, f"at least {least}", int(value))
    return int(value)


def _checked(vectors: npt.ArrayLike) -> _Any:
    """The vectors as a finite matrix; integers stay as they are, so that no copy of them all is made."""
    given: _Any = np.asanyarray(vectors)
    if given.dtype.kind in "iub" and given.ndim == 2 and 0 not in given.shape:
        return given
    return check_vectors(given, "vectors")


def _exponent(matrix: _Any) -> int:
    """The power of two to divide by, so that squares of float64 stay in its range."""
    if matrix.dtype.kind in "iub" or matrix.dtype.itemsize <= 4:
        return 0
    rows = max(1, _BLOCK_ELEMENTS // matrix.shape[1])
    largest = max(float(np.abs(matrix[start : start + rows]).max()) for start in range(0, len(matrix), rows))
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > 300 else 0


def _scaled(values: _Any, exponent: int) -> _Any:
    """The values times a power of two."""
    return np.ldexp(values, exponent) if exponent else values


def _column_blocks(matrix: _Any, exponent: int, bar: Any) -> Iterator[_Floats]:
    """The centred features, some at a time, for all vectors."""
    width = max(1, _BLOCK_ELEMENTS // len(matrix))
    for start in range(0, matrix.shape[1], width):
        block = matrix[:, start : start + width].astype(np.float64, order="C")
        block = _scaled(block, -exponent)
        block -= block.mean(axis=0)
        yield block
        bar.update()


def _mean(matrix: _Any, exponent: int) -> _Floats:
    """The mean vector."""
    rows = max(1, _BLOCK_ELEMENTS // matrix.shape[1])
    mean = np.zeros(matrix.shape[1])
    for start in range(0, len(matrix), rows):
        mean += _scaled(matrix[start : start + rows], -exponent).sum(axis=0, dtype=np.float64) / len(matrix)
    return mean


def _row_blocks(matrix: _Any, mean: _Floats, exponent: int, bar: Any) -> Iterator[_Floats]:
    """The centred vectors, some at a time."""
    rows = max(1, _BLOCK_ELEMENTS // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        block = matrix[start : start + rows].astype(np.float64, order="C")
        block = _scaled(block, -exponent)
        block -= mean
        yield block
        bar.update()


def _add_products(total: _Floats, block: _Floats, *, of_rows: bool) -> None:
    """Add the products of a block's rows, or of its columns, to the lower half of a matrix in Fortran's order."""
    from scipy.linalg.blas import dsyrk

    dsyrk(1.0, block.T, beta=1.0, c=total, trans=1 if of_rows else 0, lower=1, overwrite_c=1)


def _eigenvectors(total: _Floats, wanted: int) -> tuple[_Floats, _Floats]:
    """The largest eigenvalues and their eigenvectors, the largest first; the matrix is used up."""
    from scipy.linalg import eigh

    side = len(total)
    values, axes = eigh(
        total, lower=True, subset_by_index=[side - wanted, side - 1], overwrite_a=True, check_finite=False
    )
    return np.maximum(values[::-1], 0.0), np.ascontiguousarray(axes[:, ::-1])


def _signs(parts: list[Any]) -> _Floats:
    """What to multiply coordinates by, so that the first of the largest along each axis is positive."""
    largest = np.max([np.abs(part).max(axis=0) for part in parts], axis=0)
    signs = np.zeros(len(largest))
    for part in parts:
        far = np.abs(part) >= _SIGN_SHARE * largest
        first = np.take_along_axis(part, far.argmax(axis=0)[None], axis=0)[0]
        undecided = (signs == 0) & far.any(axis=0)
        signs[undecided] = np.where(first[undecided] < 0, -1.0, 1.0)
    return signs


def _umap_learn() -> Any:
    """The module of umap-learn, imported only here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("umap")
    except ModuleNotFoundError as error:
        if error.name != "umap":
            raise
        raise ModuleNotFoundError(
            'UMAP needs an extra: pip install "dataset-pruning-toolkit[umap]".', name="umap"
        ) from error
