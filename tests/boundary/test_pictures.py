import dataclasses
import io
import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from toolkit.boundary import BoundaryReport, DecisionPlane
from toolkit.boundary.canvas import styles_of
from toolkit.boundary.pictures import plot_boundary_curves, plot_crossing_curve, plot_paths, plot_plane


def report_of(paths, third=None):
    """A report of paths given as [class, position, class, position, class ...]."""
    count = len(paths)
    positions = tuple(tuple(path[1::2]) for path in paths)
    zeros = np.zeros(count, np.float32)
    return BoundaryReport(
        classes=tuple(tuple(path[::2]) for path in paths),
        positions=positions,
        third_class=third or tuple(tuple(False for _ in row) for row in positions),
        margin_min=zeros,
        margin_min_position=zeros,
        resolution=zeros,
        tolerance=1e-3,
        num_points=3,
        n_evaluations=3 * count,
        grid_classes=np.zeros((count, 3), np.int32),
        grid_margins=np.zeros((count, 3), np.float32),
    )


def images(count, shape=(3, 8, 8)):
    """Images that tell their index by their brightness: index / 100 throughout."""
    return [torch.full(shape, index / 100) for index in range(count)]


def all_texts(figure):
    return [text for axes in [figure, *figure.axes] for text in axes.texts if text.get_text()]


def texts(figure):
    return [text.get_text() for text in all_texts(figure)]


def numbers_of(figure):
    """The positions written below the strips."""
    return [text.get_text() for text in all_texts(figure) if text.get_fontsize() == 6.5]


