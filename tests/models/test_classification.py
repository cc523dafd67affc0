"""The classifier's schedule, logging, precision, checkpoints and compilation, with real trainers on tiny data."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from toolkit.models import ImageClassifier
from toolkit.models.classification import warmup_cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


class TinyNetwork(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.linear(self.conv(images).relu().mean((2, 3)))


def tiny_loader(count: int = 20, batch_size: int = 4, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(count) % 3), batch_size=batch_size, shuffle=shuffle)


def trainer(**options) -> L.Trainer:
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        **options,
    }
    return L.Trainer(**options)


class LearningRates(L.Callback):
    """The learning rate of each step, as the optimizer used it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def closed_form(total: int, warmup: int, peak: float) -> list[float]:
    rise = [peak * (t + 1) / (warmup + 1) for t in range(warmup)]
    fall = [peak / 2 * (1 + math.cos(math.pi * t / (total - warmup))) for t in range(total - warmup)]
    return rise + fall


@pytest.mark.parametrize(
    ("limits", "total"),
    [
        ({"max_epochs": 4}, 20),
        ({"max_steps": 13}, 13),
        ({"max_epochs": 4, "max_steps": 7}, 7),
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 12),
        ({"max_epochs": 4, "limit_train_batches": 3}, 12),
    ],
)
@pytest.mark.parametrize(("options", "warmup"), [({"warmup_fraction": 0.25}, None), ({"warmup_steps": 4}, 4)])
def test_schedule_follows_its_closed_form_by_steps_and_by_epochs(limits, total, options, warmup):
    rates = LearningRates()
    model = ImageClassifier(TinyNetwork(), num_classes=3, learning_rate=0.3, **options)
    run = trainer(callbacks=[rates], **limits)
    run.fit(model, tiny_loader())
    warmup = round(0.25 * total) if warmup is None else warmup
    assert run.global_step == total
    assert rates.seen == pytest.approx(closed_form(total, warmup, 0.3))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_schedule_sees_a_pruned_training_set():
    rates = LearningRates()
    loader = DataLoader(Subset(tiny_loader().dataset, range(8)), batch_size=4)
    trainer(callbacks=[rates], max_epochs=2).fit(ImageClassifier(TinyNetwork(), 3, warmup_fraction=0.0), loader)
    assert rates.seen == pytest.approx(closed_form(4, 0, 0.1))


