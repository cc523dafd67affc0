"""Choosing among CIFAR-10's 50,000 training images without a model: whole commands, images to files and pictures.

    python benchmarks/select_wavelet.py --root ROOT_OF_CIFAR10 [--parts commands cleanvision] [--output FILE]

ROOT holds `cifar-10-batches-py`. Runs `toolkit.select` with the configs `cifar10_wavelet` and `cifar10_wavelet_paper`,
and `toolkit.leaks` with the first, each in a process of its own with an empty cache folder; what is compiled once for
an installation is compiled before. The part `cleanvision` (which has to be installed, maybe in an environment of its
own) times its search for near-duplicates on the same images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import cifar10, peak_mib, write_results

COMMANDS = {
    "select cifar10_wavelet": ("toolkit.select", "cifar10_wavelet.yaml"),
    "select cifar10_wavelet_paper": ("toolkit.select", "cifar10_wavelet_paper.yaml"),
    "leaks cifar10_wavelet": ("toolkit.leaks", "cifar10_wavelet.yaml"),
}
_CHILD = (
    "import runpy, sys; sys.path.insert(0, {here!r}); from common import peak_mib; sys.argv = sys.argv[1:];"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True);"
    "print('peak', peak_mib())"
)


def run(module: str, config: str, root: str) -> dict[str, Any]:
    """Run a command in a folder of its own; seconds, peak memory and what it reports."""
    data = [f"--data.datamodule.init_args.root={Path(root).resolve()}", "--data.datamodule.init_args.download=false"]
    child = _CHILD.format(here=str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", child, module, "--config", config, "--output", "out", *data],
            cwd=folder,
            env={**os.environ, "TOOLKIT_CACHE": f"{folder}/cache"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        written = sorted(path.name for path in (Path(folder) / "out").iterdir())
        summary = Path(folder) / "out" / ("summary.json" if module == "toolkit.select" else "leaks.json")
        facts = json.loads(summary.read_text())
    wanted = ("kept", "removed", "seconds_choosing", "twins", "mirrored_twins", "twins_with_another_label")
    peak = float(done.stdout.split("peak ")[-1])
    return {
        "seconds": seconds,
        "peak_mib": peak,
        "influential": next((int(x.split()[0]) for x in done.stdout.splitlines() if "of another label" in x), 0),
        **{name: facts[name] for name in wanted if name in facts},
        "files": written,
    }


def cleanvision(root: str) -> dict[str, Any]:
    """The time that cleanvision takes to look for exact and near duplicates, and how many images it flags."""
    from cleanvision import Imagelab

    lab = Imagelab(torchvision_dataset=cifar10(root, train=True))
    start = time.perf_counter()
    lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=os.cpu_count())
    seconds = time.perf_counter() - start
    flagged = {name: int(lab.issues[f"is_{name}_issue"].sum()) for name in ("near_duplicates", "exact_duplicates")}
    return {"seconds": seconds, "flagged": flagged, "peak_mib": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=("commands", "cleanvision"), default=["commands"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "select_wavelet.json")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for title, (module, config) in COMMANDS.items() if "commands" in options.parts else ():
        run(module, config, options.root)
        runs = [run(module, config, options.root) for _ in range(options.repeats)]
        seconds = [one["seconds"] for one in runs]
        results[title] = {**runs[0], "seconds": statistics.median(seconds), "all_seconds": seconds}
        print(title, {name: value for name, value in results[title].items() if name != "files"}, flush=True)
    if "cleanvision" in options.parts:
        results["cleanvision"] = cleanvision(options.root)
        print("cleanvision", results["cleanvision"])
    write_results(options.output, results)


if __name__ == "__main__":
    main()
