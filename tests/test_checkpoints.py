import argparse

import pytest
import torch
from torch import nn

from toolkit.checkpoints import load_matching, load_weights, read_state_dict


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.net.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()} | {"criterion.weight": torch.ones(3)}},
    ],
)
@pytest.mark.parametrize("make", [network, Wrapper])
def test_loads_under_any_prefix(tmp_path, wrap, make):
    source, target = network(), make()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    inner = target if make is network else target.network
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), inner.state_dict().values(), strict=True)
    )


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: p / "nowhere.pt", "`checkpoint` must be an existing file, got .*nowhere.pt"),
        (lambda p: save(p / "w.pt", {"state_dict": {}}), "`checkpoint` must hold a state dict"),
        (lambda p: save(p / "w.pt", {"weights": argparse.Namespace()}), "loads with weights_only=True"),
        (
            lambda p: save(p / "w.pt", {k: v for k, v in network().state_dict().items() if k != "3.bias"}),
            r"must fit the model Sequential, got .*missing in the file \(1\): 3.bias",
        ),
        (
            lambda p: save(p / "w.pt", network().state_dict() | {"4.extra": torch.ones(1)}),
            r"not in the model \(1\): 4.extra",
        ),
        (
            lambda p: save(p / "w.pt", network().state_dict() | {"3.bias": torch.ones(5)}),
            r"other shapes \(1\): 3.bias \(5,\) instead of \(3,\)",
        ),
    ],
)
def test_errors_leave_the_model_as_it_was(tmp_path, make, match):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        load_weights(model, make(tmp_path))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="`checkpoint` must be a file of tensors"):
        read_state_dict(tmp_path / "w.pt")


def test_part_of_a_model_is_loaded_and_told():
    model, source = Wrapper(), network()
    state = {f"net.{k}": v for k, v in source.state_dict().items() if not k.startswith("0")}
    state |= {"net.3.bias": torch.ones(5), "net.9.weight": torch.ones(1)}
    before = model.network[3].bias.clone()
    found = load_matching(model, state, "w.pt", may_differ=["network.3."])
    assert torch.equal(model.network[1].weight, source[1].weight)
    assert torch.equal(model.network[3].weight, source[3].weight)
    assert torch.equal(model.network[3].bias, before)
    assert found.left_out == ("network.3.bias", "network.9.weight")
    assert found.kept == ("network.0.weight", "network.0.bias", "network.3.bias")
    assert str(found) == (
        "6 of 9 tensors are from the file; as they were (3): network.0.weight, network.0.bias, network.3.bias; "
        "left out of the file (2): network.3.bias, network.9.weight"
    )


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"a": torch.ones(1), "b": torch.ones(1)}, "got 'w.pt' with other names: a, b, where the model has 0.weight"),
        ({"3.bias": torch.ones(5)}, r"got 'w.pt' with other shapes \(1\): 3.bias \(5,\) instead of \(3,\)"),
    ],
)
def test_weights_of_another_architecture_leave_the_model_as_it_was(state, match):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"`weights` must fit the model Sequential, {match}"):
        load_matching(model, state, "w.pt")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_may_adapt_to_the_weights(tmp_path):
    class Adapting(nn.Sequential):
        def adapt_to(self, state):
            self[1] = nn.Linear(2, len(state["1.bias"]))

    source = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    target = Adapting(nn.Linear(3, 2), nn.Linear(2, 4))
    load_weights(target, save(tmp_path / "w.pt", {f"net.{k}": v for k, v in source.state_dict().items()}))
    assert torch.equal(target[1].weight, source[1].weight)
