"""Images and labels as pictures show them, with the boxes of detection data sets."""

import numpy as np
import pytest
import torch

from toolkit.drawing import boxes_of, class_name, displayable, image_at, label_text, with_boxes


def sample(side=64):
    return {
        "img": torch.full((3, side, side), 100, dtype=torch.uint8),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1]]),
        "cls": torch.tensor([[1.0], [9.0]]),
        "im_file": "a.jpg",
    }


def test_the_image_of_a_detection_sample_is_shown():
    np.testing.assert_allclose(displayable(sample()), np.full((64, 64, 3), 100 / 255), rtol=1e-6)


def test_boxes_are_drawn_where_they_are_and_nowhere_else():
    image = np.zeros((40, 80, 3), np.uint8)
    drawn = with_boxes(image, np.float32([[1, 0.5, 0.5, 0.5, 0.5]]))
    painted = drawn.any(axis=2)
    assert painted[10].nonzero()[0].tolist() == list(range(20, 61))
    assert painted[:, 20].nonzero()[0].tolist() == list(range(10, 31))
    assert not painted[11:30, 21:60].any(), "an outline, not a filled box"
    assert not painted[:10].any()
    assert not image.any(), "the image itself stays as it is"


def test_colours_differ_between_classes_and_floats_stay_in_range():
    boxes = boxes_of(sample())
    assert boxes[:, 0].tolist() == [1, 9]
    drawn = with_boxes(np.zeros((64, 64, 3)), np.float32([[0, 0.3, 0.3, 0.2, 0.2], [1, 0.7, 0.7, 0.2, 0.2]]))
    assert len({tuple(colour) for colour in drawn.reshape(-1, 3)}) == 3
    assert drawn.max() <= 1


def test_boxes_beyond_the_border_and_empty_ones_are_drawn_inside():
    drawn = with_boxes(np.zeros((10, 10), np.uint8), np.float32([[0, 0.0, 1.0, 3.0, 3.0], [0, 0.5, 0.5, 0, 0]]))
    assert drawn.shape == (10, 10, 3)
    assert drawn[5, 5].any()
    assert drawn[0, 0].any()


def test_samples_without_boxes_have_none():
    assert boxes_of(torch.zeros(3, 4, 4)) is None
    assert boxes_of((torch.zeros(3, 4, 4), 1)) is None
    assert len(boxes_of({**sample(), "bboxes": torch.zeros(0, 4), "cls": torch.zeros(0, 1)})) == 0
    image = np.zeros((4, 4), np.uint8)
    assert with_boxes(image, None) is image


def test_pictures_of_a_data_set_have_boxes():
    image = image_at([sample(640)], 0, "dataset")
    assert max(image.shape[:2]) < 640
    assert len({tuple(colour) for colour in image.reshape(-1, 3).round(4)}) == 3


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
