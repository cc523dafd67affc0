"""What the image data modules share: images in one tensor, and augmentation of whole batches on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from toolkit.fingerprint import content_hash
from toolkit.validation import invalid

__all__ = [
    "ImageDataModule",
    "ImageTensorDataModule",
    "ImageTensorDataset",
    "Samples",
    "collate_samples",
    "crop_and_flip",
    "stratified_split",
]


class Samples(Sequence[tuple[Tensor, int]]):
    """Samples that were fetched together: a list of pairs to those who expect one, and stacked already.

    torch lets `Dataset.__getitems__` return many samples at once, as a list. Building that list and stacking it again
    costs more than fetching; `collate_samples` takes the stacked tensors out, and all others (`default_collate`,
    `StackDataset`) see a sequence of (image, label).

    Args:
        images: Images of shape (N, channels, H, W).
        labels: Their labels, int64 of shape (N,).

    Example:
        >>> samples = Samples(torch.zeros(2, 1, 4, 4), torch.tensor([3, 7]))
        >>> len(samples), samples[1][1]
        (2, 7)
    """

    __slots__ = ("images", "labels")

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Samples(self.images[index], self.labels[index])
        return self.images[index], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return zip(self.images, self.labels.tolist(), strict=True)


def collate_samples(batch: Sequence[Any]) -> Any:
    """A batch of `Samples` as it is, any other list of samples through torch's `default_collate`.

    Args:
        batch: What a data set's `__getitems__` returned, or a list of samples.

    Returns:
        The pair images (N, channels, H, W), labels (N,) for `Samples`.

    Example:
        >>> images, labels = collate_samples(Samples(torch.zeros(2, 1, 4, 4), torch.tensor([3, 7])))
        >>> images.shape, labels
        (torch.Size([2, 1, 4, 4]), tensor([3, 7]))
    """
    if isinstance(batch, Samples):
        return batch.images, batch.labels
    return default_collate(list(batch))


class ImageTensorDataset(Dataset[tuple[Tensor, int]]):
    """Images of one size in one tensor, with their labels; a batch of them is fetched in one go.

    Give `collate_samples` to a loader as its `collate_fn` to profit from that; other collate functions work too.

    Args:
        images: Images, uint8 of shape (N, channels, H, W).
        labels: Their classes, integers of shape (N,).
        classes: Names of the classes, if they have any.

    Raises:
        ValueError: If the images are not four-dimensional or the labels not one a image.
        TypeError: If the images are not uint8 or the labels not integers.

    Example:
        >>> data = ImageTensorDataset(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> image, label = data[2]
        >>> len(data), image.shape, label
        (3, torch.Size([1, 8, 8]), 1)
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str] | None = None) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"`images` must be uint8, got {images.dtype}.")
        if images.ndim != 4:
            raise invalid("images", "of shape (N, channels, H, W)", tuple(images.shape))
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
        if labels.shape != images.shape[:1]:
            raise invalid("labels", f"of shape ({len(images)},), one an image", tuple(labels.shape))
        self.images = images.contiguous()
        self.labels = labels.to(torch.int64).contiguous()
        self.classes = None if classes is None else list(classes)
        self._fingerprint: str | None = None

    @property
    def targets(self) -> Tensor:
        """The labels, under the name that torchvision gives them."""
        return self.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Samples(self.images[chosen], self.labels[chosen])

    def take(self, indices: Tensor) -> ImageTensorDataset:
        """A data set of its own with the images at `indices` (int64), in that order."""
        return ImageTensorDataset(self.images[indices], self.labels[indices], self.classes)

    def fingerprint(self) -> str:
        """SHA-256 of the images and labels with their types and shapes, in hexadecimal.

        It is computed once (0.1 s for the images of CIFAR-10), so the tensors must not be written to after that.

        Example:
            >>> images, labels = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0])
            >>> black, white = ImageTensorDataset(images, labels), ImageTensorDataset(images + 255, labels)
            >>> black.fingerprint() == white.fingerprint()
            False
        """
        if self._fingerprint is None:
            self._fingerprint = content_hash(self.images, self.labels)
        return self._fingerprint


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor | None, padding: int) -> Tensor:
    """Cut a window of the images' own size out of each image with a black border, and mirror some of them.

    Args:
        images: Images of shape (N, channels, H, W), of any type; black is 0.
        offsets: Row and column of each window's corner in the image with its border, int64 of shape (N, 2), from 0 to
            `2 * padding`; `padding` is the image as it was.
        flips: Which windows to mirror left to right, bool of shape (N,); `None` for none of them.
        padding: Width of the border in pixels.

    Returns:
        Images of the same shape and type.

    Example:
        >>> image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
        >>> crop_and_flip(image, torch.tensor([[0, 1]]), torch.tensor([True]), padding=1)
        tensor([[[[0, 0],
                  [2, 1]]]], dtype=torch.uint8)
    """
    count, _, height, width = images.shape
    # All windows of all images, as a view: picking one for each image copies whole rows and needs one kernel.
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    out = windows[torch.arange(count, device=images.device), :, offsets[:, 0], offsets[:, 1]]
    return out if flips is None else torch.where(flips[:, None, None, None], out.flip(-1), out)


