import json
import re

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from sklearn.isotonic import isotonic_regression
from torch import nn
from torch.utils.data import TensorDataset

from toolkit import FeatureExtractor, SemanticSelector
from toolkit.boundary import probe_paths
from toolkit.gallery import save_pictures
from toolkit.representations import EvaluationView
from toolkit.selection import STATUSES, Selection, automatic, path_prober
from toolkit.selection.automatic import crossing_curve, curve_text, default_num_pairs
from toolkit.selection.path_prober import PathProber, keep_crossing


class Striped(nn.Module):
    """Class 1 where the first pixel is within 0.05 of a stripe's centre, else class 0; the pixels are the features."""

    def __init__(self, *stripes):
        super().__init__()
        self.pixels = nn.Flatten()
        self.register_buffer("centres", torch.tensor(stripes))

    def forward(self, images):
        x = self.pixels(images)[:, :1]
        inside = (0.05 - (x - self.centres).abs()).amax(dim=1)
        return torch.stack([-inside, inside], dim=1)


def crosses_stripe(x, first, second, stripes):
    """Whether a path between first pixels goes through, into or out of a stripe, from the closed form."""
    low, high = np.minimum(x[first], x[second]), np.maximum(x[first], x[second])
    inside = np.array([[abs(v - c) < 0.05 for c in stripes] for v in x])
    one_class = inside.any(1)[first] == inside.any(1)[second]
    through = np.array([[a < c - 0.05 and b > c + 0.05 for c in stripes] for a, b in zip(low, high, strict=True)])
    return ~one_class | through.any(1)


def images(n=240, seed=0):
    """Points of the plane as images of two pixels, none of them in a stripe at 0 or at 0.6."""
    x = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    for stripe in (0.0, 0.6):
        near = np.abs(x[:, 0] - stripe) < 0.06
        x[near, 0] = stripe + np.where(x[near, 0] < stripe, -0.07, 0.07)
    x[:, 1] += 3
    labels = np.random.default_rng(seed + 1).integers(3, size=n)
    return TensorDataset(torch.from_numpy(x).reshape(n, 1, 1, 2), torch.from_numpy(labels)), x, labels


def selector(keep_fraction="auto", stripes=(0.0,), **options):
    features = FeatureExtractor(Striped(*stripes), "pixels", cache=False, progress=False)
    return SemanticSelector(features, keep_fraction, **{"progress": False, "tree_floor": 0.3} | options)


def forest_of(vectors, labels, **options):
    settings = {"keep_fraction": 0.9, "tree_floor": 0.3, "progress": False} | options
    return SemanticSelector(vectors, **settings).select(labels=labels).recut


def known(rates):
    """Crossings decided by a function of the pair's images, always the same for a pair."""

    def crosses(first, second):
        chance = np.random.default_rng(7).random(10_000)
        return chance[(31 * first + 17 * second) % 10_000] < rates(first, second)

    return crosses


def twin(forest, codes, crosses, random, tolerance=0.1):
    """The rule where every path is walked, step by step."""
    n, available = forest.n_images, int((~forest.excluded).sum())
    step = max(1, round(0.01 * n))
    ladder = [*range(step, available - forest.min_kept(), step), available - forest.min_kept()]
    rates = []
    for removed in ladder:
        cut = forest.cut(available - removed)
        gone = np.flatnonzero(~cut.kept & (cut.representative >= 0))
        assert len(gone) == removed
        rates.append(crosses(gone, cut.representative[gone]).mean())
    rates = isotonic_regression(rates, sample_weight=ladder)
    base = rates[min(np.searchsorted(ladder, 0.02 * n), len(ladder) - 1)]
    limit = base + tolerance * (random - base)
    if rates[-1] <= limit:
        return ladder, rates, limit, ladder[-1]
    above = next(k for k, rate in enumerate(rates) if rate > limit)
    return ladder, rates, limit, np.interp(limit, rates[above - 1 : above + 1], ladder[above - 1 : above + 1])


