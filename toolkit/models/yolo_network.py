"""Detection networks of ultralytics: built, given another number of classes, read from its files, written as such."""

from __future__ import annotations

import copy
import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from toolkit.checkpoints import read_state_dict
from toolkit.detection.ultralytics_parts import (
    DEFAULT_CFG,
    Detect,
    DetectionModel,
    get_cfg,
    torch_safe_load,
    ultralytics_version,
    yaml_model_load,
)
from toolkit.reproducibility import preserved_rng
from toolkit.validation import invalid

__all__ = [
    "NetworkFile",
    "adapt_classes",
    "build_network",
    "class_layers",
    "copy_of",
    "head_of",
    "hyperparameters",
    "is_shipped",
    "read_architecture",
    "read_weights",
    "write_checkpoint",
]

_YAML_SUFFIXES = (".yaml", ".yml")
_KNOWN = "the name of a network such as 'yolov5n.yaml' (or s, m, l, x), a YAML file, or a checkpoint of ultralytics"


@dataclass(frozen=True)
class NetworkFile:
    """What a file, or the name of a network, tells."""

    #: The architecture, as ultralytics' YAML files have it; None where the file holds weights alone.
    architecture: dict[str, Any] | None
    #: The weights, if there are any.
    state: dict[str, Tensor] | None = None
    #: The names of the classes by number, if they are known.
    names: dict[int, str] | None = None


def is_shipped(network: Any) -> bool:
    """Whether a network comes with ultralytics, so that its name alone builds it anywhere.

    Example:
        >>> is_shipped("yolov5n.yaml"), is_shipped("runs/best.pt")
        (True, False)
    """
    is_name = isinstance(network, str) and Path(network).name == network and not Path(network).exists()
    return is_name and network.endswith(_YAML_SUFFIXES)


def read_architecture(network: str | Mapping[str, Any]) -> NetworkFile:
    """The architecture by a name, from a YAML file, or with weights from a checkpoint of ultralytics.

    Raises:
        FileNotFoundError: If it is a file that does not exist.
        ValueError: If it is none of these.
    """
    if isinstance(network, Mapping):
        return NetworkFile(copy.deepcopy(dict(network)))
    path = Path(network).expanduser()
    if path.suffix == ".pt":
        if not path.is_file():
            raise FileNotFoundError(f"`network` must be {_KNOWN}; there is no file {network!r}.")
        return _read_ultralytics(path, "network")
    if path.suffix not in _YAML_SUFFIXES or "://" in network:
        raise invalid("network", _KNOWN, network)
    try:
        return NetworkFile(yaml_model_load(path))  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise FileNotFoundError(f"`network` must be {_KNOWN}; there is no {network!r}.") from None


def read_weights(weights: str | Path) -> NetworkFile:
    """Weights from a state dict, a Lightning checkpoint or a checkpoint of ultralytics."""
    path = Path(weights).expanduser()
    try:
        return NetworkFile(None, read_state_dict(path, "weights"))
    except ValueError as error:
        if path.suffix != ".pt":
            raise
        try:
            return _read_ultralytics(path, "weights")
        except ValueError:
            raise error from None


def build_network(architecture: Mapping[str, Any], num_classes: int | None = None) -> Any:
    """A new network with random weights, as ultralytics starts it.

    Args:
        architecture: What a YAML file of ultralytics holds; it is not changed.
        num_classes: Number of classes, if not the one that is there.

    Raises:
        ValueError: If it is no network with a plain detection head.
    """
    content = copy.deepcopy(dict(architecture))
    if num_classes is not None:
        content["nc"] = num_classes
    try:
        network: Any = DetectionModel(  # type: ignore[no-untyped-call]
            content, ch=content.get("channels", 3), verbose=False
        )
        head = network.model[-1]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"`network` must be {_KNOWN}, got {content.get('yaml_file', 'an architecture')!r}, which cannot be built "
            f"({type(error).__name__}: {error})."
        ) from error
    if type(head) is not Detect or getattr(head, "one2one_cv2", None) is not None:
        raise ValueError(
            f"`network` must be a network with one plain detection head, got {content.get('yaml_file')!r} with "
            f"{type(head).__name__}."
        )
    for name, parameter in network.named_parameters():
        # The expected value over the bins of a distance is no weight to learn.
        parameter.requires_grad_(".dfl" not in name)
    network.nc = content["nc"]
    return network


def head_of(network: Any) -> Any:
    """The detection head, the last layer."""
    return network.model[-1]


def class_layers(network: Any) -> str:
    """The beginning of the names of the head's layers for classes, whose shapes depend on how many there are."""
    return f"model.{len(network.model) - 1}.cv3."


