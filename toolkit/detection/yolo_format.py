"""Detection data sets in YOLO's format: a `data.yaml`, images, and a text file of boxes for each image.

Nothing is written beside the user's files, and no image is rewritten; what cannot be used is told by file and line.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.fingerprint import content_hash, files_hash
from toolkit.validation import check_choice, invalid, shorten

__all__ = [
    "IMAGE_SUFFIXES",
    "ON_ERROR",
    "DetectionImages",
    "YOLOData",
    "label_file_of",
    "read_data_yaml",
    "read_label_file",
    "read_split",
]

#: Endings of the files that are taken for images in a folder.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
#: What to do about images that cannot be used.
ON_ERROR = ("raise", "skip")
SPLITS = ("train", "val", "test")

#: How far coordinates may leave [0, 1] by rounding, as ultralytics allows it.
_SLACK = 0.01
#: The end of a JPEG image, looked for among so many last bytes: some cameras append something.
_JPEG_END, _TAIL_BYTES = b"\xff\xd9", 1 << 16
#: EXIF orientations that swap height and width, and the tag that holds them.
_TURNED, _ORIENTATION = (5, 6, 7, 8), 0x0112
#: Images from which on reading them shows its progress.
_MANY = 2000
_THREADS = 8

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class YOLOData:
    """What a `data.yaml` says.

    Attributes:
        file: The `data.yaml`.
        root: The folder that the other paths are relative to.
        names: The names of the classes, in the order of their numbers.
        sources: For each split that there is, its folders and lists of files.
    """

    file: Path
    root: Path
    names: tuple[str, ...]
    sources: dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class DetectionImages:
    """The images of a split with their boxes, none of them read beyond its size.

    Attributes:
        files: The N image files, in the order of their paths.
        boxes: For each image, float32 of shape (n, 5): class, centre x, centre y, width and height of each box, the
            latter four in [0, 1] of the upright image.
        sizes: Shape (N, 2), int64, height and width of each upright image in pixels.
        root: The folder of the data set.
        n_without_file: Images that have no file of boxes, which counts as having no boxes.
        problems: What was wrong with images that were left out.
    """

    files: tuple[Path, ...]
    boxes: tuple[Boxes, ...]
    sizes: npt.NDArray[np.int64]
    root: Path
    n_without_file: int = 0
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def targets(self) -> list[list[int]]:
        """The class of every box of each image; an empty list for an image without boxes."""
        return [boxes[:, 0].astype(int).tolist() for boxes in self.boxes]

    def take(self, indices: Sequence[int]) -> DetectionImages:
        """Some of the images, in the order of `indices`."""
        chosen = [int(index) for index in indices]
        return DetectionImages(
            tuple(self.files[i] for i in chosen),
            tuple(self.boxes[i] for i in chosen),
            self.sizes[chosen],
            self.root,
        )

    def fingerprint(self) -> str:
        """A text that differs with the files (paths, sizes, times) and the boxes."""
        counts = np.asarray([len(boxes) for boxes in self.boxes], dtype=np.int64)
        values = np.concatenate(self.boxes) if self.boxes else np.zeros((0, 5), np.float32)
        return f"{files_hash(self.files, self.root)}-{content_hash(counts, values)[:32]}"


def read_data_yaml(data: str | Path) -> YOLOData:
    r"""Read a `data.yaml`: the classes, and where the images are.

    `path` is taken as it is if it is absolute, else relative to the folder of the `data.yaml`, or to the current folder
    if it is only there; without it, the folder of the `data.yaml` counts. `train`, `val` and `test` are a folder, a
    text file with one image a line, or a list of such, relative to `path`. Classes come from `names` (a list, or
    numbers to names from 0 on), or from `nc` alone.

    Args:
        data: The file.

    Raises:
        FileNotFoundError: If the file, or a folder or list that it names, does not exist.
        ValueError: If it is no YAML mapping, if it has no `train`, or if classes are missing or do not fit together.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "images").mkdir()
        >>> _ = (folder / "data.yaml").write_text("train: images\nnames: [car, sign]\n")
        >>> read_data_yaml(folder / "data.yaml").names
        ('car', 'sign')
    """
    file = Path(data).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"`data` must be an existing data.yaml, got {str(data)!r}.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`data` must be a YAML file, got {str(data)!r}, which is none: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`data` must be a YAML file with `train` and `names`, got {str(data)!r} with neither.")
    if not content.get("train"):
        raise ValueError(
            f"`data` must name the training images under `train`, got {str(data)!r}, which has only "
            f"{shorten(list(content))}."
        )
    names = _class_names(content, file)
    root = _root(content.get("path"), file)
    sources = {split: _sources(content[split], split, root, file) for split in SPLITS if content.get(split)}
    return YOLOData(file, root, names, sources)


def read_split(data: YOLOData, split: str, *, on_error: str = "raise", progress: bool = True) -> DetectionImages:
    """Find a split's images, and read their sizes and boxes.

    An image without a file of boxes, or with an empty one, has no boxes. Rows of a file are `class x y width height`,
    or the class and the corners of a polygon, whose bounding box is taken. Repeated rows count once.

    Args:
        data: What the `data.yaml` says.
        split: `train`, `val` or `test`.
        on_error: `raise` refuses a split in which an image cannot be used, telling which and why; `skip` leaves such
            images out, with a warning that names them.
        progress: Whether to show a progress bar where there are many images.

    Returns:
        The images in the order of their paths.

    Raises:
        ValueError: If the split is none of the data set's, has no images or, for training, no boxes; if an image or a
            file of boxes is broken: the message gives files and lines.
        FileNotFoundError: If a listed image does not exist.
    """
    check_choice("on_error", on_error, ON_ERROR)
    if split not in data.sources:
        raise invalid("split", f"one of {', '.join(data.sources)} of {str(data.file)!r}", split)
    files = _image_files(data, split)
    n_classes = len(data.names)
    with ThreadPool(_THREADS) as pool:
        bar = tqdm(
            pool.imap(lambda file: _read_one(file, n_classes), files, chunksize=32),
            total=len(files),
            desc=f"reading {split}",
            unit="img",
            disable=not progress or len(files) < _MANY or world()[0] != 0,
        )
        read = list(bar)
    problems = [found for found in read if isinstance(found, str)]
    if problems and on_error == "raise":
        raise ValueError(
            f"`data` {str(data.file)!r} must have usable images only, got {len(problems)} of {len(files)} in `{split}` "
            f"that are not: {_listed(problems)} Mend or remove them, or set on_error='skip' to leave them out."
        )
    if problems:
        warnings.warn(
            f"{len(problems)} of {len(files)} images of `{split}` in {str(data.file)!r} are left out: "
            f"{_listed(problems)}",
            stacklevel=2,
        )
    usable = [(file, found) for file, found in zip(files, read, strict=True) if not isinstance(found, str)]
    if not usable:
        raise ValueError(f"`data` {str(data.file)!r} must have images in `{split}` that can be used, got none.")
    images = DetectionImages(
        tuple(file for file, _ in usable),
        tuple(boxes for _, (_, boxes, _) in usable),
        np.asarray([size for _, (size, _, _) in usable], dtype=np.int64),
        data.root,
        sum(not has_file for _, (_, _, has_file) in usable),
        tuple(problems),
    )
    if split == "train" and not any(len(boxes) for boxes in images.boxes):
        raise ValueError(
            f"`data` {str(data.file)!r} must have boxes to train on, got none in {len(images)} images. Boxes are "
            f"looked for in files such as {str(label_file_of(images.files[0]))!r}."
        )
    return images


def label_file_of(image: Path) -> Path:
    """Where an image's boxes are: `labels` in place of the last folder `images` of its path, and the ending `.txt`.

    Example:
        >>> label_file_of(Path("set/images/train/a.jpg")).as_posix()
        'set/labels/train/a.txt'
    """
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_label_file(file: str | Path, n_classes: int) -> Boxes:
    """The boxes in a file: a row a box, `class x y width height`, or the class and the corners of a polygon.

    Args:
        file: The text file.
        n_classes: How many classes there are.

    Returns:
        float32 of shape (n, 5): class, centre x, centre y, width, height; repeated rows once.

    Raises:
        ValueError: With file and line, if a row has not five numbers (or an odd number of seven and more), a class that
            does not exist, or a coordinate outside [0, 1].
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    rows = [_box_of(line.split(), n_classes, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    boxes = np.asarray(rows, dtype=np.float32).reshape(-1, 5)
    if len(boxes) > 1:
        _, first = np.unique(boxes, axis=0, return_index=True)
        if len(first) < len(boxes):
            boxes = boxes[np.sort(first)]
    return boxes


def _box_of(items: Sequence[str], n_classes: int, path: Path, line: int) -> list[float]:
    """One row as class, centre and size, or an error that says what is wrong with it."""
    where = f"{path}, line {line}"
    if len(items) != 5 and (len(items) < 7 or len(items) % 2 == 0):
        raise ValueError(f"{where}: must be 5 numbers (class x y width height), got {len(items)}")
    try:
        values = [float(item) for item in items]
    except ValueError:
        raise ValueError(f"{where}: must be numbers, got {' '.join(items[:8])!r}") from None
    label, coordinates = values[0], values[1:]
    if not math.isfinite(label) or label != int(label) or not 0 <= label < n_classes:
        raise ValueError(f"{where}: class must be a whole number from 0 to {n_classes - 1}, got {items[0]}")
    outside = [
        item
        for item, value in zip(items[1:], coordinates, strict=True)
        if not -_SLACK <= value <= 1 + _SLACK  # which NaN fails too
    ]
    if outside:
        raise ValueError(f"{where}: coordinates must be in [0, 1], got {shorten(outside)}")
    if len(coordinates) > 4:
        xs, ys = coordinates[::2], coordinates[1::2]
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        coordinates = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    elif coordinates[2] < 0 or coordinates[3] < 0:
        raise ValueError(f"{where}: width and height must not be negative, got {items[3]} and {items[4]}")
    return [label, *coordinates]


def _read_one(file: Path, n_classes: int) -> tuple[tuple[int, int], Boxes, bool] | str:
    """An image's height and width, its boxes and whether these have a file; or what is wrong with it, as a text."""
    try:
        size = _image_size(file)
        labels = label_file_of(file)
        has_file = labels.is_file()
        return size, read_label_file(labels, n_classes) if has_file else np.zeros((0, 5), np.float32), has_file
    except ValueError as error:
        return str(error)


def _image_size(file: Path) -> tuple[int, int]:
    """Height and width of an upright image; a ValueError for a file that is no whole image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about what only decoding would meet
            with Image.open(file) as image:
                width, height = image.size
                is_jpeg = image.format in ("JPEG", "MPO")
                if not is_jpeg:
                    image.verify()
                elif image.getexif().get(_ORIENTATION) in _TURNED:
                    width, height = height, width
        if is_jpeg and not _ends_as_jpeg(file):
            raise ValueError(f"{file}: the image is cut short")
    except UnidentifiedImageError:
        raise ValueError(f"{file}: is no image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a PNG whose checksum is wrong
        raise ValueError(f"{file}: cannot be read ({error})") from error
    return height, width


def _ends_as_jpeg(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - _TAIL_BYTES))
        return _JPEG_END in stream.read()


def _class_names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers."""
    names, count = content.get("names"), content.get("nc")
    if names is None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"`data` must name the classes under `names`, got {str(file)!r} without them.")
        return tuple(f"class {number}" for number in range(count))
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise ValueError(
                f"`names` of {str(file)!r} must be numbered from 0 to {len(names) - 1}, got {shorten(list(names))}."
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"`names` of {str(file)!r} must be a list, or numbers to names, got {names!r}.")
    if count is not None and count != len(names):
        raise ValueError(f"`nc` of {str(file)!r} must be the number of `names`, {len(names)}, got {count!r}.")
    return tuple(map(str, names))


def _root(path: Any, file: Path) -> Path:
    """The folder that the splits are relative to."""
    beside = file.parent.resolve()
    if path is None:
        return beside
    given = Path(str(path)).expanduser()
    places = [given] if given.is_absolute() else [beside / given, Path.cwd() / given]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"`path` of {str(file)!r} must be an existing folder, got {str(path)!r}; looked at "
            f"{', '.join(map(str, places))}."
        )
    return found.resolve()


