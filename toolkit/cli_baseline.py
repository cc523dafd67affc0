"""The command line's training runs: the baseline that features come from, the control, and what came of each."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import statistics
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden

from toolkit import cache
from toolkit.distributed import on_rank_zero
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.representations import FeatureExtractor, Reduced
from toolkit.selection import Selection

if TYPE_CHECKING:
    from toolkit.cli import ToolkitCLI

#: Trainer options that change nothing about the weights that come out.
_COSMETIC = (
    "logger",
    "callbacks",
    "default_root_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_checkpointing",
    "log_every_n_steps",
    "profiler",
)


@dataclass
class Run:
    """One training run and what came of it."""

    title: str
    n_images: int | None
    epoch_seconds: float | None
    score: dict[str, float]
    folder: str | None = None

    def row(self) -> tuple[str, ...]:
        """The run as a row of the summary's table."""
        seconds = "not measured" if self.epoch_seconds is None else f"{self.epoch_seconds:.2f}"
        score = ", ".join(f"{name} {value:.4f}" for name, value in self.score.items()) or "not measured"
        return self.title, "" if self.n_images is None else str(self.n_images), seconds, score


def by_class_path(class_path: str) -> Any:
    """A class by its dotted name, as in a config: the core does not depend on the callbacks and data modules."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def epoch_timer(trainer: L.Trainer) -> Any:
    """The trainer's epoch timer; added to it if it has none."""
    kind = by_class_path("toolkit.callbacks.EpochTimeMonitor")
    callbacks: list[Any] = cast("Any", trainer).callbacks
    found = next((callback for callback in callbacks if isinstance(callback, kind)), None)
    if found is None:
        found = kind()
        callbacks.insert(0, found)  # so that what other callbacks do after an epoch is not counted
    return found


def median_seconds(timer: Any) -> float | None:
    """How long an epoch took, or None if none was timed."""
    return statistics.median(timer.seconds) if timer.seconds else None


def run_folder(trainer: L.Trainer) -> str | None:
    """Where a run's files are; all ranks ask for it together."""
    return trainer.log_dir or trainer.default_root_dir


def score_of(trainer: L.Trainer, model: L.LightningModule, datamodule: Any) -> dict[str, float]:
    """The trained model's metrics on the test set, else on the validation set, else none."""
    for stage, run in (("test", trainer.test), ("validation", trainer.validate)):
        hook = {"test": "test_dataloader", "validation": "val_dataloader"}[stage]
        if is_overridden(f"{stage}_step", model) and _has_images(datamodule, stage, hook):
            results = run(model, datamodule=datamodule, verbose=False)
            return {name: float(value) for result in results for name, value in result.items()}
    return {}


def _has_images(datamodule: Any, stage: str, hook: str) -> bool:
    """Whether a data module that was trained with has images for a stage too: it may not have been given any."""
    if not is_overridden(hook, datamodule):
        return False
    datamodule.setup("validate" if stage == "validation" else stage)
    try:
        return bool(getattr(datamodule, hook)())
    except ValueError as error:
        rank_zero_info(f"No score on {stage} images: {error}")
        return False


def run_control(cli: ToolkitCLI, selection: Selection) -> Run:
    """The same training on a random subset of the same size."""
    config = copy.deepcopy(cli.config.data)
    balance = "label" if cli.config["control"] == "balanced" else None
    settings = {"n_images": len(selection.kept), "balance": balance, "seed": int(cli.config["seed_everything"])}
    config.init_args.selector = Namespace(class_path="toolkit.RandomSelector", init_args=Namespace(**settings))  # type: ignore[no-untyped-call]
    model, datamodule, trainer = cli.build("control", config, {})
    timer = epoch_timer(trainer)
    cli.seed()
    trainer.fit(model, datamodule=datamodule)
    score = score_of(trainer, model, datamodule)
    return Run(
        f"control ({cli.config['control']})", len(selection.kept), median_seconds(timer), score, run_folder(trainer)
    )


def extractor_of(datamodule: Any) -> FeatureExtractor | None:
    """The feature extractor of the data module's selector, if it has one, also where its vectors are reduced."""
    representation = getattr(getattr(datamodule, "selector", None), "representation", None)
    features = representation() if callable(representation) else None
    while isinstance(features, Reduced):
        features = features.representation
    return features if isinstance(features, FeatureExtractor) else None


