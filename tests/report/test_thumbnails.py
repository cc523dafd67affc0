import io

import numpy as np
import pytest
import torch
from drawn_scenes import DrawnScenes
from PIL import Image

from toolkit.plotting import displayable
from toolkit.report import thumbnails
from toolkit.report.thumbnails import make_sheets, shrunk, side_for


def sheet_images(sheets):
    """The thumbnails cut out of their sheets, None for those that could not be read."""
    images = []
    decoded = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in sheets.contents]
    for place, (width, height) in enumerate(sheets.sizes.tolist()):
        sheet = decoded[place // sheets.per_sheet]
        within = place % sheets.per_sheet
        top, left = within // sheets.columns * sheets.side, within % sheets.columns * sheets.side
        images.append(sheet[top : top + height, left : left + width] if width else None)
    return images


def made(dataset, order=None, most_bytes=10_000_000):
    order = np.arange(len(dataset)) if order is None else np.array(order)
    return make_sheets(dataset, order, most_bytes, progress=False)


def test_lossless_thumbnails_are_the_images_in_the_given_order():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2100, 6, 5, 3), dtype=np.uint8)
    order = rng.permutation(2100)[:2050]
    sheets = made([Image.fromarray(image) for image in images], order)
    assert (len(sheets.contents), sheets.side, sheets.quality, sheets.n_unreadable) == (3, 6, None, 0)
    assert sheets.sizes.tolist() == [[5, 6]] * 2050
    for found, index in zip(sheet_images(sheets), order, strict=True):
        assert np.array_equal(found, images[index])


@pytest.mark.parametrize("kind", ["grey", "normalised", "channels last", "tuple", "dictionary", "detection", "boolean"])
def test_every_kind_of_image_that_can_be_shown(kind):
    generator = torch.Generator().manual_seed(0)
    colour = torch.rand(4, 3, 8, 8, generator=generator)
    dataset = {
        "grey": colour[:, :1],
        "normalised": colour * 4 - 2,
        "channels last": (colour.permute(0, 2, 3, 1) * 255).round().byte().numpy(),
        "tuple": [(image, 1) for image in colour],
        "dictionary": [{"image": image} for image in colour],
        "detection": [{"img": image, "bboxes": torch.zeros(0, 4), "cls": torch.zeros(0, 1)} for image in colour],
        "boolean": (colour > 0.5).numpy(),
    }[kind]
    for found, sample in zip(sheet_images(made(dataset)), dataset, strict=True):
        wanted = np.rint(displayable(sample) * 255).astype(np.uint8)
        assert np.array_equal(found, np.broadcast_to(wanted[..., None] if wanted.ndim == 2 else wanted, (8, 8, 3)))


def test_values_that_are_no_numbers_are_shown_black():
    image = torch.full((1, 4, 4), 0.5)
    image[0, 0, 0] = torch.nan
    (found,) = sheet_images(made([image]))
    assert found.shape == (4, 4, 3)
    assert found[0, 0].tolist() == [0, 0, 0]


def test_images_of_different_sizes_keep_their_shapes():
    sizes = [(300, 200), (40, 40), (10, 90), (2000, 1), (64, 64)]
    sheets = made([Image.new("RGB", size, (200, 30, 60)) for size in sizes])
    assert sheets.side == 64
    assert sheets.sizes.tolist() == [[64, 43], [40, 40], [7, 64], [64, 1], [64, 64]]
    for found in sheet_images(sheets):
        assert np.abs(found.astype(int) - (200, 30, 60)).max() <= 1


def test_shrinking_averages():
    image = np.zeros((64, 64), np.uint8)
    image[:, ::2] = 200
    small = shrunk(image, 16)
    assert small.shape == (16, 16)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 100).max() <= 4
    assert shrunk(image, 64) is image


@pytest.mark.parametrize(
    ("count", "side"), [(1, 64), (12_500, 64), (12_501, 48), (22_223, 32), (50_001, 24), (88_889, 16), (200_000, 16)]
)
def test_more_images_have_smaller_thumbnails(count, side):
    assert side_for(count) == side


@pytest.mark.parametrize(
    ("count", "side"),
    [(1, 256), (781, 256), (782, 192), (1389, 128), (3126, 96), (5556, 64), (12_501, 48), (200_000, 16)],
)
def test_scenes_have_larger_ones_where_these_fit(count, side):
    assert side_for(count, scenes=True) == side


