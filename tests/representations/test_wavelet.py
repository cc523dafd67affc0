"""Tests of wavelet coefficients and pixels: against PyWavelets, Parseval's identity and direct arithmetic."""

import pickle

import numpy as np
import pytest
import pywt
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch.utils.data import Dataset, TensorDataset

from toolkit.datamodules.images import ImageTensorDataset, collate_samples
from toolkit.representations import EvaluationView, Pixels, Representation, WaveletCoefficients
from toolkit.representations.feature_map import RandomAugmentationWarning
from toolkit.representations.image_batches import centred
from toolkit.representations.wavelet import MODES

RNG = np.random.default_rng(0)


def wavelets(*args, **kwargs):
    return WaveletCoefficients(*args, progress=False, **kwargs)


def pixels(*args, **kwargs):
    return Pixels(*args, progress=False, **kwargs)


def peer(images, wavelet, mode, levels):
    """The vectors by PyWavelets, in the documented order."""
    low, *details = pywt.wavedec2(images.astype(np.float64), wavelet, mode=mode, level=levels)
    return np.concatenate(
        [low.reshape(len(images), -1)] + [np.stack(band, axis=2).reshape(len(images), -1) for band in details], axis=1
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", ["db1", "db2", "sym5", "bior2.2", "rbio1.3"])
@pytest.mark.parametrize(("channels", "size"), [(1, (20, 20)), (3, (21, 33)), (1, (32, 19)), (3, (18, 25))])
def test_equals_pywavelets(mode, wavelet, channels, size):
    images = RNG.random((3, channels, *size)).astype(np.float32)
    deepest = pywt.dwt_max_level(min(size), wavelet)
    for levels in (None, 1):
        ours = wavelets(wavelet, levels, mode)
        found = ours.vectors(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, peer(images, wavelet, mode, levels or deepest), atol=2e-5)
        slices = ours.band_slices((channels, *size))
        assert [slices["approximation"].start, *(s.stop for s in slices.values())][-1] == found.shape[1]
        assert list(slices) == ["approximation", *(f"detail_{k}" for k in range(levels or deepest, 0, -1))]


@pytest.mark.parametrize("wavelet", ["db1", "db3", "sym4", "coif1"])
def test_distances_are_those_of_the_pixels(wavelet):
    images = RNG.integers(0, 256, size=(12, 3, 32, 32)).astype(np.uint8)
    ours = wavelets(wavelet).vectors(images).astype(np.float64)
    flat = pixels().vectors(images).astype(np.float64)
    assert ours.shape == flat.shape == (12, 3072)
    for i in range(12):
        np.testing.assert_allclose(
            np.linalg.norm(ours - ours[i], axis=1), np.linalg.norm(flat - flat[i], axis=1), atol=1e-4
        )


def test_the_coarsest_columns_come_first():
    images = RNG.random((5, 3, 32, 32))
    every = wavelets().vectors(images)
    assert np.array_equal(wavelets(bands=4).vectors(images), every[:, :192])
    shallow = wavelets(levels=2, bands=["approximation"]).vectors(images).astype(np.float64)
    assert shallow.shape == (5, 192)
    # The same span: the same distances.
    deep = every[:, :192].astype(np.float64)
    np.testing.assert_allclose(
        np.linalg.norm(deep[0] - deep, axis=1), np.linalg.norm(shallow[0] - shallow, axis=1), atol=1e-5
    )


def test_bands_weights_and_energy():
    images = RNG.random((6, 3, 16, 16))
    every = wavelets(levels=2)
    vectors = every.vectors(images)
    slices = every.band_slices((3, 16, 16))
    chosen = wavelets(levels=2, bands=["detail_1", "approximation"], band_weights={"detail_1": 0.5, "approximation": 2})
    expected = [vectors[:, slices["approximation"]] * 2, vectors[:, slices["detail_1"]] * 0.5]
    np.testing.assert_allclose(chosen.vectors(images), np.concatenate(expected, axis=1), rtol=1e-6)
    assert list(chosen.band_slices((3, 16, 16))) == ["approximation", "detail_1"]
    energy = every.band_energy(vectors, (3, 16, 16))
    assert sum(energy.values()) == pytest.approx(np.square(vectors.astype(np.float64)).sum() / 6, rel=1e-6)
    assert energy["detail_2"] == pytest.approx(np.square(vectors[:, slices["detail_2"]]).sum() / 6, rel=1e-5)


@pytest.mark.parametrize("make", [wavelets, pixels])
def test_brightness_and_contrast(make):
    images = RNG.random((4, 3, 16, 16)) * 0.4 + 0.2
    changed = images * 1.3 + 0.1
    ours = make(invariance=("contrast", "brightness"))
    vectors = ours.vectors(images)
    np.testing.assert_allclose(ours.vectors(changed), vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosine = np.corrcoef(images.reshape(4, -1))
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    np.testing.assert_allclose(distances, np.sqrt(np.maximum(0, 2 - 2 * cosine)), atol=1e-3)
    assert not np.allclose(make().vectors(changed), make().vectors(images), atol=1e-2)


@pytest.mark.parametrize("value", [0, 17, 255])
def test_constant_images_have_no_contrast(value):
    images = np.full((2, 3, 32, 32), value, np.uint8)
    assert not wavelets(invariance=("brightness", "contrast")).vectors(images).any()
    assert not pixels(invariance=("brightness", "contrast")).vectors(images).any()


@pytest.mark.parametrize("width", [16, 17])
def test_flip_and_shift(width):
    images = RNG.random((20, 3, 16, width)).astype(np.float32)
    flip = pixels(invariance=("flip",))
    np.testing.assert_allclose(flip.vectors(images[..., ::-1]), flip.vectors(images))
    shift = pixels(invariance=("shift",))
    moved = np.roll(images, (3, -5), axis=(2, 3))
    np.testing.assert_allclose(shift.vectors(moved), shift.vectors(images))
    both = wavelets(invariance=("flip", "shift"))
    mirrored = np.roll(images[..., ::-1], (2, 1), axis=(2, 3))
    np.testing.assert_allclose(both.vectors(mirrored), both.vectors(images), atol=1e-6)


def test_centring_only_moves_pixels():
    images = torch.rand(8, 3, 9, 10)
    result = centred(images)
    assert torch.equal(centred(result), result)
    assert torch.equal(result.flatten(1).sort().values, images.flatten(1).sort().values)


@pytest.mark.parametrize("of", [pixels, wavelets])
def test_overlooking_flips_keeps_lengths_and_loses_no_mirrored_pair(of):
    images = RNG.random((30, 3, 16, 16)).astype(np.float32)
    plain, mirrored, flip = of().vectors(images), of().vectors(images[..., ::-1]), of(invariance=("flip",))
    vectors = flip.vectors(images)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.linalg.norm(plain, axis=1), rtol=1e-5)
    nearer = np.minimum(cdist(plain, plain), cdist(plain, mirrored))
    assert (cdist(vectors, vectors) <= nearer + 1e-5).all()
    if of is wavelets:
        slices = flip.band_slices((3, 16, 16))
        assert [columns.stop - columns.start for columns in slices.values()] == [
            2 * (columns.stop - columns.start) for columns in wavelets().band_slices((3, 16, 16)).values()
        ]
        assert sum(flip.band_energy(vectors, (3, 16, 16)).values()) == pytest.approx(
            float((plain**2).sum(axis=1).mean()), rel=1e-4
        )


def test_grayscale_resize_and_max_size():
    images = RNG.random((3, 3, 40, 60))
    grey = (images * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    np.testing.assert_allclose(pixels(grayscale=True).vectors(images), grey.reshape(3, -1), atol=1e-6)
    halved = images.reshape(3, 3, 20, 2, 30, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(pixels(max_size=30).vectors(images), halved.reshape(3, -1), atol=1e-6)
    assert wavelets(max_size=30, levels=1, grayscale=True).vectors(images).shape == (3, 20 * 30)
    ours = wavelets(resize=(16, 32), max_size=50)
    assert ours.vectors(images).shape == (3, 3 * 16 * 32)
    assert ours.band_slices((3, 40, 60))["detail_1"].stop == 3 * 16 * 32


class Listed(Dataset):
    """Samples in a list."""

    def __init__(self, samples):
        self.samples_ = samples

    def __len__(self):
        return len(self.samples_)

    def __getitem__(self, index):
        return self.samples_[index]

    def fingerprint(self):
        return "listed"


def test_every_way_to_give_images(tmp_path):
    images = RNG.integers(0, 256, size=(10, 3, 16, 16)).astype(np.uint8)
    expected = wavelets().vectors(images)
    tensor = torch.from_numpy(images)
    np.save(tmp_path / "images.npy", images)
    labels = torch.zeros(10, dtype=torch.int64)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    ways = [
        tensor,
        images / 255,
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        TensorDataset(tensor, labels),
        TensorDataset(tensor.float() / 255),
        EvaluationView(ImageTensorDataset(tensor, labels), collate_fn=collate_samples, batch_transform=lambda b, d: b),
        ImageTensorDataset(tensor, labels),
        Listed([{"image": image} for image in tensor]),
        Listed([(picture, 0) for picture in pictures]),
        EvaluationView(Listed(list(tensor)), num_workers=1),
    ]
    for way in ways:
        np.testing.assert_allclose(wavelets(batch_size=4).vectors(way), expected, atol=1e-6)
    flat = pixels().vectors(images[:, 0])
    assert flat.shape == (10, 256)
    np.testing.assert_allclose(flat, images[:, 0].reshape(10, -1) / 255, atol=1e-7)


def test_sizes_that_differ():
    sizes = [(16, 16), (16, 16), (20, 16), (33, 40), (16, 16)]
    data = Listed([(torch.rand(3, *size), 0) for size in sizes])
    with pytest.raises(ValueError, match=r"got 16 x 16 \(3 channels\) for image 0 and 20 x 16 .* image 2.*`resize`"):
        wavelets(batch_size=2).vectors(data)
    with pytest.raises(ValueError, match="image 2"):
        wavelets(batch_size=5).vectors(data)
    vectors = wavelets(resize=(8, 8), batch_size=3).vectors(data)
    assert vectors.shape == (5, 192)
    one = wavelets(resize=(8, 8)).vectors(data[3][0][None])
    np.testing.assert_allclose(vectors[3:4], one, atol=1e-6)


def test_random_augmentation_is_told():
    class Random(Listed):
        def __getitem__(self, index):
            return torch.rand(3, 8, 8)

    with pytest.warns(RandomAugmentationWarning, match="vectors will be of randomly augmented images"):
        wavelets().vectors(Random([0] * 4))


def test_protocol_fingerprints_and_pickling():
    settings = [
        {}, {"wavelet": "db2"}, {"levels": 1}, {"mode": "zero"}, {"bands": 2}, {"band_weights": {"detail_1": 2}},
        {"invariance": ("flip",)}, {"resize": (8, 8)}, {"max_size": 9}, {"grayscale": True},
    ]  # fmt: skip
    made = [wavelets(**setting) for setting in settings]
    assert all(isinstance(one, Representation) for one in made)
    assert len({one.fingerprint() for one in made}) == len(settings)
    assert wavelets(batch_size=7, device="cpu").fingerprint() == wavelets().fingerprint() != pixels().fingerprint()
    assert (
        wavelets(invariance=["contrast", "flip"]).fingerprint()
        == wavelets(invariance=("flip", "contrast")).fingerprint()
    )
    images = RNG.random((2, 8, 8))
    one = wavelets()
    before = one.vectors(images)
    assert np.array_equal(pickle.loads(pickle.dumps(one)).vectors(images), before)


def test_same_whatever_the_batch_size(rng_unchanged):
    images = RNG.random((37, 3, 24, 24)).astype(np.float32)
    copy = images.copy()
    for kwargs in ({}, {"wavelet": "db3"}, {"invariance": ("brightness", "shift", "flip", "contrast")}):
        results = [wavelets(batch_size=size, **kwargs).vectors(images) for size in (1, 10, 512)]
        np.testing.assert_allclose(results[0], results[1], atol=1e-6)
        np.testing.assert_allclose(results[0], results[2], atol=1e-6)
    assert np.array_equal(images, copy)


def test_one_batch():
    images = RNG.random((3, 3, 16, 16)).astype(np.float32)
    assert np.array_equal(wavelets().transform(images).numpy(), wavelets().vectors(images))


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = RNG.random((50, 3, 33, 40)).astype(np.float32)
    for mode in MODES:
        on_gpu, on_cpu = (wavelets("db2", mode=mode, device=device).vectors(images) for device in ("cuda", "cpu"))
        np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)


GOOD = RNG.random((3, 3, 16, 16))


def with_pixel(value):
    images = GOOD.copy()
    images[1, 0, 2, 3] = value
    return images


ERRORS = [
    (lambda: wavelets("db99"), ValueError, "`wavelet` must be the name of a discrete wavelet"),
    (lambda: wavelets("morl"), ValueError, "`wavelet` must be the name of a discrete wavelet"),
    (lambda: wavelets(mode="constant"), ValueError, "`mode` must be one of 'periodization'"),
    (lambda: wavelets(levels=0), ValueError, "`levels` must be at least 1"),
    (lambda: wavelets(levels=1.5), TypeError, "`levels` must be an integer"),
    (lambda: wavelets(bands=0), ValueError, "`bands` must be"),
    (lambda: wavelets(bands=["coarse"]), ValueError, "`bands` must be a number, or names such as"),
    (lambda: wavelets(bands="detail_1"), ValueError, "`bands` must be a number, or names such as"),
    (lambda: wavelets(band_weights={"detail": 1}), ValueError, "`band_weights` must be by names"),
    (lambda: wavelets(band_weights={"detail_1": -1}), ValueError, "`band_weights` must be finite numbers"),
    (lambda: wavelets(invariance=("colour",)), ValueError, "`invariance` must be a list of names out of"),
    (lambda: wavelets(invariance="flip"), ValueError, "`invariance` must be a list of names out of"),
    (lambda: pixels(resize=32), ValueError, "`resize` must be the height and width"),
    (lambda: pixels(resize=(0, 4)), ValueError, "`resize` must be at least 1"),
    (lambda: pixels(max_size=0), ValueError, "`max_size` must be at least 1"),
    (lambda: pixels(batch_size=2.0), TypeError, "`batch_size` must be an integer"),
    (lambda: wavelets(levels=5).vectors(GOOD), ValueError, "`levels` must be at most 4 for images of 16 x 16 pixels"),
    (lambda: wavelets("db9").vectors(GOOD), ValueError, "Images must be at least 34 pixels high and wide"),
    (lambda: wavelets().vectors(GOOD[..., :1]), ValueError, "Images must be at least 2 pixels high and wide"),
    (lambda: wavelets(bands=["detail_9"]).vectors(GOOD), ValueError, "`bands` must be names of the bands"),
    (lambda: wavelets(bands=6).vectors(GOOD), ValueError, "`bands` must be at most 5 with 4 levels"),
    (lambda: wavelets(band_weights={"detail_9": 2}).vectors(GOOD), ValueError, "`band_weights` must be names"),
    (lambda: wavelets().vectors(with_pixel(np.nan)), ValueError, "got NaN or infinite ones in image 1"),
    (lambda: wavelets().vectors(with_pixel(np.inf)), ValueError, "got NaN or infinite ones in image 1"),
    (lambda: wavelets(batch_size=1).vectors(with_pixel(-0.5)), ValueError, "got -0.5 in image 1. Take a normalisation"),
    (lambda: pixels().vectors(with_pixel(255)), ValueError, "got 255 in image 1. Divide by"),
    (lambda: pixels().vectors(GOOD.astype(np.int32)), TypeError, "must have pixels of uint8"),
    (lambda: pixels().vectors(GOOD[:0]), ValueError, "`images` must be a non-empty array"),
    (lambda: pixels().vectors(GOOD[0, 0]), ValueError, "`images` must be a non-empty array"),
    (lambda: pixels().vectors(GOOD.transpose(0, 2, 3, 1)), ValueError, "channels before height and width"),
    (lambda: pixels().vectors(Listed([])), ValueError, "`dataset` must be a data set with at least one image"),
    (lambda: pixels().vectors(Listed(["a", "b"])), TypeError, "Images must be tensors, arrays or PIL images"),
    (lambda: pixels(grayscale=True).vectors(GOOD[:, :2]), ValueError, "`grayscale` must be False for images"),
    (lambda: wavelets().band_slices((16, 16)), ValueError, "`shape` must be the"),
    (lambda: wavelets().band_energy(np.ones((2, 5)), (1, 2, 2)), ValueError, "`vectors` must be of shape"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
