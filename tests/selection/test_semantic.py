import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch.utils.data import TensorDataset

from toolkit import RandomSelector, Selector, SemanticSelector
from toolkit.selection import STATUSES
from toolkit.selection.quota import allocate


def vectors(n=120, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def classes(n=120, seed=0):
    return np.random.default_rng(seed).choice(3, n, p=[0.6, 0.3, 0.1])


def selector(features, keep_fraction=None, **options):
    return SemanticSelector(features, keep_fraction, **{"progress": False} | options)


def cosine(x):
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return 1 - unit @ unit.T


def groups_of(labels):
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels) if label >= 0}


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
@pytest.mark.parametrize("keep_fraction", [0.95, 0.8, 0.5, 0.3])
def test_groups_are_scikit_learns_within_each_class_and_the_medoid_stays(linkage, keep_fraction):
    x, y = vectors(), classes()
    selection = selector(x, keep_fraction, linkage=linkage).select(labels=y)
    sizes = np.bincount(y)
    seats = allocate(int(keep_fraction * len(x)), sizes)
    wanted = set()
    for c, n_groups in enumerate(seats):
        inside = np.flatnonzero(y == c)
        clusters = AgglomerativeClustering(n_groups, metric="cosine", linkage=linkage).fit_predict(x[inside])
        wanted |= {frozenset(inside[list(group)].tolist()) for group in groups_of(clusters)}
    assert groups_of(selection.group) == wanted
    distance = cosine(x)
    for group in wanted:
        members = sorted(group)
        sums = distance[np.ix_(members, members)].sum(1)
        medoid = members[int(np.flatnonzero(sums <= sums.min() + 1e-9)[0])]
        assert (selection.representative[members] == medoid).all()
        np.testing.assert_allclose(selection.distance[members], distance[medoid, members], atol=1e-6)
        assert [STATUSES[selection.status[i]] for i in members] == [
            "kept" if i == medoid else "redundant" for i in members
        ]


def test_global_quota_is_one_threshold_for_all_classes():
    x, y = vectors(), classes()
    x[y == 0] = 1 + 0.1 * x[y == 0]  # one class much closer together than the others
    selection = selector(x, 0.6, quota="global").select(labels=y)
    assert len(selection.kept) == 72
    assert selection.counts()["2"]["removed"] == 0
    merged = [
        AgglomerativeClustering(None, distance_threshold=0, metric="cosine", linkage="complete")
        .fit(x[y == c])
        .distances_
        for c in range(3)
    ]
    threshold = np.sort(np.concatenate(merged))[len(x) - 72 - 1]
    at_threshold = selector(x, threshold=float(threshold) + 1e-12).select(labels=y)
    assert groups_of(selection.group) == groups_of(at_threshold.group)


@pytest.mark.parametrize("quota", ["proportional", "global"])
@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_a_later_cut_is_the_selection_made_anew(quota, linkage, tmp_path):
    x, y = vectors(200, seed=3), classes(200, seed=3)
    options = {"quota": quota, "linkage": linkage, "always_keep": [3, 5, 8], "always_remove": [4, 100]}
    first = selector(x, 0.9, **options).select(labels=y)
    stored = type(first).load(first.save(tmp_path))
    for fraction in (0.95, 0.73, 0.61, 0.5):
        anew = selector(x, fraction, tree_floor=fraction, **options).select(labels=y)
        for again in (first.with_keep_fraction(fraction), stored.with_keep_fraction(fraction)):
            for name in ("status", "group", "representative"):
                np.testing.assert_array_equal(getattr(again, name), getattr(anew, name), name)
            np.testing.assert_allclose(again.distance, anew.distance, atol=1e-6)
            assert again.config["keep_fraction"] == fraction


def test_every_budget_is_met_exactly():
    x, y = vectors(97), classes(97)
    for quota in ("proportional", "global"):
        selection = selector(x, 1.0, quota=quota, always_keep=[1, 2, 3], tree_floor=0.1).select(labels=y)
        assert len(selection.kept) == 97
        for count in range(10, 98):
            assert len(selection.with_keep_fraction(count / 97).kept) == count
    assert len(selector(x, 0.29).select(vectors(100)[:97], labels=y).kept) == 28


