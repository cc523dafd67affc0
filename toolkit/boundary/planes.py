"""The plane through three images, and the regions in which a model predicts each class there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch
from torch import Tensor
from tqdm.auto import tqdm

from toolkit.boundary.evaluation import Images, Scorer, margins_of
from toolkit.distributed import world
from toolkit.validation import invalid

__all__ = ["DecisionPlane", "decision_plane"]

#: How far rounding moves an image, in units of its length times its number format's precision.
_ROUNDING = 8
#: How far two grids' coordinates may differ, as a share of their width, and be the same grid.
_SAME_GRID = 1e-6
_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DecisionPlane:
    """What a model predicts on a square grid of the plane through three images, as `decision_plane` finds it.

    Attributes:
        classes: int32 (size, size), the predicted class at (x[j], y[i]) in row i and column j.
        margins: float32 (size, size), highest minus second highest score there (of logits in nats); NaN where only
            classes are known.
        x: float64 (size,), ascending coordinates along the line from the first image to the second, as Euclidean
            distances between images.
        y: float64 (size,), ascending coordinates along the perpendicular in the plane, towards the third image. The
            step is the same as along x.
        points: float64 (3, 2), where the images lie: (0, 0), (x2, 0) and (x3, y3), with x2 and y3 above 0.
        point_classes: int32 (3,), the class predicted for each image itself.

    Example:
        >>> import numpy as np
        >>> plane = DecisionPlane(
        ...     classes=np.array([[0, 1, 0], [0, 1, 1], [2, 2, 0]]),
        ...     margins=np.ones((3, 3)),
        ...     x=np.arange(3.0),
        ...     y=np.arange(3.0),
        ...     points=np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]),
        ...     point_classes=np.array([0, 0, 2]),
        ... )
        >>> plane.fragmentation(), plane.n_regions
        ({0: 3, 1: 1, 2: 1}, 5)
        >>> plane.fragmentation(min_area=2)
        {0: 1, 1: 1, 2: 1}
        >>> plane.agreement(plane)
        1.0
    """

    classes: npt.NDArray[np.int32]
    margins: npt.NDArray[np.float32]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    points: npt.NDArray[np.float64]
    point_classes: npt.NDArray[np.int32]

    def __repr__(self) -> str:
        count = len(np.unique(self.classes))
        return (
            f"DecisionPlane({len(self.y)} x {len(self.x)} points, {count} {'class' if count == 1 else 'classes'} in "
            f"{self.n_regions} {'region' if self.n_regions == 1 else 'regions'})"
        )

    @property
    def n_regions(self) -> int:
        """The number of connected regions of one class, all classes together."""
        return sum(self.fragmentation().values())

    def fragmentation(self, min_area: int = 1, *, diagonals: bool = False) -> dict[int, int]:
        """The number of connected regions of each class.

        Args:
            min_area: Grid points that a region has at least to be counted.
            diagonals: Whether points that touch at a corner only are connected, as dbViz counts them. A class all of
                whose regions are smaller than `min_area` has 0.

        Returns:
            The classes that occur, ascending, with their numbers of regions.

        Raises:
            ValueError: If `min_area` is below 1.
            TypeError: If it is no integer.
        """
        if isinstance(min_area, bool) or not isinstance(min_area, (int, np.integer)):
            raise TypeError(f"`min_area` must be an integer, got {min_area!r}.")
        if min_area < 1:
            raise invalid("min_area", "at least 1", min_area)
        structure = np.ones((3, 3)) if diagonals else None
        found: dict[int, int] = {}
        for number in np.unique(self.classes).tolist():
            regions, _ = scipy.ndimage.label(self.classes == number, structure)
            found[number] = int((np.bincount(regions.ravel())[1:] >= min_area).sum())
        return found

    def agreement(self, other: DecisionPlane) -> float:
        """The share of grid points where both planes have the same class.

        Compares two models on the same plane (or a model before and after training goes on). The reproducibility score
        of Somepalli et al. is the mean of it over many planes.

        Args:
            other: A plane through the same three images on the same grid. That the grids are equal is checked; that the
                images are is up to the caller.

        Raises:
            ValueError: If the grids or the images' places differ.
        """
        for name in ("x", "y", "points"):
            mine, theirs = getattr(self, name), getattr(other, name)
            scale = _SAME_GRID * float(self.x[-1] - self.x[0])
            if mine.shape != theirs.shape or (np.abs(mine - theirs) > scale).any():
                raise invalid("other", "a plane through the same images on the same grid", f"one with another `{name}`")
        return float((self.classes == other.classes).mean())


def decision_plane(
    model: Callable[[Tensor], Any],
    images: Tensor | npt.NDArray[Any] | Sequence[Any],
    *,
    size: int = 64,
    margin: float = 0.25,
    decision: Callable[[Any], Tensor] | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    memory_limit: int = 1 << 30,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> DecisionPlane:
    """The classes that a model predicts on a grid of the plane through three images.

    With images a, b and c the plane is a + u e1 + v e2, where e1 = (b - a) / |b - a| and e2 is the unit vector along
    (c - a) - <c - a, e1> e1. So u and v are Euclidean distances between images. The grid is square: its middle is that
    of the smallest upright rectangle around the three images, its side the rectangle's longer side times
    1 + 2 `margin`.

    Args:
        model: A module or any callable: images (B, *shape) to logits (B, C). A module is run in evaluation mode and
            left as it was, as `probe_paths` does.
        images: The three images as the model takes them, floating-point, shape (3, *shape).
        size: Grid points along each side, at least 2. The model sees `size`^2 + 3 images.
        margin: How far the grid goes beyond the images on each side, as a share of the rectangle's longer side, 0 or
            more.
        decision: Makes scores (B, C), or integer classes (B,), of what the model returns. With classes there are no
            margins.
        precision: "float32", or "bf16" for autocast.
        batch_size: Images a forward; None for 256, or fewer where memory asks for it.
        memory_limit: Bytes for images of the plane, the model's own activations excluded.
        device: Where the model runs; None for that of its first parameter, the CPU for other callables.
        progress: Whether to show a progress bar.

    Returns:
        A `DecisionPlane`.

    Raises:
        ValueError: If there are not three images, they are not finite, two of them are the same, all lie on one line
            (as far as their number format can tell), `size`, `margin`, `precision`, `batch_size` or `memory_limit` is
            out of range, or the model returns something else than finite scores (B, C).
        TypeError: If images are not floating-point, or a number or function is of another kind.

    References:
        Somepalli, Fowl, Bansal, Yeh-Chiang, Dar, Baraniuk, Goldblum, Goldstein, "Can Neural Nets Learn the Same Model
        Twice? Investigating Reproducibility and Double Descent from the Decision Boundary Perspective", CVPR 2022,
        arXiv 2203.08124, and their code, dbViz. The plane and its coordinates are theirs. Here the grid is square with
        one step along both axes, so that areas compare (theirs is stretched to the triangle's width and height); points
        that touch at a corner only are in different regions unless asked otherwise; images with one on the line of the
        others are refused instead of giving NaN; and the basis is computed in float64.

    Example:
        >>> import torch
        >>> def model(x):  # class 0 within 1.1 of the origin
        ...     return torch.stack([torch.full((len(x),), 1.1), x.norm(dim=1)], dim=1)
        >>> plane = decision_plane(model, torch.tensor([[0.0, 0], [3, 0], [0, 3]]), size=25, margin=0)
        >>> plane.point_classes.tolist(), plane.n_regions
        ([0, 1, 1], 2)
        >>> (plane.classes == 0).sum(axis=1)[:10].tolist()
        [9, 9, 9, 9, 8, 8, 7, 6, 4, 0]
    """
    _check(size, margin, memory_limit)
    scorer = Scorer(model, decision=decision, precision=precision, device=device, batch_size=batch_size)
    three = Images(images, "images")
    if len(three) != 3:
        raise invalid("images", "three images, of shape (3, *shape)", f"{len(three)}")
    corners = three.take(np.arange(3))
    origin, basis, points = _basis(corners)
    low, high = points.min(axis=0), points.max(axis=0)
    half = (0.5 + margin) * float((high - low).max())
    x, y = (np.linspace(middle - half, middle + half, size) for middle in (low + high) / 2)

    dtype = torch.promote_types(three.dtype, torch.float32)
    batch = scorer.batch_for(dtype.itemsize * origin.numel(), memory_limit)
    count = size * size
    classes, margins = np.empty(count, np.int32), np.full(count, np.nan, np.float32)
    with tqdm(total=count, unit="img", desc="plane", disable=not progress or world()[0] != 0) as bar, scorer:
        start, directions = (part.to(scorer.device, dtype) for part in (origin, basis))
        # The images themselves, not the plane's points there, which are rounded.
        own = _scores(scorer, corners.to(scorer.device, dtype), "one of the three images")
        for first in range(0, count, batch):
            flat = np.arange(first, min(first + batch, count))
            at = np.stack([x[flat % size], y[flat // size]], axis=1)
            places = torch.from_numpy(at).to(scorer.device, dtype)
            # Not as a product of matrices, which autocast would round.
            rows = start + places[:, :1] * directions[:1] + places[:, 1:] * directions[1:]
            found = _scores(scorer, rows.view(-1, *three.shape), "a point")
            classes[flat] = _classes(found)
            if found.ndim == 2:
                margins[flat] = margins_of(found)
            bar.update(len(flat))
    shape = (size, size)
    return DecisionPlane(classes.reshape(shape), margins.reshape(shape), x, y, points, _classes(own).astype(np.int32))


def _check(size: Any, margin: Any, memory_limit: Any) -> None:
    for name, value in (("size", size), ("memory_limit", memory_limit)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if size < 2:
        raise invalid("size", "at least 2", size)
    if isinstance(margin, bool) or not isinstance(margin, (int, float, np.integer, np.floating)):
        raise TypeError(f"`margin` must be a number of 0 or more, got {margin!r}.")
    if not 0.0 <= float(margin) < np.inf:
        raise invalid("margin", "0 or more", margin)


def _basis(corners: Tensor) -> tuple[Tensor, Tensor, _Doubles]:
    """The first image (1, D) and two directions (2, D) in float64, and the three images' coordinates (3, 2)."""
    flat = corners.detach().cpu().double().flatten(1)
    finite = flat.isfinite().all(dim=1)
    if not finite.all():
        raise invalid("images", "finite", f"NaN or infinite values in image {int(finite.byte().argmin())}")
    # Distances below this are rounding of the images' numbers.
    least = _ROUNDING * torch.finfo(corners.dtype).eps * float(flat.norm(dim=1).max())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if float((flat[one] - flat[other]).norm()) <= least:
            raise invalid("images", "three different images", f"images {one} and {other} that are the same")
    along, across = flat[1] - flat[0], flat[2] - flat[0]
    length = along.norm()
    along = along / length
    share = across @ along
    across = across - share * along
    across = across - (across @ along) * along  # a second time, for triangles that are almost flat
    height = across.norm()
    if float(height) <= least:
        raise invalid("images", "three images that span a plane", "three on one line")
    points = np.array([[0.0, 0.0], [float(length), 0.0], [float(share), float(height)]])
    return flat[:1], torch.stack([along, across / height]), points


def _scores(scorer: Scorer, images: Tensor, what: str) -> npt.NDArray[Any]:
    """Scores (B, C) or classes (B,) of some images."""
    try:
        values: npt.NDArray[Any] = scorer(images).cpu().numpy()
    except Exception as error:
        error.add_note(f"({len(images)} images of a plane, of shape {tuple(images.shape[1:])})")
        raise
    if not np.isfinite(values).all():
        raise ValueError(f"`model` must return finite scores, got NaN or infinite values for {what} of the plane.")
    return values


def _classes(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The class with the highest score, the first of several."""
    return scores.astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
