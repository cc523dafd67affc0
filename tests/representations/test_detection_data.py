"""Detection data and networks in what is made for images and classifiers: ragged labels, heads that give tuples."""

import numpy as np
import pytest
import torch
from detection_dicts import Scenes, collate
from torch import nn
from torch.utils.data import Subset

from toolkit import (
    FeatureExtractor,
    ObjectFeatureExtractor,
    Pixels,
    SSIMSelector,
    WaveletCoefficients,
    WaveletScattering,
)
from toolkit.representations import EvaluationView, Reduced, layer_sequence
from toolkit.representations.layer_table import layer_table


@pytest.fixture(scope="module")
def parts():
    """What the detection part has of ultralytics."""
    pytest.importorskip("toolkit.detection.ultralytics_parts", exc_type=ImportError)
    from toolkit.detection import ultralytics_parts

    return ultralytics_parts


@pytest.fixture(scope="module")
def model(parts):
    """A small YOLOv5 for three classes, whose weights are random."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        network = parts.DetectionModel("yolov5n.yaml", nc=3, verbose=False)
    return network.eval()


def scenes(size=64, count=6):
    return EvaluationView(Scenes(count, size=size), collate_fn=collate)


def quiet(model, layer, **options):
    return FeatureExtractor(model, layer, **{"batch_size": 4, "cache": False, "progress": False} | options)


@pytest.mark.parametrize("how", ["plain", "view", "ultralytics", "part"])
@pytest.mark.parametrize("representation", [Pixels, WaveletCoefficients, WaveletScattering])
def test_pixels_and_wavelets_of_samples_with_boxes(request, how, representation):
    dataset = Scenes()
    wanted = representation(batch_size=5, progress=False).vectors(dataset.images)
    if how == "view":
        dataset = EvaluationView(dataset, collate_fn=collate)
    elif how == "ultralytics":
        dataset = EvaluationView(dataset, collate_fn=request.getfixturevalue("parts").YOLODataset.collate_fn)
    elif how == "part":
        wanted = representation(batch_size=5, progress=False).vectors(dataset.images[[3, 1]])
        dataset = Subset(dataset, [3, 1])
    np.testing.assert_allclose(representation(batch_size=5, progress=False).vectors(dataset), wanted, atol=1e-6)


def test_images_of_several_sizes_with_boxes():
    class Mixed(Scenes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample if index % 2 else {**sample, "img": sample["img"][:, :24]}

    for view in (Mixed(), EvaluationView(Mixed(), collate_fn=collate)):
        assert Pixels(resize=(16, 16), progress=False).vectors(view).shape == (12, 768)
        with pytest.raises(ValueError, match="Images must have one size, got 24 x 32 .* and 32 x 32"):
            Pixels(progress=False).vectors(view)


def test_an_image_that_cannot_be_read_is_told():
    dataset = Scenes()
    dataset.broken = 5
    with pytest.raises(OSError, match="images/0007.jpg cannot be decoded") as caught:
        Pixels(batch_size=3, progress=False).vectors(EvaluationView(dataset, collate_fn=collate))
    assert caught.value.__notes__ == ["This happened while the images of index 3 to 5 were read."]


def test_similarity_of_samples_with_boxes():
    dataset = Scenes()
    dataset.images[7] = dataset.images[2]
    selection = SSIMSelector(min_similarity=0.9, progress=False).select(EvaluationView(dataset, collate_fn=collate))
    assert np.flatnonzero(selection.group == selection.group[7]).tolist() == [2, 7]


def test_backbone_vectors_do_not_depend_on_the_size(model):
    for layer, channels in ((4, 64), (9, 256), (17, 64)):
        small, large = (quiet(model, layer).vectors(scenes(size)).shape for size in (64, 96))
        assert small == large == (6, channels)


@pytest.mark.parametrize("size", [64, 96])
def test_flattened_heads_are_the_decoded_predictions(model, size):
    data = scenes(size)
    vectors = quiet(model, -1, pool="flatten").vectors(data)
    with torch.no_grad():
        decoded, _ = model(data.dataset.images.float() / 255)
    places = sum((size // stride) ** 2 for stride in (8, 16, 32))
    assert vectors.shape == (6, (4 + 3) * places)
    np.testing.assert_allclose(vectors, decoded.flatten(1), atol=1e-4)
    assert vectors.shape[1] == quiet(model, "model.24", pool="flatten").vectors(data).shape[1]


def test_flattened_heads_have_the_length_that_is_told(model):
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 640, 640))[0].shape[1:] == (4 + 3, 8400)
    row = layer_table(quiet(model, 0), scenes())[-1]
    assert (row.name, row.index, row.kind, row.n_flattened) == ("model.24", 24, "Detect", (4 + 3) * 84)


def test_the_table_of_layers(model):
    rows = {row.index: row for row in layer_table(quiet(model, 0), scenes()) if row.index is not None}
    assert sorted(rows) == list(range(25))
    assert rows[9].kind == "SPPF"
    assert rows[9].shape == (256, 2, 2)
    assert rows[24].shape == (7, 84)


def test_a_module_around_the_network_makes_no_difference(model):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.metric = model, nn.Identity()

        def forward(self, images):
            return self.network(images)[0]

    for layer, pool in ((9, "mean"), (-1, "flatten"), ("model.9", "mean")):
        inner, outer = (quiet(m, layer, pool=pool).vectors(scenes()) for m in (model, Module()))
        np.testing.assert_array_equal(inner, outer)


def test_reduced_predictions(model):
    data = scenes()
    vectors = quiet(model, -1, pool="flatten").vectors(data)
    reduced = Reduced(quiet(model, -1, pool="flatten"), n_dim=10, progress=False).vectors(data)
    assert reduced.shape == (6, 6)
    distances = [np.linalg.norm(v[:, None] - v[None], axis=2) for v in (vectors.astype(np.float64), reduced)]
    np.testing.assert_allclose(distances[1], distances[0], rtol=1e-3, atol=1e-2)


def test_objects_of_a_detection_network(model):
    found = ObjectFeatureExtractor(model, progress=False).objects(scenes())
    assert found.vectors.shape == (11, 128)
    assert ObjectFeatureExtractor(model, 9, cache=False, progress=False).vectors(scenes()).shape == (6, 256)


def test_the_module_for_training_and_its_weights(tmp_path, parts, model):
    from toolkit.models import YOLOv5

    torch.save(model.state_dict(), tmp_path / "weights.pt")
    module = YOLOv5("yolov5n.yaml", num_classes=3, weights=tmp_path / "weights.pt")
    assert [name for name, _ in layer_sequence(module)] == [f"network.model.{place}" for place in range(25)]
    for layer, pool in ((9, "mean"), (-1, "flatten")):
        wanted = quiet(model, layer, pool=pool).vectors(scenes())
        np.testing.assert_array_equal(quiet(module, layer, pool=pool).vectors(scenes()), wanted)
    assert module.training
    torch.save({"state_dict": module.half().state_dict()}, tmp_path / "half.ckpt")
    loaded = quiet(YOLOv5("yolov5n.yaml", num_classes=3), 9, checkpoint=tmp_path / "half.ckpt").vectors(scenes())
    np.testing.assert_array_equal(quiet(module, 9).vectors(scenes()), loaded)
    np.testing.assert_allclose(loaded, quiet(model, 9).vectors(scenes()), atol=0.01)


@pytest.mark.data
def test_neighbouring_frames_of_a_video_look_alike(data_folder, parts):
    from toolkit.datamodules import YOLODataModule

    datamodule = YOLODataModule(data_folder / "us101" / "us101.yaml", imgsz=320)
    frames = datamodule.evaluation_dataset()
    network = parts.DetectionModel("yolov5n.yaml", nc=1, verbose=False)
    weights = torch.load(data_folder / "weights" / "yolov5n_backbone_neck.pt", weights_only=True)
    network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    vectors = quiet(network, 6, batch_size=16).vectors(Subset(frames, range(90)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    apart = np.abs(cosine.argmax(axis=1) - np.arange(len(unit)))
    assert (apart <= 5).mean() > 0.85
