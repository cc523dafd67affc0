"""The detection data module: what ultralytics would give, pruned without leaks, and errors that name files."""

import random
import subprocess
import sys

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from detection_data import NAMES, write_data
from PIL import Image

pytest.importorskip("toolkit.detection.ultralytics_parts", exc_type=ImportError)

from toolkit import Pixels, RandomSelector, WaveletSelector
from toolkit.datamodules import PrunedDataModule, YOLODataModule
from toolkit.datasets import ids_of, labels_of
from toolkit.detection.ultralytics_parts import DEFAULT_CFG, build_yolo_dataset, get_cfg
from toolkit.selection import Selection


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def datamodule(data):
    result = YOLODataModule(data, imgsz=64, batch_size=4)
    result.setup("fit")
    return result


def seeded(seed=0):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what ultralytics draws from
    torch.manual_seed(seed)


def assert_same(sample, other):
    assert sample.keys() == other.keys()
    for key, value in sample.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert np.array_equal(np.asarray(value, dtype=object), np.asarray(other[key], dtype=object)), key


def test_names_and_numbers_are_known_before_anything_is_read(data):
    datamodule = YOLODataModule(str(data))
    assert datamodule.names == NAMES
    assert datamodule.class_names == list(NAMES)
    assert (datamodule.num_classes, datamodule.train_dataset) == (3, None)


def test_samples_for_evaluation(datamodule):
    dataset = datamodule.evaluation_dataset()
    sample = dataset[0]
    assert (sample["img"].shape, sample["img"].dtype) == ((3, 64, 64), torch.uint8)
    assert len(sample["cls"]) == len(sample["bboxes"]) == len(dataset.targets[0])
    assert torch.equal(sample["img"], dataset[0]["img"])
    assert dataset.targets[-1] == []
    assert labels_of(dataset) == dataset.targets
    assert ids_of(dataset)[:2] == ["images/train/frame_0000.png", "images/train/frame_0001.png"]
    # The first object's colour, red first: what the file holds where its box is.
    x, y = sample["bboxes"][-1, :2] * 64
    original = np.asarray(Image.open(sample["im_file"]))
    box = dataset.images.boxes[0][-1]
    assert sample["img"][:, int(y), int(x)].tolist() == original[int(box[2] * 60), int(box[1] * 80)].tolist()


@pytest.mark.parametrize("augmentation", [{}, {"mosaic": 0.0}, {"mixup": 1.0, "hsv_h": 0.1}])
def test_training_samples_are_those_of_ultralytics(data, datamodule, tmp_path, augmentation):
    theirs_at = write_data(tmp_path)  # a copy of its own, as ultralytics writes a cache beside the labels
    settings = get_cfg(DEFAULT_CFG, {"task": "detect", "imgsz": 64, **augmentation})
    yaml = {"names": dict(enumerate(NAMES)), "nc": 3, "channels": 3}
    theirs = build_yolo_dataset(settings, str(theirs_at.parent / "images" / "train"), 4, yaml, mode="train", stride=32)
    own = YOLODataModule(data, imgsz=64, batch_size=4, augmentation=augmentation)
    own.setup("fit")
    for dataset in (theirs, own.train_dataset):
        seeded()
        for warm in range(6):
            dataset[warm]
    seeded(1)
    expected = [theirs[i] for i in range(12)]
    seeded(1)
    for i, sample in enumerate(expected):
        other = own.train_dataset[i]
        assert sample.pop("im_file")[-14:] == other.pop("im_file")[-14:]
        assert_same(sample, other)


def test_validation_batches_are_those_of_ultralytics(tmp_path):
    file = write_data(tmp_path, n_val=3)
    for name, size in (("wide", (120, 40)), ("tall", (30, 90))):
        Image.new("RGB", size).save(tmp_path / "images" / "val" / f"{name}.png")
    own = YOLODataModule(file, imgsz=64, batch_size=2)
    loader = own.val_dataloader()
    assert list(tmp_path.rglob("*.cache")) == []
    theirs = build_yolo_dataset(
        get_cfg(DEFAULT_CFG, {"task": "detect", "imgsz": 64}),
        str(tmp_path / "images" / "val"),
        4,
        {"names": dict(enumerate(NAMES)), "nc": 3, "channels": 3},
        mode="val",
        rect=True,
    )
    batches = list(loader)
    assert [len(batch["img"]) for batch in batches] == [4, 1]
    assert batches[0]["img"].shape != batches[1]["img"].shape
    for start, batch in zip((0, 4), batches, strict=True):
        stop = min(start + 4, 5)
        assert_same(theirs.collate_fn([theirs[i] for i in range(start, stop)]), batch)


