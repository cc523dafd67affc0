"""The numbers that Yousefzadeh prints (arXiv 2002.10257), measured on the same data, each beside the paper's.

    python benchmarks/reproduce_wavelet_paper.py --fish cifar-100-aquarium-fish.npz --cifar10 ROOT_OF_CIFAR10

FISH holds the arrays `train` (500, 32, 32, 3) and `test` (100, 32, 32, 3) of CIFAR-100's class 1, uint8. ROOT holds
`cifar-10-batches-py`; without it the rows of CIFAR-10 are left out.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import cifar10, peak_mib, write_results

from toolkit import SSIMSelector, WaveletCoefficients
from toolkit.insight import find_leaks_by_similarity, least_similar_pairs, near_duplicates
from toolkit.representations.columns import independent_columns
from toolkit.similarity import pairwise_ssim
from toolkit.spectrum import groups_by_eigengap, laplacian_eigenvalues


def of_fish(path: str) -> list[tuple[str, Any, Any]]:
    """What the paper says of the class `aquarium fish`: rows of what, the paper's figure, ours."""
    arrays = np.load(path)
    train, test = (np.ascontiguousarray(arrays[name].transpose(0, 3, 1, 2)) for name in ("train", "test"))
    similarity = pairwise_ssim(train, variant="volume")
    flat = pairwise_ssim(train, variant="2d")
    others = ~np.eye(len(train), dtype=bool)
    least = least_similar_pairs(similarity, 2)
    same = near_duplicates(similarity=similarity, min_similarity=1 - 1e-6)
    coefficients = WaveletCoefficients("db1", levels=1, progress=False).vectors(train)
    eigenvalues = laplacian_eigenvalues(similarity)
    leaks = find_leaks_by_similarity(pairwise_ssim(test, train, variant="volume"), min_similarity=0.9)
    selection = SSIMSelector(eigengap=0.4, progress=False).select(train)
    together = [selection.group[a] == selection.group[b] for a, b in same.pairs]
    highest = np.sort(leaks.similarity)[::-1]
    return [
        ("mean of S (3-D volume SSIM)", 0.088, float(similarity[others].mean())),
        ("standard deviation of S", 0.131, float(similarity[others].std())),
        ("mean of S, 2-D SSIM by channel", None, float(flat[others].mean())),
        ("standard deviation of S, 2-D SSIM by channel", None, float(flat[others].std())),
        ("least similar pair", -0.5420, float(least.similarities[0])),
        ("second least similar pair", -0.5025, float(least.similarities[1])),
        ("identical pairs", 5, len(same.pairs)),
        ("numerical rank, pixels", 495, int(np.linalg.matrix_rank(train.reshape(len(train), -1) / 255.0))),
        (
            "numerical rank, wavelet coefficients",
            495,
            int(np.linalg.matrix_rank(coefficients.astype(np.float64), tol=1e-3)),
        ),
        ("groups at eigen-gaps above 0.4", 454, groups_by_eigengap(eigenvalues, 0.4)),
        ("gaps above 0.4 themselves", None, groups_by_eigengap(eigenvalues, 0.4, reading="gaps")),
        ("identical pairs that end in one group", 5, int(sum(together))),
        ("images kept by Algorithm 2 (one of each group)", 454, len(selection.kept)),
        ("test images with a nearly identical training image, %", 11, int(leaks.twin.sum())),
        ("SSIM of the eleventh and the twelfth of them", None, [round(float(v), 3) for v in highest[10:12]]),
    ]


def of_cifar10(root: str) -> list[tuple[str, Any, Any]]:
    """What the paper says of CIFAR-10 as a matrix of pixels, and what bounds on its condition number leave of it."""
    pixels = cifar10(root, train=True).data.transpose(0, 3, 1, 2)
    coefficients = WaveletCoefficients("db1", levels=1, progress=False).vectors(np.ascontiguousarray(pixels))
    everything = independent_columns(coefficients, 1e5)
    rows: list[tuple[str, Any, Any]] = [
        ("CIFAR-10: condition number of all 3,072 columns", 21_618, everything.condition),
        ("CIFAR-10: columns with condition number below 1e5", None, len(everything.columns)),
    ]
    matrix = pixels.reshape(len(pixels), -1)
    chosen = {bound: independent_columns(matrix, bound).columns for bound in (1e3, 3e3, 1e4)}
    rows += [(f"CIFAR-10: pixel columns, condition below {bound:g}", None, len(chosen[bound])) for bound in chosen]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fish", required=True)
    parser.add_argument("--cifar10")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "reproduce_wavelet_paper.json"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    rows = of_fish(options.fish)
    if options.cifar10:
        rows += of_cifar10(options.cifar10)
    for what, paper, ours in rows:
        shown = f"{ours:.4f}" if isinstance(ours, float) else str(ours)
        print(f"{what:<60} {'' if paper is None else paper!s:>8} {shown:>16}")
    results = [{"what": what, "paper": paper, "measured": ours} for what, paper, ours in rows]
    write_results(options.output, {"rows": results, "seconds": time.perf_counter() - start, "peak_mib": peak_mib()})


if __name__ == "__main__":
    main()