def adapt_classes(network: Any, state: Mapping[str, Tensor], *, may_change_number: bool) -> int | None:
    """Give the head the shapes that some weights have there.

    Args:
        network: The network; its head is replaced where it has other shapes, the rest of it stays the same object.
        state: The weights, by the network's own names.
        may_change_number: Whether the number of classes may become another; the width of the layers before that may
            always, which depends on how many classes a network was first made for.

    Returns:
        How many classes the weights are for, or None where they do not tell.
    """
    branch = head_of(network).cv3[0]
    found = state.get(f"{class_layers(network)}0.{len(branch) - 1}.weight")
    if found is None or found.ndim != branch[-1].weight.ndim:
        return None
    num_classes, width = found.shape[:2]
    if found.shape != branch[-1].weight.shape and (may_change_number or num_classes == network.nc):
        set_classes(network, num_classes, width)
    return int(num_classes)


def set_classes(network: Any, num_classes: int, width: int | None = None) -> None:
    """Replace the head by one for another number of classes; what fits of the old head's weights is kept.

    Args:
        network: The network. The rest of it stays the same object.
        num_classes: Number of classes.
        width: Channels of the layers before the last; what a new network has if None.
    """
    old = head_of(network)
    fresh = build_network(network.yaml, num_classes)
    head = head_of(fresh)
    if width is not None and width != head.cv3[0][-1].in_channels:
        # A network made for as many classes as there are channels has layers of that width.
        head.cv3 = head_of(build_network(network.yaml, width)).cv3
        for branch in head.cv3:
            branch[-1] = nn.Conv2d(branch[-1].in_channels, num_classes, 1)
        head.bias_init()
    own, first = head.state_dict(), next(old.parameters())
    kept = {name: value for name, value in old.state_dict().items() if name in own and own[name].shape == value.shape}
    head.load_state_dict({**own, **kept})
    network.model[-1] = head.to(first.device, first.dtype).train(old.training)
    network.yaml, network.nc, network.names = fresh.yaml, num_classes, fresh.names
    network.criterion = None


def copy_of(network: Any) -> Any:
    """A new network with the same weights and names, and nothing else: no hooks, no gradients, on the CPU."""
    with preserved_rng():
        result = build_network(network.yaml, network.nc)
        adapt_classes(result, network.state_dict(), may_change_number=False)
    result.load_state_dict(network.state_dict())
    result.names = dict(network.names)
    return result.eval().requires_grad_(requires_grad=False)


def write_checkpoint(network: Any, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a network as ultralytics writes its own, so that `ultralytics.YOLO(path)` opens it.

    Weights keep their precision, which ultralytics halves. Under the name there is either the whole file or what was
    there before.

    Args:
        network: The network.
        path: The file.
        settings: Settings of ultralytics that the file shall tell, such as `imgsz`.
    """
    content = copy_of(network)
    content.args = {"task": "detect", **settings}
    content.task = "detect"
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(
            {
                "epoch": -1,
                "best_fitness": None,
                "model": content,
                "ema": None,
                "updates": None,
                "optimizer": None,
                "train_args": content.args,
                "date": datetime.datetime.now(datetime.UTC).isoformat(),
                "version": ultralytics_version,
                "license": "AGPL-3.0 (https://ultralytics.com/license)",
            },
            unfinished,
        )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def hyperparameters(box_gain: float, cls_gain: float, dfl_gain: float) -> Any:
    """Settings of ultralytics with the gains of the three parts of its loss."""
    return get_cfg(DEFAULT_CFG, {"task": "detect", "box": box_gain, "cls": cls_gain, "dfl": dfl_gain})


def _read_ultralytics(path: Path, argument: str) -> NetworkFile:
    """Architecture, weights and names of the network in a checkpoint of ultralytics; only known classes are made."""
    try:
        content, _ = torch_safe_load(str(path), safe_only=True)  # type: ignore[no-untyped-call]
        network: Any = content.get("ema") or content.get("model")
    except Exception as error:  # whatever ultralytics raises for what it does not know
        raise ValueError(
            f"`{argument}` must be a checkpoint of ultralytics, got {str(path)!r} ({str(error).splitlines()[0]})."
        ) from error
    if not isinstance(network, DetectionModel):
        raise ValueError(
            f"`{argument}` must be a checkpoint of ultralytics with a detection network, got {str(path)!r} with "
            f"{type(network).__name__}."
        )
    names = {int(number): str(name) for number, name in dict(network.names).items()}
    architecture: dict[str, Any] = copy.deepcopy(cast("Any", network).yaml)
    return NetworkFile(architecture, network.float().state_dict(), names)