def test_scope_dataset_needs_no_labels():
    selection = selector(vectors(), n_groups=50, scope="dataset").select()
    assert len(selection.kept) == 50
    assert selection.labels is None
    assert list(selection.counts()) == ["all"]


def test_always_keep_and_always_remove():
    x = np.repeat(vectors(10), 3, axis=0)
    selection = selector(x, 0.37, scope="dataset", always_keep=["1", 2, 29], always_remove=[0, 27]).select()
    assert {1, 2, 29} <= set(selection.kept.tolist())
    assert len(selection.kept) == 11
    assert [selection.reasons[i] for i in (0, 27)] == ["excluded", "excluded"]
    assert selection.representative[0] == -1
    assert np.isnan(selection.distance[0])
    assert selection.representative[28] == 29, "the one that is to stay stands for its copies"


def test_representative_rules():
    x, y = vectors(), np.zeros(120, int)
    first = selector(x, 0.5, representative="first").select(labels=y)
    for group in groups_of(first.group):
        assert first.status[min(group)] == 0
    one, two = (selector(x, 0.5, representative="random", seed=s).select(labels=y) for s in (0, 1))
    again = selector(x, 0.5, representative="random", seed=0).select(labels=y)
    np.testing.assert_array_equal(one.kept, again.kept)
    assert not np.array_equal(one.kept, two.kept)
    assert groups_of(one.group) == groups_of(two.group) == groups_of(first.group)


def test_duplicates_end_in_one_group_and_ties_go_to_the_lower_index():
    x = vectors(40)
    doubled = np.concatenate([x, x[:10]])
    selection = selector(doubled, n_groups=40, scope="dataset").select()
    np.testing.assert_array_equal(selection.kept, np.arange(40))
    np.testing.assert_array_equal(selection.representative[40:], np.arange(10))
    np.testing.assert_array_equal(selection.distance[40:], 0)


def test_keeping_everything_is_the_identity_and_inputs_are_not_changed():
    x, y = vectors(), classes()
    before = x.copy()
    x.flags.writeable = False
    selection = selector(x, 1.0).select(labels=y)
    np.testing.assert_array_equal(selection.kept, np.arange(120))
    np.testing.assert_array_equal(x, before)


def test_permuting_the_images_permutes_the_groups():
    x, y = vectors(), classes()
    order = np.random.default_rng(5).permutation(120)
    here = selector(x, 0.6).select(labels=y)
    there = selector(x[order], 0.6).select(labels=y[order])
    assert {frozenset(order[list(g)].tolist()) for g in groups_of(there.group)} == groups_of(here.group)


def test_classes_with_one_image_keep_it():
    selection = selector(vectors(10), 0.5).select(labels=[0] * 8 + [1, 2])
    assert {8, 9} <= set(selection.kept.tolist())
    assert len(selection.kept) == 5


def test_labels_of_the_data_set_are_used():
    x = vectors(20)
    dataset = TensorDataset(torch.zeros(20, 3, 2, 2), torch.arange(20) % 2)
    selection = selector(x, 0.5).select(dataset)
    assert selection.counts() == {c: {"kept": 5, "removed": 5, "redundant": 5} for c in ("0", "1")}
    assert selection.fingerprint is not None
    assert isinstance(selector(x, 0.5), Selector)


