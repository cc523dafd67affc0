"""The commands `toolkit.fit`, `select`, `leaks`, `probe` and `layers`, on LightningCLI."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from toolkit import cache
from toolkit.checkpoints import load_weights
from toolkit.cli_baseline import (
    Run,
    by_class_path,
    carries_selection,
    epoch_timer,
    extractor_of,
    median_seconds,
    needs_baseline,
    run_control,
    run_folder,
    score_of,
    stored_selection,
    supply_baseline,
)
from toolkit.cli_reports import class_names_of, layer_lines, report_leaks, report_selection
from toolkit.datasets import ids_of, labels_of
from toolkit.distributed import on_rank_zero
from toolkit.insight import Leaks
from toolkit.leakage import leaks_between
from toolkit.lightning_views import evaluation_view_of
from toolkit.report.writer import check_place
from toolkit.representations.feature_map import find_layer
from toolkit.representations.image_batches import remembered_vectors
from toolkit.representations.layer_table import LayerRow, layer_table
from toolkit.selection import Selection
from toolkit.selection.result import check_selection_folder


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
    layer: str | int | None = None
    seed: int = 0
    num_planes: int = 3


class ToolkitCLI(LightningCLI):
    """LightningCLI with a section `baseline`, an option `control`, and config files found by name."""

    def __init__(
        self,
        args: Sequence[str] | None = None,
        command: Literal["fit", "select", "leaks", "probe", "layers", "compare"] = "fit",
    ) -> None:
        self.command = command
        given = list(sys.argv[1:] if args is None else args)
        resolved = resolve_configs(given)
        if command != "compare":
            _refuse_comparisons(resolved, command)
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
        elif self.command == "layers":
            help_ = "How many images to look at, drawn at random."
            parser.add_argument("--n_images", type=int, default=1000, help=help_)
        else:
            what = "the selection" if self.command == "select" else "the table and the pictures"
            parser.add_argument("--output", type=str, required=True, help=f"The folder to write {what} into.")
        if self.command == "select":
            help_ = "How the page shows vectors as points: `pca`, or `umap` (an extra)."
            parser.add_argument("--projection", type=Literal["pca", "umap"], default="pca", help=help_)
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


def _refuse_comparisons(args: Sequence[str], command: str) -> None:
    """Say which command a config with a section `compare` is for."""
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        name = flag.partition("=")[2] or value
        if flag.partition("=")[0] not in {"--config", "-c"} or not Path(name).is_file():
            continue
        # What cannot be read is told by the parser, with its place.
        with suppress(yaml.YAMLError, UnicodeDecodeError):
            if "compare" in (yaml.safe_load(Path(name).read_text()) or {}):
                sys.exit(
                    f"error: `--config` must be without the section `compare`, which only python -m toolkit.compare "
                    f"reads, for python -m toolkit.{command}, got {name}."
                )


def fit(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Prune the training set, train on what is left, and print what was gained and lost.

    Args:
        args: Command-line arguments; those of the process if None.

    Returns:
        The summary that is also written to `summary.json`.
    """
    cli = ToolkitCLI(args)
    model, datamodule, trainer = cli.model, cli.datamodule, cli.trainer
    timer = epoch_timer(trainer)
    _check_settings(datamodule)
    resumed = cli.config.get("ckpt_path")
    runs: list[Run] = []
    if needs_baseline(datamodule) and not (resumed and carries_selection(resumed)):
        runs.append(supply_baseline(cli, datamodule))
    cli.seed()
    trainer.fit(model, datamodule=datamodule, ckpt_path=resumed)
    selection = _selection_of(datamodule)
    n_images = len(datamodule.train_dataloader().dataset) if selection is None else len(selection.kept)
    title = "trained" if selection is None else "pruned"
    runs.append(Run(title, n_images, median_seconds(timer), score_of(trainer, model, datamodule), run_folder(trainer)))
    if selection is not None and cli.config.get("control"):
        runs.append(run_control(cli, selection))
    # Asking for the folder is something that all ranks do together: rank 0 must not ask alone.
    folder = Path(run_folder(trainer) or ".")
    return on_rank_zero(lambda: report_selection(datamodule, selection, runs, folder, folder / "selection"))


def select(args: Sequence[str] | None = None) -> Selection:
    """Choose the images of a training set and write the selection into a folder; train nothing but a missing baseline.

    Args:
        args: Command-line arguments; those of the process if None.
    """
    cli = ToolkitCLI(args, command="select")
    datamodule, output = cli.datamodule, Path(cli.config["output"])
    # What is in the way is told now, not after a baseline was trained.
    check_selection_folder(output)
    check_place(output / "report.html")
    with remembered_vectors():
        runs = _prepare(cli, output)
        selection = cast("Selection", datamodule.selection)
        report_selection(datamodule, selection, runs, output, output, projection=cli.config["projection"])
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
    on_rank_zero(lambda: report_leaks(datamodule, test, found, output))
    return found


