"""The results of a comparison in files that survive whatever ends it: JSON lines and CSV, one line a run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from toolkit.cache import check_writable
from toolkit.files import write_whole
from toolkit.report.packing import plain

#: What is known of a run, in the order of the table's columns.
COLUMNS = (
    "key",
    "method",
    "fraction",
    "seed",
    "budget",
    "like",
    "status",
    "error",
    "notes",
    "n_images",
    "n_train",
    "kept_fraction",
    "steps",
    "images_seen",
    "val_last",
    "val_best",
    "test_last",
    "test_best",
    "best_step",
    "seconds_baseline",
    "seconds_choosing",
    "seconds_training",
    "seconds_total",
    "joules",
    "energy_source",
    "device",
    "started",
    "version",
)
#: How a run ended.
DONE, FAILED = "done", "failed"


class BusyFolderError(RuntimeError):
    """Another comparison is writing into the folder."""


class Results:
    """The table of finished runs in a folder, which one comparison at a time adds rows to.

    Rows are lines of `runs.jsonl`, and of `runs.csv` with the same values for people and other tools. A row is on disk
    when `append` returns. Where it cannot be written whole, as on a full disk, the files are cut back to the rows
    before it, and the error says so. A line that was cut short by a crash is left out, with a warning, and its run is
    done again. `runs.csv` is made anew from `runs.jsonl` when the folder is opened.

    While it is open the folder is locked: a second comparison is refused with a `BusyFolderError`. The lock ends with
    the process, however it ends.

    Args:
        folder: The folder; it is made if need be.

    Raises:
        BusyFolderError: From `with`, if another process has the folder.
        OSError: From `with` and `append`, if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Results(folder) as results:
        ...     results.append({"key": "a", "method": "random", "status": "done", "test_last": 0.9})
        >>> read_rows(folder)["a"]["test_last"]
        0.9
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        #: The rows so far by their key; of a run that was done again the last.
        self.rows: dict[str, dict[str, Any]] = {}
        self._lock = FileLock(self.folder / ".lock")

    def __enter__(self) -> Results:
        check_writable(self.folder, "output")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BusyFolderError(
                f"`output` must be a folder that no other comparison is writing into, got {str(self.folder)!r}, which "
                "one is. Wait for it, or name another folder."
            ) from None
        try:
            lines = _whole_lines(self.folder / "runs.jsonl", repair=True)
            self.rows = _rows_of(lines)
            text = _csv_text([*COLUMNS]) + "".join(_csv_text(_cells(json.loads(line))) for line in lines)
            write_whole(self.folder / "runs.csv", [text])
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to both files and see it onto the disk.

        Args:
            row: Values by the names in `COLUMNS`; those that are missing are None.

        Raises:
            OSError: If it cannot be written; the files then hold the rows before it.
        """
        if not self._lock.is_locked:
            raise RuntimeError("Rows can be added while the results are open: use `with Results(folder) as results`.")
        whole = {name: plain(row.get(name)) for name in COLUMNS}
        _append(self.folder / "runs.jsonl", json.dumps(whole) + "\n")
        _append(self.folder / "runs.csv", _csv_text(_cells(whole)))
        self.rows[whole["key"]] = whole


def read_rows(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The rows in a folder by their key, also while a comparison is adding to them.

    Raises:
        FileNotFoundError: If there are none.
    """
    path = Path(folder) / "runs.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"`folder` must be one that a comparison wrote, got {str(folder)!r} without {path.name}."
        )
    return _rows_of(_whole_lines(path, repair=False))


def _whole_lines(path: Path, *, repair: bool) -> list[str]:
    """The lines of a file that are whole; what a crash left of another is cut off if asked for."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content) and repair:
        warnings.warn(f"The last line of {path} was cut short and is left out: its run is done again.", stacklevel=4)
        os.truncate(path, end)
    return content[:end].decode("utf-8").splitlines()


def _rows_of(lines: list[str]) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in lines]
    return {row["key"]: row for row in rows}


def _cells(row: Mapping[str, Any]) -> list[Any]:
    return ["" if row.get(name) is None else row[name] for name in COLUMNS]


def _csv_text(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """Add a line at the end, all of it or nothing."""
    content = text.encode("utf-8")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(file).st_size
    try:
        while content:
            content = content[os.write(file, content) :]
        os.fsync(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise OSError(
            error.errno,
            f"`output` must have room for the results, got {path} that cannot be written to ({error.strerror}). The "
            "table is whole up to the run before: make room and start the comparison again, it goes on from there",
        ) from error
    finally:
        os.close(file)
