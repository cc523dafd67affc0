import json
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
from dynamic_models import QUIET, Data, Model, Plain
from lightning.fabric.utilities.exceptions import MisconfigurationException
from processes import run_script

from toolkit import ScoreSelector
from toolkit.callbacks import TrainingScoreWriter
from toolkit.training_scores import error_norms, load_scores

SCRIPT = Path(__file__).parents[1] / "scripts" / "ddp_dynamic.py"


class Noting(Model):
    """Notes what it says of each image in each epoch."""

    def __init__(self):
        super().__init__()
        self.norms, self.right = [], []

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.norms.append(np.full(24, np.nan))
        self.right.append(np.zeros(24, bool))

    def training_step(self, batch, batch_idx):
        done = super().training_step(batch, batch_idx)
        indices = batch[0][:, 0, 0, 0].int().tolist()
        self.norms[-1][indices] = error_norms(done["logits"], batch[1]).numpy()
        self.right[-1][indices] = (done["logits"].argmax(1) == batch[1]).numpy()
        return done


def fitted(folder, model=None, data=None, epochs=6, **settings):
    L.seed_everything(1, verbose=False)
    model = model or Noting()
    trainer = L.Trainer(callbacks=[TrainingScoreWriter(folder, **settings)], max_epochs=epochs, **QUIET)
    trainer.fit(model, datamodule=data or Data())
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_what_the_model_said_while_it_trained(tmp_path, workers):
    model = fitted(tmp_path, data=Data(num_workers=workers), el2n_epochs=[1, 2])
    assert all(sorted(images) == list(range(24)) for images in model.images())
    el2n, _ = load_scores(tmp_path, "el2n")
    forgetting, _ = load_scores(tmp_path, "forgetting")
    assert el2n == pytest.approx((model.norms[1] + model.norms[2]) / 2)
    right = np.array(model.right)
    expected = np.where(right.any(0), (right[:-1] & ~right[1:]).sum(0), np.inf)
    assert forgetting.tolist() == expected.tolist()
    assert json.loads((tmp_path / "scores.json").read_text())["el2n_epochs"] == [1, 2]


def test_hard_images_are_chosen_by_them(tmp_path):
    data = Data()
    fitted(tmp_path, data=data)
    kept = ScoreSelector(tmp_path, 0.5).select(data.dataset).kept
    assert sum(index % 3 == 0 for index in kept) <= 1, "those that are easy to tell"


def test_counting_goes_on_from_a_checkpoint(tmp_path):
    fitted(tmp_path / "whole", el2n_epochs=[0, 4])

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    L.seed_everything(1, verbose=False)
    writer = TrainingScoreWriter(tmp_path / "first", el2n_epochs=[0, 4])
    L.Trainer(callbacks=[writer, Stop()], max_epochs=6, **QUIET).fit(Noting(), datamodule=Data())
    resumed = L.Trainer(callbacks=[TrainingScoreWriter(tmp_path / "second", el2n_epochs=[0, 4])], max_epochs=6, **QUIET)
    resumed.fit(Noting(), datamodule=Data(), ckpt_path=tmp_path / "middle.ckpt")
    for name in ("el2n", "forgetting"):
        whole, second = load_scores(tmp_path / "whole", name)[0], load_scores(tmp_path / "second", name)[0]
        assert second == pytest.approx(whole)


def test_data_is_left_as_it_was(tmp_path):
    data = Data()
    fitted(tmp_path, data=data, epochs=1)
    assert "train_dataloader" not in vars(data)


@pytest.mark.slow
def test_two_processes_count_all_images(tmp_path):
    run_script(SCRIPT, tmp_path, "2", "scores")
    el2n, _ = load_scores(tmp_path / "scores", "el2n")
    assert len(el2n) == 24
    assert np.isfinite(el2n).all()


def test_what_cannot_be_scored_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="must return a dictionary with `logits`.*got"):
        fitted(tmp_path, model=Plain())
    with pytest.raises(MisconfigurationException, match="must shuffle all its images .*SequentialSampler"):
        fitted(tmp_path, data=Data(shuffle=False))
    with pytest.raises(MisconfigurationException, match=r"`el2n_epochs` must be epochs counted from 0, got \[-1\]"):
        fitted(tmp_path, el2n_epochs=[-1])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`dirpath` must be a folder that can be written to"):
        fitted(tmp_path / "file")
