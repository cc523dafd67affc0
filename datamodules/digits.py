"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.validation import invalid

from .images import ImageTensorDataModule, ImageTensorDataset, check_split, stratified_split

__all__ = ["DigitsDataModule"]


class DigitsDataModule(ImageTensorDataModule):
    """The 1,797 handwritten digits of scikit-learn: 8 x 8 pixels, one channel, 10 classes, no download.

    The values 0 to 16 are stretched to 0 to 255. While training, each image is moved by up to one pixel; digits are
    never mirrored. The test images are split off first, so `val_size` does not change them.

    Args:
        batch_size: Images a batch.
        test_size: Images to split off for testing, in equal shares of the classes: a number or a fraction.
        val_size: Images to split off the rest for validation: a number, a fraction, or 0 for none.
        num_workers: Processes that load batches. The images are in memory already, so more than 0 seldom helps.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augment: Move the images at random while training.
        mean: Mean of the one channel, for values in [0, 1]; by default that of all images.
        std: Standard deviation of the one channel, for values in [0, 1]; by default that of all images.
        seed: Seed of both splits.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> data = DigitsDataModule(test_size=0.25, val_size=147)
        >>> data.setup()
        >>> len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)
        (1201, 147, 449)
    """

    #: Number of classes.
    num_classes: int = 10

    def __init__(
        self,
        batch_size: int = 64,
        test_size: int | float = 0.25,
        val_size: int | float = 0,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        augment: bool = True,
        mean: Sequence[float] = (0.305,),
        std: Sequence[float] = (0.376,),
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_size=val_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            augment=augment,
            padding=1,
            flip=False,
            mean=mean,
            std=std,
            seed=seed,
        )
        check_split("test_size", test_size)
        if not test_size:
            raise invalid("test_size", "above 0", test_size)
        self.test_size = test_size

    def _load(self, train: bool) -> ImageTensorDataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        whole = ImageTensorDataset(
            torch.from_numpy(pixels).unsqueeze(1),
            torch.from_numpy(digits.target.astype(np.int64)),
            [str(name) for name in digits.target_names],
        )
        stay, off = stratified_split(whole.labels, self.test_size, self.seed, "test_size")
        return whole.take(stay if train else off)
