"""How hard each image is, told by the training itself: EL2N and forgetting events, counted and in files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from toolkit.cache import check_writable
from toolkit.validation import check_choice, invalid

#: The scores that a training tells: the mean norm of the error vector early on, and how often an image was forgotten.
SCORE_NAMES = ("el2n", "forgetting")
_FILE, _MANIFEST = "scores.npz", "scores.json"


def error_norms(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The norm of each image's error vector, `|softmax(logits) - onehot(label)|`.

    Args:
        logits: Shape (N, classes).
        labels: Shape (N,), int64.

    Returns:
        float32 of shape (N,), in [0, sqrt(2)], on the same device.

    Example:
        >>> error_norms(torch.tensor([[0.0, 0.0], [9.0, -9.0]]), torch.tensor([0, 1])).round(decimals=4)
        tensor([0.7071, 1.4142])
    """
    errors = logits.detach().float().softmax(dim=1)
    errors.scatter_add_(1, labels[:, None], -torch.ones_like(errors[:, :1]))
    norms: torch.Tensor = torch.linalg.vector_norm(errors, dim=1)
    return norms


@dataclass
class ScoreCounter:
    """Counts the scores of N images from what a network says of them each time it is trained on them.

    EL2N is the mean of `error_norms` over the visits that count for it. A forgetting event is an image classified
    wrongly that was right at its visit before; an image that never was right is forgotten infinitely often.

    Attributes:
        n_images: N.

    References:
        Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training", arXiv
        2107.07075. Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", arXiv
        1812.05159.

    Example:
        >>> counter = ScoreCounter(2)
        >>> for right in ([True, False], [False, False], [True, False], [False, False]):
        ...     counter.add([0, 1], [0.5, 1.0], right, counts_for_el2n=True)
        >>> counter.scores()
        {'el2n': array([0.5, 1. ], dtype=float32), 'forgetting': array([ 2., inf], dtype=float32)}
    """

    n_images: int

    def __post_init__(self) -> None:
        self._norms = np.zeros(self.n_images)
        self._visits = np.zeros(self.n_images, np.int64)
        self._forgotten = np.zeros(self.n_images, np.int64)
        self._was_right = np.zeros(self.n_images, bool)
        self._ever_right = np.zeros(self.n_images, bool)

    def add(self, indices: Any, norms: Any, right: Any, *, counts_for_el2n: bool) -> None:
        """Count one visit of some images.

        Args:
            indices: Which, shape (k,).
            norms: Their `error_norms`, shape (k,).
            right: Whether each was classified as its label says, shape (k,).
            counts_for_el2n: Whether the visit is early enough.
        """
        indices, right = np.asarray(indices, np.int64), np.asarray(right, bool)
        if counts_for_el2n:
            np.add.at(self._norms, indices, np.asarray(norms, np.float64))
            np.add.at(self._visits, indices, 1)
        self._forgotten[indices] += self._was_right[indices] & ~right
        self._was_right[indices] = right
        self._ever_right[indices] |= right

    def scores(self) -> dict[str, npt.NDArray[np.float32]]:
        """The scores so far; an image without a visit has the EL2N NaN."""
        with np.errstate(invalid="ignore", divide="ignore"):
            el2n = self._norms / self._visits
        forgetting = np.where(self._ever_right, self._forgotten, np.inf)
        return {"el2n": el2n.astype(np.float32), "forgetting": forgetting.astype(np.float32)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was counted, as tensors."""
        return {name: torch.from_numpy(value.copy()) for name, value in self.__dict__.items() if name != "n_images"}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what was counted before.

        Raises:
            ValueError: If it is of another number of images.
        """
        for name, value in state.items():
            if len(value) != self.n_images:
                raise invalid("state", f"of {self.n_images} images", f"one of {len(value)}")
            setattr(self, name, value.cpu().numpy().copy())


def el2n_epochs(n_epochs: int) -> range:
    """The epochs whose visits count for EL2N where nobody says: those from 5 % to 10 % of the training, at least one.

    Example:
        >>> el2n_epochs(200), el2n_epochs(10), el2n_epochs(1)
        (range(10, 20), range(1, 2), range(0, 1))
    """
    first = min(max(1, round(0.05 * n_epochs)), n_epochs - 1)
    return range(first, max(first + 1, round(0.1 * n_epochs)))


def save_scores(
    folder: str | Path, scores: dict[str, npt.NDArray[np.float32]], *, images: str | None, epochs: Sequence[int]
) -> Path:
    """Write the scores of a training into a folder, `scores.npz` and `scores.json`.

    Args:
        folder: The folder; made if need be.
        scores: Each of shape (N,), by their names.
        images: The fingerprint of the data set.
        epochs: The epochs that EL2N is the mean of.
    """
    folder = check_writable(Path(folder), "dirpath")
    manifest = {"images": images, "n_images": len(next(iter(scores.values()))), "el2n_epochs": list(epochs)}
    unfinished = folder / f".{os.getpid()}.tmp.npz"
    np.savez_compressed(unfinished, **scores)  # type: ignore[arg-type,unused-ignore]
    unfinished.replace(folder / _FILE)
    (folder / _MANIFEST).write_text(json.dumps(manifest) + "\n")
    return folder


def load_scores(folder: str | Path, name: str) -> tuple[npt.NDArray[np.float32], str | None]:
    """One of a training's scores, shape (N,), and the fingerprint of its images.

    Args:
        folder: The folder that `save_scores` wrote.
        name: `el2n` or `forgetting`.

    Raises:
        ValueError: If the folder has no scores, or none of that name.
    """
    check_choice("score", name, SCORE_NAMES)
    folder = Path(folder).expanduser()
    if not ((folder / _FILE).is_file() and (folder / _MANIFEST).is_file()):
        raise invalid("scores", "a folder that TrainingScoreWriter wrote, or one number an image", str(folder))
    with np.load(folder / _FILE, allow_pickle=False) as file:
        values: npt.NDArray[np.float32] = file[name]
    return values, json.loads((folder / _MANIFEST).read_text())["images"]
