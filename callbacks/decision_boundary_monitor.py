"""Where a model changes its mind between training images, watched while it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parameter import is_lazy

from toolkit.boundary.curves import plot_boundary_curves
from toolkit.boundary.evaluation import PRECISIONS
from toolkit.boundary.pairs import STRATA, PathPairs, check_draw, codes_of, draw_pairs
from toolkit.boundary.path_table import PathTable, rows_of
from toolkit.boundary.paths import check_paths
from toolkit.boundary.probing import PairWalker, draw_paths
from toolkit.boundary.report import BoundaryReport
from toolkit.boundary.strata import METRICS, redundancy_limit, summarise
from toolkit.cache import check_writable
from toolkit.datasets import ids_of
from toolkit.distributed import gather_objects, on_rank_zero, share, together, world
from toolkit.lightning_views import evaluation_view_of, untouched_data
from toolkit.representations import EvaluationView, Representation
from toolkit.representations.base import images_of
from toolkit.representations.feature_map import find_layer
from toolkit.selection import Selection
from toolkit.validation import check_choice, invalid

from .image_logging import send_image, takes_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DecisionBoundaryMonitor"]

#: Strategies that spread one model's weights over processes, which cannot run it one process at a time.
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class DecisionBoundaryMonitor(L.Callback):
    """Watch, while a model trains, where it changes its mind between pairs of training images.

    The pairs are drawn once (`toolkit.boundary.draw_pairs`): images that a `PrunedDataModule` removes and those kept in
    their place, near and far images of one class, near images of two classes, any two images. After every
    `every_n_epochs`-th epoch and the last, the straight path between the two images of each pair is
    walked (`toolkit.boundary.probe_paths`), without augmentation, in evaluation mode. Training is not touched: its
    losses are the same, bit for bit, with and without this callback. A model with lazy layers is looked at after the
    first epoch for the first time.

    | key | of the kind's paths |
    |---|---|
    | `boundary/{kind}/crossing_rate` | share with a crossing, where the predicted class changes |
    | `boundary/{kind}/crossings_mean` | crossings a path |
    | `boundary/{kind}/reentry_rate` | share that comes back to a class it has left |
    | `boundary/{kind}/first_crossing_mean` | where the first crossing is, 0 to 1, of those with one; NaN without any |
    | `boundary/{kind}/margin_min_mean` | smallest margin (top minus second score) on a path; not with classes alone |
    | `boundary/{kind}/feature_distance_mean` | cosine dissimilarity of the ends' feature maps; with `layer` |
    | `boundary/redundant/still_redundant` | share whose dissimilarity is within the selection's; with `layer` |

    Kinds are `redundant`, `same_class_near`, `same_class_far`, `cross_class_near` and `random`. The keys can be
    monitored: `ModelCheckpoint(monitor="boundary/random/crossing_rate")`. The values before training go to the loggers
    as step 0.

    Into `dirpath` go `boundaries.csv` (a row a path and epoch; `epoch` is the number of epochs trained, 0 before
    training), `paths-epoch=0003.png` and, at the end, `curves.png`. Pictures also go to loggers that take them
    (TensorBoard, W&B, MLflow, Comet). A new run replaces what an earlier one left there. A checkpoint carries the pairs
    and the rates so far: a resumed run walks the identical paths, and goes on in the table if `dirpath` is the same.

    `still_redundant` compares with the selection's `threshold`, or else the largest distance of a removed image to the
    one kept for it; it is told where these are cosine dissimilarities of feature maps (`SemanticSelector`,
    `FeatureMapSelector`).

    Args:
        num_pairs: How many pairs to watch, over all kinds.
        layer: A layer whose feature maps of the pairs' images are compared too, by its name or a unique ending of it;
            or its place, as a whole number, in a network that is a sequence of layers (-1 is the last).
        num_points: Points of the regular grid on each path, both ends included.
        tolerance: The width, of the path's length 1, to which each crossing is bracketed.
        every_n_epochs: After how many epochs to look again.
        before_training: Whether to look before the first step too.
        strata: Which kinds of pairs. Those that the data does not allow are left out.
        features: A representation, or vectors of all images, that tells near from far; the images themselves if None.
        pool_size: Images, of all, among which near and far ones are looked for; they are read once, at the start.
        decision: Makes scores (B, C), or integer classes (B,), of what the model returns, where that is not logits.
        precision: "float32", or "bf16" for a faster, coarser look.
        batch_size: Images a forward.
        seed: Of the draw.
        dirpath: The folder to write into; `name` in the trainer's `log_dir`, or else `default_root_dir`, if None.
        picture: Whether to draw.
        num_pictured: Pairs in the picture of paths.
        name: The first part of the keys and the folder's name. Several monitors need different ones.
        input_key: The key of the images where batches are dictionaries, if it is an unusual one.

    Raises:
        MisconfigurationException: From `setup`, for arguments that are out of range, a layer that the model does not
            have, a model without `forward`, a folder that cannot be written to, or another monitor of this name; at the
            start, if labels are no classes of the model, or a checkpoint's pairs are from other data.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, section 5.3, walks
        between images of a trained model. Here the same is told of a model while it learns.

    Example:
        >>> monitor = DecisionBoundaryMonitor(num_pairs=64, every_n_epochs=5)
        >>> trainer = L.Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> monitor.history
        []
    """

    def __init__(
        self,
        num_pairs: int = 256,
        layer: str | int | None = None,
        *,
        num_points: int = 17,
        tolerance: float = 1e-2,
        every_n_epochs: int = 1,
        before_training: bool = True,
        strata: Sequence[str] = STRATA,
        features: Representation | Any = None,
        pool_size: int = 10_000,
        decision: Callable[[Any], Tensor] | None = None,
        precision: str = "float32",
        batch_size: int = 256,
        seed: int = 0,
        dirpath: str | Path | None = None,
        picture: bool = True,
        num_pictured: int = 24,
        name: str = "boundary",
        input_key: str | None = None,
    ) -> None:
        self.num_pairs = num_pairs
        self.layer = layer
        self.num_points = num_points
        self.tolerance = tolerance
        self.every_n_epochs = every_n_epochs
        self.before_training = before_training
        self.strata = strata
        self.features = features
        self.pool_size = pool_size
        self.decision = decision
        self.precision = precision
        self.batch_size = batch_size
        self.seed = seed
        self.dirpath = dirpath
        self.picture = picture
        self.num_pictured = num_pictured
        self.name = name
        self.input_key = input_key
        #: The pairs, once they are drawn.
        self.pairs: PathPairs | None = None
        #: What was found last.
        self.report: BoundaryReport | None = None
        #: One dictionary for each look and kind of pairs: `epoch`, and what `toolkit.boundary.summarise` tells.
        self.history: list[dict[str, Any]] = []
        self._n_images: int | None = None
        self._restored = False
        #: The last epoch, if nobody has looked at the model since.
        self._unseen: int | None = None
        self._folder: Path | None = None
        self._keys: tuple[str, ...] = ()
        self._walker: PairWalker | None = None
        self._selection: Selection | None = None

    @property
    def state_key(self) -> str:
        """Tells monitors of different names apart in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """The pairs and the rates so far."""
        return {
            "pairs": None if self.pairs is None else self.pairs.state_dict(),
            "n_images": self._n_images,
            "history": [dict(row) for row in self.history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the pairs and the rates of a checkpoint."""
        self.pairs = None if state_dict["pairs"] is None else PathPairs.from_state_dict(state_dict["pairs"])
        self._n_images = state_dict["n_images"]
        self.history = [dict(row) for row in state_dict["history"]]
        self._restored = self.pairs is not None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before the first epoch."""
        if stage != "fit":
            return
        self._folder = None
        try:
            self._check()
            if self.layer is not None and not is_overridden("configure_model", pl_module):
                find_layer(pl_module, self.layer)
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(str(error)) from error
        if type(pl_module).forward is L.LightningModule.forward:
            raise MisconfigurationException(
                f"{type(pl_module).__name__} must have a `forward` from images to logits, got none: paths are walked "
                "by calling the module."
            )
        if type(trainer.strategy).__name__ in _SHARDED:
            raise MisconfigurationException(
                "`strategy` must keep the whole model on each device for DecisionBoundaryMonitor, got "
                f"{type(trainer.strategy).__name__}."
            )
        folder = self._folder_for(trainer)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, DecisionBoundaryMonitor) and other is not self:
                if other.name == self.name:
                    raise MisconfigurationException(
                        f"`name` must be another for each monitor, got {self.name!r} twice."
                    )
                if other._folder_for(trainer) == folder:
                    raise MisconfigurationException(
                        f"`dirpath` must be another for each monitor, got {str(folder)!r} twice."
                    )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"{self.name}: a quick try walks few paths and writes no files.")
            return
        try:
            on_rank_zero(lambda: self._check_folder(folder))
        except (OSError, ValueError) as error:
            raise MisconfigurationException(str(error)) from error
        self._folder = folder
        if not trainer.loggers:
            rank_zero_info(f"{self.name}: there is no logger, so rates and pictures are in {folder} only.")
        elif self.picture and not any(takes_images(logger) for logger in trainer.loggers):
            rank_zero_info(f"{self.name}: no logger takes pictures, so they are in {folder} only.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the pairs, and look at the untrained model."""
        # What has no shape yet gets it from the first batch of training, and its first values with it.
        is_lazy_module = any(map(is_lazy, (*pl_module.parameters(), *pl_module.buffers())))
        with _apart(trainer):
            self._begin(trainer, pl_module, can_run=not is_lazy_module)
            if self.before_training and not is_lazy_module and trainer.global_step == 0 and not self.history:
                values = self._look(trainer, pl_module, epoch=0, step=0)
                # For whoever monitors a key before the first look after an epoch.
                trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the model after every n-th epoch and the last."""
        epoch = trainer.current_epoch + 1
        self._unseen = epoch
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        self._unseen = None
        with _apart(trainer):
            values = self._look(trainer, pl_module, epoch, step=max(0, trainer.global_step - 1))
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1, "sync_dist": world()[1] > 1}
        pl_module.log_dict(values, **options)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look once more where steps, time or early stopping ended the training; draw how the rates changed."""
        step = max(0, trainer.global_step - 1)
        if self._unseen is not None:
            with _apart(trainer):
                values = self._look(trainer, pl_module, self._unseen, step)
            self._unseen = None
            # Modules can log no more.
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)
        if self._folder is None or not self.picture or not self.history:
            return
        path = self._folder / "curves.png"
        with _apart(trainer):
            on_rank_zero(
                lambda: self._draw(trainer, "curves", path, step, lambda: plot_boundary_curves(self.history, before=0))
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the images."""
        self._walker = self._selection = None

    def _check(self) -> None:
        """Refuse arguments that are out of range."""
        if self.layer is not None and (isinstance(self.layer, bool) or not isinstance(self.layer, (int, str))):
            raise TypeError(f"`layer` must be a text, a whole number or None, got {self.layer!r}.")
        if self.input_key is not None and not isinstance(self.input_key, str):
            raise TypeError(f"`input_key` must be a text or None, got {self.input_key!r}.")
        if self.dirpath is not None and not isinstance(self.dirpath, (str, Path)):
            raise TypeError(f"`dirpath` must be a path or None, got {self.dirpath!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)):
            raise TypeError(f"`seed` must be a whole number, got {self.seed!r}.")
        if self.seed < 0:
            raise invalid("seed", "at least 0", self.seed)
        check_draw(self.num_pairs, self.strata, self.pool_size)
        check_paths(self.num_points, self.tolerance)
        for name in ("every_n_epochs", "batch_size", "num_pictured"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
            if value < 1:
                raise invalid(name, "at least 1", value)
        check_choice("precision", self.precision, PRECISIONS)
        if self.decision is not None and not callable(self.decision):
            raise TypeError(f"`decision` must be a function, got {self.decision!r}.")
        if not isinstance(self.name, str) or not self.name or self.name != Path(self.name).name:
            raise invalid("name", "a text that can name a folder", self.name)

    def _folder_for(self, trainer: L.Trainer) -> Path:
        return Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / self.name)

    def _check_folder(self, folder: Path) -> None:
        check_writable(folder, "dirpath")
        PathTable(folder / "boundaries.csv").check()

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule, can_run: bool) -> None:
        """Have the pairs, and the files as the epochs done so far left them."""
        view = _picked(evaluation_view_of(trainer), self.input_key)
        selection = getattr(trainer.datamodule, "selection", None)  # type: ignore[attr-defined]
        self._selection = selection if isinstance(selection, Selection) else None
        is_new = not self._restored and trainer.global_step == 0
        if is_new:
            self.pairs, self.history = None, []
        self._restored = False
        self.history = [row for row in self.history if row["epoch"] <= trainer.current_epoch]
        labels = together(lambda: codes_of(view, self._selection))
        if self.pairs is None:
            quick = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
            self.pairs = self._drawn(view, labels, quick)
        elif self._n_images != len(view):
            raise MisconfigurationException(
                f"The training data changed: the pairs of the checkpoint are from {self._n_images} images, the data "
                f"set now has {len(view)}."
            )
        self._n_images = len(view)
        self._walker = PairWalker(
            view,
            self.pairs,
            num_points=self.num_points,
            tolerance=self.tolerance,
            layer=self.layer,
            decision=self.decision,
            precision=self.precision,
            batch_size=self.batch_size,
        )
        if can_run:
            together(lambda: self._check_classes(pl_module, labels))
        if self._folder is not None:
            on_rank_zero(lambda: self._clean(is_new))

    def _drawn(self, view: EvaluationView, labels: Any, quick: bool) -> PathPairs:
        """The pairs, the same on all ranks."""
        pairs = together(
            lambda: draw_pairs(
                view,
                selection=self._selection,
                labels=labels,
                num_pairs=2 * len(self.strata) if quick else self.num_pairs,
                strata=self.strata,
                features=self.features,
                pool_size=min(256, self.pool_size) if quick else self.pool_size,
                seed=self.seed,
            )
        )
        # Rounding may differ between machines, and with it which of two images is the nearest.
        pairs = gather_objects(pairs)[0]
        counts = ", ".join(f"{count} {name}" for name, count in pairs.counts().items())
        missing = [name for name in self.strata if name not in pairs.strata]
        more = f"; the data has no pairs of the kinds {', '.join(missing)}" if missing else ""
        rank_zero_info(f"{self.name}: walking the paths of {len(pairs)} pairs of images ({counts}{more})")
        return pairs

    def _check_classes(self, pl_module: L.LightningModule, labels: Any) -> None:
        """Refuse a model that cannot be asked, or labels that are none of its classes."""
        assert self._walker is not None
        scores = self._walker.scores(pl_module)
        if self.decision is None and labels is not None:
            wrong = labels[(labels < 0) | (labels >= scores.shape[1])]
            if len(wrong):
                raise MisconfigurationException(
                    f"The labels must be classes of the model, 0 to {scores.shape[1] - 1}, got {int(wrong[0])}. Give "
                    "`decision` if its output is to be read in another way."
                )

    def _clean(self, is_new: bool) -> None:
        """Remove what an earlier run left, or of epochs that are done again."""
        assert self._folder is not None
        epochs = {row["epoch"] for row in self.history}
        PathTable(self._folder / "boundaries.csv").keep(epochs)
        for path in self._folder.glob("paths-epoch=*.png"):
            number = path.stem.rpartition("=")[2]
            if is_new or (number.isdigit() and int(number) not in epochs):
                path.unlink()

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int, step: int) -> dict[str, float]:
        """Walk all paths, each rank its share, and write what was found.

        Returns:
            What to log, by key. Where the model gives NaN, which is for others to deal with, all of it is NaN.
        """
        assert self.pairs is not None
        assert self._walker is not None
        walker, pairs = self._walker, self.pairs
        start, stop = share(len(pairs), 1)
        parts = gather_objects(together(lambda: _walked(walker, pl_module, start, stop)))
        broken = next((part for part in parts if isinstance(part, str)), None)
        if broken is not None:
            warnings.warn(f"{self.name}: paths {_when(epoch)} could not be walked. {broken}", stacklevel=2)
            return dict.fromkeys(self._keys, math.nan)
        walked = [part for part in parts if part is not None and not isinstance(part, str)]
        self.report = report = BoundaryReport.concatenate([part for part, _ in walked])
        distances = None if self.layer is None else np.concatenate([part for _, part in walked])
        summary = summarise(report, pairs, distances=distances, limit=redundancy_limit(self._selection))
        rows = [{"epoch": epoch, **row} for row in summary]
        self.history += rows
        if self._folder is not None:
            on_rank_zero(lambda: self._write(trainer, report, epoch, step))
        has_margins = not np.isnan(report.margin_min).all()
        keys = [name for name in METRICS if has_margins or name != "margin_min_mean"]
        keys += ["feature_distance_mean", "still_redundant"]
        values = {f"{self.name}/{row['stratum']}/{key}": row[key] for row in rows for key in keys if key in row}
        self._keys = tuple(values)
        return values

    def _write(self, trainer: L.Trainer, report: BoundaryReport, epoch: int, step: int) -> None:
        """Add to the table and draw; a full disk costs the files, not the training."""
        assert self._folder is not None
        assert self.pairs is not None
        assert self._walker is not None
        pairs, images, folder = self.pairs, self._walker.view.dataset, self._folder
        names = ids_of(images)
        id_of = str if names is None else names.__getitem__
        when = _when(epoch)
        try:
            rows = rows_of(report, pairs, id_of, epoch=epoch, step=trainer.global_step)
            PathTable(folder / "boundaries.csv").append(rows)
        except OSError as error:
            warnings.warn(f"{self.name}: crossings {when} could not be written ({error}).", stacklevel=2)
        if not self.picture:
            return
        known = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        classes = list(known) if isinstance(known, (list, tuple)) else None
        self._draw(
            trainer,
            "paths",
            folder / f"paths-epoch={epoch:04d}.png",
            step,
            lambda: draw_paths(report, pairs, images, class_names=classes, num_pictured=self.num_pictured, when=when),
        )

    def _draw(self, trainer: L.Trainer, what: str, path: Path, step: int, draw: Callable[[], Figure | None]) -> None:
        """A picture, if there is one, into a file and to the loggers that take it."""
        figure = draw()
        if figure is None:
            return
        try:
            figure.savefig(path, dpi=120)
        except OSError as error:
            warnings.warn(f"{self.name}: {path} could not be written ({error}).", stacklevel=2)
            return
        for logger in trainer.loggers:
            send_image(logger, f"{self.name}/{what}", path, step)


@contextmanager
def _apart(trainer: L.Trainer) -> Iterator[None]:
    """Work on the side: random state is as before afterwards, and a compiled model is run as it was written.

    Other sizes of batches would make it compile anew, and from then on differently for training too.
    """
    with untouched_data(trainer), torch.compiler.set_stance("force_eager"):
        yield


def _picked(view: EvaluationView, input_key: str | None) -> EvaluationView:
    """A view whose batches are the images that have this key, or the view as it is without one."""
    if input_key is None:
        return view

    def images_only(batch: Any, device: torch.device) -> Tensor:
        return images_of(view.batch_transform(batch, device) if view.batch_transform else batch, input_key)

    return EvaluationView(
        view.dataset,
        batch_transform=images_only,
        collate_fn=view.collate_fn,
        num_workers=view.num_workers,
        device=view.device,
    )


def _walked(walker: PairWalker, model: L.LightningModule, start: int, stop: int) -> Any:
    """What was found on some paths, or why the model cannot be asked any more: a training that diverged."""
    try:
        return walker(model, start, stop)
    except ValueError as error:
        if all(parameter.isfinite().all() for parameter in [*model.parameters(), *model.buffers()]):
            raise
        return str(error)


def _when(epoch: int) -> str:
    return "before training" if epoch == 0 else f"after {epoch} {'epoch' if epoch == 1 else 'epochs'}"
