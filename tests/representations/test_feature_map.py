import copy
import json
import multiprocessing
import warnings
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
from detection_dicts import Scenes, collate
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from toolkit import FeatureExtractor, Representation, SemanticSelector
from toolkit.representations import EvaluationView, find_layer, layer_sequence
from toolkit.representations.feature_map import RandomAugmentationWarning, named_model


class Network(nn.Module):
    """A small network with a layer of every kind of output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.pair = Outputs()
        self.unused = nn.Identity()
        self.fail = False

    def forward(self, images):
        if self.fail:
            raise RuntimeError("the model broke")
        features = self.drop(self.norm(self.conv(images)).relu())
        self.pair(features)
        return self.avgpool(features).flatten(1)


class Outputs(nn.Module):
    """Gives tuples, lists, dictionaries, tokens or texts."""

    kind = "tuple"

    def forward(self, features):
        tokens = features.flatten(2).transpose(1, 2)
        return {
            "tuple": (None, features, tokens),
            "list": [features],
            "dict": {"first": features},
            "tokens": tokens,
            "scalar": features.mean((1, 2, 3)),
            "text": "nothing",
            "rows": features[:1],
        }[self.kind]


class Wrapped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.model = network

    def forward(self, images):
        return self.model(images)


def network():
    torch.manual_seed(0)
    model = Network()
    model.norm.running_mean += 0.3
    return model


def images(n=20, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def extractor(model, layer="avgpool", **options):
    return FeatureExtractor(model, layer, **{"cache": False, "progress": False, "batch_size": 7} | options)


def expected(model, batch):
    """The pooled features by hand."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return model.norm(model.conv(batch)).relu()


def test_vectors_are_the_layers_outputs_in_order():
    model, x = network(), images()
    maps = expected(model, x)
    assert isinstance(extractor(model), Representation)
    for layer, pool, wanted in [
        ("avgpool", "mean", maps.mean((2, 3))),
        ("drop", "mean", maps.mean((2, 3))),
        ("drop", "flatten", maps.flatten(1)),
    ]:
        vectors = extractor(model, layer, pool=pool).vectors(TensorDataset(x))
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "tokens", "scalar"])
def test_a_tensor_is_picked_from_any_output(kind):
    model, x = network(), images()
    model.pair.kind = kind
    vectors = extractor(model, "pair").vectors(TensorDataset(x))
    wanted = expected(model, x).mean((2, 3))
    np.testing.assert_allclose(vectors, wanted.mean(1, keepdim=True) if kind == "scalar" else wanted, atol=1e-6)


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: [x[i] for i in range(len(x))],
        lambda x: [(x[i], i) for i in range(len(x))],
        lambda x: [{"pixel_values": x[i], "label": i} for i in range(len(x))],
        lambda x: [{"cls": i, "im_file": "a.jpg", "img": (x[i] * 255).round().to(torch.uint8)} for i in range(len(x))],
        lambda x: [((x[i] * 255).round().to(torch.uint8), i) for i in range(len(x))],
    ],
)
def test_batches_of_any_shape(batch):
    x = (images() * 255).round() / 255
    wanted = extractor(network()).vectors(TensorDataset(x))
    np.testing.assert_allclose(extractor(network()).vectors(batch(x)), wanted, atol=1e-6)


def test_an_unusual_key_is_named():
    samples = [{"photo": image} for image in images()]
    with pytest.raises(ValueError, match=r"`input_key` must be the key of the images in a batch, one of \['photo'\]"):
        extractor(network()).vectors(samples)
    assert extractor(network(), input_key="photo").vectors(samples).shape == (20, 5)


def test_the_callers_model_and_state_are_left_alone(rng_unchanged):
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extractor(model, num_workers=0).vectors(TensorDataset(images()))
    assert model.training
    assert model.drop.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_state_is_restored_when_the_model_raises(rng_unchanged):
    model = network()
    model.fail = True
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    with pytest.raises(RuntimeError, match="the model broke"):
        extractor(model).vectors(TensorDataset(images()))
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == before
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in model.modules())


