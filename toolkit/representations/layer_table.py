"""Which layers a network has and what each would give as a feature map, to choose one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import Subset
from tqdm.auto import tqdm

from toolkit.representations.base import EvaluationView
from toolkit.representations.feature_map import FeatureExtractor, first_tensor, layer_sequence, pooled
from toolkit.reproducibility import full_precision, preserved_rng
from toolkit.validation import check_vectors, invalid

#: Fewer images tell nothing about neighbours.
_FEWEST = 2


@dataclass(frozen=True)
class LayerRow:
    """One layer of a network and what it gives for an image.

    Attributes:
        name: As `FeatureExtractor(layer=...)` takes it.
        index: The number that it takes too, where the network is a sequence of layers and this is one of them.
        kind: The layer's class.
        shape: Of its output for one image, without the batch: (channels, H, W) of a feature map, (T, C) of tokens.
        n_pooled: Numbers an image with `pool="mean"`.
        n_flattened: Numbers an image with `pool="flatten"`.
        effective_dimension: Directions that the pooled vectors of the sample really vary in: the participation ratio
            `(sum of l)^2 / sum of l^2` of the eigenvalues l of their covariance; 0 where all vectors are equal.
        neighbor_accuracy: Share of the sample's images whose most alike other image, by the cosine of the pooled
            vectors, has the same label; None without labels.
    """

    name: str
    index: int | None
    kind: str
    shape: tuple[int, ...]
    n_pooled: int
    n_flattened: int
    effective_dimension: float
    neighbor_accuracy: float | None


def layer_table(
    features: FeatureExtractor,
    dataset: Any,
    labels: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    n_images: int = 1000,
    seed: int = 0,
) -> list[LayerRow]:
    """Every layer of a network that gives one row an image, in the order in which they run.

    One pass over a sample of the images with a hook on every layer, in which feature maps are pooled at once. A layer
    that runs several times in a pass is shown as it is the last time, which is what `FeatureExtractor` takes.

    Args:
        features: Tells the network, its weights, the batch size and the device; its `layer` does not matter.
        dataset: The images, N of them, or an `EvaluationView`.
        labels: Shape (N,), or None.
        n_images: How many images to look at, all if there are fewer.
        seed: Of the sample.

    Raises:
        ValueError: If there are fewer than two images, labels do not fit, or a layer gives values that are not finite.

    References:
        The participation ratio as in Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement",
        bioRxiv 214262, 2017.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        >>> images = torch.utils.data.TensorDataset(torch.rand(10, 3, 8, 8))
        >>> rows = layer_table(FeatureExtractor(model, progress=False), images)
        >>> [(row.name, row.kind, row.shape, row.n_pooled, row.n_flattened) for row in rows]
        [('0', 'Conv2d', (4, 6, 6), 4, 144), ('1', 'ReLU', (4, 6, 6), 4, 144), ('2', 'Flatten', (144,), 144, 144)]
    """
    view = EvaluationView.of(dataset)
    if len(view) < _FEWEST:
        raise invalid("dataset", f"a data set of at least {_FEWEST} images", f"one of {len(view)}")
    if n_images < _FEWEST:
        raise invalid("n_images", f"at least {_FEWEST}", n_images)
    if labels is not None and len(labels) != len(view):
        raise invalid("labels", f"one for each of the {len(view)} images", f"{len(labels)} labels")
    count = min(n_images, len(view))
    chosen = np.sort(np.random.default_rng(seed).choice(len(view), count, replace=False))
    sample = EvaluationView(
        Subset(view.dataset, chosen.tolist()),
        batch_transform=view.batch_transform,
        collate_fn=view.collate_fn,
        num_workers=view.num_workers,
        device=view.device,
    )
    codes = None
    if labels is not None:
        codes = np.unique([str(labels[index]) for index in chosen], return_inverse=True)[1]
    with preserved_rng():
        found, places = _vectors_of_all_layers(features, sample)
    return [
        LayerRow(
            name,
            places.get(name),
            kind,
            shape,
            vectors.shape[1],
            int(np.prod(shape, dtype=np.int64)),
            _effective_dimension(vectors),
            None if codes is None else _neighbor_accuracy(vectors, codes),
        )
        for name, (kind, shape, vectors) in found.items()
    ]


def _vectors_of_all_layers(
    features: FeatureExtractor, view: EvaluationView
) -> tuple[dict[str, tuple[str, tuple[int, ...], npt.NDArray[np.float32]]], dict[str, int]]:
    """For each layer that gives a row an image: its class, the shape of a row, and the pooled vectors.

    Beside these, the places of layers that are numbered.
    """
    model, transform = features.network()
    device = features.device_for(view)
    model.to(device)
    caught: dict[str, tuple[tuple[int, ...], torch.Tensor]] = {}
    blocks: dict[str, list[npt.NDArray[np.float32]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    order: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.ndim:
                caught.pop(name, None)  # a layer that runs again moves behind those that ran meanwhile
                caught[name] = tuple(tensor.shape), pooled(tensor, "mean")

        return hook

    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name}
    with ExitStack() as stack, full_precision(), torch.inference_mode():
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(hook_for(name)).remove)
        bar = stack.enter_context(tqdm(total=len(view), unit="img", desc="layers", disable=not features.progress))
        for images in features.images(view, transform, device):
            caught.clear()
            model(images)
            for name, (shape, vectors) in caught.items():
                if shape[0] == len(images) == len(vectors):
                    blocks.setdefault(name, []).append(vectors.cpu().numpy())
                    shapes.setdefault(name, shape[1:])
            order = order or list(caught)
            bar.update(len(images))
    result = {}
    for name in order:
        parts = blocks.get(name, [])
        if sum(map(len, parts)) == len(view) and len({part.shape[1] for part in parts}) == 1:
            result[name] = kinds[name], shapes[name], check_vectors(np.concatenate(parts), f"layer {name}")
    return result, {name: place for place, (name, _) in enumerate(layer_sequence(model))}


def _effective_dimension(vectors: npt.NDArray[np.float32]) -> float:
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    squares = float((gram**2).sum())
    return float(np.trace(gram)) ** 2 / squares if squares > 0 else 0.0


def _neighbor_accuracy(vectors: npt.NDArray[np.float32], codes: npt.NDArray[np.int64]) -> float:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    return float((codes[cosine.argmax(axis=1)] == codes).mean())
