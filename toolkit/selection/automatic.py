"""How many images can go, as the model sees it: how often it changes its mind between an image and its representative.

The paths are walked by `toolkit.boundary`; which pairs are walked, and what follows from them, is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.selection.path_prober import Probe
from toolkit.selection.recut import MergeForest

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

#: The fewest pairs that are walked, and their share of the images where that is more: as many forwards, roughly, as it
#: takes to extract the features once.
_LEAST_PAIRS = 2_000
_PAIRS_PER_IMAGE = 0.25
#: Of the pairs, those that are drawn at random from one class.
_RANDOM_SHARE = 0.2
#: Of the others, those that are spread over the whole ladder before it is known where the cut will be, with at least
#: so many for each step.
_PILOT_SHARE = 0.2
_PILOT_STEP = 3
#: In how many rounds the rest is spent, each up to a bit above where the cut seems to be by then.
_ROUNDS = 4
_HEADROOM = 1.1
#: The share of images that is called the safest, and how many times denser pairs are drawn there: the limit depends on
#: their rate, which no other pairs tell.
_SAFEST = 0.02
_SAFEST_DENSITY = 4.0
#: One step of the ladder, as a share of the images.
_STEP = 0.01
#: Nothing is removed where the rate of the safest images is above this, or above this share of the random pairs' rate.
_MAX_BASE_RATE = 0.1
_MAX_BASE_SHARE = 0.5
#: Nor where so few random pairs cross that crossings cannot tell alike images from others.
_LEAST_CROSSINGS = 10
_REPLICATES = 200
#: Removed shares that `curve_text` shows.
_SHOWN = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class CrossingCurve:
    """How often a model changes its mind between removed images and their representatives, and the cut that follows.

    Attributes:
        removed_fraction: The ladder of cuts: the share of all images that each removes, ascending.
        rate: Of the images that a cut removes, the share whose path crosses; does not fall.
        low: Lower end of its 95 % interval.
        high: Upper end.
        base_rate: The rate where the safest 2 % of the images are removed.
        random_rate: The rate of random pairs of images of one class.
        limit: `base_rate + tolerance * (random_rate - base_rate)`.
        chosen: The largest removed share whose rate is not above the limit; None where nothing is to be removed.
        chosen_low: Lower end of its 95 % interval.
        chosen_high: Upper end.
        n_removed: How many images that is.
        message: What was decided, and why, in words.
        n_pairs: Pairs whose path was walked.
        n_evaluations: Images that went through the model for it.
    """

    removed_fraction: list[float]
    rate: list[float]
    low: list[float]
    high: list[float]
    base_rate: float
    random_rate: float
    limit: float
    chosen: float | None
    chosen_low: float | None
    chosen_high: float | None
    n_removed: int
    message: str
    n_pairs: int = 0
    n_evaluations: int = 0

    def plain(self) -> dict[str, Any]:
        """The curve as plain values, for files and `toolkit.boundary.curves.plot_crossing_curve`."""
        return asdict(self)


def default_num_pairs(n_images: int) -> int:
    """How many pairs are walked where nobody says: a quarter of the images, and at least 2,000.

    Example:
        >>> default_num_pairs(1_000), default_num_pairs(50_000)
        (2000, 12500)
    """
    return max(_LEAST_PAIRS, int(_PAIRS_PER_IMAGE * n_images))


def crossing_curve(
    forest: MergeForest,
    codes: _Ints,
    probe: Probe,
    *,
    tolerance: float = 0.1,
    num_pairs: int | None = None,
    seed: int = 0,
) -> CrossingCurve:
    """How many images can go before the model changes its mind too often between them and their representatives.

    Removing an image is taken to be safe where the model gives one class all the way along the straight line to the
    image that stays in its place. Let R(f) be the share of the removed images for which it does not, where a share f of
    all images is removed; r0 = R(2 %), that of the safest; r1 that of random pairs of one class. The cut is

        the largest f with R(f) <= r0 + tolerance * (r1 - r0).

    At each cut every removed image counts with the representative that it has at that very cut. R is estimated on a
    ladder of 1 % steps down to the forest's floor and made non-decreasing (isotonic regression); between two steps it
    is taken to be linear.

    Which paths are walked: an image that a step removes, or gives another representative, makes a new pair, which
    counts from that step on until the image's representative changes again. Of each step's new pairs a random share is
    walked, and R(f) is the mean over the pairs that count at f, each with one over its step's share. A fifth of all
    pairs is random ones; a fifth of the others is spread over all steps, and the rest goes in four rounds to the steps
    up to where the cut seems to be by then, four times as dense among the safest 2 %, on whose rate the limit depends.
    On CIFAR-10 the default number of pairs walks all paths up to the cut, so that little is left to chance but the
    random pairs.

    Intervals are the 2.5 % and 97.5 % quantiles of 200 replicates of a rescaling bootstrap: they tell how much the
    figures would change if other pairs were drawn, which is nothing where all were. They do not tell how they would
    change with another model.

    Nothing is removed where paths tell nothing, and the message says which: r0 is above 10 % or at least half of r1, or
    fewer than 10 random pairs cross.

    Why so, measured with ResNet-32 on CIFAR-10: with 2,000 pairs the seeds choose shares that lie 10 points and more
    apart, because only one path in 30 crosses near the cut. What is known of all pairs before any walk (distance,
    margins at both ends) explains 6 % of the variance of which paths cross, too little to replace walks. What helps is
    to walk three times as many paths with the same forwards (see `PathProber`) and to spend them where they matter. See
    `benchmarks/auto_fraction.py`.

    Args:
        forest: The merge trees.
        codes: int64 of shape (N,), the class of each image, for random pairs of one class.
        probe: Whether paths cross, such as a `PathProber`.
        tolerance: In (0, 1): how far the rate may rise from that of the safest images towards that of random pairs.
        num_pairs: How many pairs to walk; at least 2,000 and a quarter of the images if None.
        seed: Of the draws and the bootstrap. With more pairs, those that fewer would take are among the first.

    Returns:
        The curve and the cut; with empty lists where no image can go at all.

    References:
        Rao, Wu, "Resampling inference with complex survey data", JASA 1988: the rescaling bootstrap of strata.

    Example:
        >>> from toolkit import SemanticSelector
        >>> angles = np.cumsum(np.linspace(0.001, 0.01, 200))
        >>> vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        >>> selection = SemanticSelector(vectors, keep_fraction=0.9, progress=False).select(labels=[0] * 200)
        >>> def crosses(first, second):
        ...     return np.abs(angles[first] - angles[second]) > 0.005
        >>> round(crossing_curve(selection.recut, selection.labels.codes, crosses).chosen, 3)
        0.272
    """
    episodes = _Episodes.of(forest)
    budget = default_num_pairs(forest.n_images) if num_pairs is None else num_pairs
    first, second = _random_pairs(codes, ~forest.excluded, max(1, int(_RANDOM_SHARE * budget)), seed)
    if not len(first) or not episodes.n_steps:
        return _nothing("no image can go: there are no two images of one class that may be merged")
    random = probe(first, second)
    sample = _Sample(episodes, seed)
    walks = max(0, budget - len(first))
    rule = _Rule(episodes.removed, forest.n_images, tolerance)
    density = np.where(np.arange(episodes.n_steps) <= rule.base, _SAFEST_DENSITY, 1.0)
    sample.spread(int(_PILOT_SHARE * walks), density, episodes.n_steps)
    sample.ensure(_PILOT_STEP)
    sample.walk(probe)
    for round_ in range(_ROUNDS):
        left = walks - int(sample.taken.sum())
        decision = rule(sample.rates(sample.weights()), random)
        reach = rule.base + 1 if decision.chosen is None else decision.step
        until = min(episodes.n_steps, int(np.ceil(_HEADROOM * (reach + 1))) + 1)
        sample.spread(left // (_ROUNDS - round_), density, until)
        sample.walk(probe)
    decision = rule(sample.rates(sample.weights()), random)
    return _with_intervals(decision, sample, rule, random, np.random.default_rng([seed, 2]))


@dataclass(frozen=True)
class _Episodes:
    """The pairs of removed image and representative on a ladder of cuts, each with the steps at which it counts.

    Attributes:
        removed: Shape (K,), how many images each step's cut removes, ascending.
        image: Shape (E,), the removed image of each pair.
        representative: Shape (E,), the image that stays in its place.
        first: Shape (E,), the step at which the pair appears.
        last: Shape (E,), the last one at which it counts.
    """

    removed: _Ints
    image: _Ints
    representative: _Ints
    first: _Ints
    last: _Ints

    @property
    def n_steps(self) -> int:
        return len(self.removed)

    @classmethod
    def of(cls, forest: MergeForest) -> _Episodes:
        available = int((~forest.excluded).sum())
        most = available - forest.min_kept()
        step_size = max(1, round(_STEP * forest.n_images))
        ladder = np.append(np.arange(step_size, most, step_size), most)[:most]  # empty where nothing can go
        before = np.full(forest.n_images, -1, np.int64)
        began = np.full(forest.n_images, -1, np.int64)
        parts: list[tuple[_Ints, ...]] = []
        for step, cut in enumerate(forest.cuts(available - ladder)):
            now = np.where(cut.kept, -1, cut.representative)
            changed = now != before
            ended = np.flatnonzero(changed & (before >= 0))
            parts.append((ended, before[ended], began[ended], np.full(len(ended), step - 1)))
            began[changed] = step
            before = now
        open_ = np.flatnonzero(before >= 0)
        parts.append((open_, before[open_], began[open_], np.full(len(open_), len(ladder) - 1)))
        columns = [np.concatenate([part[column] for part in parts]) for column in range(4)]
        # By step and image, so that draws do not depend on when pairs end.
        order = np.lexsort((columns[0], columns[2]))
        return cls(ladder, *(column[order] for column in columns))


class _Sample:
    """Which pairs of the ladder have been walked: of each step's new pairs the first ones in a random order."""

    def __init__(self, episodes: _Episodes, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.episodes = episodes
        self.sizes = np.bincount(episodes.first, minlength=episodes.n_steps)
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.order = [start + rng.permutation(size) for start, size in zip(starts, self.sizes, strict=True)]
        self.taken = np.zeros(episodes.n_steps, np.int64)
        self.walked = np.zeros(len(episodes.image), dtype=bool)
        self.crosses = np.zeros(len(episodes.image), dtype=bool)

    def spread(self, count: int, density: _Floats, until: int) -> None:
        """Take up to `count` more pairs from the first `until` steps, then from those above once these are done.

        The share taken of a step's pairs is raised evenly, times the step's density.
        """
        count = min(count, int((self.sizes - self.taken).sum()))
        while count > 0:
            sizes, taken = self.sizes[:until], self.taken[:until]
            room = int((sizes - taken).sum())
            if room <= count:
                self.taken[:until] = sizes
                count -= room
                until += 1
                continue
            low, high = 0.0, 1.0
            for _ in range(50):
                middle = (low + high) / 2
                wanted = _shares(sizes, density[:until], middle)
                low, high = (middle, high) if np.maximum(wanted - taken, 0).sum() <= count else (low, middle)
            self.taken[:until] = np.maximum(taken, _shares(sizes, density[:until], low))
            return

    def ensure(self, least: int) -> None:
        """Take so many pairs of each step at least, so that every rate can be told."""
        self.taken = np.maximum(self.taken, np.minimum(self.sizes, least))

    def walk(self, probe: Probe) -> None:
        """Walk the pairs that were taken and not walked yet."""
        chosen = np.concatenate([order[:count] for order, count in zip(self.order, self.taken, strict=True)])
        new = np.sort(chosen[~self.walked[chosen]])
        self.crosses[new] = probe(self.episodes.image[new], self.episodes.representative[new])
        self.walked[new] = True

    def weights(self, rng: np.random.Generator | None = None) -> _Floats:
        """How many pairs each walked one stands for; with a generator, a bootstrap replicate of these numbers.

        A replicate draws n - 1 of a step's n walked pairs with replacement and weighs each by
        1 + sqrt(1 - n / N) (n / (n - 1) * times drawn - 1), which has the variance of a draw of n out of N.
        """
        weights = np.zeros(len(self.walked))
        for order, taken, size in zip(self.order, self.taken.tolist(), self.sizes.tolist(), strict=True):
            if not taken:
                continue
            factors = np.ones(taken)
            if rng is not None and 1 < taken < size:
                times = np.bincount(rng.integers(taken, size=taken - 1), minlength=taken)
                factors += np.sqrt(1 - taken / size) * (taken / (taken - 1) * times - 1)
            weights[order[:taken]] = size / taken * factors
        return weights

    def rates(self, weights: _Floats) -> _Floats:
        """The weighted share of crossing pairs among those that count at each step."""
        return np.clip(self._at_steps(weights * self.crosses) / self._at_steps(weights), 0.0, 1.0)

    def _at_steps(self, values: _Floats) -> _Floats:
        """The sum over the pairs that count at each step."""
        n_steps = self.episodes.n_steps
        begin = np.bincount(self.episodes.first, values, n_steps)
        end = np.bincount(self.episodes.last + 1, values, n_steps + 1)[:-1]
        return np.cumsum(begin - end)


def _shares(sizes: _Ints, density: _Floats, share: float) -> _Ints:
    return np.floor(np.minimum(share * density, 1.0) * sizes).astype(np.int64)


@dataclass(frozen=True)
class _Decision:
    """What the rule says of some rates.

    Attributes:
        rate: The rates, made non-decreasing.
        base_rate: Of the safest images.
        random_rate: Of random pairs of one class.
        limit: Up to which rate images go.
        chosen: How many of them, before rounding down; None for none.
        step: The last step that is not above the limit; -1 where nothing is chosen.
        message: Why.
    """

    rate: _Floats
    base_rate: float
    random_rate: float
    limit: float
    chosen: float | None
    step: int
    message: str


class _Rule:
    """The largest cut of the ladder whose rate is not above the limit.

    Args:
        removed: Shape (K,), how many images each cut removes.
        n_images: N.
        tolerance: See `crossing_curve`.
    """

    def __init__(self, removed: _Ints, n_images: int, tolerance: float) -> None:
        self.removed = removed
        self.n_images = n_images
        self.tolerance = tolerance
        #: The step that removes the safest images.
        self.base = min(int(np.searchsorted(removed, _SAFEST * n_images)), len(removed) - 1)

    def __call__(self, rates: _Floats, random: _Bools) -> _Decision:
        """Decide.

        Args:
            rates: Shape (K,), as estimated.
            random: For each random pair of one class whether its path crosses.
        """
        from sklearn.isotonic import isotonic_regression

        n_crossing, random_rate = int(random.sum()), float(random.mean())
        rate = np.asarray(isotonic_regression(rates, sample_weight=self.removed.astype(np.float64)), np.float64)
        base = float(rate[self.base])
        limit = base + self.tolerance * (random_rate - base)
        why = None
        of_base = f"of the paths of the safest 2 % of the images {_percent(base)} cross a boundary"
        of_random = f"those between random pairs of one class ({_percent(random_rate)})"
        if n_crossing < _LEAST_CROSSINGS:
            why = f"only {n_crossing} random pairs of one class have a path that crosses a boundary, too few to go by"
        elif base > _MAX_BASE_RATE:
            why = f"{of_base}, more than {_percent(_MAX_BASE_RATE)}"
        elif base >= _MAX_BASE_SHARE * random_rate:
            why = f"{of_base}, nearly as many as of {of_random}"
        if why is not None:
            return _Decision(rate, base, random_rate, limit, None, -1, f"nothing is removed: {why}")
        step = int(np.flatnonzero(rate <= limit)[-1])
        chosen = float(self.removed[step])
        if step + 1 < len(rate):
            share = (limit - rate[step]) / (rate[step + 1] - rate[step])
            chosen += float(share * (self.removed[step + 1] - self.removed[step]))
        message = (
            f"{_percent(chosen / self.n_images)} of the images can go: no more than {_percent(limit)} of the paths to "
            f"their representatives cross a boundary ({_percent(base)} for the safest 2 % of the images, "
            f"{_percent(random_rate)} for random pairs of one class)"
        )
        if step + 1 == len(rate):
            message += "; the merge trees go no further (`tree_floor`)"
        return _Decision(rate, base, random_rate, limit, chosen, step, message)


def _with_intervals(
    decision: _Decision, sample: _Sample, rule: _Rule, random: _Bools, rng: np.random.Generator
) -> CrossingCurve:
    """The decision with its intervals, which hold it."""
    replicates = [rule(sample.rates(sample.weights(rng)), rng.choice(random, len(random))) for _ in range(_REPLICATES)]
    low, high = np.quantile([replicate.rate for replicate in replicates], [0.025, 0.975], axis=0)
    bounds: list[float | None] = [None, None]
    n_removed = 0
    if decision.chosen is not None:
        quantiles = np.quantile([replicate.chosen or 0.0 for replicate in replicates], [0.025, 0.975])
        ends = min(quantiles[0], decision.chosen), max(quantiles[1], decision.chosen)
        bounds = [float(end) / rule.n_images for end in ends]
        n_removed = int(decision.chosen)
    return CrossingCurve(
        removed_fraction=(rule.removed / rule.n_images).tolist(),
        rate=decision.rate.tolist(),
        low=np.minimum(low, decision.rate).tolist(),
        high=np.maximum(high, decision.rate).tolist(),
        base_rate=decision.base_rate,
        random_rate=decision.random_rate,
        limit=decision.limit,
        chosen=None if decision.chosen is None else decision.chosen / rule.n_images,
        chosen_low=bounds[0],
        chosen_high=bounds[1],
        n_removed=n_removed,
        message=decision.message,
        n_pairs=int(sample.taken.sum()) + len(random),
    )


def _nothing(why: str) -> CrossingCurve:
    """The curve where there is nothing to choose from."""
    return CrossingCurve([], [], [], [], 0.0, 0.0, 0.0, None, None, None, 0, f"nothing is removed: {why}")


def _random_pairs(codes: _Ints, available: _Bools, count: int, seed: int) -> tuple[_Ints, _Ints]:
    """Pairs of different images of one class: the first any image of a class that has two, the second any other.

    Fewer pairs are the first ones of more.
    """
    images = np.flatnonzero(available)
    images = images[np.argsort(codes[images], kind="stable")]
    sizes = np.bincount(codes[images])
    images = images[sizes[codes[images]] > 1]
    if not len(images):
        return images, images
    starts = np.searchsorted(codes[images], np.arange(len(sizes)))
    drawn = np.random.default_rng([seed, 0]).random((count, 2))
    place = (drawn[:, 0] * len(images)).astype(np.int64)
    start, size = starts[codes[images[place]]], sizes[codes[images[place]]]
    other = start + (place - start + 1 + (drawn[:, 1] * (size - 1)).astype(np.int64)) % size
    return images[place], images[other]


def curve_text(curve: Mapping[str, Any]) -> str:
    """A curve as `CrossingCurve.plain` gives it, as a table and a sentence.

    Example:
        >>> curve = {
        ...     "removed_fraction": [0.01, 0.02, 0.03],
        ...     "rate": [0.0, 0.01, 0.2],
        ...     "low": [0.0, 0.0, 0.1],
        ...     "high": [0.0, 0.02, 0.3],
        ...     "chosen_low": 0.02,
        ...     "chosen_high": 0.022,
        ...     "message": "2.1 % of the images can go",
        ... }
        >>> print(curve_text(curve))
        images removed  paths that cross  95 % interval
                 1.0 %             0.0 %   0.0 to 0.0 %
                 2.0 %             1.0 %   0.0 to 2.0 %
        2.1 % of the images can go; 2.0 to 2.2 % with other draws of pairs.
    """
    removed = np.asarray(curve["removed_fraction"], np.float64)
    wanted = [share for share in _SHOWN if len(removed) and share <= removed[-1] + 0.005]
    rows = sorted({int(np.abs(removed - share).argmin()) for share in wanted})
    table = [("images removed", "paths that cross", "95 % interval")]
    table += [
        (
            _percent(removed[row]),
            _percent(curve["rate"][row]),
            f"{100 * curve['low'][row]:.1f} to {_percent(curve['high'][row])}",
        )
        for row in rows
    ]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    sentence = str(curve["message"])
    if curve["chosen_low"] is not None:
        low, high = 100 * curve["chosen_low"], _percent(curve["chosen_high"])
        sentence += f"; {low:.1f} to {high} with other draws of pairs"
    return "\n".join([*(lines if rows else []), f"{sentence[:1].upper()}{sentence[1:]}."])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
