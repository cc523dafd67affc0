"""Thumbnails of many images as a few sheets, of a size and a quality that fit into a number of bytes; their boxes."""

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
from toolkit.drawing import boxes_of, corners_of, displayable
from toolkit.reproducibility import preserved_rng
from toolkit.validation import invalid

#: Sides of a thumbnail, the largest first; one is taken if all thumbnails together have at most so many pixels.
_SIDES = (64, 48, 32, 24, 16)
#: Further ones for scenes: objects in them are small.
_SCENE_SIDES = (256, 192, 128, 96)
_MOST_PIXELS = 50_000 * 32 * 32
#: Thumbnails in a row of a sheet at most, and as many rows; pixels of a sheet's side: the page decodes whole sheets.
_COLUMNS, _SHEET_SIDE = 32, 2048
#: Bytes of a box in the page, and boxes that it can have.
_BOX_BYTES = 5
MOST_BOXES = 4_000_000
#: Images looked at to find out how large they are.
_FIRST = 64
#: Qualities of WebP, the best first; None is lossless.
_QUALITIES = (None, 90, 80, 70, 60, 50, 40, 30, 20, 10)
#: Where scenes begin: pixels that were averaged anyway need no lossless copy.
_SCENE_QUALITY = 90
#: The colour around an image that does not fill its place.
_PAPER = 255


@dataclass(frozen=True)
class Boxes:
    """The boxes of images, one image after the other.

    Attributes:
        counts: Shape (n,), how many each image has.
        classes: Shape (m,), the class of each box.
        corners: Shape (m, 4), uint8: left, upper, right and lower edge, from 0 to 255 across the image.
    """

    counts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    corners: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, found: list[npt.NDArray[np.float32] | None]) -> Boxes | None:
        """The boxes of images in their order; None if no image says that it has or has none."""
        if all(boxes is None for boxes in found):
            return None
        every = [np.zeros((0, 5), np.float32) if boxes is None else boxes for boxes in found]
        joined = np.concatenate(every)
        corners = np.rint(255 * corners_of(joined)).astype(np.uint8)
        return cls(np.array([len(boxes) for boxes in every], np.int64), joined[:, 0].astype(np.int64), corners)


@dataclass(frozen=True)
class Sheets:
    """Thumbnails in rows on sheets.

    Attributes:
        contents: The sheets as WebP files.
        side: Width and height of the place of a thumbnail, in pixels.
        columns: Places in a row.
        per_sheet: Places on a sheet.
        sizes: Shape (n, 2), width and height of each thumbnail, at the upper left of its place; 0 for an image that
            could not be read.
        quality: WebP quality of the worst sheet; None if all are lossless.
        boxes: The boxes of detection samples, which are not drawn on the thumbnails; None for other data sets.
    """

    contents: list[bytes]
    side: int
    columns: int
    per_sheet: int
    sizes: npt.NDArray[np.uint16]
    quality: int | None
    boxes: Boxes | None = None

    @property
    def n_unreadable(self) -> int:
        """Images that could not be read or are none."""
        return int((self.sizes[:, 0] == 0).sum())


def side_for(n_images: int, *, scenes: bool = False) -> int:
    """The largest of 64, 48, 32, 24 and 16 pixels at which all thumbnails have at most 51.2 million pixels.

    Args:
        n_images: How many.
        scenes: Whether these are scenes with objects in them: they have 256, 192, 128 or 96 pixels where these fit.

    Raises:
        ValueError: If there are more images than fit at 16 pixels (200,000).

    Example:
        >>> [side_for(n) for n in (12_500, 12_501, 50_000, 200_000)]
        [64, 48, 32, 16]
        >>> [side_for(n, scenes=True) for n in (781, 3_125, 5_556)]
        [256, 128, 64]
    """
    sides: tuple[int, ...] = (*_SCENE_SIDES, *_SIDES) if scenes else _SIDES
    for side in sides:
        if n_images * side * side <= _MOST_PIXELS:
            return side
    raise invalid("max_images", f"at most {_MOST_PIXELS // _SIDES[-1] ** 2}", n_images)


