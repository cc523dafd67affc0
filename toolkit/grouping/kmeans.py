"""k-means by Lloyd's iterations, exact without being dense where there are nearly as many groups as vectors."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from toolkit.grouping.linkage import MergeTree, _kernel, _small_integers, _threads, merge_tree
from toolkit.grouping.ward import _chunks, _scaled
from toolkit.neighbors import TooManyPairsError, near_pairs
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = ["STARTS", "KMeans", "kmeans"]

#: Ways to begin, besides centres or groups that are given.
STARTS = ("ward", "k-means++", "random")

#: Rows and columns of the block of products that a thread holds at a time.
_BLOCK_ROWS = 256
_BLOCK_COLUMNS = 2048
#: Near pairs that are asked for at most; where more are expected, products of all pairs are taken.
_MAX_PAIRS = 4_000_000
#: Below this many products, all pairs are taken at once: bounds cost more to set up than they save.
_FEW_PRODUCTS = 1 << 31

_Matrix = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KMeans:
    """Groups found by k-means.

    Args:
        groups: int64 of shape (N,): the group of each vector, numbered by first occurrence.
        centres: Of shape (G, D): the mean of each group, float64, or float32 where the vectors have at most 4 bytes.
        objective: Sum of the squared Euclidean distances of the vectors to the means of their groups.
        n_iter: Number of times that the vectors were compared with the centres, not counting the start.
        n_moved: Number of times that a vector was moved to another group, in all iterations together.
        converged: Whether the last iteration moved nothing.
    """

    groups: _Ints
    centres: npt.NDArray[np.floating[Any]]
    objective: float
    n_iter: int
    n_moved: int
    converged: bool


def kmeans(
    x: npt.ArrayLike,
    n_groups: int,
    *,
    init: str | npt.ArrayLike = "ward",
    max_iter: int = 100,
    seed: int = 0,
    tree: MergeTree | None = None,
    progress: bool = False,
) -> KMeans:
    """Group vectors so that the sum of squared distances to the groups' means is small, by Lloyd's iterations.

    An iteration puts every vector into the group with the nearest mean, all at once, then computes the means anew. A
    vector stays where it is unless another mean is strictly nearer, and goes to the lowest group where several are
    equally near. Distances are decided in float64 from the differences. A group that loses all its members gets the
    vector that is farthest from its mean (the lowest where several are equally far), so there are always exactly
    `n_groups` groups.

    A vector that is a group of its own is at its mean and does not move. At most 2 (N - n_groups) vectors are in groups
    of two or more: these are compared with each other's means by blocked products, and with the vectors that are alone
    through `toolkit.neighbors.near_pairs`, at a radius that is no smaller than their distances to their means. In later
    iterations means that have not changed are left out where a vector has not become more distant from its own.

    The default start, the groups of Ward's tree, ends in far better groups than the others where there are nearly as
    many groups as vectors: 4,700 groups of 5,000 CIFAR-10 images have an objective of 7,213 and nothing moves, where
    k-means++ ends at 8,516 and random vectors at 18,035, as both merge vectors with whatever happens to be nearest.
    With few groups Ward's tree is the costly part; k-means++ is the usual choice there.

    Args:
        x: Vectors of shape (N, D), any real dtype; read in chunks.
        n_groups: Number of groups, 1 to N.
        init: One of `STARTS`, or centres of shape (n_groups, D), or an integer group of each vector, 0 to n_groups - 1,
            of shape (N,). "ward" cuts Ward's tree; "k-means++" draws centres with scikit-learn's `kmeans_plusplus`,
            which takes about N * n_groups * D * log(n_groups) steps; "random" draws vectors as centres.
        max_iter: Number of iterations at most; 0 gives the start.
        seed: Of what is drawn.
        tree: A tree of N vectors to begin from instead of computing Ward's; for `init="ward"` only.
        progress: Whether to show a progress bar.

    Returns:
        The groups, their means and the sum of squares, with the number of iterations.

    Raises:
        ValueError: If `x` is not a finite matrix, if `n_groups` is not in 1 to N, `max_iter` is negative, `init` is
            unknown or does not fit, or if `tree` has other leaves or was stopped above `n_groups`.
        TypeError: If `x` or `init` do not hold numbers, or `n_groups` or `max_iter` are not integers.

    References:
        Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28 (1982). Arthur and
        Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007. Yousefzadeh, "Using wavelets to
        analyze similarities in image datasets", arXiv 2002.10257 (Algorithm 1, which does not state the start).

    Example:
        >>> found = kmeans([[0.0], [1.0], [5.0], [7.0], [20.0]], 3)
        >>> found.groups.tolist(), found.centres.ravel().tolist(), found.objective
        ([0, 0, 1, 1, 2], [0.5, 6.0, 20.0], 2.5)
    """
    matrix = as_vectors(x)
    count = len(matrix)
    _check_integer("n_groups", n_groups)
    _check_integer("max_iter", max_iter)
    if not 1 <= n_groups <= count:
        raise invalid("n_groups", f"in 1 to {count}, the number of vectors", int(n_groups))
    if max_iter < 0:
        raise invalid("max_iter", "at least 0", int(max_iter))
    if tree is not None and not (isinstance(init, str) and init == "ward"):
        raise invalid("tree", "None unless `init` is 'ward'", "a tree")
    scaled, exponent = _scaled(matrix, cosine=False)
    lloyd = _Lloyd(scaled, int(n_groups))
    lloyd.begin(_start(matrix, scaled, exponent, lloyd, init, seed, tree))
    with tqdm(total=int(max_iter), desc="k-means", unit="iteration", disable=not progress) as bar:
        while lloyd.n_iter < max_iter and not lloyd.converged:
            lloyd.advance()
            bar.update()
    return lloyd.result(matrix, exponent)


# ------------------------------------------------------------------------------------------------ arguments


def _check_integer(name: str, value: object) -> None:
    """An error unless `value` is an integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")


