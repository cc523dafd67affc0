"""Time and memory of SSIM of all pairs, next to pytorch-msssim on the same machine in the same run.

Needs the images named by TOOLKIT_DATA (cifar10). The peer is timed on a sample of the pairs, at each of several batch
sizes, and its best is what ours is compared with. Ours computes all pairs, from bytes to the matrix. Repeats of both
take turns, so that a machine that others use slows both alike. Compilation of the kernels is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import peak_mib, versions, write_results

from toolkit.similarity import VARIANTS, pairwise_ssim, ssim_pairs_above

BATCH_SIZES = (50, 100, 250, 500, 1000)
#: Pairs that the peer computes at each batch size and repeat.
SAMPLED = 4_000
BOUND = 0.9


def load(count: int) -> npt.NDArray[np.uint8]:
    """The first images of CIFAR-10 train."""
    root = os.environ.get("TOOLKIT_DATA")
    if not root:
        raise SystemExit("Set TOOLKIT_DATA to the folder with unpack_cifar.py and cifar10/.")
    tiles = runpy.run_path(str(Path(root) / "unpack_cifar.py"))["tiles"]
    return np.ascontiguousarray(tiles(Path(root) / "cifar10" / "images_0.webp")[:count].transpose(0, 3, 1, 2))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peer(images: torch.Tensor, pairs: npt.NDArray[np.int64], batch_size: int) -> npt.NDArray[np.float32]:
    """pytorch-msssim's SSIM of some pairs."""
    import pytorch_msssim

    found = []
    for start in range(0, len(pairs), batch_size):
        i, j = torch.from_numpy(pairs[start : start + batch_size].T)
        found.append(pytorch_msssim.ssim(images[i], images[j], data_range=1.0, size_average=False))
    return torch.cat(found).numpy()


def single(path: str, what: str) -> dict[str, Any]:
    """One computation in this process, for its peak memory."""
    images = np.load(path)
    pairwise_ssim(images[:20])
    before = peak_mib()
    if what == "above":
        seconds, (pairs, _) = timed(lambda: ssim_pairs_above(images, BOUND))
        return {"seconds": round(seconds, 3), "before_mib": round(before), "peak_mib": round(peak_mib()),
                "pairs": len(pairs)}  # fmt: skip
    seconds, _ = timed(lambda: pairwise_ssim(images, variant=what))
    return {"seconds": round(seconds, 3), "before_mib": round(before), "peak_mib": round(peak_mib())}


def in_new_process(count: int, what: str) -> dict[str, Any]:
    """`single` in a process of its own, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "images.npy")
        np.save(path, load(count))
        command = [sys.executable, str(Path(__file__).resolve()), "--child", path, what]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def compare(count: int, repeats: int) -> dict[str, Any]:
    """Ours against the peer over the pairs of some images."""
    images = load(count)
    n_pairs = count * (count - 1) // 2
    floats = torch.from_numpy(images).float() / 255.0
    sample = np.random.default_rng(0).integers(count, size=(SAMPLED, 2))
    for variant in VARIANTS:
        pairwise_ssim(images[:20], variant=variant)
    theirs: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    ours: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    above: list[float] = []
    difference = 0.0
    for _ in range(repeats):
        for size in BATCH_SIZES:
            seconds, reference = timed(lambda size=size: peer(floats, sample, size))  # type: ignore[misc]
            theirs[size].append(1e6 * seconds / SAMPLED)
        for variant in VARIANTS:
            seconds, matrix = timed(lambda variant=variant: pairwise_ssim(images, variant=variant))  # type: ignore[misc]
            ours[variant].append(1e6 * seconds / n_pairs)
            if variant == "2d":
                difference = max(difference, float(np.abs(matrix[sample[:, 0], sample[:, 1]] - reference).max()))
            del matrix
        above.append(1e6 * timed(lambda: ssim_pairs_above(images, BOUND))[0] / n_pairs)
    peer_medians = {size: statistics.median(times) for size, times in theirs.items()}
    best = min(peer_medians, key=lambda size: peer_medians[size])
    row = {
        "images": count, "pairs": n_pairs, "repeats": repeats, "largest_difference": difference,
        "peer_us_a_pair": {str(size): round(value, 2) for size, value in peer_medians.items()},
        "peer_best_batch_size": best,
        "peer_us_a_pair_by_repeat": [round(value, 2) for value in theirs[best]],
    }  # fmt: skip
    print(
        f"{count:,} images, {n_pairs:,} pairs: pytorch-msssim {peer_medians[best]:.1f} us a pair in batches of {best}"
    )
    for variant in VARIANTS:
        median = statistics.median(ours[variant])
        ratio = peer_medians[best] / median
        row[variant] = {
            "seconds": round(median * n_pairs / 1e6, 3), "us_a_pair": round(median, 3),
            "us_a_pair_by_repeat": [round(value, 3) for value in ours[variant]], "times_faster": round(ratio, 1),
            "alone": in_new_process(count, variant),
        }  # fmt: skip
        print(f"  {variant:<7}{median:6.2f} us a pair, {ratio:4.0f} times faster, peak {row[variant]['alone']}")
    median = statistics.median(above)
    row["above"] = {"min_similarity": BOUND, "us_a_pair": round(median, 3),
                    "alone": in_new_process(count, "above")}  # fmt: skip
    print(f"  pairs above {BOUND}: {median:.2f} us a pair, {row['above']['alone']}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2_000])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ssim.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(single(arguments.child[0], arguments.child[1])))
        return
    rows = [compare(count, arguments.repeats) for count in arguments.counts]
    write_results(arguments.output, {
        "peer": versions("pytorch-msssim"), "sampled_pairs": SAMPLED, "threads_of_torch": torch.get_num_threads(),
        "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