@pytest.mark.parametrize(
    ("options", "labels", "match"),
    [
        ({"keep_fraction": 0.0}, None, r"`keep_fraction` must be in \(0, 1\], got 0.0"),
        ({"keep_fraction": 1.5}, None, r"`keep_fraction` must be in \(0, 1\], got 1.5"),
        ({}, None, "`keep_fraction` or `n_groups` or `threshold` must be given, exactly one, got None"),
        ({"keep_fraction": 0.5, "threshold": 0.1}, None, "exactly one, got .*keep_fraction.*threshold"),
        ({"threshold": 2.1}, None, r"`threshold` must be a dissimilarity in \[0, 2\], got 2.1"),
        ({"threshold": float("nan")}, None, "`threshold` must be a dissimilarity"),
        ({"n_groups": 0, "scope": "dataset"}, None, "`n_groups` must be from 1 to the 20 images, got 0"),
        ({"keep_fraction": 0.5, "linkage": "ward"}, None, "`linkage` must be one of 'complete', 'average', 'single'"),
        ({"keep_fraction": 0.5, "representative": "best"}, None, "`representative` must be one of"),
        ({"keep_fraction": 0.5, "quota": "fair"}, None, "`quota` must be one of 'proportional', 'global', got 'fair'"),
        ({"keep_fraction": 0.5, "scope": "some"}, None, "`scope` must be one of 'class', 'dataset', got 'some'"),
        ({"keep_fraction": 0.5, "tree_floor": 0}, None, r"`tree_floor` must be in \(0, 1\], got 0"),
        ({"keep_fraction": 0.5}, None, "`labels` must be given where scope='class', got None .* scope='dataset'"),
        (
            {"keep_fraction": 0.5},
            [0] * 19,
            "`labels` must be one for each of .* 20 images, got '19 labels'",
        ),
        (
            {"keep_fraction": 0.1},
            list(range(20)),
            r"one image of each class .*\(20 images\) where scope='class' \(scope='dataset' needs none .*, got '0.1",
        ),
        (
            {"keep_fraction": 0.5},
            [[0, i] for i in range(20)],
            r"one image of each class \(a set of labels that images have\) .*\(20 images\) .*scope='dataset' needs",
        ),
        ({"keep_fraction": 0.01}, [0] * 20, "`keep_fraction` must be large enough to keep one of 20 images"),
        ({"keep_fraction": 0.5, "always_keep": [20]}, [0] * 20, "`always_keep` must be indices from 0 to 19, got '20'"),
        ({"keep_fraction": 0.5, "always_remove": ["a"]}, [0] * 20, "`always_remove` must be indices from 0 to 19"),
        ({"keep_fraction": 0.1, "always_keep": [1, 2, 3]}, [0] * 20, "`always_keep` must be at most the 2 images"),
        ({"keep_fraction": 0.9, "always_remove": [1, 2, 3]}, [0] * 20, "`always_remove` must be at most the 2 images"),
        (
            {"keep_fraction": 0.9, "always_remove": [1], "always_keep": [1]},
            [0] * 20,
            "`always_remove` must be without ids that are in `always_keep` too, got 1",
        ),
    ],
)
def test_errors(options, labels, match):
    with pytest.raises(ValueError, match=match):
        selector(vectors(20), **options).select(labels=labels)


def test_labels_that_decide_nothing_do_not_stop_the_job():
    masks = TensorDataset(torch.zeros(20, 3, 2, 2), torch.full((20, 2), 7))
    assert selector(vectors(20), 0.5, scope="dataset").select(masks).labels is not None
    odd = [(torch.zeros(1), "a;b")] * 20
    with pytest.raises(ValueError, match="no ';' in them"):
        selector(vectors(20), 0.5).select(odd)
    with pytest.warns(UserWarning, match="The content of a"):
        assert selector(vectors(20), 0.5, scope="dataset").select(odd).labels is None
    with pytest.warns(UserWarning, match="The content of a"):
        assert RandomSelector(0.5).select(odd).labels is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": "a"}, "`threshold` must be a number, got 'a'"),
        ({"n_groups": 2.5}, "`n_groups` must be a whole number, got 2.5"),
        ({"n_groups": True}, "`n_groups` must be a whole number, got True"),
        ({"keep_fraction": 0.5, "always_keep": "12"}, "`always_keep` must be a list of ids, got '12'"),
        ({"keep_fraction": 0.5, "always_remove": 3}, "`always_remove` must be a list of ids, got 3"),
    ],
)
def test_wrong_kinds(options, match):
    with pytest.raises(TypeError, match=match):
        selector(vectors(20), **options).select(labels=[0] * 20)


