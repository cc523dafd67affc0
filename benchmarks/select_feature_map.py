"""Choosing 90 % of CIFAR-10 without labels by a ResNet-32's features: the whole command, from files to files.

    TOOLKIT_DATA=... python benchmarks/select_feature_map.py --root ROOT_OF_CIFAR10 [--features CACHE/features]

ROOT holds `cifar-10-batches-py`. Runs `toolkit.select --config cifar10_feature_map.yaml` with the given weights twice,
each time in a process of its own: first with an empty cache, then with the features in it and the selection taken out,
which tells what is not extraction. What is compiled once for an installation is compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_results

_CHILD = (
    "import runpy, sys; sys.path.insert(0, {here!r}); from common import peak_mib; sys.argv = sys.argv[1:];"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True);"
    "print('peak', peak_mib())"
)


def run(folder: Path, root: str, more: list[str]) -> dict[str, Any]:
    """Run the command in a folder; seconds, peak memory and what it reports."""
    weights = (Path(os.environ["TOOLKIT_DATA"]) / "weights" / "resnet32_cifar10.pt").resolve()
    data = [f"--data.datamodule.init_args.root={Path(root).resolve()}", "--data.datamodule.init_args.download=false"]
    command = ["toolkit.select", "--config", "cifar10_feature_map.yaml", f"--baseline.checkpoint={weights}"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(here=str(Path(__file__).parent)), *command, "--output=out", *data, *more],
        cwd=folder,
        env={**os.environ, "TOOLKIT_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    selection = json.loads((folder / "out" / "selection.json").read_text())
    summary = json.loads((folder / "out" / "summary.json").read_text())
    reasons: dict[str, int] = {}
    for count in selection["classes"].values():
        for name, number in count.items():
            reasons[name] = reasons.get(name, 0) + number
    return {
        "seconds": round(seconds, 1),
        "choosing_s": round(summary["seconds_choosing"], 1),
        "peak_mib": round(float(done.stdout.split("peak ")[-1])),
        "images": reasons,
        "kept_of_each_class": {name: count["kept"] for name, count in selection["classes"].items()},
        "files": sorted(path.name for path in (folder / "out").iterdir()),
    }


def compile_first() -> None:
    """What is compiled once for an installation."""
    from toolkit import FeatureMapSelector

    FeatureMapSelector(np.random.default_rng(0).normal(size=(500, 64)), 0.9, progress=False).select()


def main() -> None:
    """Run both and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--features", help="the folder `features` of a cache that has them: the first run is left out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "select_feature_map.json")
    options = parser.parse_args()
    compile_first()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.features is None:
            results["first_run"] = run(folder, options.root, [])
            for part in ("cache/selections", "out"):
                shutil.rmtree(folder / part)
        else:
            shutil.copytree(options.features, folder / "cache" / "features")
        results["features_in_the_cache"] = run(folder, options.root, [])
    for title, row in results.items():
        print(f"{title:<24} {row['seconds']:7.1f} s, {row['peak_mib']:,} MiB, {row['images']}")
    write_results(options.output, results)


if __name__ == "__main__":
    main()
