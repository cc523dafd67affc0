import os

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from toolkit.fingerprint import (
    OpaqueDatasetWarning,
    content_hash,
    dataset_fingerprint,
    files_hash,
    settings_hash,
    weights_hash,
)


def tensors(value=0.0, n=6):
    return TensorDataset(torch.full((n, 2), value), torch.arange(n))


class Opaque(Dataset):
    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([self.value, float(index)]) + torch.rand(2) * 1e-3, index


def test_content_hash_sees_values_shape_dtype_and_order():
    a = np.arange(6, dtype=np.int64)
    others = [a[::-1], a.reshape(2, 3), a.astype(np.int32), a[:5]]
    assert len({content_hash(x) for x in [a, *others]}) == 5
    assert content_hash(a) == content_hash(a.copy())
    assert content_hash(torch.arange(6)) == content_hash(torch.arange(6))
    assert content_hash(torch.ones(3, dtype=torch.bfloat16)) != content_hash(torch.zeros(3, dtype=torch.bfloat16))
    assert content_hash(np.array(3.0)) != content_hash(np.array(4.0))


def test_content_hash_is_the_same_in_chunks(monkeypatch):
    a = np.random.default_rng(0).normal(size=(50, 7))
    whole = content_hash(a)
    monkeypatch.setattr("toolkit.fingerprint._CHUNK_BYTES", 100)
    assert content_hash(a) == whole


@pytest.mark.parametrize(
    "other",
    [
        lambda: tensors(1.0),
        lambda: tensors(n=7),
        lambda: Subset(tensors(), [0, 1, 2, 3, 4, 5]),
        lambda: Subset(tensors(), [1, 0, 2, 3, 4, 5]),
        lambda: ConcatDataset([tensors(), tensors()]),
        lambda: ConcatDataset([tensors(n=3), tensors(n=9)]),
    ],
)
def test_different_data_differ(other):
    assert dataset_fingerprint(tensors()) == dataset_fingerprint(tensors())
    assert dataset_fingerprint(other()) == dataset_fingerprint(other())
    assert dataset_fingerprint(tensors()) != dataset_fingerprint(other())


def test_image_folders_are_told_by_path_size_and_time_but_not_by_place(tmp_path):
    from PIL import Image
    from torchvision.datasets import ImageFolder

    for root in ("a", "b"):
        (tmp_path / root / "ant").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / root / "ant" / "0.png")
        os.utime(tmp_path / root / "ant" / "0.png", ns=(10**18, 10**18))
    first = dataset_fingerprint(ImageFolder(tmp_path / "a"))
    assert first == dataset_fingerprint(ImageFolder(tmp_path / "b"))
    os.utime(tmp_path / "b" / "ant" / "0.png", ns=(10**18, 10**18 + 1))
    assert first != dataset_fingerprint(ImageFolder(tmp_path / "b"))


def test_an_opaque_data_set_warns_and_is_probed_without_randomness(rng_unchanged):
    with pytest.warns(OpaqueDatasetWarning, match="Give it a method `fingerprint"):
        first = dataset_fingerprint(Opaque(1.0))
    with pytest.warns(OpaqueDatasetWarning):
        assert dataset_fingerprint(Opaque(1.0)) == first
    with pytest.warns(OpaqueDatasetWarning):
        assert dataset_fingerprint(Opaque(2.0)) != first


def test_own_fingerprint_is_trusted():
    a = Opaque(1.0)
    a.fingerprint = lambda: "mine"
    b = Opaque(2.0)
    b.fingerprint = lambda: "mine"
    assert dataset_fingerprint(a) == dataset_fingerprint(b)


def test_settings_and_weights():
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1}) != settings_hash({"a": 1, "b": 3})
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_hash(a.state_dict()) != weights_hash(b.state_dict())
    b.load_state_dict(a.state_dict())
    assert weights_hash(a.state_dict()) == weights_hash(b.state_dict())


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files_hash([tmp_path / "nowhere"])
