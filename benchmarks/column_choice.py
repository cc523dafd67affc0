"""Time and memory of the rank-revealing column choice, next to scipy's pivoted QR on the same machine in the same run.

Reads CIFAR-10 train in torchvision's layout from the folder given as `--data` (50,000 x 3,072 pixels). Prints a table
and writes it as JSON. Every measurement is made in a process of its own, so that its peak memory is its own, after the
kernels have been compiled.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import peak_mib, versions, write_results

#: Condition numbers that the choice is bounded by.
BOUNDS = (1e3, 3e3, 1e4, 1e5)
KINDS = ("pixels", "coefficients")


def pixels(root: Path) -> npt.NDArray[np.uint8]:
    """The pixels of CIFAR-10 train, uint8 of shape (50000, 3072)."""
    parts = []
    for i in range(1, 6):
        with (root / f"data_batch_{i}").open("rb") as file:
            batch = pickle.load(file, encoding="latin1")
        parts.append(batch["data"])
    return np.concatenate(parts)


def matrix_of(kind: str, root: Path) -> npt.NDArray[Any]:
    """Pixels as they are stored, or their Haar coefficients in float32."""
    if kind == "pixels":
        return pixels(root)
    from toolkit.representations import WaveletCoefficients

    return np.asarray(WaveletCoefficients("db1", progress=False).vectors(pixels(root).reshape(-1, 3, 32, 32)))


def ours(kind: str, root: Path, output: Path) -> dict[str, Any]:
    """Our choice at every bound; pivots go to a file."""
    from toolkit.representations import independent_columns

    matrix = matrix_of(kind, root)
    few = matrix[:2_000, :600].copy()
    independent_columns(few)
    before = peak_mib()
    rows = []
    for bound in BOUNDS:
        start = time.perf_counter()
        choice = independent_columns(matrix, bound)
        seconds = time.perf_counter() - start
        rows.append(
            {"bound": bound, "columns": len(choice.columns), "condition": choice.condition, "s": round(seconds, 3)}
        )
    np.save(output, choice.pivots)
    return {
        "matrix_mib": round(matrix.nbytes / 2**20), "before_mib": round(before), "peak_mib": round(peak_mib()),
        "median_s": round(statistics.median(row["s"] for row in rows), 3), "bounds": rows,
    }  # fmt: skip


def peer(kind: str, root: Path, output: Path) -> dict[str, Any]:
    """The pivoted QR of scipy, in float64 and in place; pivots and the triangular factor go to a file."""
    import scipy.linalg

    matrix = matrix_of(kind, root)
    start = time.perf_counter()
    copy = np.asfortranarray(matrix, dtype=np.float64)
    factor, pivots = scipy.linalg.qr(copy, mode="r", pivoting=True, overwrite_a=True, check_finite=False)
    seconds = time.perf_counter() - start
    np.savez(output, pivots=pivots, factor=factor[: factor.shape[1]])
    return {"s": round(seconds, 3), "peak_mib": round(peak_mib())}


def condition(factor: npt.NDArray[Any], m: int) -> float:
    """Condition number of the first m columns by all singular values of a triangular factor."""
    values = np.linalg.svd(factor[:m, :m], compute_uv=False)
    return float(values[0] / values[-1])


def checked(bounds: list[dict[str, Any]], factor: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """Whether scipy's factor gives the same numbers of columns, and the same condition numbers."""
    rows = []
    for row in bounds:
        m = row["columns"]
        at = condition(factor, m)
        after = condition(factor, m + 1) if m < len(factor) else None
        rows.append(
            {
                "bound": row["bound"], "columns": m, "condition": at, "condition_of_one_more": after,
                "same_columns": at < row["bound"] and (after is None or after >= row["bound"]),
                "relative_difference": abs(row["condition"] / at - 1),
            }
        )  # fmt: skip
    return rows


def in_new_process(what: str, kind: str, root: Path, output: Path) -> dict[str, Any]:
    """`ours` or `peer` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--data", str(root), "--child", what, kind, str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(what, kind, json.dumps(found), flush=True)
    return found


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-py")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of scipy's and ours, in turn; medians are compared"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "column_choice.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, kind, path = arguments.child
        print(json.dumps((ours if what == "ours" else peer)(kind, arguments.data, Path(path))))
        return
    results: dict[str, Any] = {"packages": versions("numba", "scipy", "torch"), "repeats": arguments.repeats}
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            paths = Path(folder) / "ours.npy", Path(folder) / "scipy.npz"
            mine = []
            theirs = []
            for _ in range(arguments.repeats):
                mine.append(in_new_process("ours", kind, arguments.data, paths[0]))
                theirs.append(in_new_process("peer", kind, arguments.data, paths[1]))
            pivots = np.load(paths[0])
            with np.load(paths[1]) as file:
                differing = np.flatnonzero(pivots != file["pivots"][: len(pivots)])
                checks = checked(mine[-1]["bounds"], file["factor"])
        our_s = statistics.median(row["median_s"] for row in mine)
        peer_s = statistics.median(row["s"] for row in theirs)
        results[kind] = {
            "ours": mine, "scipy": theirs, "ratio_of_medians": round(our_s / peer_s, 4), "pivots": len(pivots),
            "pivots_that_differ": len(differing), "first_that_differs": int(differing[0]) if len(differing) else None,
            "checks": checks,
        }  # fmt: skip
        print(
            f"{kind}: ours {our_s:.1f} s, scipy {peer_s:.1f} s, ratio {our_s / peer_s:.3f}, {len(differing)} of "
            f"{len(pivots)} pivots differ; {checks}"
        )
    write_results(arguments.output, results)


if __name__ == "__main__":
    main()
