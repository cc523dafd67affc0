"""Street scenes for detection: written once, found again, and pruned of what was planted."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("toolkit.detection.ultralytics_parts", exc_type=ImportError)

from toolkit import WaveletScattering, WaveletSelector, cache
from toolkit.datamodules import PrunedDataModule, StreetScenesDataModule
from toolkit.datasets import ids_of

SMALL = {"n_train": 40, "n_val": 2, "n_duplicates": 5, "n_outliers": 2, "size": (60, 80), "imgsz": 64, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "scenes"


@pytest.fixture
def datamodule(folder):
    return StreetScenesDataModule(folder, **SMALL)


def test_images_are_kept_in_the_cache_folder_by_their_settings():
    first = StreetScenesDataModule(n_train=6, n_val=1, n_duplicates=1, n_outliers=1, size=(60, 80))
    folder = Path(first.data).parent
    assert folder.parent == cache.cache_folder() / "scenes"
    assert folder.name.startswith("street_scenes-")
    time = Path(first.data).stat().st_mtime_ns
    again = StreetScenesDataModule(
        n_train=6, n_val=1, n_duplicates=1, n_outliers=1, size=[60, 80], imgsz=64, batch_size=2
    )
    assert (again.data, Path(again.data).stat().st_mtime_ns) == (first.data, time)
    other = StreetScenesDataModule(n_train=6, n_val=1, n_duplicates=1, n_outliers=1, size=(60, 80), seed=1)
    assert other.data != first.data
    assert len(list(folder.parent.iterdir())) == 2
    cache.clear()
    assert not folder.exists()


def test_classes_are_known_at_once_and_images_at_setup(datamodule):
    assert datamodule.num_classes == 5
    assert datamodule.names[-1] == "priority"
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    assert (batch["img"].shape, batch["img"].dtype) == ((8, 3, 64, 64), torch.uint8)
    assert len(batch["cls"]) == len(batch["bboxes"]) == len(batch["batch_idx"])
    assert len(datamodule.val_dataset) == 2


def test_planted_images_are_named_by_their_ids(datamodule):
    dataset, planted = datamodule.evaluation_dataset(), datamodule.planted
    ids = ids_of(dataset)
    assert len(ids) == 40
    assert {*planted.duplicates, *planted.duplicates.values(), *planted.outliers} <= set(ids)
    assert [dataset.targets[ids.index(name)] for name in planted.outliers] == [[], []]
    for copied, original in planted.duplicates.items():
        assert dataset.targets[ids.index(copied)] == dataset.targets[ids.index(original)]
        one, other = (dataset[ids.index(name)]["img"].float() for name in (copied, original))
        assert (one - other).abs().mean() < 20


def test_pruned_of_its_duplicates(datamodule):
    features = WaveletScattering(levels=3, progress=False)
    selector = WaveletSelector(keep_fraction=1 - 5 / 40, features=features, progress=False)
    pruned = PrunedDataModule(datamodule, selector)
    pruned.prepare_data()
    pruned.setup("fit")
    selection = pruned.selection
    removed = {selection.ids[i] for i in np.setdiff1d(np.arange(40), selection.kept)}
    pairs = [{copied, original} for copied, original in datamodule.planted.duplicates.items()]
    assert [len(removed & pair) for pair in pairs] == [1] * 5
    assert len(removed) == 5
    assert len(pruned.train_dataloader().dataset) == 35


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"imgsz": 65}, "`imgsz` must be a multiple of 32, got 65"),
        ({"n_train": 3}, "`n_train` must be at least 12, so that each copy has an original, got 3"),
        ({"augmentation": {"mosaik": 1.0}}, r"`augmentation` must be settings out of .*, got \['mosaik'\]"),
        ({"seed": 4}, "`folder` must be new, empty, or written with the same settings, got .*'seed': 0"),
    ],
)
def test_errors(datamodule, folder, options, match):
    with pytest.raises(ValueError, match=match):
        StreetScenesDataModule(folder, **{**SMALL, **options})
