"""YOLOv5 of this toolkit beside ultralytics' own trainer and validator: the same data, weights and settings.

    TOOLKIT_DATA=... python benchmarks/yolov5_equivalence.py --imgsz 320 --epochs 30 --seeds 0 1 2

Training: for each seed both start from the same initial weights and train with ultralytics' default settings and
`optimizer=SGD`; losses and scores of each epoch are kept. Their loaders draw other random numbers, so the runs differ
as two runs of one of them do; from the same batches both give the same weights (tests/models/test_yolo.py).

Evaluation: the last weights by both evaluators, on the very same detections and each with its own loop. The rule by
which the area under the curve is taken differs, so ultralytics' matches are also put under COCO's rule.

ultralytics reads a copy of the data, as it writes into the folder it reads.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())  # its settings, which are the user's own

import lightning.pytorch as L
import numpy as np
import numpy.typing as npt
import torch
import ultralytics
import yaml
from common import versions, write_results
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import DetectionModel

import toolkit.models.yolo as module
from toolkit.datamodules import YOLODataModule
from toolkit.detection.average_precision import average_precision
from toolkit.models import YOLOv5

SCORES = {"mAP50": "metrics/mAP50(B)", "mAP50-95": "metrics/mAP50-95(B)"}
LOSSES = ("box_loss", "cls_loss", "dfl_loss")


class Epochs(L.Callback):
    """Losses, scores and times of each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.validating = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.start, self.validating = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the validation's clock."""
        self.start_of_validation = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the validation's clock."""
        self.validating = time.perf_counter() - self.start_of_validation

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.start

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        """Keep the epoch before, once its means are there."""
        if trainer.current_epoch > len(self.rows):
            self._keep(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last epoch."""
        self._keep(trainer)

    def _keep(self, trainer: L.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({**metrics, "seconds": self.seconds, "seconds validating": self.validating})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("TOOLKIT_DATA", "."))
    parser.add_argument("--data", type=Path, default=root / "bccd" / "bccd.yaml")
    parser.add_argument("--weights", type=Path, default=root / "weights" / "yolov5n_backbone_neck.pt")
    parser.add_argument("--network", default="yolov5n.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--without_theirs", action="store_true", help="only evaluate, do not train with ultralytics")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "yolov5_equivalence.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    training, evaluation = [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_data(options.data, Path(folder) / "data")
        for seed in options.seeds:
            model, datamodule, rows, initial = train_own(options, seed)
            run = {"seed": seed, "toolkit": rows}
            if not options.without_theirs:
                run["ultralytics"] = train_theirs(options, seed, copy, initial, Path(folder) / f"run{seed}")
            training.append(run)
            evaluation.append({"seed": seed, **evaluate(options, model, datamodule, copy, Path(folder))})
            print(evaluation[-1])
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    settings |= {"data": options.data.name, "weights": options.weights.name, "output": options.output.name}
    write_results(
        options.output,
        {
            "command": "python benchmarks/yolov5_equivalence.py " + " ".join(sys.argv[1:]),
            "packages": versions("ultralytics", "lightning", "torchmetrics", "faster-coco-eval"),
            "threads": torch.get_num_threads(),
            "settings": settings,
            "final": [final(run) for run in training],
            "evaluation": evaluation,
            "training": training,
        },
    )


def copy_of_data(data: Path, folder: Path) -> Path:
    """A copy of the data set whose `data.yaml` names its own folder."""
    shutil.copytree(data.parent, folder)
    content = yaml.safe_load((folder / data.name).read_text())
    (folder / data.name).write_text(yaml.safe_dump({**content, "path": str(folder)}))
    return folder / data.name


def train_own(options: Any, seed: int) -> tuple[YOLOv5, YOLODataModule, list[dict[str, float]], dict[str, Any]]:
    """Train with Lightning; the module, its data, what each epoch gave, and the weights that it started with."""
    L.seed_everything(seed)
    datamodule = YOLODataModule(options.data, options.imgsz, options.batch_size, num_workers=0)
    model = YOLOv5(options.network, datamodule.num_classes, options.weights)
    initial = {name: value.clone() for name, value in model.network.state_dict().items()}
    epochs = Epochs()
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        callbacks=[epochs],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=datamodule)
    return model, datamodule, epochs.rows, initial


def train_theirs(options: Any, seed: int, data: Path, initial: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """Train with ultralytics from the same weights; what each epoch gave, by the names that the toolkit uses."""

    class Trainer(DetectionTrainer):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            model = DetectionModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=False)
            model.load_state_dict(initial)
            return model

    trainer = Trainer(
        overrides={
            "model": options.network,
            "pretrained": False,
            "data": str(data),
            "imgsz": options.imgsz,
            "batch": options.batch_size,
            "epochs": options.epochs,
            "optimizer": "SGD",
            "seed": seed,
            "workers": 0,
            "device": "0" if options.device == "cuda" else "cpu",
            "amp": False,
            "plots": False,
            "verbose": False,
            "project": str(folder.parent),
            "name": folder.name,
        }
    )
    starts: list[float] = []
    ends: list[float] = []
    trainer.add_callback("on_train_epoch_start", lambda trainer: starts.append(time.perf_counter()))
    trainer.add_callback("on_fit_epoch_end", lambda trainer: ends.append(time.perf_counter()))
    trainer.train()
    with (Path(trainer.save_dir) / "results.csv").open() as file:
        rows = [{name.strip(): float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    result = []
    for row, start, end in zip(rows[: options.epochs], starts, ends, strict=False):
        found = {f"{stage}/{name}": row[f"{stage}/{name}"] for stage in ("train", "val") for name in LOSSES}
        found |= {f"val/{name}": row[theirs] for name, theirs in SCORES.items()}
        result.append({**found, "seconds": end - start})
    return result


def evaluate(options: Any, model: YOLOv5, datamodule: YOLODataModule, copy: Path, folder: Path) -> dict[str, Any]:
    """The same weights under both evaluators."""
    device = torch.device(options.device)
    model.to(device).eval()
    validator = DetectionValidator(args={"plots": False, "mode": "val", "max_det": model.max_det}, save_dir=folder)
    validator.device, validator.data, validator.dataloader = torch.device("cpu"), {"val": ""}, None
    validator.training = True
    model.network.names = dict(enumerate(datamodule.names))
    validator.init_metrics(model.network)
    datamodule.setup("validate")
    found, true = [], []
    with torch.no_grad():
        for batch in datamodule.val_dataloader():
            images = datamodule.on_after_batch_transfer(batch, 0)["img"].to(device)
            rows = [detections.cpu() for detections in model._suppressed(model(images), multi_label=True)]
            found += [module._as_detections(detections) for detections in rows]
            true += module._targets_of(batch)
            predictions = [{"bboxes": r[:, :4], "conf": r[:, 4], "cls": r[:, 5], "extra": r[:, 6:]} for r in rows]
            validator.update_metrics(predictions, batch)
    start = time.perf_counter()
    own = average_precision(found, true, model.num_classes, model.max_det)
    seconds = time.perf_counter() - start
    stats = {name: np.concatenate(values) for name, values in validator.metrics.stats.items() if name != "im_name"}
    start = time.perf_counter()
    theirs = validator.get_stats()
    their_seconds = time.perf_counter() - start
    by_coco = coco_rule(stats["tp"], stats["conf"], stats["pred_cls"], stats["target_cls"])

    trainer = L.Trainer(accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, logger=False)
    [loop] = trainer.validate(model, datamodule=datamodule, verbose=False)
    yolo = ultralytics.YOLO(model.export(folder / "weights.pt"))
    their_loop = yolo.val(
        data=str(copy),
        imgsz=options.imgsz,
        batch=2 * options.batch_size,
        max_det=model.max_det,
        device="0" if options.device == "cuda" else "cpu",
        workers=0,
        plots=False,
        verbose=False,
        project=str(folder),
    ).box
    return {
        "images": len(found),
        "boxes": int(sum(len(target["labels"]) for target in true)),
        "detections": int(sum(len(detections["labels"]) for detections in found)),
        "same detections": {
            "toolkit": {"mAP50": own.map50, "mAP50-95": own.map50_95, "seconds": seconds},
            "ultralytics": {name: float(theirs[key]) for name, key in SCORES.items()} | {"seconds": their_seconds},
            "matches of ultralytics under COCO's rule": {
                "mAP50": float(by_coco[:, 0].mean()),
                "mAP50-95": float(by_coco.mean()),
            },
        },
        "own loops": {
            "toolkit": {name: loop[f"val/{name}"] for name in SCORES},
            "ultralytics": {"mAP50": float(their_loop.map50), "mAP50-95": float(their_loop.map)},
        },
    }


def coco_rule(
    hits: npt.NDArray[Any], confidence: npt.NDArray[Any], found: npt.NDArray[Any], true: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """AP of each class and threshold from ultralytics' matches (n, 10), by COCO's rule instead of the trapezoids."""
    recalls, result = np.linspace(0, 1, 101), []
    for label in np.unique(true):
        chosen = found == label
        order = np.argsort(-confidence[chosen], kind="stable")
        right = hits[chosen][order].cumsum(0)
        precision = right / np.arange(1, len(right) + 1)[:, None]
        best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
        row = []
        for column in range(hits.shape[1]):
            places = np.searchsorted(right[:, column] / (true == label).sum(), recalls, side="left")
            row.append(np.append(best[:, column], 0.0)[np.minimum(places, len(best))].mean())
        result.append(row)
    return np.asarray(result)


def final(run: dict[str, Any]) -> dict[str, Any]:
    """What the last epoch gave, the best scores, and the median time of an epoch."""
    result: dict[str, Any] = {"seed": run["seed"]}
    for name in ("toolkit", "ultralytics"):
        if name in run:
            rows = run[name]
            last = {key: value for key, value in rows[-1].items() if "AP/" not in key and "seconds" not in key}
            best = max(row["val/mAP50-95"] for row in rows)
            seconds = {key: float(np.median([row[key] for row in rows])) for key in rows[-1] if "seconds" in key}
            result[name] = {**last, "best val/mAP50-95": best, **seconds}
    return result


if __name__ == "__main__":
    main()
