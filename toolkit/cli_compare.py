"""The command `toolkit.compare`: trains what a comparison consists of, stores what came of it, and writes the page."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as L
import numpy as np
import torch
from filelock import FileLock, Timeout
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from tqdm.auto import tqdm

import toolkit
import toolkit.selection
from toolkit.cli import ToolkitCLI
from toolkit.cli_baseline import _COSMETIC, by_class_path, epoch_timer, extractor_of
from toolkit.comparison.energy import EnergyMeter
from toolkit.comparison.page import write_page
from toolkit.comparison.pictures import plot_comparison
from toolkit.comparison.plan import BALANCED, BUDGETS, FULL, RANDOM, Plan, Run
from toolkit.comparison.published import Published
from toolkit.comparison.statistics import summarise_runs, verdict
from toolkit.comparison.storage import DONE, FAILED, BusyFolderError, Results
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.selection import ScoreSelector, Selection, Selector
from toolkit.validation import invalid

#: Arguments by which a selector is told how many images stay, by whatever rule.
_BUDGET_ARGUMENTS = ("keep_fraction", "n_images", "n_groups", "threshold", "eigengap", "min_similarity")
#: The selectors that every comparison has.
_BUILT_IN: dict[str, dict[str, Any]] = {
    RANDOM: {"class_path": "toolkit.RandomSelector", "init_args": {}},
    BALANCED: {"class_path": "toolkit.RandomSelector", "init_args": {"balance": "label"}},
}
#: Trainer options that change nothing about what is learned, and those that a comparison sets itself.
_IGNORED = {*_COSMETIC, "max_epochs", "max_steps", "devices", "num_sanity_val_steps"} - {"callbacks"}


@dataclass
class CompareConfig:
    """What is compared with what.

    Args:
        selectors: The selectors by the names that tables give them, each as `class_path` and `init_args`. One without
            a `keep_fraction` (or another budget) runs at every fraction; one that has it, such as `auto`, runs as it
            is, beside a random subset of the same size. Features without a model of their own come from the network
            that the full set's run of the same seed trained, scores without a folder from that run too.
        dynamic: Methods that choose while they train, likewise: callbacks, which are added to the trainer, or data
            modules, which are wrapped around the data. Those that take a `keep_fraction` run at every fraction.
        fractions: Shares of the training images that are kept, in (0, 1).
        seeds: One run of everything for each.
        budgets: How long a run on fewer images is trained: as many `epochs` as on all of them, as many `steps`, or both.
        monitor: The validation metric by which a run's best network is chosen.
        mode: Whether the best is the largest (`max`) or the smallest (`min`).
        score: The test metric that is compared.
        n_jobs: Runs at a time: one for each GPU, or a single one on processors, if None; -1 for as many as there are
            processors.
        retry_failed: Whether runs that failed are tried again.
        published: The papers' figures to show beside those measured: `cifar10` or `cifar100`.
        title: The page's title.
    """

    selectors: dict[str, dict[str, Any]] = field(default_factory=dict)
    dynamic: dict[str, dict[str, Any]] = field(default_factory=dict)
    fractions: list[float] = field(default_factory=lambda: [0.9, 0.7, 0.5, 0.3])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    budgets: list[str] = field(default_factory=lambda: list(BUDGETS))
    monitor: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"
    score: str = "test/accuracy"
    n_jobs: int | None = None
    retry_failed: bool = False
    published: str | None = None
    title: str | None = None


class CompareCLI(ToolkitCLI):
    """ToolkitCLI with a section `compare`, which builds one run after the other."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(args, command="compare")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the section `compare` and the folder."""
        parser.add_class_arguments(CompareConfig, "compare")
        parser.add_argument("--output", type=str, required=True, help="The folder to write results and page into.")

    @property
    def settings(self) -> CompareConfig:
        """The section `compare`, with the methods as they are configured, not made."""
        return CompareConfig(**self.plain_config()["compare"])

    def parts(self, seed: int) -> tuple[L.LightningModule, L.LightningDataModule, dict[str, Any]]:
        """A fresh model, the data module that is not pruned, and trainer options, everything seeded."""
        L.seed_everything(seed, workers=True, verbose=False)
        built = self.parser.instantiate_classes(self.config.clone())
        model, data, options = built["model"], built["data"], {**built["trainer"]}
        self.add_optimizer(model)
        options["callbacks"] = [*(options.get("callbacks") or [])]
        return model, getattr(data, "datamodule", data), options


