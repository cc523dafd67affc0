"""Fingerprints of data sets, weights and settings: equal exactly when the vectors computed from them would be."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from toolkit.reproducibility import preserved_rng

#: Samples of an opaque data set that are read to tell it from another.
_PROBES = 8
#: Bytes of a memory map that are hashed in one go.
_CHUNK_BYTES = 1 << 26
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class OpaqueDatasetWarning(UserWarning):
    """A data set's content cannot be told cheaply, so a change in it may go unnoticed."""


def content_hash(*arrays: Any) -> str:
    """SHA-256 of arrays or tensors: dtype, shape and values.

    Example:
        >>> import numpy as np
        >>> content_hash(np.arange(3)) == content_hash(np.arange(3)), content_hash(np.arange(3)) == content_hash([0, 1])
        (True, False)
    """
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, torch.Tensor):
            tensor = array.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            values = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
        else:
            values = np.asanyarray(array)
            digest.update(f"{values.dtype.str}{values.shape}".encode())
            if values.dtype == object:
                hashes = [content_hash(item) if hasattr(item, "dtype") else describe(item) for item in values.ravel()]
                values = np.frombuffer("\n".join(hashes).encode(errors="surrogateescape"), np.uint8)
        rows = max(1, _CHUNK_BYTES // max(1, values.nbytes // max(1, len(values)))) if values.ndim else 1
        blocks = (values[start : start + rows] for start in range(0, len(values), rows)) if values.ndim else (values,)
        for block in blocks:
            digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings that can be written as JSON (arrays by their content), whatever their order."""
    text = json.dumps(
        settings, sort_keys=True, default=lambda x: content_hash(x) if hasattr(x, "dtype") else describe(x)
    )
    return hashlib.sha256(text.encode()).hexdigest()


def describe(value: Any) -> str:
    """The `repr` of a value without memory addresses, which differ from run to run."""
    return _ADDRESS.sub("", repr(value))


def weights_hash(state_dict: Mapping[str, Any]) -> str:
    """SHA-256 of a state dict: names, shapes and values of its tensors."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name]
        digest.update(name.encode())
        digest.update((content_hash(value) if isinstance(value, torch.Tensor) else describe(value)).encode())
    return digest.hexdigest()


def files_hash(paths: Sequence[str | Path], root: str | Path | None = None) -> str:
    """SHA-256 of files' paths (relative to `root`), sizes and times of last change: quick where reading them is not."""
    digest = hashlib.sha256()
    for path in paths:
        status = Path(path).stat()
        name = Path(path).relative_to(root) if root is not None and Path(path).is_relative_to(root) else path
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def dataset_fingerprint(dataset: Any) -> str:
    """A text that differs when a data set's stored images, their labels or their order do.

    Arrays and tensors are hashed by content, image folders by paths, sizes and times; `Subset` and `ConcatDataset` by
    their parts; a data set's own `fingerprint()` is trusted. Of any other data set only the type, the length and a few
    samples are looked at, with an `OpaqueDatasetWarning`.

    Args:
        dataset: Anything with `__len__` and `__getitem__`.

    Example:
        >>> import torch
        >>> a = torch.utils.data.TensorDataset(torch.zeros(4, 1))
        >>> dataset_fingerprint(a) == dataset_fingerprint(torch.utils.data.TensorDataset(torch.zeros(5, 1)))
        False
    """
    parts = _parts(dataset)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parts(dataset: Any) -> list[str]:
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    own = getattr(dataset, "fingerprint", None)
    if callable(own):
        return [kind, str(own())]
    if isinstance(dataset, Subset):
        return ["subset", content_hash(np.asarray(dataset.indices, dtype=np.int64)), *_parts(dataset.dataset)]
    if isinstance(dataset, ConcatDataset):
        return ["concat", *(part for inner in dataset.datasets for part in ("part", *_parts(inner)))]
    if isinstance(dataset, TensorDataset):
        return ["tensors", content_hash(*dataset.tensors)]
    if isinstance(dataset, (torch.Tensor, np.ndarray)):
        return ["array", content_hash(dataset)]
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, Sequence) and samples and isinstance(samples[0], Sequence) and _is_file(samples[0][0]):
        labels = describe([tuple(sample[1:]) for sample in samples])
        return [kind, files_hash([sample[0] for sample in samples], getattr(dataset, "root", None)), labels]
    data, targets = getattr(dataset, "data", None), _first(dataset, ("targets", "labels", "y"))
    if isinstance(data, (torch.Tensor, np.ndarray)):
        if targets is not None:
            return [kind, content_hash(data), _labels_hash(targets)]
        return [kind, content_hash(data), *_probe(dataset)]  # labels, if there are any, show in the samples alone
    if isinstance(dataset, Sequence) and not isinstance(dataset, Dataset):
        if _all_files(dataset):
            return ["files", files_hash(list(dataset))]
        if isinstance(dataset, range) or all(isinstance(item, (int, str)) for item in dataset):
            return ["names", hashlib.sha256(describe(dataset).encode()).hexdigest()]
    warnings.warn(
        f"The content of a {kind} cannot be told without reading all of it: only its type, its length and a few "
        "samples decide whether cached results still fit. Give it a method `fingerprint()` that returns a text which "
        "changes with its content.",
        OpaqueDatasetWarning,
        stacklevel=4,
    )
    return [kind, str(len(dataset)), *_probe(dataset)]


def _probe(dataset: Any) -> list[str]:
    """Hashes of a few samples, evenly spaced, of a data set that says nothing of its content."""
    indices = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, min(_PROBES, len(dataset)))})
    with preserved_rng(seed=0):
        return [sample_hash(dataset[index]) for index in indices]


def sample_hash(sample: Any) -> str:
    """A text that differs with a sample's content: images, labels, dictionaries and sequences of them."""
    if isinstance(sample, Mapping):
        return "".join(f"{key}:{sample_hash(sample[key])}" for key in sorted(sample, key=str))
    if isinstance(sample, (tuple, list)):
        return ",".join(sample_hash(item) for item in sample)
    if isinstance(sample, (torch.Tensor, np.ndarray)):
        return content_hash(sample)
    if hasattr(sample, "tobytes") and hasattr(sample, "size"):
        return hashlib.sha256(sample.tobytes()).hexdigest()
    return describe(sample)


def _labels_hash(labels: Any) -> str:
    try:
        return content_hash(labels if isinstance(labels, torch.Tensor) else np.asarray(labels))
    except ValueError:
        return hashlib.sha256(describe(labels).encode()).hexdigest()


def _first(dataset: Any, names: Sequence[str]) -> Any:
    for name in names:
        value = getattr(dataset, name, None)
        if value is not None:
            return value
    return None


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, Path)) and Path(value).is_file()


def _all_files(paths: Sequence[Any]) -> bool:
    return len(paths) > 0 and all(_is_file(path) for path in paths)