def test_the_loader_runs_outside_inference_mode():
    class Caching(Dataset):
        def __init__(self):
            self.seen = {}

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return self.seen.setdefault(index, torch.rand(3, 4, 4))

    dataset = Caching()
    extractor(network()).vectors(dataset)
    assert not any(image.is_inference() for image in dataset.seen.values())


def test_layers_are_found_by_name_and_unique_suffix():
    model = Wrapped(Wrapped(network()))
    assert find_layer(model, "avgpool")[0] == "model.model.avgpool"
    assert find_layer(model, "model.avgpool")[0] == "model.model.avgpool"
    assert find_layer(model, "model")[0] == "model", "an exact name comes before a suffix"
    wanted = extractor(network()).vectors(TensorDataset(images()))
    np.testing.assert_array_equal(extractor(model).vectors(TensorDataset(images())), wanted)


@pytest.mark.parametrize(
    ("layer", "kind", "match"),
    [
        ("avgpol", "tuple", "`layer` must be a layer of Network, such as .*avgpool.*, got 'avgpol'"),
        ("unused", "tuple", "`layer` must be a layer that runs when the model is called with images, got 'unused'"),
        ("pair", "text", "`layer` must be a layer that gives a tensor"),
        ("pair", "rows", r"`layer` must be a layer that gives one row an image \(7\)"),
    ],
)
def test_layer_errors(layer, kind, match):
    model = network()
    model.pair.kind = kind
    with pytest.raises(ValueError, match=match):
        extractor(model, layer).vectors(TensorDataset(images()))


class Measured(nn.Module):
    """A sequence of layers two levels down, beside parts that have no parameters."""

    def __init__(self):
        super().__init__()
        self.metric = nn.ModuleList([nn.Identity()])
        self.network = Wrapped(
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(5, 4, 3)), nn.ReLU())
        )
        self.loss = nn.CrossEntropyLoss()

    def forward(self, images):
        return self.network(images)


def test_layers_are_found_by_their_place():
    model = Measured()
    names = [f"network.model.{place}" for place in range(3)]
    assert [name for name, _ in layer_sequence(model)] == names
    for place, name in enumerate(names):
        wanted = name, model.network.model[place]
        assert find_layer(model, place) == find_layer(model, place - 3) == find_layer(model, np.int64(place)) == wanted
    model.other = nn.Linear(2, 1)
    assert layer_sequence(model) == []
    x = images()
    by_name, by_place = (extractor(Measured(), layer).vectors(TensorDataset(x)) for layer in ("network.model.1", 1))
    assert by_name.shape == by_place.shape == (20, 4)
    assert extractor(model.network, 1).fingerprint() == extractor(model.network, "model.1").fingerprint()


def test_a_text_is_a_name_first_and_a_place_last():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.ReLU()))
    assert find_layer(model, "1")[0] == "1", "a name"
    assert find_layer(model, "2")[0] == "1.2", "a unique ending"
    assert find_layer(model, "-1")[0] == "1", "no name, as command lines give -1"
    twice = nn.ModuleDict({"model": nn.Sequential(model, model[1])})
    assert find_layer(twice, "0")[0] == "model.0", "several names end in it"
    with pytest.raises(ValueError, match="`layer` must be from -2 to 1, or a name, for 2 layers, got 5"):
        find_layer(model, "5")


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (3, ValueError, "`layer` must be from -3 to 2, or a name, for 3 layers, got 3"),
        (-4, ValueError, "`layer` must be from -3 to 2, or a name, for 3 layers, got -4"),
        (1.0, TypeError, "`layer` must be the name of a layer or a whole number, got 1.0"),
        (True, TypeError, "`layer` must be the name of a layer or a whole number, got True"),
        (None, TypeError, "`layer` must be the name of a layer or a whole number, got None"),
    ],
)
def test_places_that_do_not_exist(layer, error, match):
    with pytest.raises(error, match=match):
        find_layer(Measured(), layer)


def test_networks_without_a_sequence_need_names():
    match = "`layer` must be a name where the network has no single sequence of layers, such as conv, norm, .*got 2"
    with pytest.raises(ValueError, match=match):
        extractor(network(), 2).vectors(TensorDataset(images()))


