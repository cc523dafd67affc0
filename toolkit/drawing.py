"""What all pictures share: images and names as they are shown, text that fits, colours, and checked arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pixels that the longer side of a thumbnail has at least, where the image has as many.
_THUMBNAIL = 192

DARK, MUTED = "#222222", "#666666"
BLUE, ORANGE = "#1b6ca8", "#c8501e"


def displayable(sample: Any) -> npt.NDArray[Any] | None:
    """A data set's sample as an array that can be shown, shape (H, W) or (H, W, 3); None if it is no image.

    Tensors have their channels first, arrays first or last. Floating-point images that leave [0, 1] (normalised ones)
    are stretched to it.
    """
    image = sample[0] if isinstance(sample, (tuple, list)) and len(sample) else sample
    if isinstance(image, dict):
        image = next((image[key] for key in ("image", "images", "pixel_values", "x") if key in image), None)
    if type(image).__module__.partition(".")[0] == "PIL":
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype.kind in "fiub":
        channels_last = image.ndim == 3 and image.shape[2] in {1, 3, 4} and image.shape[0] > image.shape[2]
        image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1) if channels_last else image))
    if not isinstance(image, torch.Tensor) or image.ndim not in {2, 3} or 0 in image.shape:
        return None
    array: npt.NDArray[Any] = image.detach().cpu().float().numpy()
    if image.ndim == 3:
        array = array[:3] if len(array) >= 3 else array[:1]
        array = array.transpose(1, 2, 0).squeeze(-1) if len(array) == 1 else array.transpose(1, 2, 0)
    if image.dtype == torch.uint8:
        return array / 255
    low, high = float(array.min()), float(array.max())
    return array if low >= 0 and high <= 1 else (array - low) / max(high - low, 1e-12)


def image_at(dataset: Any, index: int, name: str) -> npt.NDArray[Any]:
    """An image of a data set in [0, 1], no larger than a thumbnail needs."""
    if not -len(dataset) <= index < len(dataset):
        raise invalid(name, "one that has the images asked for", f"{len(dataset)} images, none at index {index}")
    image = displayable(dataset[index])
    if image is None:
        raise invalid(name, "a data set of images", f"a sample that is none at index {index}")
    if image.dtype == np.uint8:
        image = image / 255
    step = max(1, max(image.shape[:2]) // _THUMBNAIL)
    if step > 1 and min(image.shape[:2]) >= step:
        rows, columns = image.shape[0] // step, image.shape[1] // step
        image = image[: rows * step, : columns * step]
        image = image.reshape(rows, step, columns, step, *image.shape[2:]).mean(axis=(1, 3))
    return image


def class_name(labels: Sequence[Any] | None, index: Any, class_names: Sequence[str] | None) -> str:
    """The class of an image in words; empty where there are no labels."""
    if labels is None:
        return ""
    label = labels[int(index)]
    text = str(label.item() if isinstance(label, (torch.Tensor, np.generic)) else label)
    if class_names is not None and text.isdigit() and int(text) < len(class_names):
        return str(class_names[int(text)])
    return text


def fit(text: str, width: float, size: float, weight: str = "normal") -> str:
    """`text`, shortened where it is wider than so many inches at a font size in points."""
    if text_width(text, size, weight) <= width:
        return text
    short, long = 0, len(text)
    while long - short > 1:
        middle = (short + long) // 2
        if text_width(text[:middle].rstrip() + "…", size, weight) <= width:
            short = middle
        else:
            long = middle
    return text[: max(short, 1)].rstrip() + "…"


def text_width(text: str, size: float, weight: str) -> float:
    """Width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, 72)
    font.set_text(text, 0.0)
    return float(font.get_width_height()[0]) / 64 / 72


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches whose axes leave each other room."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def check_number(name: str, value: Any, most: int) -> int:
    """`value` if it is an integer in 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if not 1 <= value <= most:
        raise invalid(name, f"in 1 to {most}", int(value))
    return int(value)


def check_length(name: str, values: npt.ArrayLike, length: int, what: str) -> npt.NDArray[Any]:
    """An array of one value for each pair or image."""
    array = np.asarray(values)
    if array.shape != (length,):
        raise invalid(name, f"of shape ({length},), one for each {what}", array.shape)
    return array