def test_errors_of_vectors():
    x = vectors(20)
    with pytest.raises(ValueError, match="`embeddings` must be one row for each of the data set's 19 images"):
        selector(x, 0.5, scope="dataset").select(range(19))
    with pytest.raises(ValueError, match="`dataset` must be a data set with at least one image"):
        selector(x, 0.5).select([])
    x[3] = 0
    with pytest.raises(ValueError, match="no zero rows under the cosine .* got 1 of 20, the first at index 3"):
        selector(x, 0.5, scope="dataset").select()
    x[7, 2] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 20 rows, the first at index 7"):
        selector(x, 0.5, scope="dataset").select()
    with pytest.raises(ValueError, match="`ids` must be different for every image, got '1 repeated'"):
        selector(vectors(3), 1.0, scope="dataset").select(ids=["a", "b", "a"])


class TestRandomSelector:
    def test_plain_and_balanced_keep_exactly_the_budget(self):
        y = classes()
        plain = RandomSelector(0.5).select(range(120), labels=y)
        assert len(plain.kept) == 60
        assert set(np.array(plain.reasons)[plain.removed]) == {"random"}
        balanced = RandomSelector(0.5, balance="label").select(range(120), labels=y)
        wanted = allocate(60, np.bincount(y))
        assert [balanced.counts()[str(c)]["kept"] for c in range(3)] == wanted.tolist()

    def test_smaller_budgets_are_subsets_and_seeds_differ(self, tmp_path):
        whole = RandomSelector(0.9, seed=3).select(range(100))
        half = whole.with_keep_fraction(0.5)
        assert set(half.kept) <= set(whole.kept)
        np.testing.assert_array_equal(half.kept, RandomSelector(0.5, seed=3).select(range(100)).kept)
        assert not np.array_equal(half.kept, RandomSelector(0.5, seed=4).select(range(100)).kept)
        loaded = type(whole).load(whole.save(tmp_path))
        np.testing.assert_array_equal(loaded.with_keep_fraction(0.5).kept, half.kept)

    def test_decisions_and_errors(self):
        selection = RandomSelector(n_images=10, always_keep=[1, 2], always_remove=[3]).select(range(20))
        assert {1, 2} <= set(selection.kept.tolist())
        assert selection.reasons[3] == "excluded"
        for options, match in [
            ({}, "`keep_fraction` or `n_images` must be given, exactly one"),
            ({"keep_fraction": 2}, "`keep_fraction` must be in"),
            ({"n_images": 21}, "`n_images` must be from 1 to the 20 images, got 21"),
            ({"n_images": 0}, "large enough to keep one of 20 images"),
            ({"keep_fraction": 0.5, "balance": "size"}, "`balance` must be one of 'label', got 'size'"),
            ({"keep_fraction": 0.5, "balance": "label"}, "`labels` must be given where balance='label'"),
        ]:
            with pytest.raises(ValueError, match=match):
                RandomSelector(**options).select(range(20))
        with pytest.raises(
            ValueError, match=r"set of labels that images have\) .*\(20 images\) .*\(balance=None needs"
        ):
            RandomSelector(0.5, balance="label").select(range(20), labels=[[0, i] for i in range(20)])


@pytest.mark.data
def test_cifar10_features_at_ninety_percent(data_folder):
    stored = np.load(data_folder / "features" / "resnet32_cifar10_train.npz")
    selection = selector(stored["features"], 0.9).select(labels=stored["labels"])
    assert len(selection.kept) == 45_000
    assert {count["kept"] for count in selection.counts().values()} == {4500}
    assert len(selection.with_keep_fraction(0.5).kept) == 25_000


def test_a_class_may_be_removed_whole():
    x = vectors(20)
    labels = np.repeat([0, 1], 10)
    gone = list(range(10, 20))
    for settings in ({"keep_fraction": 0.3}, {"threshold": 0.5}, {"keep_fraction": 0.3, "quota": "global"}):
        selection = selector(x, **settings, always_remove=gone).select(labels=labels)
        assert [selection.reasons[i] for i in gone] == ["excluded"] * 10
        assert 0 < len(selection.kept) <= 10
