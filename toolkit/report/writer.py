"""Everything that the page needs, gathered and written as one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import toolkit
from toolkit.drawing import NOTHING, NOTHING_COLOR, class_color, label_text
from toolkit.files import write_whole
from toolkit.frames import videos_of
from toolkit.insight import influential_pairs, most_isolated
from toolkit.report.packing import array_element, json_text, narrowest, plain, text_element
from toolkit.report.projection import points_of
from toolkit.report.thumbnails import MOST_BOXES, Boxes, Sheets, make_sheets, side_for
from toolkit.representations.reduction import METHODS
from toolkit.selection.recut import Recut
from toolkit.selection.result import _STAYING, STATUSES, Selection
from toolkit.validation import check_choice, check_vectors, invalid

#: What tells a report from a file of the user's.
GENERATOR = "dataset-pruning-toolkit report"
#: Bytes of the whole file, and what the thumbnails may have at least when everything else is large.
_MOST_BYTES, _LEAST_SHEET_BYTES = 60_000_000, 8_000_000
#: Bytes of what later cuts are made from, as text: more is left out, and the page has no slider.
_MOST_RECUT_BYTES = 24_000_000
#: Images up to which the nearest other image of each is looked for.
_MOST_FOR_ISOLATED = 100_000
_N_ISOLATED, _N_PAIRS = 120, 200
#: What the page's script can cut anew.
_RECUTS = ("merge_forest", "outlier_forest", "ranking")
_SCRIPTS = ("store.js", "recut.js", "cloud.js", "galleries.js", "timeline.js", "page.js")


def write_report(
    selection: Selection,
    dataset: Any,
    path: str | Path,
    *,
    vectors: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    projection: str = "pca",
    max_images: int = 50_000,
    title: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write one HTML file in which a person turns, searches and cuts anew a selection, without a network.

    The page shows the images as points in space, an image with the one that stands for it and its group, why it went,
    galleries, and a table of the classes. Where the selection has what later cuts are made from, a slider makes them in
    the page, exactly as `Selection.with_keep_fraction` does, and `kept.txt` of the cut can be downloaded.

    Of a detection data set it shows the boxes, which can be switched off, and counts images and boxes by class of
    object; images with several labels are filtered and coloured by each of them. Where ids are those of the frames of
    videos a line for each shows which frames stay.

    The file has at most 60 MB: thumbnails have 64 pixels for up to 12,500 images, 48 up to 22,222, 32 up to 50,000, 24
    up to 88,888 and 16 up to 200,000, and are lossless where that fits, else as good as fits. Those of detection
    data sets, whose objects are small, have 256 pixels for up to 781 images, 192 up to 1,388, 128 up to 3,125 and 96 up
    to 5,555.

    In a distributed run, call it on one rank.

    Args:
        selection: The selection.
        dataset: The images that it was chosen from, N of them: a data set or an `EvaluationView`. Each image is read
            once; those that cannot be read are counted in a `UserWarning` and on the page.
        path: The file. One that exists is replaced if it is such a report, and refused otherwise.
        vectors: Shape (N, D), what the images were compared by: without them the page has no points in space, no
            distances of influential pairs and no images that are unlike all others.
        class_names: A name for each label that is a number, and for the classes of boxes.
        projection: `pca`, or `umap` (needs the extra `umap`).
        max_images: Images with a thumbnail and a point, at most 200,000: of a larger data set a random sample, each
            image with the one that stands for it. Counts and cuts are always of all images.
        title: The page's title.
        seed: Of the sample and of UMAP.
        progress: Whether to show progress bars.

    Returns:
        The path.

    Raises:
        ValueError: If the data set or the vectors are not those of the selection, if vectors are not finite, if an
            option is out of range, or if there is a file of another kind at `path`.
        TypeError: If `max_images` is not a whole number.

    Example:
        >>> import tempfile, torch
        >>> from toolkit import SemanticSelector
        >>> images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> vectors = images.flatten(1).numpy()
        >>> selection = SemanticSelector(vectors, 0.75, scope="dataset", progress=False).select(images)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(selection, images, f"{folder}/report.html", vectors=vectors, progress=False)
        ...     path.read_text()[:15]
        '<!DOCTYPE html>'
    """
    path = Path(path)
    check_place(path)
    check_choice("projection", projection, METHODS)
    if isinstance(max_images, bool) or not isinstance(max_images, (int, np.integer)):
        raise TypeError(f"`max_images` must be a whole number, got {max_images!r}.")
    if max_images < 1:
        raise invalid("max_images", "at least 1", int(max_images))
    if len(dataset) != len(selection):
        raise invalid(
            "dataset", f"the data set of {len(selection)} images that was chosen from", f"{len(dataset)} images"
        )
    matrix = None
    if vectors is not None:
        matrix = check_vectors(vectors, "vectors")
        if len(matrix) != len(selection):
            raise invalid("vectors", f"one for each of the {len(selection)} images", f"{len(matrix)} vectors")
    side_for(min(int(max_images), len(selection)))
    shown = _shown(selection, int(max_images), seed)
    recut = _Recut.of(selection)
    facts = _facts(selection, class_names, title or "What was kept, what went, and why", recut, len(shown), seed)
    arrays = _arrays(selection, shown) | recut.arrays
    if matrix is not None:
        points = points_of(matrix, shown, projection, seed, progress=progress)
        arrays["points"] = points.grid
        facts["projection"] = {"name": projection.upper(), "explained": points.explained}
        arrays |= _found(selection, matrix, facts, progress)
    elements = [array_element(name, array) for name, array in arrays.items()]
    if selection.ids is not None:
        elements.append(text_element("ids", list(selection.ids)))
    page = _Page(facts, elements)
    left = int((_MOST_BYTES - page.size) * 0.749)
    sheets = make_sheets(dataset, shown, max(left, _LEAST_SHEET_BYTES), progress=progress)
    page.add_sheets(sheets)
    page.add_boxes(sheets.boxes, class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.parts())
    return path


