"""Drawings of streets with traffic signs, and of other things, from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from toolkit.validation import invalid

__all__ = ["SIGN_NAMES", "check_size", "draw_outlier", "draw_scene", "picture_of"]

#: The signs by class, and how often each is drawn: the last one seldom.
SIGN_NAMES = ("speed limit", "crossing", "yield", "stop", "priority")
_SIGN_SHARES = (0.36, 0.27, 0.2, 0.14, 0.03)
#: How often a scene has no sign, one sign, ... (fewer where there is no room for another).
_COUNT_SHARES = (0.15, 0.38, 0.29, 0.13, 0.05)
_LEAST_SIDE = 48
#: Scenes are drawn this many times as large, and scaled down.
_OVERSAMPLING = 2
#: Places tried for a sign before it is left out.
_TRIES = 60

Boxes = npt.NDArray[np.float32]
_Pixels = npt.NDArray[np.float32]
_Colour = tuple[float, float, float]
_Points = Sequence[tuple[float, float]]

_BLACK, _WHITE = (25, 25, 25), (245, 245, 245)
_RED, _BLUE, _YELLOW = (200, 25, 35), (25, 75, 170), (250, 195, 20)


@dataclass(frozen=True)
class _Light:
    """A time of day: colours of the sky at the top and at the horizon, and the share of light that things reflect."""

    top: _Colour
    horizon: _Colour
    ambient: _Colour
    signs: float


_LIGHTS = {
    "day": _Light((75, 135, 215), (195, 218, 240), (1.0, 1.0, 0.98), 1.0),
    "overcast": _Light((150, 158, 168), (205, 208, 212), (0.82, 0.84, 0.87), 0.9),
    "dusk": _Light((75, 75, 135), (250, 170, 105), (0.82, 0.62, 0.55), 0.85),
    "night": _Light((8, 10, 28), (32, 34, 58), (0.3, 0.32, 0.42), 0.75),
}
_LIGHT_SHARES = (0.45, 0.25, 0.15, 0.15)


@dataclass(frozen=True)
class _Camera:
    """A pinhole over the road: metres to the right, above the road and ahead become pixels."""

    width: int
    height: int
    focal: float
    eye: float
    vanishing: float
    horizon: float

    def see(self, right: float, up: float, ahead: float) -> tuple[float, float]:
        """The pixel of a point."""
        return (
            self.vanishing + self.focal * right / ahead,
            self.horizon + self.focal * (self.eye - up) / ahead,
        )


@dataclass
class _Canvas:
    """What a scene is drawn with, and in which light."""

    rng: np.random.Generator
    draw: ImageDraw.ImageDraw
    camera: _Camera
    light: _Light
    is_night: bool

    def seen(self, colour: Any) -> tuple[int, int, int]:
        """A colour in this light."""
        return _rgb(np.multiply(colour, self.light.ambient))

    def fill(self, corners: Sequence[tuple[float, float, float]], colour: Any, *, shines: bool = False) -> None:
        """Fill the polygon between points of the street; what shines does not need light."""
        points = [self.camera.see(*corner) for corner in corners]
        self.draw.polygon(points, _rgb(colour) if shines else self.seen(colour))


def draw_scene(seed: int | np.random.Generator, size: Sequence[int] = (240, 320)) -> tuple[Image.Image, Boxes]:
    """Draw a street with no, one or several traffic signs.

    Time of day, road, buildings, trees and cars are drawn at random too. Signs stand beside the road, facing the camera
    or nearly so; none covers another.

    Args:
        seed: Decides everything: the same seed draws the same scene. A generator is drawn from.
        size: Height and width in pixels.

    Returns:
        The picture, and its boxes: float32 of shape (n, 5), class (an index into `SIGN_NAMES`), centre x, centre y,
        width and height, the latter four in [0, 1] of the picture.

    Raises:
        ValueError: If a side is below 48 pixels.

    Example:
        >>> picture, boxes = draw_scene(seed=4)
        >>> picture.size, [SIGN_NAMES[int(row[0])] for row in boxes]
        ((320, 240), ['yield', 'speed limit'])
    """
    height, width = check_size(size)
    rng = np.random.default_rng(seed)
    kind = list(_LIGHTS)[rng.choice(len(_LIGHTS), p=_LIGHT_SHARES)]
    light = _LIGHTS[kind]
    large_width, large_height = width * _OVERSAMPLING, height * _OVERSAMPLING
    camera = _Camera(
        large_width,
        large_height,
        focal=large_width * rng.uniform(0.75, 1.0),
        eye=rng.uniform(1.3, 2.1),
        vanishing=large_width * rng.uniform(0.3, 0.7),
        horizon=large_height * rng.uniform(0.4, 0.56),
    )
    image = _sky(rng, camera, light, kind)
    canvas = _Canvas(rng, ImageDraw.Draw(image), camera, light, kind == "night")
    road = rng.uniform(2.3, 3.3)
    is_town = rng.random() < 0.65
    _draw_ground(canvas, road, is_town)
    _draw_sides(canvas, road, is_town)
    _draw_cars(canvas, road)
    boxes = _draw_signs(canvas, road)
    pixels = np.asarray(image.reduce(_OVERSAMPLING), np.float32)
    if canvas.is_night:
        pixels = pixels * _headlights(camera, height, width)
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(1.5, 4)
    return picture_of(pixels + grain), boxes


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width, if scenes can be drawn so small."""
    if isinstance(size, (str, int)) or len(size) != 2:
        raise invalid("size", "the height and width of the pictures", size)
    height, width = (int(side) for side in size)
    if min(height, width) < _LEAST_SIDE:
        raise invalid("size", f"at least {_LEAST_SIDE} pixels high and wide", tuple(size))
    return height, width


