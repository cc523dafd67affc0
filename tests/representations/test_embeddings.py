import numpy as np
import pytest
import torch

from toolkit import Embeddings, Representation


def test_arrays_tensors_and_files(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", matrix)
    sources = [matrix, torch.from_numpy(matrix), tmp_path / "v.npy", str(tmp_path / "v.npy"), matrix.tolist()]
    for source in sources:
        embeddings = Embeddings(source)
        assert isinstance(embeddings, Representation)
        np.testing.assert_allclose(embeddings.vectors(range(5)), matrix)
    assert isinstance(Embeddings(tmp_path / "v.npy").vectors(None), np.memmap)
    assert Embeddings(matrix).fingerprint() == Embeddings(tmp_path / "v.npy").fingerprint()
    assert Embeddings(matrix).fingerprint() != Embeddings(matrix + 1).fingerprint()
    assert Embeddings(torch.ones(2, 2, dtype=torch.bfloat16)).vectors(None).dtype == np.float32


@pytest.mark.parametrize(
    ("source", "n_images", "error", "match"),
    [
        (
            np.ones((4, 2)),
            5,
            ValueError,
            "`embeddings` must be one row for each of .* 5 images, .* '4 rows'",
        ),
        (np.ones(4), 4, ValueError, "`embeddings` must be a non-empty matrix"),
        (np.full((4, 2), np.nan), 4, ValueError, "in 4 of 4 rows, the first at index 0"),
        (
            "nowhere.npy",
            4,
            FileNotFoundError,
            "must be an array or an existing .npy file, got 'nowhere.npy'",
        ),
    ],
)
def test_errors(source, n_images, error, match):
    with pytest.raises(error, match=match):
        Embeddings(source).vectors(range(n_images))
