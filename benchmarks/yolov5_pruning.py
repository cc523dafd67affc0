"""What YOLOv5n scores on blood cells after training on all images, on 80 % chosen by its features, on 80 % at random.

    TOOLKIT_DATA=... python benchmarks/yolov5_pruning.py --epochs 12 --imgsz 320 --seeds 0 1 2

For each seed: a full run from weights trained on COCO (backbone and neck); its pooled features choose 80 % of the
training images, once as the thesis does (half of those that go are outliers, half are like an image that stays), once
only those alike; and a random 80 %. All start from the same weights and take the same number of epochs, so smaller sets
take fewer steps. The last epoch's averaged weights are scored, on the test images; nothing is chosen by a score. Each
run is written as it ends, and a second call goes on where the first one stopped. A step follows every batch, as there
are few of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from common import machine, versions

from toolkit import FeatureExtractor, FeatureMapSelector, RandomSelector
from toolkit.datamodules import PrunedDataModule, YOLODataModule
from toolkit.models import YOLOv5

KEEP = 0.8
ARMS = ("full", "features, half outliers", "random", "features, similar only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(os.environ.get("TOOLKIT_DATA", "."))
    parser.add_argument("--data", type=Path, default=folder / "bccd" / "bccd.yaml")
    parser.add_argument("--weights", type=Path, default=folder / "weights" / "yolov5n_backbone_neck.pt")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--close_mosaic", type=int, default=2)
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "yolov5_pruning.json")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("epochs", "imgsz", "batch_size", "close_mosaic", "layer")} | {
        "keep_fraction": KEEP,
        "data": options.data.stem,
    }
    rows = _finished(options.output, settings)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            baseline = options.output.with_name(f"{options.output.stem}_baseline_{seed}.ckpt")
            left = [arm for arm in options.arms if (arm, seed) not in {(row["arm"], row["seed"]) for row in rows}]
            if any(arm.startswith("features") for arm in left) and not baseline.is_file():
                left = ["full", *(arm for arm in left if arm != "full")]  # whose weights the features come from
            for arm in left:
                row = run(options, arm, seed, baseline, Path(scratch))
                rows = [r for r in rows if (r["arm"], r["seed"]) != (arm, seed)] + [row]
                _write(options.output, settings, rows)
            baseline.unlink(missing_ok=True)
    for line in table(rows):
        print(line)


def run(options: Any, arm: str, seed: int, baseline: Path, scratch: Path) -> dict[str, Any]:
    """Train once and score the test images."""
    L.seed_everything(seed, workers=True, verbose=False)
    inner = YOLODataModule(
        options.data, options.imgsz, options.batch_size, num_workers=0, close_mosaic=options.close_mosaic
    )
    datamodule = PrunedDataModule(inner, _selector(options, arm, seed, baseline), cache=False)
    model = YOLOv5("yolov5n.yaml", inner.num_classes, options.weights, nominal_batch_size=options.batch_size)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        default_root_dir=scratch,
    )
    start = time.perf_counter()
    trainer.fit(model, datamodule=datamodule)
    seconds = time.perf_counter() - start
    if arm == "full":
        trainer.save_checkpoint(baseline, weights_only=True)
    found = trainer.test(model, datamodule=datamodule, verbose=False)[0]
    row = {
        "arm": arm,
        "seed": seed,
        "images": len(datamodule.selection.kept),
        "steps": trainer.global_step,
        "seconds_fit": round(seconds, 1),
        "seconds_choosing": datamodule.seconds_choosing,
        "boxes_kept": datamodule.selection.class_counts() if hasattr(datamodule.selection, "class_counts") else None,
        **{name: round(float(value), 5) for name, value in found.items()},
    }
    print(row, flush=True)
    return row


def _selector(options: Any, arm: str, seed: int, baseline: Path) -> Any:
    if arm == "full":
        return None
    if arm == "random":
        return RandomSelector(KEEP, seed=seed)
    model = YOLOv5("yolov5n.yaml", num_classes=None)
    features = FeatureExtractor(
        model, layer=options.layer, checkpoint=baseline, batch_size=32, cache=False, progress=False
    )
    share = 0.5 if arm == "features, half outliers" else 0.0
    return FeatureMapSelector(features, keep_fraction=KEEP, outlier_share=share)


def _finished(output: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier call with the same settings."""
    if not output.is_file():
        return []
    content = json.loads(output.read_text())
    return content["rows"] if content["settings"] == settings else []


def _write(output: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    content = {
        "machine": machine(),
        "versions": versions("torch", "lightning", "ultralytics", "torchmetrics", "faster-coco-eval"),
        "threads": torch.get_num_threads(),
        "settings": settings,
        "rows": rows,
        "table": table(rows),
    }
    output.write_text(json.dumps(content, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over the seeds, and the mean difference to the random subset of the same seed."""
    lines = []
    by_key = {(row["arm"], row["seed"]): row for row in rows}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        parts = [f"{arm:<24} {len(own)} seeds, {own[0]['images']} images"]
        for metric in ("test/mAP50", "test/mAP50-95", "test/score"):
            values = [row[metric] for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            paired = [
                row[metric] - by_key["random", row["seed"]][metric] for row in own if ("random", row["seed"]) in by_key
            ]
            difference = f", {statistics.mean(paired):+.4f} to random" if paired and arm != "random" else ""
            parts.append(f"{metric} {statistics.mean(values):.4f} +- {spread:.4f}{difference}")
        lines.append("; ".join(parts))
    return lines


if __name__ == "__main__":
    main()
