"""Outliers and alike images of whole sets: time and memory, class ratios, and what others choose.

    TOOLKIT_DATA=... python benchmarks/whole_set.py [--parts time peer balance rivals large] [--output FILE]

`time`: `FeatureMapSelector` on CIFAR-10's 50,000 x 64 features, 90 % and 50 % kept. `peer`: the same on 10,000 of
them beside scikit-learn's HDBSCAN and AgglomerativeClustering, which is what the thesis' method is made of without a
GPU (at 50,000 its matrix of distances would take 20 GB). `balance`: class ratios with and without quotas, on the digits
and on 20,000 images of CIFAR-100. `rivals`: the other ways of choosing without labels. `large`: 200,000 and 1,000,000
x 64 of a seeded mixture. Each run is a process of its own, stopped after eight minutes; parts that are not run keep
their figures.
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

SEED = 0
LIMIT_S = 480
PARTS = ("time", "peer", "balance", "rivals", "large")


def features(name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Vectors by the name of their source, and labels."""
    if name == "cifar10":
        with np.load(Path(os.environ["TOOLKIT_DATA"]) / "features" / "resnet32_cifar10_train.npz") as stored:
            return stored["features"].astype(np.float32), stored["labels"].astype(np.int64)
    count = int(name)
    rng = np.random.default_rng(SEED)
    centres = rng.gamma(1.0, size=(count // 500, 64))
    vectors = np.empty((count, 64), np.float32)
    for start in range(0, count, 50_000):
        which = rng.integers(0, len(centres), min(50_000, count - start))
        vectors[start : start + 50_000] = centres[which] + 0.3 * rng.normal(size=(len(which), 64))
    return vectors, None


def choose(source: str, kept: float, options: dict[str, Any]) -> dict[str, Any]:
    """One choice in this process."""
    import toolkit
    from toolkit import FeatureMapSelector

    options = dict(options)
    kind = getattr(toolkit, options.pop("selector", "FeatureMapSelector"))
    if kind is toolkit.RandomSelector:
        vectors, labels = features(source)
        return coverage(vectors, kind(kept).select(vectors, labels=labels), np.asarray(labels))
    kind(
        features("10000")[0][:500],
        0.9,
        progress=False,
        **{**options, "index": "Flat"} if "index" in options else options,
    ).select()
    vectors, labels = features(source)
    before = peak_mib()
    start, work = time.perf_counter(), time.process_time()
    selection = kind(vectors, kept, progress=False, **options).select(labels=labels)
    seconds, cpu = time.perf_counter() - start, time.process_time() - work
    row: dict[str, Any] = {
        "vectors": len(vectors), "kept": len(selection.kept), "seconds": round(seconds, 2), "cpu_s": round(cpu, 1),
        "before_mib": round(before), "peak_mib": round(peak_mib()),
        "reasons": {name: selection.reasons.count(name) for name in sorted(set(selection.reasons))},
    }  # fmt: skip
    if kind is FeatureMapSelector:
        sizes = np.bincount(selection.group[selection.group >= 0])
        row["largest_group"] = int(sizes.max())
        row["largest_diameter"] = round(float(FeatureMapSelector.group_diameters(selection, vectors).max()), 4)
        start = time.perf_counter()
        selection.with_keep_fraction((kept + 1) / 2)
        row["recut_s"] = round(time.perf_counter() - start, 2)
    return row if labels is None else row | coverage(vectors, selection, labels)


def coverage(vectors: npt.NDArray[Any], selection: Any, labels: npt.NDArray[Any]) -> dict[str, Any]:
    """How far the images that go are from those that stay, and how far the class ratios drift."""
    from toolkit.neighbors import nearest_neighbors

    gone = selection.removed
    apart = nearest_neighbors(vectors[gone], 1, y=vectors[selection.kept], metric="cosine").distances[:, 0]
    return {
        "cosine_to_nearest_kept_median": round(float(np.median(apart)), 5),
        "cosine_to_nearest_kept_largest": round(float(apart.max()), 4),
        **drift(labels, selection),
    }


def drift(labels: npt.NDArray[Any], selection: Any) -> dict[str, Any]:
    """How far the kept share of a class is from that of all, and classes that lost nearly all."""
    sizes, kept = np.bincount(labels), np.bincount(labels[selection.kept], minlength=int(labels.max()) + 1)
    share = kept / sizes
    return {
        "least_share_kept": round(float(share.min()), 3),
        "largest_share_kept": round(float(share.max()), 3),
        "classes_below_half_their_share": int((share < 0.5 * len(selection.kept) / len(labels)).sum()),
    }


def beside_the_peer(count: int, kept: float) -> dict[str, Any]:
    """The thesis' two steps by scikit-learn, and ours, on the first vectors."""
    from sklearn.cluster import HDBSCAN, AgglomerativeClustering

    from toolkit import FeatureMapSelector

    vectors = features("cifar10")[0][:count]
    FeatureMapSelector(vectors[:500], 0.9, progress=False).select()
    start = time.perf_counter()
    FeatureMapSelector(vectors, kept, progress=False).select()
    ours = time.perf_counter() - start
    start = time.perf_counter()
    HDBSCAN(min_cluster_size=16, min_samples=17, copy=True).fit(vectors)
    middle = time.perf_counter()
    rest = vectors[: count - round((1 - kept) / 2 * count)]
    AgglomerativeClustering(round(kept * count), metric="cosine", linkage="complete").fit(rest)
    end = time.perf_counter()
    return {
        "vectors": count, "kept": kept, "ours_s": round(ours, 2), "sklearn_hdbscan_s": round(middle - start, 2),
        "sklearn_agglomerative_s": round(end - middle, 2), "peak_mib": round(peak_mib()),
    }  # fmt: skip


def ratios(source: str) -> dict[str, Any]:
    """Class ratios with and without quotas."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from toolkit import FeatureExtractor, FeatureMapSelector

    torch.manual_seed(SEED)
    if source == "digits":
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression

        x, y = load_digits(return_X_y=True)
        images = torch.from_numpy(x.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
        fitted = LogisticRegression(max_iter=1000).fit(x[::4] / 16, y[::4])  # knows a quarter of the labels
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        linear: Any = model[1]  # type: ignore[index]
        linear.weight.data, linear.bias.data = (
            torch.from_numpy(part.astype(np.float32)) for part in (fitted.coef_, fitted.intercept_)
        )
        extractor = FeatureExtractor(model, "0", progress=False)
        dataset = TensorDataset(images, torch.from_numpy(y))
    else:
        from PIL import Image

        from toolkit.models import resnet32

        folder = Path(os.environ["TOOLKIT_DATA"])
        sheets = [np.asarray(Image.open(folder / "cifar100" / f"images_{part}.webp").convert("RGB")) for part in (0, 1)]
        tiles = [s.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for s in sheets]
        images = torch.from_numpy(np.concatenate(tiles)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with np.load(folder / "cifar100" / "labels.npz") as stored:
            y = stored["y_train"][:20_000].astype(np.int64)
        extractor = FeatureExtractor(resnet32(), "avgpool", folder / "weights" / "resnet32_cifar10.pt", progress=False)
        dataset = TensorDataset((images - mean) / std, torch.from_numpy(y))
    rows = {}
    for kept in (0.9, 0.5):
        for balance in (None, "label", "predicted"):
            selector = FeatureMapSelector(extractor, kept, balance=balance, progress=False)
            rows[f"{kept} {balance or 'none'}"] = drift(np.asarray(y), selector.select(dataset))
    return {"images": len(y), "classes": len(np.unique(y)), "shares": rows}


def child(work: list[Any]) -> dict[str, Any]:
    """Do one piece of work in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        kind, *arguments = work
        if kind == "choose":
            return choose(*arguments)
        return beside_the_peer(*arguments) if kind == "peer" else ratios(*arguments)


def in_new_process(*work: Any) -> dict[str, Any]:
    """One piece of work in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(work)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        row: dict[str, Any] = {"stopped_after_s": LIMIT_S}
    except subprocess.CalledProcessError as error:
        row = {"failed": error.stderr.strip().splitlines()[-1]}
    else:
        row = json.loads(done.stdout.splitlines()[-1])
    print(*work, row, flush=True)
    return row


def repeated(times: int, *work: Any) -> dict[str, Any]:
    """The run of median time, with the times of all."""
    rows = [in_new_process(*work) for _ in range(times)]
    if all("seconds" in row for row in rows):
        middle = statistics.median_low([row["seconds"] for row in rows])
        return {**next(row for row in rows if row["seconds"] == middle), "all_s": [row["seconds"] for row in rows]}
    return rows[0]


def main() -> None:
    """Run the parts and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "whole_set.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    results: dict[str, Any] = {}
    if options.output.exists():
        before = json.loads(options.output.read_text())
        results = {name: before[name] for name in PARTS if name in before}
    results |= {"seed": SEED, "packages": versions("numba", "scikit-learn")}
    if "time" in options.parts:
        results["time"] = {f"kept {kept}": repeated(3, "choose", "cifar10", kept, {}) for kept in (0.9, 0.5)}
        results["time"]["kept 0.9, hdbscan"] = repeated(1, "choose", "cifar10", 0.9, {"outlier_score": "hdbscan"})
        results["time"]["kept 0.5, single"] = repeated(1, "choose", "cifar10", 0.5, {"linkage": "single"})
    if "peer" in options.parts:
        results["peer"] = in_new_process("peer", 10_000, 0.9)
    if "balance" in options.parts:
        results["balance"] = {source: in_new_process("ratios", source) for source in ("digits", "cifar100")}
    if "rivals" in options.parts:
        rivals: dict[str, dict[str, Any]] = {
            "FeatureMapSelector": {},
            "FeatureMapSelector, alike ones only": {"outlier_share": 0},
            "RandomSelector": {},
            "UniquenessSelector": {},
            "UniquenessSelector, greedy": {"greedy": True},
            "SemDeDupSelector": {},
            "KCenterSelector": {},
        }
        results["rivals"] = {
            f"{name}, kept {kept}": in_new_process(
                "choose", "cifar10", kept, {"selector": name.partition(",")[0], **settings}
            )
            for name, settings in rivals.items()
            for kept in (0.9, 0.5)
        }
    if "large" in options.parts:
        exact = {"tree_floor": None}
        few, many = {**exact, "index": "IVF1024,Flat"}, {**exact, "index": "IVF2048,Flat"}
        results["large"] = {
            "200,000, kept 0.9": in_new_process("choose", "200000", 0.9, exact),
            "200,000, kept 0.9, index": in_new_process("choose", "200000", 0.9, few),
            "200,000, kept 0.5": in_new_process("choose", "200000", 0.5, exact),
            "1,000,000, kept 0.9, index": in_new_process("choose", "1000000", 0.9, many),
            "1,000,000, kept 0.5, index": in_new_process("choose", "1000000", 0.5, many),
        }
    write_results(options.output, results)


if __name__ == "__main__":
    main()
