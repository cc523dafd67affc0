"""Images, boxes and labels as pictures show them."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from drawn_scenes import COLOURS, DrawnScenes
from matplotlib.figure import Figure

from toolkit.drawing import (
    Picture,
    add_key,
    boxes_of,
    class_color,
    class_name,
    corners_of,
    displayable,
    draw_boxes,
    image_at,
    key_of_boxes,
    label_text,
    labels_differ,
    picture_at,
    text_width,
    wrapped,
)


def sample(side=64):
    return {
        "img": torch.full((3, side, side), 100, dtype=torch.uint8),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1]]),
        "cls": torch.tensor([[1.0], [9.0]]),
        "im_file": "a.jpg",
    }


def test_the_image_of_a_detection_sample_is_shown():
    np.testing.assert_allclose(displayable(sample()), np.full((64, 64, 3), 100 / 255), rtol=1e-6)


@pytest.mark.parametrize("shape", [(48, 64), (64, 40), (32, 32)])
def test_padding_is_left_out_and_boxes_lie_on_what_is_drawn(shape):
    scenes = DrawnScenes(12, shape=shape, seed=3)
    for index, boxes in enumerate(scenes.boxes):
        image, found = displayable(scenes[index]), boxes_of(scenes[index])
        assert np.array_equal(np.rint(255 * image), scenes.images[index])
        assert found.shape == (len(boxes), 5)
        assert found[:, 0].tolist() == scenes.targets[index]
        assert np.allclose(found[:, 1:], np.reshape(boxes, (-1, 4)), atol=1e-6)
    x, y = (scenes.boxes[0][-1][:2] * shape[::-1]).astype(int)
    assert np.array_equal(scenes.images[0][y, x], COLOURS[scenes.targets[0][-1]])


@pytest.mark.parametrize(
    "told",
    [
        {"ori_shape": (32, 64)},
        {"ori_shape": (32, 64), "ratio_pad": (1.0, 1.0)},  # of a mosaic, as ultralytics tells it
        {"ori_shape": (32, 64), "ratio_pad": ((2.0, 2.0), (0, 16))},
        {"ori_shape": (32, 64), "ratio_pad": ((1.0, 1.0), (-1, 0))},
        {"ori_shape": (0, 0), "ratio_pad": ((1.0, 1.0), (0, 0))},
    ],
)
def test_what_tells_no_padding_is_shown_whole(told):
    assert displayable(sample() | told).shape == (64, 64, 3)
    assert np.allclose(boxes_of(sample() | told), boxes_of(sample()))


def test_boxes_are_drawn_where_they_are_in_the_colours_of_their_classes():
    figure = Figure()
    axes = figure.subplots()
    shown = axes.imshow(np.zeros((40, 80)))
    draw_boxes(shown, np.float32([[1, 0.5, 0.5, 0.5, 0.25], [4, 0.0, 1.0, 0.5, 0.5]]))
    (frames,) = axes.collections
    edges = [path.get_extents(frames.get_transform() - axes.transData).extents for path in frames.get_paths()]
    assert np.allclose(edges, [[19.5, 14.5, 59.5, 24.5], [-0.5, 29.5, 19.5, 39.5]])
    found = [tuple(round(255 * part) for part in color[:3]) for color in frames.get_edgecolor()]
    assert found == [tuple(bytes.fromhex(class_color(number)[1:])) for number in (1, 4)]
    assert frames.get_facecolor().size == 0
    for boxes in (None, np.zeros((0, 5), np.float32)):
        draw_boxes(shown, boxes)
    assert len(axes.collections) == 1


def test_corners_stay_inside():
    corners = corners_of(np.float32([[0, 0.0, 1.0, 3.0, 3.0], [0, 0.5, 0.5, 0, 0]]))
    assert corners.tolist() == [[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]]


def test_samples_without_boxes_have_none():
    assert boxes_of(torch.zeros(3, 4, 4)) is None
    assert boxes_of((torch.zeros(3, 4, 4), 1)) is None
    assert boxes_of(sample() | {"cls": torch.zeros(5, 1)}) is None
    assert len(boxes_of({**sample(), "bboxes": torch.zeros(0, 4), "cls": torch.zeros(0, 1)})) == 0


def test_pictures_of_a_data_set_have_boxes():
    image, boxes = picture_at([sample(640)], 0, "dataset")
    assert max(image.shape[:2]) < 640
    assert boxes[:, 0].tolist() == [1, 9]
    assert np.array_equal(image_at([sample(640)], 0, "dataset"), image)
    with pytest.raises(ValueError, match="`pairs` must be one that has the images asked for, got '1 images, none at"):
        picture_at([sample()], 1, "pairs")


def test_classes_have_colours_of_their_own():
    colours = [class_color(number) for number in range(200)]
    assert len(set(colours)) == 200
    parts = np.array([list(bytes.fromhex(colour[1:])) for colour in colours])
    assert parts.shape == (200, 3)
    for first, second in itertools.combinations(parts[:10] / 255, 2):
        assert np.abs(first - second).max() > 0.15
    assert {round(colorsys.rgb_to_hls(*part)[1], 2) for part in parts[10:] / 255} == {0.45, 0.58, 0.36}


def test_the_key_names_the_classes_with_most_boxes():
    boxes = np.zeros((78, 5), np.float32)
    boxes[:, 0] = np.repeat(np.arange(12), np.arange(1, 13))
    pictures = [Picture(np.zeros((4, 4)), boxes), Picture(np.zeros((4, 4)), None)]
    key = key_of_boxes(pictures, ["ant", "bee", "cat $x$"])
    assert key == [("cat $x$", class_color(2)), *((str(number), class_color(number)) for number in range(3, 12))]
    figure = Figure(figsize=(6, 2))
    add_key(figure, key, loc="center")
    add_key(figure, key_of_boxes(pictures[1:], None), loc="center")
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == 10
    assert texts[1:] == [str(number) for number in range(3, 12)]
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (1, "sign"),
        ("1", "sign"),
        (torch.tensor(0), "car"),
        (7, "7"),
        ("tree", "tree"),
        ([], "no objects"),
        ([0, 1, 0, 0], "car x3 + sign"),
        ((1, 2), "sign + 2"),
    ],
)
def test_labels_in_words(label, text):
    assert label_text(label, ["car", "sign"]) == text
    assert class_name([label], 0, ["car", "sign"]) == text
    assert class_name(None, 0, ["car", "sign"]) == ""


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (1, 1, False),
        (1, torch.tensor(1).item(), False),
        ("a", "b", True),
        ([0, 0, 1], (1, 0), False),
        ([0], [0, 1], True),
        ([], [], False),
    ],
)
def test_labels_differ_whatever_their_number(one, other, differ):
    assert labels_differ(one, other) is differ
    assert labels_differ(other, one) is differ


def test_long_labels_are_broken_behind_plus_signs():
    assert wrapped("car x3", 3.0, 8, 3) == ["car x3"]
    lines = wrapped("bicycle x3 + traffic light x2 + pedestrian", 1.2, 8, 3)
    assert lines == ["bicycle x3 +", "traffic light x2 +", "pedestrian"]
    few = wrapped(" + ".join(f"class {number}" for number in range(20)), 1.2, 8, 2)
    assert len(few) == 2
    assert few[1].endswith("…")
    assert all(text_width(line, 8, "normal") <= 1.2 for line in few)
