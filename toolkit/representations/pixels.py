"""Pixels as a representation: the baseline that any other has to beat."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from toolkit.representations.image_batches import ImageVectors, folded


class Pixels(ImageVectors):
    """A representation of images by their pixels, in [0, 1]: channel after channel, row after row.

    Args:
        invariance: Which differences between images to overlook, see `WaveletCoefficients`.
        resize: Height and width that all images are brought to, with antialiasing; needed where sizes differ.
        max_size: Images whose longer side is above this are downscaled to it first, by averaging areas.
        grayscale: Whether to take the brightness (0.299 red + 0.587 green + 0.114 blue) in place of the colours.
        batch_size: Images a batch.
        num_workers: Worker processes to load with; those of the data set's own loader if None.
        device: Where to compute, such as `cuda`; chosen if None.
        input_key: The key of the images where batches are dictionaries, if it is an unusual one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For settings out of range; from `vectors`, if sizes differ and `resize` is None, or if pixels are
            NaN, infinite, negative or above 1.
        TypeError: From `vectors`, if pixels are neither uint8, uint16 nor floating-point numbers.

    Example:
        >>> import numpy as np
        >>> images = np.array([[[0, 51], [102, 255]]], np.uint8)
        >>> Pixels(progress=False).vectors(images)
        array([[0. , 0.2, 0.4, 1. ]], dtype=float32)
    """

    def __init__(
        self,
        resize: Sequence[int] | None = None,
        *,
        max_size: int | None = None,
        grayscale: bool = False,
        invariance: Sequence[str] = (),
        batch_size: int = 512,
        num_workers: int | None = None,
        device: str | None = None,
        input_key: str | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(
            invariance=invariance,
            resize=resize,
            max_size=max_size,
            grayscale=grayscale,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            input_key=input_key,
            progress=progress,
        )

    def _coefficients(self, images: Tensor) -> Tensor:
        values = images.flatten(1)
        return folded(values, images.flip(3).flatten(1)) if "flip" in self.invariance else values

    def images(self, dataset: Any) -> npt.NDArray[np.float32]:
        """The images of a data set themselves, as float32 of shape (N, channels, H, W) in [0, 1].

        Nothing of them is overlooked, whatever `invariance` says.

        Args:
            dataset: The images, as for `vectors`.
        """
        channels, height, width = self._prepared_shape(self.image_shape(dataset))
        plain = copy.copy(self)
        plain.invariance = ()
        return plain.vectors(dataset).reshape(-1, channels, height, width)

    def _own_settings(self) -> dict[str, Any]:
        return {}
