"""What turns images into vectors, and the view of a data set that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from toolkit.fingerprint import content_hash, dataset_fingerprint
from toolkit.reproducibility import preserved_rng
from toolkit.validation import invalid

Vectors = npt.NDArray[np.floating[Any]]
BatchTransform = Callable[[Any, torch.device], Any]
Collate = Callable[[list[Any]], Any]

#: Where images are looked for in batches and samples that are dictionaries, the first of these that there is.
IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x", "input", "inputs")

#: Images that are read twice to find out whether reading is random, and once to tell one preprocessing from another.
_PROBES = 8


@runtime_checkable
class Representation(Protocol):
    """Anything that turns a data set into vectors of shape (N, D), one row an image, in the data set's order."""

    def vectors(self, dataset: Any) -> Vectors:
        """The vectors of a data set's images.

        Args:
            dataset: The images, N of them: anything with `__len__` and `__getitem__`, or an `EvaluationView`.

        Returns:
            A floating-point array or memory map of shape (N, D).
        """
        ...

    def fingerprint(self) -> str:
        """A text that differs whenever the vectors of the same images would."""
        ...


class EvaluationView(Dataset[Any]):
    """A training set as it is seen for evaluation, with everything needed to turn it into a network's input.

    Args:
        dataset: The images without random augmentation, where somebody could tell how to switch it off.
        batch_transform: Takes a collated batch and a device; returns the batch as the network takes it (moved to the
            device, normalised, ...). None only moves the images.
        collate_fn: What makes a batch of samples; PyTorch's default if None.
        num_workers: Worker processes to load with.
        device: Where networks run; chosen by the representation if None.

    Example:
        >>> images = [(torch.zeros(3, 2, 2), 0)] * 5
        >>> view = EvaluationView(images)
        >>> len(view), view.load([0, 1])[0].shape
        (5, torch.Size([2, 3, 2, 2]))
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_transform: BatchTransform | None = None,
        collate_fn: Collate | None = None,
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_transform = batch_transform
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self.device = device

    @classmethod
    def of(cls, dataset: Any) -> EvaluationView:
        """`dataset` itself if it is a view already, else a plain view, with its own `collate_fn` if it has one."""
        return dataset if isinstance(dataset, cls) else cls(dataset, collate_fn=_own_collate(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def load(self, indices: list[int]) -> Any:
        """The collated batch of some images, before the batch transform."""
        return (self.collate_fn or default_collate)(self._read(indices))

    def _read(self, indices: list[int]) -> Any:
        """Some samples; as PyTorch's loader does, all in one go where the data set offers that."""
        many = getattr(self.dataset, "__getitems__", None)
        return many(indices) if many else [self[i] for i in indices]

    def fingerprint(self) -> str:
        """A text that differs when the images, the labels, or what the network gets to see of them differ."""
        return f"{dataset_fingerprint(self.dataset)}-{content_hash(*self._probe(seed=0))[:16]}"

    def is_random(self) -> bool:
        """Whether reading the same images twice gives different ones: augmentation that nobody switched off."""
        first, second = self._probe(seed=0), self._probe(seed=1)
        return any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))

    def _probe(self, seed: int) -> list[torch.Tensor]:
        """A few images as the network gets them, computed on the CPU so that every machine sees the same."""
        indices = sorted({int(i) for i in np.linspace(0, len(self) - 1, min(_PROBES, len(self)))})
        with preserved_rng(seed), torch.no_grad():
            samples = self._read(indices)  # An image that cannot be read is told at once.
            try:
                batch = (self.collate_fn or default_collate)(samples)
                if self.batch_transform is not None:
                    batch = self.batch_transform(batch, torch.device("cpu"))
                return [images_of(batch).cpu()]
            except (RuntimeError, TypeError, ValueError):
                return []  # They form no batch of images as they are: whoever needs one explains that.


def images_of(batch: Any, input_key: str | None = None) -> torch.Tensor:
    """The images of a batch: the batch itself, the first item of a tuple or list, or an item of a dictionary.

    Args:
        batch: What a data loader gives.
        input_key: The dictionary's key of the images, if it is none of `image`, `images`, `img`, `pixel_values`, `x`,
            `input` and `inputs`.
    """
    if isinstance(batch, Mapping):
        found = image_key(batch, input_key)
        if found is None:
            raise invalid("input_key", f"the key of the images in a batch, one of {sorted(map(str, batch))}", input_key)
        batch = batch[found]
    elif isinstance(batch, (tuple, list)) and len(batch):
        batch = batch[0]
    if not isinstance(batch, torch.Tensor):
        raise TypeError(f"Images must arrive as a tensor, first in their batch, got {type(batch).__name__}.")
    return batch


def image_key(item: Mapping[Any, Any], input_key: str | None = None) -> str | None:
    """Under which key a batch or sample has its images, or None if it has none of those that are usual.

    Args:
        item: The batch or sample.
        input_key: The only key to look at, if one is given.

    Example:
        >>> image_key({"cls": 3, "img": "the image"})
        'img'
    """
    return next((key for key in ((input_key,) if input_key else IMAGE_KEYS) if key in item), None)


def batches_from(loader: DataLoader[Any], first: int, stop: int) -> Iterator[Any]:
    """The batches of a loader; an error while one is read gets a note of which images it was.

    Args:
        loader: Reads the images `first` to `stop` in order.
        first: Index of the first image.
        stop: Index behind the last one.
    """
    batches, size = iter(loader), loader.batch_size or 1
    for start in range(first, stop, size):
        try:
            batch = next(batches, None)
        except Exception as error:
            error.add_note(
                f"This happened while the images of index {start} to {min(start + size, stop) - 1} were read."
            )
            raise
        if batch is None:
            return
        yield batch


def _own_collate(dataset: Any) -> Collate | None:
    """What a data set itself wants batches of its samples to be made with, also where it is a part of another."""
    if isinstance(dataset, Subset):
        return _own_collate(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _own_collate(dataset.datasets[0])
    own = getattr(dataset, "collate_fn", None)
    return own if callable(own) else None
