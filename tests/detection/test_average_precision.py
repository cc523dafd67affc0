"""Average precision: closed forms, the class metrics of torchmetrics, and more detections than COCO's hundred."""

import math

import pytest
import torch

pytest.importorskip("faster_coco_eval")

from torchmetrics.detection import MeanAveragePrecision

from toolkit.detection.average_precision import AveragePrecision, average_precision


def boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 500
    return torch.cat([corners, corners + 20 + torch.rand(count, 2, generator=generator) * 80], 1)


def scene(count, n_classes, seed):
    """Detections that are some boxes shaken, and others."""
    generator = torch.Generator().manual_seed(seed)
    true = {"boxes": boxes(count, seed), "labels": torch.randint(n_classes, (count,), generator=generator)}
    chosen = torch.randint(count, (3 * count,), generator=generator)
    found = {
        "boxes": true["boxes"][chosen] + 6 * torch.randn(3 * count, 4, generator=generator),
        "scores": torch.rand(3 * count, generator=generator),
        "labels": torch.where(torch.rand(3 * count, generator=generator) < 0.8, true["labels"][chosen], 0),
    }
    return found, true


def test_per_class_values_are_those_of_the_class_metrics():
    found, true = zip(*(scene(12, 4, seed) for seed in range(5)), strict=True)
    metric = MeanAveragePrecision(max_detection_thresholds=[1, 10, 300], class_metrics=True, backend="faster_coco_eval")
    metric.update(list(found), list(true))
    expected, result = metric.compute(), average_precision(found, true, 5)
    assert result.map50_95 == pytest.approx(float(expected["map"]))
    assert result.map50 == pytest.approx(float(expected["map_50"]))
    assert result.per_class[:4] == pytest.approx(expected["map_per_class"].tolist())
    assert min(result.per_class[:4]) > 0
    assert math.isnan(result.per_class[4])
    assert sum(result.per_class[:4]) / 4 == pytest.approx(result.map50_95)
    assert result.score == pytest.approx(0.1 * result.map50 + 0.9 * result.map50_95)


@pytest.mark.parametrize(("limit", "share"), [(300, 1.0), (200, 1.0), (100, 0.5), (2, 0.01)])
def test_as_many_detections_count_as_are_asked_for(limit, share):
    columns = torch.arange(200.0)
    true = {
        "boxes": torch.stack([columns * 10, columns * 0, columns * 10 + 8, columns * 0 + 8], 1),
        "labels": torch.zeros(200, dtype=torch.long),
    }
    found = {**true, "scores": torch.linspace(0.9, 0.1, 200)}
    result = average_precision([found], [true], 1, limit)
    # The precision is 1 at the recalls 0, 0.01, ..., that are reached.
    assert result.map50 == result.map50_95 == pytest.approx((100 * share + 1) / 101)


def test_half_of_the_boxes_and_a_false_one_first():
    true = {"boxes": boxes(2), "labels": torch.zeros(2, dtype=torch.long)}
    found = {
        "boxes": torch.cat([boxes(1, seed=9) + 2000, true["boxes"][:1]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.zeros(2, dtype=torch.long),
    }
    result = average_precision([found], [true], 1)
    assert result.map50 == pytest.approx(0.5 * 51 / 101)  # one of two is right, up to the recall 0.5


def test_classes_that_are_only_detected_do_not_count():
    true = {"boxes": boxes(2), "labels": torch.tensor([1, 1])}
    found = {
        "boxes": torch.cat([true["boxes"], boxes(2, seed=3)]),
        "scores": torch.ones(4) / 2,
        "labels": torch.tensor([1, 1, 0, 0]),
    }
    result = average_precision([found], [true], 2)
    assert (math.isnan(result.per_class[0]), result.per_class[1], result.map50_95) == (True, 1.0, 1.0)


def test_nothing_found_and_nothing_to_find():
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    some = {"boxes": boxes(2), "labels": torch.tensor([0, 0])}
    assert average_precision([none], [some], 2) == AveragePrecision(
        0.0, 0.0, pytest.approx((0.0, math.nan), nan_ok=True)
    )
    for found, true in (([], []), ([none], [none]), ([{**some, "scores": torch.ones(2)}], [none])):
        result = average_precision(found, true, 2)
        assert all(map(math.isnan, (result.map50, result.map50_95, result.score, *result.per_class)))
