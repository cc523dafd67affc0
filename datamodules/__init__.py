"""Lightning data modules: the wrapper that prunes a training set, and data sets to use it on."""

from __future__ import annotations

if __name__ != "toolkit.datamodules":
    raise ImportError(
        f"This folder is imported as `toolkit.datamodules`, not as {__name__!r}: under a second name "
        "every class would exist twice."
    )

from .cifar import CIFAR10DataModule, CIFAR100DataModule
from .digits import DigitsDataModule
from .image_folder import ImageFolderDataModule
from .pruned import PrunedDataModule
from .random_each_epoch import RandomEachEpoch

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "PrunedDataModule",
    "RandomEachEpoch",
]
