import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from toolkit import FeatureExtractor, FeatureMapSelector, Selection, Selector
from toolkit.outliers import OutlierModeWarning, outlier_scores
from toolkit.representations.reduction import pca
from toolkit.selection import VanishingClassWarning, predicted_classes
from toolkit.selection.outlier_forest import OutlierForest, Shares
from toolkit.selection.outlier_order import first_of_each, outlier_order
from toolkit.selection.quota import allocate
from toolkit.selection.result import OUTLIER, REDUNDANT


def vectors(n=120, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def classes(n=120, seed=0):
    return np.random.default_rng(seed).choice(3, n, p=[0.6, 0.3, 0.1])


def selector(features, keep_fraction=0.9, **options):
    return FeatureMapSelector(features, keep_fraction, **{"progress": False} | options)


def chosen(features, keep_fraction=0.9, labels=None, **options):
    """The selection, without the warnings that made-up data deserves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutlierModeWarning)
        warnings.simplefilter("ignore", VanishingClassWarning)
        return selector(features, keep_fraction, **options).select(labels=labels)


def cosine(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - unit @ unit.T


def groups_of(labels):
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels) if label >= 0}


def by_hand(x, n_kept, share, linkage):
    """The thesis' method: outliers by the distances to 16 neighbours, then groups of all others."""
    apart = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    scores = np.sort(apart, axis=1)[:, 1:17].mean(axis=1)
    n_outliers = int(np.floor(share * (len(x) - n_kept)))
    out = np.argsort(-scores, kind="stable")[:n_outliers]
    rest = np.setdiff1d(np.arange(len(x)), out)
    labels = AgglomerativeClustering(n_kept, metric="cosine", linkage=linkage).fit_predict(x[rest])
    return set(out.tolist()), {frozenset(rest[list(group)].tolist()) for group in groups_of(labels)}


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("keep_fraction", [0.95, 0.8, 0.5])
def test_outliers_go_by_score_and_the_rest_is_scikit_learns_with_the_medoids(keep_fraction, share, linkage):
    x = vectors()
    selection = chosen(x, keep_fraction, outlier_share=share, linkage=linkage)
    n_kept = round(keep_fraction * 120)
    out, wanted = by_hand(x, n_kept, share, linkage)
    assert set(np.flatnonzero(selection.status == OUTLIER).tolist()) == out
    assert groups_of(selection.group) == wanted
    assert len(selection.kept) == n_kept
    distance = cosine(x)
    for group in wanted:
        members = sorted(group)
        sums = distance[np.ix_(members, members)].sum(1)
        medoid = members[int(np.flatnonzero(sums <= sums.min() + 1e-9)[0])]
        assert (selection.representative[members] == medoid).all()
        np.testing.assert_allclose(selection.distance[members], distance[medoid, members], atol=1e-6)
        assert {selection.reasons[i] for i in members if i != medoid} <= {"redundant"}
        assert selection.reasons[medoid] == "kept"
    for i in out:
        assert (selection.group[i], selection.representative[i]) == (-1, -1)
        assert np.isnan(selection.distance[i])


@pytest.mark.parametrize("method", ["knn", "hdbscan", "glosh"])
def test_outliers_are_the_first_by_each_score(method):
    x = vectors(200, 3)
    selection = chosen(x, 0.8, outlier_score=method)
    scores = outlier_scores(x, method)
    first = np.argsort(-scores, kind="stable")[:20]
    assert set(np.flatnonzero(selection.status == OUTLIER)) == set(first)
    np.testing.assert_array_equal(selection.recut.scores, scores)
    assert isinstance(selector(x), Selector)


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("balance", [None, "label"])
@pytest.mark.parametrize("floor", [0.5, 0.07])
def test_every_budget_is_met_exactly_and_keeps_its_promises(balance, share, floor):
    x, y = vectors(97, 3), classes(97)
    options = {"balance": balance, "outlier_share": share, "tree_floor": floor, "always_keep": [1, 2, 3]}
    whole = chosen(x, 0.99, y, **options, always_remove=[7])
    distance, sizes, available = cosine(x), np.bincount(y), np.bincount(np.delete(y, 7))
    assert whole.recut.min_kept() == int(floor * 97)
    for count in range(int(floor * 97), 97):
        selection = whole.with_keep_fraction(count / 97)
        kept, out = selection.kept, selection.status == OUTLIER
        assert len(kept) == count
        assert {1, 2, 3} <= set(kept)
        assert selection.reasons[7] == "excluded"
        redundant = np.flatnonzero(selection.status == REDUNDANT)
        assert int(out.sum()) + len(redundant) + count + 1 == 97
        stands = selection.representative[redundant]
        assert np.isin(stands, kept).all()
        assert (selection.group[stands] == selection.group[redundant]).all()
        np.testing.assert_allclose(selection.distance[redundant], distance[stands, redundant], atol=1e-6)
        assert (selection.representative[kept] == kept).all()
        if floor == 0.5:
            # Far from the floor, there are enough images that stand alone.
            assert int(out.sum()) == np.floor(share * (96 - count))
        if balance:
            low = np.maximum(1, np.bincount(y[[1, 2, 3]], minlength=3))
            assert np.bincount(y[kept]).tolist() == allocate(count, sizes, low, available).tolist()


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_a_later_cut_takes_the_next_outliers_and_the_next_merges(linkage, tmp_path):
    x = vectors(150, 4, seed=2)
    first = chosen(x, 0.8, outlier_share=0.4, linkage=linkage)
    stored = Selection.load(first.save(tmp_path))
    out_first, _ = by_hand(x, 120, 0.4, linkage)
    rest = np.setdiff1d(np.arange(150), sorted(out_first))
    scores = outlier_scores(x)
    for count in (145, 130, 120, 110, 90, 75):
        n_outliers = int(np.floor(0.4 * (150 - count)))
        n_alike = 150 - count - n_outliers
        labels = AgglomerativeClustering(len(rest) - n_alike, metric="cosine", linkage=linkage).fit_predict(x[rest])
        groups = [set(rest[list(group)].tolist()) for group in groups_of(labels)]
        alone = out_first | {min(group) for group in groups if len(group) == 1}
        out = set(sorted(alone, key=lambda i: (-scores[i], i))[:n_outliers])
        wanted = {frozenset(group) for group in groups if not group <= out} | {frozenset({i}) for i in out_first - out}
        for again in (first.with_keep_fraction(count / 150), stored.with_keep_fraction(count / 150)):
            assert set(np.flatnonzero(again.status == OUTLIER).tolist()) == out
            assert groups_of(again.group) == wanted
            assert len(again.kept) == count
            assert again.config["keep_fraction"] == count / 150
    same = first.with_keep_fraction(0.8)
    for name in ("status", "group", "representative", "distance"):
        np.testing.assert_array_equal(getattr(same, name), getattr(first, name), name)


def test_arrays_of_the_forest_come_back():
    recut = chosen(vectors(), 0.8, classes(), balance="label", always_remove=[5]).recut
    again = OutlierForest.from_arrays(recut.arrays())
    for name, value in recut.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], value, name)
    np.testing.assert_array_equal(np.flatnonzero(again.excluded), [5])


