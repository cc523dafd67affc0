"""Time and memory of `pca` for long and for many vectors, beside scikit-learn on the same memory-mapped file.

- long: 2,500 x 327,600 (the flattened output of YOLOv5's Detect layer for 2,500 images, as in the thesis), float32,
  3.3 GB, reduced to 2,500 dimensions. No peer: `PCA(svd_solver="full")`, which its "auto" picks here, had taken 17 GB
  and not ended after 7 minutes on a shared machine with 2 cores and 23 GiB, where it was stopped.
- twentieth: 2,500 x 16,380, the same with a twentieth of the length, where the peer can be had.
- many: 1,000,000 x 64, float32, reduced to 32 dimensions. The peers are `PCA`, which picks its solver, and
  `IncrementalPCA`.

The vectors are seeded: random directions of falling spread plus noise. Every task runs in a process of its own. Peak
memory includes what of the file lies in memory; `peak_of_own_mib` leaves that out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import peak_mib, versions, write_results

from toolkit.representations import pca

SHAPES = {"long": (2_500, 327_600, 2_500), "twentieth": (2_500, 16_380, 2_500), "many": (1_000_000, 64, 32)}


def make(path: Path, n_rows: int, n_features: int) -> None:
    """Write seeded vectors of falling spread, some rows at a time."""
    rng = np.random.default_rng(0)
    rank = min(256, n_features)
    axes = rng.normal(size=(rank, n_features)).astype(np.float32)
    spreads = (10.0 / np.arange(1, rank + 1)).astype(np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_features))
    step = max(1, (1 << 24) // n_features)
    for start in range(0, n_rows, step):
        rows = min(step, n_rows - start)
        weights = rng.standard_normal((rows, rank), np.float32) * spreads
        noise = rng.standard_normal((rows, n_features), np.float32)
        out[start : start + rows] = weights @ axes + noise + np.float32(2.0)
    out.flush()


def own_mib() -> float:
    """Resident memory that is not of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def run(what: str, vectors: npt.NDArray[Any], n_dim: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Coordinates and variances."""
    if what == "toolkit":
        found = pca(vectors, n_dim)
        return found.vectors, found.explained_variance
    from sklearn.decomposition import PCA, IncrementalPCA

    model = IncrementalPCA(n_dim) if what == "IncrementalPCA" else PCA(n_dim, svd_solver=what.removeprefix("PCA "))
    return model.fit_transform(vectors), model.explained_variance_


def child(what: str, path: Path, n_dim: int, output: Path) -> dict[str, Any]:
    """One reduction in this process; its first columns and the variances are saved for comparison."""
    vectors = np.load(path, mmap_mode="r")
    run(what, np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32), 4)
    before = own_mib()
    highest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            highest[0] = max(highest[0], own_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        coordinates, variances = run(what, vectors, n_dim)
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - start
    np.savez(output, coordinates=coordinates[:, :16], variances=variances)
    return {
        "what": what,
        "seconds": round(seconds, 1),
        "peak_mib": round(peak_mib()),
        "own_before_mib": round(before),
        "peak_of_own_mib": round(highest[0]),
    }


def differences(ours: Path, theirs: Path) -> dict[str, float]:
    """The largest difference of coordinates (as a share of the largest, signs aside) and of variances (relative)."""
    with np.load(ours) as a, np.load(theirs) as b:
        one, other = a["coordinates"].astype(np.float64), b["coordinates"].astype(np.float64)
        signs = np.where((one * other).sum(axis=0) < 0, -1.0, 1.0)
        far = float(np.abs(one - signs * other).max() / np.abs(other).max())
        first = slice(0, 16)
        relative = np.abs(a["variances"][first] - b["variances"][first]) / b["variances"][first]
    return {"coordinates": float(f"{far:.2e}"), "variances": float(f"{relative.max():.2e}")}


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put files of 3.3 GB; a temporary folder if not given")
    parser.add_argument(
        "--only", choices=sorted(SHAPES), nargs="+", help="some of the sizes; the others' figures stay as they are"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "reduction.json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, path, n_dim, output = arguments.child
        print(json.dumps(child(what, Path(path), int(n_dim), Path(output))))
        return
    peers = {"long": (), "twentieth": ("PCA full",), "many": ("PCA auto", "PCA full", "IncrementalPCA")}
    results: dict[str, Any] = {}
    wanted = arguments.only or list(SHAPES)
    if arguments.only and arguments.output.is_file():
        results = {name: value for name, value in json.loads(arguments.output.read_text()).items() if name in SHAPES}
    results["packages"] = versions("scikit-learn")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name, (n_rows, n_features, n_dim) in SHAPES.items():
            if name not in wanted:
                continue
            path = Path(folder) / f"{name}.npy"
            make(path, n_rows, n_features)
            rows = []
            for what in ("toolkit", *peers[name]):
                output = Path(folder) / f"{name} {what}.npz"
                task = [what, str(path), str(n_dim), str(output)]
                command = [sys.executable, str(Path(__file__).resolve()), "--child", *task]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                if what != "toolkit":
                    rows[-1]["difference"] = differences(Path(folder) / f"{name} toolkit.npz", output)
                print(name, rows[-1], flush=True)
            results[name] = {"shape": [n_rows, n_features], "n_dim": n_dim, "runs": rows}
            path.unlink()
    write_results(arguments.output, results)


if __name__ == "__main__":
    main()