def compare(args: Sequence[str] | None = None) -> Path:
    """Train on what every selector keeps, at every fraction and seed, and write a page of what that was worth.

    Every run that ends is a row of `runs.csv` and `runs.jsonl` in the folder, also one that fails; the same command
    goes on where it was stopped.

    Args:
        args: Command-line arguments; those of the process if None.

    Returns:
        The page.
    """
    cli = CompareCLI(args)
    output = Path(cli.config["output"])
    try:
        comparison = _Comparison(cli)
        with Results(output) as results:
            comparison.run(results)
    except (BusyFolderError, OSError, ValueError, TypeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"Stopped. What is done is in {output}; the same command goes on from there.")
    return output / "comparison.html"


class _Comparison:
    """A comparison on its way from the configuration to the page."""

    def __init__(self, cli: CompareCLI) -> None:
        self.settings = cli.settings
        self.output = Path(cli.config["output"]).absolute()
        self.config = cli.plain_config()
        self.config["output"] = str(self.output)
        self.title = self.settings.title or "Does pruning pay?"
        self.published = None if self.settings.published is None else Published.of(self.settings.published)
        selectors = {name: _checked(name, entry, "selectors") for name, entry in self.settings.selectors.items()}
        dynamic = {name: _checked(name, entry, "dynamic") for name, entry in self.settings.dynamic.items()}
        self.entries = {**selectors, **dynamic}
        own = {name for name, entry in selectors.items() if set(entry["init_args"]) & set(_BUDGET_ARGUMENTS)}
        own |= {name for name, entry in dynamic.items() if not _takes_fraction(entry)}
        self.plan = Plan(
            list(selectors),
            list(dynamic),
            self.settings.fractions,
            self.settings.seeds,
            self.settings.budgets,
            frozenset(own),
        )
        self.needs = _files_needed(selectors)
        self.n_jobs, self.gpus = _places(cli, self.settings.n_jobs)
        _, data, _ = cli.parts(self.settings.seeds[0])
        data.prepare_data()
        data.setup("fit")
        _check_data(data)
        self.images = dataset_fingerprint(cast("Any", data).train_dataloader().dataset)

    def run(self, results: Results) -> None:
        """Do what is missing, the full set's runs first, then the choices, then the runs on what was chosen."""
        runs = [(run, self.key(run)) for run in self.plan.runs()]
        known = {key: row for key, row in results.rows.items() if row["status"] == DONE or not self.settings.retry_failed}
        tasks = [self._task(run, key) for run, key in runs if not self._is_known(run, key, known)]
        if len(tasks) < len(runs):
            print(f"{len(runs) - len(tasks)} of {len(runs)} runs are in {self.output} already.")
        full = [task for task in tasks if task.run.method == FULL]
        rest = [task for task in tasks if task.run.method != FULL]
        bar = tqdm(total=len(tasks), unit="run", desc="comparison", disable=not tasks)
        try:
            with bar:
                self._add(results, full, bar)
                seeds = dict.fromkeys(task.run.seed for task in rest)
                by_seed = [[task for task in rest if task.run.seed == seed] for seed in seeds]
                for _ in self._in_parallel(_choose_all, by_seed):
                    pass
                self._add(results, rest, bar)
        finally:
            self.write({key: results.rows[key] for _, key in runs if key in results.rows})

    def write(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the page, the picture and the summary, and say where they are and what they say."""
        if not any(row["status"] == DONE for row in rows.values()):
            failed = next((row for row in rows.values()), None)
            print("No run is done yet." if failed is None else f"No run was done: {failed['error']}")
            return
        summaries = summarise_runs(rows.values())
        facts = {"monitor": self.settings.monitor, "score": self.settings.score, "images": self.images}
        page = write_page(
            self.output / "comparison.html",
            summaries,
            title=self.title,
            published=self.published,
            score_name=self.settings.score,
            config=self.config,
            device=", ".join(sorted({str(row["device"]) for row in rows.values() if row["device"]})),
        )
        picture = self.output / "comparison.png"
        plot_comparison(summaries, published=self.published, title=self.title).savefig(picture, dpi=120)
        text = json.dumps({**facts, "summaries": [asdict(summary) for summary in summaries]}, indent=1)
        (self.output / "summary.json").write_text(text + "\n")
        for budget in self.plan.budgets:
            print(f"\nAs many {budget} as on all images, network of the last step. {verdict(summaries, budget)}")
        n_failed = sum(row["status"] == FAILED for row in rows.values())
        if n_failed:
            print(f"\n{n_failed} runs failed; the page and the table say why.")
        print("\n".join(["", f"page: {page}", f"picture: {picture}", f"table: {self.output / 'runs.csv'}"]))

    def key(self, run: Run) -> str:
        """What a run's row is found by: a hash of all that decides what it learns."""
        trainer = {name: value for name, value in self.config["trainer"].items() if name not in _IGNORED}
        settings = {
            "model": self.config["model"],
            "data": self.config["data"],
            "trainer": trainer,
            "length": [self.config["trainer"][name] for name in ("max_epochs", "max_steps")],
            "optimizer": [self.config.get("optimizer"), self.config.get("lr_scheduler")],
            "metrics": [self.settings.monitor, self.settings.mode, self.settings.score],
            "images": self.images,
            "run": asdict(run),
            "entry": self.entries.get(run.method),
            "like": self.entries.get(run.like or ""),
        }
        return settings_hash(settings)[:32]

    def _task(self, run: Run, key: str) -> _Task:
        return _Task(
            run=run,
            key=key,
            full_key=self.key(Run(FULL, 1.0, run.seed)),
            choice_key=self.key(run.choice),
            like_key=None if run.like is None else self.key(Run(run.like, None, run.seed)),
            entry=self.entries.get(run.method) or _BUILT_IN.get(run.method),
            output=self.output,
            config=json.dumps(self.config, sort_keys=True),
            n_jobs=self.n_jobs,
            gpus=self.gpus,
            retry_failed=self.settings.retry_failed,
        )

    def _is_known(self, run: Run, key: str, known: Mapping[str, Mapping[str, Any]]) -> bool:
        if key not in known:
            return False
        folder = self.output / "baselines" / key
        return run.method != FULL or known[key]["status"] == FAILED or all((folder / n).exists() for n in self.needs)

    def _add(self, results: Results, tasks: Iterable[_Task], bar: Any) -> None:
        for row in self._in_parallel(_train, list(tasks)):
            results.append(row)
            bar.update()

    def _in_parallel(self, work: Callable[[Any], Any], tasks: list[Any]) -> Iterator[Any]:
        """The results of some work in the order in which they come."""
        from joblib import Parallel, delayed, parallel_config

        n_jobs = min(self.n_jobs, len(tasks))
        if n_jobs <= 1:
            yield from map(work, tasks)
            return
        with parallel_config(backend="loky", inner_max_num_threads=_threads(self.n_jobs)):
            yield from Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=2 * n_jobs)(
                delayed(work)(task) for task in tasks
            )


