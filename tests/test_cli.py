import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_data import write_data
from made_up_data import write_cifar

from toolkit import Selection, cli
from toolkit.cache import cache_folder

QUICK = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toolkit"])


def digits(*more):
    return ["--config", "digits_semantic.yaml", *QUICK, "--trainer.default_root_dir=runs", *more]


def test_fit_trains_a_baseline_prunes_trains_and_controls(capsys):
    summary = cli.fit(digits())
    shown = capsys.readouterr().out
    assert [run["title"] for run in summary["runs"]] == ["baseline (full set)", "pruned", "control (random)"]
    assert [run["n_images"] for run in summary["runs"]] == [1348, 1213, 1213]
    assert all(run["epoch_seconds"] > 0 and 0 <= run["score"]["test/accuracy"] <= 1 for run in summary["runs"])
    assert summary["kept"] == 1213
    assert sum(count["kept"] for count in summary["classes"].values()) == 1213
    assert "removed %" in shown
    assert "selection: chosen in" in shown
    assert str(cache_folder()) in shown
    assert json.loads(Path("runs/summary.json").read_text()) == json.loads(json.dumps(summary))
    stored = Selection.load("runs/selection")
    assert len(stored.kept) == 1213
    assert Path("runs/groups.png").read_bytes().startswith(b"\x89PNG")
    assert len(stored.with_keep_fraction(0.5).kept) == 674

    again = cli.fit(digits("--data.selector.keep_fraction=0.8", "--control=balanced"))
    assert [run["n_images"] for run in again["runs"]] == [1348, 1078, 1078]
    assert again["runs"][0] == summary["runs"][0], "the baseline is found, not trained again"
    assert len(list((cache_folder() / "baselines").iterdir())) == 1
    assert len(list((cache_folder() / "features").iterdir())) == 1
    assert len(list((cache_folder() / "selections").iterdir())) == 2


def test_select_writes_the_selection_and_trains_nothing_but_the_baseline(capsys):
    selection = cli.select(digits("--output", "selection"))
    assert np.array_equal(Selection.load("selection").kept, selection.kept)
    shown = capsys.readouterr().out
    assert "total" in shown
    assert "baseline (full set)" in shown
    assert "pruned" not in shown
    # What was chosen can be trained on, from a config.
    trained = cli.fit(
        [
            "--model=toolkit.models.ImageClassifier",
            "--model.network=resnet20",
            "--model.in_channels=1",
            "--data=toolkit.datamodules.PrunedDataModule",
            "--data.datamodule=toolkit.datamodules.DigitsDataModule",
            "--data.selector=selection",
            *QUICK,
        ]
    )
    assert trained["runs"][0]["n_images"] == 1213


def test_select_without_a_model_trains_nothing_and_draws_what_it_saw(capsys):
    args = ["--config", "digits_wavelet.yaml", *QUICK, "--output", "selection"]
    selection = cli.select(args)
    assert len(selection.kept) == 1213
    assert not (cache_folder() / "baselines").exists()
    drawn = {path.stem for path in Path("selection").glob("*.png")}
    seen = {"groups", "kept_fraction", "near_duplicates", "isolated"}
    assert drawn in (seen, seen | {"influential"})
    assert ("influential" in drawn) == bool(len(selection.influential))
    shown = capsys.readouterr().out
    assert ("alike to images of another label" in shown) == bool(len(selection.influential))
    assert Path("selection/report.html").stat().st_size > 100_000
    again = cli.select(args)
    assert np.array_equal(again.status, selection.status)
    assert "found in the cache" in capsys.readouterr().out


