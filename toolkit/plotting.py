"""Pictures of selections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.drawing import (
    BLUE,
    DARK,
    MUTED,
    ORANGE,
    Picture,
    add_key,
    check_length,
    check_number,
    class_name,
    displayable,
    draw_boxes,
    fit,
    key_of_boxes,
    label_text,
    labels_differ,
    new_figure,
    picture_at,
    text_width,
    wrapped,
)
from toolkit.frames import longest_gap, videos_of
from toolkit.insight import near_duplicates
from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toolkit.selection import Selection

__all__ = [
    "displayable",
    "plot_band_energy",
    "plot_groups",
    "plot_isolated",
    "plot_kept_fraction",
    "plot_pairs",
    "plot_similarity_graph",
    "plot_similarity_matrix",
    "plot_spectrum",
    "plot_timeline",
]

#: Images on a sheet at most: more cannot be told apart.
_MOST_IMAGES = 100
#: Rows and columns of a similarity matrix at most.
_MOST_ROWS = 2000
#: Sides of nodes from one to the next in a graph: at least, and along a line.
_PITCH, _LENGTH = 1.3, 1.8

#: Columns of a line of frames at most: more frames share one.
_MOST_COLUMNS = 900

_LINE = "#7d97a8"
_REMOVED = "#dbe5ec"
_TWO_CLASSES = (BLUE, ORANGE)
_CLASS_COLORS = (
    *_TWO_CLASSES,
    *("#2a9d5c", "#8e44ad", "#d4a017", "#c2185b", "#5d4037", "#00838f", "#7f8c8d", "#9e9d24"),
)


def plot_groups(
    selection: Selection,
    dataset: Any,
    n_groups: int = 12,
    n_members: int = 8,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """The largest groups of alike images: the one that stays framed in green, those that go with their distances.

    Images of a detection data set have their boxes, here and in all pictures of images, one colour a class.

    Args:
        selection: The selection.
        dataset: The data set that it was chosen from.
        n_groups: Groups to show, the largest first, ties to the one found first.
        n_members: Images of a group to show, the one that stays included, the closest to it first.
        class_names: A name for each label that is a number.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If no group has two images, or the data set's samples are no images.
    """
    from matplotlib.figure import Figure

    gone = np.flatnonzero((selection.representative >= 0) & (selection.representative != np.arange(len(selection))))
    standing, sizes = np.unique(selection.representative[gone], return_counts=True)
    if not len(standing):
        raise invalid("selection", "one with a group of two images or more", "one without")
    shown = standing[np.argsort(-sizes, kind="stable")][:n_groups]
    columns = min(n_members, int(sizes.max()) + 1)
    rows: list[list[tuple[int, Picture]]] = []
    for stays in shown:
        members = gone[selection.representative[gone] == stays]
        members = members[np.argsort(selection.distance[members], kind="stable")]
        few = [int(stays), *members[: columns - 1].tolist()]
        rows.append([(index, picture_at(dataset, index, "dataset")) for index in few])
    pictures = [picture for row in rows for _, picture in row]
    key = key_of_boxes(pictures, class_names)
    side, high = _size_of(pictures, 1.1, 1.7)
    height = (high + 0.2) * len(shown) + (0.3 if key else 0.0)
    figure = Figure(figsize=(side * columns + 1.6, height), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes, (index, picture) in zip(line, row, strict=False):
            drawn = axes.imshow(picture.image, cmap="gray", interpolation="auto" if side > 1.1 else "nearest")
            draw_boxes(drawn, picture.boxes)
            axes.set_title("kept" if axes is line[0] else f"{selection.distance[index]:.2g}", fontsize=7, pad=3)
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(bool(axes.images) and axes is line[0])
            axes.spines[:].set(color="green", linewidth=3)
        label = ""
        if selection.labels is not None:
            labels = selection.labels.sets[selection.labels.codes[row[0][0]]]
            label = "\n".join(wrapped(label_text(labels[0] if len(labels) == 1 else labels, class_names), 1.4, 7, 4))
        size = int(sizes[standing == row[0][0]][0]) + 1
        line[0].set_ylabel(f"{label}\n{size} images", fontsize=7, rotation=0, ha="right", va="center")
    add_key(figure, key, loc="outside lower center")
    return figure


def plot_pairs(
    dataset: Any,
    pairs: npt.ArrayLike,
    other_dataset: Any = None,
    *,
    distances: npt.ArrayLike | None = None,
    similarities: npt.ArrayLike | None = None,
    similarity_name: str = "similarity",
    labels: Sequence[Any] | None = None,
    other_labels: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    captions: tuple[str, str] | None = None,
    mirrored: npt.ArrayLike | None = None,
    title: str = "Pairs of images",
    n_pairs: int = 20,
) -> Figure:
    """A sheet of pairs side by side: near-duplicates, images of two classes that look alike, test images with a twin.

    Below each image stand its class and index. Where the classes of a pair differ they are in two colours; of images
    with several labels it counts which labels there are, not how often.

    Args:
        dataset: The data set of the first image of each pair.
        pairs: Indices of shape (P, 2), in the order to show them.
        other_dataset: The data set of the second image; None for the same.
        distances: Shape (P,), written above the pairs.
        similarities: Shape (P,), written above the pairs.
        similarity_name: What to call them.
        labels: The labels of the images of `dataset`.
        other_labels: The labels of those of `other_dataset`; None for `labels` where that is none.
        class_names: A name for each label that is a number.
        captions: What the first and the second images are, such as ("test", "training"), written at their indices.
        mirrored: bool of shape (P,): the pairs that are alike once one image is mirrored, which is said above them.
        title: The title.
        n_pairs: Pairs to show at most, no more than 50.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If there are no pairs, arrays differ in length, an index is out of range, or a sample is no image.
    """
    shown = _check_indices("pairs", pairs, 2)
    others = dataset if other_dataset is None else other_dataset
    if other_dataset is None and other_labels is None:
        other_labels = labels
    values = {
        name: check_length(name, value, len(shown), "pair")
        for name, value in (("distances", distances), ("similarities", similarities), ("mirrored", mirrored))
        if value is not None
    }
    count = min(len(shown), check_number("n_pairs", n_pairs, _MOST_IMAGES // 2))
    columns = min(count, 4 if count > 6 else 3 if count > 4 else 2)
    note = f"{count:,} of {len(shown):,} pairs" if count < len(shown) else ""
    sides = [(dataset, "dataset"), (others, "dataset" if other_dataset is None else "other_dataset")]
    pictures = [
        picture_at(source, int(index), name)
        for pair in shown[:count]
        for (source, name), index in zip(sides, pair, strict=True)
    ]
    names = []
    for pair in shown[:count].tolist():
        first, second = (
            None if of is None else of[index] for of, index in zip((labels, other_labels), pair, strict=True)
        )
        for own, other in ((first, second), (second, first)):
            names.append("" if own is None else label_text(_own_first(own, other), class_names))
    sheet = _Sheet(pictures, names, columns, 2, title, note, 1 if values else 0, key_of_boxes(pictures, class_names))
    for position, (first, second) in enumerate(shown[:count]):
        texts = []
        if "similarities" in values:
            texts.append(f"{similarity_name} {values['similarities'][position]:.3f}")
        if "distances" in values:
            texts.append(f"distance {_decimals(values['distances'][position])}")
        if "mirrored" in values and values["mirrored"][position]:
            texts.append("mirrored")
        sheet.add_header(position, texts)
        differ = (
            labels is not None
            and other_labels is not None
            and labels_differ(labels[int(first)], other_labels[int(second)])
        )
        for side, index in enumerate((first, second)):
            caption = f"{captions[side]} {index}" if captions is not None else f"#{index}"
            sheet.add_image(position, side, caption, _TWO_CLASSES[side] if differ else DARK)
    return sheet.figure


def plot_isolated(
    dataset: Any,
    indices: npt.ArrayLike,
    *,
    distances: npt.ArrayLike | None = None,
    similarities: npt.ArrayLike | None = None,
    similarity_name: str = "similarity",
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "Images least like any other",
    n_images: int = 24,
) -> Figure:
    """A sheet of single images, such as those farthest from all others, with class, index and the distance of each.

    `plot_pairs` shows them beside the image that is nearest.

    Args:
        dataset: The data set.
        indices: Indices of shape (n,), in the order to show them.
        distances: Shape (n,): how far the nearest other image is.
        similarities: Shape (n,): how similar the most similar other image is.
        similarity_name: What to call them.
        labels: The labels of the images.
        class_names: A name for each label that is a number.
        title: The title.
        n_images: Images to show at most, no more than 100.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If there are no indices, arrays differ in length, an index is out of range, or a sample is no image.
    """
    shown = _check_indices("indices", indices, 1)
    values = {
        name: check_length(name, value, len(shown), "image")
        for name, value in (("distances", distances), ("similarities", similarities))
        if value is not None
    }
    count = min(len(shown), check_number("n_images", n_images, _MOST_IMAGES))
    columns = min(count, 8 if count > 15 else 5)
    note = f"{count:,} of {len(shown):,} images" if count < len(shown) else ""
    if values:
        kinds = " and ".join([similarity_name] * ("similarities" in values) + ["distance"] * ("distances" in values))
        note = f"{note + '; ' if note else ''}above each its {kinds} to the image most like it"
    pictures = [picture_at(dataset, int(index), "dataset") for index in shown[:count]]
    names = [class_name(labels, index, class_names) for index in shown[:count]]
    sheet = _Sheet(pictures, names, columns, 1, title, note, len(values), key_of_boxes(pictures, class_names))
    for position, index in enumerate(shown[:count]):
        texts = []
        if "similarities" in values:
            texts.append(f"{similarity_name} {values['similarities'][position]:.3f}")
        if "distances" in values:
            texts.append(f"distance {_decimals(values['distances'][position])}")
        sheet.add_header(position, texts)
        sheet.add_image(position, 0, f"#{index}", DARK)
    return sheet.figure


def plot_band_energy(
    names: Sequence[str], energy: npt.ArrayLike, *, title: str = "Energy of the wavelet coefficients by band"
) -> Figure:
    """Bars of the energy in each band, on a logarithmic axis, with its share.

    Args:
        names: The bands, from top to bottom.
        energy: Shape (B,): mean energy of an image in the band, as `WaveletCoefficients.band_energy` gives it.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If names and energies differ in number, or an energy is negative or not finite.
    """
    values = np.asarray(energy, np.float64)
    if values.ndim != 1 or len(values) != len(names) or not len(values):
        raise invalid("energy", f"of shape ({len(names)},), one for each name", values.shape)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise invalid("energy", "finite and 0 or more", values.tolist())
    total = values.sum() or 1.0
    figure = new_figure(7.5, 1.5 + 0.34 * len(values))
    axes = figure.subplots()
    positive = values[values > 0]
    low = 10.0 ** np.floor(np.log10(positive.min()) - 0.3) if len(positive) else 0.1
    high = positive.max() if len(positive) else 1.0
    places = np.arange(len(values))
    axes.barh(places, np.maximum(values, low) - low, left=low, color=BLUE, height=0.7)
    for place, value in zip(places, values, strict=True):
        share = 100 * value / total
        digits = 1 if share >= 1 else 2
        text = "0 %" if value == 0 else f"{share:.{digits}f} %" if share >= 0.01 else "< 0.01 %"
        axes.annotate(
            text, (max(value, low), place), (4, 0), textcoords="offset points", va="center", fontsize=9, color=DARK
        )
    # Room on the right for the share behind the longest bar.
    axes.set(xscale="log", xlim=(low, high * (high / low) ** 0.16), ylim=(len(values) - 0.4, -0.6))
    axes.set_yticks(places, [fit(str(name), 2.2, 9) for name in names], parse_math=False, fontsize=9)
    axes.set_xlabel("mean sum of squared coefficients of an image, and the share of all bands")
    axes.set_title(title, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def plot_kept_fraction(
    thresholds: npt.ArrayLike,
    kept: npt.ArrayLike,
    *,
    chosen: float | None = None,
    kept_at_chosen: float | None = None,
    xlabel: str = "distance up to which images are merged",
    title: str = "Share of images kept",
) -> Figure:
    """The share of images kept against the threshold, as steps, with the chosen point marked.

    Args:
        thresholds: Shape (T,), ascending (distances) or descending (similarities): where the share changes.
        kept: Shape (T,): the share from each threshold on, in [0, 1].
        chosen: The threshold that was chosen.
        kept_at_chosen: The share there; None reads it off the curve.
        xlabel: What the threshold is, with its unit.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If there are no thresholds, they are not finite or not sorted, or shares are not as many or leave
            [0, 1].
    """
    from matplotlib.ticker import PercentFormatter

    x, y = np.asarray(thresholds, np.float64), np.asarray(kept, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise invalid("thresholds", "a vector of finite numbers", x)
    steps = np.diff(x)
    if (steps < 0).any() and (steps > 0).any():
        raise invalid("thresholds", "sorted", "numbers that go up and down")
    if y.shape != x.shape or not ((y >= 0) & (y <= 1)).all():
        raise invalid("kept", f"of shape {x.shape} and in [0, 1]", y)
    falling = bool((steps < 0).any())
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    # Drawn points are limited: a merge tree has as many as images.
    every = np.unique(np.linspace(0, len(x) - 1, min(len(x), 4000)).round().astype(np.int64))
    axes.step(x[every], y[every], where="post", color=BLUE, linewidth=1.8)
    axes.fill_between(x[every], y[every], step="post", color=BLUE, alpha=0.12, linewidth=0)
    if chosen is not None:
        sign = -1 if falling else 1
        before = int(np.searchsorted(sign * x, sign * chosen, side="right")) - 1
        at = kept_at_chosen if kept_at_chosen is not None else float(y[before]) if before >= 0 else 1.0
        text = f"{100 * at:.1f} % kept at {chosen:.3g}"
        axes.plot([chosen], [at], "o", color=ORANGE, markersize=8, zorder=3, label=text)
        axes.axvline(chosen, color=ORANGE, linestyle="--", linewidth=1)
        axes.axhline(at, color=ORANGE, linestyle="--", linewidth=1)
        # The curve falls: below it on the left or above it on the right there is room.
        bottom = 0.0 if y.min() < 0.5 else float(y.min())
        convex = float(y[np.abs(x - (x[0] + x[-1]) / 2).argmin()]) < (1 + bottom) / 2
        anchor = (0.99, 0.9) if convex else (0.02, 0.04)
        axes.legend(loc="upper right" if convex else "lower left", bbox_to_anchor=anchor, labelcolor=ORANGE)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    # A tree that stops early takes the upper end only.
    gone = 1 - float(y.min())
    axes.set_ylim(0 if gone > 0.5 else max(0.0, 1 - 1.25 * gone - 0.002), 1 + 0.03 * min(1.0, 2 * gone))
    axes.set_xmargin(0.02)
    axes.set_ylabel("images kept")
    axes.set_xlabel(xlabel, parse_math=False)
    axes.set_title(title, parse_math=False)
    if falling:
        axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_similarity_matrix(
    similarity: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    name: str = "similarity",
    xlabel: str = "image",
    ylabel: str = "image",
    title: str = "Similarity of all pairs of images",
) -> Figure:
    """The matrix of similarities as a picture, the images of a group side by side where groups are given.

    Args:
        similarity: Shape (N, N), or (M, N) for test against training images; at most 2,000 rows and columns.
        groups: int of shape (N,): the group of each image, -1 for none; rows and columns are put in their order, the
            largest group first, and groups of 1 % of the images or more are outlined. Needs a square matrix.
        name: What the values are, written at the colour bar.
        xlabel: What the columns are.
        ylabel: What the rows are.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If the matrix is empty, too large or not finite, or the groups do not fit it.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    values = np.asarray(similarity)
    if values.ndim != 2 or 0 in values.shape or max(values.shape) > _MOST_ROWS:
        raise invalid("similarity", f"a matrix of 1 to {_MOST_ROWS:,} rows and columns", values.shape)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise invalid("similarity", "finite", f"{int((~np.isfinite(values)).sum())} NaN or infinite values")
    boxes: list[tuple[int, int]] = []
    if groups is not None:
        group = np.asarray(groups)
        if values.shape[0] != values.shape[1] or group.shape != values.shape[:1] or group.dtype.kind not in "iu":
            raise invalid("groups", f"integers of shape ({len(values)},), with a square matrix", group.shape)
        order, boxes = _order_of_groups(group)
        values = values[np.ix_(order, order)]
        xlabel, ylabel = f"{xlabel} (in the order of groups)", f"{ylabel} (in the order of groups)"
    rows, columns = values.shape
    width = 7.4
    height = float(np.clip(width * rows / columns, 2.6, 9.0))
    figure = new_figure(width + 1.2, height)
    axes = figure.subplots()
    # White is 0: unlike images. The ends do not depend on the images where -1 and 1 hold them: pictures compare.
    end = max(1.0, float(np.abs(values).max()))
    norm = Normalize(-end, end)
    # Where there are more images than dots their values are averaged.
    smooth = "auto" if max(values.shape) > 700 else "nearest"
    drawn = axes.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto", interpolation=smooth)
    if boxes:
        # Those that cover more than their outline does.
        large = [(start, size) for start, size in boxes if size >= max(2, len(values) / 100)]
        outlines = [Rectangle((start - 0.5, start - 0.5), size, size) for start, size in large]
        axes.add_collection(PatchCollection(outlines, facecolor="none", edgecolor=DARK, linewidth=0.6))
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(name, parse_math=False)
    axes.set_xlabel(xlabel, parse_math=False)
    axes.set_ylabel(ylabel, parse_math=False)
    axes.set_title(title, parse_math=False)
    return figure


