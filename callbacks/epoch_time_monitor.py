"""How long training epochs take, validation not counted."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
import torch


class EpochTimeMonitor(L.Callback):
    """Log how long each training epoch takes and how many images a second it trains on.

    The device is waited for at both ends of an epoch, and validation inside it is taken off.

    | key                      | unit     | when                |
    |--------------------------|----------|---------------------|
    | `time/epoch_seconds`     | seconds  | end of every epoch  |
    | `time/images_per_second` | images/s | end of every epoch  |

    Attributes:
        seconds: The duration of each epoch so far.

    Example:
        >>> import lightning.pytorch as L
        >>> monitor = EpochTimeMonitor()
        >>> trainer = L.Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> monitor.seconds
        []
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = self._paused = 0.0

    @staticmethod
    def _now(trainer: L.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = self._now(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock for validation."""
        self._paused = self._now(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let it go on."""
        self._start += self._now(trainer) - self._paused

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's time."""
        seconds = self._now(trainer) - self._start
        self.seconds.append(seconds)
        loader: Any = trainer.train_dataloader
        sampler = getattr(loader, "sampler", None)
        values = {"time/epoch_seconds": seconds}
        # A rank's sampler counts its own share; an epoch that was cut short by a limit has no known number of images.
        if sampler is not None and hasattr(sampler, "__len__") and trainer.num_training_batches == len(loader):
            values["time/images_per_second"] = len(sampler) * trainer.world_size / seconds
        if trainer.logger is not None:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
