"""Which paths between images cross a decision boundary of the network that their features come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm

from toolkit.distributed import world
from toolkit.representations import EvaluationView, FeatureExtractor
from toolkit.reproducibility import preserved_rng
from toolkit.selection.recut import Cut

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]

#: Whether the path between each of some images and another one crosses a boundary.
Probe = Callable[[_Ints, _Ints], _Bools]

#: Images of a chunk of paths are held in at most this many bytes, and are at most so many pairs.
_CHUNK_BYTES = 1 << 28
_CHUNK_PAIRS = 1_024


class PathProber:
    """Tells whether the straight path between two images of a data set crosses a decision boundary of a network.

    The network is the copy that a `FeatureExtractor` works on, and the images are loaded as it loads them: without
    random augmentation, as the network takes them. Of each path `(num_points + 3) / 4` points are looked at first; gaps
    in which the margins leave room for a crossing are halved until points lie `1 / (num_points - 1)` apart (see
    `toolkit.boundary.probe_paths`). On CIFAR-10 that takes 5.6 forwards a path in place of 17 and finds the same
    crossings. A pair that was walked is remembered.

    Args:
        extractor: Gives the network, whose forward must return logits, and the images.
        dataset: The images, or an `EvaluationView`.
        num_points: How finely a path is searched.
        seed: For data sets that read their images with random augmentation that nobody could switch off.
        progress: Whether to show a progress bar.

    Attributes:
        n_pairs: Pairs that were walked.
        n_evaluations: Images that went through the network.

    Raises:
        ValueError: From the call, if the images differ in size or the network does not return logits.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
        >>> _ = network[1].weight.data.copy_(torch.tensor([[-1.0], [1.0]]))
        >>> images = torch.utils.data.TensorDataset(torch.tensor([-2.0, -1.0, 3.0]).reshape(3, 1, 1, 1))
        >>> probe = PathProber(FeatureExtractor(network, "0", cache=False), images, progress=False)
        >>> probe(np.array([0, 0]), np.array([1, 2]))
        array([False,  True])
    """

    def __init__(
        self, extractor: FeatureExtractor, dataset: Any, num_points: int = 17, *, seed: int = 0, progress: bool = True
    ) -> None:
        self.extractor = extractor
        self.view = EvaluationView.of(dataset)
        self.num_points = num_points
        self.seed = seed
        self.progress = progress
        self.n_pairs = 0
        self.n_evaluations = 0
        self._model, self._transform = extractor.network()
        self._device = extractor.device_for(self.view)
        self._model.to(self._device)
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, first: _Ints, second: _Ints) -> _Bools:
        """Whether the path of each pair crosses.

        Args:
            first: int64 of shape (P,), the images where paths start.
            second: int64 of shape (P,), those where they end.

        Returns:
            Shape (P,), bool.
        """
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        with preserved_rng(self.seed):
            self._walk(new)
        return np.array([self._known[pair] for pair in pairs], dtype=bool)

    def _walk(self, pairs: list[tuple[int, int]]) -> None:
        from toolkit.boundary import probe_paths

        done = 0
        bar = tqdm(total=len(pairs), unit="path", desc="paths", disable=not self.progress or world()[0] != 0)
        with bar:
            for images in self._images([image for pair in pairs for image in pair]):
                report = probe_paths(
                    self._model,
                    images[0::2],
                    images[1::2],
                    num_points=(self.num_points + 6) // 4,
                    tolerance=1 / (self.num_points - 1),
                    batch_size=self.extractor.batch_size,
                    device=self._device,
                )
                chunk = pairs[done : done + len(report)]
                self._known.update(zip(chunk, (report.num_crossings > 0).tolist(), strict=True))
                self.n_evaluations += report.n_evaluations
                done += len(report)
                bar.update(len(report))
        self.n_pairs += done

    def _images(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """The images of some pairs, one beside the other, in chunks that hold both of each pair."""
        if not indices:
            return
        view = EvaluationView(
            Subset(self.view.dataset, indices),
            batch_transform=self.view.batch_transform,
            collate_fn=self.view.collate_fn,
            num_workers=self.view.num_workers,
            device=self.view.device,
        )
        held: list[torch.Tensor] = []
        n_held = n_given = 0
        for batch in self.extractor.images(view, self._transform, self._device):
            if held and batch.shape[1:] != held[0].shape[1:]:
                shapes = f"{tuple(held[0].shape[1:])} and {tuple(batch.shape[1:])}"
                raise ValueError(f"Images must have one size to walk between them, got {shapes}. Resize them.")
            held.append(batch)
            n_held += len(batch)
            is_last = n_given + n_held == len(indices)
            most = min(_CHUNK_PAIRS, max(1, _CHUNK_BYTES // (2 * batch[0].nbytes)))
            if is_last or n_held >= 2 * most:
                images = torch.cat(held)
                whole = len(images) if is_last else len(images) // 2 * 2
                held = [images[whole:]] if whole < len(images) else []
                n_held = len(images) - whole
                n_given += whole
                yield images[:whole]


def keep_crossing(cut: Cut, probe: Probe) -> Cut:
    """The cut with those images kept whose path to their representative crosses a boundary.

    Args:
        cut: Who stays and who goes.
        probe: Whether paths cross.

    Returns:
        The cut with more images kept, which `boundary` marks; the groups are the same.
    """
    gone = np.flatnonzero(~cut.kept & (cut.representative >= 0))
    crossing = gone[probe(gone, cut.representative[gone])]
    boundary = np.zeros(len(cut.kept), dtype=bool)
    boundary[crossing] = True
    representative, distance = cut.representative.copy(), cut.distance.copy()
    representative[crossing], distance[crossing] = crossing, 0.0
    return replace(cut, kept=cut.kept | boundary, representative=representative, distance=distance, boundary=boundary)
