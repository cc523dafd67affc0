"""The detector: training as ultralytics trains, averaged weights, checkpoints, scores and exports."""

import copy
import json
import math
import pickle
import random
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from detection_batches import TINY, collate, loader, samples
from detection_data import NAMES, write_data
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from processes import run_script
from torch import nn

# Through the toolkit, which puts back what importing ultralytics changes.
pytest.importorskip("toolkit.detection.ultralytics_parts", exc_type=ImportError)

import ultralytics

from toolkit import FeatureExtractor
from toolkit.callbacks import DecisionBoundaryMonitor
from toolkit.datamodules import YOLODataModule
from toolkit.detection.ultralytics_parts import DetectionModel, ModelEMA, non_max_suppression
from toolkit.models import YOLOv5
from toolkit.models.yolo import WarmupSchedule, WeightAverage, most_confident_class
from toolkit.models.yolo_network import build_network, head_of, set_classes


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Several threads are slower for layers this small, most of all beside other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return YOLOv5(TINY, **{"num_classes": 3, **options})


def trainer(**options):
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        **options,
    }
    return L.Trainer(**options)


def difference(first, second):
    """The largest difference between two state dicts."""
    assert first.keys() == second.keys()
    return max(float((value.float() - second[name].float()).abs().max()) for name, value in first.items())


class Data(L.LightningDataModule):
    num_classes = 3
    class_names = ["square", "bar", "dot"]  # noqa: RUF012

    def __init__(self, count=8, val=4):
        super().__init__()
        self.count, self.val = count, val

    def train_dataloader(self):
        return loader(samples(self.count))

    def val_dataloader(self):
        return loader(samples(self.val, seed=1))


class Stop(L.Callback):
    """Ends a training early, after an epoch or a batch of it."""

    def __init__(self, epoch=None, batch=None, path=None):
        self.epoch, self.batch, self.path = epoch, batch, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


# The training.


