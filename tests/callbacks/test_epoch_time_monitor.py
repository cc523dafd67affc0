import csv
import time
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from toolkit.callbacks import EpochTimeMonitor


def logged(logger, key):
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


class Slow(BoringModel):
    """Trains for at least 0.1 s and validates for at least 0.3 s an epoch."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.05)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        time.sleep(0.3)


def trainer(monitor, logger, **options):
    return L.Trainer(
        accelerator="cpu",
        callbacks=[monitor],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def test_training_is_timed_without_validation_and_logged(tmp_path):
    monitor, logger = EpochTimeMonitor(), CSVLogger(tmp_path)
    start = time.perf_counter()
    trainer(monitor, logger, max_epochs=2, limit_train_batches=2, limit_val_batches=1, num_sanity_val_steps=1).fit(
        Slow()
    )
    whole = time.perf_counter() - start
    assert len(monitor.seconds) == 2
    assert all(seconds >= 0.1 for seconds in monitor.seconds)
    assert sum(monitor.seconds) <= whole - 2 * 0.3, "validation is not counted"
    assert logged(logger, "time/epoch_seconds") == monitor.seconds


def test_images_per_second_where_an_epoch_is_whole(tmp_path):
    monitor, logger = EpochTimeMonitor(), CSVLogger(tmp_path)
    loader = torch.utils.data.DataLoader(torch.rand(40, 32), batch_size=8)
    trainer(monitor, logger, max_epochs=1, limit_val_batches=0).fit(BoringModel(), loader)
    assert logged(logger, "time/images_per_second") == [40 / monitor.seconds[0]]
