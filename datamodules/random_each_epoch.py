"""Any LightningDataModule with a fresh random subset of its training images in each epoch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from torch.utils.data import DataLoader

from toolkit.lightning_views import global_seed, resampled_loader
from toolkit.sampling import RandomSubsetSampler
from toolkit.validation import check_fraction

from .pruned import PrunedDataModule

__all__ = ["RandomEachEpoch"]


class RandomEachEpoch(PrunedDataModule):
    """A data module whose epochs each have a fresh random subset of the training images (RS2).

    An epoch is as short as with a pruned training set, but every image comes up in the course of the training: what a
    fixed choice of as many images has to beat. Everything else is the inner module's own. In a distributed run the
    subset is one for all processes.

    Args:
        datamodule: Any LightningDataModule whose training data set has a length and is read by index.
        keep_fraction: In (0, 1]: an epoch has `floor(keep_fraction * N)` of the N images.
        replacement: Whether an image may come up again before all others have.
        seed: Of the subsets; that of `seed_everything`, or 0, if None.

    Raises:
        MisconfigurationException: When the loader is asked for, if the inner module's training loader cannot be
            sampled from.

    References:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", arXiv 2305.18424.

    Example:
        >>> from toolkit.datamodules import DigitsDataModule
        >>> datamodule = RandomEachEpoch(DigitsDataModule(batch_size=100), keep_fraction=0.5)
        >>> datamodule.setup("fit")
        >>> len(datamodule.train_dataloader().dataset), len(datamodule.train_dataloader())
        (1348, 7)
    """

    def __init__(
        self,
        datamodule: L.LightningDataModule,
        keep_fraction: float,
        *,
        replacement: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(datamodule)
        self.keep_fraction = check_fraction("keep_fraction", keep_fraction)
        self.replacement = replacement
        self.__dict__["seed"] = seed  # the inner module may have a seed of its own

    def train_dataloader(self) -> DataLoader[Any]:
        """The inner module's training loader, with a sampler that draws a fresh subset in each epoch."""
        loader = self._inner_loader()
        seed = global_seed() if self.seed is None else self.seed
        sampler = RandomSubsetSampler(len(loader.dataset), self.keep_fraction, self.replacement, seed)  # type: ignore[arg-type]
        return resampled_loader(loader, sampler)
