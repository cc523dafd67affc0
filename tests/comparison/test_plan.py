import pytest

from toolkit.comparison import Plan, Run


def plan(**changes):
    settings = {"selectors": ["a", "b"], "dynamic": ["c"], "fractions": [0.5, 0.9], "seeds": [1, 2]}
    return Plan(**{**settings, **changes})


def test_every_method_runs_at_every_fraction_seed_and_budget():
    runs = list(plan().runs())
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 5 * 2)
    assert [run for run in runs if run.method == "full"] == [Run("full", 1.0, 1), Run("full", 1.0, 2)]
    for method in ("random", "balanced", "a", "b", "c"):
        mine = {(run.fraction, run.seed, run.budget) for run in runs if run.method == method}
        assert mine == {(f, s, b) for f in (0.9, 0.5) for s in (1, 2) for b in ("epochs", "steps")}
    assert plan().methods() == ["full", "random", "balanced", "a", "b", "c"]


def test_seeds_come_one_after_the_other_with_the_full_set_first():
    runs = list(plan().runs())
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert [runs[0].method, runs[len(runs) // 2].method] == ["full", "full"]
    assert runs[1].fraction == 0.9


def test_a_method_that_decides_itself_has_a_random_subset_as_large_beside_it():
    runs = list(plan(own_fraction=frozenset({"b", "c"}), budgets=["steps"], seeds=[1]).runs())
    assert Run("b", None, 1, "steps") in runs
    assert Run("random", None, 1, "steps", like="b") in runs
    assert Run("c", None, 1, "steps") in runs
    assert not any(run.like == "c" for run in runs), "what changes while training keeps no number of images"
    assert not any(run.method in {"b", "c"} and run.fraction for run in runs)


def test_runs_of_both_budgets_share_their_choice():
    epochs, steps = Run("a", 0.5, 1, "epochs"), Run("a", 0.5, 1, "steps")
    assert epochs.choice == steps.choice
    assert epochs.title == "a, 50 % kept, as many epochs, seed 1"
    assert Run("random", None, 2, "steps", like="a").title == "random, as many as a, as many steps, seed 2"
    assert Run("full", 1.0, 3).title == "full set, seed 3"


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"selectors": ["random"]}, ValueError, "`selectors` must be named otherwise than full, random, balanced"),
        ({"selectors": ["c"]}, ValueError, "`selectors` must be without an item that is there twice"),
        ({"fractions": []}, ValueError, "`fractions` must be a list with at least one item, got"),
        ({"fractions": [0.5, 0.5]}, ValueError, "`fractions` must be without an item that is there twice"),
        ({"fractions": [1.0]}, ValueError, "`fractions` must be below 1, .* got 1.0"),
        ({"fractions": [1.5]}, ValueError, r"`fractions` must be in \(0, 1\], got 1.5"),
        ({"seeds": []}, ValueError, "`seeds` must be a list with at least one item"),
        ({"seeds": [True]}, TypeError, "`seeds` must be whole numbers, got True"),
        ({"budgets": ["hours"]}, ValueError, "`budgets` must be one of 'epochs', 'steps', got 'hours'"),
    ],
)
def test_errors(changes, error, match):
    with pytest.raises(error, match=match):
        plan(**changes)
