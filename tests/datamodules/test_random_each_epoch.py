import json
from pathlib import Path

import lightning.pytorch as L
import pytest
from dynamic_models import QUIET, Data, Model
from lightning.fabric.utilities.exceptions import MisconfigurationException
from processes import run_script

from toolkit.datamodules import DigitsDataModule, RandomEachEpoch

SCRIPT = Path(__file__).parents[1] / "scripts" / "ddp_dynamic.py"


def fitted(data, **options):
    L.seed_everything(1, verbose=False)
    model = Model()
    trainer = L.Trainer(**{**QUIET, "max_epochs": 6, **options})
    trainer.fit(model, datamodule=data)
    return model, trainer


def test_epochs_are_short_and_have_other_images_each():
    model, trainer = fitted(RandomEachEpoch(Data(), 0.5, seed=2))
    assert [len(set(images)) for images in model.images()] == [12] * 6
    assert trainer.global_step == 18
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 18
    for first, second in zip(model.images()[::2], model.images()[1::2], strict=True):
        assert set(first) | set(second) == set(range(24)), "every image comes up in the course of two epochs"


def test_with_replacement_images_may_come_up_again():
    model, _ = fitted(RandomEachEpoch(Data(), 0.5, replacement=True, seed=2))
    pairs = zip(model.images()[::2], model.images()[1::2], strict=True)
    assert any(set(first) & set(second) for first, second in pairs)


def test_the_seed_decides():
    def images(seed):
        return fitted(RandomEachEpoch(Data(), 0.3, seed=seed), max_epochs=2)[0].images()

    assert images(1) == images(1) != images(2)
    assert images(None) == images(1), "the one that everything was seeded with"


def test_everything_else_is_the_inner_modules():
    datamodule = RandomEachEpoch(DigitsDataModule(batch_size=100, val_size=148), 0.5)
    datamodule.setup("fit")
    assert datamodule.num_classes == 10
    assert len(datamodule.val_dataloader().dataset) == 148
    assert len(datamodule.train_dataloader().sampler) == 600
    assert datamodule.seed is None
    assert datamodule.datamodule.seed == 0


@pytest.mark.slow
def test_two_processes_share_one_subset(tmp_path):
    run_script(SCRIPT, tmp_path, "2", "random")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for a, b in zip(first["images"], second["images"], strict=True):
        assert (len(a), len(b), len(set(a) | set(b))) == (6, 6, 12)
    assert set(first["images"][0] + second["images"][0]).isdisjoint(first["images"][1] + second["images"][1])


def test_errors():
    with pytest.raises(ValueError, match=r"`keep_fraction` must be in \(0, 1\], got 1.5"):
        RandomEachEpoch(Data(), 1.5)
    with pytest.raises(MisconfigurationException, match="must shuffle all its images"):
        fitted(RandomEachEpoch(Data(shuffle=False), 0.5))