def draw_outlier(rng: np.random.Generator, size: Sequence[int], kind: int) -> Image.Image:
    """A picture of no street, of one of six kinds in turn."""
    height, width = size
    first, second = rng.uniform(0, 255, (2, 3))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind % 6 == 0:  # a gradient
        weight = (along - along.min()) / np.ptp(along)
    elif kind % 6 == 1:  # noise
        weight = rng.random((height, width, 1)) ** rng.uniform(0.4, 2.5)
        return picture_of(first + weight * (second - first))
    elif kind % 6 == 2:  # a room
        return _draw_room(rng, height, width)
    elif kind % 6 == 3:  # stripes
        weight = (np.sin(along * rng.uniform(40, 90)) > 0).astype(float)
    elif kind % 6 == 4:  # rings
        distance = np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.6))
        weight = 0.5 + 0.5 * np.sin(distance * rng.uniform(25, 60))
    else:  # blotches
        blotches = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        return blotches.resize((width, height), Image.Resampling.BICUBIC)
    return picture_of(first + weight[..., None] * (second - first))


def _draw_room(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Walls, a floor, and furniture as blocks."""
    wall, floor = rng.uniform(150, 235, 3), rng.uniform(70, 150, 3)
    image = Image.new("RGB", (width, height), _rgb(wall))
    draw = ImageDraw.Draw(image)
    edge, corner = height * rng.uniform(0.6, 0.75), width * rng.uniform(0.3, 0.7)
    draw.polygon([(corner, 0), (width, 0), (width, height), (corner, edge)], _rgb(wall * 0.8))
    draw.polygon([(0, height), (0, edge * 1.1), (corner, edge), (width, edge * 1.15), (width, height)], _rgb(floor))
    for _ in range(7):
        left, top = rng.uniform(0, 0.85) * width, rng.uniform(0.15, 0.7) * height
        right, bottom = left + rng.uniform(0.08, 0.3) * width, top + rng.uniform(0.08, 0.35) * height
        colour = rng.uniform(40, 220, 3)
        depth = 0.04 * width
        draw.polygon(
            [(left, top), (left + depth, top - depth), (right + depth, top - depth), (right, top)], _rgb(colour * 1.15)
        )
        draw.polygon(
            [(right, top), (right + depth, top - depth), (right + depth, bottom - depth), (right, bottom)],
            _rgb(colour * 0.65),
        )
        draw.rectangle((left, top, right, bottom), _rgb(colour))
    return image


def _sky(rng: np.random.Generator, camera: _Camera, light: _Light, kind: str) -> Image.Image:
    """The whole picture as sky, with clouds, or with stars at night."""
    rows = np.clip(np.arange(camera.height) / camera.horizon, 0, 1)[:, None, None]
    colours = np.asarray(light.top) * (1 - rows) + np.asarray(light.horizon) * rows
    image = picture_of(colours * rng.uniform(0.9, 1.08)).resize((camera.width, camera.height))
    draw = ImageDraw.Draw(image)
    if kind == "night":
        for _ in range(rng.integers(10, 40)):
            _disc(draw, rng.uniform(0, camera.width), rng.uniform(0, camera.horizon), 1, (200, 200, 215))
        return image
    cloud = np.asarray(light.horizon) * (0.9 if kind == "overcast" else 1.03)
    for _ in range(rng.integers(0, 7)):
        x, y = rng.uniform(0, camera.width), rng.uniform(0, 0.8) * camera.horizon
        for _ in range(6):
            across, down = rng.uniform(0.03, 0.12) * camera.width, rng.uniform(0.01, 0.035) * camera.height
            left, top = x + rng.normal(0, 0.07) * camera.width, y + rng.normal(0, 0.012) * camera.height
            draw.ellipse((left - across, top - down, left + across, top + down), _rgb(cloud))
    return image


def _headlights(camera: _Camera, height: int, width: int) -> _Pixels:
    """How much brighter headlights make each pixel, most of all the road in front."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across = (x / width - camera.vanishing / camera.width) / 0.35
    down = (y / height - 0.9) / 0.2
    beam: _Pixels = 1 + 1.5 * np.exp(-(across**2) - down**2)[..., None]
    return beam


def _draw_ground(canvas: _Canvas, road: float, is_town: bool) -> None:
    """The land on both sides, hills or roofs far away, pavements, the road and its marks."""
    rng, draw, camera = canvas.rng, canvas.draw, canvas.camera
    far, near = 300.0, 0.9
    land = np.asarray((140, 135, 128) if is_town else (95, 135, 65)) * rng.uniform(0.8, 1.15)
    draw.rectangle((0, camera.horizon, camera.width, camera.height), canvas.seen(land))
    distant = np.asarray((125, 130, 140) if is_town else (95, 125, 105)) * rng.uniform(0.85, 1.1)
    x = 0.0
    while x < camera.width:
        step, rise = rng.uniform(0.03, 0.14) * camera.width, rng.uniform(0.01, 0.09) * camera.height
        if is_town:
            draw.rectangle(
                (x, camera.horizon - rise, x + step, camera.horizon), canvas.seen(distant * rng.uniform(0.9, 1.1))
            )
        else:
            draw.ellipse((x - step, camera.horizon - rise, x + 2 * step, camera.horizon + rise), canvas.seen(distant))
        x += step
    if not is_town:
        draw.rectangle((0, camera.horizon + 1, camera.width, camera.height), canvas.seen(land))
    pavement = np.asarray((172, 168, 160) if is_town else (150, 140, 110)) * rng.uniform(0.85, 1.1)
    asphalt = np.asarray((88, 88, 92)) * rng.uniform(0.75, 1.3)
    side = 2.4 if is_town else 0.6
    for colour, half in ((pavement, road + side), ((205, 203, 198), road + 0.18), (asphalt, road)):
        canvas.fill([(-half, 0, near), (-half, 0, far), (half, 0, far), (half, 0, near)], colour)
    mark = (225, 225, 220)
    period, length = rng.uniform(5, 9), rng.uniform(1.5, 3.5)
    place = near + rng.uniform(0, period)
    while place < 70:
        end = place + length
        canvas.fill([(-0.07, 0, place), (-0.07, 0, end), (0.07, 0, end), (0.07, 0, place)], mark)
        place += period
    if rng.random() < 0.5:
        for edge in (-road + 0.25, road - 0.25):
            canvas.fill([(edge - 0.06, 0, near), (edge, 0, far), (edge, 0, far), (edge + 0.06, 0, near)], mark)
    if rng.random() < 0.25:  # stripes across, for people to walk on
        start = rng.uniform(4, 14)
        for left in np.arange(-road + 0.3, road - 0.5, 1.0):
            canvas.fill(
                [(left, 0, start), (left, 0, start + 2.5), (left + 0.5, 0, start + 2.5), (left + 0.5, 0, start)], mark
            )


def _draw_sides(canvas: _Canvas, road: float, is_town: bool) -> None:
    """Houses, trees and lamps along both sides, those far away first."""
    rng = canvas.rng
    things: list[tuple[float, str, float]] = []
    for side in (-1, 1):
        has_houses = rng.random() < (0.95 if is_town else 0.3)
        gap = rng.uniform(0.2, 2) if is_town else rng.uniform(8, 25)
        place = rng.uniform(2, 9)
        while has_houses and place < 75:
            length = rng.uniform(6, 15)
            things.append((place, "house", side * length))
            place += length + gap * rng.uniform(0.3, 1.7)
        spacing = rng.uniform(7, 16) if is_town else rng.uniform(3, 9)
        place = rng.uniform(5, 12)
        while rng.random() < 0.9 and place < 65:
            things.append((place, "tree", side))
            place += spacing * rng.uniform(0.5, 1.5)
    if is_town and rng.random() < 0.7:
        side, place = rng.choice((-1, 1)), rng.uniform(7, 12)
        while place < 70:
            things.append((place, "lamp", side))
            place += 18
    wall = road + rng.uniform(3.2, 7)
    for ahead, kind, size in sorted(things, reverse=True):
        if kind == "house":
            _draw_house(canvas, math.copysign(wall, size), ahead, abs(size), is_town)
        elif kind == "tree":
            right = math.copysign((road + 2.8 if is_town else road + rng.uniform(1.5, 12)), size)
            _draw_tree(canvas, right, ahead)
        else:
            _draw_lamp(canvas, math.copysign(road + 0.5, size), ahead)


def _draw_house(canvas: _Canvas, right: float, ahead: float, length: float, is_town: bool) -> None:
    """A house: the wall along the road, the wall that faces the camera, and windows."""
    rng = canvas.rng
    floors = int(rng.integers(2, 6) if is_town else rng.integers(1, 3))
    top = 3.1 * floors + rng.uniform(0.3, 1.2)
    colour = np.asarray(_FACADES[rng.integers(len(_FACADES))]) * rng.uniform(0.8, 1.1)
    out, end = right + math.copysign(12, right), ahead + length
    canvas.fill([(right, 0, ahead), (right, top, ahead), (out, top, ahead), (out, 0, ahead)], colour)
    canvas.fill([(right, 0, ahead), (right, top, ahead), (right, top, end), (right, 0, end)], colour * 0.82)
    roof = np.asarray((110, 60, 45)) * rng.uniform(0.7, 1.2)
    if floors < 4:
        rise = rng.uniform(1, 2.4)
        ridge = right + math.copysign(6, right)
        canvas.fill([(right, top, ahead), (ridge, top + rise, ahead), (out, top, ahead)], colour * 0.95)
        canvas.fill(
            [(right, top, ahead), (ridge, top + rise, ahead), (ridge, top + rise, end), (right, top, end)], roof
        )
    glass = np.asarray((70, 85, 105)) * rng.uniform(0.7, 1.2)
    columns = max(2, int(length / rng.uniform(2.2, 3.2)))
    if ahead > 45:
        return  # too far away for windows to be seen
    for floor in range(floors):
        low, high = 3.1 * floor + 1.0, 3.1 * floor + 2.5
        for column in range(columns):
            start = ahead + (column + 0.25) * length / columns
            stop = start + 0.5 * length / columns
            _draw_window(
                canvas, [(right, low, start), (right, high, start), (right, high, stop), (right, low, stop)], glass
            )
        for column in range(4):
            start = right + math.copysign(3.0 * column + 0.8, right)
            stop = start + math.copysign(1.3, right)
            _draw_window(
                canvas, [(start, low, ahead), (start, high, ahead), (stop, high, ahead), (stop, low, ahead)], glass
            )


_FACADES = (
    (205, 190, 160), (170, 95, 75), (225, 215, 200), (150, 150, 155),
    (215, 180, 120), (140, 165, 180), (190, 140, 110), (120, 110, 100),
)  # fmt: skip


def _draw_window(canvas: _Canvas, corners: Sequence[tuple[float, float, float]], glass: npt.NDArray[Any]) -> None:
    is_lit = canvas.is_night and canvas.rng.random() < 0.3
    canvas.fill(corners, (230, 190, 110) if is_lit else glass, shines=is_lit)


def _draw_tree(canvas: _Canvas, right: float, ahead: float) -> None:
    """A trunk under a crown of round patches."""
    rng, camera = canvas.rng, canvas.camera
    scale = camera.focal / ahead
    crown, stem = rng.uniform(2.4, 4), rng.uniform(1.0, 1.7)
    x, foot = camera.see(right, 0, ahead)
    _, middle = camera.see(right, crown, ahead)
    half = 0.14 * scale
    canvas.draw.rectangle((x - half, middle, x + half, foot), canvas.seen((85, 65, 45)))
    green = np.asarray((60, 110, 45)) * rng.uniform(0.6, 1.25) * np.asarray((rng.uniform(0.8, 1.7), 1, 0.9))
    for step in range(9):
        radius = stem * scale * rng.uniform(0.45, 0.75)
        away = rng.normal(0, 0.45, 2) * stem * scale
        _disc(canvas.draw, x + away[0], middle + away[1], radius, canvas.seen(green * (0.75 + 0.05 * step)))


def _draw_lamp(canvas: _Canvas, right: float, ahead: float) -> None:
    """A street lamp, which shines at night."""
    camera = canvas.camera
    scale = camera.focal / ahead
    inner = right - math.copysign(1.3, right)
    foot, head, arm = (camera.see(x, up, ahead) for x, up in ((right, 0), (right, 6), (inner, 6.2)))
    canvas.draw.line([foot, head, arm], canvas.seen((75, 78, 82)), max(1, round(0.12 * scale)))
    if canvas.is_night:
        _disc(canvas.draw, *arm, max(1.5, 0.25 * scale), (255, 235, 180))


def _draw_cars(canvas: _Canvas, road: float) -> None:
    """Up to three cars: ahead in the right lane, or coming along the left one."""
    rng = canvas.rng
    for ahead in sorted(rng.uniform(7, 40, rng.integers(0, 4)), reverse=True):
        is_coming = rng.random() < 0.5
        middle = (-1 if is_coming else 1) * road * rng.uniform(0.4, 0.6)
        paint = np.asarray(_PAINTS[rng.integers(len(_PAINTS))]) * rng.uniform(0.8, 1.1)
        lamp = (245, 240, 210) if is_coming else (150, 20, 20)
        # Left, right, lower and upper edge of each part in metres; how far its upper corners are moved in; its colour.
        parts: list[tuple[float, float, float, float, float, Any]] = [
            (-0.95, 0.95, 0.0, 0.12, 0.0, (45, 45, 48)),
            (-0.7, -0.48, 0.0, 0.5, 0.0, _BLACK),
            (0.48, 0.7, 0.0, 0.5, 0.0, _BLACK),
            (-0.88, 0.88, 0.25, 0.95, 0.0, paint),
            (-0.85, 0.85, 0.95, 1.45, 0.25, paint * 0.9),
            (-0.7, 0.7, 0.97, 1.36, 0.18, (55, 65, 78)),
            (-0.82, -0.52, 0.6, 0.8, 0.0, lamp),
            (0.52, 0.82, 0.6, 0.8, 0.0, lamp),
        ]
        for left, right, low, high, inward, colour in parts:
            corners = [(left, low), (left + inward, high), (right - inward, high), (right, low)]
            shines = canvas.is_night and colour is lamp
            canvas.fill([(middle + x, up, ahead) for x, up in corners], colour, shines=shines)


_PAINTS = ((200, 200, 205), (40, 42, 48), (160, 30, 35), (35, 70, 130), (120, 125, 128), (230, 230, 228), (60, 95, 70))


def _draw_signs(canvas: _Canvas, road: float) -> Boxes:
    """Signs on posts beside the road; returns their boxes."""
    rng, draw, camera = canvas.rng, canvas.draw, canvas.camera
    placed: list[tuple[float, float, float]] = []
    taken: list[tuple[float, float]] = []
    for _ in range(rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES)):
        for _ in range(_TRIES):
            ahead = rng.uniform(4, 11)
            right = rng.choice((-1, 1), p=(0.4, 0.6)) * (road + rng.uniform(0.2, 1.4))
            up = rng.uniform(1.9, 2.7)
            x, y = camera.see(right, up, ahead)
            half = 0.6 * camera.focal / ahead
            is_inside = half <= x <= camera.width - half and half <= y <= camera.height - half
            # Side by side, so that neither a sign nor its post covers another sign.
            if is_inside and all(abs(x - other) > half + other_half for other, other_half in taken):
                taken.append((x, half))
                placed.append((ahead, right, up))
                break
    rows = []
    for ahead, right, up in placed:
        kind = int(rng.choice(len(SIGN_NAMES), p=_SIGN_SHARES))
        middle, foot = camera.see(right, up, ahead), camera.see(right, 0, ahead)
        scale = camera.focal / ahead
        shade = canvas.light.signs * rng.uniform(0.85, 1.02)
        draw.line([middle, foot], _rgb(np.multiply((120, 122, 125), shade)), max(1, round(0.08 * scale)))
        outline = _draw_sign(canvas, SIGN_NAMES[kind], middle, 0.55 * scale, shade)
        low, high = outline.min(axis=0), outline.max(axis=0)
        whole = (camera.width, camera.height)
        rows.append([kind, *((low + high) / 2 / whole), *((high - low) / whole)])
    return np.asarray(rows, np.float32).reshape(-1, 5)


