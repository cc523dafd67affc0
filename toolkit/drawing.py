"""What all pictures share: images, boxes and names as they are shown, text that fits, colours, checked arguments."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.representations.base import image_key
from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

#: Pixels that the longer side of a thumbnail has at least, where the image has as many.
_THUMBNAIL = 192

DARK, MUTED = "#222222", "#666666"
BLUE, ORANGE = "#1b6ca8", "#c8501e"

#: What images without any label are called, and their colour.
NOTHING, NOTHING_COLOR = "no objects", "#8a8f94"

#: Okabe and Ito's colours ("Color universal design", 2008), and some beside them: the first ten classes are told apart
#: by people who see red and green alike too. Further classes have hues a golden angle apart.
_CLASS_COLORS = (
    *("#e69f00", "#0072b2", "#009e73", "#d55e00", "#56b4e9"),
    *("#cc79a7", "#8a7500", "#7f3fbf", "#5c6b73", "#b80058"),
)
_LIGHTNESS = (0.45, 0.58, 0.36)
#: Classes in the key of a picture at most.
_MOST_KEYS = 10


class Picture(NamedTuple):
    """An image as it is shown, and what `boxes_of` gives for it."""

    image: npt.NDArray[Any]
    boxes: npt.NDArray[np.float32] | None


def displayable(sample: Any) -> npt.NDArray[Any] | None:
    """A data set's sample as an array that can be shown, shape (H, W) or (H, W, 3); None if it is no image.

    Tensors have their channels first, arrays first or last. Floating-point images that leave [0, 1] (normalised ones)
    are stretched to it. Where a dictionary tells how its image was padded (`ori_shape` and `ratio_pad`, as ultralytics
    does) the padding is left out.
    """
    image = sample[0] if isinstance(sample, (tuple, list)) and len(sample) else sample
    told: Mapping[Any, Any] = image if isinstance(image, Mapping) else {}
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
    left, top, right, bottom = _within_padding(told, image.shape)
    array: npt.NDArray[Any] = image[..., top:bottom, left:right].detach().cpu().float().numpy()
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
        Shape (n, 5): class, centre x, centre y, width and height, in [0, 1] of what `displayable` shows of the image.

    Example:
        >>> boxes_of({"bboxes": torch.tensor([[0.5, 0.5, 0.25, 0.5]]), "cls": torch.tensor([[2.0]])})
        array([[2.  , 0.5 , 0.5 , 0.25, 0.5 ]], dtype=float32)
    """
    if not isinstance(sample, Mapping) or not {"bboxes", "cls"} <= sample.keys():
        return None
    places = np.asarray(sample["bboxes"], dtype=np.float32).reshape(-1, 4)
    classes = np.asarray(sample["cls"], dtype=np.float32).reshape(-1, 1)
    if len(classes) != len(places):
        return None
    key = image_key(sample)
    shape = np.shape(sample[key]) if key is not None else ()
    if len(shape) == 3:
        left, top, right, bottom = _within_padding(sample, shape)
        wide, high = right - left, bottom - top
        places = places * np.array([shape[2] / wide, shape[1] / high] * 2, np.float32)
        places[:, :2] -= np.array([left / wide, top / high], np.float32)
    return np.concatenate([classes, places], axis=1)


def corners_of(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The left, upper, right and lower edges of boxes, within the image.

    Args:
        boxes: From `boxes_of`.

    Example:
        >>> corners_of(np.float32([[0, 0.25, 0.5, 0.5, 0.5], [0, 0.0, 0.0, 0.5, 0.5]])).tolist()
        [[0.0, 0.25, 0.5, 0.75], [0.0, 0.0, 0.25, 0.25]]
    """
    centre, half = boxes[:, 1:3], boxes[:, 3:5] / 2
    return np.concatenate([centre - half, centre + half], axis=1).clip(0, 1)


def _within_padding(sample: Mapping[Any, Any], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The left, upper, right and lower edge of an image within its padding, in pixels."""
    height, width = shape[-2:]
    try:
        (scale_y, scale_x), (left, top) = sample["ratio_pad"]
        rows, columns = sample["ori_shape"]
        edges = (int(left), int(top), int(left) + round(columns * scale_x), int(top) + round(rows * scale_y))
    except (KeyError, TypeError, ValueError):  # not padded, or put together of several images
        return 0, 0, width, height
    inside = 0 <= edges[0] < edges[2] <= width and 0 <= edges[1] < edges[3] <= height
    return edges if inside else (0, 0, width, height)


def picture_at(dataset: Any, index: int, name: str) -> Picture:
    """An image of a data set in [0, 1], no larger than a thumbnail needs, and its boxes where it has any."""
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
    return Picture(image, boxes_of(sample))


def image_at(dataset: Any, index: int, name: str) -> npt.NDArray[Any]:
    """An image of a data set in [0, 1], no larger than a thumbnail needs."""
    return picture_at(dataset, index, name).image


def draw_boxes(shown: AxesImage, boxes: npt.NDArray[np.float32] | None, width: float = 0.7) -> None:
    """Draw boxes over an image that is shown, in the colours of their classes.

    Args:
        shown: What `imshow` returned.
        boxes: From `boxes_of`, or None.
        width: Of the lines, in points, whatever the size of the image.
    """
    if boxes is None or not len(boxes):
        return
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    left, right, bottom, top = shown.get_extent()
    across, down = right - left, bottom - top
    frames = [
        Rectangle((left + x0 * across, top + y0 * down), (x1 - x0) * across, (y1 - y0) * down)
        for x0, y0, x1, y1 in corners_of(boxes).tolist()
    ]
    colors = [class_color(int(number)) for number in boxes[:, 0]]
    above = shown.get_zorder() + 0.1
    shown.axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor=colors, linewidth=width, zorder=above), autolim=False
    )


