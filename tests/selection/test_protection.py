"""What stays in any case: images of rare classes, and frames without which a video would have gaps."""

import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from toolkit.representations import EvaluationView
from toolkit.selection import (
    FeatureMapSelector,
    KCenterSelector,
    Labels,
    RandomSelector,
    ScoreSelector,
    Selection,
    SemanticSelector,
    SemDeDupSelector,
    SSIMSelector,
    UniquenessSelector,
    WaveletSelector,
)
from toolkit.selection.protection import anchors_of, hold_rare, sequences_of

N = 48


def vectors(n=N, seed=0):
    """A walk, as the frames of a video make it."""
    return 5 + np.cumsum(np.random.default_rng(seed).normal(size=(n, 4)), axis=0)


def frames(n=N, seed=0):
    """Names of the frames of two videos, in a random order and with numbers that are not padded."""
    order = np.random.default_rng(seed).permutation(n)
    return [f"video{i % 2}/frame_{i // 2 * 3 + 8}.jpg" for i in order]


def boxes(n=N, seed=0):
    """The classes of each image's boxes: none in some images, and class 3 only few times."""
    rng = np.random.default_rng(seed)
    found = [rng.choice(3, rng.integers(0, 5), p=[0.7, 0.2, 0.1]).tolist() for _ in range(n)]
    for index in (5, 17):
        found[index] += [3, 3]
    return found


