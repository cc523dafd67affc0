"""Feature maps of a detection network's layer as vectors of the labelled objects in the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Subset, default_collate
from tqdm.auto import tqdm

from toolkit.distributed import gather_objects, share, together, world
from toolkit.fingerprint import content_hash, sample_hash, settings_hash
from toolkit.representations.base import EvaluationView, Vectors
from toolkit.representations.feature_map import FeatureExtractor, ImageCollate, pooled
from toolkit.reproducibility import full_precision, preserved_rng
from toolkit.validation import check_vectors, invalid, shorten

__all__ = ["ObjectFeatureExtractor", "ObjectVectors", "object_vectors"]

#: Bins along each side of a box, whose values are then averaged.
_BINS = 7
#: The least side of a box in cells of the feature map, so that there is something to average.
_LEAST_SIDE = 1e-3
#: Boxes that are pooled in one go: 50 MiB of bins with 256 channels.
_CHUNK_BOXES = 1024
#: What a batch must hold beside its images.
_BOX_KEYS = ("bboxes", "batch_idx")
#: How far coordinates may leave [0, 1] by rounding.
_SLACK = 0.01
#: Columns before the vector in a row of packed objects: image, class and box.
_PACKED = 6
#: Images whose boxes are looked at to tell one data set from another.
_PROBES = 8
#: Attributes in which data sets keep their labels.
_LABELS = ("labels", "targets", "boxes")


@dataclass(frozen=True)
class ObjectVectors:
    """The vectors of all labelled objects of a data set, image by image.

    Attributes:
        vectors: float32 of shape (M, D).
        image: int64 of shape (M,), the index of the image that each object is in.
        classes: int64 of shape (M,), its class; -1 where the data set tells none.
        boxes: float32 of shape (M, 4): centre x, centre y, width and height in [0, 1] of the image as the network gets
            it.
    """

    vectors: Vectors
    image: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.vectors)


class ObjectFeatureExtractor(FeatureExtractor):
    """A representation by what a network's layer gives at the labelled objects, rather than all over the image.

    The feature map is averaged over each box: RoI Align with 7 x 7 bins, whose mean is the object's vector. An image's
    vector is the mean of its objects' vectors, each scaled to length 1; an image without objects has the mean of its
    whole feature map, scaled to length 1. Which images look alike then depends on the objects more than on the
    background, which fixed cameras share.

    Batches must be dictionaries as those of ultralytics: beside the images, `bboxes` of shape (M, 4), centre, width and
    height in [0, 1] of the image as the network gets it, and `batch_idx` of shape (M,), the place in the batch of each
    box's image; `cls`, (M,) or (M, 1), is only needed for `objects`. A data set's own `collate_fn` makes them, or that
    of its loader.

    Everything else is as with `FeatureExtractor`: the copy of the model, float32, the cache (of `vectors`, which
    depends on the boxes too), distributed runs.

    Args:
        model: The network or LightningModule, called with a batch of images. None where a configuration's `baseline`
            section supplies it.
        layer: The layer to hook, whose output is a feature map (N, C, H, W): its name, a unique ending of it, or its
            place in a network that is a sequence of layers. 6 is in the backbone of YOLOv5, whose map has a sixteenth
            of the image's size.
        checkpoint: A state dict or Lightning checkpoint to load into the copy.
        batch_size: Images a batch.
        num_workers: Worker processes to load with; those of the data set's own loader if None.
        device: Where to run, such as `cuda`; chosen if None.
        input_key: The key of the images where batches have an unusual one.
        cache: Whether to keep vectors on disk.
        cache_dir: The cache folder, see `toolkit.cache`.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `vectors` and `objects`, if the layer gives no feature map, batches have no boxes, or boxes do
            not fit; and as `FeatureExtractor`.

    References:
        He, Gkioxari, Dollár, Girshick, "Mask R-CNN", arXiv 1703.06870: RoI Align.

    Example:
        >>> from torch.utils.data import default_collate
        >>> samples = [{"img": torch.rand(3, 32, 32), "cls": torch.tensor([[1.0], [0.0]]), "batch_idx": torch.zeros(2),
        ...     "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.2, 0.3, 0.1, 0.1]])}]
        >>> view = EvaluationView(samples, collate_fn=lambda batch: {**batch[0], "img": batch[0]["img"][None]})
        >>> features = ObjectFeatureExtractor(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2)), 0, progress=False)
        >>> objects = features.objects(view)
        >>> objects.vectors.shape, objects.image.tolist(), objects.classes.tolist()
        ((2, 5), [0, 0], [1, 0])
    """

    def __init__(
        self,
        model: nn.Module | str | None = None,
        layer: str | int = 6,
        checkpoint: str | Path | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        device: str | None = None,
        input_key: str | None = None,
        cache: bool = True,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(
            model,
            layer,
            checkpoint,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            input_key=input_key,
            cache=cache,
            cache_dir=cache_dir,
            progress=progress,
        )

    def objects(self, dataset: Any) -> ObjectVectors:
        """The vectors of all labelled objects, such as to look for odd ones with `toolkit.outliers.outlier_scores`.

        They are not kept in the cache. In a distributed run every rank takes a share and all get the whole.

        Args:
            dataset: The images with their boxes, as for `vectors`.
        """
        view = self._checked(dataset)
        with preserved_rng():
            model, transform = self._ready_network(view)
            start, stop = share(len(view), self.batch_size)
            parts = gather_objects(together(lambda: self._objects_of(model, transform, view, start, stop)))
        # A rank without images knows no length of vectors.
        found = _joined([part for part in parts if part.vectors.shape[1]])
        if len(found):
            check_vectors(found.vectors, "features")
        return found

    def network(self) -> tuple[nn.Module, Callable[[Any], Any] | None]:
        """As that of `FeatureExtractor`; refused where its preprocessing would move objects out of their boxes."""
        network, transform = super().network()
        if transform is not None:
            raise invalid("model", "a network that takes images as they are, not scaled and cropped", self.model)
        return network, transform

    def _own_settings(self) -> dict[str, Any]:
        return {"pool": "objects", "bins": _BINS}

    def _images_fingerprint(self, view: EvaluationView) -> str:
        indices = sorted({int(i) for i in np.linspace(0, len(view) - 1, min(_PROBES, len(view)))})
        with preserved_rng(0), torch.no_grad():
            few = EvaluationView(view.dataset, collate_fn=ImageCollate(view.collate_fn or default_collate, None))
            places, boxes, classes = _boxes_of(few.load(indices), len(indices), torch.device("cpu"))
        known = [sample_hash(labels) for labels in _labels_in(view.dataset)]
        return settings_hash({"images": view.fingerprint(), "seen": content_hash(places, boxes, classes), "all": known})

    def _rows(self, images: torch.Tensor, batch: Any, features: torch.Tensor) -> torch.Tensor:
        """The mean of the vectors of each image's objects; of the whole image where there are none."""
        self._check_map(features, len(images))
        places, boxes, _ = _boxes_of(batch, len(images), features.device)
        objects = F.normalize(object_vectors(features, boxes, places))
        whole = F.normalize(pooled(features, "mean"))
        # As a product of matrices, whose sums have the same order on every run.
        belongs = (torch.arange(len(images), device=features.device)[:, None] == places).to(objects.dtype)
        counts = belongs.sum(dim=1, keepdim=True)
        return torch.where(counts > 0, belongs @ objects / counts.clamp(min=1), whole)

    def _packed_objects(self, images: torch.Tensor, batch: Any, features: torch.Tensor) -> torch.Tensor:
        """A row an object: the place of its image in the batch, its class, its box, and its vector."""
        self._check_map(features, len(images))
        places, boxes, classes = _boxes_of(batch, len(images), features.device)
        vectors = object_vectors(features, boxes, places)
        return torch.cat([places[:, None].float(), classes[:, None], boxes, vectors], dim=1)

    def _objects_of(
        self,
        model: nn.Module,
        transform: Callable[[Any], Any] | None,
        view: EvaluationView,
        start: int,
        stop: int,
    ) -> ObjectVectors:
        """The objects of the images `start` to `stop`."""
        device = self.device_for(view)
        model.to(device)
        parts = []
        bar = tqdm(total=stop - start, unit="img", desc="objects", disable=not self.progress or world()[0] != 0)
        blocks = self._blocks(
            model, self._batches(view, transform, device, start, stop), self._packed_objects, one_each=False
        )
        with full_precision(), bar, closing(blocks):
            for first, rows in zip(range(start, stop, self.batch_size), blocks, strict=True):
                places, classes = rows[:, :2].T.astype(np.int64)
                parts.append(ObjectVectors(rows[:, _PACKED:], first + places, classes, rows[:, 2:_PACKED]))
                bar.update(min(self.batch_size, stop - first))
        return _joined(parts)

    def _check_map(self, features: torch.Tensor, n_images: int) -> None:
        if features.ndim != 4 or len(features) != n_images:
            got = f"{self.layer!r}, which gives {tuple(features.shape)} for {n_images} images"
            raise ValueError(f"`layer` must be a layer that gives feature maps (N, C, H, W), got {got}.")


