"""What goes into a model and comes out of it on a path, and that it is left as it was."""

from __future__ import annotations

import operator
import random

import numpy as np
import pytest
import torch
from boundary_models import ends, linear, same, wavy
from torch import nn

from toolkit.boundary import probe_paths


def test_the_model_sees_the_two_images_themselves_and_points_between():
    seen = []

    def model(x):
        seen.append(x.clone())
        return x.flatten(1)[:, :2]

    generator = torch.Generator().manual_seed(0)
    start, end = 1e4 * torch.randn((2, 6, 3, 4, 4), generator=generator)
    probe_paths(model, start, end, 4, adaptive=False, batch_size=5, tolerance=1)
    images = torch.cat(seen).view(6, 4, 3, 4, 4)
    assert torch.equal(images[:, 0], start)
    assert torch.equal(images[:, 3], end)
    third = ((2 * start.double() + end.double()) / 3).float()
    np.testing.assert_allclose(images[:, 1], third, rtol=1e-5, atol=1e-2)


def test_arrays_memory_maps_and_sequences_of_images(tmp_path):
    model, (start, end) = wavy(), ends(12)
    expected = probe_paths(model, start, end, 9)
    np.save(tmp_path / "start.npy", start.numpy())
    on_disk = np.load(tmp_path / "start.npy", mmap_mode="r")
    kept = start.clone(), end.clone()

    class Reading:
        """Images that are read one by one, as a data set does."""

        def __len__(self):
            return len(start)

        def __getitem__(self, index):
            return start[operator.index(index)]

    for first, second in (
        (Reading(), end),
        (start.numpy(), end.numpy()),
        (on_disk, end),
        (list(start), [row.numpy() for row in end]),
        (start.clone().requires_grad_(), end),
        (start.numpy()[::-1][::-1], end),
    ):
        same(probe_paths(model, first, second, 9), expected)
    assert torch.equal(start, kept[0])
    assert torch.equal(end, kept[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_interpolated_in_single_precision(dtype):
    start, end = ends(10, dtype=dtype)
    expected = probe_paths(wavy().float(), start.float(), end.float(), 9)
    same(probe_paths(wavy().float(), start, end, 9), expected)


def test_a_module_gets_images_of_the_type_of_its_weights():
    start, end = ends(10, dtype=torch.float32)
    same(probe_paths(wavy(), start, end, 9), probe_paths(wavy(), start.double(), end.double(), 9), atol=1e-5)


def test_classes_alone_give_positions_and_no_margins():
    model, (start, end) = wavy(), ends(40)
    plain = probe_paths(model, start, end, 17, tolerance=1e-6, adaptive=False)
    report = probe_paths(model, start, end, 17, tolerance=1e-6, decision=lambda logits: logits.argmax(1).int())
    assert report.classes == plain.classes
    for one, other in zip(report.positions, plain.positions, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert report.n_evaluations == plain.n_evaluations
    np.testing.assert_array_equal(report.resolution, plain.resolution)
    assert report.resolution.max() == np.float32(1 / 16)
    for name in ("margin_min", "margin_min_position", "grid_margins"):
        assert np.isnan(getattr(report, name)).all()
    assert not any(any(row) for row in report.third_class)


def test_a_decision_reads_outputs_that_are_not_logits():
    model, (start, end) = wavy(), ends(10)

    class Detector(nn.Module):
        def forward(self, x):
            return {"boxes": None, "logits": model(x)}

    expected = probe_paths(model, start, end, 9)
    same(probe_paths(Detector(), start, end, 9, decision=lambda out: out["logits"]), expected)
    two = probe_paths(Detector(), start, end, 9, decision=lambda out: out["logits"][:, 0] > 0)
    assert {c for row in two.classes for c in row} == {0, 1}


def test_integer_scores_such_as_votes():
    report = probe_paths(lambda x: torch.cat([x.round(), 1 - x.round()], 1).long(), torch.zeros(1, 1), torch.ones(1, 1))
    assert report.classes == ((1, 0),)
    assert report.margin_min.tolist() == [1.0]


def test_bf16_runs_under_autocast_and_compares_in_float32():
    seen = []

    class Looking(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append((out.dtype, torch.is_autocast_enabled("cpu")))
            return out

    model = Looking(6, 4)
    model.load_state_dict(linear(4, dtype=torch.float32).state_dict())
    start, end = ends(30, 6, dtype=torch.float32)
    half = probe_paths(model, start, end, 9, precision="bf16")
    assert set(seen) == {(torch.bfloat16, True)}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        full = probe_paths(model, start, end, 9)
    assert set(seen) == {(torch.float32, False)}
    same(full, probe_paths(linear(4, dtype=torch.float32), start, end, 9))
    assert np.isfinite(half.margin_min).all()
    agree = half.grid_classes == full.grid_classes
    assert agree.mean() > 0.95
    np.testing.assert_allclose(half.grid_margins[agree], full.grid_margins[agree], atol=0.2)


def test_progress(capsys):
    model, (start, end) = wavy(), ends(5)
    probe_paths(model, start, end, 9)
    assert capsys.readouterr().err == ""
    report = probe_paths(model, start, end, 9, progress=True)
    shown = capsys.readouterr().err
    assert f"{report.n_evaluations}/{report.n_evaluations}" in shown


# ------------------------------------------------------------------------------------------------ state


class Network(nn.Module):
    """Batch normalisation, dropout, and a part that is frozen in evaluation mode while the rest trains."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)
        self.register_buffer("runs", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(5))
        self.fail_after = None
        self.modes = set()

    def forward(self, x):
        self.modes.add((self.training, self.frozen.training, torch.is_grad_enabled()))
        self.runs += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise RuntimeError("out of something")
        random.random()
        np.random.random()  # noqa: NPY002
        torch.rand(3)
        return self.last(self.frozen(self.first(x)))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", ["train", "mixed", "eval"])
def test_the_model_and_all_else_is_left_as_it_was(mode, fails):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network()
        model(torch.randn(20, 5))  # running statistics other than the first ones
    start, end = ends(30, dtype=torch.float32)
    model.train(mode != "eval")
    if mode == "mixed":
        model.frozen.eval()
    flags = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    kept = start.clone(), end.clone()
    model.modes.clear()
    if fails:
        model.fail_after = 3
        with pytest.raises(RuntimeError, match="out of something") as caught:
            probe_paths(model, start, end, 9, batch_size=64)
        assert caught.value.__notes__ == [
            "(raised for 64 images of shape (5,) on the paths of pairs 21 to 28, from a = 0.375 to a = 0.375)"
        ]
    else:
        first = probe_paths(model, start, end, 9, batch_size=64)
        same(probe_paths(model.eval(), start, end, 9), first, atol=1e-3)
        model.train(mode != "eval")
        if mode == "mixed":
            model.frozen.eval()
    assert model.modes == {(False, False, False)}
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert torch.is_grad_enabled()
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(start, kept[0])
    assert torch.equal(end, kept[1])


def test_a_module_that_does_more_than_set_a_flag_in_train_is_switched_back_by_it():
    class Merging(nn.Linear):
        """As adapters do that are merged into the weights for evaluation."""

        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

        def forward(self, x):
            assert self.merged
            return super().forward(x)

    model = Merging(5, 3)
    probe_paths(model, *ends(3, dtype=torch.float32))
    assert not model.merged
    assert model.training


@pytest.mark.gpu
def test_images_go_to_the_model_s_gpu_a_batch_at_a_time():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, (start, end) = wavy(), ends(30)
    expected = probe_paths(model, start, end, 17)
    model.cuda()
    same(probe_paths(model, start, end, 17, batch_size=64), expected, atol=1e-6)
    same(probe_paths(model, start.cuda(), end.cuda(), 17), expected, atol=1e-6)
    same(probe_paths(lambda x: model(x), start, end, 17, device="cuda"), expected, atol=1e-6)
    with pytest.raises(ValueError, match="`end` must be on the device of start, cuda:0, got 'cpu'"):
        probe_paths(model, start.cuda(), end)


# ------------------------------------------------------------------------------------------------ bad input


GOOD = torch.zeros(3, 2), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"end": torch.ones(3, 4)}, ValueError, r"`end` must be of the shape of start, \(3, 2\), got \(3, 4\)"),
        ({"end": torch.ones(4, 2)}, ValueError, r"`end` must be of the shape of start, \(3, 2\), got \(4, 2\)"),
        (
            {"start": torch.zeros(3, 2, device="meta")},
            ValueError,
            "`end` must be on the device of start, meta, got 'cpu'",
        ),
        (
            {"start": torch.zeros(3, 2, dtype=torch.uint8)},
            TypeError,
            "`start` must be floating-point .* got torch.uint8",
        ),
        ({"end": np.ones((3, 2), np.int64)}, TypeError, "`end` must be floating-point .* got torch.int64"),
        ({"start": torch.zeros(0, 2)}, ValueError, r"`start` must be at least one image, .*, got \(0, 2\)"),
        ({"start": torch.tensor(1.0)}, ValueError, r"`start` must be at least one image, of shape \(P, \*shape\)"),
        ({"end": []}, ValueError, "`end` must be at least one image"),
        ({"end": 7}, TypeError, r"`end` must be images of shape \(P, \*shape\), got int"),
        ({"end": {1: 2}}, TypeError, r"`end` must be images of shape \(P, \*shape\), got dict"),
        (
            {"end": [torch.ones(2), torch.ones(2), torch.ones(3)]},
            ValueError,
            r"`end\[2\]` must be of shape \(2,\) like the first, got \(3,\)",
        ),
        ({"num_points": 1}, ValueError, "`num_points` must be at least 2, the two ends, got 1"),
        ({"num_points": 5.0}, TypeError, "`num_points` must be an integer, got 5.0"),
        ({"num_points": True}, TypeError, "`num_points` must be an integer, got True"),
        ({"tolerance": 0}, ValueError, r"`tolerance` must be in \(0, 1\], got 0"),
        ({"tolerance": 1.5}, ValueError, r"`tolerance` must be in \(0, 1\], got 1.5"),
        ({"tolerance": float("nan")}, ValueError, r"`tolerance` must be in \(0, 1\], got nan"),
        ({"tolerance": "1"}, TypeError, r"`tolerance` must be a number in \(0, 1\], got '1'"),
        ({"precision": "half"}, ValueError, "`precision` must be one of 'float32', 'bf16', got 'half'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "`batch_size` must be an integer, got 2.0"),
        ({"memory_limit": 1e9}, TypeError, "`memory_limit` must be an integer, got 1000000000.0"),
        ({"memory_limit": 47}, ValueError, "`memory_limit` must be at least 48 bytes, got 47"),
        ({"model": 3}, TypeError, "`model` must be something to call, got 3"),
        ({"decision": "argmax"}, TypeError, "`decision` must be something to call, got 'argmax'"),
        ({"model": lambda x: (x,)}, TypeError, r"`model` must return a tensor, .*`decision` can .* got tuple"),
        ({"model": lambda x: x[:, 0]}, ValueError, r"`model` must return scores \(B, C\), got .* \(9,\) for 9 images"),
        ({"model": lambda x: x[:2]}, ValueError, r"`model` must return scores .* of shape \(2, 2\) for 9 images"),
        ({"model": lambda x: x[:, :, None]}, ValueError, r"`model` must return scores .* \(9, 2, 1\)"),
        ({"model": lambda x: x.sum()}, ValueError, r"`model` must return scores .* of shape \(\)"),
        ({"model": lambda x: x * 1j}, ValueError, r"`model` must return scores \(B, C\), got torch.complex64 of"),
        (
            {"model": lambda x: x[:, :1]},
            ValueError,
            r"`model` .* at least two classes, or have a `decision`, got .*\(9, 1\)",
        ),
        ({"model": lambda x: x.argmax(1)}, ValueError, r"`model` must return scores.*int64 of shape \(9,\)"),
        (
            {"decision": lambda x: x[:, 0]},
            ValueError,
            r"`decision` must return .* or integer classes \(B,\), got .*float32",
        ),
        (
            {"decision": lambda x: x[:3].argmax(1)},
            ValueError,
            r"`decision` must return .* of shape \(3,\) for 9 images",
        ),
        ({"decision": lambda x: 3}, TypeError, r"`decision` must return a tensor, .* classes \(B,\), got int"),
        (
            {"decision": lambda x: x[:, :1]},
            ValueError,
            "`decision` must return scores of at least two classes or classes",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        probe_paths(**({"model": nn.Identity(), "start": GOOD[0], "end": GOOD[1], "num_points": 3} | arguments))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_placed(value):
    def model(x):
        return torch.where((x[:, :1] == 1.5) & (x[:, 1:] == 3), value, x)

    start, end = torch.zeros(4, 2), torch.tensor([[1.0, 2.0], [6.0, 12.0], [1.0, 1.0], [2.0, 2.0]])
    with pytest.raises(ValueError, match=r"finite scores, got NaN or infinite ones for pair 1 at a = 0\.25\.$"):
        probe_paths(model, start, end, 5, batch_size=3)


@pytest.mark.parametrize("name", ["start", "end"])
def test_images_that_are_not_finite_are_named(name):
    images = {"start": torch.zeros(4, 2), "end": torch.ones(4, 2)}
    images[name][2, 1] = float("nan")
    with pytest.raises(ValueError, match=f"for pair 2 at a = .*; its image in `{name}` is not finite either"):
        probe_paths(nn.Identity(), **images, num_points=5)


def test_a_number_of_classes_that_changes():
    seen = []

    def model(x):
        seen.append(len(x))
        return x.repeat(1, len(seen))

    with pytest.raises(ValueError, match=r"`model` must be one that always returns \(2,\) scores an image, got \(4,\)"):
        probe_paths(model, *GOOD, num_points=5, batch_size=8)
