"""Crossings on straight paths against closed forms and dense grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from boundary_models import ends, linear, same, wavy

from toolkit.boundary import BoundaryReport, probe_paths


def of_position(function):
    """A model of images that are their own position on the path from 0 to 1, and those two ends."""
    return function, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)


def two_classes(ahead):
    """A model with scores ahead(a) and 0."""
    return of_position(lambda x: torch.cat([ahead(x), torch.zeros_like(x)], dim=1))


# ------------------------------------------------------------------------------------------------ closed forms


def upper_envelope(begin, end):
    """Classes and positions where the highest of the lines from begin[c] at 0 to end[c] at 1 changes."""
    slope, at, current = end - begin, 0.0, int(begin.argmax())
    classes, positions = [current], []
    while True:
        steeper = np.flatnonzero(slope > slope[current])
        meets = (begin[current] - begin[steeper]) / (slope[steeper] - slope[current])
        if not len(steeper) or meets.min() >= 1:
            return classes, positions
        current, at = int(steeper[meets.argmin()]), float(meets.min())
        classes.append(current)
        positions.append(at)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 10, 40])
@pytest.mark.parametrize("num_points", [2, 17])
def test_linear_models_against_the_upper_envelope(n_classes, num_points, dtype):
    model = linear(n_classes, seed=n_classes, dtype=dtype)
    start, end = ends(150, 6, seed=n_classes, dtype=dtype)
    report = probe_paths(model, start, end, num_points, 1e-5 if dtype == torch.float32 else 1e-9)
    exact = linear(n_classes, seed=n_classes)
    with torch.no_grad():
        scores = [exact(images.double()).numpy() for images in (start, end)]
    crossings = 0
    for pair, lines in enumerate(zip(*scores, strict=True)):
        classes, positions = upper_envelope(*lines)
        assert report.classes[pair] == tuple(classes)
        np.testing.assert_allclose(report.positions[pair], positions, atol=1e-5 if dtype == torch.float32 else 1e-12)
        assert not any(report.third_class[pair])
        crossings += len(positions)
    assert crossings > 75
    np.testing.assert_array_equal(report.num_crossings, [len(row) for row in report.positions])
    at = np.linspace(0, 1, num_points)[None, :, None]
    on_grid = scores[0][:, None] * (1 - at) + scores[1][:, None] * at
    ordered = np.sort(on_grid, axis=2)
    np.testing.assert_array_equal(report.grid_classes, on_grid.argmax(axis=2))
    np.testing.assert_allclose(report.grid_margins, ordered[..., -1] - ordered[..., -2], atol=1e-4)
    assert (report.margin_min <= report.grid_margins.min(axis=1)).all()
    assert (report.margin_min[report.num_crossings > 0] < 0.02).all()


def test_the_types_of_a_report():
    report = probe_paths(linear(3), *ends(4, 6), num_points=5)
    assert isinstance(report, BoundaryReport)
    for name in ("margin_min", "margin_min_position", "resolution", "grid_margins"):
        assert getattr(report, name).dtype == np.float32, name
    assert report.grid_classes.dtype == np.int32
    assert report.grid_classes.shape == report.grid_margins.shape == (4, 5)
    assert all(type(a) is float for row in report.positions for a in row)
    assert all(type(c) is int for row in report.classes for c in row)
    assert all(type(c) is bool for row in report.third_class for c in row)
    assert (type(report.tolerance), type(report.n_evaluations)) == (float, int)


@pytest.mark.parametrize("tolerance", [0.2, 1e-2, 1e-4, 1e-300])
def test_a_crossing_is_enclosed_to_within_the_tolerance(tolerance):
    seen = []
    model, start, end = two_classes(lambda x: torch.exp(3 * x) - 5)
    exact = float(np.log(5) / 3)

    def looking(x):
        seen.extend(x[:, 0].tolist())
        return model(x)

    report = probe_paths(looking, start, end, 9, tolerance, adaptive=False)
    below, above = max(a for a in seen if a <= exact), min(a for a in seen if a > exact)
    assert above - below <= max(tolerance, 1e-15)
    assert below <= report.positions[0][0] <= above
    assert report.positions[0][0] == pytest.approx(exact, abs=max(tolerance, 1e-15))
    assert report.n_evaluations == len(seen)


def test_a_third_class_between_two_points_is_found():
    """Classes 0, 1 and 2 in turn, where the grid sees 0 and 2 only."""
    model, start, end = of_position(lambda x: torch.cat([0.41 - x, torch.full_like(x, 0.01), x - 0.41], dim=1))
    report = probe_paths(model, start, end, num_points=5, tolerance=1e-3)
    assert report.classes == ((0, 1, 2),)
    assert report.third_class == ((False, False),)
    np.testing.assert_allclose(report.positions[0], [0.40, 0.42], atol=1e-9)


def test_a_third_class_that_is_narrower_than_the_tolerance_is_told():
    model, start, end = of_position(lambda x: torch.cat([0.4123 - x, torch.full_like(x, 1e-4), x - 0.4123], dim=1))
    report = probe_paths(model, start, end, num_points=5, tolerance=1e-2)
    assert report.classes == ((0, 2),)
    assert report.third_class == ((True,),)
    assert report.positions[0][0] == pytest.approx(0.4123)
    finer = probe_paths(model, start, end, num_points=5, tolerance=1e-5)
    assert finer.classes == ((0, 1, 2),)
    assert finer.third_class == ((False, False),)


@pytest.mark.parametrize("seed", range(5))
def test_a_kink_below_zero_between_two_points_is_found(seed):
    """A class ahead by s |a - c| - depth: re-entry within a gap, at exactly the slopes that are seen."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        slope, centre, n = rng.uniform(0.5, 50), rng.uniform(0.1, 0.9), int(rng.integers(4, 40))
        step = 1 / (n - 1)
        half = rng.uniform(0.1, 0.4) * step
        model, start, end = two_classes(lambda x: slope * ((x - centre).abs() - half))  # noqa: B023
        report = probe_paths(model, start, end, n, tolerance=1e-6)
        assert report.classes == ((0, 1, 0),)
        np.testing.assert_allclose(report.positions[0], [centre - half, centre + half], atol=1e-6)
        assert report.reenters.all()
        assert report.resolution[0] <= step / 16


