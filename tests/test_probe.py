"""`python -m toolkit.probe`: the paths of a trained model, from checkpoints of all kinds."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit import Selection, cli
from toolkit.boundary import draw_pairs, probe_paths
from toolkit.cache import cache_folder
from toolkit.datamodules import DigitsDataModule
from toolkit.models import ImageClassifier

QUICK = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--trainer.default_root_dir=runs",
]
FEW = ["--output=probed", "--probe.num_pairs=20", "--probe.num_points=5", "--probe.num_planes=0"]
CHECKPOINT = [
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=.",
    "--trainer.callbacks.filename=trained",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toolkit"])


def config(name, *more):
    return ["--config", f"{name}.yaml", *QUICK, *more]


def weights(path="weights.pt"):
    torch.manual_seed(0)
    model = ImageClassifier("resnet20", in_channels=1)
    torch.save(model.state_dict(), path)
    return model


def table():
    with Path("probed/boundaries.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_brings_its_selection_and_weights(capsys):
    cli.fit(config("digits_wavelet", "--control=null", *CHECKPOINT))
    selection = Selection.load("runs/selection")
    shutil.rmtree(cache_folder())
    capsys.readouterr()
    more = ["--data.selector.keep_fraction=0.5", "--probe.layer=avgpool"]  # other settings than it was trained with
    rows = cli.probe(config("digits_wavelet", "--ckpt_path=trained.ckpt", *FEW[:3], "--probe.num_planes=1", *more))
    shown = capsys.readouterr().out
    assert [row["n"] for row in rows] == [4] * 5
    assert [line.split()[0] for line in shown.splitlines()[2:7]] == [row["stratum"] for row in rows]
    assert "picture: planes: probed/planes.png" in shown
    assert not (cache_folder() / "selections").exists(), "nothing is chosen anew"
    assert {path.name for path in Path("probed").iterdir()} == {
        "boundaries.csv",
        "paths.png",
        "planes.png",
        "summary.json",
    }
    redundant = [row for row in table() if row["stratum"] == "redundant"]
    assert all(selection.representative[int(row["first"])] == int(row["second"]) for row in redundant)
    summary = json.loads(Path("probed/summary.json").read_text())
    assert (summary["checkpoint"], summary["num_pairs"], summary["num_points"]) == ("trained.ckpt", 20, 5)
    assert [row["crossing_rate"] for row in summary["kinds"]] == [row["crossing_rate"] for row in rows]
    assert all("feature_distance_mean" in row for row in rows)

    digits = DigitsDataModule()
    digits.setup("fit")
    pairs = draw_pairs(digits.evaluation_dataset(), selection=selection, num_pairs=20)
    model = ImageClassifier.load_from_checkpoint("trained.ckpt")
    images = digits.evaluation_transform(digits.evaluation_dataset().images)
    report = probe_paths(model, images[pairs.first], images[pairs.second], 5, 1e-3)
    assert [tuple(map(int, row["classes"].split())) for row in table()] == list(report.classes)


def test_a_state_dict_brings_weights_only_and_the_config_its_selection():
    weights()
    rows = cli.probe(config("digits_wavelet", "--ckpt_path=weights.pt", *FEW))
    assert rows[0]["stratum"] == "redundant"
    assert len(list((cache_folder() / "selections").iterdir())) == 1
    first = Path("probed/boundaries.csv").read_text()
    cli.probe(config("digits_wavelet", "--ckpt_path=weights.pt", *FEW))
    assert Path("probed/boundaries.csv").read_text() == first
    cli.probe(config("digits_wavelet", "--ckpt_path=weights.pt", "--probe.seed=1", *FEW))
    assert Path("probed/boundaries.csv").read_text() != first


def test_no_baseline_is_trained_for_it(capsys):
    weights()
    rows = cli.probe(config("digits_semantic", "--control=null", "--ckpt_path=weights.pt", *FEW))
    assert "redundant" not in [row["stratum"] for row in rows]
    assert "needs a baseline: no redundant pairs are walked" in capsys.readouterr().out
    assert not (cache_folder() / "baselines").exists()
    with_one = ["--baseline.checkpoint=weights.pt", "--ckpt_path=weights.pt", "--probe.layer=avgpool"]
    rows = cli.probe(config("digits_semantic", "--control=null", *with_one, *FEW))
    assert rows[0]["stratum"] == "redundant"
    assert rows[0]["still_redundant"] == 1.0, "measured by the network that chose"


def test_a_plain_data_module_has_no_redundant_pairs():
    weights()
    model = ["--model=toolkit.models.ImageClassifier", "--model.network=resnet20", "--model.in_channels=1"]
    plain = [*model, "--data=toolkit.datamodules.DigitsDataModule", *QUICK]
    rows = cli.probe([*plain, "--ckpt_path=weights.pt", *FEW])
    assert [row["stratum"] for row in rows] == ["same_class_near", "same_class_far", "cross_class_near", "random"]


@pytest.mark.parametrize(
    ("more", "kind", "match"),
    [
        (["--ckpt_path=nowhere.pt"], FileNotFoundError, "`checkpoint` must be an existing file, got 'nowhere.pt'"),
        (["--ckpt_path=other.pt"], ValueError, "`checkpoint` must fit the model ImageClassifier"),
        (["--ckpt_path=weights.pt", "--probe.num_pairs=3"], ValueError, "`num_pairs` must be at least 5"),
        (["--ckpt_path=weights.pt", "--probe.tolerance=0"], ValueError, r"`tolerance` must be in \(0, 1\], got 0"),
        (["--ckpt_path=weights.pt", "--probe.layer=avgpol"], ValueError, "`layer` must be a layer of ImageClassifier"),
        (["--ckpt_path=weights.pt", "--output=file/x"], OSError, "`output` must be a folder that can be written to"),
        (["--ckpt_path=smaller.ckpt"], SystemExit, "trained on the config's data, got one on 7 images where there are"),
    ],
)
def test_errors_come_before_any_work(more, kind, match):
    Path("file").write_text("")
    state = weights().state_dict()
    torch.save({"layer.weight": torch.zeros(2)}, "other.pt")
    chosen = Selection(np.zeros(7, np.uint8), np.arange(7), np.arange(7), np.zeros(7, np.float32))
    torch.save({"state_dict": state, "PrunedDataModule": {"selection": chosen.state_dict()}}, "smaller.ckpt")
    with pytest.raises(kind, match=match):
        cli.probe(config("digits_wavelet", *FEW, *more))
    assert not list(Path().glob("probed/*"))


def test_the_module_is_the_command(capsys, monkeypatch):
    import runpy

    monkeypatch.delitem(sys.modules, "toolkit.probe", raising=False)  # where another test imported it
    monkeypatch.setattr(sys, "argv", ["toolkit.probe", *config("digits_wavelet"), "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("toolkit.probe", run_name="__main__")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--ckpt_path" in shown
    assert "a Lightning checkpoint, whose selection is taken, or a state dict" in shown
    assert "--probe.num_planes" in shown
