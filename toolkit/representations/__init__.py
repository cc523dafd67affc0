"""Representations: images in, vectors of shape (N, D) out."""

from toolkit.representations.base import EvaluationView, Representation, Vectors
from toolkit.representations.embeddings import Embeddings
from toolkit.representations.feature_map import FeatureExtractor, find_layer

__all__ = ["Embeddings", "EvaluationView", "FeatureExtractor", "Representation", "Vectors", "find_layer"]
