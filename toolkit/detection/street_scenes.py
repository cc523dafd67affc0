"""Drawn street scenes with traffic signs: a detection data set that needs no download, with planted images to find."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.cache import check_writable
from toolkit.detection.scene_drawing import SIGN_NAMES, Boxes, check_size, draw_outlier, draw_scene, picture_of
from toolkit.detection.yolo_format import IMAGE_SUFFIXES
from toolkit.validation import invalid, shorten

__all__ = ["SIGN_NAMES", "Planted", "check_settings", "draw_scene", "read_planted", "write_street_scenes"]

#: The file that names what was planted, and with which settings a folder was written.
_PLANTED = "planted.json"
_DATA = "data.yaml"
#: Goes up when the same settings draw other pictures.
_VERSION = 1
#: Of JPEG: high enough that near-duplicates stay near.
_QUALITY = 92
#: Pixels that a near-duplicate is shifted by at most, along each direction.
_SHIFT = 2


@dataclass(frozen=True)
class Planted:
    """What was planted among the training images of a folder of street scenes.

    Attributes:
        duplicates: For each near-duplicate the image that it was made from. Both are names of files relative to the
            folder, as selections have them for ids.
        outliers: The images that show no street.
    """

    duplicates: dict[str, str]
    outliers: tuple[str, ...]


def write_street_scenes(
    folder: str | Path,
    n_train: int = 240,
    n_val: int = 60,
    n_duplicates: int = 24,
    n_outliers: int = 6,
    size: Sequence[int] = (240, 320),
    seed: int = 0,
) -> Path:
    """Write a data set of street scenes in YOLO's format, with near-duplicates and outliers among its training images.

    The folder gets `images/train`, `images/val`, a file of boxes for each image in `labels`, `data.yaml`, and
    `planted.json`, which names what was planted (see `read_planted`). It appears all at once when it is complete, so
    several processes may write it at the same time. One that was written before with the same settings is left as it
    is.

    Args:
        folder: Where to; new, empty, or written before with the same settings.
        n_train: Training images in all, the planted ones included.
        n_val: Validation images, none of them planted.
        n_duplicates: Training images that are copies of others, each of another one: up to two pixels shifted, a little
            brighter or darker, with other noise.
        n_outliers: Training images that show something quite different, without signs.
        size: Height and width of the images in pixels.
        seed: Decides all images; the same settings write the same bytes.

    Returns:
        The `data.yaml`.

    Raises:
        ValueError: If a number is out of its range, or if the folder holds anything else; it is left alone then.
        OSError: If nothing can be written there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "scenes"
        >>> data = write_street_scenes(folder, n_train=6, n_val=2, n_duplicates=1, n_outliers=1, size=(60, 80))
        >>> data.name, len(list(folder.glob("images/train/*.jpg"))), len(read_planted(folder).duplicates)
        ('data.yaml', 6, 1)
    """
    settings = check_settings(n_train, n_val, n_duplicates, n_outliers, size, seed)
    folder = Path(folder).expanduser().resolve()
    if _is_written(folder, settings):
        return folder / _DATA
    check_writable(folder.parent, "folder")
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        _write(unfinished, settings)
        try:
            unfinished.rename(folder)
        except OSError:
            if not _is_written(folder, settings):  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / _DATA


def read_planted(folder: str | Path) -> Planted:
    """What `write_street_scenes` planted in a folder.

    Args:
        folder: The folder that was written.

    Raises:
        FileNotFoundError: If the folder has no `planted.json`.
    """
    file = Path(folder) / _PLANTED
    if not file.is_file():
        raise FileNotFoundError(f"`folder` must have been written by `write_street_scenes`, got {str(folder)!r}.")
    content = json.loads(file.read_text(encoding="utf-8"))
    return Planted(dict(content["duplicates"]), tuple(content["outliers"]))


def check_settings(
    n_train: int, n_val: int, n_duplicates: int, n_outliers: int, size: Sequence[int], seed: int
) -> dict[str, Any]:
    """The settings of `write_street_scenes` as plain values, if all are within their ranges."""
    counts = {"n_train": n_train, "n_val": n_val, "n_duplicates": n_duplicates, "n_outliers": n_outliers, "seed": seed}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
        least = 1 if name in ("n_train", "n_val") else 0
        if value < least:
            raise invalid(name, f"at least {least}", int(value))
    n_scenes = n_train - n_outliers - n_duplicates
    if n_scenes < max(1, n_duplicates):
        must = f"at least {n_outliers + n_duplicates + max(1, n_duplicates)}, so that each copy has an original"
        raise invalid("n_train", must, int(n_train))
    plain = {name: int(value) for name, value in counts.items()}
    return {"version": _VERSION, **plain, "size": list(check_size(size))}


def _is_written(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds the images of these settings; False for none or an empty one, an error for any other."""
    must = "new, empty, or written with the same settings"
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise invalid("folder", must, f"{folder}, which is a file")
    if not any(folder.iterdir()):
        return False
    try:
        written = dict(json.loads((folder / _PLANTED).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, TypeError, KeyError):
        raise invalid("folder", must, f"{folder}, which holds other files") from None
    if written != settings:
        other = {name: value for name, value in written.items() if settings.get(name) != value}
        raise invalid("folder", must, f"{folder}, which was written with {other}")
    expected = {_DATA}
    for split, count in (("train", settings["n_train"]), ("val", settings["n_val"])):
        expected |= {name(split, index) for name in (_image_name, _label_name) for index in range(count)}
    # What else lies there, such as the caches of ultralytics, changes no data set.
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in (*IMAGE_SUFFIXES, ".txt", ".yaml") and path.is_file()
    }
    if found != expected:
        missing, strange = sorted(expected - found), sorted(found - expected)
        what = f"which lacks {shorten(missing)}" if missing else f"which also holds {shorten(strange)}"
        raise invalid("folder", must, f"{folder}, {what}")
    return True