def as_vectors(x: npt.ArrayLike) -> _Matrix:
    """The vectors as float32, float64 or small integers, whichever holds them without loss."""
    matrix: _Matrix = np.asanyarray(x)
    if not _small_integers(matrix):
        matrix = check_vectors(matrix, "x")
    if matrix.dtype in (np.float32, np.float64, np.uint8):
        return matrix
    # The kernels are compiled for these dtypes only; those of up to two bytes fit into float32.
    return matrix.astype(np.float32 if matrix.dtype.itemsize <= 2 else np.float64)


def _start(
    matrix: _Matrix, scaled: _Matrix, exponent: int, lloyd: _Lloyd, init: Any, seed: int, tree: MergeTree | None
) -> _Ints:
    """The first group of each vector; some groups may be empty."""
    count, n_groups = len(matrix), lloyd.n_groups
    if isinstance(init, str):
        check_choice("init", init, STARTS)
        if init == "ward":
            if tree is None:
                tree = merge_tree(matrix, n_groups, linkage="ward", metric="euclidean")
            elif tree.n_leaves != count:
                raise invalid("tree", f"a tree of {count} vectors", tree.n_leaves)
            return tree.cut(n_groups=n_groups)
        if init == "random":
            rows = np.sort(np.random.default_rng(seed).choice(count, n_groups, replace=False))
        else:
            from sklearn.cluster import kmeans_plusplus

            # Drawn with replacement where there are fewer distinct vectors than groups.
            rows = np.unique(kmeans_plusplus(_as_floats(scaled), n_groups, random_state=seed)[1].astype(np.int64))
        groups = np.full(count, -1, np.int64)
        groups[rows] = np.arange(len(rows))
        left = np.flatnonzero(groups < 0)
        groups[left] = lloyd.nearest(left, scaled, rows)
        return groups
    given = np.asanyarray(init)
    if given.ndim == 1:
        if given.dtype.kind not in "iu":
            raise TypeError(f"`init` must hold integers where it gives groups, got dtype {given.dtype}.")
        must = f"a group in 0 to {n_groups - 1} for each of {count} vectors, or centres of shape (n_groups, D)"
        if len(given) != count:
            raise invalid("init", must, f"{len(given)} groups")
        if given.min() < 0 or given.max() >= n_groups:
            raise invalid("init", must, f"groups from {given.min()} to {given.max()}")
        return cast("_Ints", given.astype(np.int64))
    centres = check_vectors(given, "init")
    if centres.shape != (n_groups, matrix.shape[1]):
        raise invalid("init", f"centres of shape ({n_groups}, {matrix.shape[1]})", f"shape {centres.shape}")
    if exponent:
        centres = np.ldexp(np.asarray(centres, np.float64), exponent)
    return lloyd.nearest(np.arange(count), centres, np.arange(n_groups))


