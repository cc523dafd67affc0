import json
import logging
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from toolkit import FeatureExtractor, RandomSelector, SemanticSelector
from toolkit.callbacks import FeatureMapWriter
from toolkit.datamodules import DigitsDataModule, PrunedDataModule
from toolkit.fingerprint import content_hash, dataset_fingerprint
from toolkit.representations import WrittenFeatures
from toolkit.representations.feature_map import RandomAugmentationWarning
from toolkit.representations.written import epoch_folders

N_IMAGES = 23
SCRIPT = Path(__file__).parent.parent / "scripts" / "write_features.py"

pytestmark = pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")  # which is on purpose


def pixels(n=N_IMAGES, seed=0):
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


class Augmented(Dataset):
    """Draws from the random state of Python, NumPy and PyTorch for every image."""

    def __init__(self, plain):
        self.plain = plain

    def __len__(self):
        return len(self.plain)

    def __getitem__(self, index):
        image, label = self.plain[index]
        return image + 0.1 * torch.rand(1) + 0.1 * random.random() + 0.1 * np.random.rand(), label  # noqa: NPY002

    def fingerprint(self):
        return "augmented"


class Data(L.LightningDataModule):
    def __init__(self, workers=0):
        super().__init__()
        self.plain = TensorDataset(pixels(), torch.arange(N_IMAGES) % 3)
        self.val = TensorDataset(pixels(9, seed=1), torch.arange(9) % 3)
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(Augmented(self.plain), batch_size=8, shuffle=True, num_workers=self.workers)

    def val_dataloader(self):
        return [DataLoader(self.val, batch_size=4)]

    def evaluation_dataset(self):
        return self.plain


