import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toolkit.distributed import gather_objects, gather_rows, on_rank_zero, share, together

SCRIPT = Path(__file__).parent / "scripts" / "ddp_fit.py"


def run(folder, n_processes, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, SCRIPT, folder, str(n_processes), *more],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )


def written(folder, rank, n_processes):
    return json.loads((folder / f"rank{rank}-of-{n_processes}.json").read_text())


def test_one_process_is_everything():
    assert share(10, 4) == (0, 10)
    assert on_rank_zero(lambda: 3) == together(lambda: 3) == 3
    assert gather_objects("a") == ["a"]
    rows = np.ones((3, 2), np.float32)
    assert gather_rows(rows, 3, 2) is rows


def test_shares_are_whole_batches_and_cover_everything(monkeypatch):
    for n_items, chunk, size in [(90, 8, 2), (90, 8, 4), (5, 8, 3), (16, 4, 5), (1, 1, 2)]:
        ends = [0]
        for rank in range(size):
            monkeypatch.setattr("toolkit.distributed.world", lambda rank=rank, size=size: (rank, size))
            start, stop = share(n_items, chunk)
            assert start == ends[-1]
            assert start % chunk == 0 or start == n_items
            ends.append(stop)
        assert ends[-1] == n_items


def test_two_processes_hold_the_subset_that_one_process_chooses(tmp_path):
    done = [run(tmp_path, n, "cached") for n in (2, 1)]
    assert [d.returncode for d in done] == [0, 0], [d.stderr[-2000:] for d in done]
    first, second, alone = written(tmp_path, 0, 2), written(tmp_path, 1, 2), written(tmp_path, 0, 1)
    assert first["kept"] == second["kept"] == alone["kept"]
    assert first["distance"] == second["distance"] == alone["distance"]
    assert len(alone["kept"]) == 63
    assert sorted(alone["seen"]) == alone["kept"]
    assert set(first["seen"]) | set(second["seen"]) == set(alone["kept"])
    assert first["total_steps"] == second["total_steps"] == 4
    assert alone["total_steps"] == 8
    assert (first["origin"], second["origin"], alone["origin"]) == ("chosen", "chosen", "cache")
    features = sorted(path.name for path in Path(os.environ["TOOLKIT_CACHE"]).rglob("*") if path.is_file())
    assert features == ["features.json", "features.npy"], "one file in the end, not one a rank"


@pytest.mark.slow
def test_the_command_runs_on_two_processes(tmp_path):
    options = ["max_epochs=1", "accelerator=cpu", "devices=2", "strategy=ddp", "logger=false", "default_root_dir=runs"]
    command = [sys.executable, "-m", "toolkit.fit", "--config", "digits_semantic.yaml"]
    command += [f"--trainer.{option}" for option in [*options, "enable_progress_bar=false"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = json.loads((tmp_path / "runs" / "summary.json").read_text())["runs"]
    assert [run["n_images"] for run in runs] == [1348, 1213, 1213]
    assert done.stdout.count("control (random)") == 1, "one rank reports"


@pytest.mark.slow
def test_an_error_on_one_rank_stops_all(tmp_path):
    done = run(tmp_path, 2, "broken")
    assert done.returncode != 0
    assert done.stderr.count("ValueError: broken on rank zero") >= 2, "the other rank is told why"
    assert not list(tmp_path.glob("rank*"))


@pytest.mark.parametrize("size", [2, 3])
def test_rows_are_gathered_in_order(size, tmp_path):
    script = tmp_path / "gather.py"
    script.write_text(
        "import os, sys, numpy as np, torch\n"
        "from torch import distributed\n"
        "from toolkit.distributed import gather_rows, share\n"
        "rank, size = int(sys.argv[1]), int(sys.argv[2])\n"
        "distributed.init_process_group('gloo', init_method='file://' + sys.argv[3], rank=rank, world_size=size)\n"
        "all_rows = np.arange(70, dtype=np.float32).reshape(10, 7)\n"
        "start, stop = share(10, 4)\n"
        "own = all_rows[start:stop] if stop > start else np.empty((0, 0), np.float32)\n"
        "assert np.array_equal(gather_rows(own, 10, 4), all_rows)\n"
        "distributed.destroy_process_group()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), tmp_path / f"store{size}"], stderr=subprocess.PIPE
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, errors


def test_selectors_without_a_model_choose_alike_on_one_process_and_two(tmp_path):
    script = SCRIPT.parent / "select_on_ranks.py"
    for size in (2, 1):
        processes = [
            subprocess.Popen([sys.executable, script, tmp_path, str(rank), str(size)], stderr=subprocess.PIPE)
            for rank in range(size)
        ]
        errors = [process.communicate(timeout=240)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * size, errors
    first, second, alone = written(tmp_path, 0, 2), written(tmp_path, 1, 2), written(tmp_path, 0, 1)
    assert first == second == alone
    assert all(len(set(status)) > 1 for status, _, _ in alone.values()), "something was removed by each"
