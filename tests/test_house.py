"""The rules that keep the parts apart, and the docstrings' examples."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import toolkit
from toolkit import cli

ROOT = Path(toolkit.__file__).parent.parent
STAGES = ("representations", "neighbors", "similarity", "spectrum", "grouping", "outliers")
MAY_USE_LIGHTNING = (
    "toolkit/cli.py",
    "toolkit/cli_baseline.py",
    "toolkit/cli_compare.py",
    "toolkit/cli_compare_methods.py",
    "toolkit/cli_compare_runs.py",
    "toolkit/lightning_views.py",
    "toolkit/models/classification.py",
    "toolkit/models/yolo.py",
    "callbacks/",
    "datamodules/",
)
#: ultralytics is licensed under AGPL-3.0: one module imports it, which only the detection parts use.
USES_ULTRALYTICS = "toolkit/detection/ultralytics_parts.py"
MAY_USE_DETECTION_PARTS = ("toolkit/models/yolo.py", "toolkit/models/yolo_network.py", "datamodules/yolo.py")


def sources():
    return sorted(path for folder in ("toolkit", "callbacks", "datamodules") for path in (ROOT / folder).rglob("*.py"))


def imports_of(path):
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = "toolkit." + ".".join(path.relative_to(ROOT).parts[:-1]).removeprefix("toolkit.")
                found.add(f"{package}.{node.module}" if node.module else package)
            else:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check():
    names = [path.relative_to(ROOT).as_posix() for path in sources()]
    assert "toolkit/selection/semantic.py" in names
    assert "toolkit.grouping" in imports_of(ROOT / "toolkit/selection/tree.py")
    assert "toolkit.datamodules.images" in imports_of(ROOT / "datamodules/cifar.py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_keep_the_rules(path):
    name, imported = path.relative_to(ROOT).as_posix(), imports_of(path)

    def uses(*packages):
        return {module for module in imported for package in packages if f"{module}.".startswith(f"{package}.")}

    if not name.startswith(MAY_USE_LIGHTNING):
        assert not uses("lightning", "pytorch_lightning"), "the core serves people who do not use Lightning"
    if name.startswith("toolkit/"):
        assert not uses("toolkit.callbacks", "toolkit.datamodules"), "they arrive by class path from a config"
    if name.startswith("callbacks/"):
        assert not uses("toolkit.datamodules")
    if name.startswith("datamodules/"):
        assert not uses("toolkit.callbacks")
    assert not uses("umap"), "an extra"
    if name != USES_ULTRALYTICS:
        assert not uses("ultralytics"), "an extra, of another licence"
    if name not in MAY_USE_DETECTION_PARTS:
        assert not uses("toolkit.detection.ultralytics_parts"), "an extra, of another licence"
    stage = next((stage for stage in STAGES if name.startswith(f"toolkit/{stage}")), None)
    if stage is not None:
        assert not uses("toolkit.selection", "toolkit.cli"), "stages do not know who calls them"
        others = {s for s in STAGES if s != stage and uses(f"toolkit.{s}")}
        allowed = {"grouping": {"neighbors", "similarity", "spectrum"}, "outliers": {"neighbors", "grouping"}}
        others -= allowed.get(stage, set())
        assert not others, "data flows one way"


def test_importing_the_core_imports_neither_lightning_nor_extras():
    script = (
        "import sys, toolkit\n"
        "from toolkit import Embeddings, FeatureExtractor, RandomSelector, Selection, SemanticSelector\n"
        "import toolkit.models, toolkit.detection\n"
        "print([name for name in ('lightning', 'ultralytics', 'umap', 'faiss') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["callbacks", "datamodules"])
def test_a_second_name_for_the_folders_is_refused(folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert f"imported as `toolkit.{folder}`" in done.stderr


def test_public_names_exist_and_have_docstrings():
    packages = ("boundary", "comparison", "detection", "grouping", "models", "report", "representations", "selection")
    for module in ("toolkit", *(f"toolkit.{package}" for package in packages)):
        for name in importlib.import_module(module).__all__:
            if not name.startswith("_") and not name.isupper():
                thing = getattr(importlib.import_module(module), name)
                assert thing.__doc__, f"{module}.{name}"
    with pytest.raises(AttributeError, match="has no attribute 'nowhere'"):
        toolkit.nowhere  # noqa: B018


def modules():
    """Every module under its only name, which for the folders beside `toolkit` is one inside it."""
    names = []
    for path in sources():
        parts = [*path.relative_to(ROOT).with_suffix("").parts]
        if parts[0] != "toolkit":
            parts.insert(0, "toolkit")
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_examples_are_found():
    assert len(modules()) > 25
    with_examples = [n for n in modules() if ">>>" in Path(importlib.import_module(n).__file__).read_text()]
    assert len(with_examples) > 12


def test_configs_say_only_what_differs_and_name_existing_classes():
    for name, path in cli.shipped_configs().items():
        text = path.read_text()
        assert text.startswith("#"), f"{name} says what it is"
        for class_path in re.findall(r"class_path: ([\w.]+)", text):
            module, _, attribute = class_path.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), class_path


def test_the_repository_carries_no_addresses_of_machines():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    home = re.escape(f"{Path.home()}/") if Path.home() != Path("/") else r"/home/\w+/"
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".txt", ".toml", ".yaml", ".json"} and path.name != "test_house.py":
            assert not re.search(rf"(index-url|extra-index|find-links)|{home}", path.read_text()), name