def read_files(dataset, monkeypatch):
    """A set that fills with the files that a data set's samples are made of."""
    found, load = set(), type(dataset).load_image

    def recorded(self, i, *args, **options):
        found.add(self.im_files[i])
        return load(self, i, *args, **options)

    monkeypatch.setattr(type(dataset), "load_image", recorded)
    return found


@pytest.mark.parametrize("augmentation", [{"mosaic": 1.0}, {"mosaic": 1.0, "mixup": 1.0}, {"cutmix": 1.0}])
def test_removed_images_do_not_come_back_as_partners(data, monkeypatch, augmentation):
    pruned = PrunedDataModule(
        YOLODataModule(data, imgsz=64, batch_size=4, augmentation=augmentation), RandomSelector(0.5, seed=3)
    )
    pruned.setup("fit")
    loader = pruned.train_dataloader()
    kept = {pruned.evaluation_dataset().im_files[i] for i in pruned.selection.kept}
    found = read_files(loader.dataset, monkeypatch)
    for _ in range(6):
        for _ in loader:
            pass
    assert len(loader.dataset) == 6
    assert found == kept


def test_the_whole_set_has_partners_from_everywhere(datamodule, monkeypatch):
    found = read_files(datamodule.train_dataset, monkeypatch)
    seeded()
    for _ in range(10):
        datamodule.train_dataset[0]  # 1 + 3 partners, one of them new each time
    assert found == {datamodule.train_dataset.im_files[0]}, "partners come from the images read last"
    for i in range(12):
        datamodule.train_dataset[i]
    assert found == set(datamodule.train_dataset.im_files)