def pictures(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(n // 4, 3, 12, 12, generator=generator).repeat_interleave(4, 0)
    return (base + 0.1 * torch.randn(base.shape, generator=generator)).clamp(0, 1)


def given(selector, **options):
    """A selector of vectors, quiet."""
    return lambda **more: selector(vectors(), progress=False, **options, **more)


SELECTORS = {
    "semantic": given(SemanticSelector, scope="dataset", tree_floor=0.1),
    "semantic, by class": given(SemanticSelector, tree_floor=0.1),
    "semantic, one threshold": given(SemanticSelector, quota="global", linkage="single", tree_floor=0.1),
    "wavelet": lambda **more: WaveletSelector(features=vectors(), progress=False, keep_influential=False, **more),
    "wavelet, ward": lambda **more: WaveletSelector(
        features=vectors(), progress=False, keep_influential=False, clustering="ward", tree_floor=0.1, **more
    ),
    "wavelet, by class": lambda **more: WaveletSelector(features=vectors(), progress=False, scope="class", **more),
    "wavelet, random start": lambda **more: WaveletSelector(
        features=vectors(), progress=False, keep_influential=False, init="random", **more
    ),
    "ssim": lambda **more: SSIMSelector(progress=False, keep_influential=False, **more),
    "random": lambda **more: RandomSelector(**more),
    "random, balanced": lambda **more: RandomSelector(balance="label", **more),
    "score": lambda **more: ScoreSelector(vectors()[:, 0], **more),
    "score, balanced": lambda **more: ScoreSelector(vectors()[:, 0], balance="label", keep="easy", **more),
    "feature map": given(FeatureMapSelector, tree_floor=0.1),
    "feature map, balanced": given(FeatureMapSelector, balance="label", tree_floor=0.1),
    "k-centre": given(KCenterSelector),
    "semdedup": given(SemDeDupSelector),
    "uniqueness": given(UniquenessSelector),
    "uniqueness, greedy": given(UniquenessSelector, greedy=True),
}


def chosen(name, keep_fraction, labels=None, ids=None, **options):
    dataset = {"ssim": pictures, "rand": lambda: range(N)}.get(name[:4], lambda: None)()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* classes (keep more|lose all)")
        return SELECTORS[name](keep_fraction=keep_fraction, **options).select(dataset, labels=labels, ids=ids)


def gaps_of(selection, ids, gap):
    """Windows of `gap` consecutive frames, told by their names, of which none stays though one could."""
    excluded = np.array(selection.reasons) == "excluded"
    stays = set(selection.kept.tolist())
    found = []
    for video in {name.split("/")[0] for name in ids}:
        own = [i for i, name in enumerate(ids) if name.startswith(f"{video}/")]
        own.sort(key=lambda i: int(ids[i].split("_")[1].removesuffix(".jpg")))
        windows = [own[start : start + gap] for start in range(len(own) - gap + 1)]
        found += [window for window in windows if not stays & set(window) and not excluded[window].all()]
    return found


@pytest.mark.parametrize("name", SELECTORS)
def test_rare_classes_stay_whole_and_videos_have_no_gaps_at_any_budget(name, tmp_path):
    labels, ids = boxes(), frames()
    order = sequences_of(ids, N)[0]
    removed = [ids[i] for i in (*order[4:9], 17)]
    options = {"protect_rare": 4, "temporal_gap": 4, "always_keep": [ids[30]], "always_remove": removed}
    fractions = (0.8, 0.6, 0.5) if name == "ssim" else (0.8, 0.5)
    for keep_fraction in fractions:
        selection = chosen(name, keep_fraction, labels, ids, **options)
        cuts = [selection]
        assert len(selection.kept) == int(keep_fraction * N)
        if selection.recut is not None:
            least = selection.recut.min_kept()
            stored = Selection.load(selection.save(tmp_path / str(keep_fraction)))
            cuts += [stored.with_keep_fraction(n / N) for n in range(least, N - len(removed) + 1)]
            assert len(cuts[1].kept) == least
        for cut in cuts:
            assert {5, 30} <= set(cut.kept.tolist())
            assert cut.reasons[17] == "excluded", "a person's decision wins"
            assert not gaps_of(cut, ids, 4)


def test_without_these_settings_there_are_gaps():
    """What the test above would find if nothing was protected."""
    ids = frames()
    assert gaps_of(chosen("semantic", 0.5, boxes(), ids), ids, 4)
    assert 5 not in chosen("semantic, by class", 0.5, boxes(), ids, always_remove=[ids[5]]).kept


@pytest.mark.parametrize("name", ["wavelet", "wavelet, random start", "ssim"])
@pytest.mark.parametrize("beyond", [0, 1, 3])
def test_a_budget_that_protected_images_nearly_fill_is_met(name, beyond):
    ids = frames()
    n_kept = 2 * (N // 2 // 2) + beyond
    selection = chosen(name, n_kept / N, ids=ids, temporal_gap=2)
    assert len(selection.kept) == n_kept
    assert not gaps_of(selection, ids, 2)


@pytest.mark.parametrize("options", [{}, {"scope": "class"}, {"init": "random"}])
@pytest.mark.parametrize("seed", [0, 4, 179])
def test_kmeans_that_brings_protected_images_together_still_meets_the_budget(options, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 2))
    count = int(rng.integers(2, 12))
    keep = rng.choice(30, count, replace=False).tolist()
    n_kept = count + 1 + int(rng.integers(0, 2))
    for tries in (8, 1):
        monkeypatch.setattr("toolkit.selection.wavelet._TRIES", tries)
        selector = WaveletSelector(n_kept / 30, features=x, always_keep=keep, progress=False, **options)
        selection = selector.select(labels=[0] * 15 + [1] * 15 if "scope" in options else None)
        assert len(selection.kept) == n_kept
        assert set(keep) <= set(selection.kept.tolist())


def test_spectral_clustering_that_brings_protected_images_together_still_meets_the_budget(monkeypatch):
    keep = [0, 1, 2, 3, 16, 17, 18, 40]
    for tries in (8, 1):
        monkeypatch.setattr("toolkit.selection.ssim._TRIES", tries)
        selection = SSIMSelector(12 / N, always_keep=keep, progress=False).select(pictures())
        assert len(selection.kept) == 12
        assert set(keep) <= set(selection.kept.tolist())


def test_rare_means_at_most_so_many_boxes():
    labels = Labels.of([[0, 0, 1], [0], [1, 2], [0], []], 5)
    assert hold_rare(labels, 0).tolist() == [False] * 5
    assert hold_rare(labels, 1).tolist() == [False, False, True, False, False]
    assert hold_rare(labels, 2).tolist() == [True, False, True, False, False]
    assert hold_rare(labels, 4).tolist() == [True, True, True, True, False], "an image without boxes holds no class"
    assert hold_rare(Labels.of(["a", "b", "a"], 3), 1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, [[0, 1, 2, 3]]),
        (["f1.jpg", "f10.jpg", "f9.jpg", "f0002.jpg"], [[0, 3, 2, 1]]),
        (["a/f1.jpg", "b/f1.jpg", "a/f2.jpg", "a/g3.jpg"], [[0, 2], [1], [3]]),
        (["f1.jpg", "f2.png", "f3.jpg", "f4.PNG"], [[0, 2], [1], [3]]),
        (["3.jpg", "1.jpg", "2.jpg", "v2/0.jpg"], [[1, 2, 0], [3]]),
        (["b.jpg", "a.jpg", "c/x.jpg", "a1.jpg"], [[0, 1], [2], [3]]),
        (["v2_007.jpg", "v2_7.jpg", "v2_1.jpg", "v3_1.jpg"], [[2, 0, 1], [3]]),
    ],
)
def test_a_sequence_is_the_numbered_images_of_a_folder(names, expected):
    assert [s.tolist() for s in sequences_of(names, 4)] == expected


