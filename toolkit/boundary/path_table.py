"""A run's crossings as a CSV file that grows by a block of rows an epoch and survives being killed and resumed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.boundary.pairs import PathPairs

if TYPE_CHECKING:
    from toolkit.boundary.report import BoundaryReport

__all__ = ["COLUMNS", "PathTable", "rows_of"]

#: Who a path belongs to, and what was found on it (see `BoundaryReport.rows`).
COLUMNS = (
    "epoch",
    "step",
    "pair",
    "stratum",
    "first",
    "second",
    "first_id",
    "second_id",
    "first_label",
    "second_label",
    "num_crossings",
    "reenters",
    "first_crossing",
    "classes",
    "positions",
    "third_class",
    "margin_min",
    "margin_min_position",
    "resolution",
)


def rows_of(
    report: BoundaryReport, pairs: PathPairs, id_of: Callable[[int], str] = str, **more: Any
) -> list[dict[str, Any]]:
    """One dictionary a path for the table.

    Args:
        report: What was found on P paths.
        pairs: Their pairs, in the same order.
        id_of: The name of an image.
        more: Values that all rows have, such as `epoch`.
    """
    labels = [("", "")] * len(pairs) if pairs.labels is None else pairs.labels.tolist()
    ends = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.names, labels, strict=True)
    return [
        {
            **row,
            **more,
            "stratum": stratum,
            "first": first,
            "second": second,
            "first_id": id_of(first),
            "second_id": id_of(second),
            "first_label": first_label,
            "second_label": second_label,
        }
        for row, (first, second, stratum, (first_label, second_label)) in zip(report.rows(), ends, strict=True)
    ]


class PathTable:
    r"""A CSV file that rows are added to, a block at a time, so that it holds whole lines whenever it is read.

    Args:
        path: The file.
        columns: Its columns; the first is the epoch.

    Raises:
        ValueError: From `keep` and `check`, if there is such a file and it has other columns.

    Example:
        >>> import tempfile
        >>> table = PathTable(Path(tempfile.mkdtemp()) / "t.csv", ["epoch", "pair"])
        >>> table.append([{"epoch": 1, "pair": 0}, {"epoch": 1, "pair": 1}])
        >>> table.append([{"epoch": 2, "pair": 0}])
        >>> table.keep({2}); table.path.read_text()
        'epoch,pair\n2,0\n'
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        self.columns = list(columns)

    def check(self) -> None:
        """Refuse to touch a file that is none of ours."""
        head = self._line(self.columns)
        if self.path.is_file():
            with self.path.open("rb") as file:
                start = file.read(len(head))
            if not head.startswith(start):
                raise ValueError(
                    f"{self.path} must be a table with the columns {', '.join(self.columns)} to go on with, got "
                    "another file. Move it away or name another folder."
                )

    def keep(self, epochs: Collection[int]) -> None:
        """Leave the rows of some epochs only, and no line that was cut short."""
        self.check()
        if not self.path.is_file():
            return
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1].decode(errors="surrogateescape")
        wanted = {str(epoch) for epoch in epochs}
        rows = [row for row in csv.reader(io.StringIO(whole)) if len(row) == len(self.columns)]
        content = b"".join(
            self._line(row) for place, row in enumerate(rows or [self.columns]) if place == 0 or row[0] in wanted
        )
        if content != text:
            beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            beside.write_bytes(content)
            beside.replace(self.path)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows in one write; if that fails the file is as before.

        Raises:
            OSError: If the file cannot be written.
        """
        block = b"".join(self._line(["" if row[name] is None else row[name] for name in self.columns]) for row in rows)
        with self.path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                if before == 0:
                    block = self._line(self.columns) + block
                if file.write(block) != len(block):
                    raise OSError(f"{self.path} could not be written whole: the disk may be full.")
            except OSError:
                file.truncate(before)
                raise

    @staticmethod
    def _line(values: Sequence[Any]) -> bytes:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(values)
        return buffer.getvalue().encode(errors="surrogateescape")
