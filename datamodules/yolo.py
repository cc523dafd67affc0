"""Detection data sets in YOLO's format, through ultralytics' own data set, mosaic and letterbox."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from toolkit.detection.ultralytics_parts import DEFAULT_CFG, Compose, YOLODataset, get_cfg
from toolkit.detection.yolo_format import ON_ERROR, DetectionImages, read_data_yaml, read_split
from toolkit.fingerprint import settings_hash
from toolkit.validation import check_choice, invalid

from .image_folder import usable_cores

__all__ = ["DetectionDataset", "EpochLoader", "YOLODataModule"]

#: Settings of ultralytics that augment images, by their names there.
AUGMENTATIONS = (
    "hsv_h",
    "hsv_s",
    "hsv_v",
    "degrees",
    "translate",
    "scale",
    "shear",
    "perspective",
    "flipud",
    "fliplr",
    "bgr",
    "mosaic",
    "mixup",
    "cutmix",
)
#: Sides of images are multiples of this, as the network halves them five times.
_STRIDE = 32
#: Share of a grid cell that rectangular batches are padded by, as ultralytics evaluates.
_EVALUATION_PADDING = 0.5
#: Batches that each worker process prepares ahead, as ultralytics has it for training.
_PREFETCHED = 4

_NO_FILE = Path(os.devnull) / "none"


class DetectionDataset(YOLODataset):
    """The data set of ultralytics over images that were read by `toolkit.detection.read_split`.

    A sample is a dictionary: `img`, uint8 of shape (3, H, W), red first; `cls`, float32 of shape (n, 1), and `bboxes`,
    float32 of shape (n, 4), centre, width and height in [0, 1] of that image; `batch_idx`, zeros of shape (n,);
    `im_file`, `ori_shape`, `resized_shape` and `ratio_pad`. Mosaic and mixup draw their partners among the data set's
    own images. No file is written.

    Args:
        images: The images and their boxes.
        names: The names of the classes.
        imgsz: Longer side of the images, in pixels.
        augment: Whether to augment, with mosaic and all; else images are scaled and padded to a square.
        hyperparameters: ultralytics' settings, with those of the augmentation.
        rectangular: Whether batches are as flat as their images allow, for evaluation; the images are then ordered by
            shape.
        batch_size: Images a batch, which rectangular batches and the mosaic's choice of partners go by.
    """

    def __init__(
        self,
        images: DetectionImages,
        names: Sequence[str],
        imgsz: int,
        *,
        augment: bool,
        hyperparameters: Any = DEFAULT_CFG,
        rectangular: bool = False,
        batch_size: int = 16,
    ) -> None:
        self.images = images
        self._settings: dict[str, Any] = {
            "names": tuple(names),
            "imgsz": imgsz,
            "augment": augment,
            "hyperparameters": hyperparameters,
            "rectangular": rectangular,
            "batch_size": batch_size,
        }
        #: Asked in the main process at the start of each epoch whether mosaic is over by then.
        self.mosaic_is_over: Callable[[], bool] | None = None
        # In shared memory, so that workers that live on hear of it.
        self._close = torch.zeros(1, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._is_closed = False
        super().__init__(
            img_path=str(images.root),
            imgsz=imgsz,
            augment=augment,
            hyp=hyperparameters,
            rect=rectangular,
            batch_size=batch_size,
            stride=_STRIDE,
            pad=_EVALUATION_PADDING if rectangular else 0.0,
            data={"names": dict(enumerate(names)), "nc": len(names), "channels": 3},
            task="detect",
        )
        # An array of that name beside an image is the user's own, and no copy of the image.
        self.npy_files = [_NO_FILE] * len(images)

    def get_img_files(self, img_path: Any) -> list[str]:
        """The files of the images, which were found before."""
        return [str(file) for file in self.images.files]

    def get_labels(self) -> list[dict[str, Any]]:
        """The boxes as ultralytics keeps them, which were read and checked before."""
        return [
            {
                "im_file": str(file),
                "shape": (int(size[0]), int(size[1])),
                "cls": boxes[:, 0:1],
                "bboxes": boxes[:, 1:],
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for file, size, boxes in zip(self.images.files, self.images.sizes, self.images.boxes, strict=True)
        ]

    @property
    def targets(self) -> list[list[int]]:
        """The class of every box of each image, in the data set's order; empty lists for images without boxes."""
        return [label["cls"][:, 0].astype(int).tolist() for label in self.labels]

    @property
    def samples(self) -> list[tuple[str, None]]:
        """The file of each image, as torchvision's data sets tell theirs."""
        return [(file, None) for file in self.im_files]

    @property
    def root(self) -> str:
        """The folder of the data set."""
        return str(self.images.root)

    def restricted(self, indices: Sequence[int]) -> DetectionDataset:
        """The same data set with some of its images only, also as partners in mosaics."""
        chosen = type(self)(self.images.take(indices), **self._settings)
        chosen.mosaic_is_over = self.mosaic_is_over
        return chosen

    def fingerprint(self) -> str:
        """A text that differs with the files, the boxes or the size of the images."""
        shown = {name: self._settings[name] for name in ("names", "imgsz", "augment", "rectangular")}
        return settings_hash({"images": self.images.fingerprint(), **shown})

    def load_image(self, i: int, *args: Any, **options: Any) -> Any:
        """An image scaled to the longer side wanted; an error that names the file if it cannot be decoded."""
        try:
            return super().load_image(i, *args, **options)
        except Exception as error:
            raise OSError(f"The image {self.im_files[i]} (index {i}) cannot be decoded: {error}") from error

    def start_epoch(self) -> None:
        """Hear, at the start of an epoch, whether mosaic is over."""
        if self.mosaic_is_over is not None:
            self._close[0] = self.mosaic_is_over()

    def __getitem__(self, index: int) -> dict[str, Any]:
        closes = bool(self._close[0])
        if closes != self._is_closed:
            self._is_closed = closes
            settings = copy.copy(self._settings["hyperparameters"])
            if closes:
                self.close_mosaic(settings)
            else:
                self.transforms: Compose = self.build_transforms(settings)
        sample: dict[str, Any] = super().__getitem__(index)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mosaic_is_over": None}  # it knows a trainer, which workers do not need


