"""Straight paths between images, and where on them a model changes its mind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from toolkit.boundary.evaluation import Images, Scorer
from toolkit.boundary.points import Points
from toolkit.boundary.report import BoundaryReport
from toolkit.distributed import world
from toolkit.validation import invalid

__all__ = ["probe_paths"]

_Ints = npt.NDArray[np.int64]
_Doubles = npt.NDArray[np.float64]

#: A gap that may hide crossings is halved until it is this share of the regular grid's step.
_FINEST = 1 / 16
#: Bytes kept of a point beside its scores.
_POINT_BYTES = 32


def probe_paths(
    model: Callable[[Tensor], Any],
    start: Tensor | npt.NDArray[Any] | Sequence[Any],
    end: Tensor | npt.NDArray[Any] | Sequence[Any],
    num_points: int = 33,
    tolerance: float = 1e-3,
    *,
    adaptive: bool = True,
    decision: Callable[[Any], Tensor] | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    memory_limit: int = 1 << 30,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> BoundaryReport:
    """Walk the straight paths between P pairs of images and find where the predicted class changes.

    The path of a pair is x(a) = (1 - a) start + a end, a in [0, 1]; at 0 and 1 the model sees the two images
    themselves. All paths are walked together, in full batches, in three stages that share their points:

    1. Grid: `num_points` points, evenly spread from end to end.
    2. Crossings: between two neighbouring points of different classes the middle is evaluated until they are at most
       `tolerance` apart. Where the middle has a third class, both halves have a crossing and both are pursued. The
       position given is where straight lines through the two classes' scores at both sides meet.
    3. Hidden crossings (`adaptive`): a class that is entered and left between two points leaves no trace in their
       classes. Let d(a) be how far the class at both points is ahead of another, w how far they are apart, and L
       twice the fastest change of d seen between them, or between one of them and the next point beyond. As long as d
       changes no faster than L, it is at least (d(left) + d(right) - L w) / 2 between them. Where that is not above 0
       for every other class, the middle is evaluated, and so on until w is `tolerance`, or 1/16 of the grid's step if
       that is more. What is then left open is told as the report's `resolution`. This is no proof: a bump that is
       narrower than the grid and changes nothing at its points is not seen.

    A module runs in evaluation mode, without gradients, TF32 or autocast; the mode of its submodules, the grad mode and
    the random state of Python, NumPy and PyTorch are as before afterwards, also after an exception. Gradients of
    `start` and `end` are not followed, and neither is modified.

    Positions are float64, but images lie where `a` rounds to in their own precision: float32 images carry a tolerance
    down to about 1e-6, below which `start` and `end` should be float64. Results do not depend on `batch_size` further
    than the model's own rounding does. Memory beyond the limit is taken by the model's activations and the report.

    Args:
        model: A module or any callable: images (B, *shape) to logits (B, C), C at least 2.
        start: Floating-point images as the model takes them, (P, *shape): a tensor, an array (also a memory map) or a
            sequence of P tensors or arrays. They stay where they are and go to the model's device a batch at a time.
        end: The other end of each path, of the same shape and on the same device.
        num_points: Points of the regular grid of each path, both ends included, at least 2. For a ResNet-32 on CIFAR-10
            the crossings of a grid of 513 points were all found with 5 (`adaptive`) or 17 (without).
        tolerance: How far apart the two points that enclose a crossing may be at last, in (0, 1] as a share of the
            path.
        adaptive: Whether to look for hidden crossings. Where only classes are known, there is nothing to go by.
        decision: Makes of what the model returns scores (B, C), or integer classes (B,).
        precision: "float32", or "bf16" for a forward under autocast to bfloat16; scores are compared in float32.
        batch_size: Images a forward. If None, 256, or fewer where `memory_limit` asks for it.
        memory_limit: Bytes for interpolated images and kept scores, half of it for each; of scores never less than one
            path's.
        device: Where images go; by default the device of the model's first parameter, the CPU for plain callables.
        progress: Whether to show a progress bar.

    Returns:
        What was found, one row a pair, in their order.

    Raises:
        ValueError: If there are no pairs, if shapes or devices of `start` and `end` differ, if `num_points`,
            `tolerance`, `precision`, `batch_size` or `memory_limit` are out of range, if the output is neither scores
            (B, C) with at least two classes nor (with `decision`) integers (B,), if the number of classes changes, or
            if scores are not finite (the error names the pair and the position).
        TypeError: If images are not floating-point, if a number is of the wrong kind, or if the output is no tensor.
        Exception: What `model` or `decision` raises, with a note on the images they were given.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, section 5.3, looks
        at such paths; how many points it takes is not told there. Points where two classes are equal and all others
        below are the decision boundary of Elsayed et al., "Large margin deep networks for classification", 2018. The
        bound of stage 3 is that of Piyavskii and Shubert for functions of bounded slope, with an estimated slope.

    Example:
        >>> model = torch.nn.Linear(2, 3, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        >>> report = probe_paths(model, torch.tensor([[-4.0, 1.0]]), torch.tensor([[4.0, 1.0]]))
        >>> report.classes, report.positions, report.third_class
        (((0, 1, 2),), ((0.375, 0.625),), ((False, False),))
        >>> report.n_evaluations, report.resolution
        (51, array([0.00195312], dtype=float32))
    """
    check_paths(num_points, tolerance, memory_limit)
    scorer = Scorer(model, decision=decision, precision=precision, device=device, batch_size=batch_size)
    ends = Images(start, "start"), Images(end, "end")
    shapes = [(len(images), *images.shape) for images in ends]
    if shapes[0] != shapes[1]:
        raise invalid("end", f"of the shape of start, {shapes[0]}", shapes[1])
    if ends[0].device != ends[1].device:
        raise invalid("end", f"on the device of start, {ends[0].device}", ends[1].device)
    n_pairs, grid = len(ends[0]), np.linspace(0.0, 1.0, num_points)
    reports = []
    bar = tqdm(total=n_pairs * num_points, unit="img", desc="paths", disable=not progress or world()[0] != 0)
    with bar, scorer:
        walk = _Walk(scorer, *ends, memory_limit, bar)
        # The first batch tells how many scores there are to keep, hence how many paths to walk at a time.
        ready = walk(*_grid_points(grid, 0, n_pairs, walk.batch))
        at_a_time = walk.paths_at_a_time(ready, num_points)
        for first in range(0, n_pairs, at_a_time):
            pairs, at = _grid_points(grid, first, min(first + at_a_time, n_pairs))
            known, ready = ready[: len(pairs)], ready[len(pairs) :]
            scores = np.concatenate([known, walk(pairs[len(known) :], at[len(known) :])])
            points = Points(pairs, at, scores, may_exclude=adaptive)
            del scores, known
            grid_classes = points.classes.astype(np.int32).reshape(-1, num_points)
            grid_margins = points.margins().reshape(-1, num_points)
            _explore(walk, points, tolerance, max(tolerance, _FINEST * grid[1]) if points.may_exclude else None)
            reports.append(_report(points, grid_classes, grid_margins, tolerance, walk.count()))
    return BoundaryReport.concatenate(reports)


def check_paths(num_points: Any, tolerance: Any, memory_limit: Any = 1) -> None:
    """Refuse settings of `probe_paths` that are out of range, before any work."""
    for name, value in (("num_points", num_points), ("memory_limit", memory_limit)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if num_points < 2:
        raise invalid("num_points", "at least 2, the two ends", num_points)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float, np.integer, np.floating)):
        raise TypeError(f"`tolerance` must be a number in (0, 1], got {tolerance!r}.")
    if not 0.0 < float(tolerance) <= 1.0:
        raise invalid("tolerance", "in (0, 1]", tolerance)


def _grid_points(grid: _Doubles, first: int, last: int, most: int | None = None) -> tuple[_Ints, _Doubles]:
    """The regular grids of paths `first` to `last`, or the first `most` points of them, as pairs and positions."""
    count = (last - first) * len(grid)
    flat = np.arange(count if most is None else min(most, count))
    return first + flat // len(grid), grid[flat % len(grid)]


class _Walk:
    """The model at points of paths, in full batches whichever paths the points are on."""

    def __init__(self, scorer: Scorer, start: Images, end: Images, memory_limit: int, bar: Any) -> None:
        self.scorer = scorer
        self.ends = start, end
        self.dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
        # Half of the memory is for images, hence twice their bytes; the other half is for scores.
        self.batch = scorer.batch_for(2 * self.dtype.itemsize * int(np.prod(start.shape)), memory_limit)
        self.score_bytes = memory_limit // 2
        self.bar = bar
        self.like: tuple[int, ...] | None = None
        self._evaluated = self._counted = 0

    def paths_at_a_time(self, scores: npt.NDArray[Any], num_points: int) -> int:
        """How many paths to walk at a time for scores to stay within the limit even if all gaps are halved to the end.

        Twice the bytes, since points are held in two copies while others are put between them.
        """
        most_points = (num_points - 1) / _FINEST + 1
        return max(1, int(self.score_bytes / (2 * most_points * (scores[0].nbytes + _POINT_BYTES))))

    def count(self) -> int:
        """Images evaluated since this was asked last."""
        fresh, self._counted = self._evaluated - self._counted, self._evaluated
        return fresh

    def __call__(self, pairs: _Ints, at: _Doubles) -> npt.NDArray[Any]:
        """Scores (n, C), or classes (n,), at positions `at` of the paths of `pairs`, both of shape (n,)."""
        self.bar.total = max(self.bar.total, self._evaluated + len(pairs))
        found: list[npt.NDArray[Any]] = []
        waiting: list[tuple[_Ints, _Doubles, Tensor]] = []
        for first in range(0, len(pairs), self.batch):
            chunk = pairs[first : first + self.batch], at[first : first + self.batch]
            waiting.append((*chunk, self._forward(*chunk)))
            # The batch before this one is fetched only now, so that a GPU never waits for it.
            if len(waiting) > 1:
                found.append(self._fetch(*waiting.pop(0)))
        found += [self._fetch(*last) for last in waiting]
        nothing: npt.NDArray[Any] = np.empty((0, *(self.like or ())), np.float32 if self.like else np.int64)
        return np.concatenate(found) if found else nothing

    def _forward(self, pairs: _Ints, at: _Doubles) -> Tensor:
        """What the model gives for some points, still on its device."""
        images = self._images(pairs, at)
        try:
            return self.scorer(images)
        except Exception as error:
            error.add_note(
                f"(raised for {len(pairs)} images of shape {self.ends[0].shape} on the paths of pairs "
                f"{pairs[0]} to {pairs[-1]}, from a = {at[0]:g} to a = {at[-1]:g})"
            )
            raise

    def _images(self, pairs: _Ints, at: _Doubles) -> Tensor:
        """The images at some points; at 0 and 1 those of the ends, unchanged."""
        device = self.scorer.device
        unique, inverse = np.unique(pairs, return_inverse=True)
        few = 2 * len(unique) <= len(pairs)
        start, end = (ends.take(unique if few else pairs).to(device, self.dtype) for ends in self.ends)
        if few:
            rows = torch.from_numpy(inverse).to(device)
            start, end = start[rows], end[rows]
        weight = torch.from_numpy(at).to(device, self.dtype).view(-1, *[1] * (start.ndim - 1))
        return torch.lerp(start, end, weight, out=start)

    def _fetch(self, pairs: _Ints, at: _Doubles, scores: Tensor) -> npt.NDArray[Any]:
        """The scores of a batch on the CPU, once they are known to be finite and as many as those of other batches."""
        values: npt.NDArray[Any] = scores.cpu().numpy()
        like = values.shape[1:]
        if self.like not in (None, like):
            raise invalid("model", f"one that always returns {self.like or 'no'} scores an image", like or "none")
        self.like = like
        self._evaluated += len(values)
        self.bar.update(len(values))
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            index = int(np.argmin(finite))
            pair = int(pairs[index])
            bad = [ends.name for ends in self.ends if not ends.take(pairs[index : index + 1]).isfinite().all()]
            more = f"; its image in `{bad[0]}` is not finite either" if bad else ""
            where = f"pair {pair} at a = {at[index]:g}{more}"
            raise ValueError(f"`model` must return finite scores, got NaN or infinite ones for {where}.")
        return values


def _explore(walk: _Walk, points: Points, tolerance: float, finest: float | None) -> None:
    """Halve gaps between points until every crossing is enclosed and nothing is hidden that could be found.

    Args:
        walk: The model at points.
        points: The points so far, to which others are added.
        tolerance: Gaps with a crossing are halved until they are no wider than this.
        finest: Gaps that may hide some are halved until they are no wider than this; None to leave them.
    """
    while True:
        gaps = points.crossed
        gaps = gaps[points.widths(gaps) > tolerance]
        if finest is not None:
            hiding = points.hiding
            gaps = np.sort(np.concatenate([gaps, hiding[points.widths(hiding) > finest]]))
        middle = points.at[gaps] + points.widths(gaps) / 2
        # A tolerance finer than numbers are ends where there is nothing between two of them.
        between = (points.at[gaps] < middle) & (middle < points.at[gaps + 1])
        gaps, middle = gaps[between], middle[between]
        if not len(gaps):
            return
        points.insert(gaps, middle, walk(points.pairs[gaps], middle))


def _report(
    points: Points,
    grid_classes: npt.NDArray[np.int32],
    grid_margins: npt.NDArray[np.float32],
    tolerance: float,
    n_evaluations: int,
) -> BoundaryReport:
    """What the points tell of their paths."""
    begins = np.flatnonzero(np.diff(points.pairs, prepend=-1))
    n_pairs, first = len(begins), points.pairs[0]
    crossed, (positions, third) = points.crossed, points.crossings()
    bounds = np.searchsorted(points.pairs[crossed], first + np.arange(n_pairs + 1))
    own = [slice(*bounds[i : i + 2]) for i in range(n_pairs)]
    margins = points.margins()
    lowest = begins + [int(np.argmin(of_path)) for of_path in np.split(margins, begins[1:])]
    resolution, hiding = np.zeros(n_pairs, np.float32), points.hiding
    np.maximum.at(resolution, points.pairs[hiding] - first, points.widths(hiding).astype(np.float32))
    return BoundaryReport(
        tuple((int(points.classes[begins[i]]), *points.classes[crossed[own[i]] + 1].tolist()) for i in range(n_pairs)),
        tuple(tuple(positions[own[i]].tolist()) for i in range(n_pairs)),
        tuple(tuple(third[own[i]].tolist()) for i in range(n_pairs)),
        margins[lowest],
        np.where(np.isnan(margins[lowest]), np.nan, points.at[lowest]).astype(np.float32),
        resolution,
        float(tolerance),
        grid_classes.shape[1],
        n_evaluations,
        grid_classes,
        grid_margins,
    )
