"""Section 5.3 of "Using wavelets to analyze similarities in image datasets", on CIFAR-10 and a trained ResNet-32.

    TOOLKIT_DATA=... python benchmarks/reproduce_boundary_section.py --root ROOT_OF_CIFAR10 --pairs 1000

The paper (arXiv 2002.10257) looks at straight paths between training images of one class and says, of some examples:
(1) images that are almost identical have no decision boundary between them; (2) images that are similar but not
identical, members of one wavelet cluster, have none either; (3) images of one class that are not similar do have
boundaries between them: the model leaves the class and comes back. Here each is measured on many pairs, beside pairs of
one class and of two at increasing distance.

The paper's networks are ResNet-v2 models whose weights it does not give; ours is the ResNet-32 in $TOOLKIT_DATA.
Intervals are 95 % Wilson intervals. Distances are Euclidean, of pixels in [0, 1].
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import cifar10, write_results

from toolkit import WaveletScattering, WaveletSelector
from toolkit.boundary import BoundaryReport, probe_paths
from toolkit.boundary.strata import wilson_interval
from toolkit.models import resnet32
from toolkit.neighbors import near_pairs
from toolkit.similarity import ssim_of_pairs

Ints = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]

MEAN = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
DEVIATION = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
#: Clusters of Algorithm 1: so many that most hold one image, and the others images that are much alike.
GROUPS = 40_000
#: Random pairs of one class, of which the least similar 1 % are statement 3's.
POOL = 100_000
DISSIMILAR = "dissimilar, lowest SSIM"
STATEMENTS = {
    "nearly identical": "1. nearly identical images have no boundary between them",
    "nearly identical, SSIM above 0.9": "1b. the same of those with an SSIM above 0.9",
    "similar, one wavelet cluster": "2. similar images of one wavelet cluster have no boundary between them",
    DISSIMILAR: "3. dissimilar images of one class do have boundaries between them",
}


def random_pairs(labels: Ints, count: int, same: bool, rng: np.random.Generator) -> Ints:
    """Random pairs of images of one class, or of two."""
    found = rng.integers(len(labels), size=(24 * count, 2))
    found = found[((labels[found[:, 0]] == labels[found[:, 1]]) == same) & (found[:, 0] != found[:, 1])]
    pairs: Ints = found[:count]
    return pairs


def lengths(images: Images, pairs: Ints) -> npt.NDArray[np.float64]:
    """Distances of pairs of images."""
    parts = np.array_split(pairs, max(1, len(pairs) // 1000))
    return np.concatenate([
        np.sqrt((((images[part[:, 0]].astype(np.float64) - images[part[:, 1]]) / 255) ** 2).sum(axis=(1, 2, 3)))
        for part in parts
    ])  # fmt: skip


def draw(images: Images, labels: Ints, count: int, seed: int) -> dict[str, Ints]:
    """The pairs of every row of the table, by its name; up to `count` of each."""
    rng = np.random.default_rng(seed)

    def sample(pairs: Ints) -> Ints:
        return pairs[np.sort(rng.permutation(len(pairs))[:count])]

    scattering = WaveletScattering(invariance=("brightness", "shift", "contrast"), progress=False)
    near = near_pairs(scattering.vectors(images), scattering.twin_radius).pairs
    near = near[labels[near[:, 0]] == labels[near[:, 1]]]
    clusters = WaveletSelector(n_groups=GROUPS, wavelet="db1", levels=1, max_condition=1e5, progress=False)
    selection = clusters.select(images, labels=labels)
    alike = np.sort(np.stack([selection.removed, selection.representative[selection.removed]], axis=1), axis=1)
    identical = set(map(tuple, near.tolist()))
    alike = alike[[tuple(pair) not in identical for pair in alike.tolist()]]
    pool = random_pairs(labels, POOL, True, rng)
    similarity = ssim_of_pairs(images[pool[:, 0]], images[pool[:, 1]], variant="volume")
    rows = {
        "nearly identical": sample(near),
        "similar, one wavelet cluster": sample(alike),
        DISSIMILAR: sample(pool[np.argsort(similarity, kind="stable")[: POOL // 100]]),
    }
    for name, same in (("one class", True), ("two classes", False)):
        pairs = random_pairs(labels, 5 * count, same, rng)
        order = np.array_split(pairs[np.argsort(lengths(images, pairs), kind="stable")], 5)
        rows |= {f"{name}, distance quintile {k + 1}": part for k, part in enumerate(order)}
    twins = near[ssim_of_pairs(images[near[:, 0]], images[near[:, 1]], variant="volume") > 0.9]
    rows["nearly identical, SSIM above 0.9"] = sample(twins)
    return rows


def share(which: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A share of pairs in percent, with its interval."""
    low, high = wilson_interval(int(which.sum()), len(which))
    return {"percent": round(100 * float(which.mean()), 2), "low": round(100 * low, 2), "high": round(100 * high, 2)}


