"""What the monitor logs and writes, that it does not touch training, and that it survives what runs go through."""

import csv
import json
import random
import runpy
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from processes import run_script
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from toolkit import FeatureExtractor, RandomSelector, SemanticSelector
from toolkit.boundary import draw_pairs, probe_paths, summarise
from toolkit.boundary.pairs import STRATA
from toolkit.callbacks import DecisionBoundaryMonitor, decision_boundary_monitor
from toolkit.datamodules import PrunedDataModule

SCRIPT = Path(__file__).parent.parent / "scripts" / "ddp_boundary.py"
CLASSES = 3

# Lightning reminds of callbacks that are left out on purpose here.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


class Images(Dataset):
    """Images of three classes, augmented from the generators of Python, NumPy and PyTorch."""

    def __init__(self, count=90, *, augment=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(count) % CLASSES
        centres = torch.rand(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(9))
        self.images = (0.6 * centres[self.targets] + 0.4 * torch.rand(count, 1, 6, 6, generator=generator)) / 1.0
        self.transform = augmented if augment else as_it_is

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.targets[index]

    def fingerprint(self):
        return f"{len(self)} made-up images"


def as_it_is(image):
    return image


def augmented(image):
    return image + 0.1 * torch.rand(()) + 0.1 * random.random() + 0.1 * float(np.random.random())  # noqa: NPY002


class Data(L.LightningDataModule):
    def __init__(self, augment=False):
        super().__init__()
        self.augment = augment

    def train_dataloader(self):
        return DataLoader(Images(augment=self.augment), batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Images(30, seed=1), batch_size=15)


class Model(L.LightningModule):
    """A small network with batch norm and dropout that keeps its losses."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, classes))
        self.losses = []

    def forward(self, images):
        return self.head(self.avgpool(self.stem(images)))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def monitor(**options):
    return DecisionBoundaryMonitor(**{"num_pairs": 20, "num_points": 5, "picture": False, "batch_size": 64, **options})


def trainer(folder, *callbacks, **options):
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 2,
            **options,
        }
    )


def fitted(folder, *callbacks, data=None, seed=5, ckpt_path=None, **options):
    """A model after training from one seed."""
    L.seed_everything(seed, verbose=False)
    model, run = Model(), trainer(folder, *callbacks, **options)
    run.fit(model, datamodule=data or Data(), ckpt_path=ckpt_path)
    return model, run


def pruned(**options):
    features = FeatureExtractor(Model().eval(), "avgpool", cache=False, progress=False)
    return PrunedDataModule(Data(), SemanticSelector(features, 0.8, progress=False, **options), cache=False)


def rows_in(folder):
    with (folder / "boundaries.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "run_options"),
    [
        ({}, {}),
        ({"every_n_epochs": 2, "before_training": False}, {"val_check_interval": 0.5}),
        ({"layer": "avgpool", "picture": True, "num_pictured": 5}, {"num_sanity_val_steps": 1}),
    ],
    ids=["every epoch", "every other", "with layer and pictures"],
)
def test_training_is_the_same_bit_for_bit(tmp_path, options, run_options):
    runs, states = [], []
    for watched in (False, True):
        callbacks = [monitor(**options)] if watched else []
        runs.append(
            fitted(tmp_path / str(watched), *callbacks, data=Data(augment=True), max_epochs=3, **run_options)[0]
        )
        states.append(random_states())
    assert len(runs[0].losses) == 18
    assert runs[0].losses == runs[1].losses
    assert states[0] == states[1]
    ours, theirs = (model.state_dict() for model in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "batch norm's statistics too"


class Generating(Images):
    """Augments with a generator of its own, which no seed of a run reaches."""

    def __init__(self):
        super().__init__()
        self.transform = Noise()


class Noise:
    def __init__(self):
        self.generator = np.random.default_rng(3)

    def __call__(self, image):
        return image + float(self.generator.random())


class Drawing(L.LightningDataModule):
    """Draws other images for each epoch."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def train_dataloader(self):
        chosen = torch.randperm(90, generator=self.generator)[:48].tolist()
        return DataLoader(Subset(Images(), chosen), batch_size=16)


class Counting(Model):
    """Changes buffers in evaluation mode too, and normalises with the statistics of each batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, images):
        self.runs += 1
        norm = self.stem[1]
        maps = nn.functional.batch_norm(self.stem[0](images), norm.running_mean, norm.running_var, training=True)
        return self.head(self.avgpool(maps)) + self.runs * torch.arange(CLASSES)


class Lazy(Model):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:.*uninitialized param")
@pytest.mark.filterwarnings("ignore:A layer with UninitializedParameter")
@pytest.mark.parametrize(
    ("network", "data", "looks"),
    [
        (Model, lambda: DataLoader(Generating(), batch_size=16), [0, 1, 2, 3]),
        (Model, Drawing, [0, 1, 2, 3]),
        (Counting, lambda: DataLoader(Images(), batch_size=16), [0, 1, 2, 3]),
        (Lazy, lambda: DataLoader(Images(), batch_size=16), [1, 2, 3]),
    ],
    ids=["own generator", "other images", "buffers", "lazy"],
)
def test_training_is_the_same_whatever_model_and_data_keep_to_themselves(tmp_path, network, data, looks):
    runs, watch = [], monitor(picture=True, num_pictured=4)
    for callbacks in ([], [watch]):
        L.seed_everything(5, verbose=False)
        run = trainer(tmp_path, *callbacks, max_epochs=3, limit_val_batches=0, reload_dataloaders_every_n_epochs=1)
        runs.append(network())
        run.fit(runs[-1], data())
    assert len(runs[0].losses) >= 9
    assert runs[0].losses == runs[1].losses
    assert sorted({row["epoch"] for row in watch.history}) == looks


def test_a_compiled_part_is_not_compiled_anew(tmp_path):
    class Compiled(Model):
        def __init__(self):
            super().__init__()
            self.graphs = []
            self.__dict__["fast"] = torch.compile(self.stem, backend=self.kept)

        def kept(self, graph, examples):
            self.graphs.append(graph)
            return graph.forward

        def forward(self, images):
            return self.head(self.avgpool(self.fast(images)))

    counts = []
    for callbacks in ([], [monitor()]):
        torch.compiler.reset()
        model = Compiled()
        run = trainer(tmp_path, *callbacks, limit_val_batches=0)
        try:
            run.fit(model, DataLoader(Images(), batch_size=15))
        finally:
            torch.compiler.reset()
        counts.append(len(model.graphs))
    assert counts[0] == counts[1] > 0


def test_what_is_logged_is_what_probing_the_model_finds(tmp_path):
    watch, logger = monitor(layer="avgpool"), CSVLogger(tmp_path)
    model, run = fitted(tmp_path, watch, logger=logger, data=pruned(), log_every_n_steps=1)
    folder = Path(logger.log_dir) / "boundary"
    assert {path.name for path in folder.iterdir()} == {"boundaries.csv"}
    images = Images()
    pairs = draw_pairs(images, selection=run.datamodule.selection, num_pairs=20)
    assert watch.pairs.counts() == dict.fromkeys(STRATA, 4)
    assert np.array_equal(watch.pairs.first, pairs.first)
    assert np.array_equal(watch.pairs.second, pairs.second)
    report = probe_paths(model, images.images[pairs.first], images.images[pairs.second], 5, 1e-2)
    expected = summarise(report, pairs)
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    last = {key: float(row[key]) for row in logged for key in row if row[key] and key.startswith("boundary/")}
    # 90 images, 80 % kept, 16 a batch: 5 steps an epoch.
    assert [row["step"] for row in logged if row["boundary/random/crossing_rate"]] == ["0", "4", "9"]
    for row in expected:
        for key in ("crossing_rate", "crossings_mean", "reentry_rate", "first_crossing_mean", "margin_min_mean"):
            name = f"boundary/{row['stratum']}/{key}"
            assert last[name] == pytest.approx(row[key], nan_ok=True), name
            assert float(run.callback_metrics[name]) == pytest.approx(row[key], nan_ok=True)
    for row in watch.history[-5:]:
        assert last[f"boundary/{row['stratum']}/feature_distance_mean"] == pytest.approx(row["feature_distance_mean"])
    assert len(last) == 5 * 6 + 1


def test_feature_maps_of_redundant_images_are_compared_with_the_selection(tmp_path):
    watch = monitor(layer="avgpool", num_pairs=10, strata=["redundant"])
    model, run = fitted(tmp_path, watch, data=pruned())
    selection, pairs, images = run.datamodule.selection, watch.pairs, Images().images
    with torch.no_grad():
        maps = model.eval().avgpool(model.stem(images)).mean((2, 3)).double()
    cosine = nn.functional.cosine_similarity(maps[pairs.first], maps[pairs.second])
    distance = 1 - cosine.numpy()
    assert watch.history[-1]["feature_distance_mean"] == pytest.approx(distance.mean(), rel=1e-4)
    limit = selection.distance[selection.removed].max()
    assert watch.history[-1]["still_redundant"] == np.mean(distance <= limit)
    strict = monitor(layer="avgpool", num_pairs=10, strata=["redundant"])
    fitted(tmp_path, strict, data=PrunedDataModule(Data(), selection, cache=False))
    assert [row["still_redundant"] for row in strict.history] == [row["still_redundant"] for row in watch.history]


def test_the_selections_own_threshold_is_taken_where_it_has_one(tmp_path):
    features = FeatureExtractor(Model().eval(), "avgpool", cache=False, progress=False)
    for threshold in (1e-9, 1.0):
        selector = SemanticSelector(features, threshold=max(threshold, 1e-4), progress=False)
        data = PrunedDataModule(Data(), selector, cache=False)
        data.setup("fit")
        chosen = data.selection
        object.__setattr__(chosen, "config", {**chosen.config, "threshold": threshold})
        watch = monitor(layer="avgpool", strata=["redundant", "random"])
        fitted(tmp_path, watch, data=PrunedDataModule(Data(), chosen, cache=False))
        shares = [row["still_redundant"] for row in watch.history if row["stratum"] == "redundant"]
        assert all(share == (threshold == 1.0) for share in shares)


def test_feature_maps_of_zeros_have_no_distance(tmp_path):
    class Dead(Model):
        def forward(self, images):
            return self.head(self.avgpool(self.stem(images) * 0))

    watch = monitor(layer="avgpool")
    run = trainer(tmp_path, watch)
    run.fit(Dead(), datamodule=pruned())
    assert all(np.isnan(row["feature_distance_mean"]) for row in watch.history)
    assert {row["still_redundant"] for row in watch.history if row["stratum"] == "redundant"} == {0.0}


def test_other_selections_say_nothing_of_feature_maps(tmp_path):
    watch = monitor(layer="avgpool")
    fitted(tmp_path, watch, data=PrunedDataModule(Data(), RandomSelector(0.5), cache=False))
    assert not any("still_redundant" in row for row in watch.history)
    assert "redundant" not in watch.pairs.strata


@pytest.mark.parametrize("every", [1, 2])
def test_checkpoints_can_follow_a_rate(tmp_path, every):
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="boundary/same_class_far/crossing_rate", save_top_k=-1)
    watch = monitor(every_n_epochs=every)
    fitted(tmp_path, watch, best, max_epochs=3)
    epochs = sorted({row["epoch"] for row in watch.history})
    assert epochs == ([0, 1, 2, 3] if every == 1 else [0, 2, 3]), "the last epoch is looked at in any case"
    rate = {row["epoch"]: row["crossing_rate"] for row in watch.history if row["stratum"] == "same_class_far"}
    saved = {Path(path).stem: float(value) for path, value in best.best_k_models.items()}
    before = rate[0] if every == 2 else rate[1]
    assert saved == {f"epoch={place}": pytest.approx(value) for place, value in enumerate((before, rate[2], rate[3]))}


def test_a_run_that_ends_by_its_steps_is_looked_at_once_more(tmp_path):
    watch = monitor(every_n_epochs=5)
    _, run = fitted(tmp_path, watch, logger=CSVLogger(tmp_path / "log"), max_epochs=-1, max_steps=8)
    assert sorted({row["epoch"] for row in watch.history}) == [0, 2]
    last = next(row for row in watch.history if row["epoch"] == 2 and row["stratum"] == "random")
    assert float(run.callback_metrics["boundary/random/crossing_rate"]) == pytest.approx(last["crossing_rate"])
    logged = next((tmp_path / "log").rglob("metrics.csv")).read_text().splitlines()
    assert any(line.split(",")[logged[0].split(",").index("step")] == "7" for line in logged[1:])


def test_the_table_holds_every_path_of_every_look(tmp_path):
    watch = monitor()
    fitted(tmp_path, watch)
    rows = rows_in(tmp_path / "boundary")
    assert len(rows) == 3 * 20
    assert [(row["epoch"], row["step"]) for row in rows[::20]] == [("0", "0"), ("1", "6"), ("2", "12")]
    for row in watch.history:
        own = [r for r in rows if r["epoch"] == str(row["epoch"]) and r["stratum"] == row["stratum"]]
        assert len(own) == row["n"]
        assert np.mean([int(r["num_crossings"]) > 0 for r in own]) == row["crossing_rate"]
        assert np.mean([float(r["margin_min"]) for r in own]) == pytest.approx(row["margin_min_mean"])
    assert [int(row["first"]) for row in rows[-20:]] == watch.pairs.first.tolist()
    assert [int(row["second_label"]) for row in rows[-20:]] == watch.pairs.labels[:, 1].tolist()


def test_pictures_go_to_files_and_to_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fitted(tmp_path, monitor(picture=True, num_pictured=6), logger=logger, max_epochs=1)
    names = {"boundaries.csv", "curves.png", "paths-epoch=0000.png", "paths-epoch=0001.png"}
    assert {path.name for path in (tmp_path / "boundary").iterdir()} == names
    assert all((tmp_path / "boundary" / name).read_bytes()[:4] == b"\x89PNG" for name in names if name.endswith("png"))
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [image.step for image in events.Images("boundary/paths")] == [0, 5]
    assert [image.step for image in events.Images("boundary/curves")] == [5]
    image = events.Images("boundary/curves")[0]
    from matplotlib.image import imread

    assert imread(tmp_path / "boundary" / "curves.png").shape[:2] == (image.height, image.width)
    assert [event.step for event in events.Scalars("boundary/random/crossing_rate")] == [0, 5]


class Vectors(Data):
    def train_dataloader(self):
        return DataLoader(TensorDataset(Images().images.flatten(1), Images().targets), batch_size=30)

    val_dataloader = L.LightningDataModule.val_dataloader


class Linear(Model):
    def forward(self, rows):
        return self.head[2](rows[:, :16])


def test_what_is_no_image_is_walked_and_not_drawn(tmp_path, capsys):
    run = trainer(tmp_path, monitor(picture=True), max_epochs=1)
    run.fit(Linear(), datamodule=Vectors())
    assert {path.name for path in (tmp_path / "boundary").iterdir()} == {"boundaries.csv", "curves.png"}


def test_a_resumed_run_walks_the_same_paths_and_goes_on_in_the_table(tmp_path):
    folder = tmp_path / "paths"
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = monitor(dirpath=folder, picture=True, seed=3)
    fitted(tmp_path, whole, saver, max_epochs=3)
    table, pictures = rows_in(folder), {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert len(table) == 80
    with (folder / "boundaries.csv").open("a") as file:
        file.write("3,18,19,ran")  # a run that was killed while it wrote

    again = monitor(dirpath=folder, picture=True, seed=4)  # the checkpoint's pairs are taken, not another draw
    fitted(tmp_path, again, ckpt_path=tmp_path / "epoch=0.ckpt", max_epochs=3, seed=6)
    assert np.array_equal(again.pairs.first, whole.pairs.first)
    assert np.array_equal(again.pairs.second, whole.pairs.second)
    assert [row["epoch"] for row in again.history] == [row["epoch"] for row in whole.history]
    resumed = rows_in(folder)
    assert [(row["epoch"], row["pair"]) for row in resumed] == [(row["epoch"], row["pair"]) for row in table]
    assert resumed[:40] == table[:40]
    assert {path.name for path in folder.glob("*.png")} == set(pictures)
    assert (folder / "paths-epoch=0001.png").stat().st_mtime_ns == pictures["paths-epoch=0001.png"]
    assert (folder / "paths-epoch=0002.png").stat().st_mtime_ns > pictures["paths-epoch=0002.png"]


def test_a_checkpoint_loads_without_running_code(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last")
    watch = monitor(layer="avgpool")
    fitted(tmp_path, watch, saver, data=pruned())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = content["callbacks"][watch.state_key]
    assert torch.equal(state["pairs"]["first"], torch.from_numpy(watch.pairs.first))
    assert len(state["history"]) == 15


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    fitted(tmp_path, monitor(), ModelCheckpoint(tmp_path, "last"), max_epochs=1)

    class Smaller(Data):
        def train_dataloader(self):
            return DataLoader(Images(60), batch_size=16)

    with pytest.raises(MisconfigurationException, match="pairs of the checkpoint are from 90 images, .* now has 60"):
        fitted(tmp_path, monitor(), data=Smaller(), ckpt_path=tmp_path / "last.ckpt")


def test_a_new_run_replaces_what_an_earlier_one_left(tmp_path):
    watch = monitor(picture=True, num_pictured=5)
    fitted(tmp_path, watch)
    first = watch.pairs
    mine = tmp_path / "boundary" / "notes.txt"
    mine.write_text("mine")
    watch.seed = 8
    fitted(tmp_path, watch, max_epochs=1)
    assert not np.array_equal(watch.pairs.first, first.first)
    assert [row["epoch"] for row in rows_in(tmp_path / "boundary")] == ["0"] * 20 + ["1"] * 20
    assert len(list((tmp_path / "boundary").glob("paths-epoch=*.png"))) == 2
    assert {row["epoch"] for row in watch.history} == {0, 1}
    assert mine.read_text() == "mine"


def test_a_second_fit_that_goes_on_keeps_the_pairs(tmp_path):
    watch = monitor()
    model, run = fitted(tmp_path, watch, max_epochs=1)
    first = watch.pairs
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=Data())
    assert watch.pairs is first
    assert [row["epoch"] for row in watch.history] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(rows_in(tmp_path / "boundary")) == 60


def test_a_checkpoint_without_this_monitor_starts_it_there(tmp_path):
    fitted(tmp_path, ModelCheckpoint(tmp_path, "last"), max_epochs=1)
    watch = monitor()
    fitted(tmp_path, watch, ckpt_path=tmp_path / "last.ckpt")
    assert {row["epoch"] for row in watch.history} == {2}


def test_several_monitors_watch_side_by_side(tmp_path):
    near, far = monitor(name="near", strata=["same_class_near"]), monitor(name="far", strata=["same_class_far"])
    _, run = fitted(tmp_path, near, far, ModelCheckpoint(tmp_path, "last"))
    assert near.state_key != far.state_key
    assert {"near/same_class_near/crossing_rate", "far/same_class_far/crossing_rate"} < set(run.callback_metrics)
    assert len(rows_in(tmp_path / "near")) == len(rows_in(tmp_path / "far")) == 60
    callbacks = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert {near.state_key, far.state_key} < set(callbacks)


def test_a_quick_try_walks_a_few_paths_and_writes_nothing(tmp_path):
    watch = monitor(picture=True, layer="avgpool")
    fitted(tmp_path, watch, fast_dev_run=True)
    assert len(watch.pairs) == 10
    assert {row["epoch"] for row in watch.history} == {0, 1}
    assert not list(tmp_path.rglob("*.*"))
    fitted(tmp_path / "real", watch, max_epochs=1)
    written = sorted(path.name for path in (tmp_path / "real" / "boundary").iterdir())
    (tmp_path / "real" / "boundary" / "boundaries.csv").write_text("")
    fitted(tmp_path / "real", watch, fast_dev_run=True)
    assert sorted(path.name for path in (tmp_path / "real" / "boundary").iterdir()) == written
    assert (tmp_path / "real" / "boundary" / "boundaries.csv").read_text() == ""


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"limit_train_batches": 0}])
def test_without_training_there_is_nothing(tmp_path, options):
    watch = monitor(picture=True)
    fitted(tmp_path, watch, **options)
    assert watch.pairs is None
    assert not list(tmp_path.rglob("*.*"))


def test_testing_and_validating_do_not_wake_it(tmp_path):
    watch = monitor(num_points=1)
    trainer(tmp_path, watch).validate(Model(), datamodule=Data(), verbose=False)
    assert watch.pairs is None


def test_images_are_read_anew_where_they_would_take_too_much_memory(tmp_path, monkeypatch):
    held, read = monitor(layer="avgpool"), monitor(layer="avgpool")
    fitted(tmp_path, held)
    assert held._walker is None, "let go at the end"
    monkeypatch.setattr("toolkit.boundary.probing._HELD_BYTES", 3 * 2 * 36 * 4)
    fitted(tmp_path, read)
    assert read.report.classes == held.report.classes
    for ours, theirs in zip(read.history, held.history, strict=True):
        assert ours == {key: pytest.approx(value, nan_ok=True) for key, value in theirs.items()}


def test_classes_alone_have_no_margins(tmp_path):
    watch, logger = monitor(decision=lambda logits: logits.argmax(1)), CSVLogger(tmp_path)
    _, run = fitted(tmp_path, watch, logger=logger)
    assert "boundary/random/crossing_rate" in run.callback_metrics
    assert not [key for key in run.callback_metrics if "margin" in key]


class Bare(Images):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class Autoencoder(Model):
    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


def test_loaders_without_a_data_module_and_without_labels(tmp_path):
    watch = monitor()
    data = Bare()
    del data.targets
    data.targets = None
    run = trainer(tmp_path, watch)
    data.__class__ = type("Plain", (Bare,), {"__getitem__": lambda self, index: self.images[index]})
    run.fit(Autoencoder(), train_dataloaders=DataLoader(data, batch_size=16))
    assert watch.pairs.counts() == {"random": 20}
    assert watch.pairs.labels is None


class Dictionaries(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"photograph": image, "label": label}


class OfDictionaries(Autoencoder):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["photograph"], batch_idx)


def test_dictionaries_with_a_key_of_their_own(tmp_path):
    loader = DataLoader(Dictionaries(), batch_size=16)
    watch, expected = monitor(input_key="photograph"), monitor()
    trainer(tmp_path, watch, max_epochs=1).fit(OfDictionaries(), loader)
    trainer(tmp_path, expected, max_epochs=1).fit(Model(), DataLoader(Images(), batch_size=16))
    assert np.array_equal(watch.pairs.first, expected.pairs.first)
    assert np.array_equal(watch.pairs.second, expected.pairs.second)
    assert len(watch.history) == len(expected.history)
    with pytest.raises(ValueError, match="`input_key` must be the key of the images in a batch"):
        trainer(tmp_path, monitor(), max_epochs=1).fit(OfDictionaries(), loader)


def test_half_precision_models_get_images_of_their_type(tmp_path):
    watch = monitor(strata=["random"])
    fitted(tmp_path, watch, precision="bf16-true", max_epochs=1)
    assert len(watch.history) == 2


class Failing(Model):
    """Raises in evaluation once it has trained."""

    def forward(self, images):
        if self.losses and not self.training:
            raise RuntimeError("broken network")
        return super().forward(images)


def test_everything_is_as_before_after_a_failure(tmp_path):
    model = Failing()
    model.stem[1].eval()  # a part that is frozen
    run = trainer(tmp_path, monitor(layer="avgpool"), limit_val_batches=0)
    with (
        pytest.warns(UserWarning, match="Found 1 module.* in eval mode"),
        pytest.raises(RuntimeError, match="broken network"),
    ):
        run.fit(model, datamodule=Data())
    assert model.training
    assert model.head.training
    assert not model.stem[1].training
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_full_disk_costs_the_files_not_the_training(tmp_path, monkeypatch):
    class Unwritable:
        def __init__(self, path):
            pass

        def check(self):
            pass

        def keep(self, epochs):
            pass

        def append(self, rows):
            raise OSError("no space left")

    monkeypatch.setattr(decision_boundary_monitor, "PathTable", Unwritable)
    watch = monitor(picture=True, num_pictured=5)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
    with pytest.warns(UserWarning, match="could not be written") as caught:
        fitted(tmp_path, watch, max_epochs=1)
    told = [str(warning.message).replace(f"{tmp_path}/", "") for warning in caught]
    assert [line for line in told if line.startswith("boundary")] == [
        "boundary: crossings before training could not be written (no space left).",
        "boundary: boundary/paths-epoch=0000.png could not be written (no room).",
        "boundary: crossings after 1 epoch could not be written (no space left).",
        "boundary: boundary/paths-epoch=0001.png could not be written (no room).",
        "boundary: boundary/curves.png could not be written (no room).",
    ]
    assert len(watch.history) == 8


class Diverging(Model):
    """Has NaN for weights after its first step."""

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            self.head[2].weight.fill_(torch.nan)


def test_a_model_that_diverged_is_told_and_goes_on(tmp_path):
    watch = monitor()
    run = trainer(tmp_path, watch, limit_val_batches=0)
    with pytest.warns(UserWarning, match="boundary: paths after . epochs? could not be walked. `model` must"):
        run.fit(Diverging(), datamodule=Data())
    assert {row["epoch"] for row in watch.history} == {0}
    assert np.isnan(float(run.callback_metrics["boundary/random/crossing_rate"]))


class Moody(Model):
    """Gives NaN in evaluation though its weights are finite."""

    def forward(self, images):
        return super().forward(images) * (torch.nan if self.losses and not self.training else 1)


def test_a_model_that_gives_nan_for_another_reason_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must return finite scores"):
        trainer(tmp_path, monitor(), limit_val_batches=0).fit(Moody(), datamodule=Data())


def test_a_checkpoint_of_an_untrained_model_is_not_looked_at_twice(tmp_path):
    class SavesAtOnce(L.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "first.ckpt")

    first, again = monitor(), monitor()
    fitted(tmp_path, first, SavesAtOnce())
    fitted(tmp_path, again, ckpt_path=tmp_path / "first.ckpt")
    assert [row["epoch"] for row in again.history] == [row["epoch"] for row in first.history]
    assert np.array_equal(again.pairs.first, first.pairs.first)


class Mute(Model):
    forward = L.LightningModule.forward


class FSDPStrategy(SingleDeviceStrategy):
    """By its name, one that spreads the weights."""


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layer": "avgpol"}, "`layer` must be a layer of Model, such as avgpool"),
        ({"layer": 3}, "`layer` must be a name where the network has no single sequence of layers, such as .*, got 3"),
        ({"num_points": 1}, "`num_points` must be at least 2, .* got 1"),
        ({"num_points": 3.5}, "`num_points` must be an integer, got 3.5"),
        ({"pool_size": 1}, "`pool_size` must be at least 2, got 1"),
        ({"num_pairs": 4}, "`num_pairs` must be at least 5, the number of `strata`, got 4"),
        ({"tolerance": 0.0}, r"`tolerance` must be in \(0, 1\], got 0.0"),
        ({"tolerance": "small"}, r"`tolerance` must be a number in \(0, 1\], got 'small'"),
        ({"strata": ["near"]}, "`strata` must be one of 'redundant', .* got 'near'"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be at least 1, got 0"),
        ({"batch_size": True}, "`batch_size` must be a whole number, got True"),
        ({"num_pictured": 0}, "`num_pictured` must be at least 1, got 0"),
        ({"precision": "fp8"}, "`precision` must be one of 'float32', 'bf16', got 'fp8'"),
        ({"decision": "argmax"}, "`decision` must be a function, got 'argmax'"),
        ({"name": "a/b"}, "`name` must be a text that can name a folder, got 'a/b'"),
        ({"name": 3}, "`name` must be a text that can name a folder, got 3"),
        ({"layer": 1.5}, "`layer` must be a text, a whole number or None, got 1.5"),
        ({"input_key": 3}, "`input_key` must be a text or None, got 3"),
        ({"dirpath": 3}, "`dirpath` must be a path or None, got 3"),
        ({"seed": 0.5}, "`seed` must be a whole number, got 0.5"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"dirpath": "file/folder"}, "`dirpath` must be a folder that can be written to"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_epoch(tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(MisconfigurationException, match=match):
        fitted(tmp_path, monitor(**options))
    assert {path.name for path in tmp_path.iterdir()} <= {"file"}


def test_surroundings_that_cannot_work_are_refused_before_the_first_epoch(tmp_path):
    with pytest.raises(MisconfigurationException, match="Mute must have a `forward`"):
        trainer(tmp_path, monitor()).fit(Mute(), datamodule=Data())
    with pytest.raises(MisconfigurationException, match="`strategy` must keep the whole model on .* got FSDPStrategy"):
        trainer(tmp_path, monitor(), strategy=FSDPStrategy(torch.device("cpu"))).fit(Model(), datamodule=Data())
    run = trainer(tmp_path, monitor())
    run.callbacks.append(monitor(seed=2))
    with pytest.raises(MisconfigurationException, match="`name` must be another for each monitor, got 'boundary' twi"):
        run.fit(Model(), datamodule=Data())
    shared = [monitor(name=name, dirpath=tmp_path / "same") for name in "ab"]
    with pytest.raises(MisconfigurationException, match="`dirpath` must be another for each monitor"):
        trainer(tmp_path, *shared).fit(Model(), datamodule=Data())
    shared = [monitor(name="a"), monitor(name="b", dirpath=tmp_path / "a")]
    with pytest.raises(MisconfigurationException, match="`dirpath` must be another for each monitor"):
        trainer(tmp_path, *shared).fit(Model(), datamodule=Data())
    (tmp_path / "boundary").mkdir(exist_ok=True)
    (tmp_path / "boundary" / "boundaries.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MisconfigurationException, match="must be a table with the columns epoch"):
        fitted(tmp_path, monitor())


class LateLayers(Model):
    def __init__(self):
        super().__init__()
        self.avgpool = None

    def configure_model(self):
        self.avgpool = nn.AdaptiveAvgPool2d(2)


def test_layers_that_are_made_late_are_found(tmp_path):
    watch = monitor(layer="avgpool")
    trainer(tmp_path, watch, max_epochs=1).fit(LateLayers(), datamodule=Data())
    assert "feature_distance_mean" in watch.history[0]


class WithClasses(Data):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def train_dataloader(self):
        data = Images()
        data.targets = data.targets % self.classes
        return DataLoader(data, batch_size=16)


def test_labels_that_are_no_classes_of_the_model_are_told(tmp_path):
    with pytest.raises(MisconfigurationException, match="labels must be classes of the model, 0 to 1, got 2"):
        trainer(tmp_path, monitor(), limit_val_batches=0).fit(Model(2), datamodule=WithClasses(3))
    with pytest.raises(ValueError, match="at least two classes, or have a `decision`"):
        trainer(tmp_path, monitor(), limit_val_batches=0).fit(Model(1), datamodule=WithClasses(1))
    watch = monitor()
    trainer(tmp_path, watch, max_epochs=1).fit(Model(), datamodule=WithClasses(1))
    assert "cross_class_near" not in watch.pairs.strata


def test_what_was_left_to_say_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO", logger="lightning.pytorch")
    fitted(tmp_path, monitor(picture=True, num_pictured=5), max_epochs=1)
    fitted(tmp_path, monitor(picture=True, num_pictured=5), max_epochs=1, logger=CSVLogger(tmp_path))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("boundary: ")]
    assert [line.partition(",")[0] for line in told if "walking" not in line] == [
        "boundary: there is no logger",
        "boundary: no logger takes pictures",
    ]
    [first, _] = [line for line in told if "walking" in line]
    assert "20 pairs of images (5 same_class_near, 5 same_class_far, 5 cross_class_near, 5 random" in first
    assert "no pairs of the kinds redundant" in first


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """The folder of a run on two processes, and of another in which one of them fails."""
    folder = tmp_path_factory.mktemp("two")
    run_script(SCRIPT, folder)
    return folder


@pytest.mark.slow
def test_two_processes_find_and_log_what_one_finds(on_two, tmp_path):
    runpy.run_path(str(SCRIPT))["fit"](tmp_path, 1)
    first, second = (json.loads((on_two / f"rank{rank}.json").read_text()) for rank in (0, 1))
    alone = json.loads((tmp_path / "rank0.json").read_text())
    assert first["pairs"] == second["pairs"] == alone["pairs"]
    assert first["classes"] == second["classes"] == alone["classes"]
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], nan_ok=True, abs=1e-5)
    assert first["probed"] + second["probed"] == alone["probed"] + 1, "each asks for one image whether it can be asked"
    assert alone["probed"] > max(first["probed"], second["probed"]) > 0.3 * alone["probed"]
    tables = [rows_in(folder / "boundary") for folder in (on_two, tmp_path)]
    assert len(tables[0]) == len(tables[1]) == 2 * 23
    for ours, theirs in zip(*tables, strict=True):
        assert all(ours[key] == theirs[key] for key in ("epoch", "pair", "first", "second", "classes"))
    logged = [(folder / "metrics.csv").read_text().count("\n") for folder in (on_two, tmp_path)]
    assert logged[0] == logged[1]


def test_a_failure_on_one_rank_stops_all(on_two):
    failed = [json.loads((on_two / "broken" / f"error{rank}.json").read_text()) for rank in (0, 1)]
    assert failed[1] == "broken on rank one"
    assert "because another rank failed (rank 1: ValueError: broken on rank one" in failed[0]