def test_trees_are_grown_until_enough_images_can_go(monkeypatch):
    grown = []
    original = FeatureMapSelector._trees
    monkeypatch.setattr(FeatureMapSelector, "_trees", lambda *args: grown.append(1) or original(*args))
    x = np.repeat(vectors(60), 2, axis=0) + 1e-3 * vectors(120, seed=1)  # pairs: few images are left on their own
    selection = chosen(x, 0.9, tree_floor=0.2)
    assert len(grown) > 1
    assert len(selection.with_keep_fraction(0.2).kept) == 24


def test_shares_and_orders_within_classes():
    sizes = np.array([50, 30, 20])
    shares = Shares.of(70, 0.5, sizes, np.array([1, 1, 20]), sizes)
    assert shares.kept.tolist() == [31, 19, 20]
    assert shares.outliers.tolist() == [10, 5, 0]
    assert shares.redundant.tolist() == [9, 6, 0]
    assert Shares.of(100, 0.5, sizes, sizes * 0, sizes).outliers.tolist() == [0, 0, 0]
    rng = np.random.default_rng(0)
    codes, order, counts = rng.integers(0, 5, 60), rng.permutation(60)[:40], np.array([3, 0, 99, 1, 2])
    taken, wanted = counts * 0, []
    for i in order:
        if taken[codes[i]] < counts[codes[i]]:
            taken[codes[i]] += 1
            wanted.append(i)
    assert first_of_each(order, codes, counts).tolist() == wanted


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_balance_keeps_class_ratios_among_the_kept_the_outliers_and_the_alike(share):
    x, y = vectors(300), classes(300)
    x[y == 2] *= 10  # without quotas, all outliers would be of this class
    plain = chosen(x, 0.8, y, outlier_share=share)
    assert set(y[plain.status == OUTLIER]) == {2}
    selection = chosen(x, 0.8, y, outlier_share=share, balance="label")
    sizes = np.bincount(y)
    shares = Shares.of(240, share, sizes, np.ones(3, int), sizes)
    for status, wanted in ((OUTLIER, shares.outliers), (REDUNDANT, shares.redundant), (0, shares.kept)):
        assert np.bincount(y[selection.status == status], minlength=3).tolist() == wanted.tolist()
    gone = np.flatnonzero(selection.status == REDUNDANT)
    assert (y[selection.representative[gone]] == y[gone]).all(), "groups lie within a class"
    scores = outlier_scores(x)
    for c in range(3):
        of_class = np.flatnonzero(y == c)
        first = of_class[np.argsort(-scores[of_class], kind="stable")][: shares.outliers[c]]
        assert set(first) == set(of_class[selection.status[of_class] == OUTLIER])


