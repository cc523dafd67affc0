"""Images of a data set as checked batches of one size, and the vectors made of such batches."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate
from tqdm.auto import tqdm

from toolkit.distributed import gather_objects, gather_rows, share, together, world
from toolkit.fingerprint import settings_hash
from toolkit.representations.base import EvaluationView, Vectors, batches_from, image_key, images_of
from toolkit.representations.feature_map import RandomAugmentationWarning
from toolkit.reproducibility import full_precision, preserved_rng
from toolkit.validation import invalid, shorten

__all__ = ["INVARIANCES", "ImageVectors"]

#: Differences between images that can be overlooked, in the order in which they are removed.
INVARIANCES = ("brightness", "shift", "flip", "contrast")

#: Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
#: Vectors above this many bytes are gathered from several processes in a file, and are not remembered.
_MEMORY_LIMIT = 1 << 30
#: Within `remembered_vectors`, the vectors that were computed last, by what they are of; None elsewhere.
_remembered: dict[tuple[str, str], Vectors] | None = None


@contextmanager
def remembered_vectors() -> Iterator[None]:
    """Within it, an image representation that is asked for the same vectors again gives those that it gave last.

    They are read-only there, at most 1 GiB, and forgotten at the end. For a job whose steps all ask for the vectors of
    one data set, as choosing, pictures and page do.
    """
    global _remembered
    before, _remembered = _remembered, {}
    try:
        yield
    finally:
        _remembered = before


class ImageVectors(ABC):
    """What representations have in common that compute vectors from the pixels of each image alone.

    Images are read as they are stored, without the network's normalisation: a data set's (or `EvaluationView`'s)
    images, or an array or tensor of shape (N, channels, H, W) or (N, H, W). uint8 is divided by 255 and uint16 by
    65,535; floating-point pixels must be in [0, 1]. In a distributed run every rank takes a share and all get the
    whole.

    Subclasses give `_coefficients` and `_own_settings`.
    """

    def __init__(
        self,
        *,
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
        self.invariance = _checked_invariance(invariance)
        self.resize = _checked_resize(resize)
        self.max_size = max_size if max_size is None else _at_least_one("max_size", max_size)
        self.grayscale = grayscale
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.num_workers = num_workers
        self.device = device
        self.input_key = input_key
        self.progress = progress

    @abstractmethod
    def _coefficients(self, images: Tensor) -> Tensor:
        """Vectors (B, D) of images (B, channels, H, W), before they are scaled to unit length where that is wanted.

        Where "flip" is to be overlooked, `folded` with those of the mirror images.
        """

    @abstractmethod
    def _own_settings(self) -> dict[str, Any]:
        """The settings, beyond those of this class, that change the vectors."""

    def fingerprint(self) -> str:
        """A text that differs with any setting that changes the vectors."""
        return settings_hash(
            {
                "kind": type(self).__name__,
                "invariance": list(self.invariance),
                "resize": self.resize,
                "max_size": self.max_size,
                "grayscale": self.grayscale,
                **self._own_settings(),
            }
        )

    def vectors(self, dataset: Any) -> Vectors:
        """The vectors of all images, in their order, as float32 of shape (N, D).

        Raises:
            ValueError: If there are no images, if their sizes differ (the error gives two of them) and there is no
                `resize`, or if pixels are NaN, infinite, negative or above 1 (the error gives the image).
            TypeError: If the pixels are neither uint8, uint16, boolean nor floating-point numbers.
        """
        if _remembered is None:
            return self._all(dataset)
        key = (self.fingerprint(), EvaluationView.of(dataset).fingerprint())
        if key not in _remembered:
            _remembered.clear()
            vectors = self._all(dataset)
            if vectors.nbytes > _MEMORY_LIMIT:
                return vectors
            vectors.flags.writeable = False
            _remembered[key] = vectors
        return _remembered[key]

    def _all(self, dataset: Any) -> Vectors:
        """The vectors of all images, computed."""
        source = dataset.dataset if isinstance(dataset, EvaluationView) else dataset
        if isinstance(source, (np.ndarray, Tensor)):
            _check_array(source)
        view = EvaluationView.of(dataset)
        if len(view) == 0:
            raise invalid("dataset", "a data set with at least one image", "an empty one")
        with preserved_rng():
            if not isinstance(source, (np.ndarray, Tensor)) and view.is_random():
                warnings.warn(
                    "Reading the same images twice gives different ones, and the data module does not tell how to "
                    "switch that off: vectors will be of randomly augmented images. Give the data module a method "
                    "`evaluation_dataset()` that returns its training images without augmentation.",
                    RandomAugmentationWarning,
                    stacklevel=2,
                )
            start, stop = share(len(view), self.batch_size)
            own = together(lambda: self._share(view, start, stop))
            if world()[1] == 1:
                return own
            widths = {width for width in gather_objects(own.shape[1]) if width}
            if len(widths) > 1:
                raise ValueError(
                    f"Images must have one size, got vectors of {shorten(sorted(widths))} numbers. Give `resize`."
                )
            return gather_rows(own, len(view), self.batch_size, _MEMORY_LIMIT)

    def transform(self, images: Any) -> Tensor:
        """The vectors of one batch of images.

        Args:
            images: Shape (B, channels, H, W), uint8 or floating-point in [0, 1].

        Returns:
            float32 of shape (B, D), on the images' device.
        """
        tensor = torch.as_tensor(images)
        _check_array(tensor)
        with torch.inference_mode(), full_precision():
            return self._vectors_of(_Prepare(self.resize, self.max_size, self.grayscale)(tensor, 0))

    def _vectors_of(self, images: Tensor) -> Tensor:
        """Vectors of prepared images, with what is to be overlooked removed."""
        if "brightness" in self.invariance:
            images = without_brightness(images)
        if "shift" in self.invariance:
            images = centred(images)
        vectors = self._coefficients(images)
        return unit_length(vectors) if "contrast" in self.invariance else vectors

    def image_shape(self, dataset: Any) -> tuple[int, int, int]:
        """Channels, height and width of a data set's first image, as it is stored.

        Args:
            dataset: The images, as for `vectors`.
        """
        view = EvaluationView.of(dataset)
        if len(view) == 0:
            raise invalid("dataset", "a data set with at least one image", "an empty one")
        if isinstance(view.dataset, (np.ndarray, Tensor)):
            shape = tuple(view.dataset.shape[1:])
        else:
            with preserved_rng():
                shape = tuple(_Collate(view.collate_fn, self.input_key, None, None, False)([view.dataset[0]])[0].shape)
        return (1, *shape) if len(shape) == 2 else shape

    def _prepared_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Channels, height and width as the transform gets them, of images with `shape` (channels, H, W)."""
        if len(shape) != 3 or any(isinstance(n, bool) or int(n) != n or n < 1 for n in shape):
            raise invalid("shape", "the (channels, H, W) of the images", tuple(shape))
        channels, height, width = (int(n) for n in shape)
        if self.max_size is not None:
            height, width = _bounded(height, width, self.max_size)
        if self.resize is not None:
            height, width = self.resize
        return 1 if self.grayscale else channels, height, width

    def _share(self, view: EvaluationView, start: int, stop: int) -> Vectors:
        """Vectors of the images `start` to `stop`."""
        device = torch.device(self.device) if self.device is not None else view.device
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        out: Vectors = np.empty((0, 0), np.float32)
        first_shape: tuple[int, ...] | None = None
        bar = tqdm(
            total=stop - start,
            unit="img",
            desc=type(self).__name__,
            disable=not self.progress or world()[0] != 0,
        )
        prepare = _Prepare(self.resize, self.max_size, self.grayscale)
        with bar, torch.inference_mode(), full_precision():
            done = start
            for batch in self._batches(view, start, stop, device):
                images = batch
                if isinstance(batch, list):  # of several sizes
                    images = [prepare(image[None], done + i)[0] for i, image in enumerate(batch)]
                    _check_one_size(images, done, first_shape, start)
                    images = torch.stack(images).to(device)
                elif batch.ndim != 4:
                    raise invalid("dataset", "images of shape (channels, H, W) or (H, W)", tuple(batch.shape[1:]))
                else:
                    images = prepare(batch.to(device, non_blocking=True), done)
                    _check_one_size(images[:1], done, first_shape, start)
                first_shape = first_shape or tuple(images.shape[1:])
                vectors = self._vectors_of(images).cpu().numpy()
                if done == start:
                    out = np.empty((stop - start, vectors.shape[1]), np.float32)
                out[done - start : done - start + len(vectors)] = vectors
                done += len(vectors)
                bar.update(len(vectors))
        if done != stop:
            raise invalid("dataset", f"a data set that gives its {stop - start} images once each", f"{done - start}")
        return out

    def _batches(
        self, view: EvaluationView, start: int, stop: int, device: torch.device
    ) -> Iterator[Tensor | list[Tensor]]:
        """Images as they are stored: batches of one size, or lists where sizes differ."""
        if isinstance(view.dataset, (np.ndarray, Tensor)):
            for first in range(start, stop, self.batch_size):
                block = view.dataset[first : min(first + self.batch_size, stop)]
                # A copy, as a memory map may be read-only, which PyTorch warns of.
                images = block if isinstance(block, Tensor) else torch.from_numpy(np.array(block))
                yield images[:, None] if images.ndim == 3 else images
            return
        loader: DataLoader[Any] = DataLoader(
            view.dataset,
            batch_size=self.batch_size,
            sampler=range(start, stop),
            num_workers=view.num_workers if self.num_workers is None else self.num_workers,
            collate_fn=_Collate(view.collate_fn, self.input_key, self.resize, self.max_size, self.grayscale),
            pin_memory=device.type == "cuda",
        )
        yield from batches_from(loader, start, stop)


def without_brightness(images: Tensor) -> Tensor:
    """Images less the mean of all their pixels and channels."""
    return images - images.mean(dim=(1, 2, 3), keepdim=True)


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors divided by their length, so that distances are sqrt(2 (1 - cosine)); zero vectors stay zero.

    What is only rounding (a length below 1e-6 for each root of the number of values) counts as zero: a constant image
    without its brightness has no contrast to compare.
    """
    lengths = vectors.double().square().sum(dim=1, keepdim=True).sqrt()
    scale = torch.where(lengths > 1e-6 * vectors.shape[1] ** 0.5, 1 / lengths, torch.zeros_like(lengths))
    return (vectors * scale).to(vectors.dtype)


def folded(values: Tensor, mirrored: Tensor) -> Tensor:
    """Values (B, D) of images and of their mirror images as one vector (B, 2 D) that is the same for either.

    Half the sum is what mirroring leaves, half the difference only changes its sign, which the modulus drops. No choice
    between the two has to be made, which would jump where it is close. As ||p| - |q|| <= min(|p - q|, |p + q|), two
    vectors are no farther apart than the nearer of image and mirror image; lengths stay where mirroring keeps them.
    """
    return torch.cat([(values + mirrored) / 2, ((values - mirrored) / 2).abs()], dim=1)


def centred(images: Tensor) -> Tensor:
    """Each image moved by whole pixels, what leaves at one side entering at the other, to centre its brightness.

    The centre is the circular mean of the brightness: the phase of the first Fourier coefficient along each axis.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        profile = images.double().sum(dim=(1, 5 - axis))
        angles = torch.arange(size, dtype=torch.float64, device=images.device) - (size - 1) / 2
        angles *= 2 * torch.pi / size
        phase = torch.atan2(profile @ angles.sin(), profile @ angles.cos())
        steps = (phase * size / (2 * torch.pi)).round().long()
        index = (torch.arange(size, device=images.device)[None] + steps[:, None]) % size
        index = index[:, None, :, None] if axis == 2 else index[:, None, None, :]
        images = images.gather(axis, index.expand(images.shape))
    return images


@dataclass
class _Prepare:
    """Checks the pixels of a batch of one size and brings it to float32, grey, and the wanted size."""

    resize: tuple[int, int] | None
    max_size: int | None
    grayscale: bool

    def __call__(self, images: Tensor, first: int) -> Tensor:
        images = _unit_range(images, first)
        if self.grayscale:
            images = _grey(images)
        height, width = images.shape[2:]
        if self.max_size is not None and max(height, width) > self.max_size:
            images = F.interpolate(images, _bounded(height, width, self.max_size), mode="area")
        if self.resize is not None and tuple(images.shape[2:]) != self.resize:
            images = F.interpolate(images, self.resize, mode="bilinear", antialias=True, align_corners=False)
        return images


class _Collate:
    """Images of a list of samples: a batch where they have one size, and a list of them where they do not."""

    def __init__(
        self,
        collate_fn: Callable[[list[Any]], Any] | None,
        input_key: str | None,
        resize: tuple[int, int] | None,
        max_size: int | None,
        grayscale: bool,
    ) -> None:
        self.collate_fn = collate_fn
        self.input_key = input_key
        self.prepare = _Prepare(resize, max_size, grayscale)

    def __call__(self, samples: Any) -> Tensor | list[Tensor]:
        if not isinstance(samples, list):
            return _with_channel(images_of((self.collate_fn or default_collate)(samples), self.input_key))
        if self.collate_fn is not None:
            try:
                return _with_channel(images_of(self.collate_fn(samples), self.input_key))
            except (RuntimeError, TypeError, ValueError):
                pass  # Made for batches of one size, or of something other than tensors.
        images = [_tensor_of(sample, self.input_key) for sample in samples]
        if len({(image.shape, image.dtype) for image in images}) == 1:
            return torch.stack(images)
        if self.prepare.resize is not None and len({image.shape[0] for image in images}) == 1:
            # Here, where worker processes do it, rather than in the main process. Errors there name the image.
            try:
                return torch.cat([self.prepare(image[None], 0) for image in images])
            except (TypeError, ValueError):
                pass
        return images


def _tensor_of(sample: Any, input_key: str | None) -> Tensor:
    """The image of a sample, as a tensor of shape (channels, H, W)."""
    if isinstance(sample, Mapping):
        key = image_key(sample, input_key)
        sample = sample if key is None else sample[key]
    elif isinstance(sample, (tuple, list)) and len(sample):
        sample = sample[0]
    if type(sample).__module__.partition(".")[0] == "PIL":
        from torchvision.transforms.functional import pil_to_tensor

        if sample.mode not in ("L", "RGB", "I;16"):
            sample = sample.convert("RGB")
        sample = pil_to_tensor(sample)
    if isinstance(sample, np.ndarray):
        sample = torch.from_numpy(np.array(sample))
    if not isinstance(sample, Tensor) or sample.ndim not in (2, 3):
        what = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise TypeError(
            f"Images must be tensors, arrays or PIL images of shape (channels, H, W) or (H, W), got {what}."
        )
    return sample if sample.ndim == 3 else sample[None]


def _with_channel(images: Tensor) -> Tensor:
    return images[:, None] if images.ndim == 3 else images


def _unit_range(images: Tensor, first: int) -> Tensor:
    """Pixels as float32 in [0, 1], checked; `first` is the index of the first image, for errors."""
    if images.dtype == torch.bool:
        return images.float()
    if images.dtype in (torch.uint8, torch.uint16):
        return images.float() / (255 if images.dtype == torch.uint8 else 65_535)
    if not images.is_floating_point():
        raise TypeError(f"Images must have pixels of uint8, uint16 or floating-point numbers, got {images.dtype}.")
    low, high = torch.aminmax(images.flatten(1), dim=1)  # NaN wherever there is one
    wrong = ~((low >= 0) & (high <= 1))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        least, most = float(low[at]), float(high[at])
        if not np.isfinite(least) or not np.isfinite(most):
            found = "NaN or infinite ones"
            hint = ""
        elif least < 0:
            found = f"{least:.6g}"
            hint = " Take a normalisation out of the data set's evaluation transform."
        else:
            found, hint = f"{most:.6g}", " Divide by the largest possible value, or give uint8."
        raise ValueError(f"Images must have finite pixels in [0, 1], got {found} in image {first + at}.{hint}")
    return images.float()


def _grey(images: Tensor) -> Tensor:
    """Images of one channel: the brightness of red, green and blue."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise invalid("grayscale", "False for images that have neither 1 nor 3 channels", f"{images.shape[1]} channels")
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


def _bounded(height: int, width: int, most: int) -> tuple[int, int]:
    """A size of the same proportions whose longer side is at most `most`."""
    longer = max(height, width)
    if longer <= most:
        return height, width
    return max(1, round(height * most / longer)), max(1, round(width * most / longer))


def _check_one_size(images: Sequence[Tensor] | Tensor, first: int, shape: tuple[int, ...] | None, start: int) -> None:
    """Refuse images (the first of which has index `first`) that have not the shape that image `start` has."""
    for i, image in enumerate(images):
        shape = shape or tuple(image.shape)
        if tuple(image.shape) != shape:
            raise ValueError(
                f"Images must have one size, got {_size(shape)} for image {start} and {_size(tuple(image.shape))} for "
                f"image {first + i}. Give `resize` the height and width to bring all to."
            )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]} ({shape[0]} channel{'s' if shape[0] > 1 else ''})"


def _check_array(images: Any) -> None:
    """Refuse an array that is not (N, channels, H, W) or (N, H, W)."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise invalid("images", "a non-empty array of shape (N, channels, H, W) or (N, H, W)", tuple(images.shape))
    if images.ndim == 4 and images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        raise invalid("images", "of shape (N, channels, H, W), the channels before height and width", images.shape)


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < 1:
        raise invalid(name, "at least 1", value)
    return int(value)


def _checked_resize(resize: Sequence[int] | None) -> tuple[int, int] | None:
    if resize is None:
        return None
    if isinstance(resize, (str, int)) or len(resize) != 2:
        raise invalid("resize", "the height and width that images are brought to", resize)
    return _at_least_one("resize", resize[0]), _at_least_one("resize", resize[1])


def _checked_invariance(invariance: Sequence[str]) -> tuple[str, ...]:
    """The names in the order in which they are removed, each once."""
    if isinstance(invariance, str) or not set(invariance) <= set(INVARIANCES):
        raise invalid("invariance", "a list of names out of " + ", ".join(map(repr, INVARIANCES)), invariance)
    return tuple(name for name in INVARIANCES if name in invariance)
