"""Selectors, and the selection that they make."""

from toolkit.selection.base import Selector
from toolkit.selection.labels import Labels
from toolkit.selection.random import RandomSelector
from toolkit.selection.result import STATUSES, Selection, SelectionFileError
from toolkit.selection.semantic import SemanticSelector
from toolkit.selection.ssim import SSIMSelector
from toolkit.selection.wavelet import WaveletSelector

__all__ = [
    "STATUSES",
    "Labels",
    "RandomSelector",
    "SSIMSelector",
    "Selection",
    "SelectionFileError",
    "Selector",
    "SemanticSelector",
    "WaveletSelector",
]
