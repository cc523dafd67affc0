"""Where a model changes its mind between two images: straight paths, their crossings, planes and pictures."""

from __future__ import annotations

from toolkit.boundary.pairs import PathPairs, draw_pairs, load_images
from toolkit.boundary.paths import probe_paths
from toolkit.boundary.planes import DecisionPlane, decision_plane
from toolkit.boundary.report import BoundaryReport
from toolkit.boundary.strata import summarise

__all__ = [
    "BoundaryReport",
    "DecisionPlane",
    "PathPairs",
    "decision_plane",
    "draw_pairs",
    "load_images",
    "probe_paths",
    "summarise",
]