def test_anchors_are_as_few_as_can_be():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 10))
        gap = int(rng.integers(1, 6))
        excluded = rng.random(n) < 0.25
        stays = (rng.random(n) < 0.2) & ~excluded
        windows = [set(range(a, a + gap)) for a in range(n - gap + 1) if not excluded[a : a + gap].all()]
        free = np.flatnonzero(~excluded & ~stays).tolist()
        held = set(np.flatnonzero(stays).tolist())
        fewest = next(
            size
            for size in range(n + 1)
            for more in combinations(free, size)
            if all(window & (held | set(more)) for window in windows)
        )
        anchors = anchors_of([np.arange(n)], gap, stays, excluded)
        assert anchors.sum() == fewest
        assert not (anchors & (stays | excluded)).any()
        kept = set(np.flatnonzero(anchors | stays).tolist())
        assert all(window & kept for window in windows)


def test_what_is_protected_twice_is_counted_once():
    ids = [f"f{i}.jpg" for i in range(40)]
    labels = [[1] if i in (9, 29) else [0] for i in range(40)]
    options = {"protect_rare": 2, "temporal_gap": 10, "always_keep": ["f19.jpg"]}
    selection = RandomSelector(0.1, **options).select(range(40), labels=labels, ids=ids)
    assert selection.kept.tolist() == [9, 19, 29, 39]
    assert selection.recut.preferred.sum() == 4


def test_two_protected_images_of_one_group_both_stay():
    x = np.repeat(vectors(8), 6, axis=0)
    ids = [f"f{i}.jpg" for i in range(48)]
    for selector in (
        SemanticSelector(x, 0.5, scope="dataset", temporal_gap=2, progress=False),
        WaveletSelector(0.5, features=x, temporal_gap=2, progress=False),
    ):
        selection = selector.select(ids=ids)
        assert selection.kept.tolist() == list(range(1, 48, 2))
        gone = selection.removed
        assert np.isin(selection.representative[gone], selection.kept).all()
        assert (selection.representative[gone] // 6 == gone // 6).all(), "each is represented by a copy of itself"


class Scenes(Dataset):
    """A detection data set: samples with boxes, files in a folder of each video."""

    def __init__(self, count, video="a", first=0):
        self.targets = [[0] * (1 + i % 3) + ([1] if i == 6 else []) for i in range(count)]
        self.targets[2] = []
        self.samples = [(f"/data/{video}/f{first + i}.jpg", None) for i in range(count)]
        self.root = "/data"

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"img": torch.zeros(3, 8, 8), "cls": torch.tensor(self.targets[index])}

    def fingerprint(self):
        return f"{self.samples}"


@pytest.mark.parametrize(
    ("dataset", "rare"),
    [
        (Scenes(12), [6]),
        (EvaluationView(Scenes(12)), [6]),
        (Subset(Scenes(14), range(1, 13)), [5]),
        (EvaluationView(Subset(Scenes(14), range(1, 13))), [5]),
        (ConcatDataset([Scenes(12), Scenes(12, "b")]), [6, 18]),
        (EvaluationView(ConcatDataset([Subset(Scenes(12), range(12)), Scenes(12, "b")])), [6, 18]),
    ],
    ids=["plain", "view", "subset", "view of subset", "concat", "view of concat"],
)
def test_boxes_and_names_are_found_in_wrapped_data_sets(dataset, rare):
    selection = RandomSelector(0.5, protect_rare=2, temporal_gap=4).select(dataset)
    assert set(rare) <= set(selection.kept.tolist())
    counts = selection.class_counts()
    assert counts["1"] == dict.fromkeys(("images", "images_kept", "boxes", "boxes_kept"), len(rare))
    assert counts["0"]["boxes"] > counts["0"]["images"]
    assert () in selection.labels.sets
    assert selection.recut.preferred.sum() >= len(dataset) // 4


ERRORS = [
    ({"protect_rare": -1}, ValueError, "`protect_rare` must be at least 0, got -1"),
    ({"protect_rare": 1.5}, TypeError, "`protect_rare` must be a whole number, got 1.5"),
    ({"protect_rare": True}, TypeError, "`protect_rare` must be a whole number, got True"),
    ({"protect_rare": None}, TypeError, "`protect_rare` must be a whole number, got None"),
    ({"temporal_gap": 0}, ValueError, "`temporal_gap` must be at least 1, got 0"),
    ({"temporal_gap": "3"}, TypeError, "`temporal_gap` must be a whole number, got '3'"),
]


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(("options", "error", "match"), ERRORS)
def test_bad_settings_are_refused_before_any_work(name, options, error, match):
    with pytest.raises(error, match=match):
        SELECTORS[name](keep_fraction=0.5, **options).check()


