"""Selections as other tools take them: a folder of the kept files, a list for YOLO, labels for FiftyOne."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from toolkit.selection.result import Selection
from toolkit.validation import check_choice, invalid, shorten

MODES = ("symlink", "copy", "list")
#: The file that says that a folder was made here.
_MARK = ".selection"
#: The list of kept files in mode `list`.
_LIST = "kept.txt"
_LABELS = ("class", "status")
#: What files end in that are being written.
_UNFINISHED = ".unfinished"
_WRITER = "dataset-pruning-toolkit"


def apply_selection(selection: Selection, folder: str | Path, output: str | Path, mode: str = "symlink") -> Path:
    """Make a folder with the kept files of a data set, and leave the data set as it is.

    The kept files lie in `output` under the paths they have in `folder`. No file is ever deleted or replaced: `output`
    must be new or empty, or have been made from the same selection (then what is missing in it is added, so a run that
    was interrupted goes on). A file appears under its name only once it is whole.

    Args:
        selection: The selection; its ids are paths of files relative to `folder`.
        folder: The data set's folder; it is only read.
        output: The folder to make; not inside `folder` or around it.
        mode: `symlink` makes links to the files in `folder`, `copy` copies them with their times, `list` only writes
            the kept paths, absolute and one a line, into `kept.txt`.

    Returns:
        The output folder.

    Raises:
        ValueError: If `mode` is unknown; if the selection has no ids, or ids that are absolute, leave the folder
            (`..`) or (for a list) have line ends; if an output file would lie where the tool puts its own; if `output`
            is the folder, inside it or around it, has files that were not put there from this selection, or a link or
            copy there is not what would be made.
        FileNotFoundError: If a kept file is not in `folder`.

    Example:
        >>> import tempfile
        >>> from toolkit import SemanticSelector
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "all").mkdir()
        >>> for name in ("a.png", "b.png", "c.png"):
        ...     _ = (root / "all" / name).write_text(name)
        >>> vectors = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
        >>> selector = SemanticSelector(vectors, n_groups=2, scope="dataset", progress=False)
        >>> selection = selector.select(ids=["a.png", "b.png", "c.png"])
        >>> made = apply_selection(selection, root / "all", root / "pruned", mode="copy")
        >>> sorted(path.name for path in made.glob("*.png"))
        ['a.png', 'c.png']
    """
    check_choice("mode", mode, MODES)
    folder, output = Path(folder), Path(output)
    names = _names(selection)
    _check_apart(folder, output)
    if mode == "list":
        _check_lines(names)
    kept = [names[index] for index in selection.kept.tolist()]
    sources = {name: folder / name for name in kept}
    missing = [name for name, source in sources.items() if not source.is_file()]
    if missing:
        raise FileNotFoundError(
            f"`folder` must hold the kept files, got {str(folder)!r} without {len(missing)} of them: "
            f"{shorten(missing)}."
        )
    taken = [name for name in kept if PurePosixPath(name).parts[0] in {_MARK, _LIST}]
    if taken:
        raise invalid("selection", f"one without files called {_MARK} or {_LIST} at the top", shorten(taken))
    mark = json.dumps({"mode": mode, "folder": str(folder.resolve()), "kept": kept}, ensure_ascii=True) + "\n"
    _check_output(output, mark, {_LIST} if mode == "list" else set(kept))
    output.mkdir(parents=True, exist_ok=True)
    _write_new(output / _MARK, mark.encode())
    if mode == "list":
        _write_new(output / _LIST, _lines(folder, kept))
        return output
    for name, source in sources.items():
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _put(source.resolve() if mode == "symlink" else source, target, mode)
    return output


def write_yolo_list(selection: Selection, path: str | Path, root: str | Path) -> Path:
    """Write the kept images' absolute paths, one a line: what `train:` in a YOLO data set's YAML may name.

    Args:
        selection: The selection; its ids are paths relative to `root`.
        path: The text file to write; one that exists is replaced only if it is a list of files below `root` (or
            empty), so written here before.
        root: The folder that the ids are relative to.

    Returns:
        The file.

    Raises:
        ValueError: If the selection has no ids, or ids that are absolute, leave `root` or have line ends, or if `path`
            is a file of another kind.

    References:
        Ultralytics, "Object detection datasets overview": `train`, `val` and `test` are a folder, a list of folders or
        a text file with image paths; labels are found beside each image, `images` in its path replaced by `labels`.
    """
    names, path, root = _names(selection), Path(path), Path(root)
    _check_lines(names)
    _check_replaceable(path, lambda text: all(line.startswith(str(root.resolve())) for line in text.splitlines()))
    _replace(path, _lines(root, [names[index] for index in selection.kept.tolist()]))
    return path


def fiftyone_samples(
    selection: Selection,
    path: str | Path,
    root: str | Path,
    *,
    label: str | None = None,
    class_names: Sequence[str] | None = None,
    kept_only: bool = False,
) -> Path:
    """Write labels and reasons of the images as FiftyOne's `FiftyOneImageClassificationDataset` reads them.

    Each image is named by its absolute path, so that no files are moved, and gets a classification with the attributes
    `status` (why it stays or goes), `representative` (the path of the image that stands for it) and `distance`. Load it
    with `fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.FiftyOneImageClassificationDataset, labels_path=path)`.

    Args:
        selection: The selection; its ids are paths relative to `root`.
        path: The JSON file to write; one that exists is replaced only if it was written here.
        root: The folder that the ids are relative to.
        label: What to classify by: the image's `class` (several labels become a list of classifications) or its
            `status`; its class where the selection has labels, if None.
        class_names: A name for each label that is a number.
        kept_only: Leave out the images that go.

    Returns:
        The file.

    Raises:
        ValueError: If the selection has no ids, or ids that are absolute or leave `root`; if `label` is unknown, or
            'class' without labels; or if `path` is a file of another kind.

    References:
        FiftyOne user guide, "Importing data into FiftyOne", FiftyOneImageClassificationDataset: ids may be absolute
        paths, targets may be dictionaries with `label` and `attributes`, and lists of them.
    """
    names, path, root = _names(selection), Path(path), Path(root).resolve()
    label = label or ("status" if selection.labels is None else "class")
    check_choice("label", label, _LABELS)
    if label == "class" and selection.labels is None:
        raise invalid("label", "'status' where the selection has no labels", label)
    _check_replaceable(path, _is_fiftyone)
    reasons = selection.reasons
    chosen = selection.kept.tolist() if kept_only else range(len(selection))
    table = {}
    for index in chosen:
        attributes: dict[str, Any] = {"status": reasons[index]}
        if selection.representative[index] >= 0:
            attributes["representative"] = str(root / names[selection.representative[index]])
            attributes["distance"] = float(str(selection.distance[index]))
        texts = [reasons[index]] if label == "status" else _texts(selection, index, class_names)
        targets = [{"label": text, "attributes": attributes} for text in texts]
        table[str(root / names[index])] = targets[0] if len(targets) == 1 else targets
    _replace(path, (json.dumps({"labels": table, "info": {"written by": _WRITER}}, indent=1) + "\n").encode())
    return path


def _texts(selection: Selection, index: int, class_names: Sequence[str] | None) -> list[str]:
    """The names of an image's labels."""
    assert selection.labels is not None
    labels = selection.labels.sets[selection.labels.codes[index]]
    names = class_names or ()
    return [str(names[item]) if isinstance(item, int) and 0 <= item < len(names) else str(item) for item in labels]


