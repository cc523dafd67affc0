"""How hard each image is to learn, collected while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from toolkit.cache import check_writable
from toolkit.distributed import gather_objects, on_rank_zero
from toolkit.fingerprint import dataset_fingerprint
from toolkit.lightning_views import global_seed, replaced_loader, resampled_loader, training_images
from toolkit.sampling import EpochSampler
from toolkit.training_scores import ScoreCounter, el2n_epochs, error_norms, save_scores
from toolkit.validation import invalid

__all__ = ["TrainingScoreWriter"]


class TrainingScoreWriter(L.Callback):
    """Write two scores of every training image when the training ends: EL2N, and how often it was forgotten.

    | score        | what                                                                                        |
    |--------------|---------------------------------------------------------------------------------------------|
    | `el2n`       | mean of the error vector's norm, `|softmax(logits) - onehot|`, over some early epochs         |
    | `forgetting` | how often the image was classified wrongly after it was right; infinite if it never was right |

    Both come from the training steps themselves, on the images as they are trained on, so that they cost next to
    nothing: no image goes through the network once more, and no step waits. `toolkit.ScoreSelector` chooses by them.

    The training loader must be one of shuffled images; they are shuffled by a seed of this callback's own. The model
    must return its `logits` (N, classes) of the batch from `training_step`, beside the loss, as
    `toolkit.models.ImageClassifier` does; batches are pairs of images and labels. Nothing is logged.

    Args:
        dirpath: The folder to write into; `scores` in the logger's folder, or in the trainer's `default_root_dir` where
            nothing is logged, if None.
        el2n_epochs: The epochs, counted from 0, that EL2N is the mean over; those from 5 % to 10 % of the training if
            None, or the second one where training is not limited by epochs.
        seed: Of the order of the images; that of `seed_everything`, or 0, if None.

    Raises:
        MisconfigurationException: In `setup`, if the training loader is not one of shuffled images; in training, if the
            model returns no logits.
        OSError: In `setup`, if the folder cannot be written to.

    References:
        Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training", arXiv
        2107.07075; there EL2N is the mean over ten networks, of images without augmentation. Toneva et al., "An
        Empirical Study of Example Forgetting during Deep Neural Network Learning", arXiv 1812.05159.

    Example:
        >>> import tempfile
        >>> from toolkit import ScoreSelector
        >>> from toolkit.datamodules import DigitsDataModule
        >>> from toolkit.models import ImageClassifier
        >>> folder = tempfile.mkdtemp()
        >>> trainer = L.Trainer(callbacks=[TrainingScoreWriter(folder)], max_epochs=1, accelerator="cpu", logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> datamodule = DigitsDataModule(batch_size=256)
        >>> trainer.fit(ImageClassifier("resnet20", in_channels=1), datamodule=datamodule)
        >>> len(ScoreSelector(folder, keep_fraction=0.5).select(datamodule.evaluation_dataset()).kept)
        674
    """

    def __init__(
        self, dirpath: str | Path | None = None, *, el2n_epochs: Sequence[int] | None = None, seed: int | None = None
    ) -> None:
        self.dirpath = dirpath
        self.el2n_epochs = el2n_epochs
        self.seed = seed
        self._counter: ScoreCounter | None = None
        self._stored: dict[str, torch.Tensor] = {}
        self._sampler: EpochSampler | None = None
        self._seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._folder = Path()
        self._images: str | None = None
        self._undo: Any = None

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far."""
        return {} if self._counter is None else {"counter": self._counter.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where a checkpoint was written."""
        self._stored = state_dict.get("counter", {})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the folder, and put a sampler that remembers its order into the training loader."""
        if stage != "fit":
            return
        if self.el2n_epochs is not None and (not self.el2n_epochs or min(self.el2n_epochs) < 0):
            raise MisconfigurationException(
                str(invalid("el2n_epochs", "epochs counted from 0", list(self.el2n_epochs)))
            )
        folder = (
            self.dirpath if self.dirpath is not None else Path(trainer.log_dir or trainer.default_root_dir) / "scores"
        )
        self._folder = on_rank_zero(lambda: check_writable(Path(folder), "dirpath"))
        self._counter = None
        self._undo = replaced_loader(trainer, lambda loader: self._resampled(trainer, loader))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the data as it was."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the model said of the batch."""
        logits = outputs.get("logits") if isinstance(outputs, dict) else None
        if logits is None or not (isinstance(batch, (tuple, list)) and len(batch) > 1) or len(logits) != len(batch[1]):
            raise MisconfigurationException(
                "`training_step` must return a dictionary with `logits`, a row for each image of a batch of images and "
                f"labels, got {type(outputs).__name__}."
            )
        assert self._sampler is not None
        labels = batch[1]
        # Kept on the device, so that no step waits for it.
        right = logits.detach().argmax(dim=1) == labels
        self._seen.append((self._sampler.take(len(labels)), error_norms(logits, labels), right))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the epoch, on all processes alike."""
        if not self._seen:
            return
        assert self._counter is not None
        indices, norms, right = (torch.cat(parts).cpu().numpy() for parts in zip(*self._seen, strict=True))
        self._seen = []
        counts = trainer.current_epoch in self._early(trainer)
        for theirs in gather_objects((indices, norms, right)):
            self._counter.add(*theirs, counts_for_el2n=counts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the scores."""
        counter, epochs = self._counter, list(self._early(trainer))
        if counter is not None:
            on_rank_zero(lambda: save_scores(self._folder, counter.scores(), images=self._images, epochs=epochs))

    def _early(self, trainer: L.Trainer) -> Sequence[int]:
        """The epochs that count for EL2N."""
        if self.el2n_epochs is not None:
            return self.el2n_epochs
        n_epochs = trainer.max_epochs
        if n_epochs in {None, -1}:
            batches = trainer.num_training_batches
            n_epochs = 2 if trainer.max_steps == -1 else max(1, int(trainer.max_steps / max(batches, 1)))
        return el2n_epochs(n_epochs or 1)

    def _resampled(self, trainer: L.Trainer, loader: Any) -> Any:
        n_images = len(loader.dataset)
        if self._counter is None or self._counter.n_images != n_images:
            self._counter = ScoreCounter(n_images)
            self._counter.load_state_dict(self._stored)
            owner = trainer.datamodule or trainer.lightning_module  # type: ignore[attr-defined]
            images = training_images(loader, getattr(owner, "datamodule", owner))
            self._images = dataset_fingerprint(images) if len(images) == n_images else None
        self._sampler = EpochSampler(n_images, global_seed() if self.seed is None else self.seed)
        self._sampler.set_epoch(trainer.current_epoch)
        return resampled_loader(loader, self._sampler)
