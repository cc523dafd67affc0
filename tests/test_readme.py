"""The README's examples run, and its commands are the ones that are tested elsewhere."""

import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_data import write_data

import toolkit
from toolkit import Selection, cli, cli_compare
from toolkit.datamodules import DigitsDataModule
from toolkit.models import ImageClassifier, YOLOv5

ROOT = Path(toolkit.__file__).parent.parent
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="the toolkit is installed without its README")


def examples():
    found = re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert [name for name, _ in found] == [
        "wrap",
        "vectors",
        "folder",
        "wavelets",
        "unlabelled",
        "watch",
        "paths",
        "auto",
        "dynamic",
        "detect",
    ]
    assert README.read_text().count("```python") == len(found), "every example is run here"
    return dict(found)


def commands():
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for kind, block in blocks if not kind for line in block.splitlines()]


def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = ImageClassifier("resnet20", in_channels=1)
    torch.save(model.state_dict(), "baseline.ckpt")
    write_data(tmp_path)
    torch.save(YOLOv5("yolov5n.yaml", num_classes=3).network.state_dict(), "pretrained.pt")
    digits = DigitsDataModule()
    digits.setup("fit")
    dataset = digits.evaluation_dataset()
    names = {
        "model": model,
        "MyDataModule": DigitsDataModule,
        "dataset": dataset,
        "test_set": torch.utils.data.Subset(dataset, range(40)),
        "embeddings": np.random.default_rng(0).normal(size=(len(dataset), 8)),
        "other_model": ImageClassifier("resnet20", in_channels=1),
        "start": torch.stack([dataset[index][0] / 255 for index in range(4)]),
        "end": torch.stack([dataset[index][0] / 255 for index in range(4, 8)]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code in examples().values():
            exec(code.replace("imgsz=640", "imgsz=64"), names)  # a size at which a CPU is quick
    assert len(names["train_set"]) == 943
    assert len(names["leaks"].twins) == 40
    assert (tmp_path / "pictures" / "groups.png").is_file()
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert (tmp_path / "features" / "epoch=0000" / "manifest.json").is_file()
    assert len(names["again"].kept) == 1078
    assert len(names["report"]) == 4
    assert len(names["hard"].kept) == 674
    assert len(Selection.load("selection").kept) == 1213
    assert len(names["datamodule"].train_dataloader().dataset) == 10
    assert (tmp_path / "trained.pt").is_file()


def test_set_up_commands_are_the_ones_that_ci_runs():
    install_and_run, install_and_test = commands()[:2]
    assert install_and_run.startswith("python -m pip install -c constraints.txt . && python -m toolkit.fit")
    assert install_and_test in (ROOT / ".ci" / "run").read_text()


def test_commands_name_configs_and_options_that_exist(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toolkit"])
    mentioned = re.search(r"`configs/`: (.*?)\)", README.read_text(), flags=re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", mentioned)) == {name.removesuffix(".yaml") for name in cli.shipped_configs()}
    for command in commands():
        words = shlex.split(command.split("&& ")[-1])[2:]
        if words[0] in {f"toolkit.{name}" for name in ("fit", "select", "leaks", "probe", "layers", "compare")}:
            name = words[0].partition(".")[2]
            with pytest.raises(SystemExit) as stop:
                getattr(cli_compare if name == "compare" else cli, name)([*words[1:], "--print_config"])
            assert stop.value.code == 0, command
    assert "keep_fraction: 0.8" in capsys.readouterr().out