class EmptyModule(L.LightningModule):
    """Looks at batches and learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        assert batch["img"].dtype == torch.float32
        assert float(batch["img"].min()) >= 0
        assert float(batch["img"].max()) <= 1
        self.seen.append((self.current_epoch, len(batch["cls"])))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        assert batch["img"].dtype == torch.float32

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_mosaic_closes_for_the_last_epochs(tmp_path, num_workers):
    file = write_data(tmp_path, n_train=8, n_val=0)
    datamodule = YOLODataModule(
        file,
        imgsz=64,
        batch_size=8,
        num_workers=num_workers,
        close_mosaic=2,
        augmentation={"translate": 0.0, "scale": 0.0},
    )
    module = EmptyModule()
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=datamodule)
    boxes = sum(map(len, datamodule.evaluation_dataset().targets))
    per_epoch = [sum(n for at, n in module.seen if at == epoch) for epoch in range(4)]
    assert per_epoch[2:] == [boxes, boxes], "each image once, alone"
    assert min(per_epoch[:2]) > boxes, "four images in one"
    again = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    again.fit(EmptyModule(), datamodule=datamodule)
    assert len(datamodule.train_dataset[0]["cls"]) == len(datamodule.evaluation_dataset()[0]["cls"])


def test_a_second_training_starts_with_mosaic_again(data):
    datamodule = YOLODataModule(data, imgsz=64, batch_size=12, close_mosaic=1)
    counts = []
    for _ in range(2):
        module = EmptyModule()
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, datamodule=datamodule)
        counts.append([n for _, n in module.seen])
    assert all(first > last for first, last in counts)


def test_nothing_is_written_into_the_data_set(tmp_path):
    file = write_data(tmp_path, n_test=2)
    np.save(tmp_path / "images" / "train" / "frame_0000.npy", np.zeros((2, 2, 3), np.uint8))  # the user's own
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    datamodule = YOLODataModule(file, imgsz=64)
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        assert len(list(loader)) == 1
    assert datamodule.evaluation_dataset()[0]["ori_shape"] == (60, 80)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    file = write_data(tmp_path)
    dataset = YOLODataModule(file, imgsz=64).evaluation_dataset()
    (tmp_path / "images" / "train" / "frame_0003.png").write_bytes(b"broken since it was found")
    with pytest.raises(OSError, match=r"frame_0003\.png \(index 3\) cannot be decoded"):
        dataset[3]


def test_images_of_all_sizes_form_batches(tmp_path):
    file = write_data(tmp_path, n_train=2, n_val=0)
    for number, size in enumerate([(1, 200), (200, 1), (33, 31), (640, 640), (10, 10)]):
        Image.new("RGB" if number % 2 else "L", size).save(tmp_path / "images" / "train" / f"z{number}.png")
    datamodule = YOLODataModule(file, imgsz=96, batch_size=7)
    assert next(iter(datamodule.train_dataloader()))["img"].shape == (7, 3, 96, 96)
    dataset = datamodule.evaluation_dataset()
    assert dataset.collate_fn([dataset[i] for i in range(7)])["img"].shape == (7, 3, 96, 96)
    assert datamodule.val_dataloader() == []


def test_a_selection_by_pixels_is_made_found_again_and_followed(data, tmp_path):
    def pruned():
        selector = WaveletSelector(keep_fraction=0.75, features=Pixels(resize=(16, 16), progress=False))
        inner = YOLODataModule(data, imgsz=64, batch_size=4)
        result = PrunedDataModule(inner, selector, cache_dir=tmp_path)
        result.setup("fit")
        return result

    first, second = pruned(), pruned()
    assert len(first.selection.kept) == 9
    assert (first.origin, second.selection.kept.tolist(), second.origin) == (
        "chosen",
        first.selection.kept.tolist(),
        "cache",
    )
    assert first.selection.ids[0] == "images/train/frame_0000.png"
    first.selection.save(tmp_path / "selection")
    by_hand = PrunedDataModule(YOLODataModule(data, imgsz=64), tmp_path / "selection")
    by_hand.setup("fit")
    assert len(by_hand.train_dataloader().dataset) == 9
    assert isinstance(by_hand.selection, Selection)


def test_the_fingerprint_follows_what_the_network_sees(data):
    prints = {YOLODataModule(data, imgsz=size).evaluation_dataset().fingerprint() for size in (64, 64, 96)}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"imgsz": 100}, ValueError, "`imgsz` must be a multiple of 32, got 100"),
        ({"imgsz": 0}, ValueError, "`imgsz` must be at least 32, got 0"),
        ({"imgsz": 64.0}, TypeError, r"`imgsz` must be a whole number, got 64\.0"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, ValueError, "`num_workers` must be at least 0, got -1"),
        ({"close_mosaic": True}, TypeError, "`close_mosaic` must be a whole number, got True"),
        ({"on_error": "ignore"}, ValueError, "`on_error` must be one of 'raise', 'skip'"),
        ({"augmentation": {"mosaics": 1.0}}, ValueError, r"`augmentation` must be settings out of hsv_h, .*'mosaics'"),
        ({"augmentation": {"mosaic": 3.0}}, ValueError, "`augmentation` must be what ultralytics takes"),
        ({"augmentation": {"mosaic": "much"}}, ValueError, "`augmentation` must be what ultralytics takes"),
        ({"data": "none.yaml"}, FileNotFoundError, r"`data` must be an existing data\.yaml, got 'none\.yaml'"),
    ],
)
def test_settings_that_cannot_be(data, options, error, message):
    with pytest.raises(error, match=message):
        YOLODataModule(**{"data": data, **options})


def test_broken_labels_are_told_in_setup(tmp_path):
    file = write_data(tmp_path)
    (tmp_path / "labels" / "train" / "frame_0002.txt").write_text("9 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"frame_0002\.txt, line 1: class must be .* from 0 to 2, got 9"):
        YOLODataModule(file, imgsz=64).setup("fit")
    datamodule = YOLODataModule(file, imgsz=64, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 12 images"):
        datamodule.setup("fit")
    assert len(datamodule.train_dataset) == len(datamodule.evaluation_dataset()) == 11
    with pytest.raises(ValueError, match="`data` must be a data.yaml with `test` to test on"):
        datamodule.test_dataloader()


def test_without_ultralytics_the_extra_is_named():
    script = (
        "import sys\n"
        "sys.modules['ultralytics'] = None\n"
        "import toolkit.datamodules as datamodules\n"
        "try:\n"
        "    datamodules.YOLODataModule\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 'pip install "dataset-pruning-toolkit[detection]"' in done.stdout