def probe(args: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Walk straight paths between training images, and write where a trained model changes its mind on them.

    Args:
        args: Command-line arguments; those of the process if None.

    Returns:
        The rates of each kind of pairs, as `toolkit.boundary.summarise` tells them.
    """
    from toolkit.boundary.pairs import STRATA, check_draw, codes_of, draw_pairs
    from toolkit.boundary.paths import check_paths
    from toolkit.boundary.probing import PairWalker, save_probe
    from toolkit.boundary.strata import redundancy_limit, table_of

    cli = ToolkitCLI(args, command="probe")
    model, datamodule, output = cli.model, cli.datamodule, Path(cli.config["output"])
    settings, weights = cli.config_init["probe"], str(cli.config["ckpt_path"])
    check_draw(settings.num_pairs, STRATA)
    check_paths(settings.num_points, settings.tolerance)
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
        class_names=class_names_of(datamodule),
        num_planes=settings.num_planes,
    )
    print("\n".join(["", table_of(rows), "", *(f"{name}: {path}" for name, path in files.items())]))
    return rows


def layers(args: Sequence[str] | None = None) -> list[LayerRow]:
    """Print which layers the network has that the config's features come from, and what each gives, to choose one.

    Args:
        args: Command-line arguments; those of the process if None.
    """
    cli = ToolkitCLI(args, command="layers")
    datamodule, count = cli.datamodule, cli.config["n_images"]
    features = extractor_of(datamodule)
    if features is None:
        selector = getattr(datamodule, "selector", datamodule)
        sys.exit(f"error: `data.selector` must have a FeatureExtractor as `features`, got {type(selector).__name__}.")
    _prepare(cli, None)
    view = datamodule.evaluation_view()
    rows = layer_table(features, view, labels_of(view.dataset), n_images=count, seed=0)
    try:
        chosen = find_layer(features.network()[0], features.layer)[0]
    except ValueError:
        chosen = None  # A layer that does not exist is why somebody asks which do.
    on_rank_zero(lambda: print("\n".join(["", *layer_lines(rows, chosen, len(view))])))
    return rows


def _selection_for_probe(cli: ToolkitCLI, ckpt_path: str) -> Selection | None:
    """The selection that a checkpoint carries, or else the config's, unless a baseline would have to be trained."""
    datamodule, stored = cli.datamodule, stored_selection(ckpt_path)
    if stored is not None:
        dataset = datamodule.evaluation_dataset() if _is_pruned(datamodule) else evaluation_view_of(cli.trainer).dataset
        if len(dataset) != len(stored["status"]):
            sys.exit(
                f"error: `ckpt_path` must be trained on the config's data, got one on {len(stored['status'])} images "
                f"where there are {len(dataset)}."
            )
        return Selection.from_state_dict(stored, ids_of(dataset), labels_of(dataset))
    if needs_baseline(datamodule):
        if cli.config_init["baseline"].checkpoint is None:
            print(
                "The checkpoint carries no selection, and the config's needs a baseline: no redundant pairs are walked."
            )
            return None
        supply_baseline(cli, datamodule)
    return _selection_of(datamodule)


def _prepare(cli: ToolkitCLI, output: Path | None) -> list[Run]:
    """Check what was asked for, and set everything up as in training, without training more than a missing baseline.

    Args:
        cli: The command.
        output: Where it is going to write, or None.

    Returns:
        The run of the baseline, if the features come from one.
    """
    datamodule = cli.datamodule
    if not _is_pruned(datamodule):
        sys.exit(f"error: `data` must be a PrunedDataModule to select from, got {type(datamodule).__name__}.")
    _check_settings(datamodule)
    if output is not None:
        cache.check_writable(output, "output")
    runs = [supply_baseline(cli, datamodule)] if needs_baseline(datamodule) else []
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


def _is_pruned(datamodule: Any) -> bool:
    return isinstance(datamodule, by_class_path("toolkit.datamodules.PrunedDataModule"))


def _check_settings(datamodule: Any) -> None:
    """Let the selector refuse its settings now, not after a baseline was trained for it."""
    check = getattr(getattr(datamodule, "selector", None), "check", None)
    if callable(check):
        check()


def _selection_of(datamodule: Any) -> Selection | None:
    return datamodule.selection if _is_pruned(datamodule) and datamodule.selector is not None else None
