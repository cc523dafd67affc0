"""Train on some processes with a FeatureMapWriter. Run by test_feature_map_writer.py.

python write_features.py OUTPUT_FOLDER N_PROCESSES [model | disk]
"""

import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from toolkit.callbacks import FeatureMapWriter

N_IMAGES = 23


class Net(L.LightningModule):
    """Learns nothing, so that its features are the same however many processes there are."""

    def __init__(self, fails):
        super().__init__()
        self.conv, self.avgpool, self.linear = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)
        self.fails = fails

    def forward(self, x):
        if self.fails and self.global_rank == 1 and not self.training and self.global_step:
            raise RuntimeError("the model broke")
        return self.linear(self.avgpool(self.conv(x)).flatten(1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class InTheWay(L.Callback):
    """Puts a file where rank 0 is going to make its folder."""

    def on_train_epoch_start(self, trainer, pl_module):
        writer = next(callback for callback in trainer.callbacks if isinstance(callback, FeatureMapWriter))
        (Path(writer.dirpath) / f".unfinished-{writer.state_dict()['run']}").write_text("in the way")


def fit(folder, n_processes, broken=None):
    torch.manual_seed(0)
    pixels = torch.rand(N_IMAGES, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    writer = FeatureMapWriter("avgpool", folder, dtype="float32", batch_size=4, keep_last=1)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=n_processes,
        strategy="ddp" if n_processes > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[writer, InTheWay()] if broken == "disk" else [writer],
    )
    dataset = TensorDataset(pixels, torch.arange(N_IMAGES) % 3)
    trainer.fit(Net(broken == "model"), DataLoader(dataset, batch_size=8, shuffle=True))


if __name__ == "__main__":
    fit(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