def as_ultralytics_trains(model, batches, epochs, nominal, *, cosine=False, warmup_epochs=3.0, lr0=0.01, lrf=0.01):
    """What `BaseTrainer` of ultralytics does with optimizer=SGD, written out."""
    size, count = len(batches[0]["img"]), len(batches)
    accumulate = max(round(nominal / size), 1)
    decay = 5e-4 * size * accumulate / nominal
    accumulate = full = min(accumulate, count * epochs)
    norms = tuple(kind for name, kind in nn.__dict__.items() if "Norm" in name)
    groups = [], [], []
    for layer, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            number = 2 if "bias" in f"{layer}.{name}" else 1 if isinstance(module, norms) else 0
            groups[number].append(parameter)
    options = {"lr": lr0, "momentum": 0.937, "nesterov": True}
    optimizer = torch.optim.SGD(
        [
            {"params": groups[0], "weight_decay": decay, "name": "weight", **options},
            {"params": groups[1], "weight_decay": 0.0, "name": "bn", **options},
            {"params": groups[2], "name": "bias", **options},
        ]
    )

    def factor(x):
        if cosine:
            return max((1 - math.cos(x * math.pi / epochs)) / 2, 0) * (lrf - 1) + 1
        return max(1 - x / epochs, 0) * (1.0 - lrf) + lrf

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scheduler.last_epoch = -1
    average = ModelEMA(model)
    warmup = min(warmup_epochs, max(epochs - 1, 0))
    warmup = round(warmup * count) if warmup > 0 else 0
    last_step, steps = -1, []
    model.train()
    for epoch in range(epochs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
        for i, batch in enumerate(batches):
            ni = i + count * epoch
            if warmup and ni <= warmup:
                accumulate = max(1, int(np.interp(ni, [0, warmup], [1, full]).round()))
                for group in optimizer.param_groups:
                    start = 0.1 if group["name"] == "bias" else 0.0
                    group["lr"] = float(np.interp(ni, [0, warmup], [start, group["initial_lr"] * factor(epoch)]))
                    group["momentum"] = float(np.interp(ni, [0, warmup], [0.8, 0.937]))
            loss, _ = model(batch)
            loss.sum().backward()
            if ni - last_step >= accumulate:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update(model)
                last_step = ni
                steps.append(ni)
    return average, steps


@pytest.mark.parametrize("options", [{}, {"cosine": True, "warmup_epochs": 0.0}, {"warmup_epochs": 1.5, "lr0": 0.02}])
def test_weights_after_training_are_those_of_ultralytics_loop(options):
    names = {"lr0": "learning_rate"}
    model = tiny(nominal_batch_size=12, **{names.get(name, name): value for name, value in options.items()})
    other = copy.deepcopy(model.network)
    run = trainer(max_epochs=3)
    run.fit(model, loader(samples(20)), loader(samples(4, seed=1)))  # validation in between changes nothing
    batches = [collate(samples(20)[start : start + 4]) for start in range(0, 20, 4)]
    average, steps = as_ultralytics_trains(other, batches, 3, 12, **options)
    assert run.global_step == len(steps) < 15, "batches were added up"
    assert (steps[0], 14) != (0, steps[-1]) or options, "some gradients were left over"
    assert difference(model.network.state_dict(), average.ema.state_dict()) < 1e-6
    assert difference(model._average.values, other.state_dict()) < 1e-6
    assert difference(model.network.state_dict(), other.state_dict()) > 1e-4, "averaged and trained weights differ"


def test_weights_stay_the_initial_ones_where_the_rate_is_almost_nothing():
    model = tiny(learning_rate=1e-12, warmup_bias_lr=0.0)
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    trainer(max_epochs=1).fit(model, loader(samples(8)))
    assert all(torch.allclose(before[name], value) for name, value in model.network.named_parameters())


def test_average_is_that_of_ultralytics():
    network = build_network(TINY, 2)
    average, theirs = WeightAverage(network, 0.9, 5.0), ModelEMA(network, 0.9, 5.0)
    for _ in range(4):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(1)
        average.update(network)
        theirs.update(network)
    assert difference(average.values, theirs.ema.state_dict()) == 0.0
    trained = copy.deepcopy(network.state_dict())
    average.swap(network)
    assert difference(network.state_dict(), theirs.ema.state_dict()) == 0.0
    assert difference(average.values, trained) == 0.0


def test_groups_decay_and_frozen_layer():
    model = tiny(weight_decay=0.1, nominal_batch_size=10)
    run = trainer(max_epochs=1)
    run.fit(model, loader(samples(8)))
    groups = {group["kind"]: group for group in run.optimizers[0].param_groups}
    named = {id(parameter): name for name, parameter in model.network.named_parameters()}
    assert {named[id(p)] for p in groups["bias"]["params"]} == {n for n in named.values() if n.endswith("bias")}
    assert all(".bn." in named[id(p)] for p in groups["norm"]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(named)
    # Batches of 4 are added up to 8 of the nominal 10.
    assert [groups[kind]["weight_decay"] for kind in ("weight", "norm", "bias")] == [pytest.approx(0.08), 0.0, 0.0]
    frozen = [name for name, parameter in model.network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.6.dfl.conv.weight"]


def test_gradients_are_clipped():
    before = dict(tiny().network.named_parameters())
    largest = {}
    for norm in (None, 0.1, 1e-9):
        model = tiny(max_gradient_norm=norm, ema=False, weight_decay=0.0)
        trainer(max_epochs=1).fit(model, loader(samples(4)))
        changes = [(value - before[name]).detach().abs().max() for name, value in model.network.named_parameters()]
        largest[norm] = float(max(changes))
    assert 0 < largest[1e-9] < 1e-9 < largest[0.1] < largest[None]


def test_schedule_warms_up_and_falls():
    schedule = WarmupSchedule(batches=10, epochs=4, accumulate=4, warmup_epochs=1.0)
    rates = [schedule.rate(step, is_bias=False) for step in range(40)]
    assert rates[0] == 0.0
    assert sorted(rates[:10]) == rates[:10]
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert schedule.rate(0, is_bias=True) == 0.1
    assert [schedule.momentum_at(step) for step in (0, 10, 39)] == [0.8, 0.937, 0.937]
    assert WarmupSchedule(batches=10, epochs=1).warmup == 0, "the last epoch has no warm-up"
    assert WarmupSchedule(batches=10, epochs=9, warmup_epochs=0.0).rate(0, is_bias=True) == 0.01


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("where", ["epoch", "batch", "after"])
def test_resuming_goes_on_as_if_nothing_had_happened(tmp_path, where, ema):
    # Steps of three batches, so that gradients are waiting at the end of the second epoch of four.
    options = {"nominal_batch_size": 12, "warmup_epochs": 1.0, "ema": ema}
    # Lightning starts a loader over in the middle of an epoch: only equal batches are the same then.
    data = loader(samples(4) * 4 if where == "batch" else samples(16)), loader(samples(4, seed=1))
    whole, path = tiny(**options), tmp_path / "half.ckpt"
    first_run = trainer(max_epochs=4)
    first_run.fit(whole, *data)

    stop = Stop(epoch=1, batch=2 if where == "batch" else None, path=path)
    saver = [ModelCheckpoint(tmp_path, "half", every_n_epochs=2)] if where == "epoch" else []
    half = trainer(max_epochs=4, callbacks=[stop, *saver], enable_checkpointing=bool(saver))
    half.fit(tiny(**options), *data)
    if where == "after":
        half.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["yolov5"]["gradients"], "gradients are waiting"

    resumed = tiny(seed=5, **options)
    run = trainer(max_epochs=4)
    with warnings.catch_warnings():  # of Lightning, of callbacks and loaders that are not as they were
        warnings.simplefilter("ignore")
        run.fit(resumed, *data, ckpt_path=path, weights_only=True)
    assert run.global_step == first_run.global_step
    assert difference(resumed.network.state_dict(), whole.network.state_dict()) == 0.0
    momenta = [list(r.optimizers[0].state_dict()["state"].values()) for r in (run, first_run)]
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(*momenta, strict=True))
    if ema:
        assert difference(resumed._average.values, whole._average.values) == 0.0
        assert resumed._average.updates == whole._average.updates == run.global_step


def test_a_checkpoint_holds_averaged_weights_and_needs_no_other_file(tmp_path):
    data = write_data(tmp_path / "data")
    torch.save(tiny(num_classes=2).network.state_dict(), tmp_path / "start.pt")
    (tmp_path / "own.yaml").write_text(str(TINY))
    model = YOLOv5(tmp_path / "own.yaml", weights=tmp_path / "start.pt")
    run = trainer(max_epochs=2)
    run.fit(model, datamodule=YOLODataModule(data, imgsz=64, batch_size=6))
    for name in ("start.pt", "own.yaml"):
        (tmp_path / name).unlink()
    run.save_checkpoint(tmp_path / "whole.ckpt")
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    whole, weights = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "weights"))
    assert difference(whole["state_dict"], model.state_dict()) == 0.0
    assert difference(whole["state_dict"], weights["state_dict"]) == 0.0
    assert difference(whole["yolov5"]["training_weights"], model._average.values) == 0.0
    assert weights["yolov5"] == {"class_names": list(NAMES), "imgsz": 64}
    images = torch.rand(2, 3, 64, 64)
    for name in ("whole", "weights"):
        loaded = YOLOv5.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        assert (loaded.num_classes, loaded.class_names, loaded.hparams.num_classes) == (3, list(NAMES), 3)
        assert torch.equal(loaded.eval()(images), model.eval()(images))
    again = YOLOv5(TINY, weights=tmp_path / "whole.ckpt")
    assert torch.equal(again.eval()(images), model(images))


