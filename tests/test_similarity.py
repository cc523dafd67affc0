"""SSIM against pytorch-msssim, and against a float64 reference by scipy for the volume."""

from __future__ import annotations

import itertools
import runpy

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from toolkit import similarity
from toolkit.similarity import VARIANTS, pairwise_similarity, pairwise_ssim, ssim_of_pairs, ssim_pairs_above

pytorch_msssim = pytest.importorskip("pytorch_msssim")


def images(n, shape=(3, 32, 32), seed=0):
    """Smooth images, noise, flat ones and twins."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.linspace(0.0, 1.0, length) for length in shape[-2:])
    waves = rng.uniform(1.0, 9.0, size=(3, n, *shape[:-2], 1, 1))
    found = 0.5 + 0.5 * np.sin(waves[0] * rows[:, None] + waves[1] * columns + 6.0 * waves[2])
    found[: n // 3] = 0.7 * found[: n // 3] + 0.3 * rng.random(size=(n // 3, *shape))
    if n > 5:
        found[3] = 0.25
        found[4] = 0.75
        found[5] = found[1]
    return found.astype(np.float32)


def gaussian(size=11, sigma=1.5):
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2.0 * sigma**2))
    return weights / weights.sum()


def blurred(image, volume, taps):
    """A window's mean at every position it has."""
    for axis in (0, 1, 2) if volume else (1, 2):
        image = correlate1d(image, taps, axis=axis, mode="nearest")
    half = len(taps) // 2
    return image if volume or half == 0 else image[:, half:-half, half:-half]


def reference(x, y, variant, taps=None, k1=0.01, k2=0.03):
    """SSIM of two images in [0, 1], in float64 as the definition has it."""
    taps = gaussian() if taps is None else taps
    x, y = np.float64(x), np.float64(y)
    volume, c1, c2 = variant == "volume", k1**2, k2**2
    mx, my, xx, yy, xy = (blurred(part, volume, taps) for part in (x, y, x * x, y * y, x * y))
    return np.mean(
        (2 * mx * my + c1) * (2 * (xy - mx * my) + c2) / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))
    )


def peer(x, y):
    """pytorch-msssim's SSIM of all pairs, in float64 (its own window is float32, which costs 1e-5 on flat images)."""
    window = torch.from_numpy(gaussian()).repeat(x.shape[1], 1, 1, 1)
    x, y = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    i, j = np.divmod(np.arange(len(x) * len(y)), len(y))
    found = pytorch_msssim.ssim(x[i], y[j], data_range=1.0, size_average=False, win=window)
    return found.numpy().reshape(len(x), len(y))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 11, 11), (1, 28, 28), (5, 13, 40), (3, 47, 18)])
def test_equals_pytorch_msssim(shape):
    x, y = images(21, shape), images(7, shape, seed=1)
    np.testing.assert_allclose(pairwise_ssim(x), peer(x, x), atol=1e-5)
    np.testing.assert_allclose(pairwise_ssim(x, y), peer(x, y), atol=1e-5)
    np.testing.assert_allclose(ssim_of_pairs(x[:7], y), peer(x[:7], y).diagonal(), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 5, 4), (2, 1, 1), (5, 9, 33), (13, 17, 6), (4, 8, 60)])
def test_volume_equals_the_reference(shape):
    x = images(19, shape)
    expected = [[reference(one, two, "volume") for two in x] for one in x]
    np.testing.assert_allclose(pairwise_ssim(x, variant="volume"), expected, atol=1e-5)
    np.testing.assert_allclose(pairwise_ssim(x[:3], x[3:], variant="volume"), np.array(expected)[:3, 3:], atol=1e-5)
    np.testing.assert_allclose(ssim_of_pairs(x[:9], x[9:18], variant="volume"),
                               np.diagonal(expected, 9)[:9], atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("window_size", "sigma"), [(1, 1.5), (3, 0.7), (7, 1.5), (15, 3.0)])