def stratified_split(labels: Tensor, size: int | float, seed: int, name: str = "val_size") -> tuple[Tensor, Tensor]:
    """Split indices in two so that both parts hold the classes in the proportions of the whole.

    Args:
        labels: Classes, int64 of shape (N,).
        size: How many to split off, or which fraction of all.
        seed: Seed of the choice.
        name: What to call `size` in an error.

    Returns:
        The indices that stay and those split off, int64, both ascending.

    Raises:
        ValueError: If a class would be missing from one of the parts.

    Example:
        >>> stay, off = stratified_split(torch.tensor([0, 0, 1, 1]), 2, seed=0)
        >>> len(stay), len(off)
        (2, 2)
    """
    from sklearn.model_selection import train_test_split

    count = len(labels)
    chosen = size if isinstance(size, int) else round(size * count)
    classes, occurrences = np.unique(labels.numpy(), return_counts=True)
    if not len(classes) <= chosen <= count - len(classes):
        must = f"from {len(classes)} to {count - len(classes)} of the {count} images, to leave and take every class"
        raise invalid(name, must, size)
    if int(occurrences.min()) < 2:
        raise invalid(name, "0 where a class has a single image", size)
    stay, off = train_test_split(np.arange(count), test_size=chosen, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(np.sort(stay)), torch.from_numpy(np.sort(off))


def check_split(name: str, size: int | float) -> None:
    """Refuse a size of a split that is neither a count from 0 on nor a fraction in (0, 1)."""
    must = "a number of images (at least 0) or a fraction in (0, 1)"
    if isinstance(size, bool) or not isinstance(size, (int, float)):
        raise TypeError(f"`{name}` must be {must}, got {size!r}.")
    if size < 0 or (isinstance(size, float) and not 0.0 < size < 1.0 and size != 0.0):
        raise invalid(name, must, size)


class ImageDataModule(L.LightningDataModule):
    """Base of the image data modules: batches travel as uint8 and are made ready on the device.

    After the transfer, a batch of uint8 images goes through `training_transform` (while the trainer trains, and only
    then) and `evaluation_transform` (always), both of which work on all its images at once. A batch whose images are
    of another type is left alone. Where the trainer computes in half precision throughout ("bf16-true"), the images
    are given that type too.

    Args:
        batch_size: Images a batch.
        num_workers: Processes that load batches.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        mean: Mean of each channel to subtract, for values in [0, 1].
        std: Standard deviation of each channel to divide by, for values in [0, 1].
        seed: Seed of the splits.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        pin_memory: bool | None,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise invalid("batch_size", "at least 1", batch_size)
        if num_workers < 0:
            raise invalid("num_workers", "at least 0", num_workers)
        if not mean or len(mean) != len(std):
            raise invalid("std", f"as long as `mean`, which has {len(mean)} channels", tuple(std))
        if not all(value > 0 for value in std):
            raise invalid("std", "above 0 in each channel", tuple(std))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        # (x / 255 - mean) / std as one multiplication and one addition.
        deviation = torch.tensor(self.std, dtype=torch.float64)
        scale = (1.0 / (255.0 * deviation)).float().view(-1, 1, 1)
        shift = (-torch.tensor(self.mean, dtype=torch.float64) / deviation).float().view(-1, 1, 1)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {scale.device: (scale, shift)}

    def training_transform(self, images: Tensor) -> Tensor:
        """Augment a batch of uint8 images (N, channels, H, W), at random; here, nothing."""
        return images

    def evaluation_transform(self, images: Tensor) -> Tensor:
        """Scale and normalise images, without anything random.

        Use it on batches of `evaluation_dataset` and wherever no trainer does: it never augments.

        Args:
            images: uint8 of shape (N, channels, H, W) or (channels, H, W). Others are returned as they are.

        Returns:
            `(images / 255 - mean) / std`, float32 of the same shape, on the same device.
        """
        if images.dtype != torch.uint8:
            return images
        if images.device not in self._constants:
            # Constants made within inference mode could not be used outside it.
            with torch.inference_mode(False):
                scale, shift = self._constants[torch.device("cpu")]
                self._constants[images.device] = (scale.to(images.device), shift.to(images.device))
        scale, shift = self._constants[images.device]
        if images.shape[-3] != len(scale):
            raise invalid("mean", f"of {images.shape[-3]} channels as the images", self.mean)
        return (images * scale).add_(shift)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the images of a batch ready, the first of its parts if it has several."""
        if isinstance(batch, Tensor):
            return self._ready(batch)
        if type(batch) in (tuple, list) and batch and isinstance(batch[0], Tensor):
            return type(batch)((self._ready(batch[0]), *batch[1:]))
        return batch

    def _ready(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        if self.trainer is None:
            return self.evaluation_transform(images)
        if self.trainer.training:
            images = self.training_transform(images)
        # Lightning gives inputs the trainer's type before the transfer, when these were still uint8.
        ready: Tensor = self.trainer.precision_plugin.convert_input(self.evaluation_transform(images))
        return ready

    def _loader(self, dataset: Dataset[Any], shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate_samples,
            pin_memory=torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )


class ImageTensorDataModule(ImageDataModule, ABC):
    """Base of the data modules that keep a split's images in one tensor.

    A class of this kind defines `_load`. Augmentation is a random crop out of the image with a black border and, if
    `flip` is set, a mirror image half of the time.

    Args:
        batch_size: Images a batch.
        val_size: Images to split off the training set for validation: a number, a fraction, or 0 for none.
        num_workers: Processes that load batches.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augment: Augment while training.
        padding: Width of the border in pixels.
        flip: Mirror half of the images.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].
        seed: Seed of the splits.
    """

    def __init__(
        self,
        batch_size: int,
        val_size: int | float,
        num_workers: int,
        pin_memory: bool | None,
        augment: bool,
        padding: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, mean, std, seed)
        check_split("val_size", val_size)
        self.val_size = val_size
        self.augment = augment
        self.padding = padding
        self.flip = flip
        #: The training images, in the order of the data set, without those of `val_dataset`; set by `setup`.
        self.train_dataset: ImageTensorDataset | None = None
        #: The validation images, or `None` if `val_size` is 0.
        self.val_dataset: ImageTensorDataset | None = None
        #: The test images; set by `setup`.
        self.test_dataset: ImageTensorDataset | None = None
        #: Position of each image of `train_dataset` in the whole training set, int64 of shape (N,); set by `setup`.
        self.train_indices: Tensor | None = None

    @abstractmethod
    def _load(self, train: bool) -> ImageTensorDataset:
        """The whole training set, or the test set."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels; loads the training set if `setup` has not."""
        return list(self.evaluation_dataset().classes or [])

    def setup(self, stage: str | None = None) -> None:
        """Load what a stage needs, unless it is loaded already."""
        if stage in (None, "fit", "validate") and self.train_dataset is None:
            whole = self._load(train=True)
            if self.val_size:
                stay, off = stratified_split(whole.labels, self.val_size, self.seed)
                self.train_dataset, self.val_dataset, self.train_indices = whole.take(stay), whole.take(off), stay
            else:
                self.train_dataset, self.train_indices = whole, torch.arange(len(whole))
        if stage in (None, "test", "predict") and self.test_dataset is None:
            self.test_dataset = self._load(train=False)

    def evaluation_dataset(self) -> ImageTensorDataset:
        """The training images in the order of the training set, uint8 and never augmented."""
        self.setup("fit")
        assert self.train_dataset is not None
        return self.train_dataset

    def train_dataloader(self) -> DataLoader[Any]:
        """The training images in random order, the last batch smaller where it does not come out even."""
        return self._loader(self.evaluation_dataset(), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation images; an empty list, so no validation, if `val_size` is 0."""
        self.setup("validate")
        return [] if self.val_dataset is None else self._loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        self.setup("test")
        assert self.test_dataset is not None
        return self._loader(self.test_dataset)

    def training_transform(self, images: Tensor) -> Tensor:
        """Crop, and mirror, uint8 images (N, channels, H, W) at random, by torch's generator of their device."""
        if not self.augment:
            return images
        device, count = images.device, len(images)
        offsets = torch.randint(2 * self.padding + 1, (count, 2), device=device)
        flips = torch.rand(count, device=device) < 0.5 if self.flip else None
        return crop_and_flip(images, offsets, flips, self.padding)
