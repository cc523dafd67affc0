"""YOLOv5 of this toolkit beside ultralytics' own trainer and validator: the same data, weights and settings.

    TOOLKIT_DATA=... python benchmarks/yolov5_equivalence.py --imgsz 320 --epochs 30 --seeds 0 1 2

Training: for each seed both start from the same initial weights and train with ultralytics' default settings and
`optimizer=SGD`; losses and scores of each epoch are kept. Their loaders draw other random numbers, so the runs differ
as two runs of one of them do.

Same batches: ultralytics' own trainer and the module on the same few batches, again and again; the largest difference
of the weights, the averages, and the losses of the last epoch in training and validation (of which theirs are rounded).

Evaluation: the last weights by both evaluators, on the very same detections and each with its own loop. The rule by
which the area under the curve is taken differs, so ultralytics' matches are also put under COCO's rule.

ultralytics reads a copy of the data, as it writes into the folder it reads.
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import itertools
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
from torch.utils.data import DataLoader
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
        self.times = {"seconds": time.perf_counter() - self.start, "seconds validating": self.validating}

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        """Keep the epoch before, once its means are there."""
        if trainer.current_epoch > len(self.rows):
            self._keep(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last epoch."""
        self._keep(trainer)

    def _keep(self, trainer: L.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({**metrics, **self.times})


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
        data = copy_of_data(options.data, Path(folder) / "data")
        same = None if options.without_theirs else same_batches(options, data, Path(folder) / "same")
        print(same)
        for seed in options.seeds:
            model, datamodule, rows, initial = train_own(options, seed)
            run = {"seed": seed, "toolkit": rows}
            if not options.without_theirs:
                run["ultralytics"] = train_theirs(options, seed, data, initial, Path(folder) / f"run{seed}")
            training.append(run)
            evaluation.append({"seed": seed, **evaluate(options, model, datamodule, data, Path(folder))})
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
            "same batches": same,
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
    trainer_for(options, callbacks=[epochs], max_epochs=options.epochs).fit(model, datamodule=datamodule)
    return model, datamodule, epochs.rows, initial


def train_theirs(options: Any, seed: int, data: Path, initial: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """Train with ultralytics from the same weights; what each epoch gave, by the names that the toolkit uses."""
    starts: list[float] = []
    ends: list[float] = []
    trainer = their_trainer(options, data, initial, folder, seed=seed, epochs=options.epochs)
    trainer.add_callback("on_train_epoch_start", lambda trainer: starts.append(time.perf_counter()))
    trainer.add_callback("on_fit_epoch_end", lambda trainer: ends.append(time.perf_counter()))
    trainer.train()
    rows = their_rows(trainer)[: options.epochs]
    return [{**row, "seconds": end - start} for row, start, end in zip(rows, starts, ends, strict=False)]


def same_batches(options: Any, data: Path, folder: Path, n_batches: int = 6, epochs: int = 3) -> dict[str, Any]:
    """Both trainers on the same batches, three of which are added up for a step after the first epoch."""
    L.seed_everything(0)
    datamodule = YOLODataModule(options.data, options.imgsz, options.batch_size, num_workers=0)
    datamodule.setup("fit")
    batches = list(itertools.islice(datamodule.train_dataloader(), n_batches))
    loader = functools.partial(
        DataLoader,
        range(len(batches) * options.batch_size),
        batch_size=options.batch_size,
        collate_fn=lambda places: copy.deepcopy(batches[places[0] // options.batch_size]),
    )
    datamodule.train_dataloader = loader  # type: ignore[method-assign]
    settings = {"nominal_batch_size": 3 * options.batch_size, "warmup_epochs": 1.0}
    model = YOLOv5(options.network, datamodule.num_classes, options.weights, **settings)
    initial = {name: value.clone() for name, value in model.network.state_dict().items()}
    run = trainer_for(options, max_epochs=epochs)
    run.fit(model, datamodule=datamodule)
    theirs = their_trainer(
        options, data, initial, folder, loader, epochs=epochs, nbs=3 * options.batch_size, warmup_epochs=1.0
    )
    theirs.train()
    last, average = their_rows(theirs)[epochs - 1], model._average
    assert average is not None
    return {
        "batches": n_batches,
        "epochs": epochs,
        "steps": [run.global_step, theirs.ema.updates],
        "weights": difference(average.values, theirs.model.state_dict()),
        "averaged weights": difference(model.network.state_dict(), theirs.ema.ema.state_dict()),
        "losses": max(abs(last[name] - float(run.callback_metrics[name])) for name in last if "loss" in name),
    }


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference between two state dicts."""
    return max(float((value.float() - second[name].cpu().float()).abs().max()) for name, value in first.items())


def trainer_for(options: Any, **settings: Any) -> L.Trainer:
    """Lightning's trainer with nothing but what is measured."""
    return L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def their_trainer(
    options: Any, data: Path, initial: dict[str, Any], folder: Path, loader: Any = None, **settings: Any
) -> DetectionTrainer:
    """The trainer of ultralytics, starting from some weights, maybe with a training loader that is given."""

    class Trainer(DetectionTrainer):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            model = DetectionModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=False)
            model.load_state_dict(initial)
            return model

        def get_dataloader(self, path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
            own = super().get_dataloader(path, batch_size, rank, mode)
            if mode != "train" or loader is None:
                return own
            result = loader()
            result.reset = lambda: None  # which it calls when mosaic ends
            return result

    return Trainer(
        overrides={
            "model": options.network,
            "pretrained": False,
            "data": str(data),
            "imgsz": options.imgsz,
            "batch": options.batch_size,
            "optimizer": "SGD",
            "workers": 0,
            "device": "0" if options.device == "cuda" else "cpu",
            "amp": False,
            "plots": False,
            "verbose": False,
            "project": str(folder.parent),
            "name": folder.name,
            **settings,
        }
    )


def their_rows(trainer: DetectionTrainer) -> list[dict[str, float]]:
    """What each epoch gave, by the names that the toolkit uses."""
    with (Path(trainer.save_dir) / "results.csv").open() as file:
        rows = [{name.strip(): float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    losses = [f"{stage}/{name}" for stage in ("train", "val") for name in LOSSES]
    scores = {f"val/{name}": theirs for name, theirs in SCORES.items()}
    return [
        {name: row[theirs] for name, theirs in {**dict(zip(losses, losses, strict=True)), **scores}.items()}
        for row in rows
    ]


def evaluate(options: Any, model: YOLOv5, datamodule: YOLODataModule, data: Path, folder: Path) -> dict[str, Any]:
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

    [loop] = trainer_for(options).validate(model, datamodule=datamodule, verbose=False)
    yolo = ultralytics.YOLO(model.export(folder / "weights.pt"))
    their_loop = yolo.val(
        data=str(data),
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
