import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from toolkit import Representation, SemanticSelector
from toolkit.fingerprint import OpaqueDatasetWarning, content_hash, dataset_fingerprint
from toolkit.representations import EvaluationView, WrittenFeatures, written
from toolkit.representations.written import (
    FeatureManifest,
    UnfinishedFeatures,
    delete_features,
    epoch_folders,
    images_hash,
)

FACTS = {"layer": "net.avgpool", "pool": "mean", "split": "train", "model": "Net", "global_step": 7}


def images(n=20, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


DATA = TensorDataset(images(), torch.arange(20))


def matrix(n=20, width=6, seed=1):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def write(folder, values=None, dtype="float32", dataset=DATA, epoch=0, run="run"):
    values = matrix() if values is None else values
    unfinished = UnfinishedFeatures(folder, run, len(values), dtype)
    for start in range(0, len(values), 7):
        unfinished.append(values[start : start + 7])
    return unfinished.publish(**FACTS, epoch=epoch, dataset=dataset_fingerprint(dataset), images=images_hash(dataset))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "run" / "epoch=0000")
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_was_written_is_read(tmp_path, dtype):
    values = matrix()
    manifest = write(tmp_path / "epoch=0004", values, dtype, epoch=4)
    features = WrittenFeatures(tmp_path)
    assert isinstance(features, Representation)
    assert features.manifest == manifest
    assert features.path == tmp_path / "epoch=0004"
    stored = np.load(tmp_path / "epoch=0004" / "features.npy")
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, values.astype(dtype))
    assert manifest.sha256 == content_hash(stored)
    assert features.fingerprint() == f"written:{manifest.sha256}"
    for dataset in (DATA, EvaluationView(DATA, batch_transform=lambda batch, device: batch), None):
        vectors = features.vectors(dataset)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, values.astype(dtype))
    vectors[:] = 0  # What a caller gets is his own.
    np.testing.assert_array_equal(features.vectors(DATA), values.astype(dtype))


def test_the_manifest_says_what_it_is(folder):
    content = json.loads((folder / "epoch=0000" / "manifest.json").read_text())
    assert content.pop("written") > 1.7e9
    assert content == {
        **FACTS,
        "format": "toolkit.features",
        "version": 1,
        "epoch": 0,
        "dtype": "float32",
        "shape": [20, 6],
        "sha256": content_hash(matrix()),
        "dataset": dataset_fingerprint(DATA),
        "images": images_hash(DATA),
        "run": "run",
    }


@pytest.mark.parametrize("kind", [str, Path])
def test_a_selector_takes_the_folder_in_place_of_vectors(folder, kind):
    settings = {"keep_fraction": 0.5, "scope": "dataset", "progress": False}
    expected = SemanticSelector(matrix(), **settings).select()
    for dataset in (None, DATA):
        found = SemanticSelector(kind(folder), **settings).select(dataset)
        np.testing.assert_array_equal(found.status, expected.status)


def test_it_can_be_sent_to_another_process(folder):
    features = WrittenFeatures(folder)
    vectors = features.vectors(None)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(features)).vectors(DATA), vectors)


def test_one_epoch_or_the_last_one_that_was_written(tmp_path):
    for epoch in (2, 3, 1):  # A run that was resumed from before epoch 1, or another run.
        write(tmp_path / f"epoch={epoch:04d}", matrix(seed=epoch), epoch=epoch)
    assert WrittenFeatures(tmp_path).manifest.epoch == 1
    assert WrittenFeatures(tmp_path / "epoch=0002").manifest.epoch == 2
    assert WrittenFeatures(str(tmp_path), 3).manifest.epoch == 3
    np.testing.assert_array_equal(WrittenFeatures(tmp_path, epoch=3).vectors(DATA), matrix(seed=3))
    assert len({WrittenFeatures(tmp_path, epoch=epoch).fingerprint() for epoch in (1, 2, 3)}) == 3


def test_the_epoch_is_settled_when_first_asked_for(tmp_path):
    write(tmp_path / "epoch=0000", matrix(seed=0))
    features = WrittenFeatures(tmp_path)
    before = features.fingerprint()
    write(tmp_path / "epoch=0001", matrix(seed=1), epoch=1)
    assert features.fingerprint() == before
    assert WrittenFeatures(tmp_path).fingerprint() != before


