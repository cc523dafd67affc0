"""Pairs of images to walk between, drawn once, and the images themselves as a network takes them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from toolkit.datasets import labels_of
from toolkit.representations import Embeddings, EvaluationView, FeatureExtractor, Representation
from toolkit.representations.base import Vectors, images_of
from toolkit.representations.feature_map import ImageCollate
from toolkit.representations.image_batches import ImageVectors
from toolkit.reproducibility import preserved_rng
from toolkit.validation import check_choice, check_vectors, invalid

if TYPE_CHECKING:
    from toolkit.selection import Selection

__all__ = ["STRATA", "PathPairs", "class_codes", "codes_of", "draw_pairs", "load_images"]

log = logging.getLogger(__name__)

#: Kinds of pairs, in the order in which they are drawn.
STRATA = ("redundant", "same_class_near", "same_class_far", "cross_class_near", "random")
_NEEDS_LABELS = ("same_class_near", "same_class_far", "cross_class_near")

#: The share of an image's class that counts as far from it.
_FAR = 0.1
#: Images that may become the first of a pair, in multiples of the pairs wanted: more than are ever needed, unless
#: nearly all of them have no partner.
_ANCHORS = 4
#: Bytes of the images that are compared with a chunk of the pool, and of that chunk.
_ANCHOR_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 26
#: Squared distances below this share of the squared norms are rounding errors: the images are the same.
_ROUNDING = 1e-10

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PathPairs:
    """Pairs of images of a data set, each of one kind.

    Attributes:
        first: int64 of shape (P,): the image where each path starts.
        second: int64 of shape (P,): the image where it ends.
        stratum: int64 of shape (P,): the kind of each pair, as an index into `strata`.
        strata: Names of the kinds.
        labels: int64 of shape (P, 2): the classes of both images, or None where they are not known.

    Raises:
        ValueError: If the shapes differ, an image is paired with itself, or a kind has no name.

    Example:
        >>> pairs = PathPairs(np.array([0, 3]), np.array([2, 1]), np.array([0, 0]), ("random",))
        >>> len(pairs), pairs.images, pairs.counts()
        (2, array([0, 1, 2, 3]), {'random': 2})
    """

    first: _Ints
    second: _Ints
    stratum: _Ints
    strata: tuple[str, ...]
    labels: _Ints | None = None

    def __post_init__(self) -> None:
        shape = self.first.shape
        for name in ("first", "second", "stratum"):
            values: _Ints = getattr(self, name)
            if values.shape != shape or values.ndim != 1 or values.dtype.kind != "i":
                raise invalid(name, "integers, one for each pair", f"{values.dtype} of shape {values.shape}")
        if self.labels is not None and self.labels.shape != (*shape, 2):
            raise invalid("labels", f"of shape {(*shape, 2)}, both images' of each pair", self.labels.shape)
        if (self.first == self.second).any():
            image = int(self.first[np.flatnonzero(self.first == self.second)[0]])
            raise invalid("second", "another image than `first` in each pair", image)
        if len(self) and not 0 <= self.stratum.min() <= self.stratum.max() < len(self.strata):
            raise invalid("stratum", f"indices of the {len(self.strata)} `strata`", sorted(set(self.stratum.tolist())))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def images(self) -> _Ints:
        """The images that occur, int64, each once and ascending."""
        return np.unique(np.concatenate([self.first, self.second]))

    @property
    def names(self) -> list[str]:
        """The name of each pair's kind."""
        return [self.strata[code] for code in self.stratum]

    def counts(self) -> dict[str, int]:
        """How many pairs there are of each kind."""
        return {name: int((self.stratum == code).sum()) for code, name in enumerate(self.strata)}

    def subset(self, indices: Sequence[int] | _Ints | slice) -> PathPairs:
        """Some of the pairs, in the order given."""
        rows = np.arange(len(self))[indices]
        labels = None if self.labels is None else self.labels[rows]
        return PathPairs(self.first[rows], self.second[rows], self.stratum[rows], self.strata, labels)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on with the same pairs: tensors and texts, no code."""
        state: dict[str, Any] = {
            name: torch.from_numpy(getattr(self, name).copy()) for name in ("first", "second", "stratum")
        }
        state["strata"] = list(self.strata)
        state["labels"] = None if self.labels is None else torch.from_numpy(self.labels.copy())
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PathPairs:
        """The pairs of a checkpoint."""
        first, second, stratum = (state[name].cpu().numpy() for name in ("first", "second", "stratum"))
        labels = None if state["labels"] is None else state["labels"].cpu().numpy()
        return cls(first, second, stratum, tuple(state["strata"]), labels)


def draw_pairs(
    dataset: Any,
    *,
    selection: Selection | None = None,
    labels: Any = None,
    num_pairs: int = 256,
    strata: Sequence[str] = STRATA,
    features: Any = None,
    pool_size: int = 10_000,
    seed: int = 0,
) -> PathPairs:
    """Draw pairs of images to walk between, in equal shares of several kinds.

    | kind | first image | second image |
    |---|---|---|
    | `redundant` | one that the selection removes | the one that is kept in its place |
    | `same_class_near` | one of the pool | the nearest image of its class |
    | `same_class_far` | the same | one among the farthest tenth of its class |
    | `cross_class_near` | the same | the nearest image of another class |
    | `random` | any | any |

    Near and far are Euclidean distances between `features`, or else between the images as the network takes them, in a
    pool drawn from all images. The last three of the pool's kinds start from the same images, so that their rates can
    be compared. Where the selection found influential images (groups of several labels), `cross_class_near` takes one
    pair of different labels out of each such group first.

    A kind that cannot be filled (no labels, nothing removed) is left out with a log message, and its share goes to the
    others. Apart from `redundant` and groups of several labels the pairs do not depend on the selection, so runs on
    different selections watch nearly the same ones. No pair occurs twice, in whichever order.

    Args:
        dataset: The images, N of them: anything with `__len__` and `__getitem__`, or an `EvaluationView`.
        selection: A selection from these images, or None.
        labels: One label an image; those of the selection or of the data set if None.
        num_pairs: How many, at least the number of `strata`; fewer come back where there are not that many.
        strata: Which of the kinds in `STRATA`.
        features: A representation, or vectors (N, D) that exist; the images themselves if None. Representations that
            are computed are asked for the pool's images only.
        pool_size: Images among which near and far ones are looked for.
        seed: Of all that is drawn.

    Returns:
        The pairs, kind after kind; `strata` names those kinds that were filled.

    Raises:
        ValueError: If an argument is out of range, the selection or `features` are of another number of images, there
            are fewer than two images, or no kind can be filled; the message tells why for each.
        TypeError: If a number is not one.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, section 5.3, walks
        between similar and dissimilar images of one class and of two.

    Example:
        >>> images = np.array([[0.0], [1.0], [5.0], [5.5]], np.float32)
        >>> pairs = draw_pairs(images, labels=[0, 0, 1, 1], num_pairs=2, strata=["same_class_near"])
        >>> sorted(sorted(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist()))
        [[0, 1], [2, 3]]
    """
    view = EvaluationView.of(dataset)
    n_images = len(view)
    check_draw(num_pairs, strata, pool_size)
    if n_images < 2:
        raise invalid("dataset", "a data set with at least two images", f"{n_images}")
    if selection is not None and len(selection) != n_images:
        raise invalid("selection", f"one from the data set's {n_images} images", f"one from {len(selection)} images")
    codes = codes_of(view, selection, labels)
    representation = features if features is None or isinstance(features, Representation) else Embeddings(features)
    rng = np.random.default_rng([seed, len(STRATA)])
    pool = np.sort(rng.permutation(n_images)[:pool_size])
    anchors = rng.permutation(len(pool))[: _ANCHORS * num_pairs]
    block = max(32, 2 * -(-num_pairs // len(strata)))
    neighbourhood = _Neighbourhood(view, representation, pool, codes, anchors, block, seed)

    missing: dict[str, str] = {}
    walks: dict[str, Iterator[tuple[int, int]]] = {}
    for name in strata:
        draw = np.random.default_rng([seed, STRATA.index(name)])
        reason = _why_not(name, selection, codes)
        if reason:
            missing[name] = reason
        elif name == "redundant":
            walks[name] = _redundant(selection, draw)
        elif name == "random":
            walks[name] = _random(n_images, num_pairs, draw)
        else:
            near = neighbourhood.partners(name)
            influential = name == "cross_class_near" and selection is not None and codes is not None
            walks[name] = _chain(_influential(selection, codes, draw), near) if influential else near
    drawn = _in_turns(walks, num_pairs)
    missing |= {name: "no two images fit" for name, found in drawn.items() if not found}
    for name, reason in missing.items():
        log.info("no pairs of the kind %s: %s", name, reason)
    filled = [name for name in strata if drawn.get(name)]
    if not filled:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise ValueError(f"`strata` must have a kind of pairs that the data allows, got none ({reasons}).")
    rows = np.array([pair for name in filled for pair in drawn[name]], np.int64)
    stratum = np.repeat(np.arange(len(filled)), [len(drawn[name]) for name in filled])
    return PathPairs(
        rows[:, 0].copy(), rows[:, 1].copy(), stratum, tuple(filled), None if codes is None else codes[rows]
    )


def check_draw(num_pairs: int, strata: Sequence[str], pool_size: int = 2) -> None:
    """Refuse settings of `draw_pairs` that are out of range, before any work."""
    if isinstance(strata, str) or not isinstance(strata, Collection):
        raise TypeError(f"`strata` must be a list of kinds of pairs, got {strata!r}.")
    if not strata or len(set(strata)) != len(strata):
        raise invalid("strata", "different kinds of pairs, at least one", list(strata))
    for name in strata:
        check_choice("strata", name, STRATA)
    for name, value, least in (("num_pairs", num_pairs, len(strata)), ("pool_size", pool_size, 2)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
        if value < least:
            what = f"at least {least}" + (", the number of `strata`" if name == "num_pairs" else "")
            raise invalid(name, what, int(value))


def class_codes(labels: Any, n_images: int) -> _Ints | None:
    """One whole number an image: its label where all are such numbers, else the rank of its set of labels.

    Args:
        labels: Labels as `toolkit.datasets.labels_of` gives them, or None.
        n_images: N.

    Returns:
        int64 of shape (N,), or None without labels.

    Example:
        >>> class_codes([7, 7, 3], 3), class_codes(["cat", "dog", "cat"], 3)
        (array([7, 7, 3]), array([0, 1, 0]))
    """
    from toolkit.selection.labels import Labels  # which selectors bring along that walk paths themselves

    if labels is None:
        return None
    parsed = Labels.of(labels, n_images)
    values = [labels[0] if len(labels) == 1 else None for labels in parsed.sets]
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.int64)[parsed.codes]
    return np.asarray(parsed.codes, np.int64)


def codes_of(dataset: Any, selection: Selection | None = None, labels: Any = None) -> _Ints | None:
    """The classes of all images: as given, else the selection's, else the data set's own if they can be used.

    Args:
        dataset: The images, or an `EvaluationView`.
        selection: A selection from them, or None.
        labels: Labels that override both, or None.

    Returns:
        int64 of shape (N,) as from `class_codes`, or None where there are no labels.
    """
    view = EvaluationView.of(dataset)
    if labels is not None:
        return class_codes(labels, len(view))
    if selection is not None and selection.labels is not None:
        return class_codes(selection.labels, len(view))
    if hasattr(view.dataset, "ndim"):
        return None  # bare images
    try:
        return class_codes(labels_of(view), len(view))
    except (TypeError, ValueError):
        return None


def load_images(
    view: Any, indices: Sequence[int] | _Ints, device: torch.device | str | None = None, *, batch_size: int = 256
) -> Tensor:
    """Images of a data set as the network takes them, read in batches.

    Where reading is random (augmentation that nobody could switch off), the same call gives the same images; no random
    state is changed.

    Args:
        view: The images, or an `EvaluationView`, whose batch transform is applied.
        indices: Which, in this order.
        device: Where the batch transform runs; the view's device, or the CPU, if None.
        batch_size: Images read at a time.

    Returns:
        Floating-point images of shape (len(indices), *shape), on the CPU. Integers are divided by 255.

    Raises:
        ValueError: If there are no indices, or the images differ in size.
        TypeError: If the images do not come as tensors.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.arange(6.0).reshape(3, 1, 1, 2), torch.arange(3))
        >>> load_images(data, [2, 0]).flatten().tolist()
        [4.0, 5.0, 0.0, 1.0]
    """
    if len(indices) == 0:
        raise invalid("indices", "those of at least one image", "none")
    with preserved_rng(0), torch.no_grad():
        return torch.cat(list(_batches(EvaluationView.of(view), [*map(int, indices)], batch_size, device)))


def _batches(
    view: EvaluationView, indices: list[int], batch_size: int, device: torch.device | str | None = None
) -> Iterator[Tensor]:
    """The images at `indices` as the network takes them, batch by batch, on the CPU."""
    place = torch.device(device) if device is not None else view.device or torch.device("cpu")
    loader: DataLoader[Any] = DataLoader(
        view.dataset,
        batch_size=batch_size,
        sampler=indices,
        num_workers=view.num_workers if len(indices) > batch_size else 0,
        collate_fn=ImageCollate(view.collate_fn or default_collate, None),
    )
    for batch in loader:
        images = images_of(batch if view.batch_transform is None else view.batch_transform(batch, place)).cpu()
        yield images if images.is_floating_point() else images.float() / 255


def _why_not(name: str, selection: Selection | None, codes: _Ints | None) -> str | None:
    """Why there can be no pairs of a kind, or None."""
    if name == "redundant" and selection is None:
        return "there is no selection"
    if name in _NEEDS_LABELS:
        if codes is None:
            return "there are no labels"
        if name == "cross_class_near" and len(np.unique(codes)) < 2:
            return "all images have one label"
    return None


def _in_turns(walks: Mapping[str, Iterator[tuple[int, int]]], num_pairs: int) -> dict[str, list[tuple[int, int]]]:
    """One pair of each kind in turn, passing over those that are taken, until there are enough or no more."""
    drawn: dict[str, list[tuple[int, int]]] = {name: [] for name in walks}
    taken: set[tuple[int, int]] = set()
    going = list(walks)
    while going:
        for name in list(going):
            if len(taken) == num_pairs:
                return drawn
            pair = next((pair for pair in walks[name] if _unordered(*pair) not in taken), None)
            if pair is None:
                going.remove(name)
            else:
                taken.add(_unordered(*pair))
                drawn[name].append(pair)
    return drawn


def _unordered(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _redundant(selection: Any, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Images that were removed, each with the one that is kept in its place."""
    stays = np.zeros(len(selection), dtype=bool)
    stays[selection.kept] = True
    removed = selection.removed
    partner = selection.representative[removed]
    removed = removed[(partner >= 0) & stays[np.maximum(partner, 0)]]
    for image in rng.permutation(removed):
        yield int(image), int(selection.representative[image])


