"""What the processes of a comparison do: choose images, and train on them."""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
import os
import platform
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Subset

import toolkit
from toolkit.cli_baseline import by_class_path, epoch_timer, extractor_of
from toolkit.cli_compare_methods import CompareCLI, CompareConfig, instantiated
from toolkit.comparison.energy import EnergyMeter
from toolkit.comparison.plan import FULL, Run
from toolkit.comparison.storage import DONE, FAILED
from toolkit.fingerprint import settings_hash
from toolkit.processors import n_processors
from toolkit.representations.base import image_key
from toolkit.selection import ScoreSelector, Selection, Selector
from toolkit.selection.recut import Cut
from toolkit.selection.result import RANDOM as _GONE
from toolkit.validation import invalid

#: Images that a selector is tried on, and steps that are trained, before anything is timed.
_N_IMAGES_BEFORE, _N_STEPS_BEFORE = 256, 3
#: What this process is warm for.
_warm: set[str] = set()


@dataclass(frozen=True)
class Task:
    """A run with all that a process of its own needs to do it."""

    run: Run
    key: str
    full_key: str
    choice_key: str
    like_key: str | None
    entry: dict[str, Any] | None
    output: Path
    config: str
    n_jobs: int
    gpus: int
    retry_failed: bool
    collects_scores: bool

    @property
    def baseline(self) -> Path:
        """The folder of the full set's run of this seed: its weights, and scores of its images."""
        return self.output / "baselines" / self.full_key

    @property
    def choice(self) -> Path:
        """The file of the images that this run trains on."""
        return self.output / "choices" / f"{self.choice_key}.npz"

    @property
    def is_dynamic(self) -> bool:
        """Whether images are chosen while training."""
        kind = None if self.entry is None else by_class_path(self.entry["class_path"])
        return kind is not None and not callable(getattr(kind, "select", None))