def test_recipe_of_birodkar_et_al():
    model = ImageClassifier("resnet20")
    model.trainer = trainer(max_steps=100_000)
    config = model.configure_optimizers()
    group = config["optimizer"].param_groups[0]
    assert isinstance(config["optimizer"], torch.optim.SGD)
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    factor = config["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert config["lr_scheduler"]["interval"] == "step"
    assert factor(2_499) < 1.0 == factor(2_500)
    assert factor(51_250) == pytest.approx(0.5)
    assert factor(100_000) == 0.0


def test_factor_rises_then_falls_and_stays_at_zero():
    factors = [warmup_cosine(step, 50, 10) for step in range(60)]
    assert factors[0] > 0
    assert sorted(factors[:11]) == factors[:11]
    assert sorted(factors[10:], reverse=True) == factors[10:]
    assert factors[50:] == [0.0] * 10


def test_training_restarted_from_a_checkpoint_keeps_its_schedule(tmp_path):
    whole, second = LearningRates(), LearningRates()
    torch.manual_seed(0)
    network = TinyNetwork()
    model = ImageClassifier(copy.deepcopy(network), 3)
    trainer(callbacks=[whole], max_epochs=4).fit(model, tiny_loader())

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    first = trainer(callbacks=[Stop()], max_epochs=4)
    first.fit(ImageClassifier(copy.deepcopy(network), 3), tiny_loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = ImageClassifier(TinyNetwork(), 3)
    trainer(callbacks=[second], max_epochs=4).fit(
        resumed, tiny_loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert second.seen == pytest.approx(whole.seen[10:])
    for got, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_loss_and_accuracy_of_each_stage_are_logged_over_the_epoch():
    torch.manual_seed(0)
    model = ImageClassifier(TinyNetwork(), num_classes=3)
    run = trainer(max_epochs=1)
    run.fit(model, tiny_loader(), tiny_loader(18, 5))  # the last batch is smaller
    metrics = run.callback_metrics
    assert set(metrics) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    images, labels = tiny_loader(18).dataset.tensors
    logits = model(images)
    assert metrics["val/loss"].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["val/accuracy"].item() == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    [tested] = run.test(model, tiny_loader(18, 5), verbose=False)
    assert tested == {
        "test/loss": pytest.approx(metrics["val/loss"].item()),
        "test/accuracy": pytest.approx(metrics["val/accuracy"].item()),
    }


def test_label_smoothing_is_for_training_only():
    torch.manual_seed(0)
    smooth = ImageClassifier(TinyNetwork(), 3, label_smoothing=0.2)
    smooth.log = lambda *args, **options: None
    batch = next(iter(tiny_loader()))
    logits = smooth(batch[0])
    loss = functools.partial(nn.functional.cross_entropy, logits, batch[1])
    torch.testing.assert_close(smooth.training_step(batch, 0)["loss"], loss(label_smoothing=0.2))
    torch.testing.assert_close(smooth._step("val", batch)["loss"], loss())


def test_predictions_are_logits_with_or_without_labels():
    model = ImageClassifier(TinyNetwork(), 3)
    loader = tiny_loader(8)
    images_only = DataLoader(loader.dataset.tensors[0], batch_size=4)
    with_labels, without = trainer().predict(model, loader), trainer().predict(model, images_only)
    assert [tuple(logits.shape) for logits in with_labels] == [(4, 3), (4, 3)]
    assert all(map(torch.equal, with_labels, without))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_precisions(precision):
    model = ImageClassifier("resnet20", num_classes=3, in_channels=1)
    run = trainer(max_epochs=1, precision=precision)
    run.fit(model, tiny_loader(8), tiny_loader(8))
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert run.callback_metrics["train/loss"].dtype == torch.float32


def test_channels_last_gives_the_same_result():
    torch.manual_seed(0)
    plain = ImageClassifier("resnet20", in_channels=3)
    last = ImageClassifier("resnet20", in_channels=3, channels_last=True)
    last.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 16, 16)
    assert last.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.eval()(images), plain.eval()(images), rtol=1e-4, atol=1e-4)

    inputs = []
    last.network.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    last(images)
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)


def test_checkpoint_holds_numbers_and_strings_and_loads_with_weights_only(tmp_path):
    model = ImageClassifier("resnet20", num_classes=3, in_channels=1, warmup_steps=1)
    run = trainer(max_epochs=1)
    run.fit(model, tiny_loader(8))
    run.save_checkpoint(tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["network"] == "resnet20"
    assert all(name.startswith("network.") for name in saved["state_dict"])
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images))


def test_module_is_not_among_the_hyperparameters(tmp_path):
    model = ImageClassifier(TinyNetwork(), num_classes=3)
    run = trainer(max_epochs=1)
    run.fit(model, tiny_loader(8))
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert "network" not in torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt", network=TinyNetwork(), weights_only=True)
    assert torch.equal(loaded.network.linear.weight, model.network.linear.weight)


@pytest.fixture
def compiled_calls(monkeypatch):
    """Replaces code generation, which needs a C++ compiler, and counts what is compiled and how often that runs."""
    counts = {"compiled": 0, "called": 0}

    def compile(function):
        counts["compiled"] += 1

        def run(*args):
            counts["called"] += 1
            return function(*args)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    return counts