def summed_up(report: BoundaryReport, images: Images, pairs: Ints) -> dict[str, Any]:
    """One row of the table."""
    crossed = report.num_crossings > 0
    ends_differ = np.array([row[0] != row[-1] for row in report.classes])
    first = report.first_crossing[crossed]
    return {
        "n": len(report),
        "distance_median": round(float(np.median(lengths(images, pairs))), 2),
        "ssim_median": round(
            float(np.median(ssim_of_pairs(images[pairs[:, 0]], images[pairs[:, 1]], variant="volume"))), 3
        ),
        "with_crossing": share(crossed),
        "coming_back": share(report.reenters),
        "ends_predicted_differently": int(ends_differ.sum()),
        "mean_crossings": round(float(report.num_crossings.mean()), 3),
        "mean_crossings_where_any": round(float(report.num_crossings[crossed].mean()), 3) if crossed.any() else None,
        "first_crossing_median": round(float(np.median(first)), 3) if len(first) else None,
        "third_class_crossings": sum(map(sum, report.third_class)),
        "margin_min_median": round(float(np.median(report.margin_min)), 3),
        "still_open": int((report.resolution > 0).sum()),
    }


def verdict(name: str, row: dict[str, Any]) -> str:
    """What the figures say of a statement."""
    rate, n = row["with_crossing"], row["n"]
    if name == DISSIMILAR:
        of_those = "" if not rate["percent"] else (
            f"; the model comes back in {100 * row['coming_back']['percent'] / rate['percent']:.0f} % of those cases"
        )  # fmt: skip
        how = "holds for most" if rate["low"] > 50 else "does not hold for most" if rate["high"] < 50 else "undecided"
        return f"{how}: {rate['percent']} % of {n} pairs have one ({rate['low']} to {rate['high']} %){of_those}"
    none, low, high = (f"{100 - rate[bound]:.1f}" for bound in ("percent", "high", "low"))
    how = "without" if rate["percent"] == 0 else "with"
    return f"holds {how} exceptions: {none} % of {n} pairs have none ({low} to {high} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of each row of the table, at most")
    parser.add_argument("--distance_pairs", type=int, default=400, help="the same of the rows of increasing distance")
    parser.add_argument("--num_points", type=int, default=9, help="see boundary_probe.json for what more would find")
    parser.add_argument("--only", default="", help="only rows whose name contains this; others as in the run before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn", type=Path, help="a file to keep the drawn pairs in, read where it exists")
    parser.add_argument("--draw_only", action="store_true", help="only draw the pairs, into --drawn")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "reproduce_boundary_section.json"
    )
    options = parser.parse_args()
    data = cifar10(options.root, train=True)
    images, labels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets)

    if options.drawn and options.drawn.exists():
        with np.load(options.drawn) as file:
            rows = {name: file[name] for name in file.files}
    else:
        rows = draw(images, labels, options.pairs, options.seed)
        if options.drawn:
            np.savez(options.drawn, **rows)  # type: ignore[arg-type]
    rng = np.random.default_rng(options.seed)
    for name, pairs in rows.items():
        most = options.pairs if name in STATEMENTS else options.distance_pairs
        rows[name] = pairs[np.sort(rng.permutation(len(pairs))[:most])]
    rows = {name: pairs for name, pairs in rows.items() if options.only in name}
    if options.draw_only:
        return

    model = resnet32()
    weights = Path(os.environ["TOOLKIT_DATA"]) / "weights" / "resnet32_cifar10.pt"
    model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    together = np.concatenate(list(rows.values()))
    start, end = ((torch.from_numpy(images[side]).float() / 255 - MEAN) / DEVIATION for side in together.T)
    begun = time.perf_counter()
    report = probe_paths(model, start, end, options.num_points, progress=True)
    probing = time.perf_counter() - begun

    before = json.loads(options.output.read_text()) if options.only and options.output.exists() else {}
    table, first = before.get("rows", {}), 0
    print(f"{'pairs':<36} {'n':>5} {'dist.':>6} {'SSIM':>6} {'with a crossing, %':>22} {'mean':>6} {'come back, %':>22}"
          f" {'first':>6}")  # fmt: skip
    for name, pairs in rows.items():
        row = summed_up(report.subset(np.arange(first, first + len(pairs))), images, pairs)
        table[name], first = row, first + len(pairs)
        crossing, back = (
            f"{cell['percent']:6.2f} ({cell['low']:5.2f} to {cell['high']:5.2f})"
            for cell in (row["with_crossing"], row["coming_back"])
        )
        where = "" if row["first_crossing_median"] is None else f"{row['first_crossing_median']:.3f}"
        print(f"{name:<36} {row['n']:>5} {row['distance_median']:6.2f} {row['ssim_median']:6.3f} {crossing:>22} "
              f"{row['mean_crossings']:6.3f} {back:>22} {where:>6}")  # fmt: skip
    table = {name: table[name] for name in dict.fromkeys([*STATEMENTS, *table]) if name in table}
    statements = {text: verdict(name, table[name]) for name, text in STATEMENTS.items() if name in table}
    for text, said in statements.items():
        print(f"{text}: {said}")
    content = {
        "statements": statements,
        "rows": table,
        "settings": {"num_points": options.num_points, "tolerance": report.tolerance, "seed": options.seed,
                     "groups": GROUPS, "pool": POOL, "radius_of_nearly_identical": WaveletScattering.twin_radius},
        "images_a_path": before.get("images_a_path", round(report.n_evaluations / len(report), 2)),
        "images_a_second": before.get("images_a_second", round(report.n_evaluations / probing)),
    }  # fmt: skip
    write_results(options.output, content)


if __name__ == "__main__":
    main()
