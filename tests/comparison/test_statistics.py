import numpy as np
import pytest
from scipy import stats

from toolkit.comparison import estimate, summarise_runs
from toolkit.comparison.statistics import paired, verdict


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(0.9, 0.01, n)
    found = estimate(values)
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.n, found.mean, found.std) == (n, pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_single_run_has_no_spread_and_none_no_mean():
    found = estimate([0.5])
    assert (found.n, found.mean, found.std, found.low, found.high, found.sign) == (1, 0.5, None, None, None, 0)
    assert estimate([]) is None
    same = estimate([0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)
    with pytest.raises(ValueError, match="`values` must be finite, got nan"):
        estimate([0.5, float("nan")])


def test_differences_are_taken_seed_by_seed():
    ours, theirs = {1: 0.9, 2: 0.8, 3: 0.7, 9: 0.0}, {1: 0.88, 2: 0.79, 3: 0.69}
    found = paired(ours, theirs)
    test = stats.ttest_rel([0.9, 0.8, 0.7], [0.88, 0.79, 0.69]).confidence_interval(0.95)
    assert found.n == 3
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert (found.sign, paired(theirs, ours).sign) == (0, 0)
    assert paired({1: 1.0, 2: 1.1, 3: 1.0}, {1: 0.0, 2: 0.0, 3: 0.1}).sign == 1
    assert paired({1: 0.0, 2: 0.0, 3: 0.1}, {1: 1.0, 2: 1.1, 3: 1.0}).sign == -1
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_rows_become_summaries(rows):
    found = {(s.method, s.fraction, s.like): s for s in summarise_runs(rows)}
    assert len(found) == 11
    mine = found["mine", 0.5, None]
    assert mine.score.mean == pytest.approx(0.92)
    assert mine.score_best.mean == pytest.approx(0.93)
    assert (mine.over_random.n, mine.over_random.mean) == (3, pytest.approx(0.05))
    assert mine.over_random.std == pytest.approx(0.001)
    assert mine.over_random.sign == 1
    assert mine.over_full.mean == pytest.approx(0.92 - 0.952)
    assert mine.saving.mean == pytest.approx(1 - (1.0 + 5.0) / 10.0)
    assert mine.saving_net.mean == pytest.approx(1 - (10.0 + 1.0 + 5.0) / 10.0)
    assert mine.seconds == pytest.approx(16.0)
    assert mine.scored("best") == (mine.score_best, mine.over_random_best)
    assert found["mine", 0.9, None].over_random.sign == 0
    fragile = found["fragile", 0.5, None]
    assert (fragile.n_failed, fragile.errors, fragile.score) == (3, ("ValueError: too <few>",), None)
    auto = found["auto", None, None].over_random
    assert (auto.n, auto.sign) == (3, 0)
    assert auto.mean == pytest.approx(0.02 / 3)
    assert found["random", 0.5, None].over_random is None
    assert found["full", 1.0, None].over_full is None
    assert all(summary.joules is None for summary in found.values())
    with pytest.raises(ValueError, match="`network` must be one of 'last', 'best', got 'first'"):
        mine.scored("first")


def test_energy_is_told_only_where_every_seed_tells_it(rows):
    told = [{**row, "joules": 100.0 * row["seed"]} for row in rows]
    assert all(s.joules.mean == 200.0 for s in summarise_runs(told) if s.score is not None)
    told[0]["joules"] = None
    assert summarise_runs(told)[0].joules is None


def test_the_order_of_rows_changes_no_summary(rows):
    forward = {(s.method, s.fraction, s.like): s for s in summarise_runs(rows)}
    backward = {(s.method, s.fraction, s.like): s for s in summarise_runs(rows[::-1])}
    assert forward.keys() == backward.keys()
    for key, summary in forward.items():
        if summary.score is not None:
            assert summary.score.mean == pytest.approx(backward[key].score.mean)
            assert summary.saving_net is None or summary.saving_net.mean == pytest.approx(backward[key].saving_net.mean)


def test_the_verdict_counts(rows):
    text = verdict(summarise_runs(rows), "epochs")
    assert "Of 4 comparisons with a random subset of the same size" in text
    assert verdict(summarise_runs(rows), "steps").startswith("There are not enough runs yet")
