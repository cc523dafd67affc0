"""Which method of which logger gets a picture; the loggers are stand-ins that have what the real ones have."""

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from toolkit.callbacks.image_logging import send_image, takes_images


class Recorder:
    """Notes the calls of the methods it is given."""

    def __init__(self, *methods, **values):
        self.calls = []
        self.__dict__.update(values)
        for name in methods:
            setattr(self, name, lambda *args, _name=name, **more: self.calls.append((_name, args, more)))


@pytest.fixture
def picture(tmp_path):
    figure = Figure(figsize=(1, 0.5))
    figure.set_facecolor((1.0, 0.0, 0.2))
    figure.savefig(tmp_path / "picture.png", dpi=40)
    return tmp_path / "picture.png"


def test_wandb(picture):
    logger = Recorder("log_image", experiment=Recorder("add_image"))
    assert takes_images(logger)
    assert send_image(logger, "a/b", picture, 3)
    assert logger.calls == [("log_image", (), {"key": "a/b", "images": [str(picture)], "step": 3})]
    assert logger.experiment.calls == []


def test_tensorboard(picture):
    logger = Recorder(experiment=Recorder("add_image", "add_scalar"))
    assert send_image(logger, "a/b", picture, 3)
    [(name, (key, pixels), more)] = logger.experiment.calls
    assert (name, key, more) == ("add_image", "a/b", {"global_step": 3, "dataformats": "HWC"})
    assert (pixels.shape, pixels.dtype) == ((20, 40, 3), np.uint8)
    assert pixels[0, 0].tolist() == [255, 0, 51]


def test_mlflow(picture):
    logger = Recorder(run_id="r1", experiment=Recorder("log_artifact", "log_image"))
    assert send_image(logger, "a/b", picture, 3)
    assert logger.experiment.calls == [("log_artifact", ("r1", str(picture), "a/b"), {})]


def test_comet(picture):
    logger = Recorder(experiment=Recorder("log_image"))
    assert send_image(logger, "a/b", picture, 3)
    assert logger.experiment.calls == [("log_image", (str(picture),), {"name": "a/b", "step": 3})]


def test_others_are_left_alone(picture, tmp_path):
    for logger in (CSVLogger(tmp_path), Recorder(), Recorder(experiment=Recorder("log_artifact"))):
        assert not takes_images(logger)
        assert not send_image(logger, "a/b", picture, 3)