def test_a_bump_within_a_gap_is_found_with_adaptive_points_and_told_of_without():
    width, centre, n = 0.04, 0.47, 17
    model, start, end = two_classes(lambda x: 1 - 1.05 * torch.exp(-(((x - centre) / width) ** 2)))
    half = width * np.sqrt(np.log(1.05))
    plain = probe_paths(model, start, end, n, adaptive=False)
    assert plain.classes == ((0,),)
    assert plain.resolution[0] == np.float32(1 / 16) > 2 * half
    assert plain.n_evaluations == n
    found = probe_paths(model, start, end, n)
    assert found.classes == ((0, 1, 0),)
    np.testing.assert_allclose(found.positions[0], [centre - half, centre + half], atol=1e-3)
    assert found.margin_min[0] < 0.05


def test_gaps_are_not_halved_below_the_tolerance_in_search_of_hidden_crossings():
    """Two classes as good as equal all along: every gap may hide something."""
    model, start, end = two_classes(lambda x: 0.01 * torch.sin(40 * x) ** 2 + 1e-9)
    coarse = probe_paths(model, start, end, 17, tolerance=0.02)
    assert coarse.resolution[0] == np.float32(1 / 64)  # halved twice: 1/32 is more than the tolerance
    fine = probe_paths(model, start, end, 17, tolerance=1e-5)
    assert fine.resolution[0] == np.float32(1 / 256)
    assert fine.n_evaluations > coarse.n_evaluations


def test_equal_ends_have_one_class_and_no_crossing():
    model, (start, _) = wavy(), ends(8)
    report = probe_paths(model, start, start.clone(), 9)
    with torch.no_grad():
        scores = model(start)
    assert report.classes == tuple((c,) for c in scores.argmax(1).tolist())
    assert not report.num_crossings.any()
    assert not report.reenters.any()
    assert np.isnan(report.first_crossing).all()
    top = scores.topk(2).values
    np.testing.assert_allclose(report.margin_min, top[:, 0] - top[:, 1], atol=1e-6)
    assert (report.margin_min_position == 0).all()
    assert (report.resolution == 0).all()
    assert report.n_evaluations == 8 * 9


# ------------------------------------------------------------------------------------------------ slow twin, properties


def on_a_dense_grid(model, start, end, n):
    """Classes of runs and the places where they change, one path at a time."""
    classes, positions = [], []
    at = torch.linspace(0, 1, n, dtype=torch.float64).view(-1, *[1] * (start.ndim - 1))
    for one, other in zip(start, end, strict=True):
        with torch.no_grad():
            found = model((1 - at) * one + at * other).argmax(1).numpy()
        changes = np.flatnonzero(np.diff(found))
        classes.append((int(found[0]), *found[changes + 1].tolist()))
        positions.append(((changes + 0.5) / (n - 1)).tolist())
    return classes, positions


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_a_network_against_a_dense_grid(seed):
    model, (start, end) = wavy(seed=seed), ends(120, seed=seed)
    classes, positions = on_a_dense_grid(model, start, end, 4097)
    report = probe_paths(model, start, end, 9)
    assert report.classes == tuple(classes)
    for found, wanted in zip(report.positions, positions, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1.2e-3)
    plain = probe_paths(model, start, end, 9, adaptive=False)
    assert plain.num_crossings.sum() < report.num_crossings.sum(), "there is to be something that a plain grid misses"
    assert plain.n_evaluations < report.n_evaluations < 30 * len(report)
    assert report.reenters.any()
    # What may still be open is narrower than the finest gaps, and tells of every path whose gaps are all excluded.
    assert report.resolution.max() <= 1 / 128
    assert (report.resolution == 0).any()
    assert (plain.resolution == 1 / 8).all()