def test_other_windows_and_constants(variant, window_size, sigma):
    x = images(6, (2, 16, 19))
    taps = gaussian(window_size, sigma)
    expected = [[reference(one, two, variant, taps, 0.02, 0.05) for two in x] for one in x]
    settings = {"variant": variant, "window_size": window_size, "sigma": sigma, "k1": 0.02, "k2": 0.05}
    np.testing.assert_allclose(pairwise_ssim(x, **settings), expected, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_images(variant):
    x = images(5, (3, 224, 224))
    assert (
        similarity._Kernels(similarity._Images(x, "a", None), similarity._window(variant, 11, 1.5, 0.01, 0.03))._group
        > 1
    )
    found = pairwise_ssim(x, variant=variant)
    for i, j in ((0, 1), (1, 4), (2, 3)):
        assert found[i, j] == pytest.approx(reference(x[i], x[j], variant), abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bright_and_nearly_flat_images_keep_their_covariance(variant):
    rng = np.random.default_rng(3)
    x = np.float32(0.98) + np.float32(1e-3) * rng.normal(size=(8, 3, 24, 24)).astype(np.float32)
    halves = np.where(np.arange(24) < 12, 0.0, 1.0) * np.ones((2, 3, 24, 1))
    halves[1, :, :, 12:] -= 0.02 * rng.random(size=(3, 24, 12))
    x = np.concatenate([x, 0.5 * x[:2] + 0.49, halves]).astype(np.float32)
    expected = [[reference(one, two, variant) for two in x] for one in x]
    np.testing.assert_allclose(pairwise_ssim(x, variant=variant), expected, atol=1e-4)
    np.testing.assert_allclose(ssim_of_pairs(x, x[::-1], variant=variant), np.diagonal(np.array(expected)[:, ::-1]),
                               atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_symmetric_with_ones_on_the_diagonal_and_within_bounds(variant):
    x = images(50)
    found = pairwise_ssim(x, variant=variant)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.T)
    assert (found.diagonal() == 1.0).all()
    assert found[1, 5] == 1.0, "twins"
    assert found.min() >= -1.0
    assert found.max() <= 1.0
    assert np.count_nonzero(found == 1.0) == 52
    assert ssim_of_pairs(x[[1, 2]], x[[5, 2]], variant=variant).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_constant_images(variant):
    levels = np.array([0.0, 0.5, 1.0, 0.5])
    x = np.ones((4, 3, 12, 12)) * levels[:, None, None, None]
    expected = (2 * levels * levels[:, None] + 1e-4) / (levels**2 + levels[:, None] ** 2 + 1e-4)
    found = pairwise_ssim(x, variant=variant)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[1, 3] == found[0, 0] == 1.0
    np.testing.assert_allclose(ssim_of_pairs(x, x[::-1], variant=variant), expected[range(4), range(3, -1, -1)],
                               atol=1e-6)  # fmt: skip
    same = pairwise_ssim(np.zeros((3, 12, 12)), variant=variant)
    assert (same == 1.0).all()


def test_one_image():
    x = images(1)
    assert pairwise_ssim(x).tolist() == [[1.0]]
    pairs, similarities = ssim_pairs_above(x, 0.5)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64
    assert similarities.shape == (0,)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_images_may_be(variant):
    x = np.random.default_rng(0).integers(256, size=(18, 3, 16, 20), dtype=np.uint8)
    before = x.copy()
    found = pairwise_ssim(x, variant=variant)
    np.testing.assert_array_equal(found, pairwise_ssim(torch.from_numpy(x), variant=variant))
    np.testing.assert_array_equal(found, pairwise_ssim(x.astype(np.float32) / np.float32(255.0), variant=variant))
    np.testing.assert_array_equal(found, pairwise_ssim(x.astype(np.float32), data_range=255.0, variant=variant))
    np.testing.assert_allclose(found, pairwise_ssim(x / 255.0, variant=variant), atol=1e-6)
    np.testing.assert_allclose(found, pairwise_ssim(torch.from_numpy(x / 255.0).bfloat16(), variant=variant), atol=0.05)
    np.testing.assert_array_equal(pairwise_ssim(x[:, 0], variant=variant), pairwise_ssim(x[:, :1], variant=variant))
    np.testing.assert_array_equal(x, before)
    turned = np.ascontiguousarray(x.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(found, pairwise_ssim(turned, variant=variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_threads_and_files_change_nothing(variant, monkeypatch, tmp_path):
    x, y = images(75, (3, 16, 16)), images(40, (3, 16, 16), seed=1)
    whole, across = pairwise_ssim(x, variant=variant), pairwise_ssim(x, y, variant=variant)
    pairs, similarities = ssim_pairs_above(x, 0.3, variant=variant)
    cross_pairs, _ = ssim_pairs_above(x, 0.3, y, variant=variant)
    monkeypatch.setattr(similarity, "_BLOCK_IMAGES", 32)
    monkeypatch.setattr(similarity, "_TASK_IMAGES", 5)
    for threads, cache in ((1, 1 << 30), (3, 0)):
        monkeypatch.setattr(similarity, "_threads", lambda threads=threads: threads)
        monkeypatch.setattr(similarity, "_CACHE_BYTES", cache)
        np.testing.assert_array_equal(pairwise_ssim(x, variant=variant), whole)
        path = tmp_path / f"{threads}.npy"
        mapped = pairwise_ssim(x, y, variant=variant, out=path, memory_limit=0)
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, across)
        np.testing.assert_array_equal(np.load(path), across)
        np.testing.assert_array_equal(pairwise_ssim(x, variant=variant, out=str(path)), whole)
        again, values = ssim_pairs_above(x, 0.3, variant=variant)
        np.testing.assert_array_equal(again, pairs)
        np.testing.assert_array_equal(values, similarities)
        np.testing.assert_array_equal(ssim_pairs_above(x, 0.3, y, variant=variant)[0], cross_pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.npy", "3.npy"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bound", [-0.99, 0.0, 0.2, 0.5, 0.9, 1.0])
def test_pairs_above_are_those_of_the_matrix(bound, variant):
    x, y = images(60), images(30, seed=1)
    y[:5] = x[:5]
    y[5:9] = np.clip(x[10:14] + 0.02, 0.0, 1.0)
    matrix = pairwise_ssim(x, variant=variant)
    expected = np.argwhere(np.triu(matrix >= bound, 1))
    pairs, values = ssim_pairs_above(x, bound, variant=variant)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(values, matrix[tuple(expected.T)])
    matrix = pairwise_ssim(x, y, variant=variant)
    pairs, values = ssim_pairs_above(x, bound, y, variant=variant)
    np.testing.assert_array_equal(pairs, np.argwhere(matrix >= bound))
    np.testing.assert_array_equal(values, matrix[matrix >= bound])
    assert len(pairs) >= 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuting_the_images_permutes_the_matrix(variant):
    x = images(20, (3, 14, 15))
    order = np.random.default_rng(1).permutation(20)
    np.testing.assert_allclose(
        pairwise_ssim(x[order], variant=variant), pairwise_ssim(x, variant=variant)[np.ix_(order, order)], atol=1e-6
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (5, 13, 21)])
def test_the_code_for_gpus(shape, variant, monkeypatch):
    x, y = images(40, shape), images(11, shape, seed=1)
    whole, across = pairwise_ssim(x, variant=variant), pairwise_ssim(x, y, variant=variant)
    pairs, _ = ssim_pairs_above(x, 0.4, variant=variant)
    monkeypatch.setattr(
        similarity, "_engine", lambda images, window, device: similarity._Torch(images, window, torch.device("cpu"))
    )
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for size in (1 << 28, 1 << 20):
            monkeypatch.setattr(similarity, "_PRODUCT_BYTES", size)
            found = pairwise_ssim(x, variant=variant)
            np.testing.assert_allclose(found, whole, atol=1e-5)
            np.testing.assert_array_equal(found, found.T)
            np.testing.assert_allclose(pairwise_ssim(x, y, variant=variant), across, atol=1e-5)
            np.testing.assert_array_equal(ssim_pairs_above(x, 0.4, variant=variant)[0], pairs)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gpu_equals_cpu(variant):
    x, y = images(200), images(60, seed=1)
    np.testing.assert_allclose(
        pairwise_ssim(x, variant=variant, device="cuda"), pairwise_ssim(x, variant=variant), atol=1e-5
    )
    np.testing.assert_allclose(
        pairwise_ssim(torch.from_numpy(x).cuda(), torch.from_numpy(y), variant=variant),
        pairwise_ssim(x, y, variant=variant),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        ssim_of_pairs(x[:60], y, variant=variant, device="cuda"), ssim_of_pairs(x[:60], y, variant=variant), atol=1e-5
    )


ONE = np.full((2, 3, 16, 16), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pairwise_ssim(np.zeros((2, 2))), ValueError, "`a` must be images of shape"),
        (lambda: pairwise_ssim(np.zeros((0, 3, 16, 16))), ValueError, "`a` must be images of shape"),
        (lambda: pairwise_ssim(np.zeros((2, 16, 16), np.int64)), TypeError, "`a` must be uint8 or floating.*int64"),
        (lambda: pairwise_ssim(torch.zeros(2, 16, 16).bool()), TypeError, "`a` must be uint8 or floating.*bool"),
        (lambda: pairwise_ssim(np.where(np.arange(2)[:, None, None, None], np.nan, ONE)), ValueError,
         "`a` must be in .*NaN pixels, first in image 1"),
        (lambda: pairwise_ssim(ONE, ONE - 0.6), ValueError, "`b` must be in .*pixels from -0.1 to -0.1 in image 0"),
        (lambda: pairwise_ssim(ONE * np.inf), ValueError, "`a` must be in .*inf"),
        (lambda: pairwise_ssim(255.0 * ONE), ValueError, "in \\[0, 1\\] \\(`data_range`\\), got .* 127.5 in image 0"),
        (lambda: pairwise_ssim(ONE, data_range=0.0), ValueError, "`data_range` must be above 0, got 0.0"),
        (lambda: pairwise_ssim(ONE[..., :10]), ValueError, "`a` must be images of at least 11 x 11 pixels.*16x10"),
        (lambda: pairwise_ssim(ONE, ONE[:, :1]), ValueError, "`b` must be images of shape \\(3, 16, 16\\)"),
        (lambda: pairwise_ssim(ONE, variant="3d"), ValueError, "`variant` must be one of '2d', 'volume', got '3d'"),
        (lambda: pairwise_ssim(ONE, window_size=10), ValueError, "`window_size` must be odd"),
        (lambda: pairwise_ssim(ONE, window_size=3.0), TypeError, "`window_size` must be an odd integer"),
        (lambda: pairwise_ssim(ONE, sigma=0.0), ValueError, "`sigma` must be above 0"),
        (lambda: pairwise_ssim(ONE, k1=-0.01), ValueError, "`k1` must be above 0"),
        (lambda: pairwise_ssim(ONE, k2=float("nan")), ValueError, "`k2` must be above 0"),
        (lambda: pairwise_ssim(ONE, memory_limit=15), ValueError, "`out` must be a file .* 16 bytes .* is 15"),
        (lambda: ssim_pairs_above(ONE, 1.5), ValueError, "`min_similarity` must be above -1 and at most 1, got 1.5"),
        (lambda: ssim_pairs_above(ONE, -1.0), ValueError, "`min_similarity` must be above -1"),
        (lambda: ssim_pairs_above(ONE, 0.5, memory_limit=19), ValueError, "`min_similarity` must be so high .* 19 b"),
        (lambda: ssim_of_pairs(ONE, ONE[:1]), ValueError, "`b` must be 2 images, as many as in `a`, got 1"),
        (lambda: ssim_of_pairs(ONE, None), ValueError, "`b` must be images, got None"),
    ],
)  # fmt: skip
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_nothing_half_written_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(similarity, "_tiles", lambda *arguments, **more: iter(itertools.repeat(None)))
    with pytest.raises(TypeError):
        pairwise_ssim(ONE, out=tmp_path / "matrix.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_until_the_new_one_is_complete(monkeypatch, tmp_path):
    path = tmp_path / "matrix.npy"
    pairwise_ssim(ONE, out=path)
    monkeypatch.setattr(similarity, "_tiles", lambda *arguments, **more: iter(itertools.repeat(None)))
    with pytest.raises(TypeError):
        pairwise_ssim(np.concatenate([ONE, ONE]), out=path)
    assert np.load(path).shape == (2, 2)


def test_progress(capsys):
    pairwise_ssim(images(5), progress=True)
    assert "10.0/10.0" in capsys.readouterr().err
    pairwise_similarity(images(3), closeness, progress=True)
    assert "6/6" in capsys.readouterr().err


def sheet(data_folder, name):
    """The images of a sheet of the real data, uint8 of shape (N, 3, 32, 32)."""
    tiles = runpy.run_path(str(data_folder / "unpack_cifar.py"))["tiles"]
    return tiles(data_folder / name).transpose(0, 3, 1, 2)


@pytest.mark.data
def test_figures_of_the_fish_class(data_folder):
    fish = sheet(data_folder, "cifar100/aquarium_fish_train.webp")
    found = pairwise_ssim(fish, variant="volume")
    off = found[~np.eye(500, dtype=bool)].astype(np.float64)
    assert off.mean() == pytest.approx(0.0883, abs=5e-5)
    assert off.std() == pytest.approx(0.1311, abs=5e-5)
    np.testing.assert_allclose(np.sort(off)[[0, 2]], [-0.5420, -0.5025], atol=5e-5)
    pairs, values = ssim_pairs_above(fish, 0.999, variant="volume")
    assert len(pairs) == 5
    assert (values == 1.0).all()
    assert all(np.array_equal(fish[i], fish[j]) for i, j in pairs)
    off = pairwise_ssim(fish)[~np.eye(500, dtype=bool)]
    assert (round(float(off.mean()), 3), round(float(off.std()), 3)) == (0.080, 0.075)


@pytest.mark.data
def test_equals_pytorch_msssim_on_cifar(data_folder):
    x = sheet(data_folder, "cifar10/images_0.webp")[:300]
    found = pairwise_ssim(x)
    i, j = np.random.default_rng(0).integers(300, size=(2, 2_000))
    scaled = torch.from_numpy(x).double() / 255.0
    expected = pytorch_msssim.ssim(scaled[i], scaled[j], data_range=1.0, size_average=False)
    np.testing.assert_allclose(found[i, j], expected, atol=1e-5)
    volume = pairwise_ssim(x, variant="volume")
    for one, two in zip(i[:20], j[:20], strict=True):
        assert volume[one, two] == pytest.approx(reference(x[one] / 255.0, x[two] / 255.0, "volume"), abs=1e-5)


def closeness(x, y):
    return 1.0 / (1.0 + (x - y).square().flatten(1).sum(dim=1))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_similarity_by_a_function(batch_size, tmp_path):
    x, y = images(12, (2, 4, 5)), images(5, (2, 4, 5), seed=1)
    squares = np.square(x[:, None] - x).sum(axis=(2, 3, 4))
    found = pairwise_similarity(x, closeness, batch_size=batch_size)
    np.testing.assert_allclose(found, 1.0 / (1.0 + squares), atol=1e-6)
    np.testing.assert_array_equal(found, found.T)
    squares = np.square(x[:, None] - y).sum(axis=(2, 3, 4))
    across = pairwise_similarity(x, closeness, y, batch_size=batch_size, out=tmp_path / "f.npy", memory_limit=0)
    np.testing.assert_allclose(across, 1.0 / (1.0 + squares), atol=1e-6)
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, across)


def test_a_function_gets_bytes_in_the_unit_range():
    x = np.random.default_rng(0).integers(256, size=(4, 1, 3, 3), dtype=np.uint8)
    x.flags.writeable = False
    expected = pairwise_similarity(x / np.float32(255.0), closeness)
    np.testing.assert_array_equal(pairwise_similarity(x, closeness), expected)


def test_multi_scale_ssim_and_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    x = images(3, (1, 176, 176))

    def ms_ssim(one, two):
        return pytorch_msssim.ms_ssim(one, two, data_range=1.0, size_average=False)

    found = pairwise_similarity(x, ms_ssim, batch_size=4)
    alone = ms_ssim(torch.from_numpy(x[:1]), torch.from_numpy(x[1:2])).item()
    assert found[0, 1] == pytest.approx(alone, abs=1e-6)
    np.testing.assert_allclose(found.diagonal(), 1.0, atol=1e-6)

    def ssim(one, two):
        return structural_similarity_index_measure(one, two, data_range=1.0, reduction="none")

    found = pairwise_similarity(x[:, :, :40, :40], ssim, batch_size=4)
    assert found[0, 1] == pytest.approx(reference(x[0, :, :40, :40], x[1, :, :40, :40], "2d"), abs=0.05), "other edges"
    np.testing.assert_allclose(found.diagonal(), 1.0, atol=1e-6)


def brighter(x, y):
    return (x - y).flatten(1).mean(dim=1)


def test_an_asymmetric_function():
    x = images(6, (1, 4, 4))
    with pytest.raises(ValueError, match=r"`function` must be symmetric .*symmetric=False.*brighter, which gives"):
        pairwise_similarity(x, brighter)
    means = x.mean(axis=(1, 2, 3))
    found = pairwise_similarity(x, brighter, symmetric=False)
    np.testing.assert_allclose(found, means[:, None] - means, atol=1e-6)
    np.testing.assert_allclose(pairwise_similarity(x, brighter, x[:2]), means[:, None] - means[:2], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pairwise_similarity(ONE, None), TypeError, "`function` must take two batches"),
        (lambda: pairwise_similarity(ONE, lambda x, y: 1.0), TypeError, "`function` must return a tensor, got float"),
        (
            lambda: pairwise_similarity(ONE, lambda x, y: x.mean()),
            ValueError,
            "one value a pair.*returned shape \\(\\)",
        ),
        (lambda: pairwise_similarity(ONE, lambda x, y: x.flatten(1)[:, 0] * torch.nan), ValueError, "returned NaN for"),
        (lambda: pairwise_similarity(ONE, closeness, batch_size=0), ValueError, "`batch_size` must be at least 1"),
        (lambda: pairwise_similarity(ONE[:, 0], closeness), ValueError, "`images` must be images of shape \\(N, ch"),
        (lambda: pairwise_similarity(ONE.astype(int), closeness), TypeError, "`images` must be uint8 or floating"),
        (lambda: pairwise_similarity(torch.ones(2, 1, 3, 3).long(), closeness), TypeError, "`images` must be uint8"),
        (lambda: pairwise_similarity(ONE * np.nan, closeness), ValueError, "`images` must be finite, .*image 0"),
        (lambda: pairwise_similarity(ONE, closeness, ONE[:, :1]), ValueError, "`b` must be images of shape \\(3, 16"),
        (lambda: pairwise_similarity(ONE, closeness, memory_limit=15), ValueError, "`out` must be a file"),
    ],
)
def test_bad_input_for_functions(call, error, match):
    with pytest.raises(error, match=match):
        call()
