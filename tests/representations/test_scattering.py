"""Wavelet scattering against a plain twin in loops, and what it overlooks."""

from __future__ import annotations

import csv
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from toolkit.representations.scattering import WaveletScattering, _nearest_basis, _principal_axes
from toolkit.representations.wavelet import WaveletCoefficients

EVERYTHING = ("brightness", "contrast", "flip")


def pictures(n=60, channels=3, height=16, width=16, seed=0, low=0.0, high=1.0):
    """Smooth random images with pixels in [low, high], float32."""
    noise = np.random.default_rng(seed).normal(size=(n, channels, height, width))
    smooth = gaussian_filter(noise, (0, 0.3, 1, 1)) + 0.05 * noise
    smooth -= smooth.min(axis=(1, 2, 3), keepdims=True)
    return (low + (high - low) * smooth / smooth.max(axis=(1, 2, 3), keepdims=True)).astype(np.float32)


def scattering(**settings):
    return WaveletScattering(progress=False, **settings)


def distances(a, b):
    return np.linalg.norm(a.astype(float) - b, axis=1)


def cell_means(values, cells):
    """Means over adaptive cells of the last two axes: cell i is floor(i n / cells) to ceil((i + 1) n / cells)."""
    height, width = values.shape[-2:]
    means = np.empty((*values.shape[:-2], cells, cells))
    for i in range(cells):
        for j in range(cells):
            rows = slice(i * height // cells, math.ceil((i + 1) * height / cells))
            columns = slice(j * width // cells, math.ceil((j + 1) * width / cells))
            means[..., i, j] = values[..., rows, columns].mean(axis=(-2, -1))
    return means


def plain_features(images, levels=3, cells=4, color_weight=0.3, invariance=EVERYTHING):
    """Unwhitened bands (N, bands, cells, cells), each Haar detail from its definition."""
    images = images.astype(float)
    n, _, height, width = images.shape
    grey = np.pad(images.mean(axis=1), [(0, 0), (2**levels,) * 2, (2**levels,) * 2], mode="symmetric")
    details = []
    for level in range(1, levels + 1):
        half = 2 ** (level - 1)
        for sign_rows, sign_columns in [(1, -1), (-1, 1), (-1, -1)]:
            values = np.empty((n, height + 1, width + 1))
            rows, columns = np.repeat([sign_rows, 1], half), np.repeat([sign_columns, 1], half)
            for i in range(height + 1):
                for j in range(width + 1):
                    window = grey[:, i + 2**levels - half :, j + 2**levels - half :][:, : 2 * half, : 2 * half]
                    values[:, i, j] = abs((window @ columns) @ rows) / 4**level
            details.append(np.sqrt(cell_means(values, cells)))
    if "brightness" in invariance:
        images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    parts = [np.stack(details, axis=1), cell_means(images, cells)]
    if "contrast" in invariance:
        parts = [part / np.sqrt((part**2).sum(axis=(1, 2, 3), keepdims=True)) for part in parts]
    return np.concatenate([parts[0], color_weight * parts[1]], axis=1) if color_weight else parts[0]


def plain_vectors(images, whitening=1.0, ridge=0.1, invariance=EVERYTHING, **settings):
    """Whitened vectors: by the eigenvectors of the covariance, the two parts under mirroring apart."""
    x = plain_features(images, invariance=invariance, **settings)
    parts = [x.reshape(len(x), -1)]
    if "flip" in invariance:
        half = -(-x.shape[3] // 2)
        even, odd = (x + x[..., ::-1]) / math.sqrt(2), (x - x[..., ::-1]) / math.sqrt(2)
        if x.shape[3] % 2:  # The middle column is its own mirror image.
            even[..., half - 1] /= math.sqrt(2)
            odd = odd[..., : half - 1]
        parts = [even[..., :half].reshape(len(x), -1), odd[..., : x.shape[3] // 2].reshape(len(x), -1)]
    parts[0] = parts[0] - parts[0].mean(axis=0)
    found = [np.linalg.eigh(part.T @ part / len(x)) for part in parts]
    floor = ridge * np.concatenate([values for values, _ in found]).mean()
    whitened = [
        part @ axes * (values + floor) ** (-whitening / 2) for part, (values, axes) in zip(parts, found, strict=True)
    ]
    if "flip" in invariance:
        whitened[1] = abs(whitened[1])
    vectors = np.concatenate(whitened, axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if "contrast" in invariance else vectors


def gram(vectors):
    """Products of all pairs of rows: what is left when signs and order of the axes do not matter."""
    vectors = vectors.astype(float)
    return vectors @ vectors.T


@pytest.mark.parametrize(
    ("settings", "channels", "height", "width"),
    [
        ({}, 3, 16, 16),
        ({}, 1, 17, 12),
        ({"levels": 2, "cells": 3}, 3, 9, 13),
        ({"levels": 1, "cells": 5}, 2, 7, 8),
        ({"levels": 1, "cells": 1}, 3, 8, 8),
        ({"levels": 3, "cells": 2, "color_weight": 0.0}, 3, 8, 11),
        ({"whitening": 0.5, "ridge": 0.01}, 3, 12, 12),
        ({"whitening": 0.0, "levels": 2}, 3, 12, 12),
        ({"invariance": ()}, 3, 12, 12),
        ({"invariance": ("brightness", "flip")}, 3, 12, 12),
        ({"invariance": ("contrast", "shift")}, 3, 12, 12),
        ({"invariance": ("contrast", "flip")}, 4, 12, 12),
    ],
)
def test_equals_a_plain_twin(settings, channels, height, width):
    images = pictures(250, channels, height, width)
    # More images than dimensions, so that no two variances are equal, on which the moduli would depend.
    levels, cells = settings.get("levels", 3), settings.get("cells", 4)
    found = scattering(**settings).vectors(images)
    assert found.shape == (250, cells**2 * (3 * levels + (channels if settings.get("color_weight", 1) else 0)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(gram(found), gram(plain_vectors(images, **settings)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cells", [1, 4, 5])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 17), (40, 33), (50, 31)])
def test_mirror_images_have_the_same_vector(cells, height, width):
    images = pictures(30, 3, height, width)
    if max(height, width) <= 32:  # Downscaling rounds, which shows where there is hardly any contrast.
        images[3] = 0.5 + (images[3] - 0.5) * 1e-3
    both = np.concatenate([images, images[..., ::-1]])
    vectors = scattering(cells=cells).vectors(both)
    np.testing.assert_allclose(vectors[:30], vectors[30:], atol=1e-5)
    assert distances(vectors[:29], vectors[1:30]).min() > 0.1
    alone = scattering(cells=cells).fitted(images)
    np.testing.assert_allclose(alone.vectors(images), alone.vectors(images[..., ::-1].copy()), atol=1e-5)


@pytest.mark.parametrize("invariance", [EVERYTHING, ("flip",)])
def test_distances_do_not_exceed_those_of_the_better_of_two_mirror_images(invariance):
    # Fitted to images and their mirror images, both have the same axes; only the moduli differ.
    images = pictures(150)
    both = np.concatenate([images, images[..., ::-1]])
    with_flip = scattering(invariance=invariance).fitted(both).vectors(images)
    without = scattering(invariance=[name for name in invariance if name != "flip"]).fitted(both)
    straight, mirrored = without.vectors(images), without.vectors(images[..., ::-1].copy())
    for shift in (1, 5, 40):
        found = distances(with_flip, np.roll(with_flip, shift, axis=0))
        others = [distances(straight, np.roll(x, shift, axis=0)) for x in (straight, mirrored)]
        assert np.all(found <= np.minimum(*others) * (1 + 1e-5) + 1e-5)
    np.testing.assert_allclose(np.linalg.norm(with_flip, axis=1), np.linalg.norm(straight, axis=1), rtol=1e-5)


def test_brightness_and_contrast_are_overlooked_where_asked():
    images = pictures(40, low=0.2, high=0.6)
    brighter, stronger = images + np.float32(0.3), (images - 0.2) * np.float32(1.7) + np.float32(0.1)
    for invariance, same_brighter, same_stronger in [
        (EVERYTHING, True, True),
        (("brightness",), True, False),
        (("contrast",), False, False),
        ((), False, False),
    ]:
        fitted = scattering(invariance=invariance).fitted(images)
        vectors = fitted.vectors(images)
        scale = distances(vectors, np.roll(vectors, 1, axis=0)).min()
        for changed, same in [(brighter, same_brighter), (stronger, same_stronger)]:
            apart = distances(vectors, fitted.vectors(changed)).max()
            assert (apart < 1e-3 * scale) == same, (invariance, apart, scale)


def test_shifted_images_are_found_more_often_than_by_wavelet_coefficients():
    large = pictures(1000, height=38, width=38)
    here, there = large[:, :, :32, :32].copy(), large[:300, :, 3:35, 3:35].copy()

    def found(representation):
        vectors = representation.vectors(np.concatenate([here, there])).astype(float)
        similarity = vectors[1000:] @ vectors[:1000].T
        return (similarity.argmax(axis=1) == np.arange(300)).mean()

    invariance = ("brightness", "contrast")
    coarsest = WaveletCoefficients(levels=2, bands=1, invariance=invariance, progress=False)
    every = WaveletCoefficients(levels=2, invariance=invariance, progress=False)
    assert found(scattering()) > 2 * max(found(coarsest), found(every))


def test_fitted_sees_other_images_as_it_saw_its_own():
    training, test = pictures(80, seed=1), pictures(50, seed=2)
    plain = scattering()
    fitted = plain.fitted(training)
    assert fitted.is_fitted
    assert not plain.is_fitted
    np.testing.assert_allclose(fitted.vectors(training), plain.vectors(training), atol=1e-6)
    vectors = fitted.vectors(test)
    # One by one they are the same as all together, which without a fit they are not.
    np.testing.assert_allclose(np.concatenate([fitted.vectors(test[i : i + 1]) for i in range(50)]), vectors, atol=1e-5)
    np.testing.assert_allclose(fitted.transform(torch.from_numpy(test[:7])).numpy(), vectors[:7], atol=1e-5)
    assert np.abs(plain.vectors(test) - vectors).max() > 0.1
    np.testing.assert_array_equal(fitted.fitted(test).vectors(test), plain.vectors(test))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).vectors(test), vectors)


def test_fingerprint_tells_settings_and_fits_apart():
    training = pictures(20)
    settings = [
        {},
        {"levels": 2},
        {"cells": 3},
        {"color_weight": 0.5},
        {"whitening": 0.9},
        {"ridge": 0.2},
        {"invariance": ("flip",)},
        {"resize": (16, 16)},
        {"max_size": 64},
        {"max_size": None},
        {"grayscale": True},
    ]
    found = [scattering(**some).fingerprint() for some in settings]
    found += [scattering().fitted(training[:n]).fingerprint() for n in (19, 20)]
    assert len(set(found)) == len(found)
    assert scattering(batch_size=7).fingerprint() == scattering().fingerprint()
    assert scattering(batch_size=7).fitted(training[:19]).fingerprint() == found[-2]


def test_any_number_of_images_can_be_whitened():
    images = pictures(3)
    alone = scattering(invariance=("brightness", "contrast")).vectors(images[:1])
    np.testing.assert_array_equal(alone, 0)  # It is its own mean.
    for invariance in (EVERYTHING, ("flip",), ()):
        for n in (1, 2, 3):
            vectors = scattering(invariance=invariance).vectors(images[:n])
            assert vectors.shape == (n, 192)
            assert np.isfinite(vectors).all()
            others = scattering(invariance=invariance).fitted(images[:n]).vectors(images)
            assert np.isfinite(others).all()
    repeated = scattering(invariance=("brightness", "contrast")).vectors(np.repeat(images[:1], 5, axis=0))
    np.testing.assert_array_equal(repeated, 0)


def test_constant_images_have_no_contrast():
    images = np.concatenate([pictures(20), np.full((3, 3, 16, 16), 0.3, np.float32)])
    images[21], images[22] = 0.0, np.array([1, 0, 0], np.float32)[:, None, None]
    raw = scattering()._raw(images)
    np.testing.assert_array_equal(raw[20:22], 0)
    np.testing.assert_array_equal(raw[22, :144], 0)  # A colour is still one where there is no detail.
    np.testing.assert_allclose(np.linalg.norm(raw[22, 144:]), 0.3, rtol=1e-6)
    vectors = scattering().vectors(images)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[20], vectors[21], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert np.isfinite(scattering().vectors(images[20:22])).all()
    # Rounding, which resizing brings about, is not contrast either.
    np.testing.assert_array_equal(scattering(resize=(13, 19))._raw(np.full((1, 3, 40, 40), 0.3, np.float32)), 0)


def test_every_way_to_give_images_agrees(rng_unchanged):
    images = (pictures(20, height=20, width=24) * 255).astype(np.uint8)
    expected = scattering().vectors(images)
    samples = [(torch.from_numpy(image), 0) for image in images]
    for given in (torch.from_numpy(images), samples, images / np.float32(255)):
        np.testing.assert_allclose(scattering(batch_size=7).vectors(given), expected, atol=1e-5)
    np.testing.assert_array_equal(scattering().vectors(images), expected)
    grey = scattering().vectors(images[:, 0])
    assert grey.shape == (20, 160)
    np.testing.assert_array_equal(scattering().vectors(images[:, :1]), grey)
    assert scattering(grayscale=True).vectors(images).shape == (20, 160)
    before = images.copy()
    scattering(max_size=16).vectors(images)
    np.testing.assert_array_equal(images, before)


def test_order_of_images_and_threads_do_not_matter():
    images = pictures(300)
    order = np.random.default_rng(3).permutation(300)
    expected = scattering().vectors(images)
    np.testing.assert_allclose(gram(scattering().vectors(images[order])), gram(expected[order]), atol=1e-4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        np.testing.assert_allclose(scattering().vectors(images), expected, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_axes_follow_from_the_covariance_alone():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    variances = np.array([5.0, 3.0, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0])
    covariance = (turn * variances) @ turn.T
    found, axes = _principal_axes(covariance)
    np.testing.assert_allclose(found, variances, atol=1e-12)
    np.testing.assert_allclose(axes.T @ axes, np.eye(8), atol=1e-12)
    np.testing.assert_allclose((axes * found) @ axes.T, covariance, atol=1e-12)
    assert np.all(np.abs(axes).max(axis=0) == axes.max(axis=0))
    span = turn[:, 1:4]
    again = _nearest_basis(span @ np.linalg.qr(rng.normal(size=(3, 3)))[0])
    np.testing.assert_allclose(again, _nearest_basis(span), atol=1e-10)
    np.testing.assert_allclose(_nearest_basis(np.eye(5)[:, [3, 1]]), np.eye(5)[:, [1, 3]], atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"levels": 0}, ValueError, "`levels` must be at least 1, got 0"),
        ({"levels": 1.5}, TypeError, "`levels` must be an integer"),
        ({"cells": 0}, ValueError, "`cells` must be at least 1"),
        ({"cells": True}, TypeError, "`cells` must be an integer"),
        ({"color_weight": -1}, ValueError, "`color_weight` must be a finite number of at least 0, got -1"),
        ({"color_weight": math.nan}, ValueError, "`color_weight` must be a finite number"),
        ({"color_weight": "much"}, TypeError, "`color_weight` must be a number"),
        ({"whitening": 1.1}, ValueError, r"`whitening` must be in \[0, 1\], got 1.1"),
        ({"ridge": 0}, ValueError, "`ridge` must be above 0"),
        ({"ridge": math.inf}, ValueError, "`ridge` must be a finite number"),
        ({"invariance": ("rotation",)}, ValueError, "`invariance` must be a list of names out of"),
    ],
)
def test_settings_out_of_range(settings, error, match):
    with pytest.raises(error, match=match):
        scattering(**settings)


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match="`levels` must be at most 2 for images of 7 x 40, got 3"):
        scattering(max_size=None).vectors(pictures(2, height=7, width=40))
    with pytest.raises(ValueError, match="`cells` must be at most 8 for images of 8 x 9, got 9"):
        scattering(cells=9).vectors(pictures(2, height=8, width=9))
    with pytest.raises(ValueError, match="at least one image"):
        scattering().vectors([])
    with pytest.raises(ValueError, match=r"finite pixels in \[0, 1\]"):
        scattering().vectors(pictures(2) - 1)
    with pytest.raises(TypeError, match="uint8, uint16 or floating-point"):
        scattering().vectors(np.zeros((2, 3, 16, 16), np.int64))
    fitted = scattering().fitted(pictures(5))
    with pytest.raises(ValueError, match="Images must have 3 channels, as those had that this is fitted to, got 1"):
        fitted.vectors(pictures(2, channels=1))
    with pytest.raises(ValueError, match="got 1"):
        fitted.transform(pictures(2, channels=1))
    with pytest.raises(ValueError, match="`transform` needs a fitted representation"):
        scattering().transform(pictures(2))


@pytest.mark.data
def test_judged_near_duplicates_are_found(data_folder, cifar_root):
    def read(name):
        with (cifar_root / "cifar-10-batches-py" / name).open("rb") as file:
            return pickle.load(file, encoding="latin1")["data"].reshape(-1, 3, 32, 32)

    with (data_folder / "cifair" / "duplicates_cifar10.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["Judgment"]) <= 1]
    queries = [int(row["TestID"]) for row in rows]
    partners = [int(row["TrainID"]) for row in rows]
    assert len(rows) == 249
    training = np.concatenate([read(f"data_batch_{i}") for i in range(1, 6)])
    fitted = scattering(device="cpu").fitted(training)
    vectors, asked = fitted.vectors(training), fitted.vectors(read("test_batch")[queries])
    similarity = asked @ vectors.T
    ranks = (similarity > similarity[np.arange(249), partners][:, None]).sum(axis=1)
    assert (ranks == 0).mean() >= 0.86
    assert (ranks < 10).mean() >= 0.985
    assert (distances(asked, vectors[partners]) <= 0.6).mean() >= 0.88
