import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from toolkit.leakage import leaks_between, mirror_images
from toolkit.representations import EvaluationView, Pixels, WaveletCoefficients
from toolkit.similarity import pairwise_ssim


def sets(n_train=40, n_test=12, size=16, seed=0):
    """Smooth random images; tests 0 to 3 are training images 5 to 8 with noise, 4 to 6 are 10 to 12 mirrored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n_train + n_test, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    train, test = images[:n_train].clone(), images[n_train:].clone()
    test[:4] = (train[5:9] + 0.01 * torch.randn(4, 3, size, size, generator=generator)).clamp(0, 1)
    test[4:7] = train[10:13].flip(-1)
    return train, test


def compare(train, test, representation=None, **more):
    return leaks_between(train, test, representation or Pixels(progress=False), progress=False, **more)


def test_twins_are_found_also_mirrored_ones():
    train, test = sets()
    leaks = compare(train, test)
    assert set(leaks.twins) == set(range(7))
    assert leaks.nearest[:7].tolist() == [5, 6, 7, 8, 10, 11, 12]
    assert leaks.mirrored[:7].tolist() == [False] * 4 + [True] * 3
    similarity = pairwise_ssim(test, train, variant="volume")
    assert np.allclose(leaks.similarity[:4], similarity[np.arange(4), leaks.nearest[:4]], atol=1e-5)
    assert leaks.similarity[4] == pytest.approx(1, abs=1e-6)
    as_they_are = compare(train, test, mirrored=False)
    assert set(as_they_are.twins) == set(range(4))


def test_data_sets_views_and_arrays_agree():
    train, test = sets()
    train8, test8 = ((255 * x).round().byte() for x in (train, test))
    given = [
        (train8, test8),
        (train8.numpy(), test8.numpy()),
        (TensorDataset(train8, torch.zeros(40)), TensorDataset(test8, torch.zeros(12))),
        (EvaluationView(TensorDataset(train8)), EvaluationView(TensorDataset(test8))),
    ]
    first, *others = [compare(*pair, WaveletCoefficients(progress=False)) for pair in given]
    for other in others:
        assert np.array_equal(first.nearest, other.nearest)
        assert np.array_equal(first.similarity, other.similarity)
        assert np.array_equal(first.mirrored, other.mirrored)


def test_a_radius_decides_by_distance():
    train, test = sets()
    leaks = compare(train, test, radius=1.0)
    apart = torch.cdist(test.flatten(1).double(), train.flatten(1).double()).min(dim=1).values
    mirrored = torch.cdist(test.flip(-1).flatten(1).double(), train.flatten(1).double()).min(dim=1).values
    assert np.allclose(leaks.distance, torch.minimum(apart, mirrored), atol=1e-4)
    assert set(leaks.twins) == set(torch.nonzero(torch.minimum(apart, mirrored) <= 1.0)[:, 0].tolist())
    assert leaks.similarity is not None, "it is told all the same"


def test_mirror_images_are_flipped_whatever_a_sample_is():
    images = torch.rand(6, 1, 4, 5)
    pixels = Pixels(progress=False)
    for samples in (
        images,
        images.numpy(),
        TensorDataset(images, torch.arange(6)),
        [{"image": x, "label": 0} for x in images],
    ):
        assert np.array_equal(pixels.images(mirror_images(EvaluationView(samples))), images.flip(-1))


def test_images_of_other_sizes_need_a_common_one():
    train, test = sets()
    small = test[:, :, :12]
    with pytest.raises(ValueError, match=r"`test` must be images of the training images' shape \(give `resize`\)"):
        compare(train, small)
    resized = compare(train, small, Pixels(resize=(16, 16), progress=False), resize=(16, 16))
    assert len(resized) == 12


def test_bad_settings_are_refused():
    train, test = sets()
    with pytest.raises(ValueError, match="`min_similarity` must be a structural similarity"):
        compare(train, test, min_similarity=1.5)
    with pytest.raises(ValueError, match="`k` must be 1 or more, got 0|`candidates` must be"):
        compare(train, test, candidates=0)
    with pytest.raises(ValueError, match="`radius` must be 0 or more"):
        compare(train, test, radius=-1.0)
