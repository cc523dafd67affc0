"""What the rows of a comparison say: means with their spread, differences by seed, and time that was saved."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from toolkit.comparison.plan import ALWAYS, FULL, RANDOM
from toolkit.comparison.storage import DONE
from toolkit.validation import check_choice, invalid

#: Which of a run's networks is scored on the test images: that of the last step, or that which was best in validation.
NETWORKS = ("last", "best")
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """The mean of some runs, and how sure it is.

    Attributes:
        n: Number of runs, each with a seed of its own.
        mean: Their mean.
        std: Their standard deviation (n - 1); None for a single run.
        low: Lower end of the mean's 95 % interval by Student's t; None for a single run.
        high: Upper end.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, 0 where it is not known which."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, standard deviation and 95 % interval of some runs' values; None without any.

    The interval is mean +- t s / sqrt(n), with s the standard deviation and t the 97.5 % quantile of Student's
    distribution with n - 1 degrees of freedom: it takes the seeds' values as drawn from a normal distribution.

    Args:
        values: One for each seed.

    Raises:
        ValueError: If a value is not finite.

    Example:
        >>> found = estimate([0.90, 0.92, 0.94])
        >>> found.n, round(found.mean, 3), round(found.std, 3), round(found.low, 3), round(found.high, 3)
        (3, 0.92, 0.02, 0.87, 0.97)
    """
    array = np.asarray(values, np.float64)
    if not len(array):
        return None
    if not np.isfinite(array).all():
        raise invalid("values", "finite", float(array[~np.isfinite(array)][0]))
    mean = float(array.mean())
    if len(array) == 1:
        return Estimate(1, mean, None, None, None)
    std = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(array) - 1)) * std / math.sqrt(len(array))
    return Estimate(len(array), mean, std, mean - half, mean + half)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean difference of two methods' values over the seeds that both have, with its interval.

    Args:
        ours: A value for each seed.
        theirs: Those that are taken off, seed by seed.

    Example:
        >>> paired({1: 0.95, 2: 0.93, 3: 0.9}, {1: 0.94, 2: 0.92}).n
        2
    """
    return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


@dataclass(frozen=True)
class Summary:
    """What the seeds of one method, fraction and budget say together.

    Attributes:
        method: The method's name.
        fraction: The share of the training images that it may use; None where it decides itself.
        budget: `epochs` or `steps`.
        like: Of a random subset, the method that it is as large as; else None.
        n_failed: How many runs failed.
        errors: Why, each reason once.
        kept_fraction: The share of the images that was used, or of those gone through where that changes in training.
        score: The score on the test images of the network of the last step.
        score_best: That of the network which was best on the validation images.
        over_random: `score` less that of the random subset of the same size, by seed; None where there is none.
        over_random_best: The same of `score_best`.
        over_full: `score` less that of the full set, by seed.
        over_full_best: The same of `score_best`.
        seconds_baseline: Time of training the network that the method chooses by; 0 where there is none.
        seconds_choosing: Time of choosing, extraction of features included.
        seconds_training: Time of training, validation not included.
        saving: The share of the full set's training time that choosing and training together save, by seed, where the
            network that the method chooses by exists already.
        saving_net: The same where that network is trained for it.
        joules: Energy of choosing and training; None where it is not told.
    """

    method: str
    fraction: float | None
    budget: str
    like: str | None
    n_failed: int
    errors: tuple[str, ...]
    kept_fraction: float | None
    score: Estimate | None
    score_best: Estimate | None
    over_random: Estimate | None
    over_random_best: Estimate | None
    over_full: Estimate | None
    over_full_best: Estimate | None
    seconds_baseline: Estimate | None
    seconds_choosing: Estimate | None
    seconds_training: Estimate | None
    saving: Estimate | None
    saving_net: Estimate | None
    joules: Estimate | None

    def scored(self, network: str) -> tuple[Estimate | None, Estimate | None]:
        """The score, and the difference to random, of the `last` network or the `best`."""
        last = check_choice("network", network, NETWORKS) == "last"
        return (self.score, self.over_random) if last else (self.score_best, self.over_random_best)

    @property
    def seconds(self) -> float | None:
        """Mean seconds of all that the method takes, a network to choose by included."""
        parts = (self.seconds_baseline, self.seconds_choosing, self.seconds_training)
        return None if any(part is None for part in parts) else sum(part.mean for part in parts if part is not None)