class Counter(nn.Module):
    """Counts its runs, also in evaluation, and lets the count decide what it gives."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.runs += 1
        self.scale = self.scale * 1.01  # a new tensor
        return x * self.scale + 0.01 * self.runs


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.counter = Counter()
        self.drop = nn.Dropout(0.3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Identity()
        self.whole = nn.Identity()
        self.linear = nn.Linear(4, 3)
        self.norm.eval()  # as people freeze one
        self.kept, self.losses, self.modes = [], [], set()
        self.factor = 1.0

    def forward(self, x):
        self.whole(x.mean((1, 2, 3))[:1])
        features = self.drop(self.counter(self.norm(self.conv(x))).relu()) * self.factor
        return self.linear(self.avgpool(features).flatten(1))

    def training_step(self, batch, batch_idx):
        self.modes.add(tuple((name, module.training) for name, module in self.named_modules()))
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.kept.append(loss)  # with its graph: a module that cannot be copied
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(*callbacks, model=None, data=None, ckpt_path=None, **options):
    """A trainer after `fit`, and its model."""
    options = {
        "max_epochs": 2,
        "logger": False,
        "accelerator": "cpu",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **options,
    }
    trainer, model = L.Trainer(callbacks=[*callbacks], **options), Net() if model is None else model
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    data = Data() if data is None else data
    if isinstance(data, dict):
        trainer.fit(model, ckpt_path=ckpt_path, weights_only=ckpt_path is not None, **data)
    else:
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=ckpt_path is not None)
    return trainer, model


def writer(folder, layer="avgpool", **options):
    return FeatureMapWriter(layer, folder, **{"dtype": "float32", "batch_size": 5} | options)


def epochs(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def expected(model, images, layer="avgpool", pool="mean"):
    """The vectors of the weights as they are, by the other way to get them."""
    model.kept.clear()
    extractor = FeatureExtractor(model, layer, pool=pool, batch_size=5, cache=False, progress=False)
    return extractor.vectors(TensorDataset(images))


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every_n_epochs": 2},
        {"split": "val", "pool": "flatten", "layer": "drop"},
        {"dtype": "float16", "num_workers": 1},
    ],
)
def test_training_is_not_touched(tmp_path, options):
    class Rng(L.Callback):
        """Notes the random state and the modes at the end of training."""

        def on_fit_end(self, trainer, pl_module):
            self.found = states(), torch.is_grad_enabled(), [m.training for m in pl_module.modules()]

    def run(*callbacks):
        rng = Rng()
        _, model = fit(*callbacks, rng, max_epochs=3, val_check_interval=2, num_sanity_val_steps=2)
        return model, rng.found

    plain, before = run()
    watched, after = run(writer(tmp_path, **options))
    assert plain.losses == watched.losses
    assert before == after
    assert plain.modes == watched.modes
    assert not dict(watched.modes.pop())["norm"], "the layer that is frozen stays so"
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert watched.counter.runs == plain.counter.runs > 0
    assert not any(module._forward_hooks for module in watched.modules())
    assert epoch_folders(tmp_path)


@pytest.mark.parametrize(("layer", "pool"), [("avgpool", "mean"), ("drop", "mean"), ("drop", "flatten")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_are_those_of_the_weights_in_the_data_sets_order(tmp_path, layer, pool, dtype):
    trainer, model = fit(writer(tmp_path, layer, pool=pool, dtype=dtype))
    features = WrittenFeatures(tmp_path)
    wanted = expected(model, pixels(), layer, pool)
    assert wanted.std(axis=0).max() > 0
    vectors = features.vectors(Data().plain)
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5 if dtype == "float32" else 1e-3, atol=1e-6)
    stored = np.load(tmp_path / "epoch=0001" / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(stored, wanted.astype(dtype))
    manifest = json.loads((tmp_path / "epoch=0001" / "manifest.json").read_text())
    del manifest["run"], manifest["written"], manifest["images"]
    assert manifest == {
        "format": "toolkit.features",
        "version": 1,
        "layer": layer,
        "pool": pool,
        "split": "train",
        "model": "Net",
        "epoch": 1,
        "global_step": trainer.global_step,
        "dtype": dtype,
        "shape": list(wanted.shape),
        "sha256": content_hash(stored),
        "dataset": dataset_fingerprint(Data().plain),
    }


def test_each_nth_epoch_and_the_last(tmp_path):
    fit(writer(tmp_path, every_n_epochs=2), max_epochs=5)
    assert epochs(tmp_path) == ["epoch=0001", "epoch=0003", "epoch=0004"]
    assert len({manifest.sha256 for _, manifest in epoch_folders(tmp_path)}) == 3


def test_the_last_epoch_is_written_wherever_training_stops(tmp_path):
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    fit(writer(tmp_path / "a", every_n_epochs=10), Stop(), max_epochs=9)
    assert epochs(tmp_path / "a") == ["epoch=0002"]
    trainer, _ = fit(writer(tmp_path / "b", every_n_epochs=10), max_epochs=-1, max_steps=4)
    assert trainer.global_step == WrittenFeatures(tmp_path / "b").manifest.global_step == 4
    assert epochs(tmp_path / "b") == ["epoch=0001"]


def test_the_last_n_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    fit(writer(tmp_path), max_epochs=1)
    fit(writer(tmp_path, keep_last=2), max_epochs=5)
    assert epochs(tmp_path) == ["epoch=0003", "epoch=0004", "mine"], "another run's epoch 0 was replaced, then it went"
    fit(writer(tmp_path, keep_last=1), max_epochs=2)
    assert epochs(tmp_path) == ["epoch=0001", "epoch=0003", "epoch=0004", "mine"], "another run's features stay"
    assert WrittenFeatures(tmp_path).manifest.epoch == 1


def test_a_pruned_training_set_is_written_whole(tmp_path):
    data = PrunedDataModule(Data(), RandomSelector(0.4), cache=False)
    _, model = fit(writer(tmp_path), data=data)
    assert len(data.train_dataloader().dataset) == 9
    vectors = WrittenFeatures(tmp_path).vectors(data.evaluation_view())
    np.testing.assert_array_equal(vectors, expected(model, pixels()))


def test_validation_images_and_loaders_of_any_home(tmp_path):
    class WithLoaders(Net):
        def train_dataloader(self):
            return DataLoader(Data().plain, batch_size=8)

    plain = Data().plain
    loaders = {
        "train_dataloaders": DataLoader(plain, batch_size=8),
        "val_dataloaders": DataLoader(Data().val, batch_size=4),
    }
    for name, options, data, model, images in (
        ("val", {"split": "val"}, Data(), Net(), pixels(9, seed=1)),
        ("given", {}, loaders, Net(), pixels()),
        ("given val", {"split": "val"}, loaders, Net(), pixels(9, seed=1)),
        ("own", {}, {}, WithLoaders(), pixels()),
    ):
        fit(writer(tmp_path / name, **options), data=data, model=model, max_epochs=1)
        np.testing.assert_array_equal(WrittenFeatures(tmp_path / name).vectors(None), expected(model, images))


def test_dictionaries_and_bytes(tmp_path):
    class Dictionaries(Data):
        def setup(self, stage):
            x = (255 * pixels()).to(torch.uint8)
            self.plain = [{"picture": x[i], "label": i % 3} for i in range(N_IMAGES)]

        def train_dataloader(self):
            return DataLoader(self.plain, batch_size=8)

        def val_dataloader(self):
            return []

    class Reads(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["picture"] / 255, batch["label"]), batch_idx)

    with pytest.warns(UserWarning, match="content of a builtins.list cannot be told"):
        _, model = fit(writer(tmp_path, input_key="picture"), data=Dictionaries(), model=Reads(), max_epochs=1)
    x = (255 * pixels()).to(torch.uint8)
    np.testing.assert_allclose(WrittenFeatures(tmp_path).vectors(None), expected(model, x), rtol=1e-6)


def test_a_module_of_half_precision(tmp_path):
    _, model = fit(writer(tmp_path, dtype="float16"), max_epochs=1, precision="bf16-true")
    assert model.conv.weight.dtype == torch.bfloat16
    halves = WrittenFeatures(tmp_path).vectors(None)
    np.testing.assert_allclose(halves, expected(model.float(), pixels()), rtol=0.1, atol=0.02)


def test_a_compiled_module_is_hooked_all_the_same(tmp_path):
    class Plain(Net):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    model = Plain()
    try:
        fit(writer(tmp_path, "drop"), model=torch.compile(model, backend="eager"), max_epochs=2, limit_val_batches=0)
    finally:
        torch.compiler.reset()
    fresh = Plain()
    fresh.load_state_dict(model.state_dict())
    assert epochs(tmp_path) == ["epoch=0000", "epoch=0001"]
    np.testing.assert_array_equal(WrittenFeatures(tmp_path).vectors(None), expected(fresh, pixels(), "drop"))


def test_layers_that_are_made_late(tmp_path):
    class Late(Net):
        def configure_model(self):
            self.late = nn.Identity()

        def forward(self, x):
            return super().forward(self.late(x))

    fit(writer(tmp_path, "late"), model=Late(), max_epochs=1)
    np.testing.assert_allclose(WrittenFeatures(tmp_path).vectors(None), pixels().mean((2, 3)), rtol=1e-5)
    with pytest.raises(MisconfigurationException, match="`layer` must be a layer of Late, such as .*late.*'layt'"):
        fit(writer(tmp_path, "layt"), model=Late(), max_epochs=1)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:.*uninitialized param")
@pytest.mark.filterwarnings("ignore:The model layers do not match")
@pytest.mark.filterwarnings("ignore:A layer with UninitializedParameter")
def test_layers_without_a_shape_get_it_from_training(tmp_path):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.linear = nn.LazyLinear(3)

    losses = [fit(*callbacks, model=Lazy(), max_epochs=1)[1].losses for callbacks in ([], [writer(tmp_path)])]
    assert losses[0] == losses[1]
    assert epochs(tmp_path) == ["epoch=0000"]


def test_layers_of_a_sequence_go_by_their_place_too(tmp_path):
    class Sequence(Net):
        def __init__(self):
            super().__init__()
            self.kept, layers = (
                [],
                (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
            )
            for name, _ in list(self.named_children()):
                delattr(self, name)
            self.network = nn.Sequential(*layers)

        def forward(self, x):
            return self.network(x)

    model = Sequence()
    fit(
        FeatureMapWriter(-3, dtype="float32"), writer(tmp_path, 1), model=model, max_epochs=1, default_root_dir=tmp_path
    )
    for folder, layer in ((tmp_path / "features" / "-3", 2), (tmp_path, 1)):
        written = WrittenFeatures(folder)
        assert written.manifest.layer == f"network.{layer}"
        np.testing.assert_allclose(written.vectors(Data().plain), expected(model, pixels(), layer), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"layer": 3},
            "`layer` must be a name where the network has no single sequence of layers, such as conv, .*got 3",
        ),
        ({"layer": 0.5}, "`layer` must be the name of a layer or a whole number, got 0.5"),
        ({"layer": "avgpol"}, "`layer` must be a layer of Net, such as avgpool, got 'avgpol'"),
        ({"pool": "max"}, "`pool` must be one of 'mean', 'flatten', got 'max'"),
        ({"dtype": "int8"}, "`dtype` must be one of 'float16', 'float32', got 'int8'"),
        ({"split": "test"}, "`split` must be one of 'train', 'val', got 'test'"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be an integer of at least 1, got 0"),
        ({"every_n_epochs": True}, "`every_n_epochs` must be an integer of at least 1, got True"),
        ({"batch_size": 1.5}, "`batch_size` must be an integer of at least 1, got 1.5"),
        ({"keep_last": 0}, "`keep_last` must be an integer of at least 1, or None, got 0"),
        ({"num_workers": -1}, "`num_workers` must be an integer of at least 0, or None, got -1"),
        ({"layer": "unused"}, "`layer` must be a layer that runs when the model is called with images, got 'unused'"),
        ({"layer": "whole"}, r"`layer` must be a layer that gives one row an image \(2\), got \"'whole', 1 rows\""),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_epoch(tmp_path, options, match):
    model = Net()
    with pytest.raises(MisconfigurationException, match=match):
        fit(writer(tmp_path, **options), model=model)
    assert model.losses == []
    assert not any(module._forward_hooks for module in model.modules())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_data_and_folders_that_do_not_fit_are_refused_before_the_first_epoch(tmp_path, monkeypatch):
    def refused(match, *callbacks, **options):
        model = Net()
        with pytest.raises(MisconfigurationException, match=match):
            fit(*callbacks, model=model, **options)
        assert model.losses == []

    loader = {"train_dataloaders": DataLoader(Data().plain, batch_size=8)}
    refused("`split` must be 'train' where there are no validation images", writer(tmp_path, split="val"), data=loader)
    empty = {"train_dataloaders": DataLoader(Data().plain), "val_dataloaders": DataLoader([])}
    refused("`split` must be one with at least one image", writer(tmp_path, split="val"), data=empty)
    (tmp_path / "file").write_text("")
    refused("`dirpath` must be a folder that can be written to", writer(tmp_path / "file"))
    (tmp_path / "epoch=0007").mkdir()
    refused("`dirpath` must be a folder without epochs of others .*epoch=0007", writer(tmp_path))
    two = writer(tmp_path / "x"), writer(tmp_path / "y" / ".." / "x", "drop")
    refused("`dirpath` must be a folder for each FeatureMapWriter, got '.*x' for two", *two)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `FeatureMapWriter`"):
        fit(writer(tmp_path), writer(tmp_path))
    trainer = L.Trainer(logger=False, enable_checkpointing=False)
    monkeypatch.setattr(L.Trainer, "strategy", FSDPStrategy())
    with pytest.raises(MisconfigurationException, match="must keep the whole model on each process.*got FSDPStrategy"):
        writer(tmp_path / "x").setup(trainer, Net(), "fit")


def test_images_of_no_use_are_refused_before_the_first_epoch(tmp_path):
    texts = {"train_dataloaders": DataLoader([("a text", 0)] * 4)}
    model = Net()
    with pytest.raises(MisconfigurationException, match="Images must arrive as a tensor"):
        fit(writer(tmp_path), model=model, data=texts)
    assert model.losses == []


@pytest.mark.parametrize(
    ("factor", "match"),
    [
        (1e6, r"`dtype` must be 'float32' for features as large as \d+.*, layer 'avgpool': float16 ends at 65504, got"),
        (
            float("nan"),
            "`features` must be finite, got NaN or infinite values of layer 'avgpool' for 5 of 5.* 0",
        ),
        (float("inf"), "`features` must be finite, got NaN or infinite values of layer 'avgpool' for . of 5 images"),
    ],
)
def test_features_that_cannot_be_stored_are_refused_and_all_is_as_before(tmp_path, factor, match):
    class Spoil(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.factor = factor if trainer.current_epoch == 1 else 1.0
            self.before = states(), [m.training for m in pl_module.modules()]

    model, spoil = Net(), Spoil()
    with pytest.raises(ValueError, match=match):
        fit(spoil, writer(tmp_path, "avgpool", dtype="float16"), model=model, max_epochs=3)
    assert epochs(tmp_path) == ["epoch=0000"], "nothing is left of the epoch that failed"
    assert spoil.before == (states(), [m.training for m in model.modules()])
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in model.modules())
    if factor == 1e6:
        fit(Spoil(), writer(tmp_path, "avgpool"), max_epochs=2)
        assert WrittenFeatures(tmp_path).vectors(None).max() > 65504


def test_small_numbers_may_become_zero(tmp_path):
    model = Net()
    model.factor = 1e-12
    fit(writer(tmp_path, dtype="float16"), model=model, max_epochs=1)
    assert not WrittenFeatures(tmp_path).vectors(None).any()


def test_a_model_that_fails_leaves_nothing(tmp_path):
    class Fails(Net):
        def forward(self, x):
            if not self.training and self.losses:
                raise RuntimeError("the model broke")
            return super().forward(x)

    model = Fails()
    with pytest.raises(RuntimeError, match="the model broke"):
        fit(writer(tmp_path), model=model, limit_val_batches=0)
    assert not list(tmp_path.iterdir())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training
    assert not model.norm.training


@pytest.mark.filterwarnings("ignore:Reading the same images twice gives different ones")
def test_generators_that_the_data_keeps_to_itself_are_left_as_they_were(tmp_path):
    class Noisy(TensorDataset):
        def __init__(self):
            super().__init__(pixels(), torch.arange(len(pixels())) % 2)
            self.generator = np.random.default_rng(3)

        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + float(self.generator.random()), label

    losses = []
    for callbacks in ([], [writer(tmp_path)]):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Net()
        fit(*callbacks, model=model, data={"train_dataloaders": DataLoader(Noisy(), batch_size=4)})
        losses.append(model.losses)
    assert losses[0] == losses[1]


def test_random_augmentation_that_nobody_can_switch_off_is_told(tmp_path):
    loader = {"train_dataloaders": DataLoader(Augmented(Data().plain), batch_size=8)}
    with pytest.warns(RandomAugmentationWarning, match=r"Give the data module a method `evaluation_dataset\(\)`"):
        fit(writer(tmp_path), data=loader, max_epochs=1)


def test_a_development_run_writes_nothing_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(writer(tmp_path / "folder"), fast_dev_run=True)
    assert "FeatureMapWriter writes nothing in a `fast_dev_run`." in caplog.text
    assert not list(tmp_path.iterdir())
    with pytest.raises(MisconfigurationException, match="a layer that runs"):
        fit(writer(tmp_path, "unused"), fast_dev_run=True)


def test_no_epoch_and_no_training_write_nothing(tmp_path):
    trainer, model = fit(writer(tmp_path), max_epochs=0)
    trainer.validate(model, datamodule=Data(), verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint
def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    folder, checkpoint = tmp_path / "features", ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(checkpoint, writer(folder, keep_last=2), max_epochs=4, enable_checkpointing=True)
    first = dict(epoch_folders(folder))
    assert epochs(folder) == ["epoch=0002", "epoch=0003"]
    ckpt_path = tmp_path / "epoch=1.ckpt"
    fit(writer(folder, keep_last=2), max_epochs=3, ckpt_path=ckpt_path)
    again = dict(epoch_folders(folder))
    assert {m.run for m in first.values()} == {m.run for m in again.values()}
    assert epochs(folder) == ["epoch=0002", "epoch=0003"]
    assert again[folder / "epoch=0003"] == first[folder / "epoch=0003"]
    assert again[folder / "epoch=0002"].written > first[folder / "epoch=0003"].written
    assert WrittenFeatures(folder).manifest.epoch == 2, "the last that was written"
    fit(writer(folder, keep_last=2), max_epochs=5, ckpt_path=ckpt_path)
    assert epochs(folder) == ["epoch=0003", "epoch=0004"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint
def test_what_a_killed_process_left_is_removed_by_its_run(tmp_path):
    folder, checkpoint = tmp_path / "features", ModelCheckpoint(tmp_path, filename="{epoch}")
    fit(checkpoint, writer(folder), max_epochs=1, enable_checkpointing=True)
    left = folder / f".unfinished-{WrittenFeatures(folder).manifest.run}"
    left.mkdir()
    (left / "features.npy").write_text("half")
    fit(writer(folder), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert epochs(folder) == ["epoch=0000", "epoch=0001"]
    np.testing.assert_array_equal(len(WrittenFeatures(folder).vectors(None)), N_IMAGES)


def test_folders_by_default_and_several_writers(tmp_path):
    writers = [
        FeatureMapWriter(),
        FeatureMapWriter("drop"),
        FeatureMapWriter("drop", pool="flatten"),
        FeatureMapWriter("avgpool", split="val"),
    ]
    assert len({w.state_key for w in writers}) == 4
    fit(*writers, max_epochs=1, default_root_dir=tmp_path)
    names = ["avgpool", "avgpool-val", "drop", "drop-flatten"]
    assert epochs(tmp_path / "features") == names
    fit(FeatureMapWriter(), max_epochs=1, logger=CSVLogger(tmp_path, name="a", version="b"))
    assert epochs(tmp_path / "a" / "b" / "features" / "avgpool") == ["epoch=0000"]
    shapes = [WrittenFeatures(tmp_path / "features" / name).manifest.shape for name in names]
    assert shapes == [(23, 4), (9, 4), (23, 4), (23, 144)]
    assert WrittenFeatures(tmp_path / "a" / "b" / "features").manifest.dtype == "float16"
    with pytest.raises(MisconfigurationException, match="a folder for each FeatureMapWriter"):
        fit(FeatureMapWriter(), FeatureMapWriter(dtype="float32"), default_root_dir=tmp_path)


def test_rows_go_to_disk_batch_by_batch(tmp_path, monkeypatch):
    blocks = []
    from toolkit.callbacks import feature_map_writer

    class Watched(feature_map_writer.UnfinishedFeatures):
        def append(self, rows):
            super().append(rows)
            blocks.append((len(rows), rows.dtype, (self.folder.parent / f".unfinished-{self.run}").exists()))

    monkeypatch.setattr(feature_map_writer, "UnfinishedFeatures", Watched)
    fit(writer(tmp_path, dtype="float16"), max_epochs=1)
    assert blocks == [(n, np.float16, True) for n in (5, 5, 5, 5, 3)]


def test_progress_is_shown_where_it_is_asked_for(tmp_path, capsys):
    fit(writer(tmp_path), max_epochs=1)
    assert "features" not in capsys.readouterr().err
    fit(writer(tmp_path, progress=True), max_epochs=1)
    assert "features of epoch 0: 100%" in capsys.readouterr().err


def test_a_selection_from_what_was_written_is_that_of_the_weights(tmp_path):
    class Digits(Net):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 3, padding=1)
            self.norm, self.counter = nn.BatchNorm2d(16), nn.Identity()
            self.linear = nn.Linear(16, 10)

        def validation_step(self, batch, batch_idx):
            pass

    data = PrunedDataModule(DigitsDataModule(batch_size=128), RandomSelector(0.8), cache=False)
    half = FeatureMapWriter("avgpool", tmp_path / "half", batch_size=256)
    whole = FeatureMapWriter("avgpool", tmp_path / "whole", batch_size=256, dtype="float32")
    _, model = fit(half, whole, model=Digits(), data=data, max_epochs=2)
    model.kept.clear()
    view = data.evaluation_view()
    extractor = FeatureExtractor(model, "avgpool", cache=False, progress=False)
    wanted, by_file, by_half = (
        SemanticSelector(features, keep_fraction=0.9, progress=False).select(view)
        for features in (extractor, WrittenFeatures(tmp_path / "whole"), WrittenFeatures(tmp_path / "half"))
    )
    np.testing.assert_array_equal(by_file.kept, wanted.kept)
    np.testing.assert_array_equal(by_file.status, wanted.status)
    assert by_file.fingerprint == wanted.fingerprint
    shared = np.intersect1d(by_half.kept, wanted.kept)
    assert len(by_half.kept) == len(wanted.kept)
    assert len(shared) > 0.97 * len(wanted.kept), "rounding decides among images that are as close"


def two_processes(folder, *more):
    return subprocess.run(
        [sys.executable, SCRIPT, folder, "2", *more],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    done = two_processes(tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    runpy.run_path(str(SCRIPT))["fit"](tmp_path / "one", 1)
    assert epochs(tmp_path / "two") == epochs(tmp_path / "one") == ["epoch=0001"]
    one, two = WrittenFeatures(tmp_path / "one"), WrittenFeatures(tmp_path / "two")
    assert one.manifest.shape == two.manifest.shape == (23, 4)
    assert one.fingerprint() == two.fingerprint()
    np.testing.assert_array_equal(one.vectors(None), two.vectors(None))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "error"), [("model", "the model broke"), ("disk", "Features could not be written")])
def test_an_error_on_one_process_stops_both(tmp_path, part, error):
    done = two_processes(tmp_path, part)
    assert done.returncode != 0
    assert done.stderr.count(error) >= 2, "the other process is told why"
    assert not list(tmp_path.glob("epoch=*"))