def plot_similarity_graph(
    similarity: npt.ArrayLike,
    dataset: Any,
    *,
    min_similarity: float | None = None,
    n_edges: int | None = None,
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "similarity",
    title: str = "The most similar images",
    n_images: int = 60,
) -> Figure:
    """The graph of the most similar images: images are the nodes, a line is the wider the more similar its ends are.

    Images without a line are left out. Of more than `n_images` those of the strongest lines stay. Each connected part
    is laid out by itself, distances on paper following the number of lines between two images.

    Args:
        similarity: A symmetric matrix of shape (N, N).
        dataset: The data set of the N images.
        min_similarity: Lines for pairs that are at least this similar.
        n_edges: Lines for this many of the most similar pairs; 60 where there is no `min_similarity` either.
        labels: The labels of the images: frames of nodes are coloured by class if there are two classes or more.
        class_names: A name for each label that is a number.
        name: What the values are, written at the key.
        title: The title.
        n_images: Images to show at most, no more than 100.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If the similarity is not a finite symmetric square matrix, no pair is as similar as asked for, or a
            sample is no image.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, figure 13.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if check_number("n_images", n_images, _MOST_IMAGES) < 2:
        raise invalid("n_images", f"in 2 to {_MOST_IMAGES}", n_images)
    if n_edges is None and min_similarity is None:
        n_edges = 60
    found = near_duplicates(similarity=similarity, n=n_edges, min_similarity=min_similarity)
    if not len(found.pairs) or found.similarities is None:
        raise invalid("min_similarity", "reached by one pair of images or more", min_similarity)
    nodes: dict[int, int] = {}
    for pair in found.pairs.tolist():
        new = [index for index in pair if index not in nodes]
        if len(nodes) + len(new) <= n_images:
            nodes |= {index: len(nodes) + position for position, index in enumerate(new)}
    inside = np.isin(found.pairs, list(nodes)).all(axis=1)
    edges = np.array([[nodes[i], nodes[j]] for i, j in found.pairs[inside].tolist()], np.int64)
    strength = found.similarities[inside]
    places, width, height = _graph_layout(len(nodes), edges)
    pictures = [picture_at(dataset, index, "dataset") for index in nodes]
    # How often an image has a label does not make it another class.
    names = [class_name(None if labels is None else [_each_once(labels[index])], 0, class_names) for index in nodes]
    left_out = len(np.unique(found.pairs)) - len(nodes)

    unit = float(np.clip(11.0 / max(width, 1.0), 0.4, 0.8))  # inches of a node's side
    width_in, height_in = max(width * unit, 5.0) + 0.3, height * unit + 0.15
    top, bottom = 0.75, 0.65
    figure = Figure(figsize=(width_in, height_in + top + bottom))
    axes = figure.add_axes((0, bottom / (height_in + top + bottom), 1, height_in / (height_in + top + bottom)))
    at = places * unit + [(width_in - width * unit) / 2, 0.1]
    low, high = float(strength.min()), float(strength.max())
    scale = high - low if high > low else 1.0

    def line_width(value: float) -> float:
        return 1.0 + 5.0 * (value - low) / scale if high > low else 3.0

    # The strongest lines come last, on top.
    lines = LineCollection(
        list(at[edges[::-1]]), linewidths=[line_width(value) for value in strength[::-1]], colors=_LINE, zorder=1
    )
    axes.add_collection(lines)
    classes = sorted({name for name in names if name})
    colors = dict(zip(classes, _CLASS_COLORS, strict=False)) if 2 <= len(classes) <= len(_CLASS_COLORS) else {}
    half = unit / 2
    for index, picture, name_of_class, (x, y) in zip(nodes, pictures, names, at, strict=True):
        rows, columns = picture.image.shape[:2]
        right, up = half * min(1, columns / rows), half * min(1, rows / columns)
        box = (x - right, x + right, y - up, y + up)
        drawn = axes.imshow(picture.image, cmap="gray", vmin=0, vmax=1, extent=box, zorder=2, aspect="auto")
        draw_boxes(drawn, picture.boxes)
        frame = colors.get(name_of_class, DARK)
        axes.add_patch(
            Rectangle(
                (x - right, y - up),
                2 * right,
                2 * up,
                fill=False,
                edgecolor=frame,
                linewidth=2 if colors else 0.8,
                zorder=3,
            )
        )
        axes.annotate(
            f"#{index}",
            (x, y - up),
            (0, -2),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6,
            color=DARK,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.8},
        )
    axes.set(xlim=(0, width_in), ylim=(0, height_in), aspect="auto")
    axes.set_axis_off()
    share = f", {left_out:,} images more are left out" if left_out else ""
    parts = int(_components(len(nodes), edges).max()) + 1
    note = f"{len(nodes):,} images, {len(edges):,} pairs in {parts:,} connected parts{share}"
    _title(figure, title, note)
    _graph_key(figure, name, sorted({low, (low + high) / 2, high}), line_width, colors)
    return figure


def plot_spectrum(
    eigenvalues: npt.ArrayLike,
    *,
    eigengap: float | None = None,
    n_groups: int | None = None,
    title: str = "Spectrum of the graph Laplacian",
) -> Figure:
    """The eigenvalues in ascending order, and below them the gaps between neighbours.

    Args:
        eigenvalues: Shape (N,), N at least 2; sorted here.
        eigengap: The threshold: gaps above it are drawn in another colour and counted.
        n_groups: The number of groups read off it, for the title.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If there are fewer than two eigenvalues or one is not finite.
    """
    values = np.sort(np.asarray(eigenvalues, np.float64), axis=None)
    if np.ndim(eigenvalues) != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise invalid("eigenvalues", "two finite numbers or more", np.shape(eigenvalues))
    gaps = np.diff(values)
    figure = new_figure(7.5, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    ranks = np.arange(1, len(values) + 1)
    above.plot(ranks, values, ".", color=BLUE, markersize=4 if len(values) > 200 else 6)
    above.set_ylabel("eigenvalue")
    heading = title if n_groups is None else f"{title}: {n_groups:,} groups"
    above.set_title(heading, parse_math=False)
    large = gaps > eigengap if eigengap is not None else np.zeros(len(gaps), np.bool_)
    # Gaps span many orders; those of copies are 0 and lie on the lower edge.
    positive = gaps[gaps > 0]
    low = max(float(positive.min()), float(positive.max()) / 1e5) if len(positive) else 1.0
    low = min(low, eigengap or low) / 3
    for chosen, color in ((~large, BLUE), (large, ORANGE)):
        below.plot(ranks[:-1][chosen] + 0.5, np.maximum(gaps[chosen], low), ".", color=color, markersize=5)
    high = max(float(gaps.max()), eigengap or 0.0, low)
    below.set(yscale="log", ylim=(low / 1.5, high * 6))
    if eigengap is not None:
        below.axhline(eigengap, color=ORANGE, linestyle="--", linewidth=1)
        count = int(large.sum())
        text = f"{count:,} {'gap' if count == 1 else 'gaps'} above {eigengap:.3g}"
        below.text(0.5, 0.94, text, transform=below.transAxes, color=ORANGE, ha="center", va="top", fontweight="bold")
    below.set(ylabel="gap to the next", xlabel="rank of the eigenvalue, ascending")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_timeline(
    selection: Selection, *, n_sequences: int = 40, title: str = "Frames kept along each sequence"
) -> Figure:
    """Which frames of each video are kept, a line a video: dark where frames stay, light where they go.

    What a video is, names tell: see `toolkit.frames.videos_of`. Where a video has more frames than there are columns
    several share one, which is the darker the more of them stay, and never light if one does.

    Args:
        selection: The selection, with ids.
        n_sequences: Videos to show, those with most frames, no more than 100.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If no ids are those of a video's frames.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    videos = videos_of(selection.ids)
    if not videos:
        raise invalid("selection", "one with ids that number the frames of a video", "one without")
    check_number("n_sequences", n_sequences, _MOST_IMAGES)
    stays = np.zeros(len(selection), np.bool_)
    stays[selection.kept] = True
    longest = max(len(video.indices) for video in videos)
    chosen = sorted(range(len(videos)), key=lambda number: (-len(videos[number].indices), number))[:n_sequences]
    shown = [videos[number] for number in sorted(chosen)]
    texts = []
    for video in shown:
        kept = stays[video.indices]
        texts.append(f"{int(kept.sum()):,} of {len(kept):,}, gap {longest_gap(kept):,}")
    names = [fit(video.name, 2.0, 8) for video in shown]
    left, right = (0.3 + max(text_width(text, 8, "normal") for text in side) for side in (names, texts))
    width, line = 10.0, 0.34 if len(shown) < 12 else 0.24
    top, bottom = 0.75, 0.75
    height = top + bottom + line * len(shown)
    figure = Figure(figsize=(width, height))
    inner = width - left - right
    axes = figure.add_axes((left / width, bottom / height, inner / width, 1 - (top + bottom) / height))
    shades = LinearSegmentedColormap.from_list("kept", [BLUE + "90", BLUE])
    n_columns = min(longest, _MOST_COLUMNS)
    for row, (video, text) in enumerate(zip(shown, texts, strict=True)):
        kept = stays[video.indices]
        columns = max(1, round(n_columns * len(kept) / longest))
        edges = np.linspace(0, len(kept), columns + 1).astype(np.int64)
        share = np.add.reduceat(kept.astype(np.float64), edges[:-1]) / np.diff(edges)
        colors = np.where(share[:, None] > 0, shades(share), _rgba(_REMOVED))
        extent = (0.0, float(len(kept)), row + 0.38, row - 0.38)
        axes.imshow(colors[None], extent=extent, aspect="auto", interpolation="nearest")
        axes.annotate(
            text,
            (1, row),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=MUTED,
        )
    axes.set(xlim=(0, longest), ylim=(len(shown) - 0.5, -0.5))
    axes.set_yticks(range(len(shown)), names, parse_math=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("frame, in the order of their numbers", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    several = -(-longest // _MOST_COLUMNS)
    note = "dark: kept, light: removed; gap: most frames in a row that go"
    if several > 1:
        note = f"{note}; up to {several:,} frames a column, the darker the more are kept"
    if len(shown) < len(videos):
        note = f"the longest {len(shown):,} of {len(videos):,} sequences; {note}"
    _title(figure, title, note)
    return figure


class _Sheet:
    """A figure of thumbnails in cells, each with a header above and lines of text below, placed in inches.

    Args:
        pictures: The images, cell by cell.
        names: The name of each one's class; empty where there are no labels.
        columns: Cells in a row.
        across: Images in a cell.
        title: The title.
        note: A smaller line below it.
        headers: Lines above the images of a cell.
        key: The names and colours of the classes that have boxes.
    """

    inner, outer, margin = 0.06, 0.28, 0.3
    line = 0.16
    most_lines = 3

    def __init__(
        self,
        pictures: Sequence[Picture],
        names: Sequence[str],
        columns: int,
        across: int,
        title: str,
        note: str,
        headers: int,
        key: Sequence[tuple[str, str]],
    ) -> None:
        from matplotlib.figure import Figure

        self.pictures, self.columns, self.across, self.header_lines = pictures, columns, across, headers
        # At 120 dots an inch four dots for each of 32 pixels.
        self.side, self.high = _size_of(pictures, 128 / 120, 216 / 120)
        self.names = [wrapped(name, self.side, 8.5, self.most_lines, "bold") if name else [] for name in names]
        self.cell_width = across * self.side + (across - 1) * self.inner
        self.above = headers * self.line + 0.04
        self.below = (max(map(len, self.names)) + 1) * self.line + 0.06
        self.cell_height = self.above + self.high + self.below
        rows = -(-len(pictures) // (across * columns))
        used = columns * (self.cell_width + self.outer) - self.outer
        self.width = max(used, 4.2) + 2 * self.margin
        self.left = (self.width - used) / 2
        self.top = 0.5 + (0.22 if note else 0.0)
        self.height = self.top + rows * (self.cell_height + 0.14) + 0.1 + (0.2 if key else 0.0)
        self.figure = Figure(figsize=(self.width, self.height))
        _title(self.figure, title, note)
        add_key(self.figure, key, loc="center", bbox_to_anchor=(0.5, 0.18 / self.height))

    def _cell(self, position: int) -> tuple[float, float]:
        """Left and upper edge of a cell, in inches from the figure's left and upper edge."""
        row, column = divmod(position, self.columns)
        return self.left + column * (self.cell_width + self.outer), self.top + row * (self.cell_height + 0.14)

    def _text(self, x: float, y: float, text: str, width: float, **style: Any) -> None:
        """A line of text centred at x, its middle at y from above."""
        size = style.pop("fontsize", 8)
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            fit(text, width, size, style.get("fontweight", "normal")),
            fontsize=size,
            ha="center",
            va="center",
            parse_math=False,
            **style,
        )

    def add_header(self, position: int, texts: list[str]) -> None:
        """Write what is known of a cell above it, in one line or as many as the sheet has."""
        left, top = self._cell(position)
        lines = texts if self.header_lines > 1 else [" · ".join(texts)] if texts else []
        for row, text in enumerate(lines):
            y = top + (row + self.header_lines - len(lines) + 0.5) * self.line
            width = self.cell_width + self.outer / 2
            size = next((size for size in (8.0, 7.5) if text_width(text, size, "normal") <= width), 7.0)
            self._text(left + self.cell_width / 2, y, text, width, fontsize=size, color=DARK)

    def add_image(self, position: int, place: int, caption: str, color: str) -> None:
        """Show the image at a place of a cell, with the name of its class and a caption below."""
        number = position * self.across + place
        left, top = self._cell(position)
        left += place * (self.side + self.inner)
        upper = top + self.above
        axes = self.figure.add_axes(
            (left / self.width, 1 - (upper + self.high) / self.height, self.side / self.width, self.high / self.height)
        )
        drawn = axes.imshow(self.pictures[number].image, cmap="gray", vmin=0, vmax=1)
        draw_boxes(drawn, self.pictures[number].boxes)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=color, linewidth=2.0 if color != DARK else 0.5)
        lines = [(name, 8.5, color, "bold" if color != DARK else "normal") for name in self.names[number]]
        lines.append((caption, 7, MUTED, "normal"))
        for row, (text, size, shade, weight) in enumerate(lines):
            y = upper + self.high + 0.04 + (row + 0.5) * self.line
            self._text(left + self.side / 2, y, text, self.side, fontsize=size, color=shade, fontweight=weight)


def _title(figure: Figure, title: str, note: str) -> None:
    """Title and a smaller line below it, at the upper edge of a figure."""
    width, height = figure.get_size_inches()
    size = next((size for size in (12, 11, 10) if text_width(title, size, "normal") <= width - 0.4), 9)
    text = fit(title, width - 0.4, size)
    figure.text(0.5, 1 - 0.26 / height, text, ha="center", va="center", fontsize=size, color=DARK, parse_math=False)
    if note:
        text = fit(note, width - 0.4, 8.5)
        figure.text(0.5, 1 - 0.5 / height, text, ha="center", va="center", fontsize=8.5, color=MUTED)


def _graph_key(
    figure: Figure, name: str, values: list[float], line_width: Callable[[float], float], colors: dict[str, str]
) -> None:
    """What the widths of lines and the colours of frames mean, at the lower edge of a figure."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    keys = [[Line2D([], [], color=_LINE, linewidth=line_width(value), label=f"{name} {value:.3f}") for value in values]]
    if colors:
        square: dict[str, Any] = {"color": "none", "marker": "s", "markeredgewidth": 2, "markersize": 8}
        keys.append([Line2D([], [], markeredgecolor=color, label=label, **square) for label, color in colors.items()])
    for row, handles in enumerate(keys[::-1]):
        for handle in handles:
            handle.set_label(fit(str(handle.get_label()), width / len(handles) - 0.55, 8))
        legend = figure.legend(
            handles=handles,
            loc="center",
            bbox_to_anchor=(0.5, (0.2 + 0.26 * row) / height),
            ncols=len(handles),
            frameon=False,
            fontsize=8,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _components(n_nodes: int, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The connected part that each node is in, numbered by their first nodes."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    graph = csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n_nodes, n_nodes))
    part = connected_components(graph, directed=False)[1]
    _, first, number = np.unique(part, return_index=True, return_inverse=True)
    ranks: npt.NDArray[np.int64] = np.argsort(np.argsort(first))[number]
    return ranks


def _graph_layout(n_nodes: int, edges: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], float, float]:
    """Centres of nodes of side 1 that do not overlap, (n, 2), and the width and height that they need.

    The same edges give the same layout: nothing in it is random.
    """
    part = _components(n_nodes, edges)
    shapes = []
    for number in range(int(part.max()) + 1):
        members = np.flatnonzero(part == number)
        inside = np.searchsorted(members, edges[part[edges[:, 0]] == number])
        places = _layout_of_part(len(members), inside)
        places -= places.min(axis=0) - _PITCH / 2
        shapes.append((members, places, places.max(axis=0) + _PITCH / 2))
    shapes.sort(key=lambda shape: (-shape[2][1], -shape[2][0], shape[0][0]))
    # Free cells of a quarter of a node's side, the lowest place first.
    area = sum(float(size.prod()) for _, _, size in shapes)
    across = max(int(np.ceil(4 * np.sqrt(1.7 * area))), *(int(np.ceil(4 * size[0])) for _, _, size in shapes))
    taken = np.zeros((sum(int(np.ceil(4 * size[1])) for _, _, size in shapes), across), np.bool_)
    centres = np.empty((n_nodes, 2))
    for members, places, size in shapes:
        wide, high = (int(np.ceil(4 * length)) for length in size)
        free = np.lib.stride_tricks.sliding_window_view(taken, (high, wide)).any(axis=(2, 3))
        row, column = np.unravel_index(int((~free).argmax()), free.shape)
        taken[row : row + high, column : column + wide] = True
        centres[members] = places + np.array([column, row]) / 4
    rows_used, columns_used = (int(np.flatnonzero(taken.any(axis=axis)).max()) + 1 for axis in (1, 0))
    # The largest parts stand on top.
    centres[:, 1] = rows_used / 4 - centres[:, 1]
    return centres, columns_used / 4, rows_used / 4


def _layout_of_part(n_nodes: int, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Centres of the nodes of a connected graph: distances follow the number of lines between (stress majorisation)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    graph = csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n_nodes, n_nodes))
    wanted = _LENGTH * shortest_path(graph, directed=False, unweighted=True)
    angles = 2 * np.pi * np.arange(n_nodes) / n_nodes
    places: npt.NDArray[np.float64] = n_nodes / 4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weights = np.divide(1.0, wanted**2, out=np.zeros_like(wanted), where=wanted > 0)
    inverse = np.linalg.pinv(np.diag(weights.sum(axis=1)) - weights)
    for _ in range(300):
        apart = np.sqrt(np.square(places[:, None] - places[None]).sum(axis=2))
        ratio = np.divide(weights * wanted, apart, out=np.zeros_like(apart), where=apart > 1e-9)
        places = inverse @ (np.diag(ratio.sum(axis=1)) - ratio) @ places
    # The long side lies across.
    _, _, axes = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)
    places = (places - places.mean(axis=0)) @ axes.T
    # The first node lies on the left and on top.
    places *= np.where(places[0] > 1e-9, -1.0, 1.0)
    first, second = np.triu_indices(n_nodes, 1)
    for _ in range(1000):
        # Nodes that overlap move apart along the side where it takes less.
        difference = places[second] - places[first]
        overlap = _PITCH - np.abs(difference)
        touching = (overlap > 1e-6).all(axis=1)
        if not touching.any():
            break
        side = overlap.argmin(axis=1)[touching]
        pairs = np.flatnonzero(touching)
        step = 0.5 * overlap[pairs, side] * np.where(difference[pairs, side] < 0, -1, 1)
        np.add.at(places, (second[pairs], side), 0.5 * step)
        np.add.at(places, (first[pairs], side), -0.5 * step)
    return places


def _order_of_groups(group: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """Images in the order of their groups, the largest first, and (start, size) of those groups of two or more."""
    group = np.where(group < 0, group.max(initial=0) + 1 + np.arange(len(group)), group)
    _, first, number, sizes = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((np.arange(len(group)), first[number], -sizes[number]))
    boxes, start = [], 0
    for size in np.sort(sizes)[::-1].tolist():
        if size > 1:
            boxes.append((start, size))
        start += size
    return order, boxes


def _size_of(pictures: Sequence[Picture], side: float, side_of_scenes: float) -> tuple[float, float]:
    """Width and height of an image's place: scenes, which have boxes, are shown larger and no higher than they are."""
    if all(picture.boxes is None for picture in pictures):
        return side, side
    shape = max(picture.image.shape[0] / picture.image.shape[1] for picture in pictures)
    return side_of_scenes, side_of_scenes * min(1.0, shape)


def _own_first(label: Any, other: Any) -> Any:
    """Labels of an image, those first that the other image has not."""
    if not isinstance(label, (list, tuple)) or not isinstance(other, (list, tuple)):
        return label
    return sorted(label, key=lambda item: item in other)


def _each_once(label: Any) -> Any:
    """Labels of an image, those that repeat once."""
    return list(dict.fromkeys(label)) if isinstance(label, (list, tuple)) else label


def _rgba(color: str) -> tuple[float, float, float, float]:
    """A colour as four numbers in [0, 1]."""
    from matplotlib.colors import to_rgba

    return to_rgba(color)


def _decimals(value: float) -> str:
    """A number in three digits, or in full from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _check_indices(name: str, indices: npt.ArrayLike, ndim: int) -> npt.NDArray[np.int64]:
    """Indices of shape (P,) or (P, 2), at least one."""
    array = np.asarray(indices)
    shape = "(P, 2)" if ndim == 2 else "(n,)"
    if array.ndim != ndim or not len(array) or (ndim == 2 and array.shape[1] != 2):
        raise invalid(name, f"indices of shape {shape}, at least one", f"an array of shape {array.shape}")
    if array.dtype.kind not in "iu" or array.min() < 0:
        raise invalid(name, "integers that are 0 or more", array.tolist()[:3])
    return array.astype(np.int64)