def test_a_folder_of_one_layer_will_do(tmp_path):
    write(tmp_path / "layer1" / "epoch=0000")
    (tmp_path / "empty").mkdir()
    (tmp_path / "epoch=3-step=9.ckpt").write_text("another's")
    assert WrittenFeatures(tmp_path).path == tmp_path / "layer1" / "epoch=0000"
    write(tmp_path / "layer2" / "epoch=0000")
    with pytest.raises(ValueError, match="`folder` must be that of one layer's features, one of layer1, layer2, got"):
        WrittenFeatures(tmp_path).vectors(DATA)


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (shutil.rmtree, {}, FileNotFoundError, "`folder` must hold features that FeatureMapWriter wrote, .*no folder"),
        (
            lambda run: shutil.rmtree(run / "epoch=0000"),
            {},
            FileNotFoundError,
            "`folder` must hold features that FeatureMapWriter wrote, .*holds none",
        ),
        (None, {"epoch": 3}, ValueError, "`epoch` must be one that was written, of 0, got 3"),
        (
            lambda run: (run / "epoch=0000" / "manifest.json").unlink(),
            {},
            FileNotFoundError,
            "`folder` must be one that FeatureMapWriter wrote, got '.*epoch=0000'",
        ),
        (
            lambda run: (run / "epoch=0000" / "manifest.json").write_text("[]"),
            {},
            ValueError,
            r"`folder` must be one with a readable manifest.json \(.*\), got '.*epoch=0000'",
        ),
        (lambda run: change(run, format="other"), {}, ValueError, "its format is 'other'"),
        (lambda run: change(run, version=2), {}, ValueError, "version 2, this toolkit reads up to version 1"),
        (lambda run: change(run, layer=None), {}, ValueError, "readable manifest.json .*'layer'"),
        (lambda run: change(run, dtype="int8"), {}, ValueError, "`dtype` must be one of 'float16', 'float32'"),
        (lambda run: change(run, shape=[1]), {}, ValueError, "readable manifest.json"),
        (
            lambda run: change(run, dtype="float16"),
            {},
            ValueError,
            r"missing, cut short or altered \(float32 of shape \(20, 6\) instead of float16 \(20, 6\)\)",
        ),
        (
            lambda run: (run / "epoch=0000" / "features.npy").unlink(),
            {},
            ValueError,
            "Features in .* are missing, cut short or altered",
        ),
        (
            lambda run: np.save(run / "epoch=0000" / "features.npy", matrix(seed=2)),
            {},
            ValueError,
            r"altered \(its checksum is another\)",
        ),
        (
            lambda run: (run / "epoch=0000" / "features.npy").write_bytes(b"\x93NUMPY"),
            {},
            ValueError,
            "cut short or altered",
        ),
    ],
)
def test_errors(folder, spoil, options, error, match):
    if spoil:
        spoil(folder)
    with pytest.raises(error, match=match):
        WrittenFeatures(folder, **options).vectors(DATA)


def change(run, **values):
    path = run / "epoch=0000" / "manifest.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_checksum_is_compared_once(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(written, "content_hash", lambda x: calls.append(1) or content_hash(x))
    features = WrittenFeatures(folder)
    assert not calls
    features.vectors(None)
    features.vectors(None)
    assert len(calls) == 1


def test_features_of_other_images_are_refused(folder):
    features = WrittenFeatures(folder)
    with pytest.raises(ValueError, match="features of the data set's 5 images, .* got \"20 rows in"):
        features.vectors(Subset(DATA, range(5)))
    for other in (TensorDataset(images(seed=1), torch.arange(20)), Subset(DATA, range(19, -1, -1))):
        with pytest.raises(ValueError, match="must be of features of this data set's images; .*`allow_changed_data`"):
            features.vectors(other)
        with pytest.warns(UserWarning, match="written from data with another fingerprint: make sure"):
            vectors = WrittenFeatures(folder, allow_changed_data=True).vectors(other)
        np.testing.assert_array_equal(vectors, matrix())
    with pytest.raises(ValueError, match="features of the data set's 5 images"):
        WrittenFeatures(folder, allow_changed_data=True).vectors(Subset(DATA, range(5)))


def test_other_labels_and_other_homes_of_the_same_images_are_warned_of(folder):
    for same in (TensorDataset(images(), torch.zeros(20)), Subset(DATA, range(20)), images()):
        with pytest.warns(UserWarning, match="written from data with another fingerprint: make sure"):
            np.testing.assert_array_equal(WrittenFeatures(folder).vectors(same), matrix())


def test_a_few_images_are_told_apart_whatever_they_are():
    pictures = [Image.fromarray(np.full((4, 4, 3), i, np.uint8)) for i in range(3)]
    arrays = [np.asarray(picture) for picture in pictures]
    assert images_hash(pictures) == images_hash(arrays) == images_hash([(picture, 1) for picture in pictures])
    assert images_hash([{"image": picture} for picture in pictures]) == images_hash(arrays)
    kinds = [pictures, pictures[::-1], ["a", "b"], ["b", "a"], [{"other": 1}], [{"other": 2}], [None]]
    assert len({images_hash(kind) for kind in kinds}) == len(kinds)


