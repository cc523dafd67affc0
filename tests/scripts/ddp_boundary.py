"""Fit with a DecisionBoundaryMonitor on two processes, then with a model that fails on one. Run by its tests.

python ddp_boundary.py OUTPUT_FOLDER
"""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from toolkit.callbacks import DecisionBoundaryMonitor


class Data(L.LightningDataModule):
    def train_dataloader(self):
        pixels = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(pixels, torch.arange(60) % 3), batch_size=6)


class Model(L.LightningModule):
    """Does not learn, so that any number of processes ends with the same weights."""

    def __init__(self, broken=False):
        super().__init__()
        self.broken = broken
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.linear = nn.Linear(4, 3)
        self.probed = 0  # images seen in evaluation

    def forward(self, images):
        if self.broken and not self.training and self.global_rank == 1:
            raise ValueError("broken on rank one")
        self.probed += 0 if self.training else len(images)
        return self.linear(self.avgpool(images).flatten(1)) * 5

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, n_processes, broken=False):
    torch.manual_seed(0)
    model = Model(broken)
    monitor = DecisionBoundaryMonitor(23, "avgpool", num_points=5, num_pictured=5)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=n_processes,
        strategy="ddp" if n_processes > 1 else "auto",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=Data())
    written = {
        "pairs": [monitor.pairs.first.tolist(), monitor.pairs.second.tolist()],
        "classes": monitor.report.classes,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "probed": model.probed,
    }
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(written))


def fail(folder):
    folder.mkdir(exist_ok=True)
    try:
        fit(folder, 2, broken=True)
    except (RuntimeError, ValueError) as error:
        (folder / f"error{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(str(error)))


if __name__ == "__main__":
    fit(Path(sys.argv[1]), 2)
    fail(Path(sys.argv[1]) / "broken")
