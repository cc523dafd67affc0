import csv
import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest

from toolkit.comparison import BusyFolderError, Results
from toolkit.comparison.storage import COLUMNS, read_rows


def result(key, **more):
    return {"key": key, "method": "random", "fraction": 0.5, "seed": 1, "budget": "epochs", "status": "done", **more}


def table(folder):
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_in_both_files_and_found_again(tmp_path):
    with Results(tmp_path / "out") as results:
        results.append(result("a", test_last=0.875, error='a "quoted",\nbroken text'))
        results.append(result("b", test_last=float("nan")))
    rows = read_rows(tmp_path / "out")
    assert list(rows) == ["a", "b"]
    assert rows["a"]["test_last"] == 0.875
    assert rows["b"]["test_last"] is None
    assert tuple(rows["a"]) == COLUMNS
    written = table(tmp_path / "out")
    assert [line["test_last"] for line in written] == ["0.875", ""]
    assert written[0]["error"] == 'a "quoted",\nbroken text'
    with Results(tmp_path / "out") as again:
        assert again.rows == rows
        again.append(result("a", status="failed"))
    assert read_rows(tmp_path / "out")["a"]["status"] == "failed", "the last of a run's rows counts"
    assert len(table(tmp_path / "out")) == 3


def test_a_second_comparison_is_refused_while_the_first_runs(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from toolkit.comparison import BusyFolderError, Results
        try:
            with Results(sys.argv[1]):
                print("in")
        except BusyFolderError as error:
            print(error)
        """
    )

    def second():
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with Results(tmp_path) as results:
        results.append(result("a"))
        assert second().startswith("`output` must be a folder that no other comparison is writing into, got")
        with pytest.raises(BusyFolderError), Results(tmp_path):
            pass
        results.append(result("b"))
    assert second() == "in"
    assert list(read_rows(tmp_path)) == ["a", "b"]


def test_a_line_that_was_cut_short_is_left_out_and_the_rest_goes_on(tmp_path):
    with Results(tmp_path) as results:
        results.append(result("a"))
        results.append(result("b"))
    path = tmp_path / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert list(read_rows(tmp_path)) == ["a"]
    results = Results(tmp_path)
    with pytest.warns(UserWarning, match="was cut short and is left out"):
        results.__enter__()
    assert list(results.rows) == ["a"]
    results.append(result("b"))
    results.__exit__(None, None, None)
    assert list(read_rows(tmp_path)) == ["a", "b"]
    assert [line["key"] for line in table(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.csv"])
def test_a_full_disk_is_told_and_leaves_whole_rows(tmp_path, name):
    with Results(tmp_path) as results:
        results.append(result("a"))
        size = (tmp_path / name).stat().st_size
        # No file may grow beyond this: the kernel then writes a part of the row, as where a disk is full.
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
        try:
            with pytest.raises(
                OSError, match="`output` must have room for the results, got .*whole up to the run before"
            ):
                results.append(result("b", error="x" * 2000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / name).stat().st_size == size
        assert all(json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines())
        results.append(result("b"))
    assert "b" in read_rows(tmp_path)
    assert table(tmp_path)[-1]["key"] == "b"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`output` must be a folder that can be written to"), Results(tmp_path / "file"):
        pass
    with pytest.raises(FileNotFoundError, match="`folder` must be one that a comparison wrote"):
        read_rows(tmp_path)
    with pytest.raises(RuntimeError, match="while the results are open"):
        Results(tmp_path).append(result("a"))


def test_nothing_is_left_of_a_page_that_could_not_be_written(tmp_path, monkeypatch):
    from toolkit.files import write_whole

    path = write_whole(tmp_path / "page.html", ["old"])

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, ["new"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"
