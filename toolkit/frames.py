"""Images that are consecutive frames of videos, as their names tell, and how a selection lies along them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from toolkit.selection.protection import sequences_of

#: Frames that a sequence has at least, and how many of the steps from one to the next are alike in it at least.
_LEAST_FRAMES, _LEAST_ALIKE = 8, 0.6
_NUMBER = re.compile(r"[0-9]+$")


class Frames(NamedTuple):
    """A sequence of frames.

    Attributes:
        name: What its frames' names have in common.
        indices: Shape (n,), its frames in order.
    """

    name: str
    indices: npt.NDArray[np.int64]


def videos_of(ids: Sequence[str] | None) -> list[Frames]:
    """The sequences that look like a video: eight images or more of one name with numbers that go up in even steps.

    Sequences are those of `temporal_gap`. Most steps, six in ten, must be alike: numbers of single images, some of
    which are missing, are no video.

    Args:
        ids: The images' names, or None.

    Returns:
        The sequences in the order of their first images.

    Example:
        >>> ids = [f"train/night_{k:03}.jpg" for k in range(9)]
        >>> ids += [f"train/{k}.jpg" for k in (1, 5, 6, 9, 11, 14, 18, 25)]
        >>> [(video.name, len(video.indices)) for video in videos_of(ids)]
        [('night', 9)]
    """
    if ids is None:
        return []
    found: list[tuple[tuple[str, ...], npt.NDArray[np.int64]]] = []
    for indices in sequences_of(ids, len(ids)):
        paths = [PurePosixPath(ids[index]) for index in indices.tolist()]
        numbers = [int(match[0]) for match in (_NUMBER.search(path.stem) for path in paths) if match is not None]
        if len(paths) < _LEAST_FRAMES or len(numbers) < len(paths):
            continue
        n_alike = max(Counter(np.diff(numbers).tolist()).values())
        if n_alike >= _LEAST_ALIKE * (len(paths) - 1):
            name = _NUMBER.sub("", paths[0].stem).rstrip("_-. ")
            found.append(((*paths[0].parent.parts, *([name] if name else [])), indices))
    shared = 0
    for folders in zip(*(parts[:-1] for parts, _ in found), strict=False):  # as deep as the names that are least deep
        if len(set(folders)) > 1:
            break
        shared += 1
    videos = [Frames("/".join(parts[shared:]) or "frames", indices) for parts, indices in found]
    return sorted(videos, key=lambda video: int(video.indices.min()))


def longest_gap(stays: npt.NDArray[np.bool_]) -> int:
    """How many frames in a row go at most.

    Args:
        stays: Shape (n,), in order.

    Example:
        >>> longest_gap(np.array([True, False, False, True, False]))
        2
    """
    edges = np.flatnonzero(np.concatenate([[True], stays, [True]]))
    return int(np.diff(edges).max()) - 1
