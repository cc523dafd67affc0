"""Any LightningDataModule with its training set pruned."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from toolkit.cache import writable_folder
from toolkit.datasets import ids_of, labels_of
from toolkit.distributed import on_rank_zero
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.lightning_views import BATCH_HOOKS, loader_view, rebuilt_loader, training_images
from toolkit.representations import EvaluationView
from toolkit.reproducibility import preserved_rng
from toolkit.selection import Selection, SelectionFileError, Selector

#: Hooks handed to the inner module as they are, so that Lightning sees which of them it overrides.
_FORWARDED = (
    *BATCH_HOOKS,
    "prepare_data",
    "teardown",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "on_exception",
)


class PrunedDataModule(L.LightningDataModule):
    """A data module with its training set pruned; everything else is the inner module's own.

    The selection is made when the training loader is first asked for (after `setup`, so on the training device and over
    all ranks), and kept in the cache folder (`toolkit.cache`) under a fingerprint of the data, the settings and the
    weights: the next run finds it. A checkpoint carries it: a resumed run trains on the identical images without
    choosing anew, and refuses to go on if the data changed. Learning-rate schedules see the pruned length.

    An inner module may offer two methods to do better than the wrapper can from outside:

    - `evaluation_dataset()`: its training images, in order, without random augmentation. Without it, the transforms of
      the validation set are used where it is of the same kind, and batch hooks run as in validation.
    - `with_indices(kept)`: a training data set restricted to some images, where a plain `Subset` would not do because
      samples draw further images (mosaic augmentation).

    Args:
        datamodule: Any LightningDataModule whose training data set has a length and is read by index.
        selector: What chooses the images; or the folder of a selection that was made before (by `toolkit.select`, maybe
            edited since); or a `Selection`; or None to prune nothing.
        cache: Whether to keep selections in the cache folder and look for them there.
        cache_dir: The cache folder; `$TOOLKIT_CACHE` or `~/.cache/dataset-pruning-toolkit` if None.
        allow_changed_data: Whether to resume from a checkpoint even if the data set's fingerprint changed (files that
            were copied have new times, for instance); the number of images must be the same all the same.

    Raises:
        MisconfigurationException: When the loader is asked for, if the inner module's training loader cannot be
            pruned; the message says what to do.

    Example:
        >>> from toolkit import RandomSelector
        >>> from toolkit.datamodules import DigitsDataModule
        >>> datamodule = PrunedDataModule(DigitsDataModule(), RandomSelector(0.5), cache=False)
        >>> datamodule.setup("fit")
        >>> len(datamodule.train_dataloader().dataset) == len(datamodule.selection.kept)
        True
    """

    def __init__(
        self,
        datamodule: L.LightningDataModule,
        selector: Selector | Selection | str | Path | None = None,
        *,
        cache: bool = True,
        cache_dir: str | Path | None = None,
        allow_changed_data: bool = False,
    ) -> None:
        if not isinstance(datamodule, L.LightningDataModule):
            raise TypeError(f"`datamodule` must be a LightningDataModule, got {type(datamodule).__name__}.")
        if isinstance(datamodule, PrunedDataModule):
            raise TypeError("`datamodule` must be one that is not pruned yet, got a PrunedDataModule.")
        if not (
            selector is None
            or isinstance(selector, (Selection, str, Path))
            or callable(getattr(selector, "select", None))
        ):
            raise TypeError(f"`selector` must have a method `select`, or be a folder, got {type(selector).__name__}.")
        self.__dict__["datamodule"] = datamodule
        super().__init__()
        self.selector = selector
        self.cache = cache
        self.cache_dir = cache_dir
        self.allow_changed_data = allow_changed_data
        #: Seconds that choosing took, or finding the choice in the cache; None before.
        self.seconds_choosing: float | None = None
        #: Where the selection is kept, or None.
        self.selection_folder: Path | None = None
        #: Where the selection came from: `chosen`, `cache`, `folder`, `checkpoint` or `given`; None before.
        self.origin: str | None = None
        self._selection: Selection | None = None
        self._is_set_up = False
        #: Whether the selection was compared with the training set.
        self._is_checked = False
        for name in _FORWARDED:
            self.__dict__[name] = getattr(datamodule, name)
        for name in ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices", "_log_hyperparams"):
            if hasattr(datamodule, name):
                self.__dict__[name] = getattr(datamodule, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "datamodule" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["datamodule"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("datamodule")
        is_own = name in self.__dict__ or hasattr(type(self), name)
        if inner is not None and not is_own and "_is_set_up" in self.__dict__ and hasattr(inner, name):
            setattr(inner, name, value)  # such as a batch size that a tuner tries
        else:
            super().__setattr__(name, value)

    @property
    def trainer(self) -> L.Trainer | None:
        """The trainer, which the inner module has too."""
        return cast("L.Trainer | None", self.datamodule.trainer)

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        self.datamodule.trainer = trainer

    @property
    def hparams(self) -> Any:
        """The inner module's hyperparameters."""
        return self.datamodule.hparams

    @property
    def hparams_initial(self) -> Any:
        """The inner module's hyperparameters as they were given."""
        return self.datamodule.hparams_initial

    def setup(self, stage: str) -> None:
        """Set the inner module up. The choice is made later, when a checkpoint that may carry one has been read."""
        self.datamodule.setup(stage)
        self._is_set_up = self._is_set_up or stage == "fit"
        if isinstance(self.selector, (str, Path)) and self._selection is None:
            # A folder that cannot be used is told here, before anything is trained.
            self._selection = on_rank_zero(lambda: Selection.load(cast("str | Path", self.selector)))
            self.origin, self.selection_folder = "folder", Path(self.selector)

    @property
    def selection(self) -> Selection:
        """The selection; made now if it was not before.

        Raises:
            RuntimeError: If `prepare_data()` and `setup("fit")` were not called before.
        """
        if self._selection is None or not self._is_checked:
            if not self._is_set_up:
                raise RuntimeError("Call `prepare_data()` and `setup('fit')` of the data module before `selection`.")
            try:
                return self._selection_for(self._inner_loader())
            except AttributeError as error:
                # Left as it is, Python would ask the inner module for `selection` and report that instead.
                raise RuntimeError(f"The selection could not be made: {error}") from error
        return self._selection

    def train_dataloader(self) -> DataLoader[Any]:
        """The inner module's training loader over the images that are kept."""
        loader = self._inner_loader()
        selection = self._selection_for(loader)
        if self.selector is None and len(selection.kept) == len(selection):
            return loader
        kept = selection.kept.tolist()
        restrict = getattr(self.datamodule, "with_indices", None)
        dataset = restrict(kept) if callable(restrict) else selection.subset(loader.dataset)
        return _rebuilt(loader, dataset, kept)

    def state_dict(self) -> dict[str, Any]:
        """The selection and the inner module's state."""
        state: dict[str, Any] = {"datamodule": self.datamodule.state_dict()}
        if self._selection is not None:
            state["selection"] = self._selection.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the selection of a checkpoint, if the data is what it was chosen from."""
        self.datamodule.load_state_dict(state_dict["datamodule"])
        if "selection" not in state_dict:
            return
        stored = state_dict["selection"]
        trainer = self.trainer
        if trainer is not None and trainer.state.fn != TrainerFn.FITTING:
            return  # Testing needs no training images.
        dataset = self._evaluation_dataset(self._inner_loader())
        if len(dataset) != len(stored["status"]):
            raise MisconfigurationException(
                f"The training data changed: the checkpoint was trained on a selection of {len(stored['status'])} "
                f"images, the data set now has {len(dataset)}. Resume with the data it was started on, or start a new "
                "run."
            )
        if not self.allow_changed_data and stored["fingerprint"] not in {None, dataset_fingerprint(dataset)}:
            raise MisconfigurationException(
                "The training data changed since the checkpoint was written: its fingerprint is another. Resume with "
                "the data it was started on, start a new run, or set `allow_changed_data` if you know that the "
                "images and their order are the same (files that were copied have new times)."
            )
        config = getattr(self.selector, "config", None)
        if callable(config) and json.loads(stored["config"]) != json.loads(json.dumps(config(), default=str)):
            warnings.warn(
                "The checkpoint's selection was made with other settings than the selector now has: the run goes on "
                "with the checkpoint's. Start a new run to train on another selection.",
                stacklevel=2,
            )
        if self._selection is not None and torch.equal(
            torch.from_numpy(self._selection.status), stored["status"].cpu()
        ):
            return  # The same, and with its merge tree.
        self._selection = Selection.from_state_dict(stored, ids_of(dataset), labels_of(dataset))
        self.origin, self._is_checked = "checkpoint", True

    def _inner_loader(self) -> DataLoader[Any]:
        """The inner module's training loader, if it is one that can be pruned."""
        loader = self.datamodule.train_dataloader()
        name = type(self.datamodule).__name__
        if not isinstance(loader, DataLoader):
            raise MisconfigurationException(
                f"`train_dataloader` of {name} must return one DataLoader to be pruned, got {type(loader).__name__}. "
                "Return a single loader over a ConcatDataset, or wrap the data modules one by one."
            )
        if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__getitem__"):
            raise MisconfigurationException(
                f"The training data set of {name} must be read by index to be pruned, got "
                f"{type(loader.dataset).__name__}, "
                "which is read as a stream. Use a data set with `__getitem__` and `__len__`."
            )
        if not hasattr(loader.dataset, "__len__"):
            raise MisconfigurationException(
                f"The training data set of {name} must have a length to be pruned, got {type(loader.dataset).__name__} "
                "without `__len__`."
            )
        if type(loader.sampler) is SubsetRandomSampler:
            # Images that the sampler never draws are no training images: nothing is chosen among or in favour of them.
            drawn = sorted({int(index) for index in loader.sampler.indices})
            return _rebuilt(loader, Subset(loader.dataset, drawn), drawn)
        return loader

    def evaluation_dataset(self) -> Any:
        """All training images, also those that are removed, without augmentation where that can be switched off."""
        return self._evaluation_dataset(self._inner_loader())

    def evaluation_view(self, loader: Any = None) -> EvaluationView:
        """The images of a loader as they are seen for evaluation.

        Args:
            loader: A validation or test loader (of several, the first is taken); the training images if None.
        """
        if loader is None:
            return self._view(self._inner_loader())
        while isinstance(loader, (list, tuple)) and loader:
            loader = loader[0]
        return self._view(loader, loader.dataset)

    def _evaluation_dataset(self, loader: DataLoader[Any]) -> Any:
        """The training images without augmentation, in the order of the training set."""
        return training_images(loader, self.datamodule)

    def _view(self, loader: DataLoader[Any], dataset: Any = None) -> EvaluationView:
        images = self._evaluation_dataset(loader) if dataset is None else dataset
        return loader_view(loader, images, self.datamodule, self.trainer)

    def _selection_for(self, loader: DataLoader[Any]) -> Selection:
        """The selection for the training set of a loader, made if there is none yet."""
        n_images = len(cast("Any", loader.dataset))
        if self._selection is None:
            start = time.perf_counter()
            if self.selector is None:
                from toolkit.selection import RandomSelector

                self._selection, self.origin = RandomSelector(1.0).select(range(n_images)), "given"
            elif isinstance(self.selector, Selection):
                self._selection, self.origin = self.selector, "given"
            else:
                with preserved_rng():  # so that training is the same whether the selection was found or made
                    self._selection = self._choose(loader)
            self.seconds_choosing = time.perf_counter() - start
        if len(self._selection) != n_images:
            raise MisconfigurationException(
                f"`selector` must be a selection from the training set's {n_images} images, got one from "
                f"{len(self._selection)} images."
            )
        if self.origin in {"folder", "given"} and self.selector is not None and not self._is_checked:
            self._check_given(self._selection, loader)
        self._is_checked = True
        return self._selection

    def _check_given(self, selection: Selection, loader: DataLoader[Any]) -> None:
        """Refuse a selection of other images; warn where only times or contents may differ."""
        given = f"in {str(self.selector)!r}" if self.origin == "folder" else "that was given"
        dataset = self._evaluation_dataset(loader)
        names = ids_of(dataset)
        if selection.ids is not None and names is not None and tuple(names) != selection.ids:
            different = next(i for i, (a, b) in enumerate(zip(names, selection.ids, strict=True)) if a != b)
            raise MisconfigurationException(
                f"`selector` must be a selection from this training set, got one ({given}) in which image "
                f"{different} is {selection.ids[different]!r}, not {names[different]!r}."
            )
        if selection.fingerprint not in {None, dataset_fingerprint(dataset)}:
            warnings.warn(
                f"The selection {given} was made from data with another fingerprint: make sure that "
                "the images and their order are the same.",
                stacklevel=4,
            )

    def _choose(self, loader: DataLoader[Any]) -> Selection:
        """Find the selection in the cache, or make it and keep it there."""
        selector, view = cast("Any", self.selector), self._view(loader)
        # A selector that turns no images into vectors is done sooner than its cached selection would be read.
        is_quick = callable(getattr(selector, "representation", None)) and selector.representation() is None
        can_cache = self.cache and not is_quick and callable(getattr(selector, "fingerprint", None))
        if callable(getattr(selector, "check", None)):
            selector.check()
        folder, found = on_rank_zero(lambda: self._look_up(selector, view)) if can_cache else (None, None)
        self.selection_folder = folder
        if found is not None:
            self.origin = "cache"
            return found
        selection: Selection = selector.select(view)
        self.origin = "chosen"
        if folder is not None:
            on_rank_zero(lambda: self._keep(selection, folder))
        return selection

    def _look_up(self, selector: Any, view: EvaluationView) -> tuple[Path, Selection | None]:
        """The cache folder of this choice, tried out, and the selection in it if there is a whole one."""
        key = settings_hash({"images": view.fingerprint(), "selector": selector.fingerprint()})
        folder = writable_folder("selections", key[:32], self.cache_dir)
        try:
            return folder, Selection.load(folder)
        except FileNotFoundError:
            return folder, None
        except SelectionFileError as error:
            warnings.warn(f"A cached selection cannot be used and is made anew: {error}", stacklevel=4)
            return folder, None

    def _keep(self, selection: Selection, folder: Path) -> None:
        try:
            selection.save(folder)
        except OSError as error:
            warnings.warn(
                f"The selection could not be kept in {folder} ({error}): this run goes on with it, the next makes it "
                f"anew.",
                stacklevel=4,
            )


