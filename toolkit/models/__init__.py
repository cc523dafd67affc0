"""Networks, and the module that trains an image classifier.

`ImageClassifier` is imported on first use: the networks alone do not need Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.models.resnet import (
    RESNETS,
    CifarResNet,
    build_network,
    build_resnet,
    network_names,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)

if TYPE_CHECKING:
    from toolkit.models.classification import ImageClassifier

__all__ = [
    "RESNETS",
    "CifarResNet",
    "ImageClassifier",
    "build_network",
    "build_resnet",
    "network_names",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]


def __getattr__(name: str) -> Any:
    if name == "ImageClassifier":
        from toolkit.models.classification import ImageClassifier

        return ImageClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