def test_averaged_weights_are_evaluated_and_stay_after_training(tmp_path):
    class Look(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *rest):
            self.validated = copy.deepcopy(pl_module.network.state_dict())
            self.trained = copy.deepcopy(pl_module._average.values)

        def on_train_batch_start(self, trainer, pl_module, *rest):
            self.at_batch = copy.deepcopy(pl_module.network.state_dict())

        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "validated.ckpt")
            self.after = copy.deepcopy(pl_module.network.state_dict())

    look = Look()
    model = tiny(ema_tau=2.0)
    run = trainer(max_epochs=1, callbacks=[look], num_sanity_val_steps=1)
    run.fit(model, loader(samples(12)), loader(samples(6, seed=1)))
    assert difference(look.after, look.trained) == 0.0
    assert difference(look.validated, look.trained) > 1e-5
    assert difference(model.network.state_dict(), look.validated) == 0.0
    saved = torch.load(tmp_path / "validated.ckpt", weights_only=True)
    assert difference(saved["state_dict"], {f"network.{k}": v for k, v in look.validated.items()}) == 0.0
    assert difference(saved["yolov5"]["training_weights"], look.trained) == 0.0
    [validated] = run.validate(model, loader(samples(6, seed=1)), verbose=False)
    assert validated == {k: pytest.approx(float(run.callback_metrics[k]), nan_ok=True) for k in validated}
    names = {name for name, _ in model.named_modules()}
    assert {name.partition(".")[0] for name in names} == {"", "network"}, "one network, so names are unambiguous"


class Break(L.Callback):
    def __init__(self, hook):
        def fail(trainer, pl_module, *rest):
            if trainer.global_step == 2:
                raise RuntimeError("broken")

        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_an_interrupted_training_leaves_averaged_weights_to_whoever_goes_on(tmp_path, hook):
    model = tiny(ema_tau=2.0, nominal_batch_size=4)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(max_epochs=2, callbacks=[Break(hook)]).fit(model, loader(samples(8)), loader(samples(4)))
    averaged = model.network.state_dict() if model._is_averaged else model._average.values
    averaged = copy.deepcopy(averaged)
    assert difference(YOLOv5(model.export(tmp_path / "a.pt")).network.state_dict(), averaged) == 0.0
    trainer().validate(model, loader(samples(4)), verbose=False)
    assert difference(model.network.state_dict(), averaged) == 0.0
    trainer(max_epochs=1).fit(model.train(), loader(samples(8)))


