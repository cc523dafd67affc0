"""What all pictures share: images and names as they are shown, text that fits, colours, and checked arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from toolkit.representations.base import image_key
from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pixels that the longer side of a thumbnail has at least, where the image has as many.
_THUMBNAIL = 192

DARK, MUTED = "#222222", "#666666"
BLUE, ORANGE = "#1b6ca8", "#c8501e"

#: Colours of boxes by class, told apart by people who see red and green alike too (Okabe and Ito, "Color universal
#: design", 2008); classes beyond them start over.
_BOX_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
#: Pixels of an image's longer side for each pixel of a box's line.
_PIXELS_A_LINE = 160


def displayable(sample: Any) -> npt.NDArray[Any] | None:
    """A data set's sample as an array that can be shown, shape (H, W) or (H, W, 3); None if it is no image.

    Tensors have their channels first, arrays first or last. Floating-point images that leave [0, 1] (normalised ones)
    are stretched to it.
    """
    image = sample[0] if isinstance(sample, (tuple, list)) and len(sample) else sample
    if isinstance(image, Mapping):
        key = image_key(image)
        image = None if key is None else image[key]
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


def boxes_of(sample: Any) -> npt.NDArray[np.float32] | None:
    """The boxes of a detection data set's sample, or None if it is none.

    Args:
        sample: A dictionary with `bboxes` (n, 4), centre, width and height in [0, 1] of its image, and `cls` (n,).

    Returns:
        Shape (n, 5): class, centre x, centre y, width and height.

    Example:
        >>> boxes_of({"bboxes": torch.tensor([[0.5, 0.5, 0.25, 0.5]]), "cls": torch.tensor([[2.0]])})
        array([[2.  , 0.5 , 0.5 , 0.25, 0.5 ]], dtype=float32)
    """
    if not isinstance(sample, Mapping) or not {"bboxes", "cls"} <= sample.keys():
        return None
    places = np.asarray(sample["bboxes"], dtype=np.float32).reshape(-1, 4)
    classes = np.asarray(sample["cls"], dtype=np.float32).reshape(-1, 1)
    return np.concatenate([classes, places], axis=1) if len(classes) == len(places) else None


def with_boxes(image: npt.NDArray[Any], boxes: npt.NDArray[np.float32] | None) -> npt.NDArray[Any]:
    """An image with the outlines of its boxes on it, one colour a class; the image itself is not changed.

    Args:
        image: Shape (H, W) or (H, W, 3), uint8 or in [0, 1], of the size at which it is shown.
        boxes: From `boxes_of`, or None.

    Example:
        >>> drawn = with_boxes(np.zeros((8, 8), np.uint8), np.float32([[0, 0.5, 0.5, 0.5, 0.5]]))
        >>> drawn[:, :, 0].max(axis=1).tolist()
        [0, 0, 230, 230, 230, 230, 230, 0]
    """
    if boxes is None or not len(boxes):
        return image
    drawn = np.array(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    height, width = drawn.shape[:2]
    scale = 1.0 if drawn.dtype == np.uint8 else 255.0
    line = max(1, round(max(height, width) / _PIXELS_A_LINE))
    for label, x, y, w, h in boxes.tolist():
        left, right = (int(np.clip(round((x + side * w / 2) * width), 0, width - 1)) for side in (-1, 1))
        top, bottom = (int(np.clip(round((y + side * h / 2) * height), 0, height - 1)) for side in (-1, 1))
        colour = np.asarray(_BOX_COLOURS[int(label) % len(_BOX_COLOURS)]) / scale
        drawn[top : top + line, left : right + 1] = colour
        drawn[max(0, bottom - line + 1) : bottom + 1, left : right + 1] = colour
        drawn[top : bottom + 1, left : left + line] = colour
        drawn[top : bottom + 1, max(0, right - line + 1) : right + 1] = colour
    return drawn


def label_text(label: Any, class_names: Sequence[str] | None = None) -> str:
    """A label in words; several labels of one image with how often each occurs.

    Example:
        >>> label_text(1, ["car", "sign"]), label_text([0, 0, 1], ["car", "sign"]), label_text([])
        ('sign', 'car x2 + sign', 'no objects')
    """
    if isinstance(label, (list, tuple)):
        counts = Counter(label_text(item, class_names) for item in label)
        return " + ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items()) or "no objects"
    text = str(label.item() if isinstance(label, (torch.Tensor, np.generic)) else label)
    if class_names is not None and text.isdigit() and int(text) < len(class_names):
        return str(class_names[int(text)])
    return text


def image_at(dataset: Any, index: int, name: str) -> npt.NDArray[Any]:
    """An image of a data set in [0, 1], no larger than a thumbnail needs, with its boxes where it has any."""
    if not -len(dataset) <= index < len(dataset):
        raise invalid(name, "one that has the images asked for", f"{len(dataset)} images, none at index {index}")
    sample = dataset[index]
    image = displayable(sample)
    if image is None:
        raise invalid(name, "a data set of images", f"a sample that is none at index {index}")
    if image.dtype == np.uint8:
        image = image / 255
    step = max(1, max(image.shape[:2]) // _THUMBNAIL)
    if step > 1 and min(image.shape[:2]) >= step:
        rows, columns = image.shape[0] // step, image.shape[1] // step
        image = image[: rows * step, : columns * step]
        image = image.reshape(rows, step, columns, step, *image.shape[2:]).mean(axis=(1, 3))
    return with_boxes(image, boxes_of(sample))


def class_name(labels: Sequence[Any] | None, index: Any, class_names: Sequence[str] | None) -> str:
    """The class of an image in words; empty where there are no labels."""
    if labels is None:
        return ""
    return label_text(labels[int(index)], class_names)


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
