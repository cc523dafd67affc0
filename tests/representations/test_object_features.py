"""Vectors of labelled objects, against slow twins and against the extractor of whole images."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_dicts import Scenes, collate
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from toolkit import FeatureExtractor, ObjectFeatureExtractor, Representation, SemanticSelector
from toolkit.outliers import outlier_scores
from toolkit.representations import EvaluationView
from toolkit.representations.object_features import object_vectors


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3), nn.Flatten()
    )


def extractor(layer=0, model=None, **options):
    return ObjectFeatureExtractor(
        network() if model is None else model, layer, **{"cache": False, "progress": False, "batch_size": 5} | options
    )


def view(dataset=None, **options):
    return EvaluationView(Scenes() if dataset is None else dataset, collate_fn=collate, **options)


def slow_object_vector(feature_map, box, bins=7):
    """RoI Align as its paper has it, one sample after the other: the mean of interpolated values in each bin."""
    channels, height, width = feature_map.shape
    left, right = (min(max(v, 0), 1) * width for v in (box[0] - box[2] / 2, box[0] + box[2] / 2))
    top, bottom = (min(max(v, 0), 1) * height for v in (box[1] - box[3] / 2, box[1] + box[3] / 2))
    total = np.zeros(channels)
    across, down = (max(1, math.ceil((end - start) / bins)) for start, end in ((left, right), (top, bottom)))
    for i in range(bins * down):
        for j in range(bins * across):
            y = min(max(top + (i + 0.5) * (bottom - top) / (bins * down) - 0.5, 0), height - 1)
            x = min(max(left + (j + 0.5) * (right - left) / (bins * across) - 0.5, 0), width - 1)
            y0, x0 = min(int(y), height - 2), min(int(x), width - 2)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
                total += weight * feature_map[:, y0 + dy, x0 + dx]
    return total / (bins * bins * down * across)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("size", [(9, 9), (40, 23)])
def test_objects_are_averaged_as_by_a_slow_twin(size):
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(3, 4, *size, generator=generator)
    boxes = torch.rand(20, 4, generator=generator)
    boxes[0] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    boxes[1, 2:] = 0.01
    places = torch.randint(0, 3, (20,), generator=generator)
    wanted = [slow_object_vector(maps[p].double().numpy(), b.tolist()) for p, b in zip(places, boxes, strict=True)]
    np.testing.assert_allclose(object_vectors(maps, boxes, places), wanted, atol=1e-5)


def test_a_box_without_extent_has_the_value_at_its_place():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert object_vectors(maps, torch.tensor([[0.375, 0.625, 0.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(
        9, abs=0.01
    )


def test_many_boxes_are_what_few_are(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    maps, boxes = torch.rand(2, 3, 8, 8, generator=generator), torch.rand(50, 4, generator=generator)
    places = torch.arange(50) % 2
    whole = object_vectors(maps, boxes, places)
    monkeypatch.setattr("toolkit.representations.object_features._CHUNK_BOXES", 7)
    torch.testing.assert_close(object_vectors(maps, boxes, places), whole, rtol=0, atol=0)


def test_objects_come_image_by_image_with_class_and_box():
    scenes = Scenes(is_uint8=False)
    found = extractor().objects(view(scenes))
    assert found.vectors.dtype == np.float32
    assert found.image.tolist() == [i for i, boxes in enumerate(scenes.boxes) for _ in boxes]
    assert found.classes.tolist() == [label for labels in scenes.targets for label in labels]
    np.testing.assert_array_equal(found.boxes, torch.cat(scenes.boxes))
    with torch.no_grad():
        maps = network()[0](scenes.images / 255).double().numpy()
    wanted = [slow_object_vector(maps[i], box) for i, box in zip(found.image, found.boxes, strict=True)]
    np.testing.assert_allclose(found.vectors, wanted, atol=1e-5)
    assert len(found) == 18
    assert outlier_scores(found.vectors).shape == (18,)


def test_an_image_is_the_mean_of_its_objects_or_all_of_it():
    scenes = Scenes()
    objects = extractor().objects(view(scenes))
    whole = unit(FeatureExtractor(network(), 0, cache=False, progress=False).vectors(view(scenes)))
    wanted = [
        unit(objects.vectors[objects.image == i]).mean(axis=0) if len(boxes) else whole[i]
        for i, boxes in enumerate(scenes.boxes)
    ]
    vectors = extractor().vectors(view(scenes))
    assert isinstance(extractor(), Representation)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)


def test_what_a_later_layer_does_to_the_map_does_not_show():
    assert extractor(0).vectors(view()).min() < 0, "the layer after it replaces negative values in place"


@pytest.mark.parametrize("batch_size", [1, 3, 12, 50])
def test_batches_make_no_difference(batch_size):
    np.testing.assert_allclose(
        extractor(batch_size=batch_size).vectors(view()), extractor().vectors(view()), rtol=0, atol=1e-6
    )
    some, other = (extractor(batch_size=size).objects(view()) for size in (batch_size, 5))
    np.testing.assert_allclose(some.vectors, other.vectors, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(some.image, other.image)


def test_the_order_of_images_and_of_boxes_does_not_matter():
    scenes, shuffled = Scenes(), Scenes()
    order = np.random.default_rng(0).permutation(len(scenes)).tolist()
    wanted = extractor().vectors(view(scenes))[order]
    np.testing.assert_allclose(extractor().vectors(view(Subset(scenes, order))), wanted, atol=1e-6)
    shuffled.boxes = [boxes.flip(0) for boxes in shuffled.boxes]
    np.testing.assert_allclose(extractor().vectors(view(shuffled)), extractor().vectors(view()), atol=1e-6)


def test_data_without_any_box():
    scenes = Scenes()
    scenes.boxes, scenes.targets = [torch.empty(0, 4)] * 12, [[]] * 12
    found = extractor().objects(view(scenes))
    assert found.vectors.shape == (0, 5)
    assert found.boxes.shape == (0, 4)
    whole = unit(FeatureExtractor(network(), 0, cache=False, progress=False).vectors(view(scenes)))
    np.testing.assert_allclose(extractor().vectors(view(scenes)), whole, atol=1e-6)


def test_data_without_classes():
    def without(samples):
        return {key: value for key, value in collate(samples).items() if key != "cls"}

    found = extractor().objects(EvaluationView(Scenes(), collate_fn=without))
    assert found.classes.tolist() == [-1] * 18


def test_boxes_are_those_after_the_batch_transform():
    def mirrored(batch, device):
        boxes = batch["bboxes"].clone()
        boxes[:, 0] = 1 - boxes[:, 0]
        return {**batch, "img": (batch["img"].float() / 255).flip(-1).to(device), "bboxes": boxes}

    model = nn.Sequential(nn.Conv2d(3, 5, 1))
    np.testing.assert_allclose(
        extractor(model=model).vectors(view(batch_transform=mirrored)),
        extractor(model=model).vectors(view()),
        atol=1e-6,
    )


def test_a_data_sets_own_collate_function_is_taken():
    class Own(Scenes):
        collate_fn = staticmethod(collate)

    wanted = extractor().vectors(view())
    np.testing.assert_array_equal(extractor().vectors(Own()), wanted)
    np.testing.assert_array_equal(extractor().vectors(Subset(Own(), [4, 2])), wanted[[4, 2]])
    np.testing.assert_allclose(extractor().vectors(ConcatDataset([Own(), Own()])), np.tile(wanted, (2, 1)), atol=1e-6)


def test_vectors_are_kept_until_a_box_a_class_or_the_layer_changes(tmp_path):
    class Once(nn.Module):
        def __init__(self, fail):
            super().__init__()
            self.fail, self.body = fail, network()

        def forward(self, images):
            if self.fail:
                raise RuntimeError("run again")
            return self.body(images)

        def __repr__(self):
            return "Once"

    options = {"cache": True, "cache_dir": tmp_path}
    first = extractor(0, Once(fail=False), **options).vectors(view())
    np.testing.assert_array_equal(extractor(0, Once(fail=True), **options).vectors(view()), first)
    moved, named = Scenes(), Scenes()
    moved.boxes[5] = moved.boxes[5] + 0.01  # an image that no sample of a few looks at
    named.targets[5] = [2]
    for changed, layer in ((moved, 0), (named, 0), (Scenes(), 2)):
        with pytest.raises(RuntimeError, match="run again"):
            extractor(layer, Once(fail=True), **options).vectors(view(changed))
    assert not np.array_equal(extractor(0, Once(fail=False), **options).vectors(view(moved))[5], first[5])
    assert extractor().fingerprint() != FeatureExtractor(network(), 0).fingerprint()


def test_an_interrupted_run_goes_on(tmp_path):
    scenes = Scenes()
    scenes.broken = 11
    options = {"cache": True, "cache_dir": tmp_path}
    with pytest.raises(OSError, match="0007.jpg"):
        extractor(**options).vectors(view(scenes))  # by the few images that are looked at first
    scenes.broken, scenes.images = 8, scenes.images
    indices = {int(i) for i in np.linspace(0, 11, 8)}
    assert 8 not in indices
    with pytest.raises(OSError, match="0007.jpg"):
        extractor(**options).vectors(view(scenes))
    scenes.broken, scenes.reads = None, []
    vectors = extractor(**options).vectors(view(scenes))
    assert set(range(5)) - indices
    assert not (set(range(5)) - indices) & set(scenes.reads), "the first batch is not read again"
    np.testing.assert_array_equal(vectors, extractor().vectors(view()))


def test_selectors_take_it():
    selection = SemanticSelector(extractor(), 0.5, progress=False).select(view())
    assert len(selection.kept) == 6


def test_the_callers_model_is_left_alone(rng_unchanged):
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    extractor(model=model).objects(view())
    assert model.training
    assert not any(module._forward_hooks for module in model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def changed(**items):
    return lambda samples: {**collate(samples), **items}


@pytest.mark.parametrize(
    ("options", "collate_fn", "match"),
    [
        (
            {"layer": 3},
            collate,
            r"`layer` must be a layer that gives feature maps .* got 3, which gives \(\d, 1176\) for",
        ),
        ({"layer": 4}, collate, "`layer` must be from -4 to 3, or a name, for 4 layers, got 4"),
        ({"layer": "nowhere"}, collate, "`layer` must be a layer of Sequential"),
        ({"batch_size": 0}, collate, "`batch_size` must be at least 1, got 0"),
        ({"model": "resnet18"}, collate, "`model` must be a network that takes images as they are.*got 'resnet18'"),
        (
            {},
            lambda samples: torch.stack([sample["img"] for sample in samples]),
            "`dataset` must be one whose batches are dictionaries with `bboxes` and `batch_idx`, got 'Tensor'",
        ),
        (
            {},
            lambda samples: {"img": collate(samples)["img"]},
            "`dataset` must be one whose batches are dictionaries with `bboxes` and `batch_idx`, got 'img'",
        ),
        ({}, changed(batch_idx=torch.zeros(2)), "one whose `batch_idx`, `bboxes` and `cls` have one entry a box, got"),
        (
            {},
            lambda samples: {**collate(samples), "batch_idx": collate(samples)["batch_idx"] + 1},
            r"`dataset` must be one whose `batch_idx` is in 0 to \d in each batch, got \(1, \d\)",
        ),
        (
            {},
            lambda samples: {**collate(samples), "bboxes": collate(samples)["bboxes"] * 32},
            r"`dataset` must be one whose `bboxes` are in \[0, 1\], got",
        ),
        (
            {},
            lambda samples: {**collate(samples), "bboxes": collate(samples)["bboxes"] * torch.nan},
            r"`dataset` must be one whose `bboxes` are in \[0, 1\], got \(nan, nan\)",
        ),
    ],
)
def test_errors(monkeypatch, options, collate_fn, match):
    from torchvision.models import ResNet18_Weights, resnet18

    # The weights that torchvision would download.
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: resnet18().state_dict())
    for call in ("vectors", "objects"):
        with pytest.raises(ValueError, match=match):
            getattr(extractor(**options), call)(EvaluationView(Scenes(), collate_fn=collate_fn))


@pytest.mark.parametrize("cache", [False, True])
def test_boxes_need_a_collate_function(tmp_path, cache):
    with pytest.raises(ValueError, match="`dataset` must be one whose batches are dictionaries with `bboxes`"):
        extractor(cache=cache, cache_dir=tmp_path).vectors(Scenes())


def test_several_processes_get_what_one_does(tmp_path):
    script = Path(__file__).parent.parent / "scripts" / "objects_on_ranks.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, script, tmp_path, str(rank), "2"], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    wanted = extractor().objects(view())
    for rank in range(2):
        found = np.load(tmp_path / f"rank{rank}.npz")
        np.testing.assert_allclose(found["vectors"], extractor().vectors(view()), atol=1e-6)
        np.testing.assert_allclose(found["objects"], wanted.vectors, atol=1e-6)
        np.testing.assert_array_equal(found["image"], wanted.image)
        np.testing.assert_array_equal(found["boxes"], wanted.boxes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_and_cpu_agree():
    cpu, gpu = (extractor(device=device).vectors(view()) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cpu, gpu, atol=1e-4)
