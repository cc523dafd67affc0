"""Networks, and the modules that train an image classifier and a detector.

`ImageClassifier` and `YOLOv5` are imported on first use: the networks alone do not need Lightning, and detection needs
the extra `detection`.
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
    from toolkit.models.yolo import YOLOv5

__all__ = [
    "RESNETS",
    "CifarResNet",
    "ImageClassifier",
    "YOLOv5",
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
    if name == "YOLOv5":
        from toolkit.models.yolo import YOLOv5

        return YOLOv5
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
