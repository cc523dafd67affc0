"""Feature maps of a network's layer as vectors, taken with a forward hook."""

from __future__ import annotations

import copy
import difflib
import importlib
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from tqdm.auto import tqdm

from toolkit.cache import writable_folder
from toolkit.checkpoints import load_weights
from toolkit.distributed import gather_objects, gather_rows, on_rank_zero, share, together, world
from toolkit.fingerprint import content_hash, describe, settings_hash, weights_hash
from toolkit.representations.base import Collate, EvaluationView, Vectors, batches_from, image_key, images_of
from toolkit.reproducibility import full_precision, preserved_rng
from toolkit.validation import check_choice, check_vectors, invalid, shorten

log = logging.getLogger(__name__)

_NUMBER = re.compile("-?[0-9]+")

#: Makes rows of the images of a batch as the network got them, the whole batch, and what the layer gave.
Reduction = Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]

#: Vectors above this many bytes stay in their file and are returned as a memory map.
MEMORY_LIMIT = 1 << 30
POOLS = ("mean", "flatten")


class RandomAugmentationWarning(UserWarning):
    """Images are randomly augmented while features are taken, and nobody could tell how to switch that off."""


def find_layer(model: nn.Module, layer: str | int) -> tuple[str, nn.Module]:
    """The layer of a model by exact name or unique suffix, or by its place in the model's sequence of layers.

    Args:
        model: The model.
        layer: A name as in `model.named_modules()`, or its last parts: `avgpool` finds `model.avgpool`. A number is the
            place in the model's sequence of layers (see `layer_sequence`), counted from 0, or from the end if negative;
            so is a text that is a number where it is neither a name nor the end of one alone.

    Returns:
        The full name and the module.

    Raises:
        ValueError: If no layer has that name (the error lists the closest) or several end in it, or if there is no such
            place or no sequence.
        TypeError: If `layer` is neither a text nor a whole number.

    Example:
        >>> model = nn.ModuleDict({"model": nn.Sequential(nn.Flatten(), nn.Linear(2, 1))})
        >>> find_layer(model, "1")
        ('model.1', Linear(in_features=2, out_features=1, bias=True))
        >>> find_layer(model, -2)
        ('model.0', Flatten(start_dim=1, end_dim=-1))
    """
    if not isinstance(layer, str):
        return _layer_at(model, layer)
    modules = {name: module for name, module in model.named_modules() if name}
    if layer in modules:
        return layer, modules[layer]
    found = [name for name in modules if name.endswith("." + layer)]
    if len(found) == 1:
        return found[0], modules[found[0]]
    if _NUMBER.fullmatch(layer) and layer_sequence(model):  # as command lines give numbers
        return _layer_at(model, int(layer))
    if found:
        raise invalid("layer", f"the name of one layer; these end in it: {shorten(found)}", layer)
    lasts = {name.rpartition(".")[2]: name for name in reversed(modules)}
    close = difflib.get_close_matches(layer, modules, n=5) + [
        lasts[last] for last in difflib.get_close_matches(layer.rpartition(".")[2], lasts, n=5)
    ]
    names = list(dict.fromkeys(close)) or list(modules)
    raise invalid("layer", f"a layer of {type(model).__name__}, such as {shorten(names)}", layer)


def _layer_at(model: nn.Module, layer: int) -> tuple[str, nn.Module]:
    """The layer at a place in a model's sequence of layers."""
    if isinstance(layer, bool) or not isinstance(layer, Integral):
        raise TypeError(f"`layer` must be the name of a layer or a whole number, got {layer!r}.")
    found = layer_sequence(model)
    if not found:
        names = [name for name, _ in model.named_children()]
        raise invalid(
            "layer", f"a name where the network has no single sequence of layers, such as {shorten(names)}", layer
        )
    if not -len(found) <= layer < len(found):
        raise invalid("layer", f"from {-len(found)} to {len(found) - 1}, or a name, for {len(found)} layers", layer)
    return found[int(layer)]


