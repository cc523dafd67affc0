"""A trainer's images as its validation sees them: the Lightning part that callbacks and data modules share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import is_overridden

from toolkit.datasets import evaluation_dataset
from toolkit.representations import EvaluationView
from toolkit.validation import check_choice

SPLITS = ("train", "val")
#: What Lightning calls with every batch, in this order.
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


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


def _loader_of(trainer: L.Trainer, split: str) -> Any:
    """The trainer's loader, wherever it comes from."""
    name = f"{split}_dataloader"
    given = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
    loader = None
    for owner in (trainer.datamodule, None, trainer.lightning_module):  # type: ignore[attr-defined]
        if owner is None:
            loader = given
        elif is_overridden(name, owner):
            loader = getattr(owner, name)()
        loader = _first(loader)
        if loader is not None:
            break
    dataset = getattr(loader, "dataset", None)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        got = "none" if loader is None else type(loader if dataset is None else dataset).__name__
        kind = "training" if split == "train" else "validation"
        raise MisconfigurationException(
            f"The trainer must have one {kind} loader over a data set with `__getitem__` and `__len__`, got {got}."
        )
    return loader


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
