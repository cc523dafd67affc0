"""A tiny model and data whose images can be told from each other, for what chooses images while training."""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from toolkit.models import ImageClassifier

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Data(L.LightningDataModule):
    """Images (N, 1, 2, 2) whose first pixel is their index; a third of each class is easy to tell."""

    def __init__(self, n_images=24, batch_size=4, **loader):
        super().__init__()
        self.loader = {"batch_size": batch_size, "shuffle": True, **loader}
        labels = torch.arange(n_images) % 2
        pixels = torch.rand(n_images, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        pixels[:, 0, 0, 0] = torch.arange(n_images)
        pixels[:, 0, 1, 1] = torch.where(torch.arange(n_images) % 3 == 0, 4.0 * labels - 2.0, 0.0)
        self.dataset = TensorDataset(pixels, labels)

    def train_dataloader(self):
        return DataLoader(self.dataset, **self.loader)

    def val_dataloader(self):
        return DataLoader(self.dataset, batch_size=8)


class Network(nn.Module):
    """Does not look at the pixel that tells images from each other."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, images):
        return self.linear(images.flatten(1)[:, 1:])


class Model(ImageClassifier):
    """Notes which images it is trained on, with which weights, at which learning rate."""

    def __init__(self, **settings):
        super().__init__(Network(), num_classes=2, **{"learning_rate": 0.5, **settings})
        self.epochs, self.weights, self.rates = [], [], []

    def on_train_epoch_start(self):
        self.epochs.append([])
        self.weights.append({})

    def training_step(self, batch, batch_idx):
        indices = batch[0][:, 0, 0, 0].int().tolist()
        self.epochs[-1].append(indices)
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        weights = [1.0] * len(indices) if self.sample_weights is None else self.sample_weights.tolist()
        self.weights[-1] |= dict(zip(indices, weights, strict=True))
        return super().training_step(batch, batch_idx)

    def images(self):
        """The images of each epoch."""
        return [[index for batch in epoch for index in batch] for epoch in self.epochs]


class Plain(L.LightningModule):
    """A model that neither weights losses nor gives logits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.linear(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self.linear(batch[0].flatten(1)), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