@dataclass(frozen=True)
class _Task:
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
        return self.entry is not None and not _is_selector(self.entry)


@dataclass(frozen=True)
class _Choice:
    """The images that a selector kept, and what that took."""

    kept: Any
    seconds: float
    joules: float | None
    needs_baseline: bool
    error: str

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez_compressed(own, **{name: np.asarray(value) for name, value in self.plain().items()})
        own.replace(path)

    def plain(self) -> dict[str, Any]:
        return {**self.__dict__, "joules": math.nan if self.joules is None else self.joules}

    @classmethod
    def load(cls, path: Path) -> _Choice:
        with np.load(path, allow_pickle=False) as file:
            joules = float(file["joules"])
            return cls(
                file["kept"],
                float(file["seconds"]),
                None if math.isnan(joules) else joules,
                bool(file["needs_baseline"]),
                str(file["error"]),
            )


def _choose_all(tasks: list[_Task]) -> None:
    """Make the choices of one seed that are not made yet; features are extracted once for all of them."""
    with _place(tasks[0]) as gpu:
        # Those that others are to be as large as come first.
        for task in sorted(tasks, key=lambda task: task.like_key is not None):
            if task.is_dynamic or (task.choice.is_file() and not (task.retry_failed and _Choice.load(task.choice).error)):
                continue
            try:
                choice = _choose(task, gpu)
            except OSError:
                raise
            except Exception as error:
                choice = _Choice(np.zeros(0, bool), 0.0, None, False, _reason(error))
            choice.save(task.choice)


