"""Pictures of selections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from toolkit.validation import invalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from toolkit.selection import Selection


def displayable(sample: Any) -> npt.NDArray[Any] | None:
    """A data set's sample as an array that can be shown, shape (H, W) or (H, W, 3); None if it is no image.

    Floating-point images that leave [0, 1] (normalised ones) are stretched to it.
    """
    image = sample[0] if isinstance(sample, (tuple, list)) and len(sample) else sample
    if isinstance(image, dict):
        image = next((image[key] for key in ("image", "images", "pixel_values", "x") if key in image), None)
    if type(image).__module__.partition(".")[0] == "PIL":
        return np.asarray(image.convert("RGB"))
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


def plot_groups(
    selection: Selection,
    dataset: Any,
    n_groups: int = 12,
    n_members: int = 8,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """The largest groups of alike images: the one that stays framed in green, those that go with their distances.

    Args:
        selection: The selection.
        dataset: The data set that it was chosen from.
        n_groups: Groups to show, the largest first, ties to the one found first.
        n_members: Images of a group to show, the one that stays included, the closest to it first.
        class_names: A name for each label that is a number.

    Returns:
        A matplotlib figure; its `savefig` writes it.

    Raises:
        ValueError: If no group has two images, or the data set's samples are no images.
    """
    from matplotlib.figure import Figure

    gone = np.flatnonzero((selection.representative >= 0) & (selection.representative != np.arange(len(selection))))
    standing, sizes = np.unique(selection.representative[gone], return_counts=True)
    if not len(standing):
        raise invalid("selection", "one with a group of two images or more", "one without")
    shown = standing[np.argsort(-sizes, kind="stable")][:n_groups]
    columns = min(n_members, int(sizes.max()) + 1)
    figure = Figure(figsize=(1.1 * columns + 1.6, 1.3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    names = None if selection.labels is None else selection.labels.names()
    for row, stays in zip(grid, shown, strict=True):
        members = gone[selection.representative[gone] == stays]
        members = members[np.argsort(selection.distance[members], kind="stable")]
        for axes, index in zip(row, [stays, *members[: columns - 1]], strict=False):
            image = displayable(dataset[int(index)])
            if image is None:
                raise invalid("dataset", "a data set of images", f"a sample that is none at index {int(index)}")
            axes.imshow(image, cmap="gray", interpolation="nearest")
            axes.set_title("kept" if index == stays else f"{selection.distance[index]:.2g}", fontsize=7, pad=2)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(bool(axes.images) and axes is row[0])
            axes.spines[:].set(color="green", linewidth=3)
        label = "" if names is None or selection.labels is None else names[selection.labels.codes[stays]]
        if class_names is not None and label.isdigit() and int(label) < len(class_names):
            label = class_names[int(label)]
        row[0].set_ylabel(f"{label}\n{len(members) + 1} images", fontsize=7, rotation=0, ha="right", va="center")
    return figure
