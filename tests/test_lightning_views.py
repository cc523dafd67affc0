"""The images that a trainer's validation would see, wherever the trainer has its loaders from."""

import random
from contextlib import nullcontext
from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from toolkit import RandomSelector
from toolkit.datamodules import DigitsDataModule, PrunedDataModule
from toolkit.lightning_views import evaluation_view_of, untouched_data

CPU = torch.device("cpu")

# Lightning tells which of two hooks it takes; the same is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")


class Noisy(TensorDataset):
    """Images with a transform that adds noise, which the validation set of the same class has not."""

    def __init__(self, images, transform):
        super().__init__(images)
        self.transform = transform

    def __getitem__(self, index):
        return self.transform(super().__getitem__(index)[0]), 0


def noisy(n_images=6):
    return Noisy(torch.arange(n_images, dtype=torch.float32).reshape(-1, 1), lambda x: x + torch.rand(()))


def plain(n_images=4):
    return Noisy(torch.arange(n_images, dtype=torch.float32).reshape(-1, 1) * 10, lambda x: x)


class Model(L.LightningModule):
    """Doubles its batches on the way to the device in validation, and notes what its hooks were told."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.heard = []
        self.views = {}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.heard.append((self.trainer.validating, self.training))
        return [batch[0] * 2, batch[1]] if self.trainer.validating else batch

    def training_step(self, batch):
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_start(self):
        self.views = {split: evaluation_view_of(self.trainer, split) for split in ("train", "val")}


class ModelWithLoaders(Model):
    def train_dataloader(self):
        return DataLoader(noisy(), batch_size=3)

    def val_dataloader(self):
        return DataLoader(plain(), batch_size=2)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(noisy(), batch_size=3, shuffle=True)

    def val_dataloader(self):
        return [DataLoader(plain(), batch_size=2), DataLoader(plain(2))]


class DataWithHook(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, batch[1]]


def trainer():
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def seen(view):
    return view.batch_transform(view.load(list(range(len(view)))), CPU)[0].flatten().tolist()


@pytest.mark.parametrize("source", ["data module", "model", "given"])
def test_training_images_without_augmentation_and_with_the_hooks_of_validation(source):
    model = ModelWithLoaders() if source == "model" else Model()
    data = {"given": {"train_dataloaders": DataLoader(noisy(), 3), "val_dataloaders": DataLoader(plain(), 2)}}
    run = trainer()
    run.fit(model, **data.get(source, {"datamodule": Data()} if source == "data module" else {}))
    model.heard.clear()
    stage, views = run.state.stage, model.views
    first = seen(views["train"])
    if source == "given":  # nobody can tell that the loaders that were given belong together
        assert first != seen(views["train"])
        assert [round(value // 2) for value in first] == [0, 1, 2, 3, 4, 5]
    else:
        assert first == seen(views["train"]) == [0, 2, 4, 6, 8, 10]
    assert seen(views["val"]) == [0, 20, 40, 60]
    assert set(model.heard) == {(True, False)}
    assert run.state.stage == stage
    assert model.training


def test_hooks_of_the_data_module_come_before_the_models():
    model = Model()
    trainer().fit(model, datamodule=DataWithHook())
    assert seen(model.views["train"]) == [1, 2, 3, 4, 5, 6]


def test_a_pruned_data_module_shows_all_its_training_images():
    datamodule = PrunedDataModule(Data(), RandomSelector(0.5), cache=False)
    model = Model()
    trainer().fit(model, datamodule=datamodule)
    assert seen(model.views["train"]) == [0, 2, 4, 6, 8, 10]
    assert seen(model.views["val"]) == [0, 20, 40, 60]


def test_digits_keep_their_own_evaluation_dataset():
    datamodule = DigitsDataModule()
    datamodule.setup("fit")
    run = trainer()
    run.datamodule = datamodule
    datamodule.trainer = run
    run.strategy.connect(Model())
    assert len(evaluation_view_of(run)) == len(datamodule.train_dataloader().dataset)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1), 0)])


@pytest.mark.parametrize(
    ("loaders", "split", "match"),
    [
        ({"train_dataloaders": DataLoader(plain())}, "val", "one validation loader .* got none"),
        ({"train_dataloaders": DataLoader(Stream())}, "train", "one training loader .* got Stream"),
        ({"train_dataloaders": {"a": DataLoader(plain())}}, "train", "one training loader .* got dict"),
    ],
)
def test_loaders_that_cannot_be_read_by_index_are_refused(loaders, split, match):
    class Asking(Model):
        def training_step(self, batch):
            return self.layer(torch.zeros(1, 1)).mean()

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

        def on_train_start(self):
            evaluation_view_of(self.trainer, split)

    with pytest.raises(MisconfigurationException, match=match):
        trainer().fit(Asking(), **loaders)


def test_the_loaders_are_those_that_the_trainer_has():
    class Anew(Data):
        calls = 0

        def train_dataloader(self):
            self.calls += 1
            return DataLoader(plain(self.calls + 2), batch_size=3)

    datamodule, model = Anew(), Model()
    trainer().fit(model, datamodule=datamodule)
    assert datamodule.calls == 1
    assert len(model.views["train"]) == 3


class Holder:
    """Keeps generators in many ways."""

    def __init__(self):
        self.numpy = np.random.default_rng(1)
        self.old = np.random.RandomState(1)
        self.inside = [{"python": random.Random(1)}, (partial(self.draw, device=torch.Generator().manual_seed(1)),)]
        self.system = random.SystemRandom()
        self.itself = self
        self.files = [str(index) for index in range(2000)]

    def draw(self, device=None):
        known = self.inside[1][0].keywords["device"]
        return [
            self.numpy.random(),
            self.old.random_sample(),
            self.inside[0]["python"].random(),
            torch.rand((), generator=known).item(),
            torch.rand(()).item(),
            random.random(),
        ]


@pytest.mark.parametrize("fails", [False, True])
def test_generators_of_the_data_are_as_they_were(fails):
    holder, run = Holder(), trainer()
    run.datamodule = type("Data", (L.LightningDataModule,), {})()
    run.datamodule.collate = holder.draw  # a method, whose object holds the generators
    run.datamodule.trainer = run
    torch.manual_seed(0)
    random.seed(0)
    with pytest.raises(RuntimeError, match="stop") if fails else nullcontext(), untouched_data(run):
        first = holder.draw()
        assert holder.draw() != first
        if fails:
            raise RuntimeError("stop")
    assert holder.draw() == first


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'val', got 'test'"):
        evaluation_view_of(trainer(), "test")
