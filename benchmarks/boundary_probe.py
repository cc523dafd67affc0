"""What probing straight paths costs, what memory it takes, and which crossings it finds.

    TOOLKIT_DATA=... python benchmarks/boundary_probe.py --root ROOT_OF_CIFAR10 --parts cost memory found

cost: `probe_paths` for 256 pairs of CIFAR-10 images and 17 points with a ResNet-32, beside the bare forward passes of
as many images in batches of the same size, beside training steps (an epoch is 391 of them), and beside what scripts in
the manner of dbViz do: a loop over paths, each a dense grid of the same final resolution. Repeats take turns.
memory: 10,000 pairs and 33 points in one call, with a small network, in a process of its own.
found: crossings that plain grids and adaptive points find, beside a dense grid of 513 points. The model runs on that
grid only; the others look its scores up, as all their points are on it (the tolerance is 1/512).
Parts that are not run keep their figures of the run before.
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
import torch
from common import cifar10, machine, peak_mib, write_results
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.boundary import probe_paths
from toolkit.models import resnet32

MEAN = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
DEVIATION = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
BATCH_SIZE = 256
TOLERANCE = 1e-3
STEPS_A_EPOCH = 391
DENSE_POINTS = 513


def network() -> nn.Module:
    """The trained ResNet-32."""
    model = resnet32()
    weights = Path(os.environ["TOOLKIT_DATA"]) / "weights" / "resnet32_cifar10.pt"
    model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    return model.eval()


def pairs_of(root: str, count: int) -> tuple[Tensor, Tensor]:
    """Pairs in equal parts: of two classes, of one class and near (of 2,000 images), of one class at random."""
    data = cifar10(root, train=True)
    pixels, labels = data.data.transpose(0, 3, 1, 2), np.array(data.targets)
    rng = np.random.default_rng(0)
    first, second = rng.permutation(len(labels))[:count], []
    for k, i in enumerate(first):
        others = np.flatnonzero((labels == labels[i]) == (k % 3 > 0))
        others = others[others != i]
        if k % 3 == 1:
            others = rng.choice(others, 2000, replace=False)
            distances = np.square(pixels[others].astype(np.float32) - pixels[i]).sum(axis=(1, 2, 3))
            second.append(others[distances.argmin()])
        else:
            second.append(rng.choice(others))
    start, end = (
        (torch.from_numpy(pixels[side]).float() / 255 - MEAN) / DEVIATION for side in (first, np.array(second))
    )
    return start, end


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, processor seconds and result of a call."""
    begun = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - begun[0], time.process_time() - begun[1], result


def bare(model: nn.Module, images: Tensor, count: int) -> None:
    """`count` images through the model and nothing else."""
    with torch.no_grad():
        for first in range(0, count, BATCH_SIZE):
            model(images[: min(BATCH_SIZE, count - first)])


def one_by_one(model: nn.Module, start: Tensor, end: Tensor) -> list[list[float]]:
    """The peer: each path alone, on a dense grid as fine as the tolerance."""
    found = []
    grid = torch.linspace(0, 1, round(1 / TOLERANCE) + 1)
    for one, other in zip(start, end, strict=True):
        classes = []
        for at in grid.split(BATCH_SIZE):
            weight = at.view(-1, 1, 1, 1)
            with torch.no_grad():
                classes.append(model((1 - weight) * one + weight * other).argmax(1))
        changes = torch.cat(classes).diff().nonzero().flatten()
        found.append(((grid[changes] + grid[changes + 1]) / 2).tolist())
    return found


def training(images: Tensor, steps: int = 6) -> float:
    """Seconds of a training step of batch 128, the first one left out."""
    model = resnet32().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    targets = torch.arange(128) % 10
    seconds = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        optimiser.zero_grad()
        F.cross_entropy(model(images[:128]), targets).backward()
        optimiser.step()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def cost(root: str, repeats: int) -> dict[str, Any]:
    """Ours, bare forward passes, training steps and the peer, in turns."""
    model, (start, end) = network(), pairs_of(root, 256)
    few = 2
    seconds: dict[str, list[float]] = {"probe": [], "bare": [], "training_step": [], "one_by_one_a_path": []}
    bare(model, start, BATCH_SIZE)
    cpu: dict[str, list[float]] = {"probe": [], "bare": []}
    for _ in range(repeats):
        taken, busy, report = timed(lambda: probe_paths(model, start, end, 17, TOLERANCE, batch_size=BATCH_SIZE))
        seconds["probe"].append(taken)
        cpu["probe"].append(busy)
        taken, busy, _ = timed(lambda: bare(model, start, report.n_evaluations))  # noqa: B023
        seconds["bare"].append(taken)
        cpu["bare"].append(busy)
        seconds["training_step"].append(training(start))
        taken, _, theirs = timed(lambda: one_by_one(model, start[:few], end[:few]))
        seconds["one_by_one_a_path"].append(taken / few)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    differ = sum(len(a) != len(b) for a, b in zip(theirs, report.positions[:few], strict=True))
    ratios = [probe / forward for probe, forward in zip(seconds["probe"], seconds["bare"], strict=True)]
    result = {
        "pairs": len(report),
        "num_points": 17,
        "images_evaluated": report.n_evaluations,
        "images_a_path": round(report.n_evaluations / len(report), 2),
        "paths_with_a_crossing": int((report.num_crossings > 0).sum()),
        "seconds": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
        "ratio_to_bare_forward": round(statistics.median(ratios), 3),
        "ratio_of_processor_time": round(statistics.median(cpu["probe"]) / statistics.median(cpu["bare"]), 3),
        "share_of_a_training_epoch_percent": round(
            100 * median["probe"] / (STEPS_A_EPOCH * median["training_step"]), 2
        ),
        "epoch_extrapolated_seconds": round(STEPS_A_EPOCH * median["training_step"], 1),
        "one_by_one_dense_grid_times_slower": round(median["one_by_one_a_path"] / (median["probe"] / len(report)), 1),
        "one_by_one_paths_that_differ": f"{differ} of {few}",
    }
    print(f"{result['images_a_path']} images a path, {result['ratio_to_bare_forward']} of the bare forward passes "
          f"({result['ratio_of_processor_time']} of their processor time), "
          f"{result['share_of_a_training_epoch_percent']} % of an epoch, one by one on a dense grid "
          f"{result['one_by_one_dense_grid_times_slower']} times slower")  # fmt: skip
    return result


