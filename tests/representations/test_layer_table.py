"""What each layer gives, against the extractor itself and slow twins."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import TensorDataset

from toolkit import FeatureExtractor
from toolkit.cli_reports import layer_lines
from toolkit.models import resnet20
from toolkit.representations.layer_table import layer_table


def images(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator))


def extractor(model, **options):
    return FeatureExtractor(model, progress=False, cache=False, **options)


def test_lengths_are_those_that_the_extractor_gives():
    model, data = resnet20(), images()
    rows = {row.name: row for row in layer_table(extractor(model, batch_size=16), data)}
    assert next(iter(rows)) == "conv1"
    assert rows["layer2"].shape == (32, 4, 4)
    for name in ("conv1", "layer1.0", "layer3", "linear"):
        for pool, attribute in (("mean", "n_pooled"), ("flatten", "n_flattened")):
            vectors = extractor(model, layer=name, pool=pool).vectors(data)
            assert vectors.shape[1] == getattr(rows[name], attribute)


def test_layers_come_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.unused = nn.Linear(4, 2)
            self.first = nn.Linear(192, 4)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)))

    assert [row.name for row in layer_table(extractor(Backwards()), images())] == ["first", "last"]


def test_layers_of_a_sequence_are_numbered():
    model = nn.ModuleDict({"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.ReLU()))})
    model.forward = model["model"].forward
    rows = layer_table(extractor(model), images())
    assert [(row.name, row.index) for row in rows] == [
        ("model.0", 0), ("model.1.0", None), ("model.1.1", None), ("model.1", 1)
    ]  # fmt: skip
    shown = [line.split() for line in layer_lines(rows, "model.1", 40)]
    assert shown[0][:3] == ["no.", "layer", "kind"]
    assert shown[1][:3] == ["0", "model.0", "Conv2d"]
    assert shown[4][:4] == ["*", "1", "model.1", "Sequential"]
    assert all(row.index is None for row in layer_table(extractor(resnet20()), images()))
    assert layer_lines(layer_table(extractor(resnet20()), images()), None, 40)[0].split()[0] == "layer"


def test_figures_equal_slow_twins():
    model, data = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), images(60)
    labels = data.tensors[1].numpy()
    for row in layer_table(extractor(model), data, labels):
        vectors = extractor(model, layer=row.name).vectors(data).astype(np.float64)
        values = np.linalg.eigvalsh(np.cov(vectors.T))
        assert row.effective_dimension == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)
        right = 0
        for i in range(len(vectors)):
            others = np.arange(len(vectors)) != i
            nearest = KNeighborsClassifier(1, metric="cosine").fit(vectors[others], labels[others])
            right += nearest.predict(vectors[i : i + 1])[0] == labels[i]
        assert row.neighbor_accuracy == pytest.approx(right / len(vectors))


def test_a_sample_is_drawn_by_seed_and_text_labels_do():
    data, model = images(30), nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    labels = [f"class {int(label)}" for label in data.tensors[1]]
    few = [layer_table(extractor(model), data, labels, n_images=10, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert layer_table(extractor(model), data)[0].neighbor_accuracy is None


def test_vectors_that_are_all_equal_have_no_dimension():
    model = nn.Sequential(nn.Flatten(), nn.Threshold(10.0, 0.0))
    rows = layer_table(extractor(model), images(), images().tensors[1].numpy())
    assert rows[1].effective_dimension == 0
    assert 0 <= rows[1].neighbor_accuracy <= 1


class Odd(nn.Module):
    """Layers that give a tuple, one value for a whole batch, nothing, and rows of the wrong number."""

    def __init__(self):
        super().__init__()
        self.two, self.one, self.none, self.part = Give(2), Give(1), Give(0), Give(3)

    def forward(self, x):
        for layer in (self.two, self.one, self.none, self.part):
            layer(x)
        return x


class Give(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return (None, x.mean().reshape(()), (x, 1), x[: len(x) // 2])[self.what]


def test_layers_without_a_row_an_image_are_left_out():
    assert [row.name for row in layer_table(extractor(Odd()), images())] == ["two"]


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Flatten()

    def forward(self, x):
        self.layer(x)
        raise RuntimeError("in the middle")


def test_nothing_is_left_behind_by_a_model_that_fails():
    model = Failing().train()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in the middle"):
        layer_table(extractor(model), images())
    assert not model.layer._forward_hooks
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dataset": images(1)}, "`dataset` must be a data set of at least 2 images, got 'one of 1'"),
        ({"n_images": 1}, "`n_images` must be at least 2, got 1"),
        ({"labels": [0, 1]}, "`labels` must be one for each of the 40 images, got '2 labels'"),
        ({"features": extractor(None)}, "`model` must be a network"),
        ({"features": extractor(nn.Sequential(nn.Threshold(-1, float("nan")), nn.Threshold(2, float("nan"))))},
         "`layer 1` must be finite"),
    ],
)  # fmt: skip
def test_bad_input(options, match):
    arguments = {"features": extractor(nn.Sequential(nn.Flatten())), "dataset": images()} | options
    with pytest.raises(ValueError, match=match):
        layer_table(**arguments)
