"""Drawn street scenes: boxes that fit, the same bytes again, planted images that are found, and folders left alone."""

import copy
import dataclasses
import json
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from PIL import Image, ImageDraw

from toolkit import WaveletScattering, WaveletSelector
from toolkit.detection import draw_scene, read_data_yaml, read_planted, read_split, scene_drawing, street_scenes
from toolkit.detection.street_scenes import SIGN_NAMES, write_street_scenes

SMALL = {"n_train": 14, "n_val": 3, "n_duplicates": 4, "n_outliers": 3, "size": (60, 80)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_street_scenes(tmp_path_factory.mktemp("made") / "scenes", **SMALL).parent


@pytest.fixture(scope="module")
def many():
    """The boxes of many scenes."""
    return [draw_scene(seed, (60, 80))[1] for seed in range(400)]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(folder, name):
    return np.asarray(Image.open(folder / name), np.float64)


def test_a_seed_draws_one_scene():
    picture, boxes = draw_scene(2)
    assert (picture.size, picture.mode, boxes.dtype) == ((320, 240), "RGB", np.float32)
    again, same = draw_scene(np.random.default_rng(2))
    assert picture.tobytes() == again.tobytes()
    assert np.array_equal(boxes, same)
    assert [SIGN_NAMES[int(row[0])] for row in boxes] == ["speed limit", "yield", "speed limit"]
    assert picture.tobytes() != draw_scene(3)[0].tobytes()


def test_a_scene_has_the_same_signs_at_any_size():
    assert np.abs(draw_scene(2, (480, 640))[1] - draw_scene(2, (120, 160))[1]).max() < 1e-3


def test_boxes_are_as_large_as_what_is_drawn(monkeypatch):
    draw_sign, drawn = scene_drawing._draw_sign, []

    def draw_alone_too(canvas, *args):
        image = Image.new("RGB", (canvas.camera.width, canvas.camera.height))
        draw_sign(dataclasses.replace(canvas, draw=ImageDraw.Draw(image), rng=copy.deepcopy(canvas.rng)), *args)
        drawn.append(image.getbbox())
        return draw_sign(canvas, *args)

    monkeypatch.setattr(scene_drawing, "_draw_sign", draw_alone_too)
    boxes = np.concatenate([draw_scene(seed)[1] for seed in range(30, 60)])
    assert set(boxes[:, 0]) == set(range(len(SIGN_NAMES)))
    corners = np.concatenate([boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2], axis=1)
    # In pixels of the drawing, which is twice as large.
    assert np.abs(corners * [640, 480, 640, 480] - np.asarray(drawn)).max() < 1.6


def test_signs_lie_inside_and_apart(many):
    for boxes in many:
        low, high = boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2
        assert (low >= 0).all()
        assert (high <= 1).all()
        for first in range(len(boxes)):
            for second in range(first):
                assert (low[first] > high[second]).any() or (low[second] > high[first]).any()


def test_some_scenes_are_empty_and_one_class_is_rare(many):
    counts = np.bincount([len(boxes) for boxes in many])
    assert len(counts) == 5
    assert 0.1 < counts[0] / len(many) < 0.25
    shares = np.bincount(np.concatenate(many)[:, 0].astype(int)) / counts.dot(range(5))
    assert len(shares) == len(SIGN_NAMES)
    assert 0.005 < shares[-1] < 0.06
    assert shares[:-1].min() > 2 * shares[-1]


def test_a_folder_is_a_data_set_in_the_format_of_yolo(folder):
    data = read_data_yaml(folder / "data.yaml")
    assert data.names == SIGN_NAMES
    train, val = (read_split(data, split) for split in ("train", "val"))
    assert (len(train), len(val), train.n_without_file) == (14, 3, 0)
    assert np.unique(train.sizes, axis=0).tolist() == [[60, 80]]
    assert train.files[0] == folder / "images/train/00000.jpg"
    _, boxes = draw_scene(np.random.default_rng([0, 1, 2]), (60, 80))
    assert np.allclose(val.boxes[2], boxes, atol=1e-6)


def test_duplicates_are_near_their_originals_with_their_boxes(folder):
    planted = read_planted(folder)
    train = read_split(read_data_yaml(folder / "data.yaml"), "train")
    boxes = {path.relative_to(folder).as_posix(): rows for path, rows in zip(train.files, train.boxes, strict=True)}
    assert len(planted.duplicates) == len(set(planted.duplicates.values())) == 4
    assert not set(planted.duplicates) & set(planted.duplicates.values())
    assert not set(planted.outliers) & {*planted.duplicates, *planted.duplicates.values()}
    for copied, original in planted.duplicates.items():
        near = np.abs(pixels(folder, copied) - pixels(folder, original)).mean()
        far = min(
            np.abs(pixels(folder, copied) - pixels(folder, name)).mean()
            for name in boxes
            if name not in {copied, original}
        )
        assert 0.5 < near < far
        assert boxes[copied][:, 0].tolist() == boxes[original][:, 0].tolist()
        moved = (boxes[copied] - boxes[original])[:, 1:3] * [80, 60]
        assert np.abs(moved).max(initial=0) < 2.01


def test_outliers_have_no_boxes(folder):
    names = read_planted(folder).outliers
    assert len(names) == 3
    for name in names:
        assert (folder / name.replace("images", "labels")).with_suffix(".txt").read_text() == ""


def test_the_same_settings_write_the_same_bytes(folder, tmp_path):
    assert contents(write_street_scenes(tmp_path / "again", **SMALL).parent) == contents(folder)
    other = contents(write_street_scenes(tmp_path / "other", **{**SMALL, "seed": 1}).parent)
    assert not set(other.values()) & {data for name, data in contents(folder).items() if name.endswith(".jpg")}


def test_validation_images_do_not_depend_on_the_number_of_training_images(folder, tmp_path):
    more = write_street_scenes(tmp_path / "more", **{**SMALL, "n_train": 17}).parent
    assert [pixels(more, f"images/val/0000{i}.jpg").tobytes() for i in range(3)] == [
        pixels(folder, f"images/val/0000{i}.jpg").tobytes() for i in range(3)
    ]


def test_wavelets_remove_the_planted_duplicates_first(tmp_path):
    folder = write_street_scenes(tmp_path / "scenes", 80, 1, 10, 4, (120, 160)).parent
    files = sorted(folder.glob("images/train/*.jpg"))
    images = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    features = WaveletScattering(levels=3, resize=(48, 64), progress=False)
    selection = WaveletSelector(keep_fraction=1 - 10 / 80, features=features, progress=False).select(images)
    removed = {files[i].relative_to(folder).as_posix() for i in set(range(80)) - set(selection.kept.tolist())}
    pairs = [{copied, original} for copied, original in read_planted(folder).duplicates.items()]
    # Which of the two goes is a matter of the groups' centres.
    assert [len(removed & pair) for pair in pairs] == [1] * 10


def test_a_folder_is_written_once(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (folder / "labels" / "train.cache").write_bytes(b"of ultralytics")
    assert write_street_scenes(folder, **SMALL) == folder / "data.yaml"
    (folder / "labels" / "train.cache").unlink()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())


def test_an_empty_folder_is_filled(tmp_path, folder):
    (tmp_path / "scenes").mkdir()
    assert contents(write_street_scenes(tmp_path / "scenes", **SMALL).parent) == contents(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda folder: None, r"`folder` must be new, empty, or written with the same settings, got .*\{'seed': 0\}"),
        (lambda folder: (folder / "planted.json").unlink(), "which holds other files"),
        (lambda folder: (folder / "planted.json").write_text("[]"), "which holds other files"),
        (lambda folder: (folder / "images/train/00003.jpg").unlink(), "which lacks images/train/00003.jpg"),
        (lambda folder: (folder / "data.yaml").unlink(), "which lacks data.yaml"),
        (lambda folder: (folder / "images/val/mine.png").write_bytes(b""), "which also holds images/val/mine.png"),
    ],
)
def test_a_folder_with_anything_else_is_left_alone(tmp_path, folder, change, match):
    other = tmp_path / "scenes"
    for name, data in contents(folder).items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(data)
    change(other)
    before = contents(other)
    settings = {**SMALL, "seed": 1} if "seed" in match else SMALL
    with pytest.raises(ValueError, match=match):
        write_street_scenes(other, **settings)
    assert contents(other) == before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "scenes").write_text("mine")
    with pytest.raises(ValueError, match="which is a file"):
        write_street_scenes(tmp_path / "scenes", **SMALL)
    assert (tmp_path / "scenes").read_text() == "mine"