@pytest.mark.parametrize(
    ("options", "labels", "match"),
    [
        (
            {"protect_rare": 2},
            None,
            "`labels` must be given where protect_rare=2, got None and a data set that has none. Pass `labels`, give "
            "the data set an attribute `targets`, or set protect_rare=0",
        ),
        (
            {"protect_rare": 9},
            [[0] * 5] * 5 + [[1]] * 9 + [[2, 2, 3]] + [[2]] * 5,
            r"`protect_rare` must be at most 8 where 10 of 20 images stay \(15 hold a rare class: class 3 occurs 1 "
            r"times in 1, class 2 occurs 7 times in 6, class 1 occurs 9 times in 9\), got 9",
        ),
        (
            {"protect_rare": 5, "always_keep": range(6)},
            ["a"] * 15 + ["b"] * 5,
            r"at most 4 where 10 of 20 images stay \(11 hold a rare class or are in `always_keep`: class 'b' occurs 5 "
            r"times in 5\), got 5",
        ),
        (
            {"protect_rare": 20},
            [0] * 20,
            "`protect_rare` must be at most 19 where 10 of 20 images stay",
        ),
        (
            {"temporal_gap": 1},
            None,
            r"`temporal_gap` must be at least 2 where 10 of 20 images stay \(20 frames are needed\), got 1",
        ),
        (
            {"temporal_gap": 2, "protect_rare": 4},
            [1] * 4 + [0] * 16,
            r"`temporal_gap` must be at least 3 where 10 of 20 images stay \(8 frames are needed beside 4 images of "
            r"rare classes or in `always_keep`\), got 2",
        ),
        (
            {"always_keep": range(11), "temporal_gap": 2, "protect_rare": 4},
            [1] * 4 + [0] * 16,
            "`always_keep` must be at most the 10 images that are kept, got '11 ids'",
        ),
    ],
)
@pytest.mark.parametrize("selector", [RandomSelector, lambda *a, **k: KCenterSelector(vectors(20), *a, **k)])
def test_what_does_not_fit_is_refused_with_what_would(selector, options, labels, match):
    with pytest.raises(ValueError, match=match):
        selector(0.5, **options).select(range(20), labels=labels)


def test_the_setting_that_an_error_names_fits():
    labels = [[0] * 5] * 5 + [[1]] * 9 + [[2, 2, 3]] + [[2]] * 5
    assert len(RandomSelector(0.5, protect_rare=8).select(range(20), labels=labels).kept) == 10
    for n_kept in range(1, 20):
        for wrong in range(1, 20 // (n_kept + 1) + 1):
            with pytest.raises(ValueError, match=rf"`temporal_gap` must be at least {20 // (n_kept + 1) + 1} where"):
                RandomSelector(n_images=n_kept, temporal_gap=wrong).select(range(20))
        fits = RandomSelector(n_images=n_kept, temporal_gap=20 // (n_kept + 1) + 1).select(range(20))
        assert len(fits.kept) == n_kept


def test_labels_that_cannot_be_used_are_refused_where_rare_ones_are_to_stay():
    odd = [(torch.zeros(1), "a;b")] * 20
    with pytest.raises(ValueError, match="no ';' in them"):
        RandomSelector(0.5, protect_rare=1).select(odd)


def test_a_gap_that_no_sequence_reaches_is_told():
    ids = [f"scene{i}/a_{i}.jpg" for i in range(20)]
    with pytest.warns(UserWarning, match="temporal_gap=5 keeps nothing: of 20 sequences, the longest has 1 frames"):
        RandomSelector(0.5, temporal_gap=5).select(range(20), ids=ids)


def test_a_later_cut_says_why_it_goes_no_further():
    selection = RandomSelector(0.5, temporal_gap=4).select(range(20))
    with pytest.raises(
        ValueError, match=r"at least 0.25 \(5 of 20 images\): so many stay at any budget, by `always_keep`, .* got 0.2"
    ):
        selection.with_keep_fraction(0.2)


@pytest.mark.parametrize("name", SELECTORS)
def test_settings_that_are_off_change_no_fingerprint(name):
    plain = SELECTORS[name](keep_fraction=0.5)
    assert not {"protect_rare", "temporal_gap"} & set(plain.config())
    assert SELECTORS[name](keep_fraction=0.5, protect_rare=0, temporal_gap=None).fingerprint() == plain.fingerprint()
    prints = {
        SELECTORS[name](keep_fraction=0.5, **options).fingerprint()
        for options in ({}, {"protect_rare": 1}, {"protect_rare": 2}, {"temporal_gap": 1}, {"temporal_gap": 9})
    }
    assert len(prints) == 5
    config = SELECTORS[name](keep_fraction=0.5, protect_rare=2, temporal_gap=9).config()
    assert (config["protect_rare"], config["temporal_gap"]) == (2, 9)


def test_a_fingerprint_from_before_these_settings_is_still_that_of_the_selector():
    """Selections that were kept then are found again."""
    expected = "5e6e681dfe85868d330c764171cb738e19722aaeff91905d5b9a7d3e6aff75a7"
    assert RandomSelector(0.9).fingerprint() == expected
