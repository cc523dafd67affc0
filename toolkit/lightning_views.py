"""A trainer's images as its validation sees them: the Lightning part that callbacks and data modules share."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType, ModuleType
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, Sampler

from toolkit.datasets import evaluation_dataset
from toolkit.representations import EvaluationView
from toolkit.reproducibility import preserved_rng
from toolkit.validation import check_choice

SPLITS = ("train", "val")
#: What Lightning calls with every batch, in this order.
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
#: What draws random numbers and may be part of a data set.
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
#: Longer lists are an image's or a label's each, and hold no generators; nor does what lies this deep.
_MANY, _MOST_OBJECTS = 1000, 20_000


def evaluation_view_of(trainer: L.Trainer, split: str = "train") -> EvaluationView:
    """The images that a trainer trains on or validates with, without augmentation, as its network takes them.

    With a `PrunedDataModule` these are all training images, also those that are removed. Augmentation is switched off
    where somebody can tell how: see `toolkit.datamodules.PrunedDataModule`. Batch hooks run as in validation.

    Args:
        trainer: A trainer that has its data: in `setup` with a data module or loaders of the model's own, from
            `on_train_start` on with loaders that were given to `fit`.
        split: `train` or `val`; of several validation loaders the first is taken.

    Raises:
        MisconfigurationException: If the trainer has no such loader, or its data set cannot be read by index.
    """
    check_choice("split", split, SPLITS)
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    own_view = getattr(datamodule, "evaluation_view", None)
    if callable(own_view):
        view: EvaluationView = own_view() if split == "train" else own_view(_loader_of(trainer, split))
        return view
    loader = _loader_of(trainer, split)
    dataset = training_images(loader, datamodule or trainer.lightning_module) if split == "train" else loader.dataset
    return loader_view(loader, dataset, datamodule, trainer)


def loader_view(loader: Any, dataset: Any, datamodule: Any, trainer: L.Trainer | None) -> EvaluationView:
    """A data set read as a loader reads its own, each batch taken through the hooks as in validation.

    Args:
        loader: The loader whose collate function and number of workers are taken.
        dataset: The images.
        datamodule: The owner of the batch hooks, or None: the trainer's model.
        trainer: The trainer, or None outside of one.
    """
    return EvaluationView(
        dataset,
        batch_transform=partial(_batch_transform, datamodule, trainer),
        collate_fn=loader.collate_fn if loader.batch_size is not None or loader.batch_sampler is not None else None,
        num_workers=loader.num_workers,
        device=None if trainer is None else trainer.strategy.root_device,
    )


def training_images(loader: Any, owner: Any) -> Any:
    """A loader's images without augmentation, in the order of its data set.

    Args:
        loader: The training loader.
        owner: The data module, or the model with loaders of its own: its `evaluation_dataset()` if it has one, else
            the training set with the transforms of its validation set.
    """
    own = getattr(owner, "evaluation_dataset", None)
    if callable(own):
        dataset, n_images = own(), len(loader.dataset)
        if len(dataset) != n_images:
            raise MisconfigurationException(
                f"`evaluation_dataset()` of {type(owner).__name__} must have the training set's "
                f"{n_images} images in the same order, got {len(dataset)}."
            )
        return dataset
    validation = None
    if is_overridden("val_dataloader", owner):
        validation = getattr(_first(owner.val_dataloader()), "dataset", None)
    return evaluation_dataset(loader.dataset, validation)


def rebuilt_loader(loader: DataLoader[Any], dataset: Dataset[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    """The same loader over another data set, with another sampler of it.

    Raises:
        MisconfigurationException: If the loader is of a class that cannot be made from a DataLoader's arguments.
    """
    settings: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
        "in_order": loader.in_order,
    }
    batch_size, drop_last = loader.batch_size, loader.drop_last
    if batch_size is None and isinstance(loader.batch_sampler, BatchSampler):
        batch_size, drop_last = loader.batch_sampler.batch_size, loader.batch_sampler.drop_last
    try:
        return type(loader)(dataset, sampler=sampler, batch_size=batch_size, drop_last=drop_last, **settings)
    except TypeError as error:
        raise MisconfigurationException(
            f"The training loader must be a DataLoader, or a subclass with the same arguments, to be pruned, got "
            f"{type(loader).__name__} ({error}). Return a plain DataLoader."
        ) from error


def resampled_loader(loader: Any, sampler: Sampler[int]) -> DataLoader[Any]:
    """A loader of shuffled images with a sampler that shuffles otherwise.

    Raises:
        MisconfigurationException: If it is no such loader: one whose images come in their order, with weights or in
            batches that somebody else puts together must not be shuffled behind their back.
    """
    if not isinstance(loader, DataLoader):
        raise MisconfigurationException(
            f"The training data must come from one DataLoader, got {type(loader).__name__}."
        )
    inner: Any = loader.sampler
    if loader.batch_size is None and type(loader.batch_sampler) is BatchSampler:
        inner = loader.batch_sampler.sampler
    plain = type(inner) is RandomSampler and not inner.replacement and inner._num_samples is None
    if not plain and not (type(inner) is DistributedSampler and inner.shuffle):
        raise MisconfigurationException(
            f"The training loader must shuffle all its images (`shuffle=True`), got one with a {type(inner).__name__}."
        )
    return rebuilt_loader(loader, loader.dataset, sampler)


def replaced_loader(trainer: L.Trainer, change: Callable[[Any], Any]) -> Callable[[], None]:
    """Let a trainer's training loader be changed whenever it is made anew; for a callback's `setup`.

    Args:
        trainer: A trainer whose data comes from a data module, or from the model's own `train_dataloader`.
        change: What makes the loader to train with from the one that the owner gives.

    Returns:
        What undoes it; for `teardown`.

    Raises:
        MisconfigurationException: If the loader was given to `fit` as it is.
    """
    owner: Any = next(
        (
            candidate
            for candidate in (trainer.datamodule, trainer.lightning_module)  # type: ignore[attr-defined]
            if candidate is not None and is_overridden("train_dataloader", candidate)
        ),
        None,
    )
    if owner is None:
        raise MisconfigurationException(
            "The training images must come from a data module, or from the model's own `train_dataloader`, so that "
            "their loader can be made anew. Give `fit` a data module."
        )
    original, had_own = owner.train_dataloader, "train_dataloader" in vars(owner)

    def train_dataloader() -> Any:
        return change(original())

    def undo() -> None:
        if had_own:
            vars(owner)["train_dataloader"] = original
        else:
            vars(owner).pop("train_dataloader", None)

    vars(owner)["train_dataloader"] = train_dataloader
    return undo


def global_seed() -> int:
    """The seed that `seed_everything` was called with, the same on all processes; 0 if it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _loader_of(trainer: L.Trainer, split: str) -> Any:
    """The trainer's loader, wherever it comes from."""
    name = f"{split}_dataloader"
    # The one that it has: another call of the owner's method may give other images.
    loader = _first(trainer.train_dataloader if split == "train" else trainer.val_dataloaders)
    for owner in (trainer.datamodule, trainer.lightning_module):  # type: ignore[attr-defined]
        if loader is None and owner is not None and is_overridden(name, owner):
            loader = _first(getattr(owner, name)())
    dataset = getattr(loader, "dataset", None)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        got = "none" if loader is None else type(loader if dataset is None else dataset).__name__
        kind = "training" if split == "train" else "validation"
        raise MisconfigurationException(
            f"The trainer must have one {kind} loader over a data set with `__getitem__` and `__len__`, got {got}."
        )
    return loader