def _image_name(split: str, index: int) -> str:
    return f"images/{split}/{index:05d}.jpg"


def _label_name(split: str, index: int) -> str:
    return f"labels/{split}/{index:05d}.txt"


def _write(folder: Path, settings: dict[str, Any]) -> None:
    """Write all files of the data set."""
    n_train, n_val, n_duplicates, n_outliers = (
        settings[name] for name in ("n_train", "n_val", "n_duplicates", "n_outliers")
    )
    size, seed = settings["size"], settings["seed"]

    def rng_of(*place: int) -> np.random.Generator:
        """Each image has its own, so that it does not depend on how many there are."""
        return np.random.default_rng([seed, *place])

    order = rng_of(2).permutation(n_train).tolist()
    copies, outliers = order[:n_duplicates], order[n_duplicates : n_duplicates + n_outliers]
    originals = order[n_duplicates + n_outliers :][:n_duplicates]
    original_of = dict(zip(copies, originals, strict=True))
    kind_of = {index: kind for kind, index in enumerate(outliers)}
    for part in ("images", "labels"):
        for split in ("train", "val"):
            (folder / part / split).mkdir(parents=True)
    for index in range(n_train):
        if index in original_of:
            image, boxes = _altered(rng_of(0, index), *draw_scene(rng_of(0, original_of[index]), size))
        elif index in kind_of:
            image, boxes = draw_outlier(rng_of(0, index), size, kind_of[index]), np.zeros((0, 5), np.float32)
        else:
            image, boxes = draw_scene(rng_of(0, index), size)
        _save(folder, "train", index, image, boxes)
    for index in range(n_val):
        _save(folder, "val", index, *draw_scene(rng_of(1, index), size))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(SIGN_NAMES))
    (folder / _DATA).write_text(f"train: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")
    pairs = sorted(original_of.items())
    planted = {
        "settings": settings,
        "duplicates": {_image_name("train", copy): _image_name("train", original) for copy, original in pairs},
        "outliers": [_image_name("train", index) for index in sorted(outliers)],
    }
    (folder / _PLANTED).write_text(json.dumps(planted, indent=1) + "\n", encoding="utf-8")


def _save(folder: Path, split: str, index: int, image: Image.Image, boxes: Boxes) -> None:
    image.save(folder / _image_name(split, index), quality=_QUALITY)
    rows = "".join(f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) + "\n" for row in boxes)
    (folder / _label_name(split, index)).write_text(rows, encoding="utf-8")


def _altered(rng: np.random.Generator, image: Image.Image, boxes: Boxes) -> tuple[Image.Image, Boxes]:
    """A near-duplicate with its boxes: shifted by one or two pixels, a little brighter or darker, with noise."""
    original = np.asarray(image, np.float32)
    height, width = original.shape[:2]
    down, right = (int(step) for step in rng.integers(-_SHIFT, _SHIFT + 1, 2))
    if not down and not right:
        right = 1
    padded = np.pad(original, ((_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), mode="edge")
    shifted = padded[_SHIFT - down :, _SHIFT - right :][:height, :width]
    pixels = shifted * rng.uniform(0.93, 1.07) + rng.normal(0, 2, (height, width, 1))
    shift = np.asarray([right / width, down / height], np.float32)
    low = np.clip(boxes[:, 1:3] - boxes[:, 3:5] / 2 + shift, 0, 1)
    high = np.clip(boxes[:, 1:3] + boxes[:, 3:5] / 2 + shift, 0, 1)
    return picture_of(pixels), np.concatenate([boxes[:, :1], (low + high) / 2, high - low], axis=1)
