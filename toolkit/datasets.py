"""What a data set tells of its images without reading them: labels, and names to call them by."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from toolkit.representations.base import EvaluationView
from toolkit.reproducibility import preserved_rng

log = logging.getLogger(__name__)

_LABEL_KEYS = ("label", "labels", "target", "targets", "y")


def labels_of(dataset: Any) -> Sequence[Any] | None:
    """The label of every image, or None where the data set has none.

    Looks at `targets`, `labels` and `y`, at the second tensor of a `TensorDataset`, into `Subset`, `ConcatDataset` and
    views; at last reads every sample, which takes as long as loading the images.

    Args:
        dataset: Anything with `__len__` and `__getitem__`.

    Returns:
        A sequence of length N of integers, texts, or (several labels an image) sequences of them, in which a label
        repeats that several boxes of the image have.
    """
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        return None if inner is None else [inner[int(index)] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in _plain(part)]
    if isinstance(dataset, TensorDataset):
        has_labels = len(dataset.tensors) > 1 and not dataset.tensors[1].is_floating_point()
        return _plain(dataset.tensors[1]) if has_labels else None
    for name in ("targets", "labels", "y"):
        value = getattr(dataset, name, None)
        if value is not None and not callable(value) and hasattr(value, "__len__") and len(value) == len(dataset):
            return _plain(value)
    if isinstance(dataset, EvaluationView):
        return labels_of(dataset.dataset)
    return _read_labels(dataset)


def ids_of(dataset: Any) -> list[str] | None:
    """The file of every image, relative to the data set's root, or None where images are not files of their own."""
    if isinstance(dataset, Subset):
        inner = ids_of(dataset.dataset)
        return None if inner is None else [inner[int(index)] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [ids_of(part) for part in dataset.datasets]
        joined = None if any(part is None for part in parts) else [name for part in parts for name in part or ()]
        return joined if joined is not None and len(set(joined)) == len(joined) else None
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, Sequence) and samples and isinstance(samples[0], (tuple, list)):
        files = [sample[0] for sample in samples]
        if isinstance(files[0], (str, Path)):
            return _relative([str(file) for file in files], getattr(dataset, "root", None))
    return ids_of(dataset.dataset) if isinstance(dataset, EvaluationView) else None


def evaluation_dataset(train: Any, validation: Any = None) -> Any:
    """A training set with the transforms of a validation set of the same kind: the same images, not augmented.

    Goes through `Subset` and `ConcatDataset`. A data set that has no transforms, or no counterpart in the validation
    set, is returned as it is.

    Args:
        train: The training set; it is not changed, copies share its data.
        validation: The validation set, or None.
    """
    if isinstance(train, Subset):
        return Subset(evaluation_dataset(train.dataset, validation), train.indices)
    if isinstance(train, ConcatDataset):
        return ConcatDataset([evaluation_dataset(part, validation) for part in train.datasets])
    for counterpart in _leaves(validation):
        if type(counterpart) is type(train) and hasattr(train, "transform"):
            plain = copy.copy(train)
            for name in ("transform", "transforms"):
                if hasattr(train, name) and hasattr(counterpart, name):
                    setattr(plain, name, getattr(counterpart, name))
            return plain
    return train


def _leaves(dataset: Any) -> list[Any]:
    """The data sets inside `Subset` and `ConcatDataset`."""
    if isinstance(dataset, Subset):
        return _leaves(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [leaf for part in dataset.datasets for leaf in _leaves(part)]
    return [] if dataset is None else [dataset]


def _relative(files: list[str], root: Any) -> list[str]:
    if isinstance(root, (str, Path)) and all(Path(file).is_relative_to(root) for file in files):
        return [Path(file).relative_to(root).as_posix() for file in files]
    return files


def _plain(values: Any) -> Sequence[Any]:
    if isinstance(values, (torch.Tensor, np.ndarray)):
        array = np.asarray(values)
        plain: list[Any] = [_classes(row) for row in array] if array.ndim == 2 else array.tolist()
        return plain
    rows = [np.asarray(value) for value in values if isinstance(value, (torch.Tensor, np.ndarray))]
    shapes = {row.shape for row in rows}
    is_matrix = len(rows) == len(values) and len(shapes) == 1 and rows[0].ndim == 1 and rows[0].size > 1
    if is_matrix and all(np.isin(row, (0, 1)).all() for row in rows):
        return [_classes(row) for row in rows]
    return [_plain_label(value) for value in values]


def _plain_label(value: Any) -> Any:
    """One image's label, or a list of them where a tensor or an array holds those of its boxes."""
    if not isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value
    array = np.asarray(value)
    if array.size == 1:
        return array.item()
    return array.tolist() if array.ndim == 1 else value


def _read_labels(dataset: Any) -> Sequence[Any] | None:
    """Labels out of the samples, if the first one carries one."""
    if len(dataset) == 0:
        return None
    with preserved_rng():
        if _label_of(dataset[0]) is None:
            return None
    log.info("reading %d samples for their labels; give the data set an attribute `targets` to save this", len(dataset))
    with preserved_rng():
        labels = [_label_of(dataset[index]) for index in range(len(dataset))]
    return None if any(label is None for label in labels) else labels


def _label_of(sample: Any) -> Any:
    label = None
    if isinstance(sample, Mapping):
        label = next((sample[key] for key in _LABEL_KEYS if key in sample), None)
    elif isinstance(sample, (tuple, list)) and len(sample) > 1:
        label = sample[1]
    if isinstance(label, (torch.Tensor, np.ndarray, np.generic)):
        array = np.asarray(label)
        label = _classes(array) if array.ndim == 1 and array.size > 1 else array.tolist()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return label if isinstance(label, (int, str, list, tuple)) else None


def _classes(row: Any) -> list[Any]:
    """One image's labels from a vector: where the ones are if it holds zeros and ones only, else the values."""
    values: list[Any] = np.flatnonzero(row).tolist() if np.isin(row, (0, 1)).all() else row.tolist()
    return values
