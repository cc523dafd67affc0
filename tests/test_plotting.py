import io
import itertools

import numpy as np
import pytest
import torch
from drawn_scenes import DrawnScenes
from matplotlib.colors import to_hex
from PIL import Image
from torch.utils.data import TensorDataset

from toolkit import RandomSelector, SemanticSelector
from toolkit.drawing import BLUE, DARK, ORANGE, class_color
from toolkit.plotting import (
    displayable,
    plot_band_energy,
    plot_groups,
    plot_isolated,
    plot_kept_fraction,
    plot_pairs,
    plot_similarity_graph,
    plot_similarity_matrix,
    plot_spectrum,
    plot_timeline,
)


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        (torch.rand(3, 4, 5), (4, 5, 3)),
        ((torch.rand(1, 4, 5), 7), (4, 5)),
        ({"image": torch.rand(4, 5)}, (4, 5)),
        (torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8), (4, 5, 3)),
        (torch.randn(6, 4, 5) * 9, (4, 5, 3)),
        ((Image.new("L", (5, 4)), 0), (4, 5, 3)),
    ],
)
def test_samples_are_made_displayable(sample, shape):
    array = displayable(sample)
    assert array.shape == shape
    assert array.min() >= 0
    assert array.max() <= (255 if array.dtype == np.uint8 else 1)


@pytest.mark.parametrize("sample", ["text", torch.rand(3), torch.rand(2, 3, 4, 5), {"text": 1}])
def test_what_is_no_image_is_not_displayed(sample):
    assert displayable(sample) is None


def test_the_largest_groups_come_first_with_their_distances(tmp_path):
    base = np.eye(5)
    near = np.concatenate([base[:1] + 0.01 * base[1:4], base[1:2] + 0.02 * base[4:5], base])
    dataset = TensorDataset(torch.rand(9, 1, 6, 6), torch.tensor([0] * 9))
    selection = SemanticSelector(near, n_groups=5, progress=False).select(dataset)
    figure = plot_groups(selection, dataset, class_names=["ant"])
    grid = np.array(figure.axes).reshape(2, 4)
    assert grid[0][0].get_title() == "kept"
    distances = [float(axes.get_title()) for axes in grid[0][1:]]
    assert distances == sorted(distances)
    assert all(distance > 0 for distance in distances)
    assert grid[0][0].get_ylabel() == "ant\n4 images"
    assert grid[1][0].get_ylabel() == "ant\n2 images"
    assert len(grid[1][2].images) == 0
    figure.savefig(tmp_path / "groups.png")
    assert (tmp_path / "groups.png").stat().st_size > 1000
    assert len(plot_groups(selection, dataset, n_groups=1, n_members=2).axes) == 2


def test_errors():
    vectors = np.random.default_rng(0).normal(size=(4, 3))
    everything = SemanticSelector(vectors, 1.0, scope="dataset", progress=False).select()
    with pytest.raises(ValueError, match="`selection` must be one with a group of two images or more"):
        plot_groups(everything, range(4))
    half = SemanticSelector(vectors, 0.5, scope="dataset", progress=False).select()
    with pytest.raises(ValueError, match="`dataset` must be a data set of images, got 'a sample that is none at index"):
        plot_groups(half, ["a", "b", "c", "d"])


class Images:
    """Images that tell their index by their brightness: index / 100 throughout."""

    def __init__(self, count, shape=(3, 8, 8)):
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full(self.shape, index / 100), index % 3


def shown_indices(figure):
    """The images on a sheet of `Images`, in the order in which they were drawn."""
    return [round(100 * float(np.asarray(axes.images[0].get_array()).mean())) for axes in figure.axes]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def check_layout(figure):
    """No text of a sheet leaves the figure, and no two overlap."""
    figure.savefig(io.BytesIO(), dpi=50)
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not (one.shrunk(0.99, 0.8).overlaps(other.shrunk(0.99, 0.8))), "two texts overlap"


def test_arrays_are_displayable_with_channels_first_or_last():
    image = np.random.default_rng(0).integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    np.testing.assert_allclose(displayable(image), image / 255, atol=1e-6)
    np.testing.assert_allclose(displayable(image.transpose(2, 0, 1)), image / 255, atol=1e-6)
    np.testing.assert_allclose(displayable(image[..., 0]), image[..., 0] / 255, atol=1e-6)
    assert displayable(image[..., :1]).shape == (4, 5)
    assert displayable(np.array(["a"])) is None


