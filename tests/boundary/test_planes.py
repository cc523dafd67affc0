import copy
import dataclasses
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.boundary import DecisionPlane, decision_plane


def images(seed=0, shape=(3, 4, 5), dtype=torch.float32):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(seed=0, n_inputs=60, n_classes=4):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n_inputs, n_classes, generator=generator)
    return lambda x: x.flatten(1) @ weights.to(x.dtype)


def of_classes(classes):
    """A plane that has these classes."""
    classes = np.array(classes, np.int32)
    x, y = np.arange(classes.shape[1]) * 1.0, np.arange(classes.shape[0]) * 1.0
    corners = np.array([[0, 0], [x[-1], 0], [0, y[-1]]])
    return DecisionPlane(classes, np.ones(classes.shape, np.float32), x, y, corners, np.zeros(3, np.int32))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(7,), (1, 6, 6), (3, 4, 5)])
def test_the_coordinates_are_distances_between_images(seed, shape):
    three = images(seed, shape)
    plane = decision_plane(lambda x: x.flatten(1)[:, :2], three, size=9)
    for one in range(3):
        for other in range(3):
            apart = float((three[one] - three[other]).double().norm())
            assert np.linalg.norm(plane.points[one] - plane.points[other]) == pytest.approx(apart, rel=1e-6, abs=1e-9)
    np.testing.assert_array_equal(plane.points[0], [0, 0])
    assert plane.points[1, 1] == 0
    assert plane.points[2, 1] > 0


@pytest.mark.parametrize(("size", "margin"), [(2, 0.0), (7, 0.25), (16, 1.5)])
def test_the_grid_is_square_and_reaches_as_far_as_asked(size, margin):
    plane = decision_plane(linear(), images(), size=size, margin=margin)
    low, high = plane.points.min(axis=0), plane.points.max(axis=0)
    side = (1 + 2 * margin) * (high - low).max()
    for axis, line in enumerate((plane.x, plane.y)):
        np.testing.assert_allclose(line, np.linspace(line[0], line[-1], size))
        assert line[-1] - line[0] == pytest.approx(side)
        assert (line[0] + line[-1]) / 2 == pytest.approx((low + high)[axis] / 2)
    assert plane.classes.shape == plane.margins.shape == (size, size)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_and_margins_of_a_linear_model_in_float64(seed, dtype):
    three, model = images(seed, dtype=dtype), linear(seed)
    plane = decision_plane(model, three, size=21)
    # The plane in its own words: affine combinations of the three images.
    solve = np.linalg.inv(np.vstack([plane.points.T, np.ones(3)]))
    logits = model(three.double()).numpy()
    for row, y in enumerate(plane.y):
        at = np.stack([plane.x, np.full(21, y), np.ones(21)])
        expected = (solve @ at).T @ logits
        two = np.sort(expected, axis=1)[:, -2:]
        margins = two[:, 1] - two[:, 0]
        np.testing.assert_allclose(plane.margins[row], margins, atol=2e-4)
        clear = margins > 1e-3
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(plane.classes[row][clear], expected.argmax(axis=1)[clear])
    np.testing.assert_array_equal(plane.point_classes, logits.argmax(axis=1))


def test_the_images_themselves_are_seen_unrounded():
    three = images(3)
    exact = {tuple(image.flatten().tolist()) for image in three}

    def model(x):
        own = torch.tensor([tuple(row.flatten().tolist()) in exact for row in x])
        return torch.stack([~own, own], dim=1).float()

    assert decision_plane(model, three, size=5).point_classes.tolist() == [1, 1, 1]


def test_the_result_depends_neither_on_batches_nor_on_the_kind_of_container():
    three, model = images(), linear()
    whole = decision_plane(model, three, size=11)
    small = 3 * 4 * 60  # bytes for one image
    for other in (
        decision_plane(model, three, size=11, batch_size=7),
        decision_plane(model, three, size=11, memory_limit=5 * small),
        decision_plane(model, three.numpy(), size=11),
        decision_plane(model, list(three), size=11, progress=True),
    ):
        for field in dataclasses.fields(DecisionPlane):
            np.testing.assert_allclose(getattr(other, field.name), getattr(whole, field.name), atol=1e-5)
        assert whole.agreement(other) == 1.0


