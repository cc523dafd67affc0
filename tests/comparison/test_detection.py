"""`python -m toolkit.compare` on object detection, whose network steps its optimizer itself."""

import sys

import pytest
import yaml

pytest.importorskip("toolkit.detection.ultralytics_parts", exc_type=ImportError)

from detection_data import write_data

from toolkit import cli_compare
from toolkit.comparison.storage import read_rows

CONFIG = {
    "seed_everything": 1,
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    "model": {
        "class_path": "toolkit.models.YOLOv5",
        "init_args": {"network": "yolov5n.yaml", "nominal_batch_size": 8, "warmup_epochs": 0},
    },
    "data": {
        "class_path": "toolkit.datamodules.PrunedDataModule",
        "init_args": {
            "datamodule": {
                "class_path": "toolkit.datamodules.YOLODataModule",
                "init_args": {"imgsz": 32, "batch_size": 4},
            }
        },
    },
    "compare": {
        "fractions": [0.5],
        "seeds": [1],
        "monitor": "val/score",
        "score": "test/score",
        "selectors": {
            "wavelet": {
                "class_path": "toolkit.WaveletSelector",
                "init_args": {
                    "features": {
                        "class_path": "toolkit.WaveletScattering",
                        "init_args": {"levels": 2, "max_size": 32},
                    },
                    "scope": "dataset",
                    "keep_influential": False,
                },
            },
            "features": {
                "class_path": "toolkit.FeatureMapSelector",
                "init_args": {
                    "features": {"class_path": "toolkit.FeatureExtractor", "init_args": {"layer": 6}},
                    "outlier_share": 0.5,
                },
            },
        },
    },
}


@pytest.mark.slow
def test_detection_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toolkit"])
    data = write_data(tmp_path / "data", n_train=16, n_test=3)
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    place = "--data.init_args.datamodule.init_args.data"
    page = cli_compare.compare(["--config", str(path), place, str(data), "--output", str(tmp_path / "out")])
    rows = list(read_rows(tmp_path / "out").values())
    assert [row["error"] for row in rows if row["status"] != "done"] == []
    assert {row["method"] for row in rows} == {"full", "random", "balanced", "wavelet", "features"}
    for row in rows:
        assert 0 <= row["test_last"] <= 1
        assert row["kept_fraction"] == (1.0 if row["method"] == "full" else 0.5)
        # Sixteen images, or half as many for twice as many epochs: every second batch of four takes a step.
        as_many = row["method"] == "full" or row["budget"] == "steps"
        assert row["images_seen"] == (32 if as_many else 16)
        assert row["steps"] == (4 if as_many else 2)
    assert page.is_file()