def key_of_boxes(pictures: Sequence[Picture], class_names: Sequence[str] | None) -> list[tuple[str, str]]:
    """The name and the colour of each class that has boxes in the pictures, of more than ten those with most."""
    counts = Counter(int(number) for picture in pictures if picture.boxes is not None for number in picture.boxes[:, 0])
    numbers = sorted(number for number, _ in counts.most_common(_MOST_KEYS))
    return [(label_text(number, class_names), class_color(number)) for number in numbers]


def add_key(figure: Figure, key: Sequence[tuple[str, str]], **place: Any) -> None:
    """A line that says which class has boxes of which colour; `place` is for matplotlib's `legend`."""
    from matplotlib.lines import Line2D

    if not key:
        return
    width = figure.get_size_inches()[0]
    square: dict[str, Any] = {"color": "none", "marker": "s", "markerfacecolor": "none", "markeredgewidth": 1.5}
    handles = [
        Line2D([], [], markeredgecolor=color, label=fit(name, width / len(key) - 0.4, 8), markersize=7, **square)
        for name, color in key
    ]
    legend = figure.legend(
        handles=handles, ncols=len(key), frameon=False, fontsize=8, handletextpad=0.2, columnspacing=1.2, **place
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def class_color(number: int) -> str:
    """The colour of a class, the same in all pictures and in the page.

    Example:
        >>> class_color(0), class_color(12)
        ('#e69f00', '#2873bd')
    """
    if number < len(_CLASS_COLORS):
        return _CLASS_COLORS[number]
    hue = (number * 137.508) % 360 / 360
    parts = colorsys.hls_to_rgb(hue, _LIGHTNESS[number % len(_LIGHTNESS)], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def label_text(label: Any, class_names: Sequence[str] | None = None) -> str:
    """A label in words; several labels of one image with how often each occurs.

    Example:
        >>> label_text(1, ["car", "sign"]), label_text([0, 0, 1], ["car", "sign"]), label_text([])
        ('sign', 'car x2 + sign', 'no objects')
    """
    if isinstance(label, (list, tuple)):
        counts = Counter(label_text(item, class_names) for item in label)
        return " + ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items()) or NOTHING
    text = str(label.item() if isinstance(label, (torch.Tensor, np.generic)) else label)
    if class_names is not None and text.isdigit() and int(text) < len(class_names):
        return str(class_names[int(text)])
    return text


def class_name(labels: Sequence[Any] | None, index: Any, class_names: Sequence[str] | None) -> str:
    """The class of an image in words; empty where there are no labels."""
    if labels is None:
        return ""
    return label_text(labels[int(index)], class_names)


def labels_differ(one: Any, other: Any) -> bool:
    """Whether two images have different labels, however often each of them.

    Example:
        >>> labels_differ([0, 0, 1], [1, 0]), labels_differ(3, "3"), labels_differ([0], [])
        (False, False, True)
    """
    sets = [{str(item) for item in (label if isinstance(label, (list, tuple)) else [label])} for label in (one, other)]
    return sets[0] != sets[1]


def wrapped(text: str, width: float, size: float, most: int, weight: str = "normal") -> list[str]:
    """A text in at most so many lines of so many inches, broken behind its plus signs."""
    lines = [""]
    for part in text.split(" + "):
        longer = f"{lines[-1]} + {part}" if lines[-1] else part
        if len(lines) < most and lines[-1] and text_width(f"{longer} +", size, weight) > width:
            lines[-1] += " +"
            lines.append(part)
        else:
            lines[-1] = longer
    return [fit(line, width, size, weight) for line in lines]


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