def test_no_more_images_at_a_time_than_asked():
    seen = []

    def model(x):
        seen.append(len(x))
        return x.flatten(1)[:, :3]

    decision_plane(model, images(), size=10, batch_size=32)
    assert seen == [3, 32, 32, 32, 4]


def test_classes_alone_have_no_margins():
    three, model = images(), linear()
    plane = decision_plane(model, three, size=9, decision=lambda logits: logits.argmax(dim=1))
    assert np.isnan(plane.margins).all()
    np.testing.assert_array_equal(plane.classes, decision_plane(model, three, size=9).classes)
    assert (plane.classes.dtype, plane.point_classes.dtype, plane.margins.dtype) == (np.int32, np.int32, np.float32)


def test_a_module_and_the_images_are_left_as_they_were(rng_unchanged):
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 3))
    net[1].eval()
    before, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    three = images()
    plane = decision_plane(net, three, size=6, decision=lambda logits: logits + 0 * torch.rand(1))
    np.testing.assert_array_equal(plane.classes, decision_plane(net, three, size=6).classes)
    for one, other in zip(before.values(), net.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(three, images())

    def fails(logits):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as caught:
        decision_plane(net, three, size=6, decision=fails)
    assert caught.value.__notes__ == ["(3 images of a plane, of shape (3, 4, 5))"]
    assert flags == [module.training for module in net.modules()]
    assert torch.is_grad_enabled()


def test_bfloat16_rounds_the_forward_but_not_the_plane():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(60, 3)

        def forward(self, x):
            seen.append(x)
            return self.linear(x.flatten(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    planes = [decision_plane(net, images(), size=8, precision=precision) for precision in ("float32", "bf16")]
    assert len(seen) == 4
    assert torch.equal(seen[1], seen[3])
    assert 0.8 < planes[0].agreement(planes[1]) <= 1
    assert (planes[0].margins != planes[1].margins).any()


def regions_by_flood(classes, min_area, steps):
    """Regions of each class, one at a time."""
    found = dict.fromkeys(sorted(set(classes.ravel().tolist())), 0)
    left = set(np.ndindex(*classes.shape))
    while left:
        start = left.pop()
        queue, area = deque([start]), 1
        while queue:
            row, column = queue.popleft()
            for down, right in steps:
                near = row + down, column + right
                if near in left and classes[near] == classes[start]:
                    left.remove(near)
                    queue.append(near)
                    area += 1
        found[int(classes[start])] += area >= min_area
    return found


@pytest.mark.parametrize("diagonals", [False, True])
@pytest.mark.parametrize("min_area", [1, 2, 6, 1000])
@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_fragmentation_equals_a_flood_fill(n_classes, min_area, diagonals):
    classes = np.random.default_rng(n_classes).integers(0, n_classes, (19, 19))
    plane = of_classes(classes)
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + [(1, 1), (1, -1), (-1, 1), (-1, -1)] * diagonals
    expected = regions_by_flood(classes, min_area, steps)
    assert plane.fragmentation(min_area, diagonals=diagonals) == expected
    if min_area == 1 and not diagonals:
        assert plane.n_regions == sum(expected.values())


def test_fragmentation_of_known_boundaries():
    # Stripes of a class along the first direction: one region each.
    three = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    plane = decision_plane(
        lambda x: torch.stack([torch.cos(4 * np.pi * x[:, 0]), torch.zeros(len(x))], dim=1), three, size=80, margin=0
    )
    # cos(4 pi x) > 0 around 0, 0.5 and 1.
    assert plane.fragmentation() == {0: 3, 1: 2}
    assert plane.n_regions == 5
    assert repr(plane) == "DecisionPlane(80 x 80 points, 2 classes in 5 regions)"
    assert repr(of_classes([[1, 1]])) == "DecisionPlane(1 x 2 points, 1 class in 1 region)"


def test_agreement_of_two_models():
    three = images(5)
    one, other = (decision_plane(linear(seed), three, size=13) for seed in (1, 2))
    expected = np.mean([a == b for a, b in zip(one.classes.ravel(), other.classes.ravel(), strict=True)])
    assert one.agreement(other) == other.agreement(one) == expected
    assert 0 < expected < 1


def test_images_that_are_almost_on_a_line_still_span_a_plane():
    three = images(1, dtype=torch.float64)
    three[2] = three[0] + 0.3 * (three[1] - three[0]) + 1e-4 * three[2]
    plane = decision_plane(linear(), three, size=5)
    apart = float((three[2] - three[0]).norm())
    assert np.linalg.norm(plane.points[2]) == pytest.approx(apart, rel=1e-9)
    assert 0 < plane.points[2, 1] < 1e-3 * apart


def on_a_line(dtype=torch.float32, share=0.3):
    three = images(dtype=dtype)
    three[2] = three[0] + share * (three[1] - three[0])
    return three


def twice(one, other):
    three = images()
    three[other] = three[one]
    return three


def with_nan():
    three = images()
    three[1, 0, 0, 0] = float("nan")
    return three


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (on_a_line(), {}, "`images` must be three images that span a plane, got 'three on one line'"),
        (on_a_line(share=-2.5), {}, "three on one line"),
        (on_a_line(torch.float64), {}, "three on one line"),
        (on_a_line(torch.bfloat16), {}, "three on one line"),
        (twice(0, 1), {}, "`images` must be three different images, got 'images 0 and 1 that are the same'"),
        (twice(0, 2), {}, "images 0 and 2 that are the same"),
        (twice(1, 2), {}, "images 1 and 2 that are the same"),
        (with_nan(), {}, "`images` must be finite, got 'NaN or infinite values in image 1'"),
        (images()[:2], {}, r"`images` must be three images, of shape \(3, \*shape\), got '2'"),
        (images(), {"size": 1}, "`size` must be at least 2, got 1"),
        (images(), {"margin": -0.1}, "`margin` must be 0 or more, got -0.1"),
        (images(), {"margin": float("nan")}, "`margin` must be 0 or more, got nan"),
        (images(), {"precision": "half"}, "`precision` must be one of"),
        (images(), {"batch_size": 0}, "`batch_size` must be"),
        (images(), {"memory_limit": 10}, "`memory_limit` must be"),
        (images(), {"decision": lambda logits: logits * float("inf")}, "`model` must return finite scores, got NaN"),
        (images(), {"decision": lambda logits: logits[:, :1]}, "two classes"),
    ],
)
def test_errors(given, options, message):
    with pytest.raises(ValueError, match=message):
        decision_plane(linear(), given, **options)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.uint8), {}, "`images` must be floating-point"),
        (images(), {"size": 2.0}, "`size` must be an integer, got 2.0"),
        (images(), {"size": True}, "`size` must be an integer, got True"),
        (images(), {"memory_limit": 1e9}, "`memory_limit` must be an integer"),
        (images(), {"margin": "wide"}, "`margin` must be a number of 0 or more, got 'wide'"),
        (images(), {"margin": True}, "`margin` must be a number of 0 or more, got True"),
    ],
)
def test_errors_of_type(given, options, message):
    with pytest.raises(TypeError, match=message):
        decision_plane(linear(), given, **options)


def test_scores_that_are_not_finite_somewhere_on_the_plane():
    three = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    with pytest.raises(ValueError, match="finite scores, got NaN or infinite values for a point of the plane"):
        decision_plane(lambda x: torch.stack([x[:, 0] / (x[:, 0] > -0.1), x[:, 1]], dim=1), three)


def test_errors_of_results():
    plane = of_classes([[0, 1], [1, 1]])
    with pytest.raises(ValueError, match="`min_area` must be at least 1, got 0"):
        plane.fragmentation(0)
    with pytest.raises(TypeError, match="`min_area` must be an integer, got 1.5"):
        plane.fragmentation(1.5)
    for change in (
        {"x": plane.x * 1.01},
        {"y": plane.y + 0.5},
        {"points": plane.points + 1},
        {"x": np.arange(3.0)},
    ):
        other = dataclasses.replace(plane, **change)
        with pytest.raises(ValueError, match="`other` must be a plane through the same images on the same grid"):
            plane.agreement(other)
