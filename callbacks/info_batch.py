"""InfoBatch: fewer of the images that are learned already, with larger gradients, while a model is trained."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from toolkit.distributed import gather_objects
from toolkit.lightning_views import global_seed, replaced_loader, resampled_loader
from toolkit.sampling import EpochSampler, LossSampler
from toolkit.validation import invalid

__all__ = ["InfoBatch"]


class InfoBatch(L.Callback):
    """Leave out, in each epoch, some of the images whose loss is below the mean, and weight the others of them.

    At the start of an epoch a random share r of the images whose last known loss is below the mean of all is left out;
    the losses of the rest of them are multiplied by 1 / (1 - r), so that the expected gradient is that of all images.
    The first epoch has all images, and so has, without weights, the last part of the training (annealing), in which no
    bias is left.

    Epochs get shorter, and all that counts their length sees it: loaders, progress bars, validation within an epoch.
    Where epochs limit the training, schedules that go on at every step are taken on as far as a whole epoch would, so
    that the learning rate ends where it should; where steps do, they are left alone. In a distributed run all processes
    leave out the same images, take as many steps, and know each other's losses.

    The model must have an attribute `sample_weights`, multiply the losses of a batch by it where it is a tensor (N,)
    rather than None, and return the unweighted ones (N,) from `training_step` as `losses`, as
    `toolkit.models.ImageClassifier` does.

    | logged            | what                                        | when                |
    |-------------------|---------------------------------------------|---------------------|
    | `info_batch/kept` | share of the images that the epoch has      | start of each epoch |

    Args:
        prune_ratio: In (0, 1): r.
        annealing: In [0, 1): the share of the training, at its end, that has all images.
        seed: Of what is left out; that of `seed_everything`, or 0, if None.

    Raises:
        ValueError: If a value is out of its range.
        MisconfigurationException: In `setup`, if the model cannot weight losses, or the training loader is not one of
            shuffled images.

    References:
        Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", arXiv 2303.04947: r = 0.5,
        pruning during the first 87.5 % of the epochs.

    Example:
        >>> InfoBatch(prune_ratio=0.5).prune_ratio
        0.5
    """

    def __init__(self, prune_ratio: float = 0.5, annealing: float = 0.125, seed: int | None = None) -> None:
        if not 0.0 < prune_ratio < 1.0:
            raise invalid("prune_ratio", "in (0, 1)", prune_ratio)
        if not 0.0 <= annealing < 1.0:
            raise invalid("annealing", "in [0, 1)", annealing)
        self.prune_ratio = prune_ratio
        self.annealing = annealing
        self.seed = seed
        self._losses: torch.Tensor | None = None
        self._sampler: EpochSampler | None = None
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._indices = torch.empty(0, dtype=torch.int64)
        self._undo: Any = None
        self._whole_length = 0
        self._reload_before = 0
        #: Steps that a schedule is ahead of the steps taken, in this epoch.
        self._ahead = 0

    def state_dict(self) -> dict[str, Any]:
        """The last known losses."""
        return {} if self._losses is None else {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the losses of a checkpoint."""
        self._losses = state_dict.get("losses")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the model, and put a sampler into the training loader."""
        if stage != "fit":
            return
        if not hasattr(pl_module, "sample_weights"):
            raise MisconfigurationException(
                f"The model must have an attribute `sample_weights` that its `training_step` multiplies losses by, got "
                f"{type(pl_module).__name__}. See toolkit.models.ImageClassifier."
            )
        connector: Any = trainer
        self._reload_before = connector.reload_dataloaders_every_n_epochs
        connector.reload_dataloaders_every_n_epochs = 1
        self._undo = replaced_loader(trainer, lambda loader: self._resampled(trainer, loader))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave trainer, data and model as they were."""
        if self._undo is not None:
            self._undo()
            self._undo = None
            trainer.reload_dataloaders_every_n_epochs = self._reload_before  # type: ignore[attr-defined]
            pl_module.sample_weights = None  # type: ignore[assignment]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell how much of the data the epoch has."""
        self._seen, self._ahead = [], 0
        assert self._sampler is not None
        pl_module.log(
            "info_batch/kept", self._sampler.n_chosen() / self._sampler.n_images, on_step=False, on_epoch=True
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the model the weights of the batch's images."""
        first = batch[0] if isinstance(batch, (tuple, list)) else batch
        assert isinstance(self._sampler, LossSampler)
        self._indices = self._sampler.take(len(first))
        weights = self._sampler.weights[self._indices].to(pl_module.device, non_blocking=True)
        pl_module.sample_weights = weights

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the losses, and take schedules on."""
        losses = outputs.get("losses") if isinstance(outputs, dict) else None
        if losses is None or len(losses) != len(self._indices):
            raise MisconfigurationException(
                "`training_step` must return a dictionary with `losses`, one for each image of the batch, got "
                f"{'none' if losses is None else len(losses)} for {len(self._indices)} images."
            )
        # Kept on the device, so that no step waits for it.
        self._seen.append((self._indices, losses.detach().float()))
        if trainer.max_epochs not in {None, -1} and trainer.max_steps == -1:
            self._take_schedules_on(trainer, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exchange the epoch's losses between processes."""
        assert self._sampler is not None
        pl_module.sample_weights = None  # type: ignore[assignment]
        if not self._seen:
            return
        indices = torch.cat([indices for indices, _ in self._seen])
        losses = torch.cat([losses for _, losses in self._seen]).cpu()
        if self._losses is None or len(self._losses) != self._sampler.n_images:
            self._losses = torch.full((self._sampler.n_images,), torch.nan)
        for theirs, values in gather_objects((indices, losses)):
            self._losses[theirs] = values

    def _resampled(self, trainer: L.Trainer, loader: Any) -> Any:
        n_images = len(loader.dataset)
        seed = global_seed() if self.seed is None else self.seed
        self._whole_length = len(resampled_loader(loader, LossSampler(None, n_images, self.prune_ratio, seed, 0)))
        losses = self._losses if self._prunes(trainer) else None
        if losses is not None and len(losses) != n_images:
            raise MisconfigurationException(
                f"The training set must be the one that the checkpoint knows losses of, {len(losses)} images, got "
                f"{n_images}."
            )
        if losses is not None:
            # An image that was not seen yet, as where the first epoch was cut short, is kept.
            losses = torch.where(losses.isnan(), torch.inf, losses)
            finite = losses[losses.isfinite()]
            losses = losses.clamp(max=float(finite.max())) if len(finite) else None
        self._sampler = LossSampler(losses, n_images, self.prune_ratio, seed, trainer.current_epoch)
        return resampled_loader(loader, self._sampler)

    def _prunes(self, trainer: L.Trainer) -> bool:
        """Whether the epoch that begins is not the first, and ends before the last part of the training."""
        if trainer.current_epoch == 0:
            return False
        shares = [0.0]
        if trainer.max_epochs not in {None, -1}:
            shares.append((trainer.current_epoch + 1) / max(trainer.max_epochs or 1, 1))
        if trainer.max_steps != -1:
            steps = self._whole_length // trainer.accumulate_grad_batches
            shares.append((trainer.global_step + steps) / max(trainer.max_steps, 1))
        return max(shares) <= 1 - self.annealing

    def _take_schedules_on(self, trainer: L.Trainer, batch_idx: int) -> None:
        """Let schedules that go on at every step go as far as the same share of a whole epoch would."""
        steps = self._whole_length // trainer.accumulate_grad_batches
        due = round((batch_idx + 1) * steps / trainer.num_training_batches)
        ahead = due - (batch_idx + 1) // trainer.accumulate_grad_batches
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau:
                for _ in range(ahead - self._ahead):
                    config.scheduler.step()  # type: ignore[call-arg]
        self._ahead = max(self._ahead, ahead)