def test_mixed_precision_trains_and_does_not_round_boxes():
    model, full = tiny(), tiny()
    run = trainer(max_epochs=1, precision="bf16-mixed")
    run.fit(model, loader(samples(8)), loader(samples(4)))
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert model.network.model[0].conv.weight.dtype == torch.float32
    full.load_state_dict(model.state_dict())
    [found], [exact] = (
        trainer(precision=precision).predict(module, loader(samples(4)))
        for module, precision in ((model, "bf16-mixed"), (full, "32-true"))
    )
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gradient_clip_val": 1.0}, "`gradient_clip_val` of the trainer .*`max_gradient_norm`"),
        ({"accumulate_grad_batches": 2}, "`accumulate_grad_batches` of the trainer .*`nominal_batch_size` images"),
        ({"max_epochs": -1, "max_steps": 3}, "`max_epochs` of the trainer must be set .*got -1"),
        ({"max_epochs": None, "max_steps": 3}, "`max_epochs` of the trainer must be set .*got -1"),
    ],
)
def test_trainers_that_would_train_otherwise_are_refused(options, match):
    with pytest.raises(MisconfigurationException, match=match):
        trainer(**{"max_epochs": 1, **options}).fit(tiny(), loader(samples(4)))


def test_loaders_that_do_not_tell_batches_are_refused():
    batches = torch.utils.data.DataLoader([collate(samples(4))], batch_size=None)
    with pytest.raises(MisconfigurationException, match="must be one with a `batch_size`"):
        trainer(max_epochs=1).fit(tiny(), batches)

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield from samples(4)

    with pytest.raises(MisconfigurationException, match="training data must have a length .*`limit_train_batches`"):
        trainer(max_epochs=1).fit(tiny(), loader(Endless()))


@pytest.mark.slow
def test_two_processes_train_as_one_on_their_batches_together(tmp_path):
    script = Path(__file__).parent.parent / "scripts" / "ddp_yolo.py"
    run_script(script, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["sums"] == second["sums"], "weights and statistics are the same everywhere"
    assert {k: str(v) for k, v in first["metrics"].items()} == {k: str(v) for k, v in second["metrics"].items()}
    assert (first["evaluated"], second["evaluated"]) == ([7], []), "each image once, on one process"
    assert first["decay"] == pytest.approx(5e-4), "of batches of 4, two of which make a step of 8"

    model = tiny(nominal_batch_size=8)
    model.network.apply(lambda module: module.eval() if isinstance(module, nn.BatchNorm2d) else module)
    for rank in (first, second):
        batch = collate([item for item in samples(16) if item["im_file"] in rank["images"]])
        model.network.loss(batch, model.network(batch["img"]))[0].sum().backward()
    expected = head_of(model.network).cv3[0][2].bias.grad
    torch.testing.assert_close(torch.tensor(first["gradients"]), expected)


# The number of classes, and weights.


def test_a_head_for_other_classes_is_that_of_a_fresh_network():
    torch.manual_seed(0)
    network = build_network(YOLOv5().network.yaml)
    body, before = network.model[9], copy.deepcopy(network.state_dict())
    set_classes(network, 3)
    fresh = DetectionModel("yolov5n.yaml", nc=3, verbose=False)
    own, theirs = network.state_dict(), fresh.state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}
    assert network.model[9] is body
    assert all(torch.equal(own[name], before[name]) for name in own if not name.startswith("model.24.cv3"))
    biases = [name for name in own if name.startswith("model.24") and name.endswith("2.bias")]
    assert len(biases) == 6
    assert all(torch.equal(own[name], theirs[name]) for name in biases)
    fresh.load_state_dict(own)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(network.eval()(images)[0], fresh.eval()(images)[0])
    assert (network.yaml["nc"], network.names, network.stride.tolist()) == (3, {0: "0", 1: "1", 2: "2"}, [8, 16, 32])


def test_classes_come_from_the_data_module():
    model = YOLOv5(TINY)
    assert (model.num_classes, model.hparams.num_classes) == (80, None)
    before = copy.deepcopy(model.network.model[:-1].state_dict())
    run = trainer(max_epochs=1, fast_dev_run=True)
    run.fit(model, datamodule=Data())
    assert (model.num_classes, model.hparams.num_classes, model.class_names) == (3, 3, Data.class_names)
    assert before.keys() == model.network.model[:-1].state_dict().keys()
    assert "val/AP/bar" in run.callback_metrics

    more = Data()
    more.num_classes, more.class_names = 5, list("abcde")
    trainer(fast_dev_run=True).fit(model, datamodule=more)
    assert (model.num_classes, model.hparams.num_classes, model.class_names) == (5, 5, list("abcde"))

    given = YOLOv5(TINY, num_classes=4)
    trainer(fast_dev_run=True).fit(given, datamodule=Data())
    assert (given.num_classes, given.class_names) == (4, [*Data.class_names, "3"])
    with pytest.raises(MisconfigurationException, match="`num_classes` must be at least the data module's 3, got 2"):
        trainer(fast_dev_run=True).fit(YOLOv5(TINY, num_classes=2), datamodule=Data())