def _sources(value: Any, split: str, root: Path, file: Path) -> tuple[Path, ...]:
    """The folders and lists of a split."""
    items = value if isinstance(value, list) else [value]
    places = []
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"`{split}` of {str(file)!r} must be a path or a list of paths, got {item!r}.")
        place = root / Path(item).expanduser()
        if not place.exists() and item.startswith("../") and (root / item[3:]).exists():
            place = root / item[3:]  # as exported data sets have it, one folder too high
        if not place.exists():
            raise FileNotFoundError(f"`{split}` of {str(file)!r} must exist, got {item!r}; looked at {place}.")
        places.append(place)
    return tuple(places)


def _image_files(data: YOLOData, split: str) -> list[Path]:
    """The image files of a split, in the order of their paths, each once."""
    found: dict[str, Path] = {}
    for source in data.sources[split]:
        images = _in_folder(source) if source.is_dir() else _in_list(source, data.root)
        found.update((str(image), image) for image in images)
    if not found:
        raise ValueError(
            f"`{split}` of {str(data.file)!r} must have images ({', '.join(IMAGE_SUFFIXES)}), got none in "
            f"{', '.join(map(str, data.sources[split]))}."
        )
    return [found[name] for name in sorted(found)]


def _in_folder(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _in_list(file: Path, root: Path) -> Iterable[Path]:
    """The images that a text file lists, one a line; those that start with `./` lie beside it."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return [file]
    images = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        item = line.strip()
        if not item:
            continue
        image = file.parent / item[2:] if item.startswith("./") else root / Path(item).expanduser()
        if not image.is_file():
            raise FileNotFoundError(f"{file}, line {number}: must be an existing image, got {item!r}; tried {image}.")
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{file}, line {number}: must be an image ({', '.join(IMAGE_SUFFIXES)}), got {item!r}.")
        images.append(image)
    return images


def _listed(problems: Sequence[str]) -> str:
    """The first problems, one after the other."""
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more." if len(problems) > 5 else ".")
