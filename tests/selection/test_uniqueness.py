import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

from toolkit import Selector, UniquenessSelector
from toolkit.selection import find_unique, uniqueness

DISTANCES = {"cosine": cosine_distances, "euclidean": euclidean_distances}


def vectors(n=150, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def selector(features, keep_fraction=0.8, **options):
    return UniquenessSelector(features, keep_fraction, progress=False, **options)


def scores_by_hand(x, metric):
    nearest = np.sort(DISTANCES[metric](x), axis=1)[:, 1:4]
    scores = np.mean(nearest * [0.6, 0.3, 0.1], axis=1)
    return scores / scores.max()


def unique_by_hand(apart, radius, order):
    """FiftyOne's pass: each that stays drops those after it within the radius."""
    stays = np.ones(len(apart), dtype=bool)
    for at, i in enumerate(order):
        if stays[i]:
            after = order[at + 1 :]
            stays[after[apart[i, after] <= radius]] = False
    return stays


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_and_order_are_those_of_the_slow_twin(metric):
    x = vectors()
    wanted = scores_by_hand(x, metric)
    np.testing.assert_allclose(uniqueness(x, metric=metric), wanted, atol=1e-9)
    selection = selector(x, metric=metric).select()
    assert set(selection.kept) == set(np.argsort(-wanted)[:120])
    for count in (1, 60, 149):
        assert set(selection.with_keep_fraction(count / 150).kept) == set(np.argsort(-wanted)[:count])
    assert set(selection.reasons) == {"kept", "redundant"}
    assert isinstance(selector(x), Selector)


def test_few_or_equal_vectors():
    np.testing.assert_array_equal(uniqueness(vectors(3)), [1, 1, 1])
    np.testing.assert_array_equal(uniqueness(np.ones((5, 2))), np.zeros(5))
    np.testing.assert_array_equal(selector(np.ones((5, 2)), 0.4).select().kept, [0, 1])


def test_decisions_are_kept():
    x = vectors()
    worst = np.argsort(scores_by_hand(x, "cosine"))
    selection = selector(x, always_keep=[worst[0]], always_remove=[worst[-1]]).select()
    assert worst[0] in selection.kept
    assert selection.reasons[worst[-1]] == "excluded"
    assert len(selection.kept) == 120


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("n_kept", [1, 2, 20, 75, 120, 149, 150])
def test_a_radius_that_meets_the_budget_is_found(metric, n_kept):
    x = vectors()
    stays = find_unique(x, n_kept, metric=metric)
    assert int(stays.sum()) == n_kept
    apart = DISTANCES[metric](x)
    radii = np.unique(apart[np.triu_indices(150, 1)])
    at = np.searchsorted(radii, apart[np.ix_(stays, stays)][np.triu_indices(n_kept, 1)].min(initial=np.inf)) - 1
    twin = unique_by_hand(apart, radii[max(at, 0)] + 1e-12, np.arange(150))
    if int(twin.sum()) == n_kept and n_kept < 150:
        # Two of those that stay are farther apart than the radius, and it is the largest with that property.
        assert (apart[np.ix_(stays, stays)] + 9 * np.eye(n_kept)).min() > radii[max(at, 0)]


@pytest.mark.parametrize("radius", [0.05, 0.2, 0.5, 1.0])
def test_the_pass_is_that_of_the_slow_twin(radius):
    x = vectors()
    apart = euclidean_distances(x)
    twin = unique_by_hand(apart, radius, np.arange(150))
    stays = find_unique(x, int(twin.sum()), metric="euclidean")
    # The same number can be left by several radii: the one that was found is one of them.
    candidates = [unique_by_hand(apart, r + 1e-12, np.arange(150)) for r in np.unique(apart) if r < 2 * radius + 1]
    assert any(np.array_equal(stays, other) for other in candidates)


def test_where_no_radius_meets_the_budget_the_nearest_go():
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [9.0, 9.0]])
    # Within 1, the first drops two of its three neighbours, the opposite corner stays: 3; below 1 all 5 stay.
    assert find_unique(square, 3, metric="euclidean").tolist() == [True, False, True, False, True]
    assert find_unique(square, 4, metric="euclidean").tolist() == [True, False, True, True, True]
    assert find_unique(np.ones((6, 2)), 4).tolist() == [True, False, False, True, True, True]
    pairs = np.repeat(vectors(3), 2, axis=0)
    assert int(find_unique(pairs, 2).sum()) == 2
    held = np.array([False, False, True, True, False, True])
    assert find_unique(np.ones((6, 2)), 4, preferred=held).tolist() == [False, False, True, True, True, True]