def _choose(task: _Task, gpu: int | None) -> _Choice:
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
    selector = _instantiated({**entry, "init_args": arguments}, Selector)
    if "seed" not in arguments and hasattr(selector, "seed"):
        selector.seed = task.run.seed
    if hasattr(selector, "progress"):
        selector.progress = False
    datamodule = by_class_path("toolkit.datamodules.PrunedDataModule")(inner, selector, cache=False)
    needs_baseline = _supply(datamodule, task, cli)
    trainer = L.Trainer(**_options(options, gpu))
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.datamodule = datamodule  # type: ignore[attr-defined]
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("fit")
    with EnergyMeter(gpu) as meter:
        seconds_before = _feature_seconds(datamodule, task)
        start = time.perf_counter()
        selection = datamodule.selection
        seconds = time.perf_counter() - start
    kept = np.zeros(len(selection), bool)
    kept[selection.kept] = True
    joules = meter.joules if _is_alone(task, gpu) else None
    return _Choice(kept, seconds_before + seconds, joules, needs_baseline, "")


def _supply(datamodule: Any, task: _Task, cli: CompareCLI) -> bool:
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


def _feature_seconds(datamodule: Any, task: _Task) -> float:
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


def _train(task: _Task) -> dict[str, Any]:
    """Do a run; what came of it, or why it failed, as a row."""
    row: dict[str, Any] = {
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
    start = time.perf_counter()
    with _place(task) as gpu, tempfile.TemporaryDirectory(dir=task.output, prefix=".run-") as folder:
        try:
            row |= _trained(task, gpu, Path(folder))
        except Exception as error:
            row |= {"status": FAILED, "error": _reason(error)}
    return row | {"seconds_total": time.perf_counter() - start}


def _trained(task: _Task, gpu: int | None, folder: Path) -> dict[str, Any]:
    cli = _command(task.config)
    settings, run = cli.settings, task.run
    choice = None
    if run.method != FULL and not task.is_dynamic:
        choice = _Choice.load(task.choice)
        if choice.error:
            raise RuntimeError(f"Choosing failed: {choice.error}")
    model, inner, options = cli.parts(run.seed)
    inner.prepare_data()
    inner.setup("fit")
    loader: Any = cast("Any", inner).train_dataloader()
    n_train, full_length = len(loader.dataset), len(loader)
    full_steps = _steps_of(options, full_length)
    datamodule: Any = inner
    if choice is not None:
        datamodule = by_class_path("toolkit.datamodules.PrunedDataModule")(inner, _selection(choice.kept), cache=False)
    elif task.is_dynamic:
        datamodule = _with_dynamic(task, inner, options)
    changes_length = run.fraction is None and task.is_dynamic
    if run.budget == "epochs" and changes_length:
        # Epochs get shorter and longer on the way: they are counted themselves.
        options |= {"max_epochs": max(1, round(full_steps / full_length)), "max_steps": -1}
    else:
        datamodule.setup("fit")
        length = full_length if changes_length else len(datamodule.train_dataloader())
        steps = full_steps if run.budget == "steps" else max(1, round(full_steps * length / full_length))
        every = full_length if run.budget == "steps" else length
        options |= {"max_epochs": -1, "max_steps": steps, "check_val_every_n_epoch": None, "val_check_interval": every}
    best = ModelCheckpoint(folder, "{step}", monitor=settings.monitor, mode=settings.mode, save_weights_only=True)
    watch = _Watch(n_train)
    options["callbacks"] += [watch, best]
    scores = _score_writer(task, settings, folder)
    if scores is not None:
        options["callbacks"].append(scores)
    options["default_root_dir"] = str(folder)
    trainer = L.Trainer(**_options(options, gpu, checkpoints=True))
    timer = epoch_timer(trainer)
    with EnergyMeter(gpu) as meter, _quiet():
        trainer.fit(model, datamodule=datamodule)
    seconds, joules = sum(timer.seconds), meter.joules if _is_alone(task, gpu) else None
    with _quiet():
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
    row = {"val_last": validated, "test_last": tested, "val_best": validated, "test_best": tested}
    row["best_step"] = trainer.global_step
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


def _keep_baseline(trainer: L.Trainer, model: L.LightningModule, task: _Task, folder: Path) -> None:
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
        import shutil

        shutil.rmtree(task.baseline)
    staged.replace(task.baseline)


def _score_writer(task: _Task, settings: CompareConfig, folder: Path) -> Any:
    """What collects scores while the full set's run trains, where a selector wants them."""
    if task.run.method != FULL or not any(_wants_scores(entry) for entry in settings.selectors.values()):
        return None
    return by_class_path("toolkit.callbacks.TrainingScoreWriter")(folder / "scores")


def _with_dynamic(task: _Task, inner: Any, options: dict[str, Any]) -> Any:
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
    options["callbacks"].append(_instantiated({**entry, "init_args": arguments}, L.Callback))
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
        first = batch[0] if isinstance(batch, (tuple, list)) else batch
        self.n_images += len(first) if hasattr(first, "__len__") else 0


@functools.lru_cache(maxsize=2)
def _command(config: str) -> CompareCLI:
    """The command of a configuration, parsed once in a process."""
    with _quiet():
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


def _steps_of(options: Mapping[str, Any], length: int) -> int:
    """How many steps the full set's run takes."""
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    by_epochs = None if epochs in {None, -1} else int(epochs) * length
    limits = [limit for limit in (by_epochs, None if steps in {None, -1} else int(steps)) if limit is not None]
    if not limits:
        raise invalid("trainer.max_epochs", "given, or `trainer.max_steps`, so that training has an end", epochs)
    return min(limits)


def _selection(kept: Any) -> Selection:
    """A selection of some images, without what stands for the others."""
    from toolkit.selection.recut import Cut
    from toolkit.selection.result import RANDOM as GONE

    kept = np.asarray(kept, bool)
    itself = np.where(kept, np.arange(len(kept)), -1)
    cut = Cut(kept, np.full(len(kept), -1), itself, np.where(kept, 0.0, np.nan).astype(np.float32))
    return Selection.from_cut(cut, GONE, np.zeros(len(kept), bool))


def _places(cli: CompareCLI, n_jobs: int | None) -> tuple[int, int]:
    """How many runs at a time, and how many GPUs there are for them."""
    accelerator = cli.config.trainer.accelerator
    uses_gpus = accelerator in {"gpu", "cuda"} or (accelerator == "auto" and torch.cuda.is_available())
    gpus = torch.cuda.device_count() if uses_gpus else 0
    if n_jobs is None:
        return max(1, gpus), gpus
    if isinstance(n_jobs, bool) or n_jobs == 0 or n_jobs < -1:
        raise invalid("compare.n_jobs", "at least 1, or -1 for as many as there are processors", n_jobs)
    return (_cpus() if n_jobs == -1 else n_jobs), gpus


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(n_jobs: int) -> int:
    """Threads for each of some runs at a time."""
    return max(1, _cpus() // n_jobs)


@contextmanager
def _place(task: _Task) -> Iterator[int | None]:
    """The GPU that a run may use until it is done, None for the processors; with several runs, their threads shared."""
    if task.n_jobs > 1:
        torch.set_num_threads(_threads(task.n_jobs))
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
            with lock:
                lock.release()
                yield place % task.gpus
            return
        time.sleep(0.1)


def _is_alone(task: _Task, gpu: int | None) -> bool:
    """Whether a counter of the whole machine, or of a GPU, counts this run alone."""
    return task.n_jobs == 1 if gpu is None else task.n_jobs <= task.gpus


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says about every single run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _device_name(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    return f"{platform.machine()}, {torch.get_num_threads()} of {_cpus()} processors"


def _reason(error: Exception) -> str:
    """An error in a line, with the place that it comes from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]} ({Path(place.filename).name}, line {place.lineno})"


def _known_selectors() -> dict[str, str]:
    """The toolkit's selectors by their class names."""
    found = {name: getattr(toolkit.selection, name) for name in toolkit.selection.__all__}
    return {
        name: f"toolkit.{name}"
        for name, value in found.items()
        if isinstance(value, type) and name != "Selector" and callable(getattr(value, "select", None))
    }


def _checked(name: str, entry: Any, section: str) -> dict[str, Any]:
    """A selector's or dynamic baseline's configuration, its class looked up and its settings tried."""
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, Mapping) or "class_path" not in entry or set(entry) - {"class_path", "init_args"}:
        raise invalid(f"compare.{section}.{name}", "a `class_path`, with `init_args` where there are any", entry)
    known = _known_selectors()
    class_path = known.get(entry["class_path"], entry["class_path"])
    try:
        kind = by_class_path(class_path) if "." in class_path else None
    except (ImportError, AttributeError):
        kind = None
    whole = {"class_path": class_path, "init_args": dict(entry.get("init_args") or {})}
    if section == "selectors":
        if kind is None or not callable(getattr(kind, "select", None)):
            must = f"a selector such as {', '.join(known.values())}, or a class of your own with a method `select`"
            raise invalid(f"compare.selectors.{name}.class_path", must, entry["class_path"])
        arguments = whole["init_args"]
        trial = {} if set(arguments) & set(_BUDGET_ARGUMENTS) else {"keep_fraction": 0.5}
        selector = _instantiated({**whole, "init_args": {**arguments, **trial}}, Selector)
        if callable(getattr(selector, "check", None)):
            selector.check()
    elif not (isinstance(kind, type) and issubclass(kind, (L.Callback, L.LightningDataModule))):
        must = (
            "a callback or a data module such as toolkit.datamodules.RandomEachEpoch or toolkit.callbacks.InfoBatch, "
            "or one of your own"
        )
        raise invalid(f"compare.dynamic.{name}.class_path", must, entry["class_path"])
    return whole


def _is_selector(entry: Mapping[str, Any]) -> bool:
    return callable(getattr(by_class_path(entry["class_path"]), "select", None))


def _takes_fraction(entry: Mapping[str, Any]) -> bool:
    """Whether a dynamic baseline is told which share of the images an epoch has, and has not been told yet."""
    import inspect

    parameters = inspect.signature(by_class_path(entry["class_path"])).parameters
    return "keep_fraction" in parameters and "keep_fraction" not in entry["init_args"]


def _wants_scores(entry: Any) -> bool:
    whole = _checked("", entry, "selectors") if not isinstance(entry, Mapping) else entry
    class_path = _known_selectors().get(whole["class_path"], whole["class_path"])
    arguments = whole.get("init_args") or {}
    return issubclass(by_class_path(class_path), ScoreSelector) and arguments.get("scores") is None


def _files_needed(selectors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the full set's runs must have left behind for the selectors."""
    return ["weights.ckpt", "facts.json", *(["scores"] if any(map(_wants_scores, selectors.values())) else [])]


def _instantiated(entry: Mapping[str, Any], kind: Any) -> Any:
    """An object from its `class_path` and `init_args`, nested ones included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object({"it": dict(entry)}))["it"]
    except Exception as error:
        if type(error).__name__ != "ArgumentError":
            raise
        raise ValueError(f"`{entry['class_path']}` cannot be made: {error}") from error


def _check_data(data: Any) -> None:
    """Refuse data without validation or test images: networks are chosen by the former and scored on the latter."""
    name = type(data).__name__
    for stage, hook in (("validation", "val_dataloader"), ("test", "test_dataloader")):
        if is_overridden(hook, data):
            data.setup("validate" if stage == "validation" else "test")
        if not is_overridden(hook, data) or not getattr(data, hook)():
            hint = ": set its `val_size`" if stage == "validation" and hasattr(data, "val_size") else ""
            raise ValueError(f"`data` must have {stage} images, got {name}, which has none{hint}.")