@dataclass(frozen=True)
class _Choice:
    """The images that a selector kept, and what that took."""

    kept: Any
    seconds: float
    joules: float | None
    needs_baseline: bool
    notes: str = ""
    error: str = ""

    def save(self, path: Path) -> None:
        """Write it so that under its name there is either all of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez_compressed(
            own,
            kept=self.kept,
            seconds=self.seconds,
            joules=math.nan if self.joules is None else self.joules,
            needs_baseline=self.needs_baseline,
            notes=self.notes,
            error=self.error,
        )
        own.replace(path)

    @classmethod
    def load(cls, path: Path) -> _Choice:
        """Read it back."""
        with np.load(path, allow_pickle=False) as file:
            joules = float(file["joules"])
            return cls(
                file["kept"],
                float(file["seconds"]),
                None if math.isnan(joules) else joules,
                bool(file["needs_baseline"]),
                str(file["notes"]),
                str(file["error"]),
            )


def choose_all(tasks: list[Task]) -> None:
    """Make the choices of one seed that are not made yet; features are extracted once for all of them."""
    with _place(tasks[0]) as gpu:
        # Those that others are to be as large as come first.
        for task in sorted(tasks, key=lambda task: task.like_key is not None):
            if task.is_dynamic or (
                task.choice.is_file() and not (task.retry_failed and _Choice.load(task.choice).error)
            ):
                continue
            try:
                with quiet():
                    choice = _choose(task, gpu)
            except OSError:
                raise
            except Exception as error:
                choice = _Choice(np.zeros(0, bool), 0.0, None, False, error=_reason(error))
            choice.save(task.choice)


def _choose(task: Task, gpu: int | None) -> _Choice:
    """Choose as a user would, and time it, with the extraction of features that are found again counted as well."""
    cli = _command(task.config)
    entry = cast("dict[str, Any]", task.entry)
    arguments = {**entry["init_args"]}
    if task.run.fraction is not None:
        arguments["keep_fraction"] = task.run.fraction
    if task.like_key is not None:
        like = _Choice.load(task.output / "choices" / f"{task.like_key}.npz")
        if like.error:
            raise RuntimeError(f"{task.run.like} kept nothing to be as large as: {like.error}")
        arguments["n_images"] = int(like.kept.sum())
    model, inner, options = cli.parts(task.run.seed)
    selector = instantiated({**entry, "init_args": arguments}, Selector)
    if "seed" not in arguments and hasattr(selector, "seed"):
        selector.seed = task.run.seed
    _silence(selector)
    datamodule = by_class_path("toolkit.datamodules.PrunedDataModule")(inner, selector, cache=False)
    needs_baseline = _supply(datamodule, task, cli)
    trainer = L.Trainer(**_options(options, gpu))
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.datamodule = datamodule  # type: ignore[attr-defined]
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("fit")
    _warm_up_choosing(datamodule.evaluation_view(), selector, task)
    with EnergyMeter(gpu) as meter, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", UserWarning)
        seconds_before = _feature_seconds(datamodule, task)
        start = time.perf_counter()
        selection = datamodule.selection
        seconds = time.perf_counter() - start
    notes = "; ".join(
        dict.fromkeys(str(warning.message) for warning in noted if issubclass(warning.category, UserWarning))
    )
    kept = np.zeros(len(selection), bool)
    kept[selection.kept] = True
    joules = meter.joules if _is_alone(task, gpu) else None
    return _Choice(kept, seconds_before + seconds, joules, needs_baseline, notes)


def _silence(selector: Any) -> None:
    """Without progress bars, which would write over that of the comparison."""
    representation = selector.representation() if callable(getattr(selector, "representation", None)) else None
    for part in (selector, representation):
        if part is not None and hasattr(part, "progress"):
            part.progress = False


def _is_cold(*what: Any) -> bool:
    """Whether this process did something for the first time, so that compiling and importing are still to come."""
    key = settings_hash({"what": list(what)})
    cold = key not in _warm
    _warm.add(key)
    return cold


def _warm_up_choosing(view: Any, selector: Any, task: Task) -> None:
    """Choose among a few images first, so that compiling and importing are not taken for choosing."""
    if not _is_cold("choosing", task.config, task.entry):
        return
    n_images = len(view.dataset)
    few = np.linspace(0, n_images - 1, min(n_images, _N_IMAGES_BEFORE)).astype(int).tolist()
    # What a selector refuses so few images for is no reason not to try it on all.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = copy.copy(view)
        part.dataset = Subset(view.dataset, few)
        selector.select(part)


def _warm_up_training(task: Task, gpu: int | None) -> None:
    """Train for a few steps first, so that a process' first run does not take longer than its others."""
    if not _is_cold("training", task.config, gpu):
        return
    # What goes wrong here goes wrong in the run too, which tells it.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inner, options = _command(task.config).parts(task.run.seed)
        few = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": _N_STEPS_BEFORE, "limit_val_batches": 0}
        L.Trainer(**_options({**options, **few, "callbacks": []}, gpu)).fit(model, datamodule=inner)


def _supply(datamodule: Any, task: Task, cli: CompareCLI) -> bool:
    """Give features their network and scores their folder, from the full set's run; tells whether that was needed."""
    extractor, selector = extractor_of(datamodule), datamodule.selector
    needs_features = extractor is not None and extractor.model is None
    needs_scores = isinstance(selector, ScoreSelector) and selector.scores is None
    if (needs_features or needs_scores) and not task.baseline.is_dir():
        raise RuntimeError("The full set's run of this seed failed, whose network was to be chosen by.")
    if extractor is not None and needs_features:
        extractor.model = cli.parts(task.run.seed)[0]
        extractor.checkpoint = task.baseline / "weights.ckpt"
        extractor.progress = False
    if needs_scores:
        selector.scores = task.baseline / "scores"
    return needs_features or needs_scores


def _feature_seconds(datamodule: Any, task: Task) -> float:
    """Bring the features into the cache; what that takes, or took when they were extracted first."""
    representation = datamodule.selector.representation() if hasattr(datamodule.selector, "representation") else None
    if representation is None or extractor_of(datamodule) is None:
        return 0.0
    view = datamodule.evaluation_view()
    key = settings_hash({"images": view.fingerprint(), "features": representation.fingerprint(), "seed": task.run.seed})
    path = task.output / "choices" / f"features-{key[:32]}.json"
    if path.is_file():
        return float(json.loads(path.read_text())["seconds"])
    start = time.perf_counter()
    representation.vectors(view)
    seconds = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": seconds}) + "\n")
    return seconds