class _Recut:
    """What later cuts are made from, if the page can have it, else why not."""

    def __init__(self, arrays: dict[str, Any], facts: dict[str, Any] | None, missing: str) -> None:
        self.arrays = arrays
        self.facts = facts
        self.missing = missing

    @classmethod
    def of(cls, selection: Selection) -> _Recut:
        recut: Recut | None = selection.recut
        if recut is None:
            return cls({}, None, "The selection was stored without what later cuts are made from.")
        arrays = recut.arrays()
        if str(arrays["kind"]) not in _RECUTS:
            return cls({}, None, f"This page cannot cut a selection of this kind ({arrays['kind']}) anew.")
        texts = {name: array.item() for name, array in arrays.items() if array.ndim == 0}
        scores = arrays.pop("outlier_scores", None)
        lists = {f"recut-{name}": narrowest(array) for name, array in arrays.items() if array.ndim}
        if scores is not None:
            lists["scores"] = scores.astype(np.float32)
        n_bytes = sum(array.nbytes for array in lists.values())
        if n_bytes > _MOST_RECUT_BYTES:
            return cls({}, None, f"What later cuts are made from is too large for a page ({n_bytes / 1e6:.0f} MB).")
        return cls(lists, texts, "")


def _facts(
    selection: Selection,
    class_names: Sequence[str] | None,
    title: str,
    recut: _Recut,
    n_shown: int,
    seed: int,
) -> dict[str, Any]:
    """What the page says and how to read its arrays."""
    return {
        "title": title,
        "images": len(selection),
        "shown": n_shown,
        "seed": seed,
        "statuses": STATUSES,
        "staying": [STATUSES[code] for code in _STAYING],
        "cutStatus": selection.cut_status,
        "classes": _class_titles(selection, class_names),
        "colors": _class_colors(selection),
        "several": _several(selection),
        "videos": [video.name for video in videos_of(selection.ids)],
        "boxes": None,
        "edits": [[int(index), bool(stays)] for index, stays in selection.edits.items()],
        "recut": recut.facts,
        "noRecut": recut.missing,
        "config": plain(dict(selection.config)),
        "fingerprint": selection.fingerprint,
        "version": toolkit.__version__,
        "projection": None,
        "metric": None,
        "isolatedNote": "",
    }


