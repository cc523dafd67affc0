"""The outcome of choosing: which images stay, which go, why, and in whose favour."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Subset

from toolkit.selection.automatic import curve_text
from toolkit.selection.labels import Labels
from toolkit.selection.recut import Cut, Recut, recut_from_arrays
from toolkit.validation import check_fraction, fraction_of, invalid, shorten

#: Why an image is in or out, in the order of their codes.
STATUSES = ("kept", "redundant", "outlier", "random", "excluded", "influential", "boundary")
KEPT, REDUNDANT, OUTLIER, RANDOM, EXCLUDED, INFLUENTIAL, BOUNDARY = range(len(STATUSES))
#: Those of images that stay.
_STAYING = (KEPT, INFLUENTIAL, BOUNDARY)

#: What selections are written as, and those where labels repeat within an image, which older versions cannot read.
_FORMAT, _FORMAT_WITH_BOXES = 1, 2
_TABLE, _IDS, _TREE, _SUMMARY = "selection.csv", "kept.txt", "tree.npz", "selection.json"
_COLUMNS = ["index", "id", "label", "status", "group", "representative", "distance"]
#: Where labels repeat within an image, behind `label`: how often each of them occurs.
_BOXES = "boxes"
#: What a summary tells of the images of a class, and of its boxes.
_HEAD = ("images", "kept", "removed", "removed %")
_HEAD_OF_BOXES = ("boxes", "boxes kept", "boxes removed", "boxes removed %")


class SelectionFileError(ValueError):
    """A saved selection is incomplete, or not what was written."""


@dataclass(frozen=True)
class Selection:
    """Which images of a data set stay in the training set, which go, why, and in favour of which.

    Attributes:
        status: Shape (N,), uint8: an index into `STATUSES`.
        group: Shape (N,), int64: the number of the image's group, -1 for none.
        representative: Shape (N,), int64: the image that stands for it, its own index if it is kept, -1 for none.
        distance: Shape (N,), float32: dissimilarity to the representative, 0 if kept, NaN if there is none.
        ids: A name for each image (the file's path where there is one), or None: the index.
        labels: The images' labels, or None.
        config: What made the selection, as plain values.
        fingerprint: The data set's fingerprint, or None where it was chosen from vectors alone.
        recut: What later cuts are made from, or None.
        cut_status: The status that a later cut gives those that go.
        edits: For images that a person moved in `kept.txt`: index to whether it stays.

    Example:
        >>> import numpy as np
        >>> from toolkit import SemanticSelector
        >>> vectors = np.array([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.5, 1.0]])
        >>> selection = SemanticSelector(vectors, n_groups=3, scope="dataset").select()
        >>> selection.kept, selection.removed, selection.representative[1]
        (array([0, 2, 3]), array([1]), np.int64(0))
    """

    status: npt.NDArray[np.uint8]
    group: npt.NDArray[np.int64]
    representative: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]
    ids: tuple[str, ...] | None = None
    labels: Labels | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    recut: Recut | None = None
    cut_status: int = REDUNDANT
    edits: Mapping[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ids is not None:
            if len(self.ids) != len(self.status):
                raise invalid("ids", f"one for each of the {len(self.status)} images", f"{len(self.ids)} ids")
            if len(set(self.ids)) != len(self.ids):
                raise invalid("ids", "different for every image", f"{len(self.ids) - len(set(self.ids))} repeated")
            broken = [name for name in self.ids if "\n" in name or "\r" in name or name != name.strip() or not name]
            if broken:
                raise invalid("ids", "texts of one line without space at either end", broken[0])

    @classmethod
    def from_cut(
        cls, cut: Cut, status: int = REDUNDANT, excluded: npt.NDArray[np.bool_] | None = None, **more: Any
    ) -> Selection:
        """A selection from a cut: those it does not keep get `status`, those a person excluded `excluded`."""
        codes = np.where(cut.kept, KEPT, status).astype(np.uint8)
        if cut.influential is not None:
            codes[cut.influential] = INFLUENTIAL
        if cut.outlier is not None:
            codes[cut.outlier] = OUTLIER
        if cut.boundary is not None:
            codes[cut.boundary] = BOUNDARY
        if excluded is not None:
            codes[excluded] = EXCLUDED
        return cls(codes, cut.group, cut.representative, cut.distance, cut_status=status, **more)

    def __len__(self) -> int:
        return len(self.status)

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Indices of the images that stay, ascending."""
        return np.flatnonzero(self._stays())

    @property
    def removed(self) -> npt.NDArray[np.int64]:
        """Indices of the images that go, ascending."""
        return np.flatnonzero(~self._stays())

    @property
    def influential(self) -> npt.NDArray[np.int64]:
        """Indices of the images that stay because they are alike to images of another label, ascending.

        Their groups have more than one label and are kept whole: they lie where classes meet, or carry a wrong label.
        """
        return np.flatnonzero(self.status == INFLUENTIAL)

    @property
    def boundary(self) -> npt.NDArray[np.int64]:
        """Indices of the images that stay because the model changes its mind on the way to their representative.

        They are beyond the budget: without `verify` they would be `redundant`. Their group tells whose place they
        would have left.
        """
        return np.flatnonzero(self.status == BOUNDARY)

    def crossing_curve_text(self) -> str:
        """How often paths to representatives cross, the more images go: what `keep_fraction="auto"` decided by.

        Empty where a number decided. The curve itself is in `config["auto"]`, as
        `toolkit.boundary.curves.plot_crossing_curve` takes it.
        """
        curve = self.config.get("auto")
        return "" if curve is None else curve_text(curve)

    def _stays(self) -> npt.NDArray[np.bool_]:
        return np.isin(self.status, _STAYING)

    @property
    def reasons(self) -> list[str]:
        """For every image why it stays or goes.

        Those that stay are `kept`, `influential` (in a group of several labels) or `boundary` (the model changes its
        mind between them and their representative). Those that go are `redundant`, `outlier`, `random` or `excluded`
        (by a person).
        """
        return [STATUSES[code] for code in self.status]

    def id_of(self, index: int) -> str:
        """The image's name: its file's path where there is one, else its index."""
        return str(int(index)) if self.ids is None else self.ids[index]

    def subset(self, dataset: Any) -> Subset[Any]:
        """The images of `dataset` that stay.

        Raises:
            ValueError: If the data set has another number of images than was chosen from.
        """
        if len(dataset) != len(self):
            raise invalid(
                "dataset", f"the data set of {len(self)} images that was chosen from", f"{len(dataset)} images"
            )
        return Subset(dataset, self.kept.tolist())

    def apply(self, folder: str | Path, mode: str = "symlink", *, output: str | Path | None = None) -> Path:
        """Make a folder with the kept files of a data set's folder, which itself stays as it is.

        No file is ever deleted or replaced: see `toolkit.selection.apply_selection`.

        Args:
            folder: The data set's folder, which the ids are relative to.
            mode: `symlink`, `copy`, or `list`: only the kept paths, in a `kept.txt`.
            output: The folder to make; beside `folder`, with `_kept` behind its name, if None.

        Returns:
            The output folder.

        Raises:
            ValueError: If the mode is unknown, if the ids are no paths below the folder, or if the output folder has
                content that this selection did not put there.
            FileNotFoundError: If a kept file is not in the folder.

        Example:
            >>> import tempfile
            >>> from toolkit import RandomSelector
            >>> photos = Path(tempfile.mkdtemp()) / "photos"
            >>> photos.mkdir()
            >>> for name in ("a.png", "b.png", "c.png"):
            ...     _ = (photos / name).write_text(name)
            >>> names = ["a.png", "b.png", "c.png"]
            >>> made = RandomSelector(0.67).select(names, ids=names).apply(photos, "copy")
            >>> made.name, len(list(made.glob("*.png")))
            ('photos_kept', 2)
        """
        from toolkit.selection.export import apply_selection  # which imports this module

        folder = Path(folder)
        if output is None:
            named = folder.resolve()
            output = named.with_name(f"{named.name}_kept")
        return apply_selection(self, folder, output, mode)

    def with_keep_fraction(self, keep_fraction: float) -> Selection:
        """The selection at another budget, from the stored merge tree, without vectors or distances.

        Args:
            keep_fraction: In (0, 1]: `floor(keep_fraction * N)` images stay. What a person moved in `kept.txt` stays
                moved, on top of that number. Paths are not walked anew: where `verify` kept images at the first
                budget, none are kept for that at this one.

        Raises:
            ValueError: If the stored tree does not go down that far (see the selector's `tree_floor`), or none is
                stored.

        Example:
            >>> import numpy as np
            >>> from toolkit import SemanticSelector
            >>> vectors = np.random.default_rng(0).normal(size=(20, 3))
            >>> selection = SemanticSelector(vectors, keep_fraction=0.9, scope="dataset").select()
            >>> len(selection.kept), len(selection.with_keep_fraction(0.6).kept)
            (18, 12)
        """
        check_fraction("keep_fraction", keep_fraction)
        if self.recut is None:
            raise ValueError("`keep_fraction` cannot be changed: this selection was stored without a merge tree.")
        n_kept, floor = fraction_of(keep_fraction, len(self)), self.recut.min_kept()
        if n_kept < floor:
            why = (
                "so many stay at any budget, by `always_keep`, `protect_rare` or `temporal_gap`"
                if int(self.recut.preferred.sum()) == floor
                else "the stored tree goes no further down. Choose anew, with a smaller `tree_floor` to keep more of "
                "the tree"
            )
            must = f"at least {floor / len(self):.6g} ({floor} of {len(self)} images): {why}"
            raise invalid("keep_fraction", must, keep_fraction)
        excluded = self.recut.excluded
        if n_kept > len(self) - int(excluded.sum()):
            raise invalid(
                "keep_fraction",
                f"at most {(len(self) - int(excluded.sum())) / len(self):.6g}: {int(excluded.sum())} images are "
                f"excluded",
                keep_fraction,
            )
        config = {**self.config, "keep_fraction": keep_fraction, "threshold": None, "n_groups": None, "verify": False}
        again = Selection.from_cut(
            self.recut.cut(n_kept),
            self.cut_status,
            excluded,
            ids=self.ids,
            labels=self.labels,
            config={name: value for name, value in config.items() if name in self.config},
            fingerprint=self.fingerprint,
            recut=self.recut,
        )
        return again._edited(self.edits) if self.edits else again

    def counts(self) -> dict[str, dict[str, int]]:
        """Images kept and removed, for each class (`all` where there are no labels) and each reason.

        Images with the same set of labels are a class; for each label on its own, see `class_counts`.
        """
        codes = np.zeros(len(self), np.int64) if self.labels is None else self.labels.codes
        names = ["all"] if self.labels is None else self.labels.names()
        table = np.zeros((len(names), len(STATUSES)), np.int64)
        np.add.at(table, (codes, self.status), 1)
        return {
            name: {"kept": int(row[[*_STAYING]].sum()), "removed": int(row.sum() - row[[*_STAYING]].sum())}
            | {STATUSES[code]: int(row[code]) for code in range(1, len(STATUSES)) if row[code]}
            for name, row in zip(names, table, strict=True)
        }

    def class_counts(self) -> dict[str, dict[str, int]]:
        """How much of each label there is, and how much is kept of it, whatever other labels its images have.

        An image counts for each of its labels. Where labels repeat within an image, as those of its boxes do, `boxes`
        and `boxes_kept` count the repetitions; else they are the numbers of images. Images without labels count
        nowhere, and without labels at all the result is empty.

        Example:
            >>> from toolkit import RandomSelector
            >>> boxes = [[0, 0, 1], [], [0], [1, 1, 1]]
            >>> selection = RandomSelector(0.5, always_keep=[0], always_remove=[3]).select(range(4), labels=boxes)
            >>> selection.class_counts()["1"]
            {'images': 2, 'images_kept': 1, 'boxes': 4, 'boxes_kept': 1}
        """
        if self.labels is None:
            return {}
        found = self.labels.occurrences()
        (images, boxes), (images_kept, boxes_kept) = found.totals().tolist(), found.totals(self._stays()).tolist()
        names = ("images", "images_kept", "boxes", "boxes_kept")
        rows = zip(images, images_kept, boxes, boxes_kept, strict=True)
        return {str(label): dict(zip(names, row, strict=True)) for label, row in zip(found.labels, rows, strict=True)}

    def summary(self, class_names: Sequence[str] | None = None) -> str:
        """A table of what is kept and removed of each class.

        Where images have several labels or none, a row counts the images that hold a label, also among others, and,
        where labels repeat within an image, its boxes.
        """
        if self.labels is None or self.labels.are_single:
            table: list[tuple[str, ...]] = [("class", *_HEAD)]
            for name, count in self.counts().items():
                table.append((_title(name, class_names), *_of(count["kept"] + count["removed"], count["kept"])))
            if len(table) > 2:
                table.append(("total", *_of(len(self), len(self.kept))))
        else:
            table = self._table_of_labels(class_names)
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in table
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _table_of_labels(self, class_names: Sequence[str] | None) -> list[tuple[str, ...]]:
        """A row for each label, one for images without any, and the total."""
        assert self.labels is not None
        has_boxes = self._has_boxes()
        counts = self.class_counts()
        table: list[tuple[str, ...]] = [("class", *_HEAD, *(_HEAD_OF_BOXES if has_boxes else ()))]
        for name, count in counts.items():
            boxes = _of(count["boxes"], count["boxes_kept"]) if has_boxes else ()
            table.append((_title(name, class_names), *_of(count["images"], count["images_kept"]), *boxes))
        none = np.array([not label_set for label_set in self.labels.sets])[self.labels.codes]
        if none.any():
            title = "no boxes" if has_boxes else "no label"
            blank = ("",) * len(_HEAD_OF_BOXES) if has_boxes else ()
            table.append((title, *_of(int(none.sum()), int((none & self._stays()).sum())), *blank))
        if len(table) > 2:
            n_boxes, n_kept = (sum(count[name] for count in counts.values()) for name in ("boxes", "boxes_kept"))
            table.append(("total", *_of(len(self), len(self.kept)), *(_of(n_boxes, n_kept) if has_boxes else ())))
        return table

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to train on with the same images: tensors and texts, no code."""
        return {
            "status": torch.from_numpy(self.status.copy()),
            "group": torch.from_numpy(self.group.copy()),
            "representative": torch.from_numpy(self.representative.copy()),
            "distance": torch.from_numpy(self.distance.copy()),
            "config": json.dumps(dict(self.config), default=str),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], ids: Sequence[str] | None = None, labels: Any = None
    ) -> Selection:
        """The selection of a checkpoint; without a merge tree, which checkpoints do not carry.

        Args:
            state: What `state_dict` gave.
            ids: Names of the images, as when they were chosen; passed over where two are the same.
            labels: Their labels, likewise; passed over where they are none that a selection knows.
        """
        status, group, representative, distance = (
            state[name].cpu().numpy() for name in ("status", "group", "representative", "distance")
        )
        return cls(
            status,
            group,
            representative,
            distance,
            ids=None if ids is None or len(set(ids)) < len(ids) else tuple(ids),
            labels=Labels.understood(labels, len(status)),
            config=json.loads(state["config"]),
            fingerprint=state["fingerprint"],
        )

    def save(self, folder: str | Path) -> Path:
        """Write the selection into a folder: `selection.csv`, `kept.txt`, `tree.npz`, and last `selection.json`.

        All files are first written beside their places; replacing `selection.json`, which holds their checksums, is
        what makes them count. A process killed at any point leaves the old selection or the new one. To change by hand
        which images are trained on, edit `kept.txt` (one id a line).

        Args:
            folder: Where to; made if it does not exist. Other files in it are left alone, an earlier selection is
                replaced.

        Returns:
            The folder.

        Raises:
            ValueError: If the folder has files of these names that belong to no selection.
        """
        folder = Path(folder)
        check_selection_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {_TABLE: _encoded(self._table()), _IDS: _encoded(self._kept_text())}
        is_single, has_boxes = self.labels is None or self.labels.are_single, self._has_boxes()
        if self.recut is not None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self.recut.arrays())
            contents[_TREE] = buffer.getvalue()
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        for name, content in contents.items():
            _write_through(_staged(folder, name, checksums[name]), content)
        summary = {
            "format": _FORMAT_WITH_BOXES if has_boxes else _FORMAT,
            "images": len(self),
            "kept": len(self.kept),
            "removed": len(self.removed),
            "config": dict(self.config),
            "dataset_fingerprint": self.fingerprint,
            "cut_status": STATUSES[self.cut_status],
            "labels": None if self.labels is None else "text" if self.labels.are_texts else "number",
            "ids": "index" if self.ids is None else "name",
            "edits": {str(index): stays for index, stays in self.edits.items()},
            "classes": self.counts() if is_single else self.class_counts(),
            "versions": _versions(),
            "sha256": checksums,
        }
        staged = folder / f".{_SUMMARY}.new"
        _write_through(staged, (json.dumps(summary, indent=1, default=str) + "\n").encode())
        staged.replace(folder / _SUMMARY)
        _sync(folder)
        for name in (_TABLE, _IDS, _TREE):
            if name in checksums:
                _staged(folder, name, checksums[name]).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        for left in (*folder.glob(".*.new"), *folder.glob(".*.new.*.tmp")):
            left.unlink(missing_ok=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Selection:
        """Read a selection that `save` wrote, with what a person changed in `kept.txt` since.

        Images that were added to `kept.txt` are kept and those that were taken out get the status `excluded`, with a
        warning that counts them.

        Raises:
            FileNotFoundError: If the folder holds no selection.
            SelectionFileError: If a file is missing, cut short or altered (other than an edited `kept.txt`).
        """
        folder = Path(folder)
        if not (folder / _SUMMARY).is_file():
            raise FileNotFoundError(
                f"`folder` must hold a saved selection ({_SUMMARY}), got {str(folder)!r}"
                + (", which has none." if folder.is_dir() else ", which does not exist.")
            )
        try:
            summary = json.loads((folder / _SUMMARY).read_bytes())
            checksums, n_images = summary["sha256"], summary["images"]
        except (ValueError, KeyError, TypeError) as error:
            raise SelectionFileError(f"{folder / _SUMMARY} was cut short or altered ({error}).") from error
        try:
            if summary["format"] > _FORMAT_WITH_BOXES:
                raise SelectionFileError(f"{folder / _SUMMARY} was written by a newer version ({summary['format']}).")
            contents = {name: _read_either(folder, name, checksum) for name, checksum in checksums.items()}
            for name, content in contents.items():
                if name != _IDS and hashlib.sha256(content).hexdigest() != checksums[name]:
                    raise SelectionFileError(
                        f"{folder / name} was cut short or altered: its checksum is not that in {_SUMMARY}. To change "
                        f"which images are kept, edit {_IDS}; otherwise choose anew."
                    )
            selection = cls._parsed(summary, contents, n_images)
        except SelectionFileError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SelectionFileError(f"{folder / _SUMMARY} was altered: {error!r}.") from error
        if hashlib.sha256(contents[_IDS]).hexdigest() == checksums[_IDS]:
            return selection
        return selection._with_edited_ids(contents[_IDS], folder / _IDS)

    @classmethod
    def _parsed(cls, summary: Mapping[str, Any], contents: Mapping[str, bytes], n_images: int) -> Selection:
        """The selection in the files' contents."""
        recut = None
        if _TREE in contents:
            with np.load(io.BytesIO(contents[_TREE]), allow_pickle=False) as arrays:
                recut = recut_from_arrays(dict(arrays))
        return cls(
            **_parse_table(contents[_TABLE].decode(errors="surrogateescape"), summary, n_images),
            config=summary["config"],
            fingerprint=summary["dataset_fingerprint"],
            recut=recut,
            cut_status=STATUSES.index(summary["cut_status"]),
            edits={int(index): stays for index, stays in summary["edits"].items()},
        )

    def _with_edited_ids(self, content: bytes, path: Path) -> Selection:
        """The selection as changed by hand in `kept.txt`."""
        written = _encoded(self._kept_text())
        if content == written.rstrip(b"\n"):
            return self  # Some editors take the last line's end off.
        if written.startswith(content):
            raise SelectionFileError(
                f"{path} was cut short: it is the beginning of what was written. If the images after that were taken "
                "out on purpose, put an empty line at the end of the file."
            )
        text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
        lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
        names = [line for line in lines if line]
        index_of = {self.id_of(index): index for index in range(len(self))}
        unknown = [name for name in names if name not in index_of]
        if unknown:
            raise SelectionFileError(
                f"{path} must hold ids of this selection, got {len(unknown)} others: {shorten(unknown)}."
            )
        chosen = np.zeros(len(self), dtype=bool)
        chosen[[index_of[name] for name in names]] = True
        if not chosen.any():
            raise SelectionFileError(f"{path} must hold at least one id, got none.")
        before = self._stays()
        changes = {int(index): bool(chosen[index]) for index in np.flatnonzero(chosen != before)}
        added = sum(changes.values())
        warnings.warn(
            f"{path} was edited since the selection was saved: {added} images added, {len(changes) - added} taken out.",
            stacklevel=3,
        )
        return self._edited({**self.edits, **changes})

    def _edited(self, edits: Mapping[int, bool]) -> Selection:
        """The same with some images moved by hand; who stood behind one that was taken out has no representative."""
        status, representative = self.status.copy(), self.representative.copy()
        group, distance = self.group.copy(), self.distance.copy()
        stay = np.array([index for index, stays in edits.items() if stays], np.int64)
        go = np.array([index for index, stays in edits.items() if not stays], np.int64)
        status[stay], representative[stay], distance[stay] = KEPT, stay, 0.0
        status[go], representative[go], distance[go] = EXCLUDED, -1, np.nan
        orphans = np.isin(representative, go)
        representative[orphans], distance[orphans] = -1, np.nan
        return replace(
            self, status=status, group=group, representative=representative, distance=distance, edits=dict(edits)
        )

    def _kept_text(self) -> str:
        return "".join(f"{self.id_of(index)}\n" for index in self.kept)

    def _has_boxes(self) -> bool:
        """Whether labels repeat within an image."""
        return self.labels is not None and self.labels.repeats is not None

    def _table(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = [""] * len(self)
        if self.labels is not None:
            of_class = self.labels.names()
            names = [of_class[code] for code in self.labels.codes]
        columns: dict[str, Iterable[object]] = {
            "index": range(len(self)),
            "id": map(self.id_of, range(len(self))),
            "label": names,
            "status": self.reasons,
            "group": ("" if value < 0 else value for value in self.group.tolist()),
            "representative": ("" if value < 0 else value for value in self.representative.tolist()),
            "distance": ("" if np.isnan(value) else str(value) for value in self.distance),
        }
        assert list(columns) == _COLUMNS
        head = list(_COLUMNS)
        if self.labels is not None and self.labels.repeats is not None:
            counts = iter(self.labels.repeats.tolist())
            columns[_BOXES] = [";".join(str(next(counts)) for _ in label_set) for label_set in self.labels]
            head.insert(head.index("label") + 1, _BOXES)
        writer.writerow(head)
        writer.writerows(zip(*(columns[name] for name in head), strict=True))
        return buffer.getvalue()


def check_selection_folder(folder: Path) -> None:
    """Refuse a folder in which saving a selection would replace files that are not of one."""
    found = [name for name in (_TABLE, _IDS, _TREE) if (folder / name).exists()]
    if found and not (folder / _SUMMARY).exists():
        must = f"a new folder, or one that holds a saved selection, where {shorten(found)} would be replaced"
        raise invalid("folder", must, str(folder))


def _title(name: str, class_names: Sequence[str] | None) -> str:
    """A label, with its name where it is a number that has one."""
    known = class_names is not None and name.isdigit() and int(name) < len(class_names)
    named = class_names[int(name)] if known and class_names is not None else name
    return name if named == name else f"{name} {named}"


def _of(total: int, kept: int) -> tuple[str, str, str, str]:
    """Cells of a table: all, those kept, those removed, and the share of these."""
    return str(total), str(kept), str(total - kept), f"{100 * (total - kept) / total:.1f}"


def _parse_table(text: str, summary: Mapping[str, Any], n_images: int) -> dict[str, Any]:
    rows = list(csv.reader(io.StringIO(text)))
    columns = [name for name in rows[0] if name != _BOXES] if rows else []
    if columns != _COLUMNS or len(rows) != n_images + 1:
        raise SelectionFileError(f"{_TABLE} must hold the columns {','.join(_COLUMNS)} and {n_images} rows.")
    column = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    code_of = {name: code for code, name in enumerate(STATUSES)}
    labels = None
    if summary["labels"] is not None:
        kind: type[str] | type[int] = str if summary["labels"] == "text" else int
        names = column["label"]
        distinct = {name: tuple(kind(part) for part in name.split(";")) if name else () for name in set(names)}
        values = [distinct[name] for name in names]
        if _BOXES in column:
            values = [
                tuple(label for label, times in zip(of_image, _numbers(boxes), strict=True) for _ in range(times))
                for of_image, boxes in zip(values, column[_BOXES], strict=True)
            ]
        labels = Labels.of(values, n_images)
    return {
        "status": np.array([code_of[name] for name in column["status"]], np.uint8),
        "group": np.array([int(value) if value else -1 for value in column["group"]], np.int64),
        "representative": np.array([int(value) if value else -1 for value in column["representative"]], np.int64),
        "distance": np.array([float(value) if value else np.nan for value in column["distance"]], np.float32),
        "ids": None if summary["ids"] == "index" else column["id"],
        "labels": labels,
    }


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(";")] if text else []


def _encoded(text: str) -> bytes:
    """UTF-8, with the bytes of file names that are not UTF-8 as they were."""
    return text.encode(errors="surrogateescape")


def _staged(folder: Path, name: str, checksum: str) -> Path:
    return folder / f".{name}.{checksum[:16]}.new"


def _read_either(folder: Path, name: str, checksum: str) -> bytes:
    """A file's content, from beside its place where the process that wrote it was killed before moving it there."""
    staged = _staged(folder, name, checksum)
    if staged.is_file():
        content = staged.read_bytes()
        if hashlib.sha256(content).hexdigest() == checksum:
            return content
    if not (folder / name).is_file():
        raise SelectionFileError(f"{folder / name} is missing, though {_SUMMARY} names it.")
    return (folder / name).read_bytes()


def _write_through(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is either all of it, on disk, or what was there before."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Make renames durable, where the system allows a folder to be opened for that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    from importlib import metadata

    from toolkit import __version__

    packages = ("torch", "torchvision", "lightning", "numpy", "scipy")
    found = {"toolkit": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
