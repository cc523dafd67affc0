"""Vectors that exist already, as a representation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit.fingerprint import content_hash
from toolkit.representations.base import Vectors
from toolkit.validation import check_vectors, invalid


class Embeddings:
    """Vectors that the user already has, one row an image, in the data set's order.

    Args:
        vectors: Shape (N, D): an array, a tensor, a memory map, or the path of a `.npy` file (opened as a memory map,
            never loaded whole).

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the vectors are not a matrix, not finite, or (in `vectors()`) not as many as the data set's
            images.

    Example:
        >>> import numpy as np
        >>> Embeddings(np.eye(3)).vectors(["a", "b", "c"]).shape
        (3, 3)
    """

    def __init__(self, vectors: Any) -> None:
        self.source = vectors
        self._matrix: Vectors | None = None

    def vectors(self, dataset: Any) -> Vectors:
        """The vectors, after a check that there is one for each image of `dataset`."""
        if self._matrix is None:
            self._matrix = check_vectors(_open(self.source), "embeddings")
        if dataset is not None and len(self._matrix) != len(dataset):
            raise invalid(
                "embeddings",
                f"one row for each of the data set's {len(dataset)} images, in the same order",
                f"{len(self._matrix)} rows",
            )
        return self._matrix

    def fingerprint(self) -> str:
        """A hash of the values."""
        return f"embeddings:{content_hash(_open(self.source))}"


def _open(source: Any) -> Any:
    """The array behind a path, or the array itself; tensors come to the CPU."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"`embeddings` must be an array or an existing .npy file, got {str(path)!r}.")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if hasattr(source, "detach"):
        tensor = source.detach().cpu()
        return (tensor.float() if tensor.dtype.is_floating_point and tensor.element_size() < 4 else tensor).numpy()
    return np.asanyarray(source)
