"""Prune redundant images from a training set and train on what is left.

The names below are the core, which works on arrays, tensors and data sets and does not need Lightning; what plugs into
a Trainer is in `toolkit.datamodules` and `toolkit.callbacks`, the networks are in `toolkit.models`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if not (Path(__file__).parent / "callbacks").is_dir():
    # A checkout: `callbacks`, `datamodules` and `configs` lie beside this folder instead of inside it.
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from toolkit.representations import (
        Embeddings,
        FeatureExtractor,
        ObjectFeatureExtractor,
        Pixels,
        Representation,
        WaveletCoefficients,
        WaveletScattering,
        WrittenFeatures,
    )
    from toolkit.selection import (
        FeatureMapSelector,
        KCenterSelector,
        RandomSelector,
        ScoreSelector,
        Selection,
        Selector,
        SemanticSelector,
        SemDeDupSelector,
        SSIMSelector,
        UniquenessSelector,
        WaveletSelector,
    )

_HOMES = {
    "Embeddings": "toolkit.representations",
    "FeatureExtractor": "toolkit.representations",
    "ObjectFeatureExtractor": "toolkit.representations",
    "Pixels": "toolkit.representations",
    "Representation": "toolkit.representations",
    "WaveletCoefficients": "toolkit.representations",
    "WaveletScattering": "toolkit.representations",
    "WrittenFeatures": "toolkit.representations",
    "FeatureMapSelector": "toolkit.selection",
    "KCenterSelector": "toolkit.selection",
    "RandomSelector": "toolkit.selection",
    "SSIMSelector": "toolkit.selection",
    "ScoreSelector": "toolkit.selection",
    "Selection": "toolkit.selection",
    "Selector": "toolkit.selection",
    "SemDeDupSelector": "toolkit.selection",
    "SemanticSelector": "toolkit.selection",
    "UniquenessSelector": "toolkit.selection",
    "WaveletSelector": "toolkit.selection",
}

__all__ = [
    "Embeddings",
    "FeatureExtractor",
    "FeatureMapSelector",
    "KCenterSelector",
    "ObjectFeatureExtractor",
    "Pixels",
    "RandomSelector",
    "Representation",
    "SSIMSelector",
    "ScoreSelector",
    "Selection",
    "Selector",
    "SemDeDupSelector",
    "SemanticSelector",
    "UniquenessSelector",
    "WaveletCoefficients",
    "WaveletScattering",
    "WaveletSelector",
    "WrittenFeatures",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import toolkit` costs nothing."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
