"""Fit a pruned data module on some processes; each rank writes what it saw. Run by test_distributed.py.

python ddp_fit.py OUTPUT_FOLDER N_PROCESSES [broken]
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from toolkit import FeatureExtractor, SemanticSelector
from toolkit.datamodules import PrunedDataModule

N_IMAGES = 90


class Data(L.LightningDataModule):
    def setup(self, stage):
        pixels = torch.rand(N_IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.dataset = TensorDataset(pixels, torch.arange(N_IMAGES) % 3, torch.arange(N_IMAGES))

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=8, shuffle=True)


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(6, 3)
        self.seen = []

    def forward(self, images):
        return self.linear(self.avgpool(self.conv(images).relu()).flatten(1))

    def training_step(self, batch, batch_idx):
        self.seen += batch[2].tolist()
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        return torch.optim.SGD(self.parameters(), lr=0.01)


class BrokenOnRankZero(SemanticSelector):
    """Fails in the part that rank 0 does alone."""

    def _forest(self, *args, **kwargs):
        raise ValueError("broken on rank zero")


def main():
    folder, n_processes = Path(sys.argv[1]), int(sys.argv[2])
    kind = BrokenOnRankZero if "broken" in sys.argv else SemanticSelector
    torch.manual_seed(0)
    model = Model()
    features = FeatureExtractor(model, batch_size=8, progress=False, cache="cached" in sys.argv)
    selector = kind(features, 0.7, progress=False)
    datamodule = PrunedDataModule(Data(), selector, cache="cached" in sys.argv, cache_dir=folder / "cache")
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=n_processes,
        strategy="ddp" if n_processes > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=datamodule)
    written = {
        "kept": datamodule.selection.kept.tolist(),
        "distance": [str(value) for value in datamodule.selection.distance],
        "origin": datamodule.origin,
        "seen": model.seen,
        "total_steps": model.total_steps,
    }
    (folder / f"rank{trainer.global_rank}-of-{n_processes}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main()
