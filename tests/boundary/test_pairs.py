"""Pairs of images to walk between: what each kind holds, against a slow twin, and what is promised of all of them."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from toolkit import FeatureExtractor, Pixels, RandomSelector, Selection, SemanticSelector
from toolkit.boundary import PathPairs, draw_pairs, load_images
from toolkit.boundary import pairs as module
from toolkit.boundary.pairs import STRATA, class_codes, codes_of
from toolkit.representations import EvaluationView
from toolkit.selection.labels import Labels

CLASSES = 4


def vectors(count=120, width=3, seed=0):
    """Points around one centre for each class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    return rng.normal(size=(CLASSES, width))[labels] * 2 + rng.normal(size=(count, width)), labels


def images(count=120, seed=0):
    points, labels = vectors(count, 12, seed)
    return TensorDataset(torch.from_numpy(points).float().reshape(count, 3, 2, 2), torch.from_numpy(labels))


def selection(count=120):
    points, labels = vectors(count, 12)
    return SemanticSelector(points, 0.7, progress=False).select(labels=labels)


def of_kind(pairs, name):
    """The pairs of a kind, as tuples."""
    own = pairs.stratum == pairs.strata.index(name)
    return list(zip(pairs.first[own].tolist(), pairs.second[own].tolist(), strict=True))


