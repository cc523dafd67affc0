"""Feature maps that were written during training: the folder that holds them, and a representation that reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import time
import uuid
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from toolkit.cache import ENVIRONMENT_VARIABLE, cache_folder, check_writable
from toolkit.fingerprint import content_hash, dataset_fingerprint, describe
from toolkit.representations import feature_map
from toolkit.representations.base import EvaluationView, Vectors
from toolkit.reproducibility import preserved_rng
from toolkit.validation import check_choice, check_vectors, invalid, shorten

__all__ = ["DTYPES", "FeatureManifest", "UnfinishedFeatures", "WrittenFeatures", "delete_features", "epoch_folders"]

#: What vectors may be written as.
DTYPES = ("float16", "float32")

_FORMAT, _VERSION = "toolkit.features", 1
_FEATURES, _MANIFEST = "features.npy", "manifest.json"
_FOLDER = re.compile(r"epoch=\d+")
#: Images that are compared where the fingerprint of their data set is another.
_PROBES = 8
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class FeatureManifest:
    """What is written beside the vectors of one epoch, as `manifest.json`.

    Args:
        layer: Full name of the layer in the module that was trained.
        pool: What was made of its feature maps, `mean` or `flatten`.
        split: Whose images they are of, `train` or `val`.
        model: Name of the module's class.
        epoch: The epoch after which they were taken, from 0.
        global_step: Optimizer steps done by then.
        dtype: `float16` or `float32`.
        shape: (N, D).
        sha256: Of the vectors, as `toolkit.fingerprint.content_hash` gives it.
        dataset: `dataset_fingerprint` of the images' data set.
        images: Hash of a few of its images, see `images_hash`.
        run: Names the training run that wrote them; a resumed run has the name of the one it goes on with.
        written: When, in seconds since 1970.
    """

    layer: str
    pool: str
    split: str
    model: str
    epoch: int
    global_step: int
    dtype: str
    shape: tuple[int, int]
    sha256: str
    dataset: str
    images: str
    run: str
    written: float

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        content = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        (folder / _MANIFEST).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> FeatureManifest:
        """The manifest of one epoch's folder.

        Raises:
            FileNotFoundError: If the folder has none.
            ValueError: If it is of another kind, damaged, or from a newer version of the toolkit.
        """
        path = folder / _MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"`folder` must be one that FeatureMapWriter wrote, got {str(folder)!r}.")
        try:
            content = json.loads(path.read_text())
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            if content["version"] > _VERSION:
                raise ValueError(f"version {content['version']}, this toolkit reads up to version {_VERSION}")
            values = {field.name: content[field.name] for field in dataclasses.fields(cls)}
            check_choice("dtype", values["dtype"], DTYPES)
            n_images, n_features = map(int, values["shape"])
        except (ValueError, KeyError, TypeError) as error:
            raise invalid("folder", f"one with a readable {_MANIFEST} ({error})", str(folder)) from error
        return cls(**{**values, "shape": (n_images, n_features)})


class UnfinishedFeatures:
    """Vectors on their way into an epoch's folder: appended in order to a file beside it, then put in place at once.

    Nothing of it bears the folder's name before `publish`: whoever reads finds the whole folder or none. A process that
    is killed leaves a hidden folder behind, which the next write of the same run in the same place removes. Rows are
    appended with ordinary writes, so a full disk is an error, not a crash, and one block is all that is in memory.

    Args:
        folder: The epoch's folder, such as `features/epoch=0004`.
        run: Name of the training run.
        n_images: N, the number of rows to come.
        dtype: What to write them as, `float16` or `float32`.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "epoch=0000"
        >>> unfinished = UnfinishedFeatures(folder, "a run", 3, "float16")
        >>> unfinished.append(np.eye(3)[:2]); unfinished.append(np.eye(3)[2:]); folder.exists()
        False
        >>> manifest = unfinished.publish(layer="avgpool", pool="mean", split="train", model="Net", epoch=0,
        ...     global_step=10, dataset="", images="")
        >>> manifest.shape, np.load(folder / "features.npy").dtype
        ((3, 3), dtype('float16'))
    """

    def __init__(self, folder: Path, run: str, n_images: int, dtype: str) -> None:
        self.folder = folder
        self.run = run
        self.n_images = n_images
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shape = (0, 0)
        self._beside = folder.with_name(f".unfinished-{run}")
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Write the next rows, shape (n, D).

        Raises:
            ValueError: If they are not as long as those before.
            OSError: If they cannot be written; the message names the folder.
        """
        n_done, width = self.shape
        if n_done and rows.shape[1] != width:
            raise ValueError(
                f"Features must have one length, got {width} and {rows.shape[1]} numbers an image. Resize the "
                "images to one size, or use pool='mean'."
            )
        try:
            file = self._file or self._open(rows.shape[1])
            values = np.ascontiguousarray(rows, dtype=self.dtype)
            file.write(values.data)
        except OSError as error:
            raise OSError(
                f"Features could not be written to `dirpath` {str(self.folder.parent)!r} "
                f"({error.strerror or error}). Make room, name another folder, or keep fewer epochs with `keep_last`."
            ) from error
        self._digest.update(values.data)
        self.shape = (n_done + len(rows), rows.shape[1])

    def _open(self, width: int) -> BinaryIO:
        if self._beside.exists():
            shutil.rmtree(self._beside)
        self._beside.mkdir(parents=True)
        self._file = (self._beside / _FEATURES).open("wb")
        shape = (self.n_images, width)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._digest.update(f"{self.dtype.str}{shape}".encode())
        return self._file

    def publish(self, **facts: Any) -> FeatureManifest:
        """Give the finished folder its name, in place of features that it held before.

        Args:
            facts: What `FeatureManifest` needs beyond the run, the dtype, the shape, the checksum and the time.

        Raises:
            ValueError: If rows are missing.
            FileExistsError: If the folder exists and holds something else.
        """
        if self.shape[0] != self.n_images or self._file is None:
            raise invalid("features", f"of all {self.n_images} images before they are published", self.shape[0])
        self._file.close()
        manifest = FeatureManifest(
            run=self.run,
            dtype=self.dtype.name,
            shape=self.shape,
            sha256=self._digest.hexdigest(),
            written=time.time(),
            **facts,
        )
        manifest.save(self._beside)
        replaced = None
        if self.folder.exists():
            try:
                replaced = _hide(self.folder)
            except (FileNotFoundError, ValueError) as error:
                raise FileExistsError(f"`dirpath` must have no {self.folder.name!r} of others ({error})") from error
        self._beside.rename(self.folder)
        if replaced is not None:
            _delete(replaced)
        return manifest

    def discard(self) -> None:
        """Close and remove what was not published; nothing happens after `publish`."""
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self._beside, ignore_errors=True)