def test_steps_are_compiled_once_and_names_stay(compiled_calls):
    model = ImageClassifier(TinyNetwork(), num_classes=3, compile=True)
    names = list(ImageClassifier(TinyNetwork(), num_classes=3).state_dict())
    run = trainer(max_epochs=2)
    run.fit(model, tiny_loader(8), tiny_loader(8))
    run.test(model, tiny_loader(8), verbose=False)
    assert compiled_calls["compiled"] == 1
    assert compiled_calls["called"] >= 2 * 4 + 2
    assert list(model.state_dict()) == names
    before = compiled_calls["called"]
    model(torch.zeros(1, 1, 8, 8))
    model.network(torch.zeros(1, 1, 8, 8))
    assert compiled_calls["called"] == before


def test_a_mode_is_handed_on_and_an_unknown_one_refused(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    trainer(max_epochs=1).fit(ImageClassifier(TinyNetwork(), 3, compile="reduce-overhead"), tiny_loader(8))
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]
    with pytest.raises(ValueError, match="`compile` must be one of 'default', 'reduce-overhead'.*got 'fast'"):
        ImageClassifier(TinyNetwork(), 3, compile="fast")


def test_hooks_that_come_and_go_during_training_all_fire(compiled_calls):
    seen = []

    class Hooks(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                self.handle = pl_module.network.conv.register_forward_hook(lambda *args: seen.append(batch_idx))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.handle.remove()

    trainer(max_epochs=1, callbacks=[Hooks()]).fit(ImageClassifier(TinyNetwork(), 3, compile=True), tiny_loader(12))
    assert seen == [1]
    assert compiled_calls["called"] == 2


@pytest.mark.slow
def test_compiled_steps_train_the_same_weights(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    plain = ImageClassifier("resnet20", num_classes=3, in_channels=1, learning_rate=0.01)
    compiled = ImageClassifier("resnet20", num_classes=3, in_channels=1, learning_rate=0.01, compile=True)
    compiled.load_state_dict(plain.state_dict())
    for model in (plain, compiled):
        trainer(max_epochs=1).fit(model, tiny_loader(12))
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)


def test_copies_and_pickles(compiled_calls):
    model = ImageClassifier(TinyNetwork(), num_classes=3, compile=True)
    trainer(fast_dev_run=True).fit(model, tiny_loader(8))
    images = torch.randn(2, 1, 8, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))
        assert other._compiled is None


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1, 8, 8), 0


@pytest.mark.parametrize(
    ("options", "limits", "loader", "match"),
    [
        ({}, {"max_epochs": -1}, tiny_loader, "`max_epochs` or `max_steps` of the trainer must be set"),
        ({}, {"max_epochs": 2}, lambda: DataLoader(Endless(), batch_size=2), "`max_steps` if the data has no length"),
        (
            {"warmup_steps": 5},
            {"max_epochs": 1},
            tiny_loader,
            "`warmup_steps` must be below the training's 5 steps, got 5",
        ),
    ],
)
def test_training_without_an_end_or_with_too_long_a_warmup_is_refused(options, limits, loader, match):
    with pytest.raises(MisconfigurationException, match=match):
        trainer(**limits).fit(ImageClassifier(TinyNetwork(), num_classes=3, **options), loader())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"network": "resnet31"},
            ValueError,
            "`network` must be a known network such as .*'resnet32'.*, got 'resnet31'",
        ),
        ({"network": 32}, TypeError, "`network` must be the name of a network or a torch module, got 32"),
        ({"num_classes": 1}, ValueError, "`num_classes` must be at least 2, got 1"),
        ({"in_channels": 0}, ValueError, "`in_channels` must be at least 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be above 0, got 0.0"),
        ({"momentum": 1.0}, ValueError, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, ValueError, "`weight_decay` must be at least 0, got -1.0"),
        ({"warmup_fraction": 1.0}, ValueError, r"`warmup_fraction` must be in \[0, 1\), got 1.0"),
        ({"warmup_steps": -1}, ValueError, "`warmup_steps` must be at least 0, got -1"),
        ({"label_smoothing": -0.1}, ValueError, r"`label_smoothing` must be in \[0, 1\), got -0.1"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        ImageClassifier(**options)
