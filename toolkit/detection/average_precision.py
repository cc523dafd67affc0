"""Average precision of detected boxes, as COCO defines it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

#: Smaller limits on detections an image, whose recalls COCO tells too.
_LESSER_LIMITS = (1, 10)


@dataclass(frozen=True)
class AveragePrecision:
    """How well boxes were found, in [0, 1]; NaN where there was none to find."""

    #: Mean over the classes at an intersection over union of 0.5.
    map50: float
    #: Mean over the classes and ten thresholds, 0.5 to 0.95.
    map50_95: float
    #: For each class the mean over the ten thresholds; NaN for classes of which no image has a box.
    per_class: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mix by which YOLOv5 chooses its best weights: 0.1 mAP50 + 0.9 mAP50-95."""
        return 0.1 * self.map50 + 0.9 * self.map50_95


def average_precision(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    max_detections: int = 300,
) -> AveragePrecision:
    """COCO's average precision of all images together.

    Of the precisions at the recalls 0, 0.01, ..., 1, each the best at that recall or a higher one, the mean, for each
    class and threshold of intersection over union. Detections take boxes in the order of their scores, each the free
    box that it overlaps most.

    Args:
        predictions: For each image `boxes` (n, 4) as corners x1, y1, x2, y2, `scores` (n,) and `labels` (n,), whole
            numbers from 0 on; tensors on the CPU, or each has to be fetched.
        targets: For each image its true `boxes` (m, 4) and `labels` (m,).
        num_classes: Number of classes.
        max_detections: How many detections count in an image, those with the highest scores.

    Returns:
        What was reached; all NaN if there are no images or no true boxes.

    References:
        Lin et al., "Microsoft COCO: common objects in context", arXiv 1405.0312, and its evaluation code, which by
        itself stops at 100 detections an image.

    Example:
        >>> import torch
        >>> boxes, labels = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([1])
        >>> found = {"boxes": boxes + 1.0, "scores": torch.tensor([0.9]), "labels": labels}
        >>> reached = average_precision([found], [{"boxes": boxes, "labels": labels}], num_classes=2)
        >>> round(reached.map50, 3), round(reached.map50_95, 3), math.isnan(reached.per_class[0])
        (1.0, 0.4, True)
    """
    if not any(len(target["labels"]) for target in targets):
        return AveragePrecision(math.nan, math.nan, (math.nan,) * num_classes)
    from torchmetrics.detection import MeanAveragePrecision  # slow to import

    limits = [*(min(limit, max_detections) for limit in _LESSER_LIMITS), max_detections]
    metric = MeanAveragePrecision(
        max_detection_thresholds=limits,
        extended_summary=True,  # it holds the classes' precisions; class metrics would evaluate everything once more
        backend="faster_coco_eval",
        sync_on_compute=False,  # the images are all here, whatever other processes do
    )
    metric.warn_on_many_detections = False  # to leave them out is what the limit is for
    metric.update([dict(prediction) for prediction in predictions], [dict(target) for target in targets])
    found = metric.compute()
    # Intersections x recalls x classes x areas x limits: all areas come first, the highest limit last.
    precisions = found["precision"][:, :, :, 0, -1]
    per_class = [math.nan] * num_classes
    for place, label in enumerate(found["classes"].reshape(-1).tolist()):
        of_class = precisions[:, :, place]
        if bool((of_class > -1).any()):
            per_class[label] = float(of_class.mean())
    return AveragePrecision(float(found["map_50"]), float(found["map"]), tuple(per_class))