class Network(nn.Module):
    """Two numbers an image are its features; the larger of three linear functions of them is its class."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])

    def forward(self, images):
        return self.head(self.flat(images))


def test_predicted_classes_balance_a_set_without_labels():
    x = vectors(90, 2).astype(np.float32)
    images = TensorDataset(torch.from_numpy(x).reshape(90, 1, 1, 2))
    model = Network().train()
    features = FeatureExtractor(model, "flat", progress=False, batch_size=7)
    wanted = (x @ model.head.weight.detach().numpy().T).argmax(1)
    np.testing.assert_array_equal(predicted_classes(features, images), wanted)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutlierModeWarning)
        selection = selector(features, 0.8, balance="predicted").select(images)
    assert selection.labels is None
    assert np.bincount(wanted[selection.kept]).tolist() == allocate(72, np.bincount(wanted)).tolist()
    labelled = chosen(x, 0.8, wanted, balance="label")
    np.testing.assert_array_equal(selection.status, labelled.status)
    one = FeatureExtractor(nn.Sequential(nn.Flatten(), nn.Linear(2, 1)), "0", cache=False, progress=False)
    with pytest.raises(ValueError, match="`features` must be of a network that gives a number for each of several"):
        predicted_classes(one, images)


def test_small_classes_keep_some_images_with_a_warning():
    x, y = vectors(200), np.repeat([0, 1, 2], [190, 6, 4])
    with pytest.warns(VanishingClassWarning, match=r"2 of 3 classes keep more .* is 4 .*\(1: 4 instead of 3, 2:"):
        selection = selector(x, 0.5, balance="label", min_per_class=4).select(labels=y)
    assert np.bincount(y[selection.kept]).tolist() == [92, 4, 4]
    with pytest.warns(VanishingClassWarning, match=r"2 of 3 classes lose all their images \(1: 6, 2: 4\)"):
        selection = selector(x, 0.03, balance="label", min_per_class=0, tree_floor=None).select(labels=y)
    assert np.bincount(y[selection.kept], minlength=3).tolist() == [6, 0, 0]


def test_a_class_that_loses_all_its_images_is_named():
    x, y = vectors(200), np.repeat([0, 1], [197, 3])
    x[y == 1] = 100 * np.eye(6)[:3]  # far from all and from each other
    with pytest.warns(VanishingClassWarning, match=r"1 of 2 classes lose all their images \(1: 3\)\. Set balance"):
        selection = selector(x, 0.9).select(labels=y)
    assert len(selection.kept) == 180
    boxes = [[0, 0], [0, 0, 0]] * 98 + [[0, 2], *[[1, 0]] * 3]
    with pytest.warns(VanishingClassWarning, match=r"1 of 3 classes lose all their images \(1: 3\)\. Set balance"):
        selector(x, 0.9, always_keep=[196]).select(labels=boxes)
    gone = [197, 198, 199]
    with warnings.catch_warnings():
        warnings.simplefilter("error", VanishingClassWarning)
        selector(x, 0.9, always_remove=gone).select(labels=y)
        selector(x, 0.9, balance="label").select(labels=y)


def modes(n_mode=14):
    """A body of 300, and a few far away that are as far from each other as needed to be the most outlying."""
    rng = np.random.default_rng(0)
    body, mode = rng.normal(size=(300, 4)), 40 + 2 * rng.normal(size=(n_mode, 4))
    return np.concatenate([body, mode])


@pytest.mark.parametrize("balance", [None, "label"])
def test_modes_among_the_outliers_are_named_or_protected(balance):
    x, y = modes(), np.arange(314) % 2
    with pytest.warns(OutlierModeWarning, match=r"14 of the 16 vectors chosen as outliers form 1 group"):
        plain = selector(x, 0.9, balance=balance).select(labels=y)
    assert set(range(300, 314)) <= set(np.flatnonzero(plain.status == OUTLIER))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = selector(x, 0.9, balance=balance, protect_modes=True).select(labels=y)
    assert not (kept.status[300:] == OUTLIER).any()
    assert int((kept.status == OUTLIER).sum()) == 16
    assert not (kept.with_keep_fraction(0.6).status[300:] == OUTLIER).any(), "those kept back are the last to go"


def test_modes_are_taken_where_nobody_else_is_left():
    x = modes()
    candidates = np.zeros(314, dtype=bool)
    candidates[290:] = True
    counts, codes = np.array([20]), np.zeros(314, np.int64)
    with pytest.warns(OutlierModeWarning, match="10 of the 20 vectors"):
        found = outlier_order(x, counts, codes, candidates, protect_modes=True)
    assert len(found.chosen) == 20
    assert set(range(290, 300)) <= set(found.chosen)
    one = outlier_order(x[:1], np.array([1]), codes[:1], candidates[313:])
    assert (one.chosen.tolist(), one.scores.tolist()) == ([0], [0.0])


def test_reduction_comes_before_everything_else():
    x = vectors(150, 20) * np.linspace(3, 0.1, 20)
    reduced = chosen(x, 0.8, n_dim=4)
    by_itself = chosen(pca(x, 4).vectors, 0.8)
    np.testing.assert_array_equal(reduced.status, by_itself.status)
    assert not np.array_equal(reduced.status, chosen(x, 0.8).status)
    assert reduced.config["n_dim"] == 4
    with pytest.raises(ValueError, match=r"`features \(reduced\)` must have no zero rows under the cosine"):
        chosen(np.ones((5, 3)), 0.8, n_dim=1)


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_group_diameters_are_the_largest_dissimilarities(linkage, monkeypatch):
    monkeypatch.setattr("toolkit.selection.feature_map._BLOCK_ELEMENTS", 40)
    x = np.concatenate([vectors(100), vectors(5)])
    selection = chosen(x, 0.5, linkage=linkage, outlier_share=0.2)
    found = FeatureMapSelector.group_diameters(selection, x)
    distance = cosine(x)
    wanted = [distance[np.ix_(m, m)].max() for m in (np.flatnonzero(selection.group == g) for g in range(len(found)))]
    assert len(found) == selection.group.max() + 1
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    height = selection.recut.forest.trees[0].heights[int((selection.status == REDUNDANT).sum()) - 1]
    assert (found.max() <= height + 1e-12) == (linkage == "complete")
    with pytest.raises(ValueError, match="`vectors` must be one row for each of the selection's 105 images, got '9'"):
        FeatureMapSelector.group_diameters(selection, x[:9])


def test_duplicates_end_in_one_group_and_inputs_are_not_changed():
    x = vectors(40)
    doubled = np.concatenate([x, x[:10]])
    before = doubled.copy()
    doubled.flags.writeable = False
    selection = chosen(doubled, 0.8, outlier_share=0)
    np.testing.assert_array_equal(selection.kept, np.arange(40))
    np.testing.assert_array_equal(FeatureMapSelector.group_diameters(selection, doubled), 0)
    np.testing.assert_array_equal(doubled, before)
    np.testing.assert_array_equal(chosen(doubled, 1.0).kept, np.arange(50))


def test_permuting_the_images_permutes_the_selection():
    x, order = vectors(), np.random.default_rng(5).permutation(120)
    here, there = chosen(x, 0.7), chosen(x[order], 0.7)
    np.testing.assert_array_equal(here.status[order] == OUTLIER, there.status == OUTLIER)
    assert {frozenset(order[list(g)].tolist()) for g in groups_of(there.group)} == groups_of(here.group)


def test_an_index_that_finds_all_neighbours_chooses_alike():
    x = vectors(300, 8).astype(np.float32)
    exact, flat = chosen(x, 0.9, tree_floor=None), chosen(x, 0.9, tree_floor=None, index="Flat")
    np.testing.assert_array_equal(exact.status, flat.status)
    np.testing.assert_array_equal(exact.representative, flat.representative)
    one = chosen(np.eye(2), 0.5, index="Flat", outlier_share=1)
    assert one.reasons == ["outlier", "kept"]
    with pytest.raises(ValueError, match=r"`index` must find the neighbours of enough images, got 'Flat' and \d+ m"):
        chosen(x, 0.02, index="Flat", outlier_share=0)


@pytest.mark.parametrize(
    ("options", "labels", "match"),
    [
        ({"keep_fraction": 0.0}, None, r"`keep_fraction` must be in \(0, 1\], got 0.0"),
        ({"outlier_share": 1.5}, None, r"`outlier_share` must be in \[0, 1\], got 1.5"),
        ({"outlier_share": float("nan")}, None, "`outlier_share` must be in"),
        ({"reduce": "tsne"}, None, "`reduce` must be one of 'pca', 'umap', got 'tsne'"),
        ({"reduce": "umap"}, None, "`n_dim` must be given where reduce='umap', got None"),
        ({"reduce": None, "n_dim": 3}, None, "`reduce` must be 'pca' or 'umap' where `n_dim` is given, got None"),
        ({"n_dim": 0}, None, "`n_dim` must be at least 1, got 0"),
        ({"outlier_score": "lof"}, None, "`outlier_score` must be one of 'knn', 'hdbscan', 'glosh', got 'lof'"),
        ({"linkage": "ward"}, None, "`linkage` must be one of 'complete', 'average', 'single', got 'ward'"),
        ({"representative": "best"}, None, "`representative` must be one of 'medoid', 'first', 'random'"),
        ({"balance": "size"}, None, "`balance` must be one of 'label', 'predicted', got 'size'"),
        ({"balance": "label"}, None, "`labels` must be given where balance='label', got None"),
        ({"balance": "predicted"}, None, "`features` must be a FeatureExtractor, .* got 'ndarray'"),
        ({"min_per_class": -1}, None, "`min_per_class` must be at least 0, got -1"),
        (
            {"balance": "label", "min_per_class": 8, "keep_fraction": 0.5},
            [0] * 10 + [1] * 10,
            r"`keep_fraction` must be enough for `min_per_class` images .* \(16 images\) .* balance=None need none",
        ),
        ({"tree_floor": 0}, None, r"`tree_floor` must be in \(0, 1\], got 0"),
        ({"index": "Flat", "linkage": "single"}, None, "`index` must be 'exact' unless linkage='complete'"),
        ({"index": "Flat", "outlier_score": "glosh"}, None, "`index` must be 'exact' unless .* outlier_score='knn'"),
        ({"keep_fraction": 0.01}, None, "`keep_fraction` must be large enough to keep one of 20 images"),
        ({"keep_fraction": 0.1, "always_keep": [1, 2, 3]}, None, "`always_keep` must be at most the 2 images"),
    ],
)
def test_errors(options, labels, match):
    with pytest.raises(ValueError, match=match):
        selector(vectors(20), **options).select(labels=labels)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep_fraction": "auto"}, r"`keep_fraction` must be a number in \(0, 1\], got 'auto'"),
        ({"outlier_share": "half"}, r"`outlier_share` must be a number in \[0, 1\], got 'half'"),
        ({"n_dim": 2.5}, "`n_dim` must be a whole number, got 2.5"),
        ({"min_per_class": None}, "`min_per_class` must be a whole number, got None"),
    ],
)
def test_wrong_kinds(options, match):
    with pytest.raises(TypeError, match=match):
        selector(vectors(20), **options).select()


def test_settings_are_in_the_fingerprint():
    x = vectors(20)
    ours = selector(x, 0.9).fingerprint()
    assert selector(x, 0.9).fingerprint() == ours
    others = {"outlier_share": 0.4, "n_dim": 3, "outlier_score": "glosh", "protect_modes": True, "min_per_class": 2}
    assert all(selector(x, 0.9, **{name: value}).fingerprint() != ours for name, value in others.items())


def test_digits_balance_keeps_ratios_that_drift_without():
    x, y = load_digits(return_X_y=True)
    plain, balanced = chosen(x, 0.5, y), chosen(x, 0.5, y, balance="label")
    sizes = np.bincount(y)
    drift = [np.abs(np.bincount(y[s.kept]) - sizes / 2).max() for s in (plain, balanced)]
    assert drift[1] < 1
    assert drift[0] > 10


@pytest.mark.data
def test_cifar10_features_at_ninety_percent(data_folder):
    stored = np.load(data_folder / "features" / "resnet32_cifar10_train.npz")
    selection = chosen(stored["features"], 0.9, stored["labels"])
    assert len(selection.kept) == 45_000
    assert int((selection.status == OUTLIER).sum()) == 2500
    assert len(selection.with_keep_fraction(0.5).kept) == 25_000