@pytest.mark.parametrize(
    ("written", "wanted"), [("9", 9), ("-1", -1), ("'9'", "9"), ("model.9", "model.9"), ("avgpool", "avgpool")]
)
def test_configurations_tell_numbers_from_texts(tmp_path, written, wanted):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(SemanticSelector, "selector")
    features = f"{{class_path: toolkit.FeatureExtractor, init_args: {{layer: {written}}}}}"
    (tmp_path / "config.yaml").write_text(f"selector: {{keep_fraction: 0.5, features: {features}}}")
    config = parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])
    assert config.selector.features.init_args.layer == wanted
    again = parser.parse_string(parser.dump(config))
    assert again.selector.features.init_args.layer == wanted


def test_an_ambiguous_suffix_lists_the_layers():
    model = nn.ModuleDict({"a": network(), "b": network()})
    with pytest.raises(ValueError, match=r"one layer; these end in it: a.avgpool, b.avgpool, got 'avgpool'"):
        find_layer(model, "avgpool")


@pytest.mark.parametrize(
    ("options", "dataset", "error", "match"),
    [
        ({"pool": "max"}, None, ValueError, "`pool` must be one of 'mean', 'flatten', got 'max'"),
        ({"batch_size": 0}, None, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"model": None}, None, ValueError, "`model` must be a network, .* got None.*`baseline`"),
        ({"model": "resnet1"}, None, ValueError, "`model` must be the name of a torchvision or timm model.*resnet"),
        ({"checkpoint": "nowhere.pt"}, None, FileNotFoundError, "`checkpoint` must be an existing file"),
        ({}, [], ValueError, "`dataset` must be a data set with at least one image"),
        (
            {},
            [torch.rand(3, 4, 4), torch.rand(3, 4, 5)],
            ValueError,
            r"Images must have one size to form a batch, got \(3, 4, 4\), \(3, 4, 5\). Resize",
        ),
        ({}, [Image.new("RGB", (4, 4))], TypeError, "Images must be tensors, got PIL images. Add a transform"),
        ({}, ["text"], TypeError, "Images must arrive as a tensor"),
        (
            {},
            torch.cat([images(9), torch.full((2, 3, 8, 8), torch.nan)]),
            ValueError,
            "`features` must be finite, got NaN or infinite values in 2 of 11 rows, the first at index 9",
        ),
    ],
)
def test_errors(options, dataset, error, match):
    data = TensorDataset(images()) if dataset is None else dataset
    with pytest.raises(error, match=match):
        extractor(options.pop("model", network()), **options).vectors(data)


