"""Batched augmentation against one image at a time, and the data set that is fetched in batches."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset
from torchvision.transforms import v2

from toolkit.datamodules.images import (
    ImageDataModule,
    ImageTensorDataModule,
    ImageTensorDataset,
    Samples,
    collate_samples,
    crop_and_flip,
    stratified_split,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no validation images
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def random_images(count: int = 12, channels: int = 3, height: int = 8, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def random_data(count: int = 12) -> ImageTensorDataset:
    return ImageTensorDataset(random_images(count), torch.arange(count) % 3, ["a", "b", "c"])


class TinyDataModule(ImageTensorDataModule):
    def __init__(self, augment=True, val_size=0, padding=2, flip=True, batch_size=4, num_workers=0):
        super().__init__(
            batch_size, val_size, num_workers, None, augment, padding, flip, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 0
        )
        self.loads = []

    def _load(self, train):
        self.loads.append(train)
        return random_data(12 if train else 6)


# --- augmentation ---------------------------------------------------------------------------------------------------


def crop_and_flip_one_by_one(images, offsets, flips, padding):
    out = np.zeros_like(images.numpy())
    count, _, height, width = images.shape
    for n in range(count):
        for row in range(height):
            for column in range(width):
                source_row = row + int(offsets[n, 0]) - padding
                source_column = column + int(offsets[n, 1]) - padding
                target = width - 1 - column if flips is not None and flips[n] else column
                if 0 <= source_row < height and 0 <= source_column < width:
                    out[n, :, row, target] = images[n, :, source_row, source_column]
    return torch.from_numpy(out)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_equals_one_image_at_a_time(padding, flipped, dtype):
    images = random_images().to(dtype)
    before = images.clone()
    generator = torch.Generator().manual_seed(padding)
    offsets = torch.randint(2 * padding + 1, (12, 2), generator=generator)
    flips = torch.rand(12, generator=generator) < 0.5 if flipped else None
    out = crop_and_flip(images, offsets, flips, padding)
    assert out.dtype == dtype
    assert torch.equal(out, crop_and_flip_one_by_one(images, offsets, flips, padding))
    assert torch.equal(images, before)


def test_crop_in_the_middle_is_the_identity():
    images = random_images()
    out = crop_and_flip(images, torch.full((12, 2), 4), torch.zeros(12, dtype=torch.bool), 4)
    assert torch.equal(out, images)


def test_every_offset_and_both_sides_occur_equally_often():
    data = TinyDataModule(padding=1)
    image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    image[0, :, 2, 1] = 255  # off the middle, so that a mirror image shows
    torch.manual_seed(0)
    out = data.training_transform(image.expand(18_000, 3, 5, 5))[:, 0]
    places = [tuple(place) for place in out.nonzero()[:, 1:].tolist()]
    counts = {place: places.count(place) / 18_000 for place in set(places)}
    # Columns 0 to 2 plain, 2 to 4 mirrored: the two share column 2.
    assert set(counts) == {(row, column) for row in (1, 2, 3) for column in range(5)}
    for (_, column), share in counts.items():
        assert share == pytest.approx(2 / 18 if column == 2 else 1 / 18, rel=0.15)


def test_random_numbers_come_from_torch():
    data, images = TinyDataModule(), random_images()
    torch.manual_seed(1)
    first = data.training_transform(images)
    assert not torch.equal(data.training_transform(images), first)
    torch.manual_seed(1)
    assert torch.equal(data.training_transform(images), first)


def test_no_augmentation_if_it_is_off():
    images = random_images()
    assert torch.equal(TinyDataModule(augment=False).training_transform(images), images)


# --- normalisation and the hook -------------------------------------------------------------------------------------


def normalised(images):
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))])
    return to_float(images)


def test_evaluation_transform_equals_torchvision_and_takes_single_images():
    data, images = TinyDataModule(), random_images()
    torch.testing.assert_close(data.evaluation_transform(images), normalised(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(data.evaluation_transform(images[0]), normalised(images[0]), rtol=1e-5, atol=1e-5)
    ready = normalised(images)
    assert data.evaluation_transform(ready) is ready


def test_constants_made_in_inference_mode_serve_outside_it():
    data = TinyDataModule()
    scale, shift = data._constants.pop(torch.device("cpu"))
    data._constants = {torch.device("cpu"): (scale, shift)}
    with torch.inference_mode():
        data.evaluation_transform(random_images())
    assert not any(tensor.is_inference() for pair in data._constants.values() for tensor in pair)


class Recorder(L.LightningModule):
    """Keeps the images that each stage gets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0])
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0])

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0])

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **options})


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_images_are_augmented_while_training_and_only_then(num_workers):
    data, model = TinyDataModule(val_size=3, num_workers=num_workers), Recorder()
    run = trainer()
    run.fit(model, datamodule=data)  # with a sanity check before and a validation during the training
    run.test(model, datamodule=data, verbose=False)
    for stage, dataset in (("val", data.val_dataset), ("test", data.test_dataset)):
        expected = data.evaluation_transform(dataset.images)
        for start in range(0, len(torch.cat(model.seen[stage])), len(expected)):
            assert torch.equal(torch.cat(model.seen[stage])[start : start + len(expected)], expected)
    assert len(model.seen["val"]) == 2
    plain = data.evaluation_transform(data.train_dataset.images)
    trained = torch.cat(model.seen["train"])
    assert trained.shape == plain.shape
    assert not any((image == plain).flatten(1).all(1).any() for image in trained[:4])


