"""The keep rule for groups that come without a merge tree: who stays, who goes, and in whose favour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolkit.selection.recut import Cut, by_first, mixed_groups


def keep_rule(
    group: npt.NDArray[np.int64],
    representative: npt.NDArray[np.int64],
    distance: npt.NDArray[np.floating],
    preferred: npt.NDArray[np.bool_],
    codes: npt.NDArray[np.int64] | None = None,
) -> Cut:
    """Keep the representative of each group of one label; keep groups of several labels whole.

    Args:
        group: Shape (N,), the number of each image's group, -1 for an image in none.
        representative: Shape (N,), the image that stands for each image's group, -1 for an image in none.
        distance: Shape (N,), each image's dissimilarity to it.
        preferred: Shape (N,), images that stay in any case.
        codes: Shape (N,), the labels; None where groups have one representative whatever their labels.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, Algorithm 1.

    Example:
        >>> nobody = np.zeros(4, dtype=bool)
        >>> cut = keep_rule(
        ...     np.array([0, 0, 1, 1]), np.array([0, 0, 2, 2]), np.ones(4), nobody, np.array([7, 7, 7, 8])
        ... )
        >>> cut.kept.tolist(), cut.influential.tolist()
        ([True, False, True, True], [False, False, True, True])
    """
    own = np.arange(len(group))
    group = by_first(group)
    influential = None if codes is None else mixed_groups(group, codes)
    stays = (preferred | (False if influential is None else influential)) & (group >= 0)
    representative = np.where(stays, own, representative)
    kept = representative == own
    distances = np.where(kept, np.float32(0), distance).astype(np.float32)
    distances[representative < 0] = np.nan
    return Cut(kept, group, representative, distances, influential)


def restored(cut: Cut, n_kept: int) -> Cut:
    """The cut with images brought back, those least like their representatives first, until `n_kept` stay.

    Ties go to the lower index.
    """
    missing = n_kept - int(cut.kept.sum())
    if missing <= 0:
        return cut
    gone = np.flatnonzero(~cut.kept & (cut.group >= 0))
    back = gone[np.argsort(-cut.distance[gone], kind="stable")][:missing]
    kept, representative, distance = cut.kept.copy(), cut.representative.copy(), cut.distance.copy()
    kept[back], representative[back], distance[back] = True, back, 0.0
    return Cut(kept, cut.group, representative, distance, cut.influential)
