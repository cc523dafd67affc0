"""Wavelet coefficients as a representation: images compared from coarse to fine, without a trained model."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pywt
import torch
from torch import Tensor

from toolkit.representations.image_batches import ImageVectors, folded
from toolkit.validation import check_choice, check_vectors, invalid

__all__ = ["MODES", "WaveletCoefficients"]

#: How an image can be continued past its edges: the modes that pytorch-wavelets shares with PyWavelets.
MODES = ("periodization", "zero", "symmetric", "reflect", "periodic")

_BAND = re.compile(r"approximation|detail_[1-9][0-9]*")


class WaveletCoefficients(ImageVectors):
    """A representation of images by the coefficients of their discrete wavelet transform, the coarsest first.

    A transform of J levels gives J + 1 bands. In the vectors they follow each other in this order: `approximation`,
    then the details from `detail_J` (the coarsest) to `detail_1` (the finest). Within the approximation: channel, row,
    column; within details: channel, direction (horizontal, vertical and diagonal details), row, column.

    With mode `periodization`, an orthogonal wavelet (`haar`, `dbN`, `symN`, `coifN`) and sides that can be halved J
    times, the transform is orthonormal: Euclidean distances between vectors of all bands are those of the pixels
    (Parseval), and distances over some bands are lower bounds of them.

    What can be overlooked (`invariance`), in the order in which it is removed:

    ============  ======================================================================================================
    name          what is done to each image
    ============  ======================================================================================================
    brightness    its mean over all pixels and channels is subtracted
    shift         it is moved by whole pixels, cyclically, so that its brightness is centred
    flip          its coefficients c and those of its mirror image m become (c + m) / 2 and |c - m| / 2, band by band,
                  so that vectors are twice as long, and no farther apart than the nearer of image and mirror image
    contrast      its vector, after bands and weights, is divided by its length, so that distances are
                  sqrt(2 (1 - cosine)); an image without any contrast has a vector of zeros
    ============  ======================================================================================================

    Args:
        wavelet: Name of a discrete wavelet, as in `pywt.wavelist(kind="discrete")`.
        levels: Levels of the transform; None for as many as the shorter side allows (`pywt.dwt_max_level`: the
            approximation is then still as long as the wavelet's support).
        mode: How images are continued past their edges, one of `MODES`.
        bands: The bands to use: a number of bands from the coarsest on (1 for the approximation alone), or names; None
            for all.
        band_weights: Factors for the coefficients of some bands, by name; 1 for bands that are not named.
        invariance: Which differences between images to overlook, out of the table above.
        resize: Height and width that all images are brought to, with antialiasing; needed where sizes differ.
        max_size: Images whose longer side is above this are downscaled to it first, by averaging areas.
        grayscale: Whether to take the brightness (0.299 red + 0.587 green + 0.114 blue) in place of the colours.
        batch_size: Images a batch.
        num_workers: Worker processes to load with; those of the data set's own loader if None.
        device: Where to compute, such as `cuda`; chosen if None.
        input_key: The key of the images where batches are dictionaries, if it is an unusual one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For settings out of range; from `vectors`, if images are smaller than the wavelet's support, if
            `levels` or a band is more than their size allows, if sizes differ and `resize` is None, or if pixels are
            NaN, infinite, negative or above 1.
        TypeError: From `vectors`, if pixels are neither uint8, uint16 nor floating-point numbers.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, which uses one level
        of `db1`. Cotter, pytorch-wavelets, computes the transform.

    Example:
        >>> import numpy as np
        >>> images = np.array([[[0, 255], [0, 255]]], np.uint8)
        >>> wavelets = WaveletCoefficients("db1", progress=False)
        >>> wavelets.vectors(images).round(3) + 0
        array([[ 1.,  0., -1.,  0.]], dtype=float32)
        >>> wavelets.band_slices((1, 2, 2))
        {'approximation': slice(0, 1, None), 'detail_1': slice(1, 4, None)}
    """

    def __init__(
        self,
        wavelet: str = "db1",
        levels: int | None = None,
        mode: str = "periodization",
        *,
        bands: int | Sequence[str] | None = None,
        band_weights: Mapping[str, float] | None = None,
        invariance: Sequence[str] = (),
        resize: Sequence[int] | None = None,
        max_size: int | None = None,
        grayscale: bool = False,
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
        self._filters = _filters_of(wavelet)
        self.wavelet = wavelet
        self.levels = _checked_levels(levels)
        self.mode = check_choice("mode", mode, MODES)
        self.bands = _checked_bands(bands)
        self.band_weights = _checked_weights(band_weights)
        self._transforms: dict[tuple[int, torch.device], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_transforms": {}}

    def _own_settings(self) -> dict[str, Any]:
        return {
            "wavelet": self.wavelet,
            "levels": self.levels,
            "mode": self.mode,
            "bands": self.bands,
            "band_weights": self.band_weights,
        }

    def band_slices(self, shape: Sequence[int]) -> dict[str, slice]:
        """Which columns of the vectors are the coefficients of which band.

        Args:
            shape: Channels, height and width of the images as they are stored.

        Returns:
            The names of the bands that are used, in the order of the columns, with their ranges.
        """
        channels, height, width = self._prepared_shape(shape)
        counts = self._counts(channels, height, width)
        slices: dict[str, slice] = {}
        start = 0
        for name in self._used(len(counts) - 1):
            slices[name] = slice(start, start + counts[name])
            start += counts[name]
        return slices

    def band_energy(self, vectors: npt.ArrayLike, shape: Sequence[int]) -> dict[str, float]:
        """Mean over the images of the squared length of each band's coefficients.

        Args:
            vectors: Shape (N, D): what `vectors` gave.
            shape: Channels, height and width of the images as they are stored.

        Returns:
            The names of the bands, in the order of the columns, with their energies: together the mean squared length
            of the vectors.

        Example:
            >>> import numpy as np
            >>> wavelets = WaveletCoefficients(progress=False)
            >>> vectors = wavelets.vectors(np.array([[[0, 255], [0, 255]]], np.uint8))
            >>> {name: round(energy, 6) for name, energy in wavelets.band_energy(vectors, (1, 2, 2)).items()}
            {'approximation': 1.0, 'detail_1': 1.0}
        """
        matrix = check_vectors(vectors, "vectors")
        slices = self.band_slices(shape)
        width = max(columns.stop for columns in slices.values())
        if matrix.shape[1] != width:
            raise invalid("vectors", f"of shape (N, {width}) for images of shape {tuple(shape)}", matrix.shape)
        sums = np.zeros(width)
        for start in range(0, len(matrix), 4096):
            block = matrix[start : start + 4096]
            sums += np.einsum("ij,ij->j", block, block, dtype=np.float64)
        return {name: float(sums[columns].sum()) / len(matrix) for name, columns in slices.items()}

    def _coefficients(self, images: Tensor) -> Tensor:
        levels = self._n_levels(*images.shape[2:])
        used = self._used(levels)
        # Details that are finer than any that is used still have to be passed through, but not kept.
        transform = self._transform_of(levels, images.device)
        parts = self._parts(transform(images), used)
        if "flip" in self.invariance:
            mirrored = self._parts(transform(images.flip(3)), used)
            parts = [folded(part, other) for part, other in zip(parts, mirrored, strict=True)]
        for i, name in enumerate(used):
            if name in self.band_weights:
                parts[i] = parts[i] * self.band_weights[name]
        return torch.cat(parts, dim=1)

    @staticmethod
    def _parts(transformed: Any, used: list[str]) -> list[Tensor]:
        """The coefficients of each band that is used, (B, K) each."""
        low, details = transformed
        named = {"approximation": low} | {f"detail_{level + 1}": band for level, band in enumerate(details)}
        return [named[name].flatten(1) for name in used]

    def _transform_of(self, levels: int, device: torch.device) -> Any:
        """pytorch-wavelets' transform, made once for each number of levels and device."""
        key = (levels, device)
        if key not in self._transforms:
            with warnings.catch_warnings():
                # What pytorch-wavelets uses to find its version warns of its end; nothing else may be silenced.
                warnings.filterwarnings("ignore", "pkg_resources is deprecated as an API", UserWarning)
                from pytorch_wavelets import DWTForward
            self._transforms[key] = DWTForward(levels, self.wavelet, self.mode).to(device)
        return self._transforms[key]

    def _n_levels(self, height: int, width: int) -> int:
        """The number of levels for images of a size."""
        most = pywt.dwt_max_level(min(height, width), self._filters)
        if most < 1:
            raise ValueError(
                f"Images must be at least {2 * (self._filters - 1)} pixels high and wide for `wavelet` "
                f"{self.wavelet!r}, got {height} x {width}. Choose a shorter wavelet (db1 needs 2), or give `resize`."
            )
        if self.levels is not None and self.levels > most:
            raise invalid(
                "levels",
                f"at most {most} for images of {height} x {width} pixels and `wavelet` {self.wavelet!r}",
                self.levels,
            )
        return self.levels or most

    def _counts(self, channels: int, height: int, width: int) -> dict[str, int]:
        """Number of coefficients of every band, the coarsest first."""
        sizes: list[int] = []
        for _ in range(self._n_levels(height, width)):
            height, width = (pywt.dwt_coeff_len(size, self._filters, self.mode) for size in (height, width))
            sizes.append(height * width * (2 if "flip" in self.invariance else 1))
        details = {f"detail_{level}": 3 * channels * sizes[level - 1] for level in range(len(sizes), 0, -1)}
        return {"approximation": channels * sizes[-1]} | details

    def _used(self, levels: int) -> list[str]:
        """Names of the bands that are used, the coarsest first."""
        names = ["approximation"] + [f"detail_{level}" for level in range(levels, 0, -1)]
        for argument, asked in (("bands", self.bands), ("band_weights", self.band_weights)):
            unknown = [name for name in asked if name not in names] if not isinstance(asked, (int, type(None))) else []
            if unknown:
                raise invalid(argument, f"names of the bands of a transform of {levels} levels, {names}", unknown)
        if self.bands is None:
            return names
        if isinstance(self.bands, int):
            if self.bands > len(names):
                raise invalid("bands", f"at most {len(names)} with {levels} levels", self.bands)
            return names[: self.bands]
        return [name for name in names if name in self.bands]


def _filters_of(wavelet: str) -> int:
    """Length of a wavelet's filters."""
    try:
        return cast("int", pywt.Wavelet(wavelet).dec_len)
    except (TypeError, ValueError, AttributeError):
        families = ", ".join(pywt.families())
        raise invalid(
            "wavelet", f"the name of a discrete wavelet, such as 'db1' (families: {families})", wavelet
        ) from None


def _checked_levels(levels: int | None) -> int | None:
    if levels is None:
        return None
    if isinstance(levels, bool) or not isinstance(levels, (int, np.integer)):
        raise TypeError(f"`levels` must be an integer or None, got {levels!r}.")
    if levels < 1:
        raise invalid("levels", "at least 1, or None for as many as possible", levels)
    return int(levels)


def _checked_bands(bands: int | Sequence[str] | None) -> int | tuple[str, ...] | None:
    if bands is None:
        return None
    if isinstance(bands, (int, np.integer)) and not isinstance(bands, bool):
        if bands < 1:
            raise invalid("bands", "a number of bands of at least 1", bands)
        return int(bands)
    names = [] if isinstance(bands, (str, bool)) else list(bands)
    if not names or not all(isinstance(name, str) and _BAND.fullmatch(name) for name in names):
        raise invalid("bands", "a number, or names such as 'approximation' and 'detail_1' (the finest)", bands)
    return tuple(names)


def _checked_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    checked = dict(weights or {})
    for name, weight in checked.items():
        if not _BAND.fullmatch(str(name)):
            raise invalid("band_weights", "by names such as 'approximation' and 'detail_1' (the finest)", name)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise invalid("band_weights", "finite numbers of at least 0", {name: weight})
    return {str(name): float(weight) for name, weight in checked.items()}