class EpochLoader(DataLoader[Any]):
    """A loader that tells its data set when an epoch starts."""

    def __iter__(self) -> Any:
        start = getattr(self.dataset, "start_epoch", None)
        if callable(start):
            start()
        return super().__iter__()


class YOLODataModule(L.LightningDataModule):
    """A detection data set in YOLO's format, augmented, batched and evaluated as ultralytics does.

    Images are read by ultralytics' own data set, with its mosaic, letterbox and all; batches are its dictionaries, with
    the images in [0, 1] on the device. Unlike there, nothing is written into the data set's folders, and files that
    cannot be used are told with file and line before anything starts.

    Pruned (`toolkit.datamodules.PrunedDataModule`), images that were removed do not come back as partners in mosaics.
    Selectors see the images without augmentation, scaled and padded to a square of `imgsz`.

    Args:
        data: The `data.yaml`: see `toolkit.detection.read_data_yaml`.
        imgsz: Longer side of the images in pixels, a multiple of 32.
        batch_size: Images a batch; evaluation takes twice as many, as ultralytics does.
        num_workers: Processes that load batches; by default none on a CPU, whose cores the network needs, else one a
            core, at most 8.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augmentation: ultralytics' settings by name (`mosaic`, `mixup`, `fliplr`, `hsv_h`, ...) that differ from its
            defaults.
        close_mosaic: For how many epochs at the end there is no mosaic, mixup or cutmix any more.
        on_error: What to do about images that cannot be used: `raise`, or `skip` them with a warning.

    Raises:
        FileNotFoundError: If the `data.yaml`, or a folder or image that it names, does not exist.
        ValueError: If a setting is out of its range, or if images or boxes cannot be used; the message gives files and
            lines.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for part in ("images", "labels"):
        ...     (folder / part).mkdir()
        >>> Image.new("RGB", (80, 60)).save(folder / "images" / "a.png")
        >>> _ = (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
        >>> _ = (folder / "data.yaml").write_text("{train: images, names: [sign]}")
        >>> datamodule = YOLODataModule(folder / "data.yaml", imgsz=64)
        >>> datamodule.evaluation_dataset()[0]["img"].shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self,
        data: str | Path,
        imgsz: int = 640,
        batch_size: int = 16,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        augmentation: Mapping[str, float] | None = None,
        close_mosaic: int = 10,
        on_error: str = "raise",
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("imgsz", imgsz, _STRIDE),
            ("batch_size", batch_size, 1),
            ("num_workers", 0 if num_workers is None else num_workers, 0),
            ("close_mosaic", close_mosaic, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
            if value < least:
                raise invalid(name, f"at least {least}", value)
        if imgsz % _STRIDE:
            raise invalid("imgsz", f"a multiple of {_STRIDE}", imgsz)
        self.data = str(data)
        self.imgsz = imgsz
        self.batch_size = batch_size
        self.num_workers = _workers() if num_workers is None else num_workers
        self.pin_memory = pin_memory
        self.augmentation = dict(augmentation or {})
        self.close_mosaic = close_mosaic
        self.on_error = check_choice("on_error", on_error, ON_ERROR)
        self._hyperparameters = _hyperparameters(self.augmentation)
        self._yolo = read_data_yaml(data)
        #: The training images as the training sees them; set by `setup`.
        self.train_dataset: DetectionDataset | None = None
        #: The validation images, if there are any; set by `setup`.
        self.val_dataset: DetectionDataset | None = None
        #: The test images, if there are any; set by `setup`.
        self.test_dataset: DetectionDataset | None = None
        self._images: dict[str, DetectionImages] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        return self._yolo.names

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, as the toolkit's reports ask for them."""
        return list(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs, unless that is done already."""
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self._dataset("train", augment=True)
            self.train_dataset.mosaic_is_over = self._mosaic_is_over
        if stage in (None, "fit", "validate") and self.val_dataset is None and "val" in self._yolo.sources:
            self.val_dataset = self._dataset("val")
        if stage in (None, "test", "predict") and self.test_dataset is None and "test" in self._yolo.sources:
            self.test_dataset = self._dataset("test")

    def evaluation_dataset(self) -> DetectionDataset:
        """The training images in the order of their paths, scaled and padded to a square, never augmented."""
        return DetectionDataset(
            self._read("train"),
            self.names,
            self.imgsz,
            augment=False,
            hyperparameters=self._hyperparameters,
            batch_size=self.batch_size,
        )

    def with_indices(self, kept: Sequence[int]) -> DetectionDataset:
        """The training images that stay; partners in mosaics are drawn among them only."""
        self.setup("fit")
        assert self.train_dataset is not None
        return self.train_dataset.restricted(kept)

    def train_dataloader(self) -> EpochLoader:
        """The training images in random order, the last batch smaller where it does not come out even."""
        self.setup("fit")
        assert self.train_dataset is not None
        return self._loader(self.train_dataset, self.batch_size, shuffle=True)

    def val_dataloader(self) -> EpochLoader | list[DataLoader[Any]]:
        """The validation images; an empty list, so no validation, where the `data.yaml` names none."""
        self.setup("validate")
        return [] if self.val_dataset is None else self._loader(self.val_dataset, 2 * self.batch_size)

    def test_dataloader(self) -> EpochLoader:
        """The test images."""
        self.setup("test")
        if self.test_dataset is None:
            raise invalid("data", "a data.yaml with `test` to test on", self.data)
        return self._loader(self.test_dataset, 2 * self.batch_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images of bytes as numbers in [0, 1]."""
        if not isinstance(batch, dict) or batch["img"].dtype != torch.uint8:
            return batch
        images = batch["img"].float() / 255
        if self.trainer is not None:
            # Lightning gives inputs the trainer's type before the transfer, when these were still bytes.
            images = self.trainer.precision_plugin.convert_input(images)
        return {**batch, "img": images}

    def _read(self, split: str) -> DetectionImages:
        if split not in self._images:
            self._images[split] = read_split(self._yolo, split, on_error=self.on_error)
        return self._images[split]

    def _dataset(self, split: str, *, augment: bool = False) -> DetectionDataset:
        # Batches of one shape hold consecutive images, which processes that take turns do not get.
        is_alone = self.trainer is None or self.trainer.world_size == 1
        return DetectionDataset(
            self._read(split),
            self.names,
            self.imgsz,
            augment=augment,
            hyperparameters=self._hyperparameters,
            rectangular=not augment and is_alone,
            batch_size=self.batch_size if augment else 2 * self.batch_size,
        )

    def _mosaic_is_over(self) -> bool:
        """Whether the epoch that starts is one of the last, which have no mosaic."""
        epochs = None if self.trainer is None else self.trainer.max_epochs
        if not self.close_mosaic or self.trainer is None or epochs is None or epochs < 0:
            return False
        return self.trainer.current_epoch >= epochs - self.close_mosaic

    def _loader(self, dataset: DetectionDataset, batch_size: int, *, shuffle: bool = False) -> EpochLoader:
        return EpochLoader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=dataset.collate_fn,
            pin_memory=torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=_PREFETCHED if self.num_workers else None,
        )


def _hyperparameters(augmentation: Mapping[str, float]) -> Any:
    """Settings of ultralytics with those of the augmentation."""
    unknown = sorted(set(augmentation) - set(AUGMENTATIONS))
    if unknown:
        raise invalid("augmentation", "settings out of " + ", ".join(AUGMENTATIONS), unknown)
    try:
        return get_cfg(DEFAULT_CFG, {"task": "detect", **augmentation})
    except (TypeError, ValueError) as error:
        raise ValueError(f"`augmentation` must be what ultralytics takes, got {dict(augmentation)}: {error}") from error


def _workers() -> int:
    """Processes to load with where nobody says: none on a CPU, else one a core that may be used, at most 8."""
    return usable_cores() if torch.cuda.is_available() else 0
