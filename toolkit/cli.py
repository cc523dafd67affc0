"""The command line: `toolkit.fit`, `toolkit.select`, `toolkit.leaks` and `toolkit.probe`, on LightningCLI."""

from __future__ import annotations

import copy
import csv
import hashlib
import importlib
import json
import logging
import os
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden

from toolkit import cache
from toolkit.checkpoints import load_weights
from toolkit.datasets import ids_of, labels_of
from toolkit.distributed import on_rank_zero
from toolkit.fingerprint import dataset_fingerprint, settings_hash
from toolkit.gallery import save_pictures
from toolkit.insight import Leaks
from toolkit.leakage import leaks_between
from toolkit.lightning_views import evaluation_view_of
from toolkit.plotting import plot_isolated, plot_pairs
from toolkit.representations import FeatureExtractor
from toolkit.representations.feature_map import find_layer
from toolkit.selection import Selection

log = logging.getLogger(__name__)

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
class BaselineConfig:
    """Where the weights come from that turn images into features.

    Args:
        checkpoint: A file of weights: a Lightning checkpoint or a state dict. Without it the baseline is trained on the
            full training set first, and kept in the cache folder for next time.
        model: The baseline's model; the one that is trained if None.
        trainer: Trainer options in which training the baseline differs, such as `max_epochs`.
    """

    checkpoint: str | None = None
    model: L.LightningModule | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class LeaksConfig:
    """When a test image counts as having a twin in the training set.

    Args:
        radius: A twin's distance, in the representation, is at most this; None for the representation's own radius.
        min_similarity: Where there is no radius, a twin's structural similarity (volume SSIM, in [-1, 1]) is at least
            this.
        mirrored: Whether the mirror image of each test image is looked for too.
        candidates: How many of the nearest training images the structural similarity is computed for.
        resize: Height and width at which it is computed; needed where images differ in size.
    """

    radius: float | None = None
    min_similarity: float = 0.9
    mirrored: bool = True
    candidates: int = 10
    resize: tuple[int, int] | None = None


@dataclass
class ProbeConfig:
    """Which paths to walk between training images, and how finely.

    Args:
        num_pairs: How many pairs of images, over all kinds.
        num_points: Points of the regular grid on each path, both ends included.
        tolerance: The width, of the path's length 1, to which each crossing is bracketed.
        layer: A layer whose feature maps of the pairs' images are compared too.
        seed: Of the draw. A `DecisionBoundaryMonitor` with the same seed and number has the same pairs.
        num_planes: How many planes through three images to draw.
    """

    num_pairs: int = 256
    num_points: int = 33
    tolerance: float = 1e-3
    layer: str | None = None
    seed: int = 0
    num_planes: int = 3


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


