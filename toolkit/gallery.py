"""The pictures that go with a selection, as `toolkit.select` draws them; for use without the command line too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit import plotting
from toolkit.boundary.curves import plot_crossing_curve
from toolkit.frames import videos_of
from toolkit.insight import influential_pairs, most_isolated, near_duplicates
from toolkit.report import write_report
from toolkit.representations import EvaluationView, WaveletCoefficients
from toolkit.selection.recut import MergeForest
from toolkit.selection.ssim import SSIMSelector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toolkit.selection import Selection

log = logging.getLogger(__name__)

#: Images up to which all pairs are drawn: the matrix, the graph and the spectrum.
_MAX_MATRIX = 2_000
_DPI = 120
#: Pairs found, from which those are shown that repeat no image.
_MANY = 500

Drawing = Callable[[], "Figure"]


def save_pictures(
    selection: Selection,
    dataset: Any,
    folder: str | Path,
    *,
    selector: Any = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Path]:
    """Draw what can be seen of a selection, each picture a file.

    Always, where there is something to show: `groups.png` (the largest groups, who stays and who goes),
    `kept_fraction.png` (how much stays, against the threshold), `timeline.png` where images are named like the frames
    of videos (which of them stay) and, where `keep_fraction="auto"` chose, `crossing_rate.png` (how often paths to
    representatives cross a boundary, against how much goes). Images have the boxes of their objects. With a selector
    that turns images into vectors: `near_duplicates.png`, `isolated.png` (images unlike all others), `influential.png`
    (alike images with different labels: candidates for wrong ones) and, of wavelet coefficients, `band_energy.png`.
    With an `SSIMSelector` on at most 2,000 images: `similarity.png`, `similarity_graph.png` and `spectrum.png`.

    Args:
        selection: The selection.
        dataset: The images that it was chosen from: a data set or an `EvaluationView`.
        folder: Where to; made if it does not exist.
        selector: What made the selection.
        class_names: A name for each label that is a number.

    Returns:
        The title of each picture that was drawn, and its file.

    Example:
        >>> import tempfile, torch
        >>> from toolkit import WaveletSelector
        >>> images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> selector = WaveletSelector(0.75, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pictures = save_pictures(selector.select(images), images, folder, selector=selector)
        >>> sorted(path.name for path in pictures.values())
        ['band_energy.png', 'groups.png', 'isolated.png', 'kept_fraction.png', 'near_duplicates.png']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, Any] = {"labels": _labels_as_shown(selection), "class_names": class_names}
    images = dataset.dataset if isinstance(dataset, EvaluationView) else dataset
    drawings: dict[str, tuple[str, Drawing]] = {
        "groups.png": (
            "the largest groups",
            lambda: plotting.plot_groups(selection, images, class_names=class_names),
        )
    }
    if videos_of(selection.ids):
        drawings["timeline.png"] = ("frames along each sequence", lambda: plotting.plot_timeline(selection))
    forest = getattr(selection.recut, "forest", selection.recut)
    if isinstance(forest, MergeForest):
        drawings["kept_fraction.png"] = ("kept fraction", lambda: _plot_curve(selection, forest))
    if "auto" in selection.config:
        drawings["crossing_rate.png"] = (
            "crossing rate",
            lambda: plot_crossing_curve(selection.config["auto"]),
        )
    if isinstance(selector, SSIMSelector):
        if len(selection) <= _MAX_MATRIX and selector.scope == "dataset":
            drawings |= _of_similarity(selection, dataset, images, selector, shown)
    else:
        drawings |= _of_vectors(selection, dataset, images, selector, shown)
    saved = {}
    for name, (title, draw) in drawings.items():
        try:
            figure = draw()
        except ValueError as error:
            # Nothing to show: no group of two images, no threshold, samples that are no images.
            log.info("no %s: %s", name, error)
            continue
        figure.savefig(folder / name, dpi=_DPI)
        saved[title] = folder / name
    return saved


def save_report(
    selection: Selection,
    dataset: Any,
    path: str | Path,
    *,
    selector: Any = None,
    class_names: Sequence[str] | None = None,
    projection: str = "pca",
    title: str | None = None,
) -> Path:
    """Write the page on which a person looks through a selection, with the selector's vectors where it has any.

    Args:
        selection: The selection.
        dataset: The images that it was chosen from: a data set or an `EvaluationView`.
        path: The file.
        selector: What made the selection.
        class_names: A name for each label that is a number.
        projection: How vectors are shown as points: `pca`, or `umap` (an extra).
        title: The page's title.

    Returns:
        The path.
    """
    get = getattr(selector, "representation", None)
    representation = get() if callable(get) else None
    vectors = None if representation is None else representation.vectors(dataset)
    return write_report(
        selection, dataset, path, vectors=vectors, class_names=class_names, projection=projection, title=title
    )


def _plot_curve(selection: Selection, forest: MergeForest) -> Figure:
    """Kept images against the threshold, with this selection's place on the curve."""
    thresholds, kept = forest.curve()
    reached = np.flatnonzero(kept == len(selection.kept))
    chosen = float(thresholds[reached[0]]) if len(reached) else None
    tree = forest.trees[0]
    kinds = {"cosine": "cosine dissimilarity", "precomputed": "1 - similarity", "euclidean": "distance"}
    what = "Ward distance" if tree.linkage == "ward" else kinds[tree.metric]
    return plotting.plot_kept_fraction(
        thresholds,
        kept / len(selection),
        chosen=chosen,
        kept_at_chosen=None if chosen is None else len(selection.kept) / len(selection),
        xlabel=f"{what} up to which images are merged",
    )


