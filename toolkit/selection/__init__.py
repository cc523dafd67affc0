"""Selectors, and the selection that they make."""

from toolkit.selection.base import Selector
from toolkit.selection.export import apply_selection, fiftyone_samples, write_yolo_list
from toolkit.selection.feature_map import FeatureMapSelector, VanishingClassWarning, predicted_classes
from toolkit.selection.k_center import KCenterSelector
from toolkit.selection.labels import Labels
from toolkit.selection.random import RandomSelector
from toolkit.selection.result import STATUSES, Selection, SelectionFileError
from toolkit.selection.score import ScoreSelector
from toolkit.selection.semantic import SemanticSelector
from toolkit.selection.semdedup import SemDeDupSelector
from toolkit.selection.ssim import SSIMSelector
from toolkit.selection.uniqueness import UniquenessSelector, find_unique, uniqueness
from toolkit.selection.wavelet import WaveletSelector

__all__ = [
    "STATUSES",
    "FeatureMapSelector",
    "KCenterSelector",
    "Labels",
    "RandomSelector",
    "SSIMSelector",
    "ScoreSelector",
    "Selection",
    "SelectionFileError",
    "Selector",
    "SemDeDupSelector",
    "SemanticSelector",
    "UniquenessSelector",
    "VanishingClassWarning",
    "WaveletSelector",
    "apply_selection",
    "fiftyone_samples",
    "find_unique",
    "predicted_classes",
    "uniqueness",
    "write_yolo_list",
]
