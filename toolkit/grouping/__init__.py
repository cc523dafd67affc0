"""Grouping of feature vectors and the representatives of the groups."""

from __future__ import annotations

from toolkit.grouping.kmeans import STARTS, KMeans, kmeans
from toolkit.grouping.linkage import LINKAGES, METRICS, MergeTree, agglomerate, merge_tree
from toolkit.grouping.representatives import RULES, Representatives, find_representatives, nearest_to_centre

__all__ = [
    "LINKAGES",
    "METRICS",
    "RULES",
    "STARTS",
    "KMeans",
    "MergeTree",
    "Representatives",
    "agglomerate",
    "find_representatives",
    "kmeans",
    "merge_tree",
    "nearest_to_centre",
]