def small_network() -> nn.Module:
    """A network whose own activations are small beside the images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()


def memory_child(limit: int) -> dict[str, Any]:
    """One call in this process, for its peak memory."""
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.empty(10_000, 3, 32, 32).normal_(generator=generator) for _ in range(2))
    model = small_network()
    probe_paths(model, start[:40], end[:40])
    before = peak_mib()
    seconds, _, report = timed(lambda: probe_paths(model, start, end, 33, memory_limit=limit))
    flat = report.grid_classes.size * start[0].nbytes
    return {
        "memory_limit_mib": limit >> 20,
        "seconds": round(seconds, 1),
        "images_evaluated": report.n_evaluations,
        "before_mib": round(before),
        "peak_mib": round(peak_mib()),
        "beyond_the_images_mib": round(peak_mib() - before),
        "all_grid_points_at_once_would_be_mib": flat >> 20,
    }


def memory(script: str) -> list[dict[str, Any]]:
    """`memory_child` for several limits, each in a process of its own."""
    rows = []
    for limit in (1 << 30, 1 << 27):
        done = subprocess.run(
            [sys.executable, script, "--child", str(limit)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    return rows


def dense_scores(root: str, count: int) -> Tensor:
    """Scores (P, 513, 10) of some paths on the dense grid."""
    model, (start, end) = network(), pairs_of(root, count)
    at = torch.linspace(0, 1, DENSE_POINTS).view(-1, 1, 1, 1)
    with torch.no_grad():
        return torch.stack([
            torch.cat([model(torch.lerp(one[None], other[None], weight)) for weight in at.split(BATCH_SIZE)])
            for one, other in zip(start, end, strict=True)
        ])  # fmt: skip


def found(root: str, count: int, keep: Path | None) -> dict[str, Any]:
    """Crossings found by grids of several numbers of points, plain and adaptive, beside the dense grid."""
    if keep is not None and keep.exists():
        scores = torch.from_numpy(np.load(keep))
    else:
        scores = dense_scores(root, count)
        if keep is not None:
            np.save(keep, scores.numpy())
    count, finest = len(scores), 1 / (DENSE_POINTS - 1)
    # "Images" that are the number of their path and the position on it.
    paths = torch.arange(count, dtype=torch.float64)
    start, end = (torch.stack([paths, torch.full_like(paths, a)], dim=1) for a in (0.0, 1.0))

    def look_up(points: Tensor) -> Tensor:
        return scores[points[:, 0].round().long(), (points[:, 1] / finest).round().long()]

    dense = probe_paths(look_up, start, end, DENSE_POINTS, finest, adaptive=False)
    rows: dict[str, dict[str, Any]] = {}
    for num_points in (3, 5, 9, 17, 33):
        for adaptive in (False, True):
            report = probe_paths(look_up, start, end, num_points, finest, adaptive=adaptive)
            name = f"{num_points} points{', adaptive' if adaptive else ''}"
            rows[name] = {
                "images_a_path": round(report.n_evaluations / count, 2),
                "crossings_found": int(report.num_crossings.sum()),
                "paths_with_other_classes": sum(a != b for a, b in zip(report.classes, dense.classes, strict=True)),
                "paths_with_a_crossing": int((report.num_crossings > 0).sum()),
                "still_open": int((report.resolution > 0).sum()),
                "widest_open_gap": float(report.resolution.max()),
            }
            if adaptive:
                plain = rows[f"{num_points} points"]["images_a_path"]
                rows[name]["extra_images_percent"] = round(100 * (rows[name]["images_a_path"] / plain - 1), 1)
            print(f"{name:<22} {rows[name]}")
    return {
        "pairs": count,
        "dense_points": DENSE_POINTS,
        "dense_crossings": int(dense.num_crossings.sum()),
        "dense_paths_with_a_crossing": int((dense.num_crossings > 0).sum()),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root")
    parser.add_argument("--parts", nargs="+", default=["cost", "memory", "found"], choices=["cost", "memory", "found"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense_pairs", type=int, default=240)
    parser.add_argument("--dense_scores", type=Path, help="a .npy file to keep the dense scores in, read if it exists")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "boundary_probe.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(memory_child(options.child)))
        return
    before = json.loads(options.output.read_text()) if options.output.exists() else {}
    parts: dict[str, Any] = {name: before[name] for name in ("cost", "memory", "found") if name in before}
    for part in options.parts:
        load = machine()["load_average"]
        if part == "memory":
            parts[part] = {"rows": memory(str(Path(__file__).resolve()))}
        elif part == "cost":
            parts[part] = cost(options.root, options.repeats)
        else:
            parts[part] = found(options.root, options.dense_pairs, options.dense_scores)
        parts[part]["load_average"] = load
    write_results(options.output, parts)


if __name__ == "__main__":
    main()