def delete_features(folder: Path) -> None:
    """Delete one epoch's folder, and nothing that is no such folder; no reader sees half of it.

    Raises:
        FileNotFoundError: If it has no manifest.
        ValueError: If its manifest is not ours.
    """
    _delete(_hide(folder))


def _hide(folder: Path) -> Path:
    """Take an epoch's folder away from readers, by renaming it."""
    FeatureManifest.load(folder)
    return folder.rename(folder.with_name(f".deleted-{uuid.uuid4().hex}"))


def _delete(hidden: Path) -> None:
    try:
        shutil.rmtree(hidden)
    except OSError as error:  # Some file systems keep what a reader has open; training goes on all the same.
        warnings.warn(f"Old features in {hidden} could not be deleted ({error}).", stacklevel=4)


def epoch_folders(folder: Path) -> list[tuple[Path, FeatureManifest]]:
    """The epochs' folders directly in a folder with their manifests, the last that was written at the end.

    Raises:
        FileNotFoundError: If something is named like an epoch's folder and has no manifest.
        ValueError: If its manifest is not ours.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _FOLDER.fullmatch(path.name):
            try:
                found.append((path, FeatureManifest.load(path)))
            except FileNotFoundError:
                if path.exists():
                    raise  # Otherwise a training run that keeps its last epochs alone has just deleted it.
    return sorted(found, key=lambda item: (item[1].written, item[1].epoch))


def images_hash(dataset: Any) -> str:
    """SHA-256 of a few images of a data set, evenly spaced, as it gives them, without their labels.

    Example:
        >>> images = np.arange(12.0).reshape(3, 4)
        >>> images_hash(images) == images_hash([(image, "a label") for image in images])
        True
    """
    indices = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, min(_PROBES, len(dataset)))})
    with preserved_rng(seed=0):
        return hashlib.sha256("\n".join(_image_hash(dataset[index]) for index in indices).encode()).hexdigest()


def _image_hash(sample: Any) -> str:
    image = feature_map.image_of(sample)
    if hasattr(image, "dtype"):
        return content_hash(image)
    if hasattr(image, "__array_interface__"):  # as PIL images have
        return content_hash(np.asarray(image))
    return describe(sample if image is None else image)


class WrittenFeatures:
    """A representation that reads what `toolkit.callbacks.FeatureMapWriter` wrote while a model was trained.

    The vectors of the data set's images, one row each, without running the model again. They are given as float32: of
    float32 files the memory map itself, of float16 files a copy, each in memory up to 1 GiB (a float16 file beyond is
    unpacked to a temporary file in the cache folder). The file's checksum is compared when it is first read.

    Args:
        folder: The folder that the callback wrote to, or that of one epoch in it. A folder of several layers' folders
            will do if there is only one.
        epoch: The epoch to read, from 0; the one that was written last if None, settled when it is first asked for.
        allow_changed_data: Whether to use features although the data set's fingerprint and images are others (another
            class that reads the same images, for instance); their number must be the same all the same.

    Attributes:
        manifest: What is known of these features: layer, epoch, shape, ...

    Raises:
        FileNotFoundError: If there are no such features.
        ValueError: From `vectors`, if the features are of other images, damaged or not finite.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "epoch=0000"
        >>> unfinished = UnfinishedFeatures(folder, "a run", 3, "float16")
        >>> unfinished.append(np.eye(3)); images = np.zeros((3, 8, 8))
        >>> _ = unfinished.publish(layer="avgpool", pool="mean", split="train", model="Net", epoch=0,
        ...     global_step=10, dataset=dataset_fingerprint(images), images=images_hash(images))
        >>> features = WrittenFeatures(folder.parent)
        >>> features.manifest.epoch, features.vectors(images).dtype
        (0, dtype('float32'))
    """

    def __init__(self, folder: str | Path, epoch: int | None = None, *, allow_changed_data: bool = False) -> None:
        self.folder = folder
        self.epoch = epoch
        self.allow_changed_data = allow_changed_data
        self._found: tuple[Path, FeatureManifest] | None = None
        self._given: weakref.ref[Vectors] | None = None
        #: Checksum of the file when it was found to be whole.
        self._checked: str | None = None

    @property
    def path(self) -> Path:
        """The epoch's folder that is read."""
        return self._find()[0]

    @property
    def manifest(self) -> FeatureManifest:
        """What is known of these features."""
        return self._find()[1]

    def fingerprint(self) -> str:
        """The checksum of the values."""
        return f"written:{self.manifest.sha256}"

    def vectors(self, dataset: Any) -> Vectors:
        """The vectors, after a check that they are of the data set's images.

        Args:
            dataset: The images, N of them; None, or the vectors themselves, to take them for what they are.

        Returns:
            float32 of shape (N, D).
        """
        path, manifest = self._find()
        if dataset is not None and (self._given is None or dataset is not self._given()):
            self._check_images(path, manifest, EvaluationView.of(dataset).dataset)
        stored = self._open(path, manifest)
        # A selector without a data set chooses among the vectors and then asks for theirs.
        vectors = check_vectors(_as_float32(stored), "features")
        self._given = weakref.ref(vectors)
        return vectors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": None}  # another process has vectors of its own

    def _find(self) -> tuple[Path, FeatureManifest]:
        if self._found is None:
            self._found = self._search(Path(self.folder).expanduser())
        return self._found

    def _search(self, folder: Path) -> tuple[Path, FeatureManifest]:
        if (folder / _MANIFEST).is_file():
            found = [(folder, FeatureManifest.load(folder))]
        else:
            found = epoch_folders(folder)
            if not found:
                inner = {path: epoch_folders(path) for path in sorted(folder.glob("[!.]*")) if path.is_dir()}
                layers = [path.name for path, written in inner.items() if written]
                if len(layers) > 1:
                    raise invalid("folder", f"that of one layer's features, one of {shorten(layers)}", str(folder))
                found = [item for written in inner.values() for item in written]
        if not found:
            raise FileNotFoundError(
                f"`folder` must hold features that FeatureMapWriter wrote, got {str(folder)!r}, which "
                f"{'holds none' if folder.is_dir() else 'is no folder'}."
            )
        if self.epoch is None:
            return found[-1]
        epochs = {manifest.epoch: (path, manifest) for path, manifest in found}
        if self.epoch not in epochs:
            raise invalid("epoch", f"one that was written, of {shorten(sorted(epochs))}", self.epoch)
        return epochs[self.epoch]

    def _check_images(self, path: Path, manifest: FeatureManifest, dataset: Any) -> None:
        """Refuse features of other images; warn where only files' times, paths or labels may differ."""
        if manifest.shape[0] != len(dataset):
            raise invalid(
                "folder",
                f"of features of the data set's {len(dataset)} images, all of them and in their order",
                f"{manifest.shape[0]} rows in {str(path)!r}",
            )
        if dataset_fingerprint(dataset) == manifest.dataset:
            return
        if self.allow_changed_data or images_hash(dataset) == manifest.images:
            warnings.warn(
                f"The features in {path} were written from data with another fingerprint: make sure that the images "
                "and their order are the same.",
                stacklevel=4,
            )
            return
        raise invalid(
            "folder",
            "of features of this data set's images; those seen in training were others. Give the data set as it was "
            "in training, or set `allow_changed_data` if you know that the images and their order are the same",
            str(path),
        )

    def _open(self, path: Path, manifest: FeatureManifest) -> Vectors:
        """The file as a memory map, once its content is known to be what was written."""
        try:
            if FeatureManifest.load(path) != manifest:
                raise ValueError("others were written there since")
            stored: Vectors = np.load(path / _FEATURES, mmap_mode="r", allow_pickle=False)
            if (stored.shape, stored.dtype.name) != (manifest.shape, manifest.dtype):
                raise ValueError(f"{stored.dtype} of shape {stored.shape} instead of {manifest.dtype} {manifest.shape}")
            if self._checked != manifest.sha256 and content_hash(stored) != manifest.sha256:
                raise ValueError("its checksum is another")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"Features in {path} are missing, cut short or altered ({error}).") from error
        self._checked = manifest.sha256
        return stored


def _as_float32(stored: Vectors) -> Vectors:
    """Values as float32: in memory up to the limit, beyond it a memory map."""
    limit = feature_map.MEMORY_LIMIT
    if 4 * stored.size <= limit:
        return np.array(stored, np.float32)
    if stored.dtype == np.float32:
        return stored
    hint = f" Name another with the environment variable {ENVIRONMENT_VARIABLE}."
    folder = check_writable(cache_folder() / "features", "cache_dir", hint)
    with tempfile.TemporaryFile(dir=folder) as file:
        out = np.memmap(file, np.float32, "w+", shape=stored.shape)
    rows = max(1, _CHUNK_BYTES // (4 * stored.shape[1]))
    for start in range(0, len(stored), rows):
        out[start : start + rows] = stored[start : start + rows]
    return out