def make_sheets(dataset: Any, order: npt.NDArray[np.int64], most_bytes: int, *, progress: bool = True) -> Sheets:
    """Read images and put their thumbnails on sheets.

    Every image is read once. Thumbnails are as large as `side_for` says, those of detection samples as of scenes, or as
    the first images are if these are smaller. Every sheet may have its share of the bytes that are left, and is written
    at the best quality of lossless, 90, 80, ... 10 at which it fits, no better than the sheet before it; thumbnails of
    more than 64 pixels begin at 90.

    Args:
        dataset: Anything with `__getitem__` that gives images, alone or first in a tuple, or in a dictionary.
        order: Indices of images in the order of their thumbnails, at least one.
        most_bytes: What all sheets and boxes together may have; more only where the lowest quality needs it.
        progress: Whether to show a progress bar.

    Returns:
        The sheets. A `UserWarning` counts images that could not be read; they have the size 0.
    """
    failures: list[str] = []
    boxes: list[npt.NDArray[np.float32] | None] = []
    with (
        preserved_rng(),
        tqdm(
            total=len(order), desc="thumbnails", unit="img", disable=not progress or world()[0] != 0, miniters=100
        ) as bar,
    ):
        images = _images(dataset, order, boxes, failures)
        first = list(itertools.islice(images, _FIRST))
        largest = max((max(image.shape[:2]) for image in first if image is not None), default=_SIDES[-1])
        scenes = any(found is not None for found in boxes)
        side = min(side_for(len(order), scenes=scenes), largest)
        side += side % 2  # Two neighbours share no pixel of colour, which WebP keeps at half the resolution.
        columns = min(_COLUMNS, _SHEET_SIDE // side)
        per_sheet = columns * columns
        sizes = np.zeros((len(order), 2), np.uint16)
        contents: list[bytes] = []
        quality = _QUALITIES.index(_SCENE_QUALITY) if side > _SIDES[0] else 0
        images = itertools.chain(first, images)
        for start in range(0, len(order), per_sheet):
            count = min(per_sheet, len(order) - start)
            sheet = np.full((-(-count // columns) * side, min(count, columns) * side, 3), _PAPER, np.uint8)
            for place, image in enumerate(itertools.islice(images, count)):
                if image is not None:
                    small = shrunk(image, side)
                    height, width = small.shape[:2]
                    top, left = place // columns * side, place % columns * side
                    sheet[top : top + height, left : left + width] = small if small.ndim == 3 else small[..., None]
                    sizes[start + place] = width, height
                bar.update()
            # As many boxes are to be expected of the images that are not read yet.
            n_boxes = sum(len(found) for found in boxes if found is not None) * len(order) // len(boxes)
            left_over = most_bytes - _BOX_BYTES * min(n_boxes, MOST_BOXES) - sum(map(len, contents))
            share = left_over * count // (len(order) - start)
            content = encoded(sheet, _QUALITIES[quality])
            while len(content) > share and quality < len(_QUALITIES) - 1:
                quality += 1
                content = encoded(sheet, _QUALITIES[quality])
            contents.append(content)
    if failures:
        warnings.warn(
            f"{len(failures)} of {len(order)} images have no thumbnail, the first of them: {failures[0]}", stacklevel=3
        )
    return Sheets(contents, side, columns, per_sheet, sizes, _QUALITIES[quality], Boxes.of(boxes))


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
    dataset: Any,
    order: npt.NDArray[np.int64],
    boxes: list[npt.NDArray[np.float32] | None],
    failures: list[str],
) -> Iterator[npt.NDArray[np.uint8] | None]:
    """The images as bytes; None, and a line in `failures`, for those that cannot be read. Boxes go into `boxes`."""
    for index in order.tolist():
        try:
            sample = dataset[index]
            image, found = displayable(sample), boxes_of(sample)
        except Exception as error:  # whatever a user's data set raises: one broken file must not cost the report
            image, found = None, None
            failures.append(f"index {index}: {error!r}")
        else:
            if image is None:
                failures.append(f"index {index}: the sample is no image")
        boxes.append(found)
        if image is None or image.dtype == np.uint8:
            yield image
        else:
            yield (np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