def test_what_stops_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder, split, index, *args):
        if index == 2:
            raise OSError("no space left")

    monkeypatch.setattr(street_scenes, "_save", fail)
    with pytest.raises(OSError, match="no space left"):
        write_street_scenes(tmp_path / "scenes", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_several_may_write_at_the_same_time(tmp_path, folder):
    with ThreadPool(4) as pool:
        written = pool.map(lambda _: write_street_scenes(tmp_path / "scenes", **SMALL), range(4))
    assert written == [tmp_path / "scenes" / "data.yaml"] * 4
    assert contents(tmp_path / "scenes") == contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_another_process_that_was_first_with_other_settings_wins(tmp_path, monkeypatch):
    write = street_scenes._write

    def write_late(folder, settings):
        write(folder, settings)
        write(tmp_path / "scenes", {**settings, "seed": 5})

    monkeypatch.setattr(street_scenes, "_write", write_late)
    with pytest.raises(ValueError, match=r"written with \{'seed': 5\}"):
        write_street_scenes(tmp_path / "scenes", **SMALL)
    assert json.loads((tmp_path / "scenes" / "planted.json").read_text())["settings"]["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_val": 0}, ValueError, "`n_val` must be at least 1, got 0"),
        ({"n_outliers": -1}, ValueError, "`n_outliers` must be at least 0, got -1"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"n_train": 10.0}, TypeError, "`n_train` must be a whole number, got 10.0"),
        ({"n_train": 10}, ValueError, "`n_train` must be at least 11, so that each copy has an original, got 10"),
        ({"size": (47, 80)}, ValueError, r"`size` must be at least 48 pixels high and wide, got \(47, 80\)"),
        ({"size": 64}, ValueError, "`size` must be the height and width of the pictures, got 64"),
    ],
)
def test_errors(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        write_street_scenes(tmp_path / "scenes", **{**SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_has_nothing_planted(tmp_path):
    with pytest.raises(FileNotFoundError, match="`folder` must have been written by `write_street_scenes`, got"):
        read_planted(tmp_path)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`folder` must be a folder that can be written to, got"):
        write_street_scenes(tmp_path / "file" / "scenes", **SMALL)