def test_a_star_whose_centre_comes_first_is_thinned_further():
    # Within 1 the centre drops all others, below 1 nobody goes: the first of the pairs at 1 go, one by one.
    star = np.concatenate([[[0.0, 0.0]], [[np.cos(a), np.sin(a)] for a in np.arange(5) * 2 * np.pi / 5]])
    for n_kept in range(1, 7):
        assert int(find_unique(star, n_kept, metric="euclidean").sum()) == n_kept


def test_the_radius_grows_again_where_too_many_are_left():
    # At 0.99 the second drops the third, which would drop the last three; at 1.05 the first drops the second, and the
    # third is back: 5 stay, or 2. Of the 5, only the first two are near each other; the last three are 1.71 apart.
    ring = [[0.99 * np.cos(a), 0.99 * np.sin(a), 0.0] for a in np.arange(3) * 2 * np.pi / 3]
    x = np.array([[0, 0, 2.04], [0, 0, 0.99], [0, 0, 0], *ring])
    assert find_unique(x, 2, metric="euclidean").tolist() == [True, False, True, False, False, False]
    stays = find_unique(x, 3, metric="euclidean")
    assert stays[:3].tolist() == [True, False, False]
    assert int(stays.sum()) == 3


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_met_on_a_grid(seed):
    x = np.random.default_rng(seed).integers(0, 4, (40, 2)).astype(float)
    held = np.random.default_rng(seed).random(40) < 0.1
    for n_kept in range(max(1, int(held.sum())), 41, 4):
        stays = find_unique(x, n_kept, metric="euclidean", preferred=held)
        assert int(stays.sum()) == n_kept
        assert stays[held].all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_greedy_names_the_nearest_that_stays(metric):
    x = vectors()
    selection = selector(x, greedy=True, metric=metric, always_keep=[5], always_remove=[9]).select()
    assert len(selection.kept) == 120
    assert 5 in selection.kept
    assert selection.reasons[9] == "excluded"
    assert (selection.group[9], selection.representative[9]) == (-1, -1)
    apart = DISTANCES[metric](x)
    for i in np.setdiff1d(selection.removed, [9]):
        assert selection.representative[i] == selection.kept[apart[i, selection.kept].argmin()]
        np.testing.assert_allclose(selection.distance[i], apart[i, selection.kept].min(), atol=1e-6)
        assert selection.group[i] == selection.group[selection.representative[i]]
    with pytest.raises(ValueError, match="this selection was stored without a merge tree"):
        selection.with_keep_fraction(0.5)
    np.testing.assert_array_equal(selector(x, 1.0, greedy=True).select().kept, np.arange(150))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep_fraction": 1.5}, r"`keep_fraction` must be in \(0, 1\], got 1.5"),
        ({"metric": "l1"}, "`metric` must be one of 'cosine', 'euclidean', got 'l1'"),
        ({"keep_fraction": 0.01}, "`keep_fraction` must be large enough to keep one of 20 images"),
        ({}, "`features` must have no zero rows under the cosine"),
    ],
)
def test_errors(options, match):
    x = vectors(20)
    x[4] = 0
    with pytest.raises(ValueError, match=match):
        selector(x, **options).select()
