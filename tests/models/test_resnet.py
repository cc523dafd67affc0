"""The CIFAR ResNets: shapes, sizes, an independent twin, and the published weights."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from toolkit.models.resnet import (
    RESNETS,
    CifarResNet,
    PadShortcut,
    build_network,
    build_resnet,
    network_names,
    resnet20,
    resnet32,
)


def twin(weights: dict[str, torch.Tensor], images: torch.Tensor, blocks: int) -> torch.Tensor:
    """The network in evaluation mode, written out by hand from He et al. (2016)."""

    def conv_bn(x, conv, bn, stride=1):
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"]
        x = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
        return x * weights[f"{bn}.weight"][:, None, None] + weights[f"{bn}.bias"][:, None, None]

    def shortcut(x, channels):
        if x.shape[1] == channels:
            return x
        n, old, h, w = x.shape
        out = torch.zeros(n, channels, (h + 1) // 2, (w + 1) // 2, dtype=x.dtype)
        for row in range(out.shape[2]):
            for column in range(out.shape[3]):
                first = (channels - old) // 2
                out[:, first : first + old, row, column] = x[:, :, 2 * row, 2 * column]
        return out

    x = conv_bn(images, "conv1", "bn1").clamp(min=0)
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            inner = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride).clamp(min=0)
            x = (conv_bn(inner, f"{name}.conv2", f"{name}.bn2") + shortcut(x, channels)).clamp(min=0)
    return x.mean(dim=(2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (9, 7)])
def test_network_equals_a_twin_written_by_hand(size):
    torch.manual_seed(0)
    network = CifarResNet(14, num_classes=7, in_channels=2).double()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
            torch.nn.init.normal_(module.bias, std=0.1)
    images = torch.randn(3, 2, *size, dtype=torch.float64)
    expected = twin(network.state_dict(), images, blocks=2)
    torch.testing.assert_close(network.eval()(images), expected)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_sizes_are_those_of_the_paper(name, parameters):
    network = build_resnet(name)
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    weighted = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == network.depth == int(name.removeprefix("resnet"))


def test_shortcuts_have_no_state_and_keep_every_second_pixel():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    out = PadShortcut(2)(image)
    assert not list(PadShortcut(2).state_dict())
    assert torch.equal(out[0, 1], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert not out[:, [0, 2]].any()


def test_feature_of_avgpool_is_64_numbers_an_image_for_any_size():
    features = []
    network = resnet20(num_classes=3, in_channels=1)
    handle = network.avgpool.register_forward_hook(lambda module, args, output: features.append(output.flatten(1)))
    for size in (8, 16, 32):
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 3)
    handle.remove()
    assert [tuple(feature.shape) for feature in features] == [(2, network.num_features)] * 3


def test_weights_start_as_in_he_et_al():
    torch.manual_seed(0)
    weight = resnet32().layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert not resnet32().linear.bias.any()


def test_names_lead_to_our_networks_first_then_to_those_of_torchvision():
    assert list(RESNETS) == network_names()[:5]
    assert "resnet18" in network_names()
    assert len(set(network_names())) == len(network_names())
    assert isinstance(build_network("resnet20", num_classes=4, in_channels=1), CifarResNet)
    network = build_network("squeezenet1_1", num_classes=4)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: CifarResNet(33), r"`depth` must be 6n \+ 2 .*, got 33"),
        (lambda: CifarResNet(2), r"`depth` must be 6n \+ 2 .*, got 2"),
        (lambda: CifarResNet(20, num_classes=0), "`num_classes` must be at least 1, got 0"),
        (lambda: CifarResNet(20, in_channels=0), "`in_channels` must be at least 1, got 0"),
        (lambda: PadShortcut(3), "`new_channels` must be an even number of at least 0, got 3"),
        (lambda: build_resnet("resnet33"), "`name` must be a known network such as .*'resnet32'.*, got 'resnet33'"),
        (lambda: build_network("resnet51"), "`network` must be a known network such as .*'resnet50'.*, got 'resnet51'"),
        (lambda: build_network("googlenet"), "`network` must be a known network"),
        (
            lambda: build_network("resnet18", in_channels=1),
            "`in_channels` must be 3 for torchvision's 'resnet18', got 1",
        ),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.data
@pytest.mark.parametrize(("n_images", "wanted"), [(2_000, 1_854), pytest.param(10_000, 9_263, marks=pytest.mark.slow)])
def test_published_weights_score_what_they_should(data_folder, cifar_root, n_images, wanted):
    from toolkit.datamodules.cifar import CIFAR10DataModule

    network = resnet32()
    weights = torch.load(data_folder / "weights" / "resnet32_cifar10.pt", weights_only=True)
    network.load_state_dict(weights, strict=True)
    network.eval()
    data = CIFAR10DataModule(cifar_root, batch_size=500, download=False)
    with pytest.warns(UserWarning, match="checksums"):
        data.setup("test")
    right = 0
    with torch.inference_mode():
        for images, labels in islice(data.test_dataloader(), n_images // 500):
            right += int((network(data.evaluation_transform(images)).argmax(1) == labels).sum())
    assert right == pytest.approx(wanted, abs=2)  # rounding differs between processors