def _draw_sign(
    canvas: _Canvas, name: str, middle: tuple[float, float], radius: float, shade: float
) -> npt.NDArray[np.float64]:
    """A sign, turned a little; returns the pixels of its outline."""
    rng, draw = canvas.rng, canvas.draw
    turn, width = math.radians(rng.uniform(-5, 5)), rng.uniform(0.82, 1)
    # Where the axes end up: seen a little from the side, and leaning.
    axes = np.asarray([[width * math.cos(turn), width * math.sin(turn)], [-math.sin(turn), math.cos(turn)]])

    def at(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        pixels: npt.NDArray[np.float64] = np.asarray(points) @ axes * radius + middle
        return pixels

    def fill(points: npt.ArrayLike, colour: _Colour) -> npt.NDArray[np.float64]:
        pixels = at(points)
        draw.polygon(list(map(tuple, pixels)), _rgb(np.multiply(colour, shade)))
        return pixels

    def stroke(lines: Sequence[_Points], colour: _Colour, width: float) -> None:
        for line in lines:
            pixels = list(map(tuple, at(line)))
            draw.line(pixels, _rgb(np.multiply(colour, shade)), max(1, round(width * radius)), joint="curve")

    if name == "speed limit":
        outline = fill(_regular(28), _RED)
        fill(0.76 * _regular(28), _WHITE)
        stroke(_writing(f"{rng.choice((3, 5, 6, 7, 8))}0", 0.4, 0.66), _BLACK, 0.16)
    elif name == "crossing":
        outline = fill([(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)], _BLUE)
        fill([(0, -0.72), (0.74, 0.66), (-0.74, 0.66)], _WHITE)
        fill(0.12 * _regular(10) + (0, -0.3), _BLACK)
        stroke(_WALKER, _BLACK, 0.13)
    elif name == "yield":
        outline = fill([(-1, -0.85), (1, -0.85), (0, 0.95)], _RED)
        fill([(-0.56, -0.59), (0.56, -0.59), (0, 0.42)], _WHITE)
    elif name == "stop":
        outline = fill(_regular(8, math.pi / 8), _WHITE)
        fill(0.9 * _regular(8, math.pi / 8), _RED)
        stroke(_writing("STOP", 0.26, 0.5), _WHITE, 0.12)
    else:
        outline = fill(_regular(4), _WHITE)
        fill(0.72 * _regular(4), _YELLOW)
    return outline


#: Legs and arms.
_WALKER = (
    [(0, -0.2), (0, 0.2), (-0.2, 0.58)],
    [(0, 0.2), (0.2, 0.58)],
    [(-0.24, 0.12), (0, -0.08), (0.22, 0.1)],
)


def _regular(corners: int, start: float = 0.0) -> npt.NDArray[np.float64]:
    """The corners of a regular polygon of radius 1 about the origin."""
    angles = start + 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


#: Digits and letters as lines between points of a grid, two wide and four high, so that no font is needed.
_GLYPHS: dict[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "0": (((0, 0), (2, 0), (2, 4), (0, 4), (0, 0)),),
    "3": (((0, 0), (2, 0), (2, 4), (0, 4)), ((0, 2), (2, 2))),
    "5": (((2, 0), (0, 0), (0, 2), (2, 2), (2, 4), (0, 4)),),
    "6": (((2, 0), (0, 0), (0, 4), (2, 4), (2, 2), (0, 2)),),
    "7": (((0, 0), (2, 0), (1, 4)),),
    "8": (((0, 0), (2, 0), (2, 4), (0, 4), (0, 0)), ((0, 2), (2, 2))),
    "S": (((2, 0), (0, 0), (0, 2), (2, 2), (2, 4), (0, 4)),),
    "T": (((0, 0), (2, 0)), ((1, 0), (1, 4))),
    "O": (((0, 0), (2, 0), (2, 4), (0, 4), (0, 0)),),
    "P": (((0, 4), (0, 0), (2, 0), (2, 2), (0, 2)),),
}


def _writing(text: str, width: float, height: float) -> list[_Points]:
    """The lines of characters of that size, about the origin."""
    pitch = 1.4 * width
    start = -pitch * (len(text) - 1) / 2
    return [
        [(start + place * pitch + (x / 2 - 0.5) * width, (y / 4 - 0.5) * height) for x, y in line]
        for place, character in enumerate(text)
        for line in _GLYPHS[character]
    ]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Any) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), _rgb(colour))


def _rgb(colour: Any) -> tuple[int, int, int]:
    """A colour as Pillow takes it."""
    red, green, blue = (int(min(max(value, 0), 255)) for value in colour)
    return red, green, blue


def picture_of(pixels: npt.NDArray[Any]) -> Image.Image:
    """Values from 0 to 255 as a picture; what lies outside is cut off."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
