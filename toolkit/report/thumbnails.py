"""Thumbnails of many images as a few sheets, of a size and a quality that fit into a number of bytes."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.drawing import boxes_of, displayable, with_boxes
from toolkit.reproducibility import preserved_rng
from toolkit.validation import invalid

#: Sides of a thumbnail, the largest first; one is taken if all thumbnails together have at most so many pixels.
_SIDES = (64, 48, 32, 24, 16)
_MOST_PIXELS = 50_000 * 32 * 32
#: Thumbnails on a sheet at most, and in a row: the page decodes whole sheets.
_PER_SHEET, _COLUMNS = 1024, 32
#: Images looked at to find out how large they are.
_FIRST = 64
#: Qualities of WebP, the best first; None is lossless.
_QUALITIES = (None, 90, 80, 70, 60, 50, 40, 30, 20, 10)
#: The colour around an image that does not fill its place.
_PAPER = 255


@dataclass(frozen=True)
class Sheets:
    """Thumbnails in rows on sheets.

    Attributes:
        contents: The sheets as WebP files.
        side: Width and height of the place of a thumbnail, in pixels.
        columns: Places in a row.
        per_sheet: Places on a sheet.
        sizes: Shape (n, 2), uint8, width and height of each thumbnail, at the upper left of its place; 0 for an image
            that could not be read.
        quality: WebP quality of the worst sheet; None if all are lossless.
    """

    contents: list[bytes]
    side: int
    columns: int
    per_sheet: int
    sizes: npt.NDArray[np.uint8]
    quality: int | None

    @property
    def n_unreadable(self) -> int:
        """Images that could not be read or are none."""
        return int((self.sizes[:, 0] == 0).sum())


def side_for(n_images: int) -> int:
    """The largest of 64, 48, 32, 24 and 16 pixels at which all thumbnails have at most 51.2 million pixels.

    Raises:
        ValueError: If there are more images than fit at 16 pixels (200,000).

    Example:
        >>> [side_for(n) for n in (12_500, 12_501, 50_000, 200_000)]
        [64, 48, 32, 16]
    """
    for side in _SIDES:
        if n_images * side * side <= _MOST_PIXELS:
            return side
    raise invalid("max_images", f"at most {_MOST_PIXELS // _SIDES[-1] ** 2}", n_images)


def make_sheets(dataset: Any, order: npt.NDArray[np.int64], most_bytes: int, *, progress: bool = True) -> Sheets:
    """Read images and put their thumbnails on sheets.

    Every image is read once. Thumbnails are as large as `side_for` says, or as the first images are if these are
    smaller. Every sheet may have its share of the bytes that are left, and is written at the best quality of lossless,
    90, 80, ... 10 at which it fits, no better than the sheet before it. Boxes of a detection data set are
    drawn on them.

    Args:
        dataset: Anything with `__getitem__` that gives images, alone or first in a tuple.
        order: Indices of images in the order of their thumbnails, at least one.
        most_bytes: What all sheets together may have; more only where the lowest quality needs it.
        progress: Whether to show a progress bar.

    Returns:
        The sheets. A `UserWarning` counts images that could not be read; they have the size 0.
    """
    failures: list[str] = []
    with (
        preserved_rng(),
        tqdm(
            total=len(order), desc="thumbnails", unit="img", disable=not progress or world()[0] != 0, miniters=100
        ) as bar,
    ):
        images = _images(dataset, order, failures)
        first = list(itertools.islice(images, _FIRST))
        largest = max((max(found[0].shape[:2]) for found in first if found is not None), default=_SIDES[-1])
        side = min(side_for(len(order)), largest)
        side += side % 2  # Two neighbours share no pixel of colour, which WebP keeps at half the resolution.
        sizes = np.zeros((len(order), 2), np.uint8)
        contents: list[bytes] = []
        quality = 0
        images = itertools.chain(first, images)
        for start in range(0, len(order), _PER_SHEET):
            count = min(_PER_SHEET, len(order) - start)
            sheet = np.full((-(-count // _COLUMNS) * side, min(count, _COLUMNS) * side, 3), _PAPER, np.uint8)
            for place, found in enumerate(itertools.islice(images, count)):
                if found is not None:
                    small = with_boxes(shrunk(found[0], side), found[1])
                    height, width = small.shape[:2]
                    top, left = place // _COLUMNS * side, place % _COLUMNS * side
                    sheet[top : top + height, left : left + width] = small if small.ndim == 3 else small[..., None]
                    sizes[start + place] = width, height
                bar.update()
            share = (most_bytes - sum(map(len, contents))) * count // (len(order) - start)
            content = encoded(sheet, _QUALITIES[quality])
            while len(content) > share and quality < len(_QUALITIES) - 1:
                quality += 1
                content = encoded(sheet, _QUALITIES[quality])
            contents.append(content)
    if failures:
        warnings.warn(
            f"{len(failures)} of {len(order)} images have no thumbnail, the first of them: {failures[0]}", stacklevel=3
        )
    return Sheets(contents, side, _COLUMNS, _PER_SHEET, sizes, _QUALITIES[quality])


def shrunk(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """An image no larger than a square, its shape kept; one that fits stays as it is.

    Args:
        image: Shape (H, W) or (H, W, 3).
        side: Of the square, in pixels.

    Example:
        >>> shrunk(np.zeros((100, 50, 3), np.uint8), 32).shape
        (32, 16, 3)
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def encoded(sheet: npt.NDArray[np.uint8], quality: int | None) -> bytes:
    """A sheet as a WebP file, lossless if there is no quality."""
    buffer = io.BytesIO()
    options = {"lossless": True, "quality": 40} if quality is None else {"quality": quality}
    Image.fromarray(sheet).save(buffer, "WEBP", method=2, **options)
    return buffer.getvalue()


def _images(
    dataset: Any, order: npt.NDArray[np.int64], failures: list[str]
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None] | None]:
    """The images as bytes, with their boxes if any; None, and a line in `failures`, for those that cannot be read."""
    for index in order.tolist():
        try:
            sample = dataset[index]
            image, boxes = displayable(sample), boxes_of(sample)
        except Exception as error:  # whatever a user's data set raises: one broken file must not cost the report
            failures.append(f"index {index}: {error!r}")
            yield None
            continue
        if image is None:
            failures.append(f"index {index}: the sample is no image")
            yield None
        elif image.dtype == np.uint8:
            yield image, boxes
        else:
            levels = np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255
            yield levels.round().astype(np.uint8), boxes