def test_without_validation_images_there_is_no_validation():
    data, model = TinyDataModule(), Recorder()
    assert data.val_dataloader() == []
    trainer().fit(model, datamodule=data)
    assert not model.seen["val"]
    assert len(torch.cat(model.seen["train"])) == 12  # three batches of 4, nothing dropped


def test_images_get_the_type_of_a_trainer_in_half_precision():
    data, model = TinyDataModule(), Recorder()
    trainer(precision="bf16-true").fit(model, datamodule=data)
    assert {images.dtype for images in model.seen["train"]} == {torch.bfloat16}
    data, model = TinyDataModule(), Recorder()
    trainer(precision="bf16-mixed").fit(model, datamodule=data)
    assert {images.dtype for images in model.seen["train"]} == {torch.float32}


def test_hook_without_a_trainer_only_normalises():
    data, images = TinyDataModule(), random_images()
    assert data.trainer is None
    assert torch.equal(data.on_after_batch_transfer(images, 0), data.evaluation_transform(images))


@pytest.mark.parametrize("kind", [tuple, list])
def test_hook_keeps_the_other_parts_of_a_batch(kind):
    data, images = TinyDataModule(), random_images()
    data.trainer = SimpleNamespace(training=False, precision_plugin=SimpleNamespace(convert_input=lambda x: x))
    batch = data.on_after_batch_transfer(kind((images, torch.arange(12), "more")), 0)
    assert type(batch) is kind
    assert torch.equal(batch[0], data.evaluation_transform(images))
    assert torch.equal(batch[1], torch.arange(12))
    assert batch[2] == "more"


@pytest.mark.parametrize("batch", [{"image": random_images()}, [], "text", (random_images().float(), torch.arange(12))])
def test_hook_leaves_other_batches_alone(batch):
    data = TinyDataModule()
    data.trainer = SimpleNamespace(training=True, precision_plugin=SimpleNamespace(convert_input=lambda x: x))
    out = data.on_after_batch_transfer(batch, 0)
    if isinstance(batch, tuple):
        assert all(map(torch.equal, out, batch))
    else:
        assert out is batch


# --- the data set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collate", [collate_samples, None])
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_the_same_however_they_are_put_together(collate, num_workers):
    data = random_data()
    order = [5, 3, 11, 0, 7]
    loader = DataLoader(Subset(data, order), batch_size=2, collate_fn=collate, num_workers=num_workers)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, data.images[order])
    assert torch.equal(labels, data.labels[order])
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_collate_takes_samples_fetched_one_by_one():
    data = random_data()
    images, labels = next(iter(DataLoader(ConcatDataset([data, data]), batch_size=24, collate_fn=collate_samples)))
    assert torch.equal(images, data.images.repeat(2, 1, 1, 1))
    assert torch.equal(labels, data.labels.repeat(2))
    assert pickle.loads(pickle.dumps(collate_samples)) is collate_samples


def test_samples_are_a_sequence_of_pairs():
    data = random_data()
    samples = data.__getitems__([4, 2])
    assert len(samples) == 2
    assert torch.equal(samples[1][0], data[2][0])
    assert [label for _, label in samples] == [data[4][1], data[2][1]] == [1, 2]
    assert isinstance(samples[1:], Samples)
    numbered = StackDataset(data, list(range(12)))
    (_, labels), numbers = next(iter(DataLoader(numbered, batch_size=12)))
    assert torch.equal(labels, data.labels)
    assert numbers.tolist() == list(range(12))


