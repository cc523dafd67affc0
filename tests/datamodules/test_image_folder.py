"""Folders of images, made up in a temporary folder."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.datamodules.image_folder import ImageFolderDataModule
from toolkit.models import ImageClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no validation images
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def write_images(folder, classes=("ant", "bee"), count=4, size=(40, 30)):
    rng = np.random.default_rng(len(classes))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def make(tmp_path, **options):
    train = tmp_path / "train" if (tmp_path / "train").exists() else write_images(tmp_path / "train")
    return ImageFolderDataModule(train, **{"image_size": 16, "batch_size": 3, "num_workers": 0, **options})


def test_images_and_labels(tmp_path):
    data = make(tmp_path)
    data.setup()
    evaluation = data.evaluation_dataset()
    assert (data.num_classes, data.class_names) == (2, ["ant", "bee"])
    assert evaluation.labels.tolist() == evaluation.targets == [0] * 4 + [1] * 4
    image, label = evaluation[5]
    assert (image.dtype, image.shape, label) == (torch.uint8, (3, 16, 16), 1)
    assert type(image) is torch.Tensor
    batches = list(data.train_dataloader())
    assert [tuple(images.shape) for images, _ in batches] == [(3, 3, 16, 16), (3, 3, 16, 16), (2, 3, 16, 16)]


def test_evaluation_is_the_middle_of_the_scaled_image(tmp_path):
    write_images(tmp_path / "train", count=1, size=(224, 256))  # its shorter side becomes 256
    data = ImageFolderDataModule(tmp_path / "train", image_size=196, num_workers=0)
    image, _ = data.evaluation_dataset()[0]
    original = np.asarray(Image.open(tmp_path / "train" / "ant" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(image, original[:, 30:226, 14:210])


def test_evaluation_dataset_has_the_training_files_in_order_and_is_never_random(tmp_path):
    data = make(tmp_path)
    evaluation = data.evaluation_dataset()
    assert evaluation.samples == data.train_dataset.samples
    assert evaluation.transform is not data.train_dataset.transform
    assert torch.equal(evaluation[3][0], evaluation[3][0])
    draws = [data.train_dataset[3][0] for _ in range(4)]
    assert not all(torch.equal(draw, draws[0]) for draw in draws)
    plain = make(tmp_path, augment=False)
    plain.setup()
    assert torch.equal(plain.train_dataset[3][0], evaluation[3][0])


def test_labels_of_all_parts_follow_the_training_folders(tmp_path):
    write_images(tmp_path / "val", classes=("bee",), count=2)
    (tmp_path / "test" / "ant").mkdir(parents=True)  # a class without images
    write_images(tmp_path / "test", classes=("bee",), count=1)
    data = make(tmp_path, val_dir=tmp_path / "val", test_dir=tmp_path / "test")
    data.setup()
    assert data.val_dataset.labels.tolist() == [1, 1]
    assert data.test_dataset.labels.tolist() == [1]
    assert data.val_dataset.classes == ["ant", "bee"]


def test_setup_is_done_once(tmp_path):
    data = make(tmp_path, test_dir=write_images(tmp_path / "test"))
    data.setup("fit")
    train = data.train_dataset
    assert data.test_dataset is None
    data.setup()
    assert data.train_dataset is train
    assert data.val_dataloader() == []


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_validation_and_test(tmp_path, num_workers):
    data = make(
        tmp_path,
        val_dir=write_images(tmp_path / "val"),
        test_dir=write_images(tmp_path / "test"),
        num_workers=num_workers,
    )
    model = ImageClassifier("resnet20", num_classes=2)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 3
    [metrics] = trainer.test(model, datamodule=data, verbose=False)
    assert set(metrics) == {"test/loss", "test/accuracy"}


def test_number_of_workers_follows_the_cores(tmp_path):
    assert 1 <= make(tmp_path, num_workers=None).num_workers <= 8


def test_missing_folders(tmp_path):
    train = write_images(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=r"`train_dir` must be an existing folder, got '.*nowhere'"):
        ImageFolderDataModule(tmp_path / "nowhere").setup()
    with pytest.raises(FileNotFoundError, match=r"`val_dir` must be an existing folder, got '.*nowhere'"):
        ImageFolderDataModule(train, val_dir=tmp_path / "nowhere").setup()
    with pytest.raises(
        FileNotFoundError, match=r"`train_dir` must be a folder with one folder a class, got '.*ant' without"
    ):
        ImageFolderDataModule(train / "ant").setup()
    (train / "cow").mkdir()
    with pytest.raises(FileNotFoundError, match="cow"):
        ImageFolderDataModule(train).setup()


def test_classes_that_training_does_not_have(tmp_path):
    val = write_images(tmp_path / "val", classes=("bee", "cat"))
    with pytest.raises(
        ValueError, match="`val_dir` must be a folder with classes of `train_dir` only, got 'cat besides'"
    ):
        make(tmp_path, val_dir=val).setup()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image_size": 0}, "`image_size` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        ImageFolderDataModule("train", **options)


def test_testing_without_test_images(tmp_path):
    with pytest.raises(ValueError, match="`test_dir` must be a folder of images to test on, got None"):
        make(tmp_path).test_dataloader()
