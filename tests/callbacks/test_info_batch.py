import json
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from dynamic_models import QUIET, Data, Model, Plain
from lightning.fabric.utilities.exceptions import MisconfigurationException
from processes import run_script
from torch.utils.data import DataLoader

from toolkit.callbacks import InfoBatch
from toolkit.models.classification import warmup_cosine

SCRIPT = Path(__file__).parents[1] / "scripts" / "ddp_dynamic.py"


class Lengths(L.Callback):
    """What a trainer takes an epoch for, and after which steps it validates."""

    def __init__(self):
        self.batches, self.validated = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.batches.append((trainer.num_training_batches, len(trainer.train_dataloader)))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


def fitted(data=None, model=None, callback=None, **options):
    L.seed_everything(1, verbose=False)
    model, lengths = model or Model(), Lengths()
    callback = callback or InfoBatch(seed=3)
    trainer = L.Trainer(callbacks=[callback, lengths], **{**QUIET, "max_epochs": 8, **options})
    trainer.fit(model, datamodule=data or Data())
    return model, trainer, lengths


def test_the_first_epoch_and_the_last_ones_have_all_images():
    model, _, _ = fitted(max_epochs=16)
    sizes = [len(images) for images in model.images()]
    assert sizes[0] == sizes[-1] == sizes[-2] == 24
    assert all(size < 24 for size in sizes[1:-2])
    assert all(len(set(images)) == len(images) for images in model.images())
    assert all(weight == 1.0 for epoch in (0, -1, -2) for weight in model.weights[epoch].values())


def test_images_left_out_had_losses_below_the_mean_and_the_others_of_them_count_more():
    losses = {}

    class Noting(Model):
        def training_step(self, batch, batch_idx):
            done = super().training_step(batch, batch_idx)
            known.update(zip(batch[0][:, 0, 0, 0].int().tolist(), done["losses"].tolist(), strict=True))
            return done

        def on_train_epoch_end(self):
            losses[len(losses)] = dict(known)

    known = {}
    model, _, _ = fitted(model=Noting())
    for epoch in range(1, 6):
        before, weights = losses[epoch - 1], model.weights[epoch]
        mean = sum(before.values()) / 24
        below = {index for index, loss in before.items() if loss < mean}
        left_out = set(range(24)) - set(model.images()[epoch])
        assert left_out <= below
        assert len(left_out) == len(below) // 2
        assert sum(weights.values()) == pytest.approx(24)
        assert {index for index, weight in weights.items() if weight > 1} == below - left_out


def test_all_that_counts_an_epochs_length_sees_it():
    model, trainer, lengths = fitted(num_sanity_val_steps=0)
    taken = [len(epoch) for epoch in model.epochs]
    assert lengths.batches == [(count, count) for count in taken]
    assert trainer.global_step == sum(taken) < 48
    assert lengths.validated == [sum(taken[: epoch + 1]) for epoch in range(8)]


def test_a_schedule_of_steps_ends_with_the_last_epoch():
    model, trainer, _ = fitted()
    full = [warmup_cosine(step, 48, round(0.025 * 48)) * 0.5 for step in range(48)]
    steps = 0
    for epoch, batches in enumerate(model.epochs):
        first = steps
        for place in range(len(batches)):
            wanted = full[epoch * 6 + round(place * 6 / len(batches))]
            assert model.rates[first + place] == pytest.approx(wanted)
        steps += len(batches)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 48


def test_a_schedule_is_left_alone_where_steps_limit_the_training():
    model, trainer, _ = fitted(max_epochs=-1, max_steps=40)
    assert trainer.global_step == len(model.rates) == 40
    assert model.rates == pytest.approx([warmup_cosine(step, 40, 1) * 0.5 for step in range(40)])
    sizes = [len(images) for images in model.images()]
    assert sizes[0] == 24
    assert min(sizes) < 24
    assert len(model.epochs) > 7


def test_without_leaving_out_weights_change_nothing():
    """Weights of 1 give the loss and the gradients of none."""
    torch.manual_seed(0)
    model = Model()
    model.log = lambda *args, **kwargs: None
    batch = next(iter(Data(shuffle=False).train_dataloader()))
    model.epochs, model.weights = [[]], [{}]
    model.optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    plain = model.training_step(batch, 0)["loss"]
    model.sample_weights = torch.ones(4)
    torch.testing.assert_close(model.training_step(batch, 0)["loss"], plain)
    model.sample_weights = torch.tensor([2.0, 0.0, 1.0, 0.0])
    out = model.training_step(batch, 0)
    torch.testing.assert_close(out["loss"], (out["losses"] * model.sample_weights).mean())


def test_trainer_model_and_data_are_left_as_they_were():
    data = Data()
    model, trainer, _ = fitted(data=data, max_epochs=2)
    assert "train_dataloader" not in vars(data)
    assert model.sample_weights is None
    assert trainer.reload_dataloaders_every_n_epochs == 0


def test_a_run_that_goes_on_from_a_checkpoint_is_the_same(tmp_path):
    whole, _, _ = fitted()

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    L.seed_everything(1, verbose=False)
    first = Model()
    trainer = L.Trainer(callbacks=[InfoBatch(seed=3), Stop()], max_epochs=8, **QUIET)
    trainer.fit(first, datamodule=Data())
    assert first.images() == whole.images()
    second = Model()
    resumed = L.Trainer(callbacks=[InfoBatch(seed=3)], max_epochs=8, **QUIET)
    resumed.fit(second, datamodule=Data(), ckpt_path=tmp_path / "middle.ckpt")
    assert second.images() == whole.images()[4:]
    assert second.rates == pytest.approx(whole.rates[-len(second.rates) :])
    for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_two_processes_leave_out_the_same_images_and_take_as_many_steps(tmp_path):
    run_script(SCRIPT, tmp_path, "2", "info_batch")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["steps"] == second["steps"]
    assert first["losses"] == second["losses"]
    together = [set(a) | set(b) for a, b in zip(first["images"], second["images"], strict=True)]
    assert together[0] == together[-1] == set(range(24))
    assert all(12 <= len(images) < 24 for images in together[1:-1])
    for a, b in zip(first["images"], second["images"], strict=True):
        assert len(a) == len(b)
        assert len(set(a) & set(b)) <= 1, "at most the image that makes the shares even"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prune_ratio": 1.0}, r"`prune_ratio` must be in \(0, 1\), got 1.0"),
        ({"prune_ratio": 0.0}, r"`prune_ratio` must be in \(0, 1\), got 0.0"),
        ({"annealing": 1.0}, r"`annealing` must be in \[0, 1\), got 1.0"),
    ],
)
def test_errors_of_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        InfoBatch(**settings)


def test_what_cannot_be_trained_with_it_is_refused_at_once():
    with pytest.raises(MisconfigurationException, match="must have an attribute `sample_weights`.*got Plain"):
        fitted(model=Plain())
    with pytest.raises(MisconfigurationException, match="must shuffle all its images .*SequentialSampler"):
        fitted(data=Data(shuffle=False))
    trainer = L.Trainer(callbacks=[InfoBatch()], max_epochs=1, **QUIET)
    with pytest.raises(MisconfigurationException, match="must come from a data module"):
        trainer.fit(Model(), DataLoader(Data().dataset, shuffle=True))

    class Silent(Model):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)["loss"]

    with pytest.raises(MisconfigurationException, match="must return a dictionary with `losses`"):
        fitted(model=Silent())