def _joined(parts: Sequence[ObjectVectors]) -> ObjectVectors:
    """Objects one after the other."""
    if not parts:
        none = np.empty(0, np.int64)
        return ObjectVectors(np.empty((0, 0), np.float32), none, none, np.empty((0, 4), np.float32))
    names = ("vectors", "image", "classes", "boxes")
    return ObjectVectors(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def object_vectors(features: torch.Tensor, boxes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Feature maps averaged over boxes, by RoI Align: the mean of 7 x 7 bins of interpolated values.

    Args:
        features: Floating point, of shape (B, C, H, W).
        boxes: Shape (M, 4), centre x, centre y, width and height as shares of the map's; what lies outside is cut off.
        places: int64 of shape (M,), which of the B maps each box is on.

    Returns:
        float32 of shape (M, C).

    Example:
        >>> features = torch.zeros(1, 1, 4, 4)
        >>> features[..., 2:] = 8.0
        >>> boxes = torch.tensor([[0.75, 0.5, 0.25, 0.5], [0.25, 0.5, 0.25, 0.5]])
        >>> object_vectors(features, boxes, torch.tensor([0, 0])).flatten().tolist()
        [8.0, 0.0]
    """
    from torchvision.ops import roi_align

    height, width = features.shape[2:]
    half = boxes[:, 2:] / 2
    corners = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], dim=1).clamp(0, 1)
    corners = corners * corners.new_tensor([width, height, width, height])
    corners[:, 2:] = torch.maximum(corners[:, 2:], corners[:, :2] + _LEAST_SIDE)
    rois = torch.cat([places[:, None].to(corners.dtype), corners], dim=1).float()
    maps = features.float()
    parts = [roi_align(maps, part, _BINS, aligned=True).mean(dim=(2, 3)) for part in torch.split(rois, _CHUNK_BOXES)]
    return torch.cat(parts)


def _boxes_of(batch: Any, n_images: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The objects of a batch: the place of each one's image, int64, its box, and its class, -1 if there are none."""
    if not isinstance(batch, Mapping) or any(key not in batch for key in _BOX_KEYS):
        got = shorten(sorted(map(str, batch)), 8) if isinstance(batch, Mapping) else type(batch).__name__
        raise invalid("dataset", "one whose batches are dictionaries with `bboxes` and `batch_idx`", got)
    boxes = torch.as_tensor(batch["bboxes"]).reshape(-1, 4).to(device, torch.float32)
    places = torch.as_tensor(batch["batch_idx"]).flatten().to(device, torch.int64)
    classes = batch.get("cls")
    classes = -torch.ones(len(boxes)) if classes is None else torch.as_tensor(classes).flatten()
    if not len(places) == len(boxes) == len(classes):
        sizes = f"{len(places)}, {len(boxes)} and {len(classes)}"
        raise invalid("dataset", "one whose `batch_idx`, `bboxes` and `cls` have one entry a box", sizes)
    if len(boxes):
        first, last = int(places.min()), int(places.max())
        if first < 0 or last >= n_images:
            raise invalid("dataset", f"one whose `batch_idx` is in 0 to {n_images - 1} in each batch", (first, last))
        low, high = float(boxes.min()), float(boxes.max())
        if not (low >= -_SLACK and high <= 1 + _SLACK):  # which NaN fails too
            raise invalid("dataset", "one whose `bboxes` are in [0, 1]", (low, high))
    return places, boxes, classes.to(device, torch.float32)


def _labels_in(dataset: Any) -> list[Any]:
    """What a data set, or those that it is made of, says of its labels without reading images."""
    if isinstance(dataset, Subset):
        return _labels_in(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [labels for part in dataset.datasets for labels in _labels_in(part)]
    found = [getattr(dataset, name, None) for name in _LABELS]
    return [labels for labels in found if labels is not None and not callable(labels)]