def train(task: Task) -> dict[str, Any]:
    """Do a run; what came of it, or why it failed, as a row."""
    row = _described(task)
    start = time.perf_counter()
    with _place(task) as gpu, tempfile.TemporaryDirectory(dir=task.output, prefix=".run-") as folder:
        try:
            with quiet():
                _warm_up_training(task, gpu)
                row |= _trained(task, gpu, Path(folder))
        except Exception as error:
            row |= {"status": FAILED, "error": _reason(error)}
    return row | {"seconds_total": time.perf_counter() - start}


def killed(task: Task) -> dict[str, Any]:
    """The row of a run whose process did not live to make one."""
    why = "The process was killed, perhaps as memory ran out: try fewer runs at a time (`compare.n_jobs`)."
    return {**_described(task), "status": FAILED, "error": why}


def _described(task: Task) -> dict[str, Any]:
    """What is known of a run before it begins."""
    return {
        "key": task.key,
        "method": task.run.method,
        "fraction": task.run.fraction,
        "seed": task.run.seed,
        "budget": task.run.budget,
        "like": task.run.like,
        "status": DONE,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": toolkit.__version__,
    }


def _trained(task: Task, gpu: int | None, folder: Path) -> dict[str, Any]:
    cli = _command(task.config)
    settings, run = cli.settings, task.run
    choice = None
    if run.method != FULL and not task.is_dynamic:
        if not task.choice.is_file():
            raise RuntimeError("Choosing failed: its process was killed, perhaps as memory ran out.")
        choice = _Choice.load(task.choice)
        if choice.error:
            raise RuntimeError(f"Choosing failed: {choice.error}")
    model, inner, options = cli.parts(run.seed)
    inner.prepare_data()
    inner.setup("fit")
    loader: Any = cast("Any", inner).train_dataloader()
    n_train, full_length = len(loader.dataset), len(loader)
    datamodule: Any = inner
    if choice is not None:
        datamodule = by_class_path("toolkit.datamodules.PrunedDataModule")(inner, _selection(choice.kept), cache=False)
    elif task.is_dynamic:
        datamodule = _with_dynamic(task, inner, options)
    if run.fraction is None and task.is_dynamic:
        # Epochs get shorter and longer on the way: a budget of epochs counts them themselves.
        options |= run_length(options, model, run.budget, full_length, full_length, in_epochs=run.budget == "epochs")
    else:
        datamodule.setup("fit")
        options |= run_length(options, model, run.budget, len(datamodule.train_dataloader()), full_length)
    best = ModelCheckpoint(
        folder / "checkpoints", "{step}", monitor=settings.monitor, mode=settings.mode, save_weights_only=True
    )
    watch = _Watch(n_train)
    options["callbacks"] += [watch, best]
    if run.method == FULL and task.collects_scores:
        options["callbacks"].append(by_class_path("toolkit.callbacks.TrainingScoreWriter")(folder / "scores"))
    options["default_root_dir"] = str(folder)
    trainer = L.Trainer(**_options(options, gpu, checkpoints=True))
    timer = epoch_timer(trainer)
    with EnergyMeter(gpu) as meter:
        trainer.fit(model, datamodule=datamodule)
    seconds, joules = sum(timer.seconds), meter.joules if _is_alone(task, gpu) else None
    row = _scored(trainer, model, datamodule, best, settings)
    if run.method == FULL:
        _keep_baseline(trainer, model, task, folder)
    full = {} if choice is None or not choice.needs_baseline else json.loads((task.baseline / "facts.json").read_text())
    if choice is not None and joules is not None:
        joules = None if choice.joules is None else joules + choice.joules
    return row | {
        "n_images": n_train if choice is None else int(choice.kept.sum()),
        "n_train": n_train,
        "kept_fraction": watch.kept_fraction if choice is None else float(choice.kept.mean()),
        "steps": trainer.global_step,
        "images_seen": watch.n_images,
        "notes": None if choice is None else choice.notes or None,
        "seconds_baseline": full.get("seconds", 0.0),
        "seconds_choosing": 0.0 if choice is None else choice.seconds,
        "seconds_training": seconds,
        "joules": joules,
        "energy_source": "not told" if joules is None else meter.source,
        "device": _device_name(trainer),
    }


