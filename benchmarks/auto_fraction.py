"""What `keep_fraction="auto"` chooses for CIFAR-10 as a ResNet-32 sees it, and how much it depends on the seed.

    python benchmarks/auto_fraction.py --root data

Reads CIFAR-10 below --root, and from $TOOLKIT_DATA the weights `weights/resnet32_cifar10.pt` and, where they are, the
features `features/resnet32_cifar10_train.npz`. The seeds share what is known of paths, so that each path is walked
once; with --known it is also kept in a file, with which an interrupted run goes on. Beside it: the same rule on 2,000
pairs, the 17 points of each path evaluated one and all, and how much of which paths cross could be told without
walking.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar10, peak_mib, write_results
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset

from toolkit import FeatureExtractor, SemanticSelector
from toolkit.boundary import probe_paths
from toolkit.checkpoints import load_weights
from toolkit.models import resnet32
from toolkit.representations import EvaluationView
from toolkit.selection.automatic import CrossingCurve, crossing_curve, curve_text
from toolkit.selection.path_prober import PathProber

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Pairs of the timed cut whose 17 points are all evaluated.
_COMPARED = 1_000


class StoredFeatures(FeatureExtractor):
    """An extractor whose vectors are known."""

    stored: Any = None

    def vectors(self, dataset: Any) -> Any:
        """The known vectors, or the network's."""
        return super().vectors(dataset) if self.stored is None else self.stored


class KeptProber(PathProber):
    """A prober that keeps in a file what it knows, and how long it took."""

    path: Path | None = None
    seconds: float = 0.0

    def read(self, path: Path) -> None:
        """Go on with the paths in a file, if there is one."""
        self.path = path
        if not path.is_file():
            return
        with np.load(path) as kept:
            pairs = zip(kept["first"].tolist(), kept["second"].tolist(), strict=True)
            self._known = dict(zip(pairs, kept["crosses"].tolist(), strict=True))
            self.n_evaluations, self.seconds = int(kept["forwards"]), float(kept["seconds"])
        self.n_pairs = len(self._known)

    def _walk(self, pairs: list[tuple[int, int]]) -> None:
        for first in range(0, len(pairs), 1_000):
            begin = time.perf_counter()
            super()._walk(pairs[first : first + 1_000])
            self.seconds += time.perf_counter() - begin
            if self.path is not None:
                known = np.array(list(self._known), np.int64)
                np.savez(
                    self.path,
                    first=known[:, 0],
                    second=known[:, 1],
                    crosses=np.array(list(self._known.values())),
                    forwards=self.n_evaluations,
                    seconds=self.seconds,
                )


