"""The table of crossings: whole lines whatever happens, and epochs that are done again replaced."""

import csv
import io

import numpy as np
import pytest
import torch

from toolkit.boundary import PathPairs, probe_paths
from toolkit.boundary.path_table import COLUMNS, PathTable, rows_of

PAIRS = PathPairs(np.array([0, 2]), np.array([1, 0]), np.array([0, 1]), ("redundant", "random"), np.array([[0, 1]] * 2))


def rows(epoch=3, pairs=PAIRS, **more):
    images = torch.tensor([[-1.0], [2.0], [5.0]])
    report = probe_paths(lambda x: torch.cat([-x, x], 1), images[pairs.first], images[pairs.second])
    return rows_of(report, pairs, epoch=epoch, step=7, **more)


def read(table):
    with table.path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_rows_name_the_images_and_hold_what_was_found(tmp_path):
    table = PathTable(tmp_path / "t.csv")
    names = ['a,"b".png', "x.png", "\udcff.png"]
    table.append(rows(id_of=names.__getitem__))
    first, second = read(table)
    assert list(first) == list(COLUMNS)
    assert (first["epoch"], first["step"], first["pair"], first["stratum"]) == ("3", "7", "0", "redundant")
    assert (first["first"], first["second"], first["first_id"], first["second_id"]) == ("0", "1", names[0], names[1])
    assert (first["first_label"], first["second_label"], first["classes"]) == ("0", "1", "0 1")
    assert [float(first[name]) for name in ("positions", "first_crossing")] == pytest.approx([1 / 3] * 2, abs=1e-3)
    assert (second["stratum"], second["first_id"], second["num_crossings"]) == ("random", names[2], "1")


def test_what_is_not_known_is_empty(tmp_path):
    table = PathTable(tmp_path / "t.csv")
    table.append(rows(pairs=PathPairs(np.array([1]), np.array([2]), np.array([0]), ("random",))))
    [row] = read(table)
    assert (row["first_label"], row["first_crossing"], row["positions"], row["first_id"]) == ("", "", "", "1")


def test_epochs_that_are_done_again_are_replaced_and_half_lines_dropped(tmp_path):
    table = PathTable(tmp_path / "t.csv")
    table.keep({1})
    assert not table.path.exists()
    for epoch in (0, 1, 2):
        table.append(rows(epoch))
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + b"2,7,1,rand")
    table.keep({0, 1, 2})
    assert table.path.read_bytes() == whole
    table.path.write_bytes(whole[:-4])
    table.keep({0, 2})
    assert [(row["epoch"], row["pair"]) for row in read(table)] == [("0", "0"), ("0", "1"), ("2", "0")]
    table.keep({0, 2})
    table.append(rows(3))
    assert [row["epoch"] for row in read(table)] == ["0", "0", "2", "3", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("content", ["", "\n", ",".join(COLUMNS)[:20], ",".join(COLUMNS)])
def test_a_table_that_was_cut_in_its_head_starts_anew(tmp_path, content):
    table = PathTable(tmp_path / "t.csv")
    table.path.write_text(content)
    if content == "\n":
        with pytest.raises(ValueError, match="must be a table with the columns"):
            table.keep({1})
        return
    table.keep({1})
    table.append(rows())
    assert len(read(table)) == 2


class FullDisk:
    """A file opened on a disk that has room for 30 more bytes."""

    def __init__(self, path, *_, **__):
        self.path = path

    def __enter__(self):
        self.file = io.FileIO(self.path, "ab")
        return self

    def __exit__(self, *_):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def write(self, block):
        return self.file.write(block[:30])

    def truncate(self, size):
        return self.file.truncate(size)


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    table = PathTable(tmp_path / "t.csv")
    table.append(rows(1))
    before = table.path.read_bytes()
    monkeypatch.setattr(type(table.path), "open", lambda path, *_, **__: FullDisk(path))
    with pytest.raises(OSError, match=r"could not be written whole: the disk may be full"):
        table.append(rows(2))
    monkeypatch.undo()
    assert table.path.read_bytes() == before


def test_another_file_is_not_touched(tmp_path):
    table = PathTable(tmp_path / "t.csv")
    table.path.write_text("my,own,table\n1,2,3\n")
    for call in (table.check, lambda: table.keep({1})):
        with pytest.raises(ValueError, match=r"t.csv must be a table with the columns epoch, .* got another file"):
            call()
    assert table.path.read_text() == "my,own,table\n1,2,3\n"