def test_pairs_side_by_side_with_their_classes():
    pairs = [[3, 14], [2, 5], [7, 9]]
    figure = plot_pairs(
        Images(20),
        pairs,
        distances=[0.1, 0.25, 1234.5],
        similarities=[0.99951, 0.5, -0.25],
        similarity_name="SSIM",
        labels=np.arange(20) % 3,
        class_names=["ant", "bee", "cat"],
        mirrored=[False, True, False],
        title="Alike",
    )
    assert shown_indices(figure) == [3, 14, 2, 5, 7, 9]
    assert texts(figure) == [
        "Alike",
        *("SSIM 1.000 · distance 0.100", "ant", "#3", "cat", "#14"),
        *("SSIM 0.500 · distance 0.250 · mirrored", "cat", "#2", "cat", "#5"),
        *("SSIM -0.250 · distance 1,234", "bee", "#7", "ant", "#9"),
    ]
    colors = {text.get_text(): text.get_color() for text in figure.texts}
    styles = [(text.get_text(), text.get_color(), text.get_fontweight()) for text in figure.texts]
    # The pairs of two classes are in two colours, that of one class is in none.
    of_classes = [style for style in styles if style[0] in {"ant", "bee", "cat"}]
    assert [weight for _, _, weight in of_classes] == ["bold", "bold", "normal", "normal", "bold", "bold"]
    assert of_classes[0][1] != of_classes[1][1]
    assert of_classes[2][1] == of_classes[3][1] == colors["Alike"]
    first, second, third = (figure.axes[index].spines["left"].get_edgecolor() for index in (0, 1, 2))
    assert len({first, second, third}) == 3
    check_layout(figure)


def test_pairs_of_two_data_sets():
    figure = plot_pairs(
        Images(3),
        [[0, 40], [2, 50]],
        Images(60, (1, 4, 6)),
        labels=["a", "b", "c"],
        other_labels=["a"] * 60,
        captions=("test", "training"),
    )
    assert shown_indices(figure) == [0, 40, 2, 50]
    assert texts(figure)[1:] == ["a", "test 0", "a", "training 40", "c", "test 2", "a", "training 50"]
    one_sided = plot_pairs(Images(3), [[0, 1]], Images(3), labels=["a", "b", "c"])
    assert texts(one_sided)[1:] == ["a", "#0", "#1"]


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_sheets_hold_as_many_as_asked_for(count):
    pairs = np.arange(60).reshape(30, 2)
    figure = plot_pairs(Images(60), pairs, n_pairs=count, labels=["a very long name of a class, $x_1^2$"] * 60)
    assert shown_indices(figure) == list(range(2 * count))
    assert f"{count} of 30 pairs" in texts(figure)
    assert sum(text.startswith("a very") and text.endswith("…") for text in texts(figure)) == 2 * count
    check_layout(figure)
    sheet = plot_isolated(Images(60), np.arange(60)[::-1], n_images=count, distances=np.linspace(9, 1, 60))
    assert shown_indices(sheet) == list(range(59, 59 - count, -1))
    check_layout(sheet)


def test_isolated_images_with_class_and_distance():
    figure = plot_isolated(
        Images(9), [4, 1], distances=[2.0, 0.5], similarities=[0.125, 0.5], labels=list("abcdefghi"), title="Alone"
    )
    assert shown_indices(figure) == [4, 1]
    assert texts(figure) == [
        "Alone",
        "above each its similarity and distance to the image most like it",
        *("similarity 0.125", "distance 2.00", "e", "#4"),
        *("similarity 0.500", "distance 0.500", "b", "#1"),
    ]
    check_layout(figure)
    assert texts(plot_isolated(Images(9), [4], title="Alone")) == ["Alone", "#4"]


