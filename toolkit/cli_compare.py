"""The command `toolkit.compare`: does pruning pay?"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool
from lightning.pytorch.utilities.model_helpers import is_overridden
from tqdm.auto import tqdm

from toolkit.cli_baseline import _COSMETIC
from toolkit.cli_compare_methods import (
    BUILT_IN,
    CompareCLI,
    checked_dynamic,
    checked_selector,
    takes_fraction,
    wants_scores,
)
from toolkit.cli_compare_runs import Task, check_end, choose_all, killed, quiet, threads, train
from toolkit.comparison.page import write_page
from toolkit.comparison.pictures import plot_comparison
from toolkit.comparison.plan import FULL, Plan, Run
from toolkit.comparison.published import Published
from toolkit.comparison.statistics import summarise_runs, verdict
from toolkit.comparison.storage import DONE, FAILED, BusyFolderError, Results
from toolkit.comparison.table import Grid, markdown_table
from toolkit.files import write_whole
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.processors import n_processors
from toolkit.validation import invalid

#: Trainer options that change nothing about what is learned, and those that a comparison sets itself.
_IGNORED = {*_COSMETIC, "max_epochs", "max_steps", "devices", "num_sanity_val_steps"} - {"callbacks"}


def compare(args: Sequence[str] | None = None) -> Path:
    """Train on what every selector keeps, at every fraction and seed, and write a page of what that was worth.

    Every run that ends is a row of `runs.csv` and `runs.jsonl` in the folder, also one that fails; the same command
    goes on where it was stopped.

    Args:
        args: Command-line arguments; those of the process if None.

    Returns:
        The page.
    """
    with quiet():
        cli = CompareCLI(args)
    output = Path(cli.config["output"])
    try:
        with quiet():
            comparison = _Comparison(cli)
        with Results(output) as results:
            comparison.run(results)
    except (BusyFolderError, OSError, ValueError, TypeError) as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, SystemExit):
        # Where a trainer is interrupted, Lightning makes an exit of it.
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
        selectors = {name: checked_selector(name, entry) for name, entry in self.settings.selectors.items()}
        dynamic = {name: checked_dynamic(name, entry) for name, entry in self.settings.dynamic.items()}
        self.entries = {**selectors, **dynamic}
        self.plan = Plan(
            list(selectors),
            list(dynamic),
            self.settings.fractions,
            self.settings.seeds,
            self.settings.budgets,
            frozenset(name for name, entry in self.entries.items() if not takes_fraction(entry)),
        )
        self.collects_scores = any(wants_scores(entry) for entry in selectors.values())
        self.n_jobs, self.gpus = _places(cli, self.settings.n_jobs)
        _, data, options = cli.parts(self.settings.seeds[0])
        check_end(options)
        data.prepare_data()
        data.setup("fit")
        _check_data(data)
        self.images = dataset_fingerprint(cast("Any", data).train_dataloader().dataset)

    def run(self, results: Results) -> None:
        """Do what is missing, the full set's runs first, then the choices, then the runs on what was chosen."""
        runs = [(run, self.key(run)) for run in self.plan.runs()]
        known = {
            key: row for key, row in results.rows.items() if row["status"] == DONE or not self.settings.retry_failed
        }
        tasks = [self._task(run, key) for run, key in runs if not self._is_known(run, key, known)]
        if len(tasks) < len(runs):
            print(f"{len(runs) - len(tasks)} of {len(runs)} runs are in {self.output} already.")
        full = [task for task in tasks if task.run.method == FULL]
        rest = [task for task in tasks if task.run.method != FULL]
        for folder in self.output.glob(".run-*"):
            shutil.rmtree(folder)  # of a run that was killed
        bar = tqdm(total=len(tasks), unit="run", desc="comparison", disable=not tasks)
        try:
            with bar:
                self._add(results, full, bar)
                seeds = dict.fromkeys(task.run.seed for task in rest)
                by_seed = [[task for task in rest if task.run.seed == seed] for seed in seeds]
                for _ in self._in_parallel(choose_all, by_seed):
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
        write_whole(self.output / "summary.json", [text, "\n"])
        tables = []
        for budget in self.plan.budgets:
            print(f"\nAs many {budget} as on all images, network of the last step. {verdict(summaries, budget)}")
            parts = [f"As many {budget}, network of the last step:", markdown_table(Grid.of(summaries, budget))]
            tables.append("\n\n".join(parts))
        write_whole(self.output / "comparison.md", ["\n\n".join(tables), "\n"])
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

    def _task(self, run: Run, key: str) -> Task:
        return Task(
            run=run,
            key=key,
            full_key=self.key(Run(FULL, 1.0, run.seed)),
            choice_key=self.key(run.choice),
            like_key=None if run.like is None else self.key(Run(run.like, None, run.seed)),
            entry=self.entries.get(run.method) or BUILT_IN.get(run.method),
            output=self.output,
            config=json.dumps(self.config, sort_keys=True),
            n_jobs=self.n_jobs,
            gpus=self.gpus,
            retry_failed=self.settings.retry_failed,
            collects_scores=self.collects_scores,
        )

    def _is_known(self, run: Run, key: str, known: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether there is nothing to do for a run: its row is there, and so is what others need of it."""
        if key not in known or known[key]["status"] == FAILED or run.method != FULL:
            return key in known
        needed = ["weights.ckpt", "facts.json", *(["scores"] if self.collects_scores else [])]
        return all((self.output / "baselines" / key / name).exists() for name in needed)

    def _add(self, results: Results, tasks: list[Task], bar: Any) -> None:
        for task, row in self._in_parallel(train, tasks):
            results.append(killed(task) if row is None else row)
            bar.update()

    def _in_parallel(self, work: Callable[[Any], Any], tasks: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Tasks and the results of some work on them, in the order in which they come.

        Where a process is killed, as when memory runs out, those tasks that it may have been at are done one after the
        other, each in a process of its own, to tell which it was: that one has None for its result. Then all go on.
        """
        n_jobs = min(self.n_jobs, len(tasks))
        if n_jobs <= 1:
            yield from ((task, work(task)) for task in tasks)
            return
        left = dict(enumerate(tasks))
        while left:
            waiting, n_ahead = list(left.items()), 2 * n_jobs
            try:
                with parallel_config(backend="loky", inner_max_num_threads=threads(self.n_jobs)):
                    options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
                    parallel = Parallel(n_jobs=n_jobs, pre_dispatch=n_ahead, **options)
                    for number, result in parallel(delayed(_numbered)(work, *item) for item in waiting):
                        yield left.pop(number), result
            except BrokenProcessPool:
                for number in list(left)[:n_ahead]:
                    yield left[number], _alone(work, left.pop(number))


def _numbered(work: Callable[[Any], Any], number: int, task: Any) -> tuple[int, Any]:
    return number, work(task)


def _alone(work: Callable[[Any], Any], task: Any) -> Any:
    """The result of some work in a process of its own; None if that is killed."""
    with ProcessPoolExecutor(max_workers=1) as executor:
        try:
            return executor.submit(work, task).result()
        except BrokenProcessPool:
            return None


def _places(cli: CompareCLI, n_jobs: int | None) -> tuple[int, int]:
    """How many runs at a time, and how many GPUs there are for them."""
    accelerator = cli.config.trainer.accelerator
    uses_gpus = accelerator in {"gpu", "cuda"} or (accelerator == "auto" and torch.cuda.is_available())
    gpus = torch.cuda.device_count() if uses_gpus else 0
    if n_jobs is None:
        return max(1, gpus), gpus
    if isinstance(n_jobs, bool) or n_jobs == 0 or n_jobs < -1:
        raise invalid("compare.n_jobs", "at least 1, or -1 for as many as there are processors", n_jobs)
    return (n_processors() if n_jobs == -1 else n_jobs), gpus


def _check_data(data: Any) -> None:
    """Refuse data without validation or test images: networks are chosen by the former and scored on the latter."""
    name = type(data).__name__
    for stage, hook in (("validation", "val_dataloader"), ("test", "test_dataloader")):
        if is_overridden(hook, data):
            data.setup("validate" if stage == "validation" else "test")
        if not is_overridden(hook, data) or not getattr(data, hook)():
            hint = ": set its `val_size`" if stage == "validation" and hasattr(data, "val_size") else ""
            raise ValueError(f"`data` must have {stage} images, got {name}, which has none{hint}.")
