"""Images in one folder a class, as `torchvision.datasets.ImageFolder` reads them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from toolkit.validation import invalid, shorten

from .images import ImageDataModule

__all__ = ["ClassFolders", "ImageFolderDataModule"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ClassFolders(ImageFolder):  # type: ignore[misc]
    """torchvision's `ImageFolder` with classes that may be given, so that all splits number them alike.

    Args:
        root: Folder with one folder a class.
        transform: What to do to each PIL image.
        classes: Names of the classes in the order of the labels; those found in `root` if not given. A class without
            a folder, or without images in it, is then allowed.
    """

    def __init__(
        self, root: str | Path, transform: Callable[[Any], Tensor], classes: Sequence[str] | None = None
    ) -> None:
        self._given = None if classes is None else list(classes)
        super().__init__(root, transform=transform, allow_empty=classes is not None)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The given classes, or else those found, with their labels."""
        names: list[str] = super().find_classes(directory)[0] if self._given is None else self._given
        return names, {name: label for label, name in enumerate(names)}

    @property
    def labels(self) -> Tensor:
        """The labels of all images, int64 of shape (N,)."""
        return torch.tensor(self.targets, dtype=torch.int64)

    def with_transform(self, transform: Callable[[Any], Tensor]) -> ClassFolders:
        """The same files in the same order, through another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other


class ImageFolderDataModule(ImageDataModule):
    """Images in folders, one folder a class: `train_dir/<class>/<any name>.jpg`.

    Training images are cut out at random (RandomResizedCrop), scaled to `image_size` and mirrored half of the time;
    for evaluation they are scaled and cut out in the middle. The loaders' processes do that and send uint8; scaling
    the values and normalising them is done a batch at a time on the device. The classes are the folders of
    `train_dir`; validation and test folders may hold some of them only.

    Args:
        train_dir: Folder of the training images.
        val_dir: Folder of the validation images; without one there is no validation.
        test_dir: Folder of the test images.
        image_size: Height and width of the images after the crop, in pixels.
        batch_size: Images a batch.
        num_workers: Processes that load batches; by default one a processor core, at most 8.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augment: Cut out and mirror at random while training; otherwise training images are treated as in evaluation.
        mean: Mean of each channel, for values in [0, 1]; by default ImageNet's.
        std: Standard deviation of each channel, for values in [0, 1]; by default ImageNet's.

    Raises:
        ValueError: If a value is out of its range, or if a split has a class that the training images do not have.
        FileNotFoundError: If a folder does not exist or has no folders of classes with images in them.

    Example:
        >>> ImageFolderDataModule("photos/train", image_size=64).image_size
        64
    """

    def __init__(
        self,
        train_dir: str | Path,
        val_dir: str | Path | None = None,
        test_dir: str | Path | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        augment: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(batch_size, usable_cores() if num_workers is None else num_workers, pin_memory, mean, std)
        if image_size < 1:
            raise invalid("image_size", "at least 1", image_size)
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.test_dir = test_dir
        self.image_size = image_size
        self.augment = augment
        #: The training images as the training sees them; set by `setup`.
        self.train_dataset: ClassFolders | None = None
        #: The validation images, if there are any; set by `setup`.
        self.val_dataset: ClassFolders | None = None
        #: The test images, if there are any; set by `setup`.
        self.test_dataset: ClassFolders | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the labels; reads the names of the training folders."""
        return _class_folders("train_dir", self.train_dir)

    @property
    def num_classes(self) -> int:
        """Number of classes; reads the names of the training folders."""
        return len(self.class_names)

    def setup(self, stage: str | None = None) -> None:
        """List the files that a stage needs, unless that is done already."""
        if stage in (None, "fit", "validate") and self.train_dataset is None:
            _class_folders("train_dir", self.train_dir)
            transform = self._training_crop() if self.augment else self._evaluation_crop()
            self.train_dataset = ClassFolders(self.train_dir, transform)
            self.val_dataset = self._split("val_dir", self.val_dir)
        if stage in (None, "test", "predict") and self.test_dataset is None:
            self.test_dataset = self._split("test_dir", self.test_dir)

    def evaluation_dataset(self) -> ClassFolders:
        """The training images in the order of their paths, uint8, treated as in evaluation."""
        self.setup("fit")
        assert self.train_dataset is not None
        return self.train_dataset.with_transform(self._evaluation_crop())

    def train_dataloader(self) -> DataLoader[Any]:
        """The training images in random order, the last batch smaller where it does not come out even."""
        self.setup("fit")
        assert self.train_dataset is not None
        return self._loader(self.train_dataset, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation images; an empty list, so no validation, without `val_dir`."""
        self.setup("validate")
        return [] if self.val_dataset is None else self._loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        self.setup("test")
        if self.test_dataset is None:
            raise invalid("test_dir", "a folder of images to test on", self.test_dir)
        return self._loader(self.test_dataset)

    def _split(self, name: str, folder: str | Path | None) -> ClassFolders | None:
        if folder is None:
            return None
        classes = self.class_names
        unknown = sorted(set(_class_folders(name, folder)) - set(classes))
        if unknown:
            raise invalid(name, "a folder with classes of `train_dir` only", f"{shorten(unknown)} besides")
        return ClassFolders(folder, self._evaluation_crop(), classes)

    def _training_crop(self) -> v2.Transform:
        return v2.Compose(
            [v2.RandomResizedCrop(self.image_size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    def _evaluation_crop(self) -> v2.Transform:
        # The usual margin: 256 for 224.
        margin = round(self.image_size * 256 / 224)
        return v2.Compose([v2.Resize(margin, antialias=True), v2.CenterCrop(self.image_size), v2.PILToTensor()])


def usable_cores() -> int:
    """Processor cores that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def _class_folders(name: str, folder: str | Path) -> list[str]:
    """Names of the folders in `folder`, in order; an error that names the argument if there are none."""
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"`{name}` must be an existing folder, got {str(folder)!r}.")
    found = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not found:
        raise FileNotFoundError(f"`{name}` must be a folder with one folder a class, got {str(folder)!r} without any.")
    return found