def test_permuting_pairs_permutes_the_report():
    model, (start, end) = wavy(), ends(50)
    order = np.random.default_rng(0).permutation(50)
    report = probe_paths(model, start, end, 9)
    same(probe_paths(model, start[order], end[order], 9), report.subset(order))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 5000, None])
def test_the_batch_size_changes_nothing(batch_size):
    sizes = []
    model, (start, end) = wavy(), ends(40)

    def counting(x):
        sizes.append(len(x))
        return model(x)

    expected = probe_paths(model, start, end, 9, batch_size=100)
    report = probe_paths(counting, start, end, 9, batch_size=batch_size)
    same(report, expected)
    assert sum(sizes) == report.n_evaluations == expected.n_evaluations
    assert max(sizes) == min(batch_size or 256, 360)
    # Full batches in every stage: at most one smaller batch a round of halving, beside the grid's two.
    assert sum(size < (batch_size or 256) for size in sizes) <= 13


def test_a_memory_limit_makes_smaller_batches_and_walks_fewer_paths_at_a_time():
    sizes = []
    model, (start, end) = wavy(), ends(40)

    def counting(x):
        sizes.append(len(x))
        return model(x)

    expected = probe_paths(model, start, end, 9)
    report = probe_paths(counting, start, end, 9, memory_limit=60_000)
    same(report, expected)
    assert report.n_evaluations == expected.n_evaluations
    # Half for 3 copies of images of 5 doubles, half for paths of up to 129 points of 4 doubles and 32 bytes, twice.
    assert max(sizes) == 250
    assert int(30_000 / (2 * 129 * 64)) == 1
    assert len(sizes) > 40


def test_one_path_at_a_time_where_memory_is_for_less():
    model, (start, end) = wavy(), ends(5)
    same(probe_paths(model, start, end, 9, memory_limit=500), probe_paths(model, start, end, 9))


def test_swapping_the_ends_mirrors_the_report():
    model, (start, end) = wavy(), ends(60)
    report, mirrored = probe_paths(model, start, end, 17), probe_paths(model, end, start, 17)
    assert mirrored.classes == tuple(row[::-1] for row in report.classes)
    assert mirrored.third_class == tuple(row[::-1] for row in report.third_class)
    for one, other in zip(report.positions, mirrored.positions, strict=True):
        np.testing.assert_allclose(one, [1 - a for a in reversed(other)], atol=1e-9)
    np.testing.assert_array_equal(mirrored.grid_classes, report.grid_classes[:, ::-1])
    np.testing.assert_allclose(mirrored.margin_min, report.margin_min, atol=1e-5)
    np.testing.assert_allclose(mirrored.resolution, report.resolution, atol=1e-6)


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.slow
@pytest.mark.data
def test_resnet32_on_cifar10_against_a_dense_grid(cifar_root, data_folder):
    from toolkit.datamodules import CIFAR10DataModule, PrunedDataModule
    from toolkit.models import resnet32

    datamodule = PrunedDataModule(CIFAR10DataModule(str(cifar_root), download=False), None)
    with pytest.warns(UserWarning, match="checksums"):
        datamodule.setup("fit")
    view = datamodule._view(datamodule.datamodule.train_dataloader())
    batch = torch.utils.data.default_collate([view.dataset[i] for i in range(24)])
    images = view.batch_transform(batch, torch.device("cpu"))[0].float()
    model = resnet32()
    weights = torch.load(data_folder / "weights" / "resnet32_cifar10.pt", weights_only=True)
    model.load_state_dict(weights, strict=False)
    start, end = images[:12], images[12:]
    classes, positions = on_a_dense_grid(lambda x: model.eval()(x.float()), start, end, 257)
    report = probe_paths(model, start, end, 17)
    assert report.classes == tuple(classes)
    for found, wanted in zip(report.positions, positions, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1 / 256)
    assert report.num_crossings.sum() > 8
    assert report.n_evaluations < 40 * 12
