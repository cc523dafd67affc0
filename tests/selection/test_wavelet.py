import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch.utils.data import TensorDataset

from toolkit.representations import Pixels
from toolkit.selection import STATUSES, Selection, SemanticSelector, WaveletSelector


def selector(*args, **more):
    return WaveletSelector(*args, progress=False, **more)


def blobs(n=120, d=6, n_labels=3, seed=0, noise=0.4):
    """Vectors around a few centres, with labels that mostly follow the centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n // 6, d)) * 2
    of = rng.integers(len(centres), size=n)
    labels = of % n_labels
    wrong = rng.random(n) < 0.1
    labels[wrong] = rng.integers(n_labels, size=int(wrong.sum()))
    return centres[of] + rng.normal(size=(n, d)) * noise, labels


def images(n=40, size=8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (n // 2, channels, size, size), dtype=np.uint8)
    twins = np.clip(base.astype(int) + rng.integers(-3, 4, base.shape), 0, 255).astype(np.uint8)
    return TensorDataset(torch.from_numpy(np.concatenate([base, twins])), torch.arange(n) % (n // 2) % 2)


def kept_by_hand(groups, labels, x):
    """The keep rule as the paper prints it."""
    kept = np.zeros(len(groups), dtype=bool)
    mixed = np.zeros(len(groups), dtype=bool)
    for g in np.unique(groups):
        members = np.flatnonzero(groups == g)
        if labels is not None and len(set(labels[members])) > 1:
            kept[members] = mixed[members] = True
        else:
            to_centre = ((x[members] - x[members].mean(axis=0)) ** 2).sum(axis=1)
            kept[members[np.flatnonzero(to_centre <= to_centre.min() + 1e-12)[0]]] = True
    return kept, mixed


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_labels", [True, False])
def test_groups_of_one_label_keep_one_and_others_are_kept_whole(seed, with_labels):
    x, labels = blobs(seed=seed)
    given = labels if with_labels else None
    merges = linkage(x, "ward")
    for n_groups in (110, 80, 30, 5):
        groups = fcluster(merges, n_groups, "maxclust")
        kept, mixed = kept_by_hand(groups, given, x)
        found = selector(n_groups=n_groups, features=x, clustering="ward").select(labels=given)
        assert np.array_equal(found.kept, np.flatnonzero(kept))
        assert np.array_equal(found.influential, np.flatnonzero(mixed))
        assert len(np.unique(found.group)) == n_groups
        reasons = np.array(found.reasons)
        assert set(reasons[mixed]) <= {"influential"}
        assert set(reasons[~kept]) <= {"redundant"}
        gone = found.removed
        assert np.array_equal(found.group[gone], found.group[found.representative[gone]])
        apart = np.linalg.norm(x[gone] - x[found.representative[gone]], axis=1)
        assert np.allclose(found.distance[gone], apart, rtol=1e-5)


@pytest.mark.parametrize("clustering", ["ward", "kmeans"])
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_is_met_exactly_although_mixed_groups_lose_nothing(clustering, seed):
    x, labels = blobs(seed=seed, noise=0.2)
    for fraction in (1.0, 0.97, 0.9, 0.75, 0.6):
        selection = selector(fraction, features=x, clustering=clustering).select(labels=labels)
        assert len(selection.kept) == int(fraction * 120)
        assert selection.counts()  # the influential ones are counted among the kept
        assert sum(count["kept"] for count in selection.counts().values()) == len(selection.kept)
        mixed = {g for g in np.unique(selection.group) if len(set(labels[selection.group == g])) > 1}
        assert set(np.flatnonzero(np.isin(selection.group, list(mixed)))) == set(selection.influential)


def test_a_budget_below_what_mixed_groups_allow_is_refused_with_the_least_that_is_possible():
    x, labels = np.arange(8.0)[:, None], np.arange(8) % 2
    with pytest.raises(
        ValueError, match=r"`keep_fraction` must be at least 1 \(8 of 8 images\): groups with images of"
    ):
        selector(0.5, features=x, clustering="ward").select(labels=labels)
    assert len(selector(0.5, features=x, scope="class").select(labels=labels).kept) == 4
    assert len(selector(0.5, features=x).select().kept) == 4, "without labels no group is mixed"


def test_alike_images_with_different_sets_of_labels_are_influential():
    """Boxes of other classes make another set; more boxes of the same classes do not."""
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1], [20.0]])
    boxes = [[0, 0, 1], [1, 0], [0], [0, 2], [], [1], []]
    for clustering in ("ward", "kmeans"):
        selection = selector(n_groups=4, features=x, clustering=clustering).select(labels=boxes)
        assert selection.reasons == ["kept", "redundant", *["influential"] * 4, "kept"]
    with pytest.raises(ValueError, match=r"must be at least 0.857143 \(6 of 7 .* Set keep_influential=False or scope="):
        selector(0.6, features=x).select(labels=boxes)
    without = selector(0.6, features=x, keep_influential=False).select(labels=boxes)
    assert without.reasons == ["kept", "redundant"] * 3 + ["kept"]
    assert without.class_counts()["0"]["boxes"] == 5, "labels are noted all the same"
    within = selector(0.9, features=x, scope="class").select(labels=boxes)
    assert within.reasons == ["kept", "redundant", *["kept"] * 5]


def test_kmeans_ends_where_no_image_is_nearer_to_another_centre():
    x, labels = blobs(200, 4, noise=1.0, seed=5)
    selection = selector(n_groups=40, features=x).select(labels=labels)
    centres = np.array([x[selection.group == g].mean(axis=0) for g in range(40)])
    own = np.linalg.norm(x - centres[selection.group], axis=1)
    nearest = np.linalg.norm(x[:, None] - centres, axis=2).min(axis=1)
    assert np.allclose(own, nearest, atol=1e-9)
    ward = selector(n_groups=40, features=x, clustering="ward").select(labels=labels)
    assert not np.array_equal(ward.group, selection.group), "this is a case in which images move"
    kept, mixed = kept_by_hand(selection.group, labels, x)
    assert np.array_equal(selection.kept, np.flatnonzero(kept))
    assert np.array_equal(selection.influential, np.flatnonzero(mixed))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_other_starts_meet_the_budget_too(init):
    x, labels = blobs()
    first = selector(0.8, features=x, init=init, seed=3).select(labels=labels)
    assert len(first.kept) == 96
    assert np.array_equal(first.kept, selector(0.8, features=x, init=init, seed=3).select(labels=labels).kept)
    with pytest.raises(ValueError, match="stored without a merge tree"):
        first.with_keep_fraction(0.9)
    by_class = selector(0.8, features=x, init=init, scope="class").select(labels=labels)
    assert len(by_class.kept) == 96
    assert len(by_class.influential) == 0


def test_later_cuts_are_those_of_the_tree():
    x, labels = blobs(noise=0.2)
    deep = selector(0.9, features=x, clustering="ward", tree_floor=0.6).select(labels=labels)
    for fraction in (0.95, 0.8, 0.6):
        again = deep.with_keep_fraction(fraction)
        direct = selector(fraction, features=x, clustering="ward").select(labels=labels)
        assert np.array_equal(again.kept, direct.kept)
        assert np.array_equal(again.influential, direct.influential)


def test_the_curve_tells_how_many_stay_at_each_threshold():
    x, labels = blobs()
    for scope in ("dataset", "class"):
        selection = selector(n_groups=20, features=x, scope=scope, clustering="ward").select(labels=labels)
        thresholds, kept = selection.recut.curve()
        assert len(thresholds) >= 100
        assert (np.diff(thresholds) >= 0).all()
        for at in (0, 10, 50, 99):
            assert len(np.unique(thresholds)) == len(thresholds), "each threshold is one merge"
            assert selection.recut.cut_at(thresholds[at]).kept.sum() == kept[at]
        assert (np.diff(kept) > 0).any() == (scope == "dataset"), "a mixed group brings images back"


def test_what_is_saved_is_what_is_loaded(tmp_path):
    x, labels = blobs(noise=0.2)
    selection = selector(0.8, features=x).select(labels=labels)
    assert len(selection.influential)
    loaded = Selection.load(selection.save(tmp_path))
    assert np.array_equal(loaded.status, selection.status)
    assert np.array_equal(loaded.influential, selection.influential)
    assert np.array_equal(loaded.with_keep_fraction(0.9).influential, selection.with_keep_fraction(0.9).influential)
    from_state = Selection.from_state_dict(selection.state_dict())
    assert np.array_equal(from_state.kept, selection.kept)
    # An influential image that a person takes out goes.
    names = (tmp_path / "kept.txt").read_text().splitlines()
    out = str(selection.influential[0])
    (tmp_path / "kept.txt").write_text("\n".join(name for name in names if name != out) + "\n")
    with pytest.warns(UserWarning, match="0 images added, 1 taken out"):
        edited = Selection.load(tmp_path)
    assert edited.reasons[int(out)] == "excluded"


def test_scope_class_with_both_quotas():
    x, labels = blobs()
    counts = np.bincount(labels)
    proportional = selector(0.5, features=x, scope="class").select(labels=labels)
    assert len(proportional.kept) == 60
    assert all(abs(c["kept"] - counts[int(k)] / 2) < 1 for k, c in proportional.counts().items())
    one = selector(0.5, features=x, scope="class", quota="global", clustering="ward").select(labels=labels)
    assert len(one.kept) == 60
    assert len(one.influential) == 0


def test_decisions_of_a_person_stand():
    x, labels = blobs(noise=0.2)
    plain = selector(0.8, features=x).select(labels=labels)
    keep, remove = plain.removed[:3].tolist(), plain.kept[:3].tolist()
    for clustering in ("ward", "kmeans"):
        found = selector(0.8, features=x, clustering=clustering, always_keep=keep, always_remove=remove).select(
            labels=labels
        )
        assert len(found.kept) == 96
        assert set(keep) <= set(found.kept)
        assert [found.reasons[i] for i in remove] == ["excluded"] * 3


def test_images_alone_are_enough():
    data = images()
    selection = selector(0.5, levels=2, max_condition=None).select(data)
    twin_of = np.where(np.arange(40) < 20, np.arange(40) + 20, np.arange(40) - 20)
    assert np.array_equal(selection.representative[selection.removed], twin_of[selection.removed])
    # Orthonormal coefficients leave all distances as they are, so pixels choose alike.
    pixels = selector(0.5, features=Pixels(progress=False), max_condition=None).select(data)
    assert np.array_equal(pixels.kept, selection.kept)


def test_dependent_columns_change_nothing_but_the_width():
    x, labels = blobs(200, 5)
    doubled = np.concatenate([x, x[:, :2], np.zeros((200, 1))], axis=1)
    few = selector(0.8, features=doubled, max_condition=1e5).select(labels=labels)
    assert np.array_equal(few.kept, selector(0.8, features=x, max_condition=None).select(labels=labels).kept)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "`keep_fraction` or `n_groups` or `threshold` must be given, exactly one, got None"),
        ({"keep_fraction": 1.5}, r"`keep_fraction` must be in \(0, 1\], got 1.5"),
        ({"n_groups": 121}, "`n_groups` must be from 1 to the 120 images, got 121"),
        ({"n_groups": 0}, "`n_groups` must be from 1 to the 120 images, got 0"),
        ({"threshold": -1.0}, "`threshold` must be a distance of at least 0, got -1.0"),
        ({"n_groups": 5, "max_condition": 0.5}, "`max_condition` must be a condition number above 1, or None, got 0.5"),
        ({"n_groups": 5, "clustering": "dbscan"}, "`clustering` must be one of 'kmeans', 'ward', got 'dbscan'"),
        ({"n_groups": 5, "init": "pca"}, r"`init` must be one of 'ward', 'k-means\+\+', 'random', got 'pca'"),
        ({"n_groups": 5, "max_iter": 0}, "`max_iter` must be a whole number of at least 1, got 0"),
        ({"threshold": 1.0, "init": "random"}, "`init` must be 'ward' where a `threshold` decides, got 'random'"),
    ],
)
def test_bad_settings_are_refused(settings, error):
    x, labels = blobs()
    with pytest.raises(ValueError, match=error):
        selector(**settings, features=x).select(labels=labels)


@pytest.mark.parametrize("value", [None, 1, "no"])
def test_whether_influential_images_are_kept_is_true_or_false(value):
    with pytest.raises(TypeError, match=f"`keep_influential` must be True or False, got {value!r}"):
        selector(0.5, keep_influential=value).check()


def test_edge_cases():
    one = selector(1.0, features=np.ones((1, 3))).select(labels=[4])
    assert one.reasons == ["kept"]
    same = selector(n_groups=1, features=np.ones((5, 2))).select(labels=[1] * 5)
    assert same.reasons == ["kept", *["redundant"] * 4]
    mixed = selector(n_groups=1, features=np.ones((5, 2))).select(labels=[1, 1, 1, 1, 2])
    assert mixed.reasons == ["influential"] * 5
    with pytest.raises(ValueError, match="finite"):
        selector(0.5, features=np.array([[1.0], [np.nan]])).select(labels=[0, 1])


def test_the_fingerprint_tells_settings_apart():
    base = {"keep_fraction": 0.9}
    variants = [
        base, {"keep_fraction": 0.8}, {**base, "wavelet": "db2"}, {**base, "levels": 1}, {**base, "mode": "zero"},
        {**base, "invariance": ("brightness",)}, {**base, "max_condition": 10.0}, {**base, "clustering": "ward"},
        {**base, "scope": "class"}, {**base, "grayscale": True}, {**base, "resize": (8, 8)}, {**base, "max_size": 4},
    ]  # fmt: skip
    variants.append({**base, "keep_influential": False})
    assert "keep_influential" not in selector(**base).config(), "so that older selections are found again"
    prints = [selector(**variant).fingerprint() for variant in variants]
    assert len(set(prints)) == len(prints)
    assert selector(**base).fingerprint() == prints[0]
    assert SemanticSelector(np.ones((3, 2)), 0.9).fingerprint() not in prints


def test_what_made_a_selection_is_written_with_it(tmp_path):
    x, labels = blobs()
    given = selector(0.9, features=x).select(labels=labels)
    assert Selection.load(given.save(tmp_path)).config["features"] == "ndarray"
    plain = selector(0.5, wavelet="haar", bands=("approximation",), band_weights={"approximation": 2.0}).select(
        images()
    )
    config = Selection.load(plain.save(tmp_path)).config
    assert (config["wavelet"], config["bands"], config["band_weights"]) == (
        "haar",
        ["approximation"],
        {"approximation": 2.0},
    )


def test_statuses_of_saved_selections_keep_their_codes():
    assert STATUSES == ("kept", "redundant", "outlier", "random", "excluded", "influential", "boundary")
