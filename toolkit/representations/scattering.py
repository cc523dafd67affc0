"""Wavelet scattering as a representation: finds near-duplicates without a trained model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from toolkit.representations.base import Vectors
from toolkit.representations.image_batches import ImageVectors, unit_length, without_brightness
from toolkit.validation import invalid

__all__ = ["WaveletScattering"]

#: A mean modulus below this is only rounding.
_ROUNDING = 4e-7
#: Pixels worked on at a time: what fits into a processor's cache.
_BLOCK_PIXELS = 1 << 16
#: Vectors worked on at a time.
_BLOCK_ROWS = 4096
#: Variances that differ by less than this share of the largest are one and the same.
_SAME_VARIANCE = 1e-9

_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]


class WaveletScattering(ImageVectors):
    """A representation of images by the strength of their edges and by their colours, cell by cell, whitened.

    This is first-order wavelet scattering with the Haar wavelet, beside coarse colours. Averaged moduli of details
    depend less on exact positions than wavelet coefficients do; whitening then gives less weight to what most images of
    a data set have in common. So images shifted by a pixel or two are still nearer to each other than to any other,
    more often than by wavelet coefficients; by four pixels of 32, they mostly are not. The steps, for pixels in [0, 1]:

    1. Detail: the horizontal, vertical and diagonal details of the undecimated Haar transform of the mean of the
       channels, levels 1 to `levels`, at all (H + 1) x (W + 1) corners of pixels, the image continued by reflection at
       its edges. Of each band the mean modulus in each of `cells` x `cells` cells, then the square root.
    2. Colour: the means of each channel in each cell.
    3. Each of the two parts is divided by its length, and the colour part is multiplied by `color_weight`.
    4. The mean over the data set is subtracted, and each principal axis i of the data set is divided by
       (v_i + `ridge` v)^(`whitening` / 2), where v_i is its variance and v the mean of all variances. At last the
       vector is divided by its length.

    What can be overlooked (`invariance`):

    ============  ======================================================================================================
    name          what is done
    ============  ======================================================================================================
    brightness    the mean over all pixels and channels of an image is subtracted before step 2
    shift         nothing more: shifts that are small beside a cell change vectors little in any case
    flip          an image and its mirror image get the same vector, see below
    contrast      the lengths are divided by in steps 3 and 4, so that distances are sqrt(2 (1 - cosine)); without it,
                  only the factor `color_weight` is left of step 3. A part without any contrast, as both are for a
                  constant grey image, is zero
    ============  ======================================================================================================

    For "flip" the cells are split into the part that mirroring leaves, s = (x + mirrored x) / sqrt(2), and the part
    whose sign it changes, a = (x - mirrored x) / sqrt(2). Both have their own principal axes (those of a about zero,
    which are those of a data set together with its mirror images), and of the components of a the moduli are taken. As
    ||p| - |q|| <= min(|p - q|, |p + q|), the distance of two vectors is at most the smaller of those that the image and
    its mirror image would have without the moduli: at the same radius no mirrored near-duplicate is missed. Moduli
    depend on the choice of axes where several variances are equal: there the axes nearest to the coordinate axes are
    taken, so that the linear algebra library does not decide.

    The centre and the axes are those of the data set that is given to `vectors`, unless the representation is a
    `fitted` one. Where there are fewer images than dimensions, or all are alike, `ridge` v stands in for
    what is not known; where nothing varies at all, nothing is divided.

    Args:
        levels: Levels of the Haar transform; images need 2^levels pixels in both directions.
        cells: Number of cells along each direction.
        color_weight: Weight of the cells' colours against their details; 0 leaves them out.
        whitening: How far variances are made equal, from 0 (the data set is only centred) to 1.
        ridge: What is added to all variances, as a share of their mean: the less, the more rare directions count.
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
        ValueError: For settings out of range; from `vectors`, if images are smaller than 2^levels or have fewer pixels
            than `cells` along a side, if sizes differ and `resize` is None, if pixels are NaN, infinite, negative or
            above 1, or if a fitted representation gets images of another number of channels than it was fitted to.
        TypeError: From `vectors`, if pixels are neither uint8, uint16 nor floating-point numbers.

    References:
        Bruna and Mallat, "Invariant scattering convolution networks", arXiv 1203.1513, whose wavelets are Morlet's and
        which neither takes roots nor whitens. The square roots are those of Arandjelovic and Zisserman, "Three things
        everyone should know to improve object retrieval", CVPR 2012.

    Example:
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(256, size=(20, 3, 16, 16), dtype=np.uint8)
        >>> images[7] = images[3, :, :, ::-1]
        >>> scattering = WaveletScattering(progress=False)
        >>> vectors = scattering.vectors(images)
        >>> vectors.shape, bool(np.allclose(vectors[7], vectors[3], atol=1e-5))
        ((20, 192), True)
        >>> training = scattering.fitted(images)
        >>> bool(np.allclose(training.vectors(images[:2]), vectors[:2], atol=1e-5))
        True
    """

    #: The distance up to which two images are taken for the same picture: of hand-judged near-duplicates in CIFAR-10
    #: 91 % are within it.
    twin_radius: ClassVar[float] = 0.6

    def __init__(
        self,
        levels: int = 3,
        cells: int = 4,
        *,
        color_weight: float = 0.3,
        whitening: float = 1.0,
        ridge: float = 0.1,
        invariance: Sequence[str] = ("brightness", "contrast", "flip"),
        resize: Sequence[int] | None = None,
        max_size: int | None = 32,
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
        self.levels = _positive_integer("levels", levels)
        self.cells = _positive_integer("cells", cells)
        self.color_weight = _number("color_weight", color_weight)
        self.whitening = _number("whitening", whitening)
        self.ridge = _number("ridge", ridge)
        if self.whitening > 1:
            raise invalid("whitening", "in [0, 1]", whitening)
        if self.ridge == 0:
            raise invalid("ridge", "above 0, as a data set need not vary in all directions", ridge)
        self._whitening: _Whitening | None = None

    def _own_settings(self) -> dict[str, Any]:
        """The settings and, of a fitted representation, the centre and the axes."""
        return {
            "levels": self.levels,
            "cells": self.cells,
            "color_weight": self.color_weight,
            "whitening": self.whitening,
            "ridge": self.ridge,
            "fitted": None if self._whitening is None else list(self._whitening.arrays()),
        }

    @property
    def is_fitted(self) -> bool:
        """Whether the centre and the axes are those of an earlier data set."""
        return self._whitening is not None

    def vectors(self, dataset: Any) -> Vectors:
        """The vectors of all images, in their order, as float32 of shape (N, D).

        D is `cells`^2 times (3 `levels` + channels), or times 3 `levels` where `color_weight` is 0.

        Args:
            dataset: A data set, an `EvaluationView`, or an array or tensor of shape (N, channels, H, W) or (N, H, W).

        Raises:
            ValueError: If there are no images, or for images as described for the class.
            TypeError: If the pixels are neither uint8, uint16, boolean nor floating-point numbers.
        """
        return super().vectors(dataset)

    def _all(self, dataset: Any) -> Vectors:
        # Every process of a distributed run has all rows here, and whitens them alike.
        raw = self._raw(dataset)
        return self._whitening_of(raw).apply(raw, self._has("contrast"))

    def fitted(self, dataset: Any) -> WaveletScattering:
        """A copy whose centre and axes are those of a data set, to see other images as those are seen.

        Args:
            dataset: The images, as for `vectors`; usually the training images.

        Returns:
            The fitted representation. Its fingerprint includes the centre and the axes. Fitting it again starts anew.
        """
        found = copy.copy(self)
        found._whitening = None
        found._whitening = found._whitening_of(self._raw(dataset))
        return found

    def transform(self, images: Any) -> Tensor:
        """The vectors of one batch of images, by a `fitted` representation.

        Args:
            images: Shape (B, channels, H, W), uint8 or floating-point in [0, 1].

        Returns:
            float32 of shape (B, D), on the images' device.

        Raises:
            ValueError: If the representation is not fitted: a batch alone tells no centre and no axes.
        """
        if self._whitening is None:
            raise ValueError("`transform` needs a fitted representation: take `fitted(dataset)`, or `vectors`.")
        raw = super().transform(images)
        whitened = self._whitening_of(raw).apply(raw.cpu().numpy(), self._has("contrast"))
        return torch.from_numpy(whitened).to(raw.device)

    def _has(self, name: str) -> bool:
        """Whether a difference is to be overlooked."""
        return name in self.invariance

    def _raw(self, dataset: Any) -> _Floats:
        """The vectors before centring and whitening; the caller may overwrite them."""
        raw: _Floats = super()._all(dataset)
        return raw if raw.flags.writeable else raw.copy()

    def _whitening_of(self, raw: Any) -> _Whitening:
        """The fitted whitening, if it is one of such unwhitened vectors, or that of these vectors."""
        shape = (raw.shape[1] // self.cells**2, self.cells, self.cells)
        if self._whitening is None:
            return _Whitening.of(raw, shape, self.whitening, self.ridge, self._has("flip"))
        if self._whitening.shape != shape:
            of, got = (bands - 3 * self.levels for bands in (self._whitening.shape[0], shape[0]))
            raise ValueError(f"Images must have {of} channels, as those had that this is fitted to, got {got}.")
        return self._whitening

    def _vectors_of(self, images: Tensor) -> Tensor:
        """Vectors of prepared images before whitening: brightness and contrast are removed from the parts here."""
        height, width = images.shape[2:]
        side = min(height, width)
        if side < 2**self.levels:
            raise invalid("levels", f"at most {side.bit_length() - 1} for images of {height} x {width}", self.levels)
        if side < self.cells:
            raise invalid("cells", f"at most {side} for images of {height} x {width}", self.cells)
        step = len(images) if images.device.type != "cpu" else max(1, _BLOCK_PIXELS // (height * width))
        return torch.cat([self._coefficients(images[i : i + step]) for i in range(0, len(images), step)])

    def _coefficients(self, images: Tensor) -> Tensor:
        """Vectors of a few prepared images before whitening."""
        details = _detail_moduli(images.mean(dim=1), self.levels, self.cells).flatten(1)
        any_contrast = details.mean(dim=1, keepdim=True) > _ROUNDING
        details = details.sqrt()
        if self._has("contrast"):
            details = torch.where(any_contrast, details, 0) / details.norm(dim=1, keepdim=True).clamp_min(1e-30)
        if not self.color_weight:
            return details
        # In double precision, as differences of colour can be far below the mean that is subtracted.
        images = images.double()
        if self._has("brightness"):
            images = without_brightness(images)
        colours = F.adaptive_avg_pool2d(images, self.cells).flatten(1)
        if self._has("contrast"):
            colours = unit_length(colours)
        return torch.cat([details, (colours * self.color_weight).float()], dim=1)


def _detail_moduli(images: Tensor, levels: int, cells: int) -> Tensor:
    """Mean moduli (B, 3 levels, cells, cells) of undecimated Haar details of images (B, H, W).

    Each level's box sums are made of the last level's, so the cost for each pixel is the same at all levels. Sums of
    two are the same in either order, so the details of a mirror image are exactly the mirrored ones.
    """
    _, height, width = images.shape
    margin = 2 ** (levels - 1)
    boxes = images[:, _reflected(height, margin)][:, :, _reflected(width, margin)]
    details = images.new_empty(len(images), 3, height + 1, width + 1)
    found = []
    for level in range(1, levels + 1):
        half = 2 ** (level - 1)
        first = margin - half
        rows, left = slice(first, first + height + 1), slice(first, first + width + 1)
        right = slice(first + half, first + half + width + 1)
        sums = boxes[:, half:] + boxes[:, :-half]
        differences = (boxes[:, half:] - boxes[:, :-half])[:, rows]
        torch.sub(sums[:, rows, right], sums[:, rows, left], out=details[:, 0])
        torch.add(differences[:, :, right], differences[:, :, left], out=details[:, 1])
        torch.sub(differences[:, :, right], differences[:, :, left], out=details[:, 2])
        found.append(F.adaptive_avg_pool2d(details.abs_(), cells) / 4**level)
        boxes = sums[:, :, half:] + sums[:, :, :-half]
    return torch.cat(found, dim=1)


def _reflected(size: int, margin: int) -> Tensor:
    """Indices that continue an axis by its reflection, the first and the last element repeated."""
    inside = torch.arange(size)
    return torch.cat([inside[:margin].flip(0), inside, inside[size - margin :].flip(0)])


@dataclass(frozen=True)
class _Whitening:
    """Centre and whitened principal axes; with `flip`, separately for the symmetric and the antisymmetric part.

    Args:
        shape: Bands, rows and columns of cells.
        flip: Whether vectors are split into the two parts.
        centre: Shape (S,): the mean of the (symmetric part of the) vectors.
        axes: Shape (S, S): its axes as columns, divided, largest variance first.
        odd_axes: Shape (A, A): the axes of the antisymmetric part; empty without `flip`.
    """

    shape: tuple[int, int, int]
    flip: bool
    centre: _Floats
    axes: _Floats
    odd_axes: _Floats

    def arrays(self) -> tuple[_Floats, _Floats, _Floats]:
        """Everything that changes the vectors, for fingerprints."""
        return self.centre, self.axes, self.odd_axes

    @classmethod
    def of(cls, raw: _Floats, shape: tuple[int, int, int], power: float, ridge: float, flip: bool) -> _Whitening:
        """The centre and axes of vectors (N, D); sums are in double precision and in fixed blocks, in one thread."""
        with threadpool_limits(1, "blas"):
            even, odd = _parts(raw[:1], shape, flip)
            total = np.zeros(even.shape[1])
            for start in range(0, len(raw), _BLOCK_ROWS):
                total += _parts(raw[start : start + _BLOCK_ROWS], shape, flip)[0].sum(axis=0, dtype=np.float64)
            centre = (total / len(raw)).astype(np.float32)
            covariance, odd_covariance = np.zeros((even.shape[1],) * 2), np.zeros((odd.shape[1],) * 2)
            for start in range(0, len(raw), _BLOCK_ROWS):
                even, odd = _parts(raw[start : start + _BLOCK_ROWS], shape, flip)
                covariance += _gram(even - centre)
                odd_covariance += _gram(odd)
            variances, axes = _principal_axes(covariance / len(raw))
            odd_variances, odd_axes = _principal_axes(odd_covariance / len(raw))
        floor = ridge * (variances.sum() + odd_variances.sum()) / (len(variances) + len(odd_variances))
        return cls(
            shape,
            flip,
            centre,
            (axes * _divided(variances, floor, power)).astype(np.float32),
            (odd_axes * _divided(odd_variances, floor, power)).astype(np.float32),
        )

    def apply(self, raw: _Floats, unit: bool) -> _Floats:
        """Whiten vectors (N, D) in place, and give them unit length where wanted."""
        split = len(self.centre)
        with threadpool_limits(1, "blas"):
            for start in range(0, len(raw), _BLOCK_ROWS):
                block = raw[start : start + _BLOCK_ROWS]
                even, odd = _parts(block, self.shape, self.flip)
                # Centred first: for images that are all alike the difference is exactly zero.
                block[:, :split] = (even - self.centre) @ self.axes
                block[:, split:] = np.abs(odd @ self.odd_axes)
                if unit:
                    block[:] = unit_length(torch.from_numpy(block)).numpy()
        return raw


def _parts(raw: _Floats, shape: tuple[int, int, int], flip: bool) -> tuple[_Floats, _Floats]:
    """The symmetric and the antisymmetric part of vectors under mirroring, or all and nothing."""
    if not flip:
        return raw, raw[:, :0]
    cells = raw.reshape(len(raw), *shape)
    half = shape[2] // 2
    left, right = cells[..., :half], cells[..., ::-1][..., :half]
    scale = np.float32(math.sqrt(0.5))
    even, odd = (left + right) * scale, (left - right) * scale
    if shape[2] % 2:
        even = np.concatenate([even, cells[..., half : half + 1]], axis=3)
    return even.reshape(len(raw), -1), odd.reshape(len(raw), -1)


def _gram(rows: _Floats) -> _Doubles:
    """Products of all pairs of columns, in double precision."""
    double = rows.astype(np.float64)
    return double.T @ double


def _divided(variances: _Doubles, floor: float, power: float) -> _Doubles:
    """Factors of the principal axes; 1 where nothing varies."""
    return np.ones_like(variances) if floor == 0 else (variances + floor) ** (-power / 2)


def _principal_axes(covariance: _Doubles) -> tuple[_Doubles, _Doubles]:
    """Variances, largest first, and axes as columns, chosen by fixed rules where the covariance leaves a choice.

    Axes of equal variances are replaced by others of the same span that lie nearest to coordinate axes, and of each
    axis the largest component is positive.
    """
    if not len(covariance):
        return np.empty(0), np.empty((0, 0))
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1].copy()
    ends = np.flatnonzero(variances[:-1] - variances[1:] > _SAME_VARIANCE * variances[0]) + 1
    for start, stop in zip([0, *ends], [*ends, len(axes)], strict=True):
        if stop - start > 1:
            axes[:, start:stop] = _nearest_basis(axes[:, start:stop])
    largest = np.argmax(np.abs(axes) > np.abs(axes).max(axis=0) * (1 - 1e-6), axis=0)
    return variances, axes * np.where(axes[largest, np.arange(len(axes))] < 0, -1, 1)


def _nearest_basis(axes: _Doubles) -> _Doubles:
    """Another orthonormal basis of the span of orthonormal columns, which depends on the span alone.

    Gram-Schmidt on the projections of the coordinate axes, the longest that is left at each step; ties by index.
    """
    rest = axes @ axes.T
    found = np.empty_like(axes)
    for i in range(axes.shape[1]):
        lengths = np.sqrt(np.maximum(np.diagonal(rest), 0))
        longest = int(np.argmax(lengths > lengths.max() * (1 - 1e-6)))
        found[:, i] = rest[:, longest] / lengths[longest]
        rest -= np.outer(found[:, i], found[:, i])
    return found


def _positive_integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < 1:
        raise invalid(name, "at least 1", value)
    return int(value)


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not 0 <= value < math.inf:
        raise invalid(name, "a finite number of at least 0", value)
    return float(value)
