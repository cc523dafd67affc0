"""`python -m toolkit.compare` on a comparison of a few steps a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as L
import pytest
import yaml

from toolkit import cli_compare
from toolkit.cli_compare_runs import run_length
from toolkit.comparison import BusyFolderError, Results, summarise_runs
from toolkit.comparison.storage import read_rows

TINY = Path(__file__).with_name("tiny.yaml")


def compare(output, changes=None, *more):
    """The command with some of the section `compare` changed."""
    config = yaml.safe_load(TINY.read_text())
    for name, value in (changes or {}).items():
        section, _, key = name.rpartition(".")
        place = config
        for part in section.split(".") if section else ["compare"]:
            place = place[part]
        place[key] = value
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return cli_compare.compare(["--config", str(path), "--output", str(output), *more])


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toolkit"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison."""
    before = os.environ.get("TOOLKIT_CACHE")
    os.environ["TOOLKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        folder = tmp_path_factory.mktemp("comparison") / "out"
        page = compare(folder)
    finally:
        if before is None:
            del os.environ["TOOLKIT_CACHE"]
        else:
            os.environ["TOOLKIT_CACHE"] = before
    assert page == folder / "comparison.html"
    return folder


def rows_of(folder, **wanted):
    return [row for row in read_rows(folder).values() if all(row[name] == value for name, value in wanted.items())]


def test_every_run_has_a_row(done):
    rows = rows_of(done)
    # Full set; six methods at one fraction and two that decide themselves, one of which has a random subset beside it.
    assert len(rows) == 2 * (1 + 6 * 2 + 3 * 2)
    assert {row["status"] for row in rows if row["method"] != "fragile"} == {"done"}
    for row in rows_of(done, status="done"):
        assert 0 < row["test_last"] <= 1
        assert 0 < row["test_best"] <= 1
        assert row["val_best"] >= row["val_last"]
        assert row["seconds_training"] > 0
        assert row["energy_source"] in {"rapl", "not told"}
        assert row["n_train"] == 497


def test_budgets_are_matched(done):
    # 497 images are 8 steps an epoch, 248 are 4, 200 are 4 with a short last one.
    assert {row["steps"] for row in rows_of(done, method="full")} == {16}
    for method in ("random", "balanced", "semantic", "el2n", "rs2"):
        assert {row["steps"] for row in rows_of(done, method=method, budget="epochs")} == {8}
        assert {row["steps"] for row in rows_of(done, method=method, budget="steps")} == {16}
    assert {row["images_seen"] for row in rows_of(done, method="full")} == {2 * 497}
    assert {row["images_seen"] for row in rows_of(done, method="rs2", budget="epochs")} == {2 * 248}
    assert {row["n_images"] for row in rows_of(done, method="semantic")} == {248}
    assert {row["n_images"] for row in rows_of(done, method="rs2")} == {497}


def test_what_decides_itself_is_compared_with_as_many_random_images(done):
    assert {row["n_images"] for row in rows_of(done, method="half")} == {200}
    beside = rows_of(done, method="random", like="half")
    assert {row["n_images"] for row in beside} == {200}
    assert len(beside) == 4
    found = next(s for s in summarise_runs(rows_of(done)) if s.method == "half" and s.budget == "steps")
    assert found.over_random.n == 2
    changing = rows_of(done, method="info_batch", budget="steps")
    assert all(0.5 < row["kept_fraction"] <= 1 for row in changing)


def test_methods_that_need_a_network_are_charged_for_it(done):
    full = {row["seed"]: row["seconds_training"] for row in rows_of(done, method="full")}
    for row in rows_of(done, status="done"):
        needs = row["method"] in {"semantic", "half", "el2n"}
        assert row["seconds_baseline"] == (pytest.approx(full[row["seed"]]) if needs else 0)
        assert (row["seconds_choosing"] > 0) == (row["method"] not in {"full", "rs2", "info_batch"})


def test_a_selector_that_fails_becomes_a_row_that_says_why(done):
    failed = rows_of(done, method="fragile")
    assert len(failed) == 4
    assert {row["status"] for row in failed} == {"failed"}
    assert all("Choosing failed: " in row["error"] for row in failed)
    assert all(row["test_last"] is None for row in failed)
    assert "Choosing failed" in (done / "comparison.html").read_text()


def test_seeds_differ_and_a_seed_decides(done, tmp_path):
    kept = {row["seed"]: row["test_last"] for row in rows_of(done, method="random", fraction=0.5, budget="steps")}
    changes = {"seeds": [2], "selectors": {}, "dynamic": {}, "budgets": ["steps"]}
    compare(tmp_path / "out", changes)
    again = rows_of(tmp_path / "out", method="random", seed=2)
    assert [row["test_last"] for row in again] == [kept[2]]
    assert kept[1] != kept[2]


def test_files_for_people_and_programs_are_there(done):
    summary = json.loads((done / "summary.json").read_text())
    assert len(summary["summaries"]) == len(summarise_runs(rows_of(done)))
    assert (done / "comparison.md").read_text().count("| method |") == 2
    assert (done / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (done / "runs.csv").read_text().count("\n") == 1 + len(rows_of(done))
    assert not list(done.glob(".run-*")), "what runs write on the way is gone"


def test_it_goes_on_where_it_stopped(tmp_path, capsys):
    changes = {"seeds": [1], "selectors": {}, "budgets": ["epochs"], "dynamic": {}}
    compare(tmp_path / "out", changes)
    table = tmp_path / "out" / "runs.jsonl"
    lines = table.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    table.write_text("".join(lines[:-1]))
    capsys.readouterr()
    compare(tmp_path / "out", changes)
    assert "2 of 3 runs are in" in capsys.readouterr().out
    again = table.read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    first, second = json.loads(lines[-1]), json.loads(again[-1])
    assert (first["key"], first["test_last"]) == (second["key"], second["test_last"])
    # More seeds add to what is there; another training is another comparison.
    compare(tmp_path / "out", {**changes, "seeds": [1, 2]})
    assert len(read_rows(tmp_path / "out")) == 6
    compare(tmp_path / "out", {**changes, "trainer.max_epochs": 1})
    assert len(read_rows(tmp_path / "out")) == 9


def test_what_failed_is_tried_again_if_asked_for(tmp_path, capsys):
    broken = {"class_path": "toolkit.KCenterSelector", "init_args": {"features": [[1.0, 2.0]]}}
    changes = {"seeds": [1], "selectors": {"fragile": broken}, "budgets": ["epochs"], "dynamic": {}}
    compare(tmp_path / "out", changes)
    compare(tmp_path / "out", changes)
    assert "4 of 4 runs are in" in capsys.readouterr().out
    compare(tmp_path / "out", {**changes, "retry_failed": True})
    assert "3 of 4 runs are in" in capsys.readouterr().out
    assert len((tmp_path / "out" / "runs.jsonl").read_text().splitlines()) == 5


def test_a_diverging_run_is_a_row_that_says_so(tmp_path):
    changes = {"seeds": [1], "selectors": {}, "budgets": ["epochs"], "dynamic": {}, "score": "test/loss"}
    compare(tmp_path / "out", {**changes, "model.init_args.learning_rate": 1e30})
    rows = rows_of(tmp_path / "out")
    assert {row["status"] for row in rows} == {"failed"}
    assert "`test/loss` must be finite, got nan: the training diverged" in rows[0]["error"]


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    with Results(tmp_path / "out"), pytest.raises(SystemExit) as stop:
        compare(tmp_path / "out", {"seeds": [1]})
    assert "`output` must be a folder that no other comparison is writing into" in str(stop.value)
    assert BusyFolderError.__doc__


@pytest.mark.slow
def test_runs_in_parallel_are_the_same(done, tmp_path):
    compare(tmp_path / "out", {"n_jobs": 2})
    mine = {key: row["test_last"] for key, row in read_rows(tmp_path / "out").items()}
    theirs = {key: row["test_last"] for key, row in read_rows(done).items()}
    assert mine.keys() == theirs.keys()
    # As many threads as before, or results would differ in the last digits.
    same = sum(mine[key] == theirs[key] for key in mine)
    assert same >= 0.8 * len(mine)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_is_a_row_that_says_so(tmp_path):
    deadly = {"class_path": "deadly.Deadly", "init_args": {}}
    changes = {"seeds": [1], "selectors": {}, "dynamic": {"deadly": deadly}, "budgets": ["epochs"], "n_jobs": 2}
    compare(tmp_path / "out", changes)
    status = {row["method"]: row["status"] for row in rows_of(tmp_path / "out")}
    assert status == {"full": "done", "random": "done", "balanced": "done", "deadly": "failed"}
    assert "The process was killed" in rows_of(tmp_path / "out", method="deadly")[0]["error"]


@pytest.mark.slow
def test_an_interrupted_comparison_leaves_a_page_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "toolkit.compare", "--config", TINY, "--output", tmp_path / "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    table = tmp_path / "out" / "runs.jsonl"
    for _ in range(600):
        if table.is_file() and table.read_text().count("\n") >= 5:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    shown = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "Stopped. What is done is in" in shown
    n_done = len(read_rows(tmp_path / "out"))
    assert 5 <= n_done < 38
    assert (tmp_path / "out" / "comparison.html").is_file()
    subprocess.run(command, check=True, capture_output=True)
    assert len(read_rows(tmp_path / "out")) == 38


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"selectors": {"mine": {"class_path": "toolkit.SemanticSelecter"}}},
            "SemanticSelector.*got 'toolkit.Semantic",
        ),
        ({"selectors": {"mine": {"class_path": "nowhere"}}}, "`compare.selectors.mine.class_path` must be one of"),
        ({"selectors": {"mine": {"path": "x"}}}, "`compare.selectors.mine` must be a `class_path`"),
        ({"selectors": {"random": {"class_path": "toolkit.RandomSelector"}}}, "`selectors` must be named otherwise"),
        (
            {"selectors": {"mine": {"class_path": "toolkit.ScoreSelector", "init_args": {"keep": "some"}}}},
            "`keep` must be one of 'hard', 'easy', got 'some'",
        ),
        (
            {"selectors": {"mine": {"class_path": "toolkit.ScoreSelector", "init_args": {"kept": 1}}}},
            "A toolkit.ScoreSelector cannot be made of",
        ),
        ({"dynamic": {"mine": {"class_path": "toolkit.RandomSelector"}}}, "must be a callback or a data module"),
        ({"fractions": [2.0]}, r"`fractions` must be in \(0, 1\], got 2.0"),
        ({"published": "mnist"}, "`published` must be one of 'cifar10', 'cifar100', got 'mnist'"),
        ({"n_jobs": 0}, "`compare.n_jobs` must be at least 1, or -1"),
        (
            {"data.init_args.datamodule.init_args.val_size": 0},
            "must have validation images, got Digits.*set its `val_size`",
        ),
        ({"trainer.max_epochs": -1}, "`trainer.max_epochs` must be given, or `trainer.max_steps`"),
    ],
)
def test_errors_are_told_before_anything_is_trained(tmp_path, changes, match):
    with pytest.raises(SystemExit, match=match):
        compare(tmp_path / "out", changes)
    assert not (tmp_path / "out" / "runs.jsonl").exists()


