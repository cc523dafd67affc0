"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from toolkit.validation import shorten

from .images import ImageTensorDataModule, ImageTensorDataset

__all__ = ["CIFAR_MEAN", "CIFAR_STD", "CIFAR10DataModule", "CIFAR100DataModule"]

#: Mean and standard deviation that the published CIFAR ResNet weights expect. They are ImageNet's, not CIFAR's own
#: (0.491, 0.482, 0.447 and 0.247, 0.243, 0.262): with those, the weights score lower.
CIFAR_MEAN = (0.485, 0.456, 0.406)
CIFAR_STD = (0.229, 0.224, 0.225)


def _any_checksum(entries: Sequence[Sequence[str]]) -> list[Any]:
    """File names of torchvision's list with `None` for their checksums, which it takes for "must be there"."""
    return [[name, None] for name, _ in entries]


class _CIFAR10(CIFAR10):  # type: ignore[misc]
    train_list = _any_checksum(CIFAR10.train_list)
    test_list = _any_checksum(CIFAR10.test_list)
    meta: ClassVar[dict[str, Any]] = {**CIFAR10.meta, "md5": None}


class _CIFAR100(CIFAR100):  # type: ignore[misc]
    train_list = _any_checksum(CIFAR100.train_list)
    test_list = _any_checksum(CIFAR100.test_list)
    meta: ClassVar[dict[str, Any]] = {**CIFAR100.meta, "md5": None}


class CIFAR10DataModule(ImageTensorDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    The images are read once into memory as uint8. While training, each is cropped at random out of itself with a black
    border of 4 pixels and mirrored half of the time, as He et al. (2016) do, a batch at a time on the device.

    There is no validation set unless `val_size` asks for one; the test images are never used for it.

    A folder that holds all files of the Python version is used as it is, and never written to: with other checksums
    than the original's (ciFAIR, or files put together elsewhere) a warning names the files that differ. The files are
    pickles, so take them only from sources that you trust.

    Args:
        root: Folder that holds, or gets, the folder `cifar-10-batches-py` (`cifar-100-python`).
        batch_size: Images a batch.
        val_size: Images to split off the training set for validation, in equal shares of the classes: a number, a
            fraction, or 0 for none.
        num_workers: Processes that load batches. The images are in memory already, so more than 0 seldom helps.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augment: Crop and mirror at random while training.
        mean: Mean of each channel, for values in [0, 1]; by default that of the published ResNet weights.
        std: Standard deviation of each channel, for values in [0, 1]; by default that of the published weights.
        download: Download the files if they are absent.
        seed: Seed of the validation split.

    Raises:
        ValueError: If a value is out of its range.
        FileNotFoundError: If files are missing and may not, or cannot, be downloaded.
        RuntimeError: If a file cannot be read.

    References:
        Krizhevsky: Learning multiple layers of features from tiny images, 2009.
        Barz, Denzler: Do we train on test data? Purging CIFAR of near-duplicates, 2020 (ciFAIR).

    Example:
        >>> data = CIFAR10DataModule(root="data", val_size=5_000)
        >>> data.num_classes
        10
    """

    #: Number of classes, known before anything is loaded.
    num_classes: int = 10
    _original: ClassVar[type[CIFAR10]] = CIFAR10
    _reader: ClassVar[type[CIFAR10]] = _CIFAR10

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        val_size: int | float = 0,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        augment: bool = True,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        download: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_size=val_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            augment=augment,
            padding=4,
            flip=True,
            mean=mean,
            std=std,
            seed=seed,
        )
        self.root = root
        self.download = download
        self._checked = False

    @property
    def folder(self) -> Path:
        """The folder of the batch files."""
        return Path(self.root, str(self._original.base_folder))

    def prepare_data(self) -> None:
        """Download the files if they are absent."""
        missing = self._missing()
        if not missing:
            return
        if not self.download:
            raise self._not_found(missing, "`download` is off")
        differing = self._differing()
        if differing:
            raise self._not_found(
                missing, f"a download would write over {shorten(differing)} there, which are not the original's"
            )
        try:
            self._original(self.root, download=True)
        except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
            raise self._not_found(missing, f"the download failed ({error})") from error

    def _load(self, train: bool) -> ImageTensorDataset:
        missing = self._missing()
        if missing:
            raise self._not_found(missing, "nothing was downloaded")
        if not self._checked:
            differing = self._differing()
            if differing:
                rank_zero_warn(
                    f"{self.folder} holds other files than the original {self._original.__name__}: the checksums of "
                    f"{shorten(differing, most=len(differing))} differ. They are used as they are.",
                    category=UserWarning,
                )
            self._checked = True
        try:
            data = self._reader(self.root, train=train, download=False)
        except (pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
            raise RuntimeError(
                f"A file in {self.folder} cannot be read as {self._original.__name__}: {error}"
            ) from error
        # torchvision turns the files' order of axes around, for PIL; this takes the turn back.
        images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        return ImageTensorDataset(images, torch.tensor(data.targets), data.classes)

    def _checksums(self) -> dict[str, str]:
        """The original's files and their checksums."""
        original = self._original
        listed: dict[str, str] = dict([*original.train_list, *original.test_list])
        return {**listed, original.meta["filename"]: original.meta["md5"]}

    def _missing(self) -> list[str]:
        """The files that are absent."""
        return [name for name in self._checksums() if not (self.folder / name).is_file()]

    def _differing(self) -> list[str]:
        """The files that are there but are not the original's."""
        return [
            name
            for name, md5 in self._checksums().items()
            if (self.folder / name).is_file() and not check_integrity(str(self.folder / name), md5)
        ]

    def _not_found(self, missing: list[str], why: str) -> FileNotFoundError:
        archive = self._original.url
        return FileNotFoundError(
            f"{self._original.__name__} is not complete in {self.folder.absolute()}: {shorten(missing)} missing, and "
            f"{why}. Set `root` to the folder that holds `{self._original.base_folder}`, or unpack {archive} there."
        )


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes.

    Everything else is as in `CIFAR10DataModule`.

    Args:
        root: Folder that holds, or gets, the folder `cifar-100-python`.
        batch_size: Images a batch.
        val_size: Images to split off the training set for validation, in equal shares of the classes: a number, a
            fraction, or 0 for none.
        num_workers: Processes that load batches. The images are in memory already, so more than 0 seldom helps.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augment: Crop and mirror at random while training.
        mean: Mean of each channel, for values in [0, 1]; by default that of the published ResNet weights.
        std: Standard deviation of each channel, for values in [0, 1]; by default that of the published weights.
        download: Download the files if they are absent.
        seed: Seed of the validation split.

    Example:
        >>> CIFAR100DataModule(root="data").num_classes
        100
    """

    num_classes: int = 100
    _original: ClassVar[type[CIFAR10]] = CIFAR100
    _reader: ClassVar[type[CIFAR10]] = _CIFAR100