@contextmanager
def untouched_data(trainer: L.Trainer) -> Iterator[None]:
    """Let images be read on the side: random state is as before afterwards, also that of the data's own generators.

    These are generators of Python, NumPy and PyTorch that the data module, the trainer's loaders, their data sets and
    transforms hold as attributes, as albumentations' do.

    Args:
        trainer: The trainer whose data is read.
    """
    owners = (trainer.datamodule, trainer.train_dataloader, trainer.val_dataloaders)  # type: ignore[attr-defined]
    states = [(generator, _state_of(generator)) for generator in _generators_in(owners)]
    with preserved_rng():
        try:
            yield
        finally:
            for generator, state in states:
                _set_state(generator, state)


def _generators_in(owners: Any) -> list[Any]:
    """The random generators that objects hold, the objects in them, and so on, the outer ones first."""
    found: list[Any] = []
    waiting, seen = deque([owners]), {id(owners)}
    while waiting and len(seen) < _MOST_OBJECTS:
        item = waiting.popleft()
        if isinstance(item, _GENERATORS) and not isinstance(item, random.SystemRandom):
            found.append(item)
            continue
        for inner in _inside(item):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return found


def _inside(item: Any) -> Collection[Any]:
    """What an object holds, as far as it may be random."""
    if isinstance(item, (L.Trainer, L.LightningModule, torch.Tensor, np.ndarray, type, ModuleType)):
        return ()
    if isinstance(item, (list, tuple, dict)):
        return () if len(item) > _MANY else [*item.values()] if isinstance(item, dict) else item
    if isinstance(item, partial):
        return item.func, *item.args, *item.keywords.values()
    if isinstance(item, MethodType):
        return (item.__self__,)
    held = getattr(item, "__dict__", None)
    return list(held.values()) if isinstance(held, dict) else ()


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _first(loaders: Any) -> Any:
    while isinstance(loaders, (list, tuple)):
        loaders = loaders[0] if loaders else None
    return loaders


def _batch_transform(datamodule: Any, trainer: L.Trainer | None, batch: Any, device: torch.device) -> Any:
    """What Lightning does to a batch in validation, on a device."""
    with _as_in_validation(trainer) as module:
        for name in BATCH_HOOKS:
            owner: Any = datamodule
            if module is not None and (owner is None or not is_overridden(name, owner)) and is_overridden(name, module):
                owner = module
            more = (device, 0) if name == "transfer_batch_to_device" else (0,)
            batch = getattr(module if owner is None else owner, name)(batch, *more)
    return batch


@contextmanager
def _as_in_validation(trainer: L.Trainer | None) -> Iterator[L.LightningModule | None]:
    """Let hooks that ask the trainer or the module whether they train hear that they validate."""
    if trainer is None:
        yield None
        return
    module, stage = trainer.lightning_module, trainer.state.stage
    was_training = module is not None and module.training
    trainer.state.stage = RunningStage.VALIDATING
    if module is not None:
        module.training = False  # The flag of the module alone: its layers are not run.
    try:
        yield module
    finally:
        trainer.state.stage = stage
        if module is not None:
            module.training = was_training