@pytest.mark.parametrize("n_source", [3, 90])
def test_classes_come_from_weights_unless_they_are_given(n_source):
    source = tiny(num_classes=n_source)
    model = YOLOv5(TINY)
    model.load_state_dict(source.state_dict())
    assert (model.num_classes, model.hparams.num_classes) == (n_source, n_source)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), source.eval()(images))
    trainer(fast_dev_run=True).fit(model.train(), datamodule=Data())  # for other data it gets another head
    assert model.num_classes == 3
    with pytest.raises(RuntimeError, match="size mismatch for network.model.6.cv3"):
        YOLOv5(TINY, num_classes=5).load_state_dict(source.state_dict())


def test_testing_does_not_replace_a_trained_head():
    model = YOLOv5(TINY)
    model.load_state_dict(tiny(num_classes=2).state_dict())
    with pytest.raises(MisconfigurationException, match="at least the data module's 3, got 2"):
        trainer().validate(model, datamodule=Data())
    assert model.num_classes == 2


def test_part_of_the_weights_is_loaded_and_told(tmp_path, caplog):
    source = tiny(num_classes=90).network.state_dict()
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in source.items()}, tmp_path / "all.pt")
    torch.save({k: v for k, v in source.items() if not k.startswith("model.6")}, tmp_path / "body.pt")
    with caplog.at_level("INFO"):
        model = YOLOv5(TINY, 3, tmp_path / "body.pt")
    told = "body.pt': 60 of 145 tensors are from the file; as they were (85): model.6.cv2.0.0.conv.weight"
    assert told in caplog.text
    own = model.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in source.items() if not name.startswith("model.6"))
    caplog.clear()
    with caplog.at_level("INFO"):
        model = YOLOv5(TINY, 3, tmp_path / "all.pt")
    own = model.network.state_dict()
    assert "left out of the file (" in caplog.text
    assert "model.6.cv3.0" in caplog.text.partition("left out of the file")[2]
    boxes = "model.6.cv2.0.0.conv.weight"
    assert torch.equal(own[boxes], source[boxes].half().float())
    assert own[boxes].dtype == torch.float32
    assert YOLOv5(TINY, weights=tmp_path / "all.pt").num_classes == 90


def test_weights_of_another_architecture_are_refused(tmp_path):
    other = copy.deepcopy(TINY)
    other["backbone"][0][3] = [16, 3, 2]
    torch.save(build_network(other).state_dict(), tmp_path / "other.pt")
    torch.save(nn.Linear(2, 2).state_dict() | {"scale": torch.ones(1)}, tmp_path / "linear.pt")
    torch.save({"epsilon": torch.ones(1), "gamma": torch.ones(1)}, tmp_path / "names.pt")
    for name, match in (
        ("other.pt", r"got '.*other.pt' with other shapes \(.*\): model.0.conv.weight \(16, 3, 3, 3\) instead of \(8,"),
        ("names.pt", "got '.*names.pt' with other names: epsilon, gamma, where the model has model.0.conv.weight"),
        ("linear.pt", "got '.*linear.pt' with other shapes"),
    ):
        with pytest.raises(ValueError, match=f"`weights` must fit the model DetectionModel, {match}"):
            YOLOv5(TINY, weights=tmp_path / name)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"`weights` must be a file of tensors .*text.pt"):
        YOLOv5(TINY, weights=tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"`network` must be a checkpoint of ultralytics, got .*text.pt"):
        YOLOv5(tmp_path / "text.pt")


def test_features_of_named_layers_from_a_checkpoint_for_other_classes(tmp_path):
    run, model = trainer(max_epochs=1), YOLOv5(TINY)
    run.fit(model, datamodule=Data())
    run.save_checkpoint(tmp_path / "trained.ckpt")
    images = torch.stack([item["img"] for item in samples(5)])
    for layer in ("network.model.5", "model.5", -2):
        extractor = FeatureExtractor(YOLOv5(TINY), layer, tmp_path / "trained.ckpt", cache=False, progress=False)
        vectors = extractor.vectors(torch.utils.data.TensorDataset(images))
        maps = model.eval().network.model[:6](images)  # the layers before the head follow each other
        assert np.allclose(vectors, maps.mean((2, 3)).detach().numpy(), atol=1e-5)


# What it finds.


def all_found(items, network_size=64):
    """Detections that are the true boxes."""
    result = []
    for item in items:
        middle, sides = item["bboxes"][:, :2] * network_size, item["bboxes"][:, 2:] * network_size
        boxes = torch.cat([middle - sides / 2, middle + sides / 2], 1)
        scores = torch.linspace(0.9, 0.5, len(boxes))
        result.append(torch.cat([boxes, scores[:, None], item["cls"]], 1))
    return result


