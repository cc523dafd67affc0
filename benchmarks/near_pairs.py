"""Time and memory of exact near pairs and nearest neighbours, next to faiss on the same machine in the same run.

Pixels: the training images of CIFAR-10 (50,000 x 3,072 in [0, 1]), from the folder of torchvision's layout given by
--cifar. Features: features/resnet32_cifar10_train.npz of TOOLKIT_DATA (50,000 x 64, cosine). The peer is the exact
search of `faiss.IndexFlatL2` for the two nearest of every vector (itself and one other). It is timed on the first
queries, and its time for all is that times the share of them; --full times all queries once beside that.

Our times are of whole calls, set-up included, in a process of their own; they exclude the compilation of the kernels,
which are warmed up on a few vectors first.
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
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import peak_mib, versions, write_results

from toolkit.neighbors import near_pairs, nearest_neighbors

#: The 3,000th smallest distance of an image of CIFAR-10 train from its nearest neighbour, for pixels in [0, 1].
PIXEL_RADIUS = 5.712
#: A cosine dissimilarity that some thousands of pairs of features lie within.
FEATURE_RADIUS = 0.01


def pixels(folder: Path) -> npt.NDArray[np.uint8]:
    """The training images of CIFAR-10, as bytes."""
    batches = [pickle.loads((folder / f"data_batch_{i}").read_bytes(), encoding="latin1") for i in range(1, 6)]
    return np.concatenate([batch["data"] for batch in batches])


def features() -> npt.NDArray[np.float32]:
    """Features of CIFAR-10 train."""
    root = os.environ.get("TOOLKIT_DATA")
    if not root:
        raise SystemExit("Set TOOLKIT_DATA to the folder with features/resnet32_cifar10_train.npz.")
    with np.load(Path(root) / "features" / "resnet32_cifar10_train.npz") as file:
        vectors: npt.NDArray[np.float32] = file["features"].astype(np.float32)
    return vectors


def ours(task: str, cifar: Path, repeats: int) -> dict[str, Any]:
    """One task in this process: seconds of each repeat, what was found, and the peak memory."""
    vectors: npt.NDArray[Any]
    data, _, what = task.partition(" ")
    if data == "features":
        vectors, metric, radius = features(), "cosine", FEATURE_RADIUS
    else:
        vectors, metric, radius = pixels(cifar), "euclidean", 255 * PIXEL_RADIUS
        if data == "floats":
            vectors, radius = vectors.astype(np.float32) / np.float32(255), PIXEL_RADIUS

    def call(x: npt.NDArray[Any]) -> int:
        if what == "pairs":
            return len(near_pairs(x, radius, metric=metric).pairs)
        return len(nearest_neighbors(x, 1, metric=metric, device="cpu").indices)

    call(vectors[:1500])
    before = peak_mib()
    seconds = []
    found = 0
    for _ in range(repeats):
        start = time.perf_counter()
        found = call(vectors)
        seconds.append(time.perf_counter() - start)
    return {
        "task": task, "vectors": len(vectors), "dimensions": vectors.shape[1], "radius": radius, "found": found,
        "seconds": [round(s, 3) for s in seconds], "median_s": round(statistics.median(seconds), 3),
        "before_mib": round(before), "peak_mib": round(peak_mib()),
    }  # fmt: skip


def peer(data: str, cifar: Path, queries: int, repeats: int, full: bool) -> dict[str, Any]:
    """The exact search of faiss, on some queries or on all."""
    import faiss

    if data == "features":
        vectors = features()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    else:
        vectors = pixels(cifar).astype(np.float32) / np.float32(255)
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    index.search(vectors[:100], 2)
    slices = []
    for _ in range(repeats):
        start = time.perf_counter()
        index.search(vectors[:queries], 2)
        slices.append((time.perf_counter() - start) * len(vectors) / queries)
    row: dict[str, Any] = {
        "data": data, "queries": queries, "scaled_s": [round(s, 2) for s in slices],
        "median_s": round(statistics.median(slices), 2),
    }  # fmt: skip
    if full:
        start = time.perf_counter()
        index.search(vectors, 2)
        row["all_queries_s"] = round(time.perf_counter() - start, 2)
    row["peak_mib"] = round(peak_mib())
    return row


def in_new_process(arguments: argparse.Namespace, child: str) -> dict[str, Any]:
    """One task in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", child, "--cifar", str(arguments.cifar)]
    command += ["--repeats", str(arguments.repeats), "--queries", str(arguments.queries)]
    command += ["--full"] * arguments.full
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(child, row, flush=True)
    return row


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder with data_batch_1 to data_batch_5")
    parser.add_argument("--repeats", type=int, default=3, help="repeats (medians are compared)")
    parser.add_argument("--queries", type=int, default=2_000, help="queries that faiss is timed on")
    parser.add_argument("--full", action="store_true", help="also time faiss on all queries, once (minutes)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "near_pairs.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, _, data = arguments.child.partition(" ")
        if what == "faiss":
            row = peer(data, arguments.cifar, arguments.queries, arguments.repeats, arguments.full)
        else:
            row = ours(data, arguments.cifar, arguments.repeats)
        print(json.dumps(row))
        return
    results: dict[str, Any] = {"packages": versions("numba", *_installed("faiss-cpu", "faiss-gpu", "faiss"))}
    results["faiss"] = [in_new_process(arguments, f"faiss {data}") for data in ("pixels", "features")]
    tasks = ("bytes pairs", "floats pairs", "features pairs", "bytes nearest", "features nearest")
    results["ours"] = [in_new_process(arguments, f"ours {task}") for task in tasks]
    for row in results["ours"]:
        theirs = results["faiss"][row["task"].startswith("features")]
        row["times_faster_than_faiss_scaled"] = round(theirs["median_s"] / row["median_s"], 1)
        if arguments.full:
            row["times_faster_than_faiss"] = round(theirs["all_queries_s"] / row["median_s"], 1)
        print(f"{row['task']:<17} {row['median_s']:7.2f} s  {row['times_faster_than_faiss_scaled']:6.1f} times faster")
    write_results(arguments.output, results)


def _installed(*packages: str) -> list[str]:
    """Those of some packages that are installed."""
    return [name for name in packages if next(iter(metadata.distributions(name=name)), None) is not None]


if __name__ == "__main__":
    main()
