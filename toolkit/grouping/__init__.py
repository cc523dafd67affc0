"""Grouping of feature vectors and the representatives of the groups."""

from __future__ import annotations

from toolkit.grouping.linkage import LINKAGES, METRICS, MergeTree, agglomerate, merge_tree
from toolkit.grouping.representatives import RULES, Representatives, find_representatives

__all__ = [
    "LINKAGES",
    "METRICS",
    "RULES",
    "MergeTree",
    "Representatives",
    "agglomerate",
    "find_representatives",
    "merge_tree",
]