def spread(curves: list[CrossingCurve]) -> dict[str, Any]:
    """What the seeds chose, and how far apart that is."""
    chosen = [curve.chosen for curve in curves if curve.chosen is not None]
    return {
        "pairs": statistics.median(curve.n_pairs for curve in curves),
        "chosen": [None if curve.chosen is None else round(curve.chosen, 4) for curve in curves],
        "interval": [[curve.chosen_low, curve.chosen_high] for curve in curves],
        "median": round(statistics.median(chosen), 4),
        "standard_deviation": round(statistics.stdev(chosen), 4),
        "range": round(max(chosen) - min(chosen), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--known", type=Path, help="a file that keeps the paths that were walked")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "auto_fraction.json")
    options = parser.parse_args()
    folder = Path(os.environ.get("TOOLKIT_DATA", "nowhere"))

    data = cifar10(options.root, train=True)
    pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    labels = np.array(data.targets)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    view = EvaluationView(
        TensorDataset(pixels, torch.from_numpy(labels)),
        batch_transform=lambda batch, device: ((batch[0].to(device).float() / 255 - mean) / std, batch[1]),
    )
    network = resnet32()
    load_weights(network, folder / "weights" / "resnet32_cifar10.pt")
    network.to(memory_format=torch.channels_last)
    extractor = StoredFeatures(network, "avgpool", cache=False, progress=False)
    if (folder / "features" / "resnet32_cifar10_train.npz").is_file():
        with np.load(folder / "features" / "resnet32_cifar10_train.npz") as stored:
            extractor.stored = stored["features"].astype(np.float32)

    selector = SemanticSelector(extractor, 0.5)
    begin = time.perf_counter()
    forest = selector.select(view, labels).recut
    grouping, begin = time.perf_counter() - begin, time.perf_counter()
    probe = KeptProber(extractor, view)
    if options.known is not None:
        probe.read(options.known)
    walked = probe.n_pairs
    curves = [crossing_curve(forest, labels, probe)]
    print(curve_text(curves[0].plain()))
    results: dict[str, Any] = {
        "images": len(labels),
        "features": "extracted" if extractor.stored is None else "stored",
        "seconds_grouping": round(grouping, 1),
        "seconds_choosing": None if walked else round(time.perf_counter() - begin, 1),
        "forwards_of_seed_0": None if walked else probe.n_evaluations,
        "curve_of_seed_0": curves[0].plain(),
    }
    curves += [crossing_curve(forest, labels, probe, seed=seed) for seed in range(1, options.seeds)]
    results["default"] = spread(curves)
    curves = [crossing_curve(forest, labels, probe, num_pairs=2_000, seed=seed) for seed in range(options.seeds)]
    results["2000_pairs"] = spread(curves)
    results["paths_walked_in_all"] = probe.n_pairs
    results["forwards_a_path"] = round(probe.n_evaluations / probe.n_pairs, 2)
    results["paths_a_second"] = round(probe.n_pairs / probe.seconds, 1)

    cut = results["default"]["median"]
    selection = selector.select(view, labels).with_keep_fraction(1 - cut)
    gone = selection.removed
    sample = np.random.default_rng(0).choice(gone, _COMPARED, replace=False)
    ends = [
        view.batch_transform((pixels[index], None), torch.device("cpu"))[0]
        for index in (sample, selection.representative[sample])
    ]
    begin = time.perf_counter()
    plain = probe_paths(network, *ends, num_points=17, tolerance=1 / 16, adaptive=False)
    plain_seconds, begin = time.perf_counter() - begin, time.perf_counter()
    few = probe_paths(network, *ends, num_points=5, tolerance=1 / 16)
    results["walks"] = {
        "pairs": _COMPARED,
        "all_17_points": {
            "forwards": plain.n_evaluations,
            "seconds": round(plain_seconds, 1),
            "crossing": int((plain.num_crossings > 0).sum()),
        },
        "where_margins_leave_room": {
            "forwards": few.n_evaluations,
            "seconds": round(time.perf_counter() - begin, 1),
            "crossing": int((few.num_crossings > 0).sum()),
        },
        "told_otherwise": int(((plain.num_crossings > 0) != (few.num_crossings > 0)).sum()),
    }

    crosses = probe(gone, selection.representative[gone])
    features = np.asarray(extractor.vectors(view))
    weight, bias = (parameter.detach().numpy() for parameter in network.linear.parameters())
    two = np.partition(features @ weight.T + bias, -2, axis=1)[:, -2:]
    margins = two[:, 1] - two[:, 0]
    columns = [selection.distance[gone], margins[gone], margins[selection.representative[gone]]]
    known = StandardScaler().fit_transform(np.log(np.maximum(np.stack(columns, axis=1), 1e-6)))
    told = cross_val_predict(LogisticRegression(), known, crosses, cv=5, method="predict_proba")[:, 1]
    results["told_without_walking"] = {
        "from": "distance to the representative and margins at both ends, logistic regression, 5 folds",
        "share_of_variance": round(1 - float(((crosses - told) ** 2).mean() / crosses.var()), 4),
    }
    results["peak_mib"] = round(peak_mib())
    print({name: value for name, value in results.items() if name != "curve_of_seed_0"})
    write_results(options.output, results)


if __name__ == "__main__":
    main()