def _influential(selection: Any, codes: Any, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """One pair of different labels out of each group of several labels."""
    influential = selection.influential
    groups = selection.group[influential]
    for group in rng.permutation(np.unique(groups[groups >= 0])):
        members = influential[groups == group]
        first = int(rng.choice(members))
        others = members[codes[members] != codes[first]]
        if len(others):
            yield first, int(rng.choice(others))


def _random(n_images: int, num_pairs: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Pairs of any images; all of them in random order where there are not many."""
    n_pairs = n_images * (n_images - 1) // 2
    if n_pairs <= 4 * num_pairs:
        rows, columns = np.triu_indices(n_images, 1)
        for place in rng.permutation(n_pairs):
            yield int(rows[place]), int(columns[place])
        return
    while True:
        first, second = rng.integers(n_images), rng.integers(n_images - 1)
        yield int(first), int(second + (second >= first))


def _chain(*parts: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for part in parts:
        yield from part


class _Neighbourhood:
    """Near and far partners in a pool of images, looked for when they are first asked for, some images at a time.

    Args:
        view: All images.
        representation: What turns them into vectors, or None: the images themselves.
        pool: Their indices, ascending.
        codes: The classes of all images, or None.
        anchors: Places in the pool of the images that partners are looked for, in the order of asking.
        block: How many of these to compare with the pool in one go.
        seed: Of the choice among far ones.
    """

    def __init__(
        self,
        view: EvaluationView,
        representation: Any,
        pool: _Ints,
        codes: _Ints | None,
        anchors: _Ints,
        block: int,
        seed: int,
    ) -> None:
        self.view = view
        self.representation = representation
        self.pool = pool
        self.codes = None if codes is None else codes[pool]
        self.anchors = anchors
        self.block = block
        self.ranks = np.random.default_rng([seed, len(STRATA) + 1]).random(len(anchors))
        self.found: dict[str, list[int]] = {name: [] for name in _NEEDS_LABELS}
        self.vectors: Vectors | None = None

    def partners(self, name: str) -> Iterator[tuple[int, int]]:
        """Each anchor with its partner of one kind, where it has one."""
        found = self.found[name]
        for place, anchor in enumerate(self.anchors):
            if place == len(found):
                self._look(self.anchors[place : place + self.block])
            if found[place] >= 0:
                yield int(self.pool[anchor]), int(self.pool[found[place]])

    def _look(self, anchors: _Ints) -> None:
        """Find the partners of some anchors, fewer of them where they are large images."""
        assert self.codes is not None
        if self.representation is not None and self.vectors is None:
            self.vectors = self._vectors()
        rows, anchors = self._anchor_rows(anchors)
        own_norms = (rows**2).sum(axis=1)
        distances = np.empty((len(anchors), len(self.pool)), np.float32)
        start = 0
        for chunk in self._chunks(rows.shape[1]):
            norms = (chunk**2).sum(axis=1)
            sums = own_norms[:, None] + norms
            squares = sums - 2 * (rows @ chunk.T)
            # A rounding error must not decide between two copies of one image: among equals the first is taken.
            distances[:, start : start + len(chunk)] = np.where(squares < _ROUNDING * sums, 0.0, squares)
            start += len(chunk)
        for row, anchor in enumerate(anchors):
            same = self.codes == self.codes[anchor]
            other = ~same
            same[anchor] = False
            place = len(self.found["same_class_near"])
            self.found["same_class_near"].append(_nearest(distances[row], same))
            self.found["same_class_far"].append(_far(distances[row], same, self.ranks[place]))
            self.found["cross_class_near"].append(_nearest(distances[row], other))

    def _anchor_rows(self, anchors: _Ints) -> tuple[_Floats, _Ints]:
        """The vectors of as many of the anchors as memory allows, and those anchors."""
        if self.vectors is not None:
            return np.asarray(self.vectors[anchors], np.float64), anchors
        first = load_images(self.view, self.pool[anchors[:1]])
        anchors = anchors[: max(1, _ANCHOR_BYTES // (8 * first.numel()))]
        images = load_images(self.view, self.pool[anchors], batch_size=_batch_size(first.numel()))
        return self._flat(images, self.pool[anchors]), anchors

    def _chunks(self, width: int) -> Iterator[_Floats]:
        """The pool's vectors, in order, some at a time."""
        size = _batch_size(width)
        if self.vectors is not None:
            for start in range(0, len(self.pool), size):
                yield np.asarray(self.vectors[start : start + size], np.float64)
            return
        start = 0
        with preserved_rng(0), torch.no_grad():
            for images in _batches(self.view, self.pool.tolist(), size):
                yield self._flat(images, self.pool[start : start + len(images)])
                start += len(images)

    @staticmethod
    def _flat(images: Tensor, indices: _Ints) -> _Floats:
        """Images as rows, after a check that they are finite."""
        rows: _Floats = images.flatten(1).double().numpy()
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise invalid("dataset", "images of finite values", f"NaN or infinite in image {indices[bad][0]}")
        return rows

    def _vectors(self) -> Vectors:
        """The pool's vectors: computed for the pool alone, or taken out of those that exist for all images."""
        if not isinstance(self.representation, (FeatureExtractor, ImageVectors)):
            vectors: Vectors = np.asarray(self.representation.vectors(self.view))[self.pool]
        elif len(self.pool) == len(self.view):
            vectors = self.representation.vectors(self.view)
        else:
            view = self.view
            part: Any = Subset(view.dataset, self.pool.tolist())
            if isinstance(view.dataset, (np.ndarray, Tensor)):
                part = view.dataset[self.pool]
            vectors = self.representation.vectors(
                EvaluationView(
                    part,
                    batch_transform=view.batch_transform,
                    collate_fn=view.collate_fn,
                    num_workers=view.num_workers,
                    device=view.device,
                )
            )
        return check_vectors(vectors, "features")


def _batch_size(width: int) -> int:
    """Rows of `width` numbers of 8 bytes that fit into a chunk."""
    return max(1, min(2048, _CHUNK_BYTES // (8 * width)))


def _nearest(distances: npt.NDArray[np.float32], among: npt.NDArray[np.bool_]) -> int:
    """The place of the least distance, the first of several; -1 where there is nothing to choose among."""
    return int(np.where(among, distances, np.inf).argmin()) if among.any() else -1


def _far(distances: npt.NDArray[np.float32], among: npt.NDArray[np.bool_], rank: float) -> int:
    """One of the farthest tenth, at `rank` in [0, 1) of it; -1 where there is nothing to choose among."""
    places = np.flatnonzero(among)
    if not len(places):
        return -1
    farthest = places[np.argsort(-distances[places], kind="stable")]
    return int(farthest[math.floor(rank * math.ceil(_FAR * len(places)))])
