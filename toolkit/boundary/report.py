"""What was found on the straight paths between pairs of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.validation import invalid

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

__all__ = ["BoundaryReport"]

#: The fields that hold one row a pair as arrays.
_ARRAYS = ("margin_min", "margin_min_position", "resolution", "grid_classes", "grid_margins")


@dataclass(frozen=True, eq=False)
class BoundaryReport:
    """Where a model changes its mind on the straight paths of P pairs of images, as `probe_paths` finds it.

    Path of a pair: x(a) = (1 - a) start + a end, for a in [0, 1]. A crossing is a position `a` where the predicted
    class changes. It lies between two evaluated points that are at most `tolerance` apart and differ in their class.

    Attributes:
        classes: For each pair the predicted classes along its path, from start to end, each named once a run: one more
            than there are crossings.
        positions: For each pair the `a` of every crossing, ascending.
        third_class: For each crossing, whether some third class scores above the two where these two are equal, so that
            there is no clean boundary between two classes there.
        margin_min: float32 (P,), the smallest margin (highest minus second highest score; of logits in nats) of all
            points evaluated on the path. NaN where only classes are known.
        margin_min_position: float32 (P,), the `a` of that point.
        resolution: float32 (P,), the widest gap between neighbouring evaluated points of one class that may still hide
            a pair of crossings; 0 where every gap was excluded. Without adaptive points nothing excludes a gap, so
            this is the widest one. With them, a gap is excluded where no other class can catch up inside as long as
            differences of scores change no more than twice as fast there as they are seen to nearby (see
            `probe_paths`). Beside a crossing two classes are nearly level, so that a gap of the finest width stays open
            there. The brackets of crossings, at most `tolerance` wide, do not count.
        tolerance: The width to which each crossing was bracketed.
        num_points: Points on the regular grid of each path, both ends included.
        n_evaluations: Images that went through the model in the call that made this report. A `subset` keeps it.
        grid_classes: int32 (P, num_points), the classes at the regular grid.
        grid_margins: float32 (P, num_points), the margins there.

    Example:
        >>> import torch
        >>> from toolkit.boundary import probe_paths
        >>> def model(x):  # class 1 between -1 and 1
        ...     return torch.cat([x.abs(), torch.ones_like(x)], dim=1)
        >>> report = probe_paths(model, torch.tensor([[-3.0], [0.5]]), torch.tensor([[1.8], [0.75]]))
        >>> report.classes
        ((0, 1, 0), (1,))
        >>> [round(a, 3) for a in report.positions[0]], report.num_crossings.tolist(), report.reenters.tolist()
        ([0.417, 0.833], [2, 0], [True, False])
    """

    classes: tuple[tuple[int, ...], ...]
    positions: tuple[tuple[float, ...], ...]
    third_class: tuple[tuple[bool, ...], ...]
    margin_min: npt.NDArray[np.float32]
    margin_min_position: npt.NDArray[np.float32]
    resolution: npt.NDArray[np.float32]
    tolerance: float
    num_points: int
    n_evaluations: int
    grid_classes: npt.NDArray[np.int32]
    grid_margins: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        return (
            f"BoundaryReport({len(self)} paths, {int((self.num_crossings > 0).sum())} with a crossing, "
            f"{int(self.reenters.sum())} that come back to a class, {self.n_evaluations} images evaluated)"
        )

    @property
    def num_crossings(self) -> npt.NDArray[np.int64]:
        """The number of crossings of each path, int64 (P,)."""
        return np.array([len(row) for row in self.positions], np.int64)

    @property
    def reenters(self) -> npt.NDArray[np.bool_]:
        """Whether a path comes back to a class that it has left, bool (P,)."""
        return np.array([len(set(row)) < len(row) for row in self.classes], np.bool_)

    @property
    def first_crossing(self) -> npt.NDArray[np.float64]:
        """The `a` of the first crossing of each path, float64 (P,), NaN where there is none."""
        return np.array([row[0] if row else np.nan for row in self.positions], np.float64)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a pair, of numbers and texts only, as a CSV file takes them.

        Lists are texts with spaces between their items; what is unknown (no crossing, no margin) is None.

        Example:
            >>> import torch
            >>> from toolkit.boundary import probe_paths
            >>> flip = probe_paths(lambda x: torch.cat([-x, x], 1), torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
            >>> flip.rows()[0]["classes"], flip.rows()[0]["positions"], flip.rows()[0]["num_crossings"]
            ('0 1', '0.5', 1)
        """
        found: list[dict[str, Any]] = []
        for row in self._rows():
            plain: dict[str, Any] = {}
            for name, value in row.items():
                if isinstance(value, tuple):
                    plain[name] = " ".join(_text(item) for item in value)
                else:
                    plain[name] = None if isinstance(value, float) and np.isnan(value) else value
            found.append(plain)
        return found

    def to_frame(self) -> pd.DataFrame:
        """A pandas data frame with one row a pair; `classes`, `positions` and `third_class` hold tuples.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("BoundaryReport.to_frame needs pandas: pip install pandas. `rows` does not.") from error
        return pd.DataFrame(self._rows(), columns=list(_COLUMNS))

    def _rows(self) -> list[dict[str, Any]]:
        columns: dict[str, Sequence[Any]] = {
            "pair": range(len(self)),
            "num_crossings": self.num_crossings.tolist(),
            "reenters": self.reenters.tolist(),
            "first_crossing": self.first_crossing.tolist(),
            "classes": self.classes,
            "positions": self.positions,
            "third_class": self.third_class,
            "margin_min": self.margin_min.tolist(),
            "margin_min_position": self.margin_min_position.tolist(),
            "resolution": self.resolution.tolist(),
        }
        return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*map(columns.get, _COLUMNS), strict=True)]

    def subset(self, indices: npt.ArrayLike) -> BoundaryReport:
        """The report of some pairs, in the order given.

        Args:
            indices: Indices of pairs, or a mask of shape (P,).

        Raises:
            ValueError: If they are neither integers nor a mask of P truth values.
            IndexError: If there is no pair of some index.

        Example:
            >>> import torch
            >>> from toolkit.boundary import probe_paths
            >>> report = probe_paths(lambda x: torch.cat([-x, x], 1), torch.tensor([[-1.0], [2]]), torch.ones(2, 1))
            >>> report.subset(report.num_crossings == 0).classes
            ((1,),)
        """
        chosen = np.asarray(indices)
        if chosen.size == 0 and chosen.ndim == 1:
            chosen = np.empty(0, np.int64)
        if (
            chosen.ndim != 1
            or chosen.dtype.kind not in "iub"
            or (chosen.dtype.kind == "b" and len(chosen) != len(self))
        ):
            raise invalid(
                "indices", f"a list of integers or a mask of {len(self)}", f"{chosen.dtype} of shape {chosen.shape}"
            )
        chosen = np.arange(len(self))[chosen]
        return BoundaryReport(
            tuple(self.classes[i] for i in chosen),
            tuple(self.positions[i] for i in chosen),
            tuple(self.third_class[i] for i in chosen),
            tolerance=self.tolerance,
            num_points=self.num_points,
            n_evaluations=self.n_evaluations,
            **{name: getattr(self, name)[chosen] for name in _ARRAYS},
        )

    @staticmethod
    def concatenate(reports: Sequence[BoundaryReport]) -> BoundaryReport:
        """One report of the pairs of several, in order.

        Args:
            reports: At least one report, all with the same `tolerance` and `num_points`.

        Raises:
            ValueError: If there is no report, or if they differ in `tolerance` or `num_points`.
        """
        if not reports:
            raise invalid("reports", "at least one report", "none")
        settings = {(report.tolerance, report.num_points) for report in reports}
        if len(settings) > 1:
            raise invalid("reports", "of one tolerance and number of points", sorted(settings))
        return BoundaryReport(
            tuple(row for report in reports for row in report.classes),
            tuple(row for report in reports for row in report.positions),
            tuple(row for report in reports for row in report.third_class),
            tolerance=reports[0].tolerance,
            num_points=reports[0].num_points,
            n_evaluations=sum(report.n_evaluations for report in reports),
            **{name: np.concatenate([getattr(report, name) for report in reports]) for name in _ARRAYS},
        )


_COLUMNS = (
    "pair",
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


def _text(item: float) -> str:
    """A class, a position or a truth value as text; truth values as 0 and 1."""
    return f"{item:.7g}" if isinstance(item, float) else str(int(item))
