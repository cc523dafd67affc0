"""Representations: images in, vectors of shape (N, D) out."""

from toolkit.representations.base import EvaluationView, Representation, Vectors
from toolkit.representations.columns import ColumnChoice, independent_columns
from toolkit.representations.embeddings import Embeddings
from toolkit.representations.feature_map import FeatureExtractor, find_layer, layer_sequence
from toolkit.representations.object_features import ObjectFeatureExtractor, ObjectVectors
from toolkit.representations.pixels import Pixels
from toolkit.representations.reduction import PrincipalComponents, Reduced, pca, reduce_vectors, umap
from toolkit.representations.scattering import WaveletScattering
from toolkit.representations.wavelet import WaveletCoefficients
from toolkit.representations.written import WrittenFeatures

__all__ = [
    "ColumnChoice",
    "Embeddings",
    "EvaluationView",
    "FeatureExtractor",
    "ObjectFeatureExtractor",
    "ObjectVectors",
    "Pixels",
    "PrincipalComponents",
    "Reduced",
    "Representation",
    "Vectors",
    "WaveletCoefficients",
    "WaveletScattering",
    "WrittenFeatures",
    "find_layer",
    "independent_columns",
    "layer_sequence",
    "pca",
    "reduce_vectors",
    "umap",
]
