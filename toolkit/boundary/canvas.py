"""A figure drawn on in inches, and how the classes of a model look on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.drawing import DARK, MUTED, class_name, fit, text_width

#: Okabe and Ito's colours, which people with any kind of colour vision can tell apart, and grey in place of black.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#9a9a9a")
#: Patterns of the first, second and third set of those colours.
_HATCHES = ("", "////", "....")
#: The frames that go with them.
_DASHES: dict[str, Any] = {"": "solid", "////": (0, (2.2, 1.2)), "....": (0, (0.8, 0.8))}
#: Height of a line of a key in inches.
KEY_LINE = 0.24


class Style(NamedTuple):
    """How the region of a class is filled."""

    color: str
    hatch: str

    @property
    def ink(self) -> str:
        """The colour of text on it."""
        red, green, blue = (int(self.color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#111111"


def styles_of(classes: Iterable[int], others: Iterable[int] = ()) -> dict[int, Style]:
    """A style for each class: the same in every picture that does not have more classes than there are styles.

    Args:
        classes: Classes that need one. Where they are too many, several have the same.
        others: Classes that get one if there are enough for all.

    Example:
        >>> styles_of([3, 11])[11]
        Style(color='#d55e00', hatch='////')
    """
    choices = [Style(color, hatch) for hatch in _HATCHES for color in _COLORS]
    needed = sorted(set(classes))
    more = sorted(set(others).difference(needed))
    styles: dict[int, Style] = {}
    free = set(range(len(choices)))
    for number in needed + (more if len(needed) + len(more) <= len(choices) else []):
        slot = number % len(choices)
        while free and slot not in free:
            slot = (slot + 1) % len(choices)
        free.discard(slot)
        styles[number] = choices[slot]
    return dict(sorted(styles.items()))


def name_of(number: int, class_names: Sequence[str] | None) -> str:
    """The name of a class, or its number where it has none."""
    return class_name([number], 0, class_names)


class Canvas:
    """A figure that is drawn on in inches from its left and upper edges."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)

    def title(self, title: str, note: str) -> None:
        """The title, and a smaller line below it."""
        size = next((size for size in (12, 11, 10) if text_width(title, size, "normal") <= self.width - 0.4), 9)
        self.text(self.width / 2, 0.27, title, self.width - 0.4, size)
        self.text(self.width / 2, 0.52, note, self.width - 0.4, 8.5, color=MUTED)

    def text(self, x: float, y: float, text: str, width: float = np.inf, size: float = 8, **style: Any) -> None:
        """A line of text, its middle at y, shortened to a width."""
        text = fit(text, width, size, style.get("fontweight", "normal")) if np.isfinite(width) else text
        style = {"ha": "center", "va": "center", "color": DARK, **style}
        self.axes.text(x, y, text, fontsize=size, parse_math=False, **style)

    def box(self, left: float, upper: float, width: float, height: float, style: Style) -> None:
        """A filled rectangle."""
        from matplotlib.patches import Rectangle

        look: dict[str, Any] = {"facecolor": style.color, "edgecolor": "#ffffffcc", "linewidth": 0}
        self.axes.add_patch(Rectangle((left, upper), width, height, hatch=style.hatch or None, **look))

    def frame(
        self, left: float, upper: float, width: float, height: float, line: float, style: Style | None = None
    ) -> None:
        """The outline of a rectangle; in the colour of a class if given, broken where its filling has a pattern."""
        from matplotlib.patches import Rectangle

        color, hatch = (DARK, "") if style is None else style
        if hatch:
            self.axes.add_patch(Rectangle((left, upper), width, height, fc="none", ec="white", linewidth=line))
        look: dict[str, Any] = {"linewidth": line, "linestyle": _DASHES[hatch]}
        self.axes.add_patch(Rectangle((left, upper), width, height, fc="none", ec=color, **look))

    def image(
        self, image: npt.NDArray[Any], left: float, upper: float, side: float, style: Style | None = None
    ) -> None:
        """A thumbnail in the middle of a square, framed."""
        height, width = (side * length / max(image.shape[:2]) for length in image.shape[:2])
        left, upper = left + (side - width) / 2, upper + (side - height) / 2
        extent = (left, left + width, upper + height, upper)
        self.axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
        self.frame(left, upper, width, height, 0.5 if style is None else 2.2, style)

    def marker(self, x: float, y: float, *, hollow: bool) -> None:
        """A small triangle that points up."""
        face = "white" if hollow else DARK
        self.axes.plot([x], [y], "^", ms=3.6, mfc=face, mec=DARK, mew=0.7)


#: What a line of a key explains, the style of a class or a marker (True for a hollow one), and its name.
KeyEntry = tuple[Style | bool, str]


def key_lines(entries: list[KeyEntry], width: float) -> list[list[tuple[float, KeyEntry]]]:
    """The entries of a key in lines of at most some width, each with how much room it takes."""
    lines: list[list[tuple[float, KeyEntry]]] = [[]]
    for what, name in entries:
        name = fit(name, 2.4, 8)
        room = 0.32 + text_width(name, 8, "normal") + 0.2
        if lines[-1] and sum(used for used, _ in lines[-1]) + room > width:
            lines.append([])
        lines[-1].append((room, (what, name)))
    return lines


def draw_key(canvas: Canvas, upper: float, lines: list[list[tuple[float, KeyEntry]]]) -> None:
    """The key at the lower edge of a figure."""
    for row, line in enumerate(lines):
        y = upper + (row + 0.5) * KEY_LINE
        x = (canvas.width - sum(room for room, _ in line) + 0.2) / 2
        for room, (what, name) in line:
            if isinstance(what, Style):
                canvas.box(x, y - 0.065, 0.24, 0.13, what)
                canvas.frame(x, y - 0.065, 0.24, 0.13, 0.4)
            else:
                canvas.marker(x + 0.12, y, hollow=what)
            canvas.text(x + 0.31, y, name, size=8, ha="left")
            x += room
