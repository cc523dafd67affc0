"""The residual networks that He et al. (2016) trained on CIFAR-10: ResNet-20, 32, 44, 56 and 110."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.validation import invalid

__all__ = [
    "RESNETS",
    "BasicBlock",
    "CifarResNet",
    "PadShortcut",
    "build_network",
    "build_resnet",
    "network_names",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]

#: Models of torchvision that return a tuple while they train, which no plain loss takes.
_TUPLE_MODELS = frozenset({"googlenet", "inception_v3"})


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A): every second row and column, new channels filled with zeros.

    The zero channels are put half before and half after the old ones, as in the weights that circulate for these
    networks; the paper does not say where they go.

    Args:
        new_channels: How many channels to add, an even number.

    Example:
        >>> import torch
        >>> PadShortcut(2)(torch.ones(1, 1, 4, 4)).shape
        torch.Size([1, 3, 2, 2])
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        if new_channels < 0 or new_channels % 2:
            raise invalid("new_channels", "an even number of at least 0", new_channels)
        self.new_channels = new_channels

    def forward(self, images: Tensor) -> Tensor:
        """Shrink and pad feature maps of shape (N, channels, H, W)."""
        side = self.new_channels // 2
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut around them.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output. If they differ from `in_channels`, the block halves height and width.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        grows = in_channels != channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2 if grows else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = PadShortcut(channels - in_channels) if grows else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps (N, in_channels, H, W) to (N, channels, H', W')."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out)) + self.shortcut(images)
        return F.relu(out)


class CifarResNet(nn.Module):
    """A residual network for small images: one convolution, three stages of 16, 32 and 64 channels, one linear layer.

    A network of depth 6n + 2 has n blocks a stage. It takes images of any size from 4 x 4 on, so the 32 x 32 of CIFAR
    and the 8 x 8 of scikit-learn's digits alike. The output of `avgpool` is the network's feature, 64 numbers an image.

    Args:
        depth: Number of weighted layers, 6n + 2: 20, 32, 44, 56 or 110 in the paper.
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Raises:
        ValueError: If `depth` is not 6n + 2 with n of at least 1, or if another argument is not positive.

    References:
        He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016, section 4.2. Weights start as in
        their reference [13], normal with variance 2 / fan-in; the linear layer's biases start at 0.

    Example:
        >>> import torch
        >>> network = CifarResNet(20, num_classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(weight.numel() for weight in network.parameters())
        269722
    """

    #: Length of the feature that `avgpool` gives.
    num_features: int = 64

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise invalid("depth", "6n + 2 with n of at least 1 (20, 32, 44, 56, 110)", depth)
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise invalid(name, "at least 1", value)
        blocks = (depth - 2) // 6
        self.depth = depth
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(self.avgpool(out).flatten(1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks, the first of which changes the number of channels."""
    return nn.Sequential(*(BasicBlock(channels if i else in_channels, channels) for i in range(blocks)))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-20 for small images, 0.27 million parameters; arguments as in `CifarResNet`."""
    return CifarResNet(20, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-32 for small images, 0.46 million parameters; arguments as in `CifarResNet`."""
    return CifarResNet(32, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-44 for small images, 0.66 million parameters; arguments as in `CifarResNet`."""
    return CifarResNet(44, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-56 for small images, 0.85 million parameters; arguments as in `CifarResNet`."""
    return CifarResNet(56, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-110 for small images, 1.7 million parameters; arguments as in `CifarResNet`."""
    return CifarResNet(110, num_classes, in_channels)


#: The networks of this module by name.
RESNETS: dict[str, Callable[..., CifarResNet]] = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
}


def build_resnet(name: str, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """A network of this module by its name.

    Args:
        name: One of `RESNETS`.
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Raises:
        ValueError: If there is no network of that name; the error lists the closest names.

    Example:
        >>> build_resnet("resnet56", num_classes=100).linear.out_features
        100
    """
    if name not in RESNETS:
        raise _unknown("name", name, list(RESNETS))
    return RESNETS[name](num_classes, in_channels)


def network_names() -> list[str]:
    """The names that `build_network` knows: the CIFAR ResNets, then torchvision's classification models.

    Example:
        >>> network_names()[:2]
        ['resnet20', 'resnet32']
    """
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    return [*RESNETS, *(name for name in theirs if name not in RESNETS and name not in _TUPLE_MODELS)]


def build_network(name: str, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """An untrained network by its name, from this module or else from torchvision.

    Args:
        name: One of `network_names()`, such as "resnet32" (for CIFAR) or "resnet18" (torchvision's, for 224 x 224).
        num_classes: Number of outputs.
        in_channels: Channels of the images; torchvision's models take 3 only.

    Raises:
        ValueError: If there is no network of that name (the error lists the closest names), or if a model of
            torchvision is asked for a number of channels other than 3.

    Example:
        >>> type(build_network("resnet18", num_classes=2)).__name__
        'ResNet'
    """
    if name in RESNETS:
        return build_resnet(name, num_classes, in_channels)
    names = network_names()
    if name not in names:
        raise _unknown("network", name, names)
    if in_channels != 3:
        raise invalid("in_channels", f"3 for torchvision's {name!r}", in_channels)
    import torchvision

    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return network


def _unknown(argument: str, name: str, names: list[str]) -> ValueError:
    """The error for a name that is not among `names`, with the closest of them."""
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:5]
    return invalid(argument, f"a known network such as {', '.join(map(repr, close))}", name)
