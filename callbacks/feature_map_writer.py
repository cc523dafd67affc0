"""Feature maps of a layer, written while a model is trained."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, default_collate
from tqdm.auto import tqdm

from toolkit.boundary.evaluation import evaluating
from toolkit.cache import check_writable
from toolkit.distributed import gather_objects, on_rank_zero, together, world
from toolkit.fingerprint import dataset_fingerprint
from toolkit.lightning_views import SPLITS, evaluation_view_of, untouched_data
from toolkit.representations import EvaluationView, find_layer
from toolkit.representations.base import images_of
from toolkit.representations.feature_map import POOLS, ImageCollate, RandomAugmentationWarning, tapped
from toolkit.representations.written import DTYPES, UnfinishedFeatures, delete_features, epoch_folders, images_hash
from toolkit.reproducibility import full_precision
from toolkit.validation import check_choice, invalid

__all__ = ["FeatureMapWriter"]

#: Strategies that split a model's weights over processes, so that none of them can run it alone.
_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
#: The largest number that float16 holds.
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class FeatureMapWriter(L.Callback):
    """Write what a layer gives for every image to disk while the model is trained, for selectors to read afterwards.

    After an epoch all images are run through the module, in the order of their data set, and the hooked layer's feature
    maps go to a folder of that epoch, pooled to vectors (N, D):

    | file                        | what                                                                     |
    |-----------------------------|--------------------------------------------------------------------------|
    | `epoch=0004/features.npy`   | the vectors, to be opened with `numpy.load(..., mmap_mode="r")`          |
    | `epoch=0004/manifest.json`  | layer, pooling, epoch, step, shape, dtype, checksum, which images        |

    `toolkit.representations.WrittenFeatures` reads such a folder. Training images are all of them, those that a
    `PrunedDataModule` removes too, without augmentation wherever somebody can tell how to switch it off. Nothing is
    logged.

    Training is not touched: the module itself is run, as Lightning does in validation (a copy would take its memory
    twice, and modules that hold losses cannot be copied), in evaluation mode, without gradients, uncompiled, without
    TF32 and autocast; then each submodule's mode, all buffers and the random state of Python, NumPy, PyTorch and the
    data's own generators are as before, and the hook is gone, also after an exception. Before the first epoch two
    images are run, so that a layer which does not fit is told at once.

    A folder appears whole or not at all; features of the same epoch from before are replaced. In a distributed run each
    process takes every n-th batch and rank 0 writes, so memory is that of one batch of each process.

    Args:
        layer: The layer to hook, by its name in `named_modules()` or a unique ending of it; or its place, as a whole
            number, in a network that is a sequence of layers (-1 is the last).
        dirpath: The folder to write into; by default `features/<layer>` in the logger's folder, or in the trainer's
            `default_root_dir` where nothing is logged. Each writer needs a folder of its own.
        every_n_epochs: Write after each n-th epoch; also after the last one.
        split: Whose images: `train`, or `val` (of several validation loaders, the first).
        pool: What to make of a feature map. `mean`: (N, C, H, W) to (N, C), and tokens (N, T, C) to (N, C).
            `flatten`: every value, (N, C * H * W).
        dtype: What to store: `float16` (2 bytes a number, three decimal digits, up to 65504) or `float32`.
        keep_last: How many epochs' folders of this run to keep, the last written; all if None.
        batch_size: Images a batch.
        num_workers: Worker processes to load with; those of the data's own loader if None.
        input_key: The key of the images where batches are dictionaries, if it is an unusual one.
        progress: Whether to show a progress bar.

    Raises:
        MisconfigurationException: In `setup`, if a setting is out of its range, the layer is unknown (the message lists
            the closest), the folder cannot be written to, holds something else or is another writer's, there are no
            validation images, or weights are split over processes; before the first epoch, if the layer does not give
            one row an image.
        ValueError: After an epoch, if features are not finite or too large for float16.
        OSError: After an epoch, if they cannot be written.

    References:
        Raud, "Dataset filtering for image classification and object detection models", TalTech 2023: feature maps of
        any layer, taken with a forward hook.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from toolkit.representations import WrittenFeatures
        >>> folder = tempfile.mkdtemp()
        >>> trainer = L.Trainer(callbacks=[FeatureMapWriter("layer", folder)], max_epochs=2, limit_val_batches=0,
        ...     logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        >>> trainer.fit(BoringModel())
        >>> WrittenFeatures(folder).manifest.epoch, WrittenFeatures(folder).vectors(None).shape
        (1, (64, 2))
    """

    def __init__(
        self,
        layer: str | int = "avgpool",
        dirpath: str | Path | None = None,
        *,
        every_n_epochs: int = 1,
        split: str = "train",
        pool: str = "mean",
        dtype: str = "float16",
        keep_last: int | None = None,
        batch_size: int = 256,
        num_workers: int | None = None,
        input_key: str | None = None,
        progress: bool = False,
    ) -> None:
        self.layer = layer
        self.dirpath = dirpath
        self.every_n_epochs = every_n_epochs
        self.split = split
        self.pool = pool
        self.dtype = dtype
        self.keep_last = keep_last
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.input_key = input_key
        self.progress = progress
        self._folder = Path()
        #: Names this run, so that of several in one folder each deletes its own features alone.
        self._run = ""
        #: The epoch that ended last, as long as it is not written.
        self._unwritten: int | None = None

    @property
    def state_key(self) -> str:
        """Tells writers of one trainer apart in its checkpoints."""
        return self._generate_state_key(
            layer=self.layer, dirpath=str(self.dirpath), split=self.split, pool=self.pool, dtype=self.dtype
        )

    def state_dict(self) -> dict[str, Any]:
        """The name of the run, so that a resumed run goes on with it."""
        return {"run": self._run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the run of a checkpoint."""
        self._run = state_dict["run"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse settings, layers and folders that would fail later."""
        if stage != "fit":
            return
        self._unwritten = None
        with _as_misconfiguration():
            self._check_settings()
            self._check_layer(pl_module)
        self._check_trainer(trainer)
        self._folder = self._folder_of(trainer)
        for other in cast("list[L.Callback]", trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(other, FeatureMapWriter) and other is not self and other._folder_of(trainer) == self._folder:
                raise MisconfigurationException(
                    f"`dirpath` must be a folder for each FeatureMapWriter, got {str(self._folder)!r} for two."
                )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("FeatureMapWriter writes nothing in a `fast_dev_run`.")
            return
        with _as_misconfiguration():
            on_rank_zero(self._check_folder)
        self._run = on_rank_zero(lambda: uuid.uuid4().hex)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run two images, so that a layer which does not fit is told before the first epoch."""
        if any(is_lazy(tensor) for tensor in (*pl_module.parameters(), *pl_module.buffers())):
            return  # The first batch of training is what gives them their shapes.
        with _untouched(trainer, pl_module), _as_misconfiguration():
            together(lambda: self._try_out(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's features, if it is one of those to write."""
        self._unwritten = trainer.current_epoch
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last epoch's features, if they are not written yet."""
        if self._unwritten is not None:
            self._write(trainer, pl_module, self._unwritten)

    def _check_settings(self) -> None:
        check_choice("pool", self.pool, POOLS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("split", self.split, SPLITS)
        for name, least, can_be_none in (
            ("every_n_epochs", 1, False),
            ("batch_size", 1, False),
            ("keep_last", 1, True),
            ("num_workers", 0, True),
        ):
            value = getattr(self, name)
            if can_be_none and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise invalid(name, f"an integer of at least {least}{', or None' if can_be_none else ''}", value)

    def _check_layer(self, pl_module: L.LightningModule) -> None:
        try:
            find_layer(pl_module, self.layer)
        except ValueError:
            # Layers made in these hooks are not there yet; `on_train_start` looks for them.
            if not any(is_overridden(name, pl_module) for name in ("setup", "configure_model")):
                raise

    def _check_trainer(self, trainer: L.Trainer) -> None:
        if isinstance(trainer.strategy, _SHARDED):
            raise MisconfigurationException(
                "The trainer's strategy must keep the whole model on each process for FeatureMapWriter, got "
                f"{type(trainer.strategy).__name__}."
            )
        if self.split == "val" and not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
            raise MisconfigurationException("`split` must be 'train' where there are no validation images, got 'val'.")

    def _folder_of(self, trainer: L.Trainer) -> Path:
        if self.dirpath is not None:
            return Path(self.dirpath).expanduser().resolve()
        name = str(self.layer) + ("" if self.split == "train" else f"-{self.split}")
        name += "" if self.pool == "mean" else f"-{self.pool}"
        return Path(trainer.log_dir or trainer.default_root_dir).resolve() / "features" / name.replace("/", "_")

    def _check_folder(self) -> None:
        check_writable(self._folder, "dirpath")
        try:
            epoch_folders(self._folder)
        except (FileNotFoundError, ValueError) as error:
            raise invalid("dirpath", f"a folder without epochs of others ({error})", str(self._folder)) from error

    def _try_out(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        view = evaluation_view_of(trainer, self.split)
        if len(view) == 0:
            raise invalid("split", "one with at least one image", self.split)
        if world()[0] == 0 and view.is_random():
            rank_zero_warn(
                "Reading the same images twice gives different ones, and the data module does not tell how to switch "
                "that off: features will be of randomly augmented images. Give the data module a method "
                "`evaluation_dataset()` that returns its training images without augmentation.",
                category=RandomAugmentationWarning,
            )
        list(self._blocks(pl_module, view, [range(min(2, len(view)))], num_workers=0))

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int) -> None:
        self._unwritten = None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with _untouched(trainer, pl_module):
            view = together(lambda: evaluation_view_of(trainer, self.split))
            unfinished = UnfinishedFeatures(self._folder / f"epoch={epoch:04d}", self._run, len(view), self.dtype)
            try:
                self._fill(unfinished, pl_module, view, epoch)
                on_rank_zero(lambda: self._publish(unfinished, trainer, pl_module, view, epoch))
            finally:
                if world()[0] == 0:
                    unfinished.discard()

    def _fill(
        self, unfinished: UnfinishedFeatures, pl_module: L.LightningModule, view: EvaluationView, epoch: int
    ) -> None:
        """Run all images, each process its batches, and let rank 0 append what comes of them in order."""
        rank, size = world()
        starts = range(0, len(view), self.batch_size)
        batches = [range(start, min(start + self.batch_size, len(view))) for start in starts]
        workers = view.num_workers if self.num_workers is None else self.num_workers
        bar = tqdm(
            total=len(view), unit="img", desc=f"features of epoch {epoch}", disable=not self.progress or rank != 0
        )

        def append(blocks: Sequence[npt.NDArray[Any] | None]) -> None:
            for block in blocks:
                if block is not None:  # A process that has no batch left in the last round.
                    unfinished.append(block)
                    bar.update(len(block))

        with bar, closing(self._blocks(pl_module, view, batches[rank::size], workers)) as own:
            for _ in range(-(-len(batches) // size)):
                # Errors are told to all at each step, so that nobody waits for a process that has stopped.
                blocks = gather_objects(together(lambda: next(own, None)))
                on_rank_zero(lambda blocks=blocks: append(blocks))  # type: ignore[misc]

    def _blocks(
        self, pl_module: L.LightningModule, view: EvaluationView, batches: Sequence[range], num_workers: int
    ) -> Generator[npt.NDArray[Any]]:
        """The vectors of some batches, batch by batch, as they are to be stored."""
        device = view.device or torch.device("cpu")
        weights = next((p.dtype for p in pl_module.parameters() if p.is_floating_point()), torch.float32)
        loader: DataLoader[Any] = DataLoader(
            view.dataset,  # not the view, whose batch transform workers do not need and may not be able to get
            batch_sampler=[list(batch) for batch in batches],
            num_workers=num_workers,
            collate_fn=ImageCollate(view.collate_fn or default_collate, None),
            pin_memory=device.type == "cuda",
        )
        waiting: tuple[torch.Tensor, torch.Tensor] | None = None
        done = 0
        with tapped(pl_module, self.layer, self.pool) as tap:
            for batch in loader:
                if view.batch_transform is not None:
                    batch = view.batch_transform(batch, device)
                images = images_of(batch, self.input_key).to(device, non_blocking=True)
                images = images if images.is_floating_point() else images.float() / 255
                # Not in inference mode: what a layer stores on its first run would be of no use to training.
                with torch.no_grad():
                    pl_module(images.to(weights))
                    rows = tap(len(images))
                    fetched, waiting = waiting, (rows.to(getattr(torch, self.dtype)), rows.abs().amax())
                # The batch before this one is fetched only now, so that a GPU never waits for it.
                if fetched is not None:
                    yield self._checked(*fetched, batches[done])
                    done += 1
            if waiting is not None:
                yield self._checked(*waiting, batches[done])

    def _checked(self, rows: torch.Tensor, largest: torch.Tensor, batch: range) -> npt.NDArray[Any]:
        """One batch's vectors on the CPU, if they are finite and what is stored is too."""
        values: npt.NDArray[Any] = rows.cpu().numpy()
        most = float(largest)
        if not np.isfinite(most):
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            raise ValueError(
                f"`features` must be finite, got NaN or infinite values of layer {self.layer!r} for {len(bad)} of "
                f"{len(values)} images of a batch, the first at index {batch[int(bad[0])]}."
            )
        if self.dtype == "float16" and most > _FLOAT16_MAX:
            raise invalid(
                "dtype",
                f"'float32' for features as large as {most:.6g}, layer {self.layer!r}: float16 ends at 65504",
                self.dtype,
            )
        return values

    def _publish(
        self,
        unfinished: UnfinishedFeatures,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        view: EvaluationView,
        epoch: int,
    ) -> None:
        unfinished.publish(
            layer=find_layer(pl_module, self.layer)[0],
            pool=self.pool,
            split=self.split,
            model=type(pl_module).__name__,
            epoch=epoch,
            global_step=trainer.global_step,
            dataset=dataset_fingerprint(view.dataset),
            images=images_hash(view.dataset),
        )
        if self.keep_last is not None:
            own = [path for path, manifest in epoch_folders(self._folder) if manifest.run == self._run]
            for path in own[: -self.keep_last]:
                delete_features(path)


@contextmanager
def _untouched(trainer: L.Trainer, module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode and run uncompiled; its state and the random state are then as they were."""
    with untouched_data(trainer), full_precision(), torch.compiler.set_stance("force_eager"), evaluating(module):
        yield


@contextmanager
def _as_misconfiguration() -> Iterator[None]:
    """Errors of settings and folders as Lightning's own."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise MisconfigurationException(str(error)) from error