def _as_floats(matrix: _Matrix) -> _Matrix:
    """The vectors in a dtype that scikit-learn does not convert."""
    return matrix if matrix.dtype.kind == "f" else matrix.astype(np.float32)


# ------------------------------------------------------------------------------------------------ iterations


class _Lloyd:
    """The state of Lloyd's iterations."""

    def __init__(self, x: _Matrix, n_groups: int) -> None:
        self.x = x
        self.n_groups = n_groups
        self.n_iter = 0
        self.n_moved = 0
        self.converged = False
        # Products in float32 are taken about this point, so that they lose least.
        self.origin = _mean_of(x)
        self.groups = np.empty(0, np.int64)
        self.sizes = np.empty(0, np.int64)
        # Squared distance of each vector to the mean of its group.
        self.squares = np.zeros(len(x))
        # Of the means that have not changed in the last iteration, other than its own, none is nearer to a vector.
        self.floor = np.full(len(x), -1.0)
        # Groups whose members changed in the last iteration.
        self.changed = np.ones(n_groups, bool)
        # Vectors in groups of two members or more; the means of these groups, and where in `means` each is, else -1.
        self.shared = np.empty(0, np.int64)
        self.means = np.empty((0, x.shape[1]))
        self.slot = np.full(n_groups, -1, np.int64)

    def begin(self, groups: _Ints) -> None:
        """Set the first groups."""
        self.groups = groups
        self.sizes = np.bincount(groups, minlength=self.n_groups)
        self.measure()
        if (self.sizes == 0).any():
            self._fill_empty()
            self.measure()
            self.n_moved = 0
        # Nothing is known about the other means yet.
        self.changed[:] = False

    def measure(self) -> None:
        """Bring the means of changed groups and the distances of their members up to date."""
        several = np.flatnonzero(self.sizes >= 2)
        means = np.empty((len(several), self.x.shape[1]))
        kept = np.flatnonzero(~self.changed[several])
        means[kept] = self.means[self.slot[several[kept]]]
        self.slot = np.full(self.n_groups, -1, np.int64)
        self.slot[several] = np.arange(len(several))
        self.means = means
        places = self.slot[self.groups]
        self.shared = np.flatnonzero(places >= 0)
        self.squares[places < 0] = 0.0
        fresh = self.shared[self.changed[self.groups[self.shared]]]
        self.squares[fresh] = fill_means(self.x, fresh, places[fresh], means)

    def advance(self) -> None:
        """One iteration: compare with the means, move, and compute the means anew."""
        shared = self.shared
        best = self.squares[shared]
        which = np.full(len(shared), -1, np.int64)  # -1: the present group
        # A vector at its mean stays. The others are compared with the means that have changed, and with the rest of
        # them only where they have become more distant from their own.
        some = np.flatnonzero(best > 0.0)
        more = some[best[some] > self.floor[shared[some]]]
        for images, means in ((some, self.changed), (more, ~self.changed)):
            several = np.flatnonzero((self.sizes >= 2) & means)
            self._improve(shared, images, best, which, self.means, self.slot[several], several)
        member = np.empty(self.n_groups, np.int64)
        member[self.groups] = np.arange(len(self.groups))
        for images, means in ((some, self.changed), (more, ~self.changed)):
            alone = np.flatnonzero((self.sizes == 1) & means)
            self._improve_by_single(shared, images, best, which, member[alone], alone)
        self.n_iter += 1
        self.floor[:] = -1.0
        self.floor[shared] = best
        self.changed[:] = False
        moved = which >= 0
        self._move(shared[moved], which[moved], best[moved])
        self._fill_empty()
        self.converged = not self.changed.any()
        self.measure()

    def _move(self, images: _Ints, groups: _Ints, squares: _Floats | float) -> None:
        """Put vectors into other groups."""
        self.changed[self.groups[images]] = True
        self.changed[groups] = True
        self.groups = self.groups.copy()
        self.groups[images] = groups
        self.squares[images] = squares
        self.sizes = np.bincount(self.groups, minlength=self.n_groups)
        self.n_moved += len(images)

    def _fill_empty(self) -> None:
        """Give each empty group the vector that is farthest from the mean of its group, of groups that keep others."""
        empty = np.flatnonzero(self.sizes == 0)
        if len(empty) == 0:
            return
        sizes = self.sizes.copy()
        taken: list[int] = []
        for image in np.argsort(-self.squares, kind="stable").tolist():
            if len(taken) == len(empty):
                break
            if sizes[self.groups[image]] >= 2:
                sizes[self.groups[image]] -= 1
                taken.append(image)
        self._move(np.array(taken, np.int64), empty, 0.0)

    # -------------------------------------------------------------------------------------------- nearest means

    def nearest(self, images: _Ints, centres: _Matrix, rows: _Ints) -> _Ints:
        """The nearest of some rows of `centres` to each vector, by place; the lowest where several are as near."""
        best, which = np.full(len(images), np.inf), np.full(len(images), -1, np.int64)
        self._improve(images, np.arange(len(images)), best, which, centres, rows, np.arange(len(rows)))
        return which

    def _improve(
        self, images: _Ints, some: _Ints, best: _Floats, which: _Ints, centres: _Matrix, rows: _Ints, ids: _Ints
    ) -> None:
        """Put the nearest of some rows of `centres` into `which`, by id, and its squared distance into `best`.

        Only of the vectors `images[some]`, and only where it is nearer than `best` or as near with a lower id.
        """
        if len(some) == 0 or len(rows) == 0:
            return
        n_features = self.x.shape[1]
        blocks = [some[start : start + _BLOCK_ROWS] for start in range(0, len(some), _BLOCK_ROWS)]
        # The threads make products of their own.
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(_threads()) as pool:
            for chunk in _chunks(len(rows), n_features):
                exact = np.asarray(centres[rows[chunk]], dtype=np.float64)
                rough, offset = self._rough(exact)
                reach = float(offset.max())

                def compare(block: _Ints, *, chunk: Any = chunk, exact: Any = exact, rough: Any = rough,
                            offset: Any = offset, reach: float = reach) -> None:  # fmt: skip
                    ours = self.x[images[block]].astype(np.float64)
                    ours_rough, ours_offset = self._rough(ours)
                    # Rounding in float32 of the inputs, of D products and sums, and of the offsets.
                    margin = (n_features + 10) * 2.0**-24 * (ours_offset + reach) + 2.0**-120
                    nearest, winner = best[block], which[block]
                    for start in range(0, len(exact), _BLOCK_COLUMNS):
                        part = slice(start, start + _BLOCK_COLUMNS)
                        products = ours_rough @ rough[part].T
                        _nearer(
                            products, ours, exact[part], ours_offset, offset[part].astype(np.float32), margin,
                            ids[chunk][part], nearest, winner,
                        )  # fmt: skip
                    best[block], which[block] = nearest, winner

                list(pool.map(compare, blocks))

    def _rough(self, exact: _Floats) -> tuple[npt.NDArray[np.float32], _Floats]:
        """Vectors about the origin in float32, and half their squared norms."""
        centred = exact - self.origin
        return centred.astype(np.float32), 0.5 * np.einsum("ij,ij->i", centred, centred)

    def _improve_by_single(
        self, images: _Ints, some: _Ints, best: _Floats, which: _Ints, members: _Ints, ids: _Ints
    ) -> None:
        """`_improve` for the vectors `members` as centres, through near pairs where that is less work."""
        if len(some) * len(members) * self.x.shape[1] > _FEW_PRODUCTS:
            # The few that are most distant from their means would make the radius large for all.
            for share in (1.0, 0.95):
                limit = float(np.quantile(best[some], share))
                near = best[some] <= limit
                if self._expected_pairs(images[some[near]], members, limit) > _MAX_PAIRS / 4:
                    continue
                try:
                    # A little more, so that rounding loses none.
                    radius = math.sqrt(limit) * (1.0 + 1e-9)
                    found = near_pairs(self.x[images[some[near]]], radius, self.x[members], max_pairs=_MAX_PAIRS)
                except TooManyPairsError:
                    continue
                place, column = some[near][found.pairs[:, 0]], found.pairs[:, 1]
                inside = found.distances * found.distances <= best[place] * (1.0 + 1e-9)
                self._improve_by_pairs(images, place[inside], best, which, members[column[inside]], ids[column[inside]])
                some = some[~near]
                break
        self._improve(images, some, best, which, self.x, members, ids)

    def _improve_by_pairs(
        self, images: _Ints, place: _Ints, best: _Floats, which: _Ints, members: _Ints, ids: _Ints
    ) -> None:
        """`_improve` for single pairs of a vector, `images[place]`, and a centre, the vector of `members`."""
        for chunk in _chunks(len(place), self.x.shape[1]):
            ours, theirs = self.x[images[place[chunk]]], self.x[members[chunk]]
            squares = _row_squares(ours.astype(np.float64), theirs.astype(np.float64), np.arange(len(ours)))
            _take_nearer(place[chunk], squares, ids[chunk], best, which)

    def _expected_pairs(self, images: _Ints, members: _Ints, limit: float) -> float:
        """About how many pairs of two sets of vectors are within a squared distance, from a sample of both."""
        ours = images[np.unique(np.linspace(0, len(images) - 1, 128).astype(np.int64))]
        theirs = members[np.unique(np.linspace(0, len(members) - 1, 4096).astype(np.int64))]
        a, a_offset = self._rough(self.x[ours].astype(np.float64))
        b, b_offset = self._rough(self.x[theirs].astype(np.float64))
        within = a_offset[:, None] + b_offset - a @ b.T <= 0.5 * limit
        return float(within.mean()) * len(images) * len(members)

    # -------------------------------------------------------------------------------------------- result

    def result(self, matrix: _Matrix, exponent: int) -> KMeans:
        """The groups in the order of their first members, with the means of the vectors as they were given."""
        first = np.full(self.n_groups, len(self.groups))
        np.minimum.at(first, self.groups, np.arange(len(self.groups)))
        order = np.argsort(first, kind="stable")
        number = np.empty(self.n_groups, np.int64)
        number[order] = np.arange(self.n_groups)
        small = matrix.dtype == np.float32 or matrix.dtype.kind != "f"
        centres = np.empty((self.n_groups, matrix.shape[1]), np.float32 if small else np.float64)
        for chunk in _chunks(self.n_groups, matrix.shape[1]):
            part = order[chunk]
            block = matrix[first[part]].astype(np.float64)
            several = self.slot[part] >= 0
            block[several] = np.ldexp(self.means[self.slot[part[several]]], -exponent)
            centres[chunk] = block
        objective = math.ldexp(math.fsum(self.squares.tolist()), -2 * exponent)
        return KMeans(number[self.groups], centres, objective, self.n_iter, self.n_moved, self.converged)


