"""Time, memory and objective of k-means with nearly as many groups as images, next to scikit-learn and faiss.

Needs CIFAR-10 in torchvision's layout, in the folder named by CIFAR_ROOT. Prints what it finds and writes it as JSON.
Objectives are for pixels in [0, 1]. Every time excludes the compilation of the kernels, which are warmed up first.

- 47,000 groups of the 50,000 training images: Ward's tree, Lloyd's iterations and the choice of representatives, each
  repeat in a process of its own, for uint8 and float32 pixels, with the peak memory.
- 4,700 groups of the first 5,000 images: the objective of each start, before and after Lloyd's iterations, and
  scikit-learn's from the same start.
- One iteration of faiss, a search of every image for its nearest of 47,000 centres, on a sample of the images: the time
  of such a search grows in proportion to the images. `--full` also times the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import peak_mib, versions, write_results

from toolkit.grouping import STARTS, kmeans, merge_tree, nearest_to_centre

SEED = 0
GROUPS = 47_000


def load(dtype: str = "uint8") -> npt.NDArray[Any]:
    """The pixels of CIFAR-10 train, (50,000, 3,072)."""
    root = os.environ.get("CIFAR_ROOT")
    if not root:
        raise SystemExit("Set CIFAR_ROOT to the folder with cifar-10-batches-py.")
    files = [Path(root) / "cifar-10-batches-py" / f"data_batch_{k}" for k in range(1, 6)]
    pixels = np.concatenate([pickle.loads(file.read_bytes(), encoding="latin1")["data"] for file in files])
    if dtype == "uint8":
        return pixels
    out = np.empty(pixels.shape, np.float32)
    np.divide(pixels, np.float32(255.0), out=out)
    return out


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def warm_up(pixels: npt.NDArray[Any]) -> None:
    """Compile the kernels, or load them from numba's cache."""
    few = pixels[:3_000]
    found = kmeans(few, 2_800)
    nearest_to_centre(few, found.groups)


def whole(dtype: str) -> dict[str, Any]:
    """The job in this process."""
    pixels = load(dtype)
    unit = 255.0**2 if dtype == "uint8" else 1.0
    warm_up(pixels)
    before = peak_mib()
    ward_s, tree = timed(lambda: merge_tree(pixels, GROUPS, linkage="ward", metric="euclidean"))
    ward_peak = peak_mib()
    lloyd_s, found = timed(lambda: kmeans(pixels, GROUPS, tree=tree))
    nearest_s, _ = timed(lambda: nearest_to_centre(pixels, found.groups))
    return {
        "images": len(pixels), "groups": GROUPS, "dtype": dtype, "ward_s": round(ward_s, 2),
        "lloyd_s": round(lloyd_s, 2), "nearest_s": round(nearest_s, 2),
        "total_s": round(ward_s + lloyd_s + nearest_s, 2), "before_mib": round(before),
        "ward_peak_mib": round(ward_peak), "peak_mib": round(peak_mib()),
        "objective": round(found.objective / unit, 2), "iterations": found.n_iter, "moved": found.n_moved,
    }  # fmt: skip


def in_new_processes(dtype: str, repeats: int) -> dict[str, Any]:
    """`whole` in processes of their own, so that the peak memory is its own; the median of the times."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", dtype]
    rows = []
    for _ in range(repeats):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    row: dict[str, Any] = sorted(rows, key=lambda row: row["total_s"])[len(rows) // 2]
    row["all_total_s"] = [row["total_s"] for row in rows]
    print(
        f"{row['groups']:,} of {row['images']:,} {dtype}: Ward {row['ward_s']:.1f} s, Lloyd {row['lloyd_s']:.1f} s, "
        f"representatives {row['nearest_s']:.1f} s, total {row['total_s']:.1f} s, peak {row['peak_mib']:,} MiB "
        f"(before {row['before_mib']:,}), objective {row['objective']:,.0f}, {row['moved']} moved"
    )
    return row


def starts(count: int = 5_000, n_groups: int = 4_700) -> list[dict[str, Any]]:
    """The objective of each start of ours and, from the same start, that of scikit-learn."""
    from sklearn.cluster import KMeans as Peer

    pixels = load("float32")[:count]
    kmeans(pixels, n_groups, init="random", max_iter=1)
    rows = []
    for init in STARTS:
        start_s, start = timed(lambda init=init: kmeans(pixels, n_groups, init=init, seed=SEED, max_iter=0))  # type: ignore[misc]
        ours_s, ours = timed(lambda start=start: kmeans(pixels, n_groups, init=start.groups))  # type: ignore[misc]
        model = Peer(n_groups, init=start.centres, n_init=1, tol=0.0, max_iter=100)
        peer_s, peer = timed(lambda model=model: model.fit(pixels))  # type: ignore[misc]
        pairs = np.unique(np.stack([ours.groups, peer.labels_]), axis=1).shape[1]
        row = {
            "images": count, "groups": n_groups, "init": init, "start_s": round(start_s, 2),
            "start_objective": round(start.objective, 1), "objective": round(ours.objective, 1),
            "moved": ours.n_moved, "iterations": ours.n_iter, "lloyd_s": round(ours_s, 2),
            "sklearn_objective": round(float(peer.inertia_), 1), "sklearn_s": round(peer_s, 2),
            "sklearn_iterations": int(peer.n_iter_), "ratio": round(ours_s / peer_s, 4),
            "same_groups": pairs == n_groups,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{init:<10} start {row['start_objective']:>9,} in {start_s:6.2f} s, ours {row['objective']:>9,} in "
            f"{ours_s:5.2f} s ({ours.n_moved} moved), scikit-learn {row['sklearn_objective']:>9,} in {peer_s:6.2f} s, "
            f"same groups: {row['same_groups']}"
        )
    return rows


def faiss_iteration(queries: int, repeats: int) -> dict[str, Any]:
    """The search of one iteration of faiss's k-means, for some of the images."""
    import faiss

    pixels = load("float32")
    index = faiss.IndexFlatL2(pixels.shape[1])
    index.add(pixels[:GROUPS])
    some = np.ascontiguousarray(pixels[:: max(1, len(pixels) // queries)][:queries])
    index.search(some[:256], 1)
    seconds = [timed(lambda: index.search(some, 1))[0] for _ in range(repeats)]
    median = statistics.median(seconds)
    row = {
        "queries": len(some), "centres": GROUPS, "search_s": [round(s, 2) for s in seconds],
        "whole_estimated_s": round(median * len(pixels) / len(some), 1),
    }  # fmt: skip
    print(f"faiss: {len(some):,} images against {GROUPS:,} centres {median:.2f} s, all {row['whole_estimated_s']} s")
    return row


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the whole job and of the search of faiss")
    parser.add_argument("--full", action="store_true", help="also time faiss on all images (more than a minute)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kmeans.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(whole(arguments.child)))
        return
    results: dict[str, Any] = {"seed": SEED, "packages": versions("numba", "scikit-learn")}
    results["whole"] = [in_new_processes(dtype, arguments.repeats) for dtype in ("uint8", "float32")]
    results["faiss"] = [faiss_iteration(2_000, arguments.repeats)]
    if arguments.full:
        results["faiss"].append(faiss_iteration(50_000, 1))
    results["starts"] = starts()
    results["faiss_over_ours"] = round(results["faiss"][-1]["whole_estimated_s"] / results["whole"][1]["total_s"], 2)
    write_results(arguments.output, results)


if __name__ == "__main__":
    main()
