"""Grouping of feature vectors and the representatives of the groups."""

from __future__ import annotations

from toolkit.grouping.kmeans import STARTS, KMeans, kmeans
from toolkit.grouping.linkage import LINKAGES, METRICS, MergeTree, agglomerate, merge_tree
from toolkit.grouping.pairs import merge_tree_of_pairs, representatives_by_similarity, threshold_groups
from toolkit.grouping.representatives import RULES, Representatives, find_representatives, nearest_to_centre
from toolkit.grouping.spectral import spectral_groups

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
    "merge_tree_of_pairs",
    "nearest_to_centre",
    "representatives_by_similarity",
    "spectral_groups",
    "threshold_groups",
]
