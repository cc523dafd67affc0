"""The only module that imports ultralytics: what the detection part uses of it, without its side effects.

ultralytics is licensed under AGPL-3.0 and comes with the extra `detection`. Importing it changes how NumPy and PyTorch
print and replaces `torch.save` and Pillow's `Image.open`; all are put back here, so that a program behaves the same
with and without it.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

_numpy_printing = np.get_printoptions()
_torch_printing = {name: getattr(torch._tensor_str.PRINT_OPTS, name) for name in ("precision", "linewidth")}
_torch_save = torch.save
_pillow_open = Image.open
try:
    from ultralytics import __version__ as ultralytics_version
    from ultralytics.cfg import get_cfg
    from ultralytics.data.augment import Compose, Format, LetterBox
    from ultralytics.data.build import build_dataloader, build_yolo_dataset
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.nn.modules import Detect
    from ultralytics.nn.tasks import DetectionModel, torch_safe_load, yaml_model_load
    from ultralytics.utils import DEFAULT_CFG, IterableSimpleNamespace
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import xywh2xyxy
    from ultralytics.utils.torch_utils import ModelEMA
except ImportError as error:
    raise ImportError(
        "Object detection needs ultralytics (AGPL-3.0), which the extra `detection` brings: "
        f'pip install "dataset-pruning-toolkit[detection]" ({error}).'
    ) from error
finally:
    np.set_printoptions(**_numpy_printing)
    torch.set_printoptions(**_torch_printing)  # type: ignore[no-untyped-call]
    torch.save = _torch_save
    Image.open = _pillow_open

__all__ = [
    "DEFAULT_CFG",
    "Compose",
    "Detect",
    "DetectionModel",
    "Format",
    "IterableSimpleNamespace",
    "LetterBox",
    "ModelEMA",
    "YOLODataset",
    "build_dataloader",
    "build_yolo_dataset",
    "get_cfg",
    "non_max_suppression",
    "torch_safe_load",
    "ultralytics_version",
    "xywh2xyxy",
    "yaml_model_load",
]