def distances_of(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def test_near_and_far_partners_are_those_of_comparing_all():
    points, labels = vectors()
    distance = distances_of(points)
    pairs = draw_pairs(range(120), labels=labels, features=points, num_pairs=80, strata=STRATA[1:4])
    assert pairs.counts() == {"same_class_near": 27, "same_class_far": 27, "cross_class_near": 26}
    for first, second in of_kind(pairs, "same_class_near"):
        same = np.flatnonzero((labels == labels[first]) & (np.arange(120) != first))
        assert second == same[distance[first, same].argmin()]
    for first, second in of_kind(pairs, "same_class_far"):
        same = np.flatnonzero((labels == labels[first]) & (np.arange(120) != first))
        farther = (distance[first, same] > distance[first, second]).sum()
        assert labels[first] == labels[second]
        assert farther < np.ceil(0.1 * len(same))
    for first, second in of_kind(pairs, "cross_class_near"):
        other = np.flatnonzero(labels != labels[first])
        assert second == other[distance[first, other].argmin()]
    far = [distance[pair] for pair in of_kind(pairs, "same_class_far")]
    near = [distance[pair] for pair in of_kind(pairs, "same_class_near")]
    assert np.median(far) > 3 * np.median(near)
    assert {a for a, _ in of_kind(pairs, "same_class_far")} & {a for a, _ in of_kind(pairs, "same_class_near")}


def test_redundant_pairs_are_removed_images_and_those_kept_for_them():
    chosen = selection()
    pairs = draw_pairs(images(), selection=chosen, num_pairs=100)
    found = of_kind(pairs, "redundant")
    assert pairs.counts() == dict.fromkeys(STRATA, 20)
    assert all(second == chosen.representative[first] for first, second in found)
    assert {first for first, _ in found} < set(chosen.removed.tolist())
    assert np.isin([second for _, second in found], chosen.kept).all()


def test_images_without_one_that_is_kept_for_them_are_passed_over():
    status = np.array([0, 1, 1, 3, 0], np.uint8)
    representative = np.array([0, 0, 1, -1, 4])  # the second's own representative is removed itself
    chosen = Selection(status, np.zeros(5, np.int64), representative, np.zeros(5, np.float32))
    pairs = draw_pairs(np.zeros((5, 2)), selection=chosen, strata=["redundant"], num_pairs=3)
    assert of_kind(pairs, "redundant") == [(1, 0)]


def test_groups_of_several_labels_come_first_across_classes():
    points, labels = vectors(40)
    influential = [3, 5, 8, 9, 20, 21]
    groups = [0, 0, 1, 1, 2, 2]
    labels[influential] = [0, 1, 2, 3, 0, 0]  # the last group has one label in the data set: it gives no pair
    status, group = np.zeros(40, np.uint8), np.full(40, -1, np.int64)
    status[influential], group[influential] = 5, groups
    chosen = Selection(status, group, np.arange(40), np.zeros(40, np.float32))
    found = of_kind(
        draw_pairs(
            points.astype(np.float32),
            labels=labels,
            selection=chosen,
            features=points,
            num_pairs=6,
            strata=["cross_class_near"],
        ),
        "cross_class_near",
    )
    assert {frozenset(pair) for pair in found[:2]} == {frozenset((3, 5)), frozenset((8, 9))}
    distance = distances_of(points)
    for first, second in found[2:]:
        other = np.flatnonzero(labels != labels[first])
        assert second == other[distance[first, other].argmin()]


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_distinct_and_each_of_two_images_in_equal_shares(seed):
    pairs = draw_pairs(images(), selection=selection(), num_pairs=43, seed=seed)
    assert len(pairs) == 43
    assert len({frozenset(pair) for pair in zip(pairs.first, pairs.second, strict=True)}) == 43
    assert sorted(pairs.counts().values()) == [8, 8, 9, 9, 9]
    assert (np.diff(pairs.stratum) >= 0).all()
    labels = images().tensors[1].numpy()
    assert np.array_equal(pairs.labels, np.stack([labels[pairs.first], labels[pairs.second]], axis=1))
    for name in ("same_class_near", "same_class_far"):
        assert all(labels[a] == labels[b] for a, b in of_kind(pairs, name))
    assert all(labels[a] != labels[b] for a, b in of_kind(pairs, "cross_class_near"))


def test_the_same_seed_draws_the_same_and_another_others(rng_unchanged):
    first, again, other = (draw_pairs(images(), num_pairs=40, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.first, again.first)
    assert np.array_equal(first.second, again.second)
    assert not np.array_equal(first.first, other.first)


def test_the_other_kinds_do_not_depend_on_the_selection():
    with_one, without = (
        draw_pairs(images(), selection=chosen, num_pairs=50, strata=strata)
        for chosen, strata in ((RandomSelector(0.5).select(images()), STRATA), (None, STRATA[1:]))
    )
    for name in STRATA[1:]:
        shorter, longer = sorted((of_kind(with_one, name), of_kind(without, name)), key=len)
        assert longer[: len(shorter)] == shorter


def test_the_images_as_the_network_takes_them_tell_near_from_far_where_there_are_no_features(monkeypatch):
    data = images()
    flat = data.tensors[0].flatten(1).numpy()
    expected = draw_pairs(data, features=flat, num_pairs=60)
    scale = torch.tensor([1.0, 1.0, 5.0]).view(3, 1, 1)
    view = EvaluationView(data, batch_transform=lambda batch, device: (batch[0] * scale, batch[1]))
    scaled = draw_pairs(data, features=(data.tensors[0] * scale).flatten(1).numpy(), num_pairs=60)
    for small in (False, True):
        if small:  # one image at a time, against three at a time
            monkeypatch.setattr(module, "_ANCHOR_BYTES", 1)
            monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 8 * 12)
        assert np.array_equal(draw_pairs(data, num_pairs=60).second, expected.second)
        assert np.array_equal(draw_pairs(view, num_pairs=60).second, scaled.second)
    assert not np.array_equal(expected.second, scaled.second)


@pytest.mark.parametrize("pool_size", [40, 120])
@pytest.mark.parametrize("kind", ["vectors", "pixels", "network"])
def test_features_are_asked_for_the_pool_only_and_used_by_place(kind, pool_size):
    data = images()
    data.tensors = ((data.tensors[0] - data.tensors[0].min()) / np.ptp(data.tensors[0].numpy()), data.tensors[1])
    points = data.tensors[0].flatten(1).numpy()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity())
    asked = []

    class Watched(Pixels):
        def vectors(self, dataset):
            asked.append(len(dataset))
            return super().vectors(dataset)

    features = {
        "vectors": points,
        "pixels": Watched(progress=False),
        "network": FeatureExtractor(network, "1", pool="flatten", cache=False, progress=False),
    }[kind]
    pairs = draw_pairs(data, features=features, num_pairs=30, strata=["same_class_near"], pool_size=pool_size)
    assert asked == ([pool_size] if kind == "pixels" else [])
    labels = data.tensors[1].numpy()
    pool = np.sort(np.random.default_rng([0, len(STRATA)]).permutation(120)[:pool_size])
    distance = distances_of(points.astype(np.float64))
    for first, second in of_kind(pairs, "same_class_near"):
        same = pool[(labels[pool] == labels[first]) & (pool != first)]
        assert distance[first, second] == distance[first, same].min()


def test_an_array_of_images_is_cut_to_the_pool_too():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    pairs = draw_pairs(
        pixels, labels=np.arange(50) % 2, features=Pixels(progress=False), num_pairs=8, pool_size=20, strata=STRATA[1:3]
    )
    assert pairs.counts() == {"same_class_near": 4, "same_class_far": 4}