def test_metrics_that_are_not_logged_are_told(tmp_path):
    compare(tmp_path / "out", {"seeds": [1], "selectors": {}, "dynamic": {}, "score": "test/speed"})
    assert "`score` must be one of the logged test/loss, test/accuracy" in rows_of(tmp_path / "out")[0]["error"]


class Steps(L.LightningModule):
    def __init__(self, *, automatic=True):
        super().__init__()
        self.automatic_optimization = automatic


@pytest.mark.parametrize(
    ("options", "budget", "expected"),
    [
        # Ten batches an epoch on all images, four on those that are kept.
        ({"max_epochs": 5}, "epochs", (20, 4)),
        ({"max_epochs": 5}, "steps", (50, 10)),
        ({"max_steps": 25}, "epochs", (10, 4)),
        ({"max_epochs": 9, "max_steps": 25}, "steps", (25, 10)),
        # Two batches a step.
        ({"max_epochs": 5, "accumulate_grad_batches": 2}, "epochs", (10, 4)),
        ({"max_epochs": 5, "accumulate_grad_batches": 2}, "steps", (25, 10)),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, "epochs", (16, 8)),
        # Half of the batches.
        ({"max_epochs": 5, "limit_train_batches": 0.5}, "epochs", (10, 2)),
        ({"max_epochs": 5, "limit_train_batches": 3}, "steps", (15, 3)),
    ],
)
def test_length_of_a_run(options, budget, expected):
    length = run_length(options, Steps(), budget, 4, 10)
    assert (length["max_steps"], length["val_check_interval"]) == expected
    assert (length["max_epochs"], length["check_val_every_n_epoch"]) == (-1, None)


def test_length_of_a_run_whose_model_steps_itself_is_in_epochs():
    model = Steps(automatic=False)
    assert run_length({"max_epochs": 6}, model, "epochs", 4, 10) == {"max_epochs": 6, "check_val_every_n_epoch": 1}
    assert run_length({"max_epochs": 6}, model, "steps", 4, 10) == {"max_epochs": 15, "check_val_every_n_epoch": 2}
    with pytest.raises(ValueError, match="`trainer.max_epochs` must be given for a model that steps"):
        run_length({"max_steps": 6}, model, "steps", 4, 10)


def test_length_of_a_run_whose_epochs_change_is_in_epochs():
    assert run_length({"max_steps": 25}, Steps(), "epochs", 10, 10, in_epochs=True) == {
        "max_epochs": 2,
        "max_steps": -1,
    }