def _class_titles(selection: Selection, class_names: Sequence[str] | None) -> list[str] | None:
    """What to call each class: each label, and images without any where labels are sets."""
    if selection.labels is None:
        return None
    titles = [label_text(label, class_names) for label in selection.labels.occurrences().labels]
    return titles + [NOTHING] * (() in selection.labels.sets)


def _class_colors(selection: Selection) -> list[str]:
    """The colour of each class: that of its number, so that it has the same in every report of the data set."""
    if selection.labels is None:
        return []
    labels = selection.labels.occurrences().labels
    are_numbers = all(isinstance(label, int) and label >= 0 for label in labels)
    numbers = [label if are_numbers and isinstance(label, int) else place for place, label in enumerate(labels)]
    return [class_color(number) for number in numbers] + [NOTHING_COLOR] * (() in selection.labels.sets)


def _several(selection: Selection) -> dict[str, Any] | None:
    """Where images have several labels or none: whether labels repeat within an image, as those of its boxes do."""
    if selection.labels is None or selection.labels.are_single:
        return None
    has_nothing = () in selection.labels.sets
    return {
        "counted": selection.labels.repeats is not None,
        "nothing": len(selection.labels.occurrences().labels) if has_nothing else -1,
    }


def _arrays(selection: Selection, shown: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """The selection, and which images have a thumbnail."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "shown": shown,
        "status": selection.status,
        "group": selection.group,
        "representative": selection.representative,
        "distance": selection.distance.astype(np.float32),
    }
    if selection.labels is not None:
        arrays["codes"] = selection.labels.codes
        if not selection.labels.are_single:
            found = selection.labels.occurrences()
            arrays |= {"object-image": found.image, "object-label": found.label, "object-count": found.count}
    videos = videos_of(selection.ids)
    if videos:
        arrays["video-frames"] = np.concatenate([video.indices for video in videos])
        arrays["video-lengths"] = np.array([len(video.indices) for video in videos])
    return arrays


def _shown(selection: Selection, most: int, seed: int) -> npt.NDArray[np.int64]:
    """The images to show, those of a class and of a group next to each other."""
    chosen = np.arange(len(selection))
    if len(selection) > most:
        # Each image brings the one that stands for it, which comes first so that the last is not without it.
        drawn = np.random.default_rng(seed).permutation(len(selection))
        standing = np.where(selection.representative[drawn] >= 0, selection.representative[drawn], drawn)
        both = np.stack([standing, drawn], axis=1).ravel()
        chosen = both[np.sort(np.unique(both, return_index=True)[1])[:most]]
    keys = [chosen, selection.group[chosen]]
    if selection.labels is not None:
        keys.append(selection.labels.codes[chosen])
    return chosen[np.lexsort(keys)]


def _found(
    selection: Selection, vectors: npt.NDArray[Any], facts: dict[str, Any], progress: bool
) -> dict[str, npt.NDArray[Any]]:
    """The images unlike all others and the closest pairs of different labels, where there are any."""
    metric = _metric_of(selection)
    facts["metric"] = metric
    arrays: dict[str, npt.NDArray[Any]] = _spread(selection, vectors)
    if 2 <= len(selection) <= _MOST_FOR_ISOLATED:
        isolated = most_isolated(vectors, _N_ISOLATED, metric=metric, progress=progress)
        arrays["isolated"], arrays["isolated-nearest"] = isolated.indices, isolated.nearest
        arrays["isolated-distance"] = isolated.distances.astype(np.float32)
    elif len(selection) > _MOST_FOR_ISOLATED:
        facts["isolatedNote"] = f"Not looked for among more than {_MOST_FOR_ISOLATED:,} images."
    if len(selection.influential) and selection.labels is not None:
        groups = np.full(len(selection), -1, np.int64)
        groups[selection.influential] = selection.group[selection.influential]
        pairs = influential_pairs(vectors, groups, selection.labels.codes, _N_PAIRS, metric=metric)
        arrays["pairs"], arrays["pairs-distance"] = pairs.pairs, pairs.distances.astype(np.float32)
    return arrays


def _spread(selection: Selection, vectors: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """For each image the largest dissimilarity within its group, where trees do not tell it and vectors do.

    Complete linkage merges by it, so that the page takes it from the trees, at every cut.
    """
    recut = selection.recut
    trees = getattr(getattr(recut, "forest", recut), "trees", None)
    reduced = selection.config.get("n_dim") is not None
    if reduced or not trees or trees[0].metric != "cosine" or trees[0].linkage == "complete":
        return {}
    from toolkit.selection.feature_map import FeatureMapSelector

    largest = FeatureMapSelector.group_diameters(selection, vectors)
    spread = np.full(len(selection), np.nan, np.float32)
    grouped = selection.group >= 0
    spread[grouped] = largest[selection.group[grouped]]
    return {"spread": spread}


def _metric_of(selection: Selection) -> str:
    """The metric that the selection's trees were built with, where vectors have it; else `euclidean`."""
    trees = getattr(selection.recut, "trees", None)
    return "cosine" if trees and trees[0].metric == "cosine" else "euclidean"


class _Page:
    """The file's parts, in the order in which a browser reads them: the thumbnails come after all that draws."""

    def __init__(self, facts: dict[str, Any], elements: list[str]) -> None:
        self.facts = facts
        self.elements = elements
        self.sheets: list[bytes] = []
        self.template = _asset("template.html")
        self.style = _asset("page.css")
        self.script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "\n})();\n"

    @property
    def size(self) -> int:
        """Bytes of everything but the thumbnails, and a little more."""
        return len(json_text(self.facts)) + len(self.style) + sum(map(len, self.elements)) + len(self.script) + 200_000

    def add_sheets(self, sheets: Sheets) -> None:
        """Take up the thumbnails."""
        self.sheets = sheets.contents
        self.elements.append(array_element("sizes", sheets.sizes))
        self.facts["sheets"] = {
            "count": len(sheets.contents),
            "side": sheets.side,
            "columns": sheets.columns,
            "perSheet": sheets.per_sheet,
            "quality": sheets.quality,
            "unreadable": sheets.n_unreadable,
        }

    def add_boxes(self, boxes: Boxes | None, class_names: Sequence[str] | None) -> None:
        """Take up the boxes that the page draws over the thumbnails; too many are left out, which it says."""
        if boxes is None:
            return
        numbers, classes = np.unique(boxes.classes, return_inverse=True)
        titles = [label_text(number, class_names) for number in numbers.tolist()]
        drawn = len(classes) <= MOST_BOXES
        self.facts["boxes"] = {
            "drawn": drawn,
            "titles": titles,
            "colors": [class_color(number) for number in numbers.tolist()],
            "totals": np.bincount(classes, minlength=len(titles)).tolist(),
        }
        if drawn:
            arrays: dict[str, npt.NDArray[Any]] = {
                "box-counts": boxes.counts,
                "box-classes": classes,
                "box-corners": boxes.corners,
            }
            self.elements += [array_element(name, array) for name, array in arrays.items()]

    def parts(self) -> Iterator[str]:
        """The text of the page."""
        known = {
            "GENERATOR": html.escape(GENERATOR),
            # What UTF-8 cannot hold (bytes of file names that are no text) is shown as unknown.
            "TITLE": html.escape(self.facts["title"]).encode("ascii", "xmlcharrefreplace").decode(),
            "STYLE": self.style,
            "FACTS": json_text(self.facts),
            "ARRAYS": "".join(self.elements),
            "SCRIPT": self.script,
            "SHEETS": None,
        }
        for position, piece in enumerate(self.template.split("%%")):
            if position % 2 == 0:
                yield piece
            elif (text := known[piece]) is not None:
                yield text
            else:
                for number, content in enumerate(self.sheets):
                    yield f'<script type="text/plain" id="sheet-{number}">'
                    yield base64.b64encode(content).decode()
                    yield "</script>\n"


def _asset(name: str) -> str:
    return resources.files("toolkit.report").joinpath(name).read_text(encoding="utf-8")


def check_place(path: Path) -> None:
    """Refuse to write over what is no report."""
    if path.is_dir():
        raise invalid("path", "a file", f"the folder {str(path)!r}")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(2048)
        if f'<meta name="generator" content="{GENERATOR}">'.encode() not in start:
            raise invalid("path", "a new file or a report to replace", f"{str(path)!r}, which is another kind of file")