# ------------------------------------------------------------------------------------------------ means


def _mean_of(x: _Matrix) -> _Floats:
    """The mean of all vectors."""
    total = np.zeros(x.shape[1])
    for chunk in _chunks(*x.shape):
        total += x[chunk].sum(axis=0, dtype=np.float64)
    return total / len(x)


def fill_means(x: _Matrix, images: _Ints, places: _Ints, means: _Floats) -> _Floats:
    """Write the means of groups of vectors, and return the squared distance of each vector to its group's.

    A mean is the first member plus the mean difference from it, so that equal members have exactly their mean.

    Args:
        x: Vectors of shape (N, D).
        images: Ascending rows of `x` that are members of groups, of shape (S,).
        places: Row of `means` that each of them belongs to.
        means: float64 of shape (M, D); only rows that are among `places` are written.
    """
    squares = np.empty(len(images))
    if len(images) == 0:
        return squares
    order = np.argsort(places, kind="stable")
    rows, slots = images[order], places[order]
    heads = np.flatnonzero(np.append(True, slots[1:] != slots[:-1]))
    # Whole groups to each thread: sums do not depend on the number of threads.
    share = max(1, len(rows) // (4 * _threads()))
    cuts = [0]
    for head in heads.tolist():
        if head - cuts[-1] >= share:
            cuts.append(head)
    ends = [*cuts[1:], len(rows)]

    def work(start: int, end: int) -> None:
        chunks = [slice(start + part.start, min(start + part.stop, end)) for part in _chunks(end - start, x.shape[1])]
        mine = heads[(heads >= start) & (heads < end)]
        targets = slots[mine]
        means[targets] = x[rows[mine]]
        sums = np.zeros((len(mine), x.shape[1]))
        group = np.repeat(np.arange(len(mine)), np.diff(np.append(mine, end)))
        for part in chunks:
            block = x[rows[part]].astype(np.float64)
            _add_differences(block, means, slots[part], group[part.start - start : part.stop - start], sums)
        means[targets] += sums / np.diff(np.append(mine, end))[:, None]
        for part in chunks:
            squares[order[part]] = _row_squares(x[rows[part]].astype(np.float64), means, slots[part])

    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(work, cuts, ends))
    return squares


