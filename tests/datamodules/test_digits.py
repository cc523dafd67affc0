"""The digits of scikit-learn."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from toolkit.datamodules.digits import DigitsDataModule
from toolkit.models import ImageClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no validation images
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def test_parts_are_disjoint_stratified_and_complete():
    data = DigitsDataModule(test_size=0.25, val_size=200)
    data.setup()
    parts = (data.train_dataset, data.val_dataset, data.test_dataset)
    assert [len(part) for part in parts] == [1148, 200, 449]
    rows = torch.cat([part.images.flatten(1) for part in parts]).numpy()
    expected = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    for part in parts:
        shares = torch.bincount(part.labels) / len(part)
        assert shares.tolist() == pytest.approx([0.1] * 10, abs=0.01)


def test_test_images_depend_on_the_seed_only():
    def tested(**options):
        data = DigitsDataModule(**options)
        data.setup()
        return data.test_dataset.fingerprint()

    assert tested() == tested(val_size=0.2) != tested(seed=1)


def test_images_are_uint8_of_one_channel_over_the_full_range():
    data = DigitsDataModule()
    images = data.evaluation_dataset().images
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (1, 8, 8))
    assert (images.min(), images.max()) == (0, 255)
    ready = data.evaluation_transform(images)
    assert ready.mean().item() == pytest.approx(0.0, abs=0.05)
    assert ready.std().item() == pytest.approx(1.0, abs=0.05)
    assert data.class_names == [str(digit) for digit in range(10)]


def test_digits_are_moved_by_a_pixel_and_never_mirrored():
    data = DigitsDataModule()
    image = data.evaluation_dataset().images[:1]
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    moved = {padded[0, 0, r : r + 8, c : c + 8].numpy().tobytes() for r in range(3) for c in range(3)}
    out = data.training_transform(image.expand(200, 1, 8, 8))
    assert {digit.numpy().tobytes() for digit in out} == moved


def test_network_learns_the_digits():
    L.seed_everything(0, verbose=False)
    data = DigitsDataModule()
    model = ImageClassifier("resnet20", in_channels=1)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    [metrics] = trainer.test(model, datamodule=data, verbose=False)
    assert metrics["test/accuracy"] > 0.9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": -3}, "`batch_size` must be at least 1, got -3"),
        ({"test_size": 0}, "`test_size` must be above 0, got 0"),
        ({"test_size": 1.0}, "`test_size` must be a number of images .*, got 1.0"),
        ({"val_size": -0.1}, "`val_size` must be a number of images .*, got -0.1"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        DigitsDataModule(**options)


@pytest.mark.parametrize(("name", "size"), [("test_size", 1_790), ("val_size", 1_345)])
def test_splits_that_leave_too_little(name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be from 10 to .* images, .*, got {size}"):
        DigitsDataModule(**{name: size}).setup()