class ToolkitCLI(LightningCLI):
    """LightningCLI with a section `baseline`, an option `control`, and config files found by name."""

    def __init__(
        self, args: Sequence[str] | None = None, command: Literal["fit", "select", "leaks", "probe"] = "fit"
    ) -> None:
        self.command = command
        given = list(sys.argv[1:] if args is None else args)
        resolved = resolve_configs(given)
        if args is None:
            # Processes that Lightning starts for a distributed run repeat this command line, maybe in another folder.
            sys.argv[1:] = resolved
        # Lightning itself calls what newer jsonargparse deprecates; the user can do nothing about it.
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        super().__init__(
            save_config_kwargs={"overwrite": True},
            subclass_mode_model=True,
            subclass_mode_data=True,
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            parser_kwargs={"prog": f"python -m toolkit.{command}"},
            args=resolved,
            run=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; the warning that it was given as a list does not apply here."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what the toolkit has beyond LightningCLI."""
        parser.add_class_arguments(BaselineConfig, "baseline")
        if self.command == "fit":
            parser.add_argument("--ckpt_path", type=str | None, default=None, help="A checkpoint to resume from.")
        else:
            pictures = "the table and the pictures"
            what = {"select": "the selection", "leaks": pictures, "probe": pictures}[self.command]
            parser.add_argument("--output", type=str, required=True, help=f"The folder to write {what} into.")
        if self.command == "leaks":
            parser.add_class_arguments(LeaksConfig, "leaks")
        if self.command == "probe":
            help_ = "The trained weights: a Lightning checkpoint, whose selection is taken, or a state dict."
            parser.add_argument("--ckpt_path", type=str, required=True, help=help_)
            parser.add_class_arguments(ProbeConfig, "probe")
        parser.add_argument(
            "--control",
            type=Literal["random", "balanced"] | None,
            default=None,
            help="Also train on a random subset of the same size: `random`, or `balanced` over the classes.",
        )

    def plain_config(self) -> dict[str, Any]:
        """The whole configuration as plain values."""
        dumped = self.parser.dump(self.config, skip_none=False, skip_link_targets=False, format="yaml")
        return cast("dict[str, Any]", yaml.safe_load(dumped))

    def build(self, title: str, data: Any, trainer: Mapping[str, Any]) -> tuple[L.LightningModule, Any, L.Trainer]:
        """A fresh model, data module and trainer from this configuration, with other data and trainer options.

        Args:
            title: Names the sub-folder for logs and checkpoints.
            data: The data module's configuration.
            trainer: Trainer options that differ.
        """
        config = self.config.clone()
        config["data"] = data
        root = Path(config.trainer.default_root_dir or ".") / title
        changes = {"trainer": {**trainer, "default_root_dir": str(root)}}
        config = self.parser.parse_object(changes, cfg_base=config)
        self.seed()
        built = self.parser.instantiate_classes(config)
        options = {**built["trainer"]}
        options["callbacks"] = [*(options.get("callbacks") or [])]
        self.add_optimizer(built["model"])
        return built["model"], built["data"], L.Trainer(**options)

    def add_optimizer(self, model: L.LightningModule) -> None:
        """Give a model the optimizer and schedule of `--optimizer` and `--lr_scheduler`, as the main one has."""
        own, self.model = self.model, model
        try:
            self._add_configure_optimizers_method_to_model(None)
        finally:
            self.model = own

    def seed(self) -> None:
        """Seed everything anew, so that a run does not depend on what was run before it."""
        if self.config["seed_everything"] is not False:
            L.seed_everything(self.config["seed_everything"], workers=True, verbose=False)


def shipped_configs() -> dict[str, Path]:
    """The experiments that come with the toolkit: file name to path."""
    spec = importlib.import_module("toolkit.configs")
    return {path.name: path for path in sorted(Path(str(spec.__file__)).parent.glob("*.yaml"))}


def resolve_configs(args: Sequence[str]) -> list[str]:
    """Command-line arguments with each config's bare name replaced by its path: here, or among the shipped ones.

    Raises:
        SystemExit: With the names that exist, if a config does not.
    """
    result = list(args)
    for place, argument in enumerate(result):
        flag, equals, value = argument.partition("=")
        if flag not in {"--config", "-c"}:
            continue
        target = place if equals else place + 1
        name = value if equals else result[target] if target < len(result) else ""
        if not name or name.startswith("{") or Path(name).is_file():
            continue
        shipped = shipped_configs()
        found = shipped.get(name) or shipped.get(f"{name}.yaml")
        if found is None:
            sys.exit(
                f"error: `--config` must be a file, or one of the shipped {', '.join(shipped)}, got {name!r}, "
                "which is neither."
            )
        result[target] = f"{flag}={found}" if equals else str(found)
    return result


def fit(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Prune the training set, train on what is left, and print what was gained and lost.

    Args:
        args: Command-line arguments; those of the process if None.

    Returns:
        The summary that is also written to `summary.json`.
    """
    cli = ToolkitCLI(args)
    model, datamodule, trainer = cli.model, cli.datamodule, cli.trainer
    timer = _epoch_timer(trainer)
    _check_settings(datamodule)
    resumed = cli.config.get("ckpt_path")
    runs: list[Run] = []
    if _needs_baseline(datamodule) and not (resumed and _carries_selection(resumed)):
        runs.append(_supply_baseline(cli, datamodule))
    cli.seed()
    trainer.fit(model, datamodule=datamodule, ckpt_path=resumed)
    selection = _selection_of(datamodule)
    n_images = len(datamodule.train_dataloader().dataset) if selection is None else len(selection.kept)
    title = "trained" if selection is None else "pruned"
    runs.append(Run(title, n_images, _median(timer), _score(trainer, model, datamodule), _folder(trainer)))
    if selection is not None and cli.config.get("control"):
        runs.append(_control(cli, selection))
    # Asking for the folder is something that all ranks do together: rank 0 must not ask alone.
    folder = Path(_folder(trainer) or ".")
    return on_rank_zero(lambda: _report(datamodule, selection, runs, folder, folder / "selection"))


def select(args: Sequence[str] | None = None) -> Selection:
    """Choose the images of a training set and write the selection into a folder; train nothing but a missing baseline.

    Args:
        args: Command-line arguments; those of the process if None.
    """
    cli = ToolkitCLI(args, command="select")
    datamodule, output = cli.datamodule, Path(cli.config["output"])
    runs = _prepare(cli, output)
    selection = cast("Selection", datamodule.selection)
    _report(datamodule, selection, runs, output, output, all_pictures=True)
    return selection


def leaks(args: Sequence[str] | None = None) -> Leaks:
    """Look for each test image in the training set, and write which have a twin there and which are unlike all of it.

    Images are compared as the config's selector sees them; the nearest training images are then compared by their
    structural similarity, which tells twins.

    Args:
        args: Command-line arguments; those of the process if None.
    """
    cli = ToolkitCLI(args, command="leaks")
    datamodule, output = cli.datamodule, Path(cli.config["output"])
    _prepare(cli, output)
    if not is_overridden("test_dataloader", datamodule):
        sys.exit(f"error: `data` must have a test set, got {type(datamodule.datamodule).__name__}, which has none.")
    representation = getattr(datamodule.selector, "representation", lambda: None)()
    if representation is None:
        name = type(datamodule.selector).__name__
        sys.exit(f"error: `data.selector` must turn images into vectors to compare them, got {name}.")
    datamodule.setup("test")
    test = datamodule.evaluation_view(datamodule.test_dataloader())
    settings = cli.config_init["leaks"]
    found = leaks_between(
        datamodule.evaluation_view(),
        test,
        representation,
        radius=settings.radius,
        min_similarity=settings.min_similarity,
        mirrored=settings.mirrored,
        candidates=settings.candidates,
        resize=settings.resize,
    )
    on_rank_zero(lambda: _report_leaks(datamodule, test, found, output))
    return found


def probe(args: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Walk straight paths between training images, and write where a trained model changes its mind on them.

    Args:
        args: Command-line arguments; those of the process if None.

    Returns:
        The rates of each kind of pairs, as `toolkit.boundary.summarise` tells them.
    """
    from toolkit.boundary.pairs import STRATA, check_draw, codes_of, draw_pairs
    from toolkit.boundary.paths import _check as check_paths
    from toolkit.boundary.probing import PairWalker, save_probe
    from toolkit.boundary.strata import redundancy_limit, table_of

    cli = ToolkitCLI(args, command="probe")
    model, datamodule, output = cli.model, cli.datamodule, Path(cli.config["output"])
    settings, weights = cli.config_init["probe"], str(cli.config["ckpt_path"])
    check_draw(settings.num_pairs, STRATA)
    check_paths(settings.num_points, settings.tolerance, memory_limit=1)
    if settings.layer is not None:
        find_layer(model, settings.layer)
    cache.check_writable(output, "output")
    load_weights(model, weights)
    _connect(cli)
    selection = _selection_for_probe(cli, weights)
    view = evaluation_view_of(cli.trainer)
    labels = codes_of(view, selection)
    pairs = draw_pairs(view, selection=selection, labels=labels, num_pairs=settings.num_pairs, seed=settings.seed)
    walker = PairWalker(
        view,
        pairs,
        num_points=settings.num_points,
        tolerance=settings.tolerance,
        layer=settings.layer,
        progress=cli.trainer.progress_bar_callback is not None,
    )
    rows, files = save_probe(
        model.to(cli.trainer.strategy.root_device),
        walker,
        output,
        limit=redundancy_limit(selection),
        facts={"checkpoint": weights, **settings.__dict__},
        labels=labels,
        class_names=_class_names(datamodule),
        num_planes=settings.num_planes,
    )
    print("\n".join(["", table_of(rows), "", *(f"{name}: {path}" for name, path in files.items())]))
    return rows


def _selection_for_probe(cli: ToolkitCLI, ckpt_path: str) -> Selection | None:
    """The selection that a checkpoint carries, or else the config's, unless a baseline would have to be trained."""
    datamodule, stored = cli.datamodule, _stored_selection(ckpt_path)
    if stored is not None:
        dataset = datamodule.evaluation_dataset() if _is_pruned(datamodule) else evaluation_view_of(cli.trainer).dataset
        if len(dataset) != len(stored["status"]):
            sys.exit(
                f"error: `ckpt_path` must be trained on the config's data, got one on {len(stored['status'])} images "
                f"where there are {len(dataset)}."
            )
        return Selection.from_state_dict(stored, ids_of(dataset), labels_of(dataset))
    if _needs_baseline(datamodule):
        if cli.config_init["baseline"].checkpoint is None:
            print(
                "The checkpoint carries no selection, and the config's needs a baseline: no redundant pairs are walked."
            )
            return None
        _supply_baseline(cli, datamodule)
    return _selection_of(datamodule)


def _prepare(cli: ToolkitCLI, output: Path) -> list[Run]:
    """Check what was asked for, and set everything up as in training, without training more than a missing baseline.

    Returns:
        The run of the baseline, if the features come from one.
    """
    datamodule = cli.datamodule
    if not _is_pruned(datamodule):
        sys.exit(f"error: `data` must be a PrunedDataModule to select from, got {type(datamodule).__name__}.")
    _check_settings(datamodule)
    cache.check_writable(output, "output")
    runs = [_supply_baseline(cli, datamodule)] if _needs_baseline(datamodule) else []
    _connect(cli)
    return runs


def _connect(cli: ToolkitCLI) -> None:
    """Set model and data up as in training, so that batch hooks are found and images look the same to all commands."""
    cli.trainer.strategy.connect(cli.model)
    cli.model.trainer = cli.trainer
    cli.trainer.datamodule = cli.datamodule  # type: ignore[attr-defined]
    cli.datamodule.trainer = cli.trainer
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")


def _by_class_path(class_path: str) -> Any:
    """A class by its dotted name, as in a config: the core does not depend on the callbacks and data modules."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_pruned(datamodule: Any) -> bool:
    return isinstance(datamodule, _by_class_path("toolkit.datamodules.PrunedDataModule"))


def _check_settings(datamodule: Any) -> None:
    """Let the selector refuse its settings now, not after a baseline was trained for it."""
    check = getattr(getattr(datamodule, "selector", None), "check", None)
    if callable(check):
        check()


def _epoch_timer(trainer: L.Trainer) -> Any:
    """The trainer's epoch timer; added to it if it has none."""
    kind = _by_class_path("toolkit.callbacks.EpochTimeMonitor")
    callbacks: list[Any] = cast("Any", trainer).callbacks
    found = next((callback for callback in callbacks if isinstance(callback, kind)), None)
    if found is None:
        found = kind()
        callbacks.insert(0, found)  # so that what other callbacks do after an epoch is not counted
    return found


def _median(timer: Any) -> float | None:
    return statistics.median(timer.seconds) if timer.seconds else None


def _folder(trainer: L.Trainer) -> str | None:
    return trainer.log_dir or trainer.default_root_dir


def _selection_of(datamodule: Any) -> Selection | None:
    return datamodule.selection if _is_pruned(datamodule) and datamodule.selector is not None else None


def _extractor(datamodule: Any) -> FeatureExtractor | None:
    """The feature extractor of the data module's selector, if it has one."""
    representation = getattr(getattr(datamodule, "selector", None), "representation", None)
    features = representation() if callable(representation) else None
    return features if isinstance(features, FeatureExtractor) else None


def _needs_baseline(datamodule: Any) -> bool:
    extractor = _extractor(datamodule)
    return extractor is not None and extractor.model is None


def _carries_selection(ckpt_path: str) -> bool:
    """Whether a checkpoint holds the selection that it was trained on."""
    return _stored_selection(ckpt_path) is not None


def _stored_selection(ckpt_path: str) -> Mapping[str, Any] | None:
    """The selection in a checkpoint, as it was written, or None."""
    if not Path(ckpt_path).is_file():
        return None
    content = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
    found = (value["selection"] for value in content.values() if isinstance(value, Mapping) and "selection" in value)
    return next(found, None)


def _supply_baseline(cli: ToolkitCLI, datamodule: Any) -> Run:
    """Give the feature extractor its model and weights: from the checkpoint, from an earlier run, or trained now."""
    extractor = _extractor(datamodule)
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
    timer = _epoch_timer(trainer)
    if baseline.model is not None:
        model = baseline.model
        cli.add_optimizer(model)
    cli.seed()
    trainer.fit(model, datamodule=inner)
    run = Run("baseline (full set)", 0, _median(timer), _score(trainer, model, inner), str(weights))
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


def _control(cli: ToolkitCLI, selection: Selection) -> Run:
    """The same training on a random subset of the same size."""
    config = copy.deepcopy(cli.config.data)
    balance = "label" if cli.config["control"] == "balanced" else None
    settings = {"n_images": len(selection.kept), "balance": balance, "seed": int(cli.config["seed_everything"])}
    config.init_args.selector = Namespace(class_path="toolkit.RandomSelector", init_args=Namespace(**settings))  # type: ignore[no-untyped-call]
    model, datamodule, trainer = cli.build("control", config, {})
    timer = _epoch_timer(trainer)
    cli.seed()
    trainer.fit(model, datamodule=datamodule)
    score = _score(trainer, model, datamodule)
    return Run(f"control ({cli.config['control']})", len(selection.kept), _median(timer), score, _folder(trainer))


def _score(trainer: L.Trainer, model: L.LightningModule, datamodule: Any) -> dict[str, float]:
    """The trained model's metrics on the test set, else on the validation set, else none."""
    for stage, run in (("test", trainer.test), ("validation", trainer.validate)):
        hook = {"test": "test_dataloader", "validation": "val_dataloader"}[stage]
        if is_overridden(hook, datamodule) and is_overridden(f"{stage}_step", model):
            results = run(model, datamodule=datamodule, verbose=False)
            return {name: float(value) for result in results for name, value in result.items()}
    return {}


def _class_names(datamodule: Any) -> list[str] | None:
    names = getattr(datamodule, "class_names", None)
    return list(names) if isinstance(names, (list, tuple)) else None


def _report(
    datamodule: Any,
    selection: Selection | None,
    runs: list[Run],
    folder: Path,
    selection_folder: Path,
    all_pictures: bool = False,
) -> dict[str, Any]:
    """Print the summary and write it, with the selection and pictures, where the run's files are.

    Training draws the groups only; `all_pictures` are drawn where choosing is all there is to do.
    """
    lines: list[str] = []
    files = {"summary": folder / "summary.json"}
    if selection is not None:
        lines += ["", selection.summary(_class_names(datamodule)), ""]
        seconds = getattr(datamodule, "seconds_choosing", None)
        if seconds is not None:
            how = {"cache": "found in the cache", "chosen": "chosen"}.get(
                datamodule.origin, f"from {datamodule.origin}"
            )
            lines.append(f"selection: {how} in {seconds:.1f} s")
        if len(selection.influential):
            lines.append(f"{len(selection.influential)} images are alike to images of another label: all are kept")
        files["selection"] = selection.save(selection_folder)
        view, names = datamodule.evaluation_view(), _class_names(datamodule)
        pictures = save_pictures(
            selection, view, folder, selector=datamodule.selector if all_pictures else None, class_names=names
        )
        files |= {f"picture: {title}": path for title, path in pictures.items()}
    if runs:
        rows = [("run", "images", "s/epoch", "score"), *(run.row() for run in runs)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines += ["", *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    summary = {
        "classes": None if selection is None else selection.counts(),
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


def _report_leaks(datamodule: Any, test: Any, found: Leaks, folder: Path) -> None:
    """Print what was found, and write the table and the pictures."""
    train, names = datamodule.evaluation_dataset(), _class_names(datamodule)
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