def _scored(
    trainer: L.Trainer, model: L.LightningModule, datamodule: Any, best: ModelCheckpoint, settings: CompareConfig
) -> dict[str, Any]:
    """The scores of the last network and of the one that was best on the validation images."""
    last = torch.device("cpu")
    weights = {name: value.detach().to(last, copy=True) for name, value in model.state_dict().items()}
    validated = _metric(trainer.validate(model, datamodule=datamodule, verbose=False), settings.monitor, "monitor")
    tested = _metric(trainer.test(model, datamodule=datamodule, verbose=False), settings.score, "score")
    row: dict[str, Any] = {
        "val_last": validated,
        "test_last": tested,
        "val_best": validated,
        "test_best": tested,
        "best_step": trainer.global_step,
    }
    found = None if best.best_model_score is None else float(best.best_model_score)
    is_better = found is not None and (found > validated if settings.mode == "max" else found < validated)
    if is_better:
        stored = torch.load(best.best_model_path, map_location=last, weights_only=True)
        model.load_state_dict(stored["state_dict"])
        row["val_best"] = found
        row["test_best"] = _metric(trainer.test(model, datamodule=datamodule, verbose=False), settings.score, "score")
        row["best_step"] = int(stored["global_step"])
        model.load_state_dict(weights)
    return row


def _metric(results: Sequence[Mapping[str, Any]], name: str, argument: str) -> float:
    """A metric of an evaluation."""
    found = {key: float(value) for result in results for key, value in result.items()}
    if name not in found:
        raise invalid(argument, f"one of the logged {', '.join(found) or 'metrics, of which there are none'}", name)
    if not math.isfinite(found[name]):
        raise ValueError(f"`{name}` must be finite, got {found[name]}: the training diverged.")
    return found[name]


def _keep_baseline(trainer: L.Trainer, model: L.LightningModule, task: Task, folder: Path) -> None:
    """Put the weights and the scores of the full set's run where the selectors find them, all or nothing."""
    staged = folder / "baseline"
    staged.mkdir()
    torch.save({"state_dict": model.state_dict()}, staged / "weights.ckpt")
    seconds = sum(epoch_timer(trainer).seconds)
    (staged / "facts.json").write_text(json.dumps({"seconds": seconds}) + "\n")
    if (folder / "scores").is_dir():
        (folder / "scores").replace(staged / "scores")
    task.baseline.parent.mkdir(parents=True, exist_ok=True)
    if task.baseline.is_dir():
        shutil.rmtree(task.baseline)
    staged.replace(task.baseline)


def _with_dynamic(task: Task, inner: Any, options: dict[str, Any]) -> Any:
    """The data module of a dynamic baseline; a callback is added to the options instead."""
    entry = cast("dict[str, Any]", task.entry)
    arguments = {**entry["init_args"]}
    kind = by_class_path(entry["class_path"])
    if task.run.fraction is not None:
        arguments["keep_fraction"] = task.run.fraction
    if issubclass(kind, L.LightningDataModule):
        wrapped = kind(inner, **arguments)
        if "seed" not in arguments and hasattr(wrapped, "seed"):
            wrapped.seed = task.run.seed
        return wrapped
    options["callbacks"].append(instantiated({**entry, "init_args": arguments}, L.Callback))
    return inner


class _Watch(L.Callback):
    """Counts the images that a run goes through."""

    def __init__(self, n_train: int) -> None:
        self.n_train = n_train
        self.n_images = 0
        self._lengths: list[int] = []

    @property
    def kept_fraction(self) -> float | None:
        """The share of the images that an epoch has, on average."""
        return sum(self._lengths) / len(self._lengths) / self.n_train if self._lengths else None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note how many images the epoch is going to have."""
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        if sampler is not None:
            self._lengths.append(len(sampler))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        images: Any = batch.get(image_key(batch)) if isinstance(batch, Mapping) else batch
        first = images[0] if isinstance(images, (tuple, list)) else images
        self.n_images += len(first) if hasattr(first, "__len__") else 0


@functools.lru_cache(maxsize=2)
def _command(config: str) -> CompareCLI:
    """The command of a configuration, parsed once in a process."""
    with quiet():
        return CompareCLI([f"--config={config}"])


def _options(options: Mapping[str, Any], gpu: int | None, *, checkpoints: bool = False) -> dict[str, Any]:
    """Trainer options of a run: quiet, on one device, with everything that it writes in a folder that goes."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": checkpoints,
        "num_sanity_val_steps": 0,
    }
    places = {"accelerator": "cpu", "devices": 1} if gpu is None else {"accelerator": "gpu", "devices": [gpu]}
    return {**options, **quiet, **places}


