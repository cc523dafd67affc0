import warnings
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from toolkit import FeatureExtractor, FeatureMapSelector, RandomSelector
from toolkit.cli_baseline import extractor_of, needs_baseline, score_of
from toolkit.representations import Reduced


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def validation_step(self, batch, batch_idx):
        self.log("val/one", 1.0)

    def test_step(self, batch, batch_idx):
        self.log("test/two", 2.0)


class Folder(L.LightningDataModule):
    """One that can have validation and test images, if it is told where they are."""

    def __init__(self, validates, tests):
        super().__init__()
        self.validates, self.tests = validates, tests

    def setup(self, stage):
        self.loader = DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=3)

    def val_dataloader(self):
        return self.loader if self.validates else []

    def test_dataloader(self):
        if not self.tests:
            raise ValueError("`test_dir` must be a folder of images to test on, got None.")
        return self.loader


class WithoutImages(L.LightningDataModule):
    pass


def scored(datamodule):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(**options, enable_model_summary=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, of few workers
        return score_of(trainer, Model(), datamodule)


@pytest.mark.parametrize(
    ("validates", "tests", "score"),
    [(True, True, {"test/two": 2.0}), (True, False, {"val/one": 1.0}), (False, False, {})],
)
def test_the_score_comes_from_the_images_that_there_are(validates, tests, score):
    assert scored(Folder(validates, tests)) == score


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_features_that_are_reduced_get_the_baseline_too(depth):
    features = inner = FeatureExtractor(layer=-1, pool="flatten")
    for _ in range(depth):
        features = Reduced(features, n_dim=8)
    datamodule = SimpleNamespace(selector=FeatureMapSelector(features, 0.5))
    assert extractor_of(datamodule) is inner
    assert needs_baseline(datamodule)
    inner.model = torch.nn.Linear(1, 1)
    assert not needs_baseline(datamodule)
    assert not needs_baseline(SimpleNamespace(selector=RandomSelector(0.5)))


def test_a_data_module_without_such_images_has_no_score():
    assert scored(WithoutImages()) == {}
