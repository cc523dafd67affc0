"""Time and memory of agglomerative grouping, next to scikit-learn on the same machine in the same run.

Needs the features named by TOOLKIT_DATA (features/resnet32_cifar10_train.npz, 50,000 x 64). Prints a table and writes
it as JSON. Every time excludes the compilation of the kernels, which are warmed up on a few vectors first.
"""

from __future__ import annotations

import argparse
import json
import os
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

from toolkit.grouping import LINKAGES, agglomerate, find_representatives, merge_tree

SEED = 0


def load() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Features and labels of CIFAR-10 train."""
    root = os.environ.get("TOOLKIT_DATA")
    if not root:
        raise SystemExit("Set TOOLKIT_DATA to the folder with features/resnet32_cifar10_train.npz.")
    with np.load(Path(root) / "features" / "resnet32_cifar10_train.npz") as file:
        return file["features"], file["labels"]


def mixture(count: int) -> npt.NDArray[np.float32]:
    """A seeded mixture of 2,000 clouds of unequal size and width in 64 dimensions."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(2_000, 64)).astype(np.float32)
    which = (2_000 * rng.random(count) ** 2).astype(np.int64)
    width = rng.uniform(0.05, 0.5, size=2_000).astype(np.float32)
    return centres[which] + width[which, None] * rng.normal(size=(count, 64)).astype(np.float32)


def warm_up(linkage: str = "complete") -> None:
    """Compile the kernels, or load them from numba's cache."""
    few = np.random.default_rng(SEED).normal(size=(3_000, 64))
    for dtype in (np.float16, np.float32):
        tree = merge_tree(few.astype(dtype), n_groups=1, linkage=linkage)
        find_representatives(few.astype(dtype), tree).at(tree, 1)
        tree.cut(n_groups=10)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def differing_groups(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> int:
    """How many of our groups are not a group of theirs, as sets of members."""
    pairs = np.unique(np.stack([ours, theirs]), axis=1)
    split = np.bincount(pairs[0]) > 1
    joined = np.bincount(pairs[1]) > 1
    return len(np.unique(pairs[0][split[pairs[0]] | joined[pairs[1]]]))


def single(kept: float, linkage: str, count: int) -> dict[str, Any]:
    """One grouping in this process: all of CIFAR-10 train as one class, or a mixture."""
    warm_up(linkage)
    features = load()[0] if count == 0 else mixture(count)
    before = peak_mib()
    n_groups = int(kept * len(features))
    seconds, tree = timed(lambda: merge_tree(features, n_groups=n_groups, linkage=linkage))
    peak = peak_mib()
    chosen, found = timed(lambda: find_representatives(features, tree))
    return {
        "vectors": len(features), "linkage": linkage, "kept": kept, "tree_s": round(seconds, 3),
        "representatives_s": round(chosen, 3), "events": len(found.event_leaf), "before_mib": round(before),
        "tree_peak_mib": round(peak), "peak_mib": round(peak_mib()), "groups": tree.min_groups,
        "largest_group": int(np.bincount(tree.cut(n_groups=n_groups)).max()),
    }  # fmt: skip


def in_new_process(kept: float, linkage: str, count: int = 0) -> dict[str, Any]:
    """`single` in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(kept), linkage, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{row['vectors']:>7,} {linkage:<9} {kept:4.2f}  tree {row['tree_s']:7.2f} s   representatives "
        f"{row['representatives_s']:6.2f} s   peak {row['peak_mib']:5,} MiB   largest group {row['largest_group']:,}"
    )
    return row


def classes(kept: float, repeats: int) -> dict[str, Any]:
    """The ten classes of 5,000 vectors, complete linkage, with scikit-learn's in turn."""
    from sklearn.cluster import AgglomerativeClustering

    features, labels = load()
    parts = [features[labels == label] for label in range(10)]
    ours, theirs = [], []
    differing = 0
    for _ in range(repeats):
        our_total = their_total = 0.0
        differing = 0
        for part in parts:
            n_groups = int(kept * len(part))
            seconds, mine = timed(lambda part=part, n=n_groups: agglomerate(part, n_groups=n))  # type: ignore[misc]
            our_total += seconds
            model = AgglomerativeClustering(n_groups, metric="cosine", linkage="complete")
            seconds, reference = timed(lambda part=part, model=model: model.fit_predict(part))  # type: ignore[misc]
            their_total += seconds
            differing += differing_groups(mine, reference)
        ours.append(our_total)
        theirs.append(their_total)
    row = {
        "kept": kept, "ours_s": [round(s, 3) for s in ours], "sklearn_s": [round(s, 3) for s in theirs],
        "ours_median_s": round(statistics.median(ours), 3), "sklearn_median_s": round(statistics.median(theirs), 3),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 4),
        "groups": sum(int(kept * len(part)) for part in parts), "groups_that_differ": differing,
    }  # fmt: skip
    print(
        f"ten classes, kept {kept:4.2f}: ours {row['ours_median_s']:.2f} s, scikit-learn {row['sklearn_median_s']:.2f} "
        f"s, ratio {row['ratio_of_medians']:.3f}, {differing} of {row['groups']:,} groups differ"
    )
    return row


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the ten classes (medians are compared)")
    parser.add_argument("--large", action="store_true", help="also group 200,000 x 64 of a seeded mixture (minutes)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "linkage.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kept, linkage, count = arguments.child
        print(json.dumps(single(float(kept), linkage, int(count))))
        return
    results: dict[str, Any] = {"seed": SEED, "packages": versions("numba", "scikit-learn")}
    warm_up()
    results["ten_classes"] = [classes(kept, arguments.repeats) for kept in (0.9, 0.5)]
    results["one_class"] = [in_new_process(kept, "complete") for kept in (0.9, 0.5)]
    results["one_class"] += [in_new_process(0.5, linkage) for linkage in LINKAGES if linkage != "complete"]
    if arguments.large:
        results["mixture"] = [in_new_process(kept, "complete", 200_000) for kept in (0.9, 0.5)]
    write_results(arguments.output, results)


if __name__ == "__main__":
    main()
