"""The built wheel, installed outside the checkout, in a project that has folders of the same names."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import toolkit

ROOT = Path(toolkit.__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the toolkit is installed, there is no checkout to build from"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that the checkout stays clean."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("toolkit", "callbacks", "datamodules", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_and_config_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {"toolkit/py.typed"}
    for kind in ("py", "html", "css", "js", "json"):
        expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "toolkit").rglob(f"*.{kind}")}
    for folder in ("callbacks", "datamodules", "configs"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]:
            expected.add(f"toolkit/{path.relative_to(ROOT).as_posix()}")
    assert names == {name for name in expected if "__pycache__" not in name}


def test_it_runs_in_a_project_with_its_own_callbacks_and_datamodules(wheel, tmp_path):
    site, project = tmp_path / "site", tmp_path / "project"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("callbacks", "datamodules", "configs"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    (project / "datamodules" / "mine.py").write_text(
        "from toolkit.datamodules import DigitsDataModule\n\n\nclass MyDigits(DigitsDataModule):\n    pass\n"
    )
    (project / "mine.yaml").write_text(
        "seed_everything: 1\n"
        "model:\n  class_path: toolkit.models.ImageClassifier\n  init_args: {network: resnet20, in_channels: 1}\n"
        "data:\n  class_path: toolkit.datamodules.PrunedDataModule\n  init_args:\n"
        "    datamodule: {class_path: datamodules.mine.MyDigits}\n"
        "    selector:\n      class_path: toolkit.RandomSelector\n      init_args: {keep_fraction: 0.5}\n"
        "trainer: {max_steps: 1, accelerator: cpu, logger: false, enable_checkpointing: false}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "TOOLKIT_CACHE": str(tmp_path / "cache")}
    where = subprocess.run(
        [
            sys.executable,
            "-c",
            "import toolkit, callbacks, datamodules; from toolkit.callbacks import EpochTimeMonitor;"
            "print(toolkit.__file__, callbacks.MINE, datamodules.MINE)",
        ],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.split() == [str(site / "toolkit" / "__init__.py"), "callbacks", "datamodules"]
    fitted = subprocess.run(
        [sys.executable, "-m", "toolkit.fit", "--config", "mine.yaml"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    assert "total    1348   674      674       50.0" in fitted.stdout
    shipped = subprocess.run(
        [sys.executable, "-m", "toolkit.fit", "--config", "nowhere.yaml"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shipped.returncode != 0
    assert "one of the shipped cifar100_compare.yaml, cifar100_semantic.yaml, cifar100_ssim.yaml, " in shipped.stderr