def test_checkpoints_go_into_the_copy(tmp_path):
    model, other = network(), network()
    nn.init.constant_(other.conv.weight, 0.1)
    torch.save({"state_dict": {f"model.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "w.ckpt")
    fresh = extractor(model, checkpoint=tmp_path / "w.ckpt")
    np.testing.assert_array_equal(
        fresh.vectors(TensorDataset(images())), extractor(other).vectors(TensorDataset(images()))
    )
    assert not torch.equal(model.conv.weight, other.conv.weight)
    assert fresh.fingerprint() == extractor(other).fingerprint() != extractor(model).fingerprint()


def test_a_model_of_half_precision_is_run_in_float32():
    half = network().to(torch.bfloat16)
    vectors = extractor(half).vectors(TensorDataset(images()))
    assert half.conv.weight.dtype == torch.bfloat16
    np.testing.assert_allclose(vectors, expected(copy.deepcopy(half).float(), images()).mean((2, 3)), atol=1e-6)


def test_fingerprint_sees_layer_pooling_and_weights():
    prints = {
        extractor(network()).fingerprint(),
        extractor(network(), "drop").fingerprint(),
        extractor(network(), pool="flatten").fingerprint(),
    }
    assert len(prints) == 3
    assert extractor(network()).fingerprint() == extractor(network(), batch_size=3).fingerprint()


def test_random_augmentation_is_noticed():
    class Augmented(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return torch.rand(3, 8, 8), 0

    with pytest.warns(RandomAugmentationWarning, match=r"Give the data module a method `evaluation_dataset\(\)`"):
        extractor(network()).vectors(Augmented())


def test_cache_is_found_again_and_an_altered_file_is_not_used(tmp_path):
    data, options = TensorDataset(images()), {"cache": True, "cache_dir": tmp_path}
    first = extractor(network(), **options).vectors(data)
    model = network()
    model.fail = True  # It is not run again:
    np.testing.assert_array_equal(extractor(model, **options).vectors(data), first)
    file = next(tmp_path.rglob("features.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="were cut short or altered"):
        again = extractor(network(), **options).vectors(data)
    np.testing.assert_array_equal(again, first)
    file.write_bytes(content[:-9])
    with pytest.warns(UserWarning, match="were cut short or altered"):
        np.testing.assert_array_equal(extractor(network(), **options).vectors(data), first)


@pytest.mark.parametrize("content", ["[]", "null", "{}", ""])
def test_a_damaged_summary_of_features_is_not_used(tmp_path, content):
    options = {"cache": True, "cache_dir": tmp_path}
    first = extractor(network(), **options).vectors(TensorDataset(images()))
    next(tmp_path.rglob("features.json")).write_text(content)
    with pytest.warns(UserWarning, match="were cut short or altered"):
        np.testing.assert_array_equal(extractor(network(), **options).vectors(TensorDataset(images())), first)


def test_widths_that_differ_are_refused(tmp_path):
    def collate(samples):
        size = 8 if len(samples) == 7 else 10
        return torch.stack([nn.functional.interpolate(s[None], size=size)[0] for s in samples])

    view = EvaluationView(list(images()), collate_fn=collate)
    view.dataset = TensorDataset(images())
    view.collate_fn = lambda samples: collate([sample[0] for sample in samples])
    for cache in (False, True):
        with pytest.raises(ValueError, match="Features must have one length, got 320 and 500 numbers an image"):
            extractor(network(), "drop", pool="flatten", cache=cache, cache_dir=tmp_path).vectors(view)


def test_a_compiled_module_is_hooked_all_the_same():
    model = network()
    model.compile(backend="eager")
    wanted = extractor(network()).vectors(TensorDataset(images()))
    np.testing.assert_array_equal(extractor(model).vectors(TensorDataset(images())), wanted)


def test_a_collate_function_may_take_pil_images():
    def collate(samples):
        return torch.stack([torch.from_numpy(np.array(s)).permute(2, 0, 1) for s in samples])

    pictures = [Image.fromarray(np.full((6, 6, 3), i, np.uint8)) for i in range(9)]
    assert extractor(network()).vectors(EvaluationView(pictures, collate_fn=collate)).shape == (9, 5)


def test_large_results_stay_in_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.representations.feature_map.MEMORY_LIMIT", 100)
    vectors = extractor(network(), cache=True, cache_dir=tmp_path).vectors(TensorDataset(images()))
    assert isinstance(vectors, np.memmap)
    np.testing.assert_array_equal(vectors, extractor(network()).vectors(TensorDataset(images())))


class Interrupted(Dataset):
    """Stops reading once at an image."""

    def __init__(self, at):
        self.images, self.at, self.reads = images(), at, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.at:
            raise KeyboardInterrupt
        self.reads.append(index)
        return self.images[index], 0

    def fingerprint(self):
        return "the same"


def test_an_interrupted_extraction_goes_on_where_it_stopped(tmp_path):
    # The probe that looks for randomness reads images 0, 2, 5, 8, 10, 13, 16 and 19.
    stopped, options = Interrupted(at=18), {"cache": True, "cache_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        extractor(network(), **options).vectors(stopped)
    part = next(tmp_path.rglob("part-0-20.npy"))
    with part.open("ab") as file:
        file.write(b"torn")  # a row that was being written
    whole = Interrupted(at=None)
    vectors = extractor(network(), **options).vectors(whole)
    np.testing.assert_array_equal(vectors, extractor(network()).vectors(whole))
    first_run = whole.reads[: whole.reads.index(19) + 1]
    assert 1 not in first_run
    assert not part.exists()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [OSError("images/0009.jpg is cut short"), RuntimeError("images/0009.jpg is empty")])
def test_an_image_that_cannot_be_read_is_told_and_the_rest_kept(tmp_path, num_workers, error):
    # The probe that looks for randomness reads images 0, 2, 5, 8, 10, 13, 16 and 19.
    scenes = Scenes(20, size=8)
    view = EvaluationView(scenes, collate_fn=collate)
    options = {"layer": "drop", "batch_size": 3, "num_workers": num_workers, "cache": True, "cache_dir": tmp_path}
    scenes.broken, scenes.error = 9, error
    with pytest.raises(type(error), match="images/0009.jpg is") as caught:
        extractor(network(), **options).vectors(view)
    assert caught.value.__notes__ == [
        "This happened while the images of index 9 to 11 were read.",
        "The features of 9 images are kept, and used next time.",
    ]
    scenes.broken, scenes.reads = None, []
    vectors = extractor(network(), **options | {"num_workers": 0}).vectors(view)
    assert not {1, 3, 4, 6, 7} & set(scenes.reads), "images of the batches before are not read again"
    np.testing.assert_array_equal(vectors, extractor(network(), "drop").vectors(view))


def test_an_image_that_cannot_be_read_at_first_sight_is_told_at_once():
    scenes = Scenes(20, size=8)
    scenes.broken, scenes.error = 0, ValueError("images/0000.jpg has no pixels")
    with pytest.raises(ValueError, match="images/0000.jpg has no pixels"):
        extractor(network()).vectors(EvaluationView(scenes, collate_fn=collate))


def test_without_a_cache_nothing_is_said_to_be_kept():
    scenes = Scenes(20, size=8)
    scenes.broken = 18
    with pytest.raises(OSError, match="cannot be decoded") as caught:
        extractor(network()).vectors(EvaluationView(scenes, collate_fn=collate))
    assert caught.value.__notes__ == ["This happened while the images of index 14 to 19 were read."]


def test_labels_of_several_lengths_do_not_matter():
    scenes = Scenes()
    wanted = extractor(network()).vectors(TensorDataset(scenes.images))
    for dataset in ([scenes[i] for i in range(12)], [(scenes[i]["img"], scenes[i]) for i in range(12)]):
        np.testing.assert_array_equal(extractor(network()).vectors(dataset), wanted)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        extractor(network()).vectors(EvaluationView(dataset, collate_fn=lambda samples: torch.stack(
            [sample[1]["bboxes"] for sample in samples])))  # fmt: skip


def _hold(path, ready, release):
    import fcntl

    with Path(path).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ready.set()
        release.wait(60)


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path):
    data, options = Interrupted(at=18), {"cache": True, "cache_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        extractor(network(), **options).vectors(data)
    part = next(tmp_path.rglob("part-0-20.npy"))
    before = part.read_bytes()
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(part), ready, release))
    process.start()
    try:
        assert ready.wait(60)
        data.at = None
        vectors = extractor(network(), **options).vectors(data)
    finally:
        release.set()
        process.join()
    np.testing.assert_array_equal(vectors, extractor(network()).vectors(data))
    assert part.read_bytes() == before


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path, monkeypatch):
    from toolkit.representations import feature_map

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 2

        def write(self, data):
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    real_open = feature_map._open_exclusively
    monkeypatch.setattr(feature_map, "_open_exclusively", lambda path: Full(real_open(path)))
    monkeypatch.setattr(
        np.lib.format, "write_array_header_1_0", lambda f, h, w=np.lib.format.write_array_header_1_0: w(f.file, h)
    )
    with pytest.raises(OSError, match=r"could not be written to `cache_dir` .*No space left.*toolkit.cache --clear"):
        extractor(network(), cache=True, cache_dir=tmp_path).vectors(TensorDataset(images()))
    monkeypatch.undo()
    vectors = extractor(network(), cache=True, cache_dir=tmp_path).vectors(TensorDataset(images()))
    np.testing.assert_array_equal(vectors, extractor(network()).vectors(TensorDataset(images())))


def test_an_unwritable_cache_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    model = network()
    model.fail = True
    with pytest.raises(OSError, match="`cache_dir` must be a folder that can be written to"):
        extractor(model, cache=True, cache_dir=tmp_path / "file").vectors(TensorDataset(images()))


def test_named_models_bring_their_preprocessing(monkeypatch, tmp_path):
    model, transform = named_model("resnet18", pretrained=False)
    assert transform is None
    torch.save(model.state_dict(), tmp_path / "resnet18.pt")
    from torchvision.models import ResNet18_Weights

    # The weights that torchvision would download are a file here; everything else is the real path.
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: model.state_dict())
    for weights in ResNet18_Weights:
        monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: model.state_dict(), raising=False)
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: model.state_dict())
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)) for i in range(3)]
    named = extractor("resnet18").vectors([(picture, 0) for picture in pictures])
    batch = torch.stack([ResNet18_Weights.DEFAULT.transforms()(picture) for picture in pictures])
    by_hand = extractor(model).vectors(TensorDataset(batch))
    np.testing.assert_allclose(named, by_hand, atol=1e-5)
    as_uint8 = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    from_tensors = extractor("resnet18").vectors(TensorDataset(as_uint8))
    assert np.abs(from_tensors - by_hand).max() < 0.1, "antialiased resizing differs a little between PIL and tensors"