def check_layout(figure):
    """No text leaves the figure, and no two overlap."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in all_texts(figure)]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not (one.shrunk(0.98, 0.7).overlaps(other.shrunk(0.98, 0.7))), "two texts overlap"


def patches(figure, *, filled=True):
    """(left, upper, width, height, colour, hatch) of the rectangles of a sheet, in inches."""
    found = []
    for patch in figure.axes[0].patches:
        if (patch.get_facecolor()[3] > 0) == filled:
            color = patch.get_facecolor() if filled else patch.get_edgecolor()
            found.append((*patch.get_bbox().bounds, tuple(color[:3]), patch.get_hatch() or ""))
    return found


def strips(figure):
    """The runs of each strip as (share of its length at the start, at the end, colour, hatch)."""
    rows = {}
    for left, upper, width, height, color, hatch in patches(figure):
        if height == 0.25:
            rows.setdefault(round(upper, 4), []).append((left, left + width, color, hatch))
    found = []
    for _, runs in sorted(rows.items()):
        first, last = min(run[0] for run in runs), max(run[1] for run in runs)
        found.append([((a - first) / (last - first), (b - first) / (last - first), *rest) for a, b, *rest in runs])
    return found


def test_strips_change_where_the_class_does():
    paths = [[0], [1, 0.25, 2, 0.7003, 1], [9, 0.5, 0]]
    figure = plot_paths(report_of(paths), images(3), images(3), class_names=list("abcdefghij"))
    check_layout(figure)
    styles = styles_of(range(10))
    assert len(strips(figure)) == 3
    for path, runs in zip(paths, strips(figure), strict=True):
        edges = [0, *path[1::2], 1]
        np.testing.assert_allclose([run[:2] for run in runs], list(itertools.pairwise(edges)), atol=1e-6)
        assert [run[2:] for run in runs] == [(to_rgb(styles[c].color), styles[c].hatch) for c in path[::2]]
    found = texts(figure)
    assert found[0] == "What the model sees on straight paths between two images"
    assert found[1] == "3 pairs"
    assert [text for text in found if text in {"0.25", "0.70", "0.50"}] == ["0.25", "0.25", "0.70", "0.50"], (
        "and a tick"
    )
    assert [found.count(name) for name in "abcj"] == [3, 3, 2, 2], "in the runs and in the key"
    assert "crossing" in found
    assert "crossing with a third class close by" not in found


def test_images_stand_at_their_ends_framed_in_the_colour_of_their_label():
    report = report_of([[0], [0], [8, 0.5, 1]])
    figure = plot_paths(report, images(6)[:3], images(6)[3:], labels=[[0, 1], [-1, 8], [0, 0]], class_names=["a", "b"])
    check_layout(figure)
    shown = [(round(100 * float(im.get_array().mean())), im.get_extent()) for im in figure.axes[0].images]
    assert [index for index, _ in shown] == [0, 3, 1, 4, 2, 5]
    assert all(one[1] < other[0] for (_, one), (_, other) in zip(shown[::2], shown[1::2], strict=True))
    frames = [frame for frame in patches(figure, filled=False) if frame[2] == pytest.approx(0.5) == frame[3]]
    blue, orange, dark, white = (to_rgb(color) for color in ("#0072b2", "#e69f00", "#222222", "white"))
    assert [frame[4] for frame in frames] == [blue, orange, dark, white, blue, blue, blue]
    dashed = [
        patch.get_linestyle() != "-" and patch.get_linestyle() != "solid"
        for patch in figure.axes[0].patches
        if patch.get_facecolor()[3] == 0 and patch.get_bbox().width == pytest.approx(0.5)
    ]
    assert dashed == [False, False, False, False, True, False, False]
    assert texts(figure)[1] == "3 pairs; frames have the colour of the image's label"
    assert texts(figure).count("8") == 3, "at the image, in the strip and in the key"


def test_pairs_are_the_first_of_each_stratum_under_its_heading():
    paths = [[0] if pair % 3 else [0, 0.5, 1] for pair in range(30)]
    strata = ["near"] * 12 + ["far"] * 2 + ["random"] * 16
    figure = plot_paths(report_of(paths), images(30), images(30), strata=strata, n_pairs=11)
    check_layout(figure)
    starts = [round(100 * float(im.get_array().mean())) for im in figure.axes[0].images][::2]
    assert starts == [0, 1, 2, 3, 4, 12, 13, 14, 15, 16, 17]
    found = texts(figure)
    assert found[1] == "11 of 30 pairs"
    headings = [text for text in found if "cross (" in text or "continued" in text]
    assert headings == [
        "near: 4 of 12 pairs cross (33 %)",
        "far: 1 of 2 pairs cross (50 %)",
        "random: 5 of 16 pairs cross (31 %)",
    ]
    one = plot_paths(report_of([[0]]), images(1), images(1), strata=["only"])
    assert "only: 0 of 1 pair cross (0 %)" in texts(one)
    assert texts(one)[1] == "1 pair"


def test_a_stratum_that_goes_on_in_the_second_column_says_so():
    figure = plot_paths(report_of([[0]] * 13), images(13), images(13), strata=["all of them"] * 13)
    check_layout(figure)
    assert "all of them (continued)" in texts(figure)
    plain = plot_paths(report_of([[0]] * 13), images(13), images(13))
    check_layout(plain)
    assert not [text for text in texts(plain) if "continued" in text]
    assert plain.get_figwidth() > 1.8 * plot_paths(report_of([[0]] * 10), images(10), images(10)).get_figwidth()
    # A heading never stands alone at the end of a column.
    figure = plot_paths(report_of([[0]] * 12), images(12), images(12), strata=["a"] * 6 + ["b"] * 6)
    left, right = (
        [text for text in all_texts(figure) if "cross (" in text.get_text() and text.get_text()[0] == name]
        for name in "ab"
    )
    assert left[0].get_position()[1] == right[0].get_position()[1]
    assert left[0].get_position()[0] < right[0].get_position()[0]


@pytest.mark.parametrize("seed", range(5))
def test_crossings_close_together_share_a_number(seed):
    rng = np.random.default_rng(seed)
    paths, third = [], []
    for _ in range(8):
        positions = np.sort(rng.uniform(size=rng.integers(0, 25)) ** rng.integers(1, 4))
        row = [0]
        for place, position in enumerate(positions):
            row += [float(position), (place + 1) % 12]
        paths.append(row)
        third.append(tuple(bool(value) for value in rng.uniform(size=len(positions)) < 0.5))
    figure = plot_paths(report_of(paths, tuple(third)), images(8), images(8), class_names=["a long name"] * 12)
    check_layout(figure)
    numbers = numbers_of(figure)
    assert any(" in 0." in number for number in numbers)
    counted = sum(int(number.split()[0]) if " " in number else 1 for number in numbers)
    assert counted == sum(len(row) for row in third)
    hollow = [
        line for line in figure.axes[0].lines if line.get_marker() == "^" and line.get_markerfacecolor() == "white"
    ]
    assert len(hollow) == 1 + sum(sum(row) for row in third), "one of them in the key"


def test_crossings_at_one_place_and_at_the_ends():
    figure = plot_paths(report_of([[0, 0.4, 1, 0.4001, 2], [0, 0.0005, 1, 0.9995, 0]]), images(2), images(2))
    check_layout(figure)
    assert {"2 at 0.40", "0.00", "1.00"} <= set(texts(figure))
    only = plot_paths(report_of([[0, 0.4, 1]], ((True,),)), images(1), images(1))
    assert "crossing with a third class close by" in texts(only)
    assert "crossing" not in texts(only)


def test_more_classes_than_styles():
    assert len(set(styles_of(range(24)).values())) == 24
    assert styles_of([3, 27])[3] == styles_of([3])[3]
    assert len(set(styles_of([3, 27, 51]).values())) == 3, "as long as there are styles"
    assert len(styles_of(range(30))) == 30
    assert set(styles_of([1, 2], [5, 2])) == {1, 2, 5}
    assert set(styles_of([1, 2], range(40))) == {1, 2}
    names = [f"class {number}" for number in range(60)]
    report = report_of([[number, 0.5, number + 1] for number in range(0, 60, 2)])
    figure = plot_paths(report, images(30), images(30), class_names=names, n_pairs=30)
    check_layout(figure)
    assert all(texts(figure).count(name) == 2 for name in names), "each in its strip and in the key"


def test_pictures_of_other_kinds_of_images():
    report = report_of([[0], [0]])
    start = torch.randn(2, 1, 20, 10)
    end = [np.zeros((300, 600, 3), np.uint8), torch.zeros(9, 9)]
    figure = plot_paths(report, start, end)
    sizes = [
        (im.get_extent()[1] - im.get_extent()[0], im.get_extent()[2] - im.get_extent()[3])
        for im in figure.axes[0].images
    ]
    np.testing.assert_allclose(sizes, [(0.25, 0.5), (0.5, 0.25), (0.25, 0.5), (0.5, 0.5)])


# ------------------------------------------------------------------------------------------------ planes


def plane_of(classes, margins=1.0):
    classes = np.array(classes, np.int32)
    x, y = np.linspace(-1, 3, classes.shape[1]), np.linspace(-1, 3, classes.shape[0])
    corners = np.array([[0.0, 0], [2, 0], [0.5, 1.5]])
    values = np.broadcast_to(np.float32(margins), classes.shape)
    return DecisionPlane(classes, values, x, y, corners, np.zeros(3, np.int32))


def map_of(figure):
    """The pixels of the map, lowest row first, and its axes."""
    axes = next(axes for axes in figure.axes if axes.get_xlabel())
    return np.asarray(axes.images[0].get_array()), axes


def test_the_map_shows_the_classes_and_borders_half_way():
    plane = plane_of([[0, 0, 1], [0, 0, 1], [2, 2, 2]], np.nan)
    figure = plot_plane(plane, images(3), ["ant", "bee", "cat"], labels=[0, 1, 2])
    check_layout(figure)
    pixels, axes = map_of(figure)
    styles = styles_of([0, 1, 2])
    for row, column, number in ((0, 0, 0), (0, -1, 1), (-1, 0, 2), (-1, -1, 2)):
        np.testing.assert_allclose(pixels[row, column], to_rgb(styles[number].color), atol=1e-6)
    blue = np.isclose(pixels, to_rgb(styles[0].color)).all(axis=2)
    # Between the second and the third point of 0 to 2.
    assert blue[0].mean() == pytest.approx(0.75, abs=0.01)
    assert blue[:, 0].mean() == pytest.approx(0.75, abs=0.01)
    assert texts(figure)[:2] == [
        "Decisions in the plane through three images",
        "3 regions of 3 classes on 3 x 3 points",
    ]
    assert {"ant", "bee", "cat", "44.4 %", "22.2 %", "33.3 %"} <= set(texts(figure))
    assert len(axes.collections) == 3, "a border for each class"
    captions = [box.offsetbox.get_children()[-1].get_text() for box in axes.artists]
    assert captions == ["1: ant", "2: bee", "3: cat"]
    thumbnails = [box.offsetbox.get_children()[0].get_data().mean() for box in axes.artists]
    np.testing.assert_allclose(thumbnails, [0, 0.01, 0.02], atol=1e-6)
    dots = axes.lines[1]
    np.testing.assert_array_equal(np.array(dots.get_data()).T, plane.points)


def test_borders_follow_the_margins():
    plane = plane_of([[0, 1], [0, 1]], margins=np.array([[1.0, 3.0], [1.0, 3.0]]))
    figure = plot_plane(plane)
    pixels, axes = map_of(figure)
    # A border a quarter of the way: 1 / (1 + 3).
    for path in axes.collections[0].get_paths():
        np.testing.assert_allclose(path.vertices[:, 0], -1 + 4 / 4, atol=0.02)
    # Palest at the border, darkest far away.
    darkness = 1 - pixels[0].min(axis=1)
    assert np.argmin(darkness[10:]) + 10 == pytest.approx(624 / 4, abs=2)
    np.testing.assert_allclose(pixels[0, -1], to_rgb(styles_of([1])[1].color), atol=1e-6)
    assert "3 and more" in texts(figure)
    assert [box.offsetbox.get_children()[-1].get_text() for box in axes.artists] == ["1", "2", "3"]


@pytest.mark.parametrize("margins", [np.nan, 0.0])
def test_without_margins_colours_are_full(margins):
    figure = plot_plane(plane_of([[0, 0], [1, 1]], margins))
    check_layout(figure)
    colors = {tuple(np.round(color, 6)) for color in map_of(figure)[0].reshape(-1, 3)}
    assert colors == {tuple(np.round(to_rgb(styles_of([c])[c].color), 6)) for c in (0, 1)}
    assert not [text for text in texts(figure) if "margin" in text]


def test_patterns_and_long_keys():
    classes = np.arange(25).reshape(5, 5)
    classes[0, 0] = 24
    figure = plot_plane(
        plane_of(classes, np.nan), class_names=[f"a rather long name of a class {c}" for c in range(25)]
    )
    check_layout(figure)
    assert "and 6 more" in texts(figure)
    pixels, _ = map_of(figure)
    white = (pixels == 1).all(axis=2)
    assert not white[: 624 // 10, : 624 // 10].any(), "no pattern in the first eight"
    assert 0.05 < white[500:].mean() < 0.3
    lone = plot_plane(plane_of(np.zeros((4, 4))))
    check_layout(lone)
    assert texts(lone)[1] == "1 region of 1 class on 4 x 4 points"
    assert not map_of(lone)[1].collections


# ------------------------------------------------------------------------------------------------ curves


def history_of(epochs=(-1, 0, 1, 2), strata=("redundant", "random"), **values):
    rows = []
    for epoch, (place, stratum) in itertools.product(epochs, enumerate(strata)):
        rows.append({"epoch": epoch, "stratum": stratum, "n": 50, "crossing_rate": 0.1 * (epoch + 1) + 0.3 * place})
        rows[-1].update({name: value + epoch for name, value in values.items()})
    return rows


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_panel_for_each_metric_and_a_line_for_each_stratum():
    history = history_of(margin_min_mean=4.0, crossings_mean=1.0, something_else=0.0, crossing_rate_low=0.0)
    figure = plot_boundary_curves(history)
    figure.savefig(io.BytesIO())
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == [
        "paths with a crossing",
        "crossings a path, mean",
        "smallest margin on a path, mean",
        "something_else",
    ]
    assert legend_of(figure) == ["redundant", "random", "before training"]
    before, after = figure.axes[0].lines[:2]
    np.testing.assert_allclose(before.get_data(), [[-1], [0.0]])
    np.testing.assert_allclose(after.get_data(), [[0, 1, 2], [0.1, 0.2, 0.3]])
    assert after.get_color() == figure.axes[1].lines[1].get_color() != figure.axes[0].lines[3].get_color()
    assert [tick for tick in figure.axes[0].get_xticks() if tick < 0] == []
    five = plot_boundary_curves(history_of(a=1.0, b=1.0, c=1.0, d=1.0))
    assert [axes.axison for axes in five.axes] == [True] * 5 + [False]


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.3, 50), (1.0, 7), (0.5, 2)])
def test_bands_are_wilson_intervals(share, count):
    rows = [{"epoch": e, "stratum": "s", "n": count, "crossing_rate": share} for e in (0, 1)]
    figure = plot_boundary_curves(rows, "crossing_rate")
    (band,) = figure.axes[0].collections
    bounds = band.get_paths()[0].vertices[:, 1]
    # Both bounds solve (p - share)^2 = z^2 p (1 - p) / n.
    square = 1.959963984540054**2 / count
    roots = np.sort(np.roots([1 + square, -2 * share - square, share**2]).real)
    assert bounds.min() == pytest.approx(roots[0], abs=1e-9)
    assert bounds.max() == pytest.approx(roots[1], abs=1e-9)


def test_one_epoch_and_gaps_and_other_numbers_for_before():
    single = plot_boundary_curves(history_of(epochs=(3,)), ["crossing_rate"])
    assert [float(line.get_xdata()[0]) for line in single.axes[0].lines if len(line.get_xdata())] == [2.95, 3.05]
    assert len(single.axes[0].collections) == 2
    assert legend_of(single) == ["redundant", "random"]
    history = history_of(first_crossing_mean=0.5)
    for row in history:
        if row["stratum"] == "random":
            row["first_crossing_mean"] = None if row["epoch"] == 1 else np.float32(0.25)
            del row["crossing_rate"]
    figure = plot_boundary_curves(history, before=0)
    rate, position = figure.axes
    assert len(rate.lines) == 2, "only one stratum has it"
    np.testing.assert_array_equal(position.lines[3].get_ydata(), [0.25, np.nan, 0.25])
    np.testing.assert_array_equal(position.lines[2].get_data(), [[0], [0.25]])
    assert position.get_ylim() == (0, 1)
    assert legend_of(figure)[-1] == "before training"
    only = plot_boundary_curves(history_of(epochs=(-1,)))
    only.savefig(io.BytesIO())
    assert list(only.axes[0].get_xticks()) == [-1]
    many = plot_boundary_curves(history_of(epochs=range(60), crossings_mean=-3.0), ("crossings_mean",))
    assert many.axes[0].get_ylim()[0] < -2


CURVE = {
    "removed_fraction": [0.02, 0.1, 0.2, 0.5],
    "rate": [0.02, 0.03, 0.05, 0.12],
    "low": [0.01, 0.02, 0.04, 0.1],
    "high": [0.03, 0.04, 0.06, 0.14],
    "base_rate": 0.02,
    "random_rate": 0.2,
    "limit": 0.038,
    "chosen": 0.14,
    "chosen_low": 0.12,
    "chosen_high": 0.17,
}


def test_crossing_curve():
    figure = plot_crossing_curve(CURVE)
    check_layout(figure)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_data(), [CURVE["removed_fraction"], CURVE["rate"]])
    assert [line.get_ydata()[0] for line in axes.lines[1:4]] == [0.2, 0.038, 0.02]
    assert axes.lines[4].get_xdata()[0] == 0.14
    found = texts(figure)
    assert "14.0 % removed\n(12.0 to 17.0 %)" in found
    assert {"random pairs\nof one class  20.0 %", "limit  3.8 %", "safest images  2.0 %"} <= set(found)
    figure = plot_crossing_curve({**CURVE, "chosen": None, "random_rate": 0.02, "limit": 0.02})
    check_layout(figure)
    assert "nothing is removed" in texts(figure)
    high = {**CURVE, "chosen": 0.45, "chosen_low": None}
    del high["chosen_high"]
    figure = plot_crossing_curve(high)
    check_layout(figure)
    (text,) = [text for text in all_texts(figure) if "removed" in text.get_text()]
    assert text.get_text() == "45.0 % removed"
    assert text.get_ha() == "right"
    zero = {
        **CURVE,
        "removed_fraction": [0.0],
        "rate": [0.0],
        "low": [0.0],
        "high": [0.0],
        "chosen": 0.0,
        "chosen_low": 0.0,
    }
    check_layout(plot_crossing_curve(zero))
    long = np.linspace(0, 0.5, 200)
    curve = {**CURVE, "removed_fraction": long, "rate": long / 5, "low": long / 6, "high": long / 4}
    assert plot_crossing_curve(curve).axes[0].lines[0].get_marker() in {"", "None"}


# ------------------------------------------------------------------------------------------------ errors

REPORT = report_of([[0], [0, 0.5, 1]])
PLANE = plane_of([[0, 1]] * 2)
ROW = {"epoch": 0, "stratum": "a", "crossing_rate": 0.5, "n": 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plot_paths(REPORT, images(1), images(2)),
            "`start` must be 2 images, one for each pair, got '1",
        ),
        (lambda: plot_paths(REPORT, images(2), images(3)), "`end` must be 2 images, one for each pair, got '3"),
        (lambda: plot_paths(REPORT.subset([]), [], []), "`report` must be one of at least one pair"),
        (
            lambda: plot_paths(REPORT, images(2), images(2), labels=[0, 1]),
            r"`labels` must be integers of shape \(2, 2\)",
        ),
        (lambda: plot_paths(REPORT, images(2), images(2), labels=[["a"] * 2] * 2), "`labels` must be integers"),
        (lambda: plot_paths(REPORT, images(2), images(2), strata=["a"]), r"`strata` must be of shape \(2,\), one for"),
        (lambda: plot_paths(REPORT, images(2), images(2), n_pairs=0), "`n_pairs` must be in 1 to 100, got 0"),
        (lambda: plot_paths(REPORT, images(2), ["a", "b"]), "`end` must be a data set of images"),
        (lambda: plot_plane(PLANE, images(2)), "`images` must be three, one for each corner, got '2'"),
        (
            lambda: plot_plane(PLANE, labels=[1]),
            "`labels` must be three, one for each corner, got '1'",
        ),
        (lambda: plot_plane(PLANE, "abc"), "`images` must be a data set of images"),
        (lambda: plot_boundary_curves([]), "`history` must be at least one row, got 'none'"),
        (lambda: plot_boundary_curves([{"epoch": 0}]), "`history` must be rows with .* got 'row 0 without stratum'"),
        (
            lambda: plot_boundary_curves([ROW, ROW]),
            "one row an epoch and stratum, got 'two of epoch 0, a'",
        ),
        (
            lambda: plot_boundary_curves([{**ROW, "crossing_rate": 1.5}]),
            r"in \[0, 1\] as `crossing_rate`, got 1.5",
        ),
        (lambda: plot_boundary_curves([{**ROW, "n": None}]), "number of pairs `n` beside `crossing_rate`, got None"),
        (lambda: plot_boundary_curves([{**ROW, "n": 0}]), "number of pairs `n` beside `crossing_rate`, got 0"),
        (lambda: plot_boundary_curves([{"epoch": 0, "stratum": "a", "n": 1}]), "`history` must be rows with values"),
        (lambda: plot_boundary_curves([ROW], "margin"), "`metric` must be among those of the history, cross"),
        (lambda: plot_boundary_curves([ROW], []), r"`metric` must be among those of the history.* got \[\]"),
        (
            lambda: plot_crossing_curve({"rate": [1.0]}),
            "one with .*, got 'one without removed_fraction'",
        ),
        (lambda: plot_crossing_curve({**CURVE, "rate": [0.1]}), "`curve` must be lists of one length, at least 1"),
        (
            lambda: plot_crossing_curve({**CURVE, "limit": 1.2}),
            r"one with `limit` in \[0, 1\], got 1.2",
        ),
        (lambda: plot_crossing_curve({**CURVE, "base_rate": None}), r"one with `base_rate` in \[0, 1\], got nan"),
        (lambda: plot_crossing_curve({**CURVE, "rate": [0.1, np.nan, 0.2, 0.3]}), r"one with `rate` in \[0, 1\]"),
        (
            lambda: plot_crossing_curve({**CURVE, "removed_fraction": [0.1, 0.1, 0.2, 0.3]}),
            "one with an ascending `removed_fraction`",
        ),
        (lambda: plot_crossing_curve({**CURVE, "low": [0.5] * 4}), "one with `low` <= `rate` <= `high`"),
        (lambda: plot_crossing_curve({**CURVE, "high": [0.0] * 4}), "one with `low` <= `rate` <= `high`"),
        (
            lambda: plot_crossing_curve({**CURVE, "chosen_low": 0.3}),
            "one with `chosen_low` <= `chosen` <= `chosen",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_of_type():
    with pytest.raises(TypeError, match="`n_pairs` must be an integer, got 2.0"):
        plot_paths(REPORT, images(2), images(2), n_pairs=2.0)


def test_nothing_that_was_given_is_changed():
    plane = plane_of([[0, 1], [1, 1]])
    before = {field.name: np.array(getattr(plane, field.name)) for field in dataclasses.fields(plane)}
    three = torch.randn(3, 3, 8, 8)
    kept = three.clone()
    plot_plane(plane, three)
    plot_paths(REPORT, three[:2], three[1:], labels=np.zeros((2, 2), int))
    assert torch.equal(three, kept)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(plane, name), value)