def layer_sequence(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a network that holds them in one sequence, by which they can be numbered.

    From the model down, as long as exactly one child has parameters (metrics and losses mostly have none), to the first
    `nn.Sequential`: `network.model` of a LightningModule around a detection network of ultralytics, for instance.

    Args:
        model: The model.

    Returns:
        The full names and modules of that sequence's layers; an empty list if there is no such sequence.

    Example:
        >>> [name for name, _ in layer_sequence(nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 1), nn.ReLU())}))]
        ['model.0', 'model.1']
    """
    path: list[str] = []
    while not isinstance(model, nn.Sequential):
        children = [(name, child) for name, child in model.named_children() if any(True for _ in child.parameters())]
        if len(children) != 1:
            return []
        name, model = children[0]
        path.append(name)
    return [(".".join([*path, name]), layer) for name, layer in model.named_children()]


class FeatureExtractor:
    """A representation that hooks one layer of a network: vectors (N, D) of what the layer gives for each image.

    Works on a copy of the model, in evaluation mode, in float32 without TF32, and sees images without random
    augmentation wherever somebody can tell how to switch it off (see `toolkit.datamodules.PrunedDataModule`; it warns
    otherwise). A feature map is pooled inside the hook, so only vectors are held. In a distributed run every rank takes
    a share and all get the whole. Vectors are written to the cache folder as they come: an interrupted extraction goes
    on where it stopped, the same extraction is not done twice, and above 1 GiB they stay in the file as a memory map.

    Args:
        model: The network or LightningModule, called with a batch of images; or the name of a torchvision model (or a
            timm one, where timm is installed), with its pretrained weights unless `checkpoint` is given. None where a
            configuration's `baseline` section supplies it.
        layer: The layer to hook, by its name in `model.named_modules()` or a unique ending of it; or its place, as a
            whole number, in a network that is a sequence of layers (-1 is the last), as detection networks are.
        checkpoint: A state dict or Lightning checkpoint to load into the copy.
        pool: What to make of a feature map. `mean`: (N, C, H, W) to (N, C), and tokens (N, T, C) to (N, C).
            `flatten`: every value, (N, C * H * W), also of a detection head's decoded predictions (N, 4 + classes,
            places).
        batch_size: Images a batch; fewer where images are large.
        num_workers: Worker processes to load with; those of the data set's own loader if None.
        device: Where to run, such as `cuda`; chosen if None.
        input_key: The key of the images where batches are dictionaries, if it is an unusual one.
        cache: Whether to keep vectors on disk.
        cache_dir: The cache folder, see `toolkit.cache`.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: From `vectors`, if the layer, the checkpoint or the images do not fit, or features are not finite.

    References:
        Birodkar, Mobahi, Bengio, "Semantic Redundancies in Image-Classification Datasets", arXiv 1901.11409: the
        average-pooled output before the classifier. Raud, "Dataset filtering", TalTech 2023: any hooked layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> images = torch.utils.data.TensorDataset(torch.rand(10, 3, 8, 8))
        >>> FeatureExtractor(model, layer="1", cache=False, progress=False).vectors(images).shape
        (10, 4)
    """

    def __init__(
        self,
        model: nn.Module | str | None = None,
        layer: str | int = "avgpool",
        checkpoint: str | Path | None = None,
        *,
        pool: str = "mean",
        batch_size: int = 256,
        num_workers: int | None = None,
        device: str | None = None,
        input_key: str | None = None,
        cache: bool = True,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.layer = layer
        self.checkpoint = checkpoint
        self.pool = pool
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = device
        self.input_key = input_key
        self.cache = cache
        self.cache_dir = cache_dir
        self.progress = progress

    def fingerprint(self) -> str:
        """A text that differs with the weights, the layer or the pooling."""
        return self._fingerprint(*self.network())

    def _fingerprint(self, model: nn.Module, transform: Callable[[Any], Any] | None) -> str:
        name, _ = find_layer(model, self.layer)
        return settings_hash(
            {
                "model": type(model).__name__,
                "structure": describe(model),
                "weights": weights_hash(model.state_dict()),
                "layer": name,
                "transform": describe(transform),
                **self._own_settings(),
            }
        )

    def _own_settings(self) -> dict[str, Any]:
        """The settings, beyond the network's and the layer, that change the vectors."""
        return {"pool": self.pool}

    def _images_fingerprint(self, view: EvaluationView) -> str:
        """A text that differs when what the vectors are computed from does."""
        return view.fingerprint()

    def vectors(self, dataset: Any) -> Vectors:
        """The layer's vectors for every image of a data set, in its order, as float32 of shape (N, D)."""
        view = self._checked(dataset)
        with preserved_rng():
            return self._vectors(view)

    def _checked(self, dataset: Any) -> EvaluationView:
        """The view of a data set, if there is something to do and the settings allow it."""
        check_choice("pool", self.pool, POOLS)
        if self.batch_size < 1:
            raise invalid("batch_size", "at least 1", self.batch_size)
        view = EvaluationView.of(dataset)
        if len(view) == 0:
            raise invalid("dataset", "a data set with at least one image", "an empty one")
        return view

    def _ready_network(self, view: EvaluationView) -> tuple[nn.Module, Callable[[Any], Any] | None]:
        """The network, once it is known to have the layer; with a warning if images are augmented at random."""
        model, transform = self.network()
        find_layer(model, self.layer)
        if view.is_random():
            warnings.warn(
                "Reading the same images twice gives different ones, and the data module does not tell how to switch "
                "that off: features will be of randomly augmented images. Give the data module a method "
                "`evaluation_dataset()` that returns its training images without augmentation.",
                RandomAugmentationWarning,
                stacklevel=4,
            )
        return model, transform

    def _vectors(self, view: EvaluationView) -> Vectors:
        model, transform = self._ready_network(view)
        folder = self._cache_folder(view, self._fingerprint(model, transform)) if self.cache else None
        if folder is not None:
            found = _read(folder, len(view))
            if all(gather_objects(found is not None)) and found is not None:
                return found
        start, stop = share(len(view), self.batch_size)
        own = together(lambda: self._share(model, transform, view, start, stop, folder))
        if world()[1] == 1:
            return check_vectors(own, "features") if folder is None else _publish(folder, start, stop, own)
        vectors = check_vectors(gather_rows(own, len(view), self.batch_size, MEMORY_LIMIT, folder), "features")
        if folder is not None:
            # What the ranks wrote each was for going on after an interruption; from here on there is one file.
            on_rank_zero(lambda: _write_finished(folder, vectors))
            (folder / f"part-{start}-{stop}.npy").unlink(missing_ok=True)
        return vectors

    def _cache_folder(self, view: EvaluationView, extractor: str) -> Path:
        images = self._images_fingerprint(view)
        key = settings_hash({"images": images, "extractor": extractor, "batch": self.batch_size})
        return writable_folder("features", key[:32], self.cache_dir)

    def network(self) -> tuple[nn.Module, Callable[[Any], Any] | None]:
        """A copy of the model with its weights in, in evaluation mode, and the preprocessing that belongs to it."""
        transform = None
        if self.model is None:
            raise ValueError(
                "`model` must be a network, a LightningModule or the name of a pretrained model, got None. In a "
                "configuration file the section `baseline` supplies it."
            )
        if isinstance(self.model, str):
            model, transform = named_model(self.model, pretrained=self.checkpoint is None)
        else:
            inner = getattr(self.model, "_orig_mod", self.model)
            model = copy.deepcopy(inner)
        if self.checkpoint is not None:
            load_weights(model, self.checkpoint)
        for module in model.modules():
            module._compiled_call_impl = None  # a hook added after compilation would never run
        return model.float().eval().requires_grad_(requires_grad=False), transform

    def device_for(self, view: EvaluationView) -> torch.device:
        """Where the network runs: the device that was asked for, else the view's, else what there is."""
        if self.device is not None:
            return torch.device(self.device)
        return view.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _share(
        self,
        model: nn.Module,
        transform: Callable[[Any], Any] | None,
        view: EvaluationView,
        start: int,
        stop: int,
        folder: Path | None,
    ) -> Vectors:
        """The vectors of images `start` to `stop`, written to the cache folder as they come where there is one."""
        device = self.device_for(view)
        model.to(device)
        sink = _Sink(folder, start, stop, self.batch_size)
        with sink, full_precision():
            batches = self._batches(view, transform, device, start + sink.rows_done, stop)
            bar = tqdm(
                total=stop - start,
                initial=sink.rows_done,
                unit="img",
                desc="features",
                disable=not self.progress or world()[0] != 0,
            )
            with bar, closing(self._blocks(model, batches, self._rows)) as blocks:
                try:
                    for rows in blocks:
                        sink.write(rows)
                        bar.update(len(rows))
                except Exception as error:
                    if sink.file is not None and sink.rows_done:
                        error.add_note(f"The features of {sink.rows_done} images are kept, and used next time.")
                    raise
        return sink.result()

    def _rows(self, images: torch.Tensor, batch: Any, features: torch.Tensor) -> torch.Tensor:
        """The vectors (B, D) of a batch of B images, float32.

        Args:
            images: The images as the network gets them, (B, channels, H, W).
            batch: The batch that they come in, labels and all.
            features: What the layer gives for them.
        """
        return pooled(features, self.pool)

    def _blocks(
        self,
        model: nn.Module,
        batches: Iterator[tuple[torch.Tensor, Any]],
        reduce: Reduction,
        *,
        one_each: bool = True,
    ) -> Generator[Vectors]:
        """The rows that `reduce` makes of each batch; those of the batches before an error are given before it.

        Args:
            model: The network, on the batches' device.
            batches: As `_batches` gives them.
            reduce: What makes the rows.
            one_each: Whether there must be one row an image.
        """
        waiting: torch.Tensor | None = None
        failure: Exception | None = None
        try:
            for images, batch in batches:
                with tapped(model, self.layer, partial(reduce, images, batch)) as tap, torch.inference_mode():
                    model(images)
                    fetched, waiting = waiting, tap(len(images) if one_each else None)
                # The batch before this one is fetched only now, so that a GPU never waits for it.
                if fetched is not None:
                    yield fetched.cpu().numpy()
        except Exception as error:
            failure = error
        if waiting is not None:
            yield waiting.cpu().numpy()
        if failure is not None:
            raise failure

    def images(
        self,
        view: EvaluationView,
        transform: Callable[[Any], Any] | None,
        device: torch.device,
        first: int = 0,
        stop: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Batches of images as the network takes them, float32 of shape (B, channels, H, W) on the device.

        Args:
            view: The images.
            transform: The preprocessing that `network()` gave with the network.
            device: Where to.
            first: Index of the first image.
            stop: Index behind the last one; all if None.
        """
        for images, _ in self._batches(view, transform, device, first, len(view) if stop is None else stop):
            yield images

    def _batches(
        self,
        view: EvaluationView,
        transform: Callable[[Any], Any] | None,
        device: torch.device,
        first: int,
        stop: int,
    ) -> Iterator[tuple[torch.Tensor, Any]]:
        """The images `first` to `stop` batch by batch as the network takes them, each time with their whole batch."""
        workers = view.num_workers if self.num_workers is None else self.num_workers
        loader: DataLoader[Any] = DataLoader(
            view.dataset,  # not the view, whose batch transform workers do not need and may not be able to get
            batch_size=self.batch_size,
            sampler=range(first, stop),
            num_workers=workers,
            collate_fn=ImageCollate(view.collate_fn or default_collate, transform),
            pin_memory=device.type == "cuda",
        )
        for batch in batches_from(loader, first, stop):
            yield self._to_device(batch, view, transform, device)

    def _to_device(
        self, batch: Any, view: EvaluationView, transform: Callable[[Any], Any] | None, device: torch.device
    ) -> tuple[torch.Tensor, Any]:
        if transform is not None:
            raw = images_of(batch, self.input_key)
            if raw.dtype == torch.uint8:
                result: torch.Tensor = transform(raw.to(device, non_blocking=True))
                return result.float(), batch
        if view.batch_transform is not None:
            batch = view.batch_transform(batch, device)
        images = images_of(batch, self.input_key).to(device, non_blocking=True)
        return (images.float() if images.is_floating_point() else images.float() / 255), batch


def named_model(name: str, *, pretrained: bool = True) -> tuple[nn.Module, Callable[[Any], Any] | None]:
    """A torchvision model by name, or a timm one where timm is installed, with the preprocessing of its weights.

    Args:
        name: Such as `resnet50`.
        pretrained: Whether to load its pretrained weights; without them there is no preprocessing either.

    Raises:
        ValueError: If neither library has a model of that name, or its weights cannot be had.
    """
    from torchvision import models as zoo
    from torchvision.transforms import v2

    if name in zoo.list_models():
        weights = zoo.get_model_weights(name).DEFAULT if pretrained else None
        with _explained_download(name):
            return zoo.get_model(name, weights=weights), (weights.transforms() if weights else None)
    timm: Any = None
    with suppress(ImportError):
        timm = importlib.import_module("timm")
    if timm is None or not timm.is_model(name):
        close = difflib.get_close_matches(name, zoo.list_models(), n=5)
        more = "" if timm else " (timm is not installed, so only torchvision's are known)"
        raise invalid("model", f"the name of a torchvision or timm model{more}, such as {shorten(close)}", name)
    with _explained_download(name):
        model = timm.create_model(name, pretrained=pretrained)
    if not pretrained:
        return model, None
    data = timm.data.resolve_model_data_config(model)
    size = data["input_size"][-1]
    transform = v2.Compose(
        [
            v2.Resize(round(size / data["crop_pct"]), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data["mean"], data["std"]),
        ]
    )
    return model, transform


@contextmanager
def _explained_download(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The pretrained weights of `model` {name!r} could not be had ({error}); give `checkpoint` the file of "
            "weights, or load the model yourself and pass it."
        ) from error


@contextmanager
def tapped(
    model: nn.Module, layer: str | int, pool: str | Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[Callable[[int | None], torch.Tensor]]:
    """Hook a layer; gives a function that returns the vectors of the batch just run and forgets them.

    Args:
        model: The model.
        layer: As for `find_layer`.
        pool: What to make of the layer's output as soon as it is there: one of `POOLS`, or a function of it.
    """
    name, module = find_layer(model, layer)
    reduce = partial(pooled, pool=pool) if isinstance(pool, str) else pool
    caught: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        caught[:] = [reduce(_tensor_of(output, name))]

    def take(n_images: int | None) -> torch.Tensor:
        if not caught:
            raise invalid("layer", "a layer that runs when the model is called with images", name)
        vectors = caught.pop()
        if n_images is not None and len(vectors) != n_images:
            raise invalid(
                "layer", f"a layer that gives one row an image ({n_images})", f"{name!r}, {len(vectors)} rows"
            )
        return vectors

    handle = module.register_forward_hook(hook)
    try:
        yield take
    finally:
        handle.remove()


def first_tensor(output: Any) -> torch.Tensor | None:
    """A layer's output, or the first tensor in it where it is a tuple, list or dictionary; None if it has none."""
    if isinstance(output, torch.Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((item for item in items if isinstance(item, torch.Tensor)), None)


def _tensor_of(output: Any, name: str) -> torch.Tensor:
    """The first tensor of a layer's output, or an error that names the layer."""
    found = first_tensor(output)
    if found is None:
        raise invalid(
            "layer", "a layer that gives a tensor, or a tuple, list or dict with one", f"{name!r}, {type(output)}"
        )
    return found


def pooled(features: torch.Tensor, pool: str) -> torch.Tensor:
    """A layer's output (N, ...) as float32 vectors (N, D): averaged over places (or tokens), or every value."""
    if features.ndim < 2:
        features = features.reshape(len(features) if features.ndim else 1, 1)
    if pool == "mean" and features.ndim > 2:
        features = features.mean(dim=1) if features.ndim == 3 else features.flatten(2).mean(dim=2)
    return features.flatten(1).float()


class ImageCollate:
    """Makes a batch, preprocesses PIL images where the model brings its preprocessing, and explains what forms none."""

    def __init__(self, collate_fn: Collate, transform: Callable[[Any], Any] | None) -> None:
        self.collate_fn = collate_fn
        self.transform = transform

    def __call__(self, samples: Any) -> Any:
        """The batch of some samples."""
        are_pil = isinstance(samples, list) and len(samples) > 0 and _is_pil(image_of(samples[0]))
        if are_pil and self.transform is not None:
            return torch.stack([self.transform(image_of(sample)) for sample in samples])
        try:
            return self.collate_fn(samples)
        except TypeError as error:
            if not are_pil:
                raise
            raise TypeError(
                "Images must be tensors, got PIL images. Add a transform to the data set (such as ToTensor), or pass "
                "the model by name with its pretrained weights, which bring their own."
            ) from error
        except RuntimeError as error:
            images = [image for image in map(image_of, samples) if isinstance(image, torch.Tensor)]
            shapes = dict.fromkeys(tuple(image.shape) for image in images)
            if self.collate_fn is default_collate and len(shapes) == 1 and len(images) == len(samples):
                return torch.stack(images)  # It is labels of several lengths, as boxes are, that form no batch.
            if len(shapes) < 2:
                raise
            raise ValueError(
                f"Images must have one size to form a batch, got {shorten(list(shapes))}. Resize them in the data "
                "set's evaluation transform, or use a collate function."
            ) from error


def image_of(sample: Any) -> Any:
    """The image of a sample: the sample itself, its first item, or a dictionary's; None where that has none."""
    if isinstance(sample, Mapping):
        key = image_key(sample)
        return None if key is None else sample[key]
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def _is_pil(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] == "PIL"


class _Sink:
    """Collects vectors in order, appended to a `.npy` file where there is a folder; goes on where such a file ends.

    Rows are appended with ordinary writes, not through a memory map: a full disk is then an error, not a crash.
    """

    def __init__(self, folder: Path | None, start: int, stop: int, batch_size: int) -> None:
        self.folder, self.start, self.stop, self.batch_size = folder, start, stop, batch_size
        self.rows_done = self.width = 0
        self.file: BinaryIO | None = None
        self.blocks: list[Vectors] = []

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"part-{self.start}-{self.stop}.npy"

    def __enter__(self) -> _Sink:
        if self.path is not None:
            self.file = _open_exclusively(self.path)
        if self.file is not None:
            self._resume(self.file)
        return self

    def _resume(self, file: BinaryIO) -> None:
        """Go on after the last whole batch of an earlier run; start anew if the file has no usable beginning."""
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(0)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            row_bytes = shape[1] * dtype.itemsize
            rows = (size - file.tell()) // row_bytes
            if shape[0] == self.stop - self.start and dtype == np.float32:
                self.width = shape[1]
                self.rows_done = min(rows, shape[0]) if rows >= shape[0] else rows // self.batch_size * self.batch_size
                file.truncate(file.tell() + self.rows_done * row_bytes)
                file.seek(0, os.SEEK_END)
                if self.rows_done:
                    log.info("features: going on at image %d of %d", self.rows_done, shape[0])
                return
        except (ValueError, EOFError, IndexError):
            pass
        file.seek(0)
        file.truncate()

    def write(self, rows: Vectors) -> None:
        width = self.width = self.width or rows.shape[1]
        if rows.shape[1] != width:
            raise ValueError(
                f"Features must have one length, got {width} and {rows.shape[1]} numbers an image. Resize the "
                "images to one size, or use pool='mean'."
            )
        if self.file is None:
            self.blocks.append(rows)
            self.rows_done += len(rows)
            return
        try:
            if self.file.tell() == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (self.stop - self.start, rows.shape[1])}
                np.lib.format.write_array_header_1_0(self.file, header)
            self.file.write(np.ascontiguousarray(rows, dtype="<f4").data)
            self.file.flush()
            self.rows_done += len(rows)
        except OSError as error:
            raise OSError(
                f"Features could not be written to `cache_dir` {str(self.folder)!r} ({error.strerror or error}). What "
                "was written stays and is used next time. Make room (python -m toolkit.cache --clear), name another "
                "folder, or set `cache` to false."
            ) from error

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            _let_go(self.file)
            self.file.close()

    def result(self) -> Vectors:
        if self.file is None:
            return np.concatenate(self.blocks) if self.blocks else np.empty((0, 0), np.float32)
        assert self.path is not None
        if self.stop == self.start:
            return np.empty((0, 0), np.float32)
        # Another process that found the file finished may have given it its final name since.
        path = self.path if self.path.exists() else self.path.with_name("features.npy")
        result: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        return result


def _open_exclusively(path: Path) -> BinaryIO | None:
    """The file, for this process alone; None where another process is writing it right now."""
    file = path.open("r+b" if path.exists() else "w+b")
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process is writing %s: these features stay in memory", path)
        file.close()
        return None
    return file


def _let_go(file: BinaryIO) -> None:
    """Give a file back to other processes, also where workers that live on have it open too."""
    with suppress(ImportError):  # Windows
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def _publish(folder: Path, start: int, stop: int, vectors: Vectors) -> Vectors:
    """Check finished vectors and put them under their final name, with a checksum that later readers compare."""
    check_vectors(vectors, "features")
    part = folder / f"part-{start}-{stop}.npy"
    if isinstance(vectors, np.memmap) and part.exists():
        checksum = content_hash(vectors)
        (folder / "features.json").write_text(json.dumps({"rows": len(vectors), "sha256": checksum}))
        del vectors
        part.replace(folder / "features.npy")
        return _in_memory_if_small(np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False))
    return vectors


def _write_finished(folder: Path, vectors: Vectors) -> None:
    """Write vectors that are in memory as a finished file."""
    unfinished = folder / "unfinished.npy"
    with unfinished.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
    (folder / "features.json").write_text(json.dumps({"rows": len(vectors), "sha256": content_hash(vectors)}))
    unfinished.replace(folder / "features.npy")


def _read(folder: Path, n_rows: int) -> Vectors | None:
    """Finished vectors from the cache, or None where there are none or the file is not what was written."""
    try:
        written = json.loads((folder / "features.json").read_text())
        vectors: Vectors = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        if vectors.shape[0] == n_rows and content_hash(vectors) == written["sha256"]:
            return _in_memory_if_small(vectors)
        raise ValueError("checksum differs")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
        warnings.warn(f"Features in {folder} were cut short or altered ({error}); they are taken anew.", stacklevel=5)
        return None


def _in_memory_if_small(vectors: Vectors) -> Vectors:
    return np.array(vectors) if vectors.nbytes <= MEMORY_LIMIT else vectors
