"""Samplers that decide anew in each epoch which images it has, the same on all processes, in equal shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from toolkit.distributed import world
from toolkit.validation import check_fraction, fraction_of, invalid


class EpochSampler(DistributedSampler[int]):
    """All images in random order, a new one in each epoch, which remembers whose turn it is.

    The order follows from the seed and the epoch alone, so it is the same on all processes of a distributed run; each
    takes every n-th image. Where images do not come out even, the first ones are repeated, so that all processes take
    as many steps. Being a `DistributedSampler`, it is left in its place by Lightning and told the epoch.

    Subclasses say which images an epoch has (`chosen`).

    Args:
        n_images: Number of images, N.
        seed: Of the orders.

    Example:
        >>> sampler = EpochSampler(4, seed=1)
        >>> order = list(sampler)
        >>> sorted(order), sampler.take(2).tolist() == order[:2], sampler.take(2).tolist() == order[2:]
        ([0, 1, 2, 3], True, True)
    """

    def __init__(self, n_images: int, seed: int = 0) -> None:
        rank, size = world()
        super().__init__(_Numbers(n_images), num_replicas=size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.n_images = n_images
        self._order = torch.empty(0, dtype=torch.int64)
        self._taken = 0

    def chosen(self) -> torch.Tensor:
        """The images of this epoch in their order, int64, the same on all processes."""
        return torch.randperm(self.n_images, generator=self._generator(self.epoch))

    def n_chosen(self) -> int:
        """How many images this epoch has."""
        return self.n_images

    def take(self, count: int) -> torch.Tensor:
        """The indices of this process' next batch, int64 of shape (count,).

        A loader asks for indices ahead of time, so that what it asked for last is not what a batch holds.
        """
        first, self._taken = self._taken, self._taken + count
        return self._order[first : self._taken]

    def __len__(self) -> int:
        return math.ceil(self.n_chosen() / self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        whole = self.chosen()
        missing = len(self) * self.num_replicas - len(whole)
        if missing:
            whole = torch.cat([whole, whole[:missing]])
        self._order, self._taken = whole[self.rank :: self.num_replicas], 0
        return iter(self._order.tolist())

    def _generator(self, *numbers: int) -> torch.Generator:
        """A random generator for this seed and some numbers, such as the epoch."""
        mixed = self.seed
        for number in numbers:
            mixed = (mixed * 1_000_003 + number + 1) % (1 << 62)
        return torch.Generator().manual_seed(mixed)


class RandomSubsetSampler(EpochSampler):
    """A fresh random subset in each epoch: repeated sampling of random subsets (RS2).

    Without replacement, the subsets are cut one after the other from random orders of all images, so that every image
    comes up equally often; a subset that begins at the end of one order goes on in the next. With it, each epoch draws
    from all images anew. An epoch never draws from less than the whole set.

    Args:
        n_images: Number of images, N.
        keep_fraction: In (0, 1]: an epoch has `floor(keep_fraction * N)` images.
        replacement: Whether an image may come up again before all others have.
        seed: Of the orders.

    References:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", arXiv 2305.18424,
        both variants; how subsets go on from one order to the next is not told there.

    Example:
        >>> sampler = RandomSubsetSampler(6, keep_fraction=0.5, seed=1)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> len(first), sorted(first + list(sampler))
        (3, [0, 1, 2, 3, 4, 5])
    """

    def __init__(self, n_images: int, keep_fraction: float, replacement: bool = False, seed: int = 0) -> None:
        super().__init__(n_images, seed)
        self.replacement = replacement
        self._count = fraction_of(check_fraction("keep_fraction", keep_fraction), n_images)
        if self._count < 1:
            raise invalid("keep_fraction", f"large enough for one of {n_images} images", keep_fraction)

    def chosen(self) -> torch.Tensor:
        """The images of this epoch."""
        if self.replacement:
            return super().chosen()[: self._count]
        first = self.epoch * self._count
        orders = range(first // self.n_images, (first + self._count - 1) // self.n_images + 1)
        whole = torch.cat([torch.randperm(self.n_images, generator=self._generator(order)) for order in orders])
        start = first - orders[0] * self.n_images
        return whole[start : start + self._count]

    def n_chosen(self) -> int:
        """How many images an epoch has."""
        return self._count


class LossSampler(EpochSampler):
    """Fewer of the images whose loss is below the mean: InfoBatch's choice for one epoch, with its weights.

    Of the images whose loss is below the mean of all, a random share `prune_ratio` is left out; the losses of those
    that stay are to be multiplied by how many there were for each, which is `1 / (1 - prune_ratio)` but for rounding,
    so that the expected gradient is that of all images.

    Args:
        losses: The last known loss of each image, float of shape (N,), the same on all processes; None for all images.
        n_images: Number of images, N.
        prune_ratio: In [0, 1): r.
        seed: Of the choice and the order.
        epoch: The epoch, which draws what is left out.

    Attributes:
        weights: float32 of shape (N,): what the loss of each image is to be multiplied by.

    References:
        Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", arXiv 2303.04947. There
        each image below the mean is left out with probability r; here, as in the authors' code, exactly a share r of
        them.

    Example:
        >>> sampler = LossSampler(torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0]), 5, prune_ratio=0.5, seed=0, epoch=3)
        >>> len(sampler), 4 in list(sampler), sampler.weights.unique().tolist()
        (3, True, [1.0, 2.0])
    """

    def __init__(self, losses: torch.Tensor | None, n_images: int, prune_ratio: float, seed: int, epoch: int) -> None:
        super().__init__(n_images, seed)
        self.weights = torch.ones(n_images)
        self.set_epoch(epoch)
        stays = torch.ones(n_images, dtype=torch.bool)
        if losses is not None:
            below = torch.nonzero(losses < losses.mean()).flatten()
            drawn = below[torch.randperm(len(below), generator=self._generator(epoch, 0))]
            n_kept = len(below) - int(prune_ratio * len(below))
            stays[drawn[n_kept:]] = False
            self.weights[drawn[:n_kept]] = len(below) / max(n_kept, 1)
        self._kept = torch.nonzero(stays).flatten()

    def chosen(self) -> torch.Tensor:
        """The images of this epoch."""
        return self._kept[torch.randperm(len(self._kept), generator=self._generator(self.epoch))]

    def n_chosen(self) -> int:
        """How many images this epoch has."""
        return len(self._kept)


class _Numbers:
    """So many things, as far as a sampler wants to know."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return index
