"""The CIFAR data modules on made-up files of the real layout, and on the real data where it is at hand."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from made_up_data import write_cifar
from torchvision.datasets import CIFAR10, CIFAR100

from toolkit.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from toolkit.models import ImageClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no validation images
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]

KINDS = {
    10: (CIFAR10DataModule, CIFAR10, "labels", "label_names"),
    100: (CIFAR100DataModule, CIFAR100, "fine_labels", "fine_label_names"),
}


def quiet(module):
    """`module` set up, without the warning about checksums."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*checksums", category=UserWarning)
        module.setup()
    return module


def listing(folder):
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.iterdir()
    }


@pytest.mark.parametrize("classes", [10, 100])
def test_files_are_read_in_order(tmp_path, classes):
    images = write_cifar(tmp_path, classes)
    kind, original, *_ = KINDS[classes]
    data = quiet(kind(tmp_path, download=False))
    train = np.concatenate([images[name] for name, _ in original.train_list])
    assert data.train_dataset.images.dtype == torch.uint8
    assert np.array_equal(data.train_dataset.images, train)
    assert np.array_equal(data.test_dataset.images, images[original.test_list[0][0]])
    assert data.train_dataset.labels.tolist() == [i % classes for i in range(20)] * len(original.train_list)
    assert data.num_classes == classes == kind.num_classes
    assert data.class_names[:2] == ["class 0", "class 1"]
    assert data.evaluation_dataset() is data.train_dataset
    assert data.train_indices.tolist() == list(range(len(train)))


def test_other_checksums_are_used_with_a_warning_and_never_written_over(tmp_path):
    write_cifar(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    before = listing(folder)
    data = CIFAR10DataModule(str(tmp_path), download=True)
    data.prepare_data()
    with pytest.warns(
        UserWarning, match=r"cifar-10-batches-py .*data_batch_1, .*test_batch, batches\.meta differ"
    ) as seen:
        data.setup("fit")
    assert len(seen) == 1
    data.setup("test")  # warns once, not again
    assert listing(folder) == before


def test_original_files_raise_no_warning(tmp_path, monkeypatch):
    write_cifar(tmp_path)

    def md5(name):
        return hashlib.md5((tmp_path / "cifar-10-batches-py" / name).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, attribute, [[name, md5(name)] for name, _ in getattr(CIFAR10, attribute)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5("batches.meta")})
    CIFAR10DataModule(tmp_path).setup()


@pytest.fixture
def no_network(monkeypatch):
    """Lets every download fail, and counts the attempts."""
    attempts = []

    def fail(self):
        attempts.append(self.root)
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", fail)
    return attempts


@pytest.mark.parametrize("present", [True, False])
def test_missing_files_without_download(tmp_path, present, no_network):
    if present:
        write_cifar(tmp_path)
        (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    what = "data_batch_3 missing" if present else "data_batch_1, data_batch_2, .* and 2 more missing"
    match = f"CIFAR10 is not complete in {tmp_path}/cifar-10-batches-py: {what}, and `download` is off. Set `root`"
    with pytest.raises(FileNotFoundError, match=match):
        CIFAR10DataModule(tmp_path, download=False).prepare_data()
    with pytest.raises(FileNotFoundError, match=f"{what}, and nothing was downloaded"):
        CIFAR10DataModule(tmp_path).setup()
    assert not no_network


def test_download_that_fails(tmp_path, no_network):
    with pytest.raises(
        FileNotFoundError, match=r"the download failed \(no network\). Set `root` .*cifar-100-python.tar.gz"
    ):
        CIFAR100DataModule(tmp_path).prepare_data()
    assert len(no_network) == 1


def test_no_download_over_files_that_are_not_the_originals(tmp_path, no_network):
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch missing, and a download would write over data_batch_1"):
        CIFAR10DataModule(tmp_path).prepare_data()
    assert not no_network


def test_absent_files_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "download", lambda self: write_cifar(tmp_path))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    data = CIFAR10DataModule(tmp_path)
    data.prepare_data()
    assert len(quiet(data).train_dataset) == 100


def test_unreadable_file(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"not a pickle")
    with pytest.raises(RuntimeError, match=r"A file in .*cifar-10-batches-py cannot be read as CIFAR10"):
        quiet(CIFAR10DataModule(tmp_path))


@pytest.mark.parametrize("val_size", [20, 0.2])
def test_validation_images_come_from_the_training_set(tmp_path, val_size):
    write_cifar(tmp_path)
    data = quiet(CIFAR10DataModule(tmp_path, val_size=val_size))
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (80, 20, 20)
    assert torch.bincount(data.val_dataset.labels).tolist() == [2] * 10
    whole = quiet(CIFAR10DataModule(tmp_path))
    assert whole.val_dataset is None
    assert whole.val_dataloader() == []
    assert torch.equal(data.train_dataset.images, whole.train_dataset.images[data.train_indices])


def test_loaders(tmp_path):
    write_cifar(tmp_path)
    data = quiet(CIFAR10DataModule(tmp_path, batch_size=64))
    torch.manual_seed(0)
    first, second = (torch.cat([labels for _, labels in data.train_dataloader()]) for _ in range(2))
    assert not torch.equal(first, second)
    assert len(first) == 100  # the last batch is kept
    assert [len(labels) for _, labels in data.test_dataloader()] == [20]


def test_training_and_test(tmp_path):
    write_cifar(tmp_path)
    data, model = CIFAR10DataModule(tmp_path, batch_size=32, val_size=20), ImageClassifier("resnet20")
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="checksums"):
        trainer.fit(model, datamodule=data)
    assert trainer.global_step == 3
    assert {"train/loss", "val/accuracy"} <= set(trainer.callback_metrics)
    [metrics] = trainer.test(model, datamodule=data, verbose=False)
    assert np.isfinite(metrics["test/loss"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"val_size": 1.5}, "`val_size` must be a number of images .*, got 1.5"),
        ({"std": (1.0, 1.0, 0.0)}, "`std` must be above 0 in each channel"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        CIFAR10DataModule(**options)


@pytest.mark.data
def test_real_cifar10(cifar_root):
    data = quiet(CIFAR10DataModule(cifar_root, download=False))
    assert torch.bincount(data.train_dataset.labels).tolist() == [5_000] * 10
    assert torch.bincount(data.test_dataset.labels).tolist() == [1_000] * 10
    assert data.class_names[:2] == ["airplane", "automobile"]


@pytest.mark.data
def test_real_cifar100(cifar_root):
    if not Path(cifar_root, "cifar-100-python").is_dir():
        pytest.skip("CIFAR-100 is not beside CIFAR-10")
    data = quiet(CIFAR100DataModule(cifar_root, download=False))
    assert torch.bincount(data.test_dataset.labels).tolist() == [100] * 100
    assert data.class_names[1] == "aquarium_fish"
