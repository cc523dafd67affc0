"""What the commands print and write when they are done."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import cache
from toolkit.cli_baseline import Run
from toolkit.datasets import ids_of, labels_of
from toolkit.gallery import save_pictures, save_report
from toolkit.insight import Leaks
from toolkit.plotting import plot_isolated, plot_pairs
from toolkit.representations.layer_table import LayerRow
from toolkit.selection import Selection


def class_names_of(datamodule: Any) -> list[str] | None:
    """The names of the classes, where the data module has them."""
    names = getattr(datamodule, "class_names", None)
    return list(names) if isinstance(names, (list, tuple)) else None


def report_selection(
    datamodule: Any,
    selection: Selection | None,
    runs: list[Run],
    folder: Path,
    selection_folder: Path,
    projection: str | None = None,
) -> dict[str, Any]:
    """Print the summary and write it, with the selection and pictures, where the run's files are.

    Training draws the groups only. Where choosing is all there is to do, `projection` says how the page shows vectors
    as points; then the page is written and all pictures are drawn.
    """
    lines: list[str] = []
    files = {"summary": folder / "summary.json"}
    if selection is not None:
        lines += ["", selection.summary(class_names_of(datamodule)), ""]
        seconds = getattr(datamodule, "seconds_choosing", None)
        if seconds is not None:
            how = {"cache": "found in the cache", "chosen": "chosen"}.get(
                datamodule.origin, f"from {datamodule.origin}"
            )
            lines.append(f"selection: {how} in {seconds:.1f} s")
        if curve := selection.crossing_curve_text():
            lines += ["", curve, ""]
        if len(selection.boundary):
            lines.append(f"{len(selection.boundary)} images stay because the model changes its mind on their paths")
        if len(selection.influential):
            lines.append(f"{len(selection.influential)} images are alike to images of another label: all are kept")
        files["selection"] = selection.save(selection_folder)
        view, names = datamodule.evaluation_view(), class_names_of(datamodule)
        pictures = save_pictures(
            selection, view, folder, selector=datamodule.selector if projection else None, class_names=names
        )
        files |= {f"picture: {title}": path for title, path in pictures.items()}
        if projection:
            files["report"] = save_report(
                selection,
                view,
                folder / "report.html",
                selector=datamodule.selector,
                class_names=names,
                projection=projection,
            )
    if runs:
        lines += ["", *_aligned([("run", "images", "s/epoch", "score"), *(run.row() for run in runs)])]
    summary = {
        "classes": None if selection is None else _counts_by_class(selection),
        "kept": None if selection is None else len(selection.kept),
        "removed": None if selection is None else len(selection.removed),
        "seconds_choosing": getattr(datamodule, "seconds_choosing", None),
        "runs": [run.__dict__ for run in runs],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files["summary"].write_text(json.dumps(summary, indent=1, default=str) + "\n")
    kept_in = cache.cache_folder(getattr(datamodule, "cache_dir", None))
    size = cache.format_size(cache.folder_size(kept_in))
    lines += ["", *(f"{name}: {path}" for name, path in files.items())]
    lines.append(f"cache: {kept_in} ({size}; python -m toolkit.cache --clear empties it)")
    print("\n".join(lines))
    return summary


def _counts_by_class(selection: Selection) -> dict[str, dict[str, int]]:
    """Images kept and removed of each class; where images hold several labels, images and boxes of each label."""
    is_plain = selection.labels is None or selection.labels.are_single
    return selection.counts() if is_plain else selection.class_counts()


def report_leaks(datamodule: Any, test: Any, found: Leaks, folder: Path) -> None:
    """Print what was found, and write the table and the pictures."""
    train, names = datamodule.evaluation_dataset(), class_names_of(datamodule)
    labels = {"test_labels": labels_of(test.dataset), "train_labels": labels_of(train)}
    ids = {"test_ids": ids_of(test.dataset), "train_ids": ids_of(train)}
    folder.mkdir(parents=True, exist_ok=True)
    files = {"table": folder / "leaks.csv", "summary": folder / "leaks.json"}
    rows = found.table(**ids, **{name: None if of is None else [*map(str, of)] for name, of in labels.items()})
    with files["table"].open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    twins, similarity = found.twins, found.similarity
    of_test, of_train = labels["test_labels"], labels["train_labels"]
    differ = None
    if of_test is not None and of_train is not None:
        differ = sum(str(of_test[i]) != str(of_train[found.nearest[i]]) for i in twins)
    summary = {
        "test_images": len(found),
        "twins": len(twins),
        "mirrored_twins": int(found.mirrored[twins].sum()),
        "twins_with_another_label": differ,
    }
    files["summary"].write_text(json.dumps(summary, indent=1) + "\n")
    if len(twins):
        figure = plot_pairs(
            test.dataset,
            found.pairs(twins),
            train,
            distances=found.distance[twins],
            similarities=None if similarity is None else similarity[twins],
            similarity_name="SSIM",
            labels=of_test,
            other_labels=of_train,
            class_names=names,
            captions=("test", "train"),
            mirrored=found.mirrored[twins],
            title="Test images with a twin in the training set",
        )
        files["picture: twins"] = folder / "twins.png"
        figure.savefig(files["picture: twins"], dpi=120)
    lonely = found.isolated(24)
    figure = plot_isolated(
        test.dataset,
        lonely,
        distances=found.distance[lonely],
        labels=of_test,
        class_names=names,
        title="Test images least like the training set",
    )
    files["picture: unlike all training images"] = folder / "isolated.png"
    figure.savefig(files["picture: unlike all training images"], dpi=120)
    share = 100 * len(twins) / max(len(found), 1)
    print(f"\n{len(twins)} of {len(found)} test images ({share:.1f} %) have a twin in the training set,")
    print(
        f"{summary['mirrored_twins']} of them as a mirror image"
        + ("." if differ is None else f", {differ} under another label.")
    )
    print("\n".join(["", *(f"{name}: {path}" for name, path in files.items())]))


def layer_lines(rows: Sequence[LayerRow], chosen: str | None, n_images: int) -> list[str]:
    """A table of layers as lines of text, with the chosen one marked.

    Args:
        rows: The layers.
        chosen: The full name of the layer that the configuration has, or None.
        n_images: How many images the data set has, for the size of flattened vectors on disk.
    """
    table: list[tuple[str, ...]] = [
        ("", "no.", "layer", "kind", "output", "mean", "flatten", "flattened set", "varies in", "same label")
    ]
    for row in rows:
        same = "" if row.neighbor_accuracy is None else f"{100 * row.neighbor_accuracy:.1f} %"
        shape = " x ".join(map(str, row.shape)) or "1"
        size = cache.format_size(4 * row.n_flattened * n_images)
        numbers = (str(row.n_pooled), str(row.n_flattened), size, f"{row.effective_dimension:.1f}", same)
        place = "" if row.index is None else str(row.index)
        table.append(("*" if row.name == chosen else "", place, row.name, row.kind, shape, *numbers))
    if all(row.index is None for row in rows):
        table = [(mark, *others) for mark, _, *others in table]
    return [
        *_aligned(table),
        "",
        'mean, flatten: numbers an image with pool="mean" and pool="flatten", and the size of the latter for all.',
        "varies in: directions that the mean vectors really vary in (participation ratio).",
        *(
            ["same label: images whose most alike other image (cosine of the mean vectors) has the same label."]
            if any(row.neighbor_accuracy is not None for row in rows)
            else []
        ),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, columns under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