def test_an_opaque_data_set_is_told_apart_by_its_samples(tmp_path):
    class Opaque(torch.utils.data.Dataset):
        def __init__(self, seed):
            self.x = images(seed=seed)

        def __len__(self):
            return 20

        def __getitem__(self, index):
            return self.x[index]

    with pytest.warns(OpaqueDatasetWarning):
        write(tmp_path / "epoch=0000", dataset=Opaque(0))
    with pytest.warns(OpaqueDatasetWarning):
        WrittenFeatures(tmp_path).vectors(Opaque(0))
    with pytest.warns(OpaqueDatasetWarning), pytest.raises(ValueError, match="this data set's images"):
        WrittenFeatures(tmp_path).vectors(Opaque(1))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_features_stay_on_disk(tmp_path, monkeypatch, dtype):
    write(tmp_path / "epoch=0000", dtype=dtype)
    monkeypatch.setattr("toolkit.representations.feature_map.MEMORY_LIMIT", 4 * 20 * 6 - 1)
    monkeypatch.setattr(written, "_CHUNK_BYTES", 4 * 6 * 3)
    vectors = WrittenFeatures(tmp_path).vectors(DATA)
    assert isinstance(vectors, np.memmap)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, matrix().astype(dtype))
    by_file, by_array = (
        SemanticSelector(x, 0.5, progress=False).select(DATA, labels=[0] * 20)
        for x in (WrittenFeatures(tmp_path), matrix().astype(dtype))
    )
    np.testing.assert_array_equal(by_file.kept, by_array.kept)


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = matrix()
    values[3, 2] = np.nan
    write(tmp_path / "epoch=0000", values)
    with pytest.raises(ValueError, match="`features` must be finite, got NaN .* in 1 of 20 rows, the first at index 3"):
        WrittenFeatures(tmp_path).vectors(DATA)


def test_nothing_is_there_before_all_of_it_is(tmp_path):
    folder = tmp_path / "epoch=0000"
    killed = UnfinishedFeatures(folder, "run", 20, "float32")
    killed.append(matrix()[:13])
    killed._file.close()  # as a process that was killed leaves it
    assert epoch_folders(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="holds none"):
        WrittenFeatures(tmp_path).vectors(DATA)
    write(folder)
    np.testing.assert_array_equal(WrittenFeatures(tmp_path).vectors(DATA), matrix())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0000"]


def test_features_of_the_same_epoch_are_replaced(folder):
    old = WrittenFeatures(folder)
    vectors = old.vectors(DATA)
    write(folder / "epoch=0000", matrix(seed=5), run="another")
    np.testing.assert_array_equal(WrittenFeatures(folder).vectors(DATA), matrix(seed=5))
    np.testing.assert_array_equal(vectors, matrix())
    with pytest.raises(ValueError, match=r"altered \(others were written there since\)"):
        old.vectors(DATA)
    assert [path.name for path in folder.iterdir()] == ["epoch=0000"]


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    unfinished = UnfinishedFeatures(tmp_path / "epoch=0000", "run", 20, "float32")
    unfinished.append(matrix()[:5])
    with pytest.raises(ValueError, match="Features must have one length, got 6 and 7 numbers an image. Resize"):
        unfinished.append(matrix(width=7))
    with pytest.raises(ValueError, match="`features` must be of all 20 images before they are published, got 5"):
        unfinished.publish(**FACTS, epoch=0, dataset="", images="")
    unfinished.discard()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Features could not be written to `dirpath` '.*file'.*Make room.*`keep_last`"):
        write(tmp_path / "file" / "epoch=0000")
    (tmp_path / "epoch=0001").mkdir()
    with pytest.raises(FileExistsError, match="`dirpath` must have no 'epoch=0001' of others"):
        write(tmp_path / "epoch=0001")
    with pytest.raises(FileNotFoundError, match="must be one that FeatureMapWriter wrote"):
        delete_features(tmp_path / "epoch=0001")
    assert (tmp_path / "epoch=0001").is_dir()


def test_a_folder_that_cannot_be_deleted_is_no_error(folder, monkeypatch):
    def fail(path):
        raise OSError("in use")

    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.warns(UserWarning, match=r"Old features in .*deleted-.* could not be deleted \(in use\)"):
        delete_features(folder / "epoch=0000")
    assert epoch_folders(folder) == []


def test_a_folder_that_is_deleted_while_it_is_listed_is_passed_over(folder, monkeypatch):
    write(folder / "epoch=0001", epoch=1)
    load = FeatureManifest.load

    def too_late(path):
        if path.name == "epoch=0000":
            shutil.rmtree(path)
        return load(path)

    monkeypatch.setattr(FeatureManifest, "load", too_late)
    assert [path.name for path, _ in epoch_folders(folder)] == ["epoch=0001"]
