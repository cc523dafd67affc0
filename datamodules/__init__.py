"""Lightning data modules: the wrapper that prunes a training set, and data sets to use it on."""

from __future__ import annotations

if __name__ != "toolkit.datamodules":
    raise ImportError(
        f"This folder is imported as `toolkit.datamodules`, not as {__name__!r}: under a second name "
        "every class would exist twice."
    )

import importlib
from typing import TYPE_CHECKING, Any

from .cifar import CIFAR10DataModule, CIFAR100DataModule
from .digits import DigitsDataModule
from .image_folder import ImageFolderDataModule
from .pruned import PrunedDataModule
from .random_each_epoch import RandomEachEpoch

if TYPE_CHECKING:
    from .street_scenes import StreetScenesDataModule
    from .yolo import YOLODataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "PrunedDataModule",
    "RandomEachEpoch",
    "StreetScenesDataModule",
    "YOLODataModule",
]

#: What needs the extra `detection`, and the module that it is in.
_DETECTION = {"StreetScenesDataModule": "street_scenes", "YOLODataModule": "yolo"}


def __getattr__(name: str) -> Any:
    """Import what needs an extra when it is first used."""
    if name in _DETECTION:
        value = getattr(importlib.import_module(f"{__name__}.{_DETECTION[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
