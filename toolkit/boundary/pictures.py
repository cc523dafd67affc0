"""Pictures of decision boundaries: the paths between images, and the plane through three of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.boundary.canvas import KEY_LINE, Canvas, KeyEntry, Style, draw_key, key_lines, name_of, styles_of
from toolkit.boundary.curves import plot_boundary_curves, plot_crossing_curve
from toolkit.drawing import MUTED, check_length, check_number, class_name, fit, image_at, text_width
from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toolkit.boundary.planes import DecisionPlane
    from toolkit.boundary.report import BoundaryReport

__all__ = ["plot_boundary_curves", "plot_crossing_curve", "plot_paths", "plot_plane"]

#: Pairs on a sheet at most: more cannot be told apart.
_MOST_PAIRS = 100
_Floats = npt.NDArray[np.float64]


# ------------------------------------------------------------------------------------------------ paths

_THUMBNAIL, _GAP, _STRIP, _STRIP_HEIGHT = 0.5, 0.07, 3.1, 0.25
_ROW, _HEADING, _MARGIN, _BETWEEN = 0.62, 0.36, 0.3, 0.45


def plot_paths(
    report: BoundaryReport,
    start: Any,
    end: Any,
    *,
    labels: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    strata: Sequence[str] | None = None,
    n_pairs: int = 24,
    title: str = "What the model sees on straight paths between two images",
) -> Figure:
    """The paths as strips between their two images, coloured by the class that the model predicts along them.

    Every crossing is marked below the strip with its position, 0 at the start and 1 at the end. Crossings too close
    for a number each share one. The frame of an image has the colour of its label, so a frame that differs from its
    end of the strip is an image that the model gets wrong.

    The pairs shown are the first of each stratum in the order of the report, the same number of each where there are as
    many, so pictures of the same pairs after different epochs can be laid side by side. A class has the same colour in
    all of them.

    Args:
        report: What `probe_paths` found, of P pairs.
        start: P images where the paths start, tensors (P, channels, H, W) or a sequence of anything that
            `toolkit.plotting.displayable` takes. Normalised images are stretched to what can be shown.
        end: P images where they end.
        labels: int of shape (P, 2): the labels of both images of each pair, -1 for none.
        class_names: A name for each class.
        strata: P names: the stratum of each pair. Above each stratum stands how many of all its pairs cross.
        n_pairs: Pairs to show at most, no more than 100.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If there are no pairs, images, labels or strata are not as many as pairs, labels are no integers, a
            sample is no image, or `n_pairs` is out of range.
        TypeError: If `n_pairs` is no integer.
    """
    count = len(report)
    for name, images in (("start", start), ("end", end)):
        if len(images) != count:
            raise invalid(name, f"{count} images, one for each pair", f"{len(images)} images")
    if count == 0:
        raise invalid("report", "one of at least one pair", "one of none")
    both = None if labels is None else np.asarray(labels)
    if both is not None and (both.shape != (count, 2) or both.dtype.kind not in "iu"):
        what = f"integers of shape ({count}, 2), two for each pair"
        raise invalid("labels", what, f"{both.dtype} of shape {both.shape}")
    names = None if strata is None else check_length("strata", strata, count, "pair").astype(str)
    groups = _shown_pairs(names, count, check_number("n_pairs", n_pairs, _MOST_PAIRS))
    shown = np.concatenate([chosen for _, chosen in groups])

    own = [] if both is None else [number for number in both[shown].ravel().tolist() if number >= 0]
    styles = styles_of((number for pair in shown for number in report.classes[pair]), own)
    columns = _columns(groups, report, names)
    beside = min(
        1.0, 0.1 + max((text_width(name_of(number, class_names), 7.5, "normal") for number in own), default=-0.1)
    )
    across = 2 * (beside + _THUMBNAIL + _GAP) + _STRIP
    width = 2 * _MARGIN + len(columns) * across + (len(columns) - 1) * _BETWEEN
    note = f"{len(shown):,} of {count:,} pairs" if len(shown) < count else f"{count:,} {_pairs(count)}"
    if own:
        note += "; frames have the colour of the image's label"
    key = key_lines(_key_entries(report, shown, styles, class_names), width - 2 * _MARGIN)
    top = 1.0
    below = top + max(sum(_HEADING if isinstance(item, str) else _ROW for item in column) for column in columns)
    canvas = Canvas(width, below + 0.16 + KEY_LINE * len(key) + 0.12)
    canvas.title(title, note)
    for place, column in enumerate(columns):
        left, upper = _MARGIN + place * (across + _BETWEEN), top
        _draw_scale(canvas, left + beside + _THUMBNAIL + _GAP, top - 0.13)
        for item in column:
            if isinstance(item, str):
                canvas.text(left, upper + 0.2, item, across, 9, ha="left", fontweight="bold")
                upper += _HEADING
                continue
            ends = [image_at(images, item, name) for images, name in ((start, "start"), (end, "end"))]
            numbers = [-1, -1] if both is None else both[item].tolist()
            _draw_ends(canvas, left, upper, beside, ends, numbers, styles, class_names)
            _draw_strip(canvas, left + beside + _THUMBNAIL + _GAP, upper + 0.09, report, item, styles, class_names)
            upper += _ROW
    draw_key(canvas, below + 0.16, key)
    return canvas.figure


def _pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _shown_pairs(
    strata: npt.NDArray[Any] | None, count: int, most: int
) -> list[tuple[str | None, npt.NDArray[np.int64]]]:
    """The first pairs of each stratum: equal shares, what one stratum cannot use goes to the others."""
    if strata is None:
        return [(None, np.arange(min(count, most)))]
    _, first = np.unique(strata, return_index=True)
    members = {str(strata[place]): np.flatnonzero(strata == strata[place]) for place in np.sort(first)}
    quota = dict.fromkeys(members, 0)
    while sum(quota.values()) < min(count, most):
        for name, pairs in members.items():
            if quota[name] < len(pairs) and sum(quota.values()) < most:
                quota[name] += 1
    return [(name, pairs[: quota[name]]) for name, pairs in members.items() if quota[name]]


def _columns(
    groups: list[tuple[str | None, npt.NDArray[np.int64]]], report: BoundaryReport, strata: npt.NDArray[Any] | None
) -> list[list[str | int]]:
    """Headings and pairs in one column, or two of about the same height for more than ten pairs."""
    items: list[str | int] = []
    owners: list[str | None] = []
    for name, pairs in groups:
        if strata is not None:
            crossings = report.num_crossings[strata == name]
            crossed, total = int((crossings > 0).sum()), len(crossings)
            items.append(f"{name}: {crossed:,} of {total:,} {_pairs(total)} cross ({100 * crossed / total:.0f} %)")
        items += pairs.tolist()
        owners += [name] * (len(items) - len(owners))
    if sum(len(pairs) for _, pairs in groups) <= 10:
        return [items]
    heights = np.array([_HEADING if isinstance(item, str) else _ROW for item in items])

    def cost(cut: int) -> float:
        """Height of the figure, and more where a heading stands alone or a stratum is cut in two."""
        headless = strata is not None and not isinstance(items[cut], str)
        tall = max(float(heights[:cut].sum()), float(heights[cut:].sum()) + _HEADING * headless)
        return tall + _ROW * headless + (1e9 if isinstance(items[cut - 1], str) else 0.0)

    cut = min(range(1, len(items)), key=cost)
    headless = strata is not None and not isinstance(items[cut], str)
    return [items[:cut], [f"{owners[cut]} (continued)", *items[cut:]] if headless else items[cut:]]


def _draw_scale(canvas: Canvas, left: float, y: float) -> None:
    """The positions along the strips of a column."""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + share * _STRIP
        canvas.axes.plot([x, x], [y + 0.08, y + 0.13], color=MUTED, linewidth=0.7)
        canvas.text(x, y, f"{share:g}", size=7, color=MUTED)
    for name, x in (("start", left - _GAP - _THUMBNAIL / 2), ("end", left + _STRIP + _GAP + _THUMBNAIL / 2)):
        canvas.text(x, y, name, size=7.5, color=MUTED)


def _draw_ends(
    canvas: Canvas,
    left: float,
    upper: float,
    beside: float,
    images: list[npt.NDArray[Any]],
    labels: list[int],
    styles: dict[int, Style],
    class_names: Sequence[str] | None,
) -> None:
    """The two images of a path, their labels outside; a negative one is none."""
    for side, (image, number) in enumerate(zip(images, labels, strict=True)):
        x = left + beside + side * (_THUMBNAIL + 2 * _GAP + _STRIP)
        canvas.image(image, x, upper, _THUMBNAIL, styles.get(number))
        if number >= 0:
            outside, align = (x + _THUMBNAIL + 0.07, "left") if side else (x - 0.07, "right")
            canvas.text(outside, upper + _THUMBNAIL / 2, name_of(number, class_names), beside - 0.07, 7.5, ha=align)


def _draw_strip(
    canvas: Canvas,
    left: float,
    upper: float,
    report: BoundaryReport,
    pair: int,
    styles: dict[int, Style],
    class_names: Sequence[str] | None,
) -> None:
    """The classes along a path, and its crossings with their positions below."""
    positions = report.positions[pair]
    edges = [0.0, *positions, 1.0]
    for number, low, high in zip(report.classes[pair], edges[:-1], edges[1:], strict=True):
        style, width = styles[number], (high - low) * _STRIP
        canvas.box(left + low * _STRIP, upper, width, _STRIP_HEIGHT, style)
        name = fit(name_of(number, class_names), max(width - 0.1, 0.01), 7)
        if text_width(name, 7, "normal") + 0.1 <= width and (len(name) > 4 or "…" not in name):
            back = {"facecolor": style.color, "edgecolor": "none", "pad": 1.2} if style.hatch else None
            x = left + (low + high) / 2 * _STRIP
            canvas.text(x, upper + _STRIP_HEIGHT / 2, name, size=7, color=style.ink, bbox=back)
    canvas.frame(left, upper, _STRIP, _STRIP_HEIGHT, 0.6)
    for position, third in zip(positions, report.third_class[pair], strict=True):
        x = left + position * _STRIP
        canvas.axes.plot([x, x], [upper, upper + _STRIP_HEIGHT], color="#111111", linewidth=0.9)
        canvas.marker(x, upper + _STRIP_HEIGHT + 0.045, hollow=third)
    for centre, text in _crossing_labels(positions):
        canvas.text(left + centre, upper + _STRIP_HEIGHT + 0.135, text, size=6.5)


def _crossing_labels(positions: Sequence[float]) -> list[tuple[float, str]]:
    """Middle (inches from the strip's start) and text of labels that do not overlap, one for several where needed."""
    groups = [[position] for position in positions]
    while True:
        labels = []
        for group in groups:
            low, high = (f"{value:.2f}" for value in (group[0], group[-1]))
            text = low
            if len(group) > 1:
                text = f"{len(group)} at {low}" if low == high else f"{len(group)} in {low} to {high}"
            half = 0.54 * text_width(text, 6.5, "normal")  # screens round letters up
            centre = float(np.clip((group[0] + group[-1]) / 2 * _STRIP, half - 0.1, _STRIP - half + 0.1))
            labels.append((centre, text, half))
        overlap = next(
            (
                place
                for place, (one, other) in enumerate(itertools.pairwise(labels))
                if one[0] + one[2] + 0.04 > other[0] - other[2]
            ),
            None,
        )
        if overlap is None:
            return [(centre, text) for centre, text, _ in labels]
        groups[overlap : overlap + 2] = [groups[overlap] + groups[overlap + 1]]


def _key_entries(
    report: BoundaryReport, shown: npt.NDArray[np.int64], styles: dict[int, Style], class_names: Sequence[str] | None
) -> list[KeyEntry]:
    """The classes in the picture, then the markers in it: True for a hollow one."""
    entries: list[KeyEntry] = [(style, name_of(number, class_names)) for number, style in styles.items()]
    third = [cuts for pair in shown for cuts in report.third_class[pair]]
    if False in third:
        entries.append((False, "crossing"))
    if True in third:
        entries.append((True, "crossing with a third class close by"))
    return entries


# ------------------------------------------------------------------------------------------------ planes

#: Side of the map in inches, and pixels along it.
_MAP, _PIXELS = 5.2, 624
#: How much of a class' colour is left where the margin is 0.
_PALEST = 0.35


def plot_plane(
    plane: DecisionPlane,
    images: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    labels: Sequence[Any] | None = None,
    title: str = "Decisions in the plane through three images",
) -> Figure:
    """The map of predicted classes in a plane, pale where the decision is close, with the three images beside it.

    Between grid points the borders are interpolated: between two neighbours with classes A and B and margins m_A and
    m_B the border lies at m_A / (m_A + m_B) of the way, and half way where the decision gives no margins.
    A colour is full at the 95 % quantile of the margins and above. The dashed triangle joins the images: its sides are
    the straight paths that `probe_paths` walks.

    Args:
        plane: The plane, from `decision_plane`.
        images: The three images, anything that `toolkit.plotting.displayable` takes; None marks their places only.
        class_names: A name for each class.
        labels: The labels of the three images, written at them.
        title: The title.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If images or labels are given and not three, or a sample is no image.
    """
    for name, given in (("images", images), ("labels", labels)):
        if given is not None and len(given) != 3:
            raise invalid(name, "three, one for each corner", f"{len(given)}")
    thumbnails = None if images is None else [image_at(images, place, "images") for place in range(3)]
    classes, counts = np.unique(plane.classes, return_counts=True)
    styles = styles_of(classes.tolist())
    names = {number: name_of(number, class_names) for number in styles}
    longest = min(2.4, max(text_width(name, 8.5, "normal") for name in names.values()))
    left, right, top = 0.75, 0.25 + max(2.0, longest + 1.1) + 0.15, 0.75
    edge = right - 0.4  # of the key, from its left
    canvas = Canvas(left + _MAP + right, top + _MAP + 0.7)
    regions = plane.n_regions
    note = f"{regions:,} {'region' if regions == 1 else 'regions'} of {len(classes):,} "
    note += f"{'class' if len(classes) == 1 else 'classes'} on {len(plane.y):,} x {len(plane.x):,} points"
    canvas.title(title, note)
    axes = canvas.figure.add_axes((left / canvas.width, 0.7 / canvas.height, _MAP / canvas.width, _MAP / canvas.height))
    strongest = _draw_map(axes, plane, styles)
    axes.set_xlabel("distance from image 1 along the line to image 2", fontsize=8.5)
    axes.set_ylabel("distance from that line", fontsize=8.5)
    axes.tick_params(labelsize=8)
    captions = []
    for place in range(3):
        label = "" if labels is None else class_name(labels, place, class_names)
        captions.append(f"{place + 1}: {label}" if label else f"{place + 1}")
    _draw_corners(axes, plane, thumbnails, captions)
    x, y = left + _MAP + 0.25, top + 0.1
    canvas.text(x, y, "predicted class, share of the map", edge, 8, ha="left", color=MUTED)
    order = np.argsort(-counts, kind="stable")
    most = 18
    for number, cells in zip(classes[order][:most].tolist(), counts[order][:most].tolist(), strict=True):
        y += 0.24
        canvas.box(x, y - 0.07, 0.26, 0.14, styles[number])
        canvas.frame(x, y - 0.07, 0.26, 0.14, 0.4)
        share = 100 * cells / plane.classes.size
        canvas.text(x + 0.34, y, names[number], edge - 1.0, 8.5, ha="left")
        canvas.text(x + edge, y, f"{share:.1f} %", size=8.5, ha="right", color=MUTED)
    if len(classes) > most:
        canvas.text(x, y + 0.24, f"and {len(classes) - most} more", size=8, ha="left", color=MUTED)
        y += 0.24
    if strongest is not None:
        ramp = (_PALEST + (1 - _PALEST) * np.linspace(0, 1, 64))[None, :, None]
        grey = 1 - ramp * (1 - np.array([0.3, 0.3, 0.3]))
        y += 0.5
        canvas.text(x, y, "margin: top minus second score", edge, 8, ha="left", color=MUTED)
        canvas.axes.imshow(grey, extent=(x, x + 2.0, y + 0.31, y + 0.15), aspect="auto")
        canvas.frame(x, y + 0.15, 2.0, 0.16, 0.4)
        canvas.text(x, y + 0.42, "0", size=7.5, ha="left", color=MUTED)
        canvas.text(x + 2.0, y + 0.42, f"{strongest:.3g} and more", size=7.5, ha="right", color=MUTED)
    return canvas.figure


def _draw_map(axes: Any, plane: DecisionPlane, styles: dict[int, Style]) -> float | None:
    """Fill the map and draw the borders between regions; returns the margin from which on colours are full."""
    from matplotlib.colors import to_rgb

    known = bool(np.isfinite(plane.margins).all())
    margins = np.asarray(plane.margins, np.float64) if known else np.ones(plane.classes.shape)
    strongest = float(np.quantile(margins, 0.95))
    known = known and strongest > 0
    # A class' score is its margin where it wins and minus the winner's margin elsewhere: scores of two neighbours'
    # classes, interpolated, meet where the border is.
    margins = np.maximum(margins, 1e-6 * (strongest or 1.0))
    rows, columns = _between(len(plane.y)), _between(len(plane.x))
    numbers = np.unique(plane.classes).tolist()
    best = np.full((len(rows), len(columns)), -np.inf)
    second, winner = best.copy(), np.zeros(best.shape, np.int64)
    scores = {}
    for number in numbers:
        score = rows @ np.where(plane.classes == number, margins, -margins) @ columns.T
        ahead = score > best
        second = np.where(ahead, best, np.maximum(second, score))
        best, winner = np.where(ahead, score, best), np.where(ahead, number, winner)
        scores[number] = score
    picture = np.empty((*winner.shape, 3))
    for number in numbers:
        inside = winner == number
        paint = np.array(to_rgb(styles[number].color))
        picture[inside] = np.where(_pattern(styles[number].hatch, winner.shape)[inside][:, None], 1.0, paint)
    if known:
        strength = _PALEST + (1 - _PALEST) * np.clip(best / strongest, 0, 1)[:, :, None]
        picture = 1 - strength * (1 - picture)
    x, y = (np.linspace(line[0], line[-1], _PIXELS) for line in (plane.x, plane.y))
    half_x, half_y = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
    axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", aspect="auto")
    for number in numbers:
        if len(numbers) > 1:
            rival = np.where(winner == number, second, best)
            axes.contour(x, y, scores[number] - rival, levels=[0.0], colors="#111111", linewidths=0.8)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    return strongest if known else None


def _between(size: int) -> _Floats:
    """The matrix that interpolates values at the points of a grid for the pixels of the map, shape (pixels, size)."""
    places = np.linspace(0, size - 1, _PIXELS)
    lower = np.minimum(places.astype(np.int64), size - 2)
    weights = np.zeros((_PIXELS, size))
    weights[np.arange(_PIXELS), lower] = 1 - (places - lower)
    weights[np.arange(_PIXELS), lower + 1] = places - lower
    return weights


def _pattern(hatch: str, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Which pixels of a map a hatch paints white."""
    row, column = np.indices(shape)
    if not hatch:
        return np.zeros(shape, np.bool_)
    if hatch.startswith("/"):
        stripes: npt.NDArray[np.bool_] = (column - row) % 12 < 2
        return stripes
    dots: npt.NDArray[np.bool_] = np.hypot(row % 12 - 5.5, (column + 6 * (row // 12 % 2)) % 12 - 5.5) < 2
    return dots


def _draw_corners(
    axes: Any, plane: DecisionPlane, thumbnails: list[npt.NDArray[Any]] | None, captions: list[str]
) -> None:
    """The triangle of the three images, each image with its caption beside its corner, away from the triangle."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage, TextArea, VPacker

    closed = plane.points[[0, 1, 2, 0]]
    axes.plot(*closed.T, color="#111111", linewidth=0.9, linestyle=(0, (5, 3)), zorder=3)
    axes.plot(*plane.points.T, "o", color="white", markeredgecolor="#111111", markersize=6, zorder=5)
    span = np.array([plane.x[-1] - plane.x[0], plane.y[-1] - plane.y[0]])
    corner = np.array([plane.x[0], plane.y[0]])
    outward = (plane.points - plane.points.mean(axis=0)) / span
    for place, point in enumerate(plane.points):
        direction = outward[place] / np.linalg.norm(outward[place])
        reach = 0.12 if thumbnails is not None else 0.06
        # Inside the map, so that nothing is cut off.
        at = np.clip((point - corner) / span + reach * direction, 0.085, 0.915)
        text = TextArea(captions[place], textprops={"fontsize": 7.5, "color": "#111111", "parse_math": False})
        parts: list[Any] = [text]
        if thumbnails is not None:
            zoom = 0.62 * 72 / max(thumbnails[place].shape[:2])
            picture = OffsetImage(thumbnails[place], zoom=zoom, cmap="gray", interpolation="nearest")
            picture.image.set_clim(0, 1)
            parts = [picture, text]
        box = AnnotationBbox(
            VPacker(children=parts, align="center", pad=0, sep=2),
            tuple(point),
            xybox=tuple(corner + at * span),
            boxcoords="data",
            pad=0.22,
            arrowprops={"arrowstyle": "-", "color": "#111111", "linewidth": 0.9},
            bboxprops={"facecolor": "white", "edgecolor": "#111111", "linewidth": 0.8},
        )
        box.set_zorder(4)
        axes.add_artist(box)