def test_scores_of_perfect_detections_and_names_of_what_is_logged(monkeypatch):
    items = samples(6, n_classes=2, seed=2)
    found = iter([all_found(items[:4]), all_found(items[4:])])
    monkeypatch.setattr(YOLOv5, "_suppressed", lambda self, decoded, multi_label: next(found))
    model = tiny(max_det=5)
    run = trainer()
    [values] = run.validate(model, loader(items), verbose=False)
    assert set(values) == {
        *(f"val/{name}" for name in ("loss", "box_loss", "cls_loss", "dfl_loss", "mAP50", "mAP50-95", "score")),
        *(f"val/AP/{number}" for number in range(3)),
    }
    assert [values[f"val/{name}"] for name in ("mAP50", "mAP50-95", "score", "AP/0", "AP/1")] == [
        pytest.approx(1.0)
    ] * 5
    assert math.isnan(values["val/AP/2"])
    loss = [values[f"val/{name}"] for name in ("box_loss", "cls_loss", "dfl_loss")]
    assert values["val/loss"] == pytest.approx(sum(loss))


def test_losses_in_validation_are_those_of_ultralytics():
    model = tiny()
    items = samples(7)
    [values] = trainer().test(model, loader(items), verbose=False)
    model.eval()
    parts = []
    with torch.no_grad():
        for start in (0, 4):
            batch = collate(items[start : start + 4])
            parts.append(model.network.loss(batch, model.network(batch["img"]))[1])
    for name in ("box_loss", "cls_loss", "dfl_loss"):  # batches count the same, as in its validator
        assert values[f"test/{name}"] == pytest.approx(float(parts[0][name] + parts[1][name]) / 2, rel=1e-5)


def test_without_boxes_scores_are_unknown_and_said_once():
    items = [{**item, "cls": item["cls"][:0], "bboxes": item["bboxes"][:0]} for item in samples(4)]
    model = tiny()
    with pytest.warns(UserWarning, match="None of the 4 images evaluated for `val/mAP50` has a box"):
        [values] = trainer().validate(model, loader(items), verbose=False)
    assert all(math.isnan(values[f"val/{name}"]) for name in ("mAP50", "mAP50-95", "score", "AP/0"))
    assert math.isfinite(values["val/loss"])
    trainer().validate(model, loader(items), verbose=False)  # without another warning, which would be an error


def test_predictions_are_those_of_non_maximum_suppression():
    model, items = tiny(confidence=0.002, max_det=7), samples(6)
    first, second = trainer().predict(model, loader(items))
    assert [len(first), len(second)] == [4, 2]
    images = torch.stack([item["img"] for item in items[:4]])
    expected = non_max_suppression(model.eval()(images).detach(), 0.002, 0.7, max_det=7)
    for found, rows in zip(first, expected, strict=True):
        assert torch.equal(found["boxes"], rows[:, :4])
        assert torch.equal(found["scores"], rows[:, 4])
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert (found["labels"].dtype, found["labels"].tolist()) == (torch.int64, rows[:, 5].long().tolist())
        assert len(rows) <= 7
    plain = trainer().predict(model, torch.utils.data.DataLoader(images, batch_size=4))
    assert torch.equal(plain[0][0]["boxes"], first[0]["boxes"])


def test_forward_gives_decoded_predictions_or_what_the_loss_takes():
    model, images = tiny(), torch.rand(2, 3, 64, 96)
    assert set(model(images)) == {"boxes", "scores", "feats"}
    decoded = model.eval()(images)
    assert decoded.shape == (2, 4 + 3, 8 * 12 + 4 * 6 + 2 * 3)
    assert torch.equal(decoded, model.network(images)[0])
    assert bool((decoded[:, 4:] >= 0).all() & (decoded[:, 4:] <= 1).all())