def needs_baseline(datamodule: Any) -> bool:
    """Whether features are to come from a network that the configuration's baseline supplies."""
    extractor = extractor_of(datamodule)
    return extractor is not None and extractor.model is None


def carries_selection(ckpt_path: str) -> bool:
    """Whether a checkpoint holds the selection that it was trained on."""
    return stored_selection(ckpt_path) is not None


def stored_selection(ckpt_path: str) -> Mapping[str, Any] | None:
    """The selection in a checkpoint, as it was written, or None."""
    if not Path(ckpt_path).is_file():
        return None
    content = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
    found = (value["selection"] for value in content.values() if isinstance(value, Mapping) and "selection" in value)
    return next(found, None)


def supply_baseline(cli: ToolkitCLI, datamodule: Any) -> Run:
    """Give the feature extractor its model and weights: from the checkpoint, from an earlier run, or trained now."""
    extractor = extractor_of(datamodule)
    assert extractor is not None
    baseline = cli.config_init["baseline"]
    extractor.model = baseline.model if baseline.model is not None else cli.model
    if baseline.checkpoint is not None and extractor.checkpoint is not None:
        sys.exit("error: `baseline.checkpoint` must not be given where the features have a `checkpoint` of their own.")
    given = baseline.checkpoint if baseline.checkpoint is not None else extractor.checkpoint
    if given is not None:
        extractor.checkpoint = given
        if not Path(given).expanduser().is_file():
            sys.exit(f"error: `baseline.checkpoint` must be an existing file, got {str(given)!r}.")
        return Run("baseline (given)", None, None, {}, str(given))
    datamodule.prepare_data()
    datamodule.setup("fit")
    config = cli.plain_config()
    trainer_options = {name: value for name, value in config["trainer"].items() if name not in _COSMETIC}
    key = settings_hash(
        {
            "model": config["baseline"]["model"] or config["model"],
            "data": config["data"]["init_args"]["datamodule"],
            "trainer": {**trainer_options, **config["baseline"]["trainer"]},
            "seed": config["seed_everything"],
            "optimizer": [config.get("optimizer"), config.get("lr_scheduler")],
            "images": dataset_fingerprint(datamodule.datamodule.train_dataloader().dataset),
        }
    )
    folder = on_rank_zero(lambda: cache.writable_folder("baselines", key[:32], getattr(datamodule, "cache_dir", None)))
    weights, facts = folder / "baseline.ckpt", folder / "baseline.json"
    found = on_rank_zero(lambda: _read_baseline(weights, facts))
    if found is not None:
        extractor.checkpoint = str(weights)
        return found
    rank_zero_info(f"No baseline yet: training it on the full set first. It is kept in {folder}.")
    model, inner, trainer = cli.build("baseline", cli.config.data.init_args.datamodule, cli.config.baseline.trainer)
    timer = epoch_timer(trainer)
    if baseline.model is not None:
        model = baseline.model
        cli.add_optimizer(model)
    cli.seed()
    trainer.fit(model, datamodule=inner)
    run = Run("baseline (full set)", 0, median_seconds(timer), score_of(trainer, model, inner), str(weights))
    run.n_images = len(inner.train_dataloader().dataset)
    # Another process may be training the same baseline: each writes a file of its own, and the last one stays.
    own = folder / f"unfinished-{on_rank_zero(os.getpid)}"
    trainer.save_checkpoint(own.with_suffix(".ckpt"), weights_only=True)

    def keep() -> None:
        checksum = hashlib.sha256(own.with_suffix(".ckpt").read_bytes()).hexdigest()
        own.with_suffix(".json").write_text(json.dumps({"run": run.__dict__, "sha256": checksum}))
        own.with_suffix(".ckpt").replace(weights)
        own.with_suffix(".json").replace(facts)

    on_rank_zero(keep)
    extractor.checkpoint = str(weights)
    return run


def _read_baseline(weights: Path, facts: Path) -> Run | None:
    """What is known of a baseline that was trained before, if its file is still the one that was written."""
    if not (weights.is_file() and facts.is_file()):
        return None
    try:
        written = json.loads(facts.read_text())
        if hashlib.sha256(weights.read_bytes()).hexdigest() == written["sha256"]:
            return Run(**written["run"])
        problem = "its checksum is another"
    except (ValueError, KeyError, TypeError) as error:
        problem = str(error)
    warnings.warn(
        f"The baseline in {weights.parent} was cut short or altered ({problem}); it is trained anew.", stacklevel=3
    )
    return None
