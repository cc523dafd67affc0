"""Reading detection data sets in YOLO's format: what is found, and what is told of broken files."""

import numpy as np
import pytest
from PIL import Image

from toolkit.detection import read_data_yaml, read_split
from toolkit.detection.yolo_format import label_file_of, read_label_file


@pytest.fixture
def folder(tmp_path):
    """Three images in images/train, one with two boxes, one with an empty file, one without a file."""
    for part in ("images/train", "labels/train", "images/val"):
        (tmp_path / part).mkdir(parents=True)
    for name, size in (("c.png", (40, 30)), ("a.jpg", (64, 48)), ("b.png", (20, 50))):
        Image.new("RGB", size, (90, 120, 30)).save(tmp_path / "images/train" / name)
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.1 0.1\n")
    (tmp_path / "labels/train/b.txt").write_text("")
    Image.new("RGB", (32, 32)).save(tmp_path / "images/val/v.png")
    write_yaml(tmp_path)
    return tmp_path


def write_yaml(folder, text="path: .\ntrain: images/train\nval: images/val\nnames: {0: car, 1: sign}\n"):
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def train(folder, **options):
    return read_split(read_data_yaml(folder / "data.yaml"), "train", **options)


def test_images_boxes_and_sizes_are_found_in_the_order_of_paths(folder):
    images = train(folder)
    assert [file.name for file in images.files] == ["a.jpg", "b.png", "c.png"]
    assert images.sizes.tolist() == [[48, 64], [50, 20], [30, 40]]
    np.testing.assert_allclose(images.boxes[0], [[1, 0.5, 0.5, 0.25, 0.5], [0, 0.1, 0.2, 0.1, 0.1]], rtol=1e-6)
    assert images.targets == [[1, 0], [], []]
    assert images.n_without_file == 1
    assert read_data_yaml(folder / "data.yaml").names == ("car", "sign")


def test_nothing_is_written_beside_the_files(folder):
    def seen():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = seen()
    train(folder)
    assert seen() == before


def test_a_list_of_files_and_a_list_of_folders(folder):
    listed = folder / "lists"
    listed.mkdir()
    (listed / "train.txt").write_text("images/train/c.png\n\nimages/train/a.jpg\n")
    (folder / "images" / "near.txt").write_text("./train/b.png\n")
    write_yaml(folder, "train: [lists/train.txt, images/near.txt, images/val]\nnames: [car, sign]\n")
    assert [file.name for file in train(folder).files] == ["a.jpg", "b.png", "c.png", "v.png"]