def test_a_look_leaves_no_trace(rng_unchanged):
    with torch.random.fork_rng():
        model, images = tiny().eval(), torch.rand(1, 3, 64, 64, requires_grad=True)
    with torch.inference_mode():
        before = model(images)
    decoded = model(images)  # what was kept of the look would refuse gradients
    decoded.sum().backward()
    assert images.grad is not None
    assert torch.equal(decoded, before)
    copy.deepcopy(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_copies_and_pickles():
    model = tiny()
    trainer(max_epochs=1).fit(model, loader(samples(4)))
    images = torch.rand(1, 3, 64, 64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.eval()(images), model.eval()(images))
        other.load_state_dict(tiny().state_dict())


# The class of an image, for those who watch boundaries.


def test_most_confident_class_of_images():
    predictions = torch.zeros(3, 4 + 2, 5)
    predictions[0, 5, 3] = 0.6
    predictions[0, 4, 1] = 0.5
    predictions[1, 4, 0] = 0.25
    predictions[2, :4] = 100.0  # coordinates do not count
    assert most_confident_class(predictions).tolist() == [1, 0, 2]
    assert most_confident_class(predictions).dtype == torch.int64
    assert most_confident_class(predictions, confidence=0.3).tolist() == [1, 2, 2]


@pytest.mark.parametrize("layer", [None, "network.model.5"])
def test_a_monitor_walks_between_images_of_a_detector(tmp_path, layer):
    data = write_data(tmp_path / "data", n_train=12)
    monitor = DecisionBoundaryMonitor(
        num_pairs=6, layer=layer, num_points=5, decision=most_confident_class, input_key="img", dirpath=tmp_path / "b"
    )
    losses = {}
    for name, callbacks in (("with", [monitor]), ("without", [])):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what ultralytics draws from
        random.seed(0)
        model = YOLOv5(TINY)
        run = trainer(max_epochs=2, callbacks=callbacks)
        run.fit(model, datamodule=YOLODataModule(data, imgsz=64, batch_size=4, close_mosaic=0))
        losses[name] = run.callback_metrics["train/loss"]
    assert torch.equal(losses["with"], losses["without"])
    assert {row["epoch"] for row in monitor.history} == {0, 1, 2}
    assert max(max(classes) for classes in monitor.report.classes) <= 3
    assert "boundary/random/crossing_rate" in {f"boundary/{row['stratum']}/crossing_rate" for row in monitor.history}


@pytest.mark.filterwarnings("ignore")  # of jsonargparse, about what Lightning calls
def test_a_config_builds_module_and_monitor_and_its_checkpoint_loads_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fit"])
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(TINY))
    monitor = {"num_pairs": 5, "num_points": 5, "input_key": "img", "dirpath": str(tmp_path / "boundary")}
    monitor["decision"] = "toolkit.models.yolo.most_confident_class"
    data = {"data": str(write_data(tmp_path / "data")), "imgsz": 64, "batch_size": 4}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [{"class_path": "toolkit.callbacks.DecisionBoundaryMonitor", "init_args": monitor}]
    config = {
        "model": {"class_path": "toolkit.models.YOLOv5", "init_args": {"network": str(tmp_path / "own.yaml")}},
        "data": {"class_path": "toolkit.datamodules.YOLODataModule", "init_args": data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "callbacks": callbacks, **quiet},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(tmp_path / "config.yaml")]
    options = {"subclass_mode_model": True, "subclass_mode_data": True, "seed_everything_default": False}
    cli = LightningCLI(run=False, args=arguments, save_config_callback=None, **options)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.callbacks[0].decision is most_confident_class
    cli.trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "own.yaml").unlink()
    assert YOLOv5.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).class_names == list(NAMES)


# ultralytics' own files.


@pytest.fixture
def known(tmp_path):
    """A detector with random weights, and validation images whose boxes are the best of what it finds in them."""
    data = write_data(tmp_path / "data", n_train=4, n_val=6, size=(64, 64))
    model = tiny(max_det=20)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for boxes, classes in zip(head_of(model.network).cv2, head_of(model.network).cv3, strict=True):
            boxes[-1].bias.copy_(-torch.arange(16.0).repeat(4))  # small boxes
            classes[-1].weight.copy_(torch.randn(classes[-1].weight.shape, generator=generator))
    datamodule = YOLODataModule(data, imgsz=64, batch_size=4)
    datamodule.setup("validate")
    [batch] = [datamodule.on_after_batch_transfer(batch, 0) for batch in datamodule.val_dataloader()]
    with torch.no_grad():
        found = model.eval().predict_step(batch, 0)
    for file, (_, padding), detections in zip(batch["im_file"], batch["ratio_pad"], found, strict=True):
        corners = (detections["boxes"] - torch.tensor(padding * 2)) / 64
        inside = ((corners >= 0) & (corners <= 1)).all(1).nonzero()[:3, 0]
        corners = corners[inside]
        middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        rows = zip(detections["labels"][inside].tolist(), torch.cat([middle, sides], 1).tolist(), strict=True)
        text = "\n".join(" ".join(map(str, [label, *numbers])) for label, numbers in rows)
        Path(file.replace("images", "labels")).with_suffix(".txt").write_text(text)
    return model, YOLODataModule(data, imgsz=64, batch_size=4), data