# ------------------------------------------------------------------------------------------------ kernels


@_kernel
def _add_differences(block: Any, base: Any, slots: Any, group: Any, sums: Any) -> None:
    """Add the differences of vectors from a row of `base` to the sum of their group."""
    for r in range(len(block)):
        for k in range(block.shape[1]):
            sums[group[r], k] += block[r, k] - base[slots[r], k]


@_kernel
def _row_squares(block: Any, centres: Any, slots: Any) -> Any:
    """Squared distance of each vector to a row of `centres`."""
    out = np.empty(len(block))
    for r in range(len(block)):
        total = 0.0
        for k in range(block.shape[1]):
            difference = block[r, k] - centres[slots[r], k]
            total += difference * difference
        out[r] = total
    return out


@_kernel
def _take_nearer(place: Any, squares: Any, ids: Any, best: Any, which: Any) -> None:
    """Note centres that are nearer than the best so far, or as near with a lower id."""
    for p in range(len(place)):
        i = place[p]
        if squares[p] < best[i] or (squares[p] == best[i] and which[i] >= 0 and ids[p] < which[i]):
            best[i] = squares[p]
            which[i] = ids[p]


@_kernel
def _nearer(
    products: Any, ours: Any, centres: Any, ours_offset: Any, offset: Any, margin: Any, ids: Any, best: Any, which: Any
) -> None:
    """Note for each vector the centre that is nearer than the best so far, or as near with a lower id."""
    width = products.shape[1]
    for r in range(len(products)):
        least = np.float32(ours_offset[r] - 0.5 * best[r] - margin[r])
        c = 0
        while c < width:
            stop = min(c + 64, width)
            hits = 0
            # Free of branches, so that it runs on whole vector registers: nearly all chunks end here.
            for k in range(c, stop):
                hits += products[r, k] - offset[k] >= least
            if hits > 0:
                for k in range(c, stop):
                    if not products[r, k] - offset[k] >= least:
                        continue
                    total = 0.0
                    for d in range(ours.shape[1]):
                        difference = ours[r, d] - centres[k, d]
                        total += difference * difference
                    if total < best[r] or (total == best[r] and which[r] >= 0 and ids[k] < which[r]):
                        best[r] = total
                        which[r] = ids[k]
                        least = np.float32(ours_offset[r] - 0.5 * best[r] - margin[r])
            c = stop
