"""Time and memory of the outlier scores beside scikit-learn, and which of them removes modes and empties classes.

Vectors: features/resnet32_cifar10_train.npz of TOOLKIT_DATA (50,000 x 64), and its first 10,000. Every task runs in a
process of its own; times are of whole calls and exclude the compilation of the kernels, which are warmed up first.
scikit-learn's HDBSCAN compares all pairs and is timed at 10,000; its LocalOutlierFactor at both sizes.

Safety: of the 5 %, 25 % and 50 % with the largest scores, the share that forms modes, the classes' shares among the
chosen, and how many images of the class with the fewest are left, with and without `protect_modes`. Labels are used to
judge only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import peak_mib, versions, write_results

from toolkit.outliers import SCORES, OutlierModeWarning, choose_outliers, outlier_scores

#: Shares of the images to choose.
SHARES = (0.05, 0.25, 0.5)
#: The peers' number of neighbours, as ours by default.
K = 16


def data() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features and labels of CIFAR-10 train."""
    root = os.environ.get("TOOLKIT_DATA")
    if not root:
        raise SystemExit("Set TOOLKIT_DATA to the folder with features/resnet32_cifar10_train.npz.")
    with np.load(Path(root) / "features" / "resnet32_cifar10_train.npz") as file:
        return file["features"].astype(np.float32), file["labels"].astype(np.int64)


def run(what: str, vectors: npt.NDArray[np.float32]) -> Any:
    """One score of all vectors."""
    if what == "LocalOutlierFactor":
        from sklearn.neighbors import LocalOutlierFactor

        return LocalOutlierFactor(n_neighbors=K, n_jobs=-1).fit(vectors).negative_outlier_factor_
    if what == "HDBSCAN":
        from sklearn.cluster import HDBSCAN

        return HDBSCAN(min_cluster_size=K, min_samples=K + 1, n_jobs=-1, copy=True).fit(vectors).labels_
    return outlier_scores(vectors, what)


def timed(what: str, count: int, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory of one score in this process."""
    vectors = data()[0][:count]
    run(what, vectors[:1500])
    before = peak_mib()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(what, vectors)
        seconds.append(time.perf_counter() - start)
    return {
        "what": what, "vectors": count, "dimensions": vectors.shape[1], "seconds": [round(s, 2) for s in seconds],
        "median_s": round(statistics.median(seconds), 2), "before_mib": round(before), "peak_mib": round(peak_mib()),
    }  # fmt: skip


def safety() -> list[dict[str, Any]]:
    """What is lost where the largest scores are removed."""
    vectors, labels = data()
    rows = []
    for metric in ("euclidean", "cosine"):
        for method in SCORES:
            for share in SHARES:
                for protect in (False, True):
                    n = int(share * len(vectors))
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", OutlierModeWarning)
                        start = time.perf_counter()
                        choice = choose_outliers(vectors, n, method, metric=metric, protect_modes=protect)
                        seconds = time.perf_counter() - start
                    chosen = np.bincount(labels[choice.indices], minlength=10)
                    left = np.bincount(labels, minlength=10) - chosen
                    grouped = sum(map(len, choice.groups))
                    rows.append({
                        "method": method, "metric": metric, "share": share, "protect_modes": protect,
                        "modes": len(choice.groups), "in_modes": grouped, "share_in_modes": round(grouped / n, 4),
                        "largest_mode": max(map(len, choice.groups), default=0),
                        "chosen_of_classes": sorted(chosen.tolist()),
                        "fewest_left_of_a_class": int(left.min()),
                        "distance_of_class_shares_left": round(float(np.abs(left / left.sum() - 0.1).sum() / 2), 4),
                        "seconds": round(seconds, 1),
                    })  # fmt: skip
                    print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="repeats (medians are compared)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "outliers.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, count = arguments.child.split()
        print(json.dumps(timed(what, int(count), 1 if what == "HDBSCAN" else arguments.repeats)))
        return
    tasks = [f"{what} {count}" for count in (10_000, 50_000) for what in (*SCORES, "LocalOutlierFactor")]
    times = []
    for task in [*tasks, "HDBSCAN 10000"]:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", task, "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        times.append(json.loads(done.stdout.splitlines()[-1]))
        print(times[-1], flush=True)
    write_results(
        arguments.output,
        {"packages": versions("numba", "scikit-learn"), "k": K, "times": times, "safety": safety()},
    )


if __name__ == "__main__":
    main()