def summarise_runs(rows: Iterable[Mapping[str, Any]]) -> list[Summary]:
    """Put the seeds of each method, fraction and budget together.

    Args:
        rows: Rows as `Results` holds them; of the same experiment.

    Returns:
        A summary for each method, fraction and budget that has a row, in the order of their first rows.

    Example:
        >>> common = {"budget": "epochs", "status": "done", "test_best": 0.9, "fraction": 0.5}
        >>> rows = [{"method": method, "seed": seed, "test_last": base + 0.01 * seed, **common}
        ...     for method, base in (("random", 0.9), ("mine", 0.92)) for seed in (1, 2, 3)]
        >>> mine = summarise_runs(rows)[1]
        >>> round(mine.score.mean, 3), round(mine.over_random.mean, 3), mine.over_random.n
        (0.94, 0.02, 3)
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row.get("fraction"), row["budget"], row.get("like")].append(row)
    done = {
        group: {int(row["seed"]): row for row in members if row["status"] == DONE} for group, members in groups.items()
    }
    full = next((by_seed for group, by_seed in done.items() if group[0] == FULL), {})
    found = []
    for (method, fraction, budget, like), members in groups.items():
        mine = done[method, fraction, budget, like]
        rival = (RANDOM, fraction, budget, None) if fraction is not None else (RANDOM, None, budget, method)
        random = {} if method in {FULL, RANDOM} else done.get(rival, {})
        failed = [row for row in members if row["status"] != DONE]
        joules = _column(mine, "joules")
        found.append(
            Summary(
                method=method,
                fraction=fraction,
                budget=budget,
                like=like,
                n_failed=len(failed),
                errors=tuple(dict.fromkeys(str(row.get("error")) for row in failed)),
                kept_fraction=_mean(_column(mine, "kept_fraction")),
                score=_estimate(_column(mine, "test_last")),
                score_best=_estimate(_column(mine, "test_best")),
                over_random=paired(_column(mine, "test_last"), _column(random, "test_last")),
                over_random_best=paired(_column(mine, "test_best"), _column(random, "test_best")),
                over_full=None if method == FULL else paired(_column(mine, "test_last"), _column(full, "test_last")),
                over_full_best=None
                if method == FULL
                else paired(_column(mine, "test_best"), _column(full, "test_best")),
                seconds_baseline=_estimate(_column(mine, "seconds_baseline")),
                seconds_choosing=_estimate(_column(mine, "seconds_choosing")),
                seconds_training=_estimate(_column(mine, "seconds_training")),
                saving=_saving(mine, full, ("seconds_choosing", "seconds_training")),
                saving_net=_saving(mine, full, ("seconds_baseline", "seconds_choosing", "seconds_training")),
                joules=_estimate(joules) if len(joules) == len(mine) else None,
            )
        )
    return found


def verdict(summaries: Iterable[Summary], budget: str, network: str = "last") -> str:
    """In words, how often choosing beat a random subset of the same size.

    Args:
        summaries: The summaries of a comparison.
        budget: Which of them count.
        network: `last` or `best`.
    """
    differences = [
        difference
        for summary in summaries
        if summary.budget == budget and summary.method not in ALWAYS
        for difference in (summary.scored(network)[1],)
        if difference is not None and difference.low is not None
    ]
    if not differences:
        return "There are not enough runs yet to compare anything with random subsets."
    above = sum(difference.sign > 0 for difference in differences)
    below = sum(difference.sign < 0 for difference in differences)
    chance = (1 - _CONFIDENCE) * len(differences)
    return (
        f"Of {len(differences)} comparisons with a random subset of the same size, {above} are better and {below} "
        f"worse by a difference whose 95 % interval leaves out 0; of the other {len(differences) - above - below} that "
        f"cannot be said. Where nothing differs, about {chance:.1f} of so many leave it out by chance."
    )


def _column(by_seed: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    return {seed: float(row[name]) for seed, row in by_seed.items() if row.get(name) is not None}


def _estimate(column: Mapping[int, float]) -> Estimate | None:
    return estimate(list(column.values()))


def _mean(column: Mapping[int, float]) -> float | None:
    return sum(column.values()) / len(column) if column else None


def _saving(
    mine: Mapping[int, Mapping[str, Any]], full: Mapping[int, Mapping[str, Any]], parts: Sequence[str]
) -> Estimate | None:
    """One less the share of the full set's training time that some parts take, by seed."""
    whole = _column(full, "seconds_training")
    shares = []
    for seed, row in mine.items():
        seconds = [row.get(part) for part in parts]
        if whole.get(seed) and None not in seconds:
            shares.append(1 - sum(float(value) for value in seconds if value is not None) / whole[seed])
    return estimate(shares)