def test_a_view_brings_transform_collate_and_device():
    class Loaded(list):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

        def fingerprint(self):
            return "mine"

    def collate(samples):
        return {"stacked": torch.stack(samples)}

    def transform(batch, device):
        return (batch["stacked"].to(device) * 2, None)

    x = images()
    view = EvaluationView(
        Loaded(x), batch_transform=transform, collate_fn=collate, device=torch.device("cpu"), num_workers=0
    )
    np.testing.assert_allclose(
        extractor(network()).vectors(view), extractor(network()).vectors(TensorDataset(x * 2)), atol=1e-6
    )
    assert not view.is_random()
    assert view.fingerprint() != EvaluationView(Loaded(x), collate_fn=collate).fingerprint()


def test_progress_goes_to_stderr_with_a_rate(capsys):
    extractor(network(), progress=True).vectors(TensorDataset(images()))
    shown = capsys.readouterr()
    assert "img/s" in shown.err
    assert shown.out == ""


def test_no_warning_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(network()).vectors(TensorDataset(images()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_and_cpu_agree():
    cpu = extractor(network(), device="cpu").vectors(TensorDataset(images()))
    gpu = extractor(network(), device="cuda").vectors(TensorDataset(images()))
    np.testing.assert_allclose(cpu, gpu, atol=1e-4)


@pytest.mark.data
def test_features_of_cifar10_are_the_stored_ones(cifar_root, data_folder):
    from toolkit.datamodules import CIFAR10DataModule, PrunedDataModule
    from toolkit.models import resnet32

    datamodule = PrunedDataModule(CIFAR10DataModule(str(cifar_root), download=False), None)
    with pytest.warns(UserWarning, match="checksums"):
        datamodule.setup("fit")
    view = datamodule._view(datamodule.datamodule.train_dataloader())
    view.dataset = torch.utils.data.Subset(view.dataset, range(500))
    features = FeatureExtractor(
        resnet32(), checkpoint=data_folder / "weights" / "resnet32_cifar10.pt", cache=False, progress=False
    ).vectors(view)
    stored = np.load(data_folder / "features" / "resnet32_cifar10_train.npz")["features"][:500]
    assert np.abs(features - stored.astype(np.float32)).max() < 2e-3 * np.abs(features).max()


def test_summary_file_holds_the_checksum(tmp_path):
    vectors = extractor(network(), cache=True, cache_dir=tmp_path).vectors(TensorDataset(images()))
    written = json.loads(next(tmp_path.rglob("features.json")).read_text())
    from toolkit.fingerprint import content_hash

    assert written == {"rows": 20, "sha256": content_hash(vectors)}