@pytest.mark.parametrize("quota", ["proportional", "global"])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_all_paths_walked_the_cut_is_that_of_the_slow_twin(quota, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(300, 4)), rng.integers(4, size=300)
    forest = forest_of(x, y, quota=quota, always_keep=[1, 2, 3], always_remove=[5, 6])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def distance(first, second):
        return 1 - (unit[first] * unit[second]).sum(1)

    crosses = known(lambda first, second: np.clip(0.6 * distance(first, second), 0, 0.9))
    curve = crossing_curve(forest, y, crosses, seed=seed)
    ladder, rates, limit, chosen = twin(forest, y, crosses, curve.random_rate)
    np.testing.assert_allclose(curve.removed_fraction, np.array(ladder) / 300)
    np.testing.assert_allclose(curve.rate, rates, atol=1e-12)
    assert (curve.low, curve.high) == (curve.rate, curve.rate), "nothing is left to chance"
    assert curve.limit == pytest.approx(limit)
    assert curve.chosen * 300 == pytest.approx(chosen)
    assert curve.n_removed == int(chosen)
    assert curve.chosen_low <= curve.chosen <= curve.chosen_high


def apart(n=6_000, seed=0):
    """Two images of each kind, the closer the earlier, so that pair k is the k-th to be merged."""
    angles = np.repeat(np.linspace(0, 3, n // 2), 2)
    angles[1::2] += np.linspace(1e-6, 4e-4, n // 2)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1), np.zeros(n, np.int64)


@pytest.fixture(scope="module")
def pairs():
    x, y = apart()
    return forest_of(x, y, tree_floor=0.55), y


def steps(first, second):
    """Pairs of twins never cross up to 10 % of the images, and half of them beyond; half of all other pairs do."""
    is_twin = first // 2 == second // 2
    return np.where(is_twin & (first // 2 < 600), 0.0, 0.5)


@pytest.mark.parametrize("num_pairs", [1_000, None, 20_000])
def test_the_cut_is_found_where_the_rate_is_known_to_leave_the_limit(pairs, num_pairs):
    # R(f) is 0 up to f = 0.1, then 0.5 (f - 0.1) / f; the limit 0.1 * 0.5 is met at f = 0.1 / 0.9, or near there for
    # the pairs at hand.
    exact = twin(*pairs, known(steps), 0.5)[-1] / 6_000
    assert exact == pytest.approx(0.1 / 0.9, abs=0.002)
    found = [crossing_curve(*pairs, known(steps), num_pairs=num_pairs, seed=seed) for seed in range(10)]
    chosen = np.array([curve.chosen for curve in found])
    assert np.ptp(chosen) < (0.02 if num_pairs == 1_000 else 0.005)
    assert np.mean(chosen) == pytest.approx(exact, abs=0.002)
    assert all(curve.n_pairs <= (num_pairs or 2_000) for curve in found)
    assert sum(curve.chosen_low <= exact <= curve.chosen_high for curve in found) >= 8
    again = crossing_curve(*pairs, known(steps), num_pairs=num_pairs, seed=3)
    assert again == found[3]
    assert found[0] != found[1]


def test_rates_are_estimated_without_bias_and_their_intervals_hold_them(pairs):
    forest, y = pairs
    full = crossing_curve(forest, y, known(steps), num_pairs=20_000)
    few = [crossing_curve(forest, y, known(steps), num_pairs=600, seed=seed) for seed in range(20)]
    at = [9, 14, 24, 39]
    exact = np.array(full.rate)[at]
    mean = np.mean([np.array(curve.rate)[at] for curve in few], axis=0)
    np.testing.assert_allclose(mean, exact, atol=0.02)
    held = [(np.array(c.low)[at] <= exact) & (exact <= np.array(c.high)[at]) for c in few]
    assert np.mean(held) > 0.85


def test_pairs_are_walked_where_the_cut_is(pairs):
    walked = []

    def crosses(first, second):
        walked.append((first, second))
        return known(steps)(first, second)

    curve = crossing_curve(*pairs, crosses, num_pairs=1_500)
    assert sum(len(first) for first, _ in walked) == curve.n_pairs <= 1_500
    first, second = (np.concatenate(parts) for parts in zip(*walked[1:], strict=True))
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(first), "no path is walked twice"
    share = np.array([np.mean(first // 2 == k) > 0 for k in range(2_600)])
    assert share[:600].mean() > 2 * share[1_200:].mean() > 0


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            lambda first, second: 0.3 + 0 * first,
            r"of the paths of the safest 2 % .* [23]\d\.\d % cross .*, more than 10.0 %",
        ),
        (lambda first, second: 0.08 + 0 * first, "nearly as many as of those between random pairs of one class"),
        (lambda first, second: 0.0 * first, "only 0 random pairs of one class have a path that crosses"),
    ],
)
def test_nothing_is_removed_where_paths_tell_nothing(pairs, rates, message):
    curve = crossing_curve(*pairs, known(rates))
    assert (curve.chosen, curve.chosen_low, curve.chosen_high, curve.n_removed) == (None, None, None, 0)
    assert re.match(f"nothing is removed: .*{message}", curve.message)
    assert len(curve.rate) == len(curve.removed_fraction)


def test_a_rate_that_stays_below_the_limit_goes_down_to_the_floor(pairs):
    is_twin = known(lambda first, second: np.where(first // 2 == second // 2, 0.0, 0.5))
    curve = crossing_curve(*pairs, is_twin)
    assert curve.chosen == pytest.approx(0.45)
    assert curve.n_removed == 2_700
    assert "go no further" in curve.message


@pytest.mark.parametrize(("n", "labels"), [(1, [0]), (4, [0, 1, 2, 3])])
def test_where_no_two_images_share_a_class_nothing_can_go(n, labels):
    forest = forest_of(np.eye(4)[:n], np.array(labels), keep_fraction=1.0)
    curve = crossing_curve(forest, np.array(labels), lambda first, second: first < 0)
    assert curve.removed_fraction == []
    assert curve.n_removed == 0
    assert curve_text(curve.plain()) == (
        "Nothing is removed: no image can go: there are no two images of one class that may be merged."
    )


def test_random_pairs_are_of_one_class_and_of_images_that_are_there():
    codes = np.random.default_rng(0).choice(5, 400, p=[0.6, 0.2, 0.1, 0.097, 0.003])
    codes[codes == 4] = 3
    codes[7] = 4  # alone in its class
    available = np.ones(400, dtype=bool)
    available[:5] = False
    first, second = automatic._random_pairs(codes, available, 20_000, 1)
    for some, all_ in zip(automatic._random_pairs(codes, available, 50, 1), (first, second), strict=True):
        np.testing.assert_array_equal(some, all_[:50])
    assert (codes[first] == codes[second]).all()
    assert (first != second).all()
    assert 7 not in first
    assert min(first.min(), second.min()) >= 5
    share = np.bincount(codes[second], minlength=4) / 20_000
    np.testing.assert_allclose(share[:4], np.bincount(codes[5:])[:4] / (395 - 1), atol=0.02)
    counts = np.bincount(second[codes[second] == 0], minlength=400)[5:]
    assert counts[codes[5:] == 0].min() > 0


def test_the_prober_finds_the_crossings_of_the_closed_form_and_remembers_them():
    dataset, x, _ = images()
    rng = np.random.default_rng(3)
    first, second = rng.integers(240, size=(2, 300))
    stripes = (0.0, 0.6)
    extractor = FeatureExtractor(Striped(*stripes), "pixels", cache=False, batch_size=7)
    probe = PathProber(extractor, dataset, 65, progress=False)
    crossing = probe(first, second)
    np.testing.assert_array_equal(crossing, crosses_stripe(x[:, 0], first, second, stripes))
    assert 20 < crossing.sum() < 280
    walked = len(set(zip(first.tolist(), second.tolist(), strict=True)))
    evaluated = probe.n_evaluations
    assert probe.n_pairs == walked
    np.testing.assert_array_equal(probe(first[::-1], second[::-1]), crossing[::-1])
    assert (probe.n_pairs, probe.n_evaluations) == (walked, evaluated)
    assert probe(first[:0], second[:0]).shape == (0,)


@pytest.mark.parametrize("chunk", [1, 3, 1_000])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_chunks_and_batches_change_nothing(monkeypatch, chunk, batch_size):
    monkeypatch.setattr(path_prober, "_CHUNK_PAIRS", chunk)
    dataset, _, _ = images()
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    first, second = np.random.default_rng(0).permutation(240)[:80].reshape(2, 40)
    extractor = FeatureExtractor(network, "1", cache=False, batch_size=batch_size)
    view = EvaluationView(dataset, batch_transform=lambda batch, device: (2 * batch[0], batch[1]))
    crossing = PathProber(extractor, view, 9, progress=False)(first, second)
    pixels = 2 * dataset.tensors[0]
    report = probe_paths(network, pixels[first], pixels[second], num_points=3, tolerance=1 / 8)
    np.testing.assert_array_equal(crossing, report.num_crossings > 0)
    assert crossing.any()
    assert not crossing.all()


class Jittered(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.rand(()) - 0.5, label

    __getitems__ = None


def test_nothing_is_left_changed_and_random_reading_is_repeatable(rng_unchanged):
    dataset, _, _ = images()
    network = Striped(0.0)
    network.train()
    probes = [
        PathProber(FeatureExtractor(network, "pixels", cache=False), Jittered(*dataset.tensors), seed=5, progress=False)
        for _ in range(2)
    ]
    first, second = np.random.default_rng(0).permutation(240)[:200].reshape(2, 100)
    one, two = (probe(first, second) for probe in probes)
    np.testing.assert_array_equal(one, two)
    assert network.training
    assert torch.is_grad_enabled()


def test_images_of_several_sizes_are_refused():
    sizes = [(torch.zeros(1, 1, 2 + i // 2), 0) for i in range(4)]
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    probe = PathProber(FeatureExtractor(network, "0", cache=False, batch_size=1), sizes, progress=False)
    with pytest.raises(ValueError, match=r"one size to walk between them, got \(1, 1, 2\) and \(1, 1, 3\)"):
        probe(np.array([0]), np.array([3]))


def test_auto_removes_what_the_curve_says(tmp_path):
    dataset, x, labels = images(400)
    first = selector(num_pairs=500).select(dataset)
    curve = first.config["auto"]
    assert first.config["keep_fraction"] == "auto"
    assert 0 < len(first.removed) == curve["n_removed"] == int(400 * curve["chosen"] + 1e-9)
    by_number = selector(len(first.kept) / 400).select(dataset)
    np.testing.assert_array_equal(first.status, by_number.status)
    np.testing.assert_array_equal(first.representative, by_number.representative)
    gone = first.removed
    rate = crosses_stripe(x[:, 0], gone, first.representative[gone], (0.0,)).mean()
    assert rate <= curve["limit"] + 1 / len(gone)
    assert curve["n_pairs"] <= 500
    assert 2 * curve["n_pairs"] < curve["n_evaluations"] < 17 * curve["n_pairs"]
    assert selector(num_pairs=500).select(dataset).config == first.config
    stored = Selection.load(first.save(tmp_path))
    assert stored.config["auto"] == json.loads(json.dumps(curve))
    assert stored.crossing_curve_text() == first.crossing_curve_text()
    assert "of the images can go" in first.crossing_curve_text()
    later = stored.with_keep_fraction(0.9)
    assert len(later.kept) == 360
    assert later.config["keep_fraction"] == 0.9
    assert later.config["auto"] == stored.config["auto"]
    assert by_number.crossing_curve_text() == ""
    assert labels.shape == (400,)


def test_auto_with_decisions_and_a_global_quota():
    dataset, _, _ = images(400)
    options = {"quota": "global", "always_keep": [3, 4], "always_remove": [5, 6, 7], "num_pairs": 500}
    selection = selector(**options).select(dataset)
    assert {3, 4} <= set(selection.kept.tolist())
    assert len(selection.removed) == selection.config["auto"]["n_removed"] + 3
    assert selection.counts().keys() == {"0", "1", "2"}


def test_auto_across_classes_counts_pairs_of_two_labels():
    dataset, _, labels = images(400)
    selection = selector(scope="dataset", num_pairs=500).select(dataset)
    assert len(selection.removed) == selection.config["auto"]["n_removed"] > 0
    gone = selection.removed
    assert (labels[gone] != labels[selection.representative[gone]]).any()


def test_auto_says_why_it_removes_nothing():
    dataset, _, _ = images()
    with pytest.warns(UserWarning, match="keep_fraction='auto': nothing is removed: only 0 random pairs of one class"):
        selection = selector(stripes=(50.0,)).select(dataset)
    assert len(selection.kept) == 240
    assert selection.config["auto"]["chosen"] is None
    assert selection.crossing_curve_text().splitlines()[-1].startswith("Nothing is removed")


@pytest.mark.parametrize(
    "budget",
    [{"keep_fraction": 0.6}, {"keep_fraction": None, "n_groups": 130}, {"keep_fraction": None, "threshold": 0.001}],
)
def test_verify_keeps_exactly_the_images_whose_path_crosses(budget, tmp_path):
    dataset, x, _ = images()
    stripes = (0.0, 0.6)
    plain = selector(stripes=stripes, **budget).select(dataset)
    verified = selector(stripes=stripes, verify=True, **budget).select(dataset)
    gone = plain.removed
    crossing = gone[crosses_stripe(x[:, 0], gone, plain.representative[gone], stripes)]
    assert 0 < len(crossing) < len(gone)
    np.testing.assert_array_equal(verified.boundary, crossing)
    np.testing.assert_array_equal(verified.kept, np.union1d(plain.kept, crossing))
    np.testing.assert_array_equal(verified.representative[crossing], crossing)
    np.testing.assert_array_equal(verified.distance[crossing], 0)
    np.testing.assert_array_equal(verified.group, plain.group)
    others = np.setdiff1d(np.arange(240), crossing)
    np.testing.assert_array_equal(verified.status[others], plain.status[others])
    np.testing.assert_array_equal(verified.representative[others], plain.representative[others])
    assert STATUSES[-1] == "boundary"
    assert verified.reasons[crossing[0]] == "boundary"
    assert sum(count.get("boundary", 0) for count in verified.counts().values()) == len(crossing)
    assert sum(count["kept"] for count in verified.counts().values()) == len(verified.kept)
    stored = Selection.load(verified.save(tmp_path))
    np.testing.assert_array_equal(stored.status, verified.status)
    np.testing.assert_array_equal(Selection.from_state_dict(verified.state_dict()).boundary, crossing)
    again, expected = (made.with_keep_fraction(0.7) for made in (stored, plain))
    np.testing.assert_array_equal(again.status, expected.status)
    assert (again.config["verify"], verified.config["verify"], plain.config["verify"]) == (False, True, False)


def test_verify_on_top_of_auto_walks_few_paths_anew():
    dataset, _, _ = images(400)
    options = {"stripes": (0.0, 0.6), "num_pairs": 500, "tolerance": 0.5}
    auto, both = (selector(verify=verify, **options).select(dataset) for verify in (False, True))
    assert len(both.boundary) > 0
    np.testing.assert_array_equal(np.setdiff1d(both.kept, both.boundary), auto.kept)


def test_a_cut_without_removed_images_needs_no_paths():
    dataset, _, _ = images()
    cut = forest_of(dataset.tensors[0].flatten(1).numpy(), dataset.tensors[1].numpy()).cut(240)
    kept = keep_crossing(cut, lambda first, second: np.zeros(len(first), dtype=bool))
    assert kept.kept.all()
    assert not kept.boundary.any()


def test_settings_are_seen_by_fingerprints_and_the_command_line():
    base = selector()
    changes = [{"tolerance": 0.2}, {"num_pairs": 600}, {"num_points": 9}, {"verify": True}, {"keep_fraction": 0.5}]
    assert len({selector(**change).fingerprint() for change in changes} | {base.fingerprint()}) == 6
    parser = ArgumentParser()
    parser.add_class_arguments(SemanticSelector, "selector")
    for text, value in (("auto", "auto"), ("0.9", 0.9), ("null", None)):
        parsed = parser.parse_args([f"--selector.keep_fraction={text}", "--selector.features=x.npy"])
        assert parsed.selector.keep_fraction == value
        assert type(parsed.selector.keep_fraction) is type(value)
    assert default_num_pairs(100_000) == 25_000


def test_the_curve_is_drawn(tmp_path):
    dataset, _, _ = images(400)
    selection = selector(num_pairs=500).select(dataset)
    pictures = save_pictures(selection, dataset, tmp_path)
    assert pictures["crossing rate"].name == "crossing_rate.png"
    assert pictures["crossing rate"].stat().st_size > 5_000


def unlabelled():
    return TensorDataset(images()[0].tensors[0])


@pytest.mark.parametrize(
    ("options", "dataset", "error", "message"),
    [
        (
            {"features": np.eye(3)},
            None,
            ValueError,
            "`features` must be a FeatureExtractor, whose .* or `keep_fraction`",
        ),
        (
            {"features": np.eye(3), "keep_fraction": 0.9, "verify": True},
            None,
            ValueError,
            "where verify=True, got 'Emb",
        ),
        ({"tree_floor": None}, None, ValueError, "`tree_floor` must be a fraction where keep_fraction='auto'"),
        ({"n_groups": 3}, None, ValueError, "exactly one, got"),
        ({"keep_fraction": "most"}, None, TypeError, "`keep_fraction` must be a number or 'auto', got 'most'"),
        ({"tolerance": 0}, None, ValueError, r"`tolerance` must be in \(0, 1\), got 0"),
        ({"tolerance": "a"}, None, TypeError, "`tolerance` must be a number"),
        ({"num_pairs": 499}, None, ValueError, "`num_pairs` must be at least 500, got 499"),
        ({"num_pairs": 1e4}, None, TypeError, "`num_pairs` must be a whole number"),
        ({"num_points": 2}, None, ValueError, "`num_points` must be at least 3, got 2"),
        ({"num_points": None}, None, TypeError, "`num_points` must be a whole number"),
        ({"verify": 1}, None, TypeError, "`verify` must be True or False, got 1"),
        ({"scope": "dataset"}, unlabelled(), ValueError, "`labels` must be given where keep_fraction='auto'"),
        ({"always_remove": range(240)}, images()[0], ValueError, "`always_remove` must be at most the 239 images"),
    ],
)
def test_errors(options, dataset, error, message):
    made = selector(**{name: value for name, value in options.items() if name != "features"})
    made.features = options.get("features", made.features)
    with pytest.raises(error, match=message):
        made.check() if dataset is None else made.select(dataset)


def test_a_selector_that_has_no_model_takes_no_auto():
    from toolkit import SSIMSelector, WaveletSelector

    for kind in (WaveletSelector, SSIMSelector):
        with pytest.raises(TypeError, match="`keep_fraction` must be a number, got 'auto'"):
            kind("auto").check()