def test_images_of_any_size_are_thumbnails():
    images = [torch.rand(3, 1000, 700), torch.rand(1, 5, 900), torch.rand(2, 2), Image.new("RGB", (800, 600), "red")]
    figure = plot_isolated(images, [0, 1, 2, 3])
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [array.shape[:2] for array in shown] == [(200, 140), (1, 225), (2, 2), (150, 200)]
    np.testing.assert_allclose(shown[0][0, 0], images[0][:, :5, :5].mean(dim=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(shown[3], np.broadcast_to([1.0, 0, 0], (150, 200, 3)))
    assert all(axes.images[0].get_clim() == (0, 1) for axes in figure.axes)


def test_bands_have_bars_on_a_logarithmic_axis():
    figure = plot_band_energy(["approximation", "detail_2", "detail_1", "none"], [90.0, 9.995, 0.005, 0.0])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    right = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert right[:3] == pytest.approx([90.0, 9.995, 0.005])
    assert [text.get_text() for text in axes.texts] == ["90.0 %", "10.0 %", "< 0.01 %", "0 %"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["approximation", "detail_2", "detail_1", "none"]
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first band is on top"
    plot_band_energy(["nothing"], [0.0]).savefig(io.BytesIO())


@pytest.mark.parametrize("sign", [1, -1])
def test_kept_fraction_as_steps(sign):
    thresholds = sign * np.array([0.0, 1.0, 2.0, 4.0])
    figure = plot_kept_fraction(thresholds, [1.0, 0.9, 0.6, 0.1], chosen=3.0 * sign, xlabel="distance")
    (axes,) = figure.axes
    curve, point = axes.lines[:2]
    np.testing.assert_array_equal(curve.get_xdata(), thresholds)
    assert curve.get_drawstyle() == "steps-post"
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (3.0 * sign, 0.6)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"60.0 % kept at {3 * sign}"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance", "images kept")
    left, right = axes.get_xlim()
    assert (right - left) * sign > 0, "more is kept on the left"
    figure.savefig(io.BytesIO())
    assert "100 %" in [label.get_text() for label in axes.get_yticklabels()]


def test_the_end_of_a_kept_fraction_is_magnified():
    figure = plot_kept_fraction([0.0, 1.0], [1.0, 0.95], chosen=1.0, kept_at_chosen=0.96)
    low, high = figure.axes[0].get_ylim()
    assert 0.9 < low < 0.95
    assert 1 < high < 1.02
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "96.0 % kept at 1"
    assert plot_kept_fraction([0.0], [1.0]).axes[0].get_legend() is None
    many = plot_kept_fraction(np.arange(50_000.0), np.linspace(1, 0.5, 50_000))
    assert len(many.axes[0].lines[0].get_xdata()) <= 4000


def test_similarity_matrix_in_the_order_of_groups():
    similarity = np.eye(5)
    similarity[1, 4] = similarity[4, 1] = 0.5
    similarity[0, 1] = similarity[1, 0] = -0.25
    figure = plot_similarity_matrix(similarity, groups=np.array([3, 7, -1, -1, 7]), name="SSIM", title="All")
    axes, bar = figure.axes
    order = [1, 4, 0, 2, 3]
    np.testing.assert_array_equal(axes.images[0].get_array(), similarity[np.ix_(order, order)])
    assert (axes.get_title(), bar.get_ylabel()) == ("All", "SSIM")
    assert axes.images[0].get_clim() == (-1, 1)
    outlines = axes.collections[0].get_paths()
    assert [path.get_extents().bounds for path in outlines] == [(-0.5, -0.5, 2, 2)]
    plain = plot_similarity_matrix(similarity[:2], xlabel="training image", ylabel="test image")
    np.testing.assert_array_equal(plain.axes[0].images[0].get_array(), similarity[:2])
    assert plain.axes[0].get_ylabel() == "test image"
    wide = plot_similarity_matrix([[3.0, -1.0]])
    assert wide.axes[0].images[0].get_clim() == (-3, 3)


def graph_similarity(n=12):
    similarity = np.eye(n) * 1.0
    for i, j, value in ((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.7), (3, 4, 0.95), (5, 6, 0.6), (6, 7, 0.55)):
        similarity[i, j] = similarity[j, i] = value
    return similarity


def test_similarity_graph():
    figure = plot_similarity_graph(
        graph_similarity(), Images(12), min_similarity=0.6, labels=list("aabbaabbaabb"), name="SSIM", title="Graph"
    )
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.texts]
    assert sorted(labels) == [f"#{index}" for index in range(7)]
    shown = [round(100 * float(np.asarray(image.get_array()).mean())) for image in axes.images]
    assert [f"#{index}" for index in shown] == labels
    (lines,) = axes.collections
    widths = lines.get_linewidths()
    assert np.all(np.diff(widths) > 0), "the strongest come last, on top"
    centres = {
        index: ((image.get_extent()[0] + image.get_extent()[1]) / 2, sum(image.get_extent()[2:]) / 2)
        for index, image in zip(shown, axes.images, strict=True)
    }
    ends = [(centres[i], centres[j]) for i, j in ((5, 6), (0, 2), (1, 2), (0, 1), (3, 4))]
    for segment, (start, end) in zip(lines.get_segments(), ends, strict=True):
        np.testing.assert_allclose(segment, [start, end])
    assert texts(figure) == ["Graph", "7 images, 5 pairs in 3 connected parts"]
    keys = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sorted(keys) == ["SSIM 0.600", "SSIM 0.775", "SSIM 0.950", "a", "b"]
    check_nodes(axes)


def check_nodes(axes):
    """No two images of a graph overlap, and all lie inside."""
    extents = np.array([image.get_extent() for image in axes.images])
    assert extents[:, 0].min() >= 0
    assert extents[:, 2].min() >= 0
    assert extents[:, 1].max() <= axes.get_xlim()[1]
    assert extents[:, 3].max() <= axes.get_ylim()[1]
    for one, other in itertools.combinations(extents, 2):
        apart_x = one[1] <= other[0] + 1e-9 or other[1] <= one[0] + 1e-9
        apart_y = one[3] <= other[2] + 1e-9 or other[3] <= one[2] + 1e-9
        assert apart_x or apart_y


@pytest.mark.parametrize("seed", range(4))
def test_graphs_of_many_images_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    similarity = np.triu(rng.uniform(size=(90, 90)) ** 2, 1)
    if seed == 3:
        similarity[:] = 1.0
    similarity = np.triu(similarity, 1) + np.triu(similarity, 1).T + np.eye(90)
    figure = plot_similarity_graph(similarity, Images(90), n_edges=60 + 60 * seed, n_images=50)
    assert 40 <= len(figure.axes[0].images) <= 50
    check_nodes(figure.axes[0])
    again = plot_similarity_graph(similarity, Images(90), n_edges=60 + 60 * seed, n_images=50)
    extents = [[image.get_extent() for image in one.axes[0].images] for one in (figure, again)]
    assert extents[0] == extents[1]


def test_strong_lines_stay_where_images_are_too_many():
    figure = plot_similarity_graph(graph_similarity(), Images(12), n_edges=6, n_images=4)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["#0", "#1", "#3", "#4"]
    assert texts(figure)[1] == "4 images, 2 pairs in 2 connected parts, 4 images more are left out"


def test_spectrum_with_its_gaps():
    eigenvalues = [0.0, 0.0, 5.0, 1.0, 1.1, 5.3]
    figure = plot_spectrum(eigenvalues, eigengap=0.5, n_groups=4)
    above, below = figure.axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), sorted(eigenvalues))
    small, large = below.lines[:2]
    np.testing.assert_allclose(large.get_ydata(), [1.0, 3.9])
    np.testing.assert_allclose(large.get_xdata(), [2.5, 4.5])
    assert len(small.get_ydata()) == 3
    assert small.get_ydata()[0] < 0.1 / 2, "a gap of 0 lies below all others"
    assert below.get_ylim()[0] < small.get_ydata().min()
    assert [text.get_text() for text in below.texts] == ["2 gaps above 0.5"]
    assert above.get_title() == "Spectrum of the graph Laplacian: 4 groups"
    assert plot_spectrum([2.0, 2.0]).axes[0].get_title() == "Spectrum of the graph Laplacian"
    assert plot_spectrum([0.0, 1.0], eigengap=0.5).axes[1].texts[0].get_text() == "1 gap above 0.5"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_pairs(Images(2), np.empty((0, 2), int)), r"`pairs` must be indices of shape \(P, 2\)"),
        (lambda: plot_pairs(Images(2), [[0, 1, 1]]), r"`pairs` must be indices of shape \(P, 2\)"),
        (lambda: plot_pairs(Images(2), [[0, -1]]), "`pairs` must be integers that are 0 or more"),
        (lambda: plot_pairs(Images(2), [[0.0, 1.0]]), "`pairs` must be integers"),
        (lambda: plot_pairs(Images(2), [[0, 2]]), "`dataset` must be one that has.*2 images, none at index 2"),
        (lambda: plot_pairs(Images(2), [[0, 2]], Images(1)), "`other_dataset` must be one that has"),
        (lambda: plot_pairs(Images(2), [[0, 1]], distances=[1, 2]), r"`distances` must be of shape \(1,\), one for"),
        (lambda: plot_pairs(Images(2), [[0, 1]], n_pairs=51), "`n_pairs` must be in 1 to 50, got 51"),
        (lambda: plot_pairs(["a", "b"], [[0, 1]]), "`dataset` must be a data set of images"),
        (lambda: plot_isolated(Images(2), []), r"`indices` must be indices of shape \(n,\), at least one"),
        (lambda: plot_isolated(Images(2), [0], n_images=101), "`n_images` must be in 1 to 100"),
        (lambda: plot_isolated(Images(2), [0], similarities=[]), "`similarities` must be of shape"),
        (lambda: plot_band_energy(["a"], [1.0, 2.0]), r"`energy` must be of shape \(1,\)"),
        (lambda: plot_band_energy(["a"], [-1.0]), "`energy` must be finite and 0 or more"),
        (lambda: plot_kept_fraction([], []), "`thresholds` must be a vector of finite numbers"),
        (lambda: plot_kept_fraction([0, 2, 1], [1, 1, 1]), "`thresholds` must be sorted"),
        (lambda: plot_kept_fraction([0, 1], [1.0]), r"`kept` must be of shape \(2,\) and in \[0, 1\]"),
        (lambda: plot_kept_fraction([0, 1], [1.0, 1.5]), r"`kept` must be of shape \(2,\) and in \[0, 1\]"),
        (lambda: plot_similarity_matrix(np.zeros((2001, 2))), "`similarity` must be a matrix of 1 to 2,000 rows"),
        (lambda: plot_similarity_matrix([[np.nan]]), "`similarity` must be finite, got '1 NaN or infinite values'"),
        (lambda: plot_similarity_matrix(np.eye(2), groups=[1]), r"`groups` must be integers of shape \(2,\)"),
        (lambda: plot_similarity_graph(np.eye(2), Images(2), min_similarity=0.5), "`min_similarity` must be reached"),
        (lambda: plot_similarity_graph(np.eye(2), Images(2), n_images=1), "`n_images` must be in 2 to 100"),
        (lambda: plot_similarity_graph([[1, 0.5], [0.2, 1]], Images(2)), "`similarity` must be symmetric"),
        (lambda: plot_similarity_graph(np.eye(1), Images(1)), "pair of images or more"),
        (lambda: plot_spectrum([1.0]), "`eigenvalues` must be two finite numbers or more"),
        (lambda: plot_spectrum([1.0, np.nan]), "`eigenvalues` must be two finite numbers or more"),
    ],
)
def test_errors_of_pictures(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call", [lambda: plot_pairs(Images(2), [[0, 1]], n_pairs=1.5)])
def test_errors_of_type(call):
    with pytest.raises(TypeError, match="`n_pairs` must be an integer, got 1.5"):
        call()


def boxes_on(axes):
    """The boxes drawn over the image on some axes: colours and shares of the image."""
    (image,), frames = axes.images, axes.collections
    if not frames:
        return []
    left, right, bottom, top = image.get_extent()
    scale = np.array([right - left, bottom - top] * 2)
    return [
        (to_hex(color), *((path.get_extents().extents - [left, top, left, top]) / scale).round(4).tolist())
        for path, color in zip(frames[0].get_paths(), frames[0].get_edgecolor(), strict=True)
    ]


def expected(scenes, index):
    return [
        (class_color(name), *np.round([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 4))
        for name, (x, y, w, h) in zip(scenes.targets[index], scenes.boxes[index], strict=True)
    ]


def approx(boxes):
    return [(color, pytest.approx(edges, abs=2e-4)) for color, *edges in boxes]


def test_scenes_have_their_boxes_in_every_picture():
    scenes = DrawnScenes(24)
    names = ["car", "sign"]
    selection = SemanticSelector(scenes.vectors(), 0.7, scope="dataset", progress=False).select(scenes)
    gone = int(selection.removed[0])
    stays = int(selection.representative[gone])
    pairs = plot_pairs(scenes, [[gone, stays]], labels=scenes.targets, class_names=names)
    isolated = plot_isolated(scenes, [gone, stays], labels=scenes.targets, class_names=names)
    for figure in (pairs, isolated):
        for axes, index in zip(figure.axes, (gone, stays), strict=True):
            assert [(color, edges) for color, *edges in boxes_on(axes)] == approx(expected(scenes, index))
        classes = sorted({*scenes.targets[gone], *scenes.targets[stays]})
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts == [[*names, "2"][number] for number in classes]
    groups = plot_groups(selection, scenes, class_names=names)
    assert sum(len(boxes_on(axes)) for axes in groups.axes if axes.images) > 10
    graph = plot_similarity_graph(np.eye(24) + 0.5 - 0.5 * np.eye(24), scenes, n_edges=20, labels=scenes.targets)
    assert sum(len(frames.get_paths()) for frames in graph.axes[0].collections[1:]) > 20


def test_pairs_of_label_sets_differ_where_another_class_is_there():
    scenes = DrawnScenes(6)
    scenes.targets[:3] = [[0, 0, 1], [0, 1], [0]]
    figure = plot_pairs(scenes, [[0, 1], [0, 2]], labels=scenes.targets, class_names=["car", "sign"])
    colors = [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes]
    assert colors == [DARK, DARK, BLUE, ORANGE]
    texts = [text.get_text() for text in figure.texts]
    assert "car x2 + sign" in texts
    # What the other image has not comes first.
    assert "sign + car x2" in texts


@pytest.mark.parametrize("n_frames", [9, 177, 10_000])
def test_a_timeline_is_dark_where_frames_stay(n_frames, tmp_path):
    ids = [f"clips/night_{k:05}.jpg" for k in range(n_frames)] + [f"clips/x{k}.jpg" for k in range(8)]
    selection = RandomSelector(0.3, seed=1).select(range(len(ids)), ids=ids)
    figure = plot_timeline(selection)
    long, short = figure.axes[0].images
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["night", "x"]
    kept = np.isin(np.arange(n_frames), selection.kept)
    columns = long.get_array()[0]
    assert len(columns) == min(n_frames, 900)
    assert long.get_extent()[:2] == [0, n_frames]
    assert short.get_extent()[:2] == [0, 8]
    if n_frames <= 900:
        assert (columns == columns[np.argmin(kept)]).all(axis=1).tolist() == (~kept).tolist()
    else:
        edges = np.linspace(0, n_frames, 901).astype(int)
        shares = np.array([kept[a:b].mean() for a, b in itertools.pairwise(edges)])
        light = columns[np.argmin(shares)]
        assert ((columns == light).all(axis=1) == (shares == 0)).all()
        order = np.argsort(shares[shares > 0], kind="stable")
        opacity = columns[shares > 0][order, 3]
        assert (np.diff(opacity) >= 0).all()
        assert opacity[0] > 0.5
    gap = max(len(list(run)) for stays, run in itertools.groupby(kept) if not stays)
    assert f"{kept.sum():,} of {n_frames:,}, gap {gap:,}" in [text.get_text() for text in figure.axes[0].texts]
    figure.savefig(tmp_path / "timeline.png", dpi=120)
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.size == (1200, 261)


def test_the_longest_sequences_are_shown_and_the_rest_counted():
    ids = [f"{video:02}/{k}.jpg" for video in range(45) for k in range(8 + video % 5)]
    selection = RandomSelector(0.5).select(range(len(ids)), ids=ids)
    figure = plot_timeline(selection, n_sequences=9)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"{video:02}" for video in range(4, 45, 5)]
    assert any("the longest 9 of 45 sequences" in text.get_text() for text in figure.texts)


def test_a_timeline_needs_frames():
    for ids in (None, [f"{name}.jpg" for name in "abcdefghij"]):
        selection = RandomSelector(0.5).select(range(10), ids=ids)
        with pytest.raises(ValueError, match="`selection` must be one with ids that number the frames of a video"):
            plot_timeline(selection)
    frames = RandomSelector(0.5).select(range(10), ids=[f"{k}.jpg" for k in range(10)])
    with pytest.raises(ValueError, match="`n_sequences` must be in 1 to 100, got 0"):
        plot_timeline(frames, n_sequences=0)
