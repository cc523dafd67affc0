"""What a selection keeps so that it can be cut anew at another budget: a merge tree a class, or a ranking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toolkit.grouping import MergeTree, Representatives
from toolkit.selection.quota import allocate

Arrays = dict[str, npt.NDArray[Any]]

#: In place of a label: the group has several.
_MIXED = -1


@dataclass(frozen=True)
class Cut:
    """Who stays at one budget.

    Attributes:
        kept: Shape (N,), bool.
        group: Shape (N,), the number of each image's group, -1 for an image in none.
        representative: Shape (N,), the index of the image that stands for it (itself if kept), -1 for none.
        distance: Shape (N,), dissimilarity to the representative, 0 if kept, NaN where there is none.
        influential: Shape (N,), images kept because their group has images of several labels; None for none.
        boundary: Shape (N,), images kept because the path to their representative crosses a decision boundary; None
            for none.
        outlier: Shape (N,), images that go because they are unlike all others; None for none.
    """

    kept: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]
    representative: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]
    influential: npt.NDArray[np.bool_] | None = None
    boundary: npt.NDArray[np.bool_] | None = None
    outlier: npt.NDArray[np.bool_] | None = None


class Recut(Protocol):
    """Cuts at any budget down to a floor, without vectors or distances."""

    @property
    def excluded(self) -> npt.NDArray[np.bool_]:
        """Shape (N,), images that a person wants removed at any budget."""
        ...

    @property
    def preferred(self) -> npt.NDArray[np.bool_]:
        """Shape (N,), images that stay at any budget."""
        ...

    def min_kept(self) -> int:
        """The fewest images that can be asked for."""
        ...

    def cut(self, n_kept: int) -> Cut:
        """Keep exactly this many."""
        ...

    def arrays(self) -> Arrays:
        """Everything, as arrays for a file; `from_arrays` reads it back."""
        ...


@dataclass(frozen=True)
class MergeForest:
    """The merge trees of all classes, with the representative of every node.

    Attributes:
        n_images: N, with those in no tree.
        images: For each class, the indices of its images that take part, ascending.
        trees: For each class, its merge tree over those images.
        representatives: For each class, who stands for each node.
        sizes: For each class, all its images, also those that take no part: what shares are proportional to.
        preferred: Shape (N,), images that stay whatever they are merged with.
        quota: `proportional` or `global`.
        floor: The fewest images that the trees reach.
        codes: Shape (N,), the label of each image, where a group of more than one label is kept whole; None where
            every group has one representative whatever its labels.
    """

    n_images: int
    images: list[npt.NDArray[np.int64]]
    trees: list[MergeTree]
    representatives: list[Representatives]
    sizes: npt.NDArray[np.int64]
    preferred: npt.NDArray[np.bool_]
    quota: str
    floor: int
    codes: npt.NDArray[np.int64] | None = None

    @property
    def excluded(self) -> npt.NDArray[np.bool_]:
        """Shape (N,), images that are in no tree."""
        excluded = np.ones(self.n_images, dtype=bool)
        for images in self.images:
            excluded[images] = False
        return excluded

    def min_kept(self) -> int:
        """The fewest images that the trees reach."""
        return self.floor

    def cut(self, n_kept: int) -> Cut:
        """Merge until exactly `n_kept` images stay: each class to its share, or all classes in order of height."""
        return next(self.cuts([n_kept]))

    def cuts(self, numbers: Iterable[int]) -> Iterator[Cut]:
        """The cut for each of some numbers of images that stay; the merges are gone through once for all of them."""
        spared = [self._spared(c) for c in range(len(self.trees))]
        low = np.array([self.min_of_class(c) for c in range(len(self.trees))], np.int64)
        high = np.array([len(images) for images in self.images], np.int64)
        for n_kept in numbers:
            if self.quota == "global":
                yield self._assemble(self._merges_by_height(n_kept, spared))
            else:
                quota = allocate(n_kept, self.sizes, low, high)
                yield self._assemble(
                    [
                        int(np.searchsorted(lost, size - seats)) if seats < size else 0
                        for lost, size, seats in zip(spared, high, quota, strict=True)
                    ]
                )

    def cut_at(self, threshold: float) -> Cut:
        """Do every merge whose height is at most `threshold`."""
        return self._assemble([int(np.searchsorted(tree.heights, threshold, side="right")) for tree in self.trees])

    def cut_into(self, n_groups: int) -> Cut:
        """Merge the images of one class into this many groups, however many of them stay."""
        return self._assemble([len(self.images[0]) - n_groups])

    def min_of_class(self, c: int) -> int:
        """The fewest images that class c may be left with: one, or those that are to stay."""
        return max(min(1, len(self.images[c])), int(self.preferred[self.images[c]].sum()))

    def _spared(self, c: int) -> npt.NDArray[np.int64]:
        """The most images that class c has lost by one of its first m merges, for m = 0, 1, ...

        As no merge loses two, a number is first reached exactly.
        """
        return np.maximum.accumulate(self._lost(c))

    def _lost(self, c: int) -> npt.NDArray[np.int64]:
        """The images that class c has lost after its first m merges, for m = 0, 1, ...

        A merge loses one image, or none where both sides hold one that is to stay, or (where groups of several labels
        are kept whole) brings back all that the two groups had lost.
        """
        tree, images = self.trees[c], self.images[c]
        stays = self.preferred[images].astype(np.int64).tolist()
        kept = [1] * len(images)
        size = [1] * len(images)
        label = [0] * len(images) if self.codes is None else self.codes[images].tolist()
        lost = [0]
        for left, right in tree.children.tolist():
            size.append(size[left] + size[right])
            stays.append(stays[left] + stays[right])
            label.append(label[left] if label[left] == label[right] else _MIXED)
            kept.append(size[-1] if label[-1] == _MIXED else max(1, stays[-1]))
            lost.append(lost[-1] + kept[left] + kept[right] - kept[-1])
        return np.array(lost, np.int64)

    def curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The heights of all merges, ascending, and how many images stay once each of them is done."""
        heights = np.concatenate([tree.heights for tree in self.trees])
        loss = np.concatenate([np.diff(self._lost(c)) for c in range(len(self.trees))])
        order = np.argsort(heights, kind="stable")
        return heights[order], sum(map(len, self.images)) - np.cumsum(loss[order])

    def fewest(self) -> int:
        """The fewest images that any number of merges leaves."""
        return sum(len(images) - int(self._spared(c)[-1]) for c, images in enumerate(self.images))

    def _merges_by_height(self, n_kept: int, spared: list[npt.NDArray[np.int64]]) -> list[int]:
        heights = np.concatenate([tree.heights for tree in self.trees])
        owner = np.concatenate([np.full(len(tree.heights), c) for c, tree in enumerate(self.trees)])
        order = np.argsort(heights, kind="stable")
        loss = np.concatenate([np.diff(lost) for lost in spared])[order]
        to_lose = sum(len(images) for images in self.images) - n_kept
        n_merges = int(np.searchsorted(np.cumsum(loss), to_lose)) + 1 if to_lose else 0
        done: list[int] = np.bincount(owner[order[:n_merges]], minlength=len(self.trees)).tolist()
        return done

    def _assemble(self, n_merges: list[int]) -> Cut:
        representative = np.full(self.n_images, -1, np.int64)
        group = np.full(self.n_images, -1, np.int64)
        distance = np.full(self.n_images, np.nan, np.float32)
        n_groups = 0
        for images, tree, representatives, merges in zip(
            self.images, self.trees, self.representatives, n_merges, strict=True
        ):
            if not len(images):
                continue
            local, distance[images] = representatives.at(tree, merges)
            representative[images] = images[local]
            labels = tree.cut(n_groups=tree.n_leaves - merges)
            group[images] = labels + n_groups
            n_groups += tree.n_leaves - merges
        group = by_first(group)
        influential = None if self.codes is None else mixed_groups(group, self.codes)
        stays = np.flatnonzero((self.preferred | (False if influential is None else influential)) & (group >= 0))
        representative[stays], distance[stays] = stays, 0.0
        kept = representative == np.arange(self.n_images)
        return Cut(kept, group, representative, distance, influential)

    def arrays(self) -> Arrays:
        """The forest as arrays for a file."""
        offsets = {
            "image_offsets": _offsets([len(images) for images in self.images]),
            "merge_offsets": _offsets([len(tree.heights) for tree in self.trees]),
            "event_offsets": _offsets([len(r.event_leaf) for r in self.representatives]),
        }
        linkage = self.trees[0].linkage if self.trees else "complete"
        metric = self.trees[0].metric if self.trees else "cosine"
        return {
            "kind": np.array("merge_forest"),
            "n_images": np.array(self.n_images),
            "images": _join(self.images, np.int64),
            "children": _join([tree.children for tree in self.trees], np.int64, (0, 2)),
            "heights": _join([tree.heights for tree in self.trees], np.float64),
            "node_representatives": _join([r.nodes for r in self.representatives], np.int64),
            "event_leaf": _join([r.event_leaf for r in self.representatives], np.int64),
            "event_node": _join([r.event_node for r in self.representatives], np.int64),
            "event_distance": _join([r.event_distance for r in self.representatives], np.float32),
            "sizes": self.sizes,
            "preferred": np.flatnonzero(self.preferred),
            "quota": np.array(self.quota),
            "floor": np.array(self.floor),
            "linkage": np.array(linkage),
            "metric": np.array(metric),
            **({} if self.codes is None else {"codes": self.codes}),
            **offsets,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> MergeForest:
        """The forest that `arrays` came from."""
        images = _split(arrays["images"], arrays["image_offsets"])
        children = _split(arrays["children"], arrays["merge_offsets"])
        heights = _split(arrays["heights"], arrays["merge_offsets"])
        nodes = _split(arrays["node_representatives"], arrays["merge_offsets"])
        events = [_split(arrays[f"event_{what}"], arrays["event_offsets"]) for what in ("leaf", "node", "distance")]
        preferred = np.zeros(int(arrays["n_images"]), dtype=bool)
        preferred[arrays["preferred"]] = True
        linkage, metric = str(arrays["linkage"]), str(arrays["metric"])
        return cls(
            int(arrays["n_images"]),
            images,
            [MergeTree(len(i), c, h, linkage, metric) for i, c, h in zip(images, children, heights, strict=True)],
            [Representatives(*parts) for parts in zip(nodes, *events, strict=True)],
            arrays["sizes"],
            preferred,
            str(arrays["quota"]),
            int(arrays["floor"]),
            arrays.get("codes"),
        )


@dataclass(frozen=True)
class Ranking:
    """An order of all images in which the first stay: what a selector without groups keeps for later cuts.

    Attributes:
        order: Shape (N,), image indices, the first to stay first.
        codes: Shape (N,), the class of each image, if each class is to keep its share; else all zero.
        sizes: Images of each class.
        preferred: Shape (N,), images that stay.
        excluded: Shape (N,), images that go.
    """

    order: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    preferred: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.bool_]

    def min_kept(self) -> int:
        """One image a class, or those that are to stay."""
        return int(self._bounds()[0].sum())

    def _bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        n_classes = len(self.sizes)
        high = self.sizes - np.bincount(self.codes[self.excluded], minlength=n_classes)
        return np.maximum(np.minimum(1, high), np.bincount(self.codes[self.preferred], minlength=n_classes)), high

    def cut(self, n_kept: int) -> Cut:
        """Keep the first of each class in the order, `n_kept` in all."""
        quota = allocate(n_kept, self.sizes, *self._bounds())
        first = self.order[np.argsort(~self.preferred[self.order], kind="stable")]
        first = first[~self.excluded[first]]
        kept = np.zeros(len(self.order), dtype=bool)
        for c, seats in enumerate(quota):
            kept[first[self.codes[first] == c][:seats]] = True
        own = np.arange(len(kept))
        representative = np.where(kept, own, -1)
        return Cut(
            kept,
            by_first(representative),
            representative,
            np.where(kept, np.float32(0), np.float32(np.nan)),
        )

    def arrays(self) -> Arrays:
        """The ranking as arrays for a file."""
        return {
            "kind": np.array("ranking"),
            "order": self.order,
            "codes": self.codes,
            "sizes": self.sizes,
            "preferred": self.preferred,
            "excluded": self.excluded,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Ranking:
        """The ranking that `arrays` came from."""
        return cls(*(arrays[name] for name in ("order", "codes", "sizes", "preferred", "excluded")))


def recut_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Recut:
    """What `arrays()` of a forest or a ranking gave."""
    from toolkit.selection.outlier_forest import OutlierForest  # which is made of a forest itself

    kinds: dict[str, type[MergeForest | Ranking | OutlierForest]] = {
        "merge_forest": MergeForest,
        "ranking": Ranking,
        "outlier_forest": OutlierForest,
    }
    return kinds[str(arrays["kind"])].from_arrays(arrays)


def mixed_groups(group: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which images are in a group with images of another label.

    Args:
        group: Shape (N,), the number of each image's group, -1 for an image in none.
        codes: Shape (N,), the label of each image.

    Returns:
        Shape (N,).

    Example:
        >>> mixed_groups(np.array([0, 0, 1, 1, -1]), np.array([5, 5, 5, 6, 7])).tolist()
        [False, False, True, True, False]
    """
    inside = np.flatnonzero(group >= 0)
    n_groups = int(group.max(initial=-1)) + 1
    low = np.full(n_groups, np.iinfo(np.int64).max)
    high = np.full(n_groups, np.iinfo(np.int64).min)
    np.minimum.at(low, group[inside], codes[inside])
    np.maximum.at(high, group[inside], codes[inside])
    mixed = np.zeros(len(group), dtype=bool)
    mixed[inside] = (low < high)[group[inside]]
    return mixed


def by_first(group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The same groups, numbered in the order of their first images; -1 stays."""
    inside = group >= 0
    _, first, inverse = np.unique(group[inside], return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    result = np.full(len(group), -1, np.int64)
    result[inside] = numbers[inverse]
    return result


def _offsets(lengths: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _join(parts: list[npt.NDArray[Any]], dtype: Any, empty: tuple[int, ...] = (0,)) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(empty, dtype)


def _split(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    return np.split(values, offsets[1:-1]) if len(offsets) > 1 else []