def test_among_copies_of_an_image_the_first_is_taken():
    points = np.repeat(np.random.default_rng(3).normal(size=(5, 50)) * 1e3, 4, axis=0)
    pairs = draw_pairs(range(20), labels=[0] * 20, features=points, num_pairs=15, strata=["same_class_near"])
    for first, second in of_kind(pairs, "same_class_near"):
        start = first // 4 * 4
        assert second in {start, start + 1}
        assert second == (start + 1 if first == start else start)


def test_few_images_give_all_their_pairs():
    pairs = draw_pairs(np.zeros((4, 2)), strata=["random"], num_pairs=100)
    found = {frozenset(pair) for pair in of_kind(pairs, "random")}
    assert found == set(map(frozenset, itertools.combinations(range(4), 2)))
    assert pairs.labels is None


def test_random_pairs_are_drawn_evenly():
    pairs = draw_pairs(np.zeros((400, 1)), strata=["random"], num_pairs=8000)
    counts = np.bincount(np.concatenate([pairs.first, pairs.second]), minlength=400)
    assert len(pairs) == 8000
    assert counts.min() > 10
    assert counts.max() < 80
    assert abs(counts[:200].sum() - 8000) < 400


def test_kinds_that_the_data_does_not_allow_are_left_out_and_told(caplog):
    caplog.set_level("INFO", logger="toolkit.boundary.pairs")
    assert draw_pairs(np.zeros((9, 2), np.float32), num_pairs=10).counts() == {"random": 10}
    one_class = draw_pairs(np.random.default_rng(0).normal(size=(9, 2)), labels=[1] * 9, num_pairs=10)
    assert list(one_class.strata) == ["same_class_near", "same_class_far", "random"]
    assert len(one_class) == 10
    alone = draw_pairs(np.random.default_rng(0).normal(size=(9, 2)), labels=range(9), num_pairs=10)
    assert list(alone.strata) == ["cross_class_near", "random"]
    nothing_removed = draw_pairs(images(), selection=RandomSelector(1.0).select(images()), num_pairs=8)
    assert "redundant" not in nothing_removed.strata
    told = [record.getMessage() for record in caplog.records]
    assert "no pairs of the kind redundant: there is no selection" in told
    assert "no pairs of the kind same_class_far: there are no labels" in told
    assert "no pairs of the kind cross_class_near: all images have one label" in told
    assert "no pairs of the kind same_class_near: no two images fit" in told
    assert "no pairs of the kind redundant: no two images fit" in told


