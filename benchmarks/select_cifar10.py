"""Choosing 90 % of CIFAR-10 with a ResNet-32: time of extraction, of the rest, of a second run, and peak memory.

    TOOLKIT_DATA=... python benchmarks/select_cifar10.py --root ROOT_OF_CIFAR10

ROOT holds `cifar-10-batches-py`. Each of the two runs is a process of its own with a cache folder of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from common import peak_mib, write_results


def one_run(root: str, cache: str) -> dict[str, Any]:
    """Choose, and say how long each part took."""
    from toolkit import FeatureExtractor, SemanticSelector
    from toolkit.datamodules import CIFAR10DataModule, PrunedDataModule
    from toolkit.models import resnet32

    os.environ["TOOLKIT_CACHE"] = cache
    warnings.simplefilter("ignore")
    weights = Path(os.environ["TOOLKIT_DATA"]) / "weights" / "resnet32_cifar10.pt"
    extraction = []

    class Timed(FeatureExtractor):
        def vectors(self, dataset: Any) -> Any:
            start = time.perf_counter()
            vectors = super().vectors(dataset)
            extraction.append(time.perf_counter() - start)
            return vectors

    features = Timed(resnet32(), "avgpool", weights, progress=False)
    datamodule = PrunedDataModule(
        CIFAR10DataModule(root, download=False), SemanticSelector(features, keep_fraction=0.9, progress=False)
    )
    start = time.perf_counter()
    datamodule.setup("fit")
    loaded = time.perf_counter()
    selection = datamodule.selection
    chosen = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        selection.save(folder)
        saved = time.perf_counter()
    recut = selection.with_keep_fraction(0.7)
    done = time.perf_counter()
    return {
        "origin": datamodule.origin,
        "kept": len(selection.kept),
        "recut_kept": len(recut.kept),
        "load_data_s": loaded - start,
        "extraction_s": sum(extraction),
        "rest_of_choosing_s": chosen - loaded - sum(extraction),
        "save_s": saved - chosen,
        "recut_s": done - saved,
        "peak_mib": peak_mib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "select_cifar10.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one_run(options.root, options.child)))
        return
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--root", options.root, "--child", cache]
        runs = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(2)]
    first, second = runs
    write_results(options.output, {"first_run": first, "second_run": second})
    for name, value in first.items():
        print(f"{name:<22} {value!s:>24} {second[name]!s:>24}")


if __name__ == "__main__":
    main()
