import numpy as np
import pytest

from toolkit import KCenterSelector, Selector


def vectors(n=200, d=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(2, 0.1, d)


def selector(features, keep_fraction=0.5, **options):
    return KCenterSelector(features, keep_fraction, progress=False, **options)


def by_hand(x, first=None):
    """Greedy k-centre with all distances, one centre at a time."""
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    first = [int(((x - x.mean(0)) ** 2).sum(1).argmin())] if first is None else first
    order, nearest = [], np.full(len(x), np.inf)
    for k in range(len(x)):
        pick = first[k] if k < len(first) else int(np.where(np.isin(np.arange(len(x)), order), -1, nearest).argmax())
        order.append(pick)
        nearest = np.minimum(nearest, apart[pick])
    return order


@pytest.mark.parametrize("d", [1, 3, 20, 60])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_centres_are_those_of_the_slow_twin(d, metric, monkeypatch):
    monkeypatch.setattr("toolkit.selection.k_center._STEP", 17)
    monkeypatch.setattr("toolkit.selection.k_center._CHUNK_ELEMENTS", 100)
    x = vectors(d=d) + 0.3
    order = by_hand(x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x)
    selection = selector(x, 0.5, metric=metric).select()
    if metric == "euclidean" or d > 1:  # on the line, cosines are 0 or 2 only
        np.testing.assert_array_equal(selection.recut.order, order)
    assert len(selection.kept) == 100
    assert set(selection.reasons) == {"kept", "redundant"}
    for count in (1, 30, 199):
        again = selection.with_keep_fraction(count / 200)
        assert set(again.kept) == set(selection.recut.order[:count])


def test_the_largest_distance_left_is_at_most_twice_the_best():
    x = np.concatenate([np.random.default_rng(c).normal(c * 100, 1, (30, 2)) for c in range(5)])
    centres = selector(x, 5 / 150).select().kept
    left = np.sqrt(((x[:, None] - x[centres][None]) ** 2).sum(-1)).min(1).max()
    assert sorted(centres // 30) == [0, 1, 2, 3, 4]
    assert left <= 2 * 4


def test_images_always_kept_are_the_first_centres():
    x = vectors()
    selection = selector(x, 0.1, always_keep=[7, 3, 150], always_remove=[0, 1]).select()
    rest = np.arange(2, 200)
    order = by_hand(x[2:], [1, 5, 148])
    np.testing.assert_array_equal(selection.recut.order, np.concatenate([rest[order], [0, 1]]))
    assert {3, 7, 150} <= set(selection.kept)
    assert [selection.reasons[i] for i in (0, 1)] == ["excluded", "excluded"]


def test_duplicates_come_last_in_the_order_of_their_indices():
    x = np.repeat(vectors(20), 3, axis=0)
    order = selector(x).select().recut.order
    assert sorted(order[:20] % 3) == [0] * 20
    np.testing.assert_array_equal(order[20:], np.setdiff1d(np.arange(60), order[:20]))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_scale_of_the_vectors_and_the_other_labels_do_not_matter(scale):
    x = vectors(60)
    before = x.copy()
    x.flags.writeable = False
    here, there = selector(x).select(labels=np.arange(60)), selector(x * scale).select()
    np.testing.assert_array_equal(here.kept, there.kept)
    np.testing.assert_array_equal(x, before)
    assert isinstance(selector(x), Selector)
    np.testing.assert_array_equal(selector(np.zeros((4, 2)), 0.5).select().kept, [0, 1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep_fraction": 0.0}, r"`keep_fraction` must be in \(0, 1\], got 0.0"),
        ({"metric": "cityblock"}, "`metric` must be one of 'cosine', 'euclidean', got 'cityblock'"),
        ({"keep_fraction": 0.01}, "`keep_fraction` must be large enough to keep one of 20 images"),
        ({"always_keep": list(range(11))}, "`always_keep` must be at most the 10 images that are kept"),
        ({"metric": "cosine"}, "`features` must have no zero rows under the cosine"),
    ],
)
def test_errors(options, match):
    x = vectors(20)
    x[4] = 0
    with pytest.raises(ValueError, match=match):
        selector(x, **options).select()


def test_a_budget_is_needed():
    with pytest.raises(TypeError, match=r"`keep_fraction` must be a number in \(0, 1\], got None"):
        KCenterSelector(vectors(), progress=False).select()
