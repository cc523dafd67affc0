"""Representations: images in, vectors of shape (N, D) out."""

from toolkit.representations.base import EvaluationView, Representation, Vectors
from toolkit.representations.columns import ColumnChoice, independent_columns
from toolkit.representations.embeddings import Embeddings
from toolkit.representations.feature_map import FeatureExtractor, find_layer
from toolkit.representations.pixels import Pixels
from toolkit.representations.scattering import WaveletScattering
from toolkit.representations.wavelet import WaveletCoefficients

__all__ = [
    "ColumnChoice",
    "Embeddings",
    "EvaluationView",
    "FeatureExtractor",
    "Pixels",
    "Representation",
    "Vectors",
    "WaveletCoefficients",
    "WaveletScattering",
    "find_layer",
    "independent_columns",
]