def _is_fiftyone(text: str) -> bool:
    """Whether a file is one that `fiftyone_samples` wrote."""
    try:
        content = json.loads(text)
    except ValueError:
        return False
    info = content.get("info") if isinstance(content, Mapping) else None
    return isinstance(info, Mapping) and info.get("written by") == _WRITER


def _names(selection: Selection) -> tuple[str, ...]:
    """The ids, once they are known to be paths that stay below their folder."""
    if selection.ids is None:
        raise ValueError(
            "`selection` must have ids that are paths of files, got one whose images have no files of their own."
        )
    bad = [name for name in selection.ids if not _stays_below(name)]
    if bad:
        raise invalid(
            "selection",
            "one whose ids are relative paths that do not leave their folder",
            f"{len(bad)} others: {shorten(bad)}",
        )
    return selection.ids


def _stays_below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    is_absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    return bool(parts) and not is_absolute and "\0" not in name and ".." not in PureWindowsPath(name).parts


def _check_lines(names: tuple[str, ...]) -> None:
    """Refuse names that would break a list with one of them a line."""
    broken = [name for name in names if len(name.splitlines()) > 1]
    if broken:
        raise invalid("selection", "one whose ids have no line ends, for a list", shorten([repr(n) for n in broken]))


def _check_apart(folder: Path, output: Path) -> None:
    """Refuse an output that would put files into the data set or among its parents."""
    inner, outer = output.resolve(), folder.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise invalid("output", f"apart from the folder {str(folder)!r}", str(output))


def _check_output(output: Path, mark: str, names: set[str]) -> None:
    """Refuse a folder with anything in it that this selection did not put there."""
    if not output.exists():
        return
    if not output.is_dir():
        raise invalid("output", "a folder, or a path where there is nothing", str(output))
    if not any(output.iterdir()):
        return
    here = output / _MARK
    if not here.is_file() or here.read_bytes() != mark.encode():
        raise invalid("output", "new, empty, or made from the same selection in the same mode", str(output))
    found = {
        path.relative_to(output).as_posix()
        for path in output.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and not path.name.endswith(_UNFINISHED)
    }
    strange = sorted(found - names - {_MARK})
    if strange:
        raise invalid("output", "without files that the selection did not put there", shorten(strange))


def _put(source: Path, target: Path, mode: str) -> None:
    """Put one file in place, unless it is there already; refuse anything else in its place."""
    if target.is_symlink() or target.exists():
        same = (
            target.is_symlink() and target.readlink() == source
            if mode == "symlink"
            else not target.is_symlink() and filecmp.cmp(source, target, shallow=False)
        )
        if not same:
            raise invalid("output", f"without another file in the place of {target.name!r}", str(target))
        return
    if mode == "symlink":
        target.symlink_to(source)
        return
    unfinished = target.with_name(f".{target.name[:100]}.{os.getpid()}{_UNFINISHED}")
    try:
        shutil.copy2(source, unfinished)
        unfinished.rename(target)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _lines(folder: Path, names: list[str]) -> bytes:
    """Absolute paths, one a line, with the bytes of file names that are not UTF-8 as they were."""
    root = folder.resolve()
    return "".join(f"{root / name}\n" for name in names).encode(errors="surrogateescape")


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there, or is there already as it would be written."""
    if path.is_file() and path.read_bytes() == content:
        return
    if path.is_symlink() or path.exists():
        raise invalid("output", f"without another file in the place of {path.name!r}", str(path))
    _replace(path, content)


def _check_replaceable(path: Path, is_ours: Callable[[str], bool]) -> None:
    """Refuse to replace a file unless it was written here."""
    if not path.is_symlink() and not path.exists():
        return
    if not path.is_file() or not is_ours(path.read_bytes().decode(errors="surrogateescape")):
        raise invalid("path", "a new file, or one that was written here before", str(path))


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is either all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