def test_boxes_come_beside_the_thumbnails_and_not_on_them():
    scenes = DrawnScenes(10, shape=(30, 64))
    order = np.array([7, 0, 3, 2])
    sheets = made(scenes, order)
    assert (sheets.side, sheets.quality) == (64, None)
    for found, index in zip(sheet_images(sheets), order, strict=True):
        assert np.array_equal(found, scenes.images[index])
    boxes = sheets.boxes
    assert boxes.counts.tolist() == [len(scenes.targets[index]) for index in order]
    assert boxes.classes.tolist() == [name for index in order for name in scenes.targets[index]]
    every = np.concatenate([np.reshape(scenes.boxes[index], (-1, 4)) for index in order])
    corners = np.concatenate([every[:, :2] - every[:, 2:] / 2, every[:, :2] + every[:, 2:] / 2], axis=1)
    assert np.abs(boxes.corners / 255 - corners).max() <= 0.5 / 255 + 1e-6
    assert made([Image.new("RGB", (9, 9))]).boxes is None


def test_scenes_are_large_on_sheets_that_are_not():
    scenes = DrawnScenes(70, shape=(250, 300))
    sheets = made(scenes)
    assert (sheets.side, sheets.columns, sheets.per_sheet, sheets.quality) == (256, 8, 64, 90)
    assert sheets.sizes.tolist() == [[256, 213]] * 70
    assert max(max(Image.open(io.BytesIO(content)).size) for content in sheets.contents) == 2048
    found = np.stack(sheet_images(sheets)).astype(int)
    wanted = np.stack([shrunk(image, 256) for image in scenes.images])
    assert np.abs(found - wanted).mean() < 10


def test_boxes_take_room_from_the_thumbnails(monkeypatch):
    scenes = DrawnScenes(40, shape=(40, 40))
    size = sum(map(len, made(scenes).contents))
    assert made(scenes, most_bytes=size).quality == 90
    assert made(scenes, most_bytes=size + 5 * sum(map(len, scenes.targets))).quality is None
    monkeypatch.setattr(thumbnails, "MOST_BOXES", 0)
    assert made(scenes, most_bytes=size).quality is None


def test_too_many_images_for_any_size():
    with pytest.raises(ValueError, match="`max_images` must be at most 200000, got 200001"):
        side_for(200_001)


def test_quality_falls_until_the_bytes_are_enough():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (1100, 16, 16, 3), dtype=np.uint8)
    assert made(images[:1024], most_bytes=10**9).quality is None
    sizes = {}
    for most in (500_000, 200_000):
        sheets = made(images, most_bytes=most)
        sizes[most] = sum(map(len, sheets.contents))
        assert sizes[most] <= most
        assert len(sheets.contents) == 2
        found = np.stack(sheet_images(sheets))
        assert np.corrcoef(found[:1024].mean(axis=(1, 2, 3)), images[:1024].mean(axis=(1, 2, 3)))[0, 1] > 0.8
    assert made(images, most_bytes=200_000).quality < made(images, most_bytes=500_000).quality
    assert made(images, most_bytes=10).quality == 10


class Reluctant:
    """Images some of which cannot be read; counts how often each is asked for, and draws random numbers."""

    def __init__(self):
        self.asked = [0] * 9

    def __len__(self):
        return 9

    def __getitem__(self, index):
        self.asked[index] += 1
        torch.rand(1)
        if index == 2:
            raise OSError("cut short")
        if index == 5:
            return "no image", 1
        return torch.full((3, 4, 4), index / 10), 1


def test_what_cannot_be_read_is_counted_and_the_rest_read_once(rng_unchanged):
    dataset = Reluctant()
    with pytest.warns(UserWarning, match=r"2 of 9 images have no thumbnail, .* index 2: OSError\('cut short'\)"):
        sheets = made(dataset)
    assert dataset.asked == [1] * 9
    assert sheets.n_unreadable == 2
    for index, found in enumerate(sheet_images(sheets)):
        if index in {2, 5}:
            assert found is None
        else:
            assert (found == round(index * 25.5)).all()


def test_no_image_at_all_makes_empty_sheets():
    with pytest.warns(
        UserWarning, match="3 of 3 images have no thumbnail, the first of them: index 0: the sample is no"
    ):
        sheets = made(["a", "b", "c"])
    assert (sheets.n_unreadable, len(sheets.contents)) == (3, 1)


def test_the_same_images_make_the_same_sheets(digits):
    assert made(digits).contents == made(digits).contents