def _rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], kept: list[int]) -> DataLoader[Any]:
    """The same loader over the images that are kept."""
    sampler = loader.sampler
    if loader.batch_size is None and loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            raise _unknown_sampler("batch_sampler", loader.batch_sampler)
        sampler = loader.batch_sampler.sampler
    return rebuilt_loader(loader, dataset, _restricted(sampler, dataset, kept))


def _restricted(sampler: Any, dataset: Dataset[Any], kept: list[int]) -> Sampler[int]:
    """A sampler of the same kind over the images that are kept."""
    length = cast("Any", dataset)
    if type(sampler) is SequentialSampler:
        return SequentialSampler(length)
    if type(sampler) is RandomSampler:
        count = sampler._num_samples
        if count is not None:
            count = max(1, round(count * len(kept) / len(sampler.data_source)))
        return RandomSampler(length, replacement=sampler.replacement, num_samples=count, generator=sampler.generator)
    if type(sampler) is WeightedRandomSampler:
        # As many draws an image as before, so that an epoch shrinks with the data.
        draws = max(1, round(sampler.num_samples * len(kept) / len(sampler.weights)))
        weights = torch.as_tensor(sampler.weights)[kept]
        return WeightedRandomSampler(
            cast("Any", weights), draws, replacement=sampler.replacement, generator=sampler.generator
        )
    if type(sampler) is SubsetRandomSampler:
        return RandomSampler(length, generator=sampler.generator)
    if type(sampler) is DistributedSampler:
        return DistributedSampler(
            dataset,
            num_replicas=sampler.num_replicas,
            rank=sampler.rank,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
            drop_last=sampler.drop_last,
        )
    raise _unknown_sampler("sampler", sampler)


def _unknown_sampler(name: str, sampler: Any) -> MisconfigurationException:
    return MisconfigurationException(
        f"The training loader's {name} must be one of PyTorch's to be pruned, got {type(sampler).__name__}, whose "
        "indices cannot be translated from outside. Use one of PyTorch's, or prune the data set inside the data module "
        "with `Selection.subset`."
    )
