"""The paths of a data set's pairs, walked as many at a time as memory allows, and what was found as files."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Subset

from toolkit.boundary.evaluation import Scorer
from toolkit.boundary.pairs import PathPairs, load_images
from toolkit.boundary.path_table import COLUMNS, PathTable, rows_of
from toolkit.boundary.paths import probe_paths
from toolkit.boundary.planes import decision_plane
from toolkit.boundary.report import BoundaryReport
from toolkit.boundary.strata import summarise
from toolkit.datasets import ids_of
from toolkit.plotting import displayable
from toolkit.representations import EvaluationView
from toolkit.representations.feature_map import tapped
from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PairWalker", "draw_paths", "draw_planes", "save_probe", "triples_of"]

#: Bytes of images that are held between two walks; where they take more, images are read anew each time.
_HELD_BYTES = 1 << 29

_Walked = tuple[BoundaryReport, npt.NDArray[np.float64]]


class PairWalker:
    """Walks the straight paths between pairs of images of a data set, whichever model it is given.

    Images are read once and held where they take little memory, else read anew for each walk. They are the same each
    time, also where reading them is random.

    Args:
        dataset: The images, or an `EvaluationView`.
        pairs: Pairs of them.
        num_points: Points of the regular grid on each path, both ends included.
        tolerance: The width to which each crossing is bracketed.
        layer: A layer whose feature maps of both ends are compared too, or None.
        decision: Makes scores, or classes, of what the model returns, see `probe_paths`.
        precision: "float32" or "bf16".
        batch_size: Images a forward.
        progress: Whether to show a progress bar.

    Example:
        >>> images = torch.tensor([[-1.0], [3.0], [2.0]])
        >>> pairs = PathPairs(np.array([0, 1]), np.array([1, 2]), np.array([0, 0]), ("random",))
        >>> walk = PairWalker(torch.utils.data.TensorDataset(images), pairs)
        >>> report, _ = walk(lambda x: torch.cat([-x, x], 1))
        >>> report.num_crossings
        array([1, 0])
    """

    def __init__(
        self,
        dataset: Any,
        pairs: PathPairs,
        *,
        num_points: int = 33,
        tolerance: float = 1e-3,
        layer: str | int | None = None,
        decision: Callable[[Any], Tensor] | None = None,
        precision: str = "float32",
        batch_size: int = 256,
        progress: bool = False,
    ) -> None:
        self.view = EvaluationView.of(dataset)
        self.pairs = pairs
        self.num_points = num_points
        self.tolerance = tolerance
        self.layer = layer
        self.decision = decision
        self.precision = precision
        self.batch_size = batch_size
        self.progress = progress
        self._image_bytes: int | None = None
        self._held: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def scores(self, model: Callable[[Tensor], Any]) -> Tensor:
        """The scores (1, C), or class (1,), that a model gives one of the images: whether it can be asked at all."""
        image = load_images(self.view, self.pairs.images[:1])
        with Scorer(model, decision=self.decision, precision=self.precision) as scorer:
            return scorer(image.to(scorer.device))

    def __call__(self, model: Callable[[Tensor], Any], start: int = 0, stop: int | None = None) -> _Walked | None:
        """Walk the paths of the pairs `start` to `stop`, all if not given.

        Args:
            model: As for `probe_paths`; a module with the layer, where one is to be compared.
            start: The first pair.
            stop: One past the last.

        Returns:
            The report, and the cosine dissimilarity of the feature maps of both ends of each pair, float64 (P,), NaN
            where one is zero (or empty without a layer). None if there are no pairs between `start` and `stop`.
        """
        parts = list(self._parts(model, start, len(self.pairs) if stop is None else stop))
        if not parts:
            return None
        return BoundaryReport.concatenate([report for report, _ in parts]), np.concatenate([part for _, part in parts])

    def _parts(self, model: Callable[[Tensor], Any], start: int, stop: int) -> Iterator[_Walked]:
        if start == stop:
            return
        if self._image_bytes is None:
            image = load_images(self.view, self.pairs.images[:1])
            self._image_bytes = image.numel() * image.element_size()
        size = max(1, _HELD_BYTES // (2 * self._image_bytes))
        for first in range(start, stop, size):
            ends = self._ends(first, min(first + size, stop), hold=stop - start <= size)
            report = probe_paths(
                model,
                *ends,
                num_points=self.num_points,
                tolerance=self.tolerance,
                decision=self.decision,
                precision=self.precision,
                batch_size=self.batch_size,
                progress=self.progress,
            )
            yield report, self._distances(model, *ends)

    def _ends(self, first: int, last: int, hold: bool) -> tuple[Tensor, Tensor]:
        if self._held is not None and self._held[0] == (first, last):
            return self._held[1]
        own = self.pairs.subset(slice(first, last))
        images = load_images(self.view, own.images, batch_size=self.batch_size)
        rows = [torch.from_numpy(np.searchsorted(own.images, side)) for side in (own.first, own.second)]
        ends = images[rows[0]], images[rows[1]]
        if hold:
            self._held = (first, last), ends
        return ends

    def _distances(self, model: Any, start: Tensor, end: Tensor) -> npt.NDArray[np.float64]:
        if self.layer is None:
            return np.empty(0)
        sides = []
        with Scorer(model, decision=self.decision) as scorer, tapped(model, self.layer, "mean") as tap:
            for images in (start, end):
                vectors = []
                for batch in torch.split(images, self.batch_size):
                    scorer(batch.to(scorer.device))
                    vectors.append(tap(len(batch)).cpu().double())
                sides.append(torch.cat(vectors).numpy())
        norms = np.linalg.norm(sides[0], axis=1) * np.linalg.norm(sides[1], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            distances: npt.NDArray[np.float64] = 1.0 - (sides[0] * sides[1]).sum(axis=1) / norms
        return distances


def draw_paths(
    report: BoundaryReport,
    pairs: PathPairs,
    dataset: Any,
    *,
    class_names: Sequence[str] | None = None,
    num_pictured: int = 24,
    when: str = "",
) -> Figure | None:
    """A picture of some paths of each kind with the images as the data set has them; None where it has no pictures.

    Args:
        report: What was found on P paths.
        pairs: Their pairs.
        dataset: The images, or an `EvaluationView`.
        class_names: A name for each class.
        num_pictured: Pairs to show.
        when: To end the title with, such as "after 3 epochs".
    """
    from toolkit.boundary.pictures import plot_paths

    images = EvaluationView.of(dataset).dataset
    if displayable(images[int(pairs.first[0])]) is None:
        return None
    title = "What the model sees on straight paths between two images"
    return plot_paths(
        report,
        Subset(images, pairs.first.tolist()),
        Subset(images, pairs.second.tolist()),
        labels=pairs.labels,
        class_names=class_names,
        strata=pairs.names,
        n_pairs=num_pictured,
        title=f"{title}, {when}" if when else title,
    )


def triples_of(pairs: PathPairs, count: int) -> list[tuple[int, int, int]]:
    """Three images each to lay a plane through: an image, one of its class, one of another, as far as pairs tell.

    Args:
        pairs: Pairs with `same_class_far` (or near) and `cross_class_near`, which start from the same images; others
            are joined two and two.
        count: How many at most.

    Example:
        >>> pairs = PathPairs(np.array([4, 4, 7]), np.array([1, 2, 3]), np.array([0, 1, 1]),
        ...                   ("same_class_far", "cross_class_near"))
        >>> triples_of(pairs, 2)
        [(4, 1, 2), (4, 2, 7)]
    """
    partner: dict[str, dict[int, int]] = {}
    for name, first, second in zip(pairs.names, pairs.first.tolist(), pairs.second.tolist(), strict=True):
        partner.setdefault(name, {}).setdefault(first, second)
    across = partner.get("cross_class_near", {})
    found: dict[tuple[int, int, int], None] = {}
    for name in ("same_class_far", "same_class_near"):
        for first, second in partner.get(name, {}).items():
            if first in across:
                found.setdefault((first, second, across[first]))
    ends = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    for (first, second), (third, _) in zip(ends, ends[1:] + ends[:1], strict=True):
        if third not in (first, second):
            found.setdefault((first, second, third))
    return list(found)[:count]


def draw_planes(
    model: Callable[[Tensor], Any],
    dataset: Any,
    pairs: PathPairs,
    path: Path,
    *,
    count: int = 3,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    size: int = 64,
    decision: Callable[[Any], Tensor] | None = None,
    precision: str = "float32",
    batch_size: int = 256,
) -> list[dict[str, Any]]:
    """Maps of the classes in planes through three images each, side by side in one file.

    Args:
        model: As for `probe_paths`.
        dataset: The images, or an `EvaluationView`.
        pairs: Whose images to take, see `triples_of`.
        path: The PNG file.
        count: How many planes.
        labels: The class of each image, or None.
        class_names: A name for each class.
        size: Grid points along each side of a plane.
        decision: Makes scores, or classes, of what the model returns.
        precision: "float32" or "bf16".
        batch_size: Images a forward.

    Returns:
        For each plane its `images`, and how many connected `regions` there are of all classes; nothing is written where
        there is no plane, as all images lie on a line.
    """
    from matplotlib.image import imread, imsave

    from toolkit.boundary.pictures import plot_plane

    view = EvaluationView.of(dataset)
    drawn: list[npt.NDArray[np.float32]] = []
    found: list[dict[str, Any]] = []
    for triple in triples_of(pairs, 4 * count):
        if len(found) == count:
            break
        images = load_images(view, triple)
        if not _span_a_plane(images):
            continue
        plane = decision_plane(model, images, size=size, decision=decision, precision=precision, batch_size=batch_size)
        pictures = [view.dataset[index] for index in triple]
        figure = plot_plane(
            plane,
            None if displayable(pictures[0]) is None else pictures,
            class_names,
            labels=None if labels is None else [int(labels[index]) for index in triple],
            title="Decisions in the plane through images {}, {} and {}".format(*triple),
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120)
        buffer.seek(0)
        drawn.append(imread(buffer)[..., :3])
        found.append({"images": list(triple), "regions": plane.n_regions})
    if drawn:
        imsave(path, np.concatenate(drawn, axis=1))
    return found


def save_probe(
    model: Callable[[Tensor], Any],
    walker: PairWalker,
    folder: Path,
    *,
    limit: float | None = None,
    facts: Mapping[str, Any] | None = None,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    num_planes: int = 3,
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Walk all paths and write `boundaries.csv`, `summary.json`, `paths.png` and `planes.png` into a folder.

    Args:
        model: As for `probe_paths`.
        walker: Its paths.
        folder: Where to; it exists. Files of these names are replaced.
        limit: Up to which distance of feature maps images count as redundant, see `redundancy_limit`.
        facts: What else to write into the summary.
        labels: The class of each image, or None.
        class_names: A name for each class.
        num_planes: How many planes through three images to draw; 0 for none.

    Returns:
        The rates of each kind of pairs, as `summarise` tells them, and the files by name.

    Raises:
        ValueError: If the walker has no pairs.
    """
    walked = walker(model)
    if walked is None:
        raise invalid("walker", "one with at least one pair", "none")
    (report, distances), pairs, images = walked, walker.pairs, walker.view.dataset
    rows = summarise(report, pairs, distances=None if walker.layer is None else distances, limit=limit)
    files = {"table": folder / "boundaries.csv"}
    names = ids_of(images)
    files["table"].unlink(missing_ok=True)
    table = PathTable(files["table"], COLUMNS[2:])  # there is no epoch and no step
    table.append(rows_of(report, pairs, str if names is None else names.__getitem__))
    figure = draw_paths(report, pairs, images, class_names=class_names)
    if figure is not None:
        files["picture: paths"] = folder / "paths.png"
        figure.savefig(files["picture: paths"], dpi=120)
    planes = []
    if num_planes:
        planes = draw_planes(
            model,
            walker.view,
            pairs,
            folder / "planes.png",
            count=num_planes,
            labels=labels,
            class_names=class_names,
            decision=walker.decision,
            precision=walker.precision,
            batch_size=walker.batch_size,
        )
        files |= {"picture: planes": folder / "planes.png"} if planes else {}
    files["summary"] = folder / "summary.json"
    summary = {**(facts or {}), "images_evaluated": report.n_evaluations, "kinds": rows, "planes": planes}
    files["summary"].write_text(json.dumps(_without_nan(summary), indent=1) + "\n")
    return rows, files


def _span_a_plane(images: Tensor) -> bool:
    """Whether three images are neither the same nor on a line, as far as their numbers tell."""
    first, second = (images[1:] - images[0]).flatten(1).double()
    lengths = first.norm() * second.norm()
    return bool(lengths > 0) and bool((first @ second / lengths).abs() < 1 - 1e-6)


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
