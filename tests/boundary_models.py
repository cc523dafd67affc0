"""Small models with known or wavy decision boundaries, pairs of points, and a comparison of reports."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def linear(n_classes, n_inputs=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(n_inputs, n_classes).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model


def wavy(n_classes=4, n_inputs=5, seed=0):
    """A network whose paths cross several boundaries and come back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(n_inputs, 64), nn.Linear(64, 64), nn.Linear(64, n_classes)]
        for layer, deviation in zip(layers, (0.3, 0.5, 1.0), strict=True):
            nn.init.normal_(layer.weight, std=deviation)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double()


def ends(n, n_inputs=5, seed=0, dtype=torch.float64):
    start, end = 3 * torch.randn((2, n, n_inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return start.to(dtype), end.to(dtype)


def same(one, other, atol=1e-9):
    assert one.classes == other.classes
    assert one.third_class == other.third_class
    for a, b in zip(one.positions, other.positions, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
    np.testing.assert_allclose(one.margin_min, other.margin_min, atol=1e-5)
    np.testing.assert_allclose(one.margin_min_position, other.margin_min_position, atol=1e-5)
    np.testing.assert_allclose(one.resolution, other.resolution, atol=1e-6)
    np.testing.assert_array_equal(one.grid_classes, other.grid_classes)
    np.testing.assert_allclose(one.grid_margins, other.grid_margins, atol=1e-5)
    assert (one.tolerance, one.num_points) == (other.tolerance, other.num_points)