def test_path_is_relative_to_the_yaml_to_the_current_folder_or_absolute(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path, where in ((str(folder), elsewhere), (folder.name, elsewhere)):
        file = write_yaml(where, f"path: {path}\ntrain: images/train\nnames: [car, sign]\n")
        monkeypatch.chdir(folder.parent)
        assert read_data_yaml(file).root == folder.resolve()


def test_an_upright_image_counts(folder):
    image = Image.new("RGB", (60, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(folder / "images/train/t.jpg", exif=exif)
    images = train(folder)
    assert images.sizes[[file.name for file in images.files].index("t.jpg")].tolist() == [60, 20]


def test_polygons_become_boxes_and_repeated_rows_count_once(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0 0.2 0.2 0.6 0.4 0.4 0.8\n1 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    np.testing.assert_allclose(read_label_file(file, 2), [[0, 0.4, 0.5, 0.4, 0.6], [1, 0.5, 0.5, 0.1, 0.1]], rtol=1e-5)


def test_coordinates_may_leave_the_image_by_rounding(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0 1.0000001 -0.000001 0.1 0.1")
    assert read_label_file(file, 1).shape == (1, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1", r"a\.txt, line 2: must be 5 numbers \(class x y width height\), got 4"),
        ("0 0.5 0.5 0.1 0.1 0.2", r"line 1: must be 5 numbers .* got 6"),
        ("\n\n0 0.5 0.5 0.1 x", r"line 3: must be numbers, got '0 0\.5 0\.5 0\.1 x'"),
        ("2 0.5 0.5 0.1 0.1", r"line 1: class must be a whole number from 0 to 1, got 2"),
        ("-1 0.5 0.5 0.1 0.1", r"class must be a whole number from 0 to 1, got -1"),
        ("0.5 0.5 0.5 0.1 0.1", r"class must be a whole number from 0 to 1, got 0\.5"),
        ("nan 0.5 0.5 0.1 0.1", r"class must be a whole number from 0 to 1, got nan"),
        ("0 320 0.5 0.1 0.1", r"line 1: coordinates must be in \[0, 1\], got 320"),
        ("0 nan 0.5 0.1 0.1", r"coordinates must be in \[0, 1\], got nan"),
        ("0 0.5 0.5 -0.005 0.1", r"width and height must not be negative, got -0\.005 and 0\.1"),
    ],
)
def test_a_broken_row_is_told_with_file_and_line(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_file(tmp_path / "a.txt", 2)


def _cut_short(folder):
    content = (folder / "images/train/a.jpg").read_bytes()
    (folder / "images/train/a.jpg").write_bytes(content[:-10])


def _no_image(folder):
    (folder / "images/train/a.jpg").write_text("hello")


def _wrong_checksum(folder):
    content = bytearray((folder / "images/train/b.png").read_bytes())
    content[-20] ^= 255
    (folder / "images/train/b.png").write_bytes(content)


def _wrong_class(folder):
    (folder / "labels/train/a.txt").write_text("7 0.5 0.5 0.1 0.1")


def _binary_labels(folder):
    (folder / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_cut_short, r"1 of 3 in `train` that are not: .*a\.jpg: the image is cut short"),
        (_no_image, r"a\.jpg: is no image"),
        (_wrong_checksum, r"b\.png: cannot be read"),
        (_wrong_class, r"a\.txt, line 1: class must be a whole number from 0 to 1, got 7"),
        (_binary_labels, r"a\.txt: cannot be read"),
    ],
)
def test_broken_images_are_refused_or_left_out(folder, harm, message):
    (folder / "labels/train/c.txt").write_text("0 0.5 0.5 0.1 0.1")  # boxes remain if the first image goes
    harm(folder)
    with pytest.raises(ValueError, match=message + r".*on_error='skip'"):
        train(folder)
    with pytest.warns(UserWarning, match=r"1 of 3 images of `train` .* are left out"):
        images = train(folder, on_error="skip")
    assert len(images) == 2
    assert len(images.problems) == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("val: images/val\nnames: [a]", ValueError, "must name the training images under `train`"),
        ("- a\n- b", ValueError, "must be a YAML file with `train` and `names`"),
        ("train: [", ValueError, "must be a YAML file"),
        ("train: images/train", ValueError, "must name the classes under `names`"),
        ("train: images/train\nnames: {0: a, 2: b}", ValueError, "must be numbered from 0 to 1, got 0, 2"),
        ("train: images/train\nnames: a", ValueError, "must be a list, or numbers to names, got 'a'"),
        ("train: images/train\nnc: 3\nnames: [a]", ValueError, "`nc` .* must be the number of `names`, 1, got 3"),
        ("train: images/none\nnames: [a]", FileNotFoundError, "`train` .* must exist, got 'images/none'"),
        ("path: none\ntrain: images/train\nnames: [a]", FileNotFoundError, "`path` .* must be an existing folder"),
        ("train: 3\nnames: [a]", ValueError, "`train` .* must be a path or a list of paths, got 3"),
    ],
)
def test_a_data_yaml_that_cannot_be_used(folder, text, error, message):
    with pytest.raises(error, match=message):
        read_data_yaml(write_yaml(folder, text))


def test_classes_by_number_alone(folder):
    assert read_data_yaml(write_yaml(folder, "train: images/train\nnc: 2")).names == ("class 0", "class 1")


def test_other_errors_of_splits(folder):
    with pytest.raises(FileNotFoundError, match=r"`data` must be an existing data\.yaml"):
        read_data_yaml(folder / "none.yaml")
    data = read_data_yaml(folder / "data.yaml")
    with pytest.raises(ValueError, match="`split` must be one of train, val of"):
        read_split(data, "test")
    with pytest.raises(ValueError, match="`on_error` must be one of 'raise', 'skip', got 'ignore'"):
        read_split(data, "train", on_error="ignore")
    (folder / "list.txt").write_text("images/train/a.jpg\nimages/train/z.jpg\n")
    write_yaml(folder, "train: list.txt\nnames: [car, sign]")
    with pytest.raises(FileNotFoundError, match=r"list\.txt, line 2: must be an existing image, got 'images/train/z"):
        train(folder)
    (folder / "list.txt").write_text("data.yaml\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 1: must be an image"):
        train(folder)
    (folder / "empty").mkdir()
    write_yaml(folder, "train: empty\nnames: [car, sign]")
    with pytest.raises(ValueError, match=r"`train` .* must have images"):
        train(folder)


def test_no_boxes_at_all_are_refused_for_training_only(folder):
    (folder / "labels/train/a.txt").unlink()
    with pytest.raises(ValueError, match=r"must have boxes to train on, got none in 3 images.*labels/train/a\.txt"):
        train(folder)
    assert len(read_split(read_data_yaml(folder / "data.yaml"), "val")) == 1


def test_only_broken_images_are_refused_even_when_skipped(folder):
    for file in (folder / "images/train").iterdir():
        file.write_text("x")
    with pytest.warns(UserWarning, match="3 of 3"), pytest.raises(ValueError, match="can be used, got none"):
        train(folder, on_error="skip")


def test_the_fingerprint_follows_boxes_and_files(folder):
    first = train(folder).fingerprint()
    assert train(folder).fingerprint() == first
    (folder / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    assert train(folder).fingerprint() != first


def test_label_files_lie_beside_folders_that_are_not_called_images():
    from pathlib import Path

    assert label_file_of(Path("set/photos/a.jpg")) == Path("set/photos/a.txt")
    assert label_file_of(Path("images/set/images/a.b.jpg")) == Path("images/set/labels/a.b.txt")


@pytest.mark.data
def test_the_real_data_sets_are_read_whole(data_folder):
    data = read_data_yaml(data_folder / "bccd" / "bccd.yaml")
    images = read_split(data, "train")
    assert (len(images), sum(map(len, images.boxes)), images.n_without_file) == (205, 2804, 0)
    assert len(read_split(read_data_yaml(data_folder / "us101" / "us101.yaml"), "val")) == 60