class Scenes(Dataset):
    """Images with masks for labels, which say nothing of classes."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((1, 2, 2), float(index)), torch.full((2, 2), 0.5)


def test_classes_of_all_kinds_of_labels():
    assert class_codes(None, 3) is None
    assert class_codes(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    assert class_codes(torch.tensor([9, 4]), 2).tolist() == [9, 4]
    assert class_codes([(0, 2), (1,), (0, 2)], 3).tolist() == [0, 1, 0]
    assert codes_of(Scenes()) is None
    chosen = selection()
    assert codes_of(np.zeros((120, 2)), chosen).tolist() == images().tensors[1].tolist()
    assert codes_of(images(), chosen, [5] * 120).tolist() == [5] * 120
    assert isinstance(chosen.labels, Labels)
    assert codes_of(images(), RandomSelector(0.5).select(range(120))).tolist() == images().tensors[1].tolist()


class Noisy(Dataset):
    """Images that differ each time they are read."""

    def __len__(self):
        return 700

    def __getitem__(self, index):
        return torch.rand(1, 2, 2) + index, 0


def test_images_come_as_asked_for_and_random_ones_the_same_each_time(rng_unchanged):
    first = load_images(Noisy(), [5, 3, 5])
    assert torch.equal(first, load_images(Noisy(), [5, 3, 5]))
    assert first.floor().mean(dim=(1, 2, 3)).tolist() == [5, 3, 5]
    many = load_images(Noisy(), range(700), batch_size=300)
    assert torch.equal(many.floor().mean(dim=(1, 2, 3)), torch.arange(700.0))
    data = images()
    loaded = load_images(EvaluationView(data, num_workers=1), range(120), batch_size=50)
    assert torch.equal(loaded, data.tensors[0]), "read by a worker process"
    bytes_ = TensorDataset(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8))
    assert load_images(bytes_, [0]).unique().tolist() == [pytest.approx(0.2)]
    seen = []
    view = EvaluationView(
        bytes_, batch_transform=lambda batch, device: seen.append(device) or batch, device=torch.device("cpu", 0)
    )
    load_images(view, [0])
    load_images(view, [0], "cpu")
    assert seen == [torch.device("cpu", 0), torch.device("cpu")]


def test_a_checkpoint_holds_the_pairs(tmp_path):
    for pairs in (draw_pairs(images(), num_pairs=9), draw_pairs(np.zeros((9, 2)), num_pairs=9)):
        torch.save(pairs.state_dict(), tmp_path / "pairs.pt")
        again = PathPairs.from_state_dict(torch.load(tmp_path / "pairs.pt", weights_only=True))
        assert again.strata == pairs.strata
        assert np.array_equal(again.first, pairs.first)
        assert np.array_equal(again.second, pairs.second)
        assert np.array_equal(again.stratum, pairs.stratum)
        assert (again.labels is None) == (pairs.labels is None)
        assert pairs.labels is None or np.array_equal(again.labels, pairs.labels)


def test_some_of_the_pairs():
    pairs = draw_pairs(images(), num_pairs=9)
    some = pairs.subset([3, 1])
    assert (some.first.tolist(), some.second.tolist()) == (pairs.first[[3, 1]].tolist(), pairs.second[[3, 1]].tolist())
    assert some.names == [pairs.names[3], pairs.names[1]]
    assert np.array_equal(some.labels, pairs.labels[[3, 1]])
    assert len(pairs.subset(slice(2, 2))) == 0
    assert pairs.images.tolist() == sorted({*pairs.first.tolist(), *pairs.second.tolist()})


def test_inputs_are_not_modified():
    points, labels = vectors()
    before, labels_before = points.copy(), labels.copy()
    chosen = selection()
    stored = chosen.representative.copy()
    draw_pairs(points, labels=labels, features=points, selection=chosen, num_pairs=30)
    assert np.array_equal(points, before)
    assert np.array_equal(labels, labels_before)
    assert np.array_equal(chosen.representative, stored)


def broken(index=3):
    data = images(20)
    data.tensors[0][index, 0] = torch.nan
    return data


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: draw_pairs(images(), strata="random"), TypeError, "`strata` must be a list of kinds"),
        (lambda: draw_pairs(images(), strata=[]), ValueError, "`strata` must be different kinds of pairs, at least"),
        (lambda: draw_pairs(images(), strata=["random"] * 2), ValueError, "`strata` must be different kinds"),
        (lambda: draw_pairs(images(), strata=["near"]), ValueError, "`strata` must be one of 'redundant'.* got 'near'"),
        (lambda: draw_pairs(images(), num_pairs=4), ValueError, "at least 5, the number of `strata`, got 4"),
        (lambda: draw_pairs(images(), num_pairs=8.0), TypeError, "`num_pairs` must be a whole number, got 8.0"),
        (lambda: draw_pairs(images(), pool_size=1), ValueError, "`pool_size` must be at least 2, got 1"),
        (lambda: draw_pairs(np.zeros((1, 2))), ValueError, "at least two images, got '1'"),
        (lambda: draw_pairs(images(60), selection=selection()), ValueError, "`selection` must be one from the data"),
        (lambda: draw_pairs(images(), labels=[0]), ValueError, "`labels` must be one for each of the data set's 120"),
        (lambda: draw_pairs(images(), features=np.zeros((7, 2))), ValueError, "`embeddings` must be one row for each"),
        (
            lambda: draw_pairs(np.zeros((4, 2)), strata=["redundant", "same_class_near"]),
            ValueError,
            r"got none \(redundant: there is no selection; same_class_near: there are no labels\)",
        ),
        (lambda: draw_pairs(broken(), num_pairs=5), ValueError, "images of finite values, got 'NaN or infinite in im"),
        (lambda: load_images(images(), []), ValueError, "`indices` must be those of at least one image"),
        (
            lambda: PathPairs(np.array([0]), np.array([1, 2]), np.array([0]), ("random",)),
            ValueError,
            "`second` must be integers, one for each pair",
        ),
        (
            lambda: PathPairs(np.array([0.0]), np.array([1]), np.array([0]), ("random",)),
            ValueError,
            "`first` must be integers, one for each pair, got 'float64",
        ),
        (
            lambda: PathPairs(np.array([0, 4]), np.array([1, 4]), np.array([0, 0]), ("random",)),
            ValueError,
            "`second` must be another image than `first` in each pair, got 4",
        ),
        (
            lambda: PathPairs(np.array([0]), np.array([1]), np.array([1]), ("random",)),
            ValueError,
            "`stratum` must be indices of the 1 `strata`",
        ),
        (
            lambda: PathPairs(np.array([0]), np.array([1]), np.array([0]), ("random",), np.array([[1, 2, 3]])),
            ValueError,
            r"`labels` must be of shape \(1, 2\)",
        ),
    ],
)
def test_errors(call, kind, match):
    with pytest.raises(kind, match=match):
        call()