def _of_vectors(
    selection: Selection, dataset: Any, images: Any, selector: Any, shown: dict[str, Any]
) -> dict[str, tuple[str, Drawing]]:
    """The pictures that need the images' vectors."""
    get = getattr(selector, "representation", None)
    representation = get() if callable(get) else None
    if representation is None:
        return {}
    vectors = representation.vectors(dataset)
    metric = getattr(selector, "metric", "euclidean")

    def duplicates() -> Figure:
        found = near_duplicates(vectors, 20, metric=metric)
        return plotting.plot_pairs(
            images, found.pairs, distances=found.distances, title="The nearest pairs of images", **shown
        )

    def isolated() -> Figure:
        found = most_isolated(vectors, 24, metric=metric)
        return plotting.plot_isolated(images, found.indices, distances=found.distances, **shown)

    def influential() -> Figure:
        found = influential_pairs(vectors, _mixed_groups(selection), _codes(selection), _MANY, metric=metric)
        few = _each_image_once(found.pairs)
        return plotting.plot_pairs(
            images,
            found.pairs[few],
            distances=found.distances[few],
            title="Alike images with different labels",
            **shown,
        )

    def energy() -> Figure:
        found = representation.band_energy(vectors, representation.image_shape(dataset))
        return plotting.plot_band_energy(list(found), list(found.values()))

    drawings: dict[str, tuple[str, Drawing]] = {
        "near_duplicates.png": ("the nearest pairs", duplicates),
        "isolated.png": ("images unlike all others", isolated),
    }
    if len(selection.influential):
        drawings["influential.png"] = ("alike images with different labels", influential)
    if isinstance(representation, WaveletCoefficients):
        drawings["band_energy.png"] = ("energy by band", energy)
    return drawings


def _of_similarity(
    selection: Selection, dataset: Any, images: Any, selector: SSIMSelector, shown: dict[str, Any]
) -> dict[str, tuple[str, Drawing]]:
    """The pictures that need the similarity of all pairs."""
    matrix = selector.similarities(dataset)
    name = "SSIM" if selector.similarity is None else "similarity"
    named = {"similarity_name": name, **shown}

    def duplicates() -> Figure:
        found = near_duplicates(similarity=matrix, n=20)
        title = "The most similar pairs of images"
        return plotting.plot_pairs(images, found.pairs, similarities=found.similarities, title=title, **named)

    def isolated() -> Figure:
        found = most_isolated(similarity=matrix, n=24)
        return plotting.plot_isolated(images, found.indices, similarities=found.similarities, **named)

    def influential() -> Figure:
        found = influential_pairs(None, _mixed_groups(selection), _codes(selection), _MANY, similarity=matrix)
        few = _each_image_once(found.pairs)
        assert found.similarities is not None
        return plotting.plot_pairs(
            images,
            found.pairs[few],
            similarities=found.similarities[few],
            title="Alike images with different labels",
            **named,
        )

    def spectrum() -> Figure:
        n_groups = len(np.unique(selection.group[selection.group >= 0]))
        return plotting.plot_spectrum(selector.eigenvalues(matrix), eigengap=selector.eigengap, n_groups=n_groups)

    drawings: dict[str, tuple[str, Drawing]] = {
        "near_duplicates.png": ("the most similar pairs", duplicates),
        "isolated.png": ("images unlike all others", isolated),
        "similarity.png": (
            "similarity of all pairs",
            lambda: plotting.plot_similarity_matrix(matrix, groups=selection.group, name=name),
        ),
        "similarity_graph.png": (
            "graph of the most similar images",
            lambda: plotting.plot_similarity_graph(matrix, images, n_edges=60, name=name, **shown),
        ),
        "spectrum.png": ("spectrum of the graph Laplacian", spectrum),
    }
    if len(selection.influential):
        drawings["influential.png"] = ("alike images with different labels", influential)
    return drawings


def _labels_as_shown(selection: Selection) -> list[Any] | None:
    """Each image's label, or the tuple of them where it has several or none, as often as it has each."""
    if selection.labels is None:
        return None
    found = selection.labels.occurrences()
    labels = [found.labels[k] for k in np.repeat(found.label, found.count).tolist()]
    sizes = np.bincount(found.image, found.count, len(selection)).astype(np.int64)
    ends = np.cumsum(sizes).tolist()
    starts = [0, *ends]
    single = selection.labels.are_single
    return [labels[start] if single else tuple(labels[start:end]) for start, end in zip(starts, ends, strict=False)]


def _codes(selection: Selection) -> npt.NDArray[np.int64]:
    """The class of each image, in which those with the same set of labels are."""
    assert selection.labels is not None  # influential images have labels
    return selection.labels.codes


def _each_image_once(pairs: npt.NDArray[np.int64]) -> list[int]:
    """Which pairs to show, the first first, so that no image is shown twice."""
    seen: set[int] = set()
    chosen = []
    for position, pair in enumerate(pairs.tolist()):
        if seen.isdisjoint(pair):
            seen.update(pair)
            chosen.append(position)
    return chosen


def _mixed_groups(selection: Selection) -> Any:
    """Each influential image's group; -1 for all others."""
    groups = np.full(len(selection), -1, np.int64)
    groups[selection.influential] = selection.group[selection.influential]
    return groups