def test_ultralytics_opens_predicts_and_validates_what_was_exported(tmp_path, known, monkeypatch):
    model, datamodule, data = known
    run = trainer()
    [own] = run.validate(model, datamodule=datamodule, verbose=False)
    model.network.model[0].register_forward_hook(lambda *args: None)  # which no file could hold
    before = torch.get_rng_state()
    path = model.export(tmp_path / "exported.pt")
    assert torch.equal(torch.get_rng_state(), before)

    yolo = ultralytics.YOLO(path)
    assert (yolo.names, yolo.overrides["imgsz"]) == (dict(enumerate(NAMES)), 64)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(yolo.model(images)[0], model.eval()(images))
    results = yolo.predict(images, conf=0.001, iou=0.7, max_det=20, verbose=False, save=False)
    [found] = trainer().predict(model, torch.utils.data.DataLoader(images, batch_size=2))
    for theirs, mine in zip(results, found, strict=True):
        assert len(mine["boxes"]) > 0
        torch.testing.assert_close(theirs.boxes.conf, mine["scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(theirs.boxes.xyxy[:9], mine["boxes"][:9].clamp(0, 64), atol=1e-2, rtol=0)
    data.write_text(data.read_text().replace("path: .", f"path: {data.parent}"))
    options = {"plots": False, "verbose": False, "batch": 8, "project": str(tmp_path), "workers": 0, "max_det": 20}
    theirs = yolo.val(data=str(data), **options).box
    assert 0.05 < own["val/mAP50-95"] < 1.0
    assert theirs.map50 == pytest.approx(own["val/mAP50"], abs=0.01)  # they draw the curve between its points
    assert theirs.map == pytest.approx(own["val/mAP50-95"], abs=0.01)

    again = YOLOv5(path)
    assert (again.num_classes, again.class_names, again.hparams.num_classes) == (3, list(NAMES), 3)
    assert difference(again.network.state_dict(), model.network.state_dict()) == 0.0


def test_an_export_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    model = tiny()
    path = model.export(tmp_path / "a.pt")
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", lambda content, file: file.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.export(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    with pytest.raises(ValueError, match="`path` must be a file with the ending '.pt'"):
        model.export(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match="`path` must be in an existing folder"):
        model.export(tmp_path / "nowhere" / "a.pt")


def test_a_network_fine_tuned_by_ultralytics_keeps_the_width_of_its_head(tmp_path):
    source = DetectionModel(copy.deepcopy({**TINY, "nc": 80}), verbose=False)
    target = DetectionModel(copy.deepcopy({**TINY, "nc": 2}), verbose=False)
    target.load(source, verbose=False)  # which takes over the wider layers before the last
    target.names = {0: "cat", 1: "dog"}
    torch.save({"model": target.half(), "train_args": {"task": "detect"}}, tmp_path / "best.pt")
    target.float().eval()
    model = YOLOv5(tmp_path / "best.pt").eval()
    images = torch.rand(1, 3, 64, 64)
    assert head_of(model.network).cv3[0][-1].in_channels == 80
    assert torch.equal(model(images), target(images)[0])
    assert model.class_names == ["cat", "dog"]
    run = trainer(max_epochs=1)
    run.fit(model.train(), loader(samples(4, n_classes=2)))
    run.save_checkpoint(tmp_path / "own.ckpt")
    (tmp_path / "best.pt").unlink()
    loaded = YOLOv5.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True).eval()
    assert torch.equal(loaded(images), model.eval()(images))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"network": "yolov5q"}, ValueError, "`network` must be the name of a network such as 'yolov5n.yaml'"),
        ({"network": "nowhere/own.yaml"}, FileNotFoundError, "there is no 'nowhere/own.yaml'"),
        ({"network": "nowhere.pt"}, FileNotFoundError, "there is no file 'nowhere.pt'"),
        ({"network": 5}, TypeError, "`network` must be a name, a file or the content of a YAML file, got 5"),
        ({"network": {"nc": 3}}, ValueError, "which cannot be built"),
        ({"network": "yolov8n-seg.yaml"}, ValueError, "one plain detection head, got .* with Segment"),
        ({"network": "yolo26n.yaml"}, ValueError, "one plain detection head"),
        ({"weights": "nowhere.pt"}, FileNotFoundError, "`weights` must be an existing file, got 'nowhere.pt'"),
        ({"num_classes": 0}, ValueError, "`num_classes` must be at least 1, got 0"),
        ({"num_classes": 2.5}, TypeError, "`num_classes` must be a whole number or None, got 2.5"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be above 0, got 0.0"),
        ({"max_gradient_norm": -1.0}, ValueError, "`max_gradient_norm` must be above 0, got -1.0"),
        ({"weight_decay": -1.0}, ValueError, "`weight_decay` must be at least 0, got -1.0"),
        ({"momentum": 1.0}, ValueError, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"confidence": 1.5}, ValueError, r"`confidence` must be in \[0, 1\], got 1.5"),
        ({"iou": math.nan}, ValueError, r"`iou` must be in \[0, 1\], got nan"),
        ({"nominal_batch_size": 0}, ValueError, "`nominal_batch_size` must be at least 1, got 0"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        YOLOv5(**{"network": TINY, **options})


@pytest.mark.data
def test_pretrained_weights_are_all_but_the_head(data_folder, caplog):
    weights = data_folder / "weights" / "yolov5n_backbone_neck.pt"
    with caplog.at_level("INFO"):
        model = YOLOv5("yolov5n.yaml", 3, weights)
    assert "342 of 427 tensors are from the file; as they were (85): model.24.cv2" in caplog.text
    stored = torch.load(weights, weights_only=True)
    own = model.network.state_dict()
    assert all(torch.equal(own[name], value.to(own[name].dtype)) for name, value in stored.items())
    with pytest.raises(ValueError, match=r"yolov5n_backbone_neck.pt' with other shapes .*model.0.conv.weight"):
        YOLOv5("yolov5s.yaml", 3, weights)