def check_end(options: Mapping[str, Any]) -> None:
    """Refuse a training without an end."""
    if options.get("max_epochs") in {None, -1} and options.get("max_steps", -1) in {None, -1}:
        must = "given, or `trainer.max_steps`, so that training has an end"
        raise invalid("trainer.max_epochs", must, options.get("max_epochs"))


def run_length(
    options: Mapping[str, Any],
    model: L.LightningModule,
    budget: str,
    length: int,
    full_length: int,
    *,
    in_epochs: bool = False,
) -> dict[str, Any]:
    """Trainer options by which a run takes its share of the epochs, or as many steps, and is validated once an epoch.

    Args:
        options: Those of the full set's run.
        model: What is trained. One that steps its optimizer itself, which need not be once a batch, is given whole
            epochs.
        budget: `epochs` or `steps`.
        length: Batches in an epoch of this run.
        full_length: Batches in an epoch on all images.
        in_epochs: Whether epochs are to be counted in any case.
    """
    batches, full_batches = _limited(options, length), _limited(options, full_length)
    accumulate = int(options.get("accumulate_grad_batches", 1))
    full_steps = math.ceil(full_batches / accumulate)
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    validated = int(options.get("check_val_every_n_epoch") or 1)
    if not model.automatic_optimization:
        if epochs in {None, -1}:
            raise invalid("trainer.max_epochs", "given for a model that steps its optimizer itself", epochs)
        more = full_batches / batches if budget == "steps" else 1.0
        return {
            "max_epochs": max(1, round(int(cast("int", epochs)) * more)),
            "check_val_every_n_epoch": max(1, round(validated * more)),
        }
    limits = [] if epochs in {None, -1} else [int(cast("int", epochs)) * full_steps]
    total = min([*limits, *([] if steps in {None, -1} else [int(steps)])])
    if in_epochs:
        return {"max_epochs": max(1, round(total / full_steps)), "max_steps": -1}
    return {
        "max_epochs": -1,
        "max_steps": total if budget == "steps" else max(1, round(total * batches / full_batches)),
        "check_val_every_n_epoch": None,
        "val_check_interval": validated * (full_batches if budget == "steps" else batches),
    }


def _limited(options: Mapping[str, Any], length: int) -> int:
    """Batches of an epoch under the trainer's `limit_train_batches`."""
    limit = options.get("limit_train_batches")
    if limit is None:
        return length
    return max(1, int(length * limit) if isinstance(limit, float) else min(length, int(limit)))


def _selection(kept: Any) -> Selection:
    """A selection of some images, without what stands for the others."""
    kept = np.asarray(kept, bool)
    itself = np.where(kept, np.arange(len(kept)), -1)
    cut = Cut(kept, np.full(len(kept), -1), itself, np.where(kept, 0.0, np.nan).astype(np.float32))
    return Selection.from_cut(cut, _GONE, np.zeros(len(kept), bool))


def threads(n_jobs: int) -> int:
    """Threads for each of some runs at a time."""
    return max(1, n_processors() // n_jobs)


@contextmanager
def _place(task: Task) -> Iterator[int | None]:
    """The GPU that a run may use until it is done, None for the processors; with several runs, their threads shared."""
    if task.n_jobs > 1:
        torch.set_num_threads(threads(task.n_jobs))
    if task.gpus == 0:
        yield None
        return
    # As many places as runs at a time, so that one is always free; a lock ends with the process that has it.
    while True:
        for place in range(max(task.n_jobs, task.gpus)):
            lock = FileLock(task.output / f".place-{place}")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield place % task.gpus
            finally:
                lock.release()
            return
        time.sleep(0.1)


def _is_alone(task: Task, gpu: int | None) -> bool:
    """Whether a counter of the whole machine, or of a GPU, counts this run alone."""
    return task.n_jobs == 1 if gpu is None else task.n_jobs <= task.gpus


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says about every single run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning 2.6 under newer PyTorch
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _device_name(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} of {n_processors()} processors"


def _reason(error: Exception) -> str:
    """An error in a line, with the place that it comes from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]} ({Path(place.filename).name}, line {place.lineno})"
