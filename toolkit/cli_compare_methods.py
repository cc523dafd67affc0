"""The section `compare` of a configuration, and the methods that it names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as L
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

import toolkit.selection
from toolkit.cli import ToolkitCLI
from toolkit.cli_baseline import by_class_path
from toolkit.comparison.plan import BALANCED, BUDGETS, RANDOM
from toolkit.selection import ScoreSelector, Selector
from toolkit.validation import invalid

#: Arguments by which a selector is told how many images stay, by whatever rule.
BUDGET_ARGUMENTS = ("keep_fraction", "n_images", "n_groups", "threshold", "eigengap", "min_similarity")
#: The selectors that every comparison has.
BUILT_IN: dict[str, dict[str, Any]] = {
    RANDOM: {"class_path": "toolkit.RandomSelector", "init_args": {}},
    BALANCED: {"class_path": "toolkit.RandomSelector", "init_args": {"balance": "label"}},
}


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
        budgets: How long a run on fewer images is trained: for as many `epochs` as on all of them, as many `steps`, or
            both.
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


def known_selectors() -> dict[str, str]:
    """The class paths of the toolkit's selectors by their class names."""
    found = {name: getattr(toolkit.selection, name) for name in toolkit.selection.__all__}
    return {
        name: f"toolkit.{name}"
        for name, value in found.items()
        if isinstance(value, type) and name != "Selector" and callable(getattr(value, "select", None))
    }


def checked_selector(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A selector's configuration, its class looked up and its settings tried.

    Raises:
        ValueError: If there is no such selector; the message lists those of the toolkit.
    """
    known = known_selectors()
    whole, kind = _looked_up(f"compare.selectors.{name}", entry, known)
    if kind is None or not callable(getattr(kind, "select", None)):
        must = f"one of {', '.join(known.values())}, or a class of your own with a method `select`"
        raise invalid(f"compare.selectors.{name}.class_path", must, entry["class_path"])
    trial = {"keep_fraction": 0.5} if takes_fraction(whole) else {}
    selector = instantiated({**whole, "init_args": {**whole["init_args"], **trial}}, Selector)
    if callable(getattr(selector, "check", None)):
        selector.check()
    return whole


def checked_dynamic(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a method that chooses while it trains, its class looked up.

    Raises:
        ValueError: If there is no such callback or data module.
    """
    whole, kind = _looked_up(f"compare.dynamic.{name}", entry, {})
    if not (isinstance(kind, type) and issubclass(kind, (L.Callback, L.LightningDataModule))):
        must = (
            "a callback or a data module, such as toolkit.callbacks.InfoBatch, toolkit.datamodules.RandomEachEpoch or "
            "one of your own"
        )
        raise invalid(f"compare.dynamic.{name}.class_path", must, entry["class_path"])
    return whole


def takes_fraction(entry: Mapping[str, Any]) -> bool:
    """Whether a method is told which share of the images stays, and its configuration does not tell it already."""
    parameters = inspect.signature(by_class_path(entry["class_path"])).parameters
    return "keep_fraction" in parameters and not set(entry["init_args"]) & set(BUDGET_ARGUMENTS)


def wants_scores(entry: Mapping[str, Any]) -> bool:
    """Whether a selector chooses by scores that the full set's run is to collect."""
    return issubclass(by_class_path(entry["class_path"]), ScoreSelector) and entry["init_args"].get("scores") is None


def instantiated(entry: Mapping[str, Any], kind: Any) -> Any:
    """An object from its `class_path` and `init_args`, nested ones included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object({"it": dict(entry)}))["it"]
    except ArgumentError as error:
        raise ValueError(f"A {entry['class_path']} cannot be made of {dict(entry['init_args'])}: {error}") from error


def _looked_up(place: str, entry: Any, known: Mapping[str, str]) -> tuple[dict[str, Any], Any]:
    """A configuration with its class path in full, and the class; None if there is none."""
    if not isinstance(entry, Mapping) or "class_path" not in entry or set(entry) - {"class_path", "init_args"}:
        raise invalid(place, "a `class_path`, with `init_args` where there are any", entry)
    class_path = known.get(entry["class_path"], str(entry["class_path"]))
    try:
        kind = by_class_path(class_path) if "." in class_path else None
    except (ImportError, AttributeError):
        kind = None
    return {"class_path": class_path, "init_args": dict(entry.get("init_args") or {})}, kind