def test_leaks_writes_a_row_for_every_test_image(capsys):
    found = cli.leaks(["--config", "digits_wavelet.yaml", *QUICK, "--output", "leaks", "--leaks.radius=0.5"])
    with Path("leaks/leaks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found) == 449
    distances = [float(row["distance"]) for row in rows]
    assert distances == sorted(distances)
    twins = [row for row in rows if row["twin"] == "True"]
    assert {int(row["test"]) for row in twins} == set(found.twins)
    assert all((float(row["distance"]) <= 0.5) == (row["twin"] == "True") for row in rows)
    assert 0 < len(twins) < 449
    assert json.loads(Path("leaks/leaks.json").read_text())["twins"] == len(twins)
    assert {path.name for path in Path("leaks").glob("*.png")} == {"twins.png", "isolated.png"}
    assert f"{len(twins)} of 449 test images" in capsys.readouterr().out


def test_leaks_needs_images_as_vectors_and_a_test_set():
    digits_with = ["--config", "digits_wavelet.yaml", *QUICK, "--output", "leaks"]
    with pytest.raises(SystemExit, match="`data.selector` must turn images into vectors to compare them"):
        cli.leaks([*digits_with, "--data.selector=toolkit.RandomSelector", "--data.selector.keep_fraction=0.5"])


def test_layers_shows_what_each_gives_and_marks_the_chosen_one(capsys):
    checkpoint = cli.ToolkitCLI(digits()).model
    torch.save(checkpoint.state_dict(), "weights.pt")
    given = ["--baseline.checkpoint=weights.pt", "--n_images=50"]
    rows = {row.name: row for row in cli.layers(digits(*given))}
    assert rows["network.layer2"].n_pooled == 32
    assert rows["network.avgpool"].n_flattened == rows["network.avgpool"].n_pooled == 64
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["network.avgpool"]
    assert any("32 x 4 x 4" in line and "%" in line for line in lines)
    assert not Path("runs").exists()
    # A layer that does not exist is why somebody asks which do.
    cli.layers(digits(*given, "--data.selector.features.layer=nowhere"))
    assert not any(line.startswith("*") for line in capsys.readouterr().out.splitlines())


def test_layers_needs_a_network():
    with pytest.raises(SystemExit, match="`data.selector` must have a FeatureExtractor as `features`, got Wavelet"):
        cli.layers(["--config", "digits_wavelet.yaml", *QUICK])


def test_resume_takes_the_selection_of_the_checkpoint():
    args = digits("--control=null", "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint")
    first = cli.fit([*args, "--trainer.callbacks.save_last=true"])
    shutil.rmtree(cache_folder())
    resumed = cli.fit([*digits("--control=null"), "--ckpt_path=runs/checkpoints/last.ckpt", "--trainer.max_epochs=2"])
    assert [run["title"] for run in resumed["runs"]] == ["pruned"], "no baseline is needed"
    assert resumed["kept"] == first["kept"]
    assert not (cache_folder() / "selections").exists()


def test_a_plain_data_module_is_just_trained():
    summary = cli.fit(
        [
            "--model=toolkit.models.ImageClassifier",
            "--model.network=resnet20",
            "--model.in_channels=1",
            "--data=toolkit.datamodules.DigitsDataModule",
            *QUICK,
        ]
    )
    assert [run["title"] for run in summary["runs"]] == ["trained"]
    assert summary["kept"] is None
    with pytest.raises(SystemExit, match="`data` must be a PrunedDataModule to select from, got DigitsDataModule"):
        cli.select(
            ["--model=toolkit.models.ImageClassifier", "--data=toolkit.datamodules.DigitsDataModule", "--output=s"]
        )


#: What the few made-up images, which are random and so are their labels, need in place of the configs' own settings:
#: there nearly every group has several labels and is kept whole.
FOR_MADE_UP_DATA = {
    "cifar10_wavelet.yaml": ["--data.selector.scope=class"],
    "cifar10_wavelet_paper.yaml": ["--data.selector.n_groups=900"],
    # A quick try, which walks few paths.
    "cifar10_boundary.yaml": ["--trainer.fast_dev_run=true"],
    # Small images, and as few as a drawn data set may have.
    "yolov5_demo.yaml": ["--data.datamodule.init_args.n_val=4", "--data.datamodule.init_args.imgsz=64"],
    # Of a handful of pictures nearly every group holds different objects.
    "yolov5_wavelet.yaml": ["--data.selector.scope=class", "--data.selector.keep_fraction=0.75"],
}


@pytest.mark.filterwarnings("ignore:.*checksums")
@pytest.mark.parametrize("name", sorted(name for name in cli.shipped_configs() if "_compare" not in name))
def test_every_shipped_config_fits_a_batch(name, tmp_path):
    args = ["--config", name, *QUICK, "--trainer.limit_train_batches=1", "--trainer.limit_test_batches=1"]
    if name.startswith("cifar"):
        classes = int(name.removeprefix("cifar").partition("_")[0])
        write_cifar(tmp_path / "data", classes, 200)
        args += ["--data.datamodule.init_args.download=false"]
    if name.startswith("yolov5") and name != "yolov5_demo.yaml":
        # Its place is all that a user has to give; smaller images are quicker.
        args += ["--data.datamodule.init_args.data", str(write_data(tmp_path / "data", n_test=2))]
        args += ["--data.datamodule.init_args.imgsz=64"]
    summary = cli.fit([*args, *FOR_MADE_UP_DATA.get(name, []), "--trainer.max_steps=1"])
    score = summary["runs"][-1]["score"]
    if name.startswith("yolov5"):
        assert {"mAP50", "mAP50-95", "score"} <= {metric.partition("/")[2] for metric in score}
        assert summary["removed"] > 0
    else:
        assert score["test/accuracy"] >= 0


def test_a_given_checkpoint_is_the_baseline(tmp_path):
    from toolkit.models import ImageClassifier

    model = ImageClassifier("resnet20", in_channels=1)
    torch.save(model.state_dict(), "weights.pt")
    summary = cli.fit(digits("--control=null", "--baseline.checkpoint=weights.pt"))
    assert [run["title"] for run in summary["runs"]] == ["baseline (given)", "pruned"]
    assert not (cache_folder() / "baselines").exists()
    with pytest.raises(SystemExit, match="`baseline.checkpoint` must be an existing file, got 'nowhere.pt'"):
        cli.fit(digits("--baseline.checkpoint=nowhere.pt"))


def test_a_checkpoint_of_the_features_is_used_and_two_are_refused():
    from toolkit.models import ImageClassifier

    torch.save(ImageClassifier("resnet20", in_channels=1).state_dict(), "weights.pt")
    own = "--data.selector.features.checkpoint=weights.pt"
    summary = cli.fit(digits("--control=null", own))
    assert [run["title"] for run in summary["runs"]] == ["baseline (given)", "pruned"]
    with pytest.raises(SystemExit, match="`baseline.checkpoint` must not be given where the features have"):
        cli.fit(digits("--control=null", own, "--baseline.checkpoint=weights.pt"))


def test_nested_options_of_the_features_can_be_overridden(capsys):
    with pytest.raises(SystemExit):
        cli.fit(digits("--data.selector.features.layer=network.layer3", "--print_config"))
    shown = capsys.readouterr().out
    assert "layer: network.layer3" in shown
    assert "class_path: toolkit.FeatureExtractor" in shown


@pytest.mark.filterwarnings("ignore:.*will be overridden by")
def test_another_optimizer_is_given_to_every_run_and_makes_another_baseline():
    cli.fit(digits("--optimizer=Adam", "--optimizer.lr=0.001"))
    again = cli.fit(digits("--optimizer=Adam", "--optimizer.lr=1e-9", "--control=null"))
    assert len(list((cache_folder() / "baselines").iterdir())) == 2
    assert again["runs"][0]["score"]["test/accuracy"] < 0.3, "nothing is learnt at that rate"


def test_a_damaged_baseline_is_trained_anew():
    first = cli.fit(digits("--control=null"))
    weights = next((cache_folder() / "baselines").rglob("baseline.ckpt"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.warns(UserWarning, match="was cut short or altered"):
        again = cli.fit(digits("--control=null"))
    assert again["runs"][0]["score"] == first["runs"][0]["score"]
    weights.with_suffix(".json").write_text("{")
    with pytest.warns(UserWarning, match="was cut short or altered"):
        cli.fit(digits("--control=null"))
    assert sorted(path.name for path in weights.parent.iterdir()) == ["baseline.ckpt", "baseline.json"]


def test_a_quick_try_leaves_no_baseline_for_real_runs():
    cli.fit(digits("--control=null", "--trainer.fast_dev_run=true"))
    real = cli.fit(digits("--control=null"))
    assert real["runs"][0]["score"]["test/accuracy"] > 0.12
    assert len(list((cache_folder() / "baselines").iterdir())) == 2


def test_configs_are_found_here_first_then_among_the_shipped():
    shipped = cli.shipped_configs()
    assert cli.resolve_configs(["--config", "digits_semantic.yaml"]) == [
        "--config",
        str(shipped["digits_semantic.yaml"]),
    ]
    assert cli.resolve_configs(["-c", "digits_semantic"])[1] == str(shipped["digits_semantic.yaml"])
    assert cli.resolve_configs(["--config=digits_semantic.yaml"]) == [f"--config={shipped['digits_semantic.yaml']}"]
    Path("digits_semantic.yaml").write_text("seed_everything: 3\n")
    assert cli.resolve_configs(["--config", "digits_semantic.yaml"])[1] == "digits_semantic.yaml"
    with pytest.raises(SystemExit, match=r"one of the shipped .*cifar10_semantic.yaml.*, got 'nowhere.yaml'"):
        cli.resolve_configs(["--config", "nowhere.yaml"])


def test_a_config_of_comparisons_names_its_command(tmp_path):
    for args in (["--config", "digits_compare.yaml"], ["--config=digits_compare.yaml"]):
        with pytest.raises(SystemExit, match=r"without the section `compare`, which only python -m toolkit\.compare"):
            cli.fit(args)
    (tmp_path / "broken.yaml").write_text("compare: [")
    with pytest.raises(SystemExit) as found:
        cli.fit(["--config", str(tmp_path / "broken.yaml")])
    assert found.value.code == 2, "the parser tells what is wrong"


def test_an_unwritable_output_is_told_before_any_work():
    Path("file").write_text("")
    with pytest.raises(OSError, match="`output` must be a folder that can be written to, got 'file"):
        cli.select(digits("--output=file/selection"))
    assert not cache_folder().exists() or not any(cache_folder().iterdir())


@pytest.mark.parametrize(("name", "match"), [("report.html", "a new file or a report"), ("kept.txt", "a new folder")])
def test_files_of_others_in_the_output_are_told_before_any_work(name, match):
    Path("selection").mkdir()
    Path("selection", name).write_text("mine")
    with pytest.raises(ValueError, match=match):
        cli.select(digits("--output", "selection"))
    assert [path.name for path in Path("selection").iterdir()] == [name]
    assert Path("selection", name).read_text() == "mine"
    assert not Path("runs").exists()


def test_bad_settings_are_told_before_the_baseline_is_trained():
    with pytest.raises(ValueError, match=r"`keep_fraction` must be in \(0, 1\], got 1.5"):
        cli.fit(digits("--data.selector.keep_fraction=1.5"))
    assert not (cache_folder() / "baselines").exists()


def test_print_config_is_complete_and_can_be_read_back(capsys):
    with pytest.raises(SystemExit):
        cli.fit(digits("--print_config"))
    printed = capsys.readouterr().out
    assert "keep_fraction: 0.9" in printed
    assert "linkage: complete" in printed
    Path("whole.yaml").write_text(printed)
    summary = cli.fit(["--config", "whole.yaml", "--control=null", *QUICK])
    assert summary["kept"] == 1213


def test_help_shows_the_docstrings(capsys):
    with pytest.raises(SystemExit):
        cli.fit(["--help"])
    shown = capsys.readouterr().out
    assert "--baseline.checkpoint" in shown
    assert "the baseline is trained on the" in shown
    with pytest.raises(SystemExit):
        cli.fit(["--data.help=toolkit.datamodules.PrunedDataModule"])
    assert "What chooses the images" in " ".join(capsys.readouterr().out.split())