def test_fingerprint_follows_the_content():
    data = random_data()
    assert data.fingerprint() == random_data().fingerprint()
    pixel = random_images()
    pixel[3, 0, 0, 0] ^= 1
    others = [
        ImageTensorDataset(pixel, data.labels),
        ImageTensorDataset(data.images, data.labels.flip(0)),
        ImageTensorDataset(data.images.transpose(2, 3), data.labels),
        data.take(torch.arange(11)),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_take_keeps_order_and_classes():
    part = random_data().take(torch.tensor([5, 1]))
    assert part.classes == ["a", "b", "c"]
    assert torch.equal(part.images, random_images()[[5, 1]])
    assert part.targets.tolist() == [2, 1]


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20, 0.2])
def test_split_keeps_the_proportions_of_the_classes(size):
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ]
    stay, off = stratified_split(labels, size, seed=3)
    assert torch.bincount(labels[off]).tolist() == [10, 6, 4]
    assert torch.equal(torch.cat([stay, off]).sort().values, torch.arange(100))
    assert torch.equal(stay, stay.sort().values)
    again, other = stratified_split(labels, size, seed=3)[1], stratified_split(labels, size, seed=4)[1]
    assert torch.equal(off, again)
    assert not torch.equal(off, other)


def test_evaluation_dataset_is_the_training_set_in_its_order():
    data = TinyDataModule(val_size=3)
    evaluation = data.evaluation_dataset()
    assert evaluation is data.train_dataset
    assert torch.equal(evaluation.images, random_images()[data.train_indices])
    assert torch.equal(data.train_indices, data.train_indices.sort().values)
    assert len(evaluation) == 9
    assert data.class_names == ["a", "b", "c"]


def test_setup_loads_each_part_once_and_what_the_stage_needs():
    data = TinyDataModule()
    data.setup("test")
    assert data.loads == [False]
    data.setup("fit")
    train = data.train_dataset
    for stage in ("fit", "validate", "test", None):
        data.setup(stage)
    assert data.loads == [False, True]
    assert data.train_dataset is train


# --- errors ---------------------------------------------------------------------------------------------------------

labels = torch.arange(12) % 3


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: ImageTensorDataset(random_images().float(), labels),
            TypeError,
            "`images` must be uint8, got torch.float",
        ),
        (
            lambda: ImageTensorDataset(random_images()[0], labels),
            ValueError,
            r"`images` must be of shape \(N, channels",
        ),
        (
            lambda: ImageTensorDataset(random_images(), labels.float()),
            TypeError,
            "`labels` must be integers, got torch.f",
        ),
        (
            lambda: ImageTensorDataset(random_images(), labels[1:]),
            ValueError,
            r"`labels` must be of shape \(12,\), one",
        ),
        (lambda: TinyDataModule(batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
        (lambda: TinyDataModule(num_workers=-1), ValueError, "`num_workers` must be at least 0, got -1"),
        (lambda: TinyDataModule(val_size=-1), ValueError, "`val_size` must be a number of images .* got -1"),
        (lambda: TinyDataModule(val_size=1.0), ValueError, r"`val_size` must be .* a fraction in \(0, 1\), got 1.0"),
        (lambda: TinyDataModule(val_size=True), TypeError, "`val_size` must be .*, got True"),
        (lambda: TinyDataModule(val_size="3"), TypeError, "`val_size` must be .*, got '3'"),
        (
            lambda: TinyDataModule(val_size=2).setup(),
            ValueError,
            "`val_size` must be from 3 to 9 of the 12 images, .* 2",
        ),
        (lambda: TinyDataModule(val_size=0.9).setup(), ValueError, "`val_size` must be from 3 to 9 of the 12 images"),
        (lambda: ImageDataModule(1, 0, None, (0.5,), (0.5, 0.5)), ValueError, "`std` must be as long as `mean`"),
        (lambda: ImageDataModule(1, 0, None, (0.5,), (0.0,)), ValueError, "`std` must be above 0 in each channel"),
        (
            lambda: ImageDataModule(1, 0, None, (0.5,), (0.5,)).evaluation_transform(random_images()),
            ValueError,
            r"`mean` must be of 3 channels as the images, got \(0.5,\)",
        ),
        (
            lambda: stratified_split(torch.tensor([0, 0, 0, 1]), 2, 0),
            ValueError,
            "`val_size` must be 0 where a class has a single image, got 2",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
