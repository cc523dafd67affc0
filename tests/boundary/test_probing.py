"""Paths of a data set's pairs: the same whether images are held or read anew, and what is written of them."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from toolkit.boundary import PathPairs, draw_pairs, probe_paths, probing
from toolkit.boundary.probing import PairWalker, draw_paths, draw_planes, save_probe, triples_of
from toolkit.representations import EvaluationView


def images(count=40, channels=1):
    pixels = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(pixels, torch.arange(count) % 3)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, batch):
        return self.head(self.body(batch)) * 9


def pairs(count=24):
    return draw_pairs(images(), num_pairs=count)


@pytest.mark.parametrize("limit", [1 << 29, 5 * 2 * 64, 1])
def test_paths_are_those_of_the_images(monkeypatch, limit):
    monkeypatch.setattr(probing, "_HELD_BYTES", limit)
    data, chosen, model = images(), pairs(), Network()
    walk = PairWalker(data, chosen, num_points=5, layer="body")
    expected = probe_paths(model, data.tensors[0][chosen.first], data.tensors[0][chosen.second], 5)
    maps = model.body(data.tensors[0]).detach().double()
    distance = 1 - nn.functional.cosine_similarity(maps[chosen.first], maps[chosen.second]).numpy()
    for _ in range(2):
        report, distances = walk(model)
        assert report.classes == expected.classes
        assert np.allclose(report.margin_min, expected.margin_min, atol=1e-5)
        assert np.allclose(distances, distance, atol=1e-6)
    first, second = walk(model, 0, 9), walk(model, 9, 24)
    assert first[0].classes + second[0].classes == expected.classes
    assert np.array_equal(np.concatenate([first[1], second[1]]), distances)
    assert walk(model, 7, 7) is None


class Counting(Dataset):
    """Counts how often each image is read, and adds noise to it."""

    def __init__(self):
        self.inner, self.reads = images(), []

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.inner[index][0] + torch.rand(()), self.inner[index][1]


def test_images_are_read_once_and_random_ones_stay_the_same(monkeypatch, rng_unchanged):
    data, model = Counting(), Network()
    walk = PairWalker(data, pairs())
    first = walk(model)[0]
    reads = len(data.reads)
    again = walk(model)[0]
    assert len(data.reads) == reads
    monkeypatch.setattr(probing, "_HELD_BYTES", 12 * 2 * 64)
    anew = PairWalker(data, pairs())
    halves = [anew(model)[0] for _ in range(2)]
    assert len(data.reads) > reads
    assert first.classes == again.classes
    assert halves[0].positions == halves[1].positions


def test_the_model_sees_images_as_its_data_module_prepares_them():
    view = EvaluationView(images(), batch_transform=lambda batch, device: (batch[0] * -1, batch[1]))
    data, chosen, model = images(), pairs(), Network()
    report, empty = PairWalker(view, chosen)(model)
    expected = probe_paths(model, -data.tensors[0][chosen.first], -data.tensors[0][chosen.second])
    assert report.classes == expected.classes
    assert empty.size == 0


def test_one_image_tells_whether_a_model_can_be_asked():
    walk = PairWalker(images(), pairs(), decision=lambda logits: logits.argmax(1))
    assert walk.scores(Network()).shape == (1,)
    assert PairWalker(images(), pairs()).scores(Network()).shape == (1, 3)
    with pytest.raises(ValueError, match="at least two classes"):
        PairWalker(images(), pairs()).scores(lambda batch: batch.flatten(1)[:, :1])


def test_triples_join_images_of_two_classes_where_pairs_tell():
    chosen = draw_pairs(images(), num_pairs=40)
    labels = images().tensors[1].tolist()
    found = triples_of(chosen, 8)
    assert len(set(found)) == 8
    for first, second, third in found:
        assert labels[first] == labels[second] != labels[third]
    alone = PathPairs(np.array([1, 5, 1]), np.array([2, 1, 4]), np.zeros(3, np.int64), ("random",))
    assert triples_of(alone, 9) == [(1, 2, 5)], "three different images only"
    assert triples_of(alone.subset([0]), 9) == []


def test_planes_are_drawn_side_by_side_and_lines_passed_over(tmp_path):
    data = images(8)
    data.tensors[0][1] = data.tensors[0][0]  # the same image twice
    data.tensors[0][5] = 2 * data.tensors[0][4] - data.tensors[0][3]  # on a line
    chosen = PathPairs(np.array([0, 2, 3, 5, 6]), np.array([1, 7, 4, 6, 7]), np.zeros(5, np.int64), ("random",))
    assert triples_of(chosen, 9) == [(0, 1, 2), (2, 7, 3), (3, 4, 5), (6, 7, 0)]
    found = draw_planes(Network(), data, chosen, tmp_path / "p.png", count=2, labels=[0] * 8, size=9)
    assert [plane["images"] for plane in found] == [[2, 7, 3], [6, 7, 0]]
    assert all(plane["regions"] >= 1 for plane in found)
    from matplotlib.image import imread

    draw_planes(Network(), data, chosen, tmp_path / "one.png", count=1, size=9)
    assert imread(tmp_path / "p.png").shape[1] == 2 * imread(tmp_path / "one.png").shape[1]
    assert draw_planes(Network(), data, chosen.subset([0]), tmp_path / "none.png", size=9) == []
    assert not (tmp_path / "none.png").exists()


def test_what_is_found_is_written(tmp_path):
    (tmp_path / "boundaries.csv").write_text("an older one")
    walk = PairWalker(images(), pairs(), num_points=5, layer="head")
    rows, files = save_probe(Network(), walk, tmp_path, limit=0.5, facts={"seed": 7}, num_planes=1)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files.values()}
    assert set(files) == {"table", "picture: paths", "picture: planes", "summary"}
    with files["table"].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["first"]) for row in table] == pairs().first.tolist()
    assert next(iter(table[0])) == "pair"
    summary = json.loads(files["summary"].read_text())
    assert summary["seed"] == 7
    assert [row["stratum"] for row in summary["kinds"]] == list(pairs().strata)
    assert "feature_distance_mean" in rows[0]
    assert len(summary["planes"]) == 1


def test_what_cannot_be_drawn_or_told_is_left_out(tmp_path):
    vectors = TensorDataset(torch.rand(12, 3, generator=torch.Generator().manual_seed(0)))
    chosen = draw_pairs(vectors, num_pairs=6)
    report, _ = PairWalker(vectors, chosen)(lambda rows: rows * 0 + torch.tensor([1.0, 0, 0]))
    assert draw_paths(report, chosen, vectors) is None
    rows, files = save_probe(lambda rows: rows * 0 + torch.tensor([1.0, 0, 0]), PairWalker(vectors, chosen), tmp_path)
    assert set(files) == {"table", "picture: planes", "summary"}
    assert np.isnan(rows[0]["first_crossing_mean"])
    assert json.loads(files["summary"].read_text())["kinds"][0]["first_crossing_mean"] is None
    assert set(save_probe(Network(), PairWalker(images(), pairs(8)), tmp_path, num_planes=0)[1]) == {
        "table",
        "picture: paths",
        "summary",
    }


def test_errors(tmp_path):
    nothing = PairWalker(images(), pairs().subset([]))
    with pytest.raises(ValueError, match="`walker` must be one with at least one pair"):
        save_probe(Network(), nothing, tmp_path)
    with pytest.raises(ValueError, match="`layer` must be a layer of Network"):
        PairWalker(images(), pairs(), layer="neck")(Network())
