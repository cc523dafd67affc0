"""Images per second of YOLODataModule's training loader against ultralytics' own, in the same run.

    TOOLKIT_DATA=... python benchmarks/yolo_loading.py --imgsz 640 --workers 0 2 --copies 1 5 --repeats 5

Both read the training images of `bccd`, each several times over (`--copies`) as data sets are larger, with the same
augmentation (mosaic and all), batches and worker processes;
ultralytics reads a copy, as it writes into the folder it reads. The loaders take turns, each with several epochs one
after the other; the first epoch of a turn is not counted: processes start in it, and ultralytics' go on preparing
batches of an endless epoch while it is the others' turn. That they do so from epoch to epoch too is an advantage which
the shorter epochs show.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, versions, write_results

from toolkit.datamodules import PrunedDataModule, YOLODataModule
from toolkit.detection import read_data_yaml
from toolkit.detection.ultralytics_parts import DEFAULT_CFG, build_dataloader, build_yolo_dataset, get_cfg
from toolkit.selection import RandomSelector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TOOLKIT_DATA", ".")) / "bccd" / "bccd.yaml")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "yolo_loading.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for copies in options.copies:
            copied = several(options.data, Path(folder) / str(copies), copies)
            for workers in options.workers:
                rows.append({"copies": copies, **compare(options, copied, workers)})
                print(rows[-1])
    write_results(
        options.output,
        {"imgsz": options.imgsz, "batch_size": options.batch_size, "rows": rows, **versions("ultralytics")},
    )
    print(machine())


def several(data: Path, folder: Path, copies: int) -> Path:
    """A copy of a data set with each training image in it several times."""
    shutil.copytree(data.parent, folder)
    for kind in ("images", "labels"):
        for file in [*(folder / kind / "train").iterdir()]:
            for number in range(1, copies):
                shutil.copy(file, file.with_stem(f"{file.stem}_{number}"))
    return folder / data.name


def compare(options: Any, copy: Path, workers: int) -> dict[str, Any]:
    """Median images per second of the three loaders."""
    data = read_data_yaml(copy)
    settings = get_cfg(DEFAULT_CFG, {"task": "detect", "imgsz": options.imgsz, "batch": options.batch_size})
    theirs = build_yolo_dataset(
        settings,
        [str(source) for source in data.sources["train"]],
        options.batch_size,
        {"names": dict(enumerate(data.names)), "nc": len(data.names), "channels": 3},
        mode="train",
    )
    own = YOLODataModule(copy, options.imgsz, options.batch_size, num_workers=workers)
    pruned = PrunedDataModule(
        YOLODataModule(copy, options.imgsz, options.batch_size, num_workers=workers), RandomSelector(0.9)
    )
    for datamodule in (own, pruned):
        datamodule.setup("fit")
    loaders = {
        "ultralytics": build_dataloader(theirs, options.batch_size, workers, shuffle=True, device="cpu"),
        "toolkit": own.train_dataloader(),
        "toolkit, pruned to 90 %": pruned.train_dataloader(),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(options.repeats):
        for name, loader in loaders.items():
            start, count = 0.0, 0
            for epoch in range(options.epochs + 1):
                if epoch == 1:
                    start, count = time.perf_counter(), 0
                for batch in loader:
                    count += len(batch["img"])
            rates[name].append(count / (time.perf_counter() - start))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "workers": workers,
        "images": len(own.train_dataset.images),
        "images_per_second": medians,
        "ratio_to_ultralytics": {name: rate / medians["ultralytics"] for name, rate in medians.items()},
        "all": rates,
    }


if __name__ == "__main__":
    main()
